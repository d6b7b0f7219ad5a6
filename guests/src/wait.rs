//! Waiting, with bounds: a guest that waits for an interrupt that never comes must say so.
//!
//! What is waited for is a condition. Time alone shows only that nothing more comes: another CPU, a device with a thread of its own in
//! an emulator, or the emulator as a whole may be held up for as long as the machine below is busy.

use crate::cpu;

/// How long a wait goes on at least, in ticks of the time stamp counter: some seconds on any machine, in which whoever is waited for
/// may have stood still for most of it.
const PATIENCE: u64 = 20_000_000_000;
/// How often it looks at least, and between two looks at the clock: who stood still meanwhile has not waited.
const LOOKS: u32 = 100_000;

/// Spins until `condition` holds. Returns whether it came to hold; gives up after some seconds.
///
/// There is no PAUSE in the loop: it would be one more exit to measure and to go wrong.
#[must_use]
pub fn until(mut condition: impl FnMut() -> bool) -> bool {
    let begin = cpu::timestamp();
    loop {
        if (0..LOOKS).any(|_| condition()) {
            return true;
        }
        if cpu::timestamp().wrapping_sub(begin) > PATIENCE {
            return false;
        }
    }
}

/// The same on a guest of several CPUs: an emulator that runs them in turns goes on to the next at each look.
#[must_use]
pub fn yielding(mut condition: impl FnMut() -> bool) -> bool {
    until(|| {
        core::hint::spin_loop();
        condition()
    })
}

/// Lets enough time pass for an interrupt that this CPU has asked for itself and that is on its way: some hundred instructions.
/// Emulators may take one a few instructions late.
pub fn a_moment() {
    spin(100);
}

/// Lets time pass in which nothing should happen: about 10^5 instructions.
pub fn a_while() {
    spin(50_000);
}

fn spin(rounds: u32) {
    for round in 0..rounds {
        core::hint::black_box(round);
    }
}
