//! Makes every hypercall wrongly, and demands the error code that docs/hypercalls.md names: never a fault, never a
//! register changed, and never an effect. In the end the device's interrupt must still arrive.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "hypercalls with arguments that are wrong on purpose")]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guests::cpu::{CpuCell, Mmio, disable_interrupts, enable_interrupts, set_timestamp, timestamp};
use guests::edu::Edu;
use guests::hypercall::{
    FEATURE_POLL_COUNTER, History, Interface, Registers, Source, call, error, function, notifier, take_over,
};
use guests::{check, cmdline, fail, lapic, say, user, wait};

guests::guest!("hypercall", main);

const DEVICE: u8 = 0x51;
const BIT: u32 = 1 << 4;

/// Addresses where no partition has memory: the local APIC's, the hole below 4 GiB, far beyond any machine, and one
/// from where any length wraps around.
const NOWHERE: [u64; 4] = [0xfee0_0000, 0xd000_0000, 1 << 51, u64::MAX - 7];

fn main() {
    let Some(interface) = Interface::find("all") else { return };
    lapic::init();
    let edu = Edu::find();
    edu.connect(DEVICE);
    let source = Source::of(&interface, edu.function);
    let before = source.ledger();

    bad_functions();
    bad_sources(&interface);
    sources_without_pin(&interface);
    bad_notifiers(&interface, source);
    bad_records(source);
    console();
    refuse(function::EXIT, [1 << 32, 0, 0], error::BAD_ARGUMENT);
    say!("exit codes ok");
    user_mode(source);

    let after = source.ledger();
    check!(after == before, "refused calls had an effect: {after:?} was {before:?}");
    interrupt_still_arrives(edu);
    history(source);
}

/// The history tells of the interrupt that has just been, and answers why a source is silenced, since when and by whom (N19).
fn history(source: Source) {
    const ARRIVED: u64 = 0;
    const COMPLETED: u64 = 2;
    const MASKED: u64 = 5;
    const OPERATOR: usize = 4;
    const FAR: u64 = 1 << 50;
    let own = 0;
    // All times are by the guest's own clock.
    set_timestamp(timestamp() + FAR);
    let open = History::of(source);
    let last = open.moment(1).zip(open.moment(0));
    let Some((arrived, completed)) = last else { fail!("an interrupt left no trace: {open:x?}") };
    check!(
        (arrived.what, arrived.by, arrived.reasons) == (ARRIVED, History::DEVICE, 1)
            && (completed.what, completed.by, completed.reasons) == (COMPLETED, own, 0)
            && arrived.at > FAR
            && arrived.at < completed.at
            && completed.at < open.now(),
        "the interrupt is remembered as {arrived:x?} and {completed:x?} at {:#x}",
        open.now()
    );
    check!(open.reasons() == 0 && open.since(OPERATOR) == (0, 0), "the source is not open: {open:x?}");

    let before = timestamp();
    source.mask();
    let after = timestamp();
    let masked = History::of(source);
    let (at, by) = masked.since(OPERATOR);
    check!(
        masked.reasons() == 1 << OPERATOR && by == own && before < at && at < after,
        "masked between {before:#x} and {after:#x}: {masked:x?}"
    );
    let what = masked.moment(0).map(|moment| (moment.at, moment.what, moment.by));
    check!(what == Some((at, MASKED, own)), "the mask is remembered as {what:x?}");
    source.unmask();
    check!(History::of(source).reasons() == 0, "the source is not open after an unmask");
    say!("history ok");
}

/// Makes a call that must fail with this code.
fn refuse(function: u64, arguments: Registers, code: i64) {
    // SAFETY: if it does not fail, the guest ends.
    match unsafe { call(function, arguments) } {
        Err(actual) if actual == code => {}
        Err(actual) => fail!("hypercall {function:#x} with {arguments:x?}: error {actual}, not {code}"),
        Ok(_) => fail!("hypercall {function:#x} with {arguments:x?} succeeded"),
    }
}

fn bad_functions() {
    for function in [13, 14, 0x100, 1 << 32, 1 << 63, u64::MAX] {
        refuse(function, [0; 3], error::BAD_FUNCTION);
    }
    say!("bad functions ok");
}

/// Memory that a call could write to, if it were not refused.
static ROOM: CpuCell<[u64; 96]> = CpuCell::new([0; 96]);

fn room() -> (u64, u64) {
    ((&raw const ROOM).expose_provenance() as u64, size_of_val(&ROOM) as u64)
}

/// The calls that need a source and nothing more.
const ABOUT_A_SOURCE: [u64; 6] = [
    function::SOURCE_INFO,
    function::CLEAR_NOTIFIER,
    function::MASK,
    function::UNMASK,
    function::TRIGGER,
    function::TAKE_OVER,
];

fn bad_sources(interface: &Interface) {
    let (address, bytes) = room();
    for source in [interface.sources, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        refuse(function::SET_NOTIFIER, [source, notifier::VIRTUAL_PIN, 0], error::BAD_SOURCE);
        refuse(function::READ_LEDGER, [source, address, bytes], error::BAD_SOURCE);
        refuse(function::READ_HISTORY, [source, address, bytes], error::BAD_SOURCE);
        for function in ABOUT_A_SOURCE {
            refuse(function, [source, 0, 0], error::BAD_SOURCE);
        }
    }
    // Its own by the name that others would use, and partitions that are not there: who may not control says nothing of either.
    for source in [0x100, 0x200, 0xff00, 0xffff] {
        refuse(function::READ_LEDGER, [source, address, bytes], error::NOT_PERMITTED);
        refuse(function::SET_NOTIFIER, [source, notifier::VIRTUAL_PIN, 0], error::NOT_PERMITTED);
        for function in ABOUT_A_SOURCE {
            refuse(function, [source, 0, 0], error::NOT_PERMITTED);
        }
    }
    // What nobody else may have is here already.
    for source in (0..interface.sources).map(Source) {
        check!(!source.info().moves && take_over(source) == 0, "{source:?} may be taken over");
    }
    say!("bad sources ok");
}

fn sources_without_pin(interface: &Interface) {
    let without = (0..interface.sources).filter(|&source| !Source(source).info().has_intx);
    let (address, bytes) = room();
    let mut count = 0;
    for source in without {
        count += 1;
        refuse(function::READ_LEDGER, [source, address, bytes], error::NO_INTX);
        refuse(function::READ_HISTORY, [source, address, bytes], error::NO_INTX);
        refuse(function::SET_NOTIFIER, [source, notifier::VIRTUAL_PIN, 0], error::NO_INTX);
        for function in [function::CLEAR_NOTIFIER, function::MASK, function::UNMASK, function::TRIGGER] {
            refuse(function, [source, 0, 0], error::NO_INTX);
        }
    }
    say!("sources without INTx ok: {count}");
}

fn bad_notifiers(interface: &Interface, Source(source): Source) {
    for kind in [0, 3, 1 << 32, u64::MAX] {
        refuse(function::SET_NOTIFIER, [source, kind, 0], error::BAD_TARGET);
    }
    for pin in [24, 255, 256, 1 << 32, u64::MAX] {
        refuse(function::SET_NOTIFIER, [source, notifier::VIRTUAL_PIN, pin], error::BAD_TARGET);
    }
    let (address, _) = room();
    refuse(function::SET_NOTIFIER, [source, notifier::POLL_COUNTER, address + 4], error::BAD_TARGET);
    if interface.features & FEATURE_POLL_COUNTER != 0 {
        for address in NOWHERE {
            refuse(function::SET_NOTIFIER, [source, notifier::POLL_COUNTER, address], error::BAD_TARGET);
        }
    }
    say!("bad notifiers ok");
}

fn bad_records(Source(source): Source) {
    let (address, bytes) = room();
    for (function, record) in [(function::READ_LEDGER, 128), (function::READ_HISTORY, 704)] {
        for address in NOWHERE {
            refuse(function, [source, address, bytes], error::BAD_ADDRESS);
        }
        refuse(function, [source, address + 4, bytes - 8], error::BAD_ADDRESS);
        for bytes in [0, record - 1] {
            refuse(function, [source, address, bytes], error::BAD_LENGTH);
        }
    }
    check!(ROOM.get() == [0; 96], "a refused call wrote to memory");
    say!("bad records ok");
}

fn console() {
    const TEXT: &str = "hypercall: a line by hypercall\n";
    let (address, _) = room();
    for address in NOWHERE {
        refuse(function::CONSOLE_WRITE, [address, 16, 0], error::BAD_ADDRESS);
    }
    for bytes in [0, 4097, u64::MAX] {
        refuse(function::CONSOLE_WRITE, [address, bytes, 0], error::BAD_LENGTH);
    }
    if let Some(end) = cmdline::number("memory") {
        // As much as is printed at a time lies in memory, and the rest beyond its end.
        let begin = end as usize - 64;
        // SAFETY: the last bytes of its memory, in which nothing of the guest's lies.
        let last = unsafe { Mmio::new(begin) };
        (0..64).step_by(4).for_each(|offset| last.write32(offset, u32::from_le_bytes(*b"cut\n")));
        refuse(function::CONSOLE_WRITE, [begin as u64, 128, 0], error::BAD_ADDRESS);
    }
    let text = [TEXT.as_ptr().expose_provenance() as u64, TEXT.len() as u64, 0];
    // SAFETY: the call only reads TEXT, which lives for ever.
    let written = unsafe { call(function::CONSOLE_WRITE, text) };
    check!(written.is_ok(), "console write: {written:?}");
    say!("console ok");
}

/// Whatever user mode asks for, the answer is the same.
fn user_mode(Source(source): Source) {
    let (address, bytes) = room();
    for function in function::VERSION..=function::LAST + 1 {
        // SAFETY: the call is refused, or the guest ends below.
        let code = unsafe { user::call(function, [source, address, bytes]) };
        check!(code == error::NOT_PERMITTED, "hypercall {function} from user mode returned {code}");
    }
    check!(ROOM.get() == [0; 96], "a refused call wrote to memory");
    say!("user mode ok");
}

fn interrupt_still_arrives(edu: Edu) {
    static EDU: CpuCell<Option<Edu>> = CpuCell::new(None);
    static INTERRUPTS: AtomicU32 = AtomicU32::new(0);
    EDU.set(Some(edu));
    guests::interrupts::handle(DEVICE, |_| {
        INTERRUPTS.fetch_add(1, Relaxed);
        if let Some(edu) = EDU.get() {
            edu.acknowledge(BIT);
        }
        lapic::eoi();
    });
    enable_interrupts();
    edu.raise(BIT);
    let arrived = wait::until(|| INTERRUPTS.load(Relaxed) > 0);
    wait::a_while();
    disable_interrupts();
    let interrupts = INTERRUPTS.load(Relaxed);
    check!(arrived && interrupts == 1, "{interrupts} interrupts after the refused calls, not 1");
    say!("interrupt ok");
}
