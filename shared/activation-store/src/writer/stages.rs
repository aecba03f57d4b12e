//! What the threads behind a writer hand on and share.

use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::row_slots::RowSlot;
use crate::statistics::RunningStatistics;

/// How far the text is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// Contexts of which every row is taken in.
    pub(super) contexts: u64,
    /// Positions of the next context that are taken in.
    pub(super) positions: usize,
}

/// What the compressing thread sends, in store order.
#[derive(Debug)]
pub(super) enum Commit {
    /// An encoded chunk of `tokens`.
    Tokens { chunk: u64, encoded: Vec<u8> },
    /// The encoded chunks of a shard.
    Shard { shard: u64, rows: u64, activations: Vec<Vec<u8>>, origin: Vec<Vec<u8>> },
    /// Every shard of the window was sent.
    Window { window: u64, from: Position, to: Position, clipped: u64, statistics: RunningStatistics },
}

/// Encoded chunks that are on the disk, to be filled again. (The system gives a fresh buffer of such a size page by page,
/// which takes longer than to fill it.)
pub(super) type Emptied = Arc<Mutex<Vec<Vec<u8>>>>;

/// Where the compressing threads' buffers go and come from.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Rows go back to the writer.
    pub(super) returned: Sender<Vec<RowSlot>>,
    pub(super) emptied: Emptied,
}

/// What the background threads report.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) rows_stored: AtomicU64,
    pub(super) activation_bytes: AtomicU64,
}

/// What the threads share: an error, or buffers. No panic can leave it half written.
pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
