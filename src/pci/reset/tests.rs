use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec;

use super::super::enumerate;
use super::super::fake::{FakeFunction, Machine, bdf};
use super::*;

const TICKS_PER_MS: u64 = 1000;
/// More polls than any reset may take.
const MOST_POLLS: usize = 3000;

/// How a function behaves when something resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conduct {
    /// It is back, as after power-on, when this time is over.
    Resets { ms: u64 },
    /// It goes and never comes back.
    Vanishes,
    /// It does nothing, and says that it did.
    Ignores,
    /// It is back, but as another function.
    Changes,
    /// It is back with BAR0 broken.
    LosesBar,
}

struct Device {
    conduct: Conduct,
    power_on: FakeFunction,
    away_until: Option<u64>,
}

/// A machine on which functions can be reset, with a clock; it notes every access to a function in reset.
struct Board {
    machine: Machine,
    devices: RefCell<BTreeMap<Bdf, Device>>,
    now: Cell<u64>,
    trespasses: RefCell<Vec<Bdf>>,
    bus_in_reset: Cell<bool>,
    resets: Cell<usize>,
    bridge_obeys: bool,
    /// The bridge does as it is told, and reads as if it did not.
    bridge_hides: bool,
}

const DEVICE: &str = "01:03.0";
const NEIGHBOUR: &str = "01:04.0";
const BRIDGE: &str = "00:1e.0";

/// As after power-on: no addresses, nothing on.
fn power_on(capability: impl Fn(FakeFunction) -> FakeFunction) -> FakeFunction {
    capability(
        FakeFunction::endpoint(0x1234, 0x11e8)
            .memory_bar(0, 1 << 20, 0)
            .writable(0x0c, &[0xff, 0xff])
            .writable(0x30, &[0x01, 0, 0xff, 0xff])
            .bytes(0x3d, &[1]),
    )
}

fn express() -> FakeFunction {
    power_on(|blank| {
        blank
            .capability(0x40, 0x10, &[2, 0, 0, 0, 0, 0x10])
            .writable(0x48, &[0xff, 0x7f])
            .writable(0x50, &[0xff])
            .writable(0x68, &[0xff])
    })
}
fn advanced() -> FakeFunction {
    power_on(|blank| blank.capability(0x40, 0x13, &[6, 3, 0, 0]))
}
fn by_power() -> FakeFunction {
    power_on(|blank| blank.capability(0x40, 0x01, &[3, 0, 0, 0]).writable(0x44, &[3]))
}
fn plain() -> FakeFunction {
    power_on(|blank| blank)
}

/// As firmware and assignment leave it.
fn configured(power_on: FakeFunction) -> FakeFunction {
    let configured = power_on.bytes(0x10, &0xfea0_0000_u32.to_le_bytes()).command(0x0402).bytes(0x3c, &[11]);
    configured.bytes(0x0c, &[16, 0x20]).bytes(0x30, &0xfeb0_0000_u32.to_le_bytes())
}

impl Board {
    fn with(conduct: Conduct, power_on: FakeFunction) -> Self {
        Self::of(&[(DEVICE, conduct, power_on)])
    }

    fn of(devices: &[(&str, Conduct, FakeFunction)]) -> Self {
        let machine = Machine::with([(BRIDGE, FakeFunction::bridge(1, 1).writable(0x3e, &[0x40]))]);
        let mut known = BTreeMap::new();
        for (at, conduct, power_on) in devices.iter().cloned() {
            machine.insert(bdf(at), configured(power_on.clone()));
            known.insert(bdf(at), Device { conduct, power_on, away_until: None });
        }
        Self {
            machine,
            devices: RefCell::new(known),
            now: Cell::new(1_000_000),
            trespasses: RefCell::default(),
            bus_in_reset: Cell::new(false),
            resets: Cell::new(0),
            bridge_obeys: true,
            bridge_hides: false,
        }
    }

    fn method(&self) -> Method {
        let mut functions = Vec::new();
        let topology = enumerate(&self.machine, &[0], |function| functions.push(function));
        let function = functions.iter().find(|function| function.bdf == bdf(DEVICE)).unwrap();
        Method::choose(function, &functions, &topology, |_| true).unwrap()
    }

    fn reset(&self) -> Reset {
        let members: Vec<Saved> =
            self.devices.borrow().keys().map(|at| Saved::read(&self.machine, *at).unwrap()).collect();
        Reset::new(self.method(), members, NonZeroU64::new(TICKS_PER_MS).unwrap())
    }

    /// Sees a reset through; how many milliseconds it took.
    fn run(&self, reset: &mut Reset) -> u64 {
        let begin = self.now.get();
        let mut progress = reset.start(self, begin);
        for _ in 0..MOST_POLLS {
            let Progress::Wait(until) = progress else { return (self.now.get() - begin) / TICKS_PER_MS };
            assert!(until > self.now.get(), "a wait ends in the future");
            // Asked too early, nothing happens, not even a look.
            self.now.set(until - 1);
            self.machine.take_reads();
            self.machine.take_writes();
            if matches!(reset.state, State::Asserted { .. } | State::Settling { .. }) {
                assert_eq!(reset.poll(self, self.now.get()), Progress::Wait(until));
                assert_eq!((self.machine.take_reads(), self.machine.take_writes().len()), (0, 0));
            }
            self.now.set(until);
            progress = reset.poll(self, until);
        }
        panic!("the reset does not end: {reset:?}");
    }

    /// The reset of a device takes place.
    fn strike(&self, at: Bdf, from_now_ms: u64) {
        let mut devices = self.devices.borrow_mut();
        let Some(device) = devices.get_mut(&at) else { return };
        self.resets.set(self.resets.get() + 1);
        let fresh = match device.conduct {
            Conduct::Ignores => return,
            Conduct::Vanishes => return self.machine.remove(at),
            Conduct::Resets { .. } => device.power_on.clone(),
            Conduct::Changes => device.power_on.clone().bytes(0x00, &[0x86, 0x80]),
            Conduct::LosesBar => device.power_on.clone().writable(0x10, &[0; 4]),
        };
        let ms = if let Conduct::Resets { ms } = device.conduct { ms } else { from_now_ms };
        device.away_until = Some(self.now.get() + ms * TICKS_PER_MS);
        self.machine.insert(at, fresh);
    }

    fn is_away(&self, at: Bdf) -> bool {
        if at.bus() == 1 && self.bus_in_reset.get() {
            return true;
        }
        self.devices
            .borrow()
            .get(&at)
            .and_then(|device| device.away_until)
            .is_some_and(|t| self.now.get() < t)
    }

    /// Whether an access reaches its function.
    fn reaches(&self, at: Bdf) -> bool {
        if self.is_away(at) {
            self.trespasses.borrow_mut().push(at);
        }
        !self.is_away(at)
    }

    fn wrote(&self, at: Bdf, offset: Offset, before: u16) {
        let now = self.machine.peek16(at, offset.get() as u8);
        if at == bdf(BRIDGE) && offset == Offset::BRIDGE_CONTROL {
            let asserted = now & 0x40 != 0;
            if asserted && !self.bus_in_reset.replace(true) {
                let members: Vec<Bdf> = self.devices.borrow().keys().copied().collect();
                members.into_iter().for_each(|member| self.strike(member, 0));
            } else if !asserted {
                self.bus_in_reset.set(false);
            }
            return;
        }
        // D3hot to D0.
        let power = self.devices.borrow()[&at].power_on.has_capability(0x40, 0x01);
        if power && offset.get() == 0x44 && before & 3 == 3 && now & 3 == 0 {
            self.strike(at, 0);
        }
    }
}

impl ConfigSpace for Board {
    fn read8(&self, at: Bdf, offset: Offset) -> u8 {
        if self.reaches(at) { self.machine.read8(at, offset) } else { u8::MAX }
    }
    fn read16(&self, at: Bdf, offset: Offset) -> u16 {
        let value = if self.reaches(at) { self.machine.read16(at, offset) } else { u16::MAX };
        let hides = self.bridge_hides && at == bdf(BRIDGE) && offset == Offset::BRIDGE_CONTROL;
        if hides { value & !0x40 } else { value }
    }
    fn read32(&self, at: Bdf, offset: Offset) -> u32 {
        if self.reaches(at) { self.machine.read32(at, offset) } else { u32::MAX }
    }
    fn write8(&self, at: Bdf, offset: Offset, value: u8) {
        if self.reaches(at) {
            self.machine.write8(at, offset, value);
            if offset.get() == 0x44 && value == 1 {
                self.strike(at, 100);
            }
        }
    }
    fn write16(&self, at: Bdf, offset: Offset, value: u16) {
        if !self.reaches(at) || at == bdf(BRIDGE) && !self.bridge_obeys {
            return;
        }
        // A function that is gone keeps nothing.
        if self.devices.borrow().contains_key(&at) && self.machine.read16(at, Offset::VENDOR_ID) == u16::MAX {
            return;
        }
        let before = self.machine.read16(at, offset);
        self.machine.write16(at, offset, value);
        if offset.get() == 0x48 && value & 0x8000 != 0 {
            self.strike(at, 100);
        } else {
            self.wrote(at, offset, before);
        }
    }
    fn write32(&self, at: Bdf, offset: Offset, value: u32) {
        if self.reaches(at) {
            self.machine.write32(at, offset, value);
        }
    }
}

fn outcomes(reset: &Reset) -> Vec<Result<(), Fault>> {
    reset.outcomes().map(|(_, outcome)| outcome).collect()
}

const WELL: Conduct = Conduct::Resets { ms: 90 };

#[test]
fn n8_every_method_clears_the_function_and_gives_its_configuration_back() {
    // The longest each may take, and how long the function is away.
    for (function, away, most) in
        [(express(), 90, 100), (advanced(), 90, 100), (by_power(), 9, 20), (plain(), 900, 1002)]
    {
        let board = Board::with(Conduct::Resets { ms: away }, function);
        let before = board.machine.dump(bdf(DEVICE));
        let mut reset = board.reset();
        let took = board.run(&mut reset);
        assert_eq!(outcomes(&reset), [Ok(())], "{}", reset.method());
        assert_eq!((board.resets.get(), took), (1, most), "{}", reset.method());
        assert_eq!(
            *board.trespasses.borrow(),
            [],
            "{}: nobody speaks to a function in reset",
            reset.method()
        );
        assert_eq!(board.machine.dump(bdf(DEVICE)), before, "{}", reset.method());
    }
}

#[test]
fn the_controls_of_a_functions_link_are_given_back() {
    let board = Board::with(WELL, express());
    for (control, value) in [(0x48, [0x3f, 0x20]), (0x50, [0x43, 0]), (0x68, [0x05, 0])] {
        board.machine.poke(bdf(DEVICE), control, &value);
    }
    let before = board.machine.dump(bdf(DEVICE));
    let mut reset = board.reset();
    board.run(&mut reset);
    assert_eq!((outcomes(&reset), board.machine.dump(bdf(DEVICE))), (vec![Ok(())], before));
}

#[test]
fn a_function_is_silent_before_it_is_reset_and_gets_its_command_back_last() {
    let board = Board::with(WELL, express());
    let mut reset = board.reset();
    board.machine.take_writes();
    let Progress::Wait(until) = reset.start(&board, board.now.get()) else { panic!("over at once") };
    let at = bdf(DEVICE);
    assert_eq!(board.machine.take_writes(), [(at, 0x04, 2, 0x0400), (at, 0x48, 2, 0x8000)]);
    board.now.set(until);
    assert_eq!(reset.poll(&board, until), Progress::Over);
    assert_eq!(board.machine.take_writes().last(), Some(&(at, 0x04, 2, 0x0402)));
}

#[test]
fn transactions_that_drain_are_waited_for_and_others_for_a_bounded_time() {
    let board = Board::with(WELL, express());
    board.machine.poke(bdf(DEVICE), 0x4a, &[0x20]);
    let mut reset = board.reset();
    let Progress::Wait(until) = reset.start(&board, board.now.get()) else { panic!("over at once") };
    assert_eq!(until, board.now.get() + TICKS_PER_MS);
    assert_eq!(board.resets.get(), 0, "not yet");
    board.machine.poke(bdf(DEVICE), 0x4a, &[0]);
    board.now.set(until);
    reset.poll(&board, until);
    assert_eq!(board.resets.get(), 1);

    let board = Board::with(WELL, advanced());
    board.machine.poke(bdf(DEVICE), 0x45, &[1]);
    let mut reset = board.reset();
    assert_eq!(board.run(&mut reset), 200, "100 ms for what does not drain, 100 for the reset");
    assert_eq!((outcomes(&reset), board.resets.get()), (vec![Ok(())], 1));
}

#[test]
fn n15_a_function_that_never_comes_back_is_given_up_after_a_bounded_time() {
    for (function, most) in [(express(), 1100), (by_power(), 1020), (plain(), 2002)] {
        let board = Board::with(Conduct::Vanishes, function);
        let mut reset = board.reset();
        assert_eq!(board.run(&mut reset), most);
        assert_eq!(outcomes(&reset), [Err(Fault::NeverReturned)]);
    }
}

#[test]
fn n15_a_function_that_is_gone_before_is_not_written() {
    let board = Board::with(WELL, express());
    let mut reset = board.reset();
    board.machine.remove(bdf(DEVICE));
    board.machine.take_writes();
    board.run(&mut reset);
    assert_eq!(outcomes(&reset), [Err(Fault::Absent)]);
    assert_eq!((board.machine.take_writes(), board.resets.get()), (vec![], 0));
}

#[test]
fn a_function_that_needs_longer_is_asked_until_it_answers() {
    let board = Board::with(Conduct::Resets { ms: 100 }, express());
    let mut reset = board.reset();
    reset.start(&board, board.now.get());
    // Retries as software sees them: Vendor ID 1 with the rest all-ones.
    board.machine.poke(bdf(DEVICE), 0, &[0x01, 0x00, 0xff, 0xff]);
    board.now.set(board.now.get() + 100 * TICKS_PER_MS);
    for _ in 0..10 {
        let Progress::Wait(until) = reset.poll(&board, board.now.get()) else { panic!("not back yet") };
        assert_eq!(until, board.now.get() + TICKS_PER_MS);
        board.now.set(until);
    }
    board.machine.poke(bdf(DEVICE), 0, &[0x34, 0x12, 0xe8, 0x11]);
    assert_eq!(reset.poll(&board, board.now.get()), Progress::Over);
    assert_eq!(outcomes(&reset), [Ok(())]);
}

#[test]
fn n14_whoever_lies_about_a_reset_is_found_out() {
    for function in [express(), advanced(), by_power(), plain()] {
        let fault = |conduct| {
            let board = Board::with(conduct, function.clone());
            let mut reset = board.reset();
            board.run(&mut reset);
            (outcomes(&reset), board.machine.peek16(bdf(DEVICE), 0x04))
        };
        assert_eq!(fault(Conduct::Ignores), (vec![Err(Fault::NoEffect)], 0x0402), "as it was before");
        let (outcome, command) = fault(Conduct::Changes);
        assert_eq!((outcome, command), (vec![Err(Fault::Replaced(0x11e8_8086))], 0), "left alone");
        let lost = Fault::NotRestored(Offset::conventional(0x10));
        assert_eq!(fault(Conduct::LosesBar), (vec![Err(lost)], 0x0400), "silent and deaf");
    }
}

#[test]
fn a_function_that_stays_asleep_has_not_returned() {
    let asleep = by_power().bytes(0x44, &[3]).writable(0x44, &[0]);
    let board = Board::with(WELL, asleep);
    let mut reset = board.reset();
    board.run(&mut reset);
    assert_eq!(outcomes(&reset), [Err(Fault::NeverReturned)]);
}

#[test]
fn a_bus_is_reset_as_a_whole_and_each_function_on_it_judged_by_itself() {
    let board = Board::of(&[(DEVICE, WELL, plain()), (NEIGHBOUR, Conduct::Vanishes, plain())]);
    let before = board.machine.dump(bdf(DEVICE));
    let mut reset = board.reset();
    assert_eq!(reset.method(), Method::Bus(bdf(BRIDGE)));
    board.run(&mut reset);
    assert_eq!(outcomes(&reset), [Ok(()), Err(Fault::NeverReturned)]);
    assert_eq!(board.machine.dump(bdf(DEVICE)), before);
    assert_eq!(*board.trespasses.borrow(), []);
    assert_eq!(board.machine.peek16(bdf(BRIDGE), 0x3e), 0, "the bus is out of reset");
}

#[test]
fn a_bridge_that_does_not_obey_or_is_gone_resets_nothing() {
    let mut board = Board::with(WELL, plain());
    let mut reset = board.reset();
    board.bridge_obeys = false;
    board.run(&mut reset);
    assert_eq!(outcomes(&reset), [Err(Fault::Bridge(bdf(BRIDGE)))]);
    board.machine.remove(bdf(BRIDGE));
    board.run(&mut reset);
    assert_eq!((outcomes(&reset), board.resets.get()), (vec![Err(Fault::Bridge(bdf(BRIDGE)))], 0));
}

#[test]
fn a_bus_does_not_stay_in_reset_behind_a_bridge_that_hides_it() {
    let board = Board { bridge_hides: true, ..Board::with(Conduct::Resets { ms: 1 }, plain()) };
    let mut reset = board.reset();
    board.run(&mut reset);
    assert_eq!(outcomes(&reset), [Err(Fault::Bridge(bdf(BRIDGE)))]);
    assert_eq!((board.resets.get(), board.bus_in_reset.get()), (1, false));
}

/// PME_Status is cleared by writing a one (PCI PM 1.2 3.2.4), and it is the guest's.
#[test]
fn a_functions_pme_status_is_not_written_back() {
    let board = Board::with(Conduct::Resets { ms: 1 }, by_power());
    board.machine.poke(bdf(DEVICE), 0x45, &[0x80]);
    let mut reset = board.reset();
    board.machine.take_writes();
    let Progress::Wait(_) = reset.start(&board, board.now.get()) else { panic!("over at once") };
    assert_eq!(board.machine.take_writes().last(), Some(&(bdf(DEVICE), 0x44, 2, 3)));
}

#[test]
fn i43_a_thousand_resets_are_a_thousand_resets() {
    for function in [express(), by_power(), plain()] {
        let board = Board::with(WELL, function);
        let before = board.machine.dump(bdf(DEVICE));
        let mut reset = board.reset();
        for times in 1..=1000 {
            board.run(&mut reset);
            assert_eq!((outcomes(&reset), board.resets.get()), (vec![Ok(())], times));
            assert_eq!(board.machine.dump(bdf(DEVICE)), before);
        }
    }
}

#[test]
fn times_never_overflow() {
    let board = Board::with(WELL, express());
    let saved = Saved::read(&board.machine, bdf(DEVICE)).unwrap();
    let mut reset = Reset::new(board.method(), [saved], NonZeroU64::MAX);
    assert_eq!(reset.start(&board, u64::MAX - 1), Progress::Wait(u64::MAX));
    board.now.set(u64::MAX);
    assert_eq!(reset.poll(&board, u64::MAX), Progress::Over);
}

#[test]
fn the_strongest_reset_that_touches_nobody_else_is_chosen() {
    let choose = |functions: &[(&str, FakeFunction)], own: &[&str]| {
        let machine = Machine::with([(BRIDGE, FakeFunction::bridge(1, 2))]);
        functions.iter().for_each(|(at, function)| machine.insert(bdf(at), function.clone()));
        let mut found = Vec::new();
        let topology = enumerate(&machine, &[0], |function| found.push(function));
        let function = found.iter().find(|function| function.bdf == bdf(functions[0].0)).unwrap();
        Method::choose(function, &found, &topology, |at| own.iter().any(|own| bdf(own) == at))
    };
    let express_at = FunctionLevelReset::PciExpress(Offset::conventional(0x48));
    assert_eq!(choose(&[(DEVICE, express())], &[DEVICE]), Ok(Method::Function(express_at)));
    let both = express().capability(0x80, 0x01, &[3, 0, 0, 0]);
    assert_eq!(choose(&[(DEVICE, both)], &[DEVICE]), Ok(Method::Function(express_at)));
    let power = Method::Power(Offset::conventional(0x44));
    assert_eq!(choose(&[(DEVICE, by_power())], &[DEVICE]), Ok(power));
    assert_eq!(choose(&[(DEVICE, plain())], &[DEVICE]), Ok(Method::Bus(bdf(BRIDGE))));
    let two = [(DEVICE, plain()), (NEIGHBOUR, plain())];
    assert_eq!(choose(&two, &[DEVICE, NEIGHBOUR]), Ok(Method::Bus(bdf(BRIDGE))));
    assert_eq!(choose(&two, &[DEVICE]), Err(NoMethod::Shared(bdf(NEIGHBOUR))));
    let nested = [(DEVICE, plain()), ("01:05.0", FakeFunction::bridge(2, 2))];
    assert_eq!(choose(&nested, &[DEVICE, "01:05.0"]), Err(NoMethod::BridgeBelow(bdf("01:05.0"))));
    assert_eq!(choose(&[("00:03.0", plain())], &["00:03.0"]), Err(NoMethod::RootBus));
}
