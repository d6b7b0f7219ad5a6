//! Bundles: the one module the hypervisor boots with, made from a configuration file.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use levelhead::config::Partition;
use serde::Deserialize;

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
    let text = config::text_of(path)?;
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

/// Length of a bundle's header before its sections; the layout is in the library's `config::bundle`.
const HEADER_BYTES: usize = 24;
/// Length of a section's entry.
const SECTION_BYTES: usize = 128;

/// What may have happened to a bundle on its way. The checksums are put right where damage alone would be found by them.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    /// Half of it is missing.
    Truncated,
    /// Its last page is missing.
    LastPageMissing,
    /// A page follows it.
    PageAppended,
    /// A bit of the header is another.
    HeaderBit,
    /// A bit of the configuration is another.
    ConfigurationBit,
    /// A bit of an image is another.
    ImageBit,
    /// It is of a later revision, with the right checksum.
    Revision,
    /// It says to have more sections than any bundle may.
    SectionCount,
    /// Its configuration says to have as many partitions as a number can say, with the right checksums.
    PartitionCount,
    /// The first partition's memory is 4097 bytes, with the right checksums.
    Rules,
    /// The first image is zeros, with the right checksums.
    Kernel,
}

impl Damage {
    /// `bundle` with the damage done.
    ///
    /// # Errors
    /// When `bundle` is too short to be one.
    pub fn done_to(self, mut bundle: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Truncated => bundle.truncate(bundle.len() / 2),
            Self::LastPageMissing => bundle.truncate(bundle.len().saturating_sub(4096)),
            Self::PageAppended => bundle.resize(bundle.len() + 4096, 0),
            Self::HeaderBit => *byte(&mut bundle, HEADER_BYTES + 8)? ^= 1,
            Self::ConfigurationBit => {
                let (start, _) = section(&bundle, 0)?;
                *byte(&mut bundle, start)? ^= 0x10;
            }
            Self::ImageBit => {
                let (start, length) = section(&bundle, 1)?;
                *byte(&mut bundle, start + length / 2)? ^= 0x80;
            }
            Self::Revision => {
                *byte(&mut bundle, 8)? += 1;
                seal_header(&mut bundle)?;
            }
            Self::SectionCount => {
                put(&mut bundle, 12, &u32::MAX.to_le_bytes())?;
            }
            Self::PartitionCount => {
                let (start, _) = section(&bundle, 0)?;
                put(&mut bundle, start, &u64::MAX.to_le_bytes())?;
                seal_section(&mut bundle, 0)?;
            }
            Self::Rules => {
                // The count of partitions, the first one's name and CPUs with their lengths, then its memory.
                let (start, _) = section(&bundle, 0)?;
                let name = usize::try_from(u64_at(&bundle, start + 8)?)?;
                let cpus = usize::try_from(u64_at(&bundle, start + 16 + name)?)?;
                put(&mut bundle, start + 24 + name + cpus, &4097_u64.to_le_bytes())?;
                seal_section(&mut bundle, 0)?;
            }
            Self::Kernel => {
                let (start, length) = section(&bundle, 1)?;
                bundle.get_mut(start..start + length).context("no image")?.fill(0);
                seal_section(&mut bundle, 1)?;
            }
        }
        Ok(bundle)
    }
}

/// Where a section's payload is, and its length.
fn section(bundle: &[u8], section: usize) -> Result<(usize, usize)> {
    let entry = HEADER_BYTES + section * SECTION_BYTES;
    Ok((usize::try_from(u64_at(bundle, entry + 8)?)?, usize::try_from(u64_at(bundle, entry + 16)?)?))
}

/// Puts a section's checksum right, and the header's.
fn seal_section(bundle: &mut [u8], index: usize) -> Result<()> {
    let (start, length) = section(bundle, index)?;
    let sum = crc32fast::hash(bundle.get(start..start + length).context("a section ends behind the file")?);
    put(bundle, HEADER_BYTES + index * SECTION_BYTES + 4, &sum.to_le_bytes())?;
    seal_header(bundle)
}

/// Puts the header's checksum right.
fn seal_header(bundle: &mut [u8]) -> Result<()> {
    let count = bundle.get(12..).and_then(<[u8]>::first_chunk).context("no header")?;
    let end = HEADER_BYTES + u32::from_le_bytes(*count) as usize * SECTION_BYTES;
    let sum = crc32fast::hash(bundle.get(..end).context("the header ends behind the file")?);
    put(bundle, end, &sum.to_le_bytes())
}

fn byte(bundle: &mut [u8], at: usize) -> Result<&mut u8> {
    bundle.get_mut(at).context("the bundle is too short")
}

fn put(bundle: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    bundle.get_mut(at..at + bytes.len()).context("the bundle is too short")?.copy_from_slice(bytes);
    Ok(())
}

fn u64_at(bundle: &[u8], at: usize) -> Result<u64> {
    let bytes = bundle.get(at..).and_then(<[u8]>::first_chunk).context("the bundle is too short")?;
    Ok(u64::from_le_bytes(*bytes))
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
    use levelhead::config::{self, Config, Image, ImageIndex, Partition};
    use levelhead::irq::CpuId;

    use super::*;

    #[test]
    fn damage_is_what_it_says_and_found() {
        let config = Config {
            partitions: vec![Partition {
                name: "a".to_owned(),
                cpus: vec![CpuId(0)],
                memory_bytes: 32 << 20,
                memory_at: None,
                kernel: ImageIndex(0),
                modules: Vec::new(),
                cmdline: String::new(),
                console: levelhead::config::Console::Lines,
                debug_port: None,
                exit_port: None,
                test_device: false,
                user_hypercalls: false,
                control: false,
                restart: levelhead::policy::RestartPolicy::NEVER,
                devices: Vec::new(),
            }],
        };
        let image = Image { name: "kernel", bytes: &[7; 9000] };
        let whole = config::pack(&config, &[image]).unwrap();
        let why = |damage: Damage| {
            let bytes = damage.done_to(whole.clone()).unwrap();
            assert_ne!(bytes, whole, "{damage:?}");
            config::unpack(&bytes).map(|_| ()).map_err(|error| error.to_string())
        };
        let length = whole.len();
        for (damage, refusal) in [
            (Damage::Truncated, format!("bundle-damaged: bundle: {} bytes, but", length / 2)),
            (Damage::LastPageMissing, format!("bundle-damaged: bundle: {} bytes, but", length - 4096)),
            (Damage::PageAppended, format!("bundle-damaged: bundle: {} bytes, but", length + 4096)),
            (Damage::HeaderBit, "bundle-damaged: bundle: damaged: the header's checksum".into()),
            (Damage::ConfigurationBit, "bundle-damaged: bundle: damaged: the checksum of section 0 ".into()),
            (Damage::ImageBit, "bundle-damaged: bundle: damaged: the checksum of section 1 ".into()),
            (Damage::Revision, "bundle-revision: bundle: format revision ".into()),
            (Damage::SectionCount, "bundle-damaged: bundle: 4294967295 sections".into()),
            (Damage::PartitionCount, "bundle-config: bundle: configuration: partition at byte 0: ".into()),
            (Damage::Rules, "memory-size: partition[0].memory: 4097 bytes".into()),
        ] {
            let error = why(damage).unwrap_err();
            assert!(error.starts_with(&format!("ERROR Config/{refusal}")), "{damage:?}: {error}");
        }
        // Its checksums are right; that it is no kernel is found when it is looked at.
        assert_eq!(why(Damage::Kernel), Ok(()));
    }

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
