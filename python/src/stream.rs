//! Shuffled batches.

use std::mem::ManuallyDrop;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use activation_store::{
    BatchElement, BatchStream, Part, RowFilter, RowMask, Store, StoreError, StreamOptions, bf16, f16,
    median_norm,
};
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::array::{Array, Numbers, Spare};
use crate::errors;
use crate::interrupt::{self, PATIENCE, Stop};
use crate::store::{NativeStore, unknown_dtype};

/// Batches of some stores in the order of a seed, without end.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Stream {
    /// Not dropped in a process that was forked: the threads that it would wait for are not there.
    batches: ManuallyDrop<Mutex<Batches>>,
    /// Whose threads read.
    process: u32,
    batch: usize,
    width: usize,
    rows_per_epoch: u64,
    mixing_chunks: usize,
}

enum Batches {
    F32(Typed<f32>),
    F16(Typed<f16>),
    Bf16(Typed<bf16>),
}

struct Typed<T> {
    stream: BatchStream<T>,
    /// Memory of batches that Python is done with.
    spare: Spare<T>,
}

impl<T: BatchElement> Typed<T> {
    fn new(stores: Vec<Store>, options: StreamOptions) -> Result<Typed<T>, StoreError> {
        Ok(Typed { stream: BatchStream::with_element(stores, options)?, spare: Spare::default() })
    }

    /// The next batch, if it comes soon.
    fn next(&mut self) -> Result<Option<Vec<T>>, StoreError> {
        let mut batch = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        Ok(self.stream.next_into(&mut batch, PATIENCE)?.then_some(batch))
    }
}

/// The same for batches of every type.
macro_rules! each {
    ($batches:expr, $typed:ident => $body:expr) => {
        match $batches {
            Batches::F32($typed) => $body,
            Batches::F16($typed) => $body,
            Batches::Bf16($typed) => $body,
        }
    };
}

#[pymethods]
impl Stream {
    /// Batches `step`, `step + every` and so on. `part` is "training", "held-out" or "all"; rows are left out whose norm is over
    /// `max_norm` times the median.
    #[new]
    #[pyo3(signature = (
        stores, *, batch, seed, step, every, dtype, part, held_out, drop_bos, drop_tokens, max_norm, mixing_chunks, threads, prefetch
    ))]
    fn new(
        py: Python<'_>,
        stores: Vec<PyRef<'_, NativeStore>>,
        batch: usize,
        seed: u64,
        step: u64,
        every: u64,
        dtype: &str,
        part: &str,
        held_out: f64,
        drop_bos: bool,
        drop_tokens: Vec<u32>,
        max_norm: Option<f64>,
        mixing_chunks: Option<usize>,
        threads: usize,
        prefetch: usize,
    ) -> PyResult<Stream> {
        let stores: Vec<Store> = stores.iter().map(|store| store.0.clone()).collect();
        if !(0.0..1.0).contains(&held_out) {
            let text = format!("held_out is {held_out}, but it must be at least 0 and below 1");
            return Err(PyValueError::new_err(text));
        }
        if max_norm.is_some_and(|times| !(times > 0.0 && times.is_finite())) {
            return Err(PyValueError::new_err("max_norm must be above 0"));
        }
        let part = match part {
            "training" => Part::Training { held_out },
            "held-out" => Part::HeldOut { held_out },
            "all" => Part::All,
            other => {
                let text = format!("part is \"training\", \"held-out\" or \"all\", and not \"{other}\"");
                return Err(PyValueError::new_err(text));
            }
        };
        let filter = RowFilter { drop_bos, drop_tokens, part, mask: None };
        let options = StreamOptions { batch, seed, mixing_chunks, rows: filter, threads, prefetch, every };
        let open: fn(Vec<Store>, StreamOptions) -> Result<Batches, StoreError> = match dtype {
            "float32" => |stores, options| Typed::new(stores, options).map(Batches::F32),
            "float16" => |stores, options| Typed::new(stores, options).map(Batches::F16),
            "bfloat16" => |stores, options| Typed::new(stores, options).map(Batches::Bf16),
            other => return Err(unknown_dtype(other)),
        };
        let opened = interrupt::interruptible(
            py,
            |stop| {
                let Some(options) = with_mask(&stores, options, max_norm, stop)? else { return Ok(None) };
                let mut batches = open(stores, options)?;
                each!(&mut batches, typed => typed.stream.seek(step))?;
                Ok(Some(batches))
            },
            |_| Ok(()),
        )?;
        let batches = opened.map_err(|error: StoreError| errors::exception(&error))?;
        let batches = batches.ok_or_else(|| PyKeyboardInterrupt::new_err(()))?;
        let (batch, width, rows_per_epoch, mixing_chunks) = each!(&batches, typed => {
            let stream = &typed.stream;
            (stream.batch(), stream.width(), stream.rows_per_epoch(), stream.mixing_chunks())
        });
        Ok(Stream {
            batches: ManuallyDrop::new(Mutex::new(batches)),
            process: process::id(),
            batch,
            width,
            rows_per_epoch,
            mixing_chunks,
        })
    }

    /// The next batch, `[batch, d]`.
    fn next(&self, py: Python<'_>) -> PyResult<Array> {
        self.check_process()?;
        loop {
            let received = py.detach(|| {
                let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(match &mut *batches {
                    Batches::F32(typed) => {
                        typed.next()?.map(|batch| Numbers::F32(batch, typed.spare.clone()))
                    }
                    Batches::F16(typed) => {
                        typed.next()?.map(|batch| Numbers::F16(batch, typed.spare.clone()))
                    }
                    Batches::Bf16(typed) => {
                        typed.next()?.map(|batch| Numbers::Bf16(batch, typed.spare.clone()))
                    }
                })
            });
            if let Some(numbers) = received.map_err(|error: StoreError| errors::exception(&error))? {
                return Ok(Array::new(numbers, vec![self.batch, self.width]));
            }
            py.check_signals()?;
        }
    }

    /// Rows of one epoch.
    #[getter]
    fn rows_per_epoch(&self) -> u64 {
        self.rows_per_epoch
    }

    /// Chunks whose rows are mixed.
    #[getter]
    fn mixing_chunks(&self) -> usize {
        self.mixing_chunks
    }

    /// d, the numbers of a row.
    #[getter]
    fn width(&self) -> usize {
        self.width
    }

    /// Seconds spent waiting for rows.
    #[getter]
    fn waited(&self, py: Python<'_>) -> PyResult<f64> {
        self.check_process()?;
        Ok(py.detach(|| {
            let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
            each!(&*batches, typed => typed.stream.waited()).as_secs_f64()
        }))
    }
}

impl Stream {
    fn check_process(&self) -> PyResult<()> {
        if self.process == process::id() {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(
            "these batches were begun in another process, whose threads read them; make them anew in this one",
        ))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.process == process::id() {
            // SAFETY: nothing uses it after this.
            unsafe { ManuallyDrop::drop(&mut self.batches) }
        }
    }
}

/// `options` with the rows left out that `max_norm` leaves out; `None` if stopped.
fn with_mask(
    stores: &[Store],
    mut options: StreamOptions,
    max_norm: Option<f64>,
    stop: &Stop,
) -> Result<Option<StreamOptions>, StoreError> {
    if let Some(times) = max_norm {
        let limit = times * median_norm(stores)?;
        let mask = RowMask::within_norm_while(stores, limit, |_| !stop.is_wanted())?;
        let Some(mask) = mask else { return Ok(None) };
        options.rows.mask = Some(Arc::new(mask));
    }
    Ok(Some(options))
}
