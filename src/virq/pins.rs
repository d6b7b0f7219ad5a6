//! Names for the inputs of the virtual IO-APIC and for those who assert them.

use crate::irq::Pin;

/// One of at most 32 that may assert a pin, independently of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contributor(u8);

impl Contributor {
    /// How many there are.
    pub const COUNT: u8 = 32;
    /// How many of them, the first ones, may be interrupt sources; the last of these where no guest has a test device.
    pub const SOURCES: u8 = Self::COUNT - 1;
    /// The test device.
    pub const TEST_DEVICE: Self = Self(Self::COUNT - 2);
    /// What else the hypervisor itself plays for the guest.
    pub const PLATFORM: Self = Self(Self::COUNT - 1);

    /// The contributor with this index, or `None` past the last.
    pub const fn new(index: u8) -> Option<Self> {
        if index < Self::COUNT { Some(Self(index)) } else { None }
    }

    pub(super) const fn bit(self) -> u32 {
        1 << self.0
    }
}

/// A set of pins, by index. Iterates from the lowest, at most 32 times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PinSet(u32);

impl PinSet {
    /// No pin.
    pub const EMPTY: Self = Self(0);

    /// A pin past the 32nd has no bit, and is in no set.
    const fn bit(pin: Pin) -> u32 {
        if pin.0 < 32 { 1 << pin.0 } else { 0 }
    }

    /// The set whose members are the bits that are set, pin 0 the lowest.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The members as bits, pin 0 the lowest.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Just this pin.
    pub const fn of(pin: Pin) -> Self {
        Self(Self::bit(pin))
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The pin that is the only member.
    #[inline]
    pub const fn only(self) -> Option<Pin> {
        if self.0.is_power_of_two() { Some(Pin(self.0.trailing_zeros() as u8)) } else { None }
    }

    /// Whether `pin` is in the set.
    pub const fn contains(self, pin: Pin) -> bool {
        self.0 & Self::bit(pin) != 0
    }

    pub(super) const fn insert(&mut self, pin: Pin) {
        self.0 |= Self::bit(pin);
    }

    pub(super) const fn remove(&mut self, pin: Pin) {
        self.0 &= !Self::bit(pin);
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl IntoIterator for PinSet {
    type Item = Pin;
    type IntoIter = Pins;

    fn into_iter(self) -> Pins {
        Pins(self.0)
    }
}

/// The pins of a [`PinSet`], lowest first.
#[derive(Clone, Debug)]
pub struct Pins(u32);

impl Iterator for Pins {
    type Item = Pin;

    #[inline]
    fn next(&mut self) -> Option<Pin> {
        let index = self.0.checked_ilog2().map(|_| self.0.trailing_zeros())?;
        self.0 &= self.0 - 1;
        Some(Pin(index as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_yield_their_members_in_order_and_end() {
        let set = PinSet(0x8000_0011);
        assert_eq!(set.into_iter().collect::<Vec<_>>(), [Pin(0), Pin(4), Pin(31)]);
        assert_eq!(PinSet(u32::MAX).into_iter().count(), 32);
        assert_eq!((PinSet::EMPTY.into_iter().next(), PinSet::EMPTY.only(), set.only()), (None, None, None));
    }

    #[test]
    fn membership_is_exact_and_total() {
        for member in 0..=u8::MAX {
            let mut set = PinSet::of(Pin(member));
            assert_eq!((set.is_empty(), set.only()), (member >= 32, (member < 32).then_some(Pin(member))));
            for other in 0..=u8::MAX {
                assert_eq!(set.contains(Pin(other)), member == other && member < 32);
            }
            set.remove(Pin(member));
            assert!(set.is_empty());
        }
    }

    #[test]
    fn contributors_are_bits() {
        for index in 0..=u8::MAX {
            assert_eq!(Contributor::new(index).map(Contributor::bit), 1u32.checked_shl(u32::from(index)));
        }
    }
}
