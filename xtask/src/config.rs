//! Configuration files: from TOML to the library's [`Config`], and with the images it names into a bundle.
//!
//! An image is a path relative to the file, or `guest:` and the name of one of the project's own guests.
//!
//! `keys` has the keys, what they mean and what can be wrong with them; this file makes the library's values of them; `syntax`
//! knows what of a broken file can be read, `reader` how it is read and mistakes are told; the library knows the rules.

pub mod keys;
pub mod reader;
pub mod syntax;

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use levelhead::addr::HostPhys;
use levelhead::config::{
    self, Config, Console, Device, EXIT_PORT_BYTES, Image, ImageIndex, KeyPath, MAX_GSIS,
    MAX_IMAGE_NAME_BYTES, MAX_IMAGES, MAX_MEMORY_END, MIN_MEMORY_AT, MaskPolicy, Module, Partition, Rule,
    Standby, Step, VIRTUAL_PINS,
};
use levelhead::guest::{self, GuestMemory, HOLE_START};
use levelhead::irq::{CpuId, Gsi, Pin};
use levelhead::message::{Message, Refusal};
use levelhead::pci::Bdf;
use levelhead::policy::{DevicePolicy, EoiDeadline, NeverEoi, NoReset, RestartPolicy, StormLimit};
use toml::de::DeValue;

pub use reader::{Finding, Problems};
use reader::{
    Mistake, Positions, Read, Reader, Table, choice, flag, nearest, number, number_between, size, text,
};
use syntax::Source;

/// What an image's name starts with when it is one of the project's own guests.
const GUEST_PREFIX: &str = "guest:";

/// Stands for a function that was not said.
pub const LAST_FUNCTION: Bdf = Bdf::new(0xff, 0x1f, 7).unwrap();

/// The largest configuration file, in bytes: far more than the most partitions and devices need.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The largest image: more than a guest has memory below its hole for devices, where images are loaded.
const MAX_IMAGE_BYTES: u64 = HOLE_START;

/// The project's own guests.
#[derive(Clone, Copy)]
pub struct Guests<'a> {
    /// What they are called.
    pub names: &'a [String],
    /// Finds the program of one of them.
    pub find: &'a dyn Fn(&str) -> Result<PathBuf>,
}

/// Stands for a size of memory that could not be read: the library refuses it, at a key that has its mistake already.
const UNREAD_BYTES: u64 = 0;
/// What the images of a partition of no possible size are judged with: room for anything.
const ROOMY_BYTES: u64 = 1 << 30;

/// A configuration that keeps all rules, and its images.
#[derive(Debug)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    /// The images that its `ImageIndex`es count, each once.
    pub images: Vec<ImageFile>,
    /// The TOML file.
    path: PathBuf,
    positions: Positions,
}

impl LoadedConfig {
    /// Something wrong with the key at `path` that only a machine shows.
    pub fn finding(&self, path: &KeyPath, refusal: Refusal) -> Finding {
        self.positions.finding(path, refusal)
    }
}

/// An image.
#[derive(Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// What the bundle and the guest call it.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// Reads and judges the configuration file at `path`, with the images it names.
///
/// # Errors
/// Everything that is wrong with it, one record each: file, line, column, key, what is wrong, what would be right.
/// Where the syntax is wrong, nothing else is said of that statement.
pub fn load(path: &Path, guests: Guests<'_>) -> Result<LoadedConfig, Problems> {
    let shown = path.display().to_string();
    let content = text_of(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut images = Images { folder, guests, files: Vec::new() };

    let source = Source::of(&content);
    let mut reader = Reader::new(shown, &source, keys::elsewhere);
    let mut unread = Vec::new();
    let partitions = reader.document(|file| {
        file.tables(&keys::PARTITION, |table| {
            let partition = partition(table, &mut images);
            unread.push(!partition.1);
            partition.0
        })
    })?;
    let config = Config { partitions };
    // Of an image that is missing nothing else is to be said; the key has its mistake already.
    let count = images.files.len().max(1);
    // Nor of a name that nobody has, as long as there is one that could not be read.
    let nameless = config.partitions.iter().any(|partition| partition.name.is_empty());
    for violation in config::validate(&config, count).err().unwrap_or_default() {
        if nameless && matches!(violation.rule, Rule::StandbyMissing(_)) {
            continue;
        }
        let remedy = match &violation.rule {
            Rule::StandbyMissing(name) => standby_remedy(&config, &violation.path, name),
            rule => rule.remedy().to_string(),
        };
        reader.broken(
            &violation.path,
            Mistake::new(violation.rule.message(), violation.rule.to_string(), remedy),
        );
    }
    let views = images.views();
    for (index, partition) in config.partitions.iter().enumerate() {
        if unread.get(index) == Some(&true) {
            continue;
        }
        let mut partition = partition.clone();
        // The size has its mistake already; the images may have theirs.
        if GuestMemory::new(partition.memory_bytes).is_none() {
            partition.memory_bytes = ROOMY_BYTES;
        }
        if let Some(fault) = guest::judge_partition(index, &partition, &views) {
            let (message, what) = (fault.error.message(), fault.error.to_string());
            reader.broken(&fault.path, Mistake::new(message, what, fault.error.remedy()));
        }
    }
    reader.finish()?;
    let positions = reader.positions();
    Ok(LoadedConfig { config, images: images.files, path: path.to_owned(), positions })
}

/// What is to be done about a `standby`, at `path`, that is no partition's name: who is meant, or who there is.
fn standby_remedy(config: &Config, path: &KeyPath, name: &str) -> String {
    let own = path.steps().get(1);
    let others = config.partitions.iter().enumerate().filter(|(index, _)| own != Some(&Step::Index(*index)));
    let others: Vec<&str> = others.map(|(_, partition)| partition.name.as_str()).collect();
    if let Some(meant) = nearest(name, others.iter().copied()) {
        return format!("did you mean {meant:?}?");
    }
    match others.as_slice() {
        [] => "add a second partition, or leave `standby` out".to_owned(),
        [only] => format!("name {only:?}, the only other partition"),
        others => format!("name one of {}", others.join(", ")),
    }
}

/// The text of the configuration file at `path`.
///
/// # Errors
/// When there is none.
pub fn text_of(path: &Path) -> Result<String, Problems> {
    let remedy = "name a file of configs/ without its `.toml`, or the path of a configuration";
    content(path, "a configuration", remedy)
}

/// The text of the file at `path`, which should be `noun`.
///
/// # Errors
/// When there is no such file, which `remedy` helps against, or it cannot be one.
pub fn content(path: &Path, noun: &str, remedy: &str) -> Result<String, Problems> {
    let shown = path.display().to_string();
    let unreadable = |what: String| Problems::of_file(shown.clone(), Message::NoSuchFile, what, remedy);
    let about = fs::metadata(path).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    if !about.is_file() {
        return Err(unreadable(kind_of(&about).to_owned()));
    }
    if about.len() > MAX_FILE_BYTES {
        let what = format!("{} bytes are too many for {noun}", about.len());
        let remedy = format!("write at most {MAX_FILE_BYTES}");
        return Err(Problems::of_file(shown, Message::FileTooLarge, what, &remedy));
    }
    let bytes = fs::read(path).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let what = format!("the byte {:#04x} is not UTF-8", error.as_bytes()[good]);
        let before = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
        Problems::at_end_of(shown, &before, Refusal::new(Message::WrongEncoding, "file", what))
    })
}

/// What a file that is none is.
fn kind_of(about: &fs::Metadata) -> &'static str {
    if about.is_dir() { "it is a directory" } else { "it is no regular file" }
}

/// Packs a configuration with its images.
///
/// # Errors
/// What a judged configuration excludes.
pub fn pack(loaded: &LoadedConfig) -> Result<Vec<u8>> {
    let images: Vec<_> = loaded.images.iter().map(ImageFile::view).collect();
    config::pack(&loaded.config, &images).with_context(|| loaded.path.display().to_string())
}

/// A partition, and whether all of its images were found. What is missing or wrong has been noted, so that anything
/// harmless may stand for it.
fn partition(table: &mut Table<'_, '_>, images: &mut Images<'_>) -> (Partition, bool) {
    let name = table.required(&keys::NAME, text).unwrap_or_default();
    table.required(&keys::CPUS, |_| Ok(()));
    let cpus = table.list(&keys::CPUS, |value| number(value, u8::MAX).map(CpuId));
    let memory_bytes = table.required(&keys::MEMORY, size).unwrap_or(UNREAD_BYTES);
    let memory_at = table.optional(&keys::MEMORY_AT, address);
    let kernel = table.required(&keys::KERNEL, |value| images.index(value));
    let mut complete = kernel.is_some();
    let modules = table.tables(&keys::MODULES, |table| {
        let image = table.required(&keys::FILE, |value| images.index(value));
        complete &= image.is_some();
        Module {
            image: image.unwrap_or(ImageIndex(0)),
            cmdline: table.optional(&keys::MODULE_CMDLINE, text).unwrap_or_default(),
        }
    });
    let partition = Partition {
        name,
        cpus,
        memory_bytes,
        memory_at,
        kernel: kernel.unwrap_or(ImageIndex(0)),
        modules,
        cmdline: table.optional(&keys::CMDLINE, text).unwrap_or_default(),
        console: table.optional(&keys::CONSOLE, console).unwrap_or_default(),
        debug_port: table.optional(&keys::DEBUG_PORT, port),
        exit_port: table.optional(&keys::EXIT_PORT, exit_port),
        test_device: table.optional(&keys::TEST_DEVICE, flag).unwrap_or(false),
        user_hypercalls: table.optional(&keys::USER_HYPERCALLS, flag).unwrap_or(false),
        control: table.optional(&keys::CONTROL, flag).unwrap_or(false),
        restart: restart(table),
        devices: table.tables(&keys::DEVICE, device),
    };
    (partition, complete)
}

fn device(table: &mut Table<'_, '_>) -> Device {
    let bdf = table.required(&keys::BDF, function).unwrap_or(LAST_FUNCTION);
    let gsi = table.optional(&keys::GSI, |value| number(value, MAX_GSIS - 1).map(Gsi));
    let vpin = table.optional(&keys::VPIN, |value| number(value, VIRTUAL_PINS - 1).map(Pin));
    let unread = vpin.is_none() && table.names(&keys::VPIN);
    Device {
        bdf,
        // Of a line nothing more is to be said than that there is none such, if its virtual pin could not be read: it has one, and
        // may share it.
        gsi: gsi.filter(|gsi| !unread || gsi.0 >= MAX_GSIS),
        vpin,
        mask: table
            .optional(&keys::MASK, |value| choice(value, &MaskPolicy::ALL, "way to mask a line"))
            .unwrap_or_default(),
        policy: policy(table),
        standby: standby(table),
    }
}

fn standby(table: &mut Table<'_, '_>) -> Option<Standby> {
    let partition = table.optional(&keys::STANDBY, text);
    let pin = |value: &DeValue<'_>| number(value, VIRTUAL_PINS - 1).map(Pin);
    let vpin = table.companion(&keys::STANDBY_VPIN, &keys::STANDBY, pin);
    partition.map(|partition| Standby { partition, vpin })
}

fn console(value: &DeValue<'_>) -> Read<Console> {
    match (value.as_bool(), value.as_str()) {
        (Some(false), _) => Ok(Console::Hidden),
        (Some(true), _) => Ok(Console::Lines),
        (None, Some("terminal")) => Ok(Console::Terminal),
        (None, Some(other)) => Err(Mistake::value(
            format!("{other:?} is nothing that a console can be"),
            "write true, false or \"terminal\"",
        )),
        (None, None) => Err(Mistake::type_of(value, "write true, false or \"terminal\"")),
    }
}

fn restart(table: &mut Table<'_, '_>) -> RestartPolicy {
    let at_most = table.optional(&keys::RESTART, |value| match value.as_str() {
        Some("never") => Ok(Some(0)),
        Some("always") => Ok(None),
        Some(other) => Err(Mistake::value(
            format!("{other:?} is not how often a partition starts again"),
            "write \"never\", \"always\" or a number",
        )),
        None => within(value, RestartPolicy::AT_MOST).and_then(|most| {
            let none = || Mistake::value("0 is no number of restarts", "write \"never\"");
            (most != 0).then_some(Some(most)).ok_or_else(none)
        }),
    });
    let pause = |value: &DeValue<'_>| within(value, RestartPolicy::PAUSE_MS);
    let pause_ms = table.companion(&keys::RESTART_PAUSE, &keys::RESTART, pause);
    let policy = at_most.map_or(RestartPolicy::NEVER, RestartPolicy::new);
    RestartPolicy { pause_ms: pause_ms.unwrap_or(policy.pause_ms), ..policy }
}

fn policy(table: &mut Table<'_, '_>) -> DevicePolicy {
    let storm =
        table.optional(&keys::STORM_LIMIT, |value| within(value, StormLimit::LIMIT)).map(StormLimit::new);
    let mut more = |key, bounds: RangeInclusive<u32>| {
        table.companion(key, &keys::STORM_LIMIT, |value| within(value, bounds.clone()))
    };
    let window_ms = more(&keys::STORM_WINDOW, StormLimit::WINDOW_MS);
    let pause_ms = more(&keys::STORM_PAUSE, StormLimit::PAUSE_MS);
    let retries = more(&keys::STORM_RETRIES, StormLimit::RETRIES);
    let action = |value: &DeValue<'_>| choice(value, &NeverEoi::ALL, "answer to a missing EOI");
    let never_eoi = table.optional(&keys::NEVER_EOI, action).map(EoiDeadline::new);
    let after = |value: &DeValue<'_>| within(value, EoiDeadline::AFTER_MS);
    let after_ms = table.companion(&keys::NEVER_EOI_AFTER, &keys::NEVER_EOI, after);
    DevicePolicy {
        storm: storm.map(|storm| StormLimit {
            window_ms: window_ms.unwrap_or(storm.window_ms),
            pause_ms: pause_ms.unwrap_or(storm.pause_ms),
            retries: retries.unwrap_or(storm.retries),
            ..storm
        }),
        never_eoi: never_eoi
            .map(|deadline| EoiDeadline { after_ms: after_ms.unwrap_or(deadline.after_ms), ..deadline }),
        no_reset: table
            .optional(&keys::NO_RESET, |value| choice(value, &NoReset::ALL, "answer to a missing reset"))
            .unwrap_or_default(),
    }
}

/// A number of a policy. Whether it is in its bounds the library judges.
fn within(value: &DeValue<'_>, bounds: RangeInclusive<u32>) -> Read<u32> {
    number_between(value, bounds.start(), bounds.end())
}

fn port(value: &DeValue<'_>) -> Read<u16> {
    number(value, format_args!("{:#x}", u16::MAX))
}

/// The first of several. Whether all of them are ports the library judges.
fn exit_port(value: &DeValue<'_>) -> Read<u16> {
    number(value, format_args!("{:#x}", u16::MAX - EXIT_PORT_BYTES + 1))
}

fn address(value: &DeValue<'_>) -> Read<HostPhys> {
    let (least, most) = (format_args!("{MIN_MEMORY_AT:#x}"), format_args!("{:#x}", MAX_MEMORY_END - 1));
    number_between(value, least, most).map(HostPhys::new)
}

/// A PCI function, as in `00:1f.2`.
pub fn function(value: &DeValue<'_>) -> Read<Bdf> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        let remedy = match text.split_once(':') {
            Some(("0000", rest)) if rest.parse::<Bdf>().is_ok() => {
                format!("leave the segment out, as in \"{rest}\"")
            }
            Some((_, rest)) if rest.parse::<Bdf>().is_ok() => {
                "name a function of PCI segment 0: no other is supported yet".to_owned()
            }
            _ => "write bus, device and function in hexadecimal, as in \"00:1f.2\"".to_owned(),
        };
        Mistake::value(format!("{text:?} is no PCI function"), remedy)
    })
}

/// The images that were named so far.
struct Images<'a> {
    /// Where paths start.
    folder: &'a Path,
    guests: Guests<'a>,
    files: Vec<ImageFile>,
}

impl ImageFile {
    fn view(&self) -> Image<'_> {
        Image { name: &self.name, bytes: &self.bytes }
    }
}

impl Images<'_> {
    fn views(&self) -> Vec<Image<'_>> {
        self.files.iter().map(ImageFile::view).collect()
    }

    fn index(&mut self, value: &DeValue<'_>) -> Read<ImageIndex> {
        let (name, path) = self.find(&text(value)?)?;
        let known = self.files.iter().position(|other| other.path == path);
        let index = known.unwrap_or(self.files.len());
        let counted =
            u16::try_from(index).ok().filter(|_| index < MAX_IMAGES).map(ImageIndex).ok_or_else(|| {
                let remedy = format!("use at most {MAX_IMAGES} different ones");
                Mistake::new(Message::ImageCount, "one image too many", remedy)
            })?;
        if known.is_none() {
            let bytes = read_image(&path)?;
            self.files.push(ImageFile { name, path, bytes });
        }
        Ok(counted)
    }

    /// What an image is called, and its file.
    fn find(&self, named: &str) -> Read<(String, PathBuf)> {
        if let Some(guest) = named.strip_prefix(GUEST_PREFIX) {
            if !self.guests.names.iter().any(|known| known == guest) {
                let names = self.guests.names.iter().map(String::as_str);
                let remedy = match nearest(guest, names) {
                    Some(known) => format!("did you mean \"{GUEST_PREFIX}{known}\"?"),
                    None => format!("name one of {}, or a file", self.guests.names.join(", ")),
                };
                return Err(Mistake::new(
                    Message::NoSuchFile,
                    format!("there is no guest {guest:?}"),
                    remedy,
                ));
            }
            let path = (self.guests.find)(guest).map_err(|error| {
                let remedy = "build the guests (cargo xtask build), or name a file";
                Mistake::new(Message::NoSuchFile, format!("{error:#}"), remedy)
            })?;
            return Ok((guest.to_owned(), path));
        }
        let path = self.folder.join(named);
        // The name becomes the first word of a guest's command line.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.replace(|c: char| c.is_whitespace() || c.is_control(), "_");
        if name.len() > MAX_IMAGE_NAME_BYTES {
            let what = format!("the file's name of {} bytes is too long", name.len());
            let remedy = format!("use at most {MAX_IMAGE_NAME_BYTES}");
            return Err(Mistake::new(Message::ImageName, what, remedy));
        }
        Ok((name, path))
    }
}

/// The bytes of an image.
fn read_image(path: &Path) -> Read<Vec<u8>> {
    let shown = path.display();
    let refuse = |what| {
        let remedy = "name a file relative to this one, or `guest:NAME`";
        Err(Mistake::new(Message::NoSuchFile, what, remedy))
    };
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refuse(format!("there is no file {shown}"));
        }
        Err(error) => return refuse(format!("{shown} cannot be read: {error}")),
    };
    if !about.is_file() {
        return refuse(format!("{shown}: {}", kind_of(&about)));
    }
    if about.len() > MAX_IMAGE_BYTES {
        let what = format!("{shown} has {} bytes", about.len());
        let remedy = format!("name one of at most {MAX_IMAGE_BYTES}: images are loaded below 3 GiB");
        return Err(Mistake::new(Message::FileTooLarge, what, remedy));
    }
    fs::read(path).or_else(|error| refuse(format!("{shown} cannot be read: {error}")))
}

#[cfg(test)]
mod tests;
