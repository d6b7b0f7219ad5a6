use super::super::fake::{FakeFunction, Machine, bdf};
use super::super::{Offset, Width};
use super::*;

const BOTH: Command = Command::IO.union(Command::MEMORY);

fn gpa(raw: u64) -> GuestPhys {
    GuestPhys::new(raw)
}

fn window() -> BarWindow {
    BarWindow::new(gpa(0xe000_0000), gpa(0xfe00_0000)).unwrap()
}

fn read(function: FakeFunction) -> Function {
    Function::read(&Machine::with([("00:03.0", function)]), bdf("00:03.0")).unwrap()
}

fn endpoint() -> FakeFunction {
    FakeFunction::endpoint(0x1234, 0x5678)
}

fn build(function: FakeFunction, places: [Option<GuestPhys>; 6]) -> Result<VirtualBars, BarError> {
    VirtualBars::new(&read(function).bars, &Placement::new(places), window())
}

fn first_at(raw: u64) -> [Option<GuestPhys>; 6] {
    [Some(gpa(raw)), None, None, None, None, None]
}

fn write(bars: &mut VirtualBars, index: u8, value: u32) {
    let index = BarIndex::new(index).unwrap();
    bars.write(index, Access::new(index.offset().get(), Width::Dword).unwrap(), value);
}

fn register(bars: &VirtualBars, index: u8) -> u32 {
    bars.read(BarIndex::new(index).unwrap())
}

#[test]
fn a_window_is_whole_pages_and_not_empty() {
    let window_of = |start, end| BarWindow::new(gpa(start), gpa(end)).is_some();
    assert!(window_of(0x1000, 0x2000));
    for (start, end) in [(0x1000, 0x1000), (0x2000, 0x1000), (0x1800, 0x3000), (0x1000, 0x1800), (0, 0x1000)]
    {
        assert!(!window_of(start, end), "{start:#x} {end:#x}");
    }
    let window = BarWindow::new(gpa(0x1000), gpa(0x3000)).unwrap();
    for start in [0_u64, 0xfff, 0x1000, 0x1001, 0x2000, 0x2fff, 0x3000, u64::MAX] {
        for bytes in [0_u64, 1, 0x1000, 0x2000, u64::MAX] {
            let inside = bytes > 0 && start >= 0x1000 && u128::from(start) + u128::from(bytes) <= 0x3000;
            assert_eq!(window.contains(gpa(start), bytes), inside, "{start:#x} {bytes:#x}");
        }
    }
}

#[test]
fn the_guest_sizes_a_bar_as_it_would_on_the_machine() {
    let mut bars = build(FakeFunction::edu(), first_at(0xe010_0000)).unwrap();
    assert_eq!(register(&bars, 0), 0xe010_0000);
    write(&mut bars, 0, u32::MAX);
    assert_eq!(register(&bars, 0), 0xfff0_0000);
    assert_eq!(bars.mappings(BOTH)[0], None, "the probe value is outside the window");
    write(&mut bars, 0, 0xe010_0000);
    let mapped =
        Mapping::Memory { guest: gpa(0xe010_0000), host: HostPhys::new(0xfea0_0000), bytes: 1 << 20 };
    assert_eq!(bars.mappings(BOTH), [Some(mapped), None, None, None, None, None]);
    for index in 1..6 {
        write(&mut bars, index, u32::MAX);
        assert_eq!(register(&bars, index), 0);
    }
}

#[test]
fn a_bar_below_a_page_has_a_page_in_the_guest() {
    let mut bars = build(endpoint().memory_bar(0, 256, 0xfebf_1000), first_at(0xe000_0000)).unwrap();
    write(&mut bars, 0, u32::MAX);
    assert_eq!(register(&bars, 0), 0xffff_f000);
    write(&mut bars, 0, 0xe000_1fff);
    let mapped = Mapping::Memory { guest: gpa(0xe000_1000), host: HostPhys::new(0xfebf_1000), bytes: 4096 };
    assert_eq!(bars.mappings(BOTH)[0], Some(mapped));
}

#[test]
fn memory_is_mapped_only_wholly_within_the_window_and_with_decoding_on() {
    let mut bars = build(FakeFunction::edu(), first_at(0xe000_0000)).unwrap();
    for (address, inside) in [
        (0xdff0_0000_u32, false),
        (0xe000_0000, true),
        (0xfdf0_0000, true),
        (0xfe00_0000, false),
        (0xfee0_0000, false),
        (0, false),
    ] {
        write(&mut bars, 0, address);
        assert_eq!(bars.mappings(Command::MEMORY)[0].is_some(), inside, "{address:#x}");
        assert_eq!(bars.mappings(Command::IO)[0], None);
    }
}

#[test]
fn a_bar_that_sticks_out_of_the_window_is_not_mapped() {
    let window = BarWindow::new(gpa(0xe000_0000), gpa(0xe018_0000)).unwrap();
    let places = Placement::new(first_at(0xe000_0000));
    let mut bars = VirtualBars::new(&read(FakeFunction::edu()).bars, &places, window).unwrap();
    write(&mut bars, 0, 0xe010_0000);
    assert_eq!(bars.mappings(BOTH)[0], None);
}

#[test]
fn a_64_bit_bar_has_two_registers_and_one_address() {
    let function = endpoint().memory_bar_64(2, 1 << 33, 0x40_0000_0000);
    let high = BarWindow::new(gpa(0x80_0000_0000), gpa(0x90_0000_0000)).unwrap();
    let places = Placement::new([None, None, Some(gpa(0x80_0000_0000)), None, None, None]);
    let mut bars = VirtualBars::new(&read(function).bars, &places, high).unwrap();
    assert_eq!((register(&bars, 2), register(&bars, 3)), (0xc, 0x80));
    write(&mut bars, 2, u32::MAX);
    write(&mut bars, 3, u32::MAX);
    assert_eq!((register(&bars, 2), register(&bars, 3)), (0xc, 0xffff_fffe));
    write(&mut bars, 3, 0x82);
    assert_eq!(
        bars.mappings(BOTH)[2],
        Some(Mapping::Memory {
            guest: gpa(0x82_0000_0000),
            host: HostPhys::new(0x40_0000_0000),
            bytes: 1 << 33,
        })
    );
    assert_eq!(bars.mappings(BOTH)[3], None);
}

#[test]
fn halves_of_a_64_bit_bar_do_not_disturb_each_other() {
    let places = [None, None, None, None, Some(gpa(0xe000_0000)), None];
    let mut bars = build(endpoint().memory_bar_64(4, 4096, 0xfebf_1000), places).unwrap();
    write(&mut bars, 5, 0x1234_5678);
    assert_eq!((register(&bars, 4), register(&bars, 5)), (0xe000_000c, 0x1234_5678));
    write(&mut bars, 4, 0x9abc_d000);
    assert_eq!((register(&bars, 4), register(&bars, 5)), (0x9abc_d00c, 0x1234_5678));
}

#[test]
fn ports_decode_only_where_the_machine_has_them() {
    let mut bars = build(endpoint().io_bar(1, 256, 0xc000), [None; 6]).unwrap();
    let ports = Some(Mapping::Ports { first: 0xc000, last: 0xc0ff });
    assert_eq!(register(&bars, 1), 0xc001);
    assert_eq!(bars.mappings(BOTH)[1], ports);
    assert_eq!(bars.mappings(Command::MEMORY)[1], None);
    write(&mut bars, 1, u32::MAX);
    assert_eq!((register(&bars, 1), bars.mappings(BOTH)[1]), (0xffff_ff01, None));
    write(&mut bars, 1, 0xd000);
    assert_eq!((register(&bars, 1), bars.mappings(BOTH)[1]), (0xd001, None));
    write(&mut bars, 1, 0x1_c000);
    assert_eq!(bars.mappings(BOTH)[1], None, "the upper half counts");
    write(&mut bars, 1, 0xc001);
    assert_eq!(bars.mappings(BOTH)[1], ports);
}

#[test]
fn a_register_may_be_written_in_bytes() {
    let mut bars = build(FakeFunction::edu(), first_at(0xe000_0000)).unwrap();
    let index = BarIndex::ALL[0];
    bars.write(index, Access::new(0x12, Width::Word).unwrap(), 0xe12f);
    assert_eq!(bars.read(index), 0xe120_0000);
    bars.write(index, Access::new(0x13, Width::Byte).unwrap(), 0xf1);
    assert_eq!(bars.read(index), 0xf120_0000);
    bars.write(index, Access::new(0x10, Width::Word).unwrap(), 0xffff);
    assert_eq!(bars.read(index), 0xf120_0000);
    assert_eq!(index.offset(), Offset::conventional(0x10));
}

#[test]
fn a_bar_without_a_place_waits_for_the_guest() {
    let mut bars = build(FakeFunction::edu(), [None; 6]).unwrap();
    assert_eq!((register(&bars, 0), bars.mappings(BOTH)[0]), (0, None));
    write(&mut bars, 0, 0xe000_0000);
    assert!(bars.mappings(BOTH)[0].is_some());
}

#[test]
fn what_cannot_be_passed_through_is_refused_by_name() {
    let index = BarIndex::ALL[0];
    let refused = |function, at| build(function, first_at(at)).unwrap_err();
    assert_eq!(refused(endpoint().bar(0, 2, 0xffff_f000), 0xe000_0000), BarError::Malformed(index));
    assert_eq!(refused(endpoint().memory_bar(0, 4096, 0), 0xe000_0000), BarError::Unassigned(index));
    assert_eq!(refused(endpoint().memory_bar(0, 256, 0xfebf_1100), 0xe000_0000), BarError::WithinPage(index));
    assert_eq!(refused(endpoint().io_bar(0, 256, 0x1_0000), 0), BarError::PortsOutOfRange(index));
    let edu = FakeFunction::edu;
    assert_eq!(refused(edu(), 0xe008_0000), BarError::Misplaced(index), "not aligned");
    assert_eq!(refused(edu(), 0xdff0_0000), BarError::Misplaced(index), "before the window");
    assert_eq!(refused(edu(), 0xfe00_0000), BarError::Misplaced(index), "after the window");
    let high = BarWindow::new(gpa(1 << 32), gpa(1 << 33)).unwrap();
    let places = Placement::new(first_at(1 << 32));
    let error = VirtualBars::new(&read(edu()).bars, &places, high).unwrap_err();
    assert_eq!(error, BarError::PlacedAbove4GiB(index));
}

#[test]
fn places_are_aligned_disjoint_and_end_with_the_window() {
    let window = BarWindow::new(gpa(0xe000_0000), gpa(0xe030_0000)).unwrap();
    let mut placer = BarPlacer::new(window);
    let testdev = placer.place(&read(FakeFunction::pci_testdev())).unwrap();
    assert_eq!(testdev, Placement::new(first_at(0xe000_0000)), "ports need no place");
    let edu = placer.place(&read(FakeFunction::edu())).unwrap();
    assert_eq!(edu, Placement::new(first_at(0xe010_0000)));
    let two = endpoint().memory_bar(0, 4096, 0x1000).memory_bar_64(2, 2 << 20, 0x20_0000);
    assert_eq!(placer.place(&read(two)), Err(BarIndex::ALL[2]));
    let again = placer.place(&read(endpoint().memory_bar(3, 16, 0x1000))).unwrap();
    assert_eq!(again.get(BarIndex::ALL[3]), Some(gpa(0xe020_0000)), "a refused function took no room");
    let huge = endpoint().memory_bar_64(0, 1 << 63, 1 << 63);
    assert_eq!(placer.place(&read(huge)), Err(BarIndex::ALL[0]));
}

#[test]
fn what_the_placer_gives_is_accepted() {
    let function = endpoint()
        .memory_bar(0, 256, 0xfebf_1000)
        .io_bar(1, 64, 0xc000)
        .memory_bar_64(2, 1 << 24, 0xfc00_0000)
        .memory_bar(4, 8192, 0xfebf_2000);
    let function = read(function);
    let places = BarPlacer::new(window()).place(&function).unwrap();
    let bars = VirtualBars::new(&function.bars, &places, window()).unwrap();
    assert_eq!(bars.mappings(BOTH).iter().flatten().count(), 4);
    assert_eq!(bars.decode_bits(), BOTH);
}
