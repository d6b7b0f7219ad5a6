//! The chips together, driven as a guest and its run loop drive them: a small machine whose CPUs take what is
//! offered at once when their interrupt flag allows it, and run a handler that may use every register.

use super::*;
use crate::ioapic::{MMIO_DATA, MMIO_EOI, MMIO_INDEX, REG_RTE_BASE};
use crate::irq::Level;
use crate::virq::inject::Special;

#[cfg(not(loom))]
mod properties;
mod vcpu;

const MODEL: LapicModel = LapicModel { x2apic: true, physical_address_bits: 40 };
const DEVICE: Contributor = Contributor::new(0).unwrap();
const LINE: Contributor = Contributor::new(1).unwrap();
const PIN: Pin = Pin(14);
const OTHER: Pin = Pin(15);
const EDGE: u32 = 0;
const LEVEL: u32 = 1 << 15;
const LOGICAL: u32 = 1 << 11;
const MASKED: u32 = 1 << 16;
const BOOT: Vcpu = Vcpu(0);

type Handler<const N: usize> = fn(&mut Machine<N>, Vcpu, usize);

struct Machine<const N: usize> {
    chips: VirtualChips,
    interrupts_enabled: bool,
    /// Called for every interrupt, with how often this vector was taken before.
    handler: Handler<N>,
    /// Every interrupt taken, in order.
    taken: Vec<(u8, u8)>,
    /// Every pin the chips asked to complete, in order.
    completed: Vec<u8>,
    /// A wire outside that asserts its pin again after each completion, as a physical line does, while it is
    /// high.
    wire: Option<Pin>,
    nmis: usize,
}

impl<const N: usize> Machine<N> {
    /// All local APICs in xAPIC mode and enabled by software.
    fn new(handler: Handler<N>) -> Self {
        let mut machine = Self {
            chips: VirtualChips::new(u8::try_from(N).unwrap(), MODEL),
            interrupts_enabled: true,
            handler,
            taken: vec![],
            completed: vec![],
            wire: None,
            nmis: 0,
        };
        for vcpu in Self::vcpus() {
            machine.lapic(vcpu, 0xf0, 0x1ff);
        }
        machine
    }

    fn vcpus() -> impl Iterator<Item = Vcpu> {
        (0..u8::try_from(N).unwrap()).map(Vcpu)
    }

    fn act(&mut self, outcome: Outcome) {
        self.complete(outcome.completed);
        // No line here waits for an unmask, so the pin is looked at right away.
        if let Some(changed) = outcome.rte {
            let settled = self.chips.look(changed.pin);
            if settled.completion_due {
                self.complete(PinSet::of(changed.pin));
            }
        }
    }

    /// The run loop's part: complete the line behind each pin, then settle the pin.
    fn complete(&mut self, pins: PinSet) {
        for pin in pins {
            self.completed.push(pin.0);
            let silent = self.chips.lower_pin(pin, LINE);
            if self.wire == Some(pin) {
                self.assert(pin, LINE);
            }
            if !silent && self.chips.settle(pin).completion_due {
                self.complete(PinSet::of(pin));
            }
        }
    }

    fn assert(&mut self, pin: Pin, contributor: Contributor) {
        let settled = self.chips.assert_pin(pin, contributor);
        if settled.completion_due {
            self.complete(PinSet::of(pin));
        }
    }

    fn lapic(&mut self, vcpu: Vcpu, offset: u64, value: u64) {
        let outcome = self.chips.lapic_write(vcpu, offset, 4, value, 0);
        self.act(outcome);
    }

    fn msr(&mut self, vcpu: Vcpu, msr: u32, value: u64) {
        let outcome = self.chips.write_msr(vcpu, msr, value, 0).unwrap();
        self.act(outcome);
    }

    fn eoi(&mut self, vcpu: Vcpu) {
        let ended = self.chips.eoi_msr(vcpu, 0, false).or_else(|| self.chips.eoi_page(vcpu, 4, false));
        if let Some(Ended { completed, next }) = ended {
            if next == Foreseen::Nothing {
                let next = self.chips.before_entry(vcpu, Interruptibility::default);
                assert_eq!(next, Injection::default(), "the EOI said that nothing waits");
            }
            self.complete(completed);
        }
    }

    fn ioapic(&mut self, index: u8, value: u32) {
        self.ioapic_window(MMIO_INDEX, u32::from(index));
        self.ioapic_window(MMIO_DATA, value);
    }

    fn ioapic_window(&mut self, offset: u64, value: u32) {
        let outcome = self.chips.ioapic_write(offset, 4, u64::from(value));
        self.act(outcome);
    }

    fn redirect_low(&mut self, pin: Pin, low: u32) {
        self.ioapic(REG_RTE_BASE + 2 * pin.0, low);
    }

    fn redirect_high(&mut self, pin: Pin, destination: u8) {
        self.ioapic(REG_RTE_BASE + 2 * pin.0 + 1, u32::from(destination) << 24);
    }

    /// Read, change the mask, write back.
    fn mask(&mut self, pin: Pin, masked: bool) {
        let rte = self.chips.ioapic().rte(pin).unwrap();
        self.redirect_low(pin, rte.with_mask(masked).low());
    }

    fn remote_irr(&self, pin: Pin) -> bool {
        self.chips.ioapic().rte(pin).unwrap().remote_irr()
    }

    /// What a guest does with a port that drives a pin.
    fn line(&mut self, pin: Pin, high: bool) {
        if high { self.assert(pin, DEVICE) } else { self.chips.deassert_pin(pin, DEVICE) }
    }

    /// The same with interrupts enabled: each port access is an instruction, and what it causes comes behind
    /// it.
    fn out(&mut self, pin: Pin, high: bool) {
        self.line(pin, high);
        self.run();
    }

    /// Lets every CPU take interrupts until none is pending. A handler that never silences its source is a
    /// hang.
    fn run(&mut self) {
        for _ in 0..100 {
            let mut idle = true;
            for vcpu in Self::vcpus() {
                idle &= !self.step(vcpu);
            }
            if idle {
                return;
            }
        }
        panic!("the machine does not come to rest: {:x?}", self.taken);
    }

    /// One entry and one exit. Returns whether the CPU took anything.
    fn step(&mut self, vcpu: Vcpu) -> bool {
        let injection = self.chips.before_entry(vcpu, Interruptibility::default);
        let nmi = injection.special.unwrap_or_default().event == Some(Event::Nmi);
        self.nmis += usize::from(nmi);
        let takes = self.interrupts_enabled && injection.offer.is_some();
        let exited = Exited { offer_stands: injection.offer.is_some() && !takes, interrupted: None };
        let completed = self.chips.after_exit(vcpu, exited);
        self.complete(completed);
        if let Some(vector) = injection.offer.filter(|_| takes) {
            let before = self.count(vector.get());
            self.taken.push((vcpu.0, vector.get()));
            (self.handler)(self, vcpu, before);
        }
        nmi || takes
    }

    fn count(&self, vector: u8) -> usize {
        self.taken.iter().filter(|&&(_, taken)| taken == vector).count()
    }

    fn tmr(&mut self, vcpu: Vcpu, vector: u8) -> bool {
        let word = self.chips.lapic_read(vcpu, 0x180 + (u64::from(vector >> 5) << 4), 4, 0);
        word >> (vector & 31) & 1 != 0
    }
}

fn lower_and_eoi<const N: usize>(machine: &mut Machine<N>, vcpu: Vcpu, _: usize) {
    machine.line(PIN, false);
    machine.eoi(vcpu);
}

fn only_eoi<const N: usize>(machine: &mut Machine<N>, vcpu: Vcpu, _: usize) {
    machine.eoi(vcpu);
}

// One CPU: what a pin does.

#[test]
fn an_edge_interrupts_once() {
    let mut machine = Machine::<1>::new(only_eoi);
    machine.redirect_low(PIN, EDGE | 0x76);
    machine.out(PIN, true);
    machine.out(PIN, false);
    assert_eq!(machine.taken, [(0, 0x76)]);
}

#[test]
fn simultaneous_edges_come_in_the_order_of_their_class() {
    let mut machine = Machine::<1>::new(only_eoi);
    machine.redirect_low(PIN, EDGE | 0x78);
    machine.redirect_low(OTHER, EDGE | 0x66);
    machine.interrupts_enabled = false;
    for pin in [OTHER, PIN] {
        machine.out(pin, true);
        machine.out(pin, false);
    }
    assert_eq!(machine.taken, []);
    machine.interrupts_enabled = true;
    machine.run();
    assert_eq!(machine.taken, [(0, 0x78), (0, 0x66)]);
}

#[test]
fn a_level_interrupts_once_when_the_handler_lowers_it() {
    let mut machine = Machine::<1>::new(lower_and_eoi);
    machine.redirect_low(PIN, LEVEL | 0x77);
    machine.out(PIN, true);
    assert_eq!(machine.taken, [(0, 0x77)]);
    assert!(!machine.remote_irr(PIN));
}

#[test]
fn a_level_that_wavers_in_service_is_one_interrupt() {
    fn handler(machine: &mut Machine<1>, vcpu: Vcpu, before: usize) {
        if before == 0 {
            machine.line(PIN, false);
            machine.line(PIN, true);
        }
        lower_and_eoi(machine, vcpu, before);
    }
    let mut machine = Machine::<1>::new(handler);
    machine.redirect_low(PIN, LEVEL | 0x98);
    machine.out(PIN, true);
    assert_eq!(machine.taken.len(), 1);
}

#[test]
fn two_assertions_of_a_level_are_two_interrupts() {
    let mut machine = Machine::<1>::new(lower_and_eoi);
    machine.redirect_low(PIN, LEVEL | 0x99);
    machine.out(PIN, true);
    machine.out(PIN, true);
    assert_eq!(machine.taken.len(), 2);
}

#[test]
fn a_level_still_high_at_the_eoi_interrupts_again() {
    fn handler(machine: &mut Machine<1>, vcpu: Vcpu, before: usize) {
        if before == 1 {
            machine.line(PIN, false);
        }
        machine.eoi(vcpu);
    }
    let mut machine = Machine::<1>::new(handler);
    machine.redirect_low(PIN, LEVEL | 0x9a);
    machine.out(PIN, true);
    assert_eq!(machine.taken.len(), 2);
    assert_eq!(machine.completed, [PIN.0, PIN.0]);
}

#[test]
fn a_masked_edge_is_lost_and_the_next_one_is_not() {
    let mut machine = Machine::<1>::new(lower_and_eoi);
    machine.redirect_low(PIN, EDGE | 0x81);
    machine.mask(PIN, true);
    machine.out(PIN, true);
    machine.out(PIN, false);
    machine.mask(PIN, false);
    machine.run();
    assert_eq!(machine.taken, []);
    machine.out(PIN, true);
    assert_eq!(machine.taken.len(), 1);
}

#[test]
fn a_masked_level_is_held_until_it_is_unmasked() {
    let mut machine = Machine::<1>::new(lower_and_eoi);
    machine.redirect_low(PIN, LEVEL | 0x82);
    machine.mask(PIN, true);
    machine.out(PIN, true);
    assert_eq!(machine.taken, []);
    machine.mask(PIN, false);
    machine.run();
    assert_eq!(machine.taken.len(), 1);
}

#[test]
fn i38_masked_in_service_it_interrupts_again_only_when_unmasked() {
    fn handler(machine: &mut Machine<1>, vcpu: Vcpu, _: usize) {
        machine.mask(PIN, true);
        machine.eoi(vcpu);
    }
    let mut machine = Machine::<1>::new(handler);
    machine.redirect_low(PIN, LEVEL | 0x83);
    machine.out(PIN, true);
    assert_eq!(machine.taken.len(), 1);
    assert!(!machine.remote_irr(PIN));
    machine.mask(PIN, false);
    machine.run();
    assert_eq!(machine.taken.len(), 2);
    machine.line(PIN, false);
    machine.mask(PIN, false);
    machine.run();
    assert_eq!(machine.taken.len(), 2, "nothing stale is delivered");
}

fn edge_then_tmr<const N: usize>(machine: &mut Machine<N>, before: bool, vcpu: Vcpu) {
    machine.redirect_low(PIN, EDGE | 0x79);
    machine.redirect_high(PIN, vcpu.0);
    assert_eq!(machine.tmr(vcpu, 0x79), before);
    machine.line(PIN, true);
    machine.line(PIN, false);
    assert!(!machine.tmr(vcpu, 0x79), "set by the acceptance, before the handler");
    machine.run();
    assert!(!machine.tmr(vcpu, 0x79));
}

fn level_then_tmr<const N: usize>(machine: &mut Machine<N>, before: bool, vcpu: Vcpu) {
    machine.redirect_low(PIN, LEVEL | 0x79);
    machine.redirect_high(PIN, vcpu.0);
    assert_eq!(machine.tmr(vcpu, 0x79), before);
    machine.out(PIN, true);
    assert!(machine.tmr(vcpu, 0x79));
}

#[test]
fn tmr_follows_the_mode_of_each_acceptance() {
    let mut machine = Machine::<2>::new(lower_and_eoi);
    for vcpu in [Vcpu(0), Vcpu(1)] {
        edge_then_tmr(&mut machine, false, vcpu);
        level_then_tmr(&mut machine, false, vcpu);
        level_then_tmr(&mut machine, true, vcpu);
        edge_then_tmr(&mut machine, true, vcpu);
        assert!(!machine.remote_irr(PIN));
    }
    assert_eq!(machine.taken.len(), 8);
}

// Several CPUs.

#[test]
fn a_physical_destination_reaches_its_cpu() {
    let mut machine = Machine::<2>::new(lower_and_eoi);
    machine.redirect_low(PIN, LEVEL | 0x85);
    machine.redirect_high(PIN, 1);
    let settled = machine.chips.assert_pin(PIN, DEVICE);
    assert!(settled.takers.contains(Vcpu(1)) && !settled.takers.contains(BOOT));
    machine.run();
    assert_eq!(machine.taken, [(1, 0x85)]);
}

#[test]
fn a_logical_destination_reaches_each_of_its_cpus_and_one_eoi_ends_it() {
    let x2apic = |machine: &mut Machine<4>, vcpu: Vcpu| {
        let base = machine.chips.read_msr(vcpu, 0x1b, 0).unwrap();
        machine.msr(vcpu, 0x1b, base | 1 << 10);
    };
    let flat = |machine: &mut Machine<4>, vcpu: Vcpu| machine.lapic(vcpu, 0xd0, 1 << (24 + vcpu.0));
    for prepare in [x2apic as fn(&mut Machine<4>, Vcpu), flat] {
        let mut machine = Machine::<4>::new(lower_and_eoi);
        for vcpu in Machine::<4>::vcpus() {
            prepare(&mut machine, vcpu);
        }
        machine.redirect_low(PIN, LEVEL | LOGICAL | 0x86);
        machine.redirect_high(PIN, 0x0d);
        machine.out(PIN, true);
        assert_eq!(machine.taken, [(0, 0x86), (2, 0x86), (3, 0x86)]);
        assert_eq!(machine.completed, [PIN.0], "the first EOI completes, the others find nothing in service");
        assert!(!machine.remote_irr(PIN));
    }
}

#[test]
fn i39_a_destination_rewritten_in_the_handler_completes_all_the_same() {
    fn handler(machine: &mut Machine<2>, vcpu: Vcpu, _: usize) {
        machine.line(PIN, false);
        machine.redirect_high(PIN, 1);
        machine.eoi(vcpu);
    }
    let mut machine = Machine::<2>::new(handler);
    machine.redirect_low(PIN, LEVEL | 0x84);
    for expected in [[(0, 0x84)].as_slice(), &[(0, 0x84), (1, 0x84)]] {
        machine.out(PIN, true);
        assert_eq!(machine.taken, expected);
        assert!(!machine.remote_irr(PIN));
    }
}

#[test]
fn lowest_priority_picks_one_that_can_take_it() {
    let mut machine = Machine::<4>::new(lower_and_eoi);
    machine.redirect_low(PIN, LEVEL | 1 << 8 | 0x51);
    machine.redirect_high(PIN, 0xff);
    for (vcpu, tpr) in [(0, 0x40), (1, 0x30), (2, 0x20), (3, 0x10)] {
        machine.lapic(Vcpu(vcpu), 0x80, tpr);
    }
    machine.lapic(Vcpu(3), 0xf0, 0xff);
    machine.out(PIN, true);
    assert_eq!(machine.taken, [(2, 0x51)]);
    machine.lapic(Vcpu(1), 0x80, 0x20);
    machine.out(PIN, true);
    machine.lapic(Vcpu(2), 0x300, 0x4_0031);
    machine.out(PIN, true);
    assert_eq!(machine.taken, [(2, 0x51), (2, 0x51), (1, 0x51), (2, 0x31)], "what waits counts too");
}

// What the contract asks beyond hardware's habits.

#[test]
fn d14_an_assertion_nobody_accepts_waits_without_remote_irr() {
    let mut machine = Machine::<1>::new(lower_and_eoi);
    machine.redirect_low(PIN, LEVEL | 0x51);
    machine.redirect_low(OTHER, EDGE | 0x52);
    machine.lapic(BOOT, 0xf0, 0xff);
    machine.out(PIN, true);
    machine.out(OTHER, true);
    assert!(!machine.remote_irr(PIN));
    assert_eq!(machine.taken, []);
    machine.lapic(BOOT, 0xf0, 0x1ff);
    machine.run();
    assert_eq!(machine.taken, [(0, 0x52), (0, 0x51)]);
    // The same for a chip that is switched off, and for a destination that nobody has.
    machine.msr(BOOT, 0x1b, 0xfee0_0100);
    machine.out(PIN, true);
    machine.msr(BOOT, 0x1b, 0xfee0_0900);
    machine.redirect_high(PIN, 9);
    machine.lapic(BOOT, 0xf0, 0x1ff);
    machine.run();
    assert_eq!(machine.taken.len(), 2);
    machine.redirect_high(PIN, 0);
    machine.run();
    assert_eq!(machine.taken.len(), 3);
}

#[test]
fn t9_suppressed_broadcasts_rearm_by_the_eoi_register_only() {
    let mut machine = Machine::<1>::new(only_eoi);
    machine.lapic(BOOT, 0xf0, 0x11ff);
    machine.redirect_low(PIN, LEVEL | 0x41);
    machine.out(PIN, true);
    machine.redirect_low(PIN, LEVEL | 0x51);
    machine.run();
    assert_eq!((machine.taken.len(), machine.completed.len()), (1, 0));
    assert!(machine.remote_irr(PIN));
    machine.line(PIN, false);
    machine.ioapic_window(MMIO_EOI, 0x41);
    machine.ioapic_window(MMIO_EOI, 0x41);
    assert_eq!(machine.completed, [PIN.0]);
    assert!(!machine.remote_irr(PIN));
}

#[test]
fn t9_both_halves_rewritten_in_service_complete_exactly_once() {
    fn handler(machine: &mut Machine<2>, vcpu: Vcpu, _: usize) {
        if vcpu == BOOT {
            machine.redirect_low(PIN, LEVEL | 0x51);
            machine.redirect_high(PIN, 1);
        } else {
            machine.line(PIN, false);
        }
        machine.eoi(vcpu);
    }
    let mut machine = Machine::<2>::new(handler);
    machine.redirect_low(PIN, LEVEL | 0x41);
    machine.out(PIN, true);
    assert_eq!(machine.taken, [(0, 0x41), (1, 0x51)]);
    assert_eq!(machine.completed, [PIN.0, PIN.0], "one for each acceptance");
}

/// One CPU has sent its EOI and still completes the line when another writes the entry: the level is no new one.
#[test]
fn t9_an_entry_written_between_an_eoi_and_its_completion_sends_nothing() {
    fn handler(machine: &mut Machine<2>, vcpu: Vcpu, _: usize) {
        let outcome = machine.chips.eoi_page(vcpu, 4, false).unwrap();
        assert!(!machine.remote_irr(PIN), "the guest sees that its EOI has arrived");
        machine.redirect_high(PIN, 1);
        machine.redirect_low(PIN, LEVEL | 0x61);
        assert!(!machine.remote_irr(PIN), "it was sent again");
        machine.complete(outcome.completed);
    }
    let mut machine = Machine::<2>::new(handler);
    machine.redirect_low(PIN, LEVEL | 0x51);
    machine.assert(PIN, LINE);
    machine.run();
    assert_eq!(machine.taken, [(0, 0x51)]);
    // What is asserted after the completion is delivered, by the entry of now.
    machine.assert(PIN, LINE);
    machine.run();
    assert_eq!((machine.taken, machine.completed), (vec![(0, 0x51), (1, 0x61)], vec![PIN.0, PIN.0]));
}

/// A line may be completed without the guest's EOI, whose CPU still services the level: that it is not asserted any more does
/// not end it. What is asserted next waits for the EOI, and the EOI for its completion.
#[test]
fn t9_a_pin_that_goes_low_before_its_eoi_sends_nothing_until_then() {
    fn handler(machine: &mut Machine<1>, vcpu: Vcpu, before: usize) {
        if before == 0 {
            assert!(!machine.chips.lower_pin(PIN, LINE), "the EOI is still to come");
            machine.assert(PIN, LINE);
            assert_eq!(machine.chips.before_entry(vcpu, Interruptibility::default), Injection::default());
        }
        let ended = machine.chips.eoi_page(vcpu, 4, false).unwrap();
        assert!(machine.chips.lower_pin(PIN, LINE), "nothing is left of the level");
        assert!(ended.completed.contains(PIN) && ended.next == Foreseen::Nothing);
    }
    let mut machine = Machine::<1>::new(handler);
    for round in 1..=2 {
        machine.redirect_low(PIN, LEVEL | 0x51);
        machine.assert(PIN, LINE);
        machine.run();
        assert_eq!(machine.taken.len(), round);
    }
}

/// An EOI that says that nothing waits spares its CPU the look before the next entry.
#[test]
fn t8_an_eoi_tells_whatever_waits_behind_it() {
    const LOW: u8 = 0x31;
    let ended = |arrives: fn(&mut VirtualChips)| {
        let mut chips = VirtualChips::new(2, MODEL);
        for vcpu in [BOOT, Vcpu(1)] {
            let _enabled = chips.lapic_write(vcpu, 0xf0, 4, 0x1ff, 0);
        }
        let _sent = chips.lapic_write(BOOT, 0x300, 4, 0x4_0071, 0);
        assert_eq!(chips.before_entry(BOOT, Interruptibility::default).offer, Vector::new(0x71));
        chips.after_exit(BOOT, Exited { offer_stands: false, interrupted: None });
        arrives(&mut chips);
        chips.eoi_page(BOOT, 4, false).unwrap().next == Foreseen::Nothing
    };
    assert!(ended(|_| {}));
    // Of a class below the one in service, which until the EOI it cannot interrupt.
    assert!(!ended(|chips| {
        let _sent = chips.lapic_write(BOOT, 0x300, 4, 0x4_0000 | u64::from(LOW), 0);
        assert_eq!(chips.before_entry(BOOT, Interruptibility::default).offer, None);
    }));
    // A non-maskable interrupt, of another CPU.
    assert!(!ended(|chips| {
        let _sent = chips.lapic_write(Vcpu(1), 0x310, 4, 0, 0);
        let _sent = chips.lapic_write(Vcpu(1), 0x300, 4, 0x4400, 0);
    }));
    // One that an exit interrupted on its way to the guest.
    assert!(!ended(|chips| {
        chips.after_exit(BOOT, Exited { offer_stands: false, interrupted: Vector::new(0x71) });
    }));
}

/// Who still asserts a pin when one of its levels is completed is delivered then, and not before.
#[test]
fn a_sharer_that_asserts_before_the_completion_of_another_is_delivered_after_it() {
    fn handler(machine: &mut Machine<1>, vcpu: Vcpu, before: usize) {
        let outcome = machine.chips.lapic_write(vcpu, 0xb0, 4, 0, 0);
        if before == 0 {
            machine.line(PIN, true);
            assert!(!machine.remote_irr(PIN), "it was sent before the completion");
            machine.complete(outcome.completed);
            assert!(machine.remote_irr(PIN), "it is lost");
        } else {
            machine.line(PIN, false);
            machine.complete(outcome.completed);
        }
    }
    let mut machine = Machine::<1>::new(handler);
    machine.redirect_low(PIN, LEVEL | 0x51);
    machine.assert(PIN, LINE);
    machine.run();
    assert_eq!(machine.taken.len(), 2);
}

/// Whatever a life of the guest leaves: a level in service that is still asserted, an edge and a message that wait, a CPU that an INIT
/// has stopped.
#[test]
fn i48_t11_renewed_chips_are_as_at_power_up() {
    let mut machine = Machine::<2>::new(|_, _, _| {});
    machine.chips.add_pics();
    machine.redirect_low(PIN, LEVEL | 0x51);
    machine.out(PIN, true);
    assert!(machine.remote_irr(PIN) && machine.taken == [(0, 0x51)]);
    machine.redirect_low(OTHER, EDGE | 0x41);
    machine.line(OTHER, true);
    machine.lapic(BOOT, 0x300, 0xc_0061);
    machine.lapic(BOOT, 0x300, 0xc_4500);
    machine.chips.renew();
    let mut chips = VirtualChips::new(2, MODEL);
    chips.add_pics();
    assert_eq!(format!("{:?}", machine.chips), format!("{chips:?}"));
}

#[test]
fn i39_two_pins_with_one_vector_both_complete() {
    fn handler(machine: &mut Machine<1>, vcpu: Vcpu, _: usize) {
        machine.line(PIN, false);
        machine.line(OTHER, false);
        machine.eoi(vcpu);
    }
    let mut machine = Machine::<1>::new(handler);
    machine.redirect_low(PIN, LEVEL | 0x51);
    machine.redirect_low(OTHER, LEVEL | 0x51);
    machine.line(PIN, true);
    machine.line(OTHER, true);
    machine.run();
    assert_eq!(machine.taken.len(), 1);
    assert_eq!(machine.completed, [PIN.0, OTHER.0]);
}

#[test]
fn the_line_is_completed_before_the_pin_is_settled() {
    // A pin asserted by a line alone falls at its completion, so a quiet wire makes no second interrupt.
    let mut machine = Machine::<1>::new(only_eoi);
    machine.redirect_low(PIN, LEVEL | 0x51);
    machine.assert(PIN, LINE);
    machine.run();
    assert_eq!((machine.taken.len(), machine.completed.len()), (1, 1));
    assert_eq!(machine.chips.ioapic().level(PIN), Level::Deasserted);
}

#[test]
fn n17_a_level_line_behind_an_edge_pin_keeps_interrupting_at_the_guests_pace() {
    fn handler(machine: &mut Machine<1>, vcpu: Vcpu, before: usize) {
        if before == 4 {
            machine.wire = None;
        }
        machine.eoi(vcpu);
    }
    let mut machine = Machine::<1>::new(handler);
    machine.wire = Some(PIN);
    machine.redirect_low(PIN, EDGE | 0x51);
    machine.interrupts_enabled = false;
    machine.assert(PIN, LINE);
    machine.run();
    assert_eq!(machine.completed, [], "the guest has taken nothing, so the wire is not asked again");
    machine.interrupts_enabled = true;
    machine.run();
    // The wire fell during the fifth, when the sixth was already on its way.
    assert_eq!((machine.taken.len(), machine.completed.len()), (6, 6));
}

#[test]
fn a_pin_that_delivers_nmi_completes_at_once() {
    let mut machine = Machine::<1>::new(only_eoi);
    machine.redirect_low(PIN, LEVEL | 4 << 8);
    machine.assert(PIN, LINE);
    assert_eq!(machine.completed, [PIN.0]);
    machine.run();
    assert_eq!((machine.nmis, machine.taken.len()), (1, 0));
}

#[test]
fn a_masked_pin_reports_what_changed() {
    let mut machine = Machine::<1>::new(only_eoi);
    machine.ioapic_window(MMIO_INDEX, u32::from(REG_RTE_BASE + 2 * PIN.0));
    for (value, before, after) in [(0x51 | LEVEL, true, false), (0x51 | LEVEL | MASKED, false, true)] {
        let changed = machine.chips.ioapic_write(MMIO_DATA, 4, u64::from(value)).rte.unwrap();
        assert_eq!((changed.pin, changed.masked_before, changed.masked_after), (PIN, before, after));
    }
}
