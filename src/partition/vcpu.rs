//! One virtual CPU of a guest: what belongs to the CPU that runs it, and nobody else touches.

use levelhead::addr::GuestPhys;
use levelhead::emulate::{CodePages, DecodeCache};
use levelhead::guest::EntryState;
use levelhead::intx::{Deliveries, Notifier};
use levelhead::irq::Pin;
use levelhead::svm::Stale;
use levelhead::vcpu::{Gpr, GuestRegs};
use levelhead::virq::{Doorbell, Exited, Foreseen, PinSet, Requests, Vcpu, VirtualLapic};

use super::Partition;
use super::ram::{RamPage, Word};
use super::watch::Watch;
use crate::arch::svm::vmrun::World;
use crate::arch::x86::cpu::{cpuid, has_xcr0};
use crate::machine::{Chips, Here, Machine, Receiver};
use crate::report;

/// How often each kind of exit happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exits {
    pub(crate) interrupt: u64,
    pub(crate) msr: u64,
    pub(crate) mmio: u64,
    pub(crate) hlt: u64,
    pub(crate) io: u64,
    pub(crate) cpuid: u64,
    pub(crate) hypercall: u64,
    pub(crate) other: u64,
}

impl Exits {
    /// Counts the others as well.
    pub(super) const fn add(&mut self, others: &Self) {
        let Self { interrupt, msr, mmio, hlt, io, cpuid, hypercall, other } = self;
        *interrupt = interrupt.wrapping_add(others.interrupt);
        *msr = msr.wrapping_add(others.msr);
        *mmio = mmio.wrapping_add(others.mmio);
        *hlt = hlt.wrapping_add(others.hlt);
        *io = io.wrapping_add(others.io);
        *cpuid = cpuid.wrapping_add(others.cpuid);
        *hypercall = hypercall.wrapping_add(others.hypercall);
        *other = other.wrapping_add(others.other);
    }
}

/// A virtual CPU.
pub(crate) struct VirtualCpu {
    pub(crate) id: Vcpu,
    pub(crate) partition: &'static Partition,
    /// The partition's receiving end, and this one's own bell there: at hand, as every exit needs them.
    pub(crate) receiver: &'static Receiver,
    bell: Option<&'static Doorbell>,
    pub(crate) world: World,
    /// Where the guest begins.
    pub(super) entry: EntryState,
    pub(crate) pages: CodePages<Word, RamPage>,
    pub(crate) decoded: DecodeCache,
    pub(crate) exits: Exits,
    /// Where the guest has put this one's local APIC, as its chip has it: only its own writes move it.
    pub(crate) local_apic: GuestPhys,
    /// Whether it is enabled there, or by MSR.
    pub(crate) apic_enabled: bool,
    /// Whether the guest is told of XSAVE: of the CPUs, asked once.
    pub(crate) xsave: bool,
    /// MTRRdefType as the guest wrote it; the memory types themselves are the nested tables' business.
    pub(crate) mtrr_def_type: u64,
    /// Where an instruction was last tried again, and how often.
    pub(crate) again: (u64, u32),
    /// What the other CPUs of the guest must have forgotten before it goes on.
    pub(crate) awaited: Option<u64>,
    /// What the handler of the last exit has seen in the chips of the next entry, if nobody has rung since.
    pub(crate) foreseen: Foreseen,
    /// The last exit has shown that the guest took what it was offered, which the chips are still to be told.
    pub(crate) took_offer: bool,
    /// When the partition's devices are looked at, if a policy asks for it; the boot CPU looks.
    pub(crate) watch: Option<Watch>,
}

impl VirtualCpu {
    /// A virtual CPU that has executed nothing.
    pub(crate) fn new(
        id: Vcpu,
        partition: &'static Partition,
        world: World,
        entry: EntryState,
        watch: Option<Watch>,
    ) -> Self {
        let mut vcpu = Self {
            id,
            partition,
            receiver: partition.receiver,
            bell: partition.receiver.bell(id),
            world,
            entry,
            pages: CodePages::new(),
            decoded: DecodeCache::new(),
            exits: Exits::default(),
            local_apic: GuestPhys::new(0),
            apic_enabled: true,
            xsave: has_xcr0(),
            mtrr_def_type: 0,
            again: (0, 0),
            awaited: None,
            foreseen: Foreseen::Unknown,
            took_offer: false,
            watch,
        };
        vcpu.local_apic_moved();
        vcpu
    }

    /// Who is at work when its CPU is.
    #[inline(always)]
    pub(crate) fn here(&self) -> Here {
        Here { partition: self.partition.index, vcpu: self.id }
    }

    /// Runs `body` with the interrupt chips, alone: see [`Receiver::chips`](crate::machine::Receiver::chips).
    #[inline(always)]
    pub(crate) fn chips<R>(&self, body: impl FnOnce(&mut Chips) -> R) -> R {
        self.receiver.chips(body)
    }

    /// Tells the chips that the guest took what it was offered, if that is news to them.
    #[inline(always)]
    pub(crate) fn tell_taken(&mut self, machine: &Machine) {
        if self.took_offer {
            self.took_offer = false;
            self.tell(machine, Exited { offer_stands: false, interrupted: None });
        }
    }

    /// Tells the chips what an exit has shown.
    #[inline(never)]
    pub(crate) fn tell(&mut self, machine: &Machine, exited: Exited) {
        let id = self.id;
        let taken = self.chips(|chips| chips.after_exit(id, exited));
        if !taken.is_empty() {
            self.complete(machine, taken);
        }
    }

    /// The guest may have moved its local APIC, enabled or disabled it.
    pub(crate) fn local_apic_moved(&mut self) {
        let id = self.id;
        let (page, enabled) =
            self.chips(|chips| (chips.lapic(id).map(VirtualLapic::mmio_base), chips.lapic_enabled(id)));
        self.local_apic = page.unwrap_or(GuestPhys::new(u64::MAX));
        self.apic_enabled = enabled;
    }

    /// Raises the pins of what was delivered beside an interrupt's own way, or records what came to light there, which is nearly
    /// always nothing. Whether there was anything.
    // By reference, as a value would be copied on every interrupt's way.
    #[inline]
    pub(crate) fn deliver(&self, machine: &Machine, deliveries: &mut Deliveries<'_>) -> bool {
        let any = !deliveries.is_nothing();
        if any {
            self.deliver_some(machine, deliveries);
        }
        any
    }

    #[inline(never)]
    fn deliver_some(&self, machine: &Machine, deliveries: &mut Deliveries<'_>) {
        match deliveries.found() {
            Some(vector) => report::finding(machine, vector),
            None => machine.deliver_apart(self.here(), deliveries),
        }
    }

    /// The guest is done with these pins: completes the lines behind each, then lets the pin speak again. Whether none of that can
    /// have brought the guest anything.
    #[inline(never)]
    pub(crate) fn complete(&self, machine: &Machine, pins: PinSet) -> bool {
        pins.into_iter().fold(true, |quiet, vpin| quiet & self.complete_pin(machine, vpin))
    }

    /// [`complete`](Self::complete) of one pin.
    #[inline(never)]
    pub(crate) fn complete_pin(&self, machine: &Machine, vpin: Pin) -> bool {
        let partition = self.partition.index;
        let target = Notifier::Pin { partition, vpin };
        let mut quiet = true;
        let mut sources = machine.lines.listeners(partition, vpin);
        if sources.are_several() {
            // Only those that hold it high: what the others may have in service is not what the guest has seen.
            sources = sources.among(self.chips(|chips| chips.ioapic().contributions(vpin)).into());
        }
        let mut wires = machine.wires(self.here().guest());
        for source in sources {
            let mut deliveries = Deliveries::none();
            machine.lines.complete(source, target, &mut wires, &mut deliveries);
            quiet &= !self.deliver(machine, &mut deliveries);
        }
        // Nearly always the line has lowered the pin, and nobody else holds it high: there is nothing to send again.
        if wires.into_silent() {
            return quiet;
        }
        self.settle(machine, vpin);
        false
    }

    #[inline(never)]
    fn settle(&self, machine: &Machine, vpin: Pin) {
        machine.settle(self.here(), self.partition.index, vpin);
    }

    /// The guest changed a virtual entry's mask bit: the lines behind the pin hear of it before the pin is looked at again,
    /// since an unmask may be a completion.
    pub(crate) fn virtual_rte(&self, machine: &Machine, vpin: Pin, masked: bool) {
        let partition = self.partition.index;
        let target = Notifier::Pin { partition, vpin };
        for source in machine.lines.listeners(partition, vpin) {
            let mut wires = machine.wires(self.here().guest());
            self.deliver(machine, &mut machine.lines.virtual_rte(source, target, masked, &mut wires));
        }
    }

    /// Before its CPU looks what the guest is to get: answers whoever rang, and does what was asked. Whether the guest may
    /// be entered again.
    #[inline]
    pub(crate) fn answer(&mut self, machine: &Machine) -> bool {
        let asked = self.bell.map_or(Requests::NONE, Doorbell::answer);
        asked.is_empty() || self.attend(machine, asked)
    }

    #[inline(never)]
    fn attend(&mut self, machine: &Machine, asked: Requests) -> bool {
        if asked.contains(Requests::FORGET) {
            let change = self.receiver.changes();
            Stale::EVERYTHING.forget(self.world.vmcb);
            self.receiver.forgot(self.id, change);
        }
        self.foreseen = Foreseen::Unknown;
        let due = self.receiver.take_due();
        if !due.is_empty() {
            self.complete(machine, due);
        }
        if asked.contains(Requests::TYPED) {
            self.partition.platform.with(|platform| {
                platform.receive_typed();
                self.follow_com1(machine, platform);
            });
        }
        !asked.contains(Requests::LEAVE)
    }

    /// Sees to it that all CPUs of the guest forget what is stale: this one with its next entry, the others before the
    /// instruction that made it stale is over.
    pub(crate) fn forget(&mut self, machine: &Machine, stale: Stale) {
        stale.forget(self.world.vmcb);
        if !stale.is_nothing() {
            self.awaited = machine.make_forget(self.here(), self.partition).or(self.awaited);
        }
    }

    /// A start-up message: begins in real mode at `page`, with the registers that an INIT leaves (APM2 14.1.3, table 14-1).
    pub(crate) fn start_at(&mut self, page: u8) {
        self.world.vmcb.start_real(page);
        let regs = &mut self.world.frame.regs;
        *regs = GuestRegs::new();
        regs[Gpr::Rdx] = u64::from(cpuid(1, 0).eax);
        self.again = (0, 0);
    }
}
