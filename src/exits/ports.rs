//! Ports: one access, or the elements of a string of them, and what the platform's devices make of it.

use levelhead::addr::{GuestPhys, PAGE_BYTES};
use levelhead::border::ports::{PortRead, PortWrite};
use levelhead::emulate::{Access, AccessKind, GuestMemory, Paging, Segment, WalkError, string_io};
use levelhead::intx::count;
use levelhead::message::Message;
use levelhead::svm::Fault;
use levelhead::vcpu::{CodeSize, Gpr, IoAccess, Width};
use levelhead::x86;

use super::Trouble;
use crate::arch::x86::cpu::tsc;
use crate::machine::Machine;
use crate::partition::end::End;
use crate::partition::platform::Platform;
use crate::partition::vcpu::VirtualCpu;

/// Elements of a repeated string port access in one exit, so that an exit stays short.
const MAX_STRING_ELEMENTS: u32 = 64;

impl VirtualCpu {
    #[inline(never)]
    pub(super) fn io(&mut self, machine: &Machine, io: IoAccess) -> Result<Option<End>, Trouble> {
        count(&mut self.exits.io);
        if io.string {
            return self.string_io(machine, io);
        }
        if io.input {
            let value = self.port_in(machine, io.port, io.width);
            let mask = io.width.mask();
            let rax = self.world.vmcb.rax();
            // 32-bit results clear the upper half; smaller ones leave the rest (APM3 IN).
            let merged = if io.width == Width::Dword { value & mask } else { rax & !mask | value & mask };
            self.world.vmcb.set_rax(merged);
        } else {
            let value = self.world.vmcb.rax() & io.width.mask();
            if let Some(end) = self.port_out(machine, io.port, io.width, value as u32) {
                return Ok(Some(end));
            }
        }
        self.world.vmcb.continue_at(io.next_rip);
        Ok(None)
    }

    /// INS and OUTS, element by element, at most [`MAX_STRING_ELEMENTS`] in one exit.
    fn string_io(&mut self, machine: &Machine, io: IoAccess) -> Result<Option<End>, Trouble> {
        let shape = string_io(&self.current_code()?, self.world.vmcb.code_size())?;
        let paging = self.paging().paging()?;
        let mask = shape.address.mask();
        let bytes = io.width.bytes();
        let register = if io.input { Gpr::Rdi } else { Gpr::Rsi };
        for _ in 0..MAX_STRING_ELEMENTS {
            if io.repeat && self.world.frame.regs[Gpr::Rcx] & mask == 0 {
                self.world.vmcb.continue_at(io.next_rip);
                return Ok(None);
            }
            let offset = self.world.frame.regs[register] & mask;
            let linear = self.segment_base(shape.segment).wrapping_add(offset);
            let at = self.string_address(&paging, linear, io.input)?;
            let mut element = [0u8; 4];
            let Some(element) = element.get_mut(..bytes as usize) else {
                return Err(Trouble::Fault(Fault::INVALID_OPCODE));
            };
            let crosses = at.page_offset() + bytes > PAGE_BYTES;
            if crosses {
                return Err(Trouble::End(Message::StringAcrossPages));
            }
            if io.input {
                let value = self.port_in(machine, io.port, io.width).to_le_bytes();
                element.iter_mut().zip(value).for_each(|(to, from)| *to = from);
                self.partition.ram.write(at, element).map_err(|_| Trouble::End(Message::StringNoMemory))?;
            } else {
                self.partition.ram.read(at, element).map_err(|_| Trouble::End(Message::StringNoMemory))?;
                let value = element.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
                if let Some(end) = self.port_out(machine, io.port, io.width, value) {
                    return Ok(Some(end));
                }
            }
            let backwards = self.world.vmcb.rflags() & x86::rflags::DF != 0;
            let step = if backwards { bytes.wrapping_neg() } else { bytes };
            let regs = &mut self.world.frame.regs;
            let moved = regs[register].wrapping_add(step) & mask;
            regs[register] = if mask == 0xffff { regs[register] & !mask | moved } else { moved };
            if !io.repeat {
                self.world.vmcb.continue_at(io.next_rip);
                return Ok(None);
            }
            let left = regs[Gpr::Rcx].wrapping_sub(1) & mask;
            regs[Gpr::Rcx] = if mask == 0xffff { regs[Gpr::Rcx] & !mask | left } else { left };
        }
        Ok(None)
    }

    /// Translates the memory operand of a string access, or gives the guest its page fault.
    fn string_address(&self, paging: &Paging, linear: u64, write: bool) -> Result<GuestPhys, Trouble> {
        let vmcb = &self.world.vmcb;
        let user = vmcb.cpl() == 3;
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        let access = Access { kind, user, alignment_check: vmcb.rflags() & x86::rflags::AC != 0 };
        // Page fault error code: present, write, user, reserved (APM2 8.4.2).
        let code = u32::from(write) << 1 | u32::from(user) << 2;
        match paging.translate(&self.partition.ram, linear, access) {
            Ok(found) => Ok(found.address),
            Err(WalkError::NotPresent { .. }) => Err(Trouble::PageFault { linear, code }),
            Err(WalkError::Protection) => Err(Trouble::PageFault { linear, code: code | 1 }),
            Err(WalkError::Reserved { .. }) => Err(Trouble::PageFault { linear, code: code | 1 | 8 }),
            Err(WalkError::NonCanonical) => Err(Trouble::Fault(Fault::GENERAL_PROTECTION)),
            Err(WalkError::Table(_)) => Err(Trouble::End(Message::TablesInNoMemory)),
            Err(WalkError::Unsupported) => Err(Trouble::End(Message::FiveLevels)),
        }
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        let vmcb = &self.world.vmcb;
        let flat = vmcb.code_size() == CodeSize::Bits64;
        match segment {
            Segment::Fs => vmcb.fs().base,
            Segment::Gs => vmcb.gs().base,
            _ if flat => 0,
            Segment::Es => vmcb.es().base,
            Segment::Cs => vmcb.cs().base,
            Segment::Ss => vmcb.ss().base,
            Segment::Ds => vmcb.ds().base,
        }
    }

    fn port_in(&mut self, machine: &Machine, port: u16, width: Width) -> u64 {
        self.partition.platform.with(|platform| {
            let read = platform.ports.read(port, width, tsc());
            // It may have made room.
            platform.receive_typed();
            self.follow_com1(machine, platform);
            u64::from(match read {
                PortRead::Value(value) => value,
                PortRead::Register(bdf, access) => platform.read_config(&machine.config, bdf, access),
                PortRead::Pic(port) => machine.read_pics(self.here(), port).into(),
            })
        })
    }

    /// The pin follows with the platform held, so that it follows two virtual CPUs in the order in which COM1 saw them.
    pub(crate) fn follow_com1(&self, machine: &Machine, platform: &mut Platform) {
        if let Some(output) = platform.ports.com1_output() {
            machine.com1(self.here(), output);
        }
    }

    fn port_out(&mut self, machine: &Machine, port: u16, width: Width, value: u32) -> Option<End> {
        let written = self.partition.platform.with(|platform| {
            let written = platform.ports.write(port, width, value);
            self.follow_com1(machine, platform);
            match written {
                PortWrite::Nothing => None,
                PortWrite::Text(byte) => {
                    platform.put(byte);
                    None
                }
                PortWrite::Register(bdf, access, value) => {
                    platform.write_config(bdf, access, value).map(|changed| Ok((bdf, changed)))
                }
                PortWrite::Line { pin, high } => {
                    machine.test_line(self.here(), pin, high);
                    None
                }
                PortWrite::Pic { port, value } => {
                    machine.write_pics(self.here(), port, value);
                    None
                }
                PortWrite::PowerOff => Some(Err(End::PoweredOff)),
                PortWrite::Reset => Some(Err(End::Reset)),
                PortWrite::Exit(code) => Some(Err(End::Code { code, by_hypercall: false })),
            }
        });
        match written? {
            Ok((bdf, (effect, stale))) => {
                self.config_written(machine, bdf, effect, stale);
                None
            }
            Err(end) => Some(end),
        }
    }
}
