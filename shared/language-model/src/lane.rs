//! One ONNX Runtime session, and what it takes to run it repeatedly.

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::{Array3, ArrayView2, ArrayView3, CowArray, Ix3};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::{DynTensor, DynValue, Outlet, Shape, Tensor, TensorElementType};

use crate::Error;
use crate::feed::Input;

/// The activations at one hook, row-major, where ONNX Runtime wrote them. Its dimensions are [`OutputShape`]'s.
#[derive(Debug)]
pub(crate) enum Rows {
    Full(Tensor<f32>),
    Half(Tensor<f16>),
}

impl Rows {
    fn new(value: DynValue, element: TensorElementType) -> ort::Result<Rows> {
        match element {
            TensorElementType::Float16 => value.downcast().map(Rows::Half),
            _ => value.downcast().map(Rows::Full),
        }
    }

    /// The rows as `[contexts, length, width]`: those in half precision are converted.
    pub(crate) fn wide(&self, shape: [usize; 3]) -> CowArray<'_, f32, Ix3> {
        match self {
            Rows::Full(tensor) => {
                ArrayView3::from_shape(shape, tensor.extract_tensor().1).expect(COUNTED).into()
            }
            Rows::Half(tensor) => {
                let wide = tensor.extract_tensor().1.to_f32_vec();
                Array3::from_shape_vec(shape, wide).expect(COUNTED).into()
            }
        }
    }

    /// Rows in half precision as they are, `[contexts, length, width]`.
    pub(crate) fn half(&self, shape: [usize; 3]) -> Option<ArrayView3<'_, f16>> {
        match self {
            Rows::Half(tensor) => {
                Some(ArrayView3::from_shape(shape, tensor.extract_tensor().1).expect(COUNTED))
            }
            Rows::Full(_) => None,
        }
    }

    /// Numbers of all rows together.
    pub(crate) fn len(&self) -> usize {
        match self {
            Rows::Full(tensor) => tensor.shape().num_elements(),
            Rows::Half(tensor) => tensor.shape().num_elements(),
        }
    }
}

const COUNTED: &str = "the numbers were counted when the model had run";

/// A session with its inputs and, where its results go to memory of a certain kind, that memory's source.
#[derive(Debug)]
pub(crate) struct Lane {
    session: Session,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    bound: Option<Bound>,
}

/// An output of a session.
#[derive(Clone, Debug)]
struct Output {
    name: String,
    element: TensorElementType,
}

/// Where a session writes its outputs: memory that each run takes and hands on with its rows. The allocator keeps what is
/// given back, so that page-locked memory is made but once for each batch that is under way.
#[derive(Debug)]
struct Bound {
    binding: IoBinding,
    allocator: Allocator,
    shapes: Vec<OutputShape>,
}

/// An output's dimensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutputShape {
    /// Whether contexts and positions are two dimensions or one.
    pub(crate) grid: bool,
    /// The dimensions behind; their product is the width of a row.
    pub(crate) components: Vec<usize>,
}

impl OutputShape {
    /// The shape that an output with these dimensions has, if it is made of one row a token.
    pub(crate) fn of(dims: &[usize], [contexts, length]: [usize; 2]) -> Option<OutputShape> {
        let (grid, components) = match dims {
            [first, second, components @ ..] if [*first, *second] == [contexts, length] => (true, components),
            [rows, components @ ..] if *rows == contexts * length => (false, components),
            _ => return None,
        };
        (!components.is_empty()).then(|| OutputShape { grid, components: components.to_vec() })
    }

    pub(crate) fn width(&self) -> usize {
        self.components.iter().product()
    }

    fn dims(&self, contexts: usize, length: usize) -> Vec<usize> {
        let rows = if self.grid { vec![contexts, length] } else { vec![contexts * length] };
        rows.into_iter().chain(self.components.iter().copied()).collect()
    }
}

impl Lane {
    /// A session whose outputs ONNX Runtime allocates.
    pub(crate) fn new(session: Session, inputs: Vec<Input>) -> Lane {
        let output = |outlet: &Outlet| Output {
            name: outlet.name().to_string(),
            element: outlet.dtype().tensor_type().unwrap_or(TensorElementType::Float32),
        };
        let outputs = session.outputs().iter().map(output).collect();
        Lane { session, inputs, outputs, bound: None }
    }

    /// Sends the outputs to page-locked host memory: results are computed on the device and copied once, by
    /// DMA, to where they are read.
    pub(crate) fn bind_pinned(&mut self, shapes: &[OutputShape]) -> Result<(), Error> {
        let memory =
            MemoryInfo::new(AllocationDevice::CUDA_PINNED, 0, AllocatorType::Device, MemoryType::CPUOutput);
        self.bind(memory.map_err(Error::onnx(BINDING))?, shapes)
    }

    fn bind(&mut self, memory: MemoryInfo<'_>, shapes: &[OutputShape]) -> Result<(), Error> {
        let binding = self.session.create_binding().map_err(Error::onnx(BINDING))?;
        let allocator = Allocator::new(&self.session, memory).map_err(Error::onnx(BINDING))?;
        self.bound = Some(Bound { binding, allocator, shapes: shapes.to_vec() });
        Ok(())
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Runs on ids `[contexts, length]`; returns the rows of each output.
    pub(crate) fn run(&mut self, ids: ArrayView2<'_, i64>) -> Result<Vec<Rows>, Error> {
        let feeds = (self.inputs.iter())
            .map(|input| Ok((input.name.clone(), input.tensor(ids)?)))
            .collect::<ort::Result<Vec<_>>>()
            .map_err(Error::onnx("preparing the inputs"))?;
        match &mut self.bound {
            None => run_plain(&mut self.session, feeds, &self.outputs),
            Some(bound) => bound.run(&mut self.session, &feeds, &self.outputs, ids.dim().into()),
        }
    }

    /// The dimensions of the outputs of one run, as ONNX Runtime gives them.
    pub(crate) fn output_dims(&mut self, ids: ArrayView2<'_, i64>) -> Result<Vec<Vec<usize>>, Error> {
        let sizes = |shape: &Shape| shape.iter().map(|&size| size as usize).collect();
        let dims = |rows: &Rows| match rows {
            Rows::Full(tensor) => sizes(tensor.shape()),
            Rows::Half(tensor) => sizes(tensor.shape()),
        };
        Ok(self.run(ids)?.iter().map(dims).collect())
    }
}

const BINDING: &str = "binding the outputs to memory";
const RUNNING: &str = "running the graph";

fn run_plain(
    session: &mut Session,
    feeds: Vec<(String, DynTensor)>,
    outputs: &[Output],
) -> Result<Vec<Rows>, Error> {
    let feeds: Vec<(String, DynValue)> =
        feeds.into_iter().map(|(name, tensor)| (name, tensor.into_dyn())).collect();
    let mut values = session.run(feeds).map_err(Error::onnx(RUNNING))?;
    let rows = outputs.iter().map(|output| {
        let value = values.remove(&output.name).ok_or_else(|| Error::Onnx {
            doing: RUNNING,
            message: format!("output {} is missing", output.name),
        })?;
        Rows::new(value, output.element).map_err(Error::onnx(RUNNING))
    });
    rows.collect()
}

impl Bound {
    fn run(
        &mut self,
        session: &mut Session,
        feeds: &[(String, DynTensor)],
        outputs: &[Output],
        size: [usize; 2],
    ) -> Result<Vec<Rows>, Error> {
        for (name, tensor) in feeds {
            self.binding.bind_input(name, tensor).map_err(Error::onnx(BINDING))?;
        }
        let memory = self.bind_memory(outputs, size).map_err(Error::onnx(BINDING))?;
        // Copies to and from a device can still be under way when the calls return.
        self.binding.synchronize_inputs().map_err(Error::onnx(RUNNING))?;
        session.run_binding(&self.binding).map_err(Error::onnx(RUNNING))?;
        self.binding.synchronize_outputs().map_err(Error::onnx(RUNNING))?;
        self.binding.clear_outputs();
        let rows = memory.into_iter().zip(outputs);
        let rows = rows.map(|(memory, output)| Rows::new(memory.into_dyn(), output.element));
        rows.collect::<ort::Result<_>>().map_err(Error::onnx(RUNNING))
    }

    /// Memory for the outputs of one run, one tensor a hook.
    fn bind_memory(&mut self, outputs: &[Output], size: [usize; 2]) -> ort::Result<Vec<DynTensor>> {
        let hooks = outputs.iter().zip(&self.shapes);
        let memory = hooks.map(|(output, shape)| {
            let mut memory = DynTensor::new(&self.allocator, output.element, shape.dims(size[0], size[1]))?;
            self.binding.bind_output(&output.name, &mut memory)?;
            Ok(memory)
        });
        memory.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::session::session;
    use crate::{Checkpoint, HookPoint, ModelPrecision, Runtime, Site, feed, graph, prefix_graph};

    fn lane(precision: ModelPrecision) -> Lane {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama");
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let hooks = [HookPoint::resid_pre(1), HookPoint { layer: 0, site: Site::AttnOut }];
        let graph = prefix_graph(&checkpoint, &hooks, false, precision).unwrap();
        let runtime = Runtime::load(None).unwrap();
        let session = session(&runtime, &graph, checkpoint.weights_folder(), 1, false, None).unwrap();
        Lane::new(session, feed::ids_alone(graph::INPUT))
    }

    /// What runs on CUDA, with ordinary memory in place of page-locked memory.
    #[test]
    fn bound_memory_gives_the_same_results_as_onnx_runtimes_own() {
        for precision in [ModelPrecision::Full, ModelPrecision::Half] {
            let (mut plain, mut bound) = (lane(precision), lane(precision));
            let shapes = vec![OutputShape { grid: false, components: vec![12] }; 2];
            bound.bind(MemoryInfo::default(), &shapes).unwrap();
            let ids: Vec<i64> = (0..30).map(|i| i * 7 % 41).collect();
            let mut held = Vec::new();
            // Batches of several sizes, one after another, while earlier ones are held.
            for (contexts, length) in [(3, 5), (3, 5), (2, 6), (1, 15), (3, 5)] {
                for first in [0, 15] {
                    let ids = &ids[first..first + contexts * length];
                    let ids = ArrayView2::from_shape((contexts, length), ids).unwrap();
                    let expected = plain.run(ids).unwrap();
                    let found = bound.run(ids).unwrap();
                    let shape = [contexts, length, 12];
                    for (found, expected) in found.iter().zip(&expected) {
                        assert_eq!(found.len(), contexts * length * 12);
                        assert_eq!(found.wide(shape), expected.wide(shape));
                        assert_eq!(found.half(shape), expected.half(shape));
                        assert_eq!(found.half(shape).is_some(), precision == ModelPrecision::Half);
                    }
                    held.push((shape, found, expected));
                }
            }
            // No run wrote to memory that an earlier one had handed on, nor does it need the session.
            drop(bound);
            for (shape, found, expected) in held {
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.wide(shape), expected.wide(shape));
                    assert_eq!(found.half(shape), expected.half(shape));
                }
            }
        }
    }
}
