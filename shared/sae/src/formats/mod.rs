//! Autoencoders in other programs' files: [`open`] reads them, [`export_into`] and [`export_file`] write them.
//!
//! A file for each program says how its features follow from its tensors, and what of that is ours. What is not exactly one of our
//! kinds is refused by its name.

mod circuit_tracer;
mod dictionary_learning;
mod numbers;
mod opened;
mod plain;
mod sae_lens;
mod sparsify;
mod tensors;
mod torch;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use opened::{Format, Given, Opened};

use crate::files::{CONFIG_FILE, WEIGHTS_FILE};
use crate::{Error, Sae};

/// What is at `path`, a folder or a file, by the names in it and its first bytes; `None` if it is no autoencoder.
///
/// # Errors
/// Those of the disk.
pub fn format_of(path: &Path) -> Result<Option<Format>, Error> {
    Ok(place(path)?.map(|(format, _)| format))
}

/// Reads the autoencoder at `path`, a folder or a file, whichever program wrote it. What its file does not say, `given` does;
/// where the file says it, `given` has to be empty.
///
/// # Errors
/// Names what is damaged or missing, or the kind of autoencoder that this crate does not compute.
pub fn open(path: &Path, given: &Given) -> Result<Opened, Error> {
    let refused = |reason: &str| Error::Refused { path: path.into(), reason: reason.into() };
    let Some((format, at)) = place(path)? else {
        return Err(match path.is_dir() {
            // What is looked for first is told.
            true => Error::io("read", path.join(CONFIG_FILE))(std::io::ErrorKind::NotFound.into()),
            false => refused("it is neither a safetensors file nor one of torch"),
        });
    };
    if *given != Given::default() && !matches!(format, Format::Safetensors | Format::DictionaryLearning) {
        return Err(refused("its files say what kind it is: leave --k and --pre-bias out"));
    }
    let opened = match format {
        Format::SaeLens => sae_lens::read_folder(&at)?,
        Format::DictionaryLearning => dictionary_learning::read_file(&at, given)?,
        Format::Sparsify => sparsify::read_folder(&at)?,
        Format::CircuitTracer if at.is_dir() => circuit_tracer::read_folder(&at)?,
        Format::CircuitTracer => circuit_tracer::read_file(&at)?,
        Format::Safetensors => plain::read_file(&at, given)?,
    };
    opened.sae.weights.check_shapes()?;
    Ok(opened)
}

/// The format, and the file or folder that its reader takes.
fn place(path: &Path) -> Result<Option<(Format, PathBuf)>, Error> {
    if path.is_dir() {
        return Ok(folder_place(path));
    }
    if !path.exists() {
        return Err(Error::io("read", path)(std::io::ErrorKind::NotFound.into()));
    }
    // The weights of a folder stand for it.
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let has = |other: &str| folder.join(other).exists();
    match name {
        WEIGHTS_FILE if has(CONFIG_FILE) => return Ok(Some((Format::SaeLens, folder.into()))),
        sparsify::WEIGHTS if has(CONFIG_FILE) => return Ok(Some((Format::Sparsify, folder.into()))),
        _ if circuit_tracer::block_of(path).is_some() && has(circuit_tracer::CONFIG) => {
            return Ok(Some((Format::CircuitTracer, path.into())));
        }
        _ => {}
    }
    let mut head = [0; 9];
    let read = File::open(path).and_then(|mut file| file.read(&mut head)).map_err(Error::io("read", path))?;
    let format = match &head[..read] {
        head if torch::begins_like_torch(head) => Some(Format::DictionaryLearning),
        [.., b'{'] if read == head.len() => Some(Format::Safetensors),
        _ if name.ends_with(".safetensors") => Some(Format::Safetensors),
        _ if name.ends_with(".pt") => Some(Format::DictionaryLearning),
        _ => None,
    };
    Ok(format.map(|format| (format, path.into())))
}

fn folder_place(folder: &Path) -> Option<(Format, PathBuf)> {
    let has = |name: &str| folder.join(name).exists();
    if has(dictionary_learning::WEIGHTS) {
        Some((Format::DictionaryLearning, folder.join(dictionary_learning::WEIGHTS)))
    } else if has(sparsify::WEIGHTS) && !has(WEIGHTS_FILE) {
        Some((Format::Sparsify, folder.into()))
    } else if has(CONFIG_FILE) || has(WEIGHTS_FILE) {
        Some((Format::SaeLens, folder.into()))
    } else if has(circuit_tracer::CONFIG) {
        Some((Format::CircuitTracer, folder.into()))
    } else {
        None
    }
}

/// Writes the autoencoder's files as `format` has them into an existing folder; what a person should know of it, a sentence each.
///
/// # Errors
/// Says why `format` cannot hold this kind of autoencoder, or those of the disk.
///
/// # Panics
/// With the formats that are not a folder of one autoencoder, see [`export_file`].
pub fn export_into(sae: &Sae, format: Format, folder: &Path) -> Result<Vec<String>, Error> {
    let folded = sae.clone().folded();
    match format {
        Format::SaeLens => {
            if folded.config.is_transcoder() && folded.config.largest().is_some() {
                let reason = "it is a TopK transcoder, and SAELens has none".into();
                return Err(Error::NotHeld { program: format.name(), reason });
            }
            folded.write_into(folder)?;
            durable_files::write_sums(folder)?;
            Ok(Vec::new())
        }
        Format::DictionaryLearning => dictionary_learning::write_into(&folded, folder),
        Format::Sparsify => sparsify::write_into(&folded, folder),
        Format::CircuitTracer | Format::Safetensors => unreachable!("{} has another writer", format.name()),
    }
}

/// The autoencoder as one safetensors file, written whole or not at all.
///
/// # Errors
/// Says why a file of tensors cannot hold this kind of autoencoder, or those of the disk.
pub fn export_file(sae: &Sae, path: &Path) -> Result<(), Error> {
    Ok(durable_files::replace_file(path, &plain::file(&sae.clone().folded(), path)?)?)
}
