//! `memcpy` and its relatives.
#![expect(unsafe_code, reason = "assembly")]

core::arch::global_asm!(include_str!("mem.S"));
