//! What the virtual CPUs of a guest share and change, one at a time: configuration space, what of the devices is mapped, ports,
//! and the console.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use levelhead::aftermath::{Aftermath, Judgement};
use levelhead::border::Ports;
use levelhead::config::Console;
use levelhead::decide::BAR_WINDOW;
use levelhead::device::{Dropped, LineBuffer, Permission, PrintBudget};
use levelhead::intx::MaskReasons;
use levelhead::message::{Message, Record};
use levelhead::pci::reset::Fault;
use levelhead::pci::virtual_bar::{Mapping, Mappings};
use levelhead::pci::{Access, Bdf, Command, Effect, Snapshot, VirtualConfig};
use levelhead::policy::DevicePolicy;
use levelhead::svm::{IoPermissions, NestedTables, Reach, Stale};

use super::Function;
use crate::arch::svm::nested::TablePool;
use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::cpu::tsc;
use crate::{console, report};

/// Longest console line of a guest that is printed in one piece.
const CONSOLE_COLUMNS: usize = 160;

/// What the virtual CPUs share and change.
pub(crate) struct Platform {
    /// The number of the guest's partition.
    partition: u8,
    pub(crate) ports: Ports,
    devices: Vec<Device>,
    nested: NestedTables,
    pool: TablePool,
    io: &'static mut IoPermissions,
    /// The guest's name.
    name: String,
    /// What its COM1 has to do with the hypervisor's console.
    console: Console,
    line: LineBuffer<CONSOLE_COLUMNS>,
    budget: PrintBudget,
}

/// A physical function as the guest sees it.
struct Device {
    function: &'static Function,
    config: VirtualConfig,
    /// The same when the guest starts.
    initial: VirtualConfig,
    /// What the guest reads of the function's own registers while another has it.
    absent: Snapshot,
    /// What of its BARs is mapped now.
    mapped: Mappings,
    /// How its last reset here went.
    aftermath: Aftermath,
}

impl Device {
    /// Whether the guest of partition number `partition` has it now.
    fn is_here(&self, partition: u8) -> bool {
        self.function.ownership.is_held_by(partition)
    }

    /// What the guest of partition number `partition` is to reach of it.
    fn wanted(&self, partition: u8) -> Mappings {
        if self.is_here(partition) && !self.function.is_lost() { self.config.mappings() } else { [None; 6] }
    }
}

impl Platform {
    /// The platform of a guest of these functions, none of whose BARs is mapped yet.
    pub(crate) fn new(
        partition: u8,
        space: &HostConfig,
        ports: Ports,
        functions: Vec<(&'static Function, VirtualConfig)>,
        (nested, pool): (NestedTables, TablePool),
        io: &'static mut IoPermissions,
        (name, console): (String, Console),
    ) -> Self {
        let device = |(function, config): (&'static Function, VirtualConfig)| Device {
            function,
            absent: Snapshot::take(space, function.bdf),
            initial: config.clone(),
            config,
            mapped: [None; 6],
            aftermath: Aftermath::default(),
        };
        let devices = functions.into_iter().map(device).collect();
        let (line, budget) = (LineBuffer::new(), PrintBudget::new());
        Self { partition, ports, devices, nested, pool, io, name, console, line, budget }
    }

    /// The platform as at boot, but for how resets went. What CPUs kept is stale.
    pub(crate) fn renew(&mut self) {
        for device in &mut self.devices {
            device.config = device.initial.clone();
        }
        // Each CPU flushes with its first entry into the next life.
        let _ = self.remap();
        // The last life may have moved its BARs anywhere.
        self.nested.prune(&mut self.pool, BAR_WINDOW.start(), BAR_WINDOW.bytes());
        self.ports.reset();
    }

    /// Judges how the reset of a function went, and records what is new of it.
    pub(crate) fn judge_reset(&mut self, bdf: Bdf, policy: &DevicePolicy, outcome: Result<(), Fault>) {
        let name = &self.name;
        let Some(device) = self.devices.iter_mut().find(|device| device.config.bdf() == bdf) else { return };
        let Judgement { lost, news } = device.aftermath.judge(outcome, policy.no_reset);
        device.function.lost.store(lost, Ordering::Relaxed);
        if let Some((message, fault)) = news {
            let place = format_args!("partition {name}, device {bdf}");
            report::record(Record { message, place: &place, what: Some(&fault), remedy: None });
        }
    }

    /// Whether a function did not come back from its last reset, and the reasons for which it is silent that end with a life.
    pub(crate) fn after_reset(&self, bdf: Bdf) -> (bool, MaskReasons) {
        let device = self.devices.iter().find(|device| device.config.bdf() == bdf);
        let Some(Device { function, aftermath, .. }) = device else { return (false, MaskReasons::empty()) };
        let lost = function.is_lost();
        (lost, aftermath.lifted(lost, function.forgive_guest()))
    }

    /// What the guest reads from a register of its configuration space.
    pub(crate) fn read_config(&self, host: &HostConfig, bdf: Bdf, access: Access) -> u32 {
        let Some(device) = self.devices.iter().find(|device| device.config.bdf() == bdf) else {
            return u32::MAX;
        };
        // It may be in a reset, which is no time to ask it, if it is another's.
        if device.is_here(self.partition) {
            device.config.read(host, access)
        } else {
            device.config.read(&device.absent, access)
        }
    }

    /// The guest writes a register of its configuration space. What follows, if there is such a function, and what its CPUs
    /// are to forget. While another has the function, what is written counts from when this guest gets it.
    pub(crate) fn write_config(&mut self, bdf: Bdf, access: Access, value: u32) -> Option<(Effect, Stale)> {
        let device = self.devices.iter_mut().find(|device| device.config.bdf() == bdf)?;
        let effect = device.config.write(access, value);
        if !device.is_here(self.partition) {
            return Some((Effect::NONE, Stale::NOTHING));
        }
        Some((effect, if effect.remap { self.remap() } else { Stale::NOTHING }))
    }

    /// Whether the guest disables the function's INTx by its Command register.
    pub(crate) fn disables_intx(&self, bdf: Bdf) -> bool {
        let device = self.devices.iter().find(|device| device.config.bdf() == bdf);
        device.is_some_and(|device| device.config.command().contains(Command::DIS_INTX))
    }

    /// Opens and closes until the guest reaches exactly what its BARs say now. What stays is not touched: its CPUs may be using
    /// it.
    pub(crate) fn remap(&mut self) -> Stale {
        let mut reach = Reach::new(&self.nested, &mut self.pool, self.io);
        let mut stale = Stale::NOTHING;
        for device in &mut self.devices {
            let wanted = device.wanted(self.partition);
            for (slot, _) in device.mapped.iter_mut().zip(wanted).filter(|(slot, wanted)| **slot != *wanted) {
                let closed = match *slot {
                    Some(Mapping::Memory { guest, bytes, .. }) => reach.close_memory(guest, bytes).ok(),
                    Some(Mapping::Ports { first, last }) => Some(reach.close_ports(first..=last)),
                    None => Some(Stale::NOTHING),
                };
                if let Some(closed) = closed {
                    stale = stale.and(closed);
                    *slot = None;
                }
            }
        }
        for device in &mut self.devices {
            let wanted = device.wanted(self.partition);
            for (slot, wanted) in device.mapped.iter_mut().zip(wanted) {
                let opened = match wanted {
                    // It is there, or could not be closed and stays where it is.
                    _ if slot.is_some() => continue,
                    Some(Mapping::Memory { guest, host, bytes }) => {
                        reach.open_memory(guest, host, bytes).is_ok()
                    }
                    Some(Mapping::Ports { first, last }) => {
                        stale = stale.and(reach.open_ports(first..=last));
                        true
                    }
                    None => false,
                };
                // A guest that lays its BARs over one another gets the one that was there first.
                *slot = if opened { wanted } else { None };
            }
        }
        stale
    }

    /// Prints a byte of the guest's console output: a line at a time, or at once on its terminal.
    pub(crate) fn put(&mut self, byte: u8) {
        match self.console {
            Console::Hidden => {}
            Console::Lines => {
                if let Some(line) = self.line.push(byte) {
                    print_line(&self.name, line, &mut self.budget);
                }
            }
            Console::Terminal => {
                if may_print(&self.name, 1, &mut self.budget) {
                    console::put(byte);
                }
            }
        }
    }

    /// Hands what was typed on the guest's terminal to COM1, as much as it has room for.
    pub(crate) fn receive_typed(&mut self) {
        if self.console != Console::Terminal {
            return;
        }
        while self.ports.com1_has_room()
            && let Some(byte) = console::take_typed()
        {
            self.ports.com1_receive(byte);
        }
    }

    /// Prints a line about the guest that it can cause as often as it likes, if it may print so much.
    pub(crate) fn tell(&mut self, what: fmt::Arguments<'_>) {
        let text = format_args!("partition {}: {what}\n", self.name);
        print_counted(&self.name, text, &mut self.budget);
    }

    /// The same for a line of at most `most` bytes, which need not be counted for it.
    pub(crate) fn tell_shortly(&mut self, most: usize, what: fmt::Arguments<'_>) {
        let text = format_args!("partition {}: {what}\n", self.name);
        print_bounded(&self.name, text, most as u64, &mut self.budget);
    }

    /// Prints a text of whatever length if the guest may print so much.
    pub(crate) fn print_counted(&mut self, text: fmt::Arguments<'_>) {
        print_counted(&self.name, text, &mut self.budget);
    }

    /// Prints what is left of the guest's last line.
    pub(crate) fn flush_line(&mut self) {
        if let Some(line) = self.line.take_rest() {
            print_line(&self.name, line, &mut self.budget);
        }
    }

    /// Says how much of the guest's output was not printed.
    pub(crate) fn flush(&mut self) {
        if let Some(dropped) = self.budget.take_dropped() {
            report_dropped(&self.name, dropped);
        }
    }
}

/// Prints a guest's line if it may print so much.
fn print_line(name: &str, line: &str, budget: &mut PrintBudget) {
    let text = format_args!("[{name}] {line}\n");
    // Name and line, two brackets, a space and the two bytes of the line's end.
    let bytes = (name.len() as u64).saturating_add(line.len() as u64).saturating_add(5);
    print_bounded(name, text, bytes, budget);
}

/// Prints a text of whatever length if the guest may print so much.
fn print_counted(name: &str, text: fmt::Arguments<'_>, budget: &mut PrintBudget) {
    struct Length(u64);
    impl fmt::Write for Length {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.saturating_add(text.len() as u64);
            Ok(())
        }
    }
    let mut length = Length(0);
    if fmt::write(&mut length, text).is_ok() {
        print_bounded(name, text, length.0, budget);
    }
}

fn print_bounded(name: &str, text: fmt::Arguments<'_>, bytes: u64, budget: &mut PrintBudget) {
    if may_print(name, bytes, budget) {
        console::print(text);
    }
}

/// Whether a guest may print so many bytes. The first time that it may not is told, and how much it was when it may again.
fn may_print(name: &str, bytes: u64, budget: &mut PrintBudget) -> bool {
    match budget.ask(bytes, tsc()) {
        Permission::Print => return true,
        Permission::PrintAfter(dropped) => {
            report_dropped(name, dropped);
            return true;
        }
        Permission::DropFirst => report_flood(name, None),
        Permission::Drop => {}
    }
    false
}

fn report_dropped(name: &str, Dropped { lines, bytes }: Dropped) {
    report_flood(name, Some(&format_args!("{lines} line(s) of its output, {bytes} byte(s), were dropped")));
}

fn report_flood(name: &str, what: Option<&dyn fmt::Display>) {
    let place = format_args!("partition {name}");
    report::record(Record { message: Message::ConsoleFlood, place: &place, what, remedy: None });
}
