use super::super::fake::{FakeFunction, Machine, bdf};
use super::*;

fn probe(function: FakeFunction) -> Bars {
    let machine = Machine::with([("00:03.0", function)]);
    let before = machine.dump(bdf("00:03.0"));
    let bars = Bars::probe(&machine, bdf("00:03.0"), 6);
    assert_eq!(machine.dump(bdf("00:03.0")), before, "everything is put back");
    bars
}

fn endpoint() -> FakeFunction {
    FakeFunction::endpoint(0x1234, 0x5678).command(0x0407)
}

fn slot(bars: &Bars, index: u8) -> BarSlot {
    bars.slot(BarIndex::new(index).unwrap())
}

fn only(function: FakeFunction) -> Bar {
    let bars = probe(function);
    assert_eq!(bars.malformed(), None);
    assert_eq!(bars.iter().count(), 1);
    *bars.iter().next().unwrap()
}

#[test]
fn indices_and_offsets() {
    for raw in 0..=u8::MAX {
        assert_eq!(BarIndex::new(raw).is_some(), raw < 6);
        let at = BarIndex::at(Offset::conventional(raw));
        assert_eq!(at.is_some(), (0x10..0x28).contains(&raw), "{raw:#x}");
        assert_eq!(at.map(|index| index.offset()), at.map(|_| Offset::conventional(raw & !3)));
    }
    assert_eq!(BarIndex::at(Offset::new(0x110).unwrap()), None);
}

#[test]
fn every_size_of_every_kind_is_found() {
    for shift in 4..32 {
        let size = 1_u32 << shift;
        let bar = only(endpoint().memory_bar(2, size, size));
        assert_eq!((bar.kind(), bar.bytes()), (BarKind::Memory32 { prefetchable: false }, u64::from(size)));
        assert_eq!((bar.index().get(), bar.address()), (2, u64::from(size)));
        assert_eq!(bar.last(), u64::from(size) * 2 - 1);
    }
    for shift in 4..64 {
        let size = 1_u64 << shift;
        let bars = probe(endpoint().memory_bar_64(4, size, size));
        let BarSlot::Bar(bar) = slot(&bars, 4) else { panic!("{bars:?}") };
        assert_eq!((bar.kind(), bar.bytes()), (BarKind::Memory64 { prefetchable: true }, size));
        assert_eq!(bar.address(), size);
        assert_eq!(slot(&bars, 5), BarSlot::Upper);
    }
    for shift in 2..16 {
        let size = 1_u32 << shift;
        let bar = only(endpoint().io_bar(0, size, size));
        assert_eq!((bar.kind(), bar.bytes(), bar.address()), (BarKind::Io, u64::from(size), u64::from(size)));
        // Only 16 address bits implemented.
        let bar = only(endpoint().bar(0, size | 1, !(size - 1) & 0xffff));
        assert_eq!(bar.bytes(), u64::from(size));
    }
}

#[test]
fn sizing_happens_with_decoding_off_and_touches_only_bars_and_byte_4() {
    let machine = Machine::with([("00:03.0", FakeFunction::pci_testdev().command(0x0507))]);
    let at = bdf("00:03.0");
    Bars::probe(&machine, at, 6);
    let writes = machine.take_writes();
    assert_eq!(writes.first(), Some(&(at, 0x04, 1, 0x04)));
    assert_eq!(writes.last(), Some(&(at, 0x04, 1, 0x07)));
    assert!(writes[1..writes.len() - 1].iter().all(|&(_, offset, ..)| (0x10..0x28).contains(&offset)));
    for index in 0..6 {
        let offset = 0x10 + index * 4;
        let values: Vec<_> = writes.iter().filter(|w| w.1 == offset).map(|w| w.3).collect();
        assert_eq!((values.len(), values[0]), (2, u32::MAX), "one probe, one restore");
    }
}

#[test]
fn unimplemented_registers_are_empty() {
    assert_eq!(probe(endpoint()), Bars::NONE);
}

#[test]
fn what_no_bar_can_hold_is_malformed() {
    let cases = [
        ("below 1 MiB", endpoint().bar(0, 2, 0xffff_f000)),
        ("reserved type", endpoint().bar(0, 6, 0xffff_f000)),
        ("I/O bit 1", endpoint().bar(0, 0xc003, 0xffff_ff00)),
        ("type bits that change", endpoint().bar(0, 0, 0xffff_f001)),
        ("a hole in the mask", endpoint().bar(0, 0, 0xff0f_f000)),
        ("no top bit", endpoint().bar(0, 0, 0x7fff_f000)),
        ("type without address bits", endpoint().bar(0, 8, 0)),
        ("I/O without address bits", endpoint().bar(0, 1, 0)),
        ("64 bits without address bits", endpoint().bar(0, 4, 0)),
        ("a hole between the halves", endpoint().bar(0, 4, 0xffff_0000).bar(1, 0, 0xffff_fffe)),
        ("address bits below the size", endpoint().bar(0, 0xfebf_1000, 0xffff_0000)),
        ("all ones", endpoint().bar(0, u32::MAX, 0)),
    ];
    for (name, function) in cases {
        let bars = probe(function);
        assert_eq!(bars.malformed(), BarIndex::new(0), "{name}: {bars:?}");
    }
    let bars = probe(endpoint().bar(5, 4, 0xffff_0000));
    assert_eq!(slot(&bars, 5), BarSlot::Malformed, "a 64-bit register needs a neighbour");
}

#[test]
fn a_bridges_second_register_is_its_last() {
    let machine = Machine::with([("00:1e.0", FakeFunction::bridge(1, 1).memory_bar_64(1, 4096, 0))]);
    let bars = Bars::probe(&machine, bdf("00:1e.0"), 2);
    assert_eq!(slot(&bars, 1), BarSlot::Malformed);
    assert!(machine.take_writes().iter().all(|&(_, offset, ..)| offset < 0x18));
}

#[test]
fn n15_a_function_that_vanishes_has_no_bars() {
    let bars = Bars::probe(&Machine::default(), bdf("00:03.0"), 6);
    assert_eq!(bars.iter().count(), 0);
    assert_eq!(bars.malformed(), BarIndex::new(0));
}

#[test]
fn pages_and_ports_of_unassigned_and_unreachable_bars() {
    assert_eq!(only(endpoint().memory_bar(0, 4096, 0)).pages(), None);
    assert_eq!(only(endpoint().io_bar(0, 256, 0)).ports(), None);
    assert_eq!(only(endpoint().io_bar(0, 256, 0xff00)).ports(), Some(0xff00..=0xffff));
    assert_eq!(only(endpoint().io_bar(0, 256, 0x1_0000)).ports(), None);
    let small = only(endpoint().memory_bar(0, 256, 0xfebf_1100));
    let page = HostPhys::new(0xfebf_1000);
    assert_eq!((small.pages(), small.ports(), small.fills_its_pages()), (Some((page, page)), None, false));
    let large = only(endpoint().memory_bar(0, 1 << 20, 0xfea0_0000));
    assert_eq!(large.pages(), Some((HostPhys::new(0xfea0_0000), HostPhys::new(0xfeaf_f000))));
}

fn machine_of<const N: usize>(functions: [(&str, FakeFunction); N]) -> Vec<Function> {
    let machine = Machine::with(functions);
    let mut found = Vec::new();
    super::super::enumerate(&machine, &[0], |function| found.push(function));
    found
}

#[test]
fn two_small_bars_in_one_page_conflict_by_name() {
    let machine = machine_of([
        ("00:03.0", endpoint().memory_bar(0, 1 << 20, 0xfea0_0000).memory_bar(1, 256, 0xfebf_1800)),
        ("00:04.0", endpoint().memory_bar(2, 2048, 0xfebf_1000)),
    ]);
    let found = conflict(&machine[0], &machine, |_| true).unwrap();
    assert_eq!(found.to_string(), "BAR1 of 00:03.0 shares page 0xfebf1000 with BAR2 of 00:04.0");
    let found = conflict(&machine[1], &machine, |_| true).unwrap();
    assert_eq!(found.other, (bdf("00:03.0"), BarIndex::ALL[1]));
    assert_eq!(conflict(&machine[0], &machine, |other| other != bdf("00:04.0")), None, "same owner");
}

#[test]
fn a_small_bar_alone_in_its_page_is_no_conflict() {
    let machine = machine_of([
        ("00:03.0", endpoint().memory_bar(0, 256, 0xfebf_1000).memory_bar(1, 256, 0xfebf_1100)),
        ("00:04.0", endpoint().memory_bar(0, 4096, 0xfebf_2000).io_bar(1, 256, 0xc000)),
        ("00:05.0", endpoint().memory_bar(0, 4096, 0).io_bar(1, 256, 0xc100)),
    ]);
    for function in &machine {
        assert_eq!(conflict(function, &machine, |_| true), None, "{function}");
    }
}

#[test]
fn overlap_is_found_whichever_bar_is_larger() {
    let small = || endpoint().memory_bar(0, 4096, 0xfea0_5000).io_bar(1, 4, 0xc080);
    let machine = machine_of([
        ("00:03.0", small()),
        ("00:04.0", endpoint().memory_bar(0, 1 << 20, 0xfea0_0000)),
        ("00:05.0", endpoint().io_bar(3, 256, 0xc000)),
    ]);
    let names =
        |index: usize| conflict(&machine[index], &machine, |_| true).map(|c| (c.other.0, c.at, c.memory));
    assert_eq!(names(0), Some((bdf("00:04.0"), 0xfea0_5000, true)));
    assert_eq!(names(1), Some((bdf("00:03.0"), 0xfea0_5000, true)));
    assert_eq!(names(2), Some((bdf("00:03.0"), 0xc080, false)));
    let ports = conflict(&machine[2], &machine, |_| true).unwrap().to_string();
    assert_eq!(ports, "BAR3 of 00:05.0 shares port 0xc080 with BAR1 of 00:03.0");
}

#[test]
fn memory_and_ports_of_one_number_do_not_conflict() {
    let machine = machine_of([
        ("00:03.0", endpoint().memory_bar(0, 4096, 0xc000)),
        ("00:04.0", endpoint().io_bar(0, 256, 0xc000)),
    ]);
    assert_eq!(conflict(&machine[0], &machine, |_| true), None);
}

#[test]
fn a_bridges_own_bar_counts() {
    let machine = machine_of([
        ("00:03.0", endpoint().memory_bar(0, 256, 0xfebf_1000)),
        ("00:1e.0", FakeFunction::bridge(1, 1).memory_bar(0, 256, 0xfebf_1f00)),
    ]);
    assert!(conflict(&machine[0], &machine, |_| true).is_some());
}

#[test]
fn a_bar_over_memory_or_the_chipset_is_told_whatever_the_device_answers() {
    let function = |bar: FakeFunction| machine_of([("00:03.0", bar)]).remove(0);
    let ram = Range::around(0x10_0000, 0x7f0_0000);
    let ecam = Range::around(0xb000_0000, 0x1000_0000);
    let found = |bar| trespass(&function(bar), &[ram, ecam]).map(|trespass| (trespass.memory, trespass.at));
    let memory = |bytes, address| endpoint().memory_bar(0, bytes, address);
    assert_eq!(found(memory(4096, 0xfebf_f000)), None);
    assert_eq!(found(memory(4096, 0x10_0000)), Some((true, 0x10_0000)), "the first page of memory");
    assert_eq!(found(memory(4096, 0x07ff_f000)), Some((true, 0x10_0000)), "the last page of memory");
    assert_eq!(found(memory(4096, 0x0800_0000)), None);
    assert_eq!(found(memory(256, 0x07ff_ff00)), Some((true, 0x10_0000)), "a page is what is opened");
    assert_eq!(found(memory(1 << 30, 0x8000_0000)), Some((true, 0xb000_0000)), "around configuration space");
    for chip in [0xfec0_0000, 0xfed0_0000, 0xfee0_0000, 0xfeef_f000, 0xffff_f000] {
        assert_eq!(found(memory(4096, chip)), Some((true, 0xfec0_0000)), "{chip:#x}");
    }
    assert_eq!(found(endpoint().memory_bar_64(0, 4096, 0x1_0000_0000)), None, "above 4 GiB");
    let ports = |first| endpoint().io_bar(0, 8, first);
    for first in [0x20, 0x60, 0x3f8, 0xcf8, 0xff8] {
        assert_eq!(found(ports(first)), Some((false, 0)), "{first:#x}");
    }
    assert_eq!(found(ports(0x1000)), None);
    let second = endpoint().memory_bar(0, 4096, 0xfebf_f000).io_bar(1, 8, 0xcf8);
    let told = trespass(&function(second), &[]).unwrap().to_string();
    assert_eq!(told, "BAR1 at port 0xcf8 overlaps the chipset's ports, which end at 0xfff");
}
