//! Levelhead's one front door.

#[cfg_attr(not(test), expect(dead_code, reason = "the verbs that need it follow"))]
mod config;

fn main() {}
