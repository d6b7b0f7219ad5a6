//! Whose a function is, where that may change while the machine runs: one word, and one claim at a time to change it.
//!
//! A partition's CPUs ask with each act that reaches beyond their guest's copy of the function ([`Ownership::is_held_by`]) and
//! do it at once: between asking and acting they answer nobody. Whoever moves the function first makes it nobody's
//! ([`Ownership::move_away`]), and then waits until each of those CPUs has answered. After that nobody acts any more who asked
//! before.
//!
//! Who acts for a partition none of whose CPUs is asked (its guest is over, and is put back to its beginning) has the claim
//! meanwhile ([`Ownership::keep`]), so that nobody moves the function under its hands.

use crate::sync::{AtomicU32, Ordering};

/// Whose a function is.
#[derive(Debug)]
pub struct Ownership(AtomicU32);

/// How a function stands to one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The partition has it.
    Held,
    /// It is on its way from the partition to another, or back; until that is over something may still be mapped in the
    /// partition.
    Leaving,
    /// Another partition has it, or did until it set out.
    Elsewhere,
}

/// Why there is no claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The function is another partition's.
    Foreign,
    /// Somebody else has the claim, for a bounded time.
    Claimed,
}

/// The right to change whose a function is, or to keep it from being changed. Given back when it is dropped.
#[derive(Debug)]
#[must_use = "the claim is given back at once"]
pub struct Claim<'a> {
    ownership: &'a Ownership,
    owner: u8,
}

impl Ownership {
    const OWNER: u32 = 0xff;
    /// Somebody has the claim.
    const CLAIMED: u32 = 1 << 8;
    /// The function is on its way from its owner to another.
    const MOVING: u32 = 1 << 9;

    /// A function that `owner` holds.
    #[cfg(not(loom))]
    pub const fn new(owner: u8) -> Self {
        Self(AtomicU32::new(owner as u32))
    }

    /// A function that `owner` holds.
    #[cfg(loom)]
    pub fn new(owner: u8) -> Self {
        Self(AtomicU32::new(owner.into()))
    }

    /// Whose it is; while it moves, whose it was.
    pub fn owner(&self) -> u8 {
        (self.0.load(Ordering::Acquire) & Self::OWNER) as u8
    }

    /// How it stands to `partition`.
    pub fn standing(&self, partition: u8) -> Standing {
        let now = self.0.load(Ordering::Acquire);
        match now & Self::OWNER == u32::from(partition) {
            true if now & Self::MOVING == 0 => Standing::Held,
            true => Standing::Leaving,
            false => Standing::Elsewhere,
        }
    }

    /// Whether `partition` has it, and it is not on its way to another.
    #[inline]
    pub fn is_held_by(&self, partition: u8) -> bool {
        self.0.load(Ordering::Acquire) & (Self::OWNER | Self::MOVING) == u32::from(partition)
    }

    /// Claims it for its owner, who goes on holding it.
    ///
    /// # Errors
    ///
    /// [`Refused::Foreign`] if `partition` does not own it, whoever claims it, unless it is on its way: whose it will be is not
    /// known then.
    pub fn keep(&self, partition: u8) -> Result<Claim<'_>, Refused> {
        let held = u32::from(partition);
        match self.0.compare_exchange(held, held | Self::CLAIMED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(Claim { ownership: self, owner: partition }),
            Err(now) if now & Self::MOVING != 0 || now & Self::OWNER == held => Err(Refused::Claimed),
            Err(_) => Err(Refused::Foreign),
        }
    }

    /// Claims it from its owner, whoever that is: nobody holds it from here on, until the claim goes.
    ///
    /// # Errors
    ///
    /// [`Refused::Claimed`].
    pub fn move_away(&self) -> Result<Claim<'_>, Refused> {
        let owner = self.owner();
        let held = u32::from(owner);
        let moving = held | Self::CLAIMED | Self::MOVING;
        match self.0.compare_exchange(held, moving, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(Claim { ownership: self, owner }),
            Err(_) => Err(Refused::Claimed),
        }
    }
}

impl Claim<'_> {
    /// Whose the function is, or was.
    pub const fn owner(&self) -> u8 {
        self.owner
    }

    /// `partition` holds the function from here on; the claim on it stays.
    pub fn pass_to(&mut self, partition: u8) {
        self.owner = partition;
        self.ownership.0.store(u32::from(partition) | Ownership::CLAIMED, Ordering::Release);
    }
}

impl Drop for Claim<'_> {
    /// Its owner holds it, and the next may claim it.
    fn drop(&mut self) {
        self.ownership.0.store(u32::from(self.owner), Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn n8_t13_nobody_holds_a_function_that_moves_and_one_claim_excludes_every_other() {
        let ownership = Ownership::new(3);
        assert!(ownership.is_held_by(3) && !ownership.is_held_by(4));
        assert_eq!(ownership.keep(4).err(), Some(Refused::Foreign));
        let mut claim = ownership.move_away().expect("nobody claims it");
        assert_eq!((claim.owner(), ownership.owner()), (3, 3));
        assert!(!ownership.is_held_by(3) && !ownership.is_held_by(4));
        // Whose it was is not told that it is gone, as what was mapped may still be.
        assert_eq!([3, 4].map(|of| ownership.standing(of)), [Standing::Leaving, Standing::Elsewhere]);
        for partition in [3, 4, 5] {
            assert_eq!(ownership.keep(partition).err(), Some(Refused::Claimed));
        }
        assert_eq!(ownership.move_away().err(), Some(Refused::Claimed));
        claim.pass_to(4);
        assert!(ownership.is_held_by(4) && !ownership.is_held_by(3));
        assert_eq!([3, 4].map(|of| ownership.standing(of)), [Standing::Elsewhere, Standing::Held]);
        assert_eq!(ownership.move_away().err(), Some(Refused::Claimed), "the claim outlives the passage");
        drop(claim);
        assert!(ownership.is_held_by(4));
        assert_eq!(ownership.keep(3).err(), Some(Refused::Foreign));
    }

    #[test]
    fn a_move_that_is_given_up_leaves_the_function_where_it_was() {
        let ownership = Ownership::new(0);
        drop(ownership.move_away().expect("nobody claims it"));
        assert!(ownership.is_held_by(0));
    }

    #[test]
    fn whoever_keeps_it_goes_on_holding_it() {
        let ownership = Ownership::new(7);
        let claim = ownership.keep(7).expect("it is its own");
        assert!(ownership.is_held_by(7));
        assert_eq!(ownership.keep(7).err(), Some(Refused::Claimed));
        assert_eq!(ownership.keep(8).err(), Some(Refused::Foreign), "nobody else waits for that");
        assert_eq!(ownership.move_away().err(), Some(Refused::Claimed));
        drop(claim);
        assert!(ownership.is_held_by(7));
        assert_eq!(ownership.move_away().map(|claim| claim.owner()).ok(), Some(7));
    }
}
