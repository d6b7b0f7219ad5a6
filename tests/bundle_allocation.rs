//! However a bundle lies about counts and lengths, judging it allocates no more than so many times its own size.
//!
//! A file of its own, because the counting allocator serves the whole process. It counts per thread: the test harness
//! allocates in its own.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "a global allocator that counts is unsafe to implement")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::fmt::Debug;
use std::alloc::System;

use levelhead::config::{MAX_VIOLATIONS, REVISION, Rejection, unpack};

/// The most bytes in use at a time while a bundle is judged, for each byte it has.
const PER_BYTE: usize = 12;
/// The most altogether: a quarter of the hypervisor's heap (`src/rt/heap.rs`).
const HEAP_SHARE: usize = 512 << 10;

struct Counting;

thread_local! {
    // Constant and without a destructor, so that using them in the allocator does not allocate.
    static IN_USE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    IN_USE.set(IN_USE.get() + bytes);
    MOST.set(MOST.get().max(IN_USE.get()));
}

// SAFETY: every call is passed on to the system's allocator unchanged. A reallocation is, by default, an allocation, a copy and
// a deallocation, and counts as the hypervisor's heap would have it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: whoever allocates keeps the system's rules, counted or not.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the block came from `alloc` above, so from the system, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many bytes were in use at most while `bytes` were judged, beside those that were before.
fn judged(bytes: &[u8]) -> usize {
    let before = IN_USE.get();
    MOST.set(before);
    let verdict = unpack(bytes);
    // What boot says of it.
    let refusals = verdict.as_ref().err().map(Rejection::refusals);
    let most = MOST.get() - before;
    drop((verdict, refusals));
    assert_eq!(IN_USE.get(), before, "nothing is kept");
    most.cast_unsigned()
}

/// The form of a bundle (`src/config/bundle.rs`): what comes before the sections, and an entry of them.
const HEADER_BYTES: usize = 24;
const SECTION_BYTES: usize = 128;

/// What a configuration has in each of its partitions, and whether it breaks the rules by it.
#[derive(Clone, Copy, Debug)]
struct Shape {
    partitions: u8,
    cpus: u8,
    modules: u8,
    devices: u8,
    /// Whether of each device everything is said that can be, or nothing, so that it takes as few bytes as possible.
    wordy: bool,
    broken: bool,
}

/// A packed configuration (`src/config/blob.rs` has its form).
fn blob(shape: Shape) -> Vec<u8> {
    let Shape { partitions, cpus, modules, devices, wordy, broken } = shape;
    let mut blob = Vec::new();
    let count = |blob: &mut Vec<u8>, count: u8| blob.extend_from_slice(&u64::from(count).to_le_bytes());
    // What is right and what is wrong takes as many bytes.
    let either =
        |blob: &mut Vec<u8>, good: &[u8], bad: &[u8]| blob.extend_from_slice(if broken { bad } else { good });
    count(&mut blob, partitions);
    for partition in 0..partitions {
        count(&mut blob, 2);
        either(&mut blob, &[b'a' + partition / 8, b'a' + partition % 8], b"\0\0");
        count(&mut blob, cpus);
        (0..cpus).for_each(|cpu| either(&mut blob, &[partition.wrapping_mul(cpus).wrapping_add(cpu)], &[0]));
        either(&mut blob, &(1_u64 << 20).to_le_bytes(), &[1; 8]); // memory
        either(&mut blob, &[0, 0, 0], &[0, 9, 9]); // memory-at, kernel
        count(&mut blob, modules);
        for _ in 0..modules {
            either(&mut blob, &[0, 0], &[9, 9]);
            count(&mut blob, 1);
            either(&mut blob, b"x", b"\n");
        }
        count(&mut blob, 1);
        either(&mut blob, b"x", b"\n");
        blob.push(1); // console
        either(&mut blob, &[1, 0xe9, 0], &[1, 0xf8, 3]); // debug-port
        either(&mut blob, &[1, 0xf4, 0], &[1, 0xf8, 3]); // exit-port
        blob.extend_from_slice(&[0; 3]); // user-hypercalls, control, test-device
        blob.push(1); // restart
        either(&mut blob, &[1, 0, 0, 0], &[0xff; 4]);
        either(&mut blob, &[1, 0, 0, 0], &[0xff; 4]);
        count(&mut blob, devices);
        for device in 0..devices {
            either(&mut blob, &[partition, device, 0], &[0, 0, 0]);
            if !wordy {
                blob.extend_from_slice(&[0; 7]);
                continue;
            }
            either(&mut blob, &[1, partition * 8 + device % 8, 0, 0, 0], &[1, 0xff, 0xff, 0, 0]); // gsi
            blob.push(0); // mask
            either(&mut blob, &[1, 23], &[1, 0xff]); // vpin
            blob.push(1); // storm-limit and its companions
            (0..4).for_each(|_| either(&mut blob, &[1, 0, 0, 0], &[0xff; 4]));
            blob.extend_from_slice(&[1, 0]); // never-eoi
            either(&mut blob, &[1, 0, 0, 0], &[0xff; 4]);
            blob.push(0); // no-reset
            blob.push(u8::from(broken)); // standby and its companion
            if broken {
                count(&mut blob, 2);
                blob.extend_from_slice(b"zz");
                blob.extend_from_slice(&[1, 0xff]);
            }
        }
    }
    blob
}

/// A bundle of `blob` and one image, with all its checksums right (`src/config/bundle.rs` has its form).
fn bundle(blob: &[u8]) -> Vec<u8> {
    let (first, pages) = (4096, |length: usize| length.next_multiple_of(4096));
    let (second, image) = (first + pages(blob.len()), b"kernel");
    let mut bytes = [b"LVLHDBDL".as_slice(), &REVISION.to_le_bytes(), &2_u32.to_le_bytes()].concat();
    bytes.extend_from_slice(&((second + pages(image.len())) as u64).to_le_bytes());
    for (kind, start, payload) in [(1_u32, first, blob), (2, second, image)] {
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        bytes.extend_from_slice(&(start as u64).to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        bytes.extend_from_slice(b"name");
        bytes.resize(HEADER_BYTES + SECTION_BYTES * kind as usize, 0);
    }
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    for payload in [blob, image] {
        bytes.resize(pages(bytes.len()), 0);
        bytes.extend_from_slice(payload);
    }
    bytes.resize(pages(bytes.len()), 0);
    bytes
}

#[track_caller]
fn assert_bounded(bytes: &[u8], about: &dyn Debug) {
    let most = judged(bytes);
    let bound = HEAP_SHARE.min(PER_BYTE * bytes.len());
    assert!(most <= bound, "{about:?}: {most} bytes are in use for a bundle of {}", bytes.len());
}

/// The costliest that a bundle can be: as much as possible of everything, all of it right or all of it wrong.
#[test]
fn a_configuration_costs_a_bounded_multiple_of_its_bytes_however_many_rules_it_breaks() {
    let mut verdicts = [0, 0];
    for (cpus, modules, devices) in
        [(1, 0, 0), (8, 0, 0), (32, 0, 0), (1, 16, 0), (1, 0, 32), (8, 16, 32), (32, 16, 32)]
    {
        for (wordy, broken) in [(false, false), (false, true), (true, false), (true, true)] {
            let shape = Shape { partitions: 32, cpus, modules, devices, wordy, broken };
            let bytes = bundle(&blob(shape));
            match unpack(&bytes) {
                Ok(_) => verdicts[0] += 1,
                Err(Rejection::Rules(rules)) => {
                    assert!(rules.len() <= MAX_VIOLATIONS);
                    verdicts[1] += usize::from(rules.len() == MAX_VIOLATIONS);
                }
                Err(other) => panic!("{shape:?} is no configuration: {other}"),
            }
            assert_bounded(&bytes, &shape);
        }
    }
    assert!(
        verdicts[0] >= 10 && verdicts[1] >= 10,
        "well-formed, and as many violations as are told: {verdicts:?}"
    );
}

#[test]
fn no_count_and_no_length_of_a_configuration_reserves_memory() {
    let shape = Shape { partitions: 2, cpus: 2, modules: 1, devices: 2, wordy: true, broken: false };
    let good = blob(shape);
    assert!(unpack(&bundle(&good)).is_ok());
    for at in 0..=good.len() - 8 {
        for lie in [u64::MAX, 1 << 63, 1 << 40, 1 << 31, 4096, 256, 33, 32, 16] {
            let mut lying = good.clone();
            lying[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            assert_bounded(&bundle(&lying), &(at, lie));
        }
    }
}

#[test]
fn no_count_and_no_length_of_a_bundle_reserves_memory() {
    let good =
        bundle(&blob(Shape { partitions: 1, cpus: 1, modules: 0, devices: 1, wordy: true, broken: false }));
    let signed = HEADER_BYTES + 2 * SECTION_BYTES;
    for at in 0..=signed - 8 {
        for lie in [u64::MAX, 1 << 63, 1 << 40, 1 << 31, 1 << 20, 257, 256, 3, 0] {
            let mut lying = good.clone();
            lying[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            let checksum = crc32fast::hash(&lying[..signed]);
            lying[signed..signed + 4].copy_from_slice(&checksum.to_le_bytes());
            assert_bounded(&lying, &(at, lie));
        }
    }
}
