//! Arrow IPC streams of records that are rows `[T, d]` with their tokens `[T]`, as Hugging Face `datasets` keeps them.
//!
//! A stream is a sequence of messages: four bytes of ones, the length of the header, the header (a flatbuffer), and a body
//! of buffers. The first message is the schema, the others are record batches. A column has a node (its length and its
//! number of nulls) and buffers for itself, then those of the columns below it.

mod format;
mod scan;
mod table;
mod write;

pub use scan::{Batch, Found, TokenType, Wanted, scan};
pub use write::{Columns, StreamWriter};

/// The type of a row's numbers, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberType {
    /// float16
    Half,
    /// float32
    Single,
}

impl NumberType {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            NumberType::Half => 2,
            NumberType::Single => 4,
        }
    }
}

/// Why a stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system's error.
    #[error("it cannot be read")]
    Io(#[from] std::io::Error),
    /// It is not such a stream, or damaged. The text is a sentence about "it".
    #[error("{0}")]
    Unusable(String),
}

/// The result of reading a stream.
pub type Result<T> = std::result::Result<T, Error>;
