//! Products with a model's weights on the processor's matrix units, as operators of our own in ONNX Runtime's graph.
//!
//! ONNX Runtime computes float32 products with vector instructions. Processors with AMX multiply bfloat16 numbers an order of
//! magnitude faster, so each float32 number is taken as the sum of two of them: [`Parts::Three`]. Weights are split when the
//! session is made, rows as they come.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use matrix_units::{Left, Matrix, MatrixUnits, Out, PANEL, Parts, Right, Start, pack_and_multiply};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::{DynTensorValueType, TensorElementType};

use crate::onnx::DataType;

/// How products with a model's weights are computed on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// By ONNX Runtime, in float32.
    #[default]
    Exact,
    /// On the processor's matrix units, as sums of three products of bfloat16 numbers, where there are such units and the
    /// kernel allows them; else as [`Products::Exact`]. The rms error of a product is about 4·10⁻⁶ of its rms; plain float32
    /// has a tenth of that, bfloat16 a thousand times as much. The number of threads changes no bit.
    MatrixUnits,
}

impl Products {
    /// What there is to be had on this machine.
    pub(crate) fn available(self) -> Products {
        match MatrixUnits::get() {
            Some(_) => self,
            None => Products::Exact,
        }
    }

    /// What stores record.
    pub fn name(self) -> &'static str {
        match self {
            Products::Exact => "float32",
            Products::MatrixUnits => "bfloat16x3",
        }
    }
}

/// The domain of the operators.
pub(crate) const DOMAIN: &str = "language-model";

/// The operator for weights of a type: inputs x float32 `[rows, in]`, weights `[in, out]` or, with `transB` 1, `[out, in]`,
/// and perhaps a bias float32 `[out]`; output x·weights + bias, float32 `[rows, out]`.
pub(crate) fn operator(weights: DataType) -> &'static str {
    match weights {
        DataType::Float16 => "ProductFloat16",
        DataType::Bfloat16 => "ProductBfloat16",
        _ => "ProductFloat",
    }
}

/// The operators, for a session that computes with this many threads; 0 is one per core. None where there are no matrix units.
pub(crate) fn operators(threads: usize) -> ort::Result<Option<OperatorDomain>> {
    let Some(units) = MatrixUnits::get() else { return Ok(None) };
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let product = |weights| Product { units, threads, weights };
    let domain = OperatorDomain::new(DOMAIN)?
        .add(product(DataType::Float))?
        .add(product(DataType::Float16))?
        .add(product(DataType::Bfloat16))?;
    Ok(Some(domain))
}

/// The operator for one type of weights.
struct Product {
    units: MatrixUnits,
    threads: usize,
    weights: DataType,
}

impl Operator for Product {
    type Kernel<'attr> = Multiply;

    fn name(&self) -> &str {
        operator(self.weights)
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let weights = match self.weights {
            DataType::Float16 => TensorElementType::Float16,
            DataType::Bfloat16 => TensorElementType::Bfloat16,
            _ => TensorElementType::Float32,
        };
        let float = TensorElementType::Float32;
        [OperatorInput::required(float), OperatorInput::required(weights), OperatorInput::optional(float)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Multiply> {
        let weights = context.constant_input::<DynTensorValueType>(1)?;
        let shape: Vec<usize> = weights.shape().iter().map(|&size| size as usize).collect();
        let &[first, second] = &shape[..] else { return Err(ort::Error::new("weights are a matrix")) };
        let transposed = context.get::<i64>("transB") == Some(1);
        let sizes = if transposed { (first, second) } else { (second, first) };
        let pack = |numbers: &[f32]| {
            let matrix = Matrix::rows(numbers, second);
            let matrix = if transposed { matrix.transposed() } else { matrix };
            Right::new(self.units, Parts::Three, sizes, matrix)
        };
        let weights = match self.weights {
            DataType::Float16 => {
                let numbers = weights.try_extract_tensor::<f16>()?.1;
                pack(&numbers.iter().map(|x| x.to_f32()).collect::<Vec<f32>>())
            }
            DataType::Bfloat16 => {
                let numbers = weights.try_extract_tensor::<bf16>()?.1;
                pack(&numbers.iter().map(|x| x.to_f32()).collect::<Vec<f32>>())
            }
            _ => pack(weights.try_extract_tensor::<f32>()?.1),
        };
        Ok(Multiply { units: self.units, threads: self.threads, weights })
    }
}

/// A product with these weights.
struct Multiply {
    units: MatrixUnits,
    threads: usize,
    weights: Right,
}

impl Kernel for Multiply {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let x = context.input(0)?.ok_or_else(|| ort::Error::new("a product has no rows"))?;
        let (shape, x) = x.try_extract_tensor::<f32>()?;
        let (depth, width) = (self.weights.depth(), self.weights.lanes());
        let &[rows, columns] = &shape[..] else { return Err(ort::Error::new("rows are a matrix")) };
        if columns != depth as i64 {
            return Err(ort::Error::new(format!("rows of {columns} numbers for weights of {depth}")));
        }
        let bias = context.input(2)?;
        let bias =
            bias.as_ref().map(|bias| bias.try_extract_tensor::<f32>()).transpose()?.map(|(_, bias)| bias);
        if bias.is_some_and(|bias| bias.len() != width) {
            return Err(ort::Error::new(format!("a bias that is not of {width} numbers")));
        }
        let mut out = context
            .output(0, [rows, width as i64])?
            .ok_or_else(|| ort::Error::new("a product has no output"))?;
        let out = Out::new(out.try_extract_tensor_mut::<f32>()?.1, rows as usize, width);
        let tasks = tasks(rows as usize, width, self.threads, out);
        context.par_for(tasks.len(), 0, |task| {
            let Some((rows, panels, out)) = tasks[task].lock().unwrap_or_else(PoisonError::into_inner).take()
            else {
                return;
            };
            let first = panels.start * PANEL;
            let start =
                bias.map_or(Start::Zero, |bias| Start::Row(&bias[first..width.min(panels.end * PANEL)]));
            let x = Matrix::rows(x, depth).from(rows.start, 0);
            with_space(self.units, |space| {
                pack_and_multiply(x, rows.len(), space, &self.weights, panels, start, out);
            });
        })
    }
}

/// Rows, panels of columns, and where their product goes; whoever computes it takes it.
type Task<'o> = Mutex<Option<(Range<usize>, Range<usize>, Out<'o>)>>;

/// Divides a product among threads. Bits do not depend on it, only the speed does: eight panels of rows are multiplied by a
/// panel of columns that is read once, so there are as many in a task where there are enough, and columns are divided where
/// rows are few.
fn tasks(rows: usize, columns: usize, threads: usize, out: Out<'_>) -> Vec<Task<'_>> {
    let (row_panels, column_panels) = (rows.div_ceil(PANEL), columns.div_ceil(PANEL));
    let row_parts = row_panels.div_ceil(8).next_multiple_of(threads).min(row_panels.div_ceil(4));
    let column_parts = threads.div_ceil(row_parts.max(1)).min(column_panels);
    let part = |all: usize, index: usize, parts: usize| all * index / parts..all * (index + 1) / parts;
    let mut tasks = Vec::with_capacity(row_parts * column_parts);
    let mut below = out;
    for index in 0..row_parts {
        let panels = part(row_panels, index, row_parts);
        let range = panels.start * PANEL..rows.min(panels.end * PANEL);
        let (mut beside, rest) = below.split_rows(range.len());
        below = rest;
        for index in 0..column_parts {
            let panels = part(column_panels, index, column_parts);
            let (out, rest) = beside.split_columns(columns.min(panels.end * PANEL) - panels.start * PANEL);
            beside = rest;
            tasks.push(Mutex::new(Some((range.clone(), panels, out))));
        }
    }
    tasks
}

/// Calls `use_it` with room for packed rows, which each thread keeps.
fn with_space(units: MatrixUnits, use_it: impl FnOnce(&mut Left)) {
    thread_local! {
        static SPACE: RefCell<Option<Left>> = const { RefCell::new(None) };
    }
    SPACE.with_borrow_mut(|space| {
        use_it(space.get_or_insert_with(|| Left::zeros(units, Parts::Three, 0, 0)));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_a_product_belongs_to_one_task() {
        for (rows, columns, threads) in
            [(1, 1, 1), (1, 100, 4), (1024, 768, 2), (1000, 65, 16), (40, 3072, 64), (0, 5, 2)]
        {
            let mut numbers = vec![0.0f32; rows * columns];
            let all = tasks(rows, columns, threads, Out::new(&mut numbers, rows, columns));
            let mut times = vec![0; rows * columns];
            for task in &all {
                let (rows, panels, _) = task.lock().unwrap().take().unwrap();
                for row in rows {
                    for column in panels.start * PANEL..columns.min(panels.end * PANEL) {
                        times[row * columns + column] += 1;
                    }
                }
            }
            assert!(times.iter().all(|&times| times == 1), "{rows} {columns} {threads}");
        }
    }
}
