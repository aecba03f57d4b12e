//! Writes the activations at every hook of every block of a model, for comparison with other implementations.
//!
//!     hook_outputs MODEL_FOLDER IDS.safetensors OUT.safetensors [--center] [--half] [--matrix-units]
//!
//! `IDS.safetensors` holds `ids`, int64 `[contexts, length]`. `OUT.safetensors` gets one float32 tensor
//! `[contexts * length, d_model]` per hook, under the hook's name.

use std::error::Error;
use std::path::Path;

use language_model::{
    Checkpoint, HookPoint, ModelPrecision, PrefixModel, Products, Runtime, SessionOptions, Site,
};
use ndarray::Array2;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let [model, ids, out] = &arguments[..] else {
        return Err(
            "usage: hook_outputs MODEL_FOLDER IDS.safetensors OUT.safetensors [--center] [--half] [--matrix-units]".into()
        );
    };
    let flag = |name: &str| flags.iter().any(|flag| flag == name);
    let bytes = std::fs::read(ids)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let ids = file.tensor("ids")?;
    let [contexts, length] = ids.shape() else { return Err("ids must be [contexts, length]".into()) };
    let tokens = ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let tokens = Array2::from_shape_vec((*contexts, *length), tokens)?;

    let checkpoint = Checkpoint::open(Path::new(model))?;
    let config = checkpoint.config();
    let hooks: Vec<HookPoint> = (0..config.layers)
        .flat_map(|layer| Site::ALL.map(|site| HookPoint { layer, site }))
        .filter(|hook| !config.parallel || hook.site != Site::ResidMid)
        .collect();
    let precision = if flag("--half") { ModelPrecision::Half } else { ModelPrecision::Full };
    let options = SessionOptions {
        center: flag("--center"),
        precision: Some(precision),
        products: if flag("--matrix-units") { Products::MatrixUnits } else { Products::Exact },
        ..SessionOptions::default()
    };
    let model = PrefixModel::load(&Runtime::load(None)?, &checkpoint, &hooks, &options)?;
    let activations = model.run(tokens.view())?;

    let shape = vec![contexts * length, checkpoint.config().d_model];
    let rows: Vec<Vec<u8>> = (0..hooks.len())
        .map(|hook| activations.rows(hook).iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let mut tensors = Vec::new();
    for (hook, bytes) in hooks.iter().zip(&rows) {
        tensors.push((hook.to_string(), TensorView::new(Dtype::F32, shape.clone(), bytes)?));
    }
    serialize_to_file(tensors, None, Path::new(out))?;
    println!("{} hooks on {}, products in {}", hooks.len(), model.provider(), model.products().name());
    Ok(())
}
