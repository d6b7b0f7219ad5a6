//! What the flight recorder of a line tells a guest about one of its sources, as function 12 writes it.

use super::put_words;

/// Since when a source is silenced for a reason, and by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistorySince {
    /// In ticks of the guest's time stamp counter.
    pub at: u64,
    /// A partition's number, 254 for the hypervisor, 255 for a device.
    pub by: u8,
}

/// Something that happened to a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryMoment {
    /// In ticks of the guest's time stamp counter.
    pub at: u64,
    /// The mask reasons afterwards.
    pub reasons: u16,
    /// What it was, by its number in `docs/hypercalls.md`.
    pub what: u8,
    /// As in [`HistorySince::by`].
    pub by: u8,
}

/// Why a source is silenced, since when and by whom, and what happened to it last: 64-bit little-endian words, first a header
/// with the layout's version (bits 15:0) and the number of words including the header (bits 31:16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryRecord {
    words: [u64; Self::WORDS],
}

impl HistoryRecord {
    /// The layout's version.
    pub const VERSION: u64 = 1;
    /// How many mask reasons have a place in the record.
    pub const REASONS: usize = 10;
    /// How many moments have one.
    pub const MOMENTS: usize = 32;
    /// Words including the header: three more, two for each reason, two for each moment.
    pub const WORDS: usize = 4 + 2 * Self::REASONS + 2 * Self::MOMENTS;
    /// Size in memory, in bytes.
    pub const BYTES: usize = Self::WORDS * 8;

    /// The record of a source that is silenced for `reasons`. `since` yields an answer for each of them, the lowest bit first;
    /// of `moments`, the oldest first, only so many are taken as there is room for.
    pub fn new(
        now: u64,
        reasons: u16,
        since: impl Iterator<Item = Option<HistorySince>>,
        moments: impl Iterator<Item = HistoryMoment>,
    ) -> Self {
        let mut words = [0; Self::WORDS];
        let [header, time, why, count, rest @ ..] = &mut words;
        *header = Self::VERSION | (Self::WORDS as u64) << 16;
        *time = now;
        *why = reasons.into();
        let (table, ring) = rest.split_at_mut_checked(2 * Self::REASONS).unwrap_or_default();
        for (place, since) in table.chunks_exact_mut(2).zip(since) {
            let since = since.unwrap_or_default();
            place.copy_from_slice(&[since.at, since.by.into()]);
        }
        for (place, moment) in ring.chunks_exact_mut(2).zip(moments) {
            let HistoryMoment { at, reasons, what, by } = moment;
            place.copy_from_slice(&[at, u64::from(reasons) | u64::from(what) << 16 | u64::from(by) << 24]);
            *count = count.wrapping_add(1);
        }
        Self { words }
    }

    /// The record as it is written to guest memory.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put_words(&self.words, &mut bytes);
        bytes
    }
}

const _: () = assert!(HistoryRecord::BYTES == 704);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n19_each_word_has_its_place() {
        let since = [Some(HistorySince { at: 7, by: 255 }), None, Some(HistorySince { at: 9, by: 1 })];
        let moment = |at| HistoryMoment { at, reasons: 0x201, what: 11, by: 254 };
        let record = HistoryRecord::new(100, 5, since.into_iter(), (50..).map(moment));
        let words: Vec<u64> = record
            .to_bytes()
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words[..4], [1 | 88 << 16, 100, 5, 32]);
        assert_eq!(words[4..10], [7, 255, 0, 0, 9, 1]);
        assert!(words[10..24].iter().all(|word| *word == 0));
        assert_eq!(words[24..26], [50, 0xfe0b_0201]);
        assert_eq!(words[86..], [81, 0xfe0b_0201], "as many as there is room for");
    }
}
