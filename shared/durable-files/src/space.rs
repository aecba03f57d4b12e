//! The space that a file system has.

use std::path::Path;

use crate::Error;

/// Bytes free on the file system that `path` is on, or will be on once it exists.
///
/// # Errors
/// Errors of the operating system.
pub fn available_space(path: &Path) -> Result<u64, Error> {
    let absolute = std::path::absolute(path).map_err(Error::io("find", path))?;
    let nearest = absolute.ancestors().find(|folder| folder.exists()).unwrap_or(path);
    fs4::available_space(nearest).map_err(Error::io("find the free space of", nearest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_yet_has_the_space_of_the_folder_above() {
        let dir = tempfile::tempdir().unwrap();
        assert!(available_space(dir.path()).unwrap() > 0);
        assert!(available_space(&dir.path().join("runs/gpt2/step-1")).unwrap() > 0);
        assert!(available_space(Path::new("a-name-that-is-not-there")).unwrap() > 0);
    }
}
