//! The hypervisor's lines on the console, read in one place: records, ledgers and statistics.
//!
//! The reader is strict: a line is taken whole or not at all, so that what is changed in `src/report.rs` and not here
//! shows in a test, not as a zero in a table. Guests cannot forge these lines, theirs come with a prefix.

use std::collections::BTreeMap;

use levelhead::intx::MaskReasons;
use serde::Serialize;

/// What a line says that is more than text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Something is wrong, or over.
    Record(Record),
    /// A device's closing books.
    Ledger(Ledger),
    /// Why a device's source is silenced, and what happened to it last.
    Flight(Flight),
    /// What a partition cost.
    Stats(Stats),
    /// The heading of the table of lines, the last thing before guests run.
    GuestsRun,
}

/// `ERROR Party/code: where: what; to do: remedy`, see `docs/messages.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// `INFO`, `WARN` or `ERROR`.
    pub level: String,
    /// Who is at fault: `Guest`, `Config`, `Firmware`, `Device` or `Bug`.
    pub party: String,
    /// The catalogue's code.
    pub code: String,
    /// A key, a partition, a device, an address.
    #[serde(rename = "where")]
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to do; nothing is to be done about information.
    pub remedy: Option<String>,
}

/// A device and what became of its interrupts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// The function, as `00:03.0`.
    pub device: String,
    /// The partition's name.
    pub partition: String,
    /// Its line; a device without INTx has none.
    #[serde(flatten)]
    pub books: Option<Books>,
}

/// Every assertion of a line, booked once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Books {
    /// The line.
    pub gsi: u32,
    /// Where the line is silenced.
    pub gate: String,
    /// How often the line's permanent handler was installed.
    pub installed: u64,
    /// How often it was removed.
    pub removed: u64,
    /// Whether the hypervisor found them balanced.
    pub balanced: bool,
    /// Assertions taken, by origin.
    pub accepted: Accepted,
    /// Those that reached a notifier.
    pub delivered: u64,
    /// Those that were one with another.
    pub coalesced: u64,
    /// Those that were to be silent.
    pub suppressed: u64,
    /// Those that wait.
    pub pending: u64,
    /// Deliveries by how they ended.
    pub completed: Completed,
    /// Deliveries that have not ended.
    pub in_service: u64,
}

/// Where assertions came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// The wire.
    pub wire: u64,
    /// A guest's own trigger.
    pub loopback: u64,
    /// A level that was still there after an unmask.
    pub replay: u64,
}

/// How deliveries ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Completed {
    /// By the guest's EOI.
    pub eoi: u64,
    /// By force.
    pub forced: u64,
    /// By a reset.
    pub reset: u64,
    /// By a new notifier.
    pub handover: u64,
}

/// What the recorder of a line knows of a source. Times are ticks of the time stamp counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flight {
    /// The function, as `00:03.0`.
    pub device: String,
    /// The partition's name.
    pub partition: String,
    /// Its line.
    pub gsi: u32,
    /// When this was printed.
    pub at: u64,
    /// Why it is silenced.
    pub silenced: Vec<Silenced>,
    /// What happened last, the oldest first.
    pub moments: Vec<Moment>,
}

/// A mask reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Silenced {
    /// Its name.
    pub reason: String,
    /// Since when.
    pub since: u64,
    /// By whom: `device`, `hypervisor`, or `partition` and its number.
    pub by: String,
}

/// Something that happened to a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// When.
    pub at: u64,
    /// What it was, in one word.
    pub what: String,
    /// Who made it happen.
    pub by: String,
    /// The mask reasons afterwards.
    pub reasons: Vec<String>,
}

/// Counters by their names, such as `exits.msr`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The partition's name.
    pub partition: String,
    /// Every counter of the line.
    pub counters: BTreeMap<String, u64>,
}

impl Stats {
    /// The counters whose names begin with `prefix` and a dot, without it.
    pub fn group(&self, prefix: &str) -> BTreeMap<String, u64> {
        let counters = self.counters.iter().filter_map(|(name, count)| {
            let name = name.strip_prefix(prefix)?.strip_prefix('.')?;
            Some((name.to_owned(), *count))
        });
        counters.collect()
    }
}

/// Reads a line. Nothing if it is none of these, or not exactly.
pub fn read(line: &str) -> Option<Line> {
    if let Some(rest) = line.strip_prefix("ledger ") {
        return ledger(rest).map(Line::Ledger);
    }
    if let Some(rest) = line.strip_prefix("flight ") {
        return flight(rest).map(Line::Flight);
    }
    if let Some(rest) = line.strip_prefix("stats partition=") {
        return stats(rest).map(Line::Stats);
    }
    if line.starts_with("  device   partition ") {
        return Some(Line::GuestsRun);
    }
    record(line).map(Line::Record)
}

fn record(line: &str) -> Option<Record> {
    let (level, rest) = line.split_once(' ')?;
    if !["INFO", "WARN", "ERROR"].contains(&level) {
        return None;
    }
    let (head, rest) = rest.trim_start().split_once(": ")?;
    let (party, code) = head.split_once('/')?;
    let known = ["Guest", "Config", "Firmware", "Device", "Bug"].contains(&party);
    let spelled =
        !code.is_empty() && code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if !known || !spelled {
        return None;
    }
    let (place, rest) = rest.split_once(": ")?;
    let (what, remedy) = match rest.rsplit_once("; to do: ") {
        Some((what, remedy)) => (what, Some(remedy.to_owned())),
        None if level == "INFO" => (rest, None),
        None => return None,
    };
    let [level, party, code, place, what] = [level, party, code, place, what].map(str::to_owned);
    Some(Record { level, party, code, place, what, remedy })
}

/// Reads `NAME exits.interrupt=1 ...`.
fn stats(rest: &str) -> Option<Stats> {
    let mut words = rest.split(' ');
    let partition = words.next()?.to_owned();
    let mut counters = BTreeMap::new();
    for word in words {
        let (name, count) = word.split_once('=')?;
        if counters.insert(name.to_owned(), count.parse().ok()?).is_some() {
            return None;
        }
    }
    (!counters.is_empty()).then_some(Stats { partition, counters })
}

/// What is left of a line.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    /// What stands before the next `end`, which is passed over.
    fn until(&mut self, end: &str) -> Option<&'a str> {
        let (before, after) = self.0.split_once(end)?;
        self.0 = after;
        Some(before)
    }

    /// A number before the next `end`.
    fn number(&mut self, end: &str) -> Option<u64> {
        self.until(end)?.parse().ok()
    }
}

/// Reads `00:03.0 (demo) GSI 23: accepted wire 1 ... : balanced; gate RTE mask, handler installed 1x, removed 0x`, as
/// `src/report.rs` writes it.
fn ledger(rest: &str) -> Option<Ledger> {
    let mut rest = Rest(rest);
    let device = rest.until(" (")?.to_owned();
    let partition = rest.until(")")?.to_owned();
    if rest.0 == ": no INTx" {
        return Some(Ledger { device, partition, books: None });
    }
    let nothing = |text: &str| text.is_empty().then_some(());
    nothing(rest.until(" GSI ")?)?;
    let gsi = rest.number(": accepted wire ")?.try_into().ok()?;
    let accepted = Accepted {
        wire: rest.number(" loopback ")?,
        loopback: rest.number(" replay ")?,
        replay: rest.number(" = delivered ")?,
    };
    let delivered = rest.number(" + coalesced ")?;
    let coalesced = rest.number(" + suppressed ")?;
    let suppressed = rest.number(" + pending ")?;
    let pending = rest.number("; delivered = eoi ")?;
    let completed = Completed {
        eoi: rest.number(" + forced ")?,
        forced: rest.number(" + reset ")?,
        reset: rest.number(" + handover ")?,
        handover: rest.number(" + in service ")?,
    };
    let in_service = rest.number(": ")?;
    let balanced = match rest.until("; gate ")? {
        "balanced" => true,
        "NOT BALANCED" => false,
        _ => return None,
    };
    let gate = rest.until(", handler installed ")?.to_owned();
    let installed = rest.number("x, removed ")?;
    let removed = rest.0.strip_suffix('x')?.parse().ok()?;
    let books = Books {
        gsi,
        gate,
        installed,
        removed,
        balanced,
        accepted,
        delivered,
        coalesced,
        suppressed,
        pending,
        completed,
        in_service,
    };
    Some(Ledger { device, partition, books: Some(books) })
}

/// Reads `00:03.0 (demo) GSI 23 at 90: RESET since 80 by hypervisor; 70 arrived by device IN_SERVICE, ...`.
fn flight(rest: &str) -> Option<Flight> {
    let mut rest = Rest(rest);
    let device = rest.until(" (")?.to_owned();
    let partition = rest.until(") GSI ")?.to_owned();
    let gsi = rest.number(" at ")?.try_into().ok()?;
    let at = rest.number(": ")?;
    let silenced = match rest.until("; ")? {
        "open" => Vec::new(),
        reasons => reasons.split(" + ").map(silenced).collect::<Option<_>>()?,
    };
    let moments = rest.0.split(", ").map(moment).collect::<Option<_>>()?;
    Some(Flight { device, partition, gsi, at, silenced, moments })
}

fn silenced(text: &str) -> Option<Silenced> {
    let mut rest = Rest(text);
    let reason = reason(rest.until(" since ")?)?;
    let since = rest.number(" by ")?;
    Some(Silenced { reason, since, by: actor(rest.0)? })
}

fn moment(text: &str) -> Option<Moment> {
    let mut rest = Rest(text);
    let at = rest.number(" ")?;
    let what = rest.until(" by ")?.to_owned();
    let (by, reasons) = rest.0.rsplit_once(' ')?;
    let reasons = match reasons {
        "open" => Vec::new(),
        reasons => reasons.split('+').map(reason).collect::<Option<_>>()?,
    };
    Some(Moment { at, what, by: actor(by)?, reasons })
}

fn reason(name: &str) -> Option<String> {
    MaskReasons::from_name(name).map(|_| name.to_owned())
}

fn actor(text: &str) -> Option<String> {
    let partition = |number: &str| number.parse::<u8>().is_ok();
    let known =
        ["device", "hypervisor"].contains(&text) || text.strip_prefix("partition ").is_some_and(partition);
    known.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEDGER: &str = "ledger 00:03.0 (demo) GSI 23: accepted wire 12722 loopback 1 replay 2 = delivered 12721 + \
                          coalesced 3 + suppressed 1 + pending 0; delivered = eoi 12720 + forced 0 + reset 1 + handover \
                          0 + in service 0: balanced; gate RTE mask, handler installed 1x, removed 0x";
    const STATS: &str = "stats partition=demo exits.interrupt=12 exits.msr=3 ioapic.reads=0 interrupts=12";

    const FLIGHT: &str = "flight 00:03.0 (demo) GSI 23 at 900: NO_NOTIFIER since 810 by hypervisor + OPERATOR since 800 by \
                          partition 1; 700 arrived by device IN_SERVICE, 750 completed by partition 0 open, 800 masked by \
                          partition 1 OPERATOR, 810 replaced by hypervisor NO_NOTIFIER+OPERATOR";

    #[test]
    fn a_flight_is_taken_apart() {
        let Some(Line::Flight(flight)) = read(FLIGHT) else { panic!("no flight") };
        let since: Vec<_> =
            flight.silenced.iter().map(|silenced| (silenced.since, silenced.by.as_str())).collect();
        assert_eq!(
            (flight.gsi, flight.at, since),
            (23, 900, vec![(810, "hypervisor"), (800, "partition 1")])
        );
        let [arrived, completed, _, replaced] = &flight.moments[..] else { panic!("{:?}", flight.moments) };
        assert_eq!((arrived.at, arrived.what.as_str(), arrived.by.as_str()), (700, "arrived", "device"));
        assert!(completed.reasons.is_empty());
        assert_eq!(replaced.reasons, ["NO_NOTIFIER", "OPERATOR"]);
        let open =
            FLIGHT.replace("NO_NOTIFIER since 810 by hypervisor + OPERATOR since 800 by partition 1", "open");
        let Some(Line::Flight(open)) = read(&open) else { panic!("no flight") };
        assert!(open.silenced.is_empty());
        for wrong in [FLIGHT.replace("IN_SERVICE", "AT_HOME"), FLIGHT.replace("by device", "by nobody")] {
            assert_eq!(read(&wrong), None);
        }
    }

    #[test]
    fn a_record_is_taken_apart() {
        let line = "ERROR Config/vpin-range: partition[0].device[1].vpin: virtual pin 5 is taken: twice; to do: take 6";
        let Some(Line::Record(record)) = read(line) else { panic!("no record") };
        assert_eq!(
            serde_json::to_value(record).unwrap(),
            serde_json::json!({
                "level": "ERROR", "party": "Config", "code": "vpin-range", "where": "partition[0].device[1].vpin",
                "what": "virtual pin 5 is taken: twice", "remedy": "take 6",
            })
        );
        let line = "INFO  Guest/reported-success: partition demo: the guest reported success (code 0x10)";
        let Some(Line::Record(record)) = read(line) else { panic!("no record") };
        assert_eq!((record.place.as_str(), record.remedy), ("partition demo", None));
    }

    #[test]
    fn every_record_of_the_catalogue_is_read() {
        use levelhead::message::{Message, Record as Written};
        for message in Message::ALL {
            let line =
                Written { message: *message, place: &"somewhere", what: None, remedy: None }.to_string();
            let Some(Line::Record(record)) = read(&line) else { panic!("{line}") };
            assert_eq!(record.party, message.party().to_string());
            assert_eq!((record.code.as_str(), record.what.as_str()), (message.code(), message.meaning()));
        }
    }

    #[test]
    fn ledgers_and_statistics_are_read_whole() {
        let Some(Line::Ledger(ledger)) = read(LEDGER) else { panic!("no ledger") };
        let books = ledger.books.unwrap();
        assert_eq!((ledger.device.as_str(), ledger.partition.as_str(), books.gsi), ("00:03.0", "demo", 23));
        assert_eq!(books.accepted, Accepted { wire: 12722, loopback: 1, replay: 2 });
        assert_eq!(books.completed, Completed { eoi: 12720, forced: 0, reset: 1, handover: 0 });
        assert_eq!((books.delivered, books.coalesced, books.suppressed, books.pending), (12721, 3, 1, 0));
        assert_eq!((books.gate.as_str(), books.installed, books.removed), ("RTE mask", 1, 0));
        assert!(books.balanced && books.in_service == 0);
        let uneven = read(&LEDGER.replace(": balanced", ": NOT BALANCED"));
        assert!(matches!(
            uneven,
            Some(Line::Ledger(Ledger { books: Some(Books { balanced: false, .. }), .. }))
        ));
        let none = Ledger { device: "00:04.0".into(), partition: "demo".into(), books: None };
        assert_eq!(read("ledger 00:04.0 (demo): no INTx"), Some(Line::Ledger(none)));

        let Some(Line::Stats(stats)) = read(STATS) else { panic!("no statistics") };
        assert_eq!(stats.partition, "demo");
        assert_eq!(stats.counters.get("interrupts"), Some(&12));
        assert_eq!(stats.group("exits"), BTreeMap::from([("interrupt".into(), 12), ("msr".into(), 3)]));
    }

    #[test]
    fn a_line_is_taken_whole_or_not_at_all() {
        for whole in [LEDGER, STATS] {
            for (end, _) in whole.char_indices() {
                // Statistics may end after any counter, that is in their nature.
                let cut = &whole[..end];
                let fewer = whole == STATS && cut.ends_with(|c: char| c.is_ascii_digit());
                assert_eq!(read(cut).is_some(), fewer, "{cut}");
            }
        }
        for other in [
            "",
            "[demo] ledger 00:03.0 (demo): no INTx",
            "ledger 00:03.0 (demo) GSI x: accepted",
            "stats partition=demo a=1 a=2",
            "stats partition=demo a=-1",
            "INFO  partition::assign: 00:03.0: assigned to demo",
            "ERROR Nobody/vpin-range: a: b; to do: c",
            "ERROR Guest/Vpin: a: b; to do: c",
            "ERROR Guest/triple-fault: a: without a remedy",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
