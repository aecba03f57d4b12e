//! The files of one store in a cache: sparse shards of full size, and which of their chunks are here.
//!
//! `.cache/present` has a byte for each chunk of each shard, 1 if the chunk is here. It is set after the chunk is written and cleared
//! before it is taken away, so whenever a process ends, what is marked is whole. (After a power failure it need not be. Then its
//! checksum tells, as for any damage, and it is fetched again.)

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::client::Bucket;
use crate::catalog::Catalog;
use crate::shard::Shard;
use crate::{Result, StoreError};

/// Which chunks are here, in the folder of a store.
pub(super) const PRESENT: &str = ".cache/present";
/// Bytes in which a file system gives space away, at most.
const BLOCK: u64 = 64 << 10;

/// A chunk that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Here {
    pub(super) shard: usize,
    /// Its number in the shard.
    pub(super) chunk: usize,
    pub(super) bytes: u64,
}

/// A store in a cache.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dir: PathBuf,
    pub(super) bucket: Bucket,
    pub(super) shards: Vec<Shard>,
    /// Bytes that each object has.
    pub(super) bytes: Vec<u64>,
    chunks_per_shard: usize,
    present: File,
}

impl Entry {
    /// The entry in `dir`, whose `shards` have their size and index, and the chunks that are here.
    pub(super) fn open(
        dir: &Path,
        bucket: &Bucket,
        catalog: &Catalog,
        shards: Vec<Shard>,
    ) -> Result<(Entry, Vec<Here>)> {
        let chunks_per_shard = catalog.attributes.specification.layout.chunks_per_shard();
        let path = dir.join(PRESENT);
        let present = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let present = present.map_err(StoreError::io("open", &path))?;
        let mut marks = vec![0; shards.len() * chunks_per_shard];
        let is_whole = present.metadata().is_ok_and(|found| found.len() == marks.len() as u64);
        let read = match is_whole {
            true => present.read_exact_at(&mut marks, 0),
            false => present.set_len(0).and_then(|()| present.set_len(marks.len() as u64)),
        };
        read.map_err(StoreError::io("read", &path))?;
        let bytes = catalog.shards.iter().map(|shard| shard.activations.bytes).collect();
        let entry = Entry {
            dir: dir.to_path_buf(),
            bucket: bucket.clone(),
            shards,
            bytes,
            chunks_per_shard,
            present,
        };
        let mut here = Vec::new();
        for (number, shard) in entry.shards.iter().enumerate() {
            let marks = &marks[number * chunks_per_shard..][..chunks_per_shard];
            let found = (0..chunks_per_shard).filter(|chunk| marks[*chunk] == 1);
            let found = found
                .filter_map(|chunk| Some(Here { shard: number, chunk, bytes: length(&shard.chunk(chunk)?) }));
            let before = here.len();
            here.extend(found);
            entry.free_remains(number, &here[before..])?;
        }
        Ok((entry, here))
    }

    /// Frees what a process that was ended left in a shard's file: chunks that are not marked.
    fn free_remains(&self, shard: usize, here: &[Here]) -> Result<()> {
        let path = self.shards[shard].path();
        let on_disk = fs::metadata(path).map_err(StoreError::io("find", path))?.blocks() * 512;
        let expected: u64 = here.iter().map(|chunk| chunk.bytes + 2 * BLOCK).sum();
        if on_disk <= expected + 2 * BLOCK {
            return Ok(());
        }
        let file = File::options().write(true).open(path).map_err(StoreError::io("open", path))?;
        let is_here = |chunk| here.iter().any(|other| other.chunk == chunk);
        for chunk in (0..self.chunks_per_shard).filter(|chunk| !is_here(*chunk)) {
            if let Some(range) = self.shards[shard].chunk(chunk) {
                // Where that cannot be done, nothing is ever evicted, and the remains are chunks to come.
                let _ = punch(&file, &range);
            }
        }
        Ok(())
    }

    /// Bytes of a chunk that has rows.
    pub(super) fn chunk_bytes(&self, shard: usize, chunk: usize) -> u64 {
        self.shards[shard].chunk(chunk).map_or(0, |range| length(&range))
    }

    /// Puts a chunk into its place, and marks it.
    pub(super) fn write(&self, shard: usize, chunk: usize, content: &[u8]) -> Result<()> {
        let path = self.shards[shard].path();
        let range = self.shards[shard].chunk(chunk).expect("a chunk with rows is in the index");
        let written =
            File::options().write(true).open(path).and_then(|file| file.write_all_at(content, range.start));
        written.map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                let what = "its file system is full: free some space, or limit the cache to what is there"
                    .to_owned();
                StoreError::Cache { dir: self.dir.clone(), what }
            }
            _ => StoreError::io("write", path)(error),
        })?;
        self.mark(shard, chunk, true)
    }

    /// Takes a chunk away, and its space.
    pub(super) fn free(&self, shard: usize, chunk: usize) -> Result<()> {
        self.mark(shard, chunk, false)?;
        let path = self.shards[shard].path();
        let Some(range) = self.shards[shard].chunk(chunk) else { return Ok(()) };
        let freed = File::options().write(true).open(path).and_then(|file| punch(&file, &range));
        freed.map_err(StoreError::io("free space in", path))
    }

    fn mark(&self, shard: usize, chunk: usize, is_here: bool) -> Result<()> {
        let at = (shard * self.chunks_per_shard + chunk) as u64;
        let marked = self.present.write_all_at(&[u8::from(is_here)], at);
        marked.map_err(StoreError::io("write", &self.dir.join(PRESENT)))
    }
}

/// Forgets which chunks of the entry in `dir` are here.
pub(super) fn forget_all(dir: &Path) -> Result<()> {
    let path = dir.join(PRESENT);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io("remove", &path)(error)),
        _ => Ok(()),
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// Gives the space of `range` back to the file system; it then reads as zeros.
#[cfg(target_os = "linux")]
pub(super) fn punch(file: &File, range: &Range<u64>) -> io::Result<()> {
    let wrong = |_| io::Error::from(ErrorKind::InvalidInput);
    let (start, length) =
        (i64::try_from(range.start).map_err(wrong)?, i64::try_from(length(range)).map_err(wrong)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is that of an open file, and the call takes plain numbers.
    match unsafe { libc::fallocate64(file.as_raw_fd(), mode, start, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn punch(_: &File, _: &Range<u64>) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}
