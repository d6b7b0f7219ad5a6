//! `bench intx`: what one interrupt costs, in instructions, bare and under Levelhead, in one go.
//!
//! QEMU counts instructions as nanoseconds (`-icount`), so the guest's time stamps are exact and the same in
//! every run. What the hypervisor counts (exits, accesses) is taken from two runs that differ only in their
//! number of rounds: the difference, divided by the interrupts more, has nothing of boot in it.
//!
//! For comparison, measured on the same emulated machine (QEMU 7.2): Linux 6.1 with KVM and VFIO takes 10,592
//! instructions from raise to ISR, 5,076 for the EOI and 15,685 for the round trip with 2.00 exits (x2APIC guest);
//! 16,274 for the round trip of an xAPIC guest; 19,204 from halt.
//!
//! `bench intx` reports; [`Pair::test`] runs one guest with fewer rounds and fails when a goal is missed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::build::Tree;
use crate::console::table::{Align, Cell, Table};
use crate::console::{BAD, Console, GOOD};
use crate::digest::Digest;
use crate::qemu::{Machine, Outcome};
use crate::{bundle, log, run, setup};

mod goals;

use goals::{goals, goals_of_many_lines};

/// The guest's interface to its local APIC.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Apic {
    /// In memory.
    Xapic,
    /// By MSRs.
    X2apic,
}

impl Apic {
    fn name(self) -> &'static str {
        match self {
            Self::Xapic => "xapic",
            Self::X2apic => "x2apic",
        }
    }
}

/// What its virtual CPU does when the interrupt comes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Vcpu {
    /// It counts.
    Busy,
    /// It has halted.
    Halted,
}

impl Vcpu {
    fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Halted => "halted",
        }
    }
}

/// What silences the line.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mask {
    /// Its redirection table entry.
    #[default]
    Line,
    /// DisINTx at each function.
    Function,
}

impl fmt::Display for Mask {
    /// As the configuration spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Line => "line",
            Self::Function => "function",
        })
    }
}

/// How a guest is that is measured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its local APIC.
    pub apic: Apic,
    /// Its virtual CPU.
    pub vcpu: Vcpu,
    /// What silences the line.
    #[serde(default)]
    pub mask: Mask,
    /// How many devices share the line, 1 to 8. One of them interrupts, the others are open and quiet.
    #[serde(default = "alone")]
    pub sources: u32,
    /// How many lines are in use, 1 to 8. The others are open and quiet.
    #[serde(default = "alone")]
    pub lines: u32,
}

fn alone() -> u32 {
    1
}

/// The guest program.
const GUEST: &str = "bench";
/// The configuration it runs in under Levelhead.
const CONFIG: &str = "tests/qemu/bench.toml";
/// The device in that file, to which others on its line are added, and the word that makes the machine have it.
const DEVICE: &str = "bdf = \"00:03.0\"";
const DEVICE_WORD: &str = "edu,addr=3";
/// Devices of other lines, each on one of its own (q35): what QEMU calls them, and where the machine has them. Slots below 25
/// share four lines; the other four are the bridge's in slot 25, behind which a device's slot picks its pin.
const OTHER_LINES: [(&str, &str); 7] = [
    ("edu,addr=4", "00:04.0"),
    ("edu,addr=5", "00:05.0"),
    ("edu,addr=6", "00:06.0"),
    ("edu,bus=bridge,addr=1", "01:01.0"),
    ("edu,bus=bridge,addr=2", "01:02.0"),
    ("edu,bus=bridge,addr=3", "01:03.0"),
    ("edu,bus=bridge,addr=4", "01:04.0"),
];
/// As many as q35 has.
const MOST_LINES: u32 = OTHER_LINES.len() as u32 + 1;
/// The bridge.
const BRIDGE: &str = "pci-bridge,id=bridge,chassis_nr=1,addr=0x19";
/// The command line of the guest in that file, which is exchanged for each run.
const CMDLINE: &str = "apic=xapic vcpu=busy rounds=1000";
/// How long the two runs of a row are.
#[derive(Clone, Copy, Debug)]
struct Rounds {
    /// Of the run whose times are reported.
    long: u32,
    /// Of the run that its counts are compared with.
    short: u32,
}
/// What is reported.
const REPORTED: Rounds = Rounds { long: 1000, short: 500 };
/// Enough for a test, since every round is like the one before.
const TESTED: Rounds = Rounds { long: 60, short: 20 };
/// One run takes a second or two.
const LIMIT: Duration = Duration::from_secs(300);
/// How much of a failed run's console is shown.
const TAIL: usize = 40;

/// What can be measured: the word by which it is asked for, and what it tells.
pub const BENCHES: [(&str, &str); 1] =
    [("intx", "what one interrupt costs in instructions, VM exits and accesses, bare and under Levelhead")];

/// Prints what can be measured.
pub fn list() {
    let mut table = Table::new([("bench", Align::Left), ("what it tells", Align::Left)]);
    for (name, what) in BENCHES {
        table.row([name, what].map(Cell::from));
    }
    Console::stdout().table(&table);
}

/// What `bench` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether missing packages may be installed.
    pub setup: bool,
    /// Whether to print JSON instead of a table.
    pub json: bool,
    /// Whether to show the QEMU commands.
    pub verbose: bool,
    /// The QEMU binary, if not the one in `PATH`.
    pub qemu: Option<PathBuf>,
}

/// Least, middle and most over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Spread {
    min: u64,
    median: u64,
    max: u64,
}

impl Spread {
    /// Reads `min,median,max`.
    fn parse(text: &str) -> Option<Self> {
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
struct Row {
    /// `bare` or `levelhead`.
    host: &'static str,
    /// `xapic` or `x2apic`.
    apic: &'static str,
    /// `busy` or `halted`.
    vcpu: &'static str,
    /// What silences the line; none on the bare machine.
    mask: Option<Mask>,
    /// How many devices are on the line.
    sources: u32,
    /// How many lines are in use.
    lines: u32,
    /// Instructions from the access that raises the line to the first one of the ISR.
    raise_to_isr: Spread,
    /// Instructions of the write that is the EOI.
    eoi: Spread,
    /// Instructions from the raise until the interrupted program goes on.
    round_trip: Spread,
    /// VM exits by reason; none on the bare machine.
    exits_per_interrupt: BTreeMap<String, f64>,
    #[serde(flatten)]
    accesses: Option<Accesses>,
}

/// What the hypervisor touches of the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Accesses {
    ioapic_reads_per_interrupt: f64,
    ioapic_writes_per_interrupt: f64,
    config_accesses_per_interrupt: f64,
    /// Of these; what is not a read is a write of DisINTx.
    config_reads_per_interrupt: f64,
}

/// The times the guest measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    raise_to_isr: Spread,
    eoi: Spread,
    round_trip: Spread,
}

/// The hypervisor's counters of the guest's partition at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counters(BTreeMap<String, u64>);

/// Runs everything and prints the result: a table, or with `json` an array.
///
/// # Errors
/// When a run fails or its console does not hold what it must. A goal that is not met is no error.
pub fn intx(tree: &Tree, options: &Options) -> Result<()> {
    let qemu = setup::qemu(options.qemu.as_deref(), options.setup, "bench intx")?;
    let version = setup::qemu_version(&qemu)?;
    tree.build()?;
    if version < setup::X2APIC_QEMU {
        let [(major, minor), (first, point)] = [version, setup::X2APIC_QEMU];
        eprintln!(
            "bench: no bare x2apic rows: QEMU {major}.{minor} emulates no x2APIC, {first}.{point} and newer do"
        );
    }
    let folder = tree.scratch("bench")?;
    let mut rows = Vec::new();
    for guest in Guest::all() {
        eprintln!("bench: {}", guest.name());
        let exclusive = guest.mask == Mask::Line && guest.sources == 1 && guest.lines == 1;
        if exclusive && (guest.apic == Apic::Xapic || version >= setup::X2APIC_QEMU) {
            rows.push(guest.bare(tree, &qemu, options.verbose)?);
        }
        rows.push(Pair::new(tree, &qemu, guest, REPORTED, &folder)?.row(options.verbose)?);
    }
    rows.sort_by_key(|row| row.host);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        show(&mut Console::stdout(), &rows);
    }
    Ok(())
}

impl Guest {
    /// Every guest that is reported: those with a line of their own, and those that share one.
    fn all() -> impl Iterator<Item = Self> {
        let exclusive = [Apic::Xapic, Apic::X2apic].into_iter().flat_map(|apic| {
            [Vcpu::Busy, Vcpu::Halted].map(|vcpu| Self { apic, vcpu, mask: Mask::Line, sources: 1, lines: 1 })
        });
        let shared = [
            (Mask::Function, 1),
            (Mask::Function, 2),
            (Mask::Function, 4),
            (Mask::Function, 8),
            (Mask::Line, 8),
        ];
        let shared = shared.map(|(mask, sources)| Self {
            apic: Apic::Xapic,
            vcpu: Vcpu::Busy,
            mask,
            sources,
            lines: 1,
        });
        let many = [Apic::Xapic, Apic::X2apic].map(|apic| Self {
            apic,
            vcpu: Vcpu::Busy,
            mask: Mask::Line,
            sources: 1,
            lines: MOST_LINES,
        });
        exclusive.chain(shared).chain(many)
    }

    /// What is measured, for people.
    fn name(self) -> String {
        name(self.apic.name(), self.vcpu.name(), Some(self.mask), self.sources, self.lines)
    }

    /// The devices of the configuration: functions of one slot, whose pins are all INTA# and so drive one line.
    fn devices(self) -> String {
        let mask = self.mask;
        let on_line = (0..self.sources).map(|function| format!("00:03.{function}"));
        let others = OTHER_LINES.iter().take(self.other_lines()).map(|(_, bdf)| (*bdf).to_owned());
        let tables = on_line.chain(others).map(|bdf| format!("bdf = \"{bdf}\"\nmask = \"{mask}\"\n"));
        tables.collect::<Vec<_>>().join("\n[[partition.device]]\n")
    }

    fn other_lines(self) -> usize {
        self.lines.saturating_sub(1) as usize
    }

    /// QEMU's words for them.
    fn words(self, tree: &Tree) -> Result<Vec<String>> {
        let mut words = bundle::qemu_words(&tree.root.join(CONFIG))?;
        let word = words.iter_mut().find(|word| *word == DEVICE_WORD);
        let word = word.with_context(|| format!("{CONFIG} asks for no {DEVICE_WORD}"))?;
        if self.sources > 1 {
            *word = format!("{DEVICE_WORD}.0,multifunction=on");
        }
        let others = (1..self.sources)
            .flat_map(|function| ["-device".to_owned(), format!("{DEVICE_WORD}.{function}")]);
        words.extend(others);
        let others = OTHER_LINES.iter().take(self.other_lines()).map(|(word, _)| *word);
        let bridge = (self.lines > 1).then_some(BRIDGE);
        words.extend(
            bridge.into_iter().chain(others).flat_map(|word| ["-device".to_owned(), word.to_owned()]),
        );
        Ok(words)
    }

    fn cmdline(self, rounds: u32) -> String {
        format!("apic={} vcpu={} rounds={rounds}", self.apic.name(), self.vcpu.name())
    }

    fn bare(self, tree: &Tree, qemu: &Path, verbose: bool) -> Result<Row> {
        let mut machine = machine(self, tree, qemu, tree.binary(GUEST))?;
        machine.append = self.cmdline(REPORTED.long);
        let outcome = run(&machine, "bare", verbose)?;
        Ok(self.row("bare", self.times(&outcome)?, BTreeMap::new(), None))
    }

    /// The guest's row that was asked for.
    fn times(self, outcome: &Outcome) -> Result<Times> {
        let rows = outcome.console.iter().filter_map(|line| line.split_once("bench: row "));
        rows.filter_map(|(_, fields)| parse_times(fields, self))
            .next()
            .with_context(|| format!("the guest printed no `bench: row` for {}", self.name()))
    }

    fn row(
        self,
        host: &'static str,
        times: Times,
        exits: BTreeMap<String, f64>,
        accesses: Option<Accesses>,
    ) -> Row {
        let Times { raise_to_isr, eoi, round_trip } = times;
        let (apic, vcpu, sources, lines) = (self.apic.name(), self.vcpu.name(), self.sources, self.lines);
        let mask = accesses.map(|_| self.mask);
        Row {
            host,
            apic,
            vcpu,
            mask,
            sources,
            lines,
            raise_to_isr,
            eoi,
            round_trip,
            exits_per_interrupt: exits,
            accesses,
        }
    }
}

/// The two machines of a row under Levelhead, with their files made.
#[derive(Debug)]
pub struct Pair {
    guest: Guest,
    rounds: Rounds,
    short: Machine,
    long: Machine,
}

impl Pair {
    /// The pair of a test. Its files are in `folder`.
    ///
    /// # Errors
    /// When a file cannot be read or made.
    pub fn tested(tree: &Tree, qemu: &Path, guest: Guest, folder: &Path) -> Result<Self> {
        Self::new(tree, qemu, guest, TESTED, folder)
    }

    fn new(tree: &Tree, qemu: &Path, guest: Guest, rounds: Rounds, folder: &Path) -> Result<Self> {
        let hosted = |rounds: u32, name: &str| {
            let config = tree.root.join(CONFIG);
            let text = fs::read_to_string(&config).with_context(|| format!("cannot read {CONFIG}"))?;
            let edited = folder.join(name).with_extension("toml");
            let pieces = [(CMDLINE.to_owned(), guest.cmdline(rounds)), (DEVICE.to_owned(), guest.devices())];
            let text = bundle::exchange(&text, pieces.iter().map(|(old, new)| (old, new))).context(CONFIG)?;
            bundle::write(&edited, text.as_bytes())?;
            let initrd = folder.join(name).with_extension("bundle");
            bundle::write(&initrd, &bundle::pack(tree, &edited, bundle::Guests::Built)?)?;

            let mut machine = machine(guest, tree, qemu, tree.hypervisor())?;
            machine.initrd = Some(initrd);
            machine.append = run::append(&[]);
            Ok::<_, anyhow::Error>(machine)
        };
        let (short, long) = (hosted(rounds.short, "short")?, hosted(rounds.long, "long")?);
        Ok(Self { guest, rounds, short, long })
    }

    /// Adds what the row depends on.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn digest(&self, digest: &mut Digest) -> Result<()> {
        self.short.digest(digest)?;
        self.long.digest(digest)
    }

    /// The test: the row must meet its goals.
    ///
    /// # Errors
    /// When a run fails, or with the goals that are not met.
    pub fn test(&self) -> Result<(), Vec<String>> {
        let row = self.row(false).map_err(|error| vec![format!("{error:#}")])?;
        let missed: Vec<_> = goals(&row).iter().filter(|goal| !goal.met).map(ToString::to_string).collect();
        if missed.is_empty() { Ok(()) } else { Err(missed) }
    }

    fn row(&self, verbose: bool) -> Result<Row> {
        let short = run(&self.short, "levelhead", verbose)?;
        let long = run(&self.long, "levelhead", verbose)?;
        let more = Counters::of(&short.console)?.until(&Counters::of(&long.console)?)?;
        let interrupts = more.get("interrupts").context("the hypervisor does not count interrupts")?;
        let expected = u64::from(self.rounds.long - self.rounds.short);
        ensure!(
            interrupts == expected,
            "{expected} rounds more made {interrupts} interrupts more: they do not belong to the rounds alone"
        );
        let per_interrupt = |count: u64| count as f64 / interrupts as f64;
        let exits = more.0.iter().filter_map(|(key, count)| {
            let reason = key.strip_prefix("exits.")?;
            (*count > 0).then(|| (reason.to_owned(), per_interrupt(*count)))
        });
        let access = |key: &str| {
            let count = more.get(key).with_context(|| format!("the hypervisor does not count {key}"))?;
            Ok::<_, anyhow::Error>(per_interrupt(count))
        };
        let accesses = Accesses {
            ioapic_reads_per_interrupt: access("ioapic.reads")?,
            ioapic_writes_per_interrupt: access("ioapic.writes")?,
            config_accesses_per_interrupt: access("config.accesses")?,
            config_reads_per_interrupt: access("config.reads")?,
        };
        Ok(self.guest.row("levelhead", self.guest.times(&long)?, exits.collect(), Some(accesses)))
    }
}

fn machine(guest: Guest, tree: &Tree, qemu: &Path, kernel: PathBuf) -> Result<Machine> {
    let mut machine = Machine::new(qemu.to_owned(), kernel);
    machine.icount = true;
    machine.words = guest.words(tree)?;
    Ok(machine)
}

fn run(machine: &Machine, host: &str, verbose: bool) -> Result<Outcome> {
    if verbose {
        eprintln!("bench: {}", machine.command_line());
    }
    let outcome = machine.run(LIMIT, |_| {})?;
    if let Err(why) = outcome.check(33, host == "levelhead") {
        for line in outcome.tail(TAIL) {
            eprintln!("| {line}");
        }
        bail!("bench: {host} {}: {why}; the end of the console is above", machine.append);
    }
    Ok(outcome)
}

/// Reads `apic=xapic vcpu=busy raise_to_isr=7,7,7 eoi=5,5,5 round_trip=29,29,29`, in any order.
fn parse_times(fields: &str, guest: Guest) -> Option<Times> {
    let fields: BTreeMap<&str, &str> =
        fields.split_whitespace().filter_map(|field| field.split_once('=')).collect();
    let same =
        fields.get("apic") == Some(&guest.apic.name()) && fields.get("vcpu") == Some(&guest.vcpu.name());
    let spread = |key| fields.get(key).and_then(|text| Spread::parse(text));
    let times = Times {
        raise_to_isr: spread("raise_to_isr")?,
        eoi: spread("eoi")?,
        round_trip: spread("round_trip")?,
    };
    same.then_some(times)
}

impl Counters {
    /// The statistics of the guest's partition.
    fn of(console: &[String]) -> Result<Self> {
        let mut stats = console.iter().filter_map(|line| match log::read(line) {
            Some(log::Line::Stats(stats)) if stats.partition == GUEST => Some(stats.counters),
            _ => None,
        });
        match (stats.next(), stats.next()) {
            (Some(counters), None) => Ok(Self(counters)),
            (None, _) => bail!("the hypervisor printed no statistics of the partition {GUEST}"),
            (Some(_), Some(_)) => bail!("the hypervisor printed the statistics of {GUEST} twice"),
        }
    }

    /// What was counted more in a `longer` run.
    fn until(&self, longer: &Self) -> Result<Self> {
        let mut more = BTreeMap::new();
        for (key, count) in &longer.0 {
            let before = self.get(key).unwrap_or(0);
            let count =
                count.checked_sub(before).with_context(|| format!("more rounds counted less of {key}"))?;
            more.insert(key.clone(), count);
        }
        Ok(Self(more))
    }

    fn get(&self, key: &str) -> Option<u64> {
        self.0.get(key).copied()
    }
}

/// The result for people.
fn show(console: &mut Console, rows: &[Row]) {
    let texts = ["host", "apic", "vcpu", "mask"].map(|title| (title, Align::Left));
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
        let times = [row.raise_to_isr, row.eoi, row.round_trip].map(|spread| Cell::from(spread.to_string()));
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
        let mask = row.mask.map_or(String::new(), |mask| mask.to_string());
        let names = [row.host, row.apic, row.vcpu].map(Cell::from);
        let place = [mask, row.sources.to_string(), row.lines.to_string()].map(Cell::from);
        table.row(names.into_iter().chain(place).chain(times).chain(counts.into_iter().flatten()));
    }
    console.line("instructions: min / median / max");
    console.table(&table);
    console.line("");
    for row in rows.iter().filter(|row| row.host == "levelhead") {
        let reasons = row.exits_per_interrupt.iter().map(|(reason, count)| format!("{reason} {count:.2}"));
        let reasons = reasons.collect::<Vec<_>>().join(", ");
        let name = name(row.apic, row.vcpu, row.mask, row.sources, row.lines);
        console.line(format_args!("exits {name}: {reasons}"));
    }
    console.line("");
    let hosted = rows.iter().filter(|row| row.host == "levelhead");
    for goal in hosted.flat_map(goals).chain(goals_of_many_lines(rows)) {
        let (style, word) = if goal.met { (GOOD, "met    ") } else { (BAD, "NOT met") };
        console.line(format_args!("{} {}", console.paint(style, word), goal.what));
    }
}

/// What a row measures: the guest, and the line if it is not one of a single device that its entry silences.
fn name(apic: &str, vcpu: &str, mask: Option<Mask>, sources: u32, lines: u32) -> String {
    match mask {
        Some(Mask::Line) if lines > 1 => format!("{apic} {vcpu}, {lines} lines"),
        None | Some(Mask::Line) if sources == 1 => format!("{apic} {vcpu}"),
        Some(mask) => format!("{apic} {vcpu}, mask = \"{mask}\", {sources} on the line"),
        None => format!("{apic} {vcpu}, {sources} on the line"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::Paper;

    const FIELDS: &str = "apic=xapic vcpu=busy rounds=1000 raise_to_isr=7,7,8 eoi=5,5,5 round_trip=29,29,31";

    fn console(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    pub(super) fn row(median: u64, max: u64, exits: &[(&str, f64)]) -> Row {
        let spread = Spread { min: median, median, max };
        let exits = exits.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        let accesses = Accesses {
            ioapic_reads_per_interrupt: 0.0,
            ioapic_writes_per_interrupt: 4.0,
            config_accesses_per_interrupt: 0.0,
            config_reads_per_interrupt: 0.0,
        };
        Row {
            host: "levelhead",
            apic: "x2apic",
            vcpu: "busy",
            mask: Some(Mask::Line),
            sources: 1,
            lines: 1,
            raise_to_isr: spread,
            eoi: spread,
            round_trip: spread,
            exits_per_interrupt: exits,
            accesses: Some(accesses),
        }
    }

    #[test]
    fn the_guests_row_is_read_if_it_is_the_right_one() {
        let guest = |apic, vcpu| Guest { apic, vcpu, mask: Mask::Line, sources: 1, lines: 1 };
        let times = parse_times(FIELDS, guest(Apic::Xapic, Vcpu::Busy)).unwrap();
        assert_eq!(times.raise_to_isr, Spread { min: 7, median: 7, max: 8 });
        assert_eq!(times.round_trip, Spread { min: 29, median: 29, max: 31 });
        assert_eq!(parse_times(FIELDS, guest(Apic::X2apic, Vcpu::Busy)), None);
        assert_eq!(parse_times(FIELDS, guest(Apic::Xapic, Vcpu::Halted)), None);
        let short = "apic=xapic vcpu=busy raise_to_isr=7,7 eoi=5,5,5 round_trip=1,1,1";
        assert_eq!(parse_times(short, guest(Apic::Xapic, Vcpu::Busy)), None);
    }

    #[test]
    fn counts_of_boot_cancel_out() {
        let short = Counters::of(&console(
            "x\nstats partition=bench exits.interrupt=1100 exits.npf=90 interrupts=1100",
        ));
        let long = Counters::of(&console(
            "stats partition=bench exits.interrupt=2100 exits.npf=90 exits.msr=1000 interrupts=2100\n\
             stats partition=other exits.interrupt=5",
        ));
        let more = short.unwrap().until(&long.unwrap()).unwrap();
        assert_eq!(more.get("exits.interrupt"), Some(1000));
        assert_eq!(more.get("exits.npf"), Some(0));
        assert_eq!(more.get("exits.msr"), Some(1000));
        assert_eq!(more.get("interrupts"), Some(1000));
    }

    #[test]
    fn counters_that_make_no_sense_are_refused() {
        assert!(Counters::of(&console("nothing")).is_err());
        assert!(Counters::of(&console("stats partition=bench a=x")).is_err());
        assert!(Counters::of(&console("stats partition=bench a=1\nstats partition=bench b=2")).is_err());
        let one = |count| Counters(BTreeMap::from([("a".to_owned(), count)]));
        assert!(one(2).until(&one(1)).is_err());
    }

    #[test]
    fn the_json_has_the_agreed_keys() {
        let json = serde_json::to_value(vec![row(900, 901, &[("interrupt", 1.0)])]).unwrap();
        assert_eq!(json, crate::console::json::tests::example("bench"));
        let row = &json[0];
        assert_eq!(row["host"], "levelhead");
        assert_eq!(row["round_trip"], serde_json::json!({ "min": 900, "median": 900, "max": 901 }));
        assert_eq!(row["exits_per_interrupt"], serde_json::json!({ "interrupt": 1.0 }));
        assert_eq!(row["ioapic_writes_per_interrupt"], 4.0);
        for key in [
            "apic",
            "vcpu",
            "raise_to_isr",
            "eoi",
            "mask",
            "sources",
            "lines",
            "config_reads_per_interrupt",
            "ioapic_reads_per_interrupt",
            "config_accesses_per_interrupt",
        ] {
            assert!(row.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn the_table_has_a_line_per_row_and_its_goals() {
        let paper = Paper::default();
        show(&mut Console::plain(paper.clone()), &[row(900, 901, &[("interrupt", 1.0), ("msr", 1.0)])]);
        let text = paper.text();
        assert!(text.contains("  900 / 900 / 901  "), "{text}");
        assert_eq!(
            text.lines().filter(|line| line.starts_with("met     x2apic busy: ")).count(),
            4,
            "{text}"
        );
    }
}
