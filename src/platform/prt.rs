//! Interrupt routing by `_PRT` (ACPI 6.5 6.2.13): the one reason to interpret firmware's AML, and only when the
//! configuration leaves a function's GSI open.
//!
//! The interpreter panics on some firmware; [`crate::rt::panic`] then reports the function, the cause and the remedy.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::str::FromStr;

use acpi::aml::namespace::AmlName;
use acpi::aml::object::Object;
use acpi::aml::pci_routing::{PciRoutingTable, Pin};
use acpi::aml::resource::{InterruptPolarity, InterruptTrigger};
use acpi::aml::{AmlError, Interpreter};
use acpi::platform::AcpiPlatform;
use levelhead::addr::HostPhys;
use levelhead::irq::{Gsi, Polarity, TriggerMode};
use levelhead::pci::{Bdf, IntPin};

use super::handler::{Firmware, Memory};
use super::tables;

/// Functions whose pins are looked up in one boot.
pub(crate) const MAX_WANTED: usize = 32;
/// Bridges between a function and its root bus.
const MAX_DEPTH: usize = 16;
/// PNP0A03 and PNP0A08 as EISA identifiers: PCI and PCI Express root bridges.
const ROOT_BRIDGE_IDS: [u64; 2] = [0x030a_d041, 0x080a_d041];

/// One pin's way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routed {
    /// The GSI it arrives at.
    pub(crate) gsi: Gsi,
    /// How the chip must be programmed.
    pub(crate) trigger: TriggerMode,
    /// Which level is active.
    pub(crate) polarity: Polarity,
}

/// The answers, in the order of the questions; `None` where no `_PRT` has an entry.
pub(crate) type Answers = [Option<Routed>; MAX_WANTED];

/// How buses hang together, as enumeration found it.
pub(crate) trait Buses {
    /// The bus behind a bridge.
    fn secondary(&self, bridge: Bdf) -> Option<u8>;
    /// The bridge that leads to a bus; `None` for a root bus.
    fn upstream(&self, bus: u8) -> Option<Bdf>;
}

/// Interprets the firmware's AML and looks up each wanted pin. `None` when the tables or their AML cannot be used.
pub(crate) fn look_up(
    rsdp: Option<HostPhys>,
    memory: Memory<'_>,
    buses: &impl Buses,
    wanted: &[(Bdf, IntPin)],
) -> Option<Answers> {
    let memory = RefCell::new(memory);
    let firmware = Firmware::new(&memory);
    let platform = AcpiPlatform::new(tables::open(rsdp, firmware).ok()?, firmware).ok()?;
    let interpreter = Interpreter::new_from_platform(&platform).ok()?;
    interpreter.initialize_namespace();
    // Tell firmware that the IO-APIC is used; absent on firmware that knows nothing else.
    let pic = AmlName::from_str("\\_PIC").ok()?;
    interpreter.evaluate_if_present(pic, vec![Object::Integer(1).wrap()]).ok()?;
    let routing = routing_tables(&interpreter, buses).ok()?;
    let mut answers: Answers = [None; MAX_WANTED];
    for (slot, (bdf, pin)) in answers.iter_mut().zip(wanted) {
        *slot = route(&interpreter, &routing, buses, *bdf, *pin);
    }
    Some(answers)
}

/// Climbs from the function to the first bus that has a `_PRT` with an entry, swizzling at each bridge.
fn route(
    interpreter: &Interpreter<Firmware<'_>>,
    routing: &[(u8, PciRoutingTable)],
    buses: &impl Buses,
    bdf: Bdf,
    pin: IntPin,
) -> Option<Routed> {
    let (mut at, mut pin) = (bdf, pin);
    for _ in 0..MAX_DEPTH {
        for (_, table) in routing.iter().filter(|(bus, _)| *bus == at.bus()) {
            let found =
                table.route(u16::from(at.device()), u16::from(at.function()), prt_pin(pin), interpreter);
            if let Ok(found) = found {
                return Some(Routed {
                    gsi: Gsi(found.irq),
                    trigger: match found.trigger {
                        InterruptTrigger::Edge => TriggerMode::Edge,
                        InterruptTrigger::Level => TriggerMode::Level,
                    },
                    polarity: match found.polarity {
                        InterruptPolarity::ActiveHigh => Polarity::ActiveHigh,
                        InterruptPolarity::ActiveLow => Polarity::ActiveLow,
                    },
                });
            }
        }
        pin = pin.swizzle(at.device());
        at = buses.upstream(at.bus())?;
    }
    None
}

const fn prt_pin(pin: IntPin) -> Pin {
    match pin {
        IntPin::A => Pin::IntA,
        IntPin::B => Pin::IntB,
        IntPin::C => Pin::IntC,
        IntPin::D => Pin::IntD,
    }
}

/// Every `_PRT` of the namespace with the bus it describes.
fn routing_tables(
    interpreter: &Interpreter<Firmware<'_>>,
    buses: &impl Buses,
) -> Result<Vec<(u8, PciRoutingTable)>, AmlError> {
    let mut paths: Vec<AmlName> = Vec::new();
    let prt = AmlName::from_str("_PRT")?;
    interpreter.namespace.lock().traverse(|name, _| {
        paths.push(name.clone());
        Ok(true)
    })?;
    let mut found = Vec::new();
    for device in paths {
        let Ok(path) = prt.resolve(&device) else { continue };
        if interpreter.namespace.lock().get(path.clone()).is_err() {
            continue;
        }
        if let Some(bus) = bus_of(interpreter, buses, &device, MAX_DEPTH) {
            found.push((bus, PciRoutingTable::from_prt_path(path, interpreter)?));
        }
    }
    Ok(found)
}

/// The bus that lies behind a device of the namespace: a root bridge's own, or a bridge's secondary bus.
fn bus_of(
    interpreter: &Interpreter<Firmware<'_>>,
    buses: &impl Buses,
    device: &AmlName,
    depth: usize,
) -> Option<u8> {
    if is_root_bridge(interpreter, device) {
        return u8::try_from(integer(interpreter, device, "_BBN").unwrap_or(0)).ok();
    }
    let parent = bus_of(interpreter, buses, &device.parent().ok()?, depth.checked_sub(1)?)?;
    // _ADR of a PCI function: device in the high word, function in the low one (ACPI 6.5 6.1.1).
    let address = integer(interpreter, device, "_ADR")?;
    let bdf = Bdf::new(parent, u8::try_from(address >> 16).ok()?, u8::try_from(address & 0xffff).ok()?)?;
    buses.secondary(bdf)
}

fn is_root_bridge(interpreter: &Interpreter<Firmware<'_>>, device: &AmlName) -> bool {
    ["_HID", "_CID"].iter().any(|name| {
        let Some(path) = AmlName::from_str(name).ok().and_then(|name| name.resolve(device).ok()) else {
            return false;
        };
        match interpreter.evaluate_if_present(path, vec![]) {
            Ok(Some(object)) => match &*object {
                Object::Integer(id) => ROOT_BRIDGE_IDS.contains(id),
                Object::String(id) => id == "PNP0A03" || id == "PNP0A08",
                _ => false,
            },
            _ => false,
        }
    })
}

fn integer(interpreter: &Interpreter<Firmware<'_>>, device: &AmlName, name: &str) -> Option<u64> {
    let path = AmlName::from_str(name).ok()?.resolve(device).ok()?;
    match &*interpreter.evaluate_if_present(path, vec![]).ok()?? {
        Object::Integer(value) => Some(*value),
        _ => None,
    }
}
