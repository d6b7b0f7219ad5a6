//! The IO-APIC's registers as values (82093AA 3.2), used by the driver of the physical chip and by the virtual one.

use crate::irq::{Pin, PinCount, Polarity, TriggerMode, Vector};

/// Index of the identification register.
pub const REG_ID: u8 = 0x00;
/// Index of the version register.
pub const REG_VERSION: u8 = 0x01;
/// Index of the arbitration register.
pub const REG_ARBITRATION: u8 = 0x02;
/// Index of the low half of pin 0's redirection table entry; each pin has two registers.
pub const REG_RTE_BASE: u8 = 0x10;
/// Offset of the index register (IOREGSEL) in the chip's window.
pub const MMIO_INDEX: u64 = 0x00;
/// Offset of the data register (IOWIN) in the chip's window.
pub const MMIO_DATA: u64 = 0x10;
/// Offset of the EOI register, version 0x20 and above.
pub const MMIO_EOI: u64 = 0x40;

/// The version register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(u32);

impl Version {
    /// As read from the chip.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The version proper, bits 7 to 0: 0x11 for an 82093AA, 0x20 for a chip with an EOI register.
    pub const fn version(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// How many inputs the chip has, from bits 23 to 16.
    pub const fn pin_count(self) -> PinCount {
        PinCount::from_max_redirection_entry((self.0 >> 16 & 0xff) as u8)
    }

    /// Whether the chip has the EOI register.
    pub const fn has_eoi_register(self) -> bool {
        self.version() >= 0x20
    }
}

/// How a redirection table entry names its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationMode {
    /// By local APIC identifier.
    Physical,
    /// By logical destination (LDR/DFR).
    Logical,
}

/// A redirection table entry, 64 bits (82093AA 3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rte(u64);

impl Rte {
    const DELIVERY_SHIFT: u32 = 8;
    const LOGICAL: u64 = 1 << 11;
    const DELIVERY_STATUS: u64 = 1 << 12;
    const ACTIVE_LOW: u64 = 1 << 13;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    const DESTINATION_SHIFT: u32 = 56;

    /// The state after reset: masked, edge, active high, vector 0.
    pub const RESET: Self = Self(Self::MASKED);

    /// A fixed-delivery entry for one local APIC, masked. Unmask it with [`Rte::with_mask`].
    pub const fn masked(vector: Vector, destination: u8, trigger: TriggerMode, polarity: Polarity) -> Self {
        let mut bits = vector.get() as u64 | Self::MASKED | (destination as u64) << Self::DESTINATION_SHIFT;
        if matches!(trigger, TriggerMode::Level) {
            bits |= Self::LEVEL;
        }
        if matches!(polarity, Polarity::ActiveLow) {
            bits |= Self::ACTIVE_LOW;
        }
        Self(bits)
    }

    /// Every bit as given, reserved ones included.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The raw entry.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The low register: everything but the destination.
    pub const fn low(self) -> u32 {
        self.0 as u32
    }

    /// The high register: the destination.
    pub const fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The vector field, which may hold an illegal value below 16.
    pub const fn vector_field(self) -> u8 {
        self.0 as u8
    }

    /// The vector, when it is one a device may use.
    pub const fn vector(self) -> Option<Vector> {
        Vector::new(self.0 as u8)
    }

    /// The delivery mode field: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT.
    pub const fn delivery_mode(self) -> u8 {
        (self.0 >> Self::DELIVERY_SHIFT & 7) as u8
    }

    /// How the destination field is meant.
    pub const fn destination_mode(self) -> DestinationMode {
        if self.0 & Self::LOGICAL != 0 { DestinationMode::Logical } else { DestinationMode::Physical }
    }

    /// Whether a message waits to be sent (read-only in the chip).
    pub const fn delivery_status(self) -> bool {
        self.0 & Self::DELIVERY_STATUS != 0
    }

    /// The polarity of the input.
    pub const fn polarity(self) -> Polarity {
        if self.0 & Self::ACTIVE_LOW != 0 { Polarity::ActiveLow } else { Polarity::ActiveHigh }
    }

    /// Whether the last level interrupt was accepted and not yet completed (read-only in the chip).
    pub const fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    /// The trigger mode.
    pub const fn trigger(self) -> TriggerMode {
        if self.0 & Self::LEVEL != 0 { TriggerMode::Level } else { TriggerMode::Edge }
    }

    /// Whether the input is masked.
    pub const fn is_masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    /// The destination field, bits 63 to 56.
    pub const fn destination(self) -> u8 {
        (self.0 >> Self::DESTINATION_SHIFT) as u8
    }

    /// The same entry, masked or not.
    #[must_use]
    pub const fn with_mask(self, masked: bool) -> Self {
        Self(if masked { self.0 | Self::MASKED } else { self.0 & !Self::MASKED })
    }

    /// The same entry for another destination.
    #[must_use]
    pub const fn with_destination(self, destination: u8) -> Self {
        Self(self.0 & !(0xff << Self::DESTINATION_SHIFT) | (destination as u64) << Self::DESTINATION_SHIFT)
    }

    /// The same entry with Remote IRR as given; only a chip, real or virtual, changes it.
    #[must_use]
    pub const fn with_remote_irr(self, set: bool) -> Self {
        Self(if set { self.0 | Self::REMOTE_IRR } else { self.0 & !Self::REMOTE_IRR })
    }
}

/// Where an entry is to lead, as its messages are taken: by how many interrupts in a row some other CPU took.
///
/// The second of two in a row that the same other CPU took turns the entry there, with the unmasking that ends it. One alone
/// says nothing about the next, and turning for each would cost a guest whose interrupts alternate between its CPUs three writes for
/// every one of them. As it is, turning costs at most three writes for every two interrupts.
///
/// An interrupt that is taken where the entry leads says nothing of it, so that it costs nothing: its unmasking tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aim {
    /// Where it leads.
    #[default]
    Kept,
    /// This other CPU took the message of the interrupt that is not unmasked yet.
    TakenNow(u8),
    /// This other CPU took the message of the interrupt before, which was unmasked.
    TakenLast(u8),
    /// It turns to this CPU when it is unmasked.
    Due(u8),
}

impl Aim {
    /// Whether there is nothing to do when the entry is unmasked.
    #[inline]
    pub const fn is_kept(self) -> bool {
        matches!(self, Self::Kept)
    }

    /// The CPU with APIC identifier `taker` took a message. The entry leads to the one with `leads`.
    #[must_use]
    pub const fn taken_by(self, taker: u8, leads: u8) -> Self {
        match self {
            _ if taker == leads => Self::Kept,
            Self::TakenLast(last) | Self::Due(last) if last == taker => Self::Due(taker),
            _ => Self::TakenNow(taker),
        }
    }

    /// The entry is about to be unmasked, which ends an interrupt. Where it leads from now on, if that changes, and what is
    /// known then.
    #[must_use]
    pub const fn unmasked(self) -> (Option<u8>, Self) {
        match self {
            Self::Due(other) => (Some(other), Self::Kept),
            Self::TakenNow(other) => (None, Self::TakenLast(other)),
            // Nobody else took the interrupt that ends.
            Self::TakenLast(_) | Self::Kept => (None, Self::Kept),
        }
    }
}

/// The index of a pin's low register; the high one follows. Pins above 119 have no index in the chip's 8-bit space and
/// alias the last one; no such chip exists.
pub const fn low_register(pin: Pin) -> u8 {
    let pin = if pin.0 > 119 { 119 } else { pin.0 };
    REG_RTE_BASE + 2 * pin
}

/// The index of a pin's high register.
pub const fn high_register(pin: Pin) -> u8 {
    low_register(pin) + 1
}

/// The register writes, index and value, that give `pin` a whole new entry whatever it holds now; from first to last.
///
/// The entry is masked before anything else of it changes, so that no message is ever sent with half of the old and half of
/// the new. It passes through edge-triggered, which makes the chip forget a level interrupt that somebody accepted and
/// never completed (Remote IRR): left set, the pin would be silent for ever. The device must be silent meanwhile, because
/// an edge that a masked entry sees is lost.
pub fn programming(pin: Pin, rte: Rte) -> impl Iterator<Item = (u8, u32)> {
    let (low, masked) = (low_register(pin), rte.with_mask(true));
    let edge = Rte::from_bits(masked.bits() & !Rte::LEVEL);
    let unmasked = (!rte.is_masked()).then_some((low, rte.low()));
    [(low, edge.low()), (low + 1, rte.high()), (low, masked.low())].into_iter().chain(unmasked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rte_field_sits_at_its_bit() {
        let bit = |n: u32| Rte::from_bits(1 << n);
        for n in 0..8 {
            assert_eq!(bit(n).vector_field(), 1 << n);
        }
        for n in 8..11 {
            assert_eq!(bit(n).delivery_mode(), 1 << (n - 8));
        }
        assert_eq!(bit(11).destination_mode(), DestinationMode::Logical);
        assert!(bit(12).delivery_status());
        assert_eq!(bit(13).polarity(), Polarity::ActiveLow);
        assert!(bit(14).remote_irr());
        assert_eq!(bit(15).trigger(), TriggerMode::Level);
        assert!(bit(16).is_masked());
        for n in 56..64 {
            assert_eq!(bit(n).destination(), 1 << (n - 56));
            assert_eq!(bit(n).high(), 1 << (n - 32));
        }
        assert_eq!(bit(16).low(), 1 << 16);
    }

    #[test]
    fn a_new_entry_is_masked_and_complete() {
        let vector = Vector::new(0x51).unwrap();
        let rte = Rte::masked(vector, 3, TriggerMode::Level, Polarity::ActiveLow);
        assert_eq!(rte.bits(), 0x0300_0000_0001_a051);
        assert_eq!(rte.with_mask(false).bits(), 0x0300_0000_0000_a051);
        assert_eq!(rte.with_mask(false).with_mask(true), rte);
        assert!(rte.with_remote_irr(true).remote_irr());
    }

    #[test]
    fn the_version_register_counts_pins() {
        let version = Version::from_bits(0x0017_0020);
        assert_eq!(version.pin_count().get(), 24);
        assert!(version.has_eoi_register());
        assert!(!Version::from_bits(0x0017_0011).has_eoi_register());
    }

    /// One entry of a chip that holds Remote IRR as real ones do: set when it accepted a level, kept while masked, cleared
    /// by a change to edge (82093AA 3.2.4).
    struct Entry {
        bits: u64,
        /// Each state the pin was in while it could send.
        live: Vec<u64>,
    }

    impl Entry {
        fn write(&mut self, high: bool, value: u32) {
            let read_only = Rte::REMOTE_IRR | Rte::DELIVERY_STATUS;
            self.bits = if high {
                self.bits & 0xffff_ffff | u64::from(value) << 32
            } else {
                self.bits & (0xffff_ffff << 32 | read_only) | u64::from(value) & !read_only
            };
            if self.bits & Rte::LEVEL == 0 {
                self.bits &= !Rte::REMOTE_IRR;
            }
            if self.bits & Rte::MASKED == 0 {
                self.live.push(self.bits);
            }
        }
    }

    #[test]
    fn an_entry_is_programmed_whole_and_forgets_what_was_never_completed() {
        let vector = Vector::new(0x51).unwrap();
        let level = Rte::masked(vector, 3, TriggerMode::Level, Polarity::ActiveLow);
        let left_behind = Rte::LEVEL | Rte::REMOTE_IRR | 0x0100_0000_0000_0930;
        for before in [Rte::RESET.bits(), left_behind, left_behind | Rte::MASKED, u64::MAX] {
            for wanted in [Rte::RESET, level, level.with_mask(false)] {
                let mut entry = Entry { bits: before, live: Vec::new() };
                for (register, value) in programming(Pin(7), wanted) {
                    assert!((0x1e..=0x1f).contains(&register), "{register:#x} is another pin's");
                    entry.write(register == 0x1f, value);
                }
                assert_eq!(entry.bits & !Rte::DELIVERY_STATUS, wanted.bits(), "from {before:#x}");
                let whole = |live: &u64| live & !Rte::DELIVERY_STATUS == wanted.bits();
                assert!(entry.live.iter().all(whole), "from {before:#x}: {:x?}", entry.live);
                assert_eq!(entry.live.is_empty(), wanted.is_masked());
            }
        }
    }

    /// Follows the takers of one interrupt after another, and says how often the entry turned and where it leads in the end.
    fn follow(mut leads: u8, takers: &[u8]) -> (usize, u8) {
        let (mut aim, mut turns) = (Aim::Kept, 0);
        for &taker in takers {
            if taker != leads {
                aim = aim.taken_by(taker, leads);
            }
            let (to, next) = aim.unmasked();
            aim = next;
            turns += usize::from(to.is_some());
            leads = to.unwrap_or(leads);
        }
        (turns, leads)
    }

    #[test]
    fn n20_an_entry_turns_to_who_took_two_interrupts_in_a_row() {
        assert_eq!(follow(0, &[1]), (0, 0));
        assert_eq!(follow(0, &[1, 1]), (1, 1));
        assert_eq!(follow(0, &[1, 1, 1, 1, 1]), (1, 1), "nothing is to be done once it leads there");
        assert_eq!(follow(0, &[1, 1, 0, 0]), (2, 0));
        // In a row: not with one between that was taken here, or by a third.
        assert_eq!(follow(0, &[1, 0, 1, 0, 1, 0, 1]), (0, 0));
        assert_eq!(follow(0, &[1, 2, 3, 1, 2, 3, 1, 2]), (0, 0));
    }

    /// Whatever a guest does: it never pays more than a turn for every two interrupts, and gets none that its last two interrupts
    /// do not ask for.
    #[test]
    fn n20_turning_is_paid_for_by_two_interrupts_at_least() {
        const CPUS: usize = 3;
        const LENGTH: u32 = 9;
        for sequence in 0..CPUS.pow(LENGTH) {
            let digit = |place| (sequence / CPUS.pow(place) % CPUS) as u8;
            let takers: Vec<u8> = (0..LENGTH).map(digit).collect();
            let mut leads = 0;
            for end in 1..=takers.len() {
                let (turns, now) = follow(0, &takers[..end]);
                assert!(2 * turns <= end, "{turns} turns: {takers:?}");
                let asked = end >= 2 && takers[end - 2..end].iter().all(|&taker| taker == now);
                assert!(now == leads || asked, "turned to {now} after {:?}", &takers[..end]);
                let stays = end >= 2 && takers[end - 2] == takers[end - 1] && takers[end - 1] != leads;
                assert!(!stays || now != leads, "left where it was after {:?}", &takers[..end]);
                leads = now;
            }
        }
    }

    /// Several devices behind one entry are several messages of one interrupt.
    #[test]
    fn n20_two_messages_of_one_interrupt_are_one_interrupt() {
        let twice = Aim::Kept.taken_by(1, 0).taken_by(1, 0);
        assert_eq!(twice.unmasked(), (None, Aim::TakenLast(1)));
        assert_eq!(twice.unmasked().1.taken_by(1, 0).taken_by(1, 0), Aim::Due(1));
        assert_eq!(Aim::Due(1).taken_by(2, 0), Aim::TakenNow(2), "several took it");
        assert_eq!(Aim::Due(1).taken_by(0, 0), Aim::Kept, "one of them where it leads");
    }

    #[test]
    fn every_pin_has_two_registers_of_its_own() {
        assert_eq!((low_register(Pin(0)), low_register(Pin(23))), (0x10, 0x3e));
        assert_eq!((low_register(Pin(119)), low_register(Pin(255))), (0xfe, 0xfe));
    }
}
