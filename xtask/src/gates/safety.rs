//! Whether every `// SAFETY:` comment argues. That there is one at each unsafe block is clippy's to say; here it is
//! read.
//!
//! What can be judged without understanding:
//!
//! * It is long enough to hold a fact and its bearing, [`FEWEST_WORDS`] words.
//! * It is none of the phrases that assert what they should show ([`EMPTY`]).
//! * An argument made elsewhere is named, not pointed at: "as above" is another argument as soon as a line moves. A
//!   comment that begins with "as" names, in backquotes, a function of the same file.
//! * It is about its own place: word for word the same in two files, it is about neither.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::source::{read, rust};

/// "reads a counter" has three and leaves out why one may.
const FEWEST_WORDS: usize = 5;
/// Phrases that claim instead of showing, or that put it off.
const EMPTY: [&str; 14] = [
    "this is safe",
    "it is safe",
    "that is safe",
    "is safe here",
    "trust me",
    "should be",
    "probably",
    "hopefully",
    "obviously",
    "of course",
    "to please",
    "for performance",
    "todo",
    "fixme",
];
/// Phrases that point at a place instead of naming it.
const POINTING: [&str; 7] =
    ["as above", "as before", "as below", "see above", "see below", "same as", "ditto"];

/// A comment and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Comment {
    line: usize,
    /// As written before the colon.
    word: String,
    /// What follows the colon, on one line.
    text: String,
}

/// Reads every Rust source of the tree.
///
/// # Errors
/// When the tree cannot be read.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for path in rust(root)? {
        files.push((path.display().to_string(), read(&root.join(&path))?));
    }
    Ok(judge(&files))
}

/// The breaches of `(path, text)` together.
fn judge(files: &[(String, String)]) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut places: BTreeMap<String, &str> = BTreeMap::new();
    for (path, text) in files {
        for comment in comments(text) {
            let mut fault = fault(&comment, text);
            let first = *places.entry(comment.text.clone()).or_insert(path);
            if fault.is_none() && first != path {
                fault = Some(format!("says word for word what {first} says, so it is about neither place"));
            }
            if let Some(fault) = fault {
                breaches.push(format!("{path}:{}: \"{}\" {fault}", comment.line, comment.text));
            }
        }
    }
    breaches
}

/// What is wrong with a comment of the file `text`.
fn fault(comment: &Comment, text: &str) -> Option<String> {
    if comment.word != "SAFETY" {
        return Some("is to begin with SAFETY in capitals".to_owned());
    }
    let plain = comment.text.to_lowercase();
    if let Some(phrase) = EMPTY.iter().find(|phrase| has_phrase(&plain, phrase)) {
        return Some(format!("claims with \"{phrase}\" what it should show"));
    }
    if let Some(phrase) = POINTING.iter().find(|phrase| has_phrase(&plain, phrase)) {
        return Some(format!(
            "points with \"{phrase}\"; name the function whose argument holds here, or make it"
        ));
    }
    if plain.starts_with("as ") {
        let named = comment.text.split('`').skip(1).step_by(2);
        let is_here = |name: &str| has_phrase(text, &format!("fn {}", name.trim_end_matches("()")));
        if !named.clone().any(is_here) {
            return Some(
                "refers to another argument, and names no function of this file in backquotes".to_owned(),
            );
        }
    }
    let words = plain.split_whitespace().count();
    (words < FEWEST_WORDS).then(|| format!("has {words} words: too few to say why the contract is kept"))
}

/// Whether `phrase` stands in `text` and does not go on as a longer word.
fn has_phrase(text: &str, phrase: &str) -> bool {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(phrase).any(|(at, _)| {
        let before = text.get(..at).unwrap_or_default();
        let behind = text.get(at + phrase.len()..).unwrap_or_default();
        !before.ends_with(in_word) && !behind.starts_with(in_word)
    })
}

/// The safety comments of a file, each with the lines it goes on for.
fn comments(text: &str) -> Vec<Comment> {
    let mut found: Vec<Comment> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        let Some(rest) = line.trim_start().strip_prefix("//").filter(|rest| !rest.starts_with(['/', '!']))
        else {
            open = false;
            continue;
        };
        let rest = rest.trim();
        match rest.split_once(':') {
            Some((word, argument)) if word.eq_ignore_ascii_case("safety") => {
                found.push(Comment {
                    line: number + 1,
                    word: word.to_owned(),
                    text: argument.trim().to_owned(),
                });
                open = true;
            }
            _ => {
                if open && let Some(comment) = found.last_mut() {
                    comment.text.push(' ');
                    comment.text.push_str(rest);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Vec<String> {
        judge(&[("a.rs".to_owned(), text.to_owned())])
    }

    #[test]
    fn comments_are_read_to_their_end() {
        let text =
            "/// SAFETY: documentation\n    // SAFETY: one two\n    // three: four\n    unsafe {}\n// five";
        let comment = Comment { line: 2, word: "SAFETY".into(), text: "one two three: four".into() };
        assert_eq!(comments(text), [comment]);
    }

    #[test]
    fn arguments_pass() {
        for text in [
            "// SAFETY: the page was mapped by `new` and nobody else has its address.",
            "fn read() {}\n// SAFETY: as for `read`; an aligned store is one store.",
            "fn read() {}\n// SAFETY: as in `read()`, and the value is a vector's.",
            "// SAFETY: it is safely inside the vector's own memory.",
        ] {
            assert_eq!(one(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn what_does_not_argue_is_refused() {
        for (text, why) in [
            ("// SAFETY: reads a counter.", "3 words"),
            ("// Safety: the page was mapped by the caller.", "capitals"),
            ("// SAFETY: as above.", "\"as above\""),
            ("// SAFETY: the same as above, but for the port.", "\"as above\""),
            ("// SAFETY: This is safe, since the device is there and answers.", "\"this is safe\""),
            ("// SAFETY: the pointer should be valid for all of the run.", "\"should be\""),
            ("// SAFETY: as for the read, and nobody switches it on.", "names no function"),
            ("// SAFETY: as for `reed`, and nobody switches it on.\nfn read() {}", "names no function"),
            ("// SAFETY: as for `rea`, and nobody switches it on.\nfn read() {}", "names no function"),
        ] {
            let breaches = one(text);
            assert!(breaches.len() == 1 && breaches[0].contains(why), "{text}: {breaches:?}");
        }
    }

    #[test]
    fn an_argument_is_about_one_place() {
        let text = "// SAFETY: fresh memory that the direct map covers.\n".to_owned();
        assert_eq!(one(&text.repeat(2)), [""; 0], "twice in one file is one argument");
        let breaches = judge(&[("a.rs".to_owned(), text.clone()), ("b.rs".to_owned(), text)]);
        assert!(breaches.len() == 1 && breaches[0].starts_with("b.rs:1:"), "{breaches:?}");
    }
}
