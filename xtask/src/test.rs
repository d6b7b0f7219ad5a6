//! `test`: everything that must hold, in one go: host steps, host tests, models, QEMU cases.
//!
//! First the plan is made, which lists every test by its name; then it is carried out with one line per test:
//! a count, a verdict, a name and a time. The last line is the sum. `report` prints all of it. What passed before is not run
//! again while nothing it depends on has changed: `passes` knows.

mod host;
mod passes;
mod report;
pub mod suite;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::env;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::build::Tree;
use crate::cases::{self, Case};
use crate::console::{Console, json};
use crate::digest::Digest;
use crate::gates::{GATES, source};
use crate::{linux, setup, signals};

pub use host::{Step, output, succeeds};
use passes::Passes;
pub use report::Report;
use suite::Suite;

/// What `test` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether missing packages may be installed.
    pub setup: bool,
    /// The classes that were named; none means all.
    pub classes: Vec<Class>,
    /// Pieces of names: a test runs when its name holds one of them, or when there are none.
    pub filters: Vec<String>,
    /// Whether what passed before is run all the same.
    pub again: bool,
    /// Whether to list the names only.
    pub list: bool,
    /// Whether to print JSON on standard output; lines for people go to standard error then.
    pub json: bool,
    /// How long the tests of `tests/border` and `tests/intx_fuzz` go on, and from where.
    pub fuzz: Fuzz,
}

/// What the tests at random are told; without a word they choose for themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fuzz {
    /// Histories of each test.
    pub rounds: Option<u64>,
    /// The first one's seed.
    pub seed: Option<u64>,
}

impl Fuzz {
    /// The variables they read it from.
    fn variables(self) -> impl Iterator<Item = (&'static str, String)> {
        let variables = [("LEVELHEAD_FUZZ_ROUNDS", self.rounds), ("LEVELHEAD_FUZZ_SEED", self.seed)];
        variables.into_iter().filter_map(|(name, value)| Some((name, value?.to_string())))
    }
}

/// The part of the ladder a test belongs to, and the first part of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Checks and tests on the host.
    Host,
    /// Models that loom explores.
    Model,
    /// Cases in QEMU.
    Qemu,
}

impl Class {
    const ALL: [Self; 3] = [Self::Host, Self::Model, Self::Qemu];

    fn prefix(self) -> &'static str {
        match self {
            Self::Host => "host/",
            Self::Model => "model/",
            Self::Qemu => "qemu/",
        }
    }
}

impl Options {
    /// Whether a test of that class can be among the wanted ones. A filter that begins with the class's own
    /// prefix (`qemu/demo`) saves making plans for the others.
    fn wants_class(&self, class: Class) -> bool {
        let named = self.classes.is_empty() || self.classes.contains(&class);
        let possible = |filter: &String| {
            let other = |c: &Class| *c != class && filter.starts_with(c.prefix());
            !Class::ALL.iter().any(other)
        };
        named && (self.filters.is_empty() || self.filters.iter().any(possible))
    }

    fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }

    /// What is said when no test is wanted.
    fn unknown(&self) -> String {
        format!("no test has a name with {}; `--list` shows the names", self.filters.join(" or "))
    }

    /// Whether a test is asked for by its whole name, so that it runs whatever is known of it.
    fn names(&self, name: &str) -> bool {
        let bare = Class::ALL.iter().find_map(|class| name.strip_prefix(class.prefix())).unwrap_or(name);
        self.filters.iter().any(|filter| filter == name || filter == bare)
    }
}

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Well.
    Passed,
    /// Well, in an earlier run; nothing that it depends on has changed since, and it was not run.
    Unchanged,
    /// Badly; these lines say how.
    Failed(Vec<String>),
    /// It was not run, for this reason.
    Skipped(String),
}

impl From<Result<(), Vec<String>>> for Verdict {
    fn from(result: Result<(), Vec<String>>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Passed)
    }
}

/// The names alone, for machines.
#[derive(Debug, Serialize)]
struct List {
    tests: Vec<String>,
}

/// Makes the plan and carries it out.
///
/// # Errors
/// When a test fails, when no plan can be made, or when nothing is wanted.
pub fn test(tree: &Tree, options: &Options) -> Result<()> {
    let steps: Vec<host::Step> = match options.wants_class(Class::Host) {
        true => host::STEPS.into_iter().chain(GATES).filter(|step| options.wants(step.name)).collect(),
        false => Vec::new(),
    };
    let mut models = Vec::new();
    if options.wants_class(Class::Model) {
        models = suite::model_names(tree)?;
        models.retain(|name| options.wants(name));
    }
    let mut cases = Vec::new();
    if options.wants_class(Class::Qemu) {
        cases = cases::load(tree)?;
        cases.retain(|case| options.wants(&case_name(case)));
    }
    // The names of the host's tests are known when they are built, the others' before.
    let hosts = options.wants_class(Class::Host);
    if hosts && steps.is_empty() && models.is_empty() && cases.is_empty() {
        refuse_strangers(tree, options)?;
    }
    let mut suites = Vec::new();
    let mut broken = Vec::new();
    for (class, wanted, plan) in [
        (Class::Host, hosts, suite::host as fn(&Tree) -> _),
        (Class::Model, !models.is_empty() && !options.list, suite::models),
    ] {
        if !wanted {
            continue;
        }
        eprintln!("test: building the {} tests", class.prefix().trim_end_matches('/'));
        match plan(tree) {
            Ok(planned) => {
                suites.extend(planned.into_iter().filter_map(|suite| suite.select(|n| options.wants(n))))
            }
            Err(lines) => broken.push((format!("{}build-tests", class.prefix()), lines)),
        }
    }

    let tests = suites.iter().map(Suite::len).sum::<usize>();
    ensure!(steps.len() + broken.len() + tests + models.len() + cases.len() > 0, "{}", options.unknown());
    if options.list {
        let steps = steps.iter().map(|step| step.name.to_owned());
        let tests = suites.iter().flat_map(Suite::names);
        let names = steps.chain(tests).chain(models).chain(cases.iter().map(case_name));
        if options.json {
            json::print("test-list", &List { tests: names.collect() })?;
        } else {
            let mut console = Console::stdout();
            names.for_each(|name| console.line(name));
        }
        ensure!(broken.is_empty(), "some tests do not build and are not listed");
        return Ok(());
    }

    let planned = steps.len() + broken.len() + tests + cases.len();
    let passes = Passes::open(tree, options)?;
    let report = Report::new(planned, Console::beside(options.json), options.json);
    report.during(|| {
        // The builds come first among the steps, so that the cases have something to boot.
        let go_on = || signals::caught().is_none();
        for step in steps.iter().take_while(|_| go_on()) {
            let start = Instant::now();
            report.begin(step.name);
            let run = || (step.run)(tree, options.setup);
            let verdict = match step.makes {
                true => run(),
                false => {
                    let digest = || passes.of_tree(tree);
                    passes.verdict(step.name, options.names(step.name), digest, run)
                }
            };
            report.record(step.name, verdict, Some(start.elapsed()));
        }
        for (name, lines) in broken {
            report.record(&name, Verdict::Failed(lines), None);
        }
        for suite in suites.iter().take_while(|_| go_on()) {
            suite.judge(tree, options, &passes, &report);
        }
        run_cases(tree, options, &cases, &passes, &report);
    });
    report.close();
    if let Some(signal) = signals::caught() {
        bail!("interrupted by {}; what was not run yet is not counted", signals::name(signal));
    }
    if report.has_failed() {
        bail!(crate::Reported);
    }
    Ok(())
}

/// Refuses filters that no test on the host can be meant by, before the tests are built: what a test is called stands in the
/// sources, or is their path.
fn refuse_strangers(tree: &Tree, options: &Options) -> Result<()> {
    let mut known = format!("{} doc-examples", Class::Host.prefix());
    for path in source::rust(&tree.root)? {
        known += &source::read(&tree.root.join(&path))?;
        known += &path.display().to_string();
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let possible = |filter: &String| filter.split(|c| !is_part(c)).all(|word| known.contains(word));
    ensure!(options.filters.iter().any(possible), "{}", options.unknown());
    Ok(())
}

fn case_name(case: &Case) -> String {
    format!("{}{}", Class::Qemu.prefix(), case.name)
}

/// The verdict on a case that cannot run because of `error`: what is missing is no failure, except under CI.
fn without(error: &anyhow::Error) -> Verdict {
    let reason = format!("{error:#}");
    if error.is::<setup::Missing>() && env::var("CI").as_deref() != Ok("true") {
        Verdict::Skipped(reason)
    } else {
        Verdict::Failed(vec![reason])
    }
}

/// Runs the QEMU cases: as many at a time as there are CPUs, then those that want to be alone.
fn run_cases(tree: &Tree, options: &Options, cases: &[Case], passes: &Passes, report: &Report) {
    if cases.is_empty() {
        return;
    }
    let start = Instant::now();
    let ready = setup::qemu(None, options.setup, "test")
        .and_then(|qemu| setup::qemu_version(&qemu).map(|version| (qemu, version)));
    let (qemu, version) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            for case in cases {
                report.record(&case_name(case), without(&error), None);
            }
            return;
        }
    };
    // After the step of that name this is a matter of a second; with a filter it may be the only build.
    if let Verdict::Failed(lines) = host::build(tree, false) {
        for case in cases {
            report.record(&case_name(case), Verdict::Failed(lines.clone()), Some(start.elapsed()));
        }
        return;
    }

    let emulator = passes.of_emulator(&qemu).ok();
    let wants_gdb = cases.iter().any(|case| !case.gdb.is_empty());
    let gdb = if wants_gdb { setup::gdb(options.setup, "test").map(|_| ()) } else { Ok(()) };

    // The kernels of others that cases boot, each got once.
    let kernels: BTreeSet<&str> = cases.iter().filter_map(|case| case.linux.as_deref()).collect();
    let get = |package| linux::prepare(tree, package, options.setup, "test").err();
    let missing: BTreeMap<&str, anyhow::Error> =
        kernels.into_iter().filter_map(|package| Some((package, get(package)?))).collect();

    let (alone, together): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.alone);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(4);
    for (cases, workers) in [(together, workers), (alone, 1)] {
        let queue = Mutex::new(VecDeque::from(cases));
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    let next = || match signals::caught() {
                        Some(_) => None,
                        None => queue.lock().ok().and_then(|mut queue| queue.pop_front()),
                    };
                    while let Some(case) = next() {
                        let (name, start) = (case_name(case), Instant::now());
                        report.begin(&name);
                        let lacking = case.linux.as_deref().and_then(|package| missing.get(package));
                        let verdict = match (case.unfit(version), lacking, &gdb) {
                            (Some(reason), ..) => Verdict::Skipped(reason),
                            (None, Some(error), _) => without(error),
                            (None, None, Err(error)) if !case.gdb.is_empty() => without(error),
                            (None, None, _) => {
                                judge(case, options.names(&name), tree, &qemu, emulator.as_ref(), passes)
                            }
                        };
                        report.record(&name, verdict, Some(start.elapsed()));
                    }
                });
            }
        });
    }
}

/// The verdict on a case: it is booted unless it passed before, or if it is `asked` for. Without a digest of the emulator
/// nothing is remembered.
fn judge(
    case: &Case,
    asked: bool,
    tree: &Tree,
    qemu: &Path,
    emulator: Option<&Digest>,
    passes: &Passes,
) -> Verdict {
    match case.prepare(tree, qemu) {
        Ok(ready) => {
            let digest = || ready.digest(emulator.cloned().context("QEMU cannot be told from others")?);
            passes.verdict(&case_name(case), asked, digest, || ready.run().into())
        }
        Err(lines) => Verdict::Failed(lines),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::build::Profile;

    fn options(classes: &[Class], filters: &[&str]) -> Options {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Options { classes: classes.to_vec(), filters, ..Options::default() }
    }

    #[test]
    fn no_class_means_all_of_them() {
        for class in Class::ALL {
            assert!(options(&[], &[]).wants_class(class));
            assert_eq!(options(&[Class::Qemu], &[]).wants_class(class), class == Class::Qemu);
            assert_eq!(options(&[], &["qemu/demo"]).wants_class(class), class == Class::Qemu);
            assert!(options(&[], &["demo"]).wants_class(class));
        }
        assert!(options(&[], &["qemu/demo", "host/fmt"]).wants_class(Class::Host));
    }

    #[test]
    fn a_filter_is_a_piece_of_the_name() {
        assert!(options(&[], &[]).wants("qemu/demo"));
        assert!(options(&[], &["x", "dem"]).wants("qemu/demo"));
        assert!(!options(&[], &["echo"]).wants("qemu/demo"));
    }

    #[test]
    fn a_case_is_booted_once_until_its_image_changes_and_a_failed_one_each_time() {
        let root = env::temp_dir().join(format!("levelhead-judge-{}", std::process::id()));
        let tree = Tree { target: root.join("target"), root: root.clone(), profile: Profile::Release };
        let image = tree.hypervisor();
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        // A QEMU that counts how often it is started, and ends as the image says.
        let qemu = root.join("qemu");
        let script =
            "#!/bin/sh\necho >>\"$0-count\"\necho levelhead: verdict PASS\nexit $(cat \"$0-status\")\n";
        let mut write = Command::new("/bin/sh");
        write.args(["-c", "printf %s \"$1\" >\"$0\" && chmod +x \"$0\""]).arg(&qemu).arg(script);
        assert!(write.status().unwrap().success());
        let ends = |status: &str| fs::write(root.join("qemu-status"), status).unwrap();
        let case = cases::tests::case("bundle = \"none\"\nexpect = { exit = 33 }").unwrap();
        let passes = Passes::fresh(root.join("passed"));
        let emulator = Digest::default();
        let boot = |asked| judge(&case, asked, &tree, &qemu, Some(&emulator), &passes);
        let boots = || fs::read_to_string(root.join("qemu-count")).map_or(0, |text| text.lines().count());

        fs::write(&image, "one").unwrap();
        ends("41");
        for failures in 1..=2 {
            assert!(matches!(boot(false), Verdict::Failed(_)));
            assert_eq!(boots(), failures, "a failure is not remembered");
        }
        ends("33");
        assert_eq!((boot(false), boots()), (Verdict::Passed, 3));
        assert_eq!((boot(false), boots()), (Verdict::Unchanged, 3));
        fs::write(&image, "onf").unwrap();
        assert_eq!((boot(false), boots()), (Verdict::Passed, 4), "a byte of the image");
        assert_eq!((boot(false), boots()), (Verdict::Unchanged, 4));
        assert_eq!((boot(true), boots()), (Verdict::Passed, 5), "asked for");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_filter_that_no_source_speaks_of_is_refused_before_anything_is_built() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let tree = Tree { target: root.join("target"), root, profile: Profile::Release };
        // Not in one word, which this source would speak of.
        let stranger = ["zz", "yy", "xx"].concat();
        let refused = |filters: &[&str]| refuse_strangers(&tree, &options(&[], filters)).is_err();
        assert!(refused(&[&stranger]));
        assert!(refused(&[&format!("host/levelhead::{stranger}")]));
        let names = ["host/levelhead::intx::line::tests::n9", "memory_rout", "doc-examples", "unsafe_code::"];
        for name in names {
            assert!(!refused(&[name]) && !refused(&[&stranger, name]), "{name}");
        }
        // It would be an error of another kind if anything had been tried.
        let error = test(&tree, &options(&[], &[&stranger])).unwrap_err().to_string();
        assert_eq!(error, format!("no test has a name with {stranger}; `--list` shows the names"));
        let error = test(&tree, &options(&[], &["qemu/nobody"])).unwrap_err().to_string();
        assert_eq!(error, "no test has a name with qemu/nobody; `--list` shows the names");
    }

    #[test]
    fn a_whole_name_asks_for_the_test_and_a_piece_does_not() {
        assert!(options(&[], &["x", "qemu/demo"]).names("qemu/demo"));
        assert!(options(&[], &["demo"]).names("qemu/demo"));
        assert!(options(&[], &["xtask::tests::a"]).names("host/xtask::tests::a"));
        for piece in ["qemu/dem", "emo", "qemu/", ""] {
            assert!(!options(&[], &[piece]).names("qemu/demo"), "{piece}");
        }
        assert!(!options(&[], &[]).names("qemu/demo"));
    }
}
