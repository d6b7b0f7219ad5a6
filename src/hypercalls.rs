//! What each hypercall does. The form of a call was judged by the library ([`levelhead::hypercall`]); here the source, the
//! target and the memory it names are looked up among the partition's own.

use core::sync::atomic::Ordering;

use levelhead::addr::GuestPhys;
use levelhead::emulate::GuestMemory;
use levelhead::hypercall::{
    ABI_VERSION, Buffer, Call, CallError, Caller, HistoryMoment, HistoryRecord, HistorySince, LedgerRecord,
    Reply, SourceId as Index, SourceInfo, Target, answer, feature,
};
use levelhead::intx::{Completion, History, MOMENTS, MaskReasons, Notifier, Service, SourceId, SourceReport};
use levelhead::ownership::Standing;
use levelhead::virq::PINS;

use crate::arch::x86::cpu::tsc;
use crate::machine::Machine;
use crate::partition::end::End;
use crate::partition::ram::Word;
use crate::partition::vcpu::VirtualCpu;
use crate::partition::{Partition, Share};
use crate::run::Next;
use crate::takeover::Takeover;

// The record of function 12 has room for all that a recorder knows.
const _: () = assert!(
    HistoryRecord::REASONS == MaskReasons::all().bits().count_ones() as usize
        && HistoryRecord::MOMENTS == MOMENTS
);

/// Bytes of a console write that are copied at a time.
const TEXT_CHUNK: usize = 64;

impl VirtualCpu {
    /// Carries out the call in the guest's registers; RIP is behind the instruction already.
    #[inline(never)]
    pub(crate) fn hypercall<'m>(&mut self, machine: &'m Machine) -> Next<'m> {
        self.world.vmcb.load_into(&mut self.world.frame.regs);
        let caller = Caller {
            cpl: self.world.vmcb.cpl(),
            code_size: self.world.vmcb.code_size(),
            user_hypercalls: self.partition.user_hypercalls,
        };
        let reply = match Call::decode(&self.world.frame.regs, caller) {
            Err(error) => Err(error),
            Ok(Call::Exit(code)) => return Next::End(End::Code { code, by_hypercall: true }),
            Ok(Call::Reset) => return Next::End(End::Reset),
            Ok(Call::SetNotifier(index, target)) => match self.target(target) {
                Ok(new) => return self.replace(machine, index, new),
                // A source that does not exist is named first.
                Err(error) => self.own_source(index).and(Err(error)),
            },
            Ok(Call::TakeOver(index)) => match self.named(machine, index) {
                Ok((taker, share)) => return Next::TakeOver(Takeover { taker, share }),
                Err(error) => Err(error),
            },
            Ok(Call::ClearNotifier(index)) => {
                return self.replace(machine, index, New::Notifier(Notifier::None));
            }
            Ok(call) => self.answer_now(machine, call),
        };
        self.reply(reply);
        Next::Enter
    }

    fn reply(&mut self, reply: Reply) {
        answer(&mut self.world.frame.regs, reply);
        self.world.vmcb.store_from(&self.world.frame.regs);
    }

    /// Calls that need no waiting.
    #[inline(never)]
    fn answer_now(&mut self, machine: &Machine, call: Call) -> Reply {
        match call {
            Call::Version => Ok([ABI_VERSION, feature::OFFERED, self.partition.functions.len() as u64]),
            Call::SourceInfo(index) => self.source_info(machine, index).map(|info| info.encode()),
            Call::Mask(index) => {
                let source = self.source(machine, index)?;
                machine.lines.mask(source, MaskReasons::OPERATOR, &mut machine.wires(self.here().guest()));
                Ok([0; 3])
            }
            Call::Unmask(index) => {
                let source = self.source(machine, index)?;
                let (owner, share) = self.named(machine, index)?;
                // Who has a counter has no EOI to complete by.
                let service = machine.lines.source_report(source).map(|report| report.state.service);
                if let Some(Service::InService(addressee)) = service
                    && let target @ Notifier::Poll { .. } = addressee.target()
                    && owner.index == self.partition.index
                {
                    let mut wires = machine.wires(self.here().guest());
                    self.deliver(machine, &mut machine.lines.complete_counter(source, target, &mut wires));
                }
                let mut lifted = MaskReasons::OPERATOR;
                if self.partition.control && !share.function.is_lost() {
                    // Whosever fault it is.
                    let _ = share.function.forgive_guest();
                    lifted |= MaskReasons::THROTTLE | MaskReasons::QUARANTINE;
                }
                let (_, mut deliveries) =
                    machine.lines.unmask(source, lifted, &mut machine.wires(self.here().guest()));
                self.deliver(machine, &mut deliveries);
                Ok([0; 3])
            }
            Call::Trigger(index) => {
                let source = self.source(machine, index)?;
                let mut wires = machine.wires(self.here().guest());
                self.deliver(machine, &mut machine.lines.loopback(source, &mut wires));
                Ok([0; 3])
            }
            Call::ReadLedger(index, buffer) => {
                let record = self.ledger(machine, index)?;
                self.write_record(buffer, &record.to_bytes())
            }
            Call::ReadHistory(index, buffer) => {
                let record = self.history(machine, index)?;
                self.write_record(buffer, &record.to_bytes())
            }
            Call::ConsoleWrite(buffer) => self.console_write(buffer),
            Call::SetNotifier(..)
            | Call::ClearNotifier(_)
            | Call::TakeOver(_)
            | Call::Exit(_)
            | Call::Reset => Err(CallError::Unsupported),
        }
    }

    /// Publishes a new notifier; the run loop waits for the old one to be out of use and answers.
    fn replace<'m>(&mut self, machine: &'m Machine, index: Index, new: New) -> Next<'m> {
        let error = match self.own_source(index) {
            Err(error) => error,
            Ok(source) => match machine.turns.try_take() {
                None => CallError::Busy,
                Some(control) => {
                    let new = match new {
                        New::Notifier(notifier) => notifier,
                        New::Counter(word) => lead_counter(machine, source, word),
                    };
                    match machine.lines.replace(control, source, new, Completion::Handover) {
                        Ok(replacing) => {
                            if let Ok(share) = self.own(index) {
                                share.function.replacements.fetch_add(1, Ordering::Relaxed);
                            }
                            return Next::Replace(replacing);
                        }
                        Err((control, _)) => {
                            machine.turns.give_back(control);
                            CallError::BadTarget
                        }
                    }
                }
            },
        };
        self.reply(Err(error));
        Next::Enter
    }

    /// A function, and the partition it is named for: the caller's own, or any that a caller may name who controls others.
    fn named(
        &self,
        machine: &Machine,
        index: Index,
    ) -> Result<(&'static Partition, &'static Share), CallError> {
        let (number, at) = index.parts().ok_or(CallError::BadSource)?;
        let partition = match number {
            None => self.partition,
            Some(_) if !self.partition.control => return Err(CallError::NotPermitted),
            Some(number) => {
                machine.partitions.get(usize::from(number)).copied().ok_or(CallError::BadSource)?
            }
        };
        let share = partition.functions.get(usize::from(at)).ok_or(CallError::BadSource)?;
        Ok((partition, share))
    }

    /// A function of the caller's own.
    fn own(&self, index: Index) -> Result<&'static Share, CallError> {
        match index.parts() {
            Some((None, at)) => self.partition.functions.get(usize::from(at)).ok_or(CallError::BadSource),
            Some((Some(_), _)) => Err(CallError::NotPermitted),
            None => Err(CallError::BadSource),
        }
    }

    /// The source of a function that the partition has now for which it is named.
    fn source(&self, machine: &Machine, index: Index) -> Result<SourceId, CallError> {
        let (partition, share) = self.named(machine, index)?;
        held(partition, share)
    }

    /// The same for the caller's own.
    fn own_source(&self, index: Index) -> Result<SourceId, CallError> {
        held(self.partition, self.own(index)?)
    }

    fn target(&self, target: Target) -> Result<New, CallError> {
        match target {
            Target::VirtualPin(vpin) if vpin.0 < PINS => {
                Ok(New::Notifier(Notifier::Pin { partition: self.partition.index, vpin }))
            }
            Target::VirtualPin(_) => Err(CallError::BadTarget),
            Target::PollCounter(at) => {
                self.partition.ram.word(at).map(New::Counter).ok_or(CallError::BadTarget)
            }
        }
    }

    fn source_info(&self, machine: &Machine, index: Index) -> Result<SourceInfo, CallError> {
        let (partition, share) = self.named(machine, index)?;
        let function = share.function;
        let standing = function.ownership.standing(partition.index);
        let mut info = SourceInfo {
            bdf: function.bdf.requester_id(),
            intx_pin: function.interrupt_pin.map_or(0, |pin| pin.register()),
            virtual_pin: None,
            gsi: None,
            has_notifier: false,
            in_service: false,
            pending: false,
            shared: false,
            elsewhere: standing == Standing::Elsewhere,
            moves: function.moves,
            mask_reasons: 0,
        };
        let Some(report) = function.source.and_then(|source| machine.lines.source_report(source)) else {
            return Ok(info);
        };
        info.gsi = Some(report.gsi.0);
        info.shared = sharers(machine, &report) > 1;
        if standing == Standing::Held {
            info.virtual_pin = match report.state.notifier {
                Notifier::Pin { vpin, .. } => Some(vpin),
                Notifier::None | Notifier::Poll { .. } => None,
            };
            info.has_notifier = !report.state.notifier.is_none();
            info.in_service = report.state.service != Service::Idle;
            info.pending = report.state.pending || report.slot.marked;
            info.mask_reasons = u64::from(report.state.reasons.bits());
        }
        Ok(info)
    }

    fn ledger(&self, machine: &Machine, index: Index) -> Result<LedgerRecord, CallError> {
        let (partition, share) = self.named(machine, index)?;
        let source = held(partition, share)?;
        let report = machine.lines.source_report(source).ok_or(CallError::BadSource)?;
        let line = machine.lines.line_reports().find(|line| line.gsi == report.gsi);
        Ok(record(
            &report,
            share.function.replacements(),
            line.map_or(0, |line| line.registrations.installed),
        ))
    }

    /// Writes a record where the guest has room for it; tells how long it is.
    fn write_record(&self, buffer: Buffer, bytes: &[u8]) -> Reply {
        self.partition.ram.write(buffer.address, bytes).map_err(|_| CallError::BadAddress)?;
        Ok([bytes.len() as u64, 0, 0])
    }

    /// What the recorder knows of a source, in the time of the guest.
    fn history(&self, machine: &Machine, index: Index) -> Result<HistoryRecord, CallError> {
        let mut history = History::NONE;
        if !machine.lines.tell_history(self.source(machine, index)?, &mut history) {
            return Err(CallError::BadSource);
        }
        let offset = self.world.vmcb.tsc_offset();
        let since = MaskReasons::all().iter().map(|reason| {
            let since = history.since(reason)?;
            Some(HistorySince { at: since.at.wrapping_add(offset), by: since.by.number() })
        });
        let moments = history.moments().iter().map(|moment| HistoryMoment {
            at: moment.at.wrapping_add(offset),
            reasons: moment.reasons.bits(),
            what: moment.what as u8,
            by: moment.by.number(),
        });
        Ok(HistoryRecord::new(tsc().wrapping_add(offset), history.reasons().bits(), since, moments))
    }

    fn console_write(&mut self, buffer: Buffer) -> Reply {
        let mut done = 0;
        // All of it is read before any of it is printed: a call that fails has done nothing.
        for print in [false, true] {
            done = 0;
            while done < buffer.bytes {
                let mut chunk = [0; TEXT_CHUNK];
                let bytes = buffer.bytes.saturating_sub(done).min(TEXT_CHUNK as u64);
                let Some(part) = chunk.get_mut(..bytes as usize) else { break };
                let at: Option<GuestPhys> = buffer.address.checked_add(done);
                let read = at.ok_or(CallError::BadAddress).map(|at| self.partition.ram.read(at, part));
                read?.map_err(|_| CallError::BadAddress)?;
                if print {
                    self.partition.platform.with(|platform| part.iter().for_each(|byte| platform.put(*byte)));
                }
                done = done.saturating_add(bytes);
            }
        }
        Ok([done, 0, 0])
    }
}

/// The source of a function, if the partition has it now.
fn held(partition: &Partition, share: &Share) -> Result<SourceId, CallError> {
    let source = share.function.source.ok_or(CallError::NoIntx)?;
    match share.function.ownership.standing(partition.index) {
        Standing::Held => Ok(source),
        Standing::Leaving => Err(CallError::Busy),
        Standing::Elsewhere => Err(CallError::NotOwner),
    }
}

/// Where a call wants a notifier to lead.
enum New {
    /// There.
    Notifier(Notifier),
    /// To a counter in this word.
    Counter(Word),
}

/// Leads that one of the source's two counters to `word` which is not in use. The caller has the right to replace, so no
/// delivery to it is under way.
fn lead_counter(machine: &Machine, source: SourceId, word: Word) -> Notifier {
    let now = machine.lines.source_report(source).map_or(Notifier::None, |report| report.slot.target);
    let first = u16::from(source.0).saturating_mul(2);
    let used = now == Notifier::Poll { counter: first };
    let counter = if used { first.saturating_add(1) } else { first };
    if let Some(place) = machine.poll_counters.get(usize::from(counter)) {
        place.lead_to(word);
    }
    Notifier::Poll { counter }
}

/// How many sources sit on the report's line.
pub(crate) fn sharers(machine: &Machine, report: &SourceReport) -> usize {
    let on_line = |source| machine.lines.source_report(source).is_some_and(|other| other.gsi == report.gsi);
    machine.lines.sources().fold(0, |count: usize, source| count.saturating_add(on_line(source).into()))
}

/// The books of a source in the guest's layout.
pub(crate) fn record(report: &SourceReport, replacements: u64, registrations: u64) -> LedgerRecord {
    let ledger = &report.account.ledger;
    LedgerRecord {
        accepted_wire: ledger.accepted.wire,
        accepted_loopback: ledger.accepted.loopback,
        accepted_replay: ledger.accepted.replay,
        delivered: ledger.delivered,
        coalesced: ledger.coalesced,
        suppressed: ledger
            .suppressed
            .masked
            .wrapping_add(ledger.suppressed.loopback)
            .wrapping_add(ledger.suppressed.carried),
        pending: u64::from(report.account.pending),
        completed_eoi: ledger.completed.eoi,
        completed_forced: ledger.completed.forced,
        completed_reset: ledger.completed.reset,
        completed_handover: ledger.completed.handover,
        in_service: u64::from(report.account.in_service),
        handler_registrations: registrations,
        notifier_replacements: replacements,
        mask_reasons: u64::from(report.state.reasons.bits()),
    }
}
