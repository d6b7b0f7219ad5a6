//! The IO-APIC at 0xfec0_0000 (82093AA), as far as a PCI interrupt needs it.
#![expect(unsafe_code, reason = "device memory")]

use crate::cpu::Mmio;

const SELECT: usize = 0x00;
const DATA: usize = 0x10;
/// The EOI register, of version 0x20 and above.
const EOI: usize = 0x40;

const VERSION: u32 = 0x01;
/// First redirection table register; two per pin, low half first.
const REDIRECTION: u32 = 0x10;

/// Redirection table entry: asserted low, as PCI's interrupt pins are (PCI 3.0 2.2.6).
const ACTIVE_LOW: u32 = 1 << 13;
/// Delivered, and the EOI is still to come.
const REMOTE_IRR: u32 = 1 << 14;
const LEVEL_TRIGGERED: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

fn registers() -> Mmio {
    // SAFETY: the place of the IO-APIC on every PC; it reaches no memory.
    unsafe { Mmio::new(0xfec0_0000) }
}

fn read(register: u32) -> u32 {
    registers().write32(SELECT, register);
    registers().read32(DATA)
}

fn write(register: u32, value: u32) {
    registers().write32(SELECT, register);
    registers().write32(DATA, value);
}

/// Masks every pin.
pub fn init() {
    let last = read(VERSION) >> 16 & 0xff;
    for pin in 0..=last {
        write(REDIRECTION + 2 * pin, MASKED);
    }
}

/// The version number in the version register.
pub fn version() -> u8 {
    read(VERSION) as u8
}

/// Completes `vector` at every level-triggered pin that sends it, whoever has it in service.
pub fn eoi(vector: u8) {
    registers().write32(EOI, vector.into());
}

/// A pin that leads to a PCI device's interrupt line.
#[derive(Clone, Copy, Debug)]
pub struct Pin {
    register: u32,
    low: u32,
}

impl Pin {
    /// Sends the level-triggered line at pin `pin` to the CPU `destination` as `vector`, and unmasks it.
    pub fn connect(pin: u8, vector: u8, destination: u32) -> Self {
        Self::program(pin, LEVEL_TRIGGERED | ACTIVE_LOW | u32::from(vector), destination)
    }

    /// The same, as a guest does that takes the line for an edge-triggered one.
    pub fn connect_edge_triggered(pin: u8, vector: u8, destination: u32) -> Self {
        Self::program(pin, ACTIVE_LOW | u32::from(vector), destination)
    }

    fn program(pin: u8, low: u32, destination: u32) -> Self {
        let connected = Self { register: REDIRECTION + 2 * u32::from(pin), low };
        connected.mask();
        write(connected.register + 1, destination << 24);
        connected.unmask();
        connected
    }

    /// Sends the line to the CPU `destination` from now on, without holding it back meanwhile.
    pub fn aim(self, destination: u32) {
        write(self.register + 1, destination << 24);
    }

    /// The pin with an entry that sends `vector`, once that is written.
    #[must_use]
    pub fn sending(self, vector: u8) -> Self {
        Self { low: self.low & !0xff | u32::from(vector), ..self }
    }

    /// Holds the line back.
    pub fn mask(self) {
        write(self.register, self.low | MASKED);
    }

    /// Lets the line through; if it is asserted, it is delivered now.
    pub fn unmask(self) {
        write(self.register, self.low);
    }

    /// Whether a delivery has not seen its EOI.
    pub fn remote_irr(self) -> bool {
        read(self.register) & REMOTE_IRR != 0
    }
}
