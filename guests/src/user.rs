//! A tiny excursion to user mode: one hypercall at privilege level 3, and back.
#![expect(unsafe_code, reason = "assembly")]

use core::arch::asm;

use crate::hypercall::Registers;
use crate::interrupts::{Frame, KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA, handle, open_to_user_mode};

/// The way back: a software interrupt that user mode may raise.
const RETURN: u8 = 0x80;

/// Makes a hypercall from user mode and returns RAX. Interrupts are off meanwhile.
///
/// IRETQ goes there and the handler of `RETURN` comes back, by changing the privilege of the frame it returns
/// through. Code and stack are the caller's own: `boot.S` opens all pages to user mode.
///
/// # Safety
/// As [`crate::hypercall::call`].
pub unsafe fn call(function: u64, arguments: Registers) -> i64 {
    fn return_to_kernel(frame: &mut Frame) {
        frame.cs = u64::from(KERNEL_CODE);
        frame.ss = u64::from(KERNEL_DATA);
    }
    handle(RETURN, return_to_kernel);
    open_to_user_mode(RETURN);

    let [rbx, rcx, rdx] = arguments;
    let mut rax = function;
    // SAFETY: the caller's promise for the call itself. IRETQ takes the stack pointer that was there before the
    // five words of its frame, and the handler comes back with it.
    unsafe {
        asm!(
            "mov {scratch}, rsp",
            "push {user_data}",
            "push {scratch}",
            "push 2", // RFLAGS: interrupts off
            "push {user_code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "iretq",
            "2:",
            "xchg rbx, {rbx}",
            "vmmcall",
            "xchg rbx, {rbx}",
            "int {gate}",
            scratch = out(reg) _,
            rbx = inout(reg) rbx => _,
            user_data = const USER_DATA,
            user_code = const USER_CODE,
            gate = const RETURN,
            inout("rax") rax,
            inout("rcx") rcx => _,
            inout("rdx") rdx => _,
        );
    }
    rax.cast_signed()
}
