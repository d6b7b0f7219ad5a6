//! The first steps of boot that `main.rs` names: the command line, free memory, the old interrupt chips, the CPUs.

use alloc::format;
use alloc::vec::Vec;

use levelhead::config;
use levelhead::decide::{Finding, claim};
use levelhead::facts::MemoryKind;
use levelhead::frames::{Frames, Range};
use levelhead::irq::{ApicId, CpuId};
use levelhead::message::{Message, Record, Refusal};
use log::LevelFilter;
use x86_64::instructions::port::Port;

use crate::arch::x86::lapic::LocalApic;
use crate::arch::x86::paging::image_range;
use crate::boot::pvh::BootInfo;
use crate::report::record;
use crate::rt::exit::set_port;

/// The word that asks for a report of the machine instead of partitions.
pub(crate) const FACTS: &str = "facts";
/// Where a word of the command line stands.
const COMMAND_LINE: &str = "command line";

/// Applies the command line's words `log=LEVEL` and `exit=PORT`, of which the last counts. Of a wrong one nothing is
/// applied: a refusal still ends at the port of an earlier one.
pub(crate) fn options(loader: &BootInfo) -> Result<(), Refusal> {
    let mut result = Ok(());
    for word in loader.words() {
        let done = match word.split_once('=') {
            Some(("exit", value)) => exit_port(value),
            Some(("log", value)) => log_level(value),
            Some(("selftest", _)) => Ok(()),
            None if word == FACTS => Ok(()),
            _ => {
                let what = format_args!("{word:?} means nothing");
                record(Record {
                    message: Message::OptionUnknown,
                    place: &COMMAND_LINE,
                    what: Some(&what),
                    remedy: None,
                });
                Ok(())
            }
        };
        result = result.and(done);
    }
    result
}

fn exit_port(value: &str) -> Result<(), Refusal> {
    let digits = value.strip_prefix("0x").unwrap_or(value);
    let port = u16::from_str_radix(digits, 16)
        .map_err(|_| option_value("exit", value, "write a port in hexadecimal, such as exit=0xf4"))?;
    set_port(port);
    Ok(())
}

fn log_level(value: &str) -> Result<(), Refusal> {
    let level = value
        .parse::<LevelFilter>()
        .map_err(|_| option_value("log", value, "write one of off, error, warn, info, debug, trace"))?;
    log::set_max_level(level);
    Ok(())
}

/// The refusal of a word of the command line: `right` says what would be right.
pub(crate) fn option_value(key: &str, value: &str, right: &str) -> Refusal {
    let what = format!("{key}={value} means nothing");
    Refusal::new(Message::OptionValue, COMMAND_LINE, what).remedy(right)
}

/// Usable memory less the image, the module, and the first page, whose address means "none" to too many.
pub(crate) fn free_memory(loader: &BootInfo, delta: u64) -> Frames {
    let mut frames = Frames::new();
    let mut lost = loader.ranges(MemoryKind::Usable).filter(|range| frames.add(*range).is_err()).count();
    let module = loader.module.map(|(at, bytes)| Range::around(at.raw(), bytes));
    for taken in [Range::around(0, 1), image_range(delta)].into_iter().chain(module) {
        lost += usize::from(frames.reserve(taken).is_err());
    }
    if lost > 0 {
        let what = format_args!("the memory map has too many pieces: {lost} left out");
        record(Record { message: Message::MemoryPieces, place: &"loader", what: Some(&what), remedy: None });
    }
    frames
}

/// The memory that the configuration places.
#[derive(Default)]
pub(crate) struct Claimed {
    /// How much of what was free it is.
    pub(crate) bytes: u64,
    /// What is wrong with the places.
    pub(crate) findings: Vec<Finding>,
}

/// Takes the memory that the configuration places out of `frames`, before anything of the hypervisor's own can come to lie
/// there. A bundle that is no good claims nothing; the judgement of it comes later, when page tables and reports are in order.
///
/// # Safety
///
/// Called with entry.S's tables on, before any memory is reused.
#[expect(unsafe_code, reason = "looks into the bundle early")]
pub(crate) unsafe fn claim_places(loader: &BootInfo, delta: u64, frames: &mut Frames) -> Claimed {
    // SAFETY: the caller promises that the identity map is on and that no memory was reused; the slice ends with this function.
    let Some(module) = (unsafe { loader.early_module() }) else { return Claimed::default() };
    let Ok((config, _)) = config::unpack(module) else { return Claimed::default() };
    let free = frames.free_bytes();
    let map: Vec<_> = loader.memory().collect();
    let mut taken = Vec::from([("the hypervisor", image_range(delta))]);
    taken.extend(loader.module.map(|(at, bytes)| ("the bundle", Range::around(at.raw(), bytes))));
    let findings = claim(&config, frames, &map, &taken);
    Claimed { bytes: free.saturating_sub(frames.free_bytes()), findings }
}

/// Silences the two 8259s, which firmware may have left open: every interrupt comes by an IO-APIC.
#[expect(unsafe_code, reason = "port writes to the 8259s")]
pub(crate) fn mask_pic() {
    for port in [0x21u16, 0xa1] {
        // SAFETY: the mask registers of the 8259s, where every PC has them or nothing; no memory is touched.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}

/// The boot CPU first, then the others in the MADT's order.
pub(crate) fn cpus(apics: &[ApicId], apic: &LocalApic) -> Vec<(CpuId, ApicId)> {
    let own = apic.id();
    let others = apics.iter().copied().filter(|id| *id != own);
    (0..=u8::MAX).map(CpuId).zip(core::iter::once(own).chain(others)).collect()
}
