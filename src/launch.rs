//! Starting the CPUs that run partitions, and waiting for the last one to end.
//!
//! Each partition belongs to one CPU from here on. The boot CPU runs its own, then sleeps until the others are done, and has
//! the last word.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use levelhead::config::MAX_PARTITIONS;
use levelhead::counters::Stage;
use levelhead::emulate::warm_up;
use levelhead::frames::Frames;
use levelhead::irq::{ApicId, CpuId, Vector};
use levelhead::sync::Lock;
use log::{info, warn};

use crate::arch::x86::cpu::{ThisCpu, halt_for_ever};
use crate::arch::x86::lapic::WAKE_VECTOR;
use crate::arch::x86::paging::AddressSpace;
use crate::boot::smp;
use crate::lives::restart;
use crate::machine::Machine;
use crate::report::{self, BootError};
use crate::rt::exit::Verdict;
use crate::rt::heap;
use crate::run;
use crate::system::Placed;

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
        let arrived = cpu.idle();
        run::serve(machine, arrived);
    }
    Ok(ENDED.with(|ended| report::verdict(machine, ended)))
}

/// Set when the heap is sealed: other CPUs start their guests then.
static GO: AtomicU32 = AtomicU32::new(0);

/// A CPU other than the boot CPU: runs its partition, then sleeps. Lines that its guest shared may lead to it for good, and it
/// takes their interrupts.
fn help(mut cpu: ThisCpu) -> ! {
    while GO.load(Ordering::Acquire) == 0 {
        core::hint::spin_loop();
    }
    let Some(machine) = MACHINE.with(|machine| *machine) else { halt_for_ever() };
    machine.apic.enable();
    run_own(&mut cpu, machine);
    if let Some(wake) = Vector::new(WAKE_VECTOR) {
        machine.apic.send(machine.boot_cpu, wake);
    }
    loop {
        let arrived = cpu.idle();
        run::serve(machine, arrived);
    }
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
    let end = loop {
        partition.counters.reach(Stage::Running);
        partition.note_begin();
        let end = run::run(cpu, machine, &mut partition);
        run::quiesce(cpu, machine, &mut partition);
        partition.flush_line();
        end.report(&mut partition);
        match partition.restart_after(end) {
            Some(due) if restart(cpu, machine, &mut partition, due) => {}
            _ => break end,
        }
    };
    partition.counters.reach(Stage::Ended);
    partition.flush();
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
