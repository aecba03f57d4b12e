//! Writes what a model predicts with something else at a hook, for comparison with other implementations.
//!
//!     predictions MODEL_FOLDER HOOK IN.safetensors OUT.safetensors
//!
//! `IN.safetensors` holds `ids`, int64 `[contexts, length]`, and `rows`, float32 `[variants, contexts * length, d_model]`.
//! `OUT.safetensors` gets `loss` `[variants, contexts, length - 1]` and `kl` `[variants, contexts, length]`, float32.

use std::error::Error;
use std::path::Path;

use language_model::{Checkpoint, Runtime, SessionOptions, SuffixModel};
use ndarray::{Array2, Array3};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, hook, input, out] = &arguments[..] else {
        return Err("usage: predictions MODEL_FOLDER HOOK IN.safetensors OUT.safetensors".into());
    };
    let bytes = std::fs::read(input)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let (ids, rows) = (file.tensor("ids")?, file.tensor("rows")?);
    let [contexts, length] = ids.shape() else { return Err("ids must be [contexts, length]".into()) };
    let [variants, count, width] = rows.shape() else {
        return Err("rows must be [variants, rows, d_model]".into());
    };
    let tokens = ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let tokens = Array2::from_shape_vec((*contexts, *length), tokens)?;
    let numbers = rows.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let rows = Array3::from_shape_vec((*variants, *count, *width), numbers)?;

    let checkpoint = Checkpoint::open(Path::new(model))?;
    let model =
        SuffixModel::load(&Runtime::load(None)?, &checkpoint, hook.parse()?, &SessionOptions::default())?;
    let predictions = model.run(tokens.view(), rows.view())?;
    let bytes = |numbers: &Array3<f32>| -> Vec<u8> { numbers.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let (loss, kl) = (bytes(&predictions.loss), bytes(&predictions.kl));
    let tensors = [
        ("loss", TensorView::new(Dtype::F32, vec![*variants, *contexts, length - 1], &loss)?),
        ("kl", TensorView::new(Dtype::F32, vec![*variants, *contexts, *length], &kl)?),
    ];
    serialize_to_file(tensors, None, Path::new(out))?;
    println!("{variants} variants of {contexts} contexts at {hook}");
    Ok(())
}
