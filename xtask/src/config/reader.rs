//! Reads a TOML document key by key and collects everything that is wrong with it.
//!
//! The usual way, `serde`, stops at the first mistake of a file. An integrator wants all of them, each with its
//! line and column, the key, what is wrong and what would be right.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use levelhead::config::KeyPath;
use levelhead::message::{Message, Refusal};
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::keys::Key;
use super::syntax::{Fault, Source, position};

/// What is wrong with a value, and what would be right.
#[derive(Debug)]
pub struct Mistake {
    message: Message,
    what: String,
    remedy: String,
}

/// A value, or what is wrong with it.
pub type Read<T> = Result<T, Mistake>;

/// How a key is written.
#[derive(Clone, Copy, Debug)]
pub struct Spelling {
    name: &'static str,
    /// A line that would be right.
    example: &'static str,
}

impl From<&'static Key> for Spelling {
    fn from(key: &'static Key) -> Self {
        Self { name: key.name, example: key.example }
    }
}

impl From<&'static str> for Spelling {
    /// From the example, which begins with the name: `apic = 0`, `[memory]`, `[[cpu]]`.
    fn from(example: &'static str) -> Self {
        let name = example.trim_start_matches('[');
        Self { name: name.split([' ', ']']).next().unwrap_or(name), example }
    }
}

/// A mistake and its place.
#[derive(Debug)]
struct Problem {
    /// Line and column; the file's start for what is missing altogether.
    position: (usize, usize),
    /// The key.
    path: String,
    /// Whether nothing more is to be said of what is below the key.
    covers: bool,
    mistake: Mistake,
}

/// A record, and what it speaks of.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The file, as messages call it.
    pub file: String,
    /// Line and column, counted from 1; `None` for the file as a whole.
    pub position: Option<(usize, usize)>,
    /// What is wrong. Its place is the key.
    pub refusal: Refusal,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, position, refusal } = self;
        match position {
            Some((line, column)) => write!(f, "{file}:{line}:{column}: {refusal}"),
            None => write!(f, "{file}: {refusal}"),
        }
    }
}

/// All that is wrong with a file, at least one thing: its `Display` is one line for each, in the order of the file.
#[derive(Debug)]
pub struct Problems(Vec<Finding>);

impl Problems {
    /// One thing wrong with `file` as a whole.
    pub fn of_file(file: String, message: Message, what: String, remedy: &str) -> Self {
        Self(vec![Finding {
            file,
            position: None,
            refusal: Refusal::new(message, "file", what).remedy(remedy),
        }])
    }

    /// One thing wrong with `file` at the place where `before` ends.
    pub fn at_end_of(file: String, before: &str, refusal: Refusal) -> Self {
        Self(vec![Finding { file, position: Some(position(before)), refusal }])
    }

    /// Each of them.
    pub fn findings(&self) -> &[Finding] {
        &self.0
    }

    /// Each of them, for whoever goes on to speak of them.
    pub fn into_findings(self) -> Vec<Finding> {
        self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, finding) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            finding.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Mistake {
    /// A mistake of that kind: what is wrong, and what would be right.
    pub fn new(message: Message, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message, what: what.into(), remedy: remedy.into() }
    }

    /// A value that the key does not take.
    pub fn value(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Message::WrongValue, what, remedy)
    }

    /// A value of the wrong type.
    pub fn type_of(value: &DeValue<'_>, remedy: impl Into<String>) -> Self {
        Self::new(
            Message::WrongType,
            format!("{} may not stand here", with_article(value.type_str())),
            remedy,
        )
    }
}

/// The problems of one file as they are found, and where its keys stand.
pub struct Reader<'t> {
    /// The file, as messages shall call it.
    file: String,
    source: &'t Source,
    /// Where a key belongs that stands where it does not, as a remedy.
    elsewhere: fn(&str) -> Option<String>,
    problems: Vec<Problem>,
    spans: BTreeMap<String, Range<usize>>,
}

impl<'t> Reader<'t> {
    /// A reader of `source`, the content of `file`. `elsewhere` tells of a key that is unknown in its table where it belongs.
    pub fn new(file: impl Into<String>, source: &'t Source, elsewhere: fn(&str) -> Option<String>) -> Self {
        Self { file: file.into(), source, elsewhere, problems: Vec::new(), spans: BTreeMap::new() }
    }

    /// Parses the text and hands its top table to `read`. What is wrong with the syntax is noted, and nothing else of the
    /// statements that it is wrong in.
    ///
    /// # Errors
    /// What is wrong with the syntax, if it is so much that the rest cannot be judged; `read` has not been called then.
    pub fn document<T>(&mut self, read: impl FnOnce(&mut Table<'_, 't>) -> T) -> Result<T, Problems> {
        let syntax = |what: &str, remedy: &str| Mistake::new(Message::TomlSyntax, what, remedy);
        let told = |fault: &Fault, path| Problem {
            position: fault.position,
            path,
            covers: true,
            mistake: syntax(&fault.what, &fault.remedy),
        };
        if !self.source.is_readable() {
            self.problems.extend(self.source.faults().iter().map(|fault| told(fault, String::new())));
            self.finish()?;
        }
        let (document, errors) = DeTable::parse_recoverable(self.source.text());
        for span in Source::duplicates(&errors) {
            let key = self.source.text().get(span.clone()).unwrap_or_default();
            let remedy = match self.source.text().get(..span.start) {
                Some(before) if before.ends_with('[') => {
                    format!("write one table, or `[[{key}]]` if there may be several")
                }
                _ => "write each key of a table once".to_owned(),
            };
            let mistake = syntax(&format!("{key} is there twice"), &remedy);
            self.problem(span, String::new(), mistake);
        }
        let span = document.span();
        let read = self.table(&KeyPath::root(), span, document.get_ref(), read);
        // Which table a broken statement is in is known when they have been read.
        for fault in self.source.faults() {
            let path = fault.key.as_ref().map(|key| within(self.table_at(fault.position), key));
            self.problems.push(told(fault, path.unwrap_or_default()));
        }
        Ok(read)
    }

    /// The path of the last table that was read and begins before `position`.
    fn table_at(&self, position: (usize, usize)) -> &str {
        let headers = self.spans.iter().filter(|(_, span)| self.source.is_header(span.start));
        let before = headers
            .map(|(path, span)| (self.source.position(span.start), path))
            .filter(|(header, _)| *header < position);
        // An array of tables begins where its first element does.
        before.max().map_or("", |(_, path)| path)
    }

    /// Notes a mistake at `path`, unless something is wrong with that key already: one mistake, one message.
    pub fn broken(&mut self, path: &KeyPath, mistake: Mistake) {
        let key = path.to_string();
        let known = |problem: &Problem| {
            let rest = key.strip_prefix(&*problem.path);
            rest.is_some_and(|rest| rest.is_empty() || problem.covers && rest.starts_with(['.', '[']))
        };
        if !self.problems.iter().any(known) {
            self.problem(self.span(path), key, mistake);
        }
    }

    /// Passes when nothing was wrong.
    ///
    /// # Errors
    /// Everything that was.
    pub fn finish(&mut self) -> Result<(), Problems> {
        if self.problems.is_empty() {
            return Ok(());
        }
        let mut problems = std::mem::take(&mut self.problems);
        problems.sort_by_key(|problem| problem.position);
        Err(Problems(problems.iter().map(|problem| self.describe(problem)).collect()))
    }

    /// Notes a mistake in those bytes. Of a line whose syntax is wrong nothing else is to be said.
    fn problem(&mut self, span: Range<usize>, path: String, mistake: Mistake) {
        if !self.source.is_cut(span.start) {
            let position = self.source.position(span.start);
            self.problems.push(Problem { position, path, covers: true, mistake });
        }
    }

    /// As [`Self::problem`] of an element of the array `path`: nothing more is to be said of the array, but of its other
    /// elements.
    fn of_element(&mut self, span: Range<usize>, path: String, mistake: Mistake) {
        let known = self.problems.len();
        self.problem(span, path, mistake);
        self.problems.iter_mut().skip(known).for_each(|problem| problem.covers = false);
    }

    /// Where the key is, or the table that lacks it.
    fn span(&self, path: &KeyPath) -> Range<usize> {
        innermost(&self.spans, path).cloned().unwrap_or_default()
    }

    /// Where everything stands that was read.
    pub fn positions(&self) -> Positions {
        let at = |span: &Range<usize>| self.source.position(span.start);
        let places = self.spans.iter().map(|(key, span)| (key.clone(), at(span))).collect();
        Positions { file: self.file.clone(), places }
    }

    fn describe(&self, Problem { position, path, mistake, .. }: &Problem) -> Finding {
        let Mistake { message, what, remedy } = mistake;
        let place = if path.is_empty() { "file" } else { path };
        let refusal = Refusal::new(*message, place, what).remedy(remedy);
        Finding { file: self.file.clone(), position: Some(*position), refusal }
    }

    fn table<T>(
        &mut self,
        path: &KeyPath,
        span: Range<usize>,
        table: &DeTable<'t>,
        read: impl FnOnce(&mut Table<'_, 't>) -> T,
    ) -> T {
        self.spans.insert(path.to_string(), span.clone());
        let mut table = Table { reader: self, path, header: span.start, table, known: Vec::new() };
        let value = read(&mut table);
        table.refuse_unknown();
        value
    }
}

/// Where the keys of a file stand, for what is found wrong with them when it has been read.
#[derive(Debug)]
pub struct Positions {
    file: String,
    places: BTreeMap<String, (usize, usize)>,
}

impl Positions {
    /// The refusal of what the key at `path` says.
    pub fn finding(&self, path: &KeyPath, refusal: Refusal) -> Finding {
        Finding { file: self.file.clone(), position: innermost(&self.places, path).copied(), refusal }
    }
}

/// The path of `key` in the table at `path`.
fn within(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// What is known of a key, or of the table that lacks it.
fn innermost<'a, T>(of: &'a BTreeMap<String, T>, path: &KeyPath) -> Option<&'a T> {
    let mut key = path.to_string();
    loop {
        if let Some(found) = of.get(&key) {
            return Some(found);
        }
        key.truncate(key.rfind(['.', '['])?);
    }
}

/// A table that is being read. What no one asked for is an error in the end.
pub struct Table<'r, 't> {
    reader: &'r mut Reader<'t>,
    path: &'r KeyPath,
    /// The byte at which its header begins.
    header: usize,
    table: &'r DeTable<'t>,
    known: Vec<&'static str>,
}

impl<'r, 't> Table<'r, 't> {
    /// The value of `key`, if it is there and nothing is wrong with it.
    pub fn optional<T>(
        &mut self,
        key: impl Into<Spelling>,
        read: impl FnOnce(&DeValue<'t>) -> Read<T>,
    ) -> Option<T> {
        let Spelling { name, .. } = key.into();
        let value = self.find(name)?;
        let path = self.path.key(name);
        read(value.get_ref()).map_err(|mistake| self.reader.broken(&path, mistake)).ok()
    }

    /// As [`Self::optional`], but the key must be there.
    pub fn required<T>(
        &mut self,
        key: impl Into<Spelling>,
        read: impl FnOnce(&DeValue<'t>) -> Read<T>,
    ) -> Option<T> {
        let key = key.into();
        self.demand(key);
        self.optional(key, read)
    }

    /// As [`Self::optional`] for a key that says more about `other`, which must be there then.
    pub fn companion<T>(
        &mut self,
        key: impl Into<Spelling>,
        other: impl Into<Spelling>,
        read: impl FnOnce(&DeValue<'t>) -> Read<T>,
    ) -> Option<T> {
        let (key, other) = (key.into(), other.into());
        let value = self.optional(key, read);
        if self.names(key) && !self.names(other) {
            let what = format!("without `{}` it means nothing", other.name);
            let remedy = format!("add `{}`, or remove this key", other.example);
            self.broken(key, Mistake::new(Message::CompanionMissing, what, remedy));
        }
        value
    }

    /// The table `key`, if it is there, read by `read`.
    pub fn table<T>(
        &mut self,
        key: impl Into<Spelling>,
        read: impl FnOnce(&mut Table<'_, 't>) -> T,
    ) -> Option<T> {
        let Spelling { name, example } = key.into();
        let value = self.find(name)?;
        let path = self.path.key(name);
        match value.get_ref() {
            DeValue::Table(table) => Some(self.reader.table(&path, value.span(), table, read)),
            other => {
                let mistake = Mistake::type_of(other, format!("write a table, as in `{example}`"));
                self.reader.broken(&path, mistake);
                None
            }
        }
    }

    /// Whether `key` is there, though its value may be wrong, or was, before a line with wrong syntax was cut out.
    pub fn names(&mut self, key: impl Into<Spelling>) -> bool {
        let Spelling { name, .. } = key.into();
        self.find(name).is_some() || self.reader.source.lost(self.header, name).is_some()
    }

    /// Notes that `key` is missing, if it is.
    pub fn demand(&mut self, key: impl Into<Spelling>) {
        let key = key.into();
        if !self.names(key) {
            let remedy = format!("add it, as in `{}`", key.example);
            self.broken(key, Mistake::new(Message::MissingKey, "missing", remedy));
        }
    }

    /// Notes a mistake at `key`.
    pub fn broken(&mut self, key: impl Into<Spelling>, mistake: Mistake) {
        self.reader.broken(&self.path.key(key.into().name), mistake);
    }

    /// The elements of the array `key` before the first that something is wrong with, so that their indices are
    /// those of the file; none if it is not there.
    pub fn list<T>(
        &mut self,
        key: impl Into<Spelling>,
        mut read: impl FnMut(&DeValue<'t>) -> Read<T>,
    ) -> Vec<T> {
        let key = key.into();
        let mut values = Vec::new();
        for (path, value) in self.elements(key) {
            self.reader.spans.insert(path.to_string(), value.span());
            values.push(match read(value.get_ref()) {
                Ok(value) => Some(value),
                Err(mistake) => {
                    self.reader.of_element(value.span(), self.path.key(key.name).to_string(), mistake);
                    None
                }
            });
        }
        values.into_iter().map_while(std::convert::identity).collect()
    }

    /// As [`Self::list`] for an array of tables, each read by `read`.
    pub fn tables<T>(
        &mut self,
        key: impl Into<Spelling>,
        mut read: impl FnMut(&mut Table<'_, 't>) -> T,
    ) -> Vec<T> {
        let key = key.into();
        let mut values = Vec::new();
        for (path, value) in self.elements(key) {
            values.push(match value.get_ref() {
                DeValue::Table(table) => Some(self.reader.table(&path, value.span(), table, &mut read)),
                other => {
                    let mistake = Mistake::type_of(other, format!("write tables, as in `{}`", key.example));
                    self.reader.of_element(value.span(), self.path.key(key.name).to_string(), mistake);
                    None
                }
            });
        }
        values.into_iter().map_while(std::convert::identity).collect()
    }

    fn elements(&mut self, key: Spelling) -> Vec<(KeyPath, &'r Spanned<DeValue<'t>>)> {
        let Some(value) = self.find(key.name) else { return Vec::new() };
        let path = self.path.key(key.name);
        match value.get_ref() {
            DeValue::Array(array) => {
                array.iter().enumerate().map(|(index, value)| (path.index(index), value)).collect()
            }
            DeValue::Table(_) if key.example.starts_with("[[") => {
                let remedy = format!("write `{}` with two brackets: there may be several", key.example);
                let mistake = Mistake::type_of(value.get_ref(), remedy);
                let position = self.reader.source.position(value.span().start);
                // It can be read all the same, as the only one.
                self.reader.problems.push(Problem {
                    position,
                    path: path.to_string(),
                    covers: false,
                    mistake,
                });
                vec![(path.index(0), value)]
            }
            other => {
                let mistake = Mistake::type_of(other, format!("write an array, as in `{}`", key.example));
                self.reader.broken(&path, mistake);
                Vec::new()
            }
        }
    }

    /// Finds the value of `key` and notes that someone asked.
    fn find(&mut self, key: &'static str) -> Option<&'r Spanned<DeValue<'t>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let value = self.table.get(key);
        let span = match value {
            Some(value) => Some(value.span()),
            // What is found wrong with it later is no news in that line.
            None => self.reader.source.lost(self.header, key).map(|line| line..line),
        };
        if let Some(span) = span {
            self.reader.spans.insert(self.path.key(key).to_string(), span);
        }
        value
    }

    fn refuse_unknown(&mut self) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let remedy = match nearest(name, self.known.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => (self.reader.elsewhere)(name)
                    .unwrap_or_else(|| format!("the keys here are {}", self.known.join(", "))),
            };
            let path = within(&self.path.to_string(), name);
            self.reader.problem(key.span(), path, Mistake::new(Message::UnknownKey, "unknown key", remedy));
        }
    }
}

/// A string.
pub fn text(value: &DeValue<'_>) -> Read<String> {
    value.as_str().map(str::to_owned).ok_or_else(|| Mistake::type_of(value, "write a string in quotes"))
}

/// A truth value.
pub fn flag(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| Mistake::type_of(value, "write true or false"))
}

/// An integer from 0 to the largest `T`, which `most` names.
pub fn number<T: TryFrom<u64>>(value: &DeValue<'_>, most: impl fmt::Display) -> Read<T> {
    number_between(value, 0, most)
}

/// As [`number`], but the key takes none below `least`, which the rules say of one that is.
pub fn number_between<T: TryFrom<u64>>(
    value: &DeValue<'_>,
    least: impl fmt::Display,
    most: impl fmt::Display,
) -> Read<T> {
    let remedy = format!("write a number from {least} to {most}");
    let Some(integer) = value.as_integer() else { return Err(Mistake::type_of(value, remedy)) };
    let number = unsigned(integer).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| Mistake::value(format!("{integer} is out of range"), remedy))
}

/// One of `choices`, by its word. `noun` completes "is no ...".
pub fn choice<T: Copy + fmt::Display>(value: &DeValue<'_>, choices: &[T], noun: &str) -> Read<T> {
    let names: Vec<String> = choices.iter().map(T::to_string).collect();
    let named: Vec<(&str, T)> = names.iter().map(String::as_str).zip(choices.iter().copied()).collect();
    one_of(value, &named, noun)
}

/// What one of `names` stands for. `noun` completes "is no ...".
pub fn one_of<T: Copy>(value: &DeValue<'_>, names: &[(&str, T)], noun: &str) -> Read<T> {
    let words: Vec<String> = names.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let all = match words.split_last() {
        Some((last, first)) => format!("write {} or {last}", first.join(", ")),
        None => String::new(),
    };
    let Some(written) = value.as_str() else { return Err(Mistake::type_of(value, all)) };
    if let Some((_, choice)) = names.iter().find(|(name, _)| *name == written) {
        return Ok(*choice);
    }
    let remedy = match nearest(written, names.iter().map(|(name, _)| *name)) {
        Some(known) => format!("did you mean \"{known}\"?"),
        None => all,
    };
    Err(Mistake::value(format!("{written:?} is no {noun}"), remedy))
}

/// A size in bytes: an integer, or a string of an integer and one of the binary units K, M and G.
pub fn size(value: &DeValue<'_>) -> Read<u64> {
    let remedy = match value {
        DeValue::String(text) => meant_size(text),
        _ => None,
    };
    let remedy = remedy.unwrap_or_else(|| "write \"64M\", \"1G\" or a number of bytes".to_owned());
    let (shown, bytes) = match value {
        DeValue::Integer(integer) => (integer.to_string(), unsigned(integer)),
        DeValue::String(text) => (format!("{text:?}"), parse_size(text)),
        other => return Err(Mistake::type_of(other, remedy)),
    };
    bytes.ok_or_else(|| Mistake::value(format!("{shown} is no size"), remedy))
}

fn unsigned(integer: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back()? {
        (end, 'K') => (&text[..end], 10),
        (end, 'M') => (&text[..end], 20),
        (end, 'G') => (&text[..end], 30),
        _ => (text, 0),
    };
    let count: u64 = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    count.checked_mul(1 << shift)
}

/// A right spelling of what is nearly a size: in lower case, with blanks, or with the unit written out.
fn meant_size(text: &str) -> Option<String> {
    let squeezed: String = text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_uppercase();
    let bare = squeezed.strip_suffix("IB").or_else(|| squeezed.strip_suffix('B')).unwrap_or(&squeezed);
    parse_size(bare)?;
    Some(format!("write \"{bare}\""))
}

/// What `written` was probably meant to be.
pub fn nearest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known.into_iter().find(|known| is_misspelt(written, known))
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

/// Whether `written` is `known` but for capitals and for `_` and `-`, or with one letter more, less, other or swapped with the next.
fn is_misspelt(written: &str, known: &str) -> bool {
    let [written, known] =
        [written, known].map(|text| text.to_lowercase().replace('_', "-").chars().collect::<Vec<_>>());
    let same = written.iter().zip(&known).take_while(|(a, b)| a == b).count();
    let (a, b) = (&written[same..], &known[same..]);
    match (a, b) {
        ([], []) => true,
        ([_, rest @ ..], _) if rest == b => true,
        (_, [_, rest @ ..]) if a == rest => true,
        ([_, a @ ..], [_, b @ ..]) if a == b => true,
        ([a0, a1, a @ ..], [b0, b1, b @ ..]) => (a0, a1, a) == (b1, b0, b),
        _ => false,
    }
}
