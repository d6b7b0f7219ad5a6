//! The boot heap: everything is allocated before the first guest runs, then it is sealed.
//!
//! An allocation after [`seal`] is a bug of the hypervisor and ends the machine with a report; freeing then is
//! harmless. The AML interpreter gets an arena of its own through [`with_arena`], which is dropped as a whole.
#![expect(unsafe_code, reason = "implements the global allocator")]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use levelhead::sync::Lock;
use linked_list_allocator::Heap;

/// The heap of everything that lives on: in the image's BSS, so that it is there before the memory map is read.
const MAIN_BYTES: usize = 2 * 1024 * 1024;

#[repr(align(4096))]
struct Space(core::cell::UnsafeCell<[u8; MAIN_BYTES]>);
// SAFETY: only the allocator below touches the bytes, under its lock.
unsafe impl Sync for Space {}

static SPACE: Space = Space(core::cell::UnsafeCell::new([0; MAIN_BYTES]));

struct BootHeap(Lock<State>);

struct State {
    main: Heap,
    arena: Option<Heap>,
    sealed: bool,
}

#[global_allocator]
static HEAP: BootHeap = BootHeap(Lock::new(State { main: Heap::empty(), arena: None, sealed: false }));

// SAFETY: blocks come from linked_list_allocator, which keeps GlobalAlloc's contract, and each goes back to the heap
// whose memory it lies in.
unsafe impl GlobalAlloc for BootHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.with(|state| {
            if state.sealed {
                return core::ptr::null_mut();
            }
            let heap = state.arena.as_mut().unwrap_or(&mut state.main);
            heap.allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.0.with(|state| {
            let Some(pointer) = NonNull::new(block) else { return };
            let main = (state.main.bottom() as usize..state.main.top() as usize).contains(&block.addr());
            let heap = if main { Some(&mut state.main) } else { state.arena.as_mut() };
            if let Some(heap) = heap {
                // SAFETY: the caller's promise: allocated here with this layout. A block of a dropped arena finds
                // no heap and is left alone.
                unsafe { heap.deallocate(pointer, layout) };
            }
        });
    }
}

/// Gives the heap its memory. Called once, before the first allocation.
pub(crate) fn initialise() {
    HEAP.0.with(|state| {
        // SAFETY: SPACE is used by this heap alone, and this runs once.
        unsafe { state.main.init(SPACE.0.get().cast(), MAIN_BYTES) };
    });
}

/// Runs `body` with all its allocations in `[start, start + bytes)`, then forgets that memory. What `body` returns
/// must hold no allocation made inside.
///
/// # Safety
///
/// The memory must be mapped, writable and unused, and nothing allocated inside may live on.
pub(crate) unsafe fn with_arena<R: Copy>(start: *mut u8, bytes: usize, body: impl FnOnce() -> R) -> R {
    HEAP.0.with(|state| {
        let mut arena = Heap::empty();
        // SAFETY: the caller promises that the range is mapped, writable and unused.
        unsafe { arena.init(start, bytes) };
        state.arena = Some(arena);
    });
    let result = body();
    HEAP.0.with(|state| state.arena = None);
    result
}

/// Forbids every later allocation.
pub(crate) fn seal() {
    HEAP.0.with(|state| state.sealed = true);
}

/// Bytes in use and in all, for the boot report.
pub(crate) fn usage() -> (usize, usize) {
    HEAP.0.with(|state| (state.main.used(), state.main.size()))
}
