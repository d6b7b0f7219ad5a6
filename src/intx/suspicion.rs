//! Interrupts that nobody claims, and what they say about the functions on a line with gates at its functions (N13, N14).
//!
//! That DisINTx can be written and read back is proved before a line is used. That it silences the function, and that INTx
//! Status shows what the function does to the wire, only interrupts can show, so both are on probation: they count as good as
//! long as somebody claims the interrupts that come.

use super::ledger::count;
use super::sharers::Sharer;

/// So many interrupts in a row that nobody claims are no accident. A function that lies asserts all the time, so it is found
/// out in as many entries of the handler; one that withdraws its assertions now and then is never taken for one.
pub const UNCLAIMED_LIMIT: u32 = 1000;

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
}

/// What a line remembers of interrupts that nobody claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Suspicion {
    /// How many there were.
    pub(super) unclaimed: u64,
    /// How many of them came since one that was claimed.
    pub(super) in_a_row: u32,
    /// What was found out last, until somebody takes it to record it.
    pub(super) finding: Option<LineFinding>,
}

impl Suspicion {
    /// Nothing is suspicious.
    pub(super) const NONE: Self = Self { unclaimed: 0, in_a_row: 0, finding: None };

    /// One more that nobody claimed. Whether they are too many in a row; the next ones begin anew.
    pub(super) fn grows(&mut self) -> bool {
        count(&mut self.unclaimed);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let too_many = self.in_a_row >= UNCLAIMED_LIMIT;
        if too_many {
            self.in_a_row = 0;
        }
        too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n14_only_so_many_in_a_row_are_too_many() {
        let mut suspicion = Suspicion::NONE;
        for round in 1..=3 {
            assert!((1..UNCLAIMED_LIMIT).all(|_| !suspicion.grows()), "round {round}");
            suspicion.in_a_row = 0;
            assert!((1..UNCLAIMED_LIMIT).all(|_| !suspicion.grows()), "one was claimed in between");
            assert!(suspicion.grows());
        }
    }
}
