//! Real time: how fast the TSC counts, measured once against the ACPI power management timer.
//!
//! The only clock whose speed every PC states (ACPI 6.5 4.8.3.3: 3.579545 MHz). After boot nothing but the TSC is read.
#![expect(unsafe_code, reason = "reads the timer's port")]

use core::hint::spin_loop;
use core::num::NonZeroU64;

use x86_64::instructions::port::PortReadOnly;

use super::cpu::tsc;

/// The power management timer's port. It counts upwards in 24 bits at least; those are all that is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PmTimer(pub(crate) u16);

/// What the TSC's ticks mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// TSC ticks in a millisecond.
    pub(crate) ticks_per_ms: NonZeroU64,
}

impl PmTimer {
    const HERTZ: u64 = 3_579_545;
    const MASK: u32 = 0x00ff_ffff;
    /// Counts over which the TSC is measured: 10 ms.
    const COUNTS: u32 = 35_795;

    fn read(self) -> u32 {
        // SAFETY: the FADT says that the timer is at this port; reading it has no effect.
        unsafe { PortReadOnly::<u32>::new(self.0).read() }
    }
}

impl Clock {
    /// TSC ticks after which a timer that has not counted is taken to be none: several times what it should take on the
    /// fastest CPU.
    const PATIENCE: u64 = 1 << 30;

    /// Measures. `None` if the timer does not count.
    pub(crate) fn measure(timer: PmTimer) -> Option<Self> {
        let counted = |from: u32| timer.read().wrapping_sub(from) & PmTimer::MASK;
        // From one count to another, so that the first is a whole one.
        let (before, start) = (timer.read(), tsc());
        while counted(before) == 0 {
            if tsc().wrapping_sub(start) > Self::PATIENCE {
                return None;
            }
            spin_loop();
        }
        let (first, begin) = (timer.read(), tsc());
        loop {
            let (counts, elapsed) = (counted(first), tsc().wrapping_sub(begin));
            if counts >= PmTimer::COUNTS {
                // Below 2^24 counts and, by patience, about 2^30 ticks: no overflow.
                let per_second = elapsed.saturating_mul(PmTimer::HERTZ) / u64::from(counts);
                return NonZeroU64::new(per_second / 1000).map(|ticks_per_ms| Self { ticks_per_ms });
            }
            if elapsed > Self::PATIENCE {
                return None;
            }
            spin_loop();
        }
    }
}
