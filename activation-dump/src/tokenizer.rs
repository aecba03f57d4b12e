//! A model's `tokenizer.json`, checked against the model it is to feed, and the model's BOS.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Characters of a context that a message shows: a context of 128 tokens is about as long.
const SNIPPET: usize = 600;

/// Hugging Face's tokenizer.
pub(crate) struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    path: PathBuf,
    hash: String,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(crate) fn open(path: &Path) -> Result<Tokenizer> {
        let bytes = std::fs::read(path).with_context(|| {
            format!("reading {}; put the model's tokenizer.json (Hugging Face format) there", path.display())
        })?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("{} is not a Hugging Face tokenizer", path.display()))?;
        // A document is cut into contexts here, and by nothing else.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Tokenizer { tokenizer, path: path.to_owned(), hash: hex(&Sha256::digest(&bytes)) })
    }

    /// SHA-256 of the file.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    /// The largest id that it can give.
    pub(crate) fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).values().copied().max().unwrap_or(0)
    }

    /// Refuses a tokenizer with other tokens than the model's: `vocabulary` is the number of rows of the model's
    /// embedding, `bos` its BOS. `tokenizer_config.json` beside the file, where there is one, says what BOS is
    /// called, unless `bos_is_chosen` by the user.
    pub(crate) fn check(&self, vocabulary: usize, bos: u32, bos_is_chosen: bool) -> Result<()> {
        let (path, largest) = (self.path.display(), self.largest_id());
        if largest as usize >= vocabulary {
            bail!(
                "{path} is not this model's tokenizer: its largest id is {largest}, the model has {vocabulary} tokens"
            );
        }
        let Some(bos_text) = self.tokenizer.id_to_token(bos) else {
            bail!(
                "{path} is not this model's tokenizer: it has no token {bos}, the model's BOS; its largest id is {largest}"
            )
        };
        if let Some(expected) = self.declared_bos()?
            && expected != bos_text
            && !bos_is_chosen
        {
            bail!(
                "{path} is not this model's tokenizer: token {bos}, the model's BOS, is {bos_text:?} there, but \
                 tokenizer_config.json says {expected:?}"
            );
        }
        Ok(())
    }

    /// The id of a token by its text.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The ids of a document, without any BOS.
    pub(crate) fn encode(&self, document: &str) -> Result<Vec<u32>> {
        match self.tokenizer.encode_fast(document, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => bail!("{} failed on a document: {error}", self.path.display()),
        }
    }

    /// The text of a context, as far as a message has room for it.
    pub(crate) fn snippet(&self, context: &[u32]) -> String {
        match self.tokenizer.decode(context, false) {
            Ok(text) if text.chars().count() <= SNIPPET => text,
            Ok(text) => text.chars().take(SNIPPET).chain("…".chars()).collect(),
            Err(_) => format!("{context:?}"),
        }
    }

    /// `bos_token` of tokenizer_config.json, where there is one: a string, or an object with `content`.
    pub(crate) fn declared_bos(&self) -> Result<Option<String>> {
        let path = self.path.with_file_name("tokenizer_config.json");
        let Some(config) = json_file(&path)? else { return Ok(None) };
        let bos = &config["bos_token"];
        Ok(bos.as_str().or_else(|| bos["content"].as_str()).map(str::to_owned))
    }
}

/// The contents of a JSON file, if there is one.
pub(crate) fn json_file(path: &Path) -> Result<Option<serde_json::Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let json = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    Ok(Some(json))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
