//! What is known of a run at its end: from the hypervisor's last lines, and where these are missing, from what was seen.

use std::collections::BTreeMap;
use std::time::Duration;

use levelhead::counters::{Seen, Stage};
use serde::Serialize;

use crate::console::table::{Align, Cell, Table};
use crate::console::{BAD, Console, FAINT, GOOD, STRONG};
use crate::log::{Flight, Ledger, Line, Record, Stats};
use crate::process::End;
use crate::qemu::{Machine, Outcome};

/// Everything that was read of a run.
#[derive(Debug)]
pub struct Summary {
    records: Vec<Record>,
    partitions: Vec<Partition>,
    lines: Vec<Ledger>,
    flights: Vec<Flight>,
    guests_run: Option<Duration>,
    heard: bool,
}

/// One partition, for machines. What is not known is `null` or empty.
#[derive(Clone, Debug, Default, Serialize)]
struct Partition {
    name: String,
    /// The record of its end, as `Party/code`.
    end: Option<String>,
    /// Whether that was a success.
    success: Option<bool>,
    /// From the start of the guests to its end.
    wall_s: Option<f64>,
    /// As counted at the end, or as seen last.
    interrupts: Option<u64>,
    exits: BTreeMap<String, u64>,
    exits_per_interrupt: Option<f64>,
    /// How often another CPU interrupted one of its own to make it look.
    kicks: Option<u64>,
    /// Of the whole machine: accesses to IO-APICs.
    ioapic: BTreeMap<String, u64>,
    /// Of the whole machine: accesses to configuration space.
    config: BTreeMap<String, u64>,
    /// Whether the books of all its lines balance.
    balanced: Option<bool>,
}

impl Summary {
    /// Nothing is known yet.
    pub fn new(names: &[String]) -> Self {
        let partition = |name: &String| Partition { name: name.clone(), ..Partition::default() };
        let partitions = names.iter().map(partition).collect();
        Self {
            records: Vec::new(),
            partitions,
            lines: Vec::new(),
            flights: Vec::new(),
            guests_run: None,
            heard: false,
        }
    }

    /// Whether the machine has said anything.
    pub fn heard(&self) -> bool {
        self.heard
    }

    fn partition(&mut self, name: &str) -> Option<&mut Partition> {
        self.partitions.iter_mut().find(|partition| partition.name == name)
    }

    /// Takes a line of the console that came after `elapsed`, as far as it was understood.
    pub fn take(&mut self, elapsed: Duration, line: Option<Line>) {
        self.heard = true;
        match line {
            Some(Line::GuestsRun) => self.guests_run = Some(elapsed),
            Some(Line::Record(record)) => self.record(elapsed, record),
            Some(Line::Ledger(ledger)) => self.ledger(ledger),
            Some(Line::Flight(flight)) => self.flights.push(flight),
            Some(Line::Stats(stats)) => self.stats(&stats),
            None => {}
        }
    }

    fn record(&mut self, elapsed: Duration, record: Record) {
        let since = self.guests_run;
        if let Some(partition) = record.place.strip_prefix("partition ").and_then(|name| self.partition(name))
            && record.level != "WARN"
        {
            partition.end = Some(format!("{}/{}", record.party, record.code));
            partition.success = Some(record.level == "INFO");
            partition.wall_s = since.map(|since| elapsed.saturating_sub(since).as_secs_f64());
        }
        self.records.push(record);
    }

    fn ledger(&mut self, ledger: Ledger) {
        let balanced = ledger.books.as_ref().is_none_or(|books| books.balanced);
        if let Some(partition) = self.partition(&ledger.partition) {
            partition.balanced = Some(partition.balanced.unwrap_or(true) && balanced);
        }
        self.lines.push(ledger);
    }

    fn stats(&mut self, stats: &Stats) {
        let Some(partition) = self.partition(&stats.partition) else { return };
        partition.exits = stats.group("exits");
        partition.ioapic = stats.group("ioapic");
        partition.config = stats.group("config");
        partition.interrupts = stats.counters.get("interrupts").copied();
        partition.kicks = stats.counters.get("kicks").copied();
        let exits = partition.exits.values().sum::<u64>();
        let interrupts = partition.interrupts.filter(|interrupts| *interrupts > 0);
        partition.exits_per_interrupt = interrupts.map(|interrupts| exits as f64 / interrupts as f64);
    }

    /// Takes what was seen of the running machine: what is known if it does not come to its last lines.
    pub fn look(&mut self, seen: &[Seen]) {
        for (partition, seen) in self.partitions.iter_mut().zip(seen) {
            if seen.stage != Stage::Absent && partition.exits.is_empty() {
                partition.interrupts = Some(seen.interrupts);
            }
        }
    }

    /// Prints the tables, if the machine came so far that there is something in them.
    pub fn show(&self, console: &mut Console) {
        let known = |partition: &Partition| partition.end.is_some() || partition.interrupts.is_some();
        if !self.partitions.iter().any(known) {
            return;
        }
        console.line("");
        console.table(&self.partition_table());
        if !self.lines.is_empty() {
            console.line("");
            console.table(&self.line_table());
        }
        if self.partitions.iter().any(|partition| partition.success != Some(true)) && !self.flights.is_empty()
        {
            console.line("");
            console.table(&self.flight_table());
        }
        console.line("");
    }

    fn partition_table(&self) -> Table {
        let mut table = Table::new([
            ("partition", Align::Left),
            ("end", Align::Left),
            ("wall", Align::Right),
            ("interrupts", Align::Right),
            ("exits", Align::Right),
            ("per intr.", Align::Right),
            ("books", Align::Left),
            ("by kind", Align::Left),
        ]);
        for partition in &self.partitions {
            let end = match (&partition.end, partition.success) {
                (Some(end), Some(true)) => Cell::painted(GOOD, end),
                (Some(end), _) => Cell::painted(BAD, end),
                (None, _) => Cell::painted(BAD, "none"),
            };
            let kinds = partition.exits.iter().filter(|(_, count)| **count > 0);
            let kinds: Vec<String> = kinds.map(|(kind, count)| format!("{kind} {count}")).collect();
            let exits =
                (!partition.exits.is_empty()).then(|| partition.exits.values().sum::<u64>().to_string());
            table.row([
                Cell::painted(STRONG, &partition.name),
                end,
                or_dash(partition.wall_s.map(|wall| format!("{wall:.1} s"))),
                or_dash(partition.interrupts.map(|count| count.to_string())),
                or_dash(exits),
                or_dash(partition.exits_per_interrupt.map(|ratio| format!("{ratio:.2}"))),
                books(partition.balanced),
                Cell::painted(FAINT, kinds.join(", ")),
            ]);
        }
        table
    }

    fn line_table(&self) -> Table {
        let mut table = Table::new([
            ("device", Align::Left),
            ("partition", Align::Left),
            ("line", Align::Left),
            ("gate", Align::Left),
            ("books", Align::Left),
            ("accepted", Align::Right),
            ("delivered", Align::Right),
            ("coalesced", Align::Right),
            ("suppressed", Align::Right),
            ("pending", Align::Right),
            ("installed", Align::Right),
            ("removed", Align::Right),
        ]);
        for Ledger { device, partition, books: of_line } in &self.lines {
            let names = [Cell::painted(STRONG, device), Cell::from(partition)];
            let Some(line) = of_line else {
                table.row(names.into_iter().chain([Cell::painted(FAINT, "no INTx")]));
                continue;
            };
            let accepted = line.accepted.wire.saturating_add(line.accepted.loopback);
            let counts = [
                accepted.saturating_add(line.accepted.replay),
                line.delivered,
                line.coalesced,
                line.suppressed,
                line.pending,
                line.installed,
                line.removed,
            ];
            let gsi = Cell::from(format!("GSI {}", line.gsi));
            let places = [gsi, Cell::from(&line.gate), books(Some(line.balanced))];
            let counts = counts.map(|count| Cell::from(count.to_string()));
            table.row(names.into_iter().chain(places).chain(counts));
        }
        table
    }

    /// What happened to each source last, the latest first: shown when something went wrong.
    fn flight_table(&self) -> Table {
        let mut table = Table::new([
            ("device", Align::Left),
            ("partition", Align::Left),
            ("ticks ago", Align::Right),
            ("what", Align::Left),
            ("by", Align::Left),
            ("silenced for", Align::Left),
        ]);
        for flight in &self.flights {
            for moment in flight.moments.iter().rev() {
                let reasons = moment.reasons.join("+");
                table.row([
                    Cell::painted(STRONG, &flight.device),
                    Cell::from(&flight.partition),
                    Cell::from(flight.at.saturating_sub(moment.at).to_string()),
                    Cell::from(&moment.what),
                    Cell::from(&moment.by),
                    if reasons.is_empty() { Cell::painted(FAINT, "open") } else { Cell::from(reasons) },
                ]);
            }
        }
        table
    }
}

fn or_dash(text: Option<String>) -> Cell {
    text.map_or_else(|| Cell::painted(FAINT, "-"), Cell::from)
}

fn books(balanced: Option<bool>) -> Cell {
    match balanced {
        Some(true) => Cell::painted(GOOD, "balanced"),
        Some(false) => Cell::painted(BAD, "NOT BALANCED"),
        None => Cell::painted(FAINT, "-"),
    }
}

/// A run, for machines.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    config: &'a str,
    machine: Emulated<'a>,
    /// `PASS` or `FAIL`.
    verdict: &'static str,
    /// Why it failed.
    why: Option<&'a str>,
    /// The hypervisor's own last word.
    hypervisor: Option<&'a str>,
    /// QEMU's exit status, if it came to one.
    status: Option<i32>,
    elapsed_s: f64,
    records: &'a [Record],
    partitions: &'a [Partition],
    lines: &'a [Ledger],
    flights: &'a [Flight],
    /// What QEMU itself said.
    complaints: &'a [String],
}

/// The emulated machine, in QEMU's words.
#[derive(Debug, Serialize)]
struct Emulated<'a> {
    qemu: String,
    machine: &'a str,
    cpu: &'a str,
    smp: u32,
    memory: &'a str,
    append: &'a str,
    words: &'a [String],
}

impl<'a> Report<'a> {
    /// Puts together what is known.
    pub fn new(
        config: &'a str,
        machine: &'a Machine,
        outcome: &'a Outcome,
        verdict: &'a Result<(), String>,
        summary: &'a Summary,
    ) -> Self {
        let status = match outcome.end {
            End::Exited(status) => Some(status),
            End::Signalled(_) | End::TimedOut(_) | End::Flooded | End::Stopped | End::Interrupted(_) => None,
        };
        Self {
            config,
            machine: Emulated {
                qemu: machine.qemu.display().to_string(),
                machine: &machine.machine,
                cpu: &machine.cpu,
                smp: machine.smp,
                memory: &machine.memory,
                append: &machine.append,
                words: &machine.words,
            },
            verdict: if verdict.is_ok() { "PASS" } else { "FAIL" },
            why: verdict.as_ref().err().map(String::as_str),
            hypervisor: outcome.verdict(),
            status,
            elapsed_s: outcome.took.as_secs_f64(),
            records: &summary.records,
            partitions: &summary.partitions,
            lines: &summary.lines,
            flights: &summary.flights,
            complaints: &outcome.complaints,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::json;
    use crate::console::tests::Paper;
    use crate::log;

    const CONSOLE: [&str; 9] = [
        "INFO  Levelhead 0.1.0",
        "  device   partition        line     vector  gate      notifier               handler",
        "[demo] echo: PASS",
        "INFO  Guest/reported-success: partition demo: the guest reported success (code 0x10)",
        "ledger 00:03.0 (demo) GSI 23: accepted wire 4 loopback 1 replay 1 = delivered 5 + coalesced 0 + suppressed 1 + \
         pending 0; delivered = eoi 5 + forced 0 + reset 0 + handover 0 + in service 0: balanced; gate RTE mask, handler \
         installed 1x, removed 0x",
        "flight 00:03.0 (demo) GSI 23 at 900: RESET since 890 by hypervisor; 800 arrived by device IN_SERVICE, 890 masked by \
         hypervisor RESET",
        "ledger 00:04.0 (demo): no INTx",
        "stats partition=demo exits.interrupt=4 exits.msr=4 exits.hlt=0 kicks=1 ioapic.reads=0 ioapic.writes=8 \
         config.accesses=64 interrupts=4",
        "levelhead: verdict PASS",
    ];

    fn summary(console: &[&str]) -> Summary {
        let mut summary = Summary::new(&["demo".to_owned()]);
        for (index, line) in console.iter().enumerate() {
            let elapsed = Duration::from_millis(500 * index as u64);
            summary.take(elapsed, log::read(line));
        }
        summary
    }

    #[test]
    fn the_tables_say_what_each_partition_and_line_came_to() {
        let paper = Paper::default();
        let mut console = Console::plain(paper.clone());
        summary(&CONSOLE).show(&mut console);
        assert_eq!(
            paper.text().lines().collect::<Vec<_>>(),
            [
                "",
                "partition  end                      wall  interrupts  exits  per intr.  books     by kind",
                "demo       Guest/reported-success  1.0 s           4      8       2.00  balanced  interrupt 4, msr 4",
                "",
                "device   partition  line     gate      books     accepted  delivered  coalesced  suppressed  pending  installed  removed",
                "00:03.0  demo       GSI 23   RTE mask  balanced         6          5          0           1        0          1        0",
                "00:04.0  demo       no INTx",
                "",
            ]
        );
    }

    #[test]
    fn a_run_cut_short_shows_what_was_seen_last() {
        let mut cut = summary(&CONSOLE[..3]);
        cut.look(&[Seen { stage: Stage::Running, interrupts: 77 }]);
        let paper = Paper::default();
        cut.show(&mut Console::plain(paper.clone()));
        let text = paper.text();
        let row: Vec<&str> = text.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(row, ["demo", "none", "-", "77", "-", "-", "-"]);
        // Nothing at all is no table.
        let paper = Paper::default();
        summary(&CONSOLE[..1]).show(&mut Console::plain(paper.clone()));
        assert_eq!(paper.text(), "");
    }

    #[test]
    fn n19_what_went_wrong_shows_what_happened_last() {
        let failed =
            CONSOLE.map(|line| line.replace("INFO  Guest/reported-success", "ERROR Guest/reported-failure"));
        let failed = failed.map(|line| line.replace("(code 0x10)", "(code 0x10); to do: see"));
        let paper = Paper::default();
        summary(&failed.each_ref().map(String::as_str)).show(&mut Console::plain(paper.clone()));
        let text = paper.text();
        let rows: Vec<Vec<&str>> =
            text.lines().rev().skip(1).take(2).map(|row| row.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["00:03.0", "demo", "100", "arrived", "device", "IN_SERVICE"]);
        assert_eq!(rows[1], ["00:03.0", "demo", "10", "masked", "hypervisor", "RESET"]);
    }

    #[test]
    fn a_look_does_not_undo_what_was_counted() {
        let mut whole = summary(&CONSOLE);
        whole.look(&[Seen { stage: Stage::Ended, interrupts: 3 }]);
        assert_eq!(whole.partitions[0].interrupts, Some(4));
    }

    #[test]
    fn the_json_is_as_documented() {
        let mut machine = Machine::new("/usr/bin/qemu-system-x86_64".into(), "k".into());
        machine.append = "log=info exit=0xf4".into();
        machine.words = vec!["-device".into(), "edu,addr=3".into()];
        let outcome = Outcome {
            end: End::Exited(33),
            console: CONSOLE.map(str::to_owned).to_vec(),
            complaints: Vec::new(),
            took: Duration::from_millis(2500),
        };
        let (summary, verdict) = (summary(&CONSOLE), outcome.check(33, true));
        let report = Report::new("configs/demo.toml", &machine, &outcome, &verdict, &summary);
        assert_eq!(json::tests::printed("run", &report), json::tests::example("run"));
    }
}
