//! What people and machines see of this tool. Every verb speaks through here.
//!
//! * here: who reads (a terminal that is watched, or a file or pipe), lines, colours, the status line at the bottom;
//! * `table`: columns;
//! * `json`: reports for machines.
//!
//! With a terminal there are colours, and a status line that is redrawn below the last line and gone at the end. Without
//! one there are plain lines. The cursor is never hidden and no mode of the terminal is changed, so there is nothing to
//! restore after a violent end.

pub mod json;
pub mod table;

use std::env;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsRawFd as _;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::{Result, bail};
use terminal_size::{Width, terminal_size_using_fd};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use table::Table;

/// Something went well.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// Something failed.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Something deserves a look.
pub const WARNING: Style = AnsiColor::Yellow.on_default();
/// Headings and names.
pub const STRONG: Style = Style::new().bold();
/// What is there for completeness.
pub const FAINT: Style = Style::new().dimmed();

/// How wide a terminal is taken to be that does not tell.
const COLUMNS: usize = 80;
/// To the first column, and everything from there on erased (ECMA-48, EL).
const ERASE: &str = "\r\x1b[K";

/// What `--color` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// When a terminal watches, `NO_COLOR` is unset and `TERM` is not `dumb`.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// In no case.
    Never,
}

impl FromStr for Color {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => bail!("--color {other}: it is auto, always or never"),
        }
    }
}

static COLOR: OnceLock<Color> = OnceLock::new();

/// Takes what the command line says about colours, once, before anything is printed.
pub fn choose(color: Color) {
    // A second choice has no effect; main makes one.
    let _ = COLOR.set(color);
}

/// Who reads a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reader {
    /// A person at a terminal that can erase a line.
    watches: bool,
    /// Colours are wanted.
    colors: bool,
}

impl Reader {
    /// `set` tells whether an environment variable has a value that is not empty.
    fn judge(color: Color, terminal: bool, term: Option<&str>, no_color: bool) -> Self {
        let watches = terminal && term.is_some_and(|term| term != "dumb");
        let colors = match color {
            Color::Auto => watches && !no_color,
            Color::Always => true,
            Color::Never => false,
        };
        Self { watches, colors }
    }

    fn of(stream: &impl IsTerminal) -> Self {
        let color = COLOR.get().copied().unwrap_or_default();
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self::judge(color, stream.is_terminal(), env::var("TERM").ok().as_deref(), no_color)
    }
}

/// One of the two output streams, by lines, with a status line at the bottom where somebody watches.
pub struct Console {
    out: Box<dyn Write + Send>,
    reader: Reader,
    columns: fn() -> Option<usize>,
    status: String,
    gone: bool,
}

impl Console {
    /// Standard output, which carries results.
    pub fn stdout() -> Self {
        Self::new(Box::new(io::stdout()), Reader::of(&io::stdout()), || {
            width(terminal_size_using_fd(io::stdout().as_raw_fd()))
        })
    }

    /// Standard error, which carries what this tool says about itself.
    pub fn stderr() -> Self {
        Self::new(Box::new(io::stderr()), Reader::of(&io::stderr()), || {
            width(terminal_size_using_fd(io::stderr().as_raw_fd()))
        })
    }

    /// Where lines for people go: standard output, unless that is taken by a report for machines.
    pub fn beside(json: bool) -> Self {
        if json { Self::stderr() } else { Self::stdout() }
    }

    fn new(out: Box<dyn Write + Send>, reader: Reader, columns: fn() -> Option<usize>) -> Self {
        Self { out, reader, columns, status: String::new(), gone: false }
    }

    /// A console that writes to `out`, where nobody watches.
    #[cfg(test)]
    pub fn plain(out: impl Write + Send + 'static) -> Self {
        Self::new(Box::new(out), Reader { watches: false, colors: false }, || None)
    }

    /// A console as on a terminal of 40 columns.
    #[cfg(test)]
    pub fn watched(out: impl Write + Send + 'static) -> Self {
        Self::new(Box::new(out), Reader { watches: true, colors: true }, || Some(40))
    }

    /// Whether a person watches, who wants to see things move.
    pub fn is_watched(&self) -> bool {
        self.reader.watches
    }

    /// Whether the reader has gone away, as `head` does. What was printed since is lost.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// `text` in that style, if colours are wanted.
    pub fn paint<T: fmt::Display>(&self, style: Style, text: T) -> Painted<T> {
        Painted { style: if self.reader.colors { style } else { Style::new() }, text }
    }

    /// Prints one line, above the status line.
    pub fn line(&mut self, text: impl fmt::Display) {
        let text = if self.status.is_empty() {
            format!("{text}\n")
        } else {
            format!("{ERASE}{text}\n{}", self.status)
        };
        self.write(&text);
    }

    /// Prints a table, not wider than the terminal if one watches.
    pub fn table(&mut self, table: &Table) {
        for line in table.lines(self) {
            self.line(line);
        }
    }

    /// Puts `text` into the status line, cut to the terminal's width. Without a terminal nothing happens.
    pub fn status(&mut self, text: &str) {
        if !self.reader.watches {
            return;
        }
        // A character in the last column would make some terminals wrap.
        let text = cut(text, self.columns().unwrap_or(COLUMNS).saturating_sub(1));
        if text == self.status {
            return;
        }
        self.write(&format!("{ERASE}{text}"));
        self.status = text;
    }

    /// Takes the status line away.
    pub fn clear_status(&mut self) {
        self.status("");
    }

    /// How wide the terminal is, if one watches.
    fn columns(&self) -> Option<usize> {
        self.reader.watches.then(|| (self.columns)().unwrap_or(COLUMNS))
    }

    /// Nobody reading is no reason to stop at once: whoever prints asks [`Console::is_gone`] when it matters.
    fn write(&mut self, text: &str) {
        if self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).is_err() {
            self.gone = true;
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.clear_status();
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("reader", &self.reader)
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

/// Text in a style.
#[derive(Clone, Copy, Debug)]
pub struct Painted<T> {
    style: Style,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.style.render(), self.text, self.style.render_reset())
    }
}

/// A time as people read it: `7s`, `1m05s`, `2h00m`.
pub fn clock(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// The columns `text` takes on a terminal.
pub fn display_width(text: &str) -> usize {
    text.width()
}

/// `text`, or as much of it as fits into `columns`, with two dots for what does not.
pub fn cut(text: &str, columns: usize) -> String {
    const DOTS: &str = "..";
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut left = columns.saturating_sub(DOTS.len());
    let kept = text.chars().take_while(|c| {
        let rest = left.checked_sub(c.width().unwrap_or(0));
        left = rest.unwrap_or(left);
        rest.is_some()
    });
    let mut short: String = kept.collect();
    short.extend(DOTS.chars().take(columns));
    short
}

fn width(size: Option<(Width, terminal_size::Height)>) -> Option<usize> {
    size.map(|(Width(columns), _)| usize::from(columns)).filter(|columns| *columns > 0)
}

/// Takes `--color WHEN` out of the words before the first `--`: every verb knows it.
///
/// # Errors
/// When WHEN is missing or none of the three.
pub fn color_word(words: &mut Vec<std::ffi::OsString>) -> Result<Color> {
    let ours = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let mut color = Color::Auto;
    let mut rest = Vec::new();
    let mut own = words.drain(..ours);
    while let Some(word) = own.next() {
        match word.to_str() {
            Some("--color") => {
                let when = own.next().unwrap_or_default();
                color = when.to_string_lossy().parse()?;
            }
            Some(text) if text.starts_with("--color=") => {
                color = text.trim_start_matches("--color=").parse()?;
            }
            _ => rest.push(word),
        }
    }
    drop(own);
    rest.append(words);
    *words = rest;
    Ok(color)
}

#[cfg(test)]
pub mod tests {
    use std::ffi::OsString;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Everything that was written, in one place.
    #[derive(Clone, Default)]
    pub struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn colours_are_for_a_terminal_that_takes_them() {
        let judge = |color, terminal, term, no_color| {
            let Reader { watches, colors } = Reader::judge(color, terminal, term, no_color);
            (watches, colors)
        };
        let xterm = Some("xterm");
        assert_eq!(judge(Color::Auto, true, xterm, false), (true, true));
        assert_eq!(judge(Color::Auto, true, xterm, true), (true, false));
        assert_eq!(judge(Color::Auto, true, Some("dumb"), false), (false, false));
        assert_eq!(judge(Color::Auto, true, None, false), (false, false));
        assert_eq!(judge(Color::Auto, false, xterm, false), (false, false));
        assert_eq!(judge(Color::Always, false, xterm, true), (false, true));
        assert_eq!(judge(Color::Never, true, xterm, false), (true, false));
    }

    #[test]
    fn a_plain_console_has_no_escape_and_no_status() {
        let paper = Paper::default();
        let mut console = Console::plain(paper.clone());
        console.status("busy");
        console.line(console.paint(BAD, "FAIL"));
        drop(console);
        assert_eq!(paper.text(), "FAIL\n");
    }

    #[test]
    fn lines_go_above_the_status_which_is_gone_at_the_end() {
        let paper = Paper::default();
        let mut console = Console::watched(paper.clone());
        console.line("one");
        console.status("busy");
        console.status("busy");
        console.line("two");
        drop(console);
        assert_eq!(paper.text(), format!("one\n{ERASE}busy{ERASE}two\nbusy{ERASE}"));
    }

    #[test]
    fn a_status_never_reaches_the_last_column() {
        let paper = Paper::default();
        let mut console = Console::watched(paper.clone());
        console.status(&"x".repeat(40));
        assert_eq!(paper.text(), format!("{ERASE}{}..", "x".repeat(37)));
    }

    #[test]
    fn a_reader_that_went_away_is_noticed() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut console = Console::plain(Closed);
        assert!(!console.is_gone());
        console.line("lost");
        assert!(console.is_gone());
    }

    #[test]
    fn texts_are_cut_by_the_columns_they_take() {
        assert_eq!(cut("levelhead", 9), "levelhead");
        assert_eq!(cut("levelhead", 8), "levelh..");
        assert_eq!(cut("levelhead", 1), ".");
        assert_eq!(cut("levelhead", 0), "");
        // Two columns each.
        assert_eq!(cut("線線線", 5), "線..");
        assert_eq!(display_width("線線"), 4);
    }

    #[test]
    fn times_are_short() {
        let times = [0, 59, 60, 3599, 3600, 86_399].map(|seconds| clock(Duration::from_secs(seconds)));
        assert_eq!(times, ["0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m"]);
    }

    #[test]
    fn the_colour_word_is_everybodys_but_qemus() {
        let take = |words: &[&str]| {
            let mut words: Vec<OsString> = words.iter().map(OsString::from).collect();
            color_word(&mut words).map(|color| (color, words))
        };
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(take(&["run", "demo"]).unwrap(), (Color::Auto, words(&["run", "demo"])));
        assert_eq!(
            take(&["--color", "never", "run", "demo"]).unwrap(),
            (Color::Never, words(&["run", "demo"]))
        );
        assert_eq!(
            take(&["run", "--color=always", "--", "--color"]).unwrap(),
            (Color::Always, words(&["run", "--", "--color"]))
        );
        assert!(take(&["run", "--color"]).is_err());
        assert!(take(&["run", "--color=green"]).unwrap_err().to_string().contains("auto, always or never"));
    }
}
