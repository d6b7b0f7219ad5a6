//! One function as a plain description, read once at boot. Reading it sizes its BARs; [`Function::prepare`] is the
//! only other thing here that writes.

use core::fmt;

use super::capability::Capabilities;
use super::config::{command_status, write_enables};
use super::{Bars, Bdf, Command, ConfigSpace, IntPin, Offset};

/// What a function says it is good for (PCI Code and ID Assignment 1.11, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassCode {
    /// Base class.
    pub base: u8,
    /// Sub-class.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

impl ClassCode {
    // Functions that carry the machine itself: a host bridge may stop memory, an ISA bridge the console.
    const fn must_keep_decoding(self) -> bool {
        self.base == 0x06 && matches!(self.sub, 0x00 | 0x01)
    }
}

impl fmt::Display for ClassCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}", self.base, self.sub, self.interface)
    }
}

/// Layout of the header after its first 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Header {
    /// Type 0: a device; only these can be assigned.
    Endpoint,
    /// Type 1: a PCI-to-PCI bridge.
    Bridge {
        /// The bus behind it.
        secondary: u8,
        /// The highest bus behind it.
        subordinate: u8,
    },
    /// Type 2 (CardBus) or a reserved type; nothing else of it is read.
    Other(u8),
}

/// A function that answered, as it was when it was read.
///
/// Nothing in it is more than the function's own claim. BARs are [`Bars::NONE`] for host and ISA bridges, which
/// must not stop decoding to be sized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub bdf: Bdf,
    /// Vendor ID; never 0xffff.
    pub vendor_id: u16,
    /// Device ID.
    pub device_id: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code.
    pub class: ClassCode,
    /// Header layout.
    pub header: Header,
    /// Whether the header claims several functions; counts in function 0 only.
    pub multi_function: bool,
    /// Command, before anything was changed.
    pub command: Command,
    /// Base address registers.
    pub bars: Bars,
    /// The interrupt pin; `None` when the function has no INTx.
    pub interrupt_pin: Option<IntPin>,
    /// Interrupt Line: what firmware noted there, if it noted anything.
    pub interrupt_line: u8,
    /// The capabilities.
    pub capabilities: Capabilities,
}

impl Function {
    /// Reads the description; `None` when the function is absent. Sizing writes its BARs and puts them back, see
    /// [`Bars::probe`].
    pub fn read(space: &impl ConfigSpace, bdf: Bdf) -> Option<Self> {
        let [vendor_id, device_id] = halves(space.read32(bdf, Offset::VENDOR_ID));
        // 0xffff is nobody's ID; 0 is what some bridges answer for nobody (PCI 3.0 6.1).
        if matches!(vendor_id, 0 | 0xffff) {
            return None;
        }
        let (command, _) = command_status(space.read32(bdf, Offset::COMMAND))?;
        let [revision, interface, sub, base] = space.read32(bdf, Offset::REVISION).to_le_bytes();
        let class = ClassCode { base, sub, interface };
        let header_type = space.read8(bdf, Offset::HEADER_TYPE);
        let (header, bar_count) = match header_type & 0x7f {
            0 => (Header::Endpoint, 6),
            1 => {
                let [_primary, secondary, subordinate, _timer] =
                    space.read32(bdf, Offset::BUS_NUMBERS).to_le_bytes();
                (Header::Bridge { secondary, subordinate }, 2)
            }
            other => (Header::Other(other), 0),
        };
        let known = !matches!(header, Header::Other(_));
        let sizable = known && !class.must_keep_decoding();
        Some(Self {
            bdf,
            vendor_id,
            device_id,
            revision,
            class,
            header,
            multi_function: header_type & 0x80 != 0,
            command,
            bars: if sizable { Bars::probe(space, bdf, bar_count) } else { Bars::NONE },
            interrupt_pin: IntPin::from_register(space.read8(bdf, Offset::INTERRUPT_PIN)),
            interrupt_line: space.read8(bdf, Offset::INTERRUPT_LINE),
            capabilities: if known { Capabilities::read(space, bdf) } else { Capabilities::NONE },
        })
    }

    /// Makes the function ready to be assigned with INTx: MSI and MSI-X disabled, because a function that uses
    /// them drives no INTx (PCI 3.0 6.8.3.3), bus mastering off, its BARs decoded. DisINTx is not touched.
    pub fn prepare(&self, space: &impl ConfigSpace) {
        const MSI_ENABLE: u16 = 1 << 0;
        const MSI_X_ENABLE: u16 = 1 << 15;
        // Bus mastering first: nothing below can send a message any more.
        let mut decode = Command::empty();
        for bar in self.bars.iter().filter(|bar| bar.is_assigned()) {
            decode |= if bar.kind().is_memory() { Command::MEMORY } else { Command::IO };
        }
        let kept = self.command & (Command::PARITY | Command::WRITE_INVALIDATE);
        write_enables(space, self.bdf, kept | decode);
        clear_control(space, self.bdf, self.capabilities.msi, MSI_ENABLE);
        clear_control(space, self.bdf, self.capabilities.msi_x, MSI_X_ENABLE);
    }
}

const fn halves(dword: u32) -> [u16; 2] {
    [dword as u16, (dword >> 16) as u16]
}

// Clears a bit of the 16-bit control register that follows a capability's first two bytes.
fn clear_control(space: &impl ConfigSpace, bdf: Bdf, capability: Option<Offset>, bit: u16) {
    const CONTROL: u8 = 2;
    if let Some(control) = capability.and_then(|at| at.conventional_add(CONTROL)) {
        let value = space.read16(bdf, control);
        space.write16(bdf, control, value & !bit);
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:04x}:{:04x} class {} ", self.bdf, self.vendor_id, self.device_id, self.class)?;
        match self.interrupt_pin {
            Some(pin) => fmt::Display::fmt(&pin, f),
            None => f.write_str("no INTx"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeFunction, Machine, bdf};
    use super::super::{BarKind, BarSlot};
    use super::*;

    #[test]
    fn i29_a_function_without_a_pin_is_described_as_such() {
        let machine = Machine::with([("00:04.0", FakeFunction::pci_testdev())]);
        let function = Function::read(&machine, bdf("00:04.0")).unwrap();
        assert_eq!(function.interrupt_pin, None);
        assert_eq!(function.to_string(), "00:04.0 1b36:0005 class 00ff00 no INTx");
        let bars: Vec<_> = function.bars.iter().map(ToString::to_string).collect();
        assert_eq!(bars, ["BAR0 mem32 0xfebf1000 +0x1000", "BAR1 io 0xc000 +0x100"]);
    }

    #[test]
    fn edu_is_described_completely_and_left_as_it_was() {
        let machine = Machine::with([("00:03.0", FakeFunction::edu().command(0x0107))]);
        let before = machine.dump(bdf("00:03.0"));
        let function = Function::read(&machine, bdf("00:03.0")).unwrap();
        assert_eq!(machine.dump(bdf("00:03.0")), before);
        assert_eq!(function.to_string(), "00:03.0 1234:11e8 class 00ff00 INTA");
        assert_eq!((function.header, function.multi_function), (Header::Endpoint, false));
        assert_eq!(function.command.bits(), 0x0107);
        assert_eq!((function.interrupt_pin, function.interrupt_line), (Some(IntPin::A), 11));
        assert_eq!(function.capabilities.msi, Some(Offset::conventional(0x40)));
        let bar = function.bars.iter().next().unwrap();
        assert_eq!(bar.kind(), BarKind::Memory32 { prefetchable: false });
        assert_eq!((bar.address(), bar.bytes()), (0xfea0_0000, 0x10_0000));
    }

    #[test]
    fn an_absent_function_is_neither_described_nor_written() {
        let machine = Machine::default();
        assert_eq!(Function::read(&machine, bdf("00:03.0")), None);
        let nobody = FakeFunction::endpoint(0, 0);
        let machine = Machine::with([("00:03.0", nobody)]);
        assert_eq!(Function::read(&machine, bdf("00:03.0")), None);
        assert_eq!(machine.take_writes(), []);
    }

    #[test]
    fn host_and_isa_bridges_keep_decoding() {
        for (sub, written) in [(0, false), (1, false), (0x80, true)] {
            let function =
                FakeFunction::endpoint(0x8086, 0x29c0).bytes(0x09, &[0, sub, 6]).memory_bar(0, 1 << 20, 0);
            let machine = Machine::with([("00:00.0", function)]);
            let function = Function::read(&machine, bdf("00:00.0")).unwrap();
            assert_eq!(!machine.take_writes().is_empty(), written);
            assert_eq!(function.bars == Bars::NONE, !written);
        }
    }

    #[test]
    fn a_bridge_has_two_bars_and_two_buses() {
        let bridge = FakeFunction::bridge(1, 3).memory_bar(0, 4096, 0xfe00_0000);
        let machine = Machine::with([("00:1e.0", bridge)]);
        let before = machine.dump(bdf("00:1e.0"));
        let function = Function::read(&machine, bdf("00:1e.0")).unwrap();
        assert_eq!(function.header, Header::Bridge { secondary: 1, subordinate: 3 });
        assert_eq!(function.bars.iter().count(), 1);
        assert_eq!(machine.dump(bdf("00:1e.0")), before);
        assert!(machine.take_writes().iter().all(|&(_, offset, ..)| offset < 0x18), "bus numbers stay");
    }

    #[test]
    fn nothing_is_probed_behind_an_unknown_header() {
        for header in [2, 3, 0x7f] {
            let machine = Machine::with([("00:03.0", FakeFunction::edu().bytes(0x0e, &[header]))]);
            let function = Function::read(&machine, bdf("00:03.0")).unwrap();
            assert_eq!(function.header, Header::Other(header));
            assert_eq!(function.bars.slot(super::super::BarIndex::ALL[0]), BarSlot::Empty);
            assert_eq!(machine.take_writes(), []);
        }
    }

    #[test]
    fn preparing_turns_messages_and_bus_mastering_off_and_leaves_dis_intx_alone() {
        let device = FakeFunction::edu()
            .bytes(0x42, &[0x81])
            .capability(0x60, 0x11, &[0x07, 0xc0])
            .writable(0x42, &[0x71])
            .writable(0x63, &[0xc0])
            .command(0x0507);
        let machine = Machine::with([("00:03.0", device)]);
        let at = bdf("00:03.0");
        let function = Function::read(&machine, at).unwrap();
        machine.take_writes();
        function.prepare(&machine);
        assert_eq!(machine.peek16(at, 0x04), 0x0502);
        assert_eq!(machine.peek16(at, 0x42), 0x0080);
        assert_eq!(machine.peek16(at, 0x62), 0x4007);
        let writes = machine.take_writes();
        assert_eq!(writes[0], (at, 0x04, 1, 0x02), "bus mastering is the first thing to go");
        assert!(writes.iter().all(|&(_, offset, width, _)| offset > 5 || (offset, width) == (4, 1)));
    }
}
