//! What an interrupt may cost: the goals of each row, and those of rows beside each other.

use std::fmt;

use super::guest::{Apic, Guest, Mask, Replaced};
use super::row::{Accesses, Row, Spread};
use crate::console::{BAD, Console, GOOD};

/// The goals of a round trip in instructions, by the guest's interface to its local APIC.
const ROUND_TRIP_GOAL: [(Apic, u64); 2] = [(Apic::Xapic, 1600), (Apic::X2apic, 1000)];
/// The goal of VM exits per interrupt: the interrupt itself and the EOI; of a halted virtual CPU the HLT and the EOI,
/// since nothing runs that the interrupt could make exit.
const EXITS_GOAL: f64 = 2.0;
/// The goal of configuration accesses by an interrupt that is silenced at its function: its Status is read and DisINTx written
/// as it comes and at its EOI; for every other source on the line one read of Status comes on top.
const CONFIG_GOAL: u32 = 4;
/// The goal of IO-APIC writes by an interrupt that is silenced at its line.
const IOAPIC_WRITES_GOAL: f64 = 4.0;

/// Something a row is to reach.
pub(super) struct Goal {
    pub(super) met: bool,
    pub(super) what: String,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.met { "met    " } else { "NOT met" }, self.what)
    }
}

impl Goal {
    /// A line for people.
    pub(super) fn show(&self, console: &mut Console) {
        let (style, word) = if self.met { (GOOD, "met    ") } else { (BAD, "NOT met") };
        console.line(format_args!("{} {}", console.paint(style, word), self.what));
    }
}

/// The goals of a row under Levelhead.
pub(super) fn goals(row: &Row) -> Vec<Goal> {
    let (name, guest) = (row.guest.name(), row.guest);
    let mut goals = Vec::new();
    let Spread { median, max, .. } = row.times.round_trip;
    let exclusive = guest.mask == Mask::Line && guest.sources == 1 && guest.replaced == Replaced::Never;
    let goal = ROUND_TRIP_GOAL.iter().find(|(apic, _)| exclusive && *apic == guest.apic);
    if let Some((_, goal)) = goal {
        let what = format!("{name}: round trip {median}, goal {goal} instructions");
        goals.push(Goal { met: median <= *goal, what });
    }
    let what = format!("{name}: longest round trip {max}, goal 1.5 times the median {median}");
    goals.push(Goal { met: max.saturating_mul(2) <= median.saturating_mul(3), what });
    let exits = row.exits_per_interrupt.values().sum::<f64>();
    let goal = EXITS_GOAL
        + match guest.replaced {
            Replaced::Never => 0.0,
            // The call; and the interrupt that is sent again.
            Replaced::Between => 1.0,
            Replaced::InFlight => 2.0,
        };
    let what = format!("{name}: {exits:.2} exits, goal {goal:.2}");
    goals.push(Goal { met: exits <= goal, what });
    if let Some(accesses) = row.accesses {
        let Accesses { ioapic_reads_per_interrupt: reads, ioapic_writes_per_interrupt: writes, .. } =
            accesses;
        let (kicks, config) = (accesses.kicks_per_interrupt, accesses.config_accesses_per_interrupt);
        let (most_writes, most_config) = match guest.mask {
            Mask::Line => (IOAPIC_WRITES_GOAL, 0.0),
            Mask::Function => (0.0, f64::from(CONFIG_GOAL + guest.sources.saturating_sub(1))),
        };
        let what = format!(
            "{name}: {kicks:.2} kicks and {reads:.2} IO-APIC reads, goal 0; {writes:.2} writes, goal {most_writes}; \
             {config:.2} configuration accesses, goal {most_config}"
        );
        let met = kicks <= 0.0 && reads <= 0.0 && writes <= most_writes && config <= most_config;
        goals.push(Goal { met, what });
    }
    goals
}

/// With many lines in use an interrupt may cost a fiftieth more than with one.
pub(super) fn goals_of_many_lines(rows: &[Row]) -> impl Iterator<Item = Goal> {
    let one = |many: &Row| {
        let guest = Guest { lines: 1, ..many.guest };
        rows.iter().find(|row| row.host == many.host && row.guest == guest)
    };
    rows.iter().filter(|row| row.guest.lines > 1).filter_map(move |many| {
        let (most, least) = (many.times.round_trip.median, one(many)?.times.round_trip.median);
        let name = many.guest.name();
        let what = format!("{name}: round trip {most}, goal 1.02 times {least} with one line in use");
        Some(Goal { met: most.saturating_mul(50) <= least.saturating_mul(51), what })
    })
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::row;
    use super::*;

    #[test]
    fn goals_are_judged() {
        let met = |row: &Row| goals(row).iter().filter(|goal| goal.met).count();
        assert_eq!(met(&row(1000, 1500, &[("interrupt", 1.0), ("msr", 1.0)])), 4);
        assert_eq!(met(&row(1001, 1502, &[("interrupt", 1.0), ("msr", 1.5)])), 1);
        assert_eq!(met(&row(500, 500, &[("hlt", 1.0), ("msr", 1.0)])), 4);
        assert_eq!(met(&row(500, 500, &[("hlt", 1.0), ("interrupt", 1.0), ("msr", 1.0)])), 3);
    }

    #[test]
    fn accesses_are_judged_by_what_silences_the_line_and_who_shares_it() {
        let met = |mask, sources, ioapic_writes, config| {
            let mut row = row(900, 901, &[("interrupt", 1.0), ("msr", 1.0)]);
            (row.guest.mask, row.guest.sources) = (mask, sources);
            let accesses = row.accesses.as_mut().unwrap();
            accesses.ioapic_writes_per_interrupt = ioapic_writes;
            accesses.config_accesses_per_interrupt = config;
            goals(&row).iter().all(|goal| goal.met)
        };
        assert!(met(Mask::Line, 1, 4.0, 0.0) && met(Mask::Line, 8, 4.0, 0.0));
        assert!(!met(Mask::Line, 1, 4.1, 0.0) && !met(Mask::Line, 8, 4.0, 0.1));
        assert!(met(Mask::Function, 1, 0.0, 4.0) && met(Mask::Function, 8, 0.0, 11.0));
        assert!(!met(Mask::Function, 1, 0.0, 4.1) && !met(Mask::Function, 8, 0.0, 11.1));
        assert!(!met(Mask::Function, 8, 0.1, 11.0));
    }

    #[test]
    fn many_lines_may_cost_a_fiftieth_more() {
        let many = |median| {
            let mut row = row(median, median, &[]);
            row.guest.lines = 8;
            row
        };
        let met = |rows: &[Row]| goals_of_many_lines(rows).map(|goal| goal.met).collect::<Vec<_>>();
        assert_eq!(met(&[row(1000, 1000, &[]), many(1020)]), [true]);
        assert_eq!(met(&[many(1021), row(1000, 1000, &[])]), [false]);
        assert!(met(&[many(1021)]).is_empty(), "there is nothing to compare it with");
    }
}
