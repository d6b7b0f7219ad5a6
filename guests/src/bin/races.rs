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
//! Three devices take part: one that has a line for itself, and two that share one, of which the second only loses its notifier (T2).
//!
//! Command line: `rounds=N` (200) assertions in each play; `cpus=N` (1): how many CPUs there must be; `tell=N`: in the end the
//! second source of partition N is triggered, which takes `control = true`.
#![no_std]
#![no_main]

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};

use guests::cpu::{CpuCell, disable_interrupts, enable_interrupts};
use guests::edu::Edu;
use guests::hypercall::{Interface, Source};
use guests::interrupts::{Frame, Handler, handle};
use guests::ioapic::{self, Pin};
use guests::{check, cmdline, fail, lapic, say, smp, wait};

guests::guest!("races", main);

/// The vectors of the two pins that the notifier leads to, and of the second device of a shared line.
const FIRST: u8 = 0x51;
const SECOND: u8 = 0x61;
const NEIGHBOUR: u8 = 0x71;
/// What the first pin's entry is rewritten to.
const REWRITTEN: u8 = 0x52;
/// A message that no CPU takes before any of these.
const AFTERWARDS: u8 = 0x41;
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

/// The device that has a line for itself, the one that is served on a shared line, and the other one there.
static STAGES: [CpuCell<Option<Stage>>; 3] = [const { CpuCell::new(None) }; 3];
const ALONE: usize = 0;
const SHARING: usize = 1;
const OTHER: usize = 2;
/// Which of the first two is raced for.
static RACED_FOR: AtomicUsize = AtomicUsize::new(ALONE);

/// Entries of the handlers, those that found the device asserting and served it, and those that found it quiet.
static ENTRIES: AtomicU32 = AtomicU32::new(0);
static SERVED: AtomicU32 = AtomicU32::new(0);
static QUIET: AtomicU32 = AtomicU32::new(0);
/// A handler looks at the device and quiets it.
static SERVING: AtomicBool = AtomicBool::new(false);
/// How often the other device on a shared line was raised, and served; and how often the first was when the other had no notifier.
static OTHERS_RAISED: AtomicU32 = AtomicU32::new(0);
static OTHERS_SERVED: AtomicU32 = AtomicU32::new(0);
static SERVED_BEFORE: AtomicU32 = AtomicU32::new(0);
/// How many CPUs have nothing to handle any more.
static NOTICED: AtomicU32 = AtomicU32::new(0);
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
    /// What is counted exactly.
    count: Count,
}

/// What does not depend on who is faster, beside that every assertion is served once.
#[derive(Clone, Copy)]
enum Count {
    /// A handler is entered so often for each assertion, of which each is one delivery with one completion.
    Entries(u32),
    /// The replacements that the ledger has; and an assertion that meets no notifier reaches the next one.
    Replacements,
    /// Each delivery is completed, though it may be before its time, and followed by another then.
    Completions,
}

const PLAYS: [Play; 9] = [
    Play { name: "T1 notifier replaced", meddle: replace, handler: serve, count: Count::Replacements },
    Play { name: "T2 sharer without a notifier", meddle: deprive, handler: serve, count: Count::Entries(1) },
    Play { name: "T3 source masked", meddle: mask, handler: serve, count: Count::Entries(1) },
    Play { name: "T4 Command written", meddle: command, handler: serve, count: Count::Entries(1) },
    Play { name: "T6 served in two halves", meddle: finish, handler: begin, count: Count::Entries(1) },
    Play { name: "T8 EOIs in excess", meddle: complete, handler: serve, count: Count::Completions },
    Play { name: "T9 entry rewritten in service", meddle: rewrite, handler: serve, count: Count::Entries(1) },
    Play {
        name: "T10 pin programmed edge-triggered",
        meddle: nothing,
        handler: serve,
        count: Count::Entries(1),
    },
    Play {
        name: "T15 message of the same vector",
        meddle: nothing,
        handler: serve,
        count: Count::Entries(2),
    },
];

fn main() {
    let rounds = cmdline::number("rounds").unwrap_or(200);
    lapic::init();
    ioapic::init();
    let cpus = smp::count();
    let expected = cmdline::number("cpus").unwrap_or(1);
    check!(cpus == expected, "CPUID shows {cpus} CPUs, not {expected}");
    let Some(interface) = Interface::find("all") else { return };
    let server = cpus - 1;
    let another = if cpus > 2 { server - 1 } else { server };
    let mut pins = 0;
    for ((place, vector), edu) in STAGES.iter().zip([FIRST, FIRST, NEIGHBOUR]).zip(Edu::all()) {
        let source = Source::of(&interface, edu.function);
        let first = source.info().virtual_pin;
        // A pin that is no device's.
        let second = 10 + pins;
        pins += 1;
        let pin = Pin::connect(first, vector, if vector == FIRST { server } else { another });
        place.set(Some(Stage { edu, source, first: (pin, first), second, server }));
        Pin::connect(second, SECOND, another);
    }
    check!(STAGES.iter().all(|stage| stage.get().is_some()), "{pins} edu devices, not {}", STAGES.len());
    handle(NEIGHBOUR, serve_other);
    handle(REWRITTEN, serve);
    handle(AFTERWARDS, notice);
    (1..cpus).for_each(|cpu| smp::start(cpu, if cpu == 1 { assert_and_attend } else { attend }));
    enable_interrupts();
    for play in &PLAYS {
        RACED_FOR.store(if play.name.starts_with("T2 ") { SHARING } else { ALONE }, SeqCst);
        perform(play, stage(), cpus, rounds);
    }
    disable_interrupts();
    STAGES.iter().flat_map(CpuCell::get).for_each(|stage| stage.source.ledger().demand_balance_at_rest());
    say!("ledger ok");
    if let Some(partition) = cmdline::number("tell") {
        Source((u64::from(partition) + 1) << 8 | 1).trigger();
    }
}

/// Plays once, and demands what must come of it.
fn perform(play: &Play, stage: Stage, cpus: u32, rounds: u32) {
    let Play { name, meddle, handler, count } = play;
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
    // What another CPU was interrupted for may be on its way there, for nothing by now.
    check!(wait::yielding(|| !stage.source.info().in_service), "{name}: a delivery is not completed");
    stage.source.notify_pin(number);
    stage.source.unmask();
    stage.edu.function.set_interrupt_disable(false);
    if name.starts_with("T9 ") || name.starts_with("T10 ") {
        Pin::connect(number, FIRST, stage.server);
    }
    if name.starts_with("T2 ") {
        give_back(name);
    }
    drain(cpus);

    let (served, entered) = (SERVED.load(SeqCst), ENTRIES.load(SeqCst));
    check!(served == rounds, "{name}: {rounds} assertions, {served} served");
    check!(stage.edu.interrupt_status() == 0, "{name}: the device still asserts");
    let after = stage.source.ledger();
    match *count {
        Count::Entries(entries) => {
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
        Count::Completions => {
            let (delivered, completed) =
                (after.delivered - before.delivered, after.completed_eoi - before.completed_eoi);
            let enough = delivered == completed && delivered >= u64::from(rounds);
            check!(enough, "{name}: {delivered} delivered, {completed} completed");
            say!("{name}: {served} of {rounds} served, and every delivery completed");
        }
        Count::Replacements => {
            let made = after.notifier_replacements - before.notifier_replacements;
            let expected = u64::from(times) + 1;
            check!(made == expected, "{name}: {expected} replacements made, {made} in the ledger");
            last_assertion(name, stage);
            let registrations = after.handler_registrations;
            say!("{name}: {served} of {rounds} served, and the last one; {registrations} registration");
        }
    }
}

/// No handler is on its way when this returns: a CPU takes what it was sent from the highest to the lowest, and each has taken the lowest.
fn drain(cpus: u32) {
    NOTICED.store(0, SeqCst);
    (0..cpus).for_each(|cpu| lapic::send(cpu, lapic::FIXED | u32::from(AFTERWARDS)));
    check!(wait::yielding(|| NOTICED.load(SeqCst) == cpus), "a CPU takes no message");
}

/// The other device on the line has its notifier again, and each of its assertions is served.
fn give_back(name: &str) {
    let (other, raised) = (stage_of(OTHER), OTHERS_RAISED.load(SeqCst));
    other.source.notify_pin(other.first.1);
    let served = wait::yielding(|| OTHERS_SERVED.load(SeqCst) == raised && !other.source.info().in_service);
    check!(served && raised > 0, "{name}: of the other device's {raised} assertions not all are served");
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
            if !came {
                let (entries, count, status) =
                    (ENTRIES.load(SeqCst), counter.load(SeqCst), stage.edu.interrupt_status());
                let info = stage.source.info();
                fail!(
                    "{what} {round} of {rounds} is lost: {count} in {entries} entries, status {status:#x}, {info:?}"
                );
            }
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

/// What is raced for.
fn stage() -> Stage {
    stage_of(RACED_FOR.load(SeqCst))
}

fn stage_of(place: usize) -> Stage {
    match STAGES.get(place).and_then(CpuCell::get) {
        Some(stage) => stage,
        None => fail!("an interrupt before the stage was set"),
    }
}

fn serve(_: &mut Frame) {
    let edu = stage().edu;
    ENTRIES.fetch_add(1, SeqCst);
    // Where the notifier changes, two CPUs may have been interrupted for one assertion; only one serves it.
    while SERVING.swap(true, SeqCst) {
        spin_loop();
    }
    // Only what was seen is acknowledged: the next assertion may come between.
    let asserts = edu.interrupt_status() != 0;
    if asserts {
        edu.acknowledge(BIT);
    }
    SERVING.store(false, SeqCst);
    let counter = if asserts { &SERVED } else { &QUIET };
    lapic::eoi();
    counter.fetch_add(1, SeqCst);
}

fn notice(_: &mut Frame) {
    lapic::eoi();
    NOTICED.fetch_add(1, SeqCst);
}

/// Serves the other device on a shared line. Where the notifier was taken away from under an interrupt that was delivered already,
/// there is another one, and one of the two is for nothing.
fn serve_other(_: &mut Frame) {
    let edu = stage_of(OTHER).edu;
    let asserts = edu.interrupt_status() != 0;
    if asserts {
        edu.acknowledge(BIT);
    }
    lapic::eoi();
    OTHERS_SERVED.fetch_add(u32::from(asserts), SeqCst);
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

/// Takes the notifier of the other device on the line away, before it asserts or at once afterwards, and does what must be harmless
/// then. When somebody was served without it, puts the notifier back, whereupon the other device is. Then it begins anew.
fn deprive(_: Stage, times: u32) -> bool {
    let Stage { edu, source, first: (_, pin), .. } = stage_of(OTHER);
    let raise = || {
        OTHERS_RAISED.fetch_add(1, SeqCst);
        edu.raise(BIT);
    };
    match times % 8 {
        0 | 4 if OTHERS_SERVED.load(SeqCst) != OTHERS_RAISED.load(SeqCst) => return false,
        0 | 5 => source.clear_notifier(),
        1 | 4 => raise(),
        2 | 6 => {
            source.trigger();
            source.unmask();
            SERVED_BEFORE.store(SERVED.load(SeqCst), SeqCst);
        }
        _ if SERVED.load(SeqCst) == SERVED_BEFORE.load(SeqCst) => return false,
        _ => source.notify_pin(pin),
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

/// Sends an EOI that nobody owes: by the register of the IO-APIC for the vector that is served elsewhere, perhaps just now, and by
/// that of its own local APIC, on which nothing is in service.
fn complete(_: Stage, _: u32) -> bool {
    ioapic::eoi(FIRST);
    lapic::eoi();
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

/// Has the entry lead to another CPU, or send another vector.
fn rewrite(stage: Stage, times: u32) -> bool {
    let (pin, _) = stage.first;
    if times.is_multiple_of(2) {
        pin.aim(times / 2 % (stage.server + 1));
    } else {
        pin.sending(if times % 4 == 1 { REWRITTEN } else { FIRST }).unmask();
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
