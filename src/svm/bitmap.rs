//! Permission maps: which ports and MSRs a guest reaches without an exit (APM2 15.10 and 15.11).
//!
//! Both maps start with everything denied; what is not named stays intercepted.

use core::fmt;
use core::ops::RangeInclusive;

use crate::x86::msr;

/// The I/O permission map (IOPM): one bit per port, 1 = intercepted; 12 KiB, because an access near the last port
/// looks up to three bits beyond it.
#[repr(C, align(4096))]
pub struct IoPermissions {
    bits: [u8; Self::BYTES],
}

impl IoPermissions {
    /// Size in memory.
    pub const BYTES: usize = 12 * 1024;

    /// Every port intercepted.
    pub const fn deny_all() -> Self {
        Self { bits: [0xff; Self::BYTES] }
    }

    /// Intercepts every port again.
    pub fn reset(&mut self) {
        self.bits.fill(0xff);
    }

    /// Lets the guest reach `ports` directly.
    ///
    /// An access wider than a byte passes only if all its ports are allowed, so allowing a BAR never opens the
    /// port beyond it. A CPU may have cached the map: changes at run time are [`Reach`](super::Reach)'s.
    pub(super) fn allow(&mut self, ports: RangeInclusive<u16>) {
        for port in ports {
            if let Some(byte) = self.bits.get_mut(usize::from(port) / 8) {
                *byte &= !(1 << (port % 8));
            }
        }
    }

    /// Takes the ports away from the guest again.
    pub(super) fn deny(&mut self, ports: RangeInclusive<u16>) {
        for port in ports {
            if let Some(byte) = self.bits.get_mut(usize::from(port) / 8) {
                *byte |= 1 << (port % 8);
            }
        }
    }

    /// Whether an access of one byte at `port` exits.
    pub fn intercepts(&self, port: u16) -> bool {
        self.bits.get(usize::from(port) / 8).is_none_or(|byte| byte >> (port % 8) & 1 != 0)
    }
}

impl fmt::Debug for IoPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed: u32 = self.bits.iter().map(|byte| byte.count_zeros()).sum();
        write!(f, "IoPermissions {{ allowed: {allowed} ports }}")
    }
}

/// Which accesses to an MSR pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrAccess {
    /// RDMSR does not exit.
    pub read: bool,
    /// WRMSR does not exit.
    pub write: bool,
}

impl MsrAccess {
    /// Both directions.
    pub const READ_WRITE: Self = Self { read: true, write: true };
}

/// An MSR number outside the three ranges of the map; accesses to it always exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotCovered(pub u32);

/// The MSRs every guest reaches directly, both ways.
///
/// All but one are part of the state VMLOAD and VMSAVE exchange (APM2 15.5.2), so a guest cannot see or leave
/// anything of the host's in them. The exception is TSC_AUX, which the host never uses and which belongs to the
/// one guest of its CPU. EFER, PAT, the local APIC, the time-stamp counter and the MTRRs are deliberately absent:
/// their values need checking or are emulated.
pub const MSR_PASS_THROUGH: [u32; 11] = [
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
    msr::TSC_AUX,
];

/// The MSR permission map (MSRPM): two bits per MSR, the lower for RDMSR, the upper for WRMSR, 1 = intercepted;
/// 8 KiB for three ranges of 8192 MSRs and a reserved rest.
#[repr(C, align(4096))]
pub struct MsrPermissions {
    bits: [u8; Self::BYTES],
}

impl MsrPermissions {
    /// Size in memory.
    pub const BYTES: usize = 8 * 1024;
    /// The first MSR of each range; range n starts at byte n * 2048.
    const RANGES: [u32; 3] = [0, 0xc000_0000, 0xc001_0000];
    const RANGE_MSRS: u32 = 0x2000;

    /// Every MSR intercepted.
    pub const fn deny_all() -> Self {
        Self { bits: [0xff; Self::BYTES] }
    }

    /// Denies everything but [`MSR_PASS_THROUGH`].
    pub fn reset_for_guest(&mut self) {
        self.bits.fill(0xff);
        for number in MSR_PASS_THROUGH {
            // All of them are in the map's ranges, see `pass_through_is_exactly_the_list`.
            let _covered = self.allow(number, MsrAccess::READ_WRITE);
        }
    }

    /// Lets the guest reach one MSR in the directions given and intercepts the others.
    pub fn allow(&mut self, number: u32, access: MsrAccess) -> Result<(), NotCovered> {
        let (index, shift) = Self::position(number).ok_or(NotCovered(number))?;
        let byte = self.bits.get_mut(index).ok_or(NotCovered(number))?;
        let denied = u8::from(!access.read) | u8::from(!access.write) << 1;
        *byte = *byte & !(3 << shift) | denied << shift;
        Ok(())
    }

    /// Which accesses to the MSR pass.
    pub fn access(&self, number: u32) -> MsrAccess {
        let denied = Self::position(number)
            .and_then(|(index, shift)| self.bits.get(index).map(|byte| byte >> shift))
            .unwrap_or(3);
        MsrAccess { read: denied & 1 == 0, write: denied & 2 == 0 }
    }

    /// The byte and the lower bit of the MSR's pair.
    fn position(number: u32) -> Option<(usize, u32)> {
        Self::RANGES.iter().enumerate().find_map(|(range, first)| {
            let offset = number.checked_sub(*first).filter(|offset| *offset < Self::RANGE_MSRS)?;
            Some((range * 0x800 + usize::try_from(offset / 4).ok()?, offset % 4 * 2))
        })
    }
}

impl fmt::Debug for MsrPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed: u32 = self.bits.iter().map(|byte| byte.count_zeros()).sum();
        write!(f, "MsrPermissions {{ allowed: {allowed} directions }}")
    }
}

const _: () = {
    assert!(size_of::<IoPermissions>() == IoPermissions::BYTES && align_of::<IoPermissions>() == 4096);
    assert!(size_of::<MsrPermissions>() == MsrPermissions::BYTES && align_of::<MsrPermissions>() == 4096);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports_that_are_denied_again_exit_like_all_others() {
        let mut map = IoPermissions::deny_all();
        map.allow(0xc000..=0xc0ff);
        map.deny(0xc010..=0xc01f);
        for port in 0..=u16::MAX {
            let open = (0xc000..=0xc0ff).contains(&port) && !(0xc010..=0xc01f).contains(&port);
            assert_eq!(map.intercepts(port), !open, "port {port:#x}");
        }
    }

    #[test]
    fn ports_are_denied_until_named() {
        let mut map = IoPermissions::deny_all();
        assert!((0..=u16::MAX).all(|port| map.intercepts(port)));
        map.allow(0x3f8..=0x3ff);
        map.allow(0xffff..=0xffff);
        for port in 0..=u16::MAX {
            let allowed = (0x3f8..=0x3ff).contains(&port) || port == 0xffff;
            assert_eq!(map.intercepts(port), !allowed, "{port:#x}");
        }
        // A word at 0xffff looks at the bit behind the last port, which must stay set.
        assert_eq!(map.bits[8192], 0xff);
        map.reset();
        assert!((0..=u16::MAX).all(|port| map.intercepts(port)));
    }

    #[test]
    fn port_bits() {
        let mut map = IoPermissions::deny_all();
        map.allow(0x0cf9..=0x0cf9);
        assert_eq!(map.bits[0xcf9 / 8], 0b1111_1101);
    }

    #[test]
    fn msr_bits() {
        let mut map = MsrPermissions::deny_all();
        map.allow(5, MsrAccess { read: true, write: false }).unwrap();
        assert_eq!(map.bits[1], 0b1111_1011);
        map.allow(msr::EFER, MsrAccess { read: false, write: true }).unwrap();
        assert_eq!(map.bits[0x820], 0b1111_1101);
        map.allow(0xc001_1fff, MsrAccess::READ_WRITE).unwrap();
        assert_eq!(map.bits[0x17ff], 0b0011_1111);
        for outside in [0x2000, 0xbfff_ffff, 0xc000_2000, 0xc001_2000, u32::MAX] {
            assert_eq!(map.allow(outside, MsrAccess::READ_WRITE), Err(NotCovered(outside)));
            assert_eq!(map.access(outside), MsrAccess { read: false, write: false });
        }
    }

    #[test]
    fn pass_through_is_exactly_the_list() {
        let mut map = MsrPermissions::deny_all();
        map.allow(msr::EFER, MsrAccess::READ_WRITE).unwrap();
        map.reset_for_guest();
        for number in (0..0x2000).chain(0xc000_0000..0xc000_2000).chain(0xc001_0000..0xc001_2000) {
            let listed = MSR_PASS_THROUGH.contains(&number);
            assert_eq!(map.access(number), MsrAccess { read: listed, write: listed }, "{number:#x}");
        }
        for emulated in [msr::EFER, msr::PAT, msr::APIC_BASE, msr::TSC, msr::MTRR_CAP, msr::X2APIC_FIRST] {
            assert!(!MSR_PASS_THROUGH.contains(&emulated));
        }
    }

    proptest! {
        #[test]
        fn allowing_one_msr_touches_no_other(
            range in 0usize..3,
            offset in 0u32..0x2000,
            read: bool,
            write: bool,
        ) {
            let number = MsrPermissions::RANGES[range] + offset;
            let mut map = MsrPermissions::deny_all();
            map.allow(number, MsrAccess { read, write }).unwrap();
            prop_assert_eq!(map.access(number), MsrAccess { read, write });
            let cleared: u32 = map.bits.iter().map(|b| b.count_zeros()).sum();
            prop_assert_eq!(cleared, u32::from(read) + u32::from(write));
        }
    }
}
