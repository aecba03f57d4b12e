//! One writer at a time.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::{Result, StoreError};

/// Holds a store's lock file. Dropping it unlocks the store and removes the file.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    /// The lock is the open file's; the system releases it with the process, however that ends.
    _file: File,
}

/// Name of the lock file in a store that is being written.
pub(crate) const LOCK: &str = "writer.lock";

impl Lock {
    /// Locks the store in `dir`, or says that another process has it.
    pub(crate) fn acquire(dir: &Path) -> Result<Lock> {
        let path = dir.join(LOCK);
        if path.symlink_metadata().is_ok() && !is_lock(&path) {
            return Err(StoreError::InTheWay(path));
        }
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(StoreError::io("create", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(dir.to_path_buf())),
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path)(error)),
            }
            // The holder before us may have removed the file between our open and our lock.
            if is_named(&file, &path) {
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

/// Whether what lies at `path` can be a lock file: an empty file. It is removed with the lock.
pub(crate) fn is_lock(path: &Path) -> bool {
    // One that another process has just removed was one, too.
    path.symlink_metadata().map_or(true, |found| found.is_file() && found.len() == 0)
}

#[cfg(unix)]
fn is_named(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_named(_: &File, path: &Path) -> bool {
    path.exists()
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Nothing depends on it: a lock file that nobody holds does not lock.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_waits_for_the_first_and_the_file_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::acquire(dir.path()).unwrap();
        assert!(matches!(Lock::acquire(dir.path()), Err(StoreError::Locked(_))));
        drop(first);
        let second = Lock::acquire(dir.path()).unwrap();
        drop(second);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
