//! The thread that turns windows of rows into encoded shards.

use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::stages::{Buffers, Commit, Position, lock};
use crate::frame::FrameWriter;
use crate::pages::Planes;
use crate::permutation::{self, Purpose};
use crate::row_slots::RowSlot;
use crate::statistics::{ChunkStatistics, RunningStatistics};
use crate::widen::{prefetch_row, widen_row};
use crate::{Result, StoreError, StoreSpec, codec};

/// A row on its way to the store.
#[derive(Debug)]
pub(super) struct Row {
    /// context · context_length + position.
    pub(super) origin: u64,
    /// The bytes of its elements, in planes.
    pub(super) planes: RowSlot,
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

/// What a compressing thread works with.
struct Scratch {
    frames: FrameWriter,
    planes: Planes,
    values: Vec<f32>,
}

impl Scratch {
    fn new(spec: &StoreSpec) -> Result<Scratch> {
        let frames = FrameWriter::new(spec.layout.zstd_level).map_err(StoreError::Zstd)?;
        let mut planes = Planes::default();
        planes.resize(spec.layout.chunk_rows * spec.row_bytes())?;
        Ok(Scratch { frames, planes, values: Vec::new() })
    }
}

/// Compresses until there is no more work; the statistics of all rows, `statistics` included.
pub(super) fn run(
    spec: &StoreSpec,
    threads: &rayon::ThreadPool,
    mut statistics: RunningStatistics,
    first_shard: u64,
    work: &Receiver<Work>,
    buffers: &Buffers,
    commits: &SyncSender<Commit>,
) -> Result<RunningStatistics> {
    let mut token_compressor =
        zstd::bulk::Compressor::new(spec.layout.zstd_level).map_err(StoreError::Zstd)?;
    // As many as chunks that were compressed at once.
    let scratches: Mutex<Vec<Scratch>> = Mutex::default();
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
                    let encoded: Result<Vec<EncodedChunk>> = threads.install(|| {
                        let encode = |rows| {
                            let scratch = lock(&scratches).pop();
                            let mut scratch = scratch.map_or_else(|| Scratch::new(spec), Ok)?;
                            let encoded = encode(spec, &mut scratch, rows, buffers);
                            lock(&scratches).push(scratch);
                            encoded
                        };
                        chunks.into_par_iter().map(encode).collect()
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
    scratch: &mut Scratch,
    mut rows: Vec<Row>,
    buffers: &Buffers,
) -> Result<EncodedChunk> {
    /// Rows whose statistics are taken at once.
    const GROUP: usize = 4;
    let Scratch { frames, planes, values } = scratch;
    let origins: Vec<u64> = rows.iter().map(|row| row.origin).collect();
    let origin = codec::encode_origins(frames.compressor(), spec, &origins).map_err(StoreError::Zstd)?;

    let (size, width) = (spec.row_type.bytes(), spec.width);
    let per_plane = spec.layout.chunk_rows * width;
    let mut statistics = ChunkStatistics::new(width);
    values.resize(GROUP * width, 0.0);
    for first in (0..rows.len()).step_by(GROUP) {
        let last = rows.len().min(first + GROUP);
        // The rows of a chunk lie all over the window's memory.
        for row in &rows[last..rows.len().min(last + GROUP)] {
            prefetch_row(&row.planes, spec.row_type, 0, width);
        }
        for (number, values) in (first..last).zip(values.chunks_exact_mut(width)) {
            let row = &rows[number].planes;
            for byte in 0..size {
                planes[byte * per_plane + number * width..][..width]
                    .copy_from_slice(&row[byte * width..(byte + 1) * width]);
            }
            widen_row(row, spec.row_type, 0, values);
        }
        statistics.add(&values[..(last - first) * width]);
    }
    // The last chunk is padded with zeros, as Zarr wants.
    for plane in planes.chunks_exact_mut(per_plane) {
        plane[rows.len() * width..].fill(0);
    }
    // The writer can fill these rows anew while this chunk is being compressed. Nobody listens once it has finished.
    let full = rows.len() == spec.layout.chunk_rows;
    let _ = buffers.returned.send(rows.drain(..).map(|row| row.planes).collect());
    let mut activations = lock(&buffers.emptied).pop().unwrap_or_default();
    // zstd finds the zeros that fill up the last chunk.
    let encoded = match full {
        true => codec::encode_rows(frames, spec, planes, &mut activations),
        false => codec::encode_chunk(frames.compressor(), planes, &mut activations),
    };
    encoded.map_err(StoreError::Zstd)?;
    Ok(EncodedChunk { activations, origin, statistics: statistics.finish() })
}

/// The first error of the background threads, for whoever asks next.
pub(super) type Failure = Arc<Mutex<Option<StoreError>>>;
