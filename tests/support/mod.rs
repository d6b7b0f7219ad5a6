//! A board on the host: devices on one wire, an IO-APIC pin with a local APIC behind it, and a guest's virtual pins.
//!
//! It obeys the manuals and nothing else: it knows no mask reason, no ledger and no notifier but as a pin's number. Whoever
//! drives it decides when a vector is taken, a pin raised, an EOI sent.

#[cfg(not(loom))]
pub(crate) mod world;

use levelhead::intx::{
    Actor, AssignError, Budget, Control, Gate, LIE_LIMIT, LineIo, LineTable, Notifier, Sample, SourceId,
    SourceInfo, Targets,
};
use levelhead::irq::{Gsi, Pin, Vector};

/// The one line of the board.
pub(crate) const GSI: Gsi = Gsi(21);
/// How many virtual pins the guest has.
pub(crate) const PINS: usize = 2;

/// The vector of the one line.
pub(crate) fn vector() -> Vector {
    Vector::new(0x51).expect("not an exception")
}

/// The guest's virtual pin `number` as a notifier.
pub(crate) const fn pin(number: u8) -> Notifier {
    Notifier::Pin { partition: 0, vpin: Pin(number) }
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Device {
    /// Its interrupt status: it wants service.
    pub(crate) asserted: bool,
    /// Command bit 10.
    pub(crate) disintx: bool,
    /// It was pulled out: reads are all-ones.
    pub(crate) absent: bool,
    /// How it lies, if it does.
    pub(crate) lie: Lie,
}

/// What a device does that no device should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(loom, expect(dead_code, reason = "the models of interleavings have no liars"))]
pub(crate) enum Lie {
    /// It is honest.
    #[default]
    None,
    /// DisINTx does not silence it.
    Deaf,
    /// INTx Status stays clear.
    Mute,
    /// INTx Status stays set.
    Stuck,
}

impl Device {
    /// Whether the device asserts, were it not for DisINTx.
    pub(crate) fn asserts(&self) -> bool {
        self.asserted && !self.absent
    }

    /// What INTx Status says of it.
    pub(crate) fn shows(&self) -> bool {
        match self.lie {
            Lie::None | Lie::Deaf => self.asserted,
            Lie::Mute => false,
            Lie::Stuck => true,
        }
    }
}

/// The redirection table entry of the line and what the local APIC holds of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Chip {
    /// The local APIC suppresses EOI broadcasts.
    pub(crate) directed: bool,
    pub(crate) rte_masked: bool,
    pub(crate) remote_irr: bool,
    /// The vector waits in the local APIC's IRR.
    pub(crate) irr: bool,
}

/// One pin of the guest's IO-APIC, level-triggered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct VirtualPin {
    /// The sources that hold it high, as bits.
    pub(crate) high: u64,
    pub(crate) masked: bool,
    /// Accepted by the guest's local APIC and not yet EOIed.
    pub(crate) remote_irr: bool,
}

/// What was done to the board, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Messages the IO-APIC sent: host interrupts.
    pub(crate) sent: u64,
    pub(crate) rte_writes: u64,
    pub(crate) disintx_writes: u64,
    pub(crate) status_reads: u64,
    pub(crate) directed_eois: u64,
    /// Interrupts the guest took, by pin.
    pub(crate) taken: [u64; PINS],
}

/// The whole board.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    pub(crate) devices: Vec<Device>,
    pub(crate) chip: Chip,
    pub(crate) pins: [VirtualPin; PINS],
    pub(crate) counts: Counts,
    /// What every device may use.
    pub(crate) budget: Option<Budget>,
    /// How many disagreements in a row are taken for a lie.
    pub(crate) patience: u32,
    pub(crate) clock: u64,
}

impl Board {
    /// A board with this many devices, all quiet.
    pub(crate) fn new(devices: usize, gate: Gate) -> Self {
        Self {
            devices: vec![Device::default(); devices],
            chip: Chip {
                directed: gate == Gate::DirectedEoi,
                rte_masked: true,
                remote_irr: false,
                irr: false,
            },
            pins: Default::default(),
            counts: Counts::default(),
            budget: None,
            patience: LIE_LIMIT,
            clock: 0,
        }
    }

    /// Whether the wire is asserted: the wired-OR of the devices that may drive it.
    pub(crate) fn wire(&self) -> bool {
        self.devices.iter().any(|device| device.asserts() && (!device.disintx || device.lie == Lie::Deaf))
    }

    /// The IO-APIC sends while the wire is asserted, the entry unmasked and the last message EOIed (82093AA 3.2.4).
    fn update(&mut self) {
        if self.wire() && !self.chip.rte_masked && !self.chip.remote_irr {
            self.chip.remote_irr = true;
            self.chip.irr = true;
            self.counts.sent += 1;
        }
    }

    /// The device asserts or deasserts.
    pub(crate) fn drive(&mut self, device: usize, asserted: bool) {
        self.devices[device].asserted = asserted;
        self.update();
    }

    /// The device lies like this from now on.
    #[cfg(not(loom))]
    pub(crate) fn lie(&mut self, device: usize, lie: Lie) {
        self.devices[device].lie = lie;
        self.update();
    }

    /// The CPU takes the vector, if it is there.
    pub(crate) fn take_vector(&mut self) -> bool {
        core::mem::take(&mut self.chip.irr)
    }

    /// The CPU's EOI.
    pub(crate) fn lapic_eoi(&mut self) {
        if !self.chip.directed {
            self.chip.remote_irr = false;
            self.update();
        }
    }

    /// `source` drives the virtual pin `target` high.
    pub(crate) fn raise(&mut self, target: Notifier, source: SourceId) {
        self.virtual_pin(target).high |= 1 << source.0;
    }

    /// The guest takes the pin's interrupt, if there is one.
    pub(crate) fn guest_take(&mut self, number: usize) -> bool {
        let pin = &mut self.pins[number];
        let takes = pin.high != 0 && !pin.masked && !pin.remote_irr;
        if takes {
            pin.remote_irr = true;
            self.counts.taken[number] += 1;
        }
        takes
    }

    /// The guest's EOI reaches the pin. The sources that hold it high now are to be told.
    pub(crate) fn guest_eoi(&mut self, number: usize) -> Vec<SourceId> {
        let pin = &mut self.pins[number];
        let mut told = Vec::new();
        if core::mem::take(&mut pin.remote_irr) {
            told.extend((0..64).filter(|bit| pin.high >> bit & 1 != 0).map(SourceId));
        }
        told
    }

    fn virtual_pin(&mut self, target: Notifier) -> &mut VirtualPin {
        let Notifier::Pin { partition: 0, vpin: Pin(number) } = target else {
            panic!("{target} is no virtual pin of this board")
        };
        &mut self.pins[usize::from(number)]
    }
}

impl LineIo for Board {
    fn mask_rte(&mut self, gsi: Gsi) {
        assert_eq!(gsi, GSI);
        assert!(!self.chip.rte_masked, "masked twice");
        self.counts.rte_writes += 1;
        self.chip.rte_masked = true;
    }

    fn unmask_rte(&mut self, gsi: Gsi) {
        assert_eq!(gsi, GSI);
        assert!(self.chip.rte_masked, "unmasked twice");
        self.counts.rte_writes += 1;
        self.chip.rte_masked = false;
        self.update();
    }

    fn directed_eoi(&mut self, gsi: Gsi, eoi: Vector) {
        assert_eq!((gsi, eoi), (GSI, vector()));
        assert!(self.chip.directed, "the chip has no directed EOI");
        self.counts.directed_eois += 1;
        self.chip.remote_irr = false;
        self.update();
    }

    fn set_disintx(&mut self, bdf: u16, set: bool) {
        self.counts.disintx_writes += 1;
        self.devices[usize::from(bdf)].disintx = set;
        self.update();
    }

    fn intx_status(&mut self, bdf: u16) -> Sample {
        self.counts.status_reads += 1;
        match &self.devices[usize::from(bdf)] {
            device if device.absent => Sample::Absent,
            device if device.shows() => Sample::High,
            _ => Sample::Low,
        }
    }

    fn lower_pin(&mut self, source: SourceId, target: Notifier) {
        let high = &mut self.virtual_pin(target).high;
        assert!(*high >> source.0 & 1 != 0, "{source} lowered on {target}, which it does not hold high");
        *high &= !(1 << source.0);
    }

    fn holds_pin(&mut self, source: SourceId, target: Notifier) -> bool {
        self.virtual_pin(target).high >> source.0 & 1 != 0
    }

    fn virtual_rte_masked(&mut self, target: Notifier) -> bool {
        self.virtual_pin(target).masked
    }

    fn now(&mut self) -> u64 {
        self.clock
    }

    fn actor(&self) -> Actor {
        Actor::Guest(0)
    }
}

/// The table for a board's devices, all of partition 0, source numbers equal to device numbers.
pub(crate) fn assign_all(board: &mut Board, gate: Gate) -> Result<(LineTable, Control), AssignError> {
    let targets = Targets { partitions: 1, pins: PINS as u8, poll_counters: 0 };
    let (mut table, control) = LineTable::with_patience(targets, board.patience);
    for device in 0..board.devices.len() {
        let info = SourceInfo { owner: Some(0), bdf: device as u16 };
        let source = table.assign(GSI, vector(), gate, info, board)?;
        assert_eq!(usize::from(source.0), device);
        assert!(board.budget.is_none_or(|budget| table.limit(source, budget)));
    }
    Ok((table, control))
}
