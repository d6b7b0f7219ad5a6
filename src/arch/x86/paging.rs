//! The host's own page tables: the image by segment (W^X), all RAM once more as data, devices uncacheable, stacks with
//! a guard below each.
//!
//! | virtual | what | protection |
//! | --- | --- | --- |
//! | `0xffff_8000_0000_0000` + physical | usable RAM, but not the image | read, write |
//! | `0xffff_a000_0000_0000` + physical | what firmware's tables lead to, page by page, at boot | read, write, uncacheable |
//! | `0xffff_c000_0000_0000` upwards | device registers, in order of mapping | read, write, uncacheable |
//! | `0xffff_d000_0000_0000` upwards | stacks, an unmapped page below each | read, write |
//! | `0xffff_ffff_8000_0000` + link address | the image | text R-X, rodata R--, data RW- |
//! | trampoline page, identity | while application processors start | R-X |
//!
//! Nothing is both writable and executable at any address, and guests' addresses appear nowhere here.
#![expect(unsafe_code, reason = "builds and switches the page tables everything else stands on")]

use core::ptr::NonNull;

use levelhead::addr::{HostPhys, LARGE_PAGE_BYTES, PAGE_BYTES};
use levelhead::frames::{Frames, Range};
use levelhead::x86::{PAT_RESET, memory_type, memory_type_of};
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::mapper::MapToError;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags, PhysFrame, Size2MiB,
    Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use super::mmio::Registers;

/// Start of the direct map of physical memory.
const DIRECT_BASE: u64 = 0xffff_8000_0000_0000;
const FIRMWARE_BASE: u64 = 0xffff_a000_0000_0000;
/// The windows are this far apart at least; a physical address beyond it has no place in them.
const WINDOW_BYTES: u64 = 1 << 45;
const MMIO_BASE: u64 = 0xffff_c000_0000_0000;
const STACK_BASE: u64 = 0xffff_d000_0000_0000;
/// Where linker.ld puts physical address 0 of the image.
const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;
/// entry.S's tables reach this far; the first tables of our own must come from below.
const BOOT_IDENTITY_END: u64 = 1 << 32;

unsafe extern "C" {
    static lh_image_start: u8;
    static lh_text_start: u8;
    static lh_text_end: u8;
    static lh_rodata_start: u8;
    static lh_rodata_end: u8;
    static lh_data_start: u8;
    static lh_data_end: u8;
    static lh_boot_stack_guard: u8;
    static lh_image_end: u8;
}

/// How device registers are mapped.
const UNCACHED: PageTableFlags = PageTableFlags::WRITABLE
    .union(PageTableFlags::NO_EXECUTE)
    .union(PageTableFlags::NO_CACHE)
    .union(PageTableFlags::WRITE_THROUGH);

// Registers are never cached, and memory is cached as guests cache theirs: the same page must not have two types. The PAT
// is ours (`memory::settle`).
const _: () = {
    assert!(memory_type_of(PAT_RESET, UNCACHED.bits(), false) == memory_type::UC);
    assert!(
        memory_type_of(PAT_RESET, UNCACHED.bits() | PageTableFlags::HUGE_PAGE.bits(), true)
            == memory_type::UC
    );
    assert!(memory_type_of(PAT_RESET, PageTableFlags::WRITABLE.bits(), false) == memory_type::WB);
};

/// No memory left for the host's own tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutOfMemory;

/// The address at which the direct map shows `physical`.
pub(crate) fn direct(physical: HostPhys) -> *mut u8 {
    // The direct map covers 64 TiB; a larger address cannot come from a memory map of this architecture's CPUs.
    core::ptr::with_exposed_provenance_mut(DIRECT_BASE.wrapping_add(physical.raw()) as usize)
}

/// The image's place in physical memory, `delta` bytes above its link address.
pub(crate) fn image_range(delta: u64) -> Range {
    let start = (&raw const lh_image_start).addr() as u64 - IMAGE_BASE + delta;
    let end = (&raw const lh_image_end).addr() as u64 - IMAGE_BASE + delta;
    Range::around(start, end - start)
}

/// The host's address space and what is still free in its windows.
pub(crate) struct AddressSpace {
    root: PhysFrame,
    /// How to reach page-table frames now: 0 while entry.S's identity map is on, then the direct map.
    reach: u64,
    next_mmio: u64,
    next_stack: u64,
}

struct TableFrames<'a> {
    frames: &'a mut Frames,
    limit: u64,
    reach: u64,
}

// SAFETY: every frame comes from Frames::allocate, which hands each out once, and is zeroed before use.
unsafe impl FrameAllocator<Size4KiB> for TableFrames<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let at = self.frames.allocate(PAGE_BYTES, PAGE_BYTES, self.limit)?;
        let page: *mut u8 = core::ptr::with_exposed_provenance_mut((self.reach + at.raw()) as usize);
        // SAFETY: the frame is free memory that `reach` maps writable, and nobody else has it.
        unsafe { page.write_bytes(0, PAGE_BYTES as usize) };
        PhysFrame::from_start_address(PhysAddr::new(at.raw())).ok()
    }
}

impl<E> From<MapToError<E>> for OutOfMemory
where
    E: PageSize,
{
    fn from(_: MapToError<E>) -> Self {
        // Windows only grow and never overlap, so "already mapped" cannot be what happened.
        Self
    }
}

impl AddressSpace {
    /// Builds the tables for an image at `delta` above its link address and all of `memory`, and switches to them.
    ///
    /// # Safety
    ///
    /// Called once, on the boot CPU, with entry.S's tables on. `memory` must name only RAM, and
    /// `frames` only free memory.
    pub(crate) unsafe fn build(
        delta: u64,
        memory: impl Iterator<Item = Range>,
        frames: &mut Frames,
    ) -> Result<Self, OutOfMemory> {
        let mut tables = TableFrames { frames, limit: BOOT_IDENTITY_END, reach: 0 };
        let root = tables.allocate_frame().ok_or(OutOfMemory)?;
        let mut space = Self { root, reach: 0, next_mmio: MMIO_BASE, next_stack: STACK_BASE };
        space.map_image(delta, tables.frames)?;
        let image = image_range(delta);
        for range in memory {
            // The image shows at its own address only, or its text would be writable here.
            for part in [
                (range.start().raw(), range.end().raw().min(image.start().raw())),
                (range.start().raw().max(image.end().raw()), range.end().raw()),
            ] {
                space.map_direct(part.0, part.1, tables.frames)?;
            }
        }
        let flags = Cr3Flags::empty();
        // SAFETY: the new tables map the running code, its data and this stack exactly where they are now.
        unsafe { Cr3::write(root, flags) };
        space.reach = DIRECT_BASE;
        Ok(space)
    }

    /// The root table's physical address, below 4 GiB: what an application processor loads first.
    pub(crate) fn root(&self) -> u32 {
        // TableFrames::limit kept it below 4 GiB.
        self.root.start_address().as_u64() as u32
    }

    /// Maps `bytes` of device registers at `physical` uncacheable.
    ///
    /// # Safety
    ///
    /// The range must hold device registers, not RAM, and what they do must be as [`Registers::new`] asks.
    pub(crate) unsafe fn map_registers(
        &mut self,
        physical: HostPhys,
        bytes: u64,
        frames: &mut Frames,
    ) -> Result<Registers, OutOfMemory> {
        let range = Range::around(physical.raw(), bytes);
        // The same offset within a large page on both sides, so that a large window takes large pages.
        let base = self.next_mmio + range.start().raw() % LARGE_PAGE_BYTES;
        self.map_range(base, range.start().raw(), range.bytes(), UNCACHED, frames)?;
        self.next_mmio = (base + range.bytes() + 1).next_multiple_of(LARGE_PAGE_BYTES);
        let pointer = core::ptr::with_exposed_provenance_mut((base + physical.page_offset()) as usize);
        let pointer = NonNull::new(pointer).ok_or(OutOfMemory)?;
        // SAFETY: just mapped uncacheable; the rest is the caller's promise.
        Ok(unsafe { Registers::new(pointer, bytes as usize) })
    }

    /// Maps what a firmware table names, once per page; `None` when the address cannot exist or memory ran out.
    ///
    /// Uncacheable, because it may be a register as well as a table.
    pub(crate) fn map_firmware(
        &mut self,
        physical: HostPhys,
        bytes: u64,
        frames: &mut Frames,
    ) -> Option<NonNull<u8>> {
        let range = Range::around(physical.raw(), bytes.max(1));
        if range.end().raw() > WINDOW_BYTES {
            return None;
        }
        for at in (range.start().raw()..range.end().raw()).step_by(PAGE_BYTES as usize) {
            let page = Page::<Size4KiB>::containing_address(VirtAddr::new(FIRMWARE_BASE + at));
            if self.mapper().translate_page(page).is_err() {
                self.map_page::<Size4KiB>(FIRMWARE_BASE + at, at, UNCACHED, frames).ok()?;
            }
        }
        NonNull::new(core::ptr::with_exposed_provenance_mut((FIRMWARE_BASE + physical.raw()) as usize))
    }

    /// Maps a fresh stack of `pages` pages above an unmapped one; returns its top.
    pub(crate) fn map_stack(&mut self, pages: u64, frames: &mut Frames) -> Result<VirtAddr, OutOfMemory> {
        let physical = frames.allocate(pages * PAGE_BYTES, PAGE_BYTES, u64::MAX).ok_or(OutOfMemory)?;
        let bottom = self.next_stack + PAGE_BYTES;
        let flags = PageTableFlags::WRITABLE | PageTableFlags::NO_EXECUTE;
        self.map_pages(bottom, physical.raw(), pages * PAGE_BYTES, flags, frames)?;
        self.next_stack = bottom + pages * PAGE_BYTES;
        Ok(VirtAddr::new(self.next_stack))
    }

    /// Maps one page where it is, executable and not writable; for the trampoline alone.
    pub(crate) fn map_trampoline(&mut self, page: HostPhys, frames: &mut Frames) -> Result<(), OutOfMemory> {
        self.map_pages(page.raw(), page.raw(), PAGE_BYTES, PageTableFlags::empty(), frames)
    }

    /// Takes the trampoline's page out again.
    pub(crate) fn unmap_trampoline(&mut self, page: HostPhys) {
        if let Ok(page) = Page::<Size4KiB>::from_start_address(VirtAddr::new(page.raw()))
            && let Ok((_, flush)) = self.mapper().unmap(page)
        {
            flush.flush();
        }
    }

    fn map_image(&mut self, delta: u64, frames: &mut Frames) -> Result<(), OutOfMemory> {
        let guard = (&raw const lh_boot_stack_guard).addr() as u64;
        let data_end = (&raw const lh_data_end).addr() as u64;
        let no_execute = PageTableFlags::NO_EXECUTE;
        for (start, end, flags) in [
            (
                (&raw const lh_text_start).addr() as u64,
                (&raw const lh_text_end).addr() as u64,
                PageTableFlags::empty(),
            ),
            (
                (&raw const lh_rodata_start).addr() as u64,
                (&raw const lh_rodata_end).addr() as u64,
                no_execute,
            ),
            ((&raw const lh_data_start).addr() as u64, guard, no_execute | PageTableFlags::WRITABLE),
            (guard + PAGE_BYTES, data_end, no_execute | PageTableFlags::WRITABLE),
        ] {
            self.map_pages(start, start - IMAGE_BASE + delta, end - start, flags, frames)?;
        }
        Ok(())
    }

    /// Maps `[start, end)` into the direct map.
    fn map_direct(&mut self, start: u64, end: u64, frames: &mut Frames) -> Result<(), OutOfMemory> {
        let flags = PageTableFlags::WRITABLE | PageTableFlags::NO_EXECUTE;
        self.map_range(DIRECT_BASE + start, start, end.saturating_sub(start), flags, frames)
    }

    /// Maps a range, in large pages where both addresses allow.
    fn map_range(
        &mut self,
        virt: u64,
        phys: u64,
        bytes: u64,
        flags: PageTableFlags,
        frames: &mut Frames,
    ) -> Result<(), OutOfMemory> {
        let large = |offset: u64| {
            (virt + offset).is_multiple_of(LARGE_PAGE_BYTES)
                && (phys + offset).is_multiple_of(LARGE_PAGE_BYTES)
                && bytes - offset >= LARGE_PAGE_BYTES
        };
        let mut offset = 0;
        while offset < bytes {
            if large(offset) {
                self.map_page::<Size2MiB>(virt + offset, phys + offset, flags, frames)?;
                offset += LARGE_PAGE_BYTES;
            } else {
                self.map_page::<Size4KiB>(virt + offset, phys + offset, flags, frames)?;
                offset += PAGE_BYTES;
            }
        }
        Ok(())
    }

    fn map_pages(
        &mut self,
        virt: u64,
        phys: u64,
        bytes: u64,
        flags: PageTableFlags,
        frames: &mut Frames,
    ) -> Result<(), OutOfMemory> {
        for offset in (0..bytes).step_by(PAGE_BYTES as usize) {
            self.map_page::<Size4KiB>(virt + offset, phys + offset, flags, frames)?;
        }
        Ok(())
    }

    fn map_page<S: PageSize>(
        &mut self,
        virt: u64,
        phys: u64,
        flags: PageTableFlags,
        frames: &mut Frames,
    ) -> Result<(), OutOfMemory>
    where
        for<'a> OffsetPageTable<'a>: Mapper<S>,
    {
        let page = Page::<S>::containing_address(VirtAddr::new(virt));
        let frame = PhysFrame::<S>::containing_address(PhysAddr::new(phys));
        let mut tables = TableFrames { frames, limit: BOOT_IDENTITY_END, reach: self.reach };
        // SAFETY: the windows of the module's table do not overlap, so no live mapping changes; writable and
        // executable are never set together by any caller.
        let flush =
            unsafe { self.mapper().map_to(page, frame, flags | PageTableFlags::PRESENT, &mut tables) }?;
        flush.ignore();
        Ok(())
    }

    fn mapper(&mut self) -> OffsetPageTable<'_> {
        let root: *mut PageTable = core::ptr::with_exposed_provenance_mut(
            (self.reach + self.root.start_address().as_u64()) as usize,
        );
        // SAFETY: the root is a page table of ours that `reach` maps, borrowed through self alone.
        let root = unsafe { &mut *root };
        // SAFETY: all tables below it came from TableFrames and are reached the same way.
        unsafe { OffsetPageTable::new(root, VirtAddr::new(self.reach)) }
    }
}
