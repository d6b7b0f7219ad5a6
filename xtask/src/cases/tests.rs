use super::*;

/// A case called `a` of these lines.
pub fn case(lines: &str) -> Result<Case> {
    let text = format!("[[case]]\nname = \"a\"\n{lines}\n");
    Ok(parse(&text)?.remove(0))
}

const PASS: &str = "expect = { exit = 33 }";

#[test]
fn the_table_of_this_tree_makes_sense() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cases = parse(&fs::read_to_string(root.join(TABLE)).unwrap()).unwrap();
    for case in &cases {
        let Some(config) = &case.config else { continue };
        let text = fs::read_to_string(root.join(config)).unwrap_or_else(|error| panic!("{config}: {error}"));
        bundle::exchange(&text, &case.replace).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    }
}

#[test]
fn defaults_are_the_usual_machine() {
    let case = case(&format!("config = \"configs/demo.toml\"\n{PASS}")).unwrap();
    assert_eq!((case.machine.as_str(), case.cpu.as_str(), case.memory.as_str()), ("q35", "max", "256M"));
    assert_eq!((case.smp, case.repeat, case.timeout_s, case.icount, case.alone), (1, 1, 60, false, false));
}

#[test]
fn what_is_booted_is_one_thing() {
    let good = [
        "config = \"c\"",
        "config = \"c\"\nbundle = \"truncated\"",
        "bundle = \"none\"",
        "bundle = \"garbage\"",
        "guest_direct = \"bench\"",
        "stages = { apic = \"xapic\", vcpu = \"busy\" }",
    ];
    for lines in good {
        case(&format!("{lines}\n{PASS}")).unwrap();
    }
    let bad = [
        "",
        "bundle = \"truncated\"",
        "config = \"c\"\nbundle = \"garbage\"",
        "config = \"c\"\nguest_direct = \"bench\"",
        "config = \"c\"\nstages = { apic = \"xapic\", vcpu = \"busy\" }",
        "bench = { apic = \"xapic\", vcpu = \"busy\" }\nstages = { apic = \"xapic\", vcpu = \"busy\" }",
        "guest_direct = \"bench\"\npatch_load_base = \"64M\"",
        "guest_direct = \"bench\"\nreplace = { a = \"b\" }",
        "bundle = \"none\"\nexplain = true",
        "bundle = \"none\"\nrepeat = 0",
        "bundle = \"none\"\npromise = [\"I49\"]",
        "bundle = \"none\"\nneeds_qemu = \"nine\"",
        "bundle = \"none\"\nexpects = 3",
        "config = \"c\"\nsmp = 2\nalso_on_threads = true",
    ];
    for lines in bad {
        assert!(case(&format!("{lines}\n{PASS}")).is_err(), "{lines}");
    }
}

#[test]
fn an_end_that_proves_nothing_cannot_be_expected() {
    for exit in [0, 1, 2, 32, 34, 43] {
        assert!(case(&format!("config = \"c\"\nexpect = {{ exit = {exit}, contains = [\"x\"] }}")).is_err());
    }
    assert!(case("config = \"c\"\nexpect = { exit = 39 }").is_err(), "which refusal?");
    assert!(case("config = \"c\"\nexpect = { exit = 39, contains = [\"SVM\"] }").is_ok());
}

#[test]
fn a_case_on_threads_says_what_must_be_the_same() {
    let with = |lines: &str| case(&format!("{lines}\nexpect = {{ exit = 33, alike = [\"x\"] }}"));
    with("config = \"c\"\nsmp = 2\nalso_on_threads = true").unwrap();
    for bad in [
        "config = \"c\"\nsmp = 2",
        "config = \"c\"\nalso_on_threads = true",
        "config = \"c\"\nsmp = 2\nicount = true\nalso_on_threads = true",
        "config = \"c\"\nsmp = 2\naccel = \"tcg\"\nalso_on_threads = true",
        "config = \"c\"\nsmp = 2\nexplain = true\nalso_on_threads = true",
        "bundle = \"none\"\nsmp = 2\nalso_on_threads = true",
    ] {
        assert!(with(bad).is_err(), "{bad}");
    }
}

#[test]
fn names_are_unique() {
    let one = format!("[[case]]\nname = \"a\"\nbundle = \"none\"\n{PASS}\n");
    assert!(parse(&one).is_ok());
    assert!(parse(&format!("{one}{one}")).is_err());
}

#[test]
fn texts_are_looked_for_line_by_line() {
    let console = ["one line".to_owned(), "two line".to_owned()];
    let expect = |contains: &[&str], absent: &[&str]| Expect {
        exit: 33,
        contains: contains.iter().map(|text| (*text).to_owned()).collect(),
        in_order: Vec::new(),
        absent: absent.iter().map(|text| (*text).to_owned()).collect(),
        alike: Vec::new(),
        most_lines: Some(2),
        gdb: Vec::new(),
    };
    assert!(expect(&["one", "two line"], &["three"]).check(&console).is_ok());
    assert!(expect(&["one", "three"], &[]).check(&console).is_err());
    assert!(expect(&[], &["line"]).check(&console).is_err());
    let longer = [console.as_slice(), &["three".to_owned()]].concat();
    assert!(expect(&[], &[]).check(&longer).is_err(), "two lines are the most");
    let ordered = |texts: &[&str]| {
        let in_order = texts.iter().map(|text| (*text).to_owned()).collect();
        Expect { in_order, ..expect(&[], &[]) }.check(&console)
    };
    assert!(ordered(&["one", "two"]).is_ok());
    assert!(ordered(&["two", "one"]).is_err());
    assert!(ordered(&["one", "line", "line"]).is_err(), "each in a line of its own");
}

#[test]
fn promises_are_numbers_of_the_contract() {
    for good in ["I1", "I48", "N21", "T15"] {
        assert!(is_promise(good), "{good}");
    }
    for bad in ["", "I", "I0", "I01", "I+1", "I49", "N22", "T16", "X1", "1"] {
        assert!(!is_promise(bad), "{bad}");
    }
}

#[test]
fn a_case_for_a_newer_qemu_says_so() {
    let case = case(&format!("guest_direct = \"echo\"\nneeds_qemu = \"9.0\"\n{PASS}")).unwrap();
    assert!(case.unfit((7, 2)).is_some());
    assert!(case.unfit((9, 0)).is_none());
    assert!(case.unfit((10, 0)).is_none());
}

#[test]
fn every_word_of_a_case_and_every_byte_of_its_files_counts() {
    let root = std::env::temp_dir().join(format!("levelhead-case-digest-{}", std::process::id()));
    let tree = Tree { target: root.join("target"), root: root.clone(), profile: Profile::Release };
    let image = tree.hypervisor();
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    fs::write(&image, "an image").unwrap();
    let qemu = Path::new("qemu");
    let mut seen = BTreeSet::new();

    let base = format!("bundle = \"garbage\"\n{PASS}");
    let others = ["append = \"log=debug\"", "memory = \"1G\"", "repeat = 2", "timeout_s = 61", "smp = 2"];
    for lines in others.map(|other| format!("{other}\n{base}")).iter().chain([&base]) {
        let case = case(lines).unwrap();
        assert!(seen.insert(case.prepare(&tree, qemu).unwrap().digest(Digest::default()).unwrap().finish()));
    }
    let expected = "bundle = \"garbage\"\nexpect = { exit = 33, contains = [\"x\"] }";
    for case in [case(expected).unwrap(), case(&base).unwrap()] {
        let ready = case.prepare(&tree, qemu).unwrap();
        let digest = || ready.digest(Digest::default()).unwrap().finish();
        assert_eq!(digest(), digest());
        seen.insert(digest());
        fs::write(root.join("target/qemu/a/bundle"), "another").unwrap();
        assert!(seen.insert(digest()), "the bundle");
        fs::write(&image, "an imagf").unwrap();
        assert!(seen.insert(digest()), "the image");
        let mut emulator = Digest::default();
        emulator.text("another QEMU");
        assert!(seen.insert(ready.digest(emulator).unwrap().finish()), "QEMU");
        fs::write(&image, "an image").unwrap();
    }
    fs::remove_file(&image).unwrap();
    assert!(case(&base).unwrap().prepare(&tree, qemu).unwrap().digest(Digest::default()).is_err());
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn sizes_have_units() {
    assert_eq!(parse_size("64M").unwrap(), 64 << 20);
    assert_eq!(parse_size("1G").unwrap(), 1 << 30);
    for bad in ["64", "M", "", "-1M", "99999999999999G"] {
        assert!(parse_size(bad).is_err(), "{bad}");
    }
}
