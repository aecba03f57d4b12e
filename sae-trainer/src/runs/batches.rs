//! The stream of batches that training reads, in the number type that suits the engine.
//!
//! The CPU engine takes float32. A GPU receives a batch in the half precision that most stores keep: half the bytes to
//! write after decoding, to copy into pinned memory and to send, with the same numbers.

use std::time::Duration;

use activation_store::{BatchStream, RowType, Store, StreamOptions};
use anyhow::{Result, bail};
use half::f16;
use ndarray::{Array2, Axis};

use crate::engine::Rows;

/// Rows from which a decoder bias or an input scale is estimated.
const SAMPLE_ROWS: usize = 32_768;

/// Batches of rows of one or several stores.
pub(crate) enum Batches {
    F32(BatchStream<f32>),
    F16(BatchStream<f16>),
}

impl Batches {
    /// Batches of float32, or of half precision if `as_stored` and all stores keep that.
    pub(crate) fn new(stores: Vec<Store>, options: StreamOptions, as_stored: bool) -> Result<Batches> {
        let half = as_stored && stores.iter().all(|store| store.row_type() == RowType::F16);
        Ok(match half {
            true => Batches::F16(BatchStream::with_element(stores, options)?),
            false => Batches::F32(BatchStream::new(stores, options)?),
        })
    }

    /// The next batch, [B, d].
    pub(crate) fn next(&mut self) -> Result<Rows<'_>> {
        Ok(match self {
            Batches::F32(stream) => Rows::F32(stream.next_batch()?),
            Batches::F16(stream) => Rows::F16(stream.next_batch()?),
        })
    }

    /// The first rows of training, about [`SAMPLE_ROWS`] in whole batches, [n, d].
    ///
    /// # Errors
    /// A store that cannot be read, or rows of which nothing can be estimated.
    pub(crate) fn sample(&mut self) -> Result<Array2<f32>> {
        let (batch, width) = (self.batch(), self.width());
        let rows = SAMPLE_ROWS.min(usize::try_from(self.rows_per_epoch())?);
        let count = (rows / batch).max(1);
        let mut sample = Array2::zeros((0, width));
        sample.reserve_rows(count * batch)?;
        self.seek(0)?;
        for _ in 0..count {
            sample.append(Axis(0), self.next()?.to_f32().view())?;
        }
        if let Some(number) = sample.iter().find(|x| !x.is_finite()) {
            bail!(
                "a row of the store holds {number}, so neither decoder bias nor input scale can be computed"
            );
        }
        Ok(sample)
    }

    fn batch(&self) -> usize {
        match self {
            Batches::F32(stream) => stream.batch(),
            Batches::F16(stream) => stream.batch(),
        }
    }

    fn width(&self) -> usize {
        match self {
            Batches::F32(stream) => stream.width(),
            Batches::F16(stream) => stream.width(),
        }
    }

    /// Makes the next batch that of `step`, from 0.
    pub(crate) fn seek(&mut self, step: u64) -> Result<()> {
        match self {
            Batches::F32(stream) => stream.seek(step)?,
            Batches::F16(stream) => stream.seek(step)?,
        }
        Ok(())
    }

    /// Rows of one pass over the stores.
    pub(crate) fn rows_per_epoch(&self) -> u64 {
        match self {
            Batches::F32(stream) => stream.rows_per_epoch(),
            Batches::F16(stream) => stream.rows_per_epoch(),
        }
    }

    /// The chunks whose rows are mixed.
    pub(crate) fn mixing_chunks(&self) -> usize {
        match self {
            Batches::F32(stream) => stream.mixing_chunks(),
            Batches::F16(stream) => stream.mixing_chunks(),
        }
    }

    /// The time that [`Batches::next`] has spent waiting for rows.
    pub(crate) fn waited(&self) -> Duration {
        match self {
            Batches::F32(stream) => stream.waited(),
            Batches::F16(stream) => stream.waited(),
        }
    }

    /// Bytes of a batch.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Batches::F32(stream) => 4 * stream.batch() * stream.width(),
            Batches::F16(stream) => 2 * stream.batch() * stream.width(),
        }
    }
}
