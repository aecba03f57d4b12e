//! Shuffled batches of one or several stores.

mod ahead;
mod filter;
mod order;
mod pipeline;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use filter::RowFilter;
use ndarray::ArrayView2;
use order::Sources;
use pipeline::{Pipeline, Settings};

use crate::widen::BatchElement;
use crate::{Result, Store, StoreError};

/// How a [`BatchStream`] cuts and orders its batches.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Rows of a batch.
    pub batch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// K, the chunks whose rows are mixed; `None` takes a number that mixes well.
    pub mixing_chunks: Option<usize>,
    /// Which rows of the stores the batches have.
    pub rows: RowFilter,
    /// Decoding threads; 0 means one per core. The order does not depend on it.
    pub threads: usize,
    /// Batches made ahead of the reader.
    pub prefetch: usize,
    /// Steps from one batch to the next: 1 for all batches, n for one of n readers that share them.
    pub every: u64,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            batch: 4096,
            seed: 0,
            mixing_chunks: None,
            rows: RowFilter::default(),
            threads: 0,
            prefetch: 4,
            every: 1,
        }
    }
}

/// Endless shuffled batches of one or several stores of one width.
///
/// The order is a pure function of (stores in their order, rows kept, seed, epoch, K): the chunks of an epoch are permuted, the
/// rows of every K consecutive chunks are permuted together, and the batches are cut from the resulting stream, epoch
/// after epoch. An epoch has every kept row exactly once; a batch can span two epochs.
///
/// Batches are float32 ([`BatchStream::new`]) or another `T`, to which rows are converted, rounded to nearest even, when
/// a batch is gathered ([`BatchStream::with_element`]). The order is the same for every `T`.
#[derive(Debug)]
pub struct BatchStream<T = f32> {
    sources: Arc<Sources>,
    settings: Settings,
    /// Started by the first `next_batch`, so that a `seek` before it costs nothing.
    pipeline: Option<Pipeline<T>>,
    step: u64,
    current: Vec<T>,
    waited: Duration,
}

impl BatchStream {
    /// A stream of float32 batches over `stores`, at step 0.
    ///
    /// # Errors
    /// No store, stores of different widths, an empty batch, no row left; damage found while looking for the rows
    /// to leave out.
    pub fn new(stores: Vec<Store>, options: StreamOptions) -> Result<BatchStream> {
        Self::with_element(stores, options)
    }
}

impl<T: BatchElement> BatchStream<T> {
    /// A stream of batches of `T` over `stores`, at step 0:
    /// `BatchStream::<bf16>::with_element(stores, options)`.
    ///
    /// # Errors
    /// As [`BatchStream::new`]. A value beyond `T` is an error of [`BatchStream::next_batch`].
    pub fn with_element(stores: Vec<Store>, options: StreamOptions) -> Result<BatchStream<T>> {
        if options.batch == 0 || options.mixing_chunks == Some(0) {
            return Err(StoreError::Stream("the batch and the mixing block cannot be empty".to_owned()));
        }
        if options.every == 0 {
            return Err(StoreError::Stream("a stream cannot stay at a step for ever".to_owned()));
        }
        let sources = Arc::new(Sources::new(stores, &options.rows)?);
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let settings = Settings {
            batch: options.batch,
            seed: options.seed,
            mixing_chunks: sources.mixing_chunks(options.mixing_chunks)?,
            threads: if options.threads == 0 { cores } else { options.threads },
            prefetch: options.prefetch.max(1),
            every: options.every,
        };
        Ok(BatchStream {
            sources,
            settings,
            pipeline: None,
            step: 0,
            current: Vec::new(),
            waited: Duration::ZERO,
        })
    }

    /// Makes the next batch that of `step` (from 0), without replaying the ones before.
    pub fn seek(&mut self, step: u64) -> Result<()> {
        if step.checked_mul(self.settings.batch as u64).is_none() {
            return Err(StoreError::Step(step));
        }
        if step != self.step {
            self.pipeline = None;
            self.step = step;
        }
        Ok(())
    }

    /// The step of the next batch.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The next batch, `[batch, d]`.
    ///
    /// # Errors
    /// Damage, with file and chunk; a value beyond `T`. The step stays the same.
    pub fn next_batch(&mut self) -> Result<ArrayView2<'_, T>> {
        let mut batch = std::mem::take(&mut self.current);
        let result = self.advance(&mut batch, None);
        self.current = batch;
        result?;
        let shape = (self.settings.batch, self.sources.width());
        Ok(ArrayView2::from_shape(shape, &self.current).expect("a batch has its rows"))
    }

    /// The next batch, `[batch, d]` in row-major order, in place of what `batch` held: whoever keeps batches has them without a
    /// copy. The stream fills the memory of an earlier batch again if it is given it here. False, with `batch` as it was and the
    /// step the same, if the next batch is not ready within `patience`.
    ///
    /// # Errors
    /// As [`BatchStream::next_batch`].
    pub fn next_into(&mut self, batch: &mut Vec<T>, patience: Duration) -> Result<bool> {
        self.advance(batch, Some(patience))
    }

    fn advance(&mut self, batch: &mut Vec<T>, patience: Option<Duration>) -> Result<bool> {
        let result = self.receive(batch, patience);
        match result {
            Ok(true) => self.step += self.settings.every,
            Ok(false) => {}
            // The threads have stopped; a further call starts new ones, and meets the same damage.
            Err(_) => self.pipeline = None,
        }
        result
    }

    fn receive(&mut self, batch: &mut Vec<T>, patience: Option<Duration>) -> Result<bool> {
        if self.pipeline.is_none() {
            self.pipeline = Some(Pipeline::start(&self.sources, &self.settings, self.step)?);
        }
        let pipeline = self.pipeline.as_ref().expect("just started");
        if pipeline.try_next(batch)? {
            return Ok(true);
        }
        let start = Instant::now();
        let received = pipeline.next_within(batch, patience);
        self.waited += start.elapsed();
        received
    }

    /// Rows of a batch.
    pub fn batch(&self) -> usize {
        self.settings.batch
    }

    /// d, the elements of a row.
    pub fn width(&self) -> usize {
        self.sources.width()
    }

    /// K, the chunks whose rows are mixed.
    pub fn mixing_chunks(&self) -> usize {
        self.settings.mixing_chunks
    }

    /// Rows of one epoch (without the rows left out).
    pub fn rows_per_epoch(&self) -> u64 {
        self.sources.rows()
    }

    /// Time that [`BatchStream::next_batch`] spent waiting for data so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, aview2};

    use super::*;
    use crate::widen::Dying;
    use crate::{StoreSpec, StoreWriter, WriterOptions};

    #[test]
    fn a_reading_thread_that_dies_is_an_error_and_not_a_wait() {
        let dir = tempfile::tempdir().unwrap();
        let spec = StoreSpec::new(2, 4, 8);
        let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        writer.append(aview2(&[[0; 4]; 8]), Array3::ones((8, 4, 2)).view()).unwrap();
        writer.finish().unwrap();
        for threads in [1, 3] {
            let options = StreamOptions { batch: 4, threads, ..StreamOptions::default() };
            let store = Store::open(dir.path()).unwrap();
            let mut stream = BatchStream::<Dying>::with_element(vec![store], options).unwrap();
            for _ in 0..2 {
                let error = stream.next_batch().unwrap_err();
                assert!(
                    matches!(&error, StoreError::Died(died) if died.reason == "a dying element"),
                    "{error}"
                );
            }
        }
    }
}
