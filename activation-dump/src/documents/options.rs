//! How files are read.

use clap::ValueEnum;

/// The format of standard input or of a `.bin` file, which the file itself does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputFormat {
    /// One document
    Text,
    /// One document per line
    Jsonl,
    /// Tokens of 2 bytes, little-endian
    U16,
    /// Tokens of 4 bytes, little-endian
    U32,
}

/// How files are read.
#[derive(Debug, Clone)]
pub(crate) struct ReadOptions {
    /// Key or column that holds the text in JSON lines and parquet.
    pub(crate) column: String,
    /// How to read what does not tell.
    pub(crate) format: Option<InputFormat>,
    /// The model's vocabulary size: every token in a token file must be smaller.
    pub(crate) vocabulary: usize,
    /// Tokens of a context.
    pub(crate) context: usize,
}
