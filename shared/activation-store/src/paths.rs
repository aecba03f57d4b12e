//! Names of a store's files, relative to its folder.

use std::fs;
use std::path::{Path, PathBuf};

use crate::metadata::ZARR_JSON;
use crate::{Result, StoreError};

/// Name of the journal in a store.
pub(crate) const JOURNAL: &str = "journal";
/// Name of the manifest in a store.
pub(crate) const MANIFEST: &str = "manifest";

/// The small files that every finished store has, in the manifest's order.
pub(crate) const SMALL_FILES: [&str; 14] = [
    "activations/zarr.json",
    "origin/zarr.json",
    "tokens/zarr.json",
    "stats/zarr.json",
    "stats/mean/zarr.json",
    "stats/mean/c/0",
    "stats/variance/zarr.json",
    "stats/variance/c/0",
    "stats/mean_norm/zarr.json",
    "stats/mean_norm/c",
    "stats/rows/zarr.json",
    "stats/rows/c",
    JOURNAL,
    ZARR_JSON,
];

/// A shard of the `activations` array.
pub(crate) fn activations(shard: u64) -> String {
    format!("activations/c/{shard}/0")
}

/// A shard of the `origin` array.
pub(crate) fn origin(shard: u64) -> String {
    format!("origin/c/{shard}")
}

/// A chunk of the `tokens` array.
pub(crate) fn tokens(chunk: u64) -> String {
    format!("tokens/c/{chunk}/0")
}

/// Checks the size of the file `name` without reading it.
pub(crate) fn check_size(dir: &Path, name: &str, recorded: u64) -> Result<PathBuf> {
    let path = dir.join(name);
    let found = fs::metadata(&path).map_err(StoreError::io("find", &path))?.len();
    if found != recorded {
        return Err(StoreError::damaged(
            &path,
            format!("it has {found} bytes, the journal records {recorded}"),
        ));
    }
    Ok(path)
}

/// What a file of a store is, by its name.
#[cfg(feature = "bucket")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of rows or their origins, with its number.
    Shard(u64),
    /// A chunk of tokens, with its number.
    Tokens(u64),
    /// Metadata, statistics, journal, manifest.
    Small,
    /// None of a store.
    Foreign,
}

/// What the file `name` is.
#[cfg(feature = "bucket")]
pub(crate) fn kind(name: &str) -> Kind {
    let number = |text: &str| text.parse().ok();
    let found = match name.split('/').collect::<Vec<_>>()[..] {
        ["activations", "c", shard, "0"] => number(shard).map(Kind::Shard),
        ["origin", "c", shard] => number(shard).map(Kind::Shard),
        ["tokens", "c", chunk, "0"] => number(chunk).map(Kind::Tokens),
        _ => (name == MANIFEST || SMALL_FILES.contains(&name)).then_some(Kind::Small),
    };
    found.unwrap_or(Kind::Foreign)
}

/// Whether a file of a store has this name, with dots for slashes, until it is whole.
pub(crate) fn is_a_temporary_name(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match name.split('.').collect::<Vec<_>>()[..] {
        ["activations" | "tokens", "c", number, "0"] | ["origin", "c", number] => is_number(number),
        _ => name == MANIFEST || SMALL_FILES.iter().any(|file| file.replace('/', ".") == name),
    }
}
