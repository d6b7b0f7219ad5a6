//! Where a source is silenced: the kinds of gate, which of them a line may use, and the one thing a gate at the
//! function can tell.

use core::fmt;

/// What silences the sources of a line. Chosen when the line is assigned, never changed until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// The mask bit of the line's redirection table entry (82093AA 3.2.4). Works on every chip, holds the line for all
    /// its sources together.
    RteMask,
    /// The withheld EOI: the local APIC suppresses the EOI broadcast, so Remote IRR holds the line while a delivery is
    /// in service, and one write to the IO-APIC's EOI register opens it. Every other reason still needs the
    /// mask bit. The line is closed when it is held or masked.
    DirectedEoi,
    /// DisINTx, bit 10 of the function's Command register (PCI 3.0 6.2.2): silences one function, leaves its
    /// neighbours on the line alone, and lets Status bit 3 tell who asserts.
    Function,
}

/// Who shares a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// One source.
    Exclusive,
    /// Several sources of one partition.
    OnePartition,
    /// Sources of several partitions.
    SeveralPartitions,
}

impl Gate {
    /// Whether the machine has this gate. `directed_eoi`: the local APIC can suppress EOI broadcasts (bit 24 of its
    /// version register, APM2 16.3.4) *and* the IO-APIC has the EOI register.
    pub const fn is_available(self, directed_eoi: bool) -> bool {
        match self {
            Self::RteMask | Self::Function => true,
            Self::DirectedEoi => directed_eoi,
        }
    }

    /// Whether a line shared in this way may use this gate: a gate of the whole line would let one partition silence
    /// another's source.
    pub const fn allows(self, sharing: Sharing) -> bool {
        match self {
            Self::RteMask | Self::DirectedEoi => !matches!(sharing, Sharing::SeveralPartitions),
            Self::Function => true,
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RteMask => "RTE mask",
            Self::DirectedEoi => "directed EOI",
            Self::Function => "DisINTx",
        })
    }
}

/// What a function's INTx Status shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sample {
    /// The function does not assert.
    Low,
    /// The function asserts, or would if DisINTx let it (PCI 3.0 6.2.3: the bit ignores DisINTx).
    High,
    /// Nobody answers: never to be mistaken for an assertion.
    Absent,
}

impl Sample {
    /// From the dword at configuration offset 4: Command below, Status above (PCI 3.0 6.2.2, 6.2.3).
    pub const fn from_command_status(dword: u32) -> Self {
        const INTX_STATUS: u32 = 1 << (16 + 3);
        match dword {
            u32::MAX => Self::Absent,
            _ if dword & INTX_STATUS != 0 => Self::High,
            _ => Self::Low,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directed_eoi_is_there_only_when_both_chips_have_it() {
        for gate in [Gate::RteMask, Gate::Function, Gate::DirectedEoi] {
            assert!(gate.is_available(true));
            assert_eq!(gate.is_available(false), gate != Gate::DirectedEoi);
        }
    }

    #[test]
    fn i36_only_a_gate_at_the_function_serves_several_partitions() {
        for gate in [Gate::RteMask, Gate::DirectedEoi, Gate::Function] {
            assert!(gate.allows(Sharing::Exclusive));
            assert!(gate.allows(Sharing::OnePartition));
            assert_eq!(gate.allows(Sharing::SeveralPartitions), gate == Gate::Function);
        }
    }

    #[test]
    fn n15_all_ones_is_absent_and_never_asserted() {
        assert_eq!(Sample::from_command_status(u32::MAX), Sample::Absent);
        for bit in 0..32 {
            let expected = if bit == 19 { Sample::High } else { Sample::Low };
            assert_eq!(Sample::from_command_status(1 << bit), expected);
        }
    }
}
