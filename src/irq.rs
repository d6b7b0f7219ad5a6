//! The vocabulary of interrupts: numbers of different kinds that must never be mistaken for one another.

use core::fmt;
use core::num::NonZeroU8;

/// An ACPI global system interrupt: one input of one IO-APIC, numbered across the machine (ACPI 6.5 5.2.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}

/// How many functions may share a line. PCI wires four pins of many slots to few inputs; eight on one input is already
/// more than chipsets route in practice.
pub const MAX_SHARERS: usize = 8;

/// An input of one IO-APIC, counted from 0 (82093AA 3.2.4). Says nothing about whether the chip has that many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin(pub u8);

/// How many inputs an IO-APIC has. The version register holds the *last index*; this type is the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinCount(u16);

impl PinCount {
    /// From the "maximum redirection entry" field, which is the index of the last pin (82093AA 3.2.2).
    pub const fn from_max_redirection_entry(last: u8) -> Self {
        // A u8 plus one always fits a u16.
        Self(last as u16 + 1)
    }

    /// The number of inputs, 1 to 256.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Whether the chip has this input.
    pub const fn contains(self, pin: Pin) -> bool {
        (pin.0 as u16) < self.0
    }
}

/// An interrupt vector that may be used for a device: 32 to 255 (APM2 8.2). Never an exception's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vector(NonZeroU8);

impl Vector {
    /// The vector `raw`, or `None` for 0 to 31, which belong to exceptions.
    pub const fn new(raw: u8) -> Option<Self> {
        match NonZeroU8::new(raw) {
            Some(number) if raw >= 32 => Some(Self(number)),
            _ => None,
        }
    }

    /// The number in the interrupt descriptor table.
    pub const fn get(self) -> u8 {
        self.0.get()
    }

    /// The priority class, bits 7 to 4 (APM2 16.6.1).
    pub const fn class(self) -> u8 {
        self.get() >> 4
    }
}

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vector {:#04x}", self.get())
    }
}

/// Whether an input reacts to a rising edge or to a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TriggerMode {
    /// One interrupt for each change to the active state.
    Edge,
    /// An interrupt for as long as the input is active and the last one was completed.
    Level,
}

/// Which electrical level of an input counts as asserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Polarity {
    /// Asserted when the wire is high.
    ActiveHigh,
    /// Asserted when the wire is low, as PCI's INTx# is on the board.
    ActiveLow,
}

/// What a wire does, as seen by its reader: already corrected for polarity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Nobody drives the wire.
    Deasserted,
    /// At least one driver drives the wire.
    Asserted,
}

/// A local APIC's identifier; 8 bits in xAPIC mode, 32 in x2APIC mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApicId(pub u32);

/// A physical CPU, counted from 0 in the order of the MADT; 0 is the boot CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub u8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_exclude_exceptions() {
        for raw in 0..=u8::MAX {
            assert_eq!(Vector::new(raw).is_some(), raw >= 32);
        }
        assert_eq!(Vector::new(0x51).map(Vector::class), Some(5));
    }

    #[test]
    fn the_last_index_is_not_the_count() {
        let count = PinCount::from_max_redirection_entry(23);
        assert_eq!(count.get(), 24);
        assert!(count.contains(Pin(23)));
        assert!(!count.contains(Pin(24)));
        assert_eq!(PinCount::from_max_redirection_entry(255).get(), 256);
    }
}
