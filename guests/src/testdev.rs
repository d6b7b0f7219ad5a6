//! QEMU's `pci-testdev` (docs/specs/pci-testdev): accesses to device memory and ports, counted by the device.
//!
//! Each of its two BARs starts with the same header. A test is selected by its number; then the header tells
//! which access counts: a write of `data`, `width` bytes wide, at `offset`.
#![expect(unsafe_code, reason = "port I/O")]

use crate::cpu::{in8, in32, out8, out16, out32};
use crate::pci::{Bar, Function};
use crate::{check, fail, say};

const SELECT: u16 = 0;
const WIDTH: u16 = 1;
const OFFSET: u16 = 4;
const DATA: u16 = 8;
const COUNT: u16 = 12;
const NAME: u16 = 16;

/// How often each test's access is made.
const ACCESSES: u32 = 16;

/// Finds the device. Which of its BARs, memory and ports, answer; all-ones is no answer.
pub fn answers() -> [bool; 2] {
    let Some(function) = Function::find(0x1b36, 0x0005) else { fail!("no pci-testdev on bus 0") };
    function.enable();
    [0, 1].map(|index| read32(function.bar(index), COUNT) != u32::MAX)
}

/// Finds the device and has it count accesses to both its BARs. Ends the guest on a wrong count.
pub fn exercise() {
    let Some(function) = Function::find(0x1b36, 0x0005) else { fail!("no pci-testdev on bus 0") };
    check!(function.interrupt_pin() == 0, "pci-testdev has an interrupt pin");
    function.enable();
    for (index, kind) in [(0, "memory"), (1, "ports")] {
        let bar = function.bar(index);
        let tests = (0..=u8::MAX).take_while(|&test| run(bar, test)).count();
        check!(tests > 0, "pci-testdev has no test for its {kind}");
        say!("pci-testdev {kind} {tests}/{tests} ok");
    }
}

/// Runs one test. Returns false if there is none of that number.
fn run(bar: Bar, test: u8) -> bool {
    write(bar, SELECT, 1, u32::from(test));
    let width = read8(bar, WIDTH);
    if width == 0 {
        return false;
    }
    let (offset, data) = (read32(bar, OFFSET), u32::from(read8(bar, DATA)));
    let Ok(offset) = u16::try_from(offset) else { fail!("pci-testdev test {test}: offset {offset:#x}") };
    for _ in 0..ACCESSES {
        write(bar, offset, width, data);
    }
    // The other tests hand the access to an event of the emulator's, and the device never hears of it.
    let counted = if name_ends_with(bar, b"-no-eventfd") { ACCESSES } else { 0 };
    let count = read32(bar, COUNT);
    check!(count == counted, "pci-testdev test {test}: {count} accesses counted instead of {counted}");

    // An access beside the right place is none, nor is one with the wrong data.
    write(bar, offset + 1, width, data);
    if counted != 0 {
        write(bar, offset, width, data ^ 1);
    }
    let count = read32(bar, COUNT);
    check!(count == counted, "pci-testdev test {test}: a wrong access was counted");
    true
}

/// Whether the test's name, which a zero byte ends, ends with `suffix`.
fn name_ends_with(bar: Bar, suffix: &[u8]) -> bool {
    const LONGEST: u16 = 64;
    let length = (0..LONGEST).find(|&index| read8(bar, NAME + index) == 0).unwrap_or(LONGEST);
    (1..).zip(suffix.iter().rev()).all(|(distance, &byte)| {
        length.checked_sub(distance).is_some_and(|index| read8(bar, NAME + index) == byte)
    })
}

fn read8(bar: Bar, offset: u16) -> u8 {
    match bar {
        Bar::Memory(registers) => registers.read8(usize::from(offset)),
        // SAFETY: pci-testdev counts accesses and reaches no memory.
        Bar::Ports(base) => unsafe { in8(base + offset) },
    }
}

fn read32(bar: Bar, offset: u16) -> u32 {
    match bar {
        Bar::Memory(registers) => registers.read32(usize::from(offset)),
        // SAFETY: pci-testdev counts accesses and reaches no memory.
        Bar::Ports(base) => unsafe { in32(base + offset) },
    }
}

fn write(bar: Bar, offset: u16, width: u8, value: u32) {
    match (bar, width) {
        (Bar::Memory(registers), 1) => registers.write8(usize::from(offset), value as u8),
        (Bar::Memory(registers), 2) => registers.write16(usize::from(offset), value as u16),
        (Bar::Memory(registers), 4) => registers.write32(usize::from(offset), value),
        // SAFETY: pci-testdev counts accesses and reaches no memory.
        (Bar::Ports(base), 1) => unsafe { out8(base + offset, value as u8) },
        // SAFETY: pci-testdev counts accesses and reaches no memory.
        (Bar::Ports(base), 2) => unsafe { out16(base + offset, value as u16) },
        // SAFETY: pci-testdev counts accesses and reaches no memory.
        (Bar::Ports(base), 4) => unsafe { out32(base + offset, value) },
        _ => fail!("pci-testdev asks for an access {width} bytes wide"),
    }
}
