//! Which gate a line gets (N12), by who shares it, what the configuration asks for, and what DisINTx of its functions proved.
//!
//! | on the line | `mask` | gate |
//! | --- | --- | --- |
//! | any | `"line"` for one of them | the line's entry |
//! | any | `"function"` for one of them | DisINTx, which must work at each |
//! | one device | `"auto"` | the line's entry |
//! | several partitions, or devices that another may take over | `"auto"` | DisINTx, which must work at each |
//! | one partition, several virtual pins | `"auto"` | DisINTx, which must work at each |
//! | one partition, one virtual pin | `"auto"` | DisINTx if it works at each, else the line's entry |
//!
//! The entry is the cheaper gate, but it silences all sharers for any reason to silence one: a guest that disables one device,
//! an operator's mask, a storm budget. So it serves shared lines only where there is no other.

use core::fmt;

use crate::config::MaskPolicy;
use crate::intx::Gate;
use crate::irq::Pin;
use crate::pci::pin::DisIntxFault;

/// The gate of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateChoice {
    /// This one, for this reason.
    Made(Gate, GateReason),
    /// DisINTx, for this reason, if it proves to work at each function on the line.
    ByProof(GateReason),
    /// Not to be known before it is known who shares the line.
    BySharers,
}

/// Why a line has its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateReason {
    /// `mask = "line"`.
    Configured,
    /// Nobody shares the line.
    ExclusiveLine,
    /// All its devices belong to one partition and drive one virtual pin, and DisINTx does not work at each.
    OnePin,
    /// `mask = "function"`.
    Proved,
    /// Its devices belong to several partitions, or may one day.
    SeveralPartitions,
    /// Its devices drive several virtual pins.
    SeveralPins,
    /// Several devices of one partition are on it.
    SeveralDevices,
}

impl fmt::Display for GateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configured => "`mask = \"line\"`",
            Self::ExclusiveLine => "nobody shares the line, so its entry is masked",
            Self::OnePin => {
                "its devices drive one virtual pin of one partition, so the line's entry is masked for all"
            }
            Self::Proved => "`mask = \"function\"`, and DisINTx was proved",
            Self::SeveralPartitions => {
                "several partitions share the line, or may one day, so each function is silenced by itself"
            }
            Self::SeveralPins => {
                "its devices drive several virtual pins, so each function is silenced by itself"
            }
            Self::SeveralDevices => "several devices share the line, so each function is silenced by itself",
        })
    }
}

/// A device on a line, as far as the line's gate depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharer {
    /// What its configuration asks for.
    pub mask: MaskPolicy,
    /// Whose it is for good; none if it may change hands.
    pub partition: Option<usize>,
    /// The virtual pin that it drives.
    pub vpin: Pin,
    /// Whether its DisINTx works, if that was tried.
    pub dis_intx: Option<Result<(), DisIntxFault>>,
}

/// A line that has to be silenced at each of its functions, and one that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsilenced {
    /// Which of the sharers.
    pub sharer: usize,
    /// Why it would have to be.
    pub reason: GateReason,
    /// Why it cannot.
    pub fault: DisIntxFault,
}

impl GateChoice {
    /// The gate of the line that these devices share, at least one. Whether they may share it at all is among the rules of
    /// the configuration.
    ///
    /// # Errors
    /// The line needs DisINTx at each function, and this is the first where it does not work.
    pub fn of(sharers: &[Sharer]) -> Result<Self, Unsilenced> {
        let any = |mask| sharers.iter().any(|sharer| sharer.mask == mask);
        let differ = |same: fn(&Sharer, &Sharer) -> bool| {
            sharers.windows(2).any(|pair| match pair {
                [one, next] => !same(one, next),
                _ => false,
            })
        };
        let line = |reason| Ok(Self::Made(Gate::RteMask, reason));
        if any(MaskPolicy::Line) {
            line(GateReason::Configured)
        } else if any(MaskPolicy::Function) {
            Self::at_each(sharers, GateReason::Proved)
        } else if sharers.len() <= 1 {
            line(GateReason::ExclusiveLine)
        } else if differ(|one, next| one.partition.is_some() && one.partition == next.partition) {
            Self::at_each(sharers, GateReason::SeveralPartitions)
        } else if differ(|one, next| one.vpin == next.vpin) {
            Self::at_each(sharers, GateReason::SeveralPins)
        } else {
            Self::at_each(sharers, GateReason::SeveralDevices).or_else(|_| line(GateReason::OnePin))
        }
    }

    /// The gate of a device whose line is not known, nor who shares it.
    pub const fn of_open(mask: MaskPolicy) -> Self {
        match mask {
            MaskPolicy::Line => Self::Made(Gate::RteMask, GateReason::Configured),
            MaskPolicy::Function => Self::ByProof(GateReason::Proved),
            MaskPolicy::Auto => Self::BySharers,
        }
    }

    fn at_each(sharers: &[Sharer], reason: GateReason) -> Result<Self, Unsilenced> {
        let mut choice = Self::Made(Gate::Function, reason);
        for (index, sharer) in sharers.iter().enumerate() {
            match sharer.dis_intx {
                Some(Ok(())) => {}
                None => choice = Self::ByProof(reason),
                Some(Err(fault)) => return Err(Unsilenced { sharer: index, reason, fault }),
            }
        }
        Ok(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const ALONE: Sharer =
        Sharer { mask: MaskPolicy::Auto, partition: Some(0), vpin: Pin(23), dis_intx: Some(Ok(())) };
    const STUCK: Option<Result<(), DisIntxFault>> = Some(Err(DisIntxFault::StuckClear));

    fn line(reason: GateReason) -> Result<GateChoice, Unsilenced> {
        Ok(GateChoice::Made(Gate::RteMask, reason))
    }

    fn each(reason: GateReason) -> Result<GateChoice, Unsilenced> {
        Ok(GateChoice::Made(Gate::Function, reason))
    }

    /// The choice for `ALONE` beside `other`, which must not depend on their order.
    fn beside(other: Sharer) -> Result<GateChoice, Unsilenced> {
        let (ahead, behind) = (GateChoice::of(&[other, ALONE]), GateChoice::of(&[ALONE, other]));
        assert_eq!(ahead.is_ok(), behind.is_ok());
        assert!(ahead.is_err() || ahead == behind);
        behind
    }

    #[test]
    fn n12_the_gate_follows_from_who_shares_the_line() {
        assert_eq!(GateChoice::of(&[ALONE]), line(GateReason::ExclusiveLine));
        assert_eq!(GateChoice::of(&[Sharer { dis_intx: STUCK, ..ALONE }]), line(GateReason::ExclusiveLine));
        assert_eq!(beside(ALONE), each(GateReason::SeveralDevices));
        assert_eq!(beside(Sharer { partition: Some(1), ..ALONE }), each(GateReason::SeveralPartitions));
        assert_eq!(beside(Sharer { vpin: Pin(5), ..ALONE }), each(GateReason::SeveralPins));
        let moves = Sharer { partition: None, ..ALONE };
        assert_eq!(GateChoice::of(&[moves]), line(GateReason::ExclusiveLine));
        assert_eq!(beside(moves), each(GateReason::SeveralPartitions));
        assert_eq!(GateChoice::of(&[moves, moves]), each(GateReason::SeveralPartitions), "one may go alone");
    }

    #[test]
    fn n12_what_the_configuration_asks_for_wins() {
        let masked = |mask| Sharer { mask, ..ALONE };
        assert_eq!(GateChoice::of(&[masked(MaskPolicy::Line)]), line(GateReason::Configured));
        assert_eq!(GateChoice::of(&[masked(MaskPolicy::Function)]), each(GateReason::Proved));
        assert_eq!(beside(masked(MaskPolicy::Line)), line(GateReason::Configured));
        assert_eq!(beside(masked(MaskPolicy::Function)), each(GateReason::Proved));
    }

    #[test]
    fn n12_i36_a_function_whose_disintx_does_not_work_is_named_where_the_line_needs_it() {
        let stuck = |sharer: Sharer| Sharer { dis_intx: STUCK, ..sharer };
        let named = |reason| Err(Unsilenced { sharer: 1, reason, fault: DisIntxFault::StuckClear });
        assert_eq!(beside(stuck(ALONE)), line(GateReason::OnePin), "better, but not needed");
        assert_eq!(
            beside(stuck(Sharer { partition: Some(1), ..ALONE })),
            named(GateReason::SeveralPartitions)
        );
        assert_eq!(beside(stuck(Sharer { vpin: Pin(5), ..ALONE })), named(GateReason::SeveralPins));
        assert_eq!(beside(stuck(Sharer { mask: MaskPolicy::Function, ..ALONE })), named(GateReason::Proved));
        let first = GateChoice::of(&[stuck(ALONE), Sharer { partition: Some(1), ..ALONE }]);
        assert_eq!(first.map_err(|unsilenced| unsilenced.sharer), Err(0), "whoever it is");
    }

    #[test]
    fn n12_what_was_not_tried_is_open() {
        let untried = |sharer: Sharer| Sharer { dis_intx: None, ..sharer };
        assert_eq!(beside(untried(ALONE)), Ok(GateChoice::ByProof(GateReason::SeveralDevices)));
        let open = beside(untried(Sharer { partition: Some(1), ..ALONE }));
        assert_eq!(open, Ok(GateChoice::ByProof(GateReason::SeveralPartitions)));
        let all: Vec<_> = MaskPolicy::ALL.into_iter().map(GateChoice::of_open).collect();
        let expected = [
            GateChoice::BySharers,
            GateChoice::Made(Gate::RteMask, GateReason::Configured),
            GateChoice::ByProof(GateReason::Proved),
        ];
        assert_eq!(all, expected);
    }
}
