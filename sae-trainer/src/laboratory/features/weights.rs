//! The weights that an index is of, and the model's that its features act on.

use std::path::Path;

use anyhow::{Result, ensure};
use language_model::{Checkpoint, Unembedding};
use ndarray::Array2;
use terminal::{foreign, foreign_path};

use super::index::Index;
use crate::autoencoder::load;

/// CRC-32C of the numbers of a decoder.
pub(crate) fn decoder_crc32c(decoder: &Array2<f32>) -> u32 {
    decoder
        .as_standard_layout()
        .iter()
        .fold(0, |crc, number| crc32c::crc32c_append(crc, &number.to_le_bytes()))
}

/// The decoder of the autoencoder in `sae`, [F, d], if the index in `folder` is of it.
pub(crate) fn decoder(index: &Index, folder: &Path, sae: &Path) -> Result<Array2<f32>> {
    let decoder = load(sae)?.weights.w_dec;
    ensure!(
        decoder_crc32c(&decoder) == index.record.decoder_crc32c && decoder.nrows() == index.record.features,
        "the index in {} is not of the autoencoder in {} as it is now; remove it and make it again",
        foreign_path(folder),
        foreign_path(sae)
    );
    Ok(decoder)
}

/// What directions of `width` numbers add to the logits of the model in `folder`, before the final norm divides by its scale.
pub(crate) fn unembedding(index: &Index, folder: &Path, width: usize) -> Result<Unembedding> {
    let checkpoint = Checkpoint::open(folder)?;
    let (record, found) = (&index.record, checkpoint.hash()?);
    ensure!(
        record.model_hash.is_empty() || record.model_hash == found,
        "{} is not the model of {}, which is {} with weights of SHA-256 {}; these have {found}",
        foreign_path(folder),
        foreign_path(&record.store),
        foreign(&record.model),
        foreign(&record.model_hash)
    );
    let unembedding = Unembedding::read(&checkpoint)?;
    ensure!(
        width == unembedding.weights.ncols(),
        "the decoder's rows have {width} numbers, and the residual stream of {} has {}: they have no effect on logits of their own; \
         leave --model out, and name the tokenizer with --tokenizer",
        foreign_path(folder),
        unembedding.weights.ncols()
    );
    Ok(unembedding)
}
