//! The journal, which records what is safely on disk, and the manifest of the small files.
//!
//! Both consist of lines: eight hexadecimal digits (the crc32c of what follows), a space, a JSON object, a newline. A line
//! that was torn by a crash, or damaged, fails its own checksum.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::disk::Written;
use crate::{Result, StoreError};

/// What is wrong with a chunk file that is whole, but not the one that is recorded.
pub(crate) const ANOTHER_CHUNK: &str =
    "it is not the chunk that the journal records, but another of its length";

/// One shard of a store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ShardRecord {
    pub(crate) rows: u64,
    pub(crate) activations: ShardFile,
    pub(crate) origin: ShardFile,
}

/// A file that the journal vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShardFile {
    pub(crate) bytes: u64,
    /// Of the whole file.
    pub(crate) crc32c: u32,
    /// Of the last chunk's checksum and the index: names the shard without reading all of it.
    pub(crate) tail_crc32c: u32,
}

/// A chunk file of the `tokens` array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenFile {
    /// The chunk's number.
    pub(crate) chunk: u64,
    pub(crate) bytes: u64,
    /// Of the whole file. It ends with its own checksum, so this depends on nothing but its length once that fits.
    pub(crate) crc32c: u32,
    /// Of that checksum: names the chunk without reading all of it. Stores of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tail_crc32c: Option<u32>,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Entry {
    /// The files of one shard have their final names.
    Shard {
        /// Its number.
        shard: u64,
        /// Rows in it.
        rows: u64,
        activations: ShardFile,
        origin: ShardFile,
    },
    /// All shards of a window are there: a dump can be resumed here.
    Window {
        /// Its number.
        window: u64,
        /// Rows of this and all earlier windows.
        rows: u64,
        /// Contexts of which every row lies in this or an earlier window.
        contexts: u64,
        /// Positions of the next context that lie in this or an earlier window.
        positions: u64,
        /// Values clipped so far.
        clipped: u64,
        /// The chunks of `tokens` written in this window; a later line about the same chunk replaces an earlier one.
        tokens: Vec<TokenFile>,
        /// [`crate::statistics::RunningStatistics::to_hex`] over all rows so far.
        statistics: String,
    },
}

/// The manifest: every file that is not in the journal, and the journal.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) files: Vec<ManifestFile>,
}

/// A file of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ManifestFile {
    /// Relative to the store, with `/`.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
}

impl Manifest {
    pub(crate) fn add(&mut self, name: &str, written: Written) {
        self.files.push(ManifestFile { name: name.to_owned(), bytes: written.bytes, crc32c: written.crc32c });
    }
}

/// The line that records `value`.
pub(crate) fn line(value: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_string(value).expect("plain data has a JSON form");
    format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())).into_bytes()
}

/// The value of the line at the start of `bytes` and the line's length; `None` if it is torn or damaged.
pub(crate) fn parse_line<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    let (checksum, json) = text.split_at_checked(9)?;
    if checksum != format!("{:08x} ", crc32c::crc32c(json.as_bytes())) {
        return None;
    }
    Some((serde_json::from_str(json).ok()?, end + 1))
}

/// All entries of a finished store's journal.
pub(crate) fn parse_journal(path: &Path, bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (entry, length) = parse_line(rest).ok_or_else(|| {
            StoreError::damaged(path, format!("line {} fails its checksum", entries.len() + 1))
        })?;
        entries.push(entry);
        rest = &rest[length..];
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_its_checksum_and_json() {
        let entry = TokenFile { chunk: 3, bytes: 10, crc32c: 7, tail_crc32c: None };
        let line = line(&entry);
        assert_eq!(line, b"4a87d410 {\"chunk\":3,\"bytes\":10,\"crc32c\":7}\n");
        assert_eq!(parse_line(&line), Some((entry, line.len())));
        for length in 0..line.len() {
            assert_eq!(parse_line::<TokenFile>(&line[..length]), None);
        }
        for bit in 0..8 * line.len() {
            let mut flipped = line.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_line::<TokenFile>(&flipped), None, "bit {bit}");
        }
    }
}
