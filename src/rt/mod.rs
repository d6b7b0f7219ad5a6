//! What a language runtime would bring: memory routines, the boot heap, the panic report, the exit; and which
//! build this is.
//!
//! It knows no guest and no device. The last words (`panic`) must work in any state: they take no lock that the code they
//! report on may hold.
#![expect(unsafe_code, reason = "memory routines are assembly")]

pub(crate) mod build_id;
pub(crate) mod exit;
pub(crate) mod heap;
pub(crate) mod panic;

core::arch::global_asm!(include_str!("mem.S"));
// The names under which compilers call them.
core::arch::global_asm!(
    ".global memcpy, memmove, memset, memcmp, bcmp, strlen",
    ".set memcpy, lh_memcpy",
    ".set memmove, lh_memmove",
    ".set memset, lh_memset",
    ".set memcmp, lh_memcmp",
    ".set bcmp, lh_memcmp",
    ".set strlen, lh_strlen",
);
