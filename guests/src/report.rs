//! What a guest says and how it ends.
//!
//! Every line on the console starts with the guest's name. The last one is `name: PASS` or `name: FAIL why`, and
//! then a code goes to the exit port: 0x10 for passed, 0x11 for failed. On a bare QEMU that port is
//! `isa-debug-exit`'s, whose exit status is 33 or 35; under Levelhead it is the partition's exit port.
#![expect(unsafe_code, reason = "port I/O")]

use core::fmt::{Arguments, Write};
use core::panic::PanicInfo;

use crate::cpu::{self, CpuCell, disable_interrupts, out32};
use crate::serial::Com1;

const PASSED: u32 = 0x10;
const FAILED: u32 = 0x11;

static NAME: CpuCell<&str> = CpuCell::new("guest");

/// Prints one line under the guest's name, `format!`-style.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::report::line(::core::format_args!($($argument)*)) };
}

/// Ends the guest as failed, with the reason, `format!`-style.
#[macro_export]
macro_rules! fail {
    ($($argument:tt)*) => { $crate::report::fail(::core::format_args!($($argument)*)) };
}

/// Ends the guest as failed unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($argument:tt)*) => {
        if !$condition {
            $crate::fail!($($argument)*);
        }
    };
}

/// Names the guest.
pub fn begin(name: &'static str) {
    NAME.set(name);
}

/// Prints one line; called through [`say!`].
pub fn line(text: Arguments<'_>) {
    // The transmitter never refuses.
    let _ = writeln!(Com1, "{}: {text}", NAME.get());
}

/// Ends the guest as passed.
pub fn pass() -> ! {
    line(format_args!("PASS"));
    exit(PASSED)
}

/// Ends the guest as failed; called through [`fail!`].
pub fn fail(reason: Arguments<'_>) -> ! {
    disable_interrupts();
    line(format_args!("FAIL {reason}"));
    exit(FAILED)
}

fn exit(code: u32) -> ! {
    let port = crate::cmdline::exit_port();
    // SAFETY: nothing of Rust's runs after it, whatever the port does.
    unsafe { out32(port, code) };
    cpu::stop()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}
