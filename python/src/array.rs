//! Memory that Rust fills and Python owns.

use std::sync::{Arc, Mutex};

use activation_store::{bf16, f16};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Vectors to be filled again.
pub(crate) type Spare<T> = Arc<Mutex<Vec<Vec<T>>>>;

/// Most vectors that wait to be filled again: what a reader has in hand, and the one before.
const MOST_SPARE: usize = 3;

/// An array of numbers, in row-major order. NumPy takes it without a copy by its [array interface], and keeps it alive.
///
/// [array interface]: https://numpy.org/doc/stable/reference/arrays.interface.html
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Array {
    numbers: Numbers,
    address: usize,
    shape: Vec<usize>,
}

/// The numbers, with the place where their memory goes when nobody needs them any more.
pub(crate) enum Numbers {
    F32(Vec<f32>, Spare<f32>),
    F16(Vec<f16>, Spare<f16>),
    Bf16(Vec<bf16>, Spare<bf16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
}

impl Numbers {
    /// NumPy's name of the type.
    fn name(&self) -> &'static str {
        match self {
            Numbers::F32(..) => "float32",
            Numbers::F16(..) => "float16",
            Numbers::Bf16(..) => "bfloat16",
            Numbers::U32(_) => "uint32",
            Numbers::U64(_) => "uint64",
        }
    }

    /// The array interface's name of the type. It has none for bfloat16.
    fn code(&self) -> &'static str {
        match self {
            Numbers::F32(..) => "<f4",
            Numbers::F16(..) => "<f2",
            Numbers::Bf16(..) => "<u2",
            Numbers::U32(_) => "<u4",
            Numbers::U64(_) => "<u8",
        }
    }

    fn address(&mut self) -> usize {
        match self {
            Numbers::F32(numbers, _) => numbers.as_mut_ptr().expose_provenance(),
            Numbers::F16(numbers, _) => numbers.as_mut_ptr().expose_provenance(),
            Numbers::Bf16(numbers, _) => numbers.as_mut_ptr().expose_provenance(),
            Numbers::U32(numbers) => numbers.as_mut_ptr().expose_provenance(),
            Numbers::U64(numbers) => numbers.as_mut_ptr().expose_provenance(),
        }
    }
}

impl Array {
    /// `numbers`, as many as `shape` says.
    pub(crate) fn new(mut numbers: Numbers, shape: Vec<usize>) -> Array {
        // Nothing in Rust reads or writes the numbers from now on, so whoever has the address may.
        let address = numbers.address();
        Array { numbers, address, shape }
    }
}

#[pymethods]
impl Array {
    #[getter]
    fn dtype(&self) -> &'static str {
        self.numbers.name()
    }

    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", self.numbers.code())?;
        interface.set_item("shape", pyo3::types::PyTuple::new(py, &self.shape)?)?;
        let read_only = false;
        interface.set_item("data", (self.address, read_only))?;
        Ok(interface)
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        match &mut self.numbers {
            Numbers::F32(numbers, spare) => give_back(numbers, spare),
            Numbers::F16(numbers, spare) => give_back(numbers, spare),
            Numbers::Bf16(numbers, spare) => give_back(numbers, spare),
            Numbers::U32(_) | Numbers::U64(_) => {}
        }
    }
}

fn give_back<T>(numbers: &mut Vec<T>, spare: &Spare<T>) {
    // Not worth a wait: a process that was forked could wait for ever.
    if Arc::strong_count(spare) > 1
        && let Ok(mut spare) = spare.try_lock()
        && spare.len() < MOST_SPARE
    {
        spare.push(std::mem::take(numbers));
    }
}
