//! Measuring a guest: one run on the bare machine, two under Levelhead whose difference is what counts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::goals::goals;
use super::guest::{GUEST, Guest};
use super::row::{Accesses, Row, Times};
use crate::build::Tree;
use crate::digest::Digest;
use crate::qemu::{Machine, Outcome};
use crate::{bundle, log, run};

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

/// The hypervisor's counters of the guest's partition at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counters(BTreeMap<String, u64>);

impl Guest {
    pub(super) fn bare(self, tree: &Tree, qemu: &Path, verbose: bool) -> Result<Row> {
        let mut machine = self.machine(tree, qemu, tree.binary(GUEST))?;
        machine.append = self.cmdline(REPORTED.long);
        let outcome = run(&machine, "bare", verbose)?;
        let (times, exits_per_interrupt) = (self.times(&outcome)?, BTreeMap::new());
        Ok(Row { host: "bare", guest: self, times, exits_per_interrupt, accesses: None })
    }

    /// The guest's row that was asked for.
    pub(super) fn times(self, outcome: &Outcome) -> Result<Times> {
        let rows = outcome.console.iter().filter_map(|line| line.split_once("bench: row "));
        rows.filter_map(|(_, fields)| Times::parse(fields, self))
            .next()
            .with_context(|| format!("the guest printed no `bench: row` for {}", self.name()))
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

    pub(super) fn new(tree: &Tree, qemu: &Path, guest: Guest, rounds: Rounds, folder: &Path) -> Result<Self> {
        let hosted = |rounds: u32, name: &str| {
            let machine = guest.machine(tree, qemu, tree.hypervisor())?;
            boot(tree, machine, &guest.configuration(tree, rounds)?, folder, name)
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

    pub(super) fn row(&self, verbose: bool) -> Result<Row> {
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
        Ok(Row {
            host: "levelhead",
            guest: self.guest,
            times: self.guest.times(&long)?,
            exits_per_interrupt: exits.collect(),
            accesses: Some(accesses),
        })
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
}
