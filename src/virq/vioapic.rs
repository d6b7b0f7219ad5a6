//! The virtual IO-APIC: 24 pins, version 0x20, with an EOI register (82093AA chapter 3, and the register that
//! later chips added).
//!
//! It knows pins and redirection table entries, and nothing of who raises a pin or who takes a message.
//! Delivery is in two steps, because only an accepted level interrupt sets Remote IRR:
//! [`pending`](VirtualIoapic::pending) says what a pin would send, and [`accepted`](VirtualIoapic::accepted)
//! that somebody took it. A message nobody took is pending until somebody does.
//!
//! The guest's polarity bit is stored and otherwise ignored: a pin is asserted or not, and which electrical
//! level that would be on a board is no question of a virtual wire.

use super::message::{Delivery, Destination, Message};
use super::pins::{Contributor, PinSet};
use super::vlapic::Eoi;
use crate::ioapic::{
    MMIO_DATA, MMIO_EOI, MMIO_INDEX, REG_ARBITRATION, REG_ID, REG_RTE_BASE, REG_VERSION, Rte,
};
use crate::irq::{Level, Pin, TriggerMode, Vector};

#[cfg(test)]
mod tests;

/// How many pins the chip has.
pub const PINS: u8 = 24;

/// Bits 23 to 16: the last entry's index; bits 7 to 0: a chip with an EOI register.
const VERSION_VALUE: u32 = (PINS as u32 - 1) << 16 | 0x20;
/// The identifier's four bits, which the arbitration register repeats.
const ID_WRITABLE: u32 = 0xf << 24;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask. Delivery status and Remote IRR are
/// the chip's own.
const RTE_LOW_WRITABLE: u32 = 0xfff | 1 << 13 | 1 << 15 | 1 << 16;
const RTE_HIGH_WRITABLE: u32 = 0xff << 24;
const RTE_DELIVERY_STATUS: u64 = 1 << 12;

/// A redirection table entry was written. The pin is to be settled, after its completion if one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RteChanged {
    /// Whose entry.
    pub pin: Pin,
    /// Whether the pin was masked before.
    pub masked_before: bool,
    /// Whether it is masked now.
    pub masked_after: bool,
    /// Whether the write took away what would have led to a completion: a level interrupt in service dropped
    /// by switching to edge, an accepted edge dropped by masking or by becoming a level, or an asserted pin whose
    /// edge lies in the past.
    pub completion_due: bool,
}

/// What a register write asks of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// An entry changed.
    Rte(RteChanged),
    /// The EOI register ended the service of these pins.
    Completed(PinSet),
}

/// What an accepted message means for the pin's completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Due when the guest's EOI comes back; Remote IRR is set until then.
    AtEoi,
    /// Due as soon as a CPU takes the vector: an edge-triggered interrupt sends no EOI back.
    AtAcknowledge,
    /// Due at once: the message has no vector that anybody would acknowledge (NMI, INIT).
    Now,
}

/// A level for one local APIC: what nearly every pin behind which there is a line sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Direct {
    /// The identifier of the local APIC.
    pub(super) apic: u8,
    /// Which interrupt.
    pub(super) vector: Vector,
}

#[derive(Clone, Copy, Debug)]
struct PinState {
    /// As the guest wrote it; the read-only bits are kept aside and are clear here.
    rte: Rte,
    /// What `rte` sends, if anything: it is written now and then, and sends with every interrupt.
    message: Option<Message>,
    /// What `rte` sends, if that is a level for one local APIC.
    direct: Option<Direct>,
    /// Whether `rte` takes edges: unmasked, and edge-triggered in effect.
    takes_edges: bool,
    /// Who asserts the pin, one bit per contributor.
    contributions: u32,
    /// The vector of the last accepted message. The guest may rewrite its entry while that one is in service.
    accepted_vector: u8,
}

/// The chip. Remote IRR and the two memories of edges are kept as sets over all pins, so that an EOI looks
/// only at the pins it may concern.
#[derive(Clone, Debug)]
pub struct VirtualIoapic {
    pins: [PinState; PINS as usize],
    /// Remote IRR.
    in_service: PinSet,
    /// Levels that were accepted, until what is behind the pin is completed, which is later than the EOI: till then a pin that is
    /// still asserted says nothing new.
    uncompleted: PinSet,
    /// Edges that came while unmasked and that nobody has accepted yet.
    latched: PinSet,
    /// Edge-triggered messages that were accepted, and that no CPU has taken yet.
    edge_accepted: PinSet,
    index: u8,
    id: u32,
}

impl PinState {
    /// A pin whose entry reads `rte`, which nobody asserts.
    fn new(rte: Rte) -> Self {
        Self {
            rte,
            message: message(rte),
            direct: direct(rte),
            takes_edges: takes_edges(rte),
            contributions: 0,
            accepted_vector: 0,
        }
    }

    /// The guest wrote the entry; what the wire and the local APICs know stays.
    fn rewrite(&mut self, rte: Rte) {
        *self = Self {
            contributions: self.contributions,
            accepted_vector: self.accepted_vector,
            ..Self::new(rte)
        };
    }
}

impl VirtualIoapic {
    /// The chip after reset: every pin masked and deasserted.
    pub fn new() -> Self {
        Self {
            pins: [PinState::new(Rte::RESET); PINS as usize],
            in_service: PinSet::EMPTY,
            uncompleted: PinSet::EMPTY,
            latched: PinSet::EMPTY,
            edge_accepted: PinSet::EMPTY,
            index: 0,
            id: 0,
        }
    }

    fn pin(&self, pin: Pin) -> Option<&PinState> {
        self.pins.get(usize::from(pin.0))
    }

    /// The entry as the guest reads it, or `None` for a pin the chip does not have.
    pub fn rte(&self, pin: Pin) -> Option<Rte> {
        let bits = self.pin(pin)?.rte.bits();
        let status = if self.latched.contains(pin) { RTE_DELIVERY_STATUS } else { 0 };
        Some(Rte::from_bits(bits | status).with_remote_irr(self.in_service.contains(pin)))
    }

    /// What the wire at the pin shows. A pin the chip does not have is never asserted.
    pub fn level(&self, pin: Pin) -> Level {
        match self.pin(pin) {
            Some(state) if state.contributions != 0 => Level::Asserted,
            _ => Level::Deasserted,
        }
    }

    /// Who asserts the pin, one bit per contributor; nobody asserts a pin the chip does not have.
    #[inline]
    pub fn contributions(&self, pin: Pin) -> u32 {
        self.pin(pin).map_or(0, |state| state.contributions)
    }

    /// `contributor` asserts the pin. The pin is the OR of all contributors, so a second one makes no second
    /// edge. The caller settles the pin next.
    #[inline]
    pub fn assert(&mut self, pin: Pin, contributor: Contributor) {
        let Some(state) = self.pins.get_mut(usize::from(pin.0)) else { return };
        let rises = state.contributions == 0;
        state.contributions |= contributor.bit();
        // A rising edge on a masked pin is lost (82093AA 3.2.4, interrupt mask).
        if rises && state.takes_edges {
            self.latched.insert(pin);
        }
    }

    /// [`assert`](Self::assert), [`pending`](Self::pending) and [`accepted`](Self::accepted) in one, where the pin sends a level to one local
    /// APIC and that one `takes` it. Which, if it was so; otherwise nothing has changed.
    #[inline(always)]
    pub(super) fn assert_direct(
        &mut self,
        pin: Pin,
        contributor: Contributor,
        takes: impl FnOnce(Direct) -> bool,
    ) -> Option<Vector> {
        let state = self.pins.get_mut(usize::from(pin.0))?;
        let direct = state.direct?;
        if self.uncompleted.contains(pin) || !takes(direct) {
            return None;
        }
        state.contributions |= contributor.bit();
        state.accepted_vector = direct.vector.get();
        self.in_service.insert(pin);
        self.uncompleted.insert(pin);
        Some(direct.vector)
    }

    /// `contributor` deasserts the pin. What was accepted already is not taken back.
    #[inline]
    pub fn deassert(&mut self, pin: Pin, contributor: Contributor) {
        if let Some(state) = self.pins.get_mut(usize::from(pin.0)) {
            state.contributions &= !contributor.bit();
        }
    }

    /// `contributor` deasserts the pin, as what it was asserted for is completed. If that was the last one, and the EOI of the level
    /// has come, the level is [`completed`](Self::completed) herewith. Whether it is.
    #[inline]
    pub fn lower(&mut self, pin: Pin, contributor: Contributor) -> bool {
        let Some(state) = self.pins.get_mut(usize::from(pin.0)) else { return false };
        state.contributions &= !contributor.bit();
        let over =
            state.contributions == 0 && !self.in_service.contains(pin) && self.uncompleted.contains(pin);
        if over {
            self.uncompleted.remove(pin);
        }
        over
    }

    /// What the pin would send now: a level while asserted and the last one completed, an edge that was latched.
    #[inline]
    pub fn pending(&self, pin: Pin) -> Option<Message> {
        let state = self.pin(pin)?;
        let message = state.message?;
        let due = match message.trigger {
            TriggerMode::Level => state.contributions != 0 && !self.uncompleted.contains(pin),
            TriggerMode::Edge => self.latched.contains(pin),
        };
        due.then_some(message)
    }

    /// `message`, which [`pending`](Self::pending) has just shown, was taken by at least one local APIC.
    #[inline]
    pub fn accepted(&mut self, pin: Pin, message: Message) -> Completion {
        let Some(state) = self.pins.get_mut(usize::from(pin.0)) else { return Completion::Now };
        match (message.delivery, message.trigger) {
            (Delivery::Fixed(vector) | Delivery::LowestPriority(vector), TriggerMode::Level) => {
                state.accepted_vector = vector;
                self.in_service.insert(pin);
                self.uncompleted.insert(pin);
                Completion::AtEoi
            }
            (Delivery::Fixed(vector) | Delivery::LowestPriority(vector), TriggerMode::Edge) => {
                state.accepted_vector = vector;
                self.latched.remove(pin);
                self.edge_accepted.insert(pin);
                Completion::AtAcknowledge
            }
            _ => {
                self.latched.remove(pin);
                Completion::Now
            }
        }
    }

    /// A local APIC broadcast the EOI of a level interrupt: Remote IRR goes down on every pin that was
    /// *accepted* with this vector, whatever its entry says by now. Returns those pins. The caller completes
    /// what is behind them, which may deassert them, and then says so ([`completed`](Self::completed)).
    #[inline(always)]
    pub fn eoi(&mut self, vector: u8) -> PinSet {
        let mut completed = PinSet::EMPTY;
        for pin in self.in_service {
            if self.pin(pin).is_some_and(|state| state.accepted_vector == vector) {
                completed.insert(pin);
            }
        }
        self.in_service = self.in_service.without(completed);
        completed
    }

    /// A local APIC's interrupt was ended: the pins that hear of it, see [`eoi`](Self::eoi).
    #[inline(always)]
    pub fn hear(&mut self, eoi: Eoi) -> PinSet {
        if eoi.broadcast { self.eoi(eoi.vector.get()) } else { PinSet::EMPTY }
    }

    /// What is behind the pin was completed after its EOI. If the pin is still asserted, that is a new level.
    #[inline]
    pub fn completed(&mut self, pin: Pin) {
        self.uncompleted.remove(pin);
    }

    /// The guest wrote the EOI register. Hardware compares with the entry as it is now; a guest that has
    /// rewritten the entry in service may name either vector, and either ends the service, once.
    fn directed_eoi(&mut self, vector: u8) -> PinSet {
        let mut completed = PinSet::EMPTY;
        for pin in self.in_service {
            let named =
                |state: &PinState| state.accepted_vector == vector || state.rte.vector_field() == vector;
            if self.pin(pin).is_some_and(named) {
                completed.insert(pin);
            }
        }
        self.in_service = self.in_service.without(completed);
        completed
    }

    /// A CPU took `vector` as an edge-triggered interrupt. Returns the pins that sent it and still wait for
    /// that: an edge sends no EOI back, and a level-triggered line behind such a pin would otherwise fall
    /// silent after its first interrupt.
    #[inline]
    pub fn acknowledged(&mut self, vector: u8) -> PinSet {
        let mut completed = PinSet::EMPTY;
        for pin in self.edge_accepted {
            if self.pin(pin).is_some_and(|state| state.accepted_vector == vector) {
                completed.insert(pin);
            }
        }
        self.edge_accepted = self.edge_accepted.without(completed);
        completed
    }

    /// The guest reads `bytes` bytes at `offset` of the chip's window. Registers are 32 bits wide; everything
    /// around them reads 0.
    pub fn mmio_read(&self, offset: u64, bytes: u8) -> u64 {
        let value = match offset & !3 {
            MMIO_INDEX => u32::from(self.index),
            MMIO_DATA => self.read_register(self.index),
            _ => 0,
        };
        let value = u64::from(value) >> (8 * (offset & 3));
        match bytes {
            1 => value & 0xff,
            2 => value & 0xffff,
            _ => value,
        }
    }

    /// The guest writes to `offset` of the chip's window. Registers are written as 32 bits; of index and EOI
    /// only the low 8 count, and they may be written alone. Everything else is dropped.
    pub fn mmio_write(&mut self, offset: u64, bytes: u8, value: u64) -> Effect {
        match offset {
            MMIO_INDEX => {
                self.index = value as u8;
                Effect::None
            }
            MMIO_DATA if bytes >= 4 => self.write_register(self.index, value as u32),
            MMIO_EOI => match self.directed_eoi(value as u8) {
                PinSet::EMPTY => Effect::None,
                pins => Effect::Completed(pins),
            },
            _ => Effect::None,
        }
    }

    fn read_register(&self, index: u8) -> u32 {
        match index {
            REG_ID | REG_ARBITRATION => self.id,
            REG_VERSION => VERSION_VALUE,
            REG_RTE_BASE.. => {
                let (pin, high) = rte_register(index);
                self.rte(pin).map_or(0, |rte| if high { rte.high() } else { rte.low() })
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, index: u8, value: u32) -> Effect {
        match index {
            REG_ID => {
                self.id = value & ID_WRITABLE;
                Effect::None
            }
            REG_RTE_BASE.. => {
                let (pin, high) = rte_register(index);
                self.write_rte(pin, high, value)
            }
            // Version and arbitration are read-only, the rest does not exist.
            _ => Effect::None,
        }
    }

    /// Half an entry at a time, and each half counts at once, as in hardware: a guest that changes both
    /// halves of an unmasked entry has asked for what lies between.
    fn write_rte(&mut self, pin: Pin, high: bool, value: u32) -> Effect {
        let Some(state) = self.pins.get_mut(usize::from(pin.0)) else { return Effect::None };
        let before = state.rte;
        let after = Rte::from_bits(if high {
            u64::from(before.low()) | u64::from(value & RTE_HIGH_WRITABLE) << 32
        } else {
            u64::from(before.high()) << 32 | u64::from(value & RTE_LOW_WRITABLE)
        });
        state.rewrite(after);
        let asserted = state.contributions != 0;

        // Switching to edge drops Remote IRR. Guests written for chips without an EOI register rely on it. So does
        // switching to a message without a vector, which is edge-triggered whatever the entry says.
        let level_dropped = trigger(after) == TriggerMode::Edge && self.in_service.contains(pin);
        if level_dropped {
            self.in_service.remove(pin);
        }
        // The vector of an accepted edge may never be taken, when its local APIC was reset meanwhile. Masking
        // is what every guest does before it starts over, so that is where waiting for it ends. So does becoming a level:
        // whoever takes the edge after the level was accepted would seem to have completed that.
        let waits_no_more = after.is_masked() || trigger(after) == TriggerMode::Level;
        let edge_dropped = waits_no_more && self.edge_accepted.contains(pin);
        if edge_dropped {
            self.edge_accepted.remove(pin);
        }
        if trigger(after) == TriggerMode::Level {
            self.latched.remove(pin);
        }
        let edge_is_past = asserted
            && !after.is_masked()
            && trigger(after) == TriggerMode::Edge
            && !self.latched.contains(pin)
            && !self.edge_accepted.contains(pin);
        Effect::Rte(RteChanged {
            pin,
            masked_before: before.is_masked(),
            masked_after: after.is_masked(),
            completion_due: level_dropped || edge_dropped || edge_is_past,
        })
    }
}

impl Default for VirtualIoapic {
    fn default() -> Self {
        Self::new()
    }
}

const FIXED: u8 = 0;
const LOWEST_PRIORITY: u8 = 1;
const NMI: u8 = 4;
const INIT: u8 = 5;

/// Whether a local APIC will acknowledge what this entry sends.
const fn carries_vector(rte: Rte) -> bool {
    matches!(rte.delivery_mode(), FIXED | LOWEST_PRIORITY)
}

/// The trigger mode in effect: messages without a vector are edge-triggered whatever the entry says, because
/// no EOI would ever come back (82093AA 3.2.4, delivery mode).
const fn trigger(rte: Rte) -> TriggerMode {
    if carries_vector(rte) { rte.trigger() } else { TriggerMode::Edge }
}

/// Whether a rising wire is what counts at this entry.
const fn takes_edges(rte: Rte) -> bool {
    !rte.is_masked() && matches!(trigger(rte), TriggerMode::Edge)
}

/// What an entry sends, unless it is masked or has no receiver.
const fn message(rte: Rte) -> Option<Message> {
    if rte.is_masked() {
        return None;
    }
    let delivery = match rte.delivery_mode() {
        FIXED => Delivery::Fixed(rte.vector_field()),
        LOWEST_PRIORITY => Delivery::LowestPriority(rte.vector_field()),
        NMI => Delivery::Nmi,
        INIT => Delivery::Init,
        // SMI and ExtINT have no receiver in a guest; the other modes are reserved.
        _ => return None,
    };
    let destination = Destination::xapic(rte.destination(), rte.destination_mode());
    Some(Message { delivery, destination, trigger: trigger(rte) })
}

/// What an entry sends, if that is a level for one local APIC.
fn direct(rte: Rte) -> Option<Direct> {
    match message(rte)? {
        Message { delivery: Delivery::Fixed(raw), destination, trigger: TriggerMode::Level } => {
            Some(Direct { apic: u8::try_from(destination.only()?).ok()?, vector: Vector::new(raw)? })
        }
        _ => None,
    }
}

/// Which half of which entry a register is. The pin may be one the chip does not have.
const fn rte_register(index: u8) -> (Pin, bool) {
    let offset = index - REG_RTE_BASE;
    (Pin(offset >> 1), offset & 1 != 0)
}
