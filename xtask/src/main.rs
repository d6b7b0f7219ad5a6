//! Levelhead's one front door.

fn main() {}
