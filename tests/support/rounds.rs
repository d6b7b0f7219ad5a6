//! How long a test at random goes on, and from where.
//!
//! A *round* is one history with a seed of its own: round n of seed s is round 0 of seed s + n. The numbers come from
//! `LEVELHEAD_FUZZ_ROUNDS` (default: each test's own) and `LEVELHEAD_FUZZ_SEED` (default 0), which `cargo xtask test
//! --fuzz-rounds N --seed S` sets. A round that fails says with which command it is repeated alone.

use std::env;
use std::thread;

/// Runs a test's rounds, each with its seed.
pub(crate) fn fuzz(rounds: u64, round: impl Fn(u64)) {
    let first = variable("LEVELHEAD_FUZZ_SEED").unwrap_or(0);
    for number in 0..variable("LEVELHEAD_FUZZ_ROUNDS").unwrap_or(rounds) {
        let seed = first.wrapping_add(number);
        let replay = Replay { seed };
        round(seed);
        drop(replay);
    }
}

fn variable(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, and must be a number from 0 to 2^64 - 1")),
    )
}

/// Names the round when it ends by a panic.
struct Replay {
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if thread::panicking() {
            let thread = thread::current();
            // The test harness names threads by their tests.
            let test = thread.name().unwrap_or("");
            let binary = env!("CARGO_CRATE_NAME");
            eprintln!("again: cargo xtask test host/{binary}::{test} --seed {} --fuzz-rounds 1", self.seed);
        }
    }
}
