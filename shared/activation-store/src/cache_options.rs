//! Where the chunks of stores in buckets are kept.

use std::path::PathBuf;

/// A folder for what is fetched from buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// The folder; it is made if it is not there. One process at a time uses it, for any number of stores.
    pub folder: PathBuf,
    /// The most bytes that it takes on disk; `None` keeps everything.
    pub size: Option<u64>,
}
