//! The thread that turns windows of rows into encoded shards.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::stages::{Commit, Position};
use crate::permutation::{self, Purpose};
use crate::rounding::RowBits;
use crate::statistics::RunningStatistics;
use crate::{Result, StoreError, StoreSpec, codec};

/// A row on its way to the store.
#[derive(Debug)]
pub(super) struct Row {
    /// context · context_length + position.
    pub(super) origin: u64,
    pub(super) bits: RowBits,
}

/// What the writer sends to this thread, in the order of the text.
#[derive(Debug)]
pub(super) enum Work {
    /// A chunk of `tokens`: all its contexts, or those so far.
    Tokens { chunk: u64, tokens: Vec<u32> },
    /// A window's rows in the order of the text.
    Window { window: u64, rows: Vec<Row>, from: Position, to: Position, clipped: u64 },
}

/// One encoded chunk of rows.
struct EncodedChunk {
    activations: Vec<u8>,
    origin: Vec<u8>,
    statistics: RunningStatistics,
}

/// What each compressing thread keeps.
struct Scratch {
    compressor: zstd::bulk::Compressor<'static>,
    planes: Vec<u8>,
    returned: Sender<Vec<RowBits>>,
}

/// Compresses until there is no more work; the statistics of all rows, `statistics` included.
pub(super) fn run(
    spec: &StoreSpec,
    threads: &rayon::ThreadPool,
    mut statistics: RunningStatistics,
    first_shard: u64,
    work: &Receiver<Work>,
    returned: &Sender<Vec<RowBits>>,
    commits: &SyncSender<Commit>,
) -> Result<RunningStatistics> {
    let compressor = || zstd::bulk::Compressor::new(spec.layout.zstd_level);
    let mut token_compressor = compressor().map_err(StoreError::Zstd)?;
    let mut shard = first_shard;
    while let Ok(work) = work.recv() {
        let sent = match work {
            Work::Tokens { chunk, tokens } => {
                let encoded =
                    codec::encode_tokens(&mut token_compressor, spec, &tokens).map_err(StoreError::Zstd)?;
                commits.send(Commit::Tokens { chunk, encoded })
            }
            Work::Window { window, mut rows, from, to, clipped } => {
                permutation::shuffle(&mut rows, spec.seed, Purpose::Window, window, 0);
                let mut rows = rows.into_iter();
                while rows.len() > 0 {
                    let mut chunks = Vec::new();
                    while rows.len() > 0 && chunks.len() < spec.layout.chunks_per_shard() {
                        chunks.push(rows.by_ref().take(spec.layout.chunk_rows).collect::<Vec<_>>());
                    }
                    let stored = chunks.iter().map(|chunk| chunk.len() as u64).sum();
                    // A scratch is made once per thread and call; the mutex only hands `returned` to the threads.
                    let returned = Mutex::new(returned);
                    let scratch = || {
                        let returned = returned.lock().expect("no thread panics holding it").clone();
                        Ok(Scratch { compressor: compressor()?, planes: Vec::new(), returned })
                    };
                    let encoded: Result<Vec<EncodedChunk>> = threads.install(|| {
                        let chunks = chunks.into_par_iter();
                        chunks
                            .map_init(scratch, |scratch, rows| encode(spec, scratch.as_mut(), rows))
                            .collect()
                    });
                    let mut activations = Vec::new();
                    let mut origin = Vec::new();
                    for chunk in encoded? {
                        statistics.merge(&chunk.statistics);
                        activations.push(chunk.activations);
                        origin.push(chunk.origin);
                    }
                    if commits.send(Commit::Shard { shard, rows: stored, activations, origin }).is_err() {
                        return Ok(statistics); // the committing thread stopped and says why
                    }
                    shard += 1;
                }
                commits.send(Commit::Window { window, from, to, clipped, statistics: statistics.clone() })
            }
        };
        if sent.is_err() {
            break;
        }
    }
    Ok(statistics)
}

fn encode(
    spec: &StoreSpec,
    scratch: Result<&mut Scratch, &mut io::Error>,
    rows: Vec<Row>,
) -> Result<EncodedChunk> {
    let Scratch { compressor, planes, returned } =
        scratch.map_err(|error| StoreError::Zstd(io::Error::new(error.kind(), error.to_string())))?;

    let (size, origin_size) = (spec.row_type.bytes(), spec.origin_bytes());
    // The last chunk is padded with zeros, as Zarr wants.
    planes.clear();
    planes.resize(spec.layout.chunk_rows * origin_size, 0);
    for (number, row) in rows.iter().enumerate() {
        let bytes = row.origin.to_le_bytes();
        codec::shuffle_into(&bytes[..origin_size], origin_size, planes, number);
    }
    let origin = codec::encode_chunk(compressor, planes).map_err(StoreError::Zstd)?;

    planes.clear();
    planes.resize(spec.layout.chunk_rows * spec.row_bytes(), 0);
    for (number, row) in rows.iter().enumerate() {
        codec::shuffle_into(bytemuck::cast_slice(&row.bits), size, planes, number * spec.width);
    }
    let count = rows.len();
    // The writer can fill these rows anew while this chunk is being compressed. Nobody listens once it has finished.
    let _ = returned.send(rows.into_iter().map(|row| row.bits).collect());
    let statistics = RunningStatistics::of(spec.row_type, spec.width, planes, count);
    let activations = codec::encode_chunk(compressor, planes).map_err(StoreError::Zstd)?;
    Ok(EncodedChunk { activations, origin, statistics })
}

/// The first error of the background threads, for whoever asks next.
pub(super) type Failure = Arc<Mutex<Option<StoreError>>>;
