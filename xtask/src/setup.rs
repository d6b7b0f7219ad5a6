//! What the host must have beside Rust and a C compiler: QEMU, for `test` the rustfmt and clippy components, for `gdb` gdb.
//!
//! Nothing is installed unless `--setup` was given, and the package manager's sources are never touched.

use std::env;
use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::build::cargo;
use crate::process;
use crate::qemu::PROGRAM;

/// The environment variable that names another QEMU binary.
pub const QEMU_VARIABLE: &str = "LEVELHEAD_QEMU";
/// No program takes this long to tell its version.
pub const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// Which QEMU to run: `wanted` (a path), else what [`QEMU_VARIABLE`] names, else the one in `PATH`, which is
/// installed if it is missing and `install` allows it.
///
/// # Errors
/// [`Missing`] when there is none, with the command that installs it: `cargo xtask <verb> --setup`. Others
/// when it was named wrongly or cannot be installed.
pub fn qemu(wanted: Option<&Path>, install: bool, verb: &str) -> Result<PathBuf> {
    if let Some(path) = wanted {
        ensure!(is_program(path), "--qemu names {}, which is not an executable file", path.display());
        return Ok(path.to_owned());
    }
    if let Some(path) = env::var_os(QEMU_VARIABLE).map(PathBuf::from) {
        ensure!(
            is_program(&path),
            "{QEMU_VARIABLE} names {}, which is not an executable file",
            path.display()
        );
        return Ok(path);
    }
    QEMU.find(install, verb)
}

/// The gdb in `PATH`, which is installed if it is missing and `install` allows it.
///
/// # Errors
/// As for [`qemu`].
pub fn gdb(install: bool, verb: &str) -> Result<PathBuf> {
    GDB.find(install, verb)
}

/// The ACPI compiler in `PATH`, which is installed if it is missing and `install` allows it.
///
/// # Errors
/// As for [`qemu`].
pub fn iasl(install: bool, verb: &str) -> Result<PathBuf> {
    IASL.find(install, verb)
}

/// A program that a Debian package brings.
#[derive(Debug)]
pub struct Packaged {
    /// What messages call it.
    title: &'static str,
    /// What it is looked up by.
    program: &'static str,
    /// The package.
    pub package: &'static str,
}

/// The package's dependencies bring SeaBIOS and the PVH option ROM along.
pub const QEMU: Packaged = Packaged { title: "QEMU", program: PROGRAM, package: "qemu-system-x86" };
/// The debugger.
pub const GDB: Packaged = Packaged { title: "gdb", program: "gdb", package: "gdb" };
/// ACPICA's compiler and disassembler.
pub const IASL: Packaged = Packaged { title: "iasl", program: "iasl", package: "acpica-tools" };

impl Packaged {
    /// Where it is in `PATH`; it is installed if it is not there and `install` allows it.
    fn find(&self, install: bool, verb: &str) -> Result<PathBuf> {
        let Self { program, package, .. } = self;
        if let Some(path) = find(program) {
            return Ok(path);
        }
        if !install {
            return Err(Missing(self.missing(verb)).into());
        }
        self.install()?;
        find(program).with_context(|| format!("{package} is installed, but {program} is still not in PATH"))
    }

    fn missing(&self, verb: &str) -> String {
        let Self { title, program, package } = self;
        let mut message = format!("{title} is missing; install it with: cargo xtask {verb} --setup");
        if find("apt-get").is_some() {
            let _ = write!(message, "  (or: apt-get install {package})");
        } else {
            let _ =
                write!(message, "  (which needs apt-get; else install {program} by this system's own means)");
        }
        message.push_str("; what else may be missing: cargo xtask doctor");
        message
    }

    /// Installs the package with what it needs, without recommendations and without questions.
    fn install(&self) -> Result<()> {
        let Self { program, package, .. } = self;
        let installer = Installer::find();
        ensure!(
            installer.apt,
            "--setup installs by apt-get, which this system lacks; install {program} by its own means"
        );
        let root = installer.root;
        ensure!(
            root || installer.sudo,
            "--setup needs to be root to install {package}, and there is no sudo; {}",
            installer.line(&[package])
        );
        // One source of several that cannot be reached is no reason to give up: the package may come from another.
        if let Err(error) = apt_get(root, &["update"]) {
            eprintln!("setup: {error:#}; going on with the package lists there are");
        }
        apt_get(root, &["install", "--yes", "--no-install-recommends", package])
    }
}

/// A program, or a package, is not on this machine: the message with the command to type.
#[derive(Clone, Debug)]
pub struct Missing(String);

impl Missing {
    /// That message.
    pub fn new(message: String) -> Self {
        Self(message)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// The version of the QEMU at `path`, as (major, minor).
///
/// # Errors
/// When it does not run or does not tell.
pub fn qemu_version(path: &Path) -> Result<(u32, u32)> {
    let text = process::answer(Command::new(path).arg("--version"), "", PROBE_LIMIT);
    let text = text.with_context(|| format!("{} --version", path.display()))?;
    let version = parse_version(&text).and_then(parse_major_minor);
    version.with_context(|| format!("{} does not tell its version: is it a QEMU?", path.display()))
}

/// The version in what `qemu --version` prints.
pub fn parse_version(text: &str) -> Option<&str> {
    let (_, after) = text.strip_prefix("QEMU")?.split_once("version ")?;
    after.split_whitespace().next()
}

/// The first QEMU whose emulated CPU has an x2APIC.
pub const X2APIC_QEMU: (u32, u32) = (9, 0);

/// The first QEMU whose monitor calls one instruction per translated block `one-insn-per-tb`. Older ones say `singlestep`.
pub const ONE_INSN_QEMU: (u32, u32) = (8, 1);

/// Reads `7.2`, also with more behind it (`7.2.22`).
pub fn parse_major_minor(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some((major, minor))
}

/// Checks for a cargo component (`fmt`, `clippy`), installing it by rustup if it is missing and `install` allows.
///
/// # Errors
/// When it is missing: with the command that installs it.
pub fn component(subcommand: &str, package: &str, install: bool) -> Result<()> {
    let present = || component_version(subcommand).is_ok();
    if present() {
        return Ok(());
    }
    if install && find("rustup").is_some() {
        eprintln!("setup: rustup component add {package}");
        let status = Command::new("rustup").args(["component", "add", package]).status()?;
        if status.success() && present() {
            return Ok(());
        }
        bail!("`rustup component add {package}` did not bring `cargo {subcommand}`");
    }
    bail!(
        "`cargo {subcommand}` is missing; install it with: rustup component add {package}; what else may be missing: cargo xtask doctor"
    )
}

/// The version a cargo component tells.
///
/// # Errors
/// When it is missing.
pub fn component_version(subcommand: &str) -> Result<String> {
    let text = process::answer(cargo().args([subcommand, "--version"]), "", PROBE_LIMIT)?;
    Ok(text.trim_end().to_owned())
}

/// The C compiler, which compiles one kernel for the QEMU cases.
pub fn c_compiler() -> Command {
    Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
}

fn apt_get(root: bool, words: &[&str]) -> Result<()> {
    let mut line = Vec::new();
    if !root {
        line.push("sudo");
        if !std::io::stdin().is_terminal() {
            line.push("--non-interactive");
        }
    }
    line.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    line.extend(words);
    let shown = line.join(" ");
    eprintln!("setup: {shown}");
    let mut words = line.into_iter();
    let program = words.next().context("no command")?;
    // What apt-get says belongs to people: standard output stays free for results.
    let status = Command::new(program).args(words).stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("cannot run: {shown}"))?;
    ensure!(status.success(), "this command failed ({status}): {shown}");
    Ok(())
}

/// How packages are installed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installer {
    /// There is `apt-get`.
    pub apt: bool,
    /// This is root.
    pub root: bool,
    /// There is `sudo`.
    pub sudo: bool,
}

impl Installer {
    /// This machine's.
    pub fn find() -> Self {
        let user = process::answer(Command::new("id").arg("-u"), "", PROBE_LIMIT);
        let root = user.is_ok_and(|user| user.trim() == "0");
        Self { apt: find("apt-get").is_some(), root, sudo: find("sudo").is_some() }
    }

    /// Whether `--setup` can install a package.
    pub fn works(self) -> bool {
        self.apt && (self.root || self.sudo)
    }

    /// What a person types, or has somebody type, to install these packages.
    pub fn line(self, packages: &[&str]) -> String {
        let packages = packages.join(" ");
        match (self.apt, self.root, self.sudo) {
            (false, _, _) => format!("install {packages} (Debian's name) by this system's own means"),
            (true, true, _) => format!("apt-get install {packages}"),
            (true, false, true) => format!("sudo apt-get install {packages}"),
            (true, false, false) => format!("as root: apt-get install {packages}"),
        }
    }
}

/// The first executable file of that name in `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| is_program(path))
}

pub fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_qemu_prints_them() {
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"),
            Some("7.2.22")
        );
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (v10.0.2)"), Some("10.0.2"));
        assert_eq!(parse_version("qemu"), None);
        assert_eq!(parse_version("true (GNU coreutils) version 9.1"), None);
        assert_eq!(parse_major_minor("7.2.22"), Some((7, 2)));
        assert_eq!(parse_major_minor("9.0"), Some((9, 0)));
        assert_eq!(parse_major_minor("nine"), None);
    }

    #[test]
    fn the_command_to_type_is_named() {
        let message = QEMU.missing("run");
        assert!(
            message.starts_with("QEMU is missing; install it with: cargo xtask run --setup"),
            "{message}"
        );
    }

    #[test]
    fn a_qemu_that_is_none_is_refused_by_name() {
        let error = qemu(Some(Path::new("/nonexistent/qemu")), true, "run").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/qemu"), "{error}");
        assert!(qemu(Some(Path::new("/etc/passwd")), true, "run").is_err(), "not executable");
    }
}
