//! Real time: how fast the TSC counts, measured once against the ACPI power management timer, and what the machine's clock
//! says, asked once.
//!
//! The timer is the only clock whose speed every PC states (ACPI 6.5 4.8.3.3: 3.579545 MHz). After boot nothing but the TSC
//! is read.
#![expect(unsafe_code, reason = "reads the timer's port and the clock's")]

use core::num::NonZeroU64;

use levelhead::config::CMOS_PORTS;
use levelhead::device::cmos::{WallClock, seconds_of};
use x86_64::instructions::port::{Port, PortReadOnly};

use super::cpu::tsc;

/// The power management timer's port. It counts upwards in 24 bits at least; those are all that is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PmTimer(pub(crate) u16);

/// What the TSC's ticks mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// TSC ticks in a millisecond.
    pub(crate) ticks_per_ms: NonZeroU64,
    /// What time it was, if the machine's clock is set.
    pub(crate) wall: Option<WallClock>,
}

/// The clock in CMOS memory. Nobody else uses its ports.
#[derive(Debug)]
pub(crate) struct CmosClock {
    select: Port<u8>,
    value: Port<u8>,
}

impl CmosClock {
    /// The machine's, on a machine that has one.
    pub(crate) const fn new() -> Self {
        Self { select: Port::new(*CMOS_PORTS.start()), value: Port::new(*CMOS_PORTS.end()) }
    }

    /// What time it is, by a TSC that counts `ticks_per_ms` from now on.
    fn ask(mut self, ticks_per_ms: NonZeroU64) -> Option<WallClock> {
        let seconds = seconds_of(|index| self.register(index))?;
        Some(WallClock { at_ms: seconds.saturating_mul(1000), at_tsc: tsc(), ticks_per_ms })
    }

    fn register(&mut self, index: u8) -> u8 {
        // SAFETY: the port only selects a register; its bit 7 stays clear, which leaves non-maskable interrupts open.
        unsafe { self.select.write(index) };
        // SAFETY: reading a register of the time changes nothing.
        unsafe { self.value.read() }
    }
}

impl PmTimer {
    const HERTZ: u64 = 3_579_545;
    const MASK: u32 = 0x00ff_ffff;
    /// Counts over which the TSC is measured: 10 ms, of which one count is less than 30 millionths.
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

    /// Measures, and asks the machine's clock for the time. `None` if the timer does not count.
    pub(crate) fn measure(timer: PmTimer, clock: Option<CmosClock>) -> Option<Self> {
        let ticks_per_ms = Self::ticks_per_ms(timer)?;
        Some(Self { ticks_per_ms, wall: clock.and_then(|clock| clock.ask(ticks_per_ms)) })
    }

    /// Measures. It spins without PAUSE, at which an emulator looks for something else to do each time.
    fn ticks_per_ms(timer: PmTimer) -> Option<NonZeroU64> {
        let begin = Reading::take_closely(timer);
        loop {
            let end = Reading::take(timer);
            if end.counts_since(begin) >= PmTimer::COUNTS {
                break;
            }
            if end.at.wrapping_sub(begin.at) > Self::PATIENCE {
                return None;
            }
        }
        let end = Reading::take_closely(timer);
        // Below 2^24 counts and, by patience, some 2^30 ticks: no overflow.
        let elapsed = end.at.wrapping_sub(begin.at);
        let per_second =
            elapsed.saturating_mul(PmTimer::HERTZ).checked_div(end.counts_since(begin).into())?;
        NonZeroU64::new(per_second / 1000)
    }
}

/// Both clocks read together.
#[derive(Clone, Copy, Debug)]
struct Reading {
    count: u32,
    /// The TSC before the timer was read.
    at: u64,
    /// TSC ticks until it was.
    within: u64,
}

impl Reading {
    fn take(timer: PmTimer) -> Self {
        let at = tsc();
        let count = timer.read();
        Self { count, at, within: tsc().wrapping_sub(at) }
    }

    /// The closest of a few: whoever runs this machine may let it stand still between the two clocks.
    fn take_closely(timer: PmTimer) -> Self {
        const ATTEMPTS: u32 = 8;
        let first = Self::take(timer);
        (1..ATTEMPTS)
            .map(|_| Self::take(timer))
            .fold(first, |best, reading| if reading.within < best.within { reading } else { best })
    }

    const fn counts_since(self, earlier: Self) -> u32 {
        self.count.wrapping_sub(earlier.count) & PmTimer::MASK
    }
}
