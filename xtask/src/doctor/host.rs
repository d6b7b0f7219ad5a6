//! The toolchain and the programs around it: what `rustc`, `cargo`, the C compiler, `df` and `du` say.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Cure, Finding, Need, Section};
use crate::build::Tree;
use crate::process::{BINDER, answer};
use crate::setup::{self, Installer};

/// The one host and target.
const HOST: &str = "x86_64-unknown-linux-gnu";
/// No program asked here takes this long.
const LIMIT: Duration = Duration::from_secs(30);
/// The crate that builds on stable by a variable (docs/adr/0003).
const LICENSED: &str = "acpi";
/// Does what that crate does: compiles where the variable is in force, and nowhere else on stable.
const LICENSED_SOURCE: &str = "#![no_std]\n#![feature(allocator_api)]\n";
/// The room that `target/` should have, in KiB. It took 3.7 GiB in a fresh clone when the demonstration had run, all tests of the
/// host and all models had been built, and clippy, the gates and a QEMU case of each kind of build had passed; what
/// `cargo xtask gdb` builds and the Debian kernel are 0.2 GiB more. The rest is for incremental compilation, 1.7 GiB of these,
/// which grows with what is changed.
const TARGET_KIB: u64 = 5 << 20;

/// Everything but QEMU.
pub(super) fn findings(tree: &Tree, installer: Installer) -> Vec<Finding> {
    let mut findings = toolchain(tree);
    findings.extend(tools(tree, installer));
    findings
}

fn toolchain(tree: &Tree) -> Vec<Finding> {
    let finding = |name, need, purpose| Finding::new(Section::Toolchain, name, need, purpose);
    let manifest = fs::read_to_string(tree.root.join("Cargo.toml")).unwrap_or_default();
    let about = ask(rustc(tree).arg("-vV"), "");
    let mut findings = compiler(
        about.as_deref().map_err(String::as_str),
        &value(&manifest, &["workspace", "package", "rust-version"]).unwrap_or_default(),
    );
    for (subcommand, package, purpose) in
        [("fmt", "rustfmt", "the test host/fmt"), ("clippy", "clippy", "the test host/clippy")]
    {
        let version = setup::component_version(subcommand).map_err(|error| format!("{error:#}"));
        let cure = Cure::Command(format!("rustup component add {package}"));
        findings.push(finding(package, Need::Needed, purpose).judged(version, cure));
    }
    findings.push(
        finding("linker", Need::Needed, "building")
            .judged(link(tree).map(|()| "links a program"), Cure::Package("gcc")),
    );
    findings.push(bootstrap(tree));
    let variables = ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS"].map(|name| (name, env::var(name).ok()));
    findings.push(flags(&variables.each_ref().map(|(name, value)| (*name, value.as_deref()))));
    findings
}

/// The compiler's version, at least `wanted`, and its host. `about` is what `rustc -vV` prints.
fn compiler(about: Result<&str, &str>, wanted: &str) -> Vec<Finding> {
    let field = |name: &str| {
        let lines = about.map_err(str::to_owned)?.lines();
        let value = lines.filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name);
        value.map(|(_, value)| value.trim().to_owned()).ok_or_else(|| format!("rustc tells no {name}"))
    };
    let version = field("release").and_then(|version| {
        let [is, least] = [&*version, wanted].map(setup::parse_major_minor);
        if is >= least && is.is_some() {
            Ok(version)
        } else {
            Err(format!("{version}, and Cargo.toml asks for {wanted}"))
        }
    });
    let host =
        field("host").and_then(|host| if host == HOST { Ok(host) } else { Err(format!("it is {host}")) });
    let finding = |name, purpose| Finding::new(Section::Toolchain, name, Need::Needed, purpose);
    let update = Cure::Command("rustup update stable".to_owned());
    let advice = Cure::Advice(format!("work on x86-64 Linux with glibc, with a toolchain for {HOST}"));
    vec![
        finding("rustc", "building").judged(version, update),
        finding("host target", "building").judged(host, advice),
    ]
}

/// Whether the crate that needs it gets its licence: asks the compiler, with the variable as cargo sets it.
fn bootstrap(tree: &Tree) -> Finding {
    const NAME: &str = "RUSTC_BOOTSTRAP";
    let text = fs::read_to_string(tree.root.join(".cargo/config.toml")).unwrap_or_default();
    let effective = effective(env::var(NAME).ok(), value(&text, &["env", NAME]));
    let mut command = rustc(tree);
    command.env_remove(NAME);
    if let Some(value) = &effective {
        command.env(NAME, value);
    }
    command.args(["--crate-name", LICENSED, "--crate-type=lib", "--edition=2024", "--emit=metadata"]);
    let compiled = probe(tree, &mut command, LICENSED_SOURCE);
    let is = effective.map_or_else(|| "unset".to_owned(), |value| format!("={value}"));
    let remedy = match env::var_os(NAME) {
        Some(_) => format!("unset {NAME}"),
        None => format!("keep {NAME} = \"{LICENSED}\" in .cargo/config.toml, and start by `cargo xtask`"),
    };
    Finding::new(Section::Toolchain, NAME, Need::Needed, "building the acpi crate").judged(
        compiled.map(|()| format!("{is}, in force")).map_err(|error| format!("{is}: {error}")),
        Cure::Advice(remedy),
    )
}

/// What cargo gives the compiler: a variable of the environment goes before one of its configuration. (Under
/// `cargo xtask` both are the same, unless the environment had another value before.)
fn effective(environment: Option<String>, configured: Option<String>) -> Option<String> {
    environment.or(configured)
}

/// Whether the tree's own flags are in force. Cargo takes the first of these variables that says something instead.
fn flags(variables: &[(&str, Option<&str>)]) -> Finding {
    let finding = Finding::new(Section::Toolchain, "compiler flags", Need::Useful, "whole backtraces");
    let set =
        variables.iter().find_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
    match set {
        None => finding.present("those of .cargo/config.toml"),
        Some((name, value)) => {
            let value = value.replace('\u{1f}', " ");
            let wrong = format!("{name}=\"{value}\" replaces those of .cargo/config.toml");
            finding.missing(wrong, Cure::Command(format!("unset {name}")))
        }
    }
}

fn tools(tree: &Tree, installer: Installer) -> Vec<Finding> {
    let finding = |name, need, purpose| Finding::new(Section::HostTools, name, need, purpose);
    let mut command = setup::c_compiler();
    let compiler = command.get_program().display().to_string();
    command.args(["-m32", "-march=i686", "-ffreestanding", "-nostdlib", "-static", "-no-pie", "-x", "c"]);
    let compiled = probe(tree, &mut command, "void _start(void) { for (;;) { } }\n");
    let gdb = ask(Command::new("gdb").arg("--version"), "");
    vec![
        finding("C compiler", Need::Needed, "QEMU cases with a kernel in C").judged(
            compiled.map(|()| format!("{compiler}, for 32-bit freestanding code too")),
            Cure::Package("gcc"),
        ),
        finding("gdb", Need::Useful, "`cargo xtask gdb` and its QEMU cases")
            .judged(gdb.map(|text| first_line(&text)), Cure::Package(setup::GDB.package)),
        finding("iasl", Need::Useful, "a test of the guests' ACPI tables").judged(
            // Its first line is empty, the second its publisher.
            ask(Command::new("iasl").arg("-v"), "").map(|text| {
                text.lines().find(|line| line.contains("version")).unwrap_or_default().to_owned()
            }),
            Cure::Package(setup::IASL.package),
        ),
        binder(setup::find(BINDER)),
        packages(installer),
        disk(tree),
    ]
}

/// What ends a program with whoever started it, and where it is.
fn binder(found: Option<PathBuf>) -> Finding {
    let purpose = "ending QEMU when xtask itself is killed (SIGKILL)";
    let found = found.map(|path| path.display().to_string()).ok_or("not found");
    Finding::new(Section::HostTools, BINDER, Need::Useful, purpose).judged(found, Cure::Package("util-linux"))
}

/// Whether `--setup` could install something.
fn packages(Installer { apt, root, sudo }: Installer) -> Finding {
    let finding = Finding::new(Section::HostTools, "apt-get", Need::Useful, "--setup");
    let advice = |text: &str| Cure::Advice(text.to_owned());
    match (apt, root, sudo) {
        (false, _, _) => {
            finding.missing("not found", advice("install QEMU and gdb by this system's own means"))
        }
        (true, true, _) => finding.present("as root"),
        (true, false, true) => finding.present("by sudo"),
        (true, false, false) => {
            finding.missing("neither root nor sudo", advice("be root to install packages"))
        }
    }
}

fn disk(tree: &Tree) -> Finding {
    let finding = Finding::new(Section::HostTools, "disk space", Need::Needed, "target/");
    // Before the first build there is no such folder.
    let place = if tree.target.is_dir() { &tree.target } else { &tree.root };
    let taken = if tree.target.is_dir() { du(&tree.target) } else { Some(0) };
    let free = ask(Command::new("df").arg("-Pk").arg(place), "").ok().and_then(|text| free_kib(&text));
    match (free, taken) {
        (Some(free), Some(taken)) => room(finding, free, taken),
        _ => finding.unknown("df or du does not tell"),
    }
}

/// Judges the free space by what is still to come, in KiB.
fn room(finding: Finding, free: u64, taken: u64) -> Finding {
    let mib = |kib: u64| kib >> 10;
    let found = format!("{} MiB free, {} MiB taken", mib(free), mib(taken));
    let short = TARGET_KIB.saturating_sub(taken).saturating_sub(free);
    if short == 0 {
        return finding.present(found);
    }
    let advice =
        format!("make room for {} MiB, or name another place by CARGO_TARGET_DIR", mib(short).max(1));
    finding.missing(found, Cure::Advice(advice))
}

/// The free space in what `df -Pk` prints, in KiB.
fn free_kib(text: &str) -> Option<u64> {
    text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()
}

/// What a folder takes, in KiB. A file with two names counts once.
fn du(folder: &Path) -> Option<u64> {
    ask(Command::new("du").arg("-sk").arg(folder), "").ok()?.split_whitespace().next()?.parse().ok()
}

/// The compiler that cargo takes in the tree.
fn rustc(tree: &Tree) -> Command {
    let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(&tree.root);
    command
}

/// Whether a program can be linked as the tree's own are.
fn link(tree: &Tree) -> Result<(), String> {
    probe(tree, rustc(tree).args(["--crate-name=probe", "--edition=2024"]), "fn main() {}\n")
}

/// Has `compiler` compile `source`, from its standard input to a file that is thrown away.
fn probe(tree: &Tree, compiler: &mut Command, source: &'static str) -> Result<(), String> {
    let folder = tree.scratch("doctor").map_err(|error| format!("{error:#}"))?;
    let product = folder.join(format!("probe-{}", std::process::id()));
    let result = ask(compiler.arg("-o").arg(&product).arg("-"), source);
    // There is none after a failure.
    let _ = fs::remove_file(&product);
    result.map(|_| ())
}

fn ask(command: &mut Command, input: &'static str) -> Result<String, String> {
    answer(command, input, LIMIT).map_err(|error| format!("{error:#}"))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The string at that place of a TOML document.
fn value(text: &str, keys: &[&str]) -> Option<String> {
    let mut value = &toml::Value::Table(text.parse().ok()?);
    for key in keys {
        value = value.get(key)?;
    }
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    const ABOUT: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\n";

    fn states(findings: &[Finding]) -> Vec<(State, &str)> {
        findings.iter().map(|finding| (finding.state, finding.found.as_str())).collect()
    }

    #[test]
    fn the_compiler_is_as_new_as_cargo_toml_asks_and_for_the_one_host() {
        let good = [(State::Present, "1.95.0"), (State::Present, HOST)];
        assert_eq!(states(&compiler(Ok(ABOUT), "1.95")), good);
        assert_eq!(
            states(&compiler(Ok(&ABOUT.replace("1.95.0", "1.100.0-nightly")), "1.95"))[0].0,
            State::Present
        );
        let old = compiler(Ok(&ABOUT.replace("1.95.0", "1.85.1").replace("-gnu", "-musl")), "1.95");
        assert_eq!(
            states(&old),
            [
                (State::Missing, "1.85.1, and Cargo.toml asks for 1.95"),
                (State::Missing, "it is x86_64-unknown-linux-musl"),
            ]
        );
        let none = compiler(Err("cannot start rustc"), "1.95");
        assert_eq!(states(&none), [(State::Missing, "cannot start rustc"); 2]);
        assert_eq!(states(&compiler(Ok("what?"), "1.95"))[0], (State::Missing, "rustc tells no release"));
    }

    #[test]
    fn the_tree_asks_for_what_is_looked_for() {
        let version = value(include_str!("../../../Cargo.toml"), &["workspace", "package", "rust-version"]);
        assert!(setup::parse_major_minor(&version.unwrap()).is_some());
        let bootstrap = value(include_str!("../../../.cargo/config.toml"), &["env", "RUSTC_BOOTSTRAP"]);
        assert_eq!(bootstrap.as_deref(), Some(LICENSED));
    }

    #[test]
    fn the_environment_goes_before_the_configuration() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(effective(some("0"), some("acpi")), some("0"));
        assert_eq!(effective(None, some("acpi")), some("acpi"));
        assert_eq!(effective(None, None), None);
    }

    #[test]
    fn a_variable_that_says_something_replaces_the_flags() {
        assert_eq!(flags(&[("A", None), ("RUSTFLAGS", Some(""))]).state, State::Present);
        let replaced = flags(&[("A", None), ("RUSTFLAGS", Some("-C\u{1f}opt-level=0"))]);
        assert_eq!(replaced.state, State::Missing);
        assert!(replaced.found.starts_with("RUSTFLAGS=\"-C opt-level=0\" replaces"), "{}", replaced.found);
        assert_eq!(replaced.cure, Some(Cure::Command("unset RUSTFLAGS".into())));
    }

    #[test]
    fn what_is_built_already_needs_no_room() {
        let text = "Filesystem     1024-blocks     Used Available Capacity Mounted on\n/dev/vda 264212084 52409128  42876760      56% /\n";
        assert_eq!(free_kib(text), Some(42_876_760));
        assert_eq!(free_kib("df: no such file\n"), None);
        let judge = |free, taken| {
            room(Finding::new(Section::HostTools, "disk", Need::Needed, "target/"), free, taken)
        };
        assert_eq!(judge(TARGET_KIB, 0).state, State::Present);
        assert_eq!(judge(0, TARGET_KIB).state, State::Present);
        let short = judge(TARGET_KIB / 2, TARGET_KIB / 2 - 1);
        assert_eq!(short.state, State::Missing);
        assert!(matches!(short.cure, Some(Cure::Advice(text)) if text.starts_with("make room for 1 MiB")));
    }

    #[test]
    fn without_setpriv_a_killed_xtask_may_leave_a_qemu_behind() {
        assert_eq!(binder(Some("/usr/bin/setpriv".into())).found, "/usr/bin/setpriv");
        let missing = binder(None);
        assert_eq!((missing.state, missing.need), (State::Missing, Need::Useful));
        assert_eq!(missing.cure, Some(Cure::Package("util-linux")));
    }

    #[test]
    fn packages_need_apt_get_and_the_right_to_use_it() {
        let state = |apt, root, sudo| packages(Installer { apt, root, sudo }).state;
        assert_eq!(state(true, true, false), State::Present);
        assert_eq!(state(true, false, true), State::Present);
        assert_eq!(state(true, false, false), State::Missing);
        assert_eq!(state(false, true, true), State::Missing);
    }
}
