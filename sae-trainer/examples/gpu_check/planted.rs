//! Synthetic rows and the autoencoder that they were made for: a store to train from on a machine without a language model,
//! in the sparse regime from the first step.
//!
//! A row is a sum of a few of the decoder's F directions, x = Σ s_j·W_dec_j. The directions are random, so the other
//! directions' products with a row are nearly normal, with a standard deviation of ‖x‖/√d. The bias lies 3.5 of those below
//! 0, which about F/4300 others pass.

use std::path::Path;

use activation_store::{Layout, Provenance, StoreSpec, StoreWriter, WriterOptions};
use anyhow::Result;
use ndarray::{ArrayView2, ArrayView3};
use rayon::prelude::*;
use sae::{Config, Metadata, Sae, Weights};

use example_steps::numbers;

const CONTEXT: usize = 128;
/// Contexts whose rows are made at the same time.
const AT_ONCE: usize = 64;
/// Directions that a row is made of at most, and the range of their strengths.
const ACTIVE: usize = 20;
const STRENGTH: (f32, f32) = (1.5, 0.5);
/// How many standard deviations of what the other directions add the bias lies below 0.
const DEVIATIONS: f32 = 3.5;

/// Writes `contexts` contexts of 128 rows of `width` numbers to the store `folder`/acts, and their autoencoder of `features`
/// features to `folder`/sae. Returns the number of failures: none.
pub(crate) fn write(folder: &Path, contexts: usize, width: usize, features: usize) -> Result<usize> {
    let directions = directions(width, features);
    std::fs::create_dir_all(folder)?;
    let config = Config::standard(width, features, false, Metadata::default());
    let weights = autoencoder(&directions, width, features);
    Sae { weights, config, log_sparsity: None }.save(&folder.join("sae"))?;
    write_store(&folder.join("acts"), contexts, width, &directions)?;
    println!("{} rows of {width} and an autoencoder in {}", contexts * CONTEXT, folder.display());
    Ok(0)
}

/// Unit vectors [features, width].
fn directions(width: usize, features: usize) -> Vec<f32> {
    let mut directions = numbers(features * width, 1);
    for direction in directions.chunks_exact_mut(width) {
        let norm = direction.iter().map(|x| x * x).sum::<f32>().sqrt();
        direction.iter_mut().for_each(|x| *x /= norm);
    }
    directions
}

/// A row has as many directions as leave them tellable apart.
fn active(width: usize) -> usize {
    ACTIVE.min(width.div_ceil(16))
}

/// How far below 0 the bias lies for an encoder of unit vectors.
fn threshold(width: usize) -> f32 {
    let norm = STRENGTH.0 * (active(width) as f32).sqrt();
    DEVIATIONS * norm / (width as f32).sqrt()
}

/// The encoder is the decoder, stretched so that a direction of average strength comes out with it.
fn autoencoder(directions: &[f32], width: usize, features: usize) -> Weights {
    let threshold = threshold(width).min(0.8 * STRENGTH.0);
    let stretch = STRENGTH.0 / (STRENGTH.0 - threshold);
    let mut weights = Weights::init(width, features, 0);
    let directions = ArrayView2::from_shape((features, width), directions).expect("a direction per feature");
    weights.w_dec.assign(&directions);
    weights.w_enc.assign(&directions.t().mapv(|x| stretch * x));
    weights.b_enc.fill(-stretch * threshold);
    weights.b_dec.fill(0.0);
    weights
}

fn write_store(folder: &Path, contexts: usize, width: usize, directions: &[f32]) -> Result<()> {
    let spec = StoreSpec {
        vocabulary: 50_257,
        layout: Layout { window_rows: 65_536, shard_rows: 65_536, chunk_rows: 2048, zstd_level: 1 },
        provenance: Provenance {
            model: "none".into(),
            hook: "made up".into(),
            dataset: vec!["random sums of directions".into()],
            ..Provenance::default()
        },
        ..StoreSpec::new(width, CONTEXT, contexts as u64)
    };
    let mut writer = StoreWriter::open(folder, &spec, &WriterOptions::default())?;
    let numbers: Vec<usize> = (0..contexts).collect();
    for some in numbers.chunks(AT_ONCE) {
        let rows: Vec<f32> =
            some.par_iter().flat_map_iter(|context| context_rows(*context, width, directions)).collect();
        let tokens: Vec<u32> = some.iter().flat_map(|_| 0..CONTEXT as u32).collect();
        let tokens = ArrayView2::from_shape((some.len(), CONTEXT), &tokens)?;
        let rows = ArrayView3::from_shape((some.len(), CONTEXT, width), &rows)?;
        writer.append(tokens, rows)?;
    }
    writer.finish()?;
    Ok(())
}

/// The rows of one context, [128, width].
fn context_rows(context: usize, width: usize, directions: &[f32]) -> Vec<f32> {
    let (features, active) = (directions.len() / width, active(width));
    let choices = numbers(CONTEXT * active * 2, 77 + context as u64);
    let mut rows = vec![0.0f32; CONTEXT * width];
    for (row, choices) in rows.chunks_exact_mut(width).zip(choices.chunks_exact(active * 2)) {
        for choice in choices.chunks_exact(2) {
            let at = ((choice[0] + 1.0) / 2.0 * features as f32) as usize;
            let direction = &directions[at.min(features - 1) * width..][..width];
            let strength = STRENGTH.0 + STRENGTH.1 * choice[1];
            row.iter_mut().zip(direction).for_each(|(x, d)| *x += strength * d);
        }
    }
    rows
}
