//! `config explain`: what a configuration means, on the machine that a facts file describes, or as far as it means anything
//! without one.
//!
//! Every decision is the library's (`levelhead::decide`), the one that boot carries out. What depends on a machine that is not
//! known is said to be decided at boot.
//!
//! * here: what is said, which is the report for machines too;
//! * `show`: the same for people.

mod show;

use std::path::PathBuf;

use anyhow::{Result, bail};
use levelhead::config::{self, Config, Partition};
use levelhead::decide::{DevicePlan, GateChoice, GateReason, Intx, Line, PartitionPlan, Plan, decide};
use levelhead::facts::{Facts, Routing};
use levelhead::irq::{CpuId, Gsi};
use levelhead::pci::bar::conflict;
use levelhead::pci::route::{RouteSource, resolve};
use levelhead::pci::{Bdf, Function, Header};
use serde::Serialize;

use crate::build::Tree;
use crate::check::Record;
use crate::config::{Finding, LoadedConfig, Problems};
use crate::console::{Console, json};
use crate::{Reported, bundle, facts};

/// What the report for machines is called.
const REPORT: &str = "config-explain";
/// What is said instead of a decision that cannot be made yet.
const AT_BOOT: &str = "decided at boot";

/// What `config explain` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A name of `configs/`, or a path.
    pub config: String,
    /// The machine's facts.
    pub facts: Option<PathBuf>,
    /// Whether to print JSON.
    pub json: bool,
}

/// Explains the configuration.
///
/// # Errors
/// When boot would refuse it, and when one of the files is no good; everything that is wrong has been printed then.
pub fn explain(tree: &Tree, options: &Options) -> Result<()> {
    let path = bundle::config_path(tree, &options.config);
    let file = tree.shown(&path).to_string();
    let mut console = Console::beside(options.json);
    // Mistakes of both files are told in one go.
    let facts = options.facts.as_deref().map(facts::load).transpose();
    let said = match (bundle::load(tree, &path, bundle::Guests::Build), facts) {
        (Ok(loaded), Ok(facts)) => Explanation::new(file, &loaded, facts.as_ref()),
        (loaded, facts) => {
            let problems = loaded.err().into_iter().chain(facts.err());
            Explanation::unread(file, problems.flat_map(Problems::into_findings).collect())
        }
    };
    if options.json {
        json::print(REPORT, &said)?;
    } else {
        said.show(&mut console);
    }
    if said.good { Ok(()) } else { bail!(Reported) }
}

/// All that is said of one configuration.
#[derive(Debug, Serialize)]
pub struct Explanation {
    file: String,
    /// Whether boot would come as far as the guests, by all that is known.
    good: bool,
    /// Whether the machine is known.
    machine: bool,
    partitions: Vec<PartitionSaid>,
    left_over: LeftOver,
    records: Vec<Record>,
    #[serde(skip)]
    findings: Vec<Finding>,
}

/// A partition. What is not known is null or empty.
#[derive(Debug, Serialize)]
struct PartitionSaid {
    name: String,
    cpus: Vec<u8>,
    /// The identifiers of their local APICs.
    apics: Vec<u32>,
    memory_bytes: u64,
    /// Where its memory begins, if the configuration says.
    memory_at: Option<u64>,
    console: bool,
    terminal: bool,
    debug_port: Option<u16>,
    exit_port: Option<u16>,
    test_device: bool,
    devices: Vec<DeviceSaid>,
}

/// A device. What is not known, or does not apply, is null; the reasons are always there.
#[derive(Debug, Serialize)]
struct DeviceSaid {
    bdf: String,
    id: Option<String>,
    class: Option<String>,
    gsi: Option<u32>,
    gsi_reason: String,
    vector: Option<u8>,
    virtual_pin: Option<u8>,
    virtual_pin_reason: String,
    gate: Option<String>,
    gate_reason: String,
    /// Who may take it over.
    standby: Option<StandbySaid>,
    /// What resets it.
    reset: Option<String>,
    /// Why nothing does.
    no_reset: Option<String>,
    bars: Vec<BarSaid>,
}

/// A partition that may take a device over.
#[derive(Debug, Serialize)]
struct StandbySaid {
    partition: String,
    /// The input of its guest's IO-APIC.
    virtual_pin: Option<u8>,
}

/// A base address register.
#[derive(Debug, Serialize)]
struct BarSaid {
    register: u8,
    kind: String,
    address: u64,
    bytes: u64,
    /// Where the guest finds memory at first; it finds ports where they are.
    guest_address: Option<u64>,
}

/// What belongs to nobody, and what is shared.
#[derive(Debug, Default, Serialize)]
struct LeftOver {
    cpus: Vec<u8>,
    memory_bytes: Option<u64>,
    functions: Vec<FunctionSaid>,
    shared_pages: Vec<String>,
}

/// A function that nobody owns.
#[derive(Debug, Serialize)]
struct FunctionSaid {
    bdf: String,
    id: String,
    class: String,
    /// The bus that it leads to.
    bridge_to: Option<u8>,
    /// The line that its pin is wired to.
    gsi: Option<u32>,
    /// The device that owns that line.
    line_of: Option<String>,
    /// Why it cannot be silenced, if it may disturb a line.
    loud: Option<String>,
}

impl Explanation {
    /// What `loaded` means on the machine of `facts`.
    pub fn new(file: String, loaded: &LoadedConfig, facts: Option<&Facts>) -> Self {
        let plan = decide(&loaded.config, loaded.images.len(), facts);
        let partitions = loaded.config.partitions.iter().zip(&plan.partitions);
        let mut partitions: Vec<_> =
            partitions.map(|(partition, planned)| PartitionSaid::new(partition, planned)).collect();
        for (planned, partition) in plan.partitions.iter().zip(&loaded.config.partitions) {
            for standby in &planned.standbys {
                partitions[standby.owner].devices[standby.device].standby = Some(StandbySaid {
                    partition: partition.name.clone(),
                    virtual_pin: standby.vpin.map(|pin| pin.0),
                });
            }
        }
        let findings = plan.findings.iter();
        let findings: Vec<_> =
            findings.map(|finding| loaded.finding(&finding.path, finding.refusal.clone())).collect();
        Self {
            file,
            good: findings.is_empty(),
            machine: facts.is_some(),
            partitions,
            left_over: facts.map(|facts| LeftOver::new(&loaded.config, &plan, facts)).unwrap_or_default(),
            records: findings.iter().map(Record::new).collect(),
            findings,
        }
    }

    /// A file, its own or the facts', that cannot be read.
    fn unread(file: String, findings: Vec<Finding>) -> Self {
        Self {
            file,
            good: false,
            machine: false,
            partitions: Vec::new(),
            left_over: LeftOver::default(),
            records: findings.iter().map(Record::new).collect(),
            findings,
        }
    }

    /// Every device as the hypervisor's table of lines shows it at boot, with single spaces, up to the number of handlers.
    pub fn table_of_lines(&self) -> Vec<String> {
        let row = |index: usize, name: &str, device: &DeviceSaid| {
            let DeviceSaid { bdf, gsi, vector, virtual_pin, gate, .. } = device;
            match (gsi, vector, virtual_pin, gate) {
                (Some(gsi), Some(vector), Some(pin), Some(gate)) => {
                    format!("{bdf} {name} {} {vector:#04x} {gate} partition {index} pin {pin}", Gsi(*gsi))
                }
                _ => format!("{bdf} {name} no INTx"),
            }
        };
        let partitions = self.partitions.iter().enumerate();
        let rows = partitions.flat_map(|(index, partition)| {
            partition.devices.iter().map(move |device| row(index, &partition.name, device))
        });
        rows.collect()
    }

    /// Everything that is wrong.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

impl PartitionSaid {
    fn new(partition: &Partition, planned: &PartitionPlan) -> Self {
        Self {
            name: partition.name.clone(),
            cpus: partition.cpus.iter().map(|cpu| cpu.0).collect(),
            apics: planned.cpus.iter().flatten().map(|(_, apic)| apic.0).collect(),
            memory_bytes: partition.memory_bytes,
            memory_at: partition.memory_at.map(|at| at.raw()),
            console: partition.console != config::Console::Hidden,
            terminal: partition.console == config::Console::Terminal,
            debug_port: partition.debug_port,
            exit_port: partition.exit_port,
            test_device: partition.test_device,
            devices: planned.devices.iter().map(DeviceSaid::new).collect(),
        }
    }
}

impl DeviceSaid {
    fn new(device: &DevicePlan) -> Self {
        let function = device.function.as_ref();
        let mut said = Self {
            bdf: device.bdf.to_string(),
            id: function.map(id),
            class: function.map(|function| function.class.to_string()),
            gsi: None,
            gsi_reason: String::new(),
            vector: None,
            virtual_pin: None,
            virtual_pin_reason: String::new(),
            gate: None,
            gate_reason: String::new(),
            standby: None,
            reset: device.reset.and_then(Result::ok).map(|method| method.to_string()),
            no_reset: device.reset.and_then(Result::err).map(|why| why.to_string()),
            bars: bars(device),
        };
        match &device.intx {
            Intx::None => said.reasons("no INTx: the function has no interrupt pin"),
            Intx::Refused => said.reasons("none: refused, as a record says"),
            Intx::Line(line) => said.line(line),
            Intx::AtBoot { gsi, vpin, gate, open } => {
                said.reasons(&format!("{AT_BOOT}: {open}"));
                said.gate(*gate);
                if let Some(gsi) = gsi {
                    said.gsi = Some(gsi.0);
                    said.gsi_reason =
                        "`gsi` in the configuration, if the function has an interrupt pin".to_owned();
                }
                if let Some((pin, reason)) = vpin {
                    said.virtual_pin = Some(pin.0);
                    said.virtual_pin_reason = reason.to_string();
                }
            }
        }
        said
    }

    fn reasons(&mut self, reason: &str) {
        for place in [&mut self.gsi_reason, &mut self.virtual_pin_reason, &mut self.gate_reason] {
            reason.clone_into(place);
        }
    }

    fn line(&mut self, line: &Line) {
        self.gsi = Some(line.route.gsi.0);
        self.gsi_reason = match line.source {
            RouteSource::Configuration => format!("`gsi` in the configuration, for {}", line.pin),
            RouteSource::Firmware { bus, device, pin } => {
                let way = match line.swizzles {
                    0 => String::new(),
                    1 => format!(", which {} is behind 1 bridge", line.pin),
                    more => format!(", which {} is behind {more} bridges", line.pin),
                };
                format!("_PRT entry of {bus:02x}:{device:02x} {pin}{way}")
            }
        };
        self.vector = Some(line.vector.get());
        self.virtual_pin = Some(line.vpin.0);
        self.virtual_pin_reason = line.vpin_reason.to_string();
        self.gate(line.gate);
    }

    fn gate(&mut self, gate: GateChoice) {
        match gate {
            GateChoice::Made(gate, reason) => {
                self.gate = Some(gate.to_string());
                self.gate_reason = reason.to_string();
            }
            GateChoice::ByProof(GateReason::Proved) => {
                self.gate_reason =
                    format!("{AT_BOOT}: DisINTx if it proves to work, as `mask = \"function\"` asks");
            }
            GateChoice::ByProof(reason) => {
                self.gate_reason = format!("{AT_BOOT}: DisINTx if it proves to work; {reason}");
            }
            GateChoice::BySharers => {
                self.gate_reason = format!("{AT_BOOT}: it depends on who shares the line")
            }
        }
    }
}

/// Vendor and device.
fn id(function: &Function) -> String {
    format!("{:04x}:{:04x}", function.vendor_id, function.device_id)
}

/// The registers of a device and where its guest finds them.
fn bars(device: &DevicePlan) -> Vec<BarSaid> {
    let Some((function, placement)) = device.function.as_ref().zip(device.bars) else { return Vec::new() };
    let bars = function.bars.iter().map(|bar| BarSaid {
        register: bar.index().get(),
        kind: bar.kind().to_string(),
        address: bar.address(),
        bytes: bar.bytes(),
        guest_address: placement.get(bar.index()).map(|at| at.raw()),
    });
    bars.collect()
}

impl LeftOver {
    fn new(config: &Config, plan: &Plan, facts: &Facts) -> Self {
        let owned = |bdf: Bdf| {
            config.partitions.iter().flat_map(|partition| &partition.devices).any(|device| device.bdf == bdf)
        };
        let taken = |cpu: u8| config.partitions.iter().any(|partition| partition.cpus.contains(&CpuId(cpu)));
        let wanted =
            config.partitions.iter().fold(0_u64, |sum, partition| sum.saturating_add(partition.memory_bytes));
        let nobodys = facts.functions.iter().filter(|function| !owned(function.bdf));
        let mut shared_pages = Vec::new();
        for partition in &config.partitions {
            let own = |bdf: Bdf| partition.devices.iter().any(|device| device.bdf == bdf);
            let functions = partition.devices.iter().filter_map(|device| facts.function(device.bdf));
            let shared = functions.filter_map(|function| conflict(function, &facts.functions, own));
            shared_pages
                .extend(shared.map(|shared| format!("{shared}, both of partition {}", partition.name)));
        }
        Self {
            cpus: (0..=u8::MAX).take(facts.cpus.len()).filter(|cpu| !taken(*cpu)).collect(),
            memory_bytes: facts.free_bytes.checked_sub(wanted),
            functions: nobodys.map(|function| FunctionSaid::new(function, plan, facts)).collect(),
            shared_pages,
        }
    }
}

impl FunctionSaid {
    fn new(function: &Function, plan: &Plan, facts: &Facts) -> Self {
        let line = match (function.interrupt_pin, &facts.routing) {
            (Some(pin), Routing::Known { entries, .. }) => {
                resolve(function.bdf, pin, None, &facts.topology, entries).ok().map(|(route, _)| route.gsi)
            }
            _ => None,
        };
        let mut devices = plan.partitions.iter().flat_map(|partition| &partition.devices);
        let owner = devices.find(|device| match device.intx {
            Intx::Line(other) => Some(other.route.gsi) == line,
            Intx::None | Intx::AtBoot { .. } | Intx::Refused => false,
        });
        let loud = plan.bystanders.iter().find(|bystander| bystander.bdf == function.bdf);
        Self {
            bdf: function.bdf.to_string(),
            id: id(function),
            class: function.class.to_string(),
            bridge_to: match function.header {
                Header::Bridge { secondary, .. } => Some(secondary),
                Header::Endpoint | Header::Other(_) => None,
            },
            gsi: line.map(|gsi| gsi.0),
            line_of: owner.map(|device| device.bdf.to_string()),
            loud: loud.map(|bystander| bystander.fault.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
