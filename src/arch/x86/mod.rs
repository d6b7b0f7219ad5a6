//! The x86-64 machine: CPU tables, paging, interrupt chips, ports. Implements what the library asks for through small
//! traits and knows nothing of guests.

pub(crate) mod clock;
pub(crate) mod config_space;
pub(crate) mod cpu;
pub(crate) mod ioapic;
pub(crate) mod lapic;
pub(crate) mod memory;
pub(crate) mod mmio;
pub(crate) mod paging;
