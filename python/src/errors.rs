//! Errors of Rust as exceptions of Python.

use std::error::Error;

use activation_store::StoreError;
use pyo3::PyErr;
use pyo3::exceptions::{PyIndexError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError};

/// The classes of `activation_store/errors.py`.
mod python {
    pyo3::import_exception!(activation_store.errors, StoreError);
    pyo3::import_exception!(activation_store.errors, StoreNotFoundError);
    pyo3::import_exception!(activation_store.errors, IncompleteStoreError);
    pyo3::import_exception!(activation_store.errors, DamagedStoreError);
}

/// The exception that says what `error` says.
pub(crate) fn exception(error: &StoreError) -> PyErr {
    let text = sentence(error);
    match error {
        StoreError::NotFound(_) | StoreError::NotAStore(_) => python::StoreNotFoundError::new_err(text),
        StoreError::Incomplete { .. } => python::IncompleteStoreError::new_err(text),
        StoreError::Damaged { .. } | StoreError::DamagedChunk { .. } | StoreError::Changed { .. } => {
            python::DamagedStoreError::new_err(text)
        }
        StoreError::OutOfRange { .. } => PyIndexError::new_err(text),
        StoreError::Stream(_) | StoreError::Specification(_) | StoreError::Step(_) => {
            PyValueError::new_err(text)
        }
        StoreError::BatchOverflow { .. } => pyo3::exceptions::PyOverflowError::new_err(text),
        StoreError::Memory(_) => PyMemoryError::new_err(text),
        // With the number, Python makes it a FileNotFoundError, a PermissionError and so on.
        StoreError::Io { source, .. } => match source.raw_os_error() {
            Some(number) => PyOSError::new_err((number, text)),
            None => PyOSError::new_err(text),
        },
        _ => python::StoreError::new_err(text),
    }
}

/// The exception for a thread that ended before its work did.
pub(crate) fn died(died: &workers::Died) -> PyErr {
    PyRuntimeError::new_err(sentence(died))
}

/// The error and what caused it.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
