//! What firmware says of the machine, as plain values. Nothing outside this folder names the `acpi` crate, and nothing
//! in it runs after boot.

pub(crate) mod handler;
pub(crate) mod prt;
pub(crate) mod tables;
