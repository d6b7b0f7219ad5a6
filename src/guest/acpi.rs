//! The ACPI tables a guest finds: a hardware-reduced platform of virtual CPUs, one IO-APIC, COM1 and one PCI root bridge
//! with a static `_PRT` and its configuration space in memory (ACPI 6.5 5.2, 6.2.13; PCI Firmware 3.3 4.1).
//!
//! They are made at boot, when it is known which virtual pin each function drives, and lie in the area that a PC keeps for
//! firmware, where guests look for the root pointer. Nothing in them has to be interpreted but the two power ports.

use alloc::boxed::Box;
use alloc::vec::Vec;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    PackageBuilder, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::addr::GuestPhys;
use crate::config::{COM1_PIN, COM1_PORTS, POWER_PORTS, RESET_PORT};
use crate::device::power::{POWER_OFF_SLEEP_TYPE, RESET_VALUE};
use crate::irq::Pin;
use crate::pci::ecam::{GUEST_ECAM, GUEST_ECAM_BYTES};
use crate::pci::virtual_bar::BarWindow;
use crate::pci::{Bdf, IntPin};

use super::Placement;
use super::memory::{ACPI_RSDP, IO_APIC, LOCAL_APIC};

const OEM: [u8; 6] = *b"LVLHED";
const OEM_TABLE: [u8; 8] = *b"LVLHEDVM";
const OEM_REVISION: u32 = 1;
/// Of an empty table: the header alone (ACPI 6.5 5.2.6).
const HEADER_BYTES: u32 = 36;
/// From this revision on integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// FADT, boot architecture flags: no VGA, no MSI, no CMOS clock (ACPI 6.5 table 5.11).
const ABSENT_VGA_MSI_CLOCK: u16 = 1 << 2 | 1 << 3 | 1 << 5;

/// What of a guest's platform differs from guest to guest.
#[derive(Clone, Copy, Debug)]
pub struct Platform<'a> {
    /// Its virtual CPUs; their local APIC identifiers count from 0.
    pub vcpus: u8,
    /// Where BARs may lie.
    pub bars: BarWindow,
    /// Which function drives which input of its IO-APIC.
    pub routes: &'a [Route],
}

/// The interrupt of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The function.
    pub bdf: Bdf,
    /// Its interrupt pin.
    pub pin: IntPin,
    /// The input of the guest's IO-APIC.
    pub vpin: Pin,
}

/// All tables of `platform`, the root pointer first. They lie where no image can and no other boot data is put.
pub fn tables(platform: &Platform<'_>) -> Placement<'static> {
    let mut block = Block(Vec::new());
    block.append(&Rsdp::new(OEM, 0));
    let dsdt = block.append_bytes(dsdt(platform).as_slice());
    let fadt = block.append(&fadt(dsdt));
    let madt = block.append(&madt(platform.vcpus));
    let mcfg = block.append(&mcfg());
    let mut root = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    root.add_entry(fadt);
    root.add_entry(madt);
    root.add_entry(mcfg);
    let root = block.append(&root);
    // Of the same length as before, with the address that was not known then.
    let mut pointer = Vec::new();
    Rsdp::new(OEM, root).to_aml_bytes(&mut pointer);
    let Block(mut bytes) = block;
    bytes.splice(..pointer.len(), pointer);
    Placement { at: GuestPhys::new(ACPI_RSDP), bytes: bytes.into(), zeros: 0 }
}

/// Tables one behind the other, each at a multiple of 16 bytes.
struct Block(Vec<u8>);

impl Block {
    fn append(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.append_bytes(&bytes)
    }

    /// Returns the guest-physical address.
    fn append_bytes(&mut self, bytes: &[u8]) -> u64 {
        let offset = self.0.len().next_multiple_of(16);
        self.0.resize(offset, 0);
        self.0.extend_from_slice(bytes);
        ACPI_RSDP + offset as u64
    }
}

fn madt(vcpus: u8) -> MADT {
    let mut madt =
        MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC as u32));
    for number in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(number, number, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC as u32, 0));
    madt
}

/// All buses of the one segment, whether the root bridge has them or not: as by ports, nobody answers on the others.
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(GUEST_ECAM.raw(), 0, 0, u8::MAX);
    mcfg
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = ABSENT_VGA_MSI_CLOCK.into();
    fadt.sleep_control_reg = port(*POWER_PORTS.start());
    fadt.sleep_status_reg = port(*POWER_PORTS.end());
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

fn dsdt(platform: &Platform<'_>) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let mut aml = Vec::new();
    power_off(&mut aml);
    let com1 = com1();
    let bridge = root_bridge(platform);
    let board = board();
    Scope::new(Path::new("_SB_"), alloc::vec![&board, &com1, &bridge]).to_aml_bytes(&mut aml);
    dsdt.append_slice(&aml);
    dsdt
}

/// What is written to the sleep control register to end the guest.
fn power_off(aml: &mut dyn AmlSink) {
    let package = Package::new(alloc::vec![&POWER_OFF_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]);
    Name::new(Path::new("_S5_"), &package).to_aml_bytes(aml);
}

/// A device that owns its children.
struct Node {
    name: &'static str,
    children: Vec<Box<dyn Aml>>,
}

impl Aml for Node {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let children = self.children.iter().map(|child| &**child).collect();
        Device::new(Path::new(self.name), children).to_aml_bytes(sink);
    }
}

impl Node {
    fn new(name: &'static str) -> Self {
        Self { name, children: Vec::new() }
    }

    fn with(mut self, name: &str, value: &dyn Aml) -> Self {
        self.children.push(Box::new(Name::new(Path::new(name), value)));
        self
    }
}

/// What the board itself takes of the address space, so that nobody puts a device there (PCI Firmware 3.3 4.1.2).
fn board() -> Node {
    let ecam = Memory32Fixed::new(true, GUEST_ECAM.raw() as u32, GUEST_ECAM_BYTES as u32);
    Node::new("MBRD")
        .with("_HID", &EISAName::new("PNP0C02"))
        .with("_UID", &ZERO)
        .with("_CRS", &ResourceTemplate::new(alloc::vec![&ecam]))
}

fn com1() -> Node {
    let (first, count) = (*COM1_PORTS.start(), COM1_PORTS.len() as u8);
    let ports = IO::new(first, first, 1, count);
    let interrupt = Interrupt::new(true, true, false, false, COM1_PIN.0.into());
    Node::new("COM1")
        .with("_HID", &EISAName::new("PNP0501"))
        .with("_UID", &ZERO)
        .with("_CRS", &ResourceTemplate::new(alloc::vec![&ports, &interrupt]))
}

/// The root of bus 0. Ports are decoded all but those of configuration mechanism 1, memory within the window for BARs.
fn root_bridge(platform: &Platform<'_>) -> Node {
    const CONFIG: u16 = 0xcf8;
    const CONFIG_BYTES: u16 = 8;
    let buses = AddressSpace::<u16>::new_bus_number(0, 0);
    let mechanism = IO::new(CONFIG, CONFIG, 1, CONFIG_BYTES as u8);
    let below = AddressSpace::<u16>::new_io(0, CONFIG - 1, None);
    let above = AddressSpace::<u16>::new_io(CONFIG + CONFIG_BYTES, u16::MAX, None);
    // The window lies below 4 GiB, as the hole does.
    let first = platform.bars.start().raw() as u32;
    let last = first.saturating_add((platform.bars.bytes() - 1) as u32);
    let memory =
        AddressSpace::<u32>::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    Node::new("PCI0")
        .with("_HID", &EISAName::new("PNP0A08"))
        .with("_CID", &EISAName::new("PNP0A03"))
        .with("_UID", &ZERO)
        .with("_SEG", &ZERO)
        .with("_BBN", &ZERO)
        .with("_CRS", &ResourceTemplate::new(alloc::vec![&buses, &mechanism, &below, &above, &memory]))
        .with("_PRT", &routing(platform.routes))
}

/// One entry for each pin that is used, with the number of the IO-APIC's input in place of a link device.
fn routing(routes: &[Route]) -> PackageBuilder {
    const ANY_FUNCTION: u32 = 0xffff;
    let mut table = PackageBuilder::new();
    let mut listed = Vec::new();
    for route in routes.iter().filter(|route| route.bdf.bus() == 0) {
        let (device, pin) = (route.bdf.device(), route.pin.index());
        if listed.contains(&(device, pin)) {
            continue;
        }
        listed.push((device, pin));
        let address = u32::from(device) << 16 | ANY_FUNCTION;
        table.add_element(&Package::new(alloc::vec![&address, &pin, &ZERO, &route.vpin.0]));
    }
    table
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;
    use std::{env, fs};

    const WINDOW: BarWindow =
        BarWindow::new(GuestPhys::new(0xe000_0000), GuestPhys::new(0xfe00_0000)).unwrap();

    fn route(device: u8, function: u8, pin: u8, vpin: u8) -> Route {
        let bdf = Bdf::new(0, device, function).unwrap();
        Route { bdf, pin: IntPin::from_index(pin).unwrap(), vpin: Pin(vpin) }
    }

    fn some_routes() -> Vec<Route> {
        let behind_a_bridge = Route { bdf: Bdf::new(1, 5, 0).unwrap(), ..route(5, 0, 0, 19) };
        alloc::vec![
            route(3, 0, 0, 23),
            route(3, 1, 1, 20),
            route(3, 2, 0, 23),
            behind_a_bridge,
            route(31, 7, 3, 1)
        ]
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest-physical address, whole and with a sum of 0.
    fn table(bytes: &[u8], at: u64) -> (&[u8; 4], &[u8]) {
        let from = &bytes[(at - ACPI_RSDP) as usize..];
        let table = &from[..u32_at(from, 4) as usize];
        assert_eq!(table.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
        (table.first_chunk().unwrap(), table)
    }

    /// FADT, MADT, DSDT and MCFG, found as a guest finds them.
    fn found(bytes: &[u8]) -> [&[u8]; 4] {
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!(bytes[15], 2);
        for length in [20, 36] {
            assert_eq!(bytes[..length].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
        }
        let (signature, root) = table(bytes, u64_at(bytes, 24));
        assert_eq!(signature, b"XSDT");
        let [fadt, madt, mcfg] = [36, 44, 52].map(|entry| table(bytes, u64_at(root, entry)));
        assert_eq!((root.len(), fadt.0, madt.0, mcfg.0), (60, b"FACP", b"APIC", b"MCFG"));
        let (signature, dsdt) = table(bytes, u64_at(fadt.1, 140));
        assert_eq!(signature, b"DSDT");
        [fadt.1, madt.1, dsdt, mcfg.1]
    }

    #[test]
    fn a_guest_finds_every_table_from_the_root_pointer() {
        for vcpus in [1, 2, 32, u8::MAX] {
            let routes = some_routes();
            let placement = tables(&Platform { vcpus, bars: WINDOW, routes: &routes });
            assert_eq!(placement.at.raw(), 0xe_0000);
            assert!(placement.end().raw() <= 0x10_0000);
            let [fadt, madt, _, mcfg] = found(&placement.bytes);
            assert_eq!(u32_at(fadt, 112) >> 20 & 1, 1, "hardware-reduced");
            assert_eq!(u32_at(fadt, 112) >> 10 & 1, 1, "the reset register counts");
            assert_eq!(fadt[109], 0x2c, "no VGA, no MSI, no CMOS clock");
            assert_eq!((u64_at(fadt, 120), fadt[128]), (0xcf9, 6));
            assert_eq!((u64_at(fadt, 248), u64_at(fadt, 260)), (0x600, 0x601));
            assert_eq!(u32_at(madt, 36), 0xfee0_0000);
            assert_eq!((mcfg.len(), u64_at(mcfg, 44), &mcfg[52..56]), (60, 0xd000_0000, &[0, 0, 0, 255][..]));
            let cpus = madt[44..].chunks(8).take(vcpus.into());
            for (number, cpu) in cpus.enumerate() {
                assert_eq!(cpu, [0, 8, number as u8, number as u8, 1, 0, 0, 0]);
            }
            let io_apic = &madt[44 + 8 * usize::from(vcpus)..];
            assert_eq!(
                (io_apic[0], io_apic.len(), u32_at(io_apic, 4), u32_at(io_apic, 8)),
                (1, 12, 0xfec0_0000, 0)
            );
        }
    }

    #[test]
    fn each_pin_is_routed_once_to_its_input() {
        let routes = some_routes();
        let placement = tables(&Platform { vcpus: 1, bars: WINDOW, routes: &routes });
        let [_, _, dsdt, _] = found(&placement.bytes);
        let at = dsdt.windows(4).position(|name| name == b"_PRT").unwrap();
        // A package of three packages of four elements each; 12, 10 and 11 have the prefixes for word, dword and byte.
        let expected = [
            &[0x12, 0x26, 3][..],
            &[0x12, 0x0b, 4, 0x0c, 0xff, 0xff, 3, 0, 0x00, 0x00, 0x0a, 23],
            &[0x12, 0x0b, 4, 0x0c, 0xff, 0xff, 3, 0, 0x01, 0x00, 0x0a, 20],
            &[0x12, 0x0b, 4, 0x0c, 0xff, 0xff, 31, 0, 0x0a, 3, 0x00, 0x01],
        ]
        .concat();
        assert_eq!(dsdt[at + 4..][..expected.len()], expected);
    }

    /// ACPICA's own compiler reads the tables and finds nothing wrong with what it read. Where it is missing, the step
    /// `host/iasl` of `cargo xtask test` says so.
    #[test]
    fn iasl_reads_the_tables_and_compiles_them_again() {
        if Command::new("iasl").arg("-v").output().is_err() {
            return;
        }
        let folder = env::temp_dir().join(std::format!("levelhead-acpi-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let routes = some_routes();
        for (case, routes) in [&routes[..], &[]].into_iter().enumerate() {
            let placement = tables(&Platform { vcpus: 2, bars: WINDOW, routes });
            for (name, table) in ["facp", "apic", "dsdt", "mcfg"].into_iter().zip(found(&placement.bytes)) {
                let binary = folder.join(std::format!("{name}-{case}.aml"));
                fs::write(&binary, table).unwrap();
                iasl(&["-d".as_ref(), &binary]);
                let said = iasl(&[&binary.with_extension("dsl")]);
                assert!(said.contains("0 Errors, 0 Warnings"), "{name}: {said}");
            }
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    fn iasl(words: &[&Path]) -> String {
        let output = Command::new("iasl").args(words).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        said
    }
}
