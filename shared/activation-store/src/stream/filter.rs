//! Which rows of its stores a stream has.
//!
//! What decides is known of a row before it is decoded: the token and the context that it comes from, and one bit per row
//! where the numbers in it had to be looked at ([`RowMask`]). So a stream knows the rows of every chunk from the start, and
//! stays seekable.

use std::sync::Arc;

use rayon::prelude::*;

use crate::held_out::{HeldOut, Part};
use crate::row_bits::{ChunkBits, bits};
use crate::{Result, RowMask, Store, StoreError};

/// The rows of a stream: those that nothing here leaves out.
#[derive(Debug, Clone, Default)]
pub struct RowFilter {
    /// Leave out rows of the `bos_token` of their store.
    pub drop_bos: bool,
    /// Leave out rows of these tokens.
    pub drop_tokens: Vec<u32>,
    /// Which contexts the rows are of.
    pub part: Part,
    /// Leave out the rows that this mask of the same stores does.
    pub mask: Option<Arc<RowMask>>,
}

impl RowFilter {
    /// For each chunk of `store`, number `number` of the stream, the rows that are kept; `None` if all are.
    pub(crate) fn kept(&self, number: usize, store: &Store) -> Result<Option<Vec<ChunkBits>>> {
        let of_mask = match &self.mask {
            Some(mask) => Some(mask.of(number, store)?),
            None => None,
        };
        let mut kept = match self.kept_positions(store)? {
            None => return Ok(of_mask.map(<[ChunkBits]>::to_vec)),
            Some(positions) => rows_at(store, &positions)?,
        };
        for (chunk, masked) in kept.iter_mut().zip(of_mask.unwrap_or_default()) {
            chunk.iter_mut().zip(masked).for_each(|(word, masked)| *word &= masked);
        }
        Ok(Some(kept))
    }

    /// One bit per token of the text, set if its row is kept, in one piece per chunk of `tokens`; `None` if all are.
    fn kept_positions(&self, store: &Store) -> Result<Option<Vec<Vec<u64>>>> {
        let spec = store.spec();
        let mut dropped = self.drop_tokens.clone();
        if self.drop_bos {
            store.check_bos_known()?;
            dropped.push(spec.bos_token);
        }
        // The store does not have these rows.
        dropped.retain(|&token| !(spec.drop_bos && token == spec.bos_token));
        if dropped.is_empty() && self.part == Part::All {
            return Ok(None);
        }
        let held_out = HeldOut::of(store, self.part);
        if !dropped.is_empty() {
            store.folder_with(&store.token_files())?;
        }
        let per_chunk = spec.token_chunk_contexts() as u64;
        let piece = |chunk: u64| {
            let contexts = chunk * per_chunk..store.contexts().min((chunk + 1) * per_chunk);
            let in_part = contexts
                .clone()
                .flat_map(|context| std::iter::repeat_n(held_out.keeps(context), spec.context_length));
            if dropped.is_empty() {
                return Ok(bits(in_part));
            }
            let tokens = store.context_tokens(contexts)?;
            Ok(bits(tokens.iter().zip(in_part).map(|(token, in_part)| in_part && !dropped.contains(token))))
        };
        let chunks = store.contexts().div_ceil(per_chunk);
        Ok(Some((0..chunks).into_par_iter().map(piece).collect::<Result<_>>()?))
    }
}

/// For each chunk of `store`, the rows that come from `positions`, as [`RowFilter::kept_positions`] has them.
fn rows_at(store: &Store, positions: &[Vec<u64>]) -> Result<Vec<ChunkBits>> {
    let spec = store.spec();
    // A bucket's come all at once instead of a shard at a time.
    store.folder_with(&store.origin_files())?;
    let per_piece = (spec.token_chunk_contexts() * spec.context_length) as u64;
    let shard_rows = spec.layout.shard_rows as u64;
    let shards: Vec<Vec<ChunkBits>> = (0..store.rows().div_ceil(shard_rows))
        .into_par_iter()
        .map(|shard| {
            let range = shard * shard_rows..store.rows().min((shard + 1) * shard_rows);
            let origins = store.origin(range)?;
            let keep = |origin: &u64| -> Result<bool> {
                let piece = positions.get((origin / per_piece) as usize);
                let bit = origin % per_piece;
                let word = piece.and_then(|words| words.get((bit / 64) as usize));
                let word = word.ok_or_else(|| {
                    let file = store.path().join("origin");
                    StoreError::damaged(
                        &file,
                        format!("a row of shard {shard} comes from position {origin}, beyond the tokens"),
                    )
                })?;
                Ok(word >> (bit % 64) & 1 == 1)
            };
            let kept: Vec<bool> = origins.iter().map(keep).collect::<Result<_>>()?;
            let chunks = kept.chunks(spec.layout.chunk_rows);
            Ok(chunks.map(|chunk| bits(chunk.iter().copied()).into_boxed_slice()).collect())
        })
        .collect::<Result<_>>()?;
    Ok(shards.into_iter().flatten().collect())
}
