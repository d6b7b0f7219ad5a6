//! From the loader to the program: the assembly of `boot.S`, and what it calls.
//!
//! A guest boots as PVH or as Multiboot1. Both enter in 32-bit protected mode with an information block, and
//! of that a guest needs only the command line.
#![expect(unsafe_code, reason = "boot code and the loader's information block")]

use core::ffi::{CStr, c_char};

use crate::cpu::{Mmio, out8};
use crate::{cmdline, fail, interrupts, serial};

core::arch::global_asm!(include_str!("boot.S"));

unsafe extern "C" {
    /// The program, made by [`crate::guest!`].
    safe fn guest_main();
}

/// Who loaded the guest: the values are `boot.S`'s.
const PVH: u32 = 0;
const MULTIBOOT: u32 = 1;

/// Called by `boot.S` in long mode, with interrupts off, on the boot stack.
#[unsafe(no_mangle)]
extern "C" fn guest_start(protocol: u32, information: u32) -> ! {
    serial::init();
    if let Some(text) = command_line(protocol, information as usize) {
        cmdline::set(text);
    }
    interrupts::init();
    silence_legacy_controllers();
    guest_main();
    fail!("main returned to the boot code")
}

/// Finds the command line in the loader's information block at physical address `block`.
///
/// PVH: Xen's `hvm_start_info`, magic number first, the 64-bit address at 24. Multiboot 0.6.96 3.3: flags first,
/// bit 2 says that the 32-bit address at 16 is valid.
fn command_line(protocol: u32, block: usize) -> Option<&'static str> {
    const PVH_MAGIC: u32 = 0x336e_c578;
    const MULTIBOOT_HAS_COMMAND_LINE: u32 = 1 << 2;

    // SAFETY: read only, and below 4 GiB all is mapped. No `&` is made to the loader's memory.
    let information = unsafe { Mmio::new(block) };
    let address = match protocol {
        PVH => {
            if information.read32(0) != PVH_MAGIC {
                fail!("PVH entry without a start_info block");
            }
            if information.read32(28) != 0 {
                fail!("the command line lies above 4 GiB");
            }
            information.read32(24)
        }
        MULTIBOOT if information.read32(0) & MULTIBOOT_HAS_COMMAND_LINE != 0 => information.read32(16),
        _ => 0,
    };
    if address == 0 {
        return None;
    }
    // SAFETY: a loader ends its text with a zero byte, keeps it out of the image, and leaves it alone from
    // now on; below 4 GiB all is mapped.
    let text = unsafe { CStr::from_ptr(address as usize as *const c_char) };
    text.to_str().ok()
}

/// Masks both 8259s: on a bare machine the firmware leaves the timer ticking there. Elsewhere nobody listens.
fn silence_legacy_controllers() {
    for port in [0x21, 0xa1] {
        // SAFETY: an interrupt mask reaches no memory.
        unsafe { out8(port, 0xff) };
    }
}
