//! Facts as a text: TOML that people can read on a console. `docs/facts.md` says what the keys mean.
//!
//! The routing stands last, so that everything else is written before firmware's AML is run.

use core::fmt::{self, Write as _};

use super::frame::REVISION;
use super::{Facts, MemoryKind, Proof, Routing};
use crate::irq::{Polarity, TriggerMode};
use crate::pci::capability::FunctionLevelReset;
use crate::pci::pin::DisIntxFault;
use crate::pci::{BarIndex, BarKind, BarSlot, Function, Header, IntPin};

/// How long a quoted text may get; the rest is left out.
const MAX_QUOTED: usize = 300;

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.machine().fmt(f)?;
        self.routing.fmt(f)
    }
}

impl Facts {
    /// Everything but the routing.
    pub fn machine(&self) -> impl fmt::Display + '_ {
        fmt::from_fn(|f| {
            writeln!(f, "revision = {REVISION}")?;
            writeln!(f, "hypervisor = {}", quoted(&self.hypervisor))?;
            let processor = &self.processor;
            writeln!(f, "\n[processor]\nvendor = {}", quoted(&processor.vendor))?;
            writeln!(f, "model = {}\nasids = {}", quoted(&processor.model), processor.asids)?;
            writeln!(f, "svm-features = {:#x}", processor.svm_features)?;
            for apic in &self.cpus {
                writeln!(f, "\n[[cpu]]\napic = {}", apic.0)?;
            }
            f.write_str("\n[memory]\n")?;
            writeln!(f, "free = {:#x}\nmap = [", self.free_bytes)?;
            for entry in &self.memory {
                let kind = memory_kind(entry.kind);
                writeln!(
                    f,
                    "  {{ start = {:#x}, bytes = {:#x}, kind = {kind:?} }},",
                    entry.start, entry.bytes
                )?;
            }
            f.write_str("]\n")?;
            for chip in &self.io_apics {
                writeln!(f, "\n[[io-apic]]\naddress = {:#x}", chip.address.raw())?;
                writeln!(f, "gsi-base = {}\npins = {}", chip.gsi_base, chip.pins)?;
            }
            for entry in &self.overrides {
                writeln!(f, "\n[[override]]\ngsi = {}", entry.gsi.0)?;
                if let Some(level) = entry.polarity {
                    writeln!(f, "polarity = {:?}", polarity(level))?;
                }
            }
            if let Some(window) = self.ecam {
                let (first, last) = window.buses();
                writeln!(f, "\n[ecam]\naddress = {:#x}", window.base().raw())?;
                writeln!(f, "first-bus = {first}\nlast-bus = {last}")?;
            }
            self.functions.iter().try_for_each(|function| {
                let proof = self.proofs.iter().find(|proof| proof.bdf == function.bdf);
                write_function(f, function, proof)
            })
        })
    }
}

fn write_function(f: &mut fmt::Formatter<'_>, function: &Function, proof: Option<&Proof>) -> fmt::Result {
    let Function { bdf, vendor_id, device_id, revision, class, .. } = function;
    writeln!(f, "\n[[function]]\nbdf = \"{bdf}\"\nid = \"{vendor_id:04x}:{device_id:04x}\"")?;
    writeln!(f, "revision = {revision:#04x}\nclass = \"{class}\"")?;
    match function.header {
        Header::Endpoint => f.write_str("header = \"endpoint\"\n")?,
        Header::Bridge { secondary, subordinate } => {
            writeln!(f, "header = \"bridge\"\nsecondary = {secondary}\nsubordinate = {subordinate}")?;
        }
        Header::Other(raw) => writeln!(f, "header = \"other\"\nheader-type = {raw}")?,
    }
    if function.multi_function {
        f.write_str("multi-function = true\n")?;
    }
    writeln!(f, "command = {:#06x}", function.command.bits())?;
    if let Some(pin) = function.interrupt_pin {
        writeln!(f, "interrupt-pin = \"{}\"", pin_letter(pin))?;
    }
    writeln!(f, "interrupt-line = {}", function.interrupt_line)?;
    if let Some(proof) = proof {
        writeln!(f, "pending = {}", proof.pending)?;
        if let Some(verdict) = proof.dis_intx {
            writeln!(f, "dis-intx = {:?}", dis_intx(verdict))?;
        }
    }
    for index in BarIndex::ALL {
        let number = index.get();
        match function.bars.slot(index) {
            BarSlot::Empty | BarSlot::Upper => {}
            BarSlot::Malformed => writeln!(f, "bar{number} = {{ kind = \"malformed\" }}")?,
            BarSlot::Bar(bar) => {
                let (kind, address, bytes) = (bar_kind(bar.kind()), bar.address(), bar.bytes());
                writeln!(
                    f,
                    "bar{number} = {{ kind = {kind:?}, address = {address:#x}, bytes = {bytes:#x} }}"
                )?;
            }
        }
    }
    let found = &function.capabilities;
    let reset = |advanced: bool| match found.function_level_reset {
        Some(FunctionLevelReset::PciExpress(at)) if !advanced => Some(at),
        Some(FunctionLevelReset::AdvancedFeatures(at)) if advanced => Some(at),
        _ => None,
    };
    let offsets = [
        ("power-management", found.power_management),
        ("msi", found.msi),
        ("msi-x", found.msi_x),
        ("pci-express", found.pci_express),
        ("reset-pci-express", reset(false)),
        ("reset-advanced", reset(true)),
        ("reset-power", found.power_reset),
    ];
    f.write_str("capabilities = {")?;
    let mut separator = " ";
    for (name, at) in offsets.into_iter().filter_map(|(name, at)| Some((name, at?))) {
        write!(f, "{separator}{name} = {:#x}", at.get())?;
        separator = ", ";
    }
    if !found.sound {
        write!(f, "{separator}damaged = true")?;
    }
    f.write_str(" }\n")
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => Ok(()),
            Self::Unknown(why) => unknown_routing(why).fmt(f),
            Self::Known { asked, entries } => {
                f.write_str("\n[routing]\nknown = true\nprt = [\n")?;
                for (bus, device, pin) in asked {
                    write!(f, "  {{ bus = {bus}, device = {device}, pin = \"{}\"", pin_letter(*pin))?;
                    let place = (*bus, *device, *pin);
                    if let Some(entry) = entries.iter().find(|entry| entry.place() == place) {
                        let route = entry.route;
                        let (trigger, level) = (trigger(route.trigger), polarity(route.polarity));
                        write!(f, ", gsi = {}, trigger = {trigger:?}, polarity = {level:?}", route.gsi.0)?;
                    }
                    f.write_str(" },\n")?;
                }
                f.write_str("]\n")
            }
        }
    }
}

/// The routing of a machine whose firmware did not tell, as a text that needs no memory.
pub fn unknown_routing(why: &dyn fmt::Display) -> impl fmt::Display + '_ {
    fmt::from_fn(move |f| write!(f, "\n[routing]\nknown = false\nwhy = {}\n", quoted(why)))
}

/// A text as TOML quotes it, whatever it holds, in printable ASCII and not too long.
fn quoted(text: &dyn fmt::Display) -> impl fmt::Display + '_ {
    struct Escaped<'a, 'b>(&'a mut fmt::Formatter<'b>, usize);
    impl fmt::Write for Escaped<'_, '_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for c in text.chars() {
                self.1 = self.1.saturating_add(10);
                match c {
                    _ if self.1 > MAX_QUOTED * 10 => {}
                    '"' | '\\' => write!(self.0, "\\{c}")?,
                    ' '..='~' => self.0.write_char(c)?,
                    // At most one and a half times the longest text, even if all of it is escaped.
                    _ => {
                        self.1 = self.1.saturating_add(80);
                        write!(self.0, "\\U{:08x}", u32::from(c))?;
                    }
                }
            }
            Ok(())
        }
    }
    fmt::from_fn(move |f| {
        f.write_char('"')?;
        write!(Escaped(f, 0), "{text}")?;
        f.write_char('"')
    })
}

/// The names that the text uses, and that whoever reads it accepts.
pub const MEMORY_KINDS: [(&str, MemoryKind); 3] =
    [("usable", MemoryKind::Usable), ("acpi", MemoryKind::Acpi), ("reserved", MemoryKind::Reserved)];
/// Active levels.
pub const POLARITIES: [(&str, Polarity); 2] = [("high", Polarity::ActiveHigh), ("low", Polarity::ActiveLow)];
/// Trigger modes.
pub const TRIGGERS: [(&str, TriggerMode); 2] = [("edge", TriggerMode::Edge), ("level", TriggerMode::Level)];
/// Interrupt pins.
pub const PINS: [(&str, IntPin); 4] =
    [("A", IntPin::A), ("B", IntPin::B), ("C", IntPin::C), ("D", IntPin::D)];
/// Base address registers.
pub const BAR_KINDS: [(&str, BarKind); 5] = [
    ("io", BarKind::Io),
    ("mem32", BarKind::Memory32 { prefetchable: false }),
    ("mem32-prefetchable", BarKind::Memory32 { prefetchable: true }),
    ("mem64", BarKind::Memory64 { prefetchable: false }),
    ("mem64-prefetchable", BarKind::Memory64 { prefetchable: true }),
];
/// What became of the attempt to set and clear DisINTx.
pub const DIS_INTX: [(&str, Result<(), DisIntxFault>); 4] = [
    ("works", Ok(())),
    ("stuck-clear", Err(DisIntxFault::StuckClear)),
    ("stuck-set", Err(DisIntxFault::StuckSet)),
    ("absent", Err(DisIntxFault::Absent)),
];

fn name<T: PartialEq + Copy>(names: &[(&'static str, T)], value: T) -> &'static str {
    names.iter().find(|(_, named)| *named == value).map_or("", |(name, _)| name)
}
fn memory_kind(kind: MemoryKind) -> &'static str {
    name(&MEMORY_KINDS, kind)
}
fn polarity(level: Polarity) -> &'static str {
    name(&POLARITIES, level)
}
fn trigger(mode: TriggerMode) -> &'static str {
    name(&TRIGGERS, mode)
}
fn pin_letter(pin: IntPin) -> &'static str {
    name(&PINS, pin)
}
fn bar_kind(kind: BarKind) -> &'static str {
    name(&BAR_KINDS, kind)
}
fn dis_intx(verdict: Result<(), DisIntxFault>) -> &'static str {
    name(&DIS_INTX, verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};

    #[test]
    fn whatever_a_text_holds_it_stays_on_a_short_line() {
        assert_eq!(quoted(&"a \"b\\\n\u{e9}").to_string(), "\"a \\\"b\\\\\\U0000000a\\U000000e9\"");
        for filler in ["x", "\u{1f600}", "\n", "\""] {
            let long: String = core::iter::repeat_n(filler, 5000).collect();
            let line = quoted(&long).to_string();
            assert!(line.len() < 2 * MAX_QUOTED + 4 && !line.contains('\n'), "{}", line.len());
        }
    }
}
