//! QEMU, asked itself what it has: by `--version`, `-accel help`, `-L help`, and by its machine protocol (QMP) with a
//! machine that is never started. Versions are guessed from only where nothing can be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Cure, Finding, Need, Section};
use crate::process::answer;
use crate::setup;

/// No QEMU takes this long to answer, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// What every QEMU since then is tested with.
const OLDEST_TESTED: (u32, u32) = (7, 2);
/// The versions whose `amd-iommu` was seen to drop every interrupt of the IO-APIC, also while it is switched off: it puts
/// its window together from memory regions that do not exist yet.
const LOSES_INTERRUPTS: [&str; 1] = ["10.0.2"];
/// The questions. Each answer carries its question's name.
const QUESTIONS: &str = r#"{"execute":"qmp_capabilities"}
{"execute":"query-target","id":"target"}
{"execute":"query-machines","id":"machines"}
{"execute":"qom-list-types","arguments":{"implements":"device","abstract":false},"id":"devices"}
{"execute":"query-cpu-model-expansion","arguments":{"type":"full","model":{"name":"max"}},"id":"cpu"}
{"execute":"quit"}
"#;
/// Nothing but an end, to see whether a command line is accepted.
const GOODBYE: &str = "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n";
/// What is said where nothing was answered.
const SILENT: &str = "QEMU did not tell";

/// What firmware QEMU loads for us, what it does, and the package it comes in.
const FIRMWARE: [(&str, &str, &str); 2] = [
    ("pvh.bin", "-kernel with a PVH image, which Levelhead is", "qemu-system-data"),
    ("bios-256k.bin", "SeaBIOS, which sets up BARs and ACPI tables", "seabios"),
];
const MACHINES: [(&str, Need, &str); 3] = [
    ("q35", Need::Needed, "run, and nearly every QEMU case"),
    ("pc", Need::Needed, "the QEMU cases without a _PRT that can be run"),
    ("microvm", Need::Needed, "the QEMU case without ACPI"),
];
const CPU: [(&str, &str, Need, &str); 3] = [
    ("svm", "SVM", Need::Needed, "everything: Levelhead runs guests by it"),
    ("npt", "nested paging", Need::Needed, "everything: a guest's memory is its own by it"),
    ("x2apic", "x2APIC under TCG", Need::Useful, "the hypervisor's own x2APIC"),
];
const DEVICES: [(&str, Need, &str); 8] = [
    ("isa-debug-exit", Need::Needed, "the verdict of every run"),
    ("edu", Need::Needed, "the demonstration and the QEMU cases: the device that interrupts"),
    ("pci-testdev", Need::Needed, "the demonstration and the QEMU cases: the device without a pin"),
    ("e1000e", Need::Needed, "the QEMU cases: the device that resets in D3hot"),
    ("pci-serial", Need::Useful, "trying another device: a UART with INTx"),
    ("pci-bridge", Need::Needed, "the QEMU cases: routing behind bridges"),
    ("amd-iommu", Need::Useful, "trying DMA remapping, which Levelhead does not do yet"),
    ("intel-iommu", Need::Useful, "trying DMA remapping, which Levelhead does not do yet"),
];

/// The QEMU of `wanted`, else the one `run` and `test` take, and what it has.
pub(super) fn findings(wanted: Option<&Path>) -> Vec<Finding> {
    let emulator = setup::qemu(wanted, false, "run").map(|path| Emulator::ask(&path, LIMIT));
    let emulator = emulator.map_err(|error| {
        if error.is::<setup::Missing>() {
            ("not found".to_owned(), Cure::Setup)
        } else {
            (format!("{error:#}"), another())
        }
    });
    judge(emulator.as_ref().map_err(Clone::clone), kvm_device())
}

/// What is to be done where QEMU lacks something that all have with which Levelhead is tested.
fn another() -> Cure {
    since(OLDEST_TESTED)
}

/// What is to be done where QEMU lacks something that came with a version.
fn since((major, minor): (u32, u32)) -> Cure {
    Cure::Advice(format!(
        "name another QEMU by --qemu or LEVELHEAD_QEMU: qemu-system-x86_64 of {major}.{minor} or newer, with TCG"
    ))
}

/// What a QEMU said.
#[derive(Clone, Debug)]
struct Emulator {
    path: PathBuf,
    /// `--version`.
    version: Result<String, String>,
    /// `-accel help`.
    accelerators: BTreeSet<String>,
    /// Which of [`FIRMWARE`] is where.
    firmware: BTreeMap<&'static str, PathBuf>,
    /// Whether it counts instructions.
    icount: Result<(), String>,
    /// What it said by QMP.
    features: Result<Features, String>,
}

/// What a QEMU said by QMP. What it did not say is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Features {
    target: String,
    machines: BTreeSet<String>,
    devices: BTreeSet<String>,
    /// The switches of CPU model `max` under TCG; none if there is no such model.
    cpu: BTreeMap<String, bool>,
}

impl Emulator {
    /// Asks the program at `path`, each time for no longer than `limit`. One that is no QEMU is asked nothing more.
    fn ask(path: &Path, limit: Duration) -> Self {
        let say = |words: &[&str], input| {
            answer(Command::new(path).args(words), input, limit).map_err(|error| format!("{error:#}"))
        };
        let version = say(&["--version"], "").and_then(|text| {
            let version = setup::parse_version(&text).map(str::to_owned);
            version.ok_or_else(|| "it does not tell a version of QEMU".to_owned())
        });
        let mut emulator = Self {
            path: path.to_owned(),
            version,
            accelerators: BTreeSet::new(),
            firmware: BTreeMap::new(),
            icount: Err(SILENT.to_owned()),
            features: Err(SILENT.to_owned()),
        };
        if emulator.version.is_err() {
            return emulator;
        }
        emulator.features = match say(&["-accel", "help"], "") {
            Ok(text) => {
                emulator.accelerators = accelerators(&text);
                let words = "-machine none -accel tcg -nodefaults -display none -S -qmp-pretty stdio";
                let words: Vec<&str> = words.split(' ').collect();
                if emulator.accelerators.contains("tcg") {
                    emulator.icount =
                        say(&[&words, &["-icount", "shift=0,sleep=off"][..]].concat(), GOODBYE).map(|_| ());
                    say(&words, QUESTIONS).and_then(|text| Features::read(&text))
                } else {
                    Err("it cannot emulate (no TCG)".to_owned())
                }
            }
            Err(error) => Err(error),
        };
        if emulator.features.is_ok()
            && let Ok(text) = say(&["-L", "help"], "")
        {
            for (name, _, _) in FIRMWARE {
                let mut paths = text.lines().map(|folder| Path::new(folder.trim()).join(name));
                emulator.firmware.extend(paths.find(|path| path.is_file()).map(|path| (name, path)));
            }
        }
        emulator
    }
}

impl Emulator {
    /// Its version, if that is one whose `amd-iommu` loses interrupts. Nothing that could be asked tells.
    fn loses_interrupts(&self) -> Option<&str> {
        self.version.as_deref().ok().filter(|version| LOSES_INTERRUPTS.contains(version))
    }
}

impl Features {
    /// Reads what QMP answered to [`QUESTIONS`].
    fn read(text: &str) -> Result<Self, String> {
        let mut answers = BTreeMap::new();
        for reply in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
            let mut reply = reply.map_err(|error| format!("it does not speak QMP: {error}"))?;
            let id = reply.get("id").and_then(Value::as_str).map(str::to_owned);
            if let (Some(id), Some(value)) = (id, reply.get_mut("return")) {
                answers.insert(id, value.take());
            }
        }
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let list = |id: &str| answers.get(id).and_then(Value::as_array).into_iter().flatten();
        let target = answers.get("target").and_then(|value| text(value.get("arch")));
        let names = |value: &Value| ["name", "alias"].map(|key| text(value.get(key)));
        let switches = answers.get("cpu").and_then(|value| value.pointer("/model/props")?.as_object());
        Ok(Self {
            target: target.ok_or("it does not speak QMP")?,
            machines: list("machines").flat_map(names).flatten().collect(),
            devices: list("devices").filter_map(|value| text(value.get("name"))).collect(),
            cpu: switches
                .into_iter()
                .flatten()
                .filter_map(|(name, value)| Some((name.clone(), value.as_bool()?)))
                .collect(),
        })
    }
}

/// The names in what `-accel help` prints: one a line, below a title.
fn accelerators(text: &str) -> BTreeSet<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains(' '))
        .map(str::to_owned)
        .collect()
}

/// Whether this user may use the kernel's KVM, on a CPU whose SVM it can lend.
fn kvm_device() -> Result<(), String> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    device.map_err(|error| format!("built in, but /dev/kvm: {error}"))?;
    let processors =
        fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("/proc/cpuinfo: {error}"))?;
    if has_svm(&processors) { Ok(()) } else { Err("built in, but this machine's CPU has no SVM".to_owned()) }
}

/// Whether `/proc/cpuinfo` tells of SVM.
fn has_svm(processors: &str) -> bool {
    let mut lines = processors.lines().filter(|line| line.starts_with("flags"));
    lines.any(|line| line.split_whitespace().any(|flag| flag == "svm"))
}

/// Judges what a QEMU said, or why there is none.
fn judge(emulator: Result<&Emulator, (String, Cure)>, kvm: Result<(), String>) -> Vec<Finding> {
    let mut findings = program(emulator.clone());
    let emulator = emulator.ok();
    findings.extend(FIRMWARE.iter().map(|(name, purpose, package)| {
        let finding = Finding::new(Section::Qemu, *name, Need::Needed, purpose);
        match emulator.filter(|emulator| emulator.features.is_ok()) {
            None => finding.unknown(SILENT),
            Some(emulator) => {
                let path = emulator.firmware.get(name).map(|path| path.display().to_string());
                // Where a package put QEMU, a package has its firmware too.
                let cure =
                    if emulator.path.starts_with("/usr/bin") { Cure::Package(package) } else { another() };
                finding.judged(path.ok_or("not in the folders of -L help"), cure)
            }
        }
    }));

    let accelerators = emulator.map(|emulator| &emulator.accelerators).filter(|names| !names.is_empty());
    let has = |name| accelerators.map(|names| names.contains(name));
    let kvm = has("kvm").map(|has| if has { kvm } else { Err("not built in".to_owned()) });
    let advice = "run on an AMD machine, with SVM switched on and /dev/kvm open to this user";
    findings.extend([
        feature(
            "accelerator tcg",
            Need::Needed,
            "everything: it emulates SVM",
            has("tcg").map(offered),
            another(),
        ),
        feature(
            "accelerator kvm",
            Need::Useful,
            "trying a real CPU's nested SVM; no test does",
            kvm.map(|kvm| kvm.map(|()| "usable".to_owned())),
            Cure::Advice(advice.to_owned()),
        ),
    ]);

    let features = emulator.and_then(|emulator| emulator.features.as_ref().ok());
    for (name, need, purpose) in MACHINES {
        let has = features.map(|features| offered(features.machines.contains(name)));
        findings.push(feature(&format!("machine {name}"), need, purpose, has, another()));
    }
    let max = features.map(|features| offered(!features.cpu.is_empty()));
    findings.push(feature("CPU max", Need::Needed, "run, and nearly every QEMU case", max, another()));
    for (switch, name, need, purpose) in CPU {
        let has = features.map(|features| offered(features.cpu.get(switch) == Some(&true)));
        let cure = if switch == "x2apic" { since(setup::X2APIC_QEMU) } else { another() };
        findings.push(feature(&format!("CPU max: {name}"), need, purpose, has, cure));
    }
    for (name, need, purpose) in DEVICES {
        let has = features.map(|features| offered(features.devices.contains(name)));
        let broken = emulator.filter(|_| name == "amd-iommu").and_then(Emulator::loses_interrupts);
        let (has, cure) = match (has, broken) {
            (Some(Ok(_)), Some(version)) => {
                let wrong = format!("offered, but with {version} it drops every interrupt of the IO-APIC");
                let cure = "use 7.2 for it, as --qemu or LEVELHEAD_QEMU name it";
                (Some(Err(wrong)), Cure::Advice(cure.to_owned()))
            }
            (has, _) => (has, another()),
        };
        findings.push(feature(&format!("device {name}"), need, purpose, has, cure));
    }
    let icount =
        features.and(emulator).map(|emulator| emulator.icount.clone().map(|()| "offered".to_owned()));
    findings.push(feature(
        "-icount",
        Need::Needed,
        "exact counts: bench, and some QEMU cases",
        icount,
        another(),
    ));
    findings
}

/// The program itself.
fn program(emulator: Result<&Emulator, (String, Cure)>) -> Vec<Finding> {
    let program = Finding::new(Section::Qemu, "qemu-system-x86_64", Need::Needed, "run, and the QEMU cases");
    let version =
        Finding::new(Section::Qemu, "version", Need::Useful, "being as tested: 7.2 always, 10.0 by hand");
    let emulator = match emulator {
        Ok(emulator) => emulator,
        Err((wrong, cure)) => return vec![program.missing(wrong, cure), version.unknown(SILENT)],
    };
    let path = emulator.path.display();
    let said = match (&emulator.version, &emulator.features) {
        (Err(wrong), _) | (Ok(_), Err(wrong)) => Err(format!("{path}: {wrong}")),
        (Ok(_), Ok(features)) if features.target != "x86_64" => {
            Err(format!("{path} emulates {}", features.target))
        }
        (Ok(_), Ok(_)) => Ok(path.to_string()),
    };
    let version = match &emulator.version {
        Err(_) => version.unknown(SILENT),
        Ok(text) if setup::parse_major_minor(text) >= Some(OLDEST_TESTED) => version.present(text),
        Ok(text) => version.missing(format!("{text} is older than any tested"), another()),
    };
    vec![program.judged(said, another()), version]
}

fn offered(is: bool) -> Result<String, String> {
    if is { Ok("offered".to_owned()) } else { Err("not offered".to_owned()) }
}

/// A feature, if something was said of it at all.
fn feature(
    name: &str,
    need: Need,
    purpose: &'static str,
    said: Option<Result<String, String>>,
    cure: Cure,
) -> Finding {
    let finding = Finding::new(Section::QemuFeatures, name, need, purpose);
    match said {
        Some(said) => finding.judged(said, cure),
        None => finding.unknown(SILENT),
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::fs::symlink;

    use super::super::State;
    use super::*;

    /// A script that answers as QEMU 7.2 does, shortened; under another name it does not behave.
    const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/doctor/fake-qemu");

    /// The script under that name, gone when dropped.
    struct Link(PathBuf);

    impl Link {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("levelhead-{}-{name}", std::process::id()));
            symlink(FAKE, &path).unwrap();
            Self(path)
        }
    }

    impl Drop for Link {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn examine(path: &Path, limit: Duration) -> Vec<Finding> {
        judge(Ok(&Emulator::ask(path, limit)), Ok(()))
    }

    fn get<'a>(findings: &'a [Finding], name: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.name == name).unwrap_or_else(|| panic!("{name}"))
    }

    fn missing(findings: &[Finding]) -> Vec<&str> {
        let missing = findings.iter().filter(|finding| finding.state == State::Missing);
        missing.map(|finding| finding.name.as_str()).collect()
    }

    #[test]
    fn a_qemu_is_judged_by_what_it_says() {
        let findings = examine(Path::new(FAKE), Duration::from_secs(60));
        assert_eq!(
            missing(&findings),
            ["pvh.bin", "bios-256k.bin", "machine microvm", "CPU max: x2APIC under TCG", "device amd-iommu"]
        );
        assert_eq!(get(&findings, "version").found, "7.2.22");
        assert!(findings.iter().all(|finding| finding.state != State::Unknown), "{findings:?}");
    }

    #[test]
    fn a_qemu_without_tcg_leaves_the_rest_unknown() {
        let link = Link::new("no-tcg");
        let findings = examine(&link.0, Duration::from_secs(60));
        assert_eq!(missing(&findings), ["qemu-system-x86_64", "accelerator tcg"]);
        assert_eq!(get(&findings, "CPU max: SVM").state, State::Unknown);
    }

    #[test]
    fn a_program_that_hangs_crashes_or_is_no_qemu_is_reported() {
        let judged = |path: &Path, limit| {
            let findings = examine(path, Duration::from_secs(limit));
            assert!(missing(&findings).contains(&"qemu-system-x86_64"), "{findings:?}");
            get(&findings, "qemu-system-x86_64").found.clone()
        };
        let links = ["hangs", "crashes", "babbles", "arm"].map(Link::new);
        for (link, limit, what) in [
            (&links[0], 1, "hung: it was ended after 1 s"),
            (&links[1], 60, "crashed by signal 11"),
            (&links[2], 60, "does not speak QMP"),
            (&links[3], 60, "emulates aarch64"),
        ] {
            let found = judged(&link.0, limit);
            assert!(found.contains(what), "{found}");
        }
        assert!(judged(Path::new("/bin/true"), 60).contains("does not tell a version of QEMU"));
    }

    #[test]
    fn no_qemu_is_missing_once_and_everything_of_it_unknown() {
        let findings = judge(Err(("not found".to_owned(), Cure::Setup)), Ok(()));
        assert_eq!(missing(&findings), ["qemu-system-x86_64"]);
        assert_eq!(
            findings.iter().filter(|finding| finding.state == State::Unknown).count(),
            findings.len() - 1
        );
    }

    #[test]
    fn an_old_version_is_no_more_than_a_warning() {
        let mut emulator = Emulator::ask(Path::new(FAKE), Duration::from_secs(60));
        emulator.version = Ok("6.2.0".to_owned());
        let findings = judge(Ok(&emulator), Err("built in, but /dev/kvm: denied".to_owned()));
        assert_eq!(get(&findings, "version").state, State::Missing);
        assert_eq!(get(&findings, "version").need, Need::Useful);
        assert_eq!(get(&findings, "accelerator kvm").found, "built in, but /dev/kvm: denied");
    }

    #[test]
    fn a_remedy_names_the_version_that_has_what_is_missing() {
        let findings = examine(Path::new(FAKE), Duration::from_secs(60));
        let cure = |name: &str| match &get(&findings, name).cure {
            Some(Cure::Advice(text)) => text.clone(),
            other => panic!("{name}: {other:?}"),
        };
        assert!(cure("CPU max: x2APIC under TCG").contains(" 9.0 or newer"));
        assert!(cure("machine microvm").contains(" 7.2 or newer"));
    }

    #[test]
    fn the_iommu_that_loses_interrupts_is_none_to_try() {
        let iommu = |version: &str, device: Option<&str>| {
            let mut emulator = Emulator::ask(Path::new(FAKE), Duration::from_secs(60));
            emulator.version = Ok(version.to_owned());
            emulator.features.as_mut().unwrap().devices.extend(device.map(str::to_owned));
            get(&judge(Ok(&emulator), Ok(())), "device amd-iommu").clone()
        };
        assert_eq!(iommu("7.2.22", Some("amd-iommu")).state, State::Present);
        let broken = iommu("10.0.2", Some("amd-iommu"));
        assert_eq!((broken.state, broken.need), (State::Missing, Need::Useful));
        assert!(broken.found.contains("10.0.2 it drops every interrupt"), "{}", broken.found);
        assert!(matches!(broken.cure, Some(Cure::Advice(text)) if text.starts_with("use 7.2")));
        assert_eq!(iommu("10.0.2", None).found, "not offered");
    }

    #[test]
    fn kvm_is_of_use_on_a_cpu_with_svm() {
        assert!(has_svm("model name\t: X\nflags\t\t: fpu svm npt\n"));
        assert!(!has_svm("model name\t: svm\nflags\t\t: fpu vmx svm_lock\n"));
    }

    #[test]
    fn what_the_cases_use_is_needed() {
        let cases: toml::Value = toml::from_str(include_str!("../../../tests/qemu/cases.toml")).unwrap();
        let needed = |name: &str, needs: &[(&str, Need, &str)]| {
            let name = name.split(',').next().unwrap();
            let found = needs.iter().find(|(known, _, _)| *known == name);
            assert!(found.is_some_and(|(_, need, _)| *need == Need::Needed), "{name} is used by the cases");
        };
        for case in cases["case"].as_array().unwrap() {
            if let Some(machine) = case.get("machine") {
                needed(machine.as_str().unwrap(), &MACHINES);
            }
            let devices = case.get("devices").and_then(toml::Value::as_array);
            devices.into_iter().flatten().for_each(|device| needed(device.as_str().unwrap(), &DEVICES));
        }
    }
}
