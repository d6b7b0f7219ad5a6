//! The table of lines: which line a vector belongs to, where a source sits, who listens on a virtual pin.
//!
//! A [`LineTable`] is filled while the machine is set up, through `&mut`, and allocates only then. Afterwards it is
//! shared: looking anything up takes no lock.

use alloc::vec::Vec;
use core::fmt;

use super::event::Event;
use super::gate::{Gate, Sharing};
use super::handler::{
    Deliveries, Handler, LineIo, Recorded, Registrations, Replacing, Seat, SourceId, SourceInfo,
};
use super::ledger::{Account, Completion};
use super::notifier::{Control, Notifier, NotifierSlot, SlotSnapshot};
use super::reasons::MaskReasons;
use super::recorder::{Happening, History};
use super::sharers::{Several, Sharer, SharerSet};
use super::state::{LineState, SourceState};
use super::storm::{Budget, Meter, Storm};
use super::suspicion::{LIE_LIMIT, LineFinding};
use crate::irq::{Gsi, Pin, Vector};
use crate::sync::{AtomicU64, Ordering};

/// How many sources a machine can have: as many as bits in a listener word.
pub const MAX_SOURCES: usize = 64;

/// The bounds that notifiers are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// How many partitions there are.
    pub partitions: u8,
    /// How many pins each virtual IO-APIC has.
    pub pins: u8,
    /// How many poll counters there are.
    pub poll_counters: u16,
}

/// A source's place.
#[derive(Clone, Copy, Debug)]
struct Place {
    line: u8,
    sharer: Sharer,
}

/// Why a source was not assigned. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignError {
    /// The table has no place for one more source, line or sharer.
    Full,
    /// No such partition.
    NoSuchOwner(u8),
    /// The vector serves another line.
    VectorTaken {
        /// The vector.
        vector: Vector,
        /// The line it serves.
        by: Gsi,
    },
    /// The line exists with another vector or gate, which are latched until its last source is released.
    Latched {
        /// The line.
        gsi: Gsi,
        /// Its vector.
        vector: Vector,
        /// Its gate.
        gate: Gate,
    },
    /// The line would be shared by several partitions, or may be one day, which needs a gate at each function.
    NeedsFunctionGate {
        /// The line.
        gsi: Gsi,
        /// A source on it that is another partition's, or may be.
        with: SourceId,
    },
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the line table is full"),
            Self::NoSuchOwner(owner) => write!(f, "there is no partition {owner}"),
            Self::VectorTaken { vector, by } => write!(f, "{vector} already serves {by}"),
            Self::Latched { gsi, vector, gate } => {
                write!(f, "{gsi} is in use with {vector} and the {gate} gate")
            }
            Self::NeedsFunctionGate { gsi, with } => write!(
                f,
                "{gsi} is shared with {with}, which may be another partition's, and only a DisINTx gate at every function allows that"
            ),
        }
    }
}

/// Why a notifier was not replaced. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceError {
    /// No such source.
    NoSuchSource,
    /// No such partition, virtual pin or poll counter.
    NoSuchTarget,
}

impl fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchSource => "no such source",
            Self::NoSuchTarget => "no such partition, virtual pin or poll counter",
        })
    }
}

impl core::error::Error for ReplaceError {}

/// A read-only picture of a line, for reports.
#[derive(Clone, Debug)]
pub struct LineReport {
    /// The line.
    pub gsi: Gsi,
    /// Its vector.
    pub vector: Vector,
    /// The protocol state.
    pub state: LineState,
    /// How often its vector arrived.
    pub interrupts: u64,
    /// How often of these no source asserted, as far as that can be told: at gates of functions.
    pub unclaimed: u64,
    /// Its handler's registrations.
    pub registrations: Registrations,
}

/// A read-only picture of a source, for reports. Line and slot are read one after the other.
#[derive(Clone, Copy, Debug)]
pub struct SourceReport {
    /// What does not change about it.
    pub info: SourceInfo,
    /// The line it is on.
    pub gsi: Gsi,
    /// What the line knows of it.
    pub state: SourceState,
    /// Its books.
    pub account: Account,
    /// What it has used of its storm budget, if it has one.
    pub meter: Option<Meter>,
    /// Its slot.
    pub slot: SlotSnapshot,
}

/// Every line and source of the machine.
#[derive(Debug)]
pub struct LineTable {
    targets: Targets,
    /// How many disagreements of a wire with its functions in a row are taken for a lie.
    patience: u32,
    /// Line by vector, see [`LineTable::entry`].
    by_vector: [u8; 256],
    lines: Vec<Handler>,
    sources: Vec<Option<Place>>,
    /// For each virtual pin of each partition the sources that may hold it high, as bits. An over-approximation: a
    /// bit is set before the notifier is published and cleared after the old one is out of use. The line knows exactly.
    listeners: Vec<AtomicU64>,
}

impl LineTable {
    const NO_LINE: u8 = u8::MAX;
    /// Added to the number of a line on which a source has a storm budget. Such a number is no line's, so the path of the
    /// others needs no look at it.
    const METERED: u8 = 0x40;

    /// An empty table for these targets, and the one right to replace its notifiers.
    pub fn new(targets: Targets) -> (Self, Control) {
        Self::with_patience(targets, LIE_LIMIT)
    }

    /// [`LineTable::new`], where so many disagreements in a row are taken for a lie instead of [`LIE_LIMIT`].
    pub fn with_patience(targets: Targets, patience: u32) -> (Self, Control) {
        let pins = usize::from(targets.partitions) * usize::from(targets.pins);
        let table = Self {
            targets,
            patience,
            by_vector: [Self::NO_LINE; 256],
            lines: Vec::new(),
            sources: Vec::new(),
            listeners: (0..pins).map(|_| AtomicU64::new(0)).collect(),
        };
        (table, Control::mint())
    }

    /// Puts a function's INTx on its line, closed and without a notifier. The first source of a line installs the
    /// permanent handler, and nothing but [`LineTable::release`] of the last one removes it.
    ///
    /// The caller has programmed the RTE for `vector`, level-triggered and masked, unless the line [is in
    /// use](LineTable::is_in_use) already.
    ///
    /// # Errors
    ///
    /// See [`AssignError`]; the table is unchanged and a retry may succeed.
    pub fn assign(
        &mut self,
        gsi: Gsi,
        vector: Vector,
        gate: Gate,
        info: SourceInfo,
        io: &mut impl LineIo,
    ) -> Result<SourceId, AssignError> {
        if let Some(owner) = info.owner.filter(|owner| *owner >= self.targets.partitions) {
            return Err(AssignError::NoSuchOwner(owner));
        }
        let free = self.sources.iter().position(Option::is_none).unwrap_or(self.sources.len());
        let source = match u8::try_from(free) {
            Ok(number) if free < MAX_SOURCES => SourceId(number),
            _ => return Err(AssignError::Full),
        };
        let index = self.line_for(gsi, vector, gate, info)?;
        let handler = self.lines.get_mut(usize::from(index)).ok_or(AssignError::Full)?;
        let attached = handler.state.with(|state| {
            let attached = state.line.attach();
            if let Some((sharer, _)) = attached {
                state.note::<Several>(Happening::Attached, SharerSet::only(sharer), io);
            }
            attached
        });
        let (sharer, effects) = attached.ok_or(AssignError::Full)?;
        if let Some(seat) = handler.seats.get_mut(sharer.index()) {
            *seat = Some(Seat { source, info });
        }
        handler.carry_out(&effects, io);
        if let Some(line) = self.by_vector.get_mut(usize::from(vector.get())) {
            if *line == Self::NO_LINE {
                handler.registrations.installed += 1;
            }
            *line = Self::entry(index, handler);
        }
        let place = Some(Place { line: index, sharer });
        match self.sources.get_mut(free) {
            Some(free) => *free = place,
            None => self.sources.push(place),
        }
        Ok(source)
    }

    /// Whether a source is assigned on the line: its redirection table entry is the line's own then.
    pub fn is_in_use(&self, gsi: Gsi) -> bool {
        self.lines.iter().any(|handler| handler.gsi == gsi && handler.is_in_use())
    }

    /// The entry of a line that may take one more source: the one in use, an idle one, or a new one.
    fn line_for(
        &mut self,
        gsi: Gsi,
        vector: Vector,
        gate: Gate,
        info: SourceInfo,
    ) -> Result<u8, AssignError> {
        let holder = self.lines.iter().find(|handler| handler.is_in_use() && handler.vector == vector);
        if let Some(holder) = holder
            && holder.gsi != gsi
        {
            return Err(AssignError::VectorTaken { vector, by: holder.gsi });
        }
        if let Some(at) = self.lines.iter().position(|handler| handler.gsi == gsi)
            && let Some(handler) = self.lines.get_mut(at)
        {
            let index = u8::try_from(at).map_err(|_| AssignError::Full)?;
            if !handler.is_in_use() {
                let patience = self.patience;
                handler.vector = vector;
                handler.state.with(|state| *state = Recorded::new(gate, patience));
                return Ok(index);
            }
            let latched = handler.state.with(|state| state.line.state().gate);
            if handler.vector != vector || latched != gate {
                return Err(AssignError::Latched { gsi, vector: handler.vector, gate: latched });
            }
            let beside = |seat: &&Seat| seat.info.owner.is_none() || seat.info.owner != info.owner;
            if let Some(foreign) = handler.seats.iter().flatten().find(beside)
                && !gate.allows(Sharing::SeveralPartitions)
            {
                return Err(AssignError::NeedsFunctionGate { gsi, with: foreign.source });
            }
            return Ok(index);
        }
        let index = u8::try_from(self.lines.len()).map_err(|_| AssignError::Full)?;
        if index >= Self::METERED {
            return Err(AssignError::Full);
        }
        self.lines.push(Handler::new(gsi, vector, gate, self.patience));
        Ok(index)
    }

    /// Gives a source a storm budget, by the clock of [`LineIo::now`]. Whether there is such a source.
    pub fn limit(&mut self, source: SourceId, budget: Budget) -> bool {
        let Some(&Some(place)) = self.sources.get(usize::from(source.0)) else { return false };
        let Some(handler) = self.lines.get(usize::from(place.line)) else { return false };
        let limited = handler.state.with(|state| state.line.limit(place.sharer, budget));
        if let Some(line) = self.by_vector.get_mut(usize::from(handler.vector.get())) {
            *line = Self::entry(place.line, handler);
        }
        limited
    }

    /// Takes a source off its line; the last one removes the handler. Whether it was done: a source that still has a
    /// notifier or a delivery stays.
    pub fn release(&mut self, source: SourceId, io: &mut impl LineIo) -> bool {
        let Some(&Some(place)) = self.sources.get(usize::from(source.0)) else { return false };
        let Some(handler) = self.lines.get_mut(usize::from(place.line)) else { return false };
        let Some(slot) = handler.slots.get_mut(place.sharer.index()) else { return false };
        if !slot.snapshot().target.is_none() {
            return false;
        }
        let detached = handler.state.with(|state| {
            let detached = state.line.detach(place.sharer)?;
            state.note::<Several>(Happening::Detached, SharerSet::only(place.sharer), io);
            state.recorder.forget(place.sharer);
            Some(detached)
        });
        let Some(effects) = detached else { return false };
        // A fresh slot: a mark that nobody will take must not wait for the next owner.
        *slot = NotifierSlot::new();
        handler.carry_out(&effects, io);
        if let Some(seat) = handler.seats.get_mut(place.sharer.index()) {
            *seat = None;
        }
        if !handler.is_in_use() {
            handler.registrations.removed += 1;
        }
        if let Some(line) = self.by_vector.get_mut(usize::from(handler.vector.get())) {
            *line = Self::entry(place.line, handler);
        }
        if let Some(freed) = self.sources.get_mut(usize::from(source.0)) {
            *freed = None;
        }
        true
    }

    /// The permanent handler: the CPU took `vector`. Puts what is to be delivered into `deliveries`, where it stays: as a value
    /// it would be copied twice on its way. Whether a line has the vector.
    ///
    /// On return every source that asserts is silenced, so the local APIC may be given its EOI; then each delivery's
    /// virtual pin is raised.
    #[inline(always)]
    pub fn assert<'t>(
        &'t self,
        vector: Vector,
        io: &mut impl LineIo,
        deliveries: &mut Deliveries<'t>,
    ) -> bool {
        let Some(&entry) = self.by_vector.get(usize::from(vector.get())) else { return false };
        match self.lines.get(usize::from(entry)) {
            Some(handler) => handler.assert(io, deliveries),
            None => return self.assert_metered(entry, io, deliveries),
        }
        true
    }

    #[cold]
    fn assert_metered<'t>(
        &'t self,
        entry: u8,
        io: &mut impl LineIo,
        deliveries: &mut Deliveries<'t>,
    ) -> bool {
        let index = entry.checked_sub(Self::METERED).map(usize::from);
        let Some(handler) = index.and_then(|index| self.lines.get(index)) else { return false };
        handler.assert_metered(io, deliveries);
        true
    }

    /// What stands in `by_vector` for a line: its number, the same and [`LineTable::METERED`], or
    /// [`LineTable::NO_LINE`].
    fn entry(index: u8, handler: &Handler) -> u8 {
        match handler {
            _ if !handler.is_in_use() => Self::NO_LINE,
            _ if handler.state.with(|state| state.line.is_metered()) => index.saturating_add(Self::METERED),
            _ => index,
        }
    }

    /// The guest completed: its EOI reached the virtual pin `from` while `source` held it high. Anything that is not in
    /// service through `from` is stale and changes nothing. Puts what was waiting at a function gate into `deliveries`, as
    /// [`LineTable::assert`] does.
    #[inline]
    pub fn complete<'t>(
        &'t self,
        source: SourceId,
        from: Notifier,
        io: &mut impl LineIo,
        deliveries: &mut Deliveries<'t>,
    ) {
        if let Some((handler, sharer)) = self.place(source) {
            handler.complete(sharer, from, io, deliveries);
        }
    }

    /// The owner of the poll counter `from` is done with what it counted: [`LineTable::complete`], apart, so that a guest's EOI
    /// has its path to itself and the compiler spreads it where it is needed.
    pub fn complete_counter(&self, source: SourceId, from: Notifier, io: &mut impl LineIo) -> Deliveries<'_> {
        self.drive(source, |sharer| Event::Eoi { sharer, from }, io).1
    }

    /// The guest changed the mask bit of the virtual pin `pin`. To be reported before the virtual IO-APIC looks at
    /// that pin again, since an unmask may be a completion and lower it.
    pub fn virtual_rte(
        &self,
        source: SourceId,
        pin: Notifier,
        masked: bool,
        io: &mut impl LineIo,
    ) -> Deliveries<'_> {
        self.drive(source, |sharer| Event::VirtualRte { sharer, pin, masked }, io).1
    }

    /// Adds reasons to silence a source (only [`MaskReasons::GIVEN`] count). Whether the set changed.
    pub fn mask(&self, source: SourceId, reasons: MaskReasons, io: &mut impl LineIo) -> bool {
        self.drive(source, |sharer| Event::Mask { sharer, reasons }, io).0
    }

    /// Takes reasons back (only [`MaskReasons::GIVEN`] count). Whether the set changed, and what was waiting at a
    /// function gate.
    pub fn unmask(
        &self,
        source: SourceId,
        reasons: MaskReasons,
        io: &mut impl LineIo,
    ) -> (bool, Deliveries<'_>) {
        self.drive(source, |sharer| Event::Unmask { sharer, reasons }, io)
    }

    /// Asserts in the device's stead. Without anybody to hear it, a harmless nothing.
    pub fn loopback(&self, source: SourceId, io: &mut impl LineIo) -> Deliveries<'_> {
        self.drive(source, |sharer| Event::Loopback { sharer }, io).1
    }

    /// Time has passed: a source whose throttle is over is admitted again. Returns the storm that is still to be recorded,
    /// if there was one, and what was waiting at a function gate.
    pub fn resume(
        &self,
        source: SourceId,
        now: u64,
        io: &mut impl LineIo,
    ) -> (Option<Storm>, Deliveries<'_>) {
        let Some((handler, sharer)) = self.place(source) else { return (None, Deliveries::none()) };
        let (_, deliveries) = handler.drive(Event::Resume { sharer, now }, io);
        (handler.state.with(|state| state.line.take_storm(sharer)), deliveries)
    }

    /// Publishes a new notifier. From here on every assertion uses it; the old one may still be in use until
    /// [`Replacing::poll`] says otherwise.
    ///
    /// `how` books what is still in service then: [`Completion::Handover`] for a change of receiver. A reset or a
    /// forced completion of the *same* receiver is a replacement by the same notifier with [`Completion::Reset`] or
    /// [`Completion::Forced`]: the grace period is what makes it safe to lower the pin.
    ///
    /// # Errors
    ///
    /// A source or target that does not exist; the right to replace comes back.
    pub fn replace(
        &self,
        control: Control,
        source: SourceId,
        new: Notifier,
        how: Completion,
    ) -> Result<Replacing<'_>, (Control, ReplaceError)> {
        let exists = match new {
            Notifier::None => true,
            Notifier::Pin { partition, vpin } => {
                partition < self.targets.partitions && vpin.0 < self.targets.pins
            }
            Notifier::Poll { counter } => counter < self.targets.poll_counters,
        };
        if !exists {
            return Err((control, ReplaceError::NoSuchTarget));
        }
        let place = self.place(source);
        let Some((handler, sharer, slot)) =
            place.and_then(|(handler, sharer)| Some((handler, sharer, handler.slots.get(sharer.index())?)))
        else {
            return Err((control, ReplaceError::NoSuchSource));
        };
        if let Some(listeners) = self.listener_word(new) {
            listeners.fetch_or(source.bit(), Ordering::AcqRel);
        }
        let retiring = slot.replace(control, new);
        let old = retiring.old();
        let left = if old == new { None } else { self.listener_word(old) };
        Ok(Replacing { handler, slot, left, sharer, source, how, retiring })
    }

    /// The sources that may hold the virtual pin high: those to tell of its EOI or of its mask bit. Takes no lock.
    #[inline]
    pub fn listeners(&self, partition: u8, vpin: Pin) -> Sources {
        let word = self.listener_word(Notifier::Pin { partition, vpin });
        Sources(word.map_or(0, |word| word.load(Ordering::Acquire)))
    }

    /// The line a source is on. Takes no lock.
    pub fn gsi(&self, source: SourceId) -> Option<Gsi> {
        self.place(source).map(|(handler, _)| handler.gsi)
    }

    /// Every assigned source.
    pub fn sources(&self) -> impl Iterator<Item = SourceId> + '_ {
        (0..=u8::MAX).zip(&self.sources).filter_map(|(number, place)| place.map(|_| SourceId(number)))
    }

    /// A source's state and books, or `None` if there is no such source.
    pub fn source_report(&self, source: SourceId) -> Option<SourceReport> {
        let (handler, sharer) = self.place(source)?;
        let slot = handler.slots.get(sharer.index())?.snapshot();
        let (state, account, meter) = handler.state.with(|Recorded { line, .. }| {
            Some((*line.source(sharer)?, line.account(sharer)?, line.meter(sharer).copied()))
        })?;
        let info = handler.seats.get(sharer.index())?.as_ref()?.info;
        Some(SourceReport { info, gsi: handler.gsi, state, account, meter, slot })
    }

    /// Writes down why a source is silenced, since when and by whom, and what happened to it last. Whether there is such a
    /// source.
    pub fn tell_history(&self, source: SourceId, history: &mut History) -> bool {
        let Some((handler, sharer)) = self.place(source) else { return false };
        handler.state.with(|state| state.recorder.tell(sharer, history));
        true
    }

    /// Takes one thing that was found out about the functions on a line, to record it: the line, the finding, and the source
    /// that it is about, if it is about one. To be asked until there is no more, when a vector brought no delivery, or
    /// [`Deliveries::found`] says so.
    pub fn take_finding(&self, vector: Vector) -> Option<(Gsi, LineFinding, Option<SourceId>)> {
        let handler = self.lines.iter().find(|handler| handler.is_in_use() && handler.vector == vector)?;
        let finding = handler.state.with(|state| state.line.take_finding())?;
        let source = match finding {
            LineFinding::Vanished(sharer) | LineFinding::Doubted(sharer) => {
                Some(handler.seats.get(sharer.index())?.as_ref().map(|seat| seat.source)?)
            }
            LineFinding::Demoted | LineFinding::Stopped => None,
        };
        Some((handler.gsi, finding, source))
    }

    /// Every line that has or had a source.
    pub fn line_reports(&self) -> impl Iterator<Item = LineReport> + '_ {
        self.lines.iter().map(|handler| {
            let (state, interrupts, unclaimed) = handler
                .state
                .with(|Recorded { line, .. }| (*line.state(), line.interrupts(), line.unclaimed()));
            LineReport {
                gsi: handler.gsi,
                vector: handler.vector,
                state,
                interrupts,
                unclaimed,
                registrations: handler.registrations,
            }
        })
    }

    #[inline]
    fn place(&self, source: SourceId) -> Option<(&Handler, Sharer)> {
        let place = self.sources.get(usize::from(source.0))?.as_ref()?;
        Some((self.lines.get(usize::from(place.line))?, place.sharer))
    }

    fn listener_word(&self, target: Notifier) -> Option<&AtomicU64> {
        let Notifier::Pin { partition, vpin } = target else { return None };
        if vpin.0 >= self.targets.pins {
            return None;
        }
        self.listeners.get(usize::from(partition) * usize::from(self.targets.pins) + usize::from(vpin.0))
    }

    #[inline]
    fn drive(
        &self,
        source: SourceId,
        event: impl FnOnce(Sharer) -> Event,
        io: &mut impl LineIo,
    ) -> (bool, Deliveries<'_>) {
        match self.place(source) {
            Some((handler, sharer)) => handler.drive(event(sharer), io),
            None => (false, Deliveries::none()),
        }
    }
}

/// A set of sources, lowest number first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources(u64);

impl Sources {
    /// Whether there are more than one.
    #[inline]
    pub const fn are_several(self) -> bool {
        self.0 & self.0.wrapping_sub(1) != 0
    }

    /// Those of them whose bit is set in `numbers`.
    #[inline]
    #[must_use]
    pub const fn among(self, numbers: u64) -> Self {
        Self(self.0 & numbers)
    }
}

impl Iterator for Sources {
    type Item = SourceId;

    #[inline]
    fn next(&mut self) -> Option<SourceId> {
        if self.0 == 0 {
            return None;
        }
        let lowest = self.0.trailing_zeros() as u8;
        self.0 &= self.0 - 1;
        Some(SourceId(lowest))
    }
}

#[cfg(test)]
mod tests;
