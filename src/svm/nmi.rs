//! From the delivery of a non-maskable interrupt to the end of its handler, when no other one is delivered (APM2 8.2.3).
//!
//! VMRUN delivers an injected one but does not keep the next one out. The handler's IRET is intercepted instead, and
//! the intercept strikes before the instruction: it must run without, and the handler has ended as soon as the guest
//! is seen anywhere else. An IRET that raises an exception ends the handler too.
//!
//! Another one that waits goes in right behind the IRET. So the guest is entered for that instruction alone: the trap flag brings
//! it back when the instruction is done, every exception is intercepted in case it is not, and virtual interrupts wait. The guest
//! never sees what was done to its flags and to DR6, and a trap of its own stays its own.

use crate::svm::vmcb::Vmcb;
use crate::x86::{dr6, exception, rflags};

/// Whether the guest takes a non-maskable interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NmiMask {
    /// It does.
    #[default]
    Open,
    /// It runs the handler of one. IRET is intercepted.
    InHandler,
    /// It is about to execute, or has executed, the IRET it was stopped at. IRET is not intercepted.
    Returning(Return),
}

/// The IRET that ends a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    rip: u64,
    /// RSP before it: an IRET to itself pops.
    rsp: u64,
    step: Option<Step>,
}

/// What the guest had where something else stands while it is entered for one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// RFLAGS.TF and IF, and nothing else.
    flags: u64,
    dr6: u64,
    /// IRET leaves IF as it is, for want of privilege (APM3 IRET).
    keeps_if: bool,
}

/// The flags that are others while the guest is entered for one instruction: it traps, and takes no virtual interrupt first.
const SWITCHED: u64 = rflags::TF | rflags::IF;

impl NmiMask {
    /// One is delivered with the next entry.
    pub const fn deliver(&mut self, vmcb: &mut Vmcb) {
        vmcb.intercept_iret(true);
        *self = Self::InHandler;
    }

    /// The guest was stopped at the handler's IRET.
    pub const fn stopped_at_iret(&mut self, vmcb: &mut Vmcb) {
        vmcb.intercept_iret(false);
        *self = Self::Returning(Return { rip: vmcb.rip(), rsp: vmcb.rsp(), step: None });
    }

    /// The guest is to be entered where it stands: an IRET it left behind has ended the handler. Returns whether another one
    /// has to wait.
    #[inline]
    pub fn blocks(&mut self, vmcb: &mut Vmcb) -> bool {
        if let Self::Returning(at) = self {
            if let Some(step) = at.step.take() {
                step.withdraw(vmcb);
            }
            if !at.is_here(vmcb) {
                *self = Self::Open;
            }
        }
        *self != Self::Open
    }

    /// Another one waits: if the guest stands at the IRET it is entered for that alone. Not together with an event, which goes
    /// first.
    pub const fn step(&mut self, vmcb: &mut Vmcb) {
        if let Self::Returning(at @ Return { step: None, .. }) = self
            && !vmcb.injection_pending()
        {
            at.step = Some(Step::prepare(vmcb));
        }
    }

    /// The guest is to get an exception, by which it was stopped or which it earned. Returns whether it is nothing but the end of
    /// the one instruction it was entered for, and nothing for the guest.
    pub fn raised(&mut self, vmcb: &mut Vmcb, vector: u8) -> bool {
        let Self::Returning(at @ Return { step: Some(step), .. }) = *self else { return false };
        *self = Self::Open;
        let done = vector == exception::DB && (vmcb.dr6() & dr6::BS != 0 || !at.is_here(vmcb));
        if done {
            return step.finish(vmcb);
        }
        step.withdraw(vmcb);
        false
    }
}

impl Return {
    const fn is_here(&self, vmcb: &Vmcb) -> bool {
        self.rip == vmcb.rip() && self.rsp == vmcb.rsp()
    }
}

impl Step {
    const fn prepare(vmcb: &mut Vmcb) -> Self {
        const IOPL_SHIFT: u32 = 12;
        let (flags, before) = (vmcb.rflags(), vmcb.dr6());
        let privilege = (flags & rflags::IOPL) >> IOPL_SHIFT;
        vmcb.set_rflags(flags & !SWITCHED | rflags::TF);
        vmcb.set_dr6(before & !dr6::CAUSES);
        vmcb.intercept_every_exception(true);
        Self { flags: flags & SWITCHED, dr6: before, keeps_if: vmcb.cpl() as u64 > privilege }
    }

    /// The instruction did not run.
    const fn withdraw(self, vmcb: &mut Vmcb) {
        vmcb.intercept_every_exception(false);
        vmcb.set_rflags(vmcb.rflags() & !SWITCHED | self.flags);
        vmcb.set_dr6(self.dr6 | vmcb.dr6() & dr6::CAUSES);
    }

    /// The instruction ran, and its own flags stand. Returns whether the trap at its end is nobody's but ours: the guest did not
    /// single-step, and met no breakpoint of its own in that instruction.
    const fn finish(self, vmcb: &mut Vmcb) -> bool {
        vmcb.intercept_every_exception(false);
        if self.keeps_if {
            vmcb.set_rflags(vmcb.rflags() & !rflags::IF | self.flags & rflags::IF);
        }
        let single_steps = self.flags & rflags::TF != 0;
        let met = vmcb.dr6() & dr6::CAUSES;
        let met = if single_steps { met } else { met & !dr6::BS };
        vmcb.set_dr6(self.dr6 | met);
        met == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::Vector;
    use crate::svm::event::Event;

    const IRET: u64 = 0x2000;
    const STACK: u64 = 0x9000;
    const OLD_DR6: u64 = 0xffff_0ff0;

    /// A guest that stands somewhere in a handler, with `flags`.
    fn guest(flags: u64) -> (NmiMask, Vmcb) {
        let (mut mask, mut vmcb) = (NmiMask::default(), Vmcb::new());
        vmcb.set_dr6(OLD_DR6);
        vmcb.set_rip(0x1000);
        vmcb.set_rsp(0x8000);
        assert!(!mask.blocks(&mut vmcb));
        mask.deliver(&mut vmcb);
        assert!(mask.blocks(&mut vmcb) && vmcb.intercepts_iret());
        vmcb.set_rflags(flags | rflags::ALWAYS_ONE);
        vmcb.set_rip(IRET);
        vmcb.set_rsp(STACK);
        (mask, vmcb)
    }

    /// The same guest, stopped at the handler's end, and entered for the IRET alone.
    fn stepped(flags: u64) -> (NmiMask, Vmcb) {
        let (mut mask, mut vmcb) = guest(flags);
        mask.stopped_at_iret(&mut vmcb);
        assert!(mask.blocks(&mut vmcb), "it has not run yet");
        mask.step(&mut vmcb);
        assert_eq!(vmcb.rflags() & SWITCHED, rflags::TF, "it traps, and no virtual interrupt goes first");
        assert!(vmcb.intercepts_every_exception() && !vmcb.intercepts_iret());
        assert_eq!(vmcb.dr6(), OLD_DR6, "nothing is left there of earlier traps");
        (mask, vmcb)
    }

    /// The CPU carries the IRET out, popping `flags`, and traps for `causes`.
    fn run(vmcb: &mut Vmcb, flags: u64, causes: u64) {
        vmcb.set_rip(0x1000);
        vmcb.set_rsp(STACK + 40);
        vmcb.set_rflags(flags | rflags::ALWAYS_ONE);
        vmcb.set_dr6(vmcb.dr6() | causes);
    }

    #[test]
    fn a_handler_ends_when_its_iret_is_left_behind() {
        let (mut mask, mut vmcb) = guest(0);
        mask.stopped_at_iret(&mut vmcb);
        assert!(!vmcb.intercepts_iret());
        assert!(mask.blocks(&mut vmcb), "it has not run yet");
        assert!(mask.blocks(&mut vmcb));
        run(&mut vmcb, 0, 0);
        assert!(!mask.blocks(&mut vmcb));
        assert_eq!(mask, NmiMask::Open);
        vmcb.set_rip(IRET);
        vmcb.set_rsp(STACK);
        assert!(!mask.blocks(&mut vmcb), "the same IRET later means nothing");
    }

    #[test]
    fn an_iret_to_itself_is_noticed_by_its_stack() {
        let (mut mask, mut vmcb) = guest(0);
        mask.stopped_at_iret(&mut vmcb);
        vmcb.set_rsp(STACK + 40);
        assert!(!mask.blocks(&mut vmcb));
    }

    #[test]
    fn the_trap_behind_the_iret_is_kept_from_the_guest_and_its_popped_flags_stand() {
        for before in [0, rflags::IF] {
            for popped in [0, rflags::IF, rflags::TF, rflags::TF | rflags::IF] {
                let (mut mask, mut vmcb) = stepped(before);
                run(&mut vmcb, popped, dr6::BS);
                assert!(mask.raised(&mut vmcb, exception::DB), "it is ours");
                assert_eq!(vmcb.rflags(), popped | rflags::ALWAYS_ONE);
                assert_eq!(vmcb.dr6(), OLD_DR6);
                assert!(!vmcb.intercepts_every_exception());
                assert!(!mask.blocks(&mut vmcb), "the next one goes in here");
                assert!(!mask.raised(&mut vmcb, exception::DB), "the next trap is the guest's");
            }
        }
    }

    #[test]
    fn a_trap_of_the_guest_itself_stays_its_own() {
        let (mut mask, mut vmcb) = stepped(rflags::TF);
        run(&mut vmcb, 0, dr6::BS);
        assert!(!mask.raised(&mut vmcb, exception::DB));
        assert_eq!(vmcb.dr6(), OLD_DR6 | dr6::BS);
        assert!(!mask.blocks(&mut vmcb));

        // A breakpoint on the memory that IRET pops; bit 0 is the first one's.
        let (mut mask, mut vmcb) = stepped(0);
        run(&mut vmcb, 0, dr6::BS | 1);
        assert!(!mask.raised(&mut vmcb, exception::DB));
        assert_eq!(vmcb.dr6(), OLD_DR6 | 1, "it did not single-step");
    }

    #[test]
    fn what_dr6_held_before_is_there_after_it() {
        let (mut mask, mut vmcb) = guest(0);
        vmcb.set_dr6(OLD_DR6 | dr6::BS | 2);
        mask.stopped_at_iret(&mut vmcb);
        mask.step(&mut vmcb);
        assert_eq!(vmcb.dr6() & dr6::CAUSES, 0);
        run(&mut vmcb, 0, dr6::BS);
        assert!(mask.raised(&mut vmcb, exception::DB));
        assert_eq!(vmcb.dr6(), OLD_DR6 | dr6::BS | 2);
    }

    #[test]
    fn an_iret_that_faults_ends_the_handler_and_the_exception_finds_the_guests_flags() {
        for flags in [0, rflags::IF, rflags::TF, rflags::TF | rflags::IF] {
            for vector in [exception::GP, exception::PF, exception::DB] {
                let (mut mask, mut vmcb) = stepped(flags);
                assert!(!mask.raised(&mut vmcb, vector), "it is the guest's");
                assert_eq!((vmcb.rip(), vmcb.rsp()), (IRET, STACK));
                assert_eq!(vmcb.rflags(), flags | rflags::ALWAYS_ONE);
                assert_eq!(vmcb.dr6(), OLD_DR6);
                assert!(!vmcb.intercepts_every_exception());
                assert!(!mask.blocks(&mut vmcb));
            }
        }
    }

    #[test]
    fn an_iret_without_privilege_leaves_the_interrupt_flag_as_it_was() {
        for flags in [0, rflags::IF] {
            let (mut mask, mut vmcb) = guest(flags);
            vmcb.set_cpl(3);
            mask.stopped_at_iret(&mut vmcb);
            mask.step(&mut vmcb);
            // What the CPU finds is what it leaves.
            run(&mut vmcb, 0, dr6::BS);
            assert!(mask.raised(&mut vmcb, exception::DB));
            assert_eq!(vmcb.rflags(), flags | rflags::ALWAYS_ONE);

            let (mut mask, mut vmcb) = guest(flags | rflags::IOPL);
            vmcb.set_cpl(3);
            mask.stopped_at_iret(&mut vmcb);
            mask.step(&mut vmcb);
            run(&mut vmcb, 0, dr6::BS);
            assert!(mask.raised(&mut vmcb, exception::DB));
            assert_eq!(vmcb.rflags(), rflags::ALWAYS_ONE, "this one has the privilege");
        }
    }

    #[test]
    fn an_exit_before_the_iret_ran_changes_nothing() {
        for flags in [0, rflags::IF, rflags::TF] {
            let (mut mask, mut vmcb) = stepped(flags);
            for _ in 0..3 {
                assert!(mask.blocks(&mut vmcb));
                assert_eq!(vmcb.rflags(), flags | rflags::ALWAYS_ONE);
                assert_eq!(vmcb.dr6(), OLD_DR6);
                assert!(!vmcb.intercepts_every_exception());
                mask.step(&mut vmcb);
                assert_eq!(vmcb.rflags() & SWITCHED, rflags::TF);
            }
            run(&mut vmcb, rflags::IF, dr6::BS);
            assert_eq!(mask.raised(&mut vmcb, exception::DB), flags & rflags::TF == 0);
        }
    }

    #[test]
    fn an_event_that_is_injected_at_the_iret_is_not_delivered_with_the_trap_flag() {
        let (mut mask, mut vmcb) = guest(rflags::IF);
        mask.stopped_at_iret(&mut vmcb);
        vmcb.inject(Event::Interrupt(Vector::new(0x50).unwrap()));
        mask.step(&mut vmcb);
        assert_eq!(vmcb.rflags(), rflags::IF | rflags::ALWAYS_ONE);
        assert!(!vmcb.intercepts_every_exception());
    }

    #[test]
    fn exceptions_elsewhere_in_a_handler_are_the_guests() {
        let (mut mask, mut vmcb) = guest(rflags::TF);
        assert!(!mask.raised(&mut vmcb, exception::DB));
        mask.stopped_at_iret(&mut vmcb);
        assert!(!mask.raised(&mut vmcb, exception::DB), "it was not entered for one instruction");
        assert!(mask.blocks(&mut vmcb));
    }
}
