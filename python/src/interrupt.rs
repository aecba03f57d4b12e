//! Work without Python's lock that Ctrl-C ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::{errors, pool};

/// How long a signal waits, at most, before Python hears of it.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);

/// The wish that work should end early.
pub(crate) struct Stop(AtomicBool);

impl Stop {
    /// Whether the work should end.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Does `work` in this process's pool, without Python's lock. In the meantime `tick` is called now and then with it. When a
/// signal or `tick` raises, the work is asked to stop, and the exception is raised once it has.
pub(crate) fn interruptible<R: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Stop) -> R + Send,
    mut tick: impl FnMut(Python<'_>) -> PyResult<()> + Send,
) -> PyResult<R> {
    let pool = pool::pool()?;
    let stop = Stop(AtomicBool::new(false));
    py.detach(|| {
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let (stop_of_work, name) = (&stop, "reading of the store");
            let spawned = thread::Builder::new().spawn_scoped(scope, move || {
                let done = workers::catch(name, || pool.install(|| work(stop_of_work)));
                // Whoever does not listen any more has an exception to raise.
                let _ = sender.send(done);
            });
            spawned.map_err(|error| {
                PyRuntimeError::new_err(format!("cannot start a thread to read with: {error}"))
            })?;
            loop {
                match receiver.recv_timeout(PATIENCE) {
                    Ok(done) => return done.map_err(|died| errors::died(&died)),
                    Err(RecvTimeoutError::Timeout) => {
                        let raised = Python::attach(|py| py.check_signals().and_then(|()| tick(py)));
                        if let Err(exception) = raised {
                            stop.0.store(true, Ordering::Relaxed);
                            return Err(exception);
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(PyRuntimeError::new_err(format!("the {name} ended without a result")));
                    }
                }
            }
        })
    })
}
