//! What happens to a line, and what follows from it: the two ends of [`Line::step`](super::Line::step).

use super::gate::Sample;
use super::ledger::Completion;
use super::notifier::{Addressee, Notifier, Parity, Retired};
use super::reasons::MaskReasons;
use super::sharers::{Sharer, SharerSet};

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The line's vector arrived.
    Wire {
        /// Whether storm budgets count. A line on which nobody has one is spared the look at them.
        metered: bool,
    },
    /// None of the open sources that the vector asked for asserts, or there is none.
    Unclaimed,
    /// The clock that [`Effects::overdrawn`] asked for.
    Timed {
        /// For whom.
        sharer: Sharer,
        /// What it shows.
        now: u64,
    },
    /// Time has passed: a throttled source whose pause is over is admitted again.
    Resume {
        /// Whose.
        sharer: Sharer,
        /// What the clock shows.
        now: u64,
    },
    /// The INTx Status that [`Effects::sample`] asked for.
    Sampled {
        /// Whose.
        sharer: Sharer,
        /// What it shows.
        sample: Sample,
    },
    /// The slot that [`Effects::notify`] asked to enter was entered.
    Notified {
        /// Whose.
        sharer: Sharer,
        /// Whom it showed, possibly nobody.
        addressee: Addressee,
    },
    /// The guest's EOI reached the virtual pin while this source held it high, or the owner of a poll counter
    /// completed by hypercall.
    Eoi {
        /// Whose.
        sharer: Sharer,
        /// The notifier it came through; one that is not in service makes the EOI stale.
        from: Notifier,
    },
    /// The guest masked or unmasked the virtual redirection table entry of a pin.
    VirtualRte {
        /// Whose.
        sharer: Sharer,
        /// The pin; a change of any other pin than the notifier's is nothing to the source.
        pin: Notifier,
        /// The mask bit now.
        masked: bool,
    },
    /// Somebody has reasons to silence the source. Only [`MaskReasons::GIVEN`] count.
    Mask {
        /// Whose.
        sharer: Sharer,
        /// Why.
        reasons: MaskReasons,
    },
    /// Somebody takes reasons back. Only [`MaskReasons::GIVEN`] count.
    Unmask {
        /// Whose.
        sharer: Sharer,
        /// Which.
        reasons: MaskReasons,
    },
    /// Software asserts in the device's stead.
    Loopback {
        /// Whose.
        sharer: Sharer,
    },
    /// A grace period is over: nobody delivers to the old notifier any more. Deliveries of its epoch that are
    /// still in service end here.
    Retired {
        /// Whose.
        sharer: Sharer,
        /// The notifier now.
        notifier: Notifier,
        /// The epoch that ended.
        parity: Parity,
        /// Whether the slot handed over the mark of an assertion that had met no notifier.
        marked: bool,
        /// Whether the virtual RTE of the notifier of now is masked.
        virtual_rte_masked: bool,
        /// How deliveries of the old epoch are booked.
        how: Completion,
    },
}

impl Event {
    /// The one source that it is about, if it names one.
    pub const fn sharer(&self) -> Option<Sharer> {
        match *self {
            Self::Wire { .. } | Self::Unclaimed => None,
            Self::Timed { sharer, .. }
            | Self::Resume { sharer, .. }
            | Self::Sampled { sharer, .. }
            | Self::Notified { sharer, .. }
            | Self::Eoi { sharer, .. }
            | Self::VirtualRte { sharer, .. }
            | Self::Mask { sharer, .. }
            | Self::Unmask { sharer, .. }
            | Self::Loopback { sharer }
            | Self::Retired { sharer, .. } => Some(sharer),
        }
    }

    /// The event that reports the end of a slot's grace period.
    pub const fn retired(
        sharer: Sharer,
        retired: &Retired,
        virtual_rte_masked: bool,
        how: Completion,
    ) -> Self {
        Self::Retired {
            sharer,
            notifier: retired.new,
            parity: retired.parity,
            marked: retired.marked,
            virtual_rte_masked,
            how,
        }
    }
}

/// What must be done, in the order the module's head gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the line believes that its effects were carried out"]
pub struct Effects {
    /// Close: mask the RTE.
    pub mask_rte: bool,
    /// Close: set these functions' DisINTx.
    pub set_disintx: SharerSet,
    /// Lower this source's level on the virtual pin that was notified.
    pub lower: Option<(Sharer, Addressee)>,
    /// Enter these sources' slots and report [`Event::Notified`].
    pub notify: SharerSet,
    /// After [`Event::Notified`]: the slot was empty and the assertion must leave its mark there.
    pub mark: bool,
    /// Open: clear these functions' DisINTx.
    pub clear_disintx: SharerSet,
    /// Open: unmask the RTE.
    pub unmask_rte: bool,
    /// Open: send the withheld EOI.
    pub directed_eoi: bool,
    /// Read these functions' INTx Status and report [`Event::Sampled`], one after the other. If a vector asks, those of them that
    /// are [doubted](super::LineState::doubted) come last, and only if none of the others asserts.
    pub sample: SharerSet,
    /// Report [`Event::Unclaimed`]: the vector asks for nobody, since nobody is open.
    pub unclaimed: bool,
    /// Read the clock and report [`Event::Timed`] for each of these, one after the other: their storm budgets are used up.
    pub overdrawn: SharerSet,
    /// Whether the event changed a reason set or a service state; false for what was stale, idempotent or refused.
    pub changed: bool,
}
