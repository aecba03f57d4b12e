//! The few ways in which a store touches the disk, each in an order that survives a crash.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Result, StoreError, paths};

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

/// Size and checksums of a written file, for the record that vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
}

impl Written {
    /// A file of these parts, each with its crc32c.
    pub(crate) fn of(parts: &[(&[u8], u32)]) -> Written {
        let mut written = Written { bytes: 0, crc32c: 0 };
        for &(part, crc32c) in parts {
            written.crc32c = crc32c::crc32c_combine(written.crc32c, crc32c, part.len());
            written.bytes += part.len() as u64;
        }
        written
    }
}

/// Writes into one store's folder.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    dir: PathBuf,
    hook: Option<DiskHook>,
}

/// Folder of files that do not have their final name yet.
pub(crate) const UNFINISHED: &str = ".unfinished";
/// That folder's former name; stores that were begun with it can be resumed.
const UNFINISHED_ONCE: &str = "partial";

impl Disk {
    /// For the store in `dir`, which exists already if `is_store`; removes what an interrupted writer left under temporary
    /// names.
    pub(crate) fn new(dir: &Path, is_store: bool, hook: Option<DiskHook>) -> Result<Self> {
        let disk = Disk { dir: dir.to_path_buf(), hook };
        disk.remove_unfinished()?;
        let once = dir.join(UNFINISHED_ONCE);
        // What is not all a store's is its owner's, and not in the way.
        if is_store && holds_unfinished_only(&once)? {
            remove(&once)?;
        }
        Ok(disk)
    }

    fn before(&self, step: DiskStep, path: &Path) -> std::io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook.0(step, path))
    }

    /// Deletes the folder of temporary names.
    pub(crate) fn remove_unfinished(&self) -> Result<()> {
        let unfinished = self.dir.join(UNFINISHED);
        match unfinished.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            _ if holds_unfinished_only(&unfinished)? => remove(&unfinished),
            _ => Err(StoreError::InTheWay(unfinished)),
        }
    }

    /// Writes `content` as the file `name` (relative to the store): under a temporary name, then
    /// flushed to the disk, then renamed, then the rename flushed. Whoever sees the name sees the whole file.
    pub(crate) fn publish(&self, name: &str, content: &[u8]) -> Result<Written> {
        self.publish_parts(name, &[(content, crc32c::crc32c(content))])
    }

    /// The same for a file in several parts, one after the other, each with its checksum.
    pub(crate) fn publish_parts(&self, name: &str, parts: &[(&[u8], u32)]) -> Result<Written> {
        let target = self.dir.join(name);
        let folder = target.parent().expect("a file lies in a folder");
        let unfinished = self.dir.join(UNFINISHED);
        for folder in [folder, &unfinished] {
            fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
        }
        let temporary = unfinished.join(name.replace('/', "."));
        let write = || -> std::io::Result<File> {
            self.before(DiskStep::Write, &target)?;
            let mut file = File::create(&temporary)?;
            for (part, _) in parts {
                file.write_all(part)?;
            }
            Ok(file)
        };
        let file = write().map_err(StoreError::io("write", &target))?;
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
        Ok(Written::of(parts))
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

/// Whether `folder` is one, and has nothing in it but files of a store under their temporary names.
pub(crate) fn holds_unfinished_only(folder: &Path) -> Result<bool> {
    if !folder.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Ok(false);
    }
    for entry in fs::read_dir(folder).map_err(StoreError::io("read", folder))? {
        let entry = entry.map_err(StoreError::io("read", folder))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !entry.file_name().to_str().is_some_and(paths::is_a_temporary_name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes the files of a folder, and the folder.
fn remove(folder: &Path) -> Result<()> {
    let files = || -> std::io::Result<()> {
        for entry in fs::read_dir(folder)? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_dir(folder)
    };
    files().map_err(StoreError::io("remove", folder))
}
