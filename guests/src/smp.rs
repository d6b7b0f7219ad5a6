//! The guest's other CPUs: INIT, two start-up messages, and the program that each of them runs (Intel SDM 3A 9.4.4).
//!
//! The program that boots is CPU 0's. Every other CPU has stacks, descriptor tables and a local APIC of its own, shares all
//! memory and the handlers of [`interrupts`], and runs what it was started with.
#![expect(unsafe_code, reason = "starts CPUs on memory that this module prepares")]

use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::cpu::CpuCell;
use crate::interrupts::{self, Stack};
use crate::{check, lapic, wait};

core::arch::global_asm!(include_str!("smp.S"));

unsafe extern "C" {
    static smp_trampoline: u8;
    static smp_trampoline_end: u8;
    static smp_stack: AtomicU64;
    static smp_index: AtomicU64;
}

/// The most CPUs of a guest, CPU 0 among them.
pub const MAX_CPUS: usize = 8;

/// Where the others begin: a page below 1 MiB that no loader uses.
const PAGE: u8 = 0x50;
const PAGE_BYTES: usize = 0x1000;

/// What a CPU runs, given its number.
pub type Program = fn(u32) -> !;

static STACKS: [CpuCell<Stack>; MAX_CPUS] = [const { CpuCell::new(Stack::EMPTY) }; MAX_CPUS];
static PROGRAM: CpuCell<Option<Program>> = CpuCell::new(None);
/// The number of the CPU that arrived last.
static ARRIVED: AtomicU32 = AtomicU32::new(0);

/// How many CPUs the guest has (CPUID 1, EBX bits 23 to 16); their local APICs are numbered from 0.
pub fn count() -> u32 {
    __cpuid(1).ebx >> 16 & 0xff
}

/// Starts CPU number `index`, from 1 on, with `program`. It waits for its start-up message, or runs: then it is reset first.
pub fn start(index: u32, program: Program) {
    let at = usize::try_from(index).unwrap_or(0);
    let Some(stack) = STACKS.get(at).filter(|_| index > 0) else {
        crate::fail!("there is no CPU {index} to start")
    };
    PROGRAM.set(Some(program));
    let begin = &raw const smp_trampoline;
    let bytes = (&raw const smp_trampoline_end).addr() - begin.addr();
    check!(bytes <= PAGE_BYTES, "the code where CPUs start is longer than a page");
    // SAFETY: the page is memory below 1 MiB that nothing else uses, mapped one to one; the code is not longer.
    unsafe { ((usize::from(PAGE) * PAGE_BYTES) as *mut u8).copy_from_nonoverlapping(begin, bytes) };
    // SAFETY: words of smp.S, which only a CPU that is being started reads, and none is.
    unsafe { &smp_stack }.store(stack.top(), Ordering::SeqCst);
    // SAFETY: the other word of smp.S, with the same single reader, which does not run yet.
    unsafe { &smp_index }.store(index.into(), Ordering::SeqCst);
    ARRIVED.store(0, Ordering::SeqCst);
    lapic::send(index, lapic::INIT);
    lapic::send(index, lapic::STARTUP | u32::from(PAGE));
    // The second one finds it under way and means nothing, as on a machine.
    lapic::send(index, lapic::STARTUP | u32::from(PAGE));
    check!(wait::yielding(|| ARRIVED.load(Ordering::SeqCst) == index), "CPU {index} does not start");
}

/// Called by `smp.S` in long mode, with interrupts off, on the CPU's own stack.
#[unsafe(no_mangle)]
extern "C" fn guest_cpu(index: u32) -> ! {
    interrupts::init_other(usize::try_from(index).unwrap_or(0));
    lapic::enable();
    let program = PROGRAM.get();
    ARRIVED.store(index, Ordering::SeqCst);
    match program {
        Some(program) => program(index),
        None => crate::fail!("CPU {index} has nothing to run"),
    }
}
