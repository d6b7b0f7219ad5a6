//! Instructions that Rust has no words for, device memory, and cells shared with interrupt handlers.
//!
//! Everything about the CPU that is not an interrupt. Nothing here knows a device.
#![expect(unsafe_code, reason = "assembly")]

use core::arch::{asm, x86_64::__cpuid};
use core::cell::Cell;

/// A value that is shared between a program and its interrupt handlers, and with other CPUs.
///
/// For whole values only, written before the handlers and the CPUs that read them can run; counters are atomics.
#[derive(Debug)]
#[repr(transparent)]
pub struct CpuCell<T: Copy>(Cell<T>);

// SAFETY: one CPU writes, and whoever else reads does so when the write is over, by the type's rule above: handlers that
// run later, and CPUs that are started later.
unsafe impl<T: Copy> Sync for CpuCell<T> {}

impl<T: Copy> CpuCell<T> {
    /// Makes a cell that holds `value`.
    pub const fn new(value: T) -> Self {
        Self(Cell::new(value))
    }

    /// Returns the value.
    pub fn get(&self) -> T {
        self.0.get()
    }

    /// Replaces the value.
    pub fn set(&self, value: T) {
        self.0.set(value);
    }
}

/// A range of device registers in memory.
///
/// Each access is one plain `mov`, the form that a hypervisor without decode assists must emulate.
#[derive(Clone, Copy, Debug)]
pub struct Mmio {
    base: usize,
}

impl Mmio {
    /// Makes a view of the registers at physical address `base`, which is mapped one to one.
    ///
    /// # Safety
    /// From `base`, as far as offsets will be used, there must be device registers and no memory of Rust's, and
    /// no write there may make the device write to such memory.
    pub const unsafe fn new(base: usize) -> Self {
        Self { base }
    }

    /// Returns the address of the register at `offset`.
    pub fn address(self, offset: usize) -> usize {
        self.base.wrapping_add(offset)
    }

    /// Reads the 8-bit register at `offset`.
    pub fn read8(self, offset: usize) -> u8 {
        let value;
        // SAFETY: a device register, by the contract of `new`.
        unsafe { asm!("mov {}, [{}]", out(reg_byte) value, in(reg) self.address(offset), options(nostack)) };
        value
    }

    /// Writes the 8-bit register at `offset`.
    pub fn write8(self, offset: usize, value: u8) {
        // SAFETY: a device register, by the contract of `new`.
        unsafe { asm!("mov [{}], {}", in(reg) self.address(offset), in(reg_byte) value, options(nostack)) };
    }

    /// Writes the 16-bit register at `offset`.
    pub fn write16(self, offset: usize, value: u16) {
        // SAFETY: a device register, by the contract of `new`.
        unsafe { asm!("mov [{}], {:x}", in(reg) self.address(offset), in(reg) value, options(nostack)) };
    }

    /// Reads the 32-bit register at `offset`.
    pub fn read32(self, offset: usize) -> u32 {
        let value;
        // SAFETY: a device register, by the contract of `new`.
        unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) self.address(offset), options(nostack)) };
        value
    }

    /// Writes the 32-bit register at `offset`.
    pub fn write32(self, offset: usize, value: u32) {
        // SAFETY: a device register, by the contract of `new`.
        unsafe { asm!("mov [{}], {:e}", in(reg) self.address(offset), in(reg) value, options(nostack)) };
    }
}

/// Reads a byte from `port`.
///
/// # Safety
/// The access must not make a device write to memory of Rust's; the same for the other five.
pub unsafe fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: the caller promises that no device writes to Rust's memory for it.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads 16 bits from `port`.
///
/// # Safety
/// As [`in8`].
pub unsafe fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: the caller promises that no device writes to Rust's memory for it.
    unsafe { asm!("in ax, dx", out("ax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads 32 bits from `port`.
///
/// # Safety
/// As [`in8`].
pub unsafe fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: the caller promises that no device writes to Rust's memory for it.
    unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte to `port`.
///
/// # Safety
/// As [`in8`].
pub unsafe fn out8(port: u16, value: u8) {
    // SAFETY: the caller promises that no device writes to Rust's memory for it.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes 16 bits to `port`.
///
/// # Safety
/// As [`in8`].
pub unsafe fn out16(port: u16, value: u16) {
    // SAFETY: the caller promises that no device writes to Rust's memory for it.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes 32 bits to `port`.
///
/// # Safety
/// As [`in8`].
pub unsafe fn out32(port: u16, value: u32) {
    // SAFETY: the caller promises that no device writes to Rust's memory for it.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads a model-specific register.
///
/// # Safety
/// The register must exist (else #GP), and reading it must have no effect on memory.
pub unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller promises that the register exists and that reading it reaches no memory.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register must exist and take the value (else #GP), and the value must not change how memory is reached.
pub unsafe fn wrmsr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller promises that the register takes the value and leaves memory where it is.
    unsafe { asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack)) };
}

/// Allows interrupts.
pub fn enable_interrupts() {
    // SAFETY: every vector has a handler since `interrupts::init`, which runs before any program.
    unsafe { asm!("sti", options(nostack)) };
}

/// Holds interrupts back.
pub fn disable_interrupts() {
    // SAFETY: changes nothing but the interrupt flag.
    unsafe { asm!("cli", options(nostack)) };
}

/// Allows interrupts and halts until one has been handled, without a gap between the two: the instruction
/// after STI still runs in its shadow (APM3 STI). Returns with interrupts held back.
pub fn halt_until_interrupt() {
    // SAFETY: as in `enable_interrupts`; CLI closes what STI opened.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Stops the CPU for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing runs after it but this loop.
        unsafe { asm!("cli", "hlt", options(nostack)) };
    }
}

/// The time-stamp counter.
pub fn timestamp() -> u64 {
    // SAFETY: every 64-bit CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Leads the time-stamp counter elsewhere.
pub fn set_timestamp(value: u64) {
    const TSC: u32 = 0x10;
    // SAFETY: every 64-bit CPU has it, and it takes any value.
    unsafe { wrmsr(TSC, value) }
}

/// Whether the local APIC's timer can wait for the time-stamp counter (CPUID 1, ECX bit 24).
pub fn has_tsc_deadline() -> bool {
    __cpuid(1).ecx & 1 << 24 != 0
}

/// Whether the CPU has an x2APIC (CPUID 1, ECX bit 21).
pub fn has_x2apic() -> bool {
    __cpuid(1).ecx & 1 << 21 != 0
}

/// Whether this guest runs under Levelhead: CPUID 1 ECX bit 31 ("there is a hypervisor") and the signature in
/// leaf 0x4000_0000.
pub fn under_levelhead() -> bool {
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR_PRESENT == 0 {
        return false;
    }
    let leaf = __cpuid(0x4000_0000);
    let word = |bytes: [u8; 4]| u32::from_le_bytes(bytes);
    (leaf.ebx, leaf.ecx, leaf.edx) == (word(*b"Leve"), word(*b"lhea"), word(*b"dHyp"))
}
