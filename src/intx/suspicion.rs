//! What interrupts say about the functions on a line with gates at its functions, and what is believed of them (N13, N14).
//!
//! That DisINTx can be written and read back is proved before a line is used. That it silences the function, and that INTx
//! Status shows what the function does to the wire, only interrupts can show, so both are on probation: they count as good
//! until the wire and what a function says of itself have disagreed too often in a row. There are two ways to disagree: an
//! interrupt that nobody claims, and a claim, renewed at each completion, that no interrupt backs.

use super::ledger::count;
use super::sharers::{MAX_SHARERS, Sharer, SharerSet};

/// So many disagreements in a row are no accident. A function that lies does it all the time, so it is found out in as many
/// entries of the handler or as many completions; one that withdraws its assertions now and then is never taken for one.
pub const LIE_LIMIT: u32 = 1000;

/// What was found out about a line's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LineFinding {
    /// The only function on the line lies: the line's entry silences it from now on.
    Demoted,
    /// One of the functions on the line lies, or one that is none of its sources asserts: the line is masked for good, and
    /// all its sources are quarantined.
    Stopped,
    /// A function answers all-ones: it is gone, and its source is quarantined.
    Vanished(Sharer),
    /// A function's INTx Status was set at [`LIE_LIMIT`] completions in a row: until it is seen clear, the wire alone says
    /// when the function asserts. Told once for each source, since a guest can bring it about.
    Doubted(Sharer),
}

/// What was found out and is still to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Findings {
    demoted: bool,
    stopped: bool,
    vanished: SharerSet,
    doubted: SharerSet,
}

impl Findings {
    const NONE: Self =
        Self { demoted: false, stopped: false, vanished: SharerSet::EMPTY, doubted: SharerSet::EMPTY };

    /// One of them, the gravest first.
    fn take(&mut self) -> Option<LineFinding> {
        if core::mem::take(&mut self.stopped) {
            return Some(LineFinding::Stopped);
        }
        if core::mem::take(&mut self.demoted) {
            return Some(LineFinding::Demoted);
        }
        let vanished = self.vanished.next().map(LineFinding::Vanished);
        vanished.or_else(|| self.doubted.next().map(LineFinding::Doubted))
    }

    const fn forget(&mut self, sharer: Sharer) {
        self.vanished.remove(sharer);
        self.doubted.remove(sharer);
    }
}

/// What a line remembers of disagreements between its wire and its functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Suspicion {
    /// How many in a row are too many.
    patience: u32,
    /// How many interrupts nobody claimed.
    pub(super) unclaimed: u64,
    /// How many of them came since one that was claimed.
    pub(super) in_a_row: u32,
    /// At how many openings in a row Status was set, by place.
    replays: [u32; MAX_SHARERS],
    /// Whose doubtful Status was found out before.
    told: SharerSet,
    findings: Findings,
    /// Whether there may be findings: the interrupt path looks at this alone.
    pub(super) found: bool,
}

impl Suspicion {
    /// Nothing is suspicious.
    pub(super) const fn new(patience: u32) -> Self {
        Self {
            patience,
            unclaimed: 0,
            in_a_row: 0,
            replays: [0; MAX_SHARERS],
            told: SharerSet::EMPTY,
            findings: Findings::NONE,
            found: false,
        }
    }

    /// One more that nobody claimed. Whether they are too many in a row; the next ones begin anew.
    pub(super) fn grows(&mut self) -> bool {
        count(&mut self.unclaimed);
        counts_up(&mut self.in_a_row, self.patience)
    }

    /// Status was set when the gate was about to open. Whether that was too often in a row to believe it; the next ones begin
    /// anew.
    #[inline]
    pub(super) fn replayed(&mut self, sharer: Sharer) -> bool {
        let Some(replays) = self.replays.get_mut(sharer.index()) else { return false };
        let too_many = counts_up(replays, self.patience);
        if too_many && !self.told.contains(sharer) {
            self.told.insert(sharer);
            self.find(LineFinding::Doubted(sharer));
        }
        too_many
    }

    /// This was found out.
    #[cold]
    pub(super) fn find(&mut self, finding: LineFinding) {
        self.found = true;
        match finding {
            LineFinding::Demoted => self.findings.demoted = true,
            LineFinding::Stopped => self.findings.stopped = true,
            LineFinding::Vanished(sharer) => self.findings.vanished.insert(sharer),
            LineFinding::Doubted(sharer) => self.findings.doubted.insert(sharer),
        }
    }

    /// One thing that was found out, to record it.
    pub(super) fn take(&mut self) -> Option<LineFinding> {
        let finding = self.findings.take();
        self.found = finding.is_some();
        finding
    }

    /// Status was clear when the gate was about to open.
    #[inline]
    pub(super) fn seen_clear(&mut self, sharer: Sharer) {
        if let Some(replays) = self.replays.get_mut(sharer.index()) {
            *replays = 0;
        }
    }

    /// A new source begins with a clean slate.
    pub(super) fn forget(&mut self, sharer: Sharer) {
        self.seen_clear(sharer);
        self.told.remove(sharer);
        self.findings.forget(sharer);
    }
}

/// One more in a row. Whether they are as many as `patience` bears; then the next ones begin anew.
#[inline]
const fn counts_up(in_a_row: &mut u32, patience: u32) -> bool {
    *in_a_row = in_a_row.saturating_add(1);
    let too_many = *in_a_row >= patience;
    if too_many {
        *in_a_row = 0;
    }
    too_many
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n14_only_so_many_in_a_row_are_too_many() {
        let mut suspicion = Suspicion::new(LIE_LIMIT);
        for round in 1..=3 {
            assert!((1..LIE_LIMIT).all(|_| !suspicion.grows()), "round {round}");
            suspicion.in_a_row = 0;
            assert!((1..LIE_LIMIT).all(|_| !suspicion.grows()), "one was claimed in between");
            assert!(suspicion.grows());
        }
    }

    #[test]
    fn n14_status_is_doubted_after_so_many_openings_in_a_row_and_that_is_told_once() {
        let [first, second] = [0, 1].map(|place| Sharer::new(place).expect("a place"));
        let mut suspicion = Suspicion::new(LIE_LIMIT);
        for round in 1..=3 {
            assert!((1..LIE_LIMIT).all(|_| !suspicion.replayed(first)), "round {round}");
            suspicion.seen_clear(first);
            assert!(!suspicion.replayed(second), "another's is another's");
            suspicion.seen_clear(second);
            assert!((1..LIE_LIMIT).all(|_| !suspicion.replayed(first)), "it was clear in between");
            assert!(suspicion.replayed(first));
            let finding = (round == 1).then_some(LineFinding::Doubted(first));
            assert_eq!((suspicion.take(), suspicion.take()), (finding, None));
        }
        suspicion.forget(first);
        assert!((1..LIE_LIMIT).all(|_| !suspicion.replayed(first)) && suspicion.replayed(first));
        assert_eq!(suspicion.take(), Some(LineFinding::Doubted(first)), "the next one's");
    }

    #[test]
    fn no_finding_is_lost_to_another_one() {
        let [first, second] = [0, 1].map(|place| Sharer::new(place).expect("a place"));
        let mut suspicion = Suspicion::new(LIE_LIMIT);
        let [gone, too] = [first, second].map(LineFinding::Vanished);
        let found = [LineFinding::Doubted(second), too, gone, LineFinding::Demoted, LineFinding::Stopped];
        found.into_iter().for_each(|finding| suspicion.find(finding));
        assert!(suspicion.found);
        let told: Vec<LineFinding> = core::iter::from_fn(|| suspicion.take()).collect();
        let expected = [LineFinding::Stopped, LineFinding::Demoted, gone, too, LineFinding::Doubted(second)];
        assert_eq!(told, expected);
        assert!(!suspicion.found);
    }
}
