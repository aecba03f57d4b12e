//! What is in a store's folder before writing begins.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::journal::{self, Entry, JOURNAL};
use crate::lock::LOCK;
use crate::metadata::{Attributes, FORMAT_VERSION, ZARR_JSON};
use crate::statistics::RunningStatistics;
use crate::{Result, StoreError, StoreSpec, codec, paths};

/// The attributes of the store in `dir`; `None` if the folder is absent or holds no file.
pub(crate) fn existing_attributes(dir: &Path) -> Result<Option<Attributes>> {
    let path = dir.join(ZARR_JSON);
    match fs::read(&path) {
        Ok(text) => parse_attributes(dir, &text).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let entries = match fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(StoreError::io("read", dir)(error)),
            };
            for entry in entries {
                let name = entry.map_err(StoreError::io("read", dir))?.file_name();
                // A writer that was stopped before its first file had a name leaves these.
                if name != LOCK && name != "partial" {
                    return Err(StoreError::NotAStore(dir.to_path_buf()));
                }
            }
            Ok(None)
        }
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}

/// Reads the attributes out of the text of a store's `zarr.json`.
pub(crate) fn parse_attributes(dir: &Path, text: &[u8]) -> Result<Attributes> {
    let path = dir.join(ZARR_JSON);
    let group: serde_json::Value = serde_json::from_slice(text)
        .map_err(|error| StoreError::damaged(&path, format!("it is not JSON ({error})")))?;
    let attributes = &group["attributes"];
    if attributes["format"] != "activation-store" {
        return Err(StoreError::NotAStore(dir.to_path_buf()));
    }
    let version = attributes["format_version"].as_u64().unwrap_or(0);
    if version != FORMAT_VERSION {
        let dir = dir.to_path_buf();
        return Err(StoreError::Version { dir, found: version, supported: FORMAT_VERSION });
    }
    let attributes: Attributes = serde_json::from_value(attributes.clone())
        .map_err(|error| StoreError::damaged(&path, format!("its attributes are not a store's ({error})")))?;
    if group != attributes.group() {
        return Err(StoreError::damaged(&path, "it is not the metadata of a store's group"));
    }
    attributes
        .specification
        .validate()
        .map_err(|error| StoreError::damaged(&path, format!("its specification cannot be: {error}")))?;
    Ok(attributes)
}

/// Where an interrupted dump goes on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resumption {
    /// Bytes of the journal that stay; what follows is redone.
    pub(crate) journal_bytes: u64,
    /// Windows finished.
    pub(crate) windows: u64,
    /// Shards finished.
    pub(crate) shards: u64,
    /// Rows finished.
    pub(crate) rows: u64,
    /// Contexts finished.
    pub(crate) contexts: u64,
    /// Finished positions of the context after them.
    pub(crate) positions: usize,
    /// Values clipped.
    pub(crate) clipped: u64,
    /// Statistics of the finished rows.
    pub(crate) statistics: RunningStatistics,
    /// Bytes of the finished shards' activations.
    pub(crate) activation_bytes: u64,
    /// Bytes of the finished shards.
    pub(crate) shard_bytes: u64,
}

impl Resumption {
    fn beginning(spec: &StoreSpec) -> Self {
        Resumption {
            journal_bytes: 0,
            windows: 0,
            shards: 0,
            rows: 0,
            contexts: 0,
            positions: 0,
            clipped: 0,
            statistics: RunningStatistics::new(spec.width),
            activation_bytes: 0,
            shard_bytes: 0,
        }
    }

    /// Reads the journal up to its last whole window. Changes nothing on disk.
    pub(crate) fn read(dir: &Path, spec: &StoreSpec) -> Result<Self> {
        let path = dir.join(JOURNAL);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let mut safe = Resumption::beginning(spec);
        let mut now = safe.clone();
        let mut shard_files = Vec::new();
        let mut rest = &bytes[..];
        while let Some((entry, length)) = journal::parse_line::<Entry>(rest) {
            rest = &rest[length..];
            now.journal_bytes += length as u64;
            match entry {
                Entry::Shard { shard, activations, origin, .. } => {
                    shard_files.push((paths::activations(shard), activations.bytes));
                    shard_files.push((paths::origin(shard), origin.bytes));
                    now.shards += 1;
                    now.activation_bytes += activations.bytes;
                    now.shard_bytes += activations.bytes + origin.bytes;
                }
                Entry::Window { rows, contexts, positions, clipped, statistics, .. } => {
                    now.windows += 1;
                    now.rows = rows;
                    now.contexts = contexts;
                    now.positions = positions as usize;
                    now.clipped = clipped;
                    let damaged =
                        || StoreError::damaged(&path, "the statistics of a window are not a store's");
                    now.statistics =
                        RunningStatistics::from_hex(&statistics, spec.width).ok_or_else(damaged)?;
                    // A short window is the last one of a dump; only if no context can follow does it stand.
                    if rows % spec.layout.window_rows as u64 == 0 || contexts == spec.contexts {
                        safe = now.clone();
                    }
                }
            }
        }
        for (name, bytes) in &shard_files[..2 * safe.shards as usize] {
            let file = dir.join(name);
            let found = fs::metadata(&file).map_err(StoreError::io("find", &file))?.len();
            if found != *bytes {
                return Err(StoreError::damaged(
                    &file,
                    format!("it has {found} bytes, the journal records {bytes}"),
                ));
            }
        }
        Ok(safe)
    }

    /// The tokens of the finished contexts that share their chunk of `tokens` with contexts to come.
    pub(crate) fn tail_tokens(&self, dir: &Path, spec: &StoreSpec) -> Result<Vec<u32>> {
        let per_chunk = spec.token_chunk_contexts() as u64;
        if self.contexts.is_multiple_of(per_chunk) {
            return Ok(Vec::new());
        }
        let tokens = (self.contexts % per_chunk) as usize * spec.context_length;
        codec::read_token_chunk(dir, spec, self.contexts / per_chunk, 0..tokens)
    }
}
