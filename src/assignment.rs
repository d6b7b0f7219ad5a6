//! How a function's INTx comes onto its line, step by step, and what is left when a step fails: nothing.
//!
//! The order is the point. The function is silenced (DisINTx) before its line is looked at, since all functions on a line open
//! together; the redirection table entry is level-triggered and masked before the function may assert again, and the
//! permanent handler stands before anything can reach it (I2, I14, I48). A step that fails leaves the function silent, its
//! line masked and no handler, and all of it may be tried again (I12, I27).

use core::fmt;

use crate::intx::{
    Actor, AssignError, Budget, Gate, LineIo, LineTable, Notifier, Sample, SourceId, SourceInfo,
};
use crate::ioapic::Rte;
use crate::irq::{Gsi, Polarity, TriggerMode, Vector};
use crate::pci::{ConfigSpace, DisIntx, Function};

/// What an assignment needs of the IO-APICs.
pub trait Chips {
    /// Programs the whole entry of an input that nobody asserts.
    fn program(&mut self, gsi: Gsi, rte: Rte);
    /// Masks or unmasks an entry. Effective in the chip on return.
    fn set_mask(&mut self, gsi: Gsi, masked: bool);
}

/// Where a function's INTx is to go.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its line.
    pub gsi: Gsi,
    /// How the line is wired.
    pub polarity: Polarity,
    /// The line's vector.
    pub vector: Vector,
    /// The APIC identifier its interrupts are sent to.
    pub destination: u8,
    /// What silences the function.
    pub gate: Gate,
    /// The partition that has it for good, if one does.
    pub owner: Option<u8>,
    /// Its storm budget.
    pub budget: Option<Budget>,
}

/// Why a function is not assigned. It is silent, and nothing else has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does not answer.
    Absent,
    /// There are as many writers of DisINTx as sources can be.
    Full,
    /// Its line does not take it.
    Line(AssignError),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("it does not answer in configuration space"),
            Self::Full => f.write_str("there are more sources than places for them"),
            Self::Line(error) => write!(f, "{error}"),
        }
    }
}

/// Makes a function ready and silent. The one writer of its Command register from now on.
///
/// # Errors
/// [`Fault::Absent`].
pub fn silence(space: &impl ConfigSpace, function: &Function) -> Result<DisIntx, Fault> {
    function.prepare(space);
    let silencer = DisIntx::take(space, function.bdf).ok_or(Fault::Absent)?;
    silencer.write(space, true);
    Ok(silencer)
}

/// Brings a silent function onto its line, and installs the permanent handler if it is the first one there. `now` is the
/// recorder's time.
///
/// # Errors
/// [`Fault::Full`] or [`Fault::Line`]; it may be tried again, from [`silence`] on.
pub fn install(
    table: &mut LineTable,
    silencers: &mut [Option<DisIntx>],
    silencer: DisIntx,
    space: &impl ConfigSpace,
    chips: &mut impl Chips,
    place: &Place,
    now: u64,
) -> Result<SourceId, Fault> {
    let slot = silencers.iter_mut().find(|slot| slot.is_none()).ok_or(Fault::Full)?;
    let &Place { gsi, polarity, vector, destination, gate, owner, budget } = place;
    // The entry of a line in use is its sharers' too, and open when they are silenced by themselves.
    if !table.is_in_use(gsi) {
        chips.program(gsi, Rte::masked(vector, destination, TriggerMode::Level, polarity));
    }
    let info = SourceInfo { owner, bdf: silencer.bdf().requester_id() };
    let mut ends = Ends { chips, silencer: &silencer, space, now };
    let source = table.assign(gsi, vector, gate, info, &mut ends).map_err(Fault::Line)?;
    if let Some(budget) = budget {
        table.limit(source, budget);
    }
    if gate == Gate::RteMask {
        // Behind a line gate the function must be able to drive the wire; the entry is masked now.
        silencer.write(space, false);
    }
    *slot = Some(silencer);
    Ok(source)
}

/// Both ends of a line on which a source has just come to sit: the function's own gate and the entry. It has no notifier yet
/// and nothing in service, so nothing of a receiver is reached and nobody is asked.
struct Ends<'a, C, S> {
    chips: &'a mut C,
    silencer: &'a DisIntx,
    space: &'a S,
    now: u64,
}

impl<C: Chips, S: ConfigSpace> LineIo for Ends<'_, C, S> {
    fn mask_rte(&mut self, gsi: Gsi) {
        self.chips.set_mask(gsi, true);
    }

    fn unmask_rte(&mut self, gsi: Gsi) {
        self.chips.set_mask(gsi, false);
    }

    fn directed_eoi(&mut self, _: Gsi, _: Vector) {}

    fn set_disintx(&mut self, bdf: u16, set: bool) {
        if self.silencer.bdf().requester_id() == bdf {
            self.silencer.write(self.space, set);
        }
    }

    fn intx_status(&mut self, _: u16) -> Sample {
        Sample::Low
    }

    fn lower_pin(&mut self, _: SourceId, _: Notifier) {}

    fn holds_pin(&mut self, _: SourceId, _: Notifier) -> bool {
        true
    }

    fn virtual_rte_masked(&mut self, _: Notifier) -> bool {
        true
    }

    fn now(&mut self) -> u64 {
        self.now
    }

    fn actor(&self) -> Actor {
        Actor::Hypervisor
    }
}

#[cfg(test)]
mod tests;
