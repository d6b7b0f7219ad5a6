//! `run`: boots a configuration in QEMU, shows the console as it comes, what the machine has come to, and ends with one
//! verdict line.
//!
//! * here: the machine that was asked for, and the closing line;
//! * `watch`: what is shown while it runs;
//! * `summary`: what is known at the end, as tables and for machines.

mod summary;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::build::Tree;
use crate::console::{BAD, Console, GOOD, json};
use crate::live::Live;
use crate::qemu::{HYPERVISOR_WORDS, Machine, Status};
use crate::{bundle, linux, setup};

use summary::Report;
use watch::Watch;

/// What `run` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `demo`, another name of `configs/`, or a path.
    pub config: String,
    /// Whether missing packages may be installed.
    pub setup: bool,
    /// Whether to show the QEMU command.
    pub verbose: bool,
    /// Words added to the hypervisor's command line.
    pub append: Vec<String>,
    /// `-M`, if not the default.
    pub machine: Option<String>,
    /// `-cpu`, if not the default.
    pub cpu: Option<String>,
    /// `-m`, if not the default.
    pub memory: Option<String>,
    /// `-smp`, if not the default.
    pub smp: Option<u32>,
    /// QEMU devices; when there are any, the `# qemu:` lines of the configuration are not used.
    pub devices: Vec<String>,
    /// The QEMU binary, if not the one in `PATH`.
    pub qemu: Option<PathBuf>,
    /// After which time a run counts as hung.
    pub timeout: Duration,
    /// Whether the user's terminal becomes the machine's console.
    pub shell: bool,
    /// Whether to print one JSON document on standard output; lines for people go to standard error then.
    pub json: bool,
    /// Further QEMU words, from behind `--`.
    pub words: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config: "demo".to_owned(),
            setup: false,
            verbose: false,
            append: Vec::new(),
            machine: None,
            cpu: None,
            memory: None,
            smp: None,
            devices: Vec::new(),
            qemu: None,
            timeout: Duration::from_secs(120),
            shell: false,
            json: false,
            words: Vec::new(),
        }
    }
}

/// Builds, packs and runs. The run has ended well when this returns.
///
/// # Errors
/// When anything before QEMU fails, and when the run fails; the verdict line is printed then already.
pub fn run(tree: &Tree, options: &Options) -> Result<()> {
    let machine = machine(tree, options, "run")?;
    if options.verbose {
        eprintln!("run: {}", machine.command_line());
    }
    if options.shell { converse(&machine) } else { show(tree, options, &machine, "run") }
}

/// Runs the machine with its console on the terminal, for as long as it takes.
fn converse(machine: &Machine) -> Result<()> {
    let mut console = Console::stderr();
    console.line(
        "run: your terminal is the machine's console; Ctrl-A x ends QEMU, Ctrl-] help asks the hypervisor",
    );
    let verdict = Status::decode(machine.converse()?);
    match verdict {
        Status::Success => {
            console.line(format_args!("run: {}", console.paint(GOOD, "PASS")));
            Ok(())
        }
        other => {
            console.line(format_args!("run: {}: {other}", console.paint(BAD, "FAIL")));
            Err(crate::Reported.into())
        }
    }
}

/// Builds, packs and puts the machine together, on behalf of `verb`.
///
/// # Errors
/// When there is no QEMU, when the build fails, and when the configuration says no.
pub fn machine(tree: &Tree, options: &Options, verb: &str) -> Result<Machine> {
    let config = bundle::config_path(tree, &options.config);
    if linux::is_wanted(tree, &config) {
        linux::prepare(tree, linux::KERNEL, options.setup, &format!("{verb} linux"))?;
    }
    let mut machine = bare(tree, options, Some(&config), verb)?;
    machine.initrd = Some(bundle::pack_to_scratch(tree, &config)?);
    machine.guests = bundle::guests(tree, &config)?;
    machine.append = append(&options.append);
    Ok(machine)
}

/// Builds, on behalf of `verb`, and puts the machine together with nothing to boot but the hypervisor. Its devices are those
/// of the options, else those that `config` asks for.
///
/// # Errors
/// When there is no QEMU, when `config` cannot be read, which is said before anything is built, and when the build fails.
pub fn bare(tree: &Tree, options: &Options, config: Option<&Path>, verb: &str) -> Result<Machine> {
    let qemu = setup::qemu(options.qemu.as_deref(), options.setup, verb)?;
    let asked = config.map(bundle::qemu_words).transpose()?.unwrap_or_default();
    tree.build()?;

    let mut machine = Machine::new(qemu, tree.hypervisor());
    machine.root.clone_from(&tree.root);
    machine.words = if options.devices.is_empty() {
        asked
    } else {
        options.devices.iter().flat_map(|device| ["-device".to_owned(), device.clone()]).collect()
    };
    machine.words.extend(options.words.iter().cloned());
    if let Some(name) = &options.machine {
        machine.machine.clone_from(name);
    }
    if let Some(cpu) = &options.cpu {
        machine.cpu.clone_from(cpu);
    }
    if let Some(memory) = &options.memory {
        machine.memory.clone_from(memory);
    }
    machine.smp = options.smp.unwrap_or(machine.smp);
    Ok(machine)
}

/// Runs the machine with its console on standard output, or beside a report for machines, with what it has come to, and
/// with a verdict line in the name of `verb` at the end.
///
/// # Errors
/// When QEMU cannot be started, and when the run fails; the verdict line is printed then already.
pub fn show(tree: &Tree, options: &Options, machine: &Machine, verb: &'static str) -> Result<()> {
    let partitions: Vec<String> = machine.guests.iter().map(|guest| guest.name.clone()).collect();
    // Without it the run is as good, but for the count of interrupts.
    let (live, monitor) = Live::start(&machine.kernel, partitions.len()).ok().unzip();
    let mut watch = Watch::new(Console::beside(options.json), live, partitions, verb);
    let outcome = machine.watch(options.timeout, monitor, |event| watch.see(event))?;
    let Watch { mut console, summary, .. } = watch;
    console.clear_status();
    for line in &outcome.complaints {
        Console::stderr().line(format_args!("qemu: {line}"));
    }
    let config = bundle::config_path(tree, &options.config);
    let verdict = outcome.check(33, true).and_then(|()| match linux::counts(tree, &config) {
        true => linux::agree(&outcome.console),
        false => Ok(()),
    });
    let took = outcome.took.as_secs_f32();
    let name = tree.shown(&config).to_string();
    summary.show(&mut console);
    let closing = match &verdict {
        Ok(()) => format!("{verb}: {} {name} in {took:.1} s", console.paint(GOOD, "PASS")),
        Err(why) => format!("{verb}: {} {name} after {took:.1} s: {why}", console.paint(BAD, "FAIL")),
    };
    console.line(&closing);
    if options.json {
        json::print("run", &Report::new(&name, machine, &outcome, &verdict, &summary))?;
    }
    if console.is_gone() {
        // Somebody should learn how it ended.
        Console::stderr().line(closing);
        bail!(crate::Reported);
    }
    verdict.map_err(|_| crate::Reported.into())
}

/// The hypervisor's command line: the usual words, then `more`, of which the last says what counts.
pub fn append(more: &[String]) -> String {
    let mut line = HYPERVISOR_WORDS.to_owned();
    for word in more.iter().filter(|word| !word.is_empty()) {
        line.push(' ');
        line.push_str(word);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_added_behind_the_usual_ones() {
        assert_eq!(append(&[]), HYPERVISOR_WORDS);
        assert_eq!(append(&["log=debug".into(), String::new()]), format!("{HYPERVISOR_WORDS} log=debug"));
    }
}
