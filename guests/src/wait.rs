//! Waiting, with bounds: a guest that waits for an interrupt that never comes must say so.

/// Spins until `condition` holds. Returns whether it came to hold; gives up after some seconds.
///
/// There is no PAUSE in the loop: it would be one more exit to measure and to go wrong.
#[must_use]
pub fn until(condition: impl Fn() -> bool) -> bool {
    const PATIENCE: u32 = 50_000_000;
    (0..PATIENCE).any(|_| condition())
}

/// The same on a guest of several CPUs: an emulator that runs them in turns goes on to the next at each look.
#[must_use]
pub fn yielding(condition: impl Fn() -> bool) -> bool {
    const PATIENCE: u32 = 3_000_000;
    (0..PATIENCE).any(|_| {
        core::hint::spin_loop();
        condition()
    })
}

/// Lets enough time pass for an interrupt that is on its way: some hundred instructions. Emulators may take one a
/// few instructions late.
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
