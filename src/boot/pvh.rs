//! What the PVH loader hands over (Xen's `hvm_start_info`, version 1): memory map, command line, bundle, RSDP.
//!
//! Everything is copied out or checked here, while entry.S's identity map of the first 4 GiB is on.
#![expect(unsafe_code, reason = "reads the loader's structures at the addresses it names")]

use levelhead::addr::HostPhys;
use levelhead::facts::{MemoryEntry, MemoryKind};
use levelhead::frames::Range;

/// Entries kept of the memory map; QEMU gives about ten.
const MAX_ENTRIES: usize = 64;
/// Bytes kept of the command line.
const MAX_COMMAND_LINE: usize = 1024;
const MAGIC: u32 = 0x336e_c578;
/// Only memory that entry.S identity-maps can be read here.
pub(crate) const REACH: u64 = 1 << 32;

/// Why the hand-over was refused.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HandOverError {
    /// EBX did not point to a start info structure.
    Magic(u32),
    /// Version 0 has no memory map.
    Version(u32),
    /// A structure lies above 4 GiB, or wraps.
    OutOfReach(u64),
}

impl core::fmt::Display for HandOverError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(found) => {
                write!(f, "not booted by PVH: start info magic is {found:#x}, {MAGIC:#x} would be right")
            }
            Self::Version(found) => {
                write!(f, "PVH start info version {found} has no memory map; version 1 is needed")
            }
            Self::OutOfReach(at) => write!(f, "a PVH structure lies at {at:#x}, outside the first 4 GiB"),
        }
    }
}

/// The hand-over, copied.
pub(crate) struct BootInfo {
    memory: [MemoryEntry; MAX_ENTRIES],
    entries: usize,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_bytes: usize,
    /// The one module, if the loader brought any: start and length in bytes.
    pub(crate) module: Option<(HostPhys, u64)>,
    /// Where the loader says the ACPI root pointer is.
    pub(crate) rsdp: Option<HostPhys>,
}

impl BootInfo {
    /// Reads the structure at `start_info`.
    ///
    /// # Safety
    ///
    /// Called with entry.S's tables on, before any memory is reused, with the address PVH put into EBX.
    pub(crate) unsafe fn read(start_info: u32) -> Result<Self, HandOverError> {
        // SAFETY: read() refuses addresses outside the identity map, reads plain bytes, and the loader's memory is not yet
        // reused.
        let read32 = |at: u64| unsafe { read(at) }.map(|bytes: [u8; 4]| u32::from_le_bytes(bytes));
        // SAFETY: as for the 32-bit `read`: checked addresses, plain bytes.
        let read64 = |at: u64| unsafe { read(at) }.map(|bytes: [u8; 8]| u64::from_le_bytes(bytes));
        let base = u64::from(start_info);
        let magic = read32(base)?;
        if magic != MAGIC {
            return Err(HandOverError::Magic(magic));
        }
        let version = read32(base + 4)?;
        if version < 1 {
            return Err(HandOverError::Version(version));
        }
        let mut info = Self {
            memory: [MemoryEntry { start: 0, bytes: 0, kind: MemoryKind::Reserved }; MAX_ENTRIES],
            entries: 0,
            command_line: [0; MAX_COMMAND_LINE],
            command_line_bytes: 0,
            module: None,
            rsdp: None,
        };
        let modules = read32(base + 12)?;
        let module_list = read64(base + 16)?;
        if modules > 0 && module_list != 0 {
            info.module = Some((HostPhys::new(read64(module_list)?), read64(module_list + 8)?));
        }
        let command_line = read64(base + 24)?;
        if command_line != 0 {
            for (slot, at) in info.command_line.iter_mut().zip(command_line..) {
                // SAFETY: read() refuses addresses outside the identity map; a byte of any value is a byte.
                let [byte] = unsafe { read::<1>(at) }?;
                if byte == 0 {
                    break;
                }
                // A command line is words; anything else becomes a space so that it stays text.
                *slot = if byte.is_ascii_graphic() { byte } else { b' ' };
                info.command_line_bytes += 1;
            }
        }
        info.rsdp = Some(read64(base + 32)?).filter(|at| *at != 0).map(HostPhys::new);
        let map = read64(base + 40)?;
        let count = read32(base + 48)?.min(MAX_ENTRIES as u32);
        for (slot, index) in info.memory.iter_mut().zip(0..u64::from(count)) {
            let at = map.checked_add(index * 24).ok_or(HandOverError::OutOfReach(map))?;
            let kind = match read32(at + 16)? {
                1 => MemoryKind::Usable,
                3 => MemoryKind::Acpi,
                _ => MemoryKind::Reserved,
            };
            *slot = MemoryEntry { start: read64(at)?, bytes: read64(at + 8)?, kind };
            info.entries += 1;
        }
        Ok(info)
    }

    /// The bytes of the module, if it lies in usable memory that can be read this early.
    ///
    /// # Safety
    ///
    /// Called with entry.S's tables on; the slice must be gone when they are, and before any memory is reused.
    pub(crate) unsafe fn early_module(&self) -> Option<&[u8]> {
        let (at, bytes) = self.module?;
        let end = at.raw().checked_add(bytes).filter(|end| at.raw() != 0 && *end <= REACH)?;
        let in_ram = |range: Range| range.start() <= at && end <= range.end().raw();
        if !self.ranges(MemoryKind::Usable).any(in_ram) {
            return None;
        }
        let start: *const u8 = core::ptr::with_exposed_provenance(at.raw() as usize);
        // SAFETY: usable RAM inside the identity map; nobody writes it while boot is on its first steps.
        Some(unsafe { core::slice::from_raw_parts(start, bytes as usize) })
    }

    /// The memory map.
    pub(crate) fn memory(&self) -> impl Iterator<Item = MemoryEntry> + '_ {
        self.memory.iter().take(self.entries).copied()
    }

    /// The ranges of one kind, whole pages.
    pub(crate) fn ranges(&self, kind: MemoryKind) -> impl Iterator<Item = Range> + '_ {
        self.memory()
            .filter(move |entry| entry.kind == kind)
            .filter_map(|entry| Range::inside(entry.start, entry.bytes))
    }

    /// The command line's words.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        let bytes = self.command_line.get(..self.command_line_bytes).unwrap_or(&[]);
        core::str::from_utf8(bytes).unwrap_or("").split(' ').filter(|word| !word.is_empty())
    }

    /// The value of the last word `key=value`.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.words().filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')).last()
    }
}

/// # Safety
///
/// Identity map of the first 4 GiB on.
unsafe fn read<const N: usize>(at: u64) -> Result<[u8; N], HandOverError> {
    let end = at.checked_add(N as u64).ok_or(HandOverError::OutOfReach(at))?;
    if at == 0 || end > REACH {
        return Err(HandOverError::OutOfReach(at));
    }
    let pointer: *const [u8; N] = core::ptr::with_exposed_provenance(at as usize);
    // SAFETY: inside the identity map; byte arrays have no alignment or validity to violate. Reading a device's page
    // by a loader's lie could disturb that device, which a loader can do anyway.
    Ok(unsafe { pointer.read() })
}
