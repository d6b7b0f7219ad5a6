//! What can be read of a TOML file whose syntax is wrong in places.
//!
//! The parser goes on behind a mistake, but then it guesses: an array without its bracket takes the rest of the file for its
//! elements. So only the first mistake is believed. The statement that it is in is cut out, the rest is parsed again, and so
//! forth. What was cut is remembered, so that nobody misses a key that was only misspelt.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// Files with more broken statements are not read any further: they are no TOML.
const MAX_FAULTS: usize = 50;
/// What the parser says of a key that a table has already. Nothing need be cut for it: the first one counts.
const DUPLICATE: &str = "duplicate key";
/// What the parser says of a word that is no value, and where there is none.
const UNQUOTED: &str = "string values must be quoted, expected literal string";
/// What the parser says of whatever follows a value or a header in its line.
const FOLLOWED: &str = "unexpected key or value, expected newline, `#`";
/// A header in the place of one that cannot be guessed. No table is called so, and nobody reads it.
const NOBODYS_HEADER: &str = "[[\"?\"]]";

/// A file's text, without what is wrong with its syntax.
#[derive(Debug)]
pub struct Source {
    /// Lines keep their numbers, and those that were not cut their columns.
    text: String,
    /// Where each line of it begins.
    lines: Vec<usize>,
    faults: Vec<Fault>,
    cuts: Vec<Cut>,
    whole: bool,
}

/// A mistake in the syntax.
#[derive(Debug)]
pub struct Fault {
    /// Line and column, counted from 1.
    pub position: (usize, usize),
    /// The key that the statement gives a value, if it is one that does.
    pub key: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub remedy: String,
}

/// A statement that was cut out.
#[derive(Debug)]
struct Cut {
    /// Counted from 0.
    lines: Range<usize>,
    /// The keys that it may have had.
    keys: Vec<String>,
}

impl Source {
    /// Finds what is wrong with the syntax of `text`, and cuts it out.
    pub fn of(text: &str) -> Self {
        let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        let (mut faults, mut cuts) = (Vec::new(), Vec::new());
        // To the parser all the others would be wrong.
        let several: Vec<_> =
            lines.iter().filter(|line| line.starts_with("[[")).map(|line| header(line)).collect();
        for (number, line) in lines.iter_mut().enumerate() {
            let brackets = format!("[{}]", header(line));
            if line.starts_with('[') && several.contains(&brackets) {
                faults.push(Fault {
                    position: (number + 1, 1),
                    key: None,
                    what: "it is one of several tables elsewhere".to_owned(),
                    remedy: format!("write `{brackets}`"),
                });
                let end = if line.ends_with('\n') { "\n" } else { "" };
                *line = brackets + end;
                cuts.push(Cut { lines: number..number + 1, keys: Vec::new() });
            }
        }
        let whole = loop {
            let text = lines.concat();
            let (document, errors) = DeTable::parse_recoverable(&text);
            let first = errors
                .iter()
                .filter(|error| error.message() != DUPLICATE)
                .map(|error| (error.span().unwrap_or_default(), error.message()))
                .min_by_key(|(span, _)| span.start);
            let Some((span, message)) = first else { break true };
            let statement = Statement::at(&text, document.get_ref(), span.start);
            let mut fault = statement.unclosed(&text).unwrap_or_else(|| fault(&text, span, message));
            fault.key = text.lines().nth(statement.lines.start).and_then(assigned).map(str::to_owned);
            faults.push(fault);
            let changed = cut(&mut lines, &statement.lines);
            let keys = text.lines().skip(statement.lines.start).take(statement.lines.len());
            cuts.push(Cut {
                keys: keys.flat_map(keys_of).map(str::to_owned).collect(),
                lines: statement.lines,
            });
            if !changed || faults.len() == MAX_FAULTS {
                faults.extend(faults.last().map(|Fault { position, .. }| Fault {
                    position: *position,
                    key: None,
                    what: "too much is wrong to judge the rest of the file".to_owned(),
                    remedy: "correct what is said so far".to_owned(),
                }));
                break false;
            }
        };
        let text = lines.concat();
        let lines = starts(&text);
        Self { text, lines, faults, cuts, whole }
    }

    /// The text. Its syntax is right, but keys may be there twice.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What is wrong with the syntax.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Whether the text is worth reading: so much was wrong otherwise that the rest would only puzzle.
    pub fn is_readable(&self) -> bool {
        self.whole
    }

    /// The keys that are there twice, each with its place.
    pub fn duplicates(errors: &[toml::de::Error]) -> impl Iterator<Item = Range<usize>> {
        errors.iter().filter(|error| error.message() == DUPLICATE).filter_map(toml::de::Error::span)
    }

    /// The line and the column, in characters, of that byte of the text.
    pub fn position(&self, byte: usize) -> (usize, usize) {
        position(self.text.get(..byte).unwrap_or(&self.text))
    }

    /// Whether something was cut out of the line of that byte.
    pub fn is_cut(&self, byte: usize) -> bool {
        let line = self.line(byte);
        self.cuts.iter().any(|cut| cut.lines.contains(&line))
    }

    /// Where `key` may have been cut out of the table whose header is at `header`.
    pub fn lost(&self, header: usize, key: &str) -> Option<usize> {
        let own = self.line(header);
        let is_header = |line: &str| line.trim_start().starts_with('[');
        let lost = self.cuts.iter().map(|cut| (cut.lines.start, &cut.keys));
        lost.filter(|(line, keys)| *line >= own && keys.iter().any(|lost| lost == key))
            .map(|(line, _)| line)
            .find(|line| !self.text.lines().take(line + 1).skip(own + 1).any(is_header))
            .and_then(|line| self.lines.get(line).copied())
    }

    /// Whether a header begins at that byte.
    pub fn is_header(&self, byte: usize) -> bool {
        let begin = self.lines.get(self.line(byte)).copied().unwrap_or_default();
        let before = self.text.get(begin..byte).unwrap_or_default();
        before.trim_start().is_empty() && self.text.get(byte..).is_some_and(|rest| rest.starts_with('['))
    }

    /// The line of that byte, counted from 0.
    fn line(&self, byte: usize) -> usize {
        self.lines.partition_point(|start| *start <= byte).saturating_sub(1)
    }
}

/// The statement that a mistake is in.
struct Statement<'d> {
    /// Counted from 0.
    lines: Range<usize>,
    /// The innermost value that was opened on a line before and is still open where another statement begins, and the byte at
    /// which it was opened.
    open: Option<(usize, &'d DeValue<'d>)>,
}

impl<'d> Statement<'d> {
    /// The statement around that byte.
    fn at(text: &str, document: &'d DeTable<'d>, byte: usize) -> Self {
        let starts = starts(text);
        let line_of = |byte| starts.partition_point(|start| *start <= byte).saturating_sub(1);
        let faulty = line_of(byte);
        let begin = starts.get(faulty).copied().unwrap_or_default();
        let entries = entries(document);
        let is_open = |entry: &&Entry<'_>| entry.value.start < begin && begin <= entry.value.end;
        let outer = entries.iter().filter(is_open).map(|entry| entry.key).min();
        let inner = entries.iter().filter(is_open).max_by_key(|entry| entry.value.start);
        let first = outer.map_or(faulty, line_of);
        // A value ends where its bracket is closed, or where the next statement begins, whose line no value could have.
        let own = entries.iter().filter(|entry| line_of(entry.key) == first);
        let last =
            own.map(|entry| line_of(entry.value.end.saturating_sub(1))).max().unwrap_or(first).max(faulty);
        let mut inside = text.lines().enumerate().take(last + 1).skip(first + 1);
        let next = inside.find(|(_, line)| begins_statement(line)).map(|(number, _)| number);
        Self {
            lines: first..next.unwrap_or(last + 1),
            open: next.and(inner).map(|entry| (entry.value.start, entry.what)),
        }
    }

    /// What is wrong, if it is that a bracket or a quote is missing.
    fn unclosed(&self, text: &str) -> Option<Fault> {
        let (start, value) = self.open?;
        let (what, bracket) = match value {
            DeValue::Array(_) => ("array", "]"),
            DeValue::Table(_) => ("inline table", "}"),
            _ => ("string", text.get(start..start + 3)?),
        };
        Some(Fault {
            position: position(text.get(..start)?),
            key: None,
            what: format!("the {what} that begins here is not closed"),
            remedy: format!("close it with `{bracket}`"),
        })
    }
}

/// A key and its value.
struct Entry<'d> {
    /// Where the key begins.
    key: usize,
    /// The bytes of the value.
    value: Range<usize>,
    what: &'d DeValue<'d>,
}

/// All keys and elements of arrays, however deep.
fn entries<'d>(table: &'d DeTable<'d>) -> Vec<Entry<'d>> {
    let mut found = Vec::new();
    let mut todo: Vec<_> = table.iter().map(|(key, value)| (key.span().start, value)).collect();
    while let Some((key, value)) = todo.pop() {
        let what = value.get_ref();
        found.push(Entry { key, value: value.span(), what });
        match what {
            DeValue::Table(table) => todo.extend(table.iter().map(|(key, value)| (key.span().start, value))),
            DeValue::Array(array) => todo.extend(array.iter().map(|value| (value.span().start, value))),
            _ => {}
        }
    }
    found
}

/// Takes the statement out of the lines. A header stays one, so that what follows it is not taken for another table's.
/// Whether anything was changed.
fn cut(lines: &mut [String], statement: &Range<usize>) -> bool {
    let mut changed = false;
    for line in lines.get_mut(statement.clone()).unwrap_or_default() {
        let end = if line.ends_with('\n') { "\n" } else { "" };
        let mut instead = end.to_owned();
        if line.trim_start().starts_with('[') {
            instead = header(line) + end;
            if instead == *line {
                instead = NOBODYS_HEADER.to_owned() + end;
            }
        }
        changed |= instead != *line;
        *line = instead;
    }
    changed
}

/// The header that `line` was probably meant to be.
fn header(line: &str) -> String {
    let trimmed = line.trim();
    let inner = trimmed.trim_start_matches('[').split([']', '#']).next().unwrap_or_default();
    let words: Vec<_> = inner.split(|c: char| !is_bare(c)).filter(|word| !word.is_empty()).collect();
    match (words.is_empty(), trimmed.starts_with("[[") || trimmed.contains("]]")) {
        (true, _) => NOBODYS_HEADER.to_owned(),
        (false, true) => format!("[[{}]]", words.join(".")),
        (false, false) => format!("[{}]", words.join(".")),
    }
}

/// Whether `line`, in the midst of a value, shows that it should have ended: what looks like `key = value` or a header can only be
/// an element if a comma follows.
fn begins_statement(line: &str) -> bool {
    let line = line.split('#').next().unwrap_or_default().trim();
    if line.ends_with(',') {
        return false;
    }
    let inner = line.trim_start_matches('[');
    let rest = inner.trim_start_matches(is_bare);
    let named = rest.len() < inner.len();
    match inner.len() == line.len() {
        true => named && rest.trim_start().starts_with('='),
        false => inner.starts_with(|c: char| c.is_ascii_alphabetic()) && rest.starts_with([']', '.']),
    }
}

/// The keys that a broken line may have: its first word, and whatever is followed by `=` or `:`.
fn keys_of(line: &str) -> impl Iterator<Item = &str> {
    let quoted = ['"', '\'', ' ', '\t'];
    line.split(|c: char| !is_bare(c)).filter(|word| !word.is_empty()).enumerate().filter_map(
        move |(index, word)| {
            // The word is a piece of the line.
            let end = word.as_ptr().addr() - line.as_ptr().addr() + word.len();
            let rest = line.get(end..)?.trim_start_matches(quoted);
            (index == 0 || rest.starts_with(['=', ':'])).then_some(word)
        },
    )
}

/// The key that `line` gives a value, or was meant to.
fn assigned(line: &str) -> Option<&str> {
    let key = line.trim_start();
    let rest = key.trim_start_matches(is_bare);
    let key = key.get(..key.len() - rest.len()).filter(|key| !key.is_empty());
    key.filter(|_| rest.trim_start().starts_with(['=', ':']))
}

/// Whether a key without quotes may have that in it.
fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

/// What the parser's message means.
fn fault(text: &str, span: Range<usize>, message: &str) -> Fault {
    let found = text.get(span.clone()).unwrap_or_default();
    let before = text.get(..span.start).unwrap_or(text);
    let begun = before.rfind('\n').map_or(0, |end| end + 1);
    let line = text.get(begun..).and_then(|line| line.lines().next()).unwrap_or_default();
    let (what, remedy) = match (message, found) {
        _ if line.trim_start().starts_with('[') && header(line) != NOBODYS_HEADER => {
            let what = message.split(", expected").next().unwrap_or_default();
            let what = if message == FOLLOWED { "the header ends before this" } else { what };
            (what.to_owned(), format!("write `{}`", header(line)))
        }
        (_, ":") => ("no `:` may stand here".to_owned(), "write `=` between a key and its value".to_owned()),
        ("invalid datetime" | "invalid float, expected `nan`", _) => {
            let value = line.split_once('=').map_or(found, |(_, value)| value);
            let value = value.split('#').next().unwrap_or_default().trim();
            (format!("{value:?} without quotes is no value"), format!("write {value:?}"))
        }
        (UNQUOTED, "") => ("there is no value".to_owned(), "write one behind the `=`".to_owned()),
        (UNQUOTED, "yes" | "on" | "True" | "TRUE") => {
            (format!("{found} is no value"), "write true".to_owned())
        }
        (UNQUOTED, "no" | "off" | "False" | "FALSE") => {
            (format!("{found} is no value"), "write false".to_owned())
        }
        (UNQUOTED, _) => {
            let remedy = match found.starts_with(|c: char| c.is_ascii_digit()) {
                true if found.contains(' ') => {
                    "write one number, and each key on a line of its own".to_owned()
                }
                true => "write a number, or text in quotes".to_owned(),
                false => format!("write {found:?}"),
            };
            (format!("{found:?} without quotes is no value"), remedy)
        }
        ("key with no value, expected `=`", _) => (
            "neither a key with a value, nor a table, nor a comment".to_owned(),
            "write `key = value`, or begin a comment with #".to_owned(),
        ),
        (FOLLOWED, _) => (
            "the value ends before this".to_owned(),
            "give each key a line of its own, and write a quote within quotes as `\\\"`".to_owned(),
        ),
        _ => match message.split_once(", expected ") {
            Some((what, "nothing")) => (what.to_owned(), "leave it out".to_owned()),
            Some((what, expected)) => {
                (what.to_owned(), format!("write {} here", expected.replace(", ", " or ")))
            }
            None => (message.to_owned(), "correct the TOML syntax".to_owned()),
        },
    };
    Fault { position: position(before), key: None, what, remedy }
}

/// Where each line begins.
fn starts(text: &str) -> Vec<usize> {
    let begin = |next: &mut usize, line: &str| Some(std::mem::replace(next, *next + line.len()));
    text.split_inclusive('\n').scan(0, begin).collect()
}

/// The line and the column, in characters, at which `before` ends.
pub fn position(before: &str) -> (usize, usize) {
    let line = before.matches('\n').count() + 1;
    (line, before.chars().rev().take_while(|&c| c != '\n').count() + 1)
}
