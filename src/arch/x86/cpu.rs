//! What every CPU has of its own: descriptor tables, interrupt stacks, and the window in which a vector arrives.
//!
//! Every gate runs on an interrupt stack (IST), so that nothing is ever pushed below the stack pointer of running Rust
//! code, whose precompiled parts may use the red zone. #NMI, #DF and #MC have one each; all others share the fourth.
#![expect(unsafe_code, reason = "descriptor tables, GS base and the assembly stubs")]

use alloc::boxed::Box;
use core::arch::{asm, global_asm};
use core::mem::offset_of;
#[cfg(debug_assertions)]
use core::sync::atomic::AtomicU32;
use core::sync::atomic::{AtomicU64, Ordering};

use levelhead::frames::Frames;
use levelhead::irq::{CpuId, Vector};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::GsBase;
use x86_64::registers::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, VirtAddr};

use super::paging::{AddressSpace, OutOfMemory};

global_asm!(include_str!("stubs.S"));
global_asm!(include_str!("window.S"));

const IST_NMI: u16 = 0;
const IST_DOUBLE_FAULT: u16 = 1;
const IST_MACHINE_CHECK: u16 = 2;
const IST_OTHERS: u16 = 3;
const IST_PAGES: u64 = 4;

unsafe extern "C" {
    static lh_stubs: u8;
    fn lh_window_open() -> u8;
    fn lh_window_idle() -> u8;
}

/// What the stubs write through GS.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct PerCpu {
    nmi_count: AtomicU64,
    id: CpuId,
    /// The innermost rank of lock that this CPU holds, or 0 (order.rs).
    #[cfg(debug_assertions)]
    held: AtomicU32,
}

const _: () = assert!(offset_of!(PerCpu, nmi_count) == 0, "stubs.S: PERCPU_NMI_COUNT");

/// This CPU's own view of itself. One exists per CPU, and its `&mut` is the proof that the code runs there with
/// interrupts off.
#[derive(Debug)]
pub(crate) struct ThisCpu {
    shared: &'static PerCpu,
}

impl ThisCpu {
    /// Gives the running CPU its tables and stacks. Boot only: the boxes live for ever.
    ///
    /// # Safety
    ///
    /// Called once per CPU, on that CPU, with interrupts off and the final page tables on.
    pub(crate) unsafe fn initialise(
        id: CpuId,
        space: &mut AddressSpace,
        frames: &mut Frames,
    ) -> Result<Self, OutOfMemory> {
        let mut tss = Box::new(TaskStateSegment::new());
        // The structure is packed, so its array is replaced as a whole.
        let mut stacks = tss.interrupt_stack_table;
        for slot in [IST_NMI, IST_DOUBLE_FAULT, IST_MACHINE_CHECK, IST_OTHERS] {
            let top = space.map_stack(IST_PAGES, frames)?;
            if let Some(entry) = stacks.get_mut(usize::from(slot)) {
                *entry = top;
            }
        }
        tss.interrupt_stack_table = stacks;
        let gdt = Box::leak(Box::new(GlobalDescriptorTable::new()));
        let code = gdt.append(Descriptor::kernel_code_segment());
        let data = gdt.append(Descriptor::kernel_data_segment());
        let tss_selector = gdt.append(Descriptor::tss_segment(Box::leak(tss)));
        gdt.load();
        // SAFETY: the selector is that of a 64-bit code segment in the table just loaded.
        unsafe { CS::set_reg(code) };
        // SAFETY: the selector is that of a writable data segment in the same table.
        unsafe { SS::set_reg(data) };
        // SAFETY: the selector is that of the writable data segment SS has.
        unsafe { DS::set_reg(data) };
        // SAFETY: the selector is that of the writable data segment SS has.
        unsafe { ES::set_reg(data) };
        // SAFETY: the descriptor names a TSS that is never freed, and is loaded once.
        unsafe { load_tss(tss_selector) };
        let idt = Box::leak(Box::new(interrupt_table(code)));
        idt.load();
        let shared = Box::leak(Box::new(PerCpu {
            nmi_count: AtomicU64::new(0),
            id,
            #[cfg(debug_assertions)]
            held: AtomicU32::new(0),
        }));
        GsBase::write(VirtAddr::from_ptr(core::ptr::from_ref(shared)));
        Ok(Self { shared })
    }

    /// Which CPU this is.
    pub(crate) fn id(&self) -> CpuId {
        self.shared.id
    }

    /// How many NMIs arrived since boot.
    pub(crate) fn nmi_count(&self) -> u64 {
        self.shared.nmi_count.load(Ordering::Relaxed)
    }

    /// Opens the interrupt window for a moment; the vector that has arrived. If more than one waits, the local APIC keeps the lower
    /// ones, and the next window or entry brings the next.
    #[inline]
    #[must_use = "nobody else completes it"]
    pub(crate) fn window(&mut self) -> Option<Vector> {
        // SAFETY: the IDT, GS base and interrupt stacks are set up (initialise), and `&mut self` says that no other
        // window is open on this CPU.
        Vector::new(unsafe { lh_window_open() })
    }

    /// Sleeps until an interrupt or an NMI arrives; the vector that has arrived. Out of line: a loop around it would call through a
    /// register, which the gate `no-panic` cannot follow.
    #[inline(never)]
    #[must_use = "nobody else completes it"]
    pub(crate) fn idle(&mut self) -> Option<Vector> {
        // SAFETY: as for `window`: tables are set up, and no other window is open.
        Vector::new(unsafe { lh_window_idle() })
    }
}

/// Where the running CPU notes the rank of lock it holds; nowhere before it has its tables.
#[cfg(debug_assertions)]
pub(crate) fn held_rank() -> Option<&'static AtomicU32> {
    let own = GsBase::read().as_ptr::<PerCpu>();
    // SAFETY: GS base is 0 until `initialise` points it to this CPU's structure, which lives for ever; whatever the guest
    // loaded is replaced before any Rust code runs (vmrun.S).
    unsafe { own.as_ref() }.map(|own| &own.held)
}

/// A table whose gate `n` leads to stub `n`.
fn interrupt_table(code: SegmentSelector) -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    let stub = |vector: u8| VirtAddr::new((&raw const lh_stubs).addr() as u64 + 32 * u64::from(vector));
    macro_rules! gate {
        ($entry:expr, $vector:expr, $stack:expr) => {
            // SAFETY: the address is that of a stub written for this vector, which never returns into Rust with
            // other state than it found; the stack index is one that initialise() filled in.
            unsafe {
                $entry
                    .set_handler_addr(stub($vector))
                    .set_code_selector(code)
                    .set_privilege_level(PrivilegeLevel::Ring0)
                    .set_stack_index($stack);
            }
        };
    }
    gate!(idt.divide_error, 0, IST_OTHERS);
    gate!(idt.debug, 1, IST_OTHERS);
    gate!(idt.non_maskable_interrupt, 2, IST_NMI);
    gate!(idt.breakpoint, 3, IST_OTHERS);
    gate!(idt.overflow, 4, IST_OTHERS);
    gate!(idt.bound_range_exceeded, 5, IST_OTHERS);
    gate!(idt.invalid_opcode, 6, IST_OTHERS);
    gate!(idt.device_not_available, 7, IST_OTHERS);
    gate!(idt.double_fault, 8, IST_DOUBLE_FAULT);
    gate!(idt.invalid_tss, 10, IST_OTHERS);
    gate!(idt.segment_not_present, 11, IST_OTHERS);
    gate!(idt.stack_segment_fault, 12, IST_OTHERS);
    gate!(idt.general_protection_fault, 13, IST_OTHERS);
    gate!(idt.page_fault, 14, IST_OTHERS);
    gate!(idt.x87_floating_point, 16, IST_OTHERS);
    gate!(idt.alignment_check, 17, IST_OTHERS);
    gate!(idt.machine_check, 18, IST_MACHINE_CHECK);
    gate!(idt.simd_floating_point, 19, IST_OTHERS);
    gate!(idt.virtualization, 20, IST_OTHERS);
    gate!(idt.cp_protection_exception, 21, IST_OTHERS);
    gate!(idt.hv_injection_exception, 28, IST_OTHERS);
    gate!(idt.vmm_communication_exception, 29, IST_OTHERS);
    gate!(idt.security_exception, 30, IST_OTHERS);
    for vector in 32..=u8::MAX {
        gate!(idt[vector], vector, IST_OTHERS);
    }
    idt
}

/// What stubs.S leaves on the interrupt stack when the hypervisor itself faults.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ExceptionFrame {
    /// RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 to R15.
    pub(crate) general: [u64; 15],
    pub(crate) vector: u64,
    pub(crate) error_code: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// TSC ticks that last at least a microsecond, whatever the CPU: waiting too long is allowed, too short is not.
pub(crate) const TICKS_PER_MICROSECOND: u64 = 6_000;

/// The CPU's time-stamp counter, in ticks since reset.
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: RDTSC reads a counter; CR4.TSD does not apply at CPL 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Executes CPUID.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> core::arch::x86_64::CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Whether the CPU has an XCR0 that a guest may use.
///
/// Not where leaf 0xd has nothing beyond plain XSAVE: there QEMU takes CR4.OSXSAVE for a reserved bit, refuses VMRUN and
/// loses the host's state with it. It costs the guests of the first CPUs with AVX that feature. One that ignores CPUID
/// there and switches AVX on by itself may find what firmware left in the upper halves of vector registers.
pub(crate) fn has_xcr0() -> bool {
    const XSAVE: u32 = 1 << 26;
    cpuid(1, 0).ecx & XSAVE != 0 && cpuid(0xd, 1).eax != 0
}

/// Stops this CPU for good.
pub(crate) fn halt_for_ever() -> ! {
    loop {
        // SAFETY: with interrupts off this sleeps until an NMI, whose stub only counts.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
