//! Putting a partition together at boot: memory, image, tables, devices, the state its CPU starts in.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::AtomicU64;

use levelhead::border::Ports;
use levelhead::config::{Bundle, Partition as Configured};
use levelhead::counters::Stage;
use levelhead::decide::{BAR_WINDOW, PartitionPlan};
use levelhead::frames::Frames;
use levelhead::guest::acpi::{self, Route};
use levelhead::guest::{GuestMemory, Payload, plan};
use levelhead::message::{Message, Refusal};
use levelhead::svm::NestedTables;
use levelhead::sync::Lock;
use levelhead::virq::Vcpu;
use log::info;

use super::assign::Assigner;
use super::platform::Platform;
use super::ram::Ram;
use super::revive::{Revival, begin};
use super::vcpu::VirtualCpu;
use super::watch::Watch;
use super::{BOOT, COUNTERS, Course, FirstNotifier, Function, Partition};
use crate::arch::svm::nested::TablePool;
use crate::arch::svm::vmrun::{World, io_permissions};
use crate::arch::x86::paging::OutOfMemory;
use crate::machine::Receiver;
use crate::order::{Ordered, Rank};

/// Tables kept for BARs, wherever in their window the guest moves them: one per 2 MiB touched, and what leads there.
const BAR_TABLES: usize = 64;

/// A partition, its virtual CPUs, and where its sources' notifiers lead at first.
pub(crate) struct Built {
    pub(crate) partition: &'static Partition,
    pub(crate) vcpus: Vec<VirtualCpu>,
    pub(crate) notifiers: Vec<FirstNotifier>,
}

/// Builds partition number `index` as planned.
pub(crate) fn build(
    index: u8,
    configured: &'static Configured,
    planned: &PartitionPlan,
    bundle: &Bundle<'static>,
    receiver: &'static Receiver,
    assigner: &mut Assigner<'_>,
    frames: &mut Frames,
) -> Result<Built, Refusal> {
    let name = &configured.name;
    let refuse = |message: Message, what: String| Refusal::new(message, format!("partition {name}"), what);
    let bug = |what: &str, why: &dyn fmt::Debug| refuse(Message::InternalError, format!("{what}: {why:?}"));
    let counters = COUNTERS.slot(index).ok_or_else(|| bug("no slot for its counters", &index))?;
    let memory = GuestMemory::new(configured.memory_bytes)
        .ok_or_else(|| refuse(Message::MemoryPages, format!("{} bytes", configured.memory_bytes)))?;
    let no_room = |_: OutOfMemory| {
        let mib = configured.memory_bytes >> 20;
        refuse(Message::MemoryMissing, format!("the machine has not enough memory left: {mib} MiB wanted"))
    };
    let ram = Ram::allocate(memory.ram(), configured.memory_at, frames).map_err(no_room)?;
    let mut pool = TablePool::allocate(ram.tables_needed() + BAR_TABLES, frames).map_err(no_room)?;
    let (io_address, io) = io_permissions(frames).map_err(no_room)?;
    let nested = NestedTables::new(&mut pool).ok_or(OutOfMemory).map_err(no_room)?;
    ram.map(&nested, &mut pool).map_err(|error| bug("nested tables", &error))?;

    let mut payload = Payload::of(configured, bundle.images())
        .map_err(|error| refuse(error.message(), error.to_string()))?;
    payload.tsc_khz = assigner.clock.map(|clock| clock.ticks_per_ms.get());
    let mut boot = plan(&payload, &memory).map_err(|error| refuse(error.message(), error.to_string()))?;
    for placement in &boot.placements {
        ram.write(placement.at, &placement.bytes)
            .map_err(|error| bug("planned outside its memory", &error))?;
    }

    let mut functions = Vec::new();
    let mut configs = Vec::new();
    let mut routes = Vec::new();
    let mut notifiers = Vec::new();
    for device in &planned.devices {
        let assigned = assigner.assign(device, name, index)?;
        let intx = assigned.config.interrupt_pin().zip(assigned.line);
        routes.extend(intx.map(|(pin, (_, vpin))| Route { bdf: device.bdf, pin, vpin }));
        functions.push(Function {
            bdf: assigned.config.bdf(),
            interrupt_pin: assigned.config.interrupt_pin(),
            source: assigned.line.map(|(source, _)| source),
            vpin: assigned.line.map(|(_, vpin)| vpin),
            policy: device.policy,
            replacements: AtomicU64::new(0),
        });
        configs.push(assigned.config);
        notifiers.extend(assigned.line);
    }
    let root = nested.root();
    let ports = Ports::new(configured.debug_port, configured.exit_port);
    let mut platform = Platform::new(ports, configs, (nested, pool), io, (name.clone(), configured.console));
    // Nobody has run the guest, so nobody has kept anything.
    let _ = platform.remap();
    let partition: &'static Partition = Box::leak(Box::new(Partition {
        index,
        name: name.clone(),
        ram,
        receiver,
        functions,
        counters,
        user_hypercalls: configured.user_hypercalls,
        platform: Ordered::new(Rank::Guest, platform),
        entries: Ordered::new(Rank::Guest, ()),
        nested_root: root,
        revives: configured.restart.restarts(),
        revival: Lock::new(None),
        course: Lock::new(Course::default()),
    }));

    let tables = acpi::Platform { vcpus: partition.vcpus(), bars: BAR_WINDOW, routes: &routes };
    let tables = acpi::tables(&tables);
    partition
        .ram
        .write(tables.at, &tables.bytes)
        .map_err(|error| bug("tables outside its memory", &error))?;
    // A guest that is started again finds them again.
    boot.placements.push(tables);

    let mut vcpus = Vec::new();
    for id in (0..partition.vcpus()).map(Vcpu) {
        let mut world = World::allocate(io_address, frames).map_err(no_room)?;
        begin(&mut world, id, &boot.entry, root).map_err(|error| bug("control block", &error))?;
        let watch = if id == BOOT { Watch::new(&configured.devices, assigner.clock) } else { None };
        vcpus.push(VirtualCpu::new(id, partition, world, boot.entry, watch));
    }
    info!(
        "partition {name}: {} CPU(s), {} MiB{}, {:?} image, entry {:#x}, {} device(s)",
        partition.vcpus(),
        configured.memory_bytes >> 20,
        fmt::from_fn(|f| configured.memory_at.map_or(Ok(()), |at| write!(f, " at {at}"))),
        boot.protocol,
        boot.entry.rip(),
        partition.functions.len()
    );
    if let Some(clock) = assigner.clock.filter(|_| partition.revives()) {
        let revival = Revival::new(configured.restart, boot, &planned.devices, assigner.config, clock);
        partition.revival.with(|slot| *slot = Some(revival));
    }
    partition.counters.reach(Stage::Ready);
    Ok(Built { partition, vcpus, notifiers })
}
