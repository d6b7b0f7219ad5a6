use super::super::Width;
use super::super::fake::{FakeFunction, Machine, bdf};
use super::super::virtual_bar::{BarPlacer, Mapping};
use super::*;
use crate::addr::{GuestPhys, HostPhys};

const AT: &str = "00:03.0";

fn window() -> BarWindow {
    BarWindow::new(GuestPhys::new(0xe000_0000), GuestPhys::new(0xfe00_0000)).unwrap()
}

struct Guest {
    machine: Machine,
    config: VirtualConfig,
}

impl Guest {
    fn try_new(function: FakeFunction, pin: Option<u8>) -> Option<Self> {
        let machine = Machine::with([(AT, function)]);
        let function = Function::read(&machine, bdf(AT))?;
        let places = BarPlacer::new(window()).place(&function).ok()?;
        let config = VirtualConfig::new(&machine, &function, &places, window(), pin.map(Pin)).ok()?;
        machine.take_writes();
        machine.take_reads();
        Some(Self { machine, config })
    }

    fn new(function: FakeFunction) -> Self {
        Self::try_new(function, Some(10)).unwrap()
    }

    fn read(&self, at: u16, width: Width) -> u32 {
        self.config.read(&self.machine, Access::new(at, width).unwrap())
    }

    fn read8(&self, at: u16) -> u8 {
        self.read(at, Width::Byte) as u8
    }

    fn read16(&self, at: u16) -> u16 {
        self.read(at, Width::Word) as u16
    }

    fn read32(&self, at: u16) -> u32 {
        self.read(at, Width::Dword)
    }

    fn write(&mut self, at: u16, width: Width, value: u32) -> Effect {
        self.config.write(Access::new(at, width).unwrap(), value)
    }

    fn write16(&mut self, at: u16, value: u16) -> Effect {
        self.write(at, Width::Word, u32::from(value))
    }

    fn capabilities(&self) -> Vec<u8> {
        let mut ids = Vec::new();
        let mut at = self.read8(0x34);
        while at != 0 {
            assert!(at >= 0x40 && at.is_multiple_of(4) && ids.len() < 48, "a list a guest can follow");
            ids.push(self.read8(at.into()));
            at = self.read8(u16::from(at) + 1);
        }
        ids
    }
}

#[test]
fn the_identity_is_the_devices_own() {
    let guest = Guest::new(FakeFunction::edu().bytes(0x2c, &[0xf4, 0x1a, 0x00, 0x11]));
    assert_eq!(guest.read32(0x00), 0x11e8_1234);
    assert_eq!(guest.read32(0x08), 0x00ff_0000);
    assert_eq!(guest.read32(0x2c), 0x1100_1af4);
    assert_eq!((guest.read16(0x02), guest.read8(0x01)), (0x11e8, 0x12));
}

#[test]
fn at_first_the_guest_finds_what_firmware_would_leave() {
    let guest = Guest::new(FakeFunction::edu());
    assert_eq!(guest.read16(0x04), 0x0002);
    assert_eq!(guest.read32(0x10), 0xe000_0000);
    assert_eq!((guest.read8(0x3c), guest.read8(0x3d)), (10, 1));
    assert_eq!(
        guest.config.mappings()[0],
        Some(Mapping::Memory {
            guest: GuestPhys::new(0xe000_0000),
            host: HostPhys::new(0xfea0_0000),
            bytes: 1 << 20,
        })
    );
}

#[test]
fn i29_no_pin_is_no_intx_everywhere() {
    let mut guest = Guest::try_new(FakeFunction::pci_testdev().bytes(0x06, &[0x08]), Some(10)).unwrap();
    assert_eq!(guest.config.interrupt_pin(), None);
    assert_eq!((guest.read8(0x3c), guest.read8(0x3d)), (0, 0));
    assert_eq!(guest.read16(0x06) & 0x08, 0);
    assert_eq!(guest.write16(0x04, 0x0403), Effect::NONE);
    assert_eq!(guest.read16(0x04), 0x0003);
    assert_eq!(guest.config.mappings().iter().flatten().count(), 2, "assigned all the same");
}

#[test]
fn i29_an_unrouted_pin_is_no_intx_everywhere() {
    let mut guest = Guest::try_new(FakeFunction::edu().bytes(0x06, &[0x18]), None).unwrap();
    assert_eq!(guest.config.interrupt_pin(), None);
    assert_eq!((guest.read8(0x3d), guest.read16(0x06) & 0x08), (0, 0));
    assert_eq!(guest.write16(0x04, 0x0402).dis_intx, None);
}

#[test]
fn dis_intx_is_the_guests_own_and_a_change_is_told_once() {
    // The hypervisor holds the device's own bit set; the guest must not see that.
    let mut guest = Guest::new(FakeFunction::edu().command(0x0402));
    assert_eq!(guest.read16(0x04), 0x0002);
    let effect = guest.write16(0x04, 0x0402);
    assert_eq!(effect, Effect { dis_intx: Some(true), ..Effect::NONE });
    assert_eq!(guest.write16(0x04, 0x0402), Effect::NONE);
    assert_eq!(guest.read16(0x04), 0x0402);
    assert_eq!(guest.write(0x05, Width::Byte, 0).dis_intx, Some(false));
    assert_eq!(guest.write(0x04, Width::Dword, 0xffff_0402).dis_intx, Some(true));
}

#[test]
fn n3_a_write_to_the_lower_byte_says_nothing_about_dis_intx() {
    let mut guest = Guest::new(FakeFunction::edu());
    assert_eq!(guest.write(0x05, Width::Byte, 4).dis_intx, Some(true));
    let effect = guest.write(0x04, Width::Byte, 0x06);
    assert_eq!(effect, Effect { bus_master: Some(true), ..Effect::NONE });
    assert_eq!(guest.read16(0x04), 0x0406);
}

#[test]
fn bus_master_reads_as_written_and_is_only_reported() {
    let mut guest = Guest::new(FakeFunction::edu());
    assert_eq!(guest.write16(0x04, 0x0006), Effect { bus_master: Some(true), ..Effect::NONE });
    assert_eq!(guest.read16(0x04), 0x0006);
    assert_eq!(guest.machine.peek16(bdf(AT), 0x04), 0x0003);
    assert_eq!(guest.write16(0x04, 0x0002).bus_master, Some(false));
}

#[test]
fn decoding_switched_off_unmaps_and_on_again_maps() {
    let mut guest = Guest::new(FakeFunction::pci_testdev());
    let all = guest.config.mappings();
    assert_eq!(all.iter().flatten().count(), 2);
    assert_eq!(guest.write16(0x04, 0x0001), Effect { remap: true, ..Effect::NONE });
    assert_eq!(guest.config.mappings()[0], None);
    assert_eq!(guest.write16(0x04, 0x0000), Effect { remap: true, ..Effect::NONE });
    assert_eq!(guest.config.mappings(), [None; 6]);
    assert_eq!(guest.write16(0x04, 0x0003), Effect { remap: true, ..Effect::NONE });
    assert_eq!(guest.config.mappings(), all);
    assert_eq!(guest.write16(0x04, 0x0003), Effect::NONE);
}

#[test]
fn a_moved_bar_is_remapped_only_while_it_decodes() {
    let mut guest = Guest::new(FakeFunction::edu());
    assert_eq!(guest.write(0x10, Width::Dword, 0xe000_0000), Effect::NONE);
    assert!(guest.write(0x10, Width::Dword, 0xf000_0000).remap);
    assert!(guest.write16(0x04, 0).remap);
    assert_eq!(guest.write(0x10, Width::Dword, u32::MAX), Effect::NONE);
    assert_eq!(guest.read32(0x10), 0xfff0_0000);
    assert_eq!(guest.write(0x10, Width::Dword, 0xe000_0000), Effect::NONE);
    assert!(guest.write16(0x04, 2).remap);
}

#[test]
fn command_bits_without_meaning_stay_clear() {
    let mut guest = Guest::new(FakeFunction::edu());
    let _ = guest.write16(0x04, 0xffff);
    // Memory, bus master, parity, SERR#, DisINTx; no I/O because edu has no I/O BAR.
    assert_eq!(guest.read16(0x04), 0x0546);
}

#[test]
fn interrupt_status_is_the_devices() {
    let guest = Guest::new(FakeFunction::edu());
    assert_eq!(guest.read16(0x06), 0x0000, "the only capability is hidden");
    guest.machine.poke(bdf(AT), 0x06, &[0x18]);
    assert_eq!(guest.read16(0x06), 0x0008);
    assert_eq!(guest.read32(0x04), 0x0008_0002);
    guest.machine.take_reads();
    guest.read32(0x04);
    assert_eq!(guest.machine.take_reads(), 1, "one access, as on the interrupt path");
}

#[test]
fn n15_a_device_that_is_gone_reads_all_ones() {
    let guest = Guest::new(express());
    guest.machine.remove(bdf(AT));
    assert_eq!(guest.read32(0x00), u32::MAX);
    assert_eq!(guest.read32(0x04), u32::MAX);
    assert_eq!(guest.read16(0x06), 0xffff);
    assert_eq!(guest.read8(0x0e), 0xff);
    for at in [0x60, 0x64, 0x90, 0x94, 0xf0] {
        assert_eq!(guest.read32(at), u32::MAX, "{at:#x}");
    }
}

fn express() -> FakeFunction {
    FakeFunction::edu()
        .capability(0x50, 0x11, &[0x03, 0x80, 0, 0x20, 0, 0, 0, 0x30, 0, 0])
        .capability(0x60, 0x10, &[2, 0, 0x00, 0x80, 0x00, 0x10])
        .capability(0x80, 0x03, &[0, 0x80, 1, 2, 3, 4])
        .capability(0x90, 0x01, &[0x03, 0xfe, 0x0b, 0x81, 0, 0])
        .bytes(0x48, &[1, 2, 3, 4, 5])
        .bytes(0xf0, &[0xaa, 0xbb])
}

#[test]
fn only_capabilities_that_work_without_writes_are_listed() {
    let guest = Guest::new(express());
    assert_eq!(guest.capabilities(), [0x01, 0x10]);
    assert_eq!(guest.read16(0x06) & 0x10, 0x10);
    for at in [0x40, 0x44, 0x48, 0x50, 0x54, 0x58, 0x80, 0x84] {
        assert_eq!(guest.read32(at), 0, "{at:#x}");
    }
    assert_eq!(guest.read16(0xf0), 0xbbaa, "registers of the device's own are readable");
}

#[test]
fn without_any_capability_left_there_is_no_list() {
    let guest = Guest::new(FakeFunction::edu());
    assert_eq!(guest.machine.peek16(bdf(AT), 0x06), 0x10);
    assert_eq!((guest.read16(0x06), guest.read8(0x34)), (0, 0));
}

#[test]
fn every_form_of_msi_is_hidden_to_its_end() {
    for (control, bytes) in [(0_u16, 12), (0x80, 16), (0x100, 20), (0x180, 24)] {
        let mut function = FakeFunction::endpoint(0x1234, 1).bytes(0x40, &[0x5a; 64]);
        function = function.capability(0x40, 0x05, &control.to_le_bytes());
        let guest = Guest::new(function);
        for at in (0x40..0x80).step_by(4) {
            let expected = if at < 0x40 + bytes { 0 } else { 0x5a5a_5a5a };
            assert_eq!(guest.read32(at), expected, "{control:#x} {at:#x}");
        }
    }
}

#[test]
fn enhanced_allocation_hides_host_addresses_even_when_it_lies_about_its_length() {
    let guest = Guest::new(FakeFunction::edu().capability(0x60, 0x14, &[0xff]).bytes(0xfc, &[1, 2, 3, 4]));
    assert_eq!(guest.capabilities(), []);
    for at in (0x60..=0xfc).step_by(4) {
        assert_eq!(guest.read32(at), 0, "{at:#x}");
    }
}

#[test]
fn power_management_offers_d0_and_nothing_else() {
    let mut guest = Guest::new(express());
    // D1, D2 and PME_Support are gone, the rest and the link stay.
    assert_eq!(guest.read32(0x90), 0x0003_6001);
    assert_eq!(guest.read32(0x94), 0x0000_0008);
    assert_eq!(guest.write16(0x94, 0x8103), Effect::NONE);
    assert_eq!(guest.read16(0x94), 0x0008);
    assert_eq!(guest.machine.peek16(bdf(AT), 0x94), 0x810b);
}

#[test]
fn function_level_reset_is_not_offered() {
    let guest = Guest::new(express());
    assert_eq!(guest.read32(0x64), 0x0000_8000);
    assert_eq!(guest.machine.peek16(bdf(AT), 0x66), 0x1000);
}

#[test]
fn a_hostile_list_leaves_the_guest_a_sound_one() {
    let looped = express().bytes(0x91, &[0x90]);
    assert_eq!(Guest::new(looped).capabilities(), [0x01]);
    let into_the_header = express().bytes(0x61, &[0x10]);
    assert_eq!(Guest::new(into_the_header).capabilities(), [0x01, 0x10]);
    let to_msi_and_back = express().bytes(0x41, &[0x60]);
    assert_eq!(Guest::new(to_msi_and_back).capabilities(), [0x01, 0x10]);
}

#[test]
fn a_shown_capability_within_a_hidden_one_stays_in_the_list() {
    let function = FakeFunction::edu().capability(0x48, 0x09, &[0xab, 0xcd]).capability(0x60, 0x01, &[3, 0]);
    let guest = Guest::new(function);
    assert_eq!(guest.capabilities(), [0x01, 0x09]);
    assert_eq!((guest.read32(0x44), guest.read32(0x48)), (0, 0xcdab_0009));
}

#[test]
fn the_interrupt_line_is_scratch_and_the_pin_is_not() {
    let mut guest = Guest::new(FakeFunction::edu().bytes(0x3e, &[7, 9]));
    assert_eq!(guest.write(0x3c, Width::Dword, 0xffff_ff2a), Effect::NONE);
    assert_eq!(guest.read32(0x3c), 0x0907_012a);
    assert_eq!(guest.write(0x3d, Width::Byte, 4), Effect::NONE);
    assert_eq!(guest.read32(0x3c), 0x0907_012a);
}

#[test]
fn rom_and_bist_are_not_offered() {
    let function = FakeFunction::edu().bytes(0x0c, &[16, 32, 0x80, 0xc0]).bytes(0x30, &[1, 0, 0xff, 0xfe]);
    let mut guest = Guest::new(function);
    assert_eq!(guest.read32(0x0c), 0x0080_2010);
    assert_eq!(guest.write(0x30, Width::Dword, u32::MAX), Effect::NONE);
    assert_eq!(guest.read32(0x30), 0);
}

#[test]
fn there_is_no_extended_space() {
    let mut guest = Guest::new(express());
    for at in (256..4096).step_by(4) {
        assert_eq!(guest.read32(at), 0);
        assert_eq!(guest.write(at, Width::Dword, u32::MAX), Effect::NONE);
    }
    assert_eq!(guest.machine.take_reads(), 0);
}

#[test]
fn only_endpoints_are_assigned() {
    let machine = Machine::with([(AT, FakeFunction::bridge(1, 1))]);
    let function = Function::read(&machine, bdf(AT)).unwrap();
    let error = VirtualConfig::new(&machine, &function, &Placement::default(), window(), None).unwrap_err();
    assert_eq!(error, VirtualConfigError::NotAnEndpoint(function.header));
    assert_eq!(error.to_string(), "it is a bridge");
}

#[test]
fn every_access_agrees_with_the_dword_it_lies_in() {
    let guest = Guest::new(express());
    for at in 0..256 {
        let dword = guest.read32(at & !3);
        for width in [Width::Byte, Width::Word, Width::Dword] {
            if let Some(access) = Access::new(at, width) {
                assert_eq!(guest.config.read(&guest.machine, access), access.extract(dword), "{access:?}");
            }
        }
    }
}

#[test]
fn dwords_are_counted_to_the_end_of_the_space_and_no_further() {
    for at in 0..=u8::MAX {
        for bytes in [0_u16, 1, 4, 5, 12, 64, 256, 1264] {
            let end = u16::from(at) + bytes;
            let expected = (0..64_u16)
                .filter(|dword| dword * 4 + 3 >= u16::from(at) && dword * 4 < end && bytes > 0)
                .fold(0_u64, |bits, dword| bits | 1 << dword);
            if bytes > 0 {
                assert_eq!(dwords(at, bytes), expected, "{at:#x} {bytes}");
            }
        }
    }
}

#[cfg(not(loom))]
mod properties {
    use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    // Any device at all; most get a header that passes, and lists made of identifiers and pointers that matter.
    fn device() -> impl Strategy<Value = FakeFunction> {
        let block = || prop::collection::vec(any::<u8>(), 256);
        let telling = [0x00, 0x01, 0x05, 0x09, 0x10, 0x11, 0x13, 0x14, 0x40, 0x44, 0x50, 0x80, 0xfc, 0xff];
        let lists = prop::collection::vec(prop::sample::select(telling.to_vec()), 192);
        (block(), block(), lists, 0..4_u8).prop_map(|(bytes, writable, lists, wildness)| {
            let function = FakeFunction::raw(bytes.try_into().unwrap(), writable.try_into().unwrap());
            if wildness == 0 {
                return function;
            }
            let blank = [0; 24];
            function
                .bytes(0x06, &[0x10])
                .bytes(0x0e, &[0])
                .bytes(0x10, &blank)
                .writable(0x10, &blank)
                .memory_bar(0, 8192, 0xfea0_0000)
                .io_bar(1, 32, 0xc000)
                .memory_bar_64(2, 1 << 21, 0xfc00_0000)
                .bytes(0x34, &[0x40])
                .bytes(0x40, &lists)
        })
    }

    fn writes() -> impl Strategy<Value = Vec<(Access, u32)>> {
        let width = prop::sample::select(vec![Width::Byte, Width::Word, Width::Dword]);
        // Most writes go to the header, where there is something to break.
        let offset =
            prop::sample::select((0..0x48_u16).chain([0x90, 0x94, 0xfc, 0x100, 0xffc]).collect::<Vec<_>>());
        let write = (offset, width, any::<u32>());
        let write = write.prop_filter_map("leaves its dword", |(at, width, value)| {
            Access::new(at, width).map(|access| (access, value))
        });
        prop::collection::vec(write, 0..40)
    }

    proptest! {
        #[test]
        fn no_device_breaks_what_the_guest_is_promised(function in device(), writes in writes()) {
            let Some(mut guest) = Guest::try_new(function, Some(10)) else { return Ok(()) };
            for (access, value) in writes {
                let (before, command) = (guest.config.mappings(), guest.config.command());
                let effect = guest.config.write(access, value);
                let changed = before != guest.config.mappings();
                prop_assert_eq!(effect.remap, changed);
                let flipped = command ^ guest.config.command();
                prop_assert_eq!(effect.dis_intx.is_some(), flipped.contains(Command::DIS_INTX));
                prop_assert_eq!(effect.bus_master.is_some(), flipped.contains(Command::BUS_MASTER));
            }
            for mapping in guest.config.mappings().into_iter().flatten() {
                match mapping {
                    Mapping::Memory { guest, host, bytes } => {
                        prop_assert!(window().contains(guest, bytes));
                        prop_assert!(guest.is_aligned(4096) && host.is_aligned(4096) && bytes % 4096 == 0);
                    }
                    Mapping::Ports { first, last } => prop_assert!(first <= last),
                }
            }
            prop_assert!(!guest.capabilities().iter().any(|id| matches!(id, 0x05 | 0x11 | 0x14)));
            prop_assert_eq!(guest.machine.take_writes(), []);
        }
    }
}
