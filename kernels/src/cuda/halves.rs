//! The factors of dense products, and how their bfloat16 halves lie: see `kernels/cuda/dense.cu`.

use super::launch::dense::HalvesOrder;
use super::plan::DevicePlan;
use crate::precision::Precision;

/// A matrix that is a factor of dense products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matrix {
    /// The encoder's input, [B,stride].
    X,
    /// W_enc transposed, [F,stride].
    Encoder,
    /// W_dec, [F,stride].
    Decoder,
    /// a, [B,line].
    Activations,
    /// g, [B,stride].
    Gradient,
    /// da, [B,line].
    ByValue,
}

/// The bfloat16 halves of a matrix, in one buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Halves {
    /// The first byte of the number rounded to bfloat16.
    pub(crate) high: usize,
    /// The first byte of what that left over; only where products are to be exact.
    pub(crate) low: Option<usize>,
    /// Numbers from one row to the next.
    pub(crate) stride: usize,
    /// How `split` lays them; the activations' and their gradients' halves are two arrays, which other kernels write.
    pub(crate) order: HalvesOrder,
    /// The buffer's size.
    pub(crate) bytes: usize,
}

impl Matrix {
    /// Its rows in a batch of `plan.rows`.
    fn lines(self, plan: &DevicePlan) -> usize {
        match self {
            Matrix::Encoder | Matrix::Decoder => plan.features,
            Matrix::X | Matrix::Activations | Matrix::Gradient | Matrix::ByValue => plan.rows,
        }
    }

    /// Numbers from one of its rows to the next.
    pub(crate) fn stride(self, plan: &DevicePlan) -> usize {
        match self {
            Matrix::Activations | Matrix::ByValue => plan.line,
            Matrix::X | Matrix::Encoder | Matrix::Decoder | Matrix::Gradient => plan.stride,
        }
    }

    /// Its halves, if products are formed from halves.
    pub(crate) fn halves(self, plan: &DevicePlan) -> Option<Halves> {
        let (lines, stride) = (self.lines(plan), self.stride(plan));
        // Bytes of one array of halves.
        let array = 2 * lines * stride;
        let alone = Halves { high: 0, low: None, stride, order: HalvesOrder::High, bytes: array };
        let beside = Halves { stride: 3 * stride, bytes: 3 * array, ..alone };
        match (plan.precision, self) {
            (Precision::Fp32, _) => None,
            (Precision::Bf16, _) => Some(alone),
            (Precision::Exact, Matrix::X | Matrix::Gradient) => {
                Some(Halves { high: 2 * stride, low: Some(0), order: HalvesOrder::LowHighHigh, ..beside })
            }
            (Precision::Exact, Matrix::Encoder | Matrix::Decoder) => {
                Some(Halves { low: Some(2 * stride), order: HalvesOrder::HighLowHigh, ..beside })
            }
            (Precision::Exact, Matrix::Activations | Matrix::ByValue) => {
                Some(Halves { low: Some(array), bytes: 2 * array, ..alone })
            }
        }
    }
}
