//! How a partition ends, and the record of it.

use core::fmt;

use levelhead::emulate::{Code, WalkError};
use levelhead::message::{Message, Record, STATE_LOST};
use levelhead::vcpu::{Exit, Gpr, GuestRegs};
use x86_64::registers::control::Cr3;

use super::vcpu::VirtualCpu;
use crate::console;

/// Why a guest runs no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It said so, by the exit port or by hypercall.
    Code {
        /// The value.
        code: u32,
        /// By hypercall, where only 0 is success; the port also takes the value that makes QEMU's status 33.
        by_hypercall: bool,
    },
    /// It did something that no partition may do.
    Fault {
        /// What was wrong.
        message: Message,
        /// The exit that showed it.
        exit: Exit,
    },
    /// It powered itself off, which is how an orderly guest ends.
    PoweredOff,
    /// It halted with interrupts off: nothing can wake it.
    Halted,
    /// It asked to be started again.
    Reset,
}

/// Where the hypervisor's own addresses begin.
const HOST_HALF: u64 = 0xffff_8000_0000_0000;
/// What `isa-debug-exit` users write for success: QEMU's status becomes 33.
const PORT_SUCCESS: u32 = 0x10;

impl End {
    /// Whether the guest reported success.
    pub(crate) fn is_success(self) -> bool {
        match self {
            Self::Code { code, by_hypercall } => code == 0 || !by_hypercall && code == PORT_SUCCESS,
            Self::PoweredOff => true,
            Self::Fault { .. } | Self::Halted | Self::Reset => false,
        }
    }

    /// Its entry in the catalogue.
    fn message(self) -> Message {
        match self {
            Self::Code { .. } if self.is_success() => Message::ReportedSuccess,
            Self::Code { .. } => Message::ReportedFailure,
            Self::Fault { message, .. } => message,
            Self::PoweredOff => Message::PoweredOff,
            Self::Halted => Message::HaltedForEver,
            Self::Reset => Message::ResetRequested,
        }
    }

    /// Prints the one record of the end, after which there may be another life unless it is the `last`: who, what, where, and
    /// the registers when they help. In one piece: other partitions print too.
    pub(crate) fn report(self, vcpu: &mut VirtualCpu, last: bool) {
        let code = vcpu.code();
        let partition = vcpu.partition;
        let report = Report { end: self, vcpu, code };
        if last {
            console::print(format_args!("{report}"));
        } else {
            // It may end again, as often as it likes.
            partition.platform.with(|platform| platform.print_counted(format_args!("{report}")));
        }
    }
}

/// The record of an end, as text.
struct Report<'a> {
    end: End,
    vcpu: &'a VirtualCpu,
    code: Result<Code, WalkError>,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { end, vcpu, code } = self;
        let (partition, vmcb) = (vcpu.partition, &vcpu.world.vmcb);
        let message = end.message();
        let what = fmt::from_fn(|f| match end {
            End::Code { code, .. } => {
                let verdict = if end.is_success() { "success" } else { "failure" };
                write!(f, "the guest reported {verdict} (code {code:#x})")
            }
            End::Fault { exit, .. } => {
                let (code, info1, info2) = (vmcb.exit_code(), vmcb.exit_info1(), vmcb.exit_info2());
                write!(f, "{}: {exit} (exit code {code:#x}, info {info1:#x} {info2:#x})", message.meaning())
            }
            End::PoweredOff | End::Halted | End::Reset => f.write_str(message.meaning()),
        });
        // Of several virtual CPUs the one that did it; what ends by itself is the partition's alone.
        let place = fmt::from_fn(|f| {
            write!(f, "partition {}", partition.name)?;
            match end {
                End::Fault { .. } if partition.vcpus() > 1 => write!(f, ", virtual CPU {}", vcpu.id.0),
                _ => Ok(()),
            }
        });
        writeln!(f, "{}", Record { message, place: &place, what: Some(&what), remedy: None })?;
        if let End::Code { .. } | End::PoweredOff | End::Reset = end {
            return Ok(());
        }
        let mut regs = vcpu.world.frame.regs;
        // A refused entry leaves the host's registers where the guest's were, or some of each.
        if let End::Fault { exit: Exit::Invalid, .. } = end {
            writeln!(f, "  RIP and control registers are lost")?;
            return general_registers(f, &regs, &[Gpr::Rax, Gpr::Rsp]);
        }
        writeln!(
            f,
            "  RIP {:#x} RSP {:#x} RFLAGS {:#x} CS {:#x} CR0 {:#x} CR2 {:#x} CR3 {:#x} CR4 {:#x} EFER {:#x}",
            vmcb.rip(),
            vmcb.rsp(),
            vmcb.rflags(),
            vmcb.cs().selector,
            vmcb.cr0(),
            vmcb.cr2(),
            vmcb.cr3(),
            vmcb.cr4(),
            vmcb.efer(),
        )?;
        let own_root = Cr3::read().0.start_address().as_u64();
        if vmcb.rip() >= HOST_HALF && vmcb.cpl() == 0 && vmcb.cr3() == own_root {
            writeln!(f, "  {STATE_LOST}")?;
        }
        vmcb.load_into(&mut regs);
        general_registers(f, &regs, &[])?;
        match code {
            Ok(code) => {
                write!(f, "  code at RIP:")?;
                code.bytes().iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
                writeln!(f)
            }
            Err(error) => writeln!(f, "  code at RIP cannot be read: {error:?}"),
        }
    }
}

/// Writes the general-purpose registers but for those whose value is not known.
fn general_registers(f: &mut fmt::Formatter<'_>, regs: &GuestRegs, unknown: &[Gpr]) -> fmt::Result {
    for row in Gpr::ALL.chunks(4) {
        write!(f, " ")?;
        for register in row.iter().filter(|register| !unknown.contains(register)) {
            write!(f, " {register:?} {:#018x}", regs[*register])?;
        }
        writeln!(f)?;
    }
    Ok(())
}
