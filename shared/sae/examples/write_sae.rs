//! Writes a small random autoencoder in SAELens' format, with what it computes.
//!
//!     write_sae FOLDER [--pre-bias]
//!
//! `FOLDER/expected.safetensors` holds `x` [9, 19], `features` [9, 50] and `reconstruction` [9, 19]
//! as this crate computes them; `tests/peers/test_sae_lens.py` compares SAELens' numbers with them.

use std::error::Error;
use std::path::PathBuf;

use ndarray::Array2;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sae::{Config, Metadata, Sae, Weights};
use safetensors::{Dtype, tensor::TensorView};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let folder: PathBuf = arguments.next().ok_or("usage: write_sae FOLDER [--pre-bias]")?.into();
    let pre_bias = arguments.next().is_some_and(|a| a == "--pre-bias");

    let (rows, d, f) = (9, 19, 50);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut uniform = |n: usize| -> Vec<f32> {
        (0..n).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    };
    let mut weights = Weights::init(d, f, 7);
    weights.b_enc = uniform(f).into();
    weights.b_dec = uniform(d).into();
    let x = Array2::from_shape_vec((rows, d), uniform(rows * d))?;
    let metadata = Metadata {
        model_name: Some("gpt2-small".into()),
        hook_name: Some("blocks.1.hook_resid_pre".into()),
        context_size: Some(128),
        prepend_bos: Some(true),
        dataset_path: Some("openwebtext".into()),
        ..Metadata::default()
    };
    let log_sparsity = Some(uniform(f));
    let sae = Sae { weights, config: Config::standard(d, f, pre_bias, metadata), log_sparsity };
    sae.save(&folder)?;

    let features = sae.encode(x.view());
    let reconstruction = sae.decode(features.view());
    let mut tensors = Vec::new();
    for (name, array) in [("x", &x), ("features", &features), ("reconstruction", &reconstruction)] {
        let numbers = bytemuck::cast_slice(array.as_slice().expect("row-major"));
        tensors.push((name, TensorView::new(Dtype::F32, array.shape().to_vec(), numbers)?));
    }
    safetensors::serialize_to_file(tensors, None, &folder.join("expected.safetensors"))?;
    Ok(())
}
