//! After `warm_up` no decode allocates: the heap of the hypervisor is sealed by then.
//!
//! A file of its own, because the counting allocator serves the whole process. It counts per thread: the test
//! harness allocates in its own.
#![cfg(feature = "emulate")]
#![expect(unsafe_code, reason = "a global allocator that counts is unsafe to implement")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;

use levelhead::emulate::{
    Code, DecodeCache, Intercepted, MmioOp, cr8_write, intercepted_length, string_io, warm_up,
};
use levelhead::vcpu::CodeSize;

struct Counting;

thread_local! {
    // Constant and without a destructor, so that using it in the allocator does not allocate.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller upholds the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `dealloc`, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn decoding_after_the_warm_up_allocates_nothing() {
    let before_tables = ALLOCATIONS.get();
    warm_up();
    let before = ALLOCATIONS.get();
    assert!(before > before_tables, "the tables are built by the warm-up, so the counter counts");

    let mut cache = DecodeCache::new();
    let mut decoded = 0u64;
    // Every opcode of the one-, two- and three-byte maps, with and without the prefixes that select others.
    for size in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
        for prefix in
            [&[][..], &[0x66], &[0xf2], &[0xf3], &[0xf0], &[0x48], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]]
        {
            for opcode in 0..=u8::MAX {
                for modrm in [0x07, 0x0f, 0x87, 0xc0, 0xd9] {
                    let mut bytes = [0u8; 15];
                    bytes[..prefix.len()].copy_from_slice(prefix);
                    bytes[prefix.len()] = opcode;
                    bytes[prefix.len() + 1] = modrm;
                    let code = Code::from_bytes(&bytes);
                    decoded += u64::from(MmioOp::decode(&code, size).is_ok());
                    decoded += u64::from(cache.decode(u64::from(opcode), &code, size).is_ok());
                    decoded += u64::from(intercepted_length(&code, size, Intercepted::Cpuid).is_ok());
                    decoded += u64::from(cr8_write(&code, size).is_ok());
                    decoded += u64::from(string_io(&code, size).is_ok());
                }
            }
        }
    }
    let after = ALLOCATIONS.get();
    assert!(decoded > 1000, "{decoded} decodes");
    assert_eq!(after, before, "allocations during {decoded} decodes");
}
