//! A batch, in the number type of the store's rows.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kernels::batch::Batch;
use ndarray::{Array2, ArrayView2, CowArray, Ix2, s};

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

/// What a step reads, in the number types of the stores it comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StoredBatch<'a> {
    /// What the encoder reads, [B, d].
    pub input: Rows<'a>,
    /// What the decoder is to reconstruct, [B, d], row by row of the same tokens; `None` if it is the input.
    pub target: Option<Rows<'a>>,
}

impl<'a> StoredBatch<'a> {
    /// As float32.
    pub fn to_f32(&self) -> WideBatch<'a> {
        WideBatch { input: self.input.to_f32(), target: self.target.map(|rows| rows.to_f32()) }
    }
}

impl<'a> From<Rows<'a>> for StoredBatch<'a> {
    /// Rows that are to be reconstructed themselves.
    fn from(input: Rows<'a>) -> StoredBatch<'a> {
        StoredBatch { input, target: None }
    }
}

/// A [`StoredBatch`] in float32, copied only where it was something else.
#[derive(Debug)]
pub struct WideBatch<'a> {
    input: CowArray<'a, f32, Ix2>,
    target: Option<CowArray<'a, f32, Ix2>>,
}

impl WideBatch<'_> {
    /// The first `rows` rows.
    pub fn first(&self, rows: usize) -> Batch<'_> {
        match &self.target {
            None => self.input.slice(s![..rows, ..]).into(),
            Some(target) => {
                Batch { input: self.input.slice(s![..rows, ..]), target: target.slice(s![..rows, ..]) }
            }
        }
    }

    /// All rows.
    pub fn view(&self) -> Batch<'_> {
        self.first(self.input.nrows())
    }
}
