//! Writes a store into a bucket.
//!
//! An object appears whole or not at all, and is created once. Shards go up side by side; a line of the journal, an object of its
//! own, follows when everything before it is there. Its name is its number, so two writers cannot both have one: the second finds it
//! taken, and unless it is the very same line, stops.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::PutPayload;
use tokio::task::JoinHandle;

use super::client::{Bucket, Purpose, Version, runtime};
use super::failure::{Failure, Kind};
use super::files::{BucketFiles, line_name, line_number};
use super::lease::Lease;
use crate::address::Address;
use crate::disk::{DiskHook, DiskStep, Written};
use crate::files::Files;
use crate::lock::LOCK;
use crate::metadata::{Attributes, ZARR_JSON};
use crate::paths::{self, JOURNAL};
use crate::resumption::{self, Look, Resumption};
use crate::target::{Begun, Opened, Target};
use crate::{Result, StoreError, StoreSpec};

/// Objects on their way at a time: four shards with their origins.
const UPLOADS: usize = 8;
/// Objects that are deleted at a time.
const DELETIONS: usize = 16;

/// Opens the store at `path` for writing; `beginning` is the metadata of a new one.
///
/// # Errors
/// As of `StoreWriter::open`.
pub(crate) fn open(
    path: &Path,
    spec: &StoreSpec,
    beginning: &[u8],
    hook: Option<DiskHook>,
) -> Result<Opened> {
    open_in(&Bucket::connect(&Address::parse(path)?, Purpose::Write)?, spec, beginning, hook)
}

/// The same in a bucket that there is a client for.
pub(super) fn open_in(
    bucket: &Bucket,
    spec: &StoreSpec,
    beginning: &[u8],
    hook: Option<DiskHook>,
) -> Result<Opened> {
    // Before anything is written there.
    matching(&BucketFiles::new(bucket.clone()), spec)?;
    let lease = Arc::new(Lease::acquire(bucket)?);
    // Read again: until the lease was ours, another process may have written here.
    let files = BucketFiles::new(bucket.clone());
    let existing = matching(&files, spec)?;
    let mut target = BucketTarget {
        bucket: bucket.clone(),
        lease: lease.clone(),
        hook,
        uploads: VecDeque::new(),
        lines: Vec::new(),
        versions: BTreeMap::new(),
    };
    match existing {
        Some(attributes) if attributes.complete => {
            target.conclude()?;
            return Ok(Opened { hold: Box::new(lease), begun: Begun::Complete(Box::new(attributes)) });
        }
        Some(_) => {}
        None => drop(target.publish(ZARR_JSON, beginning)?),
    }
    let resumption = Resumption::read(&files, spec, Look::End)?;
    let tokens = resumption.tail_tokens(&files, spec)?;
    let journal = files.journal().map_err(StoreError::io("read", &bucket.path().join(JOURNAL)))?;
    let kept = &journal[..resumption.journal_bytes as usize];
    target.lines = kept.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    let listed = files.listed().map_err(StoreError::io("list", bucket.path()))?;
    let superfluous = listed.keys().filter(|name| !stays(name, target.lines.len() as u64, &resumption, spec));
    target.delete(superfluous.cloned().collect())?;
    let begun = Begun::Unfinished { resumption: Box::new(resumption), tokens, target: Box::new(target) };
    Ok(Opened { hold: Box::new(lease), begun })
}

/// The attributes of the store in `files`, if there is one and it is of this dump.
fn matching(files: &BucketFiles, spec: &StoreSpec) -> Result<Option<Attributes>> {
    let listed = files.listed().map_err(StoreError::io("list", files.place()))?;
    if !listed.contains_key(ZARR_JSON) {
        return match listed.keys().any(|name| name != LOCK) {
            true => Err(StoreError::NotAStore(files.place().to_path_buf())),
            false => Ok(None),
        };
    }
    let attributes = crate::catalog::read_attributes(files)?;
    let holds_nothing = || listed.keys().all(|name| name == ZARR_JSON || name == LOCK);
    resumption::of_this_dump(attributes, spec, files.place(), || Ok(holds_nothing()))
}

/// Whether an object of an unfinished store is kept: what its journal vouches for up to where it is resumed, and what is not a
/// store's. The rest is written again, and other bytes must not be in the way.
fn stays(name: &str, lines: u64, resumption: &Resumption, spec: &StoreSpec) -> bool {
    if name == ZARR_JSON || name == LOCK {
        return true;
    }
    if let Some(line) = line_number(name) {
        return line < lines;
    }
    let contexts = resumption.contexts + u64::from(resumption.positions > 0);
    match paths::kind(name) {
        paths::Kind::Shard(shard) => shard < resumption.shards,
        paths::Kind::Tokens(chunk) => chunk < contexts.div_ceil(spec.token_chunk_contexts() as u64),
        paths::Kind::Small => false,
        paths::Kind::Foreign => true,
    }
}

/// A store in a bucket that is being written.
#[derive(Debug)]
struct BucketTarget {
    bucket: Bucket,
    lease: Arc<Lease>,
    hook: Option<DiskHook>,
    /// What is on its way, in order, and the lines that wait for it.
    uploads: VecDeque<Upload>,
    /// All lines of the journal.
    lines: Vec<Vec<u8>>,
    /// Of the objects that are written more than once, as they were written last.
    versions: BTreeMap<String, Version>,
}

#[derive(Debug)]
enum Upload {
    Object { name: String, put: JoinHandle<std::result::Result<(), Failure>> },
    Line { number: u64 },
}

impl BucketTarget {
    fn path(&self, name: &str) -> PathBuf {
        self.bucket.path().join(name)
    }

    fn before(&self, step: DiskStep, name: &str) -> Result<()> {
        let called = self.hook.as_ref().map_or(Ok(()), |hook| hook.0(step, &self.path(name)));
        called.map_err(StoreError::io("write", &self.path(name)))
    }

    /// Waits until at most `left` objects are on their way, and writes the lines whose turn has come.
    fn settle(&mut self, left: usize) -> Result<()> {
        loop {
            let objects =
                self.uploads.iter().filter(|upload| matches!(upload, Upload::Object { .. })).count();
            let is_next = match self.uploads.front() {
                None => return Ok(()),
                Some(Upload::Line { .. }) => true,
                Some(Upload::Object { put, .. }) => put.is_finished(),
            };
            if !is_next && objects <= left {
                return Ok(());
            }
            let done = match self.uploads.pop_front() {
                Some(Upload::Object { name, put }) => self.finish_object(&name, put),
                Some(Upload::Line { number }) => self.write_line(number),
                None => return Ok(()),
            };
            if done.is_err() {
                // No line may follow what is missing.
                self.give_up();
                return done;
            }
        }
    }

    fn give_up(&mut self) {
        for upload in self.uploads.drain(..) {
            if let Upload::Object { put, .. } = upload {
                put.abort();
            }
        }
    }

    fn finish_object(&self, name: &str, put: JoinHandle<std::result::Result<(), Failure>>) -> Result<()> {
        match runtime()?.block_on(put) {
            Ok(done) => done.map_err(|failure| self.failed(name, failure)),
            Err(died) => Err(StoreError::Died(workers::Died {
                worker: "writing of an object".to_owned(),
                reason: died.to_string(),
            })),
        }
    }

    /// Puts an object in place of the version that this writer knows, so that nobody else's is lost.
    fn replace(&mut self, name: &str, content: &PutPayload) -> Result<()> {
        let runtime = runtime()?;
        let old = match self.versions.get(name) {
            Some(version) => Some(version.clone()),
            None => runtime.block_on(self.bucket.version(name)).map_err(self.bucket.error("find", name))?,
        };
        let put = runtime.block_on(self.bucket.put(name, content, old.as_ref()));
        let version = put.map_err(|failure| self.failed(name, failure))?;
        self.versions.insert(name.to_owned(), version);
        Ok(())
    }

    fn write_line(&mut self, number: u64) -> Result<()> {
        let name = line_name(number);
        self.before(DiskStep::Append, &name)?;
        let content = PutPayload::from(self.lines[number as usize].clone());
        let runtime = runtime()?;
        runtime.block_on(self.lease.check())?;
        runtime
            .block_on(self.bucket.put(&name, &content, None))
            .map_err(|failure| self.failed(&name, failure))?;
        self.before(DiskStep::SyncJournal, &name)
    }

    /// The error of an object that could not be written.
    fn failed(&self, name: &str, failure: Failure) -> StoreError {
        if failure.kind != Kind::Exists {
            return self.bucket.error("write", name)(failure);
        }
        match runtime() {
            Ok(runtime) => {
                StoreError::OtherBytes { object: self.path(name), who: runtime.block_on(self.lease.who()) }
            }
            Err(error) => error,
        }
    }

    fn delete(&self, names: Vec<String>) -> Result<()> {
        // The last first: what is left of the journal is always its beginning.
        let (mut lines, others): (Vec<String>, Vec<String>) =
            names.into_iter().partition(|name| line_number(name).is_some());
        lines.sort_unstable_by(|a, b| b.cmp(a));
        let runtime = runtime()?;
        for line in lines {
            runtime.block_on(self.bucket.delete(&line)).map_err(self.bucket.error("delete", &line))?;
        }
        let deleted = stream::iter(others).map(|name| async move {
            self.bucket.delete(&name).await.map_err(self.bucket.error("delete", &name))
        });
        runtime.block_on(deleted.buffer_unordered(DELETIONS).try_collect())
    }
}

impl Target for BucketTarget {
    /// Returns before the object is there. One that may change is replaced only if it is the version that was there.
    fn publish_parts(&mut self, name: &str, parts: &[(&[u8], u32)]) -> Result<Written> {
        self.settle(UPLOADS - 1)?;
        self.before(DiskStep::Write, name)?;
        let content: PutPayload = parts.iter().map(|(part, _)| Bytes::copy_from_slice(part)).collect();
        if may_change(name) {
            self.replace(name, &content)?;
        } else {
            let (bucket, object) = (self.bucket.clone(), name.to_owned());
            let put = runtime()?.spawn(async move { bucket.put(&object, &content, None).await.map(drop) });
            self.uploads.push_back(Upload::Object { name: name.to_owned(), put });
        }
        Ok(Written::of(parts))
    }

    fn append(&mut self, line: &[u8]) -> Result<()> {
        self.uploads.push_back(Upload::Line { number: self.lines.len() as u64 });
        self.lines.push(line.to_vec());
        self.settle(UPLOADS)
    }

    fn flush(&mut self) -> Result<()> {
        self.settle(0)
    }

    fn journal(&mut self) -> Result<Vec<u8>> {
        self.settle(0)?;
        Ok(self.lines.concat())
    }

    fn add_journal(&mut self, content: &[u8]) -> Result<()> {
        self.publish_parts(JOURNAL, &[(content, crc32c::crc32c(content))]).map(drop)
    }

    /// Deletes the lines of the journal, which are in one object by now.
    fn conclude(&mut self) -> Result<()> {
        self.settle(0)?;
        let files = BucketFiles::new(self.bucket.clone());
        let listed = files.listed().map_err(StoreError::io("list", self.bucket.path()))?;
        self.delete(listed.keys().filter(|name| line_number(name).is_some()).cloned().collect())
    }
}

/// Whether an object is written more than once: a chunk of tokens until it is full, and the group's metadata.
fn may_change(name: &str) -> bool {
    name == ZARR_JSON || matches!(paths::kind(name), paths::Kind::Tokens(_))
}

impl Drop for BucketTarget {
    fn drop(&mut self) {
        self.give_up();
    }
}
