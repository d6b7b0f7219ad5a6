//! Instructions that touch a device, as operations the run loop can carry out.
//!
//! The run loop knows the guest-physical address from the exit; what it lacks is what to do there. The three
//! steps are always the same: read from the device if the operation [reads](MmioOp::reads), let
//! [`MmioOp::execute`] compute on registers and flags, write what it returns. Instructions with a second memory
//! operand (PUSH, POP, MOVS, CMPS) and SSE moves are not emulated: drivers do not use them on device registers.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use crate::emulate::alu::{Binary, Unary};
use crate::emulate::fetch::Code;
use crate::emulate::insn::{DecodeError, Part, decode, general_purpose, length, string_address};
use crate::vcpu::{CodeSize, Gpr, GuestRegs, Width};
use crate::x86::rflags::DF;

/// A register operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register {
    gpr: Gpr,
    part: Part,
}

impl Register {
    const fn low(gpr: Gpr, width: Width) -> Self {
        Self { gpr, part: Part::Low(width) }
    }

    fn read(self, regs: &GuestRegs) -> u64 {
        match self.part {
            Part::Low(width) => regs[self.gpr] & width.mask(),
            Part::High => regs[self.gpr] >> 8 & 0xff,
        }
    }

    /// Writes what fits: 32-bit writes clear the upper half, smaller ones leave the rest (APM1 3.1.2).
    fn write(self, regs: &mut GuestRegs, value: u64) {
        let whole = &mut regs[self.gpr];
        *whole = match self.part {
            Part::Low(Width::Qword) => value,
            Part::Low(Width::Dword) => value & 0xffff_ffff,
            Part::Low(width) => *whole & !width.mask() | value & width.mask(),
            Part::High => *whole & !0xff00 | (value & 0xff) << 8,
        };
    }
}

/// The operand that is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Register(Register),
    Immediate(u64),
}

impl Operand {
    fn read(self, regs: &GuestRegs) -> u64 {
        match self {
            Self::Register(register) => register.read(regs),
            Self::Immediate(value) => value,
        }
    }
}

/// STOS and LODS: the pointer that moves and whether RCX counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StringStep {
    pointer: Register,
    count: Option<Register>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// MOV, MOVZX, MOVSX and MOVSXD from memory.
    Load { to: Register, sign_extend: bool },
    /// MOV to memory.
    Store { from: Operand },
    /// Memory is the first operand.
    Memory { op: Binary, with: Operand },
    /// A register is the first operand.
    Register { op: Binary, to: Register },
    /// Memory is the only operand.
    Single { op: Unary },
    /// XCHG.
    Exchange { with: Register },
    /// STOS.
    Fill(StringStep),
    /// LODS.
    Take(StringStep),
}

/// One instruction that accesses memory once, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioOp {
    kind: Kind,
    width: Width,
    length: u8,
}

/// What is left to do after [`MmioOp::execute`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The value to write, at the address of the exit, if the operation writes.
    pub store: Option<u64>,
    /// How far RIP moves: the instruction's length, or 0 for a repeated string instruction with rounds left, which
    /// the guest then executes again.
    pub advance: u8,
}

impl MmioOp {
    /// Decodes the instruction at the start of `code`.
    pub fn decode(code: &Code, size: CodeSize) -> Result<Self, DecodeError> {
        let instruction = decode(code, size)?;
        let length = length(&instruction);
        if let Some((kind, width)) = string(&instruction) {
            return Ok(Self { kind, width, length });
        }
        let unsupported = DecodeError::Unsupported;
        let width = integer(instruction.memory_size()).ok_or(unsupported)?;
        let kind = if instruction.op0_kind() == OpKind::Memory {
            memory_first(&instruction, width)
        } else if instruction.op1_kind() == OpKind::Memory {
            register_first(&instruction)
        } else {
            None
        };
        Ok(Self { kind: kind.ok_or(unsupported)?, width, length })
    }

    /// How much memory is accessed.
    #[inline]
    pub const fn width(&self) -> Width {
        self.width
    }

    /// The instruction's length in bytes, 1 to 15.
    #[inline]
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Whether the operation needs the value at the address.
    #[inline]
    pub const fn reads(&self) -> bool {
        !matches!(self.kind, Kind::Store { .. } | Kind::Fill(_))
    }

    /// Whether the operation writes to the address.
    pub const fn writes(&self) -> bool {
        match self.kind {
            Kind::Store { .. } | Kind::Fill(_) | Kind::Single { .. } | Kind::Exchange { .. } => true,
            Kind::Memory { op, .. } => op.has_result(),
            Kind::Load { .. } | Kind::Register { .. } | Kind::Take(_) => false,
        }
    }

    /// Whether it is a plain store: but for RIP, nothing of the guest changes beside the memory.
    #[inline]
    pub const fn is_store(&self) -> bool {
        matches!(self.kind, Kind::Store { .. })
    }

    /// Carries the operation out on the guest's registers and flags.
    ///
    /// `loaded` is what the device returned, or anything if the operation does not [read](MmioOp::reads); bits
    /// beyond the width are ignored. A write returned in the outcome is already cut to the width.
    #[inline]
    pub fn execute(&self, regs: &mut GuestRegs, rflags: &mut u64, loaded: u64) -> Outcome {
        let width = self.width;
        let loaded = loaded & width.mask();
        let mut advance = self.length;
        let store = match self.kind {
            Kind::Store { from } => Some(from.read(regs) & width.mask()),
            Kind::Load { to, sign_extend } => {
                to.write(regs, if sign_extend { width.sign_extend(loaded) } else { loaded });
                None
            }
            Kind::Memory { op, with } => {
                let (result, flags) = op.apply(loaded, with.read(regs), width, *rflags);
                *rflags = flags;
                op.has_result().then_some(result)
            }
            Kind::Register { op, to } => {
                let (result, flags) = op.apply(to.read(regs), loaded, width, *rflags);
                *rflags = flags;
                if op.has_result() {
                    to.write(regs, result);
                }
                None
            }
            Kind::Single { op } => {
                let (result, flags) = op.apply(loaded, width, *rflags);
                *rflags = flags;
                Some(result)
            }
            Kind::Exchange { with } => {
                let old = with.read(regs);
                with.write(regs, loaded);
                Some(old)
            }
            Kind::Fill(step) => {
                let value = regs[Gpr::Rax] & width.mask();
                self.step(step, regs, *rflags, &mut advance).then_some(value)
            }
            Kind::Take(step) => {
                if self.step(step, regs, *rflags, &mut advance) {
                    Register::low(Gpr::Rax, width).write(regs, loaded);
                }
                None
            }
        };
        Outcome { store, advance }
    }

    /// One round of a string instruction; `false` if its count was zero, so that it does nothing. (The CPU makes
    /// no access then, but the registers are the guest's.)
    fn step(&self, step: StringStep, regs: &mut GuestRegs, rflags: u64, advance: &mut u8) -> bool {
        if let Some(count) = step.count {
            let Some(left) = count.read(regs).checked_sub(1) else {
                return false;
            };
            count.write(regs, left);
            if left != 0 {
                *advance = 0;
            }
        }
        let bytes = self.width.bytes();
        let at = step.pointer.read(regs);
        let next = if rflags & DF == 0 { at.wrapping_add(bytes) } else { at.wrapping_sub(bytes) };
        step.pointer.write(regs, next);
        true
    }
}

/// The width of an integer operand.
const fn integer(size: MemorySize) -> Option<Width> {
    match size {
        MemorySize::UInt8 | MemorySize::Int8 => Some(Width::Byte),
        MemorySize::UInt16 | MemorySize::Int16 => Some(Width::Word),
        MemorySize::UInt32 | MemorySize::Int32 => Some(Width::Dword),
        MemorySize::UInt64 | MemorySize::Int64 => Some(Width::Qword),
        _ => None,
    }
}

/// STOS and LODS.
fn string(instruction: &Instruction) -> Option<(Kind, Width)> {
    let (width, fill) = match instruction.mnemonic() {
        Mnemonic::Stosb => (Width::Byte, true),
        Mnemonic::Stosw => (Width::Word, true),
        Mnemonic::Stosd => (Width::Dword, true),
        Mnemonic::Stosq => (Width::Qword, true),
        Mnemonic::Lodsb => (Width::Byte, false),
        Mnemonic::Lodsw => (Width::Word, false),
        Mnemonic::Lodsd => (Width::Dword, false),
        Mnemonic::Lodsq => (Width::Qword, false),
        _ => return None,
    };
    let (pointer, operand) =
        if fill { (Gpr::Rdi, instruction.op0_kind()) } else { (Gpr::Rsi, instruction.op1_kind()) };
    let address = string_address(operand)?;
    // Either prefix repeats: these instructions do not compare.
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let step = StringStep {
        pointer: Register::low(pointer, address),
        count: repeats.then_some(Register::low(Gpr::Rcx, address)),
    };
    Some((if fill { Kind::Fill(step) } else { Kind::Take(step) }, width))
}

const fn binary(mnemonic: Mnemonic) -> Option<Binary> {
    Some(match mnemonic {
        Mnemonic::Add => Binary::Add,
        Mnemonic::Or => Binary::Or,
        Mnemonic::Adc => Binary::Adc,
        Mnemonic::Sbb => Binary::Sbb,
        Mnemonic::And => Binary::And,
        Mnemonic::Sub => Binary::Sub,
        Mnemonic::Xor => Binary::Xor,
        Mnemonic::Cmp => Binary::Cmp,
        Mnemonic::Test => Binary::Test,
        Mnemonic::Bt => Binary::Bt,
        Mnemonic::Bts => Binary::Bts,
        Mnemonic::Btr => Binary::Btr,
        Mnemonic::Btc => Binary::Btc,
        _ => return None,
    })
}

fn memory_first(instruction: &Instruction, width: Width) -> Option<Kind> {
    let single = |op| Some(Kind::Single { op });
    match instruction.mnemonic() {
        Mnemonic::Inc => return single(Unary::Inc),
        Mnemonic::Dec => return single(Unary::Dec),
        Mnemonic::Not => return single(Unary::Not),
        Mnemonic::Neg => return single(Unary::Neg),
        _ => {}
    }
    let with = match instruction.op1_kind() {
        OpKind::Register => Operand::Register(register(instruction.op1_register())?),
        _ => Operand::Immediate(instruction.try_immediate(1).ok()? & width.mask()),
    };
    match (instruction.mnemonic(), with) {
        (Mnemonic::Mov | Mnemonic::Movnti, from) => Some(Kind::Store { from }),
        (Mnemonic::Xchg, Operand::Register(with)) => Some(Kind::Exchange { with }),
        // With a register the bit may lie outside the word that was accessed.
        (Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc, Operand::Register(_)) => None,
        (mnemonic, with) => Some(Kind::Memory { op: binary(mnemonic)?, with }),
    }
}

fn register_first(instruction: &Instruction) -> Option<Kind> {
    let to = register(instruction.op0_register())?;
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx => Some(Kind::Load { to, sign_extend: false }),
        Mnemonic::Movsx | Mnemonic::Movsxd => Some(Kind::Load { to, sign_extend: true }),
        // IMUL and others have a third operand or other rules, and are not in the list.
        mnemonic => Some(Kind::Register { op: binary(mnemonic)?, to }),
    }
}

fn register(register: iced_x86::Register) -> Option<Register> {
    general_purpose(register).map(|(gpr, part)| Register { gpr, part })
}

#[cfg(test)]
mod tests;
