//! Guest-physical addresses that nested paging refuses: which of them a device of the platform answers at, and which a
//! guest does not survive.

use crate::addr::GuestPhys;
use crate::message::Message;
use crate::pci::ecam::{GUEST_ECAM, GUEST_ECAM_BYTES, ecam_decode};
use crate::pci::virtual_bar::BarWindow;
use crate::pci::{Access, Bdf, Width};
use crate::vcpu::NestedFault;
use crate::virq::{LAPIC_MMIO_BYTES, LAPIC_MMIO_EOI, Outcome, Vcpu, VirtualChips};

/// A guest's IO-APIC.
const IO_APIC: u64 = 0xfec0_0000;
const IO_APIC_BYTES: u64 = 0x1000;

/// What answers at a guest-physical address without memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The local APIC's page, at this offset.
    LocalApic(u64),
    /// The IO-APIC's window, at this offset.
    IoApic(u64),
    /// The configuration space, at this offset: no chip answers, see [`Place::register`].
    Config(u64),
    /// The window for BARs where none is decoded now: reads are all ones and writes are dropped, as on a bus.
    Vacant,
}

impl Place {
    /// What the access of `fault` reached. `local_apic` is where the guest has put its local APIC, `bars` where it may put
    /// BARs; `delivering` tells that the CPU made the access to deliver an event, so that there is no instruction to carry
    /// out.
    ///
    /// # Errors
    /// Nothing that an access can be carried out at: the guest's fault.
    #[inline(always)]
    pub fn find(
        fault: NestedFault,
        delivering: bool,
        local_apic: GuestPhys,
        bars: BarWindow,
    ) -> Result<Self, Message> {
        if fault.fetch | fault.table_walk | delivering {
            return Err(no_plain_access(fault));
        }
        let at = fault.address.raw();
        let within = |start: u64, bytes: u64| Some(at.wrapping_sub(start)).filter(|offset| *offset < bytes);
        if let Some(offset) = within(local_apic.raw(), LAPIC_MMIO_BYTES) {
            Ok(Self::LocalApic(offset))
        } else if let Some(offset) = within(IO_APIC, IO_APIC_BYTES) {
            Ok(Self::IoApic(offset))
        } else if let Some(offset) = within(GUEST_ECAM.raw(), GUEST_ECAM_BYTES) {
            Ok(Self::Config(offset))
        } else if bars.contains(fault.address, 1) {
            Ok(Self::Vacant)
        } else {
            Err(Message::NoSuchMemory)
        }
    }

    /// Whether it is the local APIC's EOI register.
    #[inline(always)]
    pub const fn is_eoi(self) -> bool {
        matches!(self, Self::LocalApic(LAPIC_MMIO_EOI))
    }

    /// Which register of which function an access of so many bytes means, if this is the configuration space and it is an
    /// access that a function can answer: not eight bytes, and within one dword.
    pub fn register(self, bytes: u8) -> Option<(Bdf, Access)> {
        let Self::Config(offset) = self else { return None };
        let (bdf, byte) = ecam_decode(offset)?;
        Some((bdf, Access::new(byte, Width::from_bytes(bytes)?)?))
    }

    /// `vcpu` reads 1 to 8 bytes here: the value in the low ones. Ones where no chip answers.
    // Out of line: no EOI reads, and every EOI would pay for the room it takes.
    #[inline(never)]
    pub fn read(self, chips: &mut VirtualChips, vcpu: Vcpu, bytes: u8, now_tsc: u64) -> u64 {
        match self {
            Self::LocalApic(offset) => chips.lapic_read(vcpu, offset, bytes, now_tsc),
            Self::IoApic(offset) => chips.ioapic_read(offset, bytes),
            Self::Config(_) | Self::Vacant => u64::MAX,
        }
    }

    /// `vcpu` writes the low 1 to 8 bytes of `value` here.
    #[inline(always)]
    pub fn write(self, chips: &mut VirtualChips, vcpu: Vcpu, bytes: u8, value: u64, now_tsc: u64) -> Outcome {
        match self {
            Self::LocalApic(offset) => chips.lapic_write(vcpu, offset, bytes, value, now_tsc),
            Self::IoApic(offset) => chips.ioapic_write(offset, bytes, value),
            Self::Config(_) | Self::Vacant => Outcome::default(),
        }
    }
}

/// What was wrong with an access that no instruction made on data.
#[cold]
const fn no_plain_access(fault: NestedFault) -> Message {
    if fault.fetch {
        Message::FetchFromNoMemory
    } else if fault.table_walk {
        Message::TablesInNoMemory
    } else {
        Message::EventInNoMemory
    }
}
