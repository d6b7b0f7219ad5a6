//! Every interleaving of what CPUs that run one partition's virtual CPUs do to each other.
//!
//! Run as `intx_loom.rs` is, with `--test smp_loom`; `cargo xtask test --model` runs both. Each model prints how many
//! interleavings it explored and under which bound on preemptions; "no bound" means all there are.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/explore.rs"]
mod explore;

use core::sync::atomic::{AtomicU64 as Counter, Ordering::Relaxed};
use std::sync::Arc;

use explore::explore;
use levelhead::ownership::{Ownership, Refused};
use levelhead::virq::{Doorbell, Requests};
use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

/// A virtual CPU as others reach it: its chips, its bell, and the vector that waits in the local APIC of the CPU that runs
/// it, where a second one of the same number merges with the first.
struct Remote {
    chips: Mutex<u32>,
    bell: Doorbell,
    interrupt: AtomicBool,
    sent: Counter,
}

impl Remote {
    fn new() -> Self {
        Self {
            chips: Mutex::new(0),
            bell: Doorbell::new(),
            interrupt: AtomicBool::new(false),
            sent: Counter::new(0),
        }
    }

    /// Another CPU raises a pin that this virtual CPU takes.
    fn tell(&self, what: u32) {
        *self.chips.lock().unwrap() |= what;
        if self.bell.ring(Requests::LOOK) {
            self.sent.fetch_add(1, Relaxed);
            self.interrupt.swap(true, Ordering::AcqRel);
        }
    }

    /// The run loop until it is in its guest, or asleep, with nothing that would end that. Returns what it found.
    fn run(&self) -> u32 {
        let mut found = 0;
        loop {
            let _ = self.bell.answer();
            found |= core::mem::take(&mut *self.chips.lock().unwrap());
            if !self.interrupt.swap(false, Ordering::AcqRel) {
                return found;
            }
        }
    }
}

impl Remote {
    /// [`run`](Self::run), from an EOI on: it has seen in the chips whether anything waits, and looks again only then or if the bell
    /// was rung since.
    fn run_from_eoi(&self) -> u32 {
        let quiet = *self.chips.lock().unwrap() == 0;
        let asked = self.bell.answer();
        let found =
            if quiet && asked.is_empty() { 0 } else { core::mem::take(&mut *self.chips.lock().unwrap()) };
        if self.interrupt.swap(false, Ordering::AcqRel) { found | self.run() } else { found }
    }
}

/// As many CPUs as `tellers` have something for one that runs meanwhile: nothing stays behind when all is quiet. The one looks
/// before each entry, or its guest has just ended an interrupt.
fn nothing_told_is_lost(tellers: u32, run: impl FnOnce(&Remote) -> u32) {
    let remote = Arc::new(Remote::new());
    let tell = |what: u32| {
        let remote = Arc::clone(&remote);
        thread::spawn(move || remote.tell(1 << what))
    };
    let telling: Vec<_> = (0..tellers).map(tell).collect();
    let mut found = run(&remote);
    telling.into_iter().for_each(|thread| thread.join().unwrap());
    // It sleeps by now; only an interrupt makes it look again.
    if remote.interrupt.load(Ordering::Acquire) {
        found |= remote.run();
    }
    assert_eq!(found, (1 << tellers) - 1, "told, and never looked at");
}

#[test]
fn what_one_cpu_tells_another_is_never_lost() {
    explore("one CPU tells another", None, || nothing_told_is_lost(1, Remote::run));
}

#[test]
fn what_two_cpus_tell_a_third_is_never_lost() {
    explore("two CPUs tell a third", None, || nothing_told_is_lost(2, Remote::run));
}

#[test]
fn what_is_told_after_an_eoi_is_never_lost() {
    explore("two CPUs tell one that has ended an interrupt", None, || {
        nothing_told_is_lost(2, Remote::run_from_eoi);
    });
}

#[test]
fn a_bell_that_nobody_answers_interrupts_once() {
    explore("two CPUs ring an unanswered bell", None, || {
        let remote = Arc::new(Remote::new());
        let other = Arc::clone(&remote);
        let telling = thread::spawn(move || other.tell(1));
        remote.tell(2);
        telling.join().unwrap();
        assert_eq!(remote.sent.load(Relaxed), 1);
        assert_eq!(remote.run(), 3);
    });
}

/// Each request is read once, also where the answer to another is under way.
#[test]
fn n8_what_is_asked_beside_something_else_is_never_lost() {
    explore("two CPUs ask a third for different things", None, || {
        let bell = Arc::new(Doorbell::new());
        let requests = [Requests::LOOK, Requests::FORGET];
        let asking = requests.map(|request| {
            let bell = Arc::clone(&bell);
            thread::spawn(move || bell.ring(request))
        });
        let first = bell.answer();
        let interrupts = asking.map(|cpu| cpu.join().unwrap());
        let second = bell.answer();
        for request in requests {
            assert_ne!(first.contains(request), second.contains(request), "{first:?}, {second:?}");
        }
        assert!(second.is_empty() || interrupts.contains(&true), "nobody would look again");
    });
}

/// A device's registers, mapped to a guest, and a virtual CPU that keeps the translation once it has used it.
struct Mapped {
    table: AtomicBool,
    registers: UnsafeCell<u32>,
    bell: Doorbell,
    changes: AtomicU64,
    forgot: AtomicU64,
}

impl Mapped {
    /// The run loop of the virtual CPU that uses the registers: before each entry it answers, and forgets if it is asked to.
    /// As in `VirtualCpu::attend`, the number of the change is read after the answer.
    fn enter(&self, kept: &mut bool) {
        if self.bell.answer().contains(Requests::FORGET) {
            let change = self.changes.load(Ordering::Acquire);
            *kept = false;
            self.forgot.fetch_max(change, Ordering::AcqRel);
        }
        *kept |= self.table.load(Ordering::Relaxed);
        if *kept {
            self.registers.with(|_| ());
        }
    }

    /// Another virtual CPU of the guest takes the registers away. Whether everybody has forgotten them is looked at once: a
    /// look that fails changes nothing.
    fn take_away(&self) -> u64 {
        self.table.store(false, Ordering::Relaxed);
        let change = self.changes.fetch_add(1, Ordering::AcqRel) + 1;
        let _kick = self.bell.ring(Requests::FORGET);
        change
    }
}

#[test]
fn what_was_unmapped_is_used_by_nobody_once_all_have_forgotten() {
    explore("a mapping is taken away from another CPU", None, || {
        let mapped = Arc::new(Mapped {
            table: AtomicBool::new(true),
            registers: UnsafeCell::new(0),
            bell: Doorbell::new(),
            changes: AtomicU64::new(0),
            forgot: AtomicU64::new(0),
        });
        let guest = Arc::clone(&mapped);
        let running = thread::spawn(move || {
            let mut kept = false;
            (0..3).for_each(|_| guest.enter(&mut kept));
        });
        let change = mapped.take_away();
        if mapped.forgot.load(Ordering::Acquire) >= change {
            // Somebody else's from now on.
            mapped.registers.with_mut(|_| ());
        }
        running.join().unwrap();
    });
}

#[test]
fn n8_a_virtual_cpu_that_comes_back_uses_nothing_that_was_unmapped_meanwhile() {
    explore("a mapping is taken away from a CPU that comes back", None, || {
        let mapped = Arc::new(Mapped {
            table: AtomicBool::new(true),
            registers: UnsafeCell::new(0),
            bell: Doorbell::new(),
            changes: AtomicU64::new(0),
            // It has departed.
            forgot: AtomicU64::new(u64::MAX),
        });
        let guest = Arc::clone(&mapped);
        let running = thread::spawn(move || {
            // As in `Receiver::returns`.
            guest.forgot.swap(guest.changes.load(Ordering::Acquire), Ordering::AcqRel);
            let mut kept = false;
            (0..2).for_each(|_| guest.enter(&mut kept));
        });
        let change = mapped.take_away();
        // As in `Receiver::all_forgot`.
        if mapped.forgot.fetch_add(0, Ordering::AcqRel) >= change {
            mapped.registers.with_mut(|_| ());
        }
        running.join().unwrap();
    });
}

/// A function that partition 0 has, and the one thing that whoever acts for it changes.
struct Function {
    ownership: Ownership,
    source: UnsafeCell<u32>,
}

impl Function {
    fn of_partition_0() -> Self {
        Self { ownership: Ownership::new(0), source: UnsafeCell::new(0) }
    }
}

#[test]
fn n8_t13_nobody_acts_on_a_function_that_moves_once_all_have_answered() {
    explore("a function is taken away from another CPU", None, || {
        let shared = Arc::new((Function::of_partition_0(), Doorbell::new(), AtomicU64::new(0)));
        let guest = Arc::clone(&shared);
        let running = thread::spawn(move || {
            let (function, bell, forgot) = &*guest;
            for _ in 0..3 {
                if bell.answer().contains(Requests::FORGET) {
                    forgot.fetch_max(1, Ordering::AcqRel);
                }
                // What an exit's handler does, which asks once and then acts.
                if function.ownership.is_held_by(0) {
                    function.source.with(|_| ());
                }
            }
        });
        let (function, bell, forgot) = &*shared;
        let mut claim = function.ownership.move_away().unwrap();
        let _kick = bell.ring(Requests::FORGET);
        if forgot.load(Ordering::Acquire) >= 1 {
            function.source.with_mut(|_| ());
            claim.pass_to(1);
        }
        drop(claim);
        running.join().unwrap();
    });
}

#[test]
fn n8_one_claim_at_a_time_whoever_moves_the_function_and_whoever_keeps_it() {
    explore("two movers and a keeper", None, || {
        let function = Arc::new(Function::of_partition_0());
        let mover = |to: u8| {
            let function = Arc::clone(&function);
            thread::spawn(move || {
                let Ok(mut claim) = function.ownership.move_away() else { return false };
                function.source.with_mut(|_| ());
                claim.pass_to(to);
                true
            })
        };
        let moving = [mover(1), mover(2)];
        if let Ok(_claim) = function.ownership.keep(0) {
            function.source.with_mut(|_| ());
        }
        let moved: Vec<bool> = moving.into_iter().map(|thread| thread.join().unwrap()).collect();
        let expected: &[u8] = match moved[..] {
            [false, false] => &[0],
            [true, false] => &[1],
            [false, true] => &[2],
            _ => &[1, 2],
        };
        assert!(expected.contains(&function.ownership.owner()));
        assert!(function.ownership.is_held_by(function.ownership.owner()));
    });
}

#[test]
fn n8_whoever_ends_finds_every_function_that_was_moved_to_it() {
    explore("a function moves to a guest that ends", None, || {
        // Whether partition 1 has been said to end (`Partition::ends`, `life_now`).
        let shared = Arc::new((Function::of_partition_0(), Mutex::new(false)));
        let ending = Arc::clone(&shared);
        let ends = thread::spawn(move || {
            let (function, ended) = &*ending;
            *ended.lock().unwrap() = true;
            loop {
                match function.ownership.keep(1) {
                    Ok(_claim) => return true,
                    Err(Refused::Foreign) => return false,
                    Err(Refused::Claimed) => thread::yield_now(),
                }
            }
        });
        let (function, ended) = &*shared;
        let mut claim = function.ownership.move_away().unwrap();
        if !*ended.lock().unwrap() {
            claim.pass_to(1);
        }
        drop(claim);
        let silenced = ends.join().unwrap();
        assert_eq!(silenced, function.ownership.is_held_by(1), "a function of a guest that is over");
    });
}
