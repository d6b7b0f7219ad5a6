//! The ELF header, its program headers and their notes, as far as loading needs them (System V gABI 4.1, chapters
//! 4 and 5).

use alloc::vec::Vec;

use crate::addr::GuestPhys;

use super::Placement;
use super::image::{Field, ImageError, Problem, part};
use super::memory::GuestMemory;

const MAGIC: &[u8] = b"\x7fELF";
const ET_EXEC: u16 = 2;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Far more than linkers write; bounds the work on a hostile image.
const MAX_PROGRAM_HEADERS: u16 = 128;

const NOTE_HEADER_BYTES: usize = 12;
const XEN_NOTE_NAME: &[u8] = b"Xen\0";
const XEN_NOTE_PHYS32_ENTRY: u32 = 18;

/// An ELF whose header is sound; its program headers are claims.
pub(super) struct Elf<'a> {
    file: &'a [u8],
    kind: u16,
    entry: u64,
    programs: Vec<ProgramHeader>,
}

struct ProgramHeader {
    kind: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

/// Where the two classes keep their fields, by offset.
struct Class {
    /// Whether offsets and addresses take 8 bytes.
    wide: bool,
    e_entry: usize,
    e_phoff: usize,
    e_phentsize: usize,
    e_phnum: usize,
    p_offset: usize,
    p_vaddr: usize,
    p_paddr: usize,
    p_filesz: usize,
    p_memsz: usize,
    p_align: usize,
    program_bytes: u16,
    program_bytes_expected: &'static str,
}

const ELF32: Class = Class {
    wide: false,
    e_entry: 24,
    e_phoff: 28,
    e_phentsize: 42,
    e_phnum: 44,
    p_offset: 4,
    p_vaddr: 8,
    p_paddr: 12,
    p_filesz: 16,
    p_memsz: 20,
    p_align: 28,
    program_bytes: 32,
    program_bytes_expected: "32",
};

const ELF64: Class = Class {
    wide: true,
    e_entry: 24,
    e_phoff: 32,
    e_phentsize: 54,
    e_phnum: 56,
    p_offset: 8,
    p_vaddr: 16,
    p_paddr: 24,
    p_filesz: 32,
    p_memsz: 40,
    p_align: 48,
    program_bytes: 56,
    program_bytes_expected: "56",
};

impl Class {
    fn word(&self, bytes: &[u8], offset: usize) -> Option<u64> {
        if self.wide { u64_at(bytes, offset) } else { u32_at(bytes, offset).map(u64::from) }
    }

    fn program(&self, bytes: &[u8]) -> Option<ProgramHeader> {
        Some(ProgramHeader {
            kind: u32_at(bytes, 0)?,
            offset: self.word(bytes, self.p_offset)?,
            virtual_address: self.word(bytes, self.p_vaddr)?,
            physical_address: self.word(bytes, self.p_paddr)?,
            file_bytes: self.word(bytes, self.p_filesz)?,
            memory_bytes: self.word(bytes, self.p_memsz)?,
            align: self.word(bytes, self.p_align)?,
        })
    }
}

impl<'a> Elf<'a> {
    /// The ELF that `file` is; `None` if it does not claim to be one.
    pub(super) fn parse(file: &'a [u8]) -> Result<Option<Self>, ImageError> {
        if !file.starts_with(MAGIC) {
            return Ok(None);
        }
        let outside = Problem::OutsideFile { file: file.len() };
        let cut_off = ImageError::HeaderCutOff { what: "an ELF", bytes: file.len() };
        let class = match byte_at(file, 4).ok_or(cut_off)? {
            1 => &ELF32,
            2 => &ELF64,
            other => return Err(Field::Header("EI_CLASS").is(other, Problem::Expected("1 or 2"))),
        };
        let data = byte_at(file, 5).ok_or(cut_off)?;
        if data != 1 {
            return Err(Field::Header("EI_DATA").is(data, Problem::Expected("1, little-endian")));
        }
        let kind = u16_at(file, 16).ok_or(cut_off)?;
        let machine = u16_at(file, 18).ok_or(cut_off)?;
        if !matches!(machine, EM_386 | EM_X86_64) {
            return Err(Field::Header("e_machine").is(machine, Problem::Expected("3 or 62, x86")));
        }
        let entry = class.word(file, class.e_entry).ok_or(cut_off)?;
        let offset = class.word(file, class.e_phoff).ok_or(cut_off)?;
        let size = u16_at(file, class.e_phentsize).ok_or(cut_off)?;
        let count = u16_at(file, class.e_phnum).ok_or(cut_off)?;
        if size != class.program_bytes {
            let problem = Problem::Expected(class.program_bytes_expected);
            return Err(Field::Header("e_phentsize").is(size, problem));
        }
        if !(1..=MAX_PROGRAM_HEADERS).contains(&count) {
            return Err(Field::Header("e_phnum").is(count, Problem::Expected("1 to 128")));
        }
        let misplaced = Field::Header("e_phoff").is(offset, outside);
        let table = part(file, offset, u64::from(size) * u64::from(count)).ok_or(misplaced)?;
        let programs = table.chunks_exact(size.into()).map(|bytes| class.program(bytes));
        let programs = programs.collect::<Option<_>>().ok_or(misplaced)?;
        Ok(Some(Self { file, kind, entry, programs }))
    }

    /// The entry point of the PVH protocol, if a note names one.
    pub(super) fn pvh_entry(&self) -> Result<Option<u64>, ImageError> {
        for (number, program) in self.programs.iter().enumerate().filter(|(_, p)| p.kind == PT_NOTE) {
            let notes = program.content(self.file, number)?;
            // Historically notes are aligned to 4 bytes whatever p_align says; only 8 means 8.
            let align = if program.align == 8 { 8 } else { 4 };
            if let Some(description) = xen_entry_note(notes, align) {
                let field = Field::Header("XEN_ELFNOTE_PHYS32_ENTRY");
                return match description.len() {
                    4 => Ok(u32_at(description, 0).map(u64::from)),
                    8 => Ok(u64_at(description, 0)),
                    other => Err(field.is(other as u64, Problem::Expected("4 or 8 bytes of address"))),
                };
            }
        }
        Ok(None)
    }

    /// The loadable segments, in ascending order of their physical addresses.
    pub(super) fn segments(&self, memory: &GuestMemory) -> Result<Vec<Placement<'a>>, ImageError> {
        if self.kind != ET_EXEC {
            let problem = Problem::Expected("2, an executable linked to its address");
            return Err(Field::Header("e_type").is(self.kind, problem));
        }
        let mut placed: Vec<(usize, Placement<'a>)> = Vec::new();
        for (number, program) in self.programs.iter().enumerate() {
            if program.kind == PT_LOAD && program.memory_bytes > 0 {
                placed.push((number, program.placement(self.file, number, memory)?));
            }
        }
        placed.sort_by_key(|(_, placement)| placement.at);
        for ((_, below), (number, above)) in placed.iter().zip(placed.iter().skip(1)) {
            if above.at < below.end() {
                let problem = Problem::Overlap { other: below.at };
                return Err(Field::Program("p_paddr", *number).is(above.at.raw(), problem));
            }
        }
        Ok(placed.into_iter().map(|(_, placement)| placement).collect())
    }

    /// The entry point as a physical address. `e_entry` is a virtual one where it lies in a segment's virtual
    /// range, and is taken as it is elsewhere. Meaningful once [`Self::segments`] was content.
    pub(super) fn physical_entry(&self) -> u64 {
        let loads = self.programs.iter().filter(|program| program.kind == PT_LOAD);
        let physical = |program: &ProgramHeader| {
            let offset = self.entry.checked_sub(program.virtual_address)?;
            (offset < program.memory_bytes).then(|| program.physical_address.saturating_add(offset))
        };
        loads.filter_map(physical).next().unwrap_or(self.entry)
    }
}

impl ProgramHeader {
    fn content<'a>(&self, file: &'a [u8], number: usize) -> Result<&'a [u8], ImageError> {
        // Name the one of the two fields that alone is already too much.
        let (field, value) = match self.offset <= file.len() as u64 {
            true => ("p_filesz", self.file_bytes),
            false => ("p_offset", self.offset),
        };
        let problem = Problem::OutsideFile { file: file.len() };
        part(file, self.offset, self.file_bytes).ok_or(Field::Program(field, number).is(value, problem))
    }

    fn placement<'a>(
        &self,
        file: &'a [u8],
        number: usize,
        memory: &GuestMemory,
    ) -> Result<Placement<'a>, ImageError> {
        let zeros = self.memory_bytes.checked_sub(self.file_bytes).ok_or_else(|| {
            Field::Program("p_filesz", number).is(self.file_bytes, Problem::Expected("at most p_memsz"))
        })?;
        let bytes = self.content(file, number)?;
        let at = GuestPhys::new(self.physical_address);
        if !memory.is_usable(at, self.memory_bytes) {
            let problem = Problem::OutsideMemory { bytes: self.memory_bytes };
            return Err(Field::Program("p_paddr", number).is(self.physical_address, problem));
        }
        Ok(Placement { at, bytes: bytes.into(), zeros })
    }
}

/// The description of the first PVH entry note among `notes`. Bytes that are no notes end the search.
fn xen_entry_note(mut notes: &[u8], align: usize) -> Option<&[u8]> {
    loop {
        let name_bytes = u32_at(notes, 0)? as usize;
        let description_bytes = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let name = notes.get(NOTE_HEADER_BYTES..NOTE_HEADER_BYTES.checked_add(name_bytes)?)?;
        let start = NOTE_HEADER_BYTES.checked_add(name_bytes)?.checked_next_multiple_of(align)?;
        let end = start.checked_add(description_bytes)?;
        let description = notes.get(start..end)?;
        if kind == XEN_NOTE_PHYS32_ENTRY && name == XEN_NOTE_NAME {
            return Some(description);
        }
        notes = notes.get(end.checked_next_multiple_of(align)?..)?;
    }
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn byte_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
