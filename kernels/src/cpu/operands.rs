//! What the encoder multiplies.

/// The inputs of an encode.
#[derive(Debug, Clone, Copy)]
pub struct Encode<'a> {
    /// X, or X − b_dec with the pre-bias: [B,d].
    pub x: &'a [f32],
    /// W_enc transposed: [F,d].
    pub weights: &'a [f32],
    /// b_enc, [F].
    pub bias: &'a [f32],
    /// d.
    pub width: usize,
}

/// Where z begins to matter: a pair is looked for if z_ij is above c_ij.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cutoff<'a> {
    /// c_ij = 0.
    Zero,
    /// c_ij = c_i ≥ 0, [B].
    OfRows(&'a [f32]),
    /// c_ij = c_j, [F].
    OfFeatures(&'a [f32]),
}

impl Cutoff<'_> {
    /// c_ij is this of the row times [`Cutoff::of_feature`], of which one is 1 or both are 0.
    pub(crate) fn of_row(self, row: usize) -> f32 {
        match self {
            Cutoff::Zero => 0.0,
            Cutoff::OfRows(rows) => rows[row],
            Cutoff::OfFeatures(_) => 1.0,
        }
    }

    /// See [`Cutoff::of_row`].
    pub(crate) fn of_feature(self, feature: usize) -> f32 {
        match self {
            Cutoff::Zero => 0.0,
            Cutoff::OfRows(_) => 1.0,
            Cutoff::OfFeatures(features) => features[feature],
        }
    }
}
