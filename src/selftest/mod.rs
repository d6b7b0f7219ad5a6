//! Tests of the hypervisor's own ground, run instead of guests when the command line says `selftest=NAME`. Nothing
//! else of the hypervisor may depend on this folder.
//!
//! | name | what happens | expected |
//! | --- | --- | --- |
//! | `smp-vmrun`, `smp-vmrun:ROUNDS` | all CPUs in VMRUN kick each other | exact counts |
//! | `undefined`, `write-text`, `run-data`, `stack-overflow`, `panic` | the hypervisor itself does wrong | a report, status 41 |

mod faults;
pub(crate) mod smp_vmrun;

pub(crate) use faults::fault;
