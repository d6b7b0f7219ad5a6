//! The chip by itself: priorities, destinations, messages, errors, and the timer behind its registers.

use super::*;
use crate::virq::message::IpiTarget;

mod registers;

const MODEL: LapicModel = LapicModel { x2apic: true, physical_address_bits: 40 };
const MSR_APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
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
const DEADLINE_MODE: u64 = 1 << 18;

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

/// The CPU takes what it is offered, which is this. How it came.
fn take(chip: &mut VirtualLapic, vector: Vector) -> TriggerMode {
    assert_eq!(chip.offer(), Some(vector));
    let (taken, trigger) = chip.taken().unwrap();
    assert_eq!(taken, vector);
    trigger
}

// Priorities.

#[test]
fn a_vector_is_pending_exactly_when_its_class_is_above_the_processor_priority() {
    for tpr in 0..=u8::MAX {
        for serviced in [None, Some(v(0x2f)), Some(v(0x51)), Some(v(0xa0)), Some(v(0xff))] {
            let mut chip = xapic();
            if let Some(vector) = serviced {
                chip.accept(vector, TriggerMode::Edge);
                take(&mut chip, vector);
            }
            write(&mut chip, TPR, u64::from(tpr));
            let serviced_class = serviced.map_or(0, Vector::class);
            let ppr = if tpr >> 4 >= serviced_class { tpr } else { serviced_class << 4 };
            assert_eq!(read(&mut chip, 0xa0), u64::from(ppr));
            for vector in [0x20, 0x50, 0x52, 0x60, 0x9f, 0xaf, 0xb0, 0xfe].map(v) {
                let mut chip = VirtualLapic { irr: RankedVectors::EMPTY, isr: chip.isr, ..xapic() };
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
    take(&mut chip, v(0x71));
    assert_eq!(chip.pending(), None);
    assert!(chip.accept(v(0x81), TriggerMode::Edge));
    take(&mut chip, v(0x81));
    assert_eq!(chip.eoi().map(|eoi| eoi.vector), Some(v(0x81)));
    assert_eq!(chip.pending(), None, "0x71 is still in service");
    assert_eq!(chip.eoi().map(|eoi| eoi.vector), Some(v(0x71)));
    for vector in [0x52, 0x51, 0x31].map(v) {
        assert_eq!(chip.pending(), Some(vector));
        take(&mut chip, vector);
        assert_eq!(chip.eoi().map(|eoi| eoi.vector), Some(vector));
    }
    assert_eq!((chip.pending(), chip.eoi()), (None, None));
}

#[test]
fn a_vector_that_waits_absorbs_another_but_one_in_service_does_not() {
    let mut chip = xapic();
    assert!(chip.accept(v(0x51), TriggerMode::Edge));
    assert!(chip.accept(v(0x51), TriggerMode::Edge));
    take(&mut chip, v(0x51));
    assert_eq!((chip.offer(), chip.taken()), (None, None));
    assert!(chip.accept(v(0x51), TriggerMode::Edge));
    chip.eoi();
    assert_eq!(chip.pending(), Some(v(0x51)));
}

/// As in a CPU that has acknowledged it: what came before is not to be told from what comes after by whoever looks at IRR.
#[test]
fn what_comes_for_a_vector_that_is_with_the_cpu_waits_behind_it() {
    for taken in [false, true] {
        let mut chip = xapic();
        assert!(chip.accept(v(0x51), TriggerMode::Edge));
        assert_eq!(chip.offer(), Some(v(0x51)));
        assert!(chip.accept(v(0x51), TriggerMode::Edge));
        if taken {
            assert_eq!(chip.taken(), Some((v(0x51), TriggerMode::Edge)));
            assert_eq!(chip.pending(), None, "it is in service");
            assert_eq!(chip.eoi().map(|eoi| eoi.vector), Some(v(0x51)));
        } else {
            chip.take_back();
        }
        assert_eq!(take(&mut chip, v(0x51)), TriggerMode::Edge);
        assert_eq!((chip.eoi().map(|eoi| eoi.vector), chip.pending()), (Some(v(0x51)), None));
    }
}

#[test]
fn an_offer_is_taken_back_by_a_priority_or_a_higher_one_and_forgotten_by_a_reset() {
    let mut chip = xapic();
    chip.accept(v(0x51), TriggerMode::Level);
    assert_eq!(chip.offer(), Some(v(0x51)));
    assert_eq!(chip.arbitration_priority(), 0x50, "it still counts");
    chip.accept(v(0x61), TriggerMode::Edge);
    assert_eq!(chip.offer(), Some(v(0x61)));
    write(&mut chip, TPR, 0x60);
    assert_eq!((chip.offer(), chip.offered()), (None, None));
    write(&mut chip, TPR, 0);
    assert_eq!(chip.offer(), Some(v(0x61)));
    chip.receive(Delivery::Init, TriggerMode::Edge);
    assert_eq!((chip.taken(), chip.eoi_of_offered(), chip.pending()), (None, None, None));
}

#[test]
fn a_level_is_offered_at_once_only_where_nothing_comes_before_it() {
    type Happens = fn(&mut VirtualLapic);
    let before: [(&str, Happens); 5] = [
        ("a higher vector waits", |chip| assert!(chip.accept(v(0x61), TriggerMode::Edge))),
        ("another was offered", |chip| {
            chip.accept(v(0x41), TriggerMode::Edge);
            assert_eq!(chip.offer(), Some(v(0x41)));
        }),
        ("its class is in service", |chip| {
            chip.accept(v(0x52), TriggerMode::Edge);
            take(chip, v(0x52));
        }),
        ("the task priority holds it back", |chip| assert_eq!(write(chip, TPR, 0x50), Effect::None)),
        ("the chip is disabled", |chip| assert_eq!(write(chip, SVR, 0xff), Effect::AcceptanceChanged)),
    ];
    for (what, happens) in before {
        let mut chip = xapic();
        happens(&mut chip);
        let untouched = format!("{chip:?}");
        assert!(!chip.offer_at_once(v(0x51)), "{what}");
        assert_eq!(format!("{chip:?}"), untouched, "{what}");
    }
    let mut chip = xapic();
    assert!(chip.offer_at_once(v(0x51)));
    assert_eq!(chip.offered(), Some(v(0x51)));
    assert_eq!(chip.taken(), Some((v(0x51), TriggerMode::Level)));
}

#[test]
fn tmr_follows_the_last_acceptance_and_decides_the_eoi() {
    let mut chip = xapic();
    for trigger in
        [TriggerMode::Level, TriggerMode::Level, TriggerMode::Edge, TriggerMode::Edge, TriggerMode::Level]
    {
        chip.accept(v(0x79), trigger);
        assert_eq!(read(&mut chip, 0x1b0) >> 0x19 & 1, u64::from(trigger == TriggerMode::Level));
        assert_eq!(take(&mut chip, v(0x79)), trigger);
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
    take(&mut chip, v(0x51));
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
        take(&mut chip, vector);
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
            let everyone = id == 0xff;
            write(&mut chip, 0xe0, 0xffff_ffff);
            assert_eq!(chip.matches(destination), everyone || ldr & id != 0, "flat");
            write(&mut chip, 0xe0, 0x0fff_ffff);
            let in_cluster = id >> 4 == ldr >> 4 && ldr & id & 0xf != 0;
            assert_eq!(chip.matches(destination), everyone || in_cluster, "cluster");
            write(&mut chip, 0xe0, 0x7fff_ffff);
            assert_eq!(chip.matches(destination), everyone, "a model that does not exist");
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

#[test]
fn a_deadline_of_the_tsc_is_a_register_of_either_mode() {
    let mut chip = xapic();
    assert_eq!(chip.read_msr(TSC_DEADLINE, 0), Ok(0));
    assert_eq!(chip.write_msr(TSC_DEADLINE, 500, 0), Ok(Effect::TimerChanged));
    assert_eq!((chip.read_msr(TSC_DEADLINE, 0), chip.deadline()), (Ok(0), None), "the timer counts");
    chip.mmio_write(LVT_TIMER, 4, DEADLINE_MODE | 0xee, 0);
    assert_eq!(chip.mmio_read(LVT_TIMER, 4, 0), DEADLINE_MODE | 0xee);
    assert_eq!(chip.write_msr(TSC_DEADLINE, 500, 0), Ok(Effect::TimerChanged));
    assert_eq!((chip.read_msr(TSC_DEADLINE, 499), chip.deadline()), (Ok(500), Some(500)));
    assert_eq!(chip.mmio_read(TIMER_CURRENT, 4, 100), 0);
    assert!(chip.advance_timer(500));
    assert_eq!((chip.read_msr(TSC_DEADLINE, 500), chip.deadline()), (Ok(0), None));

    let mut chip = x2apic(0);
    assert_eq!(chip.write_msr(0x832, DEADLINE_MODE | 0xee, 0), Ok(Effect::TimerChanged));
    chip.write_msr(TSC_DEADLINE, 500, 500).unwrap();
    assert_eq!((chip.pending(), chip.deadline()), (Some(v(0xee)), None), "it has passed already");
}

#[test]
fn a_deadline_moves_with_the_guests_tsc() {
    let mut chip = xapic();
    chip.mmio_write(LVT_TIMER, 4, DEADLINE_MODE | 0xee, 0);
    chip.set_ahead(1000, 0);
    assert_eq!(chip.deadline(), None, "nothing is waited for");
    chip.write_msr(TSC_DEADLINE, 5000, 0).unwrap();
    assert_eq!(chip.deadline(), Some(4000));
    chip.set_ahead(0_u64.wrapping_sub(1000), 2000);
    assert_eq!((chip.deadline(), chip.read_msr(TSC_DEADLINE, 0)), (Some(6000), Ok(5000)));
    chip.set_ahead(3000, 2000);
    assert_eq!((chip.pending(), chip.deadline()), (Some(v(0xee)), None));
    chip.receive(Delivery::Init, TriggerMode::Edge);
    chip.mmio_write(0xf0, 4, 0x1ff, 0);
    chip.mmio_write(LVT_TIMER, 4, DEADLINE_MODE | 0xee, 0);
    chip.write_msr(TSC_DEADLINE, 9000, 2000).unwrap();
    assert_eq!(chip.deadline(), Some(6000), "INIT leaves the TSC alone");
}
