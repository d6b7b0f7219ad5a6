//! Memory types on the running CPU: a PAT of our own.
//!
//! Host and nested page tables name memory types by their place in the host's PAT. The MTRRs stay as firmware set them: INIT
//! leaves them alone (APM2 14.1.3), so they are the same on all CPUs when firmware made them so.
#![expect(unsafe_code, reason = "reads and writes the PAT")]

use core::arch::asm;

use levelhead::x86::{PAT_RESET, msr};
use x86_64::registers::control::Cr3;
use x86_64::registers::model_specific::Msr;

/// Gives the running CPU the PAT that every page table here counts on.
pub(crate) fn settle() {
    let mut pat = Msr::new(msr::PAT);
    // SAFETY: every 64-bit CPU has a PAT, and reading it has no effect.
    if unsafe { pat.read() } == PAT_RESET {
        return;
    }
    // Lines cached under the old types must be gone before, and translations after.
    // SAFETY: writes caches back, which changes no value.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
    // SAFETY: a legal PAT whose first entry, under which all running code and data is mapped, is write-back.
    unsafe { pat.write(PAT_RESET) };
    let (root, flags) = Cr3::read();
    // SAFETY: the same root again, which only empties the TLB of translations that hold old types.
    unsafe { Cr3::write(root, flags) };
}
