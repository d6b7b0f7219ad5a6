//! The guest-physical map: where RAM is, and what of it a guest is told to use.
//!
//! | from | to | what |
//! | --- | --- | --- |
//! | 0 | 0xa_0000 | RAM |
//! | 0xa_0000 | 0x10_0000 | RAM, reported as reserved: the place of firmware tables, never of an image |
//! | 0x10_0000 | 0xc000_0000 | RAM, as far as it goes |
//! | 0xc000_0000 | 0x1_0000_0000 | the hole: configuration space, device memory, IO-APIC, local APIC |
//! | 0x1_0000_0000 | | the rest of the RAM |

use alloc::vec::Vec;
use core::ops::Range;

use crate::addr::{GuestPhys, PAGE_BYTES};
use crate::config::{MAX_MEMORY_BYTES, MIN_MEMORY_BYTES};
use crate::pci::ecam::{GUEST_ECAM, GUEST_ECAM_BYTES};

/// The end of the memory below the area that a PC keeps for adapters and firmware.
pub const LOW_END: u64 = 0xa_0000;
/// The start of the memory above that area.
pub const EXTENDED_START: u64 = 0x10_0000;
/// The start of the hole for device memory.
pub const HOLE_START: u64 = 0xc000_0000;
/// The end of the hole, where RAM goes on.
pub const HIGH_START: u64 = 0x1_0000_0000;

/// Where the ACPI tables begin, with their root pointer: in the area that a PC keeps for firmware, on a boundary of 16
/// bytes, as guests without another way look for it (ACPI 6.5 5.2.5.1).
pub const ACPI_RSDP: u64 = 0xe_0000;
/// The registers of the IO-APIC.
pub(super) const IO_APIC: u64 = 0xfec0_0000;
/// The registers of each CPU's local APIC at first.
pub(super) const LOCAL_APIC: u64 = 0xfee0_0000;
const APIC_BYTES: u64 = 0x1000;

/// How much memory a guest has, and thereby where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestMemory {
    bytes: u64,
}

/// A part of the map that a guest is handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its first address.
    pub start: GuestPhys,
    /// Its length.
    pub bytes: u64,
    /// What it is.
    pub kind: RegionKind,
}

/// What a [`Region`] is. The numbers are the address types of ACPI 6.5 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// Memory for the guest.
    Ram = 1,
    /// Nothing for the guest to use as memory.
    Reserved = 2,
}

impl GuestMemory {
    /// A guest with this much memory, or `None` unless it is whole pages within the configuration's limits.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes < MIN_MEMORY_BYTES || bytes > MAX_MEMORY_BYTES || !bytes.is_multiple_of(PAGE_BYTES) {
            return None;
        }
        Some(Self { bytes })
    }

    /// The end of the RAM below the hole.
    pub fn low_ram_end(&self) -> GuestPhys {
        GuestPhys::new(self.bytes.min(HOLE_START))
    }

    /// The end of the RAM above the hole; the end of the hole when there is none.
    pub fn high_ram_end(&self) -> GuestPhys {
        // At most 4 GiB and the largest memory: no overflow.
        GuestPhys::new(HIGH_START + self.bytes.saturating_sub(HOLE_START))
    }

    /// The RAM, whether the guest is told to use it or not: start and length of one or two parts. Together they
    /// have exactly the bytes of the configuration.
    pub fn ram(&self) -> impl Iterator<Item = (GuestPhys, u64)> {
        let low = (GuestPhys::new(0), self.low_ram_end().raw());
        let high = (GuestPhys::new(HIGH_START), self.high_ram_end().raw() - HIGH_START);
        [low, high].into_iter().filter(|(_, bytes)| *bytes > 0)
    }

    /// The map the guest is handed: in ascending order, without overlap, nothing of length 0. Device memory is
    /// not in it, as on any PC: what is neither RAM nor reserved is free for devices.
    pub fn map(&self) -> Vec<Region> {
        let apic = |start| start..start + APIC_BYTES;
        let ecam = GUEST_ECAM.raw()..GUEST_ECAM.raw() + GUEST_ECAM_BYTES;
        let reserved = [LOW_END..EXTENDED_START, ecam, apic(IO_APIC), apic(LOCAL_APIC)];
        let ram = self.usable().map(|range| (range, RegionKind::Ram));
        let mut map: Vec<Region> = ram
            .into_iter()
            .chain(reserved.map(|range| (range, RegionKind::Reserved)))
            .filter(|(range, _)| !range.is_empty())
            .map(|(range, kind)| Region {
                start: GuestPhys::new(range.start),
                bytes: range.end - range.start,
                kind,
            })
            .collect();
        map.sort_by_key(|region| region.start);
        map
    }

    /// Whether all of these bytes are memory that the guest may use.
    pub fn is_usable(&self, start: GuestPhys, bytes: u64) -> bool {
        let Some(end) = start.checked_add(bytes) else { return false };
        self.usable().iter().any(|range| range.contains(&start.raw()) && end.raw() <= range.end)
    }

    fn usable(&self) -> [Range<u64>; 3] {
        [0..LOW_END, EXTENDED_START..self.low_ram_end().raw(), HIGH_START..self.high_ram_end().raw()]
    }
}
