//! A running model prefix: token ids in, activations out.

use std::path::Path;
use std::sync::{Mutex, TryLockError};

use ndarray::{Array2, ArrayView2, ArrayView3, CowArray, Ix3};

use crate::assignment::{self, Assignment, CPU, CUDA};
use crate::feed::{self, Input};
use crate::lane::{Lane, OutputShape, Rows};
use crate::limits::Limits;
use crate::onnx_file::OnnxFile;
use crate::operators::Packed;
use crate::session::session;
use crate::work::Work;
use crate::{Checkpoint, Error, HookPoint, ModelPrecision, Products, Runtime, cuda, families, graph};
use half::f16;

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// On CUDA if there are a device and a provider for it, else on the CPU. If both exist
    /// and CUDA still fails, that is an error, not a silent fall-back.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On the first CUDA device; an error if there is none.
    Cuda,
}

/// Sessions of a model on the CPU, at most: each keeps the graph and its own memory.
const MOST_LANES: usize = 16;

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
    /// What a checkpoint computes in, and the type in which activations leave the device; an ONNX file
    /// computes in what it was exported in. By default half precision on CUDA and full on the CPU,
    /// where half gains nothing.
    pub precision: Option<ModelPrecision>,
    /// How products with a checkpoint's weights are computed where it runs on the CPU in full precision.
    pub products: Products,
}

/// The part of a model that its hooks depend on, ready to run.
#[derive(Debug)]
pub struct PrefixModel {
    /// Sessions on the same graph; each runs one batch at a time.
    lanes: Vec<Mutex<Lane>>,
    names: Vec<String>,
    shapes: Vec<OutputShape>,
    assignment: Assignment,
    cuda: bool,
    products: Products,
    /// Threads of a lane, where that is known.
    lane_threads: usize,
    limits: Limits,
    work: Work,
}

/// The results of one [`PrefixModel::run`]. The value can be sent to another thread and outlives the model.
#[derive(Debug)]
pub struct Activations {
    hooks: Vec<Rows>,
    /// Of each hook `[contexts, length, width]`.
    shapes: Vec<[usize; 3]>,
}

impl Activations {
    /// The activations at the hook with this index in the list that the model was made with,
    /// `[contexts, length, width]`, row-major. Those of a model in half precision are converted.
    pub fn rows(&self, hook: usize) -> CowArray<'_, f32, Ix3> {
        self.hooks[hook].wide(self.shapes[hook])
    }

    /// The same as [`Activations::rows`] for a model in half precision, as they are; `None` for others.
    pub fn half_rows(&self, hook: usize) -> Option<ArrayView3<'_, f16>> {
        self.hooks[hook].half(self.shapes[hook])
    }
}

/// A graph for ONNX Runtime and how to feed it.
struct Prepared<'p> {
    graph: &'p [u8],
    weights_folder: &'p Path,
    inputs: Vec<Input>,
    names: Vec<String>,
    /// The outputs' dimensions where the graph is ours.
    shapes: Option<Vec<OutputShape>>,
    limits: Limits,
    work: Option<Work>,
    products: Products,
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
        let cuda = use_cuda(runtime, options.device)?;
        let precision = precision(options, cuda);
        let products = match precision {
            ModelPrecision::Full if !cuda => options.products.available(),
            _ => Products::Exact,
        };
        let graph = graph_with(checkpoint, hooks, options.center, precision, products)?;
        let config = checkpoint.config();
        let rows = OutputShape { grid: false, components: vec![config.d_model] };
        let prepared = Prepared {
            graph: &graph,
            weights_folder: checkpoint.weights_folder(),
            inputs: feed::ids_alone(graph::INPUT),
            names: hooks.iter().map(HookPoint::to_string).collect(),
            shapes: Some(vec![rows; hooks.len()]),
            limits: Limits {
                vocabulary: Some(config.vocabulary),
                positions: Some(config.max_positions),
                ..Limits::default()
            },
            work: Some(Work::of(config, hooks.len())),
            products,
        };
        PrefixModel::open(runtime, prepared, options, cuda)
    }

    /// Opens a session on the part of an ONNX file that the tensors called `tensors` depend on. They must
    /// have the shape `[contexts, length, …]` or `[contexts * length, …]`; dimensions behind these make
    /// one row. Of the file's inputs, the token ids are found by name (`input_ids`) or type; masks,
    /// positions and an empty cache are filled in.
    ///
    /// # Errors
    /// When a tensor is not in the graph or has another shape, an input cannot be filled, the device is
    /// not there, or ONNX Runtime refuses the graph.
    pub fn from_onnx(
        runtime: &Runtime,
        file: &OnnxFile,
        tensors: &[&str],
        options: &SessionOptions,
    ) -> Result<PrefixModel, Error> {
        if tensors.is_empty() {
            return Err(Error::NoHooks);
        }
        let cuda = use_cuda(runtime, options.device)?;
        let part = file.ancestors(tensors)?;
        let problem = |problem: String| Error::OnnxFile { path: file.path().to_path_buf(), problem };
        let inputs = feed::inputs(&part.inputs).map_err(problem)?;
        let (nodes, outputs) =
            graph::file_outputs(tensors, options.center, precision(options, cuda), file.opset());
        let graph = part.model(&nodes, &outputs);
        let [contexts, length] = inputs[0].fixed();
        let vocabulary = file.vocabulary(&inputs[0].name);
        let prepared = Prepared {
            graph: &graph,
            weights_folder: &part.weights_folder,
            inputs,
            names: tensors.iter().map(|tensor| tensor.to_string()).collect(),
            shapes: None,
            limits: Limits { vocabulary, positions: None, contexts, length },
            work: None,
            products: Products::Exact,
        };
        PrefixModel::open(runtime, prepared, options, cuda)
    }

    fn open(
        runtime: &Runtime,
        prepared: Prepared<'_>,
        options: &SessionOptions,
        cuda: bool,
    ) -> Result<PrefixModel, Error> {
        let Prepared { graph, weights_folder, inputs, names, shapes, limits, work, products } = prepared;
        // Where each thread has a session, it runs batches by itself and waits for no other thread.
        let (count, threads) = match products {
            Products::MatrixUnits => cpu_lanes(options.threads),
            Products::Exact => (1, options.threads),
        };
        let packed = (products == Products::MatrixUnits).then(Packed::default);
        let session = || session(runtime, graph, weights_folder, threads, cuda, packed.as_ref());
        let free_before = cuda::free_memory().filter(|_| cuda);
        let mut first = Lane::new(session()?, inputs.clone());
        let assignment = assignment::read(first.session())?;
        if cuda {
            assignment::all_on_cuda(&assignment)?;
        }
        let shapes = match shapes {
            Some(shapes) => shapes,
            None => probe(&mut first, &names, limits)?,
        };
        let mut lanes = vec![first];
        for _ in 1..count {
            lanes.push(Lane::new(session()?, inputs.clone()));
        }
        if cuda {
            // While one batch is copied back and converted, the next one computes.
            if room_for_another(free_before, cuda::free_memory()) {
                lanes.push(Lane::new(session()?, inputs));
            }
            for lane in &mut lanes {
                lane.bind_pinned(&shapes)?;
            }
        }
        let lanes = lanes.into_iter().map(Mutex::new).collect();
        // Of a file nothing is known but the width; blocks are about this much wider than their results.
        let widest = shapes.iter().map(OutputShape::width).max().unwrap_or(0);
        let work = work.unwrap_or(Work { token: 128 * widest as u64, pair: 256 });
        Ok(PrefixModel {
            lanes,
            names,
            shapes,
            assignment,
            cuda,
            products,
            lane_threads: threads,
            limits,
            work,
        })
    }

    /// Names of the hooks or tensors, in the order of [`Activations::rows`].
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Components of a row at the hook with this index.
    pub fn width(&self, hook: usize) -> usize {
        self.shapes[hook].width()
    }

    /// ONNX Runtime's name for what the model runs on, read back from the session.
    pub fn provider(&self) -> &str {
        if self.cuda { CUDA } else { CPU }
    }

    /// How products with weights are computed: [`Products::MatrixUnits`] only where that was asked for and is possible.
    pub fn products(&self) -> Products {
        self.products
    }

    /// How ONNX Runtime divided the graph: provider, operator, number of nodes. On CUDA nothing but
    /// shapes and positions is computed on the CPU; a model of which more would be is not opened.
    pub fn assignment(&self) -> impl Iterator<Item = (&str, &str, usize)> {
        self.assignment.iter().flat_map(|(provider, operators)| {
            operators.iter().map(|(operator, count)| (provider.as_str(), operator.as_str(), *count))
        })
    }

    /// Rows of the token embedding, if known: ids are below.
    pub fn vocabulary(&self) -> Option<usize> {
        self.limits.vocabulary
    }

    /// Tokens of the longest context, if there is a limit.
    pub fn max_length(&self) -> Option<usize> {
        self.limits.length.or(self.limits.positions)
    }

    /// Contexts of a batch, for an ONNX file that was exported for one batch size only.
    pub fn fixed_contexts(&self) -> Option<usize> {
        self.limits.contexts
    }

    /// Calls of [`PrefixModel::run`] that keep the device busy when made from as many threads.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// How many contexts of `length` tokens to give to one [`PrefixModel::run`]. On the CPU 8: batches of 4
    /// to 16 are as fast as any. With [`Products::MatrixUnits`] 256 tokens for each thread of a lane, at most 8 contexts:
    /// products are so fast that what lies between them counts, and that stays in the cores' caches. On CUDA 65,536 tokens, which keep any device busy, or what half of the free
    /// memory takes if that is less. A file's fixed size overrides this.
    pub fn suggested_contexts(&self, length: usize) -> usize {
        match (self.limits.contexts, self.cuda) {
            (Some(fixed), _) => fixed,
            (None, false) if self.products == Products::MatrixUnits => {
                (256 * self.lane_threads).div_ceil(length.max(1)).min(8)
            }
            (None, false) => 8,
            (None, true) => {
                self.work.contexts(length, cuda::free_memory().unwrap_or(0) / self.lanes.len() as u64)
            }
        }
    }

    /// Runs the model on the token ids `[contexts, length]`. Contexts are independent of each other, and a token sees
    /// those before it. Threads can call this at the same time; more than [`PrefixModel::lanes`] of them wait for each
    /// other.
    ///
    /// # Errors
    /// When there is no id or one outside the vocabulary, a context is longer than the model's positions, or ONNX
    /// Runtime fails.
    pub fn run(&self, ids: ArrayView2<'_, i64>) -> Result<Activations, Error> {
        self.limits.check(ids)?;
        let (contexts, length) = ids.dim();
        let hooks = self.with_lane(|lane| lane.run(ids))?;
        let shapes: Vec<_> = self.shapes.iter().map(|shape| [contexts, length, shape.width()]).collect();
        for (rows, (name, shape)) in hooks.iter().zip(self.names.iter().zip(&shapes)) {
            let expected = shape.iter().product::<usize>();
            if rows.len() != expected {
                return Err(Error::Onnx {
                    doing: "running the graph",
                    message: format!("{name} has {} numbers instead of {expected}", rows.len()),
                });
            }
        }
        Ok(Activations { hooks, shapes })
    }

    /// Calls `use_it` with a lane that is free, or waits for the first.
    fn with_lane<T>(&self, use_it: impl FnOnce(&mut Lane) -> T) -> T {
        for lane in &self.lanes {
            match lane.try_lock() {
                Ok(mut lane) => return use_it(&mut lane),
                // A run that panicked leaves no state behind: inputs and outputs are bound anew.
                Err(TryLockError::Poisoned(lane)) => return use_it(&mut lane.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        use_it(&mut self.lanes[0].lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// Finds the dimensions of a file's outputs by running it: exported shapes can be missing, and can be wrong.
/// Two batches tell contexts and positions from a width that happens to be the same.
fn probe(lane: &mut Lane, names: &[String], limits: Limits) -> Result<Vec<OutputShape>, Error> {
    let mut found: Option<Vec<OutputShape>> = None;
    for (contexts, length) in [(2, 3), (3, 2)] {
        let size = [limits.contexts.unwrap_or(contexts), limits.length.unwrap_or(length)];
        let outputs = lane.output_dims(Array2::zeros(size).view())?;
        let shapes = outputs.iter().map(|dims| OutputShape::of(dims, size)).collect::<Vec<_>>();
        for (index, name) in names.iter().enumerate() {
            let same = found.as_ref().is_none_or(|found| Some(&found[index]) == shapes[index].as_ref());
            if shapes[index].is_none() || !same {
                return Err(Error::Input(format!(
                    "tensor `{name}` has the shape {:?} for {} contexts of {} tokens; activations are \
                     [contexts, length, width] or [contexts * length, width]",
                    outputs[index], size[0], size[1]
                )));
            }
        }
        found = Some(shapes.into_iter().flatten().collect());
    }
    Ok(found.unwrap_or_default())
}

/// How many sessions share this many threads, 0 being one per core, and how many each has. On matrix units a batch takes a
/// few milliseconds, in a few dozen pieces, and threads that share a batch wait for each other at each of them.
fn cpu_lanes(threads: usize) -> (usize, usize) {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let lanes = threads.min(MOST_LANES);
    (lanes, threads / lanes)
}

/// Whether a device on which a session took the free memory from `before` to `after` bytes should get another
/// one: sessions do not share weights, and at least half of what is left is for the batches.
fn room_for_another(before: Option<u64>, after: Option<u64>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => before.saturating_sub(after) < after / 2,
        _ => false,
    }
}

/// What a model computes in: what was asked for, or what suits the device.
pub(crate) fn precision(options: &SessionOptions, cuda: bool) -> ModelPrecision {
    options.precision.unwrap_or(if cuda { ModelPrecision::Half } else { ModelPrecision::Full })
}

/// The ONNX graph of `checkpoint` up to `hooks`, serialized: input `ids` int64 `[contexts, length]`,
/// outputs `hook_0`, `hook_1`, … `[contexts * length, d_model]` in the order of `hooks`, float32 or in half
/// precision float16. The weights stay in the checkpoint: they are external data relative to
/// [`Checkpoint::weights_folder`]. This is what [`PrefixModel::load`] runs, for use elsewhere.
///
/// # Errors
/// When a hook's layer is out of range, or the checkpoint lacks a tensor or has one of another
/// shape or type.
pub fn prefix_graph(
    checkpoint: &Checkpoint,
    hooks: &[HookPoint],
    center: bool,
    precision: ModelPrecision,
) -> Result<Vec<u8>, Error> {
    graph_with(checkpoint, hooks, center, precision, Products::Exact)
}

/// [`prefix_graph`], with products that only sessions of this crate may know.
fn graph_with(
    checkpoint: &Checkpoint,
    hooks: &[HookPoint],
    center: bool,
    precision: ModelPrecision,
    products: Products,
) -> Result<Vec<u8>, Error> {
    let layers = checkpoint.config().layers;
    if hooks.is_empty() {
        return Err(Error::NoHooks);
    }
    hooks.iter().try_for_each(|hook| graph::check_layer(*hook, layers))?;
    families::graph(checkpoint, hooks, center, precision, products)
}

/// Whether a model runs on CUDA.
pub(crate) fn use_cuda(runtime: &Runtime, device: Device) -> Result<bool, Error> {
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
        let bytes = prefix_graph(&checkpoint, hooks, false, ModelPrecision::Full).unwrap();
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
    fn a_second_session_is_opened_where_its_weights_leave_room() {
        const GB: u64 = 1 << 30;
        assert!(room_for_another(Some(80 * GB), Some(79 * GB)));
        assert!(!room_for_another(Some(80 * GB), Some(50 * GB)));
        assert!(!room_for_another(None, Some(50 * GB)));
    }

    #[test]
    fn weights_are_mapped_from_the_checkpoints_files() {
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
