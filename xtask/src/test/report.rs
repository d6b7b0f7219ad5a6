//! The report of tests and gates while they run: a line for each that has ended, a status line where a terminal watches,
//! and the sum. For machines the same as JSON, one object per line.

use std::collections::VecDeque;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Verdict;
use crate::console::{BAD, Console, FAINT, GOOD, STRONG, WARNING, clock, json};

/// How often the status line is looked at.
const TICK: Duration = Duration::from_millis(200);
/// How many of the slowest tests are named at the end, where a terminal watches.
const SLOWEST: usize = 5;
/// A test that takes less is not slow.
const SLOW: Duration = Duration::from_secs(1);

/// The running count and what it has come to. Shared by whoever runs tests.
pub struct Report {
    state: Mutex<State>,
}

struct State {
    console: Console,
    json: bool,
    start: Instant,
    planned: usize,
    passed: usize,
    /// How many of those that passed did so in an earlier run.
    unchanged: usize,
    skipped: usize,
    failed: Vec<String>,
    running: VecDeque<(String, Instant)>,
    slowest: Vec<(Duration, String)>,
}

/// A test that has ended, for machines.
#[derive(Debug, Serialize)]
pub(super) struct Ended<'a> {
    name: &'a str,
    verdict: &'static str,
    /// Whether it passed in an earlier run and was not run now.
    unchanged: bool,
    /// Not there where nobody measured it.
    seconds: Option<f64>,
    /// Why it was skipped, or what went wrong.
    details: &'a [String],
}

/// The sum, for machines.
#[derive(Debug, Serialize)]
pub(super) struct Sum<'a> {
    passed: usize,
    unchanged: usize,
    failed: usize,
    skipped: usize,
    failures: &'a [String],
    elapsed_s: f64,
}

impl Report {
    /// A report on that many tests. With `json` the objects go to standard output, so `console` should be elsewhere.
    pub fn new(planned: usize, console: Console, json: bool) -> Self {
        let state = State {
            console,
            json,
            start: Instant::now(),
            planned,
            passed: 0,
            unchanged: 0,
            skipped: 0,
            failed: Vec::new(),
            running: VecDeque::new(),
            slowest: Vec::new(),
        };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked has left nothing half done that matters: the panic itself is reported.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` with the status line alive, if a terminal watches.
    pub fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        if !self.state().console.is_watched() {
            return work();
        }
        let (stop, stopped) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    self.state().show_status();
                }
            });
            let result = work();
            drop(stop);
            result
        })
    }

    /// Says that a test, or a program of several, is under way.
    pub fn begin(&self, name: &str) {
        self.state().running.push_back((name.to_owned(), Instant::now()));
    }

    /// Says that a program of several tests has ended.
    pub fn finish(&self, name: &str) {
        self.state().running.retain(|(running, _)| running != name);
    }

    /// Prints the line of a test that has ended. `took` is left out where nobody measured it.
    pub fn record(&self, name: &str, verdict: Verdict, took: Option<Duration>) {
        self.finish(name);
        let mut state = self.state();
        let (line, details) = state.enter(name, verdict, took);
        state.console.line(line);
        state.explain(&details);
    }

    /// Prints lines below the one of a test.
    pub fn explain(&self, lines: &[String]) {
        self.state().explain(lines);
    }

    /// Prints the closing lines.
    pub fn close(&self) {
        let mut state = self.state();
        state.running.clear();
        state.console.clear_status();
        if state.console.is_watched() {
            for line in state.slowest_lines() {
                state.console.line(line);
            }
        }
        for line in state.summary() {
            state.console.line(line);
        }
        if state.json {
            let State { passed, unchanged, skipped, ref failed, .. } = *state;
            let elapsed_s = state.start.elapsed().as_secs_f64();
            let sum = Sum { passed, unchanged, failed: failed.len(), skipped, failures: failed, elapsed_s };
            // Nobody reading is no reason to stop: the exit status still tells.
            let _ = json::print_line("test-summary", &sum);
        }
    }

    /// Whether a test has failed.
    pub fn has_failed(&self) -> bool {
        !self.state().failed.is_empty()
    }

    /// The closing lines: what failed, if anything, and the sum on a line of its own.
    #[cfg(test)]
    pub fn summary(&self) -> Vec<String> {
        self.state().summary()
    }
}

impl State {
    /// Counts a test and returns its line and what is to be shown below it.
    fn enter(&mut self, name: &str, verdict: Verdict, took: Option<Duration>) -> (String, Vec<String>) {
        let unchanged = verdict == Verdict::Unchanged;
        let (word, style, said, details) = match verdict {
            Verdict::Passed => {
                self.passed += 1;
                ("ok  ", GOOD, "passed", Vec::new())
            }
            Verdict::Unchanged => {
                self.passed += 1;
                self.unchanged += 1;
                ("ok  ", GOOD, "passed", Vec::new())
            }
            Verdict::Skipped(reason) => {
                self.skipped += 1;
                ("skip", WARNING, "skipped", vec![reason])
            }
            Verdict::Failed(details) => {
                self.failed.push(name.to_owned());
                ("FAIL", BAD, "failed", details)
            }
        };
        let skipped = said == "skipped";
        let took = took.filter(|_| !skipped && !unchanged);
        if let Some(took) = took.filter(|took| *took >= SLOW) {
            self.slowest.push((took, name.to_owned()));
        }
        if self.json {
            let seconds = took.map(|took| took.as_secs_f64());
            let _ = json::print_line(
                "test",
                &Ended { name, verdict: said, unchanged, seconds, details: &details },
            );
        }
        let width = self.planned.to_string().len();
        let note = match took {
            Some(took) => {
                format!("  {}", self.console.paint(FAINT, format_args!("{:.1}s", took.as_secs_f32())))
            }
            None if unchanged => format!("  {}", self.console.paint(FAINT, "(unchanged)")),
            None if skipped => format!("  ({})", details.join("; ")),
            None => String::new(),
        };
        let word = self.console.paint(style, word);
        let line = format!("[{:width$}/{}] {word} {name}{note}", self.done(), self.planned);
        (line, if skipped { Vec::new() } else { details })
    }

    fn done(&self) -> usize {
        self.passed + self.skipped + self.failed.len()
    }

    fn explain(&mut self, lines: &[String]) {
        for line in lines {
            self.console.line(format_args!("        {line}"));
        }
    }

    fn show_status(&mut self) {
        let line = self.status();
        self.console.status(&line);
    }

    /// What is under way, the longest first.
    fn status(&self) -> String {
        let mut line = format!("[{}/{}] {}", self.done(), self.planned, clock(self.start.elapsed()));
        for (count, what) in [(self.failed.len(), "failed"), (self.skipped, "skipped")] {
            if count > 0 {
                line.push_str(&format!(", {count} {what}"));
            }
        }
        let running = self.running.iter().map(|(name, since)| format!("{name} {}", clock(since.elapsed())));
        let running: Vec<String> = running.collect();
        if !running.is_empty() {
            line.push_str(&format!(": {}", running.join(", ")));
        }
        line
    }

    fn slowest_lines(&mut self) -> Vec<String> {
        self.slowest.sort_by(|a, b| b.cmp(a));
        let named = self.slowest.iter().take(SLOWEST);
        let lines = named.map(|(took, name)| format!("  {:>7.1}s  {name}", took.as_secs_f32()));
        let mut lines: Vec<String> = lines.collect();
        if !lines.is_empty() {
            lines.insert(0, self.console.paint(STRONG, "slowest:").to_string());
        }
        lines
    }

    fn summary(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.failed.iter().map(|name| format!("failed: {name}")).collect();
        if self.unchanged > 0 {
            lines.push(format!(
                "unchanged since they passed, and not run: {}; --again runs them too",
                self.unchanged
            ));
        }
        lines.push(format!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::Paper;

    #[test]
    fn the_sum_is_alone_on_the_last_line() {
        let paper = Paper::default();
        let report = Report::new(12, Console::plain(paper.clone()), false);
        report.record("host/clippy", Verdict::Passed, Some(Duration::from_millis(12_340)));
        report.record("qemu/demo", Verdict::Skipped("QEMU is missing".into()), None);
        report.record("qemu/echo", Verdict::Failed(vec!["why".into()]), None);
        report.close();
        let text = paper.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "[ 1/12] ok   host/clippy  12.3s",
                "[ 2/12] skip qemu/demo  (QEMU is missing)",
                "[ 3/12] FAIL qemu/echo",
                "        why",
                "failed: qemu/echo",
                "1 passed, 1 failed, 1 skipped",
            ]
        );
        assert!(report.has_failed());
    }

    #[test]
    fn what_passed_before_counts_as_passed_and_is_said_to_be_unchanged() {
        let paper = Paper::default();
        let report = Report::new(2, Console::plain(paper.clone()), false);
        report.record("qemu/demo", Verdict::Unchanged, Some(Duration::from_secs(2)));
        report.record("qemu/echo", Verdict::Passed, None);
        report.close();
        let text = paper.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "[1/2] ok   qemu/demo  (unchanged)",
                "[2/2] ok   qemu/echo",
                "unchanged since they passed, and not run: 1; --again runs them too",
                "2 passed, 0 failed, 0 skipped",
            ]
        );
    }

    #[test]
    fn a_watched_report_tells_what_runs_and_what_was_slow() {
        let paper = Paper::default();
        let report = Report::new(3, Console::watched(paper.clone()), false);
        report.begin("qemu/a");
        report.begin("qemu/b");
        report.record("qemu/a", Verdict::Passed, Some(Duration::from_secs(2)));
        report.record("host/c", Verdict::Passed, Some(Duration::from_secs(3)));
        assert_eq!(report.state().status(), "[2/3] 0s: qemu/b 0s");
        report.state().show_status();
        report.close();
        let text = paper.text();
        assert!(text.contains("qemu/b 0s"), "{text}");
        let slow = text.find("3.0s  host/c").zip(text.find("2.0s  qemu/a"));
        assert!(slow.is_some_and(|(first, second)| first < second), "{text}");
        assert!(text.ends_with("\n2 passed, 0 failed, 0 skipped\n"), "{text}");
    }

    #[test]
    fn the_json_is_as_documented() {
        let ended = Ended {
            name: "qemu/demo",
            verdict: "failed",
            unchanged: false,
            seconds: Some(2.5),
            details: &["it hung".to_owned()],
        };
        assert_eq!(json::tests::printed("test", &ended), json::tests::example("test"));
        let failures = &["qemu/demo".to_owned()];
        let sum = Sum { passed: 411, unchanged: 7, failed: 1, skipped: 0, failures, elapsed_s: 95.5 };
        assert_eq!(json::tests::printed("test-summary", &sum), json::tests::example("test-summary"));
        let list = super::super::List { tests: vec!["host/fmt".to_owned(), "qemu/demo".to_owned()] };
        assert_eq!(json::tests::printed("test-list", &list), json::tests::example("test-list"));
    }

    #[test]
    fn the_status_lives_while_work_is_done() {
        let paper = Paper::default();
        let report = Report::new(1, Console::watched(paper.clone()), false);
        let done = report.during(|| {
            report.begin("host/long");
            while !paper.text().contains("host/long") {
                thread::yield_now();
            }
            7
        });
        assert_eq!(done, 7);
    }
}
