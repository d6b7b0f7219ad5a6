//! The ACPI tables a guest finds: a hardware-reduced platform of virtual CPUs, one IO-APIC, COM1 and PCI root bridges with a
//! static `_PRT` each and their configuration space in memory (ACPI 6.5 5.2, 6.2.13; PCI Firmware 3.3 4.1).
//!
//! Functions keep their numbers, and no bridge of the machine is the guest's: each bus with a function of the guest is a root
//! bus, with what that function's BARs take for its own. Bus 0 is there in any case, and has all the rest.
//!
//! They are made at boot, when it is known which virtual pin each function drives, and lie in the area that a PC keeps for
//! firmware, where guests look for the root pointer. Nothing in them has to be interpreted but the two power ports.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
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
use crate::pci::virtual_bar::{BarWindow, Mapping, Mappings};
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
    /// The functions it may have.
    pub functions: &'a [Passed],
}

/// A function, as the guest finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Its number, host and guest alike.
    pub bdf: Bdf,
    /// Its interrupt pin and the input of the guest's IO-APIC that this drives.
    pub route: Option<(IntPin, Pin)>,
    /// Where its BARs are at first.
    pub places: Mappings,
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
    let board = board();
    let bridges = root_bridges(platform);
    let mut children: Vec<&dyn Aml> = alloc::vec![&board, &com1];
    children.extend(bridges.iter().map(|bridge| bridge as &dyn Aml));
    Scope::new(Path::new("_SB_"), children).to_aml_bytes(&mut aml);
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
    name: String,
    children: Vec<Box<dyn Aml>>,
}

impl Aml for Node {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let children = self.children.iter().map(|child| &**child).collect();
        Device::new(Path::new(&self.name), children).to_aml_bytes(sink);
    }
}

impl Node {
    fn new(name: &str) -> Self {
        Self { name: name.into(), children: Vec::new() }
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

/// The ports of configuration mechanism 1, first and last, which no bridge decodes for what is behind it.
const CONFIG_PORTS: (u32, u32) = (0xcf8, 0xcff);

/// What a BAR takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decoded {
    Memory,
    Ports,
}

/// The root bridges, that of bus 0 first.
fn root_bridges(platform: &Platform<'_>) -> Vec<Node> {
    let (at_root, elsewhere): (Vec<Passed>, Vec<Passed>) =
        platform.functions.iter().partition(|passed| passed.bdf.bus() == 0);
    // The window lies below 4 GiB, as the hole does.
    let first = platform.bars.start().raw() as u32;
    let window = (first, first.saturating_add((platform.bars.bytes() - 1) as u32));
    let memory = without(window, taken(&elsewhere, Decoded::Memory));
    let ports = taken(&elsewhere, Decoded::Ports).chain([CONFIG_PORTS]);
    let ports = without((0, u16::MAX.into()), ports);
    let (first, last) = CONFIG_PORTS;
    let mechanism = IO::new(first as u16, first as u16, 1, (last - first + 1) as u8);
    let mut bridges = alloc::vec![root_bridge(0, &at_root, &memory, &ports, &[&mechanism])];
    let buses: BTreeSet<u8> = elsewhere.iter().map(|passed| passed.bdf.bus()).collect();
    bridges.extend(buses.into_iter().map(|bus| {
        let there: Vec<Passed> = elsewhere.iter().filter(|passed| passed.bdf.bus() == bus).copied().collect();
        let of = |space| taken(&there, space).collect::<Vec<_>>();
        root_bridge(bus, &there, &of(Decoded::Memory), &of(Decoded::Ports), &[])
    }));
    bridges
}

/// The first and the last address of what the BARs of these functions take of a space.
fn taken(functions: &[Passed], space: Decoded) -> impl Iterator<Item = (u32, u32)> {
    functions.iter().flat_map(|passed| passed.places).filter_map(move |place| match (place?, space) {
        (Mapping::Memory { guest, bytes, .. }, Decoded::Memory) => {
            let last = guest.raw().saturating_add(bytes.saturating_sub(1));
            Some((guest.raw() as u32, u32::try_from(last).unwrap_or(u32::MAX)))
        }
        (Mapping::Ports { first, last }, Decoded::Ports) => Some((first.into(), last.into())),
        (Mapping::Memory { .. }, Decoded::Ports) | (Mapping::Ports { .. }, Decoded::Memory) => None,
    })
}

/// What is left of the addresses from the first to the last of `whole` without those of `taken`, in ascending order.
fn without(whole: (u32, u32), taken: impl Iterator<Item = (u32, u32)>) -> Vec<(u32, u32)> {
    let mut taken: Vec<_> = taken.map(|(first, last)| (u64::from(first), u64::from(last))).collect();
    taken.sort_unstable();
    let (mut next, end) = (u64::from(whole.0), u64::from(whole.1) + 1);
    let mut left = Vec::new();
    for (first, last) in taken.into_iter().chain([(end, end)]) {
        let first = first.min(end);
        if next < first {
            left.push((next as u32, (first - 1) as u32));
        }
        next = next.max(last + 1);
    }
    left
}

/// The root of a bus, with the addresses that it decodes, and what it has besides.
fn root_bridge(
    bus: u8,
    functions: &[Passed],
    memory: &[(u32, u32)],
    ports: &[(u32, u32)],
    besides: &[&IO],
) -> Node {
    let name = if bus == 0 { "PCI0".into() } else { format!("PC{bus:02X}") };
    let buses = AddressSpace::<u16>::new_bus_number(bus.into(), bus.into());
    let ports =
        ports.iter().map(|&(first, last)| AddressSpace::<u16>::new_io(first as u16, last as u16, None));
    let ports: Vec<_> = ports.collect();
    let memory = memory.iter().map(|&(first, last)| {
        AddressSpace::<u32>::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
    });
    let memory: Vec<_> = memory.collect();
    let mut resources: Vec<&dyn Aml> = alloc::vec![&buses];
    resources.extend(besides.iter().map(|one| *one as &dyn Aml));
    resources.extend(ports.iter().map(|one| one as &dyn Aml));
    resources.extend(memory.iter().map(|one| one as &dyn Aml));
    Node::new(&name)
        .with("_HID", &EISAName::new("PNP0A08"))
        .with("_CID", &EISAName::new("PNP0A03"))
        .with("_UID", &bus)
        .with("_SEG", &ZERO)
        .with("_BBN", &bus)
        .with("_CRS", &ResourceTemplate::new(resources))
        .with("_PRT", &routing(functions))
}

/// One entry for each pin that is used, with the number of the IO-APIC's input in place of a link device.
fn routing(functions: &[Passed]) -> PackageBuilder {
    const ANY_FUNCTION: u32 = 0xffff;
    let mut table = PackageBuilder::new();
    let mut listed = Vec::new();
    for (bdf, (pin, vpin)) in functions.iter().filter_map(|passed| Some((passed.bdf, passed.route?))) {
        let (device, pin) = (bdf.device(), pin.index());
        if listed.contains(&(device, pin)) {
            continue;
        }
        listed.push((device, pin));
        let address = u32::from(device) << 16 | ANY_FUNCTION;
        table.add_element(&Package::new(alloc::vec![&address, &pin, &ZERO, &vpin.0]));
    }
    table
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::addr::HostPhys;
    use crate::config::MAX_DEVICES;
    use std::path::Path;
    use std::process::Command;
    use std::{env, fs};

    const WINDOW: BarWindow =
        BarWindow::new(GuestPhys::new(0xe000_0000), GuestPhys::new(0xfe00_0000)).unwrap();

    const NOWHERE: Mappings = [None; 6];

    fn passed(bus: u8, device: u8, function: u8, pin: u8, vpin: u8) -> Passed {
        let route = Some((IntPin::from_index(pin).unwrap(), Pin(vpin)));
        Passed { bdf: Bdf::new(bus, device, function).unwrap(), route, places: NOWHERE }
    }

    fn memory(first: u64, bytes: u64) -> Option<Mapping> {
        Some(Mapping::Memory { guest: GuestPhys::new(first), host: HostPhys::new(0x1000), bytes })
    }

    fn ports(first: u16, last: u16) -> Option<Mapping> {
        Some(Mapping::Ports { first, last })
    }

    /// On bus 0, and behind bridges of the machine.
    fn some_functions() -> Vec<Passed> {
        let behind = |bus, places| Passed { places, ..passed(bus, 5, 0, 0, 19) };
        let silent = Passed { route: None, ..passed(0, 9, 0, 0, 0) };
        alloc::vec![
            Passed {
                places: [memory(0xfd00_0000, 0x10_0000), None, None, None, None, None],
                ..passed(0, 3, 0, 0, 23)
            },
            passed(0, 3, 1, 1, 20),
            passed(0, 3, 2, 0, 23),
            behind(0xa3, [memory(0xe000_0000, 0x1000), ports(0xc000, 0xc007), None, None, None, None]),
            silent,
            behind(
                1,
                [
                    memory(0xfdff_f000, 0x1000),
                    None,
                    memory(0xf000_0000, 0x2000),
                    None,
                    ports(0xc008, 0xc00f),
                    None
                ]
            ),
            passed(0, 31, 7, 3, 1),
        ]
    }

    #[test]
    fn what_is_left_are_the_gaps() {
        for (whole, taken, left) in [
            ((10, 20), &[][..], &[(10, 20)][..]),
            ((10, 20), &[(10, 20)], &[]),
            ((10, 20), &[(0, 30)], &[]),
            ((10, 20), &[(30, 40), (0, 5)], &[(10, 20)]),
            ((10, 20), &[(15, 15), (10, 11)], &[(12, 14), (16, 20)]),
            ((10, 20), &[(12, 16), (13, 14), (17, 17)], &[(10, 11), (18, 20)]),
            ((0, u32::MAX), &[(u32::MAX, u32::MAX), (0, 0)], &[(1, u32::MAX - 1)]),
        ] {
            assert_eq!(without(whole, taken.iter().copied()), left, "{whole:?} without {taken:?}");
        }
    }

    /// The value of the object `name` of the device `device`, to the end of the table.
    fn object<'a>(dsdt: &'a [u8], device: &[u8; 4], name: &[u8; 4]) -> &'a [u8] {
        let find = |from: &[u8], name: &[u8; 4]| from.windows(4).position(|four| four == name);
        let device = &dsdt[find(dsdt, device).expect("no such device")..];
        &device[find(device, name).expect("no such object") + 4..]
    }

    /// What a root bridge decodes, read from its resources: kind (0 memory, 1 ports, 2 buses), first and last.
    fn decodes(dsdt: &[u8], device: &[u8; 4]) -> Vec<(u8, u32, u32)> {
        let mut at = object(dsdt, device, b"_CRS");
        at = &at[at.windows(1).position(|byte| byte[0] == 0x88).expect("no buses")..];
        let mut found = Vec::new();
        loop {
            let word = |offset| u32::from(u16::from_le_bytes([at[offset], at[offset + 1]]));
            let bytes = match at[0] {
                // Word, doubleword: kind, minimum and maximum (ACPI 6.5 6.4.3.5).
                0x88 => {
                    found.push((at[3], word(8), word(10)));
                    16
                }
                0x87 => {
                    found.push((at[3], u32_at(at, 10), u32_at(at, 14)));
                    26
                }
                // Ports of its own (ACPI 6.5 6.4.2.5), and the end.
                0x47 => 8,
                0x79 => return found,
                other => panic!("{other:#x}"),
            };
            at = &at[bytes..];
        }
    }

    #[test]
    fn each_bus_with_functions_is_a_root_that_decodes_what_they_take_and_bus_0_the_rest() {
        let functions = some_functions();
        let placement = tables(&Platform { vcpus: 1, bars: WINDOW, functions: &functions });
        let [_, _, dsdt, _] = found(&placement.bytes);
        assert_eq!(
            decodes(dsdt, b"PC01"),
            [(2, 1, 1), (1, 0xc008, 0xc00f), (0, 0xfdff_f000, 0xfdff_ffff), (0, 0xf000_0000, 0xf000_1fff)]
        );
        assert_eq!(
            decodes(dsdt, b"PCA3"),
            [(2, 0xa3, 0xa3), (1, 0xc000, 0xc007), (0, 0xe000_0000, 0xe000_0fff)]
        );
        assert_eq!(
            decodes(dsdt, b"PCI0"),
            [
                (2, 0, 0),
                (1, 0, 0xcf7),
                (1, 0xd00, 0xbfff),
                (1, 0xc010, 0xffff),
                (0, 0xe000_1000, 0xefff_ffff),
                (0, 0xf000_2000, 0xfdff_efff),
            ]
        );
        let bus = object(dsdt, b"PCA3", b"_BBN");
        assert_eq!(bus[..2], [0x0a, 0xa3]);
    }

    #[test]
    fn the_most_functions_there_can_be_fit_in_the_area_of_the_tables() {
        let function = |number: u8| {
            let at = u64::from(number) << 16;
            let bar = |index: u64| memory(0xe000_0000 + at + index * 0x2000, 0x1000);
            Passed { places: core::array::from_fn(|index| bar(index as u64)), ..passed(number, 0, 0, 0, 16) }
        };
        let functions: Vec<Passed> = (1..=MAX_DEVICES as u8).map(function).collect();
        let placement = tables(&Platform { vcpus: u8::MAX, bars: WINDOW, functions: &functions });
        assert!(placement.end().raw() <= 0x10_0000, "{}", placement.end());
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
            let functions = some_functions();
            let placement = tables(&Platform { vcpus, bars: WINDOW, functions: &functions });
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
        let functions = some_functions();
        let placement = tables(&Platform { vcpus: 1, bars: WINDOW, functions: &functions });
        let [_, _, dsdt, _] = found(&placement.bytes);
        // A package of three packages of four elements each; 12, 10 and 11 have the prefixes for word, dword and byte.
        let expected = [
            &[0x12, 0x26, 3][..],
            &[0x12, 0x0b, 4, 0x0c, 0xff, 0xff, 3, 0, 0x00, 0x00, 0x0a, 23],
            &[0x12, 0x0b, 4, 0x0c, 0xff, 0xff, 3, 0, 0x01, 0x00, 0x0a, 20],
            &[0x12, 0x0b, 4, 0x0c, 0xff, 0xff, 31, 0, 0x0a, 3, 0x00, 0x01],
        ]
        .concat();
        assert_eq!(object(dsdt, b"PCI0", b"_PRT")[..expected.len()], expected);
        let expected =
            [&[0x12, 0x0e, 1][..], &[0x12, 0x0b, 4, 0x0c, 0xff, 0xff, 5, 0, 0x00, 0x00, 0x0a, 19]].concat();
        for bus in [b"PC01", b"PCA3"] {
            assert_eq!(object(dsdt, bus, b"_PRT")[..expected.len()], expected);
        }
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
        let functions = some_functions();
        for (case, functions) in [&functions[..], &[]].into_iter().enumerate() {
            let placement = tables(&Platform { vcpus: 2, bars: WINDOW, functions });
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
