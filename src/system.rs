//! From a bundle and a machine to partitions: the configuration judged against what is there, every line decided and
//! installed, every image loaded. Boot only; everything it makes lives to the end.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::fmt;

use levelhead::config;
use levelhead::decide::{self, DevicePlan, PartitionPlan, Plan, decide, loud, places, unrouted};
use levelhead::facts::{Facts, IoApic, MemoryKind, PlaceOnBus, Routing};
use levelhead::frames::{Frames, Range};
use levelhead::guest::{Fault, judge};
use levelhead::intx::{
    Actor, Completion, Control, Deliveries, Gate, LineTable, Notifier, SourceId, Targets, Turns,
};
use levelhead::ioapic::Rte;
use levelhead::irq::{ApicId, CpuId, Gsi, Pin, Polarity, TriggerMode, Vector};
use levelhead::message::{Message, Record, Refusal};
use levelhead::pci::{Bdf, enumerate};
use levelhead::virq::{LapicModel, PINS};
use log::info;

use crate::arch::svm::enable::Features;
use crate::arch::x86::clock::{Clock, CmosClock};
use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::cpu::cpuid;
use crate::arch::x86::ioapic::IoApics;
use crate::arch::x86::lapic::{CONSOLE_VECTOR, LocalApic};
use crate::arch::x86::paging::{AddressSpace, direct};
use crate::boot::pvh::{BootInfo, REACH};
use crate::console::{self, print};
use crate::machine::{Here, Machine, POLL_COUNTERS, Receiver};
use crate::order::{Ordered, Rank};
use crate::partition::assign::{self, Assigner};
use crate::partition::ram::PollCounter;
use crate::partition::vcpu::VirtualCpu;
use crate::partition::watch::shortest_ms;
use crate::partition::{BOOT, Function, Share, build};
use crate::platform::handler::Memory;
use crate::platform::prt;
use crate::platform::tables::Platform;
use crate::report::{BootError, record};
use crate::rt::exit::Verdict;
use crate::rt::{heap, panic};
use crate::setup::Claimed;
use crate::survey;

/// The interpreter's memory while AML runs; free again afterwards.
const AML_ARENA_BYTES: u64 = 16 * 1024 * 1024;
/// TSC ticks over which the local timer is measured.
const TIMER_MEASURE_TICKS: u64 = 10_000_000;

/// What boot found out about the machine, before it becomes partitions.
pub(crate) struct System<'a> {
    pub(crate) loader: &'a BootInfo,
    pub(crate) claimed: Claimed,
    pub(crate) platform: Platform,
    pub(crate) chips: Vec<IoApic>,
    pub(crate) cpus: &'a [(CpuId, ApicId)],
    pub(crate) apic: LocalApic,
    pub(crate) io_apics: IoApics,
    pub(crate) features: Features,
    pub(crate) space: &'a mut AddressSpace,
    pub(crate) frames: &'a mut Frames,
}

/// A virtual CPU and the CPU that runs it.
pub(crate) type Placed = (CpuId, Box<VirtualCpu>);

/// A machine that is ready to run.
pub(crate) struct Ready {
    pub(crate) machine: &'static Machine,
    pub(crate) placed: Vec<Placed>,
}

impl System<'_> {
    /// Says which gates this machine has.
    fn report_gates(&self) {
        let suppression = self.apic.suppresses_eoi_broadcast();
        let directed =
            suppression && self.chips.iter().all(|chip| self.io_apics.has_eoi_register(Gsi(chip.gsi_base)));
        let available = if Gate::DirectedEoi.is_available(directed) { "available" } else { "not available" };
        info!(
            "gates: {}, {}; {}: {available} (EOI-broadcast suppression: {})",
            Gate::RteMask,
            Gate::Function,
            Gate::DirectedEoi,
            if suppression { "yes" } else { "no" },
        );
    }

    /// Finds out what the machine is, but for what only firmware's AML knows.
    fn facts(&mut self) -> Result<(HostConfig, Facts), BootError> {
        let host_config = HostConfig::new(self.platform.ecam, self.space, self.frames)?;
        let mut functions = Vec::new();
        let topology = enumerate(&host_config, &[0], |function| functions.push(function));
        self.report_gates();
        info!("{} PCI functions by {}:", functions.len(), host_config.way());
        for function in &functions {
            info!("  {function}");
        }
        let facts = Facts {
            hypervisor: env!("CARGO_PKG_VERSION").to_string(),
            processor: survey::processor(self.features),
            cpus: self.cpus.iter().map(|(_, apic)| *apic).collect(),
            memory: self.loader.memory().collect(),
            // What is placed is free for its partition.
            free_bytes: self.frames.free_bytes().saturating_add(self.claimed.bytes),
            io_apics: self.chips.clone(),
            overrides: self.platform.overrides.clone(),
            ecam: self.platform.ecam,
            functions,
            topology,
            proofs: Vec::new(),
            routing: Routing::NotAsked,
        };
        Ok((host_config, facts))
    }

    /// Describes the machine on the console, as far as its firmware allows.
    pub(crate) fn report_facts(mut self) -> Result<Verdict, BootError> {
        let (host_config, mut facts) = self.facts()?;
        survey::prove(&mut facts, &host_config);
        let too_long =
            |_: fmt::Error| Refusal::new(Message::InternalError, "facts report", "a line of it is too long");
        survey::begin(&facts).map_err(too_long)?;
        let every: Vec<Bdf> = facts.proofs.iter().map(|proof| proof.bdf).collect();
        let places = places(&facts, every.iter().copied());
        let routing = routing(self.loader, &every, places, &host_config, self.space, self.frames)
            .unwrap_or_else(|refusal| {
                record(Record {
                    message: refusal.message,
                    place: &refusal.place,
                    what: Some(&refusal.what),
                    remedy: None,
                });
                Routing::Unknown(refusal.what)
            });
        survey::close(&routing).map_err(too_long)?;
        print(format_args!("levelhead: verdict PASS\n"));
        Ok(Verdict::Pass)
    }

    /// Judges the bundle, assigns its devices, loads its images.
    pub(crate) fn build(mut self) -> Result<Ready, BootError> {
        let module = bundle(self.loader)?;
        let (config, bundle) = config::unpack(module)?;
        // Kept for good: partitions that start again do so from it.
        let config: &config::Config = Box::leak(Box::new(config));
        let misplaced = core::mem::take(&mut self.claimed.findings);
        let mut refusals: Vec<_> = misplaced.into_iter().map(|finding| finding.refusal).collect();
        refusals.extend(judge(config, bundle.images()).iter().map(Fault::refusal));
        if !refusals.is_empty() {
            return Err(BootError::from(refusals));
        }
        info!("bundle of {} KiB, {} partition(s)", module.len() >> 10, config.partitions.len());

        let (host_config, mut facts) = self.facts()?;
        survey::prove(&mut facts, &host_config);
        assign::silence(&host_config, &facts.proofs, |bdf| {
            config.partitions.iter().flat_map(|partition| &partition.devices).any(|device| device.bdf == bdf)
        });
        let images = bundle.images().len();
        // What is wrong in any case is refused before firmware is asked.
        let mut plan = settled(decide(config, images, Some(&facts)))?;
        let asked = unrouted(config, &facts);
        if !asked.is_empty() {
            let bystanders = loud(config, &facts).into_iter().map(|(bdf, _)| bdf);
            let mut places = places(&facts, asked.iter().copied().chain(bystanders));
            if places.len() > prt::MAX_PLACES {
                // The bystanders' lines stay unknown.
                places = decide::places(&facts, asked.iter().copied());
            }
            facts.routing = routing(self.loader, &asked, places, &host_config, self.space, self.frames)?;
            plan = settled(decide(config, images, Some(&facts)))?;
        }

        assign::report_bystanders(&plan.bystanders);
        let io_apics = Ordered::new(Rank::IoApics, self.io_apics);
        let receivers = receivers(&plan)?;
        let partitions = u8::try_from(config.partitions.len()).unwrap_or(u8::MAX);
        let (lines, mut control) =
            LineTable::new(Targets { partitions, pins: PINS, poll_counters: POLL_COUNTERS });
        let clock = clock(config, &self.platform)?;
        let mut assigner = Assigner::new(&host_config, &io_apics, lines, clock);
        // All functions belong to somebody before the first partition is built: it may stand by for another's.
        let mut functions: Vec<Vec<&'static Function>> = Vec::new();
        for (index, (configured, planned)) in (0..).zip(config.partitions.iter().zip(&plan.partitions)) {
            let assigned = planned.devices.iter();
            let assigned = assigned.map(|device| assigner.assign(device, &configured.name, index));
            functions.push(assigned.collect::<Result<_, _>>()?);
        }
        let mut partitions = Vec::new();
        let mut placed: Vec<Placed> = Vec::new();
        for (index, (configured, planned)) in (0..).zip(config.partitions.iter().zip(&plan.partitions)) {
            let receiver = receivers.get(usize::from(index)).ok_or_else(|| {
                let place = format!("partition {}", configured.name);
                Refusal::new(Message::InternalError, place, "it has no receiving end")
            })?;
            let shares = shares(&plan, &functions, index);
            let built = build::build(index, configured, &shares, &bundle, receiver, &assigner, self.frames)?;
            partitions.push(built.partition);
            let cpus = planned.cpus.iter().flatten().map(|(cpu, _)| *cpu);
            placed.extend(cpus.zip(built.vcpus.into_iter().map(Box::new)));
        }
        let Assigner { lines, dis_intx, .. } = assigner;
        let rate = self.apic.measure_timer(TIMER_MEASURE_TICKS);
        let machine: &Machine = Box::leak(Box::new(Machine {
            lines,
            turns: Turns::new(None),
            io_apics,
            config: host_config,
            dis_intx,
            partitions,
            receivers,
            poll_counters: [const { PollCounter::new() }; POLL_COUNTERS as usize],
            apic: self.apic,
            rate,
            terminal: config
                .partitions
                .iter()
                .position(|partition| partition.console == config::Console::Terminal),
            boot_cpu: self.cpus.first().map_or(ApicId(0), |(_, apic)| *apic),
        }));
        // From here on an assertion has somewhere to go.
        for partition in &machine.partitions {
            for Share { function, vpin } in partition.held() {
                let Some((source, vpin)) = function.source.zip(*vpin) else { continue };
                control = first_notifier(machine, control, partition.index, source, vpin)?;
            }
        }
        machine.turns.give_back(control);
        console::give_terminal(machine.terminal.is_some());
        hear_console(machine);
        Ok(Ready { machine, placed })
    }
}

/// Leads the interrupt of the console's receiver to the boot CPU, unless its line is some device's.
fn hear_console(machine: &Machine) {
    /// COM1 interrupts as ISA's line 4, an edge, high.
    const GSI: Gsi = Gsi(4);
    let taken = machine.lines.is_in_use(GSI);
    let (Some(vector), Ok(cpu)) = (Vector::new(CONSOLE_VECTOR), u8::try_from(machine.boot_cpu.0)) else {
        return;
    };
    if taken {
        info!("the console takes no commands: its interrupt line is a device's");
        return;
    }
    let rte = Rte::masked(vector, cpu, TriggerMode::Edge, Polarity::ActiveHigh).with_mask(false);
    machine.io_apics.with(|chips| chips.program(GSI, rte));
    console::listen();
}

/// The plan, if nothing is wrong with it.
fn settled(plan: Plan) -> Result<Plan, BootError> {
    if plan.findings.is_empty() { Ok(plan) } else { Err(plan.findings.into()) }
}

/// The functions that partition number `index` may have, with their plans.
fn shares<'p>(
    plan: &'p Plan,
    functions: &[Vec<&'static Function>],
    index: u8,
) -> Vec<(&'p DevicePlan, Share)> {
    let index = usize::from(index);
    let own = plan.partitions.get(index).map_or(&[][..], |planned| &planned.devices);
    let own = own.iter().zip(functions.get(index).into_iter().flatten());
    let own = own.map(|(device, function)| (device, Share { function, vpin: device.intx.vpin() }));
    let standbys = plan.partitions.get(index).map_or(&[][..], |planned| &planned.standbys);
    let standbys = standbys.iter().filter_map(|standby| {
        let device = plan.partitions.get(standby.owner)?.devices.get(standby.device)?;
        let function = functions.get(standby.owner)?.get(standby.device)?;
        Some((device, Share { function, vpin: standby.vpin }))
    });
    own.chain(standbys).collect()
}

/// Every partition's receiving end, as every CPU reaches it from now on.
fn receivers(plan: &Plan) -> Result<&'static [Receiver], Refusal> {
    let physical_address_bits = (cpuid(0x8000_0008, 0).eax & 0xff) as u8;
    let model = LapicModel { x2apic: true, physical_address_bits };
    let receiver = |planned: &PartitionPlan| {
        Some(Receiver::new(planned.cpus.as_ref()?.iter().map(|(_, apic)| *apic), model))
    };
    let receivers: Option<Vec<Receiver>> = plan.partitions.iter().map(receiver).collect();
    let undecided = || Refusal::new(Message::InternalError, "partitions", "a CPU is not decided");
    Ok(Vec::leak(receivers.ok_or_else(undecided)?))
}

/// Measures the clock, which a policy with a time in it needs, and the guests that are told of it would like.
fn clock(config: &config::Config, platform: &Platform) -> Result<Option<Clock>, Refusal> {
    let timed = config.partitions.iter().find_map(|partition| {
        if partition.restart.restarts() {
            return Some(format!("partition {}", partition.name));
        }
        let timed = partition.devices.iter().find(|device| shortest_ms(&device.policy).is_some())?;
        Some(format!("partition {}, device {}", partition.name, timed.bdf))
    });
    let cmos = platform.cmos_clock.then(CmosClock::new);
    let clock = platform.pm_timer.and_then(|timer| Clock::measure(timer, cmos));
    match (clock, timed) {
        (Some(clock), _) => info!("TSC at {} ticks/ms by the ACPI timer", clock.ticks_per_ms),
        (None, None) => {}
        (None, Some(place)) => return Err(Refusal::new(Message::NoClock, place, Message::NoClock.meaning())),
    }
    Ok(clock)
}

/// Publishes a source's first notifier. No CPU delivers yet, so the replacement is over at once.
fn first_notifier(
    machine: &'static Machine,
    control: Control,
    partition: u8,
    source: SourceId,
    vpin: Pin,
) -> Result<Control, BootError> {
    let bug = |what: &str| Refusal::new(Message::InternalError, format!("first notifier of {source}"), what);
    let target = Notifier::Pin { partition, vpin };
    let replacing = machine
        .lines
        .replace(control, source, target, Completion::Handover)
        .map_err(|(_, error)| bug(&error.to_string()))?;
    let mut deliveries = Deliveries::none();
    let done = replacing
        .poll(&mut machine.wires(Actor::Hypervisor), &mut deliveries)
        .map_err(|_| bug("a delivery was in flight"))?;
    machine.deliver_apart(Here { partition, vcpu: BOOT }, &mut deliveries);
    Ok(done.control)
}

/// The module the loader brought, which must lie in RAM.
fn bundle(loader: &BootInfo) -> Result<&'static [u8], BootError> {
    let message = Message::BundleMissing;
    let (at, bytes) = loader.module.ok_or_else(|| Refusal::new(message, "loader", message.meaning()))?;
    let end = at.raw().checked_add(bytes);
    let in_ram =
        |range: Range| range.start() <= at && end.is_some_and(|end| end <= range.end().raw() && end <= REACH);
    let length = usize::try_from(bytes).ok();
    let (true, Some(length)) = (loader.ranges(MemoryKind::Usable).any(in_ram), length) else {
        let what = format!("the bundle at {at} ({bytes} bytes) does not lie in usable memory below 4 GiB");
        return Err(Refusal::new(Message::BundlePlace, "loader", what).into());
    };
    // SAFETY: usable RAM in the direct map, reserved by free_memory before anything was allocated, so nobody writes it.
    #[expect(unsafe_code, reason = "the boot module as bytes")]
    Ok(unsafe { core::slice::from_raw_parts(direct(at), length) })
}

/// Looks the wanted places up in the firmware's `_PRT`.
fn routing(
    loader: &BootInfo,
    asked: &[Bdf],
    places: Vec<PlaceOnBus>,
    config: &HostConfig,
    space: &mut AddressSpace,
    frames: &mut Frames,
) -> Result<Routing, Refusal> {
    if places.is_empty() {
        return Ok(Routing::Known { asked: places, entries: Vec::new() });
    }
    let names = asked.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if places.len() > prt::MAX_PLACES {
        let what = format!("{} places to look up, {} at most", places.len(), prt::MAX_PLACES);
        return Err(Refusal::new(Message::PrtPlaces, format!("devices {names}"), what));
    }
    info!("asking firmware's _PRT for the GSI of {names}");
    let arena = frames.allocate(AML_ARENA_BYTES, 4096, u64::MAX).ok_or_else(|| {
        Refusal::new(Message::HypervisorMemory, "machine", Message::HypervisorMemory.meaning())
    })?;
    panic::set_aml_subject(Some(&names));
    // SAFETY: the arena is fresh memory in the direct map; look_up returns plain values, and what it borrows lives
    // longer than its own allocations.
    #[expect(unsafe_code, reason = "lends memory to the AML interpreter")]
    let entries = unsafe {
        heap::with_arena(direct(arena), AML_ARENA_BYTES as usize, || {
            prt::look_up(loader.rsdp, Memory { space, frames }, config, &places)
        })
    };
    panic::set_aml_subject(None);
    if let Some(range) = Range::inside(arena.raw(), AML_ARENA_BYTES) {
        // A full list only means that the arena is not used again.
        let _ = frames.add(range);
    }
    match entries {
        Some(entries) => {
            Ok(Routing::Known { entries: entries.into_iter().flatten().collect(), asked: places })
        }
        None => {
            let what = "the firmware's AML gave no routing (_PRT)";
            Err(Refusal::new(Message::AmlGaveUp, format!("devices {names}"), what))
        }
    }
}
