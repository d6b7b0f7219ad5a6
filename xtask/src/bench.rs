//! `bench intx`: what one interrupt costs, in instructions, bare and under Levelhead, in one go.
//!
//! QEMU counts instructions as nanoseconds (`-icount`), so the guest's time stamps are exact and the same in
//! every run. What the hypervisor counts (exits, accesses) is taken from two runs that differ only in their
//! number of rounds: the difference, divided by the interrupts more, has nothing of boot in it.
//!
//! For comparison, measured on the same emulated machine (QEMU 7.2): Linux 6.1 with KVM and VFIO takes 10,592
//! instructions from raise to ISR, 5,076 for the EOI and 15,685 for the round trip with 2.00 exits (x2APIC guest);
//! 16,274 for the round trip of an xAPIC guest; 19,204 from halt.
//!
//! `bench intx` reports; [`Test::run`] runs one guest with fewer rounds and fails when a goal is missed.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;

use crate::build::Tree;
use crate::console::Console;
use crate::console::table::{Align, Cell, Table};
use crate::setup;

pub mod boot;
mod crossing;
mod goals;
mod guest;
mod measure;
mod row;
pub mod stages;

pub use guest::Guest;
pub use measure::{Subject, Test};

use crossing::{Crossing, goals_of_neighbours};
use goals::{goals, goals_of_many_lines};
use guest::{Apic, Mask};
use measure::REPORTED;

/// What can be measured: the word by which it is asked for, and what it tells.
pub const BENCHES: [(&str, &str); 3] = [
    ("intx", "what one interrupt costs in instructions, VM exits and accesses, bare and under Levelhead"),
    (
        "guest",
        "what booting Linux costs in instructions and VM exits, bare and under Levelhead, and what single exits cost",
    ),
    ("stages", "where these instructions go: functions, in the order in which they run"),
];

/// Prints what can be measured.
pub fn list() {
    let mut table = Table::new([("bench", Align::Left), ("what it tells", Align::Left)]);
    for (name, what) in BENCHES {
        table.row([name, what].map(Cell::from));
    }
    Console::stdout().table(&table);
}

/// What `bench` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether missing packages may be installed.
    pub setup: bool,
    /// Whether to print JSON instead of a table.
    pub json: bool,
    /// Whether to show the QEMU commands.
    pub verbose: bool,
    /// The QEMU binary, if not the one in `PATH`.
    pub qemu: Option<PathBuf>,
}

/// Runs everything and prints the result: a table, or with `json` an array.
///
/// # Errors
/// When a run fails or its console does not hold what it must. A goal that is not met is no error.
pub fn intx(tree: &Tree, options: &Options) -> Result<()> {
    let qemu = setup::qemu(options.qemu.as_deref(), options.setup, "bench intx")?;
    let version = setup::qemu_version(&qemu)?;
    tree.build()?;
    if version < setup::X2APIC_QEMU {
        let [(major, minor), (first, point)] = [version, setup::X2APIC_QEMU];
        eprintln!(
            "bench: no bare x2apic rows: QEMU {major}.{minor} emulates no x2APIC, {first}.{point} and newer do"
        );
    }
    let folder = tree.scratch("bench")?;
    let mut rows = Vec::new();
    for guest in Guest::all() {
        eprintln!("bench: {}", guest.name());
        let exclusive = guest.mask == Mask::Line && guest.sources == 1 && guest.lines == 1;
        if exclusive && (guest.apic == Apic::Xapic || version >= setup::X2APIC_QEMU) {
            rows.push(guest.bare(tree, &qemu, options.verbose)?);
        }
        let runs = guest.runs(tree, &qemu, REPORTED, &folder)?;
        rows.push(guest.row(&runs, options.verbose)?);
    }
    rows.sort_by_key(|row| row.host);
    let mut crossings = Vec::new();
    for crossing in Crossing::all() {
        eprintln!("bench: {}", crossing.name());
        let runs = crossing.runs(tree, &qemu, REPORTED, &folder)?;
        crossings.push(crossing.row(&runs, options.verbose)?);
    }
    if options.json {
        let rows = rows.iter().map(serde_json::to_value);
        let rows = rows.chain(crossings.iter().map(serde_json::to_value));
        println!("{}", serde_json::to_string_pretty(&rows.collect::<Result<Vec<Value>, _>>()?)?);
        return Ok(());
    }
    let mut console = Console::stdout();
    row::show(&mut console, &rows);
    crossing::show(&mut console, &crossings);
    let hosted = rows.iter().filter(|row| row.host == "levelhead").flat_map(goals);
    let crossed = crossings.iter().flat_map(crossing::Row::goals);
    let beside = goals_of_many_lines(&rows).chain(goals_of_neighbours(&crossings));
    hosted.chain(crossed).chain(beside).for_each(|goal| goal.show(&mut console));
    Ok(())
}
