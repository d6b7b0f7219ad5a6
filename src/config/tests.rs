//! The configuration's promises: a violation for each rule, one packed form, and no byte that goes unnoticed.

use alloc::string::{String, ToString};
use alloc::{format, vec};

use proptest::collection;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::addr::HostPhys;
use crate::irq::{CpuId, Gsi, Pin};
use crate::pci::Bdf;
use crate::policy::{DevicePolicy, EoiDeadline, NeverEoi, NoReset, RestartPolicy, StormLimit};

fn device(slot: u8, gsi: Option<u32>, vpin: Option<u8>) -> Device {
    Device {
        bdf: Bdf::new(0, slot, 0).unwrap(),
        gsi: gsi.map(Gsi),
        mask: MaskPolicy::Auto,
        vpin: vpin.map(Pin),
        policy: DevicePolicy::default(),
        standby: None,
    }
}

fn standby(partition: &str, vpin: Option<u8>) -> Option<Standby> {
    Some(Standby { partition: partition.into(), vpin: vpin.map(Pin) })
}

fn partition(name: &str, cpu: u8) -> Partition {
    Partition {
        name: name.into(),
        cpus: vec![CpuId(cpu)],
        memory_bytes: 32 << 20,
        memory_at: None,
        kernel: ImageIndex(0),
        modules: vec![Module { image: ImageIndex(1), cmdline: "file words".into() }],
        cmdline: "one two".into(),
        console: Console::Lines,
        debug_port: Some(0xe9),
        exit_port: Some(0xf4),
        test_device: false,
        user_hypercalls: false,
        control: false,
        restart: RestartPolicy::NEVER,
        devices: vec![],
    }
}

fn demo() -> Config {
    let mut demo = partition("demo", 0);
    demo.devices = vec![device(3, Some(23), None), device(4, None, None)];
    Config { partitions: vec![demo] }
}

const IMAGES: [Image<'static>; 2] =
    [Image { name: "guest:echo", bytes: b"kernel" }, Image { name: "environment", bytes: &[7; 5000] }];

/// The violations of the demonstration after `change`, as the hypervisor prints them.
fn broken_by(change: impl FnOnce(&mut Config)) -> Vec<String> {
    let mut config = demo();
    change(&mut config);
    validate(&config, IMAGES.len()).err().unwrap_or_default().iter().map(Violation::to_string).collect()
}

#[test]
fn the_demonstration_breaks_no_rule() {
    assert_eq!(broken_by(|_| {}), [""; 0]);
    assert_eq!(broken_by(|config| config.partitions.push(partition("other", 1))), [""; 0]);
}

#[test]
fn each_rule_names_its_key_and_its_remedy() {
    type Change = fn(&mut Config);
    let cases: &[(Change, &str)] = &[
        (
            |c| c.partitions.clear(),
            "ERROR Config/partition-count: partition: there is no partition; to do: write 1 to 32 [[partition]] tables",
        ),
        (
            |c| c.partitions[0].name.clear(),
            "ERROR Config/name-length: partition[0].name: the name is empty; to do: use 1 to 31 bytes",
        ),
        (
            |c| c.partitions[0].name = "n".repeat(32),
            "ERROR Config/name-length: partition[0].name: a name of 32 bytes is too long; to do: use 1 to 31 bytes",
        ),
        (
            |c| c.partitions[0].name = "a b".into(),
            "ERROR Config/name-character: partition[0].name: ' ' may not stand in a name; to do: use ASCII letters, digits, `-`, `_` and `.`",
        ),
        (
            |c| c.partitions.push(partition("demo", 1)),
            "ERROR Config/name-taken: partition[1].name: the name is taken by partition[0].name; to do: give each partition a name of its own",
        ),
        (
            |c| {
                c.partitions[0].console = Console::Terminal;
                c.partitions.push(Partition { console: Console::Terminal, ..partition("other", 1) });
            },
            "ERROR Config/terminal-taken: partition[1].console: the console is the terminal of another by partition[0].console; \
             to do: say `\"terminal\"` in one partition",
        ),
        (
            |c| c.partitions[0].cpus.clear(),
            "ERROR Config/no-cpu: partition[0].cpus: there is no CPU; to do: name 1 to 32, as in `cpus = [0]` or `cpus = [0, 1]`",
        ),
        (
            |c| c.partitions[0].cpus.extend((1..33).map(CpuId)),
            "ERROR Config/cpu-count: partition[0].cpus: 33 CPUs are too many; to do: \
             name 1 to 32, as in `cpus = [0]` or `cpus = [0, 1]`",
        ),
        (
            |c| c.partitions[0].cpus.push(CpuId(0)),
            "ERROR Config/cpu-taken: partition[0].cpus[1]: CPU 0 is taken by partition[0].cpus[0]; to do: give each CPU to one partition",
        ),
        (
            |c| c.partitions.push(partition("other", 0)),
            "ERROR Config/cpu-taken: partition[1].cpus[0]: CPU 0 is taken by partition[0].cpus[0]; to do: give each CPU to one partition",
        ),
        (
            |c| c.partitions[0].memory_bytes = 0,
            "ERROR Config/memory-size: partition[0].memory: 0 bytes are too few; to do: use 1M to 256G",
        ),
        (
            |c| c.partitions[0].memory_bytes = u64::MAX,
            "ERROR Config/memory-size: partition[0].memory: 18446744073709551615 bytes are too many; to do: use 1M to 256G",
        ),
        (
            |c| c.partitions[0].memory_bytes = (1 << 20) + 1,
            "ERROR Config/memory-pages: partition[0].memory: 1048577 bytes are not whole pages of 4096; to do: 1052672 would be",
        ),
        (
            |c| c.partitions[0].memory_at = Some(HostPhys::new(0x20_0800)),
            "ERROR Config/memory-place: partition[0].memory-at: 0x200800 is not the start of a page of 4096 bytes; to do: \
             0x200000 would be; a multiple of 2 MiB is best",
        ),
        (
            |c| c.partitions[0].memory_at = Some(HostPhys::new(0xf_f000)),
            "ERROR Config/memory-place: partition[0].memory-at: no partition's memory can lie at 0xff000; to do: \
             place it from 0x100000 on, so that it ends below 0x10000000000000",
        ),
        (
            |c| c.partitions[0].memory_at = Some(HostPhys::new((1 << 52) - (16 << 20))),
            "ERROR Config/memory-place: partition[0].memory-at: no partition's memory can lie at 0xfffffff000000; to do: \
             place it from 0x100000 on, so that it ends below 0x10000000000000",
        ),
        (
            |c| {
                c.partitions.push(partition("other", 1));
                c.partitions[0].memory_at = Some(HostPhys::new(0x400_0000));
                c.partitions[1].memory_at = Some(HostPhys::new(0x5ff_f000));
            },
            "ERROR Config/memory-taken: partition[1].memory-at: 0x5fff000 to 0x5ffffff is the memory of \
             partition[0].memory-at too; to do: place them apart, or leave one of the `memory-at` out",
        ),
        (
            |c| c.partitions[0].devices[1].standby = standby("backup", None),
            "ERROR Config/standby-missing: partition[0].device[1].standby: there is no partition \"backup\"; to do: \
             name one of the file's partitions",
        ),
        (
            |c| c.partitions[0].devices[1].standby = standby("demo", None),
            "ERROR Config/standby-own: partition[0].device[1].standby: it is the device's own partition; to do: \
             name another partition, or leave `standby` out",
        ),
        (
            |c| {
                c.partitions.push(partition("backup", 1));
                c.partitions[0].devices[1].standby = standby("backup", Some(24));
            },
            "ERROR Config/vpin-range: partition[0].device[1].standby-vpin: the guest's IO-APIC has no pin 24; to do: use 0 to 23",
        ),
        (
            |c| {
                c.partitions.push(partition("backup", 1));
                c.partitions[0].devices[1].standby = standby("backup", None);
                c.partitions[1].devices = (5..32).map(|slot| device(slot, None, None)).collect();
                let more =
                    (0..5).map(|n| Device { bdf: Bdf::new(1, n, 0).unwrap(), ..device(0, None, None) });
                c.partitions[1].devices.extend(more);
            },
            "ERROR Config/device-count: partition[0].device[1].standby: 33 devices are too many; to do: use at most 32",
        ),
        (
            |c| {
                c.partitions.push(partition("backup", 1));
                c.partitions[0].devices[1] = Device {
                    mask: MaskPolicy::Line,
                    standby: standby("backup", None),
                    ..device(4, Some(23), None)
                };
            },
            "ERROR Config/line-shared: partition[0].device[1].gsi: GSI 23 is the line of partition[0].device[0].gsi too, which is \
             another partition's or may become it, and `mask = \"line\"` would silence it as well; to do: leave `mask` out of \
             both, or move one to a slot with another line",
        ),
        (
            |c| {
                c.partitions[0].devices[1].policy.storm =
                    Some(StormLimit { window_ms: 0, ..StormLimit::new(1) })
            },
            "ERROR Config/policy-range: partition[0].device[1].storm-window: 0 is out of range; to do: use 1 to 60000",
        ),
        (
            |c| {
                c.partitions[0].devices[1].policy.never_eoi =
                    Some(EoiDeadline { action: NeverEoi::Hold, after_ms: 3_600_001 });
            },
            "ERROR Config/policy-range: partition[0].device[1].never-eoi-after: 3600001 is out of range; to do: \
             use 1 to 3600000",
        ),
        (
            |c| c.partitions[0].kernel = ImageIndex(2),
            "ERROR Config/no-such-image: partition[0].kernel: image 2 of only 2; to do: pack the image too",
        ),
        (
            |c| c.partitions[0].modules[0].image = ImageIndex(u16::MAX),
            "ERROR Config/no-such-image: partition[0].modules[0].file: image 65535 of only 2; to do: pack the image too",
        ),
        (
            |c| c.partitions[0].modules = vec![c.partitions[0].modules[0].clone(); 17],
            "ERROR Config/module-count: partition[0].modules: 17 modules are too many; to do: use at most 16",
        ),
        (
            |c| c.partitions[0].cmdline = "x".repeat(4096),
            "ERROR Config/cmdline-length: partition[0].cmdline: a command line of 4096 bytes is too long; to do: use at most 4095",
        ),
        (
            |c| c.partitions[0].modules[0].cmdline = "a\0b".into(),
            "ERROR Config/cmdline-control: partition[0].modules[0].cmdline: a control character at byte 1; to do: use spaces between words",
        ),
        (
            |c| c.partitions[0].debug_port = Some(0x3ff),
            "ERROR Config/port-taken: partition[0].debug-port: port 0x3ff would collide with COM1 at ports 0x3f8 to 0x3ff; to do: \
             choose ports of its own",
        ),
        (
            |c| c.partitions[0].exit_port = Some(0x3f5),
            "ERROR Config/port-taken: partition[0].exit-port: ports 0x3f5 to 0x3f8 would collide with COM1 at ports 0x3f8 to 0x3ff; to do: \
             choose ports of its own",
        ),
        (
            |c| c.partitions[0].exit_port = Some(0xcf8),
            "ERROR Config/port-taken: partition[0].exit-port: ports 0xcf8 to 0xcfb would collide with the PCI configuration ports at \
             ports 0xcf8 to 0xcff; to do: choose ports of its own",
        ),
        (
            |c| c.partitions[0].exit_port = Some(0x5fd),
            "ERROR Config/port-taken: partition[0].exit-port: ports 0x5fd to 0x600 would collide with the power registers at ports \
             0x600 to 0x601; to do: choose ports of its own",
        ),
        (
            |c| c.partitions[0].exit_port = Some(0xe6),
            "ERROR Config/port-taken: partition[0].exit-port: ports 0xe6 to 0xe9 would collide with the debug port at port 0xe9; to do: \
             choose ports of its own",
        ),
        (
            |c| (c.partitions[0].test_device, c.partitions[0].exit_port) = (true, Some(0x2014)),
            "ERROR Config/port-taken: partition[0].exit-port: ports 0x2014 to 0x2017 would collide with the test device at ports \
             0x2000 to 0x2017; to do: choose ports of its own",
        ),
        (
            |c| (c.partitions[0].test_device, c.partitions[0].debug_port) = (true, Some(0xe4)),
            "ERROR Config/port-taken: partition[0].debug-port: port 0xe4 would collide with the test device at ports 0xe4 to 0xe7; to do: \
             choose ports of its own",
        ),
        (
            |c| (c.partitions[0].test_device, c.partitions[0].debug_port) = (true, Some(0xa1)),
            "ERROR Config/port-taken: partition[0].debug-port: port 0xa1 would collide with the pair of 8259s at ports 0xa0 to 0xa1; to \
             do: choose ports of its own",
        ),
        (
            |c| c.partitions[0].exit_port = Some(0xfffd),
            "ERROR Config/exit-port-end: partition[0].exit-port: 4 ports from 0xfffd pass the last port; to do: use at most 0xfffc",
        ),
        (
            |c| c.partitions[0].devices[1].bdf = c.partitions[0].devices[0].bdf,
            "ERROR Config/function-taken: partition[0].device[1].bdf: function 00:03.0 is taken by partition[0].device[0].bdf; to do: \
             name each function once, in one partition",
        ),
        (
            |c| {
                c.partitions.push(partition("other", 1));
                c.partitions[1].devices = vec![device(4, None, None)];
            },
            "ERROR Config/function-taken: partition[1].device[0].bdf: function 00:04.0 is taken by partition[0].device[1].bdf; to do: \
             name each function once, in one partition",
        ),
        (
            |c| c.partitions[0].devices[0].gsi = Some(Gsi(256)),
            "ERROR Config/gsi-range: partition[0].device[0].gsi: GSI 256 is out of range; to do: use 0 to 255",
        ),
        (
            |c| {
                c.partitions.push(partition("other", 1));
                c.partitions[1].devices =
                    vec![Device { mask: MaskPolicy::Line, ..device(5, Some(23), None) }];
            },
            "ERROR Config/line-shared: partition[1].device[0].gsi: GSI 23 is the line of partition[0].device[0].gsi too, which is \
             another partition's or may become it, and `mask = \"line\"` would silence it as well; to do: leave `mask` out of \
             both, or move one to a slot with another line",
        ),
        (
            |c| c.partitions[0].devices = (0..9).map(|slot| device(slot, Some(23), None)).collect(),
            "ERROR Config/line-crowded: partition[0].device[8].gsi: GSI 23 has 8 devices already, the first of them \
             partition[0].device[0].gsi; to do: move some of the devices to slots with other lines",
        ),
        (
            |c| {
                c.partitions[0].devices[0].mask = MaskPolicy::Line;
                c.partitions[0].devices[1] =
                    Device { mask: MaskPolicy::Function, ..device(4, Some(23), None) };
            },
            "ERROR Config/mask-conflict: partition[0].device[1].mask: GSI 23 is silenced for all its devices in one way: here it is \
             \"function\", but not in partition[0].device[0].mask; to do: say the same of both, or leave one `mask` out",
        ),
        (
            |c| {
                c.partitions[0].devices[0].mask = MaskPolicy::Line;
                c.partitions[0].devices[1] = device(4, Some(23), Some(1));
            },
            "ERROR Config/line-pins: partition[0].device[1].vpin: GSI 23 is silenced as a whole, so its devices have to drive one \
             virtual pin, but partition[0].device[0] drives another; to do: give both the same `vpin`, or leave `mask = \"line\"` out",
        ),
        (
            |c| c.partitions[0].devices[0].vpin = Some(Pin(24)),
            "ERROR Config/vpin-range: partition[0].device[0].vpin: the guest's IO-APIC has no pin 24; to do: use 0 to 23",
        ),
        (
            |c| c.partitions[0].devices[0].gsi = Some(Gsi(24)),
            "ERROR Config/vpin-missing: partition[0].device[0].gsi: GSI 24 has no pin of that number in the guest's IO-APIC; to do: \
             add `vpin = N` with N from 0 to 23",
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(broken_by(change), [*expected]);
    }
    let many = broken_by(|c| c.partitions[0].devices = (0..33).map(|n| device(n % 32, None, None)).collect());
    assert!(
        many[0].starts_with(
            "ERROR Config/device-count: partition[0].device: 33 devices are too many; to do: use at most 32"
        ),
        "{many:?}"
    );
    let many = broken_by(|c| c.partitions = (0..33).map(|n| partition(&format!("p{n}"), n)).collect());
    assert_eq!(
        many,
        [
            "ERROR Config/partition-count: partition: 33 partitions are too many; to do: write 1 to 32 [[partition]] tables"
        ]
    );
}

#[test]
fn devices_may_share_lines_and_virtual_pins() {
    let shared = |mask, second: Device, expected: usize| {
        let broken = broken_by(|c| {
            c.partitions[0].devices[0].mask = mask;
            c.partitions[0].devices[1] = second;
        });
        assert_eq!(broken.len(), expected, "{broken:?}");
    };
    for mask in MaskPolicy::ALL {
        shared(mask, device(4, Some(23), None), 0);
        shared(mask, device(4, Some(40), Some(23)), 0);
        shared(mask, device(4, Some(23), Some(1)), usize::from(mask == MaskPolicy::Line));
    }
    let eight = broken_by(|c| {
        c.partitions[0].devices = (0..8).map(|slot| device(slot, Some(23), None)).collect();
    });
    assert_eq!(eight, [""; 0]);
    for mask in [MaskPolicy::Auto, MaskPolicy::Function] {
        let partitions = broken_by(|c| {
            c.partitions.push(partition("other", 1));
            c.partitions[1].devices = vec![Device { mask, ..device(5, Some(23), Some(1)) }];
        });
        assert_eq!(partitions, [""; 0], "{mask}");
    }
}

#[test]
fn a_partition_may_stand_by_for_what_it_does_not_own_and_control_others() {
    let broken = broken_by(|c| {
        c.partitions[0].control = true;
        c.partitions.push(partition("backup", 1));
        c.partitions[1].devices =
            vec![Device { standby: standby("demo", Some(23)), ..device(5, Some(23), None) }];
        for device in &mut c.partitions[0].devices {
            device.standby = standby("backup", None);
        }
        assert_eq!(
            c.standbys(1).map(|(owner, device, _)| (owner, device)).collect::<Vec<_>>(),
            [(0, 0), (0, 1)]
        );
        assert_eq!(c.standbys(0).map(|(owner, device, _)| (owner, device)).collect::<Vec<_>>(), [(1, 0)]);
        assert_eq!(c.standbys(2).count(), 0);
    });
    assert_eq!(broken, [""; 0]);
}

#[test]
fn limits_themselves_are_allowed() {
    let edges = broken_by(|c| {
        let p = &mut c.partitions[0];
        p.name = "n".repeat(MAX_NAME_BYTES);
        p.cmdline = "x".repeat(MAX_CMDLINE_BYTES);
        p.memory_bytes = MAX_MEMORY_BYTES;
        p.memory_at = Some(HostPhys::new(MAX_MEMORY_END - MAX_MEMORY_BYTES));
        p.debug_port = Some(0x3f7);
        p.exit_port = Some(0xfffc);
        p.devices = (0..24).map(|n| device(n, Some(255 - u32::from(n)), Some(n))).collect();
    });
    assert_eq!(edges, [""; 0]);
    assert_eq!(broken_by(|c| c.partitions[0].memory_bytes = MIN_MEMORY_BYTES), [""; 0]);
}

#[test]
fn memory_side_by_side_is_allowed() {
    let neighbours = broken_by(|c| {
        c.partitions.push(partition("other", 1));
        c.partitions[0].memory_at = Some(HostPhys::new(MIN_MEMORY_AT));
        c.partitions[1].memory_at = Some(HostPhys::new(MIN_MEMORY_AT + (32 << 20)));
    });
    assert_eq!(neighbours, [""; 0]);
}

#[test]
fn all_violations_come_in_one_go() {
    let all = broken_by(|c| {
        c.partitions[0].name.clear();
        c.partitions[0].memory_bytes = 1;
        c.partitions[0].devices[0].vpin = Some(Pin(200));
    });
    assert_eq!(all.len(), 3, "{all:?}");
}

#[test]
fn the_virtual_pin_follows_the_gsi_unless_named() {
    for gsi in 0..=300 {
        assert_eq!(device(3, None, None).virtual_pin(Gsi(gsi)), (gsi < 24).then_some(Pin(gsi as u8)));
        assert_eq!(device(3, None, Some(5)).virtual_pin(Gsi(gsi)), Some(Pin(5)));
    }
    assert_eq!(device(3, None, Some(24)).virtual_pin(Gsi(3)), None);
}

#[test]
fn what_was_packed_is_unpacked() {
    let bytes = pack(&demo(), &IMAGES).unwrap();
    let (config, bundle) = unpack(&bytes).unwrap();
    assert_eq!(config, demo());
    assert_eq!(bundle.images(), IMAGES);
    assert_eq!(bundle.image(ImageIndex(1)), Some(IMAGES[1]));
    assert_eq!(bundle.image(ImageIndex(2)), None);
    for image in bundle.images() {
        let offset = image.bytes.as_ptr().addr() - bytes.as_ptr().addr();
        assert_eq!(offset % 4096, 0, "{} is not on a page of the file", image.name);
    }
}

#[test]
fn packing_refuses_what_unpacking_would() {
    let mut config = demo();
    config.partitions[0].name.clear();
    assert!(matches!(pack(&config, &IMAGES), Err(Rejection::Rules(_))));
    for name in ["", "two words", "a\nb", "\0", &"x".repeat(105)] {
        let images = [IMAGES[0], Image { name, bytes: b"" }];
        assert_eq!(
            pack(&demo(), &images),
            Err(Rejection::Bundle(BundleError::Name { section: 2 })),
            "{name:?}"
        );
    }
    let images = [IMAGES[0]; MAX_IMAGES + 1];
    assert_eq!(pack(&demo(), &images), Err(Rejection::Bundle(BundleError::SectionCount(MAX_IMAGES + 2))));
    assert!(pack(&demo(), &images[1..]).is_ok());
}

#[test]
fn every_truncation_and_extension_of_a_bundle_is_refused() {
    let bytes = pack(&demo(), &IMAGES).unwrap();
    for length in 0..bytes.len() {
        assert!(unpack(&bytes[..length]).is_err(), "{length} bytes of {}", bytes.len());
    }
    let longer = [&bytes[..], &[0; 4096]].concat();
    let stated = bytes.len() as u64;
    assert_eq!(
        unpack(&longer).err(),
        Some(Rejection::Bundle(BundleError::Length { stated, actual: longer.len() }))
    );
}

#[test]
fn every_flipped_bit_of_a_bundle_is_refused() {
    let mut config = demo();
    config.partitions[0].modules.clear();
    let mut bytes = pack(&config, &IMAGES[..1]).unwrap();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(unpack(&bytes).is_err(), "bit {} of byte {:#x}", bit % 8, bit / 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(unpack(&bytes).is_ok());
}

/// Damage at random, the same in every run.
struct Damage(u64);

impl Damage {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize % end
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

#[test]
fn damage_of_many_bits_and_splices_of_two_bundles_are_refused() {
    let mut other = demo();
    other.partitions[0].cmdline = "three".into();
    let one = pack(&demo(), &IMAGES).unwrap();
    let two = pack(&other, &[IMAGES[1], IMAGES[0]]).unwrap();
    let mut damage = Damage(0x1e5e_1bad);
    for round in 0..4000 {
        let mut bytes = one.clone();
        match round % 3 {
            // Bits anywhere.
            0 => {
                for _ in 0..=damage.below(64) {
                    let at = damage.below(bytes.len());
                    bytes[at] ^= 1 << damage.below(8);
                }
            }
            // A burst.
            1 => {
                let start = damage.below(bytes.len());
                let end = bytes.len().min(start + 1 + damage.below(5000));
                bytes[start..end].fill_with(|| damage.byte());
            }
            // The end of another bundle behind this one's start.
            _ => {
                let at = damage.below(bytes.len().min(two.len()));
                bytes.truncate(at);
                bytes.extend_from_slice(&two[at..]);
            }
        }
        if bytes != one && bytes != two {
            assert!(unpack(&bytes).is_err(), "round {round}");
        }
    }
    for page in (0..one.len().min(two.len())).step_by(4096) {
        let spliced = [&one[..page], &two[page..]].concat();
        assert!(spliced == two || unpack(&spliced).is_err(), "spliced at {page:#x}");
    }
}

/// The checksums guard against accidents alone: whatever stands behind a right one is judged as well.
#[test]
fn a_forged_configuration_is_decoded_or_refused_by_its_form() {
    let good = blob::encode(&demo());
    let mut damage = Damage(0xf0_1bad);
    let (mut decoded, mut refused) = (0, 0);
    for round in 0..20_000 {
        let mut forged = good.clone();
        match round % 4 {
            0 => {
                let at = damage.below(forged.len());
                forged[at] = damage.byte();
            }
            1 => {
                let at = damage.below(forged.len() - 8);
                let count = [u64::MAX, 1 << 63, 1 << 32, 33, 257][damage.below(5)];
                forged[at..at + 8].copy_from_slice(&count.to_le_bytes());
            }
            2 => forged.truncate(damage.below(good.len())),
            _ => forged.fill_with(|| damage.byte()),
        }
        match unpack(&bundle::write(&forged, &IMAGES).unwrap()) {
            Ok((config, _)) => {
                assert_eq!(blob::encode(&config), forged, "round {round}");
                decoded += 1;
            }
            Err(Rejection::Blob(_) | Rejection::Rules(_)) => refused += 1,
            Err(other) => panic!("round {round}: {other}"),
        }
    }
    assert!(decoded > 100 && refused > 10_000, "{decoded} decoded, {refused} refused");
}

/// Replaces bytes of the header and signs it again: what the checks behind the checksum say.
fn forged(offset: usize, with: &[u8]) -> Rejection {
    let mut bytes = pack(&demo(), &IMAGES).unwrap();
    bytes[offset..offset + with.len()].copy_from_slice(with);
    let end = 24 + 3 * 128;
    let checksum = crc32fast::hash(&bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&checksum.to_le_bytes());
    unpack(&bytes).unwrap_err()
}

#[test]
fn a_well_signed_lie_is_refused_by_name() {
    let (config, kernel) = (24, 24 + 128);
    let cases = [
        (0, &b"ELF"[..], BundleError::Magic),
        (8, &[5], BundleError::Revision(5)),
        (8, &[7], BundleError::Revision(7)),
        (8, &[0xff; 4], BundleError::Revision(u32::MAX)),
        (12, &[0], BundleError::SectionCount(0)),
        (12, &[0xff; 4], BundleError::SectionCount(0xffff_ffff)),
        (config, &[2], BundleError::Kind { section: 0, kind: 2 }),
        (kernel, &[1], BundleError::Kind { section: 1, kind: 1 }),
        (kernel + 24, b" ", BundleError::Name { section: 1 }),
        (kernel + 24, &[0xff], BundleError::Name { section: 1 }),
        (kernel + 4, &[0; 4], BundleError::Checksum { section: 1 }),
        (kernel + 8, &[0, 0x30], BundleError::Place { section: 1, offset: 0x3000, length: 6 }),
        (kernel + 16, &[0xff; 8], BundleError::Place { section: 1, offset: 0x2000, length: u64::MAX }),
        (kernel + 16, &[0, 0, 1], BundleError::Place { section: 1, offset: 0x2000, length: 0x10000 }),
        (0x1ffe, &[1], BundleError::Padding { section: 1 }),
    ];
    for (offset, with, expected) in cases {
        assert_eq!(forged(offset, with), Rejection::Bundle(expected));
    }
    assert!(matches!(forged(12, &[2]), Rejection::Bundle(BundleError::HeaderChecksum)));
}

#[test]
fn the_hypervisor_judges_again() {
    let mut config = demo();
    config.partitions[0].cpus.push(CpuId(0));
    let bytes = bundle::write(&blob::encode(&config), &IMAGES).unwrap();
    let Err(Rejection::Rules(violations)) = unpack(&bytes) else { panic!("accepted") };
    assert!(matches!(violations[0].rule, Rule::CpuTaken { cpu: CpuId(0), .. }));
    assert_eq!(
        unpack(&bundle::write(b"", &[]).unwrap()).unwrap_err().to_string(),
        "ERROR Config/bundle-config: bundle: configuration: partition at byte 0: cut off; to do: pack it again with the xtask of this \
         hypervisor"
    );
}

#[test]
fn oversized_counts_in_a_blob_allocate_nothing() {
    let oversized = blob::decode(&[0xff; 4096]);
    let problem = BlobProblem::TooMany { found: u64::MAX, most: MAX_PARTITIONS };
    assert_eq!(oversized, Err(BlobError { offset: 0, field: "partition", problem }));
}

fn any_policy() -> impl Strategy<Value = DevicePolicy> {
    let action = prop_oneof![Just(NeverEoi::Hold), Just(NeverEoi::Complete), Just(NeverEoi::Quarantine)];
    let no_reset = prop_oneof![Just(NoReset::Mask), Just(NoReset::Refuse)];
    (any::<(Option<(u32, u32, u32, u32)>, Option<u32>)>(), action, no_reset).prop_map(
        |((storm, after), action, no_reset)| DevicePolicy {
            storm: storm.map(|(limit, window_ms, pause_ms, retries)| StormLimit {
                limit,
                window_ms,
                pause_ms,
                retries,
            }),
            never_eoi: after.map(|after_ms| EoiDeadline { action, after_ms }),
            no_reset,
        },
    )
}

fn any_config() -> impl Strategy<Value = Config> {
    let device = (any::<(u8, Option<u32>, Option<u8>)>(), 0..32u8, 0..8u8).prop_flat_map(
        |((bus, gsi, vpin), slot, function)| {
            let bdf = Bdf::new(bus, slot, function).unwrap();
            let mask =
                prop_oneof![Just(MaskPolicy::Auto), Just(MaskPolicy::Line), Just(MaskPolicy::Function)];
            let standby = any::<Option<(String, Option<u8>)>>().prop_map(|standby| {
                let (partition, vpin) = standby?;
                let name: String = partition.chars().take(7).collect();
                Some(Standby { partition: name, vpin: vpin.map(Pin) })
            });
            (mask, any_policy(), standby).prop_map(move |(mask, policy, standby)| Device {
                bdf,
                gsi: gsi.map(Gsi),
                mask,
                vpin: vpin.map(Pin),
                policy,
                standby,
            })
        },
    );
    let console = prop_oneof![Just(Console::Hidden), Just(Console::Lines), Just(Console::Terminal)];
    let module =
        (any::<u16>(), "\\PC{0,9}").prop_map(|(image, cmdline)| Module { image: ImageIndex(image), cmdline });
    let texts = ("\\PC{0,7}", ".{0,40}");
    let numbers = any::<(u64, Option<u64>, u16, Option<u16>, Option<u16>, bool, bool, bool)>();
    let lists = (
        collection::vec(any::<u8>().prop_map(CpuId), 0..4),
        collection::vec(module, 0..3),
        collection::vec(device, 0..4),
    );
    let restart =
        any::<(Option<u32>, u32)>().prop_map(|(at_most, pause_ms)| RestartPolicy { at_most, pause_ms });
    let partition = (texts, numbers, lists, restart, console).prop_map(
        |((name, cmdline), numbers, (cpus, modules, devices), restart, console)| {
            let (
                memory_bytes,
                memory_at,
                kernel,
                debug_port,
                exit_port,
                test_device,
                user_hypercalls,
                control,
            ) = numbers;
            Partition {
                name,
                cpus,
                memory_bytes,
                memory_at: memory_at.map(HostPhys::new),
                kernel: ImageIndex(kernel),
                modules,
                cmdline,
                console,
                debug_port,
                exit_port,
                test_device,
                user_hypercalls,
                control,
                restart,
                devices,
            }
        },
    );
    collection::vec(partition, 0..4).prop_map(|partitions| Config { partitions })
}

proptest! {
    #[test]
    fn any_configuration_survives_its_packed_form(config in any_config()) {
        let bytes = blob::encode(&config);
        prop_assert_eq!(blob::decode(&bytes), Ok(config.clone()));
        for length in 0..bytes.len() {
            prop_assert!(blob::decode(&bytes[..length]).is_err());
        }
        // Whatever the rules say of it, they say it without a panic.
        let _ = validate(&config, 7).is_ok();
    }

    #[test]
    fn the_packed_form_is_canonical(config in any_config(), at in any::<usize>(), xor in 1..=u8::MAX) {
        let mut bytes = blob::encode(&config);
        let at = at % bytes.len();
        bytes[at] ^= xor;
        if let Ok(other) = blob::decode(&bytes) {
            prop_assert_eq!(blob::encode(&other), bytes);
            prop_assert!(other != config);
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(mut bytes in collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(unpack(&bytes).is_err());
        if let Ok(config) = blob::decode(&bytes) {
            prop_assert_eq!(blob::encode(&config), bytes.clone());
        }
        let magic = b"LVLHDBDL\x02\0\0\0";
        if let Some(start) = bytes.first_chunk_mut::<12>() {
            *start = *magic;
        }
        prop_assert!(unpack(&bytes).is_err());
    }
}
