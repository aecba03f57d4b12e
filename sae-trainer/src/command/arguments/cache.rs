//! Flags that say where what is fetched from buckets is kept.

use std::path::{Path, PathBuf};

use activation_store::{CacheOptions, Store, StoreError};
use anyhow::{Result, bail};
use clap::Args;
use human_units::parse_bytes;
use terminal::foreign_path;

#[derive(Debug, Clone, Default, PartialEq, Args)]
pub(crate) struct CacheArguments {
    /// Folder on this machine for what is fetched of stores in buckets (--store s3://BUCKET/FOLDER, gs:// or az://). What is in
    /// it is not fetched again
    #[arg(long, value_name = "FOLDER")]
    pub(crate) cache: Option<PathBuf>,
    /// The most space that --cache takes: chunks that were read make room for others [default: as much as the stores]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, requires = "cache")]
    pub(crate) cache_size: Option<u64>,
}

impl CacheArguments {
    /// Opens a store, in a folder or in a bucket.
    pub(crate) fn open(&self, store: &Path) -> Result<Store> {
        let cache =
            self.cache.as_ref().map(|folder| CacheOptions { folder: folder.clone(), size: self.cache_size });
        let opened = match cache {
            Some(cache) => Store::open_with(store, Some(&cache)),
            None => Store::open(store),
        };
        match opened {
            Err(StoreError::InBucket(store)) => bail!(
                "{} is in a bucket: --cache names a folder on this machine for what is fetched, and --cache-size limits it",
                foreign_path(&store)
            ),
            opened => Ok(opened?),
        }
    }
}
