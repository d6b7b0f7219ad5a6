//! A function on its way from one partition to another, while both run (N8, T13).
//!
//! Whoever asks for it carries it out on its own CPU, in bounded steps, and takes its interrupts and answers its bell all the
//! while:
//!
//! 1. its **turn** to replace notifiers, so one function moves at a time; and the **claim** on the function, so that neither
//!    partition is put back to its beginning with it meanwhile. Nobody holds it from here on;
//! 2. **silenced**: the reason HANDOVER closes its gate. Bus mastering is off, as always;
//! 3. **taken away**: what of it was mapped is not any more, and every CPU of the partition that had it has forgotten that. A CPU
//!    forgets between two exits of its guest, so none is at work any more on what its guest asked before;
//! 4. **drained**: the notifier leads to the new partition, nobody delivers to the old one, what was in service there is
//!    completed as a handover and its pin is low, the line's Remote IRR is clear, the books balance;
//! 5. **handed on**: the new partition holds it, and reaches what its own copy of the configuration space says;
//! 6. **opened**: what is still asserted is delivered to it, once.
//!
//! What is asked of the guest that had it is nothing: its CPUs are kicked out of it, wherever it hangs.

use levelhead::config::MAX_NAME_BYTES;
use levelhead::hypercall::{CallError, Reply, answer};
use levelhead::intx::{Completion, Control, MaskReasons, Notifier, SourceId};
use levelhead::ownership::Claim;
use levelhead::svm::Stale;

use crate::arch::x86::cpu::ThisCpu;
use crate::machine::Machine;
use crate::partition::vcpu::VirtualCpu;
use crate::partition::{Life, Partition, Share};
use crate::run;

/// A takeover in words: two names, and what stands between them.
const LINE_BYTES: usize = 2 * MAX_NAME_BYTES + 48;

/// Who takes which function.
#[derive(Clone, Copy)]
pub(crate) struct Takeover {
    pub(crate) taker: &'static Partition,
    /// The function as the taker knows it.
    pub(crate) share: &'static Share,
}

impl core::fmt::Debug for Takeover {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} takes {}", self.taker.name, self.share.function.bdf)
    }
}

impl Takeover {
    /// Whether the taker's guest could use the function.
    fn judge(&self) -> Result<(), CallError> {
        match self.taker.life_now() {
            Life::Running if self.share.function.is_lost() => Err(CallError::Unsupported),
            Life::Running => Ok(()),
            Life::Ending => Err(CallError::Busy),
            Life::Over => Err(CallError::BadTarget),
        }
    }
}

/// Who carries it out.
struct Worker<'a> {
    cpu: &'a mut ThisCpu,
    machine: &'static Machine,
    vcpu: &'a mut VirtualCpu,
    /// Nobody has ended its guest meanwhile.
    stays: bool,
}

/// Carries a takeover out, and answers the hypercall that asked for it. Whether the guest is still to run.
pub(crate) fn take_over(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    takeover: Takeover,
) -> bool {
    let mut worker = Worker { cpu, machine, vcpu, stays: true };
    let control = worker.wait_for_turn();
    let (control, reply) = worker.move_function(control, takeover);
    machine.turns.give_back(control);
    let Worker { vcpu, stays, .. } = worker;
    let regs = &mut vcpu.world.frame.regs;
    vcpu.world.vmcb.load_into(regs);
    answer(regs, reply);
    vcpu.world.vmcb.store_from(regs);
    stays
}

impl Worker<'_> {
    /// Once around: answers whoever rang, which others wait for, and takes what has arrived.
    fn take_turn(&mut self) {
        self.stays &= self.vcpu.answer(self.machine);
        run::take_turn(self.cpu, self.machine, self.vcpu);
    }

    fn wait_for_turn(&mut self) -> Control {
        let mut turn = self.machine.turns.queue();
        loop {
            match self.machine.turns.take(turn) {
                Ok(control) => return control,
                Err(waiting) => turn = waiting,
            }
            self.take_turn();
        }
    }

    fn move_function(&mut self, control: Control, takeover: Takeover) -> (Control, Reply) {
        let Takeover { taker, share } = takeover;
        // Only who has the right in hand changes it.
        if share.function.ownership.owner() == taker.index {
            return (control, Ok([0; 3]));
        }
        if let Err(refusal) = takeover.judge() {
            return (control, Err(refusal));
        }
        // Claimed else by a partition between two lives, which may itself wait for the right that is in hand here.
        let Ok(mut claim) = share.function.ownership.move_away() else {
            return (control, Err(CallError::Busy));
        };
        // Once more after the claim: who ends says so before he looks what he holds, and waits for a claim.
        match takeover.judge() {
            Ok(()) => self.carry_out(control, takeover, claim),
            Err(refusal) => {
                if let Some(holder) = self.machine.partitions.get(usize::from(claim.owner())) {
                    self.hand_to(holder, share, &mut claim);
                }
                (control, Err(refusal))
            }
        }
    }

    fn carry_out(
        &mut self,
        mut control: Control,
        Takeover { taker, share }: Takeover,
        mut claim: Claim<'static>,
    ) -> (Control, Reply) {
        let (machine, by) = (self.machine, self.vcpu.here().guest());
        let source = share.function.source;
        if let Some(source) = source {
            machine.lines.mask(source, MaskReasons::HANDOVER, &mut machine.wires(by));
        }
        if let Some(loser) = machine.partitions.get(usize::from(claim.owner())) {
            // Whether something was mapped or not: the CPUs' acts are to be over as well.
            let _ = loser.platform.with(|platform| platform.remap());
            self.make_forget(loser, Stale::EVERYTHING);
            taker.platform.with(|platform| {
                let what = format_args!("takes {} over from {}", share.function.bdf, loser.name);
                platform.tell_shortly(LINE_BYTES, what);
            });
        }
        if let (Some(source), Some(vpin)) = (source, share.vpin) {
            let target = Notifier::Pin { partition: taker.index, vpin };
            control = self.drain(control, share, source, target);
        }
        self.hand_to(taker, share, &mut claim);
        if let Some(source) = source {
            let (_, mut deliveries) =
                machine.lines.unmask(source, MaskReasons::HANDOVER, &mut machine.wires(by));
            self.vcpu.deliver(machine, &mut deliveries);
        }
        (control, Ok([1, 0, 0]))
    }

    /// The partition holds the function from here on, with what its guest has written to its configuration space so far.
    fn hand_to(&mut self, partition: &'static Partition, share: &Share, claim: &mut Claim<'static>) {
        let (machine, by) = (self.machine, self.vcpu.here().guest());
        let (stale, deliveries) = partition.platform.with(|platform| {
            claim.pass_to(partition.index);
            // With the platform held: the guest's next write finds that it holds the function.
            let deliveries = share.function.source.and_then(|source| {
                let reason = MaskReasons::GUEST_DISINTX;
                if platform.disables_intx(share.function.bdf) {
                    machine.lines.mask(source, reason, &mut machine.wires(by));
                    return None;
                }
                Some(machine.lines.unmask(source, reason, &mut machine.wires(by)).1)
            });
            (platform.remap(), deliveries)
        });
        if let Some(mut deliveries) = deliveries {
            self.vcpu.deliver(machine, &mut deliveries);
        }
        if !stale.is_nothing() {
            self.make_forget(partition, stale);
        }
    }

    /// Leads the notifier to its new target, and ends all that is left of the old one's time. The reasons go that the guest before
    /// gave, or whose end or fault it was; those that the device gave stay.
    fn drain(&mut self, control: Control, share: &Share, source: SourceId, target: Notifier) -> Control {
        let (machine, by) = (self.machine, self.vcpu.here().guest());
        let control = match machine.lines.replace(control, source, target, Completion::Handover) {
            Ok(replacing) => run::drain(self.cpu, machine, self.vcpu, replacing, by),
            Err((control, _)) => control,
        };
        run::close_source(self.cpu, machine, self.vcpu, source);
        let given = MaskReasons::OPERATOR | MaskReasons::RESET | share.function.forgive_guest();
        let (_, mut deliveries) = machine.lines.unmask(source, given, &mut machine.wires(by));
        self.vcpu.deliver(machine, &mut deliveries);
        control
    }

    /// Waits until every CPU of the partition has forgotten what is stale.
    fn make_forget(&mut self, partition: &'static Partition, stale: Stale) {
        if partition.index == self.vcpu.partition.index {
            stale.forget(self.vcpu.world.vmcb);
        }
        let Some(change) = self.machine.make_forget(self.vcpu.here(), partition) else { return };
        while !run::await_forgotten(self.cpu, self.machine, self.vcpu, partition, change) {
            self.stays = false;
        }
    }
}
