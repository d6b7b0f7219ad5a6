//! Measures what one level-triggered interrupt costs the guest that takes it.
//!
//! Time is the time stamp counter. Under QEMU's `-icount shift=0` one tick is one instruction, the hypervisor's
//! included, and every run gives the same numbers. Per round:
//!
//! ```text
//! program   t0 = rdtsc; raise the line; wait for the flag; t3 = rdtsc
//! handler   t1 = rdtsc; acknowledge the device; t2 = rdtsc; EOI; t2' = rdtsc; set the flag; iret
//!
//! raise_to_isr = t1 - t0     eoi = t2' - t2     round_trip = t3 - t0
//! ```
//!
//! Each number includes the taking of its earlier time stamp; `overhead` is what two time stamps in a row give.
//! The handler is all assembly and saves the few registers it needs, so it adds the same few instructions bare
//! and under a hypervisor.
//!
//! * `vcpu=busy`: the program raises by a store, which acts at once, and spins on the flag with interrupts on.
//! * `vcpu=halted`: the CPU sleeps when the line rises. `edu` raises it at the end of a transfer that QEMU ends 100 ms
//!   after its start, counted from the start of the running millisecond of its own clock. Under `-icount` that clock
//!   is the time stamp counter, so t0 is known to the instruction without anybody awake to take it: the last full
//!   millisecond before t1. A poll checks this once. The time it takes to fall asleep is not in it.
//!
//! `replace=between` replaces the notifier by another pin before each round. `replace=in-flight` replaces it by the same pin
//! between the assertion and the handler, with interrupts off: what was delivered is taken back, and delivered again, since
//! the line is still asserted. The time of the call is `replacement`, and in flight it is part of the round.
//!
//! `exits=yes` measures something else: what CPUID, a read of COM1's line status by port, and a read of the local APIC's memory take
//! (xAPIC mode), without the taking of time.
//!
//! Command line: `vcpu=busy` or `vcpu=halted` for one of the two; `rounds=N`, at most and by default 1000.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the measured code is assembly")]

use core::arch::x86_64::__cpuid;
use core::arch::{asm, naked_asm};
use core::fmt;
use core::hint::black_box;

use guests::cpu::{enable_interrupts, in8};
use guests::edu::{ACKNOWLEDGE, Edu, RAISE, TRANSFER_COMMAND, TRANSFER_DONE, TRANSFER_START};
use guests::hypercall::{Interface, Source};
use guests::interrupts::set_raw_gate;
use guests::ioapic::Pin;
use guests::lapic::{self, Mode};
use guests::{check, cmdline, fail, say, wait};

guests::guest!("bench", main);

const DEVICE: u8 = 0x51;
/// The vector of the other pin.
const OTHER: u8 = 0x61;
const BIT: u32 = 1 << 4;
const WARM_UP: usize = 16;
const MOST_ROUNDS: usize = 1000;
/// A millisecond of QEMU's clock, in ticks.
const MILLISECOND: u64 = 1_000_000;
/// From the last full millisecond before a transfer's start to its end.
const TRANSFER_TIME: u64 = 100 * MILLISECOND;
/// Instructions after the end of a transfer in which the poll must see it.
const POLL: u64 = 100;

fn main() {
    let rounds = cmdline::number("rounds").map_or(MOST_ROUNDS, |rounds| rounds as usize);
    check!((1..=MOST_ROUNDS).contains(&rounds), "rounds={rounds} is not between 1 and {MOST_ROUNDS}");
    let modes: &[Vcpu] = match cmdline::value("vcpu") {
        None => &[Vcpu::Busy, Vcpu::Halted],
        Some("busy") => &[Vcpu::Busy],
        Some("halted") => &[Vcpu::Halted],
        Some(other) => fail!("command line: vcpu={other} is neither busy nor halted"),
    };
    let apic = lapic::init();
    if cmdline::value("exits").is_some() {
        check!(apic == Mode::XApic, "exits=yes is for apic=xapic, whose local APIC lies in memory");
        measure_exits();
        return;
    }
    let edu = Edu::find();
    if modes.contains(&Vcpu::Halted) {
        check_transfer(edu);
    }
    edu.connect(DEVICE);
    let mut replacer = Replacer::new(edu);
    let in_flight = replacer.as_ref().is_some_and(|replacer| replacer.in_flight);
    check!(!in_flight || modes == [Vcpu::Busy], "replace=in-flight is for vcpu=busy");
    let handler = match apic {
        Mode::XApic => xapic_handler as *const () as u64,
        Mode::X2Apic => x2apic_handler as *const () as u64,
    };
    // SAFETY: it changes no register but those that `measure` gives up, and only there are interrupts on.
    unsafe { set_raw_gate(DEVICE, handler) };
    // SAFETY: the same handler at another vector, which changes no more.
    unsafe { set_raw_gate(OTHER, handler) };

    say!("overhead={}", overhead());
    let mut samples = [Sample::default(); MOST_ROUNDS];
    for &vcpu in modes {
        for _ in 0..WARM_UP {
            measure(edu, vcpu, replacer.as_mut());
        }
        let samples = samples.get_mut(..rounds).unwrap_or_default();
        samples.fill_with(|| measure(edu, vcpu, replacer.as_mut()));
        check!(edu.interrupt_status() == 0, "the device still asserts");
        let raise_to_isr = Spread::of(samples, |sample| sample.raise_to_isr);
        let eoi = Spread::of(samples, |sample| sample.eoi);
        let round_trip = Spread::of(samples, |sample| sample.round_trip);
        let (apic, vcpu) = (apic.name(), vcpu.name());
        let replacement = replacer.is_some().then(|| Spread::of(samples, |sample| sample.replacement));
        let replacement = fmt::from_fn(|f| match &replacement {
            Some(replacement) => write!(f, " replacement={replacement}"),
            None => Ok(()),
        });
        say!(
            "row apic={apic} vcpu={vcpu} raise_to_isr={raise_to_isr} eoi={eoi} round_trip={round_trip}{replacement}"
        );
    }
}

/// Measures single instructions that make a guest exit.
fn measure_exits() {
    const LINE_STATUS: u16 = 0x3fd;
    const APIC_ID: usize = 0x20;
    let none = Spread::of_each(0, || ());
    let cpuid = Spread::of_each(none.median, || {
        black_box(__cpuid(1));
    });
    let port = Spread::of_each(none.median, || {
        // SAFETY: that register of COM1 may be read at any time.
        black_box(unsafe { in8(LINE_STATUS) });
    });
    let apic = lapic::window();
    let mmio = Spread::of_each(none.median, || {
        black_box(apic.read32(APIC_ID));
    });
    say!("exit cpuid={cpuid} port={port} mmio={mmio}");
}

/// What the CPU does when the interrupt comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vcpu {
    Busy,
    Halted,
}

impl Vcpu {
    fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Halted => "halted",
        }
    }
}

/// Takes the time into a register, by way of RAX and RDX.
macro_rules! time {
    ($register:literal) => {
        concat!("rdtsc\n shl rdx, 32\n or rax, rdx\n mov ", $register, ", rax")
    };
}

/// What the time stamps of a round differ by.
#[derive(Clone, Copy, Default)]
struct Sample {
    raise_to_isr: u64,
    eoi: u64,
    round_trip: u64,
    replacement: u64,
}

/// Replaces the notifier by one of two pins in turn, or by the same.
struct Replacer {
    source: Source,
    pins: [u8; 2],
    in_flight: bool,
}

impl Replacer {
    /// As the command line says, if it does.
    fn new(edu: Edu) -> Option<Self> {
        let in_flight = match cmdline::value("replace") {
            None | Some("never") => return None,
            Some("between") => false,
            Some("in-flight") => true,
            Some(other) => fail!("command line: replace={other} is none of never, between, in-flight"),
        };
        let source = Source::of(&Interface::find("replace")?, edu.function);
        let first = source.info().virtual_pin;
        let second = if in_flight { first } else { (first + 1) % 24 };
        if !in_flight {
            Pin::connect(second, OTHER, lapic::id());
        }
        Some(Self { source, pins: [second, first], in_flight })
    }

    /// Replaces it. How long that took.
    fn replace(&mut self) -> u64 {
        let [pin, other] = self.pins;
        self.pins = [other, pin];
        let before = time_stamp();
        self.source.notify_pin(pin);
        time_stamp().wrapping_sub(before)
    }
}

/// One round.
///
/// The registers that the program and the handler share: R8 to R11 are the times t0, t1, t2 and t2', R13 points to
/// `edu`'s registers, R14 to the local APIC's EOI register, R15 to the flag.
fn measure(edu: Edu, vcpu: Vcpu, replacer: Option<&mut Replacer>) -> Sample {
    /// After the first time stamp these instructions are executed.
    macro_rules! round {
        ($($line:literal),*; $($name:ident = $value:ident),*) => {{
            let mut flag = 0_u32;
            let (raised, entered, served, completed, seen): (u64, u64, u64, u64, u64);
            // SAFETY: the handler changes the times and the flag that are given up here, and nothing else; the
            // device is the guest's own; interrupts are off again in the end.
            unsafe {
                asm!(
                    time!("r8"),
                    $($line,)*
                    "2:",
                    "cmp dword ptr [r15], 0",
                    "je 2b",
                    time!("r12"),
                    "cli",
                    $($name = const $value,)*
                    out("r8") raised,
                    out("r9") entered,
                    out("r10") served,
                    out("r11") completed,
                    out("r12") seen,
                    in("r13") edu.registers.address(0),
                    in("r14") lapic::window().address(lapic::EOI as usize),
                    in("r15") &raw mut flag,
                    out("rax") _,
                    out("rdx") _,
                );
            }
            (raised, entered, served, completed, seen)
        }};
    }
    let replacement;
    let (mut raised, entered, served, completed, seen) = match (vcpu, replacer) {
        (Vcpu::Busy, Some(replacer)) if replacer.in_flight => {
            let raised = time_stamp();
            edu.raise(BIT);
            replacement = replacer.replace();
            let (_, entered, served, completed, seen) = round!("sti";);
            (raised, entered, served, completed, seen)
        }
        (Vcpu::Busy, replacer) => {
            replacement = replacer.map_or(0, Replacer::replace);
            enable_interrupts();
            round!("mov dword ptr [r13 + {register}], {value}"; register = RAISE, value = BIT)
        }
        (Vcpu::Halted, replacer) => {
            replacement = replacer.map_or(0, Replacer::replace);
            round!(
                "mov dword ptr [r13 + {register}], {value}", "sti", "hlt";
                register = TRANSFER_COMMAND, value = TRANSFER_START
            )
        }
    };
    if vcpu == Vcpu::Halted {
        let started = raised;
        raised = entered - entered % MILLISECOND;
        check!(raised > started, "the interrupt came before the transfer ended");
    }
    Sample {
        raise_to_isr: entered.wrapping_sub(raised),
        eoi: completed.wrapping_sub(served),
        round_trip: seen.wrapping_sub(raised),
        replacement,
    }
}

/// Makes sure that a transfer ends on a full millisecond of the time stamp counter: looks for it without pause, with
/// interrupts off, from shortly before.
fn check_transfer(edu: Edu) {
    edu.start_transfer();
    let end = time_stamp() / MILLISECOND * MILLISECOND + TRANSFER_TIME;
    while time_stamp() + MILLISECOND / 10 < end {
        wait::a_moment();
    }
    check!(edu.interrupt_status() == 0, "a transfer ended too early");
    check!(wait::until(|| edu.interrupt_status() != 0), "a transfer does not end");
    let late = time_stamp().wrapping_sub(end);
    edu.acknowledge(TRANSFER_DONE);
    check!(
        late < POLL,
        "a transfer ended {late} ticks after its time: is this not -icount shift=0,sleep=off?"
    );
}

/// The time stamp counter.
fn time_stamp() -> u64 {
    // SAFETY: RDTSC reads a counter and nothing else; CR4.TSD does not stop CPL 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// What two time stamps in a row differ by.
fn overhead() -> u64 {
    let (first, second): (u64, u64);
    // SAFETY: as in `time_stamp`; the registers it clobbers are named.
    unsafe {
        asm!(
            time!("r8"),
            time!("r9"),
            out("r8") first,
            out("r9") second,
            out("rax") _,
            out("rdx") _,
            options(nomem, nostack)
        );
    }
    second.wrapping_sub(first)
}

#[unsafe(naked)]
extern "C" fn xapic_handler() {
    naked_asm!(
        "push rax",
        "push rdx",
        time!("r9"),
        "mov dword ptr [r13 + {acknowledge}], {all}",
        time!("r10"),
        "mov dword ptr [r14], 0",
        time!("r11"),
        "mov dword ptr [r15], 1",
        "pop rdx",
        "pop rax",
        "iretq",
        acknowledge = const ACKNOWLEDGE,
        all = const u32::MAX,
    )
}

#[unsafe(naked)]
extern "C" fn x2apic_handler() {
    naked_asm!(
        "push rax",
        "push rdx",
        "push rcx",
        time!("r9"),
        "mov dword ptr [r13 + {acknowledge}], {all}",
        time!("r10"),
        "mov ecx, {eoi}",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        time!("r11"),
        "mov dword ptr [r15], 1",
        "pop rcx",
        "pop rdx",
        "pop rax",
        "iretq",
        acknowledge = const ACKNOWLEDGE,
        all = const u32::MAX,
        eoi = const lapic::msr(lapic::EOI),
    )
}

/// How a measured quantity is spread over the rounds; printed as `min,median,max`.
struct Spread {
    min: u64,
    median: u64,
    max: u64,
}

impl Spread {
    /// The ticks that `once` takes in each of some rounds, less so many.
    fn of_each(less: u64, once: impl Fn()) -> Self {
        let mut samples = [0; 100];
        samples.fill_with(|| {
            let before = time_stamp();
            once();
            time_stamp().wrapping_sub(before).saturating_sub(less)
        });
        samples.sort_unstable();
        let at = |index: usize| samples.get(index).copied().unwrap_or(0);
        Self { min: at(0), median: at(samples.len() / 2), max: at(samples.len() - 1) }
    }

    fn of(samples: &mut [Sample], quantity: fn(&Sample) -> u64) -> Self {
        samples.sort_unstable_by_key(quantity);
        let at = |index: usize| samples.get(index).map_or(0, quantity);
        Self { min: at(0), median: at(samples.len() / 2), max: at(samples.len() - 1) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.min, self.median, self.max)
    }
}
