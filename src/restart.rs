//! Whether and how soon a partition starts again when its guest ended.

use crate::policy::RestartPolicy;

/// A run of this length was a good one: whatever ends it begins a new row.
const STEADY_MS: u64 = 10_000;
/// How often in a row the pause is doubled at most.
const DOUBLINGS: u32 = 6;

/// One partition's account of its restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarts {
    policy: RestartPolicy,
    done: u64,
    in_a_row: u32,
}

/// A restart that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// The how manieth it is, from 1 on.
    pub number: u64,
    /// How long to wait first, in milliseconds.
    pub pause_ms: u64,
}

impl Restarts {
    /// None done yet.
    pub const fn new(policy: RestartPolicy) -> Self {
        Self { policy, done: 0, in_a_row: 0 }
    }

    /// The policy.
    pub const fn policy(&self) -> RestartPolicy {
        self.policy
    }

    /// How many were done.
    pub const fn done(&self) -> u64 {
        self.done
    }

    /// A run of `ran_ms` has ended, and not well: the restart that follows, if one does. It counts as done. The pause is
    /// doubled with each restart in a row of short runs, so that a guest that dies at once does not keep its CPU busy with
    /// nothing else.
    pub fn next(&mut self, ran_ms: u64) -> Option<Restart> {
        if self.policy.at_most.is_some_and(|most| self.done >= u64::from(most)) {
            return None;
        }
        if ran_ms >= STEADY_MS {
            self.in_a_row = 0;
        }
        let pause_ms = u64::from(self.policy.pause_ms) << self.in_a_row.min(DOUBLINGS);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.done = self.done.saturating_add(1);
        Some(Restart { number: self.done, pause_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restarts(at_most: Option<u32>, pause_ms: u32) -> Restarts {
        Restarts::new(RestartPolicy { at_most, pause_ms })
    }

    #[test]
    fn by_default_nothing_is_started_again() {
        assert_eq!(Restarts::new(RestartPolicy::default()).next(u64::MAX), None);
    }

    #[test]
    fn a_bound_is_kept_and_without_one_there_is_no_end() {
        let mut bounded = restarts(Some(3), 0);
        let numbers: Vec<_> = core::iter::from_fn(|| bounded.next(0)).map(|restart| restart.number).collect();
        assert_eq!((numbers, bounded.done(), bounded.next(u64::MAX)), (vec![1, 2, 3], 3, None));
        let mut always = restarts(None, 0);
        assert!((1..=100_000).all(|number| always.next(0).is_some_and(|restart| restart.number == number)));
    }

    #[test]
    fn the_pause_grows_in_a_row_of_short_runs_to_a_bound_and_a_long_run_ends_the_row() {
        let mut restarts = restarts(None, 100);
        let mut pause = |ran_ms| restarts.next(ran_ms).unwrap().pause_ms;
        let row: Vec<_> = (0..9).map(|_| pause(STEADY_MS - 1)).collect();
        assert_eq!(row, [100, 200, 400, 800, 1600, 3200, 6400, 6400, 6400]);
        assert_eq!([pause(STEADY_MS), pause(0)], [100, 200]);
    }

    #[test]
    fn nothing_overflows() {
        let mut restarts = Restarts {
            done: u64::MAX - 1,
            in_a_row: u32::MAX,
            ..restarts(None, RestartPolicy::MAX_PAUSE_MS)
        };
        for _ in 0..3 {
            assert_eq!(
                restarts.next(0).unwrap().pause_ms,
                u64::from(RestartPolicy::MAX_PAUSE_MS) << DOUBLINGS
            );
        }
        assert_eq!(restarts.done(), u64::MAX);
    }
}
