//! A partition at run time: one guest with its memory, its devices, its interrupt chips and its virtual CPUs.
//!
//! * `ram`: its memory;
//! * `platform`: what its virtual CPUs share and change, the devices among it;
//! * `vcpu`: a virtual CPU, which belongs to one CPU;
//! * `assign`: how physical functions become its own, and their lines with them;
//! * `build`: all of it put together at boot;
//! * `end`: how it ends, and the record that says why;
//! * `revive`: what it starts again from;
//! * `watch`: looking after devices that storm and deliveries that nobody completes.
//!
//! What other CPUs reach of a partition is its [`Receiver`], where interrupts arrive.

pub(crate) mod assign;
pub(crate) mod build;
pub(crate) mod end;
pub(crate) mod platform;
pub(crate) mod ram;
pub(crate) mod revive;
pub(crate) mod vcpu;
pub(crate) mod watch;

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use levelhead::addr::HostPhys;
use levelhead::config::MAX_PARTITIONS;
use levelhead::counters::{Counters, SLOTS, Slot};
use levelhead::intx::{MaskReasons, SourceId};
use levelhead::irq::Pin;
use levelhead::ownership::Ownership;
use levelhead::pci::{Bdf, IntPin};
use levelhead::policy::DevicePolicy;
use levelhead::sync::Lock;
use levelhead::virq::{Vcpu, VcpuSet};

use crate::machine::Receiver;
use crate::order::Ordered;
use end::End;
use platform::Platform;
use ram::Ram;
use revive::Revival;
use vcpu::Exits;

/// What an observer of the running machine reads, found by this symbol.
#[expect(unsafe_code, reason = "a symbol with a name of its own")]
#[unsafe(export_name = "lh_counters")]
static COUNTERS: Counters = Counters::new();

const _: () = assert!(MAX_PARTITIONS <= SLOTS, "every partition has a slot");

/// The virtual CPU that starts a guest.
pub(crate) const BOOT: Vcpu = Vcpu(0);

/// A physical function that is passed through: what does not change about it, and whose it is. All partitions that may have it
/// know it by this.
pub(crate) struct Function {
    /// Its address, on the machine and in its guests.
    pub(crate) bdf: Bdf,
    /// The pin it interrupts by.
    pub(crate) interrupt_pin: Option<IntPin>,
    /// Its place among the machine's sources; none without INTx.
    pub(crate) source: Option<SourceId>,
    /// What is done about its misbehaviour.
    pub(crate) policy: DevicePolicy,
    /// Whether another partition may take it over.
    pub(crate) moves: bool,
    /// Whose it is.
    pub(crate) ownership: Ownership,
    /// It did not come back from its last reset as it was: it is silent, and nobody reaches any of its BARs.
    pub(crate) lost: AtomicBool,
    /// It is quarantined because its guest did not complete its interrupts, and for nothing of its own doing.
    pub(crate) unserved: AtomicBool,
    /// How often its notifier was replaced by hypercall.
    pub(crate) replacements: AtomicU64,
}

/// A function as a partition knows it that may have it.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    pub(crate) function: &'static Function,
    /// The virtual pin that its notifier leads to at first; none without INTx.
    pub(crate) vpin: Option<Pin>,
}

/// What all virtual CPUs of one guest share.
pub(crate) struct Partition {
    pub(crate) index: u8,
    pub(crate) name: String,
    pub(crate) ram: Ram,
    /// Where its interrupts arrive.
    pub(crate) receiver: &'static Receiver,
    /// The functions it may have: its own, then those for which it stands by.
    pub(crate) functions: Vec<Share>,
    /// Lines' interrupts taken on its CPUs, and how far it is; seen from outside.
    pub(crate) counters: &'static Slot,
    pub(crate) user_hypercalls: bool,
    /// The rate of the TSC in kHz, if the machine has what to measure it by.
    pub(crate) tsc_khz: Option<u32>,
    /// Whether it may name the sources of other partitions.
    pub(crate) control: bool,
    /// What its virtual CPUs change.
    pub(crate) platform: Ordered<Platform>,
    /// Held from a write to a virtual redirection table entry until the lines behind it have heard of it, so that they hear
    /// of two virtual CPUs' writes in the order in which the chip saw them.
    pub(crate) entries: Ordered<()>,
    /// The root of its nested tables.
    pub(crate) nested_root: HostPhys,
    /// Whether it may start again.
    revives: bool,
    /// What it starts again from; none if it never does, or while it does.
    pub(crate) revival: Lock<Option<Revival>>,
    course: Lock<Course>,
}

/// How far one life of the guest is, and the whole.
#[derive(Debug, Default)]
struct Course {
    /// Which life it is, from 0 on.
    life: u64,
    /// Whether there will be no other.
    over: bool,
    /// How this one ended.
    end: Option<End>,
    /// Who has left the guest, in this life.
    left: VcpuSet,
    /// What those who have left did, in all lives.
    exits: Exits,
}

/// Whether a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It does.
    Running,
    /// It ends, or the next has not begun.
    Ending,
    /// There will be none any more.
    Over,
}

/// What a virtual CPU that has left its guest is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Wait.
    Wait,
    /// Begin the next life.
    Again,
    /// Nothing any more.
    Over,
}

impl Partition {
    /// How many virtual CPUs it has.
    pub(crate) fn vcpus(&self) -> u8 {
        self.receiver.vcpus()
    }

    /// Whether it may start again when its guest ended.
    pub(crate) fn revives(&self) -> bool {
        self.revives
    }

    /// Whether `end` is how this life ends: not if it ends already in another way.
    pub(crate) fn ends(&self, end: End) -> bool {
        self.course.with(|course| {
            let first = course.end.is_none();
            course.end.get_or_insert(end);
            first
        })
    }

    /// `vcpu` has left the guest, after these exits, and enters it no more in this life.
    pub(crate) fn left(&self, vcpu: Vcpu, exits: Exits) {
        self.course.with(|course| {
            course.left = course.left.with(vcpu);
            course.exits.add(&exits);
        });
    }

    /// Whether nobody is in the guest any more.
    pub(crate) fn is_deserted(&self) -> bool {
        let left = self.course.with(|course| course.left);
        (0..self.vcpus()).all(|number| left.contains(Vcpu(number)))
    }

    /// The guest, which nobody is in, begins another life.
    pub(crate) fn begin_again(&self) {
        self.course.with(|course| {
            course.life = course.life.wrapping_add(1);
            course.end = None;
            course.left = VcpuSet::EMPTY;
        });
    }

    /// There will be no other life.
    pub(crate) fn close(&self) {
        self.course.with(|course| course.over = true);
    }

    /// Whether its guest runs. It is said to end before anything of it is put away.
    pub(crate) fn life_now(&self) -> Life {
        self.course.with(|course| match (course.over, course.end) {
            (true, _) => Life::Over,
            (false, Some(_)) => Life::Ending,
            (false, None) => Life::Running,
        })
    }

    /// Which life it is.
    pub(crate) fn life(&self) -> u64 {
        self.course.with(|course| course.life)
    }

    /// What comes for a virtual CPU that has left in life number `life`.
    pub(crate) fn after(&self, life: u64) -> After {
        self.course.with(|course| match (course.life == life, course.over) {
            (false, _) => After::Again,
            (true, true) => After::Over,
            (true, false) => After::Wait,
        })
    }

    /// What its virtual CPUs did until they left.
    pub(crate) fn exits(&self) -> Exits {
        self.course.with(|course| course.exits)
    }

    /// The functions it has now.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Share> {
        self.functions.iter().filter(|share| self.holds(share))
    }

    /// Whether it has this function now. Whoever is at work in its guest acts on that before he answers his bell again, and
    /// nobody takes the function away before.
    pub(crate) fn holds(&self, share: &Share) -> bool {
        share.function.ownership.is_held_by(self.index)
    }
}

impl Function {
    /// How often its notifier was replaced by hypercall.
    pub(crate) fn replacements(&self) -> u64 {
        self.replacements.load(Ordering::Relaxed)
    }

    /// Whether it did not come back from its last reset.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// The quarantine that is its guest's fault, if it is under one: it ends with that guest's time, and with this answer.
    pub(crate) fn forgive_guest(&self) -> MaskReasons {
        if self.unserved.swap(false, Ordering::Relaxed) {
            MaskReasons::QUARANTINE
        } else {
            MaskReasons::empty()
        }
    }
}
