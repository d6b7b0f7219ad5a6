//! Virtual IO-APIC and local APICs: two CPUs of a hostile guest write to every register in every way, while pins rise and
//! fall and the run loop does its part.

use levelhead::ioapic::{MMIO_DATA, MMIO_EOI, MMIO_INDEX, REG_RTE_BASE};
use levelhead::irq::{Pin, Vector};
use levelhead::virq::{
    ApicMode, Contributor, Ended, Event, Exited, Foreseen, Injection, Interruptibility, LapicModel, Outcome,
    PINS, PinSet, Vcpu, VirtualChips,
};

use crate::dice::{Dice, fuzz};

const CPUS: u8 = 2;
type Chips = VirtualChips;
const MODEL: LapicModel = LapicModel { x2apic: true, physical_address_bits: 40 };

const APIC_BASE: u32 = 0x1b;
const X2APIC: u32 = 0x800;
/// Register numbers: offset / 16 of the page, or MSR - 0x800.
const ID: u8 = 0x02;
const VERSION: u8 = 0x03;
const TPR: u8 = 0x08;
const PPR: u8 = 0x0a;
const EOI: u8 = 0x0b;
const LDR: u8 = 0x0d;
const DFR: u8 = 0x0e;
const SVR: u8 = 0x0f;
const ISR: u8 = 0x10;
const TMR: u8 = 0x18;
const IRR: u8 = 0x20;
const ESR: u8 = 0x28;
const ICR_LOW: u8 = 0x30;
const ICR_HIGH: u8 = 0x31;
const LVT: [u8; 6] = [0x32, 0x33, 0x34, 0x35, 0x36, 0x37];
const TIMER_INITIAL: u8 = 0x38;
const TIMER_CURRENT: u8 = 0x39;
const TIMER_DIVIDE: u8 = 0x3e;
const SELF_IPI: u8 = 0x3f;

const ENABLED: u64 = 0x1ff;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
/// The least distance of two ticks of one programming, in TSC ticks.
const LEAST_PERIOD: u64 = 20_000;

fn cpus() -> impl Iterator<Item = Vcpu> {
    (0..CPUS).map(Vcpu)
}

fn pins() -> impl Iterator<Item = Pin> {
    (0..PINS).map(Pin)
}

/// What an EOI leaves, as any write would; and where it says that nothing waits, the next entry carries nothing.
fn left(chips: &mut Chips, vcpu: Vcpu, Ended { completed, next }: Ended) -> Outcome {
    if next == Foreseen::Nothing {
        assert_eq!(chips.before_entry(vcpu, Interruptibility::default), Injection::default());
    }
    Outcome { completed, ..Outcome::default() }
}

/// A register by number, in whichever way the mode offers; `None` when the chip is off.
fn register(chips: &mut Chips, vcpu: Vcpu, number: u8, now: u64) -> Option<u32> {
    match chips.lapic(vcpu)?.mode() {
        ApicMode::Disabled => None,
        ApicMode::XApic => Some(chips.lapic_read(vcpu, u64::from(number) << 4, 4, now) as u32),
        ApicMode::X2Apic => {
            chips.read_msr(vcpu, X2APIC + u32::from(number), now).ok().map(|value| value as u32)
        }
    }
}

/// 256 bits, one for each vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vectors([u32; 8]);

impl Vectors {
    fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    fn iter(&self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(|&vector| self.contains(vector))
    }

    fn highest(&self) -> Option<u8> {
        self.iter().last()
    }

    fn with(mut self, vector: u8, set: bool) -> Self {
        let word = &mut self.0[usize::from(vector >> 5)];
        *word = *word & !(1 << (vector & 31)) | u32::from(set) << (vector & 31);
        self
    }
}

/// What a guest reads of one local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lapic {
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    tpr: u8,
    ppr: u8,
    suppresses: bool,
}

impl Lapic {
    fn read(chips: &mut Chips, vcpu: Vcpu, now: u64) -> Option<Self> {
        register(chips, vcpu, VERSION, now)?;
        let mut read = |number| register(chips, vcpu, number, now).expect("a register of every local APIC");
        let mut vectors = |first| Vectors(core::array::from_fn(|n| read(first + n as u8)));
        let (irr, isr, tmr) = (vectors(IRR), vectors(ISR), vectors(TMR));
        let (tpr, ppr) = (read(TPR) as u8, read(PPR) as u8);
        Some(Self { irr, isr, tmr, tpr, ppr, suppresses: read(SVR) >> 12 & 1 != 0 })
    }

    /// The vector to be taken next, by APM2 16.6.4.
    fn next(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| vector >> 4 > self.ppr >> 4)
    }

    fn check(&self) {
        for vectors in [self.irr, self.isr, self.tmr] {
            assert_eq!(vectors.0[0], 0, "the vectors of exceptions: {self:x?}");
        }
        let serviced = self.isr.highest().unwrap_or(0) & 0xf0;
        let ppr = if self.tpr >> 4 >= serviced >> 4 { self.tpr } else { serviced };
        assert_eq!(self.ppr, ppr, "{self:x?}");
        let mut classes: Vec<u8> = self.isr.iter().map(|vector| vector >> 4).collect();
        classes.dedup();
        assert_eq!(classes.len(), self.isr.iter().count(), "nested within a class: {self:x?}");
    }
}

/// What may have happened to the vectors in service at the CPU that acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Same,
    Took(u8),
    Ended(u8),
}

/// Which pins an event may have completed.
#[derive(Clone, Copy, Debug)]
enum Completes {
    /// Exactly these, as bits.
    Exactly(u32),
    /// This one, or none.
    AtMost(Pin),
    /// Those whose messages carry no vector, so that no EOI will come.
    Vectorless,
    /// Those that are edge-triggered and wait for this vector to be taken.
    Edges,
}

struct World {
    chips: Chips,
    now: u64,
    /// For each pin in service, the vector it was accepted with.
    accepted: [Option<u8>; PINS as usize],
    /// Each CPU's local APIC after the last event.
    before: [Option<Lapic>; CPUS as usize],
    /// What each CPU was about to deliver when it exited.
    interrupted: [Option<u8>; CPUS as usize],
    /// What can be done in two ways was done last in the direct one.
    direct: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            chips: Chips::new(CPUS, MODEL),
            now: 1 << 40,
            accepted: [None; PINS as usize],
            before: [None; CPUS as usize],
            interrupted: [None; CPUS as usize],
            direct: false,
        };
        for vcpu in cpus() {
            world.lapic_write(vcpu, u64::from(SVR) << 4, 4, ENABLED);
        }
        world
    }

    fn rte(&self, pin: Pin) -> levelhead::ioapic::Rte {
        self.chips.ioapic().rte(pin).expect("a pin of the chip")
    }

    /// The pins in service that are `named` by the vector they were accepted with, as bits.
    fn in_service(&self, named: impl Fn(Pin, u8) -> bool) -> u32 {
        let is_named =
            |pin: &Pin| self.accepted[usize::from(pin.0)].is_some_and(|vector| named(*pin, vector));
        bits(pins().filter(is_named))
    }

    // What a guest does.

    /// Whether an EOI takes its direct way this time, or that of any write.
    fn by_turns(&mut self) -> bool {
        self.direct = !self.direct;
        self.direct
    }

    fn lapic_write(&mut self, vcpu: Vcpu, offset: u64, bytes: u8, value: u64) {
        let eoi = offset == u64::from(EOI) << 4 && bytes >= 4 && self.mode(vcpu) == Some(ApicMode::XApic);
        let direct = eoi && self.by_turns();
        let outcome = |chips: &mut Chips, now| {
            let ended = if direct { chips.eoi_page(vcpu, bytes, false) } else { None };
            assert_eq!(ended.is_some(), direct);
            ended
                .map(|ended| left(chips, vcpu, ended))
                .unwrap_or_else(|| chips.lapic_write(vcpu, offset, bytes, value, now))
        };
        self.local_write(vcpu, eoi, outcome);
    }

    fn msr_write(&mut self, vcpu: Vcpu, msr: u32, value: u64) {
        let before = format!("{:?}", self.chips);
        let to_eoi = msr == X2APIC + u32::from(EOI);
        let eoi = to_eoi && value == 0 && self.mode(vcpu) == Some(ApicMode::X2Apic);
        let direct = to_eoi && self.by_turns();
        let mut refused = false;
        let outcome = |chips: &mut Chips, now| {
            let ended = if direct { chips.eoi_msr(vcpu, value, false) } else { None };
            assert_eq!(ended.is_some(), direct && eoi);
            if let Some(ended) = ended {
                return left(chips, vcpu, ended);
            }
            let result = chips.write_msr(vcpu, msr, value, now);
            refused = result.is_err();
            result.unwrap_or_default()
        };
        self.local_write(vcpu, eoi, outcome);
        assert!(!refused || before == format!("{:?}", self.chips), "#GP and a change at MSR {msr:#x}");
    }

    fn local_write(&mut self, vcpu: Vcpu, eoi: bool, write: impl FnOnce(&mut Chips, u64) -> Outcome) {
        let lapic = self.lapic(vcpu);
        let (mut service, mut completes) = (Service::Same, Completes::Vectorless);
        if eoi {
            completes = Completes::Exactly(0);
            if let Some(ended) = lapic.and_then(|lapic| lapic.isr.highest()) {
                service = Service::Ended(ended);
                if lapic.is_some_and(|lapic| lapic.tmr.contains(ended) && !lapic.suppresses) {
                    completes = Completes::Exactly(self.in_service(|_, vector| vector == ended));
                }
            }
        }
        let outcome = write(&mut self.chips, self.now);
        self.follow(outcome, completes);
        self.check(vcpu, service);
    }

    fn ioapic_write(&mut self, offset: u64, bytes: u8, value: u64, index: u8) {
        let completes = match offset {
            MMIO_EOI => {
                let named =
                    |pin, vector| vector == value as u8 || self.rte(pin).vector_field() == value as u8;
                Completes::Exactly(self.in_service(named))
            }
            MMIO_DATA if index >= REG_RTE_BASE => Completes::AtMost(Pin((index - REG_RTE_BASE) / 2)),
            _ => Completes::Exactly(0),
        };
        let outcome = self.chips.ioapic_write(offset, bytes, value);
        self.follow(outcome, completes);
        self.check(Vcpu(0), Service::Same);
    }

    fn redirect(&mut self, pin: Pin, high: bool, value: u32) {
        let index = REG_RTE_BASE + 2 * pin.0 + u8::from(high);
        self.ioapic_write(MMIO_INDEX, 4, u64::from(index), 0);
        self.ioapic_write(MMIO_DATA, 4, u64::from(value), index);
    }

    // What the run loop does.

    /// Carries an outcome out and checks which pins it completes.
    fn follow(&mut self, outcome: Outcome, completes: Completes) {
        self.complete(outcome.completed, completes);
        if let Some(changed) = outcome.rte {
            assert!(matches!(completes, Completes::AtMost(pin) if pin == changed.pin));
            if self.chips.look(changed.pin).completion_due {
                assert!(!self.chips.look(changed.pin).completion_due, "{:?} completes for ever", changed.pin);
            }
        }
        self.see_accepted();
    }

    fn complete(&mut self, completed: PinSet, completes: Completes) {
        match completes {
            Completes::Exactly(expected) => assert_eq!(bits(completed), expected, "pins completed, as bits"),
            Completes::AtMost(pin) => assert!(completed.into_iter().all(|done| done == pin), "{completed:?}"),
            Completes::Vectorless => {
                assert!(completed.into_iter().all(|pin| self.rte(pin).delivery_mode() > 1), "{completed:?}");
            }
            Completes::Edges => {
                assert!(completed.into_iter().all(|pin| self.accepted[usize::from(pin.0)].is_none()));
            }
        }
        for pin in completed {
            self.accepted[usize::from(pin.0)] = None;
        }
        for pin in completed {
            self.settle(pin);
        }
    }

    /// Lets a pin speak. A message without a vector completes at once, and then the pin is silent.
    fn settle(&mut self, pin: Pin) {
        if self.chips.settle(pin).completion_due {
            assert!(!self.chips.settle(pin).completion_due, "{pin:?} completes for ever");
        }
    }

    /// A pin that went in service did so with the vector its entry has now; and none left it unreported.
    fn see_accepted(&mut self) {
        for pin in pins() {
            let rte = self.rte(pin);
            let accepted = &mut self.accepted[usize::from(pin.0)];
            assert!(accepted.is_none() || rte.remote_irr(), "{pin:?} left service and nobody was told");
            if accepted.is_none() && rte.remote_irr() {
                assert!(rte.vector_field() >= 32 && rte.delivery_mode() <= 1, "{pin:?}: {rte:x?}");
                *accepted = Some(rte.vector_field());
            }
        }
    }

    fn drive(&mut self, pin: Pin, contributor: Contributor, asserted: bool) {
        if asserted {
            let settled = self.chips.assert_pin(pin, contributor);
            assert!(!settled.completion_due || !settled.takers.is_empty());
        } else if self.by_turns() {
            // Nothing is between an EOI and its completion here, and what is in service stays so.
            assert!(!self.chips.lower_pin(pin, contributor));
        } else {
            self.chips.deassert_pin(pin, contributor);
        }
        self.see_accepted();
        self.check(Vcpu(0), Service::Same);
    }

    /// One entry and the exit after it: whether the guest takes interrupts, and whether the exit strikes while it takes
    /// one. Returns the vector that was taken.
    fn step(&mut self, vcpu: Vcpu, state: Interruptibility, takes: bool, strikes: bool) -> Option<u8> {
        let next = self.lapic(vcpu).and_then(|lapic| lapic.next());
        let injection = self.chips.before_entry(vcpu, || state);
        let offer = injection.offer.map(Vector::get);
        let interrupted = &mut self.interrupted[usize::from(vcpu.0)];
        if state.event_taken {
            assert_eq!(injection.special.unwrap_or_default().event, None, "two events at once");
        } else if let Some(vector) = interrupted.take() {
            assert_eq!(
                injection.special.unwrap_or_default().event,
                Some(Event::Interrupt(Vector::new(vector).unwrap()))
            );
        } else {
            let nmi = injection.special.unwrap_or_default().event == Some(Event::Nmi);
            assert!(
                injection.special.unwrap_or_default().event.is_none()
                    || nmi && !state.nmi_blocked && !state.shadow
            );
        }
        let expected = if interrupted.is_some() { None } else { next };
        // A chip that is off has nothing to show, and what waited in it is gone.
        assert!(offer == expected || self.lapic(vcpu).is_none() && offer.is_none());
        let taken = offer.filter(|_| takes);
        self.interrupted[usize::from(vcpu.0)] =
            self.interrupted[usize::from(vcpu.0)].or(taken.filter(|_| strikes));
        let exited = Exited {
            offer_stands: offer.is_some() && !takes,
            interrupted: taken.filter(|_| strikes).and_then(Vector::new),
        };
        let completed = self.chips.after_exit(vcpu, exited);
        self.complete(completed, Completes::Edges);
        self.see_accepted();
        self.check(vcpu, taken.map_or(Service::Same, Service::Took));
        taken
    }

    fn advance(&mut self, vcpu: Vcpu, ticks: u64) {
        self.now += ticks;
        let due = self.chips.deadline(vcpu);
        let fired = self.chips.advance_timer(vcpu, self.now);
        assert!(!fired || due.is_some_and(|due| due <= self.now), "fired before it was due");
        let next = self.chips.deadline(vcpu);
        assert!(next.is_none_or(|next| next > self.now), "due again at once");
        self.check(vcpu, Service::Same);
    }

    // What must be the case.

    fn mode(&self, vcpu: Vcpu) -> Option<ApicMode> {
        self.chips.lapic(vcpu).map(|lapic| lapic.mode())
    }

    fn lapic(&mut self, vcpu: Vcpu) -> Option<Lapic> {
        Lapic::read(&mut self.chips, vcpu, self.now)
    }

    /// Every local APIC is consistent, and what is in service changed as the event allows.
    fn check(&mut self, acting: Vcpu, service: Service) {
        for vcpu in cpus() {
            let reset = self.chips.take_init(vcpu);
            let after = self.lapic(vcpu);
            let before = core::mem::replace(&mut self.before[usize::from(vcpu.0)], after);
            if reset {
                self.interrupted[usize::from(vcpu.0)] = None;
            }
            let chip = self.chips.lapic(vcpu).expect("a CPU of the guest");
            let Some(lapic) = after else { continue };
            lapic.check();
            assert_eq!(chip.pending().map(Vector::get), lapic.next(), "{lapic:x?}");
            assert_eq!(chip.cr8(), u64::from(lapic.tpr >> 4));
            let Some(before) = before.filter(|_| !reset) else { continue };
            let expected = match service {
                Service::Took(vector) if vcpu == acting => before.isr.with(vector, true),
                Service::Ended(vector) if vcpu == acting => before.isr.with(vector, false),
                _ => before.isr,
            };
            assert_eq!(lapic.isr, expected, "{service:x?}");
            for lost in before.irr.iter().filter(|&vector| !lapic.irr.contains(vector)) {
                assert!(vcpu == acting && service == Service::Took(lost), "lost {lost:#x} by {service:x?}");
            }
        }
    }
}

fn bits(pins: impl IntoIterator<Item = Pin>) -> u32 {
    pins.into_iter().fold(0, |bits, pin| bits | 1 << pin.0)
}

/// A vector that a guest might use, or must not.
fn vector(dice: &mut Dice) -> u8 {
    match dice.below(4) {
        0 => dice.any() as u8,
        _ => dice.pick(&[0x41, 0x51, 0x5f, 0x91, 0xf1, 0x20, 0x1f, 0xff]),
    }
}

/// An entry's lower half.
fn entry(dice: &mut Dice) -> u32 {
    let delivery = dice.pick(&[0, 0, 0, 0, 1, 4, 5, 7]);
    let flags = dice.pick(&[0, LEVEL, LEVEL, LEVEL, LEVEL | MASKED, MASKED]) | dice.pick(&[0, 0, 1 << 11]);
    u32::from(vector(dice)) | delivery << 8 | flags | if dice.one_in(8) { dice.any() as u32 } else { 0 }
}

/// A value for a local APIC's register that means something there.
fn meant(dice: &mut Dice, register: u8) -> u64 {
    let vector = u64::from(vector(dice));
    match register {
        SVR => vector | dice.pick(&[1 << 8, 1 << 8, 1 << 8, 0]) | dice.pick(&[0, 1 << 12]),
        ICR_LOW => {
            let command = dice.pick(&[0, 0, 0, 1 << 8, 4 << 8, 5 << 8, 6 << 8, 2 << 8]);
            vector | command | dice.pick(&[0, 1 << 11]) | dice.below(4) << 18 | dice.pick(&[0, 1 << 14])
        }
        ICR_HIGH => dice.pick(&[0, 1, 2, 3, 0xff]) << 24,
        TIMER_INITIAL => dice.pick(&[0, 1, 1000, 30_000, 0xffff_ffff]),
        TIMER_DIVIDE => dice.below(16),
        EOI | ESR => 0,
        register if LVT.contains(&register) => vector | dice.pick(&[0, 1 << 16, 1 << 17, 3 << 16]),
        _ => vector,
    }
}

const WRITTEN: [u8; 18] = [
    ID,
    TPR,
    EOI,
    LDR,
    DFR,
    SVR,
    ESR,
    ICR_LOW,
    ICR_HIGH,
    LVT[0],
    LVT[1],
    LVT[2],
    LVT[3],
    LVT[5],
    TIMER_INITIAL,
    TIMER_DIVIDE,
    SELF_IPI,
    PPR,
];

/// One thing that a guest or a device does, or the run loop for them.
fn happen(world: &mut World, dice: &mut Dice) {
    let vcpu = Vcpu(dice.below(u64::from(CPUS)) as u8);
    // Few pins, so that much happens to each.
    let pin = Pin(dice.mostly(&[3, 3, 3, 14, 14, 23], |dice| dice.below(u64::from(PINS)) as u8));
    match dice.below(20) {
        0..4 => {
            let contributor = Contributor::new(dice.pick(&[0, 1, 31])).unwrap();
            world.drive(pin, contributor, !dice.one_in(3));
        }
        4 | 5 => world.redirect(pin, false, entry(dice)),
        6 => world.redirect(pin, true, dice.mostly(&[0, 0, 1, 3, 0xff], |dice| dice.any() as u32) << 24),
        7 => {
            let index = world.chips.ioapic_read(MMIO_INDEX, 4) as u8;
            let offset = dice.mostly(&[MMIO_INDEX, MMIO_DATA, MMIO_EOI], Dice::hostile);
            let bytes = dice.pick(&[1, 2, 4, 8]);
            // Narrow writes to the data register are dropped, so nothing may complete.
            let index = if bytes < 4 { 0 } else { index };
            world.ioapic_write(offset, bytes, dice.hostile(), index);
        }
        8 => world.ioapic_write(MMIO_EOI, 4, u64::from(vector(dice)), 0),
        9 | 10 => match world.mode(vcpu) {
            Some(ApicMode::X2Apic) => world.msr_write(vcpu, X2APIC + u32::from(EOI), 0),
            _ => world.lapic_write(vcpu, u64::from(EOI) << 4, 4, 0),
        },
        11 | 12 => {
            let register = dice.pick(&WRITTEN);
            let value = meant(dice, register);
            match world.mode(vcpu) {
                Some(ApicMode::X2Apic) => {
                    let destination = if register == ICR_LOW { dice.below(4) << 32 } else { 0 };
                    world.msr_write(vcpu, X2APIC + u32::from(register), value | destination);
                }
                _ => world.lapic_write(vcpu, u64::from(register) << 4, 4, value),
            }
        }
        13 => {
            let offset = if dice.one_in(2) { dice.below(0x100) << 4 } else { dice.hostile() };
            world.lapic_write(vcpu, offset, dice.pick(&[1, 2, 4, 8]), dice.hostile());
        }
        14 => {
            let msr = if dice.one_in(2) { X2APIC | dice.below(0x100) as u32 } else { dice.hostile() as u32 };
            world.msr_write(vcpu, msr, dice.hostile());
        }
        15 => match dice.below(6) {
            0 => world.msr_write(
                vcpu,
                APIC_BASE,
                dice.pick(&[0xfee0_0000, 0xfee0_0800, 0xfee0_0c00, 0xd000_0800]),
            ),
            1 => world.msr_write(vcpu, APIC_BASE, dice.hostile()),
            _ => world.lapic_write(vcpu, u64::from(SVR) << 4, 4, ENABLED),
        },
        16 => {
            let value = dice.mostly(&[0, 0, 4, 15], Dice::hostile);
            assert_eq!(world.chips.set_cr8(vcpu, value).is_ok(), value < 16);
            world.check(vcpu, Service::Same);
        }
        17 => {
            let ticks = dice.pick(&[1, 999, 20_000, 1 << 20, 1 << 34]);
            world.advance(vcpu, ticks);
        }
        _ => {
            let state = Interruptibility {
                nmi_blocked: dice.one_in(4),
                shadow: dice.one_in(8),
                interrupts_enabled: dice.one_in(2),
                event_taken: dice.one_in(8),
            };
            world.step(vcpu, state, !dice.one_in(3), dice.one_in(8));
        }
    }
}

/// A guest that starts over, as a kernel does at boot, whatever the one before it left: with every pin asserted that
/// `asserted` names, each interrupts it exactly once.
fn start_over(world: &mut World, asserted: u32) {
    let all = (0..Contributor::COUNT).filter_map(Contributor::new);
    for (pin, contributor) in pins().flat_map(|pin| all.clone().map(move |contributor| (pin, contributor))) {
        world.chips.deassert_pin(pin, contributor);
    }
    for pin in pins() {
        world.redirect(pin, false, MASKED);
    }
    for vcpu in cpus() {
        for base in [0xfee0_0000, 0xfee0_0800] {
            world.msr_write(vcpu, APIC_BASE, base);
        }
        world.lapic_write(vcpu, u64::from(SVR) << 4, 4, ENABLED);
        world.lapic_write(vcpu, u64::from(TPR) << 4, 4, 0);
        // What was on its way into the CPU is the old guest's.
        for _ in 0..3 {
            world.step(vcpu, Interruptibility::default(), false, false);
        }
    }
    let [device, _] = [0, 1].map(|index| Contributor::new(index).unwrap());
    let vector = |pin: Pin| 0x30 + 8 * pin.0;
    for pin in pins() {
        world.redirect(pin, true, 0);
        world.redirect(pin, false, LEVEL | u32::from(vector(pin)));
        world.drive(pin, device, asserted >> pin.0 & 1 != 0);
    }
    let mut served = 0;
    while let Some(taken) = world.step(Vcpu(0), Interruptibility::default(), true, false) {
        let pin = pins().find(|&pin| vector(pin) == taken).expect("a vector of this guest's");
        assert_eq!(served >> pin.0 & 1, 0, "{pin:?} interrupts twice");
        served |= 1 << pin.0;
        world.drive(pin, device, false);
        world.lapic_write(Vcpu(0), u64::from(EOI) << 4, 4, 0);
    }
    assert_eq!(served, asserted, "pins that interrupted, as bits");
    assert_eq!(world.in_service(|_, _| true), 0);
}

#[test]
fn whatever_a_guest_does_service_is_sound_and_it_can_start_over() {
    fuzz(100, |dice| {
        let mut world = World::new();
        for _ in 0..dice.below(800) {
            happen(&mut world, dice);
        }
        start_over(&mut world, dice.any() as u32 & 0xff_ffff);
    });
}

#[test]
fn however_a_timer_is_programmed_its_ticks_cost_little() {
    fuzz(100, |dice| {
        let mut world = World::new();
        let cpu = Vcpu(0);
        for _ in 0..20 {
            for register in [TIMER_DIVIDE, LVT[0], TIMER_INITIAL, TIMER_DIVIDE, LVT[0]] {
                if !dice.one_in(4) {
                    let value = meant(dice, register);
                    world.lapic_write(cpu, u64::from(register) << 4, 4, value);
                }
            }
            let mut read = |number| register(&mut world.chips, cpu, number, world.now).expect("it is on");
            let (entry, initial) = (read(LVT[0]), read(TIMER_INITIAL));
            // From the first tick on nobody touches it any more.
            for tick in 0..10 {
                let Some(due) = world.chips.deadline(cpu) else { break };
                assert!(entry & MASKED == 0 && initial > 0, "a tick that nobody asked for");
                assert!(tick == 0 || entry >> 17 & 1 == 1, "one shot, and another");
                let late = dice.pick(&[0, 0, 1, 19_999, 1 << 36]);
                world.advance(cpu, due.saturating_sub(world.now) + late);
                let next = world.chips.deadline(cpu);
                assert!(next.is_none_or(|next| next >= due + LEAST_PERIOD), "{next:?} after {due}");
            }
        }
    });
}

/// The bits of each register that keep what is written to them, by the manual and by what [`VirtualChips`] says it has.
/// LVT mask bits depend on SVR besides.
const KEPT: [(u8, u32); 14] = [
    (TPR, 0xff),
    (LDR, 0xff00_0000),
    (DFR, 0xf000_0000),
    (SVR, 0x13ff),
    (ICR_LOW, 0xc_cfff),
    (ICR_HIGH, 0xff00_0000),
    (LVT[0], 0x7_00ff),
    (LVT[1], 0x1_07ff),
    (LVT[2], 0x1_07ff),
    (LVT[3], 0x1_a7ff),
    (LVT[4], 0x1_a7ff),
    (LVT[5], 0x1_00ff),
    (TIMER_INITIAL, u32::MAX),
    (TIMER_DIVIDE, 0xb),
];

/// The register page on paper: what each register reads after what was written.
struct Page([u32; KEPT.len()]);

impl Page {
    const RESET: Self =
        Self([0, 0, 0xf000_0000, 0xff, 0, 0, MASKED, MASKED, MASKED, MASKED, MASKED, MASKED, 0, 0]);

    fn slot(&mut self, register: u8) -> Option<(&mut u32, u32)> {
        let at = KEPT.iter().position(|&(kept, _)| kept == register)?;
        Some((&mut self.0[at], KEPT[at].1))
    }

    fn disabled(&mut self) -> bool {
        self.slot(SVR).is_some_and(|(svr, _)| *svr >> 8 & 1 == 0)
    }

    /// Whether the timer counts nothing: its entry's bit 18.
    fn awaits_tsc(&mut self) -> bool {
        self.slot(LVT[0]).is_some_and(|(entry, _)| *entry >> 18 & 1 == 1)
    }

    fn write(&mut self, register: u8, value: u32) {
        let awaited_tsc = self.awaits_tsc();
        if let Some((slot, kept)) = self.slot(register) {
            *slot = value & kept;
        }
        if self.awaits_tsc() || awaited_tsc && register != TIMER_INITIAL {
            self.slot(TIMER_INITIAL).into_iter().for_each(|(slot, _)| *slot = 0);
        }
        if self.disabled() {
            for register in LVT {
                self.slot(register).into_iter().for_each(|(slot, _)| *slot |= MASKED);
            }
        }
    }
}

#[test]
fn the_register_page_reads_as_the_table_says() {
    fuzz(100, |dice| {
        let mut chips = VirtualChips::new(1, MODEL);
        let (mut page, mut now) = (Page::RESET, 0);
        for _ in 0..300 {
            now += dice.below(5000);
            let register = if dice.one_in(4) { dice.any() as u8 } else { dice.pick(&WRITTEN) };
            let value = if dice.one_in(2) { dice.hostile() } else { meant(dice, register) };
            let (bytes, skew) = (dice.pick(&[4, 4, 4, 8, 2, 1]), dice.pick(&[0, 0, 0, 0, 4, 8]));
            let _outcome = chips.lapic_write(Vcpu(0), (u64::from(register) << 4) + skew, bytes, value, now);
            if skew == 0 && bytes >= 4 {
                page.write(register, value as u32);
            }
            if chips.take_init(Vcpu(0)) {
                page = Page::RESET;
            }
            let mut read = |register: u8| chips.lapic_read(Vcpu(0), u64::from(register) << 4, 4, now) as u32;
            for (at, (register, _)) in KEPT.into_iter().enumerate() {
                let rest = if register == DFR { 0x0fff_ffff } else { 0 };
                assert_eq!(read(register), page.0[at] | rest, "register {register:#x} after {value:#x}");
            }
            assert_eq!((read(ID), read(VERSION)), (0, 0x0105_0014));
            assert!(read(TIMER_CURRENT) <= read(TIMER_INITIAL));
            assert_eq!(read(ESR) & !0xe0, 0);
            // Every piece of the page agrees with the register it lies in, and the rest reads 0.
            let (offset, bytes) = (dice.below(0x1000), dice.pick(&[1_u8, 2, 4, 8]));
            let exists = matches!(offset >> 4, 2 | 3 | 8..=0x28 | 0x30..=0x39 | 0x3e);
            let whole = if exists { u64::from(read((offset >> 4) as u8)) } else { 0 };
            let piece = whole.checked_shr(8 * (offset & 15) as u32).unwrap_or(0);
            let piece = if bytes == 8 { piece } else { piece & ((1 << (8 * bytes)) - 1) };
            assert_eq!(
                chips.lapic_read(Vcpu(0), offset, bytes, now),
                piece,
                "{bytes} byte(s) at {offset:#x}"
            );
        }
    });
}

/// Whether a value may be written to an x2APIC register, by the manual (APM2 16.11): none if it cannot be written.
fn writable(register: u8) -> Option<u64> {
    Some(match register {
        TPR | SELF_IPI => 0xff,
        EOI | ESR => 0,
        SVR => 0x13ff,
        ICR_LOW => 0xffff_ffff_000c_cfff,
        0x32 => 0x7_10ff,
        0x33 | 0x34 => 0x1_17ff,
        0x35 | 0x36 => 0x1_f7ff,
        0x37 => 0x1_10ff,
        TIMER_INITIAL => 0xffff_ffff,
        TIMER_DIVIDE => 0xb,
        _ => return None,
    })
}

#[test]
fn x2apic_registers_are_legal_by_the_table_and_a_fault_changes_nothing() {
    fuzz(60, |dice| {
        let mut world = World::new();
        for _ in 0..150 {
            if dice.one_in(8) {
                let base = dice.pick(&[0xfee0_0000, 0xfee0_0800, 0xfee0_0c00, 0xfee0_0c00, 0xfee0_0400]);
                world.msr_write(Vcpu(0), APIC_BASE, base);
                assert!(world.mode(Vcpu(0)).is_some());
            }
            let x2apic = world.mode(Vcpu(0)) == Some(ApicMode::X2Apic);
            let msr = match dice.below(8) {
                0 => dice.hostile() as u32,
                1..4 => X2APIC + dice.below(0x100) as u32,
                _ => X2APIC + u32::from(dice.pick(&WRITTEN)),
            };
            let register = msr.checked_sub(X2APIC).and_then(|register| u8::try_from(register).ok());
            let register = register.filter(|_| x2apic);
            let readable = register.is_some_and(|register| {
                matches!(register, 2 | 3 | 8 | 9 | 0xa | 0xd | 0xf..=0x28 | 0x30 | 0x32..=0x39 | 0x3e)
            });
            assert_eq!(world.chips.read_msr(Vcpu(0), msr, world.now).is_ok(), readable || msr == APIC_BASE);
            if msr == APIC_BASE {
                continue;
            }
            let value = match register {
                Some(register) if !dice.one_in(3) => meant(dice, register),
                _ => dice.hostile(),
            };
            let legal = register.and_then(writable).is_some_and(|bits| value & !bits == 0);
            let mut twin = VirtualChips::new(1, MODEL);
            if x2apic {
                let _outcome =
                    twin.write_msr(Vcpu(0), APIC_BASE, 0xfee0_0c00, 0).expect("a legal change of mode");
            }
            assert_eq!(twin.write_msr(Vcpu(0), msr, value, 0).is_ok(), legal, "MSR {msr:#x} = {value:#x}");
            world.msr_write(Vcpu(0), msr, value);
        }
    });
}
