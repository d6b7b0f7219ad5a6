//! Levelhead, the hypervisor: the whole story of the machine from the loader to the run loop.
//!
//! This file composes; the rules are in the library (`src/lib.rs`), the hardware is in `arch`, `boot` and `platform`.
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod boot;
mod console;
mod platform;
mod rt;
mod selftest;

use alloc::vec::Vec;

use levelhead::frames::{Frames, Range};
use levelhead::irq::{ApicId, CpuId};
use log::{LevelFilter, info, warn};

use arch::svm::enable::{self, Unfit};
use arch::x86::cpu::ThisCpu;
use arch::x86::ioapic::IoApics;
use arch::x86::lapic::LocalApic;
use arch::x86::paging::{AddressSpace, OutOfMemory, image_range};
use boot::pvh::{BootInfo, HandOverError, MemoryKind};
use boot::smp::StartError;
use platform::handler::Memory;
use platform::tables::{self, FirmwareError};
use rt::exit::{Verdict, exit, set_port};

/// Why the machine ends before a guest ran.
enum BootError {
    HandOver(HandOverError),
    OutOfMemory,
    Firmware(FirmwareError),
    Unfit(Unfit),
    Start(StartError),
    Option { key: &'static str, right: &'static str },
}

/// Called by entry.S on the boot stack, once, with `delta` the distance of the image from its link address.
#[expect(unsafe_code, reason = "the symbol entry.S calls")]
#[unsafe(no_mangle)]
extern "C" fn lh_main(start_info: u32, delta: u32) -> ! {
    rt::heap::initialise();
    console::initialise();
    let verdict = match run(start_info, u64::from(delta)) {
        Ok(verdict) => verdict,
        Err(error) => error.report(),
    };
    exit(verdict)
}

fn run(start_info: u32, delta: u64) -> Result<Verdict, BootError> {
    // SAFETY: entry.S passes PVH's EBX and its identity map is still on.
    #[expect(unsafe_code, reason = "the loader's hand-over")]
    let loader = unsafe { BootInfo::read(start_info) }?;
    options(&loader)?;
    info!("Levelhead {} on {}", env!("CARGO_PKG_VERSION"), image_range(delta).start());

    // Memory: what is free, then tables of our own.
    let mut frames = free_memory(&loader, delta);
    // SAFETY: once, on the boot CPU; the ranges are usable RAM and `frames` is what is free of it.
    #[expect(unsafe_code, reason = "switches page tables")]
    let mut space = unsafe { AddressSpace::build(delta, loader.ranges(MemoryKind::Usable), &mut frames) }?;
    // SAFETY: once, on the boot CPU, with the tables just built.
    #[expect(unsafe_code, reason = "loads descriptor tables")]
    let mut cpu = unsafe { ThisCpu::initialise(CpuId(0), &mut space, &mut frames) }?;

    // Platform: CPUs, interrupt chips, virtualization.
    let facts = tables::discover(loader.rsdp, Memory { space: &mut space, frames: &mut frames })?;
    let apic = LocalApic::discover(&mut space, &mut frames)?;
    apic.enable();
    let mut io_apics = IoApics::default();
    for chip in &facts.io_apics {
        let pins = io_apics.add(chip.address, chip.gsi_base, &mut space, &mut frames)?;
        info!(
            "IO-APIC at {}: GSI {} to {}",
            chip.address,
            chip.gsi_base,
            chip.gsi_base + u32::from(pins.get()) - 1
        );
    }
    let features = enable::probe()?;
    info!(
        "{} CPU(s), local APIC {} in {} mode, SVM with {} ASIDs (features {:#x}), {} MiB free",
        facts.cpus.len(),
        apic.id().0,
        apic.mode(),
        features.asids,
        features.bits,
        frames.free_bytes() >> 20,
    );

    if loader.value("selftest") == Some("smp-vmrun") {
        return Ok(selftest::smp_vmrun(
            &mut cpu,
            cpu_list(&facts.cpus, &apic),
            apic,
            &mut space,
            &mut frames,
        )?);
    }
    warn!("nothing to run");
    Ok(Verdict::Refused)
}

/// The boot CPU first, then the others in the MADT's order.
fn cpu_list(apics: &[ApicId], apic: &LocalApic) -> Vec<(CpuId, ApicId)> {
    let own = apic.id();
    let others = apics.iter().copied().filter(|id| *id != own);
    (0..=u8::MAX).map(CpuId).zip(core::iter::once(own).chain(others)).collect()
}

fn options(loader: &BootInfo) -> Result<(), BootError> {
    if let Some(value) = loader.value("exit") {
        let digits = value.strip_prefix("0x").unwrap_or(value);
        let port = u16::from_str_radix(digits, 16).map_err(|_| BootError::Option {
            key: "exit",
            right: "a port in hexadecimal, such as exit=0xf4",
        })?;
        set_port(port);
    }
    if let Some(value) = loader.value("log") {
        let level = value.parse::<LevelFilter>().map_err(|_| BootError::Option {
            key: "log",
            right: "one of off, error, warn, info, debug, trace",
        })?;
        log::set_max_level(level);
    }
    Ok(())
}

/// Usable memory less the image, the module, and the first page, whose address means "none" to too many.
fn free_memory(loader: &BootInfo, delta: u64) -> Frames {
    let mut frames = Frames::new();
    let taken = [Some(Range::around(0, 1)), Some(image_range(delta))]
        .into_iter()
        .chain([loader.module.map(|(at, bytes)| Range::around(at.raw(), bytes))]);
    let mut lost = loader.ranges(MemoryKind::Usable).filter(|range| frames.add(*range).is_err()).count();
    for range in taken.flatten() {
        if frames.reserve(range).is_err() {
            lost += 1;
        }
    }
    if lost > 0 {
        warn!("the memory map has too many pieces: {lost} left out");
    }
    frames
}

impl BootError {
    /// Says who is at fault and what would be right.
    fn report(self) -> Verdict {
        let (party, verdict) = match &self {
            Self::HandOver(_) | Self::Firmware(_) => ("Firmware", Verdict::Unfit),
            Self::Unfit(_) | Self::Start(_) | Self::OutOfMemory => ("Machine", Verdict::Unfit),
            Self::Option { .. } => ("Config", Verdict::Refused),
        };
        match self {
            Self::HandOver(error) => log::error!("{party}: {error}"),
            Self::Firmware(error) => log::error!("{party}: {error}"),
            Self::Unfit(error) => log::error!("{party}: {error}"),
            Self::Start(error) => log::error!("{party}: {error}"),
            Self::OutOfMemory => {
                log::error!("{party}: not enough memory for the hypervisor and its partitions")
            }
            Self::Option { key, right } => log::error!("{party}: command line: {key} must be {right}"),
        }
        console::print(format_args!(
            "levelhead: verdict {}\n",
            if verdict == Verdict::Refused { "REFUSED" } else { "UNFIT" }
        ));
        verdict
    }
}

macro_rules! boot_error_from {
    ($($source:ty => $variant:ident),*) => {$(
        impl From<$source> for BootError {
            fn from(error: $source) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}
boot_error_from!(HandOverError => HandOver, FirmwareError => Firmware, Unfit => Unfit, StartError => Start);

impl From<OutOfMemory> for BootError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}
