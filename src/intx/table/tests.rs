//! Looking things up, assigning and releasing, and the life of the permanent handler.

use super::*;
use crate::intx::{Actor, Budget, Delivery, MAX_SHARERS, Outcome, Sample, Service};

/// A board that takes everything and remembers what was last done to it.
#[derive(Debug, Default)]
struct Quiet {
    rte_masked: Option<bool>,
    lowered: Vec<(SourceId, Notifier)>,
    /// In which order.
    done: Vec<Done>,
    /// No pin was raised yet.
    pins_are_low: bool,
    clock: u64,
}

/// What is done to a gate, and what comes between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Close,
    Lower,
    Open,
}

impl LineIo for Quiet {
    fn mask_rte(&mut self, _: Gsi) {
        self.rte_masked = Some(true);
        self.done.push(Done::Close);
    }
    fn unmask_rte(&mut self, _: Gsi) {
        self.rte_masked = Some(false);
        self.done.push(Done::Open);
    }
    fn directed_eoi(&mut self, _: Gsi, _: Vector) {
        self.done.push(Done::Open);
    }
    fn set_disintx(&mut self, _: u16, set: bool) {
        self.done.push(if set { Done::Close } else { Done::Open });
    }
    fn intx_status(&mut self, _: u16) -> Sample {
        Sample::Low
    }
    fn lower_pin(&mut self, source: SourceId, target: Notifier) {
        self.lowered.push((source, target));
        self.done.push(Done::Lower);
    }
    fn holds_pin(&mut self, _: SourceId, _: Notifier) -> bool {
        !self.pins_are_low
    }
    fn virtual_rte_masked(&mut self, _: Notifier) -> bool {
        false
    }
    fn now(&mut self) -> u64 {
        self.clock
    }
    fn actor(&self) -> Actor {
        Actor::Guest(0)
    }
}

const GSI: Gsi = Gsi(21);

fn vector(raw: u8) -> Vector {
    Vector::new(raw).unwrap()
}

fn new_table() -> (LineTable, Control) {
    LineTable::new(Targets { partitions: 2, pins: 24, poll_counters: 1 })
}

const fn pin(partition: u8, vpin: u8) -> Notifier {
    Notifier::Pin { partition, vpin: Pin(vpin) }
}

fn owned_by(owner: u8) -> SourceInfo {
    SourceInfo { owner: Some(owner), bdf: 0x18 }
}

fn replace(table: &LineTable, control: Control, source: SourceId, new: Notifier, io: &mut Quiet) -> Control {
    let replacing = table.replace(control, source, new, Completion::Handover).unwrap();
    let mut deliveries = Deliveries::none();
    let replacement = replacing.poll(io, &mut deliveries).expect("nobody is in flight");
    assert!(deliveries.is_empty());
    replacement.control
}

/// An EOI from a pin, and what was waiting.
fn complete<'t>(
    table: &'t LineTable,
    source: SourceId,
    from: Notifier,
    io: &mut impl LineIo,
) -> Deliveries<'t> {
    let mut deliveries = Deliveries::none();
    table.complete(source, from, io, &mut deliveries);
    deliveries
}

/// What is to be delivered after `vector`, if a line has it.
fn asserted<'t>(table: &'t LineTable, vector: Vector, io: &mut impl LineIo) -> Option<Deliveries<'t>> {
    let mut deliveries = Deliveries::none();
    table.assert(vector, io, &mut deliveries).then_some(deliveries)
}

#[test]
fn i28_a_vector_finds_its_line_and_no_other_vector_does() {
    let (mut table, _) = new_table();
    let io = &mut Quiet::default();
    table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    table.assign(Gsi(22), vector(0x61), Gate::RteMask, owned_by(0), io).unwrap();
    for raw in 32..=u8::MAX {
        assert_eq!(asserted(&table, vector(raw), io).is_some(), raw == 0x51 || raw == 0x61);
    }
    let interrupts: Vec<_> = table.line_reports().map(|line| line.interrupts).collect();
    assert_eq!(interrupts, [1, 1]);
}

#[test]
fn i1_ten_thousand_replacements_under_fire_are_one_registration() {
    let (mut table, mut control) = new_table();
    let io = &mut Quiet::default();
    let source = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    for round in 0..10_000_u32 {
        let target = if round % 3 == 0 { Notifier::None } else { pin(0, (round % 24) as u8) };
        let replacing = table.replace(control, source, target, Completion::Handover).unwrap();
        // The device asserts in the middle of the replacement.
        let deliveries: Vec<Delivery<'_>> = asserted(&table, vector(0x51), io).unwrap().collect();
        assert!(deliveries.iter().all(|delivery| delivery.target() == target));
        drop(deliveries);
        control = replacing
            .poll(io, &mut Deliveries::none())
            .expect("nobody is in flight to the old notifier")
            .control;
    }
    let line = table.line_reports().next().unwrap();
    assert_eq!(line.registrations, Registrations { installed: 1, removed: 0 });
    assert_eq!(line.interrupts, 10_000);
    table.source_report(source).unwrap().account.balance().unwrap();
    replace(&table, control, source, Notifier::None, io);
    assert!(table.release(source, io));
    assert_eq!(
        table.line_reports().next().unwrap().registrations,
        Registrations { installed: 1, removed: 1 }
    );
    assert!(asserted(&table, vector(0x51), io).is_none());
}

/// An EOI that was under way since an older delivery meets the next one before its pin is raised: completed now, the pin would
/// stay high for ever. One that comes when the pin is high is the guest's answer, though the delivery has not left its slot yet.
#[test]
fn t8_i46_an_eoi_that_overtakes_its_delivery_completes_nothing() {
    let (mut table, control) = new_table();
    let io = &mut Quiet::default();
    let source = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    replace(&table, control, source, pin(0, 21), io);
    let mut deliveries = asserted(&table, vector(0x51), io).unwrap();
    let delivery = deliveries.next().unwrap();
    io.pins_are_low = true;
    assert!(complete(&table, source, pin(0, 21), io).is_empty());
    let report = table.source_report(source).unwrap();
    assert!(report.account.in_service && io.lowered.is_empty());
    assert_eq!((report.account.ledger.stale_eois, io.rte_masked), (1, Some(true)));
    io.pins_are_low = false;
    assert!(complete(&table, source, pin(0, 21), io).is_empty());
    drop(delivery);
    assert_eq!((io.lowered.as_slice(), io.rte_masked), ([(source, pin(0, 21))].as_slice(), Some(false)));
}

#[test]
fn i5_the_replacement_waits_for_the_delivery_in_flight_and_lowers_its_pin() {
    let (mut table, control) = new_table();
    let io = &mut Quiet::default();
    let source = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    let control = replace(&table, control, source, pin(0, 21), io);
    let mut deliveries = asserted(&table, vector(0x51), io).unwrap();
    let delivery = deliveries.next().unwrap();
    assert_eq!((delivery.source(), delivery.target()), (source, pin(0, 21)));
    let replacing = table.replace(control, source, pin(1, 5), Completion::Handover).unwrap();
    let replacing = replacing.poll(io, &mut Deliveries::none()).expect_err("the pin is not high yet");
    assert_eq!(io.lowered, []);
    drop(delivery);
    replacing.poll(io, &mut Deliveries::none()).expect("nobody is in flight");
    assert_eq!(io.lowered, [(source, pin(0, 21))]);
    assert_eq!(io.rte_masked, Some(false));
}

#[test]
fn deliveries_that_nobody_makes_hold_no_replacement_up() {
    let (mut table, control) = new_table();
    let io = &mut Quiet::default();
    let source = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    let control = replace(&table, control, source, pin(0, 21), io);
    drop(asserted(&table, vector(0x51), io).unwrap());
    replace(&table, control, source, pin(1, 5), io);
}

#[test]
fn i47_the_listeners_of_a_pin_follow_the_notifier() {
    let (mut table, control) = new_table();
    let io = &mut Quiet::default();
    let source = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    let other = table.assign(Gsi(22), vector(0x61), Gate::RteMask, owned_by(0), io).unwrap();
    let control = replace(&table, control, source, pin(0, 21), io);
    let control = replace(&table, control, other, pin(0, 21), io);
    assert!(table.listeners(0, Pin(21)).eq([source, other]));
    let replacing = table.replace(control, source, pin(1, 21), Completion::Handover).unwrap();
    assert!(table.listeners(0, Pin(21)).eq([source, other]), "until the grace period is over");
    assert!(table.listeners(1, Pin(21)).eq([source]));
    let control = replacing.poll(io, &mut Deliveries::none()).unwrap().control;
    assert!(table.listeners(0, Pin(21)).eq([other]));
    let control = replace(&table, control, source, pin(1, 21), io);
    assert!(table.listeners(1, Pin(21)).eq([source]), "replacing a pin by itself");
    let control = replace(&table, control, source, Notifier::Poll { counter: 0 }, io);
    assert_eq!(table.listeners(1, Pin(21)).next(), None);
    replace(&table, control, source, Notifier::None, io);
    for (partition, vpin) in [(2, 0), (0, 24), (1, 24), (u8::MAX, u8::MAX)] {
        assert_eq!(table.listeners(partition, Pin(vpin)).next(), None);
    }
}

#[test]
fn a_poll_counter_is_notified_and_completed_like_a_pin() {
    let (mut table, control) = new_table();
    let io = &mut Quiet::default();
    let source = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    let poll = Notifier::Poll { counter: 0 };
    replace(&table, control, source, poll, io);
    let targets: Vec<_> =
        asserted(&table, vector(0x51), io).unwrap().map(|delivery| delivery.target()).collect();
    assert_eq!(targets, [poll]);
    assert_eq!(io.rte_masked, Some(true));
    assert!(complete(&table, source, poll, io).is_empty());
    assert_eq!(io.rte_masked, Some(false));
}

#[test]
fn numbers_that_name_nothing_are_refused_or_do_nothing() {
    let (mut table, mut control) = new_table();
    let io = &mut Quiet::default();
    let source = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    for target in [pin(2, 0), pin(0, 24), pin(u8::MAX, u8::MAX), Notifier::Poll { counter: 1 }] {
        let (back, error) = table.replace(control, source, target, Completion::Handover).unwrap_err();
        assert_eq!(error, ReplaceError::NoSuchTarget);
        control = back;
    }
    for stranger in (1..=u8::MAX).map(SourceId) {
        let (back, error) = table.replace(control, stranger, pin(0, 0), Completion::Handover).unwrap_err();
        assert_eq!(error, ReplaceError::NoSuchSource);
        control = back;
        assert!(complete(&table, stranger, pin(0, 0), io).is_empty());
        assert!(table.loopback(stranger, io).is_empty());
        assert!(!table.mask(stranger, MaskReasons::OPERATOR, io));
        assert!(!table.unmask(stranger, MaskReasons::OPERATOR, io).0);
        assert!(table.virtual_rte(stranger, pin(0, 0), true, io).is_empty());
        assert!(table.source_report(stranger).is_none());
        assert!(!table.release(stranger, io));
    }
    assert!(table.sources().eq([source]));
}

#[test]
fn i12_a_refused_assignment_leaves_nothing_and_a_retry_succeeds() {
    let (mut table, _) = new_table();
    let io = &mut Quiet::default();
    let first = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    let mut refused = |gsi, raw, gate, owner| {
        let refused = table.assign(gsi, vector(raw), gate, owned_by(owner), io);
        assert!(table.sources().eq([first]) && table.line_reports().count() == 1);
        refused.unwrap_err()
    };
    let error = refused(Gsi(22), 0x51, Gate::RteMask, 0);
    assert_eq!(error, AssignError::VectorTaken { vector: vector(0x51), by: GSI });
    let latched = AssignError::Latched { gsi: GSI, vector: vector(0x51), gate: Gate::RteMask };
    assert_eq!(refused(GSI, 0x52, Gate::RteMask, 0), latched);
    assert_eq!(refused(GSI, 0x51, Gate::Function, 0), latched);
    assert_eq!(refused(GSI, 0x51, Gate::RteMask, 2), AssignError::NoSuchOwner(2));
    let error = refused(GSI, 0x51, Gate::RteMask, 1);
    assert_eq!(error, AssignError::NeedsFunctionGate { gsi: GSI, with: first });
    table.assign(Gsi(22), vector(0x61), Gate::RteMask, owned_by(1), io).unwrap();
}

#[test]
fn i36_function_gates_carry_several_partitions() {
    let (mut table, _) = new_table();
    let io = &mut Quiet::default();
    for place in 0..MAX_SHARERS as u8 {
        let source = table.assign(GSI, vector(0x51), Gate::Function, owned_by(place % 2), io).unwrap();
        assert_eq!(source, SourceId(place));
    }
    let full = table.assign(GSI, vector(0x51), Gate::Function, owned_by(0), io);
    assert_eq!(full, Err(AssignError::Full));
}

#[test]
fn i43_assigning_and_releasing_for_ever_consumes_nothing() {
    let (mut table, mut control) = new_table();
    let io = &mut Quiet::default();
    for round in 0..1000_u64 {
        let gate = if round % 2 == 0 { Gate::RteMask } else { Gate::Function };
        let source = table.assign(GSI, vector(0x51), gate, owned_by(0), io).unwrap();
        control = replace(&table, control, source, pin(0, 21), io);
        assert!(!table.release(source, io), "it still has a notifier");
        control = replace(&table, control, source, Notifier::None, io);
        assert!(table.release(source, io) && !table.release(source, io));
        let line = table.line_reports().next().unwrap();
        assert_eq!(line.registrations, Registrations { installed: round + 1, removed: round + 1 });
        assert!(line.state.rte_masked);
    }
    assert_eq!((table.line_reports().count(), table.sources().count()), (1, 0));
}

/// Whoever has the place next, on a line that is in use all the while: neither a mark that nobody took, nor what the recorder knew of
/// the last one.
#[test]
fn i43_i48_a_source_finds_nothing_of_the_one_before_it() {
    let (mut table, control) = new_table();
    let io = &mut Quiet::default();
    let first = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    let beside = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    let control = replace(&table, control, first, pin(0, 21), io);
    let control = replace(&table, control, beside, pin(0, 22), io);
    let removing = table.replace(control, first, Notifier::None, Completion::Handover).unwrap();
    assert_eq!(asserted(&table, vector(0x51), io).unwrap().count(), 1);
    let control = removing.poll(io, &mut Deliveries::none()).expect("nobody is in flight").control;
    assert!(table.source_report(first).unwrap().slot.marked && table.release(first, io));

    io.clock = 7;
    let next = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    assert_eq!(next, first);
    let mut history = History::NONE;
    assert!(table.tell_history(next, &mut history));
    let begun = history.since(MaskReasons::NO_NOTIFIER).map(|since| since.at);
    let moments: Vec<_> = history.moments().iter().map(|moment| (moment.at, moment.what)).collect();
    assert_eq!((begun, moments), (Some(7), vec![(7, Happening::Attached)]));
    let installing = table.replace(control, next, pin(0, 21), Completion::Handover).unwrap();
    assert!(!installing.poll(io, &mut Deliveries::none()).expect("nobody is in flight").marked);
    table.source_report(next).unwrap().account.balance().unwrap();
}

/// The next assertion cannot be taken for the last one, nor arrive before its gate is closed for good.
#[test]
fn i30_gates_close_before_a_pin_is_lowered_and_open_afterwards() {
    for gate in [Gate::RteMask, Gate::DirectedEoi, Gate::Function] {
        let (mut table, control) = new_table();
        let io = &mut Quiet::default();
        let source = table.assign(GSI, vector(0x51), gate, owned_by(0), io).unwrap();
        let control = replace(&table, control, source, pin(0, 21), io);
        table.loopback(source, io).for_each(drop);
        io.done.clear();
        assert!(complete(&table, source, pin(0, 21), io).is_empty());
        assert_eq!(io.done, [Done::Lower, Done::Open], "{gate}: completed");

        let _ = asserted(&table, vector(0x51), io);
        table.loopback(source, io).for_each(drop);
        io.done.clear();
        replace(&table, control, source, Notifier::None, io);
        let expected: &[_] = match gate {
            Gate::DirectedEoi => &[Done::Close, Done::Lower, Done::Open],
            Gate::RteMask | Gate::Function => &[Done::Lower],
        };
        assert_eq!(io.done, expected, "{gate}: its notifier is gone");
    }
}

#[test]
fn the_table_is_full_at_its_limit() {
    let (mut table, _) = new_table();
    let io = &mut Quiet::default();
    for number in 0..MAX_SOURCES {
        let line = (number / MAX_SHARERS) as u8;
        table.assign(Gsi(line.into()), vector(0x40 + line), Gate::RteMask, owned_by(0), io).unwrap();
    }
    let full = table.assign(Gsi(99), vector(0x99), Gate::RteMask, owned_by(0), io);
    assert_eq!(full, Err(AssignError::Full));
}

#[test]
fn n6_a_vector_finds_its_line_with_a_storm_budget_and_the_budget_counts() {
    let (mut table, control) = new_table();
    let io = &mut Quiet::default();
    let budget = Budget { limit: 1, window: 100, pause: 10, retries: 0 };
    let plain = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    let limited = table.assign(Gsi(22), vector(0x61), Gate::RteMask, owned_by(0), io).unwrap();
    assert!(table.limit(limited, budget) && !table.limit(SourceId(2), budget));
    let control = replace(&table, control, plain, pin(0, 1), io);
    let control = replace(&table, control, limited, pin(0, 2), io);
    for (source, raw, delivered) in [(plain, 0x51, 5), (limited, 0x61, 2)] {
        for _ in 0..5 {
            for delivery in asserted(&table, vector(raw), io).unwrap() {
                assert!(complete(&table, source, delivery.target(), io).is_empty());
            }
        }
        assert_eq!(table.source_report(source).unwrap().account.ledger.delivered, delivered);
    }
    let (storm, _) = table.resume(limited, 0, io);
    assert_eq!(storm.unwrap().outcome, Outcome::Quarantined);
    assert!(table.resume(plain, 0, io).0.is_none());
    // The last one released takes the vector with it, and the next one on the line has no budget.
    replace(&table, control, limited, Notifier::None, io);
    assert!(table.release(limited, io));
    assert!(asserted(&table, vector(0x61), io).is_none());
    table.assign(Gsi(22), vector(0x61), Gate::RteMask, owned_by(0), io).unwrap();
    assert!(asserted(&table, vector(0x61), io).is_some());
}

#[test]
fn a_poll_counter_is_notified_once_until_its_owner_says_that_it_is_done() {
    let (mut table, control) = new_table();
    let io = &mut Quiet::default();
    let source = table.assign(GSI, vector(0x51), Gate::RteMask, owned_by(0), io).unwrap();
    let counter = Notifier::Poll { counter: 0 };
    replace(&table, control, source, counter, io);
    for round in 1..=3 {
        assert_eq!(io.rte_masked, Some(false));
        let targets: Vec<_> =
            asserted(&table, vector(0x51), io).unwrap().map(|delivery| delivery.target()).collect();
        assert_eq!(targets, [counter]);
        assert_eq!(io.rte_masked, Some(true));
        // Nobody's EOI, and no other counter, is meant.
        for other in [pin(0, 21), Notifier::Poll { counter: 1 }, Notifier::None] {
            assert!(complete(&table, source, other, io).is_empty());
            assert!(table.complete_counter(source, other, io).is_empty());
        }
        assert_eq!(io.rte_masked, Some(true));
        assert!(table.complete_counter(source, counter, io).is_empty());
        let account = table.source_report(source).unwrap().account;
        account.balance().unwrap();
        assert_eq!((account.ledger.delivered, account.ledger.completed.eoi), (round, round));
    }
}

/// A line with two functions that hold it until they are acknowledged, and guests that may have their pins masked.
#[derive(Debug, Default)]
struct Wired {
    asserts: [bool; 2],
    dis_intx: [bool; 2],
    rte_masked: bool,
    virtual_masked: [bool; 2],
    lowered: u32,
}

impl Wired {
    const BDFS: [u16; 2] = [0x18, 0x20];

    fn index(bdf: u16) -> usize {
        Self::BDFS.iter().position(|known| *known == bdf).unwrap()
    }

    /// Whether the chip sends the line's vector.
    fn sends(&self) -> bool {
        !self.rte_masked && (0..2).any(|index| self.asserts[index] && !self.dis_intx[index])
    }
}

impl LineIo for Wired {
    fn mask_rte(&mut self, _: Gsi) {
        assert!(!core::mem::replace(&mut self.rte_masked, true), "closed twice");
    }
    fn unmask_rte(&mut self, _: Gsi) {
        assert!(core::mem::replace(&mut self.rte_masked, false), "opened twice");
    }
    fn directed_eoi(&mut self, _: Gsi, _: Vector) {}
    fn set_disintx(&mut self, bdf: u16, set: bool) {
        self.dis_intx[Self::index(bdf)] = set;
    }
    fn intx_status(&mut self, bdf: u16) -> Sample {
        if self.asserts[Self::index(bdf)] { Sample::High } else { Sample::Low }
    }
    fn lower_pin(&mut self, _: SourceId, _: Notifier) {
        self.lowered += 1;
    }
    fn holds_pin(&mut self, _: SourceId, _: Notifier) -> bool {
        true
    }
    fn virtual_rte_masked(&mut self, target: Notifier) -> bool {
        let Notifier::Pin { partition, .. } = target else { return true };
        self.virtual_masked[usize::from(partition)]
    }
    fn now(&mut self) -> u64 {
        0
    }
    fn actor(&self) -> Actor {
        Actor::Guest(0)
    }
}

/// What the chip sends is taken: how many deliveries each source got.
fn take_all(table: &LineTable, io: &mut Wired) -> [u32; 2] {
    let mut delivered = [0; 2];
    while io.sends() {
        let before = delivered;
        for delivery in asserted(table, vector(0x51), io).unwrap() {
            delivered[usize::from(delivery.source().0)] += 1;
        }
        assert!(delivered != before || !io.sends(), "a vector that silences nobody");
    }
    delivered
}

#[test]
fn i43_t11_a_thousand_deaths_in_service_leave_nothing_and_the_sharer_misses_nothing() {
    for shared in [false, true] {
        let gate = if shared { Gate::Function } else { Gate::RteMask };
        let (mut table, mut control) = new_table();
        let io = &mut Wired { rte_masked: true, ..Wired::default() };
        let sources = [0, 1].map(|owner| {
            (owner == 0 || shared).then(|| {
                let info = SourceInfo { owner: Some(owner), bdf: Wired::BDFS[usize::from(owner)] };
                table.assign(GSI, vector(0x51), gate, info, io).unwrap()
            })
        });
        let mortal = sources[0].unwrap();
        for (partition, source) in (0..).zip(sources).filter_map(|(n, source)| Some((n, source?))) {
            let replacing = table.replace(control, source, pin(partition, 5), Completion::Handover).unwrap();
            control = replacing.poll(io, &mut Deliveries::none()).expect("nobody is in flight").control;
        }
        io.asserts[0] = true;
        for life in 1..=1000 {
            // A new life unmasks its pin, and gets what is still asserted: once.
            io.virtual_masked[0] = false;
            let replayed = table.virtual_rte(mortal, pin(0, 5), false, io).count() as u32;
            let [taken, _] = take_all(&table, io);
            assert_eq!(replayed + taken, 1, "life {life}");
            // It masks its source and dies in service.
            table.mask(mortal, MaskReasons::OPERATOR | MaskReasons::GUEST_DISINTX, io);
            table.mask(mortal, MaskReasons::RESET, io);
            let replacing = table.replace(control, mortal, Notifier::None, Completion::Reset).unwrap();
            control = replacing.poll(io, &mut Deliveries::none()).expect("nobody is in flight").control;
            assert_eq!(io.lowered, life, "its pin is low");
            // The neighbour is served between two lives as ever.
            if let Some(neighbour) = sources[1] {
                io.asserts[1] = true;
                assert_eq!(take_all(&table, io), [0, 1], "life {life}");
                io.asserts[1] = false;
                assert!(complete(&table, neighbour, pin(1, 5), io).is_empty());
                io.lowered -= 1;
            }
            // Its next life has its pin masked, so nothing comes of an open source.
            io.virtual_masked[0] = true;
            let replacing = table.replace(control, mortal, pin(0, 5), Completion::Handover).unwrap();
            let mut deliveries = Deliveries::none();
            let replacement = replacing.poll(io, &mut deliveries).expect("nobody is in flight");
            assert!(deliveries.is_empty());
            control = replacement.control;
            let given = MaskReasons::OPERATOR | MaskReasons::GUEST_DISINTX | MaskReasons::RESET;
            assert!(table.unmask(mortal, given, io).1.is_empty());
            let report = table.source_report(mortal).unwrap();
            assert_eq!(report.state.reasons, MaskReasons::VIRTUAL_RTE_MASKED);
            report.account.balance().unwrap();
            assert_eq!(take_all(&table, io), [0, 0], "life {life}");
        }
        let account = table.source_report(mortal).unwrap().account;
        assert_eq!((account.ledger.delivered, account.ledger.completed.reset), (1000, 1000));
        let line = table.line_reports().next().unwrap();
        assert_eq!(line.registrations, Registrations { installed: 1, removed: 0 });
        if let Some(neighbour) = sources[1] {
            let account = table.source_report(neighbour).unwrap().account;
            account.balance().unwrap();
            assert_eq!((account.ledger.delivered, account.ledger.completed.eoi), (1000, 1000));
        }
    }
}

/// A source of partition 0 that asserts and moves to partition 1, in the order of the takeover: what reached the interrupt path at
/// which moment, and what each of the two got.
fn hand_over(gate: Gate, when: Moment) -> [u32; 2] {
    let (mut table, control) = new_table();
    let io = &mut Wired { rte_masked: true, ..Wired::default() };
    let info = SourceInfo { owner: None, bdf: Wired::BDFS[0] };
    let source = table.assign(GSI, vector(0x51), gate, info, io).unwrap();
    let replacing = table.replace(control, source, pin(0, 5), Completion::Handover).unwrap();
    let control = replacing.poll(io, &mut Deliveries::none()).expect("nobody is in flight").control;
    io.asserts[0] = true;
    assert!(io.sends());
    let mut got = [0; 2];
    let mut count = |delivery: &Delivery<'_>| match delivery.target() {
        Notifier::Pin { partition, .. } => got[usize::from(partition)] += 1,
        other => panic!("{other}"),
    };
    // The vector is accepted by a CPU that has not entered the handler; or it has, and has not raised the pin; or it has.
    let mut in_flight = None;
    match when {
        Moment::Accepted => {}
        Moment::InFlight => in_flight = asserted(&table, vector(0x51), io).unwrap().next(),
        Moment::InService => {
            asserted(&table, vector(0x51), io).unwrap().for_each(|delivery| count(&delivery))
        }
    }
    table.mask(source, MaskReasons::HANDOVER, io);
    assert!(!io.sends(), "silenced before anything else");
    let mut replacing = table.replace(control, source, pin(1, 7), Completion::Handover).unwrap();
    if when == Moment::Accepted {
        assert!(
            asserted(&table, vector(0x51), io).unwrap().next().is_none(),
            "the stale vector reaches nobody"
        );
    }
    if let Some(delivery) = in_flight {
        replacing = replacing.poll(io, &mut Deliveries::none()).expect_err("the pin is not high yet");
        assert_eq!(io.lowered, 0);
        count(&delivery);
    }
    let mut deliveries = Deliveries::none();
    replacing.poll(io, &mut deliveries).expect("nobody is in flight");
    assert!(deliveries.is_empty() && !io.sends());
    assert_eq!(io.lowered, u32::from(when != Moment::Accepted), "the old pin is low");
    let given = MaskReasons::OPERATOR | MaskReasons::RESET | MaskReasons::GUEST_DISINTX;
    assert!(table.unmask(source, given, io).1.is_empty() && !io.sends());
    let state = table.source_report(source).unwrap().state;
    assert_eq!((state.reasons, state.service), (MaskReasons::HANDOVER, Service::Idle));
    // Opened: the chip sends again, or Status is found set.
    table.unmask(source, MaskReasons::HANDOVER, io).1.for_each(|delivery| count(&delivery));
    while io.sends() {
        asserted(&table, vector(0x51), io).unwrap().for_each(|delivery| count(&delivery));
    }
    // The EOI of the old owner's guest comes late, and completes nothing.
    assert!(complete(&table, source, pin(0, 5), io).is_empty());
    assert_eq!(table.listeners(0, Pin(5)).count(), 0);
    assert!(matches!(table.source_report(source).unwrap().state.service, Service::InService(_)));
    io.asserts[0] = false;
    assert!(complete(&table, source, pin(1, 7), io).is_empty());
    let account = table.source_report(source).unwrap().account;
    account.balance().unwrap();
    assert_eq!(account.ledger.completed.handover, u64::from(when != Moment::Accepted));
    assert_eq!((account.ledger.completed.eoi, account.ledger.stale_eois), (1, 1));
    let line = table.line_reports().next().unwrap();
    assert_eq!(line.registrations, Registrations { installed: 1, removed: 0 });
    got
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Accepted,
    InFlight,
    InService,
}

#[test]
fn n8_t13_i48_whatever_is_under_way_a_function_that_moves_is_delivered_to_the_new_owner_once() {
    for gate in [Gate::RteMask, Gate::Function] {
        assert_eq!(hand_over(gate, Moment::Accepted), [0, 1], "{gate}");
        assert_eq!(hand_over(gate, Moment::InFlight), [1, 1], "{gate}");
        assert_eq!(hand_over(gate, Moment::InService), [1, 1], "{gate}");
    }
}

#[test]
fn i36_a_function_that_may_move_shares_no_gate_of_a_line() {
    let (mut table, _) = new_table();
    let io = &mut Wired { rte_masked: true, ..Wired::default() };
    let moves = |index: usize| SourceInfo { owner: None, bdf: Wired::BDFS[index] };
    let first = table.assign(GSI, vector(0x51), Gate::RteMask, moves(0), io).unwrap();
    let refused = Err(AssignError::NeedsFunctionGate { gsi: GSI, with: first });
    assert_eq!(table.assign(GSI, vector(0x51), Gate::RteMask, moves(1), io), refused);
    let stays = SourceInfo { owner: Some(0), bdf: Wired::BDFS[1] };
    assert_eq!(table.assign(GSI, vector(0x51), Gate::RteMask, stays, io), refused);
}
