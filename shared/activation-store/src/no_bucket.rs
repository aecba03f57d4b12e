//! In place of `bucket` where a build has none: every store in a bucket is an error that says so.

use std::path::Path;

use crate::address::Address;
pub(crate) use crate::cache_options::CacheOptions;
use crate::catalog::{Catalog, SmallFile};
use crate::disk::DiskHook;
use crate::files::Files;
use crate::shard::Decoder;
use crate::target::Opened;
use crate::{Result, StoreError, StoreSpec};

pub(crate) fn files(path: &Path) -> Result<Box<dyn Files>> {
    Err(refusal(path))
}

fn refusal(path: &Path) -> StoreError {
    Address::parse(path).map_or_else(|wrong| wrong, |address| StoreError::NoBuckets(address.path()))
}

pub(crate) fn open_writer(path: &Path, _: &StoreSpec, _: &[u8], _: Option<DiskHook>) -> Result<Opened> {
    Err(refusal(path))
}

/// There is none.
#[derive(Debug)]
pub(crate) enum Cached {}

impl Cached {
    pub(crate) fn open(path: &Path, _: &CacheOptions) -> Result<(Catalog, Cached)> {
        Err(refusal(path))
    }

    pub(crate) fn address(&self) -> &Path {
        match *self {}
    }

    pub(crate) fn decode_chunk(&self, _: usize, _: usize, _: &mut Decoder, _: &mut [u8]) -> Result<()> {
        match *self {}
    }

    pub(crate) fn fetch_ahead(&self, _: u64, _: &[(usize, usize)]) {
        match *self {}
    }

    pub(crate) fn stop_fetching(&self, _: u64) {
        match *self {}
    }

    pub(crate) fn folder_with(&self, _: &[SmallFile]) -> Result<&Path> {
        match *self {}
    }
}
