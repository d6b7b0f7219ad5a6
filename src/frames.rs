//! Which physical memory is free: a short list of ranges that boot carves up and never grows again.
//!
//! Boot adds what the memory map calls usable, takes out what is in use (the image, the bundle), and allocates from
//! the rest; everything here ends when the first guest starts.

use crate::addr::{HostPhys, PAGE_BYTES};

/// How many separate free ranges are kept. A PC's memory map has about ten, and each reservation adds one at most.
pub const MAX_RANGES: usize = 64;

/// A half-open range of physical memory, whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    start: u64,
    end: u64,
}

impl Range {
    const EMPTY: Self = Self { start: 0, end: 0 };

    /// The pages that lie wholly inside `[start, start + bytes)`, or `None` when there is not one.
    pub const fn inside(start: u64, bytes: u64) -> Option<Self> {
        let Some(end) = start.checked_add(bytes) else { return None };
        let Some(up) = start.checked_add(PAGE_BYTES - 1) else { return None };
        let range = Self { start: up & !(PAGE_BYTES - 1), end: end & !(PAGE_BYTES - 1) };
        if range.start < range.end { Some(range) } else { None }
    }

    /// The pages that `[start, start + bytes)` touches, cut at the last page of the address space.
    pub const fn around(start: u64, bytes: u64) -> Self {
        let last = !(PAGE_BYTES - 1);
        let end = start.saturating_add(bytes);
        let end = if end > last { last } else { (end + PAGE_BYTES - 1) & last };
        Self { start: start & last, end }
    }

    /// First byte.
    pub const fn start(self) -> HostPhys {
        HostPhys::new(self.start)
    }

    /// One past the last byte.
    pub const fn end(self) -> HostPhys {
        HostPhys::new(self.end)
    }

    /// Whether a byte is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// The free ranges, in no particular order and never overlapping.
#[derive(Clone, Debug)]
pub struct Frames {
    ranges: [Range; MAX_RANGES],
}

/// More separate ranges than [`MAX_RANGES`]: the rest of the memory map is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyRanges;

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

impl Frames {
    /// Nothing free.
    pub const fn new() -> Self {
        Self { ranges: [Range::EMPTY; MAX_RANGES] }
    }

    /// Frees `range`. Whatever of it was free already is counted once.
    pub fn add(&mut self, range: Range) -> Result<(), TooManyRanges> {
        self.reserve(range)?;
        self.insert(range)
    }

    /// Whether all of `range` is free.
    pub fn has(&self, range: Range) -> bool {
        let shared =
            |free: &Range| Range { start: free.start.max(range.start), end: free.end.min(range.end) }.bytes();
        // The ranges never overlap, so no page is counted twice.
        self.ranges.iter().map(shared).fold(0u64, u64::saturating_add) == range.bytes()
    }

    /// Takes `range` out, wherever it overlaps free memory.
    pub fn reserve(&mut self, taken: Range) -> Result<(), TooManyRanges> {
        for index in 0..MAX_RANGES {
            let Some(slot) = self.ranges.get_mut(index) else { break };
            let free = *slot;
            if taken.end <= free.start || free.end <= taken.start {
                continue;
            }
            let below = Range { start: free.start, end: taken.start.max(free.start) };
            let above = Range { start: taken.end.min(free.end), end: free.end };
            *slot = below;
            self.insert(above)?;
        }
        Ok(())
    }

    /// Takes `bytes` (rounded up to pages) at a multiple of `align`, a power of two, wholly below `limit`. Prefers
    /// high addresses, so that the scarce memory below 1 MiB and 4 GiB stays for those who need it.
    pub fn allocate(&mut self, bytes: u64, align: u64, limit: u64) -> Option<HostPhys> {
        let bytes = crate::addr::page_align_up(bytes.max(1))?;
        let align = align.max(PAGE_BYTES);
        let best = self
            .ranges
            .iter()
            .filter_map(|range| {
                let start = range.end.min(limit).checked_sub(bytes)? & !(align - 1);
                (start >= range.start && range.bytes() != 0).then_some(start)
            })
            .max()?;
        self.reserve(Range { start: best, end: best.checked_add(bytes)? }).ok()?;
        Some(HostPhys::new(best))
    }

    /// All free bytes.
    pub fn free_bytes(&self) -> u64 {
        self.ranges.iter().fold(0u64, |sum, range| sum.saturating_add(range.bytes()))
    }

    fn insert(&mut self, range: Range) -> Result<(), TooManyRanges> {
        if range.bytes() == 0 {
            return Ok(());
        }
        let slot = self.ranges.iter_mut().find(|slot| slot.bytes() == 0).ok_or(TooManyRanges)?;
        *slot = range;
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_round_to_whole_pages() {
        assert_eq!(Range::inside(0x1001, 0x1fff), Some(Range { start: 0x2000, end: 0x3000 }));
        assert_eq!(Range::inside(0x1001, 0xfff), None);
        assert_eq!(Range::inside(u64::MAX, 1), None);
        assert_eq!(Range::around(0x1fff, 2), Range { start: 0x1000, end: 0x3000 });
        assert_eq!(Range::around(u64::MAX, 9).end, !0xfff);
    }

    #[test]
    fn a_full_list_is_an_error_and_loses_nothing_silently() {
        let mut frames = Frames::new();
        for n in 0..MAX_RANGES as u64 {
            frames.add(Range { start: n * 0x3000, end: n * 0x3000 + 0x1000 }).unwrap();
        }
        assert_eq!(frames.add(Range { start: 0xfff_0000, end: 0xfff_1000 }), Err(TooManyRanges));
    }

    #[test]
    fn a_range_is_had_only_whole_and_over_neighbouring_pieces() {
        let page = |from, to| Range { start: from * PAGE_BYTES, end: to * PAGE_BYTES };
        let mut frames = Frames::new();
        frames.add(page(4, 8)).unwrap();
        frames.add(page(8, 12)).unwrap();
        frames.add(page(13, 14)).unwrap();
        for (range, had) in
            [(page(4, 12), true), (page(5, 9), true), (page(3, 5), false), (page(11, 14), false)]
        {
            assert_eq!(frames.has(range), had, "{range:?}");
        }
        frames.reserve(page(6, 7)).unwrap();
        assert!(!frames.has(page(4, 12)));
    }

    proptest! {
        #[test]
        fn what_is_allocated_was_free_once_and_is_aligned(
            adds in prop::collection::vec((0u64..64, 1u64..16), 1..6),
            reserves in prop::collection::vec((0u64..64, 1u64..8), 0..4),
            wants in prop::collection::vec((1u64..5, 0u32..3, 20u64..90), 1..12),
        ) {
            let mut frames = Frames::new();
            let mut model = [false; 128];
            for (start, pages) in adds {
                frames.add(Range { start: start * PAGE_BYTES, end: (start + pages) * PAGE_BYTES }).unwrap();
                (start..start + pages).for_each(|p| model[p as usize] = true);
            }
            for (start, pages) in reserves {
                frames.reserve(Range { start: start * PAGE_BYTES, end: (start + pages) * PAGE_BYTES }).unwrap();
                (start..start + pages).for_each(|p| model[p as usize] = false);
            }
            for (pages, shift, limit) in wants {
                let align = PAGE_BYTES << shift;
                match frames.allocate(pages * PAGE_BYTES, align, limit * PAGE_BYTES) {
                    Some(at) => {
                        prop_assert!(at.is_aligned(align));
                        let first = at.raw() / PAGE_BYTES;
                        prop_assert!(first + pages <= limit);
                        for p in first..first + pages {
                            prop_assert!(model[p as usize], "page {p} was not free");
                            model[p as usize] = false;
                        }
                    }
                    None => {
                        let fits = (0..128 - pages).step_by(1 << shift).any(|first| {
                            first + pages <= limit && (first..first + pages).all(|p| model[p as usize])
                        });
                        prop_assert!(!fits || adjacent_only(&frames), "there was room for {pages} pages");
                    }
                }
                prop_assert_eq!(frames.free_bytes(), model.iter().filter(|free| **free).count() as u64 * PAGE_BYTES);
            }
        }
    }

    /// Room that exists only across two ranges added side by side is not found: ranges are never merged.
    fn adjacent_only(frames: &Frames) -> bool {
        let live = || frames.ranges.iter().filter(|range| range.bytes() != 0);
        live().any(|a| live().any(|b| a.end == b.start))
    }
}
