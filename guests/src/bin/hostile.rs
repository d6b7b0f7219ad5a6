//! Misbehaves, in the way the command line names.
//!
//! `do=NAME` picks one deed; without it, all that a guest survives are done in turn, but for the one that `without=NAME`
//! leaves out. Where a deed must be survived,
//! the guest checks what it got (an exception, all ones, an error code) and passes. Where it must end the
//! partition, with a report and nothing worse, a guest that lives on says so and fails.
//!
//! The deeds whose names begin with `every` touch all there is of something, with values from a generator that begins
//! at `seed=N` (0), so that a run can be repeated.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "misbehaviour")]

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use guests::cpu::{
    self, CpuCell, Mmio, disable_interrupts, enable_interrupts, halt_until_interrupt, in8, in16, in32, out8,
    out16, out32,
};
use guests::edu::Edu;
use guests::hypercall::{self, Interface, Source, call, error, function, notifier};
use guests::interrupts::{handle, triple_fault_by};
use guests::pci::{Bar, Function};
use guests::{attempt, check, cmdline, fail, ioapic, lapic, say, serial, wait};

guests::guest!("hostile", main);

/// Exception vectors.
const INVALID_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;

/// A deed by its name on the command line.
type Deed = (&'static str, fn());

/// What a guest survives everywhere.
const SURVIVED: [Deed; 7] = [
    ("ud", ud),
    ("vmrun", vmrun),
    ("odd-instructions", odd_instructions),
    ("apic-garbage", apic_garbage),
    ("pci-garbage", pci_garbage),
    ("nmi-in-nmi", nmi_in_nmi),
    ("storm", storm),
];

/// What a guest survives under Levelhead. A bare machine has other registers and ports, and would obey.
const SURVIVED_UNDER_LEVELHEAD: [Deed; 10] = [
    ("apic-off", apic_off),
    ("bad-msr", bad_msr),
    ("bad-port", bad_port),
    ("unknown-hypercall", unknown_hypercall),
    ("every-leaf", every_leaf),
    ("every-msr", every_msr),
    ("every-port", every_port),
    ("every-device-page", every_device_page),
    ("every-register", every_register),
    ("every-hypercall", every_hypercall),
];

/// What is ended by its device's policy, and not the partition with it.
const JUDGED: [Deed; 2] = [("device-storm", device_storm), ("never-eoi", never_eoi)];

/// What ends the partition.
const FATAL: [Deed; 9] = [
    ("reach", reach),
    ("triple-fault", triple_fault),
    ("bad-mmio", bad_mmio),
    ("bad-mmio-write", bad_mmio_write),
    ("bad-fetch", bad_fetch),
    ("table-in-device", table_in_device),
    ("illegal-cr0", illegal_cr0),
    ("hang-cli", || cpu::stop()),
    ("spin-cli", spin_cli),
];

/// What nobody else should have to read.
const LOUD: Deed = ("flood", flood);

fn main() {
    lapic::init();
    CHANCE.store(u64::from(cmdline::number("seed").unwrap_or(0)), Relaxed);
    let Some(name) = cmdline::value("do") else {
        survive_all(cmdline::value("without"));
        return;
    };
    let named = |(known, _): &&Deed| *known == name;
    if let Some(deed) = SURVIVED.iter().find(named) {
        survive(deed);
    } else if let Some(deed) = SURVIVED_UNDER_LEVELHEAD.iter().chain(&JUDGED).find(named) {
        if hypercall::available(name) {
            survive(deed);
        }
    } else if named(&&LOUD) {
        survive(&LOUD);
    } else if let Some((_, deed)) = FATAL.iter().find(named) {
        say!("{name}, now");
        deed();
        fail!("{name}: lived on");
    } else {
        fail!("command line: do={name} is no deed");
    }
}

/// Does what a guest survives where it is, but for the deed called `without`.
fn survive_all(without: Option<&str>) {
    let left_out = |(name, _): &&Deed| Some(*name) == without;
    if let Some(name) = without
        && !SURVIVED.iter().chain(&SURVIVED_UNDER_LEVELHEAD).any(|deed| left_out(&deed))
    {
        fail!("command line: without={name} is no deed that is survived");
    }
    SURVIVED.iter().filter(|deed| !left_out(deed)).for_each(survive);
    if hypercall::available("the rest") {
        SURVIVED_UNDER_LEVELHEAD.iter().filter(|deed| !left_out(deed)).for_each(survive);
    }
}

fn survive((name, deed): &Deed) {
    deed();
    say!("{name} ok");
}

/// Demands that an instruction raised this exception.
fn demand(instruction: &str, result: Result<(), u8>, vector: u8) {
    check!(result == Err(vector), "{instruction}: {result:?} instead of exception {vector}");
}

fn ud() {
    // SAFETY: raises #UD and does nothing.
    let result = unsafe { attempt!("ud2") };
    demand("ud2", result, INVALID_OPCODE);
}

/// The guest's CPU has no virtual machines of its own.
fn vmrun() {
    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one argument holds for all")]
    // SAFETY: EFER.SVME is off, so each raises #UD and does nothing.
    let results = unsafe {
        [
            ("vmrun", attempt!("vmrun rax", in("rax") 0x1000_u64)),
            ("vmload", attempt!("vmload rax", in("rax") 0x1000_u64)),
            ("vmsave", attempt!("vmsave rax", in("rax") 0x1000_u64)),
            ("stgi", attempt!("stgi")),
            ("clgi", attempt!("clgi")),
            ("skinit", attempt!("skinit eax", in("eax") 0x1_0000)),
            ("invlpga", attempt!("invlpga rax, ecx", in("rax") 0_u64, in("ecx") 0)),
        ]
    };
    for (name, result) in results {
        demand(name, result, INVALID_OPCODE);
    }
}

/// Instructions that a hypervisor may intercept. Each may work or raise an exception, and the guest goes on.
fn odd_instructions() {
    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one argument holds for all")]
    // SAFETY: none writes to memory or changes how memory is reached.
    let results = unsafe {
        [
            ("wbinvd", attempt!("wbinvd")),
            ("invd", attempt!("invd")),
            ("pause", attempt!("pause")),
            ("monitor", attempt!("monitor", in("rax") 0x1000_u64, in("ecx") 0, in("edx") 0)),
            ("mwait", attempt!("mwait", in("eax") 0, in("ecx") 0)),
            ("rdpru", attempt!(".byte 0x0f, 0x01, 0xfd", in("ecx") 0, out("eax") _, out("edx") _)),
            ("mov to cr8", attempt!("mov cr8, rax", in("rax") u64::MAX)),
            ("lock nop", attempt!(".byte 0xf0, 0x90")),
            ("rdtscp", attempt!("rdtscp", out("eax") _, out("ecx") _, out("edx") _)),
            ("rdpmc", attempt!("rdpmc", in("ecx") 0xffff, out("eax") _, out("edx") _)),
            ("rsm", attempt!("rsm")),
            ("xsetbv", attempt!("xsetbv", in("eax") u32::MAX, in("ecx") u32::MAX, in("edx") u32::MAX)),
            ("invlpg", attempt!("invlpg [rax]", in("rax") 0x1000_u64)),
            ("lldt", attempt!("lldt ax", in("ax") 0_u16)),
            ("smsw", attempt!("smsw eax", out("eax") _)),
        ]
    };
    for (name, result) in results {
        match result {
            Ok(()) | Err(INVALID_OPCODE | GENERAL_PROTECTION) => {}
            Err(vector) => fail!("{name}: exception {vector}"),
        }
    }
    for leaf in [0, 1, 7, 0xd, 0x4000_0000, 0x4000_0001, 0x4000_00ff, 0x8000_0000, 0x8000_000a, u32::MAX] {
        __cpuid_count(leaf, u32::MAX);
    }
}

fn bad_msr() {
    const EFER: u32 = 0xc000_0080;
    const SVME: u64 = 1 << 12;
    const VM_CR: u32 = 0xc001_0114;
    const VM_HSAVE_PA: u32 = 0xc001_0117;
    const UNKNOWN: u32 = 0x1234_5678;
    const RESERVED_X2APIC: u32 = 0x8ff;
    for register in [UNKNOWN, u32::MAX, VM_CR, VM_HSAVE_PA, RESERVED_X2APIC] {
        // SAFETY: at worst a register that holds no address of Rust's.
        let result = unsafe { attempt!("rdmsr", in("ecx") register, out("eax") _, out("edx") _) };
        check!(result == Err(GENERAL_PROTECTION), "rdmsr {register:#x}: {result:?}");
        // SAFETY: a register that holds no address of Rust's, and the value is refused.
        let result = unsafe { attempt!("wrmsr", in("ecx") register, in("eax") 0x1000, in("edx") 0) };
        check!(result == Err(GENERAL_PROTECTION), "wrmsr {register:#x}: {result:?}");
    }
    // SAFETY: every 64-bit CPU has the register.
    let efer = unsafe { cpu::rdmsr(EFER) };
    let (low, high) = ((efer | SVME) as u32, (efer >> 32) as u32);
    // SAFETY: the bit has no meaning for a guest.
    let result = unsafe { attempt!("wrmsr", in("ecx") EFER, in("eax") low, in("edx") high) };
    // SAFETY: EFER is read back; every 64-bit CPU has it.
    let seen = unsafe { cpu::rdmsr(EFER) };
    check!(seen == efer, "EFER took SVME ({result:?}): {seen:#x}");
}

/// Reads every port that is not the partition's, and writes to some that a PC would obey.
fn bad_port() {
    let exit = cmdline::number("exit-port").unwrap_or(0xf4);
    let testdev = match Function::find(0x1b36, 0x0005).map(|function| function.bar(1)) {
        Some(Bar::Ports(first)) => u32::from(first)..u32::from(first) + 256,
        _ => 0..0,
    };
    let mine = |port| {
        let (com1, power, config) = (0x3f8..0x400, 0x600..0x602, 0xcf8..0xd00);
        let (timer, clock) = (0x40..0x43, 0x70..0x72);
        com1.contains(&port)
            || timer.contains(&port)
            || clock.contains(&port)
            || power.contains(&port)
            || config.contains(&port)
            || (exit..exit + 4).contains(&port)
            || testdev.contains(&port)
            || port == 0xe9
    };
    for port in (0..=0xffff).filter(|&port| !mine(port)) {
        // SAFETY: no device of the guest's is at this port, so nothing can write to memory.
        let value = unsafe { in8(port as u16) };
        check!(value == u8::MAX, "port {port:#x} reads as {value:#x}");
    }
    // The PIC, the keyboard controller, the clock in another width than its own, the 4D0 register, QEMU's fw_cfg, a port of nobody's.
    for port in [0x20, 0x60, 0x70, 0x4d0, 0x510, 0x1234] {
        // SAFETY: the guest was given no device at this port.
        let value = unsafe { in16(port) };
        check!(value == u16::MAX, "port {port:#x} reads as {value:#x}");
        // SAFETY: the guest was given no device at this port.
        let value = unsafe { in32(port) };
        check!(value == u32::MAX, "port {port:#x} reads as {value:#x}");
    }
    // Resets by the keyboard controller and port 92h; at CF9h, which would be obeyed, the kind of a reset and no reset; at
    // the sleep control register a sleep that was not offered.
    for (port, value) in
        [(0x64, 0xfe), (0x92, 0x01), (0xcf9, 0x0a), (0x600, 0x2c), (0xb2, 0xff), (0x80, 0x55)]
    {
        // SAFETY: what would answer on a bare machine is not the guest's, and reaches no memory.
        unsafe { out8(port, value) };
    }
    // ACPI sleep on q35.
    // SAFETY: the port would end a bare machine; here it is nobody's.
    unsafe { out32(0x604, 0x3c00) };
}

fn unknown_hypercall() {
    // SAFETY: there is no such function.
    let result = unsafe { call(0x1234, [1, 2, 3]) };
    check!(result == Err(error::BAD_FUNCTION), "hypercall 0x1234 returned {result:x?}");
}

/// Writes all ones to every register of the interrupt controllers. Then they are set up anew and must work.
fn apic_garbage() {
    const IO_APIC: usize = 0xfec0_0000;
    // SAFETY: the controllers reach no memory.
    let io_apic = unsafe { Mmio::new(IO_APIC) };
    for register in 0..=0xff {
        io_apic.write32(0, register);
        io_apic.write32(0x10, u32::MAX);
        io_apic.read32(0x10);
    }
    ioapic::init();
    match lapic::mode() {
        lapic::Mode::XApic => {
            // Not the ID, which real controllers keep to themselves and QEMU's lets go: the CPU would be unreachable.
            const ID: usize = 0x20;
            for register in (0..0x400).step_by(16).filter(|&register| register != ID) {
                lapic::window().write32(register, u32::MAX);
                lapic::window().read32(register);
            }
        }
        lapic::Mode::X2Apic => {
            for register in 0x800..0x840 {
                // SAFETY: the controller reaches no memory.
                let _ = unsafe { attempt!("wrmsr", in("ecx") register, in("eax") -1, in("edx") -1) };
                // SAFETY: a read of the controller changes no memory.
                let _ = unsafe { attempt!("rdmsr", in("ecx") register, out("eax") _, out("edx") _) };
            }
        }
    }
    lapic::init();
    one_interrupt();
}

/// Disables the local APIC: neither its registers nor CPUID show it, and enabled again it works as before.
fn apic_off() {
    const APIC_BASE: u32 = 0x1b;
    const ENABLED_XAPIC: u64 = 0xfee0_0900;
    const APIC: u32 = 1 << 9;
    let is_shown = || [1, 0x8000_0001].map(|leaf| __cpuid(leaf).edx & APIC != 0);
    check!(is_shown() == [true; 2], "CPUID shows no local APIC");
    // SAFETY: interrupts are off, and nothing is sent or awaited until it is enabled again.
    unsafe { cpu::wrmsr(APIC_BASE, 0xfee0_0100) };
    check!(is_shown() == [false; 2], "CPUID shows a local APIC that is disabled");
    check!(lapic::window().read32(0x30) == u32::MAX, "a local APIC that is disabled answers");
    // SAFETY: where it was, in the first mode.
    unsafe { cpu::wrmsr(APIC_BASE, ENABLED_XAPIC) };
    check!(is_shown() == [true; 2], "CPUID shows no local APIC that was enabled again");
    lapic::init();
    one_interrupt();
}

/// Writes all ones to all of the device's configuration space, then what was there before. Slots without a
/// device swallow everything.
fn pci_garbage() {
    let edu = Edu::find();
    for offset in (0..=0xfc).step_by(4) {
        let before = edu.function.read32(offset);
        edu.function.write32(offset, u32::MAX);
        edu.function.read32(offset);
        edu.function.write32(offset, before);
    }
    one_interrupt();
}

/// Reads configuration space in memory, which has to be what it is by ports; in every width, and at addresses that no function
/// answers at. Then writes by the one way and reads by the other.
fn every_register() {
    const ECAM: usize = 0xd000_0000;
    const COMMAND: u8 = 4;
    const INTERRUPT_LINE: u8 = 0x3c;
    const INTERRUPT_DISABLE: u16 = 1 << 10;
    // SAFETY: configuration space reaches no memory.
    let at = |number: u8| unsafe { Mmio::new(ECAM + (usize::from(number) << 12)) };
    for number in 0..=u8::MAX {
        let (by_ports, in_memory) = (Function::numbered(number), at(number));
        let present = by_ports.read32(0) != u32::MAX;
        for register in (0..=0xff_u8).step_by(if present { 4 } else { 0x40 }) {
            // Status may change in between.
            let mask = if register == COMMAND { 0xffff } else { u32::MAX };
            let (ports, memory) = (by_ports.read32(register), in_memory.read32(register.into()));
            check!((ports ^ memory) & mask == 0, "{number:#x}, {register:#x}: {ports:#x} and {memory:#x}");
            let (ports, memory) = (by_ports.read8(register), in_memory.read8(register.into()));
            check!(ports == memory, "byte of {number:#x}, {register:#x}: {ports:#x} and {memory:#x}");
        }
        let beyond = if present { 0 } else { u32::MAX };
        check!(in_memory.read32(0x100) == beyond, "{number:#x} has extended registers");
        check!(in_memory.read32(2) == u32::MAX, "{number:#x} answers across two registers");
    }
    // The last bus.
    // SAFETY: configuration space reaches no memory.
    let last = unsafe { Mmio::new(ECAM + (0xff << 20)) };
    check!(last.read32(0) == u32::MAX, "a function on bus 255");
    last.write32(0, 0);

    let edu = Edu::find().function;
    let in_memory = at(edu.slot() << 3);
    let (command, line) = (edu.read16(COMMAND), edu.read8(INTERRUPT_LINE));
    in_memory.write16(COMMAND.into(), command | INTERRUPT_DISABLE);
    check!(edu.read16(COMMAND) == command | INTERRUPT_DISABLE, "Command, written in memory");
    edu.write16(COMMAND, command);
    check!(in_memory.read32(COMMAND.into()) as u16 == command, "Command, written by port");
    in_memory.write8(INTERRUPT_LINE.into(), !line);
    check!(edu.read8(INTERRUPT_LINE) == !line, "Interrupt Line, written in memory");
    in_memory.write8(INTERRUPT_LINE.into(), line);
    one_interrupt();
}

const DEVICE: u8 = 0x51;
const BIT: u32 = 1 << 4;
static EDU: CpuCell<Option<Edu>> = CpuCell::new(None);
static ENTRIES: AtomicU32 = AtomicU32::new(0);

/// Counts, and acknowledges the device at the entry of this number.
fn serve(at: u32) {
    if ENTRIES.fetch_add(1, Relaxed) + 1 >= at
        && let Some(edu) = EDU.get()
    {
        edu.acknowledge(BIT);
    }
    lapic::eoi();
}

const STORM: u32 = 20_000;

/// Never acknowledges the device but after `STORM` interrupts: each EOI brings the next one.
fn storm() {
    handle(DEVICE, |_| serve(STORM));
    demand_interrupts(STORM);
}

fn one_interrupt() {
    handle(DEVICE, |_| serve(1));
    demand_interrupts(1);
}

fn demand_interrupts(expected: u32) {
    let edu = Edu::find();
    EDU.set(Some(edu));
    edu.connect(DEVICE);
    ENTRIES.store(0, Relaxed);
    enable_interrupts();
    edu.raise(BIT);
    let arrived = wait::until(|| ENTRIES.load(Relaxed) >= expected);
    wait::a_while();
    disable_interrupts();
    let entries = ENTRIES.load(Relaxed);
    check!(arrived && entries == expected, "{entries} interrupts instead of {expected}");
}

/// Why a source is silenced, in the word of the call interface.
const QUARANTINE: u64 = 1 << 8;

/// A device that asserts again as soon as it is acknowledged, until its storm budget silences it for good. The command
/// line says how many interrupts (`interrupts=N`) get through until then, and with `control=1` that the guest, as the operator, may
/// admit it again: then it has all of that once more.
fn device_storm() {
    let Some(interface) = Interface::find("the storm") else { return };
    let edu = Edu::find();
    let source = Source::of(&interface, edu.function);
    EDU.set(Some(edu));
    handle(DEVICE, |_| {
        ENTRIES.fetch_add(1, Relaxed);
        if let Some(edu) = EDU.get() {
            edu.acknowledge(BIT);
            edu.raise(BIT);
        }
        lapic::eoi();
    });
    edu.connect(DEVICE);
    let expected = cmdline::number("interrupts").unwrap_or(0);
    let operates = cmdline::number("control") == Some(1);
    for time in 1..=if operates { 2 } else { 1 } {
        ENTRIES.store(0, Relaxed);
        enable_interrupts();
        edu.raise(BIT);
        let ended = wait::until(|| source.info().mask_reasons & QUARANTINE != 0);
        wait::a_while();
        disable_interrupts();
        let (entries, ledger) = (ENTRIES.load(Relaxed), source.ledger());
        ledger.demand_balance_at_rest();
        check!(ended, "nothing stops the storm: {entries} interrupts");
        check!(entries == expected, "{entries} interrupts got through instead of {expected}, time {time}");
        check!(ledger.delivered == u64::from(expected * time), "{expected} interrupts, but {ledger:?}");
        edu.acknowledge(BIT);
        source.unmask();
        let admitted = source.info().mask_reasons == 0;
        check!(admitted == operates, "its own unmask admits it again: {admitted}");
    }
}

const TIMER: u8 = 0x61;
static TICKS: AtomicU32 = AtomicU32::new(0);

/// Lets some hundred milliseconds pass, with interrupts on.
fn wait_long() {
    handle(TIMER, |_| {
        TICKS.fetch_add(1, Relaxed);
        lapic::eoi();
    });
    disable_interrupts();
    let before = TICKS.load(Relaxed);
    lapic::start_timer_once(TIMER, 1 << 25);
    while TICKS.load(Relaxed) == before {
        halt_until_interrupt();
    }
    enable_interrupts();
}

/// A handler that neither acknowledges its device nor sends its EOI, and what the device's policy (`policy=NAME`, as in the
/// configuration) makes of it. Then the guest does what it should have done, and must find everything as if nothing had
/// been.
fn never_eoi() {
    const ROUNDS: u32 = 100;
    let Some(interface) = Interface::find("the missing EOI") else { return };
    let policy = cmdline::value("policy").unwrap_or("");
    let edu = Edu::find();
    let source = Source::of(&interface, edu.function);
    EDU.set(Some(edu));
    handle(DEVICE, |_| {
        ENTRIES.fetch_add(1, Relaxed);
    });
    edu.connect(DEVICE);
    enable_interrupts();
    edu.raise(BIT);
    let forced = if policy == "hold" { 0 } else { 1 };
    let acted = wait::until(|| source.ledger().completed_forced == forced);
    check!(acted, "{policy}: nothing was done");
    // Longer than the deadline, several times over: whatever was done is done once.
    wait_long();
    wait_long();
    let ledger = source.ledger();
    let found = (ledger.delivered, ledger.completed_forced, ledger.in_service);
    // Completed by force, the device asserts still and is delivered again, to stay in service then.
    let expected = match policy {
        "hold" => (1, 0, 1),
        "complete" => (2, 1, 1),
        "quarantine" => (1, 1, 0),
        _ => fail!("command line: policy={policy} is no policy"),
    };
    check!(found == expected, "{policy}: {ledger:?}");
    // Not its own to lift.
    source.unmask();
    let quarantined = source.info().mask_reasons & QUARANTINE != 0;
    check!(quarantined == (policy == "quarantine"), "{policy}: {ledger:?}");
    let entries = ENTRIES.load(Relaxed);
    check!(entries == 1, "{policy}: {entries} interrupts without an EOI");

    edu.acknowledge(BIT);
    handle(DEVICE, |_| serve(1));
    lapic::eoi();
    for round in 1..=ROUNDS {
        edu.raise(BIT);
        if !quarantined {
            let arrived = wait::until(|| ENTRIES.load(Relaxed) > round);
            check!(arrived, "{policy}: interrupt {round} after the EOI is lost");
        }
    }
    wait::a_while();
    disable_interrupts();
    edu.acknowledge(BIT);
    let (entries, ledger) = (ENTRIES.load(Relaxed), source.ledger());
    let expected = if quarantined { 1 } else { 1 + ROUNDS };
    check!(entries == expected, "{policy}: {entries} interrupts in the end, not {expected}");
    check!(ledger.in_service == 0 && ledger.completed_forced == forced, "{policy}: {ledger:?}");
}

static NMIS: AtomicU32 = AtomicU32::new(0);
/// Handlers that have begun and not ended.
static NMI_DEPTH: AtomicU32 = AtomicU32::new(0);

/// Non-maskable interrupts that ask for the next one in their handler, and as many that are asked for one by one.
const NMI_COUNT: u32 = 100;

/// Each must be delivered once, at once, and not before the handler of the one before has ended.
fn nmi_in_nmi() {
    handle(NMI, |_| {
        let inside = NMI_DEPTH.fetch_add(1, Relaxed);
        check!(inside == 0, "a non-maskable interrupt in the handler of another");
        if NMIS.fetch_add(1, Relaxed) + 1 < NMI_COUNT {
            lapic::self_nmi();
            // What a hypervisor is asked for here gives it occasion to deliver too early.
            lapic::requested(DEVICE);
            wait::a_moment();
        }
        NMI_DEPTH.fetch_sub(1, Relaxed);
    });
    NMIS.store(0, Relaxed);
    for expected in NMI_COUNT..=2 * NMI_COUNT {
        lapic::self_nmi();
        let arrived = wait::until(|| NMIS.load(Relaxed) >= expected);
        check!(arrived, "{} non-maskable interrupts instead of {expected}", NMIS.load(Relaxed));
    }
    wait::a_while();
    let all = NMIS.load(Relaxed);
    check!(all == 2 * NMI_COUNT, "{all} non-maskable interrupts instead of {}", 2 * NMI_COUNT);
}

// Everything there is of something.

static CHANCE: AtomicU64 = AtomicU64::new(0);

/// Any number: SplitMix64.
fn any() -> u64 {
    let state = CHANCE.load(Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
    CHANCE.store(state, Relaxed);
    let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// A number of the kind that goes wrong: small, a single bit, all ones, an address where something is, or any.
fn bad() -> u64 {
    let any = any();
    match any >> 61 {
        0 => any & 0x1f,
        1 => 1 << (any & 63),
        2 => u64::MAX - (any & 15),
        3 => 0xfee0_0000 + (any & 0xffff),
        4 => any & 0xffff_ffff,
        _ => any,
    }
}

const NMI: u8 = 2;

/// Makes the local APIC forget what was sent to it, and sets it up anew.
fn restart_lapic() {
    const APIC_BASE: u32 = 0x1b;
    const DISABLED: u64 = 0xfee0_0000;
    const ENABLED: u64 = 1 << 11;
    for value in [DISABLED, DISABLED | ENABLED] {
        // SAFETY: the controller reaches no memory, and interrupts are off.
        unsafe { cpu::wrmsr(APIC_BASE, value) };
    }
    lapic::init();
}

/// Asks for every leaf that has a meaning somewhere, and for many that have none.
fn every_leaf() {
    const FEATURES: u32 = 0x8000_0001;
    const SVM: u32 = 1 << 2;
    let named = (0..0x20).chain(0x4000_0000..0x4000_0010).chain(0x8000_0000..0x8000_0030);
    for leaf in named.chain((0..500).map(|_| any() as u32)) {
        for subleaf in (0..4).chain([any() as u32, u32::MAX]) {
            let answer = __cpuid_count(leaf, subleaf);
            check!(leaf != FEATURES || answer.ecx & SVM == 0, "CPUID offers SVM");
        }
    }
}

/// Reads and writes every register that a permission map or a manual knows, and many that none knows. What could be read
/// is put back.
fn every_msr() {
    const EFER: u32 = 0xc000_0080;
    handle(NMI, |_| {});
    let ranges =
        [0, 0x4000_0000, 0xc000_0000, 0xc001_0000].into_iter().flat_map(|first| first..first + 0x2000);
    for register in ranges.chain((0..4000).map(|_| any() as u32)) {
        let (low, high): (u32, u32);
        // SAFETY: a register that can be read is put back below, and none leads to memory while this runs.
        let read = unsafe { attempt!("rdmsr", in("ecx") register, out("eax") low, out("edx") high) };
        check!(matches!(read, Ok(()) | Err(GENERAL_PROTECTION)), "rdmsr {register:#x}: {read:?}");
        // What this program runs by.
        if register == EFER {
            continue;
        }
        let value = bad();
        let (value_low, value_high) = (value as u32, (value >> 32) as u32);
        // SAFETY: no write to a model-specific register takes memory from this program, which uses none of their addresses.
        let written =
            unsafe { attempt!("wrmsr", in("ecx") register, in("eax") value_low, in("edx") value_high) };
        check!(matches!(written, Ok(()) | Err(GENERAL_PROTECTION)), "wrmsr {register:#x}: {written:?}");
        if read.is_ok() {
            // SAFETY: the register gets back the value that it had a moment ago.
            let _ = unsafe { attempt!("wrmsr", in("ecx") register, in("eax") low, in("edx") high) };
        }
    }
    restart_lapic();
    one_interrupt();
}

/// Memory for string accesses; what it holds does not matter.
static BUFFER: [AtomicU32; 1024] = [const { AtomicU32::new(0x2020_2020) }; 1024];

/// Reads and writes every port in every width, but for the exit port and a device's own. What would power the guest off or
/// reset it is left out of what is written.
fn every_port() {
    let exit = cmdline::number("exit-port").unwrap_or(0xf4);
    let testdev = match Function::find(0x1b36, 0x0005).map(|function| function.bar(1)) {
        Some(Bar::Ports(first)) => u32::from(first)..u32::from(first) + 256,
        _ => 0..0,
    };
    let other = |port: u32| port != exit && !(port..port + 4).any(|port| testdev.contains(&port));
    for port in (0..=0xffff).filter(|&port| other(port)) {
        let (port, value) = (port as u16, any() as u32);
        // SAFETY: nothing behind these ports reaches memory.
        unsafe { out32(port, value) };
        // SAFETY: nothing behind any of these ports can reach memory, in this width either.
        unsafe { out16(port, value as u16) };
        // SAFETY: nothing behind any of these ports can reach memory, in this width either.
        unsafe { out8(port, value as u8 & !ends_the_guest(port)) };
        // SAFETY: a read of such a port changes nothing of this program's.
        let values = (unsafe { in32(port) }, unsafe { in16(port) }, unsafe { in8(port) });
        let platform = [0x40..0x43, 0x70..0x72, 0x3f5..0x400, 0x600..0x602, 0xcf5..0xd00];
        let known = platform.iter().any(|ports| ports.contains(&port)) || port == 0xe9;
        check!(known || values == (u32::MAX, u16::MAX, u8::MAX), "port {port:#x} reads as {values:x?}");
    }
    for port in [0_u16, 0x1234, 0xfff0] {
        let start = BUFFER.as_ptr();
        // SAFETY: RCX bytes from RDI on are the buffer's.
        let read = unsafe {
            attempt!("rep insb", inout("rcx") 4096_u64 => _, inout("rdi") start => _, in("dx") port)
        };
        // SAFETY: RCX times four bytes from RSI on are the buffer's.
        let written = unsafe {
            attempt!("rep outsd", inout("rcx") 1024_u64 => _, inout("rsi") start => _, in("dx") port)
        };
        check!(read.is_ok() && written.is_ok(), "string accesses to port {port:#x}: {read:?}, {written:?}");
        let ones = BUFFER.iter().all(|word| word.load(Relaxed) == u32::MAX);
        check!(ones, "port {port:#x} does not read as ones");
    }
    serial::init();
    // SAFETY: the address register of configuration space reaches no memory.
    unsafe { out32(0xcf8, 0) };
}

/// The bit that powers the guest off or resets it when written to that port.
const fn ends_the_guest(port: u16) -> u8 {
    match port {
        0x600 => 1 << 5,
        0xcf9 => 1 << 2,
        _ => 0,
    }
}

/// Reads and writes every register, and what lies between them, of the pages of the interrupt controllers, and pages of the
/// window for BARs where none is.
fn every_device_page() {
    handle(NMI, |_| {});
    for page in [0xfec0_0000, 0xfee0_0000] {
        // SAFETY: the controllers reach no memory.
        let page = unsafe { Mmio::new(page) };
        for offset in 0..0x1000 - 4 {
            page.read8(offset);
            page.read32(offset);
            page.write8(offset, any() as u8);
            page.write16(offset, any() as u16);
            page.write32(offset, bad() as u32);
        }
    }
    for _ in 0..500 {
        let offset = (any() as usize & 0x17f_ffff) & !3;
        // SAFETY: nothing is there: this guest's BARs lie at the beginning of the window.
        let vacant = unsafe { Mmio::new(0xe600_0000) };
        vacant.write32(offset, any() as u32);
        let value = vacant.read32(offset);
        check!(value == u32::MAX, "nothing at {offset:#x} reads as {value:#x}");
    }
    restart_lapic();
    ioapic::init();
    one_interrupt();
}

/// Makes every hypercall but the one that ends the partition, and calls that do not exist, with good and bad arguments.
fn every_hypercall() {
    const NOT_MEMORY: u64 = 1 << 45;
    let numbers = (0..300).chain((0..2000).map(|n| n % (function::LAST + 1))).chain((0..1000).map(|_| any()));
    for number in numbers.filter(|number| ![function::EXIT, function::RESET].contains(number)) {
        let source = if any() & 3 == 0 { bad() } else { any() & 1 };
        let mut arguments = [source, bad(), bad()];
        // Pointers lead out of memory, since what the calls write and print would be this program.
        match number {
            function::READ_LEDGER | function::READ_HISTORY => arguments[1] |= NOT_MEMORY,
            function::CONSOLE_WRITE => arguments[0] |= NOT_MEMORY,
            function::SET_NOTIFIER if any() & 1 == 0 => arguments[1] = notifier::VIRTUAL_PIN,
            _ => {}
        }
        // SAFETY: none of them writes to memory, and the source is put right below.
        let _ = unsafe { call(number, arguments) };
    }
    let edu = Edu::find();
    let pin = u64::from(edu.function.gsi());
    // SAFETY: leads the device to its pin.
    let set = unsafe { call(function::SET_NOTIFIER, [0, notifier::VIRTUAL_PIN, pin]) };
    // SAFETY: the call changes the state of a line and no memory of the guest.
    let unmasked = unsafe { call(function::UNMASK, [0, 0, 0]) };
    check!(set.is_ok() && unmasked.is_ok(), "the source does not come back: {set:x?}, {unmasked:x?}");
    // What was triggered is taken first.
    restart_lapic();
    ioapic::init();
    handle(DEVICE, |_| serve(1));
    EDU.set(Some(edu));
    edu.connect(DEVICE);
    enable_interrupts();
    wait::a_while();
    disable_interrupts();
    one_interrupt();
}

/// Prints without end, as far as the others are concerned: 2 MiB, by the fastest way there is.
fn flood() {
    const COM1: u16 = 0x3f8;
    for (n, word) in BUFFER.iter().enumerate() {
        word.store(if n % 16 == 15 { 0x0a21_2121 } else { 0x2121_2121 }, Relaxed);
    }
    for _ in 0..512 {
        let start = BUFFER.as_ptr();
        // SAFETY: RCX bytes from RSI on are the buffer's.
        let written = unsafe {
            attempt!("rep outsb", inout("rcx") 4096_u64 => _, inout("rsi") start => _, in("dx") COM1)
        };
        check!(written.is_ok(), "rep outsb: {written:?}");
    }
}

/// Reads the guest-physical page of the number that `page=N` names, wherever that is.
fn reach() {
    const LARGEST: u64 = 1 << 30;
    /// Present, writable, a page of 1 GiB (APM2 5.3.5).
    const PAGE: u64 = 1 << 7 | 3;
    /// The sixth GiB, which boot.S leaves empty.
    const SLOT: usize = 5;
    let Some(page) = cmdline::number("page") else { fail!("command line: reach needs page=N") };
    let target = u64::from(page) << 12;
    let cr3: u64;
    // SAFETY: reading CR3 at privilege level 0 changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    let root = (cr3 & !0xfff) as *const u64;
    // SAFETY: the boot code's table, which is mapped one to one.
    let directories = (unsafe { root.read_volatile() } & 0x000f_ffff_ffff_f000) as *mut u64;
    let entry = directories.wrapping_add(SLOT);
    // SAFETY: in the same table; the entry is empty, and nothing lies behind it that Rust knows.
    unsafe { entry.write_volatile(target & !(LARGEST - 1) | PAGE) };
    let linear = SLOT * LARGEST as usize + (target & (LARGEST - 1)) as usize;
    // SAFETY: where the command line says.
    let value = unsafe { Mmio::new(linear) }.read32(0);
    say!("page {page:#x} begins with {value:#x}");
}

/// The hole between memory and device windows.
const NOWHERE: usize = 0xcff0_0000;

fn bad_mmio() {
    // SAFETY: no memory of Rust's is in the hole.
    let value = unsafe { Mmio::new(NOWHERE) }.read32(0);
    say!("a read of nothing returned {value:#x}");
}

fn bad_mmio_write() {
    // The record of the end must show this register, which a control block holds apart from the others.
    // SAFETY: no memory of Rust's is in the hole, and the access ends the guest.
    unsafe { asm!("mov [{}], rax", in(reg) NOWHERE, in("rax") 0x1234_5678_9abc_def0_u64) };
}

fn bad_fetch() {
    // SAFETY: there is no code, and nothing after it runs.
    unsafe { asm!("jmp {}", in(reg) NOWHERE) };
}

/// An exception with no descriptor table to look it up in.
fn triple_fault() {
    triple_fault_by(0, 0);
}

/// An exception whose descriptor is a register of the local APIC.
fn table_in_device() {
    triple_fault_by(0xfff, 0xfee0_0000);
}

/// CR0.NW without CR0.CD, which is #GP by the manual. QEMU accepts it and then refuses to enter the guest.
fn illegal_cr0() {
    // SAFETY: caches are not in the way of anything, and nothing after it is expected to run.
    unsafe { asm!("mov {0}, cr0", "or {0}, 0x20000000", "mov cr0, {0}", out(reg) _) };
    // A hypervisor looks at the register when the guest comes back to it.
    __cpuid(0);
}

fn spin_cli() {
    disable_interrupts();
    loop {
        core::hint::spin_loop();
    }
}
