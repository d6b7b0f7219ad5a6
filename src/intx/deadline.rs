//! How long a guest takes to complete (N7): one source looked at from time to time, and what is due when a delivery stays
//! in service too long. Nothing is counted on the interrupt path: that two looks find the same delivery tells its age.

use super::ledger::Account;
use super::reasons::MaskReasons;
use super::state::{Service, SourceState};
use crate::policy::{EoiDeadline, NeverEoi};

/// The watch over one source.
///
/// Time counts from the first look that finds the delivery, while its virtual redirection table entry is unmasked: a
/// guest that masked its pin has said that it does not want the interrupt yet. It does not count once the EOI came, if
/// only the unmask is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EoiWatch {
    action: NeverEoi,
    after: u64,
    /// The delivery that was found in service, by its number, and for how long it has been.
    found: Option<(u64, u64)>,
    /// How many deliveries the guest had completed by itself when the action was last taken.
    done: Option<u64>,
}

/// A delivery is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// What is to be done.
    pub action: NeverEoi,
    /// How long it has been in service, in ticks.
    pub age: u64,
}

impl EoiWatch {
    /// A watch by a clock of `ticks_per_ms`.
    pub const fn new(deadline: &EoiDeadline, ticks_per_ms: u64) -> Self {
        let after = ticks_per_ms.saturating_mul(deadline.after_ms as u64);
        Self { action: deadline.action, after, found: None, done: None }
    }

    /// Looks, `elapsed` ticks after the last look. Says what is due again at each look until [`EoiWatch::acted`].
    pub fn look(&mut self, state: &SourceState, account: &Account, elapsed: u64) -> Option<Overdue> {
        let waiting = matches!(state.service, Service::InService(_))
            && !state.reasons.contains(MaskReasons::VIRTUAL_RTE_MASKED);
        let number = account.ledger.delivered;
        let age = match self.found {
            Some((found, age)) if waiting && found == number => age.saturating_add(elapsed),
            _ => 0,
        };
        self.found = waiting.then_some((number, age));
        let acted = self.done == Some(account.ledger.completed.eoi);
        (waiting && age >= self.after && !acted).then_some(Overdue { action: self.action, age })
    }

    /// What was due is done: nothing more is until the guest completes a delivery by itself.
    pub const fn acted(&mut self, account: &Account) {
        self.done = Some(account.ledger.completed.eoi);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intx::{Addressee, Completed, Ledger, Notifier, Parity};
    use crate::irq::Pin;

    const A: Notifier = Notifier::Pin { partition: 0, vpin: Pin(21) };
    const SERVED: Service = Service::InService(Addressee::new(A, Parity::Even));
    const AWAITED: Service = Service::AwaitUnmask(Addressee::new(A, Parity::Even));

    fn watch() -> EoiWatch {
        EoiWatch::new(&EoiDeadline { action: NeverEoi::Complete, after_ms: 3 }, 10)
    }

    fn state(service: Service, reasons: MaskReasons) -> SourceState {
        SourceState { reasons, service, notifier: A, pending: false }
    }

    fn account(delivered: u64, eoi: u64, forced: u64) -> Account {
        let completed = Completed { eoi, forced, ..Completed::default() };
        Account { ledger: Ledger { delivered, completed, ..Ledger::default() }, ..Account::default() }
    }

    /// The ages at which something was due, over looks 10 ticks apart.
    fn looks(watch: &mut EoiWatch, state: SourceState, account: Account, count: usize) -> Vec<u64> {
        (0..count).filter_map(|_| watch.look(&state, &account, 10)).map(|overdue| overdue.age).collect()
    }

    #[test]
    fn n7_a_delivery_is_overdue_after_its_time_and_not_before() {
        let mut watch = watch();
        let served = state(SERVED, MaskReasons::IN_SERVICE);
        assert_eq!(looks(&mut watch, served, account(1, 0, 0), 3), []);
        let overdue = watch.look(&served, &account(1, 0, 0), 10);
        assert_eq!(overdue, Some(Overdue { action: NeverEoi::Complete, age: 30 }));
        assert_eq!(looks(&mut watch, served, account(1, 0, 0), 1), [40], "still, if nothing was done");
    }

    #[test]
    fn n7_it_is_due_once_and_again_only_after_the_guest_completed_by_itself() {
        let mut watch = watch();
        let served = state(SERVED, MaskReasons::IN_SERVICE);
        assert_eq!(looks(&mut watch, served, account(5, 4, 0), 4), [30]);
        watch.acted(&account(5, 4, 0));
        assert_eq!(looks(&mut watch, served, account(6, 4, 1), 100), [], "never a periodic re-fire");
        assert_eq!(looks(&mut watch, served, account(7, 5, 1), 4), [30], "the guest was well in between");
    }

    #[test]
    fn n7_another_delivery_begins_from_nothing() {
        let mut watch = watch();
        let served = state(SERVED, MaskReasons::IN_SERVICE);
        for number in 1..100 {
            assert_eq!(looks(&mut watch, served, account(number, number - 1, 0), 3), []);
        }
    }

    #[test]
    fn n7_time_does_not_count_while_the_guest_has_its_pin_masked_or_after_its_eoi() {
        let mut watch = watch();
        let masked = MaskReasons::IN_SERVICE | MaskReasons::VIRTUAL_RTE_MASKED;
        assert_eq!(looks(&mut watch, state(SERVED, masked), account(1, 0, 0), 100), []);
        assert_eq!(looks(&mut watch, state(AWAITED, masked), account(1, 0, 0), 100), []);
        assert_eq!(looks(&mut watch, state(Service::Idle, MaskReasons::empty()), account(1, 1, 0), 100), []);
        let served = state(SERVED, MaskReasons::IN_SERVICE);
        assert_eq!(looks(&mut watch, served, account(1, 0, 0), 3), [], "as if it had just come");
    }

    #[test]
    fn times_never_overflow() {
        let deadline = EoiDeadline { action: NeverEoi::Hold, after_ms: u32::MAX };
        let mut watch = EoiWatch::new(&deadline, u64::MAX);
        let served = state(SERVED, MaskReasons::IN_SERVICE);
        for _ in 0..3 {
            let _ = watch.look(&served, &account(1, 0, 0), u64::MAX);
        }
    }
}
