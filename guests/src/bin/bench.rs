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
//! The store that raises the line raises it at once, so where it happens decides what is measured:
//!
//! * `vcpu=busy`: interrupts are on; the CPU spins on the flag.
//! * `vcpu=halted`: interrupts are off; `sti; hlt` follows. The CPU halts with the interrupt already waiting, and
//!   must be woken at once: that is the whole way through a halt without the sleep, whose length nobody
//!   controls. A hypervisor pays for the HLT as well as for the interrupt and the EOI.
//!
//! Command line: `rounds=N`, at most and by default 1000.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the measured code is assembly")]

use core::arch::{asm, naked_asm};
use core::fmt;

use guests::cpu::enable_interrupts;
use guests::edu::{ACKNOWLEDGE, Edu, RAISE};
use guests::interrupts::set_raw_gate;
use guests::lapic::{self, Mode};
use guests::{check, cmdline, say};

guests::guest!("bench", main);

const DEVICE: u8 = 0x51;
const BIT: u32 = 1 << 4;
const WARM_UP: usize = 16;
const MOST_ROUNDS: usize = 1000;

fn main() {
    let rounds = cmdline::number("rounds").map_or(MOST_ROUNDS, |rounds| rounds as usize);
    check!((1..=MOST_ROUNDS).contains(&rounds), "rounds={rounds} is not between 1 and {MOST_ROUNDS}");
    let apic = lapic::init();
    let edu = Edu::find();
    edu.connect(DEVICE);
    let handler = match apic {
        Mode::XApic => xapic_handler as *const () as u64,
        Mode::X2Apic => x2apic_handler as *const () as u64,
    };
    // SAFETY: it changes no register but those that `measure` gives up, and only there are interrupts on.
    unsafe { set_raw_gate(DEVICE, handler) };

    say!("overhead={}", overhead());
    let mut samples = [Sample::default(); MOST_ROUNDS];
    for vcpu in [Vcpu::Busy, Vcpu::Halted] {
        for _ in 0..WARM_UP {
            measure(edu, vcpu);
        }
        let samples = samples.get_mut(..rounds).unwrap_or_default();
        samples.fill_with(|| measure(edu, vcpu));
        check!(edu.interrupt_status() == 0, "the device still asserts");
        let raise_to_isr = Spread::of(samples, |sample| sample.raise_to_isr);
        let eoi = Spread::of(samples, |sample| sample.eoi);
        let round_trip = Spread::of(samples, |sample| sample.round_trip);
        let (apic, vcpu) = (apic.name(), vcpu.name());
        say!("row apic={apic} vcpu={vcpu} raise_to_isr={raise_to_isr} eoi={eoi} round_trip={round_trip}");
    }
}

/// What the CPU does when the interrupt comes.
#[derive(Clone, Copy)]
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
}

/// One round.
///
/// The registers that the program and the handler share: R8 to R11 are the times t0, t1, t2 and t2', R13 points to
/// `edu`'s registers, R14 to the local APIC's EOI register, R15 to the flag.
fn measure(edu: Edu, vcpu: Vcpu) -> Sample {
    /// `raise` is what follows the first time stamp.
    macro_rules! round {
        ($($raise:literal),+) => {{
            let mut flag = 0_u32;
            let (raised, entered, served, completed, seen): (u64, u64, u64, u64, u64);
            // SAFETY: the handler changes the times and the flag that are given up here, and nothing else; the
            // device is the guest's own; interrupts are off again in the end.
            unsafe {
                asm!(
                    time!("r8"),
                    $($raise,)+
                    "2:",
                    "cmp dword ptr [r15], 0",
                    "je 2b",
                    time!("r12"),
                    "cli",
                    raise = const RAISE,
                    bit = const BIT,
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
            Sample {
                raise_to_isr: entered.wrapping_sub(raised),
                eoi: completed.wrapping_sub(served),
                round_trip: seen.wrapping_sub(raised),
            }
        }};
    }
    match vcpu {
        Vcpu::Busy => {
            enable_interrupts();
            round!("mov dword ptr [r13 + {raise}], {bit}")
        }
        Vcpu::Halted => round!("mov dword ptr [r13 + {raise}], {bit}", "sti", "hlt"),
    }
}

/// What two time stamps in a row differ by.
fn overhead() -> u64 {
    let (first, second): (u64, u64);
    // SAFETY: reads a counter.
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
        "mov dword ptr [r13 + {acknowledge}], {bit}",
        time!("r10"),
        "mov dword ptr [r14], 0",
        time!("r11"),
        "mov dword ptr [r15], 1",
        "pop rdx",
        "pop rax",
        "iretq",
        acknowledge = const ACKNOWLEDGE,
        bit = const BIT,
    )
}

#[unsafe(naked)]
extern "C" fn x2apic_handler() {
    naked_asm!(
        "push rax",
        "push rdx",
        "push rcx",
        time!("r9"),
        "mov dword ptr [r13 + {acknowledge}], {bit}",
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
        bit = const BIT,
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
