//! The keys of a configuration, each defined once: the reader takes names and examples from here, `docs/config.md` the rest.

use levelhead::config::{
    EXIT_PORT_BYTES, MAX_CMDLINE_BYTES, MAX_CPUS, MAX_DEVICES, MAX_GSIS, MAX_MEMORY_END, MAX_MODULES,
    MAX_NAME_BYTES, MAX_PARTITIONS, MIN_MEMORY_AT, VIRTUAL_PINS,
};
use levelhead::irq::MAX_SHARERS;
use levelhead::message::Message;
use levelhead::policy::{EoiDeadline, RestartPolicy, StormLimit};

/// A key.
#[derive(Debug)]
pub struct Key {
    /// As TOML spells it.
    pub name: &'static str,
    /// The type of its value.
    pub kind: &'static str,
    /// What counts without it; `None` when it must be there.
    pub default: Option<&'static str>,
    /// What values it takes.
    pub range: fn() -> String,
    /// What it means.
    pub meaning: &'static str,
    /// A line that would be right.
    pub example: &'static str,
    /// What can be said of it, besides wrong types and values.
    pub messages: &'static [Message],
}

/// A table and its keys.
#[derive(Debug)]
pub struct Section {
    /// As it is written in the file.
    pub heading: &'static str,
    /// Its keys, in the order of the documents.
    pub keys: &'static [&'static Key],
}

/// All tables.
pub const SECTIONS: [Section; 4] = [
    Section { heading: "the file", keys: &[&PARTITION] },
    Section {
        heading: "[[partition]]",
        keys: &[
            &NAME,
            &CPUS,
            &MEMORY,
            &MEMORY_AT,
            &KERNEL,
            &CMDLINE,
            &MODULES,
            &CONSOLE,
            &DEBUG_PORT,
            &EXIT_PORT,
            &TEST_DEVICE,
            &USER_HYPERCALLS,
            &CONTROL,
            &RESTART,
            &RESTART_PAUSE,
            &DEVICE,
        ],
    },
    Section { heading: "modules = [{ ... }]", keys: &[&FILE, &MODULE_CMDLINE] },
    Section {
        heading: "[[partition.device]]",
        keys: &[
            &BDF,
            &GSI,
            &VPIN,
            &MASK,
            &STORM_LIMIT,
            &STORM_WINDOW,
            &STORM_PAUSE,
            &STORM_RETRIES,
            &NEVER_EOI,
            &NEVER_EOI_AFTER,
            &NO_RESET,
            &STANDBY,
            &STANDBY_VPIN,
        ],
    },
];

pub const PARTITION: Key = Key {
    name: "partition",
    kind: "array of tables",
    default: None,
    range: || format!("1 to {MAX_PARTITIONS}"),
    meaning: "the isolated systems the machine is divided into",
    example: "[[partition]]",
    messages: &[Message::PartitionCount],
};

pub const NAME: Key = Key {
    name: "name",
    kind: "string",
    default: None,
    range: || format!("1 to {MAX_NAME_BYTES} of ASCII letters, digits, `-`, `_` and `.`; unique"),
    meaning: "what reports call the partition",
    example: "name = \"demo\"",
    messages: &[Message::NameLength, Message::NameCharacter, Message::NameTaken],
};

pub const CPUS: Key = Key {
    name: "cpus",
    kind: "array of integers",
    default: None,
    range: || {
        format!(
            "1 to {MAX_CPUS} numbers, 0 to 255; 0 is the CPU that boots, the others count in the order of the MADT"
        )
    },
    meaning: "the CPUs it owns, one virtual CPU on each; the guest starts on the first and starts the others itself. No other \
              partition may name them",
    example: "cpus = [0]",
    messages: &[
        Message::NoCpu,
        Message::CpuCount,
        Message::CpuTaken,
        Message::CpuMissing,
        Message::TargetApic,
    ],
};

pub const MEMORY: Key = Key {
    name: "memory",
    kind: "string or integer",
    default: None,
    range: || "`\"1M\"` to `\"256G\"` (K, M, G: powers of 1024) or bytes, whole pages of 4096".into(),
    meaning: "how much memory the guest has",
    example: "memory = \"64M\"",
    messages: &[Message::MemorySize, Message::MemoryPages, Message::MemoryMissing, Message::BootDataTooLarge],
};

pub const MEMORY_AT: Key = Key {
    name: "memory-at",
    kind: "integer",
    default: Some("the hypervisor chooses"),
    range: || {
        format!(
            "{MIN_MEMORY_AT:#x} to {MAX_MEMORY_END:#x}, a multiple of 4096; a multiple of 2 MiB makes large pages possible"
        )
    },
    meaning: "the machine's address from which on the memory lies in one piece. It must be usable RAM that nobody else has; \
              the hypervisor makes room",
    example: "memory-at = 0x4000_0000",
    messages: &[Message::MemoryPlace, Message::MemoryTaken],
};

pub const KERNEL: Key = Key {
    name: "kernel",
    kind: "string",
    default: None,
    range: || "an image: a path relative to this file, or `guest:NAME`".into(),
    meaning: "the program that is started: Multiboot 1, or an ELF with a PVH note",
    example: "kernel = \"guest:echo\"",
    messages: &[
        Message::NoSuchFile,
        Message::FileTooLarge,
        Message::KernelUnusable,
        Message::KernelOutsideMemory,
        Message::ImageName,
        Message::ImageCount,
        Message::NoSuchImage,
    ],
};

pub const CMDLINE: Key = Key {
    name: "cmdline",
    kind: "string",
    default: Some("`\"\"`"),
    range: || format!("at most {MAX_CMDLINE_BYTES} bytes, no control characters"),
    meaning: "the kernel's command line, without the image's name",
    example: "cmdline = \"rounds=100\"",
    messages: &[Message::CmdlineLength, Message::CmdlineControl],
};

pub const MODULES: Key = Key {
    name: "modules",
    kind: "array of tables",
    default: Some("`[]`"),
    range: || format!("at most {MAX_MODULES}"),
    meaning: "files that are loaded beside the kernel; for Linux, archives that together are its initial RAM disk",
    example: "modules = [{ file = \"name\" }]",
    messages: &[Message::ModuleCount],
};

pub const CONSOLE: Key = Key {
    name: "console",
    kind: "boolean or string",
    default: Some("`true`"),
    range: || "`true`, `false` or `\"terminal\"`".into(),
    meaning: "whether what the guest writes to COM1 appears on the hypervisor's console: line by line, made harmless and with \
              the partition's name in front; or at once and as it is, while what is typed there goes to the guest (in one \
              partition, whose guest is trusted not to imitate the hypervisor's own lines)",
    example: "console = \"terminal\"",
    messages: &[Message::TerminalTaken],
};

pub const DEBUG_PORT: Key = Key {
    name: "debug-port",
    kind: "integer",
    default: Some("none"),
    range: || "0 to 0xffff, apart from the guest's other ports".into(),
    meaning: "an I/O port whose bytes appear on the console as well",
    example: "debug-port = 0xe9",
    messages: &[Message::PortTaken],
};

pub const EXIT_PORT: Key = Key {
    name: "exit-port",
    kind: "integer",
    default: Some("none"),
    range: || {
        format!(
            "0 to {:#x}: the first of {EXIT_PORT_BYTES} ports, apart from the guest's others",
            0xffff - EXIT_PORT_BYTES + 1
        )
    },
    meaning: "a value written there ends the partition: 0 and 0x10 are success, everything else is failure",
    example: "exit-port = 0xf4",
    messages: &[Message::PortTaken, Message::ExitPortEnd],
};

pub const TEST_DEVICE: Key = Key {
    name: "test-device",
    kind: "boolean",
    default: Some("`false`"),
    range: || "`true` or `false`".into(),
    meaning: "whether it has what KVM's unit tests need of QEMU's test device: a line to each IO-APIC input, which an OUT to \
              `0x2000` and the input's number raises or lowers, and a register at `0xe0`; and a pair of 8259s behind the first 16 \
              lines. Nothing but tests has a use for it",
    example: "test-device = true",
    messages: &[Message::TestDevice, Message::PortTaken],
};

pub const USER_HYPERCALLS: Key = Key {
    name: "user-hypercalls",
    kind: "boolean",
    default: Some("`false`"),
    range: || "`true` or `false`".into(),
    meaning: "whether code at CPL 1 to 3 may make hypercalls as well",
    example: "user-hypercalls = true",
    messages: &[],
};

pub const CONTROL: Key = Key {
    name: "control",
    kind: "boolean",
    default: Some("`false`"),
    range: || "`true` or `false`".into(),
    meaning: "whether it may ask for the interrupt sources of other partitions by hypercall, mask them, and have each device taken \
              over by its `standby`",
    example: "control = true",
    messages: &[],
};

pub const RESTART: Key = Key {
    name: "restart",
    kind: "string or integer",
    default: Some("`\"never\"`"),
    range: || format!("`\"never\"`, `\"always\"`, or how often at most, {}", bounds(&RestartPolicy::AT_MOST)),
    meaning: "whether the partition starts again when its guest ended other than by reporting success, or asked for it: as at \
              boot, with nothing left in its memory, and its functions reset",
    example: "restart = 3",
    messages: &[Message::PolicyRange, Message::NoClock, Message::RestartsUsedUp],
};

pub const RESTART_PAUSE: Key = Key {
    name: "restart-pause",
    kind: "integer",
    default: Some("100"),
    range: || format!("{} ms; with `restart`", bounds(&RestartPolicy::PAUSE_MS)),
    meaning: "how long after the end it starts again; doubled with each restart in a row of runs shorter than 10 s, up to 64 \
              times as long",
    example: "restart-pause = 100",
    messages: &[Message::PolicyRange, Message::CompanionMissing],
};

pub const DEVICE: Key = Key {
    name: "device",
    kind: "array of tables",
    default: Some("`[]`"),
    range: || format!("at most {MAX_DEVICES}"),
    meaning: "the PCI functions it owns",
    example: "[[partition.device]]",
    messages: &[Message::DeviceCount, Message::DeviceLimit, Message::BarRoom],
};

pub const FILE: Key = Key {
    name: "file",
    kind: "string",
    default: None,
    range: || "an image: a path relative to this file, or `guest:NAME`".into(),
    meaning: "the file; any bytes",
    example: "file = \"name\"",
    messages: &[
        Message::NoSuchFile,
        Message::FileTooLarge,
        Message::ModuleTooLarge,
        Message::ImageName,
        Message::ImageCount,
        Message::NoSuchImage,
    ],
};

pub const MODULE_CMDLINE: Key = Key {
    name: "cmdline",
    kind: "string",
    default: Some("`\"\"`"),
    range: CMDLINE.range,
    meaning: "the text that the guest finds with the module; none for Linux",
    example: "cmdline = \"the words of the module\"",
    messages: &[Message::CmdlineLength, Message::CmdlineControl, Message::InitrdText],
};

pub const BDF: Key = Key {
    name: "bdf",
    kind: "string",
    default: None,
    range: || "`\"bus:device.function\"` in hexadecimal; segment 0 only".into(),
    meaning: "the function's address on the machine, and in the guest",
    example: "bdf = \"00:03.0\"",
    messages: &[
        Message::FunctionTaken,
        Message::DeviceMissing,
        Message::NotAnEndpoint,
        Message::DeviceSilent,
        Message::BarMalformed,
        Message::BarShared,
        Message::BarUnplaced,
        Message::BarOverlap,
    ],
};

pub const GSI: Key = Key {
    name: "gsi",
    kind: "integer",
    default: Some("what the firmware's `_PRT` says"),
    range: || format!("0 to {}; up to {MAX_SHARERS} devices may share one", MAX_GSIS - 1),
    meaning: "the line (global system interrupt) that its interrupt pin drives",
    example: "gsi = 23",
    messages: &[
        Message::GsiRange,
        Message::LineShared,
        Message::LineCrowded,
        Message::LineUnshareable,
        Message::LineMissing,
        Message::NoRoute,
        Message::AmlGaveUp,
        Message::RouteWrong,
        Message::BystanderLoud,
    ],
};

pub const VPIN: Key = Key {
    name: "vpin",
    kind: "integer",
    default: Some("the number of the GSI"),
    range: || format!("0 to {}", VIRTUAL_PINS - 1),
    meaning: "the input of the guest's IO-APIC that the device drives. Devices may share one: it is high while any of them \
              holds it high",
    example: "vpin = 5",
    messages: &[Message::VpinRange, Message::VpinMissing, Message::LinePins],
};

pub const MASK: Key = Key {
    name: "mask",
    kind: "string",
    default: Some("`\"auto\"`"),
    range: || "`\"auto\"`, `\"line\"` or `\"function\"`".into(),
    meaning: "where the line is silenced while the guest handles it: at the IO-APIC, for all devices on it; at each function \
              (DisINTx); or as the hypervisor chooses: the line if nobody shares it, else each function, else, if DisINTx \
              does not work at one of them, the line, if they are of one partition and on one `vpin`",
    example: "mask = \"line\"",
    messages: &[Message::MaskImpossible, Message::MaskConflict, Message::DisIntxStuck],
};

pub const STORM_LIMIT: Key = Key {
    name: "storm-limit",
    kind: "integer",
    default: Some("no limit"),
    range: || bounds(&StormLimit::LIMIT),
    meaning: "the most interrupts in a window; beyond, the device is throttled, and in the end quarantined",
    example: "storm-limit = 1000",
    messages: &[Message::PolicyRange],
};

pub const STORM_WINDOW: Key = Key {
    name: "storm-window",
    kind: "integer",
    default: Some("100"),
    range: || format!("{} ms; with `storm-limit`", bounds(&StormLimit::WINDOW_MS)),
    meaning: "the length of that window",
    example: "storm-window = 100",
    messages: &[Message::PolicyRange, Message::CompanionMissing],
};

pub const STORM_PAUSE: Key = Key {
    name: "storm-pause",
    kind: "integer",
    default: Some("1000"),
    range: || format!("{} ms; with `storm-limit`", bounds(&StormLimit::PAUSE_MS)),
    meaning: "how long a throttled device stays silent",
    example: "storm-pause = 1000",
    messages: &[Message::PolicyRange, Message::CompanionMissing],
};

pub const STORM_RETRIES: Key = Key {
    name: "storm-retries",
    kind: "integer",
    default: Some("3"),
    range: || format!("{}; with `storm-limit`", bounds(&StormLimit::RETRIES)),
    meaning: "how often in a row it is admitted again before it is quarantined",
    example: "storm-retries = 3",
    messages: &[Message::PolicyRange, Message::CompanionMissing],
};

pub const NEVER_EOI: Key = Key {
    name: "never-eoi",
    kind: "string",
    default: Some("nobody looks"),
    range: || "`\"hold\"`, `\"complete\"` or `\"quarantine\"`".into(),
    meaning: "what is done about an interrupt that the guest does not complete: it is reported and stays in service; is \
              completed by force; or that, and the device is quarantined",
    example: "never-eoi = \"hold\"",
    messages: &[],
};

pub const NEVER_EOI_AFTER: Key = Key {
    name: "never-eoi-after",
    kind: "integer",
    default: Some("1000"),
    range: || format!("{} ms; with `never-eoi`", bounds(&EoiDeadline::AFTER_MS)),
    meaning: "after what time",
    example: "never-eoi-after = 1000",
    messages: &[Message::PolicyRange, Message::CompanionMissing],
};

pub const NO_RESET: Key = Key {
    name: "no-reset",
    kind: "string",
    default: Some("`\"mask\"`"),
    range: || "`\"mask\"` or `\"refuse\"`".into(),
    meaning: "what is done about a function that nothing resets: it has no function-level reset (FLR), does not reset on \
              its way from D3hot to D0, and its bus is not its partition's to reset. It is passed all the same, silenced and \
              with bus mastering off; or it is refused at boot",
    example: "no-reset = \"mask\"",
    messages: &[Message::NoReset],
};

pub const STANDBY: Key = Key {
    name: "standby",
    kind: "string",
    default: Some("nobody"),
    range: || "the `name` of another partition".into(),
    meaning: "the partition that may take the device over by hypercall, from a guest in whatever state, and from which this one may \
              take it back. It sees the device from the beginning, at the same addresses, but without effect until it has it",
    example: "standby = \"backup\"",
    messages: &[Message::StandbyMissing, Message::StandbyOwn, Message::DeviceCount],
};

pub const STANDBY_VPIN: Key = Key {
    name: "standby-vpin",
    kind: "integer",
    default: Some("as in the device's own partition"),
    range: || format!("0 to {}; with `standby`", VIRTUAL_PINS - 1),
    meaning: "the input of the standby guest's IO-APIC that the device drives while that guest has it",
    example: "standby-vpin = 5",
    messages: &[Message::VpinRange, Message::CompanionMissing],
};

fn bounds(range: &std::ops::RangeInclusive<u32>) -> String {
    format!("{} to {}", range.start(), range.end())
}

/// Where a key of another table belongs, as a remedy.
pub fn elsewhere(name: &str) -> Option<String> {
    let section = SECTIONS.iter().find(|section| section.keys.iter().any(|key| key.name == name))?;
    Some(match section.keys.iter().find(|key| key.name == name) {
        Some(key) if key.example.starts_with("[[") => format!("write `{}`", key.example),
        _ => format!("it belongs to {}", section.heading),
    })
}
