//! From one life of a guest to the next: what is kept of a partition for it, and how each part of the partition becomes
//! again what it was at boot.
//!
//! Nothing is allocated. A part that waits or takes long is done in steps by `lives.rs`, since the CPU serves lines that are
//! not only this partition's.

use alloc::vec::Vec;

use levelhead::addr::{GuestPhys, HostPhys};
use levelhead::decide::DevicePlan;
use levelhead::emulate::{CodePages, DecodeCache};
use levelhead::guest::{BootPlan, EntryState};
use levelhead::pci::reset::{Method, Saved};
use levelhead::pci::{ConfigSpace, Reset};
use levelhead::policy::RestartPolicy;
use levelhead::restart::{Restart, Restarts};
use levelhead::svm::{Inconsistency, Setup};
use levelhead::vcpu::Gpr;
use levelhead::virq::{Foreseen, Vcpu};

use super::end::End;
use super::platform::Platform;
use super::vcpu::VirtualCpu;
use super::{BOOT, Partition};
use crate::arch::svm::vmrun::World;
use crate::arch::x86::clock::Clock;
use crate::arch::x86::cpu::{ThisCpu, tsc};

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
    /// What is kept of a partition that may have these functions, which have just been assigned.
    pub(crate) fn new(
        policy: RestartPolicy,
        boot: BootPlan<'static>,
        devices: &[&DevicePlan],
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

/// Lets virtual CPU `id` of a guest that has not run yet begin: the first at its image's entry, the others where the guest
/// tells them to.
pub(crate) fn begin(
    world: &mut World,
    id: Vcpu,
    entry: &EntryState,
    nested_root: HostPhys,
) -> Result<(), Inconsistency> {
    let (io_permissions, msr_permissions) = world.permission_maps();
    world.msr.reset_for_guest();
    world.vmcb.configure(&Setup { asid: 1, io_permissions, msr_permissions, nested_root });
    match *entry {
        _ if id != BOOT => world.vmcb.start_real(0),
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
    pub(crate) fn note_begin(&self) {
        self.revival.with(|revival| {
            if let Some(revival) = revival {
                revival.began = tsc();
            }
        });
    }

    /// The restart that follows on this end, if one does.
    pub(crate) fn restart_after(&self, end: End) -> Option<Restart> {
        if end.is_success() {
            return None;
        }
        self.revival.with(|revival| {
            let revival = revival.as_mut()?;
            let ran = tsc().saturating_sub(revival.began) / revival.clock.ticks_per_ms;
            revival.restarts.next(ran)
        })
    }

    /// What the virtual CPUs share and no step of `lives.rs` does as at boot: chips, ports, BARs.
    pub(crate) fn renew(&self) {
        self.receiver.renew();
        self.platform.with(Platform::renew);
    }
}

impl VirtualCpu {
    /// What is this virtual CPU's alone as at boot: registers, what is remembered of the guest.
    pub(crate) fn renew(&mut self, cpu: &ThisCpu) -> Result<(), Inconsistency> {
        self.receiver.returns(self.id);
        self.world.renew(cpu);
        begin(&mut self.world, self.id, &self.entry, self.partition.nested_root)?;
        self.pages = CodePages::new();
        self.decoded = DecodeCache::new();
        self.mtrr_def_type = 0;
        self.again = (0, 0);
        self.awaited = None;
        self.foreseen = Foreseen::Unknown;
        self.took_offer = false;
        if let Some(watch) = &mut self.watch {
            watch.renew(&self.partition.functions);
        }
        self.local_apic_moved();
        Ok(())
    }
}
