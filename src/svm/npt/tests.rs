use super::*;
use crate::x86::{PAT_RESET, memory_type, memory_type_of};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Frames from 0x10_0000 upwards; panics on any access outside what was allocated.
pub(in crate::svm) struct Store {
    tables: Vec<[u64; 512]>,
    released: Vec<HostPhys>,
    limit: usize,
}

const FIRST: u64 = 0x10_0000;

impl Store {
    pub(in crate::svm) fn new(limit: usize) -> Self {
        Self { tables: Vec::new(), released: Vec::new(), limit }
    }

    fn number(table: HostPhys) -> usize {
        assert!(table.is_aligned(PAGE_BYTES));
        ((table.raw() - FIRST) / PAGE_BYTES) as usize
    }
}

impl TableStore for Store {
    fn read(&self, table: HostPhys, index: usize) -> u64 {
        self.tables[Self::number(table)][index]
    }

    fn write(&mut self, table: HostPhys, index: usize, entry: u64) {
        self.tables[Self::number(table)][index] = entry;
    }

    fn allocate(&mut self) -> Option<HostPhys> {
        if let Some(table) = self.released.pop() {
            return Some(table);
        }
        (self.tables.len() < self.limit).then(|| {
            self.tables.push([0; 512]);
            HostPhys::new(FIRST + (self.tables.len() as u64 - 1) * PAGE_BYTES)
        })
    }

    fn release(&mut self, table: HostPhys) {
        assert!(!self.released.contains(&table), "released twice");
        assert_eq!(self.tables[Self::number(table)], [0; 512]);
        self.released.push(table);
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn i43_a_device_that_was_everywhere_leaves_no_table_behind() {
    // The root, two on the way to the window and one for small pages: all there is.
    let mut store = Store::new(4);
    let tables = NestedTables::new(&mut store).unwrap();
    let (window, bytes) = (guest(0xe000_0000), 256 * MIB);
    for place in 0..128 {
        let at = guest(window.raw() + place * 2 * MIB);
        tables.map(&mut store, at, host(0xfeb0_0000), PAGE_BYTES, Memory::Device).unwrap();
        // Nothing is taken from a table that is in use.
        tables.prune(&mut store, window, bytes);
        assert!(tables.translate(&store, at).is_some());
        assert_eq!(tables.unmap(&mut store, at, PAGE_BYTES), Ok(PAGE_BYTES));
        tables.prune(&mut store, window, bytes);
    }
    // Large pages are left alone.
    tables.map(&mut store, window, host(0x4000_0000), 2 * MIB, Memory::Device).unwrap();
    tables.prune(&mut store, window, bytes);
    assert!(tables.translate(&store, window).is_some());
}

fn guest(raw: u64) -> GuestPhys {
    GuestPhys::new(raw)
}

fn host(raw: u64) -> HostPhys {
    HostPhys::new(raw)
}

#[test]
fn entries_by_bit() {
    let page = |memory, large| Entry::leaf(host(0xabc_d000), memory, large).0;
    assert_eq!(page(Memory::Ram, false), 0xabc_d007);
    assert_eq!(page(Memory::RamReadOnly, false), 0xabc_d005);
    assert_eq!(page(Memory::Device, false), 1 << 63 | 0xabc_d01f);
    assert_eq!(page(Memory::Ram, true), 0xabc_d087);
    assert_eq!(Entry::table(host(0x1000)).0, 0x1007);
    for memory in [Memory::Ram, Memory::RamReadOnly, Memory::Device] {
        assert_eq!(Entry::leaf(host(0), memory, false).memory(), memory);
    }
}

#[test]
fn memory_is_write_back_and_registers_are_uncacheable_whatever_the_page_size() {
    for large in [false, true] {
        let kind = |memory| memory_type_of(PAT_RESET, Entry::leaf(host(0xabc0_0000), memory, large).0, large);
        assert_eq!(kind(Memory::Ram), memory_type::WB);
        assert_eq!(kind(Memory::RamReadOnly), memory_type::WB);
        assert_eq!(kind(Memory::Device), memory_type::UC);
    }
    assert_eq!(
        memory_type_of(PAT_RESET, Entry::table(host(0x1000)).0, false),
        memory_type::WB,
        "the walk itself"
    );
}

#[test]
fn every_entry_is_a_user_entry_and_has_no_reserved_bit() {
    const LEGAL: u64 = Entry::PRESENT
        | Entry::WRITE
        | Entry::USER
        | Entry::WRITE_THROUGH
        | Entry::CACHE_DISABLE
        | Entry::NO_EXECUTE
        | Entry::ADDRESS;
    let mut store = Store::new(16);
    let npt = NestedTables::new(&mut store).unwrap();
    for (at, memory) in [(0, Memory::Ram), (8, Memory::RamReadOnly), (16, Memory::Device)] {
        npt.map(&mut store, guest(at * MIB), host(at * MIB), 3 * MIB, memory).unwrap();
    }
    for (number, table) in store.tables.iter().enumerate() {
        for entry in table.iter().filter(|entry| **entry != 0) {
            assert_ne!(entry & Entry::USER, 0, "table {number}: {entry:#x}: nested walks are user accesses");
            assert_eq!(entry & !(LEGAL | Entry::LARGE), 0, "table {number}: {entry:#x}");
            if entry & Entry::LARGE != 0 {
                assert_eq!(entry & (LARGE_PAGE_BYTES - PAGE_BYTES), 0, "table {number}: {entry:#x}");
            }
        }
    }
}

#[test]
fn large_pages_where_both_sides_allow() {
    let mut store = Store::new(16);
    let npt = NestedTables::new(&mut store).unwrap();
    // 1 MiB of small pages, one large page, 4 KiB more.
    npt.map(&mut store, guest(MIB), host(33 * MIB), 3 * MIB + PAGE_BYTES, Memory::Ram).unwrap();
    let at = |address| npt.translate(&store, guest(address)).unwrap();
    let ram = |address, page_bytes| Mapping { address: host(address), memory: Memory::Ram, page_bytes };
    assert_eq!(at(MIB + 5), ram(33 * MIB + 5, PAGE_BYTES));
    assert_eq!(at(2 * MIB + 0x1234), ram(34 * MIB + 0x1234, LARGE_PAGE_BYTES));
    assert_eq!(at(4 * MIB + 0xfff), ram(36 * MIB + 0xfff, PAGE_BYTES));
    assert_eq!(npt.translate(&store, guest(4 * MIB + PAGE_BYTES)), None);
    assert_eq!(npt.translate(&store, guest(MIB - 1)), None);
    // Not aligned alike: small pages only.
    npt.map(&mut store, guest(8 * MIB), host(41 * MIB), 2 * MIB, Memory::Ram).unwrap();
    assert_eq!(npt.translate(&store, guest(8 * MIB)).unwrap().page_bytes, PAGE_BYTES);
}

#[test]
fn nothing_is_mapped_twice() {
    let mut store = Store::new(16);
    let npt = NestedTables::new(&mut store).unwrap();
    npt.map(&mut store, guest(2 * MIB), host(2 * MIB), 2 * MIB, Memory::Ram).unwrap();
    let again = |store: &mut Store, at, bytes| npt.map(store, guest(at), host(at), bytes, Memory::Device);
    assert_eq!(again(&mut store, 3 * MIB, PAGE_BYTES), Err(MapError::Overlap(guest(3 * MIB))));
    assert_eq!(again(&mut store, 0, 8 * MIB), Err(MapError::Overlap(guest(2 * MIB))));
    assert_eq!(npt.translate(&store, guest(0)), None, "a refused call maps nothing");
    assert_eq!(again(&mut store, 0, 2 * MIB), Ok(()));
    assert_eq!(again(&mut store, 4 * MIB, PAGE_BYTES), Ok(()));
}

#[test]
fn bad_ranges_are_values() {
    let mut store = Store::new(8);
    let npt = NestedTables::new(&mut store).unwrap();
    let mut map = |g, h, bytes| npt.map(&mut store, guest(g), host(h), bytes, Memory::Ram);
    assert_eq!(map(1, 0, PAGE_BYTES), Err(MapError::Misaligned));
    assert_eq!(map(0, 0x800, PAGE_BYTES), Err(MapError::Misaligned));
    assert_eq!(map(0, 0, 0), Err(MapError::Misaligned));
    assert_eq!(map(0, 0, 100), Err(MapError::Misaligned));
    assert_eq!(map(GUEST_LIMIT - PAGE_BYTES, 0, 2 * PAGE_BYTES), Err(MapError::OutOfRange));
    assert_eq!(map(u64::MAX - 0xfff, 0, PAGE_BYTES), Err(MapError::OutOfRange));
    assert_eq!(map(0, HOST_LIMIT, PAGE_BYTES), Err(MapError::OutOfRange));
    assert_eq!(map(GUEST_LIMIT - PAGE_BYTES, HOST_LIMIT - PAGE_BYTES, PAGE_BYTES), Ok(()));
    assert_eq!(npt.translate(&store, guest(GUEST_LIMIT)), None);
    assert_eq!(npt.unmap(&mut store, guest(1), PAGE_BYTES), Err(UnmapError::Misaligned));
    assert_eq!(npt.unmap(&mut store, guest(GUEST_LIMIT), PAGE_BYTES), Err(UnmapError::OutOfRange));
}

#[test]
fn an_empty_pool_changes_no_translation() {
    assert!(NestedTables::new(&mut Store::new(0)).is_none());
    // Root and three levels for the first page, nothing for the second gigabyte.
    let mut store = Store::new(4);
    let npt = NestedTables::new(&mut store).unwrap();
    let edge = 1024 * MIB - PAGE_BYTES;
    assert_eq!(
        npt.map(&mut store, guest(edge), host(edge), 2 * PAGE_BYTES, Memory::Ram),
        Err(MapError::OutOfTables)
    );
    assert_eq!(npt.translate(&store, guest(edge)), None);

    let mut store = Store::new(3);
    let npt = NestedTables::new(&mut store).unwrap();
    npt.map(&mut store, guest(0), host(0), 2 * MIB, Memory::Ram).unwrap();
    assert_eq!(npt.unmap(&mut store, guest(0), PAGE_BYTES), Err(UnmapError::OutOfTables));
    assert_eq!(npt.translate(&store, guest(0)).unwrap().page_bytes, LARGE_PAGE_BYTES);
}

#[test]
fn partly_unmapping_a_large_page_splits_it() {
    let mut store = Store::new(16);
    let npt = NestedTables::new(&mut store).unwrap();
    npt.map(&mut store, guest(0), host(64 * MIB), 6 * MIB, Memory::Device).unwrap();
    assert_eq!(npt.unmap(&mut store, guest(MIB), 4 * MIB), Ok(4 * MIB));
    for (at, mapped) in
        [(0, true), (MIB - 1, true), (MIB, false), (3 * MIB, false), (5 * MIB, true), (6 * MIB, false)]
    {
        assert_eq!(npt.translate(&store, guest(at)).is_some(), mapped, "{at:#x}");
    }
    let kept = npt.translate(&store, guest(5 * MIB)).unwrap();
    assert_eq!((kept.address, kept.memory), (host(69 * MIB), Memory::Device));
    assert_eq!(npt.unmap(&mut store, guest(MIB), 4 * MIB), Ok(0), "idempotent");
}

/// The guest-physical space the property works in: 16 MiB across a 1 GiB boundary, in pages.
const BASE_PAGE: u64 = 0x4_0000 - 2048;
const PAGES: u64 = 4096;

#[derive(Clone, Debug)]
enum Op {
    Map { page: u64, frame: u64, count: u64, memory: Memory },
    Unmap { page: u64, count: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    // Mostly around large-page boundaries.
    let page = prop_oneof![0..PAGES, (0..PAGES / 512).prop_map(|n| n * 512)];
    let count = prop_oneof![1..8u64, 500..530u64, Just(512), Just(1024)];
    let memory = prop_oneof![Just(Memory::Ram), Just(Memory::RamReadOnly), Just(Memory::Device)];
    prop_oneof![
        3 => (page.clone(), page.clone(), count.clone(), memory)
            .prop_map(|(page, frame, count, memory)| Op::Map { page, frame, count, memory }),
        2 => (page, count).prop_map(|(page, count)| Op::Unmap { page, count }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn behaves_like_a_map_of_pages(ops in prop::collection::vec(op(), 1..24), frames in 4usize..24) {
        let mut store = Store::new(frames);
        let npt = NestedTables::new(&mut store).unwrap();
        let mut reference: BTreeMap<u64, (u64, Memory)> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Map { page, frame, count, memory } => {
                    let first = BASE_PAGE + page;
                    let result = npt.map(
                        &mut store, guest(first * PAGE_BYTES), host(frame * PAGE_BYTES), count * PAGE_BYTES, memory,
                    );
                    let taken = reference.range(first..first + count).next().map(|(page, _)| *page);
                    match (taken, result) {
                        (Some(page), result) => {
                            prop_assert_eq!(result, Err(MapError::Overlap(guest(page * PAGE_BYTES))));
                        }
                        (None, Ok(())) => {
                            reference.extend((0..count).map(|n| (first + n, (frame + n, memory))));
                        }
                        (None, Err(error)) => prop_assert_eq!(error, MapError::OutOfTables),
                    }
                }
                Op::Unmap { page, count } => {
                    let first = BASE_PAGE + page;
                    let range = first..first + count;
                    match npt.unmap(&mut store, guest(first * PAGE_BYTES), count * PAGE_BYTES) {
                        Ok(bytes) => {
                            let removed = reference.range(range.clone()).count() as u64;
                            prop_assert_eq!(bytes, removed * PAGE_BYTES);
                            reference.retain(|page, _| !range.contains(page));
                        }
                        Err(error) => prop_assert_eq!(error, UnmapError::OutOfTables),
                    }
                }
            }
            for page in BASE_PAGE..BASE_PAGE + PAGES + 1024 {
                let found = npt
                    .translate(&store, guest(page * PAGE_BYTES + 8))
                    .map(|m| ((m.address.raw() - 8) / PAGE_BYTES, m.memory));
                prop_assert_eq!(found, reference.get(&page).copied(), "page {:#x}", page);
            }
        }
    }
}
