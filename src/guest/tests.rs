//! The plan's promises on images built here: every format accepted, every lie named, and nothing ever placed
//! outside usable memory or twice.

use alloc::string::{String, ToString};
use alloc::{format, vec};

use proptest::prelude::{any, prop_assert, proptest};

use super::*;

const MIB: u64 = 1 << 20;
const PT_NULL: u32 = 0;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// An ELF to be written: its header's fields, and its segments, whose contents follow one another in the file.
struct ElfFile {
    wide: bool,
    kind: u16,
    machine: u16,
    entry: u64,
    /// Where the first segment's content starts in the file.
    content_offset: usize,
    segments: Vec<SegmentSpec>,
}

struct SegmentSpec {
    kind: u32,
    virtual_address: u64,
    physical_address: u64,
    content: Vec<u8>,
    memory_bytes: u64,
    align: u64,
}

fn load_at(address: u64, content: Vec<u8>, memory_bytes: u64) -> SegmentSpec {
    let (virtual_address, physical_address) = (address, address);
    SegmentSpec { kind: PT_LOAD, virtual_address, physical_address, content, memory_bytes, align: 4096 }
}

fn note(content: Vec<u8>, align: u64) -> SegmentSpec {
    let memory_bytes = content.len() as u64;
    SegmentSpec { kind: PT_NOTE, virtual_address: 0, physical_address: 0, content, memory_bytes, align }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl ElfFile {
    fn word(&self, value: u64) -> Vec<u8> {
        if self.wide { value.to_le_bytes().to_vec() } else { words(&[value as u32]) }
    }

    fn build(&self) -> Vec<u8> {
        let (header_bytes, program_bytes, section_bytes) =
            if self.wide { (64, 56, 64) } else { (52, 32, 40) };
        let mut file = vec![0x7f, b'E', b'L', b'F', 1 + u8::from(self.wide), 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([self.kind, self.machine].iter().flat_map(|half| half.to_le_bytes()));
        file.extend(words(&[1]));
        file.extend([self.entry, header_bytes, 0].iter().flat_map(|&word| self.word(word)));
        file.extend(words(&[0]));
        let halves = [header_bytes as u16, program_bytes, self.segments.len() as u16, section_bytes, 0, 0];
        file.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        assert_eq!(file.len() as u64, header_bytes);

        let mut offset = self.content_offset;
        for segment in &self.segments {
            let addresses = [offset as u64, segment.virtual_address, segment.physical_address];
            let sizes = [segment.content.len() as u64, segment.memory_bytes];
            let fields = addresses.iter().chain(&sizes).flat_map(|&word| self.word(word));
            let flags = words(&[7]);
            file.extend(words(&[segment.kind]));
            if self.wide {
                file.extend(flags.into_iter().chain(fields));
            } else {
                file.extend(fields.chain(flags));
            }
            file.extend(self.word(segment.align));
            offset += segment.content.len();
        }
        assert!(file.len() <= self.content_offset, "{} bytes of headers", file.len());
        file.resize(self.content_offset, 0);
        file.extend(self.segments.iter().flat_map(|segment| &segment.content));
        file
    }
}

fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let mut header = words(&[magic, flags, 0_u32.wrapping_sub(magic).wrapping_sub(flags)]);
    header.extend(words(addresses));
    header
}

/// A 32-bit ELF with a bare Multiboot header at file offset 176 and two segments at 4 MiB, the second one with
/// 12 MiB of zeros behind it.
fn multiboot_elf32() -> ElfFile {
    let mut text = multiboot_header(0, &[]);
    text.resize(0x300, 0x90);
    let entry = 4 * MIB + 0xc;
    let segments = vec![load_at(4 * MIB, text, 0x300), load_at(4 * MIB + 0x1000, vec![0xda; 0x80], 12 * MIB)];
    ElfFile { wide: false, kind: 2, machine: 3, entry, content_offset: 176, segments }
}

fn xen_note(description: &[u8]) -> Vec<u8> {
    [&words(&[4, description.len() as u32, 18]), &b"Xen\0"[..], description].concat()
}

/// A 64-bit ELF, linked high, with a PVH note for 2 MiB + 0x10.
fn pvh_elf64() -> ElfFile {
    let mut text = load_at(2 * MIB, vec![0x90; 0x200], 0x4000);
    text.virtual_address = 0xffff_ffff_8020_0000;
    let segments = vec![text, note(xen_note(&(2 * MIB + 0x10).to_le_bytes()), 4)];
    ElfFile {
        wide: true,
        kind: 2,
        machine: 62,
        entry: 0xffff_ffff_8020_0000,
        content_offset: 0x200,
        segments,
    }
}

/// A bzImage of protocol 2.15: the setup header in two sectors, then 0x600 bytes of kernel for 16 MiB, which needs 1 MiB.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 2 * 512];
    file.resize(2 * 512 + 0x600, 0x90);
    let fields: [(usize, &[u8]); 13] = [
        (0x1f1, &[1]),
        (0x1f4, &0x60_u32.to_le_bytes()),
        (0x1fe, &[0x55, 0xaa]),
        (0x200, &[0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &0x20f_u16.to_le_bytes()),
        (0x211, &[1]),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (0x236, &0x7f_u16.to_le_bytes()),
        (0x238, &2047_u32.to_le_bytes()),
        (0x258, &(16 * MIB).to_le_bytes()),
        (0x260, &(MIB as u32).to_le_bytes()),
    ];
    for (offset, bytes) in fields {
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    file
}

/// That bzImage with other bytes at an offset.
fn bzimage_with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    file
}

/// A file of 0x180 bytes that is no ELF, with its header at offset 0x20, for 1 MiB.
fn flat(load_end: u32, bss_end: u32, entry: u32) -> Vec<u8> {
    let mut file = vec![0x90; 0x20];
    file.extend(multiboot_header(0x1_0003, &[0x10_0020, 0x10_0000, load_end, bss_end, entry]));
    file.resize(0x180, 0x90);
    file
}

fn payload<'a>(kernel: &'a [u8], modules: &[(&'a [u8], &'a str)]) -> Payload<'a> {
    let modules = modules.iter().map(|&(bytes, cmdline)| (Image { name: "module", bytes }, cmdline));
    let kernel = Image { name: "kernel", bytes: kernel };
    Payload { kernel, cmdline: "a b", modules: modules.collect(), tsc_khz: None }
}

fn memory(mib: u64) -> GuestMemory {
    GuestMemory::new(mib * MIB).unwrap()
}

/// The plan for a guest with 64 MiB and a module of 5000 bytes.
fn plan_of(kernel: &[u8]) -> Result<BootPlan<'_>, PlanError> {
    let linux = kernel.get(0x202..0x206) == Some(b"HdrS");
    let text = if linux { "" } else { "the module" };
    plan(&payload(kernel, &[(&[0x55; 5000], text)]), &memory(64))
}

/// Guest memory as the plan leaves it.
fn byte_at(plan: &BootPlan<'_>, address: u64) -> u8 {
    let inside = |placed: &&Placement<'_>| (placed.at.raw()..placed.end().raw()).contains(&address);
    let placed = plan.placements.iter().find(inside).unwrap_or_else(|| panic!("nothing at {address:#x}"));
    placed.bytes.get((address - placed.at.raw()) as usize).copied().unwrap_or(0)
}

fn u32_at(plan: &BootPlan<'_>, address: u64) -> u32 {
    u32::from_le_bytes(core::array::from_fn(|byte| byte_at(plan, address + byte as u64)))
}

fn u64_at(plan: &BootPlan<'_>, address: u64) -> u64 {
    u64::from(u32_at(plan, address)) | u64::from(u32_at(plan, address + 4)) << 32
}

fn text_at(plan: &BootPlan<'_>, address: u64) -> String {
    (address..).map(|at| byte_at(plan, at)).take_while(|&byte| byte != 0).map(char::from).collect()
}

/// EIP, EAX and EBX of a plan that starts in 32-bit mode.
fn registers(plan: &BootPlan<'_>) -> (u32, u32, u32) {
    match plan.entry {
        EntryState::Protected32 { eip, eax, ebx } => (eip, eax, ebx),
        EntryState::Long64 { .. } => panic!("{:?}", plan.entry),
    }
}

/// Where a guest that starts in 32-bit mode finds what it is told.
fn boot_data(plan: &BootPlan<'_>) -> u64 {
    registers(plan).2.into()
}

/// What every plan promises, whatever the image.
fn check(plan: &BootPlan<'_>, memory: &GuestMemory) {
    let mut sorted: Vec<_> = plan.placements.iter().collect();
    sorted.sort_by_key(|placed| placed.at);
    for placed in &sorted {
        let bytes = placed.bytes.len() as u64 + placed.zeros;
        assert!(memory.is_usable(placed.at, bytes), "{bytes:#x} bytes at {}", placed.at);
        assert_eq!(placed.end().raw(), placed.at.raw() + bytes);
    }
    assert!(sorted.windows(2).all(|pair| pair[0].end() <= pair[1].at), "overlap");
    let entry = plan.entry.rip();
    let loaded = |placed: &&Placement<'_>| {
        (placed.at.raw()..placed.at.raw() + placed.bytes.len() as u64).contains(&entry)
    };
    assert!(plan.placements.iter().any(|placed| loaded(&placed)), "entry {entry:#x}");
}

#[test]
fn a_multiboot_elf32_gets_all_it_may_ask_for() {
    let file = multiboot_elf32().build();
    let plan = plan_of(&file).unwrap();
    check(&plan, &memory(64));
    assert_eq!(plan.protocol, Protocol::Multiboot1);
    assert_eq!(registers(&plan), (0x40_000c, 0x2bad_b002, 0x1_0000));
    assert_eq!(plan.placements[0].at, GuestPhys::new(0x40_0000));
    assert_eq!(plan.placements[0].bytes[..], file[176..176 + 0x300]);
    assert_eq!((plan.placements[1].bytes.len(), plan.placements[1].zeros), (0x80, 12 * MIB - 0x80));

    let info = boot_data(&plan);
    assert_eq!(info, 0x1_0000);
    let field = |offset| u32_at(&plan, info + offset);
    assert_eq!(field(0), 0b10_0100_1101);
    assert_eq!((field(4), field(8)), (640, 63 * 1024));
    assert_eq!(text_at(&plan, field(16).into()), "kernel a b");
    assert_eq!(field(20), 1);
    let module = u64::from(field(24));
    assert_eq!(u64::from(u32_at(&plan, module)), 16 * MIB + 0x1000, "the first page behind the zeros");
    assert_eq!(u32_at(&plan, module + 4) - u32_at(&plan, module), 5000);
    assert_eq!(text_at(&plan, u32_at(&plan, module + 8).into()), "the module");
    assert_eq!(byte_at(&plan, u64::from(u32_at(&plan, module)) + 4999), 0x55);
    assert_eq!(text_at(&plan, field(64).into()), "Levelhead");

    let (bytes, mut entry) = (u64::from(field(44)), u64::from(field(48)));
    let end = entry + bytes;
    let mut map = vec![];
    while entry < end {
        let (start, length, kind) =
            (u64_at(&plan, entry + 4), u64_at(&plan, entry + 12), u32_at(&plan, entry + 20));
        map.push((start, length, kind));
        entry += 4 + u64::from(u32_at(&plan, entry));
    }
    assert_eq!(entry, end);
    let told = memory(64).map();
    let expected: Vec<_> = told.iter().map(|r| (r.start.raw(), r.bytes, r.kind as u32)).collect();
    assert_eq!(map, expected);
}

#[test]
fn a_pvh_elf64_gets_a_start_info() {
    let file = pvh_elf64().build();
    let plan = plan_of(&file).unwrap();
    check(&plan, &memory(64));
    assert_eq!(plan.protocol, Protocol::Pvh);
    assert_eq!(registers(&plan), (0x20_0010, 0, 0x1_0000));
    let kernel = Placement { at: GuestPhys::new(2 * MIB), bytes: file[0x200..0x400].into(), zeros: 0x3e00 };
    assert_eq!(plan.placements[0], kernel);

    let info = boot_data(&plan);
    let head: Vec<u32> = (0..4).map(|word| u32_at(&plan, info + 4 * word)).collect();
    assert_eq!(head, [0x336e_c578, 1, 0, 1]);
    let module = u64_at(&plan, info + 16);
    assert_eq!((u64_at(&plan, module), u64_at(&plan, module + 8)), (2 * MIB + 0x4000, 5000));
    assert_eq!(text_at(&plan, u64_at(&plan, module + 16)), "the module");
    assert_eq!(text_at(&plan, u64_at(&plan, info + 24)), "a b");
    assert_eq!(u64_at(&plan, info + 32), ACPI_RSDP);
    let map = u64_at(&plan, info + 40);
    let told = memory(64).map();
    assert_eq!(u32_at(&plan, info + 48) as usize, told.len());
    for (region, at) in told.iter().zip((map..).step_by(24)) {
        assert_eq!((u64_at(&plan, at), u64_at(&plan, at + 8)), (region.start.raw(), region.bytes));
        assert_eq!(u32_at(&plan, at + 16), region.kind as u32);
    }
}

#[test]
fn a_linux_kernel_is_entered_in_64_bit_mode_with_a_zero_page() {
    let file = bzimage();
    let plan = plan(&payload(&file, &[(&[0x55; 5000], "")]), &memory(64)).unwrap();
    check(&plan, &memory(64));
    assert_eq!(plan.protocol, Protocol::Linux);
    let kernel = Placement { at: GuestPhys::new(16 * MIB), bytes: file[0x400..].into(), zeros: MIB - 0x600 };
    assert_eq!(plan.placements[0], kernel);
    let EntryState::Long64 { rip, rsi, cr3, gdt, gdt_bytes } = plan.entry else { panic!("{:?}", plan.entry) };
    assert_eq!((rip, rsi), (16 * MIB + 0x200, 0x1_0000));

    // The zero page: the header, what the loader writes into it, the memory map; nothing else.
    let jump_target = 0x202 + 0x6a;
    let written = [0x210, 0x218, 0x219, 0x21a, 0x21b, 0x21c, 0x21d, 0x228, 0x229, 0x22a, 0x22b];
    for offset in (0x1f1..jump_target).filter(|offset| !written.contains(offset)) {
        assert_eq!(byte_at(&plan, rsi + offset), file[offset as usize], "{offset:#x}");
    }
    assert_eq!(byte_at(&plan, rsi + 0x210), 0xff);
    assert_eq!((u32_at(&plan, rsi + 0x218), u32_at(&plan, rsi + 0x21c)), (17 * MIB as u32, 5000));
    assert_eq!(byte_at(&plan, 17 * MIB + 4999), 0x55);
    assert_eq!(text_at(&plan, u32_at(&plan, rsi + 0x228).into()), "pci=conf1 reboot=acpi a b");
    let told = memory(64).map();
    assert_eq!(usize::from(byte_at(&plan, rsi + 0x1e8)), told.len());
    for (region, at) in told.iter().zip((rsi + 0x2d0..).step_by(20)) {
        assert_eq!((u64_at(&plan, at), u64_at(&plan, at + 8)), (region.start.raw(), region.bytes));
        assert_eq!(u32_at(&plan, at + 16), region.kind as u32);
    }
    let map_end = 0x2d0 + 20 * told.len() as u64;
    assert_eq!(u64_at(&plan, rsi + 0x70), ACPI_RSDP);
    for offset in
        (0..0x70).chain(0x78..0x1e8).chain(0x1e9..0x1f1).chain(jump_target..0x2d0).chain(map_end..0x1000)
    {
        assert_eq!(byte_at(&plan, rsi + offset), 0, "{offset:#x}");
    }

    // The tables: each address leads to itself.
    for address in [0, 0x1_0000, 16 * MIB, 3 << 30, 0xffff_ffff] {
        let mut table = cr3.raw();
        for shift in [39, 30] {
            let entry = u64_at(&plan, table + (address >> shift & 0x1ff) * 8);
            assert_eq!(entry & 0xfff, 0b11, "present and writable, no page");
            table = entry & !0xfff;
        }
        let entry = u64_at(&plan, table + (address >> 21 & 0x1ff) * 8);
        assert_eq!(entry, address & !0x1f_ffff | 0x83, "{address:#x}");
    }
    assert_eq!(u64_at(&plan, cr3.raw() + 8), 0, "nothing behind the first 512 GiB");
    assert_eq!(gdt_bytes, 32);
    let descriptors: Vec<u64> = (0..4).map(|entry| u64_at(&plan, gdt.raw() + 8 * entry)).collect();
    assert_eq!(descriptors, [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
}

#[test]
fn modules_of_a_linux_kernel_are_one_initial_ram_disk() {
    let file = bzimage();
    let modules: [(&[u8], &str); 3] = [(&[1; 4097], ""), (&[2; 8192], ""), (&[3; 10], "")];
    let plan = plan(&payload(&file, &modules), &memory(64)).unwrap();
    check(&plan, &memory(64));
    let EntryState::Long64 { rsi, .. } = plan.entry else { panic!("{:?}", plan.entry) };
    let (start, bytes) = (u32_at(&plan, rsi + 0x218), u32_at(&plan, rsi + 0x21c));
    assert_eq!((start, bytes), (17 * MIB as u32, 0x4000 + 10));
    let found: Vec<u8> = (0..bytes).map(|offset| byte_at(&plan, u64::from(start + offset))).collect();
    assert!(found[..4097].iter().all(|byte| *byte == 1));
    assert!(found[4097..0x2000].iter().all(|byte| *byte == 0), "the kernel skips zeros between archives");
    assert!(found[0x2000..0x4000].iter().all(|byte| *byte == 2));
    assert_eq!(found[0x4000..], [3; 10]);

    // Without one the kernel must not be told of any.
    let none = super::plan(&payload(&file, &[]), &memory(64)).unwrap();
    let EntryState::Long64 { rsi, .. } = none.entry else { panic!("{:?}", none.entry) };
    assert_eq!((u32_at(&none, rsi + 0x218), u32_at(&none, rsi + 0x21c)), (0, 0));
}

#[test]
fn what_a_linux_kernel_does_not_take_is_named() {
    let file = bzimage();
    let refused = |kernel: &[u8], modules: &[(&[u8], &str)], cmdline: &str| {
        let payload = Payload { cmdline, ..payload(kernel, modules) };
        plan(&payload, &memory(64)).unwrap_err()
    };
    let large = vec![0; 47 * MIB as usize + 1];
    let below = GuestPhys::new(64 * MIB);
    assert_eq!(
        refused(&file, &[(&[1], ""), (&large, "")], ""),
        PlanError::NoRoomForModule { module: 1, bytes: 47 * MIB + 1, below },
        "an initial RAM disk larger than the memory"
    );
    // 20 MiB are all that the kernel can reach: 4 MiB are left behind it, and 15 MiB before it.
    let low = bzimage_with(0x22c, &(20 * MIB as u32 - 1).to_le_bytes());
    let error = refused(&low, &[(&large[..15 * MIB as usize + 1], "")], "");
    assert_eq!(
        error.to_string(),
        "no 0xf00001 bytes of memory are left below 0x1400000 for module 0",
        "where the kernel cannot reach it"
    );
    let last = plan(&payload(&low, &[(&large[..3 * MIB as usize], "")]), &memory(64)).unwrap();
    assert_eq!(last.placements[1].end(), GuestPhys::new(20 * MIB));

    let line = "x".repeat(2026);
    assert_eq!(refused(&file, &[], &line), PlanError::CommandLine { bytes: 2026, most: 2025 });
    plan(&Payload { cmdline: &line[1..], ..payload(&file, &[]) }, &memory(64)).unwrap();
    assert_eq!(refused(&file, &[(&[1], ""), (&[1], "x")], ""), PlanError::InitrdText { module: 1 });
}

#[test]
fn a_linux_kernel_is_told_how_fast_its_time_stamp_counter_counts() {
    let file = bzimage();
    let told = |cmdline, tsc_khz| {
        let plan = plan(&Payload { cmdline, tsc_khz, ..payload(&file, &[]) }, &memory(64)).unwrap();
        let EntryState::Long64 { rsi, .. } = plan.entry else { panic!("{:?}", plan.entry) };
        text_at(&plan, u32_at(&plan, rsi + 0x228).into())
    };
    assert_eq!(
        told("a tsc=unstable", Some(2_600_000)),
        "tsc_early_khz=2600000 tsc=reliable pci=conf1 reboot=acpi a tsc=unstable"
    );
    assert_eq!(told("", Some(1)), "tsc_early_khz=1 tsc=reliable pci=conf1 reboot=acpi");
    assert_eq!(told("", None), "pci=conf1 reboot=acpi");

    // Judged before it is measured, with room for any rate.
    let line = "x".repeat(2047 - 57);
    let judged = Payload { cmdline: &line, tsc_khz: Some(LONGEST_TSC_KHZ), ..payload(&file, &[]) };
    assert_eq!(plan(&judged, &memory(64)), Err(PlanError::CommandLine { bytes: 1990, most: 1989 }));
    plan(&Payload { cmdline: &line[1..], ..judged }, &memory(64)).unwrap();
}

#[test]
fn a_pvh_note_is_found_in_all_its_forms() {
    let other = [&words(&[4, 5, 5]), &b"GNU\0"[..], b"12345"].concat();
    for align in [0, 1, 4, 8] {
        let boundary = if align == 8 { 8 } else { 4 };
        for description in [&0x20_0010_u64.to_le_bytes()[..], &0x20_0010_u32.to_le_bytes()] {
            let mut notes = other.clone();
            notes.resize(notes.len().next_multiple_of(boundary), 0);
            notes.extend(xen_note(description));
            let mut elf = pvh_elf64();
            elf.segments[1] = note(notes, align);
            assert_eq!(plan_of(&elf.build()).unwrap().entry.rip(), 0x20_0010, "alignment {align}");
        }
    }
    let mut elf = pvh_elf64();
    elf.wide = false;
    elf.machine = 3;
    elf.segments[1] = note(xen_note(&0x20_0010_u32.to_le_bytes()), 4);
    assert_eq!(plan_of(&elf.build()).unwrap().entry.rip(), 0x20_0010);
}

#[test]
fn multiboot_wins_over_pvh_as_on_the_bare_machine() {
    let mut elf = pvh_elf64();
    assert_eq!(plan_of(&elf.build()).unwrap().protocol, Protocol::Pvh);
    elf.segments[0].content[..12].copy_from_slice(&multiboot_header(3, &[]));
    assert_eq!(plan_of(&elf.build()).unwrap().protocol, Protocol::Multiboot1);
    elf.segments[1].kind = PT_NULL;
    assert_eq!(plan_of(&elf.build()).unwrap().protocol, Protocol::Multiboot1);
}

#[test]
fn a_virtual_entry_becomes_the_physical_one_of_its_segment() {
    let mut elf = pvh_elf64();
    elf.segments[0].content[..12].copy_from_slice(&multiboot_header(3, &[]));
    elf.segments.pop();
    elf.entry = 0xffff_ffff_8020_0040;
    assert_eq!(plan_of(&elf.build()).unwrap().entry.rip(), 0x20_0040);
    elf.entry = 0x20_0040;
    assert_eq!(plan_of(&elf.build()).unwrap().entry.rip(), 0x20_0040, "physical already");
}

#[test]
fn address_fields_say_where_a_file_goes() {
    let file = flat(0, 0, 0x10_0040);
    let plan = plan_of(&file).unwrap();
    check(&plan, &memory(64));
    assert_eq!(
        plan.placements[0],
        Placement { at: GuestPhys::new(MIB), bytes: (&file[..]).into(), zeros: 0 }
    );
    assert_eq!(plan.entry.rip(), 0x10_0040);

    let file = flat(0x10_0100, 0x10_2000, 0x10_0040);
    let plan = plan_of(&file).unwrap();
    let expected = Placement { at: GuestPhys::new(MIB), bytes: file[..0x100].into(), zeros: 0x1f00 };
    assert_eq!(plan.placements[0], expected);
}

#[test]
fn address_fields_win_over_elf_segments() {
    let mut elf = pvh_elf64();
    elf.segments.pop();
    let addresses = [0x30_0000, 0x30_0000, 0x30_0100, 0, 0x30_0020];
    elf.segments[0].content[..32].copy_from_slice(&multiboot_header(0x1_0000, &addresses));
    let file = elf.build();
    let plan = plan_of(&file).unwrap();
    assert_eq!(plan.entry.rip(), 0x30_0020);
    let expected = Placement { at: GuestPhys::new(3 * MIB), bytes: file[0x200..0x300].into(), zeros: 0 };
    assert_eq!(plan.placements[0], expected);
}

#[test]
fn a_multiboot_header_lies_within_the_first_8_kib() {
    for (offset, found) in [(0, true), (8192 - 32, true), (8192 - 12, true), (8192 - 8, false), (8192, false)]
    {
        let mut file = vec![0x90; offset];
        let start = 0x10_0000;
        file.extend(multiboot_header(0x1_0000, &[start, start, 0, 0, start]));
        let result = plan_of(&file);
        assert_eq!(result.is_ok(), found, "at {offset}: {result:?}");
    }
    // Not on a boundary of 4, and with a wrong checksum.
    let mut file = flat(0, 0, 0x10_0040);
    file.insert(0, 0x90);
    assert!(plan_of(&file).is_err());
    let mut file = flat(0, 0, 0x10_0040);
    file[0x28] ^= 1;
    assert!(plan_of(&file).is_err());
}

#[test]
fn each_lie_of_an_image_is_named() {
    fn elf32(change: impl FnOnce(&mut ElfFile)) -> Vec<u8> {
        let mut elf = multiboot_elf32();
        change(&mut elf);
        elf.build()
    }
    fn patched(offset: usize, with: &[u8]) -> Vec<u8> {
        let mut file = multiboot_elf32().build();
        file[offset..offset + with.len()].copy_from_slice(with);
        file
    }
    fn pvh(description: &[u8]) -> Vec<u8> {
        let mut elf = pvh_elf64();
        elf.segments[1] = note(xen_note(description), 4);
        elf.build()
    }
    let usable = "there are not all usable guest memory";
    let cases = [
        (b"#!/bin/sh".to_vec(), "not bootable: no Linux bzImage, no ELF, and no Multiboot header (0x1badb002) in its first 8 KiB".into()),
        (
            patched(176, &[0]),
            "not bootable: an ELF without a note `Xen` of type 18 (PVH), and no Multiboot header (0x1badb002) in \
             its first 8 KiB"
                .into(),
        ),
        (
            multiboot_header(0, &[]),
            "not bootable: a Multiboot header without address fields (flag bit 16) in a file that is no ELF".into(),
        ),
        (patched(4, &[3]), "EI_CLASS is 0x3: expected 1 or 2".into()),
        (patched(5, &[2]), "EI_DATA is 0x2: expected 1, little-endian".into()),
        (elf32(|elf| elf.machine = 8), "e_machine is 0x8: expected 3 or 62, x86".into()),
        (elf32(|elf| elf.kind = 3), "e_type is 0x3: expected 2, an executable linked to its address".into()),
        (patched(42, &[56]), "e_phentsize is 0x38: expected 32".into()),
        (patched(44, &[0]), "e_phnum is 0x0: expected 1 to 128".into()),
        (patched(44, &[0xff, 0xff]), "e_phnum is 0xffff: expected 1 to 128".into()),
        (patched(28, &[0xff; 4]), "e_phoff is 0xffffffff: it leads outside the file of 0x430 bytes".into()),
        (
            patched(52 + 4, &[0xff; 4]),
            "p_offset of program header 0 is 0xffffffff: it leads outside the file of 0x430 bytes".into(),
        ),
        (
            elf32(|elf| elf.segments[0].memory_bytes = 0x2ff),
            "p_filesz of program header 0 is 0x300: expected at most p_memsz".into(),
        ),
        (
            elf32(|elf| elf.segments[1].physical_address = 4 * MIB + 0x2ff),
            "p_paddr of program header 1 is 0x4002ff: it would overwrite what is loaded to 0x400000".into(),
        ),
        (
            elf32(|elf| elf.segments[0].physical_address = LOW_END - 0x2ff),
            format!("p_paddr of program header 0 is 0x9fd01: 0x300 bytes {usable}"),
        ),
        (
            elf32(|elf| elf.segments[1].memory_bytes = 60 * MIB),
            format!("p_paddr of program header 1 is 0x401000: 0x3c00000 bytes {usable}"),
        ),
        (
            elf32(|elf| elf.segments[0].physical_address = 0xfee0_0000),
            format!("p_paddr of program header 0 is 0xfee00000: 0x300 bytes {usable}"),
        ),
        (
            {
                let mut elf = pvh_elf64();
                elf.segments[0].physical_address = u64::MAX - 0xff;
                elf.build()
            },
            format!("p_paddr of program header 0 is 0xffffffffffffff00: 0x4000 bytes {usable}"),
        ),
        (elf32(|elf| elf.entry = 4 * MIB + 0x300), "e_entry is 0x400300: nothing is loaded there".into()),
        (elf32(|elf| elf.entry = 5 * MIB), "e_entry is 0x500000: nothing is loaded there".into()),
        (
            pvh(&[0; 2]),
            "XEN_ELFNOTE_PHYS32_ENTRY is 0x2: expected 4 or 8 bytes of address".into(),
        ),
        (
            pvh(&0x1_0000_0000_u64.to_le_bytes()),
            "XEN_ELFNOTE_PHYS32_ENTRY is 0x100000000: expected an address below 4 GiB".into(),
        ),
        (pvh(&[0; 4]), "XEN_ELFNOTE_PHYS32_ENTRY is 0x0: nothing is loaded there".into()),
        (
            elf32(|elf| elf.segments[0].content[..12].copy_from_slice(&multiboot_header(4, &[]))),
            "flags is 0x4: expected none of the bits 2 to 15, which demand what is not given".into(),
        ),
        (
            multiboot_header(0x1_0000, &[MIB as u32, MIB as u32, 0, 0]),
            "entry_addr is 0x1c: it leads outside the file of 0x1c bytes".into(),
        ),
        (
            multiboot_header(0x1_0000, &[0x10_0000, 0x10_0001, 0, 0, 0x10_0000]),
            "load_addr is 0x100001: expected at most header_addr".into(),
        ),
        (
            multiboot_header(0x1_0000, &[0x10_0004, 0x10_0000, 0, 0, 0x10_0000]),
            "load_addr is 0x100000: it leads outside the file of 0x20 bytes".into(),
        ),
        (flat(0xf_ffff, 0, 0x10_0040), "load_end_addr is 0xfffff: expected at least load_addr".into()),
        (
            flat(0x10_0181, 0, 0x10_0040),
            "load_end_addr is 0x100181: it leads outside the file of 0x180 bytes".into(),
        ),
        (
            flat(0x10_0180, 0x10_017f, 0x10_0040),
            "bss_end_addr is 0x10017f: expected at least the end of what is loaded".into(),
        ),
        (flat(0, 0xffff_ffff, 0x10_0040), format!("load_addr is 0x100000: 0xffefffff bytes {usable}")),
        (flat(0, 0, 0x10_0180), "entry_addr is 0x100180: nothing is loaded there".into()),
        (bzimage_with(0x1fe, &[0]), "boot_flag is 0xaa00: expected 0xaa55".into()),
        (bzimage_with(0x206, &[0x0b]), "version is 0x20b: expected at least 0x20c: Linux 3.8 or later".into()),
        (
            bzimage_with(0x201, &[0x61]),
            "jump is 0x61: expected 0x62 to 0x8e, a header that ends behind init_size".into(),
        ),
        (
            bzimage_with(0x201, &[0x8f]),
            "jump is 0x8f: expected 0x62 to 0x8e, a header that ends behind init_size".into(),
        ),
        (bzimage_with(0x211, &[0]), "loadflags is 0x0: expected bit 0, a bzImage rather than a zImage".into()),
        (bzimage_with(0x236, &[0x7e]), "xloadflags is 0x7e: expected bit 0, a 64-bit kernel".into()),
        (bzimage_with(0x1f1, &[5]), "setup_sects is 0x5: it leads outside the file of 0xa00 bytes".into()),
        (bzimage_with(0x1f1, &[0]), "syssize is 0x60: it leads outside the file of 0xa00 bytes".into()),
        (bzimage_with(0x1f4, &[0x61]), "syssize is 0x61: it leads outside the file of 0xa00 bytes".into()),
        (
            bzimage_with(0x1f4, &[0xff; 4]),
            "syssize is 0xffffffff: it leads outside the file of 0xa00 bytes".into(),
        ),
        (
            bzimage_with(0x1f4, &[0x20]),
            "syssize is 0x20: expected more than 0x20: the entry point is 0x200 bytes behind the start".into(),
        ),
        (
            bzimage_with(0x260, &0x5ff_u32.to_le_bytes()),
            "init_size is 0x5ff: expected at least 16 times syssize, which is loaded".into(),
        ),
        (
            bzimage_with(0x260, &(49 * MIB as u32).to_le_bytes()),
            format!("pref_address is 0x1000000: 0x3100000 bytes {usable}"),
        ),
        (
            bzimage_with(0x258, &(LOW_END - 0x1000).to_le_bytes()),
            format!("pref_address is 0x9f000: 0x100000 bytes {usable}"),
        ),
        (
            bzimage_with(0x258, &(HIGH_START - 0x200).to_le_bytes()),
            "pref_address is 0xfffffe00: expected an address below 4 GiB".into(),
        ),
        (
            bzimage_with(0x258, &[0xff; 8]),
            "pref_address is 0xffffffffffffffff: expected an address below 4 GiB".into(),
        ),
        (bzimage()[..0x262].to_vec(), "not bootable: a Linux bzImage that is cut off within its header, after 610 bytes".into()),
    ];
    for (file, expected) in cases {
        let error = plan_of(&file).expect_err(&expected);
        assert_eq!(error.to_string(), format!("kernel: {expected}"));
    }
}

#[test]
fn boot_data_and_modules_make_way() {
    // A kernel over the usual place of the boot data: the next free page.
    let mut elf = multiboot_elf32();
    elf.segments[1] = load_at(0xfff0, vec![1; 0x11], 0x2000);
    let file = elf.build();
    let plan = plan_of(&file).unwrap();
    check(&plan, &memory(64));
    assert_eq!(boot_data(&plan), 0x1_2000);

    // One over all of low memory: behind the module, which lies behind the kernel.
    elf.segments[1] = load_at(0, vec![1; 0x11], LOW_END);
    let file = elf.build();
    let plan = plan_of(&file).unwrap();
    check(&plan, &memory(64));
    assert_eq!(boot_data(&plan), 0x40_0000 + 0x1000 + 0x2000);

    // One that ends where memory does: what is behind it moves before it.
    elf.segments[1] = load_at(60 * MIB, vec![1; 0x11], 4 * MIB);
    let file = elf.build();
    let plan = plan_of(&file).unwrap();
    check(&plan, &memory(64));
    assert_eq!(plan.placements[2].at, GuestPhys::new(MIB));
}

#[test]
fn modules_lie_on_pages_of_their_own_in_their_order() {
    let file = multiboot_elf32().build();
    let modules: [(&[u8], &str); 3] = [(&[1; 4096], "one"), (&[], ""), (&[3; 1], "three")];
    let plan = plan(&payload(&file, &modules), &memory(64)).unwrap();
    check(&plan, &memory(64));
    let list = u64::from(u32_at(&plan, boot_data(&plan) + 24));
    let starts: Vec<u32> = (0..3).map(|module| u32_at(&plan, list + 16 * module)).collect();
    assert_eq!(starts, [0x100_1000, 0x100_2000, 0x100_3000]);
    assert_eq!(u32_at(&plan, list + 16 + 4), 0x100_2000, "an empty module ends where it starts");
}

#[test]
fn what_does_not_fit_is_named() {
    let file = multiboot_elf32().build();
    let large = vec![0; 48 * MIB as usize];
    let too_much = plan(&payload(&file, &[(&[1], ""), (&large, "")]), &memory(64));
    assert_eq!(
        too_much,
        Err(PlanError::NoRoomForModule { module: 1, bytes: 48 * MIB, below: GuestPhys::new(64 * MIB) })
    );

    // A megabyte is enough for a guest in low memory, but for nothing beside it.
    let mut elf = multiboot_elf32();
    elf.entry = 0x8000;
    elf.segments = vec![load_at(0x8000, elf.segments.remove(0).content, 0x300)];
    let file = elf.build();
    check(&plan(&payload(&file, &[]), &memory(1)).unwrap(), &memory(1));
    let module = plan(&payload(&file, &[(&[1], "")]), &memory(1));
    assert_eq!(module, Err(PlanError::NoRoomForModule { module: 0, bytes: 1, below: GuestPhys::new(MIB) }));
    elf.segments[0].memory_bytes = LOW_END - 0x8000;
    let file = elf.build();
    let full = plan(&payload(&file, &[]), &memory(1));
    assert!(matches!(full, Err(PlanError::NoRoomForBootData { .. })), "{full:?}");
}

#[test]
fn a_guest_with_more_than_3_gib_has_the_rest_above_4_gib() {
    let big = memory(5 * 1024);
    let ram: Vec<_> = big.ram().collect();
    assert_eq!(ram, [(GuestPhys::new(0), 3 << 30), (GuestPhys::new(4 << 30), 2 << 30)]);
    let file = multiboot_elf32().build();
    let plan = plan(&payload(&file, &[]), &big).unwrap();
    check(&plan, &big);
    assert_eq!(u32_at(&plan, boot_data(&plan) + 8), (3 << 20) - 1024, "mem_upper ends at the hole");
}

#[test]
fn the_memory_map_tells_no_lies() {
    for pages in [256, 257, 4096, 0xc_0000 - 1, 0xc_0000, 0xc_0000 + 1, 64 << 18] {
        let memory = GuestMemory::new(pages * 4096).unwrap();
        assert_eq!(memory.ram().map(|(_, bytes)| bytes).sum::<u64>(), pages * 4096);
        let map = memory.map();
        assert!(map.windows(2).all(|pair| pair[0].start.raw() + pair[0].bytes <= pair[1].start.raw()));
        for region in &map {
            assert!(region.bytes > 0);
            let usable = region.kind == RegionKind::Ram;
            assert_eq!(memory.is_usable(region.start, region.bytes), usable, "{region:?}");
            let last = region.start.raw() + region.bytes - 1;
            assert_eq!(memory.is_usable(GuestPhys::new(last), 1), usable, "{region:?}");
            assert!(!memory.is_usable(region.start, region.bytes + 1), "{region:?}");
        }
        assert!(!memory.is_usable(GuestPhys::new(1), u64::MAX));
    }
    for bytes in [0, MIB - 4096, MIB + 1, crate::config::MAX_MEMORY_BYTES + 4096, u64::MAX] {
        assert_eq!(GuestMemory::new(bytes), None);
    }
}

/// One image of each kind, to be mangled.
fn samples() -> [Vec<u8>; 5] {
    let mut both = pvh_elf64();
    both.segments[0].content[..12].copy_from_slice(&multiboot_header(3, &[]));
    let flat = flat(0x10_0100, 0x10_2000, 0x10_0040);
    [multiboot_elf32().build(), pvh_elf64().build(), both.build(), flat, bzimage()]
}

#[test]
fn every_truncation_is_refused_or_planned_within_memory() {
    for file in samples() {
        for length in 0..file.len() {
            if let Ok(plan) = plan_of(&file[..length]) {
                check(&plan, &memory(64));
            }
        }
        plan_of(&file).unwrap();
    }
}

#[test]
fn every_flipped_bit_is_refused_or_planned_within_memory() {
    for mut file in samples() {
        for bit in 0..file.len() * 8 {
            file[bit / 8] ^= 1 << (bit % 8);
            if let Ok(plan) = plan_of(&file) {
                check(&plan, &memory(64));
            }
            file[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

proptest! {
    #[test]
    fn mangled_headers_never_lead_outside_memory(
        sample in 0..5_usize,
        changes in proptest::collection::vec((0..0x264_usize, any::<[u8; 4]>()), 1..4),
        mib in 1..8_u64,
    ) {
        let mut file = samples()[sample].clone();
        for (offset, with) in changes {
            let offset = offset / 4 * 4 % (file.len() - 4);
            file[offset..offset + 4].copy_from_slice(&with);
        }
        let memory = memory(mib);
        if let Ok(plan) = plan(&payload(&file, &[(&file, "")]), &memory) {
            check(&plan, &memory);
        }
    }

    #[test]
    fn notes_of_any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200), align in 0..9_u64) {
        let mut elf = pvh_elf64();
        elf.segments[1] = note(bytes, align);
        prop_assert!(plan_of(&elf.build()).is_err());
    }
}
