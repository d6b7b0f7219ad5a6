//! What a machine is, as plain values: all that decides what a configuration means on it.
//!
//! The hypervisor fills [`Facts`] in at boot from firmware's tables, the interrupt chips and configuration space. Whoever has them,
//! the hypervisor or a tool on another machine, comes to the same decisions. Nothing here touches hardware, and nothing
//! is more than the machine's own claim.
//!
//! * here: the values;
//! * `text`: the values as TOML;
//! * `frame`: that text on a serial console, so that damage to it is noticed.

pub mod frame;
pub mod text;

use alloc::string::String;
use alloc::vec::Vec;

use crate::addr::{HostPhys, PAGE_BYTES};
use crate::frames::Range;
use crate::irq::{ApicId, CpuId, Gsi, Polarity};
use crate::pci::ecam::EcamWindow;
use crate::pci::pin::DisIntxFault;
use crate::pci::route::PrtEntry;
use crate::pci::{Bdf, Function, IntPin, Topology};

/// How firmware says a range of memory may be used (ACPI 6.5 15.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Free RAM.
    Usable,
    /// ACPI tables, readable and kept.
    Acpi,
    /// Anything else.
    Reserved,
}

/// One entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEntry {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// A physical IO-APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its registers.
    pub address: HostPhys,
    /// The GSI of its pin 0.
    pub gsi_base: u32,
    /// How many pins it has, 1 to 256.
    pub pins: u16,
}

impl IoApic {
    /// Whether the line is one of its inputs.
    pub const fn has(&self, gsi: Gsi) -> bool {
        match gsi.0.checked_sub(self.gsi_base) {
            Some(pin) => pin < self.pins as u32,
            None => false,
        }
    }
}

/// How an ISA interrupt differs from what the bus prescribes (ACPI 6.5 5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// Where it arrives.
    pub gsi: Gsi,
    /// The active level, where firmware states one.
    pub polarity: Option<Polarity>,
}

/// A place that firmware's `_PRT` may have an entry for: bus, device, pin.
pub type PlaceOnBus = (u8, u8, IntPin);

/// What is known of firmware's `_PRT`s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// Nobody has asked yet.
    #[default]
    NotAsked,
    /// These places were asked for, and have these entries.
    Known {
        /// The places, each once.
        asked: Vec<PlaceOnBus>,
        /// The entries found; a place that has none is not among them.
        entries: Vec<PrtEntry>,
    },
    /// Firmware's AML gave no answer, for this reason.
    Unknown(String),
}

impl Routing {
    /// The entries that are known.
    pub fn entries(&self) -> &[PrtEntry] {
        match self {
            Self::Known { entries, .. } => entries,
            Self::NotAsked | Self::Unknown(_) => &[],
        }
    }
}

/// What a function with an interrupt pin showed when nobody used it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The function.
    pub bdf: Bdf,
    /// Interrupt Status: whether it had an interrupt pending.
    pub pending: bool,
    /// Whether DisINTx can be set and cleared; `None` when it was not tried.
    pub dis_intx: Option<Result<(), DisIntxFault>>,
}

/// What CPUID says of the boot CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Vendor string (leaf 0).
    pub vendor: String,
    /// Model string (leaves 8000_0002 to 8000_0004).
    pub model: String,
    /// Address space identifiers (leaf 8000_000A, EBX).
    pub asids: u32,
    /// SVM features (leaf 8000_000A, EDX).
    pub svm_features: u32,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The version of the hypervisor that found it out.
    pub hypervisor: String,
    /// The boot CPU.
    pub processor: Processor,
    /// The CPUs by their numbers, the boot CPU first.
    pub cpus: Vec<ApicId>,
    /// The memory map.
    pub memory: Vec<MemoryEntry>,
    /// Bytes of memory that are left for partitions, the ones that are placed among them, and their tables.
    pub free_bytes: u64,
    /// The IO-APICs.
    pub io_apics: Vec<IoApic>,
    /// The interrupt source overrides.
    pub overrides: Vec<Override>,
    /// Memory-mapped configuration space of segment 0; none on machines without PCI Express.
    pub ecam: Option<EcamWindow>,
    /// The PCI functions, in ascending order.
    pub functions: Vec<Function>,
    /// Which bridge leads to which bus.
    pub topology: Topology,
    /// What functions showed that were tried.
    pub proofs: Vec<Proof>,
    /// What firmware says of interrupt routing.
    pub routing: Routing,
}

impl Facts {
    /// The local APIC of a CPU, if the machine has that CPU.
    pub fn apic(&self, cpu: CpuId) -> Option<ApicId> {
        self.cpus.get(usize::from(cpu.0)).copied()
    }

    /// The function, if the machine has it.
    pub fn function(&self, bdf: Bdf) -> Option<&Function> {
        self.functions.iter().find(|function| function.bdf == bdf)
    }

    /// Whether DisINTx of the function works, if that was tried.
    pub fn dis_intx(&self, bdf: Bdf) -> Option<Result<(), DisIntxFault>> {
        self.proofs.iter().find(|proof| proof.bdf == bdf)?.dis_intx
    }

    /// Whether any IO-APIC has this input.
    pub fn has_line(&self, gsi: Gsi) -> bool {
        self.io_apics.iter().any(|chip| chip.has(gsi))
    }

    /// What this machine says no device's BAR may overlap: the whole memory map, whatever its pieces are for, the
    /// IO-APICs, and memory-mapped configuration space.
    pub fn reserved(&self) -> Vec<Range> {
        let memory = self.memory.iter().map(|entry| Range::around(entry.start, entry.bytes));
        let chips = self.io_apics.iter().map(|chip| Range::around(chip.address.raw(), PAGE_BYTES));
        let ecam = self.ecam.map(|window| Range::around(window.start().raw(), window.bytes()));
        memory.chain(chips).chain(ecam).collect()
    }

    /// The places that firmware may answer for the pin of a function: its own, then, swizzled, that of each bridge
    /// above it up to the root bus. Empty for a function without INTx, or one that is not there.
    pub fn places(&self, bdf: Bdf) -> Vec<PlaceOnBus> {
        let mut places = Vec::new();
        let Some(mut pin) = self.function(bdf).and_then(|function| function.interrupt_pin) else {
            return places;
        };
        let mut at = bdf;
        // Ends after at most 255 bridges: each is on a lower bus than the one before.
        loop {
            places.push((at.bus(), at.device(), pin));
            pin = pin.swizzle(at.device());
            match self.topology.bridge_above(at.bus()) {
                Some(bridge) => at = bridge,
                None => return places,
            }
        }
    }
}
