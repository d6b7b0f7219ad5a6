//! The virtual machine control block: 4 KiB shared with the CPU (APM2 Appendix B).
//!
//! The control area says what a guest may do, the save area holds its registers. Fields are private: each setter
//! also clears the clean bit that covers its field, so that a CPU which caches parts of the block can never run
//! with an old value. The block must not be touched between VMRUN and #VMEXIT.

use bitflags::bitflags;

use crate::addr::{GuestPhys, HostPhys};
use crate::irq::Vector;
use crate::svm::event::Event;
use crate::vcpu::{CodeSize, Gpr, GuestRegs};
use crate::x86::{PAT_RESET, cr0, cr4, efer, exception, rflags};

bitflags! {
    /// Intercepts of the word at offset 0x0c (APM2 Table B-1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Misc1: u32 {
        #[expect(missing_docs, reason = "the manual's names")] const INTR = 1 << 0;
        #[expect(missing_docs, reason = "the manual's names")] const NMI = 1 << 1;
        #[expect(missing_docs, reason = "the manual's names")] const SMI = 1 << 2;
        #[expect(missing_docs, reason = "the manual's names")] const INIT = 1 << 3;
        #[expect(missing_docs, reason = "the manual's names")] const VINTR = 1 << 4;
        #[expect(missing_docs, reason = "the manual's names")] const RDPMC = 1 << 15;
        #[expect(missing_docs, reason = "the manual's names")] const CPUID = 1 << 18;
        #[expect(missing_docs, reason = "the manual's names")] const RSM = 1 << 19;
        #[expect(missing_docs, reason = "the manual's names")] const INVD = 1 << 22;
        #[expect(missing_docs, reason = "the manual's names")] const HLT = 1 << 24;
        #[expect(missing_docs, reason = "the manual's names")] const INVLPGA = 1 << 26;
        #[expect(missing_docs, reason = "the manual's names")] const IOIO_PROT = 1 << 27;
        #[expect(missing_docs, reason = "the manual's names")] const MSR_PROT = 1 << 28;
        #[expect(missing_docs, reason = "the manual's names")] const TASK_SWITCH = 1 << 29;
        #[expect(missing_docs, reason = "the manual's names")] const FERR_FREEZE = 1 << 30;
        #[expect(missing_docs, reason = "the manual's names")] const SHUTDOWN = 1 << 31;
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
    /// itself until the guest can take it.
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
        #[expect(missing_docs, reason = "the manual's names")] const VMRUN = 1 << 0;
        #[expect(missing_docs, reason = "the manual's names")] const VMMCALL = 1 << 1;
        #[expect(missing_docs, reason = "the manual's names")] const VMLOAD = 1 << 2;
        #[expect(missing_docs, reason = "the manual's names")] const VMSAVE = 1 << 3;
        #[expect(missing_docs, reason = "the manual's names")] const STGI = 1 << 4;
        #[expect(missing_docs, reason = "the manual's names")] const CLGI = 1 << 5;
        #[expect(missing_docs, reason = "the manual's names")] const SKINIT = 1 << 6;
        #[expect(missing_docs, reason = "the manual's names")] const WBINVD = 1 << 9;
        #[expect(missing_docs, reason = "the manual's names")] const MONITOR = 1 << 10;
        #[expect(missing_docs, reason = "the manual's names")] const MWAIT = 1 << 11;
        #[expect(missing_docs, reason = "the manual's names")] const MWAIT_ARMED = 1 << 12;
        #[expect(missing_docs, reason = "the manual's names")] const RDPRU = 1 << 14;
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
const INTERCEPT_CR8_WRITE: u32 = 1 << (16 + 8);
/// #DB and #AC can be raised again by their own delivery, for ever and without an exit; #MC is the host's.
const INTERCEPT_EXCEPTIONS: u32 = 1 << exception::DB | 1 << exception::AC | 1 << exception::MC;

bitflags! {
    /// Parts of the block that are unchanged since the last exit on this CPU (APM2 15.15.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CleanBits: u32 {
        /// Intercept words, TSC offset.
        const INTERCEPTS = 1 << 0;
        /// Addresses of the permission maps.
        const PERMISSION_MAPS = 1 << 1;
        /// The address space identifier.
        const ASID = 1 << 2;
        /// V_TPR, V_IRQ and their companions.
        const VIRTUAL_INTERRUPT = 1 << 3;
        /// Nested paging root and guest PAT.
        const NESTED_PAGING = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL_REGISTERS = 1 << 5;
        /// DR6 and DR7.
        const DEBUG_REGISTERS = 1 << 6;
        /// GDTR and IDTR.
        const DESCRIPTOR_TABLES = 1 << 7;
        /// CS, DS, SS, ES and the privilege level.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// Debug control and branch records.
        const BRANCH_RECORDS = 1 << 10;
    }
}

/// What VMRUN does to the TLB first (APM2 15.16.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TlbControl {
    /// Nothing.
    Keep = 0,
    /// Flushes everything, the host's entries too. Works on every CPU.
    FlushAll = 1,
    /// Flushes this guest's entries; only where CPUID 8000_000A EDX bit 6 (FlushByAsid) is set.
    FlushGuest = 3,
}

/// A segment register as the block stores it (APM2 Appendix B, Table B-2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Descriptor bits 55:52 and 47:40 packed into 12 bits: type, S, DPL, P, AVL, L, D/B, G.
    pub attributes: u16,
    /// Limit in bytes, already scaled.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

impl Segment {
    const NONE: Self = Self { selector: 0, attributes: 0, limit: 0, base: 0 };
    const LONG: u16 = 1 << 9;
    const DEFAULT_32: u16 = 1 << 10;

    const fn flat(selector: u16, attributes: u16) -> Self {
        Self { selector, attributes, limit: u32::MAX, base: 0 }
    }

    const fn real(selector: u16, attributes: u16) -> Self {
        Self { selector, attributes, limit: 0xffff, base: (selector as u64) << 4 }
    }
}

/// What a control block needs to know of its surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Address space identifier, 1 to the CPU's limit less one; 0 is the host's.
    pub asid: u32,
    /// The I/O permission map, 4 KiB aligned.
    pub io_permissions: HostPhys,
    /// The MSR permission map, 4 KiB aligned.
    pub msr_permissions: HostPhys,
    /// The root of the nested page tables, 4 KiB aligned.
    pub nested_root: HostPhys,
}

/// A rule of APM2 15.5.1 that the block breaks, so that VMRUN would refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inconsistency {
    /// ASID 0.
    AsidZero,
    /// The VMRUN intercept is clear.
    VmrunNotIntercepted,
    /// A permission map or nested root is not page aligned.
    Misaligned,
    /// EFER.SVME clear or reserved bits set.
    Efer,
    /// CR0 has NW without CD, or bits above 31.
    Cr0,
    /// CR4 has bits above 31.
    Cr4,
    /// Bits above 31 in DR6 or DR7.
    DebugRegister,
    /// Long mode with paging but without PAE or protection, or with a code segment that has both L and D.
    LongMode,
}

#[derive(Debug)]
#[repr(C)]
struct Control {
    cr_intercepts: u32,                      // 0x000
    dr_intercepts: u32,                      // 0x004
    exception_intercepts: u32,               // 0x008
    misc1: u32,                              // 0x00c
    misc2: u32,                              // 0x010
    misc3: u32,                              // 0x014
    reserved_018: [u64; 4],                  // 0x018
    reserved_038: u32,                       // 0x038
    pause_filter: u32,                       // 0x03c
    iopm_base: u64,                          // 0x040
    msrpm_base: u64,                         // 0x048
    tsc_offset: u64,                         // 0x050
    asid: u32,                               // 0x058
    tlb_control: u32,                        // 0x05c
    int_ctl: u32,                            // 0x060
    int_vector: u32,                         // 0x064
    int_state: u64,                          // 0x068
    exit_code: u64,                          // 0x070
    exit_info1: u64,                         // 0x078
    exit_info2: u64,                         // 0x080
    exit_int_info: u64,                      // 0x088
    nested_control: u64,                     // 0x090
    reserved_098: [u64; 2],                  // 0x098
    event_inject: u64,                       // 0x0a8
    nested_cr3: u64,                         // 0x0b0
    lbr_control: u64,                        // 0x0b8
    clean: u32,                              // 0x0c0
    reserved_0c4: u32,                       // 0x0c4
    next_rip: u64,                           // 0x0c8
    fetched_count: u8,                       // 0x0d0
    fetched: [u8; 15],                       // 0x0d1
    reserved_0e0: [u64; (0x400 - 0xe0) / 8], // 0x0e0
}

#[derive(Debug)]
#[repr(C)]
struct Save {
    es: Segment,                               // 0x400
    cs: Segment,                               // 0x410
    ss: Segment,                               // 0x420
    ds: Segment,                               // 0x430
    fs: Segment,                               // 0x440
    gs: Segment,                               // 0x450
    gdtr: Segment,                             // 0x460
    ldtr: Segment,                             // 0x470
    idtr: Segment,                             // 0x480
    tr: Segment,                               // 0x490
    reserved_4a0: [u8; 0x2b],                  // 0x4a0
    cpl: u8,                                   // 0x4cb
    reserved_4cc: u32,                         // 0x4cc
    efer: u64,                                 // 0x4d0
    reserved_4d8: [u64; 14],                   // 0x4d8
    cr4: u64,                                  // 0x548
    cr3: u64,                                  // 0x550
    cr0: u64,                                  // 0x558
    dr7: u64,                                  // 0x560
    dr6: u64,                                  // 0x568
    rflags: u64,                               // 0x570
    rip: u64,                                  // 0x578
    reserved_580: [u64; 11],                   // 0x580
    rsp: u64,                                  // 0x5d8
    shadow_stack: [u64; 3],                    // 0x5e0
    rax: u64,                                  // 0x5f8
    star: u64,                                 // 0x600
    lstar: u64,                                // 0x608
    cstar: u64,                                // 0x610
    sfmask: u64,                               // 0x618
    kernel_gs_base: u64,                       // 0x620
    sysenter_cs: u64,                          // 0x628
    sysenter_esp: u64,                         // 0x630
    sysenter_eip: u64,                         // 0x638
    cr2: u64,                                  // 0x640
    reserved_648: [u64; 4],                    // 0x648
    pat: u64,                                  // 0x668
    debug_control: u64,                        // 0x670
    branch_records: [u64; 4],                  // 0x678
    reserved_698: [u64; (0x1000 - 0x698) / 8], // 0x698
}

impl Control {
    const ZERO: Self = Self {
        cr_intercepts: 0,
        dr_intercepts: 0,
        exception_intercepts: 0,
        misc1: 0,
        misc2: 0,
        misc3: 0,
        reserved_018: [0; 4],
        reserved_038: 0,
        pause_filter: 0,
        iopm_base: 0,
        msrpm_base: 0,
        tsc_offset: 0,
        asid: 0,
        tlb_control: 0,
        int_ctl: 0,
        int_vector: 0,
        int_state: 0,
        exit_code: 0,
        exit_info1: 0,
        exit_info2: 0,
        exit_int_info: 0,
        nested_control: 0,
        reserved_098: [0; 2],
        event_inject: 0,
        nested_cr3: 0,
        lbr_control: 0,
        clean: 0,
        reserved_0c4: 0,
        next_rip: 0,
        fetched_count: 0,
        fetched: [0; 15],
        reserved_0e0: [0; (0x400 - 0xe0) / 8],
    };
}

impl Save {
    const ZERO: Self = Self {
        es: Segment::NONE,
        cs: Segment::NONE,
        ss: Segment::NONE,
        ds: Segment::NONE,
        fs: Segment::NONE,
        gs: Segment::NONE,
        gdtr: Segment::NONE,
        ldtr: Segment::NONE,
        idtr: Segment::NONE,
        tr: Segment::NONE,
        reserved_4a0: [0; 0x2b],
        cpl: 0,
        reserved_4cc: 0,
        efer: 0,
        reserved_4d8: [0; 14],
        cr4: 0,
        cr3: 0,
        cr0: 0,
        dr7: 0,
        dr6: 0,
        rflags: 0,
        rip: 0,
        reserved_580: [0; 11],
        rsp: 0,
        shadow_stack: [0; 3],
        rax: 0,
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        cr2: 0,
        reserved_648: [0; 4],
        pat: 0,
        debug_control: 0,
        branch_records: [0; 4],
        reserved_698: [0; (0x1000 - 0x698) / 8],
    };
}

/// The control block of one virtual processor.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    control: Control,
    save: Save,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Vmcb>() == 4096 && align_of::<Vmcb>() == 4096);
    // APM2 Appendix B, Table B-1.
    assert!(offset_of!(Control, misc1) == 0x0c);
    assert!(offset_of!(Control, pause_filter) == 0x3c);
    assert!(offset_of!(Control, iopm_base) == 0x40);
    assert!(offset_of!(Control, msrpm_base) == 0x48);
    assert!(offset_of!(Control, tsc_offset) == 0x50);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, int_ctl) == 0x60);
    assert!(offset_of!(Control, int_vector) == 0x64);
    assert!(offset_of!(Control, int_state) == 0x68);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, exit_int_info) == 0x88);
    assert!(offset_of!(Control, nested_control) == 0x90);
    assert!(offset_of!(Control, event_inject) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Control, fetched_count) == 0xd0);
    // APM2 Appendix B, Table B-2.
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, tr) == 0x90);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, cr0) == 0x158);
    assert!(offset_of!(Save, dr7) == 0x160);
    assert!(offset_of!(Save, rflags) == 0x170);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, star) == 0x200);
    assert!(offset_of!(Save, kernel_gs_base) == 0x220);
    assert!(offset_of!(Save, sysenter_eip) == 0x238);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, pat) == 0x268);
    assert!(offset_of!(Save, debug_control) == 0x270);
};

// int_ctl, offset 0x60 (APM2 15.21).
const V_TPR: u32 = 0x0f;
const V_IRQ: u32 = 1 << 8;
const V_INTR_PRIO_SHIFT: u32 = 16;
const V_INTR_PRIO: u32 = 0xf << V_INTR_PRIO_SHIFT;
const V_IGN_TPR: u32 = 1 << 20;
const V_INTR_MASKING: u32 = 1 << 24;

const INTERRUPT_SHADOW: u64 = 1 << 0;
const NP_ENABLE: u64 = 1 << 0;

macro_rules! registers {
    ($($(#[$doc:meta])* $get:ident, $set:ident: $field:ident, $kind:ty, $covers:expr;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            pub const fn $get(&self) -> $kind {
                self.save.$field
            }

            #[doc = concat!("Sets what [`Self::", stringify!($get), "`] returns.")]
            #[inline]
            pub const fn $set(&mut self, value: $kind) {
                self.save.$field = value;
                self.touch($covers);
            }
        )*
    };
}

impl Vmcb {
    /// An all-zero block, which VMRUN refuses until [`Vmcb::configure`] and one of the `start_` recipes ran.
    pub const fn new() -> Self {
        Self { control: Control::ZERO, save: Save::ZERO }
    }

    /// Fills the control area: the intercepts every guest runs under, nested paging, masked physical interrupts.
    /// The first entry flushes the TLB.
    pub const fn configure(&mut self, setup: &Setup) {
        let control = &mut self.control;
        control.cr_intercepts = INTERCEPT_CR8_WRITE;
        control.dr_intercepts = 0;
        control.exception_intercepts = INTERCEPT_EXCEPTIONS;
        control.misc1 = Misc1::GUEST.bits();
        control.misc2 = Misc2::GUEST.bits();
        control.misc3 = 0;
        control.iopm_base = setup.io_permissions.raw();
        control.msrpm_base = setup.msr_permissions.raw();
        control.asid = setup.asid;
        control.tlb_control = TlbControl::FlushAll as u32;
        control.int_ctl = V_INTR_MASKING;
        control.int_state = 0;
        control.event_inject = 0;
        control.nested_control = NP_ENABLE;
        control.nested_cr3 = setup.nested_root.raw();
        control.lbr_control = 0;
        control.clean = 0;
    }

    /// Starts the guest in flat 32-bit protected mode with paging and interrupts off: the state Multiboot1 (0.6.96
    /// 3.2) and PVH demand at an image's entry.
    pub const fn start_protected32(&mut self, entry: GuestPhys) {
        // Present, accessed; code execute/read and data read/write; 32-bit, granularity 4 KiB.
        const CODE: u16 = 0xc9b;
        const DATA: u16 = 0xc93;
        self.reset_save_area();
        self.save.cs = Segment::flat(0x10, CODE);
        let data = Segment::flat(0x18, DATA);
        self.save.ds = data;
        self.save.es = data;
        self.save.ss = data;
        self.save.fs = data;
        self.save.gs = data;
        self.save.cr0 = cr0::PE | cr0::ET;
        self.save.rip = entry.raw();
    }

    /// Starts the guest in real mode at physical page `page` * 4096, as a STARTUP IPI does (APM2 16.5), with the
    /// caches enabled as every boot loader leaves them.
    pub const fn start_real(&mut self, page: u8) {
        const CODE: u16 = 0x9b;
        const DATA: u16 = 0x93;
        self.reset_save_area();
        self.save.cs = Segment::real((page as u16) << 8, CODE);
        let data = Segment::real(0, DATA);
        self.save.ds = data;
        self.save.es = data;
        self.save.ss = data;
        self.save.fs = data;
        self.save.gs = data;
        self.save.cr0 = cr0::ET;
        self.save.rip = 0;
    }

    /// The registers after INIT that do not depend on the mode (APM2 14.1.3), with EFER.SVME, which VMRUN
    /// demands in the guest's EFER.
    const fn reset_save_area(&mut self) {
        const BUSY_TSS: u16 = 0x8b;
        const LDT: u16 = 0x82;
        self.save = Save::ZERO;
        let save = &mut self.save;
        save.tr = Segment { selector: 0, attributes: BUSY_TSS, limit: 0xffff, base: 0 };
        save.ldtr = Segment { selector: 0, attributes: LDT, limit: 0xffff, base: 0 };
        save.gdtr.limit = 0xffff;
        save.idtr.limit = 0xffff;
        save.efer = efer::SVME;
        save.dr6 = 0xffff_0ff0;
        save.dr7 = 0x400;
        save.rflags = rflags::ALWAYS_ONE;
        save.pat = PAT_RESET;
        self.control.int_state = 0;
        self.control.event_inject = 0;
        self.control.int_ctl = V_INTR_MASKING;
        self.control.tlb_control = TlbControl::FlushAll as u32;
        self.control.clean = 0;
    }

    /// The first rule the block breaks, of those whose violation makes VMRUN refuse it.
    ///
    /// For use before a first entry and after register changes on the guest's behalf: after a refused entry the
    /// save area may hold host values and proves nothing.
    pub const fn check(&self) -> Result<(), Inconsistency> {
        const EFER_LEGAL: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::SVME;
        let (control, save) = (&self.control, &self.save);
        if control.asid == 0 {
            return Err(Inconsistency::AsidZero);
        }
        if control.misc2 & Misc2::VMRUN.bits() == 0 {
            return Err(Inconsistency::VmrunNotIntercepted);
        }
        if (control.iopm_base | control.msrpm_base | control.nested_cr3) & 0xfff != 0 {
            return Err(Inconsistency::Misaligned);
        }
        if save.efer & efer::SVME == 0 || save.efer & !EFER_LEGAL != 0 {
            return Err(Inconsistency::Efer);
        }
        if save.cr0 >> 32 != 0 || save.cr0 & (cr0::NW | cr0::CD) == cr0::NW {
            return Err(Inconsistency::Cr0);
        }
        if save.cr4 >> 32 != 0 {
            return Err(Inconsistency::Cr4);
        }
        if (save.dr6 | save.dr7) >> 32 != 0 {
            return Err(Inconsistency::DebugRegister);
        }
        if save.efer & efer::LME != 0 && save.cr0 & cr0::PG != 0 {
            const BOTH: u16 = Segment::LONG | Segment::DEFAULT_32;
            let long_compatible = save.cs.attributes & BOTH == BOTH;
            if save.cr4 & cr4::PAE == 0 || save.cr0 & cr0::PE == 0 || long_compatible {
                return Err(Inconsistency::LongMode);
            }
        }
        Ok(())
    }

    // --- Around VMRUN ---

    #[inline]
    const fn touch(&mut self, part: CleanBits) {
        self.control.clean &= !part.bits();
    }

    /// To be called once after each exit: everything is unchanged until a setter says otherwise, and one-shot
    /// requests (flush, injection) are withdrawn.
    #[inline]
    pub const fn exited(&mut self) {
        self.control.clean = CleanBits::all().bits();
        self.control.tlb_control = TlbControl::Keep as u32;
        self.control.event_inject = 0;
    }

    /// Declares everything changed: required before the first entry on another CPU.
    pub const fn moved(&mut self) {
        self.control.clean = 0;
        self.control.tlb_control = TlbControl::FlushAll as u32;
    }

    /// Requests a TLB flush at the next entry; required after translations of the guest were removed or changed.
    pub const fn flush_tlb(&mut self, how: TlbControl) {
        self.control.tlb_control = how as u32;
    }

    /// The parts declared unchanged for the next entry.
    pub const fn clean_bits(&self) -> CleanBits {
        CleanBits::from_bits_truncate(self.control.clean)
    }

    /// Copies RAX and RSP from the block into their slots of `regs`, which makes these complete.
    #[inline]
    pub fn load_into(&self, regs: &mut GuestRegs) {
        regs[Gpr::Rax] = self.save.rax;
        regs[Gpr::Rsp] = self.save.rsp;
    }

    /// Copies RAX and RSP from `regs` back into the block. They have no clean bits.
    #[inline]
    pub fn store_from(&mut self, regs: &GuestRegs) {
        self.save.rax = regs[Gpr::Rax];
        self.save.rsp = regs[Gpr::Rsp];
    }

    // --- What the exit says ---

    /// EXITCODE as the CPU wrote it.
    #[inline]
    pub const fn exit_code(&self) -> u64 {
        self.control.exit_code
    }

    /// EXITINFO1; its meaning depends on the exit code.
    #[inline]
    pub const fn exit_info1(&self) -> u64 {
        self.control.exit_info1
    }

    /// EXITINFO2; its meaning depends on the exit code.
    #[inline]
    pub const fn exit_info2(&self) -> u64 {
        self.control.exit_info2
    }

    /// EXITINTINFO, to be read with [`crate::svm::interrupted_delivery`].
    #[inline]
    pub const fn exit_int_info(&self) -> u64 {
        self.control.exit_int_info
    }

    /// The address of the next instruction, where the CPU saves it (CPUID 8000_000A EDX bit 3, NRIPS) and the
    /// exit is one caused by an instruction; elsewhere `None`.
    #[inline]
    pub const fn next_rip(&self) -> Option<u64> {
        // Zero is what a CPU without the feature leaves; no instruction ends at address 0 in a sane guest, and a
        // guest that wraps there only loses the short cut.
        match self.control.next_rip {
            0 => None,
            next => Some(next),
        }
    }

    /// The instruction bytes the CPU fetched for the exit (CPUID 8000_000A EDX bit 7, DecodeAssists); empty
    /// elsewhere.
    pub fn fetched_bytes(&self) -> &[u8] {
        self.control.fetched.get(..usize::from(self.control.fetched_count)).unwrap_or(&[])
    }

    // --- Interrupts ---

    /// Injects `event` at the next entry.
    #[inline]
    pub const fn inject(&mut self, event: Event) {
        self.control.event_inject = event.encode();
    }

    /// Whether an injection is already requested.
    #[inline]
    pub const fn injection_pending(&self) -> bool {
        self.control.event_inject != 0
    }

    /// Presents `vector` as a virtual interrupt: the CPU delivers it by itself as soon as RFLAGS.IF and the
    /// interrupt shadow allow (APM2 15.21.4). The task priority is not compared; the caller did.
    #[inline]
    pub const fn set_virtual_interrupt(&mut self, vector: Vector) {
        self.control.int_ctl = self.control.int_ctl & !V_INTR_PRIO
            | V_IRQ
            | V_IGN_TPR
            | (vector.class() as u32) << V_INTR_PRIO_SHIFT;
        self.control.int_vector = vector.get() as u32;
        self.touch(CleanBits::VIRTUAL_INTERRUPT);
    }

    /// Withdraws the virtual interrupt.
    #[inline]
    pub const fn clear_virtual_interrupt(&mut self) {
        self.control.int_ctl &= !(V_IRQ | V_IGN_TPR | V_INTR_PRIO);
        self.touch(CleanBits::VIRTUAL_INTERRUPT);
    }

    /// Whether a virtual interrupt was presented and not yet delivered: the CPU clears the bit on delivery.
    #[inline]
    pub const fn virtual_interrupt_pending(&self) -> bool {
        self.control.int_ctl & V_IRQ != 0
    }

    /// The task priority a guest reads from CR8, 0 to 15.
    #[inline]
    pub const fn task_priority(&self) -> u8 {
        (self.control.int_ctl & V_TPR) as u8
    }

    /// Sets what a guest reads from CR8: the upper half of the local APIC's task priority register. Bits above 3
    /// are ignored.
    #[inline]
    pub const fn set_task_priority(&mut self, class: u8) {
        let new = self.control.int_ctl & !V_TPR | class as u32 & V_TPR;
        if new != self.control.int_ctl {
            self.control.int_ctl = new;
            self.touch(CleanBits::VIRTUAL_INTERRUPT);
        }
    }

    /// Whether the guest is in the shadow of STI or a stack-segment load.
    #[inline]
    pub const fn interrupt_shadow(&self) -> bool {
        self.control.int_state & INTERRUPT_SHADOW != 0
    }

    /// Whether an injected external interrupt would respect RFLAGS.IF and the interrupt shadow.
    #[inline]
    pub const fn can_take_interrupt(&self) -> bool {
        self.save.rflags & rflags::IF != 0 && !self.interrupt_shadow()
    }

    /// Adds or removes the intercept of the moment the guest can take an interrupt. Needs a pending virtual
    /// interrupt to trigger (APM2 15.21.5).
    pub const fn intercept_interrupt_window(&mut self, on: bool) {
        let bit = Misc1::VINTR.bits();
        self.control.misc1 = if on { self.control.misc1 | bit } else { self.control.misc1 & !bit };
        self.touch(CleanBits::INTERCEPTS);
    }

    /// Sets what is added to the time-stamp counter the guest reads, in ticks.
    pub const fn set_tsc_offset(&mut self, offset: u64) {
        self.control.tsc_offset = offset;
        self.touch(CleanBits::INTERCEPTS);
    }

    /// What is added to the time-stamp counter the guest reads, in ticks.
    pub const fn tsc_offset(&self) -> u64 {
        self.control.tsc_offset
    }

    // --- Registers ---

    registers! {
        /// The instruction pointer, an offset in CS outside 64-bit mode.
        rip, set_rip: rip, u64, CleanBits::empty();
        /// The flags.
        rflags, set_rflags: rflags, u64, CleanBits::empty();
        /// RSP; see [`Vmcb::load_into`].
        rsp, set_rsp: rsp, u64, CleanBits::empty();
        /// RAX; see [`Vmcb::load_into`].
        rax, set_rax: rax, u64, CleanBits::empty();
        /// CR0.
        cr0, set_cr0: cr0, u64, CleanBits::CONTROL_REGISTERS;
        /// CR2, the address of the last page fault.
        cr2, set_cr2: cr2, u64, CleanBits::CR2;
        /// CR3, the root of the guest's own page tables.
        cr3, set_cr3: cr3, u64, CleanBits::CONTROL_REGISTERS;
        /// CR4.
        cr4, set_cr4: cr4, u64, CleanBits::CONTROL_REGISTERS;
        /// The real EFER, SVME included; see [`crate::x86::guest_efer`].
        efer, set_efer: efer, u64, CleanBits::CONTROL_REGISTERS;
        /// The page attribute table nested paging combines with the host's.
        pat, set_pat: pat, u64, CleanBits::NESTED_PAGING;
        /// DR6.
        dr6, set_dr6: dr6, u64, CleanBits::DEBUG_REGISTERS;
        /// DR7.
        dr7, set_dr7: dr7, u64, CleanBits::DEBUG_REGISTERS;
        /// The code segment.
        cs, set_cs: cs, Segment, CleanBits::SEGMENTS;
        /// The stack segment.
        ss, set_ss: ss, Segment, CleanBits::SEGMENTS;
        /// The data segment.
        ds, set_ds: ds, Segment, CleanBits::SEGMENTS;
        /// The extra segment.
        es, set_es: es, Segment, CleanBits::SEGMENTS;
        /// FS; exchanged by VMLOAD and VMSAVE.
        fs, set_fs: fs, Segment, CleanBits::empty();
        /// GS; exchanged by VMLOAD and VMSAVE.
        gs, set_gs: gs, Segment, CleanBits::empty();
        /// The global descriptor table; only limit and base count.
        gdtr, set_gdtr: gdtr, Segment, CleanBits::DESCRIPTOR_TABLES;
        /// The interrupt descriptor table; only limit and base count.
        idtr, set_idtr: idtr, Segment, CleanBits::DESCRIPTOR_TABLES;
        /// The task register; exchanged by VMLOAD and VMSAVE.
        tr, set_tr: tr, Segment, CleanBits::empty();
    }

    /// The current privilege level, 0 to 3.
    #[inline]
    pub const fn cpl(&self) -> u8 {
        self.save.cpl & 3
    }

    /// The size of the code that was running.
    #[inline]
    pub const fn code_size(&self) -> CodeSize {
        if self.save.efer & efer::LMA != 0 && self.save.cs.attributes & Segment::LONG != 0 {
            CodeSize::Bits64
        } else if self.save.cs.attributes & Segment::DEFAULT_32 != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// The linear address of the instruction at RIP.
    #[inline]
    pub const fn linear_rip(&self) -> u64 {
        match self.code_size() {
            CodeSize::Bits64 => self.save.rip,
            CodeSize::Bits16 | CodeSize::Bits32 => {
                self.save.cs.base.wrapping_add(self.save.rip) & 0xffff_ffff
            }
        }
    }

    /// Completes an emulated instruction of `length` bytes: RIP moves on and what only covered this instruction
    /// (interrupt shadow, RFLAGS.RF) ends.
    #[inline]
    pub const fn retire(&mut self, length: u8) {
        self.continue_at(self.save.rip.wrapping_add(length as u64));
    }

    /// Like [`Vmcb::retire`] with the address of the next instruction, as port exits report it.
    #[inline]
    pub const fn continue_at(&mut self, next_rip: u64) {
        self.save.rip = self.code_size().truncate(next_rip);
        self.save.rflags &= !rflags::RF;
        self.control.int_state &= !INTERRUPT_SHADOW;
    }
}

impl Default for Vmcb {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
