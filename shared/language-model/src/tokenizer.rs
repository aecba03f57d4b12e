//! A model's `tokenizer.json`, checked against the model that it feeds, and the model's BOS.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokenizers::{ModelWrapper, PreTokenizerWrapper};

use crate::Error;
use crate::hash::hex;

/// Characters of a context that a message shows: a context of 128 tokens is about as long.
const SNIPPET: usize = 600;

/// Hugging Face's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    path: PathBuf,
    hash: String,
    places: Places,
    longest_added_token: usize,
}

/// Where words of a text begin, whatever stands around them: there it may be cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Places {
    /// At a space behind a letter, digit or sign.
    pub space: bool,
    /// At a line's end behind a letter or digit.
    pub newline: bool,
    /// At a punctuation mark behind a letter or digit.
    pub punctuation: bool,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// If it cannot be read, or is no tokenizer.
    pub fn open(path: &Path) -> Result<Tokenizer, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::NoTokenizer { path: path.into(), source })?;
        let refused =
            |error: tokenizers::Error| Error::NotATokenizer { path: path.into(), problem: error.to_string() };
        let text = std::str::from_utf8(&bytes).map_err(|error| refused(error.into()))?;
        // The library panics on some files. Its other functions that read one are generic: each would be compiled here again,
        // with all that a tokenizer's file may hold: a quarter of this crate.
        let mut tokenizer =
            workers::catch("reading of the tokenizer", || text.parse::<tokenizers::Tokenizer>())
                .map_err(Error::TokenizerDied)?
                .map_err(refused)?;
        // A document is cut into contexts by whoever asks for its tokens, and by nothing else.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(refused)?;
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
    pub fn places(&self) -> Places {
        self.places
    }

    /// Bytes of the longest token that is looked for before a text is split into words.
    pub fn longest_added_token(&self) -> usize {
        self.longest_added_token
    }

    /// SHA-256 of the file.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The largest id that it can give.
    pub fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).values().copied().max().unwrap_or(0)
    }

    /// Refuses a tokenizer with other tokens than the model's: `vocabulary` is the number of rows of the model's
    /// embedding, `bos` its BOS. `tokenizer_config.json` beside the file, where there is one, says what BOS is
    /// called, unless `bos_is_chosen` by the user.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, vocabulary: usize, bos: u32, bos_is_chosen: bool) -> Result<(), Error> {
        let (path, largest) = (&self.path, self.largest_id());
        let differs = |problem: String| Err(Error::OtherTokenizer { path: path.clone(), problem });
        if largest as usize >= vocabulary {
            return differs(format!("its largest id is {largest}, the model has {vocabulary} tokens"));
        }
        let Some(bos_text) = self.tokenizer.id_to_token(bos) else {
            return differs(format!("it has no token {bos}, the model's BOS; its largest id is {largest}"));
        };
        if let Some(expected) = self.declared_bos()?
            && expected != bos_text
            && !bos_is_chosen
        {
            return differs(format!(
                "token {bos}, the model's BOS, is {bos_text:?} there, but tokenizer_config.json says {expected:?}"
            ));
        }
        Ok(())
    }

    /// The id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The ids of a document, without any BOS.
    ///
    /// # Errors
    /// If the tokenizer fails on it.
    pub fn encode(&self, document: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.tokenizer.encode_fast(document, false);
        let failed = |error: tokenizers::Error| Error::Tokenize {
            path: self.path.clone(),
            problem: error.to_string(),
        };
        Ok(encoding.map_err(failed)?.get_ids().to_vec())
    }

    /// The text of one token as it stands within a text: with the space that some tokenizers take off a text's first token.
    /// Of a token that is part of a character, U+FFFD.
    pub fn text(&self, token: u32) -> String {
        let decoded = |tokens: &[u32]| self.tokenizer.decode(tokens, false).unwrap_or_default();
        let (once, twice) = (decoded(&[token]), decoded(&[token, token]));
        twice.strip_prefix(&once).filter(|second| second.ends_with(&once)).unwrap_or(&once).to_owned()
    }

    /// The text of a context, as far as a message has room for it.
    pub fn snippet(&self, context: &[u32]) -> String {
        match self.tokenizer.decode(context, false) {
            Ok(text) if text.chars().count() <= SNIPPET => text,
            Ok(text) => text.chars().take(SNIPPET).chain("…".chars()).collect(),
            Err(_) => format!("{context:?}"),
        }
    }

    /// `bos_token` of tokenizer_config.json, where there is one: a string, or an object with `content`.
    ///
    /// # Errors
    /// If the file cannot be read, or is not JSON.
    pub fn declared_bos(&self) -> Result<Option<String>, Error> {
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
///
/// # Errors
/// If it cannot be read, or is not JSON.
pub fn json_file(path: &Path) -> Result<Option<serde_json::Value>, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let json = serde_json::from_str(&text);
    json.map(Some).map_err(|source| Error::NotJson { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of these tokens, numbered in this order.
    fn tokenizer(decoder: serde_json::Value, tokens: &[&str]) -> Tokenizer {
        let vocabulary: serde_json::Map<_, _> =
            tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id.into())).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": tokens[0] },
        });
        std::fs::write(file.path(), json.to_string()).unwrap();
        Tokenizer::open(file.path()).unwrap()
    }

    #[test]
    fn a_token_has_the_text_that_it_has_within_others() {
        let marks = serde_json::json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false
        });
        let pieces = tokenizer(marks, &["▁a", "b", "aa", "▁"]);
        assert_eq!([0, 1, 2, 3].map(|token| pieces.text(token)), [" a", "b", "aa", " "]);
        let bytes = serde_json::json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true
        });
        let pieces = tokenizer(bytes, &["Ġa", "b", "Ã", "Ċ"]);
        assert_eq!([0, 1, 2, 3].map(|token| pieces.text(token)), [" a", "b", "\u{fffd}", "\n"]);
        assert_eq!(pieces.text(9), "", "there is no such token");
    }
}
