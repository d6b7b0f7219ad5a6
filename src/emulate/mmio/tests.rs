use super::*;
use crate::x86::rflags::{AF, CF, OF, PF, SF, ZF};
use proptest::prelude::*;

const LOADED: u64 = 0x8877_6655_4433_2281;

/// Register n holds n in every byte, with the sign bits of byte 1 set: easy to recognise whatever part is used.
fn registers() -> GuestRegs {
    let mut regs = GuestRegs::new();
    for gpr in Gpr::ALL {
        regs[gpr] = (0x0101_0101_0101_0101 * (gpr as u64 + 0x10)) | 0x8000;
    }
    regs
}

struct Case {
    assembly: &'static str,
    bytes: &'static [u8],
    store: Option<u64>,
    change: Option<(Gpr, u64)>,
    /// Status flags afterwards; before, only CF is set.
    flags: u64,
}

macro_rules! case {
    ($assembly:literal, $bytes:expr, $store:expr, $change:expr) => {
        case!($assembly, $bytes, $store, $change, CF)
    };
    ($assembly:literal, $bytes:expr, $store:expr, $change:expr, $flags:expr) => {
        Case { assembly: $assembly, bytes: &$bytes, store: $store, change: $change, flags: $flags }
    };
}

/// 64-bit code; the bytes are an assembler's.
const CASES: &[Case] = &[
    case!("mov eax, [rdi+0xb0]", [0x8b, 0x87, 0xb0, 0, 0, 0], None, Some((Gpr::Rax, 0x4433_2281))),
    case!("mov rax, [rdi]", [0x48, 0x8b, 0x07], None, Some((Gpr::Rax, LOADED))),
    case!("mov ax, [rdi]", [0x66, 0x8b, 0x07], None, Some((Gpr::Rax, 0x1010_1010_1010_2281))),
    case!("mov al, [rdi]", [0x8a, 0x07], None, Some((Gpr::Rax, 0x1010_1010_1010_9081))),
    case!("mov ah, [rdi]", [0x8a, 0x27], None, Some((Gpr::Rax, 0x1010_1010_1010_8110))),
    case!("mov sil, [rdi]", [0x40, 0x8a, 0x37], None, Some((Gpr::Rsi, 0x1616_1616_1616_9681))),
    case!("mov r9d, [r8+rcx*4]", [0x45, 0x8b, 0x0c, 0x88], None, Some((Gpr::R9, 0x4433_2281))),
    case!("mov [rdi+0xb0], eax", [0x89, 0x87, 0xb0, 0, 0, 0], Some(0x1010_9010), None),
    case!("mov [rdi], r15", [0x4c, 0x89, 0x3f], Some(0x1f1f_1f1f_1f1f_9f1f), None),
    case!("mov [rdi], cx", [0x66, 0x89, 0x0f], Some(0x9111), None),
    case!("mov [rdi], bh", [0x88, 0x3f], Some(0x93), None),
    case!("mov [rdi], r10b", [0x44, 0x88, 0x17], Some(0x1a), None),
    case!("mov dword ptr [rdi+0xb0], 0", [0xc7, 0x87, 0xb0, 0, 0, 0, 0, 0, 0, 0], Some(0), None),
    case!("mov dword ptr [rdi], 0x80000001", [0xc7, 0x07, 0x01, 0, 0, 0x80], Some(0x8000_0001), None),
    case!("mov qword ptr [rdi], -2", [0x48, 0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff], Some(u64::MAX - 1), None),
    case!("mov word ptr [rdi], 0x1234", [0x66, 0xc7, 0x07, 0x34, 0x12], Some(0x1234), None),
    case!("mov byte ptr [rdi], 0x80", [0xc6, 0x07, 0x80], Some(0x80), None),
    case!(
        "mov eax, ds:0xfee000b0",
        [0xa1, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0],
        None,
        Some((Gpr::Rax, 0x4433_2281))
    ),
    case!("mov ds:0xfee000b0, eax", [0xa3, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0], Some(0x1010_9010), None),
    case!("movzx eax, byte ptr [rdi]", [0x0f, 0xb6, 0x07], None, Some((Gpr::Rax, 0x81))),
    case!("movzx rdx, byte ptr [rdi]", [0x48, 0x0f, 0xb6, 0x17], None, Some((Gpr::Rdx, 0x81))),
    case!(
        "movzx ax, byte ptr [rdi]",
        [0x66, 0x0f, 0xb6, 0x07],
        None,
        Some((Gpr::Rax, 0x1010_1010_1010_0081))
    ),
    case!("movsx eax, byte ptr [rdi]", [0x0f, 0xbe, 0x07], None, Some((Gpr::Rax, 0xffff_ff81))),
    case!("movsx rax, word ptr [rdi]", [0x48, 0x0f, 0xbf, 0x07], None, Some((Gpr::Rax, 0x2281))),
    case!("movsxd rax, dword ptr [rdi]", [0x48, 0x63, 0x07], None, Some((Gpr::Rax, 0x4433_2281))),
    case!("movnti [rdi], eax", [0x0f, 0xc3, 0x07], Some(0x1010_9010), None),
    case!("or dword ptr [rdi], 0x10000", [0x81, 0x0f, 0, 0, 1, 0], Some(0x4433_2281), None, PF),
    case!("or [rdi], eax", [0x09, 0x07], Some(0x5433_b291), None, 0),
    case!("or eax, [rdi]", [0x0b, 0x07], None, Some((Gpr::Rax, 0x5433_b291)), 0),
    case!("and dword ptr [rdi], -2", [0x83, 0x27, 0xfe], Some(0x4433_2280), None, 0),
    case!("and ecx, [rdi]", [0x23, 0x0f], None, Some((Gpr::Rcx, 0x0011_0001)), 0),
    case!("xor byte ptr [rdi], 1", [0x80, 0x37, 0x01], Some(0x80), None, SF),
    case!("add [rdi], rax", [0x48, 0x01, 0x07], Some(0x9887_7665_5443_b291), None, SF),
    case!("sub dword ptr [rdi], 1", [0x83, 0x2f, 0x01], Some(0x4433_2280), None, 0),
    case!("adc eax, [rdi]", [0x13, 0x07], None, Some((Gpr::Rax, 0x5443_b292)), 0),
    case!("sbb [rdi], al", [0x18, 0x07], Some(0x70), None, OF),
    case!("lock or dword ptr [rdi], 1", [0xf0, 0x83, 0x0f, 0x01], Some(0x4433_2281), None, PF),
    case!("test dword ptr [rdi], 0x1000", [0xf7, 0x07, 0, 0x10, 0, 0], None, None, ZF | PF),
    case!("cmp dword ptr [rdi], 5", [0x83, 0x3f, 0x05], None, None, AF),
    case!("cmp eax, [rdi]", [0x3b, 0x07], None, None, CF | SF | AF),
    case!("xchg [rdi], eax", [0x87, 0x07], Some(0x1010_9010), Some((Gpr::Rax, 0x4433_2281))),
    case!("xchg [rdi], ah", [0x86, 0x27], Some(0x90), Some((Gpr::Rax, 0x1010_1010_1010_8110))),
    case!("inc dword ptr [rdi]", [0xff, 0x07], Some(0x4433_2282), None, CF | PF),
    case!("dec byte ptr [rdi]", [0xfe, 0x0f], Some(0x80), None, CF | SF),
    case!("not word ptr [rdi]", [0x66, 0xf7, 0x17], Some(0xdd7e), None),
    case!("neg qword ptr [rdi]", [0x48, 0xf7, 0x1f], Some(0x7788_99aa_bbcc_dd7f), None, CF | AF),
    case!("bt dword ptr [rdi], 12", [0x0f, 0xba, 0x27, 12], None, None, 0),
    case!("bts dword ptr [rdi], 16", [0x0f, 0xba, 0x2f, 16], Some(0x4433_2281), None, CF),
    case!("btr dword ptr [rdi], 16", [0x0f, 0xba, 0x37, 16], Some(0x4432_2281), None, CF),
    case!("btc dword ptr [rdi], 35", [0x0f, 0xba, 0x3f, 35], Some(0x4433_2289), None, 0),
    case!("stosd", [0xab], Some(0x1010_9010), Some((Gpr::Rdi, 0x1717_1717_1717_971b))),
    case!("stosb", [0xaa], Some(0x10), Some((Gpr::Rdi, 0x1717_1717_1717_9718))),
    case!("addr32 stosd", [0x67, 0xab], Some(0x1010_9010), Some((Gpr::Rdi, 0x1717_971b))),
];

#[test]
fn what_each_instruction_does() {
    for case in CASES {
        let op = MmioOp::decode(&Code::from_bytes(case.bytes), CodeSize::Bits64).expect(case.assembly);
        let (mut regs, mut flags) = (registers(), 0x202 | CF);
        let outcome = op.execute(&mut regs, &mut flags, LOADED);
        let mut expected = registers();
        if let Some((gpr, value)) = case.change {
            expected[gpr] = value;
        }
        assert_eq!(outcome.store, case.store, "{}", case.assembly);
        assert_eq!(usize::from(outcome.advance), case.bytes.len(), "{}", case.assembly);
        assert_eq!(regs, expected, "{}", case.assembly);
        assert_eq!(flags, 0x202 | case.flags, "{}", case.assembly);
        assert_eq!(op.writes(), case.store.is_some(), "{}", case.assembly);
        let (mut other, mut other_flags) = (registers(), 0x202 | CF);
        let repeated = op.execute(&mut other, &mut other_flags, !LOADED);
        let depends = (repeated, other, other_flags) != (outcome, regs, flags);
        assert!(op.reads() || !depends, "{} uses what it did not ask for", case.assembly);
    }
}

#[test]
fn only_stores_do_not_read() {
    for case in CASES {
        let op = MmioOp::decode(&Code::from_bytes(case.bytes), CodeSize::Bits64).unwrap();
        let store_only =
            case.assembly.starts_with("mov") && case.store.is_some() || case.assembly.contains("stos");
        assert_eq!(op.reads(), !store_only, "{}", case.assembly);
    }
}

#[test]
fn what_is_not_emulated_says_so() {
    for (assembly, bytes) in [
        ("movsd", &[0xa5][..]),
        ("push qword ptr [rdi]", &[0xff, 0x37]),
        ("pop qword ptr [rdi]", &[0x8f, 0x07]),
        ("call [rdi]", &[0xff, 0x17]),
        ("jmp [rdi]", &[0xff, 0x27]),
        ("cmpxchg [rdi], ecx", &[0x0f, 0xb1, 0x0f]),
        ("xadd [rdi], eax", &[0x0f, 0xc1, 0x07]),
        ("bts [rdi], eax", &[0x0f, 0xab, 0x07]),
        ("mov [rdi], ds", &[0x8c, 0x1f]),
        ("mov ds, [rdi]", &[0x8e, 0x1f]),
        ("movups xmm0, [rdi]", &[0x0f, 0x10, 0x07]),
        ("movd [rdi], xmm0", &[0x66, 0x0f, 0x7e, 0x07]),
        ("imul eax, [rdi]", &[0x0f, 0xaf, 0x07]),
        ("shl dword ptr [rdi], 1", &[0xd1, 0x27]),
        ("sete byte ptr [rdi]", &[0x0f, 0x94, 0x07]),
        ("fild dword ptr [rdi]", &[0xdb, 0x07]),
        ("lea eax, [rdi]", &[0x8d, 0x07]),
        ("mov eax, ecx", &[0x89, 0xc8]),
        ("cpuid", &[0x0f, 0xa2]),
        ("cmove eax, [rdi]", &[0x0f, 0x44, 0x07]),
    ] {
        let decoded = MmioOp::decode(&Code::from_bytes(bytes), CodeSize::Bits64);
        assert_eq!(decoded, Err(DecodeError::Unsupported), "{assembly}");
    }
    let truncated = MmioOp::decode(&Code::from_bytes(&[0x8b]), CodeSize::Bits64);
    assert_eq!(truncated, Err(DecodeError::Truncated));
    let invalid = MmioOp::decode(&Code::from_bytes(&[0x06, 0x90, 0x90]), CodeSize::Bits64);
    assert_eq!(invalid, Err(DecodeError::Invalid));
}

#[test]
fn smaller_modes() {
    // mov [bx], ax in 16-bit code; mov dword ptr [0xfee000b0], 0 in 32-bit code.
    let op = MmioOp::decode(&Code::from_bytes(&[0x89, 0x07]), CodeSize::Bits16).unwrap();
    assert_eq!((op.width(), op.length()), (Width::Word, 2));
    let bytes = [0xc7, 0x05, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0];
    let op = MmioOp::decode(&Code::from_bytes(&bytes), CodeSize::Bits32).unwrap();
    assert_eq!((op.width(), op.length(), op.writes()), (Width::Dword, 10, true));
    // 0x40 is inc eax there, not a prefix.
    let inc = MmioOp::decode(&Code::from_bytes(&[0x40, 0x8a, 0x37]), CodeSize::Bits32);
    assert_eq!(inc, Err(DecodeError::Unsupported));
}

#[test]
fn repeated_strings_go_one_round_at_a_time() {
    let rep_stosd = MmioOp::decode(&Code::from_bytes(&[0xf3, 0xab]), CodeSize::Bits64).unwrap();
    let mut regs = GuestRegs::new();
    regs[Gpr::Rax] = 0x1234;
    regs[Gpr::Rcx] = 2;
    regs[Gpr::Rdi] = 0xfee0_0000;
    let mut flags = 2;
    let round = rep_stosd.execute(&mut regs, &mut flags, 0);
    assert_eq!((round.store, round.advance), (Some(0x1234), 0));
    assert_eq!((regs[Gpr::Rcx], regs[Gpr::Rdi]), (1, 0xfee0_0004));
    let round = rep_stosd.execute(&mut regs, &mut flags, 0);
    assert_eq!((round.store, round.advance), (Some(0x1234), 2));
    // With nothing left, nothing is done.
    let before = regs;
    let round = rep_stosd.execute(&mut regs, &mut flags, 0);
    assert_eq!((round.store, round.advance), (None, 2));
    assert_eq!(regs, before);

    // rep lodsb, downwards.
    let rep_lodsb = MmioOp::decode(&Code::from_bytes(&[0xf3, 0xac]), CodeSize::Bits64).unwrap();
    regs[Gpr::Rcx] = 1;
    regs[Gpr::Rsi] = 0;
    let round = rep_lodsb.execute(&mut regs, &mut (2 | DF), 0x77);
    assert_eq!((round.store, round.advance), (None, 2));
    assert_eq!((regs[Gpr::Rax], regs[Gpr::Rsi], regs[Gpr::Rcx]), (0x1277, u64::MAX, 0));

    // 32-bit code counts in ECX and EDI: the upper halves do not matter and are cleared.
    let narrow = MmioOp::decode(&Code::from_bytes(&[0xf3, 0xab]), CodeSize::Bits32).unwrap();
    regs[Gpr::Rcx] = 0xffff_0000_0000_0001;
    regs[Gpr::Rdi] = 0xffff_ffff;
    assert_eq!(narrow.execute(&mut regs, &mut flags, 0).advance, 2);
    assert_eq!((regs[Gpr::Rcx], regs[Gpr::Rdi]), (0, 3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_bytes_and_any_state(
        bytes in prop::collection::vec(any::<u8>(), 1..16),
        seed: u64,
        loaded: u64,
        flags: u64,
        size in 0usize..3,
    ) {
        let size = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64][size];
        if let Ok(op) = MmioOp::decode(&Code::from_bytes(&bytes), size) {
            prop_assert!((1..=15).contains(&op.length()));
            let mut regs = GuestRegs::new();
            for gpr in Gpr::ALL {
                regs[gpr] = seed.rotate_left(gpr as u32 * 7);
            }
            let mut after = flags;
            let outcome = op.execute(&mut regs, &mut after, loaded);
            prop_assert_eq!((after ^ flags) & !crate::x86::rflags::STATUS, 0);
            prop_assert!(outcome.advance == op.length() || outcome.advance == 0);
            prop_assert!(outcome.store.is_none_or(|value| value & !op.width().mask() == 0));
            prop_assert!(op.writes() || outcome.store.is_none());
        }
    }
}
