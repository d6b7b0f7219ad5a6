//! Whose turn it is to replace notifiers: where the one [`Control`] lies while nobody uses it, and the queue of those who
//! wait for it.
//!
//! A guest that asks and finds it gone is told to ask again, and may ask as often as it likes. Whoever must have it (a guest
//! that ended, a function that moves) takes a place in the queue instead: while somebody stands there, nobody else gets it, and
//! those who stand there get it in the order in which they came. So however often guests ask, nobody waits for more than the
//! replacements of those before him, each of which is bounded.

use super::notifier::Control;
use crate::sync::Lock;

/// A place in the queue. Whoever takes one waits until [`Turns::take`] gives way, or everybody behind waits for ever.
#[derive(Debug)]
#[must_use = "everybody behind waits until it is used"]
pub struct Turn(u32);

/// The right to replace notifiers, and who waits for it.
#[derive(Debug)]
pub struct Turns(Lock<State>);

#[derive(Debug)]
struct State {
    control: Option<Control>,
    /// The next place to be given out.
    next: u32,
    /// The place whose turn it is.
    served: u32,
}

impl Turns {
    /// Nobody waits. `control` is none while the machine is set up.
    pub fn new(control: Option<Control>) -> Self {
        Self(Lock::new(State { control, next: 0, served: 0 }))
    }

    /// The right, if it is there and nobody waits for it.
    pub fn try_take(&self) -> Option<Control> {
        self.0.with(|state| if state.next == state.served { state.control.take() } else { None })
    }

    /// Takes a place behind those who wait already.
    pub fn queue(&self) -> Turn {
        self.0.with(|state| {
            let turn = Turn(state.next);
            state.next = state.next.wrapping_add(1);
            turn
        })
    }

    /// The right, once it is there and all who came before have had it. Looks once, never spins.
    ///
    /// # Errors
    ///
    /// Not an error but a state: it is not this one's turn yet. Ask again from the run loop.
    pub fn take(&self, turn: Turn) -> Result<Control, Turn> {
        self.0.with(|state| {
            if state.served != turn.0 {
                return Err(turn);
            }
            let control = state.control.take().ok_or(turn)?;
            state.served = state.served.wrapping_add(1);
            Ok(control)
        })
    }

    /// Puts it back for the next.
    pub fn give_back(&self, control: Control) {
        self.0.with(|state| state.control = Some(control));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn n8_whoever_waits_comes_before_all_who_only_ask_and_in_order() {
        let turns = Turns::new(Some(Control::mint()));
        let held = turns.try_take().expect("nobody has it");
        assert!(turns.try_take().is_none());
        let (first, second) = (turns.queue(), turns.queue());
        let first = turns.take(first).expect_err("it is in use");
        turns.give_back(held);
        assert!(turns.try_take().is_none(), "somebody waits");
        let second = turns.take(second).expect_err("the first comes first");
        let held = turns.take(first).expect("it is there");
        turns.give_back(held);
        assert!(turns.try_take().is_none(), "somebody waits still");
        let held = turns.take(second).expect("it is there");
        turns.give_back(held);
        assert!(turns.try_take().is_some(), "nobody waits");
    }

    #[test]
    fn places_are_given_out_for_ever() {
        let turns =
            Turns(Lock::new(State { control: Some(Control::mint()), next: u32::MAX, served: u32::MAX }));
        for _ in 0..3 {
            let turn = turns.queue();
            let held = turns.take(turn).expect("nobody is before");
            turns.give_back(held);
        }
        assert!(turns.try_take().is_some());
    }
}
