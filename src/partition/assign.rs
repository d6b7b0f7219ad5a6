//! How a physical function becomes a partition's own: silenced, its line installed, its BARs placed, as the plan says.
//!
//! Boot only. Every function of the machine that has an interrupt pin is silenced (DisINTx) before any line is looked at; how a
//! line is installed is the library's (`assignment`). Functions that nobody gets stay silent for good.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64};

use levelhead::assignment::{self, Chips, Place};
use levelhead::decide::{BAR_WINDOW, Bystander, DevicePlan, GateChoice, Intx, Line, MAX_SOURCES};
use levelhead::facts::Proof;
use levelhead::intx::{Budget, LineTable, SourceId};
use levelhead::ioapic::Rte;
use levelhead::irq::{Gsi, Pin};
use levelhead::message::{Message, Record, Refusal};
use levelhead::ownership::Ownership;
use levelhead::pci::{Bdf, DisIntx, VirtualConfig};
use log::info;

use super::Function;
use crate::arch::x86::clock::Clock;
use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::cpu::tsc;
use crate::arch::x86::ioapic::IoApics;
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
        let silencer = assignment::silence(self.config, function).map_err(|_| {
            refuse(device, "bdf", Message::DeviceSilent, Message::DeviceSilent.meaning().to_string())
        })?;
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
            unserved: AtomicBool::new(false),
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

    /// Brings the silent function onto its line.
    fn install(
        &mut self,
        line: &Line,
        device: &DevicePlan,
        owner: u8,
        silencer: DisIntx,
    ) -> Result<SourceId, (&'static str, Message, String)> {
        let bug = |what: &str| ("bdf", Message::InternalError, what.to_string());
        let GateChoice::Made(gate, _) = line.gate else { return Err(bug("its gate is not decided")) };
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
        let place = Place {
            gsi: line.route.gsi,
            polarity: line.route.polarity,
            vector: line.vector,
            destination: line.destination,
            gate,
            owner: (!device.moves).then_some(owner),
            budget: device
                .policy
                .storm
                .zip(self.clock)
                .map(|(limit, clock)| Budget::new(&limit, clock.ticks_per_ms.get())),
        };
        let Self { config, io_apics, lines, dis_intx, .. } = self;
        assignment::install(lines, dis_intx, silencer, *config, io_apics, &place, tsc())
            .map_err(|fault| bug(&fault.to_string()))
    }
}

impl Chips for &Ordered<IoApics> {
    fn program(&mut self, gsi: Gsi, rte: Rte) {
        self.with(|chips| chips.program(gsi, rte));
    }

    fn set_mask(&mut self, gsi: Gsi, masked: bool) {
        self.with(|chips| chips.set_mask(gsi, masked));
    }
}

fn refuse(device: &DevicePlan, key: &'static str, message: Message, what: String) -> Refusal {
    Refusal::new(message, device.path.key(key).to_string(), what)
}

fn undecided(device: &DevicePlan) -> Refusal {
    refuse(device, "bdf", Message::InternalError, "it is not decided".to_string())
}
