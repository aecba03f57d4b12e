//! Checks that the files named by a model's other files lie with the model and nowhere else.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// The file called `name` in `folder` or below it, with all links resolved. Links may lead elsewhere in the folder and, as in
/// the Hugging Face cache, from a snapshot to the blobs of its repository.
///
/// # Errors
/// What is wrong with the name, as a predicate that follows it.
pub(crate) fn resolve(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if name.is_empty() || !Path::new(name).components().all(plain) {
        return Err("the location must be relative and below the model's folder".to_string());
    }
    let unreadable = |path: &Path, error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => format!("{} is missing; put it there", terminal::foreign_path(path)),
        _ => format!("{} cannot be read ({error})", terminal::foreign_path(path)),
    };
    let path = folder.join(name);
    let resolved = path.canonicalize().map_err(|error| unreadable(&path, error))?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let home = folder.canonicalize().map_err(|error| unreadable(folder, error))?;
    if !resolved.starts_with(&home) && !is_blob(&resolved, &home) {
        return Err(format!(
            "it is a link that leads out of the model's folder, to {}; copy the file into the folder",
            terminal::foreign_path(&resolved)
        ));
    }
    if !resolved.is_file() {
        return Err("it is not a file".to_string());
    }
    Ok(resolved)
}

/// Whether `file` lies among the blobs of a repository in the Hugging Face cache: the one that `folder` is a snapshot of, or
/// any (older clients filled local folders with links to them).
fn is_blob(file: &Path, folder: &Path) -> bool {
    let Some(blobs) = file.parent().filter(|parent| parent.file_name() == Some(OsStr::new("blobs"))) else {
        return false;
    };
    let Some(repository) = blobs.parent() else { return false };
    let name = repository.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("models--") || folder.starts_with(repository.join("snapshots"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_lies_with_the_model_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let model = root.join("model");
        fs::create_dir_all(model.join("weights")).unwrap();
        for file in ["secret", "model/plain", "model/weights/deep"] {
            fs::write(root.join(file), "x").unwrap();
        }
        symlink("weights/deep", model.join("link")).unwrap();
        symlink("../secret", model.join("escape")).unwrap();
        for name in ["plain", "./plain", "weights/deep", "link"] {
            assert!(resolve(&model, name).unwrap().starts_with(&model), "{name}");
        }
        for name in ["", "../secret", "weights/../../secret", "/etc/passwd", "escape", "weights", "missing"] {
            assert!(resolve(&model, name).is_err(), "{name}");
        }
    }

    #[test]
    fn snapshots_of_the_hubs_cache_link_to_their_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["models--a--b/blobs", "models--a--b/snapshots/1", "other/blobs", "local"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["models--a--b/blobs/0f", "other/blobs/0f"] {
            fs::write(root.join(file), "x").unwrap();
        }
        let snapshot = root.join("models--a--b/snapshots/1");
        symlink("../../blobs/0f", snapshot.join("weights")).unwrap();
        symlink("../../../other/blobs/0f", snapshot.join("escape")).unwrap();
        symlink(root.join("models--a--b/blobs/0f"), root.join("local/weights")).unwrap();
        assert!(resolve(&snapshot, "weights").is_ok());
        assert!(resolve(&root.join("local"), "weights").is_ok());
        assert!(resolve(&snapshot, "escape").unwrap_err().contains("leads out"));
    }
}
