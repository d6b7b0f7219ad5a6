//! Why a source is silenced: a set of reasons, never one flag, so that no party can undo another's mask.

use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// The reasons that hold a source's gate closed. The gate is open if and only if the set is empty.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct MaskReasons: u16 {
        /// A delivery is not completed yet.
        const IN_SERVICE = 1 << 0;
        /// There is no notifier to deliver to.
        const NO_NOTIFIER = 1 << 1;
        /// The guest set its virtual DisINTx (PCI 3.0 6.2.2, Command bit 10).
        const GUEST_DISINTX = 1 << 2;
        /// The guest masked the virtual redirection table entry of the notifier's pin.
        const VIRTUAL_RTE_MASKED = 1 << 3;
        /// The operator, or the owner by hypercall, masked the source.
        const OPERATOR = 1 << 4;
        /// The function is being reset.
        const RESET = 1 << 5;
        /// The function sleeps.
        const POWER = 1 << 6;
        /// The source used up its interrupt budget.
        const THROTTLE = 1 << 7;
        /// The function vanished or misbehaves.
        const QUARANTINE = 1 << 8;
        /// The function moves to another partition.
        const HANDOVER = 1 << 9;
    }
}

impl MaskReasons {
    /// The reasons that others give and take back. The remaining ones follow from the line's own state
    /// ([`IN_SERVICE`](Self::IN_SERVICE), [`NO_NOTIFIER`](Self::NO_NOTIFIER)) or from the virtual pin that happens to
    /// be the notifier ([`VIRTUAL_RTE_MASKED`](Self::VIRTUAL_RTE_MASKED)), and nobody can ask for them.
    pub const GIVEN: Self = Self::all()
        .difference(Self::IN_SERVICE)
        .difference(Self::NO_NOTIFIER)
        .difference(Self::VIRTUAL_RTE_MASKED);

    /// The reasons under which a loopback is not delivered. An operator's mask is not among them: loopback is the way
    /// to test the path to the guest while the wire is out of the game, as in VFIO. Nor is a masked virtual
    /// RTE: the assertion waits in the virtual IO-APIC, as one from the wire would.
    pub const STOPS_LOOPBACK: Self = Self::all()
        .difference(Self::IN_SERVICE)
        .difference(Self::OPERATOR)
        .difference(Self::VIRTUAL_RTE_MASKED);
}

impl fmt::Display for MaskReasons {
    /// The names, joined by `+`, or `open`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("open");
        }
        for (position, (name, _)) in self.iter_names().enumerate() {
            if position > 0 {
                f.write_str("+")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn the_names_tell_why() {
        assert_eq!(MaskReasons::empty().to_string(), "open");
        assert_eq!((MaskReasons::IN_SERVICE | MaskReasons::OPERATOR).to_string(), "IN_SERVICE+OPERATOR");
    }

    #[test]
    fn nobody_can_ask_for_the_reasons_the_line_derives() {
        let derived = MaskReasons::IN_SERVICE | MaskReasons::NO_NOTIFIER | MaskReasons::VIRTUAL_RTE_MASKED;
        assert_eq!(MaskReasons::GIVEN, derived.complement());
    }
}
