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
    Aim, MMIO_DATA, MMIO_EOI, MMIO_INDEX, REG_VERSION, Rte, Version, high_register, low_register, programming,
};
use levelhead::irq::{Gsi, Pin, PinCount, TriggerMode, Vector};

use super::mmio::Registers;
use super::paging::{AddressSpace, OutOfMemory};

/// So many entries can be named by an index register of 8 bits whose first 16 registers are others.
const MOST_INPUTS: u16 = 120;

/// One chip.
#[derive(Debug)]
struct Chip {
    registers: Registers,
    gsi_base: u32,
    version: Version,
    selected: u8,
    /// As many as the chip has, and at most as many as its index register can name.
    inputs: Vec<Input>,
}

/// One input of a chip.
#[derive(Clone, Copy, Debug)]
struct Input {
    /// Its entry, as the chip has it.
    shadow: Rte,
    /// Where the entry is to lead.
    aim: Aim,
    /// The register of the entry's low half.
    low: u8,
}

impl Input {
    const fn new(pin: Pin) -> Self {
        Self { shadow: Rte::RESET, aim: Aim::Kept, low: low_register(pin) }
    }
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
            inputs: (0..count.get().min(MOST_INPUTS)).map(|index| Input::new(pin(index.into()))).collect(),
        };
        for pin in (0..chip.inputs.len()).map(pin) {
            chip.program(&mut self.accesses, pin, Rte::RESET);
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
        if let Some((chip, index, counts)) = self.input(gsi) {
            chip.program(counts, pin(index), rte);
        }
    }

    /// Masks or unmasks; one data write, and one index write when another register was selected.
    #[inline]
    pub(crate) fn set_mask(&mut self, gsi: Gsi, masked: bool) {
        if let Some((chip, index, counts)) = self.input(gsi)
            && let Some(input) = chip.inputs.get_mut(index)
        {
            input.shadow = input.shadow.with_mask(masked);
            let (register, low) = (input.low, input.shadow.low());
            if !masked && !input.aim.is_kept() {
                chip.turn(counts, index);
            }
            chip.write(counts, register, low);
        }
    }

    /// Whether the input waits for an EOI (Remote IRR), as the chip has it now.
    pub(crate) fn is_held(&mut self, gsi: Gsi) -> bool {
        let Some((chip, index, counts)) = self.input(gsi) else { return false };
        chip.select(counts, low_register(pin(index)));
        count(&mut counts.reads);
        Rte::from_bits(chip.registers.read(MMIO_DATA as usize).into()).remote_irr()
    }

    /// Makes the chip forget that the input waits for an EOI: by its EOI register, else by an entry that is edge-triggered for a
    /// moment. The entry is masked.
    pub(crate) fn let_go(&mut self, gsi: Gsi) {
        let Some((chip, index, counts)) = self.input(gsi) else { return };
        let Some(rte) = chip.inputs.get(index).map(|input| input.shadow) else { return };
        if chip.version.has_eoi_register() {
            count(&mut counts.writes);
            chip.registers.write(MMIO_EOI as usize, u32::from(rte.vector_field()));
            return;
        }
        if let Some(vector) = rte.vector() {
            let edge = Rte::masked(vector, rte.destination(), TriggerMode::Edge, rte.polarity());
            chip.program(counts, pin(index), edge);
            chip.program(counts, pin(index), rte);
        }
    }

    /// The input's interrupt was taken by the CPU with this APIC identifier, and not by the one that handled it. If that goes on the
    /// entry leads there, from an unmasking on. Before that it stays where it is: a masked entry is the one moment at which nothing
    /// is on its way by it.
    pub(crate) fn aim(&mut self, gsi: Gsi, taker: u8) {
        if let Some((chip, index, _)) = self.input(gsi)
            && let Some(input) = chip.inputs.get_mut(index)
        {
            input.aim = input.aim.taken_by(taker, input.shadow.destination());
        }
    }

    /// Completes `vector` at the input's chip.
    pub(crate) fn directed_eoi(&mut self, gsi: Gsi, vector: Vector) {
        if let Some((chip, _, counts)) = self.input(gsi) {
            count(&mut counts.writes);
            chip.registers.write(MMIO_EOI as usize, u32::from(vector.get()));
        }
    }

    /// The chip that has this input, and which of its inputs it is.
    #[inline]
    fn input(&mut self, gsi: Gsi) -> Option<(&mut Chip, usize, &mut Accesses)> {
        let Self { chips, accesses } = self;
        let found = chips.iter_mut().find_map(|chip| {
            // Below the chip's first input this wraps, to beyond its last.
            let index = gsi.0.wrapping_sub(chip.gsi_base) as usize;
            (index < chip.inputs.len()).then_some((chip, index))
        });
        found.map(|(chip, index)| (chip, index, accesses))
    }
}

/// The input with this index, which is below [`MOST_INPUTS`].
const fn pin(index: usize) -> Pin {
    Pin(index as u8)
}

impl Chip {
    fn program(&mut self, counts: &mut Accesses, pin: Pin, rte: Rte) {
        for (register, value) in programming(pin, rte) {
            self.write(counts, register, value);
        }
        if let Some(input) = self.inputs.get_mut(usize::from(pin.0)) {
            input.shadow = rte;
        }
    }

    /// Turns a masked entry, which is about to be unmasked, to where it is to lead.
    #[cold]
    fn turn(&mut self, counts: &mut Accesses, index: usize) {
        let Some(input) = self.inputs.get_mut(index) else { return };
        let (destination, aim) = input.aim.unmasked();
        input.aim = aim;
        if let Some(destination) = destination {
            input.shadow = input.shadow.with_destination(destination);
            let high = input.shadow.high();
            self.write(counts, high_register(pin(index)), high);
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
