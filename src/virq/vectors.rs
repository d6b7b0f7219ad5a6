//! A set of interrupt vectors, laid out as the local APIC shows IRR, ISR and TMR to software (APM2 16.6.3).
//! Arithmetic only; which set means what is the local APIC's business.

use crate::irq::Vector;

/// Up to 256 vectors; bit `v % 64` of word `v / 64` stands for vector `v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VectorSet([u64; 4]);

impl VectorSet {
    pub(super) const EMPTY: Self = Self([0; 4]);

    const fn bit(vector: Vector) -> u64 {
        1 << (vector.get() & 63)
    }

    #[inline]
    pub(super) fn insert(&mut self, vector: Vector) {
        // A byte's upper two bits always name one of four words: the compiler drops the `None` path.
        if let Some(word) = self.0.get_mut(usize::from(vector.get() >> 6)) {
            *word |= Self::bit(vector);
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, vector: Vector) {
        if let Some(word) = self.0.get_mut(usize::from(vector.get() >> 6)) {
            *word &= !Self::bit(vector);
        }
    }

    /// The highest member in this word and those below it.
    #[inline]
    fn highest_up_to(&self, mut index: u8) -> Option<Vector> {
        loop {
            let word = self.0.get(usize::from(index)).copied().unwrap_or_default();
            // The logarithm is below 64, so the two parts of the number cannot overlap.
            match (word.checked_ilog2(), index) {
                (Some(bit), _) => return Vector::new(index << 6 | bit as u8),
                (None, 0) => return None,
                (None, _) => index = index.wrapping_sub(1),
            }
        }
    }

    #[inline]
    pub(super) fn contains(&self, vector: Vector) -> bool {
        self.0.get(usize::from(vector.get() >> 6)).is_some_and(|word| word & Self::bit(vector) != 0)
    }

    /// One of the eight 32-bit registers software reads the set through; 0 beyond the eighth.
    pub(super) fn register(&self, index: u8) -> u32 {
        self.0.get(usize::from(index >> 1)).map_or(0, |word| (word >> (32 * (index & 1))) as u32)
    }
}

/// A set whose highest member is known at any time: it is asked for before every entry, and changes with the two ends of an
/// interrupt only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RankedVectors {
    set: VectorSet,
    highest: Option<Vector>,
}

impl RankedVectors {
    pub(super) const EMPTY: Self = Self { set: VectorSet::EMPTY, highest: None };

    #[inline]
    pub(super) fn insert(&mut self, vector: Vector) {
        self.set.insert(vector);
        self.highest = self.highest.max(Some(vector));
    }

    #[inline]
    pub(super) fn remove(&mut self, vector: Vector) {
        self.set.remove(vector);
        if self.highest == Some(vector) {
            self.highest = self.set.highest_up_to(vector.get() >> 6);
        }
    }

    /// The member with the highest number, which is the one of highest priority (APM2 16.6.4).
    #[inline]
    pub(super) const fn highest(&self) -> Option<Vector> {
        self.highest
    }

    /// As [`VectorSet::register`].
    pub(super) fn register(&self, index: u8) -> u32 {
        self.set.register(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> impl Iterator<Item = Vector> {
        (0..=u8::MAX).filter_map(Vector::new)
    }

    #[test]
    fn every_vector_has_its_own_bit() {
        for vector in vectors() {
            let mut set = VectorSet::EMPTY;
            set.insert(vector);
            for other in vectors() {
                assert_eq!(set.contains(other), other == vector);
            }
            for index in 0..8 {
                let expected = if vector.get() >> 5 == index { 1 << (vector.get() & 31) } else { 0 };
                assert_eq!(set.register(index), expected);
            }
            set.remove(vector);
            assert_eq!(set, VectorSet::EMPTY);
        }
    }

    #[test]
    fn the_highest_of_any_two_wins() {
        for a in vectors() {
            for b in vectors() {
                let mut set = RankedVectors::EMPTY;
                set.insert(a);
                set.insert(b);
                assert_eq!(set.highest(), Some(a.max(b)));
                set.remove(a);
                assert_eq!(set.highest(), Some(b).filter(|b| *b != a));
            }
        }
        assert_eq!(RankedVectors::EMPTY.highest(), None);
        assert_eq!(RankedVectors::EMPTY.register(8), 0);
    }
}
