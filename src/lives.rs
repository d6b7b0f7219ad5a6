//! Between two lives of a guest: the pause, its functions reset, its memory as its image makes it, its lines open again.
//!
//! The guest has been quiesced ([`run::quiesce`]): its sources are silent and lead nowhere. Its CPU may serve lines of
//! others as well, so it takes its interrupts all the while: whatever waits is polled, whatever is long is done in steps.

use levelhead::addr::GuestPhys;
use levelhead::intx::{Completion, MaskReasons, Notifier};
use levelhead::message::{Message, Record};
use levelhead::pci::reset::Progress;
use levelhead::restart::Restart;

use crate::arch::x86::cpu::{ThisCpu, tsc};
use crate::machine::Machine;
use crate::partition::Partition;
use crate::partition::revive::Revival;
use crate::report::record;
use crate::run::{self, take};

/// Bytes of guest memory that are written before the CPU looks at its interrupts again.
const STEP_BYTES: usize = 256 << 10;

/// Makes the partition what it was at boot. Whether it can run again; a record says why not.
pub(crate) fn restart(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    partition: &mut Partition,
    due: Restart,
) -> bool {
    let Some(mut revival) = partition.revival.take() else { return false };
    let pause = revival.clock.ticks_per_ms.get().saturating_mul(due.pause_ms);
    wait_until(cpu, machine, partition, tsc().saturating_add(pause));
    reset_functions(cpu, machine, partition, &mut revival);
    let renewed = restore_memory(cpu, machine, partition, &revival) && partition.renew(cpu, &revival).is_ok();
    if renewed {
        open_sources(cpu, machine, partition);
        partition.tell(format_args!("started again, restart {}", due.number));
    } else {
        let place = format_args!("partition {}", partition.name);
        let what = format_args!("it cannot be put back to its beginning");
        record(Record { message: Message::InternalError, place: &place, what: Some(&what), remedy: None });
    }
    partition.revival = Some(revival);
    renewed
}

/// Sleeps until the TSC shows `until`, taking interrupts.
fn wait_until(cpu: &mut ThisCpu, machine: &'static Machine, partition: &mut Partition, until: u64) {
    while let Some(left) = until.checked_sub(tsc()).filter(|left| *left > 0) {
        machine.apic.arm_timer(machine.rate, left);
        let arrived = cpu.idle();
        take(machine, partition, arrived);
    }
    machine.apic.disarm_timer();
}

/// Resets what can be reset, all of it at the same time.
fn reset_functions(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    partition: &mut Partition,
    revival: &mut Revival,
) {
    for reset in &mut revival.resets {
        reset.start(&machine.config, tsc());
    }
    loop {
        let waits = revival.resets.iter_mut().filter_map(|reset| match reset.poll(&machine.config, tsc()) {
            Progress::Wait(until) => Some(until),
            Progress::Over => None,
        });
        let Some(until) = waits.min() else { break };
        wait_until(cpu, machine, partition, until);
    }
    for (bdf, outcome) in revival.resets.iter().flat_map(|reset| reset.outcomes()) {
        partition.judge_reset(bdf, outcome);
    }
}

/// Zeroes the guest's memory and loads its image again. Whether that could be done.
fn restore_memory(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    partition: &mut Partition,
    revival: &Revival,
) -> bool {
    let mut at = 0;
    while let Some(next) = partition.ram.clear_from(at, STEP_BYTES as u64) {
        at = next;
        let arrived = cpu.window();
        take(machine, partition, arrived);
    }
    for placement in &revival.boot.placements {
        let mut to = Some(placement.at);
        for step in placement.bytes.chunks(STEP_BYTES) {
            let Some(at): Option<GuestPhys> = to else { return false };
            if partition.ram.write(at, step).is_err() {
                return false;
            }
            to = at.checked_add(step.len() as u64);
            let arrived = cpu.window();
            take(machine, partition, arrived);
        }
    }
    true
}

/// Lets each source lead to its first notifier again, whose virtual entry is masked: a line that is still asserted waits
/// until the guest unmasks it, and then counts as a new assertion (I48).
fn open_sources(cpu: &mut ThisCpu, machine: &'static Machine, partition: &mut Partition) {
    for index in 0..partition.functions.len() {
        let Some(function) = partition.functions.get(index) else { continue };
        let Some((source, vpin)) = function.source.zip(function.vpin) else { continue };
        let (lost, lifted) = (function.lost, function.lifted());
        if lost {
            machine.lines.mask(source, MaskReasons::QUARANTINE, &mut machine.wires());
        }
        let target = Notifier::Pin { partition: partition.index, vpin };
        run::replace_now(cpu, machine, partition, source, target, Completion::Handover);
        let lifted = if lost { lifted - MaskReasons::QUARANTINE } else { lifted };
        let (_, deliveries) = machine.lines.unmask(source, lifted, &mut machine.wires());
        partition.deliver(machine, deliveries);
    }
}
