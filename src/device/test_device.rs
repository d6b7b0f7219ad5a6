//! The register that a program for QEMU's test device (`pc-testdev`) finds at ports 0xe0 to 0xe3. It means nothing: what is
//! written is read back, in every width, which is how instructions that reach ports are tested.
//!
//! The device's other ports keep nothing, so they are `border`'s alone: lines of the interrupt chip that a program raises and
//! lowers itself, and a port that flushes what there is none of.

use crate::vcpu::Width;

const BYTES: usize = 4;

/// The register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestRegister([u8; BYTES]);

impl TestRegister {
    /// The register after reset.
    pub const fn new() -> Self {
        Self([0; BYTES])
    }

    /// The `width` bytes from the one with number `first` on; ones behind the last.
    pub fn read(self, first: u16, width: Width) -> u32 {
        let with_ones = u64::from(u32::from_le_bytes(self.0)) | !0 << u32::BITS;
        let from_first = with_ones.checked_shr(u32::from(first).saturating_mul(8)).unwrap_or(u64::MAX);
        (from_first & width.mask()) as u32
    }

    /// The same written; what is behind the last byte is gone.
    pub fn write(&mut self, first: u16, width: Width, value: u32) {
        let places = self.0.iter_mut().skip(first.into());
        places.zip(value.to_le_bytes()).take(width.bytes() as usize).for_each(|(place, byte)| *place = byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: [Width; 3] = [Width::Byte, Width::Word, Width::Dword];

    #[test]
    fn what_is_written_is_read_back_in_every_width_and_place() {
        for first in 0..4 {
            for width in WIDTHS {
                let mut register = TestRegister::new();
                register.write(0, Width::Dword, 0x4433_2211);
                register.write(first, width, 0xddcc_bbaa);
                let (mut expected, bytes) = ([0x11, 0x22, 0x33, 0x44], [0xaa, 0xbb, 0xcc, 0xdd]);
                let inside = (width.bytes() as usize).min(4 - usize::from(first));
                expected[usize::from(first)..][..inside].copy_from_slice(&bytes[..inside]);
                assert_eq!(register.read(0, Width::Dword), u32::from_le_bytes(expected), "{first} {width:?}");
            }
        }
    }

    #[test]
    fn a_part_is_read_alone_with_ones_behind_the_last_byte() {
        let mut register = TestRegister::new();
        register.write(0, Width::Dword, 0x4433_2211);
        assert_eq!(register.read(1, Width::Byte), 0x22);
        assert_eq!(register.read(2, Width::Word), 0x4433);
        assert_eq!(register.read(3, Width::Word), 0xff44);
        assert_eq!(register.read(3, Width::Dword), 0xffff_ff44);
        assert_eq!(register.read(4, Width::Dword), u32::MAX);
    }
}
