//! The configuration space a guest sees of one assigned function.
//!
//! A guest's write changes only this copy: it yields an [`Effect`] for the caller to carry out, and nothing here can
//! write to the device. Reads answer registers that are virtual from the copy and the others from the device.
//!
//! | offset | reads | writes |
//! | --- | --- | --- |
//! | 0x04 Command | the guest's own bits | MEMORY and IO remap, DisINTx changes the line's mask reasons, BUS MASTER is kept and goes nowhere |
//! | 0x06 Status | the device's; Interrupt Status 0 without INTx; the list bit as the guest's list | dropped |
//! | 0x10 to 0x27 BARs | the guest's own | sizing and moving |
//! | 0x30 expansion ROM | 0: not implemented | dropped |
//! | 0x34 list | the guest's own | dropped |
//! | 0x3c Interrupt Line | the guest's own; at first the virtual pin's number | kept |
//! | 0x3d Interrupt Pin | the function's pin, 0 without INTx | dropped |
//! | other header bytes | the device's, BIST 0 | dropped |
//! | from 0x40 | the device's, but see below | dropped |
//! | from 0x100 | 0: no extended capability | dropped |
//!
//! Of the capability list a guest sees what works when nothing can be written: power management (always in D0, no
//! PME), PCI Express (without function level reset), PCI-X, vendor specific, debug port, subsystem and SATA. All
//! others are left out of the list, and the registers of MSI, MSI-X, VPD, Advanced Features and Enhanced Allocation
//! (which holds host addresses) read 0.

use core::fmt;

use super::capability::{Capability, CapabilityId, CapabilityWalk, EXPRESS_DEVICE_CAPABILITIES, EXPRESS_FLR};
use super::config::command_status;
use super::virtual_bar::{BarError, BarWindow, Mappings, Placement, VirtualBars};
use super::{Access, BarIndex, Bdf, Command, ConfigSpace, Function, Header, IntPin, Offset, Status};
use crate::irq::Pin;
use crate::message::Message;

/// Why a function has no virtual configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtualConfigError {
    /// Only functions with a header of type 0 are assigned.
    NotAnEndpoint(Header),
    /// A base address register stands in the way.
    Bar(BarError),
}

impl fmt::Display for VirtualConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnEndpoint(Header::Bridge { .. }) => f.write_str("it is a bridge"),
            Self::NotAnEndpoint(_) => f.write_str("its header is of an unknown type"),
            Self::Bar(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for VirtualConfigError {}

impl VirtualConfigError {
    /// The error's entry in the catalogue.
    pub const fn message(&self) -> Message {
        match self {
            Self::NotAnEndpoint(_) => Message::NotAnEndpoint,
            Self::Bar(error) => error.message(),
        }
    }
}

impl From<BarError> for VirtualConfigError {
    fn from(error: BarError) -> Self {
        Self::Bar(error)
    }
}

/// What the caller must do after a guest's write. Nothing of it has been done.
#[must_use = "a guest's write has no effect until its effects are carried out"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// [`VirtualConfig::mappings`] has changed. BARs of one partition may overlap each other after a guest moved them, so
    /// what is to be mapped no more goes first, in all of the partition's functions, and then what is missing is mapped.
    pub remap: bool,
    /// The guest's DisINTx changed to this: a reason for or against masking the source.
    pub dis_intx: Option<bool>,
    /// The guest's BUS MASTER changed to this. It is only to be reported: the device's own stays off.
    pub bus_master: Option<bool>,
}

impl Effect {
    /// Nothing to do.
    pub const NONE: Self = Self { remap: false, dis_intx: None, bus_master: None };
}

/// The virtual configuration space of one assigned function.
///
/// It guarantees that no guest write reaches the device, that memory is mapped only within the window given and only
/// to the function's own pages, ports only at the function's own numbers, and that "no INTx" is one answer
/// everywhere: pin, Interrupt Status and DisINTx. It does not know the line the function interrupts on.
#[derive(Clone, Debug)]
pub struct VirtualConfig {
    bdf: Bdf,
    command: Command,
    writable: Command,
    bars: VirtualBars,
    interrupt_pin: Option<IntPin>,
    interrupt_line: u8,
    capabilities: VirtualCapabilities,
}

impl VirtualConfig {
    /// Whether `function` can be passed through with its BARs at `placement`, by what its description says alone.
    ///
    /// # Errors
    /// What [`Self::new`] would refuse.
    pub fn judge(
        function: &Function,
        placement: &Placement,
        window: BarWindow,
    ) -> Result<(), VirtualConfigError> {
        Self::bars(function, placement, window).map(drop)
    }

    fn bars(
        function: &Function,
        placement: &Placement,
        window: BarWindow,
    ) -> Result<VirtualBars, VirtualConfigError> {
        if function.header != Header::Endpoint {
            return Err(VirtualConfigError::NotAnEndpoint(function.header));
        }
        Ok(VirtualBars::new(&function.bars, placement, window)?)
    }

    /// The space as firmware would leave it: BARs where `placement` says, decoding on, everything else off.
    ///
    /// `virtual_pin` is the input of the guest's IO-APIC, or `None` when the source could not be routed; a function
    /// without an interrupt pin has no INTx either way.
    pub fn new(
        space: &impl ConfigSpace,
        function: &Function,
        placement: &Placement,
        window: BarWindow,
        virtual_pin: Option<Pin>,
    ) -> Result<Self, VirtualConfigError> {
        let bars = Self::bars(function, placement, window)?;
        let intx = function.interrupt_pin.zip(virtual_pin);
        let decode = bars.decode_bits();
        let mut writable = decode | Command::BUS_MASTER | Command::PARITY | Command::SERR;
        writable.set(Command::DIS_INTX, intx.is_some());
        Ok(Self {
            bdf: function.bdf,
            command: decode,
            writable,
            bars,
            interrupt_pin: intx.map(|(pin, _)| pin),
            interrupt_line: intx.map_or(0, |(_, virtual_pin)| virtual_pin.0),
            capabilities: VirtualCapabilities::new(space, function.bdf),
        })
    }

    /// The function, host and guest alike.
    pub const fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// The pin the guest sees; `None` when it sees no INTx.
    pub const fn interrupt_pin(&self) -> Option<IntPin> {
        self.interrupt_pin
    }

    /// The guest's Command register.
    pub const fn command(&self) -> Command {
        self.command
    }

    /// What the guest's BARs and Command make reachable now.
    pub fn mappings(&self) -> Mappings {
        self.bars.mappings(self.command)
    }

    /// What they would make reachable if Command let all of them decode.
    pub fn places(&self) -> Mappings {
        self.bars.mappings(Command::IO | Command::MEMORY)
    }

    /// The guest reads: the value in the low bits. The device is read at most once, a dword.
    ///
    /// A device that answers all-ones is gone, and the registers that come from it read all-ones for the guest too.
    /// Not for a function in reset or asleep, which must not be accessed.
    pub fn read(&self, space: &impl ConfigSpace, access: Access) -> u32 {
        access.extract(self.dword(space, access.offset().dword()))
    }

    fn dword(&self, space: &impl ConfigSpace, at: Offset) -> u32 {
        if at.as_conventional().is_none() {
            return 0;
        }
        if let Some(index) = BarIndex::at(at) {
            return self.bars.read(index);
        }
        let device = || space.read32(self.bdf, at);
        match at {
            Offset::COMMAND => self.command_status(device()),
            Offset::CACHE_LINE => hide_bist(device()),
            Offset::EXPANSION_ROM | Offset::RESERVED => 0,
            Offset::CAPABILITIES => u32::from(self.capabilities.first),
            Offset::INTERRUPT_LINE => {
                let [_, _, grant, latency] = device().to_le_bytes();
                let pin = self.interrupt_pin.map_or(0, IntPin::register);
                u32::from_le_bytes([self.interrupt_line, pin, grant, latency])
            }
            _ => self.capabilities.read(at, device),
        }
    }

    fn command_status(&self, device: u32) -> u32 {
        let Some((_, mut status)) = command_status(device) else { return device };
        status.set(Status::CAPABILITIES, self.capabilities.first != 0);
        if self.interrupt_pin.is_none() {
            status.remove(Status::INTX);
        }
        u32::from(status.bits()) << 16 | u32::from(self.command.bits())
    }

    /// The guest writes the low bits of `value`.
    pub fn write(&mut self, access: Access, value: u32) -> Effect {
        let at = access.offset().dword();
        if let Some(index) = BarIndex::at(at) {
            let before = self.mappings();
            self.bars.write(index, access, value);
            return Effect { remap: before != self.mappings(), ..Effect::NONE };
        }
        match at {
            Offset::COMMAND => {
                let written = access.merge(u32::from(self.command.bits()), value);
                self.write_command(Command::from_bits_retain(written as u16))
            }
            Offset::INTERRUPT_LINE => {
                let [line, ..] = access.merge(u32::from(self.interrupt_line), value).to_le_bytes();
                self.interrupt_line = line;
                Effect::NONE
            }
            _ => Effect::NONE,
        }
    }

    fn write_command(&mut self, written: Command) -> Effect {
        let before = self.command;
        self.command = written & self.writable;
        let changed = before ^ self.command;
        let now = |bit| changed.contains(bit).then_some(self.command.contains(bit));
        Effect {
            remap: changed.intersects(Command::IO | Command::MEMORY)
                && self.bars.mappings(before) != self.mappings(),
            dis_intx: now(Command::DIS_INTX),
            bus_master: now(Command::BUS_MASTER),
        }
    }
}

// BIST could not be started, so it is not offered.
const fn hide_bist(dword: u32) -> u32 {
    if dword == u32::MAX { dword } else { dword & 0x00ff_ffff }
}

/// The guest's capability list: the device's with the elements it must not see taken out.
#[derive(Clone, Debug)]
struct VirtualCapabilities {
    /// The first element's offset, 0 for an empty list.
    first: u8,
    /// For the dword that begins an element the guest sees, the next element's offset; index is offset / 4.
    next: [u8; 64],
    /// Dwords that begin an element the guest sees, one bit each.
    visible: u64,
    /// Dwords that read 0, one bit each.
    hidden: u64,
    /// PCI Power Management, and its control and status register.
    power: Option<Offset>,
    power_control: Option<Offset>,
    /// PCI Express Device Capabilities.
    express_device: Option<Offset>,
}

impl VirtualCapabilities {
    fn new(space: &impl ConfigSpace, bdf: Bdf) -> Self {
        const POWER_CONTROL: u8 = 4;
        let mut list = Self {
            first: 0,
            next: [0; 64],
            visible: 0,
            hidden: 0,
            power: None,
            power_control: None,
            express_device: None,
        };
        let mut last = None;
        for capability in CapabilityWalk::new(space, bdf) {
            let Some(at) = capability.at.as_conventional() else { continue };
            if !is_shown(capability.id) {
                list.hidden |= dwords(at, hidden_bytes(&capability));
                continue;
            }
            match last.replace(at) {
                None => list.first = at,
                Some(previous) => list.link(previous, at),
            }
            list.visible |= dwords(at, 4);
            let register = |distance| capability.at.conventional_add(distance);
            match capability.id {
                CapabilityId::POWER_MANAGEMENT => {
                    list.power = Some(capability.at);
                    list.power_control = register(POWER_CONTROL);
                }
                CapabilityId::PCI_EXPRESS => list.express_device = register(EXPRESS_DEVICE_CAPABILITIES),
                _ => {}
            }
        }
        list
    }

    fn link(&mut self, from: u8, to: u8) {
        if let Some(next) = self.next.get_mut(usize::from(from / 4)) {
            *next = to;
        }
    }

    fn read(&self, at: Offset, device: impl FnOnce() -> u32) -> u32 {
        // PCI PM 1.2 3.2.3 and 3.2.4: PME_Support, D1 and D2 are not offered, and the state is always D0.
        const NO_PME_NO_D1_D2: u32 = 0x01ff_ffff;
        const NO_SOFT_RESET: u32 = 1 << 3;
        let Some(at_byte) = at.as_conventional() else { return 0 };
        let bit = dwords(at_byte, 4);
        if self.hidden & bit != 0 && self.visible & bit == 0 {
            return 0;
        }
        let device = device();
        if device == u32::MAX {
            return device;
        }
        if self.visible & bit != 0 {
            let next = self.next.get(usize::from(at_byte / 4)).copied().unwrap_or(0);
            let shown = if self.power == Some(at) { device & NO_PME_NO_D1_D2 } else { device };
            return shown & 0xffff_00ff | u32::from(next) << 8;
        }
        if self.power_control == Some(at) {
            return device & NO_SOFT_RESET;
        }
        if self.express_device == Some(at) { device & !EXPRESS_FLR } else { device }
    }
}

// What still works for a guest whose writes are dropped.
const fn is_shown(id: CapabilityId) -> bool {
    matches!(
        id,
        CapabilityId::POWER_MANAGEMENT
            | CapabilityId::PCI_X
            | CapabilityId::VENDOR
            | CapabilityId::DEBUG_PORT
            | CapabilityId::SUBSYSTEM
            | CapabilityId::PCI_EXPRESS
            | CapabilityId::SATA
    )
}

// How many bytes from its start on a capability that is not shown occupies; only the first four where unknown, as
// device-specific registers may follow.
const fn hidden_bytes(capability: &Capability) -> u16 {
    const MSI_64_BIT: u16 = 1 << 7;
    const MSI_MASKABLE: u16 = 1 << 8;
    match capability.id {
        CapabilityId::MSI => {
            let address = if capability.control & MSI_64_BIT != 0 { 16 } else { 12 };
            let masks = if capability.control & MSI_MASKABLE != 0 { 8 } else { 0 };
            address + masks
        }
        CapabilityId::MSI_X => 12,
        CapabilityId::VITAL_PRODUCT_DATA | CapabilityId::ADVANCED_FEATURES => 8,
        // At most five dwords an entry (PCIe 4.0 7.8.5.3).
        CapabilityId::ENHANCED_ALLOCATION => 4 + (capability.control & 0x3f) * 20,
        _ => 4,
    }
}

// The dwords of the conventional space that `bytes` from `at` on lie in, one bit each.
const fn dwords(at: u8, bytes: u16) -> u64 {
    let (first, end) = (at as u32 / 4, (at as u32 + bytes as u32).div_ceil(4));
    let from_first = u64::MAX << first;
    if end >= 64 { from_first } else { from_first & !(u64::MAX << end) }
}

#[cfg(test)]
mod tests;
