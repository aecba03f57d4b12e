//! What a step reads: rows for the encoder, and rows that the decoder is to reconstruct.

use ndarray::ArrayView2;

use crate::error::StepError;

/// Two batches, row by row of the same tokens. An autoencoder reconstructs what it reads, so they are one; a transcoder
/// reads activations of one place in a model and reconstructs those of another.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// What the encoder reads, [B,d].
    pub input: ArrayView2<'a, f32>,
    /// What x̂ is compared with, [B,d].
    pub target: ArrayView2<'a, f32>,
}

impl<'a> From<ArrayView2<'a, f32>> for Batch<'a> {
    /// Rows that are to be reconstructed themselves.
    fn from(rows: ArrayView2<'a, f32>) -> Batch<'a> {
        Batch { input: rows, target: rows }
    }
}

impl<'a> Batch<'a> {
    /// B.
    pub fn rows(&self) -> usize {
        self.input.nrows()
    }

    /// Whether the decoder is to reconstruct other rows than the encoder reads.
    pub fn has_its_own_target(&self) -> bool {
        self.input.as_ptr() != self.target.as_ptr()
    }

    /// The numbers of both, row-major, if they are `rows` rows of `width` numbers.
    ///
    /// # Errors
    /// Rows of another shape, or not row-major.
    pub fn numbers(&self, rows: usize, width: usize) -> Result<(&'a [f32], &'a [f32]), StepError> {
        let numbers = |name, view: ArrayView2<'a, f32>| {
            view.to_slice()
                .filter(|_| view.dim() == (rows, width))
                .ok_or_else(|| StepError::shape(name, view.shape(), &[rows, width]))
        };
        Ok((numbers("the batch", self.input)?, numbers("the batch's target", self.target)?))
    }
}
