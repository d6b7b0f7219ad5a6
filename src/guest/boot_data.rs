//! What a guest is told when it starts, as the bytes it reads.
//!
//! Each block is its fixed structure, then the tables and texts that this points to, all in one piece.

use alloc::vec::Vec;

use crate::addr::GuestPhys;

use super::linux::HEADER_START;
use super::memory::{ACPI_RSDP, EXTENDED_START, GuestMemory, LOW_END};

/// What EAX holds when a Multiboot guest starts (Multiboot 0.6.96 3.2).
pub(super) const MULTIBOOT_LOADER_MAGIC: u32 = 0x2bad_b002;
/// What the start info of a PVH guest begins with.
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// Version 1 is the first one with a memory map.
const START_INFO_VERSION: u32 = 1;
const START_INFO_BYTES: usize = 56;

/// Up to the end of the video fields, which stay 0.
const MULTIBOOT_INFO_BYTES: usize = 116;
/// What of it is valid: memory sizes, command line, modules, memory map, boot loader's name.
const MULTIBOOT_INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
/// What follows the size in an entry of the memory map.
const MULTIBOOT_MMAP_ENTRY_BYTES: u32 = 20;
const LOADER_NAME: &str = "Levelhead";

/// The zero page comes first, then six pages of page tables, then a descriptor table.
pub(super) const LINUX_TABLES: usize = 0x1000;
pub(super) const LINUX_GDT: usize = 0x7000;
pub(super) const LINUX_GDT_BYTES: u16 = 32;
const LINUX_FIXED_BYTES: usize = LINUX_GDT + LINUX_GDT_BYTES as usize;
/// A boot loader without a number of its own.
const LINUX_LOADER_UNDEFINED: u8 = 0xff;

/// What there is to tell.
pub(super) struct Facts<'f> {
    pub memory: &'f GuestMemory,
    /// The kernel image's name.
    pub name: &'f str,
    pub cmdline: &'f str,
    pub modules: &'f [LoadedModule<'f>],
}

/// A module where it was placed: below 4 GiB.
pub(super) struct LoadedModule<'f> {
    pub at: GuestPhys,
    pub bytes: u64,
    pub cmdline: &'f str,
}

/// PVH's `hvm_start_info` with its memory map, module list and texts, for the address `at` below 4 GiB.
///
/// The structure (Xen's public header `arch-x86/hvm/start_info.h`): magic, version, flags and number of modules as
/// 32 bits; the addresses of module list, command line, RSDP and memory map as 64 bits; the
/// number of map entries and a reserved word as 32 bits.
pub(super) fn pvh(facts: &Facts<'_>, at: u32) -> Vec<u8> {
    let mut block = Block::new(at, START_INFO_BYTES);
    let map = facts.memory.map();
    let map_entries = map.len() as u32;
    let map = map.iter().flat_map(|region| {
        words64([region.start.raw(), region.bytes]).chain(words32([region.kind as u32, 0]))
    });
    let map = block.append(map);
    let texts: Vec<u32> = facts.modules.iter().map(|module| block.text(&[module.cmdline])).collect();
    let cmdline = block.text(&[facts.cmdline]);
    let modules = facts.modules.iter().zip(texts);
    let modules = modules.flat_map(|(module, text)| words64([module.at.raw(), module.bytes, text.into(), 0]));
    let modules = block.append(modules);

    let counts = [START_INFO_MAGIC, START_INFO_VERSION, 0, facts.modules.len() as u32];
    let addresses = [modules.into(), cmdline.into(), ACPI_RSDP, map.into()];
    block.finish(words32(counts).chain(words64(addresses)).chain(words32([map_entries, 0])))
}

/// Multiboot's information with its memory map, module list and texts, for the address `at` below 4 GiB
/// (Multiboot 0.6.96 3.3).
///
/// The command line starts with the image's name: guests take its first word for that.
pub(super) fn multiboot(facts: &Facts<'_>, at: u32) -> Vec<u8> {
    let mut block = Block::new(at, MULTIBOOT_INFO_BYTES);
    let map = facts.memory.map();
    let map_bytes = map.len() as u32 * (4 + MULTIBOOT_MMAP_ENTRY_BYTES);
    let map = map.iter().flat_map(|region| {
        words32([MULTIBOOT_MMAP_ENTRY_BYTES])
            .chain(words64([region.start.raw(), region.bytes]))
            .chain(words32([region.kind as u32]))
    });
    let map = block.append(map);
    let texts: Vec<u32> = facts.modules.iter().map(|module| block.text(&[module.cmdline])).collect();
    let cmdline = match facts.cmdline {
        "" => block.text(&[facts.name]),
        words => block.text(&[facts.name, " ", words]),
    };
    let loader = block.text(&[LOADER_NAME]);
    let modules = facts.modules.iter().zip(texts);
    let modules = modules.flat_map(|(module, text)| {
        let start = module.at.raw();
        words32([start as u32, (start + module.bytes) as u32, text, 0])
    });
    let modules = block.append(modules);

    let lower_kib = LOW_END / 1024;
    let upper_kib = (facts.memory.low_ram_end().raw() - EXTENDED_START) / 1024;
    let count = facts.modules.len() as u32;
    block.finish(words32([
        MULTIBOOT_INFO_FLAGS,
        lower_kib as u32,
        upper_kib as u32,
        0, // boot device
        cmdline,
        count,
        modules,
        0, // symbols: four words
        0,
        0,
        0,
        map_bytes,
        map,
        0, // drives: length and address
        0,
        0, // configuration table
        loader,
    ]))
}

/// Linux's zero page (boot.rst, "64-bit Boot Protocol"; zero-page.rst) with what the entry in 64-bit mode needs, and the
/// command line behind it, for the page `at` below 4 GiB. `header` is the setup header as the kernel's file has it. The
/// initial RAM disk is the first module; one of no bytes is none.
pub(super) fn linux(facts: &Facts<'_>, header: &[u8], at: u32) -> Vec<u8> {
    let mut block = Block::new(at, LINUX_FIXED_BYTES);
    let cmdline = block.text(&[facts.cmdline]);

    let mut page = alloc::vec![0; LINUX_TABLES];
    set(&mut page, HEADER_START, header);
    set(&mut page, 0x70, &ACPI_RSDP.to_le_bytes());
    let map = facts.memory.map();
    set(&mut page, 0x1e8, &[map.len() as u8]);
    for (region, at) in map.iter().zip((0x2d0..).step_by(20)) {
        set(&mut page, at, &region.start.raw().to_le_bytes());
        set(&mut page, at + 8, &region.bytes.to_le_bytes());
        set(&mut page, at + 16, &(region.kind as u32).to_le_bytes());
    }
    set(&mut page, 0x210, &[LINUX_LOADER_UNDEFINED]);
    if let Some(initrd) = facts.modules.first().filter(|initrd| initrd.bytes > 0) {
        // Both below 4 GiB.
        set(&mut page, 0x218, &(initrd.at.raw() as u32).to_le_bytes());
        set(&mut page, 0x21c, &(initrd.bytes as u32).to_le_bytes());
    }
    set(&mut page, 0x228, &cmdline.to_le_bytes());

    // Present and writable; the last level's pages of 2 MiB.
    let table = |number: u32| u64::from(at) + LINUX_TABLES as u64 + 0x1000 * u64::from(number) + 0b11;
    let whole = |entries: Vec<u64>| entries.into_iter().chain(core::iter::repeat(0)).take(512);
    let root = whole(alloc::vec![table(1)]);
    let pointers = whole((2..6).map(table).collect());
    let pages = (0..4 * 512).map(|number: u64| number << 21 | 1 << 7 | 0b11);
    let tables = root.chain(pointers).chain(pages).flat_map(u64::to_le_bytes);
    // Flat and accessed, at the selectors the kernel's own table has them: code, execute and read, 64-bit; data, read and
    // write.
    let descriptors = words64([0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    block.finish(page.into_iter().chain(tables).chain(descriptors))
}

/// Puts bytes at an offset of the zero page, which has room for all that is put there.
fn set(page: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

fn words32<const N: usize>(words: [u32; N]) -> impl Iterator<Item = u8> {
    words.into_iter().flat_map(u32::to_le_bytes)
}

fn words64<const N: usize>(words: [u64; N]) -> impl Iterator<Item = u8> {
    words.into_iter().flat_map(u64::to_le_bytes)
}

/// A fixed structure of so many bytes at an address, and what it points to behind it.
struct Block {
    at: u32,
    fixed_bytes: usize,
    rest: Vec<u8>,
}

impl Block {
    fn new(at: u32, fixed_bytes: usize) -> Self {
        Self { at, fixed_bytes, rest: Vec::new() }
    }

    /// Appends bytes on a boundary of 8 and returns their address.
    fn append(&mut self, bytes: impl IntoIterator<Item = u8>) -> u32 {
        let aligned = (self.fixed_bytes + self.rest.len()).next_multiple_of(8);
        self.rest.resize(aligned - self.fixed_bytes, 0);
        self.rest.extend(bytes);
        // The block lies below 4 GiB as a whole, and is a few pages long.
        self.at.wrapping_add(aligned as u32)
    }

    /// Appends a text of these parts with a terminator and returns its address.
    fn text(&mut self, parts: &[&str]) -> u32 {
        self.append(parts.iter().flat_map(|part| part.bytes()).chain([0]))
    }

    /// The whole block, the fixed structure filled up with zeros.
    fn finish(self, fixed: impl IntoIterator<Item = u8>) -> Vec<u8> {
        let mut bytes: Vec<u8> = fixed.into_iter().take(self.fixed_bytes).collect();
        bytes.resize(self.fixed_bytes, 0);
        bytes.extend(self.rest);
        bytes
    }
}
