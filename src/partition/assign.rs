//! How a physical function becomes a partition's own: found, routed, silenced, its line installed, its BARs placed.
//!
//! Boot only. The order is the point: the function is silenced (DisINTx) before its line is looked at, the redirection
//! table entry is level-triggered and masked before the function may assert again, and the permanent handler stands
//! before anything can reach it (I2, I14, I48). A step that fails leaves the function silent and its line masked.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use levelhead::config::{Config, Device, MaskPolicy};
use levelhead::frames::Range;
use levelhead::intx::{Gate, LineIo, LineTable, SourceId, SourceInfo};
use levelhead::ioapic::Rte;
use levelhead::irq::{ApicId, Pin, TriggerMode, Vector};
use levelhead::message::{Message, Record, Refusal};
use levelhead::pci::bar::{conflict, trespass};
use levelhead::pci::route::{PrtEntry, resolve};
use levelhead::pci::virtual_bar::{BarPlacer, BarWindow};
use levelhead::pci::{Bdf, DisIntx, Function as Described, PinRoute, Topology, VirtualConfig};
use levelhead::sync::Lock;
use log::info;

use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::ioapic::IoApics;
use crate::machine::{Chips, MAX_SOURCES, Wires};
use crate::platform::prt::PlaceOnBus;
use crate::platform::tables::Override;
use crate::report::record;

/// The first vector for lines; each line gets one of its own, upwards.
const FIRST_LINE_VECTOR: u8 = 0x40;

/// A configured device, as records name it.
fn place(partition: &str, bdf: Bdf) -> String {
    format!("partition {partition}, device {bdf}")
}

/// What PCI enumeration found.
pub(crate) struct Bus {
    pub(crate) functions: Vec<Described>,
    pub(crate) topology: Topology,
}

impl Bus {
    /// The function of a configured device, if the machine has it.
    fn function(&self, partition: &str, device: &Device) -> Result<&Described, Refusal> {
        self.functions.iter().find(|function| function.bdf == device.bdf).ok_or_else(|| {
            let what = "it does not exist on this machine; the functions there are listed above";
            Refusal::new(Message::DeviceMissing, place(partition, device.bdf), what)
        })
    }
}

/// A configured device and the line its interrupt pin drives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routed {
    bdf: Bdf,
    route: PinRoute,
}

/// The devices whose line only firmware knows, and every place of the buses it may say so.
pub(crate) fn unrouted(config: &Config, bus: &Bus) -> Result<(Vec<Bdf>, Vec<PlaceOnBus>), Refusal> {
    let mut functions = Vec::new();
    let mut places = Vec::new();
    for partition in &config.partitions {
        for device in &partition.devices {
            let function = bus.function(&partition.name, device)?;
            let (None, Some(mut pin)) = (device.gsi, function.interrupt_pin) else { continue };
            functions.push(device.bdf);
            let mut at = device.bdf;
            loop {
                places.push((at.bus(), at.device(), pin));
                pin = pin.swizzle(at.device());
                match bus.topology.bridge_above(at.bus()) {
                    Some(bridge) => at = bridge,
                    None => break,
                }
            }
        }
    }
    Ok((functions, places))
}

/// Decides every device's line, and writes it into the configuration so that it can be judged again.
pub(crate) fn route(
    config: &mut Config,
    bus: &Bus,
    prt: &[PrtEntry],
    overrides: &[Override],
) -> Result<Vec<Routed>, Refusal> {
    let mut routed = Vec::new();
    for partition in &mut config.partitions {
        for device in &mut partition.devices {
            let function = bus.function(&partition.name, device)?;
            let Some(pin) = function.interrupt_pin else {
                device.gsi = None;
                continue;
            };
            let configured = device.gsi.map(|gsi| {
                let mut route = PinRoute::pci(gsi);
                if let Some(polarity) =
                    overrides.iter().find(|entry| entry.gsi == gsi).and_then(|entry| entry.polarity)
                {
                    route.polarity = polarity;
                }
                route
            });
            let (route, _) = resolve(device.bdf, pin, configured, &bus.topology, prt).map_err(|error| {
                Refusal::new(Message::NoRoute, place(&partition.name, device.bdf), error.to_string())
            })?;
            device.gsi = Some(route.gsi);
            routed.push(Routed { bdf: device.bdf, route });
        }
    }
    Ok(routed)
}

/// What assignment works on.
pub(crate) struct Assigner<'a> {
    pub(crate) bus: &'a Bus,
    pub(crate) config: &'a HostConfig,
    pub(crate) io_apics: &'a Lock<IoApics>,
    pub(crate) lines: LineTable,
    pub(crate) dis_intx: [Option<DisIntx>; MAX_SOURCES as usize],
    pub(crate) routed: &'a [Routed],
    /// Memory and chips that this machine names, which no BAR may overlap.
    pub(crate) reserved: &'a [Range],
    pub(crate) next_vector: u8,
}

/// Where the guest will see what is assigned to it.
pub(crate) struct GuestSide<'a> {
    pub(crate) placer: BarPlacer,
    pub(crate) window: BarWindow,
    pub(crate) chips: &'a mut Chips,
}

/// An assigned function before its BARs are mapped.
pub(crate) struct Assigned {
    pub(crate) config: VirtualConfig,
    /// Its place among the sources and its virtual pin; none without INTx.
    pub(crate) line: Option<(SourceId, Pin)>,
}

impl<'a> Assigner<'a> {
    /// Nothing assigned yet.
    pub(crate) fn new(
        bus: &'a Bus,
        config: &'a HostConfig,
        io_apics: &'a Lock<IoApics>,
        lines: LineTable,
        routed: &'a [Routed],
        reserved: &'a [Range],
    ) -> Self {
        let dis_intx = [const { None }; MAX_SOURCES as usize];
        Self { bus, config, io_apics, lines, dis_intx, routed, reserved, next_vector: FIRST_LINE_VECTOR }
    }

    /// Makes `device` the property of partition number `owner`, whose CPU has the local APIC `target`.
    pub(crate) fn assign(
        &mut self,
        device: &Device,
        partition: &levelhead::config::Partition,
        owner: u8,
        target: ApicId,
        guest: &mut GuestSide<'_>,
    ) -> Result<Assigned, Refusal> {
        let function = *self.bus.function(&partition.name, device)?;
        let place = place(&partition.name, device.bdf);
        let refuse = |message: Message, what: String| Refusal::new(message, place.clone(), what);
        self.check_bars(&function, partition).map_err(|(message, what)| refuse(message, what))?;
        function.prepare(self.config);
        let silencer = DisIntx::take(self.config, device.bdf)
            .ok_or_else(|| refuse(Message::DeviceSilent, "it does not answer".to_string()))?;
        silencer.write(self.config, true);
        let route = self.routed.iter().find(|routed| routed.bdf == device.bdf).map(|routed| routed.route);
        let mut virtual_pin = None;
        if let Some(route) = route {
            let pin = device.virtual_pin(route.gsi).ok_or_else(|| {
                refuse(Message::VpinMissing, format!("{} has no virtual pin of its number", route.gsi))
            })?;
            virtual_pin = Some(pin);
        }
        let placement = guest.placer.place(&function).map_err(|bar| {
            refuse(Message::BarRoom, format!("no room is left in the guest's window for {bar}"))
        })?;
        let config = VirtualConfig::new(self.config, &function, &placement, guest.window, virtual_pin)
            .map_err(|error| refuse(error.message(), error.to_string()))?;
        info!("{}: bus mastering held off, since no IOMMU bounds its DMA yet", device.bdf);
        let (Some(pin), Some((route, vpin))) = (function.interrupt_pin, route.zip(virtual_pin)) else {
            info!("{}: assigned to {}, no INTx", device.bdf, partition.name);
            return Ok(Assigned { config, line: None });
        };
        let source = self
            .install(&function, device, owner, target, route, silencer, guest.chips)
            .map_err(|(message, what)| refuse(message, what))?;
        info!(
            "{}: assigned to {}, {} -> {} -> virtual pin {}",
            device.bdf, partition.name, pin, route.gsi, vpin.0,
        );
        Ok(Assigned { config, line: Some((source, vpin)) })
    }

    /// Programs the line, proves DisINTx, and installs the permanent handler. The function is silent meanwhile.
    #[expect(clippy::too_many_arguments, reason = "one step of assign, with what it already found")]
    fn install(
        &mut self,
        function: &Described,
        device: &Device,
        owner: u8,
        target: ApicId,
        route: PinRoute,
        silencer: DisIntx,
        chips: &mut Chips,
    ) -> Result<SourceId, (Message, String)> {
        if !self.io_apics.with(|chips| chips.has(route.gsi)) {
            return Err((
                Message::LineMissing,
                format!("no IO-APIC has {}; the chips are listed above", route.gsi),
            ));
        }
        let destination = u8::try_from(target.0).map_err(|_| {
            let what = format!("the CPU's APIC ID {} does not fit a redirection table entry", target.0);
            (Message::TargetApic, what)
        })?;
        let vector = Vector::new(self.next_vector)
            .ok_or_else(|| (Message::DeviceLimit, "no interrupt vector is left".to_string()))?;
        let rte = Rte::masked(vector, destination, TriggerMode::Level, route.polarity);
        self.io_apics.with(|chips| chips.program(route.gsi, rte));
        let proof = silencer.prove(self.config);
        let gate = match (device.mask, &proof) {
            (MaskPolicy::Function, Ok(())) => Gate::Function,
            (MaskPolicy::Function, Err(fault)) => {
                let what = format!("mask = \"function\" needs a working DisINTx, but {fault}");
                return Err((Message::MaskImpossible, what));
            }
            (MaskPolicy::Line | MaskPolicy::Auto, _) => Gate::RteMask,
        };
        if let Err(fault) = proof {
            let what =
                format_args!("DisINTx cannot silence this function ({fault}); its line is masked instead");
            record(Record {
                message: Message::DisIntxStuck,
                place: &format_args!("device {}", function.bdf),
                what: Some(&what),
                remedy: None,
            });
        }
        let info = SourceInfo { owner, bdf: function.bdf.requester_id() };
        let slot = self.dis_intx.iter().position(Option::is_none);
        let slot =
            slot.ok_or_else(|| (Message::DeviceLimit, format!("more than {MAX_SOURCES} devices with INTx")))?;
        if let Some(place) = self.dis_intx.get_mut(slot) {
            *place = Some(silencer);
        }
        let Self { lines, dis_intx, io_apics, config, .. } = self;
        let mut wires = Wires { io_apics, config, dis_intx, partition: owner, chips };
        let source = lines
            .assign(route.gsi, vector, gate, info, &mut wires)
            .map_err(|error| (Message::InternalError, error.to_string()))?;
        if gate == Gate::RteMask {
            // Behind a line gate the function must be able to drive the wire; the entry is masked now.
            wires.set_disintx(info.bdf, false);
        }
        self.next_vector += 1;
        Ok(source)
    }

    /// Nested paging protects pages: no page of a BAR may hold anything of somebody else's.
    fn check_bars(
        &self,
        function: &Described,
        partition: &levelhead::config::Partition,
    ) -> Result<(), (Message, String)> {
        let own = |bdf: Bdf| partition.devices.iter().any(|device| device.bdf == bdf);
        if let Some(conflict) = conflict(function, &self.bus.functions, |bdf| !own(bdf)) {
            return Err((Message::BarShared, format!("{conflict}, which is not this partition's")));
        }
        if let Some(trespass) = trespass(function, self.reserved) {
            return Err((Message::BarOverlap, trespass.to_string()));
        }
        Ok(())
    }
}
