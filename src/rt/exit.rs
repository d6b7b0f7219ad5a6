//! How the machine ends: QEMU's debug exit when the command line names one, a halt otherwise.
#![expect(unsafe_code, reason = "one port write that ends the emulator")]

use core::sync::atomic::{AtomicU16, Ordering};

use x86_64::instructions::port::Port;

use crate::arch::x86::cpu;

/// Why the machine ends. QEMU's exit status is twice the code plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Verdict {
    /// Every partition ended as it should.
    Pass = 0x10,
    /// A partition failed.
    GuestFailed = 0x11,
    /// The bundle or its configuration was refused.
    Refused = 0x12,
    /// The platform lacks something the hypervisor needs.
    Unfit = 0x13,
    /// The hypervisor itself failed.
    Bug = 0x14,
}

/// The port of `isa-debug-exit`; 0 for none.
static PORT: AtomicU16 = AtomicU16::new(0);

/// Names the debug exit port. On a real machine some other device may answer there, so nothing is probed: the command
/// line says `exit=0xf4` or the machine halts at its end.
pub(crate) fn set_port(port: u16) {
    PORT.store(port, Ordering::Relaxed);
}

/// Ends the machine.
pub(crate) fn exit(verdict: Verdict) -> ! {
    let port = PORT.load(Ordering::Relaxed);
    if port != 0 {
        // SAFETY: the integrator says that a debug exit device is at this port; it ends the emulator.
        unsafe { Port::<u32>::new(port).write(verdict as u32) };
    }
    cpu::halt_for_ever()
}
