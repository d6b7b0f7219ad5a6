//! The guest's side of an interrupt: virtual local APICs and one virtual IO-APIC.
//!
//! This module knows pins, vectors and virtual CPUs. It does not know physical lines, devices or processors;
//! the run loop carries plain values between it and `intx`, which this module never imports.
//!
//! # From a raised pin to an injected vector
//!
//! ```text
//! assert_pin(pin, contributor)        the pin is the OR of its contributors
//!   VirtualIoapic::pending            level: asserted, unmasked, the last one completed; edge: latched
//!   VirtualLapic::matches, receive    physical, logical flat, logical cluster, x2APIC logical; TMR, then IRR
//!   VirtualIoapic::accepted           Remote IRR, only if somebody took the message
//! before_entry(vcpu, ..)              the highest vector of a class above the processor priority leaves IRR and is offered
//! after_exit(vcpu, ..)                taken: to ISR; not taken: back to IRR, and it is offered afresh
//! ```
//!
//! # And back to an EOI
//!
//! ```text
//! eoi_page or eoi_msr                 the highest vector leaves ISR; TMR says whether the IO-APIC is told
//!   VirtualIoapic::eoi                Remote IRR down on the pins accepted with that vector -> PinSet
//! lower_pin(pin, ..)                  the run loop completes their lines, which deassert the pins
//! settle(pin)                         somebody else still asserts it: delivered again
//! ```
//!
//! # What holds
//!
//! * A level that is asserted, unmasked and not in service is delivered as soon as somebody takes it; a local
//!   APIC that becomes able to take messages makes every pin look again (I38, D14).
//! * Remote IRR goes up once per acceptance and yields exactly one completion, whatever the guest does to the
//!   entry in between (I39); a vector shared by two pins completes both.
//! * A guest that suppresses EOI broadcasts completes by the EOI register and not before (I40, N16).
//! * A pin programmed as edge-triggered completes when a CPU takes its vector, so a level-triggered line
//!   behind it keeps working, at most once per interrupt the guest takes (N17).
//!
//! One partition's chips are one value: whoever reaches them, the CPUs that run the partition and those that take its
//! devices' interrupts, shares it behind a lock of the caller's; a [`Doorbell`] tells a CPU that they changed. Every call does bounded work, allocates nothing and cannot panic; whatever the guest writes is
//! data.

mod chips;
mod doorbell;
mod inject;
mod message;
mod pic;
mod pins;
mod vectors;
mod vioapic;
mod vlapic;

pub use self::chips::{Ended, Foreseen, MAX_VCPUS, Outcome, Rest, Settled, Vcpu, VcpuSet, VirtualChips};
pub use self::doorbell::{Doorbell, Requests};
pub use self::inject::{Event, Exited, Injection, Interruptibility, Special, Undelivered, Windows};
pub use self::message::{Delivery, Destination, Ipi, IpiTarget, Message};
pub use self::pic::Pics;
pub use self::pins::{Contributor, PinSet, Pins};
pub use self::vioapic::{Completion, Effect as IoapicEffect, PINS, RteChanged, VirtualIoapic};
pub use self::vlapic::{
    ApicMode, Effect as LapicEffect, Eoi, GeneralProtection, LapicModel, MMIO_BYTES as LAPIC_MMIO_BYTES,
    MMIO_EOI as LAPIC_MMIO_EOI, VirtualLapic,
};
