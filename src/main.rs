//! Levelhead, the hypervisor: the whole story of the machine from the loader to the run loop.
//!
//! This file composes; the rules are in the library (`src/lib.rs`), the hardware is in `arch`, `boot` and `platform`, a
//! guest is in `partition`, and what happens between an entry and an exit is in `run.rs`.
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod boot;
mod console;
mod exits;
mod hypercalls;
mod launch;
mod lives;
mod machine;
mod order;
mod partition;
mod platform;
mod report;
mod rt;
mod run;
mod selftest;
mod setup;
mod survey;
mod system;
mod takeover;

use alloc::vec::Vec;

use levelhead::facts::{IoApic, MemoryKind};
use levelhead::irq::CpuId;
use levelhead::message::{Message, Refusal};
use log::{info, warn};

use arch::svm::enable;
use arch::x86::cpu::ThisCpu;
use arch::x86::ioapic::{IoApics, LAST_GSI_BASE};
use arch::x86::lapic::LocalApic;
use arch::x86::memory;
use arch::x86::paging::{AddressSpace, image_range};
use boot::pvh::BootInfo;
use platform::handler::Memory;
use platform::tables;
use report::BootError;
use rt::build_id::BuildId;
use rt::exit::{Verdict, exit};
use rt::heap;

/// Called by entry.S on the boot stack, once, with `delta` the distance of the image from its link address.
#[expect(unsafe_code, reason = "the symbol entry.S calls")]
#[unsafe(no_mangle)]
extern "C" fn lh_main(start_info: u32, delta: u32) -> ! {
    heap::initialise();
    console::initialise();
    let verdict = boot(start_info, u64::from(delta)).unwrap_or_else(BootError::report);
    exit(verdict)
}

fn boot(start_info: u32, delta: u64) -> Result<Verdict, BootError> {
    // What the loader says, and what the command line asks for.
    // SAFETY: entry.S passes PVH's EBX, and its identity map is still on.
    #[expect(unsafe_code, reason = "the loader's hand-over")]
    let loader = unsafe { BootInfo::read(start_info) }?;
    setup::options(&loader)?;
    info!("Levelhead {} at {}, build-id {BuildId}", env!("CARGO_PKG_VERSION"), image_range(delta).start());

    // Memory: what is free, then page tables and descriptor tables of our own.
    let mut frames = setup::free_memory(&loader, delta);
    // SAFETY: entry.S's identity map is still on, and nothing was allocated yet.
    #[expect(unsafe_code, reason = "looks into the bundle early")]
    let claimed = unsafe { setup::claim_places(&loader, delta, &mut frames) };
    // SAFETY: once, on the boot CPU; the ranges are usable RAM, and `frames` is what is free of it.
    #[expect(unsafe_code, reason = "switches page tables")]
    let mut space = unsafe { AddressSpace::build(delta, loader.ranges(MemoryKind::Usable), &mut frames) }?;
    // SAFETY: once, on the boot CPU, with the tables just built.
    #[expect(unsafe_code, reason = "loads descriptor tables")]
    let mut cpu = unsafe { ThisCpu::initialise(CpuId(0), &mut space, &mut frames) }?;
    memory::settle();
    let test = loader.value("selftest");
    let rounds = test.map(selftest::smp_vmrun::rounds).transpose()?.flatten();
    if let (Some(name), None) = (test, rounds) {
        return selftest::fault(name);
    }

    // Platform: interrupt chips, CPUs, virtualization.
    let platform = tables::discover(loader.rsdp, Memory { space: &mut space, frames: &mut frames })?;
    let apic = LocalApic::discover(&mut space, &mut frames)?;
    setup::mask_pic();
    apic.enable();
    let mut io_apics = IoApics::default();
    let mut chips = Vec::new();
    for &tables::IoApicEntry { address, gsi_base } in &platform.io_apics {
        let Some(pins) = io_apics.add(address, gsi_base, &mut space, &mut frames)? else {
            warn!(
                "IO-APIC at {address}: not used, as its GSIs from {gsi_base} on are beyond {LAST_GSI_BASE}"
            );
            continue;
        };
        let pins = pins.get();
        info!("IO-APIC at {address}: GSI {gsi_base} to {}", gsi_base.saturating_add(u32::from(pins) - 1));
        chips.push(IoApic { address, gsi_base, pins });
    }
    let features = enable::probe()?;
    let cpus = setup::cpus(&platform.cpus, &apic);
    info!(
        "{} CPU(s), local APIC in {} mode, SVM with {} ASIDs (features {:#x}), {} MiB free",
        cpus.len(),
        apic.mode(),
        features.asids,
        features.bits,
        frames.free_bytes() >> 20,
    );
    if let Some(rounds) = rounds {
        if cpus.len() < 2 {
            let message = Message::SelftestCpus;
            return Err(Refusal::new(message, "command line: selftest=smp-vmrun", message.meaning()).into());
        }
        return Ok(selftest::smp_vmrun::run(rounds, &mut cpu, cpus, apic, &mut space, &mut frames)?);
    }

    // Partitions: judge the bundle, find and assign their devices, install their lines, load their images.
    let (space, frames) = (&mut space, &mut frames);
    let system = system::System {
        loader: &loader,
        claimed,
        platform,
        chips,
        cpus: &cpus,
        apic,
        io_apics,
        features,
        space,
        frames,
    };
    if loader.words().any(|word| word == setup::FACTS) {
        return system.report_facts();
    }
    let ready = system.build()?;
    report::lines(ready.machine);

    // And run.
    launch::run_all(&mut cpu, &cpus, ready, space, frames)
}
