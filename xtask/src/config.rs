//! Configuration files: from TOML to the library's [`Config`], and with the images it names into a bundle.
//!
//! The keys, with their defaults:
//!
//! ```toml
//! [[partition]]
//! name = "demo"                   # required
//! cpus = [0]                      # required
//! memory = "32M"                  # required: "64M", "1G", or bytes
//! kernel = "guest:echo"           # required: an image
//! cmdline = ""
//! modules = [{ file = "env", cmdline = "" }]    # file: an image; default []
//! console = true                  # show what it writes to COM1
//! debug-port = 0xe9               # default: none
//! exit-port = 0xf4                # default: none
//! user-hypercalls = false
//! control = false
//!
//! [[partition.device]]
//! bdf = "00:03.0"                 # required
//! gsi = 23                        # default: what the firmware's _PRT says
//! mask = "auto"                   # "auto", "line" or "function"
//! vpin = 23                       # default: the number of the GSI
//! ```
//!
//! An image is a path relative to the file, or `guest:` and the name of one of the project's own guests.
//!
//! This file knows the keys; `reader` knows TOML and how mistakes are told; the library knows the rules.

mod reader;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use levelhead::config::{
    self, Config, Device, Image, ImageIndex, MAX_GSIS, MAX_IMAGE_NAME_BYTES, MAX_IMAGES, MaskPolicy, Module,
    Partition, VIRTUAL_PINS,
};
use levelhead::guest::{self, GuestMemory, Payload};
use levelhead::irq::{CpuId, Gsi, Pin};
use levelhead::message::Message;
use levelhead::pci::Bdf;
use toml::de::DeValue;

pub use reader::{Finding, Problems};
use reader::{Mistake, Read, Reader, Table, flag, number, size, text};

/// What an image's name starts with when it is one of the project's own guests.
const GUEST_PREFIX: &str = "guest:";

/// Stands for a function that was not said.
const LAST_FUNCTION: Bdf = Bdf::new(0xff, 0x1f, 7).unwrap();

/// Finds the file of a guest by its name.
pub type Resolve<'a> = &'a dyn Fn(&str) -> Result<PathBuf>;

/// A configuration that keeps all rules, and the files of its images.
#[derive(Debug)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    /// The images that its `ImageIndex`es count, each once.
    pub images: Vec<ImageFile>,
    /// The TOML file.
    path: PathBuf,
}

/// The file of an image.
#[derive(Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// What the bundle and the guest call it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Reads and judges the configuration file at `path`.
///
/// # Errors
/// Everything that is wrong with it, one line each: file, line, column, key, what is wrong, what would be right.
/// A file whose syntax is wrong is not judged any further.
pub fn load(path: &Path, resolve: Resolve<'_>) -> Result<LoadedConfig, Problems> {
    let shown = path.display();
    let content = fs::read_to_string(path).map_err(|error| {
        let remedy = "name a file of configs/ without its `.toml`, or the path of a configuration";
        Problems::of_file(shown.to_string(), Message::NoSuchFile, format!("cannot be read: {error}"), remedy)
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut images = Images { folder, resolve, files: Vec::new() };

    let mut reader = Reader::new(shown.to_string(), &content);
    let partitions = reader
        .document(|file| file.tables("partition", "[[partition]]", |table| partition(table, &mut images)))?;
    let config = Config { partitions };
    for violation in config::validate(&config, images.files.len()).err().unwrap_or_default() {
        let remedy = violation.rule.remedy().to_string();
        reader.broken(
            &violation.path,
            Mistake::new(violation.rule.message(), violation.rule.to_string(), remedy),
        );
    }
    reader.finish()?;
    Ok(LoadedConfig { config, images: images.files, path: path.to_owned() })
}

/// Reads the images and packs them with the configuration. Every kernel must be loadable into its partition.
///
/// # Errors
/// An image that cannot be read, or that no guest could be started from.
pub fn pack(loaded: &LoadedConfig) -> Result<Vec<u8>> {
    let read = |image: &ImageFile| {
        fs::read(&image.path).with_context(|| format!("cannot read image {}", image.path.display()))
    };
    let contents = loaded.images.iter().map(read).collect::<Result<Vec<_>>>()?;
    let images = loaded.images.iter().zip(&contents);
    let images: Vec<_> = images.map(|(file, bytes)| Image { name: &file.name, bytes }).collect();
    let shown = loaded.path.display();
    let bundle = config::pack(&loaded.config, &images).with_context(|| shown.to_string())?;

    let (config, view) = config::unpack(&bundle).with_context(|| shown.to_string())?;
    for partition in &config.partitions {
        let kernel = loaded.images.get(usize::from(partition.kernel.0));
        let kernel = kernel.map_or(Path::new(""), |image| &image.path);
        let about = || format!("{shown}: partition {} cannot boot {}", partition.name, kernel.display());
        let memory = GuestMemory::new(partition.memory_bytes).with_context(about)?;
        Payload::of(partition, &view)
            .and_then(|payload| guest::plan(&payload, &memory).map(drop))
            .with_context(about)?;
    }
    Ok(bundle)
}

/// A partition. What is missing or wrong has been noted, so that anything harmless may stand for it.
fn partition(table: &mut Table<'_, '_>, images: &mut Images<'_>) -> Partition {
    Partition {
        name: table.required("name", "name = \"demo\"", text).unwrap_or_default(),
        cpus: {
            let example = "cpus = [0]";
            table.required("cpus", example, |_| Ok(()));
            table.list("cpus", example, |value| number(value, u8::MAX).map(CpuId))
        },
        memory_bytes: table.required("memory", "memory = \"64M\"", size).unwrap_or(1 << 30),
        kernel: table
            .required("kernel", "kernel = \"guest:echo\"", |value| images.index(value))
            .unwrap_or(ImageIndex(0)),
        modules: table.tables("modules", "modules = [{ file = \"name\" }]", |table| Module {
            image: table
                .required("file", "file = \"name\"", |value| images.index(value))
                .unwrap_or(ImageIndex(0)),
            cmdline: table.optional("cmdline", text).unwrap_or_default(),
        }),
        cmdline: table.optional("cmdline", text).unwrap_or_default(),
        console: table.optional("console", flag).unwrap_or(true),
        debug_port: table.optional("debug-port", |value| number(value, format_args!("{:#x}", u16::MAX))),
        exit_port: table.optional("exit-port", |value| number(value, format_args!("{:#x}", u16::MAX))),
        user_hypercalls: table.optional("user-hypercalls", flag).unwrap_or(false),
        control: table.optional("control", flag).unwrap_or(false),
        devices: table.tables("device", "[[partition.device]]", device),
    }
}

fn device(table: &mut Table<'_, '_>) -> Device {
    Device {
        bdf: table.required("bdf", "bdf = \"00:03.0\"", function).unwrap_or(LAST_FUNCTION),
        gsi: table.optional("gsi", |value| number(value, MAX_GSIS - 1).map(Gsi)),
        mask: table.optional("mask", mask).unwrap_or_default(),
        vpin: table.optional("vpin", |value| number(value, VIRTUAL_PINS - 1).map(Pin)),
    }
}

fn function(value: &DeValue<'_>) -> Read<Bdf> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        Mistake::value(
            format!("{text:?} is no PCI function"),
            "write bus, device and function in hexadecimal, as in \"00:1f.2\"",
        )
    })
}

fn mask(value: &DeValue<'_>) -> Read<MaskPolicy> {
    match &*text(value)? {
        "auto" => Ok(MaskPolicy::Auto),
        "line" => Ok(MaskPolicy::Line),
        "function" => Ok(MaskPolicy::Function),
        other => {
            let remedy = "write \"auto\", \"line\" or \"function\"";
            Err(Mistake::value(format!("{other:?} is no way to mask a line"), remedy))
        }
    }
}

/// The images that were named so far.
struct Images<'a> {
    /// Where paths start.
    folder: &'a Path,
    resolve: Resolve<'a>,
    files: Vec<ImageFile>,
}

impl Images<'_> {
    fn index(&mut self, value: &DeValue<'_>) -> Read<ImageIndex> {
        let file = self.find(&text(value)?)?;
        let known = self.files.iter().position(|other| other.path == file.path);
        let index = known.unwrap_or_else(|| {
            self.files.push(file);
            self.files.len() - 1
        });
        u16::try_from(index).ok().filter(|_| index < MAX_IMAGES).map(ImageIndex).ok_or_else(|| {
            Mistake::new(
                Message::ImageCount,
                "one image too many",
                format!("use at most {MAX_IMAGES} different ones"),
            )
        })
    }

    fn find(&self, named: &str) -> Read<ImageFile> {
        if let Some(guest) = named.strip_prefix(GUEST_PREFIX) {
            let path = (self.resolve)(guest).map_err(|error| {
                let remedy = "name one of the project's guests, or a file";
                Mistake::new(Message::NoSuchFile, format!("{error:#}"), remedy)
            })?;
            return Ok(ImageFile { name: guest.to_owned(), path });
        }
        let path = self.folder.join(named);
        if !path.is_file() {
            let what = format!("there is no file {}", path.display());
            let remedy = "name a file relative to this one, or `guest:NAME`";
            return Err(Mistake::new(Message::NoSuchFile, what, remedy));
        }
        // The name becomes the first word of a guest's command line.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.replace(|c: char| c.is_whitespace() || c.is_control(), "_");
        if name.len() > MAX_IMAGE_NAME_BYTES {
            let what = format!("the file's name of {} bytes is too long", name.len());
            let remedy = format!("use at most {MAX_IMAGE_NAME_BYTES}");
            return Err(Mistake::new(Message::ImageName, what, remedy));
        }
        Ok(ImageFile { name, path })
    }
}

#[cfg(test)]
mod tests;
