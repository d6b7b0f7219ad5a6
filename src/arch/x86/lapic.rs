//! The local APIC of each CPU, in the mode firmware left it: xAPIC by memory, x2APIC by MSR (APM2 16.3, 16.9).
//!
//! APIC_BASE.EN is never cleared: some chips cannot be enabled again (QEMU 7.2's among them).
#![expect(unsafe_code, reason = "MSR and memory access to the local APIC")]

use core::hint::spin_loop;

use levelhead::addr::HostPhys;
use levelhead::frames::Frames;
use levelhead::irq::{ApicId, Vector};
use x86_64::registers::model_specific::Msr;

use super::cpu::tsc;
use super::mmio::Registers;
use super::paging::{AddressSpace, OutOfMemory};

/// Vectors the hypervisor uses for itself, from the top so that lines get everything below.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;
/// Wakes a CPU that waits for another one.
pub(crate) const WAKE_VECTOR: u8 = 0xfd;
/// The vector of the console's receiver.
pub(crate) const CONSOLE_VECTOR: u8 = 0xfb;
/// Makes a CPU look at its virtual CPU's doorbell.
pub(crate) const KICK_VECTOR: u8 = 0xfc;
/// The local timer's vector.
pub(crate) const TIMER_VECTOR: u8 = 0xfe;

const APIC_BASE: u32 = 0x1b;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const X2APIC_FIRST_MSR: u32 = 0x800;

const ID: u32 = 0x20;
const VERSION: u32 = 0x30;
const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const LVT_MASKED: u32 = 1 << 16;
const APIC_ENABLED: u32 = 1 << 8;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_INIT: u32 = 5 << 8;
const ICR_STARTUP: u32 = 6 << 8;
/// Divide the timer's clock by 1.
const DIVIDE_BY_1: u32 = 0b1011;
/// How long an xAPIC may take to accept an IPI before we give up waiting for it.
const ICR_POLLS: u32 = 100_000;

/// The access path to a CPU's own local APIC; the same for all CPUs of the machine.
#[derive(Debug)]
pub(crate) enum LocalApic {
    /// By memory at a page that shows each CPU its own chip.
    Xapic(Registers),
    /// By MSR.
    X2apic,
}

/// Local APIC timer ticks per TSC tick, as a fraction of 2^32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimerRate(u64);

impl LocalApic {
    /// Finds the mode of the boot CPU and maps the registers if they are in memory.
    pub(crate) fn discover(space: &mut AddressSpace, frames: &mut Frames) -> Result<Self, OutOfMemory> {
        // SAFETY: APIC_BASE exists on every 64-bit CPU and reading it has no effect.
        let base = unsafe { Msr::new(APIC_BASE).read() };
        if base & APIC_BASE_X2APIC != 0 {
            return Ok(Self::X2apic);
        }
        // SAFETY: the MSR says that the local APIC's registers are here; none of them starts a memory access.
        let registers =
            unsafe { space.map_registers(HostPhys::new(base & APIC_BASE_ADDRESS), 0x1000, frames) }?;
        Ok(Self::Xapic(registers))
    }

    /// How the chip is reached, for reports.
    pub(crate) fn mode(&self) -> &'static str {
        match self {
            Self::Xapic(_) => "xAPIC",
            Self::X2apic => "x2APIC",
        }
    }

    /// Whether the chip can keep an EOI from the IO-APICs (version register, bit 24; APM2 16.3.4): half of what a
    /// directed EOI needs.
    pub(crate) fn suppresses_eoi_broadcast(&self) -> bool {
        self.read(VERSION) & 1 << 24 != 0
    }

    /// Enables the running CPU's chip with everything local masked and all priorities accepted.
    pub(crate) fn enable(&self) {
        for lvt in [LVT_TIMER, LVT_LINT0, LVT_LINT1, LVT_ERROR] {
            self.write(lvt, LVT_MASKED | 0xfd);
        }
        self.write(TIMER_DIVIDE, DIVIDE_BY_1);
        self.write(TPR, 0);
        self.write(SPURIOUS, APIC_ENABLED | u32::from(SPURIOUS_VECTOR));
    }

    /// The running CPU's identifier.
    pub(crate) fn id(&self) -> ApicId {
        match self {
            Self::Xapic(_) => ApicId(self.read(ID) >> 24),
            Self::X2apic => ApicId(self.read(ID)),
        }
    }

    /// Completes the highest interrupt in service on the running CPU.
    #[inline]
    pub(crate) fn eoi(&self) {
        self.write(EOI, 0);
    }

    /// Sends a fixed interrupt to another CPU.
    #[inline]
    pub(crate) fn send(&self, to: ApicId, vector: Vector) {
        self.command(to, ICR_ASSERT | u32::from(vector.get()));
    }

    /// Resets another CPU into waiting for [`Self::send_startup`].
    pub(crate) fn send_init(&self, to: ApicId) {
        self.command(to, ICR_ASSERT | ICR_INIT);
    }

    /// Starts a CPU in real mode at `page` * 4096.
    pub(crate) fn send_startup(&self, to: ApicId, page: u8) {
        self.command(to, ICR_ASSERT | ICR_STARTUP | u32::from(page));
    }

    /// Measures the timer against the TSC, for about `ticks` TSC ticks.
    pub(crate) fn measure_timer(&self, ticks: u64) -> TimerRate {
        self.write(TIMER_DIVIDE, DIVIDE_BY_1);
        self.write(LVT_TIMER, LVT_MASKED | u32::from(TIMER_VECTOR));
        let start = tsc();
        self.write(TIMER_INITIAL, u32::MAX);
        // Without PAUSE, at which an emulator looks for something else to do each time.
        while tsc().wrapping_sub(start) < ticks {}
        let counted = u64::from(u32::MAX - self.read(TIMER_CURRENT));
        let elapsed = tsc().wrapping_sub(start).max(1);
        self.write(TIMER_INITIAL, 0);
        TimerRate((counted << 32) / elapsed)
    }

    /// Lets the timer interrupt once, `tsc_ticks` from now (at once when that is 0, at the counter's end at most).
    pub(crate) fn arm_timer(&self, rate: TimerRate, tsc_ticks: u64) {
        let count = (u128::from(tsc_ticks) * u128::from(rate.0)) >> 32;
        let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
        self.write(LVT_TIMER, u32::from(TIMER_VECTOR));
        self.write(TIMER_INITIAL, count);
    }

    /// Stops the timer.
    pub(crate) fn disarm_timer(&self) {
        self.write(TIMER_INITIAL, 0);
    }

    fn command(&self, to: ApicId, command: u32) {
        match self {
            Self::X2apic => {
                let value = u64::from(to.0) << 32 | u64::from(command);
                // WRMSR to this register does not wait for earlier stores, which the other CPU is woken to see.
                core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
                // SAFETY: the x2APIC's ICR; the callers send vectors whose stubs exist, or start an idle CPU.
                unsafe { Msr::new(X2APIC_FIRST_MSR + (ICR_LOW >> 4)).write(value) };
            }
            Self::Xapic(registers) => {
                // The last one's delivery is waited for after it was sent, so the register is free.
                registers.write(ICR_HIGH as usize, to.0 << 24);
                registers.write(ICR_LOW as usize, command);
                for _ in 0..ICR_POLLS {
                    if registers.read(ICR_LOW as usize) & ICR_PENDING == 0 {
                        break;
                    }
                    spin_loop();
                }
            }
        }
    }

    #[inline]
    fn read(&self, register: u32) -> u32 {
        match self {
            Self::Xapic(registers) => registers.read(register as usize),
            // SAFETY: x2APIC mode is on, so the MSR of every register named in this module exists.
            Self::X2apic => unsafe { Msr::new(X2APIC_FIRST_MSR + (register >> 4)).read() as u32 },
        }
    }

    #[inline]
    fn write(&self, register: u32, value: u32) {
        match self {
            Self::Xapic(registers) => registers.write(register as usize, value),
            // SAFETY: as for `read`; none of the registers written here touches memory.
            Self::X2apic => unsafe { Msr::new(X2APIC_FIRST_MSR + (register >> 4)).write(u64::from(value)) },
        }
    }
}
