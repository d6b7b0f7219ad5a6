//! `mutants`: faults put into the source on purpose, each of which named tests must notice.
//!
//! `tests/mutants/mutants.toml` lists them; beside it lies a patch for each. They are applied to a copy of the tree under
//! the target directory, one at a time. First the tests that are named anywhere run unmutated and must pass; then each
//! mutant is built and exactly the tests that it names must fail, every one of them. A mutant that does not apply or
//! does not build kills nobody: it is an error of the list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::Reported;
use crate::build::Tree;
use crate::console::Console;
use crate::signals;
use crate::test::suite::{self, Suite};
use crate::test::{Report, Verdict};

/// Where they are, as a path from the root.
const FOLDER: &str = "tests/mutants";
/// The list, in [`FOLDER`].
const LIST: &str = "mutants.toml";
/// After so long a test of a mutant counts as hung, which notices the fault as well.
const LIMIT: Duration = Duration::from_secs(120);
/// What is not copied: it is no source.
const NO_SOURCE: [&str; 2] = [".git", "target"];

/// What `mutants` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Pieces of names; none means all.
    pub filters: Vec<String>,
    /// Whether to list them only.
    pub list: bool,
    /// Whether to report as JSON, in the form of `test`.
    pub json: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// A fault and who must notice it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// What it is called; its patch is the file of that name.
    pub name: String,
    /// Which promises it breaks: numbers of races (T), invariants (I) and ideas (N).
    pub breaks: Vec<String>,
    /// What is wrong with it, for people.
    pub fault: String,
    /// The full names of tests, as `test --list` shows them; each must fail.
    pub tests: Vec<String>,
}

/// The list of the tree at `root`.
///
/// # Errors
/// When it cannot be read, a name is there twice, a patch is missing, or a patch is in no entry.
pub fn load(root: &Path) -> Result<Vec<Mutant>> {
    let folder = root.join(FOLDER);
    let path = folder.join(LIST);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let List { mutant: mutants } =
        toml::from_str(&text).with_context(|| format!("{} is not as it should be", path.display()))?;
    let mut names = BTreeSet::new();
    for mutant in &mutants {
        ensure!(names.insert(mutant.name.clone()), "{FOLDER}/{LIST} has two mutants {:?}", mutant.name);
        ensure!(!mutant.tests.is_empty(), "mutant {} names no test that notices it", mutant.name);
        ensure!(!mutant.breaks.is_empty(), "mutant {} breaks no promise", mutant.name);
        let patch = folder.join(patch_name(&mutant.name));
        ensure!(patch.is_file(), "mutant {} has no patch {}", mutant.name, patch.display());
    }
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let listed = name.strip_suffix(".patch").is_none_or(|name| names.contains(name));
        ensure!(listed, "{FOLDER}/{name} is in no entry of {LIST}");
    }
    Ok(mutants)
}

fn patch_name(mutant: &str) -> String {
    format!("{mutant}.patch")
}

/// Runs the mutants that are wanted.
///
/// # Errors
/// When one survives or is no mutant, or when a test that must notice one fails without it.
pub fn run(tree: &Tree, options: &Options) -> Result<()> {
    let mut mutants = load(&tree.root)?;
    let wanted = |name: &str| options.filters.iter().any(|filter| name.contains(filter.as_str()));
    mutants.retain(|mutant| options.filters.is_empty() || wanted(&mutant.name));
    ensure!(!mutants.is_empty(), "no mutant has a name with {}", options.filters.join(" or "));
    if options.list {
        let mut console = Console::stdout();
        for mutant in &mutants {
            console.line(format_args!("{} ({}): {}", mutant.name, mutant.breaks.join(", "), mutant.fault));
        }
        return Ok(());
    }
    let lab = Lab::set_up(tree)?;
    let all = programs(mutants.iter().flat_map(|mutant| &mutant.tests))?;
    let report = Report::new(all.len() + mutants.len(), Console::beside(options.json), options.json);
    report.during(|| {
        for (program, tests) in &all {
            let name = format!("unmutated/{program}");
            timed(&report, &name, || lab.unmutated(program, tests));
        }
        // A test that fails anyhow shows nothing.
        let sound = !report.has_failed();
        for mutant in mutants.iter().take_while(|_| sound && signals::caught().is_none()) {
            let name = format!("mutant/{}", mutant.name);
            timed(&report, &name, || lab.mutated(mutant));
        }
    });
    report.close();
    if report.has_failed() || signals::caught().is_some() {
        bail!(Reported);
    }
    Ok(())
}

/// Runs a trial and records it.
fn timed(report: &Report, name: &str, trial: impl FnOnce() -> Result<(), Vec<String>>) {
    let start = Instant::now();
    report.begin(name);
    report.record(name, trial().into(), Some(start.elapsed()));
}

/// The programs that hold the tests of these full names, each with its tests.
fn programs<'a>(tests: impl IntoIterator<Item = &'a String>) -> Result<BTreeMap<&'a str, BTreeSet<&'a str>>> {
    let mut programs: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for test in tests {
        let (program, _) =
            test.split_once("::").with_context(|| format!("{test:?} is no test's full name"))?;
        programs.entry(program).or_default().insert(test.as_str());
    }
    Ok(programs)
}

/// A copy of the tree, in which faults are harmless.
struct Lab {
    original: PathBuf,
    copy: Tree,
}

impl Lab {
    fn set_up(tree: &Tree) -> Result<Self> {
        let root = tree.scratch("mutants/tree")?;
        let target = tree.scratch("mutants/target")?;
        mirror(&tree.root, &root)?;
        let copy = Tree { root, target, profile: tree.profile };
        Ok(Self { original: tree.root.clone(), copy })
    }

    /// Builds a program from the copy as it is now.
    fn build(&self, program: &str) -> Result<Suite, Vec<String>> {
        let suites = match program.split_once('/') {
            Some(("host", name)) => suite::library(&self.copy, name)?,
            Some(("model", _)) => suite::models(&self.copy)?,
            _ => return Err(vec![format!("{program:?}: mutants are for host tests and models")]),
        };
        let mut suites = suites.into_iter();
        let found = suites.find(|suite| suite.label() == program);
        found.ok_or_else(|| vec![format!("there is no test program {program:?}")])
    }

    /// Runs these tests of a program; all of them must be there.
    fn verdicts(&self, program: &str, tests: &BTreeSet<&str>) -> Result<Vec<(String, Verdict)>, Vec<String>> {
        let suite = self.build(program)?.select(|name| tests.contains(name));
        let verdicts = suite.map_or_else(|| Ok(Vec::new()), |suite| suite.verdicts(LIMIT))?;
        let missing = |test: &&&str| !verdicts.iter().any(|(name, _)| name == *test);
        let missing: Vec<String> =
            tests.iter().filter(missing).map(|test| format!("there is no test {test}")).collect();
        if missing.is_empty() { Ok(verdicts) } else { Err(missing) }
    }

    /// The tests that must notice faults notice none where there is none.
    fn unmutated(&self, program: &str, tests: &BTreeSet<&str>) -> Result<(), Vec<String>> {
        let verdicts = self.verdicts(program, tests)?;
        let bad = verdicts.into_iter().filter(|(_, verdict)| *verdict != Verdict::Passed);
        let bad: Vec<String> = bad.map(|(name, _)| format!("{name} does not pass without a fault")).collect();
        if bad.is_empty() { Ok(()) } else { Err(bad) }
    }

    /// The named tests fail, every one, with the fault in the copy; which is whole again afterwards.
    fn mutated(&self, mutant: &Mutant) -> Result<(), Vec<String>> {
        let said = |error: anyhow::Error| vec![format!("{error:#}")];
        let files = mutate(&self.original, mutant).map_err(said)?;
        let put = |text: fn(&Changed) -> &str| -> Result<()> {
            for file in &files {
                write(&self.copy.root.join(&file.path), text(file))?;
            }
            Ok(())
        };
        let trial = put(|file| &file.mutated).map_err(said).and_then(|()| self.notice(mutant));
        put(|file| &file.whole).map_err(said)?;
        trial
    }

    fn notice(&self, mutant: &Mutant) -> Result<(), Vec<String>> {
        let mut survived = Vec::new();
        for (program, tests) in programs(&mutant.tests).map_err(|error| vec![format!("{error:#}")])? {
            let verdicts = self.verdicts(program, &tests)?;
            let blind = verdicts.into_iter().filter(|(_, verdict)| !matches!(verdict, Verdict::Failed(_)));
            survived.extend(blind.map(|(name, _)| format!("survived {name}: {}", mutant.fault)));
        }
        if survived.is_empty() { Ok(()) } else { Err(survived) }
    }
}

/// A source with and without the fault.
struct Changed {
    path: PathBuf,
    whole: String,
    mutated: String,
}

/// What the mutant makes of the sources below `root`. A patch holds files one after the other.
///
/// # Errors
/// When the patch does not fit the sources.
fn mutate(root: &Path, mutant: &Mutant) -> Result<Vec<Changed>> {
    let path = root.join(FOLDER).join(patch_name(&mutant.name));
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut changed = Vec::new();
    for part in parts(&text) {
        let patch =
            diffy::Patch::from_str(part).with_context(|| format!("{} is no patch", path.display()))?;
        let name = patch.original().and_then(|name| name.strip_prefix("a/"));
        let name = name.with_context(|| format!("{} names no file a/...", path.display()))?;
        let whole = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        let mutated = diffy::apply(&whole, &patch)
            .with_context(|| format!("mutant {} does not fit {name} any more", mutant.name))?;
        changed.push(Changed { path: name.into(), whole, mutated });
    }
    ensure!(!changed.is_empty(), "{} changes nothing", path.display());
    Ok(changed)
}

/// The patches of single files that a patch consists of.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let starts = text.match_indices("--- a/").map(|(at, _)| at);
    let mut starts: Vec<usize> = starts.filter(|&at| at == 0 || text[..at].ends_with('\n')).collect();
    starts.push(text.len());
    let ranges: Vec<_> = starts.windows(2).map(|pair| pair[0]..pair[1]).collect();
    ranges.into_iter().map(|range| &text[range])
}

/// Makes `to` the same as `from`, and touches nothing that is the same already: cargo goes by the times of files.
fn mirror(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if NO_SOURCE.iter().any(|no| name == *no) {
            continue;
        }
        let (source, copy) = (entry.path(), to.join(&name));
        // A link is what it leads to.
        if fs::metadata(&source)?.is_dir() {
            mirror(&source, &copy)?;
        } else {
            let bytes = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
            if fs::read(&copy).ok().as_ref() != Some(&bytes) {
                fs::write(&copy, bytes).with_context(|| format!("cannot write {}", copy.display()))?;
            }
        }
        names.insert(name);
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if !names.contains(&entry.file_name()) {
            let path = entry.path();
            let removed =
                if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    #[test]
    fn every_mutant_fits_the_sources_and_changes_them() {
        for mutant in load(&root()).unwrap() {
            for file in mutate(&root(), &mutant).unwrap() {
                assert_ne!(file.whole, file.mutated, "{}", mutant.name);
            }
            programs(&mutant.tests).unwrap();
        }
    }

    #[test]
    fn a_patch_that_does_not_fit_is_an_error() {
        let folder = std::env::temp_dir().join(format!("levelhead-mutants-{}", std::process::id()));
        fs::create_dir_all(folder.join(FOLDER)).unwrap();
        let put = |name: &str, text: &str| write(&folder.join(name), text).unwrap();
        put("a.rs", "one\ntwo\nthree\n");
        put("tests/mutants/x.patch", "--- a/a.rs\n+++ b/a.rs\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n");
        let names = |text: &str| vec![text.to_owned()];
        let (breaks, tests) = (names("T1"), names("host/levelhead::x"));
        let mutant = Mutant { name: "x".to_owned(), breaks, fault: String::new(), tests };
        assert_eq!(mutate(&folder, &mutant).unwrap()[0].mutated, "one\n2\nthree\n");
        put("a.rs", "one\nzwei\nthree\n");
        let error = mutate(&folder, &mutant).err().unwrap().to_string();
        assert!(error.contains("does not fit a.rs"), "{error}");
        put("tests/mutants/x.patch", "");
        assert!(mutate(&folder, &mutant).err().unwrap().to_string().contains("changes nothing"));
        put("tests/mutants/mutants.toml", "mutant = []");
        assert!(load(&folder).unwrap_err().to_string().contains("in no entry"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_copy_follows_its_original() {
        let folder = std::env::temp_dir().join(format!("levelhead-mirror-{}", std::process::id()));
        let (from, to) = (folder.join("from"), folder.join("to"));
        fs::create_dir_all(from.join("src/target")).unwrap();
        write(&from.join("src/a"), "1").unwrap();
        mirror(&from, &to).unwrap();
        let time = fs::metadata(to.join("src/a")).unwrap().modified().unwrap();
        write(&from.join("src/b"), "2").unwrap();
        write(&to.join("src/c"), "3").unwrap();
        mirror(&from, &to).unwrap();
        assert_eq!(fs::metadata(to.join("src/a")).unwrap().modified().unwrap(), time);
        assert_eq!(fs::read_to_string(to.join("src/b")).unwrap(), "2");
        assert!(!to.join("src/c").exists() && !to.join("src/target").exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
