//! A batch, in the number type of the store's rows.

use std::borrow::Cow;

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Rows [n, d] of float32 numbers, or of half-precision ones that stand for float32 numbers exactly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rows<'a> {
    /// float32.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

impl<'a> Rows<'a> {
    /// How many numbers there are, n·d.
    pub fn numbers(&self) -> usize {
        match self {
            Rows::F32(numbers) => numbers.len(),
            Rows::F16(numbers) => numbers.len(),
        }
    }

    /// As float32.
    pub fn to_f32(&self) -> Cow<'a, [f32]> {
        match self {
            Rows::F32(numbers) => Cow::Borrowed(numbers),
            Rows::F16(numbers) => Cow::Owned(numbers.to_f32_vec()),
        }
    }
}

impl<'a> From<&'a [f32]> for Rows<'a> {
    fn from(numbers: &'a [f32]) -> Rows<'a> {
        Rows::F32(numbers)
    }
}
