//! Opens an ONNX Runtime session.

use std::path::Path;

use ort::ep;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;

use crate::operators::{self, Packed};
use crate::{Error, Runtime, assignment, cuda};

/// A session on `graph`, serialized, whose external data lies in `weights_folder`. With operators of our own it takes weights that
/// another session has split already.
pub(crate) fn session(
    runtime: &Runtime,
    graph: &[u8],
    weights_folder: &Path,
    threads: usize,
    cuda: bool,
    own: Option<&Packed>,
) -> Result<Session, Error> {
    let folder = weights_folder.to_str().ok_or_else(|| Error::NotAModel {
        path: weights_folder.to_path_buf(),
        problem: "ONNX Runtime needs a path in UTF-8".to_string(),
    })?;
    let configuring = "configuring the session";
    let mut builder = Session::builder(&runtime.environment)
        .map_err(Error::onnx(configuring))?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(Error::onnx(configuring))?
        .with_intra_threads(threads)
        .map_err(Error::onnx(configuring))?
        .with_config_entry("session.model_external_initializers_file_folder_path", folder)
        .map_err(Error::onnx(configuring))?
        .with_config_entry(assignment::RECORD, "1")
        .map_err(Error::onnx(configuring))?;
    if let Some(packed) = own {
        let registering = "registering the operators of matrix units";
        if let Some(operators) = operators::operators(threads, packed).map_err(Error::onnx(registering))? {
            builder = builder.with_operators(operators).map_err(Error::onnx(registering))?;
        }
    }
    if !cuda {
        // Threads that wait for each other by spinning take the cores from those that tokenize and store.
        builder = builder
            .with_config_entry("session.intra_op.allow_spinning", "0")
            .map_err(Error::onnx(configuring))?;
    }
    if cuda {
        let library = runtime.cuda_provider();
        cuda::preload(&library);
        // Without `error_on_failure` the CPU would run in its place, and nobody would know.
        // TF32 would round every product's factors to 10 bits; float32 means float32.
        let provider = ep::CUDA::default().with_device_id(0).with_tf32(false);
        builder = builder
            .with_execution_providers([provider.build().error_on_failure()])
            .map_err(|error| Error::CudaUnavailable(cuda::explain(error.message(), &library)))?;
    }
    builder.commit_from_memory(graph).map_err(Error::onnx("loading the graph"))
}
