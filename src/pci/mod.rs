//! PCI functions: configuration space, interrupt pins, and what a guest sees of them.
//!
//! Everything here is arithmetic over values read through [`ConfigSpace`], the one trait the binary implements
//! (by ECAM or by ports 0xcf8/0xcfc). Devices are hostile until proved otherwise: a walk ends after a bound that
//! does not depend on what the device answers, and an all-ones answer means *absent*, never *asserted*.
//!
//! | file | one idea |
//! | --- | --- |
//! | [`bdf`] | the name of a function on the bus |
//! | [`config`] | offsets, widths, Command and Status, and the trait that reaches hardware |
//! | [`ecam`] | where a register lies in memory or behind port 0xcf8 |
//! | [`capability`] | the capability list, bounded |
//! | [`bar`] | base address registers: decoding, sizing, who shares a page |
//! | [`function`](mod@function) | one function as a plain description |
//! | [`enumerate`](mod@enumerate) | all functions behind the given root buses |
//! | [`pin`] | INTA# to INTD#, the swizzle, DisINTx and Interrupt Status |
//! | [`reset`] | how a function is reset, and its reset as a state machine |
//! | [`route`] | from a function's pin to its global system interrupt |
//! | [`snapshot`] | a function as it was, for whom it is another's |
//! | [`virtual_bar`] | a guest's base address registers |
//! | [`virtual_config`] | a guest's configuration space of one assigned function |
//! | [`config_ports`] | a guest's ports 0xcf8 to 0xcff |
//!
//! The Command register of a function has one writer at a time (N3): [`Function::prepare`] before the function is
//! assigned, [`DisIntx`] from then on, a [`Reset`] while it lasts. A guest's writes to it never reach the device.

pub mod bar;
pub mod bdf;
pub mod capability;
pub mod config;
pub mod config_ports;
pub mod ecam;
pub mod enumerate;
#[cfg(test)]
pub(crate) mod fake;
pub mod function;
pub mod pin;
pub mod reset;
pub mod route;
pub mod snapshot;
pub mod virtual_bar;
pub mod virtual_config;

pub use bar::{Bar, BarIndex, BarKind, BarSlot, Bars};
pub use bdf::Bdf;
pub use config::{Access, Command, ConfigSpace, Offset, Status, Width};
pub use config_ports::ConfigPorts;
pub use enumerate::{Topology, enumerate};
pub use function::{Function, Header};
pub use pin::{DisIntx, IntPin, IntxView};
pub use reset::Reset;
pub use route::PinRoute;
pub use snapshot::Snapshot;
pub use virtual_config::{Effect, VirtualConfig};
