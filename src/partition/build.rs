//! Putting a partition together at boot: memory, image, tables, devices, the state its CPU starts in.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use levelhead::border::Ports;
use levelhead::config::{Bundle, Partition as Configured};
use levelhead::counters::Stage;
use levelhead::decide::{BAR_WINDOW, PartitionPlan};
use levelhead::device::{LineBuffer, PrintBudget};
use levelhead::emulate::{CodePages, DecodeCache};
use levelhead::frames::Frames;
use levelhead::guest::acpi::{self, Platform, Route};
use levelhead::guest::{GuestMemory, Payload, plan};
use levelhead::intx::SourceId;
use levelhead::irq::Pin;
use levelhead::message::{Message, Refusal};
use levelhead::svm::NestedTables;
use log::info;

use super::assign::Assigner;
use super::ram::Ram;
use super::revive::{Revival, begin};
use super::watch::{Watch, eoi_watch};
use super::{COUNTERS, Exits, Function, Partition};
use crate::arch::svm::nested::TablePool;
use crate::arch::svm::vmrun::World;
use crate::arch::x86::paging::OutOfMemory;
use crate::machine::Receiver;

/// Tables kept for BARs, wherever in their window the guest moves them: one per 2 MiB touched, and what leads there.
const BAR_TABLES: usize = 64;

/// A source and the virtual pin its notifier leads to at first.
pub(crate) type FirstNotifier = (SourceId, Pin);

/// Builds partition number `index` as planned.
pub(crate) fn build(
    index: u8,
    configured: &'static Configured,
    planned: &PartitionPlan,
    bundle: &Bundle<'static>,
    receiver: &'static Receiver,
    assigner: &mut Assigner<'_>,
    frames: &mut Frames,
) -> Result<(Partition, Vec<FirstNotifier>), Refusal> {
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
    let mut world = World::allocate(frames).map_err(no_room)?;
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
    let mut routes = Vec::new();
    let mut notifiers = Vec::new();
    for device in &planned.devices {
        let assigned = assigner.assign(device, name, index)?;
        let intx = assigned.config.interrupt_pin().zip(assigned.line);
        routes.extend(intx.map(|(pin, (_, vpin))| Route { bdf: device.bdf, pin, vpin }));
        functions.push(Function {
            initial: assigned.config.clone(),
            config: assigned.config,
            source: assigned.line.map(|(source, _)| source),
            vpin: assigned.line.map(|(_, vpin)| vpin),
            policy: device.policy,
            replacements: 0,
            eoi: eoi_watch(&device.policy, assigner.clock),
            mapped: [None; 6],
            reset: None,
            lost: false,
        });
        notifiers.extend(assigned.line);
    }

    let vcpus = u8::try_from(configured.cpus.len()).unwrap_or(u8::MAX);
    let tables = acpi::tables(&Platform { vcpus, bars: BAR_WINDOW, routes: &routes });
    ram.write(tables.at, &tables.bytes).map_err(|error| bug("tables outside its memory", &error))?;
    // A guest that is started again finds them again.
    boot.placements.push(tables);

    begin(&mut world, &boot.entry, &nested).map_err(|error| bug("control block", &error))?;
    info!(
        "partition {name}: {} MiB{}, {:?} image, entry {:#x}, {} device(s)",
        configured.memory_bytes >> 20,
        fmt::from_fn(|f| configured.memory_at.map_or(Ok(()), |at| write!(f, " at {at}"))),
        boot.protocol,
        boot.entry.rip(),
        functions.len()
    );
    let revival = configured.restart.restarts().then_some(assigner.clock).flatten();
    let revival =
        revival.map(|clock| Revival::new(configured.restart, boot, &planned.devices, assigner.config, clock));
    let mut partition = Partition {
        index,
        name: name.clone(),
        world,
        ram,
        receiver,
        functions,
        ports: Ports::new(configured.debug_port, configured.exit_port),
        pages: CodePages::new(),
        decoded: DecodeCache::new(),
        exits: Exits::default(),
        counters,
        user_hypercalls: configured.user_hypercalls,
        mtrr_def_type: 0,
        again: (0, 0),
        watch: Watch::new(&configured.devices, assigner.clock),
        nested,
        pool,
        console: configured.console,
        line: LineBuffer::new(),
        budget: PrintBudget::new(),
        revival,
    };
    partition.remap();
    partition.counters.reach(Stage::Ready);
    Ok((partition, notifiers))
}
