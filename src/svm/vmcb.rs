//! The virtual machine control block: 4 KiB shared with the CPU (APM2 Appendix B).
//!
//! The control area says what a guest may do, the save area holds its registers. Fields are private: each setter
//! also clears the clean bit that covers its field, so that a CPU which caches parts of the block can never run
//! with an old value. The block must not be touched between VMRUN and #VMEXIT.

mod intercepts;
mod layout;

use bitflags::bitflags;

use crate::addr::{GuestPhys, HostPhys};
use crate::irq::Vector;
use crate::svm::event::{Event, Fault};
use crate::vcpu::{CodeSize, Gpr, GuestRegs};
use crate::x86::{PAT_RESET, cr0, cr4, dr6, efer, rflags};

use intercepts::{EVERY_EXCEPTION, INTERCEPT_CR8_WRITE, INTERCEPT_EXCEPTIONS};
pub use intercepts::{Misc1, Misc2};
pub use layout::Segment;
use layout::{Control, Save};

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

/// What VMRUN does to the TLB first (APM2 15.16.2): nothing.
const TLB_KEEP: u32 = 0;
/// Flushes everything, the host's entries too. Works on every CPU, and is rare enough not to need anything finer.
const TLB_FLUSH_ALL: u32 = 1;

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

/// The control block of one virtual processor.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    control: Control,
    save: Save,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096 && align_of::<Vmcb>() == 4096);
    assert!(core::mem::offset_of!(Vmcb, save) == 0x400);
};

// int_ctl, offset 0x60 (APM2 15.21).
const V_TPR: u32 = 0x0f;
const V_IRQ: u32 = 1 << 8;
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
        control.tlb_control = TLB_FLUSH_ALL;
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
        self.save.set_segments(Segment::flat(0x10, CODE), Segment::flat(0x18, DATA));
        self.save.cr0 = cr0::PE | cr0::ET;
        self.save.rip = entry.raw();
    }

    /// Starts the guest in 64-bit mode with paging on by the tables at `root`, interrupts off, and a descriptor table of
    /// `gdt_bytes` at `gdt` that has flat code at selector 0x10 and flat data at 0x18: the state Linux demands at a
    /// kernel's 64-bit entry.
    pub const fn start_long64(&mut self, entry: GuestPhys, root: GuestPhys, gdt: GuestPhys, gdt_bytes: u16) {
        // As for 32-bit mode, but for the code segment's size.
        const CODE: u16 = 0xa9b;
        const DATA: u16 = 0xc93;
        self.reset_save_area();
        self.save.set_segments(Segment::flat(0x10, CODE), Segment::flat(0x18, DATA));
        self.save.gdtr = Segment {
            selector: 0,
            attributes: 0,
            limit: gdt_bytes.saturating_sub(1) as u32,
            base: gdt.raw(),
        };
        self.save.cr0 = cr0::PE | cr0::ET | cr0::PG;
        self.save.cr3 = root.raw();
        self.save.cr4 = cr4::PAE;
        self.save.efer = efer::SVME | efer::LME | efer::LMA;
        self.save.rip = entry.raw();
    }

    /// Starts the guest in real mode at physical page `page` * 4096, as a STARTUP IPI does (APM2 16.5), with the
    /// caches enabled as every boot loader leaves them.
    pub const fn start_real(&mut self, page: u8) {
        const CODE: u16 = 0x9b;
        const DATA: u16 = 0x93;
        self.reset_save_area();
        self.save.set_segments(Segment::real((page as u16) << 8, CODE), Segment::real(0, DATA));
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
        self.control.tlb_control = TLB_FLUSH_ALL;
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
        self.control.tlb_control = TLB_KEEP;
        self.control.event_inject = 0;
    }

    /// Declares everything changed: required before the first entry on another CPU.
    pub const fn moved(&mut self) {
        self.control.clean = 0;
        self.control.tlb_control = TLB_FLUSH_ALL;
    }

    /// Requests a TLB flush at the next entry: translations of the guest were removed or changed.
    pub(super) const fn flush_tlb(&mut self) {
        self.control.tlb_control = TLB_FLUSH_ALL;
    }

    /// Whether the next entry flushes the TLB.
    pub const fn flushes_tlb(&self) -> bool {
        self.control.tlb_control == TLB_FLUSH_ALL
    }

    /// Declares the permission maps changed, whose contents a CPU may keep as it may keep their addresses.
    pub(super) const fn permissions_changed(&mut self) {
        self.touch(CleanBits::PERMISSION_MAPS);
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

    /// Whether the exit struck in the middle of an event's delivery, INT included: what was accessed then is the
    /// event's descriptor or stack, and RIP says nothing about it.
    #[inline]
    pub const fn interrupted_a_delivery(&self) -> bool {
        self.control.exit_int_info & 1 << 31 != 0
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
    /// interrupt shadow allow (APM2 15.21.4). The task priority is not compared, so V_INTR_PRIO does not count; the caller did.
    #[inline]
    pub const fn set_virtual_interrupt(&mut self, vector: Vector) {
        self.control.int_ctl = self.control.int_ctl | V_IRQ | V_IGN_TPR;
        self.control.int_vector = vector.get() as u32;
        self.touch(CleanBits::VIRTUAL_INTERRUPT);
    }

    /// Withdraws the virtual interrupt.
    #[inline]
    pub const fn clear_virtual_interrupt(&mut self) {
        self.control.int_ctl &= !(V_IRQ | V_IGN_TPR);
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

    /// Which bit of the block says whether the guest is in an interrupt shadow, for the world switch.
    pub const INTERRUPT_SHADOW_BIT: usize =
        8 * core::mem::offset_of!(Self, control.int_state) + INTERRUPT_SHADOW.trailing_zeros() as usize;

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

    /// Adds or removes the intercept of IRET, by which the handler of a non-maskable interrupt ends.
    pub const fn intercept_iret(&mut self, on: bool) {
        let bit = Misc1::IRET.bits();
        self.control.misc1 = if on { self.control.misc1 | bit } else { self.control.misc1 & !bit };
        self.touch(CleanBits::INTERCEPTS);
    }

    /// Intercepts every exception, or those alone that every guest is stopped at.
    pub const fn intercept_every_exception(&mut self, on: bool) {
        self.control.exception_intercepts = if on { EVERY_EXCEPTION } else { INTERCEPT_EXCEPTIONS };
        self.touch(CleanBits::INTERCEPTS);
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
        if self.save.efer & efer::LMA != 0 && self.cs_is_long() {
            CodeSize::Bits64
        } else if self.save.cs.attributes & Segment::DEFAULT_32 != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// Whether the code segment is one of 64-bit code, as it is in long mode; elsewhere the bit has no meaning.
    #[inline]
    pub const fn cs_is_long(&self) -> bool {
        self.save.cs.attributes & Segment::LONG != 0
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
    /// (interrupt shadow, RFLAGS.RF) ends. A guest that single-steps traps behind it, at the next entry.
    #[inline]
    pub const fn retire(&mut self, length: u8) {
        self.continue_at(self.behind(length));
    }

    /// The address behind an instruction of `length` bytes at RIP.
    #[inline]
    pub const fn behind(&self, length: u8) -> u64 {
        self.code_size().truncate(self.save.rip.wrapping_add(length as u64))
    }

    /// Like [`Vmcb::retire`] with the address of the next instruction: from [`Vmcb::behind`], or as the CPU reports it.
    #[inline]
    pub const fn continue_at(&mut self, next_rip: u64) {
        self.save.rip = next_rip;
        self.control.int_state &= !INTERRUPT_SHADOW;
        if self.save.rflags & (rflags::RF | rflags::TF) != 0 {
            self.resume_or_trap();
        }
    }

    /// The end of an instruction for which breakpoints were off, or behind which the guest has a trap (APM2 13.1.4). A trap flag
    /// that is not the guest's own, see [`NmiMask`](super::NmiMask), traps by itself.
    #[cold]
    #[inline(never)]
    const fn resume_or_trap(&mut self) {
        self.save.rflags &= !rflags::RF;
        if self.save.rflags & rflags::TF != 0 && self.control.exception_intercepts != EVERY_EXCEPTION {
            self.set_dr6(self.save.dr6 | dr6::BS);
            self.inject(Event::Exception(Fault::DEBUG));
        }
    }
}

impl Default for Vmcb {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
impl Vmcb {
    pub(super) const fn intercepts_iret(&self) -> bool {
        self.control.misc1 & Misc1::IRET.bits() != 0
    }

    pub(super) const fn intercepts_every_exception(&self) -> bool {
        self.control.exception_intercepts == EVERY_EXCEPTION
    }

    pub(super) const fn set_cpl(&mut self, cpl: u8) {
        self.save.cpl = cpl;
        self.touch(CleanBits::SEGMENTS);
    }
}

#[cfg(test)]
mod clean_bits;
#[cfg(test)]
mod tests;
