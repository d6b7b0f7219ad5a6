//! Nested page tables: what of the host's memory a guest reaches, and at which guest-physical address.
//!
//! The format is the CPU's ordinary four-level one (APM2 15.25 and 5.3), read with a guest-physical address as
//! input. Tables live in a [`TableStore`], so that the algorithm runs on real frames in the hypervisor and on a
//! map in the tests. Nothing is ever mapped over an existing mapping, and a call that fails leaves every
//! translation as it was. Taking a translation away is [`Reach`](super::Reach)'s, which never forgets the flush.

use crate::addr::{GuestPhys, HostPhys, LARGE_PAGE_BYTES, PAGE_BYTES};

/// The frames the tables live in.
///
/// `table` is always a frame that [`TableStore::allocate`] returned, and `index` is always below 512.
pub trait TableStore {
    /// The entry `index` of `table`.
    fn read(&self, table: HostPhys, index: usize) -> u64;
    /// Replaces the entry `index` of `table`, in one store: the CPU may be walking the table.
    fn write(&mut self, table: HostPhys, index: usize, entry: u64);
    /// A frame of zeros, 4 KiB aligned, that nothing else uses; `None` when the pool is empty.
    fn allocate(&mut self) -> Option<HostPhys>;
    /// Takes back a table that was allocated, is all zeros again, and that no entry leads to any more.
    fn release(&mut self, table: HostPhys);
}

/// What lies behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Memory {
    /// RAM: readable, writable, executable, cached as the guest's own tables say. Always writable, because the
    /// CPU stores accessed and dirty bits into the guest's page tables, which may be anywhere in it.
    Ram,
    /// RAM a guest may only read and execute: for images it must not change.
    RamReadOnly,
    /// Registers of a device: uncached whatever the guest's tables say, and not executable, because even a
    /// speculative instruction fetch would read registers that change state when read.
    Device,
}

/// One entry of a nested table (APM2 5.3.3, 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    /// Nested tables are walked as user accesses: without this bit every access faults (APM2 15.25.5).
    const USER: u64 = 1 << 2;
    const WRITE_THROUGH: u64 = 1 << 3;
    const CACHE_DISABLE: u64 = 1 << 4;
    const LARGE: u64 = 1 << 7;
    const NO_EXECUTE: u64 = 1 << 63;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    const fn table(frame: HostPhys) -> Self {
        Self(frame.raw() & Self::ADDRESS | Self::PRESENT | Self::WRITE | Self::USER)
    }

    const fn leaf(frame: HostPhys, memory: Memory, large: bool) -> Self {
        let kind = match memory {
            Memory::Ram => Self::WRITE,
            Memory::RamReadOnly => 0,
            // PWT and PCD select the host PAT's entry 3, which is UC unless somebody rewrote the PAT.
            Memory::Device => Self::WRITE | Self::WRITE_THROUGH | Self::CACHE_DISABLE | Self::NO_EXECUTE,
        };
        let size = if large { Self::LARGE } else { 0 };
        Self(frame.raw() & Self::ADDRESS | Self::PRESENT | Self::USER | kind | size)
    }

    const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    const fn is_large(self) -> bool {
        self.0 & Self::LARGE != 0
    }

    const fn frame(self) -> HostPhys {
        HostPhys::new(self.0 & Self::ADDRESS)
    }

    const fn memory(self) -> Memory {
        if self.0 & Self::CACHE_DISABLE != 0 {
            Memory::Device
        } else if self.0 & Self::WRITE == 0 {
            Memory::RamReadOnly
        } else {
            Memory::Ram
        }
    }
}

/// Why a range was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// An address or the size is not a multiple of 4 KiB, or the size is zero.
    Misaligned,
    /// The range ends beyond 48 bits of guest-physical or 52 bits of host-physical address.
    OutOfRange,
    /// This guest-physical page is mapped already.
    Overlap(GuestPhys),
    /// No frame is left for a table.
    OutOfTables,
}

/// Why a range was not unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmapError {
    /// An address or the size is not a multiple of 4 KiB, or the size is zero.
    Misaligned,
    /// The range ends beyond 48 bits of guest-physical address.
    OutOfRange,
    /// No frame is left to split a large page that is only partly in the range.
    OutOfTables,
}

/// Where a guest-physical address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The host-physical address, with the offset in the page.
    pub address: HostPhys,
    /// What lies there.
    pub memory: Memory,
    /// The size of the page that maps it: 4 KiB or 2 MiB.
    pub page_bytes: u64,
}

const GUEST_LIMIT: u64 = 1 << 48;
const HOST_LIMIT: u64 = 1 << 52;
/// Levels are counted from the bottom: 0 is the page table, 1 the page directory with large pages, 3 the root.
const TOP: u32 = 3;
const LARGE_LEVEL: u32 = 1;

const fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level) & 0x1ff) as usize
}

/// The first address behind the page of `bytes`, a power of two, that `at` is in.
const fn behind(at: u64, bytes: u64) -> u64 {
    (at | bytes.wrapping_sub(1)).saturating_add(1)
}

/// What a walk down to `level` found.
enum Slot {
    /// The entry at the level asked for, or a large page above it.
    At { table: HostPhys, index: usize, level: u32 },
    /// A table on the way is missing; nothing is mapped in the whole of the missing entry's `bytes`.
    Missing { bytes: u64 },
}

/// The nested page tables of one guest.
#[derive(Debug)]
pub struct NestedTables {
    root: HostPhys,
}

impl NestedTables {
    /// Empty tables; `None` when not even the root could be allocated.
    pub fn new(store: &mut impl TableStore) -> Option<Self> {
        store.allocate().map(|root| Self { root })
    }

    /// The address VMRUN needs (N_CR3).
    pub const fn root(&self) -> HostPhys {
        self.root
    }

    /// Where `address` leads, or `None` when an access would exit.
    pub fn translate(&self, store: &impl TableStore, address: GuestPhys) -> Option<Mapping> {
        if address.raw() >= GUEST_LIMIT {
            return None;
        }
        let Slot::At { table, index, level } = self.find(store, address.raw()) else {
            return None;
        };
        let entry = Entry(store.read(table, index));
        if !entry.is_present() {
            return None;
        }
        let page_bytes = if level == LARGE_LEVEL { LARGE_PAGE_BYTES } else { PAGE_BYTES };
        let address = entry.frame().checked_add(address.raw() & (page_bytes - 1))?;
        Some(Mapping { address, memory: entry.memory(), page_bytes })
    }

    /// Maps `bytes` at `guest` to `host`, with 2 MiB pages where both addresses allow.
    ///
    /// Refuses a range any page of which is mapped already, also to the same place. On failure no translation has
    /// changed; tables allocated on the way stay and serve the next call.
    pub fn map(
        &self,
        store: &mut impl TableStore,
        guest: GuestPhys,
        host: HostPhys,
        bytes: u64,
        memory: Memory,
    ) -> Result<(), MapError> {
        if bytes == 0 || (guest.raw() | host.raw() | bytes) & (PAGE_BYTES - 1) != 0 {
            return Err(MapError::Misaligned);
        }
        let end = guest.raw().checked_add(bytes).filter(|end| *end <= GUEST_LIMIT);
        let host_end = host.raw().checked_add(bytes).filter(|end| *end <= HOST_LIMIT);
        let (Some(end), Some(_)) = (end, host_end) else {
            return Err(MapError::OutOfRange);
        };
        if let Some(taken) = self.first_mapped(store, guest.raw(), end) {
            return Err(MapError::Overlap(GuestPhys::new(taken)));
        }
        let mut at = guest.raw();
        while at < end {
            // Between the bounds that were checked above.
            let frame = HostPhys::new(host.raw().wrapping_add(at.wrapping_sub(guest.raw())));
            match self.map_page(store, at, frame, end - at, memory) {
                Some(size) => at = at.saturating_add(size),
                None => {
                    self.clear(store, guest.raw(), at);
                    return Err(MapError::OutOfTables);
                }
            }
        }
        Ok(())
    }

    /// Removes every mapping in the range and returns how many bytes were mapped; pages that were not mapped stay so.
    ///
    /// A 2 MiB page that is only partly in the range is split first. The CPU may use the old translations until it
    /// enters with a flush, which is why only [`Reach`](super::Reach) may call this.
    pub(super) fn unmap(
        &self,
        store: &mut impl TableStore,
        guest: GuestPhys,
        bytes: u64,
    ) -> Result<u64, UnmapError> {
        if bytes == 0 || (guest.raw() | bytes) & (PAGE_BYTES - 1) != 0 {
            return Err(UnmapError::Misaligned);
        }
        let end = guest.raw().checked_add(bytes).filter(|end| *end <= GUEST_LIMIT);
        let end = end.ok_or(UnmapError::OutOfRange)?;
        // Splitting changes no translation, so failing at the second edge is as clean as failing at the first.
        for edge in [guest.raw(), end] {
            if edge & (LARGE_PAGE_BYTES - 1) != 0 {
                self.split(store, edge).ok_or(UnmapError::OutOfTables)?;
            }
        }
        Ok(self.clear(store, guest.raw(), end))
    }

    /// Gives back to the store the page tables of a range, aligned to 2 MiB, in which nothing is mapped any more. The guest does
    /// not run, and its next entry flushes.
    pub fn prune(&self, store: &mut impl TableStore, guest: GuestPhys, bytes: u64) {
        let end = guest.raw().saturating_add(bytes).min(GUEST_LIMIT);
        let mut at = guest.raw();
        while at < end {
            let mut table = self.root;
            let mut step = LARGE_PAGE_BYTES;
            for level in (LARGE_LEVEL..=TOP).rev() {
                let index = index(at, level);
                let entry = Entry(store.read(table, index));
                if !entry.is_present() || entry.is_large() {
                    step = PAGE_BYTES << (9 * level);
                    break;
                }
                let child = entry.frame();
                if level == LARGE_LEVEL && (0..512).all(|slot| store.read(child, slot) == 0) {
                    store.write(table, index, 0);
                    store.release(child);
                }
                table = child;
            }
            at = behind(at, step);
        }
    }

    /// Walks to the lowest table that covers `address`, or to the large page that maps it.
    fn find(&self, store: &impl TableStore, address: u64) -> Slot {
        let mut table = self.root;
        for level in (1..=TOP).rev() {
            let index = index(address, level);
            let entry = Entry(store.read(table, index));
            if !entry.is_present() {
                return Slot::Missing { bytes: PAGE_BYTES << (9 * level) };
            }
            if level == LARGE_LEVEL && entry.is_large() {
                return Slot::At { table, index, level };
            }
            table = entry.frame();
        }
        Slot::At { table, index: index(address, 0), level: 0 }
    }

    /// Visits the mapped pages of a range from the lowest, until `visit` returns a value.
    fn first_mapped(&self, store: &impl TableStore, start: u64, end: u64) -> Option<u64> {
        let mut at = start;
        while at < end {
            let step = match self.find(store, at) {
                Slot::Missing { bytes } => bytes,
                Slot::At { table, index, .. } => {
                    if Entry(store.read(table, index)).is_present() {
                        return Some(at);
                    }
                    PAGE_BYTES
                }
            };
            at = behind(at, step);
        }
        None
    }

    /// Clears the leaves of a range whose edges do not cut a large page; returns how many bytes were mapped.
    fn clear(&self, store: &mut impl TableStore, start: u64, end: u64) -> u64 {
        let mut at = start;
        let mut cleared = 0_u64;
        while at < end {
            let step = match self.find(store, at) {
                Slot::Missing { bytes } => bytes,
                Slot::At { table, index, level } => {
                    let size = PAGE_BYTES << (9 * level);
                    if Entry(store.read(table, index)).is_present() {
                        store.write(table, index, 0);
                        cleared = cleared.saturating_add(size);
                    }
                    size
                }
            };
            at = behind(at, step);
        }
        cleared
    }

    /// Maps one page at an address that is known to be free, the largest that fits; returns its size, or `None`
    /// when a table was needed and the pool is empty.
    fn map_page(
        &self,
        store: &mut impl TableStore,
        at: u64,
        frame: HostPhys,
        room: u64,
        memory: Memory,
    ) -> Option<u64> {
        let mut table = self.root;
        for level in (1..=TOP).rev() {
            let index = index(at, level);
            let entry = Entry(store.read(table, index));
            if entry.is_present() {
                table = entry.frame();
                continue;
            }
            let fits = (at | frame.raw()) & (LARGE_PAGE_BYTES - 1) == 0 && room >= LARGE_PAGE_BYTES;
            if level == LARGE_LEVEL && fits {
                store.write(table, index, Entry::leaf(frame, memory, true).0);
                return Some(LARGE_PAGE_BYTES);
            }
            let child = store.allocate()?;
            store.write(table, index, Entry::table(child).0);
            table = child;
        }
        store.write(table, index(at, 0), Entry::leaf(frame, memory, false).0);
        Some(PAGE_BYTES)
    }

    /// Replaces the large page at `address`, if there is one, by 512 small ones with the same translations.
    fn split(&self, store: &mut impl TableStore, address: u64) -> Option<()> {
        if address >= GUEST_LIMIT {
            return Some(());
        }
        let Slot::At { table, index, level: LARGE_LEVEL } = self.find(store, address) else {
            return Some(());
        };
        let large = Entry(store.read(table, index));
        let child = store.allocate()?;
        for (small, offset) in (0..LARGE_PAGE_BYTES).step_by(PAGE_BYTES as usize).enumerate() {
            let frame = HostPhys::new(large.frame().raw() + offset);
            store.write(child, small, Entry::leaf(frame, large.memory(), false).0);
        }
        store.write(table, index, Entry::table(child).0);
        Some(())
    }
}

#[cfg(test)]
pub(super) mod tests;
