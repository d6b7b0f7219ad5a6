//! Configuration space: offsets, access widths, the Command and Status registers, and the trait that reaches
//! hardware. The only writes issued from this file are to byte 0x04 of a header.

use bitflags::bitflags;

use super::Bdf;

/// A byte offset into a function's configuration space, below 4096. Says nothing about what is there; offsets
/// from 256 on exist only in PCI Express and are not reachable by port 0xcf8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(u16);

impl Offset {
    /// Vendor ID, 16 bits; Device ID follows (PCI 3.0 6.1).
    pub const VENDOR_ID: Self = Self(0x00);
    /// Command, 16 bits; Status follows (PCI 3.0 6.2.2, 6.2.3).
    pub const COMMAND: Self = Self(0x04);
    /// Revision ID in bits 7 to 0, Class Code in bits 31 to 8.
    pub const REVISION: Self = Self(0x08);
    /// Cache Line Size, Latency Timer, Header Type and BIST, a byte each.
    pub const CACHE_LINE: Self = Self(0x0c);
    /// Header Type, 8 bits: layout in bits 6 to 0, multi-function in bit 7.
    pub const HEADER_TYPE: Self = Self(0x0e);
    /// A type 1 header's primary, secondary and subordinate bus numbers, a byte each.
    pub const BUS_NUMBERS: Self = Self(0x18);
    /// A type 0 header's expansion ROM base address, 32 bits.
    pub const EXPANSION_ROM: Self = Self(0x30);
    /// The first capability's offset, 8 bits, for header types 0 and 1.
    pub const CAPABILITIES: Self = Self(0x34);
    /// Reserved in a type 0 header, 32 bits.
    pub const RESERVED: Self = Self(0x38);
    /// Interrupt Line, 8 bits; Interrupt Pin follows (PCI 3.0 6.2.4).
    pub const INTERRUPT_LINE: Self = Self(0x3c);
    /// Interrupt Pin, 8 bits.
    pub const INTERRUPT_PIN: Self = Self(0x3d);
    /// A type 1 header's Bridge Control, 16 bits (PCI-to-PCI Bridge 1.2 3.2.5.18).
    pub const BRIDGE_CONTROL: Self = Self(0x3e);

    /// The offset, or `None` from 4096 on.
    pub const fn new(raw: u16) -> Option<Self> {
        if raw < 4096 { Some(Self(raw)) } else { None }
    }

    /// An offset in the conventional 256 bytes.
    pub const fn conventional(raw: u8) -> Self {
        Self(raw as u16)
    }

    /// The raw offset in bytes.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The start of the dword that holds this byte.
    pub const fn dword(self) -> Self {
        Self(self.0 & !3)
    }

    /// The offset as one byte when it lies in the conventional 256 bytes.
    pub const fn as_conventional(self) -> Option<u8> {
        if self.0 < 256 { Some(self.0 as u8) } else { None }
    }

    /// The offset `bytes` further on within the conventional 256 bytes; `None` past their end.
    pub const fn conventional_add(self, bytes: u8) -> Option<Self> {
        match self.as_conventional() {
            Some(raw) => match raw.checked_add(bytes) {
                Some(sum) => Some(Self::conventional(sum)),
                None => None,
            },
            None => None,
        }
    }
}

/// How many bytes one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
}

impl Width {
    /// The width, or `None` unless `bytes` is 1, 2 or 4.
    pub const fn from_bytes(bytes: u8) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            _ => None,
        }
    }

    /// 1, 2 or 4.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }

    /// All ones in this width: what a read that nobody answers returns (PCI 3.0 6.1).
    pub const fn ones(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
        }
    }
}

/// An access of 1, 2 or 4 bytes that stays inside one dword, at any alignment there: what the byte enables of one
/// configuration cycle can express (PCI 3.0 3.2.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    offset: Offset,
    width: Width,
}

impl Access {
    /// The access, or `None` when it leaves its dword or the 4096 bytes.
    pub const fn new(offset: u16, width: Width) -> Option<Self> {
        let Some(offset) = Offset::new(offset) else { return None };
        if (offset.0 & 3) + width.bytes() as u16 > 4 {
            return None;
        }
        Some(Self { offset, width })
    }

    /// The first byte accessed.
    pub const fn offset(self) -> Offset {
        self.offset
    }

    /// How many bytes.
    pub const fn width(self) -> Width {
        self.width
    }

    // At most 24, and shift plus width is at most 32 by construction.
    const fn shift(self) -> u32 {
        (self.offset.0 & 3) as u32 * 8
    }

    /// The accessed bytes of their dword, shifted down to bit 0.
    pub const fn extract(self, dword: u32) -> u32 {
        dword >> self.shift() & self.width.ones()
    }

    /// `dword` with the accessed bytes replaced by the low bytes of `value`.
    pub const fn merge(self, dword: u32, value: u32) -> u32 {
        let mask = self.width.ones() << self.shift();
        dword & !mask | (value << self.shift()) & mask
    }
}

bitflags! {
    /// The Command register, 16 bits at offset 0x04 (PCI 3.0 6.2.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Command: u16 {
        /// The function decodes its I/O BARs.
        const IO = 1 << 0;
        /// The function decodes its memory BARs and its expansion ROM.
        const MEMORY = 1 << 1;
        /// The function may start transactions, message-signalled interrupts included.
        const BUS_MASTER = 1 << 2;
        /// The function watches special cycles.
        const SPECIAL_CYCLES = 1 << 3;
        /// The function may use Memory Write and Invalidate.
        const WRITE_INVALIDATE = 1 << 4;
        /// A VGA function snoops palette writes.
        const VGA_SNOOP = 1 << 5;
        /// The function reacts to parity errors.
        const PARITY = 1 << 6;
        /// The function may drive SERR#.
        const SERR = 1 << 8;
        /// The function may use fast back-to-back transactions to different agents.
        const FAST_BACK_TO_BACK = 1 << 9;
        /// DisINTx: the function does not drive its INTx#.
        const DIS_INTX = 1 << 10;
    }

    /// The Status register, 16 bits at offset 0x06 (PCI 3.0 6.2.3). The error bits are cleared by writing ones.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u16 {
        /// The function has an interrupt pending, whether or not DisINTx keeps it off the wire.
        const INTX = 1 << 3;
        /// The capability list exists.
        const CAPABILITIES = 1 << 4;
        /// The function can run at 66 MHz.
        const CLOCK_66_MHZ = 1 << 5;
        /// The function accepts fast back-to-back transactions.
        const FAST_BACK_TO_BACK = 1 << 7;
        /// A bus master saw a parity error.
        const MASTER_PARITY_ERROR = 1 << 8;
        /// As a target it ended a transaction with Target-Abort.
        const SIGNALED_TARGET_ABORT = 1 << 11;
        /// As a master it had a transaction ended with Target-Abort.
        const RECEIVED_TARGET_ABORT = 1 << 12;
        /// As a master it had a transaction ended with Master-Abort.
        const RECEIVED_MASTER_ABORT = 1 << 13;
        /// It drove SERR#.
        const SIGNALED_SYSTEM_ERROR = 1 << 14;
        /// It saw a parity error.
        const PARITY_ERROR = 1 << 15;
    }
}

/// Splits the dword at offset 0x04 into its two registers; `None` when it reads all-ones, which no present
/// function answers because reserved Command bits read 0.
pub const fn command_status(dword: u32) -> Option<(Command, Status)> {
    if dword == u32::MAX {
        return None;
    }
    Some((Command::from_bits_retain(dword as u16), Status::from_bits_retain((dword >> 16) as u16)))
}

/// Access to the configuration space of the machine's functions.
///
/// Every access is one configuration cycle of exactly that width. Implementations ignore the offset bits that
/// natural alignment requires to be 0. A read of a function that does not exist, or of an offset the mechanism
/// cannot reach, returns all-ones; such a write does nothing. No method fails and none has any other effect.
pub trait ConfigSpace {
    /// Reads the byte at `offset`.
    fn read8(&self, bdf: Bdf, offset: Offset) -> u8;
    /// Reads the 16 bits at `offset`.
    fn read16(&self, bdf: Bdf, offset: Offset) -> u16;
    /// Reads the 32 bits at `offset`.
    fn read32(&self, bdf: Bdf, offset: Offset) -> u32;
    /// Writes the byte at `offset`.
    fn write8(&self, bdf: Bdf, offset: Offset, value: u8);
    /// Writes the 16 bits at `offset`.
    fn write16(&self, bdf: Bdf, offset: Offset, value: u16);
    /// Writes the 32 bits at `offset`.
    fn write32(&self, bdf: Bdf, offset: Offset, value: u32);
}

/// Writes the lower byte of Command (I/O, memory, bus master, ...), before the function is assigned. Bits of `command`
/// from 8 on are ignored.
pub fn write_enables(space: &impl ConfigSpace, bdf: Bdf, command: Command) {
    let [low, _] = command.bits().to_le_bytes();
    space.write8(bdf, Offset::COMMAND, low);
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: [Width; 3] = [Width::Byte, Width::Word, Width::Dword];

    #[test]
    fn every_access_that_leaves_its_dword_is_refused() {
        for raw in 0..=u16::MAX {
            for width in WIDTHS {
                let last = u32::from(raw) + u32::from(width.bytes()) - 1;
                let inside = last < 4096 && last / 4 == u32::from(raw) / 4;
                assert_eq!(Access::new(raw, width).is_some(), inside, "{raw:#x} {width:?}");
            }
        }
    }

    #[test]
    fn extract_and_merge_agree_with_bytes_in_memory() {
        let (old, new) = (0x4433_2211_u32, 0xddcc_bbaa_u32);
        for at in 0..4_u16 {
            for width in WIDTHS {
                let Some(access) = Access::new(0x40 + at, width) else { continue };
                let (start, count) = (usize::from(at), usize::from(width.bytes()));
                let mut bytes = old.to_le_bytes();
                let mut expected = [0; 4];
                expected[..count].copy_from_slice(&bytes[start..start + count]);
                assert_eq!(access.extract(old), u32::from_le_bytes(expected));
                bytes[start..start + count].copy_from_slice(&new.to_le_bytes()[..count]);
                assert_eq!(access.merge(old, new), u32::from_le_bytes(bytes));
            }
        }
    }

    #[test]
    fn widths_are_1_2_and_4() {
        for bytes in 0..=u8::MAX {
            assert_eq!(
                Width::from_bytes(bytes).map(Width::bytes),
                matches!(bytes, 1 | 2 | 4).then_some(bytes)
            );
        }
        for width in WIDTHS {
            assert_eq!(u64::from(width.ones()), (1_u64 << (8 * width.bytes())) - 1);
        }
    }

    #[test]
    fn offsets_end_where_they_must() {
        assert_eq!(Offset::new(4095).map(Offset::get), Some(4095));
        assert_eq!(Offset::new(4096), None);
        assert_eq!(Offset::conventional(0xfc).conventional_add(3), Some(Offset::conventional(0xff)));
        assert_eq!(Offset::conventional(0xfc).conventional_add(4), None);
        assert_eq!(Offset(0x100).conventional_add(0), None);
        assert_eq!(Offset(0x47).dword(), Offset(0x44));
    }

    #[test]
    fn the_two_interrupt_bits_sit_where_pci_puts_them() {
        assert_eq!(Command::DIS_INTX.bits(), 0x0400);
        assert_eq!(Status::INTX.bits(), 0x0008);
        let (command, status) = command_status(0x0018_0406).unwrap();
        assert_eq!(command, Command::MEMORY | Command::BUS_MASTER | Command::DIS_INTX);
        assert_eq!(status, Status::INTX | Status::CAPABILITIES);
    }

    #[test]
    fn n15_all_ones_is_absent_not_a_status() {
        assert_eq!(command_status(u32::MAX), None);
        assert!(command_status(u32::MAX - 1).is_some());
    }
}
