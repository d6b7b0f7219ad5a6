//! Checks that nothing of a CPU's state changes across exits: FPU, SSE and AVX registers, XCR0, debug address registers,
//! segment bases, and every general register; and that instructions which exit trap like all others when they are single-stepped.
//!
//! Patterns are loaded, exits of every kind are provoked (CPUID, port, MSR, device memory, task priority, and the
//! periodic timer in between), and the state is compared. On a bare machine nothing exits, and the same must hold.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "loads and stores the state of the CPU")]
#![expect(clippy::indexing_slicing, reason = "constant places in areas of a fixed size")]

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use guests::cpu::{disable_interrupts, enable_interrupts, rdmsr, under_levelhead, wrmsr};
use guests::interrupts::{Frame, handle};
use guests::{check, cmdline, lapic, say, wait};

guests::guest!("state", main);

const DEBUG: u8 = 1;
const TIMER: u8 = 0x50;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const CR4_OSXSAVE: u64 = 1 << 18;
const LEAF1_XSAVE: u32 = 1 << 26;
const LEAF1_OSXSAVE: u32 = 1 << 27;
const LEAF1_AVX: u32 = 1 << 28;
/// x87, SSE and AVX in XCR0.
const XCR0_AVX: u64 = 0b111;

static TICKS: AtomicU32 = AtomicU32::new(0);
static TRAPS: AtomicU32 = AtomicU32::new(0);

/// An FXSAVE area (APM2 11.4.4).
#[repr(C, align(16))]
struct Fx([u8; 512]);

fn main() {
    let rounds = cmdline::number("rounds").unwrap_or(500);
    lapic::init();
    handle(TIMER, tick);
    handle(DEBUG, trap);
    enable_interrupts();
    lapic::start_timer_periodic(TIMER, 5_000);
    fpu(rounds);
    avx(rounds);
    registers(rounds);
    bases(rounds);
    single_steps(rounds);
    check!(wait::until(|| TICKS.load(Relaxed) > 0), "the timer never interrupted");
    lapic::stop_timer();
    disable_interrupts();
    say!("{} timer interrupts in between", TICKS.load(Relaxed));
}

fn tick(_: &mut Frame) {
    TICKS.fetch_add(1, Relaxed);
    lapic::eoi();
}

fn trap(frame: &mut Frame) {
    const SINGLE_STEP: u64 = 1 << 14;
    let dr6: u64;
    // SAFETY: reads and forgets which debug exceptions there were (APM2 13.1.1.3).
    unsafe { asm!("mov {dr6}, dr6", "mov dr6, {none}", dr6 = out(reg) dr6, none = in(reg) 0xffff_0ff0_u64) };
    check!(dr6 & SINGLE_STEP != 0, "a debug exception at {:#x} with DR6 {dr6:#x}", frame.rip);
    TRAPS.fetch_add(1, Relaxed);
}

/// A byte that differs by round and place.
fn pattern(round: u32, place: usize) -> u8 {
    (round.wrapping_mul(31) as usize + place * 7) as u8 | 1
}

/// x87 registers and their control word, MXCSR, and the sixteen XMM registers.
fn fpu(rounds: u32) {
    for round in 0..rounds {
        let mut before = Fx([0; 512]);
        let mut after = Fx([0; 512]);
        // FCW: round to nearest or down; FTW: all registers in use; MXCSR: all exceptions masked, flush to zero or not.
        before.0[0..2].copy_from_slice(&(0x037f_u16 & !(u16::from(round % 2 == 0) << 8)).to_le_bytes());
        before.0[4] = 0xff;
        before.0[24..28].copy_from_slice(&(0x1f80_u32 | (round % 4) << 13).to_le_bytes());
        for register in 0..8 {
            for byte in 0..10 {
                before.0[32 + 16 * register + byte] = pattern(round, 16 * register + byte);
            }
        }
        for place in 160..416 {
            before.0[place] = pattern(round, place);
        }
        // SAFETY: both areas are 512 bytes, aligned; MXCSR has no reserved bit; the exits change RAX to RDX alone, which
        // are declared, RBX being kept by hand.
        unsafe {
            asm!(
                "fxrstor64 [{before}]",
                "push rbx",
                "mov eax, 1",
                "xor ecx, ecx",
                "cpuid",                      // exit: CPUID
                "mov edx, 0x80",
                "out dx, al",                 // exit: port
                "in al, dx",
                "mov ecx, 0xc0000080",
                "rdmsr",                      // exit: MSR
                "mov eax, dword ptr [{lapic}]", // exit: device memory
                "mov rax, cr8",
                "mov cr8, rax",               // exit: task priority
                "pop rbx",
                "fxsave64 [{after}]",
                before = in(reg) &raw const before,
                after = in(reg) &raw mut after,
                lapic = in(reg) 0xfee0_0030_u64,
                out("rax") _, out("rcx") _, out("rdx") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            );
        }
        // SAFETY: empties the x87 stack, which compiled code expects, and gives MXCSR its reset value.
        unsafe { asm!("fninit", "ldmxcsr [{mxcsr}]", mxcsr = in(reg) &raw const MXCSR_RESET) };
        for place in (0..2).chain(24..28).chain(160..416) {
            check!(
                before.0[place] == after.0[place],
                "fpu: round {round}: byte {place} of the state changed"
            );
        }
        for register in 0..8 {
            let place = 32 + 16 * register;
            check!(
                before.0[place..place + 10] == after.0[place..place + 10],
                "fpu: round {round}: st({register}) changed"
            );
        }
    }
    say!("fpu and sse {rounds}/{rounds} ok");
}

static MXCSR_RESET: u32 = 0x1f80;

/// XCR0, and the upper halves that FXSAVE does not know.
fn avx(rounds: u32) {
    let features = __cpuid_count(1, 0).ecx;
    if features & LEAF1_XSAVE == 0 || features & LEAF1_AVX == 0 {
        say!("avx skipped: this CPU has none");
        return;
    }
    // SAFETY: the CPU has XSAVE, so the bit is legal, and it only lets XSETBV run.
    unsafe {
        asm!("mov {cr4}, cr4", "or {cr4}, {bit}", "mov cr4, {cr4}", cr4 = out(reg) _, bit = in(reg) CR4_OSXSAVE);
    }
    check!(__cpuid_count(1, 0).ecx & LEAF1_OSXSAVE != 0, "avx: CPUID does not show OSXSAVE");
    // SAFETY: CR4.OSXSAVE is set, and CPUID has all three parts.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") XCR0_AVX as u32, in("edx") 0) };
    for round in 0..rounds {
        let before: [u8; 32] = core::array::from_fn(|place| pattern(round, place));
        let mut after = [0_u8; 32];
        let xcr0: u32;
        // SAFETY: AVX is on; both arrays hold a YMM register; changed registers are declared.
        unsafe {
            asm!(
                "vmovups ymm7, [{before}]",
                "push rbx",
                "mov eax, 1",
                "xor ecx, ecx",
                "cpuid",
                "pop rbx",
                "vmovups [{after}], ymm7",
                "xor ecx, ecx",
                "xgetbv",
                before = in(reg) &raw const before,
                after = in(reg) &raw mut after,
                out("rax") xcr0, out("rcx") _, out("rdx") _, out("xmm7") _,
            );
        }
        check!(u64::from(xcr0) == XCR0_AVX, "avx: round {round}: XCR0 is {xcr0:#x}");
        check!(before == after, "avx: round {round}: ymm7 changed");
    }
    say!("avx {rounds}/{rounds} ok");
}

/// General registers that no exit returns a result in.
fn registers(rounds: u32) {
    for round in 0..rounds {
        let before: [u64; 8] =
            core::array::from_fn(|place| u64::from(pattern(round, place)) << 56 | place as u64);
        let mut after = [0_u64; 8];
        // SAFETY: the array holds eight values; CPUID's results and all loaded registers are declared.
        unsafe {
            asm!(
                "push rbx",
                "push rdi",
                "mov r8, [rsi]",
                "mov r9, [rsi + 8]",
                "mov r10, [rsi + 16]",
                "mov r11, [rsi + 24]",
                "mov r12, [rsi + 32]",
                "mov r13, [rsi + 40]",
                "mov r14, [rsi + 48]",
                "mov r15, [rsi + 56]",
                "mov eax, 1",
                "xor ecx, ecx",
                "cpuid",
                "mov edx, 0x80",
                "out dx, al",
                "pop rdi",
                "pop rbx",
                "mov [rdi], r8",
                "mov [rdi + 8], r9",
                "mov [rdi + 16], r10",
                "mov [rdi + 24], r11",
                "mov [rdi + 32], r12",
                "mov [rdi + 40], r13",
                "mov [rdi + 48], r14",
                "mov [rdi + 56], r15",
                in("rsi") &raw const before,
                in("rdi") &raw mut after,
                out("rax") _, out("rcx") _, out("rdx") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
        check!(before == after, "registers: round {round}: {before:x?} became {after:x?}");
    }
    say!("registers {rounds}/{rounds} ok");
}

/// Segment bases and debug address registers, which the world switch handles apart from everything else.
fn bases(rounds: u32) {
    for round in 0..rounds {
        let value = u64::from(round) << 12 | 0x1000;
        for (offset, register) in (0..).zip([FS_BASE, GS_BASE, KERNEL_GS_BASE]) {
            // SAFETY: guests use no FS or GS relative data.
            unsafe { wrmsr(register, value + offset) };
        }
        // SAFETY: an address alone arms nothing; DR7 enables no breakpoint.
        unsafe { asm!("mov dr1, {value}", value = in(reg) value + 9) };
        let _ = __cpuid_count(0, 0);
        let debug: u64;
        // SAFETY: reads DR1; no breakpoint is armed by it.
        unsafe { asm!("mov {debug}, dr1", debug = out(reg) debug) };
        check!(debug == value + 9, "bases: round {round}: DR1 is {debug:#x}");
        for (offset, register) in (0..).zip([FS_BASE, GS_BASE, KERNEL_GS_BASE]) {
            // SAFETY: reads a register every 64-bit CPU has.
            let found = unsafe { rdmsr(register) };
            check!(found == value + offset, "bases: round {round}: MSR {register:#x} is {found:#x}");
        }
    }
    say!("segment bases and debug registers {rounds}/{rounds} ok");
}

/// One trap behind each instruction from the one that sets the trap flag to the one that clears it, whether it exits or not; HLT's ends
/// the halt.
fn single_steps(rounds: u32) {
    const INSTRUCTIONS: u32 = 13;
    // QEMU's own CPU halts first.
    let expected = if under_levelhead() { INSTRUCTIONS } else { INSTRUCTIONS - 1 };
    for round in 0..rounds {
        TRAPS.store(0, Relaxed);
        // SAFETY: nothing but reads, and a port that nobody has; the flags are as they were in the end, and every register that
        // changes is declared.
        unsafe {
            asm!(
                "push rbx",
                "pushfq",
                "or qword ptr [rsp], 0x100",
                "popfq",
                "xor ecx, ecx",
                "cpuid",
                "mov ecx, 0x1b",
                "rdmsr",
                "mov edx, 0x80",
                "out dx, al",
                "mov eax, [{registers}]",
                "mov cr8, {zero}",
                "hlt",
                "nop",
                "pushfq",
                "and qword ptr [rsp], -0x101",
                "popfq",
                "pop rbx",
                registers = in(reg) lapic::window().address(0x30),
                zero = in(reg) 0_u64,
                out("rax") _, out("rcx") _, out("rdx") _,
            );
        }
        let traps = TRAPS.load(Relaxed);
        check!(traps == expected, "single steps: round {round}: {traps} traps, not {expected}");
    }
    say!("single steps {rounds}/{rounds} ok");
}
