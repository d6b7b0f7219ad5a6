//! Every interleaving of the slot, the line and the table with two or three CPUs.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --test intx_loom --no-default-features --release
//! --target-dir target/loom -- --nocapture --test-threads=1`. Each model prints how many interleavings it explored and
//! under which bound on preemptions; "no bound" means all there are.
#![cfg(loom)]
#![expect(
    clippy::arc_with_non_send_sync,
    reason = "loom's cells are not Sync; it checks every access instead"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "support/explore.rs"]
mod explore;
mod support;

use core::sync::atomic::{AtomicBool as Flag, Ordering::Relaxed};
use std::sync::Arc;

use explore::explore;
use levelhead::intx::{
    Actor, Completion, Control, Deliveries, Gate, LineIo, LineTable, MaskReasons, Notifier, NotifierSlot,
    Retired, Sample, SourceId,
};
use levelhead::irq::{Gsi, Pin, Vector};
use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::thread;
use support::{Board, assign_all, pin, vector};

const SOURCE: SourceId = SourceId(0);

/// What a notifier stands for. Using it after it was torn down, or at the same time, is what the grace period forbids; of
/// the cell loom reports an order that only happened to be right as well.
#[derive(Default)]
struct Receiver {
    memory: UnsafeCell<u32>,
    /// Hidden from loom, which would take it for something that orders the two.
    there: Flag,
}

impl Receiver {
    fn set_up(&self) {
        self.memory.with_mut(|_| self.there.store(true, Relaxed));
    }

    fn notify(&self) {
        self.memory.with(|_| assert!(self.there.load(Relaxed), "notified after it was torn down"));
    }

    fn tear_down(&self) {
        self.memory.with_mut(|_| self.there.store(false, Relaxed));
    }
}

/// A slot with two receivers, pins 0 and 1.
struct Switch {
    slot: NotifierSlot,
    receivers: [Receiver; 2],
}

impl Switch {
    fn new(target: Notifier) -> Self {
        let slot = NotifierSlot::new();
        let Ok(_) = slot.replace(Control::mint(), target).poll(&slot) else { panic!("nobody is in flight") };
        let switch = Self { slot, receivers: Default::default() };
        switch.set_up(target);
        switch
    }

    fn set_up(&self, target: Notifier) {
        if !target.is_none() {
            self.receiver(target).set_up();
        }
    }

    fn receiver(&self, target: Notifier) -> &Receiver {
        let Notifier::Pin { vpin: Pin(number), .. } = target else { panic!("{target} is nobody") };
        &self.receivers[usize::from(number)]
    }

    /// When all is quiet nobody is counted and no mark is left behind.
    fn check(&self) {
        let end = self.slot.snapshot();
        assert_eq!((end.marked, end.in_flight_even, end.in_flight_odd), (false, 0, 0));
    }

    /// An assertion: delivered, or marked. Returns the receiver it met.
    fn deliver(&self) -> Notifier {
        let entered = self.slot.enter();
        if entered.target().is_none() {
            self.slot.leave_mark(entered);
        } else {
            self.receiver(entered.target()).notify();
            self.slot.leave(entered);
        }
        entered.target()
    }

    /// Replaces the notifier. A poll that fails changes nothing, so it is as if it had come later: one poll at any point
    /// and one when `others` have left (which must succeed: nobody waits for ever) stand for a polling loop.
    fn replace(&self, control: Control, new: Notifier, others: &mut Vec<Deliverer>) -> Retired {
        self.set_up(new);
        self.slot.replace(control, new).poll(&self.slot).unwrap_or_else(|waiting| {
            join(others);
            waiting.poll(&self.slot).expect("everybody has left")
        })
    }
}

/// A CPU that delivers; its result is the notifier it met.
type Deliverer = thread::JoinHandle<Notifier>;

fn deliverers(switch: &Arc<Switch>, number: usize) -> Vec<Deliverer> {
    let spawn = |switch: Arc<Switch>| thread::spawn(move || switch.deliver());
    (0..number).map(|_| spawn(Arc::clone(switch))).collect()
}

/// Waits for the others, if nobody has yet.
fn join<T>(others: &mut Vec<thread::JoinHandle<T>>) -> Vec<T> {
    others.drain(..).map(|other| other.join().unwrap()).collect()
}

/// Two CPUs deliver while a third replaces the notifier and then tears the old one down.
#[test]
fn i4_i5_nobody_is_in_the_old_notifier_after_its_grace_period() {
    explore("slot, two deliveries, one replacement", None, || {
        let switch = Arc::new(Switch::new(pin(0)));
        let mut others = deliverers(&switch, 2);
        let retired = switch.replace(Control::mint(), pin(1), &mut others);
        assert_eq!((retired.old, retired.marked), (pin(0), false));
        switch.receiver(retired.old).tear_down();
        join(&mut others);
        switch.check();
    });
}

/// A delivery whose guess of the epoch is overtaken by replacements: the receiver it believes in must be the one that
/// waits for it.
#[test]
fn i5_a_delivery_overtaken_by_replacements_is_still_waited_for() {
    explore("slot, one delivery, four replacements", None, || {
        let switch = Arc::new(Switch::new(pin(0)));
        let mut others = deliverers(&switch, 1);
        let mut control = Control::mint();
        for round in 0..4 {
            control = switch.replace(control, pin((round + 1) % 2), &mut others).control;
            switch.receiver(pin(round % 2)).tear_down();
        }
        join(&mut others);
        switch.check();
    });
}

/// The same under fire from two CPUs.
#[test]
fn i5_replacements_under_fire_from_two_cpus() {
    explore("slot, two deliveries, three replacements", Some(3), || {
        let switch = Arc::new(Switch::new(pin(0)));
        let mut others = deliverers(&switch, 2);
        let mut control = Control::mint();
        for round in 0..3 {
            control = switch.replace(control, pin((round + 1) % 2), &mut others).control;
            switch.receiver(pin(round % 2)).tear_down();
        }
        join(&mut others);
        switch.check();
    });
}

/// An assertion that meets no notifier is found by the one who brings the next.
#[test]
fn n4_a_mark_is_never_lost_and_never_taken_twice() {
    explore("empty slot, two deliveries, one notifier", None, || {
        let switch = Arc::new(Switch::new(Notifier::None));
        let mut others = deliverers(&switch, 2);
        let mut met = Vec::new();
        switch.set_up(pin(0));
        let retiring = switch.slot.replace(Control::mint(), pin(0));
        let retired = retiring.poll(&switch.slot).unwrap_or_else(|waiting| {
            met = join(&mut others);
            waiting.poll(&switch.slot).expect("everybody has left")
        });
        met.extend(join(&mut others));
        assert_eq!(retired.marked, met.contains(&Notifier::None));
        switch.check();
    });
}

/// Removing the notifier and bringing another: whoever met nobody in between is found.
#[test]
fn n4_a_mark_survives_the_gap_between_two_notifiers() {
    explore("slot, one delivery, removed and replaced", None, || {
        let switch = Arc::new(Switch::new(pin(0)));
        let met = Arc::new(Mutex::new(None));
        let mut others = {
            let (switch, met) = (Arc::clone(&switch), Arc::clone(&met));
            vec![thread::spawn(move || {
                let target = switch.deliver();
                *met.lock().unwrap() = Some(target);
                target
            })]
        };
        let removed = switch.replace(Control::mint(), Notifier::None, &mut others);
        switch.receiver(pin(0)).tear_down();
        let installed = switch.replace(removed.control, pin(1), &mut others);
        join(&mut others);
        assert!(!removed.marked);
        assert_eq!(installed.marked, *met.lock().unwrap() == Some(Notifier::None));
        switch.check();
    });
}

/// The board of `support`, shared between CPUs.
struct SharedBoard(Mutex<Board>);

impl SharedBoard {
    fn with<R>(&self, body: impl FnOnce(&mut Board) -> R) -> R {
        body(&mut self.0.lock().unwrap())
    }
}

impl LineIo for &SharedBoard {
    fn mask_rte(&mut self, gsi: Gsi) {
        self.with(|board| board.mask_rte(gsi));
    }

    fn unmask_rte(&mut self, gsi: Gsi) {
        self.with(|board| board.unmask_rte(gsi));
    }

    fn directed_eoi(&mut self, gsi: Gsi, vector: Vector) {
        self.with(|board| board.directed_eoi(gsi, vector));
    }

    fn set_disintx(&mut self, bdf: u16, set: bool) {
        self.with(|board| board.set_disintx(bdf, set));
    }

    fn intx_status(&mut self, bdf: u16) -> Sample {
        self.with(|board| board.intx_status(bdf))
    }

    fn lower_pin(&mut self, source: SourceId, target: Notifier) {
        self.with(|board| board.lower_pin(source, target));
    }

    fn holds_pin(&mut self, source: SourceId, target: Notifier) -> bool {
        self.with(|board| board.holds_pin(source, target))
    }

    fn virtual_rte_masked(&mut self, target: Notifier) -> bool {
        self.with(|board| board.virtual_rte_masked(target))
    }

    // No clock runs and nobody asks who it was: a lock of the board here would only be one more thing to interleave.
    fn now(&mut self) -> u64 {
        0
    }

    fn actor(&self) -> Actor {
        Actor::Hypervisor
    }
}

/// A machine with one device: the table, the board, and what its CPUs do.
struct Machine {
    table: LineTable,
    board: SharedBoard,
}

impl Machine {
    /// A machine whose device has this notifier, and asserts.
    fn asserting(gate: Gate, notifier: Notifier) -> (Arc<Self>, Control) {
        let mut board = Board::new(1, gate);
        let (table, control) = assign_all(&mut board, gate).unwrap();
        let machine = Self { table, board: SharedBoard(Mutex::new(board)) };
        let control = machine.replace(control, notifier, &mut Vec::new());
        machine.board.with(|board| board.drive(0, true));
        (Arc::new(machine), control)
    }

    /// A CPU's interrupt window: whether there was anything.
    fn window(&self) -> bool {
        let taken = self.board.with(Board::take_vector);
        if taken {
            let mut deliveries = Deliveries::none();
            assert!(
                self.table.assert(vector(), &mut &self.board, &mut deliveries),
                "the handler is permanent"
            );
            self.board.with(Board::lapic_eoi);
            self.raise(deliveries);
        }
        taken
    }

    /// One interrupt window on another CPU.
    fn take(&self) {
        self.window();
    }

    fn raise(&self, deliveries: Deliveries<'_>) {
        for delivery in deliveries {
            self.board.with(|board| board.raise(delivery.target(), delivery.source()));
        }
    }

    /// The guest takes the pin's interrupt and sends its EOI without serving the device.
    fn guest(&self, number: u8) {
        let told = self.board.with(|board| {
            board.guest_take(usize::from(number));
            board.guest_eoi(usize::from(number))
        });
        for source in self.table.listeners(0, Pin(number)).filter(|source| told.contains(source)) {
            let mut deliveries = Deliveries::none();
            self.table.complete(source, pin(number), &mut &self.board, &mut deliveries);
            self.raise(deliveries);
        }
    }

    /// The guest unmasks the pin's entry.
    fn unmask(&self, number: u8) {
        self.board.with(|board| board.pins[usize::from(number)].masked = false);
        for source in self.table.listeners(0, Pin(number)) {
            let deliveries = self.table.virtual_rte(source, pin(number), false, &mut &self.board);
            self.raise(deliveries);
        }
    }

    /// As [`Switch::replace`].
    fn replace(&self, control: Control, new: Notifier, others: &mut Vec<Cpu>) -> Control {
        let replacing = self.table.replace(control, SOURCE, new, Completion::Handover);
        let replacing = replacing.unwrap_or_else(|(_, error)| panic!("{error:?}"));
        let mut deliveries = Deliveries::none();
        let replacement = match replacing.poll(&mut &self.board, &mut deliveries) {
            Ok(replacement) => replacement,
            Err(waiting) => {
                join(others);
                waiting.poll(&mut &self.board, &mut deliveries).expect("everybody has left")
            }
        };
        self.raise(deliveries);
        replacement.control
    }

    /// When all is quiet, the device that still asserts is in service at `target` and nowhere else, with its gate
    /// closed and its books balanced.
    fn check(&self, target: u8) {
        while self.window() {}
        let report = self.table.source_report(SOURCE).unwrap();
        report.account.balance().unwrap();
        assert!(report.account.in_service && !report.account.pending, "{:?}", report.state);
        assert_eq!(report.state.reasons, MaskReasons::IN_SERVICE);
        let slot = report.slot;
        assert_eq!((slot.marked, slot.in_flight_even, slot.in_flight_odd), (false, 0, 0));
        self.board.with(|board| {
            for number in 0..2_u8 {
                let high = board.pins[usize::from(number)].high != 0;
                assert_eq!(high, number == target, "virtual pin {number}");
            }
            assert!(!board.chip.irr, "a vector nobody wants");
        });
    }
}

/// Another CPU of the machine.
type Cpu = thread::JoinHandle<()>;

fn spawn(machine: &Arc<Machine>, body: impl FnOnce(&Machine) + 'static) -> Cpu {
    let machine = Arc::clone(machine);
    thread::spawn(move || body(&machine))
}

const GATES: [Gate; 3] = [Gate::RteMask, Gate::DirectedEoi, Gate::Function];

/// The handler runs on one CPU while another replaces the notifier: afterwards the assertion, which nobody served, is
/// with the new one.
#[test]
fn i5_n4_an_assertion_during_a_replacement_reaches_the_new_notifier() {
    for gate in GATES {
        explore(&format!("{gate}: handler, replacement"), None, move || {
            let (machine, control) = Machine::asserting(gate, pin(0));
            let mut others = vec![spawn(&machine, Machine::take)];
            machine.replace(control, pin(1), &mut others);
            join(&mut others);
            machine.check(1);
        });
    }
}

/// The notifier is taken away while the handler runs, then another is brought: delivered once, by nobody's help.
#[test]
fn i9_n4_an_assertion_that_met_no_notifier_reaches_the_next() {
    for gate in GATES {
        explore(&format!("{gate}: handler, removal, installation"), None, move || {
            let (machine, control) = Machine::asserting(gate, pin(0));
            let mut others = vec![spawn(&machine, Machine::take)];
            let control = machine.replace(control, Notifier::None, &mut others);
            machine.replace(control, pin(1), &mut others);
            join(&mut others);
            machine.check(1);
        });
    }
}

/// Handler, guest and replacer at once, the delivery already in service when they start.
#[test]
fn i5_n4_the_last_level_is_delivered_whatever_overtakes_what() {
    for gate in GATES {
        explore(&format!("{gate}: handler, EOI, replacement"), None, move || {
            let (machine, control) = Machine::asserting(gate, pin(0));
            machine.window();
            let mut others =
                vec![spawn(&machine, |machine| machine.guest(0)), spawn(&machine, Machine::take)];
            machine.replace(control, pin(1), &mut others);
            join(&mut others);
            machine.check(1);
        });
    }
}

/// The guest unmasks the pin that its source is being led to: the change is seen when the notifier is, or heard of afterwards.
#[test]
fn i38_an_unmask_of_the_new_pin_is_not_lost_to_the_replacement() {
    for gate in GATES {
        explore(&format!("{gate}: unmask, replacement"), None, move || {
            let (machine, control) = Machine::asserting(gate, pin(0));
            machine.board.with(|board| board.pins[1].masked = true);
            let mut others = vec![spawn(&machine, |machine| machine.unmask(1))];
            machine.replace(control, pin(1), &mut others);
            join(&mut others);
            machine.check(1);
        });
    }
}

/// Who holds a pin high is among those who are told of its EOI, however new the notifier is.
#[test]
fn i47_the_first_eoi_at_the_new_pin_completes_what_it_is_for() {
    for gate in GATES {
        explore(&format!("{gate}: handler and EOI at the new pin, replacement"), None, move || {
            let (machine, control) = Machine::asserting(gate, pin(0));
            let mut others = vec![spawn(&machine, |machine| {
                machine.take();
                machine.guest(1);
            })];
            machine.replace(control, pin(1), &mut others);
            join(&mut others);
            let taken = machine.board.with(|board| board.counts.taken[1]);
            let ledger = machine.table.source_report(SOURCE).unwrap().account.ledger;
            assert_eq!(ledger.completed.eoi, taken, "{ledger:?}");
            machine.check(1);
        });
    }
}

/// T3: an operator's mask that wins the lock against the handler does not close twice, and its removal opens.
#[test]
fn i13_i19_a_mask_against_the_handler_and_the_guest() {
    for gate in GATES {
        explore(&format!("{gate}: handler, EOI, operator"), None, move || {
            let (machine, _control) = Machine::asserting(gate, pin(0));
            let mut others =
                vec![spawn(&machine, Machine::take), spawn(&machine, |machine| machine.guest(0))];
            machine.table.mask(SOURCE, MaskReasons::OPERATOR, &mut &machine.board);
            let (changed, deliveries) =
                machine.table.unmask(SOURCE, MaskReasons::OPERATOR, &mut &machine.board);
            assert!(changed);
            machine.raise(deliveries);
            join(&mut others);
            machine.check(0);
        });
    }
}
