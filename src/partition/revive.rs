//! From one life of a guest to the next: what is kept of a partition for it, and how each part of the partition becomes
//! again what it was at boot.
//!
//! Nothing is allocated. A part that waits or takes long is done in steps by `lives.rs`, since the CPU serves lines that are
//! not only this partition's.

use alloc::vec::Vec;

use levelhead::addr::GuestPhys;
use levelhead::decide::{BAR_WINDOW, DevicePlan};
use levelhead::emulate::{CodePages, DecodeCache};
use levelhead::guest::{BootPlan, EntryState};
use levelhead::intx::MaskReasons;
use levelhead::message::{Message, Record};
use levelhead::pci::reset::{Fault, Method, Saved};
use levelhead::pci::{Bdf, ConfigSpace, Reset};
use levelhead::policy::{NoReset, RestartPolicy};
use levelhead::restart::{Restart, Restarts};
use levelhead::svm::{Inconsistency, NestedTables, Setup};
use levelhead::vcpu::Gpr;

use super::end::End;
use super::watch::eoi_watch;
use super::{Function, Partition};
use crate::arch::svm::vmrun::World;
use crate::arch::x86::clock::Clock;
use crate::arch::x86::cpu::{ThisCpu, tsc};
use crate::report::record;

/// All that a partition needs to start again.
pub(crate) struct Revival {
    /// What its memory holds at first.
    pub(crate) boot: BootPlan<'static>,
    /// How its functions are reset, those of one bus together.
    pub(crate) resets: Vec<Reset>,
    pub(crate) clock: Clock,
    restarts: Restarts,
    /// When the life that is now began.
    began: u64,
}

impl Revival {
    /// What is kept of a partition that has just been assigned its functions, as planned by `devices`.
    pub(crate) fn new(
        policy: RestartPolicy,
        boot: BootPlan<'static>,
        devices: &[DevicePlan],
        space: &impl ConfigSpace,
        clock: Clock,
    ) -> Self {
        let mut resets: Vec<Reset> = Vec::new();
        for device in devices {
            let Some(Ok(method)) = device.reset else { continue };
            if matches!(method, Method::Bus(_)) && resets.iter().any(|reset| reset.method() == method) {
                continue;
            }
            let together = devices.iter().filter(|other| match method {
                Method::Bus(_) => other.reset == device.reset,
                Method::Function(_) | Method::Power(_) => other.bdf == device.bdf,
            });
            let members: Vec<Saved> = together.filter_map(|device| Saved::read(space, device.bdf)).collect();
            resets.push(Reset::new(method, members, clock.ticks_per_ms));
        }
        Self { boot, resets, clock, restarts: Restarts::new(policy), began: 0 }
    }
}

/// Lets a guest that has not run yet begin at its image's entry.
pub(crate) fn begin(
    world: &mut World,
    entry: &EntryState,
    nested: &NestedTables,
) -> Result<(), Inconsistency> {
    let (io_permissions, msr_permissions) = world.permission_maps();
    world.msr.reset_for_guest();
    world.vmcb.configure(&Setup { asid: 1, io_permissions, msr_permissions, nested_root: nested.root() });
    match *entry {
        EntryState::Protected32 { eip, eax, ebx } => {
            world.vmcb.start_protected32(GuestPhys::new(eip.into()));
            world.vmcb.set_rax(eax.into());
            world.frame.regs[Gpr::Rbx] = ebx.into();
        }
        EntryState::Long64 { rip, rsi, cr3, gdt, gdt_bytes } => {
            world.vmcb.start_long64(GuestPhys::new(rip), cr3, gdt, gdt_bytes);
            world.frame.regs[Gpr::Rsi] = rsi;
        }
    }
    world.vmcb.check()
}

impl Partition {
    /// A life begins.
    pub(crate) fn note_begin(&mut self) {
        if let Some(revival) = &mut self.revival {
            revival.began = tsc();
        }
    }

    /// The restart that follows on this end, if one does.
    pub(crate) fn restart_after(&mut self, end: End) -> Option<Restart> {
        let revival = self.revival.as_mut().filter(|_| !end.is_success())?;
        let ran = tsc().saturating_sub(revival.began) / revival.clock.ticks_per_ms;
        let next = revival.restarts.next(ran);
        if next.is_none() {
            let place = format_args!("partition {}", self.name);
            record(Record { message: Message::RestartsUsedUp, place: &place, what: None, remedy: None });
        }
        next
    }

    /// Judges how the reset of a function went, and records what is new of it.
    pub(crate) fn judge_reset(&mut self, bdf: Bdf, outcome: Result<(), Fault>) {
        let name = &self.name;
        let Some(function) = self.functions.iter_mut().find(|function| function.config.bdf() == bdf) else {
            return;
        };
        let before = function.reset.replace(outcome);
        function.lost =
            outcome.is_err_and(|fault| !fault.is_harmless() || function.policy.no_reset == NoReset::Refuse);
        let Err(fault) = outcome else { return };
        if before == Some(outcome) {
            return;
        }
        let message = if function.lost { Message::ResetFailed } else { Message::ResetNoEffect };
        let place = format_args!("partition {name}, device {bdf}");
        record(Record { message, place: &place, what: Some(&fault), remedy: None });
    }

    /// Everything but memory, functions and lines as at boot: registers, chips, ports, BARs, what is remembered of the guest.
    pub(crate) fn renew(&mut self, cpu: &ThisCpu, revival: &Revival) -> Result<(), Inconsistency> {
        self.world.renew(cpu);
        begin(&mut self.world, &revival.boot.entry, &self.nested)?;
        self.receiver.renew();
        for function in &mut self.functions {
            function.config = function.initial.clone();
            function.eoi = eoi_watch(&function.policy, Some(revival.clock));
        }
        self.remap();
        // The last life may have moved its BARs anywhere.
        self.nested.prune(&mut self.pool, BAR_WINDOW.start(), BAR_WINDOW.bytes());
        self.ports.reset();
        self.pages = CodePages::new();
        self.decoded = DecodeCache::new();
        self.mtrr_def_type = 0;
        self.again = (0, 0);
        Ok(())
    }
}

impl Function {
    /// The reasons for which it is silent that end with a life: those of the hypervisor's own doing in between, and those that
    /// the guest gave. That its device misbehaved is forgiven if its state was cleared.
    pub(crate) fn lifted(&self) -> MaskReasons {
        let lifted =
            MaskReasons::RESET | MaskReasons::GUEST_DISINTX | MaskReasons::OPERATOR | MaskReasons::THROTTLE;
        if self.reset == Some(Ok(())) { lifted | MaskReasons::QUARANTINE } else { lifted }
    }
}
