//! Child processes with a deadline: both output streams line by line, a limit on time and on output, and
//! nothing left running afterwards.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{setup, signals};

/// Longest line handed on whole, in bytes; a longer one arrives in pieces.
const LINE_LIMIT: u64 = 4096;
/// Most output taken from one process, in bytes. A guest that prints for ever is stopped by it.
const OUTPUT_LIMIT: usize = 16 << 20;
/// How many lines may wait for whoever takes them.
const QUEUE: usize = 1024;
/// How often whoever watches is told that time passes.
const TICK: Duration = Duration::from_millis(100);
/// How long the streams of an ended process may stay open, for a grandchild that still holds them.
const DRAIN: Duration = Duration::from_millis(500);

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// Killed here, because this much time had passed.
    TimedOut(Duration),
    /// Killed here, because it printed more than [`OUTPUT_LIMIT`].
    Flooded,
    /// Killed here, because whoever watched it had seen enough.
    Stopped,
    /// Killed here, because this signal asked us to end.
    Interrupted(i32),
}

impl fmt::Display for End {
    /// What it did, for a sentence that begins with its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "ended with status {status}"),
            Self::Signalled(signal) => write!(f, "was ended by signal {signal}"),
            Self::TimedOut(limit) => write!(f, "was ended after {} s", limit.as_secs_f32()),
            Self::Flooded => f.write_str("was ended because it printed without end"),
            Self::Stopped => f.write_str("was ended because nobody reads what it prints"),
            Self::Interrupted(signal) => write!(f, "was ended by {}", signals::name(*signal)),
        }
    }
}

/// What there is to know of a running process.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// It printed a line.
    Line(Stream, &'a str),
    /// Nothing came for a moment, or much comes and a moment has passed.
    Tick,
}

/// The program of util-linux that has another one killed when its parent is gone.
pub const BINDER: &str = "setpriv";

/// A command that runs `program` and is killed with the thread that starts it, however that ends: also by a signal that
/// nobody can catch. Setting this up takes a word from util-linux; where that is missing, only what we can catch ends it.
pub fn bound(program: &Path) -> Command {
    match setup::find(BINDER) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Kills the process when dropped, so that no early return leaves it behind.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command` with no input until it ends or `limit` has passed, handing each line of its output on as it
/// comes, without its line ending. A limit that the clock cannot express, [`Duration::MAX`], is none.
///
/// # Errors
/// When the process cannot be started.
pub fn run(command: &mut Command, limit: Duration, mut on_line: impl FnMut(Stream, &str)) -> Result<End> {
    watch(command, Input::Nothing, limit, |event| {
        if let Event::Line(stream, line) = event {
            on_line(stream, line);
        }
        ControlFlow::Continue(())
    })
}

/// What `command` prints to standard output when told `input`, if it ends well within `limit`.
///
/// # Errors
/// When it does not; what happened instead fits behind the program's name.
pub fn answer(command: &mut Command, input: &str, limit: Duration) -> Result<String> {
    let (mut answer, mut complaint) = (String::new(), String::new());
    let end = watch(command, Input::Text(input.to_owned()), limit, |event| {
        match event {
            Event::Line(Stream::Out, line) => {
                answer.push_str(line);
                answer.push('\n');
            }
            Event::Line(Stream::Err, line) if !line.trim().is_empty() => line.clone_into(&mut complaint),
            Event::Line(Stream::Err, _) | Event::Tick => {}
        }
        ControlFlow::Continue(())
    })?;
    match end {
        End::Exited(0) => Ok(answer),
        End::Exited(status) if complaint.is_empty() => bail!("ended with status {status}"),
        End::Exited(status) => bail!("ended with status {status}: {complaint}"),
        End::Signalled(signal) => bail!("crashed by signal {signal}"),
        End::TimedOut(limit) => bail!("hung: it was ended after {} s", limit.as_secs_f32()),
        End::Flooded => bail!("printed without end"),
        End::Stopped | End::Interrupted(_) => bail!("{end}"),
    }
}

/// What a process reads.
#[derive(Debug)]
pub enum Input {
    /// Nothing.
    Nothing,
    /// What somebody else writes.
    From(Stdio),
    /// This, and then nothing.
    Text(String),
    /// This once somebody sends it, and then nothing.
    Later(Receiver<String>),
}

/// As [`run`] with a standard input, and with a say: the process is ended when `on_event` breaks. Ticks come every now
/// and then.
///
/// # Errors
/// When the process cannot be started.
pub fn watch(
    command: &mut Command,
    input: Input,
    limit: Duration,
    mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<End> {
    let (input, later) = match input {
        Input::Nothing => (Stdio::null(), None),
        Input::From(input) => (input, None),
        Input::Text(text) => {
            let (sender, later) = sync_channel(1);
            // There is room for one, and somebody to take it.
            let _ = sender.send(text);
            (Stdio::piped(), Some(later))
        }
        Input::Later(later) => (Stdio::piped(), Some(later)),
    };
    signals::catch();
    let deadline = Instant::now().checked_add(limit);
    let child = command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let mut guard = Guard(child);

    if let Some((mut pipe, later)) = guard.0.stdin.take().zip(later) {
        // Beside us, since nobody needs to read it; a failure means just that, or that nobody sends it.
        thread::spawn(move || later.recv().is_ok_and(|text| pipe.write_all(text.as_bytes()).is_ok()));
    }
    // Bounded, so that a reader of ours that is slow slows the process down instead of filling memory.
    let (sender, lines) = sync_channel(QUEUE);
    if let Some(out) = guard.0.stdout.take() {
        let sender = sender.clone();
        thread::spawn(move || read_lines(out, Stream::Out, &sender));
    }
    if let Some(err) = guard.0.stderr.take() {
        thread::spawn(move || read_lines(err, Stream::Err, &sender));
    }

    let mut seen = 0_usize;
    let mut ended: Option<(End, Instant)> = None;
    let mut ticked = Instant::now();
    loop {
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            if on_event(Event::Tick).is_break() && ended.is_none() {
                guard.0.kill().context("cannot end a process that nobody watches")?;
                return Ok(End::Stopped);
            }
        }
        if ended.is_none() {
            if let Some(status) = guard.0.try_wait().context("cannot wait for a process")? {
                let end = match status.code() {
                    Some(code) => End::Exited(code),
                    None => End::Signalled(status.signal().unwrap_or(0)),
                };
                ended = Some((end, Instant::now() + DRAIN));
            } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                guard.0.kill().context("cannot end a process that ran out of time")?;
                ended = Some((End::TimedOut(limit), Instant::now() + DRAIN));
            } else if let Some(signal) = signals::caught() {
                guard.0.kill().context("cannot end a process")?;
                ended = Some((End::Interrupted(signal), Instant::now() + DRAIN));
            } else if seen > OUTPUT_LIMIT {
                guard.0.kill().context("cannot end a process that prints without end")?;
                return Ok(End::Flooded);
            }
        }
        match lines.recv_timeout(Duration::from_millis(20)) {
            Ok((stream, line)) => {
                seen += line.len() + 1;
                if on_event(Event::Line(stream, &line)).is_break() && ended.is_none() {
                    guard.0.kill().context("cannot end a process that nobody watches")?;
                    return Ok(End::Stopped);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some((end, drained)) = ended
                    && Instant::now() >= drained
                {
                    return Ok(end);
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                if let Some((end, _)) = ended {
                    return Ok(end);
                }
                // Both streams are closed, the process lives on: do not spin while waiting for it.
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Sends `stream` on by lines, the last one also when it has no line ending.
fn read_lines(stream: impl Read, name: Stream, sender: &SyncSender<(Stream, String)>) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if sender.send((name, clean(&line))).is_err() {
                    return;
                }
            }
        }
    }
}

/// The line as text that is safe on a terminal: a guest's escape sequences must not reach it.
pub fn clean(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .trim_end_matches(['\r', '\n'])
        .chars()
        .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> (End, Vec<(Stream, String)>) {
        let mut lines = Vec::new();
        let end = run(Command::new("/bin/sh").args(["-c", script]), limit, |stream, line| {
            lines.push((stream, line.to_owned()));
        });
        (end.unwrap(), lines)
    }

    #[test]
    fn both_streams_and_the_status_arrive() {
        let (end, mut lines) = sh("echo one; echo two >&2; printf three; exit 35", Duration::from_secs(20));
        assert_eq!(end, End::Exited(35));
        lines.sort_by_key(|(stream, _)| *stream == Stream::Err);
        let lines: Vec<_> = lines.iter().map(|(s, l)| (*s, l.as_str())).collect();
        assert_eq!(lines, [(Stream::Out, "one"), (Stream::Out, "three"), (Stream::Err, "two")]);
    }

    #[test]
    fn an_answer_is_what_a_command_prints_that_ends_well() {
        let ask = |script: &str| {
            let limit = Duration::from_secs(if script.contains("sleep") { 1 } else { 20 });
            answer(Command::new("/bin/sh").args(["-c", script]), "one\ntwo\n", limit)
        };
        assert_eq!(ask("cat; echo aside >&2").unwrap(), "one\ntwo\n");
        assert_eq!(ask("echo unasked").unwrap(), "unasked\n");
        for (script, what) in [
            ("exit 3", "ended with status 3"),
            ("echo first >&2; echo 'no such thing' >&2; exit 1", "ended with status 1: no such thing"),
            ("kill -SEGV $$", "crashed by signal 11"),
            ("exec sleep 60", "hung: it was ended after 1 s"),
        ] {
            assert_eq!(ask(script).unwrap_err().to_string(), what, "{script}");
        }
        assert!(answer(&mut Command::new("/nonexistent/x"), "", Duration::from_secs(1)).is_err());
    }

    #[test]
    fn a_bound_process_does_not_outlive_the_thread_that_started_it() {
        let start = || {
            let mut command = bound(Path::new("/bin/sh"));
            command.args(["-c", "echo; exec sleep 60"]).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            // It runs, so that it has been bound by now.
            child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
            child
        };
        let mut child = thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "it must not sleep its 60 s to the end");
    }

    #[test]
    fn a_signal_is_no_exit_status() {
        assert_eq!(sh("kill -SEGV $$", Duration::from_secs(20)).0, End::Signalled(11));
    }

    #[test]
    fn a_process_that_hangs_is_ended_and_keeps_its_last_words() {
        let limit = Duration::from_millis(300);
        let start = Instant::now();
        let (end, lines) = sh("printf 'half a line'; exec sleep 60", limit);
        assert_eq!(end, End::TimedOut(limit));
        assert!(start.elapsed() < Duration::from_secs(20));
        assert_eq!(lines, [(Stream::Out, "half a line".to_owned())]);
    }

    #[test]
    fn a_process_that_prints_for_ever_is_ended() {
        assert_eq!(
            sh("exec yes 0123456789012345678901234567890123456789", Duration::from_secs(60)).0,
            End::Flooded
        );
    }

    #[test]
    fn a_watcher_that_has_seen_enough_ends_it() {
        let mut command = Command::new("/bin/sh");
        let end = watch(
            command.args(["-c", "echo one; exec sleep 60"]),
            Input::Nothing,
            Duration::from_secs(60),
            |event| match event {
                Event::Line(..) => ControlFlow::Break(()),
                Event::Tick => ControlFlow::Continue(()),
            },
        );
        assert_eq!(end.unwrap(), End::Stopped);
    }

    #[test]
    fn time_passes_for_a_watcher_of_a_silent_process() {
        let mut ticks = 0;
        let mut command = Command::new("/bin/sh");
        let end =
            watch(command.args(["-c", "exec sleep 60"]), Input::Nothing, Duration::from_secs(60), |_| {
                ticks += 1;
                if ticks == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        assert_eq!(end.unwrap(), End::Stopped);
    }

    #[test]
    fn a_line_without_end_arrives_in_pieces() {
        let (_, lines) = sh("head -c 10000 /dev/zero | tr '\\0' x", Duration::from_secs(20));
        let lengths: Vec<_> = lines.iter().map(|(_, line)| line.len()).collect();
        assert_eq!(lengths, [4096, 4096, 10000 - 2 * 4096]);
    }

    #[test]
    fn escape_sequences_are_defused() {
        assert_eq!(clean(b"\x1b[2Jhello\tworld\x07\r\n"), "\u{fffd}[2Jhello\tworld\u{fffd}");
    }
}
