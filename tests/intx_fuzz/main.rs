//! Sequences over several sources, partitions and CPUs, at random: every event of the contract, in any order, against the real
//! line table, slots, virtual chips, ownership and queue of replacers, on a scripted board.
//!
//! A CPU is a list of what it has yet to do, one hold of a lock at a time, and the script chooses whose turn it is. So a delivery
//! waits between handler and virtual pin, an EOI between the local APIC and the line, and a replacement, a takeover or the end of a
//! guest between any two of their stages, while everybody else goes on.
//!
//! A history that fails is made as short as it can be (`proptest`), and said with the command that repeats it.
#![cfg(not(loom))]
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    reason = "a test fails by panicking"
)]

mod board;
mod machine;
#[path = "../support/rounds.rs"]
mod rounds;
mod rules;

use levelhead::intx::{Budget, Gate, LIE_LIMIT};
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use board::Lie;
use machine::{LEVEL, MASKED, Op, Setup, Target, machine};

fn setups() -> impl Strategy<Value = Setup> {
    let gate = prop_oneof![Just(Gate::Function), Just(Gate::RteMask), Just(Gate::DirectedEoi)];
    let budget = (1..4_u32, 1..8_u64, 1..4_u64, 0..3_u32)
        .prop_map(|(limit, window, pause, retries)| Budget { limit, window, pause, retries });
    let patience = prop_oneof![3 => Just(LIE_LIMIT), 1 => 2..6_u32];
    let sources = proptest::collection::vec((any::<u8>(), any::<u8>(), any::<u8>(), any::<bool>()), 1..5);
    let budget = prop_oneof![3 => Just(None), 1 => budget.prop_map(Some)];
    let counts = (1..4_usize, 1..5_usize, 1..3_usize);
    (counts, gate, budget, patience, sources).prop_map(|(counts, gate, budget, patience, sources)| {
        let (partitions, cpus, lines) = counts;
        let source = |(line, owner, pin, movable): (u8, u8, u8, bool)| {
            (usize::from(line) % lines, usize::from(owner) % partitions, pin, movable)
        };
        let sources = sources.into_iter().map(source).collect();
        Setup { partitions, cpus: cpus.max(partitions), lines, sources, gate, budget, patience }
    })
}

/// What happens, as often as it makes a history go somewhere.
fn ops() -> impl Strategy<Value = Op> {
    let n = 0..12_u8;
    let (two, flag) = ((n.clone(), n.clone()), any::<bool>());
    let lie = prop_oneof![
        3 => Just(Lie::None),
        1 => Just(Lie::Deaf),
        1 => Just(Lie::Mute),
        2 => Just(Lie::Stuck),
    ];
    let target = prop_oneof![
        1 => Just(Target::None),
        1 => Just(Target::Counter),
        4 => n.clone().prop_map(Target::Pin),
    ];
    let flags = prop_oneof![
        8 => Just(LEVEL),
        3 => Just(LEVEL | MASKED),
        2 => Just(0),
        1 => Just(MASKED),
        1 => Just(LEVEL | 1 << 8),
        1 => Just(4 << 8),
    ];
    let of_line = prop_oneof![
        20 => (n.clone(), flag).prop_map(|(d, a)| Op::Device(d, a)),
        1 => (n.clone(), lie).prop_map(|(d, lie)| Op::Lies(d, lie)),
        30 => two.clone().prop_map(|(c, l)| Op::Take(c, l)),
        3 => two.clone().prop_map(|(l, c)| Op::Aim(l, c)),
        40 => n.clone().prop_map(Op::Step),
        8 => n.clone().prop_map(Op::Run),
        4 => Just(Op::Tick),
    ];
    let of_guest = prop_oneof![
        20 => (n.clone(), any::<bool>()).prop_map(|(c, t)| Op::Enter(c, t)),
        8 => n.clone().prop_map(Op::Quiet),
        16 => n.clone().prop_map(Op::Eoi),
        12 => (two.clone(), n.clone(), flags).prop_map(|((c, p), v, f)| Op::Rte(c, p, v, f)),
        3 => (two.clone(), 0..3_u8).prop_map(|((c, p), d)| Op::Destination(c, p, d)),
        2 => two.clone().prop_map(|(c, v)| Op::EoiRegister(c, v)),
        2 => two.clone().prop_map(|(c, p)| Op::Priority(c, p)),
        1 => (n.clone(), any::<bool>()).prop_map(|(c, s)| Op::SuppressesBroadcasts(c, s)),
        4 => (two.clone(), any::<bool>()).prop_map(|((c, s), d)| Op::DisIntx(c, s, d)),
    ];
    let of_control = prop_oneof![
        3 => two.clone().prop_map(|(c, s)| Op::Mask(c, s)),
        5 => two.clone().prop_map(|(c, s)| Op::Unmask(c, s)),
        3 => two.clone().prop_map(|(c, s)| Op::Trigger(c, s)),
        6 => (two.clone(), target).prop_map(|((c, s), t)| Op::Replace(c, s, t)),
        4 => two.clone().prop_map(|(c, s)| Op::Force(c, s)),
        6 => two.clone().prop_map(|(c, s)| Op::TakeOver(c, s)),
        3 => n.clone().prop_map(Op::End),
        6 => n.clone().prop_map(Op::Begin),
        4 => two.prop_map(|(c, s)| Op::Resume(c, s)),
    ];
    let vanishes = n.prop_map(Op::Vanish);
    prop_oneof![400 => of_line, 240 => of_guest, 110 => of_control, 1 => vanishes]
}

/// One round: a machine, and a history of up to some hundred acts.
fn round(seed: u64) {
    let config =
        Config { cases: 1, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let histories = (setups(), proptest::collection::vec(ops(), 1..250));
    let result = TestRunner::new_with_rng(config, rng).run(&histories, |(setup, history)| {
        machine(&setup, |machine| {
            history.iter().for_each(|op| machine.act(*op));
            machine.come_to_rest();
            machine.lives_on();
        });
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// After every step of every history: reasons, gates, pins and books agree, no function in reset or asleep is touched, nothing
/// that is asserted and open is forgotten, no act changes a source that it is not about. Then everybody comes to rest: no wait is
/// for ever, and the last assertion of each device has been served. Then normal life: one host interrupt and one delivery for each
/// assertion, to its owner alone.
#[test]
fn any_order_of_events_on_any_cpus_loses_and_doubles_nothing() {
    rounds::fuzz(3000, round);
}
