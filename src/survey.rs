//! The facts report (command line word `facts`): the machine described on the console, for tools to judge configurations by.
//!
//! Nothing runs meanwhile and every line is masked. Firmware's AML comes last, since the interpreter may give up on it: then the
//! panic handler closes the report by [`close_without_routing`].

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};

use levelhead::facts::frame::{Framed, Progress};
use levelhead::facts::text::unknown_routing;
use levelhead::facts::{Facts, Processor, Proof, Routing};
use levelhead::pci::{DisIntx, IntxView};
use levelhead::sync::Lock;

use crate::arch::svm::enable::Features;
use crate::arch::x86::config_space::HostConfig;
use crate::arch::x86::cpu::cpuid;
use crate::console;

/// How far the report has come whose routing is being asked for.
static UNFINISHED: Lock<Option<Progress>> = Lock::new(None);

/// The console as the report writes it: also when the code that is being reported on holds its lock.
struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        console::print_at_the_end(format_args!("{text}"));
        Ok(())
    }
}

/// What CPUID says of this CPU.
pub(crate) fn processor(features: Features) -> Processor {
    let text = |registers: &[u32]| {
        let bytes: Vec<u8> = registers.iter().flat_map(|register| register.to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']).to_string()
    };
    let vendor = cpuid(0, 0);
    // The model's leaves end below those of SVM, which has been found.
    let model = (0x8000_0002..=0x8000_0004).flat_map(|leaf| {
        let found = cpuid(leaf, 0);
        [found.eax, found.ebx, found.ecx, found.edx]
    });
    Processor {
        vendor: text(&[vendor.ebx, vendor.edx, vendor.ecx]),
        model: text(&model.collect::<Vec<_>>()),
        asids: features.asids,
        svm_features: features.bits,
    }
}

/// Looks at the interrupt bits of every function with a pin.
pub(crate) fn prove(facts: &mut Facts, config: &HostConfig) {
    let with_pin = facts.functions.iter().filter(|function| function.interrupt_pin.is_some());
    facts.proofs = with_pin
        .map(|function| Proof {
            bdf: function.bdf,
            pending: IntxView::read(config, function.bdf).is_pending(),
            dis_intx: DisIntx::try_out(config, function),
        })
        .collect();
}

/// Writes all but the routing.
///
/// # Errors
/// When the machine cannot be written down in the report's lines.
pub(crate) fn begin(facts: &Facts) -> fmt::Result {
    let mut report = Framed::begin(Out)?;
    write!(report, "{}", facts.machine())?;
    let progress = report.progress();
    UNFINISHED.with(|slot| *slot = Some(progress));
    Ok(())
}

/// Writes the routing, and the end.
///
/// # Errors
/// As [`begin`].
pub(crate) fn close(routing: &Routing) -> fmt::Result {
    finish(routing)
}

/// Closes a report whose routing cannot be had, for this reason; whether one was open. Nothing is allocated.
pub(crate) fn close_without_routing(why: &dyn fmt::Display) -> bool {
    finish(&unknown_routing(why)).is_ok()
}

fn finish(routing: &dyn fmt::Display) -> fmt::Result {
    // Neither this nor `begin` panics under the lock.
    let progress = UNFINISHED.with(Option::take).ok_or(fmt::Error)?;
    let mut report = Framed::resume(Out, progress);
    write!(report, "{routing}")?;
    report.end()
}
