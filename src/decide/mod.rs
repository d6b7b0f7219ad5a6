//! What a configuration means on a machine: every decision that follows from the two alone, and everything that is
//! wrong with the pair.
//!
//! The hypervisor comes to these decisions at boot and then carries them out; a tool that has the machine's [`Facts`] comes
//! to the same ones by the same code. What neither can know beforehand is [`Intx::AtBoot`] or [`GateChoice::ByProof`],
//! never a guess. Nothing here touches hardware.
//!
//! ```text
//! configuration + facts -> decide() -> plan: CPU, guest BARs, line, vector, virtual pin, gate of every device
//!                                      findings: each refusal with the key that causes it
//! ```
//!
//! * here: the plan;
//! * `gate`: which gate a line gets;
//! * `sharing`: what several devices on a line have to say about it;
//! * `memory`: the memory that the configuration places.

mod gate;
mod memory;
mod sharing;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::addr::GuestPhys;
use crate::config::{self, Config, Device, KeyPath, Partition, Violation};
use crate::facts::{Facts, MemoryKind, PlaceOnBus, Routing};
use crate::frames::{Frames, Range};
use crate::irq::{ApicId, CpuId, Gsi, Pin, Vector};
use crate::message::{Message, Refusal};
use crate::pci::bar::{conflict, trespass};
use crate::pci::pin::DisIntxFault;
use crate::pci::reset::{Method, NoMethod};
use crate::pci::route::{RouteSource, resolve};
use crate::pci::virtual_bar::{BarPlacer, BarWindow, Placement};
use crate::pci::{BarIndex, Bdf, Function, IntPin, PinRoute, VirtualConfig};
use crate::policy::{DevicePolicy, NoReset};
use crate::virq::{Contributor, MAX_VCPUS};

pub use gate::{GateChoice, GateReason, Sharer, Unsilenced};
pub use memory::claim;

/// Where guests find the BARs of their functions at first, and may move them to.
pub const BAR_WINDOW: BarWindow =
    BarWindow::new(GuestPhys::new(0xe000_0000), GuestPhys::new(0xfe00_0000)).unwrap();
/// The vector of the first line; each line gets one of its own, upwards, in the order of the configuration. Devices on one
/// line have its vector in common.
pub const FIRST_LINE_VECTOR: u8 = 0x40;
/// Devices with INTx in the whole machine: each needs a contributor number of its own at the virtual pins, beside the
/// guest's platform.
pub const MAX_SOURCES: u8 = Contributor::SOURCES;

/// The same of a machine with this configuration: where a guest has a test device, that needs a number too.
fn most_sources(config: &Config) -> u8 {
    let tested = config.partitions.iter().any(|partition| partition.test_device);
    MAX_SOURCES - u8::from(tested)
}

const _: () = assert!(config::MAX_CPUS <= MAX_VCPUS as usize, "each has a virtual CPU");

/// Something that keeps the machine from being started as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key that causes it.
    pub path: KeyPath,
    /// The record; its place is the path.
    pub refusal: Refusal,
}

impl Finding {
    fn new(path: KeyPath, message: Message, what: impl Into<String>) -> Self {
        let refusal = Refusal::new(message, path.to_string(), what);
        Self { path, refusal }
    }
}

impl From<Violation> for Finding {
    fn from(violation: Violation) -> Self {
        let refusal = violation.refusal();
        Self { path: violation.path, refusal }
    }
}

/// All decisions, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The partitions.
    pub partitions: Vec<PartitionPlan>,
    /// What is wrong; the decisions beside it are those that could be made all the same.
    pub findings: Vec<Finding>,
    /// Functions that may disturb the lines in use, though they are left to nobody.
    pub bystanders: Vec<Bystander>,
}

/// A function that is left to nobody, has an interrupt pin, and cannot be silenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bystander {
    /// The function.
    pub bdf: Bdf,
    /// Why it cannot be silenced.
    pub fault: DisIntxFault,
    /// The line that its pin drives, one in use; `None` when that is not known.
    pub gsi: Option<Gsi>,
}

/// What becomes of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionPlan {
    /// The CPUs it runs on and their local APICs; `None` when the machine lacks one, or is not known.
    pub cpus: Option<Vec<(CpuId, ApicId)>>,
    /// Its devices.
    pub devices: Vec<DevicePlan>,
    /// The devices of others that it may take over.
    pub standbys: Vec<StandbyPlan>,
}

/// A device of another partition, as the one that may take it over will have it: its BARs and what else does not depend on who has
/// it are as its owner has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyPlan {
    /// The number of its owner.
    pub owner: usize,
    /// The number of the device in there.
    pub device: usize,
    /// The input of this guest's IO-APIC, if the device has a line and it is known.
    pub vpin: Option<Pin>,
}

/// What becomes of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    /// The device's table in the configuration.
    pub path: KeyPath,
    /// The function.
    pub bdf: Bdf,
    /// Its description; `None` when the machine has no such function, or is not known.
    pub function: Option<Function>,
    /// Where the guest finds its BARs at first; `None` when that is not known or not possible.
    pub bars: Option<Placement>,
    /// Its interrupt.
    pub intx: Intx,
    /// What is done about its misbehaviour.
    pub policy: DevicePolicy,
    /// Whether another partition may take it over.
    pub moves: bool,
    /// What resets it before its partition starts again, or why nothing can; `None` when the function is not known.
    pub reset: Option<Result<Method, NoMethod>>,
}

/// What becomes of a device's interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intx {
    /// The function has no interrupt pin.
    None,
    /// It drives a line.
    Line(Line),
    /// Not to be known before boot, but for what the configuration says: its line, its virtual pin, its gate.
    AtBoot {
        /// The line, if the function has a pin.
        gsi: Option<Gsi>,
        /// The virtual pin and why.
        vpin: Option<(Pin, VpinReason)>,
        /// The gate.
        gate: GateChoice,
        /// What has to be known first.
        open: Open,
    },
    /// It has none that could be used; a finding says why.
    Refused,
}

impl Intx {
    /// The virtual pin of a device whose line is known.
    pub const fn vpin(&self) -> Option<Pin> {
        match self {
            Self::Line(line) => Some(line.vpin),
            Self::None | Self::AtBoot { .. } | Self::Refused => None,
        }
    }
}

/// The line of a device, from its pin to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The function's own pin.
    pub pin: IntPin,
    /// Where the pin leads.
    pub route: PinRoute,
    /// Who said so.
    pub source: RouteSource,
    /// How many bridges lie between the pin and the place that source speaks of.
    pub swizzles: u8,
    /// The vector on the partition's CPU.
    pub vector: Vector,
    /// The APIC ID the line's interrupts are sent to, as a redirection table entry holds it.
    pub destination: u8,
    /// The input of the guest's IO-APIC.
    pub vpin: Pin,
    /// Why this one.
    pub vpin_reason: VpinReason,
    /// What silences the line.
    pub gate: GateChoice,
    /// Whether the function's DisINTx works, if that was tried.
    pub dis_intx: Option<Result<(), DisIntxFault>>,
}

/// Why a device's interrupt is not decided yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Nothing is known of the machine.
    Machine,
    /// Firmware has not been asked where the pin leads.
    Firmware,
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "the machine is not known",
            Self::Firmware => "the firmware's _PRT has not been asked",
        })
    }
}

/// Why a line drives this virtual pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VpinReason {
    /// The configuration says `vpin`.
    Configured,
    /// It has the number of the GSI.
    NumberOfGsi,
}

impl fmt::Display for VpinReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configured => "`vpin` in the configuration",
            Self::NumberOfGsi => "the number of the GSI",
        })
    }
}

/// The devices whose line only firmware knows.
pub fn unrouted(config: &Config, facts: &Facts) -> Vec<Bdf> {
    let devices = config.partitions.iter().flat_map(|partition| &partition.devices);
    let open = devices.filter(|device| device.gsi.is_none());
    let has_pin = |bdf: &Bdf| facts.function(*bdf).is_some_and(|function| function.interrupt_pin.is_some());
    open.map(|device| device.bdf).filter(has_pin).collect()
}

/// The functions that nobody gets and that nobody can silence, as far as that was tried. The others are silenced at boot, so
/// that no line is held by a device without a driver.
pub fn loud(config: &Config, facts: &Facts) -> Vec<(Bdf, DisIntxFault)> {
    let assigned = |bdf| {
        config.partitions.iter().flat_map(|partition| &partition.devices).any(|device| device.bdf == bdf)
    };
    let proofs = facts.proofs.iter().filter(|proof| !assigned(proof.bdf));
    proofs.filter_map(|proof| Some((proof.bdf, proof.dis_intx?.err()?))).collect()
}

/// Every place that firmware may answer for these functions, each once.
pub fn places(facts: &Facts, functions: impl IntoIterator<Item = Bdf>) -> Vec<PlaceOnBus> {
    let mut places = Vec::new();
    for place in functions.into_iter().flat_map(|bdf| facts.places(bdf)) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Decides what `config`, whose image indices count `images` images, means on the machine that `facts` describe.
///
/// A configuration that breaks a rule of its own is found out as by [`config::validate`], with the lines filled in that
/// only the machine knows. Without facts nothing is decided that depends on them.
pub fn decide(config: &Config, images: usize, facts: Option<&Facts>) -> Plan {
    let mut planner = Planner {
        facts,
        reserved: facts.map(Facts::reserved).unwrap_or_default(),
        moving: BarPlacer::new(BAR_WINDOW),
        places: Vec::new(),
        sources: 0,
        most_sources: most_sources(config),
        vectors: Vec::new(),
        memory_left: facts.map(|facts| facts.free_bytes),
        findings: Vec::new(),
    };
    planner.place_moving(config);
    // The configuration as it reads with every line filled in.
    let mut routed = config.clone();
    let mut partitions = Vec::new();
    for (index, (partition, routed)) in config.partitions.iter().zip(&mut routed.partitions).enumerate() {
        let path = KeyPath::root().key("partition").index(index);
        let moves = partition.devices.iter().any(|device| device.standby.is_some());
        let placer = if moves || config.standbys(index).next().is_some() {
            planner.moving
        } else {
            BarPlacer::new(BAR_WINDOW)
        };
        partitions.push(planner.partition(&path, partition, placer, routed));
    }
    planner.share(config, &mut partitions);
    stand_by(config, &mut partitions);
    let bystanders = facts.map(|facts| bystanders(config, facts, &partitions)).unwrap_or_default();
    let mut findings = facts.map(|facts| misplaced(config, facts)).unwrap_or_default();
    findings.append(&mut planner.findings);
    let violations = config::validate(&routed, images).err().unwrap_or_default();
    findings.extend(violations.into_iter().map(Finding::from));
    Plan { partitions, findings, bystanders }
}

/// The loud functions whose line is in use, or not known.
fn bystanders(config: &Config, facts: &Facts, partitions: &[PartitionPlan]) -> Vec<Bystander> {
    let in_use = |gsi| {
        let mut devices = partitions.iter().flat_map(|partition| &partition.devices);
        devices.any(|device| matches!(device.intx, Intx::Line(line) if line.route.gsi == gsi))
    };
    let judge = |(bdf, fault)| {
        let pin = facts.function(bdf)?.interrupt_pin?;
        let route = resolve(bdf, pin, None, &facts.topology, facts.routing.entries());
        let gsi = route.ok().map(|(route, _)| route.gsi);
        gsi.is_none_or(in_use).then_some(Bystander { bdf, fault, gsi })
    };
    loud(config, facts).into_iter().filter_map(judge).collect()
}

/// What is wrong with the places of memory, as far as the memory map shows it: where the hypervisor and its bundle lie is up to
/// the loader.
fn misplaced(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut frames = Frames::new();
    let usable = facts.memory.iter().filter(|entry| entry.kind == MemoryKind::Usable);
    for range in usable.filter_map(|entry| Range::inside(entry.start, entry.bytes)) {
        // What is too many pieces is of no use to boot either.
        let _ = frames.add(range);
    }
    claim(config, &mut frames, &facts.memory, &[])
}

/// Who may take which device over, and at which virtual pin.
fn stand_by(config: &Config, partitions: &mut [PartitionPlan]) {
    for index in 0..partitions.len() {
        let plans = config.standbys(index).map(|(owner, device, standby)| {
            let intx = partitions.get(owner).and_then(|plan| plan.devices.get(device)).map(|plan| &plan.intx);
            let own = intx.and_then(|intx| match intx {
                Intx::Line(line) => Some(line.vpin),
                Intx::AtBoot { vpin, .. } => vpin.map(|(pin, _)| pin),
                Intx::None | Intx::Refused => None,
            });
            let at_boot = matches!(intx, Some(Intx::AtBoot { .. }));
            let vpin = standby.vpin.filter(|_| own.is_some() || at_boot).or(own);
            StandbyPlan { owner, device, vpin }
        });
        let plans = plans.collect();
        if let Some(partition) = partitions.get_mut(index) {
            partition.standbys = plans;
        }
    }
}

struct Planner<'a> {
    facts: Option<&'a Facts>,
    reserved: Vec<Range>,
    /// The guests' places of BARs of functions that may move, which are the same in all guests: what is left behind them, and the
    /// places.
    moving: BarPlacer,
    places: Vec<(Bdf, Result<Placement, BarIndex>)>,
    sources: u8,
    most_sources: u8,
    /// The lines in use, each with its vector.
    vectors: Vec<(Gsi, Vector)>,
    memory_left: Option<u64>,
    findings: Vec<Finding>,
}

impl Planner<'_> {
    fn refuse(&mut self, path: KeyPath, message: Message, what: impl Into<String>) {
        self.findings.push(Finding::new(path, message, what));
    }

    /// Places the BARs of functions that may move, before any others.
    fn place_moving(&mut self, config: &Config) {
        let Some(facts) = self.facts else { return };
        let devices = config.partitions.iter().flat_map(|partition| &partition.devices);
        let moving = devices.filter(|device| device.standby.is_some());
        for function in moving.filter_map(|device| facts.function(device.bdf)) {
            let place = self.moving.place(function);
            self.places.push((function.bdf, place));
        }
    }

    fn partition(
        &mut self,
        path: &KeyPath,
        partition: &Partition,
        mut placer: BarPlacer,
        routed: &mut Partition,
    ) -> PartitionPlan {
        let cpus = self.cpus(path, partition);
        self.memory(path.key("memory"), partition.memory_bytes);
        let mut devices = Vec::new();
        for (index, (device, routed)) in partition.devices.iter().zip(&mut routed.devices).enumerate() {
            let path = path.key("device").index(index);
            devices.push(self.device(path, device, partition, cpus.as_deref(), &mut placer, routed));
        }
        together(&mut devices);
        PartitionPlan { cpus, devices, standbys: Vec::new() }
    }

    /// The partition's CPUs, which the machine must have.
    fn cpus(&mut self, path: &KeyPath, partition: &Partition) -> Option<Vec<(CpuId, ApicId)>> {
        let facts = self.facts?;
        let mut cpus = Vec::new();
        for (index, &cpu) in partition.cpus.iter().enumerate() {
            match facts.apic(cpu) {
                Some(apic) => cpus.push((cpu, apic)),
                None => {
                    let what = format!("CPU {} does not exist; this machine has {}", cpu.0, facts.cpus.len());
                    self.refuse(path.key("cpus").index(index), Message::CpuMissing, what);
                }
            }
        }
        (cpus.len() == partition.cpus.len()).then_some(cpus)
    }

    /// The partition's memory. Its tables come on top, so that even what passes here may find too little at boot.
    fn memory(&mut self, path: KeyPath, bytes: u64) {
        let Some(left) = self.memory_left else { return };
        match left.checked_sub(bytes) {
            Some(rest) => self.memory_left = Some(rest),
            // The next partition is judged as if this one took nothing.
            None => {
                let (wanted, left) = (bytes >> 20, left >> 20);
                let what =
                    format!("the machine has not enough memory left: {wanted} MiB wanted, {left} MiB there");
                self.refuse(path, Message::MemoryMissing, what);
            }
        }
    }

    fn device(
        &mut self,
        path: KeyPath,
        device: &Device,
        partition: &Partition,
        cpus: Option<&[(CpuId, ApicId)]>,
        placer: &mut BarPlacer,
        routed: &mut Device,
    ) -> DevicePlan {
        let mut plan = DevicePlan {
            path: path.clone(),
            bdf: device.bdf,
            function: None,
            bars: None,
            intx: Intx::Refused,
            policy: device.policy,
            moves: device.standby.is_some(),
            reset: None,
        };
        let Some(facts) = self.facts else {
            plan.intx = at_boot(device, Open::Machine);
            return plan;
        };
        let Some(function) = facts.function(device.bdf) else {
            let what = format!("{} does not exist on this machine", device.bdf);
            self.refuse(path.key("bdf"), Message::DeviceMissing, what);
            return plan;
        };
        plan.function = Some(*function);
        let own = |bdf: Bdf| stay_together(partition, device, bdf);
        let reset = Method::choose(function, &facts.functions, &facts.topology, own);
        if let (Err(why), NoReset::Refuse) = (reset, device.policy.no_reset) {
            self.refuse(path.key("no-reset"), Message::NoReset, format!("{}: {why}", device.bdf));
        }
        plan.reset = Some(reset);
        let place = path.key("bdf");
        match self.bars(facts, function, own, placer) {
            Ok(placement) => plan.bars = Some(placement),
            Err((message, what)) => self.refuse(place, message, format!("{}: {what}", device.bdf)),
        }
        plan.intx = match function.interrupt_pin {
            None => {
                routed.gsi = None;
                Intx::None
            }
            Some(pin) => match self.line(&path, facts, device, pin, cpus, routed) {
                Ok(intx) => intx,
                Err((path, message, what)) => {
                    self.refuse(path, message, format!("{}: {what}", device.bdf));
                    Intx::Refused
                }
            },
        };
        plan
    }

    /// Where the guest finds the function's BARs. Nested paging protects pages: no page of one may hold anything of
    /// somebody else's.
    fn bars(
        &self,
        facts: &Facts,
        function: &Function,
        own: impl Fn(Bdf) -> bool,
        placer: &mut BarPlacer,
    ) -> Result<Placement, (Message, String)> {
        // A bridge fails whatever its BARs are, and then they are of no interest.
        let judge = |placement: &Placement| {
            VirtualConfig::judge(function, placement, BAR_WINDOW)
                .map_err(|error| (error.message(), error.to_string()))
        };
        judge(&Placement::default())?;
        if let Some(conflict) = conflict(function, &facts.functions, |bdf| !own(bdf)) {
            return Err((Message::BarShared, format!("{conflict}, which is not this partition's for good")));
        }
        if let Some(trespass) = trespass(function, &self.reserved) {
            return Err((Message::BarOverlap, trespass.to_string()));
        }
        let moving = self.places.iter().find(|(bdf, _)| *bdf == function.bdf);
        let placement = moving
            .map_or_else(|| placer.place(function), |(_, place)| *place)
            .map_err(|bar| (Message::BarRoom, format!("no room is left in the guest's window for {bar}")))?;
        judge(&placement).map(|()| placement)
    }

    /// The way of the function's interrupt.
    fn line(
        &mut self,
        path: &KeyPath,
        facts: &Facts,
        device: &Device,
        pin: IntPin,
        cpus: Option<&[(CpuId, ApicId)]>,
        routed: &mut Device,
    ) -> Result<Intx, (KeyPath, Message, String)> {
        let at_key = path.key("gsi");
        match (device.gsi, &facts.routing) {
            (None, Routing::NotAsked) => return Ok(at_boot(device, Open::Firmware)),
            (None, Routing::Unknown(why)) => {
                let what = format!("the firmware's _PRT is not known: {why}");
                return Err((at_key, Message::AmlGaveUp, what));
            }
            (None, Routing::Known { .. }) | (Some(_), _) => {}
        }
        let configured = device.gsi.map(|gsi| {
            let mut route = PinRoute::pci(gsi);
            let stated = facts.overrides.iter().find(|entry| entry.gsi == gsi);
            route.polarity = stated.and_then(|entry| entry.polarity).unwrap_or(route.polarity);
            route
        });
        let (route, source) = resolve(device.bdf, pin, configured, &facts.topology, facts.routing.entries())
            .map_err(|error| (at_key.clone(), Message::NoRoute, error.to_string()))?;
        routed.gsi = Some(route.gsi);
        if !facts.has_line(route.gsi) {
            return Err((at_key, Message::LineMissing, format!("no IO-APIC has {}", route.gsi)));
        }
        // Whether the virtual pin exists and is free is among the rules of the configuration, now that the line is known.
        let Some((vpin, vpin_reason)) = virtual_pin(device, Some(route.gsi)) else {
            return Ok(Intx::Refused);
        };
        // Without the CPUs there is nobody to be interrupted, as a finding says already.
        let Some(cpus) = cpus else { return Ok(Intx::Refused) };
        // The line may go to each of them one day.
        if let Some((cpu, apic)) = cpus.iter().find(|(_, apic)| u8::try_from(apic.0).is_err()) {
            let what = format!("CPU {}'s APIC ID {} does not fit a redirection table entry", cpu.0, apic.0);
            return Err((path.key("bdf"), Message::TargetApic, what));
        }
        let first = cpus.first().and_then(|(_, apic)| u8::try_from(apic.0).ok());
        let Some(destination) = first else { return Ok(Intx::Refused) };
        let vector = self.vector(route.gsi).ok_or_else(|| {
            let what = format!("more than {} devices with INTx", self.most_sources);
            (path.key("bdf"), Message::DeviceLimit, what)
        })?;
        let swizzles = swizzles(facts, device.bdf, source);
        // What its sharers have to say about it comes when all are known.
        let gate = GateChoice::BySharers;
        let dis_intx = facts.dis_intx(device.bdf);
        Ok(Intx::Line(Line {
            pin,
            route,
            source,
            swizzles,
            vector,
            destination,
            vpin,
            vpin_reason,
            gate,
            dis_intx,
        }))
    }

    /// The vector for one more device on the line; `None` if there are too many.
    fn vector(&mut self, gsi: Gsi) -> Option<Vector> {
        if self.sources >= self.most_sources {
            return None;
        }
        self.sources += 1;
        if let Some((_, vector)) = self.vectors.iter().find(|(other, _)| *other == gsi) {
            return Some(*vector);
        }
        let lines = u8::try_from(self.vectors.len()).ok()?;
        let vector = FIRST_LINE_VECTOR.checked_add(lines).and_then(Vector::new)?;
        self.vectors.push((gsi, vector));
        Some(vector)
    }
}

/// Whether the function `bdf` belongs to the partition as long as `device` of the same partition does.
fn stay_together(partition: &Partition, device: &Device, bdf: Bdf) -> bool {
    let stays = |device: &Device| device.standby.is_none();
    let of_partition = |bdf| partition.devices.iter().any(|other| other.bdf == bdf && stays(other));
    bdf == device.bdf || stays(device) && of_partition(bdf)
}

/// Where a bus is reset for one function's sake, the others on it are reset with it and need no reset of their own.
fn together(devices: &mut [DevicePlan]) {
    let of_bus = |device: &DevicePlan| match device.reset {
        Some(Ok(method @ Method::Bus(_))) => Some((device.bdf.bus(), method)),
        _ => None,
    };
    let buses: Vec<(u8, Method)> = devices.iter().filter_map(of_bus).collect();
    for device in devices {
        if let Some((_, method)) = buses.iter().find(|(bus, _)| *bus == device.bdf.bus()) {
            device.reset = Some(Ok(*method));
        }
    }
}

/// What is known of an interrupt before the machine has been asked.
fn at_boot(device: &Device, open: Open) -> Intx {
    let (vpin, gate) = (virtual_pin(device, device.gsi), GateChoice::of_open(device.mask));
    Intx::AtBoot { gsi: device.gsi, vpin, gate, open }
}

/// The virtual pin of a device whose line may be known.
fn virtual_pin(device: &Device, gsi: Option<Gsi>) -> Option<(Pin, VpinReason)> {
    match (device.vpin, gsi) {
        (Some(pin), _) => Some((pin, VpinReason::Configured)),
        (None, Some(gsi)) => device.virtual_pin(gsi).map(|pin| (pin, VpinReason::NumberOfGsi)),
        (None, None) => None,
    }
}

/// How many bridges lie between a function and the place that answered for it.
fn swizzles(facts: &Facts, bdf: Bdf, source: RouteSource) -> u8 {
    let RouteSource::Firmware { bus, device, pin } = source else { return 0 };
    let place = facts.places(bdf).iter().position(|place| *place == (bus, device, pin));
    place.and_then(|place| u8::try_from(place).ok()).unwrap_or(0)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
