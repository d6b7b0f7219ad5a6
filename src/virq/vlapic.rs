//! The virtual local APIC of one virtual CPU (APM2 chapter 16): which interrupts wait, which are in service,
//! and which one the CPU is to take next.
//!
//! This file holds what other parts of the machine do to the chip: messages arrive, the CPU takes a vector,
//! the timer runs out. What the guest does to its registers is in `registers`, the count-down itself in
//! `timer`. Nothing here reaches outside: consequences are returned as values.

mod base;
mod registers;
#[cfg(test)]
mod tests;
mod timer;

pub use self::base::ApicMode;
pub use self::registers::{MMIO_BYTES, MMIO_EOI};

use self::base::ApicBase;
use self::timer::Timer;
use super::message::{Delivery, Destination, Ipi};
use super::vectors::{RankedVectors, VectorSet};
use crate::addr::GuestPhys;
use crate::ioapic::DestinationMode;
use crate::irq::{ApicId, TriggerMode, Vector};

/// A general-protection exception, to be injected into the guest with error code 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// The end of one interrupt's service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eoi {
    /// Which interrupt.
    pub vector: Vector,
    /// How it came, as TMR remembers it.
    pub trigger: TriggerMode,
    /// Whether the IO-APICs are told: a level interrupt, and the guest does not tell them itself (SVR bit 12,
    /// Intel SDM 3A 11.8.5).
    pub broadcast: bool,
}

/// What a register write asks the rest of the machine to do. Injection needs no entry here, because it is
/// decided afresh before every entry into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// An interrupt's service ended.
    Eoi(Eoi),
    /// A message is to be sent.
    Ipi(Ipi),
    /// [`VirtualLapic::deadline`] changed.
    TimerChanged,
    /// The chip may now take messages it refused before, or was reset. Pins that wait for an acceptor are to
    /// be looked at again, and the deadline too.
    AcceptanceChanged,
}

/// What all local APICs of a partition have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LapicModel {
    /// Whether CPUID offers x2APIC mode.
    pub x2apic: bool,
    /// The width of guest-physical addresses that CPUID offers (leaf 0x8000_0008, EAX bits 7 to 0).
    pub physical_address_bits: u8,
}

/// One virtual local APIC: version 0x14, six local vectors, EOI-broadcast suppression, TSC-deadline timer,
/// no extended register space, no ExtINT but by LINT0 where an 8259 pair drives it. The identifier is fixed at creation.
///
/// Vectors 16 to 31, which the architecture lets a local APIC deliver, count as illegal like those below 16:
/// they are the numbers of exceptions, and an interrupt that the world switch reports as "vector 14 was being
/// delivered" must not be mistaken for a page fault.
#[derive(Debug)]
pub struct VirtualLapic {
    id: ApicId,
    base: ApicBase,
    tpr: u8,
    /// Derived from `tpr` and `isr`; kept because it is read before every entry and changes only with them
    /// (APM2 16.6.4).
    ppr: u8,
    irr: RankedVectors,
    isr: RankedVectors,
    tmr: VectorSet,
    /// The vector that is with the CPU: out of IRR, and in ISR once it is known to be taken.
    offered: Option<Vector>,
    /// LDR as software sees it in xAPIC mode; in x2APIC mode it derives from `id`.
    ldr: u32,
    dfr: u32,
    svr: u32,
    /// What ESR reads.
    esr: u32,
    /// What ESR will read after the next write to it.
    errors: u32,
    icr: u64,
    lvt: LocalVectors,
    timer: Timer,
    /// What the guest's TSC is ahead of the time stamps that callers bring along.
    ahead_tsc: u64,
    /// Non-maskable interrupts that arrived and were not taken: at most one to take and one to latch behind
    /// it.
    nmis: u8,
    startup: Startup,
    /// The level of LINT0, which an 8259 pair drives.
    lint0: bool,
}

/// The local vector table.
#[derive(Clone, Copy, Debug)]
struct LocalVectors {
    timer: u32,
    thermal: u32,
    performance: u32,
    lint0: u32,
    lint1: u32,
    error: u32,
}

impl LocalVectors {
    const MASKED: u32 = 1 << 16;
    const DELIVERY_MODE: u32 = 0b111 << 8;
    /// The delivery mode in which an 8259 pair gives the vector.
    const EXTINT: u32 = 0b111 << 8;
    const RESET: Self = Self {
        timer: Self::MASKED,
        thermal: Self::MASKED,
        performance: Self::MASKED,
        lint0: Self::MASKED,
        lint1: Self::MASKED,
        error: Self::MASKED,
    };

    fn mask_all(&mut self) {
        let Self { timer, thermal, performance, lint0, lint1, error } = self;
        for entry in [timer, thermal, performance, lint0, lint1, error] {
            *entry |= Self::MASKED;
        }
    }
}

/// What INIT and start-up messages have asked of the CPU.
#[derive(Clone, Copy, Debug)]
struct Startup {
    /// An INIT arrived that the CPU has not acted on yet.
    init: bool,
    /// The CPU executes nothing until a start-up message names a page.
    waiting: bool,
    page: Option<u8>,
}

/// ESR: this chip was to send a message with an illegal vector.
const ERROR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// ESR: a message or a local vector with an illegal vector arrived.
const ERROR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// ESR: an access to a register the chip does not have.
const ERROR_ILLEGAL_REGISTER: u32 = 1 << 7;

const SVR_ENABLE: u32 = 1 << 8;
const SVR_SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;
/// Spurious vector 0xff, software-disabled.
const SVR_RESET: u32 = 0xff;
const DFR_FLAT: u32 = u32::MAX;

impl VirtualLapic {
    /// The chip after power-up: enabled in xAPIC mode at its default address, but disabled by software.
    /// The `bootstrap` CPU runs at once, every other one waits for INIT and start-up messages.
    pub const fn new(id: ApicId, bootstrap: bool, model: LapicModel) -> Self {
        Self {
            id,
            base: ApicBase::new(bootstrap, model),
            tpr: 0,
            ppr: 0,
            irr: RankedVectors::EMPTY,
            isr: RankedVectors::EMPTY,
            tmr: VectorSet::EMPTY,
            offered: None,
            ldr: 0,
            dfr: DFR_FLAT,
            svr: SVR_RESET,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: LocalVectors::RESET,
            timer: Timer::RESET,
            ahead_tsc: 0,
            nmis: 0,
            startup: Startup { init: false, waiting: !bootstrap, page: None },
            lint0: false,
        }
    }

    /// Lets the 8259 pair at LINT0 through, as a PC's firmware does for its boot CPU.
    pub const fn open_lint0(&mut self) {
        self.lvt.lint0 = LocalVectors::EXTINT;
    }

    /// What INIT does (APM2 16.3.2, table 16-2), and clearing APIC_BASE.EN. Identity, mode, and what waits
    /// for the CPU's core itself (NMI, start-up) are not the register file's.
    fn reset_registers(&mut self) {
        let Self {
            id: _,
            base: _,
            tpr,
            ppr,
            irr,
            isr,
            tmr,
            offered,
            ldr,
            dfr,
            svr,
            esr,
            errors,
            icr,
            lvt,
            timer,
            ahead_tsc: _,
            nmis: _,
            startup: _,
            lint0: _,
        } = self;
        *tpr = 0;
        *ppr = 0;
        *irr = RankedVectors::EMPTY;
        *isr = RankedVectors::EMPTY;
        *tmr = VectorSet::EMPTY;
        *offered = None;
        *ldr = 0;
        *dfr = DFR_FLAT;
        *svr = SVR_RESET;
        *esr = 0;
        *errors = 0;
        *icr = 0;
        *lvt = LocalVectors::RESET;
        *timer = Timer::RESET;
    }

    /// The identifier: all of it in x2APIC mode, its low 8 bits in xAPIC mode.
    pub const fn id(&self) -> ApicId {
        self.id
    }

    /// The mode APIC_BASE selects; CPUID's APIC bit follows it.
    pub const fn mode(&self) -> ApicMode {
        self.base.mode()
    }

    /// Where the guest has placed the register page. Decoding it elsewhere than at its default is up to the
    /// caller; accesses outside xAPIC mode are to be brought here too, and read all-ones.
    pub const fn mmio_base(&self) -> GuestPhys {
        self.base.address()
    }

    /// Whether fixed and lowest-priority interrupts are taken.
    #[inline]
    pub(super) fn accepts_interrupts(&self) -> bool {
        self.svr & SVR_ENABLE != 0 && self.mode() != ApicMode::Disabled
    }

    /// Whether a message addresses this chip (APM2 16.6.1, and 16.14 for x2APIC mode).
    #[inline]
    pub fn matches(&self, destination: Destination) -> bool {
        let Destination { id, mode, broadcast } = destination;
        match (self.mode(), mode) {
            (ApicMode::Disabled, _) => false,
            _ if broadcast => true,
            (_, DestinationMode::Physical) => id == self.id.0,
            (ApicMode::XApic, DestinationMode::Logical) => {
                let (own, other) = (self.ldr >> 24, id);
                match self.dfr >> 28 {
                    0xf => own & other & 0xff != 0,
                    0x0 => other >> 4 == own >> 4 && own & other & 0xf != 0,
                    _ => false,
                }
            }
            (ApicMode::X2Apic, DestinationMode::Logical) => {
                let own = self.x2apic_ldr();
                own >> 16 == id >> 16 && own & id & 0xffff != 0
            }
        }
    }

    /// The logical identifier of x2APIC mode: cluster in the upper half, one bit in the lower.
    const fn x2apic_ldr(&self) -> u32 {
        self.id.0 >> 4 << 16 | 1 << (self.id.0 & 0xf)
    }

    /// What lowest-priority delivery compares between chips: the highest of what the CPU runs at and what
    /// waits for it (APM2 16.6.2).
    pub(super) fn arbitration_priority(&self) -> u8 {
        let waiting = self.irr.highest().max(self.offered).map_or(0, |vector| vector.get() & 0xf0);
        self.ppr.max(waiting)
    }

    /// A message arrives at this chip; whether it was addressed is not asked again. Returns whether it was
    /// taken: a sender that must not lose it (an IO-APIC pin) keeps it otherwise.
    #[inline(always)]
    pub fn receive(&mut self, delivery: Delivery, trigger: TriggerMode) -> bool {
        match delivery {
            Delivery::Fixed(raw) | Delivery::LowestPriority(raw) => match Vector::new(raw) {
                Some(vector) => self.accept(vector, trigger),
                None => self.refuse_vector(),
            },
            Delivery::Nmi => self.receive_nmi(),
            Delivery::Init => self.receive_init(),
            Delivery::Startup(page) => self.receive_startup(page),
        }
    }

    // Out of line: these are rare, and every pin's message passes `receive`.

    #[cold]
    fn refuse_vector(&mut self) -> bool {
        if self.accepts_interrupts() {
            self.record_error(ERROR_RECEIVE_ILLEGAL_VECTOR);
        }
        false
    }

    #[cold]
    fn receive_nmi(&mut self) -> bool {
        self.nmis = self.nmis.saturating_add(1).min(2);
        true
    }

    #[cold]
    fn receive_init(&mut self) -> bool {
        self.reset_registers();
        self.nmis = 0;
        self.startup = Startup { init: true, waiting: true, page: None };
        true
    }

    /// Anything but the first start-up message after an INIT is dropped (APM2 16.5).
    #[cold]
    fn receive_startup(&mut self, page: u8) -> bool {
        if self.startup.waiting && self.startup.page.is_none() {
            self.startup.page = Some(page);
        }
        true
    }

    /// Puts a vector into IRR. False while the chip is disabled, by software or altogether. A vector that
    /// waits already absorbs this one.
    #[inline]
    pub fn accept(&mut self, vector: Vector, trigger: TriggerMode) -> bool {
        if !self.accepts_interrupts() {
            return false;
        }
        // TMR first: whoever sees the bit in IRR may rely on the mode that belongs to it.
        match trigger {
            TriggerMode::Level => self.tmr.insert(vector),
            TriggerMode::Edge => self.tmr.remove(vector),
        }
        self.irr.insert(vector);
        true
    }

    /// The vector the CPU should take next: the highest that waits, when its class is above the processor
    /// priority (APM2 16.6.4). Does not ask whether the CPU can take an interrupt.
    #[inline]
    pub fn pending(&self) -> Option<Vector> {
        self.irr.highest().filter(|vector| vector.class() > self.ppr >> 4)
    }

    /// The CPU is offered what it should take [next](Self::pending), which leaves IRR. What it was offered before is taken back.
    #[inline]
    pub fn offer(&mut self) -> Option<Vector> {
        self.take_back();
        let vector = self.pending()?;
        self.irr.remove(vector);
        self.offered = Some(vector);
        self.offered
    }

    /// [`accept`](Self::accept) of a level and [`offer`](Self::offer) in one, where nothing else waits and nothing keeps it back. Whether it
    /// was so; otherwise nothing has changed.
    #[inline(always)]
    pub fn offer_at_once(&mut self, vector: Vector) -> bool {
        let free = self.irr.highest().is_none() && self.offered.is_none() && vector.class() > self.ppr >> 4;
        if !free || !self.accepts_interrupts() {
            return false;
        }
        self.tmr.insert(vector);
        self.offered = Some(vector);
        true
    }

    /// The CPU has not taken what it was offered: it waits again.
    #[inline]
    pub fn take_back(&mut self) {
        if let Some(vector) = self.offered.take() {
            self.irr.insert(vector);
        }
    }

    /// What the CPU was offered, as far as it is not known to have taken it.
    #[inline]
    pub const fn offered(&self) -> Option<Vector> {
        self.offered
    }

    /// The CPU has taken what it was offered, which is in service now. Which it is and how it came, or `None` if it was offered nothing,
    /// or the chip was reset meanwhile.
    #[inline]
    pub fn taken(&mut self) -> Option<(Vector, TriggerMode)> {
        let vector = self.offered.take()?;
        self.isr.insert(vector);
        // What `update_ppr` would find: a class above the present one is above all that makes it up, and any other
        // changes nothing.
        if vector.class() > self.ppr >> 4 {
            self.ppr = vector.class() << 4;
        }
        Some((vector, self.trigger(vector)))
    }

    /// [`taken`](Self::taken) and [`eoi`](Self::eoi) in one: as what the CPU is offered is above all that is in service, it is what
    /// ends.
    #[inline]
    pub fn eoi_of_offered(&mut self) -> Option<Eoi> {
        let vector = self.offered.take()?;
        Some(self.ended(vector))
    }

    fn trigger(&self, vector: Vector) -> TriggerMode {
        if self.tmr.contains(vector) { TriggerMode::Level } else { TriggerMode::Edge }
    }

    /// The guest ends the interrupt of highest priority in service; `None` when there is none.
    #[inline]
    pub fn eoi(&mut self) -> Option<Eoi> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        self.update_ppr();
        Some(self.ended(vector))
    }

    #[inline]
    fn ended(&self, vector: Vector) -> Eoi {
        let trigger = self.trigger(vector);
        let broadcast = trigger == TriggerMode::Level && self.svr & SVR_SUPPRESS_EOI_BROADCAST == 0;
        Eoi { vector, trigger, broadcast }
    }

    /// APM2 16.6.4: the higher class of TPR and the highest vector in service; the subclass only if it is
    /// TPR's.
    #[inline]
    fn update_ppr(&mut self) {
        let serviced = self.isr.highest().map_or(0, |vector| vector.get() & 0xf0);
        self.ppr = if self.tpr & 0xf0 >= serviced { self.tpr } else { serviced };
    }

    #[inline]
    fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.update_ppr();
    }

    /// What the guest reads in CR8: the class of TPR. Works in every mode, disabled included.
    pub const fn cr8(&self) -> u64 {
        (self.tpr >> 4) as u64
    }

    /// The guest writes CR8.
    ///
    /// # Errors
    /// Bits above 3 are reserved.
    pub fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        match value {
            0..=0xf => {
                self.set_tpr((value << 4) as u8);
                Ok(())
            }
            _ => Err(GeneralProtection),
        }
    }

    /// Whether a non-maskable interrupt waits.
    pub const fn has_nmi(&self) -> bool {
        self.nmis != 0
    }

    /// The 8259 pair asserts LINT0, or does not any more.
    pub const fn drive_lint0(&mut self, high: bool) {
        self.lint0 = high;
    }

    /// Whether the CPU is to acknowledge an interrupt of the 8259 pair: LINT0 lets it through, or the chip is out of the way.
    pub fn has_external(&self) -> bool {
        let open =
            self.lvt.lint0 & (LocalVectors::MASKED | LocalVectors::DELIVERY_MODE) == LocalVectors::EXTINT;
        self.lint0 && (open || self.mode() == ApicMode::Disabled)
    }

    /// Whether something may be up beside vectors: a non-maskable interrupt waits, the CPU waits for a start-up message, or
    /// LINT0 is asserted.
    #[inline]
    pub(super) const fn has_more_than_vectors(&self) -> bool {
        self.nmis | self.startup.waiting as u8 | self.lint0 as u8 != 0
    }

    /// While the CPU services a non-maskable interrupt, all that arrive collapse into one (APM2 8.2.3).
    pub fn collapse_nmis(&mut self) {
        self.nmis = self.nmis.min(1);
    }

    /// The CPU takes a non-maskable interrupt.
    pub fn take_nmi(&mut self) {
        self.nmis = self.nmis.saturating_sub(1);
    }

    /// Whether an INIT arrived since the last call: the CPU's own registers are to be reset, and it stops
    /// until [`take_startup`](Self::take_startup) yields a page.
    pub fn take_init(&mut self) -> bool {
        core::mem::replace(&mut self.startup.init, false)
    }

    /// Whether something came for the CPU's core itself that ends any rest: an INIT, the start-up message it waits for, or a
    /// non-maskable interrupt, which one that waits for a start-up message does not heed.
    pub const fn is_roused(&self) -> bool {
        self.startup.init || self.startup.page.is_some() || self.has_nmi() && !self.startup.waiting
    }

    /// Whether the CPU executes nothing because it waits for a start-up message.
    pub const fn awaits_startup(&self) -> bool {
        self.startup.waiting
    }

    /// The 4 KiB page of guest memory at which a waiting CPU is to begin, in real mode; the wait ends with
    /// it.
    pub fn take_startup(&mut self) -> Option<u8> {
        let page = self.startup.page.take()?;
        self.startup.waiting = false;
        Some(page)
    }

    /// When the timer needs [`advance_timer`](Self::advance_timer), as a TSC value; `None` while it is
    /// stopped or its vector is masked.
    #[inline]
    pub fn deadline(&self) -> Option<u64> {
        if self.lvt.timer & LocalVectors::MASKED != 0 { None } else { self.timer.due_tsc() }
    }

    /// The guest's TSC is ahead of the caller's time stamps by so much from now on: a deadline comes sooner or later.
    pub fn set_ahead(&mut self, ahead_tsc: u64, now_tsc: u64) {
        self.ahead_tsc = ahead_tsc;
        self.await_tsc(self.timer.deadline(), now_tsc);
    }

    /// Has the timer wait for the guest's TSC, unless it counts. What has passed already is due at once.
    fn await_tsc(&mut self, deadline: u64, now_tsc: u64) {
        self.timer.await_tsc(deadline, now_tsc, self.ahead_tsc);
        self.advance_timer(now_tsc);
    }

    /// Lets the timer run up to `now_tsc`. Returns whether it put its vector into IRR.
    pub fn advance_timer(&mut self, now_tsc: u64) -> bool {
        self.timer.advance(now_tsc) && self.raise_local(self.lvt.timer)
    }

    /// A local source fires: its vector is accepted unless its entry is masked.
    fn raise_local(&mut self, entry: u32) -> bool {
        if entry & LocalVectors::MASKED != 0 {
            return false;
        }
        match Vector::new(entry as u8) {
            Some(vector) => self.accept(vector, TriggerMode::Edge),
            None => {
                self.record_error(ERROR_RECEIVE_ILLEGAL_VECTOR);
                false
            }
        }
    }

    /// Notes an error for ESR and raises the error interrupt. An error entry with an illegal vector is itself
    /// an error, but not one more interrupt.
    fn record_error(&mut self, error: u32) {
        self.errors |= error;
        if self.lvt.error & LocalVectors::MASKED == 0 {
            match Vector::new(self.lvt.error as u8) {
                Some(vector) => {
                    self.accept(vector, TriggerMode::Edge);
                }
                None => self.errors |= ERROR_RECEIVE_ILLEGAL_VECTOR,
            }
        }
    }
}
