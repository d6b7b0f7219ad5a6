//! What a result depends on, as one number: SHA-256 over pieces, each with its length, so that no two sequences of pieces
//! are the same.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// What Cargo and others put into a folder that can be made anew at any time (<https://bford.info/cachedir/>).
const CACHE_TAG: &str = "CACHEDIR.TAG";

/// The pieces so far.
#[derive(Clone, Debug, Default)]
pub struct Digest(Sha256);

impl Digest {
    /// Adds a piece.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Adds a piece of text.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Adds what is in the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        self.bytes(&fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
        Ok(())
    }

    /// Adds the names and contents of the files in a folder, not of those in folders below it.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn files(&mut self, folder: &Path) -> Result<()> {
        for (name, path) in entries(folder)? {
            if path.is_file() {
                self.text(&name);
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// Adds everything below a folder: names, modes and contents, and where symbolic links lead. Left out are `.git`
    /// and folders that say themselves that they are caches, as Cargo's target directory does.
    ///
    /// # Errors
    /// When something cannot be read, for instance because it has just been removed.
    pub fn tree(&mut self, folder: &Path) -> Result<()> {
        for (name, path) in entries(folder)? {
            let meta = path.symlink_metadata().with_context(|| format!("cannot read {}", path.display()))?;
            if name == ".git" || (meta.is_dir() && path.join(CACHE_TAG).is_file()) {
                continue;
            }
            self.text(&name);
            self.text(&format!("{:o}", meta.permissions().mode()));
            if meta.is_dir() {
                self.tree(&path)?;
            } else if meta.is_symlink() {
                let leads =
                    fs::read_link(&path).with_context(|| format!("cannot read {}", path.display()))?;
                self.text(&leads.to_string_lossy());
            } else if meta.is_file() {
                self.file(&path)?;
            }
        }
        self.text("the end of a folder");
        Ok(())
    }

    /// The number, in hexadecimal.
    pub fn finish(self) -> String {
        self.0.finalize().iter().fold(String::new(), |mut text, byte| {
            // Writing to a string never fails.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// What is in a folder, in the order of names.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let read = || -> std::io::Result<Vec<_>> {
        fs::read_dir(folder)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
            })
            .collect()
    };
    let mut entries = read().with_context(|| format!("cannot list {}", folder.display()))?;
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is gone when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("levelhead-digest-{}-{name}", std::process::id()));
            fs::create_dir_all(folder.join("below")).unwrap();
            Self(folder)
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        fn digest(&self) -> String {
            let mut digest = Digest::default();
            digest.tree(&self.0).unwrap();
            digest.finish()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn it_is_sha_256() {
        let mut digest = Digest::default();
        digest.bytes(b"abc");
        let lengthy = Sha256::digest(b"\x03\0\0\0\0\0\0\0abc");
        assert_eq!(digest.finish(), lengthy.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let abc = Digest(Sha256::new_with_prefix(b"abc")).finish();
        assert_eq!(abc, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn where_a_piece_ends_counts() {
        let of = |pieces: &[&str]| {
            let mut digest = Digest::default();
            pieces.iter().for_each(|piece| digest.text(piece));
            digest.finish()
        };
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab"]), of(&["ab", ""]));
    }

    #[test]
    fn every_name_byte_mode_and_link_of_a_tree_counts() {
        let folder = Folder::new("tree");
        folder.put("a", "one");
        folder.put("below/b", "two");
        let first = folder.digest();
        assert_eq!(folder.digest(), first);
        let mut seen = vec![first.clone()];
        let mut differs = |what: &str| {
            let digest = folder.digest();
            assert!(!seen.contains(&digest), "{what}");
            seen.push(digest);
        };
        folder.put("below/b", "twp");
        differs("a byte");
        fs::rename(folder.0.join("below/b"), folder.0.join("below/c")).unwrap();
        differs("a name");
        fs::rename(folder.0.join("below/c"), folder.0.join("c")).unwrap();
        differs("a place");
        fs::set_permissions(folder.0.join("c"), fs::Permissions::from_mode(0o755)).unwrap();
        differs("a mode");
        std::os::unix::fs::symlink("a", folder.0.join("d")).unwrap();
        differs("a link");
        folder.put("e", "");
        differs("a file more");
    }

    #[test]
    fn caches_and_the_repository_do_not_count() {
        let folder = Folder::new("cache");
        folder.put("a", "one");
        let without = folder.digest();
        folder.put(".git", "gitdir: elsewhere");
        fs::create_dir(folder.0.join("target")).unwrap();
        folder.put("target/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55");
        folder.put("target/a", "two");
        assert_eq!(folder.digest(), without);
        fs::remove_file(folder.0.join("target/CACHEDIR.TAG")).unwrap();
        assert_ne!(folder.digest(), without, "a folder like any other");
    }
}
