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
