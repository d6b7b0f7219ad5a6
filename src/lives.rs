//! Between two lives of a guest: the pause, its functions reset, its memory as its image makes it, its lines open again.
//!
//! The guest has been quiesced ([`run::quiesce`]): its sources are silent and lead nowhere. Its CPU may serve lines of
//! others as well, so it takes its interrupts all the while: whatever waits is polled, whatever is long is done in steps.

use levelhead::addr::GuestPhys;
use levelhead::config::MAX_DEVICES;
use levelhead::intx::{Actor, Completion, MaskReasons, Notifier};
use levelhead::message::{Message, Record};
use levelhead::ownership::Claim;
use levelhead::pci::reset::Progress;
use levelhead::pci::{Bdf, Reset};
use levelhead::restart::Restart;

use crate::arch::x86::cpu::{ThisCpu, tsc};
use crate::machine::Machine;
use crate::partition::revive::Revival;
use crate::partition::vcpu::VirtualCpu;
use crate::report::record;
use crate::run::{self, take, take_turn};

/// Bytes of guest memory that are written before the CPU looks at its interrupts again.
const STEP_BYTES: usize = 256 << 10;

/// Makes the partition what it was at boot. Whether it can run again; a record says why not.
pub(crate) fn restart(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    due: Restart,
) -> bool {
    let partition = vcpu.partition;
    let Some(mut revival) = partition.revival.with(Option::take) else { return false };
    let pause = revival.clock.ticks_per_ms.get().saturating_mul(due.pause_ms);
    wait_until(cpu, machine, vcpu, tsc().saturating_add(pause));
    reset_functions(cpu, machine, vcpu, &mut revival);
    let renewed = restore_memory(cpu, machine, vcpu, &revival);
    if renewed {
        partition.renew();
        open_sources(cpu, machine, vcpu);
        partition
            .platform
            .with(|platform| platform.tell(format_args!("started again, restart {}", due.number)));
    } else {
        let place = format_args!("partition {}", partition.name);
        let what = format_args!("it cannot be put back to its beginning");
        record(Record { message: Message::InternalError, place: &place, what: Some(&what), remedy: None });
    }
    partition.revival.with(|slot| *slot = Some(revival));
    renewed
}

/// Sleeps until the TSC shows `until`, taking interrupts.
fn wait_until(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu, until: u64) {
    while let Some(left) = until.checked_sub(tsc()).filter(|left| *left > 0) {
        machine.apic.arm_timer(machine.rate, left);
        let arrived = cpu.idle();
        take(machine, vcpu, arrived);
    }
    machine.apic.disarm_timer();
}

/// Resets what can be reset, all of it at the same time.
fn reset_functions(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    revival: &mut Revival,
) {
    let partition = vcpu.partition;
    // Those that another has taken over are its own; those that are there stay until they are reset.
    let mut kept: [Option<Claim<'static>>; MAX_DEVICES] = [const { None }; MAX_DEVICES];
    for (claim, share) in kept.iter_mut().zip(&partition.functions) {
        *claim = run::keep(cpu, machine, vcpu, share);
    }
    let is_here = |bdf: Bdf| {
        let mut shares = kept.iter().zip(&partition.functions);
        shares.any(|(claim, share)| claim.is_some() && share.function.bdf == bdf)
    };
    let ours = |reset: &Reset| reset.outcomes().all(|(bdf, _)| is_here(bdf));
    for reset in revival.resets.iter_mut().filter(|reset| ours(reset)) {
        reset.start(&machine.config, tsc());
    }
    loop {
        // Those that were not started are over.
        let waits = revival.resets.iter_mut().filter_map(|reset| match reset.poll(&machine.config, tsc()) {
            Progress::Wait(until) => Some(until),
            Progress::Over => None,
        });
        let Some(until) = waits.min() else { break };
        wait_until(cpu, machine, vcpu, until);
    }
    let resets = revival.resets.iter().filter(|reset| ours(reset));
    for (bdf, outcome) in resets.flat_map(|reset| reset.outcomes()) {
        let Some(share) = partition.held().find(|share| share.function.bdf == bdf) else { continue };
        let policy = &share.function.policy;
        partition.platform.with(|platform| platform.judge_reset(bdf, policy, outcome));
    }
}

/// Zeroes the guest's memory and loads its image again. Whether that could be done.
fn restore_memory(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    revival: &Revival,
) -> bool {
    let mut at = 0;
    while let Some(next) = vcpu.partition.ram.clear_from(at, STEP_BYTES as u64) {
        at = next;
        take_turn(cpu, machine, vcpu);
    }
    for placement in &revival.boot.placements {
        let mut to = Some(placement.at);
        for step in placement.bytes.chunks(STEP_BYTES) {
            let Some(at): Option<GuestPhys> = to else { return false };
            if vcpu.partition.ram.write(at, step).is_err() {
                return false;
            }
            to = at.checked_add(step.len() as u64);
            take_turn(cpu, machine, vcpu);
        }
    }
    true
}

/// Lets each source lead to its first notifier again, whose virtual entry is masked: a line that is still asserted waits
/// until the guest unmasks it, and then counts as a new assertion (I48).
fn open_sources(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu) {
    let partition = vcpu.partition;
    for share in &partition.functions {
        let Some((source, vpin)) = share.function.source.zip(share.vpin) else { continue };
        let Some(_claim) = run::keep(cpu, machine, vcpu, share) else { continue };
        let (lost, lifted) = partition.platform.with(|platform| platform.after_reset(share.function.bdf));
        if lost {
            machine.lines.mask(source, MaskReasons::QUARANTINE, &mut machine.wires(Actor::Hypervisor));
        }
        let target = Notifier::Pin { partition: partition.index, vpin };
        run::replace_now(cpu, machine, vcpu, source, target, Completion::Handover);
        let (_, mut deliveries) = machine.lines.unmask(source, lifted, &mut machine.wires(Actor::Hypervisor));
        vcpu.deliver(machine, &mut deliveries);
    }
}
