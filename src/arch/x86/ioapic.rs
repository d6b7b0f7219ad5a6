//! The physical IO-APICs: shadowed entries, one write to mask and one to unmask.
//!
//! The hypervisor owns the chips alone, so it remembers every entry and which register is selected: masking writes the
//! low half only, and the index register only when it has to change. How a whole entry is programmed is the library's
//! (`ioapic::programming`).

use alloc::vec::Vec;

use levelhead::addr::HostPhys;
use levelhead::frames::Frames;
use levelhead::intx::count;
use levelhead::ioapic::{
    MMIO_DATA, MMIO_EOI, MMIO_INDEX, REG_VERSION, Rte, Version, high_register, low_register, programming,
};
use levelhead::irq::{Gsi, Pin, PinCount, TriggerMode, Vector};

use super::mmio::Registers;
use super::paging::{AddressSpace, OutOfMemory};

/// One chip.
#[derive(Debug)]
struct Chip {
    registers: Registers,
    gsi_base: u32,
    version: Version,
    selected: u8,
    shadow: Vec<Rte>,
    /// Where entries are to lead when they are unmasked next, if not where they lead now.
    aims: Vec<Option<u8>>,
}

/// Register accesses since boot, index and data alike.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Accesses {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

/// All chips of the machine, and how often they were accessed.
#[derive(Debug, Default)]
pub(crate) struct IoApics {
    chips: Vec<Chip>,
    pub(crate) accesses: Accesses,
}

impl IoApics {
    /// Maps a chip and masks all its pins.
    #[expect(unsafe_code, reason = "maps the chip's registers")]
    pub(crate) fn add(
        &mut self,
        address: HostPhys,
        gsi_base: u32,
        space: &mut AddressSpace,
        frames: &mut Frames,
    ) -> Result<PinCount, OutOfMemory> {
        // SAFETY: the MADT says an IO-APIC is here; its registers send messages but touch no memory.
        let registers = unsafe { space.map_registers(address, 0x1000, frames) }?;
        registers.write(MMIO_INDEX as usize, u32::from(REG_VERSION));
        let version = Version::from_bits(registers.read(MMIO_DATA as usize));
        let count = version.pin_count();
        let mut chip = Chip {
            registers,
            gsi_base,
            version,
            selected: REG_VERSION,
            shadow: alloc::vec![Rte::RESET; usize::from(count.get())],
            aims: alloc::vec![None; usize::from(count.get())],
        };
        for index in 0..count.get() {
            // A chip has at most 240 pins that its 8-bit index can name.
            chip.program(&mut self.accesses, Pin(index.min(239) as u8), Rte::RESET);
        }
        self.chips.push(chip);
        Ok(count)
    }

    /// Whether the chip whose first input is `gsi` can complete one vector by a register of its own.
    pub(crate) fn has_eoi_register(&self, gsi: Gsi) -> bool {
        self.chips.iter().any(|chip| chip.gsi_base == gsi.0 && chip.version.has_eoi_register())
    }

    /// Programs the whole entry; nothing may assert the pin meanwhile.
    pub(crate) fn program(&mut self, gsi: Gsi, rte: Rte) {
        if let Some((chip, pin, counts)) = self.chip(gsi) {
            chip.program(counts, pin, rte);
        }
    }

    /// Masks or unmasks; one data write, and one index write when another register was selected.
    #[inline]
    pub(crate) fn set_mask(&mut self, gsi: Gsi, masked: bool) {
        if let Some((chip, pin, counts)) = self.chip(gsi)
            && let Some(shadow) = chip.shadow.get_mut(usize::from(pin.0))
        {
            *shadow = shadow.with_mask(masked);
            let low = shadow.low();
            if !masked && chip.aims.get(usize::from(pin.0)).is_some_and(Option::is_some) {
                chip.turn(counts, pin);
            }
            chip.write(counts, low_register(pin), low);
        }
    }

    /// Whether the input waits for an EOI (Remote IRR), as the chip has it now.
    pub(crate) fn is_held(&mut self, gsi: Gsi) -> bool {
        let Some((chip, pin, counts)) = self.chip(gsi) else { return false };
        chip.select(counts, low_register(pin));
        count(&mut counts.reads);
        Rte::from_bits(chip.registers.read(MMIO_DATA as usize).into()).remote_irr()
    }

    /// Makes the chip forget that the input waits for an EOI: by its EOI register, else by an entry that is edge-triggered for a
    /// moment. The entry is masked.
    pub(crate) fn let_go(&mut self, gsi: Gsi) {
        let Some((chip, pin, counts)) = self.chip(gsi) else { return };
        let Some(rte) = chip.shadow.get(usize::from(pin.0)).copied() else { return };
        if chip.version.has_eoi_register() {
            count(&mut counts.writes);
            chip.registers.write(MMIO_EOI as usize, u32::from(rte.vector_field()));
            return;
        }
        if let Some(vector) = rte.vector() {
            let edge = Rte::masked(vector, rte.destination(), TriggerMode::Edge, rte.polarity());
            chip.program(counts, pin, edge);
            chip.program(counts, pin, rte);
        }
    }

    /// Has the input's entry lead to the CPU with this APIC identifier from its next unmasking on. Before that it stays where
    /// it is: a masked entry is the one moment at which nothing is on its way by it.
    pub(crate) fn aim(&mut self, gsi: Gsi, destination: u8) {
        if let Some((chip, pin, _)) = self.chip(gsi)
            && let Some(aim) = chip.aims.get_mut(usize::from(pin.0))
        {
            *aim = Some(destination);
        }
    }

    /// Completes `vector` at the input's chip.
    pub(crate) fn directed_eoi(&mut self, gsi: Gsi, vector: Vector) {
        if let Some((chip, _, counts)) = self.chip(gsi) {
            count(&mut counts.writes);
            chip.registers.write(MMIO_EOI as usize, u32::from(vector.get()));
        }
    }

    #[inline]
    fn chip(&mut self, gsi: Gsi) -> Option<(&mut Chip, Pin, &mut Accesses)> {
        let Self { chips, accesses } = self;
        chips
            .iter_mut()
            .find_map(|chip| {
                let pin = Pin(u8::try_from(gsi.0.checked_sub(chip.gsi_base)?).ok()?);
                chip.version.pin_count().contains(pin).then_some((chip, pin))
            })
            .map(|(chip, pin)| (chip, pin, accesses))
    }
}

impl Chip {
    fn program(&mut self, counts: &mut Accesses, pin: Pin, rte: Rte) {
        for (register, value) in programming(pin, rte) {
            self.write(counts, register, value);
        }
        if let Some(shadow) = self.shadow.get_mut(usize::from(pin.0)) {
            *shadow = rte;
        }
    }

    /// Turns a masked entry to where it is to lead.
    #[cold]
    fn turn(&mut self, counts: &mut Accesses, pin: Pin) {
        let index = usize::from(pin.0);
        let aim = self.aims.get_mut(index).and_then(Option::take);
        if let (Some(destination), Some(shadow)) = (aim, self.shadow.get_mut(index)) {
            *shadow = shadow.with_destination(destination);
            let high = shadow.high();
            self.write(counts, high_register(pin), high);
        }
    }

    #[inline]
    fn write(&mut self, counts: &mut Accesses, register: u8, value: u32) {
        self.select(counts, register);
        count(&mut counts.writes);
        self.registers.write(MMIO_DATA as usize, value);
    }

    #[inline]
    fn select(&mut self, counts: &mut Accesses, register: u8) {
        if self.selected != register {
            count(&mut counts.writes);
            self.registers.write(MMIO_INDEX as usize, u32::from(register));
            self.selected = register;
        }
    }
}
