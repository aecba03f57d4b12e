//! A model's prefix, running: token ids in, activations out.

use ort::ep;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{Tensor, TensorRef};

use crate::{Checkpoint, Error, Family, HookPoint, Runtime, cuda, gpt2, graph, llama};

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// On CUDA if there are a device and a provider for it, else on the CPU. When both are there
    /// and CUDA fails all the same, that is an error, not a silent fall-back.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On the first CUDA device; an error where there is none.
    Cuda,
}

/// How a [`PrefixModel`] runs and what it computes.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Where the model runs.
    pub device: Device,
    /// Threads of the CPU provider; 0 takes one per core.
    pub threads: usize,
    /// Subtract from each activation vector its mean over the `d_model` components, at every hook.
    /// What TransformerLens computes with `center_writing_weights`; harmless for LayerNorm models,
    /// a change of the model for others.
    pub center: bool,
}

/// The part of a model that its hooks depend on, ready to run.
#[derive(Debug)]
pub struct PrefixModel {
    session: Session,
    hooks: Vec<HookPoint>,
    provider: &'static str,
    d_model: usize,
    vocabulary: usize,
    max_positions: usize,
}

/// What one [`PrefixModel::run`] computed. The rows stay where ONNX Runtime wrote them; the value
/// can be sent to another thread and outlives the model.
#[derive(Debug)]
pub struct Activations {
    hooks: Vec<Tensor<f32>>,
}

impl Activations {
    /// The activations at the hook with this index in the list given to [`PrefixModel::load`]:
    /// row-major `[contexts * length, d_model]`.
    pub fn rows(&self, hook: usize) -> &[f32] {
        self.hooks[hook].extract_tensor().1
    }
}

impl PrefixModel {
    /// Builds the graph of `checkpoint` up to `hooks` and opens a session on it. Each hook's
    /// activations come out of [`PrefixModel::run`] in the order given here.
    ///
    /// # Errors
    /// When a hook's layer is out of range, the checkpoint lacks a tensor or has one of another
    /// shape, the device is not there, or ONNX Runtime refuses the graph.
    pub fn load(
        runtime: &Runtime,
        checkpoint: &Checkpoint,
        hooks: &[HookPoint],
        options: &SessionOptions,
    ) -> Result<PrefixModel, Error> {
        let bytes = prefix_graph(checkpoint, hooks, options.center)?;
        let cuda = use_cuda(runtime, options.device)?;
        let folder = checkpoint.weights_folder();
        let folder = folder.to_str().ok_or_else(|| Error::NotAModel {
            path: folder.to_path_buf(),
            problem: "ONNX Runtime needs a path in UTF-8".to_string(),
        })?;

        let configuring = "configuring the session";
        let mut builder = Session::builder(&runtime.environment)
            .map_err(Error::onnx(configuring))?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(Error::onnx(configuring))?
            .with_intra_threads(options.threads)
            .map_err(Error::onnx(configuring))?
            .with_config_entry("session.model_external_initializers_file_folder_path", folder)
            .map_err(Error::onnx(configuring))?;
        if cuda {
            // Without `error_on_failure` the CPU would run in its place, and nobody would know.
            // TF32 would round every product's factors to 10 bits; these are float32 activations.
            let provider = ep::CUDA::default().with_device_id(0).with_tf32(false);
            builder = builder
                .with_execution_providers([provider.build().error_on_failure()])
                .map_err(|error| Error::CudaUnavailable(error.message().to_string()))?;
        }
        let session = builder.commit_from_memory(&bytes).map_err(Error::onnx("loading the graph"))?;
        let config = checkpoint.config();
        Ok(PrefixModel {
            session,
            hooks: hooks.to_vec(),
            provider: if cuda { "CUDAExecutionProvider" } else { "CPUExecutionProvider" },
            d_model: config.d_model,
            vocabulary: config.vocabulary,
            max_positions: config.max_positions,
        })
    }

    /// The hooks, in the order of [`Activations::rows`].
    pub fn hooks(&self) -> &[HookPoint] {
        &self.hooks
    }

    /// ONNX Runtime's name for what the model runs on.
    pub fn provider(&self) -> &str {
        self.provider
    }

    /// Runs the model on `contexts` contexts of `length` tokens each; `ids` is row-major
    /// `[contexts, length]`. Contexts do not see each other, a token sees those before it.
    ///
    /// # Errors
    /// When `ids` has another length or holds an id outside the vocabulary, a context is longer
    /// than the model's positions, or ONNX Runtime fails.
    pub fn run(&mut self, ids: &[i64], contexts: usize, length: usize) -> Result<Activations, Error> {
        self.check_input(ids, contexts, length)?;
        let failed = "running the graph";
        let input = TensorRef::from_array_view(([contexts, length], ids)).map_err(Error::onnx(failed))?;
        let mut outputs =
            self.session.run(ort::inputs![graph::INPUT => input]).map_err(Error::onnx(failed))?;
        let mut hooks = Vec::with_capacity(self.hooks.len());
        for index in 0..self.hooks.len() {
            let output = outputs.remove(graph::output_name(index)).ok_or_else(|| Error::Onnx {
                doing: failed,
                message: format!("output {index} is missing"),
            })?;
            let tensor =
                output.downcast::<ort::value::TensorValueType<f32>>().map_err(Error::onnx(failed))?;
            debug_assert_eq!(tensor.extract_tensor().1.len(), contexts * length * self.d_model);
            hooks.push(tensor);
        }
        Ok(Activations { hooks })
    }

    fn check_input(&self, ids: &[i64], contexts: usize, length: usize) -> Result<(), Error> {
        if contexts == 0 || length == 0 || contexts.checked_mul(length) != Some(ids.len()) {
            return Err(Error::Input(format!(
                "{} token ids do not make {contexts} contexts of {length} tokens",
                ids.len()
            )));
        }
        if length > self.max_positions {
            return Err(Error::Input(format!(
                "a context of {length} tokens is longer than the model's {} positions",
                self.max_positions
            )));
        }
        let outside = |id: &i64| usize::try_from(*id).map_or(true, |id| id >= self.vocabulary);
        if let Some(index) = ids.iter().position(outside) {
            return Err(Error::Input(format!(
                "token id {} (context {}, position {}) is not in the model's vocabulary of {}",
                ids[index],
                index / length,
                index % length,
                self.vocabulary
            )));
        }
        Ok(())
    }
}

/// The ONNX graph of `checkpoint` up to `hooks`, serialized: input `ids` int64 `[contexts, length]`,
/// outputs `hook_0`, `hook_1`, … float32 `[contexts, length, d_model]` in the order of `hooks`. The
/// weights stay in the checkpoint: they are external data relative to
/// [`Checkpoint::weights_folder`]. This is what [`PrefixModel::load`] runs, for use elsewhere.
///
/// # Errors
/// When a hook's layer is out of range, or the checkpoint lacks a tensor or has one of another
/// shape or type.
pub fn prefix_graph(checkpoint: &Checkpoint, hooks: &[HookPoint], center: bool) -> Result<Vec<u8>, Error> {
    let layers = checkpoint.config().layers;
    if hooks.is_empty() {
        return Err(Error::NoHooks);
    }
    if let Some(hook) = hooks.iter().find(|hook| hook.layer >= layers) {
        return Err(Error::LayerOutOfRange { hook: hook.to_string(), layer: hook.layer, last: layers - 1 });
    }
    match checkpoint.config().family {
        Family::Gpt2 => gpt2::graph(checkpoint, hooks, center),
        Family::Llama => llama::graph(checkpoint, hooks, center),
    }
}

fn use_cuda(runtime: &Runtime, device: Device) -> Result<bool, Error> {
    if device == Device::Cpu {
        return Ok(false);
    }
    match (cuda::missing(&runtime.cuda_provider()), device) {
        (None, _) => Ok(true),
        (Some(_), Device::Auto) => Ok(false),
        (Some(problem), _) => Err(Error::CudaUnavailable(problem)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::PathBuf;

    use prost::Message;

    use super::*;
    use crate::Site;
    use crate::onnx::{EXTERNAL, GraphProto, ModelProto};

    fn graph_of(name: &str, hooks: &[HookPoint]) -> (Checkpoint, GraphProto) {
        let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/data", name].iter().collect();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let bytes = prefix_graph(&checkpoint, hooks, false).unwrap();
        (checkpoint, ModelProto::decode(&bytes[..]).unwrap().graph.unwrap())
    }

    /// Names of the checkpoint's tensors that the graph reads.
    fn weights(graph: &GraphProto) -> Vec<&str> {
        let external = graph.initializer.iter().filter(|tensor| tensor.data_location == EXTERNAL);
        external.map(|tensor| tensor.name.as_str()).collect()
    }

    #[test]
    fn only_what_the_hooks_depend_on_is_in_the_graph() {
        let (_, graph) = graph_of("gpt2", &[HookPoint::resid_pre(0)]);
        assert_eq!(weights(&graph), ["transformer.wpe.weight", "transformer.wte.weight"]);

        let (_, graph) = graph_of("llama", &[HookPoint { layer: 0, site: Site::AttnOut }]);
        assert!(weights(&graph).iter().all(|name| !name.contains("mlp") && !name.contains("layers.1")));
        assert!(!graph.node.iter().any(|node| node.op_type == "Sigmoid"));

        let (_, graph) = graph_of("llama", &[HookPoint::resid_pre(1)]);
        assert!(weights(&graph).iter().all(|name| !name.contains("layers.1")));
        assert!(weights(&graph).contains(&"model.layers.0.mlp.down_proj.weight"));
    }

    #[test]
    fn every_value_is_made_before_it_is_read_and_made_once() {
        for name in ["gpt2", "gpt2-bare-f16-shards", "llama", "llama-bf16-rope-scaled"] {
            let hooks = Site::ALL.map(|site| HookPoint { layer: 1, site });
            let (_, graph) = graph_of(name, &hooks);
            let mut known: HashSet<&str> =
                graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
            known.insert(graph::INPUT);
            for node in &graph.node {
                assert!(
                    node.input.iter().all(|input| known.contains(input.as_str())),
                    "{name} {}",
                    node.name
                );
                assert!(node.output.iter().all(|output| known.insert(output)), "{name} {}", node.name);
            }
            assert!(graph.output.iter().all(|output| known.contains(output.name.as_str())), "{name}");
        }
    }

    #[test]
    fn weights_are_not_copied_but_found_in_the_checkpoint_s_files() {
        for name in ["gpt2", "gpt2-bare-f16-shards", "llama-bf16-rope-scaled"] {
            let (checkpoint, graph) = graph_of(name, &[HookPoint { layer: 1, site: Site::ResidPost }]);
            for tensor in graph.initializer.iter().filter(|tensor| tensor.data_location == EXTERNAL) {
                let entry =
                    |key: &str| &tensor.external_data.iter().find(|entry| entry.key == key).unwrap().value;
                let shape: Vec<usize> = tensor.dims.iter().map(|&size| size as usize).collect();
                let stored = checkpoint.tensor(&tensor.name, &shape).unwrap();
                assert_eq!(checkpoint.weights_folder().join(entry("location")), stored.file);
                assert_eq!(entry("offset"), &stored.offset.to_string());
                assert_eq!(entry("length"), &stored.length.to_string());
            }
            let inline = graph.initializer.iter().filter_map(|tensor| tensor.raw_data.as_ref());
            assert!(inline.map(Vec::len).sum::<usize>() < 1000, "{name}");
        }
    }
}
