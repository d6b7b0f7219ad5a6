//! What a guest does that does not happen by itself: ports, registers, device memory, hypercalls.
//!
//! Every value here is the guest's and hostile: it selects among things the partition owns or gets an answer that means
//! "nothing there", and an access that no machine would survive ends the guest with a record.

mod ports;

use levelhead::border::msrs::{self, Written};
use levelhead::border::{Place, Registers};
use levelhead::cpuid::{self, GuestView, Leaf};
use levelhead::decide::BAR_WINDOW;
use levelhead::emulate::{
    Code, DecodeError, Intercepted, PagingRegisters, Unsupported, WalkError, cr8_write, intercepted_length,
    plain_length,
};
use levelhead::hypercall::{ABI_VERSION, feature};
use levelhead::intx::{MaskReasons, count};
use levelhead::message::Message;
use levelhead::pci::{Bdf, Effect};
use levelhead::svm::{Fault, Stale};
use levelhead::vcpu::{CodeSize, Exit, Gpr, NestedFault};
use levelhead::virq::{Ended, Foreseen, Outcome, Requests};
use levelhead::x86::{self, GeneralProtection, exception};

use crate::arch::x86::cpu::{cpuid as host_cpuid, tsc};
use crate::machine::Machine;
use crate::partition::end::End;
use crate::partition::vcpu::VirtualCpu;
use crate::run::{Next, program_timer};

/// An instruction cannot be carried out as it stands.
enum Trouble {
    /// The guest gets an exception.
    Fault(Fault),
    /// The guest gets a page fault at this address.
    PageFault { linear: u64, code: u32 },
    /// The bytes are not those of the exit any more: try again.
    Again,
    /// No machine would survive it.
    End(Message),
}

impl From<DecodeError> for Trouble {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Changed => Self::Again,
            DecodeError::Truncated => Self::End(Message::InstructionCutOff),
            DecodeError::Invalid => Self::Fault(Fault::INVALID_OPCODE),
            DecodeError::Unsupported => Self::End(Message::InstructionNotEmulated),
        }
    }
}

/// Why the bytes at RIP cannot be fetched.
impl From<WalkError> for Trouble {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Table(_) => Self::End(Message::InstructionNotInMemory),
            WalkError::Unsupported => Self::End(Message::FiveLevels),
            // The CPU fetched it a moment ago: the guest changed its tables meanwhile.
            WalkError::NonCanonical
            | WalkError::NotPresent { .. }
            | WalkError::Reserved { .. }
            | WalkError::Protection => Self::Again,
        }
    }
}

impl From<Unsupported> for Trouble {
    fn from(_: Unsupported) -> Self {
        Self::End(Message::FiveLevels)
    }
}

impl From<GeneralProtection> for Trouble {
    fn from(_: GeneralProtection) -> Self {
        Self::Fault(Fault::GENERAL_PROTECTION)
    }
}

impl From<levelhead::virq::GeneralProtection> for Trouble {
    fn from(_: levelhead::virq::GeneralProtection) -> Self {
        Self::Fault(Fault::GENERAL_PROTECTION)
    }
}

impl VirtualCpu {
    /// Deals with one exit of the guest's own doing.
    #[inline]
    pub(crate) fn handle<'m>(&mut self, machine: &'m Machine, exit: Exit) -> Next<'m> {
        self.tell_taken(machine);
        let done = match exit {
            Exit::WriteMsr => self.write_msr(machine),
            Exit::NestedFault(fault) => match self.device_access(machine, fault) {
                Ok(None) => Ok(()),
                Ok(Some(change)) => return Next::Forgotten(change),
                Err(trouble) => Err(trouble),
            },
            Exit::Hlt => {
                count(&mut self.exits.hlt);
                return match self.skip(Intercepted::Hlt) {
                    Ok(()) => Next::Halt,
                    Err(trouble) => self.give_up(trouble, exit),
                };
            }
            Exit::Io(io) => match (self.io(machine, io), self.awaited.take()) {
                (Ok(Some(end)), _) => return Next::End(end),
                (Ok(None), Some(change)) => return Next::Forgotten(change),
                (Ok(None), None) => Ok(()),
                (Err(trouble), _) => Err(trouble),
            },
            Exit::Hypercall => {
                count(&mut self.exits.hypercall);
                match self.skip(Intercepted::Vmmcall) {
                    Ok(()) => return self.hypercall(machine),
                    Err(trouble) => Err(trouble),
                }
            }
            Exit::ReadMsr => self.read_msr(),
            Exit::Cpuid => self.cpuid(),
            Exit::WriteCr8 => self.write_cr8(),
            Exit::FlushCaches { .. } => {
                count(&mut self.exits.other);
                // Caches are coherent with everything a partition reaches, so there is nothing to write back for it.
                self.skip(Intercepted::Wbinvd)
            }
            Exit::Exception { vector, error_code } => {
                count(&mut self.exits.other);
                // An intercepted page fault leaves CR2 alone (APM2 15.12.15).
                if vector == exception::PF {
                    let address = self.world.vmcb.exit_info2();
                    self.world.vmcb.set_cr2(address);
                }
                match Fault::new(vector, error_code) {
                    Some(fault) => return Next::Inject(fault),
                    None => Err(Trouble::End(Message::ForeignException)),
                }
            }
            Exit::Undefined(_) => {
                count(&mut self.exits.other);
                Err(Trouble::Fault(Fault::INVALID_OPCODE))
            }
            Exit::Rdpmc => {
                count(&mut self.exits.other);
                Err(Trouble::Fault(Fault::GENERAL_PROTECTION))
            }
            Exit::Shutdown => Err(Trouble::End(Message::TripleFault)),
            Exit::MachineCheck => Err(Trouble::End(Message::MachineCheck)),
            Exit::TaskSwitch => Err(Trouble::End(Message::TaskSwitch)),
            Exit::Invalid => {
                // A CPU checks the guest's own writes to CR0 and CR4; QEMU lets some through that VMRUN refuses.
                Err(Trouble::End(Message::ControlRegisters))
            }
            Exit::Interrupt
            | Exit::Nmi
            | Exit::Smi
            | Exit::Init
            | Exit::InterruptWindow
            | Exit::Iret
            | Exit::Unknown(_) => Err(Trouble::End(Message::UnexpectedExit)),
        };
        match done {
            Ok(()) => Next::Enter,
            Err(trouble) => self.give_up(trouble, exit),
        }
    }

    #[cold]
    fn give_up<'m>(&mut self, trouble: Trouble, exit: Exit) -> Next<'m> {
        match trouble {
            Trouble::Again => self.again(exit),
            Trouble::Fault(fault) => Next::Inject(fault),
            Trouble::PageFault { linear, code } => {
                self.world.vmcb.set_cr2(linear);
                match Fault::new(exception::PF, Some(code)) {
                    Some(fault) => Next::Inject(fault),
                    None => Next::Enter,
                }
            }
            Trouble::End(message) => Next::End(End::Fault { message, exit }),
        }
    }

    /// The guest's memory changed under the instruction, so it is tried again; but not for ever, should this reading
    /// of the guest's tables be another than its CPU's.
    fn again<'m>(&mut self, exit: Exit) -> Next<'m> {
        const MOST: u32 = 10_000;
        let rip = self.world.vmcb.rip();
        let (last, times) = self.again;
        self.again = (rip, if last == rip { times.saturating_add(1) } else { 1 });
        if self.again.1 > MOST {
            return Next::End(End::Fault { message: Message::InstructionUnreadable, exit });
        }
        Next::Enter
    }

    // Instructions.

    /// How the guest's CPU translates now.
    #[inline]
    fn paging(&self) -> PagingRegisters {
        let vmcb = &self.world.vmcb;
        PagingRegisters { cr0: vmcb.cr0(), cr3: vmcb.cr3(), cr4: vmcb.cr4(), efer: vmcb.efer() }
    }

    /// The bytes at RIP.
    #[inline(always)]
    pub(crate) fn code(&mut self) -> Result<Code, WalkError> {
        let vmcb = &self.world.vmcb;
        let bytes = vmcb.fetched_bytes();
        if !bytes.is_empty() {
            return Ok(Code::from_bytes(bytes));
        }
        let (linear, size, user) = (vmcb.linear_rip(), vmcb.code_size(), vmcb.cpl() == 3);
        let paging = self.paging();
        self.pages.fetch(&self.partition.ram, paging, linear, size, user)
    }

    /// Sixteen bytes at RIP, the first in the lowest place and the last without meaning, if they are 64-bit code in a page that is
    /// remembered.
    #[inline(always)]
    fn known_code(&self, user: bool) -> Option<u128> {
        let vmcb = &self.world.vmcb;
        // RIP is its own linear address there; where the bit means nothing, which is outside of long mode, no page is remembered.
        if !vmcb.cs_is_long() {
            return None;
        }
        self.pages.peek(&self.partition.ram, self.paging(), vmcb.rip(), user)
    }

    #[inline(always)]
    fn current_code(&mut self) -> Result<Code, Trouble> {
        self.code().map_err(Trouble::from)
    }

    /// Moves RIP past an instruction that exits by itself.
    #[inline(always)]
    fn skip(&mut self, what: Intercepted) -> Result<(), Trouble> {
        let next = self.next_rip(what)?;
        self.world.vmcb.continue_at(next);
        Ok(())
    }

    /// Where the instruction after one that exits by itself is: by what the CPU says, by the bytes themselves, or by a decode. To be
    /// asked before anything is done that the guest could not do again: another of its CPUs may have changed the bytes.
    #[inline(always)]
    fn next_rip(&mut self, what: Intercepted) -> Result<u64, Trouble> {
        if let Some(next) = self.world.vmcb.next_rip() {
            return Ok(next);
        }
        match self.plain_length(what) {
            // 64-bit code: there is nothing to cut off.
            Some(length) => Ok(self.world.vmcb.rip().wrapping_add(length.into())),
            None => {
                let length = self.prefixed_length(what)?;
                Ok(self.world.vmcb.behind(length))
            }
        }
    }

    #[inline(always)]
    fn plain_length(&self, what: Intercepted) -> Option<u8> {
        let user = !what.is_privileged() && self.world.vmcb.cpl() == 3;
        plain_length(self.known_code(user)? as u32, what)
    }

    #[cold]
    #[inline(never)]
    fn prefixed_length(&mut self, what: Intercepted) -> Result<u8, Trouble> {
        Ok(intercepted_length(&self.current_code()?, self.world.vmcb.code_size(), what)?)
    }

    // Out of line, like the other exits that are not an interrupt's: in `handle` they would cost every EOI registers.
    #[inline(never)]
    fn cpuid(&mut self) -> Result<(), Trouble> {
        count(&mut self.exits.cpuid);
        self.skip(Intercepted::Cpuid)?;
        let vmcb = &mut self.world.vmcb;
        let regs = &mut self.world.frame.regs;
        let (leaf, subleaf) = (vmcb.rax() as u32, regs[Gpr::Rcx] as u32);
        let host = host_cpuid(leaf, subleaf);
        let host = Leaf { eax: host.eax, ebx: host.ebx, ecx: host.ecx, edx: host.edx };
        let view = GuestView {
            apic_id: self.id.0.into(),
            apic_enabled: self.apic_enabled,
            vcpus: self.partition.vcpus().into(),
            cr4: vmcb.cr4(),
            xsave: self.xsave,
            abi_version: ABI_VERSION as u32,
            abi_features: feature::OFFERED as u32,
            tsc_khz: self.partition.tsc_khz,
        };
        let answer = cpuid::filter(leaf, subleaf, host, &view);
        vmcb.set_rax(u64::from(answer.eax));
        regs[Gpr::Rbx] = u64::from(answer.ebx);
        regs[Gpr::Rcx] = u64::from(answer.ecx);
        regs[Gpr::Rdx] = u64::from(answer.edx);
        Ok(())
    }

    #[inline(never)]
    fn write_cr8(&mut self) -> Result<(), Trouble> {
        count(&mut self.exits.other);
        let write = cr8_write(&self.current_code()?, self.world.vmcb.code_size())?;
        let value = match write.source {
            Gpr::Rax => self.world.vmcb.rax(),
            Gpr::Rsp => self.world.vmcb.rsp(),
            other => self.world.frame.regs[other],
        };
        let id = self.id;
        let class = self.chips(|chips| chips.set_cr8(id, value).map(|()| chips.cr8(id)))?;
        self.priority_is(class);
        self.world.vmcb.retire(write.length);
        Ok(())
    }

    /// Reads of CR8 do not exit: the control block holds what they return.
    #[inline(always)]
    fn priority_is(&mut self, cr8: u64) {
        let class = cr8 as u8;
        if self.world.vmcb.task_priority() != class {
            self.world.vmcb.set_task_priority(class);
        }
    }

    // Model-specific registers.

    fn registers(&self) -> Registers {
        let vmcb = &self.world.vmcb;
        Registers {
            cr0: vmcb.cr0(),
            efer: vmcb.efer(),
            pat: vmcb.pat(),
            tsc_offset: vmcb.tsc_offset(),
            mtrr_def_type: self.mtrr_def_type,
        }
    }

    #[inline(never)]
    fn read_msr(&mut self) -> Result<(), Trouble> {
        count(&mut self.exits.msr);
        let number = self.world.frame.regs[Gpr::Rcx] as u32;
        let id = self.id;
        let value = if msrs::is_local_apic(number) {
            self.chips(|chips| chips.read_msr(id, number, tsc()))?
        } else {
            msrs::read(number, &self.registers(), tsc())?
        };
        self.skip(Intercepted::Rdmsr)?;
        self.world.frame.regs[Gpr::Rdx] = value >> 32;
        self.world.vmcb.set_rax(value & 0xffff_ffff);
        Ok(())
    }

    /// The number and the value of WRMSR.
    #[inline(always)]
    fn msr_written(&self) -> (u32, u64) {
        let regs = &self.world.frame.regs;
        (regs[Gpr::Rcx] as u32, regs[Gpr::Rdx] << 32 | self.world.vmcb.rax() & 0xffff_ffff)
    }

    #[inline(never)]
    fn write_msr(&mut self, machine: &Machine) -> Result<(), Trouble> {
        count(&mut self.exits.msr);
        let next = self.next_rip(Intercepted::Wrmsr)?;
        let (number, value) = self.msr_written();
        // Judged first: an instruction that faults does not retire.
        if msrs::is_local_apic(number) {
            return self.write_local_msr(machine, number, value, next);
        }
        self.write_other_msr(machine, number, value)?;
        self.world.vmcb.continue_at(next);
        Ok(())
    }

    #[inline(never)]
    fn write_local_msr(
        &mut self,
        machine: &Machine,
        number: u32,
        value: u64,
        next: u64,
    ) -> Result<(), Trouble> {
        let id = self.id;
        let (outcome, cr8) = self.chips(|chips| {
            let outcome = chips.write_msr(id, number, value, tsc())?;
            Ok::<_, Trouble>((outcome, chips.cr8(id)))
        })?;
        self.world.vmcb.continue_at(next);
        if number == x86::msr::APIC_BASE {
            self.local_apic_moved();
        }
        self.follow(machine, outcome, cr8);
        Ok(())
    }

    #[inline(always)]
    fn write_other_msr(&mut self, machine: &Machine, number: u32, value: u64) -> Result<(), Trouble> {
        let now = tsc();
        let written = msrs::write(number, value, &self.registers(), now)?;
        let vmcb = &mut self.world.vmcb;
        match written {
            Written::Efer(real) => vmcb.set_efer(real),
            Written::Pat(value) => vmcb.set_pat(value),
            Written::TscOffset(offset) => {
                vmcb.set_tsc_offset(offset);
                let id = self.id;
                self.chips(|chips| chips.set_ahead(id, offset, now));
                program_timer(machine, self);
            }
            Written::MtrrDefType(value) => self.mtrr_def_type = value,
            Written::Nothing => {}
        }
        Ok(())
    }

    // The other end of an interrupt.

    /// Whether the exit is an EOI that needs nothing more than that: it is dealt with then, with one look at the chips, which are told in
    /// passing that the guest took what it was offered. Anything else, an EOI that is written in some unheard-of way among it, is for
    /// [`handle`](Self::handle).
    #[inline(always)]
    pub(crate) fn ends_interrupt(&mut self, machine: &Machine, exit: Exit) -> bool {
        match exit {
            Exit::WriteMsr => self.ends_by_msr(machine),
            Exit::NestedFault(fault) => self.ends_by_page(machine, fault),
            _ => false,
        }
    }

    #[inline(always)]
    fn ends_by_msr(&mut self, machine: &Machine) -> bool {
        let (number, value) = self.msr_written();
        if !msrs::is_eoi(number) {
            return false;
        }
        let Ok(next) = self.next_rip(Intercepted::Wrmsr) else { return false };
        let (id, took_offer) = (self.id, self.took_offer);
        let Some(ended) = self.chips(|chips| chips.eoi_msr(id, value, took_offer)) else { return false };
        count(&mut self.exits.msr);
        self.world.vmcb.continue_at(next);
        self.ended(machine, ended);
        true
    }

    #[inline(always)]
    fn ends_by_page(&mut self, machine: &Machine, fault: NestedFault) -> bool {
        let delivering = self.world.vmcb.interrupted_a_delivery();
        let Ok(place) = Place::find(fault, delivering, self.local_apic, BAR_WINDOW) else { return false };
        if !place.is_eoi() {
            return false;
        }
        let Some((length, bytes)) = self.known_store() else { return false };
        // What is stored there does not matter.
        let (id, took_offer) = (self.id, self.took_offer);
        let Some(ended) = self.chips(|chips| chips.eoi_page(id, bytes, took_offer)) else { return false };
        count(&mut self.exits.mmio);
        self.world.vmcb.retire(length);
        self.ended(machine, ended);
        true
    }

    /// The guest has ended an interrupt.
    #[inline(always)]
    fn ended(&mut self, machine: &Machine, ended: Ended) {
        self.took_offer = false;
        let quiet = match ended.completed.only() {
            Some(vpin) => self.complete_pin(machine, vpin),
            None => self.complete(machine, ended.completed),
        };
        self.foreseen = if quiet { ended.next } else { Foreseen::Unknown };
    }

    /// Carries out what a write to one of the interrupt chips asks for.
    #[inline(always)]
    fn follow(&mut self, machine: &Machine, outcome: Outcome, cr8: u64) {
        self.priority_is(cr8);
        if let Some(changed) = outcome.rte {
            machine.look(self.here(), changed.pin);
        }
        let others = outcome.kicked.without(self.id);
        if !others.is_empty() {
            machine.kick(self.receiver, others, Requests::LOOK);
        }
        if !outcome.completed.is_empty() {
            self.complete(machine, outcome.completed);
        }
        if outcome.timer_changed {
            program_timer(machine, self);
        }
    }

    // Device memory.

    /// An access to a device's page; what the guest's other CPUs must have forgotten before it goes on, if anything.
    #[inline]
    fn device_access(&mut self, machine: &Machine, fault: NestedFault) -> Result<Option<u64>, Trouble> {
        count(&mut self.exits.mmio);
        let delivering = self.world.vmcb.interrupted_a_delivery();
        let place = Place::find(fault, delivering, self.local_apic, BAR_WINDOW).map_err(Trouble::End)?;
        self.other_access(machine, place)
    }

    /// The length of the instruction at RIP, if it is one that was met before and only stores, and how many bytes it stores. Where the CPU
    /// gives the bytes, nothing is gained by this.
    #[inline(always)]
    fn known_store(&self) -> Option<(u8, u8)> {
        let vmcb = &self.world.vmcb;
        if !vmcb.fetched_bytes().is_empty() {
            return None;
        }
        let bytes = self.known_code(vmcb.cpl() == 3)?;
        let store = self.decoded.known_store(vmcb.rip(), bytes, CodeSize::Bits64)?;
        Some((store.length(), store.width().bytes() as u8))
    }

    // Out of line, so that an EOI does not pay for the room it takes.
    #[inline(never)]
    fn other_access(&mut self, machine: &Machine, place: Place) -> Result<Option<u64>, Trouble> {
        let vmcb = &self.world.vmcb;
        let size = vmcb.code_size();
        let rip = vmcb.rip();
        let code = self.current_code()?;
        let operation = self.decoded.decode(rip, &code, size)?;
        // 1 to 8.
        let bytes = operation.width().bytes() as u8;
        let id = self.id;
        let loaded = match place {
            _ if !operation.reads() => 0,
            Place::Config(_) => self.read_config_space(machine, place, bytes),
            _ => self.chips(|chips| place.read(chips, id, bytes, tsc())),
        };
        let vmcb = &mut self.world.vmcb;
        let regs = &mut self.world.frame.regs;
        vmcb.load_into(regs);
        let mut flags = vmcb.rflags();
        let outcome = operation.execute(regs, &mut flags, loaded);
        vmcb.store_from(regs);
        vmcb.set_rflags(flags);
        if outcome.advance != 0 {
            vmcb.retire(outcome.advance);
        }
        if let Some(value) = outcome.store {
            if let Place::IoApic(_) = place {
                self.write_io_apic(machine, place, bytes, value);
                return Ok(None);
            }
            if let Place::Config(_) = place {
                self.write_config_space(machine, place, bytes, value);
                return Ok(self.awaited.take());
            }
            let (outcome, cr8) = self.chips(|chips| {
                let outcome = place.write(chips, id, bytes, value, tsc());
                (outcome, chips.cr8(id))
            });
            self.follow(machine, outcome, cr8);
        }
        Ok(None)
    }

    /// A read of configuration space in memory; ones where no function answers.
    #[inline(never)]
    fn read_config_space(&self, machine: &Machine, place: Place, bytes: u8) -> u64 {
        let Some((bdf, access)) = place.register(bytes) else { return u64::MAX };
        u64::from(self.partition.platform.with(|platform| platform.read_config(&machine.config, bdf, access)))
    }

    /// A write to configuration space in memory.
    #[inline(never)]
    fn write_config_space(&mut self, machine: &Machine, place: Place, bytes: u8, value: u64) {
        let Some((bdf, access)) = place.register(bytes) else { return };
        let written =
            self.partition.platform.with(|platform| platform.write_config(bdf, access, value as u32));
        if let Some((effect, stale)) = written {
            self.config_written(machine, bdf, effect, stale);
        }
    }

    /// A write to the IO-APIC, which may change an entry: the lines behind it hear of that before anybody writes another, and
    /// before the pin is looked at again.
    #[inline(never)]
    fn write_io_apic(&mut self, machine: &Machine, place: Place, bytes: u8, value: u64) {
        let id = self.id;
        let (outcome, cr8) = self.partition.entries.with(|()| {
            let (outcome, cr8) = self.chips(|chips| {
                let outcome = place.write(chips, id, bytes, value, tsc());
                (outcome, chips.cr8(id))
            });
            if let Some(changed) = outcome.rte
                && changed.masked_before != changed.masked_after
            {
                self.virtual_rte(machine, changed.pin, changed.masked_after);
            }
            (outcome, cr8)
        });
        self.follow(machine, outcome, cr8);
    }

    // Configuration space.

    /// What follows from a write to a function's registers.
    fn config_written(&mut self, machine: &Machine, bdf: Bdf, effect: Effect, stale: Stale) {
        self.forget(machine, stale);
        let source = self.partition.held().find(|share| share.function.bdf == bdf);
        let source = source.and_then(|share| share.function.source);
        if let (Some(disabled), Some(source)) = (effect.dis_intx, source) {
            let reason = MaskReasons::GUEST_DISINTX;
            if disabled {
                machine.lines.mask(source, reason, &mut machine.wires(self.here().guest()));
            } else {
                let (_, mut deliveries) =
                    machine.lines.unmask(source, reason, &mut machine.wires(self.here().guest()));
                self.deliver(machine, &mut deliveries);
            }
        }
    }
}
