//! MADT, MCFG and FADT: which CPUs and IO-APICs there are, where configuration space is mapped, and by what to measure
//! time.
//!
//! Tables are the firmware's allegations: the crate checks signatures and checksums, and what follows from them is
//! verified where it is used.
#![expect(unsafe_code, reason = "hands the root pointer to the acpi crate")]

use alloc::vec::Vec;
use core::cell::RefCell;

use acpi::AcpiTables;
use acpi::address::AddressSpace;
use acpi::sdt::fadt::Fadt;
use acpi::sdt::madt::{Madt, MadtEntry};
use acpi::sdt::mcfg::Mcfg;
use levelhead::addr::HostPhys;
use levelhead::facts::Override;
use levelhead::irq::{ApicId, Gsi, Polarity};
use levelhead::message::Message;
use levelhead::pci::ecam::EcamWindow;

use super::handler::{Firmware, Memory};
use crate::arch::x86::clock::PmTimer;

/// CPUs that are looked at; more are left alone.
const MAX_CPUS: usize = 64;

/// An IO-APIC as the MADT names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoApicEntry {
    /// Its registers.
    pub(crate) address: HostPhys,
    /// The GSI of its pin 0.
    pub(crate) gsi_base: u32,
}

/// What the tables say.
#[derive(Debug, Default)]
pub(crate) struct Platform {
    /// Enabled CPUs in the MADT's order; the boot CPU is not necessarily the first.
    pub(crate) cpus: Vec<ApicId>,
    /// At least one.
    pub(crate) io_apics: Vec<IoApicEntry>,
    /// ISA overrides.
    pub(crate) overrides: Vec<Override>,
    /// Memory-mapped configuration space of segment 0; none on machines without PCI Express.
    pub(crate) ecam: Option<EcamWindow>,
    /// The power management timer, if it has one at a port.
    pub(crate) pm_timer: Option<PmTimer>,
    /// Whether it has a clock in CMOS memory.
    pub(crate) cmos_clock: bool,
}

/// Why the tables cannot be used.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FirmwareError {
    /// No root pointer, or one that leads to nothing valid.
    RootPointer,
    /// No MADT.
    Madt,
    /// A MADT without an IO-APIC.
    IoApic,
}

impl FirmwareError {
    /// Its entry in the catalogue.
    pub(crate) const fn message(self) -> Message {
        match self {
            Self::RootPointer => Message::AcpiTables,
            Self::Madt => Message::NoMadt,
            Self::IoApic => Message::NoIoApic,
        }
    }
}

/// Reads MADT, MCFG and FADT.
pub(crate) fn discover(rsdp: Option<HostPhys>, memory: Memory<'_>) -> Result<Platform, FirmwareError> {
    let memory = RefCell::new(memory);
    let tables = open(rsdp, Firmware::new(&memory))?;
    let madt = tables.find_table::<Madt>().ok_or(FirmwareError::Madt)?;
    let mut platform = Platform::default();
    for entry in madt.get().entries() {
        // Bit 0 of a CPU's flags: enabled (ACPI 6.5 5.2.12.2).
        match entry {
            MadtEntry::LocalApic(cpu) if cpu.flags & 1 != 0 => {
                platform.cpus.push(ApicId(u32::from(cpu.apic_id)))
            }
            MadtEntry::LocalX2Apic(cpu) if cpu.flags & 1 != 0 => platform.cpus.push(ApicId(cpu.x2apic_id)),
            MadtEntry::IoApic(chip) => platform.io_apics.push(IoApicEntry {
                address: HostPhys::new(u64::from(chip.io_apic_address)),
                gsi_base: chip.global_system_interrupt_base,
            }),
            MadtEntry::InterruptSourceOverride(entry) => {
                // Flags, bits 1 to 0: 1 active high, 3 active low (ACPI 6.5 5.2.12.5).
                let polarity = match entry.flags & 3 {
                    1 => Some(Polarity::ActiveHigh),
                    3 => Some(Polarity::ActiveLow),
                    _ => None,
                };
                platform.overrides.push(Override { gsi: Gsi(entry.global_system_interrupt), polarity });
            }
            _ => {}
        }
    }
    platform.cpus.truncate(MAX_CPUS);
    if platform.io_apics.is_empty() {
        return Err(FirmwareError::IoApic);
    }
    platform.ecam = tables.find_table::<Mcfg>().and_then(|mcfg| {
        let window = mcfg.entries().iter().find(|entry| entry.pci_segment_group == 0)?;
        let base = HostPhys::new(window.base_address);
        EcamWindow::new(base, window.bus_number_start, window.bus_number_end)
    });
    let fadt = tables.find_table::<Fadt>();
    platform.cmos_clock = fadt.as_ref().is_some_and(|fadt| {
        let flags = fadt.iapc_boot_arch;
        !flags.use_time_and_alarm_namespace_for_rtc()
    });
    platform.pm_timer = fadt.and_then(|fadt| {
        let block = fadt.pm_timer_block().ok()??;
        let at_port = block.address_space == AddressSpace::SystemIo;
        u16::try_from(block.address).ok().filter(|_| at_port).map(PmTimer)
    });
    Ok(platform)
}

/// Opens the tables behind the root pointer.
pub(super) fn open(
    rsdp: Option<HostPhys>,
    firmware: Firmware<'_>,
) -> Result<AcpiTables<Firmware<'_>>, FirmwareError> {
    let rsdp = rsdp.ok_or(FirmwareError::RootPointer)?;
    // SAFETY: the loader names the root pointer, and the crate validates what it finds there.
    unsafe { AcpiTables::from_rsdp(firmware, rsdp.raw() as usize) }.map_err(|_| FirmwareError::RootPointer)
}
