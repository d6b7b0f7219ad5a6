//! PCI configuration space by the ports CF8 and CFC (PCI 3.0 3.2.2.3.2).
#![expect(unsafe_code, reason = "port I/O")]

use crate::cpu::{self, Mmio, in8, in16, in32, out16, out32};
use crate::{cmdline, fail};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// Offset of the Command register (PCI 3.0 6.2.2).
const COMMAND: u8 = 0x04;
/// Offset of the Status register (PCI 3.0 6.2.3).
const STATUS: u8 = 0x06;
const HEADER_TYPE: u8 = 0x0e;
const BASE_ADDRESSES: u8 = 0x10;
const INTERRUPT_LINE: u8 = 0x3c;
const INTERRUPT_PIN: u8 = 0x3d;

/// Command: the function answers port accesses.
const IO_SPACE: u16 = 1 << 0;
/// Command: the function answers memory accesses.
const MEMORY_SPACE: u16 = 1 << 1;
/// Command: the function must not assert its interrupt line.
const INTERRUPT_DISABLE: u16 = 1 << 10;
/// Status: the function wants its interrupt line asserted, whatever `INTERRUPT_DISABLE` says.
const INTERRUPT_STATUS: u16 = 1 << 3;

/// A function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    bus: u8,
    slot: u8,
    function: u8,
}

/// What a base address register says (PCI 3.0 6.2.5.1).
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// Device memory.
    Memory(Mmio),
    /// Ports, from this one on.
    Ports(u16),
}

impl Function {
    /// The function of this number on bus 0, if there is one: 5 bits of slot, 3 bits of function.
    pub const fn numbered(number: u8) -> Self {
        Self { bus: 0, slot: number >> 3, function: number & 7 }
    }

    /// Looks for a function by vendor and device number.
    pub fn find(vendor: u16, device: u16) -> Option<Self> {
        Self::all(vendor, device).next()
    }

    /// All functions of this vendor and device number on the bus that the command line names, by slot and function.
    pub fn all(vendor: u16, device: u16) -> impl Iterator<Item = Self> {
        let bus = cmdline::number("bus").and_then(|bus| u8::try_from(bus).ok()).unwrap_or(0);
        Self::all_on(bus, vendor, device)
    }

    /// The same on another bus.
    pub fn all_on(bus: u8, vendor: u16, device: u16) -> impl Iterator<Item = Self> {
        const SEVERAL_FUNCTIONS: u8 = 1 << 7;
        let wanted = u32::from(device) << 16 | u32::from(vendor);
        let functions = (0..32).flat_map(move |slot| {
            let first = Self { bus, slot, function: 0 };
            let count = if first.read8(HEADER_TYPE) & SEVERAL_FUNCTIONS != 0 { 8 } else { 1 };
            (0..count).map(move |function| Self { function, ..first })
        });
        functions.filter(move |function| function.read32(0) == wanted)
    }

    /// Slot (device number) on its bus.
    pub fn slot(self) -> u8 {
        self.slot
    }

    /// Bus, device and function as configuration space encodes them.
    pub fn bdf(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.slot) << 3 | u16::from(self.function)
    }

    /// Switches on the answers to memory and port accesses.
    pub fn enable(self) {
        self.write16(COMMAND, self.read16(COMMAND) | IO_SPACE | MEMORY_SPACE);
    }

    /// Keeps the function from asserting its interrupt line, or lets it.
    pub fn set_interrupt_disable(self, disabled: bool) {
        let command = self.read16(COMMAND);
        let command = if disabled { command | INTERRUPT_DISABLE } else { command & !INTERRUPT_DISABLE };
        self.write16(COMMAND, command);
    }

    /// Whether the function says that it wants its interrupt line asserted.
    pub fn interrupt_status(self) -> bool {
        self.read16(STATUS) & INTERRUPT_STATUS != 0
    }

    /// Interrupt pin: 1 for INTA# to 4 for INTD#, 0 for none (PCI 3.0 6.2.4).
    pub fn interrupt_pin(self) -> u8 {
        self.read8(INTERRUPT_PIN)
    }

    /// The IO-APIC pin that the function's interrupt pin leads to.
    ///
    /// Levelhead puts it into the Interrupt Line register. On a bare machine that register is about the 8259s,
    /// and q35's wiring holds instead: slots up to 24 share pins 20 to 23 in turn.
    pub fn gsi(self) -> u8 {
        if let Some(gsi) = cmdline::number("gsi").and_then(|gsi| u8::try_from(gsi).ok()) {
            return gsi;
        }
        match self.interrupt_pin() {
            0 => fail!("the device in slot {} has no interrupt pin", self.slot),
            _ if cpu::under_levelhead() => self.read8(INTERRUPT_LINE),
            pin if self.slot <= 24 => 20 + (self.slot + pin - 1) % 4,
            _ => fail!("slot {} has a wiring of its own: say gsi=N on the command line", self.slot),
        }
    }

    /// Base address register `index`, decoded. Ends the guest if nothing is there.
    pub fn bar(self, index: u8) -> Bar {
        const PORTS: u32 = 1;
        let value = self.read32(BASE_ADDRESSES + 4 * index);
        let (address, ports) = if value & PORTS != 0 { (value & !3, true) } else { (value & !0xf, false) };
        match u16::try_from(address) {
            Ok(0) => fail!("BAR {index} of slot {} is not set", self.slot),
            Ok(port) if ports => Bar::Ports(port),
            _ if ports => fail!("BAR {index} of slot {} is no port: {value:#x}", self.slot),
            // SAFETY: a base address register of a function the guest owns holds the address of that function's
            // registers; no program asks a device to copy memory.
            _ => Bar::Memory(unsafe { Mmio::new(address as usize) }),
        }
    }

    /// Reads 8 bits of configuration space.
    pub fn read8(self, offset: u8) -> u8 {
        self.select(offset);
        // SAFETY: reading configuration space reaches no memory.
        unsafe { in8(DATA + u16::from(offset & 3)) }
    }

    /// Reads 16 bits of configuration space, at an even offset.
    pub fn read16(self, offset: u8) -> u16 {
        self.select(offset);
        // SAFETY: reading configuration space reaches no memory.
        unsafe { in16(DATA + u16::from(offset & 2)) }
    }

    /// Reads 32 bits of configuration space, at an offset divisible by 4.
    pub fn read32(self, offset: u8) -> u32 {
        self.select(offset);
        // SAFETY: reading configuration space reaches no memory.
        unsafe { in32(DATA) }
    }

    /// Writes 16 bits of configuration space, at an even offset.
    pub fn write16(self, offset: u8, value: u16) {
        self.select(offset);
        // SAFETY: the programs never move a BAR onto memory.
        unsafe { out16(DATA + u16::from(offset & 2), value) };
    }

    /// Writes 32 bits of configuration space, at an offset divisible by 4.
    pub fn write32(self, offset: u8, value: u32) {
        self.select(offset);
        // SAFETY: the programs never move a BAR onto memory.
        unsafe { out32(DATA, value) };
    }

    fn select(self, offset: u8) {
        const ENABLE: u32 = 1 << 31;
        let address = ENABLE | u32::from(self.bdf()) << 8 | u32::from(offset & !3);
        // SAFETY: selects what the next data access means, and reaches no memory.
        unsafe { out32(ADDRESS, address) };
    }
}
