//! What a finished store consists of: its manifest and journal, checked and parsed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::codec::CHECKSUM;
use crate::files::Files;
use crate::journal::{self, Entry, Manifest, ShardRecord, TokenFile};
use crate::metadata::{self, Attributes, ZARR_JSON};
use crate::paths::{JOURNAL, MANIFEST, SMALL_FILES};
use crate::resumption;
use crate::statistics::Statistics;
use crate::{Result, StoreError, paths};

/// Every file of a store, with what is recorded about it.
#[derive(Debug, Clone)]
pub(crate) struct Catalog {
    pub(crate) attributes: Attributes,
    pub(crate) statistics: Statistics,
    pub(crate) shards: Vec<ShardRecord>,
    /// By chunk number.
    pub(crate) tokens: Vec<TokenFile>,
    /// Bytes of the manifest and of the files in it.
    pub(crate) small_bytes: u64,
}

/// A file that is read as a whole: a shard of `origin` or a chunk of `tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SmallFile {
    /// Relative to the store.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
    /// Of so many bytes at the end, which tell it from others of its length.
    pub(crate) tail: Option<(usize, u32)>,
}

impl SmallFile {
    pub(crate) fn origin(shard: u64, record: &ShardRecord) -> SmallFile {
        let file = record.origin;
        SmallFile { name: paths::origin(shard), bytes: file.bytes, crc32c: file.crc32c, tail: None }
    }

    pub(crate) fn tokens(file: &TokenFile) -> SmallFile {
        SmallFile {
            name: paths::tokens(file.chunk),
            bytes: file.bytes,
            crc32c: file.crc32c,
            tail: file.tail_crc32c.map(|crc32c| (CHECKSUM, crc32c)),
        }
    }
}

impl Catalog {
    /// Reads and checks the small files of a store.
    pub(crate) fn read(files: &dyn Files) -> Result<Catalog> {
        let attributes = read_attributes(files)?;
        if !attributes.complete {
            let contexts_done = resumption::contexts_done(files, &attributes.specification);
            return Err(StoreError::Incomplete { dir: files.place().to_path_buf(), contexts_done });
        }
        let (manifest, manifest_bytes) = read_manifest(files)?;
        let mut small_bytes = manifest_bytes;
        let mut contents = Vec::with_capacity(SMALL_FILES.len());
        for (number, name) in SMALL_FILES.into_iter().enumerate() {
            contents.push(read_checked(files, name, &manifest, number)?);
            small_bytes += contents[number].len() as u64;
        }
        let content = |name: &str| {
            let number = SMALL_FILES.iter().position(|file| *file == name).expect("a small file's name");
            (files.place().join(name), &contents[number][..])
        };

        let spec = &attributes.specification;
        expect_json(content("activations/zarr.json"), &metadata::activations(spec, attributes.rows))?;
        expect_json(content("origin/zarr.json"), &metadata::origin(spec, attributes.rows))?;
        expect_json(content("tokens/zarr.json"), &metadata::tokens(spec, attributes.contexts))?;
        let statistics = Statistics {
            rows: attributes.rows,
            mean: floats(content("stats/mean/c/0"), spec.width)?,
            variance: floats(content("stats/variance/c/0"), spec.width)?,
            mean_norm: floats(content("stats/mean_norm/c"), 1)?[0],
        };
        let (journal_path, journal) = content(JOURNAL);
        let entries = journal::parse_journal(&journal_path, journal)?;
        let (shards, tokens) = take_apart(&journal_path, &attributes, entries)?;
        Ok(Catalog { statistics, shards, tokens, small_bytes, attributes })
    }

    /// Checks that every file that is not read here is there, with the size that is recorded.
    pub(crate) fn check_sizes(&self, files: &dyn Files) -> Result<()> {
        let shard = |(number, shard): (usize, &ShardRecord)| {
            let number = number as u64;
            [
                (paths::activations(number), shard.activations.bytes),
                (paths::origin(number), shard.origin.bytes),
            ]
        };
        let shards = self.shards.iter().enumerate().flat_map(shard);
        let tokens = self.tokens.iter().map(|file| (paths::tokens(file.chunk), file.bytes));
        for (name, recorded) in shards.chain(tokens) {
            let path = files.place().join(&name);
            let found = files.size(&name).map_err(StoreError::io("find", &path))?;
            if found != recorded {
                let what = format!("it has {found} bytes, the journal records {recorded}");
                return Err(StoreError::damaged(&path, what));
            }
        }
        Ok(())
    }

    /// Bytes of all files.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let shards = self.shards.iter().map(|shard| shard.activations.bytes + shard.origin.bytes);
        self.small_bytes + shards.sum::<u64>() + self.tokens.iter().map(|file| file.bytes).sum::<u64>()
    }

    /// Bytes of the `activations` shards.
    pub(crate) fn activation_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.activations.bytes).sum()
    }
}

/// The group's attributes.
pub(crate) fn read_attributes(files: &dyn Files) -> Result<Attributes> {
    match files.read(ZARR_JSON) {
        Ok(text) => metadata::parse_attributes(files.place(), &text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(StoreError::NotFound(files.place().to_path_buf()))
        }
        Err(error) => Err(StoreError::io("read", &files.place().join(ZARR_JSON))(error)),
    }
}

/// The manifest and the bytes of its file.
pub(crate) fn read_manifest(files: &dyn Files) -> Result<(Manifest, u64)> {
    let path = files.place().join(MANIFEST);
    let line = files.read(MANIFEST).map_err(StoreError::io("read", &path))?;
    match journal::parse_line::<Manifest>(&line) {
        Some((manifest, length)) if length == line.len() => {
            let names = manifest.files.iter().map(|file| &file.name[..]);
            if names.eq(SMALL_FILES) {
                Ok((manifest, length as u64))
            } else {
                Err(StoreError::damaged(&path, "it does not list the files of a store"))
            }
        }
        _ => Err(StoreError::damaged(&path, "it fails its checksum")),
    }
}

/// The content of the small file `number`, if it is what the manifest records.
fn read_checked(files: &dyn Files, name: &str, manifest: &Manifest, number: usize) -> Result<Vec<u8>> {
    let path = files.place().join(name);
    let content = files.read(name).map_err(StoreError::io("read", &path))?;
    let recorded = &manifest.files[number];
    if content.len() as u64 != recorded.bytes {
        let what = format!("it has {} bytes, the manifest records {}", content.len(), recorded.bytes);
        return Err(StoreError::damaged(&path, what));
    }
    let found = crc32c::crc32c(&content);
    if found != recorded.crc32c {
        let what = format!("its crc32c is {found:08x}, the manifest records {:08x}", recorded.crc32c);
        return Err(StoreError::damaged(&path, what));
    }
    Ok(content)
}

fn expect_json((path, text): (PathBuf, &[u8]), expected: &Value) -> Result<()> {
    match serde_json::from_slice::<Value>(text) {
        Ok(found) if found == *expected => Ok(()),
        _ => Err(StoreError::damaged(&path, "it is not the array that the store's attributes describe")),
    }
}

fn floats((path, bytes): (PathBuf, &[u8]), count: usize) -> Result<Vec<f64>> {
    if bytes.len() != 8 * count {
        return Err(StoreError::damaged(
            &path,
            format!("it has {} bytes, expected {}", bytes.len(), 8 * count),
        ));
    }
    Ok(bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
}

/// The shards and token chunks of the journal, which must be those of `attributes`.
fn take_apart(
    path: &Path,
    attributes: &Attributes,
    entries: Vec<Entry>,
) -> Result<(Vec<ShardRecord>, Vec<TokenFile>)> {
    let spec = &attributes.specification;
    let damaged = |what: String| StoreError::damaged(path, what);
    let mut shards = Vec::new();
    let mut tokens: Vec<TokenFile> = Vec::new();
    let mut rows = 0;
    let mut end = (0, 0, 0);
    for entry in entries {
        match entry {
            Entry::Shard { shard, rows: in_shard, activations, origin } => {
                let full = spec.layout.shard_rows as u64;
                if shard != shards.len() as u64 || rows % full != 0 || in_shard == 0 || in_shard > full {
                    return Err(damaged(format!(
                        "shard {shard} with {in_shard} rows cannot follow {rows} rows"
                    )));
                }
                rows += in_shard;
                shards.push(ShardRecord { rows: in_shard, activations, origin });
            }
            Entry::Window { rows, contexts, positions, tokens: files, .. } => {
                end = (rows, contexts, positions);
                for file in files {
                    match usize::try_from(file.chunk) {
                        Ok(chunk) if chunk < tokens.len() => tokens[chunk] = file,
                        Ok(chunk) if chunk == tokens.len() => tokens.push(file),
                        _ => {
                            return Err(damaged(format!(
                                "chunk {} of the tokens is out of turn",
                                file.chunk
                            )));
                        }
                    }
                }
            }
        }
    }
    let chunks = attributes.contexts.div_ceil(spec.token_chunk_contexts() as u64);
    if end != (rows, attributes.contexts, 0)
        || rows != attributes.rows
        || tokens.len() as u64 != chunks
        || rows == 0
    {
        return Err(damaged(format!(
            "it records {rows} rows in {} shards and {} chunks of tokens; the attributes say {} rows of {} contexts",
            shards.len(),
            tokens.len(),
            attributes.rows,
            attributes.contexts
        )));
    }
    Ok((shards, tokens))
}

/// Checks of every chunk of the `tokens` array that it has the size and, where it is recorded, the checksum of this chunk.
pub(crate) fn check_token_files(dir: &Path, tokens: &[TokenFile]) -> Result<()> {
    for recorded in tokens {
        let path = paths::check_size(dir, &paths::tokens(recorded.chunk), recorded.bytes)?;
        let Some(tail_crc32c) = recorded.tail_crc32c else { continue };
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        let mut tail = [0; CHECKSUM];
        let start = recorded.bytes.checked_sub(CHECKSUM as u64);
        let start = start.ok_or_else(|| StoreError::damaged(&path, "it is too short for a checksum"))?;
        file.read_exact_at(&mut tail, start).map_err(StoreError::io("read", &path))?;
        if crc32c::crc32c(&tail) != tail_crc32c {
            return Err(StoreError::damaged(&path, journal::ANOTHER_CHUNK));
        }
    }
    Ok(())
}
