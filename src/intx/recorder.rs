//! The flight recorder of a line: why each source is silenced, since when and by whom, and what happened to the line last.
//!
//! It stands beside the [`Line`](super::Line) under the same lock and looks at it after each step: reasons that were not there
//! before begin now. So it can contradict the line as little as a photograph can, and no rule of the line depends on it.
//! Times are those of [`LineIo::now`](super::LineIo::now).

use core::fmt;

use super::event::Event;
use super::reasons::MaskReasons;
use super::sharers::{MAX_SHARERS, Seating, Sharer, SharerSet};
use super::state::LineState;

/// How many moments a line remembers; the oldest is forgotten first.
pub const MOMENTS: usize = 32;

/// Who made something happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A device, by its wire.
    Device,
    /// The guest of the partition with this number, by an EOI, a register or a hypercall.
    Guest(u8),
    /// The hypervisor: a policy, a reset, the start or the end of a partition.
    Hypervisor,
}

impl Actor {
    /// As the records for guests have it: the partition's number, 254 for the hypervisor, 255 for a device.
    pub const fn number(self) -> u8 {
        match self {
            Self::Guest(partition) => partition,
            Self::Hypervisor => 254,
            Self::Device => 255,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("device"),
            Self::Guest(partition) => write!(f, "partition {partition}"),
            Self::Hypervisor => f.write_str("hypervisor"),
        }
    }
}

/// What happened, as an [`Event`] without its particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Happening {
    /// The line's vector arrived.
    Arrived = 0,
    /// It arrived, and nobody who is open asserted.
    Unclaimed = 1,
    /// The guest completed, by EOI or hypercall.
    Completed = 2,
    /// The guest masked the virtual redirection table entry.
    VirtualRteMasked = 3,
    /// The guest unmasked it.
    VirtualRteUnmasked = 4,
    /// A reason was given.
    Masked = 5,
    /// A reason was taken back.
    Unmasked = 6,
    /// Software asserted in the device's stead.
    Triggered = 7,
    /// The notifier was replaced, and the old one is out of use.
    Replaced = 8,
    /// A throttled source was admitted again.
    Resumed = 9,
    /// A source came to the line.
    Attached = 10,
    /// A source left it.
    Detached = 11,
}

impl Happening {
    /// What an event that the outside reports is called. Those that follow from it are part of it.
    pub(super) const fn of(event: &Event) -> Self {
        match event {
            Event::Wire { .. } | Event::Notified { .. } | Event::Sampled { .. } | Event::Timed { .. } => {
                Self::Arrived
            }
            Event::Unclaimed => Self::Unclaimed,
            Event::Resume { .. } => Self::Resumed,
            Event::Eoi { .. } => Self::Completed,
            Event::VirtualRte { masked: true, .. } => Self::VirtualRteMasked,
            Event::VirtualRte { masked: false, .. } => Self::VirtualRteUnmasked,
            Event::Mask { .. } => Self::Masked,
            Event::Unmask { .. } => Self::Unmasked,
            Event::Loopback { .. } => Self::Triggered,
            Event::Retired { .. } => Self::Replaced,
        }
    }

    /// One word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arrived => "arrived",
            Self::Unclaimed => "unclaimed",
            Self::Completed => "completed",
            Self::VirtualRteMasked => "virtual-rte-masked",
            Self::VirtualRteUnmasked => "virtual-rte-unmasked",
            Self::Masked => "masked",
            Self::Unmasked => "unmasked",
            Self::Triggered => "triggered",
            Self::Replaced => "replaced",
            Self::Resumed => "resumed",
            Self::Attached => "attached",
            Self::Detached => "detached",
        }
    }
}

/// What changed a line, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moment {
    /// When.
    pub at: u64,
    /// The reasons for which they are silenced afterwards, together.
    pub reasons: MaskReasons,
    /// Whom it was about: those whose reasons may have changed, and whom the event names.
    pub sharers: SharerSet,
    /// What happened.
    pub what: Happening,
    /// Who made it happen.
    pub by: Actor,
}

/// When a reason came, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Since {
    /// When.
    pub at: u64,
    /// By whom.
    pub by: Actor,
}

/// How many reasons there are.
const REASONS: usize = MaskReasons::all().bits().count_ones() as usize;
/// How many there could be.
const BITS: usize = u16::BITS as usize;

const NEVER: Since = Since { at: 0, by: Actor::Hypervisor };
const NOTHING: Moment = Moment {
    at: 0,
    reasons: MaskReasons::empty(),
    sharers: SharerSet::EMPTY,
    what: Happening::Attached,
    by: Actor::Hypervisor,
};

/// What the recorder knows of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct History {
    reasons: MaskReasons,
    /// Meaningful where `reasons`.
    since: [Since; REASONS],
    /// Those about the source, the oldest first.
    moments: [Moment; MOMENTS],
    count: usize,
}

impl History {
    /// Of a source to which nothing has happened.
    pub const NONE: Self = Self {
        reasons: MaskReasons::empty(),
        since: [NEVER; REASONS],
        moments: [NOTHING; MOMENTS],
        count: 0,
    };

    /// Why it is silenced.
    pub const fn reasons(&self) -> MaskReasons {
        self.reasons
    }

    /// Since when a reason stands, and by whom; `None` for one that does not.
    pub fn since(&self, reason: MaskReasons) -> Option<Since> {
        if reason.is_empty() || !self.reasons.contains(reason) {
            return None;
        }
        self.since.get(reason.bits().trailing_zeros() as usize).copied()
    }

    /// Those of the line's last moments that were about the source, the oldest first.
    pub fn moments(&self) -> &[Moment] {
        self.moments.get(..self.count).unwrap_or_default()
    }
}

/// What is kept of one place on the line.
#[derive(Clone, Copy, Debug)]
struct Track {
    /// The reasons as they were after the last step.
    seen: MaskReasons,
    /// When each reason came last, and by whom, by the number of its bit.
    since: [Since; BITS],
}

/// The recorder of one line.
#[derive(Clone, Debug)]
pub(super) struct Recorder {
    moments: [Moment; MOMENTS],
    /// How many moments there were.
    count: u64,
    tracks: [Track; MAX_SHARERS],
}

impl Recorder {
    pub(super) const fn new() -> Self {
        const EMPTY: Track = Track { seen: MaskReasons::empty(), since: [NEVER; BITS] };
        Self { moments: [NOTHING; MOMENTS], count: 0, tracks: [EMPTY; MAX_SHARERS] }
    }

    /// Looks at those places of a line whose reasons may have changed, or whom an event names.
    #[inline(always)]
    pub(super) fn note<S: Seating>(
        &mut self,
        line: &LineState,
        what: Happening,
        sharers: SharerSet,
        by: Actor,
        now: u64,
    ) {
        let mut reasons = MaskReasons::empty();
        for sharer in S::each(sharers) {
            let (Some(source), Some(track)) =
                (line.sources.get(sharer.index()), self.tracks.get_mut(sharer.index()))
            else {
                continue;
            };
            reasons |= source.reasons;
            let mut risen = source.reasons.difference(track.seen).bits();
            track.seen = source.reasons;
            while risen != 0 {
                if let Some(since) = track.since.get_mut(risen.trailing_zeros() as usize % BITS) {
                    *since = Since { at: now, by };
                }
                risen &= risen.wrapping_sub(1);
            }
        }
        if let Some(place) = self.moments.get_mut(self.count as usize % MOMENTS) {
            *place = Moment { at: now, reasons, sharers, what, by };
        }
        self.count = self.count.wrapping_add(1);
    }

    /// A source leaves the line: the next one at its place begins anew.
    pub(super) fn forget(&mut self, sharer: Sharer) {
        if let Some(track) = self.tracks.get_mut(sharer.index()) {
            track.seen = MaskReasons::empty();
        }
    }

    /// Writes down what is known of a source.
    // Piece by piece: as a value it would be copied several times over with the line's lock held.
    pub(super) fn tell(&self, sharer: Sharer, history: &mut History) {
        let Some(track) = self.tracks.get(sharer.index()) else { return };
        history.reasons = track.seen;
        for reason in track.seen {
            let index = reason.bits().trailing_zeros() as usize;
            if let (Some(place), Some(since)) = (history.since.get_mut(index), track.since.get(index)) {
                *place = *since;
            }
        }
        history.count = 0;
        let known = self.count.min(MOMENTS as u64);
        for number in self.count.wrapping_sub(known)..self.count {
            let moment = self.moments.get(number as usize % MOMENTS);
            let Some(moment) = moment.filter(|moment| moment.sharers.contains(sharer)) else { continue };
            // What was before its coming was about another at its place.
            if moment.what == Happening::Attached {
                history.count = 0;
            }
            if let Some(place) = history.moments.get_mut(history.count) {
                *place = *moment;
                history.count = history.count.wrapping_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sharers::Several;
    use super::*;
    use crate::intx::{Addressee, Completion, Control, Gate, Line, Notifier, Parity, Retired};
    use crate::irq::Pin;

    const PIN: Notifier = Notifier::Pin { partition: 1, vpin: Pin(20) };
    const GUEST: Actor = Actor::Guest(1);

    fn at(place: u8) -> Sharer {
        Sharer::new(place).unwrap()
    }

    /// A line, its recorder, and a clock that ticks with each event.
    struct Flight {
        line: Line,
        recorder: Recorder,
        now: u64,
    }

    impl Flight {
        /// A line with this many sources, each with a notifier: one moment each for its coming and for its notifier.
        fn new(sources: u8) -> Self {
            let mut flight = Self { line: Line::new(Gate::RteMask), recorder: Recorder::new(), now: 0 };
            for sharer in (0..sources).map(at) {
                assert_eq!(flight.line.attach().map(|(sharer, _)| sharer), Some(sharer));
                flight.note(Happening::Attached, SharerSet::only(sharer), Actor::Hypervisor);
                let control = Control::mint();
                let (old, new, parity) = (Notifier::None, PIN, Parity::Even);
                let retired = Retired { control, old, new, parity, marked: false };
                let replaced = Event::retired(sharer, &retired, false, Completion::Handover);
                flight.event(replaced, Actor::Hypervisor);
            }
            flight
        }

        fn note(&mut self, what: Happening, sharers: SharerSet, by: Actor) {
            self.now += 1;
            self.recorder.note::<Several>(self.line.state(), what, sharers, by, self.now);
        }

        fn event(&mut self, event: Event, by: Actor) {
            let notify = self.line.step(event).notify;
            for sharer in notify {
                let _ =
                    self.line.step(Event::Notified { sharer, addressee: Addressee::new(PIN, Parity::Odd) });
            }
            let named = event.sharer().map_or(SharerSet::EMPTY, SharerSet::only);
            self.note(Happening::of(&event), named.union(notify), by);
        }

        fn history(&self, place: u8) -> History {
            let mut history = History::NONE;
            self.recorder.tell(at(place), &mut history);
            history
        }
    }

    #[test]
    fn n19_each_reason_has_its_time_and_its_giver() {
        let mut flight = Flight::new(1);
        let open = flight.history(0);
        assert!(open.reasons().is_empty() && open.since(MaskReasons::NO_NOTIFIER).is_none());
        flight.event(Event::Wire { metered: false }, Actor::Device);
        let arrived = Since { at: flight.now, by: Actor::Device };
        flight.event(Event::Mask { sharer: at(0), reasons: MaskReasons::OPERATOR }, GUEST);
        let masked = Since { at: flight.now, by: GUEST };
        // Given once more by somebody else: it stands since the first time.
        flight.event(Event::Mask { sharer: at(0), reasons: MaskReasons::OPERATOR }, Actor::Hypervisor);
        let both = flight.history(0);
        assert_eq!(both.reasons(), MaskReasons::IN_SERVICE | MaskReasons::OPERATOR);
        assert_eq!(both.since(MaskReasons::IN_SERVICE), Some(arrived));
        assert_eq!(both.since(MaskReasons::OPERATOR), Some(masked));
        assert_eq!(both.since(MaskReasons::RESET), None);
        flight.event(Event::Eoi { sharer: at(0), from: PIN }, GUEST);
        let after = flight.history(0);
        assert_eq!(
            (after.since(MaskReasons::IN_SERVICE), after.since(MaskReasons::OPERATOR)),
            (None, Some(masked))
        );
        flight.event(Event::Unmask { sharer: at(0), reasons: MaskReasons::OPERATOR }, GUEST);
        flight.event(Event::Mask { sharer: at(0), reasons: MaskReasons::OPERATOR }, Actor::Hypervisor);
        let again = Since { at: flight.now, by: Actor::Hypervisor };
        assert_eq!(flight.history(0).since(MaskReasons::OPERATOR), Some(again), "it began anew");
    }

    #[test]
    fn n19_the_last_moments_are_kept_in_order_and_no_more() {
        let mut flight = Flight::new(1);
        let first = flight.history(0);
        let kinds: Vec<_> = first.moments().iter().map(|moment| moment.what).collect();
        assert_eq!(kinds, [Happening::Attached, Happening::Replaced]);
        for round in 0..100 {
            flight.event(Event::Wire { metered: false }, Actor::Device);
            flight.event(Event::Eoi { sharer: at(0), from: PIN }, GUEST);
            let history = flight.history(0);
            let moments = history.moments();
            assert_eq!(moments.len(), MOMENTS.min(2 + 2 * (round + 1)));
            assert!(
                moments.windows(2).all(|pair| pair[0].at + 1 == pair[1].at),
                "in order, and none is missing"
            );
            let [.., arrived, completed] = moments else { panic!("two at least") };
            let service = MaskReasons::IN_SERVICE;
            assert_eq!(
                (arrived.what, arrived.by, arrived.reasons),
                (Happening::Arrived, Actor::Device, service)
            );
            let open = MaskReasons::empty();
            assert_eq!(
                (completed.what, completed.by, completed.reasons),
                (Happening::Completed, GUEST, open)
            );
        }
    }

    #[test]
    fn n19_a_source_shows_what_was_about_it_alone() {
        let mut flight = Flight::new(2);
        flight.event(Event::Mask { sharer: at(0), reasons: MaskReasons::OPERATOR }, Actor::Guest(7));
        let (own, other) = (flight.history(0), flight.history(1));
        assert_eq!(own.moments().last().map(|moment| moment.by), Some(Actor::Guest(7)));
        assert!(
            other
                .moments()
                .iter()
                .all(|moment| moment.by != Actor::Guest(7) && moment.what != Happening::Masked)
        );
        assert_eq!(other.since(MaskReasons::OPERATOR), None);
    }

    #[test]
    fn n19_who_comes_to_a_place_inherits_nothing() {
        let mut flight = Flight::new(1);
        let old = Flight::new(1).history(0).since(MaskReasons::NO_NOTIFIER);
        assert_eq!(old, None);
        let control = Control::mint();
        let (old, new, parity) = (PIN, Notifier::None, Parity::Odd);
        let retired = Retired { control, old, new, parity, marked: false };
        flight.event(Event::retired(at(0), &retired, false, Completion::Reset), Actor::Hypervisor);
        assert!(flight.line.detach(at(0)).is_some());
        flight.note(Happening::Detached, SharerSet::only(at(0)), Actor::Hypervisor);
        flight.recorder.forget(at(0));
        assert!(flight.line.attach().is_some());
        flight.note(Happening::Attached, SharerSet::only(at(0)), Actor::Hypervisor);
        let since = Since { at: flight.now, by: Actor::Hypervisor };
        assert_eq!(flight.history(0).since(MaskReasons::NO_NOTIFIER), Some(since));
    }
}
