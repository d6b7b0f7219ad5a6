//! The border between a guest and the machine, attacked at random: whatever a guest does with registers, ports, memory
//! and instructions, the promises hold.
//!
//! | file | border |
//! | --- | --- |
//! | `chips` | virtual IO-APIC and local APICs, by memory and by MSR |
//! | `config` | configuration space through ports 0xcf8 to 0xcff |
//! | `hypercalls` | the registers of a hypercall |
//! | `instructions` | the bytes at RIP and the page tables that lead there |
//! | `memory` | guest-physical addresses without memory |
//! | `msrs` | model-specific registers |
//! | `ports` | ports |
//!
//! All chance comes from `dice`, which says how to run longer and how to repeat a failure.
#![cfg(not(loom))]
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod chips;
mod config;
mod dice;
mod hypercalls;
#[cfg(feature = "emulate")]
mod instructions;
mod memory;
mod msrs;
mod ports;
#[path = "../support/rounds.rs"]
mod rounds;
