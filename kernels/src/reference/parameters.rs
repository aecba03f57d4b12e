//! What a step reads and trains.

/// An autoencoder's weights, or anything of their shapes (gradients, Adam's moments).
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// W_enc, [d,F].
    pub w_enc: Vec<f64>,
    /// b_enc, [F].
    pub b_enc: Vec<f64>,
    /// W_dec, [F,d].
    pub w_dec: Vec<f64>,
    /// b_dec, [d].
    pub b_dec: Vec<f64>,
    /// θ of JumpReLU, [F]; empty without it.
    pub threshold: Vec<f64>,
    /// W_skip, [d,d], row k for output k; empty without it.
    pub skip: Vec<f64>,
}

impl Parameters {
    /// Zeros in the same shapes.
    pub fn zeros_like(&self) -> Parameters {
        let mut zeros = self.clone();
        zeros.tensors_mut().into_iter().for_each(|tensor| tensor.fill(0.0));
        zeros
    }

    /// The tensors, in the order W_enc, b_enc, W_dec, b_dec, θ, W_skip.
    pub fn tensors(&self) -> [&[f64]; 6] {
        [&self.w_enc, &self.b_enc, &self.w_dec, &self.b_dec, &self.threshold, &self.skip]
    }

    /// The tensors, in the order W_enc, b_enc, W_dec, b_dec, θ, W_skip.
    pub fn tensors_mut(&mut self) -> [&mut Vec<f64>; 6] {
        let Parameters { w_enc, b_enc, w_dec, b_dec, threshold, skip } = self;
        [w_enc, b_enc, w_dec, b_dec, threshold, skip]
    }

    /// W_dec_j, [d].
    pub(super) fn decoder_row(&self, feature: usize, width: usize) -> &[f64] {
        &self.w_dec[feature * width..][..width]
    }
}

/// What a step reads.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// What the encoder reads, [B,d].
    pub input: &'a [f64],
    /// What x̂ is compared with, [B,d].
    pub target: &'a [f64],
}

impl<'a> From<&'a [f64]> for Batch<'a> {
    /// Rows that are to be reconstructed themselves.
    fn from(rows: &'a [f64]) -> Batch<'a> {
        Batch { input: rows, target: rows }
    }
}
