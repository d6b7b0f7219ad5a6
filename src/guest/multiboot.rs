//! The Multiboot header of an image and its address fields (Multiboot 0.6.96 3.1).

use crate::addr::GuestPhys;

use super::Placement;
use super::elf::u32_at;
use super::image::{Field, ImageError, Problem, part};
use super::memory::GuestMemory;

const MAGIC: u32 = 0x1bad_b002;
/// The header lies wholly within this much of the file.
const SEARCH_BYTES: usize = 8192;
/// Magic, flags and checksum.
const HEADER_BYTES: usize = 12;
/// Modules on page boundaries, and memory information: both are always given.
const FLAGS_GRANTED: u32 = 1 << 0 | 1 << 1;
/// Whoever does not know one of these flags must not load the image.
const FLAGS_REQUIRED: u32 = 0xffff;
const FLAG_ADDRESSES: u32 = 1 << 16;

/// A header with a matching checksum.
pub(super) struct Header {
    /// Its offset in the file.
    pub offset: usize,
    /// Where the file goes, if the header says so.
    pub addresses: Option<Addresses>,
}

/// The address fields.
pub(super) struct Addresses {
    header: u32,
    load: u32,
    /// 0 for the end of the file.
    load_end: u32,
    /// 0 for no zeros behind the file's bytes.
    bss_end: u32,
    pub entry: u32,
}

impl Header {
    /// The first header in `file`, if there is one.
    pub(super) fn find(file: &[u8]) -> Result<Option<Self>, ImageError> {
        let searched = file.get(..SEARCH_BYTES).unwrap_or(file);
        let is_header = |offset: &usize| {
            let words = [0, 4, 8].map(|word| u32_at(searched, offset + word));
            matches!(words, [Some(MAGIC), Some(flags), Some(checksum)]
                if MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0)
        };
        let Some(offset) = (0..searched.len()).step_by(4).find(is_header) else { return Ok(None) };
        let flags = u32_at(file, offset + 4).unwrap_or(0);
        if flags & FLAGS_REQUIRED & !FLAGS_GRANTED != 0 {
            let problem = Problem::Expected("none of the bits 2 to 15, which demand what is not given");
            return Err(Field::Header("flags").is(flags, problem));
        }
        let addresses = (flags & FLAG_ADDRESSES != 0).then(|| Addresses::read(file, offset + HEADER_BYTES));
        Ok(Some(Self { offset, addresses: addresses.transpose()? }))
    }
}

impl Addresses {
    fn read(file: &[u8], offset: usize) -> Result<Self, ImageError> {
        let word = |name, at| {
            let problem = Problem::OutsideFile { file: file.len() };
            u32_at(file, offset + at).ok_or(Field::Header(name).is((offset + at) as u64, problem))
        };
        Ok(Self {
            header: word("header_addr", 0)?,
            load: word("load_addr", 4)?,
            load_end: word("load_end_addr", 8)?,
            bss_end: word("bss_end_addr", 12)?,
            entry: word("entry_addr", 16)?,
        })
    }

    /// What of `file`, whose header is at `offset`, goes where.
    pub(super) fn placement<'a>(
        &self,
        file: &'a [u8],
        offset: usize,
        memory: &GuestMemory,
    ) -> Result<Placement<'a>, ImageError> {
        let before = self.header.checked_sub(self.load).ok_or_else(|| {
            Field::Header("load_addr").is(self.load, Problem::Expected("at most header_addr"))
        })?;
        let start = (offset as u64).checked_sub(before.into()).ok_or_else(|| {
            Field::Header("load_addr").is(self.load, Problem::OutsideFile { file: file.len() })
        })?;
        let bytes = match self.load_end {
            0 => file.len() as u64 - start,
            end => u64::from(end.checked_sub(self.load).ok_or_else(|| {
                Field::Header("load_end_addr").is(end, Problem::Expected("at least load_addr"))
            })?),
        };
        let content = part(file, start, bytes).ok_or_else(|| {
            Field::Header("load_end_addr").is(self.load_end, Problem::OutsideFile { file: file.len() })
        })?;
        let loaded_end = u64::from(self.load) + bytes;
        let zeros = match self.bss_end {
            0 => 0,
            end => u64::from(end).checked_sub(loaded_end).ok_or_else(|| {
                Field::Header("bss_end_addr").is(end, Problem::Expected("at least the end of what is loaded"))
            })?,
        };
        let at = GuestPhys::new(self.load.into());
        if !memory.is_usable(at, bytes + zeros) {
            let problem = Problem::OutsideMemory { bytes: bytes + zeros };
            return Err(Field::Header("load_addr").is(self.load, problem));
        }
        Ok(Placement { at, bytes: content.into(), zeros })
    }
}
