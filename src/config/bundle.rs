//! The bundle: a configuration and the images it names as one file, the hypervisor's only boot module.
//!
//! All numbers are little-endian:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic `LVLHDBDL` |
//! | 8 | 4 | format revision, [`REVISION`] |
//! | 12 | 4 | number of sections |
//! | 16 | 8 | length of the whole file |
//! | 24 | 128 each | the sections |
//! | behind them | 4 | CRC-32 of everything before |
//!
//! and each section:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 | kind: 1 configuration (the first section, no other), 2 image |
//! | 4 | 4 | CRC-32 of its payload |
//! | 8 | 8 | offset of its payload in the file |
//! | 16 | 8 | length of its payload |
//! | 24 | 104 | name, UTF-8, filled up with zeros |
//!
//! Payloads follow in the order of the sections, each on a page boundary, the gaps and the end filled up to whole
//! pages with zeros. There is thus one form for one content, and every bit of the file is either checksummed or
//! known. The checksums guard against accidents, not against forgery: whoever can replace the bundle can
//! replace the hypervisor.

use alloc::vec::Vec;
use core::fmt;

use crate::addr::page_align_up;
use crate::message::Message;

use super::model::ImageIndex;

/// The revision of the bundle and of the configuration in it; another one is refused.
pub const REVISION: u32 = 6;
/// The most images of a bundle.
pub const MAX_IMAGES: usize = 256;
/// The longest image name, in bytes.
pub const MAX_IMAGE_NAME_BYTES: usize = 104;

const MAGIC: &[u8; 8] = b"LVLHDBDL";
const HEADER_BYTES: usize = 24;
const SECTION_BYTES: usize = 24 + MAX_IMAGE_NAME_BYTES;
const CHECKSUM_BYTES: usize = 4;
const KIND_CONFIG: u32 = 1;
const KIND_IMAGE: u32 = 2;
const CONFIG_NAME: &str = "configuration";

/// A file for guests, by name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    /// What it is called: 1 to [`MAX_IMAGE_NAME_BYTES`] bytes without spaces and control characters, so that it
    /// can be a word of a command line.
    pub name: &'a str,
    /// What it holds; any bytes.
    pub bytes: &'a [u8],
}

impl fmt::Debug for Image<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, bytes } = self;
        f.debug_struct("Image").field("name", name).field("bytes", &bytes.len()).finish()
    }
}

/// Bytes that are no bundle. Sections count from 0; the first one is the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// The file does not start as a bundle does.
    Magic,
    /// The file is of this revision, not of [`REVISION`].
    Revision(u32),
    /// The file is shorter than its own header.
    Header {
        /// Its length.
        actual: usize,
    },
    /// The file is shorter or longer than it says.
    Length {
        /// What it says.
        stated: u64,
        /// What it is.
        actual: usize,
    },
    /// There are 1 to 1 + [`MAX_IMAGES`] sections.
    SectionCount(usize),
    /// The header or the table of sections was changed.
    HeaderChecksum,
    /// A section is of a kind that does not belong there.
    Kind {
        /// The section.
        section: usize,
        /// Its kind.
        kind: u32,
    },
    /// A section's name cannot be a word of a command line.
    Name {
        /// The section.
        section: usize,
    },
    /// A section's payload is not where it belongs, or not within the file.
    Place {
        /// The section.
        section: usize,
        /// Where it says to be.
        offset: u64,
        /// How long it says to be.
        length: u64,
    },
    /// A section's payload was changed.
    Checksum {
        /// The section.
        section: usize,
    },
    /// The gap before a section's payload, or the end of the file, is not zeros.
    Padding {
        /// The section, or the number of sections.
        section: usize,
    },
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("not a bundle: it does not start with LVLHDBDL"),
            Self::Revision(found) => {
                write!(f, "format revision {found}, but this hypervisor reads {REVISION}")
            }
            Self::Header { actual } => write!(f, "cut off within the header, after {actual} bytes"),
            Self::Length { stated, actual } => {
                write!(f, "{actual} bytes, but it says to have {stated}: cut off or run together")
            }
            Self::SectionCount(found) => write!(f, "{found} sections instead of 1 to {}", 1 + MAX_IMAGES),
            Self::HeaderChecksum => f.write_str("damaged: the header's checksum does not match"),
            Self::Kind { section, kind } => {
                write!(f, "section {section} is of kind {kind}, which does not belong there")
            }
            Self::Name { section } => write!(
                f,
                "section {section} needs a name of 1 to {MAX_IMAGE_NAME_BYTES} bytes without spaces and control characters"
            ),
            Self::Place { section, offset, length } => {
                write!(f, "section {section} says to have {length:#x} bytes at {offset:#x}, which cannot be")
            }
            Self::Checksum { section } => {
                write!(f, "damaged: the checksum of section {section} does not match")
            }
            Self::Padding { section } => {
                write!(f, "damaged: the padding before section {section} is not zeros")
            }
        }
    }
}

impl core::error::Error for BundleError {}

impl BundleError {
    /// The error's entry in the catalogue.
    pub const fn message(&self) -> Message {
        match self {
            Self::Magic => Message::BundleForeign,
            Self::Revision(_) => Message::BundleRevision,
            Self::Header { .. }
            | Self::Length { .. }
            | Self::SectionCount(_)
            | Self::HeaderChecksum
            | Self::Kind { .. }
            | Self::Name { .. }
            | Self::Place { .. }
            | Self::Checksum { .. }
            | Self::Padding { .. } => Message::BundleDamaged,
        }
    }
}

/// A view of a bundle that was found whole and unharmed.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    config: &'a [u8],
    images: Vec<Image<'a>>,
}

impl<'a> Bundle<'a> {
    /// Checks all of `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        if !bytes.starts_with(MAGIC) {
            return Err(BundleError::Magic);
        }
        let cut_off = BundleError::Header { actual: bytes.len() };
        let revision = u32_at(bytes, 8).ok_or(cut_off)?;
        if revision != REVISION {
            return Err(BundleError::Revision(revision));
        }
        let count = u32_at(bytes, 12).ok_or(cut_off)? as usize;
        if !(1..=1 + MAX_IMAGES).contains(&count) {
            return Err(BundleError::SectionCount(count));
        }
        let stated = u64_at(bytes, 16).ok_or(cut_off)?;
        if stated != bytes.len() as u64 {
            return Err(BundleError::Length { stated, actual: bytes.len() });
        }
        let header_bytes = HEADER_BYTES + count * SECTION_BYTES;
        let header = bytes.get(..header_bytes).ok_or(cut_off)?;
        if u32_at(bytes, header_bytes).ok_or(cut_off)? != crc32fast::hash(header) {
            return Err(BundleError::HeaderChecksum);
        }

        let table = header.get(HEADER_BYTES..).unwrap_or_default();
        let mut cursor = Cursor { bytes, end: header_bytes + CHECKSUM_BYTES };
        let mut sections = Vec::with_capacity(count);
        for (section, entry) in table.chunks_exact(SECTION_BYTES).enumerate() {
            sections.push(cursor.section(section, entry)?);
        }
        cursor.finish(count)?;
        let images = sections.split_off(1.min(sections.len()));
        let config = sections.first().map_or(&[][..], |config| config.bytes);
        Ok(Self { config, images })
    }

    /// The packed configuration.
    pub(super) fn config(&self) -> &'a [u8] {
        self.config
    }

    /// The images, in the order of their [`ImageIndex`].
    pub fn images(&self) -> &[Image<'a>] {
        &self.images
    }

    /// The image `index`, or `None` when there are fewer.
    pub fn image(&self, index: ImageIndex) -> Option<Image<'a>> {
        self.images.get(usize::from(index.0)).copied()
    }
}

/// Walks over the payloads, which follow one another on page boundaries.
struct Cursor<'a> {
    bytes: &'a [u8],
    /// The end of what was walked over.
    end: usize,
}

impl<'a> Cursor<'a> {
    fn section(&mut self, section: usize, entry: &'a [u8]) -> Result<Image<'a>, BundleError> {
        let kind = u32_at(entry, 0).unwrap_or(0);
        if kind != if section == 0 { KIND_CONFIG } else { KIND_IMAGE } {
            return Err(BundleError::Kind { section, kind });
        }
        let name = name(entry.get(24..).unwrap_or_default()).ok_or(BundleError::Name { section })?;
        let offset = u64_at(entry, 8).unwrap_or(0);
        let length = u64_at(entry, 16).unwrap_or(0);
        let misplaced = BundleError::Place { section, offset, length };

        let start = aligned(self.end).filter(|&start| start as u64 == offset).ok_or(misplaced)?;
        let end =
            usize::try_from(length).ok().and_then(|length| start.checked_add(length)).ok_or(misplaced)?;
        let payload = self.bytes.get(start..end).ok_or(misplaced)?;
        self.skip_zeros(start, section)?;
        if u32_at(entry, 4) != Some(crc32fast::hash(payload)) {
            return Err(BundleError::Checksum { section });
        }
        self.end = end;
        Ok(Image { name, bytes: payload })
    }

    fn finish(mut self, sections: usize) -> Result<(), BundleError> {
        let actual = self.bytes.len();
        match aligned(self.end) {
            Some(end) if end == actual => self.skip_zeros(end, sections),
            end => Err(BundleError::Length { stated: end.unwrap_or(usize::MAX) as u64, actual }),
        }
    }

    fn skip_zeros(&mut self, to: usize, section: usize) -> Result<(), BundleError> {
        let gap = self.bytes.get(self.end..to).ok_or(BundleError::Padding { section })?;
        self.end = to;
        if gap.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(BundleError::Padding { section }) }
    }
}

/// A bundle of the packed configuration and `images`.
///
/// # Errors
/// [`BundleError::SectionCount`] and [`BundleError::Name`], as the reader would say.
pub(super) fn write(config: &[u8], images: &[Image<'_>]) -> Result<Vec<u8>, BundleError> {
    let count = 1 + images.len();
    if images.len() > MAX_IMAGES {
        return Err(BundleError::SectionCount(count));
    }
    let sections: Vec<Image<'_>> =
        [Image { name: CONFIG_NAME, bytes: config }].into_iter().chain(images.iter().copied()).collect();
    let too_long = BundleError::Length { stated: u64::MAX, actual: 0 };

    let mut table = Vec::new();
    let mut end = HEADER_BYTES + count * SECTION_BYTES + CHECKSUM_BYTES;
    for (section, Image { name, bytes }) in sections.iter().enumerate() {
        if !is_word(name) || name.len() > MAX_IMAGE_NAME_BYTES {
            return Err(BundleError::Name { section });
        }
        let start = aligned(end).ok_or(too_long)?;
        let kind = if section == 0 { KIND_CONFIG } else { KIND_IMAGE };
        table.extend_from_slice(&kind.to_le_bytes());
        table.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
        table.extend_from_slice(&(start as u64).to_le_bytes());
        table.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        table.extend_from_slice(name.as_bytes());
        table.resize((section + 1) * SECTION_BYTES, 0);
        end = start.checked_add(bytes.len()).ok_or(too_long)?;
    }
    let total = aligned(end).ok_or(too_long)?;

    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&REVISION.to_le_bytes());
    out.extend_from_slice(&(count as u32).to_le_bytes());
    out.extend_from_slice(&(total as u64).to_le_bytes());
    out.extend_from_slice(&table);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    for Image { bytes, .. } in sections {
        out.resize(aligned(out.len()).ok_or(too_long)?, 0);
        out.extend_from_slice(bytes);
    }
    out.resize(total, 0);
    Ok(out)
}

/// The name in a zero-filled field, if it is one.
fn name(field: &[u8]) -> Option<&str> {
    let length = field.iter().rposition(|&byte| byte != 0)? + 1;
    core::str::from_utf8(field.get(..length)?).ok().filter(|name| is_word(name))
}

fn is_word(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control())
}

fn aligned(length: usize) -> Option<usize> {
    page_align_up(length as u64).and_then(|length| usize::try_from(length).ok())
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
