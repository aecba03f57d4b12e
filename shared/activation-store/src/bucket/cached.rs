//! A store in a bucket, read through a cache.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use rayon::prelude::*;

use super::cache::Cache;
use super::client::{Bucket, Purpose, runtime};
use super::entry::{self, Entry};
use super::fetch;
use super::mirror::{self, write_file};
use super::slots::Key;
use crate::address::Address;
use crate::catalog::{Catalog, SmallFile};
use crate::codec::{CHECKSUM, ShardIndex};
use crate::shard::{Decoder, Shard};
use crate::{CacheOptions, Result, StoreError, paths};

/// Objects that are fetched at a time.
const AT_ONCE: usize = 64;

/// A store whose chunks are fetched when they are needed, or before.
#[derive(Debug)]
pub(crate) struct Cached {
    cache: Arc<Cache>,
    entry: Arc<Entry>,
    /// Its number in the cache.
    store: u32,
    /// Names of files in the cache that are sound, as far as this process knows.
    sound: Mutex<Vec<String>>,
}

impl Cached {
    /// Opens the store at `path`: copies its small files, and gets the size and the index of every shard, unless they are in the
    /// cache already.
    pub(crate) fn open(path: &Path, options: &CacheOptions) -> Result<(Catalog, Cached)> {
        let bucket = Bucket::connect(&Address::parse(path)?, Purpose::Read)?;
        Cached::over(&bucket, options)
    }

    /// The same of a bucket that there is a client for.
    pub(super) fn over(bucket: &Bucket, options: &CacheOptions) -> Result<(Catalog, Cached)> {
        let cache = Cache::open(options)?;
        let (dir, catalog) = mirror::copy(bucket, &cache.folder)?;
        let (store, entry) = match cache.known(&dir) {
            Some(known) => known,
            None => {
                cache.reclaim(&dir);
                let shards = shards(bucket, &dir, &catalog)?;
                let chunks = catalog.activation_bytes();
                let fixed = catalog.stored_bytes() - chunks;
                let per_shard = catalog.attributes.specification.layout.chunks_per_shard();
                let (entry, here) = Entry::open(&dir, bucket, &catalog, shards)?;
                let all =
                    (0..entry.shards.len()).flat_map(|shard| (0..per_shard).map(move |chunk| (shard, chunk)));
                let largest = all.map(|(shard, chunk)| entry.chunk_bytes(shard, chunk)).max().unwrap_or(0);
                cache.add(entry, &here, [fixed, chunks, largest])?
            }
        };
        Ok((catalog, Cached { cache, entry, store, sound: Mutex::default() }))
    }

    /// Its address.
    pub(crate) fn address(&self) -> &Path {
        self.entry.bucket.path()
    }

    fn key(&self, shard: usize, chunk: usize) -> Key {
        Key { store: self.store, shard: shard as u32, chunk: chunk as u32 }
    }

    /// Decodes a chunk that has rows into `planes`, fetching it before where it is not here or was damaged here.
    pub(crate) fn decode_chunk(
        &self,
        shard: usize,
        chunk: usize,
        decoder: &mut Decoder,
        planes: &mut [u8],
    ) -> Result<()> {
        let key = self.key(shard, chunk);
        let _claimed = self.cache.claim(key, &self.entry)?;
        match self.entry.shards[shard].decode_chunk(chunk, decoder, planes) {
            Err(StoreError::DamagedChunk { .. }) => {
                self.cache.fetch_again(key, &self.entry)?;
                self.entry.shards[shard].decode_chunk(chunk, decoder, planes)
            }
            decoded => decoded,
        }
    }

    /// Has the chunks (shard, number in it) fetched in this order; `reader` is who reads them.
    pub(crate) fn fetch_ahead(&self, reader: u64, chunks: &[(usize, usize)]) {
        let bytes = |shard, chunk| self.entry.chunk_bytes(shard, chunk);
        let chunks = chunks.iter().map(|&(shard, chunk)| (self.key(shard, chunk), bytes(shard, chunk)));
        self.cache.want(reader, chunks);
    }

    /// Takes back what `reader` asked for and was not fetched yet.
    pub(crate) fn stop_fetching(&self, reader: u64) {
        self.cache.forget(reader);
    }

    /// The store's folder in the cache, once it holds `files`.
    pub(crate) fn folder_with(&self, files: &[SmallFile]) -> Result<&Path> {
        let dir = &self.entry.dir;
        let missing: Vec<&SmallFile> = {
            let sound = self.sound.lock().unwrap_or_else(PoisonError::into_inner);
            files.iter().filter(|file| sound.binary_search(&file.name).is_err()).collect()
        };
        if missing.is_empty() {
            return Ok(dir);
        }
        let is_here = |file: &&&SmallFile| match fs::read(dir.join(&file.name)) {
            Ok(content) => fetch::problem(file, &content).is_none(),
            Err(_) => false,
        };
        let here: Vec<bool> = missing.par_iter().map(|file| is_here(&file)).collect();
        let wanted = missing.iter().zip(here).filter(|(_, here)| !here).map(|(file, _)| *file);
        let bucket = &self.entry.bucket;
        let fetched = stream::iter(wanted).map(|file| async move {
            let content = fetch::file(bucket, file).await?;
            let path = dir.join(&file.name);
            write_file(&path, &content).map_err(StoreError::io("write", &path))
        });
        runtime()?.block_on(fetched.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>())?;
        let mut sound = self.sound.lock().unwrap_or_else(PoisonError::into_inner);
        sound.extend(missing.into_iter().map(|file| file.name.clone()));
        sound.sort_unstable();
        sound.dedup();
        Ok(dir)
    }
}

/// The shards in `dir`: files of full size whose ends are there.
fn shards(bucket: &Bucket, dir: &Path, catalog: &Catalog) -> Result<Vec<Shard>> {
    let spec = &catalog.attributes.specification;
    let open = |number: usize| {
        let record = &catalog.shards[number];
        Shard::open(dir, &paths::activations(number as u64), &record.activations, spec, record.rows)
    };
    let all = 0..catalog.shards.len();
    let opened: Vec<Option<Shard>> = all.clone().into_par_iter().map(|number| open(number).ok()).collect();
    let missing: Vec<usize> = all.filter(|number| opened[*number].is_none()).collect();
    if !missing.is_empty() {
        let is_new = |number: &usize| {
            let bytes = catalog.shards[*number].activations.bytes;
            !fs::metadata(dir.join(paths::activations(*number as u64)))
                .is_ok_and(|found| found.len() == bytes)
        };
        if missing.iter().any(is_new) {
            // Marks of a file that is gone say nothing; which file they are of is not worth knowing.
            entry::forget_all(dir)?;
        }
        fs::create_dir_all(dir.join(".cache")).map_err(StoreError::io("create", dir))?;
        let length = ShardIndex::encoded_len(spec.layout.chunks_per_shard()) + CHECKSUM;
        let fetched = stream::iter(&missing).map(|&number| async move {
            let (name, file) = (paths::activations(number as u64), catalog.shards[number].activations);
            let path = bucket.path().join(&name);
            let start = file.bytes.checked_sub(length as u64);
            let start = start.ok_or_else(|| StoreError::damaged(&path, "it is too short for its index"))?;
            let tail = fetch::tail(bucket, &name, start, file.bytes, file.tail_crc32c).await?;
            put_end(&dir.join(&name), file.bytes, start, &tail)
        });
        runtime()?.block_on(fetched.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>())?;
    }
    let shard = |(number, opened): (usize, Option<Shard>)| opened.map_or_else(|| open(number), Ok);
    opened.into_iter().enumerate().map(|shard_opened| Ok(shard(shard_opened)?.being_filled())).collect()
}

/// Makes the file of a shard, if need be, and writes its end.
fn put_end(path: &Path, bytes: u64, start: u64, tail: &[u8]) -> Result<()> {
    let put = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() != bytes {
            file.set_len(0)?;
            file.set_len(bytes)?;
        }
        file.write_all_at(tail, start)
    };
    put().map_err(StoreError::io("write", path))
}
