use std::fmt::Write as _;

use levelhead::facts::frame::Framed;
use levelhead::irq::{Gsi, Polarity};
use levelhead::pci::IntPin;

use super::*;

const Q35: &str = include_str!("../../../tests/facts/q35.toml");
const PC: &str = include_str!("../../../tests/facts/pc.toml");

fn problems(text: &str) -> Vec<String> {
    let problems = read::parse("f.toml", text).unwrap_err();
    problems.findings().iter().map(ToString::to_string).collect()
}

/// What a console shows of a report.
fn framed(report: &str) -> String {
    let mut log = String::new();
    let mut framed = Framed::begin(&mut log).unwrap();
    framed.write_str(report).unwrap();
    framed.end().unwrap();
    log
}

#[test]
fn what_real_machines_reported_reads_back_the_same() {
    for text in [Q35, PC] {
        assert_eq!(read::parse("f.toml", text).unwrap().to_string(), text);
    }
    let resets =
        "{ power-management = 0x40, pci-express = 0x80, reset-pci-express = 0x88, reset-power = 0x44 }";
    let text = Q35.replacen("{ msi = 0x40 }", resets, 1);
    assert_eq!(read::parse("f.toml", &text).unwrap().to_string(), text);
    let q35 = read::parse("f.toml", Q35).unwrap();
    assert_eq!((q35.cpus.len(), q35.io_apics.len(), q35.functions.len()), (4, 1, 10));
    let inner = "02:05.0".parse().unwrap();
    assert_eq!(q35.places(inner), [(2, 5, IntPin::A), (1, 3, IntPin::B), (0, 6, IntPin::A)]);
    assert_eq!(q35.dis_intx(inner), Some(Ok(())));
    let level = q35.overrides.iter().find(|entry| entry.gsi == Gsi(9)).unwrap().polarity;
    assert_eq!(level, Some(Polarity::ActiveHigh));
    let pc = read::parse("f.toml", PC).unwrap();
    assert!(matches!(pc.routing, Routing::Unknown(why) if why.contains("AML")));
    assert_eq!(pc.ecam, None);
}

#[test]
fn a_report_is_taken_from_the_log_of_a_board() {
    let log: String = framed(Q35).lines().map(|line| format!("[00:00:01.234] {line}\r\nnoise\r\n")).collect();
    assert_eq!(report("board.log", &log).unwrap().0, Q35);
    let cut = &log[..log[..log.len() / 2].rfind('\n').unwrap()];
    let error = report("board.log", cut).unwrap_err().to_string();
    assert!(error.starts_with("board.log:") && error.contains("Config/facts-damaged"), "{error}");
    assert!(error.contains("cut off"), "{error}");
    let garbled = log.replace("bdf = \"00:03.0\"", "bdf = \"00:0\u{fffd}.0\"");
    let line = 1 + garbled[..garbled.find('\u{fffd}').unwrap()].matches('\n').count();
    let error = report("board.log", &garbled).unwrap_err().to_string();
    assert!(error.starts_with(&format!("board.log:{line}: ERROR Config/facts-damaged: file: ")), "{error}");
}

#[test]
fn what_a_report_says_and_nobody_reads_is_not_passed_over() {
    let error = report("a.log", &framed(&format!("{Q35}colour = \"blue\"\n"))).unwrap_err().to_string();
    assert!(error.contains("Config/unknown-key: routing.colour: "), "{error}");
    let other = Q35.replacen("revision = 0x00", "revision = 0x0", 1);
    assert!(report("a.log", &framed(&other)).is_err(), "no hypervisor of this tree writes it so");
}

/// A damaged line, and what the damage is called.
type Damaged = (&'static str, String);

/// What a slip of the hand makes of a line.
fn damaged(line: &str) -> Vec<Damaged> {
    let mut all = Vec::new();
    let inner = line.trim_start().trim_start_matches("{ ");
    if let Some((key, value)) = inner.split_once(" = ") {
        let before = &line[..line.len() - inner.len()];
        all.push(("unknown-key", format!("{before}x-{key} = {value}")));
        let one = value.split(", ").next().unwrap().trim_end_matches([',', '}', ' ']);
        let closed = !value.starts_with(['[', '{']);
        if closed {
            all.push(("wrong-type", format!("{before}{key} = 1.5{}", &value[one.len()..])));
            all.push(("toml-syntax", format!("{before}{key} {value}")));
        }
        if value.starts_with('"') && !matches!(key, "hypervisor" | "vendor" | "model" | "why") {
            all.push(("wrong-value", format!("{before}{key} = \"?\"{}", &value[one.len()..])));
        }
        if closed && value.starts_with(|first: char| first.is_ascii_digit()) {
            all.push(("wrong-value", format!("{before}{key} = -1{}", &value[one.len()..])));
        }
    } else if line.starts_with('[') {
        all.push(("unknown-key", line.replacen(|first: char| first.is_ascii_alphabetic(), "x-", 1)));
        all.push(("toml-syntax", line.replacen('[', "", 1)));
    }
    all
}

#[test]
fn every_damaged_line_of_a_file_is_named() {
    let mut count = 0;
    for text in [Q35, PC] {
        for (index, line) in text.lines().enumerate() {
            for (code, damage) in damaged(line) {
                let mut lines: Vec<&str> = text.lines().collect();
                lines[index] = &damage;
                let found = problems(&(lines.join("\n") + "\n"));
                let place = format!("f.toml:{}:", index + 1);
                let named =
                    |found: &String| found.starts_with(&place) && found.contains(&format!("/{code}: "));
                assert!(found.iter().any(named), "{code} in line {}: {damage}: {found:?}", index + 1);
                assert!(found.iter().all(|found| found.contains("; to do: ")), "{found:?}");
                count += 1;
            }
        }
    }
    assert!(count > 500, "{count} damaged files are too few");
}

#[test]
fn every_mistake_of_a_file_is_named_in_one_go() {
    let text = Q35
        .replacen("gsi-base = 0", "gsi-bass = 0", 1)
        .replacen("apic = 0", "apic = \"zero\"", 1)
        .replacen("kind = \"usable\"", "kind = \"free\"", 1);
    let found = problems(&text);
    let place = |needle: &str| 1 + text[..text.find(needle).unwrap()].matches('\n').count();
    let expected = [
        (place("apic = \"zero\""), "Config/wrong-type: cpu[0].apic: "),
        (place("kind = \"free\""), "Config/wrong-value: memory.map[0].kind: "),
        (place("[[io-apic]]"), "Config/missing-key: io-apic[0].gsi-base: "),
        (
            place("gsi-bass"),
            "Config/unknown-key: io-apic[0].gsi-bass: unknown key; to do: did you mean `gsi-base`?",
        ),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, (line, what)) in found.iter().zip(expected) {
        assert!(found.starts_with(&format!("f.toml:{line}:")) && found.contains(what), "{found}: {what}");
    }
}

#[test]
fn what_no_machine_can_be_is_refused() {
    const BAR: &str = "bar0 = { kind = \"mem32\", address = 0xfea00000, bytes = 0x100000 }";
    for (right, wrong, what) in [
        (
            BAR,
            "bar0 = { kind = \"mem32\", address = 0xfea00000, bytes = 0x100001 }",
            "facts-impossible: function[2].bar0",
        ),
        (
            BAR,
            "bar5 = { kind = \"mem64\", address = 0xfea00000, bytes = 0x100000 }",
            "facts-impossible: function[2].bar5",
        ),
        (
            "secondary = 1\n",
            "secondary = 1\nbar2 = { kind = \"malformed\" }\n",
            "unknown-key: function[4].bar2",
        ),
        ("bdf = \"00:03.0\"", "bdf = \"00:00.0\"", "facts-impossible: function[2].bdf"),
        ("first-bus = 0", "first-bus = 9\nlast-bus = 8\n#", "facts-impossible: ecam.address"),
        ("last-bus = 255", "", "missing-key: ecam.last-bus"),
        (
            "{ msi = 0x40 }",
            "{ reset-advanced = 0x50, reset-pci-express = 0x80 }",
            "facts-impossible: function[2].capabilities.reset-advanced",
        ),
        ("pin = \"A\", gsi = 23, ", "pin = \"A\", ", "companion-missing: routing.prt[0].trigger"),
        (", polarity = \"high\" }", " }", "missing-key: routing.prt[0].polarity"),
        (
            "bus = 1, device = 3, pin = \"B\"",
            "bus = 1, device = 3, pin = \"A\"",
            "facts-impossible: routing.prt[6].pin",
        ),
        ("device = 31", "device = 32", "wrong-value: routing.prt[2].device"),
        ("interrupt-pin = \"A\"\n", "", "companion-missing: function[2].pending"),
        ("id = \"1234:11e8\"", "id = \"+234:11e8\"", "wrong-value: function[2].id"),
        ("pins = 24", "pins = 0", "wrong-value: io-apic[0].pins"),
        ("revision = 1\n", "revision = 2\n", "wrong-value: revision"),
    ] {
        let text = Q35.replacen(right, wrong, 1);
        assert_ne!(text, Q35, "{right}");
        // Where a key is said by the exchange that stands below as well.
        let text = if wrong.contains("last-bus = 8") { text.replacen("last-bus = 255", "", 1) } else { text };
        let found = problems(&text);
        assert!(
            found.iter().any(|found| found.contains(&format!("ERROR Config/{what}"))),
            "{wrong}: {found:?}"
        );
    }
    assert_eq!(problems(&Q35.replacen("revision = 1", "revision = 2", 1)).len(), 1);
}

#[test]
fn a_file_that_is_not_there_is_a_record() {
    let error = load("no/such/facts.toml".as_ref()).unwrap_err().to_string();
    assert!(
        error.starts_with("no/such/facts.toml: ERROR Config/no-such-file: file: cannot be read"),
        "{error}"
    );
    assert!(error.ends_with("; to do: name a file that `cargo xtask facts` wrote"), "{error}");
}
