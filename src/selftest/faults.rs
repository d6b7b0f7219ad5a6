//! Faults of the hypervisor itself, to show that each is caught and reported: W^X, guard pages, exception frames.
#![expect(unsafe_code, reason = "does wrong on purpose")]

use crate::report::BootError;
use crate::rt::exit::Verdict;
use crate::setup::option_value;

/// Commits the fault called `name`, which ends the machine. Returns only for a name that is none.
pub(crate) fn fault(name: &str) -> Result<Verdict, BootError> {
    match name {
        // SAFETY: none; #UD is what is wanted.
        "undefined" => unsafe { core::arch::asm!("ud2") },
        "write-text" => {
            let text: *mut u8 =
                core::ptr::with_exposed_provenance_mut((fault as *const ()).expose_provenance());
            // SAFETY: none; the page is not writable, and #PF is what is wanted.
            unsafe { text.write(0xcc) };
        }
        "run-data" => {
            static RETURN: [u8; 1] = [0xc3];
            let address = (&raw const RETURN).expose_provenance();
            // SAFETY: none; the page is not executable, and #PF is what is wanted.
            unsafe { core::arch::asm!("call {}", in(reg) address, clobber_abi("C")) };
        }
        "stack-overflow" => {
            let depth = overflow();
            log::error!("the stack took {depth} frames");
        }
        #[expect(clippy::panic, reason = "the report of a panic is what is wanted")]
        "panic" => panic!("on request"),
        _ => {
            let right = "write one of smp-vmrun, smp-vmrun:ROUNDS, undefined, write-text, run-data, stack-overflow, panic";
            return Err(option_value("selftest", name, right).into());
        }
    }
    Ok(Verdict::Bug)
}

/// Uses a page of stack and goes on, until the guard page ends it.
#[expect(unconditional_recursion, reason = "reaching the guard page is the point")]
fn overflow() -> u64 {
    let mut page = [1u8; 2048];
    core::hint::black_box(&mut page);
    overflow() + u64::from(core::hint::black_box(page).first().copied().unwrap_or(0))
}
