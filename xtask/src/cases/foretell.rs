//! Cases that demand of a boot what `config explain` foretells of it.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::Case;
use crate::build::Tree;
use crate::explain::Explanation;
use crate::qemu::Machine;
use crate::{bundle, facts, run};

/// The table of lines as `config explain` has it, by the facts of this very machine, which is booted for them.
///
/// # Errors
/// When the machine does not report its facts, and when boot would refuse the configuration by them.
pub fn table(case: &Case, tree: &Tree, machine: &Machine, folder: &Path) -> Result<Vec<String>> {
    let config = case.config.as_ref().context("`explain` needs `config`")?;
    let append = run::append(&[facts::WORD.to_owned()]);
    let machine = Machine { initrd: None, append, ..machine.clone() };
    let outcome = machine.run(case.limit(), |_| {})?;
    let console = outcome.console.join("\n");
    bundle::write(&folder.join("facts.log"), console.as_bytes())?;
    outcome.check(33, true).map_err(|why| anyhow!("the boot for facts: {why}"))?;
    let (_, facts) = facts::report("console", &console)?;
    let config = case.edited(&tree.root.join(config), folder)?;
    let loaded = bundle::load(tree, &config, bundle::Guests::Built)?;
    let said = Explanation::new(case.name.clone(), &loaded, Some(&facts));
    let wrong: Vec<_> = said.findings().iter().map(ToString::to_string).collect();
    ensure!(wrong.is_empty(), "explain: {}", wrong.join("\n"));
    Ok(said.table_of_lines())
}

/// Compares the hypervisor's table of lines, line by line, with the one that was foretold.
///
/// # Errors
/// Both, where they differ.
pub fn compare(foretold: &[String], console: &[String]) -> Result<(), String> {
    let plain = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let table = console.iter().skip_while(|line| !line.starts_with("  device ")).skip(1);
    let table: Vec<_> = table.take_while(|line| line.starts_with("  ")).map(plain).collect();
    let same = |(told, line): (&String, &String)| {
        let rest = line.strip_prefix(told.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(" installed "))
    };
    if !table.is_empty() && foretold.len() == table.len() && foretold.iter().zip(&table).all(same) {
        return Ok(());
    }
    let (foretold, table) = (foretold.join("\n"), table.join("\n"));
    Err(format!("explain foretold:\n{foretold}\nand the table of lines is:\n{table}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_differs_from_what_was_foretold_in_anything_is_told() {
        let foretold =
            ["00:03.0 a GSI 23 0x40 RTE mask partition 0 pin 23".to_owned(), "00:04.0 a no INTx".to_owned()];
        let console = |lines: &[&str]| -> Vec<String> {
            let head = ["INFO  x", "  device   partition  line"];
            head.iter().chain(lines).chain(&["[a] hello"]).map(|line| (*line).to_owned()).collect()
        };
        const FIRST: &str =
            "  00:03.0  a    GSI 23   0x40    RTE mask  partition 0 pin 23     installed 1x, removed 0x";
        const SECOND: &str = "  00:04.0  a                no INTx";
        compare(&foretold, &console(&[FIRST, SECOND])).unwrap();
        let other = |from, to| FIRST.replace(from, to);
        for first in [
            other("23   ", "22   "),
            other("0x40", "0x41"),
            other("RTE mask", "DisINTx"),
            other("pin 23", "pin 2"),
            other("pin 23", "pin 231"),
        ] {
            assert!(compare(&foretold, &console(&[&first, SECOND])).is_err(), "{first}");
        }
        for lines in [&[FIRST][..], &[SECOND, FIRST], &[FIRST, SECOND, SECOND], &[]] {
            assert!(compare(&foretold, &console(lines)).is_err(), "{lines:?}");
        }
        assert!(compare(&[], &console(&[])).is_err(), "an empty table shows nothing");
    }
}
