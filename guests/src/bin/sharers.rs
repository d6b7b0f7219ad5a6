//! Drives several `edu` devices that share an interrupt line, or a pin of the IO-APIC, and counts for each.
//!
//! The handler does what every driver of a shared line does: it looks at each device on its pin, and serves those that ask
//! for it. Whatever the order in which they assert, each must be served exactly as often as it was raised, and the handler
//! must never be entered for nothing.
//!
//! Command line:
//! * `rounds=N` (1000);
//! * `devices=N`: how many there must be;
//! * `gate=function` or `gate=line`: what silences the line, which decides whether the hypervisor counts for each device;
//! * `lines=own`: each device has its line to itself;
//! * `wait=halt`: sleeps for an interrupt instead of looking again and again, which leaves an emulator's one thread to the
//!   other CPUs;
//! * `do=serve` (all of it), `do=stuck` (the first device is never served nor its interrupt completed, on a pin of its own),
//!   `do=stuck-line` (the same on a shared pin and line, which then nobody else gets through), `do=storm` (the first
//!   device is never satisfied), `do=hang` (its handler spins for `ticks=N` of the time stamp counter, with interrupts off and
//!   the device asserted), `do=die` (the guest ends there), `do=beside` (one device after the other until partition `other=N` (0)
//!   completes an interrupt of its first source, and `rounds` times at least between each of its ends and its next beginning; it takes
//!   `control = true` to know);
//! * `until=told`: it hangs until the second device's notifier, which is a counter, is triggered by somebody who may.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use guests::cpu::{CpuCell, disable_interrupts, enable_interrupts, halt_until_interrupt, timestamp};
use guests::edu::Edu;
use guests::hypercall::{Interface, Ledger, Source};
use guests::interrupts::{Frame, Handler, handle};
use guests::ioapic::Pin;
use guests::{check, cmdline, fail, ioapic, lapic, report, say, wait};

guests::guest!("sharers", main);

const MOST: usize = 8;
/// The vectors of the pins, in the order of their first devices: each in a higher class than the one before.
const VECTORS: [u8; MOST] = [0x41, 0x51, 0x61, 0x71, 0x81, 0x91, 0xa1, 0xb1];
const BIT: u32 = 1 << 4;
/// The reason to silence a source that storms for good, as SOURCE_INFO reports it.
const QUARANTINE: u64 = 1 << 8;
/// The reason to silence a source whose guest is over and has not begun again.
const RESET: u64 = 1 << 5;

/// A device and the vector of the pin it is on.
#[derive(Clone, Copy)]
struct Shared {
    edu: Edu,
    vector: u8,
}

static DEVICES: [CpuCell<Option<Shared>>; MOST] = [const { CpuCell::new(None) }; MOST];
/// How often each device was served since the mode began.
static SERVED: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
/// How often a handler was entered since the mode began, and how often for nothing.
static ENTRIES: AtomicU32 = AtomicU32::new(0);
static FOR_NOTHING: AtomicU32 = AtomicU32::new(0);
/// Whether serving a device raises the one before it.
static CHAINED: AtomicBool = AtomicBool::new(false);
/// How often a guest that hangs was told that it is over.
static TOLD: AtomicU64 = AtomicU64::new(0);

fn devices() -> impl Iterator<Item = (usize, Shared)> + Clone {
    DEVICES.iter().map_while(CpuCell::get).enumerate()
}

fn main() {
    let rounds = cmdline::number("rounds").unwrap_or(1000);
    lapic::init();
    ioapic::init();
    let pins = connect_all();
    let count = devices().count();
    let expected = cmdline::number("devices").unwrap_or(2) as usize;
    check!(count == expected, "{count} edu devices, not {expected}");
    say!("{count} devices on {pins} pin(s)");
    enable_interrupts();
    match cmdline::value("do") {
        None | Some("serve") => {
            in_turn(rounds);
            together(rounds, pins);
            chained(rounds);
        }
        Some("stuck") => stuck(rounds),
        Some("stuck-line") => stuck_line(),
        Some("storm") => storm(rounds),
        Some("hang") if cmdline::value("until") == Some("told") => hang_until_told(),
        Some("hang") => interrupted("hang", hang),
        Some("die") => interrupted("die", |_| report::pass()),
        Some("beside") => beside(rounds),
        Some(other) => {
            fail!("command line: do={other} is none of serve, stuck, stuck-line, storm, hang, die, beside")
        }
    }
    disable_interrupts();
    if cmdline::value("do") != Some("storm")
        && let Some(interface) = Interface::find("ledgers")
    {
        let sources = devices().map(|(_, device)| Source::of(&interface, device.edu.function));
        for source in sources.clone() {
            source.ledger().demand_balance_at_rest();
            let info = source.info();
            let on_line = sources.clone().filter(|other| other.info().gsi == info.gsi).count();
            // The only one here may share its line with another partition's.
            let alone = cmdline::value("lines") == Some("own");
            check!(info.shared || on_line == 1, "{on_line} share a line, which is not shared: {info:?}");
            check!(!info.shared || !alone, "alone on a line, which is shared: {info:?}");
        }
        say!("ledgers ok");
    }
}

/// Connects every device; those with one pin have one vector. How many pins there are.
fn connect_all() -> usize {
    let mut pins = 0;
    for (place, edu) in DEVICES.iter().zip(Edu::all()) {
        let gsi = edu.function.gsi();
        let known = devices().find(|(_, other)| other.edu.function.gsi() == gsi);
        let vector = match known {
            Some((_, other)) => other.vector,
            None => {
                let Some(&vector) = VECTORS.get(pins) else { fail!("more pins than vectors") };
                pins += 1;
                handle(vector, serve);
                Pin::connect(gsi, vector, lapic::id());
                vector
            }
        };
        place.set(Some(Shared { edu, vector }));
    }
    pins
}

/// Looks at each device on the pin, in order, and serves those that assert.
fn serve(frame: &mut Frame) {
    ENTRIES.fetch_add(1, Relaxed);
    let mut found = false;
    let mut before: Option<Edu> = None;
    for (index, Shared { edu, vector }) in devices() {
        if u64::from(vector) == frame.vector && edu.interrupt_status() != 0 {
            found = true;
            edu.acknowledge(u32::MAX);
            count(index);
            if CHAINED.load(Relaxed)
                && let Some(before) = before
            {
                before.raise(BIT);
            }
        }
        before = Some(edu);
    }
    if !found {
        FOR_NOTHING.fetch_add(1, Relaxed);
    }
    lapic::eoi();
}

fn count(index: usize) {
    if let Some(served) = SERVED.get(index) {
        served.fetch_add(1, Relaxed);
    }
}

fn served(index: usize) -> u32 {
    SERVED.get(index).map_or(0, |served| served.load(Relaxed))
}

fn begin() {
    for counter in SERVED.iter().chain([&ENTRIES, &FOR_NOTHING]) {
        counter.store(0, Relaxed);
    }
}

/// Demands that each device was served `rounds` times, with so many entries of the handler, and that nothing is left over.
fn end(mode: &str, rounds: u32, entries: u32) {
    wait::a_while();
    for (index, Shared { edu, vector }) in devices() {
        let (slot, served) = (edu.function.slot(), served(index));
        check!(served == rounds, "{mode}: the device in slot {slot} was served {served} times, not {rounds}");
        check!(edu.interrupt_status() == 0, "{mode}: the device in slot {slot} still asserts");
        check!(!lapic::requested(vector) && !lapic::in_service(vector), "{mode}: vector {vector:#x} is left");
    }
    let (found, nothing) = (ENTRIES.load(Relaxed), FOR_NOTHING.load(Relaxed));
    check!(nothing == 0, "{mode}: the handler was entered {nothing} times for nothing");
    check!(found == entries, "{mode}: the handler was entered {found} times, not {entries}");
    say!("{mode} {rounds}/{rounds} ok, {found} interrupts");
}

/// Waits until a device was served so often, asleep if the command line says `wait=halt`.
fn wait_for(mode: &str, index: usize, expected: u32) {
    if cmdline::value("wait") == Some("halt") {
        disable_interrupts();
        while served(index) < expected {
            halt_until_interrupt();
        }
        enable_interrupts();
        return;
    }
    let reached = wait::until(|| served(index) >= expected);
    check!(reached, "{mode}: device {index} was served {} times, not {expected}", served(index));
}

/// One device after the other.
fn in_turn(rounds: u32) {
    begin();
    for round in 1..=rounds {
        for (index, Shared { edu, .. }) in devices() {
            edu.raise(BIT);
            wait_for("in-turn", index, round);
        }
    }
    end("in-turn", rounds, rounds * devices().count() as u32);
    let Some(interface) = Interface::find("in-turn: the ledgers") else { return };
    for (_, Shared { edu, .. }) in devices() {
        let ledger = Source::of(&interface, edu.function).ledger();
        let others = if cmdline::value("gate") == Some("line") { devices().count() as u64 } else { 1 };
        let expected = u64::from(rounds) * others;
        let counted = (ledger.accepted_wire, ledger.delivered, ledger.completed_eoi);
        check!(counted == (expected, expected, expected), "in-turn: not {expected} times each: {ledger:?}");
    }
}

/// All devices while interrupts are off: one interrupt for each pin serves all that are on it.
fn together(rounds: u32, pins: usize) {
    begin();
    for round in 1..=rounds {
        disable_interrupts();
        for (_, Shared { edu, .. }) in devices() {
            edu.raise(BIT);
        }
        enable_interrupts();
        for (index, _) in devices() {
            wait_for("together", index, round);
        }
    }
    end("together", rounds, rounds * pins as u32);
}

/// The last device is raised, and serving each raises the one before it, which the handler has looked at already.
fn chained(rounds: u32) {
    begin();
    CHAINED.store(true, Relaxed);
    for round in 1..=rounds {
        let Some((_, last)) = devices().last() else { fail!("no device") };
        last.edu.raise(BIT);
        wait_for("chained", 0, round);
    }
    CHAINED.store(false, Relaxed);
    end("chained", rounds, rounds * devices().count() as u32);
}

/// One device after the other, while another guest dies and comes back.
fn beside(rounds: u32) {
    let other = Source(u64::from(cmdline::number("other").unwrap_or(0) + 1) << 8);
    let dead = |ledger: &Ledger| ledger.mask_reasons & RESET != 0;
    begin();
    let (mut round, mut ends, mut served_in) = (0, 0, 0);
    loop {
        let before = other.ledger();
        if before.completed_reset != ends {
            check!(ends == 0 || served_in >= rounds, "beside: served {served_in} times in reset {ends}");
            (ends, served_in) = (before.completed_reset, 0);
        }
        if before.completed_eoi > 0 {
            break;
        }
        round += 1;
        for (index, Shared { edu, .. }) in devices() {
            edu.raise(BIT);
            wait_for("beside", index, round);
        }
        let after = other.ledger();
        if dead(&before) && dead(&after) && before.completed_reset == after.completed_reset {
            served_in += 1;
        }
    }
    check!(ends > 0 && served_in >= rounds, "beside: served {served_in} times in reset {ends}");
    end("beside", round, round * devices().count() as u32);
    say!("beside: served {rounds} times and more in each of {ends} resets");
}

/// Has `handler` called once for the first device.
fn interrupted(mode: &str, handler: Handler) {
    let Some((_, first)) = devices().next() else { fail!("no device") };
    begin();
    handle(first.vector, handler);
    say!("{mode}, now");
    first.edu.raise(BIT);
    check!(wait::until(|| ENTRIES.load(Relaxed) == 1), "{mode}: the first device does not interrupt");
}

/// Spins, with interrupts off since it is a handler, and serves its device after that.
fn hang(frame: &mut Frame) {
    let ticks = u64::from(cmdline::number("ticks").unwrap_or(1 << 24));
    let begin = timestamp();
    while timestamp().wrapping_sub(begin) < ticks {
        // An emulator with one thread turns to the other CPUs here.
        core::hint::spin_loop();
    }
    say!("hang: over");
    serve(frame);
}

/// The same until it is told, which takes neither an exit nor time of its own to notice.
fn hang_until_told() {
    let Some(interface) = Interface::find("hang") else { return };
    let (_, second) = first_two();
    let source = Source::of(&interface, second.edu.function);
    source.notify_counter(&TOLD);
    interrupted("hang", |frame| {
        while TOLD.load(Relaxed) == 0 {
            core::hint::spin_loop();
        }
        say!("hang: over");
        serve(frame);
    });
    source.unmask();
}

fn first_two() -> (Shared, Shared) {
    let mut all = devices().map(|(_, device)| device);
    match (all.next(), all.next()) {
        (Some(first), Some(second)) => (first, second),
        _ => fail!("fewer than two devices"),
    }
}

/// Neither serves the device nor completes its interrupt.
fn forget(_: &mut Frame) {
    ENTRIES.fetch_add(1, Relaxed);
}

/// The first device is stuck, on a pin of its own: the second is served all the same.
fn stuck(rounds: u32) {
    let (first, second) = first_two();
    check!(first.vector != second.vector, "stuck: the devices share a pin");
    begin();
    handle(first.vector, forget);
    first.edu.raise(BIT);
    check!(wait::until(|| ENTRIES.load(Relaxed) == 1), "stuck: the first device does not interrupt");
    // Its handler returned without an EOI, so only vectors of a higher class come through.
    begin();
    for round in 1..=rounds {
        second.edu.raise(BIT);
        wait_for("stuck", 1, round);
    }
    wait::a_while();
    let (entries, nothing) = (ENTRIES.load(Relaxed), FOR_NOTHING.load(Relaxed));
    check!(
        (entries, nothing) == (rounds, 0),
        "stuck: {entries} interrupts, not {rounds}, {nothing} for nothing"
    );
    check!(lapic::in_service(first.vector), "stuck: somebody completed the first device's interrupt");
    check!(first.edu.function.interrupt_status(), "stuck: the first device asserts no more");
    say!("stuck {rounds}/{rounds} ok beside a device that is never served");
    first.edu.acknowledge(u32::MAX);
    lapic::eoi();
}

/// The same where pin and line are shared: nobody comes through until the EOI.
fn stuck_line() {
    let (first, second) = first_two();
    check!(first.vector == second.vector, "stuck-line: the devices have pins of their own");
    begin();
    handle(first.vector, forget);
    first.edu.raise(BIT);
    check!(wait::until(|| ENTRIES.load(Relaxed) == 1), "stuck-line: the first device does not interrupt");
    second.edu.raise(BIT);
    wait::a_while();
    let entries = ENTRIES.load(Relaxed);
    check!(entries == 1, "stuck-line: {entries} interrupts before the EOI, not 1");
    handle(first.vector, serve);
    lapic::eoi();
    wait_for("stuck-line", 0, 1);
    wait_for("stuck-line", 1, 1);
    say!("stuck-line ok: both are served after the EOI");
}

/// Leaves the first device unsatisfied and serves the others.
fn serve_others(_: &mut Frame) {
    ENTRIES.fetch_add(1, Relaxed);
    for (index, Shared { edu, .. }) in devices().skip(1) {
        if edu.interrupt_status() != 0 {
            edu.acknowledge(u32::MAX);
            count(index);
        }
    }
    lapic::eoi();
}

/// The first device is never satisfied, so it interrupts again at each EOI until its storm budget ends that for good. The
/// second is served all the time, and interrupts alone in the end.
fn storm(rounds: u32) {
    let (first, second) = first_two();
    begin();
    for vector in [first.vector, second.vector] {
        handle(vector, serve_others);
    }
    first.edu.raise(BIT);
    for round in 1..=rounds {
        second.edu.raise(BIT);
        wait_for("storm", 1, round);
    }
    let Some(interface) = Interface::find("storm: the budget") else { return };
    let source = Source::of(&interface, first.edu.function);
    let quarantined = wait::until(|| source.info().mask_reasons & QUARANTINE != 0);
    check!(quarantined, "storm: the first device goes on interrupting");
    begin();
    for round in 1..=rounds {
        second.edu.raise(BIT);
        wait_for("storm", 1, round);
    }
    let entries = ENTRIES.load(Relaxed);
    check!(entries == rounds, "storm: {entries} interrupts after it, not {rounds}");
    check!(first.edu.function.interrupt_status(), "storm: the first device asserts no more");
    say!("storm {rounds}/{rounds} ok during and after it");
}
