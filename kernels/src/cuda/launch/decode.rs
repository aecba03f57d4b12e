//! `decode.cu`: x̂ from the active pairs, its losses, and g = dL/dx̂.

use super::parameter::{Parameter, bytes, floats, halves, kind, number, u32s};
use super::{REPORT_BYTES, SCALARS_BYTES, Slice, launch, stride_of, walk_threads};
use crate::cuda::device::Device;
use crate::cuda::layout::{ROW_RESULT_BYTES, mse_kind, penalty_kind};
use crate::error::DeviceError;
use crate::loss::{Mse, Penalty};

/// What x̂ is summed from.
#[derive(Debug)]
pub enum Decoder<'a, B> {
    /// W_dec, [F,stride].
    Float32(Slice<'a, B>),
    /// Its copy, bf16 [F,stride].
    Bf16(&'a B),
}

/// `decode` and `decode_bf16`.
#[derive(Debug)]
pub struct Decode<'a, B> {
    /// The batch, [B,stride].
    pub x: &'a B,
    /// ‖x_i‖², [B].
    pub squared: &'a B,
    /// ‖x_i − x̄‖, [B].
    pub centered: &'a B,
    /// W_dec.
    pub decoder: Decoder<'a, B>,
    /// b_dec, [stride].
    pub decoder_bias: Slice<'a, B>,
    /// ‖W_dec_j‖, [F], where the penalty is weighted by it.
    pub decoder_norm: Option<&'a B>,
    /// Where rows begin in the list, u32 [B+1].
    pub starts: &'a B,
    /// Active pairs of each row, u32 [B].
    pub row_active: &'a B,
    /// The features in the rows' lists, u32 [capacity].
    pub pair_features: &'a B,
    /// The activations there, [capacity].
    pub row_values: &'a B,
    /// g, [B,stride], written.
    pub g: &'a B,
    /// `RowResult` [B], written.
    pub results: &'a B,
    /// B.
    pub rows: usize,
    /// F.
    pub features: usize,
    /// d.
    pub width: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// The MSE that g is of.
    pub mse: Mse,
    /// The penalty; its numbers are the scalars'.
    pub penalty: Penalty,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<'a, B> Decode<'a, B> {
    /// The kernel for the decoder, of that for float32 and that for bfloat16.
    pub(super) fn one_of(&self, [float32, bf16]: [&'static str; 2]) -> &'static str {
        match self.decoder {
            Decoder::Float32(_) => float32,
            Decoder::Bf16(_) => bf16,
        }
    }

    /// The kernel's parameters, g being of `g_rows` rows.
    pub(super) fn parameters(&self, g_rows: usize) -> Vec<Parameter<'a, B>> {
        let (rows, features, width, stride) = (self.rows, self.features, self.width, stride_of(self.width));
        let decoder = match self.decoder {
            Decoder::Float32(decoder) => floats("decoder", decoder, features * stride),
            Decoder::Bf16(decoder) => halves("decoder", decoder, features * stride),
        };
        vec![
            floats("x", self.x, rows * stride),
            floats("squared", self.squared, rows),
            floats("centered", self.centered, rows),
            decoder,
            floats("decoder_bias", self.decoder_bias, stride),
            floats("decoder_norm", self.decoder_norm, features),
            u32s("starts", self.starts, rows + 1),
            u32s("row_active", self.row_active, rows),
            u32s("pair_features", self.pair_features, self.capacity),
            floats("row_values", self.row_values, self.capacity),
            floats("g", self.g, g_rows * stride),
            bytes("results", self.results, rows * ROW_RESULT_BYTES),
            number("rows", rows),
            number("width", width),
            number("stride", stride),
            kind("mse", mse_kind(self.mse)),
            kind("kind", penalty_kind(self.penalty)),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ]
    }

    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let kernel = ("decode", self.one_of(["decode", "decode_bf16"]));
        launch(
            device,
            kernel,
            (self.rows, 1),
            walk_threads(stride_of(self.width)),
            &self.parameters(self.rows),
        )
    }
}
