//! The rules a configuration must keep, judged alike on the host and at boot.
//!
//! A broken rule is a value: the path of the key in the TOML file, what is wrong, and what would be right, with an
//! entry in the catalogue of messages. The host adds file, line and column; the hypervisor prints the path. What only the machine itself can answer
//! (is there such a CPU, such a function, does its BAR overlap these ports) is not asked here.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use crate::addr::{HostPhys, PAGE_BYTES, page_align_up};
use crate::irq::{CpuId, Gsi, MAX_SHARERS, Pin};
use crate::message::{Message, Refusal};
use crate::pci::Bdf;
use crate::policy::{DevicePolicy, EoiDeadline, RestartPolicy, StormLimit};

use super::model::{Config, Console, Device, ImageIndex, MaskPolicy, Partition};

/// The most partitions of one machine.
pub const MAX_PARTITIONS: usize = 32;
/// The most CPUs of one partition.
pub const MAX_CPUS: usize = 32;
/// The most functions of one partition: as many as a bus has devices.
pub const MAX_DEVICES: usize = 32;
/// The most modules of one partition.
pub const MAX_MODULES: usize = 16;
/// The most violations that are told of one configuration: at boot they have to fit the heap, whatever a bundle holds.
pub const MAX_VIOLATIONS: usize = 256;
/// The longest partition name, in bytes.
pub const MAX_NAME_BYTES: usize = 31;
/// The longest command line, in bytes and without a terminator: a page takes it with one.
pub const MAX_CMDLINE_BYTES: usize = 4095;
/// The least guest memory: what a PC has below its first extended byte.
pub const MIN_MEMORY_BYTES: u64 = 1 << 20;
/// The most guest memory: together with the hole below 4 GiB it fits one level-4 entry of a page table.
pub const MAX_MEMORY_BYTES: u64 = 256 << 30;
/// The first address at which a partition's memory may be placed: below are firmware's areas, and the page where the other
/// CPUs start.
pub const MIN_MEMORY_AT: u64 = 1 << 20;
/// The end of the largest physical address space that x86-64 has (APM2 5.3: 52 bits).
pub const MAX_MEMORY_END: u64 = 1 << 52;
/// How many global system interrupts may be named. More than a CPU has vectors would be of no use.
pub const MAX_GSIS: u32 = 256;
/// The inputs of a guest's IO-APIC.
pub const VIRTUAL_PINS: u8 = 24;
/// The ports of a guest's COM1.
pub const COM1_PORTS: RangeInclusive<u16> = 0x3f8..=0x3ff;
/// The ports of a guest's PCI configuration mechanism #1 (PCI 3.0 3.2.2.3.2).
pub const PCI_PORTS: RangeInclusive<u16> = 0xcf8..=0xcff;
/// The input of a guest's IO-APIC that its COM1 drives, as on every PC.
pub const COM1_PIN: Pin = Pin(4);
/// A guest's sleep control and sleep status register (ACPI 6.5 4.8.3.7).
pub const POWER_PORTS: RangeInclusive<u16> = 0x600..=0x601;
/// The ports of a guest's clock: which register, and its value.
pub const CMOS_PORTS: RangeInclusive<u16> = 0x70..=0x71;
/// The counters of a PC's interval timer, which a guest finds standing still.
pub const TIMER_PORTS: RangeInclusive<u16> = 0x40..=0x42;
/// The test device's register, see [`TestRegister`](crate::device::TestRegister).
pub const TEST_REGISTER_PORTS: RangeInclusive<u16> = 0xe0..=0xe3;
/// The port that makes QEMU's test device flush a page, which it need not here.
pub const TEST_FLUSH_PORTS: RangeInclusive<u16> = 0xe4..=0xe7;
/// The test device's lines: one port for each input of the guest's IO-APIC.
pub const TEST_LINE_PORTS: RangeInclusive<u16> = 0x2000..=0x2000 + VIRTUAL_PINS as u16 - 1;
/// The pair of 8259s that comes with the test device: its chips, and the chipset's registers of edges and levels.
pub const PIC_PORTS: [RangeInclusive<u16>; 3] = [0x20..=0x21, 0xa0..=0xa1, 0x4d0..=0x4d1];
/// A guest's reset control register, one of the ports of configuration mechanism #1 that are not its own.
pub const RESET_PORT: u16 = 0xcf9;
/// How many ports an exit port takes: a 32-bit write must not reach another device.
pub const EXIT_PORT_BYTES: u16 = 4;

/// One step of a [`KeyPath`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of a table, as TOML spells it.
    Key(&'static str),
    /// An element of an array, counted from 0.
    Index(usize),
}

/// Where in the TOML file something stands, such as `partition[0].device[1].vpin`.
///
/// The path may end at a key that the file leaves out; then it speaks of the table that lacks it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPath(Vec<Step>);

impl KeyPath {
    /// The path of the whole file.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// The path of `key` in the table here.
    #[must_use]
    pub fn key(&self, key: &'static str) -> Self {
        self.then(Step::Key(key))
    }

    /// The path of the element `index` in the array here.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    /// The steps from the top of the file.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    fn then(&self, step: Step) -> Self {
        Self(self.0.iter().copied().chain([step]).collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A rule that a configuration breaks, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key to change.
    pub path: KeyPath,
    /// What is wrong with it.
    pub rule: Rule,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refusal().fmt(f)
    }
}

impl core::error::Error for Violation {}

impl Violation {
    /// The record of it.
    pub fn refusal(&self) -> Refusal {
        let Self { path, rule } = self;
        Refusal::new(rule.message(), path.to_string(), rule.to_string()).remedy(rule.remedy().to_string())
    }
}

/// A broken rule with the values that break it. `Display` says what is wrong, [`Rule::remedy`] what would be
/// right. `first` is always the path of the earlier of two claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// There are 1 to [`MAX_PARTITIONS`] partitions.
    PartitionCount(usize),
    /// A name has 1 to [`MAX_NAME_BYTES`] bytes.
    NameLength(usize),
    /// A name consists of ASCII letters, digits, `-`, `_` and `.`; this character is another.
    NameCharacter(char),
    /// A name belongs to one partition.
    NameTaken {
        /// The other partition's name.
        first: KeyPath,
    },
    /// One partition has the console for its terminal.
    TerminalTaken {
        /// Where it is given to another.
        first: KeyPath,
    },
    /// A partition has a CPU.
    NoCpu,
    /// A partition has at most [`MAX_CPUS`] CPUs.
    CpuCount(usize),
    /// A CPU belongs to one partition and is counted once.
    CpuTaken {
        /// The CPU.
        cpu: CpuId,
        /// The other claim.
        first: KeyPath,
    },
    /// Memory is [`MIN_MEMORY_BYTES`] to [`MAX_MEMORY_BYTES`].
    MemorySize(u64),
    /// Memory is whole pages of 4 KiB.
    MemoryPages(u64),
    /// Memory is placed at the start of a page.
    PlacePages(HostPhys),
    /// Memory is placed from [`MIN_MEMORY_AT`] to [`MAX_MEMORY_END`].
    PlaceRange(HostPhys),
    /// A piece of the machine's memory belongs to one partition.
    PlaceTaken {
        /// What both claim.
        shared: RangeInclusive<u64>,
        /// The other claim.
        first: KeyPath,
    },
    /// No partition controls the sources of another: that is not supported yet.
    /// An image exists in the bundle.
    NoSuchImage {
        /// The image.
        index: ImageIndex,
        /// How many there are.
        images: usize,
    },
    /// A partition has at most [`MAX_MODULES`] modules.
    ModuleCount(usize),
    /// A command line has at most [`MAX_CMDLINE_BYTES`] bytes.
    CmdlineLength(usize),
    /// A command line holds no control characters; this one does, at this byte.
    CmdlineControl(usize),
    /// A port collides with one that the guest platform has.
    PortTaken {
        /// The ports claimed.
        ports: RangeInclusive<u16>,
        /// Whose they are.
        by: &'static str,
        /// What they are.
        taken: RangeInclusive<u16>,
    },
    /// All four exit ports exist.
    ExitPortEnd(u16),
    /// A partition has at most [`MAX_DEVICES`] functions.
    DeviceCount(usize),
    /// A function belongs to one partition and is named once.
    FunctionTaken {
        /// The function.
        bdf: Bdf,
        /// The other claim.
        first: KeyPath,
    },
    /// A GSI is below [`MAX_GSIS`].
    GsiRange(Gsi),
    /// A line that partitions share is not silenced as a whole: one could silence another's device.
    LineShared {
        /// The line.
        gsi: Gsi,
        /// A device of another partition on it.
        first: KeyPath,
    },
    /// A line has at most [`MAX_SHARERS`] devices.
    LineCrowded {
        /// The line.
        gsi: Gsi,
        /// The first device on it.
        first: KeyPath,
    },
    /// A line is silenced as a whole or at each of its functions.
    MaskConflict {
        /// The line.
        gsi: Gsi,
        /// What this device says.
        mask: MaskPolicy,
        /// A device on the line that says otherwise.
        first: KeyPath,
    },
    /// Devices whose line is silenced as a whole drive one virtual pin: nobody can tell which of them asserted.
    LinePins {
        /// The line.
        gsi: Gsi,
        /// A device on it that drives another pin.
        first: KeyPath,
    },
    /// The numbers of a policy are within their bounds.
    PolicyRange {
        /// The number.
        found: u32,
        /// Its bounds.
        bounds: RangeInclusive<u32>,
    },
    /// A device's standby is a partition of the file.
    StandbyMissing(String),
    /// A device's standby is another partition than its own.
    StandbyOwn,
    /// A virtual pin is below [`VIRTUAL_PINS`].
    VpinRange(Pin),
    /// A line with a GSI that is no virtual pin needs its pin said.
    VpinMissing(Gsi),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PartitionCount(0) => f.write_str("there is no partition"),
            Self::PartitionCount(found) => write!(f, "{found} partitions are too many"),
            Self::NameLength(0) => f.write_str("the name is empty"),
            Self::NameLength(found) => write!(f, "a name of {found} bytes is too long"),
            Self::NameCharacter(found) => write!(f, "{found:?} may not stand in a name"),
            Self::NameTaken { first } => write!(f, "the name is taken by {first}"),
            Self::TerminalTaken { first } => write!(f, "the console is the terminal of another by {first}"),
            Self::NoCpu => f.write_str("there is no CPU"),
            Self::CpuCount(found) => write!(f, "{found} CPUs are too many"),
            Self::CpuTaken { cpu, first } => write!(f, "CPU {} is taken by {first}", cpu.0),
            Self::MemorySize(bytes) if *bytes < MIN_MEMORY_BYTES => write!(f, "{bytes} bytes are too few"),
            Self::MemorySize(bytes) => write!(f, "{bytes} bytes are too many"),
            Self::MemoryPages(bytes) => write!(f, "{bytes} bytes are not whole pages of {PAGE_BYTES}"),
            Self::PlacePages(at) => write!(f, "{at} is not the start of a page of {PAGE_BYTES} bytes"),
            Self::PlaceRange(at) => write!(f, "no partition's memory can lie at {at}"),
            Self::PlaceTaken { shared, first } => {
                write!(f, "{:#x} to {:#x} is the memory of {first} too", shared.start(), shared.end())
            }
            Self::PolicyRange { found, .. } => write!(f, "{found} is out of range"),
            Self::NoSuchImage { index, images } => write!(f, "{index} of only {images}"),
            Self::ModuleCount(found) => write!(f, "{found} modules are too many"),
            Self::CmdlineLength(found) => write!(f, "a command line of {found} bytes is too long"),
            Self::CmdlineControl(at) => write!(f, "a control character at byte {at}"),
            Self::PortTaken { ports, by, taken } => {
                write!(f, "{} would collide with {by} at {}", Ports(ports), Ports(taken))
            }
            Self::ExitPortEnd(port) => write!(f, "{EXIT_PORT_BYTES} ports from {port:#x} pass the last port"),
            Self::DeviceCount(found) => write!(f, "{found} devices are too many"),
            Self::FunctionTaken { bdf, first } => write!(f, "function {bdf} is taken by {first}"),
            Self::GsiRange(gsi) => write!(f, "{gsi} is out of range"),
            Self::LineShared { gsi, first } => write!(
                f,
                "{gsi} is the line of {first} too, which is another partition's or may become it, and `mask = \"line\"` would silence it as well"
            ),
            Self::LineCrowded { gsi, first } => {
                write!(f, "{gsi} has {MAX_SHARERS} devices already, the first of them {first}")
            }
            Self::MaskConflict { gsi, mask, first } => {
                write!(
                    f,
                    "{gsi} is silenced for all its devices in one way: here it is \"{mask}\", but not in {first}"
                )
            }
            Self::LinePins { gsi, first } => write!(
                f,
                "{gsi} is silenced as a whole, so its devices have to drive one virtual pin, but {first} drives another"
            ),
            Self::StandbyMissing(name) => write!(f, "there is no partition {name:?}"),
            Self::StandbyOwn => f.write_str("it is the device's own partition"),
            Self::VpinRange(pin) => write!(f, "the guest's IO-APIC has no pin {}", pin.0),
            Self::VpinMissing(gsi) => write!(f, "{gsi} has no pin of that number in the guest's IO-APIC"),
        }
    }
}

impl Rule {
    /// The rule's entry in the catalogue.
    pub const fn message(&self) -> Message {
        match self {
            Self::PartitionCount(_) => Message::PartitionCount,
            Self::NameLength(_) => Message::NameLength,
            Self::NameCharacter(_) => Message::NameCharacter,
            Self::NameTaken { .. } => Message::NameTaken,
            Self::TerminalTaken { .. } => Message::TerminalTaken,
            Self::NoCpu => Message::NoCpu,
            Self::CpuCount(_) => Message::CpuCount,
            Self::CpuTaken { .. } => Message::CpuTaken,
            Self::MemorySize(_) => Message::MemorySize,
            Self::MemoryPages(_) => Message::MemoryPages,
            Self::PlacePages(_) | Self::PlaceRange(_) => Message::MemoryPlace,
            Self::PlaceTaken { .. } => Message::MemoryTaken,
            Self::PolicyRange { .. } => Message::PolicyRange,
            Self::NoSuchImage { .. } => Message::NoSuchImage,
            Self::ModuleCount(_) => Message::ModuleCount,
            Self::CmdlineLength(_) => Message::CmdlineLength,
            Self::CmdlineControl(_) => Message::CmdlineControl,
            Self::PortTaken { .. } => Message::PortTaken,
            Self::ExitPortEnd(_) => Message::ExitPortEnd,
            Self::DeviceCount(_) => Message::DeviceCount,
            Self::FunctionTaken { .. } => Message::FunctionTaken,
            Self::GsiRange(_) => Message::GsiRange,
            Self::LineShared { .. } => Message::LineShared,
            Self::LineCrowded { .. } => Message::LineCrowded,
            Self::MaskConflict { .. } => Message::MaskConflict,
            Self::LinePins { .. } => Message::LinePins,
            Self::StandbyMissing(_) => Message::StandbyMissing,
            Self::StandbyOwn => Message::StandbyOwn,
            Self::VpinRange(_) => Message::VpinRange,
            Self::VpinMissing(_) => Message::VpinMissing,
        }
    }

    /// What would be right, as an instruction that completes a sentence.
    pub fn remedy(&self) -> impl fmt::Display + '_ {
        fmt::from_fn(|f| match self {
            Self::PartitionCount(_) => write!(f, "write 1 to {MAX_PARTITIONS} [[partition]] tables"),
            Self::NameLength(_) => write!(f, "use 1 to {MAX_NAME_BYTES} bytes"),
            Self::NameCharacter(_) => f.write_str("use ASCII letters, digits, `-`, `_` and `.`"),
            Self::NameTaken { .. } => f.write_str("give each partition a name of its own"),
            Self::TerminalTaken { .. } => f.write_str("say `\"terminal\"` in one partition"),
            Self::NoCpu | Self::CpuCount(_) => {
                write!(f, "name 1 to {MAX_CPUS}, as in `cpus = [0]` or `cpus = [0, 1]`")
            }
            Self::CpuTaken { .. } => f.write_str("give each CPU to one partition"),
            Self::MemorySize(_) => f.write_str("use 1M to 256G"),
            Self::MemoryPages(bytes) => match page_align_up(*bytes) {
                Some(whole) => write!(f, "{whole} would be"),
                None => f.write_str("use whole pages"),
            },
            Self::PlacePages(at) => write!(f, "{} would be; a multiple of 2 MiB is best", at.page()),
            Self::PlaceRange(_) => {
                write!(f, "place it from {MIN_MEMORY_AT:#x} on, so that it ends below {MAX_MEMORY_END:#x}")
            }
            Self::PlaceTaken { .. } => f.write_str("place them apart, or leave one of the `memory-at` out"),
            Self::PolicyRange { bounds, .. } => write!(f, "use {} to {}", bounds.start(), bounds.end()),
            Self::NoSuchImage { .. } => f.write_str("pack the image too"),
            Self::ModuleCount(_) => write!(f, "use at most {MAX_MODULES}"),
            Self::CmdlineLength(_) => write!(f, "use at most {MAX_CMDLINE_BYTES}"),
            Self::CmdlineControl(_) => f.write_str("use spaces between words"),
            Self::PortTaken { .. } => f.write_str("choose ports of its own"),
            Self::ExitPortEnd(_) => write!(f, "use at most {:#x}", u16::MAX - EXIT_PORT_BYTES + 1),
            Self::DeviceCount(_) => write!(f, "use at most {MAX_DEVICES}"),
            Self::FunctionTaken { .. } => f.write_str("name each function once, in one partition"),
            Self::GsiRange(_) => write!(f, "use 0 to {}", MAX_GSIS - 1),
            Self::LineShared { .. } => {
                f.write_str("leave `mask` out of both, or move one to a slot with another line")
            }
            Self::LineCrowded { .. } => f.write_str("move some of the devices to slots with other lines"),
            Self::MaskConflict { .. } => f.write_str("say the same of both, or leave one `mask` out"),
            Self::LinePins { .. } => f.write_str("give both the same `vpin`, or leave `mask = \"line\"` out"),
            Self::StandbyMissing(_) => f.write_str("name one of the file's partitions"),
            Self::StandbyOwn => f.write_str("name another partition, or leave `standby` out"),
            Self::VpinRange(_) => write!(f, "use 0 to {}", VIRTUAL_PINS - 1),
            Self::VpinMissing(_) => write!(f, "add `vpin = N` with N from 0 to {}", VIRTUAL_PINS - 1),
        })
    }
}

/// Ports as a reader writes them.
struct Ports<'a>(&'a RangeInclusive<u16>);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (start, end) if start == end => write!(f, "port {start:#x}"),
            (start, end) => write!(f, "ports {start:#x} to {end:#x}"),
        }
    }
}

/// Judges `config`, whose [`ImageIndex`]es count `images` images.
///
/// A device without `gsi` may only be judged in part. Whoever learns its line from `_PRT` fills it in and judges
/// again: the rules about lines and virtual pins then see it.
///
/// # Errors
/// Every broken rule, in the order of the file: at least one, and the first [`MAX_VIOLATIONS`] if there are more.
pub fn validate(config: &Config, images: usize) -> Result<(), Vec<Violation>> {
    let mut judge = Judge::new(config, images);
    let path = KeyPath::root().key("partition");
    if !(1..=MAX_PARTITIONS).contains(&config.partitions.len()) {
        judge.broken(path.clone(), Rule::PartitionCount(config.partitions.len()));
    }
    for (index, partition) in config.partitions.iter().enumerate() {
        judge.partition(&path.index(index), partition);
    }
    if judge.violations.is_empty() { Ok(()) } else { Err(judge.violations) }
}

/// What was found so far, and who owns what.
struct Judge<'a> {
    config: &'a Config,
    images: usize,
    violations: Vec<Violation>,
    names: Owners<&'a str>,
    terminal: Owners<()>,
    cpus: Owners<CpuId>,
    functions: Owners<Bdf>,
    lines: BTreeMap<Gsi, Vec<Claim>>,
    places: Vec<(RangeInclusive<u64>, KeyPath)>,
    /// How many functions each partition stands by for, so far.
    shares: BTreeMap<usize, usize>,
}

impl<'a> Judge<'a> {
    fn new(config: &'a Config, images: usize) -> Self {
        Self {
            config,
            images,
            violations: Vec::new(),
            names: Owners::default(),
            terminal: Owners::default(),
            cpus: Owners::default(),
            functions: Owners::default(),
            lines: BTreeMap::new(),
            places: Vec::new(),
            shares: BTreeMap::new(),
        }
    }

    fn broken(&mut self, path: KeyPath, rule: Rule) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(Violation { path, rule });
        }
    }

    fn partition(&mut self, path: &KeyPath, partition: &'a Partition) {
        self.name(path.key("name"), &partition.name);
        self.cpus(&path.key("cpus"), &partition.cpus);
        let bytes = self.memory(path.key("memory"), partition.memory_bytes);
        if let Some(at) = partition.memory_at {
            self.place(path.key("memory-at"), at, bytes.unwrap_or(PAGE_BYTES));
        }
        self.image(path.key("kernel"), partition.kernel);
        let modules = path.key("modules");
        if partition.modules.len() > MAX_MODULES {
            self.broken(modules.clone(), Rule::ModuleCount(partition.modules.len()));
        }
        for (index, module) in partition.modules.iter().enumerate() {
            self.image(modules.index(index).key("file"), module.image);
            self.cmdline(modules.index(index).key("cmdline"), &module.cmdline);
        }
        self.cmdline(path.key("cmdline"), &partition.cmdline);
        self.console(path.key("console"), partition.console);
        self.ports(path, partition);
        self.restart(path, &partition.restart);
        let devices = path.key("device");
        if partition.devices.len() > MAX_DEVICES {
            self.broken(devices.clone(), Rule::DeviceCount(partition.devices.len()));
        }
        for (index, device) in partition.devices.iter().enumerate() {
            self.device(&devices.index(index), device, path);
        }
    }

    fn name(&mut self, path: KeyPath, name: &'a str) {
        if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
            self.broken(path.clone(), Rule::NameLength(name.len()));
        }
        if let Some(other) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_.".contains(*c))) {
            self.broken(path.clone(), Rule::NameCharacter(other));
        }
        if let Some(first) = self.names.claim(name, &path) {
            self.broken(path, Rule::NameTaken { first });
        }
    }

    fn console(&mut self, path: KeyPath, console: Console) {
        if console == Console::Terminal
            && let Some(first) = self.terminal.claim((), &path)
        {
            self.broken(path, Rule::TerminalTaken { first });
        }
    }

    fn cpus(&mut self, path: &KeyPath, cpus: &[CpuId]) {
        match cpus.len() {
            0 => self.broken(path.clone(), Rule::NoCpu),
            1..=MAX_CPUS => {}
            many => self.broken(path.clone(), Rule::CpuCount(many)),
        }
        for (index, &cpu) in cpus.iter().enumerate() {
            let path = path.index(index);
            if let Some(first) = self.cpus.claim(cpu, &path) {
                self.broken(path, Rule::CpuTaken { cpu, first });
            }
        }
    }

    /// The size, if it is one.
    fn memory(&mut self, path: KeyPath, bytes: u64) -> Option<u64> {
        if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes) {
            self.broken(path, Rule::MemorySize(bytes));
            None
        } else if !bytes.is_multiple_of(PAGE_BYTES) {
            self.broken(path, Rule::MemoryPages(bytes));
            None
        } else {
            Some(bytes)
        }
    }

    /// Of a partition whose size was refused only the first page is claimed: nobody knows what its memory would touch.
    fn place(&mut self, path: KeyPath, at: HostPhys, bytes: u64) {
        if !at.is_aligned(PAGE_BYTES) {
            self.broken(path, Rule::PlacePages(at));
            return;
        }
        let last = at.checked_add(bytes.saturating_sub(1)).map(HostPhys::raw);
        let Some(last) = last.filter(|last| at.raw() >= MIN_MEMORY_AT && *last < MAX_MEMORY_END) else {
            self.broken(path, Rule::PlaceRange(at));
            return;
        };
        let claim = at.raw()..=last;
        let mut others = self.places.iter();
        let other = others.find(|(other, _)| claim.start() <= other.end() && other.start() <= claim.end());
        if let Some((other, first)) = other {
            let shared = *claim.start().max(other.start())..=*claim.end().min(other.end());
            let first = first.clone();
            self.broken(path.clone(), Rule::PlaceTaken { shared, first });
        }
        self.places.push((claim, path));
    }

    fn image(&mut self, path: KeyPath, index: ImageIndex) {
        if usize::from(index.0) >= self.images {
            self.broken(path, Rule::NoSuchImage { index, images: self.images });
        }
    }

    fn cmdline(&mut self, path: KeyPath, text: &str) {
        if text.len() > MAX_CMDLINE_BYTES {
            self.broken(path.clone(), Rule::CmdlineLength(text.len()));
        }
        if let Some(at) = text.find(char::is_control) {
            self.broken(path, Rule::CmdlineControl(at));
        }
    }

    fn ports(&mut self, path: &KeyPath, partition: &Partition) {
        let mut taken = alloc::vec![
            ("COM1", COM1_PORTS),
            ("the interval timer", TIMER_PORTS),
            ("the clock", CMOS_PORTS),
            ("the power registers", POWER_PORTS),
            ("the PCI configuration ports", PCI_PORTS),
        ];
        if partition.test_device {
            let ports = [TEST_REGISTER_PORTS, TEST_FLUSH_PORTS, TEST_LINE_PORTS];
            taken.extend(ports.map(|ports| ("the test device", ports)));
            taken.extend(PIC_PORTS.map(|ports| ("the pair of 8259s", ports)));
        }
        let claims = [
            ("debug-port", "the debug port", partition.debug_port, 1),
            ("exit-port", "the exit port", partition.exit_port, EXIT_PORT_BYTES),
        ];
        for (key, name, start, count) in claims {
            let Some(start) = start else { continue };
            let Some(end) = start.checked_add(count - 1) else {
                self.broken(path.key(key), Rule::ExitPortEnd(start));
                continue;
            };
            let ports = start..=end;
            for (by, taken) in &taken {
                if start <= *taken.end() && *taken.start() <= end {
                    let rule = Rule::PortTaken { ports: ports.clone(), by, taken: taken.clone() };
                    self.broken(path.key(key), rule);
                }
            }
            taken.push((name, ports));
        }
    }

    fn device(&mut self, path: &KeyPath, device: &Device, partition: &KeyPath) {
        let function = path.key("bdf");
        if let Some(first) = self.functions.claim(device.bdf, &function) {
            self.broken(function, Rule::FunctionTaken { bdf: device.bdf, first });
        }
        self.policy(path, &device.policy);
        if let Some(pin) = device.vpin.filter(|pin| pin.0 >= VIRTUAL_PINS) {
            self.broken(path.key("vpin"), Rule::VpinRange(pin));
        }
        self.standby(path, device, partition);
        let Some(gsi) = device.gsi else { return };
        if gsi.0 >= MAX_GSIS {
            self.broken(path.key("gsi"), Rule::GsiRange(gsi));
            return;
        }
        let vpin = device.virtual_pin(gsi);
        if device.vpin.is_none() && vpin.is_none() {
            self.broken(path.key("gsi"), Rule::VpinMissing(gsi));
        }
        let claim = Claim {
            path: path.clone(),
            partition: device.standby.is_none().then(|| partition.clone()),
            mask: device.mask,
            vpin,
        };
        self.line(gsi, claim);
    }

    fn standby(&mut self, path: &KeyPath, device: &Device, partition: &KeyPath) {
        let Some(standby) = &device.standby else { return };
        let key = path.key("standby");
        if let Some(pin) = standby.vpin.filter(|pin| pin.0 >= VIRTUAL_PINS) {
            self.broken(path.key("standby-vpin"), Rule::VpinRange(pin));
        }
        let Some(index) = self.config.numbered(&standby.partition) else {
            self.broken(key, Rule::StandbyMissing(standby.partition.clone()));
            return;
        };
        if *partition == KeyPath::root().key("partition").index(index) {
            self.broken(key, Rule::StandbyOwn);
            return;
        }
        let shares = self.shares.entry(index).or_default();
        *shares = shares.saturating_add(1);
        let own = self.config.partitions.get(index).map_or(0, |partition| partition.devices.len());
        let all = own.saturating_add(*shares);
        if all > MAX_DEVICES {
            self.broken(key, Rule::DeviceCount(all));
        }
    }

    /// A device beside those that are on the line already.
    fn line(&mut self, gsi: Gsi, new: Claim) {
        let others = self.lines.entry(gsi).or_default();
        let found = others.iter().find_map(|other| new.beside(other, gsi));
        let first = others.first().map(|other| other.path.key("gsi"));
        let crowded = first.filter(|_| others.len() == MAX_SHARERS);
        if let Some(first) = crowded {
            self.broken(new.path.key("gsi"), Rule::LineCrowded { gsi, first });
            return;
        }
        let violation = found.map(|(key, rule)| (new.path.key(key), rule));
        others.push(new);
        if let Some((path, rule)) = violation {
            self.broken(path, rule);
        }
    }

    fn restart(&mut self, path: &KeyPath, policy: &RestartPolicy) {
        // 0 is how "never" is written.
        let at_most = policy.at_most.filter(|most| *most != 0);
        let at_most = at_most.map(|most| ("restart", most, RestartPolicy::AT_MOST));
        let pause = ("restart-pause", policy.pause_ms, RestartPolicy::PAUSE_MS);
        for (key, found, bounds) in at_most.into_iter().chain([pause]) {
            if !bounds.contains(&found) {
                self.broken(path.key(key), Rule::PolicyRange { found, bounds });
            }
        }
    }

    fn policy(&mut self, path: &KeyPath, policy: &DevicePolicy) {
        let storm = policy.storm.into_iter().flat_map(|storm| {
            [
                ("storm-limit", storm.limit, StormLimit::LIMIT),
                ("storm-window", storm.window_ms, StormLimit::WINDOW_MS),
                ("storm-pause", storm.pause_ms, StormLimit::PAUSE_MS),
                ("storm-retries", storm.retries, StormLimit::RETRIES),
            ]
        });
        let deadline =
            policy.never_eoi.map(|deadline| ("never-eoi-after", deadline.after_ms, EoiDeadline::AFTER_MS));
        for (key, found, bounds) in storm.chain(deadline) {
            if !bounds.contains(&found) {
                self.broken(path.key(key), Rule::PolicyRange { found, bounds });
            }
        }
    }
}

/// A device on a line.
struct Claim {
    path: KeyPath,
    /// Whose it is for good; none if it may change hands.
    partition: Option<KeyPath>,
    mask: MaskPolicy,
    vpin: Option<Pin>,
}

impl Claim {
    /// What keeps this device from sharing the line with `other`: the key that says so, and the rule.
    fn beside(&self, other: &Self, gsi: Gsi) -> Option<(&'static str, Rule)> {
        let at = |key| other.path.key(key);
        let at_the_line = self.mask == MaskPolicy::Line || other.mask == MaskPolicy::Line;
        let together = self.partition.is_some() && self.partition == other.partition;
        if !together && at_the_line {
            return Some(("gsi", Rule::LineShared { gsi, first: at("gsi") }));
        }
        match (self.mask, other.mask) {
            (MaskPolicy::Line, MaskPolicy::Function) | (MaskPolicy::Function, MaskPolicy::Line) => {
                Some(("mask", Rule::MaskConflict { gsi, mask: self.mask, first: at("mask") }))
            }
            _ if at_the_line && self.vpin != other.vpin => {
                Some(("vpin", Rule::LinePins { gsi, first: other.path.clone() }))
            }
            _ => None,
        }
    }
}

/// Who claimed a thing first.
struct Owners<T>(BTreeMap<T, KeyPath>);

impl<T> Default for Owners<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord> Owners<T> {
    /// Notes the claim, or returns the path of an earlier one.
    fn claim(&mut self, thing: T, path: &KeyPath) -> Option<KeyPath> {
        match self.0.entry(thing) {
            Entry::Occupied(first) => Some(first.get().clone()),
            Entry::Vacant(free) => {
                free.insert(path.clone());
                None
            }
        }
    }
}
