//! What Levelhead says when something is wrong, or over: every refusal and every partition's end is one *record*.
//!
//! A record is one line that names who is at fault, what is wrong, where, and what to do:
//!
//! ```text
//! ERROR Config/vpin-range: partition[0].device[1].vpin: the guest's IO-APIC has no pin 24; to do: use 0 to 23
//! LEVEL Party/code: where: what; to do: remedy
//! ```
//!
//! The catalogue below is the only place where codes are made. `docs/messages.md` is written from it, and a record
//! cannot be built without an entry: whoever adds a refusal adds its meaning and its remedy.

use alloc::string::String;
use core::fmt;

/// A line below the record of a guest's end: what its CPU reports is not the guest's state but the hypervisor's, so that the end says
/// nothing of the guest.
pub const STATE_LOST: &str = "this is the hypervisor's own state, not the guest's: the CPU (or its emulator) is at fault, see docs/adr/0001";

/// Who is at fault, and so who can mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// The program in a partition. It ends that partition and nothing else.
    Guest,
    /// Whoever wrote the configuration, packed the bundle, or chose the command line and the machine's size.
    Config,
    /// The firmware, or the machine as the firmware presents it.
    Firmware,
    /// A PCI function.
    Device,
    /// Levelhead itself. The only party whose fault stops the machine.
    Bug,
}

impl Party {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Guest, Self::Config, Self::Firmware, Self::Device, Self::Bug];
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "Guest",
            Self::Config => "Config",
            Self::Firmware => "Firmware",
            Self::Device => "Device",
            Self::Bug => "Bug",
        })
    }
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Nothing is wrong.
    Info,
    /// The run goes on, other than it was asked for.
    Warn,
    /// A partition ended badly, or something was refused.
    Error,
}

impl fmt::Display for Level {
    /// As the console spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        })
    }
}

/// Makes [`Message`] from a table: party and level, then `Name "code" "what it means" "what to do"`.
macro_rules! catalogue {
    ($($party:ident $level:ident { $($name:ident $code:literal $meaning:literal $remedy:literal)* })*) => {
        /// One kind of record. Its code is unique among those of its party.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Message {
            $($(#[doc = $meaning] $name,)*)*
        }

        impl Message {
            /// The whole catalogue, by party.
            pub const ALL: &'static [Self] = &[$($(Self::$name,)*)*];

            /// Who is at fault.
            pub const fn party(self) -> Party {
                match self { $($(Self::$name => Party::$party,)*)* }
            }

            /// How much it matters.
            pub const fn level(self) -> Level {
                match self { $($(Self::$name => Level::$level,)*)* }
            }

            /// What it is looked up by, such as `vpin-range`.
            pub const fn code(self) -> &'static str {
                match self { $($(Self::$name => $code,)*)* }
            }

            /// What it means, as a sentence; what a record says that has nothing more exact to say.
            pub const fn meaning(self) -> &'static str {
                match self { $($(Self::$name => $meaning,)*)* }
            }

            /// What to do, as an instruction; what a record says that has nothing more exact to say.
            pub const fn remedy(self) -> &'static str {
                match self { $($(Self::$name => $remedy,)*)* }
            }
        }
    };
}

catalogue! {
    Guest Info {
        ReportedSuccess "reported-success"
            "the guest reported success"
            "nothing"
        PoweredOff "powered-off"
            "the guest powered itself off"
            "nothing"
    }
    Guest Warn {
        ConsoleFlood "console-flood"
            "the guest printed more than a console takes, and its output is dropped for a while"
            "print less: 64 KiB at once, and a few KiB each second from then on"
    }
    Guest Error {
        ReportedFailure "reported-failure"
            "the guest reported failure, by its exit port or by hypercall"
            "read the guest's own output above this record"
        HaltedForEver "halted-for-ever"
            "the guest halted with interrupts off, so nothing can wake it"
            "look at the code before RIP: a guest that is done writes to its exit port or calls EXIT"
        TripleFault "triple-fault"
            "the guest took an exception that it could not deliver, twice over"
            "look at RIP, CR2 and the guest's IDT; for a guest that restarts itself in this way say `restart` in its partition"
        ResetRequested "reset-requested"
            "the guest asked to be started again"
            "say `restart` in its partition, if it has none"
        RestartsUsedUp "restarts-used-up"
            "the guest ended once more than `restart` lets its partition start again"
            "look at the records before this one for why it ended"
        TaskSwitch "task-switch"
            "the guest asked for a hardware task switch, which is not supported"
            "switch tasks in software"
        ControlRegisters "control-registers"
            "the CPU refused to go on with the guest's control registers"
            "look at CR0, CR4 and EFER in the record for a combination that the manual forbids (APM2 15.5.1)"
        NoSuchMemory "no-such-memory"
            "the guest accessed an address where it has neither memory nor a device"
            "look at the address (the last number of info): memory ends where the configuration says, BARs lie where the guest put them"
        FetchFromNoMemory "fetch-from-no-memory"
            "the guest fetched an instruction from an address where it has no memory"
            "look at RIP and at the jump that led there"
        TablesInNoMemory "tables-in-no-memory"
            "the guest's page tables lie where it has no memory"
            "look at CR3 and at the entries it leads to"
        EventInNoMemory "event-in-no-memory"
            "an event's descriptor or stack lies where the guest has no memory"
            "look at the guest's IDTR, GDTR, TR and RSP"
        InstructionCutOff "instruction-cut-off"
            "an instruction that touches a device cannot be read to its end"
            "keep such instructions wholly in mapped memory"
        InstructionUnreadable "instruction-unreadable"
            "an instruction cannot be read as the guest's CPU reads it"
            "do not change code or page tables while another CPU of the guest runs on them"
        InstructionNotInMemory "instruction-not-in-memory"
            "an instruction that has to be emulated does not lie in the guest's memory"
            "run from memory, not from a device"
        InstructionNotEmulated "instruction-not-emulated"
            "an instruction that is not emulated touched a device"
            "access interrupt chips by plain moves of 1 to 8 bytes"
        FiveLevels "five-level-paging"
            "the guest switched five-level paging on, which is not supported"
            "leave CR4.LA57 clear; CPUID does not offer it"
        StringAcrossPages "string-across-pages"
            "a string port access crosses a page boundary within one element, which is not supported"
            "align the buffer to the size of its elements"
        StringNoMemory "string-no-memory"
            "a string port access reaches where the guest has no memory"
            "look at RSI or RDI in the record"
        ForeignException "foreign-exception"
            "an exception that cannot be given back to the guest"
            "look at RIP; report it if the guest did nothing unusual"
    }
    Config Error {
        TomlSyntax "toml-syntax"
            "the file is not TOML"
            "correct the syntax at this place"
        UnknownKey "unknown-key"
            "the key means nothing in this table"
            "correct its spelling or remove it; docs/config.md lists the keys"
        MissingKey "missing-key"
            "a key that must be there is missing"
            "add it; docs/config.md shows how"
        WrongType "wrong-type"
            "the value is of another type than the key takes"
            "write the value as docs/config.md shows it"
        WrongValue "wrong-value"
            "the value is none that the key takes"
            "write a value that docs/config.md allows"
        NoSuchFile "no-such-file"
            "a file does not exist, cannot be read, or is no file"
            "name a file relative to the configuration, or `guest:NAME` for one of the project's own guests"
        FileTooLarge "file-too-large"
            "a file is larger than anything of its kind can be"
            "name another file"
        WrongEncoding "wrong-encoding"
            "the file is not UTF-8, as TOML is"
            "save it as UTF-8"
        CompanionMissing "companion-missing"
            "a key says more about another one, which is not there"
            "add the other key, or remove this one"
        ImageName "image-name"
            "an image's file name is too long for a guest's command line"
            "rename the file"
        ImageCount "image-count"
            "the configuration names more different images than a bundle holds"
            "use fewer"
        PartitionCount "partition-count"
            "there is no partition, or there are more than a machine can hold"
            "write 1 to 32 [[partition]] tables"
        NameLength "name-length"
            "a partition's name is empty or too long"
            "use 1 to 31 bytes"
        NameCharacter "name-character"
            "a partition's name holds a character that may not stand there"
            "use ASCII letters, digits, `-`, `_` and `.`"
        NameTaken "name-taken"
            "two partitions have the same name"
            "give each partition a name of its own"
        TerminalTaken "terminal-taken"
            "two partitions have the console for their terminal"
            "say `\"terminal\"` in one partition"
        NoCpu "no-cpu"
            "a partition has no CPU"
            "name 1 to 32, as in `cpus = [0]` or `cpus = [0, 1]`"
        CpuCount "cpu-count"
            "a partition has too many CPUs"
            "name 1 to 32, as in `cpus = [0]` or `cpus = [0, 1]`"
        CpuTaken "cpu-taken"
            "a CPU is given to two partitions, or twice to one"
            "give each CPU to one partition"
        MemorySize "memory-size"
            "a partition's memory is too little or too much"
            "use 1M to 256G"
        MemoryPages "memory-pages"
            "a partition's memory is not whole pages of 4 KiB"
            "use a multiple of 4096 bytes"
        MemoryPlace "memory-place"
            "a partition's memory cannot lie where `memory-at` says: the address is wrong, or the machine has no free memory there"
            "choose a place, a multiple of 4096, in memory that the boot log shows to be usable and that nobody else has"
        MemoryTaken "memory-taken"
            "a piece of the machine's memory is given to two partitions"
            "place them apart, or leave one of the `memory-at` out"
        PolicyRange "policy-range"
            "a number of a policy is out of range"
            "use a number that docs/config.md allows"
        NoSuchImage "no-such-image"
            "the configuration counts an image that the bundle lacks"
            "pack the image too"
        ModuleCount "module-count"
            "a partition has too many modules"
            "use at most 16"
        CmdlineLength "cmdline-length"
            "a command line is too long"
            "use at most 4095 bytes"
        CmdlineControl "cmdline-control"
            "a command line holds a control character"
            "use spaces between words"
        PortTaken "port-taken"
            "two things of a guest's platform would answer at one I/O port"
            "choose ports of its own"
        ExitPortEnd "exit-port-end"
            "the exit port's four ports pass the last port"
            "use at most 0xfffc"
        DeviceCount "device-count"
            "a partition has too many devices"
            "use at most 32"
        FunctionTaken "function-taken"
            "a PCI function is given to two partitions, or twice to one"
            "name each function once, in one partition"
        StandbyMissing "standby-missing"
            "the partition that is to take a device over is not in the file"
            "name one of the file's partitions"
        StandbyOwn "standby-own"
            "a device's own partition is named as the one that is to take it over"
            "name another partition, or leave `standby` out"
        GsiRange "gsi-range"
            "a GSI is out of range"
            "use 0 to 255"
        LineShared "line-shared"
            "`mask = \"line\"` is asked for a line that partitions share, or may share one day, and would let one silence another's device"
            "leave `mask` out of all devices on the line, or move one to a slot with another line"
        LineCrowded "line-crowded"
            "more functions drive one interrupt line than it may have"
            "move some of the devices to slots with other lines; 8 may share one"
        MaskConflict "mask-conflict"
            "devices on one line ask for different ways to silence it"
            "say the same of all of them, or leave `mask` out"
        LinePins "line-pins"
            "devices whose line is silenced as a whole drive different pins of the guest's IO-APIC"
            "give all devices on the line the same `vpin`, or leave `mask = \"line\"` out"
        VpinRange "vpin-range"
            "the guest's IO-APIC has no such pin"
            "use 0 to 23"
        VpinMissing "vpin-missing"
            "the guest's IO-APIC has no pin with the number of this line's GSI"
            "add `vpin = N` with N from 0 to 23"
        KernelUnusable "kernel-unusable"
            "the kernel's image is not what can be started in this partition"
            "give a Multiboot 1, PVH or Linux image that lies in the partition's memory"
        KernelOutsideMemory "kernel-outside-memory"
            "a part of the kernel does not lie in the partition's memory"
            "give the partition more memory, or link the kernel to another address: from 1 MiB on, and below 640 KiB"
        ModuleTooLarge "module-too-large"
            "the guest's memory has no room for a module"
            "give the partition more memory, or a smaller module"
        InitrdText "initrd-text"
            "a module of a Linux kernel has a text, which nobody would read"
            "leave the module's `cmdline` out: what Linux is told stands in the partition's"
        BootDataTooLarge "boot-data-too-large"
            "the guest's memory has no room for what it is told at its start"
            "give the partition more memory, or shorter command lines"
        BundleMissing "bundle-missing"
            "the loader brought no bundle"
            "give one as the boot module (cargo xtask config pack FILE -o BUNDLE)"
        BundlePlace "bundle-place"
            "the bundle does not lie in usable memory below 4 GiB"
            "load it elsewhere, or give the machine more memory"
        BundleForeign "bundle-foreign"
            "the boot module is no bundle"
            "pass what `cargo xtask config pack` wrote, and nothing else"
        BundleRevision "bundle-revision"
            "the bundle is of another revision than this hypervisor reads"
            "pack it again with the xtask of this hypervisor"
        BundleDamaged "bundle-damaged"
            "the bundle was cut off or changed since it was packed"
            "copy it again, or pack it again"
        BundleConfig "bundle-config"
            "the bundle is whole, but the configuration in it cannot be"
            "pack it again with the xtask of this hypervisor"
        FactsDamaged "facts-damaged"
            "the log holds no whole and unharmed facts report"
            "record the console of a machine booted with the word `facts` again, to its last line"
        FactsImpossible "facts-impossible"
            "the facts file says what no machine can be"
            "collect the facts again (cargo xtask facts), and do not edit them"
        OptionValue "option-value"
            "a word of the hypervisor's command line has a value that it cannot have"
            "correct the word"
        SelftestCpus "selftest-cpus"
            "the self-test needs several CPUs, and this machine has one"
            "use a machine with more (for QEMU: -smp 4)"
        CpuMissing "cpu-missing"
            "the machine has no such CPU"
            "name a CPU that the boot log or the facts file lists"
        MemoryMissing "memory-missing"
            "the machine has not enough memory left for a partition"
            "give the partition less, or the machine more"
        DeviceMissing "device-missing"
            "the machine has no such PCI function"
            "name a function that the boot log or the facts file lists"
        NotAnEndpoint "not-an-endpoint"
            "the function is a bridge or of an unknown kind, and cannot be passed through"
            "name the device behind the bridge"
        LineMissing "line-missing"
            "no IO-APIC has that line"
            "give a `gsi` that an IO-APIC of the boot log or the facts file has"
        MaskImpossible "mask-impossible"
            "the device cannot be silenced the way the configuration asks for"
            "use `mask = \"line\"`, or leave it out"
        DeviceLimit "device-limit"
            "more devices with INTx than the hypervisor can carry, or no interrupt vector left for them"
            "pass fewer devices through"
        BarRoom "bar-room"
            "the guest's window for BARs has no room left"
            "pass fewer devices with large BARs to one partition"
        TargetApic "target-apic"
            "the CPU's APIC ID does not fit an IO-APIC's redirection table entry"
            "give the partition a CPU with an APIC ID below 256"
        PrtPlaces "prt-places"
            "more places would have to be looked up in the firmware's _PRT than there is room for"
            "give some devices their line (`gsi = N`)"
    }
    Guest Warn {
        NeverEoi "never-eoi"
            "the guest does not complete an interrupt: no EOI came in the time its device's `never-eoi-after` gives"
            "look at the guest's handler; what was done about it is what `never-eoi` says"
    }
    Config Warn {
        OptionUnknown "option-unknown"
            "a word of the hypervisor's command line means nothing"
            "use log=, exit=, selftest= and facts"
        TestDevice "test-device"
            "a partition has the test device, whose lines are no device's"
            "leave out `test-device`, unless its guest is a test"
    }
    Firmware Error {
        HandOver "hand-over"
            "the loader's hand-over cannot be used"
            "boot the image by PVH, version 1 or later (for QEMU: -kernel)"
        AcpiTables "acpi-tables"
            "there are no valid ACPI tables"
            "boot with firmware that provides them (for QEMU: leave acpi=on)"
        NoMadt "no-madt"
            "the ACPI tables have no MADT, without which interrupt chips cannot be found"
            "boot with firmware that provides one"
        NoIoApic "no-io-apic"
            "the MADT names no IO-APIC, without which INTx cannot be routed"
            "switch the IO-APIC on in the firmware's setup"
        NoSvm "no-svm"
            "the CPU has no SVM (CPUID 8000_0001 ECX bit 2)"
            "use an AMD CPU with virtualization, switched on in the firmware's setup (for QEMU: -cpu max or EPYC)"
        SvmLocked "svm-locked"
            "firmware disabled SVM and locked the switch (VM_CR.SVMDIS)"
            "enable virtualization in the firmware's setup"
        NoNestedPaging "no-nested-paging"
            "the CPU has no nested paging (CPUID 8000_000A EDX bit 0), which bounds what a guest can reach"
            "use a CPU that has it (for QEMU: -cpu max, or add +npt)"
        HypervisorMemory "hypervisor-memory"
            "the machine has not enough memory for the hypervisor itself"
            "use a machine with more"
        CpuSilent "cpu-silent"
            "a CPU that the firmware lists did not start"
            "leave that CPU out of the configuration, or disable it in the firmware's setup"
        AmlGaveUp "aml-gave-up"
            "the firmware's AML cannot be interpreted, or gave no routing (_PRT)"
            "give each of these devices its line in the configuration (gsi = N): then the firmware's AML is never run"
        NoRoute "no-route"
            "the firmware's _PRT has no entry for a device's interrupt pin"
            "give the device its line in the configuration (gsi = N)"
        BarUnplaced "bar-unplaced"
            "a BAR has no address, or one that it cannot have in a guest"
            "let the firmware assign addresses to all devices, or update it"
        BarOverlap "bar-overlap"
            "a BAR overlaps memory, or registers or ports of the chipset"
            "let the firmware assign addresses anew, or update it"
        NoClock "no-clock"
            "the machine has no ACPI power management timer, by which a policy's milliseconds could be measured"
            "leave out storm-limit, never-eoi and restart, or use firmware whose FADT names the timer"
    }
    Firmware Warn {
        MemoryPieces "memory-pieces"
            "the memory map has more pieces than are kept, so some memory is not used"
            "nothing, unless memory is short"
        RouteWrong "route-wrong"
            "a device asserts its INTx, but nothing ever arrived at its line: the routing is wrong"
            "give the device its line in the configuration (gsi = N)"
    }
    Device Error {
        DeviceSilent "device-silent"
            "the function does not answer any more"
            "reseat the card, or leave it out of the configuration"
        BarMalformed "bar-malformed"
            "a base address register answers what none can hold"
            "leave the device out of the configuration"
        LineUnshareable "line-unshareable"
            "a line has to be silenced at each of its functions, and one of them cannot be: DisINTx does not work there"
            "move that card to a slot with another line, or give all devices on the line to one partition and one `vpin`"
        ResetFailed "reset-failed"
            "a function did not come back from its reset as it was, and is silent until the machine starts again"
            "look at the device and at its slot; its partition has started again without it"
        LineStopped "line-stopped"
            "a line interrupts again and again and none of its devices says that it asserts: the line is masked for good"
            "look for a device whose DisINTx or INTx Status does not do what it should, or for one that is left to nobody; give it a line of its own"
        DeviceVanished "device-vanished"
            "a function answers all-ones: it is gone, or asleep behind the hypervisor's back, and its source is quarantined"
            "reseat the card"
        NoReset "no-reset"
            "nothing resets the function, and `no-reset = \"refuse\"` asks for that"
            "use `no-reset = \"mask\"`, which passes the function as it is, or give the partition all that is on its bus"
        BarShared "bar-shared"
            "a BAR shares a page of memory, or ports, with a function of somebody else"
            "give both functions to one partition, or let the firmware place them apart"
        StormQuarantined "storm-quarantined"
            "a device exceeded its `storm-limit` again after each of its `storm-retries` admissions: it is silenced for good"
            "look at the device and at its driver; raise `storm-limit` if it is meant to interrupt so often"
    }
    Device Warn {
        Storm "storm"
            "a device interrupts more often than its `storm-limit` allows: it is silenced for its `storm-pause`"
            "look at the device and at its driver; raise `storm-limit` if it is meant to interrupt so often"
        ResetNoEffect "reset-no-effect"
            "what should reset the function did nothing, so its state goes on into the next life of its guest"
            "nothing; with `no-reset = \"refuse\"` such a function is silenced for good instead"
        DisIntxStuck "disintx-stuck"
            "DisINTx cannot silence the function, so its line is masked instead"
            "nothing; such a function cannot share its line with another partition"
        LineDemoted "line-demoted"
            "a function asserts although DisINTx is set, or without INTx Status: its line is masked instead from now on"
            "nothing; use `mask = \"line\"`, and never let such a function share its line"
        StatusStuck "status-stuck"
            "INTx Status of a function stays set from completion to completion: its wire alone tells from now on when it asserts, until Status is seen clear"
            "nothing if its driver serves it: the function lies; a driver that never does looks the same"
        BystanderLoud "bystander-loud"
            "a function that is left to nobody cannot be silenced: DisINTx does not work there, and its line is the line of a device"
            "remove the card, switch it off in the firmware's setup, or move it to a slot with another line"
    }
    Bug Error {
        LineHeld "line-held"
            "an IO-APIC held a line for an EOI that did not come, and was made to let go"
            "report it with the whole console log"
        LedgerOpen "ledger-open"
            "the books of a source did not balance when its guest ended"
            "report it with the whole console log"
        MachineCheck "machine-check"
            "a machine check while a guest ran"
            "look for failing hardware"
        UnexpectedExit "unexpected-exit"
            "an exit that was not asked for"
            "report it with the whole log"
        InternalError "internal-error"
            "the hypervisor contradicts itself"
            "report it with the whole log"
        Panic "panic"
            "the hypervisor gave up"
            "report it with the whole log; `cargo xtask symbolise` names the places"
        Exception "exception"
            "an exception in the hypervisor itself"
            "report it with the whole log; `cargo xtask symbolise` names the places"
    }
}

impl fmt::Display for Message {
    /// Party and code, as records and documents spell them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.party(), self.code())
    }
}

/// One record, ready to be printed: borrowed parts, so that it can be made when nothing may be allocated.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// What kind.
    pub message: Message,
    /// Where: a key of the configuration, a partition, a device, an address.
    pub place: &'a dyn fmt::Display,
    /// What is wrong, with its values; the meaning of `message` when absent.
    pub what: Option<&'a dyn fmt::Display>,
    /// What to do, with its values; the remedy of `message` when absent.
    pub remedy: Option<&'a dyn fmt::Display>,
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({self})")
    }
}

impl fmt::Display for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, place, what, remedy } = self;
        write!(f, "{:<5} {message}: {place}: ", message.level())?;
        match what {
            Some(what) => write!(f, "{what}")?,
            None => f.write_str(message.meaning())?,
        }
        if message.level() == Level::Info {
            return Ok(());
        }
        match remedy {
            Some(remedy) => write!(f, "; to do: {remedy}"),
            None => write!(f, "; to do: {}", message.remedy()),
        }
    }
}

/// Why something was refused: a record that owns its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind.
    pub message: Message,
    /// Where.
    pub place: String,
    /// What is wrong, with its values.
    pub what: String,
    /// What would be right, where more exact than the catalogue.
    pub remedy: Option<String>,
}

impl Refusal {
    /// A refusal with the catalogue's remedy.
    pub fn new(message: Message, place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { message, place: place.into(), what: what.into(), remedy: None }
    }

    /// The same with a remedy of its own.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, place, what, remedy } = self;
        let remedy = remedy.as_ref().map(|remedy| remedy as &dyn fmt::Display);
        Record { message: *message, place, what: Some(what), remedy }.fmt(f)
    }
}

impl core::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::string::ToString;

    #[test]
    fn a_code_names_one_message() {
        let codes: BTreeSet<&str> = Message::ALL.iter().map(|message| message.code()).collect();
        assert_eq!(codes.len(), Message::ALL.len());
        for code in codes {
            assert!(code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{code}");
        }
    }

    #[test]
    fn every_message_says_what_it_means_and_what_to_do() {
        for message in Message::ALL {
            for text in [message.meaning(), message.remedy()] {
                assert!(!text.is_empty() && !text.ends_with('.') && text == text.trim(), "{message}: {text}");
                // A record is one line, and its parts can be told apart.
                assert!(!text.contains('\n') && !text.contains("; to do: "), "{message}: {text}");
            }
        }
    }

    #[test]
    fn a_record_is_one_line_with_party_place_fault_and_remedy() {
        let refusal = Refusal::new(Message::VpinRange, "partition[0].device[1].vpin", "there is no pin 24");
        assert_eq!(
            refusal.to_string(),
            "ERROR Config/vpin-range: partition[0].device[1].vpin: there is no pin 24; to do: use 0 to 23"
        );
        let own = refusal.remedy("take 6");
        assert!(own.to_string().ends_with("no pin 24; to do: take 6"));
        let end =
            Record { message: Message::ReportedSuccess, place: &"partition a", what: None, remedy: None };
        assert_eq!(end.to_string(), "INFO  Guest/reported-success: partition a: the guest reported success");
    }
}
