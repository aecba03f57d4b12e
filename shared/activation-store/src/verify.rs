//! Reads every byte of a store and names what is damaged.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::catalog::{self, Catalog};
use crate::codec::{self, CHECKSUM, ShardIndex};
use crate::files::{Files, Folder};
use crate::journal::{self, Entry, ShardFile};
use crate::paths::{JOURNAL, MANIFEST};
use crate::resumption;
use crate::{Result, Store, StoreError, StoreSpec, address, bucket, paths};

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Everything that is damaged; empty for a sound store.
    pub problems: Vec<Problem>,
}

/// A damaged or missing part of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, relative to the store's folder.
    pub file: String,
    /// The damaged inner chunk of a shard, if one can be named.
    pub chunk: Option<usize>,
    /// What is wrong.
    pub what: String,
}

/// A file that must have a recorded size and checksum.
struct Recorded {
    name: String,
    bytes: u64,
    crc32c: u32,
    /// Of the checksum at the end, if that tells the file from others of its length.
    tail_crc32c: Option<u32>,
    /// The bytes of one decoded chunk, the chunks and those of them with rows, if it is a shard.
    shard: Option<(usize, usize, usize)>,
}

/// Checks every byte of the store in `dir` against the recorded checksums; `progress` is called with the
/// bytes read so far, from several threads.
///
/// # Errors
/// Only if there is no finished store. Damage is not an error but a [`Problem`].
pub fn verify(dir: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<VerifyReport> {
    let always = |bytes| {
        progress(bytes);
        true
    };
    Ok(verify_while(dir, &always)?.expect("it was never told to stop"))
}

/// [`verify`] for as long as `go_on`, which is called with the bytes read so far, says so; `None` if it did not to the end. The
/// files that are being read are read to their ends.
///
/// # Errors
/// As [`verify`].
pub fn verify_while(dir: &Path, go_on: &(dyn Fn(u64) -> bool + Sync)) -> Result<Option<VerifyReport>> {
    match address::is_bucket(dir) {
        true => {
            let files = bucket::files(dir)?;
            verify_files(&*files, go_on, &|| Catalog::read(&*files).map(drop))
        }
        false => verify_files(&Folder::new(dir), go_on, &|| Store::open(dir).map(drop)),
    }
}

/// [`verify`] of the store in `files`.
#[cfg(all(feature = "bucket", test))]
pub(crate) fn verify_in(files: &dyn Files) -> Result<VerifyReport> {
    Ok(verify_files(files, &|_| true, &|| Catalog::read(files).map(drop))?
        .expect("it was never told to stop"))
}

/// [`verify_while`] of a store whose records `fit` together.
fn verify_files(
    files: &dyn Files,
    go_on: &(dyn Fn(u64) -> bool + Sync),
    fit: &dyn Fn() -> Result<()>,
) -> Result<Option<VerifyReport>> {
    let attributes = catalog::read_attributes(files);
    let manifest = catalog::read_manifest(files);
    let spec = match (attributes.as_ref(), &manifest) {
        (Ok(attributes), _) if !attributes.complete => {
            let contexts_done = resumption::contexts_done(files, &attributes.specification);
            return Err(StoreError::Incomplete { dir: files.place().to_path_buf(), contexts_done });
        }
        (Ok(attributes), _) => Some(&attributes.specification),
        (Err(_), Ok(_)) => None,
        // Nothing vouches for anything here.
        (Err(_), Err(_)) => return Err(attributes.expect_err("just matched")),
    };
    let mut report = VerifyReport { files: 1, bytes: 0, problems: Vec::new() };
    let mut problem = |name: &str, error: &StoreError| {
        report.problems.push(Problem { file: name.to_owned(), chunk: None, what: sentence(error) });
    };
    let mut small_files = Vec::new();
    match &manifest {
        Ok((manifest, bytes)) => {
            report.bytes = *bytes;
            small_files.extend(manifest.files.iter().map(|file| Recorded {
                name: file.name.clone(),
                bytes: file.bytes,
                crc32c: file.crc32c,
                tail_crc32c: None,
                shard: None,
            }));
        }
        Err(error) => problem(MANIFEST, error),
    }
    let mut records = journal_records(files, spec);
    records.extend(small_files);

    let bytes = AtomicU64::new(report.bytes);
    let found: Option<Vec<Vec<Problem>>> = records
        .par_iter()
        .map(|record| {
            let (read, problems) = check(files, record);
            go_on(bytes.fetch_add(read, Ordering::Relaxed) + read).then_some(problems)
        })
        .collect();
    let Some(found) = found else { return Ok(None) };
    report.files += records.len() as u64;
    report.bytes = bytes.into_inner();
    report.problems.extend(found.into_iter().flatten());
    if report.problems.is_empty()
        && let Err(error) = fit()
    {
        // Every byte is as recorded, and yet the records do not fit together.
        report.problems.push(Problem { file: JOURNAL.to_owned(), chunk: None, what: error.to_string() });
    }
    Ok(Some(report))
}

/// The shards and token chunks that the journal's undamaged lines record.
fn journal_records(files: &dyn Files, spec: Option<&StoreSpec>) -> Vec<Recorded> {
    // If it cannot be read, the manifest's check says so.
    let journal = files.read(JOURNAL).unwrap_or_default();
    let mut records = Vec::new();
    let mut tokens = BTreeMap::new();
    for line in journal.split_inclusive(|&byte| byte == b'\n') {
        match journal::parse_line::<Entry>(line) {
            Some((Entry::Shard { shard, rows, activations, origin }, _)) => {
                let layout = spec.map(|spec| (spec.layout, spec.row_bytes(), spec.origin_bytes()));
                let mut add = |name, file: ShardFile, row_bytes: Option<usize>| {
                    let shard = layout.zip(row_bytes).map(|((layout, ..), row_bytes)| {
                        let present = (rows as usize).div_ceil(layout.chunk_rows);
                        (layout.chunk_rows * row_bytes, layout.chunks_per_shard(), present)
                    });
                    let ShardFile { bytes, crc32c, .. } = file;
                    records.push(Recorded { name, bytes, crc32c, tail_crc32c: None, shard });
                };
                add(paths::activations(shard), activations, layout.map(|(_, row_bytes, _)| row_bytes));
                add(paths::origin(shard), origin, layout.map(|(.., origin_bytes)| origin_bytes));
            }
            Some((Entry::Window { tokens: files, .. }, _)) => {
                tokens.extend(files.into_iter().map(|file| (file.chunk, file)));
            }
            None => {}
        }
    }
    records.extend(tokens.into_values().map(|file| Recorded {
        name: paths::tokens(file.chunk),
        bytes: file.bytes,
        crc32c: file.crc32c,
        tail_crc32c: file.tail_crc32c,
        shard: None,
    }));
    records
}

/// Reads one file: the bytes read and what is wrong with it.
fn check(files: &dyn Files, record: &Recorded) -> (u64, Vec<Problem>) {
    let problem = |chunk, what| Problem { file: record.name.clone(), chunk, what };
    let content = match files.read(&record.name) {
        Ok(content) => content,
        Err(error) => return (0, vec![problem(None, format!("it cannot be read ({error})"))]),
    };
    let read = content.len() as u64;
    if read != record.bytes {
        return (read, vec![problem(None, format!("it has {read} bytes, recorded are {}", record.bytes))]);
    }
    let found = crc32c::crc32c(&content);
    if found == record.crc32c {
        let tail = || crc32c::crc32c(&content[content.len().saturating_sub(CHECKSUM)..]);
        let another = record.tail_crc32c.is_some_and(|recorded| recorded != tail());
        return (
            read,
            another.then(|| problem(None, journal::ANOTHER_CHUNK.to_owned())).into_iter().collect(),
        );
    }
    let mut problems = Vec::new();
    if let Some((chunk_bytes, chunks, present)) = record.shard {
        match ShardIndex::parse(&content, chunks, present) {
            Ok(ShardIndex(index)) => {
                let mut planes = vec![0; chunk_bytes];
                for (chunk, range) in index.into_iter().enumerate() {
                    let Some(range) = range else { continue };
                    let stored = &content[range.start as usize..range.end as usize];
                    let decoded =
                        zstd::bulk::Decompressor::new().map_err(|error| error.to_string()).and_then(
                            |mut decompressor| codec::decode_chunk(&mut decompressor, stored, &mut planes),
                        );
                    if let Err(what) = decoded {
                        problems.push(problem(Some(chunk), what));
                    }
                }
            }
            Err(what) => problems.push(problem(None, what)),
        }
    }
    if problems.is_empty() {
        let what = format!("its crc32c is {found:08x}, recorded is {:08x}", record.crc32c);
        problems.push(problem(None, what));
    }
    (read, problems)
}

/// The error without the file's name, where it has a place of its own.
fn sentence(error: &StoreError) -> String {
    match error {
        StoreError::Damaged { what, .. } => what.clone(),
        StoreError::Io { action, source, .. } => format!("cannot {action} it: {source}"),
        other => other.to_string(),
    }
}
