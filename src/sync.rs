//! The one door to atomics and locks, so that the models see every one of them.
//!
//! Outside a model these are `core`'s atomics and `spin`'s ticket lock; under `cfg(loom)` they are loom's, and
//! the same source is explored interleaving by interleaving. Nothing else in the library names an atomic or a
//! lock directly.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A fair spin lock. It does not mask interrupts: the hypervisor runs with them masked everywhere but in its one
/// interrupt window, in which it holds no lock.
#[derive(Debug)]
pub struct Lock<T> {
    #[cfg(not(loom))]
    inner: spin::mutex::TicketMutex<T>,
    #[cfg(loom)]
    inner: loom::sync::Mutex<T>,
}

impl<T> Lock<T> {
    /// Wraps `value`. Constant outside models, so that a lock can live in a static.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self { inner: spin::mutex::TicketMutex::new(value) }
    }

    /// Wraps `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self { inner: loom::sync::Mutex::new(value) }
    }

    /// Runs `body` with the value, alone. The closure form keeps every hold visible as one block.
    #[cfg(not(loom))]
    #[inline(always)]
    pub fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> R {
        body(&mut self.inner.lock())
    }

    /// Runs `body` with the value, alone.
    #[cfg(loom)]
    #[expect(clippy::unwrap_used, reason = "models only: a poisoned lock is a failed model")]
    pub fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> R {
        body(&mut self.inner.lock().unwrap())
    }
}
