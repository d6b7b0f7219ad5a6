//! The steps of boot that `main.rs` names: options, memory, the bundle, devices, CPUs.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use levelhead::addr::HostPhys;
use levelhead::config;
use levelhead::emulate::warm_up;
use levelhead::frames::{Frames, Range};
use levelhead::intx::{Completion, Gate, LineTable, Notifier, Targets};
use levelhead::irq::{ApicId, CpuId, Gsi, Vector};
use levelhead::pci::ecam::EcamWindow;
use levelhead::pci::enumerate;
use levelhead::pci::route::PrtEntry;
use levelhead::sync::Lock;
use levelhead::virq::PINS;
use log::{LevelFilter, info, warn};
use x86_64::instructions::port::Port;

use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::cpu::{ThisCpu, halt_for_ever};
use crate::arch::x86::ioapic::IoApics;
use crate::arch::x86::lapic::{LocalApic, WAKE_VECTOR};
use crate::arch::x86::paging::{AddressSpace, direct, image_range};
use crate::boot::pvh::{BootInfo, MemoryKind};
use crate::boot::smp;
use crate::machine::Machine;
use crate::partition::assign::{Assigner, Bus, Refused, route, unrouted};
use crate::partition::{Partition, build};
use crate::platform::handler::Memory;
use crate::platform::prt;
use crate::platform::tables::Facts;
use crate::report::{self, BootError};
use crate::rt::exit::{Verdict, set_port};
use crate::rt::{heap, panic};
use crate::run;

/// Partitions that can run at once.
const MAX_PARTITIONS: usize = config::MAX_PARTITIONS;
/// The interpreter's memory while AML runs.
const AML_ARENA_BYTES: u64 = 16 * 1024 * 1024;
/// TSC ticks over which the local timer is measured.
const TIMER_MEASURE_TICKS: u64 = 10_000_000;

/// Applies the command line's words: `log=LEVEL`, `exit=PORT`.
pub(crate) fn options(loader: &BootInfo) -> Result<(), BootError> {
    if let Some(value) = loader.value("exit") {
        let digits = value.strip_prefix("0x").unwrap_or(value);
        let port = u16::from_str_radix(digits, 16).map_err(|_| BootError::Option {
            key: "exit",
            right: "a port in hexadecimal, such as exit=0xf4",
        })?;
        set_port(port);
    }
    if let Some(value) = loader.value("log") {
        let level = value.parse::<LevelFilter>().map_err(|_| BootError::Option {
            key: "log",
            right: "one of off, error, warn, info, debug, trace",
        })?;
        log::set_max_level(level);
    }
    Ok(())
}

/// Usable memory less the image, the module, and the first page, whose address means "none" to too many.
pub(crate) fn free_memory(loader: &BootInfo, delta: u64) -> Frames {
    let mut frames = Frames::new();
    let mut lost = loader.ranges(MemoryKind::Usable).filter(|range| frames.add(*range).is_err()).count();
    let module = loader.module.map(|(at, bytes)| Range::around(at.raw(), bytes));
    for taken in [Range::around(0, 1), image_range(delta)].into_iter().chain(module) {
        lost += usize::from(frames.reserve(taken).is_err());
    }
    if lost > 0 {
        warn!("the memory map has too many pieces: {lost} left out");
    }
    frames
}

/// Silences the two 8259s, which firmware may have left open: every interrupt comes by an IO-APIC.
#[expect(unsafe_code, reason = "port writes to the 8259s")]
pub(crate) fn mask_pic() {
    for port in [0x21u16, 0xa1] {
        // SAFETY: the mask registers of the 8259s, where every PC has them or nothing; no memory is touched.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}

/// The boot CPU first, then the others in the MADT's order.
pub(crate) fn cpus(apics: &[ApicId], apic: &LocalApic) -> Vec<(CpuId, ApicId)> {
    let own = apic.id();
    let others = apics.iter().copied().filter(|id| *id != own);
    (0..=u8::MAX).map(CpuId).zip(core::iter::once(own).chain(others)).collect()
}

/// What boot found out about the machine, before it becomes partitions.
pub(crate) struct System<'a> {
    pub(crate) loader: &'a BootInfo,
    pub(crate) facts: Facts,
    pub(crate) cpus: &'a [(CpuId, ApicId)],
    pub(crate) apic: LocalApic,
    pub(crate) io_apics: IoApics,
    pub(crate) space: &'a mut AddressSpace,
    pub(crate) frames: &'a mut Frames,
}

/// A partition and the CPU it runs on.
pub(crate) type Placed = (CpuId, Box<Partition>);

impl System<'_> {
    /// Judges the bundle, assigns its devices, loads its images.
    pub(crate) fn build(self) -> Result<(&'static Machine, Vec<Placed>), BootError> {
        let module = bundle(self.loader)?;
        let (mut config, bundle) = config::unpack(module)
            .map_err(|error| BootError::Refused(format!("Config: the bundle is refused: {error}")))?;
        info!("bundle of {} KiB, {} partition(s)", module.len() >> 10, config.partitions.len());

        let window =
            self.facts.ecam.and_then(|ecam| EcamWindow::new(ecam.address, ecam.first_bus, ecam.last_bus));
        let host_config = HostConfig::new(window, self.space, self.frames)?;
        let mut functions = Vec::new();
        let topology = enumerate(&host_config, &[0], |function| functions.push(function));
        let bus = Bus { functions, topology };
        let suppression = self.apic.suppresses_eoi_broadcast();
        let directed = suppression
            && self.facts.io_apics.iter().all(|chip| self.io_apics.has_eoi_register(Gsi(chip.gsi_base)));
        let available = if Gate::DirectedEoi.is_available(directed) { "available" } else { "not available" };
        info!(
            "gates: {}, {}; {}: {available} (EOI-broadcast suppression: {})",
            Gate::RteMask,
            Gate::Function,
            Gate::DirectedEoi,
            if suppression { "yes" } else { "no" },
        );
        info!("{} PCI functions by {}:", bus.functions.len(), host_config.way());
        for function in &bus.functions {
            info!("  {function}");
        }

        let (asked, places) = unrouted(&config, &bus)?;
        let entries = if asked.is_empty() {
            Vec::new()
        } else {
            // The interpreter runs on memory of its own, which is free again afterwards.
            routing(self.loader, &asked, &places, &host_config, self.space, self.frames)?
        };
        let routed = route(&mut config, &bus, &entries, &self.facts.overrides)?;
        let images = bundle.images().len();
        config::validate(&config, images).map_err(|violations| {
            let text: Vec<_> = violations.iter().map(ToString::to_string).collect();
            BootError::Refused(format!("Config: with this machine's lines: {}", text.join("; ")))
        })?;

        let target = |cpu: CpuId| self.cpus.iter().find(|(id, _)| *id == cpu).map(|(_, apic)| *apic);
        let reserved = reserved(self.loader, &self.facts);
        let io_apics = Lock::new(self.io_apics);
        let partitions = u8::try_from(config.partitions.len()).unwrap_or(u8::MAX);
        let (lines, mut control) = LineTable::new(Targets { partitions, pins: PINS, poll_counters: 0 });
        let mut assigner = Assigner::new(&bus, &host_config, &io_apics, lines, &routed, &reserved);
        let mut placed: Vec<Placed> = Vec::new();
        let mut notifiers = Vec::new();
        for (index, configured) in (0..).zip(&config.partitions) {
            let cpu = configured.cpus.first().copied().unwrap_or(CpuId(0));
            let apic = target(cpu).ok_or_else(|| {
                Refused(format!(
                    "Config: partition {}: CPU {} does not exist; this machine has {}",
                    configured.name,
                    cpu.0,
                    self.cpus.len()
                ))
            })?;
            let (partition, first) =
                build::build(index, configured, &bundle, apic, &mut assigner, self.frames)?;
            notifiers.extend(first.into_iter().map(|(source, vpin)| (index, source, vpin)));
            placed.push((cpu, Box::new(partition)));
        }
        let Assigner { lines, dis_intx, .. } = assigner;
        let rate = self.apic.measure_timer(TIMER_MEASURE_TICKS);
        let machine: &Machine = Box::leak(Box::new(Machine {
            lines,
            control: Lock::new(None),
            io_apics,
            config: host_config,
            dis_intx,
            apic: self.apic,
            rate,
            boot_cpu: self.cpus.first().map_or(ApicId(0), |(_, apic)| *apic),
        }));
        // From here on an assertion has somewhere to go.
        for (partition, source, vpin) in notifiers {
            control = first_notifier(machine, control, &mut placed, partition, source, vpin)?;
        }
        machine.control.with(|slot| *slot = Some(control));
        Ok((machine, placed))
    }
}

/// Publishes a source's first notifier. No CPU delivers yet, so the replacement is over at once.
fn first_notifier(
    machine: &'static Machine,
    control: levelhead::intx::Control,
    placed: &mut [Placed],
    partition: u8,
    source: levelhead::intx::SourceId,
    vpin: levelhead::irq::Pin,
) -> Result<levelhead::intx::Control, BootError> {
    let bug = |what: &str| BootError::Platform(format!("Bug: first notifier of {source}: {what}"));
    let target = Notifier::Pin { partition, vpin };
    let (_, owner) = placed.get_mut(usize::from(partition)).ok_or_else(|| bug("no such partition"))?;
    let replacing = machine
        .lines
        .replace(control, source, target, Completion::Handover)
        .map_err(|(_, error)| bug(&error.to_string()))?;
    let mut wires = Partition::wires(&mut owner.chips, partition, machine);
    let done = replacing.poll(&mut wires).map_err(|_| bug("a delivery was in flight"))?;
    owner.deliver(done.deliveries);
    Ok(done.control)
}

/// The module the loader brought, which must lie in RAM.
fn bundle(loader: &BootInfo) -> Result<&'static [u8], BootError> {
    let (at, bytes) = loader.module.ok_or_else(|| {
        BootError::Refused(
            "Config: no bundle; give one as the boot module (cargo xtask pack FILE.toml -o BUNDLE)"
                .to_string(),
        )
    })?;
    let end = at.raw().checked_add(bytes);
    let in_ram = |range: Range| range.start() <= at && end.is_some_and(|end| end <= range.end().raw());
    let length = usize::try_from(bytes).ok();
    let (true, Some(length)) = (loader.ranges(MemoryKind::Usable).any(in_ram), length) else {
        return Err(BootError::Refused(format!(
            "Config: the bundle at {at} ({bytes} bytes) does not lie in usable memory"
        )));
    };
    // SAFETY: usable RAM in the direct map, reserved by free_memory before anything was allocated, so nobody writes it.
    #[expect(unsafe_code, reason = "the boot module as bytes")]
    Ok(unsafe { core::slice::from_raw_parts(direct(at), length) })
}

/// Looks the wanted places up in the firmware's `_PRT`.
fn routing(
    loader: &BootInfo,
    asked: &[levelhead::pci::Bdf],
    places: &[prt::PlaceOnBus],
    config: &HostConfig,
    space: &mut AddressSpace,
    frames: &mut Frames,
) -> Result<Vec<PrtEntry>, BootError> {
    let names = asked.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if places.len() > prt::MAX_PLACES {
        return Err(BootError::Refused(format!(
            "Config: {} places to look up for {names}, {} at most; give some devices `gsi = N`",
            places.len(),
            prt::MAX_PLACES
        )));
    }
    info!("asking firmware's _PRT for the GSI of {names}");
    let arena = frames.allocate(AML_ARENA_BYTES, 4096, u64::MAX).ok_or(BootError::OutOfMemory)?;
    panic::set_aml_subject(Some(&names));
    // SAFETY: the arena is fresh memory in the direct map; look_up returns plain values, and what it borrows lives
    // longer than its own allocations.
    #[expect(unsafe_code, reason = "lends memory to the AML interpreter")]
    let entries = unsafe {
        heap::with_arena(direct(arena), AML_ARENA_BYTES as usize, || {
            prt::look_up(loader.rsdp, Memory { space, frames }, config, places)
        })
    };
    panic::set_aml_subject(None);
    if let Some(range) = Range::inside(arena.raw(), AML_ARENA_BYTES) {
        // A full list only means that the arena is not used again.
        let _ = frames.add(range);
    }
    match entries {
        Some(entries) => Ok(entries.into_iter().flatten().collect()),
        None => Err(BootError::Platform(format!(
            "Firmware: its AML gave no routing (_PRT) for {names}\n  remedy: {}",
            panic::AML_REMEDY
        ))),
    }
}

/// Memory and interrupt chips: what no device's BAR may overlap.
fn reserved(loader: &BootInfo, facts: &Facts) -> Vec<Range> {
    const LOCAL_APIC: u64 = 0xfee0_0000;
    let page = |at: HostPhys| Range::around(at.raw(), 1);
    loader
        .ranges(MemoryKind::Usable)
        .chain(facts.io_apics.iter().map(|chip| page(chip.address)))
        .chain([page(HostPhys::new(LOCAL_APIC))])
        .collect()
}

/// What a CPU runs, and what became of it; each slot is its CPU's until the end.
static WORK: Lock<[Option<Placed>; MAX_PARTITIONS]> = Lock::new([const { None }; MAX_PARTITIONS]);
static ENDED: Lock<[Option<report::Ended>; MAX_PARTITIONS]> = Lock::new([const { None }; MAX_PARTITIONS]);
static ENDED_COUNT: AtomicU32 = AtomicU32::new(0);
static MACHINE: Lock<Option<&'static Machine>> = Lock::new(None);

/// Starts the CPUs that run partitions, seals the heap, and runs everything to its end.
pub(crate) fn run_all(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    cpus: &[(CpuId, ApicId)],
    placed: Vec<Placed>,
    space: &mut AddressSpace,
    frames: &mut Frames,
) -> Result<Verdict, BootError> {
    let count = placed.len() as u32;
    let used: Vec<CpuId> = placed.iter().map(|(cpu, _)| *cpu).collect();
    WORK.with(|work| work.iter_mut().zip(placed).for_each(|(slot, placed)| *slot = Some(placed)));
    MACHINE.with(|slot| *slot = Some(machine));
    let helpers = cpus.iter().copied().filter(|(id, _)| *id != cpu.id() && used.contains(id));
    smp::start(helpers, &machine.apic, space, frames, help)?;
    warm_up();
    let (in_use, all) = heap::usage();
    info!("boot heap sealed with {} of {} KiB in use", in_use >> 10, all >> 10);
    heap::seal();
    GO.store(1, Ordering::Release);
    run_own(cpu, machine);
    while ENDED_COUNT.load(Ordering::Acquire) < count {
        cpu.idle().for_each(|_| machine.apic.eoi());
    }
    Ok(ENDED.with(|ended| report::verdict(machine, ended)))
}

/// Set when the heap is sealed: other CPUs start their guests then.
static GO: AtomicU32 = AtomicU32::new(0);

/// A CPU other than the boot CPU: runs its partition, then sleeps.
fn help(mut cpu: ThisCpu) -> ! {
    while GO.load(Ordering::Acquire) == 0 {
        core::hint::spin_loop();
    }
    if let Some(machine) = MACHINE.with(|machine| *machine) {
        machine.apic.enable();
        run_own(&mut cpu, machine);
        if let Some(wake) = Vector::new(WAKE_VECTOR) {
            machine.apic.send(machine.boot_cpu, wake);
        }
    }
    halt_for_ever()
}

/// Runs the partition that was placed on this CPU, if one was.
fn run_own(cpu: &mut ThisCpu, machine: &'static Machine) {
    let own = WORK.with(|work| {
        let slot = work.iter_mut().find(|slot| slot.as_ref().is_some_and(|(on, _)| *on == cpu.id()))?;
        slot.take()
    });
    let Some((_, mut partition)) = own else { return };
    // SAFETY: enable::probe succeeded at boot, and each CPU takes one partition.
    #[expect(unsafe_code, reason = "switches SVM on")]
    unsafe {
        partition.world.activate(cpu);
    }
    let end = run::run(cpu, machine, &mut partition);
    run::quiesce(cpu, machine, &mut partition);
    partition.flush();
    end.report(&partition);
    if cpu.nmi_count() > 0 {
        warn!("CPU {}: {} NMI(s) since boot", cpu.id().0, cpu.nmi_count());
    }
    let index = usize::from(partition.index);
    ENDED.with(|ended| {
        if let Some(slot) = ended.get_mut(index) {
            *slot = Some((partition, end));
        }
    });
    ENDED_COUNT.fetch_add(1, Ordering::AcqRel);
}
