//! The steps on the host that are neither tests nor gates: form, lints, builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Verdict, without};
use crate::build::{Tree, cargo};
use crate::process::{self, End};
use crate::setup;

/// No step takes this long, also from nothing and on a slow machine.
const LIMIT: Duration = Duration::from_secs(900);
/// How much of a failed command's output is shown.
const TAIL: usize = 200;

/// One step. It is told whether missing components may be installed.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its name, with the class in front.
    pub name: &'static str,
    /// Whether others need what it leaves behind: it is run also when it passed before.
    pub makes: bool,
    /// What it does.
    pub run: fn(&Tree, bool) -> Verdict,
}

/// The steps in the order they are run.
pub const STEPS: [Step; 5] = [
    Step { name: "host/fmt", makes: false, run: fmt },
    Step { name: "host/clippy", makes: false, run: clippy },
    Step { name: "host/build", makes: true, run: build },
    Step { name: "host/outside", makes: false, run: outside },
    Step { name: "host/iasl", makes: true, run: iasl },
];

fn fmt(tree: &Tree, setup: bool) -> Verdict {
    if let Err(error) = setup::component("fmt", "rustfmt", setup) {
        return Verdict::Failed(vec![error.to_string()]);
    }
    succeeds(cargo().current_dir(&tree.root).args(["fmt", "--check"]))
}

fn clippy(tree: &Tree, setup: bool) -> Verdict {
    if let Err(error) = setup::component("clippy", "clippy", setup) {
        return Verdict::Failed(vec![error.to_string()]);
    }
    succeeds(cargo().current_dir(&tree.root).args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Sees to it that there is an iasl, which a test of `guest::acpi` does nothing without.
fn iasl(_: &Tree, setup: bool) -> Verdict {
    match setup::iasl(setup, "test") {
        Ok(_) => Verdict::Passed,
        Err(error) => without(&error),
    }
}

/// Builds the release hypervisor and guests.
pub fn build(tree: &Tree, _: bool) -> Verdict {
    succeeds(&mut tree.build_command())
}

/// Builds a package outside the tree that uses the library alone: no hypervisor feature, no configuration
/// directory of ours in sight, and no `RUSTC_BOOTSTRAP`.
fn outside(tree: &Tree, _: bool) -> Verdict {
    let package = match Outside::make(tree) {
        Ok(package) => package,
        Err(error) => return Verdict::Failed(vec![format!("{error:#}")]),
    };
    let mut command = cargo();
    command.current_dir(&package.0).args(["build", "--offline", "--quiet"]);
    // What cargo set for us comes from the tree's own configuration.
    for variable in [
        "RUSTC_BOOTSTRAP",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
    ] {
        command.env_remove(variable);
    }
    succeeds(&mut command)
}

/// The throw-away package, gone when dropped.
struct Outside(PathBuf);

impl Outside {
    fn make(tree: &Tree) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("levelhead-outside-{}", std::process::id()));
        let package = Self(folder);
        let put = |name: &str, text: &str| {
            let path = package.0.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        let source = package.0.join("src");
        fs::create_dir_all(&source).with_context(|| format!("cannot make {}", source.display()))?;
        put("Cargo.toml", &manifest(&tree.root))?;
        put("src/lib.rs", "#![no_std]\npub use levelhead::{intx, irq::Gsi, pci, virq};\n")?;
        // The same versions as in the tree, which are on this machine already.
        let lock = tree.root.join("Cargo.lock");
        fs::copy(&lock, package.0.join("Cargo.lock"))
            .with_context(|| format!("cannot copy {}", lock.display()))?;
        Ok(package)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // A folder left in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn manifest(root: &Path) -> String {
    let path = toml::Value::String(root.display().to_string());
    format!(
        "[package]\nname = \"outside\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         levelhead = {{ path = {path}, default-features = false }}\n\n[profile.dev]\npanic = \"abort\"\n"
    )
}

/// Runs a command that must succeed; the end of what it said tells why it did not.
pub fn succeeds(command: &mut Command) -> Verdict {
    match output(command) {
        Ok(_) => Verdict::Passed,
        Err(lines) => Verdict::Failed(lines),
    }
}

/// The standard output of a command that must succeed, by lines.
///
/// # Errors
/// How it failed and the end of what it said.
pub fn output(command: &mut Command) -> Result<Vec<String>, Vec<String>> {
    let mut out = Vec::new();
    let mut all = Vec::new();
    let end = process::run(command, LIMIT, |stream, line| {
        if stream == process::Stream::Out {
            out.push(line.to_owned());
        }
        // Cargo's messages for machines would crowd out its words for people.
        if !line.starts_with("{\"reason\":") {
            all.push(line.to_owned());
        }
    });
    let why = match end {
        Ok(End::Exited(0)) => return Ok(out),
        Ok(end) => end.to_string(),
        Err(error) => return Err(vec![format!("{error:#}")]),
    };
    let mut lines = vec![format!("{command:?}: {why}")];
    lines.extend(all.iter().skip(all.len().saturating_sub(TAIL)).cloned());
    Err(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_shows_its_last_words() {
        let Err(lines) = output(Command::new("/bin/sh").args(["-c", "echo one; echo two >&2; exit 3"]))
        else {
            panic!("status 3 passed");
        };
        assert!(lines[0].ends_with("status 3"), "{lines:?}");
        assert!(lines.contains(&"one".to_owned()) && lines.contains(&"two".to_owned()), "{lines:?}");
        let script = "echo '{\"reason\":\"compiler-artifact\"}'; echo why >&2; exit 1";
        let lines = output(Command::new("/bin/sh").args(["-c", script])).unwrap_err();
        assert_eq!(lines.get(1).map(String::as_str), Some("why"), "{lines:?}");
    }

    #[test]
    fn the_outside_manifest_survives_odd_paths() {
        let manifest = manifest(Path::new("/tmp/a \"b\"\\c"));
        let parsed: toml::Table = toml::from_str(&manifest).unwrap();
        let path = parsed["dependencies"]["levelhead"]["path"].as_str();
        assert_eq!(path, Some("/tmp/a \"b\"\\c"));
    }
}
