//! `contract`: every number of the INTx contract with its proof.
//!
//! `tests/contract.toml` says what each number promises. Who proves it is found in the tree: a test whose name begins with
//! the number (`i5_n4_...` proves I5 and N4), a QEMU case whose `promise` holds it, a mutant that breaks it. The
//! file names what the names do not show, and gives a reason where nothing is to be proved.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::Reported;
use crate::build::Tree;
use crate::cases::{self, PROMISES, is_promise};
use crate::console::{BAD, Console, FAINT, GOOD, WARNING, json};
use crate::gates::source;
use crate::mutants::{self, Mutant};

/// The file, as a path from the root.
const FILE: &str = "tests/contract.toml";
/// What the report for machines is called.
const REPORT: &str = "contract";

/// What `contract` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The numbers that are wanted; none means all.
    pub numbers: Vec<String>,
    /// Whether to report as JSON.
    pub json: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    promise: Vec<Entry>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    number: String,
    says: String,
    /// Tests and `qemu/` cases that prove it under another name.
    #[serde(default)]
    also: Vec<String>,
    /// Why there is nothing to prove.
    not_applicable: Option<String>,
    /// What is still to be done.
    open: Option<String>,
}

/// A promise and what is known of it.
#[derive(Clone, Debug, Serialize)]
struct Promise {
    number: String,
    says: String,
    state: &'static str,
    /// Why it is not applicable, or what is missing.
    reason: Option<String>,
    proofs: Vec<Proof>,
    mutants: Vec<String>,
}

/// Who proves a promise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Proof {
    /// A test, or `qemu/` and a case.
    name: String,
    /// Where it is.
    file: String,
}

/// Prints each number with its proof.
///
/// # Errors
/// When the book is not in order, or a promise is open.
pub fn run(tree: &Tree, options: &Options) -> Result<()> {
    let (promises, problems) = judge(tree)?;
    if let Some(unknown) =
        options.numbers.iter().find(|number| !promises.iter().any(|promise| promise.number == **number))
    {
        bail!("the contract has no number {unknown}; it has I1 to I48, N1 to N21 and T1 to T15");
    }
    let mut console = Console::beside(options.json);
    let wanted = |promise: &&Promise| options.numbers.is_empty() || options.numbers.contains(&promise.number);
    for promise in promises.iter().filter(wanted) {
        if options.json {
            json::print_line(REPORT, promise)?;
        } else {
            show(&mut console, promise);
        }
    }
    for problem in &problems {
        console.line(console.paint(BAD, problem).to_string());
    }
    let count = |state| promises.iter().filter(|promise| promise.state == state).count();
    let open = count("open");
    console.line(format_args!(
        "{} proved, {} not applicable, {open} open; {} breach(es) of the book's rules",
        count("proved"),
        count("not applicable"),
        problems.len(),
    ));
    if open > 0 || !problems.is_empty() {
        bail!(Reported);
    }
    Ok(())
}

fn show(console: &mut Console, promise: &Promise) {
    let style = match promise.state {
        "proved" => GOOD,
        "open" => BAD,
        _ => WARNING,
    };
    console.line(format!("{:>4} {}", console.paint(style, &promise.number), promise.says));
    if let Some(reason) = &promise.reason {
        console.line(format_args!("     {}: {reason}", promise.state));
    }
    for Proof { name, file } in &promise.proofs {
        console.line(format!("     proved by: {name} {}", console.paint(FAINT, format_args!("({file})"))));
    }
    for mutant in &promise.mutants {
        console.line(format_args!("     mutant: {mutant}"));
    }
}

/// The promises of the tree, and what is wrong with the book.
///
/// # Errors
/// When the book, the cases, the mutants or the sources cannot be read.
fn judge(tree: &Tree) -> Result<(Vec<Promise>, Vec<String>)> {
    let text = fs::read_to_string(tree.root.join(FILE)).with_context(|| format!("cannot read {FILE}"))?;
    let Book { promise: entries } =
        toml::from_str(&text).with_context(|| format!("{FILE} is not as it should be"))?;
    let mutants = mutants::load(&tree.root)?;
    let proofs = Proofs::collect(tree)?;
    let mut problems = Vec::new();
    let expected: Vec<String> = PROMISES
        .into_iter()
        .flat_map(|(class, last)| (1..=last).map(move |n| format!("{class}{n}")))
        .collect();
    let listed: Vec<&String> = entries.iter().map(|entry| &entry.number).collect();
    if listed != expected.iter().collect::<Vec<_>>() {
        problems
            .push(format!("{FILE} must have each of I1 to I48, N1 to N21, T1 to T15 once, in this order"));
    }
    let promises = entries.iter().map(|entry| settle(entry, &proofs, &mutants, &mut problems)).collect();
    for mutant in &mutants {
        for number in mutant.breaks.iter().filter(|number| !expected.contains(number)) {
            problems.push(format!("mutant {}: there is no promise {number}", mutant.name));
        }
        for test in &mutant.tests {
            if !test.rsplit("::").next().is_some_and(|name| proofs.tests.contains_key(name)) {
                problems.push(format!("mutant {}: there is no test {test}", mutant.name));
            }
        }
    }
    Ok((promises, problems))
}

/// What is known of one promise.
fn settle(entry: &Entry, all: &Proofs, mutants: &[Mutant], problems: &mut Vec<String>) -> Promise {
    let Entry { number, says, also, not_applicable, open } = entry.clone();
    let mut proofs: BTreeSet<Proof> = all.numbered.get(&number).cloned().unwrap_or_default();
    for name in also {
        match all.tests.get(&name) {
            Some(file) => {
                proofs.insert(Proof { name, file: file.clone() });
            }
            None => problems.push(format!("{number}: there is no test {name}")),
        }
    }
    let breaks = |mutant: &&Mutant| mutant.breaks.contains(&number);
    let mutants: Vec<String> = mutants.iter().filter(breaks).map(|mutant| mutant.name.clone()).collect();
    let (state, reason) = match (not_applicable, open) {
        (Some(_), Some(_)) => {
            problems.push(format!("{number} is open or not applicable, not both"));
            ("open", None)
        }
        (Some(reason), None) => ("not applicable", Some(reason)),
        (None, Some(missing)) => ("open", Some(missing)),
        (None, None) if proofs.is_empty() => {
            problems.push(format!("{number} is claimed and nobody proves it"));
            ("open", None)
        }
        (None, None) => ("proved", None),
    };
    if state == "not applicable" && !proofs.is_empty() {
        problems.push(format!("{number} is not applicable and has a proof"));
    }
    if state == "proved" && number.starts_with('T') && mutants.is_empty() {
        problems.push(format!("{number} is a race without a mutant"));
    }
    Promise { number, says, state, reason, proofs: proofs.into_iter().collect(), mutants }
}

/// Every test of the tree.
#[derive(Default)]
struct Proofs {
    /// Where each is.
    tests: BTreeMap<String, String>,
    /// Those that name numbers.
    numbered: BTreeMap<String, BTreeSet<Proof>>,
}

impl Proofs {
    fn collect(tree: &Tree) -> Result<Self> {
        let mut proofs = Self::default();
        for path in source::rust(&tree.root)? {
            let text = source::read(&tree.root.join(&path))?;
            for name in tests_in(&text) {
                proofs.add(name, &path.display().to_string(), &numbers(name));
            }
        }
        for case in cases::load(tree)? {
            proofs.add(&format!("qemu/{}", case.name), cases::TABLE, &case.promise);
        }
        Ok(proofs)
    }

    fn add(&mut self, name: &str, file: &str, numbers: &[String]) {
        for number in numbers {
            let proof = Proof { name: name.to_owned(), file: file.to_owned() };
            self.numbered.entry(number.clone()).or_default().insert(proof);
        }
        self.tests.insert(name.to_owned(), file.to_owned());
    }
}

/// The names of the tests in a source.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    let mut marked = false;
    text.lines().map(str::trim).filter_map(move |line| {
        if line == "#[test]" {
            marked = true;
            return None;
        }
        let name = line.strip_prefix("fn ").filter(|_| marked)?.split('(').next();
        marked = false;
        name
    })
}

/// The numbers that a test's name begins with.
fn numbers(name: &str) -> Vec<String> {
    name.split('_').map(str::to_uppercase).take_while(|word| is_promise(word)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::build::Profile;

    #[test]
    fn every_number_is_accounted_for() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let tree = Tree { target: root.join("target"), root, profile: Profile::Release };
        let (promises, problems) = judge(&tree).unwrap();
        assert_eq!(promises.len(), 84);
        assert_eq!(problems, [""; 0], "{problems:#?}");
    }

    #[test]
    fn names_begin_with_the_numbers_they_prove() {
        assert_eq!(numbers("i5_n4_the_last_level_t3"), ["I5", "N4"]);
        assert_eq!(numbers("t6_i31_i38_a"), ["T6", "I31", "I38"]);
        for name in ["in_order", "i49_x", "i0_x", "cve_2024_26812", "t_x", ""] {
            assert!(numbers(name).is_empty(), "{name}");
        }
        let text = "#[test]\nfn a() {}\nfn b() {}\n    #[test]\n    #[expect(x)]\n    fn c(x in y) {";
        assert_eq!(tests_in(text).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn the_json_is_as_documented() {
        let proof = Proof { name: "qemu/demo".to_owned(), file: cases::TABLE.to_owned() };
        let promise = Promise {
            number: "I5".to_owned(),
            says: "nobody is left".to_owned(),
            state: "proved",
            reason: None,
            proofs: vec![proof],
            mutants: vec!["t1-a".to_owned()],
        };
        assert_eq!(json::tests::printed(REPORT, &promise), json::tests::example(REPORT));
    }

    #[test]
    fn a_promise_is_proved_open_or_explained_and_nothing_between() {
        let mut all = Proofs::default();
        all.add("i1_a", "a.rs", &["I1".to_owned()]);
        all.add("b", "b.rs", &[]);
        let mutant = Mutant {
            name: "m".to_owned(),
            breaks: vec!["T1".to_owned()],
            fault: String::new(),
            tests: Vec::new(),
        };
        let entry = |number: &str, rest: &str| -> Entry {
            toml::from_str(&format!("number = \"{number}\"\nsays = \"\"\n{rest}")).unwrap()
        };
        let settled = |number: &str, rest: &str| {
            let mut problems = Vec::new();
            let promise = settle(&entry(number, rest), &all, core::slice::from_ref(&mutant), &mut problems);
            (promise.state, promise.proofs.len(), promise.mutants.len(), problems)
        };
        let fine = |state, proofs, mutants| (state, proofs, mutants, Vec::<String>::new());
        assert_eq!(settled("I1", ""), fine("proved", 1, 0));
        assert_eq!(settled("I1", "also = ['b']"), fine("proved", 2, 0));
        assert_eq!(settled("T1", "also = ['b']"), fine("proved", 1, 1));
        assert_eq!(settled("I2", "not-applicable = 'so'"), fine("not applicable", 0, 0));
        assert_eq!(settled("I2", "open = 'yet'"), fine("open", 0, 0));
        for (number, rest, problem) in [
            ("I2", "", "nobody proves it"),
            ("I2", "also = ['c']", "there is no test c"),
            ("I1", "not-applicable = 'so'", "has a proof"),
            ("I2", "not-applicable = 'so'\nopen = 'yet'", "not both"),
            ("T2", "also = ['b']", "without a mutant"),
        ] {
            let (.., problems) = settled(number, rest);
            assert!(problems.iter().any(|said| said.contains(problem)), "{number} {rest}: {problems:?}");
        }
    }
}
