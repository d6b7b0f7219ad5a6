//! Several CPUs in one guest: starting them, messages between them, and a device's interrupts sent from one to another while
//! they fly. Everything is counted, and every count must come out exactly.
//!
//! Command line: `rounds=N` (200) of each kind; `cpus=N`: how many CPUs there must be; `end=fault`: CPU 1 ends the guest by a
//! triple fault, `end=other`: CPU 1 reports success.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a descriptor table that no CPU survives")]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use guests::cpu::{CpuCell, Mmio, disable_interrupts, enable_interrupts, halt_until_interrupt};
use guests::edu::Edu;
use guests::interrupts::{Frame, handle};
use guests::ioapic::Pin;
use guests::smp::{self, MAX_CPUS};
use guests::{check, cmdline, fail, lapic, report, say, wait};

guests::guest!("smp", main);

/// Vectors, by what is counted: CPU 0's question, the answer, a message to several, the device, and a mere wake.
const PING: u8 = 0x61;
const PONG: u8 = 0x62;
const MANY: u8 = 0x63;
const DEVICE: u8 = 0x71;
const WAKE: u8 = 0x81;

/// The task priority that keeps a CPU from being the one at the lowest priority, and lets every vector here through.
const BUSY_PRIORITY: u8 = 0x40;

/// The interrupt status bit that rounds raise.
const BIT: u32 = 1 << 4;

/// Interrupts taken, by kind and by CPU.
struct Taken([AtomicU32; MAX_CPUS]);

impl Taken {
    const fn none() -> Self {
        Self([const { AtomicU32::new(0) }; MAX_CPUS])
    }

    fn of(&self, cpu: u32) -> u32 {
        let count = usize::try_from(cpu).ok().and_then(|cpu| self.0.get(cpu));
        count.map_or(0, |count| count.load(SeqCst))
    }

    fn all(&self) -> u32 {
        self.0.iter().map(|count| count.load(SeqCst)).sum()
    }

    /// Counts one for the running CPU.
    fn count(&self) {
        let count = usize::try_from(lapic::id()).ok().and_then(|cpu| self.0.get(cpu));
        if let Some(count) = count {
            count.fetch_add(1, SeqCst);
        }
    }

    fn forget(&self) {
        self.0.iter().for_each(|count| count.store(0, SeqCst));
    }
}

static PINGS: Taken = Taken::none();
static PONGS: Taken = Taken::none();
static MANYS: Taken = Taken::none();
static SERVED: Taken = Taken::none();
/// How often a CPU that is not started to serve went round.
static BEATS: AtomicU32 = AtomicU32::new(0);

/// What each CPU is to do when it wakes.
static ORDERS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(NOTHING) }; MAX_CPUS];
const NOTHING: u32 = 0;
/// Take [`BUSY_PRIORITY`], or the lowest.
const RAISE_PRIORITY: u32 = 1;
const LOWER_PRIORITY: u32 = 2;
/// Read a register at [`ADDRESS`] into [`VALUE`].
const READ: u32 = 3;
/// Report success.
const PASS: u32 = 4;
/// Fault until nothing is left.
const FAULT: u32 = 5;

static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static VALUE: AtomicU32 = AtomicU32::new(0);
static DEVICE_UNDER_TEST: CpuCell<Option<(Edu, Pin)>> = CpuCell::new(None);
/// Where the device's handler sends the next interrupt before it ends this one; `NOWHERE`: it does not.
static NEXT: AtomicU32 = AtomicU32::new(NOWHERE);
const NOWHERE: u32 = u32::MAX;

fn main() {
    let rounds = cmdline::number("rounds").unwrap_or(200);
    let mode = lapic::init();
    let cpus = smp::count();
    let expected = cmdline::number("cpus").unwrap_or(2);
    check!(cpus == expected, "CPUID shows {cpus} CPUs, not {expected}");
    check!(lapic::id() == 0, "the first CPU is number {}", lapic::id());
    for (vector, handler) in [
        (PING, pong as fn(&mut Frame)),
        (PONG, count_pong),
        (MANY, count_many),
        (DEVICE, serve),
        (WAKE, wake),
    ] {
        handle(vector, handler);
    }
    lapic::name_logically();
    for cpu in 1..cpus {
        smp::start(cpu, attend);
    }
    say!("{cpus} CPUs, {}", mode.name());
    enable_interrupts();

    ping_pong(cpus, rounds);
    to_others(cpus, rounds);
    to_sets(cpus, rounds);
    to_the_idlest(cpus, rounds);
    if let Some(edu) = cmdline::number("edu").filter(|edu| *edu != 0).map(|_| Edu::find()) {
        device(edu, cpus, rounds);
        moved(edu, cpus, rounds);
        moved_in_service(edu, cpus, rounds);
        move_registers(edu, cpus);
    }
    reset_under_way(cpus);
    match cmdline::value("end") {
        None => {}
        Some("other") => order_and_stop(PASS),
        Some("fault") => order_and_stop(FAULT),
        Some(other) => fail!("command line: end={other} means nothing"),
    }
    disable_interrupts();
}

/// What the other CPUs run: they sleep, take interrupts, and do what they are ordered.
fn attend(cpu: u32) -> ! {
    lapic::name_logically();
    check!(lapic::id() == cpu, "CPU {cpu} says it is number {}", lapic::id());
    loop {
        halt_until_interrupt();
        let order = usize::try_from(cpu).ok().and_then(|cpu| ORDERS.get(cpu));
        let Some(order) = order else { fail!("CPU {cpu} takes no orders") };
        match order.load(SeqCst) {
            NOTHING => continue,
            RAISE_PRIORITY => lapic::set_task_priority(BUSY_PRIORITY),
            LOWER_PRIORITY => lapic::set_task_priority(0),
            READ => {
                // SAFETY: a register of the device, or nothing where it was.
                let register = unsafe { Mmio::new(ADDRESS.load(SeqCst)) };
                VALUE.store(register.read32(0), SeqCst);
            }
            PASS => report::pass(),
            FAULT => fault(),
            other => fail!("CPU {cpu} got the order {other}"),
        }
        order.store(NOTHING, SeqCst);
    }
}

/// Has `cpu` do something, and waits until it is done.
fn order(cpu: u32, what: u32) {
    let Some(order) = usize::try_from(cpu).ok().and_then(|cpu| ORDERS.get(cpu)) else {
        fail!("there is no CPU {cpu}")
    };
    if cpu == 0 {
        lapic::set_task_priority(if what == RAISE_PRIORITY { BUSY_PRIORITY } else { 0 });
        return;
    }
    order.store(what, SeqCst);
    lapic::send(cpu, lapic::FIXED | u32::from(WAKE));
    check!(wait::yielding(|| order.load(SeqCst) == NOTHING), "CPU {cpu} does not follow the order {what}");
}

/// Has CPU 1 end the guest.
fn order_and_stop(what: u32) {
    if let Some(order) = ORDERS.get(1) {
        order.store(what, SeqCst);
    }
    lapic::send(1, lapic::FIXED | u32::from(WAKE));
    loop {
        halt_until_interrupt();
    }
}

/// No CPU survives an exception that it has no table for.
fn fault() -> ! {
    let nothing = [0_u16; 5];
    // SAFETY: ends the guest, which is what is asked.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const nothing, options(noreturn)) };
}

// Handlers.

fn pong(_: &mut Frame) {
    PINGS.count();
    lapic::send(0, lapic::FIXED | u32::from(PONG));
    lapic::eoi();
}

fn count_pong(_: &mut Frame) {
    PONGS.count();
    lapic::eoi();
}

fn count_many(_: &mut Frame) {
    // First: whoever sees the count may send the next one to whoever is idlest then.
    lapic::eoi();
    MANYS.count();
}

fn wake(_: &mut Frame) {
    lapic::eoi();
}

fn serve(_: &mut Frame) {
    let Some((edu, pin)) = DEVICE_UNDER_TEST.get() else { fail!("an interrupt of no device") };
    let next = NEXT.load(SeqCst);
    if next != NOWHERE {
        pin.aim(next);
    }
    edu.acknowledge(BIT);
    SERVED.count();
    lapic::eoi();
}

// Messages.

/// A question to each CPU and its answer, while CPU 0 looks around and while it sleeps.
fn ping_pong(cpus: u32, rounds: u32) {
    for cpu in 1..cpus {
        PONGS.forget();
        for round in 1..=rounds {
            lapic::send(cpu, lapic::FIXED | u32::from(PING));
            if round % 2 == 0 {
                disable_interrupts();
                while PONGS.of(0) < round {
                    halt_until_interrupt();
                }
                enable_interrupts();
            }
            check!(wait::yielding(|| PONGS.of(0) >= round), "CPU {cpu} does not answer question {round}");
        }
        let (asked, answered) = (PINGS.of(cpu), PONGS.of(0));
        check!((asked, answered) == (rounds, rounds), "{asked} questions at CPU {cpu}, {answered} answers");
    }
    let asked = PINGS.all();
    check!(asked == rounds * (cpus - 1), "{asked} questions arrived");
    say!("ping-pong: {asked} questions and answers ok");
}

/// One message to all others.
fn to_others(cpus: u32, rounds: u32) {
    MANYS.forget();
    for round in 1..=rounds {
        lapic::send(0, lapic::TO_OTHERS | u32::from(MANY));
        let arrived = || (1..cpus).all(|cpu| MANYS.of(cpu) == round);
        check!(wait::yielding(arrived), "message {round} to all others does not arrive");
    }
    let (own, all) = (MANYS.of(0), MANYS.all());
    check!((own, all) == (0, rounds * (cpus - 1)), "{all} messages to the others, {own} at their sender");
    say!("to all others: {all} messages ok");
}

/// One message to every set of CPUs, by their logical names.
fn to_sets(cpus: u32, rounds: u32) {
    let mut sent = 0;
    for round in 0..rounds.min(20) {
        for set in 1..1_u32 << cpus {
            MANYS.forget();
            lapic::send(lapic::logical(set), lapic::LOGICAL | u32::from(MANY));
            let arrived = || (0..cpus).all(|cpu| MANYS.of(cpu) == set >> cpu & 1);
            check!(wait::yielding(arrived), "round {round}: the message to the set {set:#b} arrives wrongly");
            sent += set.count_ones();
        }
    }
    say!("to sets: {sent} messages ok");
}

/// Messages to whoever runs at the lowest priority, who is each CPU in turn.
fn to_the_idlest(cpus: u32, rounds: u32) {
    let everyone = lapic::logical((1 << cpus) - 1);
    for idlest in 0..cpus {
        for cpu in 0..cpus {
            order(cpu, if cpu == idlest { LOWER_PRIORITY } else { RAISE_PRIORITY });
        }
        MANYS.forget();
        for round in 1..=rounds {
            lapic::send(everyone, lapic::LOWEST_PRIORITY | lapic::LOGICAL | u32::from(MANY));
            check!(wait::yielding(|| MANYS.all() >= round), "nobody takes message {round}");
        }
        let (idle, all) = (MANYS.of(idlest), MANYS.all());
        check!((idle, all) == (rounds, rounds), "{all} messages, {idle} of them at the idlest, CPU {idlest}");
    }
    for cpu in 0..cpus {
        order(cpu, LOWER_PRIORITY);
    }
    say!("to the idlest: {} messages ok", rounds * cpus);
}

// The device.

/// All interrupts of the device to one CPU, each CPU in turn.
fn device(edu: Edu, cpus: u32, rounds: u32) {
    let pin = edu.connect(DEVICE);
    DEVICE_UNDER_TEST.set(Some((edu, pin)));
    for cpu in 0..cpus {
        SERVED.forget();
        pin.aim(cpu);
        raise(edu, rounds, |_| {});
        let (there, all) = (SERVED.of(cpu), SERVED.all());
        check!((there, all) == (rounds, rounds), "{all} interrupts, {there} of them at CPU {cpu}");
    }
    say!("device: {} interrupts ok", rounds * cpus);
}

/// Each interrupt may be on its way to one CPU when the entry is rewritten for the next.
fn moved(edu: Edu, cpus: u32, rounds: u32) {
    let Some((_, pin)) = DEVICE_UNDER_TEST.get() else { fail!("no device") };
    SERVED.forget();
    raise(edu, rounds * cpus, |round| pin.aim(round % cpus));
    let all = SERVED.all();
    check!(all == rounds * cpus, "{all} interrupts");
    say!("moved: {all} interrupts ok, {} of them at CPU 0", SERVED.of(0));
}

/// Whoever serves an interrupt sends the next one elsewhere before its EOI.
fn moved_in_service(edu: Edu, cpus: u32, rounds: u32) {
    let Some((_, pin)) = DEVICE_UNDER_TEST.get() else { fail!("no device") };
    SERVED.forget();
    pin.aim(0);
    for round in 0..rounds * cpus {
        NEXT.store((round + 1) % cpus, SeqCst);
        raise(edu, 1, |_| {});
    }
    NEXT.store(NOWHERE, SeqCst);
    for cpu in 0..cpus {
        let there = SERVED.of(cpu);
        check!(there == rounds, "{there} interrupts at CPU {cpu}");
    }
    pin.aim(0);
    say!("moved in service: {} interrupts ok", SERVED.all());
}

/// Raises the device's line again and again, each time when the last one has been served. `meanwhile` is done between the
/// assertion and the look whether it was.
fn raise(edu: Edu, rounds: u32, meanwhile: impl Fn(u32)) {
    let before = SERVED.all();
    for round in 1..=rounds {
        edu.raise(BIT);
        meanwhile(round);
        let served = || SERVED.all() >= before + round;
        check!(wait::yielding(served), "interrupt {round} is not served");
    }
    wait::a_moment();
    check!(edu.interrupt_status() == 0, "the line is still asserted");
}

/// CPU 0 moves the device's registers. When the write is over, no CPU finds them at their old place.
fn move_registers(edu: Edu, cpus: u32) {
    const BASE_ADDRESS: u8 = 0x10;
    const STEP: u32 = 0x10_0000;
    let first = edu.function.read32(BASE_ADDRESS) & !0xf;
    let old = edu.registers.read32(0);
    let read = |cpu: u32, at: u32| {
        ADDRESS.store(at as usize, SeqCst);
        order(cpu, READ);
        VALUE.load(SeqCst)
    };
    for round in 0..8 {
        let (from, to) = if round % 2 == 0 { (first, first + STEP) } else { (first + STEP, first) };
        for cpu in 1..cpus {
            check!(read(cpu, from) == old, "CPU {cpu} does not reach the device");
        }
        edu.function.write32(BASE_ADDRESS, to);
        for cpu in 1..cpus {
            let (gone, there) = (read(cpu, from), read(cpu, to));
            check!((gone, there) == (u32::MAX, old), "CPU {cpu} reads {gone:#x} and {there:#x}");
        }
    }
    say!("registers moved 8 times, seen by {} CPUs", cpus - 1);
}

// Starting and resetting.

/// What a CPU runs that is to be reset: it never sleeps.
fn beat(_: u32) -> ! {
    loop {
        BEATS.fetch_add(1, SeqCst);
        core::hint::spin_loop();
    }
}

/// An INIT stops a CPU in whatever it does, and it starts afresh.
fn reset_under_way(cpus: u32) {
    for cpu in 1..cpus {
        for _ in 0..3 {
            smp::start(cpu, beat);
            let before = BEATS.load(SeqCst);
            check!(wait::yielding(|| BEATS.load(SeqCst) > before + 10), "CPU {cpu} does not run");
        }
        lapic::send(cpu, lapic::INIT);
        // The message is there when the write is over; the CPU may be in the middle of something that it ends.
        (0..1000).for_each(|_| core::hint::spin_loop());
        let stopped = BEATS.load(SeqCst);
        (0..1000).for_each(|_| core::hint::spin_loop());
        check!(BEATS.load(SeqCst) == stopped, "CPU {cpu} runs on after an INIT");
        smp::start(cpu, attend);
        order(cpu, LOWER_PRIORITY);
    }
    say!("reset under way: {} CPUs ok", cpus - 1);
}
