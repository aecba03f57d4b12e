//! The stream of batches that training reads, in the number type that suits the engine.
//!
//! The CPU engine takes float32. A GPU receives a batch in the half precision that most stores keep: half the bytes to
//! write after decoding, to copy into pinned memory and to send, with the same numbers.
//!
//! A transcoder reads two streams in step: that of its input, and that of its target, over the stores of another hook of the
//! same dump. The order of a stream depends on chunks and rows alone, which are the same in both.

use std::time::Duration;

use activation_store::{BatchStream, RowType, Store, StreamOptions};
use anyhow::{Result, bail};
use half::f16;
use kernels::batch::Batch;
use ndarray::{Array2, ArrayView2, Axis};

use crate::engine::{Rows, StoredBatch};

/// Rows from which a decoder bias or an input scale is estimated.
const SAMPLE_ROWS: usize = 32_768;

/// Batches of rows of one or several stores, or of pairs of rows.
pub(crate) struct Batches {
    input: Stream,
    target: Option<Stream>,
}

enum Stream {
    F32(BatchStream<f32>),
    F16(BatchStream<f16>),
}

impl Batches {
    /// Batches of float32, or of half precision if `as_stored` and the stores keep that. `targets` has none, or one aligned with
    /// each of `stores`.
    pub(crate) fn new(
        stores: &[Store],
        targets: &[Store],
        options: StreamOptions,
        as_stored: bool,
    ) -> Result<Batches> {
        let input = Stream::new(stores, options.clone(), as_stored)?;
        // The default depends on the bytes of a chunk, which may differ.
        let options = StreamOptions { mixing_chunks: Some(input.mixing_chunks()), ..options };
        let target = match targets {
            [] => None,
            targets => Some(Stream::new(targets, options, as_stored)?),
        };
        Ok(Batches { input, target })
    }

    /// The next batch, [B, d].
    pub(crate) fn next(&mut self) -> Result<StoredBatch<'_>> {
        let target = match &mut self.target {
            Some(target) => Some(target.next()?),
            None => None,
        };
        Ok(StoredBatch { input: self.input.next()?, target })
    }

    /// The first rows of training that the decoder is to reconstruct, about [`SAMPLE_ROWS`] in whole batches, [n, d].
    ///
    /// # Errors
    /// A store that cannot be read, or rows of which nothing can be estimated.
    pub(crate) fn sample(&mut self) -> Result<Array2<f32>> {
        self.first_rows(|batch| batch.target)
    }

    /// The first rows of training that the encoder reads, as [`Batches::sample`].
    pub(crate) fn input_sample(&mut self) -> Result<Array2<f32>> {
        self.first_rows(|batch| batch.input)
    }

    fn first_rows(&mut self, of: impl for<'a> Fn(Batch<'a>) -> ArrayView2<'a, f32>) -> Result<Array2<f32>> {
        let (batch, width) = self.input.shape();
        let rows = SAMPLE_ROWS.min(usize::try_from(self.rows_per_epoch())?);
        let count = (rows / batch).max(1);
        let mut sample = Array2::zeros((0, width));
        sample.reserve_rows(count * batch)?;
        self.seek(0)?;
        for _ in 0..count {
            sample.append(Axis(0), of(self.next()?.to_f32().view()))?;
        }
        if let Some(number) = sample.iter().find(|x| !x.is_finite()) {
            bail!("a row of the store holds {number}, so neither biases nor an input scale can be computed");
        }
        Ok(sample)
    }

    /// Makes the next batch that of `step`, from 0.
    pub(crate) fn seek(&mut self, step: u64) -> Result<()> {
        self.streams_mut().try_for_each(|stream| stream.seek(step))
    }

    /// Rows of one pass over the stores.
    pub(crate) fn rows_per_epoch(&self) -> u64 {
        self.input.rows_per_epoch()
    }

    /// The chunks whose rows are mixed.
    pub(crate) fn mixing_chunks(&self) -> usize {
        self.input.mixing_chunks()
    }

    /// The time that [`Batches::next`] has spent waiting for rows.
    pub(crate) fn waited(&self) -> Duration {
        self.streams().map(Stream::waited).sum()
    }

    /// Bytes of a batch.
    pub(crate) fn bytes(&self) -> usize {
        self.streams().map(Stream::bytes).sum()
    }

    fn streams(&self) -> impl Iterator<Item = &Stream> {
        [&self.input].into_iter().chain(&self.target)
    }

    fn streams_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        [&mut self.input].into_iter().chain(&mut self.target)
    }
}

impl Stream {
    fn new(stores: &[Store], options: StreamOptions, as_stored: bool) -> Result<Stream> {
        let half = as_stored && stores.iter().all(|store| store.row_type() == RowType::F16);
        Ok(match half {
            true => Stream::F16(BatchStream::with_element(stores.to_vec(), options)?),
            false => Stream::F32(BatchStream::new(stores.to_vec(), options)?),
        })
    }

    fn next(&mut self) -> Result<Rows<'_>> {
        Ok(match self {
            Stream::F32(stream) => Rows::F32(stream.next_batch()?),
            Stream::F16(stream) => Rows::F16(stream.next_batch()?),
        })
    }

    fn seek(&mut self, step: u64) -> Result<()> {
        match self {
            Stream::F32(stream) => stream.seek(step)?,
            Stream::F16(stream) => stream.seek(step)?,
        }
        Ok(())
    }

    /// [B, d] of a batch.
    fn shape(&self) -> (usize, usize) {
        match self {
            Stream::F32(stream) => (stream.batch(), stream.width()),
            Stream::F16(stream) => (stream.batch(), stream.width()),
        }
    }

    fn rows_per_epoch(&self) -> u64 {
        match self {
            Stream::F32(stream) => stream.rows_per_epoch(),
            Stream::F16(stream) => stream.rows_per_epoch(),
        }
    }

    fn mixing_chunks(&self) -> usize {
        match self {
            Stream::F32(stream) => stream.mixing_chunks(),
            Stream::F16(stream) => stream.mixing_chunks(),
        }
    }

    fn waited(&self) -> Duration {
        match self {
            Stream::F32(stream) => stream.waited(),
            Stream::F16(stream) => stream.waited(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Stream::F32(stream) => 4 * stream.batch() * stream.width(),
            Stream::F16(stream) => 2 * stream.batch() * stream.width(),
        }
    }
}
