//! Reads a finished store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::Array2;
use rayon::prelude::*;

use crate::address::{Address, BUCKETS};
use crate::bucket::{self, CacheOptions, Cached};
use crate::catalog::{self, Catalog, SmallFile};
use crate::files::{Files, Folder};
use crate::shard::{Decoder, Shard};
use crate::widen::{BatchElement, widen_row};
use crate::{Provenance, Result, RowType, Statistics, StoreError, StoreSpec, address, codec, paths};

/// A finished store in numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreSummary {
    /// The store's folder.
    pub path: PathBuf,
    /// Contexts stored.
    pub contexts: u64,
    /// Rows stored.
    pub rows: u64,
    /// Raw bytes of all rows.
    pub raw_bytes: u64,
    /// Bytes of the activations on disk.
    pub activation_bytes: u64,
    /// Bytes of all files of the store.
    pub stored_bytes: u64,
    /// Values clipped to the row type's range.
    pub clipped: u64,
    /// Statistics over all rows.
    pub stats: Statistics,
}

/// A finished store, opened for reading; cheap to clone.
///
/// If a shard is shortened, replaced or removed while the store is open, reading it is an error. A store in a bucket is read through
/// a folder that keeps what was fetched ([`CacheOptions`]): a chunk is fetched and checked before it is decoded.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Its folder, or its address in a bucket.
    path: PathBuf,
    catalog: Catalog,
    rows: Rows,
}

/// Where the rows are.
#[derive(Debug)]
enum Rows {
    Folder(Vec<Shard>),
    Bucket(Cached),
    /// In a bucket, and nobody may fetch them.
    OutOfReach,
}

impl Store {
    /// Opens the store in `dir`: checks the checksums of all small files, and the size and index of every shard.
    ///
    /// # Errors
    /// No store, an unfinished one, another format version, and every missing, shortened, swapped or
    /// damaged file (as far as that can be seen without reading all rows).
    pub fn open(dir: &Path) -> Result<Store> {
        if address::is_bucket(dir) {
            let path = Address::parse(dir)?.path();
            return Err(if BUCKETS { StoreError::InBucket(path) } else { StoreError::NoBuckets(path) });
        }
        let catalog = Catalog::read(&Folder::new(dir))?;
        let spec = &catalog.attributes.specification;
        let mut shards = Vec::with_capacity(catalog.shards.len());
        for (number, record) in catalog.shards.iter().enumerate() {
            let number = number as u64;
            let name = paths::activations(number);
            shards.push(Shard::open(dir, &name, &record.activations, spec, record.rows)?);
            // The rows' origin is small and opened again when it is asked for.
            Shard::open(dir, &paths::origin(number), &record.origin, spec, record.rows)?;
        }
        catalog::check_token_files(dir, &catalog.tokens)?;
        Ok(Store(Arc::new(Inner { path: dir.to_path_buf(), catalog, rows: Rows::Folder(shards) })))
    }

    /// Opens the store at `path`, a folder or the address of one in a bucket (`s3://BUCKET/FOLDER`, also `gs://` and `az://`).
    /// What is fetched from a bucket is kept in `cache`. Without one, such a store can be described but not read:
    /// every method that needs a row, an origin or a token is an error.
    ///
    /// # Errors
    /// As [`Store::open`]; a bucket that cannot be reached or may not be read, and a cache that another process uses, that is too
    /// small, or that cannot be made. A build without the feature `bucket` has no buckets.
    pub fn open_with(path: &Path, cache: Option<&CacheOptions>) -> Result<Store> {
        if !address::is_bucket(path) {
            return Store::open(path);
        }
        match cache {
            Some(cache) => {
                Cached::open(path, cache).map(|(catalog, cached)| Store::of_bucket(catalog, cached))
            }
            None => Store::out_of_reach(&*bucket::files(path)?),
        }
    }

    pub(crate) fn of_bucket(catalog: Catalog, cached: Cached) -> Store {
        Store(Arc::new(Inner { path: cached.address().to_path_buf(), catalog, rows: Rows::Bucket(cached) }))
    }

    /// The store in `files`, of which every file is there, to be described.
    pub(crate) fn out_of_reach(files: &dyn Files) -> Result<Store> {
        let catalog = Catalog::read(files)?;
        catalog.check_sizes(files)?;
        Ok(Store(Arc::new(Inner { path: files.place().to_path_buf(), catalog, rows: Rows::OutOfReach })))
    }

    /// Its folder, or its address in a bucket.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The same for every way to write it: the folder without links and relative parts, or the address in a bucket.
    pub fn canonical_path(&self) -> PathBuf {
        let path = &self.0.path;
        match self.0.rows {
            Rows::Folder(_) => std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()),
            Rows::Bucket(_) | Rows::OutOfReach => path.clone(),
        }
    }

    /// Rows stored.
    pub fn rows(&self) -> u64 {
        self.0.catalog.attributes.rows
    }

    /// d, the elements of a row.
    pub fn width(&self) -> usize {
        self.spec().width
    }

    /// Element type of the rows.
    pub fn row_type(&self) -> RowType {
        self.spec().row_type
    }

    /// T, the tokens of a context.
    pub fn context_length(&self) -> usize {
        self.spec().context_length
    }

    /// Contexts stored.
    pub fn contexts(&self) -> u64 {
        self.0.catalog.attributes.contexts
    }

    /// Values that were clipped to the row type's range.
    pub fn clipped(&self) -> u64 {
        self.0.catalog.attributes.clipped
    }

    /// What was dumped and how; its `contexts` is the planned number.
    pub fn spec(&self) -> &StoreSpec {
        &self.0.catalog.attributes.specification
    }

    /// Where the rows come from.
    pub fn provenance(&self) -> &Provenance {
        &self.spec().provenance
    }

    /// Mean, variance and mean norm over all rows.
    pub fn stats(&self) -> &Statistics {
        &self.0.catalog.statistics
    }

    /// Bytes of all files of the store.
    pub fn stored_bytes(&self) -> u64 {
        self.0.catalog.stored_bytes()
    }

    /// The store in numbers.
    pub fn summary(&self) -> StoreSummary {
        StoreSummary {
            path: self.0.path.clone(),
            contexts: self.contexts(),
            rows: self.rows(),
            raw_bytes: self.rows() * self.spec().row_bytes() as u64,
            activation_bytes: self.0.catalog.activation_bytes(),
            stored_bytes: self.stored_bytes(),
            clipped: self.clipped(),
            stats: self.stats().clone(),
        }
    }

    /// Decodes rows `range`, `[range.len(), d]`, the chunks in parallel.
    pub fn read_rows(&self, range: Range<u64>) -> Result<Array2<f32>> {
        self.check_range("rows", &range, self.rows())?;
        let (width, row_type) = (self.width(), self.row_type());
        let mut out = Array2::zeros(((range.end - range.start) as usize, width));
        let mut pieces = Vec::new();
        let mut rest = out.as_slice_mut().expect("a new array is in row-major order");
        for (chunk, rows) in self.chunks_of(range) {
            let (piece, after) = rest.split_at_mut(rows.len() * width);
            pieces.push((chunk, rows, piece));
            rest = after;
        }
        let reading = Reading::of(self, pieces.iter().map(|(chunk, ..)| *chunk));
        pieces.into_par_iter().try_for_each(|(chunk, rows, piece)| {
            let mut planes = vec![0; self.chunk_bytes()];
            self.decode_chunk(chunk, &mut Decoder::new()?, &mut planes)?;
            for (row, out) in rows.zip(piece.chunks_exact_mut(width)) {
                widen_row(&planes, row_type, row, out);
            }
            Ok::<(), StoreError>(())
        })?;
        drop(reading);
        Ok(out)
    }

    /// Decodes rows of any numbers, each into the place of d elements that is given with it, rounded to nearest even where `T` is
    /// narrower. A chunk is decoded once, whatever the order of its rows; the chunks in parallel.
    ///
    /// # Errors
    /// A row that the store lacks, before anything is read; damage, with file and chunk; a value beyond `T`.
    ///
    /// # Panics
    /// If a place does not have d elements.
    pub fn read_into<T: BatchElement>(&self, rows: Vec<(u64, &mut [T])>) -> Result<()> {
        let per_chunk = self.spec().layout.chunk_rows as u64;
        let mut chunks: BTreeMap<u64, Vec<(usize, &mut [T])>> = BTreeMap::new();
        for (row, place) in rows {
            self.check_range("rows", &(row..row.saturating_add(1)), self.rows())?;
            assert_eq!(place.len(), self.width(), "a row has d elements");
            chunks.entry(row / per_chunk).or_default().push(((row % per_chunk) as usize, place));
        }
        let row_type = self.row_type();
        let _reading = Reading::of(self, chunks.keys().copied());
        let chunks: Vec<_> = chunks.into_iter().collect();
        chunks.into_par_iter().try_for_each(|(chunk, rows)| {
            let mut planes = vec![0; self.chunk_bytes()];
            self.decode_chunk(chunk, &mut Decoder::new()?, &mut planes)?;
            for (row, place) in rows {
                if !T::join_row(&planes, row_type, row, place) {
                    return Err(StoreError::BatchOverflow { element: T::NAME });
                }
            }
            Ok(())
        })
    }

    /// The stored bytes of rows `range`, little-endian, `[range.len(), d]` elements of [`Store::row_type`].
    pub fn read_raw_rows(&self, range: Range<u64>) -> Result<Vec<u8>> {
        self.check_range("rows", &range, self.rows())?;
        let (width, size) = (self.width(), self.row_type().bytes());
        let pieces: Vec<(u64, Range<usize>)> = self.chunks_of(range).collect();
        let _reading = Reading::of(self, pieces.iter().map(|(chunk, _)| *chunk));
        let pieces: Vec<Vec<u8>> = pieces
            .into_par_iter()
            .map(|(chunk, rows)| {
                let mut planes = vec![0; self.chunk_bytes()];
                self.decode_chunk(chunk, &mut Decoder::new()?, &mut planes)?;
                Ok(codec::unshuffle(&planes, size, rows.start * width..rows.end * width))
            })
            .collect::<Result<_>>()?;
        Ok(pieces.concat())
    }

    /// For each row of `range`: context · context_length + position.
    pub fn origin(&self, range: Range<u64>) -> Result<Vec<u64>> {
        self.check_range("rows", &range, self.rows())?;
        let (spec, size) = (self.spec(), self.spec().origin_bytes());
        let mut planes = vec![0; spec.layout.chunk_rows * size];
        let mut decoder = Decoder::new()?;
        let mut origins = Vec::with_capacity((range.end - range.start) as usize);
        let mut open: Option<(u64, Shard)> = None;
        let per_shard = spec.layout.shard_rows as u64;
        let files =
            (range.start / per_shard..range.end.div_ceil(per_shard)).map(|shard| self.origin_file(shard));
        let dir = self.folder_with(&files.collect::<Vec<_>>())?;
        for (chunk, rows) in self.chunks_of(range) {
            let number = chunk / spec.layout.chunks_per_shard() as u64;
            let shard = match &open {
                Some((open, shard)) if *open == number => shard,
                _ => {
                    let record = &self.0.catalog.shards[number as usize];
                    let name = paths::origin(number);
                    let shard = Shard::open(dir, &name, &record.origin, spec, record.rows)?;
                    &open.insert((number, shard)).1
                }
            };
            let inner = (chunk % spec.layout.chunks_per_shard() as u64) as usize;
            shard.decode_chunk(inner, &mut decoder, &mut planes)?;
            let raw = codec::unshuffle(&planes, size, rows);
            origins.extend(raw.chunks_exact(size).map(codec::little_endian));
        }
        Ok(origins)
    }

    /// Checks that the store knows the tokens of its rows.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] for rows that were imported without them.
    pub fn check_tokens_known(&self) -> Result<()> {
        self.check_known(self.spec().unknown.tokens, "tokens (--tokens)")
    }

    /// Checks that the store knows which token begins its contexts.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] for rows that were imported without it.
    pub fn check_bos_known(&self) -> Result<()> {
        self.check_known(self.spec().unknown.bos_token, "the token that begins contexts (--bos)")
    }

    fn check_known(&self, unknown: bool, what: &'static str) -> Result<()> {
        if unknown { Err(StoreError::Unknown { dir: self.path().to_path_buf(), what }) } else { Ok(()) }
    }

    /// Tokens of the contexts of `range`, `[range.len(), context_length]`.
    ///
    /// # Errors
    /// Contexts beyond the end, a damaged file, and tokens that are not known.
    pub fn context_tokens(&self, range: Range<u64>) -> Result<Array2<u32>> {
        self.check_tokens_known()?;
        self.check_range("contexts", &range, self.contexts())?;
        let (spec, length) = (self.spec(), self.context_length());
        let per_chunk = spec.token_chunk_contexts() as u64;
        let contexts = (range.end - range.start) as usize;
        let files =
            (range.start / per_chunk..range.end.div_ceil(per_chunk)).map(|chunk| self.token_file(chunk));
        let dir = self.folder_with(&files.collect::<Vec<_>>())?;
        let mut tokens = Vec::with_capacity(contexts * length);
        let mut context = range.start;
        while context < range.end {
            let chunk = context / per_chunk;
            let end = range.end.min((chunk + 1) * per_chunk);
            let within = |context: u64| (context - chunk * per_chunk) as usize * length;
            let path = dir.join(paths::tokens(chunk));
            let stored = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
            tokens.extend(codec::decode_tokens(&path, &stored, spec, within(context)..within(end))?);
            context = end;
        }
        Ok(Array2::from_shape_vec((contexts, length), tokens).expect("each context has T tokens"))
    }

    /// The files of the `origin` array.
    pub(crate) fn origin_files(&self) -> Vec<SmallFile> {
        (0..self.0.catalog.shards.len() as u64).map(|shard| self.origin_file(shard)).collect()
    }

    /// The files of the `tokens` array.
    pub(crate) fn token_files(&self) -> Vec<SmallFile> {
        (0..self.0.catalog.tokens.len() as u64).map(|chunk| self.token_file(chunk)).collect()
    }

    fn origin_file(&self, shard: u64) -> SmallFile {
        SmallFile::origin(shard, &self.0.catalog.shards[shard as usize])
    }

    fn token_file(&self, chunk: u64) -> SmallFile {
        SmallFile::tokens(&self.0.catalog.tokens[chunk as usize])
    }

    /// A folder that holds these files of the store: its own, or the cache of a bucket once they are fetched.
    pub(crate) fn folder_with(&self, files: &[SmallFile]) -> Result<&Path> {
        match &self.0.rows {
            Rows::Folder(_) => Ok(&self.0.path),
            Rows::Bucket(cached) => cached.folder_with(files),
            Rows::OutOfReach => Err(self.unread()),
        }
    }

    fn unread(&self) -> StoreError {
        StoreError::InBucket(self.0.path.clone())
    }

    /// Inner chunks with rows, counted through all shards.
    pub(crate) fn chunks(&self) -> u64 {
        self.rows().div_ceil(self.spec().layout.chunk_rows as u64)
    }

    /// Rows in a chunk.
    pub(crate) fn rows_of_chunk(&self, chunk: u64) -> usize {
        let per_chunk = self.spec().layout.chunk_rows as u64;
        per_chunk.min(self.rows() - chunk * per_chunk) as usize
    }

    /// Bytes of a decoded chunk.
    pub(crate) fn chunk_bytes(&self) -> usize {
        self.spec().layout.chunk_rows * self.spec().row_bytes()
    }

    /// Decodes a chunk into its byte planes, `chunk_bytes` long.
    pub(crate) fn decode_chunk(&self, chunk: u64, decoder: &mut Decoder, planes: &mut [u8]) -> Result<()> {
        let per_shard = self.spec().layout.chunks_per_shard() as u64;
        let (shard, inner) = ((chunk / per_shard) as usize, (chunk % per_shard) as usize);
        match &self.0.rows {
            Rows::Folder(shards) => shards[shard].decode_chunk(inner, decoder, planes),
            Rows::Bucket(cached) => cached.decode_chunk(shard, inner, decoder, planes),
            Rows::OutOfReach => Err(self.unread()),
        }
    }

    /// Whether its chunks are fetched, so that it helps to know them before.
    pub(crate) fn is_fetched(&self) -> bool {
        matches!(self.0.rows, Rows::Bucket(_))
    }

    /// Has a bucket's `chunks` fetched, in this order, while others are decoded; `reader` is who reads them.
    pub(crate) fn fetch_ahead(&self, reader: u64, chunks: impl IntoIterator<Item = u64>) {
        if let Rows::Bucket(cached) = &self.0.rows {
            let per_shard = self.spec().layout.chunks_per_shard() as u64;
            let place = |chunk: u64| ((chunk / per_shard) as usize, (chunk % per_shard) as usize);
            cached.fetch_ahead(reader, &chunks.into_iter().map(place).collect::<Vec<_>>());
        }
    }

    /// Takes back what [`Store::fetch_ahead`] asked for and was not fetched yet.
    pub(crate) fn stop_fetching(&self, reader: u64) {
        if let Rows::Bucket(cached) = &self.0.rows {
            cached.stop_fetching(reader);
        }
    }

    /// The chunks that hold rows `range`, each with the rows of it that belong to the range.
    fn chunks_of(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
        let per_chunk = self.spec().layout.chunk_rows as u64;
        (range.start / per_chunk..range.end.div_ceil(per_chunk)).filter_map(move |chunk| {
            let first = chunk * per_chunk;
            let start = range.start.max(first);
            let end = range.end.min(first + per_chunk);
            (start < end).then(|| (chunk, (start - first) as usize..(end - first) as usize))
        })
    }

    fn check_range(&self, what: &'static str, range: &Range<u64>, available: u64) -> Result<()> {
        if range.start > range.end || range.end > available {
            return Err(StoreError::OutOfRange { what, start: range.start, end: range.end, available });
        }
        Ok(())
    }
}

/// Someone who reads chunks, known to a bucket by number as long as this exists.
#[derive(Debug)]
struct Reading<'a> {
    store: &'a Store,
    reader: u64,
}

impl Reading<'_> {
    fn of(store: &Store, chunks: impl IntoIterator<Item = u64>) -> Reading<'_> {
        let reader = next_reader();
        store.fetch_ahead(reader, chunks);
        Reading { store, reader }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.store.stop_fetching(self.reader);
    }
}

/// A number for [`Store::fetch_ahead`] that nobody else has.
pub(crate) fn next_reader() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
