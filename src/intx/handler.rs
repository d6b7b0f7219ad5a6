//! The permanent handler of one line: state, slots and hardware put together in the right order.
//!
//! A handler stands from the first assignment on its line to the last release, whatever happens to notifiers, masks
//! and guests. Each of its operations is one hold of the line's lock around [`Line::step`] and its effects,
//! carried out on a [`LineIo`]; what must happen outside the lock is returned as [`Deliveries`]. Nothing here allocates,
//! waits, or can panic.

use core::fmt;

use arrayvec::ArrayVec;

use super::event::{Effects, Event};
use super::gate::{Gate, Sample};
use super::ledger::Completion;
use super::line::Line;
use super::notifier::{Control, Entered, Notifier, NotifierSlot, Retiring};
use super::recorder::{Actor, Happening, Recorder};
use super::sharers::{Alone, MAX_SHARERS, Seating, Several, Sharer, SharerSet};
use crate::irq::{Gsi, Vector};
use crate::sync::{AtomicU64, Lock, Ordering};

/// An assigned function's INTx, machine-wide. A guest may put any number in it: an operation on a source that does
/// not exist does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u8);

impl SourceId {
    /// Its bit in a listener word. Assigned sources are below [`super::MAX_SOURCES`], so nothing wraps.
    pub(super) const fn bit(self) -> u64 {
        1_u64.wrapping_shl(self.0 as u32)
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source {}", self.0)
    }
}

/// What does not change about a source while it is assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceInfo {
    /// The partition that has it for good; none if it may change hands.
    pub owner: Option<u8>,
    /// The function, as bus, device and function in 8, 5 and 3 bits (PCI 3.0 3.2.2.3.2).
    pub bdf: u16,
}

/// Both ends of a line, as far as its rules must reach them: the chips on one, the virtual pin on the other.
///
/// Every method is called with the line's lock held. None may wait, none may call back into the table, and none is
/// called for a function that is in reset, asleep or gone.
pub trait LineIo {
    /// Masks the redirection table entry of `gsi`. Effective in the chip on return.
    fn mask_rte(&mut self, gsi: Gsi);
    /// Unmasks the redirection table entry of `gsi`.
    fn unmask_rte(&mut self, gsi: Gsi);
    /// Writes `vector` to the EOI register of the IO-APIC of `gsi`.
    fn directed_eoi(&mut self, gsi: Gsi, vector: Vector);
    /// Writes DisINTx, and no other bit, of the function `bdf`.
    fn set_disintx(&mut self, bdf: u16, set: bool);
    /// Reads INTx Status of the function `bdf`.
    fn intx_status(&mut self, bdf: u16) -> Sample;
    /// Takes `source`'s level off the virtual pin `target`. A poll counter has no level; nothing is to be done then.
    fn lower_pin(&mut self, source: SourceId, target: Notifier);
    /// Whether `source` holds the virtual pin `target` high now. True of what is no pin.
    fn holds_pin(&mut self, source: SourceId, target: Notifier) -> bool;
    /// Whether the guest has the redirection table entry of the virtual pin `target` masked now.
    fn virtual_rte_masked(&mut self, target: Notifier) -> bool;
    /// A clock that never runs backwards, in ticks of any length.
    fn now(&mut self) -> u64;
    /// On whose behalf the line is called, for the record.
    fn actor(&self) -> Actor;
}

/// One line: its lock, and beside the lock what the interrupt path reads without it.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) gsi: Gsi,
    pub(super) vector: Vector,
    /// Who sits at each place; changed only through `&mut`.
    pub(super) seats: [Option<Seat>; MAX_SHARERS],
    pub(super) slots: [NotifierSlot; MAX_SHARERS],
    pub(super) state: Lock<Recorded>,
    pub(super) registrations: Registrations,
}

/// A line, and who looks at it after each step.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) line: Line,
    pub(super) recorder: Recorder,
}

impl Recorded {
    pub(super) const fn new(gate: Gate, patience: u32) -> Self {
        Self { line: Line::with_patience(gate, patience), recorder: Recorder::new() }
    }

    #[inline]
    pub(super) fn note<S: Seating>(&mut self, what: Happening, sharers: SharerSet, io: &mut impl LineIo) {
        self.recorder.note::<S>(self.line.state(), what, sharers, io.actor(), io.now());
    }
}

/// A source at its place on the line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) source: SourceId,
    pub(super) info: SourceInfo,
}

/// How often a line's permanent handler was installed and removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Registrations {
    /// Times the line's vector was claimed.
    pub installed: u64,
    /// Times it was given back.
    pub removed: u64,
}

impl Handler {
    /// A handler for a line that still has no source.
    pub(super) fn new(gsi: Gsi, vector: Vector, gate: Gate, patience: u32) -> Self {
        Self {
            gsi,
            vector,
            seats: [None; MAX_SHARERS],
            slots: core::array::from_fn(|_| NotifierSlot::new()),
            state: Lock::new(Recorded::new(gate, patience)),
            registrations: Registrations::default(),
        }
    }

    /// One event under the line's lock: whether it changed anything, and what is to be done outside of the lock.
    pub(super) fn drive(&self, event: Event, io: &mut impl LineIo) -> (bool, Deliveries<'_>) {
        let mut deliveries = Deliveries::none();
        let changed = self.state.with(|state| self.run::<Several>(state, event, &mut deliveries, io));
        (changed, deliveries)
    }

    /// The line's vector arrived. With its event spelled out here the compiler keeps the rules of that event alone;
    /// the same goes for [`Handler::complete`], the other half of every interrupt.
    #[inline]
    pub(super) fn assert<'t>(&'t self, io: &mut impl LineIo, deliveries: &mut Deliveries<'t>) {
        self.state.with(|state| {
            if is_exclusive(&state.line) {
                self.run::<Alone>(state, Event::Wire { metered: false }, deliveries, io);
            } else {
                self.assert_apart(state, io, deliveries);
            }
        });
    }

    // Apart, so that the compiler leaves on the path of an exclusive line what that needs.
    #[inline(never)]
    fn assert_apart<'t>(
        &'t self,
        state: &mut Recorded,
        io: &mut impl LineIo,
        deliveries: &mut Deliveries<'t>,
    ) {
        self.run::<Several>(state, Event::Wire { metered: false }, deliveries, io);
    }

    /// [`Handler::assert`] for a line on which somebody has a storm budget: apart, so that the others do not pay for it.
    #[inline(never)]
    pub(super) fn assert_metered<'t>(&'t self, io: &mut impl LineIo, deliveries: &mut Deliveries<'t>) {
        let event = Event::Wire { metered: true };
        self.state.with(|state| {
            if is_exclusive(&state.line) {
                self.run::<Alone>(state, event, deliveries, io)
            } else {
                self.run::<Several>(state, event, deliveries, io)
            }
        });
    }

    /// The guest completed.
    #[inline]
    pub(super) fn complete<'t>(
        &'t self,
        sharer: Sharer,
        from: Notifier,
        io: &mut impl LineIo,
        deliveries: &mut Deliveries<'t>,
    ) {
        self.state.with(|state| {
            let in_flight = self.slots.get(sharer.index()).is_some_and(NotifierSlot::is_in_flight);
            if in_flight && self.overtakes(sharer, from, io) {
                // As if it came through nobody, which nothing is in service through.
                let _stale = state.line.step(Event::Eoi { sharer, from: Notifier::None });
            } else if is_exclusive(&state.line) && sharer == Sharer::FIRST {
                self.run::<Alone>(state, Event::Eoi { sharer: Sharer::FIRST, from }, deliveries, io);
            } else {
                self.complete_apart(state, sharer, from, io, deliveries);
            }
        });
    }

    /// Of a delivery in flight: whether its pin is low, so that the guest cannot have seen it. The EOI was under way since an older
    /// one then, which has ended meanwhile, and is stale. To be asked under the line's lock, where nothing else ends the delivery.
    #[cold]
    #[inline(never)]
    fn overtakes(&self, sharer: Sharer, from: Notifier, io: &mut impl LineIo) -> bool {
        self.seat(sharer).is_some_and(|seat| !io.holds_pin(seat.source, from))
    }

    // As `assert_apart`.
    #[inline(never)]
    fn complete_apart<'t>(
        &'t self,
        state: &mut Recorded,
        sharer: Sharer,
        from: Notifier,
        io: &mut impl LineIo,
        deliveries: &mut Deliveries<'t>,
    ) {
        self.run::<Several>(state, Event::Eoi { sharer, from }, deliveries, io);
    }

    /// One event from beginning to end: step, effects, the slots that are to be entered, the functions that are to be
    /// sampled, and what the recorder makes of it. Whether the event changed anything.
    #[inline(always)]
    fn run<'t, S: Seating>(
        &'t self,
        state: &mut Recorded,
        event: Event,
        deliveries: &mut Deliveries<'t>,
        io: &mut impl LineIo,
    ) -> bool {
        let line = &mut state.line;
        let effects = line.step_as::<S>(event);
        self.carry_out(&effects, io);
        let mut touched = event.sharer().map_or(SharerSet::EMPTY, SharerSet::only).union(effects.notify);
        for sharer in S::each(effects.notify) {
            self.notify::<S>(line, sharer, deliveries, io);
        }
        if !effects.sample.is_empty() || effects.unclaimed {
            let wire = matches!(event, Event::Wire { .. });
            touched = touched.union(self.ask(line, effects.sample, wire, deliveries, io));
        }
        if !effects.overdrawn.is_empty() {
            touched = touched.union(effects.overdrawn);
            self.time(line, effects.overdrawn, deliveries, io);
        }
        // What names nobody, the vector, is worth a note if it concerned anybody.
        let noted = if event.sharer().is_some() { effects.changed } else { !touched.is_empty() };
        if noted {
            state.note::<S>(Happening::of(&event), touched, io);
        }
        effects.changed
    }

    /// Function gates only: reads Status of each of `sharers` and goes by it. If it was the vector that asks, those who are
    /// doubted are left alone unless none of the others asserts; and if none at all does, nobody claims it. Whose reasons may
    /// have changed.
    #[inline(never)]
    fn ask<'t>(
        &'t self,
        line: &mut Line,
        sharers: SharerSet,
        wire: bool,
        deliveries: &mut Deliveries<'t>,
        io: &mut impl LineIo,
    ) -> SharerSet {
        let doubted = if wire { sharers.intersection(line.state().doubted) } else { SharerSet::EMPTY };
        let (mut heard, mut touched) = self.ask_each(line, sharers.difference(doubted), deliveries, io);
        if !heard && !doubted.is_empty() {
            let (claimed, quarantined) = self.ask_last(line, doubted, deliveries, io);
            (heard, touched) = (claimed, touched.union(quarantined));
        }
        if wire && !heard {
            let effects = line.step(Event::Unclaimed);
            self.carry_out(&effects, io);
            if effects.changed {
                touched = line.state().present;
            }
        }
        if line.has_finding() {
            deliveries.finding = Some(self);
        }
        touched
    }

    /// [`Handler::ask_each`] apart, as hardly any line has somebody who is doubted.
    #[cold]
    #[inline(never)]
    fn ask_last<'t>(
        &'t self,
        line: &mut Line,
        sharers: SharerSet,
        deliveries: &mut Deliveries<'t>,
        io: &mut impl LineIo,
    ) -> (bool, SharerSet) {
        self.ask_each(line, sharers, deliveries, io)
    }

    /// Reads Status of each of `sharers` and goes by it. Whether one of them asserts, and whose reasons may have changed.
    #[inline(always)]
    fn ask_each<'t>(
        &'t self,
        line: &mut Line,
        sharers: SharerSet,
        deliveries: &mut Deliveries<'t>,
        io: &mut impl LineIo,
    ) -> (bool, SharerSet) {
        let mut heard = false;
        let mut touched = SharerSet::EMPTY;
        // What one answer asks for beyond these was asked for already: a step asks for all whose gate may open.
        for sharer in sharers {
            let sample = self.seat(sharer).map_or(Sample::Absent, |seat| io.intx_status(seat.info.bdf));
            heard |= sample == Sample::High;
            if sample != Sample::Low {
                touched.insert(sharer);
            }
            let effects = line.step(Event::Sampled { sharer, sample });
            self.carry_out(&effects, io);
            for sharer in effects.notify {
                self.notify::<Several>(line, sharer, deliveries, io);
            }
            if !effects.overdrawn.is_empty() {
                self.time(line, effects.overdrawn, deliveries, io);
            }
        }
        (heard, touched)
    }

    /// Storm budgets only: reads the clock for each of `sharers` and goes by it.
    #[inline(never)]
    fn time<'t>(
        &'t self,
        line: &mut Line,
        sharers: SharerSet,
        deliveries: &mut Deliveries<'t>,
        io: &mut impl LineIo,
    ) {
        for sharer in sharers {
            let effects = line.step(Event::Timed { sharer, now: io.now() });
            self.carry_out(&effects, io);
            for sharer in effects.notify {
                self.notify::<Several>(line, sharer, deliveries, io);
            }
        }
    }

    /// Asks the slot where the assertion goes. The line learns of it in the same hold of its lock, so that a
    /// replacement that finishes later finds the delivery in the line's state.
    #[inline(always)]
    fn notify<'t, S: Seating>(
        &'t self,
        line: &mut Line,
        sharer: Sharer,
        deliveries: &mut Deliveries<'t>,
        io: &mut impl LineIo,
    ) {
        let (Some(slot), Some(seat)) = (self.slots.get(sharer.index()), self.seat(sharer)) else { return };
        let entered = slot.enter();
        let addressee = entered.addressee();
        let effects = line.step_as::<S>(Event::Notified { sharer, addressee });
        if !addressee.is_none() {
            // The gate was closed for the delivery and stays so: there is nothing to carry out.
            deliveries.put(Delivery { slot, entered, source: seat.source });
            return;
        }
        // Closed now for want of a notifier, which may take another gate than a delivery in service does.
        self.carry_out(&effects, io);
        if effects.mark {
            slot.leave_mark(entered);
        } else {
            slot.leave(entered);
        }
    }

    /// Close, lower, open.
    #[inline(always)]
    pub(super) fn carry_out(&self, effects: &Effects, io: &mut impl LineIo) {
        if effects.mask_rte {
            io.mask_rte(self.gsi);
        }
        for seat in effects.set_disintx.filter_map(|sharer| self.seat(sharer)) {
            io.set_disintx(seat.info.bdf, true);
        }
        if let Some((sharer, addressee)) = effects.lower
            && let Some(seat) = self.seat(sharer)
        {
            io.lower_pin(seat.source, addressee.target());
        }
        for seat in effects.clear_disintx.filter_map(|sharer| self.seat(sharer)) {
            io.set_disintx(seat.info.bdf, false);
        }
        if effects.unmask_rte {
            io.unmask_rte(self.gsi);
        }
        if effects.directed_eoi {
            io.directed_eoi(self.gsi, self.vector);
        }
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.seats.iter().any(Option::is_some)
    }

    #[inline]
    fn seat(&self, sharer: Sharer) -> Option<&Seat> {
        self.seats.get(sharer.index())?.as_ref()
    }
}

/// Whether there is one source, and its gate is the line's own.
#[inline(always)]
fn is_exclusive(line: &Line) -> bool {
    let state = line.state();
    state.gate == Gate::RteMask && state.present == Alone::PRESENT
}

/// The deliveries that one event caused: each virtual pin is still to be raised, outside the line's lock.
///
/// Those that are not made give up their places when this is dropped, so that the next replacement does not wait for ever.
#[derive(Debug)]
#[must_use = "a delivery that is not made is an interrupt lost: raise each target"]
pub struct Deliveries<'t> {
    to_make: ArrayVec<Delivery<'t>, MAX_SHARERS>,
    /// A line about which something was found out.
    finding: Option<&'t Handler>,
}

impl<'t> Deliveries<'t> {
    /// Nothing to deliver.
    #[inline]
    pub const fn none() -> Self {
        Self { to_make: ArrayVec::new_const(), finding: None }
    }

    #[inline(always)]
    fn put(&mut self, delivery: Delivery<'t>) {
        // A line has as many sources as there is room, and each is notified once in an event.
        let _never_full = self.to_make.try_push(delivery);
    }

    /// Whether there is nothing to deliver.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.to_make.is_empty()
    }

    /// Whether there is nothing to deliver and nothing to record either.
    #[inline]
    pub const fn is_nothing(&self) -> bool {
        self.is_empty() && self.finding.is_none()
    }

    /// Where nothing is to be delivered: the vector of a line about whose functions something was found out, see
    /// [`LineTable::take_finding`](super::LineTable::take_finding).
    pub fn found(&self) -> Option<Vector> {
        self.finding.filter(|_| self.is_empty()).map(|handler| handler.vector)
    }
}

impl<'t> Iterator for Deliveries<'t> {
    type Item = Delivery<'t>;

    #[inline]
    fn next(&mut self) -> Option<Delivery<'t>> {
        self.to_make.pop()
    }
}

/// One delivery in flight. While it exists, no replacement of its notifier finishes.
#[derive(Debug)]
#[must_use = "raise the target's pin, then drop it"]
pub struct Delivery<'t> {
    slot: &'t NotifierSlot,
    entered: Entered,
    source: SourceId,
}

impl Delivery<'_> {
    /// Where the assertion goes; never [`Notifier::None`].
    #[inline]
    pub const fn target(&self) -> Notifier {
        self.entered.target()
    }

    /// Whose assertion it is. Sources on one virtual pin are OR-ed by the pin's owner.
    #[inline]
    pub const fn source(&self) -> SourceId {
        self.source
    }
}

impl Drop for Delivery<'_> {
    /// The pin is high: the delivery is no longer in flight.
    #[inline]
    fn drop(&mut self) {
        self.slot.leave(self.entered);
    }
}

/// A replacement under way: published, and waiting for the last delivery to the old notifier.
#[derive(Debug)]
#[must_use = "the old notifier is in use until the replacement is polled to its end"]
pub struct Replacing<'t> {
    pub(super) handler: &'t Handler,
    pub(super) slot: &'t NotifierSlot,
    /// The listener word of the old notifier, to be left when it is out of use; none if the new one is the same.
    pub(super) left: Option<&'t AtomicU64>,
    pub(super) sharer: Sharer,
    pub(super) source: SourceId,
    pub(super) how: Completion,
    pub(super) retiring: Retiring,
}

/// A replacement that is over.
#[derive(Debug)]
pub struct Replacement {
    /// The right to replace, back.
    pub control: Control,
    /// The notifier that is out of use.
    pub old: Notifier,
    /// Whether an assertion had been waiting for a notifier.
    pub marked: bool,
}

impl<'t> Replacing<'t> {
    /// Whose notifier is being replaced.
    pub const fn source(&self) -> SourceId {
        self.source
    }

    /// Looks once, never spins. When it is over, no CPU is in the old notifier and none will enter it; what was in
    /// service there is completed and its pin lowered; and the source's gate stands as its reasons demand. At a function gate
    /// the assertion that Status still shows, for the new notifier, is put into `deliveries`. (At a line gate the chip sends it again.)
    ///
    /// # Errors
    ///
    /// Not an error but a state: a delivery to the old notifier is still in flight. Ask again from the run loop.
    pub fn poll(self, io: &mut impl LineIo, deliveries: &mut Deliveries<'t>) -> Result<Replacement, Self> {
        let Self { handler, slot, left, sharer, source, how, retiring } = self;
        let retired = match retiring.poll(slot) {
            Ok(retired) => retired,
            Err(retiring) => return Err(Self { handler, slot, left, sharer, source, how, retiring }),
        };
        handler.state.with(|state| {
            // Read under the lock: a change after this moment is reported as an event of its own, after this one.
            let masked = !retired.new.is_none() && io.virtual_rte_masked(retired.new);
            handler.run::<Several>(state, Event::retired(sharer, &retired, masked, how), deliveries, io)
        });
        if let Some(listeners) = left {
            listeners.fetch_and(!source.bit(), Ordering::AcqRel);
        }
        Ok(Replacement { control: retired.control, old: retired.old, marked: retired.marked })
    }
}
