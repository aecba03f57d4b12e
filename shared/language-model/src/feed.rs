//! The inputs that an ONNX file is fed.

use ndarray::ArrayView2;
use ort::memory::Allocator;
use ort::value::{DynTensor, Tensor, TensorElementType};

use crate::onnx::{DataType, ValueInfoProto};

/// An input of a graph and what goes into it.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) name: String,
    feed: Feed,
    element: TensorElementType,
    /// Sizes that are fixed; `None` where any size fits.
    dims: Vec<Option<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    /// Token ids `[contexts, length]`.
    Ids,
    /// Ones `[contexts, length]`: every token is visible to attention.
    Ones,
    /// Zeros `[contexts, length]`.
    Zeros,
    /// 0, 1, … `[contexts, length]` or `[length]`.
    Positions,
    /// Keys or values of tokens before the context: there are none, so a dimension is 0.
    Nothing,
    /// No, use no cache.
    False,
}

/// The inputs of a graph of this crate.
pub(crate) fn ids_alone(name: &str) -> Vec<Input> {
    let (element, dims) = (TensorElementType::Int64, vec![None, None]);
    vec![Input { name: name.to_string(), feed: Feed::Ids, element, dims }]
}

/// What to feed to the inputs of an ONNX file, the token ids first.
///
/// # Errors
/// If an input cannot be filled, or there is not exactly one input of token ids.
pub(crate) fn inputs(declared: &[ValueInfoProto]) -> Result<Vec<Input>, String> {
    let mut inputs = Vec::new();
    let mut ids = Vec::new();
    for info in declared {
        let (element, dims) = tensor_type(info)?;
        let feed = known(&info.name, dims.len());
        let integer = matches!(element, TensorElementType::Int64 | TensorElementType::Int32);
        let input = |feed| Input { name: info.name.clone(), feed, element, dims: dims.clone() };
        match feed {
            Some(feed) => inputs.push(input(feed)),
            None if integer && dims.len() == 2 => ids.push(input(Feed::Ids)),
            None => {
                return Err(format!(
                    "its input `{}` ({}) cannot be filled: token ids [contexts, length] (int64 or int32) are at hand, \
                     and with them attention_mask, position_ids, token_type_ids and empty past_key_values",
                    info.name,
                    describe(element, &dims)
                ));
            }
        }
    }
    if let [_, _, ..] = &ids[..] {
        ids.retain(|input| input.name == "input_ids");
    }
    match <[Input; 1]>::try_from(ids) {
        Ok([ids]) => {
            inputs.insert(0, ids);
            Ok(inputs)
        }
        Err(ids) if ids.is_empty() => Err(
            "it has no input of token ids (int64 or int32, [contexts, length]) that the tensor depends on"
                .to_string(),
        ),
        Err(ids) => {
            let names: Vec<&str> = ids.iter().map(|input| input.name.as_str()).collect();
            Err(format!("which of its inputs takes the token ids? It has {}", names.join(", ")))
        }
    }
}

/// What goes into an input with this name, for the names that exporters give.
fn known(name: &str, rank: usize) -> Option<Feed> {
    match (name, rank) {
        ("attention_mask" | "encoder_attention_mask", 2) => Some(Feed::Ones),
        ("position_ids" | "cache_position", 1 | 2) => Some(Feed::Positions),
        ("token_type_ids", 2) => Some(Feed::Zeros),
        ("use_cache_branch", 1) => Some(Feed::False),
        _ if rank >= 3 && (name.starts_with("past_key_values") || name.starts_with("past.")) => {
            Some(Feed::Nothing)
        }
        _ => None,
    }
}

impl Input {
    /// Contexts and tokens of a context that the graph is fixed to, if it is.
    pub(crate) fn fixed(&self) -> [Option<usize>; 2] {
        [self.dims.first().copied().flatten(), self.dims.get(1).copied().flatten()]
    }

    /// The input's tensor for the ids `[contexts, length]`.
    pub(crate) fn tensor(&self, ids: ArrayView2<'_, i64>) -> ort::Result<DynTensor> {
        let (contexts, length) = ids.dim();
        let positions = || (0..length).map(|position| position as i64);
        let grid = vec![contexts, length];
        let (shape, values): (Vec<usize>, Vec<i64>) = match self.feed {
            Feed::Ids => (grid, ids.iter().copied().collect()),
            Feed::Ones => (grid, vec![1; contexts * length]),
            Feed::Zeros => (grid, vec![0; contexts * length]),
            Feed::Positions => {
                let times = match self.dims[..] {
                    [Some(1), _] | [_] => 1,
                    _ => contexts,
                };
                let shape = if self.dims.len() == 1 { vec![length] } else { vec![times, length] };
                (shape, (0..times).flat_map(|_| positions()).collect())
            }
            Feed::False => (vec![1], vec![0]),
            Feed::Nothing => {
                let size = |(axis, size): (usize, &Option<usize>)| match size {
                    Some(size) => *size,
                    None if axis == 0 => contexts,
                    None => 0,
                };
                let shape: Vec<usize> = self.dims.iter().enumerate().map(size).collect();
                return DynTensor::new(&Allocator::default(), self.element, shape);
            }
        };
        Ok(match self.element {
            TensorElementType::Int64 => Tensor::from_array((shape, values))?.upcast(),
            TensorElementType::Int32 => {
                let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
                Tensor::from_array((shape, values))?.upcast()
            }
            TensorElementType::Bool => {
                let values: Vec<bool> = values.into_iter().map(|value| value != 0).collect();
                Tensor::from_array((shape, values))?.upcast()
            }
            TensorElementType::Float16 => {
                let values: Vec<half::f16> =
                    values.into_iter().map(|value| half::f16::from_f32(value as f32)).collect();
                Tensor::from_array((shape, values))?.upcast()
            }
            _ => {
                let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
                Tensor::from_array((shape, values))?.upcast()
            }
        })
    }
}

/// The element type and the fixed sizes of an input.
fn tensor_type(info: &ValueInfoProto) -> Result<(TensorElementType, Vec<Option<usize>>), String> {
    let tensor = info.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
    let tensor = tensor.ok_or_else(|| format!("its input `{}` is not a tensor", info.name))?;
    let element = match DataType::try_from(tensor.elem_type) {
        Ok(DataType::Float) => TensorElementType::Float32,
        Ok(DataType::Float16) => TensorElementType::Float16,
        Ok(DataType::Bfloat16) => TensorElementType::Bfloat16,
        Ok(DataType::Int64) => TensorElementType::Int64,
        Ok(DataType::Int32) => TensorElementType::Int32,
        Ok(DataType::Bool) => TensorElementType::Bool,
        _ => return Err(format!("its input `{}` has an element type that cannot be filled", info.name)),
    };
    let dims = tensor.shape.iter().flat_map(|shape| &shape.dim);
    let size = |size: Option<i64>| size.and_then(|size| usize::try_from(size).ok());
    Ok((element, dims.map(|dim| size(dim.dim_value)).collect()))
}

fn describe(element: TensorElementType, dims: &[Option<usize>]) -> String {
    let dims: Vec<String> =
        dims.iter().map(|size| size.map_or("?".to_string(), |size| size.to_string())).collect();
    format!("{element} [{}]", dims.join(", "))
}
