//! How much a guest may print, so that one that never stops floods neither the console nor the log, where its neighbours'
//! lines and the hypervisor's records must stay readable.
//!
//! A guest may print [`BYTES`](PrintBudget::BYTES) at once and gets one byte back every
//! [`TICKS_PER_BYTE`](PrintBudget::TICKS_PER_BYTE). When that is used up, its lines are dropped and counted until as much
//! time has passed as gives all of it back; so a guest that never stops is cut once for every `BYTES` it prints.

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// It is printed.
    Print,
    /// It is printed, and before it how much was dropped since the last one.
    PrintAfter(Dropped),
    /// It is dropped, the first one since there was room: somebody should be told.
    DropFirst,
    /// It is dropped.
    Drop,
}

/// Lines that were not printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// How many.
    pub lines: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One guest's account. Time is the CPU's time-stamp counter, in ticks.
#[derive(Clone, Debug)]
pub struct PrintBudget {
    /// What may be printed now, in bytes.
    left: u64,
    /// When `left` was counted, or when the guest was cut.
    at_tsc: u64,
    cut: Option<Dropped>,
}

impl PrintBudget {
    /// What may be printed at once.
    pub const BYTES: u64 = 64 << 10;
    /// How long one byte takes to come back; about 2,500 bytes a second on a CPU of 2.6 GHz.
    pub const TICKS_PER_BYTE: u64 = 1 << 20;

    /// Nothing printed yet.
    pub const fn new() -> Self {
        Self { left: Self::BYTES, at_tsc: 0, cut: None }
    }

    /// What becomes of a line that takes `bytes` on the console.
    pub fn ask(&mut self, bytes: u64, now_tsc: u64) -> Permission {
        let back = now_tsc.saturating_sub(self.at_tsc) / Self::TICKS_PER_BYTE;
        match &mut self.cut {
            Some(dropped) if back < Self::BYTES => {
                *dropped = dropped.and(bytes);
                Permission::Drop
            }
            Some(_) => {
                let dropped = self.take_dropped().unwrap_or_default();
                self.left = Self::BYTES.saturating_sub(bytes);
                self.at_tsc = now_tsc;
                Permission::PrintAfter(dropped)
            }
            None => {
                let left = self.left.saturating_add(back).min(Self::BYTES);
                if let Some(rest) = left.checked_sub(bytes) {
                    // What has not become a whole byte stays on the clock.
                    self.at_tsc = if left == Self::BYTES {
                        now_tsc
                    } else {
                        self.at_tsc.saturating_add(back.saturating_mul(Self::TICKS_PER_BYTE))
                    };
                    self.left = rest;
                    return Permission::Print;
                }
                self.at_tsc = now_tsc;
                self.cut = Some(Dropped::default().and(bytes));
                Permission::DropFirst
            }
        }
    }

    /// How much was dropped since the last line that was printed, if anything; nothing is, from here on.
    pub const fn take_dropped(&mut self) -> Option<Dropped> {
        self.cut.take()
    }
}

impl Default for PrintBudget {
    fn default() -> Self {
        Self::new()
    }
}

impl Dropped {
    const fn and(self, bytes: u64) -> Self {
        Self { lines: self.lines.saturating_add(1), bytes: self.bytes.saturating_add(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: u64 = 64;
    /// Long enough for all of the budget to come back.
    const REST: u64 = PrintBudget::BYTES * PrintBudget::TICKS_PER_BYTE;

    #[test]
    fn a_burst_is_printed_and_the_rest_is_dropped_and_counted_once() {
        let mut budget = PrintBudget::new();
        for line in 0..PrintBudget::BYTES / LINE {
            assert_eq!(budget.ask(LINE, 1000), Permission::Print, "{line}");
        }
        assert_eq!(budget.ask(LINE, 1000), Permission::DropFirst);
        // Whatever trickles back meanwhile opens nothing.
        for line in 1..1000 {
            assert_eq!(budget.ask(LINE, 1000 + line * (1 << 26)), Permission::Drop);
        }
        let dropped = Dropped { lines: 1000, bytes: 1000 * LINE };
        assert_eq!(budget.ask(LINE, 1000 + REST), Permission::PrintAfter(dropped));
        assert_eq!(budget.ask(LINE, 1000 + REST), Permission::Print);
        assert_eq!(budget.take_dropped(), None);
    }

    #[test]
    fn who_prints_slowly_is_never_cut() {
        let mut budget = PrintBudget::new();
        for line in 0..10_000 {
            assert_eq!(
                budget.ask(LINE, line * LINE * PrintBudget::TICKS_PER_BYTE),
                Permission::Print,
                "{line}"
            );
        }
    }

    #[test]
    fn a_guest_that_never_stops_prints_a_bounded_amount_in_any_time() {
        let (mut budget, mut printed, mut cuts) = (PrintBudget::new(), 0, 0);
        let step = PrintBudget::TICKS_PER_BYTE / 3;
        for line in 0..1_000_000 {
            match budget.ask(LINE, line * step) {
                Permission::Print | Permission::PrintAfter(_) => printed += LINE,
                Permission::DropFirst => cuts += 1,
                Permission::Drop => {}
            }
        }
        let back = 1_000_000 * step / PrintBudget::TICKS_PER_BYTE;
        assert!(printed <= PrintBudget::BYTES + 2 * back, "{printed} bytes, {back} came back");
        assert!(cuts <= 1 + printed / PrintBudget::BYTES, "{cuts} cuts for {printed} bytes");
    }

    #[test]
    fn clocks_and_lengths_at_their_ends_are_answered() {
        let mut budget = PrintBudget::new();
        for (bytes, now) in [(u64::MAX, u64::MAX), (u64::MAX, 0), (0, u64::MAX), (1, 0), (u64::MAX, u64::MAX)]
        {
            let _permission = budget.ask(bytes, now);
        }
    }
}
