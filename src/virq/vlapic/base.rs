//! The APIC_BASE register (MSR 0x1b; APM2 16.3.1 and 16.9): where the register page lies, and the three modes
//! with the few legal ways between them.

use super::{GeneralProtection, LapicModel};
use crate::addr::{GuestPhys, PAGE_BYTES};

/// How a local APIC is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Not at all.
    Disabled,
    /// Through its register page.
    XApic,
    /// Through model-specific registers.
    X2Apic,
}

/// The register and what the CPU model says of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ApicBase {
    mode: ApicMode,
    address: GuestPhys,
    bootstrap: bool,
    x2apic_offered: bool,
    address_mask: u64,
}

impl ApicBase {
    const BOOTSTRAP: u64 = 1 << 8;
    const EXTENDED: u64 = 1 << 10;
    const ENABLE: u64 = 1 << 11;
    const DEFAULT_ADDRESS: GuestPhys = GuestPhys::new(0xfee0_0000);

    pub(super) const fn new(bootstrap: bool, model: LapicModel) -> Self {
        let LapicModel { x2apic, physical_address_bits } = model;
        // The architecture knows no more than 52 bits, and the default address needs 32.
        let bits = match physical_address_bits {
            0..32 => 32,
            53.. => 52,
            bits => bits,
        };
        Self {
            mode: ApicMode::XApic,
            address: Self::DEFAULT_ADDRESS,
            bootstrap,
            x2apic_offered: x2apic,
            address_mask: ((1 << bits) - 1) & !(PAGE_BYTES - 1),
        }
    }

    #[inline]
    pub(super) const fn mode(&self) -> ApicMode {
        self.mode
    }

    pub(super) const fn address(&self) -> GuestPhys {
        self.address
    }

    pub(super) const fn read(&self) -> u64 {
        let mode = match self.mode {
            ApicMode::Disabled => 0,
            ApicMode::XApic => Self::ENABLE,
            ApicMode::X2Apic => Self::ENABLE | Self::EXTENDED,
        };
        self.address.raw() | mode | if self.bootstrap { Self::BOOTSTRAP } else { 0 }
    }

    /// Takes the guest's value; the bootstrap bit is read-only and what is written to it is ignored.
    pub(super) fn write(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value & !(self.address_mask | Self::BOOTSTRAP | Self::EXTENDED | Self::ENABLE) != 0 {
            return Err(GeneralProtection);
        }
        let mode = match (value & Self::ENABLE != 0, value & Self::EXTENDED != 0) {
            (false, false) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) if self.x2apic_offered => ApicMode::X2Apic,
            _ => return Err(GeneralProtection),
        };
        match (self.mode, mode) {
            (ApicMode::Disabled, ApicMode::X2Apic) | (ApicMode::X2Apic, ApicMode::XApic) => {
                Err(GeneralProtection)
            }
            _ => {
                self.mode = mode;
                self.address = GuestPhys::new(value & self.address_mask);
                Ok(())
            }
        }
    }
}
