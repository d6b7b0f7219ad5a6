//! What is shown while a machine runs: its console, and how far it is.
//!
//! On a terminal that is a status line; without one, a line on standard error every now and then, so that a long run is
//! seen to be alive.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use levelhead::counters::{Seen, Stage};

use super::summary::Summary;
use crate::console::{BAD, Console, WARNING, clock};
use crate::live::Live;
use crate::log::{self, Line};
use crate::process::{Event, Stream};

/// How often a run without a terminal says that it is alive.
const PROGRESS: Duration = Duration::from_secs(10);
/// Over which time a rate is taken.
const RATE: Duration = Duration::from_secs(1);

/// A run that is watched.
#[derive(Debug)]
pub struct Watch {
    /// Where lines go.
    pub console: Console,
    /// What is known so far.
    pub summary: Summary,
    live: Option<Live>,
    verb: &'static str,
    start: Instant,
    said: Instant,
    names: Vec<String>,
    rates: Vec<Rate>,
}

/// How fast a count grows.
#[derive(Clone, Copy, Debug)]
struct Rate {
    since: Instant,
    before: u64,
    per_second: Option<u64>,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { since: now, before: 0, per_second: None }
    }

    fn update(&mut self, now: Instant, count: u64) {
        let span = now.saturating_duration_since(self.since);
        if span >= RATE {
            let more = count.saturating_sub(self.before);
            self.per_second = Some((more as f64 / span.as_secs_f64()).round() as u64);
            (self.since, self.before) = (now, count);
        }
    }
}

impl Watch {
    /// Begins to watch a machine with these partitions, on behalf of `verb`.
    pub fn new(console: Console, live: Option<Live>, names: Vec<String>, verb: &'static str) -> Self {
        let now = Instant::now();
        let rates = vec![Rate::new(now); names.len()];
        let summary = Summary::new(&names);
        Self { console, summary, live, verb, start: now, said: now, names, rates }
    }

    /// Takes what there is to know. Breaks when nobody reads the console any more.
    pub fn see(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Line(Stream::Out, text) => self.line(text),
            Event::Line(Stream::Err, _) => {}
            Event::Tick => self.tick(),
        }
        if self.console.is_gone() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn line(&mut self, text: &str) {
        let line = log::read(text);
        // The tables at the end say the same.
        let spare = self.console.is_watched()
            && matches!(line, Some(Line::Ledger(_) | Line::Flight(_) | Line::Stats(_)));
        if !spare {
            match text.split(' ').next() {
                Some("ERROR") => self.console.line(self.console.paint(BAD, text)),
                Some("WARN") => self.console.line(self.console.paint(WARNING, text)),
                _ => self.console.line(text),
            }
        }
        self.summary.take(self.start.elapsed(), line);
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let seen = self.live.as_ref().and_then(Live::seen).unwrap_or_default();
        for (rate, seen) in self.rates.iter_mut().zip(&seen) {
            rate.update(now, seen.interrupts);
        }
        self.summary.look(&seen);
        if self.console.is_watched() {
            let status = self.status(&seen);
            self.console.status(&status);
        } else if now.saturating_duration_since(self.said) >= PROGRESS {
            self.said = now;
            Console::stderr().line(format_args!("{}: {}", self.verb, self.status(&seen)));
        }
    }

    /// `1m05s: left running, 12722 interrupts (1200/s); right ended, 3 interrupts`.
    fn status(&self, seen: &[Seen]) -> String {
        let elapsed = clock(self.start.elapsed());
        let reached = seen.iter().any(|seen| seen.stage != Stage::Absent);
        if !reached {
            let phase = if self.summary.heard() { "booting" } else { "starting QEMU" };
            return format!("{elapsed}: {phase}");
        }
        let partitions = self.names.iter().zip(seen).zip(&self.rates).map(|((name, seen), rate)| {
            let stage = match seen.stage {
                Stage::Absent => "not built",
                Stage::Ready => "ready",
                Stage::Running => "running",
                Stage::Ended => "ended",
            };
            let rate = rate.per_second.filter(|_| seen.stage == Stage::Running);
            let rate = rate.map(|rate| format!(" ({rate}/s)")).unwrap_or_default();
            format!("{name} {stage}, {} interrupts{rate}", seen.interrupts)
        });
        format!("{elapsed}: {}", partitions.collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::Paper;

    const LEDGER: &str = "ledger 00:04.0 (demo): no INTx";

    #[test]
    fn a_terminal_sees_how_far_each_partition_is() {
        let mut watch =
            Watch::new(Console::watched(Paper::default()), None, vec!["left".into(), "right".into()], "run");
        assert_eq!(watch.status(&[]), "0s: starting QEMU");
        assert!(watch.see(Event::Line(Stream::Out, "INFO  hello")).is_continue());
        assert_eq!(watch.status(&[]), "0s: booting");
        watch.rates[0].per_second = Some(1200);
        let seen =
            [Seen { stage: Stage::Running, interrupts: 12_722 }, Seen { stage: Stage::Ended, interrupts: 3 }];
        assert_eq!(
            watch.status(&seen),
            "0s: left running, 12722 interrupts (1200/s); right ended, 3 interrupts"
        );
    }

    #[test]
    fn a_rate_is_taken_over_a_second_and_more() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        rate.update(start + Duration::from_millis(900), 900);
        assert_eq!(rate.per_second, None);
        rate.update(start + Duration::from_millis(2000), 1000);
        assert_eq!(rate.per_second, Some(500));
        rate.update(start + Duration::from_millis(3000), 1000);
        assert_eq!(rate.per_second, Some(0));
    }

    #[test]
    fn what_the_tables_repeat_is_hidden_from_a_terminal_alone() {
        let (paper, terminal) = (Paper::default(), Paper::default());
        for (console, expected) in
            [(Console::plain(paper.clone()), 1), (Console::watched(terminal.clone()), 0)]
        {
            let mut watch = Watch::new(console, None, vec!["demo".into()], "run");
            for line in [LEDGER, "ledger that nobody understands", "[demo] guest"] {
                assert!(watch.see(Event::Line(Stream::Out, line)).is_continue());
            }
            let text = if expected == 1 { paper.text() } else { terminal.text() };
            assert_eq!(text.matches(LEDGER).count(), expected);
            assert!(text.contains("nobody understands\n") && text.contains("[demo] guest\n"), "{text}");
        }
    }

    #[test]
    fn a_run_that_nobody_reads_is_ended() {
        struct Closed;
        impl std::io::Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut watch = Watch::new(Console::plain(Closed), None, Vec::new(), "run");
        assert!(watch.see(Event::Tick).is_continue());
        assert!(watch.see(Event::Line(Stream::Out, "x")).is_break());
    }
}
