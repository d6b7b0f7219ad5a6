//! Everything that is particular to a processor: `x86` is the machine, `svm` AMD's virtualization. A second vendor
//! would be a sibling of `svm`. No rule lives here: what is decided, the library decides.

pub(crate) mod svm;
pub(crate) mod x86;
