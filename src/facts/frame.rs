//! A text on a serial console that its reader can trust: between two markers, each line with a checksum of everything up to its
//! end, so that the first line that was lost, doubled or garbled is found, and named.
//!
//! ```text
//! facts: begin revision 1
//! facts: 92cd revision = 1
//! facts: 2a65 hypervisor = "0.1.0"
//! facts: end 2 lines, checksum c5f12a65
//! ```
//!
//! The four digits are the low half of the running CRC-32 of all lines so far, each with a line feed. What stands in front of
//! `facts: ` in a log, a time for example, is ignored, and so are lines without it.

use alloc::string::String;
use core::fmt;

use crc32fast::Hasher;

/// What every line of a report begins with.
pub const PREFIX: &str = "facts: ";
/// The revision of the report and of the file that is made from it.
pub const REVISION: u32 = 1;
/// The longest line, in bytes.
pub const MAX_LINE: usize = 512;

/// How far a report has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    crc: u32,
    lines: u32,
}

impl Progress {
    /// Takes one more line in.
    fn take(&mut self, line: &[u8]) {
        let mut hasher = Hasher::new_with_initial(self.crc);
        hasher.update(line);
        hasher.update(b"\n");
        self.crc = hasher.finalize();
        self.lines = self.lines.saturating_add(1);
    }

    const fn mark(self) -> u16 {
        self.crc as u16
    }
}

/// Puts lines into their frame.
#[derive(Debug)]
pub struct Framed<W> {
    out: W,
    progress: Progress,
    line: [u8; MAX_LINE],
    length: usize,
}

impl<W: fmt::Write> Framed<W> {
    /// Begins a report.
    ///
    /// # Errors
    /// When `out` fails, here and in the others.
    pub fn begin(mut out: W) -> Result<Self, fmt::Error> {
        writeln!(out, "{PREFIX}begin revision {REVISION}")?;
        Ok(Self::resume(out, Progress::default()))
    }

    /// Goes on with a report whose last line was complete.
    pub const fn resume(out: W, progress: Progress) -> Self {
        Self { out, progress, line: [0; MAX_LINE], length: 0 }
    }

    /// How far it has come.
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// Ends the report.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn end(mut self) -> fmt::Result {
        let Progress { crc, lines } = self.progress;
        writeln!(self.out, "{PREFIX}end {lines} lines, checksum {crc:08x}")
    }
}

impl<W: fmt::Write> fmt::Write for Framed<W> {
    /// Whole lines go on; a line longer than [`MAX_LINE`] is an error.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte != b'\n' {
                *self.line.get_mut(self.length).ok_or(fmt::Error)? = byte;
                self.length += 1;
                continue;
            }
            let line = self.line.get(..self.length).unwrap_or_default();
            self.progress.take(line);
            let text = core::str::from_utf8(line).map_err(|_| fmt::Error)?;
            writeln!(self.out, "{PREFIX}{:04x} {text}", self.progress.mark())?;
            self.length = 0;
        }
        Ok(())
    }
}

/// Why a log holds no report that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Nothing in it begins a report.
    NoReport,
    /// It begins a report of another revision.
    Revision,
    /// A line is not what was sent, or one before it is missing.
    Line,
    /// The report has no end.
    NoEnd,
    /// The end does not agree with what stands before it.
    End,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReport => write!(f, "no line says `{PREFIX}begin`"),
            Self::Revision => write!(f, "the report is not of revision {REVISION}"),
            Self::Line => f.write_str("this line is not as it was sent, or lines before it are missing"),
            Self::NoEnd => f.write_str("the report was cut off: it has no end"),
            Self::End => f.write_str("lines before the end are missing, or the end is not as it was sent"),
        }
    }
}

/// Takes the last report out of a log.
///
/// # Errors
/// What is wrong with it, and the number of the log's line, counted from 1, where that shows.
pub fn extract(log: &str) -> Result<String, (usize, Damage)> {
    let framed = log.lines().enumerate().filter_map(|(index, line)| {
        let (_, rest) = line.split_once(PREFIX)?;
        Some((index + 1, rest.trim_end_matches('\r')))
    });
    let mut found = Err((log.lines().count(), Damage::NoReport));
    let mut open: Option<(Progress, String)> = None;
    for (number, rest) in framed {
        if let Some(revision) = rest.strip_prefix("begin revision ") {
            let right = revision.trim_end().parse() == Ok(REVISION);
            open = right.then(|| (Progress::default(), String::new()));
            found = Err((number, if right { Damage::NoEnd } else { Damage::Revision }));
            continue;
        }
        let Some((mut progress, mut text)) = open.take() else { continue };
        if let Some(end) = rest.strip_prefix("end ") {
            let right = alloc::format!("{} lines, checksum {:08x}", progress.lines, progress.crc);
            found = if end.trim_end() == right { Ok(text) } else { Err((number, Damage::End)) };
            continue;
        }
        // Some tools take blanks off the ends of lines.
        let line =
            if rest.len() == 4 { Some("") } else { rest.get(4..).and_then(|rest| rest.strip_prefix(' ')) };
        progress.take(line.unwrap_or_default().as_bytes());
        let mark = alloc::format!("{:04x}", progress.mark());
        let Some(line) = line.filter(|_| rest.starts_with(&mark)) else {
            found = Err((number, Damage::Line));
            continue;
        };
        text.push_str(line);
        text.push('\n');
        found = Err((number, Damage::NoEnd));
        open = Some((progress, text));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write as _;
    use std::string::ToString;
    use std::vec::Vec;

    const TEXT: &str = "revision = 1\n\n[routing]\nknown = false\n";

    fn report() -> String {
        let mut out = String::new();
        let mut framed = Framed::begin(&mut out).unwrap();
        framed.write_str("revision = 1\n\n[routing]\n").unwrap();
        let progress = framed.progress();
        let mut framed = Framed::resume(&mut out, progress);
        framed.write_str("known = false\n").unwrap();
        framed.end().unwrap();
        out
    }

    #[test]
    fn the_form_is_the_one_that_is_documented() {
        let mut out = String::new();
        let mut framed = Framed::begin(&mut out).unwrap();
        framed.write_str("revision = 1\nhypervisor = \"0.1.0\"\n").unwrap();
        framed.end().unwrap();
        assert!(include_str!("../../docs/facts.md").contains(&out), "{out}");
    }

    #[test]
    fn a_report_comes_out_as_it_went_in() {
        assert_eq!(extract(&report()).as_deref(), Ok(TEXT));
    }

    #[test]
    fn times_carriage_returns_and_other_lines_do_no_harm() {
        let noisy: String =
            report().lines().map(|line| std::format!("INFO x\r\n[12:00:01.5] {line}\r\n")).collect();
        assert_eq!(extract(&noisy).as_deref(), Ok(TEXT));
        let trimmed: String = report().lines().map(|line| std::format!("{}\n", line.trim_end())).collect();
        assert!(trimmed != report() && extract(&trimmed).as_deref() == Ok(TEXT));
        let twice = std::format!("facts: begin revision 1\nfacts: 0000 garbage\n{}", report());
        assert_eq!(extract(&twice).as_deref(), Ok(TEXT), "the last report counts");
    }

    #[test]
    fn every_truncation_is_refused() {
        let report = report();
        for length in 0..report.trim_end().len() {
            assert!(extract(&report[..length]).is_err(), "{length}");
        }
        let lines = report.lines().count();
        for cut in 1..lines - 1 {
            let short: Vec<_> = report.lines().take(cut).collect();
            assert_eq!(extract(&short.join("\n")), Err((cut, Damage::NoEnd)));
        }
    }

    #[test]
    fn every_lost_or_doubled_line_is_named() {
        let report = report();
        let lines: Vec<_> = report.lines().collect();
        for index in 1..lines.len() - 1 {
            let mut lost = lines.clone();
            lost.remove(index);
            let damage = if index == lines.len() - 2 { Damage::End } else { Damage::Line };
            assert_eq!(extract(&lost.join("\n")), Err((index + 1, damage)), "line {index} is missing");
            let mut doubled = lines.clone();
            doubled.insert(index, lines[index]);
            assert_eq!(extract(&doubled.join("\n")), Err((index + 2, Damage::Line)));
        }
    }

    #[test]
    fn every_flipped_bit_is_refused_in_its_line() {
        let report = report();
        for index in 0..report.len() {
            for bit in 0..7 {
                let mut bytes = report.clone().into_bytes();
                bytes[index] ^= 1 << bit;
                let line = report[..index].matches('\n').count() + 1;
                match extract(&String::from_utf8(bytes).unwrap()) {
                    // A flipped line feed joins two lines or splits one; the prefix may be what was hit.
                    Err((at, _)) => {
                        assert!(at >= line.min(2) || line == 1, "byte {index}, bit {bit}: line {at}")
                    }
                    Ok(text) => {
                        assert!(text == TEXT && index + 1 >= report.len() - 1, "byte {index}, bit {bit}")
                    }
                }
            }
        }
    }

    #[test]
    fn other_revisions_and_empty_logs_say_so() {
        assert_eq!(extract(""), Err((0, Damage::NoReport)));
        assert_eq!(extract("a\nfacts: begin revision 2\n"), Err((2, Damage::Revision)));
        assert!(Damage::NoReport.to_string().contains("facts: begin"));
    }

    #[test]
    fn a_line_too_long_is_an_error_and_not_a_lie() {
        let mut out = String::new();
        let mut framed = Framed::begin(&mut out).unwrap();
        let long: String = core::iter::repeat_n('x', MAX_LINE + 1).collect();
        assert!(framed.write_str(&long).is_err());
    }
}
