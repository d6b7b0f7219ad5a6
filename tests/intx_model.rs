//! The line against a reference model: random sequences of events for lines with several sources, and every
//! reachable state of a line with one.
//!
//! What is driven is the real thing, [`LineTable`] with its handlers, lines and slots; the board under it is scripted.
//! Other CPUs are played by leaving a delivery in flight, or a replacement unfinished, while other events happen.
#![cfg(not(loom))]
#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use std::collections::{HashSet, VecDeque};

use levelhead::intx::{
    Budget, Completion, Gate, LIE_LIMIT, LineFinding, MaskReasons, Notifier, Outcome, SourceId,
};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, proptest};
use proptest::prop_oneof;
use support::world::{Op, World, paced, suspicious, world};
use support::{Device, GSI, Lie, PINS, pin, vector};

const GATES: [Gate; 3] = [Gate::RteMask, Gate::DirectedEoi, Gate::Function];

fn ops(devices: usize) -> impl Strategy<Value = Op> {
    let device = 0..devices;
    let reasons = prop_oneof![
        Just(MaskReasons::OPERATOR),
        Just(MaskReasons::GUEST_DISINTX),
        Just(MaskReasons::RESET),
        Just(MaskReasons::POWER),
        Just(MaskReasons::THROTTLE),
    ];
    let target = prop_oneof![Just(Notifier::None), (0..PINS as u8).prop_map(pin)];
    let how = prop_oneof![
        3 => Just(Completion::Handover),
        1 => Just(Completion::Reset),
        1 => Just(Completion::Forced),
    ];
    let lie = prop_oneof![Just(Lie::None), Just(Lie::Deaf), Just(Lie::Mute), Just(Lie::Stuck)];
    prop_oneof![
        6 => (device.clone(), any::<bool>()).prop_map(|(d, a)| Op::Device(d, a)),
        8 => Just(Op::TakeVector),
        8 => Just(Op::Raise),
        6 => (0..PINS).prop_map(Op::GuestTake),
        6 => (0..PINS).prop_map(Op::GuestEoi),
        3 => (0..PINS, any::<bool>()).prop_map(|(p, m)| Op::VirtualRte(p, m)),
        1 => (device.clone(), 0..PINS as u8).prop_map(|(d, p)| Op::StaleEoi(d, p)),
        2 => (device.clone(), reasons.clone()).prop_map(|(d, r)| Op::Mask(d, r)),
        2 => (device.clone(), reasons).prop_map(|(d, r)| Op::Unmask(d, r)),
        2 => device.clone().prop_map(Op::Loopback),
        4 => (device.clone(), target, how).prop_map(|(d, t, h)| Op::Replace(d, t, h)),
        5 => Just(Op::Poll),
        2 => Just(Op::Tick),
        2 => device.clone().prop_map(Op::Resume),
        1 => (0..devices * 8).prop_map(move |d| if d < devices { Op::Vanish(d) } else { Op::Raise }),
        1 => (device, lie).prop_map(|(d, lie)| Op::Lies(d, lie)),
    ]
}

/// No budget, or one that a short history can exceed.
fn budgets() -> impl Strategy<Value = Option<Budget>> {
    let budget = (1..4_u32, 1..8_u64, 1..4_u64, 0..3_u32);
    proptest::option::of(budget.prop_map(|(limit, window, pause, retries)| Budget {
        limit,
        window,
        pause,
        retries,
    }))
}

/// A gate, a number of devices, their budget, how many disagreements are a lie, and what happens to them.
fn histories() -> impl Strategy<Value = (Gate, usize, Option<Budget>, u32, Vec<Op>)> {
    let patience = prop_oneof![Just(LIE_LIMIT), 1..5_u32];
    (0..GATES.len(), 1..4_usize, budgets(), patience).prop_flat_map(|(gate, devices, budget, patience)| {
        let ops = proptest::collection::vec(ops(devices), 1..80);
        (Just(GATES[gate]), Just(devices), Just(budget), Just(patience), ops)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// After every event of every history the line agrees with the reference, the gate with the reasons, the pins
    /// with the deliveries and the ledger with itself; and at the end nothing that is asserted is lost.
    #[test]
    fn i9_i13_i16_i17_n5_any_history_keeps_the_books_and_loses_nothing((gate, devices, budget, patience, history) in histories()) {
        suspicious(gate, devices, budget, patience, |world| {
            for &op in &history {
                world.apply(op);
                world.check();
            }
            let asserted: Vec<bool> = world.board.devices.iter().map(Device::asserts).collect();
            let served = world.quiesce();
            for (source, asserted) in asserted.into_iter().enumerate() {
                prop_assert!(!asserted || world.stopped || served[source] > 0, "the assertion of source {} is lost", source);
            }
            Ok(())
        })?;
    }
}

/// A guest that masks its RTE, sends the EOI, serves the device later and unmasks last, 1000 times; then one that sees
/// the device assert again just before the unmask.
#[test]
fn t6_i31_i38_a_guest_that_completes_by_unmasking_takes_no_second_host_interrupt() {
    for gate in GATES {
        world(gate, 1, |world| {
            world.bring(pin(0));
            let begin = [Op::Device(0, true), Op::TakeVector, Op::Raise];
            let serve = [Op::GuestTake(0), Op::VirtualRte(0, true), Op::GuestEoi(0), Op::Device(0, false)];
            for round in 1..=1000 {
                world.all(&begin);
                world.all(&serve);
                world.does(Op::VirtualRte(0, false));
                assert!(
                    !world.apply(Op::TakeVector) && !world.apply(Op::Raise) && !world.apply(Op::GuestTake(0))
                );
                assert_eq!((world.board.counts.sent, world.board.counts.taken[0]), (round, round), "{gate}");
            }
            world.all(&begin);
            world.all(&serve);
            world.all(&[Op::Device(0, true), Op::VirtualRte(0, false)]);
            assert_eq!(world.apply(Op::TakeVector), gate != Gate::Function, "or Status told");
            world.all(&[Op::Raise, Op::GuestTake(0)]);
            assert_eq!(world.board.counts.taken[0], 1002);
        });
    }
}

/// What one interrupt costs at the chips when nothing else happens.
#[test]
fn an_interrupt_costs_its_gate_closed_once_and_opened_once() {
    for gate in GATES {
        world(gate, 1, |world| {
            world.bring(pin(0));
            let before = world.board.counts.clone();
            world.all(&[Op::Device(0, true), Op::TakeVector, Op::Raise, Op::GuestTake(0)]);
            world.all(&[Op::Device(0, false), Op::GuestEoi(0)]);
            let after = &world.board.counts;
            let cost = [
                after.rte_writes - before.rte_writes,
                after.directed_eois - before.directed_eois,
                after.disintx_writes - before.disintx_writes,
                after.status_reads - before.status_reads,
            ];
            let expected = match gate {
                Gate::RteMask => [2, 0, 0, 0],
                Gate::DirectedEoi => [0, 1, 0, 0],
                Gate::Function => [0, 0, 2, 2],
            };
            assert_eq!(cost, expected, "{gate}");
        });
    }
}

/// The notifier is taken away while the device asserts, the loopback triggered, the source masked and unmasked, all without
/// a notifier; then it comes back.
#[test]
fn cve_2024_26812_loopback_and_unmask_without_a_notifier() {
    for gate in GATES {
        world(gate, 1, |world| {
            world.bring(pin(0));
            world.all(&[Op::Device(0, true), Op::TakeVector, Op::Raise, Op::GuestTake(0)]);
            world.bring(Notifier::None);
            let sent = world.board.counts.sent;
            world.all(&[
                Op::Loopback(0),
                Op::Mask(0, MaskReasons::OPERATOR),
                Op::Loopback(0),
                Op::Unmask(0, MaskReasons::OPERATOR),
                Op::Loopback(0),
                Op::GuestEoi(0),
            ]);
            assert!(!world.apply(Op::TakeVector) && !world.apply(Op::Raise));
            assert_eq!(world.board.counts.sent, sent, "a source without a notifier costs no host interrupt");
            world.bring(pin(0));
            assert_eq!(world.apply(Op::TakeVector), gate != Gate::Function, "or Status told");
            world.all(&[Op::Raise, Op::GuestTake(0)]);
            assert!(!world.apply(Op::TakeVector) && !world.apply(Op::Raise), "once and no more");
            let ledger = world.table.source_report(SourceId(0)).expect("assigned").account.ledger;
            assert_eq!((ledger.delivered, ledger.suppressed.loopback), (2, 3));
        });
    }
}

/// Breadth-first search: every state that any sequence of these events reaches, by replay from the start.
fn search(gate: Gate, budget: Option<Budget>, patience: u32, alphabet: &[Op]) -> usize {
    let mut seen: HashSet<u64> = HashSet::new();
    let mut frontier: VecDeque<Vec<Op>> = VecDeque::from([Vec::new()]);
    while let Some(path) = frontier.pop_front() {
        for &op in alphabet {
            suspicious(gate, 1, budget, patience, |world| {
                for &step in &path {
                    world.apply(step);
                }
                if !world.apply(op) {
                    return;
                }
                world.check();
                if seen.insert(world.fingerprint()) {
                    frontier.push_back(path.iter().copied().chain([op]).collect());
                    let asserted = world.board.devices[0].asserts();
                    let served = world.quiesce();
                    assert!(!asserted || served[0] > 0, "the assertion is lost after {path:?}, {op:?}");
                }
            });
        }
    }
    seen.len()
}

/// Two notifiers and none, both ways to end a delivery by force, one mask, and everything a device and a guest do.
fn alphabet() -> Vec<Op> {
    let mut alphabet = vec![
        Op::Device(0, true),
        Op::Device(0, false),
        Op::Vanish(0),
        Op::TakeVector,
        Op::Raise,
        Op::Mask(0, MaskReasons::OPERATOR),
        Op::Unmask(0, MaskReasons::OPERATOR),
        Op::Loopback(0),
        Op::Replace(0, Notifier::None, Completion::Handover),
        Op::Replace(0, pin(0), Completion::Reset),
        Op::Replace(0, pin(1), Completion::Handover),
        Op::Poll,
    ];
    for number in 0..PINS {
        alphabet.extend([
            Op::GuestTake(number),
            Op::GuestEoi(number),
            Op::VirtualRte(number, true),
            Op::VirtualRte(number, false),
            Op::StaleEoi(0, number as u8),
        ]);
    }
    alphabet
}

#[test]
fn i13_n5_every_reachable_state_of_one_source_behind_an_rte_mask() {
    println!("RTE mask: {} states", search(Gate::RteMask, None, LIE_LIMIT, &alphabet()));
}

#[test]
fn i13_n5_every_reachable_state_of_one_source_behind_a_directed_eoi() {
    println!("directed EOI: {} states", search(Gate::DirectedEoi, None, LIE_LIMIT, &alphabet()));
}

#[test]
fn i13_n5_every_reachable_state_of_one_source_behind_disintx() {
    println!("DisINTx: {} states", search(Gate::Function, None, LIE_LIMIT, &alphabet()));
}

/// With a budget of two in three ticks: storms, pauses, readmission and quarantine against everything a device and a
/// guest do, the notifier taken away, and an operator who lifts what the budget imposed.
#[test]
fn n6_every_reachable_state_of_one_source_with_a_storm_budget() {
    let budget = Budget { limit: 2, window: 3, pause: 2, retries: 1 };
    let alphabet = [
        Op::Device(0, true),
        Op::Device(0, false),
        Op::TakeVector,
        Op::Raise,
        Op::GuestTake(0),
        Op::GuestEoi(0),
        Op::Replace(0, Notifier::None, Completion::Handover),
        Op::Replace(0, pin(0), Completion::Forced),
        Op::Poll,
        Op::Tick,
        Op::Resume(0),
        Op::Unmask(0, MaskReasons::THROTTLE.union(MaskReasons::QUARANTINE)),
    ];
    for gate in GATES {
        println!("{gate}: {} states with a storm budget", search(gate, Some(budget), LIE_LIMIT, &alphabet));
    }
}

/// With a patience of two: every lie, begun and given up at any time, against everything a device and a guest do, an operator's
/// mask, and the notifier taken away.
#[test]
fn n13_n14_every_reachable_state_of_one_source_that_lies() {
    let alphabet = [
        Op::Device(0, true),
        Op::Device(0, false),
        Op::Lies(0, Lie::None),
        Op::Lies(0, Lie::Deaf),
        Op::Lies(0, Lie::Mute),
        Op::Lies(0, Lie::Stuck),
        Op::TakeVector,
        Op::Raise,
        Op::GuestTake(0),
        Op::GuestEoi(0),
        Op::Mask(0, MaskReasons::OPERATOR),
        Op::Unmask(0, MaskReasons::OPERATOR),
        Op::Replace(0, Notifier::None, Completion::Handover),
        Op::Replace(0, pin(0), Completion::Forced),
        Op::Poll,
    ];
    println!("{} states with lies", search(Gate::Function, None, 2, &alphabet));
}

/// Serves pin 0 until nothing comes any more, with device 0 asserted all the time. How often it was served.
fn serve(world: &mut World<'_>) -> u64 {
    world.apply(Op::Device(0, true));
    let before = world.board.counts.taken[0];
    loop {
        let came = world.apply(Op::TakeVector);
        while world.apply(Op::Raise) {}
        if world.apply(Op::GuestTake(0)) {
            world.does(Op::GuestEoi(0));
        } else if !came {
            return world.board.counts.taken[0] - before;
        }
    }
}

/// A device that is never satisfied: throttled, admitted again when its pause is over and not before, quarantined in the
/// end, and each storm recorded with its size.
#[test]
fn n6_a_storm_is_throttled_readmitted_and_quarantined() {
    let budget = Budget { limit: 10, window: 1000, pause: 50, retries: 2 };
    for gate in GATES {
        paced(gate, 1, Some(budget), |world| {
            world.bring(pin(0));
            for strike in 1..=3 {
                // What is left of a window that began long ago comes on top of the first.
                let passes = if strike == 1 { 20 } else { 10 };
                assert_eq!(serve(world), passes, "{gate}: strike {strike}");
                let report = world.table.source_report(SourceId(0)).expect("assigned");
                let storm = report.meter.and_then(|meter| meter.storm).expect("to be recorded");
                let (outcome, reason) = match strike {
                    3 => (Outcome::Quarantined, MaskReasons::QUARANTINE),
                    _ => (Outcome::Throttled, MaskReasons::THROTTLE),
                };
                assert_eq!((storm.interrupts, storm.strikes, storm.outcome), (11, strike, outcome));
                for _ in 0..50 {
                    let report = world.table.source_report(SourceId(0)).expect("assigned");
                    assert_eq!(report.state.reasons, reason, "{gate}: strike {strike}");
                    world.all(&[Op::Resume(0), Op::Tick]);
                }
                world.does(Op::Resume(0));
            }
            let report = world.table.source_report(SourceId(0)).expect("assigned");
            assert_eq!(report.state.reasons, MaskReasons::QUARANTINE, "{gate}: for good");
        });
    }
}

/// Two devices on a line, one of which storms. Behind gates of their own the other is served as before; a gate of the line
/// closes for both, and opens for both.
#[test]
fn n6_i8_a_throttled_source_takes_its_neighbour_along_at_a_gate_of_the_line_only() {
    let budget = Budget { limit: 10, window: 1000, pause: 50, retries: 2 };
    for gate in GATES {
        paced(gate, 2, Some(budget), |world| {
            world.all(&[Op::Replace(0, pin(0), Completion::Handover), Op::Poll]);
            world.all(&[Op::Replace(1, pin(1), Completion::Handover), Op::Poll]);
            // At a gate of the line both are notified, since nobody can tell who it was.
            world.apply(Op::Device(0, true));
            for _ in 0..30 {
                world.apply(Op::TakeVector);
                while world.apply(Op::Raise) {}
                for number in 0..PINS {
                    if world.apply(Op::GuestTake(number)) {
                        world.does(Op::GuestEoi(number));
                    }
                }
            }
            world.apply(Op::Device(1, true));
            let heard =
                world.apply(Op::TakeVector) && world.apply(Op::Raise) && world.apply(Op::GuestTake(1));
            assert_eq!(heard, gate == Gate::Function, "{gate}");
            (0..50).for_each(|_| world.does(Op::Tick));
            world.all(&[Op::Resume(0), Op::Resume(1)]);
            let heard = heard || world.apply(Op::TakeVector);
            assert!(heard, "{gate}");
        });
    }
}

/// Takes vectors, and no deliveries are raised, until none comes any more. How many came.
fn host_interrupts(world: &mut World<'_>) -> u32 {
    let mut taken = 0;
    while world.apply(Op::TakeVector) {
        taken += 1;
        assert!(taken <= 2 * LIE_LIMIT, "it is never found out");
    }
    taken
}

/// What was found out about the line, which must be found once.
fn finding(world: &World<'_>) -> LineFinding {
    let (gsi, finding, _) = world.table.take_finding(vector()).expect("something was found out");
    assert_eq!((gsi, world.table.take_finding(vector())), (GSI, None));
    finding
}

/// Normal life behind an RTE mask: one host interrupt for each time the guest is served.
fn lives_on_at_the_line(world: &mut World<'_>) {
    world.check();
    for _ in 0..100 {
        let sent = world.board.counts.sent;
        world.all(&[Op::Device(0, true), Op::TakeVector, Op::Raise, Op::GuestTake(0)]);
        world.all(&[Op::Device(0, false), Op::GuestEoi(0)]);
        assert_eq!(world.board.counts.sent, sent + 1);
    }
}

/// A function that goes on asserting under DisINTx, alone on its line: found out within the stated number of interrupts, and
/// silenced by the line's entry from then on. The delivery it had is completed as if nothing had been.
#[test]
fn n14_a_function_that_disintx_does_not_silence_is_silenced_by_its_line() {
    world(Gate::Function, 1, |world| {
        world.does(Op::Lies(0, Lie::Deaf));
        world.bring(pin(0));
        world.apply(Op::Device(0, true));
        assert_eq!(host_interrupts(world), 1 + LIE_LIMIT);
        assert_eq!(finding(world), LineFinding::Demoted);
        let report = world.table.line_reports().next().expect("one line");
        assert_eq!((report.state.gate, report.unclaimed), (Gate::RteMask, LIE_LIMIT.into()));
        world.all(&[Op::Raise, Op::GuestTake(0), Op::Device(0, false), Op::GuestEoi(0)]);
        lives_on_at_the_line(world);
    });
}

/// A function whose INTx Status never shows that it asserts: its first interrupt does not pass the probation, and the line's
/// entry, which needs no Status, delivers it.
#[test]
fn n13_n14_a_function_whose_status_shows_nothing_is_heard_by_its_line() {
    world(Gate::Function, 1, |world| {
        world.does(Op::Lies(0, Lie::Mute));
        world.bring(pin(0));
        world.apply(Op::Device(0, true));
        for _ in 0..LIE_LIMIT {
            assert!(world.apply(Op::TakeVector), "it asserts");
            assert!(!world.apply(Op::Raise), "and nobody can tell");
        }
        assert_eq!(finding(world), LineFinding::Demoted);
        world.all(&[Op::TakeVector, Op::Raise, Op::GuestTake(0), Op::Device(0, false), Op::GuestEoi(0)]);
        lives_on_at_the_line(world);
    });
}

/// The same on a shared line, by a source or by somebody who is none: the line is stopped within the stated number of
/// interrupts, and every source is quarantined; the books balance.
#[test]
fn n14_a_liar_on_a_shared_line_stops_it() {
    for liar in 0..2 {
        for deaf in [true, false] {
            world(Gate::Function, 2, |world| {
                world.does(Op::Lies(liar, if deaf { Lie::Deaf } else { Lie::Mute }));
                world.all(&[Op::Replace(0, pin(0), Completion::Handover), Op::Poll]);
                world.all(&[Op::Replace(1, pin(1), Completion::Handover), Op::Poll]);
                world.apply(Op::Device(liar, true));
                assert_eq!(host_interrupts(world), LIE_LIMIT + u32::from(deaf));
                assert_eq!(finding(world), LineFinding::Stopped);
                assert!(world.board.chip.rte_masked);
                for source in 0..2 {
                    let report = world.table.source_report(SourceId(source)).expect("assigned");
                    assert!(report.state.reasons.contains(MaskReasons::QUARANTINE), "source {source}");
                    report.account.balance().expect("the books balance");
                }
            });
        }
    }
}

/// Interrupts that nobody claims are counted, and one that somebody claims in between begins the count anew.
#[test]
fn n14_an_assertion_that_is_withdrawn_is_counted_and_held_against_nobody() {
    world(Gate::Function, 2, |world| {
        world.all(&[Op::Replace(0, pin(0), Completion::Handover), Op::Poll]);
        world.all(&[Op::Replace(1, pin(1), Completion::Handover), Op::Poll]);
        for round in 1..=3 {
            for _ in 1..LIE_LIMIT {
                world.all(&[Op::Device(0, true), Op::Device(0, false), Op::TakeVector]);
            }
            let unclaimed = world.table.line_reports().next().expect("one line").unclaimed;
            assert_eq!(unclaimed, round * u64::from(LIE_LIMIT - 1));
            world.all(&[Op::Device(1, true), Op::TakeVector, Op::Raise, Op::GuestTake(1)]);
            world.all(&[Op::Device(1, false), Op::GuestEoi(1)]);
        }
        assert_eq!(world.table.take_finding(vector()), None);
    });
}

/// The guest of pin `number` serves what it gets, without quieting its device, until it gets no more. How often.
fn served(world: &mut World<'_>, number: usize) -> u32 {
    let mut rounds = 0;
    while world.apply(Op::TakeVector) || world.apply(Op::Raise) || world.apply(Op::GuestTake(number)) {
        if world.board.pins[number].remote_irr {
            world.does(Op::GuestEoi(number));
            rounds += 1;
            assert!(rounds <= 2 * LIE_LIMIT, "it is never found out");
        }
    }
    rounds
}

/// Two devices on one line, one pin each, the first with a Status that stays set and is doubted already.
fn beside_a_stuck_status(body: impl FnOnce(&mut World<'_>)) {
    world(Gate::Function, 2, |world| {
        world.does(Op::Lies(0, Lie::Stuck));
        for source in 0..2 {
            world.all(&[Op::Replace(source, pin(source as u8), Completion::Handover), Op::Poll]);
        }
        assert_eq!(served(world, 0), LIE_LIMIT);
        assert!(matches!(finding(world), LineFinding::Doubted(_)));
        body(world);
    });
}

/// A function whose INTx Status stays set although it does not assert: its guest is served a stated number of times for
/// nothing, without a host interrupt. From then on the wire tells, and every assertion is delivered once; until Status is seen
/// clear, and the function is believed again.
#[test]
fn n14_a_status_that_stays_set_is_believed_a_stated_number_of_times() {
    world(Gate::Function, 1, |world| {
        world.does(Op::Lies(0, Lie::Stuck));
        world.bring(pin(0));
        assert_eq!(served(world, 0), LIE_LIMIT);
        assert_eq!(world.board.counts.sent, 0);
        assert!(matches!(finding(world), LineFinding::Doubted(_)));
        for round in 1..=100 {
            world.all(&[Op::Device(0, true), Op::TakeVector, Op::Raise, Op::GuestTake(0)]);
            world.all(&[Op::Device(0, false), Op::GuestEoi(0)]);
            assert!(!world.apply(Op::TakeVector) && !world.apply(Op::Raise));
            assert_eq!((world.board.counts.sent, world.board.counts.taken[0]), (round, 1000 + round));
        }
        world.all(&[Op::Lies(0, Lie::None), Op::Device(0, true), Op::TakeVector, Op::Raise]);
        world.all(&[Op::GuestTake(0), Op::Device(0, false), Op::GuestEoi(0)]);
        let sent = world.board.counts.sent;
        world.all(&[Op::Mask(0, MaskReasons::OPERATOR), Op::Device(0, true)]);
        world.all(&[Op::Unmask(0, MaskReasons::OPERATOR), Op::Raise, Op::GuestTake(0)]);
        assert_eq!(world.board.counts.sent, sent, "it was seen clear, and is believed");
        world.all(&[Op::Lies(0, Lie::Stuck), Op::Device(0, false), Op::GuestEoi(0)]);
        assert_eq!(served(world, 0), LIE_LIMIT - 1, "and is doubted as it was the first time");
        assert_eq!(world.table.take_finding(vector()), None, "which has been told");
    });
}

/// A device whose guest never quiets it looks the same, and costs one host interrupt for each time it is served at most.
#[test]
fn n14_a_device_that_is_never_quieted_is_heard_by_its_wire() {
    world(Gate::Function, 1, |world| {
        world.bring(pin(0));
        world.all(&[Op::Device(0, true), Op::TakeVector, Op::Raise, Op::GuestTake(0), Op::GuestEoi(0)]);
        for _ in 0..LIE_LIMIT {
            world.all(&[Op::Raise, Op::GuestTake(0), Op::GuestEoi(0)]);
        }
        assert_eq!(world.board.counts.sent, 2, "the first, and the first that its Status is not believed");
        for round in 0..100 {
            world.all(&[Op::TakeVector, Op::Raise, Op::GuestTake(0), Op::GuestEoi(0)]);
            assert_eq!(world.board.counts.sent, 3 + round);
        }
    });
}

/// Beside a function whose Status stays set a neighbour is served as beside an honest one, at the same cost, and its interrupts
/// are nobody else's. Both asserting at once are both heard.
#[test]
fn n14_i8_a_status_that_stays_set_claims_nothing_of_its_neighbours() {
    beside_a_stuck_status(|world| {
        let before = world.board.counts.clone();
        for _ in 0..100 {
            world.all(&[Op::Device(1, true), Op::TakeVector, Op::Raise, Op::GuestTake(1)]);
            world.all(&[Op::Device(1, false), Op::GuestEoi(1)]);
            assert!(!world.apply(Op::TakeVector) && !world.apply(Op::Raise));
        }
        let after = world.board.counts.clone();
        assert_eq!(after.taken, [before.taken[0], before.taken[1] + 100]);
        let cost = (after.sent - before.sent, after.status_reads - before.status_reads);
        assert_eq!(cost, (100, 200), "its own Status, at the vector and at the EOI");
        assert_eq!(after.disintx_writes - before.disintx_writes, 200);
        for _ in 0..100 {
            world.all(&[Op::Device(0, true), Op::Device(1, true), Op::TakeVector, Op::TakeVector]);
            world.all(&[Op::Raise, Op::Raise, Op::GuestTake(0), Op::GuestTake(1)]);
            world.all(&[Op::Device(0, false), Op::Device(1, false), Op::GuestEoi(0), Op::GuestEoi(1)]);
            world.apply(Op::TakeVector);
            assert!(!world.apply(Op::Raise));
        }
        assert_eq!(world.board.counts.taken, [after.taken[0] + 100, after.taken[1] + 100]);
        assert_eq!(world.table.take_finding(vector()), None);
    });
}

/// Somebody else on the line who asserts without end is found out as fast beside a Status that stays set, although that one's
/// source claims an interrupt each time it is open.
#[test]
fn n14_a_status_that_stays_set_hides_no_other_liar() {
    beside_a_stuck_status(|world| {
        world.all(&[Op::Lies(1, Lie::Deaf), Op::Mask(1, MaskReasons::OPERATOR), Op::Device(1, true)]);
        let mut rounds = 0;
        while !world.stopped {
            // The chip sends again at once, before the guest is done.
            world.all(&[Op::TakeVector, Op::TakeVector]);
            world.all(&[Op::Raise, Op::GuestTake(0), Op::GuestEoi(0)]);
            rounds += 1;
            assert!(rounds <= LIE_LIMIT, "it is never found out");
        }
        assert_eq!((finding(world), rounds), (LineFinding::Stopped, LIE_LIMIT));
    });
}

/// A function that is gone is found by the interrupt of a neighbour, and named once.
#[test]
fn n15_a_function_that_vanished_is_quarantined_and_named() {
    world(Gate::Function, 2, |world| {
        world.all(&[Op::Replace(0, pin(0), Completion::Handover), Op::Poll]);
        world.all(&[Op::Replace(1, pin(1), Completion::Handover), Op::Poll]);
        world.all(&[Op::Vanish(0), Op::Device(1, true), Op::TakeVector, Op::Raise, Op::GuestTake(1)]);
        let found = world.table.take_finding(vector());
        assert!(matches!(found, Some((_, LineFinding::Vanished(_), Some(SourceId(0))))), "{found:?}");
        let reads = world.board.counts.status_reads;
        world.all(&[Op::Device(1, false), Op::GuestEoi(1)]);
        assert_eq!(world.board.counts.status_reads, reads + 1, "the one that is gone is left alone");
    });
}
