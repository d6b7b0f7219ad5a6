//! Interrupt messages as values: what an IO-APIC pin or an interrupt command register asks the local APICs of
//! one partition to take. Whether one takes it is [`VirtualLapic`](super::VirtualLapic)'s decision.

use crate::ioapic::DestinationMode;
use crate::irq::TriggerMode;

/// What a message asks of its receiver (82093AA 3.2.4 delivery mode, APM2 16.5).
///
/// Vectors are as the guest wrote them, illegal ones included: the receiver judges them, as in hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// An interrupt for every addressed local APIC.
    Fixed(u8),
    /// An interrupt for the one addressed local APIC that runs at the lowest priority.
    LowestPriority(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// Reset, then wait for a start-up message.
    Init,
    /// Begin in real mode at this page of guest memory.
    Startup(u8),
}

/// Which local APICs a message addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The identifier or the logical set, as the sender wrote it.
    pub(super) id: u32,
    /// How `id` is meant.
    pub(super) mode: DestinationMode,
    /// Whether the sender's width makes `id` the address of everyone.
    pub(super) broadcast: bool,
}

impl Destination {
    /// The 8-bit destination of an IO-APIC or of a local APIC in xAPIC mode; 0xff addresses everyone, in
    /// either mode (APM2 16.6.1).
    pub const fn xapic(id: u8, mode: DestinationMode) -> Self {
        Self { id: id as u32, mode, broadcast: id == u8::MAX }
    }

    /// The identifier of the one local APIC that is addressed, if it is addressed by that.
    #[inline]
    pub(super) fn only(self) -> Option<u32> {
        (!self.broadcast && self.mode == DestinationMode::Physical).then_some(self.id)
    }

    /// The 32-bit destination of a local APIC in x2APIC mode; all-ones addresses everyone, in
    /// either mode (APM2 16.14).
    pub const fn x2apic(id: u32, mode: DestinationMode) -> Self {
        Self { id, mode, broadcast: id == u32::MAX }
    }
}

/// What an IO-APIC pin sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What is asked.
    pub delivery: Delivery,
    /// Of whom.
    pub destination: Destination,
    /// What the receiver's TMR is to remember, which decides whether its EOI comes back.
    pub trigger: TriggerMode,
}

/// Whom an interprocessor interrupt addresses (APM2 16.5, destination shorthand).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpiTarget {
    /// By the destination field.
    Addressed(Destination),
    /// The sender alone.
    Itself,
    /// Everyone.
    All,
    /// Everyone but the sender.
    Others,
}

/// What an interrupt command register sends. Always edge-triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// What is asked.
    pub delivery: Delivery,
    /// Of whom.
    pub target: IpiTarget,
}
