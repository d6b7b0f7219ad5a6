//! Bytes at RIP and page tables, both as bad as a guest can make them.

use core::cell::{Cell, RefCell};

use levelhead::addr::GuestPhys;
use levelhead::emulate::{
    Access, AccessKind, Code, CodePages, DecodeCache, DecodeError, GuestMemory, Intercepted, MmioOp, NotRam,
    PagingRegisters, cr8_write, fetch, intercepted_length, string_io,
};
use levelhead::vcpu::{CodeSize, Gpr, GuestRegs, Width};
use levelhead::x86::{cr0, cr4, efer, rflags};

use crate::dice::{Dice, fuzz};

const SIZES: [CodeSize; 3] = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64];

/// Bytes with prefixes, opcodes and operand forms of instructions that touch memory or exit, some of them damaged.
fn bytes(dice: &mut Dice) -> Vec<u8> {
    const PREFIXES: [u8; 18] = [
        0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x40, 0x41, 0x44, 0x45, 0x48, 0x4c,
        0x4f,
    ];
    const FORMS: [&[u8]; 44] = [
        &[0x88],
        &[0x89],
        &[0x8a],
        &[0x8b],
        &[0xc6],
        &[0xc7],
        &[0xa0],
        &[0xa1],
        &[0xa2],
        &[0xa3],
        &[0xaa],
        &[0xab],
        &[0xac],
        &[0xad],
        &[0x86],
        &[0x87],
        &[0x00],
        &[0x09],
        &[0x21],
        &[0x31],
        &[0x39],
        &[0x80],
        &[0x81],
        &[0x83],
        &[0x84],
        &[0x85],
        &[0xf6],
        &[0xf7],
        &[0xfe],
        &[0xff],
        &[0x6c],
        &[0x6d],
        &[0x6e],
        &[0x6f],
        &[0x0f, 0xb6],
        &[0x0f, 0xb7],
        &[0x0f, 0xbe],
        &[0x0f, 0xba],
        &[0x0f, 0x22],
        &[0x0f, 0x30],
        &[0x0f, 0xa2],
        &[0xf4],
        &[0x0f, 0x01, 0xd9],
        &[0x0f, 0x09],
    ];
    let mut bytes = Vec::new();
    if !dice.one_in(6) {
        for _ in 0..dice.pick(&[0, 0, 0, 1, 1, 2, 3, 14]) {
            bytes.push(dice.pick(&PREFIXES));
        }
        bytes.extend(dice.pick(&FORMS));
    }
    let tail = dice.below(16);
    bytes.extend((0..tail).map(|_| dice.any() as u8));
    if dice.one_in(8) && !bytes.is_empty() {
        let at = dice.below(bytes.len() as u64) as usize;
        bytes[at] = dice.any() as u8;
    }
    bytes
}

fn registers(dice: &mut Dice) -> GuestRegs {
    let mut regs = GuestRegs::new();
    for gpr in Gpr::ALL {
        regs[gpr] = dice.hostile();
    }
    regs
}

/// An instruction is at least a byte, at most what could be read.
fn check_length(length: u8, code: &Code) {
    assert!(length > 0 && usize::from(length) <= code.bytes().len(), "{length} of {code:x?}");
}

#[test]
fn hostile_bytes_are_an_instruction_of_their_own_length_or_an_error() {
    use Intercepted::{Cpuid, Hlt, Rdmsr, Rdpmc, Vmmcall, Wbinvd, Wrmsr};
    const EXITING: [Intercepted; 7] = [Cpuid, Rdmsr, Wrmsr, Hlt, Vmmcall, Wbinvd, Rdpmc];
    fuzz(40, |dice| {
        let mut cache = DecodeCache::new();
        for _ in 0..2000 {
            let bytes = bytes(dice);
            let (code, size) = (Code::from_bytes(&bytes), dice.pick(&SIZES));
            // A prefix of an instruction is none, and never another one.
            let whole = MmioOp::decode(&code, size);
            if let Ok(op) = whole {
                check_length(op.length(), &code);
                let cut = Code::from_bytes(&bytes[..usize::from(op.length()) - 1]);
                assert_eq!(MmioOp::decode(&cut, size), Err(DecodeError::Truncated), "{bytes:x?}");
                effects_stay_with_the_operands(&op, dice, size);
            }
            assert_eq!(cache.decode(dice.below(4), &code, size), whole, "{bytes:x?}");
            let lengths: Vec<u8> =
                EXITING.iter().filter_map(|what| intercepted_length(&code, size, *what).ok()).collect();
            assert!(lengths.len() <= 1, "two instructions at once: {bytes:x?}");
            let cr8 = cr8_write(&code, size).ok().map(|write| write.length);
            let string = string_io(&code, size).ok();
            assert!(string.is_none_or(|string| string.address != Width::Byte));
            for length in lengths.into_iter().chain(cr8).chain(string.map(|string| string.length)) {
                check_length(length, &code);
            }
        }
    });
}

/// One access changes at most a pointer, a counter and a value; flags only as arithmetic does.
fn effects_stay_with_the_operands(op: &MmioOp, dice: &mut Dice, size: CodeSize) {
    let before = registers(dice);
    let mut after = before;
    let flags = dice.any();
    let mut flags_after = flags;
    let outcome = op.execute(&mut after, &mut flags_after, dice.any());
    let changed = Gpr::ALL.into_iter().filter(|&gpr| before[gpr] != after[gpr]).count();
    assert!(changed <= 3, "{op:?} changes {changed} registers");
    assert!(size == CodeSize::Bits64 || Gpr::ALL[8..].iter().all(|&gpr| before[gpr] == after[gpr]));
    assert_eq!((flags ^ flags_after) & !rflags::STATUS, 0, "{op:?}");
    assert!(outcome.store.is_none_or(|value| value & !op.width().mask() == 0), "{op:?} {outcome:x?}");
    assert!(op.writes() || outcome.store.is_none(), "{op:?} writes though it does not");
}

/// RAM of eight pages from 0 and four from 4 GiB, that counts what is asked of it.
struct Ram {
    pages: RefCell<Vec<[u8; 4096]>>,
    reads: Cell<u32>,
}

const HIGH: u64 = 1 << 32;
const LOW_PAGES: u64 = 8;
const HIGH_PAGES: u64 = 4;

impl Ram {
    fn place(at: u64) -> Option<usize> {
        let page = at >> 12;
        if page < LOW_PAGES {
            return Some(page as usize);
        }
        let high = page.checked_sub(HIGH >> 12)?;
        (high < HIGH_PAGES).then_some((LOW_PAGES + high) as usize)
    }

    /// Tables full of entries that lead to RAM, to tables again, out of RAM, or nowhere.
    fn any(dice: &mut Dice) -> Self {
        let mut pages = vec![[0; 4096]; (LOW_PAGES + HIGH_PAGES) as usize];
        for page in &mut pages {
            for entry in page.chunks_exact_mut(8) {
                let target = match dice.below(8) {
                    0 => dice.hostile(),
                    1 => HIGH + (dice.below(HIGH_PAGES + 1) << 12),
                    _ => dice.below(LOW_PAGES + 1) << 12,
                };
                let flags = dice.pick(&[7, 7, 7, 7, 0x67, 3, 5, 0x87, 0x87, 0, 1 << 63 | 7, 0x1007]);
                entry.copy_from_slice(&(target & 0x000f_ffff_ffff_f000 | flags).to_le_bytes());
            }
        }
        Self { pages: RefCell::new(pages), reads: Cell::new(0) }
    }
}

impl GuestMemory for Ram {
    type Word = GuestPhys;
    type Page = GuestPhys;

    fn word(&self, at: GuestPhys) -> Option<GuestPhys> {
        Self::place(at.raw()).map(|_| at)
    }

    fn load(&self, word: GuestPhys) -> u64 {
        let mut bytes = [0; 8];
        self.read(word, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn page(&self, at: GuestPhys) -> Option<GuestPhys> {
        Self::place(at.raw()).map(|_| at)
    }

    fn read_page(&self, page: GuestPhys, offset: u64) -> Option<[u8; 16]> {
        assert!(offset <= 0xff0);
        self.read_16(page.checked_add(offset)?).ok()
    }

    fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), NotRam> {
        self.reads.set(self.reads.get() + 1);
        let pages = self.pages.borrow();
        let byte = |n: usize| {
            let at = at.raw().checked_add(n as u64)?;
            Some(pages[Self::place(at)?][(at & 0xfff) as usize])
        };
        let bytes: Option<Vec<u8>> = (0..into.len()).map(byte).collect();
        into.copy_from_slice(&bytes.ok_or(NotRam)?);
        Ok(())
    }
}

fn paging_registers(dice: &mut Dice) -> PagingRegisters {
    let long = efer::LME | efer::LMA;
    let pg = dice.pick(&[cr0::PG, cr0::PG, cr0::PG, 0]);
    // A CPU clears LMA with PG.
    let possible = if pg == 0 { !efer::LMA } else { u64::MAX };
    PagingRegisters {
        cr0: cr0::PE | pg | dice.pick(&[0, cr0::WP]),
        cr3: if dice.one_in(8) { dice.hostile() } else { dice.below(LOW_PAGES) << 12 },
        cr4: dice.pick(&[cr4::PAE, cr4::PAE, cr4::PAE, 0, cr4::PSE, cr4::PAE | cr4::LA57])
            | dice.pick(&[0, cr4::SMEP, cr4::SMAP]),
        efer: possible & dice.pick(&[long, long | efer::NXE, long | efer::NXE, 0, efer::NXE]),
    }
}

/// Two walks of four entries, and the bytes of two pages.
const MOST_READS: u32 = 2 * 4 + 2;

#[test]
fn hostile_tables_cost_a_bounded_walk_and_lead_nowhere_but_to_ram() {
    fuzz(40, |dice| {
        let ram = Ram::any(dice);
        let mut pages = CodePages::new();
        let mut registers = paging_registers(dice);
        for _ in 0..400 {
            if dice.one_in(16) {
                registers = paging_registers(dice);
            }
            // The guest rewrites its tables between exits.
            let (page, entry) = (dice.below(LOW_PAGES) as usize, dice.below(512) as usize * 8);
            let value = (dice.below(LOW_PAGES + 1) << 12 | dice.pick(&[0, 7, 0x87])).to_le_bytes();
            ram.pages.borrow_mut()[page][entry..entry + 8].copy_from_slice(&value);
            let linear = match dice.below(4) {
                0 => dice.hostile(),
                1 => dice.below(8) << 12 | dice.pick(&[0, 0x10, 0xff0, 0xff1, 0xffc, 0xfff]),
                2 => dice.below(4) << 39 | dice.below(4) << 30 | dice.below(4) << 21 | dice.below(1 << 14),
                _ => dice.pick(&[0, 0xffff_f000, 0xffff_8000_0000_0000, u64::MAX - 7]),
            };
            let (size, user) = (dice.pick(&SIZES), dice.one_in(2));
            ram.reads.set(0);
            let cached = pages.fetch(&ram, registers, linear, size, user);
            // The remembered entries are read and then, when they changed, the walk is made.
            let walk_and_memory = 2 * MOST_READS + 4;
            assert!(ram.reads.get() <= walk_and_memory, "{} reads", ram.reads.get());
            let Ok(paging) = registers.paging() else { continue };
            ram.reads.set(0);
            let fetched = fetch(&ram, &paging, linear, size, user);
            assert!(ram.reads.get() <= MOST_READS, "{} reads", ram.reads.get());
            assert_eq!(cached, fetched, "{registers:x?} {linear:x}");
            let access = Access { kind: AccessKind::Execute, user, alignment_check: false };
            match (fetched, paging.translate(&ram, linear, access)) {
                (Ok(code), Ok(found)) => {
                    // Bytes come from where the walk led, and that is RAM.
                    let place = Ram::place(found.address.raw()).expect("code outside RAM");
                    let pages = ram.pages.borrow();
                    assert_eq!(code.bytes()[0], pages[place][(found.address.raw() & 0xfff) as usize]);
                    assert!(found.executable && (!user || found.user));
                    assert_eq!(found.address.page_offset(), linear & 0xfff);
                }
                (Ok(code), Err(error)) => panic!("{error:?}, but read {code:x?}"),
                (Err(_), _) => {}
            }
        }
    });
}
