//! The timer of the virtual local APIC: a count-down (APM2 16.4.1), or a value of the guest's TSC to wait for (Intel SDM 3A
//! 11.5.4.1), driven by time stamps the caller brings along. It owns no clock and no vector: it says when it is due and that
//! it was.

use core::num::NonZeroU64;

/// The shortest period of periodic mode, in TSC ticks.
///
/// A guest may ask for a tick every clock. Each one costs it an exit, so below some period it could only ever
/// take timer exits; this floor leaves it time to turn its own timer off.
pub(super) const MIN_PERIOD_TSC: NonZeroU64 = NonZeroU64::new(20_000).unwrap();

/// What the timer does, bits 18 and 17 of its local vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// It counts down once.
    OneShot,
    /// It counts down again and again.
    Periodic,
    /// It counts nothing, and waits for the guest's TSC.
    Deadline,
}

/// One timer. Its input clock is the TSC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    initial: u32,
    /// The divide configuration register; bits 3, 1 and 0.
    divide: u32,
    mode: Mode,
    /// When the count reaches zero, or the guest's TSC what it waits for; `None` while the timer is stopped.
    due_tsc: Option<u64>,
    /// What the guest's TSC is waited for to reach, by the guest's own reckoning; 0 while it is for nothing.
    deadline: u64,
}

impl Timer {
    /// Stopped, one-shot, clock divided by two.
    pub(super) const RESET: Self =
        Self { initial: 0, divide: 0, mode: Mode::OneShot, due_tsc: None, deadline: 0 };

    /// How many times the clock is halved before it counts.
    const fn shift(&self) -> u32 {
        let code = self.divide & 0b11 | self.divide >> 1 & 0b100;
        // 000 is a division by 2 and 110 by 128; 111 means undivided.
        (code + 1) & 7
    }

    /// The count loaded, in TSC ticks.
    const fn asked_tsc(&self) -> u64 {
        (self.initial as u64) << self.shift()
    }

    /// From one zero to the next in periodic mode, in TSC ticks.
    fn period_tsc(&self) -> NonZeroU64 {
        NonZeroU64::new(self.asked_tsc()).map_or(MIN_PERIOD_TSC, |asked| asked.max(MIN_PERIOD_TSC))
    }

    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) const fn due_tsc(&self) -> Option<u64> {
        self.due_tsc
    }

    /// What the guest reads of what it waits for.
    pub(super) const fn deadline(&self) -> u64 {
        self.deadline
    }

    /// What is left to count at `now_tsc`. Changes nothing, also when the timer is overdue.
    pub(super) fn current(&self, now_tsc: u64) -> u32 {
        let Some(due) = self.due_tsc else { return 0 };
        let left_tsc = match (now_tsc.checked_sub(due), self.mode) {
            (_, Mode::Deadline) => 0,
            (None, _) => due - now_tsc,
            (Some(late), Mode::Periodic) => {
                let period = self.period_tsc();
                period.get() - late % period
            }
            (Some(_), Mode::OneShot) => 0,
        };
        let divided = left_tsc >> self.shift();
        let begun = u64::from(divided << self.shift() != left_tsc);
        // A period stretched to the floor counts longer than the guest's initial value; it never reads above
        // it.
        u32::try_from(divided.saturating_add(begun)).map_or(self.initial, |count| count.min(self.initial))
    }

    /// Loads the initial count and starts; zero stops. One that does not count drops it.
    pub(super) fn start(&mut self, initial: u32, now_tsc: u64) {
        let first = |timer: &Self| match timer.mode {
            Mode::OneShot => Some(timer.asked_tsc()),
            Mode::Periodic => Some(timer.period_tsc().get()),
            Mode::Deadline => None,
        };
        let loaded = Self { initial, ..*self };
        if let Some(first) = first(&loaded) {
            self.initial = initial;
            self.due_tsc = (initial != 0).then(|| now_tsc.saturating_add(first));
        }
    }

    /// Waits until the guest's TSC, which is `ahead_tsc` ahead of `now_tsc`, reaches `deadline`; for nothing if that is 0. One
    /// that counts drops it.
    pub(super) fn await_tsc(&mut self, deadline: u64, now_tsc: u64, ahead_tsc: u64) {
        if self.mode != Mode::Deadline {
            return;
        }
        let left = deadline.saturating_sub(now_tsc.wrapping_add(ahead_tsc));
        self.deadline = deadline;
        self.due_tsc = (deadline != 0).then(|| now_tsc.saturating_add(left));
    }

    /// Changes the divisor; what is left to count stays as it is.
    pub(super) fn set_divide(&mut self, divide: u32, now_tsc: u64) {
        let left = u64::from(self.current(now_tsc));
        self.divide = divide;
        if self.due_tsc.is_some() && self.mode != Mode::Deadline {
            self.due_tsc = Some(now_tsc.saturating_add(left << self.shift()));
        }
    }

    /// Changes the mode. Between the two that count the present count runs on, and a timer that has stopped stays stopped; to
    /// the third and from it, the timer stops.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if mode != self.mode && [mode, self.mode].contains(&Mode::Deadline) {
            *self = Self { divide: self.divide, ..Self::RESET };
        }
        self.mode = mode;
    }

    /// Whether the count reached zero, or the TSC its deadline, since the last call. Ticks that were missed count as one: the work is
    /// the same however late the caller is.
    pub(super) fn advance(&mut self, now_tsc: u64) -> bool {
        let Some(due) = self.due_tsc else { return false };
        let Some(late) = now_tsc.checked_sub(due) else { return false };
        self.deadline = 0;
        self.due_tsc = (self.mode == Mode::Periodic).then(|| {
            let period = self.period_tsc();
            now_tsc.saturating_add(period.get() - late % period)
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNDIVIDED: u32 = 0b1011;

    fn running(initial: u32, divide: u32, periodic: bool, now: u64) -> Timer {
        let mut timer = Timer::RESET;
        timer.set_divide(divide, now);
        timer.set_mode(if periodic { Mode::Periodic } else { Mode::OneShot });
        timer.start(initial, now);
        timer
    }

    #[test]
    fn the_divide_register_means_powers_of_two() {
        for (divide, factor) in [
            (0b0000, 2),
            (0b0001, 4),
            (0b0010, 8),
            (0b0011, 16),
            (0b1000, 32),
            (0b1001, 64),
            (0b1010, 128),
            (0b1011, 1),
        ] {
            assert_eq!(running(1000, divide, false, 5).due_tsc(), Some(5 + 1000 * factor), "{divide:#06b}");
        }
    }

    #[test]
    fn one_shot_counts_down_once() {
        let mut timer = running(100, 0, false, 1000);
        assert_eq!(timer.current(1000), 100);
        assert_eq!(timer.current(1001), 100);
        assert_eq!(timer.current(1002), 99);
        assert_eq!(timer.current(1199), 1);
        assert!(!timer.advance(1199));
        assert_eq!(timer.current(1200), 0);
        assert!(timer.advance(1200));
        assert!(!timer.advance(u64::MAX));
        assert_eq!(timer.due_tsc(), None);
        assert_eq!(timer.initial(), 100);
    }

    #[test]
    fn periodic_reloads_and_keeps_its_phase() {
        let mut timer = running(50_000, UNDIVIDED, true, 0);
        assert!(timer.advance(50_010));
        assert_eq!(timer.due_tsc(), Some(100_000));
        assert_eq!(timer.current(50_010), 49_990);
        assert_eq!(timer.current(100_001), 49_999, "an overdue timer has already wrapped");
    }

    #[test]
    fn missed_ticks_count_as_one_in_constant_work() {
        let mut timer = running(1, UNDIVIDED, true, 0);
        assert_eq!(timer.due_tsc(), Some(MIN_PERIOD_TSC.get()));
        assert!(timer.advance(u64::MAX / 2));
        let due = timer.due_tsc().unwrap();
        assert!(due > u64::MAX / 2 && due <= u64::MAX / 2 + MIN_PERIOD_TSC.get());
        assert!(!timer.advance(u64::MAX / 2));
        assert_eq!(timer.current(u64::MAX / 2), 1);
    }

    #[test]
    fn a_change_of_mode_lets_the_count_run_on() {
        let mut timer = running(100_000, UNDIVIDED, false, 0);
        timer.set_mode(Mode::Periodic);
        assert_eq!(timer.current(60_000), 40_000);
        assert!(timer.advance(100_000));
        assert_eq!(timer.current(100_000), 100_000);
        timer.set_mode(Mode::OneShot);
        assert_eq!(timer.current(150_000), 50_000);
        assert!(timer.advance(200_000));
        timer.set_mode(Mode::Periodic);
        assert_eq!(timer.current(200_001), 0, "an expired one-shot stays at zero");
        assert_eq!(timer.due_tsc(), None);
    }

    #[test]
    fn a_change_of_divisor_keeps_what_is_left() {
        let mut timer = running(1000, UNDIVIDED, false, 0);
        timer.set_divide(0b0001, 600);
        assert_eq!(timer.current(600), 400);
        assert_eq!(timer.due_tsc(), Some(600 + 4 * 400));
    }

    fn waiting(deadline: u64, now: u64, ahead: u64) -> Timer {
        let mut timer = Timer::RESET;
        timer.set_mode(Mode::Deadline);
        timer.await_tsc(deadline, now, ahead);
        timer
    }

    #[test]
    fn a_deadline_is_met_once_and_never_before_the_guests_tsc_says_so() {
        for (ahead, now) in [(0, 1000), (500, 500), (0_u64.wrapping_sub(500), 1500)] {
            let mut timer = waiting(3000, now, ahead);
            assert_eq!((timer.due_tsc(), timer.deadline()), (Some(now + 2000), 3000));
            assert_eq!((timer.current(now), timer.initial()), (0, 0), "nothing is counted");
            assert!(!timer.advance(now + 1999));
            assert_eq!(timer.deadline(), 3000);
            assert!(timer.advance(now + 2000));
            assert_eq!((timer.due_tsc(), timer.deadline()), (None, 0));
            assert!(!timer.advance(u64::MAX));
        }
    }

    #[test]
    fn a_deadline_that_has_passed_is_met_at_once_and_zero_is_none() {
        assert!(waiting(1, 1000, 0).advance(1000));
        let mut timer = waiting(3000, 1000, 0);
        timer.await_tsc(0, 1001, 0);
        assert_eq!((timer.due_tsc(), timer.advance(u64::MAX)), (None, false));
        assert_eq!(waiting(u64::MAX, 1000, 0).due_tsc(), Some(u64::MAX));
    }

    #[test]
    fn counts_and_deadlines_do_not_know_of_each_other() {
        let mut timer = running(1000, UNDIVIDED, true, 0);
        timer.await_tsc(500, 0, 0);
        assert_eq!((timer.due_tsc(), timer.deadline()), (Some(MIN_PERIOD_TSC.get()), 0));
        timer.set_mode(Mode::Deadline);
        assert_eq!((timer.due_tsc(), timer.initial(), timer.divide()), (None, 0, UNDIVIDED));
        timer.await_tsc(500, 0, 0);
        timer.start(77, 0);
        timer.set_divide(0, 0);
        assert_eq!((timer.due_tsc(), timer.initial(), timer.divide()), (Some(500), 0, 0));
        timer.set_mode(Mode::Deadline);
        assert_eq!(timer.due_tsc(), Some(500), "the same mode again");
        timer.set_mode(Mode::OneShot);
        assert_eq!((timer.due_tsc(), timer.deadline()), (None, 0));
    }

    #[test]
    fn zero_stops_and_the_end_of_time_saturates() {
        let mut timer = running(1000, 0, true, 0);
        timer.start(0, 10);
        assert_eq!((timer.due_tsc(), timer.current(10)), (None, 0));
        timer.start(u32::MAX, u64::MAX);
        assert!(timer.advance(u64::MAX));
        assert_eq!(timer.due_tsc(), Some(u64::MAX));
        assert_eq!(
            timer.current(0),
            u32::MAX,
            "a clock that went backwards never shows more than the initial count"
        );
    }
}
