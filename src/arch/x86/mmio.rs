//! Device registers in memory: never a reference, always a volatile access of the register's own width.
#![expect(unsafe_code, reason = "the one place that touches device memory")]

use core::ptr::NonNull;

use volatile::VolatilePtr;

/// A block of 32-bit registers, mapped uncacheable for the rest of the machine's life.
#[derive(Debug)]
pub(crate) struct Registers {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to no CPU in particular, and the owner of the value serialises the accesses.
unsafe impl Send for Registers {}
// SAFETY: shared use is single 32-bit loads and stores, which the bus makes atomic.
unsafe impl Sync for Registers {}

impl Registers {
    /// Takes a mapped block over.
    ///
    /// # Safety
    ///
    /// `base` must be mapped uncacheable and 4-byte aligned for `bytes` bytes for ever, and hold device registers
    /// whose 32-bit accesses do not break memory safety, or are serialised and reviewed by the owner.
    pub(crate) const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes }
    }

    /// Reads the register at `offset`, a multiple of 4 within the block; outside it reads all-ones.
    #[inline]
    pub(crate) fn read(&self, offset: usize) -> u32 {
        self.register(offset).map_or(u32::MAX, VolatilePtr::read)
    }

    /// Writes the register at `offset`; outside the block nothing happens.
    #[inline]
    pub(crate) fn write(&self, offset: usize, value: u32) {
        if let Some(register) = self.register(offset) {
            register.write(value);
        }
    }

    #[inline]
    fn register(&self, offset: usize) -> Option<VolatilePtr<'_, u32>> {
        if offset & 3 != 0 || offset.checked_add(4)? > self.bytes {
            return None;
        }
        // SAFETY: the offset is inside the block that `new` was promised.
        let pointer = unsafe { self.base.add(offset) }.cast::<u32>();
        // SAFETY: mapped and aligned as `new` was promised; no reference to it exists anywhere.
        Some(unsafe { VolatilePtr::new(pointer) })
    }
}
