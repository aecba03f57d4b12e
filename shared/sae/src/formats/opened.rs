//! What is read, and what is asked for beyond the file.

use crate::{Config, Error, Metadata, Sae, Weights};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// An autoencoder's files as one program or another lays them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// SAELens' folder: `cfg.json`, `sae_weights.safetensors`.
    SaeLens,
    /// dictionary_learning's folder: `ae.pt`, `config.json`.
    DictionaryLearning,
    /// sparsify's folder: `cfg.json`, `sae.safetensors`.
    Sparsify,
    /// circuit-tracer's set: `config.yaml`, `layer_N.safetensors`.
    CircuitTracer,
    /// One safetensors file.
    Safetensors,
}

impl Format {
    /// The name of the program, or of the file type.
    pub fn name(self) -> &'static str {
        match self {
            Format::SaeLens => "SAELens",
            Format::DictionaryLearning => "dictionary_learning",
            Format::Sparsify => "sparsify",
            Format::CircuitTracer => "circuit-tracer",
            Format::Safetensors => "safetensors",
        }
    }
}

/// What is known of an autoencoder whose file holds nothing but tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    /// Only the k largest features of a row are active.
    pub k: Option<usize>,
    /// b_dec is subtracted from the input.
    pub pre_bias: bool,
}

/// An autoencoder that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// In this program's terms.
    pub sae: Sae,
    /// Whose files it was read from.
    pub format: Format,
    /// What a person should know of how it was read, a sentence each.
    pub notes: Vec<String>,
}

impl Opened {
    /// The activation and the bias on the input are those of `config`.
    pub(super) fn new(weights: Weights, mut config: Config, format: Format) -> Opened {
        config.metadata.further.entry("trained_with".into()).or_insert_with(|| format.name().into());
        Opened { sae: Sae { weights, config, log_sparsity: None }, format, notes: Vec::new() }
    }

    pub(super) fn note(mut self, sentence: impl Into<String>) -> Opened {
        self.notes.push(sentence.into());
        self
    }
}

/// The configuration of an autoencoder of these weights: "jumprelu" where there are thresholds, else "standard".
pub(super) fn config_of(weights: &Weights, pre_bias: bool, metadata: Metadata) -> Config {
    let config = Config::standard(weights.d_in(), weights.d_sae(), pre_bias, metadata);
    if weights.threshold.is_some() { config.jumprelu() } else { config }
}

/// The same that keeps the `k` largest features of a row.
pub(super) fn with_k(config: Config, k: usize, path: &Path) -> Result<Config, Error> {
    match k {
        0 => {
            Err(Error::Refused { path: path.into(), reason: "its k is 0: no feature would be active".into() })
        }
        k if k > config.d_sae => Err(Error::Refused {
            path: path.into(),
            reason: format!("its k is {k}, but it has {} features", config.d_sae),
        }),
        k => Ok(config.topk(k)),
    }
}

/// The file `path`.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(Error::io("read", path))
}

/// The JSON file `path`.
pub(super) fn read_json(path: &Path) -> Result<Value, Error> {
    serde_json::from_slice(&read(path)?).map_err(|source| Error::Json { path: path.into(), source })
}

/// The text at a path of keys.
pub(super) fn text_at(value: &Value, keys: &[&str]) -> Option<String> {
    keys.iter().try_fold(value, |value, key| value.get(key))?.as_str().map(str::to_owned)
}

/// The count at a path of keys.
pub(super) fn count_at(value: &Value, keys: &[&str]) -> Option<usize> {
    keys.iter().try_fold(value, |value, key| value.get(key))?.as_u64()?.try_into().ok()
}
