//! How a physical function becomes a partition's own: silenced, its line installed, its BARs placed, as the plan says.
//!
//! Boot only. The order is the point: every function of the machine that has an interrupt pin is silenced (DisINTx) before
//! any line is looked at, since those on one line open together; the redirection table entry is level-triggered and masked
//! before the function may assert again, and the permanent handler stands before anything can reach it (I2, I14, I48). A
//! step that fails leaves the function silent and its line masked. Functions that nobody gets stay silent for good.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64};

use levelhead::decide::{BAR_WINDOW, Bystander, DevicePlan, GateChoice, Intx, Line, MAX_SOURCES};
use levelhead::facts::Proof;
use levelhead::intx::{Actor, Budget, Gate, LineIo, LineTable, SourceId, SourceInfo};
use levelhead::ioapic::Rte;
use levelhead::irq::{Pin, TriggerMode};
use levelhead::message::{Message, Record, Refusal};
use levelhead::ownership::Ownership;
use levelhead::pci::{Bdf, DisIntx, VirtualConfig};
use log::info;

use super::Function;
use crate::arch::x86::clock::Clock;
use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::ioapic::IoApics;
use crate::machine::Wires;
use crate::order::Ordered;
use crate::report::record;

/// Silences every function that was tried, and says which of them are left to nobody.
pub(crate) fn silence(config: &HostConfig, proofs: &[Proof], is_assigned: impl Fn(Bdf) -> bool) {
    for proof in proofs {
        let Some(silencer) = DisIntx::take(config, proof.bdf) else { continue };
        silencer.write(config, true);
        if !is_assigned(proof.bdf) {
            info!("{}: left to nobody, its INTx is silenced", proof.bdf);
        }
    }
}

/// Warns of functions that could not be silenced.
pub(crate) fn report_bystanders(bystanders: &[Bystander]) {
    for Bystander { bdf, fault, gsi } in bystanders {
        let line = fmt::from_fn(|f| match gsi {
            Some(gsi) => write!(f, "{gsi}, the line of a device"),
            None => f.write_str("a line that is not known"),
        });
        let what = format_args!("{fault}, it is left to nobody and drives {line}");
        let place = format_args!("device {bdf}");
        record(Record { message: Message::BystanderLoud, place: &place, what: Some(&what), remedy: None });
    }
}

/// What assignment works on.
pub(crate) struct Assigner<'a> {
    pub(crate) config: &'a HostConfig,
    pub(crate) io_apics: &'a Ordered<IoApics>,
    pub(crate) lines: LineTable,
    pub(crate) dis_intx: [Option<DisIntx>; MAX_SOURCES as usize],
    /// None where there is no timer to measure it by.
    pub(crate) clock: Option<Clock>,
}

impl<'a> Assigner<'a> {
    /// Nothing assigned yet.
    pub(crate) fn new(
        config: &'a HostConfig,
        io_apics: &'a Ordered<IoApics>,
        lines: LineTable,
        clock: Option<Clock>,
    ) -> Self {
        Self { config, io_apics, lines, dis_intx: [const { None }; MAX_SOURCES as usize], clock }
    }

    /// Makes the device the property of partition number `owner`, called `name`: for good, or until another takes it over.
    pub(crate) fn assign(
        &mut self,
        device: &DevicePlan,
        name: &str,
        owner: u8,
    ) -> Result<&'static Function, Refusal> {
        let bdf = device.bdf;
        let Some(function) = &device.function else { return Err(undecided(device)) };
        let line = match &device.intx {
            Intx::None => None,
            Intx::Line(line) => Some(line),
            Intx::AtBoot { .. } | Intx::Refused => return Err(undecided(device)),
        };
        function.prepare(self.config);
        let silencer = DisIntx::take(self.config, bdf).ok_or_else(|| {
            refuse(device, "bdf", Message::DeviceSilent, Message::DeviceSilent.meaning().to_string())
        })?;
        silencer.write(self.config, true);
        info!("{bdf}: bus mastering held off, since no IOMMU bounds its DMA yet");
        match device.reset {
            Some(Ok(method)) => info!("{bdf}: can be reset: {method}"),
            Some(Err(why)) => info!("{bdf}: cannot be reset: {why}"),
            None => {}
        }
        let source = match line {
            None => {
                info!("{bdf}: assigned to {name}, no INTx");
                None
            }
            Some(line) => {
                let source = self
                    .install(line, device, owner, silencer)
                    .map_err(|(key, message, what)| refuse(device, key, message, what))?;
                let (pin, gsi, vpin) = (line.pin, line.route.gsi, line.vpin.0);
                info!("{bdf}: assigned to {name}, {pin} -> {gsi} -> virtual pin {vpin}");
                Some(source)
            }
        };
        Ok(Box::leak(Box::new(Function {
            bdf,
            interrupt_pin: line.map(|line| line.pin),
            source,
            policy: device.policy,
            moves: device.moves,
            ownership: Ownership::new(owner),
            lost: AtomicBool::new(false),
            replacements: AtomicU64::new(0),
        })))
    }

    /// The configuration space of an assigned device in a guest where it drives this virtual pin.
    pub(crate) fn view(&self, device: &DevicePlan, vpin: Option<Pin>) -> Result<VirtualConfig, Refusal> {
        let (Some(function), Some(bars)) = (&device.function, &device.bars) else {
            return Err(undecided(device));
        };
        VirtualConfig::new(self.config, function, bars, BAR_WINDOW, vpin)
            .map_err(|error| refuse(device, "bdf", error.message(), error.to_string()))
    }

    /// Programs the line, if this is the first device on it, and installs the permanent handler. The function is silent
    /// meanwhile.
    fn install(
        &mut self,
        line: &Line,
        device: &DevicePlan,
        owner: u8,
        silencer: DisIntx,
    ) -> Result<SourceId, (&'static str, Message, String)> {
        let gsi = line.route.gsi;
        let bug = |what: &str| ("bdf", Message::InternalError, what.to_string());
        let GateChoice::Made(gate, _) = line.gate else { return Err(bug("its gate is not decided")) };
        // The entry of a line in use is its sharers' too, and open when they are silenced by themselves.
        if !self.lines.is_in_use(gsi) {
            let rte = Rte::masked(line.vector, line.destination, TriggerMode::Level, line.route.polarity);
            self.io_apics.with(|chips| chips.program(gsi, rte));
        }
        if let Some(Err(fault)) = line.dis_intx {
            let what =
                format_args!("DisINTx cannot silence this function ({fault}); its line is masked instead");
            record(Record {
                message: Message::DisIntxStuck,
                place: &format_args!("device {}", silencer.bdf()),
                what: Some(&what),
                remedy: None,
            });
        }
        let owner = (!device.moves).then_some(owner);
        let info = SourceInfo { owner, bdf: silencer.bdf().requester_id() };
        let slot = self.dis_intx.iter_mut().find(|slot| slot.is_none());
        *slot.ok_or_else(|| bug("more sources than were planned"))? = Some(silencer);
        let Self { lines, dis_intx, io_apics, config, .. } = self;
        // A line that is being installed has no notifier yet, so nothing of a receiver is reached.
        let mut wires = Wires::new(io_apics, config, dis_intx, &[], Actor::Hypervisor);
        let source = lines
            .assign(gsi, line.vector, gate, info, &mut wires)
            .map_err(|error| bug(&error.to_string()))?;
        if let Some((limit, clock)) = device.policy.storm.zip(self.clock) {
            lines.limit(source, Budget::new(&limit, clock.ticks_per_ms.get()));
        }
        if gate == Gate::RteMask {
            // Behind a line gate the function must be able to drive the wire; the entry is masked now.
            wires.set_disintx(info.bdf, false);
        }
        Ok(source)
    }
}

fn refuse(device: &DevicePlan, key: &'static str, message: Message, what: String) -> Refusal {
    Refusal::new(message, device.path.key(key).to_string(), what)
}

fn undecided(device: &DevicePlan) -> Refusal {
    refuse(device, "bdf", Message::InternalError, "it is not decided".to_string())
}
