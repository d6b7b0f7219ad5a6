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
use levelhead::facts::PlaceOnBus;
use levelhead::irq::{Gsi, Polarity, TriggerMode};
use levelhead::pci::route::PrtEntry;
use levelhead::pci::{Bdf, ConfigSpace, IntPin, Offset, PinRoute};

use super::handler::{Firmware, Memory};
use super::tables;

/// Places that are looked up in one boot.
pub(crate) const MAX_PLACES: usize = 256;
/// Nesting of bridges in the namespace that is followed.
const MAX_DEPTH: usize = 16;
/// PNP0A03 and PNP0A08 as EISA identifiers: PCI and PCI Express root bridges.
const ROOT_BRIDGE_IDS: [u64; 2] = [0x030a_d041, 0x080a_d041];

/// The entries found, in the order of the places. Plain values: the interpreter's memory is dropped.
pub(crate) type Entries = [Option<PrtEntry>; MAX_PLACES];

/// Interprets the firmware's AML and looks up each place. `None` when the tables or their AML cannot be used, or say
/// what cannot be.
pub(crate) fn look_up(
    rsdp: Option<HostPhys>,
    memory: Memory<'_>,
    space: &impl ConfigSpace,
    places: &[PlaceOnBus],
) -> Option<Entries> {
    let memory = RefCell::new(memory);
    let firmware = Firmware::new(&memory);
    let platform = AcpiPlatform::new(tables::open(rsdp, firmware).ok()?, firmware).ok()?;
    let interpreter = Interpreter::new_from_platform(&platform).ok()?;
    interpreter.initialize_namespace();
    // Tell firmware that the IO-APIC is used; absent on firmware that knows nothing else.
    let pic = AmlName::from_str("\\_PIC").ok()?;
    interpreter.evaluate_if_present(pic, vec![Object::Integer(1).wrap()]).ok()?;
    let routing = routing_tables(&interpreter, space).ok()?;
    let mut entries: Entries = [None; MAX_PLACES];
    for (slot, (bus, device, pin)) in entries.iter_mut().zip(places.iter().copied()) {
        let tables = routing.iter().filter(|(described, _)| *described == bus);
        // Functions share their device's pins; any function number finds an entry for all of them.
        let found = tables
            .filter_map(|(_, table)| table.route(u16::from(device), 0, prt_pin(pin), &interpreter).ok())
            .next();
        // The system timer's line: a link that is not set up says so, or the interpreter went wrong in it.
        if found.as_ref().is_some_and(|found| found.irq == 0) {
            return None;
        }
        *slot = found.map(|found| PrtEntry {
            bus,
            device,
            pin,
            route: PinRoute {
                gsi: Gsi(found.irq),
                trigger: match found.trigger {
                    InterruptTrigger::Edge => TriggerMode::Edge,
                    InterruptTrigger::Level => TriggerMode::Level,
                },
                polarity: match found.polarity {
                    InterruptPolarity::ActiveHigh => Polarity::ActiveHigh,
                    InterruptPolarity::ActiveLow => Polarity::ActiveLow,
                },
            },
        });
    }
    Some(entries)
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
    space: &impl ConfigSpace,
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
        if let Some(bus) = bus_of(interpreter, space, &device, MAX_DEPTH) {
            found.push((bus, PciRoutingTable::from_prt_path(path, interpreter)?));
        }
    }
    Ok(found)
}

/// The bus that lies behind a device of the namespace: a root bridge's own, or a bridge's secondary bus.
fn bus_of(
    interpreter: &Interpreter<Firmware<'_>>,
    space: &impl ConfigSpace,
    device: &AmlName,
    depth: usize,
) -> Option<u8> {
    if is_root_bridge(interpreter, device) {
        return u8::try_from(integer(interpreter, device, "_BBN").unwrap_or(0)).ok();
    }
    let parent = bus_of(interpreter, space, &device.parent().ok()?, depth.checked_sub(1)?)?;
    // _ADR of a PCI function: device in the high word, function in the low one (ACPI 6.5 6.1.1).
    let address = integer(interpreter, device, "_ADR")?;
    let bdf = Bdf::new(parent, u8::try_from(address >> 16).ok()?, u8::try_from(address & 0xffff).ok()?)?;
    // Secondary bus number, byte 0x19 of a bridge's header (PCI-to-PCI Bridge 1.2 3.2.5.3); all-ones where none is.
    let secondary = (space.read32(bdf, Offset::BUS_NUMBERS) >> 8) as u8;
    (secondary > parent && secondary != u8::MAX).then_some(secondary)
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
