//! What tokens say.

use std::path::Path;

use anyhow::{Result, ensure};
use language_model::Tokenizer;
use terminal::foreign_path;

/// The text of each token, by its id.
#[derive(Debug)]
pub(crate) struct Texts(Vec<String>);

impl Texts {
    /// Of the tokenizer in the file `path`, which must be that with the hash `known`, where that is not empty.
    pub(crate) fn open(path: &Path, known: &str) -> Result<Texts> {
        let tokenizer = Tokenizer::open(path)?;
        ensure!(
            known.is_empty() || known == tokenizer.hash(),
            "{} is not the tokenizer that made the store's tokens: its SHA-256 is {}, and that one's {known}",
            foreign_path(path),
            tokenizer.hash()
        );
        Ok(Texts((0..=tokenizer.largest_id()).map(|token| tokenizer.text(token)).collect()))
    }

    /// The text of a token, if it has one.
    pub(crate) fn of(&self, token: u32) -> Option<&str> {
        self.0.get(token as usize).map(String::as_str)
    }

    /// The texts of all tokens, by their ids.
    pub(crate) fn all(&self) -> &[String] {
        &self.0
    }

    /// Of each token, whether it is a newline or punctuation.
    pub(crate) fn punctuation(&self) -> Vec<bool> {
        self.0.iter().map(|text| is_punctuation(text)).collect()
    }
}

/// Whether a text is white space with a newline in it, or has no letter, no digit and something to see.
fn is_punctuation(text: &str) -> bool {
    match text.trim() {
        "" => text.contains('\n'),
        seen => !seen
            .contains(|c: char| c.is_alphanumeric() || c.is_whitespace() || c == char::REPLACEMENT_CHARACTER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newlines_and_punctuation_are_told_from_words_and_blanks() {
        let found: Vec<&str> =
            ["\n", " \n\n", ",", " (", "…", "", " ", "a", " 1", "it's", "\u{fffd}", "<|end|>"]
                .into_iter()
                .filter(|text| is_punctuation(text))
                .collect();
        assert_eq!(found, ["\n", " \n\n", ",", " (", "…"]);
    }
}
