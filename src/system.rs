//! From a bundle and a machine to partitions: the configuration judged against what is there, every line decided and
//! installed, every image loaded. Boot only; everything it makes lives to the end.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use levelhead::addr::PAGE_BYTES;
use levelhead::config::{self, Rejection};
use levelhead::frames::{Frames, Range};
use levelhead::intx::{Completion, Control, Gate, LineTable, Notifier, SourceId, Targets};
use levelhead::irq::{ApicId, CpuId, Gsi, Pin};
use levelhead::message::{Message, Refusal};
use levelhead::pci::ecam::EcamWindow;
use levelhead::pci::route::PrtEntry;
use levelhead::pci::{Bdf, enumerate};
use levelhead::sync::Lock;
use levelhead::virq::PINS;
use log::info;

use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::ioapic::IoApics;
use crate::arch::x86::lapic::LocalApic;
use crate::arch::x86::paging::{AddressSpace, OutOfMemory, direct};
use crate::boot::pvh::{BootInfo, MemoryKind};
use crate::machine::Machine;
use crate::partition::assign::{Assigner, Bus, route, unrouted};
use crate::partition::{Partition, build};
use crate::platform::handler::Memory;
use crate::platform::prt;
use crate::platform::tables::Facts;
use crate::report::BootError;
use crate::rt::{heap, panic};

/// The interpreter's memory while AML runs; free again afterwards.
const AML_ARENA_BYTES: u64 = 16 * 1024 * 1024;
/// TSC ticks over which the local timer is measured.
const TIMER_MEASURE_TICKS: u64 = 10_000_000;

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
    /// Says which gates this machine has.
    fn report_gates(&self) {
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
    }

    /// Judges the bundle, assigns its devices, loads its images.
    pub(crate) fn build(self) -> Result<(&'static Machine, Vec<Placed>), BootError> {
        let module = bundle(self.loader)?;
        let (mut config, bundle) = config::unpack(module)?;
        info!("bundle of {} KiB, {} partition(s)", module.len() >> 10, config.partitions.len());

        let window =
            self.facts.ecam.and_then(|ecam| EcamWindow::new(ecam.address, ecam.first_bus, ecam.last_bus));
        let host_config = HostConfig::new(window, self.space, self.frames)?;
        let mut functions = Vec::new();
        let topology = enumerate(&host_config, &[0], |function| functions.push(function));
        let bus = Bus { functions, topology };
        self.report_gates();
        info!("{} PCI functions by {}:", bus.functions.len(), host_config.way());
        for function in &bus.functions {
            info!("  {function}");
        }

        let (asked, places) = unrouted(&config, &bus)?;
        let entries = if asked.is_empty() {
            Vec::new()
        } else {
            routing(self.loader, &asked, &places, &host_config, self.space, self.frames)?
        };
        let routed = route(&mut config, &bus, &entries, &self.facts.overrides)?;
        let images = bundle.images().len();
        // Again, now that every line is known.
        config::validate(&config, images).map_err(Rejection::Rules)?;

        let target = |cpu: CpuId| self.cpus.iter().find(|(id, _)| *id == cpu).map(|(_, apic)| *apic);
        let reserved = reserved(self.loader, &self.facts, window);
        let io_apics = Lock::new(self.io_apics);
        let partitions = u8::try_from(config.partitions.len()).unwrap_or(u8::MAX);
        let (lines, mut control) = LineTable::new(Targets { partitions, pins: PINS, poll_counters: 0 });
        let mut assigner = Assigner::new(&bus, &host_config, &io_apics, lines, &routed, &reserved);
        let mut placed: Vec<Placed> = Vec::new();
        let mut notifiers = Vec::new();
        for (index, configured) in (0..).zip(&config.partitions) {
            let cpu = configured.cpus.first().copied().unwrap_or(CpuId(0));
            let apic = target(cpu).ok_or_else(|| {
                let what = format!("CPU {} does not exist; this machine has {}", cpu.0, self.cpus.len());
                Refusal::new(Message::CpuMissing, format!("partition {}", configured.name), what)
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
    control: Control,
    placed: &mut [Placed],
    partition: u8,
    source: SourceId,
    vpin: Pin,
) -> Result<Control, BootError> {
    let bug = |what: &str| Refusal::new(Message::InternalError, format!("first notifier of {source}"), what);
    let target = Notifier::Pin { partition, vpin };
    let (_, owner) = placed.get_mut(usize::from(partition)).ok_or_else(|| bug("no such partition"))?;
    let replacing = machine
        .lines
        .replace(control, source, target, Completion::Handover)
        .map_err(|(_, error)| bug(&error.to_string()))?;
    let mut wires = Partition::wires(&mut owner.chips, partition, machine);
    let mut done = replacing.poll(&mut wires).map_err(|_| bug("a delivery was in flight"))?;
    owner.deliver(&mut done.deliveries);
    Ok(done.control)
}

/// The module the loader brought, which must lie in RAM.
fn bundle(loader: &BootInfo) -> Result<&'static [u8], BootError> {
    let message = Message::BundleMissing;
    let (at, bytes) = loader.module.ok_or_else(|| Refusal::new(message, "loader", message.meaning()))?;
    let end = at.raw().checked_add(bytes);
    let in_ram = |range: Range| range.start() <= at && end.is_some_and(|end| end <= range.end().raw());
    let length = usize::try_from(bytes).ok();
    let (true, Some(length)) = (loader.ranges(MemoryKind::Usable).any(in_ram), length) else {
        let what = format!("the bundle at {at} ({bytes} bytes) does not lie in usable memory");
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
    places: &[prt::PlaceOnBus],
    config: &HostConfig,
    space: &mut AddressSpace,
    frames: &mut Frames,
) -> Result<Vec<PrtEntry>, BootError> {
    let names = asked.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if places.len() > prt::MAX_PLACES {
        let what = format!("{} places to look up, {} at most", places.len(), prt::MAX_PLACES);
        return Err(Refusal::new(Message::PrtPlaces, format!("devices {names}"), what).into());
    }
    info!("asking firmware's _PRT for the GSI of {names}");
    let arena = frames.allocate(AML_ARENA_BYTES, 4096, u64::MAX).ok_or(OutOfMemory)?;
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
        None => {
            let what = "the firmware's AML gave no routing (_PRT)";
            Err(Refusal::new(Message::AmlGaveUp, format!("devices {names}"), what).into())
        }
    }
}

/// What this machine says no device's BAR may overlap: the whole memory map, whatever its pieces are for, the IO-APICs, and
/// memory-mapped configuration space.
fn reserved(loader: &BootInfo, facts: &Facts, window: Option<EcamWindow>) -> Vec<Range> {
    loader
        .memory()
        .map(|entry| Range::around(entry.start, entry.bytes))
        .chain(facts.io_apics.iter().map(|chip| Range::around(chip.address.raw(), PAGE_BYTES)))
        .chain(window.map(|window| Range::around(window.start().raw(), window.bytes())))
        .collect()
}
