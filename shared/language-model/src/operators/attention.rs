//! Causal attention with rotary positions as one node.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use matrix_units::Out;
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::causal::{Attention, Heads, Space, Turn};

/// Inputs: rows of queries, keys and values, float32, which may be the same; int64 `[contexts, length]`; and perhaps cosines and
/// sines, float32 `[length, 1, half]`. Attributes: `heads`, `kv_heads`, `head_dim`, and where heads lie ([`Place`]). Output
/// `[contexts * length, heads * head_dim]`.
pub(crate) const CAUSAL_ATTENTION: &str = "CausalAttention";

/// Where the heads of queries, keys and values lie in their rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Where the first head of each begins: the attribute `first`.
    pub(crate) first: [usize; 3],
    /// How far apart heads begin: the attribute `stride`.
    pub(crate) stride: usize,
}

pub(super) struct CausalAttention;

impl Operator for CausalAttention {
    type Kernel<'attr> = Attend;

    fn name(&self) -> &str {
        CAUSAL_ATTENTION
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = TensorElementType::Float32;
        [
            OperatorInput::required(float),
            OperatorInput::required(float),
            OperatorInput::required(float),
            OperatorInput::required(TensorElementType::Int64),
            OperatorInput::optional(float),
            OperatorInput::optional(float),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Attend> {
        let number = |name: &str| {
            let value = context.get::<i64>(name).and_then(|value| usize::try_from(value).ok());
            value.ok_or_else(|| ort::Error::new(format!("attention without the attribute {name}")))
        };
        let first: Vec<usize> = context
            .get::<Vec<i64>>("first")
            .unwrap_or_default()
            .into_iter()
            .map(|first| first as usize)
            .collect();
        let first = first.try_into().map_err(|_| ort::Error::new("attention without the attribute first"))?;
        let (heads, kv_heads, head_dim) = (number("heads")?, number("kv_heads")?, number("head_dim")?);
        if head_dim == 0 || kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            return Err(ort::Error::new(format!("{heads} heads of {head_dim} numbers, {kv_heads} of keys")));
        }
        Ok(Attend { heads, kv_heads, head_dim, place: Place { first, stride: number("stride")? } })
    }
}

/// Attention of these sizes.
pub(super) struct Attend {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    place: Place,
}

impl Kernel for Attend {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("attention lacks an input");
        let sizes = context.input(3)?.ok_or_else(missing)?;
        let &[contexts, length] = sizes.try_extract_tensor::<i64>()?.1 else { return Err(missing()) };
        let (contexts, length) = (contexts as usize, length as usize);

        let inputs = [context.input(0)?, context.input(1)?, context.input(2)?];
        let mut qkv = Vec::new();
        for (index, input) in inputs.iter().enumerate() {
            let (shape, numbers) = input.as_ref().ok_or_else(missing)?.try_extract_tensor::<f32>()?;
            let row = shape.last().map_or(0, |&row| row as usize);
            let rows = Heads { numbers, row, first: self.place.first[index], stride: self.place.stride };
            let heads = if index == 0 { self.heads } else { self.kv_heads };
            if !rows.holds(contexts * length, heads, self.head_dim) {
                return Err(ort::Error::new(format!(
                    "attention over {shape:?}, contexts of [{contexts}, {length}]"
                )));
            }
            qkv.push(rows);
        }
        let &[q, k, v] = &qkv[..] else { return Err(missing()) };

        let angles = match context.num_inputs()? {
            ..6 => [None, None],
            _ => [context.input(4)?, context.input(5)?],
        };
        let mut waves = Vec::new();
        for wave in angles.iter().flatten() {
            waves.push(wave.try_extract_tensor::<f32>()?.1);
        }
        let turn = match &waves[..] {
            &[cos, sin] => {
                let half = cos.len() / length.max(1);
                if cos.len() != sin.len() || cos.len() != half * length || 2 * half > self.head_dim {
                    return Err(ort::Error::new(format!(
                        "angles of {} numbers for {length} positions",
                        cos.len()
                    )));
                }
                Some(Turn { cos, sin, half })
            }
            _ => None,
        };

        let width = self.heads * self.head_dim;
        let mut out = context.output(0, [(contexts * length) as i64, width as i64])?.ok_or_else(missing)?;
        let mut below = Out::new(out.try_extract_tensor_mut::<f32>()?.1, contexts * length, width);
        let group = self.heads / self.kv_heads;
        let mut tasks = Vec::with_capacity(contexts * self.kv_heads);
        for at in 0..contexts {
            let (mut beside, rest) = below.split_rows(length);
            below = rest;
            for kv in 0..self.kv_heads {
                let (out, rest) = beside.split_columns(group * self.head_dim);
                beside = rest;
                tasks.push(Mutex::new(Some((at, kv, out))));
            }
        }
        context.par_for(tasks.len(), 0, |task| {
            let task = tasks[task].lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some((at, kv, out)) = task else { return };
            let [q, k, v] = [q, k, v].map(|heads| heads.context(at, length));
            let attention = Attention { q, k, v, turn, length, head_dim: self.head_dim, group };
            thread_local! {
                static SPACE: RefCell<Space> = RefCell::default();
            }
            SPACE.with_borrow_mut(|space| attention.attend(kv, space, out));
        })
    }
}
