//! What the hypervisor tells about itself: refusals at boot, the table of lines, the closing ledger.
//!
//! One record says who is at fault (Config, Firmware, Machine, Device, Guest, Bug), what is wrong and what would be right.

use alloc::boxed::Box;
use alloc::string::{String, ToString};

use levelhead::intx::Service;
use levelhead::pci::IntxView;
use log::error;

use crate::arch::svm::enable::Unfit;
use crate::arch::x86::paging::OutOfMemory;
use crate::boot::pvh::HandOverError;
use crate::boot::smp::StartError;
use crate::console::print;
use crate::hypercalls::record;
use crate::machine::Machine;
use crate::partition::Partition;
use crate::partition::assign::Refused;
use crate::partition::end::End;
use crate::platform::tables::FirmwareError;
use crate::rt::exit::Verdict;
use crate::system::Placed;

/// Why the machine ends before a guest ran.
#[derive(Debug)]
pub(crate) enum BootError {
    /// The loader's structures cannot be used.
    HandOver(HandOverError),
    /// The hypervisor itself does not fit.
    OutOfMemory,
    /// The ACPI tables cannot be used.
    Firmware(FirmwareError),
    /// The CPU cannot run guests.
    Unfit(Unfit),
    /// Another CPU did not start.
    Start(StartError),
    /// A word of the command line.
    Option {
        /// The key.
        key: &'static str,
        /// What would be right.
        right: &'static str,
    },
    /// The bundle or what it asks for; the text begins with the party at fault.
    Refused(String),
    /// What firmware should have told about this machine, likewise.
    Platform(String),
}

impl BootError {
    /// Prints the one record, and says how the machine ends.
    pub(crate) fn report(self) -> Verdict {
        let (party, what, verdict) = match self {
            Self::HandOver(error) => ("Firmware", error.to_string(), Verdict::Unfit),
            Self::Firmware(error) => ("Firmware", error.to_string(), Verdict::Unfit),
            Self::Unfit(error) => ("Machine", error.to_string(), Verdict::Unfit),
            Self::Start(error) => ("Machine", error.to_string(), Verdict::Unfit),
            Self::OutOfMemory => {
                ("Machine", "not enough memory for the hypervisor".to_string(), Verdict::Unfit)
            }
            Self::Option { key, right } => {
                ("Config", alloc::format!("command line: {key} must be {right}"), Verdict::Refused)
            }
            Self::Refused(what) => ("", what, Verdict::Refused),
            Self::Platform(what) => ("", what, Verdict::Unfit),
        };
        match party {
            "" => error!("{what}"),
            party => error!("{party}: {what}"),
        }
        print(format_args!(
            "levelhead: verdict {}\n",
            if verdict == Verdict::Refused { "REFUSED" } else { "UNFIT" }
        ));
        verdict
    }
}

macro_rules! boot_error_from {
    ($($source:ty => $variant:ident),*) => {$(
        impl From<$source> for BootError {
            fn from(error: $source) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}
boot_error_from!(HandOverError => HandOver, FirmwareError => Firmware, Unfit => Unfit, StartError => Start);

impl From<OutOfMemory> for BootError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<Refused> for BootError {
    fn from(Refused(what): Refused) -> Self {
        if what.starts_with("Firmware") { Self::Platform(what) } else { Self::Refused(what) }
    }
}

/// Prints which function's INTx goes where.
pub(crate) fn lines(machine: &Machine, placed: &[Placed]) {
    print(format_args!(
        "  device   partition        line     vector  gate      notifier               handler\n"
    ));
    for (_, partition) in placed {
        for function in &partition.functions {
            let bdf = function.config.bdf();
            let Some(report) = function.source.and_then(|source| machine.lines.source_report(source)) else {
                print(format_args!("  {bdf}  {:<16} no INTx\n", partition.name));
                continue;
            };
            let Some(line) = machine.lines.line_reports().find(|line| line.gsi == report.gsi) else {
                continue;
            };
            print(format_args!(
                "  {bdf}  {:<16} {:<8} {:#04x}    {:<9} {:<22} installed {}x, removed {}x\n",
                partition.name,
                report.gsi.to_string(),
                line.vector.get(),
                line.state.gate.to_string(),
                report.state.notifier.to_string(),
                line.registrations.installed,
                line.registrations.removed,
            ));
        }
    }
}

/// Prints a partition's closing books; whether every one of them balances.
pub(crate) fn close(machine: &Machine, partition: &Partition) -> bool {
    let mut balanced = true;
    for function in &partition.functions {
        let bdf = function.config.bdf();
        let Some(report) = function.source.and_then(|source| machine.lines.source_report(source)) else {
            print(format_args!("ledger {bdf} ({}): no INTx\n", partition.name));
            continue;
        };
        let line = machine.lines.line_reports().find(|line| line.gsi == report.gsi);
        let registrations = line.map_or(0, |line| line.registrations.installed);
        let book = record(&report, function.replacements, registrations);
        let even = report.account.balance().is_ok() && book.is_balanced();
        let verdict = if even { "balanced" } else { "NOT BALANCED" };
        balanced &= even;
        print(format_args!(
            "ledger {bdf} ({}) {}: accepted wire {} loopback {} replay {} = delivered {} + coalesced {} + suppressed {} + \
             pending {}; delivered = eoi {} + forced {} + reset {} + handover {} + in service {}: {verdict}\n",
            partition.name,
            report.gsi,
            book.accepted_wire,
            book.accepted_loopback,
            book.accepted_replay,
            book.delivered,
            book.coalesced,
            book.suppressed,
            book.pending,
            book.completed_eoi,
            book.completed_forced,
            book.completed_reset,
            book.completed_handover,
            book.in_service,
        ));
        if book.accepted_wire == 0 && IntxView::read(&machine.config, bdf).is_pending() {
            print(format_args!(
                "  {bdf} asserts its INTx, but nothing ever arrived at {}: the routing is wrong; give the device its line in \
                 the configuration (gsi = N)\n",
                report.gsi
            ));
        }
        if report.state.service != Service::Idle {
            print(format_args!(
                "  in service at the end: {:?}, silenced by {}\n",
                report.state.service, report.state.reasons
            ));
        }
    }
    balanced
}

/// Prints what the partition cost.
pub(crate) fn stats(machine: &Machine, partition: &Partition) {
    let exits = &partition.exits;
    let accesses = machine.io_apics.with(|chips| chips.accesses);
    print(format_args!(
        "stats partition={} exits.interrupt={} exits.msr={} exits.mmio={} exits.hlt={} exits.io={} exits.cpuid={} \
         exits.hypercall={} exits.other={} ioapic.reads={} ioapic.writes={} config.accesses={} interrupts={}\n",
        partition.name,
        exits.interrupt,
        exits.msr,
        exits.mmio,
        exits.hlt,
        exits.io,
        exits.cpuid,
        exits.hypercall,
        exits.other,
        accesses.reads,
        accesses.writes,
        machine.config.accesses(),
        partition.interrupts,
    ));
}

/// A partition that runs no more.
pub(crate) type Ended = (Box<Partition>, End);

/// The closing words of the machine: every partition's end and books, then one verdict line.
pub(crate) fn verdict(machine: &Machine, ended: &[Option<Ended>]) -> Verdict {
    let mut good = true;
    for (partition, end) in ended.iter().flatten() {
        let balanced = close(machine, partition);
        stats(machine, partition);
        good &= balanced && end.is_success();
    }
    print(format_args!("levelhead: verdict {}\n", if good { "PASS" } else { "FAIL" }));
    if good { Verdict::Pass } else { Verdict::GuestFailed }
}
