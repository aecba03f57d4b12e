//! `activation_store._native`: the part of the Python module `activation_store` that is not Python.
//!
//! The classes here are few and plain; what a user sees is made of them in `activation_store/*.py`. Everything that reads files
//! does it without Python's lock, and ends soon after Ctrl-C.

mod array;
mod errors;
mod interrupt;
mod pool;
mod store;
mod stream;
mod verify;

use pyo3::prelude::*;

/// The module.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<array::Array>()?;
    module.add_class::<store::NativeStore>()?;
    module.add_class::<stream::Stream>()?;
    module.add_function(wrap_pyfunction!(verify::verify, module)?)
}
