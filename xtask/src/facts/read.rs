//! Reads a facts file back into the library's [`Facts`]: strictly, and everything that is wrong in it at once, as
//! configurations are read. Whatever the hypervisor of this tree reports can be read; `docs/facts.md` has the keys.

use std::path::Path;

use levelhead::addr::HostPhys;
use levelhead::facts::frame::REVISION;
use levelhead::facts::text::{BAR_KINDS, DIS_INTX, MEMORY_KINDS, PINS, POLARITIES, TRIGGERS};
use levelhead::facts::{
    Facts, IoApic, MemoryEntry, MemoryKind, Override, PlaceOnBus, Processor, Proof, Routing,
};
use levelhead::irq::{ApicId, Gsi};
use levelhead::message::Message;
use levelhead::pci::capability::{Capabilities, FunctionLevelReset};
use levelhead::pci::ecam::EcamWindow;
use levelhead::pci::function::ClassCode;
use levelhead::pci::route::PrtEntry;
use levelhead::pci::{
    Bar, BarIndex, BarKind, Bars, Bdf, Command, Function, Header, IntPin, Offset, PinRoute, Topology,
};
use toml::de::DeValue;

use crate::config::reader::{Mistake, Read, Reader, Table, flag, number, one_of, text};
use crate::config::syntax::Source;
use crate::config::{self, Problems};

/// The base address registers, as they are written.
const BARS: [&str; 6] = [
    "bar0 = { kind = \"io\", address = 0xd000, bytes = 0x100 }",
    "bar1 = { kind = \"io\", address = 0xd000, bytes = 0x100 }",
    "bar2 = { kind = \"io\", address = 0xd000, bytes = 0x100 }",
    "bar3 = { kind = \"io\", address = 0xd000, bytes = 0x100 }",
    "bar4 = { kind = \"io\", address = 0xd000, bytes = 0x100 }",
    "bar5 = { kind = \"io\", address = 0xd000, bytes = 0x100 }",
];
/// What a register is called that makes no sense.
const MALFORMED: &str = "malformed";

/// Reads the facts file at `path`.
///
/// # Errors
/// Everything that is wrong with it, one record each.
pub fn load(path: &Path) -> Result<Facts, Problems> {
    let content = config::content(path, "a facts file", "name a file that `cargo xtask facts` wrote")?;
    parse(&path.display().to_string(), &content)
}

/// Reads the facts in `content`; mistakes are told as being in `file`.
///
/// # Errors
/// As [`load`].
pub fn parse(file: &str, content: &str) -> Result<Facts, Problems> {
    let source = Source::of(content);
    let mut reader = Reader::new(file, &source, |_| None);
    let facts = reader.document(facts)?;
    reader.finish()?;
    Ok(facts)
}

/// What contradicts itself or something else in the file.
fn impossible(what: impl Into<String>) -> Mistake {
    Mistake::new(Message::FactsImpossible, what, Message::FactsImpossible.remedy())
}

// What is missing or wrong has been noted, so that anything harmless may stand for it.

fn facts(table: &mut Table<'_, '_>) -> Facts {
    table.required("revision = 1", |value| {
        let revision: u32 = number(value, u32::MAX)?;
        let remedy = format!("collect the facts again with this tree: it reads revision {REVISION}");
        let other = Mistake::value(format!("{revision} is another revision"), remedy);
        (revision == REVISION).then_some(()).ok_or(other)
    });
    let hypervisor = table.required("hypervisor = \"0.1.0\"", text).unwrap_or_default();
    table.demand("[processor]");
    let processor = table.table("[processor]", processor).unwrap_or_default();
    table.demand("[[cpu]]");
    let cpus = table.tables("[[cpu]]", |table| {
        ApicId(table.required("apic = 0", |value| number(value, u32::MAX)).unwrap_or(0))
    });
    table.demand("[memory]");
    let (free_bytes, memory) = table.table("[memory]", memory).unwrap_or_default();
    let io_apics = table.tables("[[io-apic]]", io_apic);
    let overrides = table.tables("[[override]]", |table| Override {
        gsi: Gsi(table.required("gsi = 9", |value| number(value, u32::MAX)).unwrap_or(0)),
        polarity: table.optional("polarity = \"low\"", |value| one_of(value, &POLARITIES, "active level")),
    });
    let ecam = table.table("[ecam]", ecam).flatten();
    let (functions, proofs) = functions(table);
    table.demand("[routing]");
    let routing = table.table("[routing]", routing).unwrap_or_default();
    Facts {
        hypervisor,
        processor,
        cpus,
        memory,
        free_bytes,
        io_apics,
        overrides,
        ecam,
        topology: Topology::of(&[0], &functions),
        functions,
        proofs,
        routing,
    }
}

fn processor(table: &mut Table<'_, '_>) -> Processor {
    let svm_features = table.required("svm-features = 0x1", |value| number(value, "0xffffffff"));
    Processor {
        vendor: table.required("vendor = \"AuthenticAMD\"", text).unwrap_or_default(),
        model: table.required("model = \"a CPU\"", text).unwrap_or_default(),
        asids: table.required("asids = 16", |value| number(value, u32::MAX)).unwrap_or(0),
        svm_features: svm_features.unwrap_or(0),
    }
}

fn memory(table: &mut Table<'_, '_>) -> (u64, Vec<MemoryEntry>) {
    const MAP: &str = "map = [{ start = 0, bytes = 0x1000, kind = \"usable\" }]";
    let free = table.required("free = 0x8000000", wide).unwrap_or(0);
    table.demand(MAP);
    let map = table.tables(MAP, |table| MemoryEntry {
        start: table.required("start = 0x100000", wide).unwrap_or(0),
        bytes: table.required("bytes = 0x1000", wide).unwrap_or(0),
        kind: table
            .required("kind = \"usable\"", |value| one_of(value, &MEMORY_KINDS, "kind of memory"))
            .unwrap_or(MemoryKind::Reserved),
    });
    (free, map)
}

fn io_apic(table: &mut Table<'_, '_>) -> IoApic {
    IoApic {
        address: HostPhys::new(table.required("address = 0xfec00000", wide).unwrap_or(0)),
        gsi_base: table.required("gsi-base = 0", |value| number(value, u32::MAX)).unwrap_or(0),
        pins: table.required("pins = 24", pins).unwrap_or(1),
    }
}

fn pins(value: &DeValue<'_>) -> Read<u16> {
    let found: u16 = number(value, 256)?;
    let none = || Mistake::value(format!("{found} is out of range"), "write a number from 1 to 256");
    (1..=256).contains(&found).then_some(found).ok_or_else(none)
}

fn ecam(table: &mut Table<'_, '_>) -> Option<EcamWindow> {
    const ADDRESS: &str = "address = 0xb0000000";
    let base = table.required(ADDRESS, wide);
    let first = table.required("first-bus = 0", |value| number(value, u8::MAX));
    let last = table.required("last-bus = 255", |value| number(value, u8::MAX));
    let (base, first, last) = (base?, first?, last?);
    let window = EcamWindow::new(HostPhys::new(base), first, last);
    if window.is_none() {
        let what = format!("configuration space of buses {first} to {last} cannot lie at {base:#x}");
        table.broken(ADDRESS, impossible(what));
    }
    window
}

/// The functions, in ascending order, and what those showed that were tried.
fn functions(table: &mut Table<'_, '_>) -> (Vec<Function>, Vec<Proof>) {
    let mut before: Option<Bdf> = None;
    let found = table.tables("[[function]]", |table| {
        let found = function(table);
        let bdf = found.0.bdf;
        match before.filter(|before| *before >= bdf) {
            Some(before) => {
                let what =
                    format!("{bdf} stands behind {before}: functions stand in ascending order, each once");
                table.broken(BDF, impossible(what));
            }
            None => before = Some(bdf),
        }
        found
    });
    let (functions, proofs): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    (functions, proofs.into_iter().flatten().collect())
}

const BDF: &str = "bdf = \"00:03.0\"";

fn function(table: &mut Table<'_, '_>) -> (Function, Option<Proof>) {
    const PIN: &str = "interrupt-pin = \"A\"";
    const PENDING: &str = "pending = false";
    let bdf = table.required(BDF, config::function).unwrap_or(config::LAST_FUNCTION);
    let (vendor_id, device_id) = table.required("id = \"1234:11e8\"", id).unwrap_or_default();
    let revision = table.required("revision = 0x10", |value| number(value, "0xff")).unwrap_or(0);
    let [base, sub, interface] = table.required("class = \"020000\"", class).unwrap_or([0; 3]);
    let (header, bar_count) = header(table);
    let multi_function = table.optional("multi-function = true", flag).unwrap_or(false);
    let command = table.required("command = 0x0103", |value| number(value, "0xffff")).unwrap_or(0);
    let interrupt_pin = table.optional(PIN, pin);
    let interrupt_line = table.required("interrupt-line = 11", |value| number(value, u8::MAX)).unwrap_or(0);
    let pending = table.companion(PENDING, PIN, flag);
    let dis_intx = table.companion("dis-intx = \"works\"", PENDING, |value| {
        one_of(value, &DIS_INTX, "outcome of setting and clearing DisINTx")
    });
    let mut bars = Bars::NONE;
    for (key, index) in BARS.into_iter().zip(BarIndex::ALL).take(bar_count) {
        if table.table(key, |table| bar(table, index, &mut bars)) == Some(false) {
            table.broken(
                key,
                impossible("no base address register is like that, or it has the place of another"),
            );
        }
    }
    table.demand("capabilities = { }");
    let capabilities = table.table("capabilities = { }", capabilities).unwrap_or(Capabilities::NONE);
    let function = Function {
        bdf,
        vendor_id,
        device_id,
        revision,
        class: ClassCode { base, sub, interface },
        header,
        multi_function,
        command: Command::from_bits_retain(command),
        bars,
        interrupt_pin,
        interrupt_line,
        capabilities,
    };
    (function, pending.map(|pending| Proof { bdf, pending, dis_intx }))
}

/// What kind of function it is, and how many base address registers such have.
fn header(table: &mut Table<'_, '_>) -> (Header, usize) {
    const KINDS: [(&str, u8); 3] = [("endpoint", 0), ("bridge", 1), ("other", 2)];
    let kind = table.required("header = \"endpoint\"", |value| one_of(value, &KINDS, "kind of header"));
    let mut byte = |key| table.required(key, |value| number(value, u8::MAX)).unwrap_or(0);
    match kind {
        Some(1) => {
            let (secondary, subordinate) = (byte("secondary = 1"), byte("subordinate = 1"));
            (Header::Bridge { secondary, subordinate }, 2)
        }
        Some(2) => (Header::Other(byte("header-type = 2")), 0),
        _ => (Header::Endpoint, 6),
    }
}

/// Puts a register among `bars`; whether it can be one. One with a mistake in it passes.
fn bar(table: &mut Table<'_, '_>, index: BarIndex, bars: &mut Bars) -> bool {
    let kind = table.required("kind = \"mem32\"", |value| match value.as_str() {
        Some(MALFORMED) => Ok(None),
        _ => one_of(value, &BAR_KINDS, "kind of base address register").map(Some),
    });
    let Some(kind): Option<Option<BarKind>> = kind else { return true };
    let Some(kind) = kind else { return bars.put(index, None) };
    let address = table.required("address = 0xfea00000", wide);
    let bytes = table.required("bytes = 0x100000", wide);
    let (Some(address), Some(bytes)) = (address, bytes) else { return true };
    Bar::new(index, kind, address, bytes).is_some_and(|bar| bars.put(index, Some(bar)))
}

fn capabilities(table: &mut Table<'_, '_>) -> Capabilities {
    const ADVANCED: &str = "reset-advanced = 0x40";
    let mut at = |key| table.optional(key, |value| number(value, "0xff").map(Offset::conventional));
    let (power_management, msi, msi_x) =
        (at("power-management = 0x40"), at("msi = 0x40"), at("msi-x = 0x40"));
    let (pci_express, express, advanced) =
        (at("pci-express = 0x40"), at("reset-pci-express = 0x40"), at(ADVANCED));
    let power_reset = at("reset-power = 0x44");
    if express.is_some() && advanced.is_some() {
        table.broken(
            ADVANCED,
            impossible("beside `reset-pci-express`: a function has one register for its reset"),
        );
    }
    let express = express.map(FunctionLevelReset::PciExpress);
    Capabilities {
        power_management,
        msi,
        msi_x,
        pci_express,
        function_level_reset: express.or(advanced.map(FunctionLevelReset::AdvancedFeatures)),
        power_reset,
        sound: !table.optional("damaged = true", flag).unwrap_or(false),
    }
}

fn routing(table: &mut Table<'_, '_>) -> Routing {
    const PRT: &str = "prt = [{ bus = 0, device = 3, pin = \"A\" }]";
    match table.required("known = true", flag) {
        None => Routing::NotAsked,
        Some(false) => Routing::Unknown(table.required("why = \"...\"", text).unwrap_or_default()),
        Some(true) => {
            let (mut asked, mut entries) = (Vec::new(), Vec::new());
            table.demand(PRT);
            table.tables(PRT, |table| place(table, &mut asked, &mut entries));
            Routing::Known { asked, entries }
        }
    }
}

/// A place that was asked for, and its entry if the firmware has one.
fn place(table: &mut Table<'_, '_>, asked: &mut Vec<PlaceOnBus>, entries: &mut Vec<PrtEntry>) {
    const GSI: &str = "gsi = 20";
    const PIN: &str = "pin = \"A\"";
    const TRIGGER: &str = "trigger = \"level\"";
    const POLARITY: &str = "polarity = \"low\"";
    let bus = table.required("bus = 0", |value| number(value, u8::MAX)).unwrap_or(0);
    let device = table.required("device = 3", device).unwrap_or(0);
    let pin = table.required(PIN, pin);
    let gsi = table.optional(GSI, |value| number(value, u32::MAX)).map(Gsi);
    if gsi.is_some() {
        table.demand(TRIGGER);
        table.demand(POLARITY);
    }
    let trigger = table.companion(TRIGGER, GSI, |value| one_of(value, &TRIGGERS, "trigger mode"));
    let polarity = table.companion(POLARITY, GSI, |value| one_of(value, &POLARITIES, "active level"));
    let Some(pin) = pin else { return };
    if asked.contains(&(bus, device, pin)) {
        table.broken(PIN, impossible("this pin of this device is there already"));
    }
    asked.push((bus, device, pin));
    if let (Some(gsi), Some(trigger), Some(polarity)) = (gsi, trigger, polarity) {
        entries.push(PrtEntry { bus, device, pin, route: PinRoute { gsi, trigger, polarity } });
    }
}

fn device(value: &DeValue<'_>) -> Read<u8> {
    let found: u8 = number(value, 31)?;
    let none = || Mistake::value(format!("{found} is out of range"), "write a number from 0 to 31");
    (found <= 31).then_some(found).ok_or_else(none)
}

fn pin(value: &DeValue<'_>) -> Read<IntPin> {
    one_of(value, &PINS, "interrupt pin")
}

/// A number that fits 64 bits.
fn wide(value: &DeValue<'_>) -> Read<u64> {
    number(value, format_args!("{:#x}", u64::MAX))
}

fn id(value: &DeValue<'_>) -> Read<(u16, u16)> {
    let text = text(value)?;
    let number = |digits: &str| hexadecimal(digits, 4).and_then(|number| u16::try_from(number).ok());
    let pair = text.split_once(':').and_then(|(vendor, device)| Some((number(vendor)?, number(device)?)));
    pair.ok_or_else(|| {
        Mistake::value(format!("{text:?} is no ID"), "write vendor and device, as in \"1234:11e8\"")
    })
}

fn class(value: &DeValue<'_>) -> Read<[u8; 3]> {
    let text = text(value)?;
    let none = || Mistake::value(format!("{text:?} is no class"), "write six digits, as in \"020000\"");
    let [_, base, sub, interface] = hexadecimal(&text, 6).ok_or_else(none)?.to_be_bytes();
    Ok([base, sub, interface])
}

/// A number of exactly that many digits, without a prefix or a sign.
fn hexadecimal(text: &str, digits: usize) -> Option<u32> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}
