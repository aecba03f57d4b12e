//! When waiting for a bucket ends early: a program that was asked to stop does not wait for a network that is gone.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Has requests to buckets given up, instead of repeated, once `asked` is raised. The first call in a process counts.
pub fn give_up_once(asked: Arc<AtomicBool>) {
    let _ = ASKED.set(asked);
}

/// The flag, if there is one.
#[cfg(feature = "bucket")]
pub(crate) fn asked() -> Option<&'static AtomicBool> {
    ASKED.get().map(|asked| &**asked)
}
