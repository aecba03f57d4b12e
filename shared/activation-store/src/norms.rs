//! The Euclidean norms of a store's rows, and which rows are within a limit.
//!
//! A norm is known once its row is decoded. [`RowMask::within_norm`] decodes every row once and keeps one bit of it.

use std::ops::Range;

use rayon::prelude::*;

use crate::permutation::{self, Purpose};
use crate::row_bits::{ChunkBits, bits};
use crate::shard::Decoder;
use crate::widen::widen_row;
use crate::{Result, Store, StoreError};

/// Rows of which the median norm is taken.
const SAMPLE_ROWS: u64 = 65_536;

/// Seed of the sample: the same rows whoever asks.
const SAMPLE_SEED: u64 = 0x6e6f_726d;

/// One bit for each row of some stores, set for the rows that a stream may have.
#[derive(Debug)]
pub struct RowMask {
    /// For each store, for each chunk.
    stores: Vec<Vec<ChunkBits>>,
    left_out: u64,
}

impl RowMask {
    /// The rows of `stores` whose Euclidean norm is at most `limit`. Reads every row, with all threads; `progress` is called
    /// by any of them with a number of rows that were just read.
    ///
    /// # Errors
    /// Damage, with file and chunk.
    pub fn within_norm(stores: &[Store], limit: f64, progress: impl Fn(u64) + Sync) -> Result<RowMask> {
        let always = |rows| {
            progress(rows);
            true
        };
        Ok(Self::within_norm_while(stores, limit, always)?.expect("it was never told to stop"))
    }

    /// [`RowMask::within_norm`] for as long as `go_on`, which is called in its place, says so; `None` if it did not to the end.
    ///
    /// # Errors
    /// As [`RowMask::within_norm`].
    pub fn within_norm_while(
        stores: &[Store],
        limit: f64,
        go_on: impl Fn(u64) -> bool + Sync,
    ) -> Result<Option<RowMask>> {
        // `None` ends the iteration, as an error does.
        let mask = |store: &Store| -> Option<Result<Vec<ChunkBits>>> {
            (0..store.chunks())
                .into_par_iter()
                .map_init(Reader::default, |reader, chunk| {
                    let norms = match reader.norms(store, chunk) {
                        Ok(norms) => norms,
                        Err(error) => return Some(Err(error)),
                    };
                    let kept = bits(norms.iter().map(|&norm| norm <= limit)).into_boxed_slice();
                    go_on(norms.len() as u64).then_some(Ok(kept))
                })
                .collect::<Option<Result<Vec<_>>>>()
        };
        let Some(masks) = stores.iter().map(mask).collect::<Option<Result<Vec<Vec<ChunkBits>>>>>() else {
            return Ok(None);
        };
        let masks = masks?;
        let kept =
            masks.iter().flatten().flat_map(|chunk| chunk.iter()).map(|word| u64::from(word.count_ones()));
        let left_out = stores.iter().map(Store::rows).sum::<u64>() - kept.sum::<u64>();
        Ok(Some(RowMask { stores: masks, left_out }))
    }

    /// The rows that are left out.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Store `number`'s, which has to be of the size of `store`.
    pub(crate) fn of(&self, number: usize, store: &Store) -> Result<&[ChunkBits]> {
        let fits = |chunks: &&Vec<ChunkBits>| {
            let words = |chunk: u64| store.rows_of_chunk(chunk).div_ceil(64);
            chunks.iter().map(|bits| bits.len()).eq((0..store.chunks()).map(words))
        };
        let mask = self.stores.get(number).filter(fits);
        mask.map(Vec::as_slice)
            .ok_or_else(|| StoreError::Stream("the mask of the rows is that of other stores".to_owned()))
    }
}

/// The median Euclidean norm of about 65,536 rows of `stores`, in chunks drawn from all of them; the same for everyone.
///
/// # Errors
/// Damage, with file and chunk. No row.
pub fn median_norm(stores: &[Store]) -> Result<f64> {
    let all = |(number, store): (usize, &Store)| (0..store.chunks()).map(move |chunk| (number, chunk));
    let mut chunks: Vec<(usize, u64)> = stores.iter().enumerate().flat_map(all).collect();
    permutation::shuffle(&mut chunks, SAMPLE_SEED, Purpose::NormSample, 0, 0);
    let mut rows = 0;
    let enough = |(number, chunk): &(usize, u64)| {
        let before = rows;
        rows += stores[*number].rows_of_chunk(*chunk) as u64;
        before < SAMPLE_ROWS
    };
    let sample: Vec<(usize, u64)> = chunks.into_iter().take_while(enough).collect();
    let norms: Vec<Vec<f64>> = sample
        .into_par_iter()
        .map_init(Reader::default, |reader, (number, chunk)| {
            Ok(reader.norms(&stores[number], chunk)?.to_vec())
        })
        .collect::<Result<_>>()?;
    let mut norms = norms.concat();
    let middle = norms.len() / 2;
    if norms.is_empty() {
        return Err(StoreError::Stream("no store given".to_owned()));
    }
    Ok(*norms.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// Buffers of a thread that reads norms.
#[derive(Default)]
struct Reader {
    decoder: Option<Decoder>,
    planes: Vec<u8>,
    row: Vec<f32>,
    norms: Vec<f64>,
}

impl Reader {
    /// The norms of a chunk's rows.
    fn norms(&mut self, store: &Store, chunk: u64) -> Result<&[f64]> {
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(Decoder::new()?),
        };
        self.planes.resize(store.chunk_bytes(), 0);
        self.row.resize(store.width(), 0.0);
        store.decode_chunk(chunk, decoder, &mut self.planes)?;
        self.norms.clear();
        let rows: Range<usize> = 0..store.rows_of_chunk(chunk);
        for row in rows {
            widen_row(&self.planes, store.row_type(), row, &mut self.row);
            self.norms.push(norm(&self.row));
        }
        Ok(&self.norms)
    }
}

/// ‖row‖, summed in float64 in an order that does not depend on the processor.
fn norm(row: &[f32]) -> f64 {
    let (blocks, rest) = row.as_chunks::<8>();
    let mut sums = [0.0_f64; 8];
    for block in blocks {
        for (sum, &value) in sums.iter_mut().zip(block) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    let rest: f64 = rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    (sums.iter().sum::<f64>() + rest).sqrt()
}
