//! Lives and dies as often as the command line says, and looks at the beginning of each life for what the last one left.
//!
//! `lives=N` (3): how many; the last one passes. `die=NAME` (isr) says how the others end, each in the handler of an interrupt
//! that nobody has acknowledged: `isr` by a triple fault, `late` by one when its device was quarantined for that, `reset` by
//! hypercall, `code` by the exit port, `halt` with interrupts off; or `storm`: by a triple fault when its device, which it completes
//! but never satisfies, was silenced for interrupting too often. `device=reset` says that something resets the device in between: then its line is low at the
//! beginning of a life, else high. `quarantined=1` says that it begins the last life quarantined, for what it did itself, and stays so.
//!
//! `rng-bus=N` names the bus of a virtio entropy source that something resets in between as well. `lost=1` says that there is an e1000e
//! which does not come back from its first reset.
//!
//! `pause=N` says that between two lives the time stamp counter goes on by N times 2^20 at least; it goes neither with `device=reset` nor
//! with a storm.
//!
//! What counts the lives is `edu`'s liveness register, which no reset clears. Needs a hypervisor that restarts it.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "memory beyond the image, and an end without a way back")]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guests::cpu::{self, CpuCell, Mmio, disable_interrupts, enable_interrupts, timestamp};
use guests::edu::{ACKNOWLEDGE, RAISE};
use guests::hypercall::{Interface, Source, call, function};
use guests::interrupts::{handle, triple_fault_by};
use guests::ioapic::{self, Pin};
use guests::lapic::Mode;
use guests::pci::{Bar, Function};
use guests::{check, cmdline, fail, lapic, say, wait};

guests::guest!("lives", main);

const VECTOR: u8 = 0x60;
/// The mask reason of a device that interrupts too often, for a while.
const THROTTLE: u64 = 1 << 7;
/// The mask reason of a device that does so again and again, whose interrupt was not completed in time, or that is lost.
const QUARANTINE: u64 = 1 << 8;
/// `edu`'s liveness register: reads as the complement of what was written last, at first as 0.
const LIVENESS: usize = 0x04;
/// A register of `edu`'s that means nothing as long as it transfers nothing: when the last life ended.
const ENDED: usize = 0x90;
/// A page that is nothing of the guest's, at the end of the smallest memory it is given.
const SCRATCH: usize = 0x2f_f000;
/// Where Levelhead puts the first BAR, and how far a life may move it.
const BAR: u32 = 0xe000_0000;
const BAR_STEP: u32 = 2 << 20;
const BAR_PLACES: u32 = 128;
const BAR_REGISTER: u8 = 0x10;
const INTERRUPT_LINE: u8 = 0x3c;
/// The scratch register of COM1.
const SCRATCH_PORT: u16 = 0x3ff;
/// Model-specific registers: the local APIC's base, with its switches; the default memory type (APM2 16.3.1, 7.7.1).
const APIC_BASE: u32 = 0x1b;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// All memory write-back, by the default type alone.
const WRITE_BACK: u64 = 1 << 11 | 6;

/// A life that is not the last, for the handler that ends it.
#[derive(Clone, Copy)]
struct Life {
    number: u32,
    function: Function,
    source: Source,
}

static LIFE: CpuCell<Option<Life>> = CpuCell::new(None);
static REGISTERS: CpuCell<Option<Mmio>> = CpuCell::new(None);
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

fn main() {
    let Some(interface) = Interface::find("dying") else { return };
    check!(INTERRUPTS.load(Relaxed) == 0, "a static has a past");
    // SAFETY: RAM that nothing of the guest's lies in.
    let scratch = unsafe { Mmio::new(SCRATCH) };
    let used = (0..0x1000).step_by(4).find(|&offset| scratch.read32(offset) != 0);
    check!(used.is_none(), "memory has a past at {used:x?}");
    scratch.write32(0, u32::MAX);
    scratch.write32(0xffc, u32::MAX);
    // SAFETY: every CPU with memory types has the register, and reading it changes nothing.
    let memory_type = unsafe { cpu::rdmsr(MTRR_DEF_TYPE) };
    // SAFETY: a port of COM1, which reaches no memory.
    let scratch_port = unsafe { cpu::in8(SCRATCH_PORT) };
    let kept = (memory_type, scratch_port);
    check!(kept == (0, 0), "its memory types and its COM1 have a past: {kept:x?}");

    lapic::init();
    let Some(function) = Function::find(0x1234, 0x11e8) else { fail!("no edu device") };
    check!(function.read32(BAR_REGISTER) == BAR, "BAR0 is at {:#x}", function.read32(BAR_REGISTER));
    let Bar::Memory(registers) = function.bar(0) else { fail!("edu's BAR 0 is not memory") };
    let number = registers.read32(LIVENESS);
    let lives = cmdline::number("lives").unwrap_or(3);
    check!(number < lives, "life {number} of {lives}");
    if let Some(bus) = cmdline::number("rng-bus") {
        rng_is_reset(bus as u8);
    }
    if cmdline::number("lost") == Some(1) {
        demand_lost(&interface, number > 0);
    }
    let source = Source::of(&interface, function);
    let info = source.info();
    check!(!info.in_service && info.has_notifier, "life {number} begins with {info:?}");
    check!(info.virtual_pin == function.gsi(), "life {number} begins with {info:?}");
    let asserts = function.interrupt_status();
    let kept = number > 0 && cmdline::value("device") != Some("reset");
    check!(asserts == kept, "life {number}: the device asserts: {asserts}");

    if let Some(pause) = cmdline::number("pause").filter(|_| number > 0) {
        let passed = ticks().wrapping_sub(registers.read32(ENDED));
        check!(passed >= pause, "life {number} begins {passed} times 2^20 ticks after the last, not {pause}");
    }
    registers.write32(LIVENESS, !(number + 1));
    REGISTERS.set(Some(registers));
    let last = number + 1 == lives;
    let life = Life { number, function, source };
    LIFE.set((!last).then_some(life));
    handle(VECTOR, |_| interrupt());
    ioapic::init();
    enable_interrupts();
    wait::a_moment();
    check!(INTERRUPTS.load(Relaxed) == 0, "an interrupt came before its pin was unmasked");
    let pin = Pin::connect(function.gsi(), VECTOR, lapic::id());
    if last && cmdline::number("quarantined") == Some(1) {
        source.unmask();
        wait::a_while();
        let (interrupts, info) = (INTERRUPTS.load(Relaxed), source.info());
        check!(interrupts == 0 && info.mask_reasons == QUARANTINE, "{interrupts} interrupts, {info:?}");
        say!("life {lives} of {lives}: its device is quarantined as before");
        return;
    }
    if !kept {
        registers.write32(RAISE, 1);
    }
    check!(wait::until(|| INTERRUPTS.load(Relaxed) > 0), "life {number}: no interrupt");
    if !last && storms() {
        let silenced = wait::until(|| source.info().mask_reasons & (THROTTLE | QUARANTINE) != 0);
        check!(silenced, "nobody minds the storm");
        life.leave();
        crash();
    }
    check!(last, "life {number} lived on");
    wait::a_while();
    let interrupts = INTERRUPTS.load(Relaxed);
    check!(interrupts == 1 && !pin.remote_irr(), "{interrupts} interrupts, not one");
    say!("life {lives} of {lives}: nothing was left of the others");
}

/// Of a modern virtio entropy source: that its device status is that of a reset (virtio 1.0 4.1.4.3), and is no more then.
fn rng_is_reset(bus: u8) {
    const DEVICE_STATUS: usize = 0x14;
    const ACKNOWLEDGE: u8 = 1;
    let Some(rng) = Function::all_on(bus, 0x1af4, 0x1044).next() else { fail!("no virtio-rng on bus {bus}") };
    rng.enable();
    // Where QEMU puts the common configuration: at the beginning of this BAR.
    let Bar::Memory(common) = rng.bar(4) else { fail!("virtio-rng's BAR 4 is not memory") };
    let status = common.read8(DEVICE_STATUS);
    check!(status == 0, "virtio-rng was not reset: status {status:#x}");
    common.write8(DEVICE_STATUS, ACKNOWLEDGE);
    check!(common.read8(DEVICE_STATUS) == ACKNOWLEDGE, "virtio-rng does not take a status");
}

/// Of an e1000e: that nothing of it is to be reached if it is lost, whatever the guest does, and that it is silenced for good; else
/// that its memory and its ports answer.
fn demand_lost(interface: &Interface, lost: bool) {
    const STATUS: usize = 0x08;
    let Some(function) = Function::find(0x8086, 0x10d3) else { fail!("no e1000e") };
    function.enable();
    let (Bar::Memory(registers), Bar::Ports(ports)) = (function.bar(0), function.bar(2)) else {
        fail!("e1000e's BARs 0 and 2 are not memory and ports")
    };
    // SAFETY: a register that selects others; it reaches no memory.
    let port = unsafe { cpu::in32(ports) };
    let answers = [registers.read32(STATUS), port].map(|value| value != u32::MAX);
    check!(answers == [!lost; 2], "lost is {lost}, and its memory and its ports answer: {answers:?}");
    let source = Source::of(interface, function);
    source.unmask();
    let quarantined = source.info().mask_reasons & QUARANTINE != 0;
    check!(quarantined == lost, "lost is {lost}, and it is quarantined: {quarantined}");
}

/// The time stamp counter in steps of 2^20.
fn ticks() -> u32 {
    (timestamp() >> 20) as u32
}

fn storms() -> bool {
    cmdline::value("die") == Some("storm")
}

impl Life {
    /// Leaves what it can.
    fn leave(self) {
        let Self { number, function, source } = self;
        source.mask();
        function.set_interrupt_disable(true);
        function.write32(INTERRUPT_LINE, 0xff);
        if let Some(registers) = REGISTERS.get() {
            registers.write32(ENDED, ticks());
        }
        function.write32(BAR_REGISTER, BAR + (1 + number % BAR_PLACES) * BAR_STEP);
        // SAFETY: memory is write-back as it was, and nothing else depends on its type.
        unsafe { cpu::wrmsr(MTRR_DEF_TYPE, WRITE_BACK) };
        // SAFETY: a scratch register, which does nothing and reaches no memory.
        unsafe { cpu::out8(SCRATCH_PORT, 0xa5) };
    }
}

/// Crashes, having left its local APIC elsewhere, or switched off where its registers have no place.
fn crash() {
    const SWITCHES: u64 = 0xfff;
    const ENABLED: u64 = 3 << 10;
    const ELSEWHERE: u64 = 0xfef0_0000;
    // SAFETY: every CPU has the register, and reading it changes nothing.
    let base = unsafe { cpu::rdmsr(APIC_BASE) };
    let left = match lapic::mode() {
        Mode::XApic => base & SWITCHES | ELSEWHERE,
        Mode::X2Apic => base & !ENABLED,
    };
    // SAFETY: nothing of the local APIC is used in this life any more, and nothing lies where its page is now.
    unsafe { cpu::wrmsr(APIC_BASE, left) };
    triple_fault_by(0, 0);
}

/// Serves the interrupt of the last life; every other life ends in it, after having left what it can, if it does not end in a storm.
fn interrupt() {
    INTERRUPTS.fetch_add(1, Relaxed);
    let Some(life @ Life { source, .. }) = LIFE.get() else {
        if let Some(registers) = REGISTERS.get() {
            registers.write32(ACKNOWLEDGE, u32::MAX);
        }
        lapic::eoi();
        return;
    };
    if storms() {
        lapic::eoi();
        return;
    }
    life.leave();
    match cmdline::value("die") {
        None | Some("isr") => crash(),
        Some("late") => {
            let quarantined = wait::yielding(|| source.info().mask_reasons & QUARANTINE != 0);
            check!(quarantined, "nobody minds that it does not complete");
            triple_fault_by(0, 0);
        }
        Some("reset") => {
            // SAFETY: the call writes no memory, and where it does what it should the guest ends here.
            let answer = unsafe { call(function::RESET, [0; 3]) };
            fail!("the call came back: {answer:x?}");
        }
        Some("code") => fail!("on purpose"),
        Some("halt") => {
            disable_interrupts();
            cpu::stop();
        }
        Some(other) => fail!("command line: die={other} is no way to die"),
    }
}
