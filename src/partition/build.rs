//! Putting a partition together at boot: memory, image, tables, devices, the state its CPU starts in.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use levelhead::border::Ports;
use levelhead::config::{Bundle, Partition as Configured};
use levelhead::counters::Stage;
use levelhead::decide::{BAR_WINDOW, DevicePlan};
use levelhead::frames::Frames;
use levelhead::guest::acpi::{self, Passed};
use levelhead::guest::{GuestMemory, Payload, plan};
use levelhead::message::{Message, Record, Refusal};
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
use super::{BOOT, COUNTERS, Course, Function, Partition, Share};
use crate::arch::svm::nested::TablePool;
use crate::arch::svm::vmrun::{World, io_permissions};
use crate::arch::x86::paging::OutOfMemory;
use crate::machine::{Chips, Receiver};
use crate::order::{Ordered, Rank};
use crate::report::record;

/// Tables kept for BARs, wherever in their window the guest moves them: one per 2 MiB touched, and what leads there.
const BAR_TABLES: usize = 64;

/// A partition and its virtual CPUs.
pub(crate) struct Built {
    pub(crate) partition: &'static Partition,
    pub(crate) vcpus: Vec<VirtualCpu>,
}

/// Builds partition number `index` as planned, with the functions that it may have.
pub(crate) fn build(
    index: u8,
    configured: &'static Configured,
    shares: &[(&DevicePlan, Share)],
    bundle: &Bundle<'static>,
    receiver: &'static Receiver,
    assigner: &Assigner<'_>,
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

    let mut views = Vec::new();
    let mut passed = Vec::new();
    for (device, share) in shares {
        let Function { bdf, interrupt_pin, .. } = *share.function;
        if share.function.ownership.owner() != index {
            let pin =
                fmt::from_fn(|f| share.vpin.map_or(Ok(()), |vpin| write!(f, ", at virtual pin {}", vpin.0)));
            info!("{bdf}: {name} may take it over{pin}");
        }
        let view = assigner.view(device, share.vpin)?;
        passed.push(Passed { bdf, route: interrupt_pin.zip(share.vpin), places: view.places() });
        views.push((share.function, view));
    }
    let functions: Vec<Share> = shares.iter().map(|(_, share)| *share).collect();
    let root = nested.root();
    let clock = assigner.clock.and_then(|clock| clock.wall);
    let ports = Ports::new(configured.debug_port, configured.exit_port, configured.test_device, clock);
    if configured.test_device {
        let place = format_args!("partition {name}");
        record(Record { message: Message::TestDevice, place: &place, what: None, remedy: None });
        receiver.chips(Chips::add_pics);
    }
    let mut platform = Platform::new(
        index,
        assigner.config,
        ports,
        views,
        (nested, pool),
        io,
        (name.clone(), configured.console),
    );
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
        tsc_khz: payload.tsc_khz.and_then(|khz| u32::try_from(khz).ok()),
        control: configured.control,
        platform: Ordered::new(Rank::Guest, platform),
        entries: Ordered::new(Rank::Guest, ()),
        nested_root: root,
        revives: configured.restart.restarts(),
        revival: Lock::new(None),
        course: Lock::new(Course::default()),
    }));

    let tables = acpi::Platform { vcpus: partition.vcpus(), bars: BAR_WINDOW, functions: &passed };
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
        let watch = if id == BOOT { Watch::new(&partition.functions, assigner.clock) } else { None };
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
        let devices: Vec<&DevicePlan> = shares.iter().map(|(device, _)| *device).collect();
        let revival = Revival::new(configured.restart, boot, &devices, assigner.config, clock);
        partition.revival.with(|slot| *slot = Some(revival));
    }
    partition.counters.reach(Stage::Ready);
    Ok(Built { partition, vcpus })
}
