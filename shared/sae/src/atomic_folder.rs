//! Folders and files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Error;

/// Makes `folder` hold exactly what `write` puts into the (empty, temporary) folder it is given.
///
/// The content is synced to disk before it gets its name. Where `folder` exists it is moved aside
/// first and deleted last, so its old content is never mixed with new files; should the process die
/// between the two renames, the old content is beside it under `.NAME.old`.
pub fn replace_folder<E: From<Error>>(
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let parent = parent(folder);
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    let (new, old) = (beside(folder, "new"), beside(folder, "old"));
    remove(&new)?;
    fs::create_dir(&new).map_err(Error::io("create", &new))?;
    let written = write(&new).and_then(|()| Ok(sync_content(&new)?));
    if let Err(error) = written {
        let _ = fs::remove_dir_all(&new); // the first error is the one to tell
        return Err(error);
    }
    if folder.exists() {
        remove(&old)?;
        fs::rename(folder, &old).map_err(Error::io("move", folder))?;
    }
    fs::rename(&new, folder).map_err(Error::io("create", folder))?;
    sync(parent)?;
    remove(&old)?;
    Ok(())
}

/// Makes `file` hold exactly `content`: written beside it, synced, renamed over it.
pub fn replace_file(file: &Path, content: &[u8]) -> Result<(), Error> {
    let new = beside(file, "new");
    let written = File::create(&new).and_then(|mut f| f.write_all(content).and_then(|()| f.sync_all()));
    if let Err(source) = written {
        let _ = fs::remove_file(&new); // the first error is the one to tell
        return Err(Error::Io { action: "write", path: file.into(), source });
    }
    fs::rename(&new, file).map_err(Error::io("write", file))?;
    sync(parent(file))
}

/// `/a/name` → `/a/.name.suffix`
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn remove(folder: &Path) -> Result<(), Error> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(Error::io("remove", folder))?;
    }
    Ok(())
}

fn sync_content(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        sync(&entry.map_err(Error::io("read", folder))?.path())?;
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("sync", path))
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

    #[test]
    fn a_replaced_folder_keeps_nothing_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sae");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("stale"), "x").unwrap();
        replace_folder(&folder, |new| fs::write(new.join("fresh"), "y").map_err(Error::io("write", new)))
            .unwrap();
        assert_eq!(names(&folder), ["fresh"]);
        assert_eq!(names(dir.path()), ["sae"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_folder_and_no_remains() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sae");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("kept"), "x").unwrap();
        let error = replace_folder(&folder, |new| {
            fs::write(new.join("half"), "y").unwrap();
            Err(Error::io("write", "there")(std::io::ErrorKind::StorageFull.into()))
        });
        assert_eq!(error.unwrap_err().to_string(), "cannot write there");
        assert_eq!(names(&folder), ["kept"]);
        assert_eq!(names(dir.path()), ["sae"]);
    }

    #[test]
    fn remains_of_a_killed_write_do_not_get_in() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sae");
        fs::create_dir(dir.path().join(".sae.new")).unwrap();
        fs::write(dir.path().join(".sae.new/half"), "x").unwrap();
        replace_folder(&folder, |new| fs::write(new.join("whole"), "y").map_err(Error::io("write", new)))
            .unwrap();
        assert_eq!(names(&folder), ["whole"]);
    }

    #[test]
    fn a_replaced_file_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        replace_file(&file, b"a longer first version").unwrap();
        replace_file(&file, b"second").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert_eq!(names(dir.path()), ["config.json"]);
    }
}
