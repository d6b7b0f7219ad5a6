//! Bundles: the one module the hypervisor boots with, made from a configuration file.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use levelhead::config::Partition;

use crate::build::Tree;
use crate::config::{self, LoadedConfig, Problems};
use crate::symbols::Guest;

/// How a line of a configuration file begins that tells this tool which devices QEMU needs for it. To everything
/// else it is a comment.
const QEMU_LINE: &str = "# qemu:";

/// The configuration file that `name` means: `demo` is `configs/demo.toml`, everything else is a path.
pub fn config_path(tree: &Tree, name: &str) -> PathBuf {
    if name.contains(['/', '.']) {
        return PathBuf::from(name);
    }
    tree.root.join("configs").join(name).with_extension("toml")
}

/// What is done about the project's own guests that a configuration names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    /// They are built first. A configuration that names none is judged without a build.
    Build,
    /// They have been built.
    Built,
}

/// Packs the configuration file at `path`, with the guest images it names, into a bundle.
///
/// # Errors
/// When the file, an image or a rule of the configuration says no.
pub fn pack(tree: &Tree, path: &Path, guests: Guests) -> Result<Vec<u8>> {
    config::pack(&load(tree, path, guests)?)
}

/// Reads and judges the configuration file at `path`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(tree: &Tree, path: &Path, guests: Guests) -> Result<LoadedConfig, Problems> {
    let built = OnceCell::new();
    let find = |name: &str| {
        if guests == Guests::Build {
            let build = || tree.build().map_err(|error| format!("{error:#}"));
            built.get_or_init(build).clone().map_err(|why| anyhow!("guest {name:?}: {why}"))?;
        }
        let path = tree.binary(name);
        ensure!(path.is_file(), "guest {name:?} is not built: there is no {}", tree.shown(&path));
        Ok(path)
    };
    config::load(path, config::Guests { names: &guest_names(tree), find: &find })
}

/// What the project's own guests are called; none if they cannot be listed.
fn guest_names(tree: &Tree) -> Vec<String> {
    let entries = fs::read_dir(tree.root.join("guests/src/bin")).into_iter().flatten().flatten();
    let sources =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ext| ext == "rs"));
    let mut names: Vec<_> =
        sources.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

/// The partitions of the configuration file at `path`, whose guests have been built, with the kernel of each.
///
/// # Errors
/// As [`load`].
pub fn guests(tree: &Tree, path: &Path) -> Result<Vec<Guest>, Problems> {
    let loaded = load(tree, path, Guests::Built)?;
    let guest = |partition: &Partition| {
        let kernel = loaded.images.get(usize::from(partition.kernel.0))?.path.clone();
        let cpu = *partition.cpus.first()?;
        Some(Guest { name: partition.name.clone(), cpu, kernel })
    };
    Ok(loaded.config.partitions.iter().filter_map(guest).collect())
}

/// Packs as [`pack`] and writes the bundle to `target/bundles/`.
///
/// # Errors
/// As [`pack`], and when the bundle cannot be written.
pub fn pack_to_scratch(tree: &Tree, path: &Path) -> Result<PathBuf> {
    let name = path.file_stem().with_context(|| format!("{} has no file name", path.display()))?;
    let bundle = tree.scratch("bundles")?.join(name).with_extension("bundle");
    let bytes = pack(tree, path, Guests::Built)?;
    write(&bundle, &bytes)?;
    Ok(bundle)
}

/// Writes `bytes` to `path`, naming it when that fails.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// The QEMU words that a configuration file asks for in its `# qemu:` lines.
///
/// # Errors
/// When the file cannot be read or such a line is empty.
pub fn qemu_words(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut words = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(rest) = line.strip_prefix(QEMU_LINE) {
            ensure!(
                !rest.trim().is_empty(),
                "{}:{}: no words after `{QEMU_LINE}`",
                path.display(),
                number + 1
            );
            words.extend(rest.split_whitespace().map(str::to_owned));
        }
    }
    Ok(words)
}

/// The text of a configuration with pieces of it exchanged, for cases that differ in a slot or a count.
///
/// # Errors
/// When a piece to be exchanged does not occur: the case would not test what it says.
pub fn exchange<'a>(
    text: &str,
    pieces: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<String> {
    let mut text = text.to_owned();
    for (old, new) in pieces {
        ensure!(text.contains(old.as_str()), "the configuration has no {old:?} to be replaced");
        text = text.replace(old.as_str(), new);
    }
    Ok(text)
}

/// Bytes that are no bundle: 64 KiB of a fixed xorshift sequence.
pub fn garbage() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::new();
    while bytes.len() < 64 << 10 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_exchanged_or_missed() {
        let pieces = [("00:03.0".to_owned(), "00:06.0".to_owned())];
        let pieces = || pieces.iter().map(|(old, new)| (old, new));
        assert_eq!(exchange("bdf = \"00:03.0\"", pieces()).unwrap(), "bdf = \"00:06.0\"");
        assert!(exchange("bdf = \"00:04.0\"", pieces()).is_err());
    }

    #[test]
    fn qemu_lines_are_read_and_nothing_else() {
        let path = std::env::temp_dir().join(format!("levelhead-words-{}.toml", std::process::id()));
        fs::write(&path, "# qemu: -device edu,addr=3\n# a word\n#qemu: no\nx = 1\n# qemu: -nic user\n")
            .unwrap();
        assert_eq!(qemu_words(&path).unwrap(), ["-device", "edu,addr=3", "-nic", "user"]);
        fs::write(&path, "# qemu:  \n").unwrap();
        assert!(qemu_words(&path).is_err());
        fs::remove_file(&path).unwrap();
    }
}
