//! A machine on the host: the real line table on the scripted board, beside a reference that says in the plainest words
//! what must be the case. Every event goes to both, and [`World::check`] compares.

use core::hash::{Hash, Hasher};
use std::collections::VecDeque;
use std::hash::DefaultHasher;

use levelhead::intx::{
    Budget, Completion, Control, Deliveries, Delivery, Gate, LIE_LIMIT, LineState, LineTable, MaskReasons,
    Notifier, Replacing, Service, Sharer, SourceId,
};
use levelhead::irq::Pin;

use super::{Board, Lie, PINS, assign_all, pin, vector};

/// One thing that happens somewhere in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// A device asserts or deasserts.
    Device(usize, bool),
    /// A device is pulled out.
    Vanish(usize),
    /// A device begins to lie, or becomes honest.
    Lies(usize, Lie),
    /// The CPU takes the line's vector, if pending: handler, then local APIC EOI. Pins are not raised yet.
    TakeVector,
    /// The oldest delivery in flight raises its pin and leaves.
    Raise,
    /// The guest takes the pin's interrupt, if there is one.
    GuestTake(usize),
    /// The guest sends its EOI, if it is in service.
    GuestEoi(usize),
    /// The guest masks or unmasks the pin.
    VirtualRte(usize, bool),
    /// A completion that nobody is owed.
    StaleEoi(usize, u8),
    Mask(usize, MaskReasons),
    Unmask(usize, MaskReasons),
    Loopback(usize),
    /// A replacement is published, unless one is under way.
    Replace(usize, Notifier, Completion),
    /// A replacement under way is polled once.
    Poll,
    /// The clock goes on.
    Tick,
    /// Somebody looks whether the source's pause is over.
    Resume(usize),
}

/// What the rules say about one source, in the plainest words: no gates, no slots, no order of effects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    given: MaskReasons,
    /// After the last replacement that is over.
    notifier: Notifier,
    pin_masked: bool,
    /// Somebody was notified and has not completed; the flag says that the EOI already came.
    serving: Option<(Notifier, bool)>,
    /// `serving` began after the replacement under way was published.
    serving_new: bool,
    /// An assertion found nobody.
    unheard: bool,
    /// At how many openings in a row its function gate found Status set.
    insisted: u32,
    /// That was too often, and Status has not been seen clear since.
    doubted: bool,
    pace: Option<Pace>,
}

impl Expected {
    pub(crate) fn reasons(&self) -> MaskReasons {
        let mut reasons = self.given;
        reasons.set(MaskReasons::IN_SERVICE, self.serving.is_some());
        reasons.set(MaskReasons::NO_NOTIFIER, self.notifier.is_none() || self.unheard);
        reasons.set(MaskReasons::VIRTUAL_RTE_MASKED, self.pin_masked);
        reasons
    }

    /// Status was seen clear.
    fn seen_clear(&mut self) {
        (self.insisted, self.doubted) = (0, false);
    }

    /// An assertion reaches the source; `now` is the notifier already published.
    pub(crate) fn assert(&mut self, now: Notifier, replacing: bool, clock: u64) {
        if self.reasons().is_empty() {
            match self.pace.as_mut().map_or(MaskReasons::empty(), |pace| pace.assert(clock)) {
                keeps if keeps.is_empty() => self.notify(now, replacing, true),
                storms => self.given |= storms,
            }
        }
    }

    pub(crate) fn notify(&mut self, now: Notifier, replacing: bool, device: bool) {
        if now.is_none() {
            // Until the replacement by none is over, only the mark tells.
            self.unheard |= device || replacing;
        } else {
            self.serving = Some((now, false));
            self.serving_new = replacing;
        }
    }
}

/// What a storm budget means for one source, by the time of every assertion that passed.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    budget: Budget,
    passed: Vec<u64>,
    /// How many of the last ones belong to the window under way, and when it began.
    counted: usize,
    began: Option<u64>,
    throttled: u32,
    until: Option<u64>,
    unrecorded: bool,
}

impl Pace {
    fn new(budget: Budget) -> Self {
        Self {
            budget,
            passed: Vec::new(),
            counted: 0,
            began: None,
            throttled: 0,
            until: None,
            unrecorded: false,
        }
    }

    /// How many passed in the window that ends at `clock`.
    fn recently(&self, clock: u64) -> usize {
        self.passed.iter().filter(|&&at| at + self.budget.window > clock).count()
    }

    fn assert(&mut self, clock: u64) -> MaskReasons {
        let limit = self.budget.limit as usize;
        if self.counted == limit && self.began.is_none_or(|began| clock - began >= self.budget.window) {
            (self.counted, self.began, self.throttled) = (0, Some(clock), 0);
        }
        if self.counted < limit {
            self.counted += 1;
            self.passed.push(clock);
            assert!(self.recently(clock) <= 2 * limit, "more than twice the limit passed in a window");
            return MaskReasons::empty();
        }
        assert!(self.recently(clock) >= limit, "throttled although it kept its limit");
        self.unrecorded = true;
        self.throttled += 1;
        if self.throttled > self.budget.retries {
            return MaskReasons::QUARANTINE;
        }
        self.until = Some(clock + self.budget.pause);
        MaskReasons::THROTTLE
    }

    fn begin(&mut self, began: Option<u64>) {
        (self.counted, self.began, self.until) = (0, began, None);
        // A pause may be shorter than a window.
        self.passed.clear();
    }
}

/// The machine: the real table, the scripted board, the reference.
pub(crate) struct World<'t> {
    pub(crate) table: &'t LineTable,
    pub(crate) board: Board,
    pub(crate) gate: Gate,
    pub(crate) control: Option<Control>,
    pub(crate) replacing: Option<(Replacing<'t>, usize, Notifier, Completion)>,
    pub(crate) in_flight: VecDeque<Delivery<'t>>,
    pub(crate) expected: Vec<Expected>,
    /// How many vectors in a row nobody claimed who is believed.
    pub(crate) unclaimed: u32,
    /// The line is masked for good.
    pub(crate) stopped: bool,
}

impl<'t> World<'t> {
    pub(crate) fn sources(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.expected.len()
    }

    /// The notifier that an assertion meets now.
    pub(crate) fn published(&self, source: usize) -> (Notifier, bool) {
        match &self.replacing {
            Some((_, replaced, new, _)) if *replaced == source => (*new, true),
            _ => (self.expected[source].notifier, false),
        }
    }

    pub(crate) fn keep(&mut self, deliveries: Deliveries<'t>) {
        self.in_flight.extend(deliveries);
    }

    /// Whether `op` means anything now; what does not is skipped.
    pub(crate) fn apply(&mut self, op: Op) -> bool {
        match op {
            Op::Device(device, asserted) => {
                if self.board.devices[device].absent {
                    return false;
                }
                self.board.drive(device, asserted);
            }
            Op::Vanish(device) => self.board.devices[device].absent = true,
            Op::Lies(device, lie) => {
                if self.board.devices[device].lie == lie {
                    return false;
                }
                self.board.lie(device, lie);
            }
            Op::TakeVector => {
                if !self.board.take_vector() {
                    return false;
                }
                self.expect_wire();
                let mut deliveries = Deliveries::none();
                assert!(
                    self.table.assert(vector(), &mut self.board, &mut deliveries),
                    "the handler is permanent"
                );
                self.keep(deliveries);
                self.board.lapic_eoi();
            }
            Op::Raise => {
                let Some(delivery) = self.in_flight.pop_front() else { return false };
                self.board.raise(delivery.target(), delivery.source());
            }
            Op::GuestTake(number) => return self.board.guest_take(number),
            Op::GuestEoi(number) => {
                for source in self.board.guest_eoi(number) {
                    let from = pin(number as u8);
                    assert!(self.table.listeners(0, Pin(number as u8)).any(|listener| listener == source));
                    self.expect_eoi(usize::from(source.0), from);
                    let mut deliveries = Deliveries::none();
                    self.table.complete(source, from, &mut self.board, &mut deliveries);
                    self.keep(deliveries);
                }
            }
            Op::VirtualRte(number, masked) => {
                if self.board.pins[number].masked == masked {
                    return false;
                }
                self.board.pins[number].masked = masked;
                for source in self.table.listeners(0, Pin(number as u8)) {
                    self.expect_virtual_rte(usize::from(source.0), pin(number as u8), masked);
                    let deliveries =
                        self.table.virtual_rte(source, pin(number as u8), masked, &mut self.board);
                    self.keep(deliveries);
                }
            }
            Op::StaleEoi(source, number) => {
                // The pin is not this source's, so nobody is owed anything.
                let from = pin(number);
                if self.expected[source].serving.is_some_and(|(target, _)| target == from) {
                    return false;
                }
                let mut deliveries = Deliveries::none();
                self.table.complete(SourceId(source as u8), from, &mut self.board, &mut deliveries);
                assert!(deliveries.is_empty());
            }
            Op::Mask(source, reasons) => {
                let changes = !self.expected[source].given.contains(reasons);
                self.expected[source].given |= reasons;
                assert_eq!(self.table.mask(SourceId(source as u8), reasons, &mut self.board), changes);
            }
            Op::Unmask(source, reasons) => {
                let changes = self.expected[source].given.intersects(reasons);
                let storms = MaskReasons::THROTTLE | MaskReasons::QUARANTINE;
                let lifts = self.expected[source].given.intersects(reasons & storms);
                self.expected[source].given -= reasons;
                if changes {
                    if lifts && let Some(pace) = &mut self.expected[source].pace {
                        pace.throttled = 0;
                        pace.begin(None);
                    }
                    self.expect_reopening(source);
                }
                let (changed, deliveries) =
                    self.table.unmask(SourceId(source as u8), reasons, &mut self.board);
                assert_eq!(changed, changes);
                self.keep(deliveries);
            }
            Op::Loopback(source) => {
                let (now, replacing) = self.published(source);
                let expected = &mut self.expected[source];
                if !expected.reasons().intersects(MaskReasons::STOPS_LOOPBACK) && expected.serving.is_none() {
                    expected.notify(now, replacing, false);
                }
                let deliveries = self.table.loopback(SourceId(source as u8), &mut self.board);
                self.keep(deliveries);
            }
            Op::Replace(source, new, how) => {
                let Some(control) = self.control.take() else { return false };
                let replacing =
                    self.table.replace(control, SourceId(source as u8), new, how).expect("it exists");
                self.replacing = Some((replacing, source, new, how));
            }
            Op::Poll => {
                let Some((replacing, source, new, how)) = self.replacing.take() else { return false };
                // A delivery of the old epoch in flight is one that the source serves and that is not new.
                let old_in_flight = !self.expected[source].serving_new
                    && self.in_flight.iter().any(|delivery| usize::from(delivery.source().0) == source);
                if old_in_flight {
                    let Err(replacing) = replacing.poll(&mut self.board, &mut Deliveries::none()) else {
                        panic!("the grace period ended with a delivery to the old notifier in flight")
                    };
                    self.replacing = Some((replacing, source, new, how));
                } else {
                    self.expect_replaced(source, new);
                    let mut deliveries = Deliveries::none();
                    let Ok(replacement) = replacing.poll(&mut self.board, &mut deliveries) else {
                        panic!("nobody is in flight to the old notifier, and yet the grace period goes on")
                    };
                    self.control = Some(replacement.control);
                    self.keep(deliveries);
                }
            }
            Op::Tick => self.board.clock += 1,
            Op::Resume(source) => {
                let clock = self.board.clock;
                let mut unrecorded = false;
                if let Some(pace) = &mut self.expected[source].pace {
                    unrecorded = core::mem::take(&mut pace.unrecorded);
                    if pace.until.is_some_and(|until| until <= clock) {
                        pace.begin(Some(clock));
                        self.expected[source].given -= MaskReasons::THROTTLE;
                        self.expect_reopening(source);
                    }
                }
                let (storm, deliveries) = self.table.resume(SourceId(source as u8), clock, &mut self.board);
                assert_eq!(storm.is_some(), unrecorded, "each storm is recorded once");
                self.keep(deliveries);
            }
        }
        true
    }

    pub(crate) fn expect_wire(&mut self) {
        if self.gate != Gate::Function {
            for source in self.sources() {
                let (now, replacing) = self.published(source);
                self.expected[source].assert(now, replacing, self.board.clock);
            }
            return;
        }
        // Who is doubted is believed only if nobody else claims it.
        let believed = self.expect_claims(false);
        if believed {
            self.unclaimed = 0;
        } else if !self.expect_claims(true) {
            self.expect_unclaimed();
        }
    }

    /// The vector asks those who are open and doubted, or are not. Whether one of them claims it.
    fn expect_claims(&mut self, doubted: bool) -> bool {
        let mut claimed = false;
        for source in self.sources() {
            let (now, replacing) = self.published(source);
            let device = &self.board.devices[source];
            let expected = &mut self.expected[source];
            if expected.doubted != doubted || !expected.reasons().is_empty() {
                continue;
            }
            if device.absent {
                expected.given |= MaskReasons::QUARANTINE;
            } else if device.shows() {
                claimed = true;
                expected.assert(now, replacing, self.board.clock);
            } else if doubted {
                expected.seen_clear();
            }
        }
        claimed
    }

    /// Nobody claims the vector: too often in a row, and somebody lies.
    fn expect_unclaimed(&mut self) {
        self.unclaimed += 1;
        if self.unclaimed < self.board.patience || self.stopped {
            return;
        }
        self.unclaimed = 0;
        if let [alone] = &mut self.expected[..] {
            self.gate = Gate::RteMask;
            alone.seen_clear();
        } else {
            self.stopped = true;
            self.expected.iter_mut().for_each(|expected| expected.given |= MaskReasons::QUARANTINE);
        }
    }

    pub(crate) fn expect_eoi(&mut self, source: usize, from: Notifier) {
        let expected = &mut self.expected[source];
        match &mut expected.serving {
            Some((target, eoi)) if *target == from && expected.pin_masked => *eoi = true,
            Some((target, _)) if *target == from => {
                expected.serving = None;
                self.expect_reopening(source);
            }
            _ => {}
        }
    }

    pub(crate) fn expect_virtual_rte(&mut self, source: usize, changed: Notifier, masked: bool) {
        let expected = &mut self.expected[source];
        if expected.notifier == changed {
            expected.pin_masked = masked;
            if !masked && matches!(expected.serving, Some((_, true))) {
                expected.serving = None;
            }
            if !masked {
                self.expect_reopening(source);
            }
        }
    }

    pub(crate) fn expect_replaced(&mut self, source: usize, new: Notifier) {
        let masked = match new {
            Notifier::Pin { vpin, .. } => self.board.pins[usize::from(vpin.0)].masked,
            Notifier::None | Notifier::Poll { .. } => false,
        };
        let expected = &mut self.expected[source];
        if expected.serving.is_some() && !expected.serving_new {
            expected.serving = None;
        }
        expected.serving_new = false;
        expected.notifier = new;
        expected.pin_masked = masked;
        if !new.is_none() {
            expected.unheard = false;
        }
        if !masked && matches!(expected.serving, Some((_, true))) {
            expected.serving = None;
        }
        self.expect_reopening(source);
    }

    /// A reason is gone. Behind a function gate a device that still asserts is heard at once; a line gate opens and
    /// the chip speaks up by itself.
    pub(crate) fn expect_reopening(&mut self, source: usize) {
        let (now, replacing) = match &self.replacing {
            Some((_, replaced, new, _)) if *replaced == source => (*new, true),
            _ => (self.expected[source].notifier, false),
        };
        let device = &self.board.devices[source];
        let expected = &mut self.expected[source];
        if self.gate == Gate::Function && expected.reasons().is_empty() && device.disintx {
            if device.absent {
                expected.given |= MaskReasons::QUARANTINE;
            } else if !device.shows() {
                expected.seen_clear();
            } else if !expected.doubted {
                expected.assert(now, replacing, self.board.clock);
                expected.insisted += 1;
                if expected.insisted >= self.board.patience {
                    (expected.insisted, expected.doubted) = (0, true);
                }
            }
        }
    }

    pub(crate) fn line(&self) -> LineState {
        self.table.line_reports().next().expect("one line").state
    }

    /// Everything that must hold between any two events.
    pub(crate) fn check(&self) {
        let line = self.line();
        let mut union = MaskReasons::empty();
        for source in self.sources() {
            let report = self.table.source_report(SourceId(source as u8)).expect("assigned");
            let expected = &self.expected[source];
            let device = &self.board.devices[source];
            let reasons = report.state.reasons;
            union |= reasons;
            assert_eq!(
                reasons,
                expected.reasons(),
                "source {source} is masked for other reasons than it should be"
            );
            let serving = match report.state.service {
                Service::Idle => None,
                Service::InService(addressee) => Some((addressee.target(), false)),
                Service::AwaitUnmask(addressee) => Some((addressee.target(), true)),
                Service::Notifying(_) => panic!("a transition was left half done"),
            };
            assert_eq!(serving, expected.serving, "source {source}");
            assert_eq!(line.doubted.contains(sharer(source)), expected.doubted, "source {source}");
            report.account.balance().unwrap_or_else(|imbalance| panic!("{imbalance}: {}", report.account));
            // I13: the gate and the reasons agree, in the chip.
            if self.gate == Gate::Function {
                assert_eq!(device.disintx, !reasons.is_empty(), "source {source}: gate against {reasons}");
            }
            // The virtual pin is high from delivery to completion and at no other time.
            let in_flight =
                self.in_flight.iter().filter(|delivery| usize::from(delivery.source().0) == source).count();
            assert!(in_flight <= 1, "source {source} is delivered twice at a time");
            for number in 0..PINS {
                let high = self.board.pins[number].high >> source & 1 != 0;
                let served = serving.is_some_and(|(target, _)| target == pin(number as u8));
                assert_eq!(high, served && in_flight == 0, "source {source} on virtual pin {number}");
            }
            // What is asserted, open and idle has a vector on its way.
            if device.asserts() && !line.is_closed(sharer(source)) {
                assert!(self.board.chip.irr, "the assertion of source {source} is lost");
            }
        }
        let chip = &self.board.chip;
        assert_eq!(chip.rte_masked, line.rte_masked);
        match self.gate {
            Gate::RteMask => assert_eq!(chip.rte_masked, !union.is_empty()),
            Gate::DirectedEoi => {
                assert_eq!(chip.rte_masked || line.held, !union.is_empty());
                assert!(
                    !line.held || chip.remote_irr,
                    "the line believes in a hold that the chip does not have"
                );
                assert_eq!(chip.remote_irr, line.held || chip.irr, "Remote IRR is orphaned");
            }
            Gate::Function => assert_eq!(chip.rte_masked, self.stopped),
        }
    }

    /// Lets everybody finish: devices are honest, deliveries land, a notifier is there, all masks are gone, the guest serves
    /// what it gets.
    /// Returns how often the guest served each device.
    pub(crate) fn quiesce(&mut self) -> Vec<u64> {
        for source in self.sources() {
            self.apply(Op::Lies(source, Lie::None));
        }
        while self.apply(Op::Raise) || self.apply(Op::Poll) {}
        for source in self.sources() {
            self.apply(Op::Replace(source, pin(0), Completion::Handover));
            self.apply(Op::Unmask(source, MaskReasons::GIVEN));
            while self.apply(Op::Raise) || self.apply(Op::Poll) {}
        }
        for number in 0..PINS {
            self.apply(Op::VirtualRte(number, false));
        }
        let mut served = vec![0; self.expected.len()];
        for _ in 0..100 {
            let mut busy = self.apply(Op::TakeVector);
            busy |= self.apply(Op::Raise);
            for number in 0..PINS {
                self.apply(Op::GuestTake(number));
                if self.board.pins[number].remote_irr {
                    busy = true;
                    for source in self.sources() {
                        if self.board.pins[number].high >> source & 1 != 0 {
                            served[source] += u64::from(self.board.devices[source].asserted);
                            self.apply(Op::Device(source, false));
                        }
                    }
                    self.apply(Op::GuestEoi(number));
                }
            }
            // What a storm budget imposed on the way is lifted.
            for source in self.sources() {
                let storms = MaskReasons::THROTTLE | MaskReasons::QUARANTINE;
                if !self.board.devices[source].absent && self.expected[source].given.intersects(storms) {
                    busy = true;
                    self.apply(Op::Unmask(source, storms));
                }
            }
            self.check();
            if !busy {
                break;
            }
        }
        for source in self.sources() {
            let report = self.table.source_report(SourceId(source as u8)).expect("assigned");
            let gone = self.board.devices[source].absent;
            assert!(gone || report.state.reasons.is_empty(), "quiet, but closed: {}", report.state.reasons);
            assert!(!report.account.in_service && !report.account.pending);
            report.account.balance().expect("the closing ledger balances");
        }
        served
    }
}

/// Sources and places are numbered alike on a board with one line.
pub(crate) fn sharer(source: usize) -> Sharer {
    Sharer::new(source as u8).expect("few devices")
}

/// Runs `body` in a fresh world without storm budgets.
pub(crate) fn world<R>(gate: Gate, devices: usize, body: impl FnOnce(&mut World<'_>) -> R) -> R {
    paced(gate, devices, None, body)
}

/// Runs `body` in a fresh world in which each device has this storm budget.
pub(crate) fn paced<R>(
    gate: Gate,
    devices: usize,
    budget: Option<Budget>,
    body: impl FnOnce(&mut World<'_>) -> R,
) -> R {
    suspicious(gate, devices, budget, LIE_LIMIT, body)
}

/// Runs `body` in a fresh world in which so many disagreements in a row are taken for a lie.
pub(crate) fn suspicious<R>(
    gate: Gate,
    devices: usize,
    budget: Option<Budget>,
    patience: u32,
    body: impl FnOnce(&mut World<'_>) -> R,
) -> R {
    let mut board = Board::new(devices, gate);
    (board.budget, board.patience) = (budget, patience);
    let (table, control) = assign_all(&mut board, gate).expect("the board is assigned");
    let mut world = World {
        table: &table,
        board,
        gate,
        control: Some(control),
        replacing: None,
        in_flight: VecDeque::new(),
        expected: vec![Expected { pace: budget.map(Pace::new), ..Expected::default() }; devices],
        unclaimed: 0,
        stopped: false,
    };
    world.check();
    body(&mut world)
}

impl World<'_> {
    /// One event, which must mean something, and everything that must hold after it.
    pub(crate) fn does(&mut self, op: Op) {
        assert!(self.apply(op), "{op:?} finds nothing to do");
        self.check();
    }

    pub(crate) fn all(&mut self, ops: &[Op]) {
        for &op in ops {
            self.does(op);
        }
    }

    /// Brings the notifier `new`, with nobody in flight.
    pub(crate) fn bring(&mut self, new: Notifier) {
        self.all(&[Op::Replace(0, new, Completion::Handover), Op::Poll]);
    }
}

impl World<'_> {
    /// Everything the state consists of, counters aside, as one number: two of some ten thousand states meet in
    /// 64 bits less than once in 10^10 searches.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.line(), &self.board.devices, &self.board.chip, &self.board.pins).hash(&mut hasher);
        // Where a lie takes a thousand steps to be found out, each of them is as good as another.
        let counts_lies = self.board.patience < LIE_LIMIT;
        counts_lies.then_some(self.unclaimed).hash(&mut hasher);
        for source in self.sources() {
            let report = self.table.source_report(SourceId(source as u8)).expect("assigned");
            let Expected { serving_new, insisted, .. } = self.expected[source];
            (report.slot, serving_new, counts_lies.then_some(insisted)).hash(&mut hasher);
            if let Some(meter) = report.meter {
                // Only distances in time count.
                let now = self.board.clock;
                let window = meter.budget.window;
                let window = meter.since.map_or(window, |since| window.min(now - since));
                let pause = meter.resume_at.map(|at| at.saturating_sub(now));
                (meter.left, window, meter.strikes, pause, meter.storm.is_some()).hash(&mut hasher);
            }
        }
        self.replacing.as_ref().map(|(_, source, new, how)| (source, new, how)).hash(&mut hasher);
        for delivery in &self.in_flight {
            (delivery.source(), delivery.target()).hash(&mut hasher);
        }
        hasher.finish()
    }
}
