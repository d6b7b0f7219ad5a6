//! The running CPU's registers, as `levelhead::svm::wipe` wants them wiped before its guest's first entry.
#![expect(unsafe_code, reason = "writes the registers that SVM does not switch")]

use core::arch::asm;

use levelhead::svm::{self, Unswitched};
use levelhead::x86::msr;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::debug::{DebugAddressRegister as _, Dr0, Dr1, Dr2, Dr3};
use x86_64::registers::model_specific::Msr;
use x86_64::registers::xcontrol::XCr0;

use crate::arch::x86::cpu::{ThisCpu, cpuid, has_xcr0};

/// An XSAVE image in which no component is present, so that XRSTOR gives each its initial state; only MXCSR is taken from
/// it all the same (APM2 11.5.9). Longer than any CPU's.
#[repr(C, align(64))]
struct Image([u8; 16384]);

static INITIAL: Image = {
    let mut image = [0; 16384];
    image[24] = 0x80;
    image[25] = 0x1f;
    Image(image)
};

/// Wipes the running CPU. XCR0 is left in its reset state and to the guest, which owns it from here on: the host never
/// looks at it. Only CR4.OSXSAVE makes it writable, which the host leaves set for itself.
pub(crate) fn wipe(_cpu: &ThisCpu) {
    let xcr0 = has_xcr0();
    if xcr0 {
        // SAFETY: the CPU has XSAVE, and the host uses no instruction that OSXSAVE changes.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::OSXSAVE)) };
    }
    svm::wipe(&mut Running { xcr0 });
}

/// The CPU this runs on.
struct Running {
    /// There is an XCR0 for guests, and CR4.OSXSAVE is set.
    xcr0: bool,
}

impl Unswitched for Running {
    fn set_debug_address(&mut self, index: u8, value: u64) {
        // The host arms no breakpoint, so the addresses mean nothing to it.
        match index {
            0 => Dr0::write(value),
            1 => Dr1::write(value),
            2 => Dr2::write(value),
            _ => Dr3::write(value),
        }
    }

    fn has_tsc_aux(&self) -> bool {
        const RDTSCP: u32 = 1 << 27;
        cpuid(0x8000_0001, 0).edx & RDTSCP != 0
    }

    fn set_tsc_aux(&mut self, value: u32) {
        // SAFETY: the CPU has RDTSCP, and the register is one that only RDTSCP and RDPID read, which the host does not use.
        unsafe { Msr::new(msr::TSC_AUX).write(u64::from(value)) };
    }

    fn components(&self) -> u64 {
        if !self.xcr0 {
            return 0;
        }
        let leaf = cpuid(0xd, 0);
        u64::from(leaf.edx) << 32 | u64::from(leaf.eax)
    }

    fn set_xcr0(&mut self, value: u64) {
        // SAFETY: OSXSAVE is set, and `value` is what CPUID offers as a whole, or x87 alone: both are always legal.
        unsafe { XCr0::write_raw(value) };
    }

    fn reset_components(&mut self) {
        // SAFETY: the image is aligned, readable and longer than any CPU's; every register that XRSTOR changes is declared
        // clobbered, and MXCSR and x87 come out as compiled code expects them.
        unsafe {
            asm!(
                "xrstor64 [{image}]",
                image = in(reg) &raw const INITIAL.0,
                in("eax") u32::MAX,
                in("edx") u32::MAX,
                clobber_abi("C"),
                options(nostack, readonly),
            );
        }
    }
}
