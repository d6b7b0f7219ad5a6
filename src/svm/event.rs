//! Events on their way into a guest: the EVENTINJ and EXITINTINFO encoding (APM2 15.20 and 15.7.2).
//!
//! An event that was being delivered when the guest exited must be delivered again, once. Which ones these are is
//! decided here, together with the cases in which EXITINTINFO cannot be taken by its word.

use crate::irq::Vector;
use crate::x86::exception;

const VALID: u64 = 1 << 31;
const ERROR_CODE_VALID: u64 = 1 << 11;
const TYPE_SHIFT: u32 = 8;
const ERROR_CODE_SHIFT: u32 = 32;

const TYPE_INTERRUPT: u64 = 0;
const TYPE_NMI: u64 = 2;
const TYPE_EXCEPTION: u64 = 3;

/// An exception that may be injected: the error code is there exactly when the vector has one, and the vector is
/// neither the NMI's nor outside 0 to 30, which VMRUN would refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    vector: u8,
    error_code: Option<u32>,
}

impl Fault {
    /// #DB.
    pub const DEBUG: Self = Self { vector: exception::DB, error_code: None };
    /// #UD.
    pub const INVALID_OPCODE: Self = Self { vector: exception::UD, error_code: None };
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self { vector: exception::GP, error_code: Some(0) };

    /// The exception `vector`. `error_code` is used when the vector has one (0 if absent) and dropped otherwise.
    pub const fn new(vector: u8, error_code: Option<u32>) -> Option<Self> {
        if vector == 2 || vector > 30 {
            return None;
        }
        let error_code = if exception::has_error_code(vector) {
            Some(match error_code {
                Some(code) => code,
                None => 0,
            })
        } else {
            None
        };
        Some(Self { vector, error_code })
    }

    /// Which exception it is.
    pub const fn vector(self) -> u8 {
        self.vector
    }
}

/// Something VMRUN delivers through the guest's IDT before the guest's first instruction.
///
/// Injection looks neither at RFLAGS.IF nor at the interrupt shadow (APM2 15.20): the caller must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(Vector),
    /// An external interrupt with a vector that another controller than the local APIC gave, which may be any.
    External(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception.
    Exception(Fault),
}

impl Event {
    /// The value of EVENTINJ.
    pub const fn encode(self) -> u64 {
        match self {
            Self::Interrupt(vector) => VALID | TYPE_INTERRUPT << TYPE_SHIFT | vector.get() as u64,
            Self::External(vector) => VALID | TYPE_INTERRUPT << TYPE_SHIFT | vector as u64,
            Self::Nmi => VALID | TYPE_NMI << TYPE_SHIFT | 2,
            Self::Exception(Fault { vector, error_code: None }) => {
                VALID | TYPE_EXCEPTION << TYPE_SHIFT | vector as u64
            }
            Self::Exception(Fault { vector, error_code: Some(code) }) => {
                VALID
                    | TYPE_EXCEPTION << TYPE_SHIFT
                    | ERROR_CODE_VALID
                    | vector as u64
                    | (code as u64) << ERROR_CODE_SHIFT
            }
        }
    }
}

/// The event that must be injected again after an exit in the middle of its delivery, from EXITINTINFO and
/// whether V_IRQ is still set in the control block.
///
/// * Without the valid bit the rest is left over from earlier and means nothing.
/// * A "type 3, exception" with a vector of 32 or more is an external interrupt: QEMU labels a fault during the
///   delivery of a virtual interrupt so. If V_IRQ is still set the CPU will deliver it by itself, and injecting
///   it as well would deliver it twice.
/// * Software interrupts (type 4) and the exceptions of INT3 and INTO are not injected again: RIP still points to
///   the instruction, which repeats them.
pub const fn interrupted_delivery(exit_int_info: u64, virtual_interrupt_pending: bool) -> Option<Event> {
    const BREAKPOINT: u8 = 3;
    const OVERFLOW: u8 = 4;
    if exit_int_info & VALID == 0 {
        return None;
    }
    let number = (exit_int_info & 0xff) as u8;
    match (exit_int_info >> TYPE_SHIFT & 7, Vector::new(number)) {
        (TYPE_INTERRUPT, Some(vector)) => Some(Event::Interrupt(vector)),
        (TYPE_INTERRUPT, None) => Some(Event::External(number)),
        (TYPE_EXCEPTION, Some(vector)) if !virtual_interrupt_pending => Some(Event::Interrupt(vector)),
        (TYPE_NMI, _) => Some(Event::Nmi),
        (TYPE_EXCEPTION, None) if number != BREAKPOINT && number != OVERFLOW => {
            match Fault::new(number, Some((exit_int_info >> ERROR_CODE_SHIFT) as u32)) {
                Some(fault) => Some(Event::Exception(fault)),
                None => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(raw: u8) -> Vector {
        Vector::new(raw).unwrap()
    }

    #[test]
    fn encodings_by_bit() {
        assert_eq!(Event::Interrupt(vector(0x50)).encode(), 0x8000_0050);
        assert_eq!(Event::External(0x08).encode(), 0x8000_0008);
        assert_eq!(Event::Nmi.encode(), 0x8000_0202);
        assert_eq!(Event::Exception(Fault::INVALID_OPCODE).encode(), 0x8000_0306);
        assert_eq!(Event::Exception(Fault::GENERAL_PROTECTION).encode(), 0x8000_0b0d);
        let fault = Fault::new(exception::PF, Some(0xdead_beef)).unwrap();
        assert_eq!(Event::Exception(fault).encode(), 0xdead_beef_8000_0b0e);
    }

    #[test]
    fn only_injectable_exceptions_exist() {
        for number in 0..=u8::MAX {
            assert_eq!(Fault::new(number, Some(1)).is_some(), number <= 30 && number != 2, "{number}");
        }
        assert_eq!(Fault::new(exception::UD, Some(7)), Some(Fault::INVALID_OPCODE));
        assert_eq!(Fault::new(exception::GP, None), Some(Fault::GENERAL_PROTECTION));
    }

    #[test]
    fn what_was_injected_comes_back_once() {
        let events = (32..=u8::MAX).map(|v| Event::Interrupt(vector(v))).chain([Event::Nmi]).chain(
            (0..=30)
                .filter(|v| *v != 3 && *v != 4)
                .filter_map(|v| Fault::new(v, Some(5)).map(Event::Exception)),
        );
        for event in events {
            for pending in [false, true] {
                assert_eq!(interrupted_delivery(event.encode(), pending), Some(event), "{event:?}");
            }
        }
    }

    #[test]
    fn m4_an_exception_beyond_31_is_a_virtual_interrupt() {
        assert_eq!(interrupted_delivery(0x8000_0350, true), None);
        assert_eq!(interrupted_delivery(0x8000_0350, false), Some(Event::Interrupt(vector(0x50))));
    }

    #[test]
    fn m5_leftovers_mean_nothing() {
        for leftover in [0, 0xb0e, 0x350, 0xffff_ffff_0000_0b0e] {
            assert_eq!(interrupted_delivery(leftover, false), None);
        }
    }

    #[test]
    fn software_interrupts_are_repeated_by_their_instruction() {
        assert_eq!(interrupted_delivery(0x8000_0480, false), None);
        assert_eq!(interrupted_delivery(0x8000_0303, false), None);
        assert_eq!(interrupted_delivery(0x8000_0304, false), None);
    }

    #[test]
    fn an_external_interrupt_comes_back_whatever_its_vector() {
        for number in 0..=u8::MAX {
            let event = interrupted_delivery(Event::External(number).encode(), false);
            assert_eq!(event.map(Event::encode), Some(Event::External(number).encode()), "{number}");
        }
    }

    #[test]
    fn reserved_types_and_impossible_vectors_are_dropped() {
        for kind in [1, 4, 5, 6, 7] {
            for number in 0..=255 {
                assert_eq!(interrupted_delivery(VALID | kind << TYPE_SHIFT | number, false), None);
            }
        }
        assert_eq!(interrupted_delivery(VALID | TYPE_EXCEPTION << TYPE_SHIFT | 31, false), None);
    }
}
