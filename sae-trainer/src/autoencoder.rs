//! A finished autoencoder by its path: the folder of a run, an autoencoder's own, or the files of another program.

use std::path::{Path, PathBuf};

use anyhow::Result;
use sae::{CONFIG_FILE, Format, Given, Opened, Sae, open};
use terminal::foreign_path;

use crate::runs::folder::SAE;

/// The autoencoder of the run in `path`, or `path` itself if it is one.
pub(crate) fn autoencoder_of(path: &Path) -> PathBuf {
    let own = path.join(SAE);
    if !path.join(CONFIG_FILE).exists() && own.exists() { own } else { path.to_owned() }
}

/// Reads the autoencoder of a run, or of another program.
pub(crate) fn load(path: &Path) -> Result<Sae> {
    Ok(open(&autoencoder_of(path), &Given::default())?.sae)
}

/// The same, and says how it was read if another program wrote it.
pub(crate) fn load_and_tell(path: &Path) -> Result<Sae> {
    let opened = open(&autoencoder_of(path), &Given::default())?;
    tell(path, &opened);
    Ok(opened.sae)
}

/// Says how what is at `path` was read, unless it is a folder as this program writes it.
pub(crate) fn tell(path: &Path, opened: &Opened) {
    let notes = opened.notes.join("; ");
    match (opened.format, opened.notes.is_empty()) {
        (Format::SaeLens, true) => {}
        (format, true) => terminal::say!("{}: an autoencoder of {}", foreign_path(path), format.name()),
        (format, false) => {
            terminal::say!("{}: an autoencoder of {}; {notes}", foreign_path(path), format.name())
        }
    }
}
