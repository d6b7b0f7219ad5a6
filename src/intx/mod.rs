//! One physical interrupt line, from assertion to completion: a permanent handler, an atomically replaceable notifier.
//!
//! This module knows lines, chips and notifiers as values. It does not know what a vCPU is, and a virtual pin is just
//! a number to it: the run loop carries [`Notifier`]s one way and completions the other.
//!
//! # The protocol on one page
//!
//! A [`Line`] belongs to one physical GSI and has one to [`MAX_SHARERS`] sources, the INTx of one assigned function
//! each. A source is **open** while its set of [`MaskReasons`] is empty and **closed** otherwise; closed means physically
//! silenced at the line's [`Gate`]. Its delivery goes round like this:
//!
//! ```text
//!            vector arrives, source open: close the gate, enter the slot
//!    +------+ ------------------------------------------------> +------------+
//!    | Idle |                    no notifier: leave the mark    | Notifying  |
//!    +------+ <------------------------------------------------ +------------+
//!      ^  ^                                                       | notifier: raise its pin
//!      |  |    EOI, virtual RTE unmasked                          v
//!      |  +--------------------------------------------------- +-----------+
//!      |       lower the pin, open the gate                     | InService |
//!      |                                                        +-----------+
//!      |       virtual RTE unmasked                               | EOI while the virtual RTE is masked
//!      |       lower the pin, open the gate                       v
//!      +------------------------------------------------------- +-------------+
//!                                                               | AwaitUnmask |
//!                                                               +-------------+
//! ```
//!
//! From both states on the right a replacement of the notifier (or a reset) leads to Idle as well, after its grace
//! period. *Open the gate* means: if no reason is left. A line gate is simply opened: if the wire is still asserted
//! the chip sends again. Behind a function gate INTx Status is read first: still asserted, it is delivered again
//! without opening, unless it says so too often in a row ([`suspicion`]).
//!
//! # Who calls what
//!
//! | when | operation | then |
//! | --- | --- | --- |
//! | a vector was taken | [`LineTable::assert`] | local APIC EOI; raise each of the [`Deliveries`]; drop each |
//! | a guest's EOI reached a virtual pin | [`LineTable::complete`] for each of [`LineTable::listeners`] that holds the pin high | raise deliveries |
//! | a guest changed a virtual RTE's mask bit | [`LineTable::virtual_rte`] for each listener, before the pin is looked at again | raise deliveries |
//! | a guest wrote its DisINTx; a mask hypercall; reset, sleep, quarantine, handover begin or end | [`LineTable::mask`], [`LineTable::unmask`] | raise deliveries |
//! | a loopback hypercall | [`LineTable::loopback`] | raise deliveries |
//! | a notifier changes | [`LineTable::replace`], then [`Replacing::poll`] from the run loop | raise deliveries |
//! | a device is assigned, released | [`LineTable::assign`], [`LineTable::release`] | |
//!
//! # Locks
//!
//! There is one lock per line, held by nobody for longer than one event: no wait, no allocation, at most one chip write to
//! close and one to open (and one Status read per source at function gates). No two are ever held together. Virtual pins are
//! *raised* outside of it and *lowered* under it, so whatever guards a virtual pin is below the line's lock and must not
//! call back. Replacements are serialised by the one [`Control`] token, which the interrupt path never needs; who gets it next
//! is for [`Turns`] to say, and a replacer waits by asking again, with no lock held.
//!
//! # What always holds
//!
//! Between any two events, that is, whenever the line's lock is free:
//!
//! 1. A source's gate is closed if and only if its set of reasons is not empty (at a line gate: the union of the sets).
//! 2. `IN_SERVICE` is in the set if and only if a delivery is in service. Then its virtual pin is high, or its
//!    [`Delivery`] is still in flight.
//! 3. `NO_NOTIFIER` is in the set if the notifier is none.
//! 4. Both equations of the [`ledger`] balance.
//! 5. An open line gate with an asserted wire has a vector on its way: nothing that is asserted, open and idle is
//!    forgotten, because a level is its own memory.
//!
//! `docs/intx.md` tells the whole story and which test proves which promise.

pub mod deadline;
pub mod event;
pub mod gate;
pub mod handler;
pub mod ledger;
pub mod line;
pub mod notifier;
pub mod reasons;
pub mod recorder;
pub mod sharers;
pub mod state;
pub mod storm;
pub mod suspicion;
pub mod table;
pub mod turns;

pub use deadline::{EoiWatch, Overdue};
pub use event::{Effects, Event};
pub use gate::{Gate, Sample, Sharing};
pub use handler::{
    Deliveries, Delivery, LineIo, Registrations, Replacement, Replacing, SourceId, SourceInfo,
};
pub use ledger::{Account, Completed, Completion, Imbalance, Ledger, count};
pub use line::Line;
pub use notifier::{Addressee, Control, Entered, Notifier, NotifierSlot, Parity, Retired, Retiring};
pub use reasons::MaskReasons;
pub use recorder::{Actor, Happening, History, MOMENTS, Moment, Since};
pub use sharers::{MAX_SHARERS, Sharer, SharerSet};
pub use state::{LineState, Service, SourceState};
pub use storm::{Budget, Meter, Outcome, Storm};
pub use suspicion::{LIE_LIMIT, LineFinding};
pub use table::{
    AssignError, LineReport, LineTable, MAX_SOURCES, ReplaceError, SourceReport, Sources, Targets,
};
pub use turns::{Turn, Turns};
