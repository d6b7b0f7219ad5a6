//! The bytes at a guest's instruction pointer.

use crate::addr::PAGE_BYTES;
use crate::emulate::walk::{Access, AccessKind, GuestMemory, NotRam, Paging, WalkError};
use crate::vcpu::CodeSize;

/// Up to 15 bytes, the longest an instruction can be (APM3 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// The bytes, zero beyond `length`.
    bytes: [u8; 16],
    length: u8,
}

impl Code {
    /// The longest instruction, in bytes.
    pub const MAX_BYTES: usize = 15;

    /// From bytes that were fetched elsewhere, for instance by the CPU; beyond the fifteenth they are ignored.
    pub fn from_bytes(from: &[u8]) -> Self {
        let mut code = Self { bytes: [0; 16], length: 0 };
        for (place, byte) in code.bytes.iter_mut().zip(from.iter().take(Self::MAX_BYTES)) {
            *place = *byte;
            code.length += 1;
        }
        code
    }

    /// From sixteen bytes of memory, of which the last is ignored.
    #[inline]
    pub(super) const fn from_sixteen(bytes: [u8; 16]) -> Self {
        let fifteen = u128::from_le_bytes(bytes) & (u128::MAX >> 8);
        Self { bytes: fifteen.to_le_bytes(), length: Self::MAX_BYTES as u8 }
    }

    /// The bytes that could be read, at most 15.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&[])
    }

    /// How many bytes could be read.
    #[inline]
    pub(super) const fn length(&self) -> u8 {
        self.length
    }

    /// All bytes as one number, the first in the lowest place; zero beyond the last.
    #[inline]
    pub(super) const fn as_u128(&self) -> u128 {
        u128::from_le_bytes(self.bytes)
    }
}

/// Reads the instruction at the linear address `linear`.
///
/// `user` tells privilege level 3. Fails only if the first byte cannot be read; when the next page cannot, the
/// bytes end there, which is enough for an instruction that does too.
pub fn fetch(
    memory: &impl GuestMemory,
    paging: &Paging,
    linear: u64,
    size: CodeSize,
    user: bool,
) -> Result<Code, WalkError> {
    let access = Access { kind: AccessKind::Execute, user, alignment_check: false };
    let start = paging.translate(memory, linear, access)?.address;
    // Nearly always the page holds them all: one read of a size the compiler knows.
    if start.page_offset() <= PAGE_BYTES - 16 {
        return memory.read_16(start).map(Code::from_sixteen).map_err(|NotRam| WalkError::Table(start));
    }
    let mut bytes = [0; 16];
    let in_page = (PAGE_BYTES - start.page_offset()).min(Code::MAX_BYTES as u64);
    let next = linear.wrapping_add(in_page);
    let next = if size == CodeSize::Bits64 { next } else { next & 0xffff_ffff };
    let mut length = 0;
    let [fifteen @ .., _] = &mut bytes;
    if let Some((first, rest)) = fifteen.split_at_mut_checked(in_page as usize) {
        memory.read(start, first).map_err(|NotRam| WalkError::Table(start))?;
        length = first.len();
        let second = if rest.is_empty() { None } else { paging.translate(memory, next, access).ok() };
        if second.is_some_and(|page| memory.read(page.address, rest).is_ok()) {
            length += rest.len();
        }
    }
    Ok(Code { bytes, length: length as u8 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::GuestPhys;

    /// Two pages of RAM at 0x1000, counting upwards.
    struct Ram;

    impl GuestMemory for Ram {
        type Word = [u8; 8];
        type Page = GuestPhys;

        fn word(&self, at: GuestPhys) -> Option<[u8; 8]> {
            let mut bytes = [0; 8];
            self.read(at, &mut bytes).ok().map(|()| bytes)
        }

        fn load(&self, word: [u8; 8]) -> u64 {
            u64::from_le_bytes(word)
        }

        fn page(&self, at: GuestPhys) -> Option<GuestPhys> {
            Some(at)
        }

        fn read_page(&self, page: GuestPhys, offset: u64) -> Option<[u8; 16]> {
            assert!(offset <= 0xff0);
            self.read_16(page.checked_add(offset)?).ok()
        }

        fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), NotRam> {
            for (n, byte) in into.iter_mut().enumerate() {
                let at = at.raw() + n as u64;
                if !(0x1000..0x3000).contains(&at) {
                    return Err(NotRam);
                }
                *byte = at as u8;
            }
            Ok(())
        }
    }

    fn at(linear: u64) -> Result<Code, WalkError> {
        let paging = Paging::from_registers(0, 0, 0, 0).unwrap();
        fetch(&Ram, &paging, linear, CodeSize::Bits32, false)
    }

    #[test]
    fn inside_a_page_and_across_two() {
        assert_eq!(at(0x1000).unwrap().bytes(), (0..15).collect::<Vec<u8>>());
        let across = at(0x1ff8).unwrap();
        assert_eq!(across.bytes(), [0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff, 0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(across.as_u128() >> 120, 0);
        for offset in 0xff0..=0xfff {
            assert_eq!(at(0x1000 + offset).unwrap().bytes().len(), 15);
        }
    }

    #[test]
    fn ends_where_memory_ends() {
        assert_eq!(at(0x2fff).unwrap().bytes(), [0xff]);
        assert_eq!(at(0x2ff1).unwrap().bytes().len(), 15);
        assert_eq!(at(0x2ff2).unwrap().bytes().len(), 14);
        assert_eq!(at(0x3000), Err(WalkError::Table(GuestPhys::new(0x3000))));
        assert!(at(0xffff_ffff).is_err());
    }

    #[test]
    fn given_bytes_are_cut() {
        assert_eq!(Code::from_bytes(&[7; 40]).bytes(), [7; 15]);
        assert_eq!(Code::from_bytes(&[]).bytes(), []);
    }
}
