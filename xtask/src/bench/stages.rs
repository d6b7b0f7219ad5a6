//! `bench stages`: where the instructions of one interrupt go.
//!
//! The guest of `bench intx` runs on a machine that tells every instruction it executes. The guest's own time stamps, five
//! in a round, say which instructions are an interrupt's; which functions they belong to, and who called those, follows
//! from the hypervisor's image. Nothing is sampled: the stages add up to the round trip that the guest measured, or the
//! command fails.

mod trace;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufReader};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::{process, thread};

use anstyle::Style;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use levelhead::svm::ExitCode;
use serde::Serialize;

use super::guest::{ALONE, GUEST, Guest, Replaced, Vcpu};
use super::measure::{LIMIT, boot, check};
use super::row::{Spread, Times};
use crate::build::Tree;
use crate::console::table::{Align, Cell, Table};
use crate::console::{Console, FAINT, STRONG, json};
use crate::digest::Digest;
use crate::live::Monitor;
use crate::process::{Event, Stream};
use crate::qemu::{Machine, Outcome};
use crate::symbols::Image;
use crate::{bench, setup};

use trace::{Clocks, ITEMS, PARTS, Round, Run, rounds};
use tree::{Calls, Counts, Site, Stage, add, sites};

/// What the guest prints directly before its rounds.
const BEGINS: &str = "bench: overhead=";
/// How many rounds the guest makes. It does not wait for QEMU to begin telling, so the first ones may pass untold.
const ROUNDS: u32 = 100;
/// How often it is tried again when all have.
const ATTEMPTS: u32 = 3;
/// What a function must take of the round trip to be shown, as a fraction of it, unless `--least` says.
const SHOWN: u64 = 100;
/// As wide as the bar of the whole round trip is.
const BAR: u64 = 10;

/// What `bench stages` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// What every bench is asked.
    pub common: bench::Options,
    /// Who is measured.
    pub guest: Guest,
    /// How many instructions a function must take to be shown.
    pub least: Option<u64>,
}

/// The guest whose stages are shown unless another one is asked for.
pub const DEFAULT: Guest = ALONE;

/// Prints where the instructions go: a tree, or with `json` a document.
///
/// # Errors
/// When the run fails, no whole round was told, or the stages do not add up to what the guest measured.
pub fn stages(tree: &Tree, options: &Options) -> Result<()> {
    let qemu = setup::qemu(options.common.qemu.as_deref(), options.common.setup, "bench stages")?;
    tree.build()?;
    let folder = tree.scratch("bench")?;
    let profile =
        Traced::new(tree, &qemu, options.guest, &folder)?.profile(options.least, options.common.verbose)?;
    if options.common.json {
        return json::print("bench-stages", &profile);
    }
    profile.show(&mut Console::stdout());
    Ok(())
}

/// A machine that tells what it executes, with its files made.
#[derive(Debug)]
pub struct Traced {
    tree: Tree,
    guest: Guest,
    machine: Machine,
    /// The monitor's command for one instruction at a time.
    stepping: &'static str,
}

impl Traced {
    /// The machine. Its files are in `folder`.
    ///
    /// # Errors
    /// When a file cannot be read or made.
    pub fn new(tree: &Tree, qemu: &Path, guest: Guest, folder: &Path) -> Result<Self> {
        ensure!(guest.replaced == Replaced::Never, "stages are told of an interrupt whose notifier stays");
        ensure!(guest.vcpu == Vcpu::Busy, "only a busy virtual CPU takes both time stamps of a round itself");
        let mut machine = guest.machine(tree, qemu, tree.hypervisor())?;
        machine = boot(tree, machine, &guest.configuration(tree, ROUNDS)?, folder, "stages")?;
        let new = setup::qemu_version(qemu)? >= setup::ONE_INSN_QEMU;
        Ok(Self {
            tree: tree.clone(),
            guest,
            machine,
            stepping: if new { "one-insn-per-tb on" } else { "singlestep on" },
        })
    }

    /// Adds what the stages depend on.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn digest(&self, digest: &mut Digest) -> Result<()> {
        self.machine.digest(digest)
    }

    /// The test: the stages must add up.
    ///
    /// # Errors
    /// When the run fails, no whole round was told, or they do not.
    pub fn test(&self) -> Result<()> {
        self.profile(None, false).map(drop)
    }

    fn profile(&self, least: Option<u64>, verbose: bool) -> Result<Profile> {
        let (times, run, rounds) = self.rounds(verbose)?;
        let image = Image::open(&self.machine.kernel)?;
        let addresses: BTreeSet<u64> =
            run.instructions.iter().copied().filter(|address| image.has_code(*address)).collect();
        let sites = sites(&image, addresses, &self.tree.root);
        let profile = Profile::of(self.guest, &run, &rounds, &sites, least);
        profile.check(times)?;
        Ok(profile)
    }

    /// What the guest measured, what ran, and where in it the rounds are that were told whole.
    fn rounds(&self, verbose: bool) -> Result<(Times, Run, Vec<Round>)> {
        let clocks = Clocks::of(&self.tree.binary(GUEST))?;
        for _ in 0..ATTEMPTS {
            let (outcome, run) = self.run(verbose)?;
            let mut rounds = rounds(&run.instructions, |address| clocks.at(address));
            // The guest measures the last ones; those before are to warm up. The first one may begin with an exit into what
            // nobody knows the callers of.
            rounds.drain(..rounds.len().saturating_sub(ROUNDS as usize).max(1).min(rounds.len()));
            if !rounds.is_empty() {
                return Ok((self.guest.times(&outcome)?, run, rounds));
            }
        }
        bail!(
            "QEMU told of no whole round in {ATTEMPTS} runs; is the machine busy, or the trace of another form?"
        )
    }

    /// Runs the machine; what it told.
    fn run(&self, verbose: bool) -> Result<(Outcome, Run)> {
        // A pipe has no name but this one, by which QEMU opens it anew.
        let (trace, into) = io::pipe().context("cannot make a pipe")?;
        let mut machine = self.machine.clone();
        let name = format!("/proc/{}/fd/{}", process::id(), into.as_raw_fd());
        // Of blocks that lead directly into each other only the first would be told.
        machine.words.extend(["-D", &name, "-d", "nochain"].map(str::to_owned));
        if verbose {
            eprintln!("bench: {}", machine.command_line());
        }
        let (monitor, input) = Monitor::pair()?;
        let reader = thread::spawn(move || Run::read(BufReader::new(trace)));
        let mut teller = Teller { monitor, stepping: Some(self.stepping) };
        let (mut into, mut told) = (Some(into), Ok(()));
        let outcome = machine.watch(LIMIT, Some(input), |event| {
            let Event::Line(Stream::Out, line) = event else { return ControlFlow::Continue(()) };
            // QEMU has the pipe open; what we hold of it would keep it from ever ending.
            into = None;
            told = teller.hear(line);
            if told.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        drop(into);
        let run = reader.join().map_err(|_| anyhow!("the reader of the trace died"))?;
        told.context("QEMU does not tell what it executes")?;
        let outcome = outcome?;
        check(&machine, &outcome, "levelhead")?;
        Ok((outcome, run.context("cannot read what QEMU tells")?))
    }
}

/// Makes QEMU tell what it executes, by its monitor.
struct Teller {
    monitor: Monitor,
    /// The command that is to be the first.
    stepping: Option<&'static str>,
}

impl Teller {
    /// Takes a line of the console. One instruction at a time from the first one on, since the firmware before would take long
    /// that way; told from where the rounds begin.
    fn hear(&mut self, line: &str) -> Result<()> {
        if let Some(stepping) = self.stepping.take() {
            self.monitor.begin()?;
            self.say(stepping)?;
        }
        if line.contains(BEGINS) { self.say(&format!("log {ITEMS}")) } else { Ok(()) }
    }

    fn say(&mut self, command: &str) -> Result<()> {
        let answer = self.monitor.human(command)?;
        ensure!(answer.trim().is_empty(), "its monitor answers {command:?} with {:?}", answer.trim());
        Ok(())
    }
}

/// Where the instructions of a guest's interrupt go.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Profile {
    #[serde(flatten)]
    guest: Guest,
    /// How many rounds were told.
    rounds: usize,
    /// All instructions of a round.
    round_trip: Spread,
    /// Of these the guest's own.
    guest_instructions: Spread,
    /// What a round consists of.
    parts: Vec<Part>,
}

/// What is between two time stamps.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Part {
    part: &'static str,
    /// For people.
    #[serde(skip)]
    title: &'static str,
    instructions: Spread,
    guest_instructions: Spread,
    /// One tree for each time the guest was left.
    exits: Vec<Exit>,
}

/// What was done from an exit of the guest to the next entry.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Exit {
    /// Why the guest was left, as the manual names it.
    exit: String,
    #[serde(flatten)]
    stage: Stage,
}

impl Exit {
    fn of(code: Option<u64>, stage: Stage) -> Self {
        let exit = code.map_or_else(|| "unknown".to_owned(), |code| ExitCode::new(code).to_string());
        Self { exit, stage }
    }
}

/// The parts: for machines, and for people.
const TITLES: [(&str, &str); PARTS] = [
    ("raise_to_isr", "raise to ISR"),
    ("acknowledge", "acknowledge the device"),
    ("eoi", "EOI"),
    ("return", "return to the program"),
];

/// The instructions of a part, round by round.
#[derive(Debug)]
struct Counted {
    guest: Vec<u64>,
    /// The hypervisor's, by which exit it is in the part, and why the guest was left.
    exits: BTreeMap<(usize, Option<u64>), Counts>,
}

/// Counts the instructions of each part. `nodes` has for each instruction of the run where it belongs in the tree of calls;
/// nothing for the guest's.
fn count(run: &Run, nodes: &[Option<usize>], rounds: &[Round]) -> [Counted; PARTS] {
    let none = || Counted { guest: vec![0; rounds.len()], exits: BTreeMap::new() };
    let mut parts = [none(), none(), none(), none()];
    for (round, ranges) in rounds.iter().enumerate() {
        for (part, range) in parts.iter_mut().zip(ranges) {
            let nodes = nodes.get(range.clone()).unwrap_or_default();
            let (mut begin, mut exit) = (range.start, 0);
            for stretch in nodes.chunk_by(|one, next| one.is_some() == next.is_some()) {
                if stretch.first().is_some_and(Option::is_some) {
                    let code = run.exits.get(&begin).map(|code| code.raw());
                    let counts = part.exits.entry((exit, code));
                    let counts = counts.or_insert_with(|| Counts::new(rounds.len()));
                    let places = stretch.iter().flatten().enumerate();
                    places.for_each(|(place, node)| counts.count(*node, round, place));
                    exit += 1;
                } else if let Some(guest) = part.guest.get_mut(round) {
                    *guest += stretch.len() as u64;
                }
                begin += stretch.len();
            }
        }
    }
    parts
}

impl Profile {
    /// Of the `rounds` in that run. Instructions that are at none of the `sites` of the hypervisor are the guest's.
    fn of(guest: Guest, run: &Run, rounds: &[Round], sites: &HashMap<u64, Site>, least: Option<u64>) -> Self {
        let mut calls = Calls::new();
        let ran = &run.instructions;
        // What the hypervisor was doing as the telling began has callers that nobody knows.
        let behind = ran.iter().take_while(|address| sites.contains_key(address)).count();
        let nodes = ran.iter().enumerate().map(|(at, address)| {
            let site = sites.get(address).filter(|_| at >= behind)?;
            Some(calls.step(*address, site))
        });
        let nodes: Vec<Option<usize>> = nodes.collect();
        let counted = count(run, &nodes, rounds).map(|Counted { guest, exits }| {
            let exits = exits.iter().filter_map(|((_, code), counts)| Some((*code, calls.tree(counts)?)));
            let exits: Vec<_> = exits.collect();
            let all = exits.iter().fold(guest.clone(), |sums, (_, called)| add(sums, &called.totals()));
            (all, guest, exits)
        });
        let sum = |sums: Vec<u64>, more: &Vec<u64>| add(sums, more);
        let none = vec![0; rounds.len()];
        let round_trip = Spread::of(counted.iter().map(|(all, _, _)| all).fold(none.clone(), sum));
        let guest_instructions = Spread::of(counted.iter().map(|(_, guest, _)| guest).fold(none, sum));
        let least = least.unwrap_or(round_trip.median.div_ceil(SHOWN));
        let parts = TITLES.into_iter().zip(counted).map(|((part, title), (all, guest, exits))| Part {
            part,
            title,
            instructions: Spread::of(all),
            guest_instructions: Spread::of(guest),
            exits: exits.iter().map(|(code, called)| Exit::of(*code, called.stage(least))).collect(),
        });
        Self { guest, rounds: rounds.len(), round_trip, guest_instructions, parts: parts.collect() }
    }

    /// Whether the instructions that were told are those that the guest counted.
    fn check(&self, times: Times) -> Result<()> {
        let part =
            |name: &str| self.parts.iter().find(|part| part.part == name).map(|part| part.instructions);
        for (what, told, measured) in [
            ("from raise to ISR", part("raise_to_isr"), times.raise_to_isr),
            ("of the EOI", part("eoi"), times.eoi),
            ("of the round trip", Some(self.round_trip), times.round_trip),
        ] {
            let told = told.with_context(|| format!("nothing was told {what}"))?;
            ensure!(
                measured.min <= told.min && told.max <= measured.max,
                "the stages {what} add up to {told} instructions (min / median / max), the guest measured {measured}"
            );
        }
        Ok(())
    }

    /// The result for people.
    fn show(&self, console: &mut Console) {
        let Self { rounds, round_trip, guest_instructions, .. } = *self;
        let same = if round_trip.is_one() { "the same in each" } else { "min / median / max" };
        let name = self.guest.name();
        console.line(format_args!("{name}: instructions of a round, {same} of {rounds} rounds"));
        let columns = [("all", Align::Right), ("own", Align::Right), ("share", Align::Right)];
        let mut table = Table::new(columns.into_iter().chain([("", Align::Left), ("stage", Align::Left)]));
        let mut row = |depth: usize, style, name: &str, instructions: Spread, own: Option<Spread>| {
            let of = |whole: u64| instructions.median.saturating_mul(whole) / round_trip.median.max(1);
            let permille = of(1000);
            table.row([
                instructions.short().into(),
                own.map_or_else(String::new, Spread::short).into(),
                format!("{}.{} %", permille / 10, permille % 10).into(),
                Cell::painted(FAINT, "#".repeat(usize::try_from(of(BAR)).unwrap_or(0))),
                Cell::painted(style, format!("{}{name}", "  ".repeat(depth))),
            ]);
        };
        row(0, STRONG, "round trip", round_trip, None);
        for part in &self.parts {
            row(1, STRONG, part.title, part.instructions, None);
            if part.guest_instructions.max > 0 {
                row(2, FAINT, "the guest", part.guest_instructions, Some(part.guest_instructions));
            }
            for exit in &part.exits {
                let begins = format!("{}: ", exit.exit);
                exit.stage.walk(2, &mut |depth, name, stage| {
                    let name = if depth == 2 { format!("{begins}{name}") } else { name };
                    row(depth, Style::new(), &name, stage.instructions, Some(stage.own));
                });
            }
        }
        console.table(&table);
        console.line("");
        let hypervisor = round_trip.median.saturating_sub(guest_instructions.median);
        console.line(format_args!(
            "{hypervisor} of the hypervisor and {} of the guest, which measured the same",
            guest_instructions.median
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::Paper;

    const SWITCH: u64 = 0xffff_ffff_8020_0100;
    const RUN: u64 = 0xffff_ffff_8020_0200;
    const TAKE: u64 = 0xffff_ffff_8020_0300;

    fn clock(address: u64) -> Option<trace::Clock> {
        match address {
            0x1000 | 0x1010 => Some(trace::Clock::Program),
            0x2000 | 0x2010 | 0x2020 => Some(trace::Clock::Handler),
            _ => None,
        }
    }

    fn sites() -> HashMap<u64, Site> {
        let site = |start: u64, chain: &[&str]| Site {
            start: Some(start),
            chain: chain.iter().map(|name| (*name).to_owned()).collect(),
        };
        HashMap::from([
            (SWITCH, site(SWITCH, &["lh_vmrun"])),
            (SWITCH + 8, site(SWITCH, &["lh_vmrun"])),
            (RUN + 4, site(RUN, &["run::run"])),
            (RUN + 8, site(RUN, &["run::run", "run::take"])),
            (TAKE, site(TAKE, &["run::take_line"])),
            (TAKE + 4, site(TAKE, &["run::take_line", "intx::table::assert"])),
            (RUN + 12, site(RUN, &["run::run", "exits::handle"])),
        ])
    }

    /// The trace of a run whose rounds take one look at the line more each. QEMU tells the write of the EOI that the guest
    /// is left for, and a look that is begun again.
    fn trace(rounds: u64) -> String {
        let mut lines = Vec::new();
        let mut ran = |addresses: &[u64]| {
            let line = |address: &u64| format!("Trace 0: 0x7f4600 [0000000000000000/{address:016x}/0/0] f");
            lines.extend(addresses.iter().map(line));
            lines.len()
        };
        let mut exits = Vec::new();
        // The telling begins somewhere, and the first exit is into nobody knows what.
        ran(&[TAKE + 4, RUN + 4, SWITCH, 0x1014, SWITCH + 8, RUN + 4, SWITCH]);
        for round in 0..rounds {
            let left = ran(&[0x1000, 0x1004]);
            exits.push((left, "vmexit(00000060, 0000000000000000, 0000000000000000, 0000000000001008)!"));
            ran(&[SWITCH + 8, RUN + 4, RUN + 8, TAKE]);
            let again = (0..=round + 1).map(|_| ran(&[TAKE + 4])).max().unwrap();
            exits.push((again, "cpu_io_recompile: rewound execution of TB to ffffffff80200304"));
            ran(&[TAKE + 4, RUN + 8, RUN + 4, SWITCH, 0x2000, 0x2004, 0x2010]);
            let left = ran(&[0x2014]);
            exits.push((left, "vmexit(0000007c, 0000000000000001, 0000000000000000, 0000000000002014)!"));
            ran(&[SWITCH + 8, RUN + 12, RUN + 4, SWITCH, 0x2020, 0x2024, 0x1010]);
        }
        for (at, line) in exits.into_iter().rev() {
            lines.insert(at, line.to_owned());
        }
        lines.join("\n")
    }

    fn profile(number: u64, least: Option<u64>) -> Profile {
        let run = Run::read(trace(number).as_bytes()).unwrap();
        let rounds = rounds(&run.instructions, clock);
        assert_eq!(rounds.len() as u64, number);
        Profile::of(DEFAULT, &run, &rounds, &sites(), least)
    }

    #[test]
    fn stages_add_up_to_the_round_trip() {
        fn own(stage: &Stage) -> u64 {
            stage.own.median + stage.stages.iter().map(own).sum::<u64>()
        }
        for least in [1, 2, 5, 100] {
            let profile = profile(1, Some(least));
            let exits = profile.parts.iter().flat_map(|part| &part.exits);
            let hypervisor: u64 = exits.map(|exit| own(&exit.stage)).sum();
            let guest: u64 = profile.parts.iter().map(|part| part.guest_instructions.median).sum();
            assert_eq!((hypervisor, guest), (13, 7), "at least {least}");
            assert_eq!((profile.round_trip.median, profile.guest_instructions.median), (20, 7));
        }
    }

    #[test]
    fn what_the_guest_did_not_measure_is_refused() {
        let one = |count| Spread { min: count, median: count, max: count };
        let times = Times { raise_to_isr: one(11), eoi: one(5), round_trip: one(20), replacement: None };
        let profile = profile(1, None);
        profile.check(times).unwrap();
        for (times, what) in [
            (Times { raise_to_isr: one(12), ..times }, "from raise to ISR add up to 11 / 11 / 11"),
            (Times { eoi: one(4), ..times }, "of the EOI add up to 5"),
            (Times { round_trip: one(21), ..times }, "of the round trip add up to 20"),
        ] {
            let error = profile.check(times).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn rounds_that_differ_are_told_by_their_spread() {
        let profile = profile(3, None);
        assert_eq!(profile.round_trip, Spread { min: 20, median: 21, max: 22 });
        let paper = Paper::default();
        profile.show(&mut Console::plain(paper.clone()));
        let text = paper.text();
        assert!(
            text.starts_with("x2apic busy: instructions of a round, min / median / max of 3 rounds\n"),
            "{text}"
        );
        assert!(text.contains("20 / 21 / 22"), "{text}");
    }

    #[test]
    fn the_tree_for_people_goes_from_the_round_trip_to_functions() {
        let paper = Paper::default();
        profile(1, None).show(&mut Console::plain(paper.clone()));
        let expected = "\
x2apic busy: instructions of a round, the same in each of 1 rounds
all  own    share              stage
 20       100.0 %  ##########  round trip
 11        55.0 %  #####         raise to ISR
  2    2   10.0 %  #               the guest
  9    2   45.0 %  ####            INTR (0x60): run::run
  2    2   10.0 %  #                 lh_vmrun
  5    2   25.0 %  ##                run::take
  3    1   15.0 %  #                   run::take_line
  2    2   10.0 %  #                     intx::table::assert
  2        10.0 %  #             acknowledge the device
  2    2   10.0 %  #               the guest
  5        25.0 %  ##            EOI
  1    1    5.0 %                  the guest
  4    1   20.0 %  ##              MSR (0x7c): run::run
  2    2   10.0 %  #                 lh_vmrun
  1    1    5.0 %                    exits::handle
  2        10.0 %  #             return to the program
  2    2   10.0 %  #               the guest

13 of the hypervisor and 7 of the guest, which measured the same
";
        assert_eq!(paper.text(), expected);
    }

    #[test]
    fn the_json_has_the_agreed_keys() {
        let printed = json::tests::printed("bench-stages", &profile(1, Some(4)));
        assert_eq!(printed, json::tests::example("bench-stages"));
    }
}
