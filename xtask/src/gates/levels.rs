//! The borders inside the tree: who may import whom, and who may speak assembly or AML.
//!
//! The levels are read from the table in the documentation of `src/lib.rs`, so that the check and what people
//! read cannot part.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};

use super::source::{below, read};

/// Folders and files of `src/` that may hold assembly.
const ASSEMBLY: [&str; 4] = ["arch", "boot", "rt", "selftest"];
/// The folder that may use the `acpi` crate.
const ACPI: &str = "platform";

/// Module of the library to its level.
type Levels = BTreeMap<String, u32>;

/// Checks every source file under `root/src`.
///
/// # Errors
/// When the tree or the table cannot be read. Breaches are the value: one line each.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let source = root.join("src");
    let library = read(&source.join("lib.rs"))?;
    let levels = parse_table(&library)?;
    let mut breaches: Vec<String> = declared(&library)
        .filter(|module| !levels.contains_key(*module))
        .map(|module| format!("src/lib.rs: module `{module}` has no level in the table"))
        .collect();
    for path in below(&source)? {
        let inside = path.strip_prefix(&source)?;
        let text = read(&path)?;
        breaches.extend(judge(inside, &text, &levels));
    }
    Ok(breaches)
}

/// The breaches of one file, whose path is relative to `src/`.
fn judge(inside: &Path, text: &str, levels: &Levels) -> Vec<String> {
    let module = module_of(inside);
    let shown = Path::new("src").join(inside);
    let mut breaches = Vec::new();
    let mut complain =
        |line: usize, what: String| breaches.push(format!("{}:{line}: {what}", shown.display()));
    let assembly_file = inside.extension().is_some_and(|extension| extension == "S");
    let may_assemble = ASSEMBLY.contains(&module.as_str());
    if assembly_file {
        if !may_assemble {
            complain(1, format!("only {} may hold assembly", ASSEMBLY.join(", ")));
        }
        return breaches;
    }
    for (number, line) in text.lines().map(without_comment).enumerate() {
        let line_number = number + 1;
        if !may_assemble && ["asm!(", "asm!{", "asm! "].iter().any(|word| line.contains(word)) {
            complain(line_number, format!("only {} may hold assembly", ASSEMBLY.join(", ")));
        }
        if module != ACPI && uses_acpi(line) {
            complain(line_number, format!("only {ACPI} may use the acpi crate"));
        }
    }
    if let Some(own) = levels.get(&module) {
        for (line, imported) in imports(text) {
            match levels.get(&imported) {
                _ if imported == module => {}
                Some(level) if level < own => {}
                Some(level) => {
                    complain(line, format!("`{module}` (level {own}) imports `{imported}` (level {level})"));
                }
                None => complain(line, format!("`{module}` imports `{imported}`, which has no level")),
            }
        }
    }
    breaches
}

/// The first part of a path below `src/`: the module of the crate a file belongs to.
fn module_of(inside: &Path) -> String {
    let first = inside.components().next().map(|part| Path::new(part.as_os_str()));
    first.and_then(Path::file_stem).unwrap_or_default().to_string_lossy().into_owned()
}

fn uses_acpi(line: &str) -> bool {
    let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
    let path = ["use ", "extern crate "].iter().find_map(|word| line.strip_prefix(word));
    let first = path.map(|path| path.trim_start_matches("::").split(|c: char| !is_name(c)).next());
    first == Some(Some("acpi"))
}

/// Reads the table: rows like ``| 0 vocabulary | [`addr`], [`irq`] |``.
fn parse_table(library: &str) -> Result<Levels> {
    let mut levels = Levels::new();
    for line in library.lines().filter_map(|line| line.strip_prefix("//! |")) {
        let mut cells = line.split('|').map(str::trim);
        let (Some(level), Some(modules)) = (cells.next(), cells.next()) else { continue };
        let Some(level) = level.split_whitespace().next().and_then(|number| number.parse().ok()) else {
            continue;
        };
        // Every second piece between backticks is a name.
        for module in modules.split('`').skip(1).step_by(2) {
            ensure!(
                levels.insert(module.to_owned(), level).is_none(),
                "src/lib.rs: `{module}` has two levels"
            );
        }
    }
    ensure!(!levels.is_empty(), "src/lib.rs has no table of import levels in its documentation");
    Ok(levels)
}

/// The modules a crate root declares.
pub fn declared(root: &str) -> impl Iterator<Item = &str> {
    root.lines().filter_map(|line| {
        let line = line.trim().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        line.strip_prefix("mod ")?.strip_suffix(';')
    })
}

/// The modules of its own crate that a file names, with the line: `crate::a`, `crate::{a::X, b}`. Comments and
/// documentation may point anywhere.
fn imports(text: &str) -> Vec<(usize, String)> {
    let code: String = text.lines().map(without_comment).flat_map(|line| [line, "\n"]).collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code.get(..at).is_some_and(|before| before.ends_with(|c| is_name(c) || c == '$')) {
            continue;
        }
        let rest = code.get(at + "crate::".len()..).unwrap_or_default();
        let line = code.get(..at).unwrap_or_default().matches('\n').count() + 1;
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group).into_iter().map(|head| (line, head))),
            None => found.push((line, head(rest))),
        }
    }
    found
}

/// The first names of the members of a `{a::X, b::{c, d}}`, given what follows its opening brace.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0_u32;
    let mut member = String::new();
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => heads.push(std::mem::take(&mut member)),
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && c != ',' {
            member.push(c);
        }
    }
    heads.push(member);
    heads.iter().map(|member| head(member.trim())).filter(|head| !head.is_empty()).collect()
}

fn head(path: &str) -> String {
    path.chars().take_while(|c| is_name(*c)).collect()
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// A line up to its comment. A `//` in a text literal ends it too, which loses no import.
fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "//! | level | modules |\n//! | --- | --- |\n//! | 0 vocabulary | [`addr`], [`irq`] |\n\
                         //! | 1 formats | [`pci`], `emulate` |\n//! | 2 machines | [`intx`], [`virq`] |\n";

    fn judge_text(path: &str, text: &str) -> Vec<String> {
        judge(Path::new(path), text, &parse_table(TABLE).unwrap())
    }

    #[test]
    fn the_table_is_read() {
        let levels = parse_table(TABLE).unwrap();
        let levels: Vec<_> = levels.iter().map(|(name, level)| (name.as_str(), *level)).collect();
        assert_eq!(levels, [("addr", 0), ("emulate", 1), ("intx", 2), ("irq", 0), ("pci", 1), ("virq", 2)]);
        assert!(parse_table("//! no table").is_err());
    }

    #[test]
    fn lower_levels_may_be_imported() {
        let text = "use crate::irq::Gsi;\nuse crate::{addr::{A, B}, pci};\nuse crate::intx::line;\n";
        assert_eq!(judge_text("intx/mod.rs", text), [""; 0]);
    }

    #[test]
    fn siblings_and_higher_levels_may_not() {
        assert_eq!(
            judge_text("intx/line.rs", "\nuse crate::virq::Pin;\n"),
            ["src/intx/line.rs:2: `intx` (level 2) imports `virq` (level 2)"]
        );
        assert_eq!(judge_text("pci.rs", "use crate::{\n    irq::Gsi,\n    intx::{a, b},\n};\n").len(), 1);
        assert_eq!(judge_text("irq.rs", "fn f() -> crate::addr::A {}").len(), 1, "a path is an import too");
        assert_eq!(judge_text("intx/mod.rs", "use crate::nowhere;").len(), 1);
    }

    #[test]
    fn comments_may_point_anywhere() {
        assert_eq!(judge_text("irq.rs", "//! See [`crate::virq`].\n// use crate::virq;\n"), [""; 0]);
    }

    #[test]
    fn assembly_has_its_places() {
        assert_eq!(judge_text("run.rs", "core::arch::global_asm!(\"\");").len(), 1);
        assert_eq!(judge_text("arch/x86/idt.rs", "core::arch::asm!(\"\");"), [""; 0]);
        assert_eq!(judge_text("intx/fast.S", "nop").len(), 1);
        assert_eq!(judge_text("boot/entry.S", "nop"), [""; 0]);
    }

    #[test]
    fn one_folder_uses_acpi() {
        for text in ["use acpi::AcpiTables;", "    use ::acpi;", "extern crate acpi;", "pub use acpi::madt;"]
        {
            assert_eq!(judge_text("run.rs", text).len(), 1, "{text}");
            assert_eq!(judge_text("platform/acpi.rs", text), [""; 0], "{text}");
        }
        assert_eq!(judge_text("run.rs", "use crate::platform::acpi;\nuse acpi_facts::X;"), [""; 0]);
    }

    #[test]
    fn a_module_without_a_level_is_found() {
        let names: Vec<_> = declared("pub mod addr;\nmod x;\nuse y;\nmod tests {\n").collect();
        assert_eq!(names, ["addr", "x"]);
    }

    #[test]
    fn this_tree_keeps_its_levels() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        assert_eq!(check(&root).unwrap(), [""; 0]);
    }
}
