//! Writes a store into a folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::disk::{Disk, DiskHook, Written};
use crate::files::Folder;
use crate::lock::Lock;
use crate::metadata::{Attributes, ZARR_JSON};
use crate::paths::JOURNAL;
use crate::resumption::{self, Look, Resumption};
use crate::target::{Begun, Opened, Target};
use crate::{Result, StoreError, StoreSpec};

/// Opens the store in `dir` for writing; `beginning` is the metadata of a new one. `check_space` is given the bytes that are
/// there already.
pub(super) fn open(
    dir: &Path,
    spec: &StoreSpec,
    beginning: &[u8],
    check_space: Option<&dyn Fn(u64) -> Result<()>>,
    hook: Option<DiskHook>,
) -> Result<Opened> {
    let files = Folder::new(dir);
    let existing = matching_attributes(dir, spec)?;
    let complete = existing.as_ref().is_some_and(|attributes| attributes.complete);
    if let Some(check_space) = check_space.filter(|_| !complete) {
        check_space(Resumption::read(&files, spec, Look::Sizes)?.shard_bytes)?;
    }
    fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
    let hold = Box::new(Lock::acquire(dir)?);
    // Read again: until the lock was ours, another process may have written here.
    let existing = matching_attributes(dir, spec)?;
    let disk = Disk::new(dir, existing.is_some(), hook)?;
    match existing {
        None => disk.publish(ZARR_JSON, beginning).map(drop)?,
        Some(attributes) if attributes.complete => {
            return Ok(Opened { hold, begun: Begun::Complete(Box::new(attributes)) });
        }
        // Nothing vouches for its command line, the one thing that may differ: the store notes the one that ends it.
        Some(_) => {}
    }
    let resumption = Box::new(Resumption::read(&files, spec, Look::Bytes)?);
    let journal_path = dir.join(JOURNAL);
    let journal = open_journal(&journal_path, resumption.journal_bytes)?;
    let tokens = resumption.tail_tokens(&files, spec)?;
    let target = Box::new(FolderTarget { disk, journal, journal_path });
    Ok(Opened { hold, begun: Begun::Unfinished { resumption, tokens, target } })
}

/// The attributes of the store in `dir`, if there is one and it is of this dump. One of another dump that was stopped before
/// it stored anything is none.
fn matching_attributes(dir: &Path, spec: &StoreSpec) -> Result<Option<Attributes>> {
    match resumption::existing_attributes(dir)? {
        None => Ok(None),
        Some(attributes) => {
            resumption::of_this_dump(attributes, spec, dir, || resumption::holds_nothing(dir))
        }
    }
}

/// Opens the journal of the store for appending, cut to its safe part.
fn open_journal(path: &Path, bytes: u64) -> Result<File> {
    let journal =
        File::options().create(true).append(true).open(path).map_err(StoreError::io("open", path))?;
    journal.set_len(bytes).and_then(|()| journal.sync_all()).map_err(StoreError::io("shorten", path))?;
    Ok(journal)
}

/// A store in a folder that is being written.
#[derive(Debug)]
struct FolderTarget {
    disk: Disk,
    journal: File,
    journal_path: PathBuf,
}

impl Target for FolderTarget {
    fn publish_parts(&mut self, name: &str, parts: &[(&[u8], u32)]) -> Result<Written> {
        self.disk.publish_parts(name, parts)
    }

    fn append(&mut self, line: &[u8]) -> Result<()> {
        self.disk.append(&mut self.journal, &self.journal_path, line)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn journal(&mut self) -> Result<Vec<u8>> {
        fs::read(&self.journal_path).map_err(StoreError::io("read", &self.journal_path))
    }

    /// It is there.
    fn add_journal(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn conclude(&mut self) -> Result<()> {
        self.disk.remove_unfinished()
    }
}
