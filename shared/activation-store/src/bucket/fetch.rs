//! Brings one chunk of a shard from a bucket, checked.

use std::sync::Arc;

use super::client::Bucket;
use super::entry::Entry;
use crate::catalog::SmallFile;
use crate::codec::CHECKSUM;
use crate::{Result, StoreError, paths};

/// A chunk that comes damaged is asked for once more: what was damaged on its way comes whole the next time.
const TRIES: u32 = 2;

/// Fetches a chunk, checks it against its checksum, and writes it into its place in the cache.
///
/// # Errors
/// A request that fails for good, with the shard; a chunk that comes damaged every time; a disk that does not take it.
pub(super) async fn chunk(entry: Arc<Entry>, shard: usize, chunk: usize) -> Result<()> {
    let name = paths::activations(shard as u64);
    let range = entry.shards[shard].chunk(chunk).expect("a chunk with rows is in the index");
    let mut problem = String::new();
    for _ in 0..TRIES {
        let asked = entry.bucket.range(&name, range.clone()).await;
        let (content, size) = asked.map_err(entry.bucket.error("fetch", &name))?;
        if size != entry.bytes[shard] {
            let what = format!("it has {size} bytes and had {}", entry.bytes[shard]);
            return Err(StoreError::Changed { file: entry.bucket.path().join(&name), what });
        }
        match check(&content) {
            Ok(()) => {
                let write = move || entry.write(shard, chunk, &content);
                return tokio::task::spawn_blocking(write).await.map_err(died)?;
            }
            Err(what) => problem = what,
        }
    }
    let what = format!(
        "{problem}, in {TRIES} requests for bytes {}..{}; if another machine reads it, something changes it on the way here, else \
         put a sound copy there",
        range.start, range.end
    );
    Err(StoreError::DamagedChunk { file: entry.bucket.path().join(&name), chunk, what })
}

/// Checks the checksum that a chunk ends with.
fn check(content: &[u8]) -> std::result::Result<(), String> {
    let Some((front, checksum)) = content.split_last_chunk::<CHECKSUM>() else {
        return Err(format!("it has {} bytes, too few for a checksum", content.len()));
    };
    let (found, expected) = (crc32c::crc32c(front), u32::from_le_bytes(*checksum));
    match found == expected {
        true => Ok(()),
        false => Err(format!("its crc32c is {found:08x}, recorded is {expected:08x}")),
    }
}

/// The end of a shard, from byte `start` on, whose crc32c is recorded.
///
/// # Errors
/// As [`chunk`]; an object of another size.
pub(super) async fn tail(
    bucket: &Bucket,
    name: &str,
    start: u64,
    bytes: u64,
    crc32c: u32,
) -> Result<Vec<u8>> {
    let mut what = String::new();
    for _ in 0..TRIES {
        let (content, size) = bucket.range(name, start..bytes).await.map_err(bucket.error("fetch", name))?;
        if size != bytes {
            let what = format!("it has {size} bytes, the journal records {bytes}");
            return Err(StoreError::damaged(&bucket.path().join(name), what));
        }
        if crc32c::crc32c(&content) == crc32c {
            return Ok(content.into());
        }
        "its index is not the one that the journal records for this shard".clone_into(&mut what);
    }
    Err(StoreError::damaged(&bucket.path().join(name), what))
}

/// A whole file, which is what is recorded of it.
///
/// # Errors
/// As [`chunk`].
pub(super) async fn file(bucket: &Bucket, file: &SmallFile) -> Result<Vec<u8>> {
    let mut what = String::new();
    for _ in 0..TRIES {
        let (content, _) = bucket.get(&file.name).await.map_err(bucket.error("fetch", &file.name))?;
        match problem(file, &content) {
            None => return Ok(content.into()),
            Some(found) => what = found,
        }
    }
    Err(StoreError::damaged(&bucket.path().join(&file.name), what))
}

/// What is wrong with the content of a file.
pub(super) fn problem(file: &SmallFile, content: &[u8]) -> Option<String> {
    if content.len() as u64 != file.bytes {
        return Some(format!("it has {} bytes, recorded are {}", content.len(), file.bytes));
    }
    let found = crc32c::crc32c(content);
    if found != file.crc32c {
        return Some(format!("its crc32c is {found:08x}, recorded is {:08x}", file.crc32c));
    }
    let (length, recorded) = file.tail?;
    let tail = &content[content.len().saturating_sub(length)..];
    (crc32c::crc32c(tail) != recorded).then(|| crate::journal::ANOTHER_CHUNK.to_owned())
}

fn died(error: tokio::task::JoinError) -> StoreError {
    StoreError::Died(workers::Died { worker: "fetching of a chunk".to_owned(), reason: error.to_string() })
}
