//! Interrupt pins and the two interrupt bits of a function's header. The only register written here is Command.

use core::fmt;

use super::config::command_status;
use super::{Bdf, Command, ConfigSpace, Function, Header, Offset, Status};

/// One of the four interrupt pins of a device, INTA# to INTD# (PCI 3.0 2.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IntPin {
    /// INTA#.
    A,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

impl IntPin {
    /// All four, in order.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// From the Interrupt Pin register: 1 to 4. `None` for 0, which means that the function uses no pin, and for
    /// the reserved values above 4, which are taken to mean the same (PCI 3.0 6.2.4).
    pub const fn from_register(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::A),
            2 => Some(Self::B),
            3 => Some(Self::C),
            4 => Some(Self::D),
            _ => None,
        }
    }

    /// The Interrupt Pin register's value, 1 to 4.
    pub const fn register(self) -> u8 {
        self.index() + 1
    }

    /// From a pin counted from 0, as `_PRT` does (ACPI 6.5 6.2.13); `None` above 3.
    pub const fn from_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::A),
            1 => Some(Self::B),
            2 => Some(Self::C),
            3 => Some(Self::D),
            _ => None,
        }
    }

    /// 0 for INTA# to 3 for INTD#.
    pub const fn index(self) -> u8 {
        match self {
            Self::A => 0,
            Self::B => 1,
            Self::C => 2,
            Self::D => 3,
        }
    }

    /// The pin of the bridge that this pin of `device` on its secondary bus is wired to
    /// (PCI-to-PCI Bridge 1.2 9.1).
    #[must_use]
    pub const fn swizzle(self, device: u8) -> Self {
        // 3 + 3 cannot overflow, and only the low two bits of the device count.
        match (self.index() + (device & 3)) & 3 {
            0 => Self::A,
            1 => Self::B,
            2 => Self::C,
            _ => Self::D,
        }
    }
}

impl fmt::Display for IntPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "INTA",
            Self::B => "INTB",
            Self::C => "INTC",
            Self::D => "INTD",
        })
    }
}

/// The interrupt bits of a function as of one read of the dword at offset 0x04.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IntxView {
    /// The function answered all-ones: it is gone, or not reachable. It says nothing about the wire.
    Absent,
    /// The function answered.
    Present {
        /// DisINTx, Command bit 10.
        disabled: bool,
        /// Interrupt Status, Status bit 3; set also while DisINTx keeps the interrupt off the wire.
        pending: bool,
    },
}

impl IntxView {
    /// Reads both registers in one access. Not for a function in reset or asleep, which must not be accessed.
    pub fn read(space: &impl ConfigSpace, bdf: Bdf) -> Self {
        Self::from_dword(space.read32(bdf, Offset::COMMAND))
    }

    /// From Command (low half) and Status (high half).
    pub const fn from_dword(dword: u32) -> Self {
        match command_status(dword) {
            None => Self::Absent,
            Some((command, status)) => Self::Present {
                disabled: command.contains(Command::DIS_INTX),
                pending: status.contains(Status::INTX),
            },
        }
    }

    /// Whether a present function has an interrupt pending; never true for an absent one.
    pub const fn is_pending(self) -> bool {
        matches!(self, Self::Present { pending: true, .. })
    }

    /// Whether a present function that keeps its word drives the wire now.
    pub const fn drives_wire(self) -> bool {
        matches!(self, Self::Present { pending: true, disabled: false })
    }
}

/// Why DisINTx cannot silence a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DisIntxFault {
    /// The function answered all-ones.
    Absent,
    /// The bit reads 0 after 1 was written, as in functions older than PCI 2.3.
    StuckClear,
    /// The bit reads 1 after 0 was written.
    StuckSet,
}

impl fmt::Display for DisIntxFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "the function does not answer",
            Self::StuckClear => "DisINTx cannot be set",
            Self::StuckSet => "DisINTx cannot be cleared",
        })
    }
}

/// The one writer of the Command register of one assigned function, and so of DisINTx (bit 10).
///
/// The other bits keep the values they had when the writer was taken, after the function was prepared: a change is one
/// 16-bit write without a read, so there is nothing to lose between a read and a write, and nobody else writes any of
/// it. The whole register and not its upper byte alone, because QEMU recomputes the wire only when a write covers
/// the lower byte (seen with 7.2). Neither `Clone` nor `Copy`: a second writer would undo the first.
#[derive(Debug)]
pub struct DisIntx {
    bdf: Bdf,
    others: Command,
}

impl DisIntx {
    /// Takes the writer, or `None` when the function is absent. The caller takes one for each assigned function, after
    /// [`Function::prepare`](super::Function::prepare).
    pub fn take(space: &impl ConfigSpace, bdf: Bdf) -> Option<Self> {
        let (command, _) = command_status(space.read32(bdf, Offset::COMMAND))?;
        Some(Self { bdf, others: command.difference(Command::DIS_INTX) })
    }

    /// The function.
    pub const fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Sets or clears DisINTx: one configuration write.
    pub fn write(&self, space: &impl ConfigSpace, disabled: bool) {
        let mut command = self.others;
        command.set(Command::DIS_INTX, disabled);
        space.write16(self.bdf, Offset::COMMAND, command.bits());
    }

    /// Tries whether DisINTx of a function that nobody uses can be set and cleared, and leaves it as it was. `None` for one
    /// without a pin, and for a bridge, which is left alone.
    ///
    /// As with [`Self::prove`], the line is masked while this runs.
    pub fn try_out(space: &impl ConfigSpace, function: &Function) -> Option<Result<(), DisIntxFault>> {
        if function.interrupt_pin.is_none() || function.header != Header::Endpoint {
            return None;
        }
        let IntxView::Present { disabled, .. } = IntxView::read(space, function.bdf) else {
            return Some(Err(DisIntxFault::Absent));
        };
        let writer = Self::take(space, function.bdf)?;
        let verdict = writer.prove(space);
        writer.write(space, disabled);
        Some(verdict)
    }

    /// Proves that DisINTx can be set and cleared, and leaves it set.
    ///
    /// The function may drive its wire between two of the writes, so the line is masked while this runs. The bit
    /// being writable does not prove that it has an effect.
    pub fn prove(&self, space: &impl ConfigSpace) -> Result<(), DisIntxFault> {
        let read_back = |disabled| {
            self.write(space, disabled);
            IntxView::read(space, self.bdf)
        };
        let set = read_back(true);
        let cleared = read_back(false);
        self.write(space, true);
        match (set, cleared) {
            (IntxView::Absent, _) | (_, IntxView::Absent) => Err(DisIntxFault::Absent),
            (IntxView::Present { disabled: false, .. }, _) => Err(DisIntxFault::StuckClear),
            (_, IntxView::Present { disabled: true, .. }) => Err(DisIntxFault::StuckSet),
            (IntxView::Present { disabled: true, .. }, IntxView::Present { disabled: false, .. }) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeFunction, Machine, bdf};
    use super::*;

    #[test]
    fn the_register_names_four_pins_and_nothing_else() {
        for raw in 0..=u8::MAX {
            let pin = IntPin::from_register(raw);
            assert_eq!(pin.is_some(), (1..=4).contains(&raw));
            assert_eq!(IntPin::from_index(raw).is_some(), raw < 4);
            if let Some(pin) = pin {
                assert_eq!(pin.register(), raw);
                assert_eq!(IntPin::from_index(pin.index()), Some(pin));
            }
        }
    }

    #[test]
    fn the_swizzle_rotates_by_the_device_number() {
        for pin in IntPin::ALL {
            for device in 0..32 {
                let expected = (u32::from(pin.index()) + device) % 4;
                assert_eq!(u32::from(pin.swizzle(device as u8).index()), expected);
            }
        }
    }

    #[test]
    fn every_combination_of_the_two_bits_is_seen() {
        for command in 0..=u16::MAX {
            for status in [0_u16, 0x08, 0x10, 0x18, 0xfff7] {
                let view = IntxView::from_dword(u32::from(status) << 16 | u32::from(command));
                let (disabled, pending) = (command & 0x400 != 0, status & 8 != 0);
                assert_eq!(view, IntxView::Present { disabled, pending });
                assert_eq!(view.is_pending(), pending);
                assert_eq!(view.drives_wire(), pending && !disabled);
            }
        }
    }

    #[test]
    fn n15_i37_all_ones_is_absent_and_never_pending() {
        let view = IntxView::from_dword(u32::MAX);
        assert_eq!(view, IntxView::Absent);
        assert!(!view.is_pending() && !view.drives_wire());
        let machine = Machine::default();
        assert_eq!(IntxView::read(&machine, bdf("00:03.0")), IntxView::Absent);
        assert!(DisIntx::take(&machine, bdf("00:03.0")).is_none());
    }

    #[test]
    fn n3_a_change_is_one_write_without_a_read_that_keeps_every_other_bit() {
        for others in [0x0000, 0x0002, 0x0103, 0x0303] {
            for before in [others, others | 0x0400] {
                let machine = Machine::with([("00:03.0", FakeFunction::edu().command(before))]);
                let writer = DisIntx::take(&machine, bdf("00:03.0")).unwrap();
                machine.take_writes();
                writer.write(&machine, true);
                writer.write(&machine, false);
                let expected =
                    [(others | 0x0400).into(), others.into()].map(|value| (bdf("00:03.0"), 0x04, 2, value));
                assert_eq!(machine.take_writes(), expected);
                assert_eq!(machine.take_reads(), 1, "only taking the writer reads");
            }
        }
    }

    #[test]
    fn proving_leaves_the_bit_set_and_names_the_fault() {
        let at = bdf("00:03.0");
        let prove = |function: FakeFunction| {
            let machine = Machine::with([("00:03.0", function)]);
            let verdict = DisIntx::take(&machine, at).unwrap().prove(&machine);
            (verdict, machine.peek16(at, 0x04) & 0x400 != 0)
        };
        assert_eq!(prove(FakeFunction::edu()), (Ok(()), true));
        assert_eq!(prove(FakeFunction::edu().writable(0x05, &[0])), (Err(DisIntxFault::StuckClear), false));
        let stuck = FakeFunction::edu().command(0x0400).writable(0x05, &[0]);
        assert_eq!(prove(stuck), (Err(DisIntxFault::StuckSet), true));
        let machine = Machine::with([("00:03.0", FakeFunction::edu())]);
        let writer = DisIntx::take(&machine, at).unwrap();
        machine.remove(at);
        assert_eq!(writer.prove(&machine), Err(DisIntxFault::Absent));
    }

    #[test]
    fn trying_out_leaves_the_register_as_it_was_and_bridges_alone() {
        for before in [0x0003, 0x0403, 0x0507] {
            let machine = Machine::with([("00:03.0", FakeFunction::edu().command(before))]);
            let function = Function::read(&machine, bdf("00:03.0")).unwrap();
            assert_eq!(DisIntx::try_out(&machine, &function), Some(Ok(())));
            assert_eq!(machine.peek16(bdf("00:03.0"), 0x04), before);
        }
        let others = [
            ("00:04.0", FakeFunction::pci_testdev()),
            ("00:1e.0", FakeFunction::bridge(1, 1).bytes(0x3d, &[1])),
        ];
        let machine = Machine::with(others);
        for at in ["00:04.0", "00:1e.0"] {
            let function = Function::read(&machine, bdf(at)).unwrap();
            machine.take_writes();
            assert_eq!(DisIntx::try_out(&machine, &function), None);
            assert_eq!(machine.take_writes(), []);
        }
    }
}
