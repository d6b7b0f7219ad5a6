//! The machine: CPUs that step through what the run loop does, one hold of a lock after the other, in any order among each
//! other; guests that do as they like; and what must hold after every single step.

use std::collections::VecDeque;

use levelhead::intx::{
    Budget, Completion, Control, Deliveries, Delivery, Gate, LineTable, MaskReasons, Notifier, Replacing,
    Service, Sharer, SourceId, SourceInfo, SourceReport, Targets, Turn, Turns,
};
use levelhead::ioapic::{MMIO_DATA, MMIO_EOI, MMIO_INDEX, REG_RTE_BASE};
use levelhead::irq::Pin;
use levelhead::ownership::{Claim, Ownership, Refused};
use levelhead::virq::{Exited, Interruptibility, LapicModel, Outcome, PinSet, Vcpu, VirtualChips};

use crate::board::{Board, Device, Lie, Line, contributor, gsi, vector};

/// The virtual pins of each partition that devices use, and as many vectors for them.
pub(crate) const PINS: u8 = 2;
const FIRST_PIN: u8 = 4;
const FIRST_VECTOR: u8 = 0x50;
/// Registers of the local APIC.
const LAPIC_SVR: u64 = 0xf0;
const LAPIC_ICR: u64 = 0x300;
const LAPIC_ICR_HIGH: u64 = 0x310;
const ICR_INIT: u64 = 0x4500;
const ICR_STARTUP: u64 = 0x4601;
const BOOT: Vcpu = Vcpu(0);
const SVR_ENABLED: u64 = 0x1ff;
const SVR_SUPPRESSES_BROADCASTS: u64 = 1 << 12;
/// Bits of a redirection table entry.
pub(crate) const MASKED: u32 = 1 << 16;
pub(crate) const LEVEL: u32 = 1 << 15;
/// The reasons that somebody here gives and takes back; the others follow from the line's own state and from misbehaviour.
pub(crate) const BY_US: MaskReasons = MaskReasons::GUEST_DISINTX
    .union(MaskReasons::OPERATOR)
    .union(MaskReasons::RESET)
    .union(MaskReasons::HANDOVER);

pub(crate) const fn vpin(number: u8) -> Pin {
    Pin(FIRST_PIN + number % PINS)
}

/// How a machine is made.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) partitions: usize,
    pub(crate) cpus: usize,
    pub(crate) lines: usize,
    /// For each source its line, its owner, its pin, and whether another partition may take it over.
    pub(crate) sources: Vec<(usize, usize, u8, bool)>,
    /// The gate of lines that one partition has to itself.
    pub(crate) gate: Gate,
    pub(crate) budget: Option<Budget>,
    pub(crate) patience: u32,
}

/// What happens next. Numbers are taken modulo how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// A device asserts or deasserts.
    Device(u8, bool),
    Lies(u8, Lie),
    Vanish(u8),
    /// A CPU takes a line's vector, if that waits there.
    Take(u8, u8),
    /// A CPU does the next thing it has to do.
    Step(u8),
    /// A CPU does all it has to do, as far as it can.
    Run(u8),
    /// A line leads to another CPU from its next message on.
    Aim(u8, u8),
    /// A CPU enters its guest, which takes what is offered, or does not get that far.
    Enter(u8, bool),
    /// The guest's handler quiets the devices behind the vector it is in.
    Quiet(u8),
    /// The guest ends its handler.
    Eoi(u8),
    /// The guest writes the lower half of a virtual entry: pin, vector, flags.
    Rte(u8, u8, u8, u32),
    /// The upper half: pin, destination.
    Destination(u8, u8, u8),
    EoiRegister(u8, u8),
    Priority(u8, u8),
    SuppressesBroadcasts(u8, bool),
    /// The guest writes DisINTx of a function.
    DisIntx(u8, u8, bool),
    Mask(u8, u8),
    Unmask(u8, u8),
    Trigger(u8, u8),
    /// The guest asks for another notifier of a function of its own: a pin, its counter, none.
    Replace(u8, u8, Target),
    /// The hypervisor completes by force what a guest does not.
    Force(u8, u8),
    /// The guest takes a function over.
    TakeOver(u8, u8),
    /// The guest is over.
    End(u8),
    /// It begins again.
    Begin(u8),
    Tick,
    /// Somebody looks whether a source's pause is over.
    Resume(u8, u8),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    None,
    Counter,
    Pin(u8),
}

/// One thing that a CPU has to do, with at most one hold of a lock.
#[derive(Debug)]
enum Todo<'t> {
    /// The guest is done with a pin: its lines complete, then it speaks again.
    Done(usize, Pin),
    Complete(usize, Notifier),
    VirtualRte {
        source: usize,
        pin: Notifier,
        masked: bool,
    },
    /// The entries of a partition may be written by others again.
    Written(usize),
    Look(usize, Pin),
    Settle(usize, Pin),
    Raise(Delivery<'t>),
}

/// One stage of what takes longer. A CPU that waits in one takes interrupts.
#[derive(Debug)]
pub(crate) enum Stage<'t> {
    /// The partition's other CPUs have left its guest.
    Deserted(usize),
    /// Claims the function for its owner, or skips to what follows its claim.
    Keep(usize, usize),
    /// Claims it from its owner, or gives everything up.
    MoveAway(usize),
    /// The owner's CPUs have answered since; those that have not yet.
    Answered(Vec<usize>),
    Mask(usize, MaskReasons),
    Unmask(usize, MaskReasons),
    /// Waits for the right to replace.
    Turn(Option<Turn>),
    /// Takes it if it is there, or gives everything up.
    TryTurn,
    Publish(usize, Notifier, Completion),
    Poll(Replacing<'t>),
    GiveBack,
    /// Nothing that was sent is on its way any more.
    Close(usize),
    Reset(usize, bool),
    HandTo(usize, usize),
    Unclaim,
    Over(usize),
    Renew(usize),
    Alive(usize),
}

#[derive(Debug, Default)]
pub(crate) struct Cpu<'t> {
    todo: VecDeque<Todo<'t>>,
    pub(crate) stages: VecDeque<Stage<'t>>,
    claim: Option<Claim<'t>>,
    control: Option<Control>,
    partition: usize,
    vcpu: u8,
    /// The vectors whose handlers the guest is in.
    handlers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Alive,
    Ending,
    Over,
    Beginning,
}

#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) life: Life,
    /// Pins whose completion is left to whoever looks next.
    due: Vec<Pin>,
    /// The CPU that writes an entry and has not told the lines yet.
    writer: Option<usize>,
    /// DisINTx of each function, as the guest wrote it.
    pub(crate) disables: Vec<bool>,
}

/// What the script knows of a source.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) given: MaskReasons,
    pin: u8,
    /// How often a handler found its device asserted.
    pub(crate) served: u64,
}

/// A source's place on its line: sources come to their lines in their order.
pub(crate) fn sharer_of(machine: &Machine<'_>, source: usize) -> Sharer {
    let line = machine.board.devices[source].line;
    let before = machine.board.devices.iter().take(source).filter(|device| device.line == line);
    Sharer::new(before.count() as u8).expect("few sources")
}

pub(crate) struct Machine<'t> {
    pub(crate) table: &'t LineTable,
    turns: &'t Turns,
    pub(crate) owners: &'t [Ownership],
    pub(crate) board: Board,
    pub(crate) cpus: Vec<Cpu<'t>>,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) known: Vec<Known>,
    pub(crate) setup: &'t Setup,
}

/// Runs `body` in a fresh machine.
pub(crate) fn machine(setup: &Setup, body: impl FnOnce(&mut Machine<'_>)) {
    let targets = Targets { partitions: 3, pins: 24, poll_counters: setup.sources.len() as u16 };
    let (mut table, control) = LineTable::with_patience(targets, setup.patience);
    let model = LapicModel { x2apic: true, physical_address_bits: 40 };
    let device = |&(line, ..): &(usize, usize, u8, bool)| Device {
        line,
        asserted: false,
        disintx: true,
        absent: false,
        in_reset: false,
        lie: Lie::None,
    };
    let gate_of = |line: usize| {
        let mut on_line = setup.sources.iter().filter(|source| source.0 == line);
        let first = on_line.clone().next();
        let foreign = on_line.any(|source| source.3 || first.is_some_and(|first| first.1 != source.1));
        if foreign { Gate::Function } else { setup.gate }
    };
    let line = |line| Line {
        gate: gate_of(line),
        rte_masked: true,
        remote_irr: false,
        pending: None,
        leads_to: 0,
        sent: 0,
    };
    let vcpus = |partition| (0..setup.cpus).filter(|cpu| cpu % setup.partitions == partition).count();
    let mut board = Board {
        devices: setup.sources.iter().map(device).collect(),
        lines: (0..setup.lines).map(line).collect(),
        chips: (0..setup.partitions).map(|p| VirtualChips::new(vcpus(p) as u8, model)).collect(),
        clock: 0,
        silent: false,
    };
    for (source, &(line, owner, _, movable)) in setup.sources.iter().enumerate() {
        let info = SourceInfo { owner: (!movable).then_some(owner as u8), bdf: source as u16 };
        let assigned = table.assign(gsi(line), vector(line), gate_of(line), info, &mut board);
        assert_eq!(assigned, Ok(SourceId(source as u8)));
        assert!(setup.budget.is_none_or(|budget| table.limit(SourceId(source as u8), budget)));
    }
    let owners: Vec<Ownership> = setup.sources.iter().map(|source| Ownership::new(source.1 as u8)).collect();
    let turns = Turns::new(Some(control));
    let mut machine = Machine {
        table: &table,
        turns: &turns,
        owners: &owners,
        board,
        cpus: (0..setup.cpus)
            .map(|cpu| Cpu {
                partition: cpu % setup.partitions,
                vcpu: (cpu / setup.partitions) as u8,
                ..Cpu::default()
            })
            .collect(),
        partitions: (0..setup.partitions)
            .map(|_| Partition {
                life: Life::Beginning,
                due: Vec::new(),
                writer: None,
                disables: vec![false; setup.sources.len()],
            })
            .collect(),
        known: setup.sources.iter().map(|source| Known { pin: source.2, ..Known::default() }).collect(),
        setup,
    };
    for partition in 0..setup.partitions {
        machine.begin_stages(partition);
        while machine.work(partition) {}
        machine.wake(partition);
    }
    body(&mut machine);
}

impl<'t> Machine<'t> {
    pub(crate) fn report(&self, source: usize) -> SourceReport {
        self.table.source_report(SourceId(source as u8)).expect("assigned")
    }

    pub(crate) fn sources(&self) -> core::ops::Range<usize> {
        0..self.known.len()
    }

    fn holds(&self, partition: usize, source: usize) -> bool {
        self.owners[source].is_held_by(partition as u8)
    }

    pub(crate) fn pin_of(&self, partition: usize, source: usize) -> Notifier {
        Notifier::Pin { partition: partition as u8, vpin: vpin(self.known[source].pin) }
    }

    // What happens.

    /// Whether `op` means anything now. What does not is skipped.
    pub(crate) fn apply(&mut self, op: Op) -> bool {
        let some = |number: u8, of: usize| usize::from(number) % of;
        let (cpus, sources, lines) = (self.cpus.len(), self.known.len(), self.board.lines.len());
        match op {
            Op::Device(device, asserted) => {
                let device = some(device, sources);
                if self.board.devices[device].absent || self.board.devices[device].in_reset {
                    return false;
                }
                self.board.change(device, |device| device.asserted = asserted);
            }
            Op::Lies(device, lie) => self.board.change(some(device, sources), |device| device.lie = lie),
            Op::Vanish(device) => self.board.change(some(device, sources), |device| device.absent = true),
            Op::Take(cpu, line) => return self.take(some(cpu, cpus), some(line, lines)),
            Op::Step(cpu) => return self.work(some(cpu, cpus)),
            Op::Run(cpu) => {
                let cpu = some(cpu, cpus);
                for _ in 0..50 {
                    if self.cpus[cpu].todo.is_empty() || !self.work(cpu) {
                        break;
                    }
                }
            }
            Op::Aim(line, cpu) => self.board.lines[some(line, lines)].leads_to = some(cpu, cpus),
            Op::Tick => self.board.clock += 1,
            Op::End(cpu) => return self.end(some(cpu, cpus)),
            Op::Begin(cpu) => {
                let cpu = some(cpu, cpus);
                let partition = self.cpus[cpu].partition;
                if self.partitions[partition].life != Life::Over || !self.is_free(cpu) {
                    return false;
                }
                self.partitions[partition].life = Life::Beginning;
                self.begin_stages(cpu);
            }
            Op::Enter(cpu, _) | Op::Quiet(cpu) | Op::Eoi(cpu) | Op::Priority(cpu, _) => {
                return self.guest(some(cpu, cpus), 0, op);
            }
            Op::Rte(cpu, ..)
            | Op::Destination(cpu, ..)
            | Op::EoiRegister(cpu, _)
            | Op::SuppressesBroadcasts(cpu, _) => {
                return self.guest(some(cpu, cpus), 0, op);
            }
            Op::DisIntx(cpu, source, _)
            | Op::Mask(cpu, source)
            | Op::Unmask(cpu, source)
            | Op::Trigger(cpu, source)
            | Op::Replace(cpu, source, _)
            | Op::Force(cpu, source)
            | Op::TakeOver(cpu, source)
            | Op::Resume(cpu, source) => return self.guest(some(cpu, cpus), some(source, sources), op),
        }
        true
    }

    /// The sources that the next step of a CPU may change, as bits.
    pub(crate) fn next_of(&self, cpu: usize) -> u64 {
        match (self.cpus[cpu].todo.front(), self.cpus[cpu].stages.front()) {
            (Some(Todo::Complete(source, _) | Todo::VirtualRte { source, .. }), _) => 1 << source,
            (Some(_), _) => 0,
            (None, Some(Stage::Mask(source, _) | Stage::Unmask(source, _) | Stage::HandTo(source, _))) => {
                1 << source
            }
            (None, Some(Stage::Poll(replacing))) => 1 << replacing.source().0,
            (None, _) => 0,
        }
    }

    /// Whose deliveries are on their way to a pin. The owner of a counter completes without looking at it, so one may be on its
    /// way when the next begins; each is counted.
    pub(crate) fn raises(&self) -> impl Iterator<Item = SourceId> + '_ {
        self.cpus.iter().flat_map(|cpu| &cpu.todo).filter_map(|todo| match todo {
            Todo::Raise(delivery) if matches!(delivery.target(), Notifier::Pin { .. }) => {
                Some(delivery.source())
            }
            _ => None,
        })
    }

    fn is_free(&self, cpu: usize) -> bool {
        self.cpus[cpu].todo.is_empty() && self.cpus[cpu].stages.is_empty()
    }

    /// The CPU takes the line's vector: handler, then local APIC EOI.
    pub(crate) fn take(&mut self, cpu: usize, line: usize) -> bool {
        if !self.cpus[cpu].todo.is_empty() || self.board.lines[line].pending != Some(cpu) {
            return false;
        }
        self.board.lines[line].pending = None;
        let mut deliveries = Deliveries::none();
        assert!(
            self.table.assert(vector(line), &mut self.board, &mut deliveries),
            "the handler is permanent"
        );
        self.board.lapic_eoi(line);
        self.deliver(cpu, deliveries);
        true
    }

    /// What a guest does on its CPU, or the hypervisor there between two entries.
    fn guest(&mut self, cpu: usize, source: usize, op: Op) -> bool {
        let partition = self.cpus[cpu].partition;
        if self.partitions[partition].life != Life::Alive || !self.is_free(cpu) {
            return false;
        }
        let (vcpu, id) = (Vcpu(self.cpus[cpu].vcpu), SourceId(source as u8));
        match op {
            Op::Enter(_, takes) => return self.enter(cpu, vcpu, takes),
            Op::Quiet(_) => {
                let Some(&handler) = self.cpus[cpu].handlers.last() else { return false };
                for source in self.sources() {
                    let is_it = FIRST_VECTOR + self.known[source].pin % PINS == handler;
                    if is_it && self.holds(partition, source) && !self.board.devices[source].in_reset {
                        self.known[source].served += u64::from(self.board.devices[source].asserts());
                        self.board.change(source, |device| device.asserted = false);
                    }
                }
            }
            Op::Eoi(_) => {
                self.cpus[cpu].handlers.pop();
                let ended = self.board.chips[partition].eoi_page(vcpu, 4, false);
                self.done(cpu, ended.expect("xAPIC mode").completed);
            }
            Op::Priority(_, priority) => {
                let priority = u64::from(priority % 16);
                assert_eq!(self.board.chips[partition].set_cr8(vcpu, priority), Ok(()));
            }
            Op::SuppressesBroadcasts(_, does) => {
                let value = if does { SVR_ENABLED | SVR_SUPPRESSES_BROADCASTS } else { SVR_ENABLED };
                let outcome = self.board.chips[partition].lapic_write(vcpu, LAPIC_SVR, 4, value, 0);
                self.follow(cpu, outcome);
            }
            Op::EoiRegister(_, number) => {
                let value = u64::from(FIRST_VECTOR + number % PINS);
                let outcome = self.board.chips[partition].ioapic_write(MMIO_EOI, 4, value);
                self.follow(cpu, outcome);
            }
            Op::Rte(..) | Op::Destination(..) if self.partitions[partition].writer.is_some() => return false,
            Op::Rte(_, pin, number, flags) => {
                let value = u32::from(FIRST_VECTOR + number % PINS) | flags;
                self.write_entry(cpu, REG_RTE_BASE + 2 * vpin(pin).0, value);
            }
            Op::Destination(_, pin, vcpu) => {
                self.write_entry(cpu, REG_RTE_BASE + 2 * vpin(pin).0 + 1, u32::from(vcpu) << 24);
            }
            Op::DisIntx(_, _, disables) => {
                self.partitions[partition].disables[source] = disables;
                if self.holds(partition, source) {
                    self.set_reasons(cpu, source, MaskReasons::GUEST_DISINTX, disables);
                }
            }
            Op::Mask(..) | Op::Unmask(..) | Op::Trigger(..) | Op::Replace(..) | Op::Force(..)
                if !self.holds(partition, source) =>
            {
                return false;
            }
            Op::Mask(..) => self.set_reasons(cpu, source, MaskReasons::OPERATOR, true),
            Op::Unmask(..) => {
                if let Service::InService(addressee) = self.report(source).state.service
                    && let target @ Notifier::Poll { .. } = addressee.target()
                {
                    let deliveries = self.table.complete_counter(id, target, &mut self.board);
                    self.deliver(cpu, deliveries);
                }
                self.set_reasons(cpu, source, MaskReasons::OPERATOR, false);
            }
            Op::Trigger(..) => {
                let deliveries = self.table.loopback(id, &mut self.board);
                self.deliver(cpu, deliveries);
            }
            Op::Replace(_, _, target) => {
                let target = match target {
                    Target::None => Notifier::None,
                    Target::Counter => Notifier::Poll { counter: source as u16 },
                    Target::Pin(pin) => Notifier::Pin { partition: partition as u8, vpin: vpin(pin) },
                };
                let publish = Stage::Publish(source, target, Completion::Handover);
                self.cpus[cpu].stages.extend([Stage::TryTurn, publish, Stage::GiveBack]);
            }
            Op::Force(..) => {
                let same = self.report(source).slot.target;
                let publish = Stage::Publish(source, same, Completion::Forced);
                self.cpus[cpu].stages.extend([Stage::TryTurn, publish, Stage::GiveBack]);
            }
            Op::TakeOver(..) => {
                if !self.setup.sources[source].3 || self.holds(partition, source) {
                    return false;
                }
                let target = self.pin_of(partition, source);
                self.cpus[cpu].stages.extend([
                    Stage::Turn(None),
                    Stage::MoveAway(source),
                    Stage::Publish(source, target, Completion::Handover),
                    Stage::Close(source),
                    Stage::Unmask(source, MaskReasons::OPERATOR | MaskReasons::RESET),
                    Stage::HandTo(source, partition),
                    Stage::Unmask(source, MaskReasons::HANDOVER),
                    Stage::Unclaim,
                    Stage::GiveBack,
                ]);
            }
            Op::Resume(..) => {
                let clock = self.board.clock;
                let (_, deliveries) = self.table.resume(id, clock, &mut self.board);
                self.deliver(cpu, deliveries);
            }
            _ => unreachable!("no act of a guest"),
        }
        true
    }

    fn enter(&mut self, cpu: usize, vcpu: Vcpu, takes: bool) -> bool {
        let partition = self.cpus[cpu].partition;
        let due = core::mem::take(&mut self.partitions[partition].due);
        if !due.is_empty() {
            self.first(cpu, due.into_iter().map(|pin| Todo::Done(partition, pin)));
            return true;
        }
        let chips = &mut self.board.chips[partition];
        let injection = chips.before_entry(vcpu, Interruptibility::default);
        let Some(offer) = injection.offer else {
            return injection.special.is_some_and(|special| special.event.is_some());
        };
        if takes {
            self.cpus[cpu].handlers.push(offer.get());
        }
        let pins = chips.after_exit(vcpu, Exited { offer_stands: !takes, interrupted: None });
        self.done(cpu, pins);
        true
    }

    fn write_entry(&mut self, cpu: usize, register: u8, value: u32) {
        let partition = self.cpus[cpu].partition;
        let chips = &mut self.board.chips[partition];
        let _ = chips.ioapic_write(MMIO_INDEX, 4, register.into());
        let outcome = chips.ioapic_write(MMIO_DATA, 4, value.into());
        let mut todo = Vec::new();
        if let Some(rte) = outcome.rte
            && rte.masked_before != rte.masked_after
        {
            let pin = Notifier::Pin { partition: partition as u8, vpin: rte.pin };
            let listeners = self.table.listeners(partition as u8, rte.pin);
            todo.extend(listeners.map(|source| Todo::VirtualRte {
                source: usize::from(source.0),
                pin,
                masked: rte.masked_after,
            }));
        }
        todo.push(Todo::Written(partition));
        self.partitions[partition].writer = Some(cpu);
        self.follow(cpu, outcome);
        self.first(cpu, todo);
    }

    /// What a write to one of the interrupt chips asks for.
    fn follow(&mut self, cpu: usize, outcome: Outcome) {
        self.done(cpu, outcome.completed);
        let partition = self.cpus[cpu].partition;
        self.first(cpu, outcome.rte.map(|rte| Todo::Look(partition, rte.pin)));
    }

    fn done(&mut self, cpu: usize, pins: PinSet) {
        let partition = self.cpus[cpu].partition;
        self.first(cpu, pins.into_iter().map(|pin| Todo::Done(partition, pin)).collect::<Vec<_>>());
    }

    /// These come before all that the CPU has to do already.
    fn first(&mut self, cpu: usize, todo: impl IntoIterator<Item = Todo<'t>>) {
        for (place, todo) in todo.into_iter().enumerate() {
            self.cpus[cpu].todo.insert(place, todo);
        }
    }

    fn deliver(&mut self, cpu: usize, deliveries: Deliveries<'t>) {
        self.first(cpu, deliveries.map(Todo::Raise).collect::<Vec<_>>());
    }

    pub(crate) fn set_reasons(&mut self, cpu: usize, source: usize, reasons: MaskReasons, set: bool) {
        let id = SourceId(source as u8);
        self.known[source].given.set(reasons & BY_US, set);
        if set {
            self.table.mask(id, reasons, &mut self.board);
        } else {
            let (_, deliveries) = self.table.unmask(id, reasons, &mut self.board);
            self.deliver(cpu, deliveries);
        }
    }

    // The CPUs.

    /// The next thing that the CPU has to do. Whether it got on.
    pub(crate) fn work(&mut self, cpu: usize) -> bool {
        if let Some(todo) = self.cpus[cpu].todo.pop_front() {
            self.do_next(cpu, todo);
            return true;
        }
        let Some(stage) = self.cpus[cpu].stages.pop_front() else { return false };
        match self.stage(cpu, stage) {
            None => true,
            Some(waits) => {
                self.cpus[cpu].stages.push_front(waits);
                false
            }
        }
    }

    fn do_next(&mut self, cpu: usize, todo: Todo<'t>) {
        match todo {
            Todo::Done(partition, pin) => {
                let mut sources = self.table.listeners(partition as u8, pin);
                if sources.are_several() {
                    sources = sources.among(self.board.chips[partition].ioapic().contributions(pin).into());
                }
                let from = Notifier::Pin { partition: partition as u8, vpin: pin };
                let mut todo: Vec<_> =
                    sources.map(|source| Todo::Complete(usize::from(source.0), from)).collect();
                todo.push(Todo::Settle(partition, pin));
                self.first(cpu, todo);
            }
            Todo::Complete(source, from) => {
                let mut deliveries = Deliveries::none();
                self.board.silent = false;
                self.table.complete(SourceId(source as u8), from, &mut self.board, &mut deliveries);
                if self.board.silent {
                    // The pin went low for good, so the rest of its completion falls away.
                    let rest = self.cpus[cpu].todo.iter().position(|todo| matches!(todo, Todo::Settle(..)));
                    rest.and_then(|rest| self.cpus[cpu].todo.remove(rest));
                }
                self.deliver(cpu, deliveries);
            }
            Todo::VirtualRte { source, pin, masked } => {
                let source = SourceId(source as u8);
                let deliveries = self.table.virtual_rte(source, pin, masked, &mut self.board);
                self.deliver(cpu, deliveries);
            }
            Todo::Written(partition) => self.partitions[partition].writer = None,
            Todo::Look(partition, pin) => {
                let settled = self.board.chips[partition].look(pin);
                if settled.completion_due {
                    self.partitions[partition].due.push(pin);
                }
            }
            Todo::Settle(partition, pin) => {
                let settled = self.board.chips[partition].settle(pin);
                if settled.completion_due {
                    self.partitions[partition].due.push(pin);
                }
            }
            Todo::Raise(delivery) => {
                if let Notifier::Pin { partition, vpin } = delivery.target() {
                    let source = usize::from(delivery.source().0);
                    let chips = &mut self.board.chips[usize::from(partition)];
                    // The guest at work may be offered it at once.
                    let here = &self.cpus[cpu];
                    if here.partition == usize::from(partition)
                        && chips.offer_from_pin(Vcpu(here.vcpu), vpin, contributor(source)).is_some()
                    {
                        return;
                    }
                    if chips.assert_pin(vpin, contributor(source)).completion_due {
                        self.partitions[usize::from(partition)].due.push(vpin);
                    }
                }
            }
        }
    }

    /// One look at a stage: none if it is over, else the stage to be looked at again.
    fn stage(&mut self, cpu: usize, stage: Stage<'t>) -> Option<Stage<'t>> {
        match stage {
            Stage::Deserted(partition) => {
                let at_work = |(other, state): (usize, &Cpu<'_>)| {
                    other != cpu && state.partition == partition && !self.is_free(other)
                };
                if self.cpus.iter().enumerate().any(at_work) {
                    return Some(stage);
                }
                self.partitions[partition].due.clear();
            }
            Stage::Keep(source, partition) => match self.owners[source].keep(partition as u8) {
                Ok(claim) => self.cpus[cpu].claim = Some(claim),
                Err(Refused::Claimed) => return Some(stage),
                Err(Refused::Foreign) => {
                    while !matches!(self.cpus[cpu].stages.pop_front(), Some(Stage::Unclaim)) {}
                }
            },
            Stage::MoveAway(source) => match self.owners[source].move_away() {
                Ok(claim) => {
                    let owner = usize::from(claim.owner());
                    self.cpus[cpu].claim = Some(claim);
                    let others = |other: &usize| *other != cpu && self.cpus[*other].partition == owner;
                    let others = (0..self.cpus.len()).filter(others).collect();
                    self.cpus[cpu].stages.push_front(Stage::Answered(others));
                    self.cpus[cpu].stages.push_front(Stage::Mask(source, MaskReasons::HANDOVER));
                }
                Err(_) => self.give_up(cpu),
            },
            Stage::Answered(mut silent) => {
                silent.retain(|other| !self.cpus[*other].todo.is_empty());
                if !silent.is_empty() {
                    return Some(Stage::Answered(silent));
                }
            }
            Stage::Mask(source, reasons) => self.set_reasons(cpu, source, reasons, true),
            Stage::Unmask(source, reasons) => self.set_reasons(cpu, source, reasons, false),
            Stage::TryTurn => match self.turns.try_take() {
                Some(control) => self.cpus[cpu].control = Some(control),
                None => self.give_up(cpu),
            },
            Stage::Turn(turn) => match self.turns.take(turn.unwrap_or_else(|| self.turns.queue())) {
                Ok(control) => self.cpus[cpu].control = Some(control),
                Err(turn) => return Some(Stage::Turn(Some(turn))),
            },
            Stage::Publish(source, target, how) => {
                let control = self.cpus[cpu].control.take().expect("whose turn it is");
                let replacing = self.table.replace(control, SourceId(source as u8), target, how);
                self.cpus[cpu].stages.push_front(Stage::Poll(replacing.expect("both exist")));
            }
            Stage::Poll(replacing) => {
                let mut deliveries = Deliveries::none();
                match replacing.poll(&mut self.board, &mut deliveries) {
                    Ok(replacement) => {
                        self.cpus[cpu].control = Some(replacement.control);
                        self.deliver(cpu, deliveries);
                    }
                    Err(replacing) => return Some(Stage::Poll(replacing)),
                }
            }
            Stage::GiveBack => {
                self.turns.give_back(self.cpus[cpu].control.take().expect("whose turn it was"));
            }
            Stage::Close(source) => {
                let line = self.board.devices[source].line;
                let silent = self.line_state(line).is_some_and(|state| state.is_to_fall_silent());
                if silent && self.board.lines[line].remote_irr {
                    return Some(stage);
                }
                self.report(source).account.balance().expect("the closing books balance");
            }
            Stage::Reset(source, begins) => {
                let disintx = self.board.devices[source].disintx;
                assert!(disintx || self.gate(source) != Gate::Function, "reset while it is open");
                self.board.change(source, |device| {
                    device.asserted &= !begins;
                    device.in_reset = begins;
                });
            }
            Stage::HandTo(source, partition) => {
                self.cpus[cpu].claim.as_mut().expect("claimed").pass_to(partition as u8);
                let disables = self.partitions[partition].disables[source];
                self.set_reasons(cpu, source, MaskReasons::GUEST_DISINTX, disables);
            }
            Stage::Unclaim => self.cpus[cpu].claim = None,
            Stage::Renew(partition) => {
                for source in self.sources() {
                    let held = (0..PINS).any(|pin| self.board.holds(source, partition, vpin(pin)));
                    assert!(!held, "source {source} holds a pin of a guest that is over");
                    self.partitions[partition].disables[source] = false;
                }
                self.board.chips[partition].renew();
            }
            Stage::Over(partition) => self.partitions[partition].life = Life::Over,
            Stage::Alive(partition) => self.wake(partition),
        }
        None
    }

    fn give_up(&mut self, cpu: usize) {
        self.cpus[cpu].stages.clear();
        self.cpus[cpu].claim = None;
        if let Some(control) = self.cpus[cpu].control.take() {
            self.turns.give_back(control);
        }
    }

    fn gate(&self, source: usize) -> Gate {
        let line = gsi(self.board.devices[source].line);
        self.table.line_reports().find(|report| report.gsi == line).expect("in use").state.gate
    }

    /// A guest ends, on this CPU.
    fn end(&mut self, cpu: usize) -> bool {
        let partition = self.cpus[cpu].partition;
        if self.partitions[partition].life != Life::Alive || !self.is_free(cpu) {
            return false;
        }
        self.partitions[partition].life = Life::Ending;
        self.cpus[cpu].stages.push_back(Stage::Deserted(partition));
        for source in self.sources() {
            self.cpus[cpu].stages.extend([
                Stage::Keep(source, partition),
                Stage::Mask(source, MaskReasons::RESET),
                Stage::Turn(None),
                Stage::Publish(source, Notifier::None, Completion::Reset),
                Stage::GiveBack,
                Stage::Close(source),
                Stage::Unclaim,
            ]);
        }
        self.cpus[cpu].stages.push_back(Stage::Over(partition));
        true
    }

    fn begin_stages(&mut self, cpu: usize) {
        let partition = self.cpus[cpu].partition;
        self.cpus[cpu].stages.push_back(Stage::Renew(partition));
        let lifted =
            MaskReasons::RESET | MaskReasons::GUEST_DISINTX | MaskReasons::OPERATOR | MaskReasons::THROTTLE;
        for source in self.sources() {
            let target = self.pin_of(partition, source);
            self.cpus[cpu].stages.extend([
                Stage::Keep(source, partition),
                Stage::Mask(source, MaskReasons::RESET),
                Stage::Reset(source, true),
                Stage::Reset(source, false),
                Stage::Turn(None),
                Stage::Publish(source, target, Completion::Handover),
                Stage::GiveBack,
                Stage::Unmask(source, lifted),
                Stage::Unclaim,
            ]);
        }
        self.cpus[cpu].stages.push_back(Stage::Alive(partition));
    }

    /// The guest runs: its virtual CPUs are started, and their local APICs enabled.
    fn wake(&mut self, partition: usize) {
        self.partitions[partition].life = Life::Alive;
        for cpu in (partition..self.cpus.len()).step_by(self.setup.partitions) {
            self.cpus[cpu].handlers.clear();
            let vcpu = Vcpu(self.cpus[cpu].vcpu);
            let chips = &mut self.board.chips[partition];
            if vcpu != BOOT {
                let sent = [
                    (LAPIC_ICR_HIGH, u64::from(vcpu.0) << 24),
                    (LAPIC_ICR, ICR_INIT),
                    (LAPIC_ICR, ICR_STARTUP),
                ];
                for (register, value) in sent {
                    assert!(chips.lapic_write(BOOT, register, 4, value, 0).completed.is_empty());
                    chips.take_init(vcpu);
                }
                assert_eq!(chips.take_startup(vcpu), Some(1));
            }
            let outcome = chips.lapic_write(vcpu, LAPIC_SVR, 4, SVR_ENABLED, 0);
            self.follow(cpu, outcome);
        }
    }
}
