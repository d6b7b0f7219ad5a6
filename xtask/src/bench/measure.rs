//! Measuring: one run on the bare machine, two under Levelhead whose difference is what counts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::crossing::{self, Crossing};
use super::goals::{self, Goal};
use super::guest::{GUEST, Guest};
use super::row::{Accesses, Row, Times};
use crate::build::Tree;
use crate::digest::Digest;
use crate::qemu::{Machine, Outcome};
use crate::{bundle, log, run};

/// What can be measured, and be a test.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(
    untagged,
    expecting = "`bench` is a guest (`apic`, `vcpu`, and if need be `mask`, `sources`, `lines`, `replaced`) or a crossing (`way`, `cpus`)"
)]
pub enum Subject {
    /// An interrupt on one CPU.
    Guest(Guest),
    /// One that several CPUs have part in.
    Crossing(Crossing),
}

/// How long the two runs of a row are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    /// Of the run whose times are reported.
    long: u32,
    /// Of the run that its counts are compared with.
    short: u32,
}
/// What is reported.
pub(super) const REPORTED: Rounds = Rounds { long: 1000, short: 500 };
/// Enough for a test, since every round is like the one before.
const TESTED: Rounds = Rounds { long: 60, short: 20 };
/// One run takes a second or two.
pub(super) const LIMIT: Duration = Duration::from_secs(300);
/// How much of a failed run's console is shown.
const TAIL: usize = 40;

/// The two machines of a test, with their files made.
#[derive(Debug)]
pub struct Test {
    subject: Subject,
    runs: Runs,
}

impl Test {
    /// The files of the machines are in `folder`.
    ///
    /// # Errors
    /// When a file cannot be read or made.
    pub fn new(tree: &Tree, qemu: &Path, subject: Subject, folder: &Path) -> Result<Self> {
        let runs = match subject {
            Subject::Guest(guest) => guest.runs(tree, qemu, TESTED, folder)?,
            Subject::Crossing(crossing) => crossing.runs(tree, qemu, TESTED, folder)?,
        };
        Ok(Self { subject, runs })
    }

    /// Adds what the result depends on.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn digest(&self, digest: &mut Digest) -> Result<()> {
        self.runs.short.digest(digest)?;
        self.runs.long.digest(digest)
    }

    /// The row must meet its goals.
    ///
    /// # Errors
    /// When a run fails, or with the goals that are not met.
    pub fn run(&self) -> Result<(), Vec<String>> {
        let goals = match self.subject {
            Subject::Guest(guest) => guest.row(&self.runs, false).map(|row| goals::goals(&row)),
            Subject::Crossing(crossing) => crossing.row(&self.runs, false).map(|row| row.goals()),
        };
        let goals = goals.map_err(|error| vec![format!("{error:#}")])?;
        let missed: Vec<_> = goals.iter().filter(|goal| !goal.met).map(Goal::to_string).collect();
        if missed.is_empty() { Ok(()) } else { Err(missed) }
    }
}

impl Guest {
    pub(super) fn bare(self, tree: &Tree, qemu: &Path, verbose: bool) -> Result<Row> {
        let mut machine = self.machine(tree, qemu, tree.binary(GUEST))?;
        machine.append = self.cmdline(REPORTED.long);
        let outcome = run(&machine, "bare", verbose)?;
        let (times, exits_per_interrupt) = (self.times(&outcome)?, BTreeMap::new());
        Ok(Row { host: "bare", guest: self, times, exits_per_interrupt, accesses: None })
    }

    /// The runs of a row under Levelhead.
    pub(super) fn runs(self, tree: &Tree, qemu: &Path, rounds: Rounds, folder: &Path) -> Result<Runs> {
        let machine = self.machine(tree, qemu, tree.hypervisor())?;
        Runs::new(tree, &machine, rounds, folder, |rounds| self.configuration(tree, rounds))
    }

    pub(super) fn row(self, runs: &Runs, verbose: bool) -> Result<Row> {
        let (more, long) = runs.compare(self.replaced.interrupts(), verbose)?;
        Ok(Row {
            host: "levelhead",
            guest: self,
            times: self.times(&long)?,
            exits_per_interrupt: more.exits_per_interrupt()?,
            accesses: Some(more.accesses()?),
        })
    }

    /// The guest's row that was asked for.
    pub(super) fn times(self, outcome: &Outcome) -> Result<Times> {
        let rows = outcome.console.iter().filter_map(|line| line.split_once("bench: row "));
        rows.filter_map(|(_, fields)| Times::parse(fields, self))
            .next()
            .with_context(|| format!("the guest printed no `bench: row` for {}", self.name()))
    }
}

impl Crossing {
    /// The runs of a row.
    pub(super) fn runs(self, tree: &Tree, qemu: &Path, rounds: Rounds, folder: &Path) -> Result<Runs> {
        Runs::new(tree, &self.machine(tree, qemu), rounds, folder, |rounds| Ok(self.configuration(rounds)))
    }

    pub(super) fn row(self, runs: &Runs, verbose: bool) -> Result<crossing::Row> {
        let (more, _) = runs.compare(1, verbose)?;
        Ok(crossing::Row {
            crossing: self,
            exits_per_interrupt: more.exits_per_interrupt()?,
            exits_elsewhere_per_interrupt: more.per_interrupt(more.exits_elsewhere()),
            accesses: more.accesses()?,
        })
    }
}

/// Two machines that differ in the number of their rounds.
#[derive(Debug)]
pub(super) struct Runs {
    rounds: Rounds,
    short: Machine,
    long: Machine,
}

impl Runs {
    /// What `machine` boots is the configuration of so many rounds; the files are in `folder`.
    fn new(
        tree: &Tree,
        machine: &Machine,
        rounds: Rounds,
        folder: &Path,
        configuration: impl Fn(u32) -> Result<String>,
    ) -> Result<Self> {
        let hosted =
            |rounds: u32, name: &str| boot(tree, machine.clone(), &configuration(rounds)?, folder, name);
        Ok(Self { rounds, short: hosted(rounds.short, "short")?, long: hosted(rounds.long, "long")? })
    }

    /// What the longer run counted more, and that run. A round is so many interrupts.
    fn compare(&self, interrupts: u32, verbose: bool) -> Result<(More, Outcome)> {
        let short = run(&self.short, "levelhead", verbose)?;
        let long = run(&self.long, "levelhead", verbose)?;
        let counters = Counters::of(&short.console)?.until(&Counters::of(&long.console)?)?;
        let rounds = self.rounds.long - self.rounds.short;
        let (expected, counted) = (u64::from(rounds) * u64::from(interrupts), counters.interrupts());
        ensure!(
            counted == expected,
            "{rounds} rounds more made {counted} interrupts more, not {expected}: they do not belong to the rounds alone"
        );
        Ok((More { counters, rounds }, long))
    }
}

/// The machine, which boots the hypervisor with that configuration. Its files are in `folder` by that name.
pub(super) fn boot(
    tree: &Tree,
    machine: Machine,
    configuration: &str,
    folder: &Path,
    name: &str,
) -> Result<Machine> {
    let edited = folder.join(name).with_extension("toml");
    bundle::write(&edited, configuration.as_bytes())?;
    let initrd = folder.join(name).with_extension("bundle");
    bundle::write(&initrd, &bundle::pack(tree, &edited, bundle::Guests::Built)?)?;
    Ok(Machine { initrd: Some(initrd), append: run::append(&[]), ..machine })
}

fn run(machine: &Machine, host: &str, verbose: bool) -> Result<Outcome> {
    if verbose {
        eprintln!("bench: {}", machine.command_line());
    }
    let outcome = machine.run(LIMIT, |_| {})?;
    check(machine, &outcome, host)?;
    Ok(outcome)
}

/// Fails with the end of the console if the run did.
pub(super) fn check(machine: &Machine, outcome: &Outcome, host: &str) -> Result<()> {
    if let Err(why) = outcome.check(33, host == "levelhead") {
        for line in outcome.tail(TAIL) {
            eprintln!("| {line}");
        }
        bail!("bench: {host} {}: {why}; the end of the console is above", machine.append);
    }
    Ok(())
}

/// The hypervisor's counters at its end, by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counters(BTreeMap<String, BTreeMap<String, u64>>);

impl Counters {
    /// The statistics of all partitions, the guest's among them.
    fn of(console: &[String]) -> Result<Self> {
        let mut counters = BTreeMap::new();
        for line in console {
            if let Some(log::Line::Stats(stats)) = log::read(line) {
                let twice = counters.insert(stats.partition.clone(), stats.counters).is_some();
                ensure!(!twice, "the hypervisor printed the statistics of {} twice", stats.partition);
            }
        }
        ensure!(
            counters.contains_key(GUEST),
            "the hypervisor printed no statistics of the partition {GUEST}"
        );
        Ok(Self(counters))
    }

    /// What was counted more in a `longer` run.
    fn until(&self, longer: &Self) -> Result<Self> {
        let mut more = longer.clone();
        for (partition, counters) in &mut more.0 {
            for (key, count) in counters {
                let before = self.0.get(partition).and_then(|counters| counters.get(key)).copied();
                *count = count
                    .checked_sub(before.unwrap_or(0))
                    .with_context(|| format!("more rounds counted less of {partition}'s {key}"))?;
            }
        }
        Ok(more)
    }

    /// A counter of the guest's partition.
    fn get(&self, key: &str) -> Option<u64> {
        self.0.get(GUEST)?.get(key).copied()
    }

    /// The interrupts that all partitions' CPUs took.
    fn interrupts(&self) -> u64 {
        self.0.values().filter_map(|counters| counters.get("interrupts")).sum()
    }
}

/// What some rounds more counted.
struct More {
    counters: Counters,
    rounds: u32,
}

impl More {
    fn per_interrupt(&self, count: u64) -> f64 {
        count as f64 / f64::from(self.rounds)
    }

    fn exits_per_interrupt(&self) -> Result<BTreeMap<String, f64>> {
        let own = self.counters.0.get(GUEST).context("the guest's partition has no counters")?;
        let exits = own.iter().filter_map(|(key, count)| {
            let reason = key.strip_prefix("exits.")?;
            (*count > 0).then(|| (reason.to_owned(), self.per_interrupt(*count)))
        });
        Ok(exits.collect())
    }

    /// The exits of all other partitions.
    fn exits_elsewhere(&self) -> u64 {
        let others = self.counters.0.iter().filter(|(partition, _)| *partition != GUEST);
        let counters = others.flat_map(|(_, counters)| counters);
        counters.filter(|(key, _)| key.starts_with("exits.")).map(|(_, count)| count).sum()
    }

    fn accesses(&self) -> Result<Accesses> {
        let count = |key: &str| {
            let count = self.counters.get(key);
            count
                .map(|count| self.per_interrupt(count))
                .with_context(|| format!("the hypervisor does not count {key}"))
        };
        Ok(Accesses {
            kicks_per_interrupt: count("kicks")?,
            ioapic_reads_per_interrupt: count("ioapic.reads")?,
            ioapic_writes_per_interrupt: count("ioapic.writes")?,
            config_accesses_per_interrupt: count("config.accesses")?,
            config_reads_per_interrupt: count("config.reads")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn counts_of_boot_cancel_out() {
        let short = Counters::of(&console(
            "x\nstats partition=bench exits.interrupt=1100 exits.npf=90 interrupts=1100",
        ));
        let long = Counters::of(&console(
            "stats partition=bench exits.interrupt=2100 exits.npf=90 exits.msr=1000 interrupts=2100\n\
             stats partition=other exits.interrupt=5 interrupts=3",
        ));
        let more = short.unwrap().until(&long.unwrap()).unwrap();
        assert_eq!(more.get("exits.interrupt"), Some(1000));
        assert_eq!(more.get("exits.npf"), Some(0));
        assert_eq!(more.get("exits.msr"), Some(1000));
        assert_eq!(more.interrupts(), 1003);
        let more = More { counters: more, rounds: 1000 };
        assert_eq!(more.exits_elsewhere(), 5);
        let exits = BTreeMap::from([("interrupt".to_owned(), 1.0), ("msr".to_owned(), 1.0)]);
        assert_eq!(more.exits_per_interrupt().unwrap(), exits);
        assert!(more.accesses().is_err(), "nobody counted them");
    }

    #[test]
    fn counters_that_make_no_sense_are_refused() {
        assert!(Counters::of(&console("nothing")).is_err());
        assert!(Counters::of(&console("stats partition=bench a=x")).is_err());
        assert!(Counters::of(&console("stats partition=bench a=1\nstats partition=bench b=2")).is_err());
        let one = |count| Counters::of(&console(&format!("stats partition=bench a={count}"))).unwrap();
        assert!(one(2).until(&one(1)).is_err());
    }
}
