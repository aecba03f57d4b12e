//! Shuffled batches of one or several stores.

use std::time::Duration;

use crate::{Result, Store};

/// How a [`BatchStream`] cuts and orders its batches.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Rows of a batch.
    pub batch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// K, the chunks whose rows are mixed; `None` takes a number that mixes well.
    pub mixing_chunks: Option<usize>,
    /// Leave out rows whose token is the store's `bos_token`.
    pub drop_bos: bool,
    /// Decoding threads; 0 means one per core. The order does not depend on it.
    pub threads: usize,
    /// Batches made ahead of the reader.
    pub prefetch: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions { batch: 4096, seed: 0, mixing_chunks: None, drop_bos: false, threads: 0, prefetch: 4 }
    }
}

/// Endless shuffled batches.
#[derive(Debug)]
pub struct BatchStream {}

impl BatchStream {
    /// A stream over `stores`.
    pub fn new(stores: Vec<Store>, options: StreamOptions) -> Result<BatchStream> {
        let _ = (stores, options);
        unreachable!()
    }
    /// The next batch will be that of `step` (from 0).
    pub fn seek(&mut self, step: u64) -> Result<()> {
        let _ = step;
        unreachable!()
    }
    /// The step of the next batch.
    pub fn step(&self) -> u64 {
        unreachable!()
    }
    /// The next batch, `[batch, d]`.
    pub fn next_batch(&mut self) -> Result<&[f32]> {
        unreachable!()
    }
    /// d, the elements of a row.
    pub fn width(&self) -> usize {
        unreachable!()
    }
    /// Rows of one epoch (without the rows left out).
    pub fn rows_per_epoch(&self) -> u64 {
        unreachable!()
    }
    /// Time that `next_batch` spent waiting for data so far.
    pub fn waited(&self) -> Duration {
        unreachable!()
    }
}
