//! The chip by itself: registers bit by bit, levels, edges, and which EOI ends what.

use super::*;
use crate::ioapic::DestinationMode;

const PIN: Pin = Pin(14);
const FIRST: Contributor = Contributor::new(0).unwrap();
const SECOND: Contributor = Contributor::new(31).unwrap();
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;

fn write(chip: &mut VirtualIoapic, index: u8, value: u32) -> Effect {
    assert_eq!(chip.mmio_write(MMIO_INDEX, 4, u64::from(index)), Effect::None);
    chip.mmio_write(MMIO_DATA, 4, u64::from(value))
}

fn read(chip: &mut VirtualIoapic, index: u8) -> u32 {
    assert_eq!(chip.mmio_write(MMIO_INDEX, 4, u64::from(index)), Effect::None);
    u32::try_from(chip.mmio_read(MMIO_DATA, 4)).unwrap()
}

fn write_low(chip: &mut VirtualIoapic, pin: Pin, value: u32) -> RteChanged {
    match write(chip, REG_RTE_BASE + 2 * pin.0, value) {
        Effect::Rte(changed) => changed,
        other => panic!("{other:?}"),
    }
}

fn directed_eoi(chip: &mut VirtualIoapic, vector: u8) -> PinSet {
    match chip.mmio_write(MMIO_EOI, 4, u64::from(vector)) {
        Effect::Completed(pins) => pins,
        Effect::None => PinSet::EMPTY,
        other @ Effect::Rte(_) => panic!("{other:?}"),
    }
}

/// Sends what is pending, as somebody who takes everything.
fn take(chip: &mut VirtualIoapic, pin: Pin) -> Option<Completion> {
    chip.pending(pin).map(|message| chip.accepted(pin, message))
}

fn programmed(low: u32) -> VirtualIoapic {
    let mut chip = VirtualIoapic::new();
    write_low(&mut chip, PIN, low);
    chip
}

#[test]
fn version_and_arbitration_are_read_only_and_the_identifier_has_four_bits() {
    let mut chip = VirtualIoapic::new();
    assert_eq!(read(&mut chip, REG_VERSION), 0x0017_0020);
    assert_eq!(write(&mut chip, REG_VERSION, !0x0017_0020), Effect::None);
    assert_eq!(read(&mut chip, REG_VERSION), 0x0017_0020);
    let before = read(&mut chip, REG_ID);
    write(&mut chip, REG_ID, !before);
    assert_eq!(before ^ read(&mut chip, REG_ID), 0x0f00_0000);
    write(&mut chip, REG_ID, 0x0a00_0000);
    write(&mut chip, REG_ARBITRATION, 0);
    assert_eq!(read(&mut chip, REG_ARBITRATION), 0x0a00_0000);
}

#[test]
fn an_entry_keeps_exactly_its_writable_bits() {
    for pin in (0..PINS).map(Pin) {
        let mut chip = VirtualIoapic::new();
        let (low, high) = (REG_RTE_BASE + 2 * pin.0, REG_RTE_BASE + 2 * pin.0 + 1);
        assert_eq!((read(&mut chip, low), read(&mut chip, high)), (MASKED, 0));
        for bit in 0..32 {
            write(&mut chip, low, 1 << bit);
            let kept = matches!(bit, 0..=11 | 13 | 15 | 16);
            assert_eq!(read(&mut chip, low), u32::from(kept) << bit, "low {bit}");
            write(&mut chip, high, 1 << bit);
            assert_eq!(read(&mut chip, high), u32::from(bit >= 24) << bit, "high {bit}");
        }
        write(&mut chip, low, 0);
        write(&mut chip, high, u32::MAX);
        assert_eq!(chip.rte(pin).unwrap().bits(), 0xff00_0000_0000_0000);
        for other in (0..PINS).map(Pin).filter(|&other| other != pin) {
            assert_eq!(chip.rte(other), Some(Rte::RESET));
        }
    }
}

#[test]
fn what_does_not_exist_reads_zero_and_takes_nothing() {
    let mut chip = VirtualIoapic::new();
    for index in (3..REG_RTE_BASE).chain(REG_RTE_BASE + 2 * PINS..=u8::MAX) {
        assert_eq!(write(&mut chip, index, u32::MAX), Effect::None);
        assert_eq!(read(&mut chip, index), 0, "{index:#x}");
    }
    let beyond = Pin(PINS);
    chip.assert(beyond, FIRST);
    assert_eq!((chip.level(beyond), chip.pending(beyond), chip.rte(beyond)), (Level::Deasserted, None, None));
    let message = Message {
        delivery: Delivery::Fixed(0x51),
        destination: Destination::xapic(0, DestinationMode::Physical),
        trigger: TriggerMode::Level,
    };
    assert_eq!(chip.accepted(beyond, message), Completion::Now);
    chip.deassert(beyond, FIRST);
}

#[test]
fn narrow_accesses_reach_bytes_for_reading_and_only_byte_registers_for_writing() {
    let mut chip = VirtualIoapic::new();
    assert_eq!(chip.mmio_write(MMIO_INDEX, 1, 0x1_01), Effect::None);
    assert_eq!(chip.mmio_read(MMIO_INDEX, 4), 0x01);
    assert_eq!(chip.mmio_read(MMIO_DATA, 1), 0x20);
    assert_eq!(chip.mmio_read(MMIO_DATA + 2, 1), 0x17);
    assert_eq!(chip.mmio_read(MMIO_DATA, 2), 0x0020);
    assert_eq!(chip.mmio_read(MMIO_DATA + 4, 4), 0);
    chip.mmio_write(MMIO_INDEX, 4, u64::from(REG_ID));
    assert_eq!(chip.mmio_write(MMIO_DATA, 2, 0xffff_ffff), Effect::None);
    assert_eq!(chip.mmio_write(MMIO_DATA + 1, 4, 0xffff_ffff), Effect::None);
    assert_eq!(chip.mmio_read(MMIO_DATA, 4), 0);
}

#[test]
fn a_message_says_what_the_entry_says() {
    for (mode, delivery) in [
        (0, Some(Delivery::Fixed(0x51))),
        (1, Some(Delivery::LowestPriority(0x51))),
        (2, None),
        (3, None),
        (4, Some(Delivery::Nmi)),
        (5, Some(Delivery::Init)),
        (6, None),
        (7, None),
    ] {
        for (bit, destination_mode) in [(0, DestinationMode::Physical), (1 << 11, DestinationMode::Logical)] {
            for polarity in [0, 1 << 13] {
                let mut chip = programmed(0x51 | mode << 8 | bit | polarity);
                write(&mut chip, REG_RTE_BASE + 2 * PIN.0 + 1, 0x0d00_0000);
                assert_eq!(chip.pending(PIN), None);
                chip.assert(PIN, FIRST);
                let message = chip.pending(PIN);
                assert_eq!(message.map(|message| message.delivery), delivery);
                if let Some(message) = message {
                    assert_eq!(message.destination, Destination::xapic(0x0d, destination_mode));
                    assert_eq!(message.trigger, TriggerMode::Edge);
                }
            }
        }
    }
}

#[test]
fn an_edge_is_sent_once_and_again_only_after_the_last_contributor_left() {
    let mut chip = programmed(0x51);
    chip.assert(PIN, FIRST);
    assert_eq!(take(&mut chip, PIN), Some(Completion::AtAcknowledge));
    assert_eq!(take(&mut chip, PIN), None);
    chip.assert(PIN, FIRST);
    chip.assert(PIN, SECOND);
    chip.deassert(PIN, FIRST);
    assert_eq!(take(&mut chip, PIN), None);
    chip.deassert(PIN, SECOND);
    chip.assert(PIN, SECOND);
    assert!(take(&mut chip, PIN).is_some());
}

#[test]
fn an_edge_behind_the_mask_is_lost_but_one_before_it_is_not() {
    let mut chip = programmed(0x51 | MASKED);
    chip.assert(PIN, FIRST);
    write_low(&mut chip, PIN, 0x51);
    assert_eq!(chip.pending(PIN), None);
    chip.deassert(PIN, FIRST);
    chip.assert(PIN, FIRST);
    assert!(chip.rte(PIN).unwrap().delivery_status());
    write_low(&mut chip, PIN, 0x51 | MASKED);
    assert_eq!(chip.pending(PIN), None);
    write_low(&mut chip, PIN, 0x51);
    assert!(take(&mut chip, PIN).is_some());
    assert!(!chip.rte(PIN).unwrap().delivery_status());
}

#[test]
fn a_level_is_sent_while_any_contributor_holds_it_and_never_while_in_service() {
    let mut chip = programmed(0x51 | LEVEL);
    chip.assert(PIN, FIRST);
    chip.assert(PIN, SECOND);
    assert_eq!(chip.pending(PIN).unwrap().trigger, TriggerMode::Level);
    assert!(!chip.rte(PIN).unwrap().remote_irr(), "nobody accepted it yet");
    assert_eq!(take(&mut chip, PIN), Some(Completion::AtEoi));
    assert!(chip.rte(PIN).unwrap().remote_irr());
    chip.deassert(PIN, FIRST);
    chip.assert(PIN, FIRST);
    assert_eq!(chip.pending(PIN), None);
    assert_eq!(chip.eoi(0x52), PinSet::EMPTY);
    assert_eq!(chip.eoi(0x51), PinSet::of(PIN));
    assert_eq!(chip.eoi(0x51), PinSet::EMPTY);
    chip.deassert(PIN, FIRST);
    assert_eq!(chip.pending(PIN), None, "what was served is not completed yet");
    chip.completed(PIN);
    assert!(chip.pending(PIN).is_some(), "the second contributor still asserts it");
    chip.deassert(PIN, SECOND);
    assert_eq!(chip.pending(PIN), None);
}

#[test]
fn a_masked_level_waits_and_the_mask_is_reported() {
    let mut chip = programmed(0x51 | LEVEL | MASKED);
    chip.assert(PIN, FIRST);
    assert_eq!(chip.pending(PIN), None);
    let unmasked = RteChanged { pin: PIN, masked_before: true, masked_after: false, completion_due: false };
    assert_eq!(write_low(&mut chip, PIN, 0x51 | LEVEL), unmasked);
    assert!(take(&mut chip, PIN).is_some());
    let masked = RteChanged { pin: PIN, masked_before: false, masked_after: true, completion_due: false };
    assert_eq!(write_low(&mut chip, PIN, 0x51 | LEVEL | MASKED), masked);
    assert!(chip.rte(PIN).unwrap().remote_irr(), "masking ends no service");
    assert_eq!(chip.eoi(0x51), PinSet::of(PIN));
    assert_eq!(chip.pending(PIN), None);
}

#[test]
fn i39_an_entry_rewritten_in_service_completes_by_the_accepted_vector() {
    let mut chip = programmed(0x41 | LEVEL);
    chip.assert(PIN, FIRST);
    take(&mut chip, PIN);
    assert!(!write_low(&mut chip, PIN, 0x51 | LEVEL).completion_due);
    write(&mut chip, REG_RTE_BASE + 2 * PIN.0 + 1, 0x0100_0000);
    assert!(chip.rte(PIN).unwrap().remote_irr());
    assert_eq!(chip.pending(PIN), None);
    assert_eq!(chip.eoi(0x51), PinSet::EMPTY);
    assert_eq!(chip.eoi(0x41), PinSet::of(PIN));
    chip.completed(PIN);
    assert_eq!(chip.pending(PIN).unwrap().delivery, Delivery::Fixed(0x51));
}

#[test]
fn i40_the_eoi_register_completes_once_by_either_name() {
    for named in [0x41, 0x51] {
        let mut chip = programmed(0x41 | LEVEL);
        chip.assert(PIN, FIRST);
        take(&mut chip, PIN);
        write_low(&mut chip, PIN, 0x51 | LEVEL);
        assert_eq!(directed_eoi(&mut chip, 0x61), PinSet::EMPTY);
        assert_eq!(directed_eoi(&mut chip, named), PinSet::of(PIN));
        assert_eq!(directed_eoi(&mut chip, 0x41), PinSet::EMPTY);
        assert_eq!(directed_eoi(&mut chip, 0x51), PinSet::EMPTY);
    }
}

#[test]
fn i39_one_vector_on_two_pins_completes_both() {
    let mut chip = programmed(0x51 | LEVEL);
    let (other, third) = (Pin(3), Pin(23));
    write_low(&mut chip, other, 0x51 | LEVEL);
    write_low(&mut chip, third, 0x52 | LEVEL);
    for pin in [PIN, other, third] {
        chip.assert(pin, FIRST);
        take(&mut chip, pin);
    }
    assert_eq!(chip.eoi(0x51).into_iter().collect::<Vec<_>>(), [other, PIN]);
    assert!(chip.rte(third).unwrap().remote_irr());
}

#[test]
fn switching_to_edge_ends_the_service_and_says_so_once() {
    let mut chip = programmed(0x51 | LEVEL);
    chip.assert(PIN, FIRST);
    take(&mut chip, PIN);
    assert!(write_low(&mut chip, PIN, 0x51 | MASKED).completion_due);
    assert!(!chip.rte(PIN).unwrap().remote_irr());
    assert!(!write_low(&mut chip, PIN, 0x51 | LEVEL | MASKED).completion_due);
    assert_eq!(chip.eoi(0x51), PinSet::EMPTY);
    chip.completed(PIN);
    write_low(&mut chip, PIN, 0x51 | LEVEL);
    assert!(chip.pending(PIN).is_some(), "the level was there all the time");
}

#[test]
fn i39_switching_to_a_message_without_a_vector_ends_the_service_once_too() {
    const EXT_INT: u32 = 7 << 8;
    let mut chip = programmed(0x51 | LEVEL);
    chip.assert(PIN, FIRST);
    take(&mut chip, PIN);
    assert!(write_low(&mut chip, PIN, 0x51 | LEVEL | EXT_INT).completion_due);
    assert!(!chip.rte(PIN).unwrap().remote_irr());
    assert_eq!(chip.eoi(0x51), PinSet::EMPTY, "the completion was reported already");
}

#[test]
fn switching_to_level_forgets_an_edge_nobody_took() {
    let mut chip = programmed(0x51);
    chip.assert(PIN, FIRST);
    chip.deassert(PIN, FIRST);
    write_low(&mut chip, PIN, 0x51 | LEVEL);
    assert_eq!(chip.pending(PIN), None);
    write_low(&mut chip, PIN, 0x51);
    assert_eq!(chip.pending(PIN), None);
}

#[test]
fn n17_an_accepted_edge_completes_when_its_vector_is_taken() {
    let mut chip = programmed(0x51);
    chip.assert(PIN, FIRST);
    take(&mut chip, PIN);
    write_low(&mut chip, PIN, 0x61);
    assert_eq!(chip.acknowledged(0x61), PinSet::EMPTY);
    assert_eq!(chip.acknowledged(0x51), PinSet::of(PIN));
    assert_eq!(chip.acknowledged(0x51), PinSet::EMPTY);
}

#[test]
fn n17_an_accepted_edge_does_not_complete_the_level_that_its_pin_became() {
    let mut chip = programmed(0x51);
    chip.assert(PIN, FIRST);
    assert_eq!(take(&mut chip, PIN), Some(Completion::AtAcknowledge));
    // Nobody has taken it, and it is waited for no more; the level is another interrupt.
    assert!(write_low(&mut chip, PIN, 0x61 | LEVEL).completion_due);
    assert_eq!(take(&mut chip, PIN), Some(Completion::AtEoi));
    assert_eq!(chip.acknowledged(0x51), PinSet::EMPTY);
    assert_eq!(chip.acknowledged(0x61), PinSet::EMPTY, "somebody's edge of the same vector");
    assert_eq!(chip.eoi(0x61), PinSet::of(PIN));
}

#[test]
fn n17_an_asserted_pin_whose_edge_is_past_completes_at_unmasking() {
    let mut chip = programmed(0x51 | MASKED);
    chip.assert(PIN, FIRST);
    assert!(write_low(&mut chip, PIN, 0x51).completion_due);
    chip.deassert(PIN, FIRST);
    assert!(!write_low(&mut chip, PIN, 0x51).completion_due);
    chip.assert(PIN, FIRST);
    assert!(!write_low(&mut chip, PIN, 0x51).completion_due, "the edge is latched");
    take(&mut chip, PIN);
    assert!(!write_low(&mut chip, PIN, 0x51).completion_due, "the vector will be taken");
    assert!(write_low(&mut chip, PIN, 0x51 | MASKED).completion_due, "or not, when the guest starts over");
    assert_eq!(chip.acknowledged(0x51), PinSet::EMPTY);
}

#[test]
fn messages_without_a_vector_are_edges_and_complete_at_once() {
    for mode in [4 << 8, 5 << 8] {
        let mut chip = programmed(mode | LEVEL);
        chip.assert(PIN, FIRST);
        assert_eq!(take(&mut chip, PIN), Some(Completion::Now));
        assert_eq!(take(&mut chip, PIN), None, "a level would go out for ever");
        assert!(!chip.rte(PIN).unwrap().remote_irr());
    }
}
