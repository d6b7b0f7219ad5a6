//! Model-specific registers whose accesses exit: the local APIC's, and those that a guest must not write unjudged. Every
//! other number is a register the guest's CPU does not have.

use crate::x86::{self, GeneralProtection, msr};

/// MTRRcap of a CPU without variable and fixed ranges.
const MTRR_CAP_NONE: u64 = 0;

/// The registers of one virtual CPU that reads and writes depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// CR0.
    pub cr0: u64,
    /// The real EFER, with SVME.
    pub efer: u64,
    /// PAT.
    pub pat: u64,
    /// What the guest's time stamps are ahead of the host's.
    pub tsc_offset: u64,
    /// MTRRdefType as the guest wrote it.
    pub mtrr_def_type: u64,
}

/// What a legal write changes, once somebody does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "nothing has changed yet"]
pub enum Written {
    /// The real EFER becomes this.
    Efer(u64),
    /// PAT becomes this.
    Pat(u64),
    /// [`Registers::tsc_offset`] becomes this.
    TscOffset(u64),
    /// [`Registers::mtrr_def_type`] becomes this.
    MtrrDefType(u64),
    /// Nothing, and nobody notices.
    Nothing,
}

/// Whether `number` is the local APIC's to judge, which every EOI of x2APIC mode is, and in every mode the timer's deadline.
#[inline]
pub const fn is_local_apic(number: u32) -> bool {
    matches!(number, msr::X2APIC_FIRST..=msr::X2APIC_LAST | msr::TSC_DEADLINE | msr::APIC_BASE)
}

/// Whether `number` is the EOI register of x2APIC mode.
#[inline]
pub const fn is_eoi(number: u32) -> bool {
    number == msr::X2APIC_EOI
}

/// RDMSR of any other `number`, when the host's time stamp is `now_tsc`.
///
/// # Errors
/// The guest's CPU has no such register.
pub const fn read(number: u32, registers: &Registers, now_tsc: u64) -> Result<u64, GeneralProtection> {
    match number {
        msr::EFER => Ok(x86::guest_efer(registers.efer)),
        msr::PAT => Ok(registers.pat),
        msr::TSC => Ok(now_tsc.wrapping_add(registers.tsc_offset)),
        // The two begin as equals, and whatever changes one changes the other by as much.
        msr::TSC_ADJUST => Ok(registers.tsc_offset),
        msr::MTRR_CAP => Ok(MTRR_CAP_NONE),
        msr::MTRR_DEF_TYPE => Ok(registers.mtrr_def_type),
        // Linux reads it unasked on a CPU of these families, and complains where it is not. Nothing sleeps deeply here.
        msr::INT_PENDING => Ok(0),
        // Four of these every such CPU has, whatever CPUID says (APM2 13.2). Here they count nothing.
        msr::LEGACY_PERF_FIRST..=msr::LEGACY_PERF_LAST => Ok(0),
        _ => Err(GeneralProtection),
    }
}

/// WRMSR of `value` to any other `number`, when the host's time stamp is `now_tsc`.
///
/// # Errors
/// The register does not exist, is read-only, or the value is illegal there.
#[inline(always)]
pub fn write(
    number: u32,
    value: u64,
    registers: &Registers,
    now_tsc: u64,
) -> Result<Written, GeneralProtection> {
    match number {
        msr::EFER => x86::write_guest_efer(registers.efer, value, registers.cr0).map(Written::Efer),
        msr::PAT if x86::pat_is_legal(value) => Ok(Written::Pat(value)),
        msr::TSC => Ok(Written::TscOffset(value.wrapping_sub(now_tsc))),
        msr::TSC_ADJUST => Ok(Written::TscOffset(value)),
        msr::MTRR_DEF_TYPE if x86::mtrr_def_type_is_legal(value) => Ok(Written::MtrrDefType(value)),
        msr::LEGACY_PERF_FIRST..=msr::LEGACY_PERF_LAST => Ok(Written::Nothing),
        _ => Err(GeneralProtection),
    }
}
