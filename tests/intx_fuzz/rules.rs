//! What must hold: after every step, once everybody has had the chance to finish, and in the normal life that follows.

use levelhead::intx::{
    Account, Completion, Gate, LineFinding, LineState, MaskReasons, Notifier, Service, SourceId, SourceState,
};

use crate::board::{Lie, vector};
use crate::machine::{BY_US, LEVEL, Life, MASKED, Machine, Op, PINS, Stage, sharer_of, vpin};

/// So many steps are more than any history of these lengths needs to come to rest.
const STEPS: usize = 20_000;

impl Machine<'_> {
    /// What the line knows of each source, and its books: only the sources that an act is about may change by it.
    pub(crate) fn picture(&self) -> Vec<(SourceState, Account)> {
        self.sources()
            .map(|source| self.report(source))
            .map(|report| (report.state, report.account))
            .collect()
    }

    pub(crate) fn line_state(&self, line: usize) -> Option<LineState> {
        self.table.line_reports().find(|report| report.vector == vector(line)).map(|report| report.state)
    }

    /// Everything that must hold between any two holds of a lock.
    pub(crate) fn check(&self) {
        let in_flight = self.in_flight();
        for line in 0..self.board.lines.len() {
            let Some(state) = self.line_state(line) else { continue };
            let chip = &self.board.lines[line];
            assert_eq!(chip.rte_masked, state.rte_masked, "line {line}: the chip and the line disagree");
            let mut union = MaskReasons::empty();
            for source in self.sources().filter(|source| self.board.devices[*source].line == line) {
                let device = &self.board.devices[source];
                let report = self.report(source);
                let SourceState { reasons, service, notifier, pending } = report.state;
                union |= reasons;
                report
                    .account
                    .balance()
                    .unwrap_or_else(|imbalance| panic!("{imbalance}: {}", report.account));
                let target = match service {
                    Service::Idle => None,
                    Service::InService(addressee) | Service::AwaitUnmask(addressee) => {
                        Some(addressee.target())
                    }
                    Service::Notifying(_) => panic!("source {source}: a transition was left half done"),
                };
                // The reasons are those that somebody has.
                assert_eq!(reasons & BY_US, self.known[source].given, "source {source}");
                assert_eq!(reasons.contains(MaskReasons::IN_SERVICE), target.is_some(), "source {source}");
                let nobody = notifier.is_none() || pending;
                assert!(reasons.contains(MaskReasons::NO_NOTIFIER) || !nobody, "source {source}");
                assert!(!reasons.contains(MaskReasons::THROTTLE) || self.setup.budget.is_some());
                // The gate and the reasons agree, in the chip.
                if state.gate == Gate::Function {
                    assert_eq!(
                        device.disintx,
                        !reasons.is_empty(),
                        "source {source}: gate against {reasons}"
                    );
                }
                // The virtual pin is high from delivery to completion and at no other time.
                let flying = in_flight.iter().filter(|flying| **flying == source).count();
                assert!(flying <= 1, "source {source} is delivered twice at a time");
                for (partition, pin) in self.pins() {
                    let high = self.board.holds(source, partition, pin);
                    let here = Notifier::Pin { partition: partition as u8, vpin: pin };
                    let expected = target == Some(here) && flying == 0;
                    assert_eq!(high, expected, "source {source} at {here}, served at {target:?}");
                }
                // What is asserted, open and idle has a vector on its way.
                let closed = state.is_closed(sharer_of(self, source));
                assert!(
                    !device.asserts() || closed || chip.pending.is_some(),
                    "source {source} is forgotten"
                );
            }
            match state.gate {
                Gate::RteMask => assert_eq!(chip.rte_masked, !union.is_empty()),
                Gate::DirectedEoi => {
                    assert_eq!(chip.rte_masked || state.held, !union.is_empty());
                    assert!(!state.held || chip.remote_irr, "held by the line and not by the chip");
                }
                Gate::Function => assert_eq!(chip.rte_masked, state.stopped),
            }
        }
    }

    fn pins(&self) -> impl Iterator<Item = (usize, levelhead::irq::Pin)> + use<> {
        (0..self.partitions.len()).flat_map(|partition| (0..PINS).map(move |pin| (partition, vpin(pin))))
    }

    /// Takes every vector and does all that every CPU has to do, until nobody has anything left. Guests do nothing.
    fn drain(&mut self) {
        for _ in 0..STEPS {
            let mut busy = false;
            for cpu in 0..self.cpus.len() {
                busy |= self.work(cpu);
                for line in 0..self.board.lines.len() {
                    busy |= self.take(cpu, line);
                }
                self.check();
            }
            if !busy {
                let waits = self.cpus.iter().find(|cpu| !cpu.stages.is_empty());
                assert!(waits.is_none(), "waits for ever: {waits:?}");
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Guests take what they are offered, quiet their devices and end their handlers, until nothing comes any more.
    fn serve(&mut self) {
        for _ in 0..STEPS {
            self.drain();
            let mut busy = false;
            for cpu in 0..self.cpus.len() as u8 {
                busy |= self.apply(Op::Enter(cpu, true));
                self.drain();
                if self.apply(Op::Quiet(cpu)) {
                    busy = true;
                    self.apply(Op::Eoi(cpu));
                    self.drain();
                }
            }
            // What a storm budget imposed on the way is lifted.
            for source in self.sources() {
                let report = self.report(source);
                let storms = MaskReasons::THROTTLE | MaskReasons::QUARANTINE;
                if self.is_well(source) && report.state.reasons.intersects(storms) {
                    busy = true;
                    self.set_reasons(0, source, storms, false);
                }
            }
            if !busy {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Whether nothing is wrong with a source for good.
    fn is_well(&self, source: usize) -> bool {
        let device = &self.board.devices[source];
        !device.absent && self.line_state(device.line).is_some_and(|state| !state.stopped)
    }

    /// Lets everybody finish: devices are honest, guests run and behave, every source leads to its owner, and nobody masks it.
    /// Then nothing that is asserted may be left, and nothing in service.
    pub(crate) fn come_to_rest(&mut self) {
        for source in self.sources() {
            self.apply(Op::Lies(source as u8, Lie::None));
        }
        self.drain();
        for cpu in 0..self.cpus.len() as u8 {
            self.apply(Op::Begin(cpu));
            self.drain();
        }
        assert!(self.partitions.iter().all(|partition| partition.life == Life::Alive));
        for cpu in 0..self.cpus.len() as u8 {
            while self.apply(Op::Quiet(cpu)) {
                self.apply(Op::Eoi(cpu));
                self.drain();
            }
            self.apply(Op::Priority(cpu, 0));
            self.apply(Op::SuppressesBroadcasts(cpu, false));
            // Two pins with one vector, one of them edge-triggered, may have lost an EOI, as on any machine.
            for pin in 0..PINS {
                self.apply(Op::Destination(cpu, pin, 0));
                self.drain();
                self.apply(Op::Rte(cpu, pin, pin, LEVEL | MASKED));
                self.drain();
            }
            while self.apply(Op::Enter(cpu, true)) {
                self.drain();
                self.apply(Op::Quiet(cpu));
                self.apply(Op::Eoi(cpu));
                self.drain();
            }
            for vector in 0..PINS {
                self.apply(Op::EoiRegister(cpu, vector));
                self.drain();
            }
        }
        for cpu in 0..self.cpus.len() as u8 {
            for pin in 0..PINS {
                self.apply(Op::Rte(cpu, pin, pin, LEVEL));
                self.drain();
            }
        }
        for source in self.sources() {
            let owner = usize::from(self.owners[source].owner());
            let cpu = owner;
            let target = self.pin_of(owner, source);
            if self.report(source).state.notifier != target {
                let publish = Stage::Publish(source, target, Completion::Handover);
                self.cpus[cpu].stages.extend([Stage::TryTurn, publish, Stage::GiveBack]);
                self.drain();
            }
            self.partitions[owner].disables[source] = false;
            self.set_reasons(cpu, source, BY_US, false);
            self.drain();
        }
        self.serve();
        for source in self.sources().filter(|source| self.is_well(*source)) {
            let report = self.report(source);
            assert!(!self.board.devices[source].asserted, "the last assertion of source {source} is lost");
            assert!(
                report.state.reasons.is_empty(),
                "source {source} stays closed: {}",
                report.state.reasons
            );
            assert!(!report.account.in_service && !report.account.pending, "source {source}");
        }
        for (partition, pin) in self.pins() {
            for source in self.sources() {
                assert!(!self.board.holds(source, partition, pin), "source {source} holds a pin at rest");
            }
        }
        for line in 0..self.board.lines.len() {
            while let Some((_, finding, _)) = self.table.take_finding(vector(line)) {
                let gone = self.board.devices.iter().any(|device| device.absent);
                assert!(gone || !matches!(finding, LineFinding::Vanished(_)), "nobody vanished");
            }
        }
    }

    /// Normal life: each assertion is one host interrupt and one delivery, to its owner and to nobody else.
    pub(crate) fn lives_on(&mut self) {
        for source in self.sources().filter(|source| self.is_well(*source)).collect::<Vec<_>>() {
            let line = self.board.devices[source].line;
            let at_functions = self.line_state(line).is_some_and(|state| state.gate == Gate::Function);
            for _ in 0..2 {
                // Budgets begin anew.
                self.board.clock += 1000;
                let before: Vec<_> = self.picture();
                let (sent, served) = (self.board.lines[line].sent, self.known[source].served);
                assert!(self.apply(Op::Device(source as u8, true)));
                self.serve();
                assert_eq!(self.known[source].served, served + 1, "source {source}");
                assert!(!self.board.devices[source].asserted);
                if self.setup.budget.is_none() {
                    assert_eq!(self.board.lines[line].sent, sent + 1, "source {source}: host interrupts");
                    for (other, (_, account)) in self.picture().into_iter().enumerate() {
                        let on_line = self.board.devices[other].line == line;
                        let concerned = other == source || on_line && !at_functions;
                        let delivered = account.ledger.delivered - before[other].1.ledger.delivered;
                        assert_eq!(delivered, u64::from(concerned), "source {other} by source {source}");
                    }
                }
            }
        }
    }

    /// Applies one act, and sees to it that it changes nothing but what it is about.
    pub(crate) fn act(&mut self, op: Op) {
        let before = self.picture();
        let about = self.about(op);
        self.apply(op);
        for (source, (before, after)) in before.into_iter().zip(self.picture()).enumerate() {
            assert!(about & 1 << source != 0 || before == after, "{op:?} concerns source {source}");
        }
        self.check();
    }

    /// The sources that an act may change, as bits.
    fn about(&self, op: Op) -> u64 {
        let all = (1 << self.known.len()) - 1;
        let cpus = self.cpus.len();
        let of_line = |line: usize| {
            let on_line = self.sources().filter(|source| self.board.devices[*source].line == line);
            on_line.fold(0, |bits, source| bits | 1 << source)
        };
        match op {
            Op::Take(_, line) => of_line(usize::from(line) % self.board.lines.len()),
            Op::Step(cpu) => self.next_of(usize::from(cpu) % cpus),
            Op::Run(_) => all,
            Op::DisIntx(_, source, _)
            | Op::Mask(_, source)
            | Op::Unmask(_, source)
            | Op::Trigger(_, source)
            | Op::Resume(_, source) => 1 << (usize::from(source) % self.known.len()),
            _ => 0,
        }
    }

    /// A delivery of a source that is on its way.
    fn in_flight(&self) -> Vec<usize> {
        self.raises().map(|SourceId(source)| usize::from(source)).collect()
    }
}
