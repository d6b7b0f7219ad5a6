//! No standard library: library and hypervisor are compiled where there is none.
//!
//! `#![no_std]` alone proves little on a target that has one, since any dependency may bring it in. So the crates are
//! compiled against a system root that holds `core`, `alloc` and `compiler_builtins` and nothing else. What asks for `std`,
//! however deep, is not found there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::build::{Tree, cargo};
use crate::test::{Verdict, output, succeeds};

/// The one target.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What a freestanding program may rest on.
const CRATES: [&str; 3] = ["core", "alloc", "compiler_builtins"];
/// What is compiled: a name for reports, and cargo's words for it.
const SUBJECTS: [(&str, &[&str]); 3] = [
    ("the library alone", &["--lib", "--no-default-features"]),
    ("the library with `emulate`", &["--lib", "--no-default-features", "--features", "emulate"]),
    ("the hypervisor", &["--bin", "levelhead"]),
];
/// The control: it must compile with the real system root and must not with ours.
const CONTROL: &str = "pub fn now() -> std::time::Instant { std::time::Instant::now() }\n";
/// How the compiler says that there is no `std` (E0463).
const NO_STD_THERE: &str = "can't find crate for `std`";

/// Compiles every subject, and the control.
///
/// # Errors
/// When the system root cannot be made, or the control shows that the gate would miss a use of `std`.
pub fn check(tree: &Tree) -> Result<Vec<String>> {
    let folder = tree.scratch("gates/no-std")?;
    let sysroot = folder.join("sysroot");
    make_sysroot(tree, &sysroot)?;
    control(tree, &folder, &sysroot)?;
    let mut breaches = Vec::new();
    for (what, words) in SUBJECTS {
        // Nothing is linked and no code is needed: that every crate is found is the proof.
        let mut command = cargo();
        command.current_dir(&tree.root).args(["check", "--quiet", "--package", "levelhead"]).args(words);
        command.args(["--target", TARGET, "--target-dir"]).arg(folder.join("target"));
        command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", sysroot_flag(&sysroot));
        if let Verdict::Failed(lines) = succeeds(&mut command) {
            breaches.push(format!("{what} does not compile where there is no standard library:"));
            breaches.extend(lines);
        }
    }
    Ok(breaches)
}

fn sysroot_flag(sysroot: &Path) -> String {
    format!("--sysroot={}", sysroot.display())
}

fn rustc(tree: &Tree) -> Command {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(&tree.root);
    command
}

/// Fills `sysroot` with links to the toolchain's own files, anew each time, so that another toolchain leaves nothing.
fn make_sysroot(tree: &Tree, sysroot: &Path) -> Result<()> {
    let printed = output(rustc(tree).args(["--print", "target-libdir", "--target", TARGET]));
    let printed = match printed.as_deref() {
        Ok([folder]) => PathBuf::from(folder),
        other => bail!("rustc does not say where its libraries are: {other:?}"),
    };
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    if sysroot.exists() {
        fs::remove_dir_all(sysroot).with_context(|| format!("cannot remove {}", sysroot.display()))?;
    }
    fs::create_dir_all(&libraries).with_context(|| format!("cannot make {}", libraries.display()))?;
    let mut linked = [0_u32; CRATES.len()];
    for entry in fs::read_dir(&printed).with_context(|| format!("cannot read {}", printed.display()))? {
        let name = entry?.file_name();
        let Some(which) = name.to_str().and_then(crate_of) else { continue };
        let link = libraries.join(&name);
        std::os::unix::fs::symlink(printed.join(&name), &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
        linked[which] += 1;
    }
    ensure!(!linked.contains(&0), "{} lacks one of {}", printed.display(), CRATES.join(", "));
    Ok(())
}

/// Which of [`CRATES`] a file such as `libcore-0123456789abcdef.rlib` belongs to.
fn crate_of(file: &str) -> Option<usize> {
    let stem = file.strip_suffix(".rlib").or_else(|| file.strip_suffix(".rmeta"))?;
    let (name, _) = stem.strip_prefix("lib")?.rsplit_once('-')?;
    CRATES.iter().position(|known| *known == name)
}

/// Shows that a use of `std` is caught, and that it is caught for the right reason.
fn control(tree: &Tree, folder: &Path, sysroot: &Path) -> Result<()> {
    let source = folder.join("control.rs");
    fs::write(&source, CONTROL).with_context(|| format!("cannot write {}", source.display()))?;
    let compile = |extra: &[String]| {
        let mut command = rustc(tree);
        command.args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata", "--target", TARGET]);
        output(command.arg("--out-dir").arg(folder).args(extra).arg(&source))
    };
    if let Err(lines) = compile(&[]) {
        bail!("the control does not compile at all:\n{}", lines.join("\n"));
    }
    match compile(&[sysroot_flag(sysroot)]) {
        Ok(_) => {
            bail!("the control uses `std` and compiles in {}: this gate proves nothing", sysroot.display())
        }
        Err(lines) => ensure!(
            lines.iter().any(|line| line.contains(NO_STD_THERE)),
            "the control fails, but not for want of `std`:\n{}",
            lines.join("\n")
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_crates_go_into_the_system_root() {
        assert_eq!(crate_of("libcore-0123456789abcdef.rlib"), Some(0));
        assert_eq!(crate_of("liballoc-0123456789abcdef.rmeta"), Some(1));
        assert_eq!(crate_of("libcompiler_builtins-0123456789abcdef.rlib"), Some(2));
        for other in ["libstd-0123456789abcdef.rlib", "libstd-0123.so", "libproc_macro-01.rlib", "core.rlib"]
        {
            assert_eq!(crate_of(other), None, "{other}");
        }
    }
}
