//! Where a configuration register lies: in the enhanced configuration access window, or behind port 0xcf8.
//! Arithmetic only; the binary performs the accesses.

use super::{Bdf, Offset};
use crate::addr::{GuestPhys, HostPhys};

/// The port of the address register of configuration mechanism 1, 32 bits (PCI 3.0 3.2.2.3.2).
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// The first of the four ports of the data register.
pub const CONFIG_DATA: u16 = 0xcfc;

const BYTES_PER_BUS: u64 = 1 << 20;

/// Where every guest finds its configuration space in memory, from bus 0 on.
pub const GUEST_ECAM: GuestPhys = GuestPhys::new(0xd000_0000);
/// How long that is: 256 buses.
pub const GUEST_ECAM_BYTES: u64 = BYTES_PER_BUS << 8;

/// A window of memory through which the configuration space of some buses is reached, 4 KiB for each function
/// (PCIe 4.0 7.2.2). It does not promise that the window is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamWindow {
    base: HostPhys,
    first_bus: u8,
    last_bus: u8,
}

impl EcamWindow {
    /// From an entry of the MCFG table. `base` is where bus 0 would lie, whatever `first_bus` is (PCI Firmware 3.3
    /// 4.1.2). `None` when the buses are out of order, when `base` is not 1 MiB aligned, or when the window passes
    /// the end of the address space.
    pub const fn new(base: HostPhys, first_bus: u8, last_bus: u8) -> Option<Self> {
        if first_bus > last_bus || !base.is_aligned(BYTES_PER_BUS) {
            return None;
        }
        match base.checked_add(last_bus as u64 * BYTES_PER_BUS + (BYTES_PER_BUS - 1)) {
            Some(_) => Some(Self { base, first_bus, last_bus }),
            None => None,
        }
    }

    /// Where bus 0 would lie.
    pub const fn base(&self) -> HostPhys {
        self.base
    }

    /// The first and the last bus.
    pub const fn buses(&self) -> (u8, u8) {
        (self.first_bus, self.last_bus)
    }

    /// The first byte to map.
    pub const fn start(&self) -> HostPhys {
        // `new` found room for more than that.
        HostPhys::new(self.base.raw().wrapping_add(self.first_bus as u64 * BYTES_PER_BUS))
    }

    /// How many bytes to map, a multiple of 1 MiB.
    pub const fn bytes(&self) -> u64 {
        ((self.last_bus - self.first_bus) as u64 + 1) * BYTES_PER_BUS
    }

    /// Where a register lies, or `None` for a bus outside the window.
    pub const fn address(&self, bdf: Bdf, offset: Offset) -> Option<HostPhys> {
        if bdf.bus() < self.first_bus || bdf.bus() > self.last_bus {
            return None;
        }
        self.base.checked_add((bdf.requester_id() as u64) << 12 | offset.get() as u64)
    }
}

/// Which function and which byte of its 4 KiB a byte of a window is, counted from where bus 0 lies; `None` beyond the last bus.
pub const fn ecam_decode(offset: u64) -> Option<(Bdf, u16)> {
    if offset >= GUEST_ECAM_BYTES {
        return None;
    }
    Some((Bdf::from_requester_id((offset >> 12) as u16), offset as u16 & 0xfff))
}

const CF8_ENABLE: u32 = 1 << 31;

/// What to write to port 0xcf8 to select the dword of a register; `None` for offsets from 256 on, which
/// configuration mechanism 1 cannot name.
pub const fn cf8_encode(bdf: Bdf, offset: Offset) -> Option<u32> {
    match offset.dword().as_conventional() {
        Some(register) => Some(CF8_ENABLE | (bdf.requester_id() as u32) << 8 | register as u32),
        None => None,
    }
}

/// Which dword a value of the address register selects; `None` while the enable bit is clear. Reserved bits are
/// ignored.
pub const fn cf8_decode(address: u32) -> Option<(Bdf, Offset)> {
    if address & CF8_ENABLE == 0 {
        return None;
    }
    let bdf = Bdf::from_requester_id((address >> 8) as u16);
    Some((bdf, Offset::conventional(address as u8).dword()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q35_BASE: HostPhys = HostPhys::new(0xb000_0000);

    #[test]
    fn every_function_of_the_window_has_its_own_4_kib() {
        let window = EcamWindow::new(Q35_BASE, 0, 255).unwrap();
        for raw in 0..=u16::MAX {
            let bdf = Bdf::from_requester_id(raw);
            let address = window.address(bdf, Offset::new(0xffc).unwrap()).unwrap();
            assert_eq!(address.raw(), 0xb000_0000 + u64::from(raw) * 4096 + 0xffc);
        }
        assert_eq!(window.start(), Q35_BASE);
        assert_eq!(window.bytes(), 256 << 20);
    }

    #[test]
    fn a_byte_of_the_window_is_a_byte_of_one_function() {
        let window = EcamWindow::new(Q35_BASE, 0, 255).unwrap();
        for at in (0..GUEST_ECAM_BYTES).step_by(4093) {
            let (bdf, byte) = ecam_decode(at).unwrap();
            let start = window.address(bdf, Offset::VENDOR_ID).unwrap();
            assert_eq!(start.raw() + u64::from(byte), 0xb000_0000 + at);
            assert!(byte < 4096);
        }
        assert_eq!(ecam_decode(GUEST_ECAM_BYTES), None);
        assert_eq!(ecam_decode(u64::MAX), None);
    }

    #[test]
    fn a_window_that_starts_late_still_counts_from_bus_0() {
        let window = EcamWindow::new(Q35_BASE, 0x40, 0x41).unwrap();
        let at = |bus| window.address(Bdf::new(bus, 0, 0).unwrap(), Offset::VENDOR_ID);
        assert_eq!(window.start().raw(), 0xb400_0000);
        assert_eq!(window.bytes(), 2 << 20);
        assert_eq!((at(0x3f), at(0x42)), (None, None));
        assert_eq!(at(0x40), Some(HostPhys::new(0xb400_0000)));
        assert_eq!(at(0x41), Some(HostPhys::new(0xb410_0000)));
    }

    #[test]
    fn firmware_cannot_describe_an_impossible_window() {
        assert_eq!(EcamWindow::new(Q35_BASE, 2, 1), None);
        assert_eq!(EcamWindow::new(HostPhys::new(0xb000_1000), 0, 255), None);
        let top = HostPhys::new(u64::MAX - (BYTES_PER_BUS - 1));
        assert!(EcamWindow::new(top, 0, 0).is_some());
        assert_eq!(EcamWindow::new(top, 0, 1), None);
    }

    #[test]
    fn cf8_round_trips_for_every_function_and_register() {
        for raw in 0..=u16::MAX {
            let bdf = Bdf::from_requester_id(raw);
            for register in [0_u8, 0x04, 0x3d, 0xff] {
                let offset = Offset::conventional(register);
                let address = cf8_encode(bdf, offset).unwrap();
                assert_eq!(cf8_decode(address), Some((bdf, offset.dword())));
                assert_eq!(cf8_decode(address & !CF8_ENABLE), None);
            }
        }
        assert_eq!(cf8_encode(Bdf::from_requester_id(0), Offset::new(256).unwrap()), None);
        // 00:1f.2, offset 0x3c.
        assert_eq!(cf8_encode(Bdf::new(0, 0x1f, 2).unwrap(), Offset::INTERRUPT_LINE), Some(0x8000_fa3c));
    }

    #[test]
    fn cf8_ignores_reserved_bits() {
        assert_eq!(cf8_decode(0xff00_fa3f), cf8_decode(0x8000_fa3c));
    }
}
