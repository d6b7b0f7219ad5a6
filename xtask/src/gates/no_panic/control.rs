//! The control of the gate `no-panic`: compiled as the hypervisor is and walked from each function by itself. `clean` must
//! pass, each of the others must be caught for what its name says.

use std::hint::black_box;

#[inline(never)]
fn clean(values: &[u32], at: usize) -> u32 {
    // Enough arms for a table of jumps.
    let value = match at {
        0 => deeper_clean(values, 7),
        1 => 0xaa55,
        2 => black_box(31),
        3 => black_box(17) | 4,
        4 => deeper_clean(values, 1),
        5 => black_box(99) ^ 3,
        _ => 0,
    };
    value.wrapping_add(values.get(at).copied().unwrap_or(0))
}

#[inline(never)]
fn deeper_clean(values: &[u32], at: usize) -> u32 {
    values.iter().fold(at as u32, |sum, value| sum.wrapping_mul(31) ^ value)
}

#[inline(never)]
fn index(values: &[u32], at: usize) -> u32 {
    values[at]
}

#[inline(never)]
fn overflow(values: &[u32], at: usize) -> u32 {
    values.len() as u32 + at as u32
}

#[inline(never)]
fn deep(values: &[u32], at: usize) -> u32 {
    deeper(values, at ^ 1) ^ 1
}

#[inline(never)]
fn deeper(values: &[u32], at: usize) -> u32 {
    deepest(values, at) ^ 2
}

#[inline(always)]
fn deepest(values: &[u32], at: usize) -> u32 {
    *values.get(at).unwrap()
}

#[inline(never)]
fn allocate(values: &[u32], at: usize) -> u32 {
    Box::leak(black_box(Box::new(at as u32))).wrapping_add(values.len() as u32)
}

#[inline(never)]
fn dynamic(values: &[u32], at: usize) -> u32 {
    let known: [&dyn Fn(u32) -> u32; 2] = [&|value| value ^ 1, &|value| value ^ 2];
    black_box(known)[at & 1](values.len() as u32)
}

fn main() {
    black_box([clean as fn(&[u32], usize) -> u32, index, overflow, deep, allocate, dynamic]);
}
