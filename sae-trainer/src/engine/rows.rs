//! A batch, in the number type of the store's rows.

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::{Array2, ArrayView2, CowArray, Ix2};

/// Rows [n, d] of float32 numbers, or of half-precision ones that stand for float32 numbers exactly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rows<'a> {
    /// float32.
    F32(ArrayView2<'a, f32>),
    /// IEEE half precision.
    F16(ArrayView2<'a, f16>),
}

impl<'a> Rows<'a> {
    /// [n, d].
    pub fn shape(&self) -> &[usize] {
        match self {
            Rows::F32(rows) => rows.shape(),
            Rows::F16(rows) => rows.shape(),
        }
    }

    /// As float32.
    pub fn to_f32(&self) -> CowArray<'a, f32, Ix2> {
        match self {
            Rows::F32(rows) => (*rows).into(),
            Rows::F16(rows) => {
                let rows = rows.as_standard_layout();
                let numbers = rows.as_slice().expect("the layout is row-major").to_f32_vec();
                Array2::from_shape_vec(rows.dim(), numbers).expect("as many numbers as before").into()
            }
        }
    }
}

impl<'a> From<ArrayView2<'a, f32>> for Rows<'a> {
    fn from(rows: ArrayView2<'a, f32>) -> Rows<'a> {
        Rows::F32(rows)
    }
}
