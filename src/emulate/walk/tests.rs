use super::*;
use core::cell::Cell;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// RAM below `limit`, as words of eight bytes; counts the reads.
#[derive(Default)]
struct Ram {
    words: BTreeMap<u64, u64>,
    limit: u64,
    reads: Cell<u32>,
}

impl Ram {
    fn new() -> Self {
        Self { limit: 1 << 40, ..Self::default() }
    }

    fn put(&mut self, at: u64, entry: u64) {
        self.words.insert(at, entry);
    }

    fn put32(&mut self, at: u64, entry: u32) {
        let word = self.words.entry(at & !7).or_default();
        let shift = (at & 4) * 8;
        *word = *word & !(0xffff_ffff << shift) | u64::from(entry) << shift;
    }
}

impl GuestMemory for Ram {
    type Word = u64;
    type Page = GuestPhys;

    fn word(&self, at: GuestPhys) -> Option<u64> {
        self.reads.set(self.reads.get() + 1);
        at.checked_add(8).filter(|end| end.raw() <= self.limit).map(|_| at.raw())
    }

    fn load(&self, word: u64) -> u64 {
        self.words.get(&word).copied().unwrap_or(0)
    }

    fn page(&self, at: GuestPhys) -> Option<GuestPhys> {
        Some(at)
    }

    fn read_page(&self, page: GuestPhys, offset: u64) -> Option<[u8; 16]> {
        assert!(offset <= 0xff0);
        self.read_16(page.checked_add(offset)?).ok()
    }

    fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), NotRam> {
        self.reads.set(self.reads.get() + 1);
        let end = at.checked_add(into.len() as u64).ok_or(NotRam)?;
        if end.raw() > self.limit {
            return Err(NotRam);
        }
        for (n, byte) in into.iter_mut().enumerate() {
            let at = at.raw() + n as u64;
            let word = self.words.get(&(at & !7)).copied().unwrap_or(0);
            *byte = (word >> ((at & 7) * 8)) as u8;
        }
        Ok(())
    }
}

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;
const CR3: u64 = 0x1000;

const READ: Access = Access { kind: AccessKind::Read, user: false, alignment_check: false };
const WRITE_ACCESS: Access = Access { kind: AccessKind::Write, ..READ };
const EXECUTE: Access = Access { kind: AccessKind::Execute, ..READ };
const USER_READ: Access = Access { user: true, ..READ };

fn paging(cr0_bits: u64, cr4_bits: u64, efer_bits: u64) -> Paging {
    Paging::from_registers(cr0::PE | cr0::PG | cr0_bits, CR3, cr4_bits, efer_bits).unwrap()
}

fn long() -> Paging {
    paging(cr0::WP, cr4::PAE, efer::LME | efer::LMA | efer::NXE)
}

/// Tables at 0x1000, 0x2000, 0x3000, 0x4000 that map `linear` with the entries' low and high bits given, from the
/// root down; the last is the page at 0x55_5000 (or its large page).
fn four_level(linear: u64, flags: [u64; 4]) -> Ram {
    let mut ram = Ram::new();
    for (depth, flags) in flags.into_iter().enumerate() {
        let level = 3 - depth as u32;
        let index = linear >> (12 + 9 * level) & 0x1ff;
        let large = flags & PS != 0 && level < 3 && level > 0;
        let target = if level == 0 {
            0x55_5000
        } else if large {
            (0x40_0000_0000 >> (12 + 9 * level)) << (12 + 9 * level)
        } else {
            0x2000 + 0x1000 * depth as u64
        };
        ram.put(0x1000 + 0x1000 * depth as u64 + index * 8, target | flags);
    }
    ram
}

const ALL: u64 = P | RW | US;
const KERNEL: u64 = 0xffff_8123_4567_89ab;

#[test]
fn without_paging_addresses_are_physical() {
    let off = Paging::from_registers(cr0::PE, 0, 0, 0).unwrap();
    let found = off.translate(&Ram::default(), 0x1_fee0_00b0, WRITE_ACCESS).unwrap();
    assert_eq!(found.address, GuestPhys::new(0xfee0_00b0));
}

#[test]
fn four_levels() {
    let ram = four_level(KERNEL, [ALL; 4]);
    let found = long().translate(&ram, KERNEL, USER_READ).unwrap();
    assert_eq!(
        found,
        Translation {
            address: GuestPhys::new(0x55_59ab),
            page_bytes: 0x1000,
            writable: true,
            user: true,
            executable: true
        }
    );
    assert_eq!(ram.reads.get(), 4);
    let absent = long().translate(&ram, KERNEL ^ 0x1000, READ);
    assert_eq!(absent, Err(WalkError::NotPresent { level: 0 }));
    assert_eq!(long().translate(&ram, 0x8000_0000_0000, READ), Err(WalkError::NonCanonical));
}

#[test]
fn five_levels_are_refused() {
    let five = Paging::from_registers(cr0::PG, 0, cr4::PAE | cr4::LA57, efer::LMA);
    assert_eq!(five, Err(Unsupported));
    // Outside long mode the bit has no effect.
    assert!(Paging::from_registers(cr0::PG, 0, cr4::PAE | cr4::LA57, 0).is_ok());
}

#[test]
fn large_pages() {
    let two_mib = long().translate(&four_level(KERNEL, [ALL, ALL, ALL | PS, 0]), KERNEL, READ).unwrap();
    assert_eq!(two_mib.address.raw(), 0x40_0000_0000 | KERNEL & 0x1f_ffff);
    assert_eq!(two_mib.page_bytes, 2 << 20);
    let one_gib = long().translate(&four_level(KERNEL, [ALL, ALL | PS, 0, 0]), KERNEL, READ).unwrap();
    assert_eq!(one_gib.address.raw(), 0x40_0000_0000 | KERNEL & 0x3fff_ffff);
    assert_eq!(one_gib.page_bytes, 1 << 30);
    // The PAT bit of a large page is not an address bit, and what lies between is reserved.
    let pat = long().translate(&four_level(KERNEL, [ALL, ALL, ALL | PS | 1 << 12, 0]), KERNEL, READ).unwrap();
    assert_eq!(pat.address, two_mib.address);
    let reserved = four_level(KERNEL, [ALL, ALL, ALL | PS | 1 << 13, 0]);
    assert_eq!(long().translate(&reserved, KERNEL, READ), Err(WalkError::Reserved { level: 1 }));
    let reserved = four_level(KERNEL, [ALL, ALL | PS | 1 << 29, 0, 0]);
    assert_eq!(long().translate(&reserved, KERNEL, READ), Err(WalkError::Reserved { level: 2 }));
    let reserved = four_level(KERNEL, [ALL | PS, ALL, ALL, ALL]);
    assert_eq!(long().translate(&reserved, KERNEL, READ), Err(WalkError::Reserved { level: 3 }));
    // In the lowest level the bit is the PAT's.
    assert!(long().translate(&four_level(KERNEL, [ALL, ALL, ALL, ALL | PS]), KERNEL, READ).is_ok());
}

#[test]
fn permissions_add_up_over_the_levels() {
    for weak in 0..4 {
        let without = |bit: u64| {
            let mut flags = [ALL; 4];
            flags[weak] &= !bit;
            four_level(KERNEL, flags)
        };
        let protected = Err(WalkError::Protection);
        assert_eq!(long().translate(&without(RW), KERNEL, WRITE_ACCESS), protected);
        assert!(long().translate(&without(RW), KERNEL, READ).is_ok());
        assert_eq!(long().translate(&without(US), KERNEL, USER_READ), protected);
        assert!(long().translate(&without(US), KERNEL, READ).is_ok());
        let mut flags = [ALL; 4];
        flags[weak] |= NX;
        let ram = four_level(KERNEL, flags);
        assert_eq!(long().translate(&ram, KERNEL, EXECUTE), protected);
        assert!(long().translate(&ram, KERNEL, READ).is_ok());
        let no_nx = paging(0, cr4::PAE, efer::LMA);
        let level = 3 - weak as u32;
        assert_eq!(no_nx.translate(&ram, KERNEL, READ), Err(WalkError::Reserved { level }));
        let missing = long().translate(&without(P), KERNEL, READ);
        assert_eq!(missing, Err(WalkError::NotPresent { level }));
    }
}

#[test]
fn supervisor_rules() {
    let with = |cr0_bits, cr4_bits| paging(cr0_bits, cr4::PAE | cr4_bits, efer::LMA | efer::NXE);
    let read_only = four_level(KERNEL, [P | US; 4]);
    assert!(with(0, 0).translate(&read_only, KERNEL, WRITE_ACCESS).is_ok(), "WP off");
    assert!(with(cr0::WP, 0).translate(&read_only, KERNEL, WRITE_ACCESS).is_err());
    let user_write = Access { user: true, ..WRITE_ACCESS };
    assert!(with(0, 0).translate(&read_only, KERNEL, user_write).is_err(), "WP is for supervisors");
    let user_page = four_level(KERNEL, [ALL; 4]);
    assert!(with(0, cr4::SMEP).translate(&user_page, KERNEL, EXECUTE).is_err());
    assert!(with(0, cr4::SMEP).translate(&user_page, KERNEL, READ).is_ok());
    assert!(with(0, cr4::SMAP).translate(&user_page, KERNEL, READ).is_err());
    assert!(with(0, cr4::SMAP).translate(&user_page, KERNEL, WRITE_ACCESS).is_err());
    assert!(with(0, cr4::SMAP).translate(&user_page, KERNEL, EXECUTE).is_ok());
    let allowed = Access { alignment_check: true, ..READ };
    assert!(with(0, cr4::SMAP).translate(&user_page, KERNEL, allowed).is_ok());
    assert!(with(0, cr4::SMAP).translate(&user_page, KERNEL, USER_READ).is_ok());
}

#[test]
fn pae() {
    let linear = 0xc030_2004;
    let pae = Paging::from_registers(cr0::PE | cr0::PG | cr0::WP, 0x1020, cr4::PAE, 0).unwrap();
    let mut ram = Ram::new();
    ram.put(0x1020 + 3 * 8, 0x2000 | P);
    ram.put(0x2000 + 8, 0x3000 | ALL);
    ram.put(0x3000 + 0x102 * 8, 0x77_0000_0000 | ALL);
    let found = pae.translate(&ram, linear, WRITE_ACCESS).unwrap();
    assert_eq!(found.address, GuestPhys::new(0x77_0000_0004));
    assert!(found.user, "the top level has no permission bits");
    assert_eq!(pae.translate(&ram, linear | 1 << 40, READ), Ok(found), "only 32 bits count");
    ram.put(0x2000 + 8, 0x60_0000 | ALL | PS);
    let large = pae.translate(&ram, linear, READ).unwrap();
    assert_eq!((large.address.raw(), large.page_bytes), (0x70_2004, 2 << 20));
    for reserved in [RW, US, PS, 1 << 8, 1 << 52, NX] {
        ram.put(0x1020 + 3 * 8, 0x2000 | P | reserved);
        assert_eq!(pae.translate(&ram, linear, READ), Err(WalkError::Reserved { level: 2 }), "{reserved:#x}");
    }
    for legal in [1 << 3, 1 << 4, 1 << 5] {
        ram.put(0x1020 + 3 * 8, 0x2000 | P | legal);
        assert_eq!(pae.translate(&ram, linear, READ), Ok(large), "{legal:#x}");
    }
    ram.put(0x2000 + 8, 0x3000 | ALL | 1 << 52);
    assert_eq!(pae.translate(&ram, linear, READ), Err(WalkError::Reserved { level: 1 }));
}

#[test]
fn two_levels() {
    let linear = 0xc040_3004;
    let mut ram = Ram::new();
    ram.put32(0x1000 + 0x301 * 4, 0x3000 | ALL as u32);
    ram.put32(0x3000 + 3 * 4, 0x1234_5000 | (P | US) as u32);
    let found = paging(cr0::WP, 0, 0).translate(&ram, linear, READ).unwrap();
    assert_eq!((found.address.raw(), found.page_bytes, found.writable), (0x1234_5004, 4096, false));
    ram.put32(0x1000 + 0x301 * 4, 0x00c0_2000 | (ALL | PS) as u32);
    let large = paging(cr0::WP, cr4::PSE, 0).translate(&ram, linear, READ).unwrap();
    assert_eq!((large.address.raw(), large.page_bytes), (0x1_00c0_3004, 4 << 20), "bits 39:32 in 20:13");
    // Without PSE the bit is ignored and the entry names a table.
    ram.put32(0xc0_2000 + 3 * 4, 0x9000 | ALL as u32);
    assert_eq!(paging(0, 0, 0).translate(&ram, linear, READ).unwrap().address.raw(), 0x9004);
    ram.put32(0x1000 + 0x301 * 4, 0x0020_0000 | (ALL | PS) as u32);
    let reserved = paging(0, cr4::PSE, 0).translate(&ram, linear, READ);
    assert_eq!(reserved, Err(WalkError::Reserved { level: 1 }));
    ram.put32(0x1000 + 0x301 * 4, 0);
    let missing = paging(0, cr4::PSE, 0).translate(&ram, linear, READ);
    assert_eq!(missing, Err(WalkError::NotPresent { level: 1 }));
}

#[test]
fn tables_outside_ram() {
    let mut ram = four_level(KERNEL, [ALL; 4]);
    ram.limit = 0x2000;
    let at = GuestPhys::new(0x2000 + (KERNEL >> 30 & 0x1ff) * 8);
    assert_eq!(long().translate(&ram, KERNEL, READ), Err(WalkError::Table(at)));
}

proptest! {
    #[test]
    fn hostile_tables_cost_four_reads_at_most(
        entries in prop::collection::btree_map((0u64..0x800).prop_map(|n| n * 8), any::<u64>(), 0..64),
        cr3 in prop_oneof![Just(0u64), any::<u64>()],
        linear: u64,
        cr4_bits: u64,
        efer_bits: u64,
        dense: bool,
    ) {
        // Dense: every entry is present and points back into the first pages, so that walks go deep.
        let words = if dense {
            (0..0x800u64).map(|n| (n * 8, linear.rotate_left(n as u32) & 0x3f80 | ALL)).collect()
        } else {
            entries
        };
        let ram = Ram { words, limit: 0x4000, reads: Cell::new(0) };
        if let Ok(paging) = Paging::from_registers(cr0::PG, cr3, cr4_bits, efer_bits) {
            let _found = paging.translate(&ram, linear, READ);
            prop_assert!(ram.reads.get() <= 4);
        }
    }

    #[test]
    fn the_offset_survives_and_the_index_selects(linear in 0u64..1 << 47, other in 0u64..1 << 47) {
        let ram = four_level(linear, [ALL; 4]);
        let found = long().translate(&ram, linear, READ).unwrap();
        prop_assert_eq!(found.address.raw(), 0x55_5000 | linear & 0xfff);
        prop_assert_eq!(long().translate(&ram, other, READ).is_ok(), other >> 12 == linear >> 12);
    }
}
