//! Shares a device with another partition, one at a time: works with it until it is taken away, takes it over, and counts.
//!
//! `do=WORDS`, separated by commas, says what is done one after the other:
//! * `work`: raises interrupts and serves them until the device is gone;
//! * `count`: the same without interrupts: its notifier is a counter in memory, which it polls;
//! * `held`: the same for one interrupt, which lasts while partition `other=N` (0) masks and unmasks the device, and until it is
//!   completed here;
//! * `hang`: the handler of one interrupt leaves the device asserting and spins, with interrupts off, until the device is gone, and
//!   then for `ticks=N` of the time stamp counter; `muffled=1` masks the source before, and sets Interrupt Disable;
//! * `die`: ends in the handler of an interrupt, with the device asserting; `crash` the same by a triple fault;
//! * `doom`: takes the device over and crashes in the handler of an interrupt, and takes it again as often as it loses it before;
//! * `storm`: never satisfies the device, which so interrupts again at each EOI, and in each of its interrupts takes the notifier
//!   away, masks, triggers, and undoes it all, until the device is gone;
//! * `rest`: lets `ticks=N` pass;
//! * `watch`: waits until the device is at work in partition `other=N`, and not by the clock, since another CPU may stand still
//!   for long: until `deliveries=N` (1) of its interrupts were delivered there, and until `resets=N` (0) ended because its
//!   guest did; with `reasons=N` also until it is silenced there for one of these mask reasons. It takes `control = true` to know;
//! * `take`: takes the device over. What it asserts then is delivered once, and nothing if it does not; `masked=1` holds the pin
//!   back first, and `disabled=1` the device, by Interrupt Disable. `handovers=N` is how many deliveries have ended by then because
//!   the device changed hands;
//! * `fall`: ends by a triple fault, wherever the device is;
//! * `keep`: interrupts, exactly, until partition `other=N` (0) has ended and begun again, which the history of its second source tells;
//! * `lost`: waits until an e1000e, the second source of partition `other=N`, is lost in a reset, and demands that nobody takes it
//!   over then or lifts its quarantine;
//! * `testdev`: takes everything over that has no interrupt pin, among it a `pci-testdev`, which then counts accesses;
//! * `rounds`: `rounds=N` (200) interrupts, exactly; `forced=N` (0) deliveries were completed by force so far;
//! * `await`: waits until somebody else has moved the device here;
//! * `contest`: takes the device over and works with it `rounds=N` times, however soon it loses it again.
//!
//! `do=control` is for a partition that may control others, and moves the first device of partition 0 to partition 1 and back;
//! `do=meddle` masks and unmasks it while an interrupt of its is in service.
//!
//! With `cpus=N` the other CPUs, with interrupts off, read the device's registers all the while, and must find it gone when it is.
//!
//! A guest that begins when another has its device says so and passes (`do=` counts for the first life only). How many interrupts
//! were raised and served is kept in two registers of `edu` that mean nothing as long as it transfers nothing, so that each of the
//! two guests knows the other's count.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "hypercalls that are to fail, and an end without a way back")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use guests::cpu::{CpuCell, Mmio, disable_interrupts, enable_interrupts, timestamp};
use guests::edu::{ACKNOWLEDGE, RAISE};
use guests::hypercall::{self, History, Interface, Source, error, function, notifier};
use guests::interrupts::{Frame, handle, triple_fault_by};
use guests::ioapic::{self, Pin};
use guests::pci::{Bar, Function};
use guests::{check, cmdline, fail, lapic, report, say, smp, testdev, wait};

guests::guest!("takeover", main);

const VECTOR: u8 = 0x60;
const BIT: u32 = 1 << 4;
const INTERRUPT_STATUS: usize = 0x24;
/// `edu`'s address of a transfer's source: how many interrupts were raised.
const RAISED: usize = 0x80;
/// `edu`'s address of a transfer's destination: how many were served.
const SERVED: usize = 0x88;
/// Mask reasons, as SOURCE_INFO reports them.
const IN_SERVICE: u64 = 1 << 0;
const GUEST_DISINTX: u64 = 1 << 2;
const VIRTUAL_RTE_MASKED: u64 = 1 << 3;
const OPERATOR: u64 = 1 << 4;
const THROTTLE: u64 = 1 << 7;
const QUARANTINE: u64 = 1 << 8;
/// What of a history says that a reason was taken back.
const UNMASKED: u64 = 6;
/// What nobody answers.
const NOBODY: u32 = u32::MAX;

/// The device, whoever has it.
#[derive(Clone, Copy)]
struct Shared {
    function: Function,
    registers: Mmio,
    source: Source,
    pin: Pin,
}

/// What the handler does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handling {
    Serve,
    Hang,
    Die,
    Crash,
    Storm,
}

static DEVICE: CpuCell<Option<Shared>> = CpuCell::new(None);
static HANDLING: CpuCell<Handling> = CpuCell::new(Handling::Serve);
/// How often the handler was entered, and what it found: an interrupt to serve, a device that does not assert, no device.
static ENTRIES: AtomicU32 = AtomicU32::new(0);
static FOUND: AtomicU32 = AtomicU32::new(0);
static NOTHING: AtomicU32 = AtomicU32::new(0);
static GONE: AtomicU32 = AtomicU32::new(0);
/// How many other CPUs find the device gone.
static BEREFT: AtomicU32 = AtomicU32::new(0);
/// What is counted where there are no interrupts.
static COUNTER: AtomicU64 = AtomicU64::new(0);
/// How many calls were made.
static CALLS: AtomicU32 = AtomicU32::new(0);

fn main() {
    let Some(interface) = Interface::find("taking over") else { return };
    check!(interface.features & 1 << 3 != 0, "no takeover in {:#x}", interface.features);
    let words = cmdline::value("do").unwrap_or("work");
    match words {
        "control" => return control(),
        "meddle" => return meddle(),
        _ => {}
    }
    lapic::init();
    ioapic::init();
    let Some(function) = Function::find(0x1234, 0x11e8) else { fail!("no edu device") };
    function.enable();
    let Bar::Memory(registers) = function.bar(0) else { fail!("edu's BAR 0 is not memory") };
    let source = Source::of(&interface, function);
    check!(source.info().moves, "the device cannot be taken over");
    handle(VECTOR, handler);
    let device =
        Shared { function, registers, source, pin: Pin::connect(function.gsi(), VECTOR, lapic::id()) };
    DEVICE.set(Some(device));
    if device.is_gone() {
        device.demand_nothing_works();
        say!("begins without it");
        let first = words.split(',').next();
        if matches!(first, Some("work" | "count" | "held" | "hang" | "die" | "crash" | "storm")) {
            return;
        }
    } else {
        device.registers.write32(ACKNOWLEDGE, u32::MAX);
        check!(!function.interrupt_status(), "the device asserts at the beginning");
    }
    for cpu in 1..cmdline::number("cpus").unwrap_or(1) {
        smp::start(cpu, read_on);
    }
    enable_interrupts();
    for word in words.split(',') {
        match word {
            "work" => work(device),
            "count" => count(device),
            "held" => held(device),
            "hang" => hang(device),
            "die" => in_handler(device, Handling::Die),
            "crash" => in_handler(device, Handling::Crash),
            "doom" => doom(device),
            "storm" => storm(device),
            "fall" => triple_fault_by(0, 0),
            "rest" => rest(),
            "watch" => watch(),
            "take" => take(device),
            "keep" => keep(device),
            "lost" => lost(&interface),
            "testdev" => take_without_pin(&interface),
            "rounds" => rounds(device),
            "await" => arrive(device),
            "contest" => contest(device),
            other => fail!("command line: do={other}"),
        }
    }
    disable_interrupts();
}

impl Shared {
    fn status(self) -> u32 {
        self.registers.read32(INTERRUPT_STATUS)
    }

    fn is_gone(self) -> bool {
        self.source.info().elsewhere
    }

    fn raise(self) {
        self.registers.write32(RAISED, self.registers.read32(RAISED).wrapping_add(1));
        self.registers.write32(RAISE, BIT);
    }

    /// Whether an interrupt was raised and served, or the device is gone.
    fn settled(self) -> bool {
        let (raised, served) = (self.registers.read32(RAISED), self.registers.read32(SERVED));
        raised == served || self.status() == NOBODY
    }

    /// What is known after the device has moved here, as one of the two counts may be one behind.
    fn agree(self) {
        let (raised, served) = (self.registers.read32(RAISED), self.registers.read32(SERVED));
        check!(raised.wrapping_sub(served) <= 1, "{raised} raised and {served} served");
        self.registers.write32(SERVED, raised);
    }

    /// Demands that a device which another has is seen, and has no effect.
    fn demand_nothing_works(self) {
        check!(self.function.read32(0) == 0x11e8_1234, "the device cannot be seen");
        check!(!self.function.interrupt_status(), "it shows an interrupt");
        check!(self.status() == NOBODY, "its registers answer {:#x}", self.status());
        self.registers.write32(RAISE, BIT);
        self.function.set_interrupt_disable(true);
        self.function.set_interrupt_disable(false);
        let index = self.source.0;
        for call in [function::CLEAR_NOTIFIER, function::MASK, function::UNMASK, function::TRIGGER] {
            refused(call, [index, 0, 0], error::NOT_OWNER);
        }
        refused(function::SET_NOTIFIER, [index, notifier::VIRTUAL_PIN, 1], error::NOT_OWNER);
        let info = self.source.info();
        check!(!info.has_notifier && !info.in_service && info.mask_reasons == 0, "{info:?}");
    }
}

/// Makes a call that touches no memory, again as long as the device is on its way.
fn call_at_rest(function: u64, arguments: hypercall::Registers) -> Result<hypercall::Registers, i64> {
    loop {
        // SAFETY: only reached under Levelhead; no call that is made here writes memory.
        let result = unsafe { hypercall::call(function, arguments) };
        CALLS.fetch_add(1, Relaxed);
        if result != Err(error::BUSY) {
            return result;
        }
        core::hint::spin_loop();
    }
}

/// Makes a call that must fail with this code.
fn refused(function: u64, arguments: hypercall::Registers, code: i64) {
    let result = call_at_rest(function, arguments);
    check!(result == Err(code), "hypercall {function} with {arguments:x?}: {result:x?}, not {code}");
}

fn handler(_: &mut Frame) {
    ENTRIES.fetch_add(1, Relaxed);
    let Some(device) = DEVICE.get() else { fail!("an interrupt before the device") };
    match HANDLING.get() {
        Handling::Serve => serve(device),
        Handling::Hang => {
            if cmdline::number("muffled") == Some(1) {
                device.source.mask();
                device.function.set_interrupt_disable(true);
            }
            // As long as the device is here there is no exit at which the hypervisor could find its guest.
            check!(wait::yielding(|| device.status() == NOBODY), "hang: the device is still here");
            spin();
        }
        Handling::Die => report::pass(),
        Handling::Crash => triple_fault_by(0, 0),
        Handling::Storm => make_calls(device),
    }
    lapic::eoi();
}

fn serve(device: Shared) {
    match device.status() {
        NOBODY => GONE.fetch_add(1, Relaxed),
        0 => NOTHING.fetch_add(1, Relaxed),
        _ => {
            device.registers.write32(ACKNOWLEDGE, u32::MAX);
            let served = device.registers.read32(SERVED);
            device.registers.write32(SERVED, served.wrapping_add(1));
            FOUND.fetch_add(1, Relaxed)
        }
    };
}

fn begin(handling: Handling) {
    HANDLING.set(handling);
    for counter in [&ENTRIES, &FOUND, &NOTHING, &GONE] {
        counter.store(0, Relaxed);
    }
}

/// Demands what holds in all cases: nobody was interrupted for nothing, and for a device that is gone once at most: by an
/// interrupt that the guest's own chips had already.
fn end(what: &str) {
    let (nothing, gone) = (NOTHING.load(Relaxed), GONE.load(Relaxed));
    check!(nothing == 0, "{what}: interrupted {nothing} times for nothing");
    check!(gone <= 1, "{what}: interrupted {gone} times for a device that is gone");
}

/// Looks until `condition` holds; an emulator with one thread goes on to another CPU at each look.
fn until(what: &str, condition: impl Fn() -> bool) {
    check!(condition() || wait::yielding(condition), "{what}: nothing happens");
}

fn spin() {
    let ticks = u64::from(cmdline::number("ticks").unwrap_or(1 << 24));
    let begin = timestamp();
    while timestamp().wrapping_sub(begin) < ticks {
        core::hint::spin_loop();
    }
}

fn rest() {
    spin();
}

/// A source of the partition that the command line names.
fn of_another(index: u64) -> Source {
    Source((u64::from(cmdline::number("other").unwrap_or(0)) + 1) << 8 | index)
}

fn watch() {
    let number = |name, default| u64::from(cmdline::number(name).unwrap_or(default));
    let source = of_another(0);
    // What was delivered here is in the same books.
    let own = if FOUND.load(Relaxed) == 0 { 0 } else { source.ledger().delivered };
    let (deliveries, resets) = (own + number("deliveries", 1), number("resets", 0));
    let silenced = || {
        let reasons = number("reasons", 0);
        reasons == 0 || source.info().mask_reasons & reasons != 0
    };
    until("watch", || {
        let ledger = source.ledger();
        ledger.delivered >= deliveries && ledger.completed_reset >= resets && silenced()
    });
}

fn work(device: Shared) {
    begin(Handling::Serve);
    while !device.is_gone() {
        device.raise();
        until("work", || device.settled());
        core::hint::spin_loop();
    }
    wait::a_while();
    end("work");
    agreed("work", true);
    device.demand_nothing_works();
    say!("work: gone after {} interrupts", FOUND.load(Relaxed));
}

fn count(device: Shared) {
    begin(Handling::Serve);
    device.source.notify_counter(&COUNTER);
    let mut served = 0;
    while !device.is_gone() {
        device.raise();
        until("count", || COUNTER.load(Relaxed) > served || device.is_gone());
        if COUNTER.load(Relaxed) > served {
            served += 1;
            serve(device);
            let result = call_at_rest(function::UNMASK, [device.source.0, 0, 0]);
            check!(matches!(result, Ok(_) | Err(error::NOT_OWNER)), "count: unmasking returns {result:x?}");
        }
        core::hint::spin_loop();
    }
    let counted = COUNTER.load(Relaxed);
    check!(counted - served <= 1, "count: {counted} counted, {served} served");
    wait::a_while();
    check!(COUNTER.load(Relaxed) == counted, "count: it goes on without the device");
    check!(ENTRIES.load(Relaxed) == 0, "count: {} interrupts", ENTRIES.load(Relaxed));
    end("count");
    device.demand_nothing_works();
    say!("count: gone after {served} deliveries");
}

fn held(device: Shared) {
    begin(Handling::Serve);
    let other = u64::from(cmdline::number("other").unwrap_or(0));
    let demand = |counted: u64, when: &str| {
        wait::a_while();
        let (found, info) = (COUNTER.load(Relaxed), device.source.info());
        check!(found == counted && info.in_service, "held: {found} counted {when}, not {counted}: {info:?}");
    };
    device.source.notify_counter(&COUNTER);
    device.raise();
    until("held", || COUNTER.load(Relaxed) == 1);
    until("held", || {
        let moments = History::of(device.source);
        moments.moment(0).is_some_and(|moment| (moment.what, moment.by) == (UNMASKED, other))
    });
    demand(1, "after another has unmasked it");
    device.source.unmask();
    demand(2, "after its completion with the device asserting");
    device.registers.write32(ACKNOWLEDGE, u32::MAX);
    device.source.unmask();
    device.source.ledger().demand_balance_at_rest();
    say!("held: completed by its owner alone");
}

fn hang(device: Shared) {
    begin(Handling::Hang);
    say!("hang, now");
    device.raise();
    until("hang", || ENTRIES.load(Relaxed) == 1);
    HANDLING.set(Handling::Serve);
    wait::a_while();
    check!(ENTRIES.load(Relaxed) == 1, "hang: {} interrupts", ENTRIES.load(Relaxed));
    device.demand_nothing_works();
    say!("hang: over, and the device is gone");
}

fn doom(device: Shared) {
    loop {
        take_now(device);
        begin(Handling::Crash);
        device.raise();
        until("doom", || device.is_gone());
    }
}

/// What the other CPUs do.
fn read_on(_: u32) -> ! {
    let Some(device) = DEVICE.get() else { fail!("a CPU before the device") };
    loop {
        while device.status() != NOBODY {
            core::hint::spin_loop();
        }
        BEREFT.fetch_add(1, Relaxed);
        while device.status() == NOBODY {
            core::hint::spin_loop();
        }
        BEREFT.fetch_sub(1, Relaxed);
    }
}

/// Waits until every other CPU has found out whether the device is gone.
fn agreed(what: &str, gone: bool) {
    let others = cmdline::number("cpus").unwrap_or(1) - 1;
    until(what, || BEREFT.load(Relaxed) == if gone { others } else { 0 });
}

fn in_handler(device: Shared, handling: Handling) {
    begin(handling);
    device.raise();
    until("the end", || false);
}

/// Lets the device assert, and makes as many calls as there are between two of its interrupts.
fn storm(device: Shared) {
    begin(Handling::Storm);
    CALLS.store(0, Relaxed);
    device.raise();
    until("storm", || device.is_gone());
    wait::a_while();
    let (entries, calls) = (ENTRIES.load(Relaxed), CALLS.load(Relaxed));
    wait::a_while();
    check!(ENTRIES.load(Relaxed) == entries, "storm: it goes on without the device");
    check!(entries > 1 && calls > 6, "storm: {entries} interrupts and {calls} calls");
    device.demand_nothing_works();
    say!("storm: gone after {entries} interrupts and {calls} calls");
}

fn make_calls(device: Shared) {
    let pin = u64::from(device.function.gsi());
    let index = device.source.0;
    for (function, arguments) in [
        (function::CLEAR_NOTIFIER, [index, 0, 0]),
        (function::MASK, [index, 0, 0]),
        (function::TRIGGER, [index, 0, 0]),
        (function::SET_NOTIFIER, [index, notifier::VIRTUAL_PIN, pin]),
        (function::UNMASK, [index, 0, 0]),
    ] {
        let result = call_at_rest(function, arguments);
        let foreseen = matches!(result, Ok(_) | Err(error::NOT_OWNER));
        check!(foreseen, "storm: hypercall {function} returned {result:x?}");
    }
}

/// Takes the device over. Whether it was elsewhere.
fn take_now(device: Shared) -> bool {
    match hypercall::take_over(device.source) {
        0 => false,
        1 => true,
        other => fail!("take: the call returns {other}"),
    }
}

fn take(device: Shared) {
    check!(device.is_gone(), "take: the device is here already");
    device.demand_nothing_works();
    let [masked, disabled] = ["masked", "disabled"].map(|held| cmdline::number(held) == Some(1));
    if masked {
        device.pin.mask();
    }
    device.function.set_interrupt_disable(disabled);
    disable_interrupts();
    begin(Handling::Serve);
    check!(take_now(device), "take: it was here already");
    check!(!take_now(device), "take: it was not here");
    let asserts = device.status() != 0;
    check!(device.function.interrupt_status() == asserts, "take: Status is not what edu says");
    let expected = if masked { VIRTUAL_RTE_MASKED } else { 0 } | if disabled { GUEST_DISINTX } else { 0 };
    let reasons = device.source.info().mask_reasons & !(IN_SERVICE | THROTTLE);
    check!(reasons == expected, "take: silenced for {reasons:#x}, not {expected:#x}");
    enable_interrupts();
    if masked || disabled {
        wait::a_while();
        check!(ENTRIES.load(Relaxed) == 0, "take: an interrupt that is held back");
        device.pin.unmask();
        device.function.set_interrupt_disable(false);
    }
    let expected = u32::from(asserts);
    until("take", || FOUND.load(Relaxed) == expected);
    wait::a_while();
    let entries = ENTRIES.load(Relaxed);
    check!(entries == expected, "take: {entries} interrupts of a device that asserted {expected} times");
    end("take");
    device.agree();
    if let Some(handovers) = cmdline::number("handovers") {
        let ledger = device.source.ledger();
        check!(ledger.completed_handover == u64::from(handovers), "take: {ledger:?}");
    }
    say!("take: has it, with {expected} interrupt(s) to serve");
}

fn take_without_pin(interface: &Interface) {
    check!(testdev::answers() == [false; 2], "testdev: it answers {:?} and is not here", testdev::answers());
    for source in (0..interface.sources).map(Source).filter(|source| !source.info().has_intx) {
        refused(function::MASK, [source.0, 0, 0], error::NO_INTX);
        check!(source.info().elsewhere, "testdev: {source:?} is here already");
        check!(hypercall::take_over(source) == 1, "testdev: {source:?} was here already");
        check!(!source.info().elsewhere, "testdev: {source:?} is not here");
    }
    check!(testdev::answers() == [true; 2], "testdev: it answers {:?} and is here", testdev::answers());
    testdev::exercise();
}

/// Has the device interrupt again and again as long as `goes_on` says so after so many, and demands that it did so exactly.
fn serve_while(what: &str, device: Shared, goes_on: impl Fn(u32) -> bool) -> u32 {
    begin(Handling::Serve);
    let mut rounds = 0;
    while goes_on(rounds) {
        rounds += 1;
        device.raise();
        until(what, || FOUND.load(Relaxed) == rounds);
    }
    wait::a_while();
    let entries = ENTRIES.load(Relaxed);
    check!(entries == rounds, "{what}: {entries} interrupts, not {rounds}");
    end(what);
    rounds
}

fn keep(device: Shared) {
    let has_begun_again = || {
        let history = History::of(of_another(1));
        let mut moments = (0..).map_while(|ago| history.moment(ago));
        moments.any(|moment| (moment.what, moment.by) == (UNMASKED, History::HYPERVISOR))
    };
    let rounds = serve_while("keep", device, |_| !has_begun_again());
    check!(rounds > 0, "keep: the other began again before it had lost the device");
    say!("keep: it was served all the while");
}

fn lost(interface: &Interface) {
    let Some(function) = Function::find(0x8086, 0x10d3) else { fail!("no e1000e") };
    let (here, there) = (Source::of(interface, function), of_another(1));
    let is_quarantined = || there.info().mask_reasons & QUARANTINE != 0;
    until("lost", is_quarantined);
    refused(function::TAKE_OVER, [here.0, 0, 0], error::UNSUPPORTED);
    there.unmask();
    check!(is_quarantined() && here.info().elsewhere, "lost: {:?}, {:?}", there.info(), here.info());
    say!("lost: nobody gets it");
}

fn rounds(device: Shared) {
    let rounds = cmdline::number("rounds").unwrap_or(200);
    serve_while("rounds", device, |done| done < rounds);
    agreed("rounds", false);
    device.source.ledger().demand_balance_after(cmdline::number("forced").unwrap_or(0).into());
    say!("rounds {rounds}/{rounds} ok");
}

fn arrive(device: Shared) {
    begin(Handling::Serve);
    until("await", || !device.is_gone());
    until("await", || device.status() == 0);
    wait::a_while();
    end("await");
    device.agree();
    say!("await: has it, after {} interrupt(s)", FOUND.load(Relaxed));
}

/// Each time the device is taken over what it asserts is served once; nothing is demanded of what follows, in which it may be
/// lost at any time, but that nothing is served for nothing.
fn contest(device: Shared) {
    let rounds = cmdline::number("rounds").unwrap_or(200);
    let mut won = 0;
    for _ in 0..rounds {
        disable_interrupts();
        begin(Handling::Serve);
        won += u32::from(take_now(device));
        let status = device.status();
        enable_interrupts();
        if status != NOBODY {
            until("contest", || device.settled() || device.status() == 0);
        }
        if device.status() == 0 {
            device.registers.write32(SERVED, device.registers.read32(RAISED));
            device.raise();
            until("contest", || device.settled() || device.status() == 0);
        }
        wait::a_moment();
        end("contest");
        core::hint::spin_loop();
    }
    say!("contest: took it over {won} times of {rounds}");
}

/// Masks and unmasks the first device of partition 0 while it waits for its guest's completion, which that is not.
fn meddle() {
    let source = Source(1 << 8);
    until("meddle", || source.info().in_service);
    source.mask();
    source.unmask();
    say!("meddle: done");
}

/// Moves the first device of partition 0 to partition 1 and back, and asks what there is to ask.
fn control() {
    let named = |partition: u64, index: u64| Source((partition + 1) << 8 | index);
    let (active, standby) = (named(0, 0), named(1, 0));
    spin();
    check!(!active.info().elsewhere && standby.info().elsewhere, "control: it is not where it should be");
    for nobody in [named(30, 0), named(0, 200), Source(1 << 16 | 1 << 8)] {
        refused(function::SOURCE_INFO, [nobody.0, 0, 0], error::BAD_SOURCE);
        refused(function::TAKE_OVER, [nobody.0, 0, 0], error::BAD_SOURCE);
    }
    refused(function::CLEAR_NOTIFIER, [active.0, 0, 0], error::NOT_PERMITTED);
    refused(function::MASK, [standby.0, 0, 0], error::NOT_OWNER);
    active.mask();
    check!(active.info().mask_reasons & OPERATOR != 0, "control: it is not masked");
    active.unmask();
    check!(active.info().mask_reasons & OPERATOR == 0, "control: it is still masked");
    let before = active.ledger().delivered;
    until("control", || active.ledger().delivered > before);
    check!(hypercall::take_over(standby) == 1, "control: it was there already");
    check!(hypercall::take_over(standby) == 0, "control: it is not there");
    check!(active.info().elsewhere && !standby.info().elsewhere, "control: it has not moved");
    let before = standby.ledger().delivered;
    until("control", || standby.ledger().delivered > before);
    spin();
    check!(hypercall::take_over(active) == 1, "control: it was back already");
    say!("control: moved it there and back");
}
