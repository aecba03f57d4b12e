//! The order of a training run: a pure function of (stores, seed, epoch, K).
//!
//! The chunks of an epoch are permuted. Every K consecutive chunks of that order form a mixing block, whose rows are permuted.
//! The stream is the blocks' rows one after the other, epoch after epoch without end, and batch `s` is its rows
//! `s·batch .. (s+1)·batch`. Finding a step is therefore arithmetic.

use super::filter::RowFilter;
use crate::permutation::{self, Purpose};
use crate::row_bits::ChunkBits;
use crate::{Result, Store, StoreError};

/// The stores of a stream and which of their rows it has.
#[derive(Debug)]
pub(crate) struct Sources {
    stores: Vec<Store>,
    /// Chunks of all stores: the store's number and the chunk's number in it.
    chunks: Vec<ChunkSource>,
    /// Rows of one epoch.
    rows: u64,
    /// The most rows of a chunk.
    chunk_rows: usize,
}

/// A chunk as a part of a stream.
#[derive(Debug)]
struct ChunkSource {
    store: u32,
    chunk: u64,
    /// Rows that the stream has.
    rows: u32,
    /// One bit per row, set if the stream has it; `None` if it has all.
    kept: Option<ChunkBits>,
}

impl Sources {
    pub(crate) fn new(stores: Vec<Store>, filter: &RowFilter) -> Result<Sources> {
        let Some(first) = stores.first() else {
            return Err(StoreError::Stream("no store given".to_owned()));
        };
        for store in &stores {
            if store.width() != first.width() {
                return Err(StoreError::Stream(format!(
                    "the rows of {} have {} elements, those of {} have {}",
                    first.path().display(),
                    first.width(),
                    store.path().display(),
                    store.width()
                )));
            }
        }
        let mut chunks = Vec::new();
        for (number, store) in stores.iter().enumerate() {
            let mut kept = filter.kept(number, store)?.unwrap_or_default().into_iter();
            for chunk in 0..store.chunks() {
                let kept = kept.next();
                let rows = match &kept {
                    Some(bits) => bits.iter().map(|word| word.count_ones()).sum(),
                    None => store.rows_of_chunk(chunk) as u32,
                };
                chunks.push(ChunkSource { store: number as u32, chunk, rows, kept });
            }
        }
        let rows = chunks.iter().map(|chunk| u64::from(chunk.rows)).sum();
        if rows == 0 {
            return Err(StoreError::Stream("no row remains: every one is left out".to_owned()));
        }
        let chunk_rows = stores.iter().map(|store| store.spec().layout.chunk_rows).max().unwrap_or(1);
        Ok(Sources { stores, chunks, rows, chunk_rows })
    }

    pub(crate) fn stores(&self) -> &[Store] {
        &self.stores
    }

    pub(crate) fn width(&self) -> usize {
        self.stores[0].width()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The store of a chunk, and the chunk's number in it.
    pub(crate) fn chunk(&self, chunk: u32) -> (&Store, u64) {
        let source = &self.chunks[chunk as usize];
        (&self.stores[source.store as usize], source.chunk)
    }

    /// The most rows of a chunk; a row of a mixing block is `slot · chunk_rows + row`.
    pub(crate) fn chunk_rows(&self) -> usize {
        self.chunk_rows
    }

    /// K as asked for, or one that mixes well: with rows R and windows of W rows, two rows of a batch share a context
    /// (1 + R/(W·K)) times as often as in a uniform permutation, so K = R/W makes it twice. At least 64 chunks;
    /// at most 384 MiB of them, as two blocks are in memory at a time.
    pub(crate) fn mixing_chunks(&self, asked: Option<usize>) -> Result<usize> {
        let window = |store: &Store| store.rows().div_ceil(store.spec().layout.window_rows as u64);
        let default = || {
            let windows: u64 = self.stores.iter().map(window).sum();
            let chunk_bytes = self.stores.iter().map(Store::chunk_bytes).max().unwrap_or(1);
            (windows.max(64) as usize).min(((384 << 20) / chunk_bytes).max(1))
        };
        let chunks = asked.unwrap_or_else(default).min(self.chunks.len());
        if chunks > u32::MAX as usize / self.chunk_rows {
            return Err(StoreError::Stream(format!(
                "mixing blocks of {chunks} chunks of {} rows",
                self.chunk_rows
            )));
        }
        Ok(chunks)
    }

    /// The rows of a mixing block of `chunks`, permuted.
    pub(crate) fn block_rows(&self, chunks: &[u32], seed: u64, epoch: u64, block: u64) -> Vec<u32> {
        let mut rows = Vec::new();
        for (slot, &chunk) in chunks.iter().enumerate() {
            let first = (slot * self.chunk_rows) as u32;
            let source = &self.chunks[chunk as usize];
            match &source.kept {
                None => rows.extend(first..first + source.rows),
                Some(bits) => {
                    let all = 0..64 * bits.len() as u32;
                    rows.extend(
                        all.filter(|row| bits[*row as usize / 64] >> (row % 64) & 1 == 1)
                            .map(|row| first + row),
                    );
                }
            }
        }
        permutation::shuffle(&mut rows, seed, Purpose::Block, epoch, block);
        rows
    }
}

/// The blocks of one epoch.
#[derive(Debug, Clone)]
pub(crate) struct Epoch {
    number: u64,
    /// All chunks, permuted.
    chunks: Vec<u32>,
    /// K.
    mixing_chunks: usize,
    /// First row of each block, counted from the epoch's first; then the epoch's rows.
    starts: Vec<u64>,
}

/// A mixing block.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BlockPlan {
    pub(crate) epoch: u64,
    /// Its number in the epoch.
    pub(crate) block: u64,
    /// Its first row, counted from the first row of epoch 0.
    pub(crate) start: u64,
    /// Its rows.
    pub(crate) rows: u64,
    pub(crate) chunks: Vec<u32>,
}

impl Epoch {
    pub(crate) fn new(sources: &Sources, seed: u64, number: u64, mixing_chunks: usize) -> Epoch {
        let mut chunks: Vec<u32> = (0..sources.chunks.len() as u32).collect();
        permutation::shuffle(&mut chunks, seed, Purpose::Epoch, number, 0);
        let mut starts = vec![0];
        let mut rows = 0;
        for block in chunks.chunks(mixing_chunks) {
            rows += block.iter().map(|&chunk| u64::from(sources.chunks[chunk as usize].rows)).sum::<u64>();
            starts.push(rows);
        }
        Epoch { number, chunks, mixing_chunks, starts }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The block that holds the row `offset` of the epoch.
    pub(crate) fn block_at(&self, offset: u64) -> u64 {
        (self.starts.partition_point(|&start| start <= offset) - 1) as u64
    }

    /// The block `block`, if the epoch has it.
    pub(crate) fn block(&self, block: u64) -> Option<BlockPlan> {
        let chunks = self.chunks.chunks(self.mixing_chunks).nth(block as usize)?;
        let (start, end) = (self.starts[block as usize], self.starts[block as usize + 1]);
        let rows_per_epoch = self.starts[self.starts.len() - 1];
        Some(BlockPlan {
            epoch: self.number,
            block,
            start: self.number * rows_per_epoch + start,
            rows: end - start,
            chunks: chunks.to_vec(),
        })
    }
}
