//! Starting the CPUs that run partitions, and waiting for the last one to end.
//!
//! Each virtual CPU belongs to one CPU from here on. The one that ends a guest asks the others to leave it and closes the
//! partition. The boot CPU runs its own, then sleeps until all partitions are over, and has the last word.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use levelhead::config::MAX_PARTITIONS;
use levelhead::counters::Stage;
use levelhead::emulate::warm_up;
use levelhead::frames::Frames;
use levelhead::irq::{ApicId, CpuId, Vector};
use levelhead::message::{Message, Record};
use levelhead::sync::Lock;
use levelhead::virq::Requests;
use log::{info, warn};

use crate::arch::x86::cpu::{ThisCpu, halt_for_ever};
use crate::arch::x86::lapic::WAKE_VECTOR;
use crate::arch::x86::paging::AddressSpace;
use crate::boot::smp;
use crate::console;
use crate::lives::restart;
use crate::machine::Machine;
use crate::partition::end::End;
use crate::partition::platform::Platform;
use crate::partition::vcpu::VirtualCpu;
use crate::partition::{After, BOOT};
use crate::report::{self, BootError};
use crate::rt::exit::Verdict;
use crate::rt::heap;
use crate::run;
use crate::system::{Placed, Ready};

/// What each CPU runs, until it takes it.
static WORK: Lock<Vec<Placed>> = Lock::new(Vec::new());
/// What became of each partition.
static ENDED: Lock<[Option<report::Ended>; MAX_PARTITIONS]> = Lock::new([const { None }; MAX_PARTITIONS]);
static ENDED_COUNT: AtomicU32 = AtomicU32::new(0);
static MACHINE: Lock<Option<&'static Machine>> = Lock::new(None);

/// Starts the CPUs that run partitions, seals the heap, and runs everything to its end.
pub(crate) fn run_all(
    cpu: &mut ThisCpu,
    cpus: &[(CpuId, ApicId)],
    ready: Ready,
    space: &mut AddressSpace,
    frames: &mut Frames,
) -> Result<Verdict, BootError> {
    let Ready { machine, placed } = ready;
    let count = machine.partitions.len() as u32;
    let used: Vec<CpuId> = placed.iter().map(|(cpu, _)| *cpu).collect();
    WORK.with(|work| *work = placed);
    MACHINE.with(|slot| *slot = Some(machine));
    let own = cpu.id();
    let helpers: Vec<(CpuId, ApicId)> =
        cpus.iter().copied().filter(|(id, _)| *id != own && used.contains(id)).collect();
    // Asleep, since an emulator that counts instructions would count every one of the wait.
    let sleep = |ticks| {
        machine.apic.arm_timer(machine.rate, ticks);
        let arrived = cpu.idle();
        run::serve(machine, arrived);
    };
    smp::start(helpers.iter().copied(), &machine.apic, space, frames, help, sleep)?;
    warm_up();
    let (in_use, all) = heap::usage();
    info!("boot heap sealed with {} of {} KiB in use", in_use >> 10, all >> 10);
    heap::seal();
    GO.store(1, Ordering::Release);
    if let Some(vector) = Vector::new(WAKE_VECTOR) {
        helpers.iter().for_each(|(_, apic)| machine.apic.send(*apic, vector));
    }
    run_own(cpu, machine);
    while ENDED_COUNT.load(Ordering::Acquire) < count {
        let arrived = cpu.idle();
        run::serve(machine, arrived);
    }
    Ok(ENDED.with(|ended| report::verdict(machine, ended)))
}

/// Set when the heap is sealed: other CPUs start their guests then.
static GO: AtomicU32 = AtomicU32::new(0);

/// A CPU other than the boot CPU: runs its virtual CPU, then sleeps. Lines that its guest shared, or that followed it, may lead to
/// it for good, and it takes their interrupts.
fn help(mut cpu: ThisCpu) -> ! {
    let Some(machine) = MACHINE.with(|machine| *machine) else { halt_for_ever() };
    machine.apic.enable();
    // Whoever does not see it yet is woken when it is set.
    while GO.load(Ordering::Acquire) == 0 {
        let arrived = cpu.idle();
        run::serve(machine, arrived);
    }
    run_own(&mut cpu, machine);
    loop {
        let arrived = cpu.idle();
        run::serve(machine, arrived);
    }
}

/// Runs the virtual CPU that was placed on this CPU, if one was, until its guest is over.
fn run_own(cpu: &mut ThisCpu, machine: &'static Machine) {
    let own = WORK.with(|work| {
        let place = work.iter().position(|(on, _)| *on == cpu.id())?;
        Some(work.swap_remove(place))
    });
    let Some((_, mut vcpu)) = own else { return };
    // SAFETY: enable::probe succeeded at boot, and each CPU takes one virtual CPU.
    #[expect(unsafe_code, reason = "switches SVM on")]
    unsafe {
        vcpu.world.activate(cpu);
    }
    live(cpu, machine, &mut vcpu);
    if cpu.nmi_count() > 0 {
        warn!("CPU {}: {} NMI(s) since boot", cpu.id().0, cpu.nmi_count());
    }
}

/// Runs a virtual CPU through all lives of its guest.
fn live(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu) {
    let partition = vcpu.partition;
    loop {
        let life = partition.life();
        if vcpu.id == BOOT {
            partition.counters.reach(Stage::Running);
            partition.note_begin();
        }
        let end = run::run(cpu, machine, vcpu);
        // Of several that end it at once the first has its way.
        let end = end.filter(|end| partition.ends(*end));
        if end.is_some() {
            machine.kick_others(vcpu.here(), partition, Requests::LEAVE);
        }
        run::depart(cpu, machine, vcpu);
        if let Some(end) = end
            && !bury(cpu, machine, vcpu, end)
        {
            return;
        }
        loop {
            match partition.after(life) {
                After::Again => break,
                After::Over => return,
                After::Wait => {
                    let arrived = cpu.idle();
                    run::take(machine, vcpu, arrived);
                }
            }
        }
        if vcpu.renew(cpu).is_err() {
            // It began in the same state before.
            let place = format_args!("partition {}, virtual CPU {}", partition.name, vcpu.id.0);
            report::record(Record {
                message: Message::InternalError,
                place: &place,
                what: None,
                remedy: None,
            });
            return;
        }
    }
}

/// Ends a life, in which nobody is any more: its sources are silent, its record is printed. Whether there is another, which
/// all virtual CPUs have been told; else the partition is over.
fn bury(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu, end: End) -> bool {
    let partition = vcpu.partition;
    run::await_deserted(cpu, machine, vcpu);
    run::quiesce(cpu, machine, vcpu);
    partition.platform.with(Platform::flush_line);
    let due = partition.restart_after(end);
    end.report(vcpu, due.is_none());
    if due.is_none() && partition.revives() && !end.is_success() {
        let place = format_args!("partition {}", partition.name);
        let message = Message::RestartsUsedUp;
        report::record(Record { message, place: &place, what: None, remedy: None });
    }
    if let Some(due) = due
        && restart(cpu, machine, vcpu, due)
    {
        partition.begin_again();
        machine.kick_others(vcpu.here(), partition, Requests::LOOK);
        return true;
    }
    partition.close();
    if machine.terminal == Some(usize::from(partition.index)) {
        console::give_terminal(false);
    }
    partition.counters.reach(Stage::Ended);
    partition.platform.with(Platform::flush);
    machine.kick_others(vcpu.here(), partition, Requests::LOOK);
    ENDED.with(|ended| {
        if let Some(slot) = ended.get_mut(usize::from(partition.index)) {
            *slot = Some((partition, end));
        }
    });
    ENDED_COUNT.fetch_add(1, Ordering::AcqRel);
    if let Some(wake) = Vector::new(WAKE_VECTOR) {
        machine.apic.send(machine.boot_cpu, wake);
    }
    false
}
