//! What follows when a function was reset between two lives of its guest: whether it is lost, whether that is news, and for which
//! reasons it is silent no longer.
//!
//! Values in, values out; whoever carries it out keeps whether the function is lost, since another partition may have it next.

use crate::intx::MaskReasons;
use crate::message::Message;
use crate::pci::reset::Fault;
use crate::policy::NoReset;

/// How the last reset of a function went that a partition has had made, if it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aftermath(Option<Result<(), Fault>>);

/// What the outcome of a reset means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The function is lost until a later reset succeeds: it is to be silent, and nothing of it to be reached.
    pub lost: bool,
    /// What is to be recorded, unless the reset before went the same way.
    pub news: Option<(Message, Fault)>,
}

impl Aftermath {
    /// Judges a reset by its outcome, and by what is to be done about a function that nothing resets.
    pub fn judge(&mut self, outcome: Result<(), Fault>, no_reset: NoReset) -> Judgement {
        let before = self.0.replace(outcome);
        let Err(fault) = outcome else { return Judgement { lost: false, news: None } };
        let lost = !fault.is_harmless() || no_reset == NoReset::Refuse;
        let message = if lost { Message::ResetFailed } else { Message::ResetNoEffect };
        Judgement { lost, news: (before != Some(outcome)).then_some((message, fault)) }
    }

    /// The reasons for silence that end with a life of the guest: those of the hypervisor's own doing in between, and those that
    /// the guest gave, or whose fault they are, which is `forgiven`. That the device misbehaved is forgiven if its state was
    /// cleared. A function that is `lost`, whoever lost it, stays quarantined.
    pub fn lifted(&self, lost: bool, forgiven: MaskReasons) -> MaskReasons {
        let given =
            MaskReasons::RESET | MaskReasons::GUEST_DISINTX | MaskReasons::OPERATOR | MaskReasons::THROTTLE;
        let cleared = if self.0 == Some(Ok(())) { MaskReasons::QUARANTINE } else { MaskReasons::empty() };
        let lifted = given | forgiven | cleared;
        if lost { lifted - MaskReasons::QUARANTINE } else { lifted }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const NOT_CLEARED: [Fault; 2] = [Fault::NoEffect, Fault::NeverReturned];

    #[test]
    fn n15_what_does_not_come_back_as_it_was_is_lost_until_it_does() {
        for (fault, no_reset, lost) in [
            (Fault::Absent, NoReset::Mask, true),
            (Fault::NeverReturned, NoReset::Mask, true),
            (Fault::Replaced(0x11e8_1234), NoReset::Mask, true),
            (Fault::NoEffect, NoReset::Mask, false),
            (Fault::NoEffect, NoReset::Refuse, true),
        ] {
            let mut aftermath = Aftermath::default();
            assert_eq!(aftermath.judge(Err(fault), no_reset).lost, lost, "{fault}");
            assert_eq!(aftermath.judge(Ok(()), no_reset), Judgement { lost: false, news: None });
        }
    }

    #[test]
    fn n8_a_reset_that_goes_as_the_one_before_is_no_news() {
        let mut aftermath = Aftermath::default();
        let mut news = |outcome| aftermath.judge(outcome, NoReset::Mask).news;
        let [harmless, grave] = NOT_CLEARED;
        let told = [(Message::ResetNoEffect, harmless), (Message::ResetFailed, grave)].map(Some);
        assert_eq!([Err(harmless), Err(harmless)].map(&mut news), [told[0], None]);
        assert_eq!([Err(grave), Err(grave)].map(&mut news), [told[1], None], "it is another");
        assert_eq!([Ok(()), Err(grave)].map(&mut news), [None, told[1]], "it was well in between");
    }

    #[test]
    fn n6_n8_what_the_guest_gave_ends_with_its_life() {
        let mut aftermath = Aftermath::default();
        for outcome in [None, Some(Ok(())), Some(Err(Fault::NoEffect))] {
            let _ = outcome.map(|outcome| aftermath.judge(outcome, NoReset::Mask));
            for lost in [false, true] {
                let lifted = aftermath.lifted(lost, MaskReasons::empty());
                let guests = MaskReasons::GUEST_DISINTX | MaskReasons::OPERATOR | MaskReasons::THROTTLE;
                assert!(lifted.contains(MaskReasons::RESET | guests), "{outcome:?}: {lifted}");
                let others = MaskReasons::POWER | MaskReasons::HANDOVER | MaskReasons::NO_NOTIFIER;
                assert!(!lifted.intersects(others), "{outcome:?}: {lifted}");
            }
        }
    }

    #[test]
    fn n6_n8_n15_a_quarantine_ends_by_a_reset_or_with_the_guest_whose_fault_it_is_and_never_if_it_is_lost() {
        let mut aftermath = Aftermath::default();
        let ends = |aftermath: &Aftermath, lost, forgiven| {
            aftermath.lifted(lost, forgiven).contains(MaskReasons::QUARANTINE)
        };
        let [devices, guests] = [MaskReasons::empty(), MaskReasons::QUARANTINE];
        assert_eq!([devices, guests].map(|fault| ends(&aftermath, false, fault)), [false, true]);
        for fault in NOT_CLEARED {
            aftermath.judge(Err(fault), NoReset::Mask);
            assert_eq!([devices, guests].map(|fault| ends(&aftermath, false, fault)), [false, true]);
            assert_eq!([devices, guests].map(|fault| ends(&aftermath, true, fault)), [false; 2]);
        }
        aftermath.judge(Ok(()), NoReset::Mask);
        assert_eq!([devices, guests].map(|fault| ends(&aftermath, false, fault)), [true; 2]);
        assert_eq!(
            [devices, guests].map(|fault| ends(&aftermath, true, fault)),
            [false; 2],
            "another lost it"
        );
    }
}
