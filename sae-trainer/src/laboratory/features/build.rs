//! The activation index of an autoencoder: one pass over the rows of a store.

use std::fs;
use std::ops::Range;
use std::path::Path;

use activation_store::Store;
use anyhow::{Context, Result, ensure};
use durable_files::{available_space, create_folder};
use human_units::{format_bytes, format_count};
use ndarray::{Axis, CowArray, Ix2};
use rayon::prelude::*;
use terminal::{Interrupt, foreign, foreign_path};

use super::figures::{Figures, Ground, Scratch};
use super::firing::Firing;
use super::index::{Record, Shape, write_firings, write_record};
use super::spill::{self, Spill, Spilled};
use super::texts::Texts;
use super::weights::decoder_crc32c;
use crate::autoencoder::load;
use crate::command::arguments::FeaturesArguments;
use crate::engine::CpuThreads;
use crate::laboratory::similarity::{Best, nearest_others, unit_rows};
use crate::laboratory::trained::Trained;
use crate::report::progress::{self, proceed};
use crate::report::table::grouped;

/// Rows that are encoded at once.
const BATCH: usize = 4096;
/// Firings of a file of the index, unless one feature has more.
const FILE: u64 = 1 << 24;
/// Bytes of memory for a firing while a file is written: the firing, and its location in four-byte numbers.
const WRITING: u64 = (size_of::<Firing>() + 12) as u64;

/// The rows that are encoded.
struct Source<'a> {
    store: &'a Store,
    /// The first so many contexts of it.
    contexts: usize,
    /// Their tokens, by place.
    tokens: Vec<u32>,
    /// Tokens whose rows are left out.
    left_out: Vec<u32>,
}

/// Encodes rows of `store` and writes the index into the new folder `out`.
pub(crate) fn build(
    arguments: &FeaturesArguments,
    store: &Store,
    out: &Path,
    texts: Option<&Texts>,
    interrupt: &Interrupt,
) -> Result<()> {
    ensure!(
        out.symlink_metadata().is_err(),
        "{} exists; remove it to make the index anew, or write another with --out FOLDER",
        foreign_path(out)
    );
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let count = arguments.threads.map_or_else(cores, usize::from);
    let mut trained = Trained::load(&arguments.sae, &CpuThreads::new(count)?, BATCH)?;
    trained.check_input(store)?;
    let hook = &store.provenance().hook;
    ensure!(
        !hook.is_empty() && !hook.contains('/') && !hook.starts_with('.'),
        "{} is of the hook {:?}, which cannot be the name of a folder",
        foreign_path(store.path()),
        foreign(hook).to_string()
    );
    let source = Source::new(arguments, store)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build()?;
    pool.install(|| {
        announce(&mut trained, &source, out)?;
        create_folder(out, |new| source.index(&mut trained, new, texts, interrupt))
    })
}

impl Source<'_> {
    fn new<'a>(arguments: &FeaturesArguments, store: &'a Store) -> Result<Source<'a>> {
        let length = store.context_length() as u64;
        let asked = arguments.tokens.map_or(store.contexts(), |tokens| tokens.div_ceil(length));
        let contexts = asked.min(store.contexts());
        ensure!(
            contexts * length <= 1 << 32,
            "an index holds at most {} tokens, and {} has {}; --tokens takes the first of them",
            grouped(1 << 32),
            foreign_path(store.path()),
            grouped(contexts * length)
        );
        if arguments.drop_bos {
            store.check_bos_known()?;
        }
        let mut left_out = arguments.drop_tokens.clone();
        left_out.extend(arguments.drop_bos.then_some(store.spec().bos_token));
        let tokens = store.context_tokens(0..contexts)?.into_raw_vec_and_offset().0;
        Ok(Source { store, contexts: contexts as usize, tokens, left_out })
    }

    /// Rows that are read at once: whole chunks, since each is decompressed as a whole.
    fn block(&self) -> u64 {
        BATCH.next_multiple_of(self.store.spec().layout.chunk_rows) as u64
    }

    /// The rows of `range` that are encoded: their number in it, and their place.
    fn kept(&self, range: Range<u64>) -> Result<Vec<(usize, u32)>> {
        let origins = self.store.origin(range)?;
        let mut kept = Vec::with_capacity(origins.len());
        for (row, origin) in origins.into_iter().enumerate() {
            if let Some(token) = self.tokens.get(origin as usize)
                && !self.left_out.contains(token)
            {
                kept.push((row, origin as u32));
            }
        }
        Ok(kept)
    }

    /// Calls `take` with the rows that are encoded, at most [`BATCH`] at once, and their places. Returns at the end of what is
    /// wanted, or when `take` says that it has enough.
    fn each(&self, mut take: impl FnMut(CowArray<'_, f32, Ix2>, &[u32]) -> Result<bool>) -> Result<()> {
        let (rows, window) = (self.store.rows(), self.store.spec().layout.window_rows as u64);
        let mut start = 0;
        // Windows are in the order of the text, the rows of one are not.
        let mut last_window = u64::MAX;
        while start < rows && start / window <= last_window {
            let range = start..(start + self.block()).min(rows);
            let kept = self.kept(range.clone())?;
            if !kept.is_empty() {
                let block = self.store.read_rows(range.clone())?;
                for batch in kept.chunks(BATCH) {
                    let (at, places): (Vec<usize>, Vec<u32>) = batch.iter().copied().unzip();
                    let whole = at.len() == block.nrows();
                    let rows = if whole { block.view().into() } else { block.select(Axis(0), &at).into() };
                    if !take(rows, &places)? {
                        return Ok(());
                    }
                }
            }
            if self.contexts < self.store.contexts() as usize && last_window == u64::MAX {
                let end = self.tokens.len() as u64;
                let origins = self.store.origin(range.clone())?;
                let beyond = origins.into_iter().position(|origin| origin >= end);
                last_window = beyond.map_or(u64::MAX, |row| (range.start + row as u64) / window);
            }
            start = range.end;
        }
        Ok(())
    }

    /// Fills the folder `new`.
    fn index(
        &self,
        trained: &mut Trained,
        new: &Path,
        texts: Option<&Texts>,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let spills = new.join("spill");
        fs::create_dir(&spills).with_context(|| format!("cannot create {}", foreign_path(&spills)))?;
        let (length, (_, features)) = (self.store.context_length(), trained.sizes());
        let mut spill = Spill::create(&spills, features)?;
        let mut rows_by_position = vec![0_u64; length];
        let bar = progress::rows("encoding", self.tokens.len() as u64);
        self.each(|rows, places| {
            proceed(interrupt)?;
            spill.add(places, &trained.encode(rows.view())?)?;
            places.iter().for_each(|place| rows_by_position[*place as usize % length] += 1);
            bar.inc(places.len() as u64);
            Ok(true)
        })?;
        bar.finish_and_clear();
        let mut spilled = spill.finish()?;
        ensure!(
            rows_by_position.iter().any(|rows| *rows > 0),
            "no row of {} is left to encode; leave out fewer tokens",
            foreign_path(self.store.path())
        );

        let decoder = load(&trained.folder)?.weights.w_dec;
        let decoder_crc32c = decoder_crc32c(&decoder);
        let nearest = nearest_others(unit_rows(decoder).view());
        let punctuation = texts.map(Texts::punctuation);
        let ground = Ground {
            context_length: length,
            rows_by_position: &rows_by_position,
            tokens: &self.tokens,
            punctuation: punctuation.as_deref(),
        };
        let files = files(&spilled.counts);
        let figures = self.write_files(new, &files, &mut spilled, &nearest, &ground, interrupt)?;
        let provenance = self.store.provenance();
        let record = Record {
            format: Record::format(),
            store: self.store.path().to_owned(),
            model: provenance.model.clone(),
            model_hash: provenance.model_hash.clone(),
            tokenizer_hash: provenance.tokenizer_hash.clone(),
            hook: provenance.hook.clone(),
            decoder_crc32c,
            features,
            contexts: self.contexts,
            context_length: length,
            firings: spilled.counts.iter().sum(),
            clipped: spilled.clipped,
            texts: texts.is_some(),
            rows_by_position,
            files: files.iter().map(|range| (range.start, range.end)).collect(),
        };
        write_record(new, &record, &figures)?;
        fs::remove_dir_all(&spills).with_context(|| format!("cannot remove {}", foreign_path(&spills)))
    }

    /// Writes the files of firings and returns the figures of all features.
    fn write_files(
        &self,
        new: &Path,
        files: &[Range<usize>],
        spilled: &mut Spilled,
        nearest: &[Option<Best>],
        ground: &Ground<'_>,
        interrupt: &Interrupt,
    ) -> Result<Vec<Figures>> {
        let shape = self.shape();
        let bar = progress::features(nearest.len() as u64);
        let mut figures = Vec::with_capacity(nearest.len());
        for features in files {
            proceed(interrupt)?;
            let firings = spilled.read(features.clone())?;
            let counts = &spilled.counts[features.clone()];
            let mut rest = &firings[..];
            let mut pieces = Vec::with_capacity(features.len());
            for (feature, count) in features.clone().zip(counts) {
                let (own, after) = rest.split_at(*count as usize);
                pieces.push((feature, own));
                rest = after;
            }
            let found: Vec<Figures> = pieces
                .into_par_iter()
                .map_init(
                    || Scratch::new(ground),
                    |scratch, (feature, own)| {
                        Figures::of(feature as u32, own, nearest[feature], ground, scratch)
                    },
                )
                .collect();
            figures.extend(found);
            let hook = &self.store.provenance().hook;
            write_firings(new, hook, features.clone(), counts, &firings, &self.tokens, shape)?;
            spilled.discard_before(features.end)?;
            bar.inc(features.len() as u64);
        }
        bar.finish_and_clear();
        Ok(figures)
    }

    fn shape(&self) -> Shape {
        Shape {
            contexts: self.contexts,
            context_length: self.store.context_length(),
            token_bytes: if self.store.spec().vocabulary <= 1 << 16 { 2 } else { 4 },
        }
    }
}

/// Cuts the features where the firings of a file reach [`FILE`].
fn files(counts: &[u64]) -> Vec<Range<usize>> {
    let (mut files, mut start, mut firings) = (Vec::new(), 0, 0);
    for (feature, count) in counts.iter().enumerate() {
        if feature > start && firings + count > FILE {
            files.push(start..feature);
            (start, firings) = (feature, 0);
        }
        firings += count;
    }
    files.push(start..counts.len());
    files
}

/// Says what it will take, from what the first rows activate, and refuses what the disk has no room for.
fn announce(trained: &mut Trained, source: &Source<'_>, out: &Path) -> Result<()> {
    let (width, features) = trained.sizes();
    let (mut rows, mut active) = (0, 0);
    source.each(|batch, places| {
        rows += places.len();
        active += trained.encode(batch.view())?.values.len();
        Ok(false)
    })?;
    let tokens = source.tokens.len() as u64;
    let per_row = active as f64 / rows.max(1) as f64;
    let firings = (per_row * tokens as f64) as u64;
    let spilled = firings * size_of::<Firing>() as u64;
    let files = firings / FILE + 1;
    let shape = source.shape();
    let location = 3 * shape.location_bytes(features.div_ceil(files as usize));
    let written = firings * (location + 2) as u64 + files * tokens * shape.token_bytes as u64;
    // Twice the weights, since the engine keeps rounded ones beside them, and the activations of a batch where it is dense.
    let encoding = 4 * (4 * width * features + BATCH * features) as u64 + spill::MEMORY;
    let writing = FILE.max(tokens) * WRITING;
    terminal::say!(
        "about {} activations of {} tokens; memory about {}; disk about {} for the index in {}, and {} more until it is finished",
        format_count(firings as f64),
        format_count(tokens as f64),
        format_bytes(encoding.max(writing) + 4 * tokens),
        format_bytes(written),
        foreign_path(out),
        format_bytes(spilled)
    );
    let available = available_space(out)?;
    ensure!(
        spilled + written <= available,
        "the disk of {} has {} left; --tokens takes fewer rows, --out another folder",
        foreign_path(out),
        format_bytes(available)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_every_feature_once_and_no_more_firings_than_they_may() {
        assert_eq!(files(&[1, 2, FILE - 3, 4]), [0..3, 3..4]);
        assert_eq!(files(&[FILE, 0, 1, FILE - 1, 5]), [0..2, 2..4, 4..5]);
        assert_eq!(files(&[0, 3 * FILE, 0]), [0..1, 1..2, 2..3]);
    }
}
