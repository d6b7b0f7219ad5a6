//! The order of locks ("Locks" in ARCHITECTURE.md), checked wherever debug assertions are on.
//!
//! Each CPU remembers the innermost rank it holds. Taking a lock of the same rank or of one further out is the
//! hypervisor's own fault and panics; a lock without a rank is taken alone or innermost.

use levelhead::sync::Lock;
#[cfg(debug_assertions)]
use levelhead::sync::Ordering;

#[cfg(debug_assertions)]
use crate::arch::x86::cpu::held_rank;

/// Where a lock stands, from outer to inner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(crate) enum Rank {
    /// What the virtual CPUs of a partition change one at a time; one such lock at a time.
    Guest = 1,
    /// A line. Held inside the library, for as long as a call into the table has its `Wires`.
    Line = 2,
    /// A partition's interrupt chips.
    Chips = 3,
    /// The physical IO-APICs.
    IoApics = 4,
}

/// That a lock is held, or may be.
#[derive(Debug)]
#[must_use = "the rank is held until this is dropped"]
pub(crate) struct Hold {
    #[cfg(debug_assertions)]
    outer: u32,
}

impl Hold {
    /// About to take a lock of this rank.
    #[inline(always)]
    pub(crate) fn begin(rank: Rank) -> Self {
        #[cfg(not(debug_assertions))]
        let _ = rank;
        Self {
            #[cfg(debug_assertions)]
            outer: take(rank),
        }
    }
}

/// Makes `rank` the innermost one; returns what was.
#[cfg(debug_assertions)]
fn take(rank: Rank) -> u32 {
    let outer = held_rank().map_or(0, |held| held.swap(rank as u32, Ordering::Relaxed));
    assert!(outer < rank as u32, "lock order: {rank:?} is taken inside rank {outer}");
    outer
}

#[cfg(debug_assertions)]
impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(held) = held_rank() {
            held.store(self.outer, Ordering::Relaxed);
        }
    }
}

/// A lock with a place in the order, which is the [`Rank`] with this number.
#[derive(Debug)]
pub(crate) struct Ordered<T> {
    rank: Rank,
    inner: Lock<T>,
}

impl<T> Ordered<T> {
    /// A lock of this rank.
    pub(crate) const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: Lock::new(value) }
    }

    /// Runs `body` with the value, alone.
    #[inline(always)]
    pub(crate) fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> R {
        let _hold = Hold::begin(self.rank);
        self.inner.with(body)
    }
}
