use std::fs;
use std::path::Path;

use super::*;
use crate::config::{self, Guests};
use crate::console::Console;
use crate::console::json::tests::{example, printed};

const PARTITION: &str = "[[partition]]\nname = \"a\"\ncpus = [0]\nmemory = \"64M\"\nkernel = \"guest:x\"\n";
/// An ELF file with a PVH note would do; a Multiboot header by addresses is shorter: loaded whole at 2 MiB.
const KERNEL: [u32; 8] = [0x1bad_b002, 0x1_0000, 0xe451_4ffe, 0x20_0000, 0x20_0000, 0, 0, 0x20_0000];

/// What is said of a configuration on a machine of `tests/facts/`. `text` follows on the first partition's keys.
fn said(name: &str, text: &str, machine: Option<&str>) -> Explanation {
    let folder = std::env::temp_dir().join(format!("levelhead-explain-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (path, image) = (folder.join("a.toml"), folder.join("x"));
    fs::write(&image, KERNEL.map(u32::to_le_bytes).concat()).unwrap();
    fs::write(&path, format!("{PARTITION}{text}")).unwrap();
    let find = |_: &str| Ok(image.clone());
    let loaded = config::load(&path, Guests { names: &["x".to_owned()], find: &find });
    fs::remove_dir_all(&folder).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/facts");
    let facts = machine.map(|machine| facts::load(&root.join(machine)).unwrap());
    Explanation::new("a.toml".into(), &loaded.unwrap(), facts.as_ref())
}

/// What people see of it, but for records and verdict.
fn lines(said: &Explanation) -> Vec<String> {
    let console = Console::plain(std::io::sink());
    let mut lines = said.owners().lines(&console);
    lines.extend(said.functions().lines(&console));
    let devices = said.partitions.iter().flat_map(|partition| &partition.devices);
    lines.extend(devices.flat_map(DeviceSaid::reasons_told));
    lines.extend(said.left_over.told());
    lines
}

fn complaints(said: &Explanation) -> Vec<String> {
    assert_eq!(said.good, said.findings.is_empty());
    said.findings().iter().map(ToString::to_string).collect()
}

#[track_caller]
fn holds(lines: &[String], expected: &[&str]) {
    for line in expected {
        assert!(lines.iter().any(|found| found == line), "{line}\n{}", lines.join("\n"));
    }
}

#[test]
fn every_decision_has_its_owner_and_its_reason() {
    let text = "memory-at = 0x800_0000\n[[partition.device]]\nbdf = \"00:03.0\"\n[[partition.device]]\n\
                bdf = \"02:05.0\"\nmask = \"function\"\nvpin = 4\n[[partition.device]]\nbdf = \"00:04.0\"\n";
    let said = said("reasons", text, Some("q35.toml"));
    assert_eq!(complaints(&said), [""; 0]);
    holds(
        &lines(&said),
        &[
            "partition  CPU  APIC ID     memory  from       COM1   debug  exit",
            "a            0        0  65536 KiB  0x8000000  shown      -     -",
            "function  owner  device     line    vector  pin  gate",
            "00:03.0   a      1234:11e8  GSI 23  0x40    23   RTE mask",
            "02:05.0   a      1234:11e8  GSI 22  0x41    4    DisINTx",
            "00:04.0   a      1b36:0005  -       -       -    -",
            "00:1f.2   -      8086:2922  GSI 16",
            "line         GSI 23: _PRT entry of 00:03 INTA",
            "virtual pin  23: the number of the GSI",
            "gate         RTE mask: nobody shares the line, so its entry is masked",
            "reset        none: it has no function-level reset, does not reset in D3hot, and is on a root bus",
            "reset        reset of the bus behind 01:03.0",
            "BAR0         mem32 0xfea00000 +0x100000, in the guest at 0xe0000000",
            "line         GSI 22: _PRT entry of 00:06 INTA, which INTA is behind 2 bridges",
            "virtual pin  4: `vpin` in the configuration",
            "gate         DisINTx: `mask = \"function\"`, and DisINTx was proved",
            "line         no INTx: the function has no interrupt pin",
            "BAR1         io 0xd000 +0x100, the same ports in the guest",
            "CPUs: 1 2 3",
            "01:03.0   -      1b36:0001  GSI 21",
            "01:03.0: bridge to bus 02",
            "00:06.0: bridge to bus 01, wired to GSI 22, the line of 02:05.0",
        ],
    );
    assert_eq!(
        said.table_of_lines(),
        [
            "00:03.0 a GSI 23 0x40 RTE mask partition 0 pin 23",
            "02:05.0 a GSI 22 0x41 DisINTx partition 0 pin 4",
            "00:04.0 a no INTx"
        ]
    );
}

#[test]
fn who_may_take_a_device_over_is_told() {
    let text = "[[partition.device]]\nbdf = \"00:03.0\"\nstandby = \"b\"\nstandby-vpin = 9\n\
                [[partition]]\nname = \"b\"\ncpus = [1]\nmemory = \"64M\"\nkernel = \"guest:x\"\n";
    let known = said("standby", text, Some("q35.toml"));
    assert_eq!(complaints(&known), [""; 0]);
    holds(&lines(&known), &["standby      b may take it over, at virtual pin 9"]);
    let unknown = said("standby-unknown", text, None);
    holds(&lines(&unknown), &["standby      b may take it over, at virtual pin 9"]);
    let report = printed(REPORT, &known);
    assert_eq!(report["partitions"][0]["devices"][0]["standby"]["partition"], "b");
    assert!(report["partitions"][1]["devices"].as_array().unwrap().is_empty());
}

#[test]
fn without_facts_nothing_is_guessed() {
    let text = "[[partition.device]]\nbdf = \"00:03.0\"\n[[partition.device]]\nbdf = \"00:09.0\"\n\
                gsi = 5\nmask = \"function\"\n";
    let said = said("unknown", text, None);
    assert_eq!(complaints(&said), [""; 0]);
    assert!(!said.machine);
    holds(
        &lines(&said),
        &[
            "a            0  decided at boot  65536 KiB  decided at boot  shown      -     -",
            "00:03.0   a      decided at boot  decided at boot  decided at boot  decided at boot  decided at boot",
            "00:09.0   a      decided at boot  GSI 5            decided at boot  5                decided at boot",
            "line         decided at boot: the machine is not known",
            "virtual pin  decided at boot: the machine is not known",
            "line         GSI 5: `gsi` in the configuration, if the function has an interrupt pin",
            "gate         decided at boot: it depends on who shares the line",
            "gate         decided at boot: DisINTx if it proves to work, as `mask = \"function\"` asks",
        ],
    );
    let report = printed(REPORT, &said);
    let device = &report["partitions"][0]["devices"][0];
    assert!(device["gsi"].is_null() && device["vector"].is_null() && device["virtual_pin"].is_null());
}

#[test]
fn what_boot_would_refuse_is_told_with_line_and_column() {
    let text = "memory-at = 0xff0_0000\n[[partition.device]]\nbdf = \"00:1d.0\"\n[[partition.device]]\n\
                bdf = \"00:1f.2\"\ngsi = 99\nvpin = 1\n";
    let said = said("refused", text, Some("q35.toml"));
    let found = complaints(&said);
    let expected = [
        "a.toml:6:13: ERROR Config/memory-place: partition[0].memory-at: 0xff00000 to 0x13f00000: firmware keeps 0xffdf000 to ",
        "a.toml:8:7: ERROR Config/device-missing: partition[0].device[0].bdf: ",
        "a.toml:11:7: ERROR Config/line-missing: partition[0].device[1].gsi: ",
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected) && found.contains("; to do: "), "{found}");
    }
    holds(&lines(&said), &["line         none: refused, as a record says"]);
}

#[test]
fn lines_that_firmware_did_not_tell_are_refused_as_at_boot() {
    let open = said("pc", "[[partition.device]]\nbdf = \"00:03.0\"\n", Some("pc.toml"));
    let found = complaints(&open);
    assert!(found.len() == 1 && found[0].contains("Firmware/aml-gave-up: "), "{found:?}");
    let closed = said("pc-gsi", "[[partition.device]]\nbdf = \"00:03.0\"\ngsi = 11\n", Some("pc.toml"));
    assert_eq!(closed.table_of_lines(), ["00:03.0 a GSI 11 0x40 RTE mask partition 0 pin 11"]);
}

#[test]
fn the_report_is_what_docs_json_shows() {
    let mut said = said("json", "[[partition.device]]\nbdf = \"00:03.0\"\n", Some("q35.toml"));
    said.left_over.functions.retain(|function| function.bdf == "00:06.0");
    assert_eq!(printed(REPORT, &said), example(REPORT));
}
