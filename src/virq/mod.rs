//! The guest's side of an interrupt: virtual local APIC and virtual IO-APIC.
