//! From the loader to a machine that can run Rust on every CPU: PVH hand-over, memory map, application processors.
//!
//! Runs once. What the loader says is checked where it is read; after boot nothing here is called again.
#![expect(unsafe_code, reason = "the entry point is assembly")]

pub(crate) mod pvh;
pub(crate) mod smp;

core::arch::global_asm!(include_str!("entry.S"));
