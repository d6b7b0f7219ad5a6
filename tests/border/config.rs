//! Configuration space through ports 0xcf8 to 0xcff: a guest with three functions on a bus where others have theirs.

use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use levelhead::addr::GuestPhys;
use levelhead::irq::Pin;
use levelhead::pci::config_ports::PortRead;
use levelhead::pci::virtual_bar::{BarPlacer, BarWindow, Mapping};
use levelhead::pci::{
    Access, Bdf, Command, ConfigPorts, ConfigSpace, Function, Offset, VirtualConfig, Width,
};

use crate::dice::{Dice, fuzz};

const WINDOW: (u64, u64) = (0xe000_0000, 0xfe00_0000);
/// The guest's functions; everything else on the bus is somebody else's.
const OWN: [&str; 3] = ["00:03.0", "00:04.0", "02:1f.7"];
const FOREIGN: [&str; 2] = ["00:00.0", "00:05.0"];

fn bdf(text: &str) -> Bdf {
    text.parse().expect("a function's name")
}

/// Bytes of configuration space, and which of their bits keep what is written.
type Header = ([u8; 256], [u8; 256]);

/// A machine's bus. Once sealed it must not be written to, and only `own` functions may be read.
struct Bus {
    functions: RefCell<BTreeMap<Bdf, Header>>,
    sealed: Cell<bool>,
    reads: Cell<u32>,
}

impl Bus {
    fn new() -> Self {
        let bus = Self { functions: RefCell::default(), sealed: Cell::new(false), reads: Cell::new(0) };
        // Memory BARs of 1 MiB; of a page, with 256 ports; of 512 bytes, and of 2 MiB with 64 bits.
        let bars: [&[(u8, u32, u32)]; 5] = [
            &[(0, 0xfea0_0000, !0xf_ffff)],
            &[(0, 0xfebf_1000, !0xfff), (1, 0xc001, !0xff)],
            &[(0, 0xfebf_3000, !0x1ff), (2, 0x8020_000c, !0x1f_ffff), (3, 0x10, u32::MAX)],
            &[],
            &[(0, 0xfeb0_0000, !0xf_ffff)],
        ];
        for (name, bars) in OWN.into_iter().chain(FOREIGN).zip(bars) {
            let (mut bytes, mut writable) = ([0; 256], [0; 256]);
            bytes[..4].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]);
            bytes[4] = 3;
            bytes[9..12].copy_from_slice(&[0, 0xff, 0]);
            bytes[0x3d] = 1;
            writable[4..6].copy_from_slice(&[0x57, 0x05]);
            for (index, address, mask) in bars {
                let at = usize::from(0x10 + 4 * index);
                bytes[at..at + 4].copy_from_slice(&address.to_le_bytes());
                writable[at..at + 4].copy_from_slice(&mask.to_le_bytes());
            }
            bus.functions.borrow_mut().insert(bdf(name), (bytes, writable));
        }
        bus
    }

    fn read<const N: usize>(&self, at: Bdf, offset: Offset) -> [u8; N] {
        self.reads.set(self.reads.get() + 1);
        assert!(!self.sealed.get() || OWN.map(bdf).contains(&at), "{at} is not the guest's");
        let functions = self.functions.borrow();
        let Some((bytes, _)) = functions.get(&at) else { return [u8::MAX; N] };
        let from = usize::from(offset.get());
        bytes.get(from..from + N).map_or([0; N], |bytes| bytes.try_into().expect("N bytes"))
    }

    fn write(&self, at: Bdf, offset: Offset, value: &[u8]) {
        assert!(!self.sealed.get(), "physical configuration space was written to: {at} {offset:?}");
        let mut functions = self.functions.borrow_mut();
        let Some((bytes, writable)) = functions.get_mut(&at) else { return };
        for (n, byte) in value.iter().enumerate() {
            let place = usize::from(offset.get()) + n;
            bytes[place] = bytes[place] & !writable[place] | byte & writable[place];
        }
    }
}

impl ConfigSpace for Bus {
    fn read8(&self, bdf: Bdf, offset: Offset) -> u8 {
        u8::from_le_bytes(self.read(bdf, offset))
    }

    fn read16(&self, bdf: Bdf, offset: Offset) -> u16 {
        u16::from_le_bytes(self.read(bdf, offset))
    }

    fn read32(&self, bdf: Bdf, offset: Offset) -> u32 {
        u32::from_le_bytes(self.read(bdf, offset))
    }

    fn write8(&self, bdf: Bdf, offset: Offset, value: u8) {
        self.write(bdf, offset, &[value]);
    }

    fn write16(&self, bdf: Bdf, offset: Offset, value: u16) {
        self.write(bdf, offset, &value.to_le_bytes());
    }

    fn write32(&self, bdf: Bdf, offset: Offset, value: u32) {
        self.write(bdf, offset, &value.to_le_bytes());
    }
}

/// A function's header on paper: bytes, and which of their bits a guest may change. Moving and sizing a BAR is nothing
/// else.
struct Paper {
    at: Bdf,
    bytes: [u8; 64],
    kept: [u8; 64],
    /// Where each memory BAR really is, and its size for the guest; by its register's index.
    memory: Vec<(u8, u64, u64)>,
    ports: Option<(u8, u16, u16)>,
}

impl Paper {
    fn new(name: &str, config: &VirtualConfig, bus: &Bus) -> Self {
        let (memory, ports): (&[(u8, u64, u64)], _) = match name {
            "00:03.0" => (&[(0, 0xfea0_0000, 1 << 20)], None),
            "00:04.0" => (&[(0, 0xfebf_1000, 1 << 12)], Some((1, 0xc000, 0xc0ff))),
            _ => (&[(0, 0xfebf_3000, 1 << 12), (2, 0x10_8020_0000, 1 << 21)], None),
        };
        let mut kept = [0; 64];
        // Command: memory, bus master, parity, SERR#, DisINTx; I/O for who has ports. Interrupt Line.
        kept[4..6].copy_from_slice(&[0x46 | u8::from(ports.is_some()), 0x05]);
        kept[0x3c] = 0xff;
        for (index, host, bytes) in memory {
            let at = usize::from(0x10 + 4 * index);
            kept[at..at + 4].copy_from_slice(&(!(bytes - 1) as u32).to_le_bytes());
            if host >> 32 != 0 {
                kept[at + 4..at + 8].copy_from_slice(&(!(bytes - 1) >> 32 & 0xffff_ffff).to_le_bytes()[..4]);
            }
        }
        if let Some((index, ..)) = ports {
            let at = usize::from(0x10 + 4 * index);
            kept[at..at + 4].copy_from_slice(&0xffff_ff00_u32.to_le_bytes());
        }
        let mut paper = Self { at: config.bdf(), bytes: [0; 64], kept, memory: memory.to_vec(), ports };
        for offset in (0..64).step_by(4) {
            let access = Access::new(offset as u16, Width::Dword).expect("an aligned dword");
            paper.bytes[offset..offset + 4].copy_from_slice(&config.read(bus, access).to_le_bytes());
        }
        paper
    }

    fn dword(&self, at: u16) -> u32 {
        let at = usize::from(at);
        self.bytes
            .get(at..at + 4)
            .map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn write(&mut self, access: Access, value: u32) {
        let first = usize::from(access.offset().get());
        for (n, byte) in value.to_le_bytes().into_iter().take(usize::from(access.width().bytes())).enumerate()
        {
            if let (Some(slot), Some(kept)) = (self.bytes.get_mut(first + n), self.kept.get(first + n)) {
                *slot = *slot & !kept | byte & kept;
            }
        }
    }

    /// What the guest reaches: the BARs that are decoded and lie where they may.
    fn mappings(&self) -> Vec<Mapping> {
        let mut mappings = Vec::new();
        for &(index, host, bytes) in &self.memory {
            let low = u64::from(self.dword(0x10 + 4 * u16::from(index))) & !0xf;
            let high = if host >> 32 == 0 { 0 } else { u64::from(self.dword(0x14 + 4 * u16::from(index))) };
            let guest = high << 32 | low;
            let inside = guest >= WINDOW.0 && guest.checked_add(bytes).is_some_and(|end| end <= WINDOW.1);
            if self.bytes[4] & 2 != 0 && inside {
                mappings.push(Mapping::Memory {
                    guest: GuestPhys::new(guest),
                    host: levelhead::addr::HostPhys::new(host),
                    bytes,
                });
            }
        }
        if let Some((index, first, last)) = self.ports
            && self.bytes[4] & 1 != 0
            && self.dword(0x10 + 4 * u16::from(index)) == u32::from(first) | 1
        {
            mappings.push(Mapping::Ports { first, last });
        }
        mappings
    }
}

fn guest(bus: &Bus) -> Vec<VirtualConfig> {
    let window = BarWindow::new(GuestPhys::new(WINDOW.0), GuestPhys::new(WINDOW.1)).expect("a window");
    let mut placer = BarPlacer::new(window);
    let configs = OWN.map(|name| {
        let function = Function::read(bus, bdf(name)).expect("a function");
        let places = placer.place(&function).expect("room for its BARs");
        VirtualConfig::new(bus, &function, &places, window, Some(Pin(20))).expect("an endpoint")
    });
    bus.sealed.set(true);
    configs.into_iter().collect()
}

/// What a guest writes to the address port: mostly a register of a header.
fn address(dice: &mut Dice) -> u32 {
    let name = dice.pick(&[OWN[0], OWN[1], OWN[2], OWN[2], FOREIGN[0], FOREIGN[1]]);
    let register = dice.pick(&[0, 4, 4, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x30, 0x34, 0x3c, 0x40, 0xfc]);
    let usual = 1 << 31 | u32::from(bdf(name).requester_id()) << 8 | register;
    dice.mostly(&[usual; 15], |dice| dice.hostile() as u32)
}

/// What a guest writes to a register: a place in its window or at its edges, all ones, or anything.
fn value(dice: &mut Dice) -> u32 {
    let place = (WINDOW.0 - (1 << 21) + (dice.below(0x1f00) << 16)) as u32;
    dice.mostly(&[u32::MAX, 0, 2, 3, 0x407, place, place, 0xc000, 0xc001], |dice| dice.hostile() as u32)
}

#[test]
fn a_guest_changes_its_own_header_on_paper_and_nothing_on_the_bus() {
    fuzz(150, |dice| {
        let bus = Bus::new();
        let mut functions = guest(&bus);
        let mut papers: Vec<Paper> =
            OWN.into_iter().zip(&functions).map(|(name, config)| Paper::new(name, config, &bus)).collect();
        let (mut ports, mut latch) = (ConfigPorts::RESET, 0);
        for _ in 0..400 {
            let port = 0xcf8 + dice.below(8) as u16;
            let width = dice.pick(&[Width::Byte, Width::Word, Width::Dword, Width::Dword]);
            let latched = (port, width) == (0xcf8, Width::Dword);
            let selected = latch >> 31 == 1 && port >= 0xcfc && port % 4 + u16::from(width.bytes()) <= 4;
            let named = Bdf::from_requester_id((latch >> 8) as u16);
            let offset = latch as u16 & 0xfc | port & 3;
            let own = papers.iter().position(|paper| paper.at == named).filter(|_| selected);
            if dice.one_in(2) {
                let value = if latched { address(dice) } else { value(dice) };
                let target = ports.write(port, width, value);
                assert_eq!(target.is_some(), selected);
                if latched {
                    latch = value & 0x80ff_fffc;
                }
                let Some((at, access)) = target else { continue };
                assert_eq!((at, access.offset().get(), access.width()), (named, offset, width));
                let Some(own) = own else {
                    assert!(!functions.iter().any(|function| function.bdf() == at));
                    continue;
                };
                let (mappings, command) = (functions[own].mappings(), functions[own].command());
                let effect = functions[own].write(access, value);
                papers[own].write(access, value);
                assert_eq!(effect.remap, mappings != functions[own].mappings());
                let flipped = command ^ functions[own].command();
                let now = |bit| flipped.contains(bit).then_some(functions[own].command().contains(bit));
                assert_eq!(effect.dis_intx, now(Command::DIS_INTX));
                assert_eq!(effect.bus_master, now(Command::BUS_MASTER));
                let reached: Vec<Mapping> = functions[own].mappings().into_iter().flatten().collect();
                assert_eq!(reached, papers[own].mappings());
            } else {
                let expected = match (latched, own) {
                    (true, _) => latch,
                    (_, Some(own)) => {
                        papers[own].dword(offset & !3) >> (8 * u32::from(offset & 3)) & width.ones()
                    }
                    _ => width.ones(),
                };
                bus.reads.set(0);
                let read = match ports.read(port, width) {
                    PortRead::Value(value) => value,
                    PortRead::Register(at, access) => functions
                        .iter()
                        .find(|function| function.bdf() == at)
                        .map_or(width.ones(), |function| function.read(&bus, access)),
                };
                assert_eq!(read, expected, "{width:?} at port {port:#x} of {latch:#x}");
                assert!(bus.reads.get() <= 1, "one access of the device for one of the guest");
            }
        }
    });
}
