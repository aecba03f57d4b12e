//! What differs between families, each of which is a file of its own: how `config.json` reads, the blocks, and where the tensors
//! behind them lie.

use std::path::Path;

use serde::Deserialize;

use crate::attention::Contexts;
use crate::family::MODEL_TYPES;
use crate::graph::{Graph, Value};
use crate::head::Head;
use crate::{
    Checkpoint, Error, Family, HookPoint, ModelConfig, ModelPrecision, Products, gpt_neox, gpt2, llama,
};

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, the architecture is not supported, or the
    /// configuration uses a variant of it whose graph would differ from the one built here.
    pub fn read(path: &Path) -> Result<ModelConfig, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        ModelConfig::parse(&text, path)
    }

    pub(crate) fn parse(text: &str, path: &Path) -> Result<ModelConfig, Error> {
        let invalid = |problem: String| Error::Config { path: path.to_path_buf(), problem };
        let kind: ModelType = serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?;
        let family = Family::of(&kind.model_type).ok_or_else(|| Error::UnsupportedArchitecture {
            path: path.to_path_buf(),
            architecture: kind.model_type.clone(),
            supported: MODEL_TYPES.map(|(name, _)| name).join(", "),
        })?;
        let config = match family {
            Family::Gpt2 => gpt2::config(text),
            Family::GptNeox => gpt_neox::config(text),
            Family::Llama => llama::config(text),
        };
        let config = config.map_err(invalid)?;
        config.check_sizes().map_err(invalid)?;
        Ok(config)
    }
}

#[derive(Deserialize)]
struct ModelType {
    model_type: String,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and either `model.safetensors` or
    /// `model.safetensors.index.json` with its shards.
    ///
    /// # Errors
    /// When the folder or a file is missing, the architecture is not supported, or a weight file
    /// is truncated or damaged (its header is checked against its length).
    pub fn open(folder: &Path) -> Result<Checkpoint, Error> {
        let not_a_model = |problem: &str| Error::NotAModel { path: folder.into(), problem: problem.into() };
        if !folder.is_dir() {
            return Err(not_a_model(if folder.exists() {
                "it is not a folder"
            } else {
                "it does not exist"
            }));
        }
        let config_file = folder.join("config.json");
        if !config_file.exists() {
            return Err(not_a_model("it has no config.json"));
        }
        Checkpoint::with_config(folder, ModelConfig::read(&config_file)?)
    }
}

/// The serialized graph of `checkpoint` up to `hooks`.
pub(crate) fn graph(
    checkpoint: &Checkpoint,
    hooks: &[HookPoint],
    center: bool,
    precision: ModelPrecision,
    products: Products,
) -> Result<Vec<u8>, Error> {
    let mut graph = Graph::new(checkpoint, precision, products);
    let contexts = Contexts::new(&mut graph);
    let last = hooks.iter().map(|hook| hook.layer).max().unwrap_or(0);
    blocks(&mut graph, checkpoint, &contexts, last)?;
    graph.finish(hooks, center)
}

/// The blocks 0 to `last`, with their hooks; returns the residual stream after them.
pub(crate) fn blocks(
    graph: &mut Graph<'_>,
    checkpoint: &Checkpoint,
    contexts: &Contexts,
    last: usize,
) -> Result<Value, Error> {
    match checkpoint.config().family {
        Family::Gpt2 => gpt2::blocks(graph, checkpoint, contexts, last),
        Family::GptNeox => gpt_neox::blocks(graph, checkpoint, contexts, last),
        Family::Llama => llama::blocks(graph, checkpoint, contexts, last),
    }
}

/// Where the final norm and the unembedding lie.
pub(crate) fn head(checkpoint: &Checkpoint) -> Head {
    match checkpoint.config().family {
        Family::Gpt2 => gpt2::head(checkpoint),
        Family::GptNeox => gpt_neox::head(checkpoint),
        Family::Llama => llama::head(checkpoint),
    }
}
