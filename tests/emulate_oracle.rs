//! The emulated instructions against the CPU that runs the test.
//!
//! Each case is one instruction in assembly. The assembler's bytes are decoded and emulated on one side; on the
//! other the same bytes are executed with the same registers, flags and memory. Both must end alike.
#![cfg(all(feature = "emulate", target_arch = "x86_64"))]
#![expect(unsafe_code, reason = "runs the instructions under test on the CPU")]

use core::arch::asm;

use levelhead::emulate::{Code, DecodeError, MmioOp};
use levelhead::vcpu::{CodeSize, Gpr, GuestRegs};
use levelhead::x86::rflags::STATUS;

/// What an instruction can read and change. RDI points to `memory` while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    rax: u64,
    rcx: u64,
    rdx: u64,
    r9: u64,
    /// The status flags alone.
    flags: u64,
    memory: u64,
}

/// Runs the instruction on the CPU and returns its bytes.
macro_rules! run {
    ($instruction:literal, $state:expr) => {{
        let state: &mut State = $state;
        let memory: *mut u64 = &mut state.memory;
        let (start, end): (u64, u64);
        // SAFETY: the cases touch RAX, RCX, RDX, R9, the status flags and eight bytes at RDI, all of which are
        // declared; the flags are built from status flags and the pushes balance.
        unsafe {
            asm!(
                "push r8",
                "popfq",
                "2:",
                $instruction,
                "3:",
                "pushfq",
                "pop r8",
                "lea r10, [rip + 2b]",
                "lea r11, [rip + 3b]",
                inout("rax") state.rax,
                inout("rcx") state.rcx,
                inout("rdx") state.rdx,
                inout("r9") state.r9,
                inout("r8") state.flags | 0x202 => state.flags,
                in("rdi") memory,
                out("r10") start,
                out("r11") end,
            );
        }
        state.flags &= STATUS;
        let length = (end - start) as usize;
        let mut bytes = vec![0; length];
        // SAFETY: the labels delimit the instruction in this program's own text, which is readable.
        unsafe { core::ptr::copy_nonoverlapping(start as *const u8, bytes.as_mut_ptr(), length) };
        bytes
    }};
}

fn emulate(bytes: &[u8], state: &State) -> Result<State, DecodeError> {
    let op = MmioOp::decode(&Code::from_bytes(bytes), CodeSize::Bits64)?;
    assert_eq!(usize::from(op.length()), bytes.len(), "{bytes:02x?}");
    let mut regs = GuestRegs::new();
    regs[Gpr::Rax] = state.rax;
    regs[Gpr::Rcx] = state.rcx;
    regs[Gpr::Rdx] = state.rdx;
    regs[Gpr::R9] = state.r9;
    let mut flags = state.flags | 2;
    let outcome = op.execute(&mut regs, &mut flags, state.memory);
    let mask = op.width().mask();
    Ok(State {
        rax: regs[Gpr::Rax],
        rcx: regs[Gpr::Rcx],
        rdx: regs[Gpr::Rdx],
        r9: regs[Gpr::R9],
        flags: flags & STATUS,
        memory: outcome.store.map_or(state.memory, |value| state.memory & !mask | value),
    })
}

/// Values around the edges of every width.
const INTERESTING: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0x7fff_ffff,
    0x8000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

fn states() -> impl Iterator<Item = State> {
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise
    };
    let mut states = Vec::new();
    for memory in INTERESTING {
        for operand in INTERESTING {
            let (a, b) = (next(), next());
            for (memory, operand) in [(memory, operand), (memory, a), (a, b)] {
                states.push(State {
                    rax: operand,
                    rcx: operand,
                    rdx: b,
                    r9: operand.rotate_left(8),
                    flags: a & STATUS,
                    memory,
                });
            }
        }
    }
    states.into_iter()
}

macro_rules! same_as_the_cpu {
    ($name:ident, undefined $undefined:expr, $($instruction:literal,)*) => {
        #[test]
        fn $name() {
            for before in states() {
                $({
                    let mut real = before;
                    let bytes = run!($instruction, &mut real);
                    real.flags &= !$undefined;
                    let emulated = emulate(&bytes, &before);
                    let emulated = emulated.map(|state| State { flags: state.flags & !$undefined, ..state });
                    assert_eq!(emulated, Ok(real), "{} from {before:x?}", $instruction);
                })*
            }
        }
    };
}

same_as_the_cpu! {
    moves, undefined 0,
    "mov eax, [rdi]", "mov rax, [rdi]", "mov ax, [rdi]", "mov al, [rdi]", "mov ah, [rdi]", "mov ch, [rdi]",
    "mov r9b, [rdi]", "mov r9d, [rdi]",
    "mov [rdi], eax", "mov [rdi], rax", "mov [rdi], cx", "mov [rdi], dl", "mov [rdi], dh", "mov [rdi], r9b",
    "mov dword ptr [rdi], 0x80000001", "mov qword ptr [rdi], -2", "mov word ptr [rdi], 0x8001",
    "mov byte ptr [rdi], 0x80",
    "movzx eax, byte ptr [rdi]", "movzx ax, byte ptr [rdi]", "movzx rcx, word ptr [rdi]",
    "movsx eax, byte ptr [rdi]", "movsx ax, byte ptr [rdi]", "movsx rcx, word ptr [rdi]",
    "movsx ecx, word ptr [rdi]", "movsxd rdx, dword ptr [rdi]", "movnti [rdi], ecx",
    "xchg [rdi], eax", "xchg [rdi], rcx", "xchg [rdi], dx", "xchg [rdi], ah", "xchg [rdi], r9b",
}

same_as_the_cpu! {
    arithmetic, undefined 0,
    "add [rdi], eax", "add [rdi], rcx", "add [rdi], dl", "add ax, [rdi]", "add rax, [rdi]", "add ah, [rdi]",
    "add dword ptr [rdi], -1", "add qword ptr [rdi], 0x7fffffff", "add byte ptr [rdi], 0x80",
    "adc [rdi], eax", "adc rax, [rdi]", "adc byte ptr [rdi], 0x7f", "adc word ptr [rdi], -1",
    "sub [rdi], eax", "sub rax, [rdi]", "sub dx, [rdi]", "sub dword ptr [rdi], -1", "sub byte ptr [rdi], 1",
    "sbb [rdi], eax", "sbb rax, [rdi]", "sbb cl, [rdi]", "sbb word ptr [rdi], 0x7fff",
    "cmp [rdi], eax", "cmp rax, [rdi]", "cmp [rdi], r9b", "cmp dword ptr [rdi], 0x1000", "cmp byte ptr [rdi], -1",
    "inc dword ptr [rdi]", "inc byte ptr [rdi]", "inc qword ptr [rdi]",
    "dec dword ptr [rdi]", "dec word ptr [rdi]", "dec qword ptr [rdi]",
    "neg byte ptr [rdi]", "neg word ptr [rdi]", "neg dword ptr [rdi]", "neg qword ptr [rdi]",
    "not byte ptr [rdi]", "not dword ptr [rdi]", "not qword ptr [rdi]",
    "lock add [rdi], eax", "lock inc dword ptr [rdi]",
}

const AF: u64 = levelhead::x86::rflags::AF;

same_as_the_cpu! {
    logic, undefined AF,
    "and [rdi], eax", "and rax, [rdi]", "and dword ptr [rdi], -2", "and byte ptr [rdi], 0x0f", "and r9b, [rdi]",
    "or [rdi], eax", "or rax, [rdi]", "or dword ptr [rdi], 0x10000", "or [rdi], dh", "or word ptr [rdi], -1",
    "xor [rdi], eax", "xor rax, [rdi]", "xor byte ptr [rdi], 1", "xor qword ptr [rdi], -1",
    "test [rdi], eax", "test [rdi], rcx", "test dword ptr [rdi], 0x1000", "test byte ptr [rdi], 0x80",
    "lock or dword ptr [rdi], 1",
}

const ALL_BUT_CF: u64 = STATUS & !levelhead::x86::rflags::CF;

same_as_the_cpu! {
    bit_tests, undefined ALL_BUT_CF,
    "bt dword ptr [rdi], 12", "bt qword ptr [rdi], 63", "bt word ptr [rdi], 35",
    "bts dword ptr [rdi], 16", "btr dword ptr [rdi], 31", "btc qword ptr [rdi], 32", "lock bts word ptr [rdi], 0",
}
