//! The last words: panics and exceptions of the hypervisor itself, and of the firmware's AML while it is interpreted.
#![expect(unsafe_code, reason = "entered from assembly; walks frame pointers")]

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::registers::control::Cr2;

use super::exit::{Verdict, exit};
use crate::arch::x86::cpu::ExceptionFrame;
use crate::console::print_at_the_end;

static DYING: AtomicBool = AtomicBool::new(false);
/// Set while the acpi crate interprets firmware bytecode: a panic then is the firmware's or the interpreter's.
static IN_AML: AtomicBool = AtomicBool::new(false);

const REMEDY: &str = "name the GSI of each assigned function in the configuration (gsi = N): then the firmware's AML is \
                      never run";

/// Says whether AML runs, so that a panic in it is reported for what it is.
pub(crate) fn set_in_aml(running: bool) {
    IN_AML.store(running, Ordering::Relaxed);
}

/// What to do when AML cannot be interpreted.
pub(crate) fn aml_remedy() -> &'static str {
    REMEDY
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if DYING.swap(true, Ordering::AcqRel) {
        exit(Verdict::Bug);
    }
    if IN_AML.load(Ordering::Relaxed) {
        print_at_the_end(format_args!(
            "\nERROR Firmware: the AML interpreter gave up while looking for the interrupt routing (_PRT): {}\n  remedy: \
             {REMEDY}\nlevelhead: verdict UNFIT\n",
            info.message()
        ));
        exit(Verdict::Unfit);
    }
    print_at_the_end(format_args!("\nBUG panic: {info}\n"));
    backtrace(frame_pointer());
    print_at_the_end(format_args!("levelhead: verdict BUG\n"));
    exit(Verdict::Bug)
}

#[unsafe(no_mangle)]
extern "C" fn lh_exception(frame: &ExceptionFrame) -> ! {
    if DYING.swap(true, Ordering::AcqRel) {
        exit(Verdict::Bug);
    }
    let name = name(frame.vector);
    print_at_the_end(format_args!(
        "\nBUG exception {} ({name}) in the hypervisor: error code {:#x}, RIP {:#x}, RSP {:#x}, RFLAGS {:#x}, CS {:#x}, \
         SS {:#x}, CR2 {:#x}\n",
        frame.vector,
        frame.error_code,
        frame.rip,
        frame.rsp,
        frame.rflags,
        frame.cs,
        frame.ss,
        Cr2::read_raw(),
    ));
    let names = ["rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi"];
    let numbered = ["r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    for (name, value) in names.iter().chain(&numbered).zip(frame.general) {
        print_at_the_end(format_args!("  {name:<3} {value:#018x}\n"));
    }
    backtrace(frame.general.get(4).copied().unwrap_or(0));
    print_at_the_end(format_args!("levelhead: verdict BUG\n"));
    exit(Verdict::Bug)
}

/// The name of an exception vector (APM2 8.2).
fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE",
        1 => "#DB",
        3 => "#BP",
        4 => "#OF",
        5 => "#BR",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XF",
        21 => "#CP",
        _ => "reserved",
    }
}

fn frame_pointer() -> u64 {
    let rbp: u64;
    // SAFETY: copies a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    rbp
}

/// Prints return addresses for as long as the chain climbs one stack. The values are checked, not trusted.
fn backtrace(mut rbp: u64) {
    const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;
    const MOST_BYTES_PER_FRAME: u64 = 0x10000;
    for _ in 0..24 {
        if rbp < KERNEL_HALF || rbp & 7 != 0 {
            break;
        }
        let frame: *const [u64; 2] = core::ptr::with_exposed_provenance(rbp as usize);
        // SAFETY: an aligned address in the host's half that a frame chain led to; if it is not mapped after all, the
        // page fault finds DYING set and ends the machine.
        let [next, ret] = unsafe { frame.read() };
        if ret < KERNEL_HALF {
            break;
        }
        print_at_the_end(format_args!("  at {ret:#x}\n"));
        if next <= rbp || next - rbp > MOST_BYTES_PER_FRAME {
            break;
        }
        rbp = next;
    }
}
