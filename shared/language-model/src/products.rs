//! Which products a model is computed with.

use matrix_units::MatrixUnits;

/// How products with a model's weights are computed on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// By ONNX Runtime, in float32.
    #[default]
    Exact,
    /// On the processor's matrix units, as sums of three products of bfloat16 numbers, where there are such units and the
    /// kernel allows them; else as [`Products::Exact`]. The rms error of a product is about 4·10⁻⁶ of its rms; plain float32
    /// has a tenth of that, bfloat16 a thousand times as much. What lies between products is computed in float32, by
    /// operators of this crate where they are faster. The number of threads changes no bit.
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
