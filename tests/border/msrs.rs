//! Model-specific registers: every documented number and any other, written with anything.

use levelhead::border::msrs::{self, Registers, Written};
use levelhead::virq::{ApicMode, LapicModel, Vcpu, VirtualChips};
use levelhead::x86::{GeneralProtection, cr0, efer};

use crate::dice::{Dice, fuzz};

const CPU: Vcpu = Vcpu(0);
const MODEL: LapicModel = LapicModel { x2apic: true, physical_address_bits: 40 };
const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
/// TSC, TSC_ADJUST, MTRRcap, PAT, MTRRdefType, EFER, PerfEvtSel0 to 3 and PerfCtr0 to 3, INT_PENDING: what is here beside the local APIC's.
const READABLE: [u32; 15] = [
    0x10,
    0x3b,
    0xfe,
    0x277,
    0x2ff,
    0xc000_0080,
    0xc001_0000,
    0xc001_0001,
    0xc001_0002,
    0xc001_0003,
    0xc001_0004,
    0xc001_0005,
    0xc001_0006,
    0xc001_0007,
    0xc001_0055,
];

fn registers(dice: &mut Dice) -> Registers {
    let paged = dice.one_in(2);
    Registers {
        cr0: if paged { cr0::PE | cr0::PG } else { cr0::PE },
        efer: efer::SVME | if paged { efer::LME | efer::LMA } else { dice.pick(&[0, efer::LME]) },
        pat: 0x0007_0406_0007_0406,
        tsc_offset: dice.hostile(),
        mtrr_def_type: 0xc06,
    }
}

/// A number of one of the ranges that manuals and permission maps know, one that is emulated, or any.
fn number(dice: &mut Dice) -> u32 {
    match dice.below(8) {
        0 => dice.below(0x2000) as u32,
        1 => 0xc000_0000 + dice.below(0x2000) as u32,
        2 => 0xc001_0000 + dice.below(0x2000) as u32,
        3 => 0x4000_0000 + dice.below(0x200) as u32,
        4 => 0x800 + dice.below(0x100) as u32,
        5 => dice.hostile() as u32,
        6 => dice.pick(&[APIC_BASE, TSC_DEADLINE]),
        _ => dice.pick(&READABLE),
    }
}

#[test]
fn a_register_that_is_not_the_guests_faults_and_a_fault_changes_nothing() {
    fuzz(60, |dice| {
        let mut chips = VirtualChips::new(1, MODEL);
        for _ in 0..400 {
            let (number, registers) = (number(dice), registers(dice));
            let now = dice.hostile();
            let value = match dice.below(4) {
                0 => dice.pick(&[0xfee0_0900, 0xfee0_0d00, 0xfee0_0100, 0, 0xc06, 0x0007_0406_0007_0406]),
                1 => dice.below(1 << 12),
                _ => dice.hostile(),
            };
            let x2apic = chips.lapic(CPU).is_some_and(|lapic| lapic.mode() == ApicMode::X2Apic);
            let always = [APIC_BASE, TSC_DEADLINE].contains(&number);
            let apic = always || x2apic && (0x800..0x900).contains(&number);
            let read = if msrs::is_local_apic(number) {
                chips.read_msr(CPU, number, now).map_err(|_| GeneralProtection)
            } else {
                msrs::read(number, &registers, now)
            };
            assert!(read.is_err() || apic || READABLE.contains(&number), "RDMSR {number:#x}: {read:x?}");
            assert!(apic || read.is_ok() == READABLE.contains(&number), "RDMSR {number:#x}: {read:x?}");
            if number == 0xc000_0080 {
                assert_eq!(read.map(|efer| efer & efer::SVME), Ok(0), "SVM is hidden");
            }
            let before = format!("{chips:?}");
            if msrs::is_local_apic(number) {
                let fault = chips.write_msr(CPU, number, value, now).is_err();
                assert!(
                    !fault || before == format!("{chips:?}"),
                    "WRMSR {number:#x} faults and changes something"
                );
                assert!(fault || apic, "WRMSR {number:#x}");
                continue;
            }
            let Ok(written) = msrs::write(number, value, &registers, now) else { continue };
            match written {
                Written::Efer(real) => {
                    assert_eq!((number, real & efer::SVME), (0xc000_0080, efer::SVME), "it must stay on");
                    let guests = efer::SCE | efer::LME | efer::NXE;
                    assert_eq!(real & !guests, efer::SVME | registers.efer & efer::LMA);
                    assert!(registers.cr0 & cr0::PG == 0 || (real ^ registers.efer) & efer::LME == 0);
                }
                Written::Pat(pat) => {
                    assert_eq!((number, pat), (0x277, value));
                    assert!(pat.to_le_bytes().iter().all(|kind| [0, 1, 4, 5, 6, 7].contains(kind)));
                }
                Written::TscOffset(offset) => {
                    let after = Registers { tsc_offset: offset, ..registers };
                    assert_eq!(msrs::read(number, &after, now), Ok(value));
                    let read = |number, of| msrs::read(number, of, now).expect("every guest has it");
                    let grown = |number| read(number, &after).wrapping_sub(read(number, &registers));
                    assert!([0x10, 0x3b].contains(&number));
                    assert_eq!(grown(0x10), grown(0x3b), "they change together");
                }
                Written::Nothing => {
                    assert!((0xc001_0000..=0xc001_0007).contains(&number));
                    assert_eq!(msrs::read(number, &registers, now), Ok(0), "it counts nothing");
                }
                Written::MtrrDefType(kind) => {
                    assert_eq!((number, kind), (0x2ff, value));
                    assert!(kind & !0xcff == 0 && [0, 1, 4, 5, 6].contains(&(kind & 0xff)));
                }
            }
        }
    });
}
