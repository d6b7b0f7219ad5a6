//! The memory that a configuration places.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::Finding;
use crate::config::{Config, KeyPath};
use crate::facts::{MemoryEntry, MemoryKind};
use crate::frames::{Frames, Range};
use crate::message::Message;

/// Takes the memory that partitions of `config` have by `memory-at` out of `frames`, which is what is free, and tells which of it
/// was not. `map` is the memory map, and `taken` whose memory was taken out of it before: they say why.
pub fn claim(
    config: &Config,
    frames: &mut Frames,
    map: &[MemoryEntry],
    taken: &[(&str, Range)],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, partition) in config.partitions.iter().enumerate() {
        let place = partition.memory_at.and_then(|at| Range::inside(at.raw(), partition.memory_bytes));
        let Some(place) = place else { continue };
        let path = KeyPath::root().key("partition").index(index).key("memory-at");
        let mut refuse = |what| findings.push(Finding::new(path.clone(), Message::MemoryPlace, what));
        if !frames.has(place) {
            refuse(format!("{} to {}: {}", place.start(), place.end(), occupant(place, map, taken)));
        }
        if frames.reserve(place).is_err() {
            refuse("the machine's memory is in too many pieces to place one more".to_string());
        }
    }
    findings
}

/// Why not all of `place` is free.
fn occupant(place: Range, map: &[MemoryEntry], taken: &[(&str, Range)]) -> String {
    if let Some((name, range)) = taken.iter().find(|(_, range)| range.overlaps(place)) {
        return format!("{name} lies at {} to {}", range.start(), range.end());
    }
    let mut foreign = map
        .iter()
        .filter(|entry| entry.kind != MemoryKind::Usable)
        .map(|entry| Range::around(entry.start, entry.bytes));
    match foreign.find(|range| range.overlaps(place)) {
        Some(range) => format!("firmware keeps {} to {}", range.start(), range.end()),
        None => "the machine has no usable memory in a part of it".to_string(),
    }
}
