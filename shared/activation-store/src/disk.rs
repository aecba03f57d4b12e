//! The few ways in which a store touches the disk, in the order that survives a crash.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Result, StoreError};

/// A step of writing a file, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskStep {
    /// Writing a file under its temporary name.
    Write,
    /// Waiting until its bytes are on the disk.
    Sync,
    /// Giving it its final name.
    Rename,
    /// Waiting until its name is on the disk.
    SyncFolder,
    /// Adding a line to the journal.
    Append,
    /// Waiting until the line is on the disk.
    SyncJournal,
}

/// Called before each step that changes a store on disk; an error makes the step fail. Tests inject faults with it.
#[derive(Clone)]
pub struct DiskHook(pub Arc<DiskCallback>);

/// What a [`DiskHook`] calls.
pub type DiskCallback = dyn Fn(DiskStep, &Path) -> std::io::Result<()> + Send + Sync;

impl fmt::Debug for DiskHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskHook")
    }
}

/// What a written file is, for the record that vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
}

/// Writes into one store's folder.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    dir: PathBuf,
    hook: Option<DiskHook>,
}

/// Folder of files that do not have their final name yet.
const PARTIAL: &str = "partial";

impl Disk {
    /// For the store in `dir`; removes what an interrupted writer left under temporary names.
    pub(crate) fn new(dir: &Path, hook: Option<DiskHook>) -> Result<Self> {
        let disk = Disk { dir: dir.to_path_buf(), hook };
        disk.remove_partial()?;
        Ok(disk)
    }

    fn before(&self, step: DiskStep, path: &Path) -> std::io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook.0(step, path))
    }

    /// Deletes the folder of temporary names.
    pub(crate) fn remove_partial(&self) -> Result<()> {
        let partial = self.dir.join(PARTIAL);
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &partial)(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes `parts`, one after the other, as the file `name` (relative to the store): under a temporary name, then
    /// flushed to the disk, then renamed, then the rename flushed. Whoever sees the name sees the whole file.
    pub(crate) fn publish(&self, name: &str, parts: &[&[u8]]) -> Result<Written> {
        let target = self.dir.join(name);
        let folder = target.parent().expect("a file lies in a folder");
        let partial = self.dir.join(PARTIAL);
        for folder in [folder, &partial] {
            fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
        }
        let temporary = partial.join(name.replace('/', "."));
        let mut written = Written { bytes: 0, crc32c: 0 };
        let write = || -> std::io::Result<File> {
            self.before(DiskStep::Write, &target)?;
            let mut file = File::create(&temporary)?;
            for part in parts {
                file.write_all(part)?;
            }
            Ok(file)
        };
        let file = write().map_err(StoreError::io("write", &target))?;
        for part in parts {
            written.crc32c = crc32c::crc32c_append(written.crc32c, part);
            written.bytes += part.len() as u64;
        }
        self.before(DiskStep::Sync, &target)
            .and_then(|()| file.sync_all())
            .map_err(StoreError::io("flush", &target))?;
        drop(file);
        self.before(DiskStep::Rename, &target)
            .and_then(|()| fs::rename(&temporary, &target))
            .map_err(StoreError::io("rename a finished file to", &target))?;
        self.before(DiskStep::SyncFolder, folder)
            .and_then(|()| self.sync_folders(folder))
            .map_err(StoreError::io("flush", folder))?;
        Ok(written)
    }

    /// Flushes `folder` and, because it may be new itself, the folders above it up to the store's.
    fn sync_folders(&self, folder: &Path) -> std::io::Result<()> {
        // Windows cannot open folders; there a rename is on the disk when it returns.
        if cfg!(unix) {
            for folder in folder.ancestors().take_while(|folder| folder.starts_with(&self.dir)) {
                File::open(folder)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Appends `line` to the open journal and waits until it is on the disk.
    pub(crate) fn append(&self, journal: &mut File, path: &Path, line: &[u8]) -> Result<()> {
        self.before(DiskStep::Append, path)
            .and_then(|()| journal.write_all(line))
            .map_err(StoreError::io("append to", path))?;
        self.before(DiskStep::SyncJournal, path)
            .and_then(|()| journal.sync_all())
            .map_err(StoreError::io("flush", path))
    }
}
