//! The list of tests that a checkout comes with, `x86/unittests.cfg`: sections of `key = value`, and which of them have nothing
//! to run on here.

use std::path::Path;

/// A test as the list has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Test {
    /// Its name, unique.
    pub name: String,
    /// Its image, in the folder of the list.
    pub file: String,
    /// How many CPUs it asks for.
    pub cpus: u8,
    /// The words of its command line.
    pub args: String,
    /// What it asks of QEMU.
    pub params: String,
    /// The architecture, if it is of one.
    pub arch: Option<String>,
    /// The accelerator that it needs.
    pub accel: Option<String>,
    /// Files of a Linux host with KVM, and what they must say.
    pub check: Option<String>,
    /// How many seconds it may take.
    pub seconds: Option<u64>,
}

/// The tests of a list. Keys that say nothing about how a test runs are passed over, as its own runner does.
pub fn read(text: &str) -> Vec<Test> {
    let mut tests: Vec<Test> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            tests.push(Test { name: name.to_owned(), cpus: 1, ..Test::default() });
        }
        let (Some(test), Some((key, value))) = (tests.last_mut(), line.split_once('=')) else { continue };
        let value = value.trim();
        match key.trim() {
            "file" => value.clone_into(&mut test.file),
            "smp" => test.cpus = value.parse().unwrap_or(test.cpus),
            "test_args" => unquoted(value).clone_into(&mut test.args),
            // Its name was another once.
            "qemu_params" | "extra_params" => value.clone_into(&mut test.params),
            "arch" => test.arch = Some(value.to_owned()),
            "accel" => test.accel = Some(value.to_owned()),
            "check" => test.check = Some(value.to_owned()),
            "timeout" => test.seconds = value.trim_end_matches('s').parse().ok(),
            _ => {}
        }
    }
    tests
}

/// Without the quotes around it.
fn unquoted(value: &str) -> &str {
    let within = |quote| value.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    within('"').or_else(|| within('\'')).unwrap_or(value)
}

/// What images need that no guest here has, by how their names begin.
const NEEDS: [(&str, &str); 12] = [
    ("vmx", "it tests VMX, and guests have no virtualization of their own"),
    ("svm", "it tests SVM, and guests have no virtualization of their own"),
    ("hyperv_", "it tests Hyper-V's interfaces, which are not given"),
    ("vmware_backdoors", "it tests VMware's backdoor, which is not given"),
    ("intel-iommu", "it tests VT-d, and guests have no IOMMU"),
    ("kvmclock_test", "it tests KVM's clock, which is not given"),
    ("asyncpf", "it tests KVM's page faults that end later, which are not given"),
    ("pmu", "it tests performance counters, which guests do not have"),
    ("s3", "it sleeps in S3 and is woken by a clock's alarm; guests have neither"),
    ("hpet_read_test", "it tests the HPET, and guests have none"),
    ("init", "it resets the CPU by a keyboard controller, and guests have none"),
    ("emulator", "it tests KVM's emulation of instructions on a device page of QEMU's test device"),
];

/// Images that make KVM's own hypercalls if they are told of a test device, and need none. Here the numbers mean other calls:
/// that of KVM's IPIs starts the guest again.
const WITHOUT_TEST_DEVICE: [&str; 1] = ["apic.flat"];

impl Test {
    /// Whether it is told that there is a test device.
    pub fn has_test_device(&self) -> bool {
        !WITHOUT_TEST_DEVICE.contains(&self.file.as_str())
    }

    /// Why it cannot run here, if so. `folder` has the images.
    pub fn unfit(&self, folder: &Path) -> Option<String> {
        if let Some(arch) = self.arch.as_deref().filter(|arch| *arch != "x86_64") {
            return Some(format!("it is of {arch} only"));
        }
        if let Some((_, why)) = NEEDS.iter().find(|(name, _)| self.file.starts_with(name)) {
            return Some((*why).to_owned());
        }
        if let Some(accel) = self.accel.as_deref().filter(|accel| *accel != "tcg") {
            return Some(format!("it needs {accel}"));
        }
        if self.check.is_some() {
            return Some("it depends on how the host's KVM is set up".to_owned());
        }
        let path = folder.join(&self.file);
        (!path.is_file()).then(|| format!("it is not built: there is no {}", path.display()))
    }

    /// How much memory it asks for, in MiB.
    pub fn memory_mib(&self) -> u64 {
        let mut words = self.params.split_whitespace().skip_while(|word| *word != "-m").skip(1);
        let Some(size) = words.next() else { return super::MEMORY_MIB };
        let size = size.to_ascii_lowercase();
        let (number, unit) = match size.strip_suffix('g') {
            Some(number) => (number, 1024),
            None => (size.trim_end_matches('m'), 1),
        };
        number.parse().map_or(super::MEMORY_MIB, |number: u64| number.saturating_mul(unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
# [no]
[a]
file = a.flat
smp = 2
test_args = 'one two'
qemu_params = -cpu max,+x -m 2g
groups = g
timeout = 180

#[b]
[c]
file = vmx.flat
[d]
file = d.flat
accel = kvm
arch = x86_64
[e]
arch = i386
[f]
check = /sys/x=Y
extra_params = -m 512
";

    #[test]
    fn a_list_is_read_as_its_runner_reads_it() {
        let tests = read(TEXT);
        let names: Vec<_> = tests.iter().map(|test| test.name.as_str()).collect();
        assert_eq!(names, ["a", "c", "d", "e", "f"]);
        let expected = Test {
            name: "a".to_owned(),
            file: "a.flat".to_owned(),
            cpus: 2,
            args: "one two".to_owned(),
            params: "-cpu max,+x -m 2g".to_owned(),
            seconds: Some(180),
            ..Test::default()
        };
        assert_eq!(tests[0], expected);
        let apic = Test { file: "apic.flat".to_owned(), ..Test::default() };
        assert!(tests[0].has_test_device() && !apic.has_test_device());
        let memory: Vec<_> = tests.iter().map(Test::memory_mib).collect();
        assert_eq!(memory, [2048, 128, 128, 128, 512]);
    }

    #[test]
    fn what_cannot_run_says_why() {
        let folder = std::env::temp_dir();
        let why: Vec<_> = read(TEXT).iter().map(|test| test.unfit(&folder).unwrap()).collect();
        for (why, part) in
            why.iter().zip(["is not built: ", "tests VMX", "needs kvm", "of i386 only", "host's KVM"])
        {
            assert!(why.contains(part), "{why}");
        }
        let image = folder.join(format!("levelhead-kut-{}", std::process::id()));
        std::fs::write(&image, "").unwrap();
        let file = image.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(Test { file, ..Test::default() }.unfit(&folder), None);
        std::fs::remove_file(image).unwrap();
    }
}
