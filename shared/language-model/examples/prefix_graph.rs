//! Writes the ONNX graph that a model runs as, for other tools to run or inspect.
//!
//!     prefix_graph MODEL_FOLDER HOOK OUT.onnx
//!
//! The weights stay in the model folder. Run OUT.onnx from there, or tell ONNX Runtime where they are
//! with the session option `session.model_external_initializers_file_folder_path`.

use std::error::Error;
use std::path::Path;

use language_model::{Checkpoint, ModelPrecision, prefix_graph};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, hook, out] = &arguments[..] else {
        return Err("usage: prefix_graph MODEL_FOLDER HOOK OUT.onnx".into());
    };
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let graph = prefix_graph(&checkpoint, &[hook.parse()?], false, ModelPrecision::Full)?;
    std::fs::write(out, &graph)?;
    println!("{} bytes; weights in {}", graph.len(), checkpoint.weights_folder().display());
    Ok(())
}
