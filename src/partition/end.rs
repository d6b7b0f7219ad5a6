//! How a partition ends, and the record of it.

use levelhead::vcpu::{Exit, Gpr, GuestRegs};
use x86_64::registers::control::Cr3;

use super::Partition;
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
        what: &'static str,
        /// The exit that showed it.
        exit: Exit,
    },
    /// It halted with interrupts off: nothing can wake it.
    Halted,
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
            Self::Fault { .. } | Self::Halted => false,
        }
    }

    /// Prints the one record of the end: who, what, where, and the registers when they help.
    pub(crate) fn report(self, partition: &Partition) {
        let name = &partition.name;
        let vmcb = &partition.world.vmcb;
        match self {
            Self::Code { code, .. } => {
                let verdict = if self.is_success() { "success" } else { "failure" };
                console::print(format_args!(
                    "partition {name} ended: the guest reported {verdict} (code {code:#x})\n"
                ));
                return;
            }
            Self::Fault { what, exit } => console::print(format_args!(
                "partition {name} ended: Guest fault: {what}: {exit} (exit code {:#x}, info {:#x} {:#x})\n",
                vmcb.exit_code(),
                vmcb.exit_info1(),
                vmcb.exit_info2(),
            )),
            Self::Halted => console::print(format_args!(
                "partition {name} ended: Guest fault: halted with interrupts off, so nothing can wake it\n"
            )),
        }
        // A refused entry leaves the host's registers where the guest's were, or some of each.
        let refused = matches!(self, Self::Fault { exit: Exit::Invalid, .. });
        if refused {
            console::print(format_args!("  RIP and control registers are lost\n"));
            general_registers(&partition.world.frame.regs, &[Gpr::Rax, Gpr::Rsp]);
            return;
        }
        console::print(format_args!(
            "  RIP {:#x} RSP {:#x} RFLAGS {:#x} CS {:#x} CR0 {:#x} CR2 {:#x} CR3 {:#x} CR4 {:#x} EFER {:#x}\n",
            vmcb.rip(),
            vmcb.rsp(),
            vmcb.rflags(),
            vmcb.cs().selector,
            vmcb.cr0(),
            vmcb.cr2(),
            vmcb.cr3(),
            vmcb.cr4(),
            vmcb.efer(),
        ));
        let own_root = Cr3::read().0.start_address().as_u64();
        if vmcb.rip() >= HOST_HALF && vmcb.cpl() == 0 && vmcb.cr3() == own_root {
            console::print(format_args!(
                "  this is the hypervisor's own state, not the guest's: the CPU (or its emulator) is at fault, see docs/adr/0001\n"
            ));
        }
        let mut regs = partition.world.frame.regs;
        vmcb.load_into(&mut regs);
        general_registers(&regs, &[]);
        match partition.code() {
            Ok(code) => {
                console::print(format_args!("  code at RIP:"));
                for byte in code.bytes() {
                    console::print(format_args!(" {byte:02x}"));
                }
                console::print(format_args!("\n"));
            }
            Err(error) => console::print(format_args!("  code at RIP cannot be read: {error:?}\n")),
        }
    }
}

/// Prints the general-purpose registers but for those whose value is not known.
fn general_registers(regs: &GuestRegs, unknown: &[Gpr]) {
    for row in Gpr::ALL.chunks(4) {
        console::print(format_args!(" "));
        for register in row.iter().filter(|register| !unknown.contains(register)) {
            console::print(format_args!(" {register:?} {:#018x}", regs[*register]));
        }
        console::print(format_args!("\n"));
    }
}
