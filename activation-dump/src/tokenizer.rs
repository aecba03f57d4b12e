//! A model's `tokenizer.json`, checked against the model that it feeds, and the model's BOS.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use terminal::foreign_path;
use tokenizers::{ModelWrapper, PreTokenizerWrapper};

/// Characters of a context that a message shows: a context of 128 tokens is about as long.
const SNIPPET: usize = 600;

/// Hugging Face's tokenizer.
pub(crate) struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    path: PathBuf,
    hash: String,
    places: Places,
    longest_added_token: usize,
}

/// Where words of a text begin, whatever stands around them: there it may be cut (see `cutting.rs`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// At a space behind a letter, digit or sign.
    pub(crate) space: bool,
    /// At a line's end behind a letter or digit.
    pub(crate) newline: bool,
    /// At a punctuation mark behind a letter or digit.
    pub(crate) punctuation: bool,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(crate) fn open(path: &Path) -> Result<Tokenizer> {
        let bytes = std::fs::read(path).with_context(|| {
            format!(
                "reading {}; put the model's tokenizer.json (Hugging Face format) there",
                foreign_path(path)
            )
        })?;
        // The library panics on some files.
        let mut tokenizer =
            workers::catch("reading of the tokenizer", || tokenizers::Tokenizer::from_bytes(&bytes))?
                .map_err(|error| anyhow::anyhow!("{error}"))
                .with_context(|| format!("{} is not a Hugging Face tokenizer", foreign_path(path)))?;
        // A document is cut into contexts here, and by nothing else.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| anyhow::anyhow!("{error}"))?;
        let added = tokenizer.get_added_tokens_decoder();
        Ok(Tokenizer {
            places: Places::of(&tokenizer),
            longest_added_token: added.values().map(|token| token.content.len()).max().unwrap_or(0),
            tokenizer,
            path: path.to_owned(),
            hash: hex(&Sha256::digest(&bytes)),
        })
    }

    /// Where a text may be cut.
    pub(crate) fn places(&self) -> Places {
        self.places
    }

    /// Bytes of the longest token that is looked for before a text is split into words.
    pub(crate) fn longest_added_token(&self) -> usize {
        self.longest_added_token
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
        let (path, largest) = (foreign_path(&self.path), self.largest_id());
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
            Err(error) => bail!("{} failed on a document: {error}", foreign_path(&self.path)),
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

impl Places {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Places {
        match tokenizer.get_pre_tokenizer() {
            Some(splitting) if splits_at_spaces(splitting) => {
                Places { space: true, newline: true, punctuation: true }
            }
            Some(PreTokenizerWrapper::Metaspace(_)) | None => Places::of_merges(tokenizer),
            Some(_) => Places::default(),
        }
    }

    /// A text that is not split into words is one long word for byte pair encoding, which only ever joins what makes a
    /// token of its vocabulary. Where no token goes on with a space (`▁`), none can grow across the beginning of one.
    fn of_merges(tokenizer: &tokenizers::Tokenizer) -> Places {
        let ModelWrapper::BPE(_) = tokenizer.get_model() else { return Places::default() };
        let vocabulary = tokenizer.get_vocab(false);
        let only_begins = |mark: char| {
            let goes_on = |token: &String| token.trim_start_matches(mark).contains(mark);
            !vocabulary.keys().any(goes_on)
        };
        Places {
            space: only_begins('▁') && only_begins(' '), newline: only_begins('\n'), punctuation: false
        }
    }
}

/// Whether a word never continues past a space, whatever the text.
fn splits_at_spaces(splitting: &PreTokenizerWrapper) -> bool {
    match splitting {
        PreTokenizerWrapper::ByteLevel(bytes) => bytes.use_regex,
        PreTokenizerWrapper::Metaspace(marks) => marks.split,
        // Regular expressions differ; those of models let words begin with a space, and a cut is tried out.
        PreTokenizerWrapper::Split(_)
        | PreTokenizerWrapper::BertPreTokenizer(_)
        | PreTokenizerWrapper::Whitespace(_)
        | PreTokenizerWrapper::WhitespaceSplit(_) => true,
        PreTokenizerWrapper::Sequence(steps) => {
            let known = |step: &PreTokenizerWrapper| {
                !matches!(step, PreTokenizerWrapper::FixedLength(_) | PreTokenizerWrapper::UnicodeScripts(_))
            };
            let steps = steps.as_ref();
            steps.iter().all(known) && steps.iter().any(splits_at_spaces)
        }
        _ => false,
    }
}

/// The contents of a JSON file, if there is one.
pub(crate) fn json_file(path: &Path) -> Result<Option<serde_json::Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", foreign_path(path))),
    };
    let json = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", foreign_path(path)))?;
    Ok(Some(json))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
