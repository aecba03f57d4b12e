//! The language model that the command line names: a checkpoint folder or an ONNX file, with its tokenizer and BOS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use language_model::{
    Checkpoint, HookPoint, OnnxFile, PrefixModel, Runtime, SessionOptions, Tokenizer, hub, json_file,
};

use crate::arguments::{DumpArguments, SourceArguments};

/// A model and the requested hooks; nothing is loaded yet.
pub(crate) struct Model {
    kind: Kind,
    /// Hub id, folder or file, as it was given.
    pub(crate) name: String,
    pub(crate) hooks: Vec<Hook>,
    /// Each row's mean over the components is subtracted.
    pub(crate) center: bool,
    /// Where `config.json` and `tokenizer.json` are.
    folder: PathBuf,
}

enum Kind {
    Checkpoint(Checkpoint),
    Onnx(OnnxFile),
}

/// A place in the model whose activations are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hook {
    /// TransformerLens' name, or that of a tensor.
    pub(crate) name: String,
    /// Its block.
    pub(crate) layer: usize,
}

impl Model {
    /// Finds the model and its hooks.
    pub(crate) fn open(arguments: &DumpArguments) -> Result<Model> {
        let center = arguments.what.center;
        if let Some(path) = &arguments.source.onnx {
            let file = OnnxFile::open(path)?;
            let hooks = arguments.what.tensor.iter();
            return Ok(Model {
                kind: Kind::Onnx(file),
                name: path.display().to_string(),
                hooks: hooks.map(|name| Hook { name: name.clone(), layer: layer_in(name) }).collect(),
                center: center.centers(None),
                folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            });
        }
        let points = arguments.what.hook_points()?;
        let folder = hub::model(&arguments.source.model)?;
        let checkpoint = Checkpoint::open(&folder)?;
        let layers = checkpoint.config().layers;
        if let Some(point) = points.iter().find(|point| point.layer >= layers) {
            bail!("{point}: the model has blocks 0 to {}", layers - 1);
        }
        Ok(Model {
            center: center.centers(Some(checkpoint.config().norm)),
            kind: Kind::Checkpoint(checkpoint),
            name: arguments.source.model.clone(),
            hooks: points.iter().map(|point| Hook { name: point.to_string(), layer: point.layer }).collect(),
            folder,
        })
    }

    /// Tokens of the longest context, where it is known before the model is loaded.
    pub(crate) fn max_length(&self) -> Option<usize> {
        match &self.kind {
            Kind::Checkpoint(checkpoint) => Some(checkpoint.config().max_positions),
            Kind::Onnx(_) => None,
        }
    }

    /// SHA-256 of the weights; reads all of them.
    pub(crate) fn hash(&self) -> Result<String> {
        Ok(match &self.kind {
            Kind::Checkpoint(checkpoint) => checkpoint.hash()?,
            Kind::Onnx(file) => file.hash()?,
        })
    }

    /// Loads the part of the model that the hooks depend on; its outputs are the hooks, in order.
    pub(crate) fn load(&self, runtime: &Runtime, options: &SessionOptions) -> Result<PrefixModel> {
        Ok(match &self.kind {
            Kind::Checkpoint(checkpoint) => {
                let points: Result<Vec<HookPoint>, _> =
                    self.hooks.iter().map(|hook| hook.name.parse()).collect();
                PrefixModel::load(runtime, checkpoint, &points?, options)?
            }
            Kind::Onnx(file) => {
                let tensors: Vec<&str> = self.hooks.iter().map(|hook| hook.name.as_str()).collect();
                PrefixModel::from_onnx(runtime, file, &tensors, options)?
            }
        })
    }

    /// The tokenizer: the one that the command line names, else the one in the model's folder. `None` if there is none
    /// and none is `needed`.
    pub(crate) fn tokenizer(&self, source: &SourceArguments, needed: bool) -> Result<Option<Arc<Tokenizer>>> {
        let path = match &source.tokenizer {
            Some(path) if path.is_dir() => path.join("tokenizer.json"),
            Some(path) => path.clone(),
            None => self.folder.join("tokenizer.json"),
        };
        if source.tokenizer.is_none() && !needed && !path.exists() {
            return Ok(None);
        }
        let tokenizer = Tokenizer::open(&path);
        let tokenizer = match self.kind {
            Kind::Onnx(_) => {
                tokenizer.context("--tokenizer names the tokenizer.json of an ONNX file's model")
            }
            Kind::Checkpoint(_) => tokenizer.map_err(anyhow::Error::from),
        };
        tokenizer.map(|tokenizer| Some(Arc::new(tokenizer)))
    }

    /// The token that begins contexts and documents: what `--bos` says, else `bos_token_id` of the model's
    /// `config.json`, else the BOS of `tokenizer_config.json`.
    pub(crate) fn bos(&self, source: &SourceArguments, tokenizer: Option<&Tokenizer>) -> Result<u32> {
        let id = |token: &str| tokenizer.and_then(|tokenizer| tokenizer.id(token));
        if let Some(chosen) = &source.bos {
            return chosen.parse().ok().or_else(|| id(chosen)).with_context(|| {
                format!("--bos {chosen} is neither an id nor the text of a token of the tokenizer")
            });
        }
        let configured = match &self.kind {
            Kind::Checkpoint(checkpoint) => checkpoint.config().bos_token,
            Kind::Onnx(_) => json_file(&self.folder.join("config.json"))?
                .and_then(|config| u32::try_from(config["bos_token_id"].as_u64()?).ok()),
        };
        if let Some(bos) = configured {
            return Ok(bos);
        }
        if let Some(tokenizer) = tokenizer
            && let Some(bos) = tokenizer.declared_bos()?.as_deref().and_then(id)
        {
            return Ok(bos);
        }
        bail!(
            "{} names no bos_token_id, and contexts start with one; --bos names it, by its id or its text (models without \
             a BOS often take their end of text)",
            terminal::foreign_path(&self.folder.join("config.json"))
        )
    }
}

/// The block in a tensor's name (`/model/layers.1/Add_output_0`, `h.3.mlp`): the number behind a word for blocks; 0 if
/// there is none.
fn layer_in(tensor: &str) -> usize {
    const WORDS: [&str; 5] = ["blocks", "block", "layers", "layer", "h"];
    let words: Vec<&str> = tensor.split(['.', '/', '_', ':']).collect();
    let blocks = words.windows(2).filter(|pair| WORDS.contains(&pair[0]));
    blocks.filter_map(|pair| pair[1].parse().ok()).next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_found_in_the_names_that_exporters_give() {
        for (name, layer) in [
            ("/model/layers.1/Add_output_0", 1),
            ("/transformer/h.11/mlp/c_proj/Reshape_1_output_0", 11),
            ("/Add_1_output_0", 0),
            ("blocks.6.hook_mlp_out", 6),
        ] {
            assert_eq!(layer_in(name), layer, "{name}");
        }
    }
}
