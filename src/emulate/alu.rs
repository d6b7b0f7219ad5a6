//! Arithmetic as the CPU does it: results and status flags (APM3 chapter 3; flags APM1 3.1.4).

use crate::vcpu::Width;
use crate::x86::rflags::{AF, CF, OF, PF, SF, STATUS, ZF};

/// An operation with two operands, the first of which receives the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    /// Like Sub without a result.
    Cmp,
    /// Like And without a result.
    Test,
    /// Bit test; the second operand is the bit's number, taken modulo the width.
    Bt,
    Bts,
    Btr,
    Btc,
}

impl Binary {
    /// Whether there is a result to write back.
    pub(super) const fn has_result(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test | Self::Bt)
    }

    /// The result, cut to `width`, and the new RFLAGS. `a` and `b` are cut to `width` first.
    ///
    /// What the manual leaves undefined is cleared by logical operations (AF) and kept by bit tests (all but CF),
    /// as processors do.
    pub(super) const fn apply(self, a: u64, b: u64, width: Width, flags: u64) -> (u64, u64) {
        let (a, b) = (a & width.mask(), b & width.mask());
        let carry = flags & CF;
        match self {
            Self::Add => add(a, b, 0, width, flags),
            Self::Adc => add(a, b, carry, width, flags),
            Self::Sub | Self::Cmp => subtract(a, b, 0, width, flags),
            Self::Sbb => subtract(a, b, carry, width, flags),
            Self::And | Self::Test => logical(a & b, width, flags),
            Self::Or => logical(a | b, width, flags),
            Self::Xor => logical(a ^ b, width, flags),
            Self::Bt | Self::Bts | Self::Btr | Self::Btc => {
                let bit = 1 << (b & (width.bytes() * 8 - 1));
                let result = match self {
                    Self::Bts => a | bit,
                    Self::Btr => a & !bit,
                    Self::Btc => a ^ bit,
                    _ => a,
                };
                (result, if a & bit != 0 { flags | CF } else { flags & !CF })
            }
        }
    }
}

/// An operation with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Inc,
    Dec,
    Not,
    Neg,
}

impl Unary {
    /// The result, cut to `width`, and the new RFLAGS.
    pub(super) const fn apply(self, a: u64, width: Width, flags: u64) -> (u64, u64) {
        let a = a & width.mask();
        match self {
            Self::Inc => keep_carry(add(a, 1, 0, width, flags), flags),
            Self::Dec => keep_carry(subtract(a, 1, 0, width, flags), flags),
            Self::Not => (!a & width.mask(), flags),
            Self::Neg => subtract(0, a, 0, width, flags),
        }
    }
}

const fn keep_carry((result, flags): (u64, u64), before: u64) -> (u64, u64) {
    (result, flags & !CF | before & CF)
}

/// SF, ZF and PF of a result.
const fn of_result(result: u64, width: Width) -> u64 {
    let mut flags = 0;
    if result == 0 {
        flags |= ZF;
    }
    if result & width.sign_bit() != 0 {
        flags |= SF;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

const fn status(flags: u64, new: u64) -> u64 {
    flags & !STATUS | new
}

const fn logical(result: u64, width: Width, flags: u64) -> (u64, u64) {
    (result, status(flags, of_result(result, width)))
}

const fn add(a: u64, b: u64, carry: u64, width: Width, flags: u64) -> (u64, u64) {
    let result = a.wrapping_add(b).wrapping_add(carry) & width.mask();
    // The carries out of every bit, by the majority of the inputs and the inverse of the sum.
    let carries = a & b | (a | b) & !result;
    let overflow = (a ^ result) & (b ^ result);
    (result, status(flags, of_result(result, width) | carry_flags(carries, overflow, width)))
}

const fn subtract(a: u64, b: u64, borrow: u64, width: Width, flags: u64) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & width.mask();
    let borrows = !a & b | (!a | b) & result;
    let overflow = (a ^ b) & (a ^ result);
    (result, status(flags, of_result(result, width) | carry_flags(borrows, overflow, width)))
}

const fn carry_flags(carries: u64, overflow: u64, width: Width) -> u64 {
    let mut flags = 0;
    if carries & width.sign_bit() != 0 {
        flags |= CF;
    }
    if carries & 1 << 3 != 0 {
        flags |= AF;
    }
    if overflow & width.sign_bit() != 0 {
        flags |= OF;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

    fn flag(on: bool, bit: u64) -> u64 {
        if on { bit } else { 0 }
    }

    fn signed(value: u64, width: Width) -> i128 {
        i128::from(width.sign_extend(value).cast_signed())
    }

    /// The flags by their definitions, in integers wide enough not to overflow.
    fn reference(a: u64, b: u64, carry: bool, subtract: bool, width: Width) -> (u64, u64) {
        let c = i128::from(carry);
        let (ua, ub) = (i128::from(a), i128::from(b));
        let (sum, signed_sum, low) = if subtract {
            (ua - ub - c, signed(a, width) - signed(b, width) - c, (ua & 15) - (ub & 15) - c)
        } else {
            (ua + ub + c, signed(a, width) + signed(b, width) + c, (ua & 15) + (ub & 15) + c)
        };
        let result = (sum as u64) & width.mask();
        let flags = flag(sum < 0 || sum > i128::from(width.mask()), CF)
            | flag(!(0..16).contains(&low), AF)
            | flag(signed_sum != signed(result, width), OF)
            | flag(result == 0, ZF)
            | flag(signed(result, width) < 0, SF)
            | flag((result & 0xff).count_ones().is_multiple_of(2), PF);
        (result, flags)
    }

    fn check(a: u64, b: u64, carry: bool, width: Width) {
        let (a, b) = (a & width.mask(), b & width.mask());
        let before = 0x0000_0202 | flag(carry, CF);
        let keep = 0x0202;
        for (op, carry_in, subtracts) in [
            (Binary::Add, false, false),
            (Binary::Adc, carry, false),
            (Binary::Sub, false, true),
            (Binary::Cmp, false, true),
            (Binary::Sbb, carry, true),
        ] {
            let (result, flags) = reference(a, b, carry_in, subtracts, width);
            assert_eq!(
                op.apply(a, b, width, before),
                (result, flags | keep),
                "{op:?} {a:#x} {b:#x} {width:?}"
            );
        }
        let (inc, inc_flags) = reference(a, 1, false, false, width);
        let (dec, dec_flags) = reference(a, 1, false, true, width);
        assert_eq!(Unary::Inc.apply(a, width, before), (inc, inc_flags & !CF | before));
        assert_eq!(Unary::Dec.apply(a, width, before), (dec, dec_flags & !CF | before));
        let (neg, neg_flags) = reference(0, a, false, true, width);
        assert_eq!(Unary::Neg.apply(a, width, before), (neg, neg_flags | keep));
        assert_eq!(Unary::Not.apply(a, width, before), (!a & width.mask(), before));
    }

    #[test]
    fn bytes_exhaustively() {
        for a in 0..=255 {
            for b in 0..=255 {
                check(a, b, false, Width::Byte);
                check(a, b, true, Width::Byte);
            }
        }
    }

    #[test]
    fn logic_and_bit_tests() {
        let all = STATUS | 2;
        assert_eq!(Binary::And.apply(0xf0, 0x0f, Width::Byte, all), (0, ZF | PF | 2));
        assert_eq!(Binary::Test.apply(0x8000, 0xffff, Width::Word, all), (0x8000, SF | PF | 2));
        assert_eq!(Binary::Or.apply(1, 0x100, Width::Dword, all), (0x101, 2));
        assert_eq!(Binary::Xor.apply(u64::MAX, 0, Width::Qword, all), (u64::MAX, SF | PF | 2));
        assert_eq!(Binary::Bts.apply(0, 35, Width::Dword, 0), (8, 0), "modulo the width");
        assert_eq!(Binary::Btr.apply(8, 3, Width::Byte, ZF), (0, ZF | CF));
        assert_eq!(Binary::Btc.apply(8, 3, Width::Word, 0), (0, CF));
        assert_eq!(Binary::Bt.apply(8, 4, Width::Qword, CF), (8, 0));
    }

    proptest! {
        #[test]
        fn all_widths(a: u64, b: u64, near in -2i64..3, carry: bool, width in 0usize..4) {
            check(a, b, carry, WIDTHS[width]);
            check(a, a.wrapping_add_signed(near), carry, WIDTHS[width]);
            check(WIDTHS[width].sign_bit().wrapping_add_signed(near), b, carry, WIDTHS[width]);
        }
    }
}
