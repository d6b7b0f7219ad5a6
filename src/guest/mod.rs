//! Guest images: what they claim to be, and where they are loaded.
//!
//! [`plan`] turns a partition's images into a [`BootPlan`]: which bytes go where in guest memory, and the
//! registers the guest starts with. It decides everything and touches nothing; whoever owns guest memory
//! carries it out by copying each [`Placement`]. An image is hostile: no field of it can make a plan reach
//! outside the guest's usable memory, place two things on one byte, or enter the guest where nothing was loaded.
//!
//! * `memory`: the guest-physical map;
//! * `image`: an image's format, its segments and its entry; `elf`, `multiboot` and `linux` read the headers;
//! * `acpi`: the tables of the platform, made when the machine is known;
//! * `boot_data`: what the guest is told: PVH's start info, Multiboot's information block, Linux's zero page.
//!
//! All of this runs before the guest does and may allocate.

#[cfg(feature = "guest-acpi")]
pub mod acpi;
mod boot_data;
mod elf;
mod image;
mod linux;
mod memory;
mod multiboot;

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::ToString as _;
use alloc::vec::Vec;
use core::fmt;

use crate::addr::{GuestPhys, page_align_up};
use crate::config::{Config, Image, ImageIndex, KeyPath, Partition};
use crate::message::{Message, Refusal};

use boot_data::{Facts, LoadedModule};
use image::{Kind, LoadedImage};

pub use image::{Field, ImageError, Problem, Protocol};
pub use memory::{
    ACPI_RSDP, EXTENDED_START, GuestMemory, HIGH_START, HOLE_START, LOW_END, Region, RegionKind,
};

/// Where boot data is put if it can: above the real-mode vectors, the boot sector and the pages that guests start
/// their other CPUs from, below the places they are wont to put early stacks.
const BOOT_DATA_START: u64 = 0x1_0000;

/// Linux does not believe in configuration mechanism 1 where it finds neither a host bridge nor a BIOS of this century, and
/// reports a fatal lack of it before it has read of configuration space in memory; and it takes a platform of reduced hardware
/// for one that EFI resets.
const LINUX_PLATFORM: &str = "pci=conf1 reboot=acpi ";

/// What a partition boots.
#[derive(Clone, Debug)]
pub struct Payload<'a> {
    /// The image that is started.
    pub kernel: Image<'a>,
    /// Its command line, without the image's name.
    pub cmdline: &'a str,
    /// The images beside it, each with the text that goes with it.
    pub modules: Vec<(Image<'a>, &'a str)>,
    /// How fast the guest's time stamp counter counts, in kHz, for a kernel that cannot find it out by itself. `None` where
    /// nobody knows.
    pub tsc_khz: Option<u64>,
}

/// What stands for the rate of the time stamp counter until it is measured: as long a number as it can be.
const LONGEST_TSC_KHZ: u64 = 99_999_999;

impl<'a> Payload<'a> {
    /// What `partition` names among the images of its bundle. Of the time stamp counter only the room that its rate takes is
    /// said.
    ///
    /// # Errors
    /// [`PlanError::NoSuchImage`], which a judged configuration excludes.
    pub fn of(partition: &'a Partition, images: &[Image<'a>]) -> Result<Self, PlanError> {
        let image = |index: ImageIndex| {
            images.get(usize::from(index.0)).copied().ok_or(PlanError::NoSuchImage(index))
        };
        let modules = partition.modules.iter().map(|module| Ok((image(module.image)?, &*module.cmdline)));
        Ok(Self {
            kernel: image(partition.kernel)?,
            cmdline: &partition.cmdline,
            modules: modules.collect::<Result<_, PlanError>>()?,
            tsc_khz: Some(LONGEST_TSC_KHZ),
        })
    }
}

/// Bytes for guest memory, and how many zeros behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement<'a> {
    /// Where the first byte goes.
    pub at: GuestPhys,
    /// What goes there.
    pub bytes: Cow<'a, [u8]>,
    /// How many zeros follow.
    pub zeros: u64,
}

impl Placement<'_> {
    /// The first address behind it. Every placement of a plan lies in RAM, so this is exact.
    pub fn end(&self) -> GuestPhys {
        GuestPhys::new(self.at.raw().saturating_add(self.bytes.len() as u64).saturating_add(self.zeros))
    }
}

/// How a guest starts: flat segments, interrupts disabled. Registers that are not named here are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// 32-bit protected mode, paging off, segments of 4 GiB (code `CS`, data in all others), CR4 and EFER 0: what PVH (its
    /// "direct boot" ABI) and Multiboot (0.6.96 3.2) ask for.
    Protected32 {
        /// The entry point.
        eip: u32,
        /// Multiboot: the boot loader's magic number. PVH: 0, of no meaning.
        eax: u32,
        /// The address of the boot data.
        ebx: u32,
    },
    /// 64-bit mode with the first 4 GiB mapped one to one; `CS` is selector 0x10, the others are 0x18, and both are in the
    /// descriptor table: what Linux asks for (boot.rst, "64-bit Boot Protocol").
    Long64 {
        /// The entry point.
        rip: u64,
        /// The address of the zero page.
        rsi: u64,
        /// The root of the page tables.
        cr3: GuestPhys,
        /// The descriptor table.
        gdt: GuestPhys,
        /// The length of the descriptor table.
        gdt_bytes: u16,
    },
}

impl EntryState {
    /// The entry point.
    pub const fn rip(&self) -> u64 {
        match *self {
            Self::Protected32 { eip, .. } => eip as u64,
            Self::Long64 { rip, .. } => rip,
        }
    }
}

/// A guest ready to be loaded and started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlan<'a> {
    /// What the image turned out to be.
    pub protocol: Protocol,
    /// What goes where: the image's segments, the modules, the boot data; in usable memory, without overlap.
    pub placements: Vec<Placement<'a>>,
    /// The registers to start with.
    pub entry: EntryState,
}

/// Why a partition cannot be booted. Its configuration or its images must change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The bundle lacks an image.
    NoSuchImage(ImageIndex),
    /// The kernel is not loadable.
    Kernel(ImageError),
    /// There is not enough memory for a module.
    NoRoomForModule {
        /// The module, counted from 0.
        module: usize,
        /// Its length.
        bytes: u64,
        /// Where it should have ended at the latest.
        below: GuestPhys,
    },
    /// There is a text beside a module of a kernel that has no use for it.
    InitrdText {
        /// The module, counted from 0.
        module: usize,
    },
    /// The command line is longer than the kernel takes.
    CommandLine {
        /// Its length.
        bytes: usize,
        /// What the kernel takes.
        most: usize,
    },
    /// There is not enough memory for the boot data.
    NoRoomForBootData {
        /// Its length.
        bytes: u64,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchImage(index) => write!(f, "the bundle has no {index}"),
            Self::Kernel(error) => write!(f, "kernel: {error}"),
            Self::NoRoomForModule { module, bytes, below } => {
                write!(f, "no {bytes:#x} bytes of memory are left below {below} for module {module}")
            }
            Self::InitrdText { module } => {
                write!(f, "Linux takes module {module} as its initial RAM disk, and no text with it")
            }
            Self::CommandLine { bytes, most } => {
                write!(
                    f,
                    "{bytes} bytes, and this kernel takes {most} (cmdline_size) beside what it is told of its platform"
                )
            }
            Self::NoRoomForBootData { bytes } => {
                write!(f, "no {bytes:#x} bytes of memory are left below 3 GiB for the boot data")
            }
        }
    }
}

impl core::error::Error for PlanError {}

impl PlanError {
    /// The error's entry in the catalogue.
    pub const fn message(&self) -> Message {
        match self {
            Self::NoSuchImage(_) => Message::NoSuchImage,
            Self::Kernel(ImageError::Field { problem: Problem::OutsideMemory { .. }, .. }) => {
                Message::KernelOutsideMemory
            }
            Self::Kernel(_) => Message::KernelUnusable,
            Self::NoRoomForModule { .. } => Message::ModuleTooLarge,
            Self::InitrdText { .. } => Message::InitrdText,
            Self::CommandLine { .. } => Message::CmdlineLength,
            Self::NoRoomForBootData { .. } => Message::BootDataTooLarge,
        }
    }

    /// What would be right.
    pub fn remedy(&self) -> Cow<'static, str> {
        match self {
            Self::CommandLine { most, .. } => format!("use at most {most} bytes").into(),
            _ => self.message().remedy().into(),
        }
    }
}

/// A partition whose images cannot be booted in its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key to change.
    pub path: KeyPath,
    /// What is wrong.
    pub error: PlanError,
}

impl Fault {
    /// The record of it.
    pub fn refusal(&self) -> Refusal {
        let Self { path, error } = self;
        Refusal::new(error.message(), path.to_string(), error.to_string()).remedy(error.remedy())
    }
}

/// Judges the images of a configuration that keeps its own rules: everything that keeps a partition from being loaded, at
/// most one fault for each. The host asks this when it reads a configuration, the hypervisor again when it boots.
pub fn judge(config: &Config, images: &[Image<'_>]) -> Vec<Fault> {
    let partitions = (0..).zip(&config.partitions);
    partitions.filter_map(|(index, partition)| judge_partition(index, partition, images)).collect()
}

/// The first fault of partition number `index`, if it has one. One whose memory is of no size that memory can have is not
/// judged.
pub fn judge_partition(index: usize, partition: &Partition, images: &[Image<'_>]) -> Option<Fault> {
    let memory = GuestMemory::new(partition.memory_bytes)?;
    let error = Payload::of(partition, images).and_then(|payload| plan(&payload, &memory).map(drop)).err()?;
    let path = KeyPath::root().key("partition").index(index);
    let path = match error {
        PlanError::NoRoomForModule { module, .. } => path.key("modules").index(module).key("file"),
        PlanError::InitrdText { module } => path.key("modules").index(module).key("cmdline"),
        PlanError::CommandLine { .. } => path.key("cmdline"),
        PlanError::NoRoomForBootData { .. } => path.key("memory"),
        PlanError::NoSuchImage(_) | PlanError::Kernel(_) => path.key("kernel"),
    };
    Some(Fault { path, error })
}

/// Plans how `payload` is loaded into a guest with `memory` and started.
///
/// The kernel goes where it says. Modules follow behind it on page boundaries, in their order; boot data goes
/// below 640 KiB where the kernel leaves room, else behind the modules.
///
/// # Errors
/// The kernel's first fault, or what there is no room for.
pub fn plan<'a>(payload: &Payload<'a>, memory: &GuestMemory) -> Result<BootPlan<'a>, PlanError> {
    let LoadedImage { kind, placements, entry } =
        image::load(payload.kernel.bytes, memory).map_err(PlanError::Kernel)?;
    let mut layout = Layout { memory, placements };
    let (protocol, entry) = match kind {
        Kind::Pvh => (Protocol::Pvh, protected32(payload, &mut layout, entry, 0, boot_data::pvh)?),
        Kind::Multiboot1 => {
            let magic = boot_data::MULTIBOOT_LOADER_MAGIC;
            (Protocol::Multiboot1, protected32(payload, &mut layout, entry, magic, boot_data::multiboot)?)
        }
        Kind::Linux(header) => (Protocol::Linux, long64(payload, &mut layout, entry, &header)?),
    };
    Ok(BootPlan { protocol, placements: layout.placements, entry })
}

/// Adds modules and boot data for a guest that is entered in 32-bit mode.
fn protected32<'a>(
    payload: &Payload<'a>,
    layout: &mut Layout<'_, 'a>,
    eip: u32,
    eax: u32,
    build: impl Fn(&Facts<'_>, u32) -> Vec<u8>,
) -> Result<EntryState, PlanError> {
    let end = layout.memory.low_ram_end();
    let mut modules = Vec::with_capacity(payload.modules.len());
    for (module, (image, cmdline)) in payload.modules.iter().enumerate() {
        let bytes = image.bytes.len() as u64;
        let no_room = PlanError::NoRoomForModule { module, bytes, below: end };
        let at = layout.behind(bytes, end).ok_or(no_room)?;
        layout.put(at, image.bytes.into());
        modules.push(LoadedModule { at, bytes, cmdline });
    }
    let facts = Facts {
        memory: layout.memory,
        name: payload.kernel.name,
        cmdline: payload.cmdline,
        modules: &modules,
    };
    let ebx = layout.boot_data(|at| build(&facts, at))?;
    Ok(EntryState::Protected32 { eip, eax, ebx })
}

/// Adds the initial RAM disk and boot data for a Linux kernel. Its modules are one disk: archives in a row with zeros
/// between them, which the kernel unpacks one after the other.
fn long64<'a>(
    payload: &Payload<'a>,
    layout: &mut Layout<'_, 'a>,
    entry: u32,
    header: &linux::Header<'_>,
) -> Result<EntryState, PlanError> {
    // What the platform asks of the kernel stands before the configuration's words, so that those have the last say. Without
    // a PIT, an HPET or a leaf of CPUID that it believes, it has nothing to measure its TSC by, and nothing to watch it with.
    let clock = payload.tsc_khz.map(|khz| format!("tsc_early_khz={khz} tsc=reliable ")).unwrap_or_default();
    let own = clock + LINUX_PLATFORM;
    let (bytes, most) = (payload.cmdline.len(), header.cmdline_most.saturating_sub(own.len()));
    if bytes > most {
        return Err(PlanError::CommandLine { bytes, most });
    }
    let end = layout.memory.low_ram_end().min(GuestPhys::new(header.initrd_end));
    let mut pages: u64 = 0;
    let mut start = GuestPhys::new(0);
    for (module, (image, text)) in payload.modules.iter().enumerate() {
        if !text.is_empty() {
            return Err(PlanError::InitrdText { module });
        }
        let bytes = image.bytes.len() as u64;
        let no_room = PlanError::NoRoomForModule { module, bytes, below: end };
        pages = whole_pages(bytes).and_then(|more| pages.checked_add(more)).ok_or(no_room)?;
        start = layout.behind(pages, end).ok_or(no_room)?;
    }
    let mut next = start;
    let mut initrd_bytes = 0;
    for (image, _) in &payload.modules {
        layout.put(next, image.bytes.into());
        initrd_bytes = next.raw() - start.raw() + image.bytes.len() as u64;
        next = layout.placements.last().map_or(next, Placement::end);
    }
    let initrd = LoadedModule { at: start, bytes: initrd_bytes, cmdline: "" };
    let cmdline = own + payload.cmdline;
    let facts = Facts {
        memory: layout.memory,
        name: payload.kernel.name,
        cmdline: cmdline.trim_end(),
        modules: core::slice::from_ref(&initrd),
    };
    let at = layout.boot_data(|at| boot_data::linux(&facts, header.bytes, at))?;
    let behind = |offset: usize| GuestPhys::new(u64::from(at) + offset as u64);
    Ok(EntryState::Long64 {
        rip: entry.into(),
        rsi: at.into(),
        cr3: behind(boot_data::LINUX_TABLES),
        gdt: behind(boot_data::LINUX_GDT),
        gdt_bytes: boot_data::LINUX_GDT_BYTES,
    })
}

/// Guest memory as it fills up.
struct Layout<'m, 'a> {
    memory: &'m GuestMemory,
    placements: Vec<Placement<'a>>,
}

impl<'a> Layout<'_, 'a> {
    /// Gives `bytes` the pages at `at`, to the end of the last one.
    fn put(&mut self, at: GuestPhys, bytes: Cow<'a, [u8]>) {
        let length = bytes.len() as u64;
        let zeros = whole_pages(length).map_or(0, |pages| pages - length);
        self.placements.push(Placement { at, bytes, zeros });
    }

    /// Gives the boot data its place and returns it. The length of what `build` makes does not depend on the place.
    fn boot_data(&mut self, build: impl Fn(u32) -> Vec<u8>) -> Result<u32, PlanError> {
        let bytes = build(0).len() as u64;
        let (at, address) = self
            .room(BOOT_DATA_START, LOW_END, bytes)
            .or_else(|| self.behind(bytes, self.memory.low_ram_end()))
            .and_then(|at| Some((at, u32::try_from(at.raw()).ok()?)))
            .ok_or(PlanError::NoRoomForBootData { bytes })?;
        self.put(at, build(address).into());
        Ok(address)
    }

    /// Whole pages for `bytes` behind everything that was placed between 1 MiB and `end`, else anywhere there.
    fn behind(&self, bytes: u64, end: GuestPhys) -> Option<GuestPhys> {
        let end = end.raw();
        let last = self.placements.iter().map(|placed| placed.end().raw()).filter(|&last| last <= end).max();
        let start = last.unwrap_or(0).max(EXTENDED_START);
        self.room(start, end, bytes).or_else(|| self.room(EXTENDED_START, end, bytes))
    }

    /// The lowest whole pages for `bytes` from `start` to `end` that hold nothing yet.
    fn room(&self, start: u64, end: u64, bytes: u64) -> Option<GuestPhys> {
        let mut at = page_align_up(start)?;
        loop {
            let next = at.checked_add(whole_pages(bytes)?)?;
            if next > end {
                return None;
            }
            let collides = |placed: &&Placement<'_>| placed.at.raw() < next && at < placed.end().raw();
            match self.placements.iter().find(collides) {
                // It ends above `at`, so the search moves on.
                Some(placed) => at = page_align_up(placed.end().raw())?,
                None => return Some(GuestPhys::new(at)),
            }
        }
    }
}

/// The bytes of the pages that `bytes` take. Even an empty module has a page, and thereby an address of its own.
fn whole_pages(bytes: u64) -> Option<u64> {
    page_align_up(bytes.max(1))
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
