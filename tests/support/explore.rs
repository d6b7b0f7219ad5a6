//! How the models are explored by loom, and what is said of it.

use core::sync::atomic::{AtomicU64 as Counter, Ordering::Relaxed};
use std::sync::Arc;

use loom::model::Builder;

/// Explores `model` and says how far.
pub fn explore(name: &str, bound: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = bound;
    let interleavings = Arc::new(Counter::new(0));
    let counted = Arc::clone(&interleavings);
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    let bound =
        bound.map_or("no bound".to_owned(), |bound| format!("at most {bound} preemptions per thread"));
    println!("{name}: {} interleavings, {bound}", interleavings.load(Relaxed));
}
