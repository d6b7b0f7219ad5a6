//! The notifier: where an assertion goes, and the one atomic word through which it is replaced.
//!
//! A [`NotifierSlot`] is a single 64-bit word. Everything a delivery must know, and everything a replacement must
//! wait for, changes in it by one read-modify-write, so no interleaving shows a mixture:
//!
//! ```text
//!  63          49 48          34   33       32    31                                  0
//! +--------------+--------------+--------+------+--------------------------------------+
//! | in flight,   | in flight,   | parity | mark | target                               |
//! | odd          | even         |        |      |                                      |
//! +--------------+--------------+--------+------+--------------------------------------+
//! ```
//!
//! | field | written by | meaning |
//! | --- | --- | --- |
//! | target | replacer, XOR | the [`Notifier`] of now, in the encoding of [`Notifier::bits`] |
//! | mark | delivery, OR; replacer, AND | an assertion met no notifier and waits for the next one |
//! | parity | replacer, XOR together with the target | the epoch: which of the two counts a new delivery joins |
//! | in flight | delivery, ADD and SUB | deliveries that read the word in that epoch and may still use what they read |
//!
//! **A delivery** guesses the parity by a plain load and then adds one to that count. The addition returns the word as
//! it was at that instant: if the guess was right, target, parity and count were taken in one step. If a replacer
//! flipped the parity in between, the delivery adds itself to the *other* count as well and believes this second
//! word: now it stands in both counts, so whichever epoch that word names, it is counted there. It never loops: two
//! read-modify-writes to enter at the very most, one to leave.
//!
//! **A replacement** publishes target and flipped parity by one XOR, then waits until the count of the old epoch is
//! zero. That is the grace period: every delivery that read the old target stands in that count. The wait is
//! bounded however fast new deliveries arrive, because a delivery that guesses after the flip guesses right (the
//! next flip cannot come before this wait is over: [`Control`] serialises replacers) and leaves the old count alone.
//! Only a guess older than the flip can still add to it, once per CPU.
//!
//! **No notifier** is a legal target. A delivery that meets it is already counted in the same word, by the same
//! operation that showed it the emptiness; before it leaves it turns its count into the mark. The next replacement
//! cannot finish in between, since it waits for that count, so it finds either the count or the mark.

use core::fmt;

use crate::irq::Pin;
use crate::sync::{AtomicU64, Ordering};

/// Where an assertion is sent. A plain value; the slot holds one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Notifier {
    /// Nowhere: the source is held closed until there is a receiver.
    #[default]
    None,
    /// A pin of a partition's virtual IO-APIC.
    Pin {
        /// The receiving partition, by its number in the configuration.
        partition: u8,
        /// The input of its virtual IO-APIC.
        vpin: Pin,
    },
    /// A counter in the partition's memory, which it polls; the unmask hypercall completes.
    Poll {
        /// Which of the machine's poll counters.
        counter: u16,
    },
}

impl Notifier {
    const KIND_SHIFT: u32 = 30;
    const KIND_PIN: u32 = 1;
    const KIND_POLL: u32 = 2;

    /// The 32-bit encoding: bits 31 to 30 tell the kind (0 none, 1 pin, 2 poll); a pin keeps its partition in bits 15
    /// to 8 and its number in bits 7 to 0, a poll its counter in bits 15 to 0. All other bits are zero.
    pub const fn bits(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Pin { partition, vpin } => {
                Self::KIND_PIN << Self::KIND_SHIFT | (partition as u32) << 8 | vpin.0 as u32
            }
            Self::Poll { counter } => Self::KIND_POLL << Self::KIND_SHIFT | counter as u32,
        }
    }

    /// The value with this encoding. Total: only [`Notifier::bits`] writes the slot, and a kind it never writes
    /// reads as no notifier.
    pub const fn from_bits(bits: u32) -> Self {
        match bits >> Self::KIND_SHIFT {
            Self::KIND_PIN => Self::Pin { partition: (bits >> 8) as u8, vpin: Pin(bits as u8) },
            Self::KIND_POLL => Self::Poll { counter: bits as u16 },
            _ => Self::None,
        }
    }

    /// Whether this is [`Notifier::None`].
    pub const fn is_none(self) -> bool {
        matches!(self, Self::None)
    }
}

impl fmt::Display for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Pin { partition, vpin } => write!(f, "partition {partition} pin {}", vpin.0),
            Self::Poll { counter } => write!(f, "poll counter {counter}"),
        }
    }
}

/// The epoch of a slot: flipped by every replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parity {
    /// The epoch a new slot starts in.
    Even,
    /// The other one.
    Odd,
}

impl Parity {
    /// The epoch after this one, and the one before it.
    #[must_use]
    pub const fn flipped(self) -> Self {
        match self {
            Self::Even => Self::Odd,
            Self::Odd => Self::Even,
        }
    }

    /// One delivery in this epoch's count.
    const fn one(self) -> u64 {
        match self {
            Self::Even => 1 << Word::EVEN_SHIFT,
            Self::Odd => 1 << Word::ODD_SHIFT,
        }
    }
}

/// Whom an assertion reached: a notifier, in one epoch of its slot. Packed as [`Notifier::bits`] are, with the parity in bit 16, so
/// that on every interrupt's way it is written in one piece and compared in one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addressee(u32);

impl Addressee {
    const PARITY_SHIFT: u32 = 16;

    /// This notifier, in this epoch.
    pub const fn new(target: Notifier, parity: Parity) -> Self {
        Self(target.bits() | (parity as u32) << Self::PARITY_SHIFT)
    }

    /// The notifier.
    #[inline]
    pub const fn target(self) -> Notifier {
        Notifier::from_bits(self.0)
    }

    /// The epoch.
    #[inline]
    pub const fn parity(self) -> Parity {
        if self.0 >> Self::PARITY_SHIFT & 1 == 0 { Parity::Even } else { Parity::Odd }
    }

    /// Whether it is this notifier, in whichever epoch.
    #[inline]
    pub const fn is(self, target: Notifier) -> bool {
        self.0 & !(1 << Self::PARITY_SHIFT) == target.bits()
    }

    /// Whether it is nobody.
    #[inline]
    pub const fn is_none(self) -> bool {
        self.0 >> Notifier::KIND_SHIFT == 0
    }
}

impl fmt::Debug for Addressee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in the {:?} epoch", self.target(), self.parity())
    }
}

/// The slot's word, taken apart as the table in the module's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word(u64);

impl Word {
    const MARK: u64 = 1 << 32;
    const PARITY: u64 = 1 << 33;
    const EVEN_SHIFT: u32 = 34;
    const ODD_SHIFT: u32 = 49;
    /// 15 bits. A CPU is in at most one delivery of a slot and takes at most two counts for it, so 255 CPUs are far
    /// from carrying into a neighbour.
    const COUNT: u64 = 0x7fff;
    /// Both counts.
    const COUNTS: u64 = Self::COUNT << Self::EVEN_SHIFT | Self::COUNT << Self::ODD_SHIFT;

    const fn target(self) -> Notifier {
        Notifier::from_bits(self.0 as u32)
    }

    const fn marked(self) -> bool {
        self.0 & Self::MARK != 0
    }

    const fn parity(self) -> Parity {
        if self.0 & Self::PARITY == 0 { Parity::Even } else { Parity::Odd }
    }

    const fn in_flight(self, parity: Parity) -> u16 {
        let shift = match parity {
            Parity::Even => Self::EVEN_SHIFT,
            Parity::Odd => Self::ODD_SHIFT,
        };
        (self.0 >> shift & Self::COUNT) as u16
    }
}

/// The right to replace notifiers. There is one per line table and it is neither copied nor cloned: who holds it is the
/// only replacer, from [`NotifierSlot::replace`] until [`Retiring::poll`] hands it back.
#[derive(Debug)]
pub struct Control(());

impl Control {
    /// The one token of a table, or of a slot that stands alone in a test. A second one for the same slots would
    /// break the grace period (not memory safety: a count would be misread).
    pub const fn mint() -> Self {
        Self(())
    }
}

/// A delivery's place in the counts of a slot. Plain data, so that it can be kept in a table until the delivery is made;
/// [`NotifierSlot::leave`] must be called with it exactly once.
///
/// Target and parity stand as in the word at the instant of entry; the counts are what the delivery has added to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered(Word);

impl Entered {
    /// Counted with `charge` when the slot's word was `word`.
    #[inline]
    const fn new(word: Word, charge: u64) -> Self {
        Self(Word(word.0 & !Word::COUNTS | charge))
    }

    /// The notifier at the instant of entry. It stays valid until [`NotifierSlot::leave`].
    #[inline]
    pub const fn target(self) -> Notifier {
        self.0.target()
    }

    /// The notifier at the instant of entry, with the epoch.
    #[inline]
    pub const fn addressee(self) -> Addressee {
        let parity = (self.0.0 & Word::PARITY) >> Word::PARITY.trailing_zeros();
        Addressee(self.0.0 as u32 | (parity as u32) << Addressee::PARITY_SHIFT)
    }

    /// What is to be taken off the counts again.
    const fn charge(self) -> u64 {
        self.0.0 & Word::COUNTS
    }
}

/// What a slot shows to a report: one load, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotSnapshot {
    /// The notifier.
    pub target: Notifier,
    /// Whether an assertion waits for the next notifier.
    pub marked: bool,
    /// The epoch.
    pub parity: Parity,
    /// Deliveries in flight, even epoch.
    pub in_flight_even: u16,
    /// Deliveries in flight, odd epoch.
    pub in_flight_odd: u16,
}

/// One source's notifier: a word (see the module's head), replaced under the eyes of the interrupt path.
#[derive(Debug)]
pub struct NotifierSlot {
    word: AtomicU64,
}

impl Default for NotifierSlot {
    fn default() -> Self {
        Self::new()
    }
}

impl NotifierSlot {
    /// A slot without a notifier, in the even epoch.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// A slot without a notifier, in the even epoch.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// Reads the notifier and is counted in flight from that very instant. Wait-free: one read-modify-write, two if a
    /// replacement flips the epoch between the guess and the first.
    #[inline]
    pub fn enter(&self) -> Entered {
        // A guess only; being wrong costs one more addition, so it needs no ordering.
        let guess = Word(self.word.load(Ordering::Relaxed)).parity();
        // Acquire: whatever the replacer prepared for the new target is visible to who reads that target.
        let word = Word(self.word.fetch_add(guess.one(), Ordering::Acquire));
        if word.parity() == guess {
            return Entered::new(word, guess.one());
        }
        let word = Word(self.word.fetch_add(guess.flipped().one(), Ordering::Acquire));
        Entered::new(word, Parity::Even.one() | Parity::Odd.one())
    }

    /// The delivery is made: the target may be retired as far as it is concerned.
    #[inline]
    pub fn leave(&self, entered: Entered) {
        // Release: what was done to the target happened before the replacer sees the count fall.
        self.word.fetch_sub(entered.charge(), Ordering::Release);
    }

    /// An assertion that met no notifier leaves its mark, then its place. The place guards the mark: until it is given
    /// up no replacement can finish, so the next one that brings a target finds the mark.
    #[inline]
    pub fn leave_mark(&self, entered: Entered) {
        self.word.fetch_or(Word::MARK, Ordering::Relaxed);
        self.leave(entered);
    }

    /// Publishes `new` and starts the grace period of the old notifier. From this instant every delivery that enters
    /// uses `new`; [`Retiring::poll`] tells when the last one that uses the old notifier has left.
    pub fn replace(&self, control: Control, new: Notifier) -> Retiring {
        // Target and parity change only here, under the one token, so they cannot move between load and XOR; the
        // counts and the mark may, and XOR leaves them alone.
        let word = Word(self.word.load(Ordering::Relaxed));
        let change = u64::from(word.target().bits() ^ new.bits()) | Word::PARITY;
        // Release: what was prepared for the new target is visible to the deliveries that meet it.
        self.word.fetch_xor(change, Ordering::AcqRel);
        Retiring { control, old: word.target(), new, parity: word.parity() }
    }

    /// Whether a delivery has entered and not left yet.
    #[inline]
    pub fn is_in_flight(&self) -> bool {
        // Acquire: who is seen to have left has raised its pin.
        self.word.load(Ordering::Acquire) >> Word::EVEN_SHIFT != 0
    }

    /// The word as one consistent picture, for reports and tests. Already history when it is read.
    pub fn snapshot(&self) -> SlotSnapshot {
        let word = Word(self.word.load(Ordering::Relaxed));
        SlotSnapshot {
            target: word.target(),
            marked: word.marked(),
            parity: word.parity(),
            in_flight_even: word.in_flight(Parity::Even),
            in_flight_odd: word.in_flight(Parity::Odd),
        }
    }
}

/// A notifier that was replaced but may still be in use: its grace period.
#[derive(Debug)]
#[must_use = "until the grace period is over the old notifier is in use, and nobody else can replace"]
pub struct Retiring {
    control: Control,
    old: Notifier,
    new: Notifier,
    parity: Parity,
}

impl Retiring {
    /// Looks once, never spins: either the grace period is over, or the caller gets itself back to ask again from
    /// its loop. `slot` is the one that [`NotifierSlot::replace`] was called on.
    ///
    /// # Errors
    ///
    /// Not an error but a state: the grace period is still running.
    pub fn poll(self, slot: &NotifierSlot) -> Result<Retired, Self> {
        // Acquire pairs with the release of the last `leave`.
        let word = Word(slot.word.load(Ordering::Acquire));
        if word.in_flight(self.parity) != 0 {
            return Err(self);
        }
        // A mark belongs to the next notifier that exists. Nobody can set it here any more unless the new target is
        // none, in which case it stays where it is.
        let marked = !self.new.is_none()
            && word.marked()
            && Word(slot.word.fetch_and(!Word::MARK, Ordering::AcqRel)).marked();
        Ok(Retired { control: self.control, old: self.old, new: self.new, parity: self.parity, marked })
    }

    /// The notifier being retired.
    pub fn old(&self) -> Notifier {
        self.old
    }

    /// The notifier that took its place.
    pub fn new_target(&self) -> Notifier {
        self.new
    }
}

/// A notifier nobody uses any more, and never will again through this slot.
#[derive(Debug)]
pub struct Retired {
    /// The right to replace, back from the grace period.
    pub control: Control,
    /// The notifier that is out of use.
    pub old: Notifier,
    /// The notifier that took its place.
    pub new: Notifier,
    /// The epoch in which the old one was the target.
    pub parity: Parity,
    /// Whether an assertion that had met no notifier was waiting for the new one.
    pub marked: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Notifier = Notifier::Pin { partition: 1, vpin: Pin(21) };
    const B: Notifier = Notifier::Pin { partition: 2, vpin: Pin(5) };

    fn finish(retiring: Retiring, slot: &NotifierSlot) -> Retired {
        retiring.poll(slot).expect("nobody is in flight")
    }

    fn set(slot: &NotifierSlot, new: Notifier) {
        finish(slot.replace(Control::mint(), new), slot);
    }

    #[test]
    fn every_notifier_survives_its_encoding() {
        assert_eq!(Notifier::from_bits(Notifier::None.bits()), Notifier::None);
        for counter in 0..=u16::MAX {
            let poll = Notifier::Poll { counter };
            assert_eq!(Notifier::from_bits(poll.bits()), poll);
            let pin = Notifier::Pin { partition: (counter >> 8) as u8, vpin: Pin(counter as u8) };
            assert_eq!(Notifier::from_bits(pin.bits()), pin);
            assert_ne!(pin.bits(), poll.bits());
        }
        assert_eq!(Notifier::from_bits(u32::MAX), Notifier::None);
    }

    #[test]
    fn every_field_of_the_word_sits_at_its_bits() {
        for bit in 0..64 {
            let word = Word(1 << bit);
            assert_eq!(word.marked(), bit == 32);
            assert_eq!(word.parity() == Parity::Odd, bit == 33);
            let even = if (34..49).contains(&bit) { 1 << (bit - 34) } else { 0 };
            let odd = if (49..64).contains(&bit) { 1 << (bit - 49) } else { 0 };
            assert_eq!(word.in_flight(Parity::Even), even);
            assert_eq!(word.in_flight(Parity::Odd), odd);
        }
        assert_eq!(Parity::Even.one(), 1 << 34);
        assert_eq!(Parity::Odd.one(), 1 << 49);
    }

    #[test]
    fn i3_an_empty_slot_is_entered_like_any_other() {
        let slot = NotifierSlot::new();
        let entered = slot.enter();
        assert_eq!(entered.target(), Notifier::None);
        slot.leave(entered);
        assert_eq!(slot.snapshot(), NotifierSlot::new().snapshot());
    }

    #[test]
    fn i4_a_delivery_uses_the_notifier_it_entered_with() {
        let slot = NotifierSlot::new();
        set(&slot, A);
        let before = slot.enter();
        let retiring = slot.replace(Control::mint(), B);
        let after = slot.enter();
        assert_eq!((before.target(), after.target()), (A, B));
        assert_ne!(before.addressee(), after.addressee());
        slot.leave(before);
        slot.leave(after);
        finish(retiring, &slot);
    }

    #[test]
    fn i5_the_grace_period_waits_for_old_deliveries_and_for_no_others() {
        let slot = NotifierSlot::new();
        set(&slot, A);
        let old = slot.enter();
        let retiring = slot.replace(Control::mint(), B);
        let retiring = retiring.poll(&slot).expect_err("a delivery to A is in flight");
        let fresh = slot.enter();
        let retiring = retiring.poll(&slot).expect_err("still in flight");
        slot.leave(old);
        let retired = retiring.poll(&slot).expect("a delivery to B holds nobody up");
        assert_eq!((retired.old, retired.marked), (A, false));
        slot.leave(fresh);
    }

    #[test]
    fn n4_the_mark_of_an_assertion_without_notifier_reaches_the_next_notifier_once() {
        let slot = NotifierSlot::new();
        let entered = slot.enter();
        slot.leave_mark(entered);
        // Replacing nothing by nothing hands the mark on.
        assert!(!finish(slot.replace(Control::mint(), Notifier::None), &slot).marked);
        assert!(slot.snapshot().marked);
        assert!(finish(slot.replace(Control::mint(), A), &slot).marked);
        assert!(!finish(slot.replace(Control::mint(), B), &slot).marked);
    }

    #[test]
    fn counts_return_to_zero_over_many_epochs() {
        let slot = NotifierSlot::new();
        for round in 0..10_000_u32 {
            let target = if round % 2 == 0 { A } else { B };
            let entered = slot.enter();
            let retiring = slot.replace(Control::mint(), target);
            slot.leave(entered);
            finish(retiring, &slot);
        }
        let end = slot.snapshot();
        assert_eq!((end.target, end.in_flight_even, end.in_flight_odd), (B, 0, 0));
    }
}
