//! The register file through both doors, bit by bit, and the modes between them.

use super::super::registers::MMIO_BYTES;
use super::*;

// The register page.

#[test]
fn the_chip_says_what_it_is() {
    let mut chip = VirtualLapic::new(ApicId(5), false, MODEL);
    assert_eq!(read(&mut chip, 0x20), 5 << 24);
    assert_eq!(read(&mut chip, 0x30), 0x0105_0014);
    assert_eq!(read(&mut chip, 0xe0), 0xffff_ffff);
    assert_eq!(read(&mut chip, SVR), 0xff);
    for offset in (0x320..=0x370).step_by(0x10) {
        assert_eq!(read(&mut chip, offset), MASKED);
    }
    assert_eq!(chip.read_msr(MSR_APIC_BASE, 0), Ok(0xfee0_0800));
    assert_eq!(xapic().read_msr(MSR_APIC_BASE, 0), Ok(BASE_XAPIC));
}

/// Every register of the page: offset and the bits a write of all-ones, then all-zeroes, leaves.
const PAGE: [(u64, u64, u64); 22] = [
    (0x020, 0, 0),
    (0x030, 0x0105_0014, 0x0105_0014),
    (0x080, 0xff, 0),
    (0x0b0, 0, 0),
    (0x0d0, 0xff00_0000, 0),
    (0x0e0, 0xffff_ffff, 0x0fff_ffff),
    (0x0f0, 0x13ff, 0),
    (0x100, 0, 0),
    (0x180, 0, 0),
    (0x200, 0, 0),
    (0x280, 0, 0),
    (0x300, 0x000c_cfff, 0),
    (0x310, 0xff00_0000, 0),
    (0x320, 0x0007_00ff, 0),
    (0x330, 0x0001_07ff, 0),
    (0x340, 0x0001_07ff, 0),
    (0x350, 0x0001_a7ff, 0),
    (0x360, 0x0001_a7ff, 0),
    (0x370, 0x0001_00ff, 0),
    (0x380, 0xffff_ffff, 0),
    (0x390, 0, 0),
    (0x3e0, 0xb, 0),
];

#[test]
fn page_registers_keep_exactly_their_writable_bits() {
    for (offset, ones, zeroes) in PAGE {
        let mut chip = xapic();
        write(&mut chip, offset, u64::MAX);
        let current = if offset == 0x380 { 0 } else { read(&mut chip, TIMER_CURRENT) };
        assert_eq!((read(&mut chip, offset), current), (ones, 0), "{offset:#x}");
        let mut chip = xapic();
        write(&mut chip, offset, 0);
        assert_eq!(read(&mut chip, offset), zeroes, "{offset:#x}");
    }
}

#[test]
fn absent_registers_are_an_error_and_nothing_else() {
    let mut known: Vec<u64> = PAGE.iter().map(|&(offset, ..)| offset).collect();
    known.extend([0x090, 0x0a0, 0x0c0]);
    known.extend((0x100..0x280).step_by(0x10));
    for offset in (0..MMIO_BYTES).step_by(0x10).filter(|offset| !known.contains(offset)) {
        let mut chip = xapic();
        assert_eq!(read(&mut chip, offset), 0);
        assert_eq!(errors(&mut chip), 0x80, "{offset:#x}");
        assert_eq!(write(&mut chip, offset, 0x51), Effect::None);
        assert_eq!(errors(&mut chip), 0x80, "{offset:#x}");
        assert_eq!(errors(&mut chip), 0, "latched once");
        assert_eq!(chip.pending(), None);
    }
}

#[test]
fn only_aligned_writes_of_four_bytes_count() {
    let mut chip = xapic();
    for (offset, bytes) in [(TPR, 1), (TPR, 2), (TPR + 1, 4), (TPR + 4, 4), (TPR - 4, 8)] {
        chip.mmio_write(offset, bytes, u64::MAX, 0);
        assert_eq!(read(&mut chip, TPR), 0);
    }
    chip.mmio_write(TPR, 8, 0x40, 0);
    assert_eq!(read(&mut chip, TPR), 0x40);
    assert_eq!(chip.mmio_read(0x30, 1, 0), 0x14);
    assert_eq!(chip.mmio_read(0x32, 1, 0), 0x05);
    assert_eq!(chip.mmio_read(0x32, 2, 0), 0x0105);
    assert_eq!(chip.mmio_read(0x30, 8, 0), 0x0105_0014);
    assert_eq!(chip.mmio_read(0x34, 4, 0), 0);
    assert_eq!(chip.mmio_read(0x3f, 4, 0), 0);
}

#[test]
fn outside_xapic_mode_the_page_reads_all_ones_and_ignores_writes() {
    for base in [0xfee0_0100, BASE_X2APIC] {
        let mut chip = xapic();
        chip.write_msr(MSR_APIC_BASE, base, 0).unwrap();
        for offset in 0..MMIO_BYTES {
            assert_eq!(chip.mmio_write(offset, 4, u64::MAX, 0), Effect::None);
            for (bytes, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff), (8, u64::MAX)] {
                assert_eq!(chip.mmio_read(offset, bytes, 0), ones);
            }
        }
        assert_eq!(chip.cr8(), 0);
    }
}

// APIC_BASE.

#[test]
fn modes_change_only_along_the_legal_ways() {
    const DISABLED: u64 = 0xfee0_0100;
    const INVALID: u64 = 0xfee0_0500;
    let reach = |base: u64| {
        let mut chip = xapic();
        if base != BASE_XAPIC {
            chip.write_msr(MSR_APIC_BASE, base, 0).unwrap();
        }
        chip
    };
    for (from, to, legal) in [
        (DISABLED, DISABLED, true),
        (DISABLED, BASE_XAPIC, true),
        (DISABLED, BASE_X2APIC, false),
        (BASE_XAPIC, DISABLED, true),
        (BASE_XAPIC, BASE_XAPIC, true),
        (BASE_XAPIC, BASE_X2APIC, true),
        (BASE_X2APIC, DISABLED, true),
        (BASE_X2APIC, BASE_XAPIC, false),
        (BASE_X2APIC, BASE_X2APIC, true),
        (DISABLED, INVALID, false),
        (BASE_XAPIC, INVALID, false),
        (BASE_X2APIC, INVALID, false),
    ] {
        let mut chip = reach(from);
        assert_eq!(chip.write_msr(MSR_APIC_BASE, to, 0).is_ok(), legal, "{from:#x} to {to:#x}");
        assert_eq!(chip.read_msr(MSR_APIC_BASE, 0), Ok(if legal { to } else { from }));
    }
}

#[test]
fn reserved_bits_of_apic_base_fault_and_the_page_can_move() {
    for bit in 0..64 {
        let mut chip = xapic();
        let value = BASE_XAPIC | 1 << bit;
        let legal = matches!(bit, 8 | 10 | 11 | 12..40);
        assert_eq!(chip.write_msr(MSR_APIC_BASE, value, 0).is_ok(), legal, "{bit}");
    }
    let mut chip = xapic();
    chip.write_msr(MSR_APIC_BASE, 0xfed4_0800, 0).unwrap();
    assert_eq!(chip.mmio_base(), GuestPhys::new(0xfed4_0000));
    assert_eq!(chip.read_msr(MSR_APIC_BASE, 0), Ok(0xfed4_0900), "the bootstrap bit is read-only");
    let narrow = LapicModel { x2apic: false, physical_address_bits: 0 };
    let mut chip = VirtualLapic::new(ApicId(0), true, narrow);
    assert_eq!(chip.write_msr(MSR_APIC_BASE, BASE_X2APIC, 0), Err(GeneralProtection));
    assert_eq!(chip.write_msr(MSR_APIC_BASE, BASE_XAPIC | 1 << 32, 0), Err(GeneralProtection));
}

#[test]
fn disabling_resets_the_registers_and_enabling_starts_afresh() {
    let mut chip = xapic();
    for (offset, ..) in PAGE {
        write(&mut chip, offset, 0x0151_5151);
    }
    chip.accept(v(0x91), TriggerMode::Level);
    chip.accept(v(0x81), TriggerMode::Level);
    take(&mut chip, v(0x91));
    assert_eq!(chip.write_msr(MSR_APIC_BASE, 0xfee0_0100, 0), Ok(Effect::AcceptanceChanged));
    assert_eq!((chip.pending(), chip.eoi(), chip.deadline()), (None, None, None));
    assert!(!chip.receive(Delivery::Fixed(0x51), TriggerMode::Edge));
    assert_eq!(chip.write_msr(MSR_APIC_BASE, BASE_XAPIC, 0), Ok(Effect::AcceptanceChanged));
    let mut fresh = VirtualLapic::new(ApicId(0), true, MODEL);
    for offset in (0..MMIO_BYTES).step_by(0x10) {
        assert_eq!(read(&mut chip, offset), read(&mut fresh, offset), "{offset:#x}");
    }
}

// x2APIC.

#[test]
fn outside_x2apic_mode_its_registers_do_not_exist() {
    let mut disabled = xapic();
    disabled.write_msr(MSR_APIC_BASE, 0xfee0_0100, 0).unwrap();
    for mut chip in [xapic(), disabled] {
        for msr in 0x800..0x900 {
            assert_eq!(chip.read_msr(msr, 0), Err(GeneralProtection));
            assert_eq!(chip.write_msr(msr, 0, 0), Err(GeneralProtection));
        }
    }
}

/// Every x2APIC register: number, whether it can be read, and the bits that can be written, if any can.
fn x2apic_registers() -> Vec<(u32, bool, Option<u64>)> {
    let mut table = vec![
        (0x802, true, None),
        (0x803, true, None),
        (0x808, true, Some(0xff)),
        (0x809, true, None),
        (0x80a, true, None),
        (0x80b, false, Some(0)),
        (0x80d, true, None),
        (0x80f, true, Some(0x13ff)),
        (0x828, true, Some(0)),
        (0x830, true, Some(0xffff_ffff_000c_cfff)),
        (0x832, true, Some(0x0007_10ff)),
        (0x833, true, Some(0x0001_17ff)),
        (0x834, true, Some(0x0001_17ff)),
        (0x835, true, Some(0x0001_f7ff)),
        (0x836, true, Some(0x0001_f7ff)),
        (0x837, true, Some(0x0001_10ff)),
        (0x838, true, Some(0xffff_ffff)),
        (0x839, true, None),
        (0x83e, true, Some(0xb)),
        (0x83f, false, Some(0xff)),
    ];
    table.extend((0x810..0x828).map(|msr| (msr, true, None)));
    table
}

#[test]
fn x2apic_faults_on_every_absent_register_wrong_direction_and_reserved_bit() {
    let table = x2apic_registers();
    for msr in (0..0x1b).chain(0x1c..0x20).chain(0x7f0..0x910) {
        let (readable, writable) = table
            .iter()
            .find(|&&(number, ..)| number == msr)
            .map_or((false, None), |&(_, readable, writable)| (readable, writable));
        assert_eq!(x2apic(0).read_msr(msr, 0).is_ok(), readable, "read {msr:#x}");
        assert_eq!(x2apic(0).write_msr(msr, 0, 0).is_ok(), writable.is_some(), "write {msr:#x}");
        for bit in 0..64 {
            let legal = writable.is_some_and(|bits| bits >> bit & 1 != 0);
            assert_eq!(x2apic(0).write_msr(msr, 1 << bit, 0).is_ok(), legal, "{msr:#x} bit {bit}");
        }
    }
}

#[test]
fn a_fault_changes_nothing() {
    let mut chip = x2apic(0);
    chip.write_msr(0x832, 0x51, 0).unwrap();
    assert_eq!(chip.write_msr(0x832, 1 << 19 | 0x61, 0), Err(GeneralProtection), "a reserved bit");
    assert_eq!(chip.read_msr(0x832, 0), Ok(0x51));
    chip.accept(v(0x51), TriggerMode::Level);
    take(&mut chip, v(0x51));
    assert_eq!(chip.write_msr(0x80b, 1, 0), Err(GeneralProtection));
    assert!(matches!(chip.write_msr(0x80b, 0, 0), Ok(Effect::Eoi(_))));
}

#[test]
fn x2apic_identity_is_derived_and_read_only() {
    for (id, ldr) in
        [(0, 0x0000_0001), (3, 0x0000_0008), (15, 0x0000_8000), (16, 0x0001_0001), (31, 0x0001_8000)]
    {
        let chip = x2apic(id);
        assert_eq!((chip.read_msr(0x802, 0), chip.read_msr(0x80d, 0)), (Ok(u64::from(id)), Ok(ldr)));
    }
}

#[test]
fn the_command_register_is_one_word_in_x2apic_mode() {
    let mut chip = x2apic(0);
    let destination = Destination::x2apic(0x1_0003, DestinationMode::Logical);
    let ipi = Ipi { delivery: Delivery::Fixed(0x51), target: IpiTarget::Addressed(destination) };
    assert_eq!(chip.write_msr(0x830, 0x0001_0003_0000_0851, 0), Ok(Effect::Ipi(ipi)));
    assert_eq!(chip.read_msr(0x830, 0), Ok(0x0001_0003_0000_0851));
    assert_eq!(chip.write_msr(0x83f, 0x61, 0), Ok(Effect::None));
    assert_eq!(chip.pending(), Some(v(0x61)));
    chip.write_msr(0x83f, 0x0f, 0).unwrap();
    chip.write_msr(0x828, 0, 0).unwrap();
    assert_eq!(chip.read_msr(0x828, 0), Ok(0x20));
}
