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
        let resolve = |guest: &str| match guest {
            "echo" => Ok(kernel.clone()),
            other => bail!("there is no guest `{other}`"),
        };
        Ok(load(&self.file("test.toml", text), &resolve)?)
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
    let folder = Folder::new();
    let error = folder.load(text).expect_err(text).to_string();
    let prefix = format!("{}:", folder.0.join("test.toml").display());
    let folder = format!("{}/", folder.0.display());
    error.lines().map(|line| line.strip_prefix(&prefix).expect(line).replace(&folder, "")).collect()
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
        kernel: ImageIndex(0),
        modules: vec![],
        cmdline: String::new(),
        console: true,
        debug_port: None,
        exit_port: None,
        user_hypercalls: false,
        control: false,
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
        kernel = "kernel.elf"
        modules = [{ file = "the environment", cmdline = "env" }, { file = "the environment" }]
        cmdline = "one two"
        console = false
        debug-port = 0xe9
        exit-port = 244
        user-hypercalls = true
        control = true

        [[partition.device]]
        bdf = "00:1f.7"
        gsi = 40
        mask = "function"
        vpin = 5

        [[partition.device]]
        bdf = "ff:00.0"
        mask = "line"
    "#;
    let loaded = folder.load(text).unwrap();
    let bundle = pack(&loaded).unwrap();
    let (config, images) = unpack(&bundle).unwrap();
    assert_eq!(config, loaded.config);
    let names: Vec<_> = images.images().iter().map(|image| (image.name, image.bytes.len())).collect();
    assert_eq!(names, [("kernel.elf", 36), ("the_environment", 10)], "each file once");

    let module = |cmdline: &str| Module { image: ImageIndex(1), cmdline: cmdline.into() };
    let device = |bdf: &str, gsi, mask, vpin| Device { bdf: bdf.parse().unwrap(), gsi, mask, vpin };
    let expected = Partition {
        name: "all".into(),
        cpus: vec![CpuId(3)],
        memory_bytes: 32 << 20,
        kernel: ImageIndex(0),
        modules: vec![module("env"), module("")],
        cmdline: "one two".into(),
        console: false,
        debug_port: Some(0xe9),
        exit_port: Some(0xf4),
        user_hypercalls: true,
        control: true,
        devices: vec![
            device("00:1f.7", Some(Gsi(40)), MaskPolicy::Function, Some(Pin(5))),
            device("ff:00.0", None, MaskPolicy::Line, None),
        ],
    };
    assert_eq!(config.partitions, [expected]);
}

#[test]
fn the_demonstration_is_a_configuration() {
    let folder = Folder::new();
    let kernel = folder.file("echo", multiboot_kernel());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/demo.toml");
    let loaded = load(&path, &|guest| {
        assert_eq!(guest, "echo");
        Ok(kernel.clone())
    });
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    let bdfs: Vec<_> =
        loaded.config.partitions[0].devices.iter().map(|d| (d.bdf.to_string(), d.gsi)).collect();
    assert_eq!(bdfs, [("00:03.0".to_owned(), Some(Gsi(23))), ("00:04.0".to_owned(), None)]);
    pack(&loaded).unwrap();
}

#[test]
fn sizes_have_binary_units() {
    let sizes = [("1048576", 1 << 20), ("\"2097152\"", 2 << 20), ("\"1024K\"", 1 << 20), ("\"2G\"", 2 << 30)];
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
            "9:1: ERROR Config/unknown-key: partition[0].device[0].irq: unknown key; to do: the keys here are bdf, gsi, mask, vpin".into(),
        ),
        (
            &good_with("console = 1"),
            "7:11: ERROR Config/wrong-type: partition[0].console: an integer may not stand here; to do: write true or false".into(),
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
            &GOOD.replace("[0]", "[0, 1]"),
            "4:8: ERROR Config/several-cpus: partition[0].cpus: 2 CPUs: several in one partition are not supported yet; to do: \
             name exactly one, as in `cpus = [0]`"
                .into(),
        ),
        (
            &good_with("exit-port = 0x1_0000"),
            "7:13: ERROR Config/wrong-value: partition[0].exit-port: 0x10000 is out of range; to do: write a number from 0 to 0xffff".into(),
        ),
        (
            &good_with("exit-port = 0x3f8"),
            "7:13: ERROR Config/port-taken: partition[0].exit-port: ports 0x3f8 to 0x3fb would collide with COM1 at ports 0x3f8 to 0x3ff; to do: \
             choose ports of its own"
                .into(),
        ),
        (
            &GOOD.replace("guest:echo", "guest:eco"),
            "6:10: ERROR Config/no-such-file: partition[0].kernel: there is no guest `eco`; to do: name one of the project's guests, or a file".into(),
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
fn wrong_syntax_is_told_in_one_go_too() {
    let broken = errors("[[partition]]\nname = \ncpus = [0\nmemory = 'x\n");
    assert!(broken.len() > 1, "{broken:?}");
    assert!(broken[0].starts_with("2:8: "), "{broken:?}");
    assert!(broken.iter().all(|line| line.ends_with("; to do: correct the TOML syntax")), "{broken:?}");
    let twice = errors("[[partition]]\nname = 'a'\nname = 'b'\n");
    assert_eq!(twice, ["3:1: ERROR Config/toml-syntax: file: duplicate key; to do: correct the TOML syntax"]);
}

#[test]
fn columns_count_characters() {
    let text = GOOD.replace("\"demo\"", "\"d\u{e9}mo\" # \u{1f600}\nconsole = \"\u{1f600}\"");
    let broken = errors(&text);
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[1].starts_with("4:11: "), "{broken:?}");
}

#[test]
fn a_kernel_that_cannot_boot_is_refused_when_packing() {
    let folder = Folder::new();
    folder.file("script", "#!/bin/sh");
    let loaded = folder.load(&GOOD.replace("guest:echo", "script")).unwrap();
    let error = format!("{:#}", pack(&loaded).unwrap_err());
    let expected = format!(
        "{0}/test.toml: partition demo cannot boot {0}/script: kernel: not bootable: no ELF, and no Multiboot header \
         (0x1badb002) in its first 8 KiB",
        folder.0.display()
    );
    assert_eq!(error, expected);
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("no/such.toml"), &|_| bail!("unused")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no/such.toml: ERROR Config/no-such-file: file: cannot be read: No such file or directory (os error 2); to do: \
         name a file of configs/ without its `.toml`, or the path of a configuration"
    );
}
