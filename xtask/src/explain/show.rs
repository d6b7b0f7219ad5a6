//! An explanation for people: who owns what as tables, and the reason of each decision in a line of its own.

use levelhead::irq::Gsi;

use super::{AT_BOOT, BarSaid, DeviceSaid, Explanation, FunctionSaid, LeftOver, PartitionSaid};
use crate::console::table::{Align, Cell, Table};
use crate::console::{BAD, Console, FAINT, GOOD, STRONG, WARNING};

/// Stands for what does not apply.
const NONE: &str = "-";

impl Explanation {
    pub(super) fn show(&self, console: &mut Console) {
        if !self.partitions.is_empty() {
            console.table(&self.owners());
            console.line("");
            console.table(&self.functions());
            console.line("");
        }
        for partition in &self.partitions {
            for device in &partition.devices {
                console.line(console.paint(STRONG, format_args!("{} of {}", device.bdf, partition.name)));
                device.reasons_told().iter().for_each(|line| console.line(format_args!("  {line}")));
            }
        }
        if self.machine {
            console.line(console.paint(STRONG, "left over"));
            self.left_over.told().iter().for_each(|line| console.line(format_args!("  {line}")));
        }
        self.findings.iter().for_each(|finding| console.line(finding));
        let verdict = match (self.good, self.machine) {
            (false, _) => console.paint(BAD, "REFUSED: see the records above"),
            (true, true) => console.paint(GOOD, "OK on the machine of these facts"),
            (true, false) => console.paint(GOOD, "OK as far as it can be judged without facts"),
        }
        .to_string();
        console.line(format_args!("explain: {}: {verdict}", self.file));
    }

    /// Who has which CPU and memory.
    pub(super) fn owners(&self) -> Table {
        let mut table = Table::new([
            ("partition", Align::Left),
            ("CPU", Align::Right),
            ("APIC ID", Align::Right),
            ("memory", Align::Right),
            ("from", Align::Left),
            ("COM1", Align::Left),
            ("debug", Align::Right),
            ("exit", Align::Right),
        ]);
        self.partitions.iter().for_each(|partition| table.row(partition.cells(self.machine)));
        table
    }

    /// Who has which function and line.
    pub(super) fn functions(&self) -> Table {
        let mut table = Table::new([
            ("function", Align::Left),
            ("owner", Align::Left),
            ("device", Align::Left),
            ("line", Align::Left),
            ("vector", Align::Left),
            ("pin", Align::Left),
            ("gate", Align::Left),
        ]);
        for partition in &self.partitions {
            let devices = partition.devices.iter();
            devices.for_each(|device| table.row(device.cells(&partition.name, self.machine)));
        }
        self.left_over.functions.iter().for_each(|function| table.row(function.cells()));
        table
    }
}

/// What is decided; what is not; what there is none of.
fn decided(value: Option<impl ToString>, reason: &str) -> Cell {
    match value {
        Some(value) => Cell::from(value.to_string()),
        None if reason.starts_with(AT_BOOT) => Cell::painted(WARNING, AT_BOOT),
        None => Cell::painted(FAINT, NONE),
    }
}

/// Numbers as a list, if there are any.
fn numbers(numbers: &[impl ToString]) -> Option<String> {
    let texts: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

impl PartitionSaid {
    fn cells(&self, machine: bool) -> [Cell; 8] {
        let missing = if machine { NONE } else { AT_BOOT };
        let port = |port: Option<u16>| decided(port.map(|port| format!("{port:#x}")), NONE);
        [
            Cell::painted(STRONG, &*self.name),
            decided(numbers(&self.cpus), NONE),
            decided(numbers(&self.apics), missing),
            format!("{} KiB", self.memory_bytes >> 10).into(),
            decided(self.memory_at.map(|at| format!("{at:#x}")), AT_BOOT),
            (if self.console { "shown" } else { "not shown" }).into(),
            port(self.debug_port),
            port(self.exit_port),
        ]
    }
}

impl DeviceSaid {
    fn cells(&self, owner: &str, machine: bool) -> [Cell; 7] {
        let missing = if machine { NONE } else { AT_BOOT };
        [
            self.bdf.as_str().into(),
            Cell::painted(STRONG, owner),
            decided(self.id.as_ref(), missing),
            decided(self.gsi.map(Gsi), &self.gsi_reason),
            decided(self.vector.map(|vector| format!("{vector:#04x}")), missing),
            decided(self.virtual_pin, &self.virtual_pin_reason),
            decided(self.gate.as_ref(), &self.gate_reason),
        ]
    }

    /// Every decision with its reason.
    pub(super) fn reasons_told(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |name: &str, value: Option<String>, reason: &str| {
            let text = value.map(|value| format!("{value}: {reason}")).unwrap_or_else(|| reason.to_owned());
            lines.push(format!("{name:<12} {text}"));
        };
        say("line", self.gsi.map(|gsi| Gsi(gsi).to_string()), &self.gsi_reason);
        if self.gate_reason != self.gsi_reason || self.gsi.is_some() {
            let pin = self.virtual_pin.map(|pin| pin.to_string());
            say("virtual pin", pin, &self.virtual_pin_reason);
            say("gate", self.gate.clone(), &self.gate_reason);
        }
        if let Some(standby) = &self.standby {
            let pin = standby.virtual_pin.map(|pin| format!(", at virtual pin {pin}")).unwrap_or_default();
            say("standby", None, &format!("{} may take it over{pin}", standby.partition));
        }
        match (&self.reset, &self.no_reset) {
            (Some(method), _) => say("reset", None, method),
            (None, Some(why)) => say("reset", Some("none".to_owned()), why),
            (None, None) => {}
        }
        self.bars.iter().for_each(|bar| say(&format!("BAR{}", bar.register), None, &bar.told()));
        lines
    }
}

impl BarSaid {
    fn told(&self) -> String {
        let Self { kind, address, bytes, guest_address, .. } = self;
        let guest = match guest_address {
            Some(at) => format!("in the guest at {at:#x}"),
            None => "the same ports in the guest".to_owned(),
        };
        format!("{kind} {address:#x} +{bytes:#x}, {guest}")
    }
}

impl FunctionSaid {
    fn cells(&self) -> [Cell; 4] {
        [
            self.bdf.as_str().into(),
            Cell::painted(FAINT, NONE),
            self.id.as_str().into(),
            decided(self.gsi.map(Gsi), NONE),
        ]
    }

    /// What there is to say of it besides what the table has.
    fn told(&self) -> Option<String> {
        let bridge = self.bridge_to.map(|bus| format!("bridge to bus {bus:02x}"));
        let line = self.gsi.zip(self.line_of.as_ref());
        let line = line.map(|(gsi, owner)| format!("wired to {}, the line of {owner}", Gsi(gsi)));
        let loud = self.loud.as_ref().map(|fault| format!("cannot be silenced: {fault}"));
        let told: Vec<_> = bridge.into_iter().chain(line).chain(loud).collect();
        (!told.is_empty()).then(|| format!("{}: {}", self.bdf, told.join(", ")))
    }
}

impl LeftOver {
    pub(super) fn told(&self) -> Vec<String> {
        let cpus: Vec<_> = self.cpus.iter().map(ToString::to_string).collect();
        let cpus = if cpus.is_empty() { "none".to_owned() } else { cpus.join(" ") };
        let mut lines = vec![format!("CPUs: {cpus}")];
        if let Some(bytes) = self.memory_bytes {
            lines.push(format!("memory: {} KiB, for bundle and tables too", bytes >> 10));
        }
        lines.extend(self.functions.iter().filter_map(FunctionSaid::told));
        lines.extend(self.shared_pages.iter().map(|shared| format!("shared: {shared}")));
        lines
    }
}
