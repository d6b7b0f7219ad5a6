//! The sources of one line, by their place on it.

pub use crate::irq::MAX_SHARERS;

/// One of a line's sources, by its place on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sharer(u8);

impl Sharer {
    /// The first place.
    pub(super) const FIRST: Self = Self(0);

    /// The place `index`, or `None` from [`MAX_SHARERS`] on.
    pub const fn new(index: u8) -> Option<Self> {
        if (index as usize) < MAX_SHARERS { Some(Self(index)) } else { None }
    }

    /// The place, below [`MAX_SHARERS`]: the remainder says so to the compiler, which then needs no check at each use.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize % MAX_SHARERS
    }
}

/// A set of a line's sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SharerSet(u8);

impl SharerSet {
    /// Nobody.
    pub const EMPTY: Self = Self(0);
    /// Every place.
    pub const ALL: Self = Self(u8::MAX);

    /// One source. A place is below [`MAX_SHARERS`], so nothing wraps.
    pub const fn only(sharer: Sharer) -> Self {
        Self(1_u8.wrapping_shl(sharer.0 as u32))
    }

    /// Whether nobody is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `sharer` is in it.
    pub const fn contains(self, sharer: Sharer) -> bool {
        self.0 & Self::only(sharer).0 != 0
    }

    /// Puts `sharer` in.
    pub const fn insert(&mut self, sharer: Sharer) {
        self.0 |= Self::only(sharer).0;
    }

    /// Takes `sharer` out.
    pub const fn remove(&mut self, sharer: Sharer) {
        self.0 &= !Self::only(sharer).0;
    }

    /// Those in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those in this but not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Those in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The one with the lowest place.
    pub const fn first(self) -> Option<Sharer> {
        if self.0 == 0 { None } else { Some(Sharer(self.0.trailing_zeros() as u8)) }
    }
}

impl Iterator for SharerSet {
    type Item = Sharer;

    /// Takes out the one with the lowest place.
    #[inline]
    fn next(&mut self) -> Option<Sharer> {
        let first = self.first()?;
        // Clears the lowest bit that is set.
        self.0 &= self.0.wrapping_sub(1);
        Some(first)
    }
}

/// How a step goes through a set of its line's sources: as a type, so that the compiler leaves the loops out where there is one source.
pub(super) trait Seating {
    /// Each of `set`.
    fn each(set: SharerSet) -> impl Iterator<Item = Sharer>;
}

/// Any number of sources at any places.
pub(super) struct Several;

impl Seating for Several {
    #[inline(always)]
    fn each(set: SharerSet) -> impl Iterator<Item = Sharer> {
        set
    }
}

/// A source at the first place and nobody else: an exclusive line, as nearly all are.
pub(super) struct Alone;

impl Alone {
    /// Who is there.
    pub(super) const PRESENT: SharerSet = SharerSet::only(Sharer::FIRST);
}

impl Seating for Alone {
    #[inline(always)]
    fn each(set: SharerSet) -> impl Iterator<Item = Sharer> {
        set.contains(Sharer::FIRST).then_some(Sharer::FIRST).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_is_all_there_is() {
        for set in [SharerSet::EMPTY, Alone::PRESENT] {
            assert!(Alone::each(set).eq(Several::each(set)));
        }
    }

    #[test]
    fn sets_of_sharers_are_sets() {
        let all: SharerSet = SharerSet::ALL;
        assert_eq!(all.count(), MAX_SHARERS);
        assert!(all.map(Sharer::index).eq(0..MAX_SHARERS));
        assert_eq!(Sharer::new(MAX_SHARERS as u8), None);
        let mut set = SharerSet::only(Sharer(0));
        set.insert(Sharer(7));
        assert!(set.contains(Sharer(7)) && !set.contains(Sharer(6)));
        assert_eq!(set.difference(SharerSet::only(Sharer(0))), SharerSet::only(Sharer(7)));
        assert_eq!(set.intersection(SharerSet::only(Sharer(7))), SharerSet::only(Sharer(7)));
        assert_eq!(set.first(), Some(Sharer(0)));
        set.remove(Sharer(0));
        set.remove(Sharer(7));
        assert!(set.is_empty());
    }
}
