//! Writing a store.

use std::path::{Path, PathBuf};

use crate::{Result, Statistics, StoreSpec};

/// Resources of a [`StoreWriter`]; they do not change a byte of the store.
#[derive(Debug, Clone, Default)]
pub struct WriterOptions {
    /// Compression threads; 0 means one per core.
    pub threads: usize,
    /// Do not ask whether the file system has room for the estimate.
    pub skip_space_check: bool,
}

/// What the writer has taken in and written so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteProgress {
    /// Contexts taken in.
    pub contexts: u64,
    /// Rows taken in.
    pub rows: u64,
    /// Rows in finished shards.
    pub rows_stored: u64,
    /// Raw bytes of the rows in finished shards.
    pub raw_bytes: u64,
    /// Bytes of the finished shards on disk.
    pub stored_bytes: u64,
}

/// A finished store in numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreSummary {
    /// The store's folder.
    pub path: PathBuf,
    /// Contexts stored.
    pub contexts: u64,
    /// Rows stored.
    pub rows: u64,
    /// Raw bytes of all rows.
    pub raw_bytes: u64,
    /// Bytes of the activations on disk.
    pub activation_bytes: u64,
    /// Bytes of all files of the store.
    pub stored_bytes: u64,
    /// Values clipped to the row type's range.
    pub clipped: u64,
    /// Statistics over all rows.
    pub stats: Statistics,
}

/// Writes a store, or continues one that was interrupted.
#[derive(Debug)]
pub struct StoreWriter {}

impl StoreWriter {
    /// Creates the store in `dir`, or resumes the unfinished store of the same specification in it.
    pub fn open(dir: &Path, spec: &StoreSpec, options: &WriterOptions) -> Result<StoreWriter> {
        let _ = (dir, spec, options);
        unreachable!()
    }
    /// Contexts whose rows need not be sent again (0 for a new store).
    pub fn contexts_done(&self) -> u64 {
        unreachable!()
    }
    /// Takes in whole contexts: `tokens` `[n, T]`, `rows` `[n·T, d]`.
    pub fn append(&mut self, tokens: &[u32], rows: &[f32]) -> Result<()> {
        let _ = (tokens, rows);
        unreachable!()
    }
    /// What was taken in and written so far.
    pub fn progress(&self) -> WriteProgress {
        unreachable!()
    }
    /// Writes what is left, the statistics and the final metadata.
    pub fn finish(self) -> Result<StoreSummary> {
        unreachable!()
    }
}
