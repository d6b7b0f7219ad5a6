//! The physical IO-APICs: shadowed entries, one write to mask and one to unmask.
//!
//! The hypervisor owns the chips alone, so it remembers every entry and which register is selected: masking writes the
//! low half only, and the index register only when it has to change. How a whole entry is programmed is the library's
//! (`ioapic::programming`).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering};

use levelhead::addr::{HostPhys, PAGE_BYTES};
use levelhead::frames::Frames;
use levelhead::intx::count;
use levelhead::ioapic::{
    Aim, MMIO_DATA, MMIO_EOI, MMIO_INDEX, REG_VERSION, Rte, Version, high_register, low_register, programming,
};
use levelhead::irq::{Gsi, Pin, PinCount, TriggerMode, Vector};

use super::mmio::RegisterPage;
use super::paging::{AddressSpace, OutOfMemory};

/// So many entries can be named by an index register of 8 bits whose first 16 registers are others.
const MOST_INPUTS: u16 = 120;

/// A chip whose GSIs begin beyond is not used, since inputs are kept by GSI. Firmware numbers those of a machine one chip behind
/// the other, and no machine comes near.
pub(crate) const LAST_GSI_BASE: u32 = 4096;

const INDEX: usize = MMIO_INDEX as usize;
const DATA: usize = MMIO_DATA as usize;
const EOI: usize = MMIO_EOI as usize;

/// One chip, which each of its inputs leads to.
#[derive(Debug)]
struct Chip {
    registers: RegisterPage,
    version: Version,
    /// What the index register holds; changed only through [`IoApics`], by one CPU at a time.
    selected: AtomicU8,
}

/// One input of a chip.
#[derive(Clone, Copy, Debug)]
struct Input {
    chip: &'static Chip,
    /// Its entry, as the chip has it.
    shadow: Rte,
    /// Where the entry is to lead.
    aim: Aim,
    pin: Pin,
    /// The register of the entry's low half.
    low: u8,
}

impl Input {
    const fn new(chip: &'static Chip, pin: Pin) -> Self {
        Self { chip, shadow: Rte::RESET, aim: Aim::Kept, pin, low: low_register(pin) }
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
    /// By GSI.
    inputs: Vec<Option<Input>>,
    pub(crate) accesses: Accesses,
}

impl IoApics {
    /// Maps a chip and masks all its pins. How many it has; or none that anybody may use, if their GSIs are too large.
    #[expect(unsafe_code, reason = "maps the chip's registers")]
    pub(crate) fn add(
        &mut self,
        address: HostPhys,
        gsi_base: u32,
        space: &mut AddressSpace,
        frames: &mut Frames,
    ) -> Result<Option<PinCount>, OutOfMemory> {
        // SAFETY: the MADT says an IO-APIC is here; its registers send messages but touch no memory.
        let registers = unsafe { space.map_registers(address, PAGE_BYTES, frames) }?;
        let registers = RegisterPage::new(registers).ok_or(OutOfMemory)?;
        registers.write::<INDEX>(u32::from(REG_VERSION));
        let version = Version::from_bits(registers.read::<DATA>());
        let count = version.pin_count();
        let chip = Box::leak(Box::new(Chip { registers, version, selected: AtomicU8::new(REG_VERSION) }));
        // Below MOST_INPUTS.
        let pins = (0..count.get().min(MOST_INPUTS)).map(|index| Pin(index as u8));
        let mut inputs: Vec<Input> = pins.map(|pin| Input::new(chip, pin)).collect();
        for input in &mut inputs {
            input.program(&mut self.accesses, Rte::RESET);
        }
        if gsi_base > LAST_GSI_BASE {
            return Ok(None);
        }
        let first = gsi_base as usize;
        self.inputs.resize(self.inputs.len().max(first + inputs.len()), None);
        for (place, input) in self.inputs.iter_mut().skip(first).zip(inputs) {
            *place = Some(input);
        }
        Ok(Some(count))
    }

    /// Whether the chip that has the input can complete one vector by a register of its own.
    pub(crate) fn has_eoi_register(&self, gsi: Gsi) -> bool {
        let input = self.inputs.get(gsi.0 as usize).copied().flatten();
        input.is_some_and(|input| input.chip.version.has_eoi_register())
    }

    /// Programs the whole entry; nothing may assert the pin meanwhile.
    pub(crate) fn program(&mut self, gsi: Gsi, rte: Rte) {
        if let Some((input, counts)) = self.input(gsi) {
            input.program(counts, rte);
        }
    }

    /// Masks or unmasks; one data write, and one index write when another register was selected.
    #[inline]
    pub(crate) fn set_mask(&mut self, gsi: Gsi, masked: bool) {
        if let Some((input, counts)) = self.input(gsi) {
            input.shadow = input.shadow.with_mask(masked);
            if !masked && !input.aim.is_kept() {
                input.turn(counts);
            }
            input.chip.write(counts, input.low, input.shadow.low());
        }
    }

    /// Whether the input waits for an EOI (Remote IRR), as the chip has it now.
    pub(crate) fn is_held(&mut self, gsi: Gsi) -> bool {
        let Some((input, counts)) = self.input(gsi) else { return false };
        input.chip.select(counts, input.low);
        count(&mut counts.reads);
        Rte::from_bits(input.chip.registers.read::<DATA>().into()).remote_irr()
    }

    /// Makes the chip forget that the input waits for an EOI: by its EOI register, else by an entry that is edge-triggered for a
    /// moment. The entry is masked.
    pub(crate) fn let_go(&mut self, gsi: Gsi) {
        let Some((input, counts)) = self.input(gsi) else { return };
        let rte = input.shadow;
        if input.chip.version.has_eoi_register() {
            input.chip.complete(counts, rte.vector_field());
            return;
        }
        if let Some(vector) = rte.vector() {
            let edge = Rte::masked(vector, rte.destination(), TriggerMode::Edge, rte.polarity());
            input.program(counts, edge);
            input.program(counts, rte);
        }
    }

    /// The input's interrupt was taken by the CPU with this APIC identifier, and not by the one that handled it. If that goes on the
    /// entry leads there, from an unmasking on. Before that it stays where it is: a masked entry is the one moment at which nothing
    /// is on its way by it.
    pub(crate) fn aim(&mut self, gsi: Gsi, taker: u8) {
        if let Some((input, _)) = self.input(gsi) {
            input.aim = input.aim.taken_by(taker, input.shadow.destination());
        }
    }

    /// Completes `vector` at the input's chip.
    pub(crate) fn directed_eoi(&mut self, gsi: Gsi, vector: Vector) {
        if let Some((input, counts)) = self.input(gsi) {
            input.chip.complete(counts, vector.get());
        }
    }

    #[inline]
    fn input(&mut self, gsi: Gsi) -> Option<(&mut Input, &mut Accesses)> {
        let Self { inputs, accesses } = self;
        let input = inputs.get_mut(gsi.0 as usize)?.as_mut()?;
        Some((input, accesses))
    }
}

impl Input {
    fn program(&mut self, counts: &mut Accesses, rte: Rte) {
        for (register, value) in programming(self.pin, rte) {
            self.chip.write(counts, register, value);
        }
        self.shadow = rte;
    }

    /// Turns a masked entry, which is about to be unmasked, to where it is to lead.
    #[cold]
    fn turn(&mut self, counts: &mut Accesses) {
        let (destination, aim) = self.aim.unmasked();
        self.aim = aim;
        if let Some(destination) = destination {
            self.shadow = self.shadow.with_destination(destination);
            self.chip.write(counts, high_register(self.pin), self.shadow.high());
        }
    }
}

impl Chip {
    #[inline]
    fn write(&self, counts: &mut Accesses, register: u8, value: u32) {
        self.select(counts, register);
        count(&mut counts.writes);
        self.registers.write::<DATA>(value);
    }

    #[inline]
    fn select(&self, counts: &mut Accesses, register: u8) {
        if self.selected.load(Ordering::Relaxed) != register {
            self.reselect(counts, register);
        }
    }

    // Out of line: beside a write to a chip the call costs nothing, and where it is not needed it leaves no trace.
    #[cold]
    #[inline(never)]
    fn reselect(&self, counts: &mut Accesses, register: u8) {
        count(&mut counts.writes);
        self.registers.write::<INDEX>(u32::from(register));
        self.selected.store(register, Ordering::Relaxed);
    }

    /// Completes a vector at all inputs that wait for its EOI.
    fn complete(&self, counts: &mut Accesses, vector: u8) {
        count(&mut counts.writes);
        self.registers.write::<EOI>(u32::from(vector));
    }
}
