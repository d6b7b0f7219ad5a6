//! Takes interrupts on another CPU than the one that their line leads to, for whoever counts what that costs.
//!
//! CPU 0 raises and waits; every CPU spins with interrupts on, so that each interrupt finds all of them as the one before
//! did. There is no timer, and nobody sleeps. PAUSE lets an emulator that runs all CPUs in one thread go on to the next.
//!
//! Command line:
//! * `do=serve` (the default): `rounds=N` (1000) interrupts of the first `edu`, on `cpus=N` (1) CPUs. With `to=last` (the
//!   default) the virtual entry leads to the last of them, with `to=next` to another one each time;
//! * `do=sleep` and `do=spin`: its device is quiet, and it sleeps, or spins with interrupts off, until it is told that all is
//!   over.
//!
//! With `neighbours=N` it waits at first until the partitions numbered 0 to N - 1 sleep or spin, and tells them in the end:
//! by the loopback of their devices, which takes `control = true`.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use guests::cpu::{CpuCell, disable_interrupts, enable_interrupts, halt_until_interrupt};
use guests::edu::Edu;
use guests::hypercall::{Interface, Source};
use guests::interrupts::{Frame, handle};
use guests::ioapic::Pin;
use guests::{check, cmdline, fail, lapic, say, smp, wait};

guests::guest!("crossing", main);

const DEVICE: u8 = 0x51;
const BIT: u32 = 1 << 4;
/// Rounds that are not counted on, after which each is like the one before.
const WARM_UP: u32 = 16;

static EDU: CpuCell<Option<Edu>> = CpuCell::new(None);
static SERVED: AtomicU32 = AtomicU32::new(0);
/// Whether all is over, where it is said by an interrupt, and where by a counter.
static OVER: AtomicBool = AtomicBool::new(false);
static TOLD: AtomicU64 = AtomicU64::new(0);

fn main() {
    lapic::init();
    let edu = Edu::find();
    EDU.set(Some(edu));
    handle(DEVICE, serve);
    let pin = edu.connect(DEVICE);
    match cmdline::value("do") {
        None | Some("serve") => cross(edu, pin),
        Some("sleep") => sleep(),
        Some("spin") => spin(edu),
        Some(other) => fail!("command line: do={other} is none of serve, sleep, spin"),
    }
}

/// Raises and has it served, again and again.
fn cross(edu: Edu, pin: Pin) {
    let rounds = cmdline::number("rounds").unwrap_or(1000);
    let cpus = smp::count();
    let expected = cmdline::number("cpus").unwrap_or(1);
    check!(cpus == expected, "CPUID shows {cpus} CPUs, not {expected}");
    let next = match cmdline::value("to") {
        None | Some("last") => false,
        Some("next") => true,
        Some(other) => fail!("command line: to={other} is neither last nor next"),
    };
    (1..cpus).for_each(|cpu| smp::start(cpu, attend));
    let neighbours = cmdline::number("neighbours").unwrap_or(0);
    let neighbours = || (0..neighbours).map(|partition| Source(u64::from(partition + 1) << 8));
    for neighbour in neighbours() {
        check!(wait::yielding(|| neighbour.info().mask_reasons == 0), "{neighbour:?} is not ready");
    }
    pin.aim(cpus - 1);
    enable_interrupts();
    for round in 1..=WARM_UP + rounds {
        if next {
            pin.aim(round % cpus);
        }
        edu.raise(BIT);
        check!(wait::yielding(|| SERVED.load(SeqCst) == round), "interrupt {round} is not served");
    }
    disable_interrupts();
    neighbours().for_each(Source::trigger);
    // Nothing about the rounds, as every character is an exit.
    say!("served on {cpus} CPU(s)");
}

/// What the other CPUs run.
fn attend(_: u32) -> ! {
    enable_interrupts();
    loop {
        core::hint::spin_loop();
    }
}

fn serve(_: &mut Frame) {
    let Some(edu) = EDU.get() else { fail!("an interrupt of no device") };
    if edu.interrupt_status() == 0 {
        OVER.store(true, SeqCst);
    } else {
        edu.acknowledge(BIT);
    }
    lapic::eoi();
    SERVED.fetch_add(1, SeqCst);
}

/// Sleeps until its device's interrupt comes, without the device.
fn sleep() {
    while !OVER.load(SeqCst) {
        halt_until_interrupt();
    }
}

/// Spins with interrupts off until its counter says that it is over.
fn spin(edu: Edu) {
    let Some(interface) = Interface::find("spin") else { return };
    let source = Source::of(&interface, edu.function);
    source.notify_counter(&TOLD);
    while TOLD.load(SeqCst) == 0 {
        core::hint::spin_loop();
    }
    source.unmask();
}
