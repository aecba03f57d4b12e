//! One ONNX Runtime session and what it takes to run it again and again.

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::{DynTensor, DynValue, Tensor, TensorElementType};

use crate::Error;
use crate::feed::Input;
use crate::graph::output_name;

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
    bound: Option<Bound>,
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
    kinds: Vec<(TensorElementType, OutputShape)>,
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
        Lane { session, inputs, bound: None }
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
        let element = |index| {
            let outlet = self.session.outputs().iter().find(|outlet| outlet.name() == output_name(index));
            outlet.and_then(|outlet| outlet.dtype().tensor_type()).unwrap_or(TensorElementType::Float32)
        };
        let kinds = shapes.iter().enumerate().map(|(index, shape)| (element(index), shape.clone())).collect();
        self.bound = Some(Bound { binding, allocator, outputs: Vec::new(), size: [0, 0], kinds });
        Ok(())
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Runs on ids `[contexts, length]`; returns the rows of each of `hooks` outputs with their shape as
    /// ONNX Runtime gives it.
    pub(crate) fn run(
        &mut self,
        ids: &[i64],
        contexts: usize,
        length: usize,
        hooks: usize,
    ) -> Result<Vec<Rows>, Error> {
        let feeds = (self.inputs.iter())
            .map(|input| Ok((input.name.clone(), input.tensor(ids, contexts, length)?)))
            .collect::<ort::Result<Vec<_>>>()
            .map_err(Error::onnx("preparing the inputs"))?;
        match &mut self.bound {
            None => run_plain(&mut self.session, feeds, hooks),
            Some(bound) => bound.run(&mut self.session, &feeds, [contexts, length]),
        }
    }

    /// The dimensions of the outputs of one run, as ONNX Runtime gives them.
    pub(crate) fn output_shapes(
        &mut self,
        ids: &[i64],
        contexts: usize,
        length: usize,
        hooks: usize,
    ) -> Result<Vec<Vec<i64>>, Error> {
        let shape = |rows: &Rows| match rows {
            Rows::Full(tensor) => tensor.shape().to_vec(),
            Rows::Half(tensor) => tensor.shape().to_vec(),
            Rows::FullCopy(_) | Rows::HalfCopy(_) => Vec::new(),
        };
        Ok(self.run(ids, contexts, length, hooks)?.iter().map(shape).collect())
    }
}

const BINDING: &str = "binding the outputs to memory";
const RUNNING: &str = "running the graph";

fn run_plain(
    session: &mut Session,
    feeds: Vec<(String, DynTensor)>,
    hooks: usize,
) -> Result<Vec<Rows>, Error> {
    let feeds: Vec<(String, DynValue)> =
        feeds.into_iter().map(|(name, tensor)| (name, tensor.into_dyn())).collect();
    let mut outputs = session.run(feeds).map_err(Error::onnx(RUNNING))?;
    (0..hooks)
        .map(|index| {
            let output = outputs.remove(output_name(index)).ok_or_else(|| Error::Onnx {
                doing: RUNNING,
                message: format!("output {index} is missing"),
            })?;
            match output.dtype().tensor_type() {
                Some(TensorElementType::Float16) => output.downcast().map(Rows::Half),
                _ => output.downcast().map(Rows::Full),
            }
            .map_err(Error::onnx(RUNNING))
        })
        .collect()
}

impl Bound {
    fn run(
        &mut self,
        session: &mut Session,
        feeds: &[(String, DynTensor)],
        size: [usize; 2],
    ) -> Result<Vec<Rows>, Error> {
        for (name, tensor) in feeds {
            self.binding.bind_input(name, tensor).map_err(Error::onnx(BINDING))?;
        }
        if self.size != size {
            self.allocate(size).map_err(Error::onnx(BINDING))?;
        }
        session.run_binding(&self.binding).map_err(Error::onnx(RUNNING))?;
        let copied = self.outputs.iter().map(|output| {
            Ok(match output.data_type() {
                TensorElementType::Float16 => Rows::HalfCopy(output.try_extract_tensor()?.1.to_vec()),
                _ => Rows::FullCopy(output.try_extract_tensor()?.1.to_vec()),
            })
        });
        copied.collect::<ort::Result<_>>().map_err(Error::onnx(RUNNING))
    }

    /// Memory for the outputs of batches of this size; only the last batch of a text is smaller.
    fn allocate(&mut self, size: [usize; 2]) -> ort::Result<()> {
        self.binding.clear_outputs();
        self.outputs.clear();
        self.size = [0, 0];
        for (index, (element, shape)) in self.kinds.iter().enumerate() {
            let mut output = DynTensor::new(&self.allocator, *element, shape.dims(size[0], size[1]))?;
            self.binding.bind_output(output_name(index), &mut output)?;
            self.outputs.push(output);
        }
        self.size = size;
        Ok(())
    }
}
