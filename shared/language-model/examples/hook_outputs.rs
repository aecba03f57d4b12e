//! Every hook of every block of a model, for comparison with other implementations.
//!
//!     hook_outputs MODEL_FOLDER IDS.safetensors OUT.safetensors [--center]
//!
//! `IDS.safetensors` holds `ids`, int64 `[contexts, length]`. `OUT.safetensors` gets one float32 tensor
//! `[contexts * length, d_model]` per hook, named by it.

use std::error::Error;
use std::path::Path;

use language_model::{Checkpoint, Device, HookPoint, PrefixModel, Runtime, SessionOptions, Site};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, ids, out, center) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [model, ids, out] => (model, ids, out, false),
        [model, ids, out, "--center"] => (model, ids, out, true),
        _ => return Err("usage: hook_outputs MODEL_FOLDER IDS.safetensors OUT.safetensors [--center]".into()),
    };
    let bytes = std::fs::read(ids)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let ids = file.tensor("ids")?;
    let [contexts, length] = ids.shape() else { return Err("ids must be [contexts, length]".into()) };
    let tokens: Vec<i64> =
        ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();

    let checkpoint = Checkpoint::open(Path::new(model))?;
    let hooks: Vec<HookPoint> = (0..checkpoint.config().layers)
        .flat_map(|layer| Site::ALL.map(|site| HookPoint { layer, site }))
        .collect();
    let options = SessionOptions { device: Device::Auto, threads: 0, center, precision: None };
    let model = PrefixModel::load(&Runtime::load(None)?, &checkpoint, &hooks, &options)?;
    let activations = model.run(&tokens, *contexts, *length)?;

    let shape = vec![contexts * length, checkpoint.config().d_model];
    let rows: Vec<Vec<u8>> = (0..hooks.len())
        .map(|hook| activations.rows(hook).iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let mut tensors = Vec::new();
    for (hook, bytes) in hooks.iter().zip(&rows) {
        tensors.push((hook.to_string(), TensorView::new(Dtype::F32, shape.clone(), bytes)?));
    }
    serialize_to_file(tensors, None, Path::new(out))?;
    println!("{} hooks on {}", hooks.len(), model.provider());
    Ok(())
}
