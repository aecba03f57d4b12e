//! What a store's folder contains before writing begins.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use crate::disk::{UNFINISHED, holds_unfinished_only};
use crate::files::Files;
use crate::journal::{self, Entry, ShardRecord, TokenFile};
use crate::lock::{LOCK, is_lock};
use crate::metadata::{Attributes, ZARR_JSON, parse_attributes};
use crate::paths::JOURNAL;
use crate::shard::Shard;
use crate::statistics::RunningStatistics;
use crate::{Result, StoreError, StoreSpec, codec, paths};

/// The attributes of the store in `dir`; `None` if the folder is absent or holds no file.
pub(crate) fn existing_attributes(dir: &Path) -> Result<Option<Attributes>> {
    let path = dir.join(ZARR_JSON);
    match fs::read(&path) {
        Ok(text) => parse_attributes(dir, &text).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let entries = match fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(StoreError::io("read", dir)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(StoreError::io("read", dir))?;
                // A writer that was stopped before its first file had a name leaves these.
                let lock = entry.file_name() == LOCK && is_lock(&entry.path());
                let unfinished = entry.file_name() == UNFINISHED && holds_unfinished_only(&entry.path())?;
                if !lock && !unfinished {
                    return Err(StoreError::NotAStore(dir.to_path_buf()));
                }
            }
            Ok(None)
        }
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}

/// `attributes`, which are those of the store at `place`, if they are of the dump `spec`; `None` for a store of another dump that was
/// stopped before it stored anything.
///
/// # Errors
/// [`StoreError::Mismatch`] for a store of another dump that holds something.
pub(crate) fn of_this_dump(
    attributes: Attributes,
    spec: &StoreSpec,
    place: &Path,
    holds_nothing: impl FnOnce() -> Result<bool>,
) -> Result<Option<Attributes>> {
    let differences = attributes.specification.differences(spec);
    if differences.is_empty() {
        return Ok(Some(attributes));
    }
    if !attributes.complete && holds_nothing()? {
        return Ok(None);
    }
    Err(StoreError::Mismatch { dir: place.to_path_buf(), differences })
}

/// Whether nothing is in the unfinished store `dir` but its metadata: no line of a journal, no file of an array.
pub(crate) fn holds_nothing(dir: &Path) -> Result<bool> {
    let error = StoreError::io("read", dir);
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(error)?;
    for entry in entries {
        let is_nothing = match entry.file_name().to_str() {
            Some(ZARR_JSON) => true,
            Some(LOCK) => is_lock(&entry.path()),
            Some(UNFINISHED) => holds_unfinished_only(&entry.path())?,
            Some(JOURNAL) => entry.metadata().is_ok_and(|journal| journal.len() == 0),
            _ => false,
        };
        if !is_nothing {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where an interrupted dump goes on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resumption {
    /// Bytes of the journal that stay; what follows is redone.
    pub(crate) journal_bytes: u64,
    /// Windows finished.
    pub(crate) windows: u64,
    /// Shards finished.
    pub(crate) shards: u64,
    /// Rows finished.
    pub(crate) rows: u64,
    /// Contexts finished.
    pub(crate) contexts: u64,
    /// Finished positions of the context after them.
    pub(crate) positions: usize,
    /// Values clipped.
    pub(crate) clipped: u64,
    /// Statistics of the finished rows.
    pub(crate) statistics: RunningStatistics,
    /// Bytes of the finished shards' activations.
    pub(crate) activation_bytes: u64,
    /// Bytes of the finished shards.
    pub(crate) shard_bytes: u64,
    /// What was damaged: one sentence for each file. The dump resumes before it.
    pub(crate) damage: Vec<String>,
}

/// How closely the files of finished windows are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Whether they exist, with the size that the journal records.
    Sizes,
    #[cfg(feature = "bucket")]
    /// Every byte of what is next to the end, sizes elsewhere: whoever stores the files vouches for their bytes.
    End,
    /// Every byte.
    Bytes,
}

impl Resumption {
    /// Reads the journal, and finds the end of the last window up to which every file is sound. Resuming from there gives
    /// the same bytes as a dump that was never interrupted. Changes nothing on disk.
    ///
    /// # Errors
    /// Errors of the operating system. Damage is not an error, since running the model again repairs it.
    pub(crate) fn read(files: &dyn Files, spec: &StoreSpec, look: Look) -> Result<Self> {
        let path = files.place().join(JOURNAL);
        let bytes = files.journal().map_err(StoreError::io("read", &path))?;
        let mut recorded = Recorded::of(&bytes, spec);
        recorded.give_up_damaged_shards(files, spec, look)?;
        if look != Look::Sizes {
            recorded.give_up_damaged_tokens(files, spec, look)?;
        }
        let Recorded { shards, windows, damage, .. } = recorded;
        let Some(last) = windows.last() else { return Ok(Self::beginning(spec, damage)) };
        let shards = &shards[..last.shards];
        let line = journal::parse_line::<Entry>(&bytes[last.line.clone()]);
        let Some((Entry::Window { rows, contexts, positions, clipped, statistics, .. }, _)) = line else {
            unreachable!("the line was read before");
        };
        let damaged = || StoreError::damaged(&path, "the statistics of a window are not a store's");
        Ok(Resumption {
            journal_bytes: last.line.end as u64,
            windows: windows.len() as u64,
            shards: shards.len() as u64,
            rows,
            contexts,
            positions: positions as usize,
            clipped,
            statistics: RunningStatistics::from_hex(&statistics, spec.width).ok_or_else(damaged)?,
            activation_bytes: shards.iter().map(|shard| shard.activations.bytes).sum(),
            shard_bytes: shards.iter().map(|shard| shard.activations.bytes + shard.origin.bytes).sum(),
            damage,
        })
    }

    fn beginning(spec: &StoreSpec, damage: Vec<String>) -> Self {
        Resumption {
            journal_bytes: 0,
            windows: 0,
            shards: 0,
            rows: 0,
            contexts: 0,
            positions: 0,
            clipped: 0,
            statistics: RunningStatistics::new(spec.width),
            activation_bytes: 0,
            shard_bytes: 0,
            damage,
        }
    }

    /// The tokens of the finished contexts that share their chunk of `tokens` with contexts to come.
    pub(crate) fn tail_tokens(&self, files: &dyn Files, spec: &StoreSpec) -> Result<Vec<u32>> {
        tail_tokens(files, spec, self.contexts)
    }
}

fn tail_tokens(files: &dyn Files, spec: &StoreSpec, contexts: u64) -> Result<Vec<u32>> {
    let per_chunk = spec.token_chunk_contexts() as u64;
    if contexts.is_multiple_of(per_chunk) {
        return Ok(Vec::new());
    }
    let tokens = (contexts % per_chunk) as usize * spec.context_length;
    let name = paths::tokens(contexts / per_chunk);
    let path = files.place().join(&name);
    let stored = files.read(&name).map_err(StoreError::io("read", &path))?;
    codec::decode_tokens(&path, &stored, spec, 0..tokens)
}

/// What a journal records.
struct Recorded {
    shards: Vec<ShardRecord>,
    /// The windows that a dump can resume from.
    windows: Vec<RecordedWindow>,
    damage: Vec<String>,
}

struct RecordedWindow {
    /// Where its line is in the journal.
    line: Range<usize>,
    /// Shards of this and all earlier windows.
    shards: usize,
    /// Contexts of this and all earlier windows.
    contexts: u64,
    /// Token chunks written in it, and in the windows since the last one that a dump can resume from.
    tokens: Vec<TokenFile>,
}

impl Recorded {
    /// Reads up to the first line that is torn or damaged.
    fn of(bytes: &[u8], spec: &StoreSpec) -> Recorded {
        let mut recorded = Recorded { shards: Vec::new(), windows: Vec::new(), damage: Vec::new() };
        let (mut at, mut lines, mut tokens) = (0, 0, Vec::new());
        while let Some((entry, length)) = journal::parse_line::<Entry>(&bytes[at..]) {
            let line = at..at + length;
            (at, lines) = (line.end, lines + 1);
            match entry {
                Entry::Shard { rows, activations, origin, .. } => {
                    recorded.shards.push(ShardRecord { rows, activations, origin });
                }
                Entry::Window { contexts, positions, .. }
                    if contexts > spec.contexts || positions >= spec.context_length as u64 =>
                {
                    recorded.damage.push(format!("line {lines} of the {JOURNAL} is not of this dump"));
                    return recorded;
                }
                Entry::Window { rows, contexts, tokens: written, .. } => {
                    tokens.extend(written);
                    // A short window is the last one of a dump; only if no context can follow does it stand.
                    if rows % spec.layout.window_rows as u64 == 0 || contexts == spec.contexts {
                        let (shards, tokens) = (recorded.shards.len(), std::mem::take(&mut tokens));
                        recorded.windows.push(RecordedWindow { line, shards, contexts, tokens });
                    }
                }
            }
        }
        // A line that was cut short by a crash is the last one.
        let rest = bytes[at..].split_inclusive(|&byte| byte == b'\n').skip(1);
        if rest.into_iter().any(|line| journal::parse_line::<Entry>(line).is_some()) {
            recorded.damage.push(format!("line {} of the {JOURNAL} fails its checksum", lines + 1));
        }
        recorded
    }

    /// Gives up the windows from the first damaged shard on.
    fn give_up_damaged_shards(&mut self, files: &dyn Files, spec: &StoreSpec, look: Look) -> Result<()> {
        let shards = self.windows.last().map_or(0, |window| window.shards);
        let found: Vec<Option<String>> = (0..2 * shards)
            .into_par_iter()
            .map(|number| {
                let (shard, record) = (number as u64 / 2, &self.shards[number / 2]);
                let (name, file) = match number % 2 {
                    0 => (paths::activations(shard), &record.activations),
                    _ => (paths::origin(shard), &record.origin),
                };
                let found = problem(files, &name, file.bytes, file.crc32c, look)?;
                if look != Look::Bytes || found.is_some() {
                    return Ok(found);
                }
                // Each chunk ends with its own checksum, so the one of the file does not tell one shard from another.
                match Shard::open(files.place(), &name, file, spec, record.rows) {
                    Err(StoreError::Damaged { what, .. }) => Ok(Some(format!("{name}: {what}"))),
                    opened => opened.map(|_| None),
                }
            })
            .collect::<Result<_>>()?;
        if let Some(first) = found.iter().position(Option::is_some) {
            self.windows.retain(|window| window.shards <= first / 2);
        }
        self.damage.extend(found.into_iter().flatten());
        Ok(())
    }

    /// Gives up the windows from the first damaged chunk of tokens on.
    fn give_up_damaged_tokens(&mut self, files: &dyn Files, spec: &StoreSpec, look: Look) -> Result<()> {
        let per_chunk = spec.token_chunk_contexts() as u64;
        loop {
            let contexts = self.windows.last().map_or(0, |window| window.contexts);
            // What was written last of each chunk that is full by then; nobody writes that again.
            let latest: BTreeMap<u64, TokenFile> = self
                .windows
                .iter()
                .flat_map(|window| &window.tokens)
                .map(|file| (file.chunk, *file))
                .collect();
            let full = latest.into_values().filter(|file| file.chunk < contexts / per_chunk);
            let mut damaged = None;
            for file in full {
                let name = paths::tokens(file.chunk);
                if let Some(what) = problem(files, &name, file.bytes, file.crc32c, look)? {
                    damaged = Some((file.chunk, what));
                    break;
                }
            }
            // The chunk that is not full may have been written again since, by a window that is not finished: its own
            // checksum tells.
            if damaged.is_none() {
                damaged = match tail_tokens(files, spec, contexts) {
                    Ok(_) => None,
                    Err(StoreError::Damaged { what, .. }) => Some((contexts / per_chunk, what)),
                    Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                        Some((contexts / per_chunk, "it is gone".to_owned()))
                    }
                    Err(error) => return Err(error),
                }
                .map(|(chunk, what)| (chunk, format!("{}: {what}", paths::tokens(chunk))));
            }
            let Some((chunk, what)) = damaged else { return Ok(()) };
            self.damage.push(what);
            self.windows.retain(|window| window.contexts <= chunk * per_chunk);
        }
    }
}

/// What is wrong with a file.
fn problem(files: &dyn Files, name: &str, bytes: u64, crc32c: u32, look: Look) -> Result<Option<String>> {
    let path = files.place().join(name);
    let found = match files.size(name) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some(format!("{name}: it is gone"))),
        Err(error) => return Err(StoreError::io("find", &path)(error)),
    };
    if found != bytes {
        return Ok(Some(format!("{name}: it has {found} bytes, recorded are {bytes}")));
    }
    if look != Look::Bytes {
        return Ok(None);
    }
    let found = files.checksum(name).map_err(StoreError::io("read", &path))?;
    Ok((found != crc32c).then(|| format!("{name}: its crc32c is {found:08x}, recorded is {crc32c:08x}")))
}

/// Contexts of an unfinished store that are safe; 0 if its journal cannot be read.
pub(crate) fn contexts_done(files: &dyn Files, spec: &StoreSpec) -> u64 {
    Resumption::read(files, spec, Look::Sizes).map_or(0, |resumption| resumption.contexts)
}
