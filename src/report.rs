//! What the hypervisor tells about itself: refusals at boot, the table of lines, the closing ledger.
//!
//! What is wrong is a record of the catalogue (`levelhead::message`).

use alloc::string::ToString;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt;

use levelhead::command::Command;
use levelhead::config::Rejection;
use levelhead::decide::Finding;
use levelhead::intx::{History, LIE_LIMIT, LineFinding, Moment, Registrations, Service, Since, SourceId};
use levelhead::irq::{Gsi, Vector};
use levelhead::message::{Message, Party, Record, Refusal};
use levelhead::pci::{Bdf, IntxView};

use crate::arch::svm::enable::Unfit;
use crate::arch::x86::cpu::tsc;
use crate::arch::x86::paging::OutOfMemory;
use crate::boot::pvh::HandOverError;
use crate::boot::smp::StartError;
use crate::console::print;
use crate::hypercalls::record as ledger_record;
use crate::machine::Machine;
use crate::partition::end::End;
use crate::partition::{Partition, Share};
use crate::platform::tables::FirmwareError;
use crate::rt::exit::Verdict;

/// Why the machine ends before a guest ran: everything that was found wrong, at least one thing.
#[derive(Debug)]
pub(crate) struct BootError(Vec<Refusal>);

impl BootError {
    /// Prints a record for each, and says how the machine ends.
    pub(crate) fn report(self) -> Verdict {
        let mut verdict = Verdict::Refused;
        for refusal in &self.0 {
            print(format_args!("{refusal}\n"));
            verdict = match refusal.message.party() {
                Party::Bug => Verdict::Bug,
                Party::Firmware if verdict == Verdict::Refused => Verdict::Unfit,
                _ => verdict,
            };
        }
        print(format_args!(
            "levelhead: verdict {}\n",
            match verdict {
                Verdict::Bug => "BUG",
                Verdict::Unfit => "UNFIT",
                Verdict::Pass | Verdict::GuestFailed | Verdict::Refused => "REFUSED",
            }
        ));
        verdict
    }
}

impl From<Refusal> for BootError {
    fn from(refusal: Refusal) -> Self {
        Self(vec![refusal])
    }
}

impl From<Vec<Refusal>> for BootError {
    /// At least one.
    fn from(refusals: Vec<Refusal>) -> Self {
        Self(refusals)
    }
}

impl From<Rejection> for BootError {
    fn from(rejection: Rejection) -> Self {
        Self(rejection.refusals())
    }
}

impl From<Vec<Finding>> for BootError {
    fn from(findings: Vec<Finding>) -> Self {
        Self(findings.into_iter().map(|finding| finding.refusal).collect())
    }
}

impl From<OutOfMemory> for BootError {
    fn from(_: OutOfMemory) -> Self {
        Refusal::new(Message::HypervisorMemory, "machine", Message::HypervisorMemory.meaning()).into()
    }
}

impl From<HandOverError> for BootError {
    fn from(error: HandOverError) -> Self {
        Refusal::new(Message::HandOver, "loader", error.to_string()).into()
    }
}

impl From<FirmwareError> for BootError {
    fn from(error: FirmwareError) -> Self {
        let message = error.message();
        Refusal::new(message, "ACPI tables", message.meaning()).into()
    }
}

impl From<Unfit> for BootError {
    fn from(unfit: Unfit) -> Self {
        let message = unfit.message();
        Refusal::new(message, "machine", message.meaning()).into()
    }
}

impl From<StartError> for BootError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::OutOfMemory => OutOfMemory.into(),
            StartError::Silent(apic) => {
                let place = format!("CPU with APIC ID {}", apic.0);
                Refusal::new(Message::CpuSilent, place, Message::CpuSilent.meaning()).into()
            }
        }
    }
}

/// Prints a record.
pub(crate) fn record(record: Record<'_>) {
    print(format_args!("{record}\n"));
}

/// Records what was found out about the functions on a vector's line, each thing that was.
#[cold]
pub(crate) fn finding(machine: &Machine, vector: Vector) {
    while let Some((gsi, finding, source)) = machine.lines.take_finding(vector) {
        record_finding(machine, gsi, finding, source);
    }
}

fn record_finding(machine: &Machine, gsi: Gsi, finding: LineFinding, source: Option<SourceId>) {
    let sharers = fmt::from_fn(|f| {
        let on_line = machine.lines.sources().filter_map(|source| machine.lines.source_report(source));
        on_line.filter(|report| report.gsi == gsi).try_for_each(|report| {
            write!(f, " {}", Bdf::from_requester_id(report.info.bdf))?;
            let is_it = |share: &Share| share.function.bdf.requester_id() == report.info.bdf;
            let mut partitions = machine.partitions.iter();
            match partitions.find(|partition| partition.held().any(is_it)) {
                Some(partition) => write!(f, " of partition {}", partition.name),
                None => Ok(()),
            }
        })
    });
    let message = match finding {
        LineFinding::Demoted => Message::LineDemoted,
        LineFinding::Stopped => Message::LineStopped,
        LineFinding::Vanished(_) => Message::DeviceVanished,
        LineFinding::Doubted(_) => Message::StatusStuck,
    };
    let place = fmt::from_fn(|f| match source.and_then(|source| machine.lines.source_report(source)) {
        Some(report) => write!(f, "device {}", Bdf::from_requester_id(report.info.bdf)),
        None => write!(f, "{gsi}"),
    });
    let what = fmt::from_fn(|f| match finding {
        LineFinding::Demoted | LineFinding::Stopped => {
            write!(f, "{LIE_LIMIT} interrupts in a row that nobody claims; on the line:{sharers}")
        }
        LineFinding::Vanished(_) => write!(f, "it answers all-ones; on {gsi}:{sharers}"),
        LineFinding::Doubted(_) => {
            write!(f, "set at {LIE_LIMIT} completions in a row without an interrupt; on {gsi}:{sharers}")
        }
    });
    record(Record { message, place: &place, what: Some(&what), remedy: None });
}

/// Prints which function's INTx goes where.
pub(crate) fn lines(machine: &Machine) {
    print(format_args!(
        "  device   partition        line     vector  gate      notifier               handler\n"
    ));
    for partition in &machine.partitions {
        for Share { function, .. } in partition.held() {
            let bdf = function.bdf;
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
    for Share { function, .. } in partition.held() {
        let bdf = function.bdf;
        let Some(report) = function.source.and_then(|source| machine.lines.source_report(source)) else {
            print(format_args!("ledger {bdf} ({}): no INTx\n", partition.name));
            continue;
        };
        let line = machine.lines.line_reports().find(|line| line.gsi == report.gsi);
        let Registrations { installed, removed } =
            line.as_ref().map_or_else(Registrations::default, |line| line.registrations);
        let gate = fmt::from_fn(|f| match &line {
            Some(line) => write!(f, "{}", line.state.gate),
            None => f.write_str("gone"),
        });
        let book = ledger_record(&report, function.replacements(), installed);
        let even = report.account.balance().is_ok() && book.is_balanced();
        let verdict = if even { "balanced" } else { "NOT BALANCED" };
        balanced &= even;
        print(format_args!(
            "ledger {bdf} ({}) {}: accepted wire {} loopback {} replay {} = delivered {} + coalesced {} + suppressed {} + \
             pending {}; delivered = eoi {} + forced {} + reset {} + handover {} + in service {}: {verdict}; \
             gate {}, handler installed {installed}x, removed {removed}x\n",
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
            gate,
        ));
        if let Some(source) = function.source {
            let mut history = History::NONE;
            machine.lines.tell_history(source, &mut history);
            let text = flight(&history);
            print(format_args!("flight {bdf} ({}) {} at {}: {text}\n", partition.name, report.gsi, tsc()));
        }
        if book.accepted_wire == 0 && IntxView::read(&machine.config, bdf).is_pending() {
            let place = format_args!("partition {}, device {bdf}", partition.name);
            let what = format_args!(
                "it asserts its INTx, but nothing ever arrived at {}: the routing is wrong",
                report.gsi
            );
            record(Record { message: Message::RouteWrong, place: &place, what: Some(&what), remedy: None });
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

/// Answers a command of the console. Each line begins with a question mark, so that no reader of the log takes it for a closing
/// one.
pub(crate) fn answer(machine: &Machine, command: Command) {
    match command {
        Command::Help => {
            for (word, _, what) in Command::ALL {
                print(format_args!("? {word:<6}{what}\n"));
            }
        }
        Command::Why => {
            let shares = machine
                .partitions
                .iter()
                .flat_map(|partition| partition.held().map(move |share| (&partition.name, share.function)));
            for (name, function) in shares {
                let Some(source) = function.source else { continue };
                let Some(gsi) = machine.lines.gsi(source) else { continue };
                let mut history = History::NONE;
                machine.lines.tell_history(source, &mut history);
                let (bdf, text) = (function.bdf, flight(&history));
                print(format_args!("? flight {bdf} ({name}) {gsi} at {}: {text}\n", tsc()));
            }
        }
        Command::Unknown => print(format_args!("? no such command; help lists them\n")),
    }
}

/// Why a source is silenced, since when and by whom; and how it came to that.
fn flight(history: &History) -> impl fmt::Display {
    /// How many moments are told.
    const TOLD: usize = 8;
    fmt::from_fn(|f| {
        if history.reasons().is_empty() {
            f.write_str("open")?;
        }
        let since =
            history.reasons().iter_names().filter_map(|(name, reason)| Some((name, history.since(reason)?)));
        for (index, (name, Since { at, by })) in since.enumerate() {
            let between = if index > 0 { " + " } else { "" };
            write!(f, "{between}{name} since {at} by {by}")?;
        }
        let skipped = history.moments().len().saturating_sub(TOLD);
        for (index, moment) in history.moments().iter().skip(skipped).enumerate() {
            let Moment { at, reasons, what, by, .. } = moment;
            let between = if index > 0 { ", " } else { "; " };
            write!(f, "{between}{at} {} by {by} {reasons}", what.name())?;
        }
        Ok(())
    })
}

/// Prints what the partition cost.
pub(crate) fn stats(machine: &Machine, partition: &Partition) {
    let exits = partition.exits();
    let accesses = machine.io_apics.with(|chips| chips.accesses);
    print(format_args!(
        "stats partition={} exits.interrupt={} exits.msr={} exits.mmio={} exits.hlt={} exits.io={} exits.cpuid={} \
         exits.hypercall={} exits.other={} kicks={} ioapic.reads={} ioapic.writes={} config.accesses={} config.reads={} \
         interrupts={}\n",
        partition.name,
        exits.interrupt,
        exits.msr,
        exits.mmio,
        exits.hlt,
        exits.io,
        exits.cpuid,
        exits.hypercall,
        exits.other,
        partition.receiver.kicks(),
        accesses.reads,
        accesses.writes,
        machine.config.accesses(),
        machine.config.reads(),
        partition.counters.interrupts(),
    ));
}

/// A partition that runs no more.
pub(crate) type Ended = (&'static Partition, End);

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
