//! Every function behind the given root buses, each bus once, whatever the bridges claim.

use super::{Bdf, ConfigSpace, Function, Header};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bus {
    Unreached,
    Root,
    Behind(Bdf),
}

/// Which bridge leads to which bus. 256 entries, no allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology([Bus; 256]);

impl Topology {
    /// Only root buses, nothing behind them.
    pub fn new(roots: &[u8]) -> Self {
        let mut topology = Self([Bus::Unreached; 256]);
        for &root in roots {
            topology.claim(root, Bus::Root);
        }
        topology
    }

    /// Who leads where, according to `functions`, which are in ascending order: what [`enumerate`] finds while it visits
    /// them.
    pub fn of(roots: &[u8], functions: &[Function]) -> Self {
        let mut topology = Self::new(roots);
        for function in functions {
            topology.notice(function);
        }
        topology
    }

    /// The bridge whose secondary bus this is; `None` for root buses and for those nothing leads to. The bridge is
    /// on a bus of a lower number.
    pub fn bridge_above(&self, bus: u8) -> Option<Bdf> {
        match self.bus(bus) {
            Bus::Behind(bridge) => Some(bridge),
            Bus::Root | Bus::Unreached => None,
        }
    }

    /// Whether the bus is a root bus or lies behind a bridge that was found.
    pub fn reaches(&self, bus: u8) -> bool {
        self.bus(bus) != Bus::Unreached
    }

    fn bus(&self, bus: u8) -> Bus {
        self.0.get(usize::from(bus)).copied().unwrap_or(Bus::Unreached)
    }

    // A bridge is believed if it can be reached and leads to a higher bus.
    fn notice(&mut self, function: &Function) {
        if let Header::Bridge { secondary, .. } = function.header
            && secondary > function.bdf.bus()
            && self.reaches(function.bdf.bus())
        {
            self.claim(secondary, Bus::Behind(function.bdf));
        }
    }

    // The first claim stands.
    fn claim(&mut self, bus: u8, owner: Bus) {
        if let Some(slot) = self.0.get_mut(usize::from(bus)).filter(|slot| **slot == Bus::Unreached) {
            *slot = owner;
        }
    }
}

/// Reads every function on the `roots` and behind their bridges, in ascending order, and hands each to `visit`.
///
/// Buses are visited from 0 to 255, each at most once, and a bridge is believed only if its secondary bus is
/// higher than its own, as numbering that nests ranges makes it (PCI-to-PCI Bridge 1.2 3.2.5.3, 3.2.5.4), and not
/// taken already. So no bridge can make a loop, and the work is bounded by 65,536 functions. Sizing writes BARs, see
/// [`Bars::probe`](super::Bars::probe): this runs once, at boot, before any function is in use.
pub fn enumerate(space: &impl ConfigSpace, roots: &[u8], mut visit: impl FnMut(Function)) -> Topology {
    let mut topology = Topology::new(roots);
    for bus in 0..=u8::MAX {
        if !topology.reaches(bus) {
            continue;
        }
        for device in 0..32 {
            for number in 0..8 {
                let function = Bdf::new(bus, device, number).and_then(|bdf| Function::read(space, bdf));
                // Function 0 is mandatory, and tells whether there are others (PCI 3.0 6.2.1).
                let last = number == 0 && !function.is_some_and(|function| function.multi_function);
                if let Some(function) = function {
                    topology.notice(&function);
                    visit(function);
                }
                if last {
                    break;
                }
            }
        }
    }
    topology
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeFunction, Machine, bdf};
    use super::*;

    fn found(machine: &Machine, roots: &[u8]) -> (Vec<String>, Topology) {
        let mut names = Vec::new();
        let topology = enumerate(machine, roots, |function| names.push(function.bdf.to_string()));
        (names, topology)
    }

    #[test]
    fn bridges_lead_on_and_the_topology_remembers_them() {
        let machine = Machine::with([
            ("00:03.0", FakeFunction::edu()),
            ("00:1e.0", FakeFunction::bridge(1, 2)),
            ("01:02.0", FakeFunction::bridge(2, 2)),
            ("02:1f.0", FakeFunction::pci_testdev()),
            ("03:00.0", FakeFunction::edu()),
        ]);
        let before = machine.dump(bdf("00:1e.0"));
        let (names, topology) = found(&machine, &[0]);
        assert_eq!(names, ["00:03.0", "00:1e.0", "01:02.0", "02:1f.0"]);
        assert_eq!(topology.bridge_above(0), None);
        assert_eq!(topology.bridge_above(1), Some(bdf("00:1e.0")));
        assert_eq!(topology.bridge_above(2), Some(bdf("01:02.0")));
        assert_eq!((topology.reaches(2), topology.reaches(3)), (true, false));
        assert_eq!(machine.dump(bdf("00:1e.0")), before);
    }

    #[test]
    fn functions_1_to_7_count_only_when_function_0_says_so() {
        let several = FakeFunction::edu().bytes(0x0e, &[0x80]);
        let machine = Machine::with([
            ("00:03.0", several.clone()),
            ("00:03.2", FakeFunction::edu()),
            ("00:03.7", FakeFunction::edu()),
            ("00:04.0", FakeFunction::edu()),
            ("00:04.1", FakeFunction::edu()),
            // Without a function 0 the rest is noise.
            ("00:05.1", several),
        ]);
        assert_eq!(found(&machine, &[0]).0, ["00:03.0", "00:03.2", "00:03.7", "00:04.0"]);
    }

    #[test]
    fn a_bridge_to_itself_upwards_or_to_a_taken_bus_leads_nowhere() {
        let machine = Machine::with([
            ("00:01.0", FakeFunction::bridge(0, 255)),
            ("00:02.0", FakeFunction::bridge(1, 1)),
            ("00:03.0", FakeFunction::bridge(1, 1)),
            ("01:00.0", FakeFunction::bridge(0, 0)),
            ("01:01.0", FakeFunction::bridge(1, 1)),
            ("01:02.0", FakeFunction::edu()),
        ]);
        let (names, topology) = found(&machine, &[0]);
        assert_eq!(names, ["00:01.0", "00:02.0", "00:03.0", "01:00.0", "01:01.0", "01:02.0"]);
        assert_eq!(topology.bridge_above(1), Some(bdf("00:02.0")));
        assert_eq!(topology.bridge_above(0), None);
    }

    #[test]
    fn a_bridge_cannot_claim_a_root_bus() {
        let machine =
            Machine::with([("00:01.0", FakeFunction::bridge(0x80, 0x80)), ("80:00.0", FakeFunction::edu())]);
        let (names, topology) = found(&machine, &[0, 0x80]);
        assert_eq!(names, ["00:01.0", "80:00.0"]);
        assert_eq!(topology.bridge_above(0x80), None);
    }

    #[test]
    fn a_chain_through_all_256_buses_is_followed_to_its_end() {
        let machine = Machine::default();
        for bus in 0..u8::MAX {
            machine.insert(Bdf::new(bus, 31, 0).unwrap(), FakeFunction::bridge(bus + 1, 255));
        }
        machine.insert(bdf("ff:00.0"), FakeFunction::bridge(255, 255));
        let (names, topology) = found(&machine, &[0]);
        assert_eq!(names.len(), 256);
        assert!((1..=u8::MAX).all(|bus| topology.bridge_above(bus).is_some_and(|b| b.bus() == bus - 1)));
    }

    #[test]
    fn an_empty_machine_is_empty() {
        assert_eq!(found(&Machine::default(), &[0]).0, Vec::<String>::new());
        assert_eq!(found(&Machine::with([("00:03.0", FakeFunction::edu())]), &[]).0, Vec::<String>::new());
    }
}
