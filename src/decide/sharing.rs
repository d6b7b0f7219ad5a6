//! What the devices on one line have in common: its gate, its polarity, the CPU that takes it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Finding, GateChoice, GateReason, Intx, Line, PartitionPlan, Planner, Sharer, Unsilenced};
use crate::config::{Config, MaskPolicy};
use crate::irq::Gsi;
use crate::message::Message;
use crate::pci::PinRoute;
use crate::pci::pin::DisIntxFault;
use crate::pci::route::RouteSource;

/// A device whose line is known, among the partitions.
struct OnLine {
    partition: usize,
    device: usize,
    line: Line,
}

impl Planner<'_> {
    /// What the devices on a line have in common, now that all of them are known: the gate, the polarity, the CPU.
    pub(super) fn share(&mut self, config: &Config, partitions: &mut [PartitionPlan]) {
        for (gsi, _) in core::mem::take(&mut self.vectors) {
            let mut sharers: Vec<OnLine> = Vec::new();
            for (partition, plan) in partitions.iter().enumerate() {
                sharers.extend(plan.devices.iter().enumerate().filter_map(
                    |(device, plan)| match plan.intx {
                        Intx::Line(line) if line.route.gsi == gsi => Some(OnLine { partition, device, line }),
                        _ => None,
                    },
                ));
            }
            let gate = self.gate(config, gsi, &sharers, partitions);
            // Firmware's word about the wire goes before what PCI prescribes where nothing is known.
            let stated = sharers.iter().find(|sharer| sharer.line.source != RouteSource::Configuration);
            let Some(first) = stated.or(sharers.first()).map(|sharer| sharer.line.route) else { continue };
            let Some(destination) = sharers.first().map(|sharer| sharer.line.destination) else { continue };
            for OnLine { partition, device, line } in sharers {
                let route = PinRoute { polarity: first.polarity, ..line.route };
                let plan = partitions.get_mut(partition).and_then(|plan| plan.devices.get_mut(device));
                if let Some(plan) = plan {
                    plan.intx = match gate {
                        Some(gate) => Intx::Line(Line { route, destination, gate, ..line }),
                        None => Intx::Refused,
                    };
                }
            }
        }
    }

    /// The gate of a line; `None`, and a finding, if none would do.
    fn gate(
        &mut self,
        config: &Config,
        gsi: Gsi,
        sharers: &[OnLine],
        partitions: &[PartitionPlan],
    ) -> Option<GateChoice> {
        let configured = |on: &OnLine| config.partitions.get(on.partition)?.devices.get(on.device);
        let judged: Vec<Sharer> = sharers
            .iter()
            .filter_map(|on| {
                let device = configured(on)?;
                Some(Sharer {
                    mask: device.mask,
                    partition: device.standby.is_none().then_some(on.partition),
                    vpin: on.line.vpin,
                    dis_intx: on.line.dis_intx,
                })
            })
            .collect();
        let Unsilenced { sharer, reason, fault } = match GateChoice::of(&judged) {
            Ok(gate) => return Some(gate),
            Err(unsilenced) => unsilenced,
        };
        let culprit = sharers.get(sharer)?;
        let device = configured(culprit)?;
        let path = &partitions.get(culprit.partition)?.devices.get(culprit.device)?.path;
        if reason == GateReason::Proved && device.mask == MaskPolicy::Function {
            let what = format!("{}: {}", device.bdf, mask_impossible(fault));
            self.refuse(path.key("mask"), Message::MaskImpossible, what);
            return None;
        }
        let names = sharers.iter().filter_map(|on| {
            let partition = config.partitions.get(on.partition)?;
            Some(format!("{} of {}", partition.devices.get(on.device)?.bdf, partition.name))
        });
        let names = names.collect::<Vec<_>>().join(", ");
        let several = sharers.iter().any(|on| on.partition != culprit.partition);
        let why = match reason {
            GateReason::SeveralPins => "which drive several virtual pins",
            GateReason::Proved => "for which `mask = \"function\"` is asked",
            _ if several => "of several partitions",
            _ => "which another partition may take over",
        };
        let what = format!(
            "{gsi} is shared by {names}, {why}, so each has to be silenced by itself, but {}: {fault}",
            device.bdf
        );
        let finding = Finding::new(path.key("bdf"), Message::LineUnshareable, what);
        self.findings.push(match reason {
            GateReason::SeveralPins => Finding {
                refusal: finding.refusal.remedy("give all devices on the line the same `vpin`, or move that card to a slot with another line"),
                ..finding
            },
            GateReason::Proved => Finding {
                refusal: finding.refusal.remedy("leave `mask` out, or move that card to a slot with another line"),
                ..finding
            },
            _ => finding,
        });
        None
    }
}

/// What a refused gate is told as.
fn mask_impossible(fault: DisIntxFault) -> String {
    format!("mask = \"function\" needs a working DisINTx, but {fault}")
}
