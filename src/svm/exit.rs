//! Why VMRUN came back: raw exit codes (APM2 Appendix C) and their translation into the neutral [`Exit`].

use core::fmt;

use crate::addr::GuestPhys;
use crate::svm::vmcb::Vmcb;
use crate::vcpu::{Exit, Forbidden, IoAccess, NestedFault, Width};
use crate::x86::exception;

/// An exit code as the CPU wrote it; prints its name in the manual.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitCode(u64);

macro_rules! exit_codes {
    ($($name:ident = $code:literal,)*) => {
        #[expect(missing_docs, reason = "the manual's names")]
        impl ExitCode {
            $(pub const $name: Self = Self($code);)*

            /// The manual's name, if the code has one here.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

exit_codes! {
    EXCP_MC = 0x52,
    CR8_WRITE = 0x18,
    INTR = 0x60,
    NMI = 0x61,
    SMI = 0x62,
    INIT = 0x63,
    VINTR = 0x64,
    RDPMC = 0x6f,
    CPUID = 0x72,
    RSM = 0x73,
    IRET = 0x74,
    INVD = 0x76,
    HLT = 0x78,
    INVLPGA = 0x7a,
    IOIO = 0x7b,
    MSR = 0x7c,
    TASK_SWITCH = 0x7d,
    FERR_FREEZE = 0x7e,
    SHUTDOWN = 0x7f,
    VMRUN = 0x80,
    VMMCALL = 0x81,
    VMLOAD = 0x82,
    VMSAVE = 0x83,
    STGI = 0x84,
    CLGI = 0x85,
    SKINIT = 0x86,
    WBINVD = 0x89,
    MONITOR = 0x8a,
    MWAIT = 0x8b,
    MWAIT_CONDITIONAL = 0x8c,
    RDPRU = 0x8e,
    NPF = 0x400,
    INVALID = 0xffff_ffff,
}

impl ExitCode {
    /// From the control block. The codes with the top bit set are compared in 32 bits: the manual defines
    /// VMEXIT_INVALID as -1, and not every CPU writes all 64 bits of it.
    pub const fn new(raw: u64) -> Self {
        Self(if raw & 0x8000_0000 != 0 { raw & 0xffff_ffff } else { raw })
    }

    /// The number.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({:#x})", self.0),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// EXITINFO1 of a port access (APM2 15.10.2); EXITINFO2 is the address of the next instruction.
const fn port_access(info1: u64, info2: u64) -> Option<IoAccess> {
    let width = match info1 >> 4 & 7 {
        0b001 => Width::Byte,
        0b010 => Width::Word,
        0b100 => Width::Dword,
        _ => return None,
    };
    Some(IoAccess {
        port: (info1 >> 16 & 0xffff) as u16,
        width,
        input: info1 & 1 != 0,
        string: info1 >> 2 & 1 != 0,
        repeat: info1 >> 3 & 1 != 0,
        next_rip: info2,
    })
}

/// EXITINFO1 of a nested page fault (APM2 15.25.6); EXITINFO2 is the guest-physical address.
const fn nested_fault(info1: u64, info2: u64) -> NestedFault {
    NestedFault {
        address: GuestPhys::new(info2),
        present: info1 & 1 != 0,
        write: info1 >> 1 & 1 != 0,
        fetch: info1 >> 4 & 1 != 0,
        table_walk: info1 >> 33 & 1 != 0,
    }
}

/// The exit of an exception (APM2 15.12); EXITINFO1 is its error code.
const fn exception(code: ExitCode, info1: u64) -> Option<Exit> {
    const FIRST: u64 = 0x40;
    const LAST: u64 = 0x5f;
    match code.0 {
        FIRST..=LAST => {
            let vector = (code.0 - FIRST) as u8;
            let error_code = if exception::has_error_code(vector) { Some(info1 as u32) } else { None };
            Some(Exit::Exception { vector, error_code })
        }
        _ => None,
    }
}

impl Vmcb {
    /// Why the guest stopped.
    #[inline]
    pub const fn exit(&self) -> Exit {
        let (info1, info2) = (self.exit_info1(), self.exit_info2());
        // Those on the way of an interrupt come first, each at the cost of a comparison.
        match ExitCode(self.exit_code()) {
            ExitCode::INTR => Exit::Interrupt,
            ExitCode::MSR => {
                if info1 & 1 != 0 {
                    Exit::WriteMsr
                } else {
                    Exit::ReadMsr
                }
            }
            ExitCode::NPF => Exit::NestedFault(nested_fault(info1, info2)),
            _ => self.other_exit(),
        }
    }

    /// Why the guest stopped, if it is none of these.
    #[inline(never)]
    const fn other_exit(&self) -> Exit {
        let (info1, info2) = (self.exit_info1(), self.exit_info2());
        let code = ExitCode::new(self.exit_code());
        match code {
            ExitCode::HLT => Exit::Hlt,
            ExitCode::IOIO => match port_access(info1, self.code_size().truncate(info2)) {
                Some(access) => Exit::Io(access),
                None => Exit::Unknown(code.0),
            },
            ExitCode::CPUID => Exit::Cpuid,
            ExitCode::VMMCALL => Exit::Hypercall,
            ExitCode::CR8_WRITE => Exit::WriteCr8,
            ExitCode::VINTR => Exit::InterruptWindow,
            ExitCode::IRET => Exit::Iret,
            ExitCode::NMI => Exit::Nmi,
            ExitCode::SMI => Exit::Smi,
            ExitCode::INIT => Exit::Init,
            ExitCode::EXCP_MC => Exit::MachineCheck,
            ExitCode::INVD => Exit::FlushCaches { discards: true },
            ExitCode::WBINVD => Exit::FlushCaches { discards: false },
            ExitCode::RDPMC => Exit::Rdpmc,
            ExitCode::VMRUN
            | ExitCode::VMLOAD
            | ExitCode::VMSAVE
            | ExitCode::STGI
            | ExitCode::CLGI
            | ExitCode::SKINIT
            | ExitCode::INVLPGA => Exit::Undefined(Forbidden::Virtualisation),
            ExitCode::MONITOR | ExitCode::MWAIT | ExitCode::MWAIT_CONDITIONAL => {
                Exit::Undefined(Forbidden::Monitor)
            }
            ExitCode::RSM => Exit::Undefined(Forbidden::Rsm),
            ExitCode::RDPRU => Exit::Undefined(Forbidden::Rdpru),
            ExitCode::TASK_SWITCH => Exit::TaskSwitch,
            ExitCode::SHUTDOWN => Exit::Shutdown,
            ExitCode::INVALID => Exit::Invalid,
            other => match exception(other, info1) {
                Some(exit) => exit,
                None => Exit::Unknown(other.0),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m6_invalid_is_recognised_in_32_and_in_64_bits() {
        assert_eq!(ExitCode::new(0x0000_0000_ffff_ffff), ExitCode::INVALID);
        assert_eq!(ExitCode::new(u64::MAX), ExitCode::INVALID);
        assert_eq!(ExitCode::new(u64::MAX - 1).raw(), 0xffff_fffe, "VMEXIT_BUSY is another code");
    }

    #[test]
    fn port_accesses_by_bit() {
        let out = port_access(0x03f8_0010, 0x1234).unwrap();
        let expected = IoAccess {
            port: 0x3f8,
            width: Width::Byte,
            input: false,
            string: false,
            repeat: false,
            next_rip: 0x1234,
        };
        assert_eq!(out, expected);
        assert!(port_access(0x0011, 0).unwrap().input);
        assert!(port_access(0x0014, 0).unwrap().string);
        assert!(port_access(0x0018, 0).unwrap().repeat);
        assert_eq!(port_access(0x0020, 0).unwrap().width, Width::Word);
        assert_eq!(port_access(0x0040, 0).unwrap().width, Width::Dword);
        assert_eq!(port_access(0xffff_0010, 0).unwrap().port, 0xffff);
        for sizes in [0, 3, 5, 6, 7] {
            assert_eq!(port_access(sizes << 4, 0), None);
        }
    }

    #[test]
    fn nested_faults_by_bit() {
        // As seen on a machine: a write to an unmapped page, final address.
        let fault = nested_fault(0x1_0000_0006, 0xfee0_00b0);
        assert_eq!(
            fault,
            NestedFault {
                address: GuestPhys::new(0xfee0_00b0),
                present: false,
                write: true,
                fetch: false,
                table_walk: false,
            }
        );
        assert!(nested_fault(1, 0).present);
        assert!(nested_fault(1 << 4, 0).fetch);
        assert!(nested_fault(1 << 33, 0).table_walk);
    }

    #[test]
    fn exceptions_by_number_with_the_error_code_of_those_that_have_one() {
        let exit = |code| exception(ExitCode::new(code), 0x1234);
        assert_eq!(exit(0x41), Some(Exit::Exception { vector: exception::DB, error_code: None }));
        assert_eq!(exit(0x4d), Some(Exit::Exception { vector: exception::GP, error_code: Some(0x1234) }));
        assert_eq!(exit(0x4e), Some(Exit::Exception { vector: exception::PF, error_code: Some(0x1234) }));
        assert_eq!(exit(0x5f), Some(Exit::Exception { vector: 31, error_code: None }));
        assert_eq!((exit(0x3f), exit(0x60)), (None, None));
    }

    #[test]
    fn names() {
        assert_eq!(ExitCode::NPF.to_string(), "NPF (0x400)");
        assert_eq!(ExitCode::new(0x6e).to_string(), "0x6e");
    }
}
