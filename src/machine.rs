//! What all partitions share: the interrupt lines, the chips behind them, configuration space.
//!
//! Built once at boot and shared by reference; nothing in it allocates afterwards. [`Wires`] is where the library's rules
//! for lines touch hardware on one side and a partition's virtual pin on the other.

use levelhead::decide::MAX_SOURCES;
use levelhead::intx::{Control, LineIo, LineTable, Notifier, Sample, SourceId};
use levelhead::irq::{ApicId, Gsi, Pin, Vector};
use levelhead::pci::{Bdf, ConfigSpace, DisIntx, Offset};
use levelhead::sync::Lock;
use levelhead::virq::{Contributor, VirtualChips};

use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::cpu::tsc;
use crate::arch::x86::ioapic::IoApics;
use crate::arch::x86::lapic::{LocalApic, TimerRate};

/// Virtual CPUs of a partition.
pub(crate) const VCPUS: usize = 1;
/// A partition's interrupt chips.
pub(crate) type Chips = VirtualChips<VCPUS>;
/// The machine's shared half.
pub(crate) struct Machine {
    /// Every line with its permanent handler.
    pub(crate) lines: LineTable,
    /// The right to replace notifiers; absent while somebody does.
    pub(crate) control: Lock<Option<Control>>,
    /// The physical IO-APICs. Below a line's lock in the lock order.
    pub(crate) io_apics: Lock<IoApics>,
    /// Physical configuration space.
    pub(crate) config: HostConfig,
    /// Who writes DisINTx, by source.
    pub(crate) dis_intx: [Option<DisIntx>; MAX_SOURCES as usize],
    /// The way to each CPU's local APIC.
    pub(crate) apic: LocalApic,
    /// Who is told when a partition on another CPU has ended.
    pub(crate) boot_cpu: ApicId,
    /// The local timers' speed.
    pub(crate) rate: TimerRate,
}

/// Both ends of the lines as seen from one partition's CPU.
pub(crate) struct Wires<'a> {
    /// The chips and functions.
    pub(crate) io_apics: &'a Lock<IoApics>,
    /// Configuration space.
    pub(crate) config: &'a HostConfig,
    /// The writers of DisINTx.
    pub(crate) dis_intx: &'a [Option<DisIntx>],
    /// Whose virtual pins these are.
    pub(crate) partition: u8,
    /// The virtual pins.
    pub(crate) chips: &'a mut Chips,
}

impl Wires<'_> {
    /// The pin of `target` if it is one of this partition's. Notifiers lead to the owner's own pins only, so this is
    /// always the case for the lines this CPU handles.
    fn own_pin(&self, target: Notifier) -> Option<Pin> {
        match target {
            Notifier::Pin { partition, vpin } if partition == self.partition => Some(vpin),
            _ => None,
        }
    }
}

impl LineIo for Wires<'_> {
    #[inline]
    fn mask_rte(&mut self, gsi: Gsi) {
        self.io_apics.with(|chips| chips.set_mask(gsi, true));
    }

    #[inline]
    fn unmask_rte(&mut self, gsi: Gsi) {
        self.io_apics.with(|chips| chips.set_mask(gsi, false));
    }

    fn directed_eoi(&mut self, gsi: Gsi, vector: Vector) {
        self.io_apics.with(|chips| chips.directed_eoi(gsi, vector));
    }

    // Out of line, like the next: only function gates come here, and the search would be spread over every path.
    #[inline(never)]
    fn set_disintx(&mut self, bdf: u16, set: bool) {
        let writer = self.dis_intx.iter().flatten().find(|writer| writer.bdf().requester_id() == bdf);
        if let Some(writer) = writer {
            writer.write(self.config, set);
        }
    }

    #[inline(never)]
    fn intx_status(&mut self, bdf: u16) -> Sample {
        Sample::from_command_status(self.config.read32(Bdf::from_requester_id(bdf), Offset::COMMAND))
    }

    #[inline]
    fn lower_pin(&mut self, source: SourceId, target: Notifier) {
        if let (Some(pin), Some(contributor)) = (self.own_pin(target), Contributor::new(source.0)) {
            self.chips.deassert_pin(pin, contributor);
        }
    }

    fn virtual_rte_masked(&mut self, target: Notifier) -> bool {
        self.own_pin(target).and_then(|pin| self.chips.ioapic().rte(pin)).is_none_or(|rte| rte.is_masked())
    }

    fn now(&mut self) -> u64 {
        tsc()
    }
}
