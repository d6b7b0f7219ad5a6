//! Guest-physical addresses without memory: holes, APIC pages, the window for BARs, and beyond.

use levelhead::addr::GuestPhys;
use levelhead::border::Place;
use levelhead::decide::BAR_WINDOW;
use levelhead::message::{Message, Party};
use levelhead::pci::Bdf;
use levelhead::vcpu::NestedFault;
use levelhead::virq::{LapicModel, Vcpu, VirtualChips};

use crate::dice::{Dice, fuzz};

const CPU: Vcpu = Vcpu(0);
const MODEL: LapicModel = LapicModel { x2apic: true, physical_address_bits: 40 };

fn address(dice: &mut Dice, local_apic: u64) -> u64 {
    let edge = dice.pick(&[
        local_apic,
        local_apic,
        0xfec0_0000,
        0xe000_0000,
        0xfe00_0000,
        0xd000_0000,
        0xd001_8000,
        0xb000_0000,
        0x1_0000_0000,
        1 << 40,
        1 << 48,
        1 << 52,
    ]);
    match dice.below(3) {
        0 => dice.hostile(),
        1 => edge.wrapping_add(dice.below(0x1008)).wrapping_sub(4),
        _ => edge.wrapping_add(dice.below(16)).wrapping_sub(8),
    }
}

#[test]
fn an_address_is_a_device_of_the_guests_own_a_vacant_place_or_the_guests_end() {
    fuzz(60, |dice| {
        let mut chips = VirtualChips::new(1, MODEL);
        for _ in 0..1000 {
            if dice.one_in(50) {
                let base =
                    dice.mostly(&[0xfee0_0800, 0xfec0_0800, 0xe000_0800, 0xff_ffff_f800], Dice::hostile);
                let _outcome = chips.write_msr(CPU, 0x1b, base, 0).unwrap_or_default();
            }
            let local_apic = chips.lapic(CPU).expect("the boot CPU").mmio_base();
            let at = address(dice, local_apic.raw());
            let fault = NestedFault {
                address: GuestPhys::new(at),
                present: false,
                write: dice.one_in(2),
                fetch: dice.one_in(16),
                table_walk: dice.one_in(16),
            };
            let delivering = dice.one_in(16);
            let found = Place::find(fault, delivering, local_apic, BAR_WINDOW);
            let page = |start: u64| at >= start && at - start < 0x1000;
            let expected = if fault.fetch {
                Err(Message::FetchFromNoMemory)
            } else if fault.table_walk {
                Err(Message::TablesInNoMemory)
            } else if delivering {
                Err(Message::EventInNoMemory)
            } else if page(local_apic.raw()) {
                Ok(Place::LocalApic(at & 0xfff))
            } else if page(0xfec0_0000) {
                Ok(Place::IoApic(at & 0xfff))
            } else if (0xd000_0000..0xe000_0000).contains(&at) {
                Ok(Place::Config(at - 0xd000_0000))
            } else if (0xe000_0000..0xfe00_0000).contains(&at) {
                Ok(Place::Vacant)
            } else {
                Err(Message::NoSuchMemory)
            };
            assert_eq!(found, expected, "{at:#x} with the local APIC at {local_apic}");
            let place = match found {
                Ok(place) => place,
                Err(message) => {
                    assert_eq!(message.party(), Party::Guest, "nobody else is at fault");
                    continue;
                }
            };
            let bytes = dice.pick(&[1_u8, 2, 4, 8]);
            let read = place.read(&mut chips, CPU, bytes, 0);
            match place {
                Place::Vacant | Place::Config(_) => assert_eq!(read, u64::MAX, "as on a bus"),
                Place::IoApic(_) => assert_eq!(read >> 32, 0),
                Place::LocalApic(_) => assert!(bytes == 8 || read >> (8 * bytes) == 0, "{read:#x}"),
            }
            let register = place.register(bytes);
            let inside = matches!(place, Place::Config(_)) && bytes <= 4 && at % 4 + u64::from(bytes) <= 4;
            let expected =
                inside.then(|| (Bdf::from_requester_id((at >> 12) as u16), at as u16 & 0xfff, bytes));
            assert_eq!(
                register.map(|(bdf, access)| (bdf, access.offset().get(), access.width().bytes())),
                expected,
                "{bytes} at {at:#x}"
            );
            let before = format!("{chips:?}");
            let outcome = place.write(&mut chips, CPU, bytes, dice.hostile(), 0);
            if matches!(place, Place::Vacant | Place::Config(_)) {
                assert!(outcome.completed.is_empty() && outcome.rte.is_none() && !outcome.timer_changed);
                assert_eq!(before, format!("{chips:?}"));
            }
        }
    });
}
