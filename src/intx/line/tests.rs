//! The line's rules one by one: single steps, no chip, no slot.

use super::*;
use crate::intx::Parity;
use crate::irq::Pin;

const A: Notifier = Notifier::Pin { partition: 0, vpin: Pin(21) };
const B: Notifier = Notifier::Pin { partition: 1, vpin: Pin(5) };
const S: Sharer = place(0);

const fn place(index: u8) -> Sharer {
    Sharer::new(index).expect("below the limit")
}

const LINE_GATES: [Gate; 2] = [Gate::RteMask, Gate::DirectedEoi];
const GATES: [Gate; 3] = [Gate::RteMask, Gate::DirectedEoi, Gate::Function];

/// A line with one source that has no notifier yet.
fn attached(gate: Gate) -> Line {
    let mut line = Line::new(gate);
    let (sharer, _effects) = line.attach().unwrap();
    assert_eq!(sharer, S);
    line
}

/// Ends an epoch: the notifier is now `to`, its virtual RTE unmasked.
fn retire(line: &mut Line, to: Notifier, parity: Parity) -> Effects {
    line.step(Event::Retired {
        sharer: S,
        notifier: to,
        parity,
        marked: false,
        virtual_rte_masked: false,
        how: Completion::Handover,
    })
}

/// A line with one open source that notifies A, in the odd epoch.
fn open(gate: Gate) -> Line {
    let mut line = attached(gate);
    if !retire(&mut line, A, Parity::Even).sample.is_empty() {
        let opened = sample(&mut line, Sample::Low);
        assert_eq!(opened.clear_disintx, SharerSet::only(S));
    }
    assert!(!line.state().is_closed(S));
    line
}

fn sample(line: &mut Line, sample: Sample) -> Effects {
    line.step(Event::Sampled { sharer: S, sample })
}

/// Whose level on which pin is to be lowered.
fn lowered(effects: &Effects) -> Option<(Sharer, Notifier)> {
    effects.lower.map(|(sharer, addressee)| (sharer, addressee.target()))
}

fn notified(line: &mut Line, target: Notifier, parity: Parity) -> Effects {
    line.step(Event::Notified { sharer: S, addressee: Addressee::new(target, parity) })
}

/// A line with one source whose delivery to A is in service, in the odd epoch.
fn serving(gate: Gate) -> Line {
    let mut line = open(gate);
    let mut effects = line.step(Event::Wire { metered: true });
    if gate == Gate::Function {
        assert_eq!(effects.sample, SharerSet::only(S));
        effects = sample(&mut line, Sample::High);
    }
    assert_eq!(effects.notify, SharerSet::only(S));
    let _nothing = notified(&mut line, A, Parity::Odd);
    assert_eq!(reasons(&line), MaskReasons::IN_SERVICE);
    line
}

fn eoi(line: &mut Line) -> Effects {
    line.step(Event::Eoi { sharer: S, from: A })
}

fn virtual_rte(line: &mut Line, masked: bool) -> Effects {
    line.step(Event::VirtualRte { sharer: S, pin: A, masked })
}

fn mask(line: &mut Line, reasons: MaskReasons) -> Effects {
    line.step(Event::Mask { sharer: S, reasons })
}

fn unmask(line: &mut Line, reasons: MaskReasons) -> Effects {
    line.step(Event::Unmask { sharer: S, reasons })
}

fn reasons(line: &Line) -> MaskReasons {
    line.source(S).unwrap().reasons
}

fn ledger(line: &Line) -> Ledger {
    let account = line.account(S).unwrap();
    account.balance().unwrap();
    account.ledger
}

#[test]
fn i14_i48_a_new_source_is_closed_and_stays_closed_without_a_notifier() {
    for gate in GATES {
        let mut line = Line::new(gate);
        let (_, effects) = line.attach().unwrap();
        assert!(line.state().is_closed(S));
        assert!(!effects.notify.contains(S));
        assert_eq!(effects.set_disintx.contains(S), gate == Gate::Function);
        assert_eq!(effects.unmask_rte, gate == Gate::Function, "others on the line may be heard");
        assert_eq!(effects.clear_disintx.contains(S), gate != Gate::Function, "the gate is elsewhere");
        assert_eq!(reasons(&line), MaskReasons::NO_NOTIFIER);
    }
}

#[test]
fn i43_i48_nothing_of_the_last_source_is_left_for_the_next_at_its_place() {
    for gate in GATES {
        let mut line = serving(gate);
        let _lowered = eoi(&mut line);
        assert_ne!(ledger(&line), Ledger::default());
        let _closed = retire(&mut line, Notifier::None, Parity::Odd);
        let _gone = line.detach(S).expect("idle and without a notifier");
        let (sharer, _effects) = line.attach().expect("a place is free");
        assert_eq!(sharer, S);
        assert_eq!(ledger(&line), Ledger::default());
        assert_eq!(*line.source(S).unwrap(), SourceState::NEW);
    }
}

#[test]
fn i43_n14_nobody_is_doubted_for_who_had_his_place_before() {
    let mut line = Line::with_patience(Gate::Function, 2);
    for _ in 0..2 {
        assert_eq!(line.attach().map(|(sharer, _)| sharer), Some(S));
        assert!(!line.state().doubted.contains(S), "before anybody has asked it");
        let _asked = retire(&mut line, A, Parity::Even);
        let _opened = sample(&mut line, Sample::Low);
        let _asked = line.step(Event::Wire { metered: true });
        for doubted in [false, false, true] {
            assert_eq!(sample(&mut line, Sample::High).notify, SharerSet::only(S));
            let _in_service = notified(&mut line, A, Parity::Odd);
            assert_eq!(line.state().doubted.contains(S), doubted);
            let _asked = eoi(&mut line);
        }
        assert_eq!(line.take_finding(), Some(LineFinding::Doubted(S)));
        let _closed = retire(&mut line, Notifier::None, Parity::Odd);
        let _gone = line.detach(S).expect("idle and without a notifier");
    }
}

#[test]
fn i43_n6_nobody_has_the_budget_of_who_had_his_place_before() {
    let mut line = Line::new(Gate::RteMask);
    let (sharer, _) = line.attach().expect("all places are free");
    assert!(line.limit(sharer, BUDGET) && line.is_metered());
    let _gone = line.detach(sharer).expect("idle and without a notifier");
    assert_eq!(line.attach().map(|(next, _)| next), Some(sharer));
    assert!(line.meter(sharer).is_none() && !line.is_metered());
}

#[test]
fn i30_the_gate_closes_in_the_step_that_asks_for_the_notification() {
    let mut line = open(Gate::RteMask);
    let effects = line.step(Event::Wire { metered: true });
    assert!(effects.mask_rte && effects.notify.contains(S));

    let mut line = open(Gate::Function);
    let asked = line.step(Event::Wire { metered: true });
    assert_eq!((asked.sample, asked.notify), (SharerSet::only(S), SharerSet::EMPTY));
    let effects = sample(&mut line, Sample::High);
    assert!(effects.set_disintx.contains(S) && effects.notify.contains(S));
}

#[test]
fn a_directed_eoi_holds_the_line_without_any_write_until_completion() {
    let mut line = open(Gate::DirectedEoi);
    let effects = line.step(Event::Wire { metered: true });
    assert!(!effects.mask_rte && !effects.directed_eoi);
    let _nothing = notified(&mut line, A, Parity::Odd);
    assert!(line.state().held && !line.state().rte_masked && line.state().is_closed(S));
    let effects = eoi(&mut line);
    assert!(effects.directed_eoi && !effects.unmask_rte);
    assert!(!line.state().is_closed(S));
}

#[test]
fn a_directed_eoi_needs_the_mask_for_every_other_reason() {
    let mut line = serving(Gate::DirectedEoi);
    assert!(mask(&mut line, MaskReasons::OPERATOR).mask_rte);
    let effects = eoi(&mut line);
    assert!(effects.directed_eoi, "the mask holds now; Remote IRR is not orphaned");
    assert!(!effects.unmask_rte && line.state().is_closed(S));
    assert!(unmask(&mut line, MaskReasons::OPERATOR).unmask_rte);
}

#[test]
fn a_loopback_is_not_held_by_remote_irr() {
    let mut line = open(Gate::DirectedEoi);
    let effects = line.step(Event::Loopback { sharer: S });
    assert!(effects.mask_rte && effects.notify.contains(S));
    let _nothing = notified(&mut line, A, Parity::Odd);
    let effects = eoi(&mut line);
    assert!(effects.unmask_rte && !effects.directed_eoi);
}

#[test]
fn the_pin_is_lowered_at_completion_and_the_line_gate_opened() {
    for gate in LINE_GATES {
        let mut line = serving(gate);
        let effects = eoi(&mut line);
        assert_eq!(lowered(&effects), Some((S, A)));
        assert_eq!(effects.unmask_rte || effects.directed_eoi, !line.state().is_closed(S));
        assert!(!line.state().is_closed(S));
        assert_eq!(ledger(&line).completed.eoi, 1);
    }
}

#[test]
fn a_function_that_still_asserts_is_delivered_again_without_opening() {
    let mut line = serving(Gate::Function);
    let effects = eoi(&mut line);
    assert_eq!((lowered(&effects), effects.sample), (Some((S, A)), SharerSet::only(S)));
    assert!(effects.clear_disintx.is_empty());
    let effects = sample(&mut line, Sample::High);
    assert_eq!(effects.notify, SharerSet::only(S));
    assert!(effects.set_disintx.is_empty() && effects.clear_disintx.is_empty(), "the gate is not touched");
    let _nothing = notified(&mut line, A, Parity::Odd);
    assert_eq!(ledger(&line).accepted.replay, 1);
    let _lower = eoi(&mut line);
    assert_eq!(sample(&mut line, Sample::Low).clear_disintx, SharerSet::only(S));
}

#[test]
fn n15_i37_a_function_that_vanished_is_quarantined_and_asked_no_more() {
    let mut line = serving(Gate::Function);
    let _lower = eoi(&mut line);
    let effects = sample(&mut line, Sample::Absent);
    assert!(effects.notify.is_empty() && effects.clear_disintx.is_empty());
    assert_eq!(reasons(&line), MaskReasons::QUARANTINE);
    for event in
        [Event::Wire { metered: true }, Event::Loopback { sharer: S }, Event::Eoi { sharer: S, from: A }]
    {
        let effects = line.step(event);
        assert!(effects.sample.is_empty() && effects.notify.is_empty());
    }
    // Absent at the very first question, with the gate still open.
    let mut line = open(Gate::Function);
    let _asked = line.step(Event::Wire { metered: true });
    assert!(sample(&mut line, Sample::Absent).set_disintx.contains(S));
    assert_eq!(ledger(&line).accepted.wire, 0);
}

#[test]
fn i37_nobody_asks_a_function_in_reset_or_asleep() {
    for reason in [MaskReasons::RESET, MaskReasons::POWER] {
        let mut line = serving(Gate::Function);
        let _closed = mask(&mut line, reason);
        assert!(line.step(Event::Wire { metered: true }).sample.is_empty());
        assert!(eoi(&mut line).sample.is_empty());
        assert!(!sample(&mut line, Sample::High).notify.contains(S), "an answer nobody asked for");
        assert_eq!(unmask(&mut line, reason).sample, SharerSet::only(S));
    }
}

#[test]
fn i13_a_completion_never_undoes_the_mask_of_another() {
    for gate in GATES {
        for reason in MaskReasons::GIVEN {
            let mut line = serving(gate);
            assert!(mask(&mut line, reason).changed);
            let effects = eoi(&mut line);
            assert_eq!(lowered(&effects), Some((S, A)));
            assert!(!effects.unmask_rte && effects.clear_disintx.is_empty() && effects.sample.is_empty());
            assert!(line.state().is_closed(S), "{gate}, {reason}");
            assert_eq!(reasons(&line), reason);
        }
    }
}

#[test]
fn i16_masks_are_idempotent_and_say_whether_they_changed_anything() {
    let mut line = open(Gate::RteMask);
    let first = mask(&mut line, MaskReasons::OPERATOR);
    assert!(first.changed && first.mask_rte);
    assert_eq!(mask(&mut line, MaskReasons::OPERATOR), Effects::default());
    let first = unmask(&mut line, MaskReasons::OPERATOR);
    assert!(first.changed && first.unmask_rte);
    assert_eq!(unmask(&mut line, MaskReasons::OPERATOR), Effects::default());
}

#[test]
fn i17_unmask_opens_nothing_while_the_virtual_disintx_is_set() {
    for gate in GATES {
        let mut line = open(gate);
        let _closed = mask(&mut line, MaskReasons::GUEST_DISINTX | MaskReasons::OPERATOR);
        let effects = unmask(&mut line, MaskReasons::OPERATOR);
        assert!(effects.changed && !effects.unmask_rte && effects.sample.is_empty());
        assert!(line.state().is_closed(S));
    }
}

#[test]
fn nobody_can_give_or_take_a_reason_the_line_derives() {
    let derived = MaskReasons::GIVEN.complement();
    let mut line = open(Gate::RteMask);
    assert_eq!(mask(&mut line, derived), Effects::default());
    let mut line = serving(Gate::RteMask);
    assert_eq!(unmask(&mut line, MaskReasons::all()), Effects::default());
    assert_eq!(reasons(&line), MaskReasons::IN_SERVICE);
}

#[test]
fn i38_an_eoi_under_a_masked_virtual_rte_completes_at_the_unmask() {
    for gate in GATES {
        let mut line = serving(gate);
        let effects = virtual_rte(&mut line, true);
        assert!(!effects.mask_rte || gate == Gate::DirectedEoi, "already closed");
        let effects = eoi(&mut line);
        assert_eq!(effects.lower, None, "the pin stays high");
        assert!(line.state().is_closed(S));
        let effects = virtual_rte(&mut line, false);
        assert_eq!(lowered(&effects), Some((S, A)));
        assert_eq!(ledger(&line).completed.eoi, 1);
        assert_eq!(effects.sample.contains(S), gate == Gate::Function);
    }
}

#[test]
fn i38_unmasking_the_virtual_rte_in_service_completes_nothing() {
    let mut line = serving(Gate::RteMask);
    let _still_closed = virtual_rte(&mut line, true);
    let effects = virtual_rte(&mut line, false);
    assert_eq!(effects.lower, None);
    assert!(!effects.unmask_rte);
    assert_eq!(reasons(&line), MaskReasons::IN_SERVICE);
    assert_eq!(lowered(&eoi(&mut line)), Some((S, A)));
}

#[test]
fn i31_masking_the_virtual_rte_closes_an_idle_gate_at_once() {
    let mut line = open(Gate::RteMask);
    assert!(virtual_rte(&mut line, true).mask_rte);
    assert!(virtual_rte(&mut line, false).unmask_rte);
}

#[test]
fn the_mask_of_another_virtual_pin_is_nothing_to_a_source() {
    let mut line = open(Gate::RteMask);
    let effects = line.step(Event::VirtualRte { sharer: S, pin: B, masked: true });
    assert_eq!(effects, Effects::default());
    let mut line = attached(Gate::RteMask);
    let effects = line.step(Event::VirtualRte { sharer: S, pin: Notifier::None, masked: true });
    assert_eq!(effects, Effects::default());
}

#[test]
fn a_stale_eoi_changes_nothing_but_its_counter() {
    let mut line = open(Gate::RteMask);
    assert_eq!(eoi(&mut line), Effects::default());
    let mut line = serving(Gate::RteMask);
    assert_eq!(line.step(Event::Eoi { sharer: S, from: B }), Effects::default());
    assert_eq!(line.step(Event::Eoi { sharer: S, from: Notifier::None }), Effects::default());
    let _closed = virtual_rte(&mut line, true);
    let _first = eoi(&mut line);
    assert_eq!(eoi(&mut line), Effects::default(), "the second EOI of one delivery");
    assert_eq!(ledger(&line).stale_eois, 3);
}

#[test]
fn i8_i9_an_assertion_without_notifier_is_claimed_silenced_and_marked() {
    for gate in GATES {
        let mut line = open(gate);
        let _asked = line.step(Event::Wire { metered: true });
        if gate == Gate::Function {
            let _claimed = sample(&mut line, Sample::High);
        }
        let effects = notified(&mut line, Notifier::None, Parity::Even);
        assert!(effects.mark);
        assert!(line.state().is_closed(S));
        assert_eq!(reasons(&line), MaskReasons::NO_NOTIFIER);
        assert!(line.account(S).unwrap().pending);
        ledger(&line);
    }
}

#[test]
fn i10_a_loopback_without_notifier_is_harmless() {
    for gate in GATES {
        let mut line = attached(gate);
        let effects = line.step(Event::Loopback { sharer: S });
        assert_eq!(effects, Effects::default());
        assert_eq!(ledger(&line).suppressed.loopback, 1);
        // The notifier goes while the loopback is on its way: no mark is left for the next one either.
        let mut line = open(gate);
        let _closed = line.step(Event::Loopback { sharer: S });
        assert!(!notified(&mut line, Notifier::None, Parity::Even).mark);
        assert!(!line.account(S).unwrap().pending);
        ledger(&line);
    }
}

#[test]
fn i10_a_loopback_is_heard_under_an_operators_mask_and_under_no_other() {
    for reason in MaskReasons::GIVEN {
        let mut line = open(Gate::RteMask);
        let _closed = mask(&mut line, reason);
        let heard = line.step(Event::Loopback { sharer: S }).notify.contains(S);
        assert_eq!(heard, reason == MaskReasons::OPERATOR, "{reason}");
    }
    let mut line = open(Gate::RteMask);
    let _closed = virtual_rte(&mut line, true);
    assert!(line.step(Event::Loopback { sharer: S }).notify.contains(S));
}

#[test]
fn a_loopback_in_service_is_covered_by_the_delivery() {
    let mut line = serving(Gate::RteMask);
    assert_eq!(line.step(Event::Loopback { sharer: S }), Effects::default());
    assert_eq!(ledger(&line).coalesced, 1);
}

#[test]
fn i11_unmasking_without_notifier_stays_closed() {
    for gate in GATES {
        let mut line = attached(gate);
        let _closed = mask(&mut line, MaskReasons::OPERATOR);
        let effects = unmask(&mut line, MaskReasons::OPERATOR);
        assert!(!effects.unmask_rte && effects.notify.is_empty() && effects.sample.is_empty());
        assert_eq!(reasons(&line), MaskReasons::NO_NOTIFIER);
    }
}

#[test]
fn i5_a_replacement_ends_what_the_old_epoch_had_in_service() {
    for gate in LINE_GATES {
        let mut line = serving(gate);
        let effects = retire(&mut line, B, Parity::Odd);
        assert_eq!(lowered(&effects), Some((S, A)));
        assert!(!line.state().is_closed(S), "the wire tells the rest");
        assert_eq!(ledger(&line).completed.handover, 1);
    }
    let mut line = serving(Gate::Function);
    let effects = retire(&mut line, B, Parity::Odd);
    assert_eq!((lowered(&effects), effects.sample), (Some((S, A)), SharerSet::only(S)));
    assert_eq!(sample(&mut line, Sample::High).notify, SharerSet::only(S));
}

#[test]
fn i4_a_delivery_of_the_new_epoch_is_left_alone() {
    let mut line = open(Gate::RteMask);
    // The odd epoch ends; the delivery already entered the even one.
    let _closed = line.step(Event::Wire { metered: true });
    let _nothing = notified(&mut line, B, Parity::Even);
    let effects = retire(&mut line, B, Parity::Odd);
    assert_eq!(effects.lower, None);
    assert_eq!(reasons(&line), MaskReasons::IN_SERVICE);
    assert_eq!(lowered(&line.step(Event::Eoi { sharer: S, from: B })), Some((S, B)));
}

#[test]
fn a_replacement_by_none_closes_and_by_somebody_opens() {
    for gate in GATES {
        let mut line = open(gate);
        let closed = retire(&mut line, Notifier::None, Parity::Odd);
        assert!(closed.mask_rte || closed.set_disintx.contains(S));
        assert_eq!(reasons(&line), MaskReasons::NO_NOTIFIER);
        let opened = retire(&mut line, B, Parity::Even);
        assert!(opened.unmask_rte || opened.sample.contains(S));
    }
}

#[test]
fn n4_the_mark_is_honoured_by_looking_at_the_wire_again() {
    let mut line = open(Gate::RteMask);
    let _closed = line.step(Event::Wire { metered: true });
    let _marked = notified(&mut line, Notifier::None, Parity::Even);
    let effects = line.step(Event::Retired {
        sharer: S,
        notifier: B,
        parity: Parity::Even,
        marked: true,
        virtual_rte_masked: false,
        how: Completion::Handover,
    });
    assert!(effects.unmask_rte, "a wire that is still asserted makes the chip send again");
    assert_eq!(ledger(&line).suppressed.carried, 1);
}

#[test]
fn a_new_notifier_brings_the_mask_of_its_own_virtual_rte() {
    let mut line = open(Gate::RteMask);
    let retired = |masked| Event::Retired {
        sharer: S,
        notifier: B,
        parity: Parity::Odd,
        marked: false,
        virtual_rte_masked: masked,
        how: Completion::Handover,
    };
    assert!(line.step(retired(true)).mask_rte);
    assert_eq!(reasons(&line), MaskReasons::VIRTUAL_RTE_MASKED);
    assert!(line.step(retired(false)).unmask_rte);
}

#[test]
fn every_way_to_end_a_delivery_by_force_is_booked_as_itself() {
    for how in [Completion::Reset, Completion::Forced, Completion::Handover] {
        let mut line = serving(Gate::RteMask);
        let _opened = line.step(Event::Retired {
            sharer: S,
            notifier: A,
            parity: Parity::Odd,
            marked: false,
            virtual_rte_masked: false,
            how,
        });
        let completed = ledger(&line).completed;
        let counted = [completed.reset, completed.forced, completed.handover, completed.eoi];
        let expected =
            [how == Completion::Reset, how == Completion::Forced, how == Completion::Handover, false];
        assert_eq!(counted, expected.map(u64::from));
    }
}

#[test]
fn i19_a_vector_that_was_on_its_way_when_the_gate_closed_closes_nothing_twice() {
    for gate in LINE_GATES {
        let mut line = open(gate);
        assert!(mask(&mut line, MaskReasons::OPERATOR).mask_rte);
        let effects = line.step(Event::Wire { metered: true });
        assert!(!effects.mask_rte && effects.notify.is_empty());
        assert_eq!(effects.directed_eoi, gate == Gate::DirectedEoi, "Remote IRR is not orphaned");
        assert!(unmask(&mut line, MaskReasons::OPERATOR).unmask_rte, "once closed, once opened");
        assert_eq!(ledger(&line).suppressed.masked, 1);
    }
}

#[test]
fn a_line_gate_opens_when_the_last_of_its_sources_does() {
    let mut line = serving(Gate::RteMask);
    let (other, effects) = line.attach().unwrap();
    assert!(!effects.mask_rte, "already closed");
    assert!(!eoi(&mut line).unmask_rte, "the other one has no notifier");
    let effects = line.step(Event::Retired {
        sharer: other,
        notifier: B,
        parity: Parity::Even,
        marked: false,
        virtual_rte_masked: false,
        how: Completion::Handover,
    });
    assert!(effects.unmask_rte);
    // Nobody can tell who asserts: both are told.
    let effects = line.step(Event::Wire { metered: true });
    assert_eq!(effects.notify.count(), 2);
}

#[test]
fn i8_a_silenced_function_does_not_silence_its_neighbour() {
    let mut line = serving(Gate::Function);
    let (other, _effects) = line.attach().unwrap();
    let _opened = line.step(Event::Retired {
        sharer: other,
        notifier: B,
        parity: Parity::Even,
        marked: false,
        virtual_rte_masked: false,
        how: Completion::Handover,
    });
    let _opened = line.step(Event::Sampled { sharer: other, sample: Sample::Low });
    assert!(!line.state().is_closed(other) && line.state().is_closed(S));
    assert_eq!(
        line.step(Event::Wire { metered: true }).sample,
        SharerSet::only(other),
        "the silenced one is not even asked"
    );
}

#[test]
fn a_source_leaves_only_without_notifier_and_delivery() {
    for gate in GATES {
        let mut line = serving(gate);
        assert_eq!(line.detach(S), None);
        let _lower = retire(&mut line, Notifier::None, Parity::Odd);
        let effects = line.detach(S).unwrap();
        assert!(effects.set_disintx.contains(S) || gate == Gate::Function, "silent for good");
        assert!(line.state().rte_masked && !line.state().held);
        assert_eq!(line.source(S), None);
        assert_eq!(line.detach(S), None);
    }
}

/// A source is silenced while its neighbour's EOI is withheld: what the chip holds then is no vector on its way, and whoever waits
/// for one would wait for the neighbour.
#[test]
fn n8_i48_a_withheld_eoi_of_a_neighbour_is_no_vector_on_its_way() {
    let mut line = serving(Gate::DirectedEoi);
    let (second, _effects) = line.attach().unwrap();
    assert!(line.step(Event::Mask { sharer: second, reasons: MaskReasons::RESET }).changed);
    assert!(line.state().rte_masked && line.state().held && !line.state().is_to_fall_silent());
    let effects = line.step(Event::Eoi { sharer: S, from: A });
    assert!(effects.directed_eoi && line.state().rte_masked && line.state().is_to_fall_silent());
}

#[test]
fn events_for_places_that_are_not_taken_change_nothing() {
    let mut line = Line::new(Gate::RteMask);
    let sharer = place(3);
    let before = line.clone();
    for event in [
        Event::Sampled { sharer, sample: Sample::High },
        Event::Notified { sharer, addressee: Addressee::new(A, Parity::Even) },
        Event::Eoi { sharer, from: A },
        Event::VirtualRte { sharer, pin: A, masked: true },
        Event::Mask { sharer, reasons: MaskReasons::all() },
        Event::Unmask { sharer, reasons: MaskReasons::all() },
        Event::Loopback { sharer },
    ] {
        assert_eq!(line.step(event), Effects::default());
    }
    assert_eq!(line, before);
}

#[test]
fn a_line_has_room_for_its_sharers_and_for_no_more() {
    let mut line = Line::new(Gate::RteMask);
    for place in 0..MAX_SHARERS {
        assert_eq!(line.attach().unwrap().0.index(), place);
    }
    assert_eq!(line.attach(), None);
}

// Storm budgets.

const BUDGET: Budget = Budget { limit: 1, window: 100, pause: 10, retries: 1 };

/// A line with one open source that notifies A and has used up its budget of one at time 1000.
fn spent(gate: Gate) -> Line {
    let mut line = Line::new(gate);
    let (_, _effects) = line.attach().unwrap();
    assert!(line.limit(S, BUDGET));
    if !retire(&mut line, A, Parity::Even).sample.is_empty() {
        let _opened = sample(&mut line, Sample::Low);
    }
    for _ in 0..2 {
        if !assertion(&mut line).overdrawn.is_empty() {
            let effects = line.step(Event::Timed { sharer: S, now: 1000 });
            assert_eq!(effects.notify, SharerSet::only(S), "the window before was over long ago");
        }
        let _nothing = notified(&mut line, A, Parity::Odd);
        if !eoi(&mut line).sample.is_empty() {
            let _opened = sample(&mut line, Sample::Low);
        }
    }
    assert!(!line.state().is_closed(S));
    line
}

/// The device asserts.
fn assertion(line: &mut Line) -> Effects {
    let effects = line.step(Event::Wire { metered: true });
    if effects.sample.is_empty() { effects } else { sample(line, Sample::High) }
}

fn timed(line: &mut Line, now: u64) -> Effects {
    line.step(Event::Timed { sharer: S, now })
}

fn resume(line: &mut Line, now: u64) -> Effects {
    line.step(Event::Resume { sharer: S, now })
}

#[test]
fn n6_one_assertion_too_many_asks_the_clock_before_anything_else() {
    for gate in GATES {
        let mut line = spent(gate);
        let effects = assertion(&mut line);
        assert_eq!((effects.overdrawn, effects.notify), (SharerSet::only(S), SharerSet::EMPTY));
    }
}

#[test]
fn n6_within_the_window_the_gate_closes_and_nobody_is_notified() {
    for gate in GATES {
        let mut line = spent(gate);
        let _ask = assertion(&mut line);
        let effects = timed(&mut line, 1099);
        assert!(effects.notify.is_empty() && effects.changed);
        assert_eq!(reasons(&line), MaskReasons::THROTTLE);
        assert!(line.state().is_closed(S), "{gate}");
        assert_eq!(ledger(&line).suppressed.masked, 1);
        let storm = line.take_storm(S).unwrap();
        assert_eq!((storm.interrupts, storm.within, storm.outcome), (2, 99, Outcome::Throttled));
        assert_eq!(line.take_storm(S), None, "recorded once");
    }
}

#[test]
fn n6_after_the_window_it_is_delivered_like_any_other() {
    for gate in GATES {
        let mut line = spent(gate);
        let _ask = assertion(&mut line);
        assert_eq!(timed(&mut line, 1100).notify, SharerSet::only(S));
        let _nothing = notified(&mut line, A, Parity::Odd);
        assert_eq!(reasons(&line), MaskReasons::IN_SERVICE);
        assert_eq!(line.take_storm(S), None);
    }
}

#[test]
fn n6_the_pause_ends_at_its_time_and_takes_back_the_throttle_alone() {
    for gate in GATES {
        let mut line = spent(gate);
        let _ask = assertion(&mut line);
        let _closed = timed(&mut line, 1050);
        let _masked = mask(&mut line, MaskReasons::OPERATOR);
        assert!(!resume(&mut line, 1059).changed);
        assert!(resume(&mut line, 1060).changed);
        assert_eq!(reasons(&line), MaskReasons::OPERATOR, "an operator's mask is his own");
        assert!(line.state().is_closed(S));
        assert!(!resume(&mut line, u64::MAX).changed, "once");
    }
}

#[test]
fn n6_one_storm_too_many_in_a_row_is_the_last() {
    for gate in GATES {
        let mut line = spent(gate);
        let _ask = assertion(&mut line);
        let _closed = timed(&mut line, 1001);
        if !resume(&mut line, 1011).sample.is_empty() {
            let _again = sample(&mut line, Sample::High);
        } else {
            let _again = assertion(&mut line);
        }
        let _nothing = notified(&mut line, A, Parity::Odd);
        if eoi(&mut line).sample.is_empty() {
            let _ask = assertion(&mut line);
        } else {
            let _ask = sample(&mut line, Sample::High);
        }
        let _closed = timed(&mut line, 1012);
        assert_eq!(reasons(&line), MaskReasons::QUARANTINE, "{gate}");
        assert!(!resume(&mut line, u64::MAX).changed, "for good");
        assert_eq!(line.take_storm(S).unwrap().outcome, Outcome::Quarantined);
        let _effects = unmask(&mut line, MaskReasons::QUARANTINE);
        assert_eq!(line.meter(S).unwrap().strikes, 0, "who lifts it forgives");
    }
}

#[test]
fn n6_a_clock_that_nobody_asked_is_nothing() {
    for gate in GATES {
        for mut line in [spent(gate), serving(gate), attached(gate)] {
            let before = line.clone();
            for now in [0, 1001, u64::MAX] {
                let effects = timed(&mut line, now);
                assert!(!effects.changed && effects.notify.is_empty());
                assert!(!resume(&mut line, now).changed);
            }
            assert_eq!(line.state(), before.state());
            assert_eq!(line.meter(S), before.meter(S));
        }
    }
}

#[test]
fn n6_a_loopback_is_not_counted() {
    let mut line = spent(Gate::RteMask);
    let before = line.meter(S).copied();
    assert_eq!(line.step(Event::Loopback { sharer: S }).notify, SharerSet::only(S));
    assert_eq!(line.meter(S).copied(), before);
}
