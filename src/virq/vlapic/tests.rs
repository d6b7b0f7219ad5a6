//! The chip by itself: priorities, the register file through both doors, modes, errors, and what may be written.

use super::registers::MMIO_BYTES;
use super::*;
use crate::virq::message::IpiTarget;

const MODEL: LapicModel = LapicModel { x2apic: true, physical_address_bits: 40 };
const MSR_APIC_BASE: u32 = 0x1b;
const BASE_XAPIC: u64 = 0xfee0_0900;
const BASE_X2APIC: u64 = 0xfee0_0d00;
const TPR: u64 = 0x80;
const EOI: u64 = 0xb0;
const SVR: u64 = 0xf0;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const LVT_TIMER: u64 = 0x320;
const LVT_ERROR: u64 = 0x370;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;
const MASKED: u64 = 1 << 16;

fn v(raw: u8) -> Vector {
    Vector::new(raw).unwrap()
}

fn vectors() -> impl Iterator<Item = Vector> {
    (0..=u8::MAX).filter_map(Vector::new)
}

fn write(chip: &mut VirtualLapic, offset: u64, value: u64) -> Effect {
    chip.mmio_write(offset, 4, value, 0)
}

fn read(chip: &mut VirtualLapic, offset: u64) -> u64 {
    chip.mmio_read(offset, 4, 0)
}

/// A boot CPU's chip in xAPIC mode, enabled by software.
fn xapic() -> VirtualLapic {
    let mut chip = VirtualLapic::new(ApicId(0), true, MODEL);
    assert_eq!(write(&mut chip, SVR, 0x1ff), Effect::AcceptanceChanged);
    chip
}

fn x2apic(id: u32) -> VirtualLapic {
    let mut chip = VirtualLapic::new(ApicId(id), true, MODEL);
    chip.write_msr(MSR_APIC_BASE, BASE_X2APIC, 0).unwrap();
    chip.write_msr(0x80f, 0x1ff, 0).unwrap();
    chip
}

/// What a fresh error latch shows.
fn errors(chip: &mut VirtualLapic) -> u64 {
    write(chip, ESR, 0);
    read(chip, ESR)
}

// Priorities.

#[test]
fn a_vector_is_pending_exactly_when_its_class_is_above_the_processor_priority() {
    for tpr in 0..=u8::MAX {
        for serviced in [None, Some(v(0x2f)), Some(v(0x51)), Some(v(0xa0)), Some(v(0xff))] {
            let mut chip = xapic();
            if let Some(vector) = serviced {
                chip.accept(vector, TriggerMode::Edge);
                chip.acknowledge(vector);
            }
            write(&mut chip, TPR, u64::from(tpr));
            let serviced_class = serviced.map_or(0, Vector::class);
            let ppr = if tpr >> 4 >= serviced_class { tpr } else { serviced_class << 4 };
            assert_eq!(read(&mut chip, 0xa0), u64::from(ppr));
            for vector in [0x20, 0x50, 0x52, 0x60, 0x9f, 0xaf, 0xb0, 0xfe].map(v) {
                let mut chip = VirtualLapic { irr: VectorSet::EMPTY, isr: chip.isr, ..xapic() };
                write(&mut chip, TPR, u64::from(tpr));
                chip.accept(vector, TriggerMode::Edge);
                assert_eq!(chip.pending(), (vector.class() > ppr >> 4).then_some(vector));
            }
        }
    }
}

#[test]
fn interrupts_nest_by_class_and_end_from_the_highest() {
    let mut chip = xapic();
    for vector in [0x31, 0x51, 0x52, 0x71].map(v) {
        assert!(chip.accept(vector, TriggerMode::Edge));
    }
    assert_eq!(chip.pending(), Some(v(0x71)));
    chip.acknowledge(v(0x71));
    assert_eq!(chip.pending(), None);
    assert!(chip.accept(v(0x81), TriggerMode::Edge));
    chip.acknowledge(v(0x81));
    assert_eq!(chip.eoi().map(|eoi| eoi.vector), Some(v(0x81)));
    assert_eq!(chip.pending(), None, "0x71 is still in service");
    assert_eq!(chip.eoi().map(|eoi| eoi.vector), Some(v(0x71)));
    for vector in [0x52, 0x51, 0x31].map(v) {
        assert_eq!(chip.pending(), Some(vector));
        chip.acknowledge(vector);
        assert_eq!(chip.eoi().map(|eoi| eoi.vector), Some(vector));
    }
    assert_eq!((chip.pending(), chip.eoi()), (None, None));
}

#[test]
fn a_vector_that_waits_absorbs_another_but_one_in_service_does_not() {
    let mut chip = xapic();
    assert!(chip.accept(v(0x51), TriggerMode::Edge));
    assert!(chip.accept(v(0x51), TriggerMode::Edge));
    chip.acknowledge(v(0x51));
    assert_eq!(chip.acknowledge(v(0x51)), None);
    assert!(chip.accept(v(0x51), TriggerMode::Edge));
    chip.eoi();
    assert_eq!(chip.pending(), Some(v(0x51)));
}

#[test]
fn tmr_follows_the_last_acceptance_and_decides_the_eoi() {
    let mut chip = xapic();
    for trigger in
        [TriggerMode::Level, TriggerMode::Level, TriggerMode::Edge, TriggerMode::Edge, TriggerMode::Level]
    {
        chip.accept(v(0x79), trigger);
        assert_eq!(read(&mut chip, 0x1b0) >> 0x19 & 1, u64::from(trigger == TriggerMode::Level));
        assert_eq!(chip.acknowledge(v(0x79)), Some(trigger));
        let broadcast = trigger == TriggerMode::Level;
        assert_eq!(chip.eoi(), Some(Eoi { vector: v(0x79), trigger, broadcast }));
    }
}

#[test]
fn n16_suppressed_broadcasts_stay_inside() {
    let mut chip = xapic();
    write(&mut chip, SVR, 0x11ff);
    assert_eq!(read(&mut chip, SVR), 0x11ff);
    chip.accept(v(0x51), TriggerMode::Level);
    chip.acknowledge(v(0x51));
    let eoi = Eoi { vector: v(0x51), trigger: TriggerMode::Level, broadcast: false };
    assert_eq!(write(&mut chip, EOI, 0), Effect::Eoi(eoi));
}

#[test]
fn every_waiting_and_serviced_vector_shows_at_its_bit() {
    for vector in vectors() {
        let mut chip = xapic();
        chip.accept(vector, TriggerMode::Level);
        let offset = u64::from(vector.get() >> 5) << 4;
        let bit = 1 << (vector.get() & 31);
        assert_eq!((read(&mut chip, 0x200 + offset), read(&mut chip, 0x180 + offset)), (bit, bit));
        chip.acknowledge(vector);
        assert_eq!((read(&mut chip, 0x200 + offset), read(&mut chip, 0x100 + offset)), (0, bit));
        assert_eq!(write(&mut chip, 0x100 + offset, 0), Effect::None);
        assert_eq!(read(&mut chip, 0x100 + offset), bit, "read-only");
    }
}

#[test]
fn d14_a_disabled_chip_accepts_nothing_but_keeps_what_it_has() {
    let mut chip = xapic();
    for offset in (0x320..=0x370).step_by(0x10) {
        write(&mut chip, offset, 0x51);
    }
    chip.accept(v(0x51), TriggerMode::Level);
    assert_eq!(write(&mut chip, SVR, 0xff), Effect::AcceptanceChanged);
    assert!(!chip.accept(v(0x61), TriggerMode::Level));
    assert_eq!(chip.pending(), Some(v(0x51)));
    assert!(chip.receive(Delivery::Nmi, TriggerMode::Edge));
    for offset in (0x320..=0x370).step_by(0x10) {
        assert_eq!(read(&mut chip, offset), 0x51 | MASKED, "entries are masked");
        write(&mut chip, offset, 0x61);
        assert_eq!(read(&mut chip, offset), 0x61 | MASKED, "and stay so");
    }
    assert_eq!(write(&mut chip, SVR, 0x1ff), Effect::AcceptanceChanged);
    assert_eq!(write(&mut chip, SVR, 0x1fe), Effect::None);
    assert!(chip.accept(v(0x61), TriggerMode::Level));
    let fresh = VirtualLapic::new(ApicId(0), true, MODEL);
    assert!(!fresh.accepts_interrupts(), "as after reset");
}

#[test]
fn cr8_is_the_class_of_the_task_priority() {
    let mut chip = xapic();
    write(&mut chip, TPR, 0x5a);
    assert_eq!(chip.cr8(), 5);
    for value in 0..=15 {
        assert_eq!(chip.set_cr8(value), Ok(()));
        assert_eq!((chip.cr8(), read(&mut chip, TPR)), (value, value << 4));
    }
    for value in [16, 1 << 32, u64::MAX] {
        assert_eq!(chip.set_cr8(value), Err(GeneralProtection));
    }
    chip.write_msr(MSR_APIC_BASE, 0xfee0_0100, 0).unwrap();
    assert_eq!(chip.set_cr8(9), Ok(()));
    assert_eq!(chip.write_msr(MSR_APIC_BASE, 0xfee0_0100, 0), Ok(Effect::None));
    assert_eq!(chip.cr8(), 9, "CR8 works with the chip disabled");
}

#[test]
fn non_maskable_interrupts_latch_one_behind_the_one_to_take() {
    let mut chip = xapic();
    for _ in 0..10 {
        chip.receive(Delivery::Nmi, TriggerMode::Edge);
    }
    chip.take_nmi();
    chip.take_nmi();
    assert!(!chip.has_nmi());
    chip.receive(Delivery::Nmi, TriggerMode::Edge);
    chip.receive(Delivery::Nmi, TriggerMode::Edge);
    chip.collapse_nmis();
    chip.take_nmi();
    assert!(!chip.has_nmi());
    chip.take_nmi();
    assert!(!chip.has_nmi());
}

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
    (0x320, 0x0003_00ff, 0),
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
    known.push(0x0a0);
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
    chip.acknowledge(v(0x91));
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
        (0x80a, true, None),
        (0x80b, false, Some(0)),
        (0x80d, true, None),
        (0x80f, true, Some(0x13ff)),
        (0x828, true, Some(0)),
        (0x830, true, Some(0xffff_ffff_000c_dfff)),
        (0x832, true, Some(0x0003_10ff)),
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
    assert_eq!(chip.write_msr(0x832, 1 << 18 | 0x61, 0), Err(GeneralProtection), "no TSC-deadline mode");
    assert_eq!(chip.read_msr(0x832, 0), Ok(0x51));
    chip.accept(v(0x51), TriggerMode::Level);
    chip.acknowledge(v(0x51));
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
    assert_eq!(chip.write_msr(0x830, 0x0001_0003_0000_1851, 0), Ok(Effect::Ipi(ipi)));
    assert_eq!(chip.read_msr(0x830, 0), Ok(0x0001_0003_0000_0851), "delivery status is never seen set");
    assert_eq!(chip.write_msr(0x83f, 0x61, 0), Ok(Effect::None));
    assert_eq!(chip.pending(), Some(v(0x61)));
    chip.write_msr(0x83f, 0x0f, 0).unwrap();
    chip.write_msr(0x828, 0, 0).unwrap();
    assert_eq!(chip.read_msr(0x828, 0), Ok(0x20));
}

// Destinations.

#[test]
fn physical_destinations_match_one_or_everyone() {
    let chips = [VirtualLapic::new(ApicId(3), false, MODEL), x2apic(3)];
    for chip in chips {
        for id in 0..=u8::MAX {
            let matched = chip.matches(Destination::xapic(id, DestinationMode::Physical));
            assert_eq!(matched, id == 3 || id == 0xff, "{id:#x}");
        }
        for (id, expected) in [(3, true), (0xff, false), (0x103, false), (u32::MAX, true)] {
            assert_eq!(chip.matches(Destination::x2apic(id, DestinationMode::Physical)), expected);
        }
    }
}

#[test]
fn logical_destinations_match_by_the_model_in_force() {
    let mut chip = xapic();
    for ldr in 0..=u8::MAX {
        write(&mut chip, 0xd0, u64::from(ldr) << 24);
        for id in 0..=u8::MAX {
            let destination = Destination::xapic(id, DestinationMode::Logical);
            write(&mut chip, 0xe0, 0xffff_ffff);
            assert_eq!(chip.matches(destination), ldr & id != 0, "flat");
            write(&mut chip, 0xe0, 0x0fff_ffff);
            let same_cluster = id >> 4 == 0xf || id >> 4 == ldr >> 4;
            assert_eq!(chip.matches(destination), same_cluster && ldr & id & 0xf != 0, "cluster");
            write(&mut chip, 0xe0, 0x7fff_ffff);
            assert!(!chip.matches(destination), "a model that does not exist");
        }
    }
}

#[test]
fn x2apic_logical_destinations_are_clusters_of_sixteen() {
    let chip = x2apic(0x12);
    let matches = |id| chip.matches(Destination::x2apic(id, DestinationMode::Logical));
    assert!(matches(0x0001_0004));
    assert!(matches(0x0001_ffff));
    assert!(!matches(0x0001_0003));
    assert!(!matches(0x0000_0004));
    assert!(matches(u32::MAX));
    // Eight bits from the IO-APIC reach the first eight CPUs.
    for id in 0..8 {
        let chip = x2apic(id);
        assert_eq!(chip.matches(Destination::xapic(0x0d, DestinationMode::Logical)), 0x0d >> id & 1 != 0);
    }
}

#[test]
fn a_disabled_chip_is_addressed_by_nobody() {
    let mut chip = xapic();
    chip.write_msr(MSR_APIC_BASE, 0xfee0_0100, 0).unwrap();
    for mode in [DestinationMode::Physical, DestinationMode::Logical] {
        assert!((0..=u8::MAX).all(|id| !chip.matches(Destination::xapic(id, mode))));
    }
}

// Messages.

#[test]
fn the_command_register_sends_what_it_is_told() {
    let physical = Destination::xapic(7, DestinationMode::Physical);
    let addressed = |delivery| Effect::Ipi(Ipi { delivery, target: IpiTarget::Addressed(physical) });
    for (low, expected) in [
        (0x0051, addressed(Delivery::Fixed(0x51))),
        (0x4051, addressed(Delivery::Fixed(0x51))),
        (0x0151, addressed(Delivery::LowestPriority(0x51))),
        (0x0251, Effect::None),
        (0x0351, Effect::None),
        (0x0400, addressed(Delivery::Nmi)),
        (0x0500, addressed(Delivery::Init)),
        (0x4500, addressed(Delivery::Init)),
        (0xc500, addressed(Delivery::Init)),
        (0x8500, Effect::None),
        (0x0608, addressed(Delivery::Startup(8))),
        (0x0700, Effect::None),
        (0x8_0051, Effect::Ipi(Ipi { delivery: Delivery::Fixed(0x51), target: IpiTarget::All })),
        (0xc_0051, Effect::Ipi(Ipi { delivery: Delivery::Fixed(0x51), target: IpiTarget::Others })),
        (0xc_4500, Effect::Ipi(Ipi { delivery: Delivery::Init, target: IpiTarget::Others })),
        (0x4_0400, Effect::Ipi(Ipi { delivery: Delivery::Nmi, target: IpiTarget::Itself })),
        (0x4_4500, Effect::None),
        (0x8_4500, Effect::None),
        (0x4_0608, Effect::None),
    ] {
        let mut chip = xapic();
        write(&mut chip, 0x310, 7 << 24);
        assert_eq!(write(&mut chip, ICR, low), expected, "{low:#x}");
        assert_eq!(read(&mut chip, ICR), low);
    }
    let mut chip = xapic();
    assert_eq!(write(&mut chip, ICR, 0x4_0051), Effect::None);
    assert_eq!(chip.pending(), Some(v(0x51)), "a message to itself has arrived already");
}

#[test]
fn illegal_vectors_are_errors_of_their_sender_and_of_their_receiver() {
    for raw in 0..32 {
        let mut chip = xapic();
        assert_eq!(write(&mut chip, ICR, u64::from(raw)), Effect::None);
        assert_eq!(errors(&mut chip), 0x20);
        assert!(!chip.receive(Delivery::Fixed(raw), TriggerMode::Level));
        assert_eq!(errors(&mut chip), 0x40);
        write(&mut chip, SVR, 0xff);
        assert!(!chip.receive(Delivery::Fixed(raw), TriggerMode::Level));
        assert_eq!(errors(&mut chip), 0, "a disabled chip did not look");
    }
}

#[test]
fn errors_show_after_a_write_and_raise_their_interrupt() {
    let mut chip = xapic();
    write(&mut chip, LVT_ERROR, 0xfe);
    chip.receive(Delivery::Fixed(1), TriggerMode::Edge);
    assert_eq!(chip.pending(), Some(v(0xfe)));
    assert_eq!(read(&mut chip, ESR), 0);
    write(&mut chip, ESR, 0);
    assert_eq!(read(&mut chip, ESR), 0x40);
    let mut chip = xapic();
    write(&mut chip, LVT_ERROR, 0x05);
    write(&mut chip, ICR, 1);
    assert_eq!((errors(&mut chip), chip.pending()), (0x60, None), "an error entry can be wrong itself");
}

#[test]
fn init_and_startup_bring_up_a_cpu_once() {
    let mut chip = VirtualLapic::new(ApicId(1), false, MODEL);
    assert!(chip.awaits_startup());
    chip.receive(Delivery::Startup(8), TriggerMode::Edge);
    chip.receive(Delivery::Startup(9), TriggerMode::Edge);
    assert!(!chip.take_init());
    assert_eq!((chip.take_startup(), chip.take_startup()), (Some(8), None));
    assert!(!chip.awaits_startup());
    chip.receive(Delivery::Startup(10), TriggerMode::Edge);
    assert_eq!(chip.take_startup(), None, "a running CPU ignores start-up messages");

    write(&mut chip, SVR, 0x1ff);
    chip.accept(v(0x51), TriggerMode::Edge);
    chip.receive(Delivery::Nmi, TriggerMode::Edge);
    chip.receive(Delivery::Init, TriggerMode::Level);
    assert_eq!((chip.pending(), chip.has_nmi(), chip.awaits_startup()), (None, false, true));
    chip.receive(Delivery::Startup(11), TriggerMode::Edge);
    assert!(chip.take_init());
    assert!(!chip.take_init());
    assert_eq!(chip.take_startup(), Some(11));
    assert_eq!(chip.id(), ApicId(1));
}

// The timer behind its registers.

#[test]
fn the_timer_fires_its_vector_and_tells_its_deadline() {
    let mut chip = xapic();
    assert_eq!(chip.mmio_write(LVT_TIMER, 4, 0xee, 0), Effect::TimerChanged);
    assert_eq!(chip.mmio_write(TIMER_DIVIDE, 4, 0xb, 0), Effect::TimerChanged);
    assert_eq!(chip.mmio_write(TIMER_INITIAL, 4, 0x10000, 100), Effect::TimerChanged);
    assert_eq!(chip.deadline(), Some(0x10064));
    assert_eq!(chip.mmio_read(TIMER_CURRENT, 4, 101), 0xffff);
    assert!(!chip.advance_timer(0x10063));
    assert!(chip.advance_timer(0x10064));
    assert_eq!((chip.pending(), chip.deadline()), (Some(v(0xee)), None));
    assert_eq!(chip.mmio_read(TIMER_INITIAL, 4, 0x10065), 0x10000);
    assert_eq!(chip.mmio_read(TIMER_CURRENT, 4, 0x10065), 0);
}

#[test]
fn a_masked_timer_counts_without_a_deadline_and_fires_nothing_later() {
    let mut chip = xapic();
    chip.mmio_write(TIMER_DIVIDE, 4, 0xb, 0);
    chip.mmio_write(TIMER_INITIAL, 4, 1000, 0);
    assert_eq!(chip.deadline(), None);
    assert_eq!(chip.mmio_read(TIMER_CURRENT, 4, 600), 400);
    chip.mmio_write(LVT_TIMER, 4, 0xee, 2000);
    assert_eq!((chip.pending(), chip.deadline()), (None, None));
    chip.mmio_write(TIMER_INITIAL, 4, 1000, 3000);
    chip.mmio_write(LVT_TIMER, 4, 0xee | MASKED, 4000);
    assert_eq!(chip.pending(), Some(v(0xee)), "it ran out before it was masked");
}

#[test]
fn the_timer_survives_changes_of_mode() {
    let mut chip = xapic();
    let periodic = 1 << 17;
    chip.mmio_write(TIMER_DIVIDE, 4, 0xb, 0);
    chip.mmio_write(LVT_TIMER, 4, 0xee, 0);
    chip.mmio_write(TIMER_INITIAL, 4, 0x99_9999, 0);
    chip.mmio_write(LVT_TIMER, 4, 0xee | periodic, 0x60_0000);
    assert_eq!(chip.mmio_read(TIMER_CURRENT, 4, 0x60_0000), 0x39_9999);
    assert!(chip.advance_timer(0x99_9999));
    assert!(chip.mmio_read(TIMER_CURRENT, 4, 0x99_999a) > 0x4c_cccc);
    chip.mmio_write(LVT_TIMER, 4, 0xee, 0x100_0000);
    assert!(chip.advance_timer(0x200_0000));
    chip.mmio_write(LVT_TIMER, 4, 0xee | periodic, 0x200_0001);
    assert_eq!((chip.mmio_read(TIMER_CURRENT, 4, 0x300_0000), chip.deadline()), (0, None));
}

#[test]
fn an_illegal_timer_vector_is_an_error() {
    let mut chip = xapic();
    chip.mmio_write(LVT_TIMER, 4, 0x0e, 0);
    chip.mmio_write(TIMER_INITIAL, 4, 1, 0);
    assert!(!chip.advance_timer(1000));
    assert_eq!((errors(&mut chip), chip.pending()), (0x40, None));
}
