//! The architecture's own constants, and the rules a guest's writes to its registers must obey.
//!
//! Bits, register numbers and legality only: what a hypervisor *does* about an illegal value (a fault for the
//! guest) is decided by its caller. Constants are listed when something in the project uses them.

/// Bits of RFLAGS (APM2 3.1.6, APM1 3.1.4).
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Bit 1, which always reads one.
    pub const ALWAYS_ONE: u64 = 1 << 1;
    /// Parity of the low byte.
    pub const PF: u64 = 1 << 2;
    /// Carry out of bit 3.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Single-step trap.
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u64 = 1 << 9;
    /// String instructions count downwards.
    pub const DF: u64 = 1 << 10;
    /// Signed overflow.
    pub const OF: u64 = 1 << 11;
    /// The least privilege, by its number, that may change [`IF`] and reach ports.
    pub const IOPL: u64 = 0b11 << 12;
    /// Resume: instruction breakpoints are ignored for one instruction.
    pub const RF: u64 = 1 << 16;
    /// Alignment check; with CR4.SMAP also the supervisor's licence to touch user pages.
    pub const AC: u64 = 1 << 18;
    /// The flags arithmetic instructions write.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Bits of DR6 (APM2 13.1.1.3).
pub mod dr6 {
    /// The trap of RFLAGS.TF, single-stepping.
    pub const BS: u64 = 1 << 14;
    /// Whatever a debug exception sets: the four breakpoints, the access to a debug register, the single step, the task switch.
    pub const CAUSES: u64 = 0b1111 | 1 << 13 | BS | 1 << 15;
}

/// Bits of CR0 (APM2 3.1.1).
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// Extension type, hard-wired to one.
    pub const ET: u64 = 1 << 4;
    /// Supervisor writes honour read-only pages.
    pub const WP: u64 = 1 << 16;
    /// Not write-through; legal only together with [`CD`].
    pub const NW: u64 = 1 << 29;
    /// Caches disabled.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4 (APM2 3.1.3).
pub mod cr4 {
    /// 4 MiB pages in 32-bit paging.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension: eight-byte entries.
    pub const PAE: u64 = 1 << 5;
    /// Five-level paging.
    pub const LA57: u64 = 1 << 12;
    /// XSAVE and XCR0 enabled; shown in CPUID as OSXSAVE.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor may not execute user pages.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor may not touch user pages unless RFLAGS.AC is set.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys enabled; shown in CPUID as OSPKE.
    pub const PKE: u64 = 1 << 22;
}

/// Bits of EFER (APM2 3.1.7).
pub mod efer {
    /// SYSCALL and SYSRET.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enabled: takes effect when paging is turned on.
    pub const LME: u64 = 1 << 8;
    /// Long mode active; read-only, follows LME and CR0.PG.
    pub const LMA: u64 = 1 << 10;
    /// No-execute pages.
    pub const NXE: u64 = 1 << 11;
    /// Secure virtual machine instructions.
    pub const SVME: u64 = 1 << 12;
}

/// Model-specific registers by number (APM2 Appendix A).
pub mod msr {
    /// Time-stamp counter.
    pub const TSC: u32 = 0x10;
    /// What was ever added to the time-stamp counter by writing to it (Intel SDM 3B 18.17.3).
    pub const TSC_ADJUST: u32 = 0x3b;
    /// Local APIC base address and mode.
    pub const APIC_BASE: u32 = 0x1b;
    /// How many memory type range registers there are.
    pub const MTRR_CAP: u32 = 0xfe;
    /// Code segment of SYSENTER.
    pub const SYSENTER_CS: u32 = 0x174;
    /// Stack pointer of SYSENTER.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// Instruction pointer of SYSENTER.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// Page attribute table.
    pub const PAT: u32 = 0x277;
    /// Memory type where no range register says otherwise.
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    /// When the local APIC's timer is due in TSC-deadline mode (Intel SDM 3A 11.5.4.1).
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// First register of a local APIC in x2APIC mode.
    pub const X2APIC_FIRST: u32 = 0x800;
    /// The end of interrupt of a local APIC in x2APIC mode.
    pub const X2APIC_EOI: u32 = 0x80b;
    /// Last register of the x2APIC range.
    pub const X2APIC_LAST: u32 = 0x8ff;
    /// Extended features.
    pub const EFER: u32 = 0xc000_0080;
    /// Segments of SYSCALL and SYSRET.
    pub const STAR: u32 = 0xc000_0081;
    /// 64-bit target of SYSCALL.
    pub const LSTAR: u32 = 0xc000_0082;
    /// Compatibility-mode target of SYSCALL.
    pub const CSTAR: u32 = 0xc000_0083;
    /// Flags cleared by SYSCALL.
    pub const SFMASK: u32 = 0xc000_0084;
    /// Base of FS.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// Base of GS.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// The base SWAPGS exchanges with that of GS.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// What RDTSCP and RDPID return besides the time.
    pub const TSC_AUX: u32 = 0xc000_0103;
    /// The first of the four event selectors, and behind them four counters, that all of AMD's CPUs have.
    pub const LEGACY_PERF_FIRST: u32 = 0xc001_0000;
    /// The last of those.
    pub const LEGACY_PERF_LAST: u32 = 0xc001_0007;
    /// What AMD's CPUs of families 0xf and 0x10 send when an interrupt is pending in a deep sleep.
    pub const INT_PENDING: u32 = 0xc001_0055;
}

/// Exception vectors that the hypervisor injects or intercepts (APM2 8.2).
pub mod exception {
    /// Debug.
    pub const DB: u8 = 1;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// General protection; has an error code.
    pub const GP: u8 = 13;
    /// Page fault; has an error code.
    pub const PF: u8 = 14;
    /// Alignment check; has an error code, always zero.
    pub const AC: u8 = 17;
    /// Machine check.
    pub const MC: u8 = 18;

    /// Whether the CPU pushes an error code for `vector`: #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP, #VC, #SX.
    pub const fn has_error_code(vector: u8) -> bool {
        const WITH: u32 =
            1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;
        vector < 32 && WITH >> vector & 1 != 0
    }
}

/// A write the architecture answers with #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// The PAT after reset: WB, WT, UC-, UC, twice (APM2 7.8.2).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// What a guest reads from EFER: the real register without SVME, which is hidden from it but must be set while
/// it runs (APM2 15.5.1).
pub const fn guest_efer(real: u64) -> u64 {
    real & !efer::SVME
}

/// The real EFER after a guest wrote `value` to it.
///
/// Legal are SCE, LME and NXE; LMA is ignored as written, because hardware alone changes it, and SVME stays set
/// in the real register while a guest that asks for it is refused (the feature is hidden, so the bit is
/// reserved). LME must not change while paging is on (APM2 14.6.1).
pub const fn write_guest_efer(real: u64, value: u64, cr0_now: u64) -> Result<u64, GeneralProtection> {
    const WRITABLE: u64 = efer::SCE | efer::LME | efer::NXE;
    if value & !(WRITABLE | efer::LMA) != 0 {
        return Err(GeneralProtection);
    }
    if cr0_now & cr0::PG != 0 && (value ^ real) & efer::LME != 0 {
        return Err(GeneralProtection);
    }
    Ok(value & WRITABLE | real & efer::LMA | efer::SVME)
}

/// Whether each of the eight bytes is a memory type: UC 0, WC 1, WT 4, WP 5, WB 6, UC- 7 (APM2 7.8.1).
pub const fn pat_is_legal(value: u64) -> bool {
    // Per byte: bits 7:3 clear, and bit 1 only together with bit 2 (2 and 3 are reserved).
    const EACH: u64 = 0x0101_0101_0101_0101;
    value & (0xf8 * EACH) == 0 && value >> 1 & !(value >> 2) & EACH == 0
}

/// Memory types as the PAT and the MTRRs number them (APM2 7.4.1, 7.8.1).
pub mod memory_type {
    /// Uncacheable, also to speculation.
    pub const UC: u8 = 0;
    /// Write-back.
    pub const WB: u8 = 6;
}

/// The memory type that a page-table entry selects in `pat`: PWT, PCD and the PAT bit, which is bit 12 of a `large` page
/// and bit 7 of a small one, are the number of a byte (APM2 7.8.2).
pub const fn memory_type_of(pat: u64, entry: u64, large: bool) -> u8 {
    let high = entry >> (if large { 12 } else { 7 }) & 1;
    let index = high << 2 | entry >> 3 & 3;
    (pat >> (8 * index) & 7) as u8
}

/// Whether the value may be written to MTRRdefType: a memory type without UC-, the two enables, nothing else
/// (APM2 7.7.2).
pub const fn mtrr_def_type_is_legal(value: u64) -> bool {
    value & !0xcff == 0 && matches!(value & 0xff, 0 | 1 | 4 | 5 | 6)
}

/// Whether an address is canonical under four-level paging: bits 63 to 47 alike (APM2 5.3.1).
pub const fn is_canonical(linear: u64) -> bool {
    let top = linear >> 47;
    top == 0 || top == 0x1_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efer_hides_svme_and_keeps_it() {
        let real = efer::SVME | efer::LME | efer::LMA | efer::SCE;
        assert_eq!(guest_efer(real), efer::LME | efer::LMA | efer::SCE);
        let written = write_guest_efer(real, guest_efer(real) | efer::NXE, cr0::PG);
        assert_eq!(written, Ok(real | efer::NXE));
    }

    #[test]
    fn efer_accepts_exactly_the_four_bits() {
        for bit in 0..64 {
            let value = 1u64 << bit;
            let legal = [efer::SCE, efer::LME, efer::LMA, efer::NXE].contains(&value);
            assert_eq!(write_guest_efer(efer::SVME, value, 0).is_ok(), legal, "bit {bit}");
        }
    }

    #[test]
    fn long_mode_cannot_be_toggled_under_paging() {
        assert_eq!(write_guest_efer(efer::SVME, efer::LME, cr0::PG), Err(GeneralProtection));
        let active = efer::SVME | efer::LME | efer::LMA;
        assert_eq!(write_guest_efer(active, efer::LMA, cr0::PG), Err(GeneralProtection));
        // A guest cannot set or clear LMA itself: the write is accepted and the bit stays.
        assert_eq!(write_guest_efer(efer::SVME, efer::LMA, 0), Ok(efer::SVME));
        assert_eq!(write_guest_efer(active, efer::LME, cr0::PG), Ok(active));
    }

    #[test]
    fn pat_types_per_byte() {
        for slot in 0..8 {
            for kind in 0..=255u64 {
                let legal = matches!(kind, 0 | 1 | 4 | 5 | 6 | 7);
                assert_eq!(pat_is_legal(kind << (slot * 8)), legal, "type {kind} in slot {slot}");
            }
        }
        assert!(pat_is_legal(PAT_RESET));
    }

    #[test]
    fn an_entrys_memory_type_is_a_byte_of_the_pat() {
        let pat = 0x0706_0504_0302_0100;
        for index in 0..8 {
            let low = (index & 3) << 3;
            assert_eq!(memory_type_of(pat, low | index >> 2 << 7, false), index as u8);
            assert_eq!(memory_type_of(pat, low | index >> 2 << 12 | 1 << 7, true), index as u8);
        }
    }

    #[test]
    fn mtrr_def_type_bits() {
        assert!(mtrr_def_type_is_legal(0xc06));
        assert!(!mtrr_def_type_is_legal(0x07));
        assert!(!mtrr_def_type_is_legal(0x1000));
        assert!(!mtrr_def_type_is_legal(0x100));
    }

    #[test]
    fn canonical_boundaries() {
        assert!(is_canonical(0x7fff_ffff_ffff));
        assert!(!is_canonical(0x8000_0000_0000));
        assert!(!is_canonical(0xffff_7fff_ffff_ffff));
        assert!(is_canonical(0xffff_8000_0000_0000));
    }

    #[test]
    fn error_codes() {
        let with: Vec<u8> = (0..=255).filter(|v| exception::has_error_code(*v)).collect();
        assert_eq!(with, [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]);
    }
}
