//! The registers a guest reaches without an exit that neither VMRUN nor VMLOAD gives it (APM2 15.5).
//!
//! At a guest's first entry they hold what firmware, a boot loader or the hypervisor left there, unless somebody wipes
//! them. What is wiped, and in which order, is decided here; the instructions are the hypervisor's.

/// A CPU before its guest's first entry.
pub trait Unswitched {
    /// Writes DR0 to DR3; `index` is below 4. VMRUN gives a guest DR6 and DR7, and these are left where they are.
    fn set_debug_address(&mut self, index: u8, value: u64);

    /// Whether there is a TSC_AUX (RDTSCP, CPUID 8000_0001 EDX bit 27).
    fn has_tsc_aux(&self) -> bool;

    /// Writes TSC_AUX.
    fn set_tsc_aux(&mut self, value: u32);

    /// The state components that XCR0 can switch on (CPUID leaf 0xd, EDX:EAX); 0 where guests have no XCR0.
    fn components(&self) -> u64;

    /// Writes XCR0. Only where there are [`components`](Self::components), of which `value` has no others.
    fn set_xcr0(&mut self, value: u64);

    /// Puts every component that XCR0 has on now into its initial state (XRSTOR of an image with an empty XSTATE_BV):
    /// upper halves of vector registers and protection keys too.
    fn reset_components(&mut self);
}

/// XCR0 after reset: x87 alone (APM2 11.5.2).
pub const XCR0_RESET: u64 = 1;

/// Wipes the running CPU for the guest that is about to be its only one.
///
/// x87 and SSE are not here: every entry loads them.
pub fn wipe(cpu: &mut impl Unswitched) {
    for index in 0..4 {
        cpu.set_debug_address(index, 0);
    }
    if cpu.has_tsc_aux() {
        cpu.set_tsc_aux(0);
    }
    let components = cpu.components();
    if components != 0 {
        // Components that are off keep their state and show it when the guest switches them on.
        cpu.set_xcr0(components);
        cpu.reset_components();
        cpu.set_xcr0(XCR0_RESET);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A CPU on which somebody else ran before.
    pub(in crate::svm) struct DirtyCpu {
        pub(in crate::svm) debug_addresses: [u64; 4],
        /// Absent where there is no RDTSCP.
        pub(in crate::svm) tsc_aux: Option<u32>,
        pub(in crate::svm) xcr0: u64,
        supported: u64,
        /// One word for each component, 0 its initial state.
        pub(in crate::svm) state: [u64; 64],
    }

    impl DirtyCpu {
        pub(in crate::svm) fn new(supported: u64, tsc_aux: bool) -> Self {
            Self {
                debug_addresses: [0xdead; 4],
                tsc_aux: tsc_aux.then_some(0xdead),
                xcr0: supported,
                supported,
                state: [0xdead; 64],
            }
        }
    }

    impl Unswitched for DirtyCpu {
        fn set_debug_address(&mut self, index: u8, value: u64) {
            self.debug_addresses[usize::from(index)] = value;
        }
        fn has_tsc_aux(&self) -> bool {
            self.tsc_aux.is_some()
        }
        fn set_tsc_aux(&mut self, value: u32) {
            assert!(self.tsc_aux.is_some(), "#GP: there is no TSC_AUX");
            self.tsc_aux = Some(value);
        }
        fn components(&self) -> u64 {
            self.supported
        }
        fn set_xcr0(&mut self, value: u64) {
            assert!(self.supported != 0, "#UD: there is no XCR0");
            assert!(value & 1 != 0 && value & !self.supported == 0, "#GP: {value:#x}");
            self.xcr0 = value;
        }
        fn reset_components(&mut self) {
            for (number, state) in self.state.iter_mut().enumerate() {
                if self.xcr0 >> number & 1 != 0 {
                    *state = 0;
                }
            }
        }
    }

    #[test]
    fn nothing_is_left_of_whoever_ran_before() {
        // x87 and SSE alone; AVX; AVX-512 and protection keys; LWP, whose bit is the highest but one.
        for supported in [0b11, 0b111, 0x2e7, 1 << 62 | 0b111] {
            let mut cpu = DirtyCpu::new(supported, true);
            wipe(&mut cpu);
            assert_eq!(cpu.debug_addresses, [0; 4]);
            assert_eq!(cpu.tsc_aux, Some(0));
            assert_eq!(cpu.xcr0, XCR0_RESET);
            for number in (0..64).filter(|number| supported >> number & 1 != 0) {
                assert_eq!(cpu.state[number], 0, "component {number}");
            }
        }
    }

    #[test]
    fn what_a_cpu_does_not_have_is_not_touched() {
        let mut cpu = DirtyCpu::new(0, false);
        wipe(&mut cpu);
        assert_eq!((cpu.debug_addresses, cpu.tsc_aux), ([0; 4], None));
    }
}
