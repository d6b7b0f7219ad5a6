//! Each step of an assignment is made to fail, and what is left is looked at.

use super::*;
use crate::intx::{MAX_SHARERS, MAX_SOURCES, Targets};
use crate::pci::fake::{FakeFunction, Machine, bdf};
use std::collections::BTreeMap;

const GSI: Gsi = Gsi(21);
/// Bit 10 of Command.
const DISINTX: u16 = 1 << 10;

fn vector(raw: u8) -> Vector {
    Vector::new(raw).unwrap()
}

fn at(gsi: Gsi, raw: u8, gate: Gate, owner: u8) -> Place {
    let polarity = Polarity::ActiveLow;
    Place { gsi, polarity, vector: vector(raw), destination: 0, gate, owner: Some(owner), budget: None }
}

/// Redirection table entries, as they were programmed.
#[derive(Default)]
struct Entries(BTreeMap<u32, Rte>);

impl Chips for Entries {
    fn program(&mut self, gsi: Gsi, rte: Rte) {
        self.0.insert(gsi.0, rte);
    }

    fn set_mask(&mut self, gsi: Gsi, masked: bool) {
        let rte = self.0.get_mut(&gsi.0).expect("an entry is programmed before it is opened");
        *rte = rte.with_mask(masked);
    }
}

/// A machine with two functions, and nothing assigned.
struct World {
    space: Machine,
    chips: Entries,
    table: LineTable,
    silencers: Vec<Option<DisIntx>>,
}

/// What an assignment may change beside the function itself.
#[derive(Debug, PartialEq, Eq)]
struct State {
    sources: Vec<SourceId>,
    /// Lines with how often their handler was installed.
    handlers: Vec<(Gsi, u64)>,
    /// Functions whose Command register has a writer.
    writers: usize,
    /// Entries that are not masked.
    open: Vec<u32>,
}

const FIRST: &str = "00:03.0";
const SECOND: &str = "00:03.1";

impl World {
    fn new(silencers: usize) -> Self {
        let space = Machine::with([(FIRST, FakeFunction::edu()), (SECOND, FakeFunction::edu())]);
        let (table, _) = LineTable::new(Targets { partitions: 2, pins: 24, poll_counters: 0 });
        Self { space, chips: Entries::default(), table, silencers: (0..silencers).map(|_| None).collect() }
    }

    fn function(&self, name: &str) -> Function {
        Function::read(&self.space, bdf(name)).unwrap()
    }

    fn assign(&mut self, name: &str, place: &Place) -> Result<SourceId, Fault> {
        let function = self.function(name);
        self.assign_found(&function, place)
    }

    fn assign_found(&mut self, function: &Function, place: &Place) -> Result<SourceId, Fault> {
        let silencer = silence(&self.space, function)?;
        let Self { space, chips, table, silencers } = self;
        install(table, silencers, silencer, space, chips, place, 7)
    }

    fn disintx(&self, name: &str) -> bool {
        self.space.peek16(bdf(name), 4) & DISINTX != 0
    }

    fn state(&self) -> State {
        let handlers = self.table.line_reports().map(|line| (line.gsi, line.registrations.installed));
        let open = self.chips.0.iter().filter(|(_, rte)| !rte.is_masked()).map(|(gsi, _)| *gsi);
        State {
            sources: self.table.sources().collect(),
            handlers: handlers.filter(|(_, installed)| *installed > 0).collect(),
            writers: self.silencers.iter().flatten().count(),
            open: open.collect(),
        }
    }
}

#[test]
fn i2_i14_a_function_comes_silent_to_a_masked_line_with_a_handler() {
    for (gate, drives, open) in [(Gate::RteMask, true, false), (Gate::Function, false, true)] {
        let mut world = World::new(2);
        let source = world.assign(FIRST, &at(GSI, 0x51, gate, 0)).unwrap();
        assert_eq!(world.state().handlers, [(GSI, 1)]);
        assert_eq!((world.disintx(FIRST), world.state().open == [GSI.0]), (!drives, open));
        let rte = world.chips.0[&GSI.0];
        assert_eq!(
            (rte.vector(), rte.trigger(), rte.polarity()),
            (Some(vector(0x51)), TriggerMode::Level, Polarity::ActiveLow)
        );
        // The second one finds the entry as its sharer has it.
        world.chips.0.insert(GSI.0, rte.with_destination(9));
        assert_ne!(world.assign(SECOND, &at(GSI, 0x51, gate, 0)), Ok(source));
        assert_eq!(world.chips.0[&GSI.0].destination(), 9);
        assert_eq!(world.state().handlers, [(GSI, 1)], "one registration for both");
    }
}

/// Firmware may leave a function with messages on and as a bus master: neither reaches the guest, and with messages on it would drive
/// no INTx (PCI 3.0 6.8.3.3).
#[test]
fn i2_a_function_comes_without_messages_and_bus_mastering_and_with_its_budget() {
    for gate in [Gate::RteMask, Gate::Function] {
        let mut world = World::new(1);
        let leaves = FakeFunction::edu().command(0x0007).bytes(0x42, &[0x81]).writable(0x42, &[0x01]);
        world.space.insert(bdf(FIRST), leaves);
        let budget = Budget { limit: 3, window: 10, pause: 5, retries: 2 };
        let place = Place { budget: Some(budget), ..at(GSI, 0x51, gate, 0) };
        let source = world.assign(FIRST, &place).unwrap();
        let command = world.space.peek16(bdf(FIRST), 4);
        assert_eq!((command & 0x7, world.space.peek16(bdf(FIRST), 0x42) & 1), (0x2, 0), "{command:#x}");
        assert_eq!(world.table.source_report(source).unwrap().meter.map(|meter| meter.budget), Some(budget));
    }
}

#[test]
fn i12_i27_every_step_that_fails_leaves_a_silent_function_and_nothing_else_and_may_be_tried_again() {
    let second = |gate| at(GSI, 0x51, gate, 0);
    let line = Fault::Line;
    let latched = |gate| AssignError::Latched { gsi: GSI, vector: vector(0x51), gate };
    let first = SourceId(0);
    // What the first one got, what the second one asks for, and why it does not get it.
    let cases = [
        (
            second(Gate::RteMask),
            at(Gsi(22), 0x51, Gate::RteMask, 0),
            line(AssignError::VectorTaken { vector: vector(0x51), by: GSI }),
        ),
        (second(Gate::RteMask), at(GSI, 0x52, Gate::RteMask, 0), line(latched(Gate::RteMask))),
        (second(Gate::RteMask), second(Gate::Function), line(latched(Gate::RteMask))),
        (second(Gate::Function), second(Gate::RteMask), line(latched(Gate::Function))),
        (
            second(Gate::RteMask),
            at(GSI, 0x51, Gate::RteMask, 1),
            line(AssignError::NeedsFunctionGate { gsi: GSI, with: first }),
        ),
        (second(Gate::RteMask), at(Gsi(22), 0x61, Gate::RteMask, 2), line(AssignError::NoSuchOwner(2))),
    ];
    for (got, wanted, fault) in cases {
        let mut world = World::new(2);
        assert_eq!(world.assign(FIRST, &got), Ok(first));
        let before = world.state();
        for attempt in 0..3 {
            assert_eq!(world.assign(SECOND, &wanted), Err(fault), "attempt {attempt}");
            assert_eq!(world.state(), before, "{fault}");
            assert!(world.disintx(SECOND), "{fault}: it may assert");
        }
        assert_eq!(world.assign(SECOND, &got), Ok(SourceId(1)), "after {fault}");
        assert_eq!(world.state().writers, 2);
    }
}

#[test]
fn i12_i27_no_room_and_nobody_there_leave_nothing_either() {
    // Nobody to write Command.
    let mut world = World::new(1);
    world.assign(FIRST, &at(GSI, 0x51, Gate::RteMask, 0)).unwrap();
    let before = world.state();
    assert_eq!(world.assign(SECOND, &at(Gsi(22), 0x61, Gate::RteMask, 0)), Err(Fault::Full));
    assert_eq!(world.state(), before);
    assert!(world.disintx(SECOND) && !world.chips.0.contains_key(&22), "the line was not even looked at");
    world.silencers.push(None);
    assert!(world.assign(SECOND, &at(Gsi(22), 0x61, Gate::RteMask, 0)).is_ok());

    // It is gone between the moment it was found and this one.
    let mut world = World::new(2);
    let found = world.function(FIRST);
    world.space.remove(bdf(FIRST));
    let before = world.state();
    assert_eq!(world.assign_found(&found, &at(GSI, 0x51, Gate::RteMask, 0)), Err(Fault::Absent));
    assert_eq!(world.state(), before);
    world.space.insert(bdf(FIRST), FakeFunction::edu());
    assert!(world.assign_found(&found, &at(GSI, 0x51, Gate::RteMask, 0)).is_ok());

    // A line, and the table, that are full.
    let mut world = World::new(MAX_SOURCES + 1);
    let place = |number: usize| {
        at(Gsi((number / MAX_SHARERS) as u32), 0x40 + (number / MAX_SHARERS) as u8, Gate::RteMask, 0)
    };
    for number in 0..MAX_SHARERS {
        assert!(world.assign(FIRST, &place(number)).is_ok());
    }
    let before = world.state();
    assert_eq!(world.assign(SECOND, &place(0)), Err(Fault::Line(AssignError::Full)));
    assert_eq!(world.state(), before);
    for number in MAX_SHARERS..MAX_SOURCES {
        assert!(world.assign(FIRST, &place(number)).is_ok());
    }
    let before = world.state();
    assert_eq!(world.assign(SECOND, &place(MAX_SOURCES)), Err(Fault::Line(AssignError::Full)));
    assert_eq!(world.state(), before, "the entry that was programmed is masked");
    assert!(world.disintx(SECOND));
}
