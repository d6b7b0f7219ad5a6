//! The clock in a PC's CMOS memory (MC146818, chapter "Address map"): how the machine's own is read, and the one that a guest
//! finds at ports 0x70 and 0x71.
//!
//! The guest's tells the time in binary-coded decimal and 24 hours, by the TSC from what the machine's said at boot. It is only
//! read: there are no alarms, no periodic interrupts and no memory, and the FADT announces no clock, so that no driver asks
//! for them. It is there because kernels read it unasked and wait a second or more for one that never answers.

use core::num::NonZeroU64;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
/// 1 is Sunday.
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const D: u8 = 0x0d;
/// Where PCs keep the century, if anywhere; a guest's FADT names no place.
const CENTURY: u8 = 0x32;

/// Register A: the time is about to change.
const A_UPDATE: u8 = 1 << 7;
/// Register A: a 32.768 kHz crystal, and the usual rate.
const A_RUNS: u8 = 0x26;
/// Register B: 24 hours a day.
const B_24_HOURS: u8 = 1 << 1;
/// Register B: numbers are binary.
const B_BINARY: u8 = 1 << 2;
/// Register D: the time is valid.
const D_VALID: u8 = 1 << 7;
/// Hours: after noon, if the day has 12.
const AFTERNOON: u8 = 1 << 7;

const MS_A_DAY: u64 = 86_400_000;

/// What time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Milliseconds since the beginning of 1970, in whatever zone the machine's clock is set to.
    pub at_ms: u64,
    /// The time stamp at that moment.
    pub at_tsc: u64,
    /// Time stamps in a millisecond.
    pub ticks_per_ms: NonZeroU64,
}

impl WallClock {
    /// The time at `now_tsc`, in milliseconds.
    const fn ms(&self, now_tsc: u64) -> u64 {
        self.at_ms.wrapping_add(now_tsc.saturating_sub(self.at_tsc) / self.ticks_per_ms.get())
    }
}

/// The clock of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmos {
    clock: Option<WallClock>,
    selected: u8,
}

impl Cmos {
    /// The clock after reset; one that never had its time set where nobody knows it.
    pub const fn new(clock: Option<WallClock>) -> Self {
        Self { clock, selected: 0 }
    }

    /// The clock after another reset: it has run on.
    pub const fn reset(&mut self) {
        self.selected = 0;
    }

    /// A byte written to one of the two ports, counted from the first. Only which register is selected is kept.
    pub const fn write(&mut self, port: u16, value: u8) {
        // Bit 7 keeps non-maskable interrupts out on a PC that has such a source.
        if port == 0 {
            self.selected = value & 0x7f;
        }
    }

    /// A byte read from one of the two ports, counted from the first, when the time stamp is `now_tsc`. The port that
    /// selects reads as nothing, as on a PC.
    pub fn read(&self, port: u16, now_tsc: u64) -> u8 {
        if port == 0 {
            return u8::MAX;
        }
        let Some(clock) = &self.clock else { return if self.selected == B { B_24_HOURS } else { 0 } };
        let ms = clock.ms(now_tsc);
        let (day, in_day) = (ms / MS_A_DAY, ms % MS_A_DAY);
        let date = Date::of(day);
        let number = match self.selected {
            SECONDS => in_day / 1000 % 60,
            MINUTES => in_day / 60_000 % 60,
            HOURS => in_day / 3_600_000,
            // The first day was a Thursday.
            WEEKDAY => day.wrapping_add(4) % 7 + 1,
            DAY => date.day,
            MONTH => date.month,
            YEAR => date.year % 100,
            CENTURY => date.year / 100 % 100,
            // One millisecond is long enough to be seen, and to read all registers after it was not.
            A => return A_RUNS | if ms % 1000 == 999 { A_UPDATE } else { 0 },
            B => return B_24_HOURS,
            D => return D_VALID,
            _ => return 0,
        };
        // Below 100.
        ((number / 10) << 4 | (number % 10)) as u8
    }
}

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
}

/// Days in four centuries.
const ERA_DAYS: u64 = 146_097;
/// Days from the first of March of the year 0, with which the calendar below begins, to the first of January 1970.
const EPOCH: u64 = 719_468;

impl Date {
    /// The date so many days after the first of January 1970. Years begin in March here, so that the odd day is the last.
    const fn of(days: u64) -> Self {
        let days = days.wrapping_add(EPOCH);
        let (era, in_era) = (days / ERA_DAYS, days % ERA_DAYS);
        // Without the odd days of the years before, each of which began with one too few.
        let even =
            in_era.wrapping_sub(in_era / 1460).wrapping_add(in_era / 36_524).wrapping_sub(in_era / 146_096);
        let year = even / 365;
        let in_year =
            in_era.wrapping_sub(year.wrapping_mul(365).wrapping_add(year / 4).wrapping_sub(year / 100));
        // Five months have 153 days, wherever one begins to count.
        let month = (in_year.wrapping_mul(5).wrapping_add(2)) / 153;
        let day = in_year.wrapping_sub((month.wrapping_mul(153).wrapping_add(2)) / 5).wrapping_add(1);
        let (month, next) = if month < 10 { (month.wrapping_add(3), 0) } else { (month.wrapping_sub(9), 1) };
        Self { year: era.wrapping_mul(400).wrapping_add(year).wrapping_add(next), month, day }
    }

    /// How many days after the first of January 1970 this is, a day from then on.
    fn days(self) -> Option<u64> {
        // Days before a month in years that begin in March.
        let (months, year) = if self.month > 2 {
            (self.month.checked_sub(3)?, self.year)
        } else {
            (self.month.checked_add(9)?, self.year.checked_sub(1)?)
        };
        let in_year = months.checked_mul(153)?.checked_add(2)? / 5;
        let years =
            year.checked_mul(365)?.checked_add(year / 4)?.checked_sub(year / 100)?.checked_add(year / 400)?;
        let days = years.checked_add(in_year)?.checked_add(self.day)?.checked_sub(1)?.checked_sub(EPOCH)?;
        (Self::of(days) == self).then_some(days)
    }
}

/// What the machine's clock says, in seconds since the beginning of 1970, by a function that reads its registers. `None` if
/// it is not set, says nothing that is a time, or never comes to rest, as where there is none.
///
/// Nobody else may select registers meanwhile.
pub fn seconds_of(mut read: impl FnMut(u8) -> u8) -> Option<u64> {
    /// Reads of register A, and of the whole: an update takes 2 ms, a read a microsecond.
    const PATIENCE: u32 = 100_000;
    const TRIES: u32 = 10;
    if read(D) & D_VALID == 0 {
        return None;
    }
    for _ in 0..TRIES {
        (0..PATIENCE).find(|_| read(A) & A_UPDATE == 0)?;
        let registers = [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY];
        let first = registers.map(&mut read);
        if read(A) & A_UPDATE == 0 && registers.map(&mut read) == first {
            return seconds(first, read(B));
        }
    }
    None
}

/// The time that seconds, minutes, hours, day, month, year and century say in the form that register B tells.
fn seconds(registers: [u8; 7], b: u8) -> Option<u64> {
    let number = |raw: u8| match (raw >> 4, raw & 0xf) {
        _ if b & B_BINARY != 0 => Some(u64::from(raw)),
        (tens @ 0..=9, ones @ 0..=9) => Some(u64::from(tens) * 10 + u64::from(ones)),
        _ => None,
    };
    let [second, minute, hour, day, month, year, century] = registers;
    let hour = match (b & B_24_HOURS != 0, hour & AFTERNOON != 0) {
        (true, _) => number(hour)?,
        // 12 is midnight or noon.
        (false, afternoon) => number(hour & !AFTERNOON)? % 12 + if afternoon { 12 } else { 0 },
    };
    // Where PCs without a century keep something else, it was not this or the next one.
    let century = number(century).filter(|century| (20..=21).contains(century)).unwrap_or(20);
    let date = Date { year: century * 100 + number(year)?, month: number(month)?, day: number(day)? };
    let (second, minute) = (number(second)?, number(minute)?);
    (second < 60 && minute < 60 && hour < 24).then_some(())?;
    Some(date.days()? * (MS_A_DAY / 1000) + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KHZ: u64 = 2_600_000;

    fn cmos(at_ms: u64) -> Cmos {
        Cmos::new(Some(WallClock { at_ms, at_tsc: 500, ticks_per_ms: NonZeroU64::new(KHZ).unwrap() }))
    }

    /// What register `index` of it says.
    fn told(cmos: &Cmos, index: u8, now: u64) -> u8 {
        let mut cmos = *cmos;
        cmos.write(0, index);
        cmos.read(1, now)
    }

    #[test]
    fn dates_that_a_calendar_shows() {
        for (seconds, registers) in [
            (0, [0x00, 0x00, 0x00, 5, 0x01, 0x01, 0x70, 0x19]),
            (951_827_696, [0x56, 0x34, 0x12, 3, 0x29, 0x02, 0x00, 0x20]),
            (1_767_225_599, [0x59, 0x59, 0x23, 4, 0x31, 0x12, 0x25, 0x20]),
            (4_107_542_400, [0x00, 0x00, 0x00, 2, 0x01, 0x03, 0x00, 0x21]),
        ] {
            let places = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];
            let cmos = cmos(seconds * 1000);
            assert_eq!(places.map(|place| told(&cmos, place, 500)), registers, "{seconds}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut before = Date { year: 1969, month: 12, day: 31 };
        for days in 0..ERA_DAYS {
            let date = Date::of(days);
            assert_eq!(date.days(), Some(days));
            let leap = before.year.is_multiple_of(4)
                && (!before.year.is_multiple_of(100) || before.year.is_multiple_of(400));
            let last = match before.month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let next = match before {
                Date { year, month: 12, day: 31 } => Date { year: year + 1, month: 1, day: 1 },
                Date { year, month, day } if day == last => Date { year, month: month + 1, day: 1 },
                Date { year, month, day } => Date { year, month, day: day + 1 },
            };
            assert_eq!(date, next);
            before = date;
        }
    }

    #[test]
    fn it_runs_by_the_tsc_and_warns_before_it_moves() {
        let cmos = cmos(59_000);
        assert_eq!(told(&cmos, SECONDS, 500), 0x59);
        assert_eq!(told(&cmos, A, 500), A_RUNS);
        let almost = 500 + 1000 * KHZ - 1;
        assert_eq!((told(&cmos, SECONDS, almost), told(&cmos, A, almost)), (0x59, A_RUNS | A_UPDATE));
        assert_eq!((told(&cmos, SECONDS, almost + 1), told(&cmos, MINUTES, almost + 1)), (0x00, 0x01));
        assert_eq!(told(&cmos, SECONDS, 0), 0x59, "a time stamp from before");
    }

    #[test]
    fn what_is_not_there_reads_as_zero_and_keeps_nothing() {
        let mut cmos = cmos(0);
        for index in 0x0e..=0x7f {
            assert!(index == CENTURY || told(&cmos, index, 500) == 0, "{index:#x}");
        }
        cmos.write(0, 0x80 | D);
        cmos.write(1, 0);
        assert_eq!((cmos.read(0, 0), cmos.read(1, 0)), (0xff, D_VALID));
        cmos.reset();
        assert_eq!(cmos.read(1, 500), 0x00);
        let unset = Cmos::new(None);
        assert_eq!([A, B, D, YEAR].map(|index| told(&unset, index, 500)), [0, B_24_HOURS, 0, 0]);
    }

    #[test]
    fn the_machines_clock_is_read_in_each_of_its_forms() {
        let ask = |seconds: u8, hours: u8, b: u8, year: u8| {
            seconds_of(|index| match index {
                SECONDS => seconds,
                MINUTES => 7,
                HOURS => hours,
                DAY => 9,
                MONTH => 3,
                YEAR => year,
                CENTURY => 0x20,
                B => b,
                D => D_VALID,
                _ => 0,
            })
        };
        // 2026-03-09 14:07:06.
        assert_eq!(ask(0x06, 0x14, B_24_HOURS, 0x26), Some(1_773_065_226));
        assert_eq!(ask(6, 14, B_24_HOURS | B_BINARY, 26), ask(0x06, 0x14, B_24_HOURS, 0x26));
        assert_eq!(ask(0x06, 0x82, 0, 0x26), ask(0x06, 0x14, B_24_HOURS, 0x26));
        assert_eq!(ask(0x06, 0x92, 0, 0x26), ask(0x06, 0x12, B_24_HOURS, 0x26));
        assert_eq!(ask(0x06, 0x12, 0, 0x26), ask(0x06, 0x00, B_24_HOURS, 0x26));
        for (seconds, hours, b, year) in
            [(0x60, 1, 2, 0x26), (0x0a, 1, 2, 0x26), (0, 0x24, 2, 0x26), (0, 1, 2, 0xff)]
        {
            assert_eq!(ask(seconds, hours, b, year), None);
        }
    }

    #[test]
    fn a_clock_that_is_unset_or_absent_says_nothing() {
        assert_eq!(seconds_of(|_| 0), None);
        // Where nothing answers, it seems to be about to change for ever.
        assert_eq!(seconds_of(|_| 0xff), None);
        let mut reads = 0_u8;
        let restless = |index| match index {
            A => 0,
            D => D_VALID,
            _ => {
                reads = reads.wrapping_add(1);
                reads
            }
        };
        assert_eq!(seconds_of(restless), None);
    }

    proptest! {
        #[test]
        fn a_guest_that_reads_it_as_the_machines_is_read_learns_the_time(seconds in 946_684_800_u64..7_258_118_400) {
            let cmos = cmos(seconds * 1000);
            prop_assert_eq!(seconds_of(|index| told(&cmos, index, 500)), Some(seconds));
        }

        #[test]
        fn any_time_is_some_time(at_ms: u64, now: u64, index: u8) {
            let _ = told(&cmos(at_ms), index, now);
        }
    }
}
