//! Builds: where the tree is, and what cargo makes of it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// The source tree and its build directory.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The repository's root.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// The profile that the hypervisor and the guests are built by.
    pub profile: Profile,
}

/// A profile of Cargo.toml.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// What is run, tested and measured. Its addresses lead to functions and lines.
    Release,
    /// The same code with everything a debugger can use: types and variables.
    Debugging,
    /// With debug assertions, the order of locks among them.
    Checked,
}

impl Profile {
    const ALL: [Self; 3] = [Self::Release, Self::Debugging, Self::Checked];

    /// What Cargo calls it, and its folder.
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debugging => "debugging",
            Self::Checked => "checked",
        }
    }
}

impl Tree {
    /// The tree this tool was started in.
    ///
    /// # Errors
    /// When cargo cannot tell.
    pub fn find() -> Result<Self> {
        // `cargo xtask` sets the variable anew; the compiled-in value serves a binary that is started directly.
        let here = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let output = cargo()
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(&here)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        ensure!(output.status.success(), "`cargo metadata` failed in {}", here.display());
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
        let path = |key: &str| {
            let value = metadata.get(key).and_then(serde_json::Value::as_str);
            value.map(PathBuf::from).with_context(|| format!("cargo metadata has no {key}"))
        };
        let (root, target) = (path("workspace_root")?, path("target_directory")?);
        Ok(Self { root, target, profile: Profile::Release })
    }

    /// The hypervisor's image.
    pub fn hypervisor(&self) -> PathBuf {
        self.binary("levelhead")
    }

    /// The images of the hypervisor that builds of all profiles leave.
    pub fn hypervisors(&self) -> Vec<PathBuf> {
        Profile::ALL.map(|profile| Self { profile, ..self.clone() }.hypervisor()).into()
    }

    /// A binary of the profile: a guest or the hypervisor.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.target.join(self.profile.name()).join(name)
    }

    /// A folder under the target directory, made if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.target.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// `path` as seen from the root, for messages.
    pub fn shown<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }

    /// The command that builds the hypervisor and the guests for running, both in one go.
    pub fn build_command(&self) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root);
        command.args(["build", "--profile", self.profile.name()]);
        command.args(["--package", "levelhead", "--package", "guests"]);
        command
    }

    /// Runs [`Tree::build_command`], with cargo's own words on standard error.
    ///
    /// # Errors
    /// When the build fails.
    pub fn build(&self) -> Result<()> {
        let status = self.build_command().stdin(Stdio::null()).stdout(std::io::stderr()).status();
        let status = status.context("cannot run cargo")?;
        ensure!(status.success(), "the build failed; cargo's report is above");
        Ok(())
    }
}

/// Cargo: the very one that runs us, if one does.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
