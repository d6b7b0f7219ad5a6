//! The last words: panics and exceptions of the hypervisor itself, and of the firmware's AML while it is interpreted.
#![expect(unsafe_code, reason = "entered from assembly; walks frame pointers")]

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use levelhead::message::{Message, Record};
use levelhead::sync::Lock;
use x86_64::registers::control::Cr2;

use super::build_id::BuildId;
use super::exit::{Verdict, exit};
use crate::arch::x86::cpu::ExceptionFrame;
use crate::console::print_at_the_end;
use crate::survey;

unsafe extern "C" {
    static lh_text_start: u8;
    static lh_text_end: u8;
}

static DYING: AtomicBool = AtomicBool::new(false);
/// Room for the names of the devices that AML was asked for.
const SUBJECT_BYTES: usize = 256;

/// The devices for which the acpi crate interprets firmware bytecode just now: a panic meanwhile is the firmware's or the
/// interpreter's.
static AML_SUBJECT: Lock<([u8; SUBJECT_BYTES], usize)> = Lock::new(([0; SUBJECT_BYTES], 0));

/// Says for whom AML runs, or that it does not.
pub(crate) fn set_aml_subject(names: Option<&str>) {
    AML_SUBJECT.with(|(text, length)| {
        *length = 0;
        for (slot, byte) in text.iter_mut().zip(names.unwrap_or("").bytes()) {
            *slot = byte;
            *length += 1;
        }
    });
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if DYING.swap(true, Ordering::AcqRel) {
        exit(Verdict::Bug);
    }
    // A panic never happens under this lock: set_aml_subject cannot.
    let (text, length) = AML_SUBJECT.with(|subject| *subject);
    if length > 0 {
        let names = text.get(..length).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or("a device");
        let what = format_args!(
            "the AML interpreter gave up while looking for the interrupt routing (_PRT): {}",
            info.message()
        );
        last_record(Message::AmlGaveUp, &format_args!("devices {names}"), &what);
        // The report of a machine is whole without its routing.
        let (word, verdict) = match survey::close_without_routing(&what) {
            true => ("PASS", Verdict::Pass),
            false => ("UNFIT", Verdict::Unfit),
        };
        print_at_the_end(format_args!("levelhead: verdict {word}\n"));
        exit(verdict);
    }
    name_build();
    match info.location() {
        Some(location) => last_record(Message::Panic, location, &info.message()),
        None => last_record(Message::Panic, &"hypervisor", &info.message()),
    }
    let rbp = frame_pointer();
    backtrace(rbp, rbp);
    print_at_the_end(format_args!("levelhead: verdict BUG\n"));
    exit(Verdict::Bug)
}

#[unsafe(no_mangle)]
extern "C" fn lh_exception(frame: &ExceptionFrame) -> ! {
    if DYING.swap(true, Ordering::AcqRel) {
        exit(Verdict::Bug);
    }
    name_build();
    let what = format_args!("exception {} ({}) in the hypervisor", frame.vector, name(frame.vector));
    last_record(Message::Exception, &format_args!("RIP {:#x}", frame.rip), &what);
    print_at_the_end(format_args!(
        "  error code {:#x}, RSP {:#x}, RFLAGS {:#x}, CS {:#x}, SS {:#x}, CR2 {:#x}\n",
        frame.error_code,
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
    let rbp = frame.general.get(4).copied().unwrap_or(0);
    // A call to where no code is has left its return address on top of the stack and no frame yet.
    let returned = (!is_code(frame.rip)).then(|| read_stack::<1>(frame.rsp)).flatten();
    if let Some([caller]) = returned.filter(|[caller]| is_code(*caller)) {
        print_at_the_end(format_args!("  at {caller:#x}\n"));
    }
    backtrace(frame.rsp, rbp);
    print_at_the_end(format_args!("levelhead: verdict BUG\n"));
    exit(Verdict::Bug)
}

/// The record of what ended the machine, on a line of its own whatever was being printed.
fn last_record(message: Message, place: &dyn fmt::Display, what: &dyn fmt::Display) {
    print_at_the_end(format_args!("\n{}\n", Record { message, place, what: Some(what), remedy: None }));
}

/// Says whose addresses follow: the log may have lost its beginning.
fn name_build() {
    print_at_the_end(format_args!("\nlevelhead: build-id {BuildId}"));
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
    // SAFETY: copies RBP and touches neither memory nor stack.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    rbp
}

/// Prints the return addresses of the frames that RBP leads to, from RSP up, for as long as the chain climbs one stack. The
/// values are checked, not trusted. xtask turns these lines into functions (xtask/src/symbols.rs).
fn backtrace(rsp: u64, rbp: u64) {
    const MOST_BYTES_PER_FRAME: u64 = 0x10000;
    let (mut top, mut rbp) = (rsp, rbp);
    for _ in 0..24 {
        if rbp < top || rbp - top > MOST_BYTES_PER_FRAME {
            break;
        }
        let Some([next, ret]) = read_stack(rbp) else { break };
        if !is_code(ret) {
            break;
        }
        print_at_the_end(format_args!("  at {ret:#x}\n"));
        (top, rbp) = (rbp + 16, next);
    }
}

/// Whether the image has code at that address.
fn is_code(address: u64) -> bool {
    let (start, end) = ((&raw const lh_text_start).addr(), (&raw const lh_text_end).addr());
    (start as u64..end as u64).contains(&address)
}

/// The words at that address, if a stack of the hypervisor's can be there.
fn read_stack<const N: usize>(at: u64) -> Option<[u64; N]> {
    const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;
    if at < KERNEL_HALF || at & 7 != 0 {
        return None;
    }
    let words: *const [u64; N] = core::ptr::with_exposed_provenance(at as usize);
    // SAFETY: an aligned address in the host's half that a stack pointer or a frame chain led to; if it is not mapped after
    // all, the page fault finds DYING set and ends the machine.
    Some(unsafe { words.read() })
}
