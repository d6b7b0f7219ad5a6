//! `kut`: the tests of kvm-unit-tests, from a checkout that the user has built, each as a guest of its own.
//!
//! * here: a test as a machine, its run, what became of it;
//! * `list`: which tests there are, and which cannot run here.
//!
//! A test is a Multiboot kernel. How many CPUs and how much memory it has it is told by its only module, a text of
//! `NAME=value` lines, and it ends by writing its result to port 0xf4: 0 is success. QEMU's
//! own port makes twice the result plus one of it, and so does its runner: 77 there, 38 here, means that there was nothing to test.

mod list;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use levelhead::config::{self, Config, Image, ImageIndex, Module, Partition};
use levelhead::irq::CpuId;
use levelhead::message::STATE_LOST;
use levelhead::policy::RestartPolicy;
use serde::Serialize;

use crate::Reported;
use crate::build::Tree;
use crate::bundle;
use crate::console::table::{Align, Cell, Table};
use crate::console::{BAD, Console, FAINT, GOOD, STRONG, WARNING, json};
use crate::process::End;
use crate::qemu::{HYPERVISOR_WORDS, Machine, Outcome};
use crate::setup;

use list::Test;

/// What the report for machines is called.
const REPORT: &str = "kut";
/// The most CPUs that a test is given.
pub const MOST_CPUS: u8 = 8;
/// A test's memory, if it does not ask for another.
const MEMORY_MIB: u64 = 128;
/// What the hypervisor needs beside it.
const HYPERVISOR_MIB: u64 = 128;
/// The most memory of a test, below a guest's hole for devices.
const MOST_MIB: u64 = 3072;
/// The name of each test's partition, and how its lines begin on the console.
const NAME: &str = "kut";
const PREFIX: &str = "[kut] ";
/// The record of a guest that ended by its exit port ends in this and the code.
const CODE: &str = "(code 0x";
/// What a test writes there that had nothing to test: QEMU's own exit port makes 77 of it.
const NOTHING_TESTED: u32 = 77 >> 1;
/// How QEMU runs several CPUs: in turns, by which what they do is the same each time.
const ONE_THREAD: &str = "tcg,thread=single";
/// And again if the test hung: one whose CPUs spin for each other lasts as many turns.
const A_THREAD_EACH: &str = "tcg,thread=multi";
/// How often it is run so at most: there QEMU 7.2 loses a guest's state once in some million world switches.
const MOST_LOST: u32 = 3;
/// How the line of a measurement ends that could not be taken.
const NOT_MEASURED: &str = "(skipped)";

/// What `kut` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checkout.
    pub path: PathBuf,
    /// Parts of the names that are wanted; none means all.
    pub filters: Vec<String>,
    /// How many CPUs each test gets, if not as many as it asks for.
    pub smp: Option<u8>,
    /// After which time a test counts as hung that does not ask for more.
    pub limit: Duration,
    /// Whether only to list.
    pub list: bool,
    /// Whether to show what the guests print.
    pub verbose: bool,
    /// Whether to report as JSON.
    pub json: bool,
    /// Whether missing packages may be installed.
    pub setup: bool,
    /// The QEMU binary, if not the one in `PATH`.
    pub qemu: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            filters: Vec::new(),
            smp: None,
            limit: Duration::from_secs(60),
            list: false,
            verbose: false,
            json: false,
            setup: false,
            qemu: None,
        }
    }
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    test: String,
    /// `passed`, `failed` or `skipped`; `listed` where none was to run.
    result: &'static str,
    /// How many CPUs it had.
    cpus: u8,
    /// Its checks.
    checks: Checks,
    /// What it wrote to its exit port, if it did.
    code: Option<u32>,
    /// Why it did not pass; for one that only measures, what it measured.
    said: Option<String>,
    seconds: f32,
}

/// How many of a test's checks went how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Checks {
    passed: u32,
    failed: u32,
    skipped: u32,
}

/// Runs what is wanted, and prints what became of each.
///
/// # Errors
/// When there is no such checkout, when nothing is wanted or nothing can be run at all, and when a test failed; that is
/// printed already.
pub fn run(tree: &Tree, options: &Options) -> Result<()> {
    let folder = options.path.join("x86");
    let path = folder.join("unittests.cfg");
    let text = fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}; --path names a checkout of kvm-unit-tests", path.display())
    })?;
    let all = list::read(&text);
    let wanted = |test: &&Test| {
        options.filters.is_empty() || options.filters.iter().any(|filter| test.name.contains(filter.as_str()))
    };
    let tests: Vec<&Test> = all.iter().filter(wanted).collect();
    ensure!(
        !tests.is_empty(),
        "{} has no test whose name holds {}",
        path.display(),
        options.filters.join(" or ")
    );

    let mut machine = None;
    if !options.list && tests.iter().any(|test| test.unfit(&folder).is_none()) {
        let qemu = setup::qemu(options.qemu.as_deref(), options.setup, "kut")?;
        tree.build()?;
        machine = Some(Machine::new(qemu, tree.hypervisor()));
    }
    let mut console = Console::beside(options.json);
    let mut rows = Vec::new();
    for test in tests {
        let cpus = options.smp.unwrap_or(test.cpus);
        let mut row = Row {
            test: test.name.clone(),
            result: "skipped",
            cpus,
            checks: Checks::default(),
            code: None,
            said: test.unfit(&folder),
            seconds: 0.0,
        };
        match &machine {
            Some(machine) if row.said.is_none() => {
                console.status(&format!("kut: {}", test.name));
                let mut machine = prepare(tree, machine, &folder, test, cpus)?;
                let limit = options.limit.max(Duration::from_secs(test.seconds.unwrap_or(0)));
                row.run(|accel| {
                    machine.accel = accel.map(str::to_owned);
                    let outcome = machine.run(limit, |line| {
                        if options.verbose {
                            console.line(line);
                        }
                    })?;
                    match outcome.end {
                        End::Interrupted(_) => bail!("{}: QEMU {}", test.name, outcome.end),
                        _ => Ok(outcome),
                    }
                })?;
            }
            None if row.said.is_none() => row.result = "listed",
            _ => {}
        }
        if options.json {
            json::print_line(REPORT, &row)?;
        }
        rows.push(row);
    }
    console.clear_status();
    show(&mut console, &rows, options.list)
}

/// The machine for a test, with its bundle.
fn prepare(tree: &Tree, machine: &Machine, folder: &Path, test: &Test, cpus: u8) -> Result<Machine> {
    let path = folder.join(&test.file);
    let kernel = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mib = test.memory_mib().min(MOST_MIB);
    let told = u8::from(test.has_test_device());
    let environment = format!("NR_CPUS={cpus}\nMEMSIZE={mib}\nTEST_DEVICE={told}\n");
    let partition = Partition {
        name: NAME.to_owned(),
        cpus: (0..cpus).map(CpuId).collect(),
        memory_bytes: mib << 20,
        memory_at: None,
        kernel: ImageIndex(0),
        modules: vec![Module { image: ImageIndex(1), cmdline: String::new() }],
        cmdline: test.args.clone(),
        console: config::Console::Lines,
        debug_port: None,
        exit_port: Some(0xf4),
        test_device: true,
        user_hypercalls: false,
        control: false,
        restart: RestartPolicy::NEVER,
        devices: Vec::new(),
    };
    let images =
        [Image { name: NAME, bytes: &kernel }, Image { name: "environment", bytes: environment.as_bytes() }];
    let packed = config::pack(&Config { partitions: vec![partition] }, &images)
        .map_err(|rejection| anyhow::anyhow!("{}: {rejection}", test.name))?;
    let place = tree.scratch("kut")?.join(&test.name).with_extension("bundle");
    bundle::write(&place, &packed)?;
    let mut machine = machine.clone();
    machine.initrd = Some(place);
    machine.append = HYPERVISOR_WORDS.to_owned();
    machine.memory = format!("{}M", mib + HYPERVISOR_MIB);
    machine.smp = cpus.into();
    Ok(machine)
}

/// Whether the emulator has lost the guest's state, so that the run says nothing of the test.
fn is_lost(outcome: &Outcome) -> bool {
    outcome.console.iter().any(|line| line.trim_start() == STATE_LOST)
}

impl Row {
    /// Has `boot` run the test, given how QEMU is to run several CPUs, and reads what became of it. What hung in one thread runs
    /// with one for each CPU, and there again as long as the emulator loses the guest's state, but not for ever.
    fn run(&mut self, mut boot: impl FnMut(Option<&str>) -> Result<Outcome>) -> Result<()> {
        let outcome = boot((self.cpus > 1).then_some(ONE_THREAD))?;
        self.judge(&outcome);
        if let (End::TimedOut(_), 2..) = (outcome.end, self.cpus) {
            let mut again = boot(Some(A_THREAD_EACH))?;
            for _ in 1..MOST_LOST {
                if !is_lost(&again) {
                    break;
                }
                again = boot(Some(A_THREAD_EACH))?;
            }
            self.judge_again(&again);
        }
        Ok(())
    }

    /// Reads from a run what became of the test.
    fn judge(&mut self, outcome: &Outcome) {
        self.seconds = outcome.took.as_secs_f32();
        let own: Vec<&str> = outcome.console.iter().filter_map(|line| line.strip_prefix(PREFIX)).collect();
        self.checks = Checks::of(&own);
        // The hypervisor's records begin without a guest's name.
        let ended = outcome.console.iter().find(|line| line.contains("Guest/") && !line.starts_with('['));
        self.code = ended.and_then(|line| {
            let (_, rest) = line.split_once(CODE)?;
            u32::from_str_radix(rest.split(')').next()?, 16).ok()
        });
        let last = own.iter().rev().find(|line| !line.trim().is_empty());
        let failed = own.iter().find(|line| line.starts_with("FAIL"));
        let fault = own.iter().find(|line| line.starts_with("Unhandled exception"));
        let said = |line: Option<&&str>| line.map(|line| (*line).to_owned());
        (self.result, self.said) = match (outcome.end, self.code) {
            (End::TimedOut(limit), _) => {
                let last = said(failed.or(last)).unwrap_or_else(|| "nothing".to_owned());
                ("failed", Some(format!("it hung for {} s after: {last}", limit.as_secs())))
            }
            (_, Some(0)) if last.is_some_and(|line| line.ends_with(NOT_MEASURED)) => ("skipped", said(last)),
            (_, Some(0)) if self.checks.failed == 0 => {
                ("passed", if self.checks == Checks::default() { said(last) } else { None })
            }
            (_, Some(NOTHING_TESTED)) if self.checks.failed == 0 => {
                ("skipped", said(own.iter().find(|line| line.starts_with("SKIP")).or(last)))
            }
            (_, Some(_)) => ("failed", said(failed.or(fault).or(last))),
            // The machine's end says less than the record of the guest's.
            (end, None) => ("failed", Some(ended.cloned().unwrap_or_else(|| format!("QEMU {end}")))),
        };
    }
}

impl Row {
    /// What became of it with a thread for each CPU, after it hung in one.
    fn judge_again(&mut self, outcome: &Outcome) {
        let before = self.said.take().unwrap_or_default();
        self.judge(outcome);
        let now = self.said.take().map_or_else(String::new, |said| format!(": {said}"));
        self.said =
            Some(format!("in one thread of QEMU {before}; with one for each CPU it {}{now}", self.result));
    }
}

impl Checks {
    /// By the test's own summary; without one, by its lines.
    fn of(lines: &[&str]) -> Self {
        let summary = lines.iter().rev().find_map(|line| line.strip_prefix("SUMMARY: "));
        let Some(summary) = summary else {
            let count = |word: &str| lines.iter().filter(|line| line.starts_with(word)).count() as u32;
            return Self { passed: count("PASS"), failed: count("FAIL"), skipped: count("SKIP") };
        };
        let number = |name: &str| {
            let part = summary.split(", ").find_map(|part| part.strip_suffix(name));
            part.and_then(|number| number.trim().parse::<u32>().ok()).unwrap_or(0)
        };
        let failed = number("unexpected failures");
        let skipped = number("skipped");
        let passed = number("tests").saturating_sub(failed).saturating_sub(skipped);
        Self { passed, failed, skipped }
    }
}

/// The table, and the closing line.
fn show(console: &mut Console, rows: &[Row], listed: bool) -> Result<()> {
    let mut table = Table::new([
        ("test", Align::Left),
        ("result", Align::Left),
        ("CPUs", Align::Right),
        ("passed", Align::Right),
        ("failed", Align::Right),
        ("skipped", Align::Right),
        ("code", Align::Right),
        ("s", Align::Right),
        ("", Align::Left),
    ]);
    for row in rows {
        let style = match row.result {
            "passed" => GOOD,
            "failed" => BAD,
            _ => WARNING,
        };
        let ran = matches!(row.result, "passed" | "failed") || row.code.is_some();
        let number = |number: u32| if ran { number.to_string() } else { String::new() };
        table.row([
            Cell::painted(STRONG, &*row.test),
            Cell::painted(style, row.result),
            row.cpus.to_string().into(),
            number(row.checks.passed).into(),
            number(row.checks.failed).into(),
            number(row.checks.skipped).into(),
            row.code.map_or_else(String::new, |code| code.to_string()).into(),
            (if ran { format!("{:.1}", row.seconds) } else { String::new() }).into(),
            Cell::painted(FAINT, row.said.as_deref().unwrap_or_default()),
        ]);
    }
    for line in table.lines(console) {
        console.line(line);
    }
    let count = |result| rows.iter().filter(|row| row.result == result).count();
    let failed = count("failed");
    if listed {
        console.line(format_args!("kut: {} can run, {} cannot", count("listed"), count("skipped")));
    } else {
        console.line(format_args!(
            "kut: {} passed, {failed} failed, {} skipped",
            count("passed"),
            count("skipped")
        ));
    }
    if failed > 0 {
        bail!(Reported);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cpus: u8) -> Row {
        Row {
            test: "ioapic".to_owned(),
            result: "skipped",
            cpus,
            checks: Checks::default(),
            code: None,
            said: None,
            seconds: 0.0,
        }
    }

    fn outcome(end: End, console: &[&str]) -> Outcome {
        let console = console.iter().map(|line| (*line).to_owned()).collect();
        Outcome { end, console, complaints: Vec::new(), took: Duration::from_millis(500) }
    }

    fn judged(end: End, console: &[&str]) -> Row {
        let mut row = row(2);
        row.judge(&outcome(end, console));
        row
    }

    const GOOD_END: &str =
        "INFO  Guest/reported-success: partition kut: the guest reported success (code 0x0)";
    const BAD_END: &str =
        "ERROR Guest/reported-failure: partition kut: the guest reported failure (code 0x1); to do: read";
    const SKIP_END: &str =
        "ERROR Guest/reported-failure: partition kut: the guest reported failure (code 0x26); to do: read";

    #[test]
    fn a_test_passes_by_its_code_and_its_checks() {
        let row = judged(End::Exited(33), &["[kut] PASS: a", "[kut] SUMMARY: 3 tests, 1 skipped", GOOD_END]);
        assert_eq!((row.result, row.code, row.said.as_deref()), ("passed", Some(0), None));
        assert_eq!(row.checks, Checks { passed: 2, failed: 0, skipped: 1 });
        let row = judged(End::Exited(33), &["[kut] PASS: a", "[kut] FAIL: b", GOOD_END]);
        assert_eq!((row.result, row.said.as_deref()), ("failed", Some("FAIL: b")));
        // What succeeds by the hypervisor's rules need not by the tests'.
        let row = judged(End::Exited(33), &["[kut] x", &GOOD_END.replace("0x0", "0x10")]);
        assert_eq!((row.result, row.code), ("failed", Some(16)));
    }

    #[test]
    fn what_did_not_pass_says_why() {
        let why = |end, console: &[&str]| {
            let row = judged(end, console);
            (row.result, row.said.unwrap())
        };
        let summary = "[kut] SUMMARY: 3 tests, 1 unexpected failures";
        assert_eq!(
            why(End::Exited(35), &["[kut] FAIL: b", summary, BAD_END]),
            ("failed", "FAIL: b".to_owned())
        );
        assert_eq!(
            why(End::Exited(35), &["[kut] Unhandled exception 13 #GP(0)", "[kut] more", BAD_END]),
            ("failed", "Unhandled exception 13 #GP(0)".to_owned())
        );
        assert_eq!(
            why(End::Exited(35), &["[kut] SKIP: no PKU", SKIP_END]),
            ("skipped", "SKIP: no PKU".to_owned())
        );
        assert_eq!(
            why(End::TimedOut(Duration::from_secs(9)), &["[kut] PASS: a"]),
            ("failed", "it hung for 9 s after: PASS: a".to_owned())
        );
        let record = "ERROR Guest/triple-fault: partition kut: a triple fault";
        assert_eq!(why(End::Exited(35), &["[kut] a", record]), ("failed", record.to_owned()));
        assert_eq!(why(End::Exited(41), &["[kut] a"]), ("failed", format!("QEMU {}", End::Exited(41))));
    }

    #[test]
    fn a_test_that_hung_in_one_thread_is_judged_by_what_it_does_with_several() {
        let hung = judged(End::TimedOut(Duration::from_secs(9)), &["[kut] PASS: a"]);
        let again = |end, console: &[&str]| {
            let mut row = hung.clone();
            row.judge_again(&outcome(end, console));
            (row.result, row.checks.passed, row.said.unwrap())
        };
        let before = "in one thread of QEMU it hung for 9 s after: PASS: a; with one for each CPU it";
        assert_eq!(
            again(End::Exited(33), &["[kut] SUMMARY: 55 tests", GOOD_END]),
            ("passed", 55, format!("{before} passed"))
        );
        assert_eq!(
            again(End::Exited(35), &["[kut] FAIL: b", BAD_END]),
            ("failed", 0, format!("{before} failed: FAIL: b"))
        );
    }

    #[test]
    fn a_run_whose_guest_the_emulator_lost_says_nothing() {
        let lost = |line: &str| is_lost(&outcome(End::Exited(35), &[line]));
        assert!(lost(&format!("  {STATE_LOST}")));
        assert!(!lost(&format!("[kut] {STATE_LOST}")), "what a guest prints");
        assert!(!lost("  RIP 0x1000 RSP 0x2000"));
    }

    /// How QEMU ran a test of so many CPUs each time, and what became of it, where the runs go like this and no other is made.
    fn played(cpus: u8, runs: &[&Outcome]) -> (Vec<Option<String>>, &'static str, String) {
        let (mut row, mut left, mut accels) = (row(cpus), runs.iter(), Vec::new());
        let boot = |accel: Option<&str>| {
            accels.push(accel.map(str::to_owned));
            Ok(left.next().copied().expect("one run too many").clone())
        };
        row.run(boot).unwrap();
        assert_eq!(left.len(), 0, "one run too few");
        (accels, row.result, row.said.unwrap_or_default())
    }

    #[test]
    fn a_test_runs_again_only_where_threads_could_help_it_and_where_the_guest_was_lost_there() {
        let good = outcome(End::Exited(33), &["[kut] SUMMARY: 1 tests", GOOD_END]);
        let bad = outcome(End::Exited(35), &["[kut] FAIL: b", BAD_END]);
        let hung = outcome(End::TimedOut(Duration::from_secs(9)), &["[kut] PASS: a"]);
        let state = format!("  {STATE_LOST}");
        let record = "ERROR Guest/triple-fault: partition kut: a triple fault";
        let lost = outcome(End::Exited(35), &["[kut] PASS: a", record, &state]);
        let [one, each] = [ONE_THREAD, A_THREAD_EACH].map(|accel| Some(accel.to_owned()));
        let runs = |threads: usize| [vec![one.clone()], vec![each.clone(); threads]].concat();

        assert_eq!(played(1, &[&hung]).0, [None], "there is nothing to take turns");
        for first in [&good, &bad, &lost] {
            assert_eq!(played(2, &[first]).0, runs(0), "it came to an end");
        }
        for (threads, result) in [
            (vec![&good], "passed"),
            (vec![&bad], "failed"),
            (vec![&hung], "failed"),
            (vec![&lost, &good], "passed"),
            (vec![&lost, &lost, &bad], "failed"),
            (vec![&lost, &hung], "failed"),
        ] {
            let (accels, became, said) = played(4, &[vec![&hung], threads.clone()].concat());
            assert_eq!((accels, became), (runs(threads.len()), result));
            assert!(said.starts_with("in one thread of QEMU it hung for 9 s"), "{said}");
        }
        let (accels, result, said) = played(2, &[&hung, &lost, &lost, &lost]);
        assert_eq!((accels, result), (runs(MOST_LOST as usize), "failed"));
        assert!(said.ends_with(record), "{said}");
    }

    #[test]
    fn a_test_that_only_measures_says_what() {
        let row = judged(End::Exited(33), &["[kut] enabling apic", "[kut] cpuid 1234", "[kut] ", GOOD_END]);
        assert_eq!((row.result, row.said.as_deref()), ("passed", Some("cpuid 1234")));
        let row = judged(End::Exited(33), &["[kut] ipi (skipped)", GOOD_END]);
        assert_eq!((row.result, row.said.as_deref()), ("skipped", Some("ipi (skipped)")));
    }

    #[test]
    fn the_json_is_as_documented() {
        let row = judged(End::Exited(33), &["[kut] SUMMARY: 29 tests", GOOD_END]);
        assert_eq!(json::tests::printed(REPORT, &row), json::tests::example(REPORT));
    }
}
