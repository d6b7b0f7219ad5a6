//! The two registers by which a guest ends itself: the sleep control register of a hardware-reduced ACPI platform (ACPI 6.5
//! 4.8.3.7) and the reset control register that most chipsets have at port 0xcf9, which the FADT names as well.

/// What sleep type means "off": the guest's `_S5` says so.
pub const POWER_OFF_SLEEP_TYPE: u8 = 5;
/// What the FADT has written to the reset register: a full reset of the CPU.
pub const RESET_VALUE: u8 = 0x06;

const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const SLEEP_ENABLE: u8 = 1 << 5;
const RESET_CPU: u8 = 1 << 2;

/// Whether this written to the sleep control register powers the guest off. Other sleep types are not offered.
pub const fn powers_off(control: u8) -> bool {
    control & SLEEP_ENABLE != 0 && control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == POWER_OFF_SLEEP_TYPE
}

/// Whether this written to the reset control register resets the guest: the bit that chooses the kind of reset is written
/// before, alone, by many.
pub const fn resets(control: u8) -> bool {
    control & RESET_CPU != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_type_of_s5_with_the_enable_bit_powers_off() {
        assert!(powers_off(5 << 2 | 1 << 5));
        for control in 0..=u8::MAX {
            assert_eq!(powers_off(control), control & 0b11_1100 == 0b11_0100, "{control:#x}");
        }
    }

    #[test]
    fn a_reset_is_the_cpus_bit_alone() {
        assert!(resets(RESET_VALUE) && resets(0x04) && resets(0x0e));
        assert!(!resets(0x00) && !resets(0x02) && !resets(0x0a));
    }
}
