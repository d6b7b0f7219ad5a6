//! Physical configuration space: by ECAM where the MCFG covers the bus, by ports 0xcf8 and 0xcfc otherwise.
#![expect(unsafe_code, reason = "configuration accesses by memory and by port")]

use core::sync::atomic::{AtomicU64, Ordering};

use levelhead::frames::Frames;
use levelhead::pci::ecam::{CONFIG_ADDRESS, CONFIG_DATA, EcamWindow, cf8_encode};
use levelhead::pci::{Bdf, ConfigSpace, Offset};
use levelhead::sync::Lock;
use x86_64::instructions::port::{Port, PortRead, PortWrite};

use super::mmio::{Register, Registers};
use super::paging::{AddressSpace, OutOfMemory};

/// The way to every function's registers.
#[derive(Debug)]
pub(crate) struct HostConfig {
    ecam: Option<(EcamWindow, Registers)>,
    /// Address and data port are one pair for all CPUs.
    ports: Lock<()>,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl HostConfig {
    /// Maps the window if there is one.
    pub(crate) fn new(
        window: Option<EcamWindow>,
        space: &mut AddressSpace,
        frames: &mut Frames,
    ) -> Result<Self, OutOfMemory> {
        let ecam = match window {
            Some(window) => {
                // SAFETY: the MCFG says that configuration space is mapped here. A write may make a function a bus
                // master; only assignment and DisIntx write, and both keep that off.
                let registers = unsafe { space.map_registers(window.start(), window.bytes(), frames) }?;
                Some((window, registers))
            }
            None => None,
        };
        Ok(Self { ecam, ports: Lock::new(()), reads: AtomicU64::new(0), writes: AtomicU64::new(0) })
    }

    /// How configuration space is reached, for reports.
    pub(crate) fn way(&self) -> &'static str {
        if self.ecam.is_some() { "ECAM" } else { "ports 0xcf8/0xcfc" }
    }

    /// Reads since boot.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Accesses since boot.
    pub(crate) fn accesses(&self) -> u64 {
        self.reads().wrapping_add(self.writes.load(Ordering::Relaxed))
    }

    /// Offset in the mapped window, whose addresses begin at its start.
    fn place(&self, bdf: Bdf, offset: Offset) -> Option<(&Registers, usize)> {
        let (window, registers) = self.ecam.as_ref()?;
        let address = window.address(bdf, offset)?;
        Some((registers, address.raw().wrapping_sub(window.start().raw()) as usize))
    }

    fn read<T: Register + PortRead>(&self, bdf: Bdf, offset: Offset) -> T {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if let Some((registers, at)) = self.place(bdf, offset) {
            return registers.read_as(at);
        }
        let Some(address) = cf8_encode(bdf, offset) else { return T::ONES };
        self.ports.with(|()| {
            // SAFETY: selects a register; no effect beyond the port pair, which the lock makes ours.
            unsafe { Port::<u32>::new(CONFIG_ADDRESS).write(address) };
            // SAFETY: the register just selected is read, which has no effect on memory (PCI 3.0 6.1).
            unsafe { Port::<T>::new(CONFIG_DATA + (offset.get() & 3)).read() }
        })
    }

    fn write<T: Register + PortWrite>(&self, bdf: Bdf, offset: Offset, value: T) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if let Some((registers, at)) = self.place(bdf, offset) {
            registers.write_as(at, value);
            return;
        }
        let Some(address) = cf8_encode(bdf, offset) else { return };
        self.ports.with(|()| {
            // SAFETY: as in `read`: it selects a register, and the lock makes the port pair ours.
            unsafe { Port::<u32>::new(CONFIG_ADDRESS).write(address) };
            // SAFETY: the register just selected takes a value that switches no bus mastering on.
            unsafe { Port::<T>::new(CONFIG_DATA + (offset.get() & 3)).write(value) };
        });
    }
}

impl ConfigSpace for HostConfig {
    fn read8(&self, bdf: Bdf, offset: Offset) -> u8 {
        self.read(bdf, offset)
    }
    fn read16(&self, bdf: Bdf, offset: Offset) -> u16 {
        self.read(bdf, offset)
    }
    fn read32(&self, bdf: Bdf, offset: Offset) -> u32 {
        self.read(bdf, offset)
    }
    fn write8(&self, bdf: Bdf, offset: Offset, value: u8) {
        self.write(bdf, offset, value);
    }
    fn write16(&self, bdf: Bdf, offset: Offset, value: u16) {
        self.write(bdf, offset, value);
    }
    fn write32(&self, bdf: Bdf, offset: Offset, value: u32) {
        self.write(bdf, offset, value);
    }
}
