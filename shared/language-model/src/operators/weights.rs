//! Weights of a model, split for the matrix units once and shared by all of its sessions.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};
use matrix_units::{Matrix, MatrixUnits, Parts, Right};
use ort::operator::KernelContext;
use ort::value::DynTensorValueType;

use crate::onnx::DataType;

/// By the tensors' names.
#[derive(Clone, Default)]
pub(crate) struct Packed(Arc<Mutex<HashMap<String, Arc<Right>>>>);

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Packed")
    }
}

impl Packed {
    /// The weights that are input `index` of a node: `[in, out]`, or transposed `[out, in]`, of this type.
    pub(crate) fn weights(
        &self,
        context: &KernelContext<'_>,
        index: usize,
        name: &str,
        kind: DataType,
        transposed: bool,
        units: MatrixUnits,
    ) -> ort::Result<Arc<Right>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = known.get(name) {
            return Ok(Arc::clone(weights));
        }
        let weights = Arc::new(pack(context, index, kind, transposed, units)?);
        known.insert(name.to_string(), Arc::clone(&weights));
        Ok(weights)
    }
}

fn pack(
    context: &KernelContext<'_>,
    index: usize,
    kind: DataType,
    transposed: bool,
    units: MatrixUnits,
) -> ort::Result<Right> {
    let weights = context.constant_input::<DynTensorValueType>(index)?;
    let shape: Vec<usize> = weights.shape().iter().map(|&size| size as usize).collect();
    let &[first, second] = &shape[..] else { return Err(ort::Error::new("weights are a matrix")) };
    let sizes = if transposed { (first, second) } else { (second, first) };
    let pack = |numbers: &[f32]| {
        let matrix = Matrix::rows(numbers, second);
        let matrix = if transposed { matrix.transposed() } else { matrix };
        Right::new(units, Parts::Three, sizes, matrix)
    };
    Ok(match kind {
        DataType::Float16 => {
            let numbers = weights.try_extract_tensor::<f16>()?.1;
            pack(&numbers.iter().map(|x| x.to_f32()).collect::<Vec<f32>>())
        }
        DataType::Bfloat16 => {
            let numbers = weights.try_extract_tensor::<bf16>()?.1;
            pack(&numbers.iter().map(|x| x.to_f32()).collect::<Vec<f32>>())
        }
        _ => pack(weights.try_extract_tensor::<f32>()?.1),
    })
}
