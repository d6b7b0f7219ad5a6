//! What an interrupt costs that several CPUs have part in: its line leads to one, the virtual CPU that takes it is on another.
//!
//! Everything is counted and nothing timed: with several CPUs in one thread of the emulator, a time is how long the others' turns
//! were. All of them spin (the guest program `crossing`), so the counts are the same for each interrupt, and exact.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::goals::Goal;
use super::guest::{GUEST, Mask};
use super::row::Accesses;
use crate::build::Tree;
use crate::console::Console;
use crate::console::table::{Align, Cell, Table};
use crate::qemu::Machine;

/// How an interrupt comes to its virtual CPU.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The line's own entry is its gate and turns to the virtual CPU.
    Followed,
    /// The same, but the guest turns its virtual entry to the next virtual CPU each time.
    Turned,
    /// The gate is at the function, so the line's entry stays where it leads.
    Kicked,
    /// The line leads to another partition's CPU, which sleeps.
    BesideSleeping,
    /// The line leads to another partition's CPU, which spins with interrupts off.
    BesideSpinning,
}

impl Way {
    const ALL: [Self; 5] =
        [Self::Followed, Self::Turned, Self::Kicked, Self::BesideSleeping, Self::BesideSpinning];

    /// What the other partitions do, if there are such.
    const fn neighbours(self) -> Option<&'static str> {
        match self {
            Self::Followed | Self::Turned | Self::Kicked => None,
            Self::BesideSleeping => Some("sleep"),
            Self::BesideSpinning => Some("spin"),
        }
    }

    /// What silences the line.
    const fn mask(self) -> Mask {
        match self {
            Self::Followed | Self::Turned => Mask::Line,
            Self::Kicked | Self::BesideSleeping | Self::BesideSpinning => Mask::Function,
        }
    }

    /// Exits of the partition that takes the interrupt, on a machine of so many CPUs: where its line leads, if that is its own CPU; the
    /// kick, where there is one; the EOI; and two by which the guest turns its entry.
    fn exits(self, cpus: u32) -> f64 {
        match self {
            Self::Followed | Self::BesideSleeping | Self::BesideSpinning => 2.0,
            Self::Kicked => 2.0 + self.kicks(cpus),
            Self::Turned => 4.0 + self.kicks(cpus),
        }
    }

    /// Exits of others: a CPU that sleeps takes the interrupt without one.
    const fn exits_elsewhere(self) -> f64 {
        if matches!(self, Self::BesideSpinning) { 1.0 } else { 0.0 }
    }

    /// IO-APIC writes: none but at a gate of the line. It turns to nobody who takes no two interrupts in a row.
    const fn ioapic_writes(self) -> f64 {
        match self {
            Self::Followed | Self::Turned => 2.0,
            Self::Kicked | Self::BesideSleeping | Self::BesideSpinning => 0.0,
        }
    }

    /// A remote delivery is one kick, neither less nor more; one of all CPUs in turn is the one to which the line leads.
    fn kicks(self, cpus: u32) -> f64 {
        match self {
            Self::Followed => 0.0,
            Self::Turned => 1.0 - 1.0 / f64::from(cpus),
            Self::Kicked | Self::BesideSleeping | Self::BesideSpinning => 1.0,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Followed => "the line follows",
            Self::Turned => "the guest turns it each time",
            Self::Kicked => "the line stays, kicked",
            Self::BesideSleeping => "beside a partition that sleeps",
            Self::BesideSpinning => "beside a partition that spins",
        })
    }
}

/// An interrupt that several CPUs have part in.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Crossing {
    /// How it comes to its virtual CPU.
    pub way: Way,
    /// How many CPUs the machine has, 2 to 4: all of them the guest's, or each with a partition of its own and a device on the
    /// line. It is the last one that takes the interrupt, if the guest does not turn it.
    pub cpus: u32,
}

/// Where devices are whose pins all drive one line, GSI 23 (q35).
const SLOTS: [u32; 4] = [0x3, 0x7, 0xb, 0xf];

impl Crossing {
    /// Everything that is reported.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Way::ALL.into_iter().flat_map(|way| [2, 4].map(|cpus| Self { way, cpus }))
    }

    /// What is measured, for people.
    pub(super) fn name(self) -> String {
        format!("{} CPUs, {}", self.cpus, self.way)
    }

    /// The other partitions.
    fn neighbours(self) -> u32 {
        self.way.neighbours().map_or(0, |_| self.cpus.saturating_sub(1))
    }

    /// The devices' slots, by partition, the guest's at last.
    fn slots(self) -> impl Iterator<Item = u32> {
        SLOTS.into_iter().take(self.neighbours() as usize + 1)
    }

    /// A machine that counts instructions, with the devices.
    pub(super) fn machine(self, tree: &Tree, qemu: &Path) -> Machine {
        let mut machine = Machine::new(qemu.to_owned(), tree.hypervisor());
        machine.icount = true;
        machine.smp = self.cpus;
        machine.accel = Some("tcg,thread=single".to_owned());
        machine.words =
            self.slots().flat_map(|slot| ["-device".to_owned(), format!("edu,addr={slot:x}")]).collect();
        machine
    }

    /// The configuration of the guest, which goes round `rounds` times, and of its neighbours.
    pub(super) fn configuration(self, rounds: u32) -> String {
        let (neighbours, mask) = (self.neighbours(), self.way.mask());
        let partitions = (0..).zip(self.slots()).map(|(index, slot)| {
            let (name, first, cmdline, control) = if index == neighbours {
                let (cpus, to) = (self.cpus - neighbours, if self.way == Way::Turned { "next" } else { "last" });
                let cmdline = format!("rounds={rounds} cpus={cpus} to={to} neighbours={neighbours}");
                (GUEST.to_owned(), index, cmdline, "control = true\n")
            } else {
                let what = self.way.neighbours().unwrap_or_default();
                (format!("neighbour{index}"), index, format!("do={what}"), "")
            };
            let last = if index == neighbours { self.cpus - 1 } else { first };
            let cpus: Vec<String> = (first..=last).map(|cpu| cpu.to_string()).collect();
            let cpus = cpus.join(", ");
            format!(
                "[[partition]]\nname = \"{name}\"\ncpus = [{cpus}]\nmemory = \"16M\"\nkernel = \"guest:crossing\"\n\
                 cmdline = \"{cmdline}\"\nexit-port = 0xf4\n{control}\n\
                 [[partition.device]]\nbdf = \"00:{slot:02x}.0\"\nmask = \"{mask}\"\n"
            )
        });
        partitions.collect::<Vec<_>>().join("\n")
    }
}

/// One row of the result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) crossing: Crossing,
    /// VM exits of the partition that takes the interrupt, by reason.
    pub(super) exits_per_interrupt: BTreeMap<String, f64>,
    /// VM exits of all other partitions.
    pub(super) exits_elsewhere_per_interrupt: f64,
    #[serde(flatten)]
    pub(super) accesses: Accesses,
}

impl Row {
    fn exits(&self) -> f64 {
        self.exits_per_interrupt.values().sum()
    }

    /// What it is to reach: its counts exactly.
    pub(super) fn goals(&self) -> Vec<Goal> {
        let Crossing { way, cpus } = self.crossing;
        let name = self.crossing.name();
        let (exits, elsewhere) = (self.exits(), self.exits_elsewhere_per_interrupt);
        let Accesses { kicks_per_interrupt: kicks, ioapic_reads_per_interrupt: reads, .. } = self.accesses;
        let Accesses { ioapic_writes_per_interrupt: writes, config_accesses_per_interrupt: config, .. } =
            self.accesses;
        let same = |count: f64, goal: f64| (count - goal).abs() < f64::EPSILON;
        let (goal, goal_elsewhere, goal_kicks) = (way.exits(cpus), way.exits_elsewhere(), way.kicks(cpus));
        let goal_writes = way.ioapic_writes();
        let goal_config = match way.mask() {
            Mask::Line => 0.0,
            Mask::Function => f64::from(4 + self.crossing.neighbours()),
        };
        vec![
            Goal {
                met: same(exits, goal) && same(elsewhere, goal_elsewhere) && same(kicks, goal_kicks),
                what: format!(
                    "{name}: {exits:.2} exits, {elsewhere:.2} elsewhere and {kicks:.2} kicks, goal exactly {goal:.2}, \
                     {goal_elsewhere:.2} and {goal_kicks:.2}"
                ),
            },
            Goal {
                met: reads <= 0.0 && same(writes, goal_writes) && same(config, goal_config),
                what: format!(
                    "{name}: {reads:.2} IO-APIC reads, {writes:.2} writes and {config:.2} configuration accesses, goal exactly 0, \
                     {goal_writes} and {goal_config}"
                ),
            },
        ]
    }

    /// What may be different beside another neighbour: where the exits of others are counted, and nothing else.
    fn own(&self) -> (&BTreeMap<String, f64>, Accesses) {
        (&self.exits_per_interrupt, self.accesses)
    }
}

/// What a neighbour does is nothing to the guest: its exits, kicks and accesses are the same.
pub(super) fn goals_of_neighbours(rows: &[Row]) -> impl Iterator<Item = Goal> {
    let beside = |way, cpus| rows.iter().find(move |row| row.crossing == Crossing { way, cpus });
    rows.iter().filter(|row| row.crossing.way == Way::BesideSpinning).filter_map(move |spinning| {
        let sleeping = beside(Way::BesideSleeping, spinning.crossing.cpus)?;
        let what =
            format!("{}: exits, kicks and accesses as beside one that sleeps", spinning.crossing.name());
        Some(Goal { met: spinning.own() == sleeping.own(), what })
    })
}

/// The result for people.
pub(super) fn show(console: &mut Console, rows: &[Row]) {
    let texts = [("how the interrupt comes to its CPU", Align::Left)];
    let numbers = ["CPUs", "exits", "elsewhere", "kicks", "IOAPIC r", "IOAPIC w", "config", "reads"]
        .map(|title| (title, Align::Right));
    let mut table = Table::new(texts.into_iter().chain(numbers));
    for row in rows {
        let Crossing { way, cpus } = row.crossing;
        let counts = [
            row.exits(),
            row.exits_elsewhere_per_interrupt,
            row.accesses.kicks_per_interrupt,
            row.accesses.ioapic_reads_per_interrupt,
            row.accesses.ioapic_writes_per_interrupt,
            row.accesses.config_accesses_per_interrupt,
            row.accesses.config_reads_per_interrupt,
        ];
        let counts = counts.map(|count| Cell::from(format!("{count:.2}")));
        table.row([way.to_string(), cpus.to_string()].map(Cell::from).into_iter().chain(counts));
    }
    console.line("several CPUs: each count per interrupt");
    console.table(&table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::Paper;

    fn row(way: Way, cpus: u32) -> Row {
        let crossing = Crossing { way, cpus };
        let config = match way.mask() {
            Mask::Line => 0.0,
            Mask::Function => f64::from(4 + crossing.neighbours()),
        };
        Row {
            crossing,
            exits_per_interrupt: BTreeMap::from([("interrupt".to_owned(), way.exits(cpus))]),
            exits_elsewhere_per_interrupt: way.exits_elsewhere(),
            accesses: Accesses {
                kicks_per_interrupt: way.kicks(cpus),
                ioapic_reads_per_interrupt: 0.0,
                ioapic_writes_per_interrupt: way.ioapic_writes(),
                config_accesses_per_interrupt: config,
                config_reads_per_interrupt: config / 2.0,
            },
        }
    }

    #[test]
    fn a_remote_delivery_is_one_kick_and_every_count_is_exact() {
        let met = |row: &Row| row.goals().iter().all(|goal| goal.met);
        for crossing in Crossing::all() {
            let good = row(crossing.way, crossing.cpus);
            assert!(met(&good), "{}", crossing.name());
            let changes: [fn(&mut Row); 7] = [
                |row| row.accesses.kicks_per_interrupt += 0.01,
                |row| row.accesses.kicks_per_interrupt -= 0.01,
                |row| _ = row.exits_per_interrupt.insert("mmio".to_owned(), 0.01),
                |row| row.exits_elsewhere_per_interrupt += 0.01,
                |row| row.accesses.ioapic_reads_per_interrupt += 0.01,
                |row| row.accesses.ioapic_writes_per_interrupt += 0.01,
                |row| row.accesses.config_accesses_per_interrupt += 0.01,
            ];
            for (index, change) in changes.iter().enumerate() {
                let mut bad = good.clone();
                change(&mut bad);
                assert!(!met(&bad), "{}: change {index}", crossing.name());
            }
        }
    }

    #[test]
    fn what_a_neighbour_does_must_not_show() {
        let met = |rows: &[Row]| goals_of_neighbours(rows).map(|goal| goal.met).collect::<Vec<_>>();
        let (sleeping, spinning) = (row(Way::BesideSleeping, 4), row(Way::BesideSpinning, 4));
        assert_eq!(met(&[sleeping.clone(), spinning.clone()]), [true]);
        let mut worse = spinning.clone();
        worse.accesses.config_reads_per_interrupt += 1.0;
        assert_eq!(met(&[worse, sleeping]), [false]);
        assert!(
            met(&[spinning, row(Way::BesideSleeping, 2)]).is_empty(),
            "there is nothing to compare it with"
        );
    }

    #[test]
    fn the_configuration_has_the_cpus_and_the_partitions_that_are_meant() {
        let beside = Crossing { way: Way::BesideSpinning, cpus: 4 }.configuration(7);
        assert_eq!(beside.matches("do=spin").count(), 3, "{beside}");
        assert!(beside.contains("cpus = [3]") && beside.contains("rounds=7 cpus=1 to=last neighbours=3"));
        assert_eq!(beside.matches("control = true").count(), 1);
        let turned = Crossing { way: Way::Turned, cpus: 2 }.configuration(7);
        assert!(turned.contains("cpus = [0, 1]") && turned.contains("rounds=7 cpus=2 to=next neighbours=0"));
    }

    #[test]
    fn the_table_has_a_line_per_row() {
        let paper = Paper::default();
        show(&mut Console::plain(paper.clone()), &[row(Way::Kicked, 4)]);
        let text = paper.text();
        let line = text.lines().last().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(line, "the line stays, kicked 4 3.00 0.00 1.00 0.00 0.00 4.00 2.00");
    }

    #[test]
    fn the_json_is_as_documented() {
        let one = super::super::row::tests::row(900, 901, &[("interrupt", 1.0)]);
        let rows = [serde_json::to_value(one).unwrap(), serde_json::to_value(row(Way::Kicked, 2)).unwrap()];
        assert_eq!(serde_json::json!(rows), crate::console::json::tests::example("bench"));
    }
}
