//! What all CPUs share: the interrupt lines, the chips behind them, configuration space, and each partition's receiving end.
//!
//! Built once at boot and shared by reference; nothing in it allocates afterwards. [`Wires`] is where the library's rules
//! for lines touch hardware on one side and a partition's virtual pin on the other, whoever's CPU it happens on.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use levelhead::config::COM1_PIN;
use levelhead::decide::MAX_SOURCES;
use levelhead::device::Output;
use levelhead::intx::{Actor, Deliveries, Delivery, LineIo, LineTable, Notifier, Sample, SourceId, Turns};
use levelhead::irq::{ApicId, Gsi, Pin, Vector};
use levelhead::pci::{Bdf, ConfigSpace, DisIntx, Offset};
use levelhead::virq::{
    Contributor, Doorbell, Foreseen, LapicModel, MAX_VCPUS, PinSet, Requests, Settled, Vcpu, VcpuSet,
    VirtualChips,
};

use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::cpu::tsc;
use crate::arch::x86::ioapic::IoApics;
use crate::arch::x86::lapic::{KICK_VECTOR, LocalApic, TimerRate};
use crate::console;
use crate::order::{Hold, Ordered, Rank};
use crate::partition::ram::PollCounter;
use crate::partition::{BOOT, Partition};

/// A partition's interrupt chips.
pub(crate) type Chips = VirtualChips;

/// Counters in guests' memory that notifiers may lead to.
pub(crate) const POLL_COUNTERS: u16 = MAX_SOURCES as u16 * 2;

/// The machine's shared half.
pub(crate) struct Machine {
    /// Every line with its permanent handler.
    pub(crate) lines: LineTable,
    /// The right to replace notifiers, and who waits for it.
    pub(crate) turns: Turns,
    /// The physical IO-APICs.
    pub(crate) io_apics: Ordered<IoApics>,
    /// Physical configuration space.
    pub(crate) config: HostConfig,
    /// Who writes DisINTx, by source.
    pub(crate) dis_intx: [Option<DisIntx>; MAX_SOURCES as usize],
    /// The partitions.
    pub(crate) partitions: Vec<&'static Partition>,
    /// Where interrupts go, by partition.
    pub(crate) receivers: &'static [Receiver],
    /// Where they are only counted: two for each source, so that the one that is not in use can be led to another word.
    pub(crate) poll_counters: [PollCounter; POLL_COUNTERS as usize],
    /// The number of the partition whose terminal the console is.
    pub(crate) terminal: Option<usize>,
    /// The way to each CPU's local APIC.
    pub(crate) apic: LocalApic,
    /// Who is told when a partition on another CPU has ended.
    pub(crate) boot_cpu: ApicId,
    /// The local timers' speed.
    pub(crate) rate: TimerRate,
}

/// Who is at work: the virtual CPU that the running CPU belongs to. It is not kicked for what it does itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Here {
    /// Its partition.
    pub(crate) partition: u8,
    /// Which of its virtual CPUs.
    pub(crate) vcpu: Vcpu,
}

impl Here {
    /// The guest, for what it asks for.
    #[inline(always)]
    pub(crate) const fn guest(self) -> Actor {
        Actor::Guest(self.partition)
    }
}

/// A partition's receiving end, which any CPU may reach: its interrupt chips and the way to those who run it.
#[derive(Debug)]
pub(crate) struct Receiver {
    chips: Ordered<Chips>,
    /// By virtual CPU.
    doors: Vec<Door>,
    /// Pins to be completed without the guest, as it made them deliver NMI or INIT, by whichever of its CPUs comes first.
    due: AtomicU32,
    /// How often something was taken from the guest that its CPUs may have kept.
    changes: AtomicU64,
}

/// The way to a virtual CPU, on a cache line of its own: all CPUs write here.
#[derive(Debug)]
#[repr(align(64))]
struct Door {
    apic: ApicId,
    bell: Doorbell,
    /// Up to which change it has forgotten what it may have kept.
    forgot: AtomicU64,
    /// How often its CPU was interrupted to look, since boot.
    kicks: AtomicU64,
}

impl Receiver {
    /// The receiving end of a partition whose virtual CPUs run on these CPUs, at most [`MAX_VCPUS`].
    pub(crate) fn new(cpus: impl Iterator<Item = ApicId>, model: LapicModel) -> Self {
        let door =
            |apic| Door { apic, bell: Doorbell::new(), forgot: AtomicU64::new(0), kicks: AtomicU64::new(0) };
        let doors: Vec<Door> = cpus.take(MAX_VCPUS.into()).map(door).collect();
        Self {
            chips: Ordered::new(Rank::Chips, Chips::new(doors.len() as u8, model)),
            doors,
            due: AtomicU32::new(0),
            changes: AtomicU64::new(0),
        }
    }

    /// Makes the chips what they are at power-up, and forgets what was asked of the virtual CPUs, none of which runs. No notifier
    /// leads here.
    pub(crate) fn renew(&self) {
        self.chips(Chips::renew);
        self.due.store(0, Ordering::Release);
        for door in &self.doors {
            let _ = door.bell.answer();
        }
    }

    /// How many virtual CPUs the partition has.
    pub(crate) fn vcpus(&self) -> u8 {
        // At most MAX_VCPUS.
        self.doors.len() as u8
    }

    /// How often the CPUs of its virtual CPUs were interrupted to look, since boot.
    pub(crate) fn kicks(&self) -> u64 {
        self.doors.iter().fold(0, |sum, door| sum.wrapping_add(door.kicks.load(Ordering::Relaxed)))
    }

    fn numbered(&self) -> impl Iterator<Item = (Vcpu, &Door)> {
        (0..=u8::MAX).map(Vcpu).zip(&self.doors)
    }

    /// Runs `body` with the chips, alone. Nothing of a line and of no other partition is reached from in there.
    #[inline(always)]
    pub(crate) fn chips<R>(&self, body: impl FnOnce(&mut Chips) -> R) -> R {
        self.chips.with(body)
    }

    /// Where `vcpu` is told to look; it answers before it does.
    pub(crate) fn bell(&self, vcpu: Vcpu) -> Option<&Doorbell> {
        self.doors.get(usize::from(vcpu.0)).map(|door| &door.bell)
    }

    /// The pins that wait for a completion without the guest. One completion a look bounds what a device that keeps
    /// asserting can cost.
    pub(crate) fn take_due(&self) -> PinSet {
        PinSet::from_bits(self.due.swap(0, Ordering::AcqRel))
    }

    /// How often something was taken from the guest. Whoever forgets all it kept after asking has forgotten all of that.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// `vcpu`, which is not in the guest, uses nothing any more that it kept before this change.
    pub(crate) fn forgot(&self, vcpu: Vcpu, change: u64) {
        if let Some(door) = self.doors.get(usize::from(vcpu.0)) {
            door.forgot.fetch_max(change, Ordering::AcqRel);
        }
    }

    /// `vcpu` enters the guest no more, and keeps nothing.
    pub(crate) fn departs(&self, vcpu: Vcpu) {
        self.forgot(vcpu, u64::MAX);
    }

    /// `vcpu` is about to enter the guest again. What it will keep is of now: its first entry flushes.
    pub(crate) fn returns(&self, vcpu: Vcpu) {
        if let Some(door) = self.doors.get(usize::from(vcpu.0)) {
            // A read-modify-write as well, see `all_forgot`.
            door.forgot.swap(self.changes(), Ordering::AcqRel);
        }
    }

    /// Whether every virtual CPU but `asking` has forgotten what it kept before this change.
    pub(crate) fn all_forgot(&self, asking: Option<Vcpu>, change: u64) -> bool {
        // A read-modify-write, so that a CPU which returns later sees what was taken away.
        let forgot = |door: &Door| door.forgot.fetch_add(0, Ordering::AcqRel) >= change;
        self.numbered().all(|(vcpu, door)| Some(vcpu) == asking || forgot(door))
    }
}

impl Machine {
    /// Both ends of the lines, for calls into the table on somebody's behalf. No chips are held in one.
    #[inline(always)]
    pub(crate) fn wires(&self, actor: Actor) -> Wires<'_> {
        Wires { machine: self, actor, silent: false, _line: Hold::begin(Rank::Line) }
    }

    /// Raises the pins of what the running CPU's interrupt delivered, whoever's they are, and wakes those who take it. What that makes of
    /// the next entry of the guest at work, which this CPU is about to enter.
    #[inline(always)]
    pub(crate) fn deliver(&self, here: Here, deliveries: &mut Deliveries<'_>) -> Foreseen {
        let mut foreseen = Foreseen::Unknown;
        for delivery in deliveries {
            foreseen = match self.offer(here, &delivery) {
                Some(vector) => Foreseen::Offer(vector),
                None => self.send(here, &delivery).unwrap_or(foreseen),
            };
        }
        foreseen
    }

    /// [`Machine::deliver`] for what was delivered beside an interrupt's own way.
    #[inline(never)]
    pub(crate) fn deliver_apart(&self, here: Here, deliveries: &mut Deliveries<'_>) {
        for delivery in deliveries {
            self.send(here, &delivery);
        }
    }

    /// Offers a delivery to the guest at work, if it is for that guest's running CPU and nothing keeps it back, as nearly always.
    #[inline(always)]
    fn offer(&self, here: Here, delivery: &Delivery<'_>) -> Option<Vector> {
        let Notifier::Pin { partition, vpin } = delivery.target() else { return None };
        let contributor = Contributor::new(delivery.source().0)?;
        if partition != here.partition {
            return None;
        }
        let receiver = self.receivers.get(usize::from(partition))?;
        receiver.chips(|chips| chips.offer_from_pin(here.vcpu, vpin, contributor))
    }

    /// Raises the pin of a delivery, and wakes those who take its message. What that makes of the next entry of the guest at work, if
    /// it is that guest's.
    #[inline(never)]
    fn send(&self, here: Here, delivery: &Delivery<'_>) -> Option<Foreseen> {
        let (partition, vpin) = match delivery.target() {
            Notifier::Pin { partition, vpin } => (partition, vpin),
            Notifier::Poll { counter } => {
                self.count(counter);
                return None;
            }
            Notifier::None => return None,
        };
        let receiver = self.receivers.get(usize::from(partition))?;
        let contributor = Contributor::new(delivery.source().0)?;
        let own = partition == here.partition;
        let (settled, next) = receiver
            .chips(|chips| (chips.assert_pin(vpin, contributor), own.then(|| chips.foresee(here.vcpu))));
        let elsewhere = self.follow(here, partition, receiver, vpin, settled);
        if !elsewhere.is_empty() {
            self.aim(delivery.source(), receiver, settled.takers);
        }
        next
    }

    /// Counts a delivery to a poll counter.
    #[cold]
    fn count(&self, counter: u16) {
        if let Some(counter) = self.poll_counters.get(usize::from(counter)) {
            counter.count();
        }
    }

    /// Follows with a pin of the partition at work what its COM1 says.
    pub(crate) fn com1(&self, here: Here, output: Output) {
        self.drive(here, COM1_PIN, Contributor::PLATFORM, output);
    }

    /// The test device of the partition at work raises its line to a pin, and to an input of the 8259 pair, or lowers it.
    pub(crate) fn test_line(&self, here: Here, pin: Pin, high: bool) {
        self.drive(here, pin, Contributor::TEST_DEVICE, Output { high, fell: !high });
        self.pics(here, |chips| ((), chips.drive_irq(pin.0, high)));
    }

    /// The partition at work reads a port of its 8259 pair.
    pub(crate) fn read_pics(&self, here: Here, port: u16) -> u8 {
        self.pics(here, |chips| chips.pic_read(port)).unwrap_or(u8::MAX)
    }

    /// The partition at work writes to a port of its 8259 pair.
    pub(crate) fn write_pics(&self, here: Here, port: u16, value: u8) {
        self.pics(here, |chips| ((), chips.pic_write(port, value)));
    }

    fn pics<R>(&self, here: Here, body: impl FnOnce(&mut Chips) -> (R, VcpuSet)) -> Option<R> {
        let receiver = self.receivers.get(usize::from(here.partition))?;
        let (result, told) = receiver.chips(body);
        let told = told.without(here.vcpu);
        if !told.is_empty() {
            self.kick(receiver, told, Requests::LOOK);
        }
        Some(result)
    }

    /// What the hypervisor plays for the guest at work drives a pin.
    fn drive(&self, here: Here, pin: Pin, contributor: Contributor, Output { high, fell }: Output) {
        let Some(receiver) = self.receivers.get(usize::from(here.partition)) else { return };
        let settled = receiver.chips(|chips| {
            if fell {
                chips.deassert_pin(pin, contributor);
            }
            if high { chips.assert_pin(pin, contributor) } else { Settled::default() }
        });
        self.follow(here, here.partition, receiver, pin, settled);
    }

    /// Lets a pin of partition number `partition` deliver what it still holds after its completion.
    #[inline(always)]
    pub(crate) fn settle(&self, here: Here, partition: u8, vpin: Pin) {
        if let Some(receiver) = self.receivers.get(usize::from(partition)) {
            let settled = receiver.chips(|chips| chips.settle(vpin));
            self.follow(here, partition, receiver, vpin, settled);
        }
    }

    /// Lets a pin of the partition at work deliver what it holds, after its entry was written.
    pub(crate) fn look(&self, here: Here, vpin: Pin) {
        if let Some(receiver) = self.receivers.get(usize::from(here.partition)) {
            let settled = receiver.chips(|chips| chips.look(vpin));
            self.follow(here, here.partition, receiver, vpin, settled);
        }
    }

    /// Sees to it that those who took a pin's message look. Returns those who do so on another CPU.
    #[inline(always)]
    fn follow(&self, here: Here, partition: u8, receiver: &Receiver, vpin: Pin, settled: Settled) -> VcpuSet {
        let own = partition == here.partition;
        if settled.completion_due {
            self.complete_later(receiver, vpin, if own { Some(here.vcpu) } else { None });
        }
        let told = if own { settled.takers.without(here.vcpu) } else { settled.takers };
        if !told.is_empty() {
            self.kick(receiver, told, Requests::LOOK);
        }
        told
    }

    /// Leaves a pin to whichever CPU of its partition looks next; `here` does so before its next entry.
    #[cold]
    fn complete_later(&self, receiver: &Receiver, vpin: Pin, here: Option<Vcpu>) {
        receiver.due.fetch_or(PinSet::of(vpin).bits(), Ordering::AcqRel);
        if let Some(door) = here.and_then(|vcpu| receiver.doors.get(usize::from(vcpu.0))) {
            door.bell.note(Requests::LOOK);
        }
    }

    /// The message of `source` was taken elsewhere: if by one virtual CPU, the line is to lead there from its next unmasking
    /// on, so that the next one needs no kick.
    #[cold]
    fn aim(&self, source: SourceId, receiver: &Receiver, takers: VcpuSet) {
        let door = takers.only().and_then(|vcpu| receiver.doors.get(usize::from(vcpu.0)));
        let destination = door.and_then(|door| u8::try_from(door.apic.0).ok());
        if let (Some(destination), Some(gsi)) = (destination, self.lines.gsi(source)) {
            self.io_apics.with(|chips| chips.aim(gsi, destination));
        }
    }

    /// Something was typed: the guest whose terminal the console is looks, by its boot CPU.
    #[cold]
    pub(crate) fn typed(&self, here: Here) {
        let Some(index) = self.terminal.filter(|_| console::is_typed()) else { return };
        let Some(receiver) = self.receivers.get(index) else { return };
        if usize::from(here.partition) != index || here.vcpu != BOOT {
            self.kick(receiver, VcpuSet::EMPTY.with(BOOT), Requests::TYPED);
        } else if let Some(door) = receiver.doors.first() {
            door.bell.note(Requests::TYPED);
        }
    }

    /// Makes virtual CPUs that run elsewhere look at what they have to do.
    #[inline(never)]
    pub(crate) fn kick(&self, receiver: &Receiver, vcpus: VcpuSet, requests: Requests) {
        let Some(vector) = Vector::new(KICK_VECTOR) else { return };
        for (vcpu, door) in receiver.numbered() {
            if vcpus.contains(vcpu) && door.bell.ring(requests) {
                door.kicks.fetch_add(1, Ordering::Relaxed);
                self.apic.send(door.apic, vector);
            }
        }
    }

    /// Interrupts the running CPU, which is that of `vcpu`: it comes back from its next entry before the guest executes anything,
    /// but after the event that the entry injects.
    #[cold]
    pub(crate) fn interrupt_itself(&self, receiver: &Receiver, vcpu: Vcpu) {
        if let (Some(door), Some(vector)) =
            (receiver.doors.get(usize::from(vcpu.0)), Vector::new(KICK_VECTOR))
        {
            self.apic.send(door.apic, vector);
        }
    }

    /// Asks all virtual CPUs of a partition for something, but `here`.
    pub(crate) fn kick_others(&self, here: Here, partition: &Partition, requests: Requests) {
        let receiver = partition.receiver;
        let own = |vcpu: Vcpu| partition.index == here.partition && vcpu == here.vcpu;
        let others = receiver.numbered().map(|(vcpu, _)| vcpu).filter(|vcpu| !own(*vcpu));
        self.kick(receiver, others.fold(VcpuSet::EMPTY, VcpuSet::with), requests);
    }

    /// Has the CPUs of a guest forget what they may have kept, but `here`. The change to wait for, see
    /// [`Receiver::all_forgot`], if there are such.
    pub(crate) fn make_forget(&self, here: Here, partition: &Partition) -> Option<u64> {
        let receiver = partition.receiver;
        if partition.index == here.partition && receiver.vcpus() == 1 {
            return None;
        }
        let change = receiver.changes.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        self.kick_others(here, partition, Requests::FORGET);
        Some(change)
    }
}

/// Both ends of the lines. Whoever has one may be inside a line; see [`Machine::wires`].
pub(crate) struct Wires<'a> {
    machine: &'a Machine,
    actor: Actor,
    /// See [`Wires::into_silent`].
    silent: bool,
    _line: Hold,
}

impl<'a> Wires<'a> {
    /// Whether the pin that was lowered last, if one was, went low for good: what it was asserted for is completed, and nobody else asserts it.
    #[inline(always)]
    pub(crate) fn into_silent(self) -> bool {
        self.silent
    }

    /// The receiver and the pin that `target` names.
    #[inline(always)]
    fn pin(&self, target: Notifier) -> Option<(&'a Receiver, Pin)> {
        match target {
            Notifier::Pin { partition, vpin } => {
                Some((self.machine.receivers.get(usize::from(partition))?, vpin))
            }
            Notifier::None | Notifier::Poll { .. } => None,
        }
    }
}

impl LineIo for Wires<'_> {
    #[inline]
    fn mask_rte(&mut self, gsi: Gsi) {
        self.machine.io_apics.with(|chips| chips.set_mask(gsi, true));
    }

    #[inline]
    fn unmask_rte(&mut self, gsi: Gsi) {
        self.machine.io_apics.with(|chips| chips.set_mask(gsi, false));
    }

    fn directed_eoi(&mut self, gsi: Gsi, vector: Vector) {
        self.machine.io_apics.with(|chips| chips.directed_eoi(gsi, vector));
    }

    // Out of line, like the next: only function gates come here, and the search would be spread over every path.
    #[inline(never)]
    fn set_disintx(&mut self, bdf: u16, set: bool) {
        let writer = self.machine.dis_intx.iter().flatten().find(|writer| writer.bdf().requester_id() == bdf);
        if let Some(writer) = writer {
            writer.write(&self.machine.config, set);
        }
    }

    #[inline(never)]
    fn intx_status(&mut self, bdf: u16) -> Sample {
        Sample::from_command_status(self.machine.config.read32(Bdf::from_requester_id(bdf), Offset::COMMAND))
    }

    #[inline]
    fn lower_pin(&mut self, source: SourceId, target: Notifier) {
        if let (Some((receiver, pin)), Some(contributor)) = (self.pin(target), Contributor::new(source.0)) {
            self.silent = receiver.chips(|chips| chips.lower_pin(pin, contributor));
        }
    }

    fn holds_pin(&mut self, source: SourceId, target: Notifier) -> bool {
        if let Notifier::Poll { .. } = target {
            return true;
        }
        self.pin(target).is_some_and(|(receiver, pin)| {
            let contributions = receiver.chips(|chips| chips.ioapic().contributions(pin));
            contributions.checked_shr(source.0.into()).is_some_and(|bits| bits & 1 != 0)
        })
    }

    fn virtual_rte_masked(&mut self, target: Notifier) -> bool {
        if let Notifier::Poll { .. } = target {
            return false;
        }
        let rte = |(receiver, pin): (&Receiver, Pin)| receiver.chips(|chips| chips.ioapic().rte(pin));
        self.pin(target).and_then(rte).is_none_or(|rte| rte.is_masked())
    }

    #[inline]
    fn now(&mut self) -> u64 {
        tsc()
    }

    #[inline]
    fn actor(&self) -> Actor {
        self.actor
    }
}
