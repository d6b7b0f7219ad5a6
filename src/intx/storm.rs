//! The storm budget of one source (N6): how many interrupts may come in how much time, and what follows when there are
//! more. Arithmetic on values; the line acts by the verdict.
//!
//! Only interrupts are counted on the interrupt path, never time: the clock is asked when the budget is used up, which
//! tells whether that took a window or less. If it took a window or longer nothing happened, and the interrupt at hand
//! begins a new one. So a source that keeps its limit is never throttled, and one that does not gets at most
//! twice the limit through in a window, what was left of the last budget and the one after it.

use crate::policy::StormLimit;

/// A [`StormLimit`] in ticks of the caller's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// The most interrupts in a window.
    pub limit: u32,
    /// The length of a window.
    pub window: u64,
    /// How long the source stays throttled.
    pub pause: u64,
    /// How often in a row it is admitted again.
    pub retries: u32,
}

impl Budget {
    /// The limit by a clock of `ticks_per_ms`.
    pub const fn new(limit: &StormLimit, ticks_per_ms: u64) -> Self {
        Self {
            limit: limit.limit,
            window: ticks_per_ms.saturating_mul(limit.window_ms as u64),
            pause: ticks_per_ms.saturating_mul(limit.pause_ms as u64),
            retries: limit.retries,
        }
    }
}

/// What one source has used of its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Meter {
    /// What it may use.
    pub budget: Budget,
    /// Interrupts that may still come before the clock is asked.
    pub left: u32,
    /// When the window began; `None`: long ago.
    pub since: Option<u64>,
    /// How often in a row it was throttled.
    pub strikes: u32,
    /// When it is admitted again, if it is throttled.
    pub resume_at: Option<u64>,
    /// An interrupt came that the budget had no room for, and the clock is being asked.
    overdrawn: bool,
    /// The last storm, until somebody takes it to record it.
    pub storm: Option<Storm>,
}

/// A budget was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Storm {
    /// How many interrupts came, the one too many included.
    pub interrupts: u32,
    /// In how many ticks.
    pub within: u64,
    /// How often in a row the source was throttled, this time included.
    pub strikes: u32,
    /// What follows.
    pub outcome: Outcome,
}

/// What an interrupt means that the budget had no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The last `limit` interrupts took a window or longer: this one begins another.
    Fits,
    /// It is one too many.
    Storm(Outcome),
}

/// What follows from a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The source is throttled until its pause is over.
    Throttled,
    /// It was admitted again as often as it may be: it stays silenced.
    Quarantined,
}

impl Meter {
    /// A meter that has counted nothing yet.
    pub const fn new(budget: Budget) -> Self {
        Self {
            budget,
            left: budget.limit,
            since: None,
            strikes: 0,
            resume_at: None,
            overdrawn: false,
            storm: None,
        }
    }

    /// An interrupt came. Whether the budget had room for it; if not, [`Meter::judge`] says what that means.
    #[inline]
    pub(super) const fn spend(&mut self) -> bool {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.overdrawn = true;
                false
            }
        }
    }

    /// The interrupt that the budget had no room for came at `now`. `None` if there was no such interrupt.
    pub(super) const fn judge(&mut self, now: u64) -> Option<Verdict> {
        if !self.overdrawn {
            return None;
        }
        self.overdrawn = false;
        let within = match self.since {
            Some(since) => now.saturating_sub(since),
            None => u64::MAX,
        };
        if within >= self.budget.window {
            self.strikes = 0;
            self.begin(Some(now));
            self.left = self.left.saturating_sub(1);
            return Some(Verdict::Fits);
        }
        let outcome = if self.strikes < self.budget.retries {
            self.resume_at = Some(now.saturating_add(self.budget.pause));
            Outcome::Throttled
        } else {
            Outcome::Quarantined
        };
        self.strikes = self.strikes.saturating_add(1);
        let interrupts = self.budget.limit.saturating_add(1);
        self.storm = Some(Storm { interrupts, within, strikes: self.strikes, outcome });
        Some(Verdict::Storm(outcome))
    }

    /// Whether a pause is over at `now`; it ends with this answer, and a window begins.
    pub(super) const fn resume(&mut self, now: u64) -> bool {
        match self.resume_at {
            Some(at) if at <= now => {
                self.begin(Some(now));
                true
            }
            _ => false,
        }
    }

    /// Somebody who may took the throttle or the quarantine back: what was is forgotten.
    pub(super) const fn forgive(&mut self) {
        self.strikes = 0;
        self.begin(None);
    }

    const fn begin(&mut self, since: Option<u64>) {
        self.resume_at = None;
        self.since = since;
        self.left = self.budget.limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { limit: 3, window: 100, pause: 1000, retries: 2 };

    /// An interrupt at `now`.
    fn interrupt(meter: &mut Meter, now: u64) -> Option<Outcome> {
        match if meter.spend() { None } else { meter.judge(now) } {
            Some(Verdict::Storm(outcome)) => Some(outcome),
            Some(Verdict::Fits) | None => None,
        }
    }

    #[test]
    fn milliseconds_become_ticks_and_never_overflow() {
        let limit = StormLimit { limit: 7, window_ms: 20, pause_ms: 300, retries: 4 };
        assert_eq!(
            Budget::new(&limit, 1000),
            Budget { limit: 7, window: 20_000, pause: 300_000, retries: 4 }
        );
        assert_eq!(Budget::new(&limit, u64::MAX).pause, u64::MAX);
    }

    #[test]
    fn n6_a_source_that_keeps_its_limit_is_never_throttled() {
        // At most 3 in any window of 100: one every 34 ticks, and bursts of 3 every 100.
        for step in [34, 50, 1000] {
            let mut meter = Meter::new(BUDGET);
            assert!((0..1000).all(|i| interrupt(&mut meter, i * step).is_none()), "one every {step}");
        }
        let mut meter = Meter::new(BUDGET);
        assert!((0..1000).all(|i| interrupt(&mut meter, i / 3 * 100 + i % 3).is_none()), "bursts");
    }

    #[test]
    fn n6_at_most_twice_the_limit_passes_in_a_window() {
        for used in 0..=3 {
            let mut meter = Meter::new(BUDGET);
            for _ in 0..used {
                assert_eq!(interrupt(&mut meter, 5000), None);
            }
            let passed = (0..).take_while(|i| interrupt(&mut meter, 9000 + i).is_none()).count();
            assert_eq!(passed, 3 - used + 3);
            assert!(passed <= 6);
        }
    }

    #[test]
    fn n6_a_storm_names_its_size() {
        let mut meter = Meter::new(BUDGET);
        let at = (2000..).find(|&now| interrupt(&mut meter, now).is_some()).unwrap();
        // Three were left of the first window, the fourth began one, the seventh was one too many.
        assert_eq!(at, 2006);
        let storm = Storm { interrupts: 4, within: 3, strikes: 1, outcome: Outcome::Throttled };
        assert_eq!(meter.storm, Some(storm));
    }

    #[test]
    fn n6_readmission_is_bounded_and_a_quiet_window_forgets() {
        let mut meter = Meter::new(BUDGET);
        let mut now = 2000;
        let storm = |meter: &mut Meter, now: &mut u64| loop {
            *now += 1;
            if let Some(outcome) = interrupt(meter, *now) {
                break outcome;
            }
        };
        let pause = |meter: &mut Meter, now: &mut u64| {
            assert!(!meter.resume(*now + 999), "not before the pause is over");
            *now += 1000;
            assert!(meter.resume(*now) && !meter.resume(*now), "once");
        };
        for _ in 0..2 {
            assert_eq!(storm(&mut meter, &mut now), Outcome::Throttled);
            pause(&mut meter, &mut now);
        }
        // Quiet for a window: the count of strikes begins again.
        now += 100;
        for _ in 0..2 {
            assert_eq!(storm(&mut meter, &mut now), Outcome::Throttled);
            pause(&mut meter, &mut now);
        }
        assert_eq!(storm(&mut meter, &mut now), Outcome::Quarantined);
        assert!(!meter.resume(u64::MAX), "for good");
        meter.forgive();
        assert_eq!(storm(&mut meter, &mut now), Outcome::Throttled);
    }

    #[test]
    fn n6_what_is_forgiven_has_no_pause_left_to_end() {
        let mut meter = Meter::new(BUDGET);
        let outcome = (2000..).find_map(|now| interrupt(&mut meter, now));
        assert_eq!(outcome, Some(Outcome::Throttled));
        meter.forgive();
        assert!(!meter.resume(u64::MAX));
    }

    #[test]
    fn a_clock_at_its_end_and_one_that_runs_backwards_are_harmless() {
        let mut meter = Meter::new(Budget { pause: u64::MAX, ..BUDGET });
        for now in [u64::MAX, u64::MAX, u64::MAX, u64::MAX, 0, 0, 0, 0, u64::MAX] {
            let _ = interrupt(&mut meter, now);
        }
    }
}
