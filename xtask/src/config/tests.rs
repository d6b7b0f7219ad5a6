//! What an integrator reads when a file is wrong, and what the hypervisor reads when it is right.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::bail;
use levelhead::config::unpack;

use super::*;

/// A folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("levelhead-config-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Loads `text` beside a loadable kernel that is both a file and the guest `echo`.
    fn load(&self, text: &str) -> Result<LoadedConfig> {
        let kernel = self.file("kernel.elf", multiboot_kernel());
        let find = |_: &str| Ok(kernel.clone());
        let names = ["echo".to_owned(), "mb-echo".to_owned()];
        Ok(load(&self.file("test.toml", text), Guests { names: &names, find: &find })?)
    }
}

impl Folder {
    /// The messages for `text`, without the path of the folder and of the file.
    fn errors(&self, text: &str) -> Vec<String> {
        let error = self.load(text).expect_err(text).to_string();
        let prefix = format!("{}:", self.0.join("test.toml").display());
        let folder = format!("{}/", self.0.display());
        error.lines().map(|line| line.strip_prefix(&prefix).expect(line).replace(&folder, "")).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A Multiboot header with address fields that load the file to 1 MiB and enter it behind the header.
fn multiboot_kernel() -> Vec<u8> {
    let (magic, flags) = (0x1bad_b002_u32, 1 << 16);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, checksum, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020, 0xf4f4_f4f4];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The messages for `text`, without the path of the file.
fn errors(text: &str) -> Vec<String> {
    Folder::new().errors(text)
}

const GOOD: &str = r#"
[[partition]]
name = "demo"
cpus = [0]
memory = "32M"
kernel = "guest:echo"
"#;

fn good_with(lines: &str) -> String {
    format!("{GOOD}{lines}\n")
}

#[test]
fn what_is_left_out_has_its_default() {
    let loaded = Folder::new().load(GOOD).unwrap();
    let expected = Partition {
        name: "demo".into(),
        cpus: vec![CpuId(0)],
        memory_bytes: 32 << 20,
        memory_at: None,
        kernel: ImageIndex(0),
        modules: vec![],
        cmdline: String::new(),
        console: Console::Lines,
        debug_port: None,
        exit_port: None,
        test_device: false,
        user_hypercalls: false,
        control: false,
        restart: RestartPolicy::NEVER,
        devices: vec![],
    };
    assert_eq!(loaded.config.partitions, [expected]);
}

#[test]
fn every_key_reaches_the_hypervisor() {
    let folder = Folder::new();
    folder.file("the environment", "NR_CPUS=1\n");
    let text = r#"
        [[partition]]
        name = "all"
        cpus = [3]
        memory = 0x200_0000
        memory-at = 0x4000_0000
        kernel = "kernel.elf"
        modules = [{ file = "the environment", cmdline = "env" }, { file = "the environment" }]
        cmdline = "one two"
        console = false
        debug-port = 0xe9
        exit-port = 244
        test-device = true
        user-hypercalls = true
        control = true
        restart = 7
        restart-pause = 60

        [[partition.device]]
        bdf = "00:1f.7"
        gsi = 40
        mask = "function"
        vpin = 5

        [[partition.device]]
        bdf = "ff:00.0"
        mask = "line"
        storm-limit = 10
        storm-window = 20
        storm-pause = 30
        storm-retries = 0
        never-eoi = "complete"
        never-eoi-after = 50
        no-reset = "refuse"
        standby = "backup"
        standby-vpin = 9

        [[partition]]
        name = "backup"
        cpus = [4]
        memory = "32M"
        kernel = "kernel.elf"
    "#;
    let loaded = folder.load(text).unwrap();
    let bundle = pack(&loaded).unwrap();
    let (config, images) = unpack(&bundle).unwrap();
    assert_eq!(config, loaded.config);
    let names: Vec<_> = images.images().iter().map(|image| (image.name, image.bytes.len())).collect();
    assert_eq!(names, [("kernel.elf", 36), ("the_environment", 10)], "each file once");

    let module = |cmdline: &str| Module { image: ImageIndex(1), cmdline: cmdline.into() };
    let device = |bdf: &str, gsi, mask, vpin, policy, standby| Device {
        bdf: bdf.parse().unwrap(),
        gsi,
        mask,
        vpin,
        policy,
        standby,
    };
    let standby = Some(Standby { partition: "backup".into(), vpin: Some(Pin(9)) });
    let policy = DevicePolicy {
        storm: Some(StormLimit { limit: 10, window_ms: 20, pause_ms: 30, retries: 0 }),
        never_eoi: Some(EoiDeadline { action: NeverEoi::Complete, after_ms: 50 }),
        no_reset: NoReset::Refuse,
    };
    let expected = Partition {
        name: "all".into(),
        cpus: vec![CpuId(3)],
        memory_bytes: 32 << 20,
        memory_at: Some(HostPhys::new(0x4000_0000)),
        kernel: ImageIndex(0),
        modules: vec![module("env"), module("")],
        cmdline: "one two".into(),
        console: Console::Hidden,
        debug_port: Some(0xe9),
        exit_port: Some(0xf4),
        test_device: true,
        user_hypercalls: true,
        control: true,
        restart: RestartPolicy { at_most: Some(7), pause_ms: 60 },
        devices: vec![
            device(
                "00:1f.7",
                Some(Gsi(40)),
                MaskPolicy::Function,
                Some(Pin(5)),
                DevicePolicy::default(),
                None,
            ),
            device("ff:00.0", None, MaskPolicy::Line, None, policy, standby),
        ],
    };
    assert_eq!(config.partitions[..1], [expected]);
}

#[test]
fn the_demonstration_is_a_configuration() {
    let folder = Folder::new();
    let kernel = folder.file("echo", multiboot_kernel());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/demo.toml");
    let find = |guest: &str| {
        assert_eq!(guest, "echo");
        Ok(kernel.clone())
    };
    let loaded = load(&path, Guests { names: &["echo".to_owned()], find: &find });
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    let bdfs: Vec<_> =
        loaded.config.partitions[0].devices.iter().map(|d| (d.bdf.to_string(), d.gsi)).collect();
    assert_eq!(bdfs, [("00:03.0".to_owned(), Some(Gsi(23))), ("00:04.0".to_owned(), None)]);
    pack(&loaded).unwrap();
}

#[test]
fn sizes_have_binary_units() {
    let sizes = [("3145728", 3 << 20), ("\"2097152\"", 2 << 20), ("\"2048K\"", 2 << 20), ("\"2G\"", 2 << 30)];
    for (written, bytes) in sizes {
        let text = GOOD.replace("\"32M\"", written);
        assert_eq!(Folder::new().load(&text).unwrap().config.partitions[0].memory_bytes, bytes, "{written}");
    }
    for (written, shown) in [
        ("\"\"", "\"\""),
        ("\"M\"", "\"M\""),
        ("-1", "-1"),
        ("\"1T\"", "\"1T\""),
        ("\"+1M\"", "\"+1M\""),
        ("\"99999999999G\"", "\"99999999999G\""),
    ] {
        let text = GOOD.replace("\"32M\"", written);
        let expected = format!(
            "5:10: ERROR Config/wrong-value: partition[0].memory: {shown} is no size; to do: write \"64M\", \"1G\" or a number of bytes"
        );
        assert_eq!(errors(&text), [expected]);
    }
}

#[test]
fn each_mistake_is_told_with_its_place_and_remedy() {
    let cases = [
        ("", "1:1: ERROR Config/partition-count: partition: there is no partition; to do: write 1 to 32 [[partition]] tables".to_owned()),
        (
            "partition = 3",
            "1:13: ERROR Config/wrong-type: partition: an integer may not stand here; to do: write an array, as in `[[partition]]`".into(),
        ),
        (
            "partition = [3]",
            "1:14: ERROR Config/wrong-type: partition: an integer may not stand here; to do: write tables, as in `[[partition]]`".into(),
        ),
        (&good_with("[partitions]"), "7:2: ERROR Config/unknown-key: partitions: unknown key; to do: did you mean `partition`?".into()),
        (
            &good_with("debug_port = 0xe9"),
            "7:1: ERROR Config/unknown-key: partition[0].debug_port: unknown key; to do: did you mean `debug-port`?".into(),
        ),
        (&good_with("cmdlien = ''"), "7:1: ERROR Config/unknown-key: partition[0].cmdlien: unknown key; to do: did you mean `cmdline`?".into()),
        (
            &good_with("[[partition.device]]\nbdf = '00:03.0'\nirq = 3"),
            "9:1: ERROR Config/unknown-key: partition[0].device[0].irq: unknown key; to do: the keys here are bdf, gsi, vpin, mask, storm-limit, storm-window, storm-pause, storm-retries, never-eoi, never-eoi-after, no-reset, standby, standby-vpin".into(),
        ),
        (
            &good_with("restart = 'sometimes'"),
            "7:11: ERROR Config/wrong-value: partition[0].restart: \"sometimes\" is not how often a partition starts again; to do: write \"never\", \"always\" or a number".into(),
        ),
        (
            &good_with("restart = 0"),
            "7:11: ERROR Config/wrong-value: partition[0].restart: 0 is no number of restarts; to do: write \"never\"".into(),
        ),
        (
            &good_with("restart = -1"),
            "7:11: ERROR Config/wrong-value: partition[0].restart: -1 is out of range; to do: write a number from 1 to 1000000".into(),
        ),
        (
            &good_with("memory-at = '64M'"),
            "7:13: ERROR Config/wrong-type: partition[0].memory-at: a string may not stand here; to do: write a number from 0x100000 to 0xfffffffffffff".into(),
        ),
        (
            &good_with("restart = 1000001"),
            "7:11: ERROR Config/policy-range: partition[0].restart: 1000001 is out of range; to do: use 1 to 1000000".into(),
        ),
        (
            &good_with("restart-pause = 5"),
            "7:17: ERROR Config/companion-missing: partition[0].restart-pause: without `restart` it means nothing; to do: add `restart = 3`, or remove this key".into(),
        ),
        (
            &good_with("console = 1"),
            "7:11: ERROR Config/wrong-type: partition[0].console: an integer may not stand here; to do: write true, false or \"terminal\"".into(),
        ),
        (
            &good_with("cmdline = true"),
            "7:11: ERROR Config/wrong-type: partition[0].cmdline: a boolean may not stand here; to do: write a string in quotes".into(),
        ),
        (
            &good_with("cmdline = \"a\\nb\""),
            "7:11: ERROR Config/cmdline-control: partition[0].cmdline: a control character at byte 1; to do: use spaces between words".into(),
        ),
        (
            &GOOD.replace("[0]", "[256]"),
            "4:9: ERROR Config/wrong-value: partition[0].cpus: 256 is out of range; to do: write a number from 0 to 255".into(),
        ),
        (
            &GOOD.replace("[0]", "0"),
            "4:8: ERROR Config/wrong-type: partition[0].cpus: an integer may not stand here; to do: write an array, as in `cpus = [0]`".into(),
        ),
        (
            &GOOD.replace("[0]", "[]"),
            "4:8: ERROR Config/no-cpu: partition[0].cpus: there is no CPU; to do: name 1 to 32, as in `cpus = [0]` or `cpus = [0, 1]`".into(),
        ),
        (
            &good_with("exit-port = 0x1_0000"),
            "7:13: ERROR Config/wrong-value: partition[0].exit-port: 0x10000 is out of range; to do: write a number from 0 to 0xfffc".into(),
        ),
        (
            &good_with("exit-port = 0x3f8"),
            "7:13: ERROR Config/port-taken: partition[0].exit-port: ports 0x3f8 to 0x3fb would collide with COM1 at ports 0x3f8 to 0x3ff; to do: \
             choose ports of its own"
                .into(),
        ),
        (
            &GOOD.replace("guest:echo", "guest:eco"),
            "6:10: ERROR Config/no-such-file: partition[0].kernel: there is no guest \"eco\"; to do: did you mean \"guest:echo\"?".into(),
        ),
        (
            &good_with("modules = [{ file = 'initrd' }]"),
            "7:21: ERROR Config/no-such-file: partition[0].modules[0].file: there is no file initrd; to do: \
             name a file relative to this one, or `guest:NAME`"
                .into(),
        ),
        (
            &good_with("modules = [{ cmdline = 'initrd' }]"),
            "7:12: ERROR Config/missing-key: partition[0].modules[0].file: missing; to do: add it, as in `file = \"name\"`".into(),
        ),
        (
            &good_with("[[partition.device]]\nbdf = '00:20.0'"),
            "8:7: ERROR Config/wrong-value: partition[0].device[0].bdf: \"00:20.0\" is no PCI function; to do: \
             write bus, device and function in hexadecimal, as in \"00:1f.2\""
                .into(),
        ),
        (
            &good_with("[[partition.device]]\nbdf = '00:03.0'\nmask = 'rte'"),
            "9:8: ERROR Config/wrong-value: partition[0].device[0].mask: \"rte\" is no way to mask a line; to do: \
             write \"auto\", \"line\" or \"function\""
                .into(),
        ),
        (
            &good_with("[[partition.device]]\nbdf = '00:03.0'\ngsi = 24"),
            "9:7: ERROR Config/vpin-missing: partition[0].device[0].gsi: GSI 24 has no pin of that number in the guest's IO-APIC; to do: \
             add `vpin = N` with N from 0 to 23"
                .into(),
        ),
        (
            &good_with("[[partition.device]]\nbdf = '00:03.0'\nvpin = 24"),
            "9:8: ERROR Config/vpin-range: partition[0].device[0].vpin: the guest's IO-APIC has no pin 24; to do: use 0 to 23".into(),
        ),
        (
            &good_with("console = 'screen'"),
            "7:11: ERROR Config/wrong-value: partition[0].console: \"screen\" is nothing that a console can be; to do: \
             write true, false or \"terminal\""
                .into(),
        ),
        (
            &(good_with("") + &GOOD.replace("[0]", "[1]")),
            "10:8: ERROR Config/name-taken: partition[1].name: the name is taken by partition[0].name; to do: \
             give each partition a name of its own"
                .into(),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(errors(text), [expected], "{text}");
    }
}

#[test]
fn all_mistakes_of_a_file_come_in_one_go_and_in_its_order() {
    let text = r#"
[[partition]]
name = "a b"
memory = 5000
kernel = "nothing"
consol = true

[[partition.device]]
gsi = "x"

[[partition.device]]
bdf = "00:03.0"
gsi = 999
"#;
    let expected = [
        "2:1: ERROR Config/missing-key: partition[0].cpus: missing; to do: add it, as in `cpus = [0]`",
        "3:8: ERROR Config/name-character: partition[0].name: ' ' may not stand in a name; to do: use ASCII letters, digits, `-`, `_` and `.`",
        "4:10: ERROR Config/memory-size: partition[0].memory: 5000 bytes are too few; to do: use 1M to 256G",
        "5:10: ERROR Config/no-such-file: partition[0].kernel: there is no file nothing; to do: name a file relative to this one, or `guest:NAME`",
        "6:1: ERROR Config/unknown-key: partition[0].consol: unknown key; to do: did you mean `console`?",
        "8:1: ERROR Config/missing-key: partition[0].device[0].bdf: missing; to do: add it, as in `bdf = \"00:03.0\"`",
        "9:7: ERROR Config/wrong-type: partition[0].device[0].gsi: a string may not stand here; to do: write a number from 0 to 255",
        "13:7: ERROR Config/gsi-range: partition[0].device[1].gsi: GSI 999 is out of range; to do: use 0 to 255",
    ];
    assert_eq!(errors(text), expected);
}

#[test]
fn wrong_syntax_and_wrong_values_are_told_in_one_go() {
    let text = r#"
[[partition]
name = control
cpus = [0
memory = 64M
kernel = "guest:ecko"
modules = [
    { file = "kernel.elf" },
    { file = "kernel.elf", cmdline = one },
    { file = "kernel.elf" },
]
console: yes
exit-port = 0xf4 debug-port = 0xe9

[[partition.device]]
bdf = "00:03.0
gsi = "x"

[partition.device]]
bdf = "00:04.0"
vpin = p5
gsi = 40
storm-limit =
storm-pause = 5
mask = "lines"

[[partition]]
name = "logging"
kernel = "guest:echo"
memory = 5000
memory at 0x4000_0000
"#;
    let syntax = |place: &str, said: &str| format!("{place}: ERROR Config/toml-syntax: {said}");
    let expected = [
        syntax("2:13", "file: unclosed array table; to do: write `[[partition]]`"),
        syntax("3:8", "partition[0].name: \"control\" without quotes is no value; to do: write \"control\""),
        syntax("4:8", "partition[0].cpus: the array that begins here is not closed; to do: close it with `]`"),
        syntax("5:10", "partition[0].memory: \"64M\" without quotes is no value; to do: write a number, or text in quotes"),
        "6:10: ERROR Config/no-such-file: partition[0].kernel: there is no guest \"ecko\"; to do: did you mean \"guest:echo\"?".into(),
        syntax("9:38", "partition[0].modules: \"one\" without quotes is no value; to do: write \"one\""),
        syntax("12:8", "partition[0].console: no `:` may stand here; to do: write `=` between a key and its value"),
        syntax("13:13", "partition[0].exit-port: \"0xf4 debug-port\" without quotes is no value; to do: write one number, and each key on a line of its own"),
        syntax("16:15", "partition[0].device[0].bdf: invalid basic string; to do: write `\"` here"),
        "17:7: ERROR Config/wrong-type: partition[0].device[0].gsi: a string may not stand here; to do: write a number from 0 to 255".into(),
        syntax("19:19", "file: the header ends before this; to do: write `[[partition.device]]`"),
        syntax("21:8", "partition[0].device[1].vpin: \"p5\" without quotes is no value; to do: write \"p5\""),
        syntax("23:14", "partition[0].device[1].storm-limit: there is no value; to do: write one behind the `=`"),
        "25:8: ERROR Config/wrong-value: partition[0].device[1].mask: \"lines\" is no way to mask a line; to do: did you mean \"line\"?".into(),
        "27:1: ERROR Config/missing-key: partition[1].cpus: missing; to do: add it, as in `cpus = [0]`".into(),
        "30:10: ERROR Config/memory-size: partition[1].memory: 5000 bytes are too few; to do: use 1M to 256G".into(),
        syntax("31:8", "file: neither a key with a value, nor a table, nor a comment; to do: write `key = value`, or begin a comment with #"),
    ];
    let found = errors(text);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len(), "{found:?}");
}

/// A bracket, a brace, a quote or an equals sign is left out of a good file: what that breaks is told in its line, and nothing of
/// any other.
#[test]
fn a_slip_in_one_line_is_told_of_no_other() {
    let example = include_str!("example.toml");
    let folder = Folder::new();
    let mut broken = 0;
    for (at, left_out) in example.char_indices().filter(|(_, c)| "[]{}=\"'".contains(*c)) {
        let line = 1 + example[..at].matches('\n').count();
        let text = [&example[..at], &example[at + left_out.len_utf8()..]].concat();
        if example.lines().nth(line - 1).is_some_and(|line| line.trim_start().starts_with('#')) {
            continue;
        }
        let Err(error) = folder.load(&text) else { continue };
        broken += 1;
        let place = format!("{}:{line}:", folder.0.join("test.toml").display());
        let elsewhere: Vec<_> =
            error.to_string().lines().filter(|found| !found.starts_with(&place)).map(str::to_owned).collect();
        assert!(elsewhere.is_empty(), "{line}: {}: {elsewhere:?}", text.lines().nth(line - 1).unwrap());
    }
    assert!(broken > 70, "{broken} files are too few");
}

#[test]
fn a_header_with_too_few_brackets_hides_nothing() {
    let device = "[[partition.device]]\nbdf = 00:05.0 # on the left\ngsi = 300\n";
    let second = GOOD.replace("demo", "other").replace("[0]", "[1]").replace("[[partition]]", "[partition]");
    let expected = [
        "9:1: ERROR Config/toml-syntax: file: it is one of several tables elsewhere; to do: write `[[partition]]`",
        "15:7: ERROR Config/toml-syntax: partition[1].device[0].bdf: \"00:05.0\" without quotes is no value; to do: write \"00:05.0\"",
        "16:7: ERROR Config/gsi-range: partition[1].device[0].gsi: GSI 300 is out of range; to do: use 0 to 255",
    ];
    assert_eq!(errors(&(good_with("") + &second + device)), expected);
    let broken = errors(&(GOOD.replace("[[partition]]", "[partition]").replace("32M", "much") + device));
    let alone = "2:1: ERROR Config/wrong-type: partition: a table may not stand here; to do: write `[[partition]]` with two brackets: \
                 there may be several";
    let lines: Vec<_> = broken.iter().filter_map(|line| line.split(':').next()).collect();
    assert_eq!((&*broken[0], &lines[..]), (alone, &["2", "5", "8", "9"][..]), "{broken:?}");
    let broken = errors(&GOOD.replace("[[partition]]", "[partition]").repeat(2));
    let twice = "8:2: ERROR Config/toml-syntax: file: partition is there twice; to do: write one table, or `[[partition]]` if there may \
                 be several";
    assert_eq!(broken[1], twice, "{broken:?}");
}

#[test]
fn what_is_no_toml_at_all_is_answered_briefly() {
    let letter = "Dear hypervisor,\nplease give the first CPU to me.\n".repeat(1000);
    let broken = errors(&letter);
    assert_eq!(broken.len(), 51, "{:?}", broken.last());
    assert!(broken[50].contains("too much is wrong to judge the rest of the file"), "{broken:?}");
    assert!(broken.iter().all(|line| line.contains("Config/toml-syntax: file: ")));
}

#[test]
fn a_string_that_is_not_closed_swallows_nothing() {
    for (value, remedy) in [("\"\"\"x", "`\"\"\"`"), ("'''x", "`'''`")] {
        let broken = errors(&(GOOD.replace("\"demo\"", value) + "console = 1\n"));
        let expected = [
            format!("3:8: ERROR Config/toml-syntax: partition[0].name: the string that begins here is not closed; to do: close it with {remedy}"),
            "7:11: ERROR Config/wrong-type: partition[0].console: an integer may not stand here; to do: write true, false or \"terminal\"".to_owned(),
        ];
        assert_eq!(broken, expected);
    }
    let broken = errors(&good_with("modules = [{ file = 'kernel.elf',\nconsole = 1"));
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(
        broken[0].starts_with(
            "7:12: ERROR Config/toml-syntax: partition[0].modules: the inline table that begins here is not closed"
        ),
        "{broken:?}"
    );
}

#[test]
fn a_key_that_is_there_twice_hides_nothing_else() {
    let broken =
        errors("[[partition]]\nname = 'a'\nname = 'b'\ncpus = [0]\nmemory = 'much'\nkernel = 'guest:echo'\n");
    let twice =
        "3:1: ERROR Config/toml-syntax: file: name is there twice; to do: write each key of a table once";
    assert_eq!(broken[0], twice);
    assert!(broken[1].starts_with("5:10: ERROR Config/wrong-value: partition[0].memory: "), "{broken:?}");
    assert_eq!(broken.len(), 2, "{broken:?}");
}

#[test]
fn a_word_of_a_few_is_named_whatever_stands_there() {
    let broken = errors(&format!("{GOOD}[[partition.device]]\nbdf = '00:07.0'\nnever-eoi = true\n"));
    let expected = "partition[0].device[0].never-eoi: a boolean may not stand here; to do: write \"hold\", \"complete\" or \"quarantine\"";
    assert!(broken.iter().any(|line| line.ends_with(expected)), "{broken:?}");
}

#[test]
fn columns_count_characters() {
    let text = GOOD.replace("\"demo\"", "\"d\u{e9}mo\" # \u{1f600}\nconsole = \"\u{1f600}\"");
    let broken = errors(&text);
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[1].starts_with("4:11: "), "{broken:?}");
}

#[test]
fn the_example_of_the_documents_is_a_configuration() {
    let loaded = Folder::new().load(include_str!("example.toml")).unwrap();
    assert_eq!(loaded.config.partitions.len(), 2);
    pack(&loaded).unwrap();
}

/// Every key of the table is read where the table says, and no other: an empty table is of no key's type.
#[test]
fn the_reader_knows_exactly_the_keys_of_the_documents() {
    for section in &keys::SECTIONS {
        let (head, place) = match section.heading {
            "the file" => ("", ""),
            "[[partition]]" => ("[[partition]]\n", "partition[0]."),
            "[[partition.device]]" => ("[[partition]]\n[[partition.device]]\n", "partition[0].device[0]."),
            _ => ("[[partition]]\n[[partition.modules]]\n", "partition[0].modules[0]."),
        };
        for key in section.keys {
            let broken = errors(&format!("{head}{} = {{}}", key.name));
            let expected = format!("ERROR Config/wrong-type: {place}{}: ", key.name);
            assert!(broken.iter().any(|line| line.contains(&expected)), "{expected}: {broken:?}");
        }
        let unknown = errors(&format!("{head}quite-another = 1"));
        let unknown = unknown.iter().find(|line| line.contains("quite-another: unknown key")).unwrap();
        let (_, listed) = unknown.split_once("the keys here are ").unwrap();
        let mut listed: Vec<_> = listed.split(", ").collect();
        let mut defined: Vec<_> = section.keys.iter().map(|key| key.name).collect();
        listed.sort_unstable();
        defined.sort_unstable();
        assert_eq!(listed, defined, "{}", section.heading);
    }
}

/// A message about a configuration is named by the key it speaks of.
#[test]
fn every_rule_is_named_by_a_key() {
    let named: Vec<_> =
        keys::SECTIONS.iter().flat_map(|section| section.keys).flat_map(|key| key.messages).collect();
    let general = [
        "toml-syntax",
        "unknown-key",
        "missing-key",
        "wrong-type",
        "wrong-value",
        "wrong-encoding",
        "facts-damaged",
        "facts-impossible",
        "option-value",
        "selftest-cpus",
        "prt-places",
        "option-unknown",
    ];
    for message in Message::ALL.iter().filter(|message| message.party() == levelhead::message::Party::Config)
    {
        let code = message.code();
        let about_bundle = code.starts_with("bundle-");
        assert!(about_bundle || general.contains(&code) || named.contains(&message), "{code}");
    }
}

#[test]
fn images_that_are_not_what_they_claim_are_told_with_the_other_mistakes() {
    let folder = Folder::new();
    fs::create_dir(folder.0.join("folder")).unwrap();
    folder.file("empty", "");
    folder.file("script", "#!/bin/sh");
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    folder.file("cut", &elf[..15]);
    elf[18] = 0xb7;
    folder.file("arm", &elf);
    elf[4] = 9;
    folder.file("class", &elf);
    let mut linux = vec![0; 0x400];
    linux[0x202..0x206].copy_from_slice(b"HdrS");
    folder.file("bzImage", &linux);
    let mut high = multiboot_kernel();
    for word in [3, 4] {
        high[word * 4..word * 4 + 4].copy_from_slice(&0x1000_0000_u32.to_le_bytes());
    }
    high[28..32].copy_from_slice(&0x1000_0020_u32.to_le_bytes());
    folder.file("high", &high);
    folder.file("large", vec![1; 40 << 20]);
    for (image, expected) in [
        ("folder", "no-such-file: partition[0].kernel: folder: it is a directory"),
        ("/dev/null", "no-such-file: partition[0].kernel: /dev/null: it is no regular file"),
        ("empty", "kernel-unusable: partition[0].kernel: kernel: not bootable: the file is empty"),
        (
            "script",
            "kernel-unusable: partition[0].kernel: kernel: not bootable: no Linux bzImage, no ELF, and no Multiboot header",
        ),
        (
            "cut",
            "kernel-unusable: partition[0].kernel: kernel: not bootable: an ELF that is cut off within its header, after 15 bytes",
        ),
        ("arm", "kernel-unusable: partition[0].kernel: kernel: e_machine is 0xb7: expected 3 or 62, x86"),
        ("class", "kernel-unusable: partition[0].kernel: kernel: EI_CLASS is 0x9: expected 1 or 2"),
        ("bzImage", "kernel-unusable: partition[0].kernel: kernel: boot_flag is 0x0: expected 0xaa55"),
        (
            "high",
            "kernel-outside-memory: partition[0].kernel: kernel: load_addr is 0x10000000: 0x24 bytes there are not all usable guest memory",
        ),
    ] {
        // The key behind the image is wrong as well: both are told, in the file's order.
        let text = GOOD.replace("guest:echo", image) + "console = 1\n";
        let broken = folder.errors(&text);
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken[0].starts_with(&format!("6:10: ERROR Config/{expected}")), "{broken:?}");
        assert!(broken[1].starts_with("7:11: ERROR Config/wrong-type"), "{broken:?}");
    }
    for size in ["512K", "5 apples"] {
        let broken = folder.errors(&GOOD.replace("guest:echo", "script").replace("32M", size));
        assert_eq!(broken.len(), 2, "a memory of no size hides no image: {broken:?}");
        assert!(broken[1].starts_with("6:10: ERROR Config/kernel-unusable: "), "{broken:?}");
    }
    let broken = folder.errors(&good_with("modules = [{ file = 'script' }, { file = 'large' }]"));
    assert!(
        broken[0].starts_with(
            "7:42: ERROR Config/module-too-large: partition[0].modules[1].file: no 0x2800000 bytes"
        ),
        "{broken:?}"
    );
    // What only this kernel says about the rest of its partition.
    let fields: [(usize, &[u8]); 11] = [
        (0x1f1, &[1]),
        (0x1f4, &[0x20, 1]),
        (0x1fe, &[0x55, 0xaa]),
        (0x201, &[0x6a]),
        (0x206, &[0x0f, 2]),
        (0x211, &[1]),
        (0x22c, &[0xff; 4]),
        (0x236, &[1]),
        (0x238, &[58 + 5]),
        (0x258, &[0, 0, 0x10]),
        (0x262, &[1]),
    ];
    linux.resize(0x400 + 0x1200, 0);
    for (offset, bytes) in fields {
        linux[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    folder.file("bzImage", &linux);
    let kernel = GOOD.replace("guest:echo", "bzImage");
    folder.load(&format!("{kernel}cmdline = 'twelv'\nmodules = [{{ file = 'script' }}]\n")).unwrap();
    for (lines, expected) in [
        (
            "cmdline = 'twelve'",
            "7:11: ERROR Config/cmdline-length: partition[0].cmdline: 6 bytes, and this kernel takes 5 (cmdline_size) beside what it is told of its platform; to do: \
             use at most 5 bytes",
        ),
        (
            "modules = [{ file = 'script' }, { file = 'large' }]",
            "7:42: ERROR Config/module-too-large: partition[0].modules[1].file: no 0x2800000 bytes of memory are left below \
             0x2000000 for module 1; to do: ",
        ),
        (
            "modules = [{ file = 'script', cmdline = 'x' }]",
            "7:41: ERROR Config/initrd-text: partition[0].modules[0].cmdline: ",
        ),
    ] {
        let broken = folder.errors(&format!("{kernel}{lines}\n"));
        assert!(broken[0].starts_with(expected) && broken.len() == 1, "{broken:?}");
    }
    let sparse = fs::File::create(folder.0.join("sparse")).unwrap();
    sparse.set_len(5 << 30).unwrap();
    let broken = folder.errors(&GOOD.replace("guest:echo", "sparse"));
    assert!(broken[0].starts_with("6:10: ERROR Config/file-too-large: partition[0].kernel: "), "{broken:?}");
}

#[test]
fn near_misses_are_recognised() {
    let device = |line: &str| good_with(&format!("[[partition.device]]\n{line}"));
    for (text, expected) in [
        (
            GOOD.replace("[[partition]]", "[partition]"),
            "partition: a table may not stand here; to do: write `[[partition]]` with two brackets: there may be several",
        ),
        (
            good_with("[[device]]\nbdf = '00:03.0'"),
            "device: unknown key; to do: write `[[partition.device]]`",
        ),
        (good_with("gsi = 3"), "partition[0].gsi: unknown key; to do: it belongs to [[partition.device]]"),
        (good_with("Console = true"), "partition[0].Console: unknown key; to do: did you mean `console`?"),
        (
            device("bdf = '0000:00:03.0'"),
            "\"0000:00:03.0\" is no PCI function; to do: leave the segment out, as in \"00:03.0\"",
        ),
        (
            device("bdf = '0001:00:03.0'"),
            "\"0001:00:03.0\" is no PCI function; to do: name a function of PCI segment 0: no other is supported yet",
        ),
        (
            device("bdf = '00:03.0'\nmask = 'lines'"),
            "\"lines\" is no way to mask a line; to do: did you mean \"line\"?",
        ),
        (device("bdf = '00:03.0'\nmask = 'Auto'"), "did you mean \"auto\"?"),
        (
            device("bdf = '00:03.0'\nnever-eoi = 'kill'"),
            "to do: write \"hold\", \"complete\" or \"quarantine\"",
        ),
        (
            device("bdf = '00:03.0'\nstorm-pause = 5"),
            "Config/companion-missing: partition[0].device[0].storm-pause: without `storm-limit` it means nothing; to do: add `storm-limit = 1000`, or remove this key",
        ),
        (
            device("bdf = '00:03.0'\nnever-eoi-after = 5"),
            "Config/companion-missing: partition[0].device[0].never-eoi-after: ",
        ),
        (
            device("bdf = '00:03.0'\nstorm-limit = 0"),
            "Config/policy-range: partition[0].device[0].storm-limit: 0 is out of range; to do: use 1 to 10000000",
        ),
        (
            device("bdf = '00:03.0'\nstorm-limit = '5'"),
            "partition[0].device[0].storm-limit: a string may not stand here; to do: write a number from 1 to 10000000",
        ),
        (GOOD.replace("32M", "64 MB"), "\"64 MB\" is no size; to do: write \"64M\""),
        (GOOD.replace("32M", "64m"), "\"64m\" is no size; to do: write \"64M\""),
        (GOOD.replace("32M", "1GiB"), "\"1GiB\" is no size; to do: write \"1G\""),
        (GOOD.replace("\"32M\"", "-5"), "-5 is no size"),
        (GOOD.replace("\"32M\"", "1.5"), "a float may not stand here"),
        (GOOD.replace("[0]", "0"), "write an array, as in `cpus = [0]`"),
        (
            GOOD.replace("[0]", "[\"0\"]"),
            "partition[0].cpus: a string may not stand here; to do: write a number from 0 to 255",
        ),
        (
            GOOD.replace("guest:echo", "guest:ecko"),
            "there is no guest \"ecko\"; to do: did you mean \"guest:echo\"?",
        ),
        (GOOD.replace("guest:echo", "guest:none"), "to do: name one of echo, mb-echo, or a file"),
        (good_with("debug-port = -1"), "-1 is out of range; to do: write a number from 0 to 0xffff"),
        (
            good_with("memory-at = 0x4000_0001"),
            "Config/memory-place: partition[0].memory-at: 0x40000001 is not the start of a page",
        ),
        (
            good_with("memory-at = 0"),
            "Config/memory-place: partition[0].memory-at: no partition's memory can lie at 0x0",
        ),
        (
            good_with("[[partition.device]]\nbdf = \"00:03.0\"\nstandby = \"backup\""),
            "Config/standby-missing: partition[0].device[0].standby: there is no partition \"backup\"",
        ),
        (
            good_with("[[partition.device]]\nbdf = \"00:03.0\"\nstandby-vpin = 5"),
            "Config/companion-missing: partition[0].device[0].standby-vpin: ",
        ),
    ] {
        let broken = errors(&text);
        assert!(broken.iter().any(|line| line.contains(expected)), "{expected}: {broken:?}");
    }
}

#[test]
fn a_wrong_element_hides_nothing_of_those_before_it() {
    let text = GOOD.replace("[0]", "[3, 3, 256, 'x']");
    assert_eq!(
        errors(&text),
        [
            "4:12: ERROR Config/cpu-taken: partition[0].cpus[1]: CPU 3 is taken by partition[0].cpus[0]; to do: give each CPU to one partition",
            "4:15: ERROR Config/wrong-value: partition[0].cpus: 256 is out of range; to do: write a number from 0 to 255",
            "4:20: ERROR Config/wrong-type: partition[0].cpus: a string may not stand here; to do: write a number from 0 to 255",
        ]
    );
    let text = GOOD.replace("[0]", "[256, 3]");
    let alone = "4:9: ERROR Config/wrong-value: partition[0].cpus: 256 is out of range; to do: write a number from 0 to 255";
    assert_eq!(errors(&text), [alone], "and no CPU is missing");
    let text = good_with("device = [{ bdf = '00:03.0', gsi = 300 }, 5]");
    assert_eq!(
        errors(&text),
        [
            "7:36: ERROR Config/gsi-range: partition[0].device[0].gsi: GSI 300 is out of range; to do: use 0 to 255",
            "7:43: ERROR Config/wrong-type: partition[0].device: an integer may not stand here; to do: write tables, as in `[[partition.device]]`",
        ]
    );
}

#[test]
fn a_name_that_cannot_be_read_makes_no_standby_wrong() {
    let first = good_with("[[partition.device]]\nbdf = '00:03.0'\nstandby = 'other'");
    let second = |name: &str| GOOD.replace("name = \"demo\"", name).replace("[0]", "[1]");
    assert_eq!(
        errors(&(first.clone() + &second("nam = 'other'"))),
        [
            "11:1: ERROR Config/missing-key: partition[1].name: missing; to do: add it, as in `name = \"demo\"`",
            "12:1: ERROR Config/unknown-key: partition[1].nam: unknown key; to do: did you mean `name`?",
        ]
    );
    assert_eq!(
        errors(&(first + &second("name = 'third'"))),
        [
            "9:11: ERROR Config/standby-missing: partition[0].device[0].standby: there is no partition \"other\"; to do: name \"third\", the only other partition",
        ]
    );
}

#[test]
fn a_standby_that_nobody_is_called_is_told_who_there_is() {
    let remedy = |standby: &str, others: &[&str]| {
        let first = good_with(&format!("[[partition.device]]\nbdf = '00:03.0'\nstandby = '{standby}'"));
        let others = others.iter().zip(1..).map(|(name, cpu)| {
            GOOD.replace("\"demo\"", &format!("'{name}'")).replace("[0]", &format!("[{cpu}]"))
        });
        let broken = errors(&(first + &others.collect::<String>()));
        let [error] = broken.as_slice() else { panic!("{broken:?}") };
        error.split_once("to do: ").map(|(_, remedy)| remedy.to_owned()).unwrap_or_default()
    };
    assert_eq!(remedy("bakcup", &["logging", "backup"]), "did you mean \"backup\"?");
    assert_eq!(remedy("back-up", &["Back_up"]), "did you mean \"Back_up\"?");
    assert_eq!(remedy("dem", &["backup"]), "name \"backup\", the only other partition", "not its own");
    assert_eq!(remedy("other", &["backup", "logging"]), "name one of backup, logging");
    assert_eq!(remedy("other", &[]), "add a second partition, or leave `standby` out");
}

#[test]
fn a_virtual_pin_that_cannot_be_read_makes_no_other_wrong() {
    let devices = "[[partition.device]]\nbdf = '00:03.0'\ngsi = 23\nvpin = '5'\nmask = 'line'\n\
                   [[partition.device]]\nbdf = '00:04.0'\ngsi = 23\nvpin = 5";
    let unread = "10:8: ERROR Config/wrong-type: partition[0].device[0].vpin: a string may not stand here; to do: write a number from 0 to 23";
    assert_eq!(errors(&good_with(devices)), [unread]);
    assert_eq!(
        errors(&good_with(&devices.replacen("23", "300", 1))),
        [
            "9:7: ERROR Config/gsi-range: partition[0].device[0].gsi: GSI 300 is out of range; to do: use 0 to 255",
            unread,
        ]
    );
}

#[test]
fn memory_placed_twice_is_told() {
    let second = GOOD.replace("demo", "other").replace("[0]", "[1]") + "memory-at = 0x41ff_f000\n";
    let broken = errors(&(good_with("memory-at = 0x4000_0000") + &second));
    assert_eq!(
        broken,
        [
            "14:13: ERROR Config/memory-taken: partition[1].memory-at: 0x41fff000 to 0x41ffffff is the memory of \
          partition[0].memory-at too; to do: place them apart, or leave one of the `memory-at` out"
        ]
    );
}

#[test]
fn memory_of_unknown_size_overlaps_nobodys() {
    for size in ["\"12Q\"", "\"300G\""] {
        let first = good_with("memory-at = 0x200_0000").replace("\"32M\"", size);
        let second = GOOD.replace("demo", "other").replace("[0]", "[1]") + "memory-at = 0x300_0000\n";
        let broken = errors(&(first + &second));
        assert_eq!(broken.len(), 1, "{broken:?}");
        assert!(broken[0].contains(": partition[0].memory: "), "{broken:?}");
    }
}

#[test]
fn files_of_any_form_are_answered() {
    assert!(Folder::new().load(&format!("\u{feff}{GOOD}")).is_ok(), "a byte order mark");
    assert!(Folder::new().load(&GOOD.replace('\n', "\r\n")).is_ok(), "lines that end in CR and LF");
    let broken = errors(&GOOD.replace("32M", "x").replace('\n', "\r\n"));
    assert!(broken[0].starts_with("5:10: "), "{broken:?}");
    for text in ["[".repeat(100_000), format!("x = {}", "[".repeat(100_000)), "a.".repeat(100_000) + "b = 1"]
    {
        let broken = errors(&text);
        assert!(!broken.is_empty() && broken[0].contains("ERROR Config/"), "{:?}", broken.first());
    }
    let folder = Folder::new();
    let judge = |path: &Path| {
        let find = |_: &str| bail!("unused");
        load(path, Guests { names: &[], find: &find })
            .unwrap_err()
            .to_string()
            .replace(&format!("{}/", folder.0.display()), "")
    };
    assert_eq!(
        judge(&folder.file("latin", b"[[partition]]\nname = \"d\xe9mo\"\n")),
        "latin:2:10: ERROR Config/wrong-encoding: file: the byte 0xe9 is not UTF-8; to do: save it as UTF-8"
    );
    assert!(
        judge(&folder.file("large", vec![b'#'; 10 << 20]))
            .starts_with("large: ERROR Config/file-too-large: file: 10485760 bytes")
    );
    assert!(judge(&folder.0.join(".")).contains("ERROR Config/no-such-file: file: it is a directory"));
}

#[test]
fn a_missing_file_is_named() {
    let find = |_: &str| bail!("unused");
    let error = load(Path::new("no/such.toml"), Guests { names: &[], find: &find }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no/such.toml: ERROR Config/no-such-file: file: cannot be read: No such file or directory (os error 2); to do: \
         name a file of configs/ without its `.toml`, or the path of a configuration"
    );
}
