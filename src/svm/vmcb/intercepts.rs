//! What every guest is stopped at, and why (APM2 15.8 to 15.14).
#![expect(missing_docs, reason = "the intercepts have the manual's names")]

use bitflags::bitflags;

use crate::x86::exception;

bitflags! {
    /// Intercepts of the word at offset 0x0c (APM2 Table B-1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Misc1: u32 {
        const INTR = 1 << 0;
        const NMI = 1 << 1;
        const SMI = 1 << 2;
        const INIT = 1 << 3;
        const VINTR = 1 << 4;
        const RDPMC = 1 << 15;
        const CPUID = 1 << 18;
        const RSM = 1 << 19;
        const IRET = 1 << 20;
        const INVD = 1 << 22;
        const HLT = 1 << 24;
        const INVLPGA = 1 << 26;
        const IOIO_PROT = 1 << 27;
        const MSR_PROT = 1 << 28;
        const TASK_SWITCH = 1 << 29;
        const FERR_FREEZE = 1 << 30;
        const SHUTDOWN = 1 << 31;
    }
}

impl Misc1 {
    /// What every guest is stopped at, and why.
    ///
    /// | intercept | reason |
    /// | --- | --- |
    /// | INTR, NMI, SMI, INIT | physical events belong to the host |
    /// | CPUID | the guest sees a reduced CPU |
    /// | HLT | an idle guest must not hold up the host's own interrupts, and the host must know it is idle |
    /// | INVD | would discard modified lines of everybody |
    /// | INVLPGA, RSM | act on state outside the guest |
    /// | IOIO, MSR | guarded by the permission maps |
    /// | RDPMC | the counters count the host too |
    /// | task switch | writes through descriptor tables without being checked; not emulated |
    /// | FERR_FREEZE | waits for a chip that is not there |
    /// | SHUTDOWN | a triple fault would reset the machine |
    ///
    /// Deliberately not: PAUSE and RDTSC, which would only cost, and VINTR, because a virtual interrupt waits by
    /// itself until the guest can take it. IRET only while the guest services a non-maskable interrupt.
    pub const GUEST: Self = Self::INTR
        .union(Self::NMI)
        .union(Self::SMI)
        .union(Self::INIT)
        .union(Self::RDPMC)
        .union(Self::CPUID)
        .union(Self::RSM)
        .union(Self::INVD)
        .union(Self::HLT)
        .union(Self::INVLPGA)
        .union(Self::IOIO_PROT)
        .union(Self::MSR_PROT)
        .union(Self::TASK_SWITCH)
        .union(Self::FERR_FREEZE)
        .union(Self::SHUTDOWN);
}

bitflags! {
    /// Intercepts of the word at offset 0x10 (APM2 Table B-1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Misc2: u32 {
        const VMRUN = 1 << 0;
        const VMMCALL = 1 << 1;
        const VMLOAD = 1 << 2;
        const VMSAVE = 1 << 3;
        const STGI = 1 << 4;
        const CLGI = 1 << 5;
        const SKINIT = 1 << 6;
        const WBINVD = 1 << 9;
        const MONITOR = 1 << 10;
        const MWAIT = 1 << 11;
        const MWAIT_ARMED = 1 << 12;
        const RDPRU = 1 << 14;
    }
}

impl Misc2 {
    /// What every guest is stopped at, and why.
    ///
    /// | intercept | reason |
    /// | --- | --- |
    /// | VMRUN | architecturally required; guests have no SVM |
    /// | VMLOAD, VMSAVE, STGI, CLGI, SKINIT | guests have no SVM, and these would reach physical memory |
    /// | VMMCALL | the hypercall |
    /// | WBINVD | flushes the caches of everybody |
    /// | MONITOR, MWAIT | a sleep the host would not know of |
    /// | RDPRU | reads counters of the host |
    ///
    /// Deliberately not XSETBV: a guest owns the XCR0 of its CPU.
    pub const GUEST: Self = Self::VMRUN
        .union(Self::VMMCALL)
        .union(Self::VMLOAD)
        .union(Self::VMSAVE)
        .union(Self::STGI)
        .union(Self::CLGI)
        .union(Self::SKINIT)
        .union(Self::WBINVD)
        .union(Self::MONITOR)
        .union(Self::MWAIT)
        .union(Self::MWAIT_ARMED)
        .union(Self::RDPRU);
}

/// Writes to CR8 exit: the task priority is the virtual local APIC's. Reads do not, V_TPR answers them.
pub(super) const INTERCEPT_CR8_WRITE: u32 = 1 << (16 + 8);
/// #DB and #AC can be raised again by their own delivery, for ever and without an exit; #MC is the host's.
pub(super) const INTERCEPT_EXCEPTIONS: u32 = 1 << exception::DB | 1 << exception::AC | 1 << exception::MC;
/// Whatever an instruction may raise. Number 2 is the non-maskable interrupt, which has an intercept of its own.
pub(super) const EVERY_EXCEPTION: u32 = !(1 << 2);
