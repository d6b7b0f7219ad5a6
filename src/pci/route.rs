//! From a function's interrupt pin to its global system interrupt. Values only: `_PRT` entries arrive already
//! evaluated, and whether the answer is true is for the device to prove.

use core::fmt;

use super::{Bdf, IntPin, Topology};
use crate::irq::{Gsi, Polarity, TriggerMode};

/// Where an interrupt pin ends: an input of an IO-APIC and how it is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PinRoute {
    /// The global system interrupt.
    pub gsi: Gsi,
    /// Edge or level.
    pub trigger: TriggerMode,
    /// Which electrical level is asserted.
    pub polarity: Polarity,
}

impl PinRoute {
    /// What PCI prescribes where nothing else is known: level, active low (PCI 3.0 2.2.6).
    pub const fn pci(gsi: Gsi) -> Self {
        Self { gsi, trigger: TriggerMode::Level, polarity: Polarity::ActiveLow }
    }
}

/// One evaluated `_PRT` entry: all functions of a device on one bus (ACPI 6.5 6.2.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrtEntry {
    /// The bus that the `_PRT` describes: a root bus, or one behind a bridge that has a `_PRT` of its own.
    pub bus: u8,
    /// The device on that bus, 0 to 31.
    pub device: u8,
    /// The pin.
    pub pin: IntPin,
    /// Where it leads.
    pub route: PinRoute,
}

impl PrtEntry {
    /// What it answers for: bus, device, pin.
    pub const fn place(&self) -> (u8, u8, IntPin) {
        (self.bus, self.device, self.pin)
    }
}

/// Who said where the pin leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteSource {
    /// The configuration.
    Configuration,
    /// The `_PRT` entry for this bus, device and pin, which a bridge's swizzle may have led to.
    Firmware {
        /// The entry's bus.
        bus: u8,
        /// The entry's device.
        device: u8,
        /// The entry's pin.
        pin: IntPin,
    },
}

/// No `_PRT` entry on the way from the function to its root bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unrouted {
    /// The function.
    pub bdf: Bdf,
    /// Its own pin.
    pub pin: IntPin,
    /// The last place asked, on the root bus unless a bridge is missing: bus, device, pin.
    pub asked: (u8, u8, IntPin),
}

impl fmt::Display for Unrouted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, device, pin) = self.asked;
        write!(
            f,
            "no interrupt routing for {} of {} (asked for {pin} of {bus:02x}:{device:02x})",
            self.pin, self.bdf
        )
    }
}

impl core::error::Error for Unrouted {}

/// Finds where `pin` of `bdf` leads.
///
/// A `configured` route always wins. Otherwise the function's own bus is looked up in `prt`, then, pin swizzled,
/// that of each bridge above it up to the root bus.
pub fn resolve(
    bdf: Bdf,
    pin: IntPin,
    configured: Option<PinRoute>,
    topology: &Topology,
    prt: &[PrtEntry],
) -> Result<(PinRoute, RouteSource), Unrouted> {
    if let Some(route) = configured {
        return Ok((route, RouteSource::Configuration));
    }
    let mut asked = (bdf.bus(), bdf.device(), pin);
    // Ends after at most 255 bridges: each is on a lower bus than the one before.
    loop {
        let (bus, device, asked_pin) = asked;
        if let Some(entry) = prt.iter().find(|entry| entry.place() == asked) {
            return Ok((entry.route, RouteSource::Firmware { bus, device, pin: asked_pin }));
        }
        let Some(bridge) = topology.bridge_above(bus) else {
            return Err(Unrouted { bdf, pin, asked });
        };
        asked = (bridge.bus(), bridge.device(), asked_pin.swizzle(device));
    }
}

#[cfg(test)]
mod tests {
    use super::super::enumerate;
    use super::super::fake::{FakeFunction, Machine, bdf};
    use super::*;

    // Devices 0 to 24 of QEMU's q35 machine: GSI 20 + (device + pin) % 4, level, active high.
    fn q35() -> Vec<PrtEntry> {
        let entry = |device: u8, pin: IntPin| PrtEntry {
            bus: 0,
            device,
            pin,
            route: PinRoute {
                gsi: Gsi(20 + u32::from(device + pin.index()) % 4),
                trigger: TriggerMode::Level,
                polarity: Polarity::ActiveHigh,
            },
        };
        (0..25).flat_map(|device| IntPin::ALL.map(|pin| entry(device, pin))).collect()
    }

    #[test]
    fn slots_of_the_root_bus_are_found_directly() {
        let topology = Topology::new(&[0]);
        let gsi = |at, pin| resolve(bdf(at), pin, None, &topology, &q35()).unwrap().0.gsi;
        assert_eq!(gsi("00:03.0", IntPin::A), Gsi(23));
        assert_eq!(gsi("00:05.0", IntPin::A), Gsi(21));
        assert_eq!(gsi("00:06.0", IntPin::A), Gsi(22));
        assert_eq!(gsi("00:05.7", IntPin::D), Gsi(20));
    }

    #[test]
    fn configuration_wins_over_firmware() {
        let topology = Topology::new(&[0]);
        let route = PinRoute::pci(Gsi(11));
        assert_eq!((route.trigger, route.polarity), (TriggerMode::Level, Polarity::ActiveLow));
        let resolved = resolve(bdf("00:03.0"), IntPin::A, Some(route), &topology, &q35());
        assert_eq!(resolved, Ok((route, RouteSource::Configuration)));
    }

    fn two_bridges() -> Topology {
        let machine =
            Machine::with([("00:04.0", FakeFunction::bridge(1, 2)), ("01:03.0", FakeFunction::bridge(2, 2))]);
        enumerate(&machine, &[0], |_| {})
    }

    #[test]
    fn each_bridge_swizzles_once() {
        let topology = two_bridges();
        for device in 0..32 {
            for pin in IntPin::ALL {
                let at = Bdf::new(2, device, 0).unwrap();
                let (route, source) = resolve(at, pin, None, &topology, &q35()).unwrap();
                let on_root = (pin.index() + device + 3) % 4;
                assert_eq!(route.gsi, Gsi(20 + u32::from(4 + on_root) % 4));
                let pin = IntPin::from_index(on_root).unwrap();
                assert_eq!(source, RouteSource::Firmware { bus: 0, device: 4, pin });
            }
        }
    }

    #[test]
    fn a_bridge_with_its_own_prt_is_asked_before_the_root() {
        let mut prt = q35();
        let own = PrtEntry { bus: 2, device: 7, pin: IntPin::B, route: PinRoute::pci(Gsi(40)) };
        prt.push(own);
        let (route, _) = resolve(bdf("02:07.0"), IntPin::B, None, &two_bridges(), &prt).unwrap();
        assert_eq!(route, own.route);
    }

    #[test]
    fn a_missing_entry_names_function_pin_and_place() {
        let error = resolve(bdf("02:07.0"), IntPin::B, None, &two_bridges(), &[]).unwrap_err();
        assert_eq!(error, Unrouted { bdf: bdf("02:07.0"), pin: IntPin::B, asked: (0, 4, IntPin::D) });
        assert_eq!(error.to_string(), "no interrupt routing for INTB of 02:07.0 (asked for INTD of 00:04)");
        let orphan = resolve(bdf("09:07.0"), IntPin::C, None, &two_bridges(), &q35()).unwrap_err();
        assert_eq!(orphan.asked, (9, 7, IntPin::C));
    }
}
