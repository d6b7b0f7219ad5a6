//! Bare-metal guests: their boot code and drivers, shared by the programs in `src/bin`.
#![no_std]
