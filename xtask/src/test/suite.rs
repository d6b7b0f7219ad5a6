//! Test programs built by cargo: their tests listed by name, and their results read line by line.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::passes::Passes;
use super::{Fuzz, Options, Report, Verdict, host};
use crate::build::{Tree, cargo};
use crate::digest::Digest;
use crate::process::{self, End};
use crate::signals;

/// No suite takes this long...
const LIMIT: Duration = Duration::from_secs(900);
/// ...but one that was asked for more.
const LIMIT_OF_MORE: Duration = Duration::from_secs(24 * 3600);
/// How much of a failed suite's report is shown.
const TAIL: usize = 200;
/// The programs of `tests/` that are models.
const MODELS: [&str; 2] = ["intx_loom", "smp_loom"];
/// What their labels begin with.
const MODEL_PREFIX: &str = "model/";

/// The tests of one program that are wanted.
#[derive(Debug)]
pub struct Suite {
    /// What the names of its tests begin with.
    label: String,
    /// How the program is started, without the names of tests.
    start: Start,
    /// The names as the program knows them.
    tests: Vec<String>,
    /// Whether these are all it has.
    whole: bool,
}

/// How a test program is started.
#[derive(Clone, Debug)]
enum Start {
    /// A program of its own, in the folder of its package.
    Program { path: PathBuf, folder: PathBuf },
    /// The examples in the library's documentation, which only cargo can run.
    Examples { root: PathBuf },
}

impl Start {
    fn command(&self) -> Command {
        match self {
            Self::Program { path, folder } => {
                let mut command = Command::new(path);
                command.current_dir(folder).env("CARGO_MANIFEST_DIR", folder);
                command
            }
            Self::Examples { root } => {
                let mut command = cargo();
                command.current_dir(root).args(["test", "--doc", "--package", "levelhead", "--"]);
                command
            }
        }
    }
}

/// The host tests: of every package, and the examples of the library.
///
/// # Errors
/// What cargo said when they do not build.
pub fn host(tree: &Tree) -> Result<Vec<Suite>, Vec<String>> {
    let mut build = cargo();
    build.current_dir(&tree.root).args([
        "test",
        "--workspace",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let mut suites = programs("host/", &mut build)?;
    suites.push(Suite::list("host/doc-examples".to_owned(), Start::Examples { root: tree.root.clone() })?);
    Ok(suites)
}

/// The full names of the models, as their sources have them: nothing need be built for that.
///
/// # Errors
/// When a source cannot be read.
pub fn model_names(tree: &Tree) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for program in MODELS {
        let path = tree.root.join("tests").join(program).with_extension("rs");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let label = format!("{MODEL_PREFIX}{program}");
        names.extend(tests_in(&text).map(|test| full_name(&label, test)));
    }
    names.sort();
    Ok(names)
}

/// The tests of a source that has no modules.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    let below = text.split("\n#[test]\n").skip(1);
    below.filter_map(|below| below.split_once("fn ")?.1.split('(').next())
}

/// The models, which loom explores. They live in a target directory of their own: the flag changes everything.
///
/// # Errors
/// What cargo said when they do not build, or that they are others than their sources say.
pub fn models(tree: &Tree) -> Result<Vec<Suite>, Vec<String>> {
    let named = model_names(tree).map_err(|error| vec![format!("{error:#}")])?;
    let mut build = cargo();
    build.current_dir(&tree.root).env("RUSTFLAGS", "--cfg loom").arg("test");
    // Optimised, for the many interleavings; but linking all of it at once would take longer than it saves.
    build.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    build.args(["--release", "--package", "levelhead", "--no-default-features"]);
    build.args(MODELS.iter().flat_map(|program| ["--test", program]));
    build.args(["--no-run", "--message-format=json-render-diagnostics", "--target-dir"]);
    build.arg(tree.target.join("loom"));
    let suites = programs(MODEL_PREFIX, &mut build)?;
    let mut built: Vec<_> = suites.iter().flat_map(Suite::names).collect();
    built.sort();
    if built != named {
        return Err(vec![format!("their sources name other models: {named:?}, not {built:?}")]);
    }
    Ok(suites)
}

/// The library's own tests, or one program of `tests/`, without the hypervisor and what only it needs.
///
/// # Errors
/// What cargo said when it does not build.
pub fn library(tree: &Tree, program: &str) -> Result<Vec<Suite>, Vec<String>> {
    let mut build = cargo();
    build.current_dir(&tree.root).args(["test", "--package", "levelhead", "--features", "emulate"]);
    build.args(["--no-default-features", "--no-run", "--message-format=json-render-diagnostics"]);
    build.arg("--target-dir").arg(&tree.target);
    // Built far more often than run.
    build.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0").env("CARGO_PROFILE_DEV_DEBUG", "0");
    match program {
        "levelhead" => build.arg("--lib"),
        other => build.args(["--test", other]),
    };
    programs("host/", &mut build)
}

/// Builds test programs and lists what they hold.
fn programs(prefix: &str, build: &mut Command) -> Result<Vec<Suite>, Vec<String>> {
    let messages = host::output(build)?;
    let mut suites = Vec::new();
    for message in messages.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        let Some(program) = Program::of(&message) else { continue };
        let suite = Suite::list(format!("{prefix}{}", program.label), program.start)?;
        if !suite.tests.is_empty() {
            suites.push(suite);
        }
    }
    suites.sort_by(|a, b| a.label.cmp(&b.label));
    Ok(suites)
}

/// A test program as cargo's messages describe it.
struct Program {
    label: String,
    start: Start,
}

impl Program {
    /// The program that a message announces, if it announces one.
    fn of(message: &serde_json::Value) -> Option<Self> {
        let path = PathBuf::from(message.get("executable")?.as_str()?);
        if !message.get("profile")?.get("test")?.as_bool()? {
            return None;
        }
        let folder = PathBuf::from(message.get("manifest_path")?.as_str()?).parent()?.to_owned();
        let label = message.get("target")?.get("name")?.as_str()?.to_owned();
        Some(Self { label, start: Start::Program { path, folder } })
    }
}

impl Suite {
    /// Asks a program for its tests.
    fn list(label: String, start: Start) -> Result<Self, Vec<String>> {
        let lines = host::output(start.command().arg("--list"))?;
        let tests = lines.iter().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
        Ok(Self { label, start, tests, whole: true })
    }

    /// Keeps the tests whose full names are wanted; nothing when there are none.
    pub fn select(mut self, wanted: impl Fn(&str) -> bool) -> Option<Self> {
        let before = self.tests.len();
        let label = self.label.clone();
        self.tests.retain(|test| wanted(&full_name(&label, test)));
        self.whole = self.tests.len() == before;
        (!self.tests.is_empty()).then_some(self)
    }

    /// What the names of its tests begin with.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// How many tests are wanted.
    pub fn len(&self) -> usize {
        self.tests.len()
    }

    /// Their full names.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.tests.iter().map(|test| full_name(&self.label, test))
    }

    /// What their results depend on, beside what every result does: the program itself. `of_tree` is the tree with that,
    /// since many of them read there, and which of them do is nothing that can be seen from outside.
    fn digest(&self, of_tree: Digest) -> Result<Digest> {
        let mut digest = of_tree;
        digest.text(&self.label);
        if let Start::Program { path, .. } = &self.start {
            digest.file(path)?;
        }
        Ok(digest)
    }

    /// Records the tests that are known to pass, and runs the others.
    pub fn judge(&self, tree: &Tree, options: &Options, passes: &Passes, report: &Report) {
        let digest = || self.digest(passes.of_tree(tree)?);
        // A gate may be called as a program of tests is.
        let mut past = passes.past(&format!("{}.tests", self.label), digest());
        let known = |test: &&str| past.has(test) && !options.names(&full_name(&self.label, test));
        let (unchanged, left): (Vec<&str>, Vec<&str>) =
            self.tests.iter().map(String::as_str).partition(known);
        for test in &unchanged {
            report.record(&full_name(&self.label, test), Verdict::Unchanged, None);
        }
        if left.is_empty() {
            return;
        }
        past.doubt(left.iter().copied());
        let whole = self.whole && unchanged.is_empty();
        let passed = self.run(&left, whole, options.fuzz, report);
        past.keep(passed, digest());
    }

    /// Runs `tests`, which are all that the program has if it is run `whole`, and records each as its result comes in. A
    /// test without a result has failed: the program crashed or hung. Returns those that passed.
    fn run<'a>(&self, tests: &[&'a str], whole: bool, fuzz: Fuzz, report: &Report) -> Vec<&'a str> {
        let limit = if fuzz.rounds.is_some() { LIMIT_OF_MORE } else { LIMIT };
        let mut passed = Vec::new();
        let mut last = Instant::now();
        let mut output = Vec::new();
        report.begin(&self.label);
        let end = self.play(tests, whole, fuzz, limit, |line, result| {
            output.push(line.to_owned());
            let Some((test, verdict)) = result else { return };
            if verdict == Verdict::Passed {
                passed.push(test);
            }
            report.record(&full_name(&self.label, test), verdict, Some(last.elapsed()));
            last = Instant::now();
        });
        report.finish(&self.label);
        let Err(Unfinished { why, left }) = end else { return passed };
        for test in left {
            report.record(&full_name(&self.label, test), Verdict::Failed(vec![why.clone()]), None);
        }
        let shown =
            output.iter().skip(output.len().saturating_sub(TAIL)).filter(|line| parse_result(line).is_none());
        let mut lines = vec![format!("{}: {why}", self.label)];
        lines.extend(shown.map(|line| format!("| {line}")));
        report.explain(&lines);
        passed
    }

    /// Runs all of them for so long at most, and says by its full name which test ended how.
    ///
    /// # Errors
    /// When we are asked to end meanwhile.
    pub fn verdicts(&self, limit: Duration) -> Result<Vec<(String, Verdict)>, Vec<String>> {
        let tests: Vec<&str> = self.tests.iter().map(String::as_str).collect();
        let mut verdicts = Vec::new();
        let end = self.play(&tests, self.whole, Fuzz::default(), limit, |_, result| {
            verdicts.extend(result.map(|(test, verdict)| (full_name(&self.label, test), verdict)));
        });
        if let Some(signal) = signals::caught() {
            return Err(vec![format!("interrupted by {}", signals::name(signal))]);
        }
        if let Err(Unfinished { why, left }) = end {
            let lost = |test: &&str| (full_name(&self.label, test), Verdict::Failed(vec![why.clone()]));
            verdicts.extend(left.iter().map(lost));
        }
        Ok(verdicts)
    }

    /// Runs the program, and hands on every line it prints with the result that the line reports.
    fn play<'a>(
        &self,
        tests: &[&'a str],
        whole: bool,
        fuzz: Fuzz,
        limit: Duration,
        mut on_line: impl FnMut(&str, Option<(&'a str, Verdict)>),
    ) -> Result<(), Unfinished<'a>> {
        let mut command = self.start.command();
        command.envs(fuzz.variables());
        if !whole {
            command.arg("--exact").args(tests);
        }
        let mut left: BTreeSet<&'a str> = tests.iter().copied().collect();
        let end = process::run(&mut command, limit, |_, line| {
            // Only names it listed count: a test can print lines that look like results.
            let result = parse_result(line).and_then(|(test, verdict)| Some((left.take(test)?, verdict)));
            on_line(line, result);
        });
        let why = match end {
            Ok(End::Exited(0)) if left.is_empty() => return Ok(()),
            Ok(End::Interrupted(_)) => return Ok(()),
            Ok(end) => format!("the program {end}"),
            Err(error) => format!("{error:#}"),
        };
        Err(Unfinished { why, left })
    }
}

/// A program that did not end well.
struct Unfinished<'a> {
    why: String,
    /// Its tests without a result.
    left: BTreeSet<&'a str>,
}

fn full_name(label: &str, test: &str) -> String {
    format!("{label}::{test}")
}

/// Reads a result line of the standard test harness: `test NAME ... ok`.
fn parse_result(line: &str) -> Option<(&str, Verdict)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    let word = result.split([',', ' ', '(']).next()?;
    let verdict = match word {
        "ok" => Verdict::Passed,
        "FAILED" => Verdict::Failed(vec!["its report follows at the end of its program's".to_owned()]),
        "ignored" => {
            let reason = result.split_once(", ").map_or("ignored", |(_, reason)| reason);
            Verdict::Skipped(reason.to_owned())
        }
        _ => return None,
    };
    Some((name, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Console;

    fn suite(script: &str, tests: &[&str]) -> Suite {
        let path = std::env::temp_dir().join(format!("levelhead-suite-{}-{script}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink("/bin/sh", &path).unwrap();
        let start = Start::Program { path, folder: std::env::temp_dir() };
        let tests = tests.iter().map(|test| (*test).to_owned()).collect();
        Suite { label: "host/x".to_owned(), start, tests, whole: true }
    }

    #[test]
    fn result_lines_are_told_from_others() {
        assert_eq!(parse_result("test a::b ... ok"), Some(("a::b", Verdict::Passed)));
        assert_eq!(parse_result("test a - should panic ... ok"), Some(("a", Verdict::Passed)));
        assert_eq!(
            parse_result("test a ... ignored, too slow"),
            Some(("a", Verdict::Skipped("too slow".into())))
        );
        assert_eq!(
            parse_result("test src/a.rs - a (line 3) ... ok"),
            Some(("src/a.rs - a (line 3)", Verdict::Passed))
        );
        assert!(matches!(parse_result("test a ... FAILED"), Some(("a", Verdict::Failed(_)))));
        for other in ["test result: ok. 3 passed", "running 3 tests", "test a ... bench: 3 ns", ""] {
            assert_eq!(parse_result(other), None, "{other}");
        }
    }

    #[test]
    fn a_test_without_a_result_has_failed() {
        // The shell finds no test to run: it ends at once, well, and says nothing.
        let suite = suite("silent", &["a", "b"]);
        let report = Report::new(2, Console::plain(std::io::sink()), false);
        let passed = suite.run(&["a", "b"], true, Fuzz::default(), &report);
        assert_eq!(passed, [] as [&str; 0]);
        assert_eq!(report.summary().last().map(String::as_str), Some("0 passed, 2 failed, 0 skipped"));
        if let Start::Program { path, .. } = &suite.start {
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn models_are_named_by_their_sources() {
        let text = "#![cfg(loom)]\n\n#[test]\nfn a_b() {\n    fn c() {}\n}\n\nfn d() {}\n\n#[test]\n#[ignore]\nfn e() {}\n";
        assert_eq!(tests_in(text).collect::<Vec<_>>(), ["a_b", "e"]);
    }

    #[test]
    fn selection_asks_for_exact_names() {
        let whole = || Suite {
            label: "host/x".to_owned(),
            start: Start::Examples { root: PathBuf::new() },
            tests: vec!["a::b".to_owned(), "a::c".to_owned()],
            whole: true,
        };
        let some = whole().select(|name| name == "host/x::a::c").unwrap();
        assert_eq!(some.names().collect::<Vec<_>>(), ["host/x::a::c"]);
        assert!(!some.whole);
        assert!(whole().select(|_| true).unwrap().whole);
        assert!(whole().select(|_| false).is_none());
    }

    #[test]
    fn only_test_programs_are_taken_from_the_messages() {
        let message = |executable: &str, test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact", "manifest_path": "/tree/xtask/Cargo.toml",
                "target": { "name": "xtask" }, "profile": { "test": test }, "executable": executable,
            })
        };
        let program = Program::of(&message("/tree/target/debug/deps/xtask-1", true)).unwrap();
        assert_eq!(program.label, "xtask");
        assert!(Program::of(&message("/tree/target/debug/xtask", false)).is_none());
        assert!(Program::of(&serde_json::json!({ "reason": "build-finished", "success": true })).is_none());
    }
}
