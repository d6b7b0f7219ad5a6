//! Facts: what a machine is, as the hypervisor reports it when booted with the word `facts` (docs/facts.md).
//!
//! * here: the report, from QEMU or out of a console log, into a file;
//! * `read`: that file back into the library's [`Facts`].

mod read;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use levelhead::facts::frame::{self, Damage};
use levelhead::facts::{Facts, Routing};
use levelhead::message::Message;

use crate::build::Tree;
use crate::config::Problems;
use crate::{bundle, run};

pub use read::load;

/// The hypervisor's word for it.
pub const WORD: &str = "facts";
/// How many lines of a console without a report are shown.
const TAIL: usize = 20;

/// What `facts` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The machine, as for `run`. What it says of a configuration is of no account.
    pub run: run::Options,
    /// A name of `configs/`, or a path, whose devices the machine has.
    pub config: Option<String>,
    /// The console log of a machine booted with the word `facts`, in QEMU's place.
    pub log: Option<PathBuf>,
    /// Where the facts go; standard output if nowhere.
    pub out: Option<PathBuf>,
}

/// Collects the facts and writes them.
///
/// # Errors
/// When a file cannot be read or written, when QEMU or the hypervisor says no, and when the report is not whole.
pub fn facts(tree: &Tree, options: &Options) -> Result<()> {
    let (from, console) = match &options.log {
        Some(path) => {
            let shown = path.display().to_string();
            let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
            // Noise on the wire is no reason to refuse a log; the report's own lines are checked.
            (shown, String::from_utf8_lossy(&bytes).into_owned())
        }
        None => ("console".to_owned(), boot(tree, options)?),
    };
    let (text, facts) = report(&from, &console)?;
    let Some(path) = &options.out else {
        print!("{text}");
        return Ok(());
    };
    bundle::write(path, text.as_bytes())?;
    let routing = match facts.routing {
        Routing::Known { entries, .. } => format!("{} interrupt routes", entries.len()),
        Routing::NotAsked | Routing::Unknown(_) => "interrupt routing not known".to_owned(),
    };
    println!(
        "facts: {}: {} CPU(s), {} IO-APIC(s), {} PCI functions, {routing}",
        path.display(),
        facts.cpus.len(),
        facts.io_apics.len(),
        facts.functions.len(),
    );
    Ok(())
}

/// Boots the hypervisor in QEMU for its report. Returns the console.
fn boot(tree: &Tree, options: &Options) -> Result<String> {
    let config = options.config.as_ref().map(|name| bundle::config_path(tree, name));
    let mut machine = run::bare(tree, &options.run, config.as_deref(), WORD)?;
    machine.append = run::append(&[WORD.to_owned()]);
    if options.run.verbose {
        eprintln!("facts: {}", machine.command_line());
    }
    let outcome = machine.run(options.run.timeout, |_| {})?;
    if let Err(why) = outcome.check(33, true) {
        outcome.tail(TAIL).iter().for_each(|line| eprintln!("| {line}"));
        bail!("no facts: {why}");
    }
    Ok(outcome.console.join("\n"))
}

/// The facts on a console, which is told as `log`: their text, and what it says. The text must be whole, and say all that
/// can be read out of it.
///
/// # Errors
/// What is wrong with it.
pub fn report(log: &str, console: &str) -> Result<(String, Facts)> {
    let text = extract(log, console)?;
    let facts = read::parse("facts", &text)?;
    ensure!(
        facts.to_string() == text,
        "the facts are of another hypervisor than this tree's: they read differently"
    );
    Ok((text, facts))
}

/// Takes the report out of the text of `log`.
fn extract(log: &str, text: &str) -> Result<String, Problems> {
    frame::extract(text).map_err(|(line, damage): (usize, Damage)| {
        let file = if line == 0 { log.to_owned() } else { format!("{log}:{line}") };
        Problems::of_file(file, Message::FactsDamaged, damage.to_string(), Message::FactsDamaged.remedy())
    })
}

#[cfg(test)]
mod tests;
