//! The threads that decode, of each process its own.
//!
//! torch's DataLoader forks. A forked process has none of its parent's threads, so work given to a pool of the parent, such as
//! rayon's global one, would never be done.

use std::process;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::PyResult;
use pyo3::exceptions::PyRuntimeError;
use rayon::{ThreadPool, ThreadPoolBuilder};

struct OfProcess {
    process: u32,
    pool: ThreadPool,
}

static CURRENT: AtomicPtr<OfProcess> = AtomicPtr::new(ptr::null_mut());

/// This process's pool, with a thread per core.
///
/// # Errors
/// No threads.
pub(crate) fn pool() -> PyResult<&'static ThreadPool> {
    let found = CURRENT.load(Ordering::Acquire);
    // SAFETY: what is stored there was leaked, so it lives for ever, and nothing writes to it.
    if let Some(current) = unsafe { found.as_ref() }
        && current.process == process::id()
    {
        return Ok(&current.pool);
    }
    let started = ThreadPoolBuilder::new()
        .thread_name(|number| format!("activation-store-{number}"))
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("cannot start threads to read with: {error}")))?;
    let made = Box::into_raw(Box::new(OfProcess { process: process::id(), pool: started }));
    match CURRENT.compare_exchange(found, made, Ordering::AcqRel, Ordering::Acquire) {
        // The parent's stays where it is: its threads cannot be ended from here.
        // SAFETY: as above; `made` is leaked from here on.
        Ok(_) => Ok(&unsafe { &*made }.pool),
        Err(_) => {
            // Another thread was faster.
            // SAFETY: `made` was shown to nobody.
            drop(unsafe { Box::from_raw(made) });
            pool()
        }
    }
}
