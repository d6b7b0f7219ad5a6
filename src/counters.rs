//! Live counters: a page of the image that somebody outside reads while the machine runs.
//!
//! The CPUs that run a partition count in its slot. The observer
//! (`cargo xtask run`, through the emulator's monitor) finds the page by its symbol [`SYMBOL`], trusts it when it begins
//! with [`MAGIC`] and [`VERSION`], and takes each word as it stands: no two of them belong together.
//!
//! | byte | what |
//! | --- | --- |
//! | 0 | magic |
//! | 8 | version |
//! | 64 + 64 n | partition n: interrupts taken |
//! | 72 + 64 n | partition n: its [`Stage`] |

use crate::sync::{AtomicU64, Ordering};

/// The page's symbol.
pub const SYMBOL: &str = "lh_counters";
/// What the page begins with.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LH-count");
/// The version of the layout.
pub const VERSION: u64 = 1;
/// How many partitions have a slot.
pub const SLOTS: usize = 32;
/// Words of 8 bytes before the first slot, and in each.
const SLOT_WORDS: usize = 8;

/// The page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Counters {
    magic: u64,
    version: u64,
    slots: [Slot; SLOTS],
}

/// One partition, on a cache line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Slot {
    interrupts: AtomicU64,
    stage: AtomicU64,
}

/// How far a partition is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum Stage {
    /// Not built yet, or there is none.
    #[default]
    Absent = 0,
    /// Built.
    Ready = 1,
    /// Its guest runs.
    Running = 2,
    /// Its guest runs no more.
    Ended = 3,
}

impl Stage {
    fn of(word: u64) -> Option<Self> {
        [Self::Absent, Self::Ready, Self::Running, Self::Ended]
            .into_iter()
            .find(|stage| *stage as u64 == word)
    }
}

impl Counters {
    /// A page that has counted nothing.
    #[cfg(not(loom))]
    #[expect(clippy::new_without_default, reason = "it lives in a static")]
    pub const fn new() -> Self {
        Self { magic: MAGIC, version: VERSION, slots: [const { Slot::new() }; SLOTS] }
    }

    /// The slot of partition number `index`.
    pub fn slot(&self, index: u8) -> Option<&Slot> {
        self.slots.get(usize::from(index))
    }
}

impl Slot {
    #[cfg(not(loom))]
    const fn new() -> Self {
        Self { interrupts: AtomicU64::new(0), stage: AtomicU64::new(0) }
    }

    /// Counts an interrupt.
    #[inline]
    pub fn count_interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Says how far the partition is.
    pub fn reach(&self, stage: Stage) {
        self.stage.store(stage as u64, Ordering::Relaxed);
    }
}

/// One partition as an observer saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How far it was.
    pub stage: Stage,
    /// How many interrupts it had taken.
    pub interrupts: u64,
}

/// How many words from the page's start an observer of that many partitions reads.
pub const fn words(partitions: usize) -> usize {
    SLOT_WORDS + SLOT_WORDS * if partitions < SLOTS { partitions } else { SLOTS }
}

/// Reads the partitions from the first words of a page. Nothing if it is no page of this version, or damaged.
pub fn observe(page: &[u64]) -> Option<impl Iterator<Item = Seen>> {
    if page.get(..2) != Some(&[MAGIC, VERSION]) {
        return None;
    }
    let slots = page.get(SLOT_WORDS..)?.chunks_exact(SLOT_WORDS);
    let seen = |slot: &[u64]| match *slot {
        [interrupts, stage, ..] => Some(Seen { stage: Stage::of(stage)?, interrupts }),
        _ => None,
    };
    slots.clone().all(|slot| seen(slot).is_some()).then(|| slots.filter_map(seen))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::mem::{offset_of, size_of};

    /// The page as an observer reads it, from the layout in this module's head.
    fn page(counters: &Counters, partitions: usize) -> Vec<u64> {
        let slots = counters.slots.iter().take(partitions);
        let slots =
            slots.map(|slot| [slot.interrupts(), slot.stage.load(Ordering::Relaxed), 0, 0, 0, 0, 0, 0]);
        [[counters.magic, counters.version, 0, 0, 0, 0, 0, 0]].into_iter().chain(slots).flatten().collect()
    }

    #[test]
    fn the_layout_is_as_documented() {
        assert_eq!(size_of::<Counters>(), 4096);
        assert_eq!((offset_of!(Counters, magic), offset_of!(Counters, version)), (0, 8));
        assert_eq!((offset_of!(Counters, slots), size_of::<Slot>()), (64, 64));
        assert_eq!((offset_of!(Slot, interrupts), offset_of!(Slot, stage)), (0, 8));
        assert_eq!(words(SLOTS + 1) * 8, 64 + 64 * SLOTS);
    }

    #[test]
    fn what_is_counted_is_seen() {
        let counters = Counters::new();
        let slot = counters.slot(1).unwrap();
        slot.reach(Stage::Running);
        slot.count_interrupt();
        slot.count_interrupt();
        let seen: Vec<Seen> = observe(&page(&counters, 2)).unwrap().collect();
        assert_eq!(seen, [Seen::default(), Seen { stage: Stage::Running, interrupts: 2 }]);
        assert!(counters.slot(SLOTS as u8).is_none());
    }

    #[test]
    fn what_is_no_page_of_this_version_is_not_believed() {
        let good = page(&Counters::new(), 2);
        for (word, value) in [(0, MAGIC ^ 1), (1, VERSION + 1), (9, 4), (17, u64::MAX)] {
            let mut bad = good.clone();
            bad[word] = value;
            assert!(observe(&bad).is_none(), "word {word}");
        }
        assert!(observe(&good).is_some());
        assert!(observe(&good[..1]).is_none());
        assert_eq!(observe(&good[..9]).unwrap().count(), 0, "half a slot");
    }
}
