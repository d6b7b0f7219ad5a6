//! A guest's RAM: which host memory it is, and the only way the hypervisor reads or writes it.
//!
//! The guest changes these bytes while they are looked at (its other CPUs will, its devices might), so nothing here ever
//! forms a reference to them: bytes are copied out, judged, and only then used.
#![expect(unsafe_code, reason = "copies to and from guest memory in the direct map")]

use alloc::vec::Vec;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use levelhead::addr::{GuestPhys, HostPhys, LARGE_PAGE_BYTES, PAGE_BYTES};
use levelhead::emulate::{GuestMemory, NotRam};
use levelhead::frames::Frames;
use levelhead::svm::{MapError, Memory, NestedTables};

use crate::arch::svm::nested::TablePool;
use crate::arch::x86::paging::{OutOfMemory, direct};

/// A contiguous piece of guest RAM.
#[derive(Clone, Copy, Debug)]
struct Piece {
    guest: GuestPhys,
    host: HostPhys,
    bytes: u64,
}

/// A 64-bit word of some guest's RAM, which is RAM of that guest for ever: its address in the direct map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(usize);

/// A page of some guest's RAM, likewise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RamPage(usize);

/// A counter that the hypervisor keeps in a guest's RAM: which word, and nothing else of it.
#[derive(Debug)]
pub(crate) struct PollCounter(AtomicUsize);

impl PollCounter {
    /// No word.
    const NOWHERE: usize = usize::MAX;

    /// A counter that counts nowhere.
    pub(crate) const fn new() -> Self {
        Self(AtomicUsize::new(Self::NOWHERE))
    }

    /// Counts in this word from now on.
    pub(crate) fn lead_to(&self, word: Word) {
        self.0.store(word.0, Ordering::Release);
    }

    /// Counts one, as one locked addition. The guest may write the word at the same time.
    pub(crate) fn count(&self) {
        let at = self.0.load(Ordering::Acquire);
        if at == Self::NOWHERE {
            return;
        }
        // SAFETY: only a `Word` is ever stored: eight aligned bytes of RAM in the direct map that stay a guest's for ever. The
        // hypervisor accesses them through atomics alone while this reference lives, which ends with the addition.
        unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at)) }.fetch_add(1, Ordering::AcqRel);
    }
}

/// All of a partition's RAM.
#[derive(Debug, Default)]
pub(crate) struct Ram {
    pieces: Vec<Piece>,
}

impl Ram {
    /// Takes memory for every range, zeroed: one behind the other from `place` on, which was taken out of `frames` for this
    /// partition before; without one, in as few pieces as the host has room for.
    pub(crate) fn allocate(
        ranges: impl Iterator<Item = (GuestPhys, u64)>,
        mut place: Option<HostPhys>,
        frames: &mut Frames,
    ) -> Result<Self, OutOfMemory> {
        let mut ram = Self::default();
        for (start, bytes) in ranges {
            if let Some(host) = place {
                ram.pieces.push(Piece { guest: start, host, bytes });
                place = Some(host.checked_add(bytes).ok_or(OutOfMemory)?);
                continue;
            }
            let mut offset = 0;
            while offset < bytes {
                let piece = Self::piece(bytes - offset, frames)?;
                let guest = start.checked_add(offset).ok_or(OutOfMemory)?;
                ram.pieces.push(Piece { guest, host: piece.0, bytes: piece.1 });
                offset += piece.1;
            }
        }
        ram.clear();
        Ok(ram)
    }

    /// The largest run that is to be had, up to `wanted`.
    fn piece(wanted: u64, frames: &mut Frames) -> Result<(HostPhys, u64), OutOfMemory> {
        let mut bytes = wanted;
        loop {
            let align = if bytes >= LARGE_PAGE_BYTES { LARGE_PAGE_BYTES } else { PAGE_BYTES };
            if let Some(host) = frames.allocate(bytes, align, u64::MAX) {
                return Ok((host, bytes));
            }
            if bytes <= PAGE_BYTES {
                return Err(OutOfMemory);
            }
            bytes = if bytes > LARGE_PAGE_BYTES {
                (bytes / 2).next_multiple_of(LARGE_PAGE_BYTES).min(bytes - LARGE_PAGE_BYTES)
            } else {
                PAGE_BYTES
            };
        }
    }

    /// Frames that nested tables for this RAM may need, besides those for devices.
    pub(crate) fn tables_needed(&self) -> usize {
        let small = |piece: &Piece| {
            if piece.guest.is_aligned(LARGE_PAGE_BYTES) && piece.host.is_aligned(LARGE_PAGE_BYTES) {
                1
            } else {
                piece.bytes.div_ceil(LARGE_PAGE_BYTES) as usize + 1
            }
        };
        let directories = |piece: &Piece| piece.bytes.div_ceil(1 << 30) as usize + 2;
        self.pieces.iter().map(|piece| small(piece) + directories(piece)).sum()
    }

    /// Shows all of it to the guest.
    pub(crate) fn map(&self, tables: &NestedTables, pool: &mut TablePool) -> Result<(), MapError> {
        self.pieces
            .iter()
            .try_for_each(|piece| tables.map(pool, piece.guest, piece.host, piece.bytes, Memory::Ram))
    }

    /// Zeroes all of it.
    pub(crate) fn clear(&self) {
        let mut at = 0;
        while let Some(next) = self.clear_from(at, u64::MAX) {
            at = next;
        }
    }

    /// Zeroes up to `most` bytes from byte number `from` of all of it on; where to go on, or `None` at the end.
    pub(crate) fn clear_from(&self, from: u64, most: u64) -> Option<u64> {
        let mut before = 0_u64;
        for piece in &self.pieces {
            let offset = from.saturating_sub(before);
            before = before.saturating_add(piece.bytes);
            let bytes = piece.bytes.saturating_sub(offset).min(most);
            if bytes > 0 {
                let start = direct(piece.host).wrapping_add(offset as usize);
                // SAFETY: inside the piece, which belongs to this partition alone and is mapped by the direct map; its guest
                // does not run.
                unsafe { start.write_bytes(0, bytes as usize) };
                return from.checked_add(bytes);
            }
        }
        None
    }

    /// Copies `bytes` to guest memory; all of it is RAM, or nothing is written.
    pub(crate) fn write(&self, at: GuestPhys, bytes: &[u8]) -> Result<(), NotRam> {
        self.walk(at, bytes.len(), |_, _| ())?;
        let mut rest = bytes;
        self.walk(at, bytes.len(), |host, run| {
            let (now, later) = rest.split_at_checked(run).unwrap_or((rest, &[]));
            // SAFETY: `walk` hands out runs inside pieces, in the direct map; nothing holds a reference to guest memory.
            unsafe { direct(host).copy_from_nonoverlapping(now.as_ptr(), now.len()) };
            rest = later;
        })
    }

    /// Calls `each` for every contiguous host run of `[at, at + bytes)`.
    fn walk(&self, at: GuestPhys, bytes: usize, mut each: impl FnMut(HostPhys, usize)) -> Result<(), NotRam> {
        let mut offset = 0;
        while let Some(rest) = bytes.checked_sub(offset).filter(|rest| *rest > 0) {
            let (host, left) = at.checked_add(offset as u64).and_then(|at| self.locate(at)).ok_or(NotRam)?;
            let run = usize::try_from(left).unwrap_or(usize::MAX).min(rest);
            each(host, run);
            offset = offset.saturating_add(run);
        }
        Ok(())
    }

    /// Where a guest address is, and how many bytes follow in the same piece.
    #[inline]
    fn locate(&self, at: GuestPhys) -> Option<(HostPhys, u64)> {
        self.pieces.iter().find_map(|piece| {
            let offset = at.raw().checked_sub(piece.guest.raw())?;
            let left = piece.bytes.checked_sub(offset).filter(|left| *left > 0)?;
            Some((piece.host.checked_add(offset)?, left))
        })
    }
}

impl GuestMemory for Ram {
    type Word = Word;
    type Page = RamPage;

    fn word(&self, at: GuestPhys) -> Option<Word> {
        let (host, left) = self.locate(at)?;
        (at.is_aligned(8) && host.is_aligned(8) && left >= 8).then_some(Word(direct(host).addr()))
    }

    #[inline]
    fn load(&self, word: Word) -> u64 {
        // SAFETY: only a `Word` is ever read: eight aligned bytes of RAM in the direct map; the bytes are copied, never
        // referenced.
        unsafe { with_exposed_provenance::<u64>(word.0).read_volatile() }
    }

    fn page(&self, at: GuestPhys) -> Option<RamPage> {
        let (host, left) = self.locate(at)?;
        (left >= PAGE_BYTES).then_some(RamPage(direct(host).addr()))
    }

    #[inline]
    fn read_page(&self, RamPage(at): RamPage, offset: u64) -> Option<[u8; 16]> {
        if offset > PAGE_BYTES - 16 {
            return None;
        }
        // SAFETY: sixteen bytes of a page of RAM in the direct map; the bytes are copied, never referenced.
        Some(unsafe { with_exposed_provenance::<[u8; 16]>(at.wrapping_add(offset as usize)).read() })
    }

    fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), NotRam> {
        if let Some((host, left)) = self.locate(at)
            && left >= into.len() as u64
        {
            // SAFETY: inside a piece of this partition's RAM, in the direct map; the bytes are copied, never referenced.
            unsafe { into.as_mut_ptr().copy_from_nonoverlapping(direct(host), into.len()) };
            return Ok(());
        }
        self.walk(at, into.len(), |_, _| ())?;
        let bytes = into.len();
        let mut rest = into;
        self.walk(at, bytes, |host, run| {
            let (now, later) = core::mem::take(&mut rest).split_at_mut_checked(run).unwrap_or_default();
            // SAFETY: `walk` gives runs of the guest's own RAM, which the direct map covers; no reference to it exists.
            unsafe { now.as_mut_ptr().copy_from_nonoverlapping(direct(host), now.len()) };
            rest = later;
        })
    }
}
