//! Raises a real device's level-triggered interrupt in every way a driver may meet it, and counts.
//!
//! A *round* raises the line of QEMU's `edu` device and waits until it has been served. The modes differ in what
//! the program does at the time, and in what the interrupt handler does before its EOI; each says how many times
//! the handler must be entered per round, and every count must come out exactly. After each mode nothing may be
//! left over: no pending vector, no asserted line, no late interrupt.
//!
//! Then the local APIC's timer and self-IPI, and the register accesses of `pci-testdev`. On a bare machine the
//! same program shows what right looks like.
//!
//! Command line: `rounds=N` (1000) per mode.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use guests::cpu::{CpuCell, disable_interrupts, enable_interrupts, halt_until_interrupt};
use guests::cpu::{has_tsc_deadline, set_timestamp, timestamp};
use guests::edu::{Edu, FACTORIAL_DONE};
use guests::hypercall::{Interface, Source};
use guests::interrupts::{Frame, Handler, handle};
use guests::ioapic::Pin;
use guests::{check, cmdline, fail, ioapic, lapic, say, testdev, wait};

guests::guest!("echo", main);

/// The vector of the device, and those of the local APIC's own interrupts.
const DEVICE: u8 = 0x51;
const TIMER: u8 = 0x61;
const IPI: u8 = 0x71;
const WATCHDOG: u8 = 0xe1;

/// The interrupt status bit that rounds raise.
const BIT: u32 = 1 << 4;

/// How often the handlers were entered since the mode began.
static ENTRIES: AtomicU32 = AtomicU32::new(0);

/// When a deadline's interrupt was last taken, by the TSC.
static TOOK_AT: AtomicU64 = AtomicU64::new(0);

/// How often they were entered in all modes before.
static SERVED: AtomicU64 = AtomicU64::new(0);

/// What the handlers need of the machine.
static DEVICE_UNDER_TEST: CpuCell<Option<(Edu, Pin)>> = CpuCell::new(None);

/// A way to raise the line and to serve it.
struct Mode {
    name: &'static str,
    /// Raises the line once; interrupts are on, and on again at the end.
    raise: fn(Edu, Pin),
    handler: Handler,
    /// Entries of the handler per round.
    entries: u32,
    /// What the program does itself after the handler.
    finish: fn(Edu, Pin),
}

const NOTHING: fn(Edu, Pin) = |_, _| {};

const MODES: [Mode; 10] = [
    Mode { name: "busy", raise: raise_busy, handler: acknowledge, entries: 1, finish: NOTHING },
    Mode { name: "halted", raise: raise_and_halt, handler: acknowledge, entries: 1, finish: NOTHING },
    Mode {
        name: "asynchronous",
        raise: halt_first,
        handler: acknowledge,
        entries: 1,
        finish: check_factorial,
    },
    Mode {
        name: "reassert",
        raise: raise_busy,
        handler: acknowledge_and_raise_again,
        entries: 2,
        finish: NOTHING,
    },
    Mode {
        name: "oneshot",
        raise: raise_busy,
        handler: mask_first,
        entries: 1,
        finish: acknowledge_and_unmask,
    },
    Mode { name: "level-held", raise: raise_busy, handler: forget_twice, entries: 3, finish: NOTHING },
    Mode { name: "rte-masked", raise: raise_masked, handler: acknowledge, entries: 1, finish: NOTHING },
    Mode { name: "disintx", raise: raise_disabled, handler: acknowledge, entries: 1, finish: NOTHING },
    Mode { name: "priority", raise: raise_below_priority, handler: acknowledge, entries: 1, finish: NOTHING },
    Mode { name: "withdrawn", raise: raise_and_withdraw, handler: eoi_only, entries: 0, finish: NOTHING },
];

fn main() {
    let rounds = cmdline::number("rounds").unwrap_or(1000);
    let mode = lapic::init();
    let edu = Edu::find();
    let pin = edu.connect(DEVICE);
    DEVICE_UNDER_TEST.set(Some((edu, pin)));
    handle(WATCHDOG, |_| fail!("nothing woke the CPU"));
    let apic = mode.name();
    say!(
        "edu in slot {}, GSI {}, {apic}, IO-APIC {:#x}",
        edu.function.slot(),
        edu.function.gsi(),
        ioapic::version()
    );

    enable_interrupts();
    for mode in &MODES {
        run(mode, edu, pin, rounds);
    }
    timer_once(rounds.min(100));
    timer_periodic(rounds.min(100));
    timer_on_time();
    timer_deadline(rounds.min(100));
    self_ipi(rounds);
    disable_interrupts();

    testdev::exercise();
    check_ledger(edu);
    replace_under_fire(edu, rounds);
}

/// Runs all rounds of a mode and demands the exact counts.
fn run(mode: &Mode, edu: Edu, pin: Pin, rounds: u32) {
    ENTRIES.store(0, Relaxed);
    handle(DEVICE, mode.handler);
    for round in 1..=rounds {
        (mode.raise)(edu, pin);
        let expected = round * mode.entries;
        let reached = wait::until(|| ENTRIES.load(Relaxed) >= expected);
        let entries = ENTRIES.load(Relaxed);
        check!(reached, "{}: round {round}: only {entries} of {expected} interrupts", mode.name);
        (mode.finish)(edu, pin);
        let entries = ENTRIES.load(Relaxed);
        check!(entries == expected, "{}: round {round}: {entries} interrupts, not {expected}", mode.name);
    }
    lapic::stop_timer();
    check_silence(mode, edu, pin, rounds * mode.entries);
    SERVED.fetch_add(u64::from(rounds * mode.entries), Relaxed);
    say!("{} {rounds}/{rounds} ok", mode.name);
}

/// Demands that the mode left nothing behind.
fn check_silence(mode: &Mode, edu: Edu, pin: Pin, expected: u32) {
    wait::a_while();
    let (name, entries) = (mode.name, ENTRIES.load(Relaxed));
    check!(entries == expected, "{name}: {entries} interrupts in the end, not {expected}");
    check!(edu.interrupt_status() == 0, "{name}: the device still asserts");
    check!(!edu.function.interrupt_status(), "{name}: PCI Status still shows an interrupt");
    check!(!lapic::requested(DEVICE), "{name}: the vector is still requested");
    check!(!lapic::in_service(DEVICE), "{name}: the vector is still in service");
    check!(!pin.remote_irr(), "{name}: the IO-APIC still waits for an EOI");
}

// Ways to raise the line.

fn raise_busy(edu: Edu, _: Pin) {
    edu.raise(BIT);
}

/// Goes to sleep with the line already asserted: the interrupt comes between HLT and the next instruction.
fn raise_and_halt(edu: Edu, _: Pin) {
    disable_interrupts();
    start_watchdog();
    edu.raise(BIT);
    halt_until_interrupt();
    enable_interrupts();
}

/// Sleeps until a thread of the emulator raises the line.
///
/// Without the watchdog: when QEMU counts instructions, time jumps to the next timer as soon as the CPU sleeps,
/// and the thread would always be late.
fn halt_first(edu: Edu, _: Pin) {
    disable_interrupts();
    let before = ENTRIES.load(Relaxed);
    edu.start_factorial(FACTORIAL_OF);
    while ENTRIES.load(Relaxed) == before {
        halt_until_interrupt();
    }
    enable_interrupts();
}

/// The line rises behind the mask of its redirection entry, and must come through with the unmasking.
fn raise_masked(edu: Edu, pin: Pin) {
    pin.mask();
    let before = ENTRIES.load(Relaxed);
    edu.raise(BIT);
    wait::a_moment();
    check!(ENTRIES.load(Relaxed) == before, "rte-masked: an interrupt came through the mask");
    pin.unmask();
}

/// The device wants to interrupt but may not, and must when it may.
fn raise_disabled(edu: Edu, _: Pin) {
    edu.function.set_interrupt_disable(true);
    let before = ENTRIES.load(Relaxed);
    edu.raise(BIT);
    wait::a_moment();
    check!(edu.function.interrupt_status(), "disintx: PCI Status does not show the interrupt");
    check!(ENTRIES.load(Relaxed) == before, "disintx: an interrupt came although it is disabled");
    edu.function.set_interrupt_disable(false);
}

/// The task priority holds the vector back until it is lowered.
fn raise_below_priority(edu: Edu, _: Pin) {
    lapic::set_task_priority(DEVICE);
    let before = ENTRIES.load(Relaxed);
    edu.raise(BIT);
    wait::a_moment();
    check!(ENTRIES.load(Relaxed) == before, "priority: an interrupt came below the task priority");
    check!(lapic::requested(DEVICE), "priority: the vector is not requested");
    check!(lapic::level_triggered(DEVICE), "priority: the vector is not level-triggered");
    lapic::set_task_priority(0);
}

/// The line rises and falls behind the mask: a level leaves no trace.
fn raise_and_withdraw(edu: Edu, pin: Pin) {
    pin.mask();
    edu.raise(BIT);
    edu.acknowledge(BIT);
    pin.unmask();
}

// Ways to serve it.

fn device() -> (Edu, Pin) {
    match DEVICE_UNDER_TEST.get() {
        Some(device) => device,
        None => fail!("an interrupt before the device was connected"),
    }
}

/// Counts the entry and demands that the device is the reason for it.
fn enter(edu: Edu) -> u32 {
    ENTRIES.fetch_add(1, Relaxed);
    let status = edu.interrupt_status();
    check!(status == BIT || status == FACTORIAL_DONE, "interrupt with device status {status:#x}");
    check!(lapic::in_service(DEVICE), "interrupt without its vector in service");
    status
}

fn acknowledge(_: &mut Frame) {
    let (edu, _) = device();
    edu.acknowledge(enter(edu));
    lapic::eoi();
}

/// Every odd entry raises the line again before its EOI: a second interrupt must follow the EOI.
fn acknowledge_and_raise_again(_: &mut Frame) {
    let (edu, _) = device();
    edu.acknowledge(enter(edu));
    if ENTRIES.load(Relaxed) % 2 == 1 {
        edu.raise(BIT);
    }
    lapic::eoi();
}

/// As a threaded driver does: mask, EOI, and leave the device to the program.
fn mask_first(_: &mut Frame) {
    let (edu, pin) = device();
    enter(edu);
    pin.mask();
    lapic::eoi();
}

fn acknowledge_and_unmask(edu: Edu, pin: Pin) {
    edu.acknowledge(BIT);
    pin.unmask();
}

/// Two EOIs of three leave the line asserted: the interrupt must come back each time.
fn forget_twice(_: &mut Frame) {
    let (edu, _) = device();
    let status = enter(edu);
    if ENTRIES.load(Relaxed).is_multiple_of(3) {
        edu.acknowledge(status);
    }
    lapic::eoi();
}

fn eoi_only(_: &mut Frame) {
    ENTRIES.fetch_add(1, Relaxed);
    lapic::eoi();
}

const FACTORIAL_OF: u32 = 12;

fn check_factorial(edu: Edu, _: Pin) {
    let result = edu.factorial();
    check!(result == 479_001_600, "asynchronous: {FACTORIAL_OF}! is not {result}");
}

// The local APIC's own interrupts.

/// Ends the guest if the CPU sleeps for some ten seconds.
fn start_watchdog() {
    lapic::start_timer_once(WATCHDOG, 1 << 30);
}

fn count(_: &mut Frame) {
    ENTRIES.fetch_add(1, Relaxed);
    lapic::eoi();
}

fn timer_once(rounds: u32) {
    ENTRIES.store(0, Relaxed);
    handle(TIMER, count);
    for round in 1..=rounds {
        lapic::start_timer_once(TIMER, 5000);
        check!(wait::until(|| ENTRIES.load(Relaxed) >= round), "timer-once: round {round}: no interrupt");
        check!(lapic::timer_count() == 0, "timer-once: it still counts after its interrupt");
    }
    wait::a_while();
    let entries = ENTRIES.load(Relaxed);
    check!(entries == rounds, "timer-once: {entries} interrupts, not {rounds}");
    say!("timer-once {rounds}/{rounds} ok");
}

fn timer_periodic(rounds: u32) {
    ENTRIES.store(0, Relaxed);
    disable_interrupts();
    // Long enough for the handler to end before the next one is due, also where a CPU is emulated slowly: else nothing but
    // the handler would ever run.
    lapic::start_timer_periodic(TIMER, 100_000);
    while ENTRIES.load(Relaxed) < rounds {
        halt_until_interrupt();
    }
    lapic::stop_timer();
    enable_interrupts();
    // One may have been on its way when the timer was stopped; after that, silence.
    wait::a_moment();
    let entries = ENTRIES.load(Relaxed);
    wait::a_while();
    let late = ENTRIES.load(Relaxed) - entries;
    check!(late == 0, "timer-periodic: {late} interrupts after it was stopped");
    say!("timer-periodic {rounds}/{rounds} ok");
}

/// The interrupt must come when the count ends, by the CPU's own clock. Not asked of a guest that shares one emulating
/// thread with others (`clock=shared`): there the clock goes on while another guest runs.
fn timer_on_time() {
    if cmdline::value("clock") == Some("shared") {
        say!("timer-on-time skipped: the clock is shared");
        return;
    }
    const COUNT: u32 = 200_000;
    const FEWEST: u32 = 10;
    const MOST: u32 = 2_000;
    handle(TIMER, count);
    let timed = |round: fn()| {
        let start = timestamp();
        round();
        timestamp() - start
    };
    // The quickest of several: a machine that is busy elsewhere makes single rounds late, and a very busy one most.
    let (mut interrupt, mut counted) = (u64::MAX, u64::MAX);
    for round in 1.. {
        interrupt = interrupt.min(timed(|| {
            ENTRIES.store(0, Relaxed);
            lapic::start_timer_once(TIMER, COUNT);
            check!(wait::until(|| ENTRIES.load(Relaxed) > 0), "timer-on-time: no interrupt");
        }));
        counted = counted.min(timed(|| {
            lapic::start_timer_once(TIMER, 4 * COUNT);
            check!(wait::until(|| lapic::timer_count() <= 3 * COUNT), "timer-on-time: it does not count");
            lapic::stop_timer();
        }));
        if round >= FEWEST && interrupt > counted / 2 && interrupt < counted + counted / 2 {
            break;
        }
        check!(
            round < MOST,
            "timer-on-time: the interrupt came after {interrupt} ticks, the count ended after {counted}"
        );
    }
    say!("timer-on-time ok");
}

fn note_the_time(frame: &mut Frame) {
    TOOK_AT.store(timestamp(), Relaxed);
    count(frame);
}

/// The interrupt must come when the TSC has reached what was written, and never before; at once where it has already, or is
/// led past it by the program itself.
fn timer_deadline(rounds: u32) {
    const FAR: u64 = 1 << 50;
    if !has_tsc_deadline() {
        say!("timer-deadline skipped: this CPU has none");
        return;
    }
    ENTRIES.store(0, Relaxed);
    handle(TIMER, note_the_time);
    let wait_for = |round, deadline| {
        check!(wait::until(|| ENTRIES.load(Relaxed) >= round), "timer-deadline: round {round}: no interrupt");
        let took_at = TOOK_AT.load(Relaxed);
        check!(took_at >= deadline, "timer-deadline: {deadline} was met at {took_at}");
        check!(lapic::timer_deadline() == 0, "timer-deadline: it still waits after its interrupt");
    };
    for round in 1..=rounds {
        let deadline = timestamp() + u64::from(round % 4) * 50_000;
        lapic::start_timer_at(TIMER, deadline);
        wait_for(round, deadline);
    }
    let deadline = timestamp() + FAR;
    lapic::start_timer_at(TIMER, deadline);
    wait::a_while();
    let entries = ENTRIES.load(Relaxed);
    check!(entries == rounds, "timer-deadline: {entries} interrupts, not {rounds}");
    check!(lapic::timer_deadline() == deadline, "timer-deadline: it waits for something else");
    set_timestamp(deadline);
    wait_for(rounds + 1, deadline);
    set_timestamp(timestamp() - FAR);
    lapic::stop_timer();
    say!("timer-deadline {rounds}/{rounds} ok");
}

fn self_ipi(rounds: u32) {
    ENTRIES.store(0, Relaxed);
    handle(IPI, count);
    for round in 1..=rounds {
        lapic::self_ipi(IPI);
        check!(wait::until(|| ENTRIES.load(Relaxed) >= round), "self-ipi: round {round}: no interrupt");
    }
    wait::a_while();
    let entries = ENTRIES.load(Relaxed);
    check!(entries == rounds, "self-ipi: {entries} interrupts, not {rounds}");
    say!("self-ipi {rounds}/{rounds} ok");
}

/// Demands that the hypervisor counted what the program counted: every assertion one delivery, every delivery
/// completed by its EOI, and nothing that the program has not seen.
fn check_ledger(edu: Edu) {
    let Some(interface) = Interface::find("ledger") else { return };
    let ledger = Source::of(&interface, edu.function).ledger();
    ledger.demand_balance_at_rest();
    let served = SERVED.load(Relaxed);
    // Behind a function gate a level that is still asserted at the EOI is delivered again without the wire.
    let accepted = ledger.accepted_wire + ledger.accepted_replay;
    let counted = (accepted, ledger.delivered, ledger.completed_eoi);
    check!(counted == (served, served, served), "{served} interrupts served, but {ledger:?}");
    say!("ledger {served}/{served} ok");
}

/// Replaces the notifier again and again while a thread of the emulator raises the line: no interrupt may be lost or come
/// twice, and the physical handler stays the one that was installed at assignment. `cve-2024-26812` takes the notifier
/// away as well.
fn replace_under_fire(edu: Edu, rounds: u32) {
    let Some(interface) = Interface::find("replaced") else { return };
    let source = Source::of(&interface, edu.function);
    handle(DEVICE, acknowledge);
    ENTRIES.store(0, Relaxed);
    enable_interrupts();
    let mut raises = 0;
    for _ in 0..rounds {
        if ENTRIES.load(Relaxed) == raises {
            edu.start_factorial(FACTORIAL_OF);
            raises += 1;
        }
        source.notify_pin(edu.function.gsi());
    }
    let served = wait::until(|| ENTRIES.load(Relaxed) >= raises);
    wait::a_while();
    disable_interrupts();
    let entries = ENTRIES.load(Relaxed);
    check!(served && entries == raises, "replaced: {entries} interrupts of {raises} raises");
    let ledger = source.ledger();
    ledger.demand_balance_at_rest();
    let registrations = ledger.handler_registrations;
    check!(registrations == 1, "replaced: {registrations} registrations of the physical handler");
    say!("replaced {rounds}/{rounds} ok under {raises} interrupts, 1 handler registration");
}
