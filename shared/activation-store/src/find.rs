//! Finds the stores below a folder.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Result, Store, StoreError};

/// A store that [`find`] found.
#[derive(Debug)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// The store, or why it cannot be read: it is unfinished, damaged, or of another version.
    pub store: Result<Store>,
}

/// Folders below the one that is searched: `stores/gpt2/blocks.1.hook_resid_pre`, what a dump of several hooks makes.
const DEPTH: usize = 2;

/// The stores in `folder` and in its subfolders, sorted by path; none if there is no such folder.
///
/// # Errors
/// If a folder cannot be read.
pub fn find(folder: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    search(folder, DEPTH, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn search(folder: &Path, depth: usize, found: &mut Vec<Found>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(StoreError::io("read", folder))?,
    };
    for entry in entries {
        let path = entry.map_err(StoreError::io("read", folder))?.path();
        if !path.is_dir() {
            continue;
        }
        match Store::open(&path) {
            Err(StoreError::NotFound(_)) if depth > 1 => search(&path, depth - 1, found)?,
            Err(StoreError::NotFound(_)) => {}
            store => found.push(Found { path, store }),
        }
    }
    Ok(())
}
