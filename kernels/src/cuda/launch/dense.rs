//! `dense.cu`: what stands between the dense products.

use super::jump::{Pseudo, Thresholds};
use super::parameter::{bytes, floats, halves, kind, number, real, u32s};
use super::{
    REPORT_BYTES, SCALARS_BYTES, SLOPE_ROWS, Slice, dense_line, launch, mask_words, stride_of, walk_threads,
};
use crate::cuda::device::Device;
use crate::cuda::layout::{ROW_RESULT_BYTES, mse_kind, penalty_kind};
use crate::error::DeviceError;
use crate::loss::{Mse, Penalty};

/// Features of a block of the kernels with a thread for each.
const FEATURES: usize = 256;

/// Numbers in [`DenseSlopes::bias_parts`] and [`DenseSlopes::norm_parts`]: [⌈B/128⌉,F].
pub fn slope_parts(rows: usize, features: usize) -> usize {
    rows.div_ceil(SLOPE_ROWS) * features
}

/// Where a kernel leaves a matrix [B,line] as the sum of bfloat16 halves; both are none where products are float32.
#[derive(Debug)]
pub struct WrittenHalves<'a, B> {
    /// The numbers rounded, bf16 [B,line].
    pub high: Option<Slice<'a, B>>,
    /// What that left over, bf16 [B,line]; where products are to be exact.
    pub low: Option<Slice<'a, B>>,
}

/// `activate`: a from z, its halves, and the mask.
#[derive(Debug)]
pub struct Activate<'a, B> {
    /// z without its bias, then a, [B,line].
    pub a: &'a B,
    /// b_enc, [F].
    pub encoder_bias: Slice<'a, B>,
    /// u32 [F,words], written.
    pub mask: &'a B,
    /// a, written.
    pub halves: WrittenHalves<'a, B>,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// `Report`; with thresholds the number of pairs that the lists would hold is entered.
    pub report: &'a B,
    /// JumpReLU's thresholds, and z, [B,line], written.
    pub jump: Option<(Thresholds<'a, B>, &'a B)>,
    /// One threshold of at least 0 for all features; and ‖W_dec_j‖, [F], if z has to be divided by it.
    pub above: Option<(f32, Option<&'a B>)>,
}

impl<B> Activate<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, rows) = (self.features, self.rows);
        let (line, words) = (dense_line(features), mask_words(rows));
        let mut parameters = vec![
            floats("a", self.a, rows * line),
            floats("encoder_bias", self.encoder_bias, features),
            u32s("mask", self.mask, features * words),
            halves("high", self.halves.high, rows * line),
            halves("low", self.halves.low, rows * line),
            number("features", features),
            number("rows", rows),
            number("line", line),
            number("words", words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let mut kernel = ("dense", "activate");
        if let Some((thresholds, preactivations)) = self.jump {
            parameters.extend(thresholds.parameters(features));
            parameters.push(floats("preactivations", preactivations, rows * line));
            kernel = ("jump_dense", "activate_jump");
        } else if let Some((threshold, norms)) = self.above {
            parameters.extend([real("threshold", threshold), floats("decoder_norm", norms, features)]);
            kernel = ("dense", "activate_above");
        }
        launch(device, kernel, (features.div_ceil(FEATURES), words), FEATURES, &parameters)
    }
}

/// `decode_dense`: g and the rows' results from x̂ without its bias.
#[derive(Debug)]
pub struct DecodeDense<'a, B> {
    /// The batch, [B,stride].
    pub x: &'a B,
    /// ‖x_i‖², [B].
    pub squared: &'a B,
    /// ‖x_i − x̄‖, [B].
    pub centered: &'a B,
    /// b_dec, [stride].
    pub decoder_bias: Slice<'a, B>,
    /// ‖W_dec_j‖, [F], where the penalty is weighted by it.
    pub decoder_norm: Option<&'a B>,
    /// a, [B,line].
    pub a: &'a B,
    /// x̂ without its bias, then g, [B,stride].
    pub g: &'a B,
    /// `RowResult` [B], written.
    pub results: &'a B,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// d.
    pub width: usize,
    /// The MSE that g is of.
    pub mse: Mse,
    /// The penalty; its numbers are the scalars'.
    pub penalty: Penalty,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> DecodeDense<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, rows, width) = (self.features, self.rows, self.width);
        let (stride, line) = (stride_of(width), dense_line(features));
        let parameters = [
            floats("x", self.x, rows * stride),
            floats("squared", self.squared, rows),
            floats("centered", self.centered, rows),
            floats("decoder_bias", self.decoder_bias, stride),
            floats("decoder_norm", self.decoder_norm, features),
            floats("a", self.a, rows * line),
            floats("g", self.g, rows * stride),
            bytes("results", self.results, rows * ROW_RESULT_BYTES),
            number("features", features),
            number("rows", rows),
            number("width", width),
            number("stride", stride),
            number("line", line),
            kind("mse", mse_kind(self.mse)),
            kind("kind", penalty_kind(self.penalty)),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("dense", "decode_dense"), (rows, 1), 256, &parameters)
    }
}

/// `dense_slopes`: da from g·W_dec, and its sums over 128 rows.
#[derive(Debug)]
pub struct DenseSlopes<'a, B> {
    /// a, [B,line].
    pub a: &'a B,
    /// g·W_dec, [B,line]; then da, where no halves are written.
    pub da: &'a B,
    /// ‖W_dec_j‖, [F], where the penalty is weighted by it.
    pub decoder_norm: Option<&'a B>,
    /// The frequency terms' derivatives, [F].
    pub slopes: &'a B,
    /// Sums of da, [`slope_parts`], written.
    pub bias_parts: &'a B,
    /// Sums of the derivative by the decoder's norm, [`slope_parts`], written.
    pub norm_parts: &'a B,
    /// da, written.
    pub halves: WrittenHalves<'a, B>,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// The penalty; its numbers are the scalars'.
    pub penalty: Penalty,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
    /// Where thresholds are trained.
    pub jump: Option<DenseJump<'a, B>>,
}

/// What `dense_slopes_jump` takes besides.
#[derive(Debug)]
pub struct DenseJump<'a, B> {
    /// The thresholds' pseudo-derivatives.
    pub pseudo: Pseudo<'a, B>,
    /// z, [B,line].
    pub preactivations: &'a B,
    /// Sums of dL/dθ, [`slope_parts`], written.
    pub threshold_parts: &'a B,
}

impl<B> DenseSlopes<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, rows, line) = (self.features, self.rows, dense_line(self.features));
        let mut parameters = vec![
            floats("a", self.a, rows * line),
            floats("da", self.da, rows * line),
            floats("decoder_norm", self.decoder_norm, features),
            floats("slopes", self.slopes, features),
            floats("bias_parts", self.bias_parts, slope_parts(rows, features)),
            floats("norm_parts", self.norm_parts, slope_parts(rows, features)),
            halves("high", self.halves.high, rows * line),
            halves("low", self.halves.low, rows * line),
            number("features", features),
            number("rows", rows),
            number("line", line),
            kind("kind", penalty_kind(self.penalty)),
            bytes("scalars_at", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let grid = (features.div_ceil(FEATURES), rows.div_ceil(SLOPE_ROWS));
        let mut kernel = ("dense", "dense_slopes");
        if let Some(jump) = &self.jump {
            parameters.extend(jump.pseudo.parameters(rows, features));
            parameters.push(floats("preactivations", jump.preactivations, rows * line));
            parameters.push(floats("threshold_parts", jump.threshold_parts, slope_parts(rows, features)));
            kernel = ("jump_dense", "dense_slopes_jump");
        }
        launch(device, kernel, grid, FEATURES, &parameters)
    }
}

/// How the halves of a factor lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalvesOrder {
    /// The rounded numbers alone: rows of `stride`.
    High,
    /// Rows of 3·stride: what rounding left, then the rounded numbers twice.
    LowHighHigh,
    /// Rows of 3·stride: what rounding left between the rounded numbers.
    HighLowHigh,
}

impl HalvesOrder {
    /// Numbers in a row of halves for each of the matrix.
    fn copies(self) -> usize {
        if self == HalvesOrder::High { 1 } else { 3 }
    }
}

/// `split`: the bfloat16 halves of a matrix.
#[derive(Debug)]
pub struct Split<'a, B> {
    /// [lines,stride].
    pub from: Slice<'a, B>,
    /// bf16 [lines,stride] or [lines,3·stride], written.
    pub out: &'a B,
    /// Rows of the matrix.
    pub lines: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// How they lie.
    pub order: HalvesOrder,
    /// `Report`.
    pub report: &'a B,
}

impl<B> Split<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (lines, stride) = (self.lines, self.stride);
        let parameters = [
            floats("in", self.from, lines * stride),
            halves("out", self.out, lines * stride * self.order.copies()),
            number("stride", stride),
            number("order", self.order as usize),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("dense", "split"), (lines, 1), walk_threads(stride), &parameters)
    }
}
