//! `gate`: what must not be in the tree or in the image, each claim with the check that proves it.
//!
//! A gate looks at sources or at what the compiler made of them, never at a run. Each is a step of `test` as well, under
//! the same name with `host/` in front. A gate that looks for something which could be missed has a control: a sample
//! that must be caught, or the gate fails.

mod levels;
mod no_panic;
mod no_std;
mod safety;
pub mod source;
mod unsafe_code;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::Reported;
use crate::build::{Tree, cargo};
use crate::console::Console;
use crate::docs;
use crate::test::{Report, Step, Verdict, succeeds};

/// Every gate, the quick ones first.
pub const GATES: [Step; 7] = [
    Step { name: "host/levels", makes: false, run: |tree, _| judge(levels::check(&tree.root)) },
    Step { name: "host/unsafe", makes: false, run: |tree, _| judge(unsafe_code::check(&tree.root)) },
    Step { name: "host/safety", makes: false, run: |tree, _| judge(safety::check(&tree.root)) },
    Step { name: "host/documents", makes: false, run: |tree, _| judge(docs::outdated(tree)) },
    Step { name: "host/no-std", makes: false, run: |tree, _| judge(no_std::check(tree)) },
    Step { name: "host/no-panic", makes: false, run: |tree, _| judge(no_panic::check(tree)) },
    Step { name: "host/doc", makes: false, run: doc },
];

/// What `gate` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names of gates; none means all.
    pub names: Vec<String>,
    /// Whether to report as JSON, in the form of `test`.
    pub json: bool,
}

/// Runs the gates that were named.
///
/// # Errors
/// When a gate fails, or when a name is that of no gate.
pub fn run(tree: &Tree, options: &Options) -> Result<()> {
    let gates = named(&options.names)?;
    let report = Report::new(gates.len(), Console::beside(options.json), options.json);
    report.during(|| {
        for gate in gates {
            let start = Instant::now();
            report.begin(gate.name);
            let verdict = (gate.run)(tree, false);
            report.record(gate.name, verdict, Some(start.elapsed()));
        }
    });
    report.close();
    if report.has_failed() {
        bail!(Reported);
    }
    Ok(())
}

/// The gates of these names, in their own order.
fn named(names: &[String]) -> Result<Vec<Step>> {
    let is = |gate: &Step, name: &str| name == gate.name || name == short(gate);
    if let Some(unknown) = names.iter().find(|name| !GATES.iter().any(|gate| is(gate, name))) {
        let all: Vec<&str> = GATES.iter().map(short).collect();
        bail!("there is no gate {unknown:?}; the gates are {}", all.join(", "));
    }
    let wanted = |gate: &Step| names.is_empty() || names.iter().any(|name| is(gate, name));
    Ok(GATES.into_iter().filter(wanted).collect())
}

/// A gate's name without its class.
fn short(gate: &Step) -> &'static str {
    gate.name.rsplit('/').next().unwrap_or(gate.name)
}

/// A gate is passed when there is no breach, and when it could look at all.
fn judge(breaches: Result<Vec<String>>) -> Verdict {
    match breaches {
        Ok(breaches) if breaches.is_empty() => Verdict::Passed,
        Ok(breaches) => Verdict::Failed(breaches),
        Err(error) => Verdict::Failed(vec![format!("{error:#}")]),
    }
}

/// The documentation of the workspace without a warning.
fn doc(tree: &Tree, _: bool) -> Verdict {
    let mut command = cargo();
    command
        .current_dir(&tree.root)
        .args(["doc", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings");
    succeeds(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Result<Vec<&'static str>> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Ok(named(&words)?.iter().map(short).collect())
    }

    #[test]
    fn gates_are_found_by_their_names() {
        assert_eq!(names(&[]).unwrap().len(), GATES.len());
        assert_eq!(names(&["no-std", "host/levels"]).unwrap(), ["levels", "no-std"]);
        let error = names(&["no-stu"]).unwrap_err().to_string();
        assert!(error.contains("\"no-stu\"") && error.contains("no-std, "), "{error}");
        names(&["no"]).unwrap_err();
    }
}
