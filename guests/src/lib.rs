//! Bare-metal guests: their boot code and drivers, shared by the programs in `src/bin`.
//!
//! A guest is a program of its own that trusts nothing of the hypervisor: it enters long mode, sets up its
//! interrupt controllers and drives the devices it was given, all with its own code, so that a mistake in
//! Levelhead cannot hide behind the same mistake here. Each one runs alike on a bare machine (QEMU's q35) and
//! under Levelhead; what needs the hypervisor is skipped with a line that says so.
//!
//! One CPU, one thread of control and its interrupt handlers; [`smp`] starts others. A program starts with
//! `guests::guest!("name", main)`, prints its progress on COM1 with [`say!`], and ends by returning from
//! `main` (passed) or through [`fail!`], with a code at the exit port ([`report`]).
//!
//! Words of the command line that every guest understands:
//!
//! | word | meaning | default |
//! | --- | --- | --- |
//! | `apic=xapic`, `apic=x2apic` | how to reach the local APIC | x2APIC where CPUID has it |
//! | `gsi=N` | the IO-APIC pin of `edu`'s interrupt | Interrupt Line under Levelhead, q35's rule else |
//! | `bus=N` | the PCI bus on which devices are looked for | 0 |
//! | `exit-port=N` | where the result goes | 0xf4 |
#![no_std]

pub mod boot;
pub mod cmdline;
pub mod cpu;
pub mod edu;
pub mod hypercall;
pub mod interrupts;
pub mod ioapic;
pub mod lapic;
mod mem;
pub mod pci;
pub mod report;
pub mod serial;
pub mod smp;
pub mod testdev;
pub mod user;
pub mod wait;

/// Makes `$main: fn()` the program that runs after boot, under the name that its messages carry.
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        #[expect(unsafe_code, reason = "the one symbol the boot code looks for; no other is called so")]
        #[unsafe(no_mangle)]
        extern "C" fn guest_main() {
            $crate::report::begin($name);
            $main();
            $crate::report::pass();
        }
    };
}
