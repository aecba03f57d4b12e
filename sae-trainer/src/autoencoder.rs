//! A finished autoencoder by its path: the folder of a run, an autoencoder's own, the files of another program, or any of these on
//! the Hugging Face hub (`hf://OWNER/REPOSITORY/FOLDER`).

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use hub::{Address, Hub};
use sae::{CONFIG_FILE, Format, Given, Opened, Sae, open};
use terminal::foreign_path;

use crate::runs::folder::SAE;
use crate::runs::panel_checkpoint;

/// What files of autoencoders end in, whichever program wrote them.
const ENDINGS: [&str; 6] = [".json", ".safetensors", ".pt", ".yaml", ".yml", "SHA256SUMS"];
/// Files that are all of an autoencoder.
const WHOLE: [&[&str]; 3] =
    [&[CONFIG_FILE, "sae_weights.safetensors"], &[CONFIG_FILE, "sae.safetensors"], &["config.json", "ae.pt"]];

/// The address of `path` on the hub, if it is one.
pub(crate) fn address(path: &Path) -> Result<Option<Address>> {
    Ok(path.to_str().map(Address::parse).transpose()?.flatten())
}

/// The autoencoder of the run in `path`, or `path` itself if it is one. What is on the hub is fetched.
pub(crate) fn autoencoder_of(path: &Path) -> Result<PathBuf> {
    if let Some(address) = address(path)? {
        return Ok(Hub::from_environment().folder(&address, &ENDINGS, &WHOLE)?);
    }
    ensure!(
        !panel_checkpoint::is_one(path),
        "{} is a checkpoint of panels, which a run goes on from with --resume; its autoencoder is sae/ in the run's folder",
        foreign_path(path)
    );
    let own = path.join(SAE);
    Ok(if !path.join(CONFIG_FILE).exists() && own.exists() { own } else { path.to_owned() })
}

/// Reads the autoencoder of a run, or of another program.
pub(crate) fn load(path: &Path) -> Result<Sae> {
    Ok(open(&autoencoder_of(path)?, &Given::default())?.sae)
}

/// The same, and says how it was read if another program wrote it.
pub(crate) fn load_and_tell(path: &Path) -> Result<Sae> {
    let opened = open(&autoencoder_of(path)?, &Given::default())?;
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
