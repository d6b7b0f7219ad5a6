//! Levelhead's hypercalls, from the guest's side: docs/hypercalls.md.
//!
//! VMMCALL with the function in RAX and arguments in RBX, RCX, RDX; RAX returns 0 or a negative error code, and
//! results come in RBX, RCX, RDX. The layouts are spelled out here once more on purpose: the guests test the
//! document, not the hypervisor's own constants.
#![expect(unsafe_code, reason = "assembly, and memory that the hypervisor writes")]

use core::arch::asm;
use core::sync::atomic::AtomicU64;

use crate::cpu::{self, CpuCell};
use crate::pci::Function;
use crate::{check, fail, say};

/// Function numbers.
pub mod function {
    /// Interface version, features, number of sources.
    pub const VERSION: u64 = 0;
    /// What a source is and how it stands.
    pub const SOURCE_INFO: u64 = 1;
    /// Replaces the notifier.
    pub const SET_NOTIFIER: u64 = 2;
    /// Replaces the notifier by none.
    pub const CLEAR_NOTIFIER: u64 = 3;
    /// Masks the source, as its operator.
    pub const MASK: u64 = 4;
    /// Takes the operator's mask off.
    pub const UNMASK: u64 = 5;
    /// Asserts once, without the device (loopback).
    pub const TRIGGER: u64 = 6;
    /// Writes the source's books to memory.
    pub const READ_LEDGER: u64 = 7;
    /// Writes text to the hypervisor's console.
    pub const CONSOLE_WRITE: u64 = 8;
    /// Ends the partition.
    pub const EXIT: u64 = 9;
    /// Asks for the partition to be started again.
    pub const RESET: u64 = 10;
    /// Takes a device over from the partition that has it.
    pub const TAKE_OVER: u64 = 11;
    /// Writes to memory why the source is silenced, since when and by whom, and what happened to it last.
    pub const READ_HISTORY: u64 = 12;
    /// The last one.
    pub const LAST: u64 = READ_HISTORY;
}

/// Error codes, as RAX has them.
pub mod error {
    /// No such function.
    pub const BAD_FUNCTION: i64 = -1;
    /// The caller's privilege level may not make hypercalls.
    pub const NOT_PERMITTED: i64 = -2;
    /// No such source.
    pub const BAD_SOURCE: i64 = -3;
    /// The device has no interrupt pin.
    pub const NO_INTX: i64 = -4;
    /// No such notifier.
    pub const BAD_TARGET: i64 = -5;
    /// Not the partition's memory, or not aligned.
    pub const BAD_ADDRESS: i64 = -6;
    /// Zero, too long, or too short.
    pub const BAD_LENGTH: i64 = -7;
    /// Another notifier of the machine is being replaced.
    pub const BUSY: i64 = -8;
    /// What this source does not have, or does no more.
    pub const UNSUPPORTED: i64 = -9;
    /// A value does not fit its argument.
    pub const BAD_ARGUMENT: i64 = -10;
    /// Another partition has the device now.
    pub const NOT_OWNER: i64 = -11;
}

/// Kinds of notifiers, RCX of `SET_NOTIFIER`.
pub mod notifier {
    /// An input of the virtual IO-APIC, whose number is in RDX.
    pub const VIRTUAL_PIN: u64 = 1;
    /// A counter in memory, whose address is in RDX.
    pub const POLL_COUNTER: u64 = 2;
}

/// RBX, RCX and RDX, before or after a call.
pub type Registers = [u64; 3];

/// Makes a hypercall. On an error also demands that no register but RAX has changed.
///
/// # Safety
/// There must be a hypervisor, else #UD; and what the call writes to memory or does to the partition must not
/// surprise Rust.
pub unsafe fn call(function: u64, arguments: Registers) -> Result<Registers, i64> {
    let [mut rbx, mut rcx, mut rdx] = arguments;
    let mut rax = function;
    // SAFETY: the caller's promise. RBX is the compiler's and is put back.
    unsafe {
        asm!(
            "xchg rbx, {rbx}",
            "vmmcall",
            "xchg rbx, {rbx}",
            rbx = inout(reg) rbx,
            inout("rax") rax,
            inout("rcx") rcx,
            inout("rdx") rdx,
            options(nostack)
        );
    }
    let results = [rbx, rcx, rdx];
    match rax.cast_signed() {
        0 => Ok(results),
        code => {
            check!(code < 0, "hypercall {function:#x} returned {code:#x}");
            check!(
                results == arguments,
                "hypercall {function:#x} failed and changed {arguments:x?} to {results:x?}"
            );
            Err(code)
        }
    }
}

/// Whether Levelhead is there for what `purpose` needs. If not, says on the console that it is skipped.
pub fn available(purpose: &str) -> bool {
    let available = cpu::under_levelhead();
    if !available {
        say!("{purpose} skipped: no Levelhead here");
    }
    available
}

/// The interface: version, features, and how many sources the partition has.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    /// Version; 1 is what is understood here.
    pub version: u64,
    /// Feature bits.
    pub features: u64,
    /// Sources are numbered from 0 to below this.
    pub sources: u64,
}

/// A poll counter is accepted as a notifier.
pub const FEATURE_POLL_COUNTER: u64 = 1 << 2;

impl Interface {
    /// Asks the hypervisor for what `purpose` needs. `None` without Levelhead, as [`available`].
    pub fn find(purpose: &str) -> Option<Self> {
        if !available(purpose) {
            return None;
        }
        let [version, features, sources] = expect(function::VERSION, [0; 3]);
        check!(version == 1, "hypercall interface version {version}");
        Some(Self { version, features, sources })
    }
}

/// What is known of a source: the results of function 1.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// Bus, device and function, as configuration space encodes them.
    pub bdf: u16,
    /// The input of the virtual IO-APIC that the notifier leads to; 0xff for none.
    pub virtual_pin: u8,
    /// The physical line.
    pub gsi: u32,
    /// The device has an interrupt pin.
    pub has_intx: bool,
    /// A notifier is set.
    pub has_notifier: bool,
    /// A delivery waits for its completion.
    pub in_service: bool,
    /// The physical line is another source's as well.
    pub shared: bool,
    /// Another partition has the device now.
    pub elsewhere: bool,
    /// The device may be taken over.
    pub moves: bool,
    /// Why the source is silenced; 0 if it is open.
    pub mask_reasons: u64,
}

/// One of the partition's sources of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(pub u64);

impl Source {
    /// Finds the source of a device. Ends the guest if there is none.
    pub fn of(interface: &Interface, device: Function) -> Self {
        let found = (0..interface.sources).map(Self).find(|source| source.info().bdf == device.bdf());
        let Some(source) = found else { fail!("the device in slot {} is no source", device.slot()) };
        source
    }

    /// What the source is and how it stands.
    pub fn info(self) -> Info {
        let [identity, flags, mask_reasons] = expect(function::SOURCE_INFO, [self.0, 0, 0]);
        Info {
            bdf: identity as u16,
            virtual_pin: (identity >> 24) as u8,
            gsi: (identity >> 32) as u32,
            has_intx: flags & 1 << 0 != 0,
            has_notifier: flags & 1 << 1 != 0,
            in_service: flags & 1 << 2 != 0,
            shared: flags & 1 << 4 != 0,
            elsewhere: flags & 1 << 5 != 0,
            moves: flags & 1 << 6 != 0,
            mask_reasons,
        }
    }

    /// Replaces the notifier by an input of the virtual IO-APIC.
    pub fn notify_pin(self, pin: u8) {
        expect(function::SET_NOTIFIER, [self.0, notifier::VIRTUAL_PIN, u64::from(pin)]);
    }

    /// Replaces the notifier by a counter, which the hypervisor increments once per delivery.
    pub fn notify_counter(self, counter: &'static AtomicU64) {
        let address = counter.as_ptr().expose_provenance() as u64;
        expect(function::SET_NOTIFIER, [self.0, notifier::POLL_COUNTER, address]);
    }

    /// Replaces the notifier by none.
    pub fn clear_notifier(self) {
        expect(function::CLEAR_NOTIFIER, [self.0, 0, 0]);
    }

    /// Masks the source, as its operator.
    pub fn mask(self) {
        expect(function::MASK, [self.0, 0, 0]);
    }

    /// Takes the operator's mask off.
    pub fn unmask(self) {
        expect(function::UNMASK, [self.0, 0, 0]);
    }

    /// Asserts once, without the device.
    pub fn trigger(self) {
        expect(function::TRIGGER, [self.0, 0, 0]);
    }

    /// Reads the source's books.
    pub fn ledger(self) -> Ledger {
        const VERSION: u64 = 1;
        static RECORD: CpuCell<[u64; Ledger::WORDS]> = CpuCell::new([0; Ledger::WORDS]);
        let room = (&raw const RECORD).expose_provenance() as u64;
        expect(function::READ_LEDGER, [self.0, room, size_of_val(&RECORD) as u64]);
        let [header, words @ ..] = RECORD.get();
        let expected = VERSION | (Ledger::WORDS as u64) << 16;
        check!(header == expected, "the ledger's header is {header:#x}, not {expected:#x}");
        Ledger::new(words)
    }
}

/// Has the device moved to the partition for which the source is named: 1 if it was another's, 0 if it was there already.
pub fn take_over(source: Source) -> u64 {
    let [moved, _, _] = expect(function::TAKE_OVER, [source.0, 0, 0]);
    moved
}

/// What a source's line remembers: function 12's record.
#[derive(Clone, Copy, Debug)]
pub struct History([u64; Self::WORDS]);

/// Something that happened to a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// By the time stamp counter.
    pub at: u64,
    /// The mask reasons afterwards.
    pub reasons: u64,
    /// What it was, by its number in the document.
    pub what: u64,
    /// Who made it happen: a partition's number, or one of [`History`]'s.
    pub by: u64,
}

impl History {
    /// A device, as who made something happen.
    pub const DEVICE: u64 = 255;
    /// The hypervisor, likewise.
    pub const HYPERVISOR: u64 = 254;
    /// Words of the record, the header included.
    const WORDS: usize = 88;
    /// Words before the moments.
    const HEAD: usize = 24;

    /// Reads the record of a source.
    pub fn of(source: Source) -> Self {
        const HEADER: u64 = 1 | (History::WORDS as u64) << 16;
        static RECORD: CpuCell<[u64; History::WORDS]> = CpuCell::new([0; History::WORDS]);
        let room = (&raw const RECORD).expose_provenance() as u64;
        let [written, ..] = expect(function::READ_HISTORY, [source.0, room, size_of_val(&RECORD) as u64]);
        let record = Self(RECORD.get());
        check!(written == size_of_val(&RECORD) as u64, "the history has {written} bytes");
        check!(record.word(0) == HEADER, "the history's header is {:#x}, not {HEADER:#x}", record.word(0));
        record
    }

    fn word(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or(0)
    }

    /// When it was read, by the time stamp counter.
    pub fn now(&self) -> u64 {
        self.word(1)
    }

    /// Why the source is silenced.
    pub fn reasons(&self) -> u64 {
        self.word(2)
    }

    /// Since when a reason stands, and by whom; zeros for one that does not.
    pub fn since(&self, reason: usize) -> (u64, u64) {
        (self.word(4 + 2 * reason), self.word(5 + 2 * reason))
    }

    /// The moment before last, and the last one, for 1 and 0.
    pub fn moment(&self, ago: usize) -> Option<Moment> {
        let index = (self.word(3) as usize).checked_sub(ago + 1)?;
        let packed = self.word(Self::HEAD + 2 * index + 1);
        Some(Moment {
            at: self.word(Self::HEAD + 2 * index),
            reasons: packed & 0xffff,
            what: packed >> 16 & 0xff,
            by: packed >> 24 & 0xff,
        })
    }
}

/// The books of one source: function 7's record, in the order of its words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "docs/hypercalls.md has a table of them")]
pub struct Ledger {
    pub accepted_wire: u64,
    pub accepted_loopback: u64,
    pub accepted_replay: u64,
    pub delivered: u64,
    pub coalesced: u64,
    pub suppressed: u64,
    pub pending: u64,
    pub completed_eoi: u64,
    pub completed_forced: u64,
    pub completed_reset: u64,
    pub completed_handover: u64,
    pub in_service: u64,
    pub handler_registrations: u64,
    pub notifier_replacements: u64,
    pub mask_reasons: u64,
}

impl Ledger {
    /// Words of the record, the header included.
    const WORDS: usize = 16;

    fn new(words: [u64; Self::WORDS - 1]) -> Self {
        let [
            accepted_wire,
            accepted_loopback,
            accepted_replay,
            delivered,
            coalesced,
            suppressed,
            pending,
            completed_eoi,
            completed_forced,
            completed_reset,
            completed_handover,
            in_service,
            handler_registrations,
            notifier_replacements,
            mask_reasons,
        ] = words;
        Self {
            accepted_wire,
            accepted_loopback,
            accepted_replay,
            delivered,
            coalesced,
            suppressed,
            pending,
            completed_eoi,
            completed_forced,
            completed_reset,
            completed_handover,
            in_service,
            handler_registrations,
            notifier_replacements,
            mask_reasons,
        }
    }

    /// Demands that every assertion is accounted for, that none is on its way, and that the physical handler was
    /// installed once, whatever the guest did to its notifier.
    pub fn demand_balance_at_rest(&self) {
        self.demand_balance_after(0);
    }

    /// The same, where so many deliveries were completed by force.
    pub fn demand_balance_after(&self, forced: u64) {
        let accepted = self.accepted_wire + self.accepted_loopback + self.accepted_replay;
        let completed =
            self.completed_eoi + self.completed_forced + self.completed_reset + self.completed_handover;
        check!(
            accepted == self.delivered + self.coalesced + self.suppressed + self.pending
                && self.delivered == completed + self.in_service,
            "the ledger does not balance: {self:?}"
        );
        check!(self.pending == 0 && self.in_service == 0, "the ledger is not at rest: {self:?}");
        check!(self.completed_forced == forced, "{forced} completed by force, and in the ledger: {self:?}");
        check!(self.handler_registrations == 1, "the physical handler was not installed once: {self:?}");
    }
}

/// How often a call is made again that met somebody else's replacement. That takes as long as the deliveries under way do.
const MOST_TRIES: u32 = 1_000_000;

/// Makes a call that touches no memory but what the arguments were made for, and that must succeed: at once, or when somebody
/// else has replaced a notifier, or is done with the device.
fn expect(function: u64, arguments: Registers) -> Registers {
    for _ in 0..MOST_TRIES {
        // SAFETY: only reached under Levelhead; the only call here that writes memory writes a cell made for it.
        match unsafe { call(function, arguments) } {
            Ok(results) => return results,
            Err(error::BUSY) => core::hint::spin_loop(),
            Err(code) => fail!("hypercall {function} with {arguments:x?}: error {code}"),
        }
    }
    fail!("hypercall {function} with {arguments:x?}: busy for ever")
}
