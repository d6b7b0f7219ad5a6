//! A board with several lines: devices on wires, IO-APIC pins that lead to one CPU each, and each partition's virtual chips.
//!
//! It obeys the manuals and nothing else. Whoever drives it decides when a vector is taken and what a guest does.

use levelhead::intx::{Actor, Gate, LineIo, Notifier, Sample, SourceId};
use levelhead::irq::{Gsi, Pin, Vector};
use levelhead::virq::{Contributor, VirtualChips};

/// What a device does that no device should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// It is honest.
    None,
    /// DisINTx does not silence it.
    Deaf,
    /// INTx Status stays clear.
    Mute,
    /// INTx Status stays set.
    Stuck,
}

/// One device. Its number is its function's and its source's.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) line: usize,
    pub(crate) asserted: bool,
    pub(crate) disintx: bool,
    pub(crate) absent: bool,
    pub(crate) in_reset: bool,
    pub(crate) lie: Lie,
}

impl Device {
    fn drives_its_wire(&self) -> bool {
        self.asserts() && (!self.disintx || self.lie == Lie::Deaf)
    }

    /// Whether it asserts, were it not for DisINTx.
    pub(crate) fn asserts(&self) -> bool {
        self.asserted && !self.absent
    }
}

/// One physical line: its redirection table entry, and what a local APIC holds of it.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) gate: Gate,
    pub(crate) rte_masked: bool,
    pub(crate) remote_irr: bool,
    /// The CPU whose IRR holds the vector.
    pub(crate) pending: Option<usize>,
    /// The CPU that the next one goes to.
    pub(crate) leads_to: usize,
    /// Messages sent: host interrupts.
    pub(crate) sent: u64,
}

/// Everything that is not a CPU.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) devices: Vec<Device>,
    pub(crate) lines: Vec<Line>,
    /// By partition.
    pub(crate) chips: Vec<VirtualChips>,
    pub(crate) clock: u64,
    /// The pin that was lowered last went low for good.
    pub(crate) silent: bool,
}

/// The number of the first line's global system interrupt, and its vector.
const FIRST: (u32, u8) = (16, 0x40);

pub(crate) fn gsi(line: usize) -> Gsi {
    Gsi(FIRST.0 + line as u32)
}

pub(crate) fn vector(line: usize) -> Vector {
    Vector::new(FIRST.1 + line as u8).expect("not an exception")
}

pub(crate) fn contributor(source: usize) -> Contributor {
    Contributor::new(source as u8).expect("few sources")
}

impl Board {
    /// Whether the line is asserted: the wired-OR of the devices on it.
    fn wire(&self, line: usize) -> bool {
        self.devices.iter().any(|device| device.line == line && device.drives_its_wire())
    }

    /// The IO-APIC sends while the wire is asserted, the entry unmasked and the last message EOIed (82093AA 3.2.4).
    fn update(&mut self, line: usize) {
        let wire = self.wire(line);
        let line = &mut self.lines[line];
        if wire && !line.rte_masked && !line.remote_irr {
            assert_eq!(line.pending, None, "sent twice");
            (line.remote_irr, line.pending) = (true, Some(line.leads_to));
            line.sent += 1;
        }
    }

    /// Changes something about a device, which its wire follows.
    pub(crate) fn change(&mut self, device: usize, change: impl FnOnce(&mut Device)) {
        change(&mut self.devices[device]);
        self.update(self.devices[device].line);
    }

    /// The EOI of the local APIC that took the line's vector.
    pub(crate) fn lapic_eoi(&mut self, line: usize) {
        if self.lines[line].gate != Gate::DirectedEoi {
            self.lines[line].remote_irr = false;
            self.update(line);
        }
    }

    /// Whether `source` holds the pin high.
    pub(crate) fn holds(&self, source: usize, partition: usize, pin: Pin) -> bool {
        self.chips[partition].ioapic().contributions(pin) >> source & 1 != 0
    }

    fn line(&mut self, line: Gsi) -> (usize, &mut Line) {
        let index = (line.0 - FIRST.0) as usize;
        (index, &mut self.lines[index])
    }
}

impl LineIo for Board {
    fn mask_rte(&mut self, gsi: Gsi) {
        let (_, line) = self.line(gsi);
        assert!(!line.rte_masked, "masked twice");
        line.rte_masked = true;
    }

    fn unmask_rte(&mut self, gsi: Gsi) {
        let (index, line) = self.line(gsi);
        assert!(line.rte_masked, "unmasked twice");
        line.rte_masked = false;
        self.update(index);
    }

    fn directed_eoi(&mut self, gsi: Gsi, eoi: Vector) {
        let (index, line) = self.line(gsi);
        assert_eq!((line.gate, eoi), (Gate::DirectedEoi, vector(index)));
        line.remote_irr = false;
        self.update(index);
    }

    fn set_disintx(&mut self, bdf: u16, set: bool) {
        let device = usize::from(bdf);
        assert!(!self.devices[device].in_reset, "a function in reset is written to");
        self.change(device, |device| device.disintx = set);
    }

    fn intx_status(&mut self, bdf: u16) -> Sample {
        let device = &self.devices[usize::from(bdf)];
        assert!(!device.in_reset, "a function in reset is asked");
        match device.lie {
            _ if device.absent => Sample::Absent,
            Lie::Stuck => Sample::High,
            Lie::None | Lie::Deaf if device.asserted => Sample::High,
            Lie::None | Lie::Deaf | Lie::Mute => Sample::Low,
        }
    }

    fn lower_pin(&mut self, source: SourceId, target: Notifier) {
        if let Notifier::Pin { partition, vpin } = target {
            let (source, partition) = (usize::from(source.0), usize::from(partition));
            assert!(self.holds(source, partition, vpin), "source {source} does not hold {target} high");
            self.silent = self.chips[partition].lower_pin(vpin, contributor(source));
        }
    }

    fn holds_pin(&mut self, source: SourceId, target: Notifier) -> bool {
        match target {
            Notifier::Pin { partition, vpin } => {
                self.holds(usize::from(source.0), usize::from(partition), vpin)
            }
            Notifier::Poll { .. } | Notifier::None => true,
        }
    }

    fn virtual_rte_masked(&mut self, target: Notifier) -> bool {
        match target {
            Notifier::Pin { partition, vpin } => {
                let rte = self.chips[usize::from(partition)].ioapic().rte(vpin);
                rte.is_none_or(|rte| rte.is_masked())
            }
            Notifier::Poll { .. } | Notifier::None => false,
        }
    }

    fn now(&mut self) -> u64 {
        self.clock
    }

    fn actor(&self) -> Actor {
        Actor::Hypervisor
    }
}
