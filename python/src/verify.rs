//! Checking every byte.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

use crate::{errors, interrupt};

/// Files, bytes, and for each problem: file, chunk, what is wrong.
type Report = (u64, u64, Vec<(String, Option<usize>, String)>);

/// Checks the store in `path`; `progress` is called now and then with the bytes read so far.
#[pyfunction]
#[pyo3(signature = (path, progress=None))]
pub(crate) fn verify(py: Python<'_>, path: PathBuf, progress: Option<Py<PyAny>>) -> PyResult<Report> {
    let read = AtomicU64::new(0);
    let report = interrupt::interruptible(
        py,
        |stop| {
            activation_store::verify_while(&path, &|bytes| {
                read.fetch_max(bytes, Ordering::Relaxed);
                !stop.is_wanted()
            })
        },
        |py| match &progress {
            Some(progress) => progress.call1(py, (read.load(Ordering::Relaxed),)).map(drop),
            None => Ok(()),
        },
    )?;
    let report = report.map_err(|error| errors::exception(&error))?;
    let report = report.ok_or_else(|| PyKeyboardInterrupt::new_err(()))?;
    if let Some(progress) = &progress {
        progress.call1(py, (report.bytes,))?;
    }
    let problems = report.problems.into_iter().map(|problem| (problem.file, problem.chunk, problem.what));
    Ok((report.files, report.bytes, problems.collect()))
}
