//! AMD's virtualization extension: switching it on, and the world switch itself.
//!
//! Formats and their rules are the library's (`levelhead::svm`); here they are placed in memory and executed. What stands
//! around VMRUN in `vmrun.S` must not be moved without docs/adr/0004 and 0007 at hand.

pub(crate) mod enable;
pub(crate) mod nested;
pub(crate) mod vmrun;
pub(crate) mod wipe;
