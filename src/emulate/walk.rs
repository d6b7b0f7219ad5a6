//! From a guest's linear address to a guest-physical one, through the guest's own page tables (APM2 chapter 5).
//!
//! The walk only reads. Accessed and dirty bits are not set: the CPU did so when it executed the instruction that
//! exits, and a data access on the guest's behalf is the hypervisor's, not the guest's.

use crate::addr::{GuestPhys, LARGE_PAGE_BYTES, PAGE_BYTES};
use crate::x86::{cr0, cr4, efer, is_canonical};

/// The guest-physical address is not the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam;

/// A guest's RAM, read by guest-physical address.
pub trait GuestMemory {
    /// Eight aligned bytes of it that were found once: they stay what they are, wherever they are kept, as long as the memory
    /// does.
    type Word: Copy + core::fmt::Debug;
    /// A page of it that was found once, likewise.
    type Page: Copy + core::fmt::Debug;

    /// The word at `at`, a multiple of 8, or `None` where there is no RAM.
    fn word(&self, at: GuestPhys) -> Option<Self::Word>;

    /// What a word of this memory says now, little-endian.
    fn load(&self, word: Self::Word) -> u64;

    /// The page at `at`, a multiple of its size, or `None` where it is not all RAM, in one piece.
    fn page(&self, at: GuestPhys) -> Option<Self::Page>;

    /// Sixteen bytes of a page of this memory from `offset` on, or `None` if it has less left.
    fn read_page(&self, page: Self::Page, offset: u64) -> Option<[u8; 16]>;

    /// Fills `into` from `at`; all of it is RAM, or nothing is read.
    fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), NotRam>;

    /// One little-endian page table entry of eight bytes. `at` is a multiple of 8.
    #[inline]
    fn read_u64(&self, at: GuestPhys) -> Result<u64, NotRam> {
        self.word(at).map(|word| self.load(word)).ok_or(NotRam)
    }

    /// Sixteen bytes from anywhere.
    #[inline]
    fn read_16(&self, at: GuestPhys) -> Result<[u8; 16], NotRam> {
        let mut bytes = [0; 16];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// One little-endian page table entry of four bytes. `at` is a multiple of 4.
    #[inline]
    fn read_u32(&self, at: GuestPhys) -> Result<u32, NotRam> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// What kind of access a translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Data is read.
    Read,
    /// Data is written.
    Write,
    /// An instruction is fetched.
    Execute,
}

/// An access to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read, write or fetch.
    pub kind: AccessKind,
    /// Made at privilege level 3.
    pub user: bool,
    /// RFLAGS.AC, which lifts SMAP for supervisor accesses.
    pub alignment_check: bool,
}

/// A paging mode the walker does not know: five levels. Its CPUID bit is hidden from guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported;

/// Why an address does not translate. All but [`WalkError::Table`] and [`WalkError::Unsupported`] would be a page fault
/// or #GP for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// Not a canonical address.
    NonCanonical,
    /// An entry is not present; level 0 is the lowest.
    NotPresent {
        /// The entry's level.
        level: u32,
    },
    /// An entry has reserved bits set.
    Reserved {
        /// The entry's level.
        level: u32,
    },
    /// The page exists, the access is not allowed.
    Protection,
    /// A table, or the page itself, is not RAM.
    Table(GuestPhys),
    /// A paging mode the walker does not know.
    Unsupported,
}

impl From<Unsupported> for WalkError {
    fn from(_: Unsupported) -> Self {
        Self::Unsupported
    }
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address, with the offset in the page.
    pub address: GuestPhys,
    /// The size of the page: 4 KiB, 2 MiB, 4 MiB or 1 GiB. Without paging 4 KiB.
    pub page_bytes: u64,
    /// All levels allow writing.
    pub writable: bool,
    /// All levels allow user accesses.
    pub user: bool,
    /// No level forbids execution.
    pub executable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    TwoLevel { large_pages: bool },
    Pae,
    FourLevel,
}

/// The registers that say how a CPU translates, as they are while the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the architecture's")]
pub struct PagingRegisters {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

impl PagingRegisters {
    /// What they mean.
    ///
    /// # Errors
    /// Five-level paging.
    #[inline]
    pub const fn paging(self) -> Result<Paging, Unsupported> {
        Paging::from_registers(self.cr0, self.cr3, self.cr4, self.efer)
    }
}

/// How a guest's CPU translates at this moment: a snapshot of its control registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    mode: Mode,
    cr3: u64,
    write_protect: bool,
    no_execute: bool,
    smep: bool,
    smap: bool,
}

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits of a legacy PAE entry that long mode leaves to software.
const PAE_RESERVED: u64 = 0x7ff0_0000_0000_0000;
/// Bits of a page-directory-pointer entry in PAE mode: R/W, U/S, dirty to G (APM2 5.2.3). The manual has the accessed bit
/// among them; QEMU sets it.
const PAE_TOP_RESERVED: u64 = 0xfff0_0000_0000_01c6;

impl Paging {
    /// From CR0, CR3, CR4 and EFER as they are while the guest runs.
    #[inline]
    pub const fn from_registers(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Result<Self, Unsupported> {
        let mode = if cr0 & cr0::PG == 0 {
            Mode::Off
        } else if efer & efer::LMA != 0 {
            if cr4 & cr4::LA57 != 0 {
                return Err(Unsupported);
            }
            Mode::FourLevel
        } else if cr4 & cr4::PAE != 0 {
            Mode::Pae
        } else {
            Mode::TwoLevel { large_pages: cr4 & cr4::PSE != 0 }
        };
        Ok(Self {
            mode,
            cr3,
            write_protect: cr0 & cr0::WP != 0,
            no_execute: efer & efer::NXE != 0,
            smep: cr4 & cr4::SMEP != 0,
            smap: cr4 & cr4::SMAP != 0,
        })
    }

    /// Translates one address and checks the access.
    ///
    /// Reads at most four entries. Outside four-level paging bits 63 to 32 of `linear` are ignored.
    pub fn translate(
        &self,
        memory: &impl GuestMemory,
        linear: u64,
        access: Access,
    ) -> Result<Translation, WalkError> {
        let found = match self.mode {
            // Without paging there is nothing to protect either.
            Mode::Off => {
                return Ok(Translation {
                    address: GuestPhys::new(linear & 0xffff_ffff),
                    page_bytes: PAGE_BYTES,
                    writable: true,
                    user: true,
                    executable: true,
                });
            }
            Mode::TwoLevel { large_pages } => {
                self.walk_two_level(memory, linear & 0xffff_ffff, large_pages)?
            }
            Mode::Pae => self.walk_wide::<2>(memory, linear & 0xffff_ffff)?,
            Mode::FourLevel => {
                if !is_canonical(linear) {
                    return Err(WalkError::NonCanonical);
                }
                self.walk_wide::<3>(memory, linear)?
            }
        };
        if self.allows(&found, access) { Ok(found) } else { Err(WalkError::Protection) }
    }

    /// Eight-byte entries, from level `TOP` (2 in PAE mode, 3 in long mode) down. A constant, because this is on
    /// the path of every guest EOI: the loop unrolls and the special cases of a level cost the others nothing.
    #[inline]
    fn walk_wide<const TOP: u32>(
        &self,
        memory: &impl GuestMemory,
        linear: u64,
    ) -> Result<Translation, WalkError> {
        let pae = TOP == 2;
        let mut reserved_everywhere = if self.no_execute { 0 } else { NO_EXECUTE };
        if pae {
            reserved_everywhere |= PAE_RESERVED;
        }
        let mut table = if pae { self.cr3 & 0xffff_ffe0 } else { self.cr3 & ADDRESS };
        let mut allowed = WRITE | USER;
        let mut forbidden = 0;
        let mut level = TOP + 1;
        while level > 0 {
            level -= 1;
            let shift = 12 + 9 * level;
            // A table is aligned to its size, so this adds.
            let at = GuestPhys::new(table | ((linear >> shift & 0x1ff) * 8));
            let entry = memory.read_u64(at).map_err(|NotRam| WalkError::Table(at))?;
            if entry & PRESENT == 0 {
                return Err(WalkError::NotPresent { level });
            }
            let pae_top = pae && level == TOP;
            let large = entry & LARGE != 0 && (level == 1 || level == 2);
            let mut reserved = if pae_top { PAE_TOP_RESERVED } else { reserved_everywhere };
            if level == 3 {
                reserved |= LARGE;
            }
            if large {
                // Between the PAT bit (12) and the page's address.
                reserved |= (1_u64 << shift).wrapping_sub(1 << 13);
            }
            if entry & reserved != 0 {
                return Err(WalkError::Reserved { level });
            }
            if !pae_top {
                allowed &= entry;
                forbidden |= entry;
            }
            if large || level == 0 {
                let page_bytes = 1 << shift;
                let frame = entry & ADDRESS & !(page_bytes - 1);
                return Ok(Translation {
                    address: GuestPhys::new(frame | linear & (page_bytes - 1)),
                    page_bytes,
                    writable: allowed & WRITE != 0,
                    user: allowed & USER != 0,
                    executable: forbidden & NO_EXECUTE == 0,
                });
            }
            table = entry & ADDRESS;
        }
        // Level 0 always returns.
        Err(WalkError::NotPresent { level: 0 })
    }

    /// Four-byte entries, two levels (APM2 5.2.1).
    fn walk_two_level(
        &self,
        memory: &impl GuestMemory,
        linear: u64,
        large_pages: bool,
    ) -> Result<Translation, WalkError> {
        const LARGE_RESERVED: u64 = 1 << 21;
        let read = |table: u64, index: u64, level| {
            let at = GuestPhys::new(table | (index * 4));
            let entry = memory.read_u32(at).map_err(|NotRam| WalkError::Table(at))?;
            if u64::from(entry) & PRESENT == 0 {
                return Err(WalkError::NotPresent { level });
            }
            Ok(u64::from(entry))
        };
        let directory = read(self.cr3 & 0xffff_f000, linear >> 22, 1)?;
        let (frame, page_bytes, allowed) = if large_pages && directory & LARGE != 0 {
            if directory & LARGE_RESERVED != 0 {
                return Err(WalkError::Reserved { level: 1 });
            }
            // Bits 20:13 are address bits 39:32.
            let high = (directory >> 13 & 0xff) << 32;
            (high | directory & 0xffc0_0000, 2 * LARGE_PAGE_BYTES, directory)
        } else {
            let entry = read(directory & 0xffff_f000, linear >> 12 & 0x3ff, 0)?;
            (entry & 0xffff_f000, PAGE_BYTES, directory & entry)
        };
        Ok(Translation {
            address: GuestPhys::new(frame | linear & (page_bytes - 1)),
            page_bytes,
            writable: allowed & WRITE != 0,
            user: allowed & USER != 0,
            executable: true,
        })
    }

    /// APM2 5.6. Protection keys are not looked at: they never apply to instruction fetches.
    const fn allows(&self, page: &Translation, access: Access) -> bool {
        if access.user && !page.user {
            return false;
        }
        let supervisor_on_user_page = !access.user && page.user;
        match access.kind {
            AccessKind::Execute => page.executable && !(supervisor_on_user_page && self.smep),
            AccessKind::Read | AccessKind::Write
                if supervisor_on_user_page && self.smap && !access.alignment_check =>
            {
                false
            }
            AccessKind::Read => true,
            AccessKind::Write => page.writable || !access.user && !self.write_protect,
        }
    }
}

#[cfg(test)]
mod tests;
