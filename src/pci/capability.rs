//! The capability list of a function's header, walked with a bound that the device cannot move. Only reads.

use super::config::command_status;
use super::{Bdf, ConfigSpace, Offset, Status};

/// What a capability is, from its first byte (PCI Code and ID Assignment 1.11, 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CapabilityId(pub u8);

impl CapabilityId {
    /// PCI Power Management.
    pub const POWER_MANAGEMENT: Self = Self(0x01);
    /// Vital Product Data.
    pub const VITAL_PRODUCT_DATA: Self = Self(0x03);
    /// Message Signalled Interrupts.
    pub const MSI: Self = Self(0x05);
    /// PCI-X.
    pub const PCI_X: Self = Self(0x07);
    /// Vendor specific; virtio 1.0 describes its BARs with it.
    pub const VENDOR: Self = Self(0x09);
    /// Debug port of a USB 2.0 controller.
    pub const DEBUG_PORT: Self = Self(0x0a);
    /// Subsystem ID of a bridge.
    pub const SUBSYSTEM: Self = Self(0x0d);
    /// PCI Express.
    pub const PCI_EXPRESS: Self = Self(0x10);
    /// MSI-X.
    pub const MSI_X: Self = Self(0x11);
    /// Serial ATA index and data registers.
    pub const SATA: Self = Self(0x12);
    /// Advanced Features: function level reset for conventional PCI.
    pub const ADVANCED_FEATURES: Self = Self(0x13);
    /// Enhanced Allocation: fixed addresses instead of BARs.
    pub const ENHANCED_ALLOCATION: Self = Self(0x14);
}

/// One element of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: CapabilityId,
    /// Where its first byte lies; a multiple of 4, at least 0x40.
    pub at: Offset,
    /// Its bytes 2 and 3, which most capabilities use as a control register.
    pub control: u16,
}

/// Iterates over a function's capability list.
///
/// It yields at most 48 elements, one for each dword from 0x40 on, and stops at the first pointer that leads to a
/// dword seen before, outside that range, or to an all-ones answer; [`CapabilityWalk::is_sound`] tells afterwards.
/// The two low bits of pointers are reserved and ignored (PCI 3.0 6.7).
#[derive(Debug)]
pub struct CapabilityWalk<'a, S> {
    space: &'a S,
    bdf: Bdf,
    next: u8,
    seen: u64,
    sound: bool,
}

impl<'a, S: ConfigSpace> CapabilityWalk<'a, S> {
    /// Begins at a header of type 0 or 1. Empty when the function is absent or its Status says there is no list.
    pub fn new(space: &'a S, bdf: Bdf) -> Self {
        let status = command_status(space.read32(bdf, Offset::COMMAND)).map(|(_, status)| status);
        let next = match status {
            Some(status) if status.contains(Status::CAPABILITIES) => space.read8(bdf, Offset::CAPABILITIES),
            Some(_) | None => 0,
        };
        Self { space, bdf, next, seen: 0, sound: true }
    }

    /// Whether every pointer followed so far was legal.
    pub fn is_sound(&self) -> bool {
        self.sound
    }
}

impl<S: ConfigSpace> Iterator for CapabilityWalk<'_, S> {
    type Item = Capability;

    fn next(&mut self) -> Option<Capability> {
        let pointer = self.next & !3;
        self.next = 0;
        if pointer == 0 {
            return None;
        }
        let seen = 1_u64 << (pointer / 4);
        if pointer < 0x40 || self.seen & seen != 0 {
            self.sound = false;
            return None;
        }
        self.seen |= seen;
        let at = Offset::conventional(pointer);
        let header = self.space.read32(self.bdf, at);
        if header == u32::MAX {
            self.sound = false;
            return None;
        }
        let [id, next, control_low, control_high] = header.to_le_bytes();
        self.next = next;
        Some(Capability {
            id: CapabilityId(id),
            at,
            control: u16::from_le_bytes([control_low, control_high]),
        })
    }
}

/// How a function can be reset alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionLevelReset {
    /// By bit 15 of the 16-bit Device Control register here (PCIe 4.0 6.6.2).
    PciExpress(Offset),
    /// By bit 0 of the 8-bit AF Control register here (Advanced Capabilities ECN).
    AdvancedFeatures(Offset),
}

/// Where the capabilities lie that matter for assigning a function. The first of each kind counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// PCI Power Management.
    pub power_management: Option<Offset>,
    /// Message Signalled Interrupts.
    pub msi: Option<Offset>,
    /// MSI-X.
    pub msi_x: Option<Offset>,
    /// PCI Express.
    pub pci_express: Option<Offset>,
    /// Whether and how the function resets alone.
    pub function_level_reset: Option<FunctionLevelReset>,
    /// The power control and status register of a function that resets on its way from D3hot to D0: its No_Soft_Reset bit
    /// is clear (PCI PM 1.2 3.2.4), as it always is in functions of PCI PM 1.1 and before, which have no such bit.
    pub power_reset: Option<Offset>,
    /// Whether the list was well formed; what lay behind a bad pointer is unknown.
    pub sound: bool,
}

impl Capabilities {
    /// No list at all.
    pub const NONE: Self = Self {
        power_management: None,
        msi: None,
        msi_x: None,
        pci_express: None,
        function_level_reset: None,
        power_reset: None,
        sound: true,
    };

    /// Walks the list of a header of type 0 or 1.
    pub fn read(space: &impl ConfigSpace, bdf: Bdf) -> Self {
        let mut found = Self::NONE;
        let mut walk = CapabilityWalk::new(space, bdf);
        for capability in walk.by_ref() {
            let at = capability.at;
            match capability.id {
                CapabilityId::POWER_MANAGEMENT => {
                    found.power_management = found.power_management.or(Some(at))
                }
                CapabilityId::MSI => found.msi = found.msi.or(Some(at)),
                CapabilityId::MSI_X => found.msi_x = found.msi_x.or(Some(at)),
                CapabilityId::PCI_EXPRESS => found.pci_express = found.pci_express.or(Some(at)),
                CapabilityId::ADVANCED_FEATURES => {
                    const CONTROL: u8 = 4;
                    const FLR: u16 = 1 << 9;
                    let control = at.conventional_add(CONTROL).filter(|_| capability.control & FLR != 0);
                    let reset = control.map(FunctionLevelReset::AdvancedFeatures);
                    found.function_level_reset = found.function_level_reset.or(reset);
                }
                _ => {}
            }
        }
        found.sound = walk.is_sound();
        if let Some(reset) = found.pci_express.and_then(|at| express_reset(space, bdf, at)) {
            found.function_level_reset = Some(reset);
        }
        found.power_reset = found.power_management.and_then(|at| power_reset(space, bdf, at));
        found
    }
}

/// Distance from the PCI Express capability to Device Capabilities (PCIe 4.0 7.5.3.3).
pub(super) const EXPRESS_DEVICE_CAPABILITIES: u8 = 4;
/// Device Capabilities bit 28: Function Level Reset Capability.
pub(super) const EXPRESS_FLR: u32 = 1 << 28;

fn express_reset(space: &impl ConfigSpace, bdf: Bdf, at: Offset) -> Option<FunctionLevelReset> {
    const DEVICE_CONTROL: u8 = 8;
    let device_capabilities = space.read32(bdf, at.conventional_add(EXPRESS_DEVICE_CAPABILITIES)?);
    let control = at.conventional_add(DEVICE_CONTROL)?;
    let capable = device_capabilities != u32::MAX && device_capabilities & EXPRESS_FLR != 0;
    capable.then_some(FunctionLevelReset::PciExpress(control))
}

fn power_reset(space: &impl ConfigSpace, bdf: Bdf, at: Offset) -> Option<Offset> {
    const CONTROL: u8 = 4;
    const NO_SOFT_RESET: u16 = 1 << 3;
    let control = at.conventional_add(CONTROL)?;
    let value = space.read16(bdf, control);
    (value != u16::MAX && value & NO_SOFT_RESET == 0).then_some(control)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeFunction, Machine, bdf};
    use super::*;

    fn walk(function: FakeFunction) -> (Vec<(u8, u16)>, bool) {
        let machine = Machine::with([("00:03.0", function)]);
        let mut walk = CapabilityWalk::new(&machine, bdf("00:03.0"));
        let found = walk.by_ref().map(|c| (c.id.0, c.at.get())).collect();
        (found, walk.is_sound())
    }

    #[test]
    fn the_list_is_followed_in_its_own_order() {
        let function = FakeFunction::endpoint(0x1234, 1)
            .capability(0x80, 0x05, &[0x80, 0])
            .capability(0x40, 0x01, &[3, 0])
            .capability(0xfc, 0x09, &[4, 0]);
        // Each new one is put in front.
        assert_eq!(walk(function), ([(9, 0xfc), (1, 0x40), (5, 0x80)].to_vec(), true));
    }

    #[test]
    fn no_list_bit_no_list() {
        let function = FakeFunction::endpoint(0x1234, 1).capability(0x40, 0x05, &[]).bytes(0x06, &[0]);
        assert_eq!(walk(function), (Vec::new(), true));
    }

    #[test]
    fn the_low_bits_of_a_pointer_are_ignored() {
        let function = FakeFunction::endpoint(0x1234, 1).capability(0x40, 0x05, &[]).bytes(0x34, &[0x43]);
        assert_eq!(walk(function), ([(5, 0x40)].to_vec(), true));
    }

    #[test]
    fn a_loop_ends_after_each_element_was_seen_once() {
        let to_itself = FakeFunction::endpoint(0x1234, 1).capability(0x40, 0x09, &[]).bytes(0x41, &[0x40]);
        assert_eq!(walk(to_itself), ([(9, 0x40)].to_vec(), false));
        let of_two = FakeFunction::endpoint(0x1234, 1)
            .capability(0x50, 0x09, &[])
            .capability(0x40, 0x01, &[])
            .bytes(0x51, &[0x40]);
        assert_eq!(walk(of_two), ([(1, 0x40), (9, 0x50)].to_vec(), false));
    }

    #[test]
    fn the_longest_list_has_48_elements() {
        let mut function = FakeFunction::endpoint(0x1234, 1).bytes(0x06, &[0x10]).bytes(0x34, &[0x40]);
        for at in (0x40..=0xfc_u8).step_by(4) {
            function = function.bytes(at, &[9, at.wrapping_add(4)]);
        }
        let (found, sound) = walk(function.clone());
        assert_eq!((found.len(), sound), (48, true));
        let (found, sound) = walk(function.bytes(0xfd, &[0x40]));
        assert_eq!((found.len(), sound), (48, false));
    }

    #[test]
    fn a_pointer_into_the_header_ends_the_list() {
        for pointer in (0x04..0x40_u8).step_by(4) {
            let function = FakeFunction::endpoint(0x1234, 1).capability(0x40, 9, &[]).bytes(0x41, &[pointer]);
            assert_eq!(walk(function), ([(9, 0x40)].to_vec(), false), "{pointer:#x}");
        }
    }

    #[test]
    fn an_all_ones_element_ends_the_list() {
        let function = FakeFunction::endpoint(0x1234, 1).capability(0x40, 9, &[]).bytes(0x40, &[0xff; 4]);
        assert_eq!(walk(function), (Vec::new(), false));
        let machine = Machine::default();
        assert_eq!(CapabilityWalk::new(&machine, bdf("00:03.0")).count(), 0);
    }

    fn summary(function: FakeFunction) -> Capabilities {
        Capabilities::read(&Machine::with([("00:03.0", function)]), bdf("00:03.0"))
    }

    #[test]
    fn the_summary_keeps_the_first_of_each_kind() {
        let found = summary(
            FakeFunction::endpoint(0x1234, 1)
                .capability(0x90, 0x05, &[])
                .capability(0x80, 0x11, &[])
                .capability(0x70, 0x01, &[])
                .capability(0x60, 0x05, &[]),
        );
        assert_eq!(found.msi, Some(Offset::conventional(0x60)));
        assert_eq!(found.msi_x, Some(Offset::conventional(0x80)));
        assert_eq!(found.power_management, Some(Offset::conventional(0x70)));
        assert_eq!((found.pci_express, found.function_level_reset, found.sound), (None, None, true));
    }

    #[test]
    fn function_level_reset_is_found_in_both_capabilities() {
        let none = FakeFunction::endpoint(0x1234, 1);
        assert_eq!(summary(none.clone()), Capabilities::NONE);
        let express = |flr| none.clone().capability(0x40, 0x10, &[2, 0, 0, 0, 0, flr]);
        let reset = |function| summary(function).function_level_reset;
        assert_eq!(reset(express(0x10)), Some(FunctionLevelReset::PciExpress(Offset::conventional(0x48))));
        assert_eq!(reset(express(0xef)), None);
        let af = |features| none.clone().capability(0x40, 0x13, &[6, features, 0, 0]);
        assert_eq!(reset(af(3)), Some(FunctionLevelReset::AdvancedFeatures(Offset::conventional(0x44))));
        assert_eq!(reset(af(1)), None);
    }

    #[test]
    fn a_function_resets_by_power_unless_it_says_that_it_keeps_its_state() {
        let power = |control| {
            let function = FakeFunction::endpoint(0x1234, 1).capability(0x50, 0x01, &[3, 0, control, 0]);
            summary(function).power_reset
        };
        assert_eq!(power(0x00), Some(Offset::conventional(0x54)));
        assert_eq!(power(0x03), Some(Offset::conventional(0x54)));
        assert_eq!(power(0x08), None);
        let silent = FakeFunction::endpoint(0x1234, 1).capability(0x50, 0x01, &[3, 0, 0xff, 0xff]);
        assert_eq!(summary(silent).power_reset, None);
    }

    #[test]
    fn a_capability_at_the_very_end_has_no_registers_beyond_it() {
        let function = FakeFunction::endpoint(0x1234, 1).capability(0xfc, 0x10, &[]);
        let found = summary(function);
        assert_eq!(found.pci_express, Some(Offset::conventional(0xfc)));
        assert_eq!(found.function_level_reset, None);
        let function = FakeFunction::endpoint(0x1234, 1).capability(0xfc, 0x01, &[3, 0]);
        assert_eq!(summary(function).power_reset, None);
        let function = FakeFunction::endpoint(0x1234, 1).capability(0xfc, 0x13, &[6, 3]);
        assert_eq!(summary(function).function_level_reset, None);
    }
}
