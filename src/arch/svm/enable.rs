//! Switching SVM on for one CPU (APM2 15.4), after finding that it can be.
#![expect(unsafe_code, reason = "writes EFER and the host save address")]

use levelhead::addr::HostPhys;
use levelhead::message::Message;
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};

use crate::arch::x86::cpu::cpuid;

const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const LEAF_FEATURES: u32 = 0x8000_0001;
const LEAF_SVM: u32 = 0x8000_000a;
const SVM_BIT: u32 = 1 << 2;
const NESTED_PAGING_BIT: u32 = 1 << 0;

/// What keeps this CPU from running guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// CPUID says there is no SVM.
    NoSvm,
    /// Firmware disabled it and locked the switch.
    Disabled,
    /// No nested paging.
    NoNestedPaging,
}

impl Unfit {
    /// Its entry in the catalogue.
    pub(crate) const fn message(self) -> Message {
        match self {
            Self::NoSvm => Message::NoSvm,
            Self::Disabled => Message::SvmLocked,
            Self::NoNestedPaging => Message::NoNestedPaging,
        }
    }
}

/// What CPUID says of SVM, once it is known to be usable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Address space identifiers, the host's included.
    pub(crate) asids: u32,
    /// EDX of the leaf, for the report.
    pub(crate) bits: u32,
}

/// Whether this CPU can run guests.
pub(crate) fn probe() -> Result<Features, Unfit> {
    if cpuid(0x8000_0000, 0).eax < LEAF_SVM || cpuid(LEAF_FEATURES, 0).ecx & SVM_BIT == 0 {
        return Err(Unfit::NoSvm);
    }
    let leaf = cpuid(LEAF_SVM, 0);
    if leaf.edx & NESTED_PAGING_BIT == 0 {
        return Err(Unfit::NoNestedPaging);
    }
    // SAFETY: VM_CR exists on every CPU with SVM.
    if unsafe { Msr::new(VM_CR).read() } & VM_CR_SVMDIS != 0 {
        return Err(Unfit::Disabled);
    }
    Ok(Features { asids: leaf.ebx, bits: leaf.edx })
}

/// Switches SVM on for the running CPU.
///
/// # Safety
///
/// [`probe`] succeeded here, and `host_save` is a page that this CPU alone uses, for ever.
pub(crate) unsafe fn enable(host_save: HostPhys) {
    // SAFETY: SVME only makes the instructions of vmrun.S legal.
    unsafe { Efer::update(|efer| efer.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE)) };
    // SAFETY: the CPU saves host state to a page of its own: the caller's promise.
    unsafe { Msr::new(VM_HSAVE_PA).write(host_save.raw()) };
}
