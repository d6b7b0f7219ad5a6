//! A guest's base address registers of one function: the sizing protocol, where the guest wants its BARs, and what
//! that means for nested paging and the I/O permission map. Nothing here touches hardware.

use core::fmt;

use super::config::Access;
use super::{Bar, BarIndex, BarKind, BarSlot, Bars, Command, Function};
use crate::addr::{GuestPhys, HostPhys, PAGE_BYTES};
use crate::message::Message;

/// The guest-physical addresses at which a partition's memory BARs may lie; whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarWindow {
    first: u64,
    last: u64,
}

impl BarWindow {
    /// The window from `start` up to but not including `end`; `None` when it is empty, not page aligned, or begins
    /// at 0, which in a BAR means that nobody assigned an address.
    pub const fn new(start: GuestPhys, end: GuestPhys) -> Option<Self> {
        if start.raw() == 0
            || start.raw() >= end.raw()
            || !start.is_aligned(PAGE_BYTES)
            || !end.is_aligned(PAGE_BYTES)
        {
            return None;
        }
        Some(Self { first: start.raw(), last: end.raw() - 1 })
    }

    /// Its first address.
    pub const fn start(&self) -> GuestPhys {
        GuestPhys::new(self.first)
    }

    /// How long it is.
    pub const fn bytes(&self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether `bytes` from `start` on lie within the window.
    pub const fn contains(&self, start: GuestPhys, bytes: u64) -> bool {
        let Some(after_first) = bytes.checked_sub(1) else { return false };
        match start.checked_add(after_first) {
            Some(last) => start.raw() >= self.first && last.raw() <= self.last,
            None => false,
        }
    }
}

/// Where the guest finds each memory BAR at first, by the index of its (first) register. A BAR without a place
/// reads 0 and decodes nothing until the guest gives it one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement([Option<GuestPhys>; 6]);

impl Placement {
    /// Each register's address, BAR0 first.
    pub const fn new(addresses: [Option<GuestPhys>; 6]) -> Self {
        Self(addresses)
    }

    /// The address for `index`.
    pub fn get(&self, index: BarIndex) -> Option<GuestPhys> {
        self.0.get(usize::from(index.get())).copied().flatten()
    }
}

/// Gives out places in a window, upwards, each BAR aligned to its virtual size.
#[derive(Clone, Copy, Debug)]
pub struct BarPlacer {
    window: BarWindow,
    next: GuestPhys,
}

impl BarPlacer {
    /// Nothing given out yet.
    pub const fn new(window: BarWindow) -> Self {
        Self { window, next: GuestPhys::new(window.first) }
    }

    /// Places every memory BAR of `function`; `Err` names the first one for which no room is left, and then no
    /// room was taken.
    pub fn place(&mut self, function: &Function) -> Result<Placement, BarIndex> {
        let mut next = self.next;
        let mut placement = Placement::default();
        for bar in function.bars.iter().filter(|bar| bar.kind().is_memory()) {
            let bytes = virtual_bytes(bar);
            let below = next.checked_add(bytes - 1).ok_or(bar.index())?;
            let start = GuestPhys::new(below.raw() & !(bytes - 1));
            if !self.window.contains(start, bytes) {
                return Err(bar.index());
            }
            // A BAR that ends the address space leaves nothing.
            next = start.checked_add(bytes).unwrap_or(GuestPhys::new(u64::MAX));
            if let Some(slot) = placement.0.get_mut(usize::from(bar.index().get())) {
                *slot = Some(start);
            }
        }
        self.next = next;
        Ok(placement)
    }
}

/// A BAR that cannot be passed through, or not in this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarError {
    /// Device: the register makes no sense.
    Malformed(BarIndex),
    /// Firmware: nobody assigned an address.
    Unassigned(BarIndex),
    /// Firmware: it begins within a page, and a guest's BAR cannot.
    WithinPage(BarIndex),
    /// Firmware: its ports lie beyond 0xffff.
    PortsOutOfRange(BarIndex),
    /// Configuration: the place lies outside the window or is not aligned to the (page-rounded) size.
    Misplaced(BarIndex),
    /// Configuration: a 32-bit BAR was placed above 4 GiB.
    PlacedAbove4GiB(BarIndex),
}

impl fmt::Display for BarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(index) => write!(f, "{index} makes no sense"),
            Self::Unassigned(index) => write!(f, "firmware gave {index} no address"),
            Self::WithinPage(index) => write!(f, "{index} begins within a page"),
            Self::PortsOutOfRange(index) => write!(f, "{index} has ports above 0xffff"),
            Self::Misplaced(index) => write!(f, "{index} does not fit its place in the guest"),
            Self::PlacedAbove4GiB(index) => write!(f, "{index} has 32 bits and is placed above 4 GiB"),
        }
    }
}

impl core::error::Error for BarError {}

impl BarError {
    /// The error's entry in the catalogue.
    pub const fn message(&self) -> Message {
        match self {
            Self::Malformed(_) => Message::BarMalformed,
            Self::Unassigned(_) | Self::WithinPage(_) | Self::PortsOutOfRange(_) => Message::BarUnplaced,
            Self::Misplaced(_) | Self::PlacedAbove4GiB(_) => Message::BarRoom,
        }
    }
}

/// What a guest can reach through one BAR now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Whole pages, for nested paging.
    Memory {
        /// Where the guest sees them.
        guest: GuestPhys,
        /// Where they are.
        host: HostPhys,
        /// How many bytes, a multiple of 4 KiB.
        bytes: u64,
    },
    /// Ports, the same numbers for the guest and the machine, for the I/O permission map.
    Ports {
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
    },
}

/// The mappings of one function's BARs, BAR0 first.
pub type Mappings = [Option<Mapping>; 6];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Empty,
    Memory { host: HostPhys, bytes: u64, kind: BarKind, register: u64 },
    Ports { first: u16, last: u16, bytes: u32, register: u32 },
    Upper,
}

// Below a page there is nothing nested paging could tell apart, so the guest is told that the BAR has a page.
fn virtual_bytes(bar: &Bar) -> u64 {
    bar.bytes().max(PAGE_BYTES)
}

/// The six registers as a guest reads and writes them.
///
/// A memory BAR may be moved: while it lies wholly within the window it is mapped there, elsewhere it decodes
/// nothing. An I/O BAR may be sized and rewritten, but decodes only where the machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VirtualBars {
    slots: [Slot; 6],
    window: BarWindow,
}

impl VirtualBars {
    pub(super) fn new(bars: &Bars, placement: &Placement, window: BarWindow) -> Result<Self, BarError> {
        let mut slots = [Slot::Empty; 6];
        for (index, slot) in BarIndex::ALL.into_iter().zip(slots.iter_mut()) {
            *slot = match bars.slot(index) {
                BarSlot::Empty => Slot::Empty,
                BarSlot::Upper => Slot::Upper,
                BarSlot::Malformed => return Err(BarError::Malformed(index)),
                BarSlot::Bar(bar) if !bar.is_assigned() => return Err(BarError::Unassigned(index)),
                BarSlot::Bar(bar) if bar.kind().is_memory() => {
                    memory_slot(&bar, placement.get(index), window)?
                }
                BarSlot::Bar(bar) => ports_slot(&bar)?,
            };
        }
        Ok(Self { slots, window })
    }

    /// The decode bits of Command that mean anything for these registers.
    pub(super) fn decode_bits(&self) -> Command {
        self.slots.iter().fold(Command::empty(), |bits, slot| match slot {
            Slot::Memory { .. } => bits | Command::MEMORY,
            Slot::Ports { .. } => bits | Command::IO,
            Slot::Empty | Slot::Upper => bits,
        })
    }

    pub(super) fn read(&self, index: BarIndex) -> u32 {
        match self.slot(index) {
            Slot::Empty => 0,
            Slot::Memory { kind, register, .. } => register as u32 | kind.type_bits(),
            Slot::Ports { register, .. } => register | BarKind::Io.type_bits(),
            Slot::Upper => match self.lower(index) {
                Some(Slot::Memory { register, .. }) => (register >> 32) as u32,
                Some(Slot::Empty | Slot::Ports { .. } | Slot::Upper) | None => 0,
            },
        }
    }

    pub(super) fn write(&mut self, index: BarIndex, access: Access, value: u32) {
        let written = access.merge(self.read(index), value);
        let target = match self.slot(index) {
            Slot::Upper => index.get().checked_sub(1).and_then(BarIndex::new),
            Slot::Empty | Slot::Memory { .. } | Slot::Ports { .. } => Some(index),
        };
        let Some(slot) = target.and_then(|target| self.slots.get_mut(usize::from(target.get()))) else {
            return;
        };
        match slot {
            Slot::Memory { bytes, register, kind, .. } => {
                let is_upper = target != Some(index);
                let whole = match (is_upper, *kind) {
                    (true, _) => u64::from(written) << 32 | *register & 0xffff_ffff,
                    (false, BarKind::Memory64 { .. }) => *register & !0xffff_ffff | u64::from(written),
                    (false, BarKind::Memory32 { .. } | BarKind::Io) => u64::from(written),
                };
                *register = whole & !bytes.wrapping_sub(1);
            }
            Slot::Ports { bytes, register, .. } => *register = written & !bytes.wrapping_sub(1),
            Slot::Empty | Slot::Upper => {}
        }
    }

    fn mapping(&self, index: BarIndex, command: Command) -> Option<Mapping> {
        match self.slot(index) {
            Slot::Memory { host, bytes, register, .. } if command.contains(Command::MEMORY) => {
                let guest = GuestPhys::new(register);
                self.window.contains(guest, bytes).then_some(Mapping::Memory { guest, host, bytes })
            }
            Slot::Ports { first, last, register, .. } if command.contains(Command::IO) => {
                (register == u32::from(first)).then_some(Mapping::Ports { first, last })
            }
            Slot::Memory { .. } | Slot::Ports { .. } | Slot::Empty | Slot::Upper => None,
        }
    }

    pub(super) fn mappings(&self, command: Command) -> Mappings {
        BarIndex::ALL.map(|index| self.mapping(index, command))
    }

    fn slot(&self, index: BarIndex) -> Slot {
        self.slots.get(usize::from(index.get())).copied().unwrap_or(Slot::Empty)
    }

    fn lower(&self, index: BarIndex) -> Option<Slot> {
        index.get().checked_sub(1).and_then(BarIndex::new).map(|lower| self.slot(lower))
    }
}

fn memory_slot(bar: &Bar, place: Option<GuestPhys>, window: BarWindow) -> Result<Slot, BarError> {
    let (index, bytes, host) = (bar.index(), virtual_bytes(bar), HostPhys::new(bar.address()));
    if !host.is_aligned(PAGE_BYTES) {
        return Err(BarError::WithinPage(index));
    }
    if let Some(place) = place {
        if !place.is_aligned(bytes) || !window.contains(place, bytes) {
            return Err(BarError::Misplaced(index));
        }
        if matches!(bar.kind(), BarKind::Memory32 { .. }) && place.raw() > u64::from(u32::MAX) {
            return Err(BarError::PlacedAbove4GiB(index));
        }
    }
    let register = place.map_or(0, GuestPhys::raw);
    Ok(Slot::Memory { host, bytes, kind: bar.kind(), register })
}

fn ports_slot(bar: &Bar) -> Result<Slot, BarError> {
    let error = BarError::PortsOutOfRange(bar.index());
    let ports = bar.ports().ok_or(error)?;
    let bytes = u32::try_from(bar.bytes()).map_err(|_| error)?;
    let (first, last) = ports.into_inner();
    Ok(Slot::Ports { first, last, bytes, register: u32::from(first) })
}

#[cfg(test)]
mod tests;
