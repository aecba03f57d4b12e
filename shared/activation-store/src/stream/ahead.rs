//! The blocks of a stream in its order, and the chunks that a bucket is asked for ahead of the threads that decode them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::order::{BlockPlan, Epoch, Sources};
use crate::store::next_reader;

/// Chunks that are asked for before they are decoded: enough requests at a time to fill a fast line.
const AHEAD: u64 = 64;

/// Which rows of a stream a reader takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// Rows of a batch.
    pub(super) batch: u64,
    /// Its first step.
    pub(super) first: u64,
    /// Steps from one batch to the next.
    pub(super) every: u64,
}

impl Share {
    /// Of the rows `rows` of the stream, those that batches `first`, `first + every`, … have.
    fn wanted(self, rows: std::ops::Range<u64>) -> u64 {
        let before = |row: u64| {
            let row = row.saturating_sub(self.first.saturating_mul(self.batch));
            let period = self.every.saturating_mul(self.batch);
            row / period * self.batch + (row % period).min(self.batch)
        };
        before(rows.end) - before(rows.start)
    }
}

/// The blocks that have rows of a share, one after the other without end.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    sources: Arc<Sources>,
    share: Share,
    seed: u64,
    mixing_chunks: usize,
    epoch: Epoch,
    next: u64,
}

impl Blocks {
    /// From the one on that holds row `position` of the stream.
    pub(super) fn from(
        sources: &Arc<Sources>,
        share: Share,
        seed: u64,
        mixing_chunks: usize,
        position: u64,
    ) -> Blocks {
        let (number, offset) = (position / sources.rows(), position % sources.rows());
        let epoch = Epoch::new(sources, seed, number, mixing_chunks);
        let next = epoch.block_at(offset);
        Blocks { sources: sources.clone(), share, seed, mixing_chunks, epoch, next }
    }

    /// The next block, and how many of its rows are of the share.
    pub(super) fn next(&mut self) -> (BlockPlan, u64) {
        loop {
            let Some(plan) = self.epoch.block(self.next) else {
                self.epoch =
                    Epoch::new(&self.sources, self.seed, self.epoch.number() + 1, self.mixing_chunks);
                self.next = 0;
                continue;
            };
            self.next += 1;
            let wanted = self.share.wanted(plan.start..plan.start + plan.rows);
            // Others may read all of it.
            if wanted > 0 {
                return (plan, wanted);
            }
        }
    }
}

/// Asks buckets for chunks before they are decoded.
#[derive(Debug)]
pub(super) struct Ahead {
    reader: u64,
    blocks: Blocks,
    /// Of the block that was taken last.
    chunks: VecDeque<u32>,
    /// Chunks asked for, less those handed out to be decoded.
    ahead: u64,
}

impl Ahead {
    /// For a stream that begins with `blocks`; `None` if no chunk has to be fetched.
    pub(super) fn of(blocks: &Blocks) -> Option<Ahead> {
        let fetched = blocks.sources.stores().iter().any(|store| store.is_fetched());
        fetched.then(|| Ahead {
            reader: next_reader(),
            blocks: blocks.clone(),
            chunks: VecDeque::new(),
            ahead: 0,
        })
    }

    /// A chunk is being decoded, the next one of the stream's order, or none yet: asks for those that come into reach.
    pub(super) fn advance(&mut self, decoded: u64) {
        self.ahead = self.ahead.saturating_sub(decoded);
        while self.ahead < AHEAD {
            let Some(chunk) = self.chunks.pop_front() else {
                self.chunks.extend(self.blocks.next().0.chunks);
                continue;
            };
            self.ahead += 1;
            let (store, chunk) = self.blocks.sources.chunk(chunk);
            store.fetch_ahead(self.reader, [chunk]);
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        for store in self.blocks.sources.stores() {
            store.stop_fetching(self.reader);
        }
    }
}
