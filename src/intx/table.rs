//! The table of lines and the permanent handler: line, slots and hardware put together in the right order.
//!
//! [`LineTable`] is filled while the machine is set up, through `&mut`, and allocates only then. Afterwards it is
//! shared: looking a vector or a source up takes no lock, a line's state is behind that line's own lock, and the slots
//! lie beside the locks. Every operation below is one hold of one line's lock around [`Line::step`] and its effects,
//! carried out on a [`LineIo`]; what must happen outside the lock is returned as [`Deliveries`].

use alloc::vec::Vec;
use core::fmt;

use super::gate::{Gate, Sample, Sharing};
use super::ledger::{Account, Completion};
use super::line::{Effects, Event, Line, LineState, MAX_SHARERS, Sharer, SharerSet, SourceState};
use super::notifier::{Control, Entered, Notifier, NotifierSlot, Retiring, SlotSnapshot};
use super::reasons::MaskReasons;
use crate::irq::{Gsi, Pin, Vector};
use crate::sync::{AtomicU64, Lock, Ordering};

/// How many sources a machine can have: as many as bits in a listener word.
pub const MAX_SOURCES: usize = 64;

/// An assigned function's INTx, machine-wide. A guest may put any number in it: an operation on a source that does
/// not exist does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u8);

impl SourceId {
    /// Its bit in a listener word. Assigned sources are below [`MAX_SOURCES`], so nothing wraps.
    const fn bit(self) -> u64 {
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
    /// The owning partition.
    pub owner: u8,
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
    /// Whether the guest has the redirection table entry of the virtual pin `target` masked now.
    fn virtual_rte_masked(&mut self, target: Notifier) -> bool;
}

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
    info: SourceInfo,
}

/// One line: its lock, and beside the lock what the interrupt path reads without it.
#[derive(Debug)]
struct LineEntry {
    gsi: Gsi,
    vector: Vector,
    /// Who sits at each place; changed only through `&mut`.
    seats: [Option<Seat>; MAX_SHARERS],
    slots: [NotifierSlot; MAX_SHARERS],
    line: Lock<Line>,
    registrations: Registrations,
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    source: SourceId,
    info: SourceInfo,
}

/// How often a line's permanent handler was installed and removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Registrations {
    /// Times the line's vector was claimed.
    pub installed: u64,
    /// Times it was given back.
    pub removed: u64,
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
    /// The line would be shared by several partitions, which needs a gate at each function.
    NeedsFunctionGate {
        /// The line.
        gsi: Gsi,
        /// A source of another partition on it.
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
                "{gsi} is shared with {with} of another partition, which only a DisINTx gate at every function allows"
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
    /// Its slot.
    pub slot: SlotSnapshot,
}

/// Every line and source of the machine.
#[derive(Debug)]
pub struct LineTable {
    targets: Targets,
    /// Line by vector; [`LineTable::NO_LINE`] where there is none.
    by_vector: [u8; 256],
    lines: Vec<LineEntry>,
    sources: Vec<Option<Place>>,
    /// For each virtual pin of each partition the sources that may hold it high, as bits. An over-approximation: a
    /// bit is set before the notifier is published and cleared after the old one is out of use. The line knows exactly.
    listeners: Vec<AtomicU64>,
}

impl LineTable {
    const NO_LINE: u8 = u8::MAX;

    /// An empty table for these targets, and the one right to replace its notifiers.
    pub fn new(targets: Targets) -> (Self, Control) {
        let pins = usize::from(targets.partitions) * usize::from(targets.pins);
        let table = Self {
            targets,
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
    /// The caller has programmed the RTE for `vector`, level-triggered and masked.
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
        if info.owner >= self.targets.partitions {
            return Err(AssignError::NoSuchOwner(info.owner));
        }
        let free = self.sources.iter().position(Option::is_none).unwrap_or(self.sources.len());
        let source = match u8::try_from(free) {
            Ok(number) if free < MAX_SOURCES => SourceId(number),
            _ => return Err(AssignError::Full),
        };
        let index = self.line_for(gsi, vector, gate, info)?;
        let entry = self.lines.get_mut(usize::from(index)).ok_or(AssignError::Full)?;
        let (sharer, effects) = entry.line.with(Line::attach).ok_or(AssignError::Full)?;
        if let Some(seat) = entry.seats.get_mut(sharer.index()) {
            *seat = Some(Seat { source, info });
        }
        entry.carry_out(&effects, io);
        if let Some(line) = self.by_vector.get_mut(usize::from(vector.get()))
            && *line == Self::NO_LINE
        {
            *line = index;
            entry.registrations.installed += 1;
        }
        let place = Some(Place { line: index, sharer, info });
        match self.sources.get_mut(free) {
            Some(free) => *free = place,
            None => self.sources.push(place),
        }
        Ok(source)
    }

    /// The entry of a line that may take one more source: the one in use, an idle one, or a new one.
    fn line_for(
        &mut self,
        gsi: Gsi,
        vector: Vector,
        gate: Gate,
        info: SourceInfo,
    ) -> Result<u8, AssignError> {
        let holder = self.lines.iter().find(|entry| entry.is_in_use() && entry.vector == vector);
        if let Some(holder) = holder
            && holder.gsi != gsi
        {
            return Err(AssignError::VectorTaken { vector, by: holder.gsi });
        }
        if let Some(at) = self.lines.iter().position(|entry| entry.gsi == gsi)
            && let Some(entry) = self.lines.get_mut(at)
        {
            let index = u8::try_from(at).map_err(|_| AssignError::Full)?;
            if !entry.is_in_use() {
                entry.vector = vector;
                entry.line.with(|line| *line = Line::new(gate));
                return Ok(index);
            }
            let latched = entry.line.with(|line| line.state().gate);
            if entry.vector != vector || latched != gate {
                return Err(AssignError::Latched { gsi, vector: entry.vector, gate: latched });
            }
            if let Some(foreign) = entry.seats.iter().flatten().find(|seat| seat.info.owner != info.owner)
                && !gate.allows(Sharing::SeveralPartitions)
            {
                return Err(AssignError::NeedsFunctionGate { gsi, with: foreign.source });
            }
            return Ok(index);
        }
        let index = u8::try_from(self.lines.len()).map_err(|_| AssignError::Full)?;
        if index == Self::NO_LINE {
            return Err(AssignError::Full);
        }
        self.lines.push(LineEntry {
            gsi,
            vector,
            seats: [None; MAX_SHARERS],
            slots: core::array::from_fn(|_| NotifierSlot::new()),
            line: Lock::new(Line::new(gate)),
            registrations: Registrations::default(),
        });
        Ok(index)
    }

    /// Takes a source off its line; the last one removes the handler. Whether it was done: a source that still has a
    /// notifier or a delivery stays.
    pub fn release(&mut self, source: SourceId, io: &mut impl LineIo) -> bool {
        let Some(&Some(place)) = self.sources.get(usize::from(source.0)) else { return false };
        let Some(entry) = self.lines.get_mut(usize::from(place.line)) else { return false };
        let Some(slot) = entry.slots.get_mut(place.sharer.index()) else { return false };
        if !slot.snapshot().target.is_none() {
            return false;
        }
        let Some(effects) = entry.line.with(|line| line.detach(place.sharer)) else { return false };
        // A fresh slot: a mark that nobody will take must not wait for the next owner.
        *slot = NotifierSlot::new();
        entry.carry_out(&effects, io);
        if let Some(seat) = entry.seats.get_mut(place.sharer.index()) {
            *seat = None;
        }
        if !entry.is_in_use() {
            entry.registrations.removed += 1;
            if let Some(line) = self.by_vector.get_mut(usize::from(entry.vector.get())) {
                *line = Self::NO_LINE;
            }
        }
        if let Some(freed) = self.sources.get_mut(usize::from(source.0)) {
            *freed = None;
        }
        true
    }

    /// The permanent handler: the CPU took `vector`. `None` if no line has it.
    ///
    /// On return every source that asserts is silenced, so the local APIC may be given its EOI; then each delivery's
    /// virtual pin is raised.
    #[inline]
    pub fn assert(&self, vector: Vector, io: &mut impl LineIo) -> Option<Deliveries<'_>> {
        let line = *self.by_vector.get(usize::from(vector.get()))?;
        let entry = self.lines.get(usize::from(line))?;
        Some(entry.drive(Event::Wire, io).1)
    }

    /// The guest completed: its EOI reached the virtual pin `from` while `source` held it high, or the owner of a poll
    /// counter said so. Anything that is not in service through `from` is stale and changes nothing.
    #[inline]
    pub fn complete(&self, source: SourceId, from: Notifier, io: &mut impl LineIo) -> Deliveries<'_> {
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
        let Some((entry, sharer, slot)) =
            place.and_then(|(entry, sharer)| Some((entry, sharer, entry.slots.get(sharer.index())?)))
        else {
            return Err((control, ReplaceError::NoSuchSource));
        };
        if let Some(listeners) = self.listener_word(new) {
            listeners.fetch_or(source.bit(), Ordering::AcqRel);
        }
        let retiring = slot.replace(control, new);
        Ok(Replacing { table: self, entry, slot, sharer, source, how, retiring })
    }

    /// The sources that may hold the virtual pin high: those to tell of its EOI or of its mask bit. Takes no lock.
    #[inline]
    pub fn listeners(&self, partition: u8, vpin: Pin) -> Sources {
        let word = self.listener_word(Notifier::Pin { partition, vpin });
        Sources(word.map_or(0, |word| word.load(Ordering::Acquire)))
    }

    /// Every assigned source.
    pub fn sources(&self) -> impl Iterator<Item = SourceId> + '_ {
        (0..).zip(&self.sources).filter_map(|(number, place)| place.map(|_| SourceId(number)))
    }

    /// A source's state and books, or `None` if there is no such source.
    pub fn source_report(&self, source: SourceId) -> Option<SourceReport> {
        let (entry, sharer) = self.place(source)?;
        let slot = entry.slots.get(sharer.index())?.snapshot();
        let (state, account) =
            entry.line.with(|line| Some((*line.source(sharer)?, line.account(sharer)?)))?;
        let info = entry.seats.get(sharer.index())?.as_ref()?.info;
        Some(SourceReport { info, gsi: entry.gsi, state, account, slot })
    }

    /// Every line that has or had a source.
    pub fn line_reports(&self) -> impl Iterator<Item = LineReport> + '_ {
        self.lines.iter().map(|entry| {
            let (state, interrupts) = entry.line.with(|line| (*line.state(), line.interrupts()));
            LineReport {
                gsi: entry.gsi,
                vector: entry.vector,
                state,
                interrupts,
                registrations: entry.registrations,
            }
        })
    }

    #[inline]
    fn place(&self, source: SourceId) -> Option<(&LineEntry, Sharer)> {
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
            Some((entry, sharer)) => entry.drive(event(sharer), io),
            None => (false, Deliveries::none()),
        }
    }
}

impl LineEntry {
    /// One event under the line's lock, and what is to be done outside of it.
    #[inline]
    fn drive(&self, event: Event, io: &mut impl LineIo) -> (bool, Deliveries<'_>) {
        self.line.with(|line| self.run(line, event, io))
    }

    /// One event from beginning to end: step, effects, the slots that are to be entered, the functions that are to be
    /// sampled.
    #[inline]
    fn run(&self, line: &mut Line, event: Event, io: &mut impl LineIo) -> (bool, Deliveries<'_>) {
        let mut deliveries = Deliveries { entry: Some(self), ..Deliveries::none() };
        let mut effects = line.step(event);
        let changed = effects.changed;
        let mut asked = SharerSet::EMPTY;
        let mut to_ask = SharerSet::EMPTY;
        loop {
            self.carry_out(&effects, io);
            for sharer in effects.notify {
                self.notify(line, sharer, &mut deliveries);
            }
            // Nobody is asked twice for one event, whatever the functions answer.
            to_ask = to_ask.union(effects.sample).difference(asked);
            let Some(sharer) = to_ask.first() else { return (changed, deliveries) };
            asked.insert(sharer);
            let sample = self.seat(sharer).map_or(Sample::Absent, |seat| io.intx_status(seat.info.bdf));
            effects = line.step(Event::Sampled { sharer, sample });
        }
    }

    /// Asks the slot where the assertion goes. The line learns of it in the same hold of its lock, so that a
    /// replacement that finishes later finds the delivery in the line's state.
    #[inline]
    fn notify<'t>(&'t self, line: &mut Line, sharer: Sharer, deliveries: &mut Deliveries<'t>) {
        let Some(slot) = self.slots.get(sharer.index()) else { return };
        let entered = slot.enter();
        let effects = line.step(Event::Notified { sharer, target: entered.target, parity: entered.parity });
        if !entered.target.is_none() {
            deliveries.put(sharer, entered);
        } else if effects.mark {
            slot.leave_mark(entered);
        } else {
            slot.leave(entered);
        }
    }

    /// Close, lower, open.
    #[inline]
    fn carry_out(&self, effects: &Effects, io: &mut impl LineIo) {
        if effects.mask_rte {
            io.mask_rte(self.gsi);
        }
        for seat in effects.set_disintx.filter_map(|sharer| self.seat(sharer)) {
            io.set_disintx(seat.info.bdf, true);
        }
        if let Some((sharer, target)) = effects.lower
            && let Some(seat) = self.seat(sharer)
        {
            io.lower_pin(seat.source, target);
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

    fn is_in_use(&self) -> bool {
        self.seats.iter().any(Option::is_some)
    }

    #[inline]
    fn seat(&self, sharer: Sharer) -> Option<&Seat> {
        self.seats.get(sharer.index())?.as_ref()
    }
}

/// A set of sources, lowest number first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources(u64);

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

/// The deliveries that one event caused: each virtual pin is still to be raised, outside the line's lock.
#[derive(Debug)]
#[must_use = "a delivery that is not made is an interrupt lost: raise each target"]
pub struct Deliveries<'t> {
    entry: Option<&'t LineEntry>,
    to_make: SharerSet,
    entered: [Option<Entered>; MAX_SHARERS],
}

impl<'t> Deliveries<'t> {
    const fn none() -> Self {
        Self { entry: None, to_make: SharerSet::EMPTY, entered: [None; MAX_SHARERS] }
    }

    #[inline]
    fn put(&mut self, sharer: Sharer, entered: Entered) {
        if let Some(place) = self.entered.get_mut(sharer.index()) {
            *place = Some(entered);
            self.to_make.insert(sharer);
        }
    }

    /// Whether there is nothing to deliver.
    pub const fn is_empty(&self) -> bool {
        self.to_make.is_empty()
    }
}

impl<'t> Iterator for Deliveries<'t> {
    type Item = Delivery<'t>;

    #[inline]
    fn next(&mut self) -> Option<Delivery<'t>> {
        let sharer = self.to_make.next()?;
        let entry = self.entry?;
        Some(Delivery {
            slot: entry.slots.get(sharer.index())?,
            entered: (*self.entered.get(sharer.index())?)?,
            source: entry.seat(sharer)?.source,
        })
    }
}

impl Drop for Deliveries<'_> {
    /// Gives up the places of deliveries that were not made, so that the next replacement does not wait for ever.
    #[inline]
    fn drop(&mut self) {
        self.for_each(drop);
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
        self.entered.target
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
    table: &'t LineTable,
    entry: &'t LineEntry,
    slot: &'t NotifierSlot,
    sharer: Sharer,
    source: SourceId,
    how: Completion,
    retiring: Retiring,
}

/// A replacement that is over.
#[derive(Debug)]
pub struct Replacement<'t> {
    /// The right to replace, back.
    pub control: Control,
    /// The notifier that is out of use.
    pub old: Notifier,
    /// Whether an assertion had been waiting for a notifier.
    pub marked: bool,
    /// At a function gate: the assertion that Status still shows, for the new notifier. (At a line gate the chip
    /// sends it again.)
    pub deliveries: Deliveries<'t>,
}

impl<'t> Replacing<'t> {
    /// Whose notifier is being replaced.
    pub const fn source(&self) -> SourceId {
        self.source
    }

    /// Looks once, never spins. When it is over, no CPU is in the old notifier and none will enter it; what was in
    /// service there is completed and its pin lowered; and the source's gate stands as its reasons demand.
    ///
    /// # Errors
    ///
    /// Not an error but a state: a delivery to the old notifier is still in flight. Ask again from the run loop.
    pub fn poll(self, io: &mut impl LineIo) -> Result<Replacement<'t>, Self> {
        let Self { table, entry, slot, sharer, source, how, retiring } = self;
        let retired = match retiring.poll(slot) {
            Ok(retired) => retired,
            Err(retiring) => return Err(Self { table, entry, slot, sharer, source, how, retiring }),
        };
        let (_, deliveries) = entry.line.with(|line| {
            // Read under the lock: a change after this moment is reported as an event of its own, after this one.
            let masked = !retired.new.is_none() && io.virtual_rte_masked(retired.new);
            entry.run(line, Event::retired(sharer, &retired, masked, how), io)
        });
        if retired.old != retired.new
            && let Some(listeners) = table.listener_word(retired.old)
        {
            listeners.fetch_and(!source.bit(), Ordering::AcqRel);
        }
        Ok(Replacement { control: retired.control, old: retired.old, marked: retired.marked, deliveries })
    }
}
