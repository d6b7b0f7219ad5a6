//! A guest's configuration mechanism 1: the latch behind port 0xcf8 and which register an access to ports 0xcfc to
//! 0xcff means. No register is accessed here.

use super::Bdf;
use super::config::{Access, Width};
use super::ecam::{CONFIG_ADDRESS, CONFIG_DATA, cf8_decode};

/// What a guest's port access amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRead {
    /// The answer itself.
    Value(u32),
    /// The answer is what this access of this function's virtual configuration space returns, or all-ones when the
    /// guest has no such function.
    Register(Bdf, Access),
}

/// The address register of a guest's configuration mechanism 1 (PCI 3.0 3.2.2.3.2).
///
/// Only 32-bit accesses at port 0xcf8 reach the register; other accesses to its four ports are somebody else's
/// (0xcf9 resets many machines) and are answered as if nobody were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigPorts {
    address: u32,
}

impl ConfigPorts {
    /// The state after reset: configuration accesses disabled.
    pub const RESET: Self = Self { address: 0 };

    // Enable, bus, device, function and dword; the rest reads 0.
    const WRITABLE: u32 = 0x80ff_fffc;

    /// Whether `port` is one of the eight.
    pub const fn contains(port: u16) -> bool {
        port & !7 == CONFIG_ADDRESS
    }

    /// The guest reads `width` from `port`.
    pub const fn read(&self, port: u16, width: Width) -> PortRead {
        if port == CONFIG_ADDRESS && matches!(width, Width::Dword) {
            return PortRead::Value(self.address);
        }
        match self.register(port, width) {
            Some((bdf, access)) => PortRead::Register(bdf, access),
            None => PortRead::Value(width.ones()),
        }
    }

    /// The guest writes `value` of `width` to `port`; the result is the register meant, if any, and the value is
    /// for it.
    pub const fn write(&mut self, port: u16, width: Width, value: u32) -> Option<(Bdf, Access)> {
        if port == CONFIG_ADDRESS && matches!(width, Width::Dword) {
            self.address = value & Self::WRITABLE;
            return None;
        }
        self.register(port, width)
    }

    const fn register(&self, port: u16, width: Width) -> Option<(Bdf, Access)> {
        if port & !3 != CONFIG_DATA {
            return None;
        }
        let Some((bdf, dword)) = cf8_decode(self.address) else { return None };
        match Access::new(dword.get() + (port & 3), width) {
            Some(access) => Some((bdf, access)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ecam::cf8_encode;
    use super::super::{Offset, fake::bdf};
    use super::*;

    const WIDTHS: [Width; 3] = [Width::Byte, Width::Word, Width::Dword];

    fn selecting(at: &str, register: u8) -> ConfigPorts {
        let mut ports = ConfigPorts::RESET;
        let address = cf8_encode(bdf(at), Offset::conventional(register)).unwrap();
        assert_eq!(ports.write(0xcf8, Width::Dword, address), None);
        ports
    }

    #[test]
    fn every_port_and_width_reaches_its_register_or_nothing() {
        let ports = selecting("02:1f.7", 0x3c);
        for port in 0..=u16::MAX {
            for width in WIDTHS {
                let inside = (0xcfc..0xd00).contains(&port) && port % 4 + u16::from(width.bytes()) <= 4;
                let expected = match (port, width) {
                    (0xcf8, Width::Dword) => PortRead::Value(0x8002_ff3c),
                    _ if inside => {
                        PortRead::Register(bdf("02:1f.7"), Access::new(0x3c + port % 4, width).unwrap())
                    }
                    _ => PortRead::Value(width.ones()),
                };
                assert_eq!(ports.read(port, width), expected, "{port:#x} {width:?}");
                let mut written = ports;
                let register = match expected {
                    PortRead::Register(bdf, access) => Some((bdf, access)),
                    PortRead::Value(_) => None,
                };
                assert_eq!(written.write(port, width, 0x8000_1000), register);
                assert_eq!(written != ports, (port, width) == (0xcf8, Width::Dword));
            }
            assert_eq!(ConfigPorts::contains(port), (0xcf8..0xd00).contains(&port));
        }
    }

    #[test]
    fn nothing_is_selected_while_the_enable_bit_is_clear() {
        let mut ports = ConfigPorts::RESET;
        assert_eq!(ports.read(0xcfc, Width::Dword), PortRead::Value(u32::MAX));
        ports.write(0xcf8, Width::Dword, 0x7fff_ffff);
        assert_eq!(ports.read(0xcfd, Width::Byte), PortRead::Value(0xff));
        assert_eq!(ports.write(0xcfc, Width::Dword, 1), None);
    }

    #[test]
    fn reserved_bits_of_the_latch_read_0() {
        let mut ports = ConfigPorts::RESET;
        ports.write(0xcf8, Width::Dword, u32::MAX);
        assert_eq!(ports.read(0xcf8, Width::Dword), PortRead::Value(0x80ff_fffc));
        let access = Access::new(0xff, Width::Byte).unwrap();
        assert_eq!(ports.read(0xcff, Width::Byte), PortRead::Register(bdf("ff:1f.7"), access));
    }

    #[test]
    fn no_extended_register_is_reachable() {
        let mut ports = ConfigPorts::RESET;
        for address in (0..=31).map(|bit| 1_u32 << bit).chain([u32::MAX]) {
            ports.write(0xcf8, Width::Dword, address | 1 << 31);
            let PortRead::Register(_, access) = ports.read(0xcff, Width::Byte) else {
                panic!("not selected")
            };
            assert!(access.offset().get() < 256);
        }
    }
}
