//! One row of the result: what a guest measured and the hypervisor counted, for people and for machines.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::guest::{Guest, Replaced};
use crate::console::Console;
use crate::console::table::{Align, Cell, Table};

/// Least, middle and most over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Spread {
    pub(super) min: u64,
    pub(super) median: u64,
    pub(super) max: u64,
}

impl Spread {
    /// Of what was counted in each round. Of none, zero.
    pub(super) fn of(mut counts: Vec<u64>) -> Self {
        counts.sort_unstable();
        let at = |index: usize| counts.get(index).copied().unwrap_or(0);
        Self { min: at(0), median: at(counts.len() / 2), max: at(counts.len().saturating_sub(1)) }
    }

    /// Whether every round is like every other.
    pub(super) fn is_one(self) -> bool {
        self.min == self.max
    }

    /// One number where it is the same in every round.
    pub(super) fn short(self) -> String {
        if self.is_one() { self.median.to_string() } else { self.to_string() }
    }

    /// Reads `min,median,max`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(',').map(|number| number.parse().ok());
        let spread = Self { min: numbers.next()??, median: numbers.next()??, max: numbers.next()?? };
        numbers.next().is_none().then_some(spread)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} / {} / {}", self.min, self.median, self.max))
    }
}

/// One row of the result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// `bare` or `levelhead`.
    pub(super) host: &'static str,
    #[serde(flatten)]
    pub(super) guest: Guest,
    #[serde(flatten)]
    pub(super) times: Times,
    /// VM exits by reason; none on the bare machine.
    pub(super) exits_per_interrupt: BTreeMap<String, f64>,
    #[serde(flatten)]
    pub(super) accesses: Option<Accesses>,
}

/// What the hypervisor touches of the hardware, local APICs aside but for kicks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Accesses {
    /// Interrupts to the CPUs of the guest's partition that make them look.
    pub(super) kicks_per_interrupt: f64,
    pub(super) ioapic_reads_per_interrupt: f64,
    pub(super) ioapic_writes_per_interrupt: f64,
    pub(super) config_accesses_per_interrupt: f64,
    /// Of these; what is not a read is a write of DisINTx.
    pub(super) config_reads_per_interrupt: f64,
}

/// The times the guest measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Times {
    /// Instructions from the access that raises the line to the first one of the ISR.
    pub(super) raise_to_isr: Spread,
    /// Instructions of the write that is the EOI.
    pub(super) eoi: Spread,
    /// Instructions from the raise until the interrupted program goes on.
    pub(super) round_trip: Spread,
    /// Instructions of the hypercall that replaces the notifier, if the guest makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replacement: Option<Spread>,
}

impl Times {
    /// Reads `apic=xapic vcpu=busy raise_to_isr=7,7,7 eoi=5,5,5 round_trip=29,29,29`, in any order, if it is about `guest`.
    pub(super) fn parse(fields: &str, guest: Guest) -> Option<Self> {
        let fields: BTreeMap<&str, &str> =
            fields.split_whitespace().filter_map(|field| field.split_once('=')).collect();
        let same =
            fields.get("apic") == Some(&guest.apic.name()) && fields.get("vcpu") == Some(&guest.vcpu.name());
        let spread = |key| fields.get(key).and_then(|text| Spread::parse(text));
        let times = Self {
            raise_to_isr: spread("raise_to_isr")?,
            eoi: spread("eoi")?,
            round_trip: spread("round_trip")?,
            replacement: spread("replacement"),
        };
        let same = same && times.replacement.is_some() == (guest.replaced != Replaced::Never);
        same.then_some(times)
    }
}

/// The result for people.
pub(super) fn show(console: &mut Console, rows: &[Row]) {
    let texts = ["host", "apic", "vcpu", "mask", "replaced"].map(|title| (title, Align::Left));
    let numbers = [
        "sources",
        "lines",
        "raise to ISR",
        "EOI",
        "round trip",
        "exits",
        "IOAPIC r",
        "IOAPIC w",
        "config",
        "reads",
    ]
    .map(|title| (title, Align::Right));
    let mut table = Table::new(texts.into_iter().chain(numbers));
    for row in rows {
        let times = [row.times.raise_to_isr, row.times.eoi, row.times.round_trip]
            .map(|spread| Cell::from(spread.to_string()));
        let exits: f64 = row.exits_per_interrupt.values().sum();
        let counts = row.accesses.map(|accesses| {
            [
                exits,
                accesses.ioapic_reads_per_interrupt,
                accesses.ioapic_writes_per_interrupt,
                accesses.config_accesses_per_interrupt,
                accesses.config_reads_per_interrupt,
            ]
            .map(|count| Cell::from(format!("{count:.2}")))
        });
        let Guest { apic, vcpu, mask, sources, lines, replaced } = row.guest;
        let mask = row.accesses.map_or(String::new(), |_| mask.to_string());
        let names = [row.host, apic.name(), vcpu.name()].map(Cell::from);
        let place =
            [mask, replaced.name().to_owned(), sources.to_string(), lines.to_string()].map(Cell::from);
        table.row(names.into_iter().chain(place).chain(times).chain(counts.into_iter().flatten()));
    }
    console.line("instructions: min / median / max");
    console.table(&table);
    console.line("");
    for row in rows.iter().filter(|row| row.host == "levelhead") {
        let reasons = row.exits_per_interrupt.iter().map(|(reason, count)| format!("{reason} {count:.2}"));
        let (name, reasons) = (row.guest.name(), reasons.collect::<Vec<_>>().join(", "));
        console.line(format_args!("exits {name}: {reasons}"));
    }
    for row in rows {
        if let Some(replacement) = row.times.replacement {
            console.line(format_args!("replacement {}: {replacement} instructions", row.guest.name()));
        }
    }
    console.line("");
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::guest::{ALONE, Apic, Vcpu};
    use super::*;
    use crate::console::tests::Paper;

    const FIELDS: &str = "apic=xapic vcpu=busy rounds=1000 raise_to_isr=7,7,8 eoi=5,5,5 round_trip=29,29,31";

    pub(in crate::bench) fn row(median: u64, max: u64, exits: &[(&str, f64)]) -> Row {
        let spread = Spread { min: median, median, max };
        let exits = exits.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        let accesses = Accesses {
            kicks_per_interrupt: 0.0,
            ioapic_reads_per_interrupt: 0.0,
            ioapic_writes_per_interrupt: 4.0,
            config_accesses_per_interrupt: 0.0,
            config_reads_per_interrupt: 0.0,
        };
        let guest = ALONE;
        let times = Times { raise_to_isr: spread, eoi: spread, round_trip: spread, replacement: None };
        Row { host: "levelhead", guest, times, exits_per_interrupt: exits, accesses: Some(accesses) }
    }

    #[test]
    fn the_guests_row_is_read_if_it_is_the_right_one() {
        let guest = |apic, vcpu| Guest { apic, vcpu, ..ALONE };
        let times = Times::parse(FIELDS, guest(Apic::Xapic, Vcpu::Busy)).unwrap();
        assert_eq!(times.raise_to_isr, Spread { min: 7, median: 7, max: 8 });
        assert_eq!(times.round_trip, Spread { min: 29, median: 29, max: 31 });
        assert_eq!(Times::parse(FIELDS, guest(Apic::X2apic, Vcpu::Busy)), None);
        assert_eq!(Times::parse(FIELDS, guest(Apic::Xapic, Vcpu::Halted)), None);
        let replaced = Guest { replaced: Replaced::Between, ..guest(Apic::Xapic, Vcpu::Busy) };
        assert_eq!(Times::parse(FIELDS, replaced), None, "it tells of no replacement");
        let fields = format!("{FIELDS} replacement=9,9,10");
        let replacement = Times::parse(&fields, replaced).unwrap().replacement;
        assert_eq!(replacement, Some(Spread { min: 9, median: 9, max: 10 }));
        let short = "apic=xapic vcpu=busy raise_to_isr=7,7 eoi=5,5,5 round_trip=1,1,1";
        assert_eq!(Times::parse(short, guest(Apic::Xapic, Vcpu::Busy)), None);
    }

    #[test]
    fn the_table_has_a_line_per_row_and_its_exits() {
        let paper = Paper::default();
        show(&mut Console::plain(paper.clone()), &[row(900, 901, &[("interrupt", 1.0), ("msr", 1.0)])]);
        let text = paper.text();
        assert!(text.contains("  900 / 900 / 901  "), "{text}");
        assert!(text.contains("\nexits x2apic busy: interrupt 1.00, msr 1.00\n"), "{text}");
    }
}
