//! Reports for machines: one JSON document on standard output, or one object per line. `docs/json.md` shows each.
//!
//! Every object says which report it is and in which form: `{"report": "run", "version": 1, ...}`. Keys are added without
//! a new version; a new version is for keys that go or change their meaning.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The version of every form.
pub const VERSION: u32 = 1;

/// A body with its head.
#[derive(Debug, Serialize)]
struct Report<'a, T> {
    report: &'a str,
    version: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// One document over several lines. `body` is a structure or a map.
///
/// # Errors
/// When `body` is none of these.
pub fn document(report: &str, body: &impl Serialize) -> Result<String> {
    let document = Report { report, version: VERSION, body };
    serde_json::to_string_pretty(&document).with_context(|| format!("the {report} report is no JSON object"))
}

/// One object in one line.
///
/// # Errors
/// As [`document`].
pub fn line(report: &str, body: &impl Serialize) -> Result<String> {
    let document = Report { report, version: VERSION, body };
    serde_json::to_string(&document).with_context(|| format!("the {report} report is no JSON object"))
}

/// Prints a [`document`] to standard output.
///
/// # Errors
/// As [`document`], and when nobody reads it.
pub fn print(report: &str, body: &impl Serialize) -> Result<()> {
    put(&document(report, body)?)
}

/// Prints a [`line()`] to standard output.
///
/// # Errors
/// As [`document`], and when nobody reads it.
pub fn print_line(report: &str, body: &impl Serialize) -> Result<()> {
    put(&line(report, body)?)
}

fn put(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("cannot write the report to standard output")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The example in the section of `docs/json.md` with that heading. A report's own tests compare it with what they
    /// print.
    pub fn example(heading: &str) -> serde_json::Value {
        let page = include_str!("../../../docs/json.md");
        let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect("a section");
        let section = section.split("\n## ").next().unwrap();
        let (_, block) = section.split_once("```json\n").expect("an example");
        let (block, _) = block.split_once("```").unwrap();
        serde_json::from_str(block).unwrap()
    }

    /// What is printed for `body`.
    pub fn printed(report: &str, body: &impl Serialize) -> serde_json::Value {
        serde_json::from_str(&document(report, body).unwrap()).unwrap()
    }

    #[derive(Serialize)]
    struct Body {
        answer: u32,
    }

    #[test]
    fn a_report_begins_with_its_name_and_version() {
        assert_eq!(line("x", &Body { answer: 1 }).unwrap(), r#"{"report":"x","version":1,"answer":1}"#);
        assert_eq!(printed("x", &Body { answer: 1 })["answer"], 1);
        assert!(line("x", &3).is_err(), "a number has no keys");
    }
}
