//! The one source of chance here.

use crate::rounds;

/// Runs a test's rounds.
pub(crate) fn fuzz(rounds: u64, round: impl Fn(&mut Dice)) {
    rounds::fuzz(rounds, |seed| round(&mut Dice::new(seed)));
}

/// Pseudo-random numbers: SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(crate) fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.any() % bound
    }

    /// Once in `times`.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// One of these, or now and then something else.
    pub(crate) fn mostly<T: Copy>(&mut self, usual: &[T], other: impl FnOnce(&mut Self) -> T) -> T {
        if self.one_in(usual.len() as u64 + 1) { other(self) } else { self.pick(usual) }
    }

    /// A number of the kind that goes wrong: small, a power of two and its neighbours, a sign bit, all ones, an address
    /// where something is, or any.
    pub(crate) fn hostile(&mut self) -> u64 {
        const PLACES: [u64; 8] = [
            0x1000,
            0xc000_0000,
            0xe000_0000,
            0xfec0_0000,
            0xfee0_0000,
            0x1_0000_0000,
            0xffff_8000_0000_0000,
            0xffff_ffff_fee0_0000,
        ];
        let near = self.below(3).wrapping_sub(1);
        match self.below(8) {
            0 => self.below(32),
            1 => (1_u64 << self.below(64)).wrapping_add(near),
            2 => u64::from(self.any() as u32),
            3 => u64::MAX - self.below(16),
            4 => self.pick(&PLACES).wrapping_add(near.wrapping_mul(self.pick(&[1, 4, 8]))),
            5 => self.any() & self.any() & self.any(),
            _ => self.any(),
        }
    }
}
