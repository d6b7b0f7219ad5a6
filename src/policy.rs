//! What is done about devices that storm, guests that never complete, functions that cannot be reset, and guests that end:
//! the values alone. The configuration reads them, `intx` and the hypervisor act by them.
//!
//! Times are in milliseconds of real time. The defaults are those of a device whose configuration says nothing; nothing is
//! watched then, so nothing costs.

use core::fmt;
use core::ops::RangeInclusive;

/// What one device is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DevicePolicy {
    /// `storm-limit` and its companions; `None`: no limit.
    ///
    /// None by default, since no number is right for every device, and a device that storms takes time from its own
    /// partition only: its line is closed from delivery to completion, so it can interrupt no oftener than its guest
    /// completes, on the guest's own CPU.
    pub storm: Option<StormLimit>,
    /// `never-eoi` and its companion; `None`: a delivery stays in service as long as the guest likes, and nobody looks.
    pub never_eoi: Option<EoiDeadline>,
    /// `no-reset`.
    pub no_reset: NoReset,
}

/// How often a device may interrupt, and what follows if it does so oftener: its source is throttled for
/// [`pause_ms`](Self::pause_ms) and admitted again, and at the
/// ([`retries`](Self::retries) + 1)th time in a row without a quiet window in between it is quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StormLimit {
    /// `storm-limit`: the most interrupts in a window.
    pub limit: u32,
    /// `storm-window`: the length of a window.
    pub window_ms: u32,
    /// `storm-pause`: how long the source stays throttled.
    pub pause_ms: u32,
    /// `storm-retries`: how often in a row it is admitted again.
    pub retries: u32,
}

impl StormLimit {
    /// What `storm-limit` may be. Each millisecond of a machine has room for some hundred interrupts at most.
    pub const LIMIT: RangeInclusive<u32> = 1..=10_000_000;
    /// What `storm-window` may be.
    pub const WINDOW_MS: RangeInclusive<u32> = 1..=60_000;
    /// What `storm-pause` may be.
    pub const PAUSE_MS: RangeInclusive<u32> = 1..=3_600_000;
    /// What `storm-retries` may be.
    pub const RETRIES: RangeInclusive<u32> = 0..=1_000_000;

    /// A limit with the defaults of its companions: a window of 100 ms, a pause of 1 s, 3 retries.
    pub const fn new(limit: u32) -> Self {
        Self { limit, window_ms: 100, pause_ms: 1000, retries: 3 }
    }
}

/// How long a guest may take from delivery to completion, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EoiDeadline {
    /// `never-eoi`: what is done.
    pub action: NeverEoi,
    /// `never-eoi-after`: when.
    pub after_ms: u32,
}

impl EoiDeadline {
    /// What `never-eoi-after` may be.
    pub const AFTER_MS: RangeInclusive<u32> = 1..=3_600_000;

    /// The deadline by default: 1 s.
    pub const fn new(action: NeverEoi) -> Self {
        Self { action, after_ms: 1000 }
    }
}

/// What is done about a delivery that a guest does not complete. Each is done, and recorded, once; not again before the
/// guest has completed a delivery by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NeverEoi {
    /// It stays in service for ever.
    #[default]
    Hold,
    /// It is completed by force. The next one, if the device still asserts, stays in service for ever.
    Complete,
    /// It is completed by force, and the source is quarantined.
    Quarantine,
}

impl NeverEoi {
    /// All of them, in the order of the documents.
    pub const ALL: [Self; 3] = [Self::Hold, Self::Complete, Self::Quarantine];
}

impl fmt::Display for NeverEoi {
    /// As the configuration spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hold => "hold",
            Self::Complete => "complete",
            Self::Quarantine => "quarantine",
        })
    }
}

/// What is done about a function that nothing resets: it has no function-level reset (PCI Express Base 4.0 6.6.2, or the
/// Advanced Features capability of conventional PCI), does not reset on its way from D3hot to D0 (PCI PM 1.2 3.2.4), and
/// its bus is not its partition's to reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NoReset {
    /// It goes from one life of its guest to the next as it is, with bus mastering off and its line masked until the guest
    /// opens it. The default, because the old cards that INTx is about have no reset of their own.
    #[default]
    Mask,
    /// The assignment is refused.
    Refuse,
}

impl NoReset {
    /// Both, in the order of the documents.
    pub const ALL: [Self; 2] = [Self::Mask, Self::Refuse];
}

impl fmt::Display for NoReset {
    /// As the configuration spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mask => "mask",
            Self::Refuse => "refuse",
        })
    }
}

/// Whether a partition starts again when its guest ended other than by reporting success: as at boot, with its memory as its
/// image makes it and its functions reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RestartPolicy {
    /// `restart`: how often; `None`: always.
    pub at_most: Option<u32>,
    /// `restart-pause`: how long after the end, doubled with each restart in a row.
    pub pause_ms: u32,
}

impl RestartPolicy {
    /// What a number of restarts may be.
    pub const AT_MOST: RangeInclusive<u32> = 1..=1_000_000;
    /// The longest first pause.
    pub const MAX_PAUSE_MS: u32 = 3_600_000;
    /// What `restart-pause` may be.
    pub const PAUSE_MS: RangeInclusive<u32> = 0..=Self::MAX_PAUSE_MS;

    /// Never.
    pub const NEVER: Self = Self::new(Some(0));

    /// So many, with a pause of 100 ms.
    pub const fn new(at_most: Option<u32>) -> Self {
        Self { at_most, pause_ms: 100 }
    }

    /// Whether there may be any.
    pub const fn restarts(&self) -> bool {
        !matches!(self.at_most, Some(0))
    }
}

impl Default for RestartPolicy {
    /// A guest that ended is over: whoever relies on it has to look at the record.
    fn default() -> Self {
        Self::NEVER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_bounds() {
        let storm = StormLimit::new(1);
        assert!(StormLimit::LIMIT.contains(&storm.limit));
        assert!(StormLimit::WINDOW_MS.contains(&storm.window_ms));
        assert!(StormLimit::PAUSE_MS.contains(&storm.pause_ms));
        assert!(StormLimit::RETRIES.contains(&storm.retries));
        assert!(EoiDeadline::AFTER_MS.contains(&EoiDeadline::new(NeverEoi::Hold).after_ms));
        assert!(RestartPolicy::PAUSE_MS.contains(&RestartPolicy::new(None).pause_ms));
    }
}
