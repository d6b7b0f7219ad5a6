//! What a guest reads from CPUID: the host's answer, reduced to what the virtual machine really has.
//!
//! An allow-list: features are passed by name, so that what a future CPU adds stays hidden until somebody decided
//! about it. Hidden are, with the reason: what acts on the whole machine (SVM, MONITOR, performance counters,
//! power management, RDPRU, INVLPGB, speculation controls), what needs registers that are neither switched nor
//! emulated (CET, MPX, PKS, AMX, XSAVES), five-level paging, which the guest page walker refuses,
//! and machine checks: the banks describe the machine, and their owner is the host. Pure functions; executing
//! CPUID is the caller's.

use crate::x86::cr4;

/// The four registers of one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the architecture's")]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl Leaf {
    const ZERO: Self = Self { eax: 0, ebx: 0, ecx: 0, edx: 0 };
}

/// The signature at [`HYPERVISOR_BASE`], in EBX, ECX, EDX.
pub const SIGNATURE: [u8; 12] = *b"LevelheadHyp";
/// The leaf with the signature; EAX is the last hypervisor leaf.
pub const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// The leaf with the hypercall interface: EAX version, EBX feature bits.
pub const HYPERVISOR_FEATURES: u32 = 0x4000_0001;
/// The leaf with the clocks in kHz, at the place that several hypervisors agreed on: EAX the TSC's, EBX that of the local
/// APIC's timer, which is the same here. Zero where nobody has measured it.
pub const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// The leaf with KVM's signature, which makes Linux use x2APIC mode without interrupt remapping (docs/adr/0018).
pub const KVM_BASE: u32 = 0x4000_0100;
/// KVM's feature bits: none.
const KVM_FEATURES: u32 = 0x4000_0101;
const KVM_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";

/// What of the answer depends on the guest and not on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestView {
    /// The virtual local APIC's identifier.
    pub apic_id: u32,
    /// Whether APIC_BASE has it enabled: a disabled one is not there (APM2 16.3.1).
    pub apic_enabled: bool,
    /// How many virtual CPUs the guest has, 1 to 255: each one core of one thread in one package, whose identifiers count
    /// from 0.
    pub vcpus: u32,
    /// The guest's CR4 now: OSXSAVE and OSPKE mirror it.
    pub cr4: u64,
    /// Whether there is an XCR0, and with it XSAVE and what needs it.
    pub xsave: bool,
    /// Version of the hypercall interface.
    pub abi_version: u32,
    /// Feature bits of the hypercall interface.
    pub abi_features: u32,
    /// The rate of the TSC in kHz, if it is known.
    pub tsc_khz: Option<u32>,
}

/// Bits joined from their numbers.
const fn bits(numbers: &[u32]) -> u32 {
    let mut set = 0;
    let mut rest = numbers;
    while let [number, tail @ ..] = rest {
        set |= 1 << *number;
        rest = tail;
    }
    set
}

const LAST_BASIC: u32 = 0xd;
const LAST_EXTENDED: u32 = 0x8000_0021;

// Leaf 1.
const L1_ECX_APIC_X2: u32 = 1 << 21;
/// The timer of the virtual local APIC waits for a value of the TSC too; no CPU of AMD's says so of its own.
const L1_ECX_TSC_DEADLINE: u32 = 1 << 24;
/// The local APIC, in EDX of leaf 1 and of leaf 0x8000_0001.
const EDX_APIC: u32 = 1 << 9;
const L1_ECX_OSXSAVE: u32 = 1 << 27;
const L1_ECX_HYPERVISOR: u32 = 1 << 31;
/// What every guest has, on any host.
const L1_ECX_PLATFORM: u32 = L1_ECX_APIC_X2 | L1_ECX_TSC_DEADLINE | L1_ECX_HYPERVISOR;
/// FMA, XSAVE, AVX, F16C.
const L1_ECX_NEEDS_XSAVE: u32 = bits(&[12, 26, 28, 29]);
/// SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const L1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// FPU, VME, DE, PSE, TSC, MSR, PAE, CMPXCHG8B, APIC, SYSENTER, MTRR (Linux ties the PAT to it), PGE, CMOV, PAT,
/// PSE36, CLFLUSH, MMX, FXSR, SSE, SSE2. Not MCE and MCA.
const L1_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 15, 16, 17, 19, 23, 24, 25, 26]);

/// HTT: the package has several logical processors, threads or cores (APM3 E.3.2).
const L1_EDX_HTT: u32 = 1 << 28;

// Leaf 6.
/// The local APIC timer never stops, because it is virtual.
const L6_EAX_ARAT: u32 = 1 << 2;

// Leaf 7, subleaf 0.
/// FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, AVX512F, AVX512DQ, RDSEED, ADX, SMAP, AVX512IFMA, CLFLUSHOPT,
/// CLWB, AVX512CD, SHA, AVX512BW, AVX512VL.
const L7_EBX: u32 = bits(&[0, 3, 5, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31]);
/// TSC_ADJUST, a register of the virtual CPU alone.
const L7_EBX_TSC_ADJUST: u32 = 1 << 1;
const L7_ECX_OSPKE: u32 = 1 << 4;
/// AVX512VBMI, UMIP, PKU, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ, RDPID, MOVDIRI, MOVDIR64B.
const L7_ECX: u32 = bits(&[1, 2, 3, 6, 8, 9, 10, 11, 12, 14, 22, 27, 28]);
/// FSRM, MD_CLEAR, SERIALIZE.
const L7_EDX: u32 = bits(&[4, 10, 14]);
/// Subleaf 1: AVX_VNNI, AVX512_BF16, fast short REP MOVSB, STOSB, CMPSB.
const L7_1_EAX: u32 = bits(&[4, 5, 10, 11, 12]);

// Leaf 0xd. The guest owns the XCR0 of its CPU, so the sizes the CPU reports are the guest's own.
/// x87, SSE, AVX, the three parts of AVX-512, protection keys. Not MPX and AMX.
const XCR0_LOW: u32 = bits(&[0, 1, 2, 5, 6, 7, 9]);
/// XSAVEOPT, XSAVEC, XGETBV with ECX = 1. Not XSAVES: its MSR is not emulated.
const LD_1_EAX: u32 = bits(&[0, 1, 2]);

// Leaf 0x8000_0001.
/// LAHF, AltMovCr8, LZCNT, SSE4A, misaligned SSE, PREFETCH, XOP, FMA4, TBM.
const E1_ECX: u32 = bits(&[0, 4, 5, 6, 7, 8, 11, 16, 21]);
/// CmpLegacy: the logical processors of leaf 1 are cores (APM3 E.4.2).
const E1_ECX_CMP_LEGACY: u32 = 1 << 1;
/// What leaf 1 has too, SYSCALL, NX, AMD's MMX, 1 GiB pages, RDTSCP, long mode, 3DNow!. Not FFXSR.
const E1_EDX: u32 =
    bits(&[0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 15, 16, 17, 20, 22, 23, 24, 26, 27, 29, 30, 31]);
/// Invariant TSC.
const E7_EDX: u32 = 1 << 8;
/// CLZERO, XSAVE keeps error pointers.
const E8_EBX: u32 = bits(&[0, 2]);
const LINEAR_BITS: u32 = 48;
/// LFENCE serialises, null selectors clear their base.
const E21_EAX: u32 = bits(&[2, 6]);

/// The guest's answer for `leaf` and `subleaf` (EAX and ECX as the guest had them), from the host's answer to the
/// same question.
///
/// `host` must have been read while the guest's XCR0 was loaded. Out-of-range leaves read zero, as on AMD.
pub fn filter(leaf: u32, subleaf: u32, host: Leaf, view: &GuestView) -> Leaf {
    match leaf {
        0 => Leaf { eax: host.eax.min(LAST_BASIC), ..host },
        1 => features(host, view),
        // Cache parameters in Intel's form; the topology in EAX is threads that share the cache, and cores.
        4 => Leaf { eax: host.eax & 0x3fff | view.vcpus.saturating_sub(1) << 26, ..host },
        6 => Leaf { eax: L6_EAX_ARAT, ..Leaf::ZERO },
        7 => structured_features(subleaf, host, view),
        0xb => topology(subleaf, view),
        0xd if view.xsave => extended_state(subleaf, host),
        HYPERVISOR_BASE => signature(SIGNATURE, HYPERVISOR_TIMING),
        HYPERVISOR_FEATURES => Leaf { eax: view.abi_version, ebx: view.abi_features, ecx: 0, edx: 0 },
        HYPERVISOR_TIMING => {
            view.tsc_khz.map_or(Leaf::ZERO, |khz| Leaf { eax: khz, ebx: khz, ecx: 0, edx: 0 })
        }
        KVM_BASE => signature(KVM_SIGNATURE, KVM_FEATURES),
        0x8000_0000 => Leaf { eax: host.eax.min(LAST_EXTENDED), ..host },
        0x8000_0001 => extended_features(host, view),
        // Name, caches and TLBs.
        0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001a => host,
        0x8000_0007 => Leaf { edx: host.edx & E7_EDX, ..Leaf::ZERO },
        0x8000_0008 => address_sizes(host, view),
        0x8000_0021 => Leaf { eax: host.eax & E21_EAX, ..Leaf::ZERO },
        // Among them 5 (MONITOR), 0xa (performance), 0x8000_000a (SVM), 0x8000_001e (topology).
        _ => Leaf::ZERO,
    }
}

const fn features(host: Leaf, view: &GuestView) -> Leaf {
    let os_xsave = if view.cr4 & cr4::OSXSAVE != 0 { L1_ECX_OSXSAVE } else { 0 };
    let passed = if view.xsave { L1_ECX } else { L1_ECX & !L1_ECX_NEEDS_XSAVE };
    let shown = if view.apic_enabled { L1_EDX } else { L1_EDX & !EDX_APIC };
    Leaf {
        eax: host.eax,
        // Initial APIC identifier, logical processors, CLFLUSH size, brand index.
        ebx: view.apic_id << 24 | (view.vcpus & 0xff) << 16 | host.ebx & 0xffff,
        ecx: host.ecx & passed | L1_ECX_PLATFORM | os_xsave,
        edx: host.edx & shown | if view.vcpus > 1 { L1_EDX_HTT } else { 0 },
    }
}

const fn extended_features(host: Leaf, view: &GuestView) -> Leaf {
    let legacy = if view.vcpus > 1 { E1_ECX_CMP_LEGACY } else { 0 };
    let shown = if view.apic_enabled { E1_EDX } else { E1_EDX & !EDX_APIC };
    Leaf { ecx: host.ecx & E1_ECX | legacy, edx: host.edx & shown, ..host }
}

const fn structured_features(subleaf: u32, host: Leaf, view: &GuestView) -> Leaf {
    let os_pke = if view.cr4 & cr4::PKE != 0 { L7_ECX_OSPKE } else { 0 };
    match subleaf {
        0 => Leaf {
            eax: if host.eax > 1 { 1 } else { host.eax },
            ebx: host.ebx & L7_EBX | L7_EBX_TSC_ADJUST,
            ecx: host.ecx & L7_ECX | os_pke,
            edx: host.edx & L7_EDX,
        },
        1 => Leaf { eax: host.eax & L7_1_EAX, ..Leaf::ZERO },
        _ => Leaf::ZERO,
    }
}

/// Bits of an APIC identifier that number the cores.
const fn core_bits(view: &GuestView) -> u32 {
    u32::BITS.saturating_sub(view.vcpus.saturating_sub(1).leading_zeros())
}

/// The levels "thread" (1), one in each core, and "core" (2), all in one package.
const fn topology(subleaf: u32, view: &GuestView) -> Leaf {
    let (level, shift, processors) = match subleaf {
        0 => (1, 0, 1),
        1 => (2, core_bits(view), view.vcpus),
        _ => (0, 0, 0),
    };
    Leaf { eax: shift, ebx: processors, ecx: subleaf & 0xff | level << 8, edx: view.apic_id }
}

const fn extended_state(subleaf: u32, host: Leaf) -> Leaf {
    match subleaf {
        0 => Leaf { eax: host.eax & XCR0_LOW, edx: 0, ..host },
        1 => Leaf { eax: host.eax & LD_1_EAX, ebx: host.ebx, ecx: 0, edx: 0 },
        component @ 2..32 if XCR0_LOW >> component & 1 != 0 => host,
        _ => Leaf::ZERO,
    }
}

/// A signature, and the last leaf that belongs to it.
const fn signature(text: [u8; 12], last: u32) -> Leaf {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = text;
    Leaf {
        eax: last,
        ebx: u32::from_le_bytes([a, b, c, d]),
        ecx: u32::from_le_bytes([e, f, g, h]),
        edx: u32::from_le_bytes([i, j, k, l]),
    }
}

const fn address_sizes(host: Leaf, view: &GuestView) -> Leaf {
    let linear = host.eax >> 8 & 0xff;
    let linear = if linear > LINEAR_BITS { LINEAR_BITS } else { linear };
    // Cores but one, and how many bits of the APIC identifier number them (APM3 E.4.7).
    let cores = view.vcpus.saturating_sub(1) & 0xff | core_bits(view) << 12;
    Leaf { eax: host.eax & 0xff | linear << 8, ebx: host.ebx & E8_EBX, ecx: cores, edx: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Leaf = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
    const VIEW: GuestView = GuestView {
        apic_id: 5,
        apic_enabled: true,
        vcpus: 1,
        cr4: 0,
        xsave: true,
        abi_version: 1,
        abi_features: 0x7,
        tsc_khz: Some(2_600_000),
    };

    fn ask(leaf: u32, subleaf: u32) -> Leaf {
        filter(leaf, subleaf, ALL, &VIEW)
    }

    #[test]
    fn what_would_reach_the_machine_is_hidden() {
        let hidden = |register: u32, names: &[(u32, &str)]| {
            for (bit, name) in names {
                assert_eq!(register >> bit & 1, 0, "{name}");
            }
        };
        hidden(ask(1, 0).ecx, &[(3, "MONITOR"), (5, "VMX"), (6, "SMX"), (15, "PDCM"), (27, "OSXSAVE")]);
        hidden(ask(1, 0).edx, &[(7, "MCE"), (14, "MCA"), (22, "ACPI"), (28, "HTT")]);
        hidden(ask(7, 0).ebx, &[(2, "SGX"), (11, "RTM"), (14, "MPX"), (25, "PT")]);
        hidden(ask(7, 0).ecx, &[(4, "OSPKE"), (5, "WAITPKG"), (7, "CET_SS"), (16, "LA57"), (31, "PKS")]);
        hidden(ask(7, 0).edx, &[(20, "CET_IBT"), (24, "AMX"), (26, "SPEC_CTRL"), (29, "ARCH_CAP")]);
        hidden(
            ask(0x8000_0001, 0).ecx,
            &[
                (2, "SVM"),
                (3, "ExtApicSpace"),
                (10, "IBS"),
                (12, "SKINIT"),
                (13, "WDT"),
                (15, "LWP"),
                (23, "PMC"),
            ],
        );
        hidden(ask(0x8000_0001, 0).edx, &[(7, "MCE"), (14, "MCA"), (25, "FFXSR")]);
        hidden(ask(0x8000_0008, 0).ebx, &[(3, "INVLPGB"), (4, "RDPRU"), (12, "IBPB"), (24, "SSBD")]);
        for leaf in [2, 3, 5, 8, 9, 0xa, 0xc, 0x14, 0x1f, 0x8000_000a, 0x8000_001b, 0x8000_001e, 0x8000_001f]
        {
            assert_eq!(ask(leaf, 0), Leaf::ZERO, "{leaf:#x}");
        }
        assert_eq!(ask(0xd, 0).eax, 0x2e7);
        assert_eq!(ask(0xd, 1).eax, 7);
        for component in [3, 4, 8, 10, 17, 18, 40, u32::MAX] {
            assert_eq!(ask(0xd, component), Leaf::ZERO, "{component}");
        }
        assert_eq!(ask(0xd, 9), ALL);
    }

    #[test]
    fn what_the_platform_has_is_shown() {
        let none = Leaf::ZERO;
        let shown = filter(1, 0, none, &VIEW);
        assert_eq!(
            shown.ecx,
            1 << 21 | 1 << 24 | 1 << 31,
            "x2APIC, TSC-deadline and hypervisor, on any host"
        );
        assert_eq!(shown.ebx, 5 << 24 | 1 << 16);
        assert_eq!(ask(7, 0).ebx >> 20 & 1, 1, "SMAP");
        assert_eq!(filter(7, 0, none, &VIEW).ebx, 1 << 1, "TSC_ADJUST, on any host");
        assert_eq!(ask(0x8000_0001, 0).edx >> 29 & 1, 1, "long mode");
        assert_eq!(ask(0x8000_0007, 0).edx, 1 << 8);
        assert_eq!(ask(6, 0).eax, 4);
        assert_eq!(ask(0, 0).eax, 0xd);
        assert_eq!(filter(0, 0, Leaf { eax: 7, ..none }, &VIEW).eax, 7);
        assert_eq!(ask(0x8000_0000, 0).eax, 0x8000_0021);
    }

    #[test]
    fn a_local_apic_that_is_disabled_is_not_there() {
        let view = GuestView { apic_enabled: false, ..VIEW };
        for leaf in [1, 0x8000_0001] {
            let (with, without) = (ask(leaf, 0), filter(leaf, 0, ALL, &view));
            assert_eq!(without, Leaf { edx: with.edx & !EDX_APIC, ..with }, "{leaf:#x}");
            assert_ne!(with.edx & EDX_APIC, 0);
        }
    }

    #[test]
    fn bits_that_mirror_cr4() {
        let view = GuestView { cr4: cr4::OSXSAVE | cr4::PKE, ..VIEW };
        assert_ne!(filter(1, 0, Leaf::ZERO, &view).ecx & L1_ECX_OSXSAVE, 0);
        assert_ne!(filter(7, 0, Leaf::ZERO, &view).ecx & L7_ECX_OSPKE, 0);
    }

    #[test]
    fn without_an_xcr0_nothing_that_needs_it_is_shown() {
        let view = GuestView { xsave: false, ..VIEW };
        let hidden = ask(1, 0).ecx & !filter(1, 0, ALL, &view).ecx;
        assert_eq!(hidden, 1 << 12 | 1 << 26 | 1 << 28 | 1 << 29);
        for subleaf in [0, 1, 2] {
            assert_eq!(filter(0xd, subleaf, ALL, &view), Leaf::ZERO);
        }
    }

    #[test]
    fn signature_and_interface() {
        let base = ask(HYPERVISOR_BASE, 0);
        let text: Vec<u8> = [base.ebx, base.ecx, base.edx].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!(text, b"LevelheadHyp");
        assert_eq!(base.eax, 0x4000_0010);
        assert_eq!(ask(HYPERVISOR_FEATURES, 0), Leaf { eax: 1, ebx: 7, ecx: 0, edx: 0 });
        assert_eq!(ask(HYPERVISOR_FEATURES + 1, 0), Leaf::ZERO);
    }

    #[test]
    fn the_clocks_are_told_where_they_are_known() {
        let khz = 2_600_000;
        assert_eq!(ask(HYPERVISOR_TIMING, 0), Leaf { eax: khz, ebx: khz, ecx: 0, edx: 0 });
        let unknown = GuestView { tsc_khz: None, ..VIEW };
        assert_eq!(filter(HYPERVISOR_TIMING, 0, ALL, &unknown), Leaf::ZERO);
    }

    #[test]
    fn kvm_is_there_and_offers_nothing() {
        let base = ask(KVM_BASE, 0);
        let text: Vec<u8> = [base.ebx, base.ecx, base.edx].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!((&text[..], base.eax), (&b"KVMKVMKVM\0\0\0"[..], KVM_BASE + 1));
        assert_eq!(ask(KVM_BASE + 1, 0), Leaf::ZERO);
    }

    #[test]
    fn topology_of_one_thread() {
        assert_eq!(ask(0xb, 0), Leaf { eax: 0, ebx: 1, ecx: 0x100, edx: 5 });
        assert_eq!(ask(0xb, 1), Leaf { eax: 0, ebx: 1, ecx: 0x201, edx: 5 });
        assert_eq!(ask(0xb, 2), Leaf { eax: 0, ebx: 0, ecx: 2, edx: 5 });
        assert_eq!(ask(4, 0).eax, 0x3fff);
        assert_eq!(ask(0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn topology_of_six_cores() {
        let view = GuestView { vcpus: 6, ..VIEW };
        let ask = |leaf, subleaf| filter(leaf, subleaf, ALL, &view);
        assert_eq!((ask(1, 0).ebx >> 16, ask(1, 0).edx >> 28 & 1), (5 << 8 | 6, 1));
        assert_eq!(ask(0x8000_0001, 0).ecx >> 1 & 1, 1, "CmpLegacy");
        assert_eq!(ask(0xb, 0), Leaf { eax: 0, ebx: 1, ecx: 0x100, edx: 5 });
        assert_eq!(ask(0xb, 1), Leaf { eax: 3, ebx: 6, ecx: 0x201, edx: 5 });
        assert_eq!(ask(4, 0).eax, 5 << 26 | 0x3fff);
        assert_eq!(ask(0x8000_0008, 0).ecx, 3 << 12 | 5);
    }

    #[test]
    fn linear_addresses_have_48_bits() {
        let host = Leaf { eax: 57 << 8 | 40, ..Leaf::ZERO };
        assert_eq!(filter(0x8000_0008, 0, host, &VIEW).eax, 48 << 8 | 40);
    }

    proptest! {
        #[test]
        fn features_are_never_invented(
            leaf in prop_oneof![Just(1u32), Just(7), Just(0x8000_0001), Just(0x8000_0007), Just(0x8000_0021)],
            subleaf in 0u32..3,
            ecx: u32,
            edx: u32,
        ) {
            let host = Leaf { eax: 0, ebx: 0, ecx, edx };
            let shown = filter(leaf, subleaf, host, &VIEW);
            let own = if leaf == 1 { L1_ECX_PLATFORM } else { 0 };
            prop_assert_eq!(shown.ecx & !ecx & !own, 0);
            prop_assert_eq!(shown.edx & !edx, 0);
        }
    }
}
