//! Nested page tables in real frames.
#![expect(unsafe_code, reason = "reads and writes page-table entries in the direct map")]

use alloc::vec::Vec;

use levelhead::addr::{HostPhys, PAGE_BYTES};
use levelhead::frames::Frames;
use levelhead::svm::TableStore;

use crate::arch::x86::paging::{OutOfMemory, direct};

/// The frames of one partition's tables: all taken at assignment, so that a guest that moves its BARs at run time
/// cannot make the hypervisor allocate.
#[derive(Debug)]
pub(crate) struct TablePool {
    unused: Vec<HostPhys>,
}

impl TablePool {
    /// Takes `tables` zeroed frames.
    pub(crate) fn allocate(tables: usize, frames: &mut Frames) -> Result<Self, OutOfMemory> {
        let mut unused = Vec::with_capacity(tables);
        for _ in 0..tables {
            let at = frames.allocate(PAGE_BYTES, PAGE_BYTES, u64::MAX).ok_or(OutOfMemory)?;
            // SAFETY: fresh memory in the direct map.
            unsafe { direct(at).write_bytes(0, PAGE_BYTES as usize) };
            unused.push(at);
        }
        Ok(Self { unused })
    }
}

impl TableStore for TablePool {
    fn read(&self, table: HostPhys, index: usize) -> u64 {
        // SAFETY: the trait's contract: a table of this pool and an index below 512. The CPU's walker may set accessed
        // and dirty bits at the same time, which are not looked at.
        unsafe { direct(table).cast::<u64>().wrapping_add(index).read() }
    }

    fn write(&mut self, table: HostPhys, index: usize, entry: u64) {
        // SAFETY: as for `read`; an aligned 8-byte store is one store.
        unsafe { direct(table).cast::<u64>().wrapping_add(index).write(entry) };
    }

    fn allocate(&mut self) -> Option<HostPhys> {
        self.unused.pop()
    }

    fn release(&mut self, table: HostPhys) {
        // Every frame of the pool was in the list once, so there is room for it without an allocation.
        if self.unused.len() < self.unused.capacity() {
            self.unused.push(table);
        }
    }
}
