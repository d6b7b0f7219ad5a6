//! The machine as the acpi crate and firmware's AML see it: memory by address, ports, configuration space, time.
//!
//! Boot only. Firmware is trusted with all of it, as it is under any operating system.
#![expect(unsafe_code, reason = "implements the acpi crate's view of memory and ports")]

use core::cell::RefCell;
use core::ptr::NonNull;

use acpi::aml::AmlError;
use acpi::{Handle, Handler, PciAddress, PhysicalMapping};
use levelhead::addr::{HostPhys, PAGE_BYTES};
use levelhead::frames::Frames;
use x86_64::instructions::port::Port;

use crate::arch::x86::cpu::{TICKS_PER_MICROSECOND, tsc};
use crate::arch::x86::paging::AddressSpace;

/// Memory access for the crate while boot lasts.
pub(crate) struct Memory<'a> {
    pub(crate) space: &'a mut AddressSpace,
    pub(crate) frames: &'a mut Frames,
}

#[derive(Clone, Copy)]
pub(super) struct Firmware<'a> {
    memory: &'a RefCell<Memory<'a>>,
}

impl<'a> Firmware<'a> {
    /// A view of `memory` that the crate may copy.
    pub(super) const fn new(memory: &'a RefCell<Memory<'a>>) -> Self {
        Self { memory }
    }

    fn map(&self, address: usize, bytes: usize) -> NonNull<u8> {
        let mut memory = self.memory.borrow_mut();
        let Memory { space, frames } = &mut *memory;
        // The crate reads some tables as its own, longer structures, past the end that it asked for.
        let bytes = bytes as u64 + PAGE_BYTES;
        match space.map_firmware(HostPhys::new(address as u64), bytes, frames) {
            Some(pointer) => pointer,
            // The crate's interface has no error here; the panic report names firmware as the culprit.
            #[expect(clippy::panic, reason = "boot only: the crate's callback cannot fail")]
            None => panic!("Firmware: an ACPI table names address {address:#x}, which cannot be mapped"),
        }
    }

    fn read<T: Copy>(&self, address: usize) -> T {
        let pointer = self.map(address, size_of::<T>()).cast::<T>();
        // SAFETY: just mapped; T is an integer, and alignment is not assumed.
        unsafe { pointer.read_unaligned() }
    }

    fn write<T>(&self, address: usize, value: T) {
        let pointer = self.map(address, size_of::<T>()).cast::<T>();
        // SAFETY: just mapped. AML may write where it likes, as it may under any operating system: firmware is trusted.
        unsafe { pointer.write_unaligned(value) };
    }

    fn config_address(address: PciAddress, offset: u16) -> u32 {
        1 << 31
            | u32::from(address.bus()) << 16
            | u32::from(address.device()) << 11
            | u32::from(address.function()) << 8
            | u32::from(offset & 0xfc)
    }

    fn select(address: PciAddress, offset: u16) -> u16 {
        // SAFETY: the address port has no effect but to select; boot is single-threaded.
        unsafe { Port::<u32>::new(0xcf8).write(Self::config_address(address, offset)) };
        0xcfc + (offset & 3)
    }
}

impl Handler for Firmware<'_> {
    unsafe fn map_physical_region<T>(
        &self,
        physical_address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        PhysicalMapping {
            physical_start: physical_address,
            virtual_start: self.map(physical_address, size).cast(),
            region_length: size,
            mapped_length: size,
            handler: *self,
        }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {
        // Pages stay mapped until the end of boot: tables share them.
    }

    fn read_u8(&self, address: usize) -> u8 {
        self.read(address)
    }
    fn read_u16(&self, address: usize) -> u16 {
        self.read(address)
    }
    fn read_u32(&self, address: usize) -> u32 {
        self.read(address)
    }
    fn read_u64(&self, address: usize) -> u64 {
        self.read(address)
    }
    fn write_u8(&self, address: usize, value: u8) {
        self.write(address, value);
    }
    fn write_u16(&self, address: usize, value: u16) {
        self.write(address, value);
    }
    fn write_u32(&self, address: usize, value: u32) {
        self.write(address, value);
    }
    fn write_u64(&self, address: usize, value: u64) {
        self.write(address, value);
    }

    fn read_io_u8(&self, port: u16) -> u8 {
        // SAFETY: AML's own port access; firmware is trusted.
        unsafe { Port::new(port).read() }
    }
    fn read_io_u16(&self, port: u16) -> u16 {
        // SAFETY: as for `read_io_u8`: AML's own port access.
        unsafe { Port::new(port).read() }
    }
    fn read_io_u32(&self, port: u16) -> u32 {
        // SAFETY: as for `read_io_u8`: AML's own port access.
        unsafe { Port::new(port).read() }
    }
    fn write_io_u8(&self, port: u16, value: u8) {
        // SAFETY: as for `read_io_u8`: AML's own port access.
        unsafe { Port::new(port).write(value) }
    }
    fn write_io_u16(&self, port: u16, value: u16) {
        // SAFETY: as for `read_io_u8`: AML's own port access.
        unsafe { Port::new(port).write(value) }
    }
    fn write_io_u32(&self, port: u16, value: u32) {
        // SAFETY: as for `read_io_u8`: AML's own port access.
        unsafe { Port::new(port).write(value) }
    }

    fn read_pci_u8(&self, address: PciAddress, offset: u16) -> u8 {
        // SAFETY: a configuration read by AML.
        unsafe { Port::new(Self::select(address, offset)).read() }
    }
    fn read_pci_u16(&self, address: PciAddress, offset: u16) -> u16 {
        // SAFETY: a configuration read by AML.
        unsafe { Port::new(Self::select(address, offset)).read() }
    }
    fn read_pci_u32(&self, address: PciAddress, offset: u16) -> u32 {
        // SAFETY: a configuration read by AML.
        unsafe { Port::new(Self::select(address, offset)).read() }
    }
    fn write_pci_u8(&self, address: PciAddress, offset: u16, value: u8) {
        // SAFETY: a configuration write by AML; firmware is trusted.
        unsafe { Port::new(Self::select(address, offset)).write(value) }
    }
    fn write_pci_u16(&self, address: PciAddress, offset: u16, value: u16) {
        // SAFETY: as for `write_pci_u8`: AML's own configuration write.
        unsafe { Port::new(Self::select(address, offset)).write(value) }
    }
    fn write_pci_u32(&self, address: PciAddress, offset: u16, value: u32) {
        // SAFETY: as for `write_pci_u8`: AML's own configuration write.
        unsafe { Port::new(Self::select(address, offset)).write(value) }
    }

    fn nanos_since_boot(&self) -> u64 {
        tsc() / 2
    }

    fn stall(&self, microseconds: u64) {
        let begin = tsc();
        let ticks = microseconds.saturating_mul(TICKS_PER_MICROSECOND);
        while tsc().wrapping_sub(begin) < ticks {
            core::hint::spin_loop();
        }
    }

    fn sleep(&self, milliseconds: u64) {
        self.stall(milliseconds.saturating_mul(1000));
    }

    fn create_mutex(&self) -> Handle {
        Handle(0)
    }
    fn acquire(&self, _mutex: Handle, _timeout: u16) -> Result<(), AmlError> {
        // One CPU interprets AML, and nobody else runs yet.
        Ok(())
    }
    fn release(&self, _mutex: Handle) {}
}
