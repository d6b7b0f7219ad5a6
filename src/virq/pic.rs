//! The pair of 8259A interrupt controllers of a PC (Intel 8259A datasheet), of which a guest with a test device has the model: a
//! register file with inputs, an output, and the acknowledgement that names a vector.
//!
//! Wired as on every PC: the second chip drives input 2 of the first. Whether an input is an edge or a level is said by the chipset's
//! two registers (ELCR), not by ICW1. An edge is kept until it is acknowledged, as QEMU's and KVM's pairs keep it; the datasheet
//! wants the input held until then.

/// The input of the first chip that the second one drives.
const CASCADE: u8 = 2;
/// Which of a chip's inputs may be levels: not the timer, the keyboard, the cascade, the clock, and the coprocessor.
const MAY_BE_LEVELS: [u8; 2] = [0xf8, 0xde];
/// Where a PC's firmware puts the vectors of both.
const BASES: [u8; 2] = [0x08, 0x70];
/// The input of lowest priority, whose vector is given when nothing is left to acknowledge.
const LAST: u8 = 7;

/// The initialisation command words that a chip still expects at its second port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    /// None: the port is the mask.
    Nothing,
    /// ICW2, the vectors' base.
    Base { cascade: bool, mode: bool },
    /// ICW3, which says how chips are wired; they are wired already.
    Cascade { mode: bool },
    /// ICW4.
    Mode,
}

/// One chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chip {
    /// The inputs as they are.
    inputs: u8,
    requests: u8,
    in_service: u8,
    mask: u8,
    levels: u8,
    base: u8,
    /// The input of lowest priority; the one behind it has the highest.
    lowest: u8,
    expects: Expects,
    /// The first port reads what is in service, not what is requested.
    reads_in_service: bool,
    /// The next read acknowledges.
    polled: bool,
    special_mask: bool,
    ends_by_itself: bool,
    rotates: bool,
    fully_nested: bool,
}

impl Chip {
    const fn new(base: u8) -> Self {
        Self {
            inputs: 0,
            requests: 0,
            in_service: 0,
            mask: 0,
            levels: 0,
            base,
            lowest: LAST,
            expects: Expects::Nothing,
            reads_in_service: false,
            polled: false,
            special_mask: false,
            ends_by_itself: false,
            rotates: false,
            fully_nested: false,
        }
    }

    /// The first member of `set` by priority, and how many inputs come before it.
    const fn first(&self, set: u8) -> Option<(u8, u32)> {
        if set == 0 {
            return None;
        }
        let highest = (self.lowest as u32 + 1) & 7;
        let before = set.rotate_right(highest).trailing_zeros();
        Some((((highest + before) & 7) as u8, before))
    }

    /// The input that asserts the output: not masked, and of a higher priority than all that are in service.
    fn pending(&self) -> Option<u8> {
        let (input, before) = self.first(self.requests & !self.mask)?;
        let serviced = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        // In the special fully nested mode the other chip's service does not keep its own higher inputs out.
        let serviced = if self.fully_nested { serviced & !(1 << CASCADE) } else { serviced };
        match self.first(serviced) {
            Some((_, served)) if served <= before => None,
            _ => Some(input),
        }
    }

    const fn set_input(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        let was = self.inputs & bit != 0;
        self.inputs = if high { self.inputs | bit } else { self.inputs & !bit };
        if self.levels & bit != 0 {
            self.requests = self.requests & !bit | self.inputs & bit;
        } else if high && !was {
            self.requests |= bit;
        }
    }

    const fn set_levels(&mut self, levels: u8) {
        self.levels = levels;
        self.requests = self.requests & !levels | self.inputs & levels;
    }

    /// The end of the interrupt acknowledge cycle for `input`.
    const fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.levels & bit == 0 {
            self.requests &= !bit;
        }
        if !self.ends_by_itself {
            self.in_service |= bit;
        } else if self.rotates {
            self.lowest = input;
        }
    }

    /// ICW1 to ICW4, and OCW1.
    const fn write_second(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Nothing => {
                self.mask = value;
                Expects::Nothing
            }
            Expects::Base { cascade, mode } => {
                self.base = value & !7;
                if cascade {
                    Expects::Cascade { mode }
                } else if mode {
                    Expects::Mode
                } else {
                    Expects::Nothing
                }
            }
            Expects::Cascade { mode: true } => Expects::Mode,
            Expects::Cascade { mode: false } => Expects::Nothing,
            Expects::Mode => {
                self.ends_by_itself = value & 1 << 1 != 0;
                self.fully_nested = value & 1 << 4 != 0;
                Expects::Nothing
            }
        };
    }

    /// ICW1, OCW2 and OCW3.
    fn write_first(&mut self, value: u8) {
        const ICW1: u8 = 1 << 4;
        const OCW3: u8 = 1 << 3;
        if value & ICW1 != 0 {
            let Self { inputs, levels, base, .. } = *self;
            let expects = Expects::Base { cascade: value & 1 << 1 == 0, mode: value & 1 != 0 };
            *self = Self { inputs, levels, expects, requests: inputs & levels, ..Self::new(base) };
        } else if value & OCW3 != 0 {
            self.polled = value & 1 << 2 != 0;
            match value & 0b11 {
                0b10 => self.reads_in_service = false,
                0b11 => self.reads_in_service = true,
                _ => {}
            }
            match value >> 5 & 0b11 {
                0b10 => self.special_mask = false,
                0b11 => self.special_mask = true,
                _ => {}
            }
        } else {
            self.end_or_rotate(value >> 5, value & 7);
        }
    }

    /// OCW2.
    fn end_or_rotate(&mut self, command: u8, named: u8) {
        let highest = self.first(self.in_service).map(|(input, _)| input);
        let ended = match command {
            0b001 | 0b101 => highest,
            0b011 | 0b111 => Some(named),
            _ => None,
        };
        if let Some(input) = ended {
            self.in_service &= !(1 << input);
        }
        match command {
            0b000 => self.rotates = false,
            0b100 => self.rotates = true,
            0b101 | 0b111 => self.lowest = ended.unwrap_or(self.lowest),
            0b110 => self.lowest = named,
            _ => {}
        }
    }
}

/// Both chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pics {
    first: Chip,
    second: Chip,
}

impl Default for Pics {
    fn default() -> Self {
        Self::new()
    }
}

impl Pics {
    /// The pair as a PC's firmware initialises it, vectors 0x08 to 0x0f and 0x70 to 0x77, with nothing masked.
    pub const fn new() -> Self {
        let [first, second] = BASES;
        Self { first: Chip::new(first), second: Chip::new(second) }
    }

    /// Whether `port` is one of theirs: two of each chip, and the chipset's two.
    pub const fn contains(port: u16) -> bool {
        matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1)
    }

    /// Input `irq` of the pair, 0 to 15, goes high or low; 2 is the cascade, and there are no others.
    pub fn set_input(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE => {}
            0..8 => self.first.set_input(irq, high),
            8..16 => self.second.set_input(irq - 8, high),
            _ => {}
        }
        self.cascade();
    }

    /// The second chip's output is an input of the first.
    fn cascade(&mut self) {
        let bit = 1 << CASCADE;
        let high = self.second.pending().is_some();
        self.first.requests = if high { self.first.requests | bit } else { self.first.requests & !bit };
    }

    /// Whether the output to the CPU is asserted.
    pub fn output(&self) -> bool {
        self.first.pending().is_some()
    }

    /// The CPU acknowledges: the vector. If nothing is left to acknowledge it is that of the last input, and nothing is in service.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.first.pending() {
            Some(CASCADE) => {
                self.first.acknowledge(CASCADE);
                self.second.base | Self::take(&mut self.second)
            }
            Some(_) => self.first.base | Self::take(&mut self.first),
            None => self.first.base | LAST,
        };
        self.cascade();
        vector
    }

    fn take(chip: &mut Chip) -> u8 {
        let Some(input) = chip.pending() else { return LAST };
        chip.acknowledge(input);
        input
    }

    /// The guest reads a byte from one of the [ports](Self::contains).
    pub fn read(&mut self, port: u16) -> u8 {
        let chip = match port {
            0x4d0 => return self.first.levels,
            0x4d1 => return self.second.levels,
            0x20 | 0x21 => &mut self.first,
            _ => &mut self.second,
        };
        let value = if core::mem::take(&mut chip.polled) {
            const REQUESTED: u8 = 1 << 7;
            let requested = chip.pending().is_some();
            let input = Self::take(chip);
            if requested { REQUESTED | input } else { 0 }
        } else if port & 1 != 0 {
            chip.mask
        } else if chip.reads_in_service {
            chip.in_service
        } else {
            chip.requests
        };
        self.cascade();
        value
    }

    /// The guest writes a byte to one of the [ports](Self::contains).
    pub fn write(&mut self, port: u16, value: u8) {
        let [first, second] = MAY_BE_LEVELS;
        match port {
            0x4d0 => self.first.set_levels(value & first),
            0x4d1 => self.second.set_levels(value & second),
            0x20 => self.first.write_first(value),
            0x21 => self.first.write_second(value),
            0xa0 => self.second.write_first(value),
            0xa1 => self.second.write_second(value),
            _ => {}
        }
        self.cascade();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOI: u8 = 0x20;

    fn pulse(pics: &mut Pics, irq: u8) {
        pics.set_input(irq, true);
        pics.set_input(irq, false);
    }

    #[test]
    fn firmware_has_initialised_them_and_masked_nothing() {
        let mut pics = Pics::new();
        assert_eq!((pics.read(0x21), pics.read(0xa1), pics.output()), (0, 0, false));
        for irq in (0..16).filter(|irq| *irq != 2) {
            pulse(&mut pics, irq);
            assert!(pics.output());
            assert_eq!(pics.acknowledge(), if irq < 8 { 8 + irq } else { 0x70 + irq - 8 });
            assert!(!pics.output());
            if irq >= 8 {
                pics.write(0xa0, EOI);
            }
            pics.write(0x20, EOI);
        }
        assert_eq!(pics, Pics::new());
    }

    #[test]
    fn an_edge_is_kept_until_it_is_acknowledged_and_is_one() {
        let mut pics = Pics::new();
        pics.set_input(11, true);
        pics.set_input(11, true);
        pics.set_input(11, false);
        assert_eq!((pics.acknowledge(), pics.output()), (0x73, false));
        pics.write(0xa0, EOI);
        pics.write(0x20, EOI);
        assert!(!pics.output());
    }

    #[test]
    fn a_level_is_requested_as_long_as_it_is_high() {
        let mut pics = Pics::new();
        pics.write(0x4d0, 0xff);
        pics.write(0x4d1, 0xff);
        assert_eq!((pics.read(0x4d0), pics.read(0x4d1)), (0xf8, 0xde), "some are edges for ever");
        pics.set_input(11, true);
        assert_eq!(pics.acknowledge(), 0x73);
        assert!(!pics.output(), "in service");
        pics.write(0xa0, EOI);
        pics.write(0x20, EOI);
        assert!(pics.output(), "still high");
        pics.set_input(11, false);
        assert!(!pics.output());
    }

    #[test]
    fn the_lowest_number_goes_first_and_keeps_lower_priorities_out() {
        let mut pics = Pics::new();
        for irq in [7, 12, 8, 3, 1] {
            pulse(&mut pics, irq);
        }
        assert_eq!((pics.acknowledge(), pics.output()), (9, false));
        pics.write(0x20, EOI);
        assert_eq!((pics.acknowledge(), pics.output()), (0x70, false));
        pulse(&mut pics, 0);
        assert_eq!(pics.acknowledge(), 8, "a higher one nests");
        pics.write(0x20, EOI);
        assert!(!pics.output(), "the second chip is still in service");
        pics.write(0x20, EOI);
        assert_eq!(pics.acknowledge(), 0x0b, "the second chip's own service keeps 12 out");
        pics.write(0x20, EOI);
        pics.write(0xa0, EOI);
        assert_eq!(pics.acknowledge(), 0x74);
    }

    #[test]
    fn the_special_fully_nested_mode_lets_the_second_chip_nest() {
        let mut pics = Pics::new();
        for (port, word) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 0x11)] {
            pics.write(port, word);
        }
        pulse(&mut pics, 12);
        assert_eq!(pics.acknowledge(), 0x74);
        pulse(&mut pics, 9);
        assert_eq!(pics.acknowledge(), 0x71);
    }

    #[test]
    fn a_mask_holds_back_and_a_request_that_is_gone_is_spurious() {
        let mut pics = Pics::new();
        pulse(&mut pics, 5);
        pics.write(0x21, 1 << 5);
        assert!(!pics.output());
        assert_eq!(pics.acknowledge(), 0x0f);
        pics.write(0x20, 0x0b);
        assert_eq!(pics.read(0x20), 0, "nothing is in service");
        pics.write(0x21, 0);
        assert_eq!(pics.acknowledge(), 0x0d);
        assert_eq!(pics.read(0x20), 1 << 5);
    }

    #[test]
    fn initialisation_takes_as_many_words_as_it_says_and_forgets_what_was() {
        let mut pics = Pics::new();
        pulse(&mut pics, 1);
        pics.write(0x21, 0xff);
        pics.write(0x20, 0x11);
        for word in [0x47, 4, 2] {
            pics.write(0x21, word);
        }
        assert_eq!(pics.read(0x21), 0, "nothing is masked");
        assert!(!pics.output());
        pulse(&mut pics, 1);
        assert_eq!(pics.acknowledge(), 0x41, "the base is a multiple of 8");
        assert!(!pics.output());
        pulse(&mut pics, 1);
        assert_eq!(pics.acknowledge(), 0x41, "the interrupt ended by itself");
        // Single, without ICW4: the next word is a mask.
        pics.write(0x20, 0x12);
        pics.write(0x21, 0x30);
        pics.write(0x21, 0xfe);
        assert_eq!(pics.read(0x21), 0xfe);
        // Without ICW4, cascaded.
        pics.write(0x20, 0x10);
        pics.write(0x21, 0x30);
        pics.write(0x21, 4);
        pics.write(0x21, 0xfd);
        assert_eq!(pics.read(0x21), 0xfd);
    }

    #[test]
    fn specific_ends_and_rotations() {
        let mut pics = Pics::new();
        for irq in [0, 1] {
            pulse(&mut pics, irq);
        }
        assert_eq!(pics.acknowledge(), 8);
        pics.write(0x20, 0x60 | 1);
        assert!(!pics.output(), "another input's end");
        pics.write(0x20, 0xa0);
        assert_eq!(pics.acknowledge(), 9);
        pulse(&mut pics, 0);
        assert!(!pics.output(), "0 is the lowest now");
        pics.write(0x20, 0xe0 | 1);
        pulse(&mut pics, 1);
        pulse(&mut pics, 3);
        assert_eq!(pics.acknowledge(), 0x0b, "1 is the lowest now");
        pics.write(0x20, 0x60 | 3);
        pics.write(0x20, 0xc0 | 7);
        assert_eq!(pics.acknowledge(), 8);
    }

    #[test]
    fn automatic_ends_rotate_when_told() {
        let mut pics = Pics::new();
        for (port, word) in [(0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 3), (0x20, 0x80)] {
            pics.write(port, word);
        }
        for irq in [0, 1] {
            pulse(&mut pics, irq);
        }
        assert_eq!(pics.acknowledge(), 8);
        pulse(&mut pics, 0);
        assert_eq!(pics.acknowledge(), 9, "0 is the lowest now");
        assert_eq!(pics.acknowledge(), 8);
        pics.write(0x20, 0);
        pulse(&mut pics, 3);
        pulse(&mut pics, 4);
        assert_eq!((pics.acknowledge(), pics.acknowledge()), (0x0b, 0x0c));
    }

    #[test]
    fn the_special_mask_lets_lower_priorities_in() {
        let mut pics = Pics::new();
        pulse(&mut pics, 1);
        pics.acknowledge();
        pulse(&mut pics, 5);
        pics.write(0x21, 1 << 1);
        assert!(!pics.output());
        pics.write(0x20, 0x68);
        assert!(pics.output());
        pics.write(0x20, 0x48);
        assert!(!pics.output());
    }

    #[test]
    fn a_poll_acknowledges() {
        let mut pics = Pics::new();
        pulse(&mut pics, 4);
        pics.write(0x20, 0x0c);
        assert_eq!(pics.read(0x20), 0x84);
        assert_eq!(pics.read(0x20), 0, "once");
        pics.write(0x20, 0x0c);
        assert_eq!(pics.read(0x20), 0, "nothing waits");
    }

    #[test]
    fn any_sequence_ends_in_a_state_in_which_a_new_beginning_works() {
        let mut state = 1u64;
        let mut pics = Pics::new();
        for _ in 0..100_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let [a, b, ..] = (state >> 32).to_le_bytes();
            match a % 5 {
                0 => pics.set_input(b & 0x1f, a & 0x80 != 0),
                1 => _ = pics.acknowledge(),
                2 => _ = pics.read([0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][usize::from(b) % 6]),
                _ => pics.write([0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][usize::from(b) % 6], a ^ b),
            }
        }
        (0..16).for_each(|irq| pics.set_input(irq, false));
        for (ports, base) in [(0x20, 8), (0xa0, 0x70)] {
            [(ports, 0x11), (ports + 1, base), (ports + 1, 4), (ports + 1, 1)]
                .into_iter()
                .for_each(|(port, word)| pics.write(port, word));
        }
        pics.write(0x4d0, 0);
        pics.write(0x4d1, 0);
        assert_eq!(pics, Pics::new());
    }
}
