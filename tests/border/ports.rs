//! Ports: every number in every width, with the platform's ports anywhere.

use core::num::NonZeroU64;

use levelhead::border::Ports;
use levelhead::border::ports::{PortRead, PortWrite};
use levelhead::device::cmos::{Cmos, WallClock};
use levelhead::device::{TestRegister, Uart};
use levelhead::irq::Pin;
use levelhead::pci::{ConfigPorts, Width as ConfigWidth};
use levelhead::vcpu::Width;

use crate::dice::{Dice, fuzz};

const WIDTHS: [(Width, ConfigWidth); 3] =
    [(Width::Byte, ConfigWidth::Byte), (Width::Word, ConfigWidth::Word), (Width::Dword, ConfigWidth::Dword)];

/// The platform in pieces: what each would answer if it were alone.
struct Pieces {
    debug: Option<u16>,
    exit: Option<u16>,
    test: Option<TestRegister>,
    uart: Uart,
    cmos: Cmos,
    config: ConfigPorts,
}

const CLOCK: WallClock =
    WallClock { at_ms: 1_700_000_000_000, at_tsc: 0, ticks_per_ms: NonZeroU64::new(1000).unwrap() };
const NOW: u64 = 77_000_000;

impl Pieces {
    fn read(&mut self, port: u16, (width, config_width): (Width, ConfigWidth)) -> PortRead {
        let byte = width == Width::Byte;
        PortRead::Value(match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 if byte && self.test.is_some() => {
                return PortRead::Pic(port);
            }
            0xe0..=0xe3 if self.test.is_some() => self.test.unwrap().read(port - 0xe0, width),
            0x3f8..=0x3ff if byte => u32::from(self.uart.read(port - 0x3f8)),
            0x70 | 0x71 if byte => u32::from(self.cmos.read(port - 0x70, NOW)),
            0x40..=0x42 if byte => 0,
            _ if byte && self.debug == Some(port) => 0xe9,
            0x600 | 0x601 if byte => 0,
            0xcf8..=0xcff => return self.config.read(port, config_width).into(),
            _ => width.mask() as u32,
        })
    }

    fn write(&mut self, port: u16, (width, config_width): (Width, ConfigWidth), value: u32) -> PortWrite {
        let (byte, value) = (width == Width::Byte, value & width.mask() as u32);
        match port {
            _ if self.exit == Some(port) => PortWrite::Exit(value),
            _ if byte && self.debug == Some(port) => PortWrite::Text(value as u8),
            0xe0..=0xe3 if self.test.is_some() => {
                self.test.as_mut().unwrap().write(port - 0xe0, width, value);
                PortWrite::Nothing
            }
            0x2000..=0x2017 if self.test.is_some() => {
                PortWrite::Line { pin: Pin(port as u8), high: value != 0 }
            }
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 if byte && self.test.is_some() => {
                PortWrite::Pic { port, value: value as u8 }
            }
            0x3f8..=0x3ff if byte => match self.uart.write(port - 0x3f8, value as u8) {
                Some(text) => PortWrite::Text(text),
                None => PortWrite::Nothing,
            },
            0x70 | 0x71 if byte => {
                self.cmos.write(port - 0x70, value as u8);
                PortWrite::Nothing
            }
            0x600 if byte && value & 0x3c == 0x34 => PortWrite::PowerOff,
            0xcf9 if byte && value & 4 != 0 => PortWrite::Reset,
            0xcf8..=0xcff => match self.config.write(port, config_width, value) {
                Some((bdf, access)) => PortWrite::Register(bdf, access, value),
                None => PortWrite::Nothing,
            },
            _ => PortWrite::Nothing,
        }
    }
}

fn platform(dice: &mut Dice) -> (Ports, Pieces) {
    let debug = dice.pick(&[None, Some(0xe9), Some(0xffff), Some(0)]);
    let exit = dice.pick(&[None, Some(0xf4), Some(0xfffc)]);
    let test = dice.pick(&[None, Some(TestRegister::new())]);
    let pieces = Pieces {
        debug,
        exit,
        test,
        uart: Uart::new(),
        cmos: Cmos::new(Some(CLOCK)),
        config: ConfigPorts::RESET,
    };
    (Ports::new(debug, exit, test.is_some(), Some(CLOCK)), pieces)
}

#[test]
fn every_port_reads_as_its_one_owner_and_otherwise_as_nothing() {
    for seed in 0..8 {
        let (mut ports, mut pieces) = platform(&mut Dice::new(seed));
        for port in 0..=u16::MAX {
            for widths in WIDTHS {
                assert_eq!(
                    ports.read(port, widths.0, NOW),
                    pieces.read(port, widths),
                    "{widths:?} at {port:#x}"
                );
            }
        }
    }
}

#[test]
fn a_write_reaches_one_owner_and_is_seen_nowhere_else() {
    fuzz(50, |dice| {
        let (mut ports, mut pieces) = platform(dice);
        for _ in 0..2000 {
            let widths = dice.pick(&WIDTHS);
            let port = match dice.below(6) {
                0 => dice.any() as u16,
                1 => dice.pick(&[0xe9, 0xf3, 0xf4, 0xf5, 0xfffb, 0xfffc, 0xffff, 0]),
                2 => dice.pick(&[0x20, 0x9f, 0x4cf]) + dice.below(3) as u16,
                3 => dice.pick(&[0xdc, 0x1ff8, 0x2010]) + dice.below(0x10) as u16,
                4 => dice.pick(&[0x3f0, 0x5f8]) + dice.below(0x18) as u16,
                _ => 0xcf0 + dice.below(0x18) as u16,
            };
            let value = dice.hostile() as u32;
            assert_eq!(ports.write(port, widths.0, value), pieces.write(port, widths, value));
            let (port, widths) = (dice.pick(&[0xdc, 0x3f8]) + dice.below(0x10) as u16, dice.pick(&WIDTHS));
            assert_eq!(ports.read(port, widths.0, NOW), pieces.read(port, widths));
            assert_eq!(ports.com1_output(), pieces.uart.take_output());
        }
    });
}
