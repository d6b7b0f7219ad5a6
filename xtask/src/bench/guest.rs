//! Who is measured: the guest, its line and who else is on it, as a configuration and as QEMU's words.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::build::Tree;
use crate::bundle;
use crate::qemu::Machine;

/// The guest program.
pub(super) const GUEST: &str = "bench";
/// The configuration it runs in under Levelhead.
const CONFIG: &str = "tests/qemu/bench.toml";
/// The device in that file, to which others on its line are added, and the word that makes the machine have it.
const DEVICE: &str = "bdf = \"00:03.0\"";
const DEVICE_WORD: &str = "edu,addr=3";
/// Devices of other lines, each on one of its own (q35): what QEMU calls them, and where the machine has them. Slots below 25
/// share four lines; the other four are the bridge's in slot 25, behind which a device's slot picks its pin.
const OTHER_LINES: [(&str, &str); 7] = [
    ("edu,addr=4", "00:04.0"),
    ("edu,addr=5", "00:05.0"),
    ("edu,addr=6", "00:06.0"),
    ("edu,bus=bridge,addr=1", "01:01.0"),
    ("edu,bus=bridge,addr=2", "01:02.0"),
    ("edu,bus=bridge,addr=3", "01:03.0"),
    ("edu,bus=bridge,addr=4", "01:04.0"),
];
/// As many functions as a slot has.
const MOST_SOURCES: u32 = 8;
/// As many as q35 has.
const MOST_LINES: u32 = OTHER_LINES.len() as u32 + 1;
/// The bridge.
const BRIDGE: &str = "pci-bridge,id=bridge,chassis_nr=1,addr=0x19";
/// The command line of the guest in that file, which is exchanged for each run.
const CMDLINE: &str = "apic=xapic vcpu=busy rounds=1000";

/// The guest's interface to its local APIC.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Apic {
    /// In memory.
    Xapic,
    /// By MSRs.
    X2apic,
}

impl Apic {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Xapic => "xapic",
            Self::X2apic => "x2apic",
        }
    }
}

/// What its virtual CPU does when the interrupt comes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Vcpu {
    /// It counts.
    Busy,
    /// It has halted.
    Halted,
}

impl Vcpu {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Halted => "halted",
        }
    }
}

/// What silences the line.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mask {
    /// Its redirection table entry.
    #[default]
    Line,
    /// DisINTx at each function.
    Function,
}

impl fmt::Display for Mask {
    /// As the configuration spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Line => "line",
            Self::Function => "function",
        })
    }
}

/// When the guest replaces its notifier by another pin.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replaced {
    /// Never.
    #[default]
    Never,
    /// Before each interrupt.
    Between,
    /// Between an assertion and its handler: what was delivered is taken back, and delivered again.
    InFlight,
}

impl Replaced {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Between => "between",
            Self::InFlight => "in-flight",
        }
    }

    /// How many physical interrupts a round takes.
    pub(super) fn interrupts(self) -> u32 {
        if self == Self::InFlight { 2 } else { 1 }
    }
}

/// How a guest is that is measured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its local APIC.
    pub apic: Apic,
    /// Its virtual CPU.
    pub vcpu: Vcpu,
    /// What silences the line.
    #[serde(default)]
    pub mask: Mask,
    /// How many devices share the line, 1 to 8. One of them interrupts, the others are open and quiet.
    #[serde(default = "alone")]
    pub sources: u32,
    /// How many lines are in use, 1 to 8. The others are open and quiet.
    #[serde(default = "alone")]
    pub lines: u32,
    /// When it replaces its notifier.
    #[serde(default)]
    pub replaced: Replaced,
}

/// A guest that is alone with a device on a line, and leaves its notifier as it is.
pub(super) const ALONE: Guest = Guest {
    apic: Apic::X2apic,
    vcpu: Vcpu::Busy,
    mask: Mask::Line,
    sources: 1,
    lines: 1,
    replaced: Replaced::Never,
};

fn alone() -> u32 {
    1
}

impl Guest {
    /// Every guest that is reported: those with a line of their own, and those that share one.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let exclusive = [Apic::Xapic, Apic::X2apic]
            .into_iter()
            .flat_map(|apic| [Vcpu::Busy, Vcpu::Halted].map(|vcpu| Self { apic, vcpu, ..ALONE }));
        let shared = [
            (Mask::Function, 1),
            (Mask::Function, 2),
            (Mask::Function, 4),
            (Mask::Function, 8),
            (Mask::Line, 8),
        ];
        let shared = shared.map(|(mask, sources)| Self { apic: Apic::Xapic, mask, sources, ..ALONE });
        let many = [Apic::Xapic, Apic::X2apic].map(|apic| Self { apic, lines: MOST_LINES, ..ALONE });
        let replaced = [Replaced::Between, Replaced::InFlight].map(|replaced| Self { replaced, ..ALONE });
        exclusive.chain(shared).chain(many).chain(replaced)
    }

    /// Whether there is such a guest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge(self) -> Result<()> {
        let (sources, lines) = (self.sources, self.lines);
        ensure!(
            (1..=MOST_SOURCES).contains(&sources),
            "{sources} devices on the line: it has 1 to {MOST_SOURCES}, functions of one slot"
        );
        ensure!((1..=MOST_LINES).contains(&lines), "{lines} lines in use: the machine has 1 to {MOST_LINES}");
        Ok(())
    }

    /// What is measured, for people: the line too if it is not one of a single device that its entry silences.
    pub fn name(self) -> String {
        let Self { apic, vcpu, mask, sources, lines, replaced } = self;
        let (apic, vcpu) = (apic.name(), vcpu.name());
        match mask {
            _ if replaced == Replaced::Between => format!("{apic} {vcpu}, notifier replaced between"),
            _ if replaced == Replaced::InFlight => format!("{apic} {vcpu}, notifier replaced in flight"),
            Mask::Line if lines > 1 => format!("{apic} {vcpu}, {lines} lines"),
            Mask::Line if sources == 1 => format!("{apic} {vcpu}"),
            Mask::Line | Mask::Function => format!("{apic} {vcpu}, mask = \"{mask}\", {sources} on the line"),
        }
    }

    /// The devices of the configuration: functions of one slot, whose pins are all INTA# and so drive one line.
    fn devices(self) -> String {
        let mask = self.mask;
        let on_line = (0..self.sources).map(|function| format!("00:03.{function}"));
        let others = OTHER_LINES.iter().take(self.other_lines()).map(|(_, bdf)| (*bdf).to_owned());
        let tables = on_line.chain(others).map(|bdf| format!("bdf = \"{bdf}\"\nmask = \"{mask}\"\n"));
        tables.collect::<Vec<_>>().join("\n[[partition.device]]\n")
    }

    fn other_lines(self) -> usize {
        self.lines.saturating_sub(1) as usize
    }

    /// QEMU's words for them.
    fn words(self, tree: &Tree) -> Result<Vec<String>> {
        let mut words = bundle::qemu_words(&tree.root.join(CONFIG))?;
        let word = words.iter_mut().find(|word| *word == DEVICE_WORD);
        let word = word.with_context(|| format!("{CONFIG} asks for no {DEVICE_WORD}"))?;
        if self.sources > 1 {
            *word = format!("{DEVICE_WORD}.0,multifunction=on");
        }
        let others = (1..self.sources)
            .flat_map(|function| ["-device".to_owned(), format!("{DEVICE_WORD}.{function}")]);
        words.extend(others);
        let others = OTHER_LINES.iter().take(self.other_lines()).map(|(word, _)| *word);
        let bridge = (self.lines > 1).then_some(BRIDGE);
        words.extend(
            bridge.into_iter().chain(others).flat_map(|word| ["-device".to_owned(), word.to_owned()]),
        );
        Ok(words)
    }

    pub(super) fn cmdline(self, rounds: u32) -> String {
        let (apic, vcpu, replaced) = (self.apic.name(), self.vcpu.name(), self.replaced.name());
        format!("apic={apic} vcpu={vcpu} replace={replaced} rounds={rounds}")
    }

    /// A machine that counts instructions, with the devices of the guest, and boots `kernel`.
    pub(super) fn machine(self, tree: &Tree, qemu: &Path, kernel: PathBuf) -> Result<Machine> {
        let mut machine = Machine::new(qemu.to_owned(), kernel);
        machine.icount = true;
        machine.words = self.words(tree)?;
        Ok(machine)
    }

    /// The configuration of the guest, which goes round `rounds` times.
    pub(super) fn configuration(self, tree: &Tree, rounds: u32) -> Result<String> {
        let text =
            fs::read_to_string(tree.root.join(CONFIG)).with_context(|| format!("cannot read {CONFIG}"))?;
        let pieces = [(CMDLINE.to_owned(), self.cmdline(rounds)), (DEVICE.to_owned(), self.devices())];
        bundle::exchange(&text, pieces.iter().map(|(old, new)| (old, new))).context(CONFIG)
    }
}
