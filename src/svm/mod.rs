//! AMD SVM formats: the VMCB, exit codes, events, nested page tables and permission maps.
//!
//! Data layouts and their rules (APM2 chapter 15 and Appendices B and C), without executing anything: VMRUN
//! itself is the hypervisor's. Nothing here knows a partition or a device.

mod bitmap;
mod event;
mod exit;
mod nmi;
mod npt;
mod reach;
mod unswitched;
mod vmcb;

pub use bitmap::{IoPermissions, MSR_PASS_THROUGH, MsrAccess, MsrPermissions, NotCovered};
pub use event::{Event, Fault, interrupted_delivery};
pub use exit::ExitCode;
pub use nmi::NmiMask;
pub use npt::{MapError, Mapping, Memory, NestedTables, TableStore, UnmapError};
pub use reach::{Reach, Stale};
pub use unswitched::{Unswitched, XCR0_RESET, wipe};
pub use vmcb::{CleanBits, Inconsistency, Misc1, Misc2, Segment, Setup, Vmcb};
