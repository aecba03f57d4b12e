//! The types that models compute in.

use crate::onnx::DataType;

/// The floating-point type that a model computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelPrecision {
    /// float32.
    Full,
    /// float16 for the factors and results of matrix products and for the activations that come out;
    /// float32 for the residual stream, the norms and the sums inside products and softmax.
    Half,
}

impl ModelPrecision {
    /// The type of the activations.
    pub(crate) fn output_type(self) -> DataType {
        match self {
            ModelPrecision::Full => DataType::Float,
            ModelPrecision::Half => DataType::Float16,
        }
    }
}
