//! A file that is replaced as a whole.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::{Error, parent, sync, unfinished};

/// Makes `file` hold exactly `content`: written under a temporary name, flushed, renamed.
///
/// # Errors
/// Errors of the operating system; `file` is then unchanged.
pub fn replace_file(file: &Path, content: &[u8]) -> Result<(), Error> {
    let new = unfinished(file);
    let written = File::create(&new).and_then(|mut f| f.write_all(content).and_then(|()| f.sync_all()));
    let renamed = written.and_then(|()| fs::rename(&new, file));
    if let Err(source) = renamed {
        let _ = fs::remove_file(&new); // the first error is the one to tell
        return Err(Error::Io { action: "write", path: file.into(), source });
    }
    sync(parent(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_leaves_no_remains() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        replace_file(&file, b"a longer first version").unwrap();
        replace_file(&file, b"second").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_names_the_file_and_leaves_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("summary.json");
        fs::create_dir(&folder).unwrap();
        let error = replace_file(&folder, b"text").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}", folder.display()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
