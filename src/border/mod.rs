//! Who answers at a guest's ports, model-specific registers and addresses, and with what.
//!
//! A guest names a number, and the answer comes out as a value: what it reads, or what is to be done. Everything a number
//! can lead to is the partition's own; every other number reads as nothing would, or is refused. What this costs is bounded
//! whatever the number is, and nothing here allocates or panics.
//!
//! | file | one idea |
//! | --- | --- |
//! | [`ports`] | COM1, the debug and the exit port, configuration mechanism 1 |
//! | [`msrs`] | the registers of RDMSR and WRMSR that exit |
//! | [`memory`] | guest-physical addresses without memory |

pub mod memory;
pub mod msrs;
pub mod ports;

pub use memory::Place;
pub use msrs::Registers;
pub use ports::Ports;
