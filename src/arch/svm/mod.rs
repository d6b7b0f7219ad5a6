//! AMD's virtualization extension: switching it on, and the world switch itself.

pub(crate) mod enable;
pub(crate) mod nested;
pub(crate) mod vmrun;
