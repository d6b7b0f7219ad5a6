//! One physical line as a pure state machine: [`Line::step`] takes an [`Event`] and returns [`Effects`].
//!
//! Nothing here touches a chip, a slot, a lock or memory outside the line. The caller holds the line's lock over the
//! step *and* over the effects, and carries them out in this order:
//!
//! 1. **close**: [`Effects::mask_rte`], [`Effects::set_disintx`];
//! 2. **lower** the virtual pin of the delivery that ended, [`Effects::lower`];
//! 3. **open**: [`Effects::clear_disintx`], [`Effects::unmask_rte`], [`Effects::directed_eoi`];
//! 4. **notify**: enter the slot of each of [`Effects::notify`] and report what it showed ([`Event::Notified`]);
//! 5. **sample** the INTx Status of each of [`Effects::sample`] and report it ([`Event::Sampled`]); if it is a vector that asks,
//!    those of them that are [doubted](LineState::doubted) only after the others, and if none of these asserts;
//! 6. **time**: read the clock for each of [`Effects::overdrawn`] and report it ([`Event::Timed`]).
//!
//! Closing comes first so that the mask is effective before anything else happens; lowering comes before opening so
//! that the next assertion cannot be taken for the last one. No step opens a source that it also notifies. The virtual
//! pin of a new delivery is raised after the lock is released. `table.rs` is that caller.
//!
//! The physical gate is never set by an event directly. Events change reason sets; `settle`, at the end of every step,
//! derives from the sets what the gate must be and emits only the difference. So a gate cannot disagree with its
//! reasons, and closing twice or opening twice is not a thing that can be said.

use alloc::boxed::Box;

use super::event::{Effects, Event};
use super::gate::{Gate, Sample};
use super::ledger::{Account, Completion, Ledger, count};
use super::notifier::{Addressee, Notifier};
use super::reasons::MaskReasons;
use super::sharers::{MAX_SHARERS, Seating, Several, Sharer, SharerSet};
use super::state::{LineState, Origin, Service, SourceState};
use super::storm::{Budget, Meter, Outcome, Storm, Verdict};
use super::suspicion::{LIE_LIMIT, LineFinding, Suspicion};

/// The storm budgets of a line's sources, by place.
type Meters = [Option<Meter>; MAX_SHARERS];

/// One physical line with its sources.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    state: LineState,
    ledgers: [Ledger; MAX_SHARERS],
    /// None on a line on which nobody has a storm budget, which so stays as small as the others are.
    meters: Option<Box<Meters>>,
    interrupts: u64,
    suspicion: Suspicion,
}

impl Line {
    /// A line whose RTE is programmed and masked, and whose sources are still to come.
    pub const fn new(gate: Gate) -> Self {
        Self::with_patience(gate, LIE_LIMIT)
    }

    /// [`Line::new`], where so many disagreements in a row are taken for a lie instead of [`LIE_LIMIT`].
    pub const fn with_patience(gate: Gate, patience: u32) -> Self {
        const NO_ENTRIES: Ledger = Ledger {
            accepted: super::ledger::Accepted { wire: 0, loopback: 0, replay: 0 },
            delivered: 0,
            coalesced: 0,
            suppressed: super::ledger::Suppressed { masked: 0, loopback: 0, carried: 0 },
            completed: super::ledger::Completed { eoi: 0, forced: 0, reset: 0, handover: 0 },
            stale_eois: 0,
        };
        let state = LineState {
            gate,
            present: SharerSet::EMPTY,
            rte_masked: true,
            held: false,
            disintx: SharerSet::EMPTY,
            doubted: SharerSet::EMPTY,
            stopped: false,
            sources: [SourceState::NEW; MAX_SHARERS],
        };
        Self {
            state,
            ledgers: [NO_ENTRIES; MAX_SHARERS],
            meters: None,
            interrupts: 0,
            suspicion: Suspicion::new(patience),
        }
    }

    /// The protocol state.
    pub const fn state(&self) -> &LineState {
        &self.state
    }

    /// How often the line's vector arrived.
    pub const fn interrupts(&self) -> u64 {
        self.interrupts
    }

    /// How often its vector arrived and no source asserted.
    pub const fn unclaimed(&self) -> u64 {
        self.suspicion.unclaimed
    }

    /// Whether something was found out about the line's functions that is still to be recorded.
    #[inline]
    pub(super) const fn has_finding(&self) -> bool {
        self.suspicion.found
    }

    /// Takes one thing that was found out about the line's functions, to record it.
    pub fn take_finding(&mut self) -> Option<LineFinding> {
        self.suspicion.take()
    }

    /// What the line knows of a source, or `None` if the place is not taken.
    #[inline]
    pub fn source(&self, sharer: Sharer) -> Option<&SourceState> {
        if !self.state.present.contains(sharer) {
            return None;
        }
        self.state.sources.get(sharer.index())
    }

    /// Gives a source a storm budget, none of it used. Whether the place is taken.
    pub fn limit(&mut self, sharer: Sharer, budget: Budget) -> bool {
        if !self.state.present.contains(sharer) {
            return false;
        }
        self.meters.get_or_insert_with(Box::default);
        meter_of(&mut self.meters, sharer).map(|meter| *meter = Some(Meter::new(budget))).is_some()
    }

    /// Whether a source on the line has a storm budget.
    pub fn is_metered(&self) -> bool {
        self.state.present.into_iter().any(|sharer| self.meter(sharer).is_some())
    }

    /// What a source has used of its storm budget, or `None` if it has none.
    pub fn meter(&self, sharer: Sharer) -> Option<&Meter> {
        self.meters.as_ref()?.get(sharer.index())?.as_ref()
    }

    /// Takes the last storm of a source, to record it.
    pub fn take_storm(&mut self, sharer: Sharer) -> Option<Storm> {
        meter_of(&mut self.meters, sharer)?.as_mut()?.storm.take()
    }

    /// A source's books, or `None` if the place is not taken.
    pub fn account(&self, sharer: Sharer) -> Option<Account> {
        let source = self.source(sharer)?;
        let ledger = *self.ledgers.get(sharer.index())?;
        Some(Account { ledger, pending: source.pending, in_service: source.service != Service::Idle })
    }

    /// Gives a new source the first free place: closed, without a notifier, with empty books and no storm budget.
    /// `None` if all are taken. At a line gate the function's DisINTx is cleared, since the gate is elsewhere.
    pub fn attach(&mut self) -> Option<(Sharer, Effects)> {
        let sharer = SharerSet::ALL.difference(self.state.present).first()?;
        *self.state.sources.get_mut(sharer.index())? = SourceState::NEW;
        *self.ledgers.get_mut(sharer.index())? = Ledger::default();
        if let Some(meter) = meter_of(&mut self.meters, sharer) {
            *meter = None;
        }
        self.state.present.insert(sharer);
        self.state.doubted.remove(sharer);
        self.suspicion.forget(sharer);
        let mut effects = Effects { changed: true, ..Effects::default() };
        self.settle::<Several>(SharerSet::only(sharer), &mut effects);
        if self.state.gate != Gate::Function {
            effects.clear_disintx.insert(sharer);
        }
        Some((sharer, effects))
    }

    /// Takes a source off the line, with its DisINTx set for good. `None`, and nothing happens, while it has a
    /// notifier or a delivery: replace the notifier by none first.
    pub fn detach(&mut self, sharer: Sharer) -> Option<Effects> {
        let source = self.source(sharer)?;
        if source.service != Service::Idle || !source.notifier.is_none() {
            return None;
        }
        self.state.present.remove(sharer);
        let mut effects = Effects { changed: true, ..Effects::default() };
        if !self.state.disintx.contains(sharer) {
            effects.set_disintx.insert(sharer);
        }
        self.state.disintx.remove(sharer);
        self.settle::<Several>(SharerSet::EMPTY, &mut effects);
        Some(effects)
    }

    /// The whole protocol: what happened goes in, what must be done comes out.
    ///
    /// Always inlined, so that a caller with a certain event is left with the rules for that event alone.
    #[inline(always)]
    pub fn step(&mut self, event: Event) -> Effects {
        self.step_as::<Several>(event)
    }

    /// [`Line::step`] of a line whose sources sit like this.
    #[inline(always)]
    pub(super) fn step_as<S: Seating>(&mut self, event: Event) -> Effects {
        let mut effects = Effects::default();
        match event {
            Event::Wire { metered } => self.wire::<S>(metered, &mut effects),
            Event::Unclaimed => self.unclaimed_wire(&mut effects),
            Event::Timed { sharer, now } => self.timed(sharer, now, &mut effects),
            Event::Resume { sharer, now } => self.resume(sharer, now, &mut effects),
            Event::Sampled { sharer, sample } => {
                if !self.sampled(sharer, sample, &mut effects) {
                    // Most answers on a line with many sources: nothing is derived from them.
                    return effects;
                }
            }
            Event::Notified { sharer, addressee } => {
                self.notified(sharer, addressee, &mut effects);
                if !addressee.is_none() {
                    // In service before and after: the gate cannot have to move.
                    return effects;
                }
            }
            Event::Eoi { sharer, from } => self.eoi(sharer, from, &mut effects),
            Event::VirtualRte { sharer, pin, masked } => {
                self.virtual_rte(sharer, pin, masked, &mut effects);
            }
            Event::Mask { sharer, reasons } => {
                self.change_reasons(sharer, reasons, MaskReasons::empty(), &mut effects);
            }
            Event::Unmask { sharer, reasons } => {
                self.change_reasons(sharer, MaskReasons::empty(), reasons, &mut effects);
            }
            Event::Loopback { sharer } => self.loopback(sharer, &mut effects),
            Event::Retired { sharer, notifier, parity, marked, virtual_rte_masked, how } => {
                if let Some((source, ledger)) = self.parts(sharer) {
                    if let Service::InService(served) | Service::AwaitUnmask(served) = source.service
                        && served.parity() == parity
                    {
                        complete(sharer, source, ledger, how, &mut effects);
                    }
                    source.notifier = notifier;
                    source.reasons.set(MaskReasons::NO_NOTIFIER, notifier.is_none());
                    source.reasons.set(MaskReasons::VIRTUAL_RTE_MASKED, virtual_rte_masked);
                    // The mark is honoured by looking at the wire again, which opening the gate does.
                    if marked {
                        source.pending = false;
                        count(&mut ledger.suppressed.carried);
                    }
                    complete_if_unmasked(sharer, source, ledger, &mut effects);
                    effects.changed = true;
                }
            }
        }
        // At functions' gates the vector alone changes nobody's reasons; that nobody claims it may change everybody's.
        let changed = match event {
            Event::Unclaimed => self.state.present,
            _ => event.sharer().map_or(SharerSet::EMPTY, SharerSet::only),
        };
        self.settle::<S>(changed, &mut effects);
        effects
    }

    /// State and books of a source that is there.
    #[inline(always)]
    fn parts(&mut self, sharer: Sharer) -> Option<(&mut SourceState, &mut Ledger)> {
        if !self.state.present.contains(sharer) {
            return None;
        }
        seat(&mut self.state, &mut self.ledgers, sharer)
    }

    /// A vector says "somebody on the line". At a line gate nobody can tell who, so it concerns every source; at
    /// function gates the open ones are asked, and only them: a function in reset or asleep is closed.
    #[inline(always)]
    fn wire<S: Seating>(&mut self, metered: bool, effects: &mut Effects) {
        count(&mut self.interrupts);
        // Without an EOI broadcast the chip now holds the line until it is told otherwise.
        self.state.held = self.state.gate == Gate::DirectedEoi;
        let Self { state, ledgers, meters, .. } = self;
        for sharer in S::each(state.present) {
            let function_gate = state.gate == Gate::Function;
            let Some((source, ledger)) = seat(state, ledgers, sharer) else { continue };
            if function_gate {
                if source.reasons.is_empty() {
                    effects.sample.insert(sharer);
                }
                continue;
            }
            count(&mut ledger.accepted.wire);
            if source.service != Service::Idle {
                count(&mut ledger.coalesced);
            } else if !source.reasons.is_empty() {
                count(&mut ledger.suppressed.masked);
            } else if metered && !within_budget(meters, sharer) {
                effects.overdrawn.insert(sharer);
            } else {
                begin(sharer, source, Origin::Device, effects);
            }
        }
        effects.unclaimed = self.state.gate == Gate::Function && effects.sample.is_empty();
    }

    /// The vector arrived and nobody who is open asserts. Once that is nothing: an assertion may be withdrawn, or a vector be
    /// on its way when its gate closes. Again and again it means that a function lies (N14): its DisINTx does not silence it,
    /// or its Status does not show that it asserts. Alone on the line it is silenced by the line from then on; among others
    /// nobody can tell which it is, and the line is stopped.
    #[cold]
    fn unclaimed_wire(&mut self, effects: &mut Effects) {
        if !self.suspicion.grows() || self.state.stopped {
            return;
        }
        let present = self.state.present;
        let alone = present.first().filter(|first| SharerSet::only(*first) == present);
        if alone.is_some() {
            self.state.gate = Gate::RteMask;
            effects.clear_disintx = self.state.disintx;
            self.state.disintx = SharerSet::EMPTY;
            self.state.doubted = SharerSet::EMPTY;
            self.suspicion.find(LineFinding::Demoted);
        } else {
            self.state.stopped = true;
            for sharer in present {
                if let Some(source) = self.state.sources.get_mut(sharer.index()) {
                    source.reasons |= MaskReasons::QUARANTINE;
                }
            }
            self.suspicion.find(LineFinding::Stopped);
        }
        effects.changed = true;
    }

    /// Status of a function whose reason set is empty: its gate is open and the vector asks whether it was this one, or
    /// its gate is about to open and the question is whether that is worth it. Whether the answer changes anything.
    ///
    /// Set at one opening after the other it means nothing in the end (N14): such a gate opens, and the chip sends if the
    /// wire is asserted. A vector that nobody else claims is then taken for its source's, but vouches for nobody.
    #[inline(always)]
    fn sampled(&mut self, sharer: Sharer, sample: Sample, effects: &mut Effects) -> bool {
        let opening = self.state.disintx.contains(sharer);
        let doubted = self.state.doubted.contains(sharer);
        if self.state.gate != Gate::Function {
            return false;
        }
        if !self.state.present.contains(sharer) {
            return false;
        }
        let Self { state, ledgers, meters, suspicion, .. } = self;
        let Some((source, ledger)) = seat(state, ledgers, sharer) else { return false };
        if !source.reasons.is_empty() {
            return false;
        }
        match sample {
            Sample::High if opening && doubted => {
                state.disintx.remove(sharer);
                effects.clear_disintx.insert(sharer);
            }
            Sample::High => {
                if !opening && !doubted {
                    suspicion.in_a_row = 0;
                }
                count(if opening { &mut ledger.accepted.replay } else { &mut ledger.accepted.wire });
                if within_budget(meters, sharer) {
                    begin(sharer, source, Origin::Device, effects);
                } else {
                    effects.overdrawn.insert(sharer);
                }
                if opening && suspicion.replayed(sharer) {
                    state.doubted.insert(sharer);
                }
            }
            Sample::Low => {
                state.doubted.remove(sharer);
                if !opening {
                    return false;
                }
                suspicion.seen_clear(sharer);
                state.disintx.remove(sharer);
                effects.clear_disintx.insert(sharer);
            }
            Sample::Absent => {
                source.reasons |= MaskReasons::QUARANTINE;
                effects.changed = true;
                suspicion.find(LineFinding::Vanished(sharer));
            }
        }
        true
    }

    /// The budget had no room for an assertion at `now`: a storm, or simply a window that is over.
    fn timed(&mut self, sharer: Sharer, now: u64, effects: &mut Effects) {
        let Self { state, ledgers, meters, .. } = self;
        let Some((source, ledger)) = seat(state, ledgers, sharer) else { return };
        let Some(Some(meter)) = meter_of(meters, sharer) else { return };
        let Some(verdict) = meter.judge(now) else { return };
        source.reasons |= match verdict {
            Verdict::Fits => return begin(sharer, source, Origin::Device, effects),
            Verdict::Storm(Outcome::Throttled) => MaskReasons::THROTTLE,
            Verdict::Storm(Outcome::Quarantined) => MaskReasons::QUARANTINE,
        };
        count(&mut ledger.suppressed.masked);
        effects.changed = true;
    }

    fn resume(&mut self, sharer: Sharer, now: u64, effects: &mut Effects) {
        let Some(Some(meter)) = meter_of(&mut self.meters, sharer) else { return };
        if meter.resume(now)
            && let Some((source, _)) = self.parts(sharer)
        {
            source.reasons -= MaskReasons::THROTTLE;
            effects.changed = true;
        }
    }

    #[inline(always)]
    fn notified(&mut self, sharer: Sharer, addressee: Addressee, effects: &mut Effects) {
        let Some((source, ledger)) = self.parts(sharer) else { return };
        let Service::Notifying(origin) = source.service else { return };
        effects.changed = true;
        if !addressee.is_none() {
            source.service = Service::InService(addressee);
            count(&mut ledger.delivered);
            return;
        }
        // A replacement has published none and is about to report it. The gate stays closed, for that reason.
        source.service = Service::Idle;
        source.reasons.remove(MaskReasons::IN_SERVICE);
        source.reasons.insert(MaskReasons::NO_NOTIFIER);
        match origin {
            Origin::Device => {
                source.pending = true;
                effects.mark = true;
            }
            Origin::Loopback => count(&mut ledger.suppressed.loopback),
        }
    }

    #[inline(always)]
    fn eoi(&mut self, sharer: Sharer, from: Notifier, effects: &mut Effects) {
        let Some((source, ledger)) = self.parts(sharer) else { return };
        match source.service {
            Service::InService(addressee) if addressee.is(from) => {
                if source.reasons.contains(MaskReasons::VIRTUAL_RTE_MASKED) {
                    source.service = Service::AwaitUnmask(addressee);
                    effects.changed = true;
                } else {
                    complete(sharer, source, ledger, Completion::Eoi, effects);
                }
            }
            _ => count(&mut ledger.stale_eois),
        }
    }

    fn virtual_rte(&mut self, sharer: Sharer, pin: Notifier, masked: bool, effects: &mut Effects) {
        let Some((source, ledger)) = self.parts(sharer) else { return };
        if source.notifier != pin || pin.is_none() {
            return;
        }
        effects.changed = source.reasons.contains(MaskReasons::VIRTUAL_RTE_MASKED) != masked;
        source.reasons.set(MaskReasons::VIRTUAL_RTE_MASKED, masked);
        complete_if_unmasked(sharer, source, ledger, effects);
    }

    fn change_reasons(
        &mut self,
        sharer: Sharer,
        add: MaskReasons,
        remove: MaskReasons,
        effects: &mut Effects,
    ) {
        let Some((source, _)) = self.parts(sharer) else { return };
        let before = source.reasons;
        source.reasons |= add & MaskReasons::GIVEN;
        source.reasons -= remove & MaskReasons::GIVEN;
        effects.changed = source.reasons != before;
        let lifted = before.difference(source.reasons);
        if lifted.intersects(MaskReasons::THROTTLE | MaskReasons::QUARANTINE)
            && let Some(Some(meter)) = meter_of(&mut self.meters, sharer)
        {
            meter.forgive();
        }
    }

    fn loopback(&mut self, sharer: Sharer, effects: &mut Effects) {
        let Some((source, ledger)) = self.parts(sharer) else { return };
        count(&mut ledger.accepted.loopback);
        if source.reasons.intersects(MaskReasons::STOPS_LOOPBACK) {
            count(&mut ledger.suppressed.loopback);
        } else if source.service != Service::Idle {
            count(&mut ledger.coalesced);
        } else {
            begin(sharer, source, Origin::Loopback, effects);
        }
    }

    /// Derives the gate from the reason sets and emits the difference. Idempotent. `changed` are those whose reasons may have
    /// changed: where each function has a gate of its own, no other can have to move.
    #[inline(always)]
    fn settle<S: Seating>(&mut self, changed: SharerSet, effects: &mut Effects) {
        let wanted = match self.state.gate {
            Gate::Function => {
                self.settle_functions(changed, effects);
                self.state.stopped
            }
            Gate::RteMask => !self.union::<S>().is_empty(),
            Gate::DirectedEoi => {
                let union = self.union::<S>();
                if self.state.held && !union.contains(MaskReasons::IN_SERVICE) {
                    self.state.held = false;
                    effects.directed_eoi = true;
                }
                let held_alone = self.state.held && union == MaskReasons::IN_SERVICE;
                !union.is_empty() && !held_alone
            }
        };
        let wanted = wanted || self.state.present.is_empty();
        if wanted != self.state.rte_masked {
            self.state.rte_masked = wanted;
            effects.mask_rte = wanted;
            effects.unmask_rte = !wanted;
        }
    }

    /// The gate of each of these functions.
    #[inline(always)]
    fn settle_functions(&mut self, changed: SharerSet, effects: &mut Effects) {
        for sharer in changed.intersection(self.state.present) {
            let Some(source) = self.state.sources.get(sharer.index()) else { continue };
            let closed = self.state.disintx.contains(sharer);
            if !source.reasons.is_empty() && !closed {
                self.state.disintx.insert(sharer);
                effects.set_disintx.insert(sharer);
            } else if source.reasons.is_empty() && closed {
                // Not yet: whether to open or to deliver again is for Status to say.
                effects.sample.insert(sharer);
            }
        }
    }

    /// Why somebody on the line is silenced.
    #[inline(always)]
    fn union<S: Seating>(&self) -> MaskReasons {
        S::each(self.state.present).fold(MaskReasons::empty(), |union, sharer| {
            union
                | self.state.sources.get(sharer.index()).map_or(MaskReasons::empty(), |source| source.reasons)
        })
    }
}

/// Starts a delivery: in service from here on, so that `settle` closes the gate before the slot is entered.
#[inline(always)]
fn begin(sharer: Sharer, source: &mut SourceState, origin: Origin, effects: &mut Effects) {
    source.service = Service::Notifying(origin);
    source.reasons |= MaskReasons::IN_SERVICE;
    effects.notify.insert(sharer);
    effects.changed = true;
}

/// State and books of a place, taken or not.
#[inline(always)]
fn seat<'a>(
    state: &'a mut LineState,
    ledgers: &'a mut [Ledger; MAX_SHARERS],
    sharer: Sharer,
) -> Option<(&'a mut SourceState, &'a mut Ledger)> {
    Some((state.sources.get_mut(sharer.index())?, ledgers.get_mut(sharer.index())?))
}

/// Counts an assertion against the source's storm budget, if it has one. Whether there was room.
#[inline(always)]
fn within_budget(meters: &mut Option<Box<Meters>>, sharer: Sharer) -> bool {
    meter_of(meters, sharer).and_then(Option::as_mut).is_none_or(Meter::spend)
}

/// The meter's place of a source, on a line that has any.
#[inline(always)]
fn meter_of(meters: &mut Option<Box<Meters>>, sharer: Sharer) -> Option<&mut Option<Meter>> {
    meters.as_mut()?.get_mut(sharer.index())
}

/// Ends a delivery, however it ends.
#[inline(always)]
fn complete(
    sharer: Sharer,
    source: &mut SourceState,
    ledger: &mut Ledger,
    how: Completion,
    effects: &mut Effects,
) {
    if let Service::InService(addressee) | Service::AwaitUnmask(addressee) = source.service {
        effects.lower = Some((sharer, addressee));
        source.service = Service::Idle;
        source.reasons -= MaskReasons::IN_SERVICE;
        ledger.complete(how);
        effects.changed = true;
    }
}

/// The later half of a completion whose EOI came under a masked virtual RTE.
fn complete_if_unmasked(
    sharer: Sharer,
    source: &mut SourceState,
    ledger: &mut Ledger,
    effects: &mut Effects,
) {
    if matches!(source.service, Service::AwaitUnmask(_))
        && !source.reasons.contains(MaskReasons::VIRTUAL_RTE_MASKED)
    {
        complete(sharer, source, ledger, Completion::Eoi, effects);
    }
}

#[cfg(test)]
mod tests;
