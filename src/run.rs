//! The run loop: one CPU, one virtual CPU, from entry to exit and back. The only place where lines (`intx`), virtual pins
//! (`virq`) and the world switch (`arch::svm`) meet, carrying plain values between them.
//!
//! ```text
//! enter the guest ── exit ──┬─ a physical interrupt: window ─> LineTable::assert ─> local APIC EOI ─> deliver
//!     ^                     └─ the guest's own doing: exits.rs (its EOI among them ─> complete)
//!     └──── inject what waits (VirtualChips::before_entry) <───────────────────────────────┘
//! ```

use core::fmt;
use core::hint::spin_loop;
use core::mem;

use levelhead::hypercall::answer;
use levelhead::intx::{
    Actor, Completion, Control, Deliveries, MaskReasons, Notifier, Replacing, SourceId, count,
};
use levelhead::irq::{Gsi, Vector};
use levelhead::message::{Message, Record};
use levelhead::ownership::{Claim, Refused};
use levelhead::svm::{self, NmiMask, Vmcb, interrupted_delivery};
use levelhead::vcpu::Exit;
use levelhead::virq::{Event, Exited, Foreseen, Interruptibility, Rest, Special, VirtualLapic, Windows};
use levelhead::x86::rflags;

use crate::arch::x86::cpu::{ThisCpu, tsc};
use crate::arch::x86::lapic::{CONSOLE_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::console;
use crate::machine::{Here, Machine};
use crate::partition::end::End;
use crate::partition::vcpu::VirtualCpu;
use crate::partition::{BOOT, Partition, Share};
use crate::report::{self, record};
use crate::takeover::{Takeover, take_over};

/// How soon the CPU comes back at first when a non-maskable interrupt has to wait for the guest, in TSC ticks. Doubled
/// each time it came too soon, so that the guest gets its instruction done however slow a world switch is.
const NMI_RETRY_TICKS: u64 = 50_000;
/// How often it is doubled at most.
const NMI_RETRY_DOUBLINGS: u32 = 10;

/// How long an interrupt that was sent may take to be taken and given its EOI, in TSC ticks: some seconds, as an emulator's CPU
/// may stand still for a good part of one.
const HELD_TICKS: u64 = 1 << 34;

/// What an exit's handler leaves for the next entry.
#[derive(Debug)]
pub(crate) enum Next<'m> {
    /// Enter the guest again.
    Enter,
    /// Enter with an exception for the guest.
    Inject(svm::Fault),
    /// Sleep until something wakes the guest.
    Halt,
    /// Wait for the last delivery to a notifier that was replaced, then answer the hypercall.
    Replace(Replacing<'m>),
    /// Take a function over, then answer the hypercall.
    TakeOver(Takeover),
    /// Wait until the other CPUs of the guest have forgotten what they kept before this change.
    Forgotten(u64),
    /// The guest is over.
    End(End),
}

/// What the loop remembers from one entry to the next, besides the partition.
#[derive(Default)]
struct Entry {
    /// An event to be forced, ahead of anything the chips want: an exception for the guest, or what an exit interrupted.
    forced: Option<svm::Event>,
    /// Whether the guest services a non-maskable interrupt.
    nmi: NmiMask,
    /// An exit was asked for when the guest can take interrupts.
    watching: bool,
    /// How often the timer was armed for the non-maskable interrupt that waits.
    retries: u32,
    /// The last entry offered a vector, which is not known to be taken.
    offers: bool,
}

/// Runs a virtual CPU until its guest ends. How, if it was this one that ended it. Out of line, as the gate `no-panic` begins
/// here.
#[inline(never)]
pub(crate) fn run(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu) -> Option<End> {
    let mut entry = Entry::default();
    program_timer(machine, vcpu);
    while vcpu.answer(machine) {
        if !prepare(machine, vcpu, &mut entry) {
            entry = Entry::default();
            match start(cpu, machine, vcpu) {
                Wait::Over => continue,
                Wait::Left => return None,
                Wait::Dead => return Some(End::Halted),
            }
        }
        vcpu.world.enter(cpu);
        leave(machine, vcpu, &mut entry);
        let next = match vcpu.world.vmcb.exit() {
            Exit::Interrupt => {
                count(&mut vcpu.exits.interrupt);
                vcpu.tell_taken(machine);
                let arrived = cpu.window();
                vcpu.foreseen = take(machine, vcpu, arrived);
                Next::Enter
            }
            // Taken by the host's own stub as soon as GIF was set; there is nothing to do for the guest.
            Exit::Nmi | Exit::Smi | Exit::Init | Exit::InterruptWindow => {
                count(&mut vcpu.exits.other);
                vcpu.tell_taken(machine);
                Next::Enter
            }
            Exit::Iret => {
                count(&mut vcpu.exits.other);
                vcpu.tell_taken(machine);
                entry.nmi.stopped_at_iret(vcpu.world.vmcb);
                Next::Enter
            }
            end if vcpu.ends_interrupt(machine, end) => Next::Enter,
            other => vcpu.handle(machine, other),
        };
        match next {
            Next::Enter => {}
            Next::Inject(fault) => {
                if !entry.nmi.raised(vcpu.world.vmcb, fault.vector()) {
                    entry.forced = Some(svm::Event::Exception(fault));
                }
            }
            Next::Halt => match halt(cpu, machine, vcpu) {
                Wait::Over => {}
                Wait::Left => return None,
                Wait::Dead => return Some(End::Halted),
            },
            Next::Replace(replacing) => replace(cpu, machine, vcpu, replacing),
            Next::TakeOver(takeover) => {
                if !take_over(cpu, machine, vcpu, takeover) {
                    return None;
                }
            }
            Next::Forgotten(change) => {
                let own = vcpu.partition;
                if !await_forgotten(cpu, machine, vcpu, own, change) {
                    return None;
                }
            }
            Next::End(end) => return Some(end),
        }
    }
    None
}

/// Decides what the next entry carries and writes it into the control block. Whether there is to be an entry at all: not
/// after an INIT.
#[inline]
fn prepare(machine: &Machine, vcpu: &mut VirtualCpu, entry: &mut Entry) -> bool {
    let foreseen = mem::take(&mut vcpu.foreseen);
    debug_assert!(!vcpu.took_offer, "the chips were not told what the guest took");
    // Nothing is of the loop's own, and the handler of the last exit has looked.
    if entry.forced.is_none() && !entry.watching {
        match foreseen {
            Foreseen::Nothing if !entry.offers => return true,
            Foreseen::Offer(vector) => {
                debug_assert_eq!(
                    vcpu.chips(|chips| chips.lapic(vcpu.id).and_then(VirtualLapic::offered)),
                    Some(vector),
                    "what was foreseen is not what the chips offer"
                );
                vcpu.world.vmcb.set_virtual_interrupt(vector);
                entry.offers = true;
                return true;
            }
            Foreseen::Nothing | Foreseen::Unknown => {}
        }
    }
    let (id, receiver) = (vcpu.id, vcpu.receiver);
    let vmcb = &mut vcpu.world.vmcb;
    let injection = receiver.chips(|chips| chips.before_entry(id, || interruptibility(vmcb, entry)));
    match injection.offer {
        Some(vector) => vmcb.set_virtual_interrupt(vector),
        None if vmcb.virtual_interrupt_pending() => vmcb.clear_virtual_interrupt(),
        None => {}
    }
    entry.offers = injection.offer.is_some();
    if injection.special.is_none() && entry.forced.is_none() && !entry.watching {
        return true;
    }
    prepare_special(machine, vcpu, entry, injection.special.unwrap_or_default())
}

/// What the guest could take besides a vector. Out of line, as it is seldom asked.
#[cold]
#[inline(never)]
fn interruptibility(vmcb: &mut Vmcb, entry: &mut Entry) -> Interruptibility {
    Interruptibility {
        nmi_blocked: entry.nmi.blocks(vmcb),
        shadow: vmcb.interrupt_shadow(),
        interrupts_enabled: vmcb.rflags() & rflags::IF != 0,
        // An emulated instruction may have left its trap to be injected.
        event_taken: entry.forced.is_some() || vmcb.injection_pending(),
    }
}

/// The rest of an entry that carries more than an offer, or that comes after one which did.
#[inline(never)]
fn prepare_special(machine: &Machine, vcpu: &mut VirtualCpu, entry: &mut Entry, special: Special) -> bool {
    let vmcb = &mut *vcpu.world.vmcb;
    if special.reset {
        vmcb.intercept_iret(false);
        vmcb.intercept_interrupt_window(false);
        return false;
    }
    if let Some(event) = entry.forced.take() {
        vmcb.inject(event);
    }
    match special.event {
        Some(Event::Interrupt(vector)) => vmcb.inject(svm::Event::Interrupt(vector)),
        Some(Event::Nmi) => {
            vmcb.inject(svm::Event::Nmi);
            entry.nmi.deliver(vmcb);
            entry.retries = 0;
        }
        Some(Event::External(vector)) => vmcb.inject(svm::Event::External(vector)),
        None => {}
    }
    if special.windows.contains(Windows::IRET) {
        entry.nmi.step(vmcb);
    }
    if special.windows.contains(Windows::DELIVERY) {
        machine.interrupt_itself(vcpu.receiver, vcpu.id);
    }
    // The first boundary with interrupts on tells of the end of a shadow, and the timer where they stay off. The window needs a
    // pending virtual interrupt; it is intercepted before it is delivered, so its vector means nothing.
    let watch = special.windows.intersects(Windows::INSTRUCTION | Windows::INTERRUPTS);
    if watch != entry.watching {
        vmcb.intercept_interrupt_window(watch);
        entry.watching = watch;
    }
    if watch
        && !entry.offers
        && let Some(any) = Vector::new(u8::MAX)
    {
        vmcb.set_virtual_interrupt(any);
    }
    if special.windows.contains(Windows::INSTRUCTION) {
        machine.apic.arm_timer(machine.rate, NMI_RETRY_TICKS << entry.retries.min(NMI_RETRY_DOUBLINGS));
        entry.retries = entry.retries.saturating_add(1);
    }
    true
}

/// Reads what the exit tells about events under way.
#[inline]
fn leave(machine: &Machine, vcpu: &mut VirtualCpu, entry: &mut Entry) {
    let vmcb = &mut vcpu.world.vmcb;
    let offer_stands = vmcb.virtual_interrupt_pending();
    let mut exited = Exited { offer_stands, interrupted: None };
    if vmcb.interrupted_a_delivery() {
        exited.interrupted = interrupted(vmcb, entry, offer_stands);
    }
    vmcb.exited();
    // Nothing was offered and nothing struck: nothing for the chips to learn.
    if !entry.offers && exited.interrupted.is_none() {
        return;
    }
    if offer_stands || exited.interrupted.is_some() {
        vcpu.tell(machine, exited);
    } else {
        // Whoever deals with the exit tells the chips, which for an EOI is one look at them instead of two.
        vcpu.took_offer = true;
    }
    entry.offers = offer_stands;
}

/// The vector whose delivery the exit interrupted; another event is forced again by the loop itself. Out of line, as it is rare.
#[cold]
#[inline(never)]
fn interrupted(vmcb: &Vmcb, entry: &mut Entry, offer_stands: bool) -> Option<Vector> {
    match interrupted_delivery(vmcb.exit_int_info(), offer_stands) {
        Some(svm::Event::Interrupt(vector)) => Some(vector),
        event => {
            entry.forced = event;
            None
        }
    }
}

/// Handles what a window has brought. What that makes of the guest's next entry, if nothing else comes before it.
#[inline]
pub(crate) fn take(machine: &'static Machine, vcpu: &mut VirtualCpu, arrived: Option<Vector>) -> Foreseen {
    let Some(vector) = arrived else { return Foreseen::Unknown };
    if let Some(foreseen) = take_line(machine, vcpu.here(), vector) {
        vcpu.partition.counters.count_interrupt();
        foreseen
    } else {
        take_local(machine, vcpu, vector);
        Foreseen::Unknown
    }
}

/// Handles what a window has brought to a CPU without a guest, as [`take`] does for one with: other partitions' lines may lead to
/// it.
pub(crate) fn serve(machine: &'static Machine, arrived: Option<Vector>) {
    let Some(vector) = arrived else { return };
    // Nobody's, so that whoever takes a delivery is told.
    let here = Here { partition: u8::MAX, vcpu: BOOT };
    if take_line(machine, here, vector).is_none() {
        acknowledge(machine, here, vector);
    }
}

/// Ends a vector that is no line's, and answers the console if it is that one's.
#[cold]
fn acknowledge(machine: &Machine, here: Here, vector: Vector) {
    // A spurious interrupt is not in service and takes no EOI (APM2 16.4.7).
    if vector.get() == SPURIOUS_VECTOR {
        return;
    }
    machine.apic.eoi();
    if vector.get() == CONSOLE_VECTOR {
        console::commands().for_each(|command| report::answer(machine, command));
        machine.typed(here);
    }
}

/// Handles the vector of a line, if it is one's. Each source is silenced before the vector's EOI at the local APIC, so
/// that nothing can arrive twice. What it makes of the next entry of the guest at work.
fn take_line(machine: &'static Machine, here: Here, vector: Vector) -> Option<Foreseen> {
    let mut deliveries = Deliveries::none();
    if !machine.lines.assert(vector, &mut machine.wires(Actor::Device), &mut deliveries) {
        return None;
    }
    machine.apic.eoi();
    if deliveries.is_empty() {
        report::finding(machine, vector);
        return Some(Foreseen::Unknown);
    }
    Some(machine.deliver(here, &mut deliveries))
}

/// A vector of the hypervisor's own, or one that nobody expects. A kick has done its work by being there.
#[cold]
fn take_local(machine: &'static Machine, vcpu: &mut VirtualCpu, vector: Vector) {
    acknowledge(machine, vcpu.here(), vector);
    if vector.get() == TIMER_VECTOR {
        let (id, now) = (vcpu.id, tsc());
        vcpu.chips(|chips| chips.advance_timer(id, now));
        vcpu.look(machine, now);
        program_timer(machine, vcpu);
    }
}

/// Lets the CPU's timer interrupt when the guest's timer is due, or a look at its devices.
pub(crate) fn program_timer(machine: &Machine, vcpu: &VirtualCpu) {
    let guest = vcpu.chips(|chips| chips.deadline(vcpu.id));
    match guest.into_iter().chain(vcpu.next_look()).min() {
        Some(deadline) => machine.apic.arm_timer(machine.rate, deadline.saturating_sub(tsc())),
        None => machine.apic.disarm_timer(),
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// By what was waited for.
    Over,
    /// By another virtual CPU that ended the guest.
    Left,
    /// Not: nothing can end it any more.
    Dead,
}

/// Sleeps until something wakes the guest. Out of line: within the loop it would cost every exit registers.
#[inline(never)]
fn halt(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu) -> Wait {
    loop {
        if !vcpu.answer(machine) {
            return Wait::Left;
        }
        let (id, enabled) = (vcpu.id, vcpu.world.vmcb.rflags() & rflags::IF != 0);
        match vcpu.chips(|chips| chips.rest(id, enabled)) {
            Rest::Wakes => return Wait::Over,
            // A guest that single-steps traps behind HLT.
            _ if vcpu.world.vmcb.injection_pending() => return Wait::Over,
            Rest::Sleeps => {}
            Rest::ForEver => return Wait::Dead,
        }
        let arrived = cpu.idle();
        let foreseen = take(machine, vcpu, arrived);
        // What it was offered ends its rest, as another look would find.
        if let (true, Foreseen::Offer(_)) = (enabled, foreseen) {
            vcpu.foreseen = foreseen;
            return Wait::Over;
        }
    }
}

/// Sleeps until a start-up message comes, of which an INIT has made the virtual CPU dependent, and acts on it.
#[inline(never)]
fn start(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu) -> Wait {
    let id = vcpu.id;
    loop {
        if !vcpu.answer(machine) {
            return Wait::Left;
        }
        let (page, rest) = vcpu.chips(|chips| {
            chips.take_init(id);
            (chips.take_startup(id), chips.rest(id, false))
        });
        if let Some(page) = page {
            vcpu.start_at(page);
            program_timer(machine, vcpu);
            return Wait::Over;
        }
        if rest == Rest::ForEver {
            return Wait::Dead;
        }
        let arrived = cpu.idle();
        take(machine, vcpu, arrived);
    }
}

/// Sees a replacement through, and answers the hypercall that asked for it.
fn replace(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    replacing: Replacing<'static>,
) {
    retire(cpu, machine, vcpu, replacing, vcpu.here().guest());
    let regs = &mut vcpu.world.frame.regs;
    vcpu.world.vmcb.load_into(regs);
    answer(regs, Ok([0; 3]));
    vcpu.world.vmcb.store_from(regs);
}

/// Waits until nobody uses the old notifier any more, and gives the right to replace back.
fn retire(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    replacing: Replacing<'static>,
    by: Actor,
) {
    let control = drain(cpu, machine, vcpu, replacing, by);
    machine.turns.give_back(control);
}

/// Waits until nobody uses the old notifier any more. Deliveries to it may be in flight on other CPUs, which need nothing
/// from this one but that it takes its interrupts meanwhile.
pub(crate) fn drain(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    mut replacing: Replacing<'static>,
    by: Actor,
) -> Control {
    let mut deliveries = Deliveries::none();
    loop {
        match replacing.poll(&mut machine.wires(by), &mut deliveries) {
            Ok(done) => {
                vcpu.deliver(machine, &mut deliveries);
                return done.control;
            }
            Err(unfinished) => {
                replacing = unfinished;
                take_turn(cpu, machine, vcpu);
            }
        }
    }
}

/// Waits until the CPUs of a guest, this one or another, have forgotten what they kept before `change`, but for this CPU. Each was
/// kicked and does so on its way out of the guest or out of its sleep, at the latest when the exit that it is at is dealt with;
/// this one takes its own interrupts and answers its own bell meanwhile, so that two that wait for each other both go on. Whether
/// the guest is still to run.
#[inline(never)]
pub(crate) fn await_forgotten(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    whose: &Partition,
    change: u64,
) -> bool {
    let own = (whose.index == vcpu.partition.index).then_some(vcpu.id);
    while !whose.receiver.all_forgot(own, change) {
        if !vcpu.answer(machine) {
            return false;
        }
        take_turn(cpu, machine, vcpu);
    }
    true
}

/// The virtual CPU enters its guest no more: what it had under way ends, and others need not wait for it.
#[inline(never)]
pub(crate) fn depart(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu) {
    machine.apic.disarm_timer();
    vcpu.last_look(machine);
    if let Some(forcing) = vcpu.take_forcing() {
        retire(cpu, machine, vcpu, forcing, Actor::Hypervisor);
    }
    vcpu.receiver.departs(vcpu.id);
    vcpu.partition.left(vcpu.id, mem::take(&mut vcpu.exits));
}

/// Waits until every other virtual CPU has left the guest, which each was asked to.
#[inline(never)]
pub(crate) fn await_deserted(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu) {
    while !vcpu.partition.is_deserted() {
        take_turn(cpu, machine, vcpu);
    }
}

/// Silences every source of a guest that nobody runs any more, and closes its books: what was in service ends as a reset.
#[inline(never)]
pub(crate) fn quiesce(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu) {
    let partition: &'static Partition = vcpu.partition;
    for share in &partition.functions {
        let Some(source) = share.function.source else { continue };
        let Some(_claim) = keep(cpu, machine, vcpu, share) else { continue };
        machine.lines.mask(source, MaskReasons::RESET, &mut machine.wires(Actor::Hypervisor));
        take_turn(cpu, machine, vcpu);
        replace_now(cpu, machine, vcpu, source, Notifier::None, Completion::Reset);
        close_source(cpu, machine, vcpu, source);
    }
    // What came to light beside a delivery, or at an EOI.
    for line in machine.lines.line_reports() {
        report::finding(machine, line.vector);
    }
}

/// Claims a function for a partition none of whose guest's CPUs is at work; none if another has it. Whoever moves it now does so
/// for a bounded time.
pub(crate) fn keep(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    share: &'static Share,
) -> Option<Claim<'static>> {
    loop {
        match share.function.ownership.keep(vcpu.partition.index) {
            Ok(claim) => return Some(claim),
            Err(Refused::Foreign) => return None,
            Err(Refused::Claimed) => take_turn(cpu, machine, vcpu),
        }
    }
}

/// Replaces a source's notifier, and returns when the old one is out of use.
pub(crate) fn replace_now(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    source: SourceId,
    new: Notifier,
    how: Completion,
) {
    // Another CPU holds the right for a bounded time, and may wait for this one to take its interrupts.
    let mut turn = machine.turns.queue();
    let control = loop {
        match machine.turns.take(turn) {
            Ok(control) => break control,
            Err(waiting) => turn = waiting,
        }
        take_turn(cpu, machine, vcpu);
    };
    match machine.lines.replace(control, source, new, how) {
        Ok(replacing) => retire(cpu, machine, vcpu, replacing, Actor::Hypervisor),
        Err((control, _)) => machine.turns.give_back(control),
    }
}

/// Makes sure that nothing of a silent source's past is left: no interrupt of a line that is masked as a whole is still on
/// its way (Remote IRR, I48), and its books balance (N5). Out of line, so that a debugger finds it.
#[inline(never)]
pub(crate) fn close_source(
    cpu: &mut ThisCpu,
    machine: &'static Machine,
    vcpu: &mut VirtualCpu,
    source: SourceId,
) {
    let Some(report) = machine.lines.source_report(source) else { return };
    let partition = vcpu.partition;
    if let Err(imbalance) = report.account.balance() {
        let what = format_args!("{imbalance:?}");
        record_bug(partition, report.gsi, Message::LedgerOpen, Some(&what));
    }
    let mut lines = machine.lines.line_reports();
    let silent = lines.any(|line| line.gsi == report.gsi && line.state.is_to_fall_silent());
    let begin = tsc();
    while silent && machine.io_apics.with(|chips| chips.is_held(report.gsi)) {
        // Taken by whichever CPU it was sent to, and each looks at its interrupts soon.
        if tsc().saturating_sub(begin) > HELD_TICKS {
            record_bug(partition, report.gsi, Message::LineHeld, None);
            machine.io_apics.with(|chips| chips.let_go(report.gsi));
            return;
        }
        take_turn(cpu, machine, vcpu);
    }
}

/// One turn of a wait for another CPU: takes what has arrived meanwhile.
#[inline(never)]
pub(crate) fn take_turn(cpu: &mut ThisCpu, machine: &'static Machine, vcpu: &mut VirtualCpu) {
    spin_loop();
    let arrived = cpu.window();
    take(machine, vcpu, arrived);
}

#[cold]
fn record_bug(partition: &Partition, gsi: Gsi, message: Message, what: Option<&dyn fmt::Display>) {
    let place = format_args!("partition {}, {gsi}", partition.name);
    record(Record { message, place: &place, what, remedy: None });
}
