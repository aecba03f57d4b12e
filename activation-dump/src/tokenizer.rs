//! A model folder's `tokenizer.json`, checked against the model it is to feed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Hugging Face's tokenizer with the BOS token of the model.
pub(crate) struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    path: PathBuf,
    bos: u32,
    hash: String,
}

impl Tokenizer {
    /// Reads `folder/tokenizer.json`. `vocabulary` is the number of rows of the model's embedding, `bos` the
    /// BOS of its configuration. A tokenizer with other tokens than the model's is refused.
    pub(crate) fn open(folder: &Path, vocabulary: usize, bos: Option<u32>) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).with_context(|| {
            format!("reading {}; put the model's tokenizer.json (Hugging Face format) there", path.display())
        })?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("{} is not a Hugging Face tokenizer", path.display()))?;
        // A document is cut into contexts here, and by nothing else.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| anyhow::anyhow!("{error}"))?;

        let largest = tokenizer.get_vocab(true).values().copied().max().unwrap_or(0) as usize;
        if largest >= vocabulary {
            bail!(
                "{} is not this model's tokenizer: its largest id is {largest}, the model has {vocabulary} tokens",
                path.display()
            );
        }
        let Some(bos) = bos else {
            bail!(
                "{} names no bos_token_id, and contexts start with one",
                folder.join("config.json").display()
            )
        };
        let Some(bos_text) = tokenizer.id_to_token(bos) else {
            bail!(
                "{} is not this model's tokenizer: it has no token {bos}, the model's BOS; its largest id is {largest}",
                path.display()
            )
        };
        if let Some(expected) = declared_bos(folder)?
            && expected != bos_text
        {
            bail!(
                "{} is not this model's tokenizer: token {bos}, the model's BOS, is {bos_text:?} there, \\
                 but tokenizer_config.json says {expected:?}",
                path.display()
            );
        }
        Ok(Tokenizer { tokenizer, path, bos, hash: hex(&Sha256::digest(&bytes)) })
    }

    /// The token that begins contexts and documents.
    pub(crate) fn bos(&self) -> u32 {
        self.bos
    }

    /// SHA-256 of the file.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    /// The ids of each document, without any BOS, computed on all of rayon's threads.
    pub(crate) fn encode(&self, documents: &[String]) -> Result<Vec<Vec<u32>>> {
        documents
            .par_iter()
            .map(|document| match self.tokenizer.encode_fast(document.as_str(), false) {
                Ok(encoding) => Ok(encoding.get_ids().to_vec()),
                Err(error) => bail!("{} failed on a document: {error}", self.path.display()),
            })
            .collect()
    }
}

/// `bos_token` of tokenizer_config.json, where there is one: a string, or an object with `content`.
fn declared_bos(folder: &Path) -> Result<Option<String>> {
    let path = folder.join("tokenizer_config.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let config: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let bos = &config["bos_token"];
    Ok(bos.as_str().or_else(|| bos["content"].as_str()).map(str::to_owned))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
