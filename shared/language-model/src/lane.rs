//! One ONNX Runtime session and what it takes to run it again and again.

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::{DynTensor, DynValue, Outlet, Shape, Tensor, TensorElementType};

use crate::Error;
use crate::feed::Input;

/// The activations at one hook, row-major.
#[derive(Debug)]
pub(crate) enum Rows {
    /// Where ONNX Runtime wrote them.
    Full(Tensor<f32>),
    /// The same in half precision.
    Half(Tensor<f16>),
    /// Copied out of memory that the session uses again.
    FullCopy(Vec<f32>),
    /// The same in half precision.
    HalfCopy(Vec<f16>),
}

impl Rows {
    pub(crate) fn full(&self) -> Option<&[f32]> {
        match self {
            Rows::Full(tensor) => Some(tensor.extract_tensor().1),
            Rows::FullCopy(rows) => Some(rows),
            Rows::Half(_) | Rows::HalfCopy(_) => None,
        }
    }

    pub(crate) fn half(&self) -> Option<&[f16]> {
        match self {
            Rows::Half(tensor) => Some(tensor.extract_tensor().1),
            Rows::HalfCopy(rows) => Some(rows),
            Rows::Full(_) | Rows::FullCopy(_) => None,
        }
    }

    pub(crate) fn widened(&self) -> Vec<f32> {
        match self.half() {
            Some(rows) => rows.to_f32_vec(),
            None => self.full().unwrap_or_default().to_vec(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.full().map(<[f32]>::len).or_else(|| self.half().map(<[f16]>::len)).unwrap_or(0)
    }
}

/// A session with its inputs and, where its results are bound to memory, that memory.
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

/// Where a session writes its outputs: memory that is kept from run to run.
#[derive(Debug)]
struct Bound {
    binding: IoBinding,
    allocator: Allocator,
    /// One a hook; empty before the first run.
    outputs: Vec<DynTensor>,
    /// Contexts and length that they have room for.
    size: [usize; 2],
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

    /// Binds the outputs to page-locked host memory: results are computed on the device and copied once, by
    /// DMA, to where they are read.
    pub(crate) fn bind_pinned(&mut self, shapes: &[OutputShape]) -> Result<(), Error> {
        let memory =
            MemoryInfo::new(AllocationDevice::CUDA_PINNED, 0, AllocatorType::Device, MemoryType::CPUOutput);
        self.bind(memory.map_err(Error::onnx(BINDING))?, shapes)
    }

    fn bind(&mut self, memory: MemoryInfo<'_>, shapes: &[OutputShape]) -> Result<(), Error> {
        let binding = self.session.create_binding().map_err(Error::onnx(BINDING))?;
        let allocator = Allocator::new(&self.session, memory).map_err(Error::onnx(BINDING))?;
        let (outputs, shapes) = (Vec::new(), shapes.to_vec());
        self.bound = Some(Bound { binding, allocator, outputs, size: [0, 0], shapes });
        Ok(())
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Runs on ids `[contexts, length]`; returns the rows of each output.
    pub(crate) fn run(&mut self, ids: &[i64], contexts: usize, length: usize) -> Result<Vec<Rows>, Error> {
        let feeds = (self.inputs.iter())
            .map(|input| Ok((input.name.clone(), input.tensor(ids, contexts, length)?)))
            .collect::<ort::Result<Vec<_>>>()
            .map_err(Error::onnx("preparing the inputs"))?;
        match &mut self.bound {
            None => run_plain(&mut self.session, feeds, &self.outputs),
            Some(bound) => bound.run(&mut self.session, &feeds, &self.outputs, [contexts, length]),
        }
    }

    /// The dimensions of the outputs of one run, as ONNX Runtime gives them.
    pub(crate) fn output_dims(
        &mut self,
        ids: &[i64],
        contexts: usize,
        length: usize,
    ) -> Result<Vec<Vec<usize>>, Error> {
        let sizes = |shape: &Shape| shape.iter().map(|&size| size as usize).collect();
        let dims = |rows: &Rows| match rows {
            Rows::Full(tensor) => sizes(tensor.shape()),
            Rows::Half(tensor) => sizes(tensor.shape()),
            Rows::FullCopy(rows) => vec![rows.len()],
            Rows::HalfCopy(rows) => vec![rows.len()],
        };
        Ok(self.run(ids, contexts, length)?.iter().map(dims).collect())
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
        match output.element {
            TensorElementType::Float16 => value.downcast().map(Rows::Half),
            _ => value.downcast().map(Rows::Full),
        }
        .map_err(Error::onnx(RUNNING))
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
        if self.size != size {
            self.allocate(outputs, size).map_err(Error::onnx(BINDING))?;
        }
        // Copies to and from a device can still be under way when the calls return.
        self.binding.synchronize_inputs().map_err(Error::onnx(RUNNING))?;
        session.run_binding(&self.binding).map_err(Error::onnx(RUNNING))?;
        self.binding.synchronize_outputs().map_err(Error::onnx(RUNNING))?;
        let copied = self.outputs.iter().map(|output| {
            Ok(match output.data_type() {
                TensorElementType::Float16 => Rows::HalfCopy(output.try_extract_tensor()?.1.to_vec()),
                _ => Rows::FullCopy(output.try_extract_tensor()?.1.to_vec()),
            })
        });
        copied.collect::<ort::Result<_>>().map_err(Error::onnx(RUNNING))
    }

    /// Memory for the outputs of batches of this size; only the last batch of a text is smaller.
    fn allocate(&mut self, outputs: &[Output], size: [usize; 2]) -> ort::Result<()> {
        self.binding.clear_outputs();
        self.outputs.clear();
        self.size = [0, 0];
        for (output, shape) in outputs.iter().zip(&self.shapes) {
            let mut memory = DynTensor::new(&self.allocator, output.element, shape.dims(size[0], size[1]))?;
            self.binding.bind_output(&output.name, &mut memory)?;
            self.outputs.push(memory);
        }
        self.size = size;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::session::session;
    use crate::{Checkpoint, HookPoint, Precision, Runtime, Site, feed, graph, prefix_graph};

    fn lane(precision: Precision) -> Lane {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama");
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let hooks = [HookPoint::resid_pre(1), HookPoint { layer: 0, site: Site::AttnOut }];
        let graph = prefix_graph(&checkpoint, &hooks, false, precision).unwrap();
        let runtime = Runtime::load(None).unwrap();
        let session = session(&runtime, &graph, checkpoint.weights_folder(), 1, false).unwrap();
        Lane::new(session, feed::ids_alone(graph::INPUT))
    }

    /// What runs on CUDA, with ordinary memory in place of page-locked memory.
    #[test]
    fn bound_memory_gives_the_same_as_memory_of_onnx_runtime_s() {
        for precision in [Precision::Full, Precision::Half] {
            let (mut plain, mut bound) = (lane(precision), lane(precision));
            let shapes = vec![OutputShape { grid: false, components: vec![12] }; 2];
            bound.bind(MemoryInfo::default(), &shapes).unwrap();
            let ids: Vec<i64> = (0..30).map(|i| i * 7 % 41).collect();
            // Batches of several sizes, one after another, into the same memory and into new.
            for (contexts, length) in [(3, 5), (3, 5), (2, 6), (1, 15), (3, 5)] {
                for first in [0, 15] {
                    let ids = &ids[first..first + contexts * length];
                    let expected = plain.run(ids, contexts, length).unwrap();
                    let found = bound.run(ids, contexts, length).unwrap();
                    for (found, expected) in found.iter().zip(&expected) {
                        assert_eq!(found.len(), contexts * length * 12);
                        assert_eq!(found.full(), expected.full());
                        assert_eq!(found.half(), expected.half());
                        assert_eq!(found.half().is_some(), precision == Precision::Half);
                    }
                }
            }
        }
    }
}
