//! Entry points that read untrusted files, for tests that feed them files of all kinds.

use std::path::Path;

use anyhow::Result;
use language_model::Tokenizer;

use crate::documents::{self, Content, ReadOptions};
use crate::import;

/// Reads a file of text or tokens to its end; returns the number of documents that could be read.
///
/// # Errors
/// The error that a dump of it would report.
pub fn documents(path: &Path) -> Result<u64> {
    let options = ReadOptions { column: "text".to_owned(), format: None, vocabulary: 50_257, context: 8 };
    let mut sound = 0;
    for document in documents::open(path, &options)? {
        sound += u64::from(!matches!(document?.content, Content::Damaged(_)));
    }
    Ok(sound)
}

/// Reads activations of another program to their end; returns the number of rows.
///
/// # Errors
/// The error that an import of them would report.
pub fn import(source: &Path) -> Result<u64> {
    import::read(source)
}

/// Reads a `tokenizer.json` and tokenizes a text with it; returns the number of tokens.
///
/// # Errors
/// The error that a dump with it would report.
pub fn tokenizer(path: &Path) -> Result<usize> {
    let tokenizer = Tokenizer::open(path)?;
    tokenizer.declared_bos()?;
    tokenizer.check(50_257, 0, false)?;
    Ok(tokenizer.encode("The cat sat, e\u{301} 模型 <|endoftext|>\r\n\tx")?.len())
}
