//! Resetting functions between two owners, or two lives of one: how it can be done, and doing it without ever waiting.
//!
//! A [`Reset`] is a state machine that a run loop polls: what has to last is a state with a time in it. While a function is in
//! reset nobody accesses its configuration space, it least of all (N15, I37). Before, the function is silenced (Command is
//! zero but for DisINTx) and its transactions are given time to drain; afterwards it is asked until it answers, and
//! gets back the configuration it had, Command last.
//!
//! ```text
//! Draining ─> Asserted ─> Settling ─> Returning ─> Over        by bus, or by power (Asserted: asleep in D3hot)
//!     └──────────────────────^                                 by function-level reset
//! ```
//!
//! From [`Reset::start`] until it is over the Reset is the one writer of its functions' Command registers: their sources
//! have a reason to be silent meanwhile, so nobody writes DisINTx.

use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU64;

use super::capability::{CapabilityId, CapabilityWalk, FunctionLevelReset};
use super::config::command_status;
use super::{BarIndex, Bdf, Command, ConfigSpace, Function, Header, Offset, Topology};

/// What resets a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// It resets alone.
    Function(FunctionLevelReset),
    /// It loses its state on the way from D3hot to D0; this is its power control and status register.
    Power(Offset),
    /// The bus behind this bridge is reset, and everything on it belongs to the same partition.
    Bus(Bdf),
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(FunctionLevelReset::PciExpress(_)) => f.write_str("function-level reset"),
            Self::Function(FunctionLevelReset::AdvancedFeatures(_)) => {
                f.write_str("function-level reset (Advanced Features)")
            }
            Self::Power(_) => f.write_str("D3hot and back"),
            Self::Bus(bridge) => write!(f, "reset of the bus behind {bridge}"),
        }
    }
}

/// Why nothing resets a function: it has no reset of its own, and neither is its bus for its partition to reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMethod {
    /// The bus is a root bus, or no bridge to it is known.
    RootBus,
    /// This function on its bus is another's.
    Shared(Bdf),
    /// This bridge on its bus would lose its configuration, and with it whatever is behind it.
    BridgeBelow(Bdf),
}

impl fmt::Display for NoMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it has no function-level reset, does not reset in D3hot, and ")?;
        match self {
            Self::RootBus => f.write_str("is on a root bus"),
            Self::Shared(other) => write!(f, "shares its bus with {other}, which is not this partition's"),
            Self::BridgeBelow(bridge) => write!(f, "shares its bus with the bridge {bridge}"),
        }
    }
}

impl Method {
    /// How `function`, one of `functions`, can be reset by a partition to which the functions `own` belong.
    ///
    /// # Errors
    /// Not at all, for this reason.
    pub fn choose(
        function: &Function,
        functions: &[Function],
        topology: &Topology,
        own: impl Fn(Bdf) -> bool,
    ) -> Result<Self, NoMethod> {
        if let Some(reset) = function.capabilities.function_level_reset {
            return Ok(Self::Function(reset));
        }
        if let Some(control) = function.capabilities.power_reset {
            return Ok(Self::Power(control));
        }
        let bridge = topology.bridge_above(function.bdf.bus()).ok_or(NoMethod::RootBus)?;
        for other in functions.iter().filter(|other| other.bdf.bus() == function.bdf.bus()) {
            if other.header != Header::Endpoint {
                return Err(NoMethod::BridgeBelow(other.bdf));
            }
            if !own(other.bdf) {
                return Err(NoMethod::Shared(other.bdf));
            }
        }
        Ok(Self::Bus(bridge))
    }
}

/// What of a function's configuration a reset takes away, as it was when the function was ready for its guest. A guest never
/// writes any of it, so it stays true as long as the function is assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    bdf: Bdf,
    /// Vendor and Device ID.
    id: u32,
    command: Command,
    /// Cache Line Size and Latency Timer.
    timing: u16,
    bars: [u32; 6],
    rom: u32,
    interrupt_line: u8,
    /// Sixteen-bit control registers of capabilities.
    controls: [Option<(Offset, u16)>; Self::CONTROLS],
    /// Device Status of a PCI Express function.
    device_status: Option<Offset>,
    /// The power control and status register.
    power: Option<Offset>,
}

impl Saved {
    /// Device Control, Link Control and Device Control 2 of PCI Express; the command register of PCI-X.
    const CONTROLS: usize = 4;

    /// Reads it all; `None` when the function does not answer. The function is an endpoint, silent, and decodes its BARs.
    pub fn read(space: &impl ConfigSpace, bdf: Bdf) -> Option<Self> {
        let (command, _) = command_status(space.read32(bdf, Offset::COMMAND))?;
        let mut saved = Self {
            bdf,
            id: space.read32(bdf, Offset::VENDOR_ID),
            command,
            timing: space.read16(bdf, Offset::CACHE_LINE),
            bars: BarIndex::ALL.map(|index| space.read32(bdf, index.offset())),
            rom: space.read32(bdf, Offset::EXPANSION_ROM),
            interrupt_line: space.read8(bdf, Offset::INTERRUPT_LINE),
            controls: [None; Self::CONTROLS],
            device_status: None,
            power: None,
        };
        let mut controls = saved.controls.iter_mut();
        let mut keep = |at: Option<Offset>| {
            if let Some((at, slot)) = at.zip(controls.next()) {
                *slot = Some((at, space.read16(bdf, at)));
            }
        };
        let (mut express, mut pci_x) = (false, false);
        for capability in CapabilityWalk::new(space, bdf) {
            let register = |distance| capability.at.conventional_add(distance);
            match capability.id {
                // PCIe 4.0 7.5.3. The second half is there from version 2 on.
                CapabilityId::PCI_EXPRESS if !core::mem::replace(&mut express, true) => {
                    keep(register(0x08));
                    keep(register(0x10));
                    if capability.control & 0xf >= 2 {
                        keep(register(0x28));
                    }
                    saved.device_status = register(0x0a);
                }
                CapabilityId::PCI_X if !core::mem::replace(&mut pci_x, true) => keep(register(2)),
                CapabilityId::POWER_MANAGEMENT => saved.power = saved.power.or(register(4)),
                _ => {}
            }
        }
        Some(saved)
    }

    /// The function.
    pub const fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Silent and deaf: it drives no INTx#, starts nothing and decodes nothing. The list of what it is told is short, as
    /// it must be for a function that may not be there any more.
    fn silence(&self, space: &impl ConfigSpace) {
        space.write16(self.bdf, Offset::COMMAND, Command::DIS_INTX.bits());
    }

    /// Whether transactions that the function started are not over yet.
    fn is_pending(&self, space: &impl ConfigSpace, method: Method) -> bool {
        // PCIe 4.0 7.5.3.5, Device Status bit 5. Advanced Capabilities ECN, AF Status bit 0, behind AF Control.
        const TRANSACTIONS_PENDING: u16 = 1 << 5;
        let express = |at| {
            let status = space.read16(self.bdf, at);
            status != u16::MAX && status & TRANSACTIONS_PENDING != 0
        };
        let advanced = |at| {
            let status = space.read8(self.bdf, at);
            status != u8::MAX && status & 1 != 0
        };
        let advanced_status = match method {
            Method::Function(FunctionLevelReset::AdvancedFeatures(control)) => control.conventional_add(1),
            _ => None,
        };
        self.device_status.is_some_and(express) || advanced_status.is_some_and(advanced)
    }

    /// Whether the function keeps what its reset takes away from every function: a base address (PCIe 4.0 6.6.2, PCI PM
    /// 1.2 5.4.1, PCI 3.0 4.3.2).
    fn is_untouched(&self, space: &impl ConfigSpace) -> bool {
        const ADDRESS: u32 = 0xffff_fff0;
        BarIndex::ALL.into_iter().zip(self.bars).any(|(index, saved)| {
            saved & ADDRESS != 0 && space.read32(self.bdf, index.offset()) & ADDRESS == saved & ADDRESS
        })
    }

    /// Writes it all back, Command last.
    fn restore(&self, space: &impl ConfigSpace) -> Result<(), Fault> {
        let bdf = self.bdf;
        for (index, value) in BarIndex::ALL.into_iter().zip(self.bars) {
            space.write32(bdf, index.offset(), value);
        }
        space.write32(bdf, Offset::EXPANSION_ROM, self.rom);
        space.write16(bdf, Offset::CACHE_LINE, self.timing);
        space.write8(bdf, Offset::INTERRUPT_LINE, self.interrupt_line);
        for (at, value) in self.controls.into_iter().flatten() {
            space.write16(bdf, at, value);
        }
        for (index, value) in BarIndex::ALL.into_iter().zip(self.bars) {
            if space.read32(bdf, index.offset()) != value {
                return Err(Fault::NotRestored(index.offset()));
            }
        }
        space.write16(bdf, Offset::COMMAND, self.command.bits());
        let now = command_status(space.read32(bdf, Offset::COMMAND)).map(|(command, _)| command);
        if now == Some(self.command) { Ok(()) } else { Err(Fault::NotRestored(Offset::COMMAND)) }
    }
}

/// What went wrong with the reset of one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It answered all-ones before its reset.
    Absent,
    /// It did not answer after its reset within the time it has.
    NeverReturned,
    /// Another answers in its place, with this Vendor and Device ID.
    Replaced(u32),
    /// It kept its base addresses: what should have reset it did nothing.
    NoEffect,
    /// The bridge above it did not do as it was told.
    Bridge(Bdf),
    /// This register did not take its value back.
    NotRestored(Offset),
}

impl Fault {
    /// Whether the function is as it was before, and only its state was not cleared. After every other fault it is silent and
    /// decodes nothing, and is to stay so.
    pub const fn is_harmless(self) -> bool {
        matches!(self, Self::NoEffect)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("it does not answer"),
            Self::NeverReturned => f.write_str("it does not answer after its reset"),
            Self::Replaced(id) => {
                write!(f, "another function answers in its place ({:04x}:{:04x})", id & 0xffff, id >> 16)
            }
            Self::NoEffect => f.write_str("its reset had no effect: it kept its base addresses"),
            Self::Bridge(bridge) => write!(f, "the bridge {bridge} does not reset its bus"),
            Self::NotRestored(at) => {
                write!(f, "its register at {:#04x} does not take its value back", at.get())
            }
        }
    }
}

impl core::error::Error for Fault {}

/// What is still to come of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Ask again at this time, in ticks; nothing happens before.
    Wait(u64),
    /// It is over; [`Reset::outcomes`] tells how it went.
    Over,
}

/// A function that is reset, and what went wrong with it.
#[derive(Clone, Copy, Debug)]
struct Member {
    saved: Saved,
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not under way.
    Over,
    /// Transactions may be pending until then.
    Draining { until: u64 },
    /// The bus is held in reset, or the function asleep, until then.
    Asserted { until: u64 },
    /// The functions are left alone until then.
    Settling { until: u64 },
    /// The functions may answer; until then they may also not.
    Returning { until: u64 },
}

/// The reset of what one [`Method`] resets: a function, or all functions behind a bridge. Made at assignment; used as often
/// as their partition starts again, without allocating.
#[derive(Debug)]
pub struct Reset {
    method: Method,
    members: Vec<Member>,
    ticks_per_ms: NonZeroU64,
    state: State,
}

impl Reset {
    /// How long transactions may take to drain. The function may start none meanwhile, and a reset discards what is left.
    const DRAIN_MS: u64 = 100;
    /// Within this time a function-level reset is over (PCIe 4.0 6.6.2, Advanced Capabilities ECN).
    const FUNCTION_MS: u64 = 100;
    /// Each way between D0 and D3hot (PCI PM 1.2 5.6.1).
    const POWER_MS: u64 = 10;
    /// RST# lasts 1 ms at least (PCI 3.0 4.3.2).
    const BUS_ASSERTED_MS: u64 = 2;
    /// Between the end of RST# and the first configuration access: 2^25 clocks, 1 s at 33 MHz (PCI 3.0 4.3.2).
    const BUS_SETTLE_MS: u64 = 1000;
    /// How long a function that may answer is asked; one that needs longer is broken (PCIe 4.0 6.6.1).
    const RETURN_MS: u64 = 1000;
    /// How often something is asked that may take long.
    const ASK_MS: u64 = 1;

    /// The reset of `members` by `method`, by a clock of `ticks_per_ms`.
    pub fn new(method: Method, members: impl IntoIterator<Item = Saved>, ticks_per_ms: NonZeroU64) -> Self {
        let members = members.into_iter().map(|saved| Member { saved, fault: None }).collect();
        Self { method, members, ticks_per_ms, state: State::Over }
    }

    /// What resets them.
    pub const fn method(&self) -> Method {
        self.method
    }

    /// How the last reset went, function by function.
    pub fn outcomes(&self) -> impl Iterator<Item = (Bdf, Result<(), Fault>)> + '_ {
        self.members.iter().map(|member| (member.saved.bdf, member.fault.map_or(Ok(()), Err)))
    }

    /// Begins at `now`: every function is silenced.
    pub fn start(&mut self, space: &impl ConfigSpace, now: u64) -> Progress {
        for Member { saved, fault } in &mut self.members {
            let answers = command_status(space.read32(saved.bdf, Offset::COMMAND)).is_some();
            *fault = if answers { None } else { Some(Fault::Absent) };
            if answers {
                saved.silence(space);
            }
        }
        self.state = State::Draining { until: self.after(now, Self::DRAIN_MS) };
        self.poll(space, now)
    }

    /// Takes the next step if its time has come. Never waits.
    pub fn poll(&mut self, space: &impl ConfigSpace, now: u64) -> Progress {
        match self.state {
            State::Over => return Progress::Over,
            State::Draining { until } => {
                let pending = |member: &Member| member.saved.is_pending(space, self.method);
                if now < until && self.healthy().any(pending) {
                    return self.ask_again(now, until);
                }
                self.assert(space, now);
            }
            State::Asserted { until } => {
                if now < until {
                    return Progress::Wait(until);
                }
                self.release(space, now);
            }
            State::Settling { until } => {
                if now < until {
                    return Progress::Wait(until);
                }
                self.state = State::Returning { until: self.after(now, Self::RETURN_MS) };
                return self.poll_returning(space, now);
            }
            State::Returning { .. } => return self.poll_returning(space, now),
        }
        match self.state {
            State::Asserted { until } | State::Settling { until } => Progress::Wait(until),
            _ => Progress::Over,
        }
    }

    fn after(&self, now: u64, ms: u64) -> u64 {
        now.saturating_add(self.ticks_per_ms.get().saturating_mul(ms))
    }

    fn ask_again(&self, now: u64, until: u64) -> Progress {
        Progress::Wait(self.after(now, Self::ASK_MS).min(until))
    }

    /// The functions nothing went wrong with so far.
    fn healthy(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.fault.is_none())
    }

    /// Begins the reset proper. A bus is reset even if nobody on it answers any more.
    fn assert(&mut self, space: &impl ConfigSpace, now: u64) {
        self.state = match self.method {
            Method::Function(reset) => {
                for Member { saved, .. } in self.healthy() {
                    initiate(space, saved, reset);
                }
                State::Settling { until: self.after(now, Self::FUNCTION_MS) }
            }
            Method::Power(control) => {
                for Member { saved, .. } in self.healthy() {
                    set_power_state(space, saved.bdf, control, D3_HOT);
                }
                State::Asserted { until: self.after(now, Self::POWER_MS) }
            }
            Method::Bus(bridge) => {
                if !set_bus_reset(space, bridge, true) {
                    // Whatever became of it, it does not stay in reset because of us.
                    set_bus_reset(space, bridge, false);
                    return self.fail_all(Fault::Bridge(bridge));
                }
                State::Asserted { until: self.after(now, Self::BUS_ASSERTED_MS) }
            }
        };
    }

    /// Ends the reset proper of a bus or of a function that sleeps.
    fn release(&mut self, space: &impl ConfigSpace, now: u64) {
        self.state = match self.method {
            Method::Function(_) => State::Settling { until: now },
            Method::Power(control) => {
                for Member { saved, .. } in self.healthy() {
                    set_power_state(space, saved.bdf, control, D0);
                }
                State::Settling { until: self.after(now, Self::POWER_MS) }
            }
            Method::Bus(bridge) => {
                if !set_bus_reset(space, bridge, false) {
                    return self.fail_all(Fault::Bridge(bridge));
                }
                State::Settling { until: self.after(now, Self::BUS_SETTLE_MS) }
            }
        };
    }

    fn fail_all(&mut self, fault: Fault) {
        for member in &mut self.members {
            member.fault = Some(fault);
        }
        self.state = State::Over;
    }

    /// Asks every function whether it is back; gives those that are, once all have answered or had their time, what they
    /// had before.
    fn poll_returning(&mut self, space: &impl ConfigSpace, now: u64) -> Progress {
        let State::Returning { until } = self.state else { return Progress::Over };
        let away = |member: &Member| matches!(answer(space, &member.saved), Answer::NotYet);
        if now < until && self.healthy().any(away) {
            return self.ask_again(now, until);
        }
        for Member { saved, fault } in self.members.iter_mut().filter(|member| member.fault.is_none()) {
            *fault = bring_back(space, saved).err();
        }
        self.state = State::Over;
        Progress::Over
    }
}

/// What a function says after its reset.
enum Answer {
    NotYet,
    Itself,
    Another(u32),
}

/// Asks for its identity. Until it can answer, it is retried in hardware or reads all-ones, or Vendor ID 1 for
/// software that asked to see that (PCIe 4.0 2.3.2).
fn answer(space: &impl ConfigSpace, saved: &Saved) -> Answer {
    match space.read32(saved.bdf, Offset::VENDOR_ID) {
        id if id == saved.id => Answer::Itself,
        id if matches!(id & 0xffff, 0xffff | 0x0001) => Answer::NotYet,
        another => Answer::Another(another),
    }
}

/// Judges a function that had its time to return, and restores it.
fn bring_back(space: &impl ConfigSpace, saved: &Saved) -> Result<(), Fault> {
    match answer(space, saved) {
        Answer::NotYet => return Err(Fault::NeverReturned),
        Answer::Another(id) => return Err(Fault::Replaced(id)),
        Answer::Itself => {}
    }
    if saved.power.is_some_and(|control| space.read16(saved.bdf, control) & POWER_STATE != D0) {
        return Err(Fault::NeverReturned);
    }
    // Told apart before anything is restored, but restored all the same.
    let untouched = saved.is_untouched(space);
    if let Err(fault) = saved.restore(space) {
        saved.silence(space);
        return Err(fault);
    }
    if untouched { Err(Fault::NoEffect) } else { Ok(()) }
}

/// PowerState, bits 1 to 0 of the power control and status register (PCI PM 1.2 3.2.4).
const POWER_STATE: u16 = 3;
const D0: u16 = 0;
const D3_HOT: u16 = 3;

fn set_power_state(space: &impl ConfigSpace, bdf: Bdf, control: Offset, state: u16) {
    // PME_Status, bit 15, would be cleared by writing it.
    const PME_STATUS: u16 = 1 << 15;
    let value = space.read16(bdf, control) & !(POWER_STATE | PME_STATUS);
    space.write16(bdf, control, value | state);
}

fn initiate(space: &impl ConfigSpace, saved: &Saved, reset: FunctionLevelReset) {
    match reset {
        FunctionLevelReset::PciExpress(control) => {
            const INITIATE: u16 = 1 << 15;
            let value = space.read16(saved.bdf, control);
            space.write16(saved.bdf, control, value | INITIATE);
        }
        FunctionLevelReset::AdvancedFeatures(control) => {
            const INITIATE: u8 = 1 << 0;
            space.write8(saved.bdf, control, INITIATE);
        }
    }
}

/// Writes Secondary Bus Reset, bit 6 of Bridge Control (PCI-to-PCI Bridge 1.2 3.2.5.18). Whether it then reads so.
fn set_bus_reset(space: &impl ConfigSpace, bridge: Bdf, asserted: bool) -> bool {
    const SECONDARY_BUS_RESET: u16 = 1 << 6;
    let control = space.read16(bridge, Offset::BRIDGE_CONTROL);
    if control == u16::MAX {
        return false;
    }
    let wanted = if asserted { control | SECONDARY_BUS_RESET } else { control & !SECONDARY_BUS_RESET };
    space.write16(bridge, Offset::BRIDGE_CONTROL, wanted);
    let reads = space.read16(bridge, Offset::BRIDGE_CONTROL);
    reads != u16::MAX && (reads & SECONDARY_BUS_RESET != 0) == asserted
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
