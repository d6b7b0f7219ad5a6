//! QEMU: the command line of one machine, its run, and what its end means.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::digest::Digest;
use crate::live;
use crate::process::{self, End, Event, Input, Stream};
use crate::setup;
use crate::symbols::{Guest, Symbols};

/// The name QEMU is looked up by.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Words every command line of the hypervisor starts with.
pub const HYPERVISOR_WORDS: &str = "log=info exit=0xf4";
/// What QEMU says when gdb's `kill` ends it, with status 0.
const KILLED: &str = "Terminated via GDBstub";
/// QEMU's own exit status when its words make no machine.
const QEMU_REFUSES: i32 = 1;
/// How the hypervisor's last line begins.
const VERDICT: &str = "levelhead: verdict ";

/// What is typed on a console, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    /// What.
    pub text: String,
    /// Once a line with this in it has appeared; from the start without it.
    pub after: Option<String>,
}

/// Words that make QEMU's own terminal the serial console, with its monitor behind Ctrl-A as usual. All other keys are the
/// machine's.
const ON_TERMINAL: [&str; 6] = [
    "-chardev",
    "stdio,id=lh-console,mux=on,signal=off",
    "-serial",
    "chardev:lh-console",
    "-mon",
    "chardev=lh-console",
];

/// One machine to run.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The QEMU binary.
    pub qemu: PathBuf,
    /// `-M`.
    pub machine: String,
    /// `-cpu`.
    pub cpu: String,
    /// `-smp`.
    pub smp: u32,
    /// `-m`.
    pub memory: String,
    /// `-accel`; QEMU's default when absent.
    pub accel: Option<String>,
    /// Whether one instruction is one nanosecond, so that counts are exact.
    pub icount: bool,
    /// What `-kernel` names: an ELF file.
    pub kernel: PathBuf,
    /// What `-initrd` names.
    pub initrd: Option<PathBuf>,
    /// What `-append` says.
    pub append: String,
    /// What is typed on the serial console.
    pub typed: Option<Typed>,
    /// Further words, devices above all.
    pub words: Vec<String>,
    /// The guests whose addresses in the console get names, beside the kernel's.
    pub guests: Vec<Guest>,
    /// Where the paths of sources in those names are shown from.
    pub root: PathBuf,
}

impl Machine {
    /// The machine everything runs on unless something else is asked for: q35, one CPU with SVM, 256 MiB.
    pub fn new(qemu: PathBuf, kernel: PathBuf) -> Self {
        Self {
            qemu,
            machine: "q35".to_owned(),
            cpu: "max".to_owned(),
            smp: 1,
            memory: "256M".to_owned(),
            accel: None,
            icount: false,
            kernel,
            initrd: None,
            append: String::new(),
            typed: None,
            words: Vec::new(),
            guests: Vec::new(),
            root: PathBuf::new(),
        }
    }

    /// The words after `qemu-system-x86_64`.
    pub fn arguments(&self) -> Vec<OsString> {
        self.arguments_with(&["-serial", "stdio"])
    }

    /// The same with the serial console elsewhere.
    fn arguments_with(&self, serial: &[&str]) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |flag: &str, value: &str| words.extend([flag.into(), value.into()]);
        add("-M", &self.machine);
        if let Some(accel) = &self.accel {
            add("-accel", accel);
        }
        add("-cpu", &self.cpu);
        add("-m", &self.memory);
        add("-smp", &self.smp.to_string());
        if self.icount {
            // With the default `sleep=on` every halt would mix real time into the counts.
            add("-icount", "shift=0,sleep=off");
        }
        add("-display", "none");
        words.extend(serial.iter().map(OsString::from));
        let mut add = |flag: &str, value: &str| words.extend([flag.into(), value.into()]);
        add("-monitor", "none");
        // q35 brings a network card of its own, which would take a slot.
        add("-nic", "none");
        add("-device", "isa-debug-exit,iobase=0xf4,iosize=4");
        words.push("-no-reboot".into());
        words.extend(["-kernel".into(), self.kernel.clone().into()]);
        if let Some(initrd) = &self.initrd {
            words.extend(["-initrd".into(), initrd.clone().into()]);
        }
        if !self.append.is_empty() {
            words.extend(["-append".into(), OsString::from(&self.append)]);
        }
        words.extend(self.words.iter().map(OsString::from));
        words
    }

    /// The command as a person would type it.
    pub fn command_line(&self) -> String {
        let mut line = self.qemu.display().to_string();
        for word in self.arguments() {
            line.push(' ');
            line.push_str(&shell_word(&word.to_string_lossy()));
        }
        line
    }

    /// Adds what its result depends on, but for QEMU itself: the words, and what is in the files that they name or that
    /// give names to addresses.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn digest(&self, digest: &mut Digest) -> Result<()> {
        for word in self.arguments() {
            digest.text(&word.to_string_lossy());
        }
        if let Some(Typed { text, after }) = &self.typed {
            digest.text(text);
            digest.text(after.as_deref().unwrap_or_default());
        }
        let guests = self.guests.iter().map(|guest| &guest.kernel);
        [&self.kernel].into_iter().chain(&self.initrd).chain(guests).try_for_each(|path| digest.file(path))
    }

    /// Runs the machine on this program's own terminal until it ends. QEMU's exit status.
    ///
    /// # Errors
    /// When QEMU cannot be started, or ends by a signal.
    pub fn converse(&self) -> Result<i32> {
        let mut command = process::bound(&self.qemu);
        let status = command.args(self.arguments_with(&ON_TERMINAL)).status();
        let status = status.with_context(|| format!("cannot start {}", self.qemu.display()))?;
        status.code().with_context(|| format!("QEMU ended by {status}"))
    }

    /// Runs the machine until it ends or `limit` has passed, handing each console line on as it comes, with names for the
    /// addresses in it.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn run(&self, limit: Duration, mut on_line: impl FnMut(&str)) -> Result<Outcome> {
        self.watch(limit, None, |event| {
            if let Event::Line(Stream::Out, line) = event {
                on_line(line);
            }
            ControlFlow::Continue(())
        })
    }

    /// The same for somebody who watches, and has `monitor`, QEMU's standard input from [`live`]. The machine is ended
    /// when `on_event` breaks.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn watch(
        &self,
        limit: Duration,
        monitor: Option<Stdio>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let start = Instant::now();
        let mut console = Vec::new();
        let mut complaints = Vec::new();
        let mut symbols = Symbols::new(&self.root, [self.kernel.clone()], &self.guests);
        ensure!(
            setup::is_program(&self.qemu),
            "cannot start {}: it is no executable file",
            self.qemu.display()
        );
        let mut command = process::bound(&self.qemu);
        // In a group of its own: a Ctrl-C is for us, who then end it and say so.
        command.process_group(0);
        command.args(match monitor {
            Some(_) => self.arguments_with(&live::WORDS),
            None => self.arguments(),
        });
        let mut keys = None;
        let input = match (monitor, &self.typed) {
            (Some(monitor), _) => Input::From(monitor),
            (None, Some(Typed { text, after: None })) => Input::Text(text.clone()),
            (None, Some(Typed { text, after: Some(mark) })) => {
                let (sender, receiver) = sync_channel(1);
                keys = Some((mark, text.clone(), sender));
                Input::Later(receiver)
            }
            (None, None) => Input::Nothing,
        };
        let end = process::watch(&mut command, input, limit, |event| {
            match event {
                Event::Line(Stream::Out, line) => {
                    if let Some((_, text, sender)) = keys.take_if(|(mark, ..)| line.contains(mark.as_str())) {
                        // It fails only for a machine that has ended.
                        let _ = sender.send(text);
                    }
                    for line in symbols.lines(line) {
                        let go_on = on_event(Event::Line(Stream::Out, &line));
                        console.push(line);
                        go_on?;
                    }
                    return ControlFlow::Continue(());
                }
                Event::Line(Stream::Err, line) => complaints.push(line.to_owned()),
                Event::Tick => {}
            }
            on_event(event)
        })?;
        Ok(Outcome { end, console, complaints, took: start.elapsed() })
    }
}

/// The word as a person would type it into a shell.
pub fn shell_word(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,/:+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
}

/// What QEMU's exit status says. The hypervisor (or a bare guest) writes a value to `isa-debug-exit`, which
/// makes the status twice that value plus one: an even status never comes from a program that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 0x10 was written: success.
    Success,
    /// 0x11: a guest failed.
    GuestFailed,
    /// 0x12: the configuration or the bundle was refused.
    Refused,
    /// 0x13: the machine lacks something (SVM, ACPI tables, ...).
    Unfit,
    /// 0x14: the hypervisor itself failed.
    Bug,
    /// Anything else.
    Crash(i32),
}

impl Status {
    /// Decodes an exit status of QEMU.
    pub fn decode(status: i32) -> Self {
        match status {
            33 => Self::Success,
            35 => Self::GuestFailed,
            37 => Self::Refused,
            39 => Self::Unfit,
            41 => Self::Bug,
            other => Self::Crash(other),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success (status 33)"),
            Self::GuestFailed => f.write_str("a guest failed (status 35)"),
            Self::Refused => f.write_str("the configuration or the bundle was refused (status 37)"),
            Self::Unfit => f.write_str("the machine is unfit (status 39)"),
            Self::Bug => f.write_str("the hypervisor failed (status 41)"),
            Self::Crash(0) => f.write_str(
                "QEMU ended with status 0: a triple fault, a reset or a power-off, which is never success",
            ),
            Self::Crash(1) => f.write_str("QEMU itself failed (status 1)"),
            Self::Crash(other) => write!(f, "QEMU ended with status {other}, which is none of ours: a crash"),
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How QEMU ended.
    pub end: End,
    /// The serial console, by lines.
    pub console: Vec<String>,
    /// What QEMU itself wrote to its standard error.
    pub complaints: Vec<String>,
    /// Wall-clock time from start to end.
    pub took: Duration,
}

impl Outcome {
    /// Checks that the run ended with exit status `expected`, and, where that is success under the hypervisor,
    /// that the hypervisor's own last word agrees: neither is believed alone.
    ///
    /// # Errors
    /// What happened instead, in one line.
    pub fn check(&self, expected: i32, under_levelhead: bool) -> Result<(), String> {
        let status = match self.end {
            End::Exited(status) => status,
            End::TimedOut(limit) => {
                return Err(format!(
                    "it hung: QEMU was ended after {} s without a verdict",
                    limit.as_secs_f32()
                ));
            }
            end @ (End::Signalled(_) | End::Flooded | End::Stopped | End::Interrupted(_)) => {
                return Err(format!("QEMU {end}"));
            }
        };
        if self.complaints.iter().any(|line| line.contains(KILLED)) {
            return Err("it was ended from gdb".to_owned());
        }
        if status == QEMU_REFUSES && self.console.is_empty() && status != expected {
            let said = self.complaints.last().map_or("it does not say why", String::as_str);
            return Err(format!("QEMU refused to start: {said}"));
        }
        if status != expected {
            let got = Status::decode(status);
            return Err(match Status::decode(expected) {
                Status::Success => got.to_string(),
                wanted => format!("{got}; expected: {wanted}"),
            });
        }
        if under_levelhead && Status::decode(status) == Status::Success {
            return match self.verdict() {
                Some("PASS") => Ok(()),
                Some(word) => {
                    Err(format!("the exit status says success, the hypervisor's verdict says {word}"))
                }
                None => Err("the exit status says success, but the console has no verdict of the hypervisor"
                    .to_owned()),
            };
        }
        Ok(())
    }

    /// The first word of the hypervisor's last verdict line. A guest cannot forge one: its lines come prefixed.
    pub fn verdict(&self) -> Option<&str> {
        let line = self.console.iter().rev().find_map(|line| line.strip_prefix(VERDICT))?;
        line.split_whitespace().next()
    }

    /// The last `count` lines of the console and everything QEMU itself said, to be shown for a failure.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let skipped = self.console.len().saturating_sub(count);
        let mut lines = Vec::new();
        if self.console.is_empty() {
            lines.push("(the console is empty)".to_owned());
        } else if skipped > 0 {
            lines.push(format!("({skipped} lines of the console before these)"));
        }
        lines.extend(self.console.iter().skip(skipped).cloned());
        lines.extend(self.complaints.iter().take(count).map(|line| format!("qemu: {line}")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use super::*;

    fn outcome(end: End, console: &[&str]) -> Outcome {
        let console = console.iter().map(|line| (*line).to_owned()).collect();
        Outcome { end, console, complaints: Vec::new(), took: Duration::ZERO }
    }

    #[test]
    fn the_default_machine_is_spelled_out() {
        let mut machine = Machine::new("qemu".into(), "target/release/levelhead".into());
        machine.initrd = Some("bundle.bin".into());
        machine.append = HYPERVISOR_WORDS.to_owned();
        machine.words = vec!["-device".into(), "edu,addr=3".into()];
        assert_eq!(
            machine.command_line(),
            "qemu -M q35 -cpu max -m 256M -smp 1 -display none -serial stdio -monitor none -nic none \
             -device isa-debug-exit,iobase=0xf4,iosize=4 -no-reboot -kernel target/release/levelhead \
             -initrd bundle.bin -append 'log=info exit=0xf4' -device edu,addr=3"
        );
    }

    #[test]
    fn counting_and_threads_are_asked_for_only_when_wanted() {
        let mut machine = Machine::new("qemu".into(), "k".into());
        assert!(!machine.command_line().contains("-icount"));
        assert!(!machine.command_line().contains("-append"));
        assert!(!machine.command_line().contains("-accel"));
        machine.icount = true;
        machine.accel = Some("tcg,thread=single".into());
        let line = machine.command_line();
        assert!(line.contains("-accel tcg,thread=single"));
        assert!(line.contains("-icount shift=0,sleep=off"));
    }

    #[test]
    fn only_33_is_success() {
        for status in 0..256 {
            assert_eq!(Status::decode(status) == Status::Success, status == 33, "{status}");
        }
    }

    #[test]
    fn success_needs_the_status_and_the_last_line() {
        let pass = ["levelhead: verdict PASS"];
        assert_eq!(outcome(End::Exited(33), &pass).check(33, true), Ok(()));
        assert_eq!(
            outcome(End::Exited(33), &["levelhead: verdict PASS 1 partition"]).check(33, true),
            Ok(())
        );
        assert!(outcome(End::Exited(33), &[]).check(33, true).is_err());
        assert!(outcome(End::Exited(33), &["[echo] levelhead: verdict PASS"]).check(33, true).is_err());
        assert!(outcome(End::Exited(33), &[pass[0], "levelhead: verdict FAIL"]).check(33, true).is_err());
        for end in [End::Exited(0), End::Exited(1), End::Exited(35), End::Signalled(9), End::Flooded] {
            assert!(outcome(end, &pass).check(33, true).is_err(), "{end:?}");
        }
        assert!(outcome(End::TimedOut(Duration::from_secs(1)), &pass).check(33, true).is_err());
    }

    /// A QEMU that does what `script` says.
    fn fake(name: &str, script: &str) -> (PathBuf, Machine) {
        let path = std::env::temp_dir().join(format!("levelhead-qemu-{name}-{}", std::process::id()));
        // Written by another process: no child of another test can still hold it open, which would keep it from starting.
        let mut write = Command::new("/bin/sh");
        write
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod +x \"$0\""])
            .arg(&path)
            .arg(script);
        assert!(write.status().unwrap().success());
        let machine = Machine::new(path.clone(), "k".into());
        (path, machine)
    }

    fn failure_of(name: &str, script: &str) -> (String, Outcome) {
        let (path, machine) = fake(name, script);
        let outcome = machine.run(Duration::from_secs(20), |_| {}).unwrap();
        std::fs::remove_file(path).unwrap();
        (outcome.check(33, true).unwrap_err(), outcome)
    }

    #[test]
    fn a_qemu_that_is_killed_in_the_middle_is_no_success_and_keeps_its_last_words() {
        let (why, outcome) = failure_of("killed", "echo levelhead: verdict PASS; kill -KILL $$");
        assert_eq!(why, "QEMU was ended by signal 9");
        assert_eq!(outcome.console, ["levelhead: verdict PASS"]);
    }

    #[test]
    fn a_qemu_that_refuses_to_start_is_quoted() {
        let (why, _) =
            failure_of("refuses", "echo \"qemu: -device foo: 'foo' is not a valid device\" >&2; exit 1");
        assert_eq!(why, "QEMU refused to start: qemu: -device foo: 'foo' is not a valid device");
        let (why, _) = failure_of("silent", "exit 1");
        assert_eq!(why, "QEMU refused to start: it does not say why");
        let (why, _) = failure_of("later", "echo boot; exit 1");
        assert_eq!(why, "QEMU itself failed (status 1)");
    }

    #[test]
    fn a_qemu_that_floods_is_ended() {
        let (why, _) = failure_of("floods", "exec yes 0123456789012345678901234567890123456789");
        assert_eq!(why, "QEMU was ended because it printed without end");
    }

    #[test]
    fn a_qemu_that_cannot_be_started_is_named() {
        let machine = Machine::new("/nonexistent/qemu".into(), "k".into());
        let error = machine.run(Duration::from_secs(20), |_| {}).unwrap_err();
        assert!(format!("{error:#}").contains("cannot start /nonexistent/qemu"), "{error:#}");
    }

    #[test]
    fn a_watched_machine_has_its_monitor_on_standard_input() {
        let (path, machine) = fake("monitor", "echo \"$@\"; read line; echo \"asked $line\"; exit 33");
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.write_all(b"something\n").unwrap();
        let input = Stdio::from(std::os::fd::OwnedFd::from(theirs));
        let outcome =
            machine.watch(Duration::from_secs(20), Some(input), |_| ControlFlow::Continue(())).unwrap();
        std::fs::remove_file(path).unwrap();
        let words = outcome.console.first().unwrap();
        assert!(words.contains("chardev:lh-com1") && !words.contains("stdio"), "{words}");
        assert_eq!(outcome.console.get(1).map(String::as_str), Some("asked something"));
    }

    #[test]
    fn a_bare_guest_needs_the_status_alone() {
        assert_eq!(outcome(End::Exited(33), &[]).check(33, false), Ok(()));
        assert!(outcome(End::Exited(0), &[]).check(33, false).is_err());
    }

    #[test]
    fn an_expected_failure_must_be_that_failure() {
        assert_eq!(outcome(End::Exited(39), &[]).check(39, true), Ok(()));
        assert!(outcome(End::Exited(41), &[]).check(39, true).is_err());
        assert!(outcome(End::Exited(33), &["levelhead: verdict PASS"]).check(39, true).is_err());
    }

    #[test]
    fn the_tail_says_what_it_leaves_out() {
        let lines: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let tail = outcome(End::Exited(0), &lines).tail(40);
        assert_eq!(tail.len(), 41);
        assert_eq!(tail.first().map(String::as_str), Some("(60 lines of the console before these)"));
        assert_eq!(tail.last().map(String::as_str), Some("99"));
        assert_eq!(outcome(End::Exited(0), &[]).tail(40), ["(the console is empty)"]);
    }
}
