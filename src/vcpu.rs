//! A virtual processor as the run loop sees it: its registers and why it stopped running.
//!
//! Vendor-neutral vocabulary: `svm` produces an [`Exit`] from its control block, and another backend can produce
//! the same one. Nothing here knows a control block, a device or a partition.

use core::fmt;
use core::ops::{Index, IndexMut};

use crate::addr::GuestPhys;

/// A general-purpose register by its encoding (APM3 Table 2-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the architecture's")]
pub enum Gpr {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsp = 4,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    R14 = 14,
    R15 = 15,
}

impl Gpr {
    /// All registers in the order of their encodings.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];

    /// Offset of the register in [`GuestRegs`], in bytes: what assembly uses.
    pub const fn offset(self) -> usize {
        self as usize * 8
    }
}

/// The general-purpose registers of a guest while the hypervisor runs.
///
/// One array in the order of the encodings, so that assembly can use the fixed offsets of [`Gpr::offset`] (RAX 0,
/// RCX 0x8, RDX 0x10, RBX 0x18, RSP 0x20, RBP 0x28, RSI 0x30, RDI 0x38, R8 0x40 to R15 0x78). Under SVM, RAX and
/// RSP live in the control block: the slots here hold copies that are valid from exit to entry. RIP and RFLAGS
/// are not general-purpose registers and are not here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuestRegs([u64; 16]);

const _: () = {
    assert!(size_of::<GuestRegs>() == 0x80);
    assert!(Gpr::Rbx.offset() == 0x18 && Gpr::Rdi.offset() == 0x38);
    assert!(Gpr::R8.offset() == 0x40 && Gpr::R15.offset() == 0x78);
};

impl GuestRegs {
    /// All registers zero.
    pub const fn new() -> Self {
        Self([0; 16])
    }

    /// EDX:EAX as one value, as RDMSR and WRMSR use it.
    #[inline]
    pub fn edx_eax(&self) -> u64 {
        self[Gpr::Rdx] << 32 | self[Gpr::Rax] & 0xffff_ffff
    }

    /// Sets EDX:EAX; both upper halves become zero, as after any 32-bit write.
    #[inline]
    pub fn set_edx_eax(&mut self, value: u64) {
        self[Gpr::Rdx] = value >> 32;
        self[Gpr::Rax] = value & 0xffff_ffff;
    }
}

impl Index<Gpr> for GuestRegs {
    type Output = u64;

    #[inline]
    #[expect(clippy::indexing_slicing, reason = "a Gpr is 0 to 15 by construction")]
    fn index(&self, register: Gpr) -> &u64 {
        &self.0[register as usize]
    }
}

impl IndexMut<Gpr> for GuestRegs {
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "a Gpr is 0 to 15 by construction")]
    fn index_mut(&mut self, register: Gpr) -> &mut u64 {
        &mut self.0[register as usize]
    }
}

/// The default operand and address size of the code a guest runs: from CS.L, CS.D and EFER.LMA (APM2 4.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode and 16-bit segments.
    Bits16,
    /// 32-bit segments, also in compatibility mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl CodeSize {
    /// An instruction pointer or effective address cut to what code of this size can hold.
    pub const fn truncate(self, address: u64) -> u64 {
        match self {
            Self::Bits16 => address & 0xffff,
            Self::Bits32 => address & 0xffff_ffff,
            Self::Bits64 => address,
        }
    }
}

/// How many bytes one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
    /// 8 bytes.
    Qword,
}

impl Width {
    /// The width of `bytes` bytes, if there is one.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// In bytes: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// All bits of a value this wide.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// The most significant bit of a value this wide.
    pub const fn sign_bit(self) -> u64 {
        self.mask() ^ self.mask() >> 1
    }

    /// `value`, this wide, extended with its sign to 64 bits.
    pub const fn sign_extend(self, value: u64) -> u64 {
        let value = value & self.mask();
        if value & self.sign_bit() != 0 { value | !self.mask() } else { value }
    }
}

/// A port access that was intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// The first port.
    pub port: u16,
    /// How many bytes; never [`Width::Qword`].
    pub width: Width,
    /// IN or INS rather than OUT or OUTS.
    pub input: bool,
    /// INS or OUTS: the other end is guest memory, whose address the instruction must be decoded for.
    pub string: bool,
    /// Whether a REP prefix asks for RCX accesses.
    pub repeat: bool,
    /// Where the guest continues. With [`IoAccess::repeat`] it stays on the instruction until RCX is zero.
    pub next_rip: u64,
}

/// An access that nested paging refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// The guest-physical address, with its offset in the page.
    pub address: GuestPhys,
    /// Whether the nested tables map the page, so that only the kind of access was refused.
    pub present: bool,
    /// The access was a write.
    pub write: bool,
    /// The access was an instruction fetch.
    pub fetch: bool,
    /// The fault happened while the CPU read or updated the guest's own page tables, not on the final address.
    pub table_walk: bool,
}

/// Why a guest stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A physical interrupt is pending; it is taken in the host's interrupt window.
    Interrupt,
    /// A physical non-maskable interrupt is pending for the host.
    Nmi,
    /// A system management interrupt is pending; the firmware takes it when the host lets it.
    Smi,
    /// A physical INIT is pending; it is meant for the CPU, not for the guest.
    Init,
    /// The guest became able to take an interrupt, as was asked for.
    InterruptWindow,
    /// IRET, not yet executed, as was asked for.
    Iret,
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// RDMSR; ECX holds the number.
    ReadMsr,
    /// WRMSR; ECX holds the number, EDX:EAX the value.
    WriteMsr,
    /// IN, OUT, INS or OUTS.
    Io(IoAccess),
    /// An access outside what the nested tables allow.
    NestedFault(NestedFault),
    /// VMMCALL, or its equal elsewhere.
    Hypercall,
    /// MOV to CR8; the instruction names the source register.
    WriteCr8,
    /// INVD or WBINVD. `discards` tells INVD, which must never be carried out: it would drop the host's data.
    FlushCaches {
        /// INVD rather than WBINVD.
        discards: bool,
    },
    /// An exception that is intercepted so that its delivery cannot loop for ever; it goes back to the guest.
    Exception {
        /// The exception's vector.
        vector: u8,
        /// The error code, for vectors that have one.
        error_code: Option<u32>,
    },
    /// A machine check of the host, noticed while the guest ran.
    MachineCheck,
    /// An instruction the guest's CPUID does not offer; it gets #UD.
    Undefined(Forbidden),
    /// A performance-counter read; the guest has no counters and gets #GP.
    Rdpmc,
    /// A hardware task switch, which is not emulated.
    TaskSwitch,
    /// A triple fault or another shutdown condition of the guest.
    Shutdown,
    /// The CPU refused to enter the guest: the control block is inconsistent. A defect of the hypervisor.
    Invalid,
    /// Something that is never asked for. The number is the backend's own.
    Unknown(u64),
}

/// Instructions a guest is told it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT or INVLPGA.
    Virtualisation,
    /// MONITOR or MWAIT.
    Monitor,
    /// RSM outside system management mode.
    Rsm,
    /// RDPRU, which reads counters of the whole CPU.
    Rdpru,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(io) => write!(
                f,
                "{} of {} byte(s) at port {:#06x}",
                if io.input { "input" } else { "output" },
                io.width.bytes(),
                io.port
            ),
            Self::NestedFault(fault) => write!(
                f,
                "{} at guest-physical {}{}",
                if fault.fetch {
                    "instruction fetch"
                } else if fault.write {
                    "write"
                } else {
                    "read"
                },
                fault.address,
                if fault.table_walk { " by the guest's page walk" } else { "" }
            ),
            Self::Exception { vector, error_code: Some(code) } => {
                write!(f, "exception {vector} with error code {code:#x}")
            }
            Self::Exception { vector, error_code: None } => write!(f, "exception {vector}"),
            Self::Shutdown => f.write_str("shutdown (triple fault)"),
            Self::Invalid => f.write_str("entry refused (illegal state)"),
            Self::Unknown(code) => write!(f, "unknown exit {code:#x}"),
            Self::Interrupt
            | Self::Nmi
            | Self::Smi
            | Self::Init
            | Self::InterruptWindow
            | Self::Iret
            | Self::Cpuid
            | Self::Hlt
            | Self::ReadMsr
            | Self::WriteMsr
            | Self::Hypercall
            | Self::WriteCr8
            | Self::FlushCaches { .. }
            | Self::MachineCheck
            | Self::Undefined(_)
            | Self::Rdpmc
            | Self::TaskSwitch => write!(f, "{self:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_has_its_own_slot_at_its_offset() {
        let mut regs = GuestRegs::new();
        for (n, register) in Gpr::ALL.into_iter().enumerate() {
            assert_eq!(register as usize, n);
            assert_eq!(register.offset(), n * 8);
            regs[register] = n as u64 + 1;
        }
        for (n, register) in Gpr::ALL.into_iter().enumerate() {
            assert_eq!(regs[register], n as u64 + 1);
            assert_eq!(regs.0[n], n as u64 + 1);
        }
    }

    #[test]
    fn edx_eax_ignores_and_clears_the_upper_halves() {
        let mut regs = GuestRegs::new();
        regs[Gpr::Rax] = 0xdead_beef_1111_2222;
        regs[Gpr::Rdx] = 0xdead_beef_3333_4444;
        assert_eq!(regs.edx_eax(), 0x3333_4444_1111_2222);
        regs.set_edx_eax(0x5555_6666_7777_8888);
        assert_eq!((regs[Gpr::Rdx], regs[Gpr::Rax]), (0x5555_6666, 0x7777_8888));
    }

    #[test]
    fn widths() {
        for (bytes, mask, sign) in [
            (1, 0xff, 0x80),
            (2, 0xffff, 0x8000),
            (4, 0xffff_ffff, 0x8000_0000),
            (8, u64::MAX, 0x8000_0000_0000_0000),
        ] {
            let width = Width::from_bytes(bytes).unwrap();
            assert_eq!(width.bytes(), bytes as u64);
            assert_eq!((width.mask(), width.sign_bit()), (mask, sign));
            assert_eq!(width.sign_extend(sign), !(mask >> 1));
            assert_eq!(width.sign_extend(1), 1);
        }
        assert_eq!(Width::from_bytes(3), None);
        assert_eq!(Width::Byte.sign_extend(0x1ff), u64::MAX);
    }
}
