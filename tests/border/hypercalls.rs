//! Registers of hypercalls: every number, and arguments of every kind.

use levelhead::addr::GuestPhys;
use levelhead::hypercall::{
    Buffer, CONSOLE_WRITE_MAX_BYTES, Call, CallError, Caller, HistoryRecord, LedgerRecord, SourceId, Target,
    answer,
};
use levelhead::irq::Pin;
use levelhead::vcpu::{CodeSize, Gpr, GuestRegs};

use crate::dice::{Dice, fuzz};

/// `docs/hypercalls.md` as a table: what each function must make of its arguments.
fn expected(regs: &GuestRegs, caller: Caller) -> Result<Call, CallError> {
    if caller.cpl > 0 && !caller.user_hypercalls {
        return Err(CallError::NotPermitted);
    }
    let cut = if caller.code_size == CodeSize::Bits64 { u64::MAX } else { 0xffff_ffff };
    let [function, rbx, rcx, rdx] = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|gpr| regs[gpr] & cut);
    if function > 12 {
        return Err(CallError::BadFunction);
    }
    if ((1..=7).contains(&function) || function >= 11) && rbx >> 32 != 0 {
        return Err(CallError::BadSource);
    }
    let source = SourceId(rbx as u32);
    let room = |address: u64, bytes: u64, align: u64| {
        let fits = address.is_multiple_of(align) && address.checked_add(bytes).is_some();
        fits.then_some(Buffer { address: GuestPhys::new(address), bytes })
    };
    match function {
        0 => Ok(Call::Version),
        1 => Ok(Call::SourceInfo(source)),
        2 => match rcx {
            1 if rdx < 256 => Ok(Call::SetNotifier(source, Target::VirtualPin(Pin(rdx as u8)))),
            2 if room(rdx, 8, 8).is_some() => {
                Ok(Call::SetNotifier(source, Target::PollCounter(GuestPhys::new(rdx))))
            }
            _ => Err(CallError::BadTarget),
        },
        3 => Ok(Call::ClearNotifier(source)),
        4 => Ok(Call::Mask(source)),
        5 => Ok(Call::Unmask(source)),
        6 => Ok(Call::Trigger(source)),
        7 if rdx < LedgerRecord::BYTES as u64 => Err(CallError::BadLength),
        7 => room(rcx, LedgerRecord::BYTES as u64, 8)
            .map(|buffer| Call::ReadLedger(source, buffer))
            .ok_or(CallError::BadAddress),
        8 if !(1..=CONSOLE_WRITE_MAX_BYTES).contains(&rcx) => Err(CallError::BadLength),
        8 => room(rbx, rcx, 1).map(Call::ConsoleWrite).ok_or(CallError::BadAddress),
        10 => Ok(Call::Reset),
        11 => Ok(Call::TakeOver(source)),
        12 if rdx < HistoryRecord::BYTES as u64 => Err(CallError::BadLength),
        12 => room(rcx, HistoryRecord::BYTES as u64, 8)
            .map(|buffer| Call::ReadHistory(source, buffer))
            .ok_or(CallError::BadAddress),
        _ if rbx >> 32 != 0 => Err(CallError::BadArgument),
        _ => Ok(Call::Exit(rbx as u32)),
    }
}

fn any_registers(dice: &mut Dice) -> GuestRegs {
    let mut regs = GuestRegs::new();
    for gpr in Gpr::ALL {
        regs[gpr] = dice.hostile();
    }
    if !dice.one_in(8) {
        regs[Gpr::Rax] = dice.below(14);
    }
    // What nearly fits comes up too seldom by itself.
    match dice.below(4) {
        0 => regs[Gpr::Rcx] = dice.below(4),
        1 => regs[Gpr::Rcx] = CONSOLE_WRITE_MAX_BYTES.wrapping_sub(1) + dice.below(3),
        2 => {
            let record = dice.pick(&[LedgerRecord::BYTES, HistoryRecord::BYTES]) as u64;
            regs[Gpr::Rdx] = record - 1 + dice.below(3);
        }
        _ => {}
    }
    regs
}

#[test]
fn every_call_is_what_the_document_says_and_answers_touch_only_their_registers() {
    fuzz(50, |dice| {
        for _ in 0..4000 {
            let regs = any_registers(dice);
            let caller = Caller {
                cpl: dice.below(4) as u8,
                code_size: dice.pick(&[CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64]),
                user_hypercalls: dice.one_in(2),
            };
            let call = Call::decode(&regs, caller);
            assert_eq!(call, expected(&regs, caller), "{caller:?} {regs:x?}");
            let mut answered = regs;
            let reply = call.map(|_| [dice.any(), dice.any(), dice.any()]);
            answer(&mut answered, reply);
            let may_change: &[Gpr] =
                if reply.is_ok() { &[Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx] } else { &[Gpr::Rax] };
            for gpr in Gpr::ALL.into_iter().filter(|gpr| !may_change.contains(gpr)) {
                assert_eq!(answered[gpr], regs[gpr], "{gpr:?} after {call:?}");
            }
            let failed = (-11..0).contains(&answered[Gpr::Rax].cast_signed());
            assert!(failed == reply.is_err() && (failed || answered[Gpr::Rax] == 0), "{answered:x?}");
        }
    });
}
