//! The ledger: every assertion is counted once, and the books must balance.
//!
//! ```text
//! accepted  = delivered + coalesced + suppressed + pending
//! delivered = completed + in service
//! ```
//!
//! The counters are written by the line's transitions; *pending* and *in service* are not counters but the line's
//! state itself, so a forgotten or doubled entry shows as an imbalance.

use core::fmt;

/// Assertions by where they came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Accepted {
    /// The chip sent the line's vector (and, at a function gate, Status named this source).
    pub wire: u64,
    /// Software asked for a delivery, to test the path.
    pub loopback: u64,
    /// The gate was about to open and Status showed the source still asserted: delivered again without opening.
    pub replay: u64,
}

/// Assertions that were neither delivered nor joined to a delivery. None of them is lost: a level stays on its wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Suppressed {
    /// Met a closed gate: its vector was on the way when the gate closed, or it was one too many for the storm budget and
    /// closed the gate itself.
    pub masked: u64,
    /// A loopback that nobody could hear.
    pub loopback: u64,
    /// Had met no notifier and was handed to the next one by looking at the wire again: if the wire is still asserted,
    /// that counts as an assertion of its own.
    pub carried: u64,
}

/// Deliveries by how they ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Completed {
    /// The guest completed.
    pub eoi: u64,
    /// Completed on behalf of a guest that does not.
    pub forced: u64,
    /// Ended by a reset of the function or of the partition.
    pub reset: u64,
    /// Ended because the notifier was replaced.
    pub handover: u64,
}

/// How a delivery ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Completion {
    /// By the guest's EOI, or by its later unmasking of the virtual RTE.
    Eoi,
    /// By decision of the hypervisor, on behalf of a guest that never completes.
    Forced,
    /// By a reset.
    Reset,
    /// By a replacement of the notifier.
    Handover,
}

/// The counters of one source. They wrap, after centuries, rather than stop the interrupt path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ledger {
    /// Assertions seen.
    pub accepted: Accepted,
    /// Assertions handed to a notifier.
    pub delivered: u64,
    /// Assertions that met a delivery in service and are covered by it.
    pub coalesced: u64,
    /// Assertions that went no further.
    pub suppressed: Suppressed,
    /// Deliveries that ended.
    pub completed: Completed,
    /// Completions that matched no delivery and changed nothing. In neither equation.
    pub stale_eois: u64,
}

/// Counts one. 64 bits do not run out, and wrapping has no way to panic.
#[inline]
pub const fn count(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}

impl Ledger {
    #[inline]
    pub(super) fn complete(&mut self, how: Completion) {
        count(match how {
            Completion::Eoi => &mut self.completed.eoi,
            Completion::Forced => &mut self.completed.forced,
            Completion::Reset => &mut self.completed.reset,
            Completion::Handover => &mut self.completed.handover,
        });
    }
}

/// One side of an equation does not match the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imbalance {
    /// `accepted` against `delivered + coalesced + suppressed + pending`.
    Assertions {
        /// The left side.
        accepted: u64,
        /// The right side.
        accounted: u64,
    },
    /// `delivered` against `completed + in service`.
    Deliveries {
        /// The left side.
        delivered: u64,
        /// The right side.
        accounted: u64,
    },
}

impl fmt::Display for Imbalance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Assertions { accepted, accounted } => {
                write!(f, "{accepted} assertions accepted, {accounted} accounted for")
            }
            Self::Deliveries { delivered, accounted } => {
                write!(f, "{delivered} assertions delivered, {accounted} accounted for")
            }
        }
    }
}

/// One source's books at one instant: the counters and the two open positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Account {
    /// The counters.
    pub ledger: Ledger,
    /// Whether an assertion waits for a notifier.
    pub pending: bool,
    /// Whether a delivery is not completed yet.
    pub in_service: bool,
}

impl Account {
    /// Checks both equations.
    ///
    /// # Errors
    ///
    /// The first equation that does not hold. It means a defect of this program, never of a guest or a device.
    pub fn balance(&self) -> Result<(), Imbalance> {
        let Self { ledger, pending, in_service } = *self;
        let Ledger { accepted, delivered, coalesced, suppressed, completed, stale_eois: _ } = ledger;
        let sum = |terms: &[u64]| terms.iter().fold(0_u64, |total, &term| total.wrapping_add(term));
        let accepted = sum(&[accepted.wire, accepted.loopback, accepted.replay]);
        let accounted = sum(&[
            delivered,
            coalesced,
            suppressed.masked,
            suppressed.loopback,
            suppressed.carried,
            u64::from(pending),
        ]);
        if accepted != accounted {
            return Err(Imbalance::Assertions { accepted, accounted });
        }
        let Completed { eoi, forced, reset, handover } = completed;
        let accounted = sum(&[eoi, forced, reset, handover, u64::from(in_service)]);
        if delivered != accounted {
            return Err(Imbalance::Deliveries { delivered, accounted });
        }
        Ok(())
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ledger { accepted, delivered, coalesced, suppressed, completed, stale_eois } = self.ledger;
        write!(
            f,
            "accepted {} (wire) + {} (loopback) + {} (replay) = delivered {delivered} + coalesced {coalesced} + \
             suppressed {} (masked) {} (loopback) {} (carried) + pending {}; delivered = completed {} (EOI) {} (forced) \
             {} (reset) {} (handover) + in service {}; stale EOIs {stale_eois}",
            accepted.wire,
            accepted.loopback,
            accepted.replay,
            suppressed.masked,
            suppressed.loopback,
            suppressed.carried,
            u8::from(self.pending),
            completed.eoi,
            completed.forced,
            completed.reset,
            completed.handover,
            u8::from(self.in_service),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A balanced account in which every counter is different from zero.
    fn balanced() -> Account {
        let ledger = Ledger {
            accepted: Accepted { wire: 20, loopback: 8, replay: 3 },
            delivered: 11,
            coalesced: 4,
            suppressed: Suppressed { masked: 5, loopback: 6, carried: 4 },
            completed: Completed { eoi: 1, forced: 2, reset: 3, handover: 4 },
            stale_eois: 9,
        };
        Account { ledger, pending: true, in_service: true }
    }

    #[test]
    fn n5_a_true_account_balances() {
        assert_eq!(balanced().balance(), Ok(()));
        assert_eq!(Account::default().balance(), Ok(()));
    }

    #[test]
    fn n5_every_single_miscount_shows() {
        let miscounts: [fn(&mut Account); 13] = [
            |a| a.ledger.accepted.wire += 1,
            |a| a.ledger.accepted.loopback += 1,
            |a| a.ledger.accepted.replay += 1,
            |a| a.ledger.delivered += 1,
            |a| a.ledger.coalesced += 1,
            |a| a.ledger.suppressed.masked += 1,
            |a| a.ledger.suppressed.loopback += 1,
            |a| a.ledger.suppressed.carried += 1,
            |a| a.ledger.completed.eoi += 1,
            |a| a.ledger.completed.forced += 1,
            |a| a.ledger.completed.reset += 1,
            |a| a.ledger.completed.handover += 1,
            |a| (a.pending, a.in_service) = (false, false),
        ];
        for miscount in miscounts {
            let mut account = balanced();
            miscount(&mut account);
            assert!(account.balance().is_err(), "{account}");
        }
    }

    #[test]
    fn each_way_to_complete_has_its_counter() {
        let mut ledger = Ledger::default();
        for how in [Completion::Eoi, Completion::Forced, Completion::Reset, Completion::Handover] {
            ledger.complete(how);
        }
        assert_eq!(ledger.completed, Completed { eoi: 1, forced: 1, reset: 1, handover: 1 });
    }
}
