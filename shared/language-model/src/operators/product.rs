//! Products with weights.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use matrix_units::{Left, Matrix, MatrixUnits, Out, PANEL, Parts, Right, Start, multiply, pack_and_multiply};
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::elementwise::Function;
use super::weights::Packed;
use crate::onnx::DataType;

/// Weights that one node multiplies the same rows by, at most.
pub(crate) const MOST_WEIGHTS: usize = 3;

/// What becomes of the products of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// They stand beside each other.
    Beside,
    /// There are two, the function of the first times the second.
    Gated,
}

impl Form {
    /// In the attribute `form`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Form::Beside => "beside",
            Form::Gated => "gated",
        }
    }
}

/// The operator for weights of a type: inputs x float32 `[rows, in]`, then up to three times weights `[in, out]` or, with
/// `transB` 1, `[out, in]`, and perhaps a bias float32 `[out]`. The attributes `weights_0` and so on are their names, `form` says what becomes of the products,
/// `function` what is applied to them, or to the first where it is a gate. The output is float32.
pub(crate) fn operator(weights: DataType) -> &'static str {
    match weights {
        DataType::Float16 => "ProductFloat16",
        DataType::Bfloat16 => "ProductBfloat16",
        _ => "ProductFloat",
    }
}

/// The attribute that names the weights with this index: sessions that share weights know them by it.
pub(crate) fn name_attribute(index: usize) -> String {
    format!("weights_{index}")
}

/// The operator for one type of weights.
pub(super) struct Product {
    pub(super) units: MatrixUnits,
    pub(super) threads: usize,
    pub(super) weights: DataType,
    pub(super) packed: Packed,
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
        let first = [OperatorInput::required(float), OperatorInput::required(weights)];
        let more = (1..MOST_WEIGHTS)
            .flat_map(move |_| [OperatorInput::optional(float), OperatorInput::optional(weights)]);
        first.into_iter().chain(more).chain([OperatorInput::optional(float)])
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Multiply> {
        let transposed = context.get::<i64>("transB") == Some(1);
        let mut weights = Vec::new();
        for index in 0..MOST_WEIGHTS {
            let Some(name) = context.get::<String>(name_attribute(index)) else { break };
            let input = 1 + 2 * index;
            weights.push(self.packed.weights(context, input, &name, self.weights, transposed, self.units)?);
        }
        if weights.is_empty() {
            return Err(ort::Error::new("a product without weights"));
        }
        let form = match context.get::<String>("form").as_deref() {
            Some("gated") => Form::Gated,
            _ => Form::Beside,
        };
        let function = context.get::<String>("function").and_then(|name| Function::named(&name));
        let depth = weights[0].depth();
        if weights.iter().any(|weights| weights.depth() != depth) {
            return Err(ort::Error::new("weights of one product are for rows of different widths"));
        }
        if form == Form::Gated && (weights.len() != 2 || weights[0].lanes() != weights[1].lanes()) {
            return Err(ort::Error::new("a gate is as wide as what it is a factor of"));
        }
        Ok(Multiply { units: self.units, threads: self.threads, weights, form, function })
    }
}

/// A product with these weights.
pub(super) struct Multiply {
    units: MatrixUnits,
    threads: usize,
    weights: Vec<Arc<Right>>,
    form: Form,
    function: Option<Function>,
}

impl Kernel for Multiply {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let x = context.input(0)?.ok_or_else(|| ort::Error::new("a product has no rows"))?;
        let (shape, x) = x.try_extract_tensor::<f32>()?;
        let depth = self.weights[0].depth();
        let &[rows, columns] = &shape[..] else { return Err(ort::Error::new("rows are a matrix")) };
        if columns != depth as i64 {
            return Err(ort::Error::new(format!("rows of {columns} numbers for weights of {depth}")));
        }
        let inputs = context.num_inputs()?;
        let mut biases = Vec::new();
        for index in 0..self.weights.len() {
            biases.push(if 2 * index + 2 < inputs { context.input(2 * index + 2)? } else { None });
        }
        let mut given = Vec::new();
        for (bias, weights) in biases.iter().zip(&self.weights) {
            let bias =
                bias.as_ref().map(|bias| bias.try_extract_tensor::<f32>()).transpose()?.map(|(_, bias)| bias);
            if bias.is_some_and(|bias| bias.len() != weights.lanes()) {
                return Err(ort::Error::new(format!("a bias that is not of {} numbers", weights.lanes())));
            }
            given.push(bias);
        }
        let widths: Vec<usize> = match self.form {
            Form::Beside => self.weights.iter().map(|weights| weights.lanes()).collect(),
            Form::Gated => vec![self.weights[0].lanes()],
        };
        let width: usize = widths.iter().sum();
        let mut out = context
            .output(0, [rows, width as i64])?
            .ok_or_else(|| ort::Error::new("a product has no output"))?;
        let out = Out::new(out.try_extract_tensor_mut::<f32>()?.1, rows as usize, width);
        let most = if self.in_blocks() { row_panels(depth) } else { MOST_ROW_PANELS };
        let tasks = tasks(rows as usize, most, &widths, self.threads, out);
        context.par_for(tasks.len(), 0, |task| {
            let task = tasks[task].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(task) = task {
                with_space(self.units, |space| self.multiply(x, &given, task, space));
            }
        })
    }
}

impl Multiply {
    fn multiply(&self, x: &[f32], biases: &[Option<&[f32]>], task: Task<'_>, space: &mut Space) {
        let depth = self.weights[0].depth();
        let Space { left, factors } = space;
        let start = |index: usize, panels: &Range<usize>| {
            let columns = panels.start * PANEL..self.weights[index].lanes().min(panels.end * PANEL);
            biases[index].map_or(Start::Zero, |bias: &[f32]| Start::Row(&bias[columns]))
        };
        let x = Matrix::rows(x, depth).from(task.rows.start, 0);
        if !self.in_blocks() {
            // Longer rows are split a part at a time, so that the parts stay in the cache.
            for (index, (panels, out)) in task.parts.into_iter().enumerate() {
                let (weights, start) = (&self.weights[index], start(index, &panels));
                pack_and_multiply(x, task.rows.len(), left, weights, panels, start, out);
            }
            return;
        }
        left.resize(Parts::Three, task.rows.len(), depth);
        left.pack(x);
        let rows = 0..left.panels();
        for (index, (panels, out)) in task.parts.into_iter().enumerate() {
            let weights = &*self.weights[index];
            let mut beside = out;
            let mut first = panels.start;
            while first < panels.end {
                let block = first..panels.end.min(first + BLOCK);
                let width = weights.lanes().min(block.end * PANEL) - block.start * PANEL;
                let (mut out, rest) = beside.split_columns(width);
                multiply(left, rows.clone(), weights, block.clone(), start(index, &block), out.reborrow());
                match (self.form, self.function) {
                    (Form::Beside, None) => {}
                    (Form::Beside, Some(function)) => out.for_each_row(|row| function.apply(row)),
                    (Form::Gated, function) => {
                        factors.resize(task.rows.len() * width, 0.0);
                        let into = Out::new(factors, task.rows.len(), width);
                        multiply(left, rows.clone(), &self.weights[1], block.clone(), start(1, &block), into);
                        let mut factors = factors.chunks_exact(width);
                        out.for_each_row(|row| {
                            let factors = factors.next().unwrap_or_default();
                            match function {
                                Some(function) => function.apply_gate(row, factors),
                                None => row.iter_mut().zip(factors).for_each(|(x, y)| *x *= y),
                            }
                        });
                    }
                }
                (beside, first) = (rest, block.end);
            }
        }
    }

    /// Whether rows are split once and multiplied by a few columns at a time.
    fn in_blocks(&self) -> bool {
        self.form == Form::Gated
            || self.function.is_some()
            || (self.weights.len() > 1 && self.weights[0].depth() <= 2048)
    }
}

/// Panels of columns that are computed before a function goes over them: few enough to be in the cache then.
const BLOCK: usize = 8;

/// Panels of rows that are multiplied by a panel of columns that is read once.
const MOST_ROW_PANELS: usize = 8;

/// As many, where they are split as a whole: the second cache level keeps them.
fn row_panels(depth: usize) -> usize {
    let bytes = 4 * PANEL * depth.max(1);
    ((1 << 20) / bytes).clamp(2, MOST_ROW_PANELS)
}

/// Rows, and of each result its panels of columns and where they go.
struct Task<'o> {
    rows: Range<usize>,
    parts: Vec<(Range<usize>, Out<'o>)>,
}

/// Divides a product among threads, `most` panels of rows at a time where there are enough, and columns where rows are few. Bits
/// do not depend on it, only the speed does. Whoever computes a task takes it.
fn tasks<'o>(
    rows: usize,
    most: usize,
    widths: &[usize],
    threads: usize,
    out: Out<'o>,
) -> Vec<Mutex<Option<Task<'o>>>> {
    let row_panels = rows.div_ceil(PANEL);
    let fewest = row_panels.div_ceil(most);
    let row_parts = fewest.next_multiple_of(threads).min(row_panels.div_ceil(4).max(fewest));
    let column_parts = threads.div_ceil(row_parts.max(1));
    let part = |all: usize, index: usize, parts: usize| all * index / parts..all * (index + 1) / parts;
    let mut tasks = Vec::with_capacity(row_parts * column_parts);
    let mut below = out;
    for index in 0..row_parts {
        let panels = part(row_panels, index, row_parts);
        let range = panels.start * PANEL..rows.min(panels.end * PANEL);
        let (mut beside, rest) = below.split_rows(range.len());
        below = rest;
        let mut parts: Vec<Vec<(Range<usize>, Out<'o>)>> = (0..column_parts).map(|_| Vec::new()).collect();
        for &width in widths {
            for (index, parts) in parts.iter_mut().enumerate() {
                let panels = part(width.div_ceil(PANEL), index, column_parts);
                let columns = width.min(panels.end * PANEL).saturating_sub(panels.start * PANEL);
                let (out, rest) = beside.split_columns(columns);
                beside = rest;
                parts.push((panels, out));
            }
        }
        tasks.extend(parts.into_iter().map(|parts| Mutex::new(Some(Task { rows: range.clone(), parts }))));
    }
    tasks
}

/// Memory that each thread keeps.
struct Space {
    /// Packed rows.
    left: Left,
    /// What a gate is multiplied by.
    factors: Vec<f32>,
}

fn with_space(units: MatrixUnits, use_it: impl FnOnce(&mut Space)) {
    thread_local! {
        static SPACE: RefCell<Option<Space>> = const { RefCell::new(None) };
    }
    SPACE.with_borrow_mut(|space| {
        let new = || Space { left: Left::zeros(units, Parts::Three, 0, 0), factors: Vec::new() };
        use_it(space.get_or_insert_with(new));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_a_product_belongs_to_one_task() {
        for (rows, most, widths, threads) in [
            (1, 8, &[1][..], 1),
            (1, 8, &[100], 4),
            (1024, 8, &[768], 2),
            (1000, 2, &[65, 7, 7], 16),
            (40, 8, &[3072, 64], 64),
            (0, 8, &[5], 2),
        ] {
            let width: usize = widths.iter().sum();
            let mut numbers = vec![0.0f32; rows * width];
            let all = tasks(rows, most, widths, threads, Out::new(&mut numbers, rows, width));
            let mut times = vec![0; rows * width];
            for task in &all {
                let task = task.lock().unwrap().take().unwrap();
                for row in task.rows {
                    for (index, (panels, _)) in task.parts.iter().enumerate() {
                        let first: usize = widths[..index].iter().sum();
                        for column in panels.start * PANEL..widths[index].min(panels.end * PANEL) {
                            times[row * width + first + column] += 1;
                        }
                    }
                }
            }
            assert!(times.iter().all(|&times| times == 1), "{rows} {widths:?} {threads}");
        }
    }
}
