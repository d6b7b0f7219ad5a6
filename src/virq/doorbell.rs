//! How a CPU tells another that one of its virtual CPUs has something to do.
//!
//! What there is to do stands in the chips, behind their lock; the bell says only that somebody should look, and whether
//! an interrupt is under way that will make them. The order is the whole protocol:
//!
//! ```text
//! who has something to tell         the CPU that runs the virtual CPU, before each entry and each sleep
//!   1. changes the chips              1. answers the bell
//!   2. rings                          2. looks at the chips
//!   3. first to ring: interrupts      3. enters, or sleeps: an interrupt that is pending ends both at once
//! ```
//!
//! Nothing is lost. Whoever rings first since the last answer interrupts, so the other CPU looks again. Whoever finds the
//! bell rung leaves it at that: the answer to it is still to come, and it is a read-modify-write of the same word, so the
//! look that follows sees what was changed before the ring. And while a bell is unanswered nobody interrupts twice.

use crate::sync::{AtomicU32, Ordering};

/// The bell of one virtual CPU.
#[derive(Debug)]
pub struct Doorbell(AtomicU32);

impl Doorbell {
    const SILENT: u32 = 0;
    const RUNG: u32 = 1;

    /// A bell that nobody has rung.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU32::new(Self::SILENT))
    }

    /// A bell that nobody has rung.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU32::new(Self::SILENT))
    }

    /// Rings, after the chips were changed. Whether the virtual CPU's CPU is to be interrupted.
    #[must_use = "nobody looks unless the CPU is interrupted"]
    pub fn ring(&self) -> bool {
        self.0.swap(Self::RUNG, Ordering::AcqRel) == Self::SILENT
    }

    /// Answers, before the chips are looked at. Only for the CPU that runs the virtual CPU.
    #[inline]
    pub fn answer(&self) {
        // A ring that this load does not see yet comes with an interrupt.
        if self.0.load(Ordering::Relaxed) != Self::SILENT {
            self.0.swap(Self::SILENT, Ordering::AcqRel);
        }
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
            bell.answer();
            assert!(bell.ring());
            assert!(!bell.ring() && !bell.ring());
        }
    }
}
