//! Guest instructions: fetched through the guest's own page tables, decoded by `iced-x86`.
//!
//! A CPU without decode assists says that a guest touched a device, not with which instruction. This module finds
//! out: [`Paging`] translates as the guest's CPU would, [`fetch`] reads the bytes at RIP,
//! [`CodePages`] the same at less cost, [`intercepted_length`]
//! and its neighbours measure instructions that exit by themselves, and [`MmioOp`] turns an access into a plain
//! operation. Every input is the guest's to choose and may change between the exit and the fetch; the answers
//! are values or errors, never a panic, and bounded by the length of an instruction and the depth of a page walk.
//!
//! iced-x86 appears in `insn` and `mmio` only. It builds its tables once, on the first decode: [`warm_up`] does
//! that while allocation is still allowed, and nothing here allocates afterwards.

mod alu;
mod cache;
mod fetch;
mod insn;
mod mmio;
mod pages;
mod walk;

pub use cache::DecodeCache;
pub use fetch::{Code, fetch};
pub use insn::{
    Cr8Write, DecodeError, Intercepted, Segment, StringIo, cr8_write, intercepted_length, plain_length,
    string_io, warm_up,
};
pub use mmio::{MmioOp, Outcome};
pub use pages::CodePages;
pub use walk::{
    Access, AccessKind, GuestMemory, NotRam, Paging, PagingRegisters, Translation, Unsupported, WalkError,
};
