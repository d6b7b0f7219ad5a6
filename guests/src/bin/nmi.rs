//! Sends itself a non-maskable interrupt in the handler of another, and checks that the second is taken right behind the IRET
//! that ends the first: nothing of what it returns to has run, and all of its flags are there.
//!
//! The first returns to interrupts off and on, with an interrupt waiting, to user mode, to a single step; its IRET is the last
//! instruction of a single step, or of the shadow of STI, or it faults. A bare machine does the same.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a handler with an end of its own, and debug registers")]

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use guests::cpu::{CpuCell, disable_interrupts, halt_until_interrupt, under_levelhead};
use guests::interrupts::{
    Frame, KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA, entry_of, handle, on_interrupt_stack, set_raw_gate,
};
use guests::{check, cmdline, fail, lapic, say, wait};

guests::guest!("nmi", main);

const DEBUG: u8 = 1;
const NMI: u8 = 2;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const DEVICE: u8 = 0x50;

/// RFLAGS.
const ALWAYS_ONE: u64 = 1 << 1;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
/// DR6: a single step.
const BS: u64 = 1 << 14;
/// A selector behind the end of the table.
const NO_SEGMENT: u64 = 0xfff8;
/// An address behind all that is mapped, where no stack is.
const NO_STACK: u64 = 0x1_2345_6780;

/// What the first handler does to the frame it returns by.
static SHAPE: CpuCell<fn(&mut Frame)> = CpuCell::new(|_| ());
static NMIS: AtomicU32 = AtomicU32::new(0);
/// By what the first handler returned, and what the second one found.
static FIRST: CpuCell<Option<Frame>> = CpuCell::new(None);
static SECOND: CpuCell<Option<Frame>> = CpuCell::new(None);
/// What the last debug exception found, in its frame and in DR6, and how many there were; the last fault, and CR2; the last
/// interrupt.
static TRAP: CpuCell<Option<(Frame, u64)>> = CpuCell::new(None);
static TRAPS: AtomicU32 = AtomicU32::new(0);
static FAULT: CpuCell<Option<(Frame, u64)>> = CpuCell::new(None);
static INTERRUPT: CpuCell<Option<Frame>> = CpuCell::new(None);
/// What [`first_with_an_end`] takes before its IRET: the flag TF, or IF by STI, or another stack, which is above 4 GiB.
static END: AtomicU64 = AtomicU64::new(0);

fn main() {
    let rounds = cmdline::number("rounds").unwrap_or(100);
    lapic::init();
    on_interrupt_stack(NMI);
    handle(NMI, nmi);
    handle(DEBUG, trap);
    handle(GENERAL_PROTECTION, fault);
    handle(PAGE_FAULT, fault);
    handle(DEVICE, |frame| {
        check!(SECOND.get().is_some(), "the interrupt went first");
        INTERRUPT.set(Some(*frame));
        lapic::eoi();
    });
    let deeds: [(&str, fn()); 8] = [
        ("interrupts-off", interrupts_off),
        ("interrupts-on", interrupts_on),
        ("user-mode", user_mode),
        ("to-a-single-step", to_a_single_step),
        ("in-a-single-step", in_a_single_step),
        ("in-a-shadow", in_a_shadow),
        ("faulting", faulting),
        ("faulting-on-its-stack", faulting_on_its_stack),
    ];
    for (name, deed) in deeds {
        for _ in 0..rounds {
            deed();
        }
        say!("{name} ok");
    }
}

/// Has one non-maskable interrupt taken in the handler of another, which returns as `shape` says. Their frames.
fn pair(shape: fn(&mut Frame)) -> (Frame, Frame) {
    SHAPE.set(shape);
    NMIS.store(0, Relaxed);
    TRAPS.store(0, Relaxed);
    FIRST.set(None);
    SECOND.set(None);
    TRAP.set(None);
    FAULT.set(None);
    INTERRUPT.set(None);
    let before = dr6();
    lapic::self_nmi();
    wait::a_moment();
    disable_interrupts();
    check!(TRAPS.load(Relaxed) != 0 || dr6() == before, "DR6 became {:#x} by nothing", dr6());
    match (FIRST.get(), SECOND.get()) {
        (Some(first), Some(second)) => (first, second),
        _ => fail!("{} non-maskable interrupts, not 2", NMIS.load(Relaxed)),
    }
}

fn nmi(frame: &mut Frame) {
    match NMIS.load(Relaxed) {
        0 => first(frame),
        1 => {
            NMIS.store(2, Relaxed);
            SECOND.set(Some(*frame));
            // Whatever it came back to goes on in the kernel.
            frame.cs = u64::from(KERNEL_CODE);
            frame.ss = u64::from(KERNEL_DATA);
        }
        _ => fail!("a third non-maskable interrupt"),
    }
}

extern "C" fn first(frame: &mut Frame) {
    NMIS.store(1, Relaxed);
    lapic::self_nmi();
    check!(NMIS.load(Relaxed) == 1, "a non-maskable interrupt in the handler of another");
    (SHAPE.get())(frame);
    FIRST.set(Some(*frame));
}

fn trap(frame: &mut Frame) {
    TRAPS.fetch_add(1, Relaxed);
    TRAP.set(Some((*frame, dr6())));
    clear_dr6();
    frame.rflags &= !TF;
}

/// An IRET that faulted leaves the frame it was to return by unused.
fn fault(frame: &mut Frame) {
    FAULT.set(Some((*frame, cr2())));
    let Some(first) = FIRST.get() else { fail!("exception {} at {:#x}", frame.vector, frame.rip) };
    *frame = Frame { cs: u64::from(KERNEL_CODE), ..first };
}

fn same_place(found: &Frame, returned: &Frame) -> bool {
    (found.rip, found.rsp, found.cs, found.ss, found.rflags)
        == (returned.rip, returned.rsp, returned.cs, returned.ss, returned.rflags)
}

fn interrupts_off() {
    let (first, second) = pair(|_| ());
    check!(same_place(&second, &first), "taken at {:#x}, not {:#x}", second.rip, first.rip);
    check!(TRAPS.load(Relaxed) == 0, "{} debug exceptions", TRAPS.load(Relaxed));
}

/// The interrupt comes behind both: the handlers have interrupts off.
fn interrupts_on() {
    let (first, second) = pair(|frame| {
        lapic::self_ipi(DEVICE);
        frame.rflags |= IF;
    });
    check!(same_place(&second, &first), "taken at {:#x}, not {:#x}", second.rip, first.rip);
    check!(TRAPS.load(Relaxed) == 0, "{} debug exceptions", TRAPS.load(Relaxed));
    check!(INTERRUPT.get().is_some_and(|third| same_place(&third, &first)), "where was the interrupt?");
}

fn user_mode() {
    let (first, second) = pair(|frame| {
        frame.cs = u64::from(USER_CODE);
        frame.ss = u64::from(USER_DATA);
    });
    check!(same_place(&second, &first), "taken at {:#x}, not {:#x}", second.rip, first.rip);
    check!(TRAPS.load(Relaxed) == 0, "{} debug exceptions", TRAPS.load(Relaxed));
}

fn to_a_single_step() {
    let (first, second) = pair(|frame| frame.rflags |= TF);
    check!(same_place(&second, &first), "taken at {:#x}, not {:#x}", second.rip, first.rip);
    let Some((trap, dr6)) = TRAP.get() else { fail!("no single step") };
    check!(TRAPS.load(Relaxed) == 1 && dr6 & BS != 0, "{} single steps, DR6 {dr6:#x}", TRAPS.load(Relaxed));
    check!(trap.rip != first.rip && trap.rflags & TF != 0, "the single step was none: {trap:x?}");
}

/// The trap comes behind the IRET, and the second interrupt before the first instruction of the trap's handler.
fn in_a_single_step() {
    let (first, second) = pair_with_an_end(TF);
    check!(second.rip == entry_of(DEBUG), "taken at {:#x}, not at #DB's handler", second.rip);
    check!(second.rflags & TF == 0, "a handler with the trap flag");
    let Some((trap, dr6)) = TRAP.get() else { fail!("no single step") };
    check!(TRAPS.load(Relaxed) == 1 && dr6 & BS != 0, "{} single steps, DR6 {dr6:#x}", TRAPS.load(Relaxed));
    check!(same_place(&trap, &first), "the single step ended at {:#x}, not {:#x}", trap.rip, first.rip);
}

/// The interrupt that waits is kept out by the shadow, and then by the flags that IRET pops.
fn in_a_shadow() {
    let (first, second) = pair_with_an_end(IF);
    check!(same_place(&second, &first), "taken at {:#x}, not {:#x}", second.rip, first.rip);
    check!(INTERRUPT.get().is_none(), "an interrupt with interrupts off");
    check!(lapic::requested(DEVICE), "the interrupt is lost");
    halt_until_interrupt();
    check!(INTERRUPT.get().is_some(), "the interrupt is lost");
}

/// [`pair`], whose first handler takes `end` directly before its IRET.
fn pair_with_an_end(end: u64) -> (Frame, Frame) {
    END.store(end, Relaxed);
    USUAL.store(entry_of(NMI), Relaxed);
    // SAFETY: it keeps every register and ends with IRETQ.
    unsafe { set_raw_gate(NMI, first_with_an_end as *const () as u64) };
    let frames = pair(if end == IF { |_| lapic::self_ipi(DEVICE) } else { |_| () });
    on_interrupt_stack(NMI);
    frames
}

/// The exception is delivered with the flags of the handler, and the interrupt before the first instruction of its handler. QEMU's
/// own CPU keeps it out until an IRET succeeds.
fn faulting() {
    let (first, second) = pair(|frame| frame.cs = NO_SEGMENT);
    let (fault, _) = faulted(&first, &second);
    check!(fault.vector == u64::from(GENERAL_PROTECTION), "exception {} instead of #GP", fault.vector);
    check!(fault.error_code == NO_SEGMENT, "#GP with error code {:#x}", fault.error_code);
}

fn faulting_on_its_stack() {
    let (first, second) = pair_with_an_end(NO_STACK);
    let (fault, cr2) = faulted(&first, &second);
    check!(fault.vector == u64::from(PAGE_FAULT), "exception {} instead of #PF", fault.vector);
    check!(fault.error_code == 0, "#PF with error code {:#x}", fault.error_code);
    check!((fault.rsp, cr2) == (NO_STACK, NO_STACK), "#PF for {cr2:#x}, stack {:#x}", fault.rsp);
}

fn faulted(first: &Frame, second: &Frame) -> (Frame, u64) {
    let Some((fault, cr2)) = FAULT.get() else { fail!("no exception") };
    check!(fault.rflags & (TF | IF) == 0, "the IRET has flags {:#x}", fault.rflags);
    let expected = if under_levelhead() { entry_of(fault.vector as u8) } else { first.rip };
    check!(second.rip == expected, "taken at {:#x}, not {expected:#x}", second.rip);
    check!(second.rflags & (TF | IF) == 0, "a handler has flags {:#x}", second.rflags);
    check!(TRAPS.load(Relaxed) == 0, "{} debug exceptions", TRAPS.load(Relaxed));
    (fault, cr2)
}

/// The entry of a handler that calls [`first`] and takes what [`END`] says directly before its IRET. The second comes here as
/// well, and goes the usual way.
#[unsafe(naked)]
extern "C" fn first_with_an_end() {
    naked_asm!(
        // The frame that `interrupts.S` would build; the CPU has pushed five words.
        "push 0",
        "push {nmi}",
        "cmp dword ptr [rip + {nmis}], 0",
        "jne 4f",
        "push rax",
        "push rcx",
        "push rdx",
        "push rbx",
        "push rbp",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "cld",
        "mov rdi, rsp",
        "sub rsp, 512",
        "fxsave64 [rsp]",
        "call {first}",
        "fxrstor64 [rsp]",
        "add rsp, 512",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rbp",
        "pop rbx",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "add rsp, 16",
        "cmp dword ptr [rip + {end} + 4], 0",
        "jne 5f",
        "test dword ptr [rip + {end}], {interrupts}",
        "jnz 3f",
        "push {single_step}",
        "popfq",
        "iretq",
        "3:",
        "sti",
        "iretq",
        "5:",
        "mov rsp, [rip + {end}]",
        "iretq",
        "4:",
        "add rsp, 16",
        "jmp qword ptr [rip + {usual}]",
        nmi = const NMI,
        nmis = sym NMIS,
        first = sym first,
        end = sym END,
        usual = sym USUAL,
        interrupts = const IF,
        single_step = const TF | ALWAYS_ONE,
    );
}

/// The usual entry for non-maskable interrupts.
static USUAL: AtomicU64 = AtomicU64::new(0);

fn dr6() -> u64 {
    let value;
    // SAFETY: reads a register that only debug exceptions change.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

fn clear_dr6() {
    // SAFETY: forgets which debug exceptions there were (APM2 13.1.1.3).
    unsafe { asm!("mov dr6, {}", in(reg) 0xffff_0ff0_u64, options(nomem, nostack, preserves_flags)) };
}

fn cr2() -> u64 {
    let value;
    // SAFETY: reads a register that only page faults change.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
