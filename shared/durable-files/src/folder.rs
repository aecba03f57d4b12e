//! A folder that appears, or is replaced, as a whole.
//!
//! ```text
//! .NAME.unfinished/
//!     WRITER      says what this is; locked as long as its writer lives
//!     content/    what becomes NAME
//!     old/        what was NAME, where the file system cannot exchange two folders in one step
//! ```

use std::ffi::CString;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{Error, finished_name, parent, sync, unfinished};

/// The file by which a temporary folder is recognised.
pub const MARKER: &str = "WRITER";
/// How that file begins.
const MARK: &str = "This folder is unfinished: its writer was stopped, or is still at work.\n";
const CONTENT: &str = "content";
const OLD: &str = "old";

/// Creates `folder` with exactly what `write` puts into the empty folder it is given.
///
/// # Errors
/// [`Error::Exists`] if `folder` exists, even if it was created while `write` ran; errors of `write` and of the
/// operating system. Nothing of what was written remains.
pub fn create_folder<E: From<Error>>(
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let exists = || Error::Exists(folder.to_path_buf());
    if folder.file_name().is_none() || folder.symlink_metadata().is_ok() {
        return Err(exists().into());
    }
    let staged = Staged::begin(folder)?;
    staged.fill(write)?;
    // The flag refuses to replace what another process put there in the meantime; where the file system does not know
    // it, a plain rename still refuses everything but an empty folder.
    let renamed = match rename_with(&staged.content(), folder, Rename::NoReplace) {
        Err(error) if is_unsupported(&error) => fs::rename(staged.content(), folder),
        renamed => renamed,
    };
    match renamed {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists().into()),
        renamed => renamed.map_err(Error::io("create", folder))?,
    }
    Ok(sync(parent(folder))?)
}

/// Makes `folder` hold exactly what `write` puts into the empty folder it is given. The old content is then gone,
/// and never mixed with the new. There is no moment without either, if the file system can exchange
/// names (ext4, xfs, btrfs, tmpfs). Elsewhere, the next call restores the old content if this one died in that moment.
///
/// # Errors
/// Errors of `write` and of the operating system; `folder` is then unchanged.
pub fn replace_folder<E: From<Error>>(
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let staged = Staged::begin(folder)?;
    staged.fill(write)?;
    if !folder.exists() {
        fs::rename(staged.content(), folder).map_err(Error::io("create", folder))?;
        return Ok(sync(parent(folder))?);
    }
    match rename_with(&staged.content(), folder, Rename::Exchange) {
        Err(error) if is_unsupported(&error) => {
            let moved = fs::rename(folder, staged.old());
            moved
                .and_then(|()| fs::rename(staged.content(), folder))
                .map_err(Error::io("replace", folder))?;
        }
        exchanged => exchanged.map_err(Error::io("replace", folder))?,
    }
    Ok(sync(parent(folder))?)
}

/// Removes `folder` and its content. The folder loses its name first, so that nobody takes the remains for the whole.
/// If the process dies in between, [`tidy`] removes the remains.
///
/// # Errors
/// Errors of the operating system.
pub fn remove_folder(folder: &Path) -> Result<(), Error> {
    let staged = Staged::begin(folder)?;
    fs::rename(folder, staged.content()).map_err(Error::io("remove", folder))?;
    sync(parent(folder))?;
    remove_marked(&staged.path).map_err(Error::io("remove", folder))
}

/// Removes what stopped writers have left in `folder`. A folder that another process is still writing stays, and
/// so does one that merely has such a name. Temporary files are recognised by their name alone and are removed, so
/// the caller must keep other writers out of `folder`.
///
/// # Errors
/// Errors of the operating system.
pub fn tidy(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let (path, name) = (entry.path(), entry.file_name());
        let Some(whole) = name.to_str().and_then(finished_name) else { continue };
        let removed = match entry.file_type().map_err(Error::io("read", &path))? {
            kind if kind.is_dir() => remove_remains(&path, &folder.join(whole)),
            kind if kind.is_file() => fs::remove_file(&path).map_err(Error::io("remove", &path)),
            _ => Ok(()),
        };
        match removed {
            Err(Error::InTheWay(_) | Error::Busy(_)) => {}
            removed => removed?,
        }
    }
    Ok(())
}

/// The temporary folder beside a folder that is being written; gone when the value is dropped.
struct Staged {
    path: PathBuf,
    lock: File,
}

impl Staged {
    /// Makes the temporary folder of `folder`, in place of one that a stopped writer left.
    fn begin(folder: &Path) -> Result<Staged, Error> {
        let parent = parent(folder);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let path = unfinished(folder);
        remove_remains(&path, folder)?;
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        let marker = path.join(MARKER);
        let file = File::create_new(&marker).map_err(Error::io("create", &marker))?;
        let staged = Staged { path, lock: file };
        (&staged.lock).write_all(MARK.as_bytes()).map_err(Error::io("write", &marker))?;
        take(&staged.lock, folder)?;
        fs::create_dir(staged.content()).map_err(Error::io("create", staged.content()))?;
        Ok(staged)
    }

    fn content(&self) -> PathBuf {
        self.path.join(CONTENT)
    }

    fn old(&self) -> PathBuf {
        self.path.join(OLD)
    }

    fn fill<E: From<Error>>(&self, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
        write(&self.content())?;
        share_content(&self.content())?;
        Ok(sync_content(&self.content())?)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Remains cost room, not correctness, and the next writer removes them. The marker goes last: a folder that is
        // half removed is still recognised.
        let _ = remove_marked(&self.path);
    }
}

/// Removes the temporary folder `path` of `folder` if a stopped writer of ours left it.
fn remove_remains(path: &Path, folder: &Path) -> Result<(), Error> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let marker = path.join(MARKER);
    match File::open(&marker) {
        Ok(mut file) => {
            let mut text = String::new();
            let ours = file.read_to_string(&mut text).is_ok() && MARK.starts_with(&text);
            if !ours {
                return Err(Error::InTheWay(path.to_path_buf()));
            }
            take(&file, folder)?;
        }
        // A writer that was stopped before it wrote the marker leaves an empty folder, and so does one that was stopped
        // after it had removed it. Removing an empty folder loses nothing; anything else is not ours.
        Err(_) => return fs::remove_dir(path).map_err(|_| Error::InTheWay(path.to_path_buf())),
    }
    let old = path.join(OLD);
    if old.exists() && folder.symlink_metadata().is_err() {
        fs::rename(&old, folder).map_err(Error::io("restore", folder))?;
    }
    remove_marked(path).map_err(Error::io("remove", path))
}

/// Removes a folder that holds a marker, the marker last.
fn remove_marked(path: &Path) -> io::Result<()> {
    for name in [CONTENT, OLD] {
        match fs::remove_dir_all(path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_file(path.join(MARKER))?;
    fs::remove_dir(path)
}

/// Locks a marker for this process.
fn take(marker: &File, folder: &Path) -> Result<(), Error> {
    match marker.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::Busy(folder.to_path_buf())),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", folder)(error)),
    }
}

/// Lets whoever may read the folder read its files, and those of the folders in it. Some libraries write a file for its owner alone.
fn share_content(folder: &Path) -> Result<(), Error> {
    let mode = fs::metadata(folder).map_err(Error::io("read", folder))?.permissions().mode() & 0o666;
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.is_dir() {
            share_content(&path)?;
        } else if path.is_file() {
            fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(Error::io("share", &path))?;
        }
    }
    Ok(())
}

/// Waits until a folder and all that is in it are on the disk.
fn sync_content(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        match path.is_dir() {
            true => sync_content(&path)?,
            false => sync(&path)?,
        }
    }
    sync(folder)
}

/// What a rename may do beyond moving a name.
#[derive(Clone, Copy)]
enum Rename {
    /// Refuse to replace what is there.
    NoReplace,
    /// Let the two names trade places.
    Exchange,
}

/// A rename of the kind that Linux's `renameat2` offers.
#[cfg(target_os = "linux")]
fn rename_with(from: &Path, to: &Path, kind: Rename) -> io::Result<()> {
    let flag = match kind {
        Rename::NoReplace => libc::RENAME_NOREPLACE,
        Rename::Exchange => libc::RENAME_EXCHANGE,
    };
    let [from, to] = [from, to].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (from, to) = (from?, to?);
    // SAFETY: both are strings that end with a zero and outlive the call.
    match unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flag) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Other systems have no such rename.
#[cfg(not(target_os = "linux"))]
fn rename_with(_: &Path, _: &Path, _: Rename) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// Whether the kernel or the file system does not know a flag of `renameat2`.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn put<'a>(name: &'a str) -> impl FnOnce(&Path) -> Result<(), Error> + 'a {
        move |new| fs::write(new.join(name), "x").map_err(Error::io("write", new))
    }

    /// A parent with a folder `sae` in it that holds `kept`.
    fn setting() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sae");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("kept"), "x").unwrap();
        (dir, folder)
    }

    #[test]
    fn a_replaced_folder_keeps_nothing_of_the_old_one() {
        let (dir, folder) = setting();
        replace_folder(&folder, put("fresh")).unwrap();
        assert_eq!(names(&folder), ["fresh"]);
        assert_eq!(names(dir.path()), ["sae"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_folder_and_no_remains() {
        let (dir, folder) = setting();
        let error = replace_folder(&folder, |new| {
            fs::write(new.join("half"), "y").unwrap();
            Err(Error::io("write", "there")(io::ErrorKind::StorageFull.into()))
        });
        assert_eq!(error.unwrap_err().to_string(), "cannot write there");
        assert_eq!(names(&folder), ["kept"]);
        assert_eq!(names(dir.path()), ["sae"]);
    }

    #[test]
    fn remains_of_a_stopped_writer_do_not_get_in() {
        let (dir, folder) = setting();
        let remains = dir.path().join(".sae.unfinished");
        fs::create_dir_all(remains.join(CONTENT)).unwrap();
        fs::write(remains.join(CONTENT).join("half"), "x").unwrap();
        // A marker that was cut short is one too.
        for marker in [MARK, &MARK[..10], ""] {
            fs::create_dir_all(&remains).unwrap();
            fs::write(remains.join(MARKER), marker).unwrap();
            replace_folder(&folder, put("whole")).unwrap();
            assert_eq!(names(&folder), ["whole"]);
            assert_eq!(names(dir.path()), ["sae"]);
        }
        fs::create_dir(&remains).unwrap();
        replace_folder(&folder, put("again")).unwrap();
        assert_eq!(names(dir.path()), ["sae"]);
    }

    #[test]
    fn the_old_folder_is_put_back_if_its_replacement_died() {
        let (dir, folder) = setting();
        let remains = dir.path().join(".sae.unfinished");
        fs::create_dir(&remains).unwrap();
        fs::write(remains.join(MARKER), MARK).unwrap();
        fs::rename(&folder, remains.join(OLD)).unwrap();
        let failed = replace_folder(&folder, |_| Err(Error::Busy("elsewhere".into())));
        assert!(failed.is_err());
        assert_eq!(names(&folder), ["kept"]);
        assert_eq!(names(dir.path()), ["sae"]);
    }

    #[test]
    fn what_is_not_ours_is_not_touched() {
        let (dir, folder) = setting();
        let theirs = dir.path().join(".sae.unfinished");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("thesis.tex"), "x").unwrap();
        for marker in [None, Some("a marker of somebody else")] {
            if let Some(text) = marker {
                fs::write(theirs.join(MARKER), text).unwrap();
            }
            let error = replace_folder(&folder, put("fresh")).unwrap_err();
            assert!(matches!(&error, Error::InTheWay(path) if *path == theirs), "{error}");
            assert!(theirs.join("thesis.tex").exists());
            assert_eq!(names(&folder), ["kept"]);
        }
    }

    #[test]
    fn files_may_be_read_by_whoever_may_read_their_folder() {
        let (_dir, folder) = setting();
        replace_folder(&folder, |new| {
            fs::create_dir(new.join("within")).unwrap();
            for name in ["secret", "within/secret"] {
                put(name)(new)?;
                fs::set_permissions(new.join(name), Permissions::from_mode(0o600)).unwrap();
            }
            Ok::<(), Error>(())
        })
        .unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o666;
        assert_eq!(mode(&folder.join("secret")), mode(&folder));
        assert_eq!(mode(&folder.join("within/secret")), mode(&folder));
    }

    #[test]
    fn a_removed_folder_leaves_nothing_and_half_a_removal_is_tidied() {
        let (dir, folder) = setting();
        remove_folder(&folder).unwrap();
        assert!(names(dir.path()).is_empty());
        assert!(remove_folder(&folder).is_err());
        assert!(names(dir.path()).is_empty());

        // As a process leaves it that is killed while it deletes, and two that write.
        let remains = dir.path().join(".sae.unfinished");
        fs::create_dir_all(remains.join(CONTENT)).unwrap();
        fs::write(remains.join(CONTENT).join("half"), "x").unwrap();
        fs::write(remains.join(MARKER), MARK).unwrap();
        fs::write(dir.path().join(".config.json.unfinished"), "{").unwrap();
        let theirs = dir.path().join(".thesis.unfinished");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("thesis.tex"), "x").unwrap();
        tidy(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [".thesis.unfinished"]);
        assert_eq!(names(&theirs), ["thesis.tex"]);
    }

    #[test]
    fn what_another_writer_is_at_is_not_tidied_away() {
        let (dir, folder) = setting();
        replace_folder(&folder, |new| {
            tidy(dir.path())?;
            put("fresh")(new)
        })
        .unwrap();
        assert_eq!(names(&folder), ["fresh"]);
    }

    #[test]
    fn a_second_writer_of_the_same_folder_is_refused() {
        let (_dir, folder) = setting();
        replace_folder(&folder, |new| {
            let error = replace_folder(&folder, put("second")).unwrap_err();
            assert!(matches!(error, Error::Busy(_)), "{error}");
            put("first")(new)
        })
        .unwrap();
        assert_eq!(names(&folder), ["first"]);
    }

    #[test]
    fn a_created_folder_replaces_nothing() {
        let (dir, folder) = setting();
        assert!(matches!(create_folder(&folder, put("fresh")), Err(Error::Exists(_))));
        let new = dir.path().join("new");
        let raced = create_folder(&new, |staged| {
            fs::create_dir(&new).unwrap();
            put("fresh")(staged)
        });
        assert!(matches!(raced, Err(Error::Exists(_))));
        fs::remove_dir(&new).unwrap();
        create_folder(&new, put("fresh")).unwrap();
        assert_eq!((names(&folder), names(&new)), (vec!["kept".to_owned()], vec!["fresh".to_owned()]));
        assert_eq!(names(dir.path()), ["new", "sae"]);
    }
}
