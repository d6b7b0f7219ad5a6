use super::*;
use crate::addr::HostPhys;
use crate::config::{Console, ImageIndex, MaskPolicy, Standby};
use crate::facts::{IoApic, MemoryEntry, MemoryKind, Override, Proof};
use crate::intx::Gate;
use crate::irq::{Polarity, TriggerMode};
use crate::pci::capability::FunctionLevelReset;
use crate::pci::fake::{FakeFunction, Machine, bdf};
use crate::pci::route::PrtEntry;
use crate::pci::{Offset, Topology, enumerate};
use crate::policy::{DevicePolicy, RestartPolicy};
use std::borrow::ToOwned;
use std::vec;

/// Two `edu`, one of them behind two bridges, and a device without INTx; lines as on QEMU's q35.
fn machine() -> Machine {
    let small = FakeFunction::pci_testdev();
    Machine::with([
        ("00:03.0", FakeFunction::edu()),
        ("00:04.0", small),
        ("00:1e.0", FakeFunction::bridge(1, 2)),
        ("01:02.0", FakeFunction::bridge(2, 2)),
        ("02:05.0", FakeFunction::edu().memory_bar(0, 1 << 20, 0xfe90_0000)),
    ])
}

fn facts(machine: &Machine) -> Facts {
    let mut functions = Vec::new();
    let topology = enumerate(machine, &[0], |function| functions.push(function));
    assert_eq!(topology, Topology::of(&[0], &functions));
    Facts {
        hypervisor: String::new(),
        processor: crate::facts::Processor::default(),
        cpus: vec![ApicId(0), ApicId(4)],
        memory: vec![MemoryEntry { start: 0, bytes: 256 << 20, kind: MemoryKind::Usable }],
        free_bytes: 200 << 20,
        io_apics: vec![IoApic { address: HostPhys::new(0xfec0_0000), gsi_base: 0, pins: 24 }],
        overrides: vec![Override { gsi: Gsi(9), polarity: Some(Polarity::ActiveHigh) }],
        ecam: None,
        functions,
        topology,
        proofs: Vec::new(),
        routing: Routing::NotAsked,
    }
}

/// The `_PRT` of bus 0 alone: GSI 20 + (device + pin) % 4.
fn routed(machine: &Machine) -> Facts {
    let mut facts = facts(machine);
    let asked = places(&facts, facts.functions.iter().map(|function| function.bdf).collect::<Vec<_>>());
    let on_root = asked.iter().filter(|(bus, ..)| *bus == 0);
    let entries = on_root.map(|&(bus, device, pin)| {
        let gsi = Gsi(20 + u32::from(device + pin.index()) % 4);
        let route = PinRoute { gsi, trigger: TriggerMode::Level, polarity: Polarity::ActiveHigh };
        PrtEntry { bus, device, pin, route }
    });
    facts.routing = Routing::Known { entries: entries.collect(), asked };
    facts
}

fn device(at: &str) -> Device {
    Device {
        bdf: bdf(at),
        gsi: None,
        mask: MaskPolicy::Auto,
        vpin: None,
        policy: DevicePolicy::default(),
        standby: None,
    }
}

fn partition(name: &str, cpu: u8, devices: &[Device]) -> Partition {
    Partition {
        name: name.to_owned(),
        cpus: vec![CpuId(cpu)],
        memory_bytes: 64 << 20,
        memory_at: None,
        kernel: ImageIndex(0),
        modules: Vec::new(),
        cmdline: String::new(),
        console: Console::Lines,
        debug_port: None,
        exit_port: None,
        test_device: false,
        user_hypercalls: false,
        control: false,
        restart: RestartPolicy::NEVER,
        devices: devices.to_vec(),
    }
}

fn config(partitions: &[Partition]) -> Config {
    Config { partitions: partitions.to_vec() }
}

/// The decision about a system of one partition with `devices`, and its records.
fn decided(facts: Option<&Facts>, devices: &[Device]) -> (Plan, Vec<String>) {
    let plan = decide(&config(&[partition("a", 0, devices)]), 1, facts);
    let records = plan.findings.iter().map(|finding| finding.refusal.to_string()).collect();
    (plan, records)
}

fn line(plan: &Plan, index: usize) -> Line {
    match plan.partitions[0].devices[index].intx {
        Intx::Line(line) => line,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn every_device_gets_line_vector_virtual_pin_gate_and_bars() {
    let (plan, records) =
        decided(Some(&routed(&machine())), &[device("00:03.0"), device("00:04.0"), device("02:05.0")]);
    assert_eq!(records, [""; 0]);
    assert_eq!(plan.partitions[0].cpus, Some(vec![(CpuId(0), ApicId(0))]));
    let first = line(&plan, 0);
    assert_eq!((first.route.gsi, first.route.polarity), (Gsi(23), Polarity::ActiveHigh));
    assert_eq!(first.source, RouteSource::Firmware { bus: 0, device: 3, pin: IntPin::A });
    assert_eq!((first.swizzles, first.vector.get(), first.vpin), (0, 0x40, Pin(23)));
    assert_eq!(first.gate, GateChoice::Made(Gate::RteMask, GateReason::ExclusiveLine));
    assert_eq!(plan.partitions[0].devices[1].intx, Intx::None);
    // INTA of 02:05 is INTB of 01:02, which is INTD of 00:1e, which is GSI 20 + (30 + 3) % 4.
    let last = line(&plan, 2);
    assert_eq!(last.source, RouteSource::Firmware { bus: 0, device: 0x1e, pin: IntPin::D });
    assert_eq!((last.swizzles, last.route.gsi, last.vector.get()), (2, Gsi(21), 0x41));
    let places = plan.partitions[0].devices.iter().map(|device| device.bars.unwrap().get(bar(0)));
    let places: Vec<_> = places.map(|place| place.unwrap().raw()).collect();
    assert_eq!(places, [0xe000_0000, 0xe010_0000, 0xe020_0000]);
}

fn bar(index: u8) -> BarIndex {
    BarIndex::new(index).unwrap()
}

#[test]
fn the_configuration_wins_over_firmware_and_takes_the_polarity_of_an_override() {
    let facts = routed(&machine());
    let with_gsi = |gsi| Device { gsi: Some(Gsi(gsi)), vpin: Some(Pin(5)), ..device("00:03.0") };
    let (plan, records) = decided(Some(&facts), &[with_gsi(9)]);
    assert_eq!(records, [""; 0]);
    let line9 = line(&plan, 0);
    assert_eq!((line9.source, line9.route.polarity), (RouteSource::Configuration, Polarity::ActiveHigh));
    assert_eq!((line9.vpin, line9.vpin_reason), (Pin(5), VpinReason::Configured));
    let (plan, _) = decided(Some(&facts), &[with_gsi(10)]);
    assert_eq!(line(&plan, 0).route, PinRoute::pci(Gsi(10)));
}

#[test]
fn without_facts_nothing_is_guessed_and_nothing_refused() {
    let configured = Device { gsi: Some(Gsi(7)), mask: MaskPolicy::Function, ..device("00:05.0") };
    let (plan, records) = decided(None, &[device("00:03.0"), configured]);
    assert_eq!(records, [""; 0]);
    let partition = &plan.partitions[0];
    assert_eq!(partition.cpus, None);
    let gate = GateChoice::BySharers;
    assert_eq!(partition.devices[0].intx, Intx::AtBoot { gsi: None, vpin: None, gate, open: Open::Machine });
    let vpin = Some((Pin(7), VpinReason::NumberOfGsi));
    let gate = GateChoice::ByProof(GateReason::Proved);
    assert_eq!(
        partition.devices[1].intx,
        Intx::AtBoot { gsi: Some(Gsi(7)), vpin, gate, open: Open::Machine }
    );
}

#[test]
fn a_line_only_firmware_knows_is_open_until_firmware_was_asked() {
    let machine = machine();
    let asked = facts(&machine);
    let devices = [device("02:05.0"), device("00:04.0"), Device { gsi: Some(Gsi(1)), ..device("00:03.0") }];
    let (plan, records) = decided(Some(&asked), &devices);
    assert_eq!(records, [""; 0]);
    assert!(matches!(
        plan.partitions[0].devices[0].intx,
        Intx::AtBoot { gsi: None, open: Open::Firmware, .. }
    ));
    assert!(matches!(plan.partitions[0].devices[2].intx, Intx::Line(_)), "its line is configured");
    let open = unrouted(&config(&[partition("a", 0, &devices)]), &asked);
    assert_eq!(open, [bdf("02:05.0")], "neither the one without a pin nor the one with a line");
    let way = [(2, 5, IntPin::A), (1, 2, IntPin::B), (0, 0x1e, IntPin::D)];
    assert_eq!(places(&asked, open.iter().copied()), way);
    assert_eq!(places(&asked, [open[0], open[0]]), way, "each place once");
}

#[test]
fn everything_the_machine_says_no_to_is_said_at_once_with_its_key() {
    let mut facts = routed(&machine());
    facts.free_bytes = 96 << 20;
    let far = Device { gsi: Some(Gsi(30)), vpin: Some(Pin(1)), ..device("00:03.0") };
    let system =
        config(&[partition("a", 0, &[device("00:09.0"), far]), partition("b", 7, &[device("00:1e.0")])]);
    let plan = decide(&system, 1, Some(&facts));
    let records: Vec<_> =
        plan.findings.iter().map(|finding| (finding.path.to_string(), finding.refusal.message)).collect();
    let expected = [
        ("partition[0].device[0].bdf", Message::DeviceMissing),
        ("partition[0].device[1].gsi", Message::LineMissing),
        ("partition[1].cpus[0]", Message::CpuMissing),
        ("partition[1].memory", Message::MemoryMissing),
        ("partition[1].device[0].bdf", Message::NotAnEndpoint),
    ];
    assert_eq!(records, expected.map(|(path, message)| (path.to_owned(), message)));
    assert!(plan.findings.iter().all(|finding| finding.refusal.place == finding.path.to_string()));
}

#[test]
fn a_function_without_a_reset_is_refused_where_one_is_asked_for() {
    let picky = |at| {
        let device = device(at);
        Device { policy: DevicePolicy { no_reset: NoReset::Refuse, ..device.policy }, ..device }
    };
    let facts = routed(&machine());
    let (_, records) = decided(Some(&facts), &[picky("00:03.0")]);
    assert_eq!(records.len(), 1, "{records:?}");
    assert!(
        records[0].starts_with("ERROR Device/no-reset: partition[0].device[0].no-reset: 00:03.0: it has no "),
        "{records:?}"
    );
    assert_eq!(decided(Some(&facts), &[device("00:03.0")]).1, [""; 0]);

    // With a function-level reset the same wish is granted; without facts it is left to boot.
    let mut resettable = facts;
    let edu = resettable.functions.iter_mut().find(|function| function.bdf == bdf("00:03.0")).unwrap();
    edu.capabilities.function_level_reset = Some(FunctionLevelReset::PciExpress(Offset::conventional(0x40)));
    assert_eq!(decided(Some(&resettable), &[picky("00:03.0")]).1, [""; 0]);
    assert_eq!(decided(None, &[picky("00:03.0")]).1, [""; 0]);
    // So it is behind a bridge that leads to nothing else.
    assert_eq!(decided(Some(&resettable), &[picky("02:05.0")]).1, [""; 0]);
}

#[test]
fn the_plan_says_how_each_function_is_reset_and_a_bus_is_reset_for_all_on_it() {
    let resets = |machine: &Machine, devices: &[Device]| {
        let (plan, _) = decided(Some(&routed(machine)), devices);
        plan.partitions[0].devices.iter().map(|device| device.reset.unwrap()).collect::<Vec<_>>()
    };
    let machine = machine();
    let by_bus = Ok(Method::Bus(bdf("01:02.0")));
    assert_eq!(resets(&machine, &[device("00:03.0"), device("02:05.0")]), [Err(NoMethod::RootBus), by_bus]);
    let alone = FakeFunction::edu().memory_bar(0, 1 << 20, 0xfe80_0000).capability(0x60, 0x13, &[6, 3, 0, 0]);
    machine.insert(bdf("02:06.0"), alone);
    assert_eq!(resets(&machine, &[device("02:05.0")]), [Err(NoMethod::Shared(bdf("02:06.0")))]);
    assert_eq!(resets(&machine, &[device("02:05.0"), device("02:06.0")]), [by_bus, by_bus]);
    let advanced = FunctionLevelReset::AdvancedFeatures(Offset::conventional(0x64));
    assert_eq!(resets(&machine, &[device("02:06.0")]), [Ok(Method::Function(advanced))]);
    assert_eq!(decided(None, &[device("00:03.0")]).0.partitions[0].devices[0].reset, None);
}

/// The machine with one more `edu` on the line of the first, and what was proved of DisINTx in both.
fn with_sharer(first: Result<(), DisIntxFault>, second: Result<(), DisIntxFault>) -> Facts {
    let machine = machine();
    machine.insert(bdf("00:07.0"), FakeFunction::edu().memory_bar(0, 1 << 20, 0xfd00_0000));
    let mut facts = routed(&machine);
    let proof = |at, dis_intx| Proof { bdf: bdf(at), pending: false, dis_intx: Some(dis_intx) };
    facts.proofs = vec![proof("00:03.0", first), proof("00:07.0", second), proof("02:05.0", Ok(()))];
    facts
}

const STUCK: Result<(), DisIntxFault> = Err(DisIntxFault::StuckClear);

#[test]
fn n12_devices_on_one_line_have_vector_polarity_and_gate_in_common() {
    let facts = with_sharer(Ok(()), Ok(()));
    let configured = Device { gsi: Some(Gsi(23)), ..device("00:03.0") };
    let (plan, records) = decided(Some(&facts), &[configured, device("02:05.0"), device("00:07.0")]);
    assert_eq!(records, [""; 0]);
    let (first, other, second) = (line(&plan, 0), line(&plan, 1), line(&plan, 2));
    assert_eq!((first.route.gsi, second.route.gsi, other.route.gsi), (Gsi(23), Gsi(23), Gsi(21)));
    assert_eq!([first, other, second].map(|line| line.vector.get()), [0x40, 0x41, 0x40]);
    assert_eq!((first.vpin, second.vpin), (Pin(23), Pin(23)));
    let shared = GateChoice::Made(Gate::Function, GateReason::SeveralDevices);
    assert_eq!((first.gate, second.gate), (shared, shared));
    assert_eq!(other.gate, GateChoice::Made(Gate::RteMask, GateReason::ExclusiveLine));
    assert_eq!(first.source, RouteSource::Configuration);
    assert_eq!(first.route.polarity, Polarity::ActiveHigh, "firmware's word for its sharer");
}

#[test]
fn n12_i36_a_line_that_cannot_be_shared_is_refused_with_its_sharers_and_the_reason() {
    let facts = with_sharer(Ok(()), STUCK);
    let (plan, records) = decided(Some(&facts), &[device("00:03.0"), device("00:07.0")]);
    assert_eq!(records, [""; 0]);
    assert_eq!(line(&plan, 0).gate, GateChoice::Made(Gate::RteMask, GateReason::OnePin));
    assert_eq!(line(&plan, 1).dis_intx, Some(STUCK));

    let elsewhere = Device { vpin: Some(Pin(5)), ..device("00:07.0") };
    let (plan, records) = decided(Some(&facts), &[device("00:03.0"), elsewhere]);
    assert_eq!(
        records,
        [
            "ERROR Device/line-unshareable: partition[0].device[1].bdf: GSI 23 is shared by 00:03.0 of a, 00:07.0 of a, which drive \
          several virtual pins, so each has to be silenced by itself, but 00:07.0: DisINTx cannot be set; to do: give all devices on \
          the line the same `vpin`, or move that card to a slot with another line"
        ]
    );
    assert!(plan.partitions[0].devices.iter().all(|device| device.intx == Intx::Refused));

    let asked = |at| Device { mask: MaskPolicy::Function, ..device(at) };
    let (_, records) = decided(Some(&facts), &[device("00:03.0"), asked("00:07.0")]);
    assert_eq!(
        records,
        [
            "ERROR Config/mask-impossible: partition[0].device[1].mask: 00:07.0: mask = \"function\" needs a working DisINTx, but \
          DisINTx cannot be set; to do: use `mask = \"line\"`, or leave it out"
        ]
    );
    let (_, records) = decided(Some(&facts), &[asked("00:03.0"), device("00:07.0")]);
    assert_eq!(records.len(), 1);
    assert!(
        records[0].starts_with("ERROR Device/line-unshareable: partition[0].device[1].bdf: "),
        "{records:?}"
    );
    assert!(records[0].contains("for which `mask = \"function\"` is asked"), "{records:?}");
}

#[test]
fn n12_i36_partitions_share_a_line_if_each_device_can_be_silenced_by_itself() {
    let system = config(&[partition("a", 1, &[device("00:07.0")]), partition("b", 0, &[device("00:03.0")])]);
    let plan = decide(&system, 1, Some(&with_sharer(Ok(()), Ok(()))));
    assert_eq!(plan.findings, []);
    for partition in &plan.partitions {
        let Intx::Line(line) = partition.devices[0].intx else { panic!("{partition:?}") };
        assert_eq!(line.gate, GateChoice::Made(Gate::Function, GateReason::SeveralPartitions));
        assert_eq!((line.vector.get(), line.destination), (0x40, 4), "the CPU of the first, for both");
    }
    let plan = decide(&system, 1, Some(&with_sharer(STUCK, Ok(()))));
    let records: Vec<_> = plan.findings.iter().map(|finding| finding.refusal.to_string()).collect();
    assert_eq!(
        records,
        [
            "ERROR Device/line-unshareable: partition[1].device[0].bdf: GSI 23 is shared by 00:07.0 of a, 00:03.0 of b, of several \
          partitions, so each has to be silenced by itself, but 00:03.0: DisINTx cannot be set; to do: move that card to a slot \
          with another line, or give all devices on the line to one partition and one `vpin`"
        ]
    );
    let untried = Facts { proofs: Vec::new(), ..with_sharer(Ok(()), Ok(())) };
    let plan = decide(&system, 1, Some(&untried));
    let Intx::Line(line) = plan.partitions[1].devices[0].intx else { panic!("{plan:?}") };
    assert_eq!(line.gate, GateChoice::ByProof(GateReason::SeveralPartitions));
}

#[test]
fn n12_functions_left_to_nobody_are_named_if_they_cannot_be_silenced_and_disturb_a_line() {
    let named = |facts: &Facts, devices: &[Device]| decided(Some(facts), devices).0.bystanders;
    let loud = |gsi| Bystander { bdf: bdf("00:07.0"), fault: DisIntxFault::StuckClear, gsi };
    assert_eq!(named(&with_sharer(Ok(()), Ok(())), &[device("00:03.0")]), [], "silenced");
    let facts = with_sharer(STUCK, STUCK);
    assert_eq!(named(&facts, &[device("00:03.0")]), [loud(Some(Gsi(23)))]);
    assert_eq!(named(&facts, &[device("02:05.0")]), [], "on lines that nobody uses");
    assert_eq!(named(&facts, &[device("00:03.0"), device("00:07.0")]), [], "assigned");
    let unasked = Facts { routing: Routing::NotAsked, ..facts };
    let configured = Device { gsi: Some(Gsi(1)), ..device("00:03.0") };
    assert_eq!(named(&unasked, &[configured]), [loud(None)], "nobody knows its line");
}

#[test]
fn a_line_without_a_virtual_pin_of_its_number_needs_one() {
    let mut facts = routed(&machine());
    facts.io_apics.push(IoApic { address: HostPhys::new(0xfec1_0000), gsi_base: 24, pins: 24 });
    let far = Device { gsi: Some(Gsi(30)), ..device("00:03.0") };
    let (plan, records) = decided(Some(&facts), &[far]);
    assert_eq!(plan.partitions[0].devices[0].intx, Intx::Refused);
    assert!(records.len() == 1 && records[0].contains("Config/vpin-missing"), "{records:?}");
}

#[test]
fn firmware_that_gave_up_costs_only_those_that_need_it() {
    let mut facts = facts(&machine());
    facts.routing = Routing::Unknown("the interpreter gave up".to_owned());
    let configured = Device { gsi: Some(Gsi(11)), ..device("00:03.0") };
    let (plan, records) = decided(Some(&facts), &[configured, device("02:05.0")]);
    assert!(matches!(plan.partitions[0].devices[0].intx, Intx::Line(_)));
    assert_eq!(records.len(), 1);
    assert!(
        records[0].starts_with("ERROR Firmware/aml-gave-up: partition[0].device[1].gsi: "),
        "{records:?}"
    );
}

#[test]
fn a_pin_that_no_entry_answers_for_is_no_route() {
    let mut facts = facts(&machine());
    facts.routing = Routing::Known { asked: Vec::new(), entries: Vec::new() };
    let (_, records) = decided(Some(&facts), &[device("00:03.0")]);
    assert!(records.len() == 1 && records[0].contains("Firmware/no-route"), "{records:?}");
}

#[test]
fn bars_are_judged_against_neighbours_and_memory() {
    let machine = machine();
    // A page that two functions lie in.
    machine.insert(bdf("00:05.0"), FakeFunction::edu().memory_bar(0, 2048, 0xfebf_1800));
    let (_, records) = decided(Some(&routed(&machine)), &[device("00:04.0")]);
    assert!(records.len() == 1 && records[0].contains("Device/bar-shared"), "{records:?}");
    machine.insert(bdf("00:05.0"), FakeFunction::edu().memory_bar(0, 1 << 20, 0x0010_0000));
    let (_, records) = decided(Some(&routed(&machine)), &[device("00:05.0")]);
    assert!(records.len() == 1 && records[0].contains("Firmware/bar-overlap"), "{records:?}");
    machine.insert(bdf("00:05.0"), FakeFunction::edu().memory_bar(0, 512 << 20, 0xc000_0000));
    let (_, records) = decided(Some(&routed(&machine)), &[device("00:05.0")]);
    assert!(records.len() == 1 && records[0].contains("Config/bar-room"), "{records:?}");
}

#[test]
fn more_sources_than_contributors_are_refused() {
    let machine = Machine::default();
    let devices: Vec<_> = (0..33_u8).map(|n| std::format!("{:02x}:{:02x}.0", 0, n % 32)).collect();
    for (n, at) in devices.iter().take(32).enumerate() {
        let address = 0xc000_0000 + (n as u32) * 0x10_0000;
        machine.insert(bdf(at), FakeFunction::edu().memory_bar(0, 1 << 20, address));
    }
    machine.insert(bdf("00:1f.1"), FakeFunction::edu().memory_bar(0, 1 << 20, 0xd000_0000));
    machine.poke(bdf("00:1f.0"), 0x0e, &[0x80]);
    let mut facts = facts(&machine);
    facts.io_apics = vec![IoApic { address: HostPhys::new(0xfec0_0000), gsi_base: 0, pins: 64 }];
    let device =
        |n: u32, at: &str, vpin: u8| Device { gsi: Some(Gsi(n)), vpin: Some(Pin(vpin)), ..device(at) };
    let of = |range: core::ops::Range<u32>| -> Vec<Device> {
        range.map(|n| device(n, &devices[n as usize], (n % 16) as u8)).collect()
    };
    // A test device takes the number of one of them.
    for (sources, test_device) in [(31, false), (30, true)] {
        for most in [sources, sources + 1] {
            let mut last = of(16..most - 1);
            last.push(device(40, "00:1f.1", 20));
            let second = Partition { test_device, ..partition("b", 1, &last) };
            let plan = decide(&config(&[partition("a", 0, &of(0..16)), second]), 1, Some(&facts));
            let refused = plan.findings.iter().map(|finding| finding.refusal.to_string());
            let refused: Vec<_> =
                refused.filter(|record| !record.starts_with("WARN  Config/test-device: ")).collect();
            if most == sources {
                assert!(refused.is_empty(), "{refused:?}");
                continue;
            }
            assert_eq!(refused.len(), 1, "{refused:?}");
            let at = sources - 16;
            let (place, limit) =
                (format!("partition[1].device[{at}].bdf: "), format!("more than {sources} devices"));
            assert!(refused[0].contains(&place) && refused[0].contains(&limit), "{refused:?}");
            match plan.partitions[1].devices[at as usize - 1].intx {
                Intx::Line(line) => {
                    assert_eq!((u32::from(line.vector.get()), line.destination), (0x40 + sources - 1, 4));
                }
                ref other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn placed_memory_must_be_usable_and_is_counted_once() {
    let placed = |at: u64, mib: u64| Partition {
        memory_bytes: mib << 20,
        memory_at: Some(HostPhys::new(at)),
        ..partition("a", 0, &[])
    };
    let mut facts = facts(&machine());
    facts.memory.push(MemoryEntry { start: 256 << 20, bytes: 1 << 20, kind: MemoryKind::Reserved });
    let records = |facts, partitions: &[Partition]| -> Vec<String> {
        decide(&config(partitions), 1, facts)
            .findings
            .iter()
            .map(|finding| finding.refusal.to_string())
            .collect()
    };
    assert_eq!(records(Some(&facts), &[placed(16 << 20, 190)]), [""; 0]);
    let refusal = |at, mib| records(Some(&facts), &[placed(at, mib)]).remove(0);
    let firmwares = refusal(200 << 20, 60);
    assert!(
        firmwares.starts_with("ERROR Config/memory-place: partition[0].memory-at: 0xc800000 to 0x10400000: firmware keeps 0x10000000 "),
        "{firmwares}"
    );
    assert!(refusal(512 << 20, 16).contains("the machine has no usable memory in a part of it"));
    // The other partition's share is gone, wherever it lies.
    let beside = Partition { memory_bytes: 20 << 20, ..partition("b", 1, &[]) };
    let found = records(Some(&facts), &[placed(16 << 20, 190), beside]);
    assert!(
        found.len() == 1 && found[0].contains("Config/memory-missing: partition[1].memory: "),
        "{found:?}"
    );
    assert_eq!(records(None, &[placed(512 << 20, 16)]), [""; 0], "without facts nobody knows");
}

#[test]
fn a_function_that_may_move_is_at_the_same_place_in_both_guests_and_beside_nothing_else() {
    let standby = Some(Standby { partition: "b".to_owned(), vpin: Some(Pin(7)) });
    let moving = Device { standby, ..device("02:05.0") };
    let partitions = [
        partition("a", 0, &[device("00:03.0"), moving]),
        partition("b", 1, &[device("00:04.0")]),
        partition("c", 2, &[]),
    ];
    let mut facts = routed(&machine());
    facts.cpus.push(ApicId(5));
    let plan = decide(&config(&partitions), 1, Some(&facts));
    assert_eq!(plan.findings, []);
    let at = |partition: usize, device: usize| {
        plan.partitions[partition].devices[device].bars.unwrap().get(bar(0)).unwrap().raw()
    };
    assert_eq!((at(0, 0), at(0, 1), at(1, 0)), (0xe010_0000, 0xe000_0000, 0xe010_0000));
    assert!(plan.partitions[0].devices[1].moves && !plan.partitions[0].devices[0].moves);
    let standbys: Vec<_> = plan.partitions.iter().map(|partition| partition.standbys.clone()).collect();
    assert_eq!(standbys, [vec![], vec![StandbyPlan { owner: 0, device: 1, vpin: Some(Pin(7)) }], vec![]]);
}

#[test]
fn a_function_that_may_move_shares_neither_page_nor_bus_nor_line_entry_with_one_that_stays() {
    let machine = Machine::with([
        ("00:1e.0", FakeFunction::bridge(1, 1)),
        ("01:03.0", FakeFunction::edu()),
        ("01:07.0", FakeFunction::edu().memory_bar(0, 1 << 20, 0xfe90_0000)),
    ]);
    let facts = routed(&machine);
    let with = |standby: Option<&str>| {
        let standby = standby.map(|name| Standby { partition: name.to_owned(), vpin: None });
        let first = Device { gsi: Some(Gsi(20)), standby, ..device("01:03.0") };
        let second = Device { gsi: Some(Gsi(20)), ..device("01:07.0") };
        decide(&config(&[partition("a", 0, &[first, second]), partition("b", 1, &[])]), 1, Some(&facts))
    };
    let reset = |plan: &Plan| [0, 1].map(|index| plan.partitions[0].devices[index].reset.unwrap());
    let (stays, moves) = (with(None), with(Some("b")));
    assert!(reset(&stays).iter().all(|method| matches!(method, Ok(Method::Bus(_)))), "{:?}", reset(&stays));
    assert_eq!(reset(&moves), [Err(NoMethod::Shared(bdf("01:07.0"))), Err(NoMethod::Shared(bdf("01:03.0")))]);
    assert_eq!(line(&stays, 0).gate, GateChoice::ByProof(GateReason::SeveralDevices));
    assert_eq!(line(&moves, 0).gate, GateChoice::ByProof(GateReason::SeveralPartitions));
}
