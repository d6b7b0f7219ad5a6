//! What a line knows, as plain data: [`Line::step`](super::Line::step) decides by it and changes it, and nothing else does.

use super::gate::Gate;
use super::notifier::{Addressee, Notifier};
use super::reasons::MaskReasons;
use super::sharers::{MAX_SHARERS, Sharer, SharerSet};

/// Where an assertion came from, while the slot is being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The device: the wire, or Status at a gate about to open.
    Device,
    /// A loopback.
    Loopback,
}

/// How far a source's delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// No delivery.
    Idle,
    /// The gate is closed and the slot is being asked; only inside one hold of the line's lock.
    Notifying(Origin),
    /// This notifier was given the assertion; its pin is high, or will be once the delivery leaves the slot.
    InService(Addressee),
    /// The guest's EOI came from this notifier while it had the virtual RTE masked: completion is the unmask. The pin is still high.
    AwaitUnmask(Addressee),
}

/// What a line knows of one of its sources. Sixteen bytes, so that finding a place is a shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(align(16))]
pub struct SourceState {
    /// Why it is silenced; empty: it is open.
    pub reasons: MaskReasons,
    /// How far its delivery is.
    pub service: Service,
    /// The notifier after the last replacement that is over. The slot may already be ahead.
    pub notifier: Notifier,
    /// Whether an assertion met no notifier and waits for one.
    pub pending: bool,
}

impl SourceState {
    pub(super) const NEW: Self = Self {
        reasons: MaskReasons::NO_NOTIFIER,
        service: Service::Idle,
        notifier: Notifier::None,
        pending: false,
    };
}

/// The protocol state of a line: everything [`Line::step`](super::Line::step) decides by, without the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LineState {
    /// The kind of gate.
    pub gate: Gate,
    /// The places that are taken.
    pub present: SharerSet,
    /// Whether the RTE is masked.
    pub rte_masked: bool,
    /// Directed EOI only: whether Remote IRR holds the line for an EOI that is still withheld.
    pub held: bool,
    /// Function gate only: whose DisINTx is set.
    pub disintx: SharerSet,
    /// Function gate only: whose Status is not believed when it is set, until it is seen clear. The wire tells for them.
    pub doubted: SharerSet,
    /// Function gate only: the RTE is masked for good, since somebody asserts whom nothing else silences.
    pub stopped: bool,
    /// The sources, by place; meaningful where `present`.
    pub sources: [SourceState; MAX_SHARERS],
}

impl LineState {
    /// Whether nothing physical can reach `sharer`'s delivery path now.
    pub fn is_closed(&self, sharer: Sharer) -> bool {
        match self.gate {
            Gate::RteMask | Gate::DirectedEoi => self.rte_masked || self.held,
            Gate::Function => self.rte_masked || self.disintx.contains(sharer),
        }
    }

    /// Whether the line is masked as a whole and should hold nothing: Remote IRR, if it is set, is then a vector on its way.
    /// Not so while the EOI of a delivery is withheld, which may be another source's.
    pub const fn is_to_fall_silent(&self) -> bool {
        self.rte_masked && !self.held
    }
}
