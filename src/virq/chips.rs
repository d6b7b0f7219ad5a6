//! The interrupt chips of one partition put together: messages of the IO-APIC find their local APICs,
//! messages between local APICs too, and EOIs find their way back to pins.

use alloc::vec::Vec;
use core::cmp::Reverse;

use super::inject::{Event, Exited, Injection, Interruptibility, Undelivered};
use super::message::{Delivery, Destination, Ipi, IpiTarget, Message};
use super::pic::Pics;
use super::pins::{Contributor, PinSet};
use super::vioapic::{self, Completion, RteChanged, VirtualIoapic};
use super::vlapic::{self, ApicMode, Eoi, GeneralProtection, LapicModel, VirtualLapic};
use crate::irq::{ApicId, Pin, TriggerMode, Vector};

#[cfg(test)]
mod tests;

/// A virtual CPU of the partition, counted from 0; 0 is its boot CPU and the number is its APIC identifier
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vcpu(pub u8);

/// The most virtual CPUs of a partition: as many as a [`VcpuSet`] holds.
pub const MAX_VCPUS: u8 = 32;

/// A set of virtual CPUs, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSet(u32);

impl VcpuSet {
    /// No virtual CPU.
    pub const EMPTY: Self = Self(0);

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `vcpu` is in the set.
    pub const fn contains(self, vcpu: Vcpu) -> bool {
        vcpu.0 < 32 && self.0 & 1 << vcpu.0 != 0
    }

    /// Everyone in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Everyone and `vcpu`.
    #[must_use]
    pub const fn with(mut self, vcpu: Vcpu) -> Self {
        self.insert(vcpu);
        self
    }

    /// The one that is the only member.
    pub const fn only(self) -> Option<Vcpu> {
        if self.0.is_power_of_two() { Some(Vcpu(self.0.trailing_zeros() as u8)) } else { None }
    }

    /// Everyone but `vcpu`.
    #[must_use]
    pub const fn without(self, vcpu: Vcpu) -> Self {
        if vcpu.0 < 32 { Self(self.0 & !(1 << vcpu.0)) } else { self }
    }

    const fn insert(&mut self, vcpu: Vcpu) {
        if vcpu.0 < 32 {
            self.0 |= 1 << vcpu.0;
        }
    }
}

/// Where a raised pin's message ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Settled {
    /// Who took it. Those that are not running their guest's code right now, or not on this CPU, are to be
    /// kicked.
    pub takers: VcpuSet,
    /// Whether the pin's line is to be completed now, because no acknowledgement will come. Rare: the guest
    /// made the pin deliver NMI or INIT.
    pub completion_due: bool,
}

/// What a guest's access asks of the run loop.
///
/// The order matters. For `rte`: first tell the lines behind the pin that its mask bit changed, since an unmask may be
/// the completion that deasserts it (I38, N9); then [`look`](VirtualChips::look) at the pin. For `completed`: complete the line behind
/// each pin, which may deassert it; then [`settle`](VirtualChips::settle) the pin. Both deliver what is still asserted. They differ
/// where another virtual CPU is between the two steps of a completion: a pin that was looked at then says nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    /// Pins whose interrupt the guest is done with.
    pub completed: PinSet,
    /// Virtual CPUs that got something to do; the one that made the access may be among them.
    pub kicked: VcpuSet,
    /// Whether the deadline of the accessing virtual CPU may have changed.
    pub timer_changed: bool,
    /// The redirection table entry that was written.
    pub rte: Option<RteChanged>,
}

/// What a look at the chips has shown of a virtual CPU's next entry, for as long as nothing else happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Foreseen {
    /// That is for [`before_entry`](VirtualChips::before_entry) to say.
    #[default]
    Unknown,
    /// It carries nothing.
    Nothing,
    /// It offers this vector and does nothing else.
    Offer(Vector),
}

/// What an EOI leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ended {
    /// As [`Outcome::completed`].
    pub completed: PinSet,
    /// The next entry, unless the completion changes it.
    pub next: Foreseen,
}

/// One virtual CPU's share.
#[derive(Debug)]
struct Local {
    lapic: VirtualLapic,
    undelivered: Undelivered,
}

impl Local {
    fn new(index: u8, model: LapicModel) -> Self {
        Self {
            lapic: VirtualLapic::new(ApicId(index.into()), index == 0, model),
            undelivered: Undelivered::NONE,
        }
    }

    /// The guest ends the interrupt of highest priority in service, having taken what it was offered if that is news.
    #[inline(always)]
    fn end_interrupt(&mut self, ioapic: &mut VirtualIoapic, took_offer: bool) -> Ended {
        let eoi = if took_offer { self.lapic.eoi_of_offered() } else { self.lapic.eoi() };
        let completed = match eoi {
            Some(Eoi { vector, trigger: TriggerMode::Edge, .. }) if took_offer => {
                ioapic.acknowledged(vector.get())
            }
            Some(eoi) => ioapic.hear(eoi),
            None => PinSet::EMPTY,
        };
        let waits = !self.is_plain() || self.lapic.pending().is_some();
        Ended { completed, next: if waits { Foreseen::Unknown } else { Foreseen::Nothing } }
    }

    /// Whether the vector that waits decides the next entry alone: no non-maskable interrupt waits, nothing was interrupted. Nearly
    /// always.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        !self.lapic.has_more_than_vectors() && !self.undelivered.is_some()
    }

    /// The next entry, if the vector that waits decides it.
    #[inline(always)]
    fn foresee(&mut self) -> Foreseen {
        if !self.is_plain() {
            return Foreseen::Unknown;
        }
        match self.lapic.offer() {
            Some(vector) => Foreseen::Offer(vector),
            None => Foreseen::Nothing,
        }
    }

    /// An entry that may have to do more than to offer a vector.
    #[cold]
    fn decide(&mut self, pics: &mut Option<Pics>, cpu: Interruptibility) -> Injection {
        let Self { lapic, undelivered } = self;
        lapic.take_back();
        if lapic.has_nmi() && cpu.nmi_blocked {
            lapic.collapse_nmis();
        }
        let mut injection = undelivered.decide(lapic.pending(), lapic.has_nmi(), cpu);
        if lapic.awaits_startup() {
            injection.special.get_or_insert_default().reset = true;
        }
        if injection.special.is_some_and(|special| special.event == Some(Event::Nmi)) {
            lapic.take_nmi();
        }
        if let Some(pics) = pics
            && lapic.has_external()
            && !lapic.awaits_startup()
        {
            injection = injection.with_external(cpu, || pics.acknowledge());
            lapic.drive_lint0(pics.output());
        }
        if injection.offer.is_some() {
            lapic.offer();
        }
        injection
    }
}

/// How a virtual CPU that executes nothing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It has something to do now.
    Wakes,
    /// Something may come that wakes it.
    Sleeps,
    /// Nothing ever will: it and all others of its partition can only be roused by each other.
    ForEver,
}

/// The chips of a partition.
///
/// A [`Vcpu`] or [`Pin`] the partition does not have is never an error: nothing answers there.
#[derive(Debug)]
pub struct VirtualChips {
    model: LapicModel,
    locals: Vec<Local>,
    ioapic: VirtualIoapic,
    /// The 8259 pair, of guests that have one, drives LINT0 of the boot CPU.
    pics: Option<Pics>,
    /// Who executes nothing and is roused by no interrupt.
    deaf: VcpuSet,
}

impl VirtualChips {
    /// The chips of a partition with this many virtual CPUs, 1 to [`MAX_VCPUS`], after power-up.
    pub fn new(vcpus: u8, model: LapicModel) -> Self {
        let locals = (0..vcpus.clamp(1, MAX_VCPUS)).map(|index| Local::new(index, model)).collect();
        Self { model, locals, ioapic: VirtualIoapic::new(), pics: None, deaf: VcpuSet::EMPTY }
    }

    /// Adds an 8259 pair, as firmware leaves it: initialised, and let through at the boot CPU's LINT0.
    pub fn add_pics(&mut self) {
        self.pics = Some(Pics::new());
        if let Some(boot) = self.locals.first_mut() {
            boot.lapic.open_lint0();
        }
    }

    /// The chips after power-up once more, in the same memory.
    pub fn renew(&mut self) {
        for (index, local) in (0..=u8::MAX).zip(&mut self.locals) {
            *local = Local::new(index, self.model);
        }
        self.ioapic = VirtualIoapic::new();
        self.deaf = VcpuSet::EMPTY;
        if self.pics.is_some() {
            self.add_pics();
        }
    }

    /// The IO-APIC, for reports.
    pub const fn ioapic(&self) -> &VirtualIoapic {
        &self.ioapic
    }

    /// The local APIC of `vcpu`, for reports and CPUID.
    pub fn lapic(&self, vcpu: Vcpu) -> Option<&VirtualLapic> {
        self.locals.get(usize::from(vcpu.0)).map(|local| &local.lapic)
    }

    #[inline]
    fn local(&mut self, vcpu: Vcpu) -> Option<&mut Local> {
        self.locals.get_mut(usize::from(vcpu.0))
    }

    #[inline]
    fn numbered(&mut self) -> impl Iterator<Item = (Vcpu, &mut VirtualLapic)> {
        (0..MAX_VCPUS).map(Vcpu).zip(self.locals.iter_mut().map(|local| &mut local.lapic))
    }

    // Pins.

    /// `contributor` asserts `pin`, and the message goes out if the pin may send one.
    #[inline(always)]
    pub fn assert_pin(&mut self, pin: Pin, contributor: Contributor) -> Settled {
        self.ioapic.assert(pin, contributor);
        match self.ioapic.pending(pin) {
            Some(message) => self.send_from(pin, message),
            None => Settled::default(),
        }
    }

    /// [`assert_pin`](Self::assert_pin) and [`foresee`](Self::foresee) in one, where the pin sends a level to `vcpu` alone and nothing keeps
    /// that back: then `vcpu` is offered it. Nearly every interrupt of a line. If it is not so, nothing has changed.
    #[inline(always)]
    pub fn offer_from_pin(&mut self, vcpu: Vcpu, pin: Pin, contributor: Contributor) -> Option<Vector> {
        let Self { ioapic, locals, .. } = self;
        let local = locals.get_mut(usize::from(vcpu.0))?;
        ioapic.assert_direct(pin, contributor, |direct| {
            direct.apic == vcpu.0 && local.is_plain() && local.lapic.offer_at_once(direct.vector)
        })
    }

    /// `contributor` deasserts `pin`.
    #[inline]
    pub fn deassert_pin(&mut self, pin: Pin, contributor: Contributor) {
        self.ioapic.deassert(pin, contributor);
    }

    /// What `contributor` asserted `pin` for is completed. Whether that leaves nothing to [settle](Self::settle): the EOI has come,
    /// and nobody else asserts the pin.
    #[inline(always)]
    pub fn lower_pin(&mut self, pin: Pin, contributor: Contributor) -> bool {
        self.ioapic.lower(pin, contributor)
    }

    /// Sends what `pin` has to send after a completion of what is behind it, if anything.
    #[inline(always)]
    pub fn settle(&mut self, pin: Pin) -> Settled {
        self.ioapic.completed(pin);
        self.look(pin)
    }

    /// Sends what `pin` has to send, if anything. Remote IRR goes up only when somebody took it; otherwise
    /// the pin keeps its message for the next call.
    #[inline(always)]
    pub fn look(&mut self, pin: Pin) -> Settled {
        match self.ioapic.pending(pin) {
            // What a pin has to send after a completion is another source's, or a device's next interrupt: seldom anything.
            Some(message) => self.speak_again(pin, message),
            None => Settled::default(),
        }
    }

    #[inline(never)]
    fn speak_again(&mut self, pin: Pin, message: Message) -> Settled {
        self.send_from(pin, message)
    }

    #[inline(always)]
    fn send_from(&mut self, pin: Pin, message: Message) -> Settled {
        let takers = self.route(message.destination, message.delivery, message.trigger);
        let completion_due = !takers.is_empty() && self.ioapic.accepted(pin, message) == Completion::Now;
        Settled { takers, completion_due }
    }

    // The 8259 pair.

    /// Input `irq` of the 8259 pair goes high or low. Returns who is to look.
    pub fn drive_irq(&mut self, irq: u8, high: bool) -> VcpuSet {
        self.with_pics(|pics| pics.set_input(irq, high)).map_or(VcpuSet::EMPTY, |((), told)| told)
    }

    /// A read of one of the 8259 pair's ports; ones where there is no pair. Who is to look.
    pub fn pic_read(&mut self, port: u16) -> (u8, VcpuSet) {
        self.with_pics(|pics| pics.read(port)).unwrap_or((u8::MAX, VcpuSet::EMPTY))
    }

    /// A write to one of the 8259 pair's ports. Who is to look.
    pub fn pic_write(&mut self, port: u16, value: u8) -> VcpuSet {
        self.with_pics(|pics| pics.write(port, value)).map_or(VcpuSet::EMPTY, |((), told)| told)
    }

    fn with_pics<R>(&mut self, body: impl FnOnce(&mut Pics) -> R) -> Option<(R, VcpuSet)> {
        let pics = self.pics.as_mut()?;
        let result = body(pics);
        let Local { lapic, .. } = self.locals.first_mut()?;
        lapic.drive_lint0(pics.output());
        let told = if lapic.has_external() { VcpuSet::EMPTY.with(Vcpu(0)) } else { VcpuSet::EMPTY };
        Some((result, told))
    }

    // Messages.

    /// Offers a message to everyone it addresses; returns who took it.
    // Always: a pin's message then stays in registers on its way from the entry to IRR, a sixth of the whole
    // path.
    #[inline(always)]
    fn route(&mut self, destination: Destination, delivery: Delivery, trigger: TriggerMode) -> VcpuSet {
        if let Delivery::LowestPriority(_) = delivery {
            return self.arbitrate(destination, delivery, trigger);
        }
        match destination.only() {
            Some(id) => self.route_to(id, delivery, trigger),
            None => self.route_to_all(destination, delivery, trigger),
        }
    }

    /// Offers a message to the local APIC with this identifier, which is its virtual CPU's number.
    #[inline(always)]
    fn route_to(&mut self, id: u32, delivery: Delivery, trigger: TriggerMode) -> VcpuSet {
        let Ok(vcpu) = u8::try_from(id).map(Vcpu) else { return VcpuSet::EMPTY };
        let mut takers = VcpuSet::EMPTY;
        if let Some(Local { lapic, .. }) = self.local(vcpu)
            && lapic.mode() != ApicMode::Disabled
            && lapic.receive(delivery, trigger)
        {
            takers.insert(vcpu);
        }
        takers
    }

    #[inline(never)]
    fn route_to_all(
        &mut self,
        destination: Destination,
        delivery: Delivery,
        trigger: TriggerMode,
    ) -> VcpuSet {
        let mut takers = VcpuSet::EMPTY;
        for (vcpu, lapic) in self.numbered() {
            if lapic.matches(destination) && lapic.receive(delivery, trigger) {
                takers.insert(vcpu);
            }
        }
        takers
    }

    /// Offers a message to the one of those it addresses that runs at the lowest priority; among equals, to
    /// the highest number (APM2 16.6.2).
    #[inline(never)]
    fn arbitrate(&mut self, destination: Destination, delivery: Delivery, trigger: TriggerMode) -> VcpuSet {
        let mut takers = VcpuSet::EMPTY;
        let winner = self
            .numbered()
            .filter(|(_, lapic)| lapic.accepts_interrupts() && lapic.matches(destination))
            .min_by_key(|&(vcpu, ref lapic)| (lapic.arbitration_priority(), Reverse(vcpu)));
        if let Some((vcpu, lapic)) = winner
            && lapic.receive(delivery, trigger)
        {
            takers.insert(vcpu);
        }
        takers
    }

    fn send(&mut self, sender: Vcpu, ipi: Ipi) -> VcpuSet {
        let Ipi { delivery, target } = ipi;
        match target {
            IpiTarget::Addressed(destination) => self.route(destination, delivery, TriggerMode::Edge),
            IpiTarget::Itself | IpiTarget::All | IpiTarget::Others => {
                let mut takers = VcpuSet::EMPTY;
                for (vcpu, lapic) in self.numbered() {
                    let addressed = match target {
                        IpiTarget::Itself => vcpu == sender,
                        IpiTarget::Others => vcpu != sender,
                        _ => true,
                    };
                    if addressed && lapic.receive(delivery, TriggerMode::Edge) {
                        takers.insert(vcpu);
                    }
                }
                takers
            }
        }
    }

    // The guest's accesses.

    fn broadcast(&mut self, eoi: Eoi) -> Outcome {
        Outcome { completed: self.ioapic.hear(eoi), ..Outcome::default() }
    }

    /// A read of the IO-APIC's window; arguments as [`VirtualIoapic::mmio_read`].
    pub fn ioapic_read(&self, offset: u64, bytes: u8) -> u64 {
        self.ioapic.mmio_read(offset, bytes)
    }

    /// A write to the IO-APIC's window; arguments as [`VirtualIoapic::mmio_write`].
    pub fn ioapic_write(&mut self, offset: u64, bytes: u8, value: u64) -> Outcome {
        match self.ioapic.mmio_write(offset, bytes, value) {
            vioapic::Effect::None => Outcome::default(),
            vioapic::Effect::Completed(completed) => Outcome { completed, ..Outcome::default() },
            vioapic::Effect::Rte(changed) => {
                let completed = if changed.completion_due { PinSet::of(changed.pin) } else { PinSet::EMPTY };
                Outcome { completed, rte: Some(changed), ..Outcome::default() }
            }
        }
    }

    /// A read of the register page of `vcpu`'s local APIC; arguments as [`VirtualLapic::mmio_read`].
    pub fn lapic_read(&mut self, vcpu: Vcpu, offset: u64, bytes: u8, now_tsc: u64) -> u64 {
        self.local(vcpu).map_or(u64::MAX, |local| local.lapic.mmio_read(offset, bytes, now_tsc))
    }

    /// A write to the register page of `vcpu`'s local APIC; arguments as [`VirtualLapic::mmio_write`].
    pub fn lapic_write(&mut self, vcpu: Vcpu, offset: u64, bytes: u8, value: u64, now_tsc: u64) -> Outcome {
        let Some(Local { lapic, .. }) = self.local(vcpu) else { return Outcome::default() };
        let effect = lapic.mmio_write(offset, bytes, value, now_tsc);
        self.apply(vcpu, effect)
    }

    /// A read of APIC_BASE, the timer's deadline or an x2APIC register by `vcpu`.
    ///
    /// # Errors
    /// As [`VirtualLapic::read_msr`].
    pub fn read_msr(&self, vcpu: Vcpu, msr: u32, now_tsc: u64) -> Result<u64, GeneralProtection> {
        self.lapic(vcpu).ok_or(GeneralProtection)?.read_msr(msr, now_tsc)
    }

    /// A write to APIC_BASE, the timer's deadline or an x2APIC register by `vcpu`.
    ///
    /// # Errors
    /// As [`VirtualLapic::write_msr`].
    pub fn write_msr(
        &mut self,
        vcpu: Vcpu,
        msr: u32,
        value: u64,
        now_tsc: u64,
    ) -> Result<Outcome, GeneralProtection> {
        let Local { lapic, .. } = self.local(vcpu).ok_or(GeneralProtection)?;
        let effect = lapic.write_msr(msr, value, now_tsc)?;
        Ok(self.apply(vcpu, effect))
    }

    /// [`lapic_write`](Self::lapic_write) of so many bytes at the EOI register's offset, if that is an EOI. Every interrupt ends here or in
    /// [`eoi_msr`](Self::eoi_msr): past the register file's dispatch, with the same effect. `took_offer` if the exit has shown that the CPU
    /// took what it was offered and nothing more; [`after_exit`](Self::after_exit) is not called then, unless this is no EOI.
    #[inline(always)]
    pub fn eoi_page(&mut self, vcpu: Vcpu, bytes: u8, took_offer: bool) -> Option<Ended> {
        let Self { locals, ioapic, .. } = self;
        let local = locals.get_mut(usize::from(vcpu.0))?;
        local.lapic.takes_mmio_eoi(bytes).then(|| local.end_interrupt(ioapic, took_offer))
    }

    /// [`write_msr`](Self::write_msr) of the EOI register, if that is an EOI.
    #[inline(always)]
    pub fn eoi_msr(&mut self, vcpu: Vcpu, value: u64, took_offer: bool) -> Option<Ended> {
        let Self { locals, ioapic, .. } = self;
        let local = locals.get_mut(usize::from(vcpu.0))?;
        local.lapic.takes_msr_eoi(value).then(|| local.end_interrupt(ioapic, took_offer))
    }

    #[inline(never)]
    fn apply(&mut self, vcpu: Vcpu, effect: vlapic::Effect) -> Outcome {
        match effect {
            vlapic::Effect::None => Outcome::default(),
            vlapic::Effect::Eoi(eoi) => self.broadcast(eoi),
            vlapic::Effect::Ipi(ipi) => Outcome { kicked: self.send(vcpu, ipi), ..Outcome::default() },
            vlapic::Effect::TimerChanged => Outcome { timer_changed: true, ..Outcome::default() },
            vlapic::Effect::AcceptanceChanged => self.settle_all(),
        }
    }

    /// Every pin again, after a local APIC changed what it takes.
    fn settle_all(&mut self) -> Outcome {
        let mut outcome = Outcome { timer_changed: true, ..Outcome::default() };
        for pin in (0..vioapic::PINS).map(Pin) {
            let Settled { takers, completion_due } = self.look(pin);
            outcome.kicked = outcome.kicked.union(takers);
            if completion_due {
                outcome.completed.insert(pin);
            }
        }
        outcome
    }

    /// What `vcpu` reads in CR8.
    pub fn cr8(&self, vcpu: Vcpu) -> u64 {
        self.lapic(vcpu).map_or(0, VirtualLapic::cr8)
    }

    /// A write to CR8 by `vcpu`.
    ///
    /// # Errors
    /// As [`VirtualLapic::set_cr8`].
    pub fn set_cr8(&mut self, vcpu: Vcpu, value: u64) -> Result<(), GeneralProtection> {
        self.local(vcpu).ok_or(GeneralProtection)?.lapic.set_cr8(value)
    }

    // The virtual CPU.

    /// What `vcpu`'s next entry carries if nothing else comes before it, as far as that is a vector: it is offered then, and taken back
    /// with the next look.
    #[inline(always)]
    pub fn foresee(&mut self, vcpu: Vcpu) -> Foreseen {
        self.local(vcpu).map_or(Foreseen::Unknown, Local::foresee)
    }

    /// What `vcpu`'s next entry carries. A non-maskable interrupt in it counts as taken. `cpu` is asked only if it matters.
    #[inline]
    pub fn before_entry(&mut self, vcpu: Vcpu, cpu: impl FnOnce() -> Interruptibility) -> Injection {
        let Some(local) = self.locals.get_mut(usize::from(vcpu.0)) else { return Injection::default() };
        match local.foresee() {
            Foreseen::Unknown => local.decide(&mut self.pics, cpu()),
            Foreseen::Nothing => Injection::default(),
            Foreseen::Offer(vector) => Injection { offer: Some(vector), special: None },
        }
    }

    /// Evaluates `vcpu`'s exit; to be called before anything else is done about it. Returns pins to complete
    /// and then to settle: those that are programmed as edge-triggered and whose vector the CPU has just
    /// taken.
    #[inline]
    pub fn after_exit(&mut self, vcpu: Vcpu, exited: Exited) -> PinSet {
        let Some(Local { lapic, undelivered }) = self.local(vcpu) else { return PinSet::EMPTY };
        undelivered.exited(exited, lapic.offered());
        if exited.offer_stands {
            lapic.take_back();
            return PinSet::EMPTY;
        }
        match lapic.taken() {
            Some((vector, TriggerMode::Edge)) => self.ioapic.acknowledged(vector.get()),
            Some((_, TriggerMode::Level)) | None => PinSet::EMPTY,
        }
    }

    /// How `vcpu` goes on, which executes nothing: halted, with interrupts enabled or not, or waiting for a start-up message.
    ///
    /// That everybody has come to rest for ever is judged in this one look at the chips: whoever could still rouse another has
    /// either done so, which shows here, or executes and is not at rest.
    pub fn rest(&mut self, vcpu: Vcpu, interrupts_enabled: bool) -> Rest {
        let Some(Local { lapic, .. }) = self.local(vcpu) else { return Rest::ForEver };
        lapic.take_back();
        let listens = interrupts_enabled && !lapic.awaits_startup();
        if lapic.is_roused() || listens && (lapic.pending().is_some() || lapic.has_external()) {
            self.deaf = self.deaf.without(vcpu);
            return Rest::Wakes;
        }
        if listens {
            return Rest::Sleeps;
        }
        self.deaf.insert(vcpu);
        let deaf = self.deaf;
        let for_ever = self.numbered().all(|(vcpu, lapic)| deaf.contains(vcpu) && !lapic.is_roused());
        if for_ever { Rest::ForEver } else { Rest::Sleeps }
    }

    /// When `vcpu`'s timer is due, as a TSC value.
    #[inline]
    pub fn deadline(&self, vcpu: Vcpu) -> Option<u64> {
        self.lapic(vcpu).and_then(VirtualLapic::deadline)
    }

    /// `vcpu`'s TSC is ahead of the caller's time stamps by so much from now on, which may change its timer's deadline.
    pub fn set_ahead(&mut self, vcpu: Vcpu, ahead_tsc: u64, now_tsc: u64) {
        if let Some(Local { lapic, .. }) = self.local(vcpu) {
            lapic.set_ahead(ahead_tsc, now_tsc);
        }
    }

    /// Lets `vcpu`'s timer run up to `now_tsc`. Returns whether an interrupt came of it.
    #[inline]
    pub fn advance_timer(&mut self, vcpu: Vcpu, now_tsc: u64) -> bool {
        self.local(vcpu).is_some_and(|local| local.lapic.advance_timer(now_tsc))
    }

    /// Whether an INIT arrived for `vcpu`: its registers are to be reset. What was offered to it is
    /// forgotten.
    pub fn take_init(&mut self, vcpu: Vcpu) -> bool {
        let Some(Local { lapic, undelivered }) = self.local(vcpu) else { return false };
        let init = lapic.take_init();
        if init {
            *undelivered = Undelivered::NONE;
        }
        init
    }

    /// Whether `vcpu` executes nothing until a start-up message arrives.
    pub fn awaits_startup(&self, vcpu: Vcpu) -> bool {
        self.lapic(vcpu).is_some_and(VirtualLapic::awaits_startup)
    }

    /// The page at which `vcpu` is to begin, once.
    pub fn take_startup(&mut self, vcpu: Vcpu) -> Option<u8> {
        self.local(vcpu)?.lapic.take_startup()
    }

    /// Whether `vcpu`'s local APIC can be reached at all; CPUID's APIC bit says so to the guest.
    pub fn lapic_enabled(&self, vcpu: Vcpu) -> bool {
        self.lapic(vcpu).is_some_and(|lapic| lapic.mode() != ApicMode::Disabled)
    }
}
