//! Decoded instructions, remembered by their bytes.
//!
//! A guest touches its interrupt controller with the same few instructions over and over. The cache saves their
//! decode and nothing else: the bytes are fetched and compared every time, so that code a guest rewrote, mapped
//! elsewhere or runs in another mode can never be taken for what it was.

use crate::emulate::fetch::Code;
use crate::emulate::insn::DecodeError;
use crate::emulate::mmio::MmioOp;
use crate::vcpu::CodeSize;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The instruction's bytes, zero beyond its length.
    bytes: u128,
    /// Ones where they are.
    mask: u128,
    size: CodeSize,
    op: MmioOp,
}

/// A cache for one virtual processor; a fixed array, nothing is allocated.
#[derive(Debug)]
pub struct DecodeCache {
    entries: [Option<Entry>; Self::ENTRIES],
}

impl DecodeCache {
    const ENTRIES: usize = 32;

    /// An empty cache.
    pub const fn new() -> Self {
        Self { entries: [None; Self::ENTRIES] }
    }

    /// The operation at the start of `code`, from the cache or by decoding it now. Errors are not remembered.
    ///
    /// `rip` only chooses the place to look, so a wrong one costs time and nothing else.
    #[inline]
    pub fn decode(&mut self, rip: u64, code: &Code, size: CodeSize) -> Result<MmioOp, DecodeError> {
        let Some(slot) = self.entries.get_mut(Self::index(rip)) else {
            return MmioOp::decode(code, size);
        };
        if let Some(entry) = slot
            && entry.size == size
            && entry.op.length() <= code.length()
            && code.as_u128() & entry.mask == entry.bytes
        {
            return Ok(entry.op);
        }
        let op = MmioOp::decode(code, size)?;
        let mask = mask(op.length());
        *slot = Some(Entry { bytes: code.as_u128() & mask, mask, size, op });
        Ok(op)
    }

    /// What [`decode`](Self::decode) returns for `bytes`, the first in the lowest place and the sixteenth without meaning, if that is
    /// remembered and a plain store.
    #[inline(always)]
    pub fn known_store(&self, rip: u64, bytes: u128, size: CodeSize) -> Option<&MmioOp> {
        let entry = self.entries.get(Self::index(rip))?.as_ref()?;
        let known = entry.size == size && bytes & entry.mask == entry.bytes && entry.op.is_store();
        known.then_some(&entry.op)
    }

    /// The one place where the instruction at `rip` is remembered. Instructions are a few bytes long: neighbours get different
    /// places, and so do pages.
    #[inline]
    const fn index(rip: u64) -> usize {
        ((rip ^ rip >> 5 ^ rip >> 12) as usize) % Self::ENTRIES
    }
}

impl Default for DecodeCache {
    fn default() -> Self {
        Self::new()
    }
}

/// The lowest `length` bytes; `length` is 1 to 15.
const fn mask(length: u8) -> u128 {
    !(u128::MAX << (8 * (length as u32 & 15)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // mov [rdi+0xb0], eax
    const STORE: [u8; 6] = [0x89, 0x87, 0xb0, 0, 0, 0];
    // mov [rdi+0xb0], ecx
    const OTHER: [u8; 6] = [0x89, 0x8f, 0xb0, 0, 0, 0];

    #[test]
    fn rewritten_code_is_decoded_again() {
        let mut cache = DecodeCache::new();
        for bytes in [STORE, OTHER, STORE] {
            let code = Code::from_bytes(&bytes);
            assert_eq!(
                cache.decode(0x1000, &code, CodeSize::Bits64),
                MmioOp::decode(&code, CodeSize::Bits64)
            );
        }
    }

    #[test]
    fn what_follows_the_instruction_does_not_matter() {
        let mut cache = DecodeCache::new();
        let mut first = None;
        for tail in 0..=255 {
            let mut bytes = STORE.to_vec();
            bytes.extend([tail; 9]);
            let op = cache.decode(7, &Code::from_bytes(&bytes), CodeSize::Bits64).unwrap();
            assert_eq!(*first.get_or_insert(op), op);
        }
        assert_eq!(cache.entries.iter().flatten().count(), 1);
    }

    #[test]
    fn the_mode_is_part_of_the_key() {
        let mut cache = DecodeCache::new();
        // mov [ebx], eax, or in 16-bit code mov [bp+di], ax.
        let code = Code::from_bytes(&[0x89, 0x03]);
        for size in [CodeSize::Bits32, CodeSize::Bits16, CodeSize::Bits64] {
            assert_eq!(cache.decode(0, &code, size), MmioOp::decode(&code, size));
        }
    }

    #[test]
    fn missing_bytes_are_not_zeros() {
        let mut cache = DecodeCache::new();
        cache.decode(0, &Code::from_bytes(&STORE), CodeSize::Bits64).unwrap();
        let cut = Code::from_bytes(&STORE[..4]);
        assert_eq!(cache.decode(0, &cut, CodeSize::Bits64), Err(DecodeError::Truncated));
    }

    #[test]
    fn masks() {
        assert_eq!(mask(1), 0xff);
        assert_eq!(mask(15), u128::MAX >> 8);
    }

    proptest! {
        #[test]
        fn never_differs_from_a_decode(
            script in prop::collection::vec((0usize..6, 0u64..4, 0usize..3, 0usize..16), 1..60),
        ) {
            const PROGRAMS: [&[u8]; 6] = [
                &STORE,
                &OTHER,
                &[0x8b, 0x07, 0x90],
                &[0x66, 0x89, 0x07],
                &[0xc7, 0x07, 0, 0, 0, 0],
                &[0x0f, 0xb6, 0x07],
            ];
            const SIZES: [CodeSize; 3] = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64];
            let mut cache = DecodeCache::new();
            for (program, rip, size, cut) in script {
                let bytes = PROGRAMS[program];
                let code = Code::from_bytes(&bytes[..cut.min(bytes.len())]);
                let known = cache.known_store(rip, code.as_u128(), SIZES[size]).copied();
                if cut >= bytes.len()
                    && let Some(known) = known
                {
                    prop_assert!(known.is_store());
                    prop_assert_eq!(MmioOp::decode(&code, SIZES[size]), Ok(known));
                }
                prop_assert_eq!(
                    cache.decode(rip, &code, SIZES[size]),
                    MmioOp::decode(&code, SIZES[size])
                );
            }
        }
    }
}
