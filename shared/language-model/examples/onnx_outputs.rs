//! Writes tensors of an ONNX file for given token ids, for comparison with other implementations.
//!
//!     onnx_outputs FILE.onnx IDS.safetensors OUT.safetensors [--center] TENSOR...
//!
//! `IDS.safetensors` holds `ids`, int64 `[contexts, length]`. `OUT.safetensors` gets one float32 tensor
//! `[contexts * length, width]` per name.

use std::error::Error;
use std::path::Path;

use language_model::{OnnxFile, PrefixModel, Runtime, SessionOptions};
use ndarray::Array2;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let center = arguments.iter().any(|argument| argument == "--center");
    arguments.retain(|argument| argument != "--center");
    let [file, ids, out, tensors @ ..] = &arguments[..] else {
        return Err(
            "usage: onnx_outputs FILE.onnx IDS.safetensors OUT.safetensors [--center] TENSOR...".into()
        );
    };
    let bytes = std::fs::read(ids)?;
    let stored = SafeTensors::deserialize(&bytes)?;
    let ids = stored.tensor("ids")?;
    let [contexts, length] = *ids.shape() else { return Err("ids must be [contexts, length]".into()) };
    let tokens = ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let tokens = Array2::from_shape_vec((contexts, length), tokens)?;

    let file = OnnxFile::open(Path::new(file))?;
    let tensors: Vec<&str> = tensors.iter().map(String::as_str).collect();
    let options = SessionOptions { center, ..SessionOptions::default() };
    let model = PrefixModel::from_onnx(&Runtime::load(None)?, &file, &tensors, &options)?;
    let activations = model.run(tokens.view())?;

    let rows: Vec<Vec<u8>> = (0..tensors.len())
        .map(|tensor| activations.rows(tensor).iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let mut views = Vec::new();
    for (index, bytes) in rows.iter().enumerate() {
        let shape = vec![contexts * length, model.width(index)];
        views.push((tensors[index].to_string(), TensorView::new(Dtype::F32, shape, bytes)?));
    }
    serialize_to_file(views, None, Path::new(out))?;
    let nodes: usize = model.assignment().map(|(_, _, count)| count).sum();
    println!("{} tensors, {nodes} nodes on {}", tensors.len(), model.provider());
    Ok(())
}
