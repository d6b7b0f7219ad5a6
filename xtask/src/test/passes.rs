//! What passed before, so that it need not be run again while nothing it depends on has changed (docs/adr/0017).
//!
//! Each program of tests, step and case has a file below `target/passed/`: a key, which is a digest of everything that the
//! result depends on, and the names of what passed under it. Only passes are noted. What is about to be run is taken out
//! of the file first, and comes back when it has passed and the key is still the same: neither a failure nor a crash in
//! the middle, nor a result from files that were exchanged meanwhile, leaves anything to be believed.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Options, Verdict};
use crate::build::{Tree, cargo};
use crate::digest::Digest;
use crate::{bundle, process, setup};

/// How the variables begin that compilers, tests and this program look at.
const VARIABLES: [&str; 8] = ["CARGO", "CC", "LEVELHEAD_", "LOOM_", "PATH", "PROPTEST_", "RUST", "TERM"];
/// The lines of `/proc/cpuinfo` that say what kind of CPU this is, and not how it is at the moment.
const CPU_LINES: [&str; 2] = ["model name", "flags"];

/// The memory of one run of `test`.
#[derive(Debug)]
pub struct Passes {
    folder: PathBuf,
    /// Whether what passed before is believed.
    believe: bool,
    /// Whether anything is noted.
    note: bool,
    /// What every result depends on.
    ground: Digest,
}

impl Passes {
    /// What is remembered in this tree, as far as `options` allow to believe it.
    ///
    /// # Errors
    /// When it cannot be told what every result depends on.
    pub fn open(tree: &Tree, options: &Options) -> Result<Self> {
        let usual = options.fuzz.variables().next().is_none();
        let believe = usual && !options.again && env::var("CI").as_deref() != Ok("true");
        let folder = tree.target.join("passed");
        Ok(Self { folder, believe, note: usual, ground: ground(tree)? })
    }

    /// One that believes and notes, and for which nothing is below the ground.
    #[cfg(test)]
    pub fn fresh(folder: PathBuf) -> Self {
        Self { folder, believe: true, note: true, ground: Digest::default() }
    }

    /// The digest of what every result depends on and, for results that hang on the sources themselves, of the tree as it
    /// is now.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of_tree(&self, tree: &Tree) -> Result<Digest> {
        let mut digest = self.ground.clone();
        digest.tree(&tree.root)?;
        Ok(digest)
    }

    /// The digest of what every result depends on, and of the emulator: QEMU's binary, what it says of itself, and the
    /// firmware and option ROMs that it finds. Its own modules refuse to be loaded by another build.
    ///
    /// # Errors
    /// When QEMU does not say where it looks for firmware, or a file cannot be read.
    pub fn of_emulator(&self, qemu: &Path) -> Result<Digest> {
        let mut digest = self.ground.clone();
        digest.file(qemu)?;
        let says = |words: &[&str]| process::answer(Command::new(qemu).args(words), "", setup::PROBE_LIMIT);
        digest.text(&says(&["--version"])?);
        for folder in says(&["-L", "help"])?.lines() {
            let folder = Path::new(folder);
            if folder.is_dir() {
                digest.files(folder)?;
            }
        }
        Ok(digest)
    }

    /// What is known of a program, a step or a case, whose key is `digest` now. Without one nothing is known or noted.
    pub fn past(&self, name: &str, digest: Result<Digest>) -> Past {
        let key = digest.ok().filter(|_| self.note).map(Digest::finish);
        let file = self.folder.join(name);
        let passed = key.as_deref().map(|key| read(&file, key)).unwrap_or_default();
        Past { file, key, passed, believe: self.believe }
    }

    /// The verdict on a test that is alone in its file: it is run unless it has passed. With `asked` it is run anyway.
    /// `digest` is asked for before it runs and after.
    pub fn verdict(
        &self,
        name: &str,
        asked: bool,
        digest: impl Fn() -> Result<Digest>,
        run: impl FnOnce() -> Verdict,
    ) -> Verdict {
        let mut past = self.past(name, digest());
        if !asked && past.has(name) {
            return Verdict::Unchanged;
        }
        past.doubt([name]);
        let verdict = run();
        if verdict == Verdict::Passed {
            past.keep([name], digest());
        }
        verdict
    }
}

/// What passed of one program under the key that it has now.
#[derive(Debug)]
pub struct Past {
    file: PathBuf,
    key: Option<String>,
    passed: BTreeSet<String>,
    believe: bool,
}

impl Past {
    /// Whether `test` passed and that may be believed.
    pub fn has(&self, test: &str) -> bool {
        self.believe && self.passed.contains(test)
    }

    /// Forgets tests that are about to be run.
    pub fn doubt<'a>(&mut self, tests: impl IntoIterator<Item = &'a str>) {
        for test in tests {
            self.passed.remove(test);
        }
        self.write();
    }

    /// Notes tests that have passed, if everything is still as `digest` says it is now.
    pub fn keep<'a>(&mut self, tests: impl IntoIterator<Item = &'a str>, digest: Result<Digest>) {
        if digest.is_ok_and(|digest| Some(digest.finish()) == self.key) {
            self.passed.extend(tests.into_iter().map(str::to_owned));
            self.write();
        }
    }

    fn write(&self) {
        let Some(key) = &self.key else { return };
        let mut text = format!("{key}\n");
        for test in &self.passed {
            text.push_str(test);
            text.push('\n');
        }
        // Written aside and then put in place, so that nobody reads half of it.
        let aside = self.file.with_extension(format!("{}", std::process::id()));
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let written = fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))
            .and_then(|()| bundle::write(&aside, text.as_bytes()))
            .and_then(|()| {
                fs::rename(&aside, &self.file)
                    .with_context(|| format!("cannot write {}", self.file.display()))
            });
        if let Err(error) = written {
            // What cannot be noted must not stay as it was either.
            let _ = fs::remove_file(&self.file);
            eprintln!("test: what passed is not remembered: {error:#}");
        }
    }
}

/// The names noted in `file`, if they were noted under `key`.
fn read(file: &Path, key: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines();
    match lines.next() {
        Some(noted) if noted == key => lines.map(str::to_owned).collect(),
        _ => BTreeSet::new(),
    }
}

/// What every result depends on: this very program, which holds the rules by which it is judged; the compiler and its
/// settings outside the tree; the kind of CPU; the environment.
fn ground(tree: &Tree) -> Result<Digest> {
    let mut digest = Digest::default();
    // The file that runs, also when a build has put another in its place.
    digest.file(Path::new("/proc/self/exe"))?;

    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    let version = process::answer(command.current_dir(&tree.root).arg("-vV"), "", setup::PROBE_LIMIT);
    digest.text(&version.context("rustc -vV")?);
    for folder in tree.root.ancestors().skip(1).map(|above| above.join(".cargo")).chain(cargo_home()) {
        for path in ["config.toml", "config"].map(|name| folder.join(name)) {
            if path.is_file() {
                digest.file(&path)?;
            }
        }
    }
    digest.text(&cargo().get_program().to_string_lossy());

    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    for key in CPU_LINES {
        digest.text(cpu.lines().find(|line| line.starts_with(key)).unwrap_or_default());
    }
    let mut variables: Vec<_> = env::vars_os().filter(|(name, _)| is_watched(name)).collect();
    variables.sort();
    for (name, value) in variables {
        digest.text(&name.to_string_lossy());
        digest.text(&value.to_string_lossy());
    }
    Ok(digest)
}

/// Where Cargo's own configuration is.
fn cargo_home() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home)
}

fn is_watched(variable: &OsStr) -> bool {
    variable.to_str().is_some_and(|name| VARIABLES.iter().any(|prefix| name.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A memory of its own in a folder that is gone when dropped.
    struct Fresh(Passes);

    impl Fresh {
        fn new(name: &str) -> Self {
            let folder = env::temp_dir().join(format!("levelhead-passes-{}-{name}", std::process::id()));
            Self(Passes::fresh(folder))
        }

        /// Has a test judged that depends on `on` and ends so; tells whether it ran.
        fn judge(&self, on: &str, verdict: Verdict) -> (Verdict, bool) {
            let ran = Cell::new(false);
            let run = || {
                ran.set(true);
                verdict
            };
            (self.0.verdict("qemu/x", false, || Ok(digest(on)), run), ran.get())
        }
    }

    impl Drop for Fresh {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.folder);
        }
    }

    fn digest(on: &str) -> Digest {
        let mut digest = Digest::default();
        digest.text(on);
        digest
    }

    fn failed() -> Verdict {
        Verdict::Failed(vec!["why".to_owned()])
    }

    #[test]
    fn what_passed_is_not_run_again_until_something_changes() {
        let memory = Fresh::new("changes");
        assert_eq!(memory.judge("a", Verdict::Passed), (Verdict::Passed, true));
        assert_eq!(memory.judge("a", failed()), (Verdict::Unchanged, false));
        assert_eq!(memory.judge("b", Verdict::Passed), (Verdict::Passed, true));
        assert_eq!(memory.judge("b", failed()), (Verdict::Unchanged, false));
        assert_eq!(memory.judge("a", Verdict::Passed), (Verdict::Passed, true), "one key at a time is known");
    }

    #[test]
    fn neither_a_failure_nor_a_skip_is_remembered() {
        let memory = Fresh::new("failures");
        for verdict in [failed(), failed(), Verdict::Skipped("QEMU is missing".to_owned())] {
            assert_eq!(memory.judge("a", verdict.clone()), (verdict, true));
        }
        assert_eq!(memory.judge("a", Verdict::Passed), (Verdict::Passed, true));
    }

    #[test]
    fn a_failure_is_the_end_of_what_passed_before() {
        let mut memory = Fresh::new("end");
        memory.judge("a", Verdict::Passed);
        memory.0.believe = false;
        assert_eq!(memory.judge("a", failed()), (failed(), true), "as with --again");
        memory.0.believe = true;
        assert_eq!(memory.judge("a", Verdict::Passed), (Verdict::Passed, true));
        assert_eq!(memory.judge("a", failed()).0, Verdict::Unchanged);
    }

    #[test]
    fn a_crash_in_the_middle_leaves_nothing_to_be_believed() {
        let memory = Fresh::new("crash");
        memory.judge("a", Verdict::Passed);
        memory.0.past("qemu/x", Ok(digest("a"))).doubt(["qemu/x"]);
        assert_eq!(memory.judge("a", Verdict::Passed), (Verdict::Passed, true));
    }

    #[test]
    fn what_changes_while_a_test_runs_proves_nothing() {
        let memory = Fresh::new("meanwhile");
        let now = Cell::new("a");
        let run = || {
            now.set("b");
            Verdict::Passed
        };
        assert_eq!(memory.0.verdict("qemu/x", false, || Ok(digest(now.get())), run), Verdict::Passed);
        assert_eq!(memory.judge("a", Verdict::Passed), (Verdict::Passed, true));
        assert_eq!(memory.judge("b", Verdict::Passed), (Verdict::Passed, true));
    }

    #[test]
    fn a_test_that_is_asked_for_by_name_runs() {
        let memory = Fresh::new("asked");
        memory.judge("a", Verdict::Passed);
        let verdict = memory.0.verdict("qemu/x", true, || Ok(digest("a")), failed);
        assert_eq!(verdict, failed());
        assert_eq!(memory.judge("a", Verdict::Passed), (Verdict::Passed, true), "its failure counts");
    }

    #[test]
    fn without_a_key_everything_runs_and_nothing_is_noted() {
        let memory = Fresh::new("keyless");
        let unreadable = || Err(anyhow::anyhow!("a file is gone"));
        for _ in 0..2 {
            assert_eq!(memory.0.verdict("qemu/x", false, unreadable, || Verdict::Passed), Verdict::Passed);
        }
        assert!(!memory.0.folder.exists());
    }

    #[test]
    fn the_tests_of_a_program_are_known_one_by_one() {
        let memory = Fresh::new("program");
        let past = || memory.0.past("host/x", Ok(digest("a")));
        let mut first = past();
        first.doubt(["a", "b", "c"]);
        first.keep(["a", "c"], Ok(digest("a")));
        assert_eq!(["a", "b", "c"].map(|test| past().has(test)), [true, false, true]);
        past().doubt(["c"]);
        assert_eq!(["a", "b", "c"].map(|test| past().has(test)), [true, false, false]);
    }

    #[test]
    fn what_a_test_can_look_at_in_the_environment_is_watched() {
        for watched in ["PATH", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "LEVELHEAD_QEMU", "CC", "TERM"] {
            assert!(is_watched(OsStr::new(watched)), "{watched}");
        }
        for other in ["PWD", "OLDPWD", "SHLVL", "CI"] {
            assert!(!is_watched(OsStr::new(other)), "{other}");
        }
    }
}
