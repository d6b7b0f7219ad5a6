//! The tree's Rust and assembly sources, as the gates read them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The folders below the root that hold sources of ours.
const FOLDERS: [&str; 4] = ["guests", "src", "tests", "xtask"];

/// All Rust sources of the workspace, as paths relative to `root`, sorted.
///
/// # Errors
/// When the tree cannot be read.
pub fn rust(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from("build.rs")];
    for folder in FOLDERS {
        for path in below(&root.join(folder))? {
            if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// All `.rs` and `.S` files below `folder`, sorted. A link to a source is not a second source.
///
/// # Errors
/// When the folder cannot be read.
pub fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file()
                && path.extension().is_some_and(|extension| extension == "rs" || extension == "S")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A file's text.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
