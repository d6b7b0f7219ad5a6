//! What an image claims to be, and what of the claim holds.
//!
//! Formats, in the order they are looked for:
//!
//! 1. **Multiboot 1**: a header in the first 8 KiB that is aligned to 4 bytes (Multiboot 0.6.96 3.1). With address
//!    fields (flag bit 16) the file is loaded by them whatever it is otherwise; without, it is an ELF.
//! 2. **PVH**: an ELF, 32-bit or 64-bit, with a note of name `Xen` and type 18 (`XEN_ELFNOTE_PHYS32_ENTRY`) that
//!    holds the physical address of a 32-bit entry point.
//!
//! 3. **Linux**: `HdrS` at byte 0x202, the setup header of a bzImage, which `linux` reads.
//!
//! An image with several is started by the first, as QEMU's `-kernel` does: an image behaves the same here and there.

use alloc::vec::Vec;
use core::fmt;

use crate::addr::GuestPhys;

use super::elf::Elf;
use super::memory::GuestMemory;
use super::{Placement, linux, multiboot};

/// How a guest is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The PVH "direct boot" protocol.
    Pvh,
    /// Multiboot, version 1.
    Multiboot1,
    /// Linux's x86 boot protocol, at its 64-bit entry.
    Linux,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "PVH",
            Self::Multiboot1 => "Multiboot 1",
            Self::Linux => "Linux",
        })
    }
}

/// Why an image is not loadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// It has no bytes.
    Empty,
    /// It begins as what it is and ends before its header does.
    HeaderCutOff {
        /// What it begins as.
        what: &'static str,
        /// After so many bytes.
        bytes: usize,
    },
    /// It is of no format that was looked for.
    Unrecognised {
        /// Whether it is at least an ELF.
        elf: bool,
    },
    /// It has a Multiboot header without address fields, and is no ELF: nothing says where it belongs.
    NoAddresses,
    /// A field of its headers cannot be.
    Field {
        /// Which.
        field: Field,
        /// What it says.
        value: u64,
        /// What is wrong with that.
        problem: Problem,
    },
}

/// A field of an image, by its name in the format's specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// A field of the only header of its kind.
    Header(&'static str),
    /// A field of the ELF program header with this number.
    Program(&'static str, usize),
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// What it leads to lies, wholly or in part, outside a file of `file` bytes.
    OutsideFile {
        /// The length of the file.
        file: usize,
    },
    /// `bytes` from there are not all memory that the guest may use.
    OutsideMemory {
        /// The length of what should go there.
        bytes: u64,
    },
    /// What should go there would overwrite what goes to `other`.
    Overlap {
        /// The start of the other.
        other: GuestPhys,
    },
    /// Nothing is loaded there to be executed.
    NotLoaded,
    /// It should be otherwise: this completes "expected ...".
    Expected(&'static str),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("not bootable: the file is empty"),
            Self::HeaderCutOff { what, bytes } => {
                write!(f, "not bootable: {what} that is cut off within its header, after {bytes} bytes")
            }
            Self::Unrecognised { elf } => write!(
                f,
                "not bootable: {}, and no Multiboot header (0x1badb002) in its first 8 KiB",
                if *elf { "an ELF without a note `Xen` of type 18 (PVH)" } else { "no Linux bzImage, no ELF" }
            ),
            Self::NoAddresses => f.write_str(
                "not bootable: a Multiboot header without address fields (flag bit 16) in a file that is no ELF",
            ),
            Self::Field { field, value, problem } => write!(f, "{field} is {value:#x}: {problem}"),
        }
    }
}

impl core::error::Error for ImageError {}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => f.write_str(name),
            Self::Program(name, header) => write!(f, "{name} of program header {header}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutsideFile { file } => write!(f, "it leads outside the file of {file:#x} bytes"),
            Self::OutsideMemory { bytes } => {
                write!(f, "{bytes:#x} bytes there are not all usable guest memory")
            }
            Self::Overlap { other } => write!(f, "it would overwrite what is loaded to {other}"),
            Self::NotLoaded => f.write_str("nothing is loaded there"),
            Self::Expected(what) => write!(f, "expected {what}"),
        }
    }
}

impl Field {
    /// The error that `value` of this field is.
    pub(super) fn is(self, value: impl Into<u64>, problem: Problem) -> ImageError {
        ImageError::Field { field: self, value: value.into(), problem }
    }
}

/// An image with its claims checked: all of it in usable memory, nothing twice, the entry within.
#[derive(Debug)]
pub(super) struct LoadedImage<'a> {
    pub kind: Kind<'a>,
    pub placements: Vec<Placement<'a>>,
    pub entry: u32,
}

/// The protocol an image is started by, with what of the image the protocol needs.
#[derive(Debug)]
pub(super) enum Kind<'a> {
    Pvh,
    Multiboot1,
    Linux(linux::Header<'a>),
}

/// Finds out what `file` is and where it goes.
pub(super) fn load<'a>(file: &'a [u8], memory: &GuestMemory) -> Result<LoadedImage<'a>, ImageError> {
    if file.is_empty() {
        return Err(ImageError::Empty);
    }
    let elf = Elf::parse(file)?;
    let (kind, placements, field, entry) = match (multiboot::Header::find(file)?, elf) {
        (Some(multiboot::Header { addresses: Some(addresses), offset }), _) => {
            let placement = addresses.placement(file, offset, memory)?;
            (Kind::Multiboot1, alloc::vec![placement], "entry_addr", addresses.entry.into())
        }
        (Some(_), Some(elf)) => (Kind::Multiboot1, elf.segments(memory)?, "e_entry", elf.physical_entry()),
        (Some(_), None) => return Err(ImageError::NoAddresses),
        (None, Some(elf)) => match elf.pvh_entry()? {
            Some(entry) => (Kind::Pvh, elf.segments(memory)?, "XEN_ELFNOTE_PHYS32_ENTRY", entry),
            None => return Err(ImageError::Unrecognised { elf: true }),
        },
        (None, None) => {
            let header = linux::Header::parse(file)?.ok_or(ImageError::Unrecognised { elf: false })?;
            let (placement, entry) = (header.placement(memory)?, header.entry());
            (Kind::Linux(header), alloc::vec![placement], "pref_address", entry)
        }
    };
    let entry = entry_within(&placements, Field::Header(field), entry)?;
    Ok(LoadedImage { kind, placements, entry })
}

/// Checks that bytes of the file are loaded to `entry`: zeros are no code.
fn entry_within(placements: &[Placement<'_>], field: Field, entry: u64) -> Result<u32, ImageError> {
    let loaded = |placed: &Placement<'_>| {
        entry.checked_sub(placed.at.raw()).is_some_and(|offset| offset < placed.bytes.len() as u64)
    };
    match u32::try_from(entry) {
        Ok(eip) if placements.iter().any(loaded) => Ok(eip),
        Ok(_) => Err(field.is(entry, Problem::NotLoaded)),
        Err(_) => Err(field.is(entry, Problem::Expected("an address below 4 GiB"))),
    }
}

/// The part of `file` from `offset` with `bytes` bytes, if it has them.
pub(super) fn part(file: &[u8], offset: u64, bytes: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(bytes).ok()?)?;
    file.get(start..end)
}
