//! Any sequence of events against a model of one level-triggered pin that fits on a page, and hostile
//! accesses.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::*;

/// What may happen to one pin.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Assert(bool),
    Deassert(bool),
    Mask(bool),
    Vector(u8),
    Enable(bool),
    SuppressBroadcast(bool),
    Take,
    Eoi,
    DirectedEoi(u8),
    EdgeAndBack,
}

fn happening() -> impl Strategy<Value = Happening> {
    let vector = prop_oneof![Just(0x41_u8), Just(0x51), Just(0x5f)];
    prop_oneof![
        4 => any::<bool>().prop_map(Happening::Assert),
        3 => any::<bool>().prop_map(Happening::Deassert),
        2 => any::<bool>().prop_map(Happening::Mask),
        1 => vector.clone().prop_map(Happening::Vector),
        1 => any::<bool>().prop_map(Happening::Enable),
        1 => any::<bool>().prop_map(Happening::SuppressBroadcast),
        4 => Just(Happening::Take),
        4 => Just(Happening::Eoi),
        2 => vector.prop_map(Happening::DirectedEoi),
        1 => Just(Happening::EdgeAndBack),
    ]
}

/// One pin, one CPU: what a reader of the data sheet would keep on paper.
#[derive(Debug, Default)]
struct Model {
    contributors: [bool; 2],
    masked: bool,
    enabled: bool,
    suppressed: bool,
    vector: u8,
    /// Remote IRR, with the vector it went up for.
    in_service: Option<u8>,
    waiting: Vec<u8>,
    serviced: Vec<u8>,
    completions: usize,
}

impl Model {
    fn settle(&mut self) {
        let asserted = self.contributors.contains(&true);
        if asserted && !self.masked && self.enabled && self.in_service.is_none() {
            self.in_service = Some(self.vector);
            if !self.waiting.contains(&self.vector) {
                self.waiting.push(self.vector);
            }
        }
    }

    /// The highest that waits, if its class beats all in service.
    fn next(&self) -> Option<u8> {
        let class = self.serviced.iter().map(|vector| vector >> 4).max().unwrap_or(0);
        self.waiting.iter().copied().max().filter(|vector| vector >> 4 > class)
    }

    fn end_service(&mut self, named: impl Fn(u8) -> bool) {
        if self.in_service.is_some_and(named) {
            self.in_service = None;
            self.completions += 1;
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Assert(which) => self.contributors[usize::from(which)] = true,
            Happening::Deassert(which) => self.contributors[usize::from(which)] = false,
            Happening::Mask(masked) => self.masked = masked,
            Happening::Vector(vector) => self.vector = vector,
            Happening::Enable(enabled) => self.enabled = enabled,
            Happening::SuppressBroadcast(suppressed) => self.suppressed = suppressed,
            Happening::Take => {
                if let Some(vector) = self.next() {
                    self.waiting.retain(|&waiting| waiting != vector);
                    self.serviced.push(vector);
                }
            }
            Happening::Eoi => {
                if let Some(ended) = self.serviced.iter().copied().max() {
                    self.serviced.retain(|&vector| vector != ended);
                    if !self.suppressed {
                        self.end_service(|accepted| accepted == ended);
                    }
                }
            }
            Happening::DirectedEoi(named) => {
                let current = self.vector;
                self.end_service(|accepted| accepted == named || current == named);
            }
            Happening::EdgeAndBack => self.end_service(|_| true),
        }
        self.settle();
    }
}

/// The same happening on the chips, through the registers a guest would use.
fn happen(machine: &mut Machine<1>, model: &Model, happening: Happening) {
    let contributor = |which: bool| if which { DEVICE } else { Contributor::new(7).unwrap() };
    let entry = LEVEL | u32::from(model.vector) | if model.masked { MASKED } else { 0 };
    match happening {
        Happening::Assert(which) => machine.assert(PIN, contributor(which)),
        Happening::Deassert(which) => machine.chips.deassert_pin(PIN, contributor(which)),
        Happening::Mask(_) | Happening::Vector(_) => machine.redirect_low(PIN, entry),
        Happening::Enable(_) | Happening::SuppressBroadcast(_) => {
            let value = 0xff | u64::from(model.enabled) << 8 | u64::from(model.suppressed) << 12;
            machine.lapic(BOOT, 0xf0, value);
        }
        Happening::Take => {
            machine.step(BOOT);
        }
        Happening::Eoi => machine.eoi(BOOT),
        Happening::DirectedEoi(named) => machine.ioapic_window(MMIO_EOI, u32::from(named)),
        Happening::EdgeAndBack => {
            // Masked meanwhile, as every guest that uses this does.
            machine.redirect_low(PIN, entry & !LEVEL | MASKED);
            machine.redirect_low(PIN, entry);
        }
    }
}

/// One call with arguments a hostile guest or a confused caller might bring about: any at all, or any that
/// reach a register.
fn strike(chips: &mut VirtualChips, (kind, place, value, time): (u8, u32, u64, u64)) {
    let vcpu = Vcpu(kind >> 4 & 3);
    let bytes = (place >> 24) as u8;
    let pin = Pin(place as u8);
    let register = place & 0x3f;
    let offset = u64::from(register) << 4;
    let contributor = Contributor::new(place as u8 >> 3).unwrap();
    match kind & 0xf {
        0 => assert!(
            bytes >= 8 || chips.lapic_read(vcpu, value, bytes, time) >> (8 * bytes) == 0 || vcpu.0 > 1
        ),
        1 => act(chips, |chips| chips.lapic_write(vcpu, value, bytes, time, value)),
        2 | 3 => act(chips, |chips| chips.lapic_write(vcpu, offset, 4, value, time)),
        4 => assert!(chips.lapic_read(vcpu, offset, 4, time) >> 32 == 0 || vcpu.0 > 1),
        5 => act(chips, |chips| {
            chips.write_msr(vcpu, 0x800 | register, value & 0x3_10ff, time).unwrap_or_default()
        }),
        6 => assert_eq!(
            chips.read_msr(vcpu, 0x800 | register, time),
            chips.read_msr(vcpu, 0x800 | register, time)
        ),
        7 => act(chips, |chips| {
            chips.write_msr(vcpu, 0x1b, 0xfee0_0000 | value & 0xd00, time).unwrap_or_default()
        }),
        8 | 9 => {
            act(chips, |chips| chips.ioapic_write(MMIO_INDEX, 4, u64::from(place)));
            act(chips, |chips| chips.ioapic_write(MMIO_DATA, 4, value));
        }
        10 => act(chips, |chips| chips.ioapic_write(value, bytes, time)),
        11 => assert!(chips.ioapic_read(value, bytes) >> 32 == 0),
        12 => {
            let settled = chips.assert_pin(pin, contributor);
            assert!(!settled.completion_due || !settled.takers.is_empty());
        }
        13 => chips.deassert_pin(pin, contributor),
        14 => {
            let injection = chips.before_entry(vcpu, Interruptibility::default);
            let exited = Exited { offer_stands: place & 1 != 0, interrupted: injection.offer };
            act(chips, |chips| Outcome { completed: chips.after_exit(vcpu, exited), ..Outcome::default() });
        }
        _ => {
            chips.advance_timer(vcpu, time);
            act(chips, |chips| chips.lapic_write(vcpu, 0xb0, 4, 0, time));
        }
    }
}

/// Two pins, the second of which shares its vector with a message between CPUs; what each of two CPUs and the wires may do.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// One who asserts a pin or not, while this CPU is about to enter.
    Raise(Vcpu, Pin, Contributor),
    Lower(Pin, Contributor),
    /// An entry whose exit shows that what was offered was taken, or not; and whether that exit is an EOI.
    Enter(Vcpu, bool, bool),
    Write(Vcpu, u64, u64),
    Redirect(Pin, u32, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let vcpu = || (0..2_u8).prop_map(Vcpu);
    let pin = || prop_oneof![Just(PIN), Just(OTHER)];
    let contributor = || prop_oneof![Just(LINE), Just(DEVICE)];
    let vector = || prop_oneof![Just(0x1f_u64), Just(0x41), Just(0x51), Just(0x5f), Just(0x61)];
    let entry = prop_oneof![
        6 => vector().prop_map(|vector| vector as u32 | LEVEL),
        1 => vector().prop_map(|vector| vector as u32 | EDGE),
        1 => vector().prop_map(|vector| vector as u32 | LEVEL | 1 << 11),
        1 => Just(LEVEL | 4 << 8),
        1 => Just(LEVEL | MASKED | 0x51),
    ];
    let write = prop_oneof![
        2 => (0..8_u64).prop_map(|class| (0x80, class << 4)),
        1 => Just((0xf0, 0x1ff)),
        1 => Just((0xf0, 0x11ff)),
        1 => Just((0xf0, 0xff)),
        2 => (vector(), 0..4_u64).prop_map(|(vector, shorthand)| (0x300, vector | shorthand << 18)),
        1 => Just((0x300, 0xc_4400)),
        1 => Just((0x300, 0xc_4500)),
    ];
    prop_oneof![
        6 => (vcpu(), pin(), contributor()).prop_map(|(vcpu, pin, by)| Step::Raise(vcpu, pin, by)),
        4 => (pin(), contributor()).prop_map(|(pin, by)| Step::Lower(pin, by)),
        8 => (vcpu(), any::<bool>(), any::<bool>()).prop_map(|(vcpu, takes, eoi)| Step::Enter(vcpu, takes, eoi)),
        3 => (vcpu(), write).prop_map(|(vcpu, (offset, value))| Step::Write(vcpu, offset, value)),
        2 => (pin(), entry, prop_oneof![4 => 0..3_u8, 1 => Just(0xff)])
            .prop_map(|(pin, entry, to)| Step::Redirect(pin, entry, to)),
    ]
}

/// The chips twice, once by the short ways that an interrupt takes, and once by the long ones that are for everything.
struct Twins {
    short: VirtualChips,
    long: VirtualChips,
}

impl Twins {
    /// The same on both. Whether both say the same of it.
    fn both<R: PartialEq + core::fmt::Debug>(&mut self, call: impl Fn(&mut VirtualChips) -> R) -> R {
        let result = call(&mut self.short);
        assert_eq!(call(&mut self.long), result);
        result
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Raise(vcpu, pin, by) => {
                let next = self.short.offer_from_pin(vcpu, pin, by).map_or_else(
                    || {
                        let _settled = self.short.assert_pin(pin, by);
                        self.short.foresee(vcpu)
                    },
                    Foreseen::Offer,
                );
                let _settled = self.long.assert_pin(pin, by);
                assert_eq!(self.long.foresee(vcpu), next);
            }
            Step::Lower(pin, by) => {
                self.both(|chips| chips.lower_pin(pin, by));
            }
            Step::Enter(vcpu, takes, eoi) => {
                let offer = self.both(|chips| chips.before_entry(vcpu, Interruptibility::default)).offer;
                let exited = Exited { offer_stands: offer.is_some() && !takes, interrupted: None };
                if offer.is_some() && takes && eoi {
                    let ended = self.short.eoi_page(vcpu, 4, true).unwrap();
                    let mut completed = self.long.after_exit(vcpu, exited);
                    for pin in self.long.lapic_write(vcpu, 0xb0, 4, 0, 0).completed {
                        completed.insert(pin);
                    }
                    assert_eq!(ended.completed, completed);
                } else {
                    self.both(|chips| chips.after_exit(vcpu, exited));
                    if eoi {
                        let _ = self.both(|chips| chips.lapic_write(vcpu, 0xb0, 4, 0, 0));
                    }
                }
            }
            Step::Write(vcpu, offset, value) => {
                let _ = self.both(|chips| chips.lapic_write(vcpu, offset, 4, value, 0));
                if self.both(|chips| chips.take_init(vcpu)) {
                    let _ = self.both(|chips| chips.lapic_write(vcpu, 0x300, 4, 0xc_4601, 0));
                }
            }
            Step::Redirect(pin, entry, to) => {
                let register = u64::from(REG_RTE_BASE + 2 * pin.0);
                for (index, value) in [(register + 1, u32::from(to) << 24), (register, entry)] {
                    let _ = self.both(|chips| chips.ioapic_write(MMIO_INDEX, 4, index));
                    let _ = self.both(|chips| chips.ioapic_write(MMIO_DATA, 4, u64::from(value)));
                }
            }
        }
        assert_eq!(format!("{:?}", self.short), format!("{:?}", self.long), "after {step:x?}");
    }
}

/// A call, and what the run loop does with its outcome.
fn act(chips: &mut VirtualChips, call: impl FnOnce(&mut VirtualChips) -> Outcome) {
    for pin in call(chips).completed {
        assert!(!chips.settle(pin).completion_due, "no pin completes for ever");
    }
}

proptest! {
    #[test]
    fn the_short_ways_of_an_interrupt_do_what_the_long_ones_do(steps in vec(step(), 0..60)) {
        let [short, long] = [(); 2].map(|()| VirtualChips::new(2, MODEL));
        let mut twins = Twins { short, long };
        for vcpu in [BOOT, Vcpu(1)] {
            twins.step(Step::Write(vcpu, 0xf0, 0x1ff));
        }
        twins.step(Step::Redirect(PIN, LEVEL | 0x51, 0));
        twins.step(Step::Redirect(OTHER, LEVEL | 0x61, 1));
        for step in steps {
            twins.step(step);
        }
    }

    #[test]
    fn a_level_pin_does_what_the_model_does(happenings in vec(happening(), 0..80)) {
        let mut machine = Machine::<1>::new(|_, _, _| {});
        machine.redirect_low(PIN, LEVEL | MASKED | 0x41);
        let mut model = Model { masked: true, enabled: true, vector: 0x41, ..Model::default() };
        // At the end a well-behaved guest ends all that was begun, whatever happened before.
        let ending = [Happening::Deassert(false), Happening::Deassert(true), Happening::Enable(true)]
            .into_iter()
            .chain([Happening::SuppressBroadcast(false)])
            .chain([Happening::Eoi; 3])
            .chain([Happening::Take, Happening::Eoi].repeat(3))
            .chain([0x41, 0x51, 0x5f].map(Happening::DirectedEoi));
        for happening in happenings.into_iter().chain(ending) {
            model.happen(happening);
            happen(&mut machine, &model, happening);
            let chips = &machine.chips;
            assert_eq!(machine.remote_irr(PIN), model.in_service.is_some(), "{happening:?}");
            assert_eq!(chips.lapic(BOOT).unwrap().pending().map(Vector::get), model.next(), "{happening:?}");
            assert_eq!(machine.completed.len(), model.completions, "{happening:?}");
        }
        assert!(!machine.remote_irr(PIN));
        assert_eq!(machine.chips.lapic(BOOT).unwrap().pending(), None);
    }

    #[test]
    fn no_access_and_no_order_of_calls_is_fatal(
        accesses in vec((any::<u8>(), any::<u32>(), any::<u64>(), any::<u64>()), 0..300)
    ) {
        let mut chips = VirtualChips::new(2, MODEL);
        for access in accesses {
            strike(&mut chips, access);
            // What every reader relies on, whatever came before: a vector is offered only above the priority.
            for lapic in [Vcpu(0), Vcpu(1)].into_iter().filter_map(|vcpu| chips.lapic(vcpu)) {
                if let Some(vector) = lapic.pending() {
                    assert!(u64::from(vector.class()) > lapic.cr8());
                }
            }
        }
    }
}
