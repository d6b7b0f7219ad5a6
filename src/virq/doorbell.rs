//! How a CPU tells another that one of its virtual CPUs has something to do.
//!
//! A bell is one word, the [`Requests`] since the last answer. An interrupt only wakes. The order is the whole protocol:
//!
//! ```text
//! who has something to tell         the CPU that runs the virtual CPU, before each entry and each sleep
//!   1. changes the chips              1. answers the bell
//!   2. rings                          2. looks at the chips, and does what else was requested
//!   3. first to ring: interrupts      3. enters, or sleeps: an interrupt that is pending ends both at once
//! ```
//!
//! Nothing is lost. Whoever rings first since the last answer interrupts, so the other CPU looks again. Whoever finds the
//! bell rung leaves it at that: the answer to it is still to come, and it is a read-modify-write of the same word, so it
//! takes this request too, and the look that follows sees what was changed before the ring. And while a bell is unanswered
//! nobody interrupts twice.
//!
//! An EOI that found nothing waiting has looked before the answer instead. That will do as long as the answer is that nobody asked:
//! what the look was too early for was rung after it, and a ring that the answer was too early for interrupts.

use crate::sync::{AtomicU32, Ordering};

/// What is asked of a virtual CPU's CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests(u32);

impl Requests {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Look at the chips, and at what else others leave for the partition.
    pub const LOOK: Self = Self(1);
    /// Forget what the CPU may have kept of the nested tables and the permission maps.
    pub const FORGET: Self = Self(1 << 1);
    /// Leave the guest for good.
    pub const LEAVE: Self = Self(1 << 2);
    /// Take what was typed on the guest's terminal.
    pub const TYPED: Self = Self(1 << 3);

    /// Whether nothing is asked.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` is asked.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The bell of one virtual CPU.
#[derive(Debug)]
pub struct Doorbell(AtomicU32);

impl Doorbell {
    /// A bell that nobody has rung.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU32::new(Requests::NONE.0))
    }

    /// A bell that nobody has rung.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU32::new(Requests::NONE.0))
    }

    /// Rings, for something and after what it is about was changed. Whether the virtual CPU's CPU is to be interrupted.
    #[must_use = "nobody looks unless the CPU is interrupted"]
    pub fn ring(&self, requests: Requests) -> bool {
        self.0.fetch_or(requests.0, Ordering::AcqRel) == Requests::NONE.0
    }

    /// Rings for the CPU that is at work here, which answers before it looks in any case.
    pub fn note(&self, requests: Requests) {
        self.0.fetch_or(requests.0, Ordering::AcqRel);
    }

    /// Answers, before anything is looked at: everything that was asked since the last time. Only for the CPU that runs the
    /// virtual CPU.
    #[inline]
    pub fn answer(&self) -> Requests {
        // A ring that this load does not see yet comes with an interrupt.
        if self.0.load(Ordering::Relaxed) == Requests::NONE.0 {
            return Requests::NONE;
        }
        Requests(self.0.swap(Requests::NONE.0, Ordering::AcqRel))
    }
}

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_ring_since_an_answer_interrupts_and_no_other() {
        let bell = Doorbell::new();
        for _ in 0..3 {
            assert!(bell.answer().is_empty());
            assert!(bell.ring(Requests::LOOK));
            assert!(!bell.ring(Requests::FORGET) && !bell.ring(Requests::LOOK));
            let asked = bell.answer();
            assert!(asked.contains(Requests::LOOK) && asked.contains(Requests::FORGET));
            assert!(!asked.contains(Requests::LEAVE));
        }
        bell.note(Requests::LOOK);
        assert!(!bell.ring(Requests::LEAVE), "whoever noted it answers before it looks");
        assert!(bell.answer().contains(Requests::LEAVE));
    }
}
