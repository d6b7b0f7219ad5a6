//! The wrapper around iced-x86's decoder, and the instructions that exit by themselves.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register as Iced};

use crate::emulate::fetch::Code;
use crate::vcpu::{CodeSize, Gpr, Width};

/// Why bytes are not the operation the caller needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The instruction continues where no byte could be read.
    Truncated,
    /// No instruction.
    Invalid,
    /// An instruction, but not the one the exit was for: the guest's memory changed in between. Letting the guest
    /// run again from the same RIP is right.
    Changed,
    /// An instruction that is not emulated.
    Unsupported,
}

/// Decodes one instruction.
pub(super) fn decode(code: &Code, size: CodeSize) -> Result<Instruction, DecodeError> {
    let bitness = match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    // AMD: LOCK MOV CR0 is MOV CR8 there.
    let mut decoder = Decoder::try_with_ip(bitness, code.bytes(), 0, DecoderOptions::AMD)
        .map_err(|_| DecodeError::Invalid)?;
    let instruction = decoder.decode();
    if !instruction.is_invalid() {
        Ok(instruction)
    } else if decoder.last_error() == DecoderError::NoMoreBytes && code.bytes().len() < Code::MAX_BYTES {
        Err(DecodeError::Truncated)
    } else {
        Err(DecodeError::Invalid)
    }
}

/// The length of a decoded instruction in bytes, 1 to 15.
pub(super) fn length(instruction: &Instruction) -> u8 {
    // At most 15 by construction of `Code`.
    instruction.len() as u8
}

/// Builds iced-x86's tables, which are allocated on first use and kept for ever.
///
/// To be called once while the heap is open. The tables are built all at once, whatever is decoded first; a
/// legacy, a two-byte and a three-byte opcode are decoded in each mode all the same, so that a decoder that one
/// day builds them piecemeal is warmed too.
pub fn warm_up() {
    for size in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
        for bytes in [&[0x8b, 0x07][..], &[0x0f, 0xb6, 0x07], &[0x0f, 0x38, 0xf0, 0x07], &[0xf3, 0xab]] {
            let _length = decode(&Code::from_bytes(bytes), size).map(|instruction| length(&instruction));
        }
    }
}

/// Instructions that exit because of what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the architecture's")]
pub enum Intercepted {
    Cpuid,
    Rdmsr,
    Wrmsr,
    Hlt,
    Vmmcall,
    /// Also WBNOINVD, which exits as WBINVD does, and INVD, which QEMU gives the exit of WBINVD.
    Wbinvd,
    Rdpmc,
}

impl Intercepted {
    /// The form without prefixes: its bytes as a number, the first in the lowest place, and how many they are. The
    /// last byte is never zero.
    const fn encoding(self) -> (u32, u8) {
        match self {
            Self::Cpuid => (0xa2_0f, 2),
            Self::Rdmsr => (0x32_0f, 2),
            Self::Wrmsr => (0x30_0f, 2),
            Self::Hlt => (0xf4, 1),
            Self::Vmmcall => (0xd9_01_0f, 3),
            Self::Wbinvd => (0x09_0f, 2),
            Self::Rdpmc => (0x33_0f, 2),
        }
    }

    /// Whether privilege level 0 alone gets as far as the exit: anybody else's #GP comes before it (APM2 15.9).
    #[inline]
    pub const fn is_privileged(self) -> bool {
        match self {
            Self::Rdmsr | Self::Wrmsr | Self::Hlt | Self::Wbinvd => true,
            Self::Cpuid | Self::Vmmcall | Self::Rdpmc => false,
        }
    }

    const fn is(self, mnemonic: Mnemonic) -> bool {
        matches!(
            (self, mnemonic),
            (Self::Cpuid, Mnemonic::Cpuid)
                | (Self::Rdmsr, Mnemonic::Rdmsr)
                | (Self::Wrmsr, Mnemonic::Wrmsr)
                | (Self::Hlt, Mnemonic::Hlt)
                | (Self::Vmmcall, Mnemonic::Vmmcall)
                | (Self::Wbinvd, Mnemonic::Wbinvd | Mnemonic::Wbnoinvd | Mnemonic::Invd)
                | (Self::Rdpmc, Mnemonic::Rdpmc)
        )
    }
}

/// The length of the instruction that exited, in bytes, by its first four, of which the first is in the lowest place; `None` if
/// they do not tell.
///
/// Compilers and assemblers write these instructions without prefixes: that form, which is the same in every mode,
/// is recognised by its bytes, and only another one costs a decode ([`intercepted_length`]).
#[inline(always)]
pub const fn plain_length(first: u32, what: Intercepted) -> Option<u8> {
    let (number, length) = what.encoding();
    // Bytes that could not be read are zero, which the last one of an encoding is not.
    if (first ^ number) << (32 - 8 * length as u32) == 0 { Some(length) } else { None }
}

/// The length of the instruction that exited, in bytes.
pub fn intercepted_length(code: &Code, size: CodeSize, what: Intercepted) -> Result<u8, DecodeError> {
    if let Some(length) = plain_length(code.as_u128() as u32, what) {
        return Ok(length);
    }
    let instruction = decode(code, size)?;
    if what.is(instruction.mnemonic()) { Ok(length(&instruction)) } else { Err(DecodeError::Changed) }
}

/// MOV to CR8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr8Write {
    /// The register that holds the value; a value above 15 is #GP(0).
    pub source: Gpr,
    /// In bytes.
    pub length: u8,
}

/// The operand of the MOV to CR8 that exited; also in its form for 32-bit code, LOCK MOV to CR0.
pub fn cr8_write(code: &Code, size: CodeSize) -> Result<Cr8Write, DecodeError> {
    let instruction = decode(code, size)?;
    if instruction.mnemonic() != Mnemonic::Mov || instruction.op0_register() != Iced::CR8 {
        return Err(DecodeError::Changed);
    }
    let (source, _) = general_purpose(instruction.op1_register()).ok_or(DecodeError::Changed)?;
    Ok(Cr8Write { source, length: length(&instruction) })
}

/// A segment register that memory is addressed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the architecture's")]
pub enum Segment {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// What the exit of a string port access does not tell: where its memory operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// The segment of the memory operand: ES for INS, DS or an override for OUTS.
    pub segment: Segment,
    /// How much of RDI (INS) or RSI (OUTS), and of RCX with a REP prefix, counts.
    pub address: Width,
    /// In bytes.
    pub length: u8,
}

/// The memory operand of the INS or OUTS that exited.
pub fn string_io(code: &Code, size: CodeSize) -> Result<StringIo, DecodeError> {
    let instruction = decode(code, size)?;
    let kind = match instruction.mnemonic() {
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => instruction.op0_kind(),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => instruction.op1_kind(),
        _ => return Err(DecodeError::Changed),
    };
    let address = string_address(kind).ok_or(DecodeError::Changed)?;
    let segment = match kind {
        OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => Segment::Es,
        _ => match instruction.memory_segment() {
            Iced::ES => Segment::Es,
            Iced::CS => Segment::Cs,
            Iced::SS => Segment::Ss,
            Iced::FS => Segment::Fs,
            Iced::GS => Segment::Gs,
            _ => Segment::Ds,
        },
    };
    Ok(StringIo { segment, address, length: length(&instruction) })
}

/// The address size of a string instruction's operand.
pub(super) const fn string_address(kind: OpKind) -> Option<Width> {
    match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Width::Word),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Width::Dword),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Width::Qword),
        _ => None,
    }
}

/// The part of a general-purpose register an operand names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The lowest bytes.
    Low(Width),
    /// Bits 15:8: AH, CH, DH, BH.
    High,
}

/// iced's register as ours; `None` for anything but a general-purpose register.
pub(super) fn general_purpose(register: Iced) -> Option<(Gpr, Part)> {
    let number = register as usize;
    let within = |first: Iced, last: Iced| {
        (first as usize..=last as usize).contains(&number).then(|| number - first as usize)
    };
    let (index, part) = if let Some(index) = within(Iced::EAX, Iced::R15D) {
        (index, Part::Low(Width::Dword))
    } else if let Some(index) = within(Iced::RAX, Iced::R15) {
        (index, Part::Low(Width::Qword))
    } else if let Some(index) = within(Iced::AX, Iced::R15W) {
        (index, Part::Low(Width::Word))
    } else if let Some(index) = within(Iced::AL, Iced::BL) {
        (index, Part::Low(Width::Byte))
    } else if let Some(index) = within(Iced::AH, Iced::BH) {
        (index, Part::High)
    } else {
        // SPL, BPL, SIL, DIL, R8L to R15L: encodings 4 to 15.
        (within(Iced::SPL, Iced::R15L)? + 4, Part::Low(Width::Byte))
    };
    Some((*Gpr::ALL.get(index)?, part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZES: [CodeSize; 3] = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64];

    #[test]
    fn the_fast_path_agrees_with_the_decoder() {
        use Intercepted::{Cpuid, Hlt, Rdmsr, Rdpmc, Vmmcall, Wbinvd, Wrmsr};
        for what in [Cpuid, Rdmsr, Wrmsr, Hlt, Vmmcall, Wbinvd, Rdpmc] {
            for size in SIZES {
                let (number, bytes) = what.encoding();
                let code = Code::from_bytes(number.to_le_bytes().get(..usize::from(bytes)).unwrap());
                let instruction = decode(&code, size).unwrap();
                assert!(what.is(instruction.mnemonic()), "{what:?}");
                assert_eq!(intercepted_length(&code, size, what), Ok(length(&instruction)));
                for other in [Cpuid, Rdmsr, Wrmsr, Hlt, Vmmcall, Wbinvd, Rdpmc] {
                    let same = other == what;
                    assert_eq!(intercepted_length(&code, size, other).is_ok(), same, "{what:?} {other:?}");
                }
            }
        }
    }

    #[test]
    fn prefixes_are_counted() {
        let length =
            |bytes: &[u8], what| intercepted_length(&Code::from_bytes(bytes), CodeSize::Bits64, what);
        assert_eq!(length(&[0x48, 0x0f, 0x30], Intercepted::Wrmsr), Ok(3)); // rex.w wrmsr
        assert_eq!(length(&[0x66, 0x66, 0x0f, 0xa2], Intercepted::Cpuid), Ok(4)); // data16 data16 cpuid
        assert_eq!(length(&[0xf3, 0x0f, 0x09], Intercepted::Wbinvd), Ok(3)); // wbnoinvd
        assert_eq!(length(&[0x0f, 0x08], Intercepted::Wbinvd), Ok(2)); // invd
        assert_eq!(length(&[0x2e, 0xf4], Intercepted::Hlt), Ok(2)); // cs hlt
        assert_eq!(length(&[0x90], Intercepted::Hlt), Err(DecodeError::Changed));
        assert_eq!(length(&[0x0f], Intercepted::Cpuid), Err(DecodeError::Truncated));
        assert_eq!(length(&[], Intercepted::Cpuid), Err(DecodeError::Truncated));
        assert_eq!(length(&[0x66; 15], Intercepted::Cpuid), Err(DecodeError::Invalid));
        assert_eq!(length(&[0x0f, 0x0b], Intercepted::Cpuid), Err(DecodeError::Changed)); // ud2
    }

    #[test]
    fn mov_to_cr8() {
        let write = |bytes: &[u8], size| cr8_write(&Code::from_bytes(bytes), size);
        let cr8 = |source, length| Ok(Cr8Write { source, length });
        // mov cr8, rax; mov cr8, rdi; mov cr8, r9.
        assert_eq!(write(&[0x44, 0x0f, 0x22, 0xc0], CodeSize::Bits64), cr8(Gpr::Rax, 4));
        assert_eq!(write(&[0x44, 0x0f, 0x22, 0xc7], CodeSize::Bits64), cr8(Gpr::Rdi, 4));
        assert_eq!(write(&[0x45, 0x0f, 0x22, 0xc1], CodeSize::Bits64), cr8(Gpr::R9, 4));
        // lock mov cr0, ecx
        assert_eq!(write(&[0xf0, 0x0f, 0x22, 0xc1], CodeSize::Bits32), cr8(Gpr::Rcx, 4));
        // mov cr0, rax; mov rax, cr8.
        assert_eq!(write(&[0x0f, 0x22, 0xc0], CodeSize::Bits64), Err(DecodeError::Changed));
        assert_eq!(write(&[0x44, 0x0f, 0x20, 0xc0], CodeSize::Bits64), Err(DecodeError::Changed));
    }

    #[test]
    fn string_port_operands() {
        let io = |bytes: &[u8], size| string_io(&Code::from_bytes(bytes), size);
        let found = |segment, address, length| Ok(StringIo { segment, address, length });
        // rep outsb
        assert_eq!(io(&[0xf3, 0x6e], CodeSize::Bits64), found(Segment::Ds, Width::Qword, 2));
        // rep outsd; addr32 outsb; outsb; addr32 outsb.
        assert_eq!(io(&[0xf3, 0x6f], CodeSize::Bits32), found(Segment::Ds, Width::Dword, 2));
        assert_eq!(io(&[0x67, 0x6e], CodeSize::Bits64), found(Segment::Ds, Width::Dword, 2));
        assert_eq!(io(&[0x6e], CodeSize::Bits16), found(Segment::Ds, Width::Word, 1));
        assert_eq!(io(&[0x67, 0x6e], CodeSize::Bits16), found(Segment::Ds, Width::Dword, 2));
        // fs outsb; es insb, where an override has no effect.
        assert_eq!(io(&[0x64, 0x6e], CodeSize::Bits64), found(Segment::Fs, Width::Qword, 2));
        assert_eq!(io(&[0x64, 0x6c], CodeSize::Bits32), found(Segment::Es, Width::Dword, 2));
        assert_eq!(io(&[0xee], CodeSize::Bits64), Err(DecodeError::Changed)); // out dx, al
    }

    #[test]
    fn registers_of_every_size() {
        use Iced::{AH, AL, BH, BL, DIL, EAX, R8D, R8L, R8W, R15, R15D, R15L, R15W, RAX, RSP, SPL};
        let found = |register| general_purpose(register).unwrap();
        assert_eq!(found(AL), (Gpr::Rax, Part::Low(Width::Byte)));
        assert_eq!(found(BL), (Gpr::Rbx, Part::Low(Width::Byte)));
        assert_eq!(found(AH), (Gpr::Rax, Part::High));
        assert_eq!(found(BH), (Gpr::Rbx, Part::High));
        assert_eq!(found(SPL), (Gpr::Rsp, Part::Low(Width::Byte)));
        assert_eq!(found(DIL), (Gpr::Rdi, Part::Low(Width::Byte)));
        assert_eq!(found(R8L), (Gpr::R8, Part::Low(Width::Byte)));
        assert_eq!(found(R15L), (Gpr::R15, Part::Low(Width::Byte)));
        assert_eq!(found(R8W), (Gpr::R8, Part::Low(Width::Word)));
        assert_eq!(found(R15W), (Gpr::R15, Part::Low(Width::Word)));
        assert_eq!(found(EAX), (Gpr::Rax, Part::Low(Width::Dword)));
        assert_eq!(found(R8D), (Gpr::R8, Part::Low(Width::Dword)));
        assert_eq!(found(R15D), (Gpr::R15, Part::Low(Width::Dword)));
        assert_eq!(found(RAX), (Gpr::Rax, Part::Low(Width::Qword)));
        assert_eq!(found(RSP), (Gpr::Rsp, Part::Low(Width::Qword)));
        assert_eq!(found(R15), (Gpr::R15, Part::Low(Width::Qword)));
        for other in [Iced::None, Iced::CS, Iced::EIP, Iced::RIP, Iced::CR0, Iced::XMM0, Iced::ST0] {
            assert_eq!(general_purpose(other), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_length_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..20), size in 0usize..3) {
            let code = Code::from_bytes(&bytes);
            if let Ok(instruction) = decode(&code, SIZES[size]) {
                prop_assert!((1..=15).contains(&instruction.len()));
                prop_assert!(instruction.len() <= code.bytes().len());
            }
            let _answers = (cr8_write(&code, SIZES[size]), string_io(&code, SIZES[size]));
        }
    }
}
