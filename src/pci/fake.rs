//! A machine for tests: functions with 256 bytes of configuration space, a mask of writable bits, and a record of
//! every access.

use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::{Bdf, ConfigSpace, Offset, Width};

pub(crate) fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

/// Writable bits keep what is written; the others never change.
#[derive(Clone, Debug)]
pub(crate) struct FakeFunction {
    bytes: [u8; 256],
    writable: [u8; 256],
}

impl FakeFunction {
    pub(crate) fn endpoint(vendor: u16, device: u16) -> Self {
        let blank = Self { bytes: [0; 256], writable: [0; 256] };
        blank
            .bytes(0x00, &vendor.to_le_bytes())
            .bytes(0x02, &device.to_le_bytes())
            .bytes(0x09, &[0x00, 0xff, 0x00])
            .writable(0x04, &[0x57, 0x05])
            .writable(0x3c, &[0xff])
    }

    #[cfg(not(loom))]
    pub(crate) fn raw(bytes: [u8; 256], writable: [u8; 256]) -> Self {
        Self { bytes, writable }
    }

    /// QEMU's educational device, as its firmware leaves it.
    pub(crate) fn edu() -> Self {
        Self::endpoint(0x1234, 0x11e8)
            .memory_bar(0, 1 << 20, 0xfea0_0000)
            .capability(0x40, 0x05, &[0x80, 0x00])
            .command(0x0003)
            .bytes(0x3c, &[11, 1])
    }

    /// QEMU's test device: two BARs and no interrupt pin.
    pub(crate) fn pci_testdev() -> Self {
        Self::endpoint(0x1b36, 0x0005).memory_bar(0, 4096, 0xfebf_1000).io_bar(1, 256, 0xc000).command(0x0003)
    }

    pub(crate) fn bridge(secondary: u8, subordinate: u8) -> Self {
        Self::endpoint(0x1b36, 0x0001)
            .bytes(0x09, &[0x00, 0x04, 0x06])
            .bytes(0x0e, &[1])
            .bytes(0x18, &[0, secondary, subordinate])
            .writable(0x18, &[0xff; 4])
            .command(0x0007)
    }

    pub(crate) fn bytes(mut self, at: u8, bytes: &[u8]) -> Self {
        self.bytes[usize::from(at)..][..bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn writable(mut self, at: u8, mask: &[u8]) -> Self {
        self.writable[usize::from(at)..][..mask.len()].copy_from_slice(mask);
        self
    }

    pub(crate) fn command(self, command: u16) -> Self {
        self.bytes(0x04, &command.to_le_bytes())
    }

    pub(crate) fn bar(self, index: u8, value: u32, writable: u32) -> Self {
        let at = 0x10 + index * 4;
        self.bytes(at, &value.to_le_bytes()).writable(at, &writable.to_le_bytes())
    }

    pub(crate) fn memory_bar(self, index: u8, size: u32, address: u32) -> Self {
        self.bar(index, address, !(size - 1))
    }

    pub(crate) fn memory_bar_64(self, index: u8, size: u64, address: u64) -> Self {
        let mask = !(size - 1);
        self.bar(index, address as u32 | 0xc, mask as u32).bar(
            index + 1,
            (address >> 32) as u32,
            (mask >> 32) as u32,
        )
    }

    pub(crate) fn io_bar(self, index: u8, size: u32, port: u32) -> Self {
        self.bar(index, port | 1, !(size - 1))
    }

    /// Puts a capability in front of the list.
    pub(crate) fn capability(self, at: u8, id: u8, body: &[u8]) -> Self {
        let first = self.bytes[0x34];
        let status = self.bytes[0x06] | 0x10;
        self.bytes(at, &[id, first]).bytes(at + 2, body).bytes(0x34, &[at]).bytes(0x06, &[status])
    }

    /// Whether the capability `id` lies at `at`.
    #[cfg(not(loom))]
    pub(crate) fn has_capability(&self, at: u8, id: u8) -> bool {
        self.bytes[0x06] & 0x10 != 0 && self.bytes[usize::from(at)] == id
    }

    fn dword(&self, offset: Offset) -> u32 {
        let at = usize::from(offset.dword().get());
        let bytes = self.bytes.get(at..at + 4).map_or([0; 4], |bytes| bytes.try_into().unwrap());
        u32::from_le_bytes(bytes)
    }
}

/// Function, offset, width in bytes, value.
pub(crate) type Write = (Bdf, u16, u8, u32);

#[derive(Default)]
pub(crate) struct Machine {
    functions: RefCell<BTreeMap<Bdf, FakeFunction>>,
    writes: RefCell<Vec<Write>>,
    reads: Cell<usize>,
}

impl Machine {
    pub(crate) fn with<const N: usize>(functions: [(&str, FakeFunction); N]) -> Self {
        let machine = Self::default();
        for (at, function) in functions {
            machine.insert(bdf(at), function);
        }
        machine
    }

    pub(crate) fn insert(&self, at: Bdf, function: FakeFunction) {
        self.functions.borrow_mut().insert(at, function);
    }

    pub(crate) fn remove(&self, at: Bdf) {
        self.functions.borrow_mut().remove(&at);
    }

    pub(crate) fn dump(&self, at: Bdf) -> [u8; 256] {
        self.functions.borrow()[&at].bytes
    }

    /// Changes bytes from the device's side, read-only ones too.
    pub(crate) fn poke(&self, at: Bdf, offset: u8, bytes: &[u8]) {
        let mut functions = self.functions.borrow_mut();
        let function = functions.get_mut(&at).unwrap();
        *function = function.clone().bytes(offset, bytes);
    }

    pub(crate) fn peek16(&self, at: Bdf, offset: u8) -> u16 {
        let bytes = self.dump(at);
        u16::from_le_bytes([bytes[usize::from(offset)], bytes[usize::from(offset) + 1]])
    }

    pub(crate) fn take_writes(&self) -> Vec<Write> {
        self.writes.take()
    }

    pub(crate) fn take_reads(&self) -> usize {
        self.reads.take()
    }

    fn read(&self, at: Bdf, offset: Offset, width: Width) -> u32 {
        assert_eq!(offset.get() % u16::from(width.bytes()), 0, "unaligned read at {offset:?}");
        self.reads.set(self.reads.get() + 1);
        let functions = self.functions.borrow();
        let Some(function) = functions.get(&at) else { return width.ones() };
        function.dword(offset) >> (offset.get() % 4 * 8) & width.ones()
    }

    fn write(&self, at: Bdf, offset: Offset, width: Width, value: u32) {
        assert_eq!(offset.get() % u16::from(width.bytes()), 0, "unaligned write at {offset:?}");
        self.writes.borrow_mut().push((at, offset.get(), width.bytes(), value));
        let mut functions = self.functions.borrow_mut();
        let Some(function) = functions.get_mut(&at) else { return };
        let start = usize::from(offset.get());
        for (index, byte) in value.to_le_bytes().into_iter().take(usize::from(width.bytes())).enumerate() {
            let mask = function.writable.get(start + index).copied().unwrap_or(0);
            if let Some(slot) = function.bytes.get_mut(start + index) {
                *slot = *slot & !mask | byte & mask;
            }
        }
    }
}

impl ConfigSpace for Machine {
    fn read8(&self, bdf: Bdf, offset: Offset) -> u8 {
        self.read(bdf, offset, Width::Byte) as u8
    }

    fn read16(&self, bdf: Bdf, offset: Offset) -> u16 {
        self.read(bdf, offset, Width::Word) as u16
    }

    fn read32(&self, bdf: Bdf, offset: Offset) -> u32 {
        self.read(bdf, offset, Width::Dword)
    }

    fn write8(&self, bdf: Bdf, offset: Offset, value: u8) {
        self.write(bdf, offset, Width::Byte, u32::from(value));
    }

    fn write16(&self, bdf: Bdf, offset: Offset, value: u16) {
        self.write(bdf, offset, Width::Word, u32::from(value));
    }

    fn write32(&self, bdf: Bdf, offset: Offset, value: u32) {
        self.write(bdf, offset, Width::Dword, value);
    }
}
