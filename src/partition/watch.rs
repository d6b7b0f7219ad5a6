//! Looking at the sources that have a policy about misbehaviour, from time to time, by the CPU's own timer.
//!
//! Nothing here is on the way of an interrupt: a storm was stopped before it is found here, and a delivery that nobody
//! completes has all the time there is. A partition none of whose devices has such a policy is never looked at.

use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU64;
use core::ops::RangeInclusive;
use core::sync::atomic::Ordering;

use levelhead::intx::{
    Actor, Completion, Deliveries, EoiWatch, Gate, MaskReasons, Notifier, Outcome, Overdue, Replacing,
    SourceId, SourceReport, Storm,
};
use levelhead::message::{Message, Record};
use levelhead::policy::{DevicePolicy, NeverEoi};

use super::Share;
use super::vcpu::VirtualCpu;
use crate::arch::x86::clock::Clock;
use crate::machine::Machine;
use crate::report::record;

/// When a partition is looked at, and what is under way from the last look.
pub(crate) struct Watch {
    clock: Clock,
    /// Ticks between two looks.
    period: u64,
    last: u64,
    /// The watch over each function's completions, where its policy asks for one.
    eoi: Vec<Option<EoiWatch>>,
    /// A forced completion that waits for the last delivery to the notifier.
    forcing: Option<Replacing<'static>>,
}

impl Watch {
    /// Looks are a quarter of the shortest time of all policies apart, within these bounds.
    const PERIOD_MS: RangeInclusive<u32> = 1..=100;

    /// The watch that these functions need; none if no policy has a time in it.
    pub(crate) fn new(functions: &[Share], clock: Option<Clock>) -> Option<Self> {
        let shortest = functions.iter().filter_map(|share| shortest_ms(&share.function.policy)).min()?;
        let (least, most) = Self::PERIOD_MS.into_inner();
        let clock = clock?;
        let period = clock.ticks_per_ms.get().saturating_mul(u64::from((shortest / 4).clamp(least, most)));
        let eoi = functions.iter().map(|share| eoi_watch(&share.function.policy, clock)).collect();
        Some(Self { clock, period, last: 0, eoi, forcing: None })
    }

    /// As for a guest that has not run yet.
    pub(super) fn renew(&mut self, functions: &[Share]) {
        for (eoi, share) in self.eoi.iter_mut().zip(functions) {
            *eoi = eoi_watch(&share.function.policy, self.clock);
        }
    }

    fn due(&self) -> u64 {
        self.last.saturating_add(self.period)
    }
}

/// The time within which a device's policy wants to be looked at, if it wants to be at all.
pub(crate) fn shortest_ms(policy: &DevicePolicy) -> Option<u32> {
    let pause = policy.storm.map(|storm| storm.pause_ms);
    pause.into_iter().chain(policy.never_eoi.map(|deadline| deadline.after_ms)).min()
}

impl VirtualCpu {
    /// When the next look is due.
    #[inline]
    pub(crate) fn next_look(&self) -> Option<u64> {
        self.watch.as_ref().map(Watch::due)
    }

    /// The forced completion under way, for whoever must see it through.
    pub(crate) fn take_forcing(&mut self) -> Option<Replacing<'static>> {
        self.watch.as_mut()?.forcing.take()
    }

    /// Looks at every source with a policy, if that is due at `now`: once each, without waiting for anything.
    pub(crate) fn look(&mut self, machine: &'static Machine, now: u64) {
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.due() <= now) else { return };
        // A look that comes late, because the machine stood still, counts as one on time: the guest stood still as well.
        let elapsed = now.saturating_sub(watch.last).min(watch.period.saturating_mul(2));
        watch.last = now;
        let ticks_per_ms = watch.clock.ticks_per_ms;
        if let Some(forcing) = watch.forcing.take() {
            self.poll_forced(machine, forcing);
        }
        for index in 0..self.partition.functions.len() {
            let Some(source) = self.watched(index) else { continue };
            let (storm, mut deliveries) =
                machine.lines.resume(source, now, &mut machine.wires(Actor::Hypervisor));
            self.deliver(machine, &mut deliveries);
            let Some(report) = machine.lines.source_report(source) else { continue };
            if let Some(storm) = storm {
                self.record_storm(machine, index, &report, storm, ticks_per_ms);
            }
            let eoi = self.eoi_watch(index);
            if let Some(overdue) = eoi.and_then(|eoi| eoi.look(&report.state, &report.account, elapsed))
                && self.act(machine, index, source, overdue.action)
            {
                let eoi = self.eoi_watch(index);
                eoi.into_iter().for_each(|eoi| eoi.acted(&report.account));
                self.record_overdue(index, &report, overdue, ticks_per_ms);
            }
        }
    }

    /// The source of this function, if the partition has it now.
    fn watched(&self, index: usize) -> Option<SourceId> {
        let share = self.partition.functions.get(index).filter(|share| self.partition.holds(share))?;
        share.function.source
    }

    fn eoi_watch(&mut self, index: usize) -> Option<&mut EoiWatch> {
        self.watch.as_mut()?.eoi.get_mut(index)?.as_mut()
    }

    /// Records the storms that no look has found yet, of a guest that runs no more.
    pub(crate) fn last_look(&mut self, machine: &'static Machine) {
        let Some(ticks_per_ms) = self.watch.as_ref().map(|watch| watch.clock.ticks_per_ms) else { return };
        for index in 0..self.partition.functions.len() {
            let Some(source) = self.watched(index) else { continue };
            // At the beginning of time no pause is over.
            let (storm, mut deliveries) =
                machine.lines.resume(source, 0, &mut machine.wires(Actor::Hypervisor));
            self.deliver(machine, &mut deliveries);
            if let Some((storm, report)) = storm.zip(machine.lines.source_report(source)) {
                self.record_storm(machine, index, &report, storm, ticks_per_ms);
            }
        }
    }

    /// Does what is due about a delivery that nobody completes. Whether that could be done now.
    fn act(&mut self, machine: &'static Machine, index: usize, source: SourceId, action: NeverEoi) -> bool {
        if action == NeverEoi::Hold {
            return true;
        }
        if self.watch.as_ref().is_none_or(|watch| watch.forcing.is_some()) {
            return false;
        }
        let Some(control) = machine.turns.try_take() else { return false };
        if action == NeverEoi::Quarantine
            && let Some(share) = self.partition.functions.get(index)
        {
            share.function.unserved.store(true, Ordering::Relaxed);
            machine.lines.mask(source, MaskReasons::QUARANTINE, &mut machine.wires(Actor::Hypervisor));
        }
        // The same notifier again, which nobody else replaces now: the grace period is what makes it safe to lower the pin.
        let same = machine.lines.source_report(source).map_or(Notifier::None, |report| report.slot.target);
        match machine.lines.replace(control, source, same, Completion::Forced) {
            Ok(forcing) => self.poll_forced(machine, forcing),
            Err((control, _)) => machine.turns.give_back(control),
        }
        true
    }

    fn poll_forced(&mut self, machine: &'static Machine, forcing: Replacing<'static>) {
        let mut deliveries = Deliveries::none();
        match forcing.poll(&mut machine.wires(Actor::Hypervisor), &mut deliveries) {
            Ok(done) => {
                machine.turns.give_back(done.control);
                self.deliver(machine, &mut deliveries);
            }
            Err(unfinished) => {
                if let Some(watch) = &mut self.watch {
                    watch.forcing = Some(unfinished);
                }
            }
        }
    }

    #[cold]
    fn record_storm(
        &self,
        machine: &Machine,
        index: usize,
        report: &SourceReport,
        storm: Storm,
        ticks_per_ms: NonZeroU64,
    ) {
        let Storm { interrupts, within, strikes, outcome } = storm;
        let Some(budget) = report.meter.map(|meter| meter.budget) else { return };
        let ms = |ticks: u64| ticks / ticks_per_ms;
        let line = machine.lines.line_reports().find(|line| line.gsi == report.gsi);
        let at_line = line.is_some_and(|line| line.state.gate != Gate::Function);
        let closed = if at_line { "the whole line is closed" } else { "its neighbours on the line are not" };
        let follows = fmt::from_fn(|f| match outcome {
            Outcome::Throttled => write!(
                f,
                "throttled for {} ms, time {strikes} of {} in a row",
                ms(budget.pause),
                budget.retries
            ),
            Outcome::Quarantined => write!(f, "quarantined after {} admissions in a row", budget.retries),
        });
        let what = format_args!(
            "{interrupts} interrupts at {} within {} us, the limit is {} in {} ms; {follows} ({closed})",
            report.gsi,
            within.saturating_mul(1000) / ticks_per_ms,
            budget.limit,
            ms(budget.window),
        );
        let message = match outcome {
            Outcome::Throttled => Message::Storm,
            Outcome::Quarantined => Message::StormQuarantined,
        };
        record(Record { message, place: &self.device(index), what: Some(&what), remedy: None });
    }

    #[cold]
    fn record_overdue(
        &self,
        index: usize,
        report: &SourceReport,
        overdue: Overdue,
        ticks_per_ms: NonZeroU64,
    ) {
        let follows = match overdue.action {
            NeverEoi::Hold => "it stays in service",
            NeverEoi::Complete => "completed by force, once",
            NeverEoi::Quarantine => "completed by force, and the device is quarantined",
        };
        let vpin = fmt::from_fn(|f| match report.state.notifier {
            Notifier::Pin { vpin, .. } => write!(f, "virtual pin {}", vpin.0),
            other => write!(f, "{other}"),
        });
        let what = format_args!(
            "delivery {} of {} to {vpin} is not completed after {} ms; {follows}",
            report.account.ledger.delivered,
            report.gsi,
            overdue.age / ticks_per_ms,
        );
        let place = self.device(index);
        record(Record { message: Message::NeverEoi, place: &place, what: Some(&what), remedy: None });
    }

    /// A device of this partition, as records name it.
    fn device(&self, index: usize) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            write!(f, "partition {}", self.partition.name)?;
            match self.partition.functions.get(index) {
                Some(share) => write!(f, ", device {}", share.function.bdf),
                None => Ok(()),
            }
        })
    }
}

/// The watch over a device's completions that its policy asks for.
fn eoi_watch(policy: &DevicePolicy, clock: Clock) -> Option<EoiWatch> {
    let deadline = policy.never_eoi?;
    Some(EoiWatch::new(&deadline, clock.ticks_per_ms.get()))
}
