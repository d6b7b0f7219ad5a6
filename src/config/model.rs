//! The configuration as plain values. Holding one says nothing about whether it is any good: that is
//! `validate`'s word.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::addr::HostPhys;
use crate::irq::{CpuId, Gsi, Pin};
use crate::pci::Bdf;
use crate::policy::{DevicePolicy, RestartPolicy};

use super::validate::VIRTUAL_PINS;

/// The whole machine: who owns what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The partitions, in the order of the file.
    pub partitions: Vec<Partition>,
}

impl Config {
    /// The number of the first partition of this name.
    pub fn numbered(&self, name: &str) -> Option<usize> {
        self.partitions.iter().position(|partition| partition.name == name)
    }

    /// The functions that partition number `index` stands by for, in the order of the file: the number of the partition that owns
    /// it, the number of the device in there, and what is said of the standby.
    pub fn standbys(&self, index: usize) -> impl Iterator<Item = (usize, usize, &Standby)> {
        let devices = self.partitions.iter().enumerate().flat_map(|(owner, partition)| {
            partition.devices.iter().enumerate().map(move |(device, table)| (owner, device, table))
        });
        devices.filter_map(move |(owner, device, table)| {
            let standby = table.standby.as_ref()?;
            (self.numbered(&standby.partition) == Some(index)).then_some((owner, device, standby))
        })
    }
}

/// One isolated system (elsewhere: cell, domain, zone, virtual machine): CPUs, memory, an image, devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What reports call it; unique.
    pub name: String,
    /// The physical CPUs it owns, one virtual CPU on each, numbered in this order. The first one starts the guest.
    pub cpus: Vec<CpuId>,
    /// Guest memory in bytes, whole pages.
    pub memory_bytes: u64,
    /// Where on the machine that memory lies, in one piece; `None` leaves the choice to the hypervisor.
    pub memory_at: Option<HostPhys>,
    /// The image that is started.
    pub kernel: ImageIndex,
    /// Images that are loaded beside the kernel.
    pub modules: Vec<Module>,
    /// The kernel's command line, without the image's name.
    pub cmdline: String,
    /// What the guest's COM1 has to do with the hypervisor's console.
    pub console: Console,
    /// An I/O port whose bytes appear on the hypervisor's console too, as QEMU's 0xe9 does.
    pub debug_port: Option<u16>,
    /// The first of [`EXIT_PORT_BYTES`](super::EXIT_PORT_BYTES) I/O ports; a value written there ends the
    /// partition, as QEMU's `isa-debug-exit` ends the machine.
    pub exit_port: Option<u16>,
    /// Whether it has the test device: QEMU's `pc-testdev`, as far as KVM's unit tests need it.
    pub test_device: bool,
    /// Whether guest code at CPL 1 to 3 may make hypercalls. CPL 0 always may.
    pub user_hypercalls: bool,
    /// Whether it may ask for the interrupt sources of other partitions, and have functions taken over.
    pub control: bool,
    /// Whether it starts again when its guest ended.
    pub restart: RestartPolicy,
    /// The PCI functions it owns.
    pub devices: Vec<Device>,
}

/// An image beside the kernel, and what the guest is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The image.
    pub image: ImageIndex,
    /// The text that goes with it.
    pub cmdline: String,
}

/// One PCI function that is passed through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The function's address on the machine, and in the guest.
    pub bdf: Bdf,
    /// The line its interrupt pin drives; `None` leaves that to the firmware's `_PRT` (ACPI 6.5 6.2.13). Of no
    /// meaning for a function without an interrupt pin.
    pub gsi: Option<Gsi>,
    /// Where its line is silenced while the guest handles it.
    pub mask: MaskPolicy,
    /// The input of the guest's IO-APIC that its line drives; `None` chooses the one numbered like the GSI.
    pub vpin: Option<Pin>,
    /// What is done when it, or its guest, misbehaves.
    pub policy: DevicePolicy,
    /// Who may take it over.
    pub standby: Option<Standby>,
}

/// A partition that may take a function over from its owner, and give it back in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby {
    /// Its name.
    pub partition: String,
    /// The input of its IO-APIC that the function drives when it has it; `None` chooses the one of the function's owner.
    pub vpin: Option<Pin>,
}

impl Device {
    /// The input of the guest's IO-APIC that the line `gsi` of this device drives; `None` when the GSI is no
    /// such number and the configuration names no pin.
    pub fn virtual_pin(&self, gsi: Gsi) -> Option<Pin> {
        self.vpin.or_else(|| u8::try_from(gsi.0).ok().map(Pin)).filter(|pin| pin.0 < VIRTUAL_PINS)
    }
}

/// What a guest's COM1 has to do with the hypervisor's console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Console {
    /// Nothing.
    Hidden,
    /// What the guest writes appears line by line, made harmless and with the partition's name in front.
    #[default]
    Lines,
    /// What the guest writes appears at once and as it is, and what is typed on the console goes to the guest.
    Terminal,
}

/// Where a line is silenced between its assertion and the guest's EOI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MaskPolicy {
    /// The hypervisor chooses by what the function can do and who shares its line.
    #[default]
    Auto,
    /// At the physical IO-APIC: works with every function, silences all sharers.
    Line,
    /// At the function, by Interrupt Disable in its command register (PCI 3.0 6.2.2): silences nobody else, needs
    /// a function of PCI 2.3 or later.
    Function,
}

impl MaskPolicy {
    /// All of them, in the order of the documents.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Line, Self::Function];
}

impl fmt::Display for MaskPolicy {
    /// As the configuration spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Line => "line",
            Self::Function => "function",
        })
    }
}

/// The number of an image in its bundle, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageIndex(pub u16);

impl fmt::Display for ImageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {}", self.0)
    }
}
