//! Pages that a guest's code runs in, remembered with the table entries that led there.
//!
//! A guest's interrupt handlers exit at the same few places over and over, and without decode assists each exit needs
//! the bytes there. The cache saves most of the page walk and none of its meaning: the guest changes its tables
//! without an exit, so the entries are read and compared every time, and only if registers and entries are all
//! what they were is the remembered page what a walk would find. The bytes themselves are always read anew.
//!
//! Only pages of long mode are remembered, in which all that has to be fast runs. EFER.LMA says there that paging is on, and of
//! CR0 nothing else bears on where code is fetched from.

use core::cell::Cell;

use crate::addr::{GuestPhys, PAGE_BYTES};
use crate::emulate::fetch::{Code, fetch};
use crate::emulate::walk::{Access, AccessKind, GuestMemory, NotRam, PagingRegisters, WalkError};
use crate::vcpu::CodeSize;
use crate::x86::efer;

/// Entries that one walk reads at most.
const MAX_ENTRIES: usize = 4;

/// A translation and everything it depends on, but for the privilege.
#[derive(Clone, Copy, Debug)]
struct Page<W, P> {
    cr3: u64,
    cr4: u64,
    efer: u64,
    /// The linear address of the page.
    linear: u64,
    /// Where it leads.
    page: P,
    entries: Entries<W>,
}

/// Page-table entries: where each is and what it said. A walk that read fewer than there is room for repeats its first one.
#[derive(Clone, Copy, Debug)]
struct Entries<W>([(W, u64); MAX_ENTRIES]);

impl<W: Copy> Entries<W> {
    /// Whether every entry still says what it said.
    #[inline(always)]
    fn stand(&self, memory: &impl GuestMemory<Word = W>) -> bool {
        self.0.iter().all(|&(word, entry)| memory.load(word) == entry)
    }
}

/// How many pages are remembered: a few handlers, each in two or three pages, seldom push one another out.
const PAGES: usize = 16;

/// A cache for one virtual processor and its memory, in whose words and pages it remembers; a fixed array, nothing is allocated.
#[derive(Debug)]
pub struct CodePages<W, P> {
    /// Those that the supervisor fetched from, and the user's.
    pages: [[Option<Page<W, P>>; PAGES]; 2],
}

impl<W: Copy + core::fmt::Debug, P: Copy + core::fmt::Debug> CodePages<W, P> {
    /// An empty cache.
    pub const fn new() -> Self {
        Self { pages: [[None; PAGES]; 2] }
    }

    /// What [`fetch`] returns for the same arguments, errors included.
    ///
    /// # Errors
    /// As [`fetch`].
    #[inline(always)]
    pub fn fetch(
        &mut self,
        memory: &impl GuestMemory<Word = W, Page = P>,
        registers: PagingRegisters,
        linear: u64,
        size: CodeSize,
        user: bool,
    ) -> Result<Code, WalkError> {
        match self.sixteen(memory, registers, linear, user) {
            Some(bytes) => Ok(Code::from_sixteen(bytes)),
            None => self.walk(memory, registers, linear, size, user),
        }
    }

    /// Sixteen bytes, the first in the lowest place, of which the first fifteen are what [`fetch`] returns for the same arguments; if
    /// they are in a page that is remembered.
    #[inline(always)]
    pub fn peek(
        &self,
        memory: &impl GuestMemory<Word = W, Page = P>,
        registers: PagingRegisters,
        linear: u64,
        user: bool,
    ) -> Option<u128> {
        self.sixteen(memory, registers, linear, user).map(u128::from_le_bytes)
    }

    /// The bytes, if they are in a page that is remembered. An instruction that may continue on the next page is left to the
    /// walk.
    #[inline(always)]
    fn sixteen(
        &self,
        memory: &impl GuestMemory<Word = W, Page = P>,
        registers: PagingRegisters,
        linear: u64,
        user: bool,
    ) -> Option<[u8; 16]> {
        let page = self.pages.get(usize::from(user))?.get(index(linear))?.as_ref()?;
        // Below the page this wraps, to beyond its end.
        let offset = linear.wrapping_sub(page.linear);
        let stands = offset <= PAGE_BYTES - 16
            && page.cr3 == registers.cr3
            && page.cr4 == registers.cr4
            && page.efer == registers.efer
            && page.entries.stand(memory);
        if stands { memory.read_page(page.page, offset) } else { None }
    }

    /// Fetches by the guest's tables and remembers the page.
    #[cold]
    fn walk(
        &mut self,
        memory: &impl GuestMemory<Word = W, Page = P>,
        registers: PagingRegisters,
        linear: u64,
        size: CodeSize,
        user: bool,
    ) -> Result<Code, WalkError> {
        let paging = registers.paging()?;
        let recorder = Recorder { memory, read: Cell::new(Read::NOTHING) };
        let access = Access { kind: AccessKind::Execute, user, alignment_check: false };
        let found = paging.translate(&recorder, linear, access)?;
        if registers.efer & efer::LMA != 0
            && let Some(entries) = recorder.read.get().entries()
            && let Some(page) = memory.page(found.address.page())
            && let Some(place) =
                self.pages.get_mut(usize::from(user)).and_then(|pages| pages.get_mut(index(linear)))
        {
            let PagingRegisters { cr3, cr4, efer, .. } = registers;
            *place = Some(Page { cr3, cr4, efer, linear: linear - linear % PAGE_BYTES, page, entries });
        }
        fetch(memory, &paging, linear, size, user)
    }
}

impl<W: Copy + core::fmt::Debug, P: Copy + core::fmt::Debug> Default for CodePages<W, P> {
    fn default() -> Self {
        Self::new()
    }
}

/// The one place where a page is remembered.
#[inline]
const fn index(linear: u64) -> usize {
    (linear / PAGE_BYTES) as usize % PAGES
}

/// What a walk has read.
#[derive(Clone, Copy, Debug)]
struct Read<W> {
    entries: [Option<(W, u64)>; MAX_ENTRIES],
    count: usize,
    /// It read something that cannot be written down here.
    more: bool,
}

impl<W: Copy> Read<W> {
    const NOTHING: Self = Self { entries: [None; MAX_ENTRIES], count: 0, more: false };

    fn note(mut self, word: W, entry: u64) -> Self {
        match self.entries.get_mut(self.count) {
            Some(place) => {
                *place = Some((word, entry));
                // At most the length of `entries`, as has just been seen.
                self.count = self.count.wrapping_add(1);
            }
            None => self.more = true,
        }
        self
    }

    /// All of it, if there is any and all of it was written down.
    fn entries(self) -> Option<Entries<W>> {
        let [first, ..] = self.entries;
        let first = first.filter(|_| !self.more)?;
        Some(Entries(self.entries.map(|entry| entry.unwrap_or(first))))
    }
}

/// Memory that writes down which entries a walk reads.
struct Recorder<'m, M: GuestMemory> {
    memory: &'m M,
    read: Cell<Read<M::Word>>,
}

impl<M: GuestMemory> GuestMemory for Recorder<'_, M> {
    type Word = M::Word;
    type Page = M::Page;

    fn word(&self, at: GuestPhys) -> Option<M::Word> {
        self.memory.word(at)
    }

    fn load(&self, word: M::Word) -> u64 {
        let entry = self.memory.load(word);
        self.read.set(self.read.get().note(word, entry));
        entry
    }

    fn page(&self, at: GuestPhys) -> Option<M::Page> {
        self.memory.page(at)
    }

    fn read_page(&self, page: M::Page, offset: u64) -> Option<[u8; 16]> {
        self.memory.read_page(page, offset)
    }

    /// Not an entry of eight bytes: the two-level mode, whose guests walk every time.
    fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), NotRam> {
        self.read.set(Read { more: true, ..self.read.get() });
        self.memory.read(at, into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::{cr0, cr4, efer};
    use proptest::prelude::*;

    /// Sixteen pages of RAM from 0 on, as words of eight bytes; counts the reads of entries.
    struct Ram {
        words: Vec<u64>,
        reads: Cell<u32>,
    }

    impl Ram {
        /// Four levels of tables in pages 1 to 4; linear pages 0 to 7 are pages 8 to 15, whose bytes are their number.
        fn new() -> Self {
            let mut ram = Self { words: vec![0; 16 * 512], reads: Cell::new(0) };
            for (table, next) in [(1, 2), (2, 3), (3, 4)] {
                ram.words[table * 512] = next << 12 | 7;
            }
            for page in 0..8 {
                ram.words[4 * 512 + page] = (page as u64 + 8) << 12 | 7;
                let at = (page + 8) * 512;
                ram.words[at..at + 512].fill(0x0101_0101_0101_0101 * (page as u64 + 8));
            }
            ram
        }
    }

    impl GuestMemory for Ram {
        type Word = usize;
        type Page = GuestPhys;

        fn page(&self, at: GuestPhys) -> Option<GuestPhys> {
            (at.raw() < 16 * 4096).then_some(at)
        }

        fn read_page(&self, page: GuestPhys, offset: u64) -> Option<[u8; 16]> {
            assert!(offset <= 0xff0);
            self.read_16(page.checked_add(offset)?).ok()
        }

        fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), NotRam> {
            for (n, byte) in into.iter_mut().enumerate() {
                let at = at.raw() as usize + n;
                *byte = (self.words.get(at / 8).ok_or(NotRam)? >> (at % 8 * 8)) as u8;
            }
            Ok(())
        }

        fn word(&self, at: GuestPhys) -> Option<usize> {
            let index = at.raw() as usize / 8;
            (index < self.words.len()).then_some(index)
        }

        fn load(&self, word: usize) -> u64 {
            self.reads.set(self.reads.get() + 1);
            self.words[word]
        }
    }

    const LONG: PagingRegisters = PagingRegisters {
        cr0: cr0::PE | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA | efer::NXE,
    };

    fn walked(ram: &Ram, registers: PagingRegisters, linear: u64, user: bool) -> Result<Code, WalkError> {
        fetch(ram, &registers.paging()?, linear, CodeSize::Bits64, user)
    }

    #[test]
    fn a_remembered_page_costs_its_entries_and_no_walk() {
        let ram = Ram::new();
        let mut pages = CodePages::new();
        let first = pages.fetch(&ram, LONG, 0x2010, CodeSize::Bits64, false).unwrap();
        ram.reads.set(0);
        assert_eq!(pages.fetch(&ram, LONG, 0x2010, CodeSize::Bits64, false), Ok(first));
        assert_eq!(first.bytes(), [10; 15]);
        assert_eq!(ram.reads.get(), 4);
        assert_eq!(pages.peek(&ram, LONG, 0x2010, false), Some(u128::from_le_bytes([0x0a; 16])));
        assert_eq!(pages.peek(&ram, LONG, 0x3010, false), None, "no page that was fetched from");
    }

    #[test]
    fn a_call_between_does_not_push_the_handlers_page_out() {
        let ram = Ram::new();
        let mut pages = CodePages::new();
        for linear in [0x2010, 0x6010] {
            pages.fetch(&ram, LONG, linear, CodeSize::Bits64, false).unwrap();
        }
        ram.reads.set(0);
        for linear in [0x2010, 0x6010, 0x2010] {
            pages.fetch(&ram, LONG, linear, CodeSize::Bits64, false).unwrap();
        }
        assert_eq!(ram.reads.get(), 3 * 4);
    }

    #[test]
    fn what_the_user_may_not_execute_is_not_taken_from_the_supervisors_pages() {
        let mut ram = Ram::new();
        ram.words[4 * 512 + 2] &= !4;
        let mut pages = CodePages::new();
        pages.fetch(&ram, LONG, 0x2010, CodeSize::Bits64, false).unwrap();
        assert_eq!(pages.peek(&ram, LONG, 0x2010, true), None);
        assert_eq!(pages.fetch(&ram, LONG, 0x2010, CodeSize::Bits64, true), Err(WalkError::Protection));
    }

    #[test]
    fn a_change_of_any_table_is_seen() {
        for table in 1..=4 {
            let mut ram = Ram::new();
            let mut pages = CodePages::new();
            let at = table * 512;
            pages.fetch(&ram, LONG, 0x10, CodeSize::Bits64, false).unwrap();
            ram.words[at] = 0;
            let level = 4 - table as u32;
            let gone = Err(WalkError::NotPresent { level });
            assert_eq!(pages.fetch(&ram, LONG, 0x10, CodeSize::Bits64, false), gone);
        }
    }

    #[test]
    fn a_mode_the_walker_does_not_know_is_an_error() {
        let registers = PagingRegisters { cr4: cr4::PAE | cr4::LA57, ..LONG };
        let fetched = CodePages::new().fetch(&Ram::new(), registers, 0x10, CodeSize::Bits64, false);
        assert_eq!(fetched, Err(WalkError::Unsupported));
    }

    #[derive(Clone, Debug)]
    enum Deed {
        Write(usize, u64),
        Fetch(u64, bool, PagingRegisters),
    }

    fn deed() -> impl Strategy<Value = Deed> {
        let entry = (0u64..17, prop::sample::select(vec![0u64, 1, 3, 5, 7, 0x87, 1 << 63 | 7]));
        let write = ((1usize..5, 0usize..8), entry)
            .prop_map(|((table, index), (page, flags))| Deed::Write(table * 512 + index, page << 12 | flags));
        let registers = prop::sample::select(vec![
            LONG,
            PagingRegisters { efer: efer::LME | efer::LMA, ..LONG },
            PagingRegisters { cr3: 0x2000, ..LONG },
            PagingRegisters { cr4: cr4::PAE | cr4::SMEP, ..LONG },
            PagingRegisters { efer: 0, ..LONG },
            PagingRegisters { efer: 0, cr4: 0, ..LONG },
            PagingRegisters { cr0: cr0::PE, efer: efer::LME, ..LONG },
            PagingRegisters { cr0: cr0::PE | cr0::PG | cr0::WP, ..LONG },
        ]);
        let offset = prop::sample::select(vec![0u64, 0x10, 0xff0, 0xff1, 0xfff]);
        let fetch = (0u64..9, offset, any::<bool>(), registers)
            .prop_map(|(page, offset, user, registers)| Deed::Fetch(page << 12 | offset, user, registers));
        prop_oneof![1 => write, 3 => fetch]
    }

    proptest! {
        #[test]
        fn it_is_what_a_walk_would_find(deeds in prop::collection::vec(deed(), 1..60)) {
            let mut ram = Ram::new();
            let mut pages = CodePages::new();
            for deed in deeds {
                match deed {
                    Deed::Write(at, entry) => ram.words[at] = entry,
                    Deed::Fetch(linear, user, registers) => {
                        let there = walked(&ram, registers, linear, user);
                        if let Some(first) = pages.peek(&ram, registers, linear, user) {
                            prop_assert_eq!(there.map(|code| code.as_u128()), Ok(first & u128::MAX >> 8));
                        }
                        prop_assert_eq!(pages.fetch(&ram, registers, linear, CodeSize::Bits64, user), there);
                    }
                }
            }
        }
    }
}
