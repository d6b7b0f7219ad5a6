//! Races between an interrupt and whatever may be done to its source meanwhile, on one CPU or on several.
//!
//! One CPU asserts as fast as the device is served, others serve it, and CPU 0 meddles all the while. Each *play* is one kind of
//! meddling, called by its number in docs/intx.md. Whatever meets what: every assertion is served once, and nothing is left
//! in the end. What a play prints does not depend on who was faster.
//!
//! | CPUs | meddles | asserts | serves the first pin | serves the second |
//! | --- | --- | --- | --- | --- |
//! | 1 | 0 | 0 | 0 | 0 |
//! | 2 | 0 | 1 | 1 | 1 |
//! | 3 and more | 0 | 1 | the last | the one before |
//!
//! Command line: `rounds=N` (200) assertions in each play; `cpus=N` (1): how many CPUs there must be.
#![no_std]
#![no_main]

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use guests::cpu::{CpuCell, disable_interrupts, enable_interrupts};
use guests::edu::Edu;
use guests::hypercall::{Interface, Source};
use guests::interrupts::{Frame, Handler, handle};
use guests::ioapic::{self, Pin};
use guests::{check, cmdline, fail, lapic, say, smp, wait};

guests::guest!("races", main);

/// The vectors of the two pins that the notifier leads to.
const FIRST: u8 = 0x51;
const SECOND: u8 = 0x61;
const BIT: u32 = 1 << 4;
/// Command register and its Bus Master bit (PCI 3.0 6.2.2).
const COMMAND: u8 = 0x04;
const BUS_MASTER: u16 = 1 << 2;

/// What plays and handlers play with.
#[derive(Clone, Copy)]
struct Stage {
    edu: Edu,
    source: Source,
    /// The pin that the notifier leads to, with its number, and another one.
    first: (Pin, u8),
    second: u8,
    /// The CPU that serves the first pin.
    server: u32,
}

static STAGE: CpuCell<Option<Stage>> = CpuCell::new(None);

/// Entries of the handlers, those that found the device asserting and served it, and those that found it quiet.
static ENTRIES: AtomicU32 = AtomicU32::new(0);
static SERVED: AtomicU32 = AtomicU32::new(0);
static QUIET: AtomicU32 = AtomicU32::new(0);
/// A handler left the rest of its work to whoever meddles.
static WORK: AtomicBool = AtomicBool::new(false);
/// How many assertions are to be made, and whether a message of the same vector goes before each; whether they were.
static ORDERED: AtomicU32 = AtomicU32::new(0);
static MESSAGES: AtomicBool = AtomicBool::new(false);
static DONE: AtomicBool = AtomicBool::new(false);

/// How often is meddled with an assertion; after so many times everything is as it was.
const MEDDLE: u32 = 12;

/// One kind of meddling.
struct Play {
    /// Its number, and what it is.
    name: &'static str,
    /// Done again and again, and told how often it was. Returns whether it did anything that is to be counted.
    meddle: fn(Stage, u32) -> bool,
    handler: Handler,
    /// How often a handler is entered for each assertion, where that does not depend on who is faster.
    entries: Option<u32>,
}

const PLAYS: [Play; 6] = [
    Play { name: "T1 notifier replaced", meddle: replace, handler: serve, entries: None },
    Play { name: "T3 source masked", meddle: mask, handler: serve, entries: Some(1) },
    Play { name: "T4 Command written", meddle: command, handler: serve, entries: Some(1) },
    Play { name: "T6 served in two halves", meddle: finish, handler: begin, entries: Some(1) },
    Play { name: "T10 pin programmed edge-triggered", meddle: nothing, handler: serve, entries: Some(1) },
    Play { name: "T15 message of the same vector", meddle: nothing, handler: serve, entries: Some(2) },
];

fn main() {
    let rounds = cmdline::number("rounds").unwrap_or(200);
    lapic::init();
    ioapic::init();
    let cpus = smp::count();
    let expected = cmdline::number("cpus").unwrap_or(1);
    check!(cpus == expected, "CPUID shows {cpus} CPUs, not {expected}");
    let Some(interface) = Interface::find("all") else { return };
    let edu = Edu::find();
    let source = Source::of(&interface, edu.function);
    let (first, server) = (source.info().virtual_pin, cpus - 1);
    let second = (first + 1) % 24;
    let stage = Stage { edu, source, first: (Pin::connect(first, FIRST, server), first), second, server };
    STAGE.set(Some(stage));
    Pin::connect(second, SECOND, if cpus > 2 { server - 1 } else { server });
    (1..cpus).for_each(|cpu| smp::start(cpu, if cpu == 1 { assert_and_attend } else { attend }));
    enable_interrupts();
    for play in &PLAYS {
        perform(play, stage, cpus, rounds);
    }
    disable_interrupts();
    source.ledger().demand_balance_at_rest();
    say!("ledger ok");
}

/// Plays once, and demands what must come of it.
fn perform(play: &Play, stage: Stage, cpus: u32, rounds: u32) {
    let Play { name, meddle, handler, entries } = play;
    for counter in [&ENTRIES, &SERVED, &QUIET] {
        counter.store(0, SeqCst);
    }
    handle(FIRST, *handler);
    handle(SECOND, *handler);
    let (pin, number) = stage.first;
    if name.starts_with("T10 ") {
        pin.mask();
        Pin::connect_edge_triggered(number, FIRST, stage.server);
    }
    MESSAGES.store(name.starts_with("T15 "), SeqCst);
    let before = stage.source.ledger();
    DONE.store(false, SeqCst);
    ORDERED.store(rounds, SeqCst);
    let mut times = 0;
    let mut meddle_on = || {
        // As many times at most for each assertion, so that the work is bounded whoever is faster.
        if times < MEDDLE * (SERVED.load(SeqCst) + 1) {
            times += u32::from(meddle(stage, times));
        }
        // An emulator with one thread turns to the other CPUs here.
        spin_loop();
    };
    if cpus == 1 {
        assert_all(stage, meddle_on);
    } else {
        while !DONE.load(SeqCst) {
            meddle_on();
        }
    }
    stage.source.notify_pin(number);
    stage.source.unmask();
    stage.edu.function.set_interrupt_disable(false);
    if name.starts_with("T10 ") {
        Pin::connect(number, FIRST, stage.server);
    }
    wait::a_while();

    let (served, entered) = (SERVED.load(SeqCst), ENTRIES.load(SeqCst));
    check!(served == rounds, "{name}: {rounds} assertions, {served} served");
    check!(stage.edu.interrupt_status() == 0, "{name}: the device still asserts");
    let after = stage.source.ledger();
    match entries {
        Some(entries) => {
            check!(entered == rounds * entries, "{name}: {entered} entries for {rounds} assertions");
            let (delivered, completed) =
                (after.delivered - before.delivered, after.completed_eoi - before.completed_eoi);
            let expected = u64::from(rounds);
            check!(
                (delivered, completed) == (expected, expected),
                "{name}: {delivered} delivered, {completed} completed, not {expected} each"
            );
            say!(
                "{name}: {served} of {rounds} served, {entered} entries, {delivered} delivered, {completed} completed"
            );
        }
        None => {
            let made = after.notifier_replacements - before.notifier_replacements;
            let expected = u64::from(times) + 1;
            check!(made == expected, "{name}: {expected} replacements made, {made} in the ledger");
            last_assertion(name, stage);
            let registrations = after.handler_registrations;
            say!("{name}: {served} of {rounds} served, and the last one; {registrations} registration");
        }
    }
}

/// An assertion that meets no notifier reaches the next one, without help.
fn last_assertion(name: &str, stage: Stage) {
    let before = SERVED.load(SeqCst);
    stage.source.clear_notifier();
    stage.edu.raise(BIT);
    wait::a_while();
    check!(SERVED.load(SeqCst) == before, "{name}: served without a notifier");
    stage.source.notify_pin(stage.first.1);
    check!(wait::yielding(|| SERVED.load(SeqCst) == before + 1), "{name}: the last assertion is lost");
}

// CPUs.

/// Serves what is sent to it.
fn attend(_: u32) -> ! {
    enable_interrupts();
    loop {
        spin_loop();
    }
}

/// Serves, and asserts as often as is ordered.
fn assert_and_attend(_: u32) -> ! {
    enable_interrupts();
    loop {
        spin_loop();
        if ORDERED.load(SeqCst) > 0 {
            assert_all(stage(), spin_loop);
        }
    }
}

/// Asserts as often as is ordered, each time when the last one was served. `meanwhile` is done as long as it is not.
fn assert_all(stage: Stage, mut meanwhile: impl FnMut()) {
    let rounds = ORDERED.swap(0, SeqCst);
    for round in 1..=rounds {
        let mut until = |counter: &AtomicU32, what: &str| {
            let came = wait::until(|| {
                meanwhile();
                counter.load(SeqCst) == round
            });
            check!(came, "{what} {round} of {rounds} is lost");
        };
        if MESSAGES.load(SeqCst) {
            lapic::send(stage.server, lapic::FIXED | u32::from(FIRST));
            until(&QUIET, "message");
        }
        stage.edu.raise(BIT);
        until(&SERVED, "assertion");
    }
    DONE.store(true, SeqCst);
}

// Handlers.

fn stage() -> Stage {
    match STAGE.get() {
        Some(stage) => stage,
        None => fail!("an interrupt before the stage was set"),
    }
}

fn serve(_: &mut Frame) {
    let edu = stage().edu;
    ENTRIES.fetch_add(1, SeqCst);
    let counter = if edu.interrupt_status() == 0 { &QUIET } else { &SERVED };
    edu.acknowledge(BIT);
    lapic::eoi();
    counter.fetch_add(1, SeqCst);
}

/// Holds the pin back, and leaves the device to [`finish`].
fn begin(_: &mut Frame) {
    ENTRIES.fetch_add(1, SeqCst);
    stage().first.0.mask();
    lapic::eoi();
    WORK.store(true, SeqCst);
}

// Meddling.

fn nothing(_: Stage, _: u32) -> bool {
    false
}

/// To the other pin, to nowhere, and back.
fn replace(stage: Stage, times: u32) -> bool {
    match times % 3 {
        0 => stage.source.notify_pin(stage.second),
        1 => stage.source.clear_notifier(),
        _ => stage.source.notify_pin(stage.first.1),
    }
    true
}

fn mask(stage: Stage, times: u32) -> bool {
    if times.is_multiple_of(2) {
        stage.source.mask()
    } else {
        stage.source.unmask()
    }
    true
}

/// Reads Command and writes it back with another Bus Master, and now and then with another Interrupt Disable.
fn command(stage: Stage, times: u32) -> bool {
    let function = stage.edu.function;
    let command = function.read16(COMMAND);
    function.write16(COMMAND, command ^ BUS_MASTER);
    if times % 4 < 2 {
        function.set_interrupt_disable(times.is_multiple_of(2));
    }
    true
}

/// The rest of what [`begin`] began.
fn finish(stage: Stage, _: u32) -> bool {
    if WORK.swap(false, SeqCst) {
        stage.edu.acknowledge(BIT);
        stage.first.0.unmask();
        SERVED.fetch_add(1, SeqCst);
    }
    false
}
