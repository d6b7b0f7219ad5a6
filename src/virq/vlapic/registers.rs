//! The register file of the virtual local APIC, as the guest reaches it: through the register page in xAPIC
//! mode (APM2 16.3.2) and through model-specific registers in x2APIC mode (APM2 16.11).
//!
//! Both ways number the registers alike: register `n` is at offset `16 * n` of the page and is MSR `0x800 +
//! n`. They differ in what a bad access does. The page ignores it and remembers it in ESR; the MSRs raise #GP
//! and change nothing.

use super::super::message::{Delivery, Destination, Ipi, IpiTarget};
use super::base::ApicMode;
use super::timer;
use super::{
    ERROR_ILLEGAL_REGISTER, ERROR_SEND_ILLEGAL_VECTOR, Effect, GeneralProtection, LocalVectors, SVR_ENABLE,
    SVR_SUPPRESS_EOI_BROADCAST, VirtualLapic,
};
use crate::ioapic::DestinationMode;
use crate::irq::{TriggerMode, Vector};

/// The size of the register page, in bytes.
pub const MMIO_BYTES: u64 = 0x1000;
/// The offset of the EOI register in the page.
pub const MMIO_EOI: u64 = (EOI as u64) << 4;

const MSR_APIC_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC_FIRST: u32 = 0x800;
const MSR_X2APIC_LAST: u32 = 0x8ff;

const ID: u8 = 0x02;
const VERSION: u8 = 0x03;
const TPR: u8 = 0x08;
const ARBITRATION: u8 = 0x09;
const PPR: u8 = 0x0a;
const EOI: u8 = 0x0b;
const REMOTE_READ: u8 = 0x0c;
const LDR: u8 = 0x0d;
const DFR: u8 = 0x0e;
const SVR: u8 = 0x0f;
const ISR: u8 = 0x10;
const ISR_LAST: u8 = 0x17;
const TMR: u8 = 0x18;
const TMR_LAST: u8 = 0x1f;
const IRR: u8 = 0x20;
const IRR_LAST: u8 = 0x27;
const ESR: u8 = 0x28;
const ICR_LOW: u8 = 0x30;
const ICR_HIGH: u8 = 0x31;
const LVT_TIMER: u8 = 0x32;
const LVT_THERMAL: u8 = 0x33;
const LVT_PERFORMANCE: u8 = 0x34;
const LVT_LINT0: u8 = 0x35;
const LVT_LINT1: u8 = 0x36;
const LVT_ERROR: u8 = 0x37;
const TIMER_INITIAL: u8 = 0x38;
const TIMER_CURRENT: u8 = 0x39;
const TIMER_DIVIDE: u8 = 0x3e;
const SELF_IPI: u8 = 0x3f;

/// Version 0x14; bits 23 to 16: the last of six local vectors; bit 24: EOI-broadcast suppression.
const VERSION_VALUE: u32 = 0x14 | 5 << 16 | 1 << 24;

/// The destination in the high half of the ICR in xAPIC mode, and LDR: bits 31 to 24.
const XAPIC_ID: u32 = 0xff << 24;
/// Vector, enable, focus-processor checking (stored, without effect), EOI-broadcast suppression.
const SVR_WRITABLE: u32 = 0xff | SVR_ENABLE | 1 << 9 | SVR_SUPPRESS_EOI_BROADCAST;
/// Vector, mask, mode.
const LVT_TIMER_WRITABLE: u32 = 0xff | LocalVectors::MASKED | LVT_TIMER_PERIODIC | LVT_TIMER_DEADLINE;
const LVT_TIMER_PERIODIC: u32 = 1 << 17;
const LVT_TIMER_DEADLINE: u32 = 1 << 18;
/// Vector, delivery mode, mask.
const LVT_MONITOR_WRITABLE: u32 = 0x7ff | LocalVectors::MASKED;
/// Vector, delivery mode, polarity, trigger mode, mask.
const LVT_LINT_WRITABLE: u32 = 0x7ff | 1 << 13 | 1 << 15 | LocalVectors::MASKED;
/// Vector, mask.
const LVT_ERROR_WRITABLE: u32 = 0xff | LocalVectors::MASKED;
/// Read-only bits of local vectors, which may be written with any value: delivery status, and Remote IRR of
/// the two pins.
const LVT_DELIVERY_STATUS: u32 = 1 << 12;
const LVT_REMOTE_IRR: u32 = 1 << 14;
const TIMER_DIVIDE_WRITABLE: u32 = 0b1011;

const ICR_LOGICAL: u32 = 1 << 11;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_LEVEL: u32 = 1 << 15;
/// Vector, delivery mode, destination mode, level, trigger mode, shorthand.
const ICR_WRITABLE: u32 = 0xff | 7 << 8 | ICR_LOGICAL | ICR_ASSERT | ICR_LEVEL | 3 << 18;

/// The bits an x2APIC write may set, for the registers that can be written; of a 32-bit register's upper
/// half, none (APM2 16.11.3). The read-only bits of a local vector are not reserved.
const fn x2apic_legal_bits(register: u8) -> Option<u64> {
    let bits = match register {
        TPR | SELF_IPI => 0xff,
        EOI | ESR => 0,
        SVR => SVR_WRITABLE,
        ICR_LOW => return Some(ICR_WRITABLE as u64 | (u32::MAX as u64) << 32),
        LVT_TIMER => LVT_TIMER_WRITABLE | LVT_DELIVERY_STATUS,
        LVT_THERMAL | LVT_PERFORMANCE => LVT_MONITOR_WRITABLE | LVT_DELIVERY_STATUS,
        LVT_LINT0 | LVT_LINT1 => LVT_LINT_WRITABLE | LVT_DELIVERY_STATUS | LVT_REMOTE_IRR,
        LVT_ERROR => LVT_ERROR_WRITABLE | LVT_DELIVERY_STATUS,
        TIMER_INITIAL => u32::MAX,
        TIMER_DIVIDE => TIMER_DIVIDE_WRITABLE,
        _ => return None,
    };
    Some(bits as u64)
}

/// The low `bytes` bytes of all-ones.
const fn low_bytes(bytes: u8) -> u64 {
    match bytes {
        0..8 => (1 << (8 * bytes as u32)) - 1,
        _ => u64::MAX,
    }
}

impl VirtualLapic {
    /// Whether a write of so many bytes at the EOI register's place in the page is an EOI.
    #[inline]
    pub(in crate::virq) fn takes_mmio_eoi(&self, bytes: u8) -> bool {
        bytes >= 4 && self.mode() == ApicMode::XApic
    }

    /// Whether a write of the EOI register's MSR is an EOI.
    #[inline]
    pub(in crate::virq) fn takes_msr_eoi(&self, value: u64) -> bool {
        value == 0 && self.mode() == ApicMode::X2Apic
    }

    /// The guest reads `bytes` bytes at `offset` of the register page. Outside xAPIC mode nothing answers,
    /// and the bus reads all-ones. Registers are the first four of sixteen bytes each; the rest reads 0.
    pub fn mmio_read(&mut self, offset: u64, bytes: u8, now_tsc: u64) -> u64 {
        if self.mode() != ApicMode::XApic {
            return low_bytes(bytes);
        }
        let Ok(register) = u8::try_from(offset >> 4) else { return 0 };
        let value = match self.read_register(register, now_tsc) {
            Some(value) => u64::from(value),
            None => {
                self.record_error(ERROR_ILLEGAL_REGISTER);
                0
            }
        };
        let skipped_bits = 8 * (offset & 0xf) as u32;
        value.checked_shr(skipped_bits).unwrap_or(0) & low_bytes(bytes)
    }

    /// The guest writes to `offset` of the register page. Only aligned writes of four bytes are defined (APM2
    /// 16.3.2); of wider ones the low four count, others are dropped, as are all outside xAPIC mode.
    pub fn mmio_write(&mut self, offset: u64, bytes: u8, value: u64, now_tsc: u64) -> Effect {
        if self.mode() != ApicMode::XApic || offset & 0xf != 0 || bytes < 4 {
            return Effect::None;
        }
        let Ok(register) = u8::try_from(offset >> 4) else { return Effect::None };
        let value = value as u32;
        match register {
            LDR => {
                self.ldr = value & XAPIC_ID;
                Effect::AcceptanceChanged
            }
            DFR => {
                // Bits 27 to 0 read as ones.
                self.dfr = value | !(0xf << 28);
                Effect::AcceptanceChanged
            }
            ICR_HIGH => {
                self.icr = self.icr & u64::from(u32::MAX) | u64::from(value & XAPIC_ID) << 32;
                Effect::None
            }
            ICR_LOW => {
                let destination = (self.icr >> 56) as u8;
                self.icr = self.icr >> 32 << 32 | u64::from(value & ICR_WRITABLE);
                self.command(value, |mode| Destination::xapic(destination, mode))
            }
            // The identifier may be read-only (APM2 16.3.3), the others are.
            ID | VERSION | ARBITRATION | PPR | REMOTE_READ | ISR..=IRR_LAST | TIMER_CURRENT => Effect::None,
            SELF_IPI => {
                self.record_error(ERROR_ILLEGAL_REGISTER);
                Effect::None
            }
            _ => self.write_register(register, value, now_tsc).unwrap_or_else(|| {
                self.record_error(ERROR_ILLEGAL_REGISTER);
                Effect::None
            }),
        }
    }

    /// The guest reads APIC_BASE, the timer's deadline, or one of the x2APIC registers.
    ///
    /// # Errors
    /// Of the latter outside x2APIC mode, for write-only and absent ones, and for any other number.
    pub fn read_msr(&self, msr: u32, now_tsc: u64) -> Result<u64, GeneralProtection> {
        match self.x2apic_register(msr) {
            _ if msr == MSR_APIC_BASE => Ok(self.base.read()),
            _ if msr == MSR_TSC_DEADLINE => Ok(self.timer.deadline()),
            None | Some(EOI | REMOTE_READ | DFR | ICR_HIGH) => Err(GeneralProtection),
            Some(ICR_LOW) => Ok(self.icr),
            Some(register) => self.read_register(register, now_tsc).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// The guest writes APIC_BASE, the timer's deadline, or one of the x2APIC registers.
    ///
    /// # Errors
    /// Of the latter outside x2APIC mode, for read-only and absent ones, reserved bits, illegal changes of
    /// mode, and for any other number. Nothing has changed then.
    pub fn write_msr(&mut self, msr: u32, value: u64, now_tsc: u64) -> Result<Effect, GeneralProtection> {
        if msr == MSR_APIC_BASE {
            return self.write_apic_base(value);
        }
        if msr == MSR_TSC_DEADLINE {
            self.await_tsc(value, now_tsc);
            return Ok(Effect::TimerChanged);
        }
        let register = self.x2apic_register(msr).ok_or(GeneralProtection)?;
        let legal = x2apic_legal_bits(register).ok_or(GeneralProtection)?;
        if value & !legal != 0 {
            return Err(GeneralProtection);
        }
        match register {
            ICR_LOW => {
                self.icr = value;
                Ok(self.command(value as u32, |mode| Destination::x2apic((value >> 32) as u32, mode)))
            }
            SELF_IPI => {
                let target = IpiTarget::Itself;
                Ok(self.send(Delivery::Fixed(value as u8), target))
            }
            _ => self.write_register(register, value as u32, now_tsc).ok_or(GeneralProtection),
        }
    }

    fn write_apic_base(&mut self, value: u64) -> Result<Effect, GeneralProtection> {
        let before = self.mode();
        self.base.write(value)?;
        let after = self.mode();
        match after {
            ApicMode::Disabled if before != after => self.reset_registers(),
            // The destination meant something else before (APM2 16.9.1).
            ApicMode::X2Apic if before != after => self.icr &= u64::from(u32::MAX),
            _ => {}
        }
        Ok(if before == after { Effect::None } else { Effect::AcceptanceChanged })
    }

    const fn x2apic_register(&self, msr: u32) -> Option<u8> {
        match (self.mode(), msr) {
            (ApicMode::X2Apic, MSR_X2APIC_FIRST..=MSR_X2APIC_LAST) => Some((msr - MSR_X2APIC_FIRST) as u8),
            _ => None,
        }
    }

    /// `None` for registers the chip does not have.
    fn read_register(&self, register: u8, now_tsc: u64) -> Option<u32> {
        let extended = self.mode() == ApicMode::X2Apic;
        Some(match register {
            ID if extended => self.id.0,
            ID => self.id.0 << 24,
            VERSION => VERSION_VALUE,
            TPR => u32::from(self.tpr),
            ARBITRATION => u32::from(self.arbitration_priority()),
            PPR => u32::from(self.ppr),
            // Write-only, and the answer to a message nobody can send. Their MSRs are refused before they
            // come here.
            EOI | REMOTE_READ => 0,
            LDR if extended => self.x2apic_ldr(),
            LDR => self.ldr,
            DFR => self.dfr,
            SVR => self.svr,
            ISR..=ISR_LAST => self.isr.register(register - ISR),
            TMR..=TMR_LAST => self.tmr.register(register - TMR),
            IRR..=IRR_LAST => self.irr.register(register - IRR),
            ESR => self.esr,
            ICR_LOW => self.icr as u32,
            ICR_HIGH => (self.icr >> 32) as u32,
            LVT_TIMER => self.lvt.timer,
            LVT_THERMAL => self.lvt.thermal,
            LVT_PERFORMANCE => self.lvt.performance,
            LVT_LINT0 => self.lvt.lint0,
            LVT_LINT1 => self.lvt.lint1,
            LVT_ERROR => self.lvt.error,
            TIMER_INITIAL => self.timer.initial(),
            TIMER_CURRENT => self.timer.current(now_tsc),
            TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// The registers both ways write alike; bits the chip does not keep are dropped. `None` for all others.
    fn write_register(&mut self, register: u8, value: u32, now_tsc: u64) -> Option<Effect> {
        Some(match register {
            EOI => self.eoi().map_or(Effect::None, Effect::Eoi),
            TPR => {
                self.set_tpr(value as u8);
                Effect::None
            }
            SVR => {
                let was_enabled = self.svr & SVR_ENABLE != 0;
                self.svr = value & SVR_WRITABLE;
                let is_enabled = self.svr & SVR_ENABLE != 0;
                if !is_enabled {
                    self.lvt.mask_all();
                }
                if was_enabled == is_enabled { Effect::None } else { Effect::AcceptanceChanged }
            }
            ESR => {
                self.esr = core::mem::take(&mut self.errors);
                Effect::None
            }
            LVT_TIMER => {
                // What ran out under the old entry is still the old entry's.
                self.advance_timer(now_tsc);
                self.lvt.timer = self.local_vector(value, LVT_TIMER_WRITABLE);
                self.timer.set_mode(match value & (LVT_TIMER_DEADLINE | LVT_TIMER_PERIODIC) {
                    0 => timer::Mode::OneShot,
                    LVT_TIMER_PERIODIC => timer::Mode::Periodic,
                    // Both bits are reserved.
                    _ => timer::Mode::Deadline,
                });
                Effect::TimerChanged
            }
            LVT_THERMAL => {
                self.lvt.thermal = self.local_vector(value, LVT_MONITOR_WRITABLE);
                Effect::None
            }
            LVT_PERFORMANCE => {
                self.lvt.performance = self.local_vector(value, LVT_MONITOR_WRITABLE);
                Effect::None
            }
            LVT_LINT0 => {
                self.lvt.lint0 = self.local_vector(value, LVT_LINT_WRITABLE);
                Effect::None
            }
            LVT_LINT1 => {
                self.lvt.lint1 = self.local_vector(value, LVT_LINT_WRITABLE);
                Effect::None
            }
            LVT_ERROR => {
                self.lvt.error = self.local_vector(value, LVT_ERROR_WRITABLE);
                Effect::None
            }
            TIMER_INITIAL => {
                self.advance_timer(now_tsc);
                self.timer.start(value, now_tsc);
                Effect::TimerChanged
            }
            TIMER_DIVIDE => {
                self.advance_timer(now_tsc);
                self.timer.set_divide(value & TIMER_DIVIDE_WRITABLE, now_tsc);
                Effect::TimerChanged
            }
            _ => return None,
        })
    }

    /// What a local vector's entry becomes: while software holds the chip disabled, entries stay masked.
    const fn local_vector(&self, value: u32, writable: u32) -> u32 {
        let forced = if self.svr & SVR_ENABLE == 0 { LocalVectors::MASKED } else { 0 };
        value & writable | forced
    }

    /// A write to the command half of the ICR (APM2 16.5).
    fn command(&mut self, low: u32, destination: impl FnOnce(DestinationMode) -> Destination) -> Effect {
        let mode = if low & ICR_LOGICAL != 0 { DestinationMode::Logical } else { DestinationMode::Physical };
        let target = match low >> 18 & 3 {
            0 => IpiTarget::Addressed(destination(mode)),
            1 => IpiTarget::Itself,
            2 => IpiTarget::All,
            _ => IpiTarget::Others,
        };
        let reaches_itself = matches!(target, IpiTarget::Itself | IpiTarget::All);
        let field = low as u8;
        match low >> 8 & 7 {
            0 => self.send(Delivery::Fixed(field), target),
            1 => self.send(Delivery::LowestPriority(field), target),
            4 => self.send(Delivery::Nmi, target),
            // The de-assertion of INIT synchronised arbitration in chips long gone; and nobody may reset or
            // start itself by shorthand.
            5 if low & (ICR_ASSERT | ICR_LEVEL) != ICR_LEVEL && !reaches_itself => {
                self.send(Delivery::Init, target)
            }
            6 if !reaches_itself => self.send(Delivery::Startup(field), target),
            // SMI has no receiver in a guest; the other modes are reserved.
            _ => Effect::None,
        }
    }

    /// Sends unless the vector is illegal, which is the sender's error.
    fn send(&mut self, delivery: Delivery, target: IpiTarget) -> Effect {
        match delivery {
            Delivery::Fixed(raw) | Delivery::LowestPriority(raw) => match Vector::new(raw) {
                // Nothing but the sender is involved, so nothing else need be asked.
                Some(vector) if target == IpiTarget::Itself => {
                    self.accept(vector, TriggerMode::Edge);
                    Effect::None
                }
                Some(_) => Effect::Ipi(Ipi { delivery, target }),
                None => {
                    self.record_error(ERROR_SEND_ILLEGAL_VECTOR);
                    Effect::None
                }
            },
            Delivery::Nmi | Delivery::Init | Delivery::Startup(_) => Effect::Ipi(Ipi { delivery, target }),
        }
    }
}
