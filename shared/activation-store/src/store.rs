//! Reading a finished store.

use std::ops::Range;
use std::path::Path;

use crate::{Result, RowType, Statistics, StoreSpec};

/// A finished store, opened for reading; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {}

impl Store {
    /// Opens the store in `dir`.
    pub fn open(dir: &Path) -> Result<Store> {
        let _ = dir;
        unreachable!()
    }
    /// Its folder.
    pub fn path(&self) -> &Path {
        unreachable!()
    }
    /// Rows stored.
    pub fn rows(&self) -> u64 {
        unreachable!()
    }
    /// d, the elements of a row.
    pub fn width(&self) -> usize {
        unreachable!()
    }
    /// Element type of the rows.
    pub fn row_type(&self) -> RowType {
        unreachable!()
    }
    /// T, the tokens of a context.
    pub fn context_length(&self) -> usize {
        unreachable!()
    }
    /// Contexts stored.
    pub fn contexts(&self) -> u64 {
        unreachable!()
    }
    /// What was dumped and how; its `contexts` is the planned number.
    pub fn spec(&self) -> &StoreSpec {
        unreachable!()
    }
    /// Where the rows come from.
    pub fn provenance(&self) -> &crate::Provenance {
        &self.spec().provenance
    }
    /// Mean, variance and mean norm over all rows.
    pub fn stats(&self) -> &Statistics {
        unreachable!()
    }
    /// Bytes of all files of the store.
    pub fn stored_bytes(&self) -> u64 {
        unreachable!()
    }
    /// Decodes rows `range` into `out` `[range.len(), d]`.
    pub fn read_rows(&self, range: Range<u64>, out: &mut [f32]) -> Result<()> {
        let _ = (range, out);
        unreachable!()
    }
    /// For each row of `range`: context · context_length + position.
    pub fn origin(&self, range: Range<u64>) -> Result<Vec<u64>> {
        let _ = range;
        unreachable!()
    }
    /// Tokens of the contexts of `range`, `[range.len(), context_length]`.
    pub fn context_tokens(&self, range: Range<u64>) -> Result<Vec<u32>> {
        let _ = range;
        unreachable!()
    }
}
