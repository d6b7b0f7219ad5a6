//! Ctrl-C and its kin: remembered, so that whoever waits for a child process can end it and say so.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

static CAUGHT: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// From now on these signals no longer end this process at once. Whoever calls this looks at [`caught`] often.
pub fn catch() {
    CAUGHT.get_or_init(|| {
        let caught = Arc::new(AtomicUsize::new(0));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            // It fails for signals that cannot be caught, which these are not.
            let _ = flag::register_usize(signal, Arc::clone(&caught), usize::try_from(signal).unwrap_or(0));
        }
        caught
    });
}

/// The last signal that asked this process to end.
pub fn caught() -> Option<i32> {
    let number = CAUGHT.get()?.load(Ordering::Relaxed);
    i32::try_from(number).ok().filter(|number| *number > 0)
}

/// What a signal is called.
pub fn name(signal: i32) -> String {
    match signal {
        SIGINT => "Ctrl-C".to_owned(),
        SIGTERM => "SIGTERM".to_owned(),
        SIGHUP => "SIGHUP".to_owned(),
        other => format!("signal {other}"),
    }
}
