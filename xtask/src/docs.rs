//! Documents that are written from definitions in the code, so that they cannot say something else.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use levelhead::message::{Level, Message, Party};

use crate::build::Tree;
use crate::config::keys::{Key, SECTIONS};

/// A document and what writes it.
struct Document {
    /// Its place in the tree.
    path: &'static str,
    write: fn() -> String,
}

const DOCUMENTS: [Document; 2] = [
    Document { path: "docs/messages.md", write: messages },
    Document { path: "docs/config.md", write: configuration },
];

/// A whole configuration with comments.
const EXAMPLE: &str = include_str!("config/example.toml");

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

/// The language of configurations.
fn configuration() -> String {
    let mut out = String::from(
        "# Configurations\n\n\
         <!-- Written by `cargo xtask docs` from xtask/src/config/keys.rs. -->\n\n\
         A configuration is a TOML file. It divides a machine into partitions, and says of each which CPU, memory, program and \
         PCI functions it has.\n\n\
         ```sh\n\
         cargo xtask config check mine.toml            # every mistake at once, or a line for each partition\n\
         cargo xtask run mine.toml                     # boots it in QEMU\n\
         cargo xtask config pack mine.toml -o mine.bundle    # the boot module for the machine itself\n\
         ```\n\n\
         A mistake is a record with file, line, column and key, what is wrong, and what would be right:\n\n\
         ```text\n\
         mine.toml:9:8: ERROR Config/vpin-range: partition[0].device[0].vpin: the guest's IO-APIC has no pin 24; to do: use 0 to 23\n\
         ```\n\n\
         [messages.md](messages.md) explains each code. The hypervisor judges the bundle again by the same rules when it boots, \
         and then what only the\nmachine can answer: whether it has such a CPU, function and line.\n\n\
         ## A whole example\n\n```toml\n",
    );
    out += EXAMPLE;
    out += "```\n";
    for section in SECTIONS {
        out += &format!(
            "\n## Keys: {}\n\n| key | type | default | range | meaning | example | codes |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n",
            section.heading
        );
        section.keys.iter().for_each(|key| out += &row(key));
    }
    out + "\nOf any key there may also be said: [`unknown-key`](messages.md#config), `missing-key`, `wrong-type`, `wrong-value`; of \
           the file: `toml-syntax`,\n`wrong-encoding`, `no-such-file`, `file-too-large`. A key that is required has no default. Integers \
           may be written as TOML allows: `0xf4`, `1_000`.\n\n\
           ## How images are found\n\n\
           A path is relative to the folder of the configuration file, or absolute. `guest:NAME` is one of the project's own \
           programs\n(`guests/src/bin/NAME.rs`, see [guests/README.md](../guests/README.md)); `config check`, `config pack` and \
           `run` build them first. A file that several keys name\nis packed once. Its name, without the folders and with `_` for \
           blanks, is the first word of the guest's command line.\n\n\
           A kernel is a Multiboot 1 image, an ELF with a PVH note, or a Linux bzImage (64-bit, of protocol 2.12 or later: Linux \
           3.8). What it is\nis told by looking at it; if it is several, the first of these counts. It is linked into the \
           partition's memory: from 1 MiB on, or below 640 KiB.\nLinux takes the modules as its initial RAM disk, one behind \
           the other, and its own limit on the command line (2047 bytes as a rule) counts.\n\n\
           ## How lines and virtual pins are chosen\n\n\
           * A function without an interrupt pin needs neither `gsi` nor `vpin`.\n\
           * The *line* is `gsi`, if it is there. Else the firmware's `_PRT` says where the function's pin leads, when the machine \
           boots. QEMU's `q35` answers\n  (slot 3: GSI 23, slot 5: 21, slot 6: 22); its `pc` does not, and needs `gsi`.\n\
           * Up to 8 functions may share a line, also when their partitions differ; those of one partition may share a virtual \
           pin as well.\n  `mask` (above) says how they are told apart.\n\
           * The *virtual pin* is `vpin`, if it is there, else the number of the line. A guest's IO-APIC has the inputs 0 to 23, so \
           a line from 24 on\n  needs `vpin`. The Interrupt Line register of the function reads the pin.\n\n\
           ## Lines for QEMU\n\n\
           A line that begins with `# qemu:` is a comment to TOML; `cargo xtask run` and the tests give its words to QEMU, split at \
           blanks, without quoting.\nThey say which devices the emulated machine has (`-device edu,addr=5` is `00:05.0`; slots are \
           hexadecimal). `run --device ...` takes the place of all\nof them. `config check`, `config pack` and the hypervisor do \
           not read them.\n\n\
           ## What the guest finds\n\n\
           [guests.md](guests.md) describes the guest's platform, \
           [hypercalls.md](hypercalls.md) its calls.\n"
}

/// The row of a key.
fn row(key: &Key) -> String {
    let codes: Vec<_> = key.messages.iter().map(|message| format!("`{}`", message.code())).collect();
    let cells = [
        format!("`{}`", key.name),
        key.kind.to_owned(),
        key.default.unwrap_or("required").to_owned(),
        (key.range)(),
        key.meaning.to_owned(),
        format!("`{}`", key.example),
        codes.join(", "),
    ];
    format!("| {} |\n", cells.map(|text| cell(&text)).join(" | "))
}

/// Text as it may stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_row_and_the_example_is_whole() {
        let text = configuration();
        assert!(text.contains(EXAMPLE));
        assert!(text.contains("| `bdf` | string | required | "), "{text}");
        assert!(
            text.contains("| `storm-window` | integer | 100 | 1 to 60000 ms; with `storm-limit` | "),
            "{text}"
        );
        for section in SECTIONS {
            let (_, rest) = text.split_once(&format!("## Keys: {}\n", section.heading)).unwrap();
            let table = rest.split("\n## ").next().unwrap();
            assert!(
                section.keys.iter().all(|key| table.contains(&format!("| `{}` | ", key.name))),
                "{table}"
            );
        }
    }

    #[test]
    fn every_message_has_its_row() {
        let text = messages();
        for message in Message::ALL {
            assert!(text.contains(&format!("| `{}` | {} | ", message.code(), message.level())), "{message}");
        }
        let row = "| `vpin-range` | ERROR | the guest's IO-APIC has no such pin | ";
        assert!(text.contains(row), "{text}");
    }
}
