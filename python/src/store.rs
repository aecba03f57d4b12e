//! A finished store.

use std::path::PathBuf;

use activation_store::{BatchElement, Store, StoreError, bf16, f16};
use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;

use crate::array::{Array, Numbers, Spare};
use crate::{errors, interrupt};

/// Chunks that are read before looking whether to stop.
const CHUNKS_AT_ONCE: u64 = 64;

/// Mean and variance of each component, `[d]`, and the mean norm.
type Statistics = (Vec<f64>, Vec<f64>, f64);

/// A store, opened for reading.
#[pyclass(frozen, module = "activation_store._native", name = "Store")]
pub(crate) struct NativeStore(pub(crate) Store);

#[pymethods]
impl NativeStore {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<NativeStore> {
        let opened = py.detach(|| Store::open(&path));
        opened.map(NativeStore).map_err(|error| errors::exception(&error))
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }

    #[getter]
    fn rows(&self) -> u64 {
        self.0.rows()
    }

    #[getter]
    fn width(&self) -> usize {
        self.0.width()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.row_type().name()
    }

    #[getter]
    fn contexts(&self) -> u64 {
        self.0.contexts()
    }

    #[getter]
    fn context_length(&self) -> usize {
        self.0.context_length()
    }

    #[getter]
    fn clipped(&self) -> u64 {
        self.0.clipped()
    }

    #[getter]
    fn stored_bytes(&self) -> u64 {
        self.0.stored_bytes()
    }

    /// What was dumped and how, as JSON.
    fn specification(&self) -> PyResult<String> {
        serde_json::to_string(self.0.spec()).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    fn statistics(&self) -> Statistics {
        let statistics = self.0.stats();
        (statistics.mean.clone(), statistics.variance.clone(), statistics.mean_norm)
    }

    /// Rows by number: `[n, d]` of `dtype`. `numbers` are n native uint64.
    fn read(&self, py: Python<'_>, numbers: &[u8], dtype: &str) -> PyResult<Array> {
        let rows = numbers_of(numbers);
        let shape = vec![rows.len(), self.0.width()];
        let numbers = match dtype {
            "float32" => Numbers::F32(self.gather(py, &rows)?, Spare::default()),
            "float16" => Numbers::F16(self.gather::<f16>(py, &rows)?, Spare::default()),
            "bfloat16" => Numbers::Bf16(self.gather::<bf16>(py, &rows)?, Spare::default()),
            other => return Err(unknown_dtype(other)),
        };
        Ok(Array::new(numbers, shape))
    }

    /// Where rows come from: context · T + position, `[n]` uint64.
    fn origins(&self, py: Python<'_>, numbers: &[u8]) -> PyResult<Array> {
        let rows = numbers_of(numbers);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_unstable_by_key(|&place| rows[place]);
        let mut origins = vec![0; rows.len()];
        let chunk_rows = self.0.spec().layout.chunk_rows as u64;
        let read = interrupt::interruptible(
            py,
            |stop| {
                for places in order.chunk_by(|&a, &b| rows[a] / chunk_rows == rows[b] / chunk_rows) {
                    if stop.is_wanted() {
                        return Ok(false);
                    }
                    let (first, last) = (rows[places[0]], rows[places[places.len() - 1]]);
                    let of_chunk = self.0.origin(first..last.saturating_add(1))?;
                    for &place in places {
                        origins[place] = of_chunk[(rows[place] - first) as usize];
                    }
                }
                Ok(true)
            },
            |_| Ok(()),
        )?;
        finished(read)?;
        let shape = vec![origins.len()];
        Ok(Array::new(Numbers::U64(origins), shape))
    }

    /// The tokens of contexts `start..stop`, `[stop - start, T]` uint32.
    fn context_tokens(&self, py: Python<'_>, start: u64, stop: u64) -> PyResult<Array> {
        let tokens = py.detach(|| self.0.context_tokens(start..stop));
        let tokens = tokens.map_err(|error| errors::exception(&error))?;
        let shape = tokens.shape().to_vec();
        Ok(Array::new(Numbers::U32(tokens.into_iter().collect()), shape))
    }
}

impl NativeStore {
    /// Rows `rows`, one after the other.
    fn gather<T: BatchElement>(&self, py: Python<'_>, rows: &[u64]) -> PyResult<Vec<T>> {
        let width = self.0.width();
        let size = rows.len().checked_mul(width);
        let size = size.ok_or_else(|| PyValueError::new_err("more rows than memory can hold"))?;
        let mut out = vec![T::default(); size];
        let read = interrupt::interruptible(
            py,
            |stop| {
                let piece = CHUNKS_AT_ONCE * self.0.spec().layout.chunk_rows as u64;
                let mut wanted: Vec<(u64, &mut [T])> =
                    rows.iter().copied().zip(out.chunks_exact_mut(width)).collect();
                wanted.sort_unstable_by_key(|(row, _)| *row);
                while let Some((first, _)) = wanted.first() {
                    if stop.is_wanted() {
                        return Ok(false);
                    }
                    let end = (first / piece + 1).saturating_mul(piece);
                    let later = wanted.partition_point(|(row, _)| *row < end);
                    let rest = wanted.split_off(later);
                    self.0.read_into(std::mem::replace(&mut wanted, rest))?;
                }
                Ok(true)
            },
            |_| Ok(()),
        )?;
        finished(read)?;
        Ok(out)
    }
}

/// Whether reading came to its end, rather than to that which Ctrl-C makes.
fn finished(read: Result<bool, StoreError>) -> PyResult<()> {
    match read {
        Ok(true) => Ok(()),
        Ok(false) => Err(PyKeyboardInterrupt::new_err(())),
        Err(error) => Err(errors::exception(&error)),
    }
}

fn numbers_of(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect()
}

/// A name that is none of a type that rows can have.
pub(crate) fn unknown_dtype(name: &str) -> PyErr {
    PyValueError::new_err(format!("rows can be float16, bfloat16 or float32, and not {name}"))
}
