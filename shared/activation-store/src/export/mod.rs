//! Exports a store's rows to the formats of other tools.

mod npy;
mod sae_lens;

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Result, Store, StoreError};

/// A format that [`export`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// NumPy files: `activations-00000.npy`, … `[rows, d]` and `origin-00000.npy`, … `[rows]` of the same rows, in the
    /// store's order and element type, and `tokens.npy` `[contexts, T]`, unless
    /// the store was imported without tokens.
    Npy,
    /// SAELens' cached activations: a Hugging Face `datasets` folder with the columns HOOK `[T, d]` and `token_ids`
    /// `[T]` (without the latter if the store was imported without tokens). As in SAELens' own shuffled caches, the T rows of a record are not those of one context but any T
    /// rows, each with its own token. Rows that do not fill the last record are left out.
    SaeLens,
}

/// What [`export`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSummary {
    /// The folder.
    pub path: PathBuf,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows written.
    pub rows: u64,
    /// Rows left out because they did not fill a record.
    pub rows_left_out: u64,
}

/// About how many bytes a file of rows has.
const FILE_BYTES: u64 = 500_000_000;

/// Writes all rows of `store` to the new folder `out`; `progress` is called with the rows written so far.
///
/// # Errors
/// An existing `out`, damage in the store, too few rows for one record, and errors of the operating system. The folder
/// gets its name once everything is in it.
pub fn export(
    store: &Store,
    format: ExportFormat,
    out: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<ExportSummary> {
    let mut rows = 0;
    durable_files::create_folder(out, |folder| {
        rows = match format {
            ExportFormat::Npy => npy::write(store, folder, FILE_BYTES, progress)?,
            ExportFormat::SaeLens => sae_lens::write(store, folder, FILE_BYTES, progress)?,
        };
        Ok::<(), StoreError>(())
    })?;
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(out).map_err(StoreError::io("read", out))? {
        let length = entry.and_then(|entry| entry.metadata()).map_err(StoreError::io("read", out))?.len();
        files += 1;
        bytes += length;
    }
    Ok(ExportSummary { path: out.to_path_buf(), files, bytes, rows, rows_left_out: store.rows() - rows })
}
