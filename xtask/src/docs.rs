//! Documents that are written from definitions in the code, so that they cannot say something else.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use levelhead::message::{Level, Message, Party};

use crate::build::Tree;

/// A document and what writes it.
struct Document {
    /// Its place in the tree.
    path: &'static str,
    write: fn() -> String,
}

const DOCUMENTS: [Document; 1] = [Document { path: "docs/messages.md", write: messages }];

/// Writes all of them.
///
/// # Errors
/// When a file cannot be written.
pub fn write(tree: &Tree) -> Result<()> {
    for document in DOCUMENTS {
        let path = tree.root.join(document.path);
        fs::write(&path, (document.write)()).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", document.path);
    }
    Ok(())
}

/// The documents that are not what [`write()`] would write.
///
/// # Errors
/// When a file cannot be read.
pub fn outdated(tree: &Tree) -> Result<Vec<String>> {
    let mut outdated = Vec::new();
    for document in DOCUMENTS {
        let path: PathBuf = tree.root.join(document.path);
        let found = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if found != (document.write)() {
            outdated.push(format!("{} is out of date; write it with: cargo xtask docs", document.path));
        }
    }
    Ok(outdated)
}

/// The catalogue of messages.
fn messages() -> String {
    let mut out = String::from(
        "# Messages\n\n\
         <!-- Written by `cargo xtask docs` from src/message.rs. -->\n\n\
         Every refusal and every partition's end is one line, a *record*:\n\n\
         ```text\n\
         LEVEL Party/code: where: what; to do: remedy\n\
         ```\n\n\
         `where` is a key of the configuration (`partition[0].device[1].gsi`), a partition, a device or an address; `what` and \
         `remedy` come\nwith their values. The host's tools put `FILE:LINE:COLUMN: ` in front. Lines that begin with blanks \
         belong to the record above them. A\nguest cannot forge a record: what it prints comes behind its name in brackets.\n\n\
         | party | who must act | ends |\n| --- | --- | --- |\n\
         | Guest | whoever wrote the program in the partition | that partition (QEMU status 35) |\n\
         | Config | whoever wrote the configuration or packed the bundle | the boot (37) |\n\
         | Firmware | whoever provides the machine and its firmware | the boot (39) |\n\
         | Device | whoever owns the card | the boot (37) |\n\
         | Bug | the project | the machine (41) |\n\n\
         INFO says that nothing is wrong; after WARN the run goes on, other than it was asked for; ERROR ends what the table \
         says.\n",
    );
    for party in Party::ALL {
        out += &format!(
            "\n## {party}\n\n| code | level | what it means | what to do |\n| --- | --- | --- | --- |\n"
        );
        for message in Message::ALL.iter().filter(|message| message.party() == party) {
            let remedy = if message.level() == Level::Info { "" } else { message.remedy() };
            out += &format!(
                "| `{}` | {} | {} | {} |\n",
                message.code(),
                message.level(),
                cell(message.meaning()),
                cell(remedy)
            );
        }
    }
    out
}

/// Text as it may stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_has_its_row() {
        let text = messages();
        for message in Message::ALL {
            assert!(text.contains(&format!("| `{}` | {} | ", message.code(), message.level())), "{message}");
        }
        let row = "| `vpin-taken` | ERROR | two lines would drive one pin of the guest's IO-APIC | ";
        assert!(text.contains(row), "{text}");
    }
}
