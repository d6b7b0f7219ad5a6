//! The hypercall interface: numbers, arguments, results and the layout of what is written to guest memory.
//!
//! Reference for guests: `docs/hypercalls.md`. A call is VMMCALL with the function in RAX and arguments in RBX,
//! RCX, RDX; the guest's values are allegations until [`Call::decode`] accepted them. Which sources exist, which
//! memory is a guest's, and what a call does is the hypervisor's business, not this module's.

use crate::addr::GuestPhys;
use crate::irq::Pin;
use crate::vcpu::{CodeSize, Gpr, GuestRegs};

mod history;

pub use history::{HistoryMoment, HistoryRecord, HistorySince};

/// Version of the interface, raised when something a guest relies on changes its meaning.
pub const ABI_VERSION: u64 = 1;

/// Optional parts of the interface, as reported by [`Call::Version`] and CPUID 0x4000_0001 EBX.
pub mod feature {
    /// [`Call::Trigger`](super::Call::Trigger) works.
    pub const LOOPBACK: u64 = 1 << 0;
    /// [`Call::ReadLedger`](super::Call::ReadLedger) works.
    pub const LEDGER: u64 = 1 << 1;
    /// [`Target::PollCounter`](super::Target::PollCounter) is accepted.
    pub const POLL_COUNTER: u64 = 1 << 2;
    /// [`Call::TakeOver`](super::Call::TakeOver) works.
    pub const TAKEOVER: u64 = 1 << 3;
    /// [`Call::ReadHistory`](super::Call::ReadHistory) works.
    pub const HISTORY: u64 = 1 << 4;
    /// What this build has.
    pub const OFFERED: u64 = LOOPBACK | LEDGER | POLL_COUNTER | TAKEOVER | HISTORY;
}

/// The most bytes one console write takes.
pub const CONSOLE_WRITE_MAX_BYTES: u64 = 4096;

/// One of a partition's devices. An allegation until the hypervisor found the device.
///
/// | bits | meaning |
/// | --- | --- |
/// | 7:0 | its index in the order of the configuration: the partition's own, then those that it stands by for |
/// | 15:8 | 0: the caller's partition; else 1 + the number of a partition, for a caller that may control others |
/// | 31:16 | 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

impl SourceId {
    /// The number of the partition, unless it is the caller's, and the index there; `None` if the number names nothing.
    pub const fn parts(self) -> Option<(Option<u8>, u8)> {
        let [index, partition, 0, 0] = self.0.to_le_bytes() else { return None };
        Some((partition.checked_sub(1), index))
    }
}

/// Where a notifier leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An input of the partition's virtual IO-APIC; not yet checked against its size.
    VirtualPin(Pin),
    /// A 64-bit counter in the partition's RAM, aligned to eight bytes; not yet checked to be RAM.
    PollCounter(GuestPhys),
}

impl Target {
    /// RCX for a virtual pin.
    pub const KIND_VIRTUAL_PIN: u64 = 1;
    /// RCX for a poll counter.
    pub const KIND_POLL_COUNTER: u64 = 2;
}

/// A range of guest memory as alleged: it does not wrap, and nothing more is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The first byte.
    pub address: GuestPhys,
    /// How many bytes follow from there; not zero.
    pub bytes: u64,
}

/// A well-formed hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Function 0: interface version, features, number of sources.
    Version,
    /// Function 1: what a source is and how it stands; see [`SourceInfo`].
    SourceInfo(SourceId),
    /// Function 2: replaces the notifier.
    SetNotifier(SourceId, Target),
    /// Function 3: replaces the notifier by none.
    ClearNotifier(SourceId),
    /// Function 4: adds the mask reason Operator.
    Mask(SourceId),
    /// Function 5: removes the mask reason Operator; for a poll counter also completes the delivery in service.
    Unmask(SourceId),
    /// Function 6: an assertion that did not come from the wire.
    Trigger(SourceId),
    /// Function 7: writes a [`LedgerRecord`] to memory. The buffer is aligned to 8 bytes and holds the record.
    ReadLedger(SourceId, Buffer),
    /// Function 8: text for the hypervisor's console, at most [`CONSOLE_WRITE_MAX_BYTES`].
    ConsoleWrite(Buffer),
    /// Function 9: ends the partition; 0 is success. Does not return.
    Exit(u32),
    /// Function 10: ends the guest and asks for its partition to be started again. Does not return.
    Reset,
    /// Function 11: moves the device to the partition for which the source is named.
    TakeOver(SourceId),
    /// Function 12: writes a [`HistoryRecord`] to memory. The buffer is aligned to 8 bytes and holds the record.
    ReadHistory(SourceId, Buffer),
}

/// Why a call failed: the negative value in RAX. Nothing has changed then, and RBX, RCX, RDX are as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum CallError {
    /// No such function.
    BadFunction = -1,
    /// The caller's privilege level may not make hypercalls.
    NotPermitted = -2,
    /// No such source in this partition.
    BadSource = -3,
    /// The device has no interrupt pin.
    NoIntx = -4,
    /// No such kind of notifier, no such virtual pin, or a counter that is not aligned RAM.
    BadTarget = -5,
    /// The memory is not the partition's RAM, or not aligned as demanded.
    BadAddress = -6,
    /// The length is zero, too large, or too small for the record.
    BadLength = -7,
    /// Another notifier of the machine is being replaced just now; try again.
    Busy = -8,
    /// The function exists, but not in this build or for this source.
    Unsupported = -9,
    /// A value does not fit its argument.
    BadArgument = -10,
    /// Another partition has the device now.
    NotOwner = -11,
}

impl CallError {
    /// RAX as the guest sees it.
    pub const fn to_rax(self) -> u64 {
        // The sign extension is the point.
        (self as i64).cast_unsigned()
    }
}

/// Who makes the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The current privilege level, 0 to 3.
    pub cpl: u8,
    /// The code's size: outside 64-bit mode only the lower halves of the registers count.
    pub code_size: CodeSize,
    /// Whether the configuration opens hypercalls to user mode (`user-hypercalls = true`).
    pub user_hypercalls: bool,
}

impl Call {
    /// Turns the guest's registers into a call. The privilege level is checked before anything else is looked at.
    pub fn decode(regs: &GuestRegs, caller: Caller) -> Result<Self, CallError> {
        if caller.cpl != 0 && !caller.user_hypercalls {
            return Err(CallError::NotPermitted);
        }
        let register = |gpr| {
            let value: u64 = regs[gpr];
            if caller.code_size == CodeSize::Bits64 { value } else { value & 0xffff_ffff }
        };
        let (rbx, rcx, rdx) = (register(Gpr::Rbx), register(Gpr::Rcx), register(Gpr::Rdx));
        let source = || u32::try_from(rbx).map(SourceId).map_err(|_| CallError::BadSource);
        Ok(match register(Gpr::Rax) {
            0 => Self::Version,
            1 => Self::SourceInfo(source()?),
            2 => Self::SetNotifier(source()?, target(rcx, rdx)?),
            3 => Self::ClearNotifier(source()?),
            4 => Self::Mask(source()?),
            5 => Self::Unmask(source()?),
            6 => Self::Trigger(source()?),
            7 => Self::ReadLedger(source()?, record(rcx, rdx, LedgerRecord::BYTES)?),
            8 => {
                if rcx == 0 || rcx > CONSOLE_WRITE_MAX_BYTES {
                    return Err(CallError::BadLength);
                }
                Self::ConsoleWrite(buffer(rbx, rcx, 1)?)
            }
            9 => Self::Exit(u32::try_from(rbx).map_err(|_| CallError::BadArgument)?),
            10 => Self::Reset,
            11 => Self::TakeOver(source()?),
            12 => Self::ReadHistory(source()?, record(rcx, rdx, HistoryRecord::BYTES)?),
            _ => return Err(CallError::BadFunction),
        })
    }
}

fn target(kind: u64, value: u64) -> Result<Target, CallError> {
    match kind {
        Target::KIND_VIRTUAL_PIN => {
            u8::try_from(value).map(|pin| Target::VirtualPin(Pin(pin))).map_err(|_| CallError::BadTarget)
        }
        Target::KIND_POLL_COUNTER => match buffer(value, 8, 8) {
            Ok(counter) => Ok(Target::PollCounter(counter.address)),
            Err(_) => Err(CallError::BadTarget),
        },
        _ => Err(CallError::BadTarget),
    }
}

/// Room for a record. However much is offered: the record is what will be written.
fn record(address: u64, offered: u64, bytes: usize) -> Result<Buffer, CallError> {
    if offered < bytes as u64 {
        return Err(CallError::BadLength);
    }
    buffer(address, bytes as u64, 8)
}

fn buffer(address: u64, bytes: u64, align: u64) -> Result<Buffer, CallError> {
    let address = GuestPhys::new(address);
    if !address.is_aligned(align) || address.checked_add(bytes).is_none() {
        return Err(CallError::BadAddress);
    }
    Ok(Buffer { address, bytes })
}

/// What a call returns: up to three values in RBX, RCX, RDX, or an error in RAX alone.
pub type Reply = Result<[u64; 3], CallError>;

/// Puts a reply into the registers of the guest. Unused results are zero.
#[inline]
pub fn answer(regs: &mut GuestRegs, reply: Reply) {
    match reply {
        Ok([rbx, rcx, rdx]) => {
            regs[Gpr::Rax] = 0;
            regs[Gpr::Rbx] = rbx;
            regs[Gpr::Rcx] = rcx;
            regs[Gpr::Rdx] = rdx;
        }
        Err(error) => regs[Gpr::Rax] = error.to_rax(),
    }
}

/// The three results of function 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceInfo {
    /// Bus, device and function as configuration space encodes them: bus << 8 | device << 3 | function.
    pub bdf: u16,
    /// The interrupt pin register: 0 none, 1 to 4 INTA to INTD.
    pub intx_pin: u8,
    /// The virtual IO-APIC input the notifier leads to, if it leads to one.
    pub virtual_pin: Option<Pin>,
    /// The physical line, if the device has one.
    pub gsi: Option<u32>,
    /// Whether a notifier is set.
    pub has_notifier: bool,
    /// Whether a delivery waits for its completion.
    pub in_service: bool,
    /// Whether an assertion met no notifier and waits for the next one.
    pub pending: bool,
    /// Whether other sources share the physical line.
    pub shared: bool,
    /// Whether another partition has the device now, and nothing of it is left here. Then, and while it is on its way there,
    /// nothing is said of how it stands.
    pub elsewhere: bool,
    /// Whether it may be taken over.
    pub moves: bool,
    /// The mask reasons, bit n for the n-th in the table of `docs/hypercalls.md`; 0 = open.
    pub mask_reasons: u64,
}

impl SourceInfo {
    /// RCX bit: the device has INTx.
    pub const HAS_INTX: u64 = 1 << 0;
    /// RCX bit: a notifier is set.
    pub const HAS_NOTIFIER: u64 = 1 << 1;
    /// RCX bit: a delivery is in service.
    pub const IN_SERVICE: u64 = 1 << 2;
    /// RCX bit: an assertion waits for a notifier.
    pub const PENDING: u64 = 1 << 3;
    /// RCX bit: the physical line is shared.
    pub const SHARED: u64 = 1 << 4;
    /// RCX bit: another partition has the device now.
    pub const ELSEWHERE: u64 = 1 << 5;
    /// RCX bit: the device may be taken over.
    pub const MOVES: u64 = 1 << 6;

    /// RBX, RCX, RDX.
    pub const fn encode(&self) -> [u64; 3] {
        let virtual_pin = match self.virtual_pin {
            Some(Pin(pin)) => pin as u64,
            None => 0xff,
        };
        let gsi = match self.gsi {
            Some(gsi) => gsi as u64,
            None => 0xffff_ffff,
        };
        let identity = self.bdf as u64 | (self.intx_pin as u64) << 16 | virtual_pin << 24 | gsi << 32;
        let mut flags = 0;
        if self.intx_pin != 0 {
            flags |= Self::HAS_INTX;
        }
        if self.has_notifier {
            flags |= Self::HAS_NOTIFIER;
        }
        if self.in_service {
            flags |= Self::IN_SERVICE;
        }
        if self.pending {
            flags |= Self::PENDING;
        }
        if self.shared {
            flags |= Self::SHARED;
        }
        if self.elsewhere {
            flags |= Self::ELSEWHERE;
        }
        if self.moves {
            flags |= Self::MOVES;
        }
        [identity, flags, self.mask_reasons]
    }
}

/// Lays a record's words out as guests read them, little-endian.
// Out of line, so that no caller is left with several copies whose one address it keeps in a register: what is called there no
// gate can tell.
#[inline(never)]
fn put_words(words: &[u64], bytes: &mut [u8]) {
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

macro_rules! ledger {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// The books of one source as function 7 writes them: 64-bit little-endian words, first a header with the
        /// layout's version (bits 15:0) and the number of words including the header (bits 31:16), then one word
        /// per field in this order.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct LedgerRecord {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl LedgerRecord {
            /// The layout's version.
            pub const VERSION: u64 = 1;
            /// Words including the header.
            pub const WORDS: usize = 1 $(+ { let _ = stringify!($field); 1 })*;

            fn words(&self) -> [u64; Self::WORDS] {
                [Self::VERSION | (Self::WORDS as u64) << 16, $(self.$field,)*]
            }
        }
    };
}

ledger! {
    /// Assertions taken from the wire.
    accepted_wire,
    /// Assertions by function 6.
    accepted_loopback,
    /// Assertions found by asking a function that was about to be opened and still asserted.
    accepted_replay,
    /// Deliveries to a notifier.
    delivered,
    /// Assertions merged into a delivery already waiting or in service.
    coalesced,
    /// Assertions that met a closed gate, loopbacks nobody could hear, and those the level itself carried on.
    suppressed,
    /// 1 while an assertion waits for a notifier.
    pending,
    /// Deliveries completed by the guest.
    completed_eoi,
    /// Deliveries completed by the hypervisor on behalf of a guest that did not.
    completed_forced,
    /// Deliveries ended by a reset.
    completed_reset,
    /// Deliveries ended because the device changed hands.
    completed_handover,
    /// 1 while a delivery waits for its completion.
    in_service,
    /// How often a physical handler was installed since the assignment: 1.
    handler_registrations,
    /// How often the notifier was replaced, none included.
    notifier_replacements,
    /// The mask reasons at the moment of the record, as in function 1.
    mask_reasons,
}

impl LedgerRecord {
    /// Size in memory, in bytes.
    pub const BYTES: usize = Self::WORDS * 8;

    /// The record as it is written to guest memory.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put_words(&self.words(), &mut bytes);
        bytes
    }

    /// Whether every assertion is accounted for: accepted = delivered + coalesced + suppressed + pending and
    /// delivered = completed + in service. Sums wrap like the counters.
    pub const fn is_balanced(&self) -> bool {
        let accepted =
            self.accepted_wire.wrapping_add(self.accepted_loopback).wrapping_add(self.accepted_replay);
        let outcome = self
            .delivered
            .wrapping_add(self.coalesced)
            .wrapping_add(self.suppressed)
            .wrapping_add(self.pending);
        let completed = self
            .completed_eoi
            .wrapping_add(self.completed_forced)
            .wrapping_add(self.completed_reset)
            .wrapping_add(self.completed_handover);
        accepted == outcome && self.delivered == completed.wrapping_add(self.in_service)
    }
}

const _: () = assert!(LedgerRecord::BYTES == 128);

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Caller = Caller { cpl: 0, code_size: CodeSize::Bits64, user_hypercalls: false };

    fn regs(rax: u64, rbx: u64, rcx: u64, rdx: u64) -> GuestRegs {
        let mut regs = GuestRegs::new();
        regs[Gpr::Rax] = rax;
        regs[Gpr::Rbx] = rbx;
        regs[Gpr::Rcx] = rcx;
        regs[Gpr::Rdx] = rdx;
        regs
    }

    fn call(rax: u64, rbx: u64, rcx: u64, rdx: u64) -> Result<Call, CallError> {
        Call::decode(&regs(rax, rbx, rcx, rdx), KERNEL)
    }

    #[test]
    fn every_function() {
        let source = SourceId(2);
        assert_eq!(call(0, 9, 9, 9), Ok(Call::Version));
        assert_eq!(call(1, 2, 0, 0), Ok(Call::SourceInfo(source)));
        assert_eq!(call(2, 2, 1, 23), Ok(Call::SetNotifier(source, Target::VirtualPin(Pin(23)))));
        let counter = Target::PollCounter(GuestPhys::new(0x1008));
        assert_eq!(call(2, 2, 2, 0x1008), Ok(Call::SetNotifier(source, counter)));
        assert_eq!(call(3, 2, 0, 0), Ok(Call::ClearNotifier(source)));
        assert_eq!(call(4, 2, 0, 0), Ok(Call::Mask(source)));
        assert_eq!(call(5, 2, 0, 0), Ok(Call::Unmask(source)));
        assert_eq!(call(6, 2, 0, 0), Ok(Call::Trigger(source)));
        let buffer = Buffer { address: GuestPhys::new(0x2000), bytes: 128 };
        assert_eq!(call(7, 2, 0x2000, 4096), Ok(Call::ReadLedger(source, buffer)));
        let text = Buffer { address: GuestPhys::new(0x2001), bytes: 5 };
        assert_eq!(call(8, 0x2001, 5, 0), Ok(Call::ConsoleWrite(text)));
        assert_eq!(call(9, 3, 0, 0), Ok(Call::Exit(3)));
        assert_eq!(call(10, 9, 9, 9), Ok(Call::Reset));
        assert_eq!(call(11, 2, 9, 9), Ok(Call::TakeOver(source)));
        let buffer = Buffer { address: GuestPhys::new(0x2000), bytes: 704 };
        assert_eq!(call(12, 2, 0x2000, 4096), Ok(Call::ReadHistory(source, buffer)));
    }

    #[test]
    fn a_source_names_its_partition_where_that_is_another() {
        assert_eq!(SourceId(7).parts(), Some((None, 7)));
        assert_eq!(SourceId(0xff).parts(), Some((None, 0xff)));
        assert_eq!(SourceId(0x107).parts(), Some((Some(0), 7)));
        assert_eq!(SourceId(0xff00).parts(), Some((Some(0xfe), 0)));
        for beyond in [0x1_0000, 0x0100_0000, u32::MAX] {
            assert_eq!(SourceId(beyond).parts(), None);
        }
    }

    #[test]
    fn bad_arguments_are_error_codes() {
        assert_eq!(call(13, 0, 0, 0), Err(CallError::BadFunction));
        assert_eq!(call(u64::MAX, 0, 0, 0), Err(CallError::BadFunction));
        assert_eq!(call(1 << 32, 0, 0, 0), Err(CallError::BadFunction), "64 bits of RAX count");
        for function in (1..=7).chain([11]) {
            assert_eq!(call(function, 1 << 32, 1, 0), Err(CallError::BadSource));
        }
        assert_eq!(call(2, 0, 0, 0), Err(CallError::BadTarget));
        assert_eq!(call(2, 0, 3, 0), Err(CallError::BadTarget));
        assert_eq!(call(2, 0, 1, 256), Err(CallError::BadTarget));
        assert_eq!(call(2, 0, 2, 4), Err(CallError::BadTarget));
        assert_eq!(call(2, 0, 2, u64::MAX - 7), Err(CallError::BadTarget));
        assert_eq!(call(7, 0, 0x1000, 127), Err(CallError::BadLength));
        assert_eq!(call(7, 0, 0x1004, 128), Err(CallError::BadAddress));
        assert_eq!(call(7, 0, u64::MAX - 7, 128), Err(CallError::BadAddress));
        assert_eq!(call(12, 0, 0x1000, 703), Err(CallError::BadLength));
        assert_eq!(call(12, 0, 0x1004, 704), Err(CallError::BadAddress));
        assert_eq!(call(8, 0, 0, 0), Err(CallError::BadLength));
        assert_eq!(call(8, 0, 4097, 0), Err(CallError::BadLength));
        assert_eq!(call(8, u64::MAX, 2, 0), Err(CallError::BadAddress));
        assert_eq!(call(9, 1 << 32, 0, 0), Err(CallError::BadArgument));
    }

    #[test]
    fn only_the_kernel_calls_unless_the_configuration_says_so() {
        for cpl in 1..=3 {
            let user = Caller { cpl, ..KERNEL };
            // Also for a function that does not exist: user mode learns nothing.
            for function in [0, 9, 99] {
                assert_eq!(Call::decode(&regs(function, 0, 0, 0), user), Err(CallError::NotPermitted));
            }
            let opened = Caller { user_hypercalls: true, ..user };
            assert_eq!(Call::decode(&regs(0, 0, 0, 0), opened), Ok(Call::Version));
        }
    }

    #[test]
    fn code_below_64_bits_has_32_bit_registers() {
        let garbage = regs(0xdead_0000_0000_0004, 0xbeef_0000_0000_0001, 0, 0);
        let caller = Caller { code_size: CodeSize::Bits32, ..KERNEL };
        assert_eq!(Call::decode(&garbage, caller), Ok(Call::Mask(SourceId(1))));
        assert_eq!(Call::decode(&garbage, KERNEL), Err(CallError::BadFunction));
    }

    #[test]
    fn answers() {
        let mut r = regs(6, 1, 2, 3);
        answer(&mut r, Err(CallError::NoIntx));
        assert_eq!(r, regs((-4i64).cast_unsigned(), 1, 2, 3));
        answer(&mut r, Ok([7, 8, 9]));
        assert_eq!(r, regs(0, 7, 8, 9));
    }

    #[test]
    fn source_info_by_bit() {
        let without = SourceInfo {
            bdf: 0x0018,
            intx_pin: 0,
            virtual_pin: None,
            gsi: None,
            has_notifier: false,
            in_service: false,
            pending: false,
            shared: false,
            elsewhere: false,
            moves: false,
            mask_reasons: 0,
        };
        assert_eq!(without.encode(), [0xffff_ffff_ff00_0018, 0, 0]);
        let with = SourceInfo {
            bdf: 0x0128,
            intx_pin: 1,
            virtual_pin: Some(Pin(20)),
            gsi: Some(20),
            has_notifier: true,
            in_service: true,
            pending: true,
            shared: true,
            elsewhere: true,
            moves: true,
            mask_reasons: 0x11,
        };
        assert_eq!(with.encode(), [0x14_1401_0128, 0x7f, 0x11]);
    }

    #[test]
    fn ledger_layout() {
        let record = LedgerRecord { accepted_wire: 0x0102, mask_reasons: 7, ..LedgerRecord::default() };
        let bytes = record.to_bytes();
        assert_eq!(bytes[..8], [1, 0, 16, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[120..], [7, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn ledger_balance() {
        let mut record = LedgerRecord {
            accepted_wire: 5,
            accepted_loopback: 1,
            delivered: 4,
            coalesced: 1,
            pending: 1,
            completed_eoi: 3,
            in_service: 1,
            ..LedgerRecord::default()
        };
        assert!(record.is_balanced());
        record.in_service = 0;
        assert!(!record.is_balanced());
        record.completed_forced = 1;
        record.accepted_replay = 1;
        assert!(!record.is_balanced());
    }
}
