//! Files and folders that appear whole or not at all, whatever ends the process that writes them.
//!
//! Content is written under a temporary name next to its own, flushed to disk, and then renamed. The temporary name is
//! `.NAME.unfinished`. A temporary *folder* identifies itself by its content: it holds a file [`MARKER`], which its writer
//! keeps locked. A folder of that name without the marker is not ours and is never touched.
//!
//! Readers can check that they read what was written: a folder can carry checksums of its files ([`write_sums`]), and a JSON
//! object one of itself ([`sealed_document`]).

mod error;
mod file;
mod folder;
mod sealed;
mod space;
mod sums;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

pub use error::Error;
pub use file::replace_file;
pub use folder::{MARKER, create_folder, remove_folder, replace_folder, tidy};
pub use sealed::{BrokenSeal, check_seal, sealed_document, sealed_line};
pub use space::available_space;
pub use sums::{CheckedFolder, Condition, SUMS_FILE, check_folder, sum, write_sums, write_sums_beside};

/// Where the content of `path` lies until it is complete: `/a/name` → `/a/.name.unfinished`.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".unfinished");
    path.with_file_name(name)
}

/// The name that [`unfinished`] turned into `name`, if it did.
pub fn finished_name(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(".unfinished").filter(|whole| !whole.is_empty())
}

/// The folder that `path` lies in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until the file or folder `path` is on the disk.
fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("flush", path))
}

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
