//! What a language runtime would bring: memory routines, the boot heap, the panic report, the exit.
#![expect(unsafe_code, reason = "memory routines are assembly")]

pub(crate) mod exit;
pub(crate) mod heap;
pub(crate) mod panic;

core::arch::global_asm!(include_str!("mem.S"));
