//! A partition at run time: one guest with its memory, its devices and its interrupt chips.
//!
//! * `ram`: its memory;
//! * `assign`: how physical functions become its own, and their lines with them;
//! * `build`: all of it put together at boot;
//! * `end`: how it ends, and the record that says why;
//! * `revive`: what it starts again from;
//! * `watch`: looking after devices that storm and deliveries that nobody completes.
//!
//! A partition belongs to the one CPU that runs it. What other CPUs reach of it is its
//! [`Receiver`](crate::machine::Receiver), where interrupts arrive.

pub(crate) mod assign;
pub(crate) mod build;
pub(crate) mod end;
pub(crate) mod ram;
pub(crate) mod revive;
pub(crate) mod watch;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use levelhead::border::Ports;
use levelhead::config::MAX_PARTITIONS;
use levelhead::counters::{Counters, SLOTS, Slot};
use levelhead::device::{Dropped, LineBuffer, Permission, PrintBudget};
use levelhead::emulate::{CodePages, DecodeCache};
use levelhead::intx::{Deliveries, EoiWatch, Notifier, SourceId};
use levelhead::irq::Pin;
use levelhead::message::{Message, Record};
use levelhead::pci::VirtualConfig;
use levelhead::pci::reset::Fault;
use levelhead::pci::virtual_bar::{Mapping, Mappings};
use levelhead::policy::DevicePolicy;
use levelhead::svm::{NestedTables, Reach};
use levelhead::virq::{PinSet, Vcpu};

use crate::arch::svm::nested::TablePool;
use crate::arch::svm::vmrun::World;
use crate::arch::x86::cpu::tsc;
use crate::machine::{Chips, Here, Machine, Receiver};
use crate::{console, report};
use ram::Ram;
use revive::Revival;
use watch::Watch;

/// What an observer of the running machine reads, found by this symbol.
#[expect(unsafe_code, reason = "a symbol with a name of its own")]
#[unsafe(export_name = "lh_counters")]
static COUNTERS: Counters = Counters::new();

const _: () = assert!(MAX_PARTITIONS <= SLOTS, "every partition has a slot");

/// The one virtual CPU of a partition.
pub(crate) const BOOT: Vcpu = Vcpu(0);
/// Longest console line of a guest that is printed in one piece.
const CONSOLE_COLUMNS: usize = 160;

/// A physical function that the partition owns.
pub(crate) struct Function {
    /// What the guest sees of it.
    pub(crate) config: VirtualConfig,
    /// What the guest sees of it when it starts.
    initial: VirtualConfig,
    /// Its place among the machine's sources; none without INTx.
    pub(crate) source: Option<SourceId>,
    /// The virtual pin that its notifier leads to when the guest starts.
    pub(crate) vpin: Option<Pin>,
    /// What is done about its misbehaviour.
    pub(crate) policy: DevicePolicy,
    /// How often its notifier was replaced by hypercall.
    pub(crate) replacements: u64,
    /// The watch over its completions, if its policy asks for one.
    pub(crate) eoi: Option<EoiWatch>,
    /// What of its BARs is mapped now.
    mapped: Mappings,
    /// How its last reset went.
    reset: Option<Result<(), Fault>>,
    /// It did not come back from its last reset as it was: it is silent, and the guest reaches none of its BARs.
    pub(crate) lost: bool,
}

/// How often each kind of exit happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exits {
    pub(crate) interrupt: u64,
    pub(crate) msr: u64,
    pub(crate) mmio: u64,
    pub(crate) hlt: u64,
    pub(crate) io: u64,
    pub(crate) cpuid: u64,
    pub(crate) hypercall: u64,
    pub(crate) other: u64,
}

/// Everything one guest is.
pub(crate) struct Partition {
    pub(crate) index: u8,
    pub(crate) name: String,
    pub(crate) world: World,
    pub(crate) ram: Ram,
    /// Where its interrupts arrive.
    pub(crate) receiver: &'static Receiver,
    pub(crate) functions: Vec<Function>,
    pub(crate) ports: Ports,
    pub(crate) pages: CodePages,
    pub(crate) decoded: DecodeCache,
    pub(crate) exits: Exits,
    /// Lines' interrupts taken on this CPU for this partition, and how far it is; seen from outside.
    pub(crate) counters: &'static Slot,
    pub(crate) user_hypercalls: bool,
    /// MTRRdefType as the guest wrote it; the memory types themselves are the nested tables' business.
    pub(crate) mtrr_def_type: u64,
    /// Where an instruction was last tried again, and how often.
    pub(crate) again: (u64, u32),
    /// When its devices are looked at, if a policy asks for it.
    watch: Option<Watch>,
    nested: NestedTables,
    pool: TablePool,
    console: bool,
    line: LineBuffer<CONSOLE_COLUMNS>,
    budget: PrintBudget,
    /// What it starts again from; none if it never does, or while it does.
    pub(crate) revival: Option<Revival>,
}

impl Partition {
    /// Who is at work when this partition's CPU is.
    #[inline(always)]
    pub(crate) fn here(&self) -> Here {
        Here { partition: self.index, vcpu: BOOT }
    }

    /// Runs `body` with the interrupt chips, alone: see [`Receiver::chips`].
    #[inline(always)]
    pub(crate) fn chips<R>(&self, body: impl FnOnce(&mut Chips) -> R) -> R {
        self.receiver.chips(body)
    }

    /// Raises the pins of what was delivered.
    #[inline]
    pub(crate) fn deliver(&self, machine: &Machine, mut deliveries: Deliveries<'_>) {
        machine.deliver(self.here(), &mut deliveries);
    }

    /// The guest is done with these pins: completes the lines behind each, then lets the pin speak again.
    #[inline]
    pub(crate) fn complete(&self, machine: &Machine, pins: PinSet) {
        for vpin in pins {
            let target = Notifier::Pin { partition: self.index, vpin };
            let mut sources = machine.lines.listeners(self.index, vpin);
            if sources.are_several() {
                // Only those that hold it high: what the others may have in service is not what the guest has seen.
                sources = sources.among(self.chips(|chips| chips.ioapic().contributions(vpin)).into());
            }
            for source in sources {
                self.deliver(machine, machine.lines.complete(source, target, &mut machine.wires()));
            }
            self.settle(machine, vpin);
        }
    }

    /// Lets a pin deliver what it holds.
    #[inline]
    pub(crate) fn settle(&self, machine: &Machine, vpin: Pin) {
        machine.settle(self.here(), self.index, vpin);
    }

    /// Before the CPU looks what its guest is to get: answers whoever rang, and completes what waits for it.
    #[inline]
    pub(crate) fn answer(&self, machine: &Machine) {
        let due = self.receiver.answer(BOOT);
        if !due.is_empty() {
            self.complete(machine, due);
        }
    }

    /// The guest changed a virtual entry's mask bit: the lines behind the pin hear of it first, then the pin is looked
    /// at again, since an unmask may be a completion.
    pub(crate) fn virtual_rte(&self, machine: &Machine, vpin: Pin, masked: bool) {
        let target = Notifier::Pin { partition: self.index, vpin };
        for source in machine.lines.listeners(self.index, vpin) {
            self.deliver(machine, machine.lines.virtual_rte(source, target, masked, &mut machine.wires()));
        }
    }

    /// Opens and closes until the guest reaches exactly what its BARs say now.
    pub(crate) fn remap(&mut self) {
        let World { vmcb, io, .. } = &mut self.world;
        let mut reach = Reach::new(&self.nested, &mut self.pool, io, vmcb);
        for function in &mut self.functions {
            for slot in &mut function.mapped {
                let closed = match *slot {
                    Some(Mapping::Memory { guest, bytes, .. }) => reach.close_memory(guest, bytes).is_ok(),
                    Some(Mapping::Ports { first, last }) => {
                        reach.close_ports(first..=last);
                        true
                    }
                    None => true,
                };
                if closed {
                    *slot = None;
                }
            }
        }
        for function in self.functions.iter_mut().filter(|function| !function.lost) {
            for (slot, wanted) in function.mapped.iter_mut().zip(function.config.mappings()) {
                let opened = match wanted {
                    // What could not be closed stays where it is.
                    _ if slot.is_some() => continue,
                    Some(Mapping::Memory { guest, host, bytes }) => {
                        reach.open_memory(guest, host, bytes).is_ok()
                    }
                    Some(Mapping::Ports { first, last }) => {
                        reach.open_ports(first..=last);
                        true
                    }
                    None => false,
                };
                // A guest that lays its BARs over one another gets the first of them.
                *slot = if opened { wanted } else { None };
            }
        }
    }

    /// Prints a byte of the guest's console output, a line at a time.
    pub(crate) fn put(&mut self, byte: u8) {
        if !self.console {
            return;
        }
        if let Some(line) = self.line.push(byte) {
            print_line(&self.name, line, &mut self.budget);
        }
    }

    /// Prints a line about the guest that it can cause as often as it likes, if it may print so much.
    pub(crate) fn tell(&mut self, what: fmt::Arguments<'_>) {
        let text = format_args!("partition {}: {what}\n", self.name);
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
    match budget.ask(bytes, tsc()) {
        Permission::Print => console::print(text),
        Permission::PrintAfter(dropped) => {
            report_dropped(name, dropped);
            console::print(text);
        }
        Permission::DropFirst => report_flood(name, None),
        Permission::Drop => {}
    }
}

fn report_dropped(name: &str, Dropped { lines, bytes }: Dropped) {
    report_flood(name, Some(&format_args!("{lines} line(s) of its output, {bytes} byte(s), were dropped")));
}

fn report_flood(name: &str, what: Option<&dyn fmt::Display>) {
    let place = format_args!("partition {name}");
    report::record(Record { message: Message::ConsoleFlood, place: &place, what, remedy: None });
}
