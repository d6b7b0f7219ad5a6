//! The local APIC, by its memory window (xAPIC) or its model-specific registers (x2APIC): APM2 16.
#![expect(unsafe_code, reason = "device memory and model-specific registers")]

use core::sync::atomic::{Ordering::SeqCst, fence};

use crate::cpu::{self, CpuCell, Mmio, rdmsr, wrmsr};
use crate::{cmdline, fail};

/// How the registers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By memory at 0xfee0_0000.
    XApic,
    /// By model-specific registers from 0x800 on.
    X2Apic,
}

impl Mode {
    /// The word for it on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::XApic => "xapic",
            Self::X2Apic => "x2apic",
        }
    }
}

/// The vector of spurious interrupts, which get no EOI.
const SPURIOUS: u8 = 0xff;

/// Register offsets in the memory window; the x2APIC's register is 0x800 + offset / 16.
const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
/// Offset of the EOI register.
pub const EOI: u32 = 0xb0;
const SPURIOUS_VECTOR: u32 = 0xf0;
const IN_SERVICE: u32 = 0x100;
const TRIGGER_MODE: u32 = 0x180;
const INTERRUPT_REQUEST: u32 = 0x200;
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
const LINT0: u32 = 0x350;
const INITIAL_COUNT: u32 = 0x380;
const CURRENT_COUNT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;

/// Local vector table: this entry delivers nothing.
const MASKED: u32 = 1 << 16;
/// Timer entry: the count starts again when it ends.
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;

const WINDOW: usize = 0xfee0_0000;

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_ENABLED: u64 = 1 << 10;

/// Commands for [`send`]; those without a vector of their own take one in the low 8 bits.
pub const FIXED: u32 = 0;
/// To the one of those addressed that runs at the lowest priority.
pub const LOWEST_PRIORITY: u32 = 0b001 << 8;
/// Reset, then wait for a start-up message.
pub const INIT: u32 = 0b101 << 8;
/// Begin at the page in the low 8 bits.
pub const STARTUP: u32 = 0b110 << 8;
/// The destination is a logical one, see [`logical`].
pub const LOGICAL: u32 = 1 << 11;
/// To every CPU but this one; the destination means nothing.
pub const TO_OTHERS: u32 = 0b11 << 18;
const ASSERT: u32 = 1 << 14;

static MODE: CpuCell<Mode> = CpuCell::new(Mode::XApic);

/// Switches the local APIC on, in the mode the command line asks for. Ends the guest if there is no such mode.
pub fn init() -> Mode {
    let mode = match (cmdline::value("apic"), cpu::has_x2apic()) {
        (Some("x2apic") | None, true) => Mode::X2Apic,
        (Some("xapic"), _) | (None, false) => Mode::XApic,
        (Some("x2apic"), false) => fail!("this CPU has no x2APIC"),
        (Some(other), _) => fail!("command line: apic={other} is neither xapic nor x2apic"),
    };
    // SAFETY: the APIC base register is there wherever CPUID shows a local APIC.
    let base = unsafe { rdmsr(APIC_BASE) };
    match mode {
        // SAFETY: the step from xAPIC to x2APIC is legal, and the memory window is not used any more.
        Mode::X2Apic => unsafe { wrmsr(APIC_BASE, base | X2APIC_ENABLED) },
        Mode::XApic if base & X2APIC_ENABLED != 0 => fail!("the firmware left the x2APIC on"),
        Mode::XApic => {}
    }
    MODE.set(mode);

    crate::interrupts::handle(SPURIOUS, |_| {
        // A real interrupt may have the vector, too.
        if in_service(SPURIOUS) {
            eoi();
        }
    });
    take_interrupts();
    mode
}

/// Switches the local APIC of another CPU on, in the mode that [`init`] chose.
pub(crate) fn enable() {
    if mode() == Mode::X2Apic {
        // SAFETY: the APIC base register is there, as in `init`.
        let base = unsafe { rdmsr(APIC_BASE) };
        // SAFETY: the step from xAPIC to x2APIC, or none, is legal.
        unsafe { wrmsr(APIC_BASE, base | X2APIC_ENABLED) };
    }
    take_interrupts();
}

fn take_interrupts() {
    const SOFTWARE_ENABLED: u32 = 1 << 8;
    write(LINT0, MASKED);
    write(TIMER, MASKED);
    write(TASK_PRIORITY, 0);
    write(SPURIOUS_VECTOR, SOFTWARE_ENABLED | u32::from(SPURIOUS));
}

/// How the registers are reached since [`init`].
pub fn mode() -> Mode {
    MODE.get()
}

/// The number of this CPU's local APIC.
pub fn id() -> u32 {
    match mode() {
        Mode::XApic => read(ID) >> 24,
        Mode::X2Apic => read(ID),
    }
}

/// Completes the interrupt in service.
pub fn eoi() {
    write(EOI, 0);
}

/// Holds back interrupts whose vector's upper half is not above that of `priority`.
pub fn set_task_priority(priority: u8) {
    write(TASK_PRIORITY, u32::from(priority));
}

/// Whether `vector` waits to be taken.
pub fn requested(vector: u8) -> bool {
    bit(INTERRUPT_REQUEST, vector)
}

/// Whether `vector` has been taken and not been completed.
pub fn in_service(vector: u8) -> bool {
    bit(IN_SERVICE, vector)
}

/// Whether `vector` was accepted as level-triggered, the last time.
pub fn level_triggered(vector: u8) -> bool {
    bit(TRIGGER_MODE, vector)
}

/// Sends `vector` to this CPU.
pub fn self_ipi(vector: u8) {
    const TO_SELF: u64 = 1 << 18;
    const X2APIC_SELF_IPI: u32 = 0x83f;
    match mode() {
        Mode::XApic => write(COMMAND, TO_SELF as u32 | u32::from(vector)),
        // SAFETY: the register exists in this mode; the vector has a handler, if only one that reports.
        Mode::X2Apic => unsafe { wrmsr(X2APIC_SELF_IPI, u64::from(vector)) },
    }
}

/// Sends a non-maskable interrupt to this CPU, by its number: the shorthand for it is for fixed vectors.
pub fn self_nmi() {
    const NMI: u32 = 0b100 << 8;
    send(id(), NMI);
}

/// Sends `command` to the CPUs that `destination` names.
pub fn send(destination: u32, command: u32) {
    match mode() {
        Mode::XApic => {
            write(COMMAND_HIGH, destination << 24);
            write(COMMAND, command | ASSERT);
        }
        // SAFETY: the register exists in this mode; every vector has a handler, if only one that reports, and a CPU that is
        // started begins where `smp` says.
        Mode::X2Apic => unsafe {
            wrmsr(msr(COMMAND), u64::from(destination) << 32 | u64::from(command | ASSERT));
        },
    }
}

/// Gives this CPU its logical name: in the flat model (xAPIC) a bit of its own, in the x2APIC the one it has.
pub fn name_logically() {
    const LOGICAL_DESTINATION: u32 = 0xd0;
    const DESTINATION_FORMAT: u32 = 0xe0;
    if mode() == Mode::XApic {
        write(DESTINATION_FORMAT, u32::MAX);
        write(LOGICAL_DESTINATION, logical(1 << id()) << 24);
    }
}

/// The logical destination of those CPUs, a bit for each of at most 8.
pub fn logical(cpus: u32) -> u32 {
    // Of the x2APIC they are the first cluster, which is number 0.
    cpus & 0xff
}

/// Has the timer deliver `vector` once, after `count` ticks of its clock divided by 16.
pub fn start_timer_once(vector: u8, count: u32) {
    start_timer(u32::from(vector), count);
}

/// Has the timer deliver `vector` every `count` ticks of its clock divided by 16.
pub fn start_timer_periodic(vector: u8, count: u32) {
    start_timer(PERIODIC | u32::from(vector), count);
}

/// Has the timer deliver `vector` once, when the TSC has reached `deadline`; at once if it has.
pub fn start_timer_at(vector: u8, deadline: u64) {
    write(TIMER, DEADLINE | u32::from(vector));
    // In xAPIC mode the entry is written to memory, which nothing orders before a register (Intel SDM 3A 11.5.4.1).
    fence(SeqCst);
    // SAFETY: whoever asks for a deadline has asked CPUID whether there is one; it touches no memory.
    unsafe { wrmsr(TSC_DEADLINE, deadline) }
}

/// The deadline that has not come yet; 0 if there is none.
pub fn timer_deadline() -> u64 {
    // SAFETY: whoever reads a deadline has set one; reading it touches no memory.
    unsafe { rdmsr(TSC_DEADLINE) }
}

/// Stops the timer.
pub fn stop_timer() {
    write(TIMER, MASKED);
    write(INITIAL_COUNT, 0);
}

/// What is left of the timer's count.
pub fn timer_count() -> u32 {
    read(CURRENT_COUNT)
}

fn start_timer(entry: u32, count: u32) {
    const DIVIDE_BY_16: u32 = 0b0011;
    write(DIVIDE, DIVIDE_BY_16);
    write(TIMER, entry);
    write(INITIAL_COUNT, count);
}

/// Reads a vector's bit in a set of 256, of which each register has 32.
fn bit(set: u32, vector: u8) -> bool {
    let vector = u32::from(vector);
    read(set + vector / 32 * 16) & 1 << (vector % 32) != 0
}

/// The memory window.
pub fn window() -> Mmio {
    // SAFETY: the architecture's place for the registers; interrupts reach memory only through the tables.
    unsafe { Mmio::new(WINDOW) }
}

/// The x2APIC register of a window offset.
pub const fn msr(offset: u32) -> u32 {
    0x800 + offset / 16
}

fn read(offset: u32) -> u32 {
    match mode() {
        Mode::XApic => window().read32(offset as usize),
        // SAFETY: the offsets above exist in this mode.
        Mode::X2Apic => unsafe { rdmsr(msr(offset)) as u32 },
    }
}

fn write(offset: u32, value: u32) {
    match mode() {
        Mode::XApic => window().write32(offset as usize, value),
        // SAFETY: the offsets above exist in this mode, and the values have no reserved bit set.
        Mode::X2Apic => unsafe { wrmsr(msr(offset), u64::from(value)) },
    }
}
