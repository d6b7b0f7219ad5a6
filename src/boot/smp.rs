//! Application processors: INIT, two SIPIs, and a trampoline page below 1 MiB (APM2 16.5, Intel SDM 3A 9.4.4).
//!
//! One CPU is started at a time. It arrives in Rust on its own stack, takes its tables, and then runs the entry that
//! the composition root gave it.
#![expect(unsafe_code, reason = "starts CPUs on memory that this module prepares")]

use core::arch::global_asm;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, Ordering};

use levelhead::addr::{HostPhys, PAGE_BYTES};
use levelhead::frames::Frames;
use levelhead::irq::{ApicId, CpuId};

use crate::arch::x86::cpu::{TICKS_PER_MICROSECOND, ThisCpu, halt_for_ever, tsc};
use crate::arch::x86::lapic::LocalApic;
use crate::arch::x86::memory;
use crate::arch::x86::paging::{AddressSpace, OutOfMemory, direct};

global_asm!(include_str!("trampoline.S"));

unsafe extern "C" {
    static lh_trampoline: u8;
    static lh_trampoline_end: u8;
    static lh_trampoline_words: u8;
    static lh_trampoline_gdt_offset: u8;
    static lh_trampoline_64_offset: u8;
}

const STACK_PAGES: u64 = 16;
/// TSC ticks between INIT and SIPI, and between two SIPIs: 10 ms and 200 us at least (Intel SDM 3A 9.4.4), longer on a
/// slower TSC.
const INIT_TICKS: u64 = TICKS_PER_MICROSECOND * 10_000;
const SIPI_TICKS: u64 = TICKS_PER_MICROSECOND * 200;
/// How long a started CPU may take to report, in TSC ticks: a second or more.
const START_TICKS: u64 = TICKS_PER_MICROSECOND * 1_000_000;

/// The words at the end of trampoline.S.
#[repr(C)]
struct Words {
    gdt_limit: u16,
    gdt_base: [u16; 2],
    pad: u16,
    far_offset: u32,
    far_selector: u16,
    pad2: u16,
    cr3: u64,
    stack: u64,
    argument: u64,
    entry: u64,
}

/// Everything a new CPU needs before it has tables of its own.
struct Start<'a> {
    id: CpuId,
    space: &'a mut AddressSpace,
    frames: &'a mut Frames,
    entry: fn(ThisCpu) -> !,
}

/// How far the CPU that is being started came; 0: nothing was heard of it.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
const ARRIVED_READY: u32 = 1;
const ARRIVED_WITHOUT_MEMORY: u32 = 2;

/// Why a CPU did not start.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StartError {
    /// No page below 1 MiB, or no memory for stacks.
    OutOfMemory,
    /// It never reported.
    Silent(ApicId),
}

impl From<OutOfMemory> for StartError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// Starts the CPUs in `targets` one after the other; each runs `entry`. `pass` lets time pass until something happens, at most so
/// many TSC ticks.
pub(crate) fn start(
    targets: impl Iterator<Item = (CpuId, ApicId)>,
    apic: &LocalApic,
    space: &mut AddressSpace,
    frames: &mut Frames,
    entry: fn(ThisCpu) -> !,
    mut pass: impl FnMut(u64),
) -> Result<(), StartError> {
    let page = frames.allocate(PAGE_BYTES, PAGE_BYTES, 0xa_0000).ok_or(StartError::OutOfMemory)?;
    space.map_trampoline(page, frames)?;
    for (id, target) in targets {
        let stack = space.map_stack(STACK_PAGES, frames)?;
        let cr3 = u64::from(space.root());
        let mut start = Start { id, space, frames, entry };
        write_trampoline(page, cr3, stack.as_u64(), &raw mut start);
        start_one(target, page, apic, &mut pass)?;
    }
    space.unmap_trampoline(page);
    Ok(())
}

/// Starts a CPU in the trampoline, and waits until it has what it needs of [`Start`].
fn start_one(
    target: ApicId,
    page: HostPhys,
    apic: &LocalApic,
    pass: &mut impl FnMut(u64),
) -> Result<(), StartError> {
    let arrived = || ARRIVED.load(Ordering::Acquire) != 0;
    ARRIVED.store(0, Ordering::Release);
    apic.send_init(target);
    wait(INIT_TICKS, || false, &mut *pass);
    for _ in 0..2 {
        // The page is below 1 MiB, so its number fits the vector field.
        apic.send_startup(target, (page.raw() / PAGE_BYTES) as u8);
        wait(SIPI_TICKS, arrived, |_| spin_loop());
    }
    wait(START_TICKS, arrived, |_| spin_loop());
    match ARRIVED.load(Ordering::Acquire) {
        ARRIVED_READY => Ok(()),
        ARRIVED_WITHOUT_MEMORY => Err(StartError::OutOfMemory),
        _ => {
            // It must not come later and find `Start` gone: back to where it waits for a SIPI that nobody sends.
            apic.send_init(target);
            wait(INIT_TICKS, || false, pass);
            Err(StartError::Silent(target))
        }
    }
}

fn write_trampoline(page: HostPhys, cr3: u64, stack: u64, start: *mut Start<'_>) {
    let begin = &raw const lh_trampoline;
    let bytes = (&raw const lh_trampoline_end).addr() - begin.addr();
    let words_at = (&raw const lh_trampoline_words).addr() - begin.addr();
    // Absolute symbols: their addresses are the offsets themselves.
    let gdt = page.raw() as u32 + (&raw const lh_trampoline_gdt_offset).addr() as u32;
    let far = page.raw() as u32 + (&raw const lh_trampoline_64_offset).addr() as u32;
    let words = Words {
        gdt_limit: 23,
        gdt_base: [gdt as u16, (gdt >> 16) as u16],
        pad: 0,
        far_offset: far,
        far_selector: 8,
        pad2: 0,
        cr3,
        stack,
        argument: start.expose_provenance() as u64,
        entry: lh_ap_main as *const () as u64,
    };
    // SAFETY: the page was allocated for this, the direct map shows it writable, and the code is smaller than a page.
    unsafe { direct(page).copy_from_nonoverlapping(begin, bytes) };
    // SAFETY: the words lie inside the copied code.
    let at = unsafe { direct(page).add(words_at) }.cast::<Words>();
    // SAFETY: the words lie inside the copied code, and the place need not be aligned.
    unsafe { at.write_unaligned(words) };
}

/// Lets time pass until `done`, at most so many TSC ticks.
fn wait(ticks: u64, done: impl Fn() -> bool, mut pass: impl FnMut(u64)) {
    let begin = tsc();
    while !done() {
        let passed = tsc().wrapping_sub(begin);
        if passed >= ticks {
            return;
        }
        pass(ticks - passed);
    }
}

unsafe extern "C" fn lh_ap_main(start: *mut Start<'_>) -> ! {
    // SAFETY: start_one keeps the value alive and untouched until ARRIVED is set; provenance was exposed there.
    let Start { id, space, frames, entry } = unsafe { &mut *start };
    let (id, entry) = (*id, *entry);
    memory::settle();
    // SAFETY: once, on this CPU, with interrupts off and the final tables on.
    match unsafe { ThisCpu::initialise(id, space, frames) } {
        Ok(cpu) => {
            ARRIVED.store(ARRIVED_READY, Ordering::Release);
            entry(cpu)
        }
        Err(OutOfMemory) => {
            ARRIVED.store(ARRIVED_WITHOUT_MEMORY, Ordering::Release);
            halt_for_ever()
        }
    }
}
