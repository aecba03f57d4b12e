//! Stores in buckets: of S3 and what speaks its protocol, of Google Cloud Storage, of Azure Blob Storage.
//!
//! - `client`: requests, repeated until they succeed or it is clear that they will not; `credentials`, `failure` and `retry` help it.
//! - `cached`: reads a store through a folder on this machine. `mirror` fetches its small files, `entry` keeps chunks in sparse
//!   files, `slots` decides which ones stay and which come next, and `fetch` brings them.
//! - `writer`: writes a store. `lease` says who may.

mod cache;
mod cached;
mod client;
mod credentials;
mod entry;
mod failure;
mod fetch;
mod files;
mod lease;
mod mirror;
mod retry;
mod slots;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;

use crate::Result;
use crate::address::Address;
pub(crate) use crate::cache_options::CacheOptions;
use crate::files::Files;
pub(crate) use cached::Cached;
use client::{Bucket, Purpose};
use files::BucketFiles;
pub(crate) use writer::open as open_writer;

/// The files of the store at the address `path`.
pub(crate) fn files(path: &Path) -> Result<Box<dyn Files>> {
    Ok(Box::new(BucketFiles::new(Bucket::connect(&Address::parse(path)?, Purpose::Read)?)))
}
