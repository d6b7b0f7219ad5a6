//! The setup header of a Linux kernel in its bzImage form, and the kernel behind it (Linux,
//! Documentation/arch/x86/boot.rst). Of protocol 2.12 and later, which have an entry point for 64-bit mode: what runs
//! before that in real and in 32-bit mode is not needed.

use crate::addr::GuestPhys;

use super::Placement;
use super::elf::{byte_at, u16_at, u32_at, u64_at};
use super::image::{Field, ImageError, Problem, part};
use super::memory::{GuestMemory, HIGH_START};

const MAGIC: &[u8] = b"HdrS";
const MAGIC_AT: usize = 0x202;
/// The first byte of the header, in the file and in the zero page.
pub(super) const HEADER_START: usize = 0x1f1;
/// What the length of the header is counted from: the target of the jump at 0x200, whose offset is at 0x201.
const JUMP_OFFSET: usize = 0x201;
const JUMP_FROM: usize = 0x202;
/// The header ends behind `init_size`, the last field that is read here, or later; what follows it in the zero page begins
/// at 0x290.
const JUMPS: core::ops::RangeInclusive<u8> = 0x62..=0x8e;
const BOOT_FLAG: u16 = 0xaa55;
const OLDEST_PROTOCOL: u16 = 0x20c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const SECTOR_BYTES: u64 = 512;
/// `setup_sects` of 0 means so many.
const DEFAULT_SETUP_SECTORS: u8 = 4;
const PARAGRAPH_BYTES: u64 = 16;
/// Where 64-bit code is entered, counted from where the kernel is loaded.
const ENTRY_OFFSET: u32 = 0x200;

/// A setup header whose claims about the file hold.
#[derive(Debug)]
pub(super) struct Header<'a> {
    /// All of it, for the zero page.
    pub bytes: &'a [u8],
    /// The longest command line the kernel takes, without its terminator.
    pub cmdline_most: usize,
    /// The first address behind the highest byte an initial RAM disk may have.
    pub initrd_end: u64,
    kernel: &'a [u8],
    preferred: u32,
    init_bytes: u64,
}

impl<'a> Header<'a> {
    /// The header of the kernel that `file` is; `None` if it does not claim to be one.
    pub(super) fn parse(file: &'a [u8]) -> Result<Option<Self>, ImageError> {
        if !file.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(MAGIC)) {
            return Ok(None);
        }
        let outside = Problem::OutsideFile { file: file.len() };
        let cut_off = ImageError::HeaderCutOff { what: "a Linux bzImage", bytes: file.len() };
        let byte = |offset| byte_at(file, offset).ok_or(cut_off);
        let half = |offset| u16_at(file, offset).ok_or(cut_off);
        let word = |offset| u32_at(file, offset).ok_or(cut_off);
        let long = |offset| u64_at(file, offset).ok_or(cut_off);

        let boot_flag = half(0x1fe)?;
        if boot_flag != BOOT_FLAG {
            return Err(Field::Header("boot_flag").is(boot_flag, Problem::Expected("0xaa55")));
        }
        let version = half(0x206)?;
        if version < OLDEST_PROTOCOL {
            let problem = Problem::Expected("at least 0x20c: Linux 3.8 or later");
            return Err(Field::Header("version").is(version, problem));
        }
        let jump = byte(JUMP_OFFSET)?;
        if !JUMPS.contains(&jump) {
            let problem = Problem::Expected("0x62 to 0x8e, a header that ends behind init_size");
            return Err(Field::Header("jump").is(jump, problem));
        }
        let end = JUMP_FROM + usize::from(jump);
        let bytes = file.get(HEADER_START..end).ok_or(cut_off)?;
        let load_flags = byte(0x211)?;
        if load_flags & LOADED_HIGH == 0 {
            let problem = Problem::Expected("bit 0, a bzImage rather than a zImage");
            return Err(Field::Header("loadflags").is(load_flags, problem));
        }
        let load_flags = half(0x236)?;
        if load_flags & XLF_KERNEL_64 == 0 {
            let problem = Problem::Expected("bit 0, a 64-bit kernel");
            return Err(Field::Header("xloadflags").is(load_flags, problem));
        }

        let sectors = byte(HEADER_START)?;
        let setup = if sectors == 0 { DEFAULT_SETUP_SECTORS } else { sectors };
        let start = (u64::from(setup) + 1) * SECTOR_BYTES;
        if start > file.len() as u64 {
            return Err(Field::Header("setup_sects").is(sectors, outside));
        }
        let paragraphs = word(0x1f4)?;
        let kernel_bytes = u64::from(paragraphs) * PARAGRAPH_BYTES;
        let kernel =
            part(file, start, kernel_bytes).ok_or(Field::Header("syssize").is(paragraphs, outside))?;
        if kernel_bytes <= ENTRY_OFFSET.into() {
            let problem =
                Problem::Expected("more than 0x20: the entry point is 0x200 bytes behind the start");
            return Err(Field::Header("syssize").is(paragraphs, problem));
        }

        let init_size = word(0x260)?;
        if u64::from(init_size) < kernel_bytes {
            let problem = Problem::Expected("at least 16 times syssize, which is loaded");
            return Err(Field::Header("init_size").is(init_size, problem));
        }
        let preferred = long(0x258)?;
        // The entry point lies below 4 GiB then, where the page tables it is entered with reach.
        let below = preferred.checked_add(u64::from(ENTRY_OFFSET)).is_some_and(|entry| entry < HIGH_START);
        let preferred = u32::try_from(preferred).ok().filter(|_| below).ok_or_else(|| {
            Field::Header("pref_address").is(preferred, Problem::Expected("an address below 4 GiB"))
        })?;
        Ok(Some(Self {
            bytes,
            cmdline_most: word(0x238)? as usize,
            initrd_end: u64::from(word(0x22c)?) + 1,
            kernel,
            preferred,
            init_bytes: init_size.into(),
        }))
    }

    /// What goes where: the kernel where it would rather be, and as many zeros behind it as it uses before it knows of the
    /// memory map. A relocatable kernel is not loaded elsewhere: below its preferred address it would move itself there,
    /// and above it nothing is to be gained.
    pub(super) fn placement(&self, memory: &GuestMemory) -> Result<Placement<'a>, ImageError> {
        let at = GuestPhys::new(self.preferred.into());
        if !memory.is_usable(at, self.init_bytes) {
            let problem = Problem::OutsideMemory { bytes: self.init_bytes };
            return Err(Field::Header("pref_address").is(self.preferred, problem));
        }
        let zeros = self.init_bytes.saturating_sub(self.kernel.len() as u64);
        Ok(Placement { at, bytes: self.kernel.into(), zeros })
    }

    /// Where 64-bit code is entered.
    pub(super) fn entry(&self) -> u64 {
        u64::from(self.preferred) + u64::from(ENTRY_OFFSET)
    }
}
