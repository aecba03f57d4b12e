//! Files to be committed.

use std::path::PathBuf;

/// What a file holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Those of a file on this machine.
    File(PathBuf),
}

/// A file to be committed.
#[derive(Debug, Clone)]
pub struct Addition {
    /// Its path in the repository, with `/` between its parts.
    pub path: String,
    /// What it holds.
    pub content: Content,
}
