//! The rules of Levelhead: everything of the hypervisor that is arithmetic and decision, and nothing that
//! touches hardware.
//!
//! Levelhead passes legacy PCI devices with level-triggered INTx through to guests. This library is the half
//! of it that can be proved on a host: it has no `unsafe`, no assembly, no port and no static state, and it is
//! compiled unchanged into the freestanding binary (`src/main.rs`), the host tests and the models.
//!
//! Authors of other hypervisors can take it alone with `default-features = false`:
//!
//! * [`intx`]: one physical line from assertion to completion, with a permanent handler and an atomically
//!   replaceable notifier;
//! * [`pci`]: functions, configuration space, interrupt pins and the virtual configuration space of a guest;
//! * [`virq`]: the guest's side: virtual local APIC and virtual IO-APIC.
//!
//! Import levels, lowest first; a module imports only from lower levels and siblings never import each other
//! (`cargo xtask test` checks it):
//!
//! | level | modules |
//! | --- | --- |
//! | 0 words | [`addr`], [`irq`], [`message`], [`policy`], [`sync`], [`x86`] |
//! | 1 resources | [`command`], [`counters`], [`frames`], [`ownership`], [`restart`], [`vcpu`] |
//! | 2 formats | [`cpuid`], [`hypercall`], [`ioapic`], [`pci`], [`svm`], `emulate` |
//! | 3 machines | [`intx`], [`virq`], [`device`], [`config`], [`facts`] |
//! | 4 systems | [`aftermath`], [`assignment`], [`guest`], [`border`], [`decide`] |
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod addr;
pub mod aftermath;
pub mod assignment;
pub mod border;
pub mod command;
pub mod config;
pub mod counters;
pub mod cpuid;
pub mod decide;
pub mod device;
#[cfg(feature = "emulate")]
pub mod emulate;
pub mod facts;
pub mod frames;
pub mod guest;
pub mod hypercall;
pub mod intx;
pub mod ioapic;
pub mod irq;
pub mod message;
pub mod ownership;
pub mod pci;
pub mod policy;
pub mod restart;
pub mod svm;
pub mod sync;
pub mod vcpu;
pub mod virq;
pub mod x86;
