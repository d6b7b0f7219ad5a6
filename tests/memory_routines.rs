//! The hypervisor's memory routines (`src/rt/mem.S`), run on the host at every short length, offset and overlap.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "calls assembly")]

use std::arch::global_asm;

global_asm!(include_str!("../src/rt/mem.S"));

unsafe extern "C" {
    fn lh_memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8;
    fn lh_memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8;
    fn lh_memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8;
    fn lh_memcmp(a: *const u8, b: *const u8, bytes: usize) -> i32;
    fn lh_strlen(text: *const u8) -> usize;
}

const ROOM: usize = 2048;

/// Bytes that differ from their neighbours, and a frame that shows a write outside.
fn pattern() -> Vec<u8> {
    (0..ROOM).map(|index| (index * 7 + index / 256) as u8).collect()
}

/// Every length up to 80, and a few longer ones.
fn lengths() -> impl Iterator<Item = usize> {
    (0..80).chain([127, 128, 129, 255, 256, 257, 263, 264, 700])
}

#[test]
fn copies_exactly_the_run_and_nothing_else() {
    let from = pattern();
    for length in lengths() {
        for (source, target) in [(0, 0), (1, 0), (0, 3), (5, 8), (16, 1)] {
            let mut to = vec![0xee; ROOM];
            let mut expected = to.clone();
            expected[100 + target..100 + target + length].copy_from_slice(&from[source..source + length]);
            let place = to[100 + target..].as_mut_ptr();
            // SAFETY: both runs lie inside their vectors, which do not overlap.
            let returned = unsafe { lh_memcpy(place, from[source..].as_ptr(), length) };
            assert_eq!(returned, place);
            assert!(to == expected, "length {length}, from {source} to {target}");
        }
    }
}

#[test]
fn moves_as_if_by_way_of_a_copy() {
    for length in lengths() {
        for distance in 0..40_usize {
            for forwards in [false, true] {
                let mut bytes = pattern();
                let (source, target) = if forwards { (600, 600 - distance) } else { (600, 600 + distance) };
                let mut expected = bytes.clone();
                expected.copy_within(source..source + length, target);
                let base = bytes.as_mut_ptr();
                // SAFETY: both runs lie inside the one vector.
                let to = unsafe { base.add(target) };
                // SAFETY: the source run lies inside the same vector.
                let from = unsafe { base.add(source) };
                // SAFETY: both runs lie inside the one vector; that they overlap is allowed.
                let returned = unsafe { lh_memmove(to, from, length) };
                assert_eq!(returned, to);
                assert!(bytes == expected, "length {length}, distance {distance}, forwards {forwards}");
            }
        }
    }
}

#[test]
fn fills_exactly_the_run() {
    for length in lengths() {
        for value in [0, 0x5a, 0xff, -1, 0x1a5] {
            let mut bytes = pattern();
            let mut expected = bytes.clone();
            expected[33..33 + length].fill(value as u8);
            let place = bytes[33..].as_mut_ptr();
            // SAFETY: the run lies inside the vector.
            let returned = unsafe { lh_memset(place, value, length) };
            assert_eq!(returned, place);
            assert!(bytes == expected, "length {length}, value {value}");
        }
    }
}

#[test]
fn compares_by_the_first_difference() {
    let a = pattern();
    for length in 0..60 {
        for at in 0..length {
            for change in [1_u8, 0x80, 0xff] {
                let mut b = a.clone();
                b[at] = b[at].wrapping_add(change);
                // A later difference must not count.
                b[at + 1] = b[at + 1].wrapping_sub(1);
                // SAFETY: both runs lie inside their vectors.
                let found = unsafe { lh_memcmp(a.as_ptr(), b.as_ptr(), length) };
                assert_eq!(found.signum(), a[at].cmp(&b[at]) as i32, "length {length}, at {at}");
            }
        }
        // SAFETY: both vectors are longer than any `length` here.
        assert_eq!(unsafe { lh_memcmp(a.as_ptr(), a.clone().as_ptr(), length) }, 0);
    }
}

#[test]
fn measures_up_to_the_zero() {
    for length in 0..40 {
        let mut text = vec![b'x'; length];
        text.push(0);
        // SAFETY: the text ends with a zero.
        assert_eq!(unsafe { lh_strlen(text.as_ptr()) }, length);
    }
}
