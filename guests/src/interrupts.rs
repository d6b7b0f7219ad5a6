//! Vectors: the descriptor tables, handlers in Rust, exception reports, and faults that a test provokes.
//!
//! Handlers run with interrupts off and on stacks of their own: precompiled `core` has functions that keep data
//! below the stack pointer (the red zone), where an interrupt on the same stack would write.
#![expect(unsafe_code, reason = "descriptor tables and assembly")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::CpuCell;
use crate::fail;
use crate::smp::MAX_CPUS;

core::arch::global_asm!(include_str!("interrupts.S"));

/// Selectors in `boot.S`'s table.
pub const KERNEL_CODE: u16 = 0x08;
/// See [`KERNEL_CODE`].
pub const KERNEL_DATA: u16 = 0x10;
/// User data, with the requested privilege level 3.
pub const USER_DATA: u16 = 0x18 | 3;
/// User code, with the requested privilege level 3.
pub const USER_CODE: u16 = 0x20 | 3;
const TASK_STATE: u16 = 0x28;

/// First vector that is not an exception.
const FIRST_INTERRUPT: u64 = 32;

/// What an interrupt saved: by `interrupts.S` down to `vector`, by the CPU from `error_code` on (APM2 8.9.3).
#[expect(missing_docs, reason = "the names are the registers'")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// An interrupt handler. It must send its own EOI.
pub type Handler = fn(&mut Frame);

static HANDLERS: [CpuCell<Option<Handler>>; 256] = [const { CpuCell::new(None) }; 256];

/// Has `handler` called for `vector` from now on.
pub fn handle(vector: u8, handler: Handler) {
    if let Some(cell) = HANDLERS.get(usize::from(vector)) {
        cell.set(Some(handler));
    }
}

#[unsafe(no_mangle)]
extern "C" fn interrupt_dispatch(frame: &mut Frame) {
    let handler =
        usize::try_from(frame.vector).ok().and_then(|vector| HANDLERS.get(vector)).map(CpuCell::get);
    if let Some(Some(handler)) = handler {
        handler(frame);
    } else if frame.vector >= FIRST_INTERRUPT {
        fail!("unexpected interrupt, vector {:#x}, at {:#x}", frame.vector, frame.rip);
    } else {
        exception(frame);
    }
}

/// Where to go on after a fault that [`attempt!`](crate::attempt) provokes; 0 if none is expected.
#[doc(hidden)]
pub static RESUME: AtomicU64 = AtomicU64::new(0);
/// The vector of the last provoked fault; `NO_FAULT` if there was none.
static FAULT: AtomicU64 = AtomicU64::new(NO_FAULT);
const NO_FAULT: u64 = u64::MAX;

/// Runs one instruction that may fault, with the operands of `asm!`, and returns `Result<(), u8>`: the vector of
/// the exception it raised. Needs `unsafe` around it.
#[macro_export]
macro_rules! attempt {
    ($instruction:literal $(, $($operand:tt)*)?) => {{
        ::core::arch::asm!(
            "lea {resume_at}, [rip + 2f]",
            "mov [rip + {resume}], {resume_at}",
            $instruction,
            "2:",
            "mov qword ptr [rip + {resume}], 0",
            resume_at = out(reg) _,
            resume = sym $crate::interrupts::RESUME,
            $($($operand)*)?
        );
        $crate::interrupts::provoked_fault()
    }};
}

/// Takes the fault that [`attempt!`](crate::attempt) met.
#[doc(hidden)]
pub fn provoked_fault() -> Result<(), u8> {
    match u8::try_from(FAULT.swap(NO_FAULT, Ordering::Relaxed)) {
        Ok(vector) => Err(vector),
        Err(_) => Ok(()),
    }
}

fn exception(frame: &mut Frame) {
    let resume = RESUME.swap(0, Ordering::Relaxed);
    if resume != 0 {
        FAULT.store(frame.vector, Ordering::Relaxed);
        frame.rip = resume;
        return;
    }
    const NAMES: [&str; 20] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP",
        "#PF", "15", "#MF", "#AC", "#MC", "#XF",
    ];
    let name = usize::try_from(frame.vector).ok().and_then(|vector| NAMES.get(vector)).unwrap_or(&"?");
    let cr2: u64;
    // SAFETY: CR2 is read at CPL 0, which changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
    fail!(
        "exception {} ({name}), error code {:#x}, at {:#x}, stack {:#x}, CR2 {cr2:#x}",
        frame.vector,
        frame.error_code,
        frame.rip,
        frame.rsp
    )
}

/// A gate of the interrupt descriptor table (APM2 4.8.4).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

impl Gate {
    const EMPTY: Self = Self { low: 0, high: 0 };

    /// A present interrupt gate to `target` on interrupt stack `stack` (1 to 7), for software interrupts up to
    /// privilege level `level`.
    fn new(target: u64, stack: u8, level: u8) -> Self {
        const INTERRUPT_GATE: u64 = 0x8e00 << 32;
        Self {
            low: target & 0xffff
                | u64::from(KERNEL_CODE) << 16
                | u64::from(stack) << 32
                | INTERRUPT_GATE
                | u64::from(level) << 45
                | (target >> 16 & 0xffff) << 48,
            high: target >> 32,
        }
    }
}

/// The 64-bit task state segment (APM2 12.2.5), of which only the interrupt stacks are used.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
struct TaskState {
    reserved_before: u32,
    privilege_stacks: [u64; 3],
    reserved_between: u64,
    interrupt_stacks: [u64; 7],
    reserved_after: [u16; 5],
    io_map_base: u16,
}

const _: () = assert!(size_of::<TaskState>() == 104);

/// Room for a stack.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack([u8; 16 * 1024]);

impl Stack {
    pub(crate) const EMPTY: Self = Self([0; 16 * 1024]);
}

impl CpuCell<Stack> {
    /// The address behind the stack, where it begins to grow down.
    pub(crate) fn top(&self) -> u64 {
        (core::ptr::from_ref(self).expose_provenance() + size_of::<Stack>()) as u64
    }
}

/// Interrupt stacks, by number: interrupts, exceptions, double faults.
const INTERRUPT_STACK: u8 = 1;
const EXCEPTION_STACK: u8 = 2;
const DOUBLE_FAULT_STACK: u8 = 3;
const DOUBLE_FAULT: u8 = 8;

/// The stacks of each CPU.
static STACKS: [[CpuCell<Stack>; 3]; MAX_CPUS] =
    [const { [const { CpuCell::new(Stack::EMPTY) }; 3] }; MAX_CPUS];
static TABLE: [CpuCell<Gate>; 256] = [const { CpuCell::new(Gate::EMPTY) }; 256];
/// Each CPU's task state.
static TASKS: [CpuCell<TaskState>; MAX_CPUS] = [const {
    CpuCell::new(TaskState {
        reserved_before: 0,
        privilege_stacks: [0; 3],
        reserved_between: 0,
        interrupt_stacks: [0; 7],
        reserved_after: [0; 5],
        io_map_base: 104,
    })
}; MAX_CPUS];
/// The segment descriptors of the CPUs but 0, whose are `boot.S`'s.
static SEGMENTS: [[CpuCell<u64>; 7]; MAX_CPUS] = [const { [const { CpuCell::new(0) }; 7] }; MAX_CPUS];

unsafe extern "C" {
    /// The stub of vector 0; the others follow at 16 bytes' distance.
    static interrupt_stubs: u8;
    /// `boot.S`'s descriptor table, with room for the task state segment at its end.
    static boot_gdt: [CpuCell<u64>; 7];
}

/// Sets a raw gate: `target` is entered with nothing saved, on the interrupt stack.
///
/// # Safety
/// `target` must be code that keeps every register it was not given, and ends with IRETQ.
pub unsafe fn set_raw_gate(vector: u8, target: u64) {
    set_gate(vector, Gate::new(target, INTERRUPT_STACK, 0));
}

/// Has `vector` handled on the stack of interrupts, even if it is that of an exception.
pub fn on_interrupt_stack(vector: u8) {
    set_gate(vector, Gate::new(stub(vector), INTERRUPT_STACK, 0));
}

/// The address of the first instruction for `vector`.
pub fn entry_of(vector: u8) -> u64 {
    stub(vector)
}

/// Lets user mode raise `vector` by the INT instruction.
pub fn open_to_user_mode(vector: u8) {
    set_gate(vector, Gate::new(stub(vector), INTERRUPT_STACK, 3));
}

fn set_gate(vector: u8, gate: Gate) {
    if let Some(cell) = TABLE.get(usize::from(vector)) {
        cell.set(gate);
    }
}

fn stub(vector: u8) -> u64 {
    (&raw const interrupt_stubs).addr() as u64 + u64::from(vector) * 16
}

/// Installs the tables. Exceptions are reported from here on.
pub(crate) fn init() {
    for vector in 0..=u8::MAX {
        let stack = match vector {
            DOUBLE_FAULT => DOUBLE_FAULT_STACK,
            0..32 => EXCEPTION_STACK,
            _ => INTERRUPT_STACK,
        };
        set_gate(vector, Gate::new(stub(vector), stack, 0));
    }

    // SAFETY: the table is `boot.S`'s and lives for ever.
    load(0, unsafe { &boot_gdt });
}

/// Installs the tables on a CPU that CPU 0 started.
pub(crate) fn init_other(cpu: usize) {
    let Some(segments) = SEGMENTS.get(cpu) else { fail!("there is no room for CPU {cpu}") };
    // SAFETY: the table is `boot.S`'s; what it holds beside CPU 0's task state never changes.
    for (own, first) in segments.iter().zip(unsafe { &boot_gdt }) {
        own.set(first.get());
    }
    let pointer = TablePointer {
        limit: size_of_val(segments) as u16 - 1,
        base: core::ptr::from_ref(segments).expose_provenance() as u64,
    };
    // SAFETY: the same segments as in the table that is in use, and the table lives for ever.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const pointer, options(nostack)) };
    load(cpu, segments);
}

/// Gives the running CPU, which is number `cpu`, its task state, described in `segments`, and the table of gates.
fn load(cpu: usize, segments: &[CpuCell<u64>; 7]) {
    let (Some(task), Some(stacks)) = (TASKS.get(cpu), STACKS.get(cpu)) else {
        fail!("there is no room for CPU {cpu}")
    };
    let mut state = task.get();
    let mut tops = [0; 7];
    for (top, stack) in tops.iter_mut().zip(stacks) {
        *top = stack.top();
    }
    state.interrupt_stacks = tops;
    task.set(state);

    // A present, available 64-bit task state segment (APM2 4.8.3).
    let base = core::ptr::from_ref(task).expose_provenance() as u64;
    let limit = size_of::<TaskState>() as u64 - 1;
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    let [.., descriptor_low, descriptor_high] = segments;
    descriptor_low.set(low);
    descriptor_high.set(base >> 32);

    let pointer = TablePointer {
        limit: size_of_val(&TABLE) as u16 - 1,
        base: (&raw const TABLE).expose_provenance() as u64,
    };
    // SAFETY: both tables are complete, and live for ever; the descriptor of the task state is new.
    unsafe {
        asm!("lidt [{}]", "ltr {:x}", in(reg) &raw const pointer, in(reg) TASK_STATE, options(nostack));
    }
}

/// Raises an exception that is looked up in the table of `limit` bytes, less one, at `base`, in which there is none for it.
pub fn triple_fault_by(limit: u16, base: u64) {
    let table = TablePointer { limit, base };
    // SAFETY: the exception ends the guest: no handler and no Rust code runs after it.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const table) };
}

/// The operand of LIDT (APM2 4.6.1).
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}
