//! The formats that can be imported, and how a folder shows which it has.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use terminal::foreign_path;

/// A format of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// NumPy files: [n, d], or [contexts, positions, d]
    Npy,
    /// vLLM's extract_hidden_states: a safetensors file for each request
    Vllm,
    /// SAELens' cached activations: a folder of Hugging Face datasets
    SaeLens,
    /// ActivationCache of dictionary_learning's fork by J. Minder: shard_0.memmap, shard_0.meta, ...
    Memmap,
    /// saev's shards: acts000000.bin, ...
    Saev,
}

impl Kind {
    /// The format's name on the command line and in a store's provenance.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Npy => "npy",
            Kind::Vllm => "vllm",
            Kind::SaeLens => "sae-lens",
            Kind::Memmap => "memmap",
            Kind::Saev => "saev",
        }
    }

    /// The format of `path`, from the files that are there.
    pub(super) fn of(path: &Path) -> Result<Kind> {
        ensure!(path.exists(), "there is no file or folder {}", foreign_path(path));
        let has = |name: &str| path.join(name).exists();
        let ends = |ending: &str| path.extension().is_some_and(|extension| extension == ending);
        let kind = match path.is_dir() {
            false if ends("npy") => Some(Kind::Npy),
            false if ends("safetensors") => Some(Kind::Vllm),
            false => None,
            true if has("state.json") => Some(Kind::SaeLens),
            true if has("shards.json") => Some(Kind::Saev),
            true if has("shard_0.memmap") || has("shard_0.meta") => Some(Kind::Memmap),
            true if !files(path, "safetensors")?.is_empty() => Some(Kind::Vllm),
            true if !files(path, "npy")?.is_empty() => Some(Kind::Npy),
            true => None,
        };
        kind.with_context(|| {
            format!(
                "{} is none of the formats that can be imported ({}); --from says which it is",
                foreign_path(path),
                Kind::value_variants().iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
            )
        })
    }
}

/// The files of a folder with this ending, in the order of their names; `path` itself if it is a file.
pub(super) fn files(path: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", foreign_path(path)))? {
        let file = entry.with_context(|| format!("cannot read {}", foreign_path(path)))?.path();
        if file.extension().is_some_and(|extension| extension == ending) && file.is_file() {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

/// The only one of the `paths` that a format with one folder is given.
pub(super) fn only(paths: &[PathBuf], kind: Kind) -> Result<&Path> {
    match paths {
        [one] => Ok(one),
        _ => bail!(
            "{} sources were given; of the format {} one is imported at a time",
            paths.len(),
            kind.name()
        ),
    }
}
