//! A run, instruction by instruction: what QEMU tells of it, and where its rounds are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Result};
use levelhead::svm::ExitCode;
use object::{Object as _, ObjectSection as _, SectionKind};

use crate::symbols::Image;

/// What QEMU is to tell: each instruction before it runs, what came between, and each exit of a guest, which counts as
/// something about the code that is translated.
pub(super) const ITEMS: &str = "exec,nochain,in_asm";

/// What a line of the trace tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The instruction at this address runs.
    Runs(u64),
    /// The one at this address was told of, but has not run: something else came first, or it is begun again.
    Waits(u64),
    /// The guest is left, for that reason.
    Exits(ExitCode),
}

impl Told {
    /// Nothing if the line is about something else.
    fn read(line: &str) -> Option<Self> {
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
        if let Some(at) = line.strip_prefix("Trace ") {
            // The code segment's base, the address, flags.
            let (_, place) = at.split_once('[')?;
            return place.split('/').nth(1).and_then(hexadecimal).map(Self::Runs);
        }
        if let Some(at) = line.strip_prefix("Stopped execution of TB chain before ") {
            let (_, place) = at.split_once('[')?;
            return place.split(']').next().and_then(hexadecimal).map(Self::Waits);
        }
        if let Some(exit) = line.strip_prefix("vmexit(") {
            return exit.split(',').next().and_then(hexadecimal).map(ExitCode::new).map(Self::Exits);
        }
        line.strip_prefix("cpu_io_recompile: rewound execution of TB to ")
            .and_then(hexadecimal)
            .map(Self::Waits)
    }
}

/// What ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// The addresses of the instructions, in their order.
    pub(super) instructions: Vec<u64>,
    /// The exits, by the number of instructions before.
    pub(super) exits: BTreeMap<usize, ExitCode>,
}

impl Run {
    /// Reads a trace to its end.
    ///
    /// # Errors
    /// When there is nothing more to be read before the end.
    pub(super) fn read(mut trace: impl BufRead) -> io::Result<Self> {
        let mut run = Self::default();
        let mut line = Vec::new();
        while trace.read_until(b'\n', &mut line)? > 0 {
            if let Some(told) = Told::read(String::from_utf8_lossy(&line).trim_end()) {
                run.take(told);
            }
            line.clear();
        }
        Ok(run)
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Runs(address) => self.instructions.push(address),
            Told::Waits(address) => drop(self.instructions.pop_if(|last| *last == address)),
            Told::Exits(code) => {
                // An event comes between two instructions. For any other reason the last one has come to nothing, and
                // does not count.
                let event = ExitCode::INTR.raw()..=ExitCode::VINTR.raw();
                if !event.contains(&code.raw()) {
                    self.instructions.pop();
                }
                self.exits.insert(self.instructions.len(), code);
            }
        }
    }
}

/// Who takes a time stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// The program that is interrupted.
    Program,
    /// The handler of the interrupt.
    Handler,
}

/// Where the guest reads the time stamp counter.
pub(super) struct Clocks {
    handler: BTreeSet<u64>,
    program: BTreeSet<u64>,
}

impl Clocks {
    /// Of the guest's image, which runs at the addresses that it was linked for.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn of(path: &Path) -> Result<Self> {
        const RDTSC: [u8; 2] = [0x0f, 0x31];
        let image = Image::open(path)?;
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = object::File::parse(&*bytes)?;
        let (mut handler, mut program) = (BTreeSet::new(), BTreeSet::new());
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            // Bytes of this value that are no instruction never run.
            let found = section.data()?.windows(RDTSC.len()).zip(section.address()..);
            for (_, address) in found.filter(|(bytes, _)| *bytes == RDTSC) {
                let function = image.function(address);
                let handles = function.is_some_and(|(name, _)| name.ends_with("_handler"));
                if handles {
                    handler.insert(address)
                } else {
                    program.insert(address)
                };
            }
        }
        Ok(Self { handler, program })
    }

    /// Whose the time stamp is that the instruction at `address` takes, if it takes one.
    pub(super) fn at(&self, address: u64) -> Option<Clock> {
        if self.handler.contains(&address) {
            Some(Clock::Handler)
        } else {
            self.program.contains(&address).then_some(Clock::Program)
        }
    }
}

/// What a round consists of, between the five time stamps of the guest.
pub(super) const PARTS: usize = 4;

/// A round by its parts, as ranges of the instructions that ran.
pub(super) type Round = [Range<usize>; PARTS];

/// The whole rounds among the instructions, each by its parts. `clock` tells where time stamps are taken.
pub(super) fn rounds(ran: &[u64], clock: impl Fn(u64) -> Option<Clock>) -> Vec<Round> {
    use Clock::{Handler, Program};
    let stamps = ran.iter().enumerate().filter_map(|(at, address)| Some((at, clock(*address)?)));
    let stamps: Vec<_> = stamps.collect();
    let round = |stamps: &[(usize, Clock)]| match *stamps {
        [(raised, Program), (entered, Handler), (served, Handler), (completed, Handler), (seen, Program)] => {
            Some([raised..entered, entered..served, served..completed, completed..seen])
        }
        _ => None,
    };
    stamps.windows(PARTS + 1).filter_map(round).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_run_does_not_count() {
        // As QEMU 7.2 writes it, shortened.
        let trace = "\
Trace 0: 0x7f4600 [0000000000000000/0000000000200123/0060c2b0/ff020201]
vmexit(00000060, 0000000000000000, 0000000000000000, 0000000000200125)!
Trace 0: 0x7f4610 [0000000000000000/ffffffff80200188/0050c2b0/ff020201] lh_vmrun
Trace 0: 0x7f4620 [0000000000000000/ffffffff80237b4f/0050c2b0/ff020201] take_line
cpu_io_recompile: rewound execution of TB to ffffffff80237b4f
Trace 0: 0x7f4630 [0000000000000000/ffffffff80237b4f/0050c2b0/ff028001] take_line
Trace 0: 0x7f4640 [0000000000000000/ffffffff80237adf/0050c2b0/ff020201] take_line
Stopped execution of TB chain before 0x7f4640 [ffffffff80237adf] take_line
Trace 0: 0x7f4640 [0000000000000000/ffffffff80237adf/0050c2b0/ff020201] take_line
----------------
IN: nothing that is known
Trace 0: 0x7f4660 [0000000000000000/0000000000200125/0060c2b0/ff020201]
Trace 0: 0x7f4660 [0000000000000000/0000000000200127/0060c2b0/ff020201]
vmexit(0000007c, 0000000000000001, 0000000000000000, 0000000000200127)!
Trace 0: 0x7f46";
        let run = Run::read(trace.as_bytes()).unwrap();
        let ran = [0x20_0123, 0xffff_ffff_8020_0188, 0xffff_ffff_8023_7b4f, 0xffff_ffff_8023_7adf, 0x20_0125];
        assert_eq!(run.instructions, ran, "{run:x?}");
        assert_eq!(run.exits, BTreeMap::from([(1, ExitCode::INTR), (5, ExitCode::MSR)]));
    }

    #[test]
    fn rounds_are_whole_and_cut_at_the_guests_time_stamps() {
        let clock = |address| match address {
            1 | 5 => Some(Clock::Program),
            2..5 => Some(Clock::Handler),
            _ => None,
        };
        let ran = [3, 9, 4, 9, 5, 9, 1, 90, 91, 2, 9, 3, 92, 4, 9, 9, 5, 1, 2, 3, 4, 5, 1, 9, 2];
        assert_eq!(rounds(&ran, clock), [[6..9, 9..11, 11..13, 13..16], [17..18, 18..19, 19..20, 20..21]]);
        assert!(rounds(&[1, 1, 2, 3, 4], clock).is_empty());
    }
}
