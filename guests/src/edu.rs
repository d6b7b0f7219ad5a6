//! QEMU's `edu` device (docs/specs/edu): the line that the guests play with.
//!
//! Its interrupt status is a set of 32 bits; INTA# is asserted while any is set. A write to the raise register
//! sets bits at once, which makes it an exactly timed source. A factorial is computed in a thread of QEMU's own
//! and raises when it is done, which makes it a truly asynchronous one. A transfer by DMA ends 100 ms of QEMU's clock
//! after its start and raises then, whether or not it reached memory: an exactly timed source for a CPU that sleeps.

use crate::check;
use crate::cpu::Mmio;
use crate::fail;
use crate::ioapic::Pin;
use crate::pci::{Bar, Function};
use crate::{ioapic, lapic};

const IDENTIFICATION: usize = 0x00;
const FACTORIAL: usize = 0x08;
const STATUS: usize = 0x20;
const INTERRUPT_STATUS: usize = 0x24;
/// Offset of the register that sets interrupt status bits.
pub const RAISE: usize = 0x60;
/// Offset of the register that clears interrupt status bits.
pub const ACKNOWLEDGE: usize = 0x64;
const TRANSFER_SOURCE: usize = 0x80;
const TRANSFER_DESTINATION: usize = 0x88;
const TRANSFER_COUNT: usize = 0x90;
/// Offset of the register that starts a transfer.
pub const TRANSFER_COMMAND: usize = 0x98;

/// Command: run, from memory to the device, raise [`TRANSFER_DONE`] at the end.
pub const TRANSFER_START: u32 = 1 << 0 | 1 << 2;
/// Where the device's own memory begins.
const DEVICE_MEMORY: u32 = 0x4_0000;

/// Status: raise [`FACTORIAL_DONE`] when a factorial is computed.
const RAISE_WHEN_DONE: u32 = 1 << 7;

/// The interrupt status bit of a computed factorial.
pub const FACTORIAL_DONE: u32 = 1 << 0;
/// The interrupt status bit of a transfer.
pub const TRANSFER_DONE: u32 = 1 << 8;

/// An `edu` device.
#[derive(Clone, Copy, Debug)]
pub struct Edu {
    /// Its PCI function.
    pub function: Function,
    /// Its registers.
    pub registers: Mmio,
}

impl Edu {
    /// Finds the device and quiets it. Ends the guest if it is missing.
    pub fn find() -> Self {
        match Self::all().next() {
            Some(edu) => edu,
            None => fail!("no edu device on bus 0"),
        }
    }

    /// Finds all of them, in the order of their addresses, and quiets each.
    pub fn all() -> impl Iterator<Item = Self> {
        Function::all(0x1234, 0x11e8).map(Self::quiet)
    }

    fn quiet(function: Function) -> Self {
        function.enable();
        let Bar::Memory(registers) = function.bar(0) else { fail!("edu's BAR 0 is not memory") };
        let edu = Self { function, registers };
        let identification = registers.read32(IDENTIFICATION);
        check!(identification & 0xffff == 0xed, "edu identifies itself as {identification:#x}");
        registers.write32(STATUS, 0);
        edu.acknowledge(u32::MAX);
        edu
    }

    /// Connects the device's interrupt line to `vector` of this CPU.
    pub fn connect(self, vector: u8) -> Pin {
        ioapic::init();
        Pin::connect(self.function.gsi(), vector, lapic::id())
    }

    /// Sets interrupt status bits.
    pub fn raise(self, bits: u32) {
        self.registers.write32(RAISE, bits);
    }

    /// Clears interrupt status bits.
    pub fn acknowledge(self, bits: u32) {
        self.registers.write32(ACKNOWLEDGE, bits);
    }

    /// The interrupt status: the line is asserted while it is not 0.
    pub fn interrupt_status(self) -> u32 {
        self.registers.read32(INTERRUPT_STATUS)
    }

    /// Starts to compute the factorial of `n`, modulo 2^32; [`FACTORIAL_DONE`] is raised when it is ready.
    pub fn start_factorial(self, n: u32) {
        self.registers.write32(STATUS, RAISE_WHEN_DONE);
        self.registers.write32(FACTORIAL, n);
    }

    /// Starts a transfer of one word from memory to the device; [`TRANSFER_DONE`] is raised at its end. Source and size
    /// stay set for further ones, which [`TRANSFER_START`] written to [`TRANSFER_COMMAND`] starts.
    pub fn start_transfer(self) {
        self.registers.write32(TRANSFER_SOURCE, 0);
        self.registers.write32(TRANSFER_DESTINATION, DEVICE_MEMORY);
        self.registers.write32(TRANSFER_COUNT, 4);
        self.registers.write32(TRANSFER_COMMAND, TRANSFER_START);
    }

    /// The computed factorial.
    pub fn factorial(self) -> u32 {
        self.registers.read32(FACTORIAL)
    }
}
