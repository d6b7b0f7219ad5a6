//! `bench guest`: what it costs to boot an unmodified Linux and to have its interrupts counted, bare and under Levelhead, and what a
//! single exit costs.
//!
//! QEMU counts instructions as nanoseconds, and the guest's time stamp counter is that clock, from QEMU's start: firmware and
//! hypervisor are in what it says. Time in which the CPU is halted passes there as well; of what a stamp says, the kernel's own count of
//! idle time is taken off. Bare, the kernel has q35 with all its devices and timers before it, and the same memory and command line.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::Options;
use super::goals::Goal;
use super::guest::{ALONE, Apic, Guest};
use super::measure::{LIMIT, boot, check};
use super::row::Spread;
use crate::build::Tree;
use crate::console::table::{Align, Cell, Table};
use crate::console::{Console, json};
use crate::qemu::{Machine, Outcome};
use crate::{bundle, linux, log, setup};

/// Two runs whose difference is of the rounds alone.
const LONG: u32 = 1000;
const SHORT: u32 = 500;
/// The command line in the configuration, but for what is exchanged here.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";
/// Memory of the guest in the configuration.
const MEMORY: &str = "160M";
/// What a CPUID exit may cost.
const CPUID_GOAL: u64 = 400;
/// Percent that a boot may take more under Levelhead.
const BOOT_GOAL: f64 = 10.0;

/// What is reported.
#[derive(Clone, Debug, Serialize)]
struct Report {
    bare: Side,
    levelhead: Side,
    exits_at_boot: BTreeMap<String, f64>,
    exits_per_round: BTreeMap<String, f64>,
    exit: Exits,
}

/// Instructions of a kernel's life, halted time not among them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Side {
    to_init: u64,
    to_the_end: u64,
    per_round: f64,
}

/// Instructions of an access that makes the guest exit, as it measures them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Exits {
    cpuid: Spread,
    port: Spread,
    mmio: Spread,
}

/// Runs everything and prints the result.
///
/// # Errors
/// When a kernel cannot be had, a run fails, or its console does not hold what it must. A goal that is not met is no error.
pub fn guest(tree: &Tree, options: &Options) -> Result<()> {
    let qemu = setup::qemu(options.qemu.as_deref(), options.setup, "bench guest")?;
    linux::prepare(tree, linux::KERNEL, options.setup, "bench guest")?;
    tree.build()?;
    let folder = tree.scratch("bench")?;
    let run = |machine: &Machine, host: &str| {
        eprintln!("bench: linux, {host}");
        if options.verbose {
            eprintln!("bench: {}", machine.command_line());
        }
        let outcome = machine.run(LIMIT, |_| {})?;
        match host {
            // The kernel powers the machine off, which is no success of a guest elsewhere.
            "bare" => outcome.check(0, false).map_err(|why| anyhow::anyhow!("bench: bare linux: {why}"))?,
            _ => check(machine, &outcome, host)?,
        }
        Ok::<_, anyhow::Error>(outcome)
    };
    let pair = |host: &str, machine: &dyn Fn(u32) -> Result<Machine>| {
        Ok::<_, anyhow::Error>([run(&machine(LONG)?, host)?, run(&machine(SHORT)?, host)?])
    };
    let bare = pair("bare", &|rounds| bare(tree, &qemu, rounds))?;
    let hosted = pair("levelhead", &|rounds| hosted(tree, &qemu, rounds, &folder))?;
    let exits = run(&exits(tree, &qemu, &folder)?, "levelhead")?;
    let [long, short] = [exits_of(&hosted[0])?, exits_of(&hosted[1])?];
    let more = |reason: &String| {
        let before = short.get(reason).copied().unwrap_or(0);
        (long.get(reason).copied().unwrap_or(0) as f64 - before as f64) / f64::from(LONG - SHORT)
    };
    let report = Report {
        bare: Side::of(&bare)?,
        levelhead: Side::of(&hosted)?,
        exits_per_round: long.keys().map(|reason| (reason.clone(), more(reason))).collect(),
        exits_at_boot: long
            .iter()
            .map(|(reason, count)| (reason.clone(), *count as f64 - more(reason) * f64::from(LONG)))
            .collect(),
        exit: Exits::of(&exits.console).context("the guest printed no `bench: exit`")?,
    };
    if options.json {
        return json::print("bench-guest", &report);
    }
    report.show(&mut Console::stdout());
    Ok(())
}

/// The kernel on the machine itself.
fn bare(tree: &Tree, qemu: &Path, rounds: u32) -> Result<Machine> {
    let folder = tree.scratch("linux")?.join(linux::KERNEL);
    let mut machine = Machine::new(qemu.to_owned(), folder.join("vmlinuz"));
    machine.initrd = Some(folder.join("initramfs.cpio"));
    machine.append = format!("{CMDLINE} rounds={rounds} stamps=1");
    MEMORY.clone_into(&mut machine.memory);
    machine.icount = true;
    machine.words = bundle::qemu_words(&tree.root.join(linux::CONFIG))?;
    Ok(machine)
}

/// The same as a guest.
fn hosted(tree: &Tree, qemu: &Path, rounds: u32, folder: &Path) -> Result<Machine> {
    let mut machine = Machine::new(qemu.to_owned(), tree.hypervisor());
    machine.icount = true;
    machine.words = bundle::qemu_words(&tree.root.join(linux::CONFIG))?;
    let text = fs::read_to_string(tree.root.join(linux::CONFIG))
        .with_context(|| format!("cannot read {}", linux::CONFIG))?;
    let kept = format!("memory = \"{MEMORY}\"");
    ensure!(text.contains(&kept), "{} does not say {kept}", linux::CONFIG);
    let words = format!("{CMDLINE} rounds={rounds} stamps=1");
    let pieces = [("../target/linux", "../linux"), (&format!("{CMDLINE} rounds=1000"), &words)];
    boot(tree, machine, &exchange(&text, &pieces).context(linux::CONFIG)?, folder, "linux")
}

/// The guest that measures single exits.
fn exits(tree: &Tree, qemu: &Path, folder: &Path) -> Result<Machine> {
    let guest = Guest { apic: Apic::Xapic, ..ALONE };
    let machine = guest.machine(tree, qemu, tree.hypervisor())?;
    let text = exchange(&guest.configuration(tree, 1)?, &[("rounds=1\"", "exits=yes\"")])?;
    boot(tree, machine, &text, folder, "exits")
}

/// The text of a configuration with those pieces exchanged.
fn exchange(text: &str, pieces: &[(&str, &str)]) -> Result<String> {
    let pieces: Vec<_> = pieces.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())).collect();
    bundle::exchange(text, pieces.iter().map(|(old, new)| (old, new)))
}

impl Side {
    /// By the stamps of a long run and a short one.
    fn of([long, short]: &[Outcome; 2]) -> Result<Self> {
        let [end, before] = [stamp(&long.console, "end")?, stamp(&short.console, "end")?];
        let per_round = (end as f64 - before as f64) / f64::from(LONG - SHORT);
        Ok(Self { to_init: stamp(&long.console, "init")?, to_the_end: end, per_round })
    }
}

/// The instructions until the guest printed that stamp.
fn stamp(console: &[String], name: &str) -> Result<u64> {
    let head = format!("stamp: {name} tsc=");
    let read = |line: &String| {
        let (tsc, idle) = line.split_once(&head)?.1.trim_end().split_once(" idle_ns=")?;
        tsc.parse::<u64>().ok()?.checked_sub(idle.parse().ok()?)
    };
    let found = console.iter().find_map(read);
    found.with_context(|| format!("the guest printed no stamp of its {name}"))
}

/// How often the guest exited, by reason.
fn exits_of(outcome: &Outcome) -> Result<BTreeMap<String, u64>> {
    for line in &outcome.console {
        if let Some(log::Line::Stats(stats)) = log::read(line) {
            let exits = stats.counters.into_iter();
            return Ok(exits
                .filter_map(|(name, count)| Some((name.strip_prefix("exits.")?.to_owned(), count)))
                .collect());
        }
    }
    bail!("the hypervisor printed no statistics")
}

impl Exits {
    /// Reads `bench: exit cpuid=1,1,1 port=2,2,2 mmio=3,3,3`.
    fn of(console: &[String]) -> Option<Self> {
        let (_, fields) = console.iter().find_map(|line| line.split_once("bench: exit "))?;
        let fields: BTreeMap<&str, &str> =
            fields.split_whitespace().filter_map(|field| field.split_once('=')).collect();
        let spread = |key| Spread::parse(fields.get(key)?);
        Some(Self { cpuid: spread("cpuid")?, port: spread("port")?, mmio: spread("mmio")? })
    }
}

impl Report {
    /// Percent that Levelhead takes more than nothing, until init.
    fn overhead(&self) -> f64 {
        (self.levelhead.to_init as f64 / self.bare.to_init as f64 - 1.0) * 100.0
    }

    fn goals(&self) -> [Goal; 2] {
        let (cpuid, overhead) = (self.exit.cpuid.median, self.overhead());
        let boot = format!("linux: {overhead:.1} % more instructions until init, goal {BOOT_GOAL:.0} %");
        let exit = format!("exit of CPUID: {cpuid} instructions, goal {CPUID_GOAL}");
        [Goal { met: overhead <= BOOT_GOAL, what: boot }, Goal { met: cpuid <= CPUID_GOAL, what: exit }]
    }

    fn show(&self, console: &mut Console) {
        let numbers = ["until init", "until 1000 rounds are done", "a round"];
        let columns = numbers.map(|title| (title, Align::Right));
        let mut table = Table::new([("host", Align::Left)].into_iter().chain(columns));
        for (host, side) in [("bare", self.bare), ("levelhead", self.levelhead)] {
            let per_round = format!("{:.0}", side.per_round);
            let cells = [host.to_owned(), side.to_init.to_string(), side.to_the_end.to_string(), per_round];
            table.row(cells.map(Cell::from));
        }
        console.line(
            "instructions since QEMU started, without those times in which the kernel had nothing to do",
        );
        console.table(&table);
        console.line("");
        let list = |exits: &BTreeMap<String, f64>, digits: usize| {
            // What rounds to nothing is nothing.
            let used = exits.iter().filter(|(_, count)| count.abs() >= 0.005);
            let each = used.map(|(reason, count)| format!("{reason} {count:.digits$}"));
            each.collect::<Vec<_>>().join(", ")
        };
        console.line(format_args!("exits of boot and end: {}", list(&self.exits_at_boot, 0)));
        console.line(format_args!("exits of a round: {}", list(&self.exits_per_round, 2)));
        let Exits { cpuid, port, mmio } = self.exit;
        console.line(format_args!(
            "an exit in instructions (min / median / max): CPUID {cpuid}, port {port}, memory {mmio}"
        ));
        console.line("");
        self.goals().iter().for_each(|goal| goal.show(console));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn stamps_are_read_without_idle_time() {
        let console = lines("x\n[linux] stamp: init tsc=1000 idle_ns=100\nstamp: end tsc=50 idle_ns=60");
        assert_eq!(stamp(&console, "init").unwrap(), 900);
        assert!(stamp(&console, "end").is_err(), "idle for longer than there was time");
        assert!(stamp(&console, "begin").is_err());
    }

    #[test]
    fn exits_are_read_and_goals_judged() {
        let console = lines("[bench] bench: exit cpuid=390,400,500 port=1,2,3 mmio=4,5,6");
        let exit = Exits::of(&console).unwrap();
        assert_eq!((exit.cpuid.median, exit.mmio), (400, Spread { min: 4, median: 5, max: 6 }));
        assert_eq!(Exits::of(&lines("bench: exit cpuid=1,2,3 port=1,2,3")), None);
        let side = |to_init| Side { to_init, to_the_end: 3000, per_round: 1.0 };
        let (exits_at_boot, exits_per_round) = (BTreeMap::new(), BTreeMap::new());
        let report = |to_init, cpuid| {
            let exit = Exits { cpuid: Spread { min: cpuid, median: cpuid, max: cpuid }, ..exit };
            let (bare, levelhead) = (side(1000), side(to_init));
            let (exits_at_boot, exits_per_round) = (exits_at_boot.clone(), exits_per_round.clone());
            Report { bare, levelhead, exits_at_boot, exits_per_round, exit }
        };
        assert_eq!(report(1099, 400).goals().map(|goal| goal.met), [true, true]);
        assert_eq!(report(1110, 401).goals().map(|goal| goal.met), [false, false]);
    }
}
