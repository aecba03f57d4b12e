//! The autoencoders that are pushed: their files, and what the card says of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use durable_files::{Condition, check_folder};
use hub::{Addition, Content};
use sae::{CONFIG_FILE, Config, Format, Given, open};
use terminal::{foreign, foreign_path};

use crate::autoencoder::autoencoder_of;
use crate::runs::folder::{SAE, summary};
use crate::runs::record::Summary;
use crate::sweep::points;

/// The model card's file, which no autoencoder's folder is called.
pub(super) const CARD: &str = "README.md";
/// The files that SAELens loads; the last one may be missing.
const FILES: [&str; 3] = [CONFIG_FILE, "sae_weights.safetensors", "sparsity.safetensors"];

/// An autoencoder.
#[derive(Debug)]
pub(super) struct Subject {
    /// Its folder in the repository.
    pub(super) id: String,
    /// Its folder on this machine, and the files of it that go.
    folder: PathBuf,
    pub(super) files: Vec<&'static str>,
    pub(super) bytes: u64,
    pub(super) config: Config,
    /// Of the run that it came from, where that is finished.
    pub(super) summary: Option<Summary>,
}

impl Subject {
    /// Those of runs, of sweeps and of folders; `ids` names them, if there are any.
    pub(super) fn all(paths: &[PathBuf], ids: &[String]) -> Result<Vec<Subject>> {
        let paths = points(paths)?;
        ensure!(
            ids.is_empty() || ids.len() == paths.len(),
            "--id has {} names, and there are {} autoencoders",
            ids.len(),
            paths.len()
        );
        let mut subjects: Vec<Subject> = Vec::with_capacity(paths.len());
        for (number, path) in paths.iter().enumerate() {
            let id = ids.get(number).cloned().map_or_else(|| name(path), Ok)?;
            check_id(&id)?;
            if let Some(other) = subjects.iter().find(|other| other.id == id) {
                bail!(
                    "{} and {} would both go into the folder {}; --id names them",
                    foreign_path(&other.folder),
                    foreign_path(path),
                    foreign(&id)
                );
            }
            subjects.push(Subject::open(path, id)?);
        }
        Ok(subjects)
    }

    fn open(path: &Path, id: String) -> Result<Subject> {
        let folder = autoencoder_of(path)?;
        let opened = open(&folder, &Given::default())?;
        ensure!(
            opened.format == Format::SaeLens && opened.notes.is_empty(),
            "{} is an autoencoder of {}; sae-trainer import turns it into SAELens' folder, which can be pushed",
            foreign_path(path),
            opened.format.name()
        );
        for (file, condition) in check_folder(&folder)? {
            ensure!(
                !matches!(condition, Condition::Damaged(_)),
                "{} is damaged, and is not pushed; sae-trainer verify {} says more",
                foreign_path(&file),
                foreign_path(path)
            );
        }
        let files: Vec<&str> = FILES.into_iter().filter(|name| folder.join(name).exists()).collect();
        let size = |name: &&str| folder.join(name).metadata().map(|metadata| metadata.len());
        let sizes: std::io::Result<Vec<u64>> = files.iter().map(size).collect();
        let bytes = sizes.with_context(|| format!("cannot read {}", foreign_path(&folder)))?.iter().sum();
        let run = if path.join(SAE).exists() { Some(path) } else { path.parent() };
        let summary = match run {
            Some(run) if run.join(SAE) == folder => summary(run)?,
            _ => None,
        };
        Ok(Subject { id, folder, files, bytes, config: opened.sae.config, summary })
    }

    /// Its files, for a commit.
    pub(super) fn additions(&self) -> Vec<Addition> {
        let addition = |name: &&str| Addition {
            path: format!("{}/{name}", self.id),
            content: Content::File(self.folder.join(name)),
        };
        self.files.iter().map(addition).collect()
    }
}

/// The name of a run, or of an autoencoder's folder.
fn name(path: &Path) -> Result<String> {
    let path = path.canonicalize().with_context(|| format!("cannot read {}", foreign_path(path)))?;
    let named = if path.ends_with(SAE) { path.parent().unwrap_or(&path) } else { &path };
    Ok(named.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// Refuses an id that is no folder of a repository.
fn check_id(id: &str) -> Result<()> {
    let plain = |part: &str| {
        let legal = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+=".contains(&b));
        legal && !part.is_empty() && !part.starts_with('.')
    };
    ensure!(
        id.split('/').all(plain),
        "{:?} cannot be the folder of an autoencoder in a repository; --id names it, of letters, digits and -_.+=",
        foreign(id).to_string()
    );
    if id == CARD {
        bail!("{CARD} is the model card's name; --id names the folder");
    }
    Ok(())
}
