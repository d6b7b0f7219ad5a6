//! Device registers in memory: never a reference, always a volatile access of the register's own width.
#![expect(unsafe_code, reason = "the one place that touches device memory")]

use core::ptr::NonNull;

use levelhead::addr::PAGE_BYTES;
use volatile::VolatilePtr;

/// A block of registers, mapped uncacheable for the rest of the machine's life.
#[derive(Debug)]
pub(crate) struct Registers {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to no CPU in particular, and the owner of the value serialises the accesses.
unsafe impl Send for Registers {}
// SAFETY: shared use is single aligned loads and stores, which the bus makes atomic.
unsafe impl Sync for Registers {}

impl Registers {
    /// Takes a mapped block over.
    ///
    /// # Safety
    ///
    /// `base` must be mapped uncacheable and 4-byte aligned for `bytes` bytes for ever, and hold device registers
    /// whose accesses do not break memory safety, or are serialised and reviewed by the owner.
    pub(crate) const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes }
    }

    /// Reads the 32-bit register at `offset`; a place outside the block reads all-ones.
    #[inline]
    pub(crate) fn read(&self, offset: usize) -> u32 {
        self.read_as(offset)
    }

    /// Writes the 32-bit register at `offset`; outside the block nothing happens.
    #[inline]
    pub(crate) fn write(&self, offset: usize, value: u32) {
        self.write_as(offset, value);
    }

    /// Reads a register of another width.
    #[inline]
    pub(crate) fn read_as<T: Register>(&self, offset: usize) -> T {
        self.register(offset).map_or(T::ONES, VolatilePtr::read)
    }

    /// Writes a register of another width.
    #[inline]
    pub(crate) fn write_as<T: Register>(&self, offset: usize, value: T) {
        if let Some(register) = self.register(offset) {
            register.write(value);
        }
    }

    #[inline]
    fn register<T: Register>(&self, offset: usize) -> Option<VolatilePtr<'_, T>> {
        if !offset.is_multiple_of(size_of::<T>()) || offset.checked_add(size_of::<T>())? > self.bytes {
            return None;
        }
        // SAFETY: the offset is inside the block that `new` was promised.
        let pointer = unsafe { self.base.add(offset) }.cast::<T>();
        // SAFETY: mapped and aligned as `new` was promised; no reference to it exists anywhere.
        Some(unsafe { VolatilePtr::new(pointer) })
    }
}

/// A block of registers of 32 bits that is at least a page long, so that it is seen when it is compiled which places are inside.
#[derive(Debug)]
pub(crate) struct RegisterPage(Registers);

impl RegisterPage {
    /// The block's first page, if it has that many bytes.
    pub(crate) fn new(registers: Registers) -> Option<Self> {
        (registers.bytes as u64 >= PAGE_BYTES).then_some(Self(registers))
    }

    /// Reads the register at `AT`.
    #[inline]
    pub(crate) fn read<const AT: usize>(&self) -> u32 {
        self.register::<AT>().read()
    }

    /// Writes the register at `AT`.
    #[inline]
    pub(crate) fn write<const AT: usize>(&self, value: u32) {
        self.register::<AT>().write(value);
    }

    #[inline]
    fn register<const AT: usize>(&self) -> VolatilePtr<'_, u32> {
        const { assert!(AT.is_multiple_of(4) && AT < PAGE_BYTES as usize, "a register of the page") };
        // SAFETY: inside the first page, which the block has.
        let pointer = unsafe { self.0.base.add(AT) }.cast();
        // SAFETY: mapped and aligned as `Registers::new` was promised; no reference to it exists anywhere.
        unsafe { VolatilePtr::new(pointer) }
    }
}

/// The widths in which device registers are accessed.
pub(crate) trait Register: Copy {
    /// What a read that nobody answers returns.
    const ONES: Self;
}

impl Register for u8 {
    const ONES: Self = Self::MAX;
}
impl Register for u16 {
    const ONES: Self = Self::MAX;
}
impl Register for u32 {
    const ONES: Self = Self::MAX;
}
