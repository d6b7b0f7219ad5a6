//! Base address registers: decoding, sizing, and which of them lie in one page. Sizing writes the BARs and byte
//! 0x04 of the header, and puts back what it found.

use core::fmt;
use core::ops::RangeInclusive;

use super::{Bdf, Command, ConfigSpace, Function, Offset, config};
use crate::addr::{HostPhys, PAGE_BYTES};
use crate::frames::Range;

/// Which of a function's six base address registers, 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarIndex(u8);

impl BarIndex {
    /// All six, in order.
    pub const ALL: [Self; 6] = [Self(0), Self(1), Self(2), Self(3), Self(4), Self(5)];

    /// The register, or `None` above 5.
    pub const fn new(raw: u8) -> Option<Self> {
        if raw < 6 { Some(Self(raw)) } else { None }
    }

    /// 0 to 5.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Where the register lies in a header of type 0 (PCI 3.0 6.2.5).
    pub const fn offset(self) -> Offset {
        Offset::conventional(0x10 + self.0 * 4)
    }

    /// The register at `offset` of a type 0 header, if one is there.
    pub const fn at(offset: Offset) -> Option<Self> {
        match offset.dword().as_conventional() {
            Some(raw) if raw >= 0x10 => Self::new((raw - 0x10) / 4),
            Some(_) | None => None,
        }
    }
}

impl fmt::Display for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BAR{}", self.0)
    }
}

/// Which address space a BAR decodes, and how wide its register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB, one register.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere, this register and the next.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The read-only low bits of the register: 2 bits for I/O, 4 for memory (PCI 3.0 6.2.5.1).
    pub const fn type_bits(self) -> u32 {
        match self {
            Self::Io => 1,
            Self::Memory32 { prefetchable } => (prefetchable as u32) << 3,
            Self::Memory64 { prefetchable } => (prefetchable as u32) << 3 | 4,
        }
    }

    /// Whether it decodes memory.
    pub const fn is_memory(self) -> bool {
        !matches!(self, Self::Io)
    }
}

impl fmt::Display for BarKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "io",
            Self::Memory32 { prefetchable: false } => "mem32",
            Self::Memory32 { prefetchable: true } => "mem32 prefetchable",
            Self::Memory64 { prefetchable: false } => "mem64",
            Self::Memory64 { prefetchable: true } => "mem64 prefetchable",
        })
    }
}

/// A base address register with what firmware wrote into it.
///
/// The size is a power of two, at least 4 for I/O and 16 for memory, and the address is a multiple of it; address 0
/// means that nobody assigned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    index: BarIndex,
    kind: BarKind,
    address: u64,
    bytes: u64,
}

impl Bar {
    /// A register as somebody describes it, or `None` when no register can be like that.
    pub fn new(index: BarIndex, kind: BarKind, address: u64, bytes: u64) -> Option<Self> {
        let least = if kind.is_memory() { 16 } else { 4 };
        let possible = bytes.is_power_of_two() && bytes >= least && address & (bytes - 1) == 0;
        let bar = Self { index, kind, address, bytes };
        let reach = if matches!(kind, BarKind::Memory64 { .. }) { u64::MAX } else { u64::from(u32::MAX) };
        (possible && bar.last() <= reach).then_some(bar)
    }

    /// The (first) register.
    pub const fn index(&self) -> BarIndex {
        self.index
    }

    /// The address space.
    pub const fn kind(&self) -> BarKind {
        self.kind
    }

    /// The first address or port; 0 when none was assigned.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes or ports it decodes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether an address was assigned.
    pub const fn is_assigned(&self) -> bool {
        self.address != 0
    }

    /// The last address or port. Size and alignment make the sum fit.
    pub const fn last(&self) -> u64 {
        self.address | (self.bytes - 1)
    }

    /// The whole pages that an assigned memory BAR touches, as the addresses of the first and the last of them.
    pub const fn pages(&self) -> Option<(HostPhys, HostPhys)> {
        if !self.kind.is_memory() || !self.is_assigned() {
            return None;
        }
        Some((HostPhys::new(self.address).page(), HostPhys::new(self.last()).page()))
    }

    /// The ports of an assigned I/O BAR; `None` too when they lie beyond the 64 Ki that x86 has.
    pub fn ports(&self) -> Option<RangeInclusive<u16>> {
        if self.kind.is_memory() || !self.is_assigned() {
            return None;
        }
        Some(u16::try_from(self.address).ok()?..=u16::try_from(self.last()).ok()?)
    }

    /// Whether a memory BAR fills the pages it lies in, so that mapping them opens nothing else.
    pub const fn fills_its_pages(&self) -> bool {
        self.bytes >= PAGE_BYTES
    }

    // The smallest range of its space, page-granular for memory, that passing this BAR through opens.
    fn exposed(&self) -> Option<(bool, RangeInclusive<u64>)> {
        match (self.is_assigned(), self.kind.is_memory()) {
            (false, _) => None,
            (true, false) => Some((false, self.address..=self.last())),
            (true, true) => Some((true, self.address & !(PAGE_BYTES - 1)..=self.last() | (PAGE_BYTES - 1))),
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:#x} +{:#x}", self.index, self.kind, self.address, self.bytes)
    }
}

/// What one of the six registers is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarSlot {
    /// Not implemented.
    Empty,
    /// A base address register.
    Bar(Bar),
    /// The upper half of the 64-bit register before it.
    Upper,
    /// The function answered something no base address register can hold; it cannot be passed through.
    Malformed,
}

/// A function's base address registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bars([BarSlot; 6]);

impl Bars {
    /// None at all.
    pub const NONE: Self = Self([BarSlot::Empty; 6]);

    /// Puts what the register `index` is into its place: a base address, or `None` for one that makes no sense. Whether
    /// the place, and for a 64-bit register the next one, was free.
    pub fn put(&mut self, index: BarIndex, bar: Option<Bar>) -> bool {
        let wide = bar.is_some_and(|bar| matches!(bar.kind, BarKind::Memory64 { .. }));
        let slot = bar.map_or(BarSlot::Malformed, BarSlot::Bar);
        let at = usize::from(index.0);
        let places = if wide { self.0.get_mut(at..at + 2) } else { self.0.get_mut(at..=at) };
        let Some(places) = places.filter(|places| places.iter().all(|place| *place == BarSlot::Empty)) else {
            return false;
        };
        for (place, value) in places.iter_mut().zip([slot, BarSlot::Upper]) {
            *place = value;
        }
        true
    }

    /// The register `index`.
    pub fn slot(&self, index: BarIndex) -> BarSlot {
        self.0.get(usize::from(index.0)).copied().unwrap_or(BarSlot::Empty)
    }

    /// Every register that holds a base address, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Bar> {
        self.0.iter().filter_map(|slot| match slot {
            BarSlot::Bar(bar) => Some(bar),
            BarSlot::Empty | BarSlot::Upper | BarSlot::Malformed => None,
        })
    }

    /// The first register that makes no sense.
    pub fn malformed(&self) -> Option<BarIndex> {
        BarIndex::ALL.into_iter().find(|&index| self.slot(index) == BarSlot::Malformed)
    }

    /// Reads and sizes the first `count` registers (6 in a header of type 0, 2 in one of type 1), with decoding
    /// off meanwhile so that no probe value is ever an address (PCI 3.0 6.2.5.1, implementation note).
    ///
    /// Registers and decoding are as before afterwards. Nobody may use the function, or what lies behind it if it
    /// is a bridge, while this runs.
    pub fn probe(space: &impl ConfigSpace, bdf: Bdf, count: u8) -> Self {
        let command = Command::from_bits_retain(u16::from(space.read8(bdf, Offset::COMMAND)));
        config::write_enables(space, bdf, command.difference(Command::IO | Command::MEMORY));
        let mut bars = Self::NONE;
        let mut upper = false;
        for (index, slot) in BarIndex::ALL.into_iter().zip(bars.0.iter_mut()).take(usize::from(count)) {
            if upper {
                *slot = BarSlot::Upper;
                upper = false;
                continue;
            }
            let low = Probe::new(space, bdf, index);
            let next = BarIndex::new(index.0 + 1).filter(|next| next.0 < count);
            let high = next.filter(|_| low.is_64_bit()).map(|next| Probe::new(space, bdf, next));
            *slot = decode(index, low, high);
            upper = high.is_some();
        }
        config::write_enables(space, bdf, command);
        bars
    }
}

/// What a register held, and what it held after all-ones were written.
#[derive(Clone, Copy)]
struct Probe {
    value: u32,
    mask: u32,
}

impl Probe {
    fn new(space: &impl ConfigSpace, bdf: Bdf, index: BarIndex) -> Self {
        let offset = index.offset();
        let value = space.read32(bdf, offset);
        space.write32(bdf, offset, u32::MAX);
        let mask = space.read32(bdf, offset);
        space.write32(bdf, offset, value);
        Self { value, mask }
    }

    const fn is_64_bit(self) -> bool {
        self.value & 7 == 4
    }
}

fn decode(index: BarIndex, low: Probe, high: Option<Probe>) -> BarSlot {
    if low.mask == 0 && low.value == 0 && high.is_none() {
        return BarSlot::Empty;
    }
    let prefetchable = low.value & 8 != 0;
    let (kind, type_mask) = match (low.value & 7, high) {
        (0, None) => (BarKind::Memory32 { prefetchable }, 0xf),
        (4, Some(_)) => (BarKind::Memory64 { prefetchable }, 0xf),
        // Bit 1 is reserved, bit 2 is the first address bit.
        (1 | 5, None) => (BarKind::Io, 3),
        _ => return BarSlot::Malformed,
    };
    if low.value & type_mask != kind.type_bits() || low.mask & type_mask != kind.type_bits() {
        return BarSlot::Malformed;
    }
    let address_bits = low.mask & !type_mask;
    let mask = match (kind, high) {
        // A function may decode only 16 of the 32 address bits (PCI 3.0 6.2.5.1).
        (BarKind::Io, _) if address_bits >> 16 == 0 && address_bits != 0 => {
            u64::MAX << 16 | u64::from(address_bits)
        }
        (_, Some(high)) => u64::from(high.mask) << 32 | u64::from(address_bits),
        (_, None) if address_bits != 0 => u64::MAX << 32 | u64::from(address_bits),
        (_, None) => 0,
    };
    let bytes = mask & mask.wrapping_neg();
    // The address bits are one run from the size up to the top; nothing else is a size.
    if bytes == 0 || mask != bytes.wrapping_neg() {
        return BarSlot::Malformed;
    }
    let upper = high.map_or(0, |high| u64::from(high.value) << 32);
    let address = upper | u64::from(low.value & !type_mask);
    if address & (bytes - 1) != 0 {
        return BarSlot::Malformed;
    }
    BarSlot::Bar(Bar { index, kind, address, bytes })
}

/// Two BARs that cannot be given to different owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The function that was to be assigned, and its BAR.
    pub assigned: (Bdf, BarIndex),
    /// The function in the way, and its BAR.
    pub other: (Bdf, BarIndex),
    /// The first page (memory) or port (I/O) that both lie in.
    pub at: u64,
    /// Memory or I/O.
    pub memory: bool,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bdf, bar) = self.assigned;
        let (other_bdf, other_bar) = self.other;
        let unit = if self.memory { "page" } else { "port" };
        write!(f, "{bar} of {bdf} shares {unit} {:#x} with {other_bar} of {other_bdf}", self.at)
    }
}

/// The first BAR of `assigned` that lies in one 4 KiB page (memory) or at one port (I/O) with a BAR of another
/// function of the machine for which `is_outside` says that it will belong to somebody else.
///
/// Nested paging protects pages, so a BAR smaller than a page or not aligned to one is harmless exactly when this
/// finds nothing. Addresses that are not BARs (memory, interrupt chips) are [`trespass`]'s to compare.
pub fn conflict(
    assigned: &Function,
    machine: &[Function],
    is_outside: impl Fn(Bdf) -> bool,
) -> Option<Conflict> {
    for bar in assigned.bars.iter() {
        let Some((memory, range)) = bar.exposed() else { continue };
        for other in machine.iter().filter(|other| other.bdf != assigned.bdf && is_outside(other.bdf)) {
            for other_bar in other.bars.iter() {
                let Some((other_memory, other_range)) = other_bar.exposed() else { continue };
                let at = *range.start().max(other_range.start());
                if memory == other_memory && at <= *range.end().min(other_range.end()) {
                    return Some(Conflict {
                        assigned: (assigned.bdf, bar.index),
                        other: (other.bdf, other_bar.index),
                        at,
                        memory,
                    });
                }
            }
        }
    }
    None
}

/// Memory that no device's BAR may claim on a PC: IO-APICs, HPET, the local APIC's page, message addresses and the
/// firmware's flash, up to 4 GiB.
const CHIPSET_MEMORY: Range = Range::around(0xfec0_0000, 0x0140_0000);
/// Ports that no device's BAR may claim on a PC: those of the mainboard and of ISA, 0xcf8 to 0xcff among them, by which
/// a guest would reach every function's configuration space.
const CHIPSET_PORTS: RangeInclusive<u64> = 0..=0x0fff;

/// A BAR that lies where no device's may, whatever the device or firmware say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trespass {
    /// The BAR.
    pub bar: BarIndex,
    /// Its first address or port.
    pub address: u64,
    /// The first address or port of the place it reaches into.
    pub at: u64,
    /// Memory or I/O.
    pub memory: bool,
}

impl fmt::Display for Trespass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bar, address, at, memory } = self;
        if *memory {
            write!(f, "{bar} at {address:#x} overlaps memory or the chipset's registers at {at:#x}")
        } else {
            write!(f, "{bar} at port {address:#x} overlaps the chipset's ports, which end at 0xfff")
        }
    }
}

/// The first BAR of `function` that reaches into `reserved` memory, or into what belongs to the chipset of every PC.
///
/// The address in a BAR is what the device answers. Passed through unchecked it would open whatever lies there: memory,
/// or the configuration space of every other function.
pub fn trespass(function: &Function, reserved: &[Range]) -> Option<Trespass> {
    function.bars.iter().find_map(|bar| {
        let (memory, range) = bar.exposed()?;
        let at = if memory {
            let overlaps =
                |place: &&Range| *range.start() < place.end().raw() && place.start().raw() <= *range.end();
            reserved.iter().chain([&CHIPSET_MEMORY]).find(overlaps)?.start().raw()
        } else {
            (range.start() <= CHIPSET_PORTS.end()).then_some(*CHIPSET_PORTS.start())?
        };
        Some(Trespass { bar: bar.index, address: bar.address, at, memory })
    })
}

#[cfg(test)]
mod tests;
