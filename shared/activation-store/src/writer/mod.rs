//! Writes a store: rows are rounded into a window, and two threads behind it shuffle, compress and commit.
//!
//! Memory is bounded by the window and about two shards. The buffers of rows are reused, and `append` waits for one to come
//! back when all are in use.

mod commit;
mod compress;
mod folder;
mod pipeline;
mod space;
mod stages;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use compress::{Row, Work};
use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis};
use pipeline::Pipeline;
use space::check_space;
pub use space::estimated_bytes;
use stages::{Counters, Position};

use crate::disk::DiskHook;
use crate::metadata::Attributes;
use crate::rounding::{Rounding, Unstorable, written_past_the_cache};
use crate::target::{Begun, Hold, Opened};
use crate::{Result, Store, StoreError, StoreSpec, StoreSummary, address, bucket};

/// Resources of a [`StoreWriter`]; they do not change a byte of the store.
#[derive(Debug, Clone, Default)]
pub struct WriterOptions {
    /// Compression threads; 0 means one per core.
    pub threads: usize,
    /// Skip the check that the file system has space for the estimate.
    pub skip_space_check: bool,
    /// Rows that will come, for that estimate, where many positions are padding; by default one for each token.
    pub planned_rows: Option<u64>,
    /// Called before each step that changes the store on disk.
    pub disk_hook: Option<DiskHook>,
}

/// What the writer has taken in and written so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteProgress {
    /// Contexts taken in.
    pub contexts: u64,
    /// Rows taken in.
    pub rows: u64,
    /// Rows in finished shards.
    pub rows_stored: u64,
    /// Raw bytes of the rows in finished shards.
    pub raw_bytes: u64,
    /// Bytes of the finished shards' activations on disk.
    pub stored_bytes: u64,
}

/// Writes a store, or continues one that was interrupted.
///
/// Dropping it without [`StoreWriter::finish`] commits the windows that are full and leaves a store that can be
/// resumed.
#[derive(Debug)]
pub struct StoreWriter {
    dir: PathBuf,
    spec: StoreSpec,
    rounding: Rounding,
    /// Contexts that need not be sent, and the finished positions of the one after them.
    resumed: Position,
    /// Contexts taken in.
    contexts: u64,
    /// Rows taken in.
    rows: u64,
    clipped: u64,
    /// Rows of the current window, in the order of the text.
    window: Vec<Row>,
    /// A rounded row.
    rounded: Vec<u16>,
    /// Windows sent off, resumed ones included.
    windows: u64,
    /// Where the current window begins.
    window_start: Position,
    /// Tokens of the current chunk of the `tokens` array.
    tokens: Vec<u32>,
    counters: Arc<Counters>,
    /// What was damaged in the resumed part.
    damage: Vec<String>,
    /// `None` once the store is complete.
    pipeline: Option<Pipeline>,
    stopped: bool,
    /// Last, so that the store is unlocked only when all else is gone.
    _hold: Box<dyn Hold>,
}

impl StoreWriter {
    /// Creates the store in `dir`, or resumes the unfinished store of the same specification in it. `dir` can be the address of
    /// a folder in a bucket (`s3://BUCKET/FOLDER`, also `gs://` and `az://`): its shards go up from memory, and nothing is
    /// written on this machine.
    ///
    /// A finished store of the same specification is not an error: [`StoreWriter::contexts_done`] is then all its contexts
    /// and [`StoreWriter::finish`] does nothing.
    ///
    /// # Errors
    /// An impossible specification, too little space, a folder with other files or another store, a second writer,
    /// and errors of the operating system. (Every byte of an unfinished store is checked against its checksums, in a bucket the
    /// sizes of its objects: damage is not an error, see [`StoreWriter::damage`].) None of these cases changes what was
    /// there.
    pub fn open(dir: &Path, spec: &StoreSpec, options: &WriterOptions) -> Result<StoreWriter> {
        spec.validate()?;
        let beginning = beginning(spec);
        let hook = options.disk_hook.clone();
        let check_space = |kept| check_space(dir, spec, options.planned_rows, kept);
        let check_space: Option<&dyn Fn(u64) -> Result<()>> =
            if options.skip_space_check { None } else { Some(&check_space) };
        let opened = match address::is_bucket(dir) {
            // Nobody knows what room a bucket has.
            true => bucket::open_writer(dir, spec, &beginning, hook)?,
            false => folder::open(dir, spec, &beginning, check_space, hook)?,
        };
        Self::continued(dir, spec, options.threads, opened)
    }

    /// The writer of a store that was opened.
    pub(crate) fn continued(
        dir: &Path,
        spec: &StoreSpec,
        threads: usize,
        Opened { hold, begun }: Opened,
    ) -> Result<StoreWriter> {
        let spec = spec.clone();
        let (resumption, mut tokens, target) = match begun {
            Begun::Complete(attributes) => return Ok(Self::of_complete_store(dir, *attributes, hold)),
            Begun::Unfinished { resumption, tokens, target } => (*resumption, tokens, target),
        };
        tokens.reserve(spec.token_chunk_contexts() * spec.context_length - tokens.len());
        let counters = Arc::new(Counters {
            rows_stored: resumption.rows.into(),
            activation_bytes: resumption.activation_bytes.into(),
        });
        let pipeline = Pipeline::start(&spec, threads, &resumption, target, &counters)?;
        let resumed = Position { contexts: resumption.contexts, positions: resumption.positions };
        Ok(StoreWriter {
            dir: dir.to_path_buf(),
            rounding: rounding(&spec),
            resumed,
            contexts: resumption.contexts,
            rows: resumption.rows,
            clipped: resumption.clipped,
            window: empty_window(&spec)?,
            rounded: vec![0; spec.row_bytes() / 2],
            windows: resumption.windows,
            window_start: resumed,
            tokens,
            counters,
            damage: resumption.damage,
            pipeline: Some(pipeline),
            stopped: false,
            spec,
            _hold: hold,
        })
    }

    fn of_complete_store(dir: &Path, attributes: Attributes, hold: Box<dyn Hold>) -> StoreWriter {
        let end = Position { contexts: attributes.contexts, positions: 0 };
        let spec = attributes.specification;
        StoreWriter {
            dir: dir.to_path_buf(),
            rounding: rounding(&spec),
            resumed: end,
            contexts: attributes.contexts,
            rows: attributes.rows,
            clipped: attributes.clipped,
            window: Vec::new(),
            rounded: Vec::new(),
            windows: 0,
            window_start: end,
            tokens: Vec::new(),
            counters: Arc::new(Counters { rows_stored: attributes.rows.into(), ..Counters::default() }),
            damage: Vec::new(),
            pipeline: None,
            stopped: false,
            spec,
            _hold: hold,
        }
    }

    /// Contexts whose rows need not be sent again (0 for a new store): the next one to append is number
    /// `contexts_done`, counted from 0.
    pub fn contexts_done(&self) -> u64 {
        self.resumed.contexts
    }

    /// The tokens of the last contexts before [`StoreWriter::contexts_done`], `[n, T]` (up to half a million, none at
    /// the beginning and where a chunk of tokens ends). Before the first [`StoreWriter::append`], they show whether the
    /// text to be continued is the one that the store began with.
    pub fn resumed_tokens(&self) -> ArrayView2<'_, u32> {
        let length = self.spec.context_length;
        ArrayView2::from_shape((self.tokens.len() / length, length), &self.tokens)
            .expect("contexts are taken in whole")
    }

    /// What was damaged in the resumed part of the store, one sentence for each file. The contexts from there
    /// on do not count as finished, and are written again.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// The store was complete when it was opened.
    pub fn is_complete(&self) -> bool {
        self.pipeline.is_none()
    }

    /// Appends whole contexts: `tokens` `[n, T]`, `rows` `[n, T, d]`. BOS rows are left out if the specification says
    /// so, and those of its padding; their tokens are stored nevertheless.
    ///
    /// # Errors
    /// An activation that cannot be stored (its context and position are named), contexts beyond the planned ones, an
    /// error of the background threads. After an error the writer accepts nothing more; what the journal records stays.
    ///
    /// # Panics
    /// If T or d is not the specification's, `rows` has other contexts than `tokens`, or the components of a row do not lie
    /// side by side in memory.
    pub fn append(&mut self, tokens: ArrayView2<'_, u32>, rows: ArrayView3<'_, f32>) -> Result<()> {
        if self.stopped {
            return Err(StoreError::Stopped(self.dir.clone()));
        }
        assert_eq!(rows.dim().1, self.spec.context_length, "rows for each token of a context");
        let result = self.take_in(tokens, rows);
        self.stopped = result.is_err();
        result
    }

    fn take_in(&mut self, tokens: ArrayView2<'_, u32>, rows: ArrayView3<'_, f32>) -> Result<()> {
        let (contexts, length) = (tokens.nrows(), self.spec.context_length);
        assert_eq!(tokens.ncols(), length, "tokens of a context");
        assert_eq!(
            (rows.dim().0, rows.dim().2),
            (contexts, self.spec.width),
            "rows for contexts of {length} tokens"
        );
        if self.is_complete() && contexts > 0 {
            return Err(StoreError::Complete(self.dir.clone()));
        }
        if self.contexts + contexts as u64 > self.spec.contexts {
            return Err(StoreError::TooManyContexts { planned: self.spec.contexts });
        }
        self.check_tokens(tokens)?;
        for (tokens, rows) in tokens.outer_iter().zip(rows.outer_iter()) {
            self.take_in_tokens(tokens)?;
            let stored_positions =
                if self.contexts == self.resumed.contexts { self.resumed.positions } else { 0 };
            for position in stored_positions..length {
                if !self.spec.stores(tokens[position]) {
                    continue;
                }
                let row = rows.row(position);
                self.take_in_row(
                    position,
                    row.as_slice().expect("the components of a row lie side by side"),
                )?;
            }
            self.contexts += 1;
        }
        Ok(())
    }

    /// Appends one context whose text may be shorter than T: `tokens` `[T]`, filled up with the specification's padding, and
    /// the `rows` `[n, d]` of its first n positions.
    ///
    /// # Errors
    /// As of [`StoreWriter::append`].
    ///
    /// # Panics
    /// If T or d is not the specification's, a position without a row is not padding, or the components of a row do not lie
    /// side by side in memory.
    pub fn append_context(&mut self, tokens: ArrayView1<'_, u32>, rows: ArrayView2<'_, f32>) -> Result<()> {
        let padding = tokens.iter().skip(rows.nrows()).all(|&token| self.spec.padding == Some(token));
        assert!(padding, "every position has a row, or is padding");
        if self.stopped {
            return Err(StoreError::Stopped(self.dir.clone()));
        }
        let result = self.take_in(tokens.insert_axis(Axis(0)), rows.insert_axis(Axis(0)));
        self.stopped = result.is_err();
        result
    }

    fn check_tokens(&self, tokens: ArrayView2<'_, u32>) -> Result<()> {
        let vocabulary = self.spec.vocabulary;
        match tokens.indexed_iter().find(|&(_, &token)| u64::from(token) >= vocabulary) {
            None => Ok(()),
            Some(((context, position), &token)) => {
                let context = self.contexts + context as u64;
                Err(StoreError::Token { token, context, position, vocabulary })
            }
        }
    }

    fn take_in_tokens(&mut self, tokens: ArrayView1<'_, u32>) -> Result<()> {
        self.tokens.extend(tokens);
        if self.tokens.len() == self.spec.token_chunk_contexts() * self.spec.context_length {
            let tokens = std::mem::take(&mut self.tokens);
            self.send(Work::Tokens {
                chunk: self.contexts / self.spec.token_chunk_contexts() as u64,
                tokens,
            })?;
        }
        Ok(())
    }

    fn take_in_row(&mut self, position: usize, row: &[f32]) -> Result<()> {
        let taken = self.pipeline.as_mut().map_or(Ok(None), |pipeline| pipeline.rows.take())?;
        let Some(mut planes) = taken else {
            return Err(self.failure());
        };
        // Into planes, so that the compressing threads have only to copy them.
        match self.rounding.round_into_planes(row, &mut planes, &mut self.rounded) {
            Ok(clipped) => self.clipped += clipped,
            Err(Unstorable::NotFinite { channel }) => {
                let value = row[channel];
                return Err(StoreError::NotFinite { context: self.contexts, position, channel, value });
            }
            Err(Unstorable::Overflow { channel }) => {
                let value = row[channel];
                return Err(StoreError::Overflow { context: self.contexts, position, channel, value });
            }
        }
        let origin = self.contexts * self.spec.context_length as u64 + position as u64;
        self.window.push(Row { origin, planes });
        self.rows += 1;
        if self.window.len() == self.spec.layout.window_rows {
            let whole = position + 1 == self.spec.context_length;
            self.send_window(Position {
                contexts: self.contexts + u64::from(whole),
                positions: if whole { 0 } else { position + 1 },
            })?;
        }
        Ok(())
    }

    /// Sends the window off; `to` is where the text has been taken in to.
    fn send_window(&mut self, to: Position) -> Result<()> {
        if !self.tokens.is_empty() {
            // The chunk will be written again when it is full; until then a resumed dump needs its beginning.
            let chunk =
                (to.contexts + u64::from(to.positions > 0) - 1) / self.spec.token_chunk_contexts() as u64;
            self.send(Work::Tokens { chunk, tokens: self.tokens.clone() })?;
        }
        let rows = std::mem::replace(&mut self.window, empty_window(&self.spec)?);
        written_past_the_cache();
        let (window, from, clipped) = (self.windows, self.window_start, self.clipped);
        self.send(Work::Window { window, rows, from, to, clipped })?;
        self.windows += 1;
        self.window_start = to;
        Ok(())
    }

    fn send(&mut self, work: Work) -> Result<()> {
        match self.pipeline.as_ref().map(|pipeline| pipeline.work.send(work)) {
            Some(Ok(())) => Ok(()),
            _ => Err(self.failure()),
        }
    }

    /// Why the background threads stopped.
    fn failure(&mut self) -> StoreError {
        let noted = self.pipeline.as_ref().and_then(|pipeline| stages::lock(&pipeline.failure).take());
        noted.unwrap_or_else(|| StoreError::Stopped(self.dir.clone()))
    }

    /// What was taken in and written so far.
    pub fn progress(&self) -> WriteProgress {
        let rows_stored = self.counters.rows_stored.load(Ordering::Relaxed);
        WriteProgress {
            contexts: self.contexts,
            rows: self.rows,
            rows_stored,
            raw_bytes: rows_stored * self.spec.row_bytes() as u64,
            stored_bytes: self.counters.activation_bytes.load(Ordering::Relaxed),
        }
    }

    /// Writes the rest, the statistics and the final metadata, then opens the store once to check that it is complete.
    ///
    /// # Errors
    /// No row at all, an earlier error, and errors of the operating system; the store can then be resumed.
    pub fn finish(mut self) -> Result<StoreSummary> {
        self.complete()?;
        Ok(Store::open_with(&self.dir, None)?.summary())
    }

    /// Writes what is left, if anything is.
    pub(crate) fn complete(&mut self) -> Result<()> {
        if self.stopped {
            return Err(StoreError::Stopped(self.dir.clone()));
        }
        if !self.is_complete() {
            if self.rows == 0 {
                return Err(StoreError::Empty(self.dir.clone()));
            }
            let end = Position { contexts: self.contexts, positions: 0 };
            if self.window_start != end {
                self.send_window(end)?;
            }
            let pipeline = self.pipeline.take().expect("the store is not complete");
            let (mut target, statistics) = pipeline.join(&self.dir)?;
            commit::complete(&self.spec, &mut *target, self.contexts, self.clipped, &statistics.finish())?;
        }
        Ok(())
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        if let Some(pipeline) = self.pipeline.take() {
            // Whoever drops a writer does not ask; the journal tells the next one.
            let _ = pipeline.join(&self.dir);
        }
    }
}

/// The metadata of a store without rows.
pub(crate) fn beginning(spec: &StoreSpec) -> Vec<u8> {
    commit::group_text(spec, None)
}

/// Room for the rows of a window; the bytes of each come one by one.
fn empty_window(spec: &StoreSpec) -> Result<Vec<Row>> {
    let planned = spec.contexts.saturating_mul(spec.context_length as u64);
    let rows = spec.layout.window_rows.min(usize::try_from(planned).unwrap_or(usize::MAX));
    let mut window = Vec::new();
    let full = |_| StoreError::Memory(format!("a window of {rows} rows"));
    window.try_reserve_exact(rows).map_err(full)?;
    Ok(window)
}

fn rounding(spec: &StoreSpec) -> Rounding {
    let bits = spec.mantissa_bits.unwrap_or(spec.row_type.mantissa_bits());
    Rounding { row_type: spec.row_type, bits, clip: spec.clip }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, aview2};

    use super::*;
    use crate::row_slots::RowSlot;

    #[test]
    fn a_compressing_thread_that_dies_is_told_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let spec = StoreSpec::new(2, 4, 8);
        let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        writer.append(aview2(&[[0; 4]; 4]), Array3::ones((4, 4, 2)).view()).unwrap();
        // A row of another width than the store's.
        writer.window[3].planes = RowSlot::piece(1, 1).unwrap().remove(0);
        let error = writer.finish().unwrap_err();
        assert!(matches!(&error, StoreError::Died(died) if died.reason.contains("range")), "{error}");
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Incomplete { .. })));

        let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        writer.append(aview2(&[[0; 4]; 8]), Array3::ones((8, 4, 2)).view()).unwrap();
        assert_eq!(writer.finish().unwrap().rows, 32);
    }
}
