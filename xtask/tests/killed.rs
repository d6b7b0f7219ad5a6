//! A run that is killed in the middle, by the program itself: what is left, and what it says.
//!
//! QEMU's part is played by a script that tells its process and sleeps. `run` builds before it boots, so that this takes
//! as long as a build where there is none yet.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

/// What a run of the program came to after a signal.
struct End {
    status: ExitStatus,
    /// What it printed after the emulator's first line.
    said: String,
    /// The emulator's process.
    emulator: String,
}

/// Boots the demonstration in a script's stead of QEMU, and sends `signal` to this program or to the `emulator`.
fn end_by(signal: &str, emulator: bool) -> End {
    let script: PathBuf =
        std::env::temp_dir().join(format!("levelhead-killed-{}-{signal}-{emulator}", std::process::id()));
    // Written by another process: no child of another test can still hold it open, which would keep it from starting.
    let mut write = Command::new("/bin/sh");
    write.args(["-c", "printf '#!/bin/sh\\necho process $$\\nexec sleep 300\\n' >\"$0\" && chmod +x \"$0\""]);
    assert!(write.arg(&script).status().unwrap().success());

    let mut run = Command::new(env!("CARGO_BIN_EXE_xtask"));
    run.args(["run", "--color", "never", "--qemu"]).arg(&script);
    let mut run = run.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    let process = first.trim().strip_prefix("process ").unwrap_or_else(|| panic!("{first:?}")).to_owned();

    let victim = if emulator { process.clone() } else { run.id().to_string() };
    assert!(Command::new("/bin/sh").args(["-c", "kill -$0 $1", signal, &victim]).status().unwrap().success());
    let mut said = String::new();
    lines.read_to_string(&mut said).unwrap();
    let status = run.wait().unwrap();
    fs::remove_file(script).unwrap();
    End { status, said, emulator: process }
}

/// Waits until a process is gone, or waits for nothing but to be asked how it ended.
fn await_end_of(process: &str) {
    let lives = || {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    };
    // The script would sleep for longer than this.
    for _ in 0..2000 {
        if !lives() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("the emulator, process {process}, lives on");
}

#[test]
fn ctrl_c_leaves_no_qemu_and_says_so() {
    let end = end_by("INT", false);
    assert!(end.said.contains("run: FAIL configs/demo.toml after "), "{}", end.said);
    assert!(end.said.ends_with(": QEMU was ended by Ctrl-C\n"), "{}", end.said);
    assert_eq!(end.status.code(), Some(130), "as of a program that the signal ended");
    await_end_of(&end.emulator);
}

#[test]
fn a_program_that_is_killed_takes_qemu_along() {
    let end = end_by("KILL", false);
    assert_eq!(end.status.signal(), Some(9));
    await_end_of(&end.emulator);
}

#[test]
fn a_qemu_that_is_killed_is_named() {
    let end = end_by("KILL", true);
    assert!(end.said.ends_with(": QEMU was ended by signal 9\n"), "{}", end.said);
    assert_eq!(end.status.code(), Some(1));
}
