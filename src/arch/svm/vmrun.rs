//! One virtual CPU's memory for the world switch, and the switch.
#![expect(unsafe_code, reason = "places the control block at a physical address and enters the guest")]

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use levelhead::addr::{HostPhys, PAGE_BYTES};
use levelhead::frames::Frames;
use levelhead::svm::{IoPermissions, MsrPermissions, Vmcb};
use levelhead::vcpu::GuestRegs;

use super::{enable, wipe};
use crate::arch::x86::cpu::ThisCpu;
use crate::arch::x86::paging::{OutOfMemory, direct};

global_asm!(include_str!("vmrun.S"));

unsafe extern "C" {
    /// For [`World::enter`] alone: it keeps less than the C ABI asks for.
    fn lh_vmrun();
}

/// The FXSAVE image a guest starts with: FCW 0x37f, MXCSR 0x1f80, all registers zero (APM2 14.1.3).
const FXSAVE_RESET: [u8; 512] = {
    let mut image = [0; 512];
    image[0] = 0x7f;
    image[1] = 0x03;
    image[24] = 0x80;
    image[25] = 0x1f;
    image
};

/// Registers that VMRUN does not switch, and where those are that it does. vmrun.S knows the offsets.
#[repr(C, align(16))]
#[derive(Debug)]
pub(crate) struct GuestFrame {
    pub(crate) regs: GuestRegs,
    fx: [u8; 512],
    /// The control block.
    guest_block: u64,
    /// The half of the host's state that VMRUN does not save.
    host_block: u64,
}

const _: () = assert!(offset_of!(GuestFrame, fx) == 0x80, "vmrun.S: FXSAVE area");
const _: () = assert!(offset_of!(GuestFrame, guest_block) == 0x280, "vmrun.S: the guest's VMCB");
const _: () = assert!(offset_of!(GuestFrame, host_block) == 0x288, "vmrun.S: the host's VMCB");
const _: () = assert!(Vmcb::INTERRUPT_SHADOW_BIT == 8 * 0x68, "vmrun.S: the interrupt shadow");

/// All that one virtual CPU needs to be entered, in memory of its own.
pub(crate) struct World {
    pub(crate) vmcb: &'static mut Vmcb,
    pub(crate) frame: &'static mut GuestFrame,
    pub(crate) msr: &'static mut MsrPermissions,
    io_address: HostPhys,
    msr_address: HostPhys,
    host_save: HostPhys,
}

impl World {
    /// Allocates everything but the I/O permission map, which all virtual CPUs of a guest share. Any CPU may do it for the one
    /// that will [`activate`](Self::activate) it.
    pub(crate) fn allocate(io_address: HostPhys, frames: &mut Frames) -> Result<Self, OutOfMemory> {
        let host_save = page_run(1, frames)?;
        let vmcb_address = page_run(1, frames)?;
        let host_state = page_run(1, frames)?;
        let frame_address = page_run(1, frames)?;
        let msr_address = page_run(MsrPermissions::BYTES as u64 / PAGE_BYTES, frames)?;
        // SAFETY: a fresh page, which is what a control block needs.
        let vmcb = unsafe { place(vmcb_address, Vmcb::new()) };
        // SAFETY: a fresh page, larger than a frame.
        let frame = unsafe {
            place(
                frame_address,
                GuestFrame {
                    regs: GuestRegs::new(),
                    fx: FXSAVE_RESET,
                    guest_block: vmcb_address.raw(),
                    host_block: host_state.raw(),
                },
            )
        };
        // SAFETY: a fresh run of pages of this size.
        let msr = unsafe { place(msr_address, MsrPermissions::deny_all()) };
        Ok(Self { vmcb, frame, msr, io_address, msr_address, host_save })
    }

    /// Switches SVM on for the running CPU, which from now on is the only one to enter this virtual CPU, and wipes what no
    /// entry would give the guest.
    ///
    /// # Safety
    ///
    /// [`enable::probe`] succeeded on this machine, and no other `World` was activated on this CPU.
    pub(crate) unsafe fn activate(&mut self, cpu: &ThisCpu) {
        // SAFETY: the page is fresh and never freed; the rest is the caller's promise.
        unsafe { enable::enable(self.host_save) };
        // The half of the host's state that VMRUN does not save: FS, GS, TR, LDTR and the system-call MSRs. None of it
        // changes after a CPU's start, so it is saved once.
        // SAFETY: SVM is on, and the page is a fresh control block.
        unsafe {
            asm!("vmsave rax", in("rax") self.frame.host_block, options(nostack, preserves_flags));
        }
        wipe::wipe(cpu);
    }

    /// Makes everything but the permission maps what it was when it was allocated, and wipes the running CPU, which is the one
    /// it was activated on.
    pub(crate) fn renew(&mut self, cpu: &ThisCpu) {
        *self.vmcb = Vmcb::new();
        self.frame.regs = GuestRegs::new();
        self.frame.fx = FXSAVE_RESET;
        wipe::wipe(cpu);
    }

    /// Where the permission maps are, for the control block.
    pub(crate) fn permission_maps(&self) -> (HostPhys, HostPhys) {
        (self.io_address, self.msr_address)
    }

    /// Enters the guest until it exits.
    #[inline]
    pub(crate) fn enter(&mut self, _cpu: &mut ThisCpu) {
        // SAFETY: the control block was configured by Vmcb::configure, whose intercepts keep the guest inside its nested
        // page tables and permission maps; frame and block are borrowed mutably until the call returns, and the frame's addresses
        // are those of this block and of the page that `activate` saved the host's state in; `_cpu` proves that interrupts are off.
        // Whatever lh_vmrun changes is named here.
        unsafe {
            asm!(
                "call {switch}",
                switch = sym lh_vmrun,
                inout("rdi") &raw mut *self.frame => _,
                inout("rsi") &raw mut *self.vmcb => _,
                out("r12") _,
                out("r13") _,
                out("r14") _,
                out("r15") _,
                clobber_abi("C"),
            );
        }
    }
}

/// Allocates an I/O permission map that opens nothing.
pub(crate) fn io_permissions(
    frames: &mut Frames,
) -> Result<(HostPhys, &'static mut IoPermissions), OutOfMemory> {
    let address = page_run(IoPermissions::BYTES as u64 / PAGE_BYTES, frames)?;
    // SAFETY: a fresh run of pages of this size.
    Ok((address, unsafe { place(address, IoPermissions::deny_all()) }))
}

fn page_run(pages: u64, frames: &mut Frames) -> Result<HostPhys, OutOfMemory> {
    let at = frames.allocate(pages * PAGE_BYTES, PAGE_BYTES, u64::MAX).ok_or(OutOfMemory)?;
    // SAFETY: fresh memory, mapped by the direct map.
    unsafe { direct(at).write_bytes(0, (pages * PAGE_BYTES) as usize) };
    Ok(at)
}

/// Puts `value` at a physical address for ever.
///
/// # Safety
///
/// The memory must be fresh, aligned and large enough, and mapped by the direct map.
unsafe fn place<T>(at: HostPhys, value: T) -> &'static mut T {
    let pointer = direct(at).cast::<T>();
    // SAFETY: the caller promises fresh, aligned and mapped memory that is large enough.
    unsafe { pointer.write(value) };
    // SAFETY: just initialised, and nobody else has the address.
    unsafe { &mut *pointer }
}
