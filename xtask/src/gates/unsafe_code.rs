//! How much is unsafe, and where: a number for each file and kind that changes only knowingly.
//!
//! The table is `tests/unsafe.toml`. More than it says is a breach, and so is less: a ceiling that stands too high lets the
//! next `unsafe` in unseen. Nothing may be unsafe in the library, whatever the table says, and no file without saying why.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use serde::Deserialize;

use super::levels::declared;
use super::source::{read, rust};

/// The table, relative to the root.
const TABLE: &str = "tests/unsafe.toml";

/// What is unsafe in one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Count {
    /// Blocks, also those inside macros.
    blocks: u32,
    /// Functions.
    functions: u32,
    /// Implementations of unsafe traits, and such traits.
    impls: u32,
    /// Blocks of foreign items.
    externs: u32,
    /// Attributes, such as `#[unsafe(no_mangle)]`.
    attributes: u32,
}

impl fmt::Display for Count {
    /// As in the table: what is none is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { blocks, functions, impls, externs, attributes } = *self;
        let all = [
            ("blocks", blocks),
            ("functions", functions),
            ("impls", impls),
            ("externs", externs),
            ("attributes", attributes),
        ];
        if *self == Self::default() {
            return f.write_str("nothing");
        }
        let some =
            all.iter().filter(|(_, number)| *number > 0).map(|(name, number)| format!("{name} = {number}"));
        write!(f, "{{ {} }}", some.collect::<Vec<_>>().join(", "))
    }
}

/// The ceilings, by path.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    files: BTreeMap<PathBuf, Count>,
}

/// What a file's tokens tell.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    count: Count,
    /// There is an `expect(unsafe_code, reason = ...)`.
    opened: bool,
    /// There is an `allow(unsafe_code)`.
    allowed: bool,
}

/// Compares every Rust source of the tree with the table.
///
/// # Errors
/// When the tree or the table cannot be read.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let table: Table = toml::from_str(&read(&root.join(TABLE))?).context(TABLE)?;
    let library_root = read(&root.join("src/lib.rs"))?;
    let library: Vec<&str> = declared(&library_root).collect();
    let mut seen = BTreeMap::new();
    for path in rust(root)? {
        let tokens: TokenStream = read(&root.join(&path))?
            .parse()
            .map_err(|error| anyhow!("{} is no Rust: {error}", path.display()))?;
        let mut found = Seen::default();
        look(tokens, &mut found);
        seen.insert(path, found);
    }
    let mut breaches = Vec::new();
    if !library_root.contains("\n#![forbid(unsafe_code)]\n") {
        breaches.push("src/lib.rs: the library must have #![forbid(unsafe_code)]".to_owned());
    }
    breaches.extend(judge(&seen, &table.files, &library));
    Ok(breaches)
}

fn judge(seen: &BTreeMap<PathBuf, Seen>, table: &BTreeMap<PathBuf, Count>, library: &[&str]) -> Vec<String> {
    let none = Count::default();
    let mut breaches = Vec::new();
    for (path, found) in seen {
        let shown = path.display();
        let ceiling = table.get(path).unwrap_or(&none);
        if found.allowed {
            breaches.push(format!("{shown}: unsafe code is opened by expect with a reason, never by allow"));
        }
        if found.count != none && is_library(path, library) {
            breaches.push(format!("{shown}: nothing may be unsafe in the library, here is {}", found.count));
        } else if found.count != none && !found.opened {
            breaches.push(format!(
                "{shown}: unsafe without #![expect(unsafe_code, reason = \"...\")] in the file itself"
            ));
        } else if found.count == none && table.contains_key(path) {
            breaches.push(format!("{shown}: nothing unsafe is left; take its line out of {TABLE}"));
        } else if found.count != *ceiling {
            breaches.push(format!(
                "{shown}: {TABLE} allows {ceiling}; if the change is meant, write \"{shown}\" = {}",
                found.count
            ));
        }
    }
    let gone = table.keys().filter(|path| !seen.contains_key(*path));
    breaches.extend(gone.map(|path| format!("{TABLE}: there is no file {}", path.display())));
    breaches
}

/// Whether a file belongs to one of the library's modules.
fn is_library(path: &Path, modules: &[&str]) -> bool {
    let Ok(inside) = path.strip_prefix("src") else { return false };
    let first = inside.components().next().map(|part| Path::new(part.as_os_str()));
    let module = first.and_then(Path::file_stem).and_then(|stem| stem.to_str());
    module.is_some_and(|module| module == "lib" || modules.contains(&module))
}

/// Counts, in groups of any depth. Comments and literals are no tokens of this kind.
fn look(tokens: TokenStream, seen: &mut Seen) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let rest = tokens.get(at + 1..).unwrap_or_default();
        match token {
            TokenTree::Group(group) => look(group.stream(), seen),
            TokenTree::Ident(word) if word == "unsafe" => count(rest, &mut seen.count),
            TokenTree::Ident(word) if word == "expect" || word == "allow" => {
                if let Some(TokenTree::Group(group)) = rest.first()
                    && mentions(group.stream(), "unsafe_code")
                {
                    seen.allowed |= word == "allow";
                    seen.opened |= word == "expect" && mentions(group.stream(), "reason");
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

fn mentions(tokens: TokenStream, name: &str) -> bool {
    tokens.into_iter().any(|token| matches!(token, TokenTree::Ident(word) if word == name))
}

/// Counts one `unsafe`, given what follows it.
fn count(rest: &[TokenTree], count: &mut Count) {
    let opens = |token: Option<&TokenTree>, wanted: Delimiter| matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == wanted);
    let word = |token: Option<&TokenTree>| match token {
        Some(TokenTree::Ident(word)) => word.to_string(),
        _ => String::new(),
    };
    // `unsafe extern "C" fn`, or a block of foreign items.
    let abi = usize::from(word(rest.first()) == "extern");
    let literal = usize::from(abi == 1 && matches!(rest.get(1), Some(TokenTree::Literal(_))));
    let rest = rest.get(abi + literal..).unwrap_or_default();
    match word(rest.first()).as_str() {
        // A function has a name; without one it is the type of a pointer, which is no code.
        "fn" if !word(rest.get(1)).is_empty() => count.functions += 1,
        "impl" | "trait" => count.impls += 1,
        _ if opens(rest.first(), Delimiter::Parenthesis) => count.attributes += 1,
        _ if opens(rest.first(), Delimiter::Brace) && abi == 1 => count.externs += 1,
        _ if opens(rest.first(), Delimiter::Brace) => count.blocks += 1,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Seen {
        let mut found = Seen::default();
        look(text.parse().unwrap(), &mut found);
        found
    }

    fn judged(text: &str, table: &str) -> Vec<String> {
        let table: Table = toml::from_str(table).unwrap();
        judge(&BTreeMap::from([("src/rt.rs".into(), seen(text))]), &table.files, &["irq"])
    }

    const OPENED: &str = "#![expect(unsafe_code, reason = \"it must\")] fn f() { unsafe { g() } }";

    #[test]
    fn each_kind_is_counted_wherever_it_stands() {
        let text = "unsafe impl Sync for A {} pub unsafe fn f() {} unsafe extern \"C\" fn g() {}\n\
                    unsafe extern \"C\" { fn h(); } unsafe extern { } #[unsafe(no_mangle)] fn i() {}\n\
                    macro_rules! m { () => { unsafe { n() } } } fn o() { if unsafe { p() } {} }";
        let expected = Count { blocks: 2, functions: 2, impls: 1, externs: 2, attributes: 1 };
        assert_eq!(seen(text).count, expected);
    }

    #[test]
    fn words_and_types_are_not_counted() {
        let text = "//! unsafe { }\n/* unsafe fn f() */ type F = unsafe fn(u8); type G = unsafe extern \"C\" fn();\n\
                    const S: &str = \"unsafe { }\";";
        assert_eq!(seen(text).count, Count::default());
    }

    #[test]
    fn more_and_fewer_are_breaches_that_say_what_to_write() {
        assert_eq!(judged(OPENED, "[files]\n\"src/rt.rs\" = { blocks = 1 }"), [""; 0]);
        for ceiling in ["{ blocks = 2 }", "{ blocks = 1, impls = 1 }", "{ impls = 1 }"] {
            let breaches = judged(OPENED, &format!("[files]\n\"src/rt.rs\" = {ceiling}"));
            assert!(breaches[0].ends_with("write \"src/rt.rs\" = { blocks = 1 }"), "{breaches:?}");
            assert_eq!(breaches.len(), 1);
        }
        assert_eq!(judged(OPENED, "[files]").len(), 1);
        assert_eq!(judged("", "[files]\n\"src/rt.rs\" = { blocks = 1 }").len(), 1, "nothing is left");
        assert_eq!(judged("", "[files]\n\"src/gone.rs\" = { blocks = 1 }").len(), 1, "no such file");
    }

    #[test]
    fn a_file_says_why_it_is_an_island() {
        let table = "[files]\n\"src/rt.rs\" = { blocks = 1 }";
        for opening in ["", "#![expect(unsafe_code)]", "#![allow(unsafe_code, reason = \"no\")]"] {
            let breaches = judged(&format!("{opening} fn f() {{ unsafe {{ g() }} }}"), table);
            assert!(!breaches.is_empty(), "{opening}");
        }
    }

    #[test]
    fn the_table_cannot_open_the_library() {
        for path in ["src/irq.rs", "src/irq/deep.rs", "src/lib.rs"] {
            let seen = BTreeMap::from([(path.into(), seen(OPENED))]);
            let table = BTreeMap::from([(path.into(), Count { blocks: 1, ..Count::default() })]);
            assert!(judge(&seen, &table, &["irq"])[0].contains("in the library"), "{path}");
        }
        assert!(!is_library(Path::new("src/irqs.rs"), &["irq"]));
        assert!(!is_library(Path::new("guests/src/irq.rs"), &["irq"]));
    }
}
