//! What is reported on: runs, and autoencoders without one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use language_model::hub;
use sae::Config;
use terminal::foreign_path;

use crate::autoencoder::{autoencoder_of, load_and_tell};
use crate::command::arguments::ReportArguments;
use crate::laboratory::features::{Index, RECORD, TOKENIZER, folder_of};
use crate::runs::folder::{RunConfig, summary};
use crate::runs::record::Summary;
use crate::sweep::points;

pub(super) use crate::laboratory::features::Texts;

/// A run with its autoencoder, or an autoencoder alone.
pub(super) struct Subject {
    /// What tells it from the others: the end of its path.
    pub(super) name: String,
    pub(super) folder: PathBuf,
    /// Where the autoencoder is.
    pub(super) sae: PathBuf,
    pub(super) config: Config,
    /// Of a run.
    pub(super) run: Option<(RunConfig, Summary)>,
    pub(super) indexed: Option<Indexed>,
}

/// The activation index of an autoencoder.
pub(super) struct Indexed {
    pub(super) folder: PathBuf,
    pub(super) index: Index,
}

/// Opens what the flags name.
pub(super) fn open(arguments: &ReportArguments) -> Result<Vec<Subject>> {
    let folders = points(&arguments.runs)?;
    let names = names(&folders);
    let mut subjects = Vec::with_capacity(folders.len());
    for (folder, name) in folders.into_iter().zip(names) {
        let run = match (RunConfig::read(&folder)?, summary(&folder)?) {
            (Some(config), Some(summary)) => Some((config, summary)),
            (Some(_), None) => bail!(
                "the run in {0} is not finished; continue it with: sae-trainer --resume --out {0}",
                foreign_path(&folder)
            ),
            _ => None,
        };
        let config = load_and_tell(&folder)?.config;
        let sae = autoencoder_of(&folder)?;
        let features = folder_of(&sae);
        let indexed = match features.join(RECORD).exists() {
            true => Some(Indexed { index: Index::open(&features)?, folder: features }),
            false => None,
        };
        if indexed.is_none() {
            terminal::say!(
                "{0} has no activation index, so its features are left out; sae-trainer features {0} --store STORE makes one",
                foreign_path(&folder)
            );
        }
        subjects.push(Subject { name, folder, sae, config, run, indexed });
    }
    Ok(subjects)
}

/// The texts of the tokens of all indexes: of the tokenizer that is named, or of the one beside the model that made the stores.
pub(super) fn texts(arguments: &ReportArguments, subjects: &[Subject]) -> Result<Option<Texts>> {
    let indexes = || subjects.iter().filter_map(|subject| subject.indexed.as_ref());
    let Some(first) = indexes().next() else { return Ok(None) };
    let in_folder = |path: PathBuf| if path.is_dir() { path.join(TOKENIZER) } else { path };
    let named = match (&arguments.tokenizer, &arguments.model) {
        (Some(path), _) => Some(in_folder(path.clone())),
        (None, Some(model)) => Some(hub::model(model)?.join(TOKENIZER)),
        // A store made on this machine names the folder of its model.
        (None, None) => {
            Some(Path::new(&first.index.record.model).join(TOKENIZER)).filter(|path| path.exists())
        }
    };
    let Some(path) = named else {
        terminal::say!("without --tokenizer FILE or --model MODEL, tokens are shown as their numbers");
        return Ok(None);
    };
    let texts = Texts::open(&path, &first.index.record.tokenizer_hash)?;
    for indexed in indexes().skip(1) {
        let (own, other) = (&indexed.index.record.tokenizer_hash, &first.index.record.tokenizer_hash);
        if own != other {
            bail!(
                "the tokens of {} and of {} are of different tokenizers; report on them separately",
                foreign_path(&first.folder),
                foreign_path(&indexed.folder)
            );
        }
    }
    Ok(Some(texts))
}

/// Paths without the folders in which all of them are.
fn names(folders: &[PathBuf]) -> Vec<String> {
    let parts = |path: &Path| -> Vec<String> {
        path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let all: Vec<Vec<String>> = folders.iter().map(|folder| parts(folder)).collect();
    let shortest = all.iter().map(Vec::len).min().unwrap_or(0);
    let same = |at: usize| all.iter().all(|parts| parts[at] == all[0][at]);
    let common = (0..shortest.saturating_sub(1)).take_while(|at| same(*at)).count();
    all.iter().map(|parts| parts[common..].join("/")).collect()
}

/// The unembedding's folder, if a model is named.
pub(super) fn model(arguments: &ReportArguments) -> Result<Option<PathBuf>> {
    let model = arguments.model.as_deref().map(hub::model).transpose();
    model.context("cannot find the model of --model")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_leave_out_what_is_common() {
        let of = |folders: &[&str]| names(&folders.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["/tmp/runs/a", "/tmp/runs/b/c"]), ["a", "b/c"]);
        assert_eq!(of(&["runs/l0"]), ["l0"]);
        assert_eq!(of(&["a", "a/b"]), ["a", "a/b"]);
        assert_eq!(of(&["runs/x", "runs/x"]), ["x", "x"]);
    }
}
