//! An unmodified Debian kernel as a guest: its packages, its initial RAM disk, and whether everybody counted the same.
//!
//! Package names are looked up when they are needed: what `linux-image-cloud-amd64` depends on today is another kernel
//! tomorrow. Packages are downloaded and unpacked under `target/linux/`, never installed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::build::Tree;
use crate::log::{self, Books, Ledger};
use crate::process;
use crate::setup::{self, Missing};

/// The configuration that has interrupts counted.
pub const CONFIG: &str = "configs/linux.toml";
/// The one with a shell.
pub const SHELL: &str = "linux-shell";
/// Debian's kernel for virtual machines, whichever it is.
pub const KERNEL: &str = "linux-image-cloud-amd64";
/// One program that is all the others.
const BUSYBOX: &str = "busybox-static";
/// The guest's programs, each a source in guests/linux/.
const PROGRAMS: [&str; 3] = [EDU, SERIAL, "stamp"];
const EDU: &str = "edu";
const SERIAL: &str = "serial";
/// What the kernel has to load, in this order.
const MODULES: [&str; 2] = ["uio.ko", "uio_pci_generic.ko"];
/// No look-up takes this long.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether the configuration file at `path` is the one whose guest counts.
pub fn counts(tree: &Tree, path: &Path) -> bool {
    is_same(path, &tree.root.join(CONFIG))
}

/// Whether the configuration file at `path` is one that needs all this.
pub fn is_wanted(tree: &Tree, path: &Path) -> bool {
    counts(tree, path) || is_same(path, &tree.root.join("configs").join(SHELL).with_extension("toml"))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(one).is_some_and(|one| real(other) == Some(one))
}

/// Sees to it that `target/linux/PACKAGE/` holds `vmlinuz` and `initramfs.cpio` of the kernel that `package` is or depends
/// on. What is missing is downloaded if `install` allows it; the RAM disk is always made anew.
///
/// # Errors
/// [`Missing`] when packages are not there and cannot be had, with the command that gets them on behalf of `verb`. Others
/// when they are not what they should be, or the test program does not compile.
pub fn prepare(tree: &Tree, package: &str, install: bool, verb: &str) -> Result<()> {
    let folder = tree.scratch("linux")?.join(package);
    if !folder.is_dir() {
        let shown = tree.shown(&folder);
        if !install {
            return Err(Missing::new(format!(
                "the packages {package} and {BUSYBOX} are not unpacked in {shown}; get them with: cargo xtask {verb} --setup"
            ))
            .into());
        }
        let fresh = folder.with_file_name(format!("{package}.new"));
        fetch(package, &fresh).map_err(|error| {
            Missing::new(format!("the packages {package} and {BUSYBOX} cannot be had: {error:#}"))
        })?;
        fs::rename(&fresh, &folder).with_context(|| format!("cannot make {shown}"))?;
    }
    let sources = tree.root.join("guests/linux");
    let mut archive = Archive::default();
    for name in ["bin", "dev", "lib", "proc", "sys"] {
        archive.folder(name);
    }
    archive.file("init", &read(&sources.join("init"))?);
    for name in PROGRAMS {
        let program = folder.join(name);
        compile(&sources.join(name).with_extension("c"), &program)?;
        archive.file(&format!("bin/{name}"), &read(&program)?);
    }
    archive.file("bin/busybox", &read(&folder.join("busybox"))?);
    for name in MODULES {
        archive.file(&format!("lib/{name}"), &read(&folder.join(name))?);
    }
    crate::bundle::write(&folder.join("initramfs.cpio"), &archive.finish())
}

/// Whether each guest, its kernel and the hypervisor counted the same interrupts, by what they print.
///
/// A guest says how often it made `edu` interrupt; how often a serial port does is for its driver and the port to find out, so with
/// one there is no such number. Where devices share a line, uio tells of more than there was.
///
/// # Errors
/// Who counted what, or whose count is missing.
pub fn agree(console: &[String]) -> Result<(), String> {
    let mut partitions: BTreeMap<String, Vec<Books>> = BTreeMap::new();
    for line in console {
        if let Some(log::Line::Ledger(Ledger { partition, books, .. })) = log::read(line) {
            partitions.entry(partition).or_default().extend(books);
        }
    }
    if partitions.is_empty() {
        return Err("there is no ledger".to_owned());
    }
    partitions.iter().try_for_each(|(partition, books)| {
        let prefix = format!("[{partition}] ");
        let told: Vec<&str> = console.iter().filter_map(|line| line.strip_prefix(&prefix)).collect();
        agree_on(&told, books).map_err(|why| format!("partition {partition}: {why}"))
    })
}

/// The same for one guest, which printed `told`, and its `books`.
fn agree_on(told: &[&str], books: &[Books]) -> Result<(), String> {
    let number = |line: &&str, before: &str| -> Option<u64> {
        let (_, rest) = line.split_once(before)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let passes = |program: &str| {
        let start = format!("{program}: PASS ");
        told.iter().filter(move |line| line.contains(&start))
    };
    let sum = |program: &str, before: &str| -> Option<u64> {
        passes(program).map(|line| number(line, before)).reduce(|one, other| Some(one? + other?))?
    };
    let ledger = |count: fn(&Books) -> u64| Some(books.iter().map(count).sum());
    // What the opening of a port brings, /proc/interrupts does not count.
    let all = [
        sum(EDU, "/proc/interrupts counted "),
        sum(SERIAL, "/proc/interrupts counted "),
        sum(SERIAL, "opened "),
    ];
    let counted = all.iter().flatten().copied().reduce(|one, other| one + other);
    let mut counts = vec![
        ("in /proc/interrupts or by the opening of a port", counted),
        ("delivered to the guest", ledger(|books| books.delivered)),
        ("completed by the guest", ledger(|books| books.completed.eoi)),
    ];
    if passes(SERIAL).next().is_none() {
        counts.push(("raised by the guest", sum(EDU, "raised ")));
        counts.push(("accepted at the line", ledger(|books| books.accepted.wire)));
        let lines: BTreeSet<u32> = books.iter().map(|books| books.gsi).collect();
        if lines.len() == books.len() {
            counts.push(("told by uio", sum(EDU, "uio told ")));
        }
    }
    if counted.is_some() && counts.iter().all(|(_, count)| *count == counted) {
        return Ok(());
    }
    let told = counts.iter().map(|(who, count)| match count {
        Some(count) => format!("{count} {who}"),
        None => format!("none {who}"),
    });
    Err(format!("the counts differ: {}", told.collect::<Vec<_>>().join(", ")))
}

/// Downloads and unpacks what is needed into `folder`, which is made anew.
fn fetch(package: &str, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let packages = folder.join("packages");
    fs::create_dir_all(&packages).with_context(|| format!("cannot make {}", packages.display()))?;
    let mut names = kernel_packages(package)?;
    names.push(BUSYBOX.to_owned());
    eprintln!("setup: apt-get download {}", names.join(" "));
    perform(Command::new("apt-get").arg("download").args(&names).current_dir(&packages))?;

    let root = folder.join("root");
    for file in files_below(&packages)? {
        perform(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&root))?;
    }
    let files = files_below(&root)?;
    let one = |what: &str, is_it: &dyn Fn(&str) -> bool| {
        let name = |path: &&PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(is_it);
        files.iter().find(name).with_context(|| format!("none of {} has a {what}", names.join(", ")))
    };
    let kernel = one("vmlinuz", &is_kernel)?;
    fs::copy(kernel, folder.join("vmlinuz")).context("cannot copy the kernel")?;
    fs::copy(one("busybox", &|name| name == "busybox")?, folder.join("busybox"))
        .context("cannot copy busybox")?;
    for module in MODULES {
        let found = one(module, &|name| name.strip_suffix(".xz").unwrap_or(name) == module)?;
        let content = match found.extension() {
            Some(extension) if extension == "xz" => unpack(found)?,
            _ => read(found)?,
        };
        crate::bundle::write(&folder.join(module), &content)?;
    }
    fs::remove_dir_all(&root).context("cannot remove what was unpacked")
}

/// The packages that make up the kernel `package`: itself and what it depends on that is of the kernel's own.
fn kernel_packages(package: &str) -> Result<Vec<String>> {
    let mut names = vec![package.to_owned()];
    let mut next = 0;
    while let Some(name) = names.get(next) {
        let text = process::answer(Command::new("apt-cache").args(["depends", name]), "", LIMIT)
            .with_context(|| format!("apt-cache depends {name}"))?;
        let new: Vec<String> = dependencies(&text).filter(|name| !names.contains(name)).collect();
        names.extend(new);
        next += 1;
    }
    Ok(names)
}

/// What of the kernel's own stands in the answer of `apt-cache depends`.
fn dependencies(text: &str) -> impl Iterator<Item = String> + '_ {
    let kinds = ["linux-image-", "linux-binary-", "linux-modules-"];
    text.lines()
        .filter_map(|line| line.trim_start().trim_start_matches('|').strip_prefix("Depends: "))
        .filter(move |name| kinds.iter().any(|kind| name.starts_with(kind)))
        .map(str::to_owned)
}

/// Whether a package's file of that name is the kernel: in /boot it has a version behind it, among its modules none.
fn is_kernel(name: &str) -> bool {
    name == "vmlinuz" || name.starts_with("vmlinuz-")
}

/// All files below a folder, in the order of their paths.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Runs a command whose output belongs to people.
fn perform(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("cannot run {shown}"))?;
    ensure!(status.success(), "this command failed ({status}): {shown}");
    Ok(())
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
    let output = output.with_context(|| format!("cannot run xz for {}", path.display()))?;
    ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Compiles a program of the guest, static: its RAM disk has no libraries.
fn compile(source: &Path, program: &Path) -> Result<()> {
    let mut command = setup::c_compiler();
    command.args(["-static", "-O2", "-Wall", "-Wextra", "-o"]).arg(program).arg(source);
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{} does not compile:\n{}",
            source.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(())
}

/// A cpio archive in the "new ASCII" form, which the kernel unpacks (Linux, Documentation/driver-api/early-userspace/
/// buffer-format.rst). Names, modes and contents are all it says, so that the same files make the same archive.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    const FOLDER: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;

    fn folder(&mut self, name: &str) {
        self.entry(name, Self::FOLDER, &[]);
    }

    fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, Self::PROGRAM, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Inode, mode, user, group, links, time, length, device, device of the node, length of the name, checksum.
        let (inode, mode) = (self.entries, mode as usize);
        let fields = [inode, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        self.padded(&[name.as_bytes(), &[0]].concat());
        self.padded(content);
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_packages_are_found_among_the_dependencies() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n |Depends: linux-binary-7.2-x\n  \
                    Depends: kmod\n  Recommends: linux-image-extra\n  Depends: linux-base\n";
        let found: Vec<_> = dependencies(text).collect();
        assert_eq!(found, ["linux-image-6.1.0-56-cloud-amd64", "linux-binary-7.2-x"]);
    }

    #[test]
    fn a_kernel_is_found_wherever_debian_keeps_it() {
        assert!(is_kernel("vmlinuz-6.1.0-56-cloud-amd64") && is_kernel("vmlinuz"));
        assert!(!is_kernel("vmlinux") && !is_kernel("System.map-6.1.0-56-cloud-amd64"));
    }

    fn ledger(partition: &str, gsi: u32, wire: u32, delivered: u32) -> String {
        format!(
            "ledger 00:03.0 ({partition}) GSI {gsi}: accepted wire {wire} loopback 0 replay 0 = delivered {delivered} + \
             coalesced 0 + suppressed 0 + pending 0; delivered = eoi {delivered} + forced 0 + reset 0 + handover 0 + in \
             service 0: balanced; gate RTE mask, handler installed 1x, removed 0x"
        )
    }

    fn edu(partition: &str, raised: u32, uio: u32) -> String {
        format!(
            "[{partition}] edu: PASS raised {raised}, uio told {uio}, /proc/interrupts counted {raised}; a round took 9 us"
        )
    }

    #[test]
    fn counts_agree_or_each_is_told() {
        let lines = |uio, wire| vec![edu("linux", 1000, uio), ledger("linux", 23, wire, 1000)];
        assert_eq!(agree(&lines(1000, 1000)), Ok(()));
        let told = agree(&lines(1000, 1001)).unwrap_err();
        assert!(
            told.contains("1000 raised by the guest") && told.contains("1001 accepted at the line"),
            "{told}"
        );
        assert!(agree(&lines(999, 1000)).is_err());
        let silent = agree(&lines(1000, 1000)[1..]).unwrap_err();
        assert!(silent.contains("none raised by the guest"), "{silent}");
        assert_eq!(agree(&lines(1000, 1000)[..1]), Err("there is no ledger".to_owned()));
        assert!(agree(&[]).is_err());
    }

    #[test]
    fn counts_of_several_devices_are_added_up() {
        let lines = |second| vec![edu("a", 20, 30), ledger("a", 23, 10, 10), ledger("a", second, 10, 10)];
        assert_eq!(agree(&lines(23)), Ok(()), "uio tells of more where a line is shared");
        assert!(agree(&lines(22)).is_err());
        let port =
            "[a] serial: PASS 99 bytes sent to ttyS1 came back, opened 1 time, /proc/interrupts counted 6"
                .to_owned();
        let with_port = |delivered| {
            vec![edu("a", 10, 10), ledger("a", 23, 10, 10), port.clone(), ledger("a", 21, 8, delivered)]
        };
        assert_eq!(agree(&with_port(7)), Ok(()));
        let told = agree(&with_port(8)).unwrap_err();
        assert!(told.contains("17 in /proc/interrupts or by the opening of a port, 18 delivered"), "{told}");
    }

    #[test]
    fn each_partition_has_to_agree() {
        let lines = |second| {
            vec![edu("a", 5, 5), ledger("a", 23, 5, 5), edu("b", 9, 9), ledger("b", 23, second, second)]
        };
        assert_eq!(agree(&lines(9)), Ok(()));
        let told = agree(&lines(8)).unwrap_err();
        assert!(told.starts_with("partition b: the counts differ: 9 in /proc/interrupts"), "{told}");
    }

    #[test]
    fn an_archive_is_what_cpio_writes() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("bin/x", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let header = "07070100000001000041ed0000000000000000000000010000000000000000\
                      0000000000000000000000000000000000000004000000";
        assert!(bytes.starts_with(header.as_bytes()), "{}", String::from_utf8_lossy(&bytes));
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("bin/x\0") && text.contains("hello\0\0\0") && text.contains("TRAILER!!!\0"),
            "{text}"
        );
    }
}
