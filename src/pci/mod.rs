//! PCI functions: configuration space, pins, and what a guest sees of them.
