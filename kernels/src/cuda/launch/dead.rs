//! `dead.cu`: an auxiliary loss over features that have stopped firing.

use super::parameter::{Parameter, bytes, doubles, floats, kind, long_number, number, real, u32s, u64s};
use super::{
    COLUMNS, DEAD_BYTES, REPORT_BYTES, SUMMED_ROWS, Slice, dense_line, launch, mask_words, stride_of,
    walk_threads,
};
use crate::cuda::device::Device;
use crate::cuda::layout::mse_kind;
use crate::error::DeviceError;
use crate::loss::Mse;

/// Rows of a block of [`ResidualSpread`].
const SPREAD_ROWS: usize = 8;

/// Numbers in [`ResidualSpread::partial`].
pub fn spread_parts(rows: usize) -> usize {
    rows.div_ceil(SPREAD_ROWS)
}

/// Which auxiliary loss it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadKind {
    /// That of [`DeadLossKind::AuxK`](crate::dead::DeadLossKind::AuxK).
    AuxK,
    /// That of [`DeadLossKind::AuxKSum`](crate::dead::DeadLossKind::AuxKSum).
    AuxKSum,
}

impl DeadKind {
    fn parameter<'a, B>(self) -> Parameter<'a, B> {
        kind("dead_kind", self as u32)
    }
}

/// `list_dead`: the dead features.
#[derive(Debug)]
pub struct ListDead<'a, B> {
    /// u64 [F], as before this step.
    pub steps_since_fired: &'a B,
    /// In how many rows of this batch each feature is active, u32 [F].
    pub counts: &'a B,
    /// u32 [F], written.
    pub dead_features: &'a B,
    /// `Dead`.
    pub dead: &'a B,
    /// A feature that was silent for more steps is dead.
    pub after: u64,
    /// The loss.
    pub dead_kind: DeadKind,
    /// k_aux.
    pub k: usize,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> ListDead<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let features = self.features;
        let parameters = [
            u64s("steps_since_fired", self.steps_since_fired, features),
            u32s("counts", self.counts, features),
            u32s("dead_features", self.dead_features, features),
            bytes("dead", self.dead, DEAD_BYTES),
            long_number("after", usize::try_from(self.after).unwrap_or(usize::MAX)),
            self.dead_kind.parameter(),
            number("k", self.k),
            number("features", features),
            number("rows", self.rows),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("dead", "list_dead"), (1, 1), 1024, &parameters)
    }
}

/// g of a batch, from which its errors can be read.
#[derive(Debug)]
pub struct Errors<'a, B> {
    /// Of all features, [B,stride].
    pub g: Slice<'a, B>,
    /// The weight that it has.
    pub weight: f32,
    /// ‖x_i‖², [B].
    pub squared: &'a B,
    /// ‖x_i − x̄‖, [B].
    pub centered: &'a B,
    /// The MSE that g is of.
    pub mse: Mse,
    /// B.
    pub rows: usize,
    /// d.
    pub width: usize,
}

impl<B> Clone for Errors<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Errors<'_, B> {}

/// `residual_columns`, then `residual_spread`: the scale of a loss that is relative to the spread of x − x̂.
#[derive(Debug)]
pub struct ResidualSpread<'a, B> {
    /// The errors.
    pub errors: Errors<'a, B>,
    /// Sums over 64 rows, float64 [⌈B/64⌉,stride], written.
    pub column_parts: &'a B,
    /// The mean of x − x̂, [stride], written.
    pub mean: &'a B,
    /// A counter for each 64 columns, 0 between kernels.
    pub columns_arrived: Slice<'a, B>,
    /// Sums of squares, float64 [⌈B/8⌉], written.
    pub partial: &'a B,
    /// A counter that is 0 between kernels.
    pub arrived: Slice<'a, B>,
    /// `Dead`.
    pub dead: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> ResidualSpread<'_, B> {
    /// Queues the kernels.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let Errors { g, weight, squared, centered, mse, rows, width } = self.errors;
        let stride = stride_of(width);
        let parts = rows.div_ceil(SUMMED_ROWS);
        let of_g = || {
            [
                floats("g", g, rows * stride),
                floats("squared", squared, rows),
                floats("centered", centered, rows),
            ]
        };
        let sizes = || {
            [
                number("rows", rows),
                number("width", width),
                number("stride", stride),
                kind("mse", mse_kind(mse)),
                real("weight", weight),
                bytes("report", self.report, REPORT_BYTES),
            ]
        };
        let of_columns = [
            doubles("partial", self.column_parts, parts * stride),
            floats("mean", self.mean, stride),
            u32s("arrived", self.columns_arrived, stride / COLUMNS),
        ];
        let parameters: Vec<_> = of_g().into_iter().chain(of_columns).chain(sizes()).collect();
        launch(device, ("dead", "residual_columns"), (stride / COLUMNS, parts), COLUMNS, &parameters)?;
        let of_rows = [
            floats("mean", self.mean, stride),
            doubles("partial", self.partial, spread_parts(rows)),
            u32s("arrived", self.arrived, 1),
            bytes("dead", self.dead, DEAD_BYTES),
        ];
        let parameters: Vec<_> = of_g().into_iter().chain(of_rows).chain(sizes()).collect();
        launch(device, ("dead", "residual_spread"), (spread_parts(rows), 1), 32 * SPREAD_ROWS, &parameters)
    }
}

/// `encode_dead`: z of the dead features.
#[derive(Debug)]
pub struct EncodeDead<'a, B> {
    /// W_enc transposed, [F,stride].
    pub encoder: Slice<'a, B>,
    /// b_enc, [F].
    pub encoder_bias: Slice<'a, B>,
    /// The encoder's input, [B,stride].
    pub x: &'a B,
    /// u32 [F].
    pub dead_features: &'a B,
    /// `Dead`.
    pub dead: &'a B,
    /// [B,line], written as far as there are dead features.
    pub z: &'a B,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> EncodeDead<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, features, stride) = (self.rows, self.features, self.stride);
        let line = dense_line(features);
        let parameters = [
            floats("encoder", self.encoder, features * stride),
            floats("encoder_bias", self.encoder_bias, features),
            floats("x", self.x, rows * stride),
            u32s("dead_features", self.dead_features, features),
            bytes("dead", self.dead, DEAD_BYTES),
            floats("z", self.z, rows * line),
            number("rows", rows),
            number("stride", stride),
            number("line", line),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("dead", "encode_dead"), (rows.div_ceil(64), features.div_ceil(64)), 128, &parameters)
    }
}

/// Where the pairs of the loss lie: behind those of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadPairs {
    /// The first place in the lists.
    pub first: usize,
    /// k_aux as it was asked for.
    pub asked: usize,
    /// The places of a row: k_aux, or F if that is less.
    pub k: usize,
    /// The row that follows those of the step.
    pub dead_row: usize,
}

/// `widen_mask`, then `select_dead`: the pairs of the loss, in the lists by row and in a mask beside the step's.
#[derive(Debug)]
pub struct SelectDead<'a, B> {
    /// [B,line].
    pub z: &'a B,
    /// ‖W_dec_j‖, [F], where features are ranked by it too.
    pub rank_norm: Option<&'a B>,
    /// u32 [F].
    pub dead_features: &'a B,
    /// `Dead`.
    pub dead: &'a B,
    /// The mask of the step's pairs, u32 [F,words].
    pub mask: &'a B,
    /// The mask of a batch of dead_row + B rows, written.
    pub dead_mask: &'a B,
    /// Where rows begin in the list, u32 [dead_row + B].
    pub starts: &'a B,
    /// Pairs of each row, u32 [dead_row + B].
    pub row_active: &'a B,
    /// u32 [first + B·k].
    pub pair_features: &'a B,
    /// [first + B·k].
    pub row_values: &'a B,
    /// The loss.
    pub dead_kind: DeadKind,
    /// Where they lie.
    pub place: DeadPairs,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> SelectDead<'_, B> {
    /// Queues the kernels.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, features) = (self.rows, self.features);
        let DeadPairs { first, k, dead_row, .. } = self.place;
        let (all_rows, pairs, line) = (dead_row + rows, first + rows * k, dense_line(features));
        let (own_words, words) = (mask_words(rows), mask_words(all_rows));
        let parameters = [
            u32s("mask", self.mask, features * own_words),
            u32s("dead_mask", self.dead_mask, features * words),
            number("features", features),
            number("mask_words", own_words),
            number("words", words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let blocks = (features * words).div_ceil(256);
        launch(device, ("dead", "widen_mask"), (blocks, 1), 256, &parameters)?;
        let parameters = [
            floats("z", self.z, rows * line),
            floats("rank_norm", self.rank_norm, features),
            u32s("dead_features", self.dead_features, features),
            bytes("dead", self.dead, DEAD_BYTES),
            u32s("starts", self.starts, all_rows),
            u32s("row_active", self.row_active, all_rows),
            u32s("pair_features", self.pair_features, pairs),
            floats("row_values", self.row_values, pairs),
            u32s("dead_mask", self.dead_mask, features * words),
            self.dead_kind.parameter(),
            number("k", k),
            number("first", first),
            number("dead_row", dead_row),
            number("line", line),
            number("words", words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("dead", "select_dead"), (rows, 1), 256, &parameters)
    }
}

/// `decode_dead`: the loss and its gradient, and rows for the backward pass.
#[derive(Debug)]
pub struct DecodeDead<'a, B> {
    /// The errors.
    pub errors: Errors<'a, B>,
    /// dL/de, [B,stride], written.
    pub h: Slice<'a, B>,
    /// W_dec, [F,stride].
    pub decoder: Slice<'a, B>,
    /// Where rows begin in the list, u32 [dead_row + B].
    pub starts: &'a B,
    /// Pairs of each row, u32 [dead_row + B].
    pub row_active: &'a B,
    /// u32 [first + B·k].
    pub pair_features: &'a B,
    /// [first + B·k].
    pub row_values: &'a B,
    /// `Dead`.
    pub dead: &'a B,
    /// float64 [B], written.
    pub losses: &'a B,
    /// A counter that is 0 between kernels.
    pub arrived: Slice<'a, B>,
    /// Where the pairs lie.
    pub place: DeadPairs,
    /// F.
    pub features: usize,
    /// `Report`, whose `dead` is written.
    pub report: &'a B,
}

impl<B> DecodeDead<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let Errors { g, weight, squared, centered, mse, rows, width } = self.errors;
        let DeadPairs { first, k, dead_row, .. } = self.place;
        let (all_rows, pairs, stride) = (dead_row + rows, first + rows * k, stride_of(width));
        let parameters = [
            floats("g", g, rows * stride),
            floats("squared", squared, rows),
            floats("centered", centered, rows),
            floats("decoder", self.decoder, self.features * stride),
            u32s("starts", self.starts, all_rows),
            u32s("row_active", self.row_active, all_rows),
            u32s("pair_features", self.pair_features, pairs),
            floats("row_values", self.row_values, pairs),
            bytes("dead", self.dead, DEAD_BYTES),
            floats("h", self.h, rows * stride),
            doubles("losses", self.losses, rows),
            u32s("arrived", self.arrived, 1),
            number("dead_row", dead_row),
            number("rows", rows),
            number("width", width),
            number("stride", stride),
            kind("mse", mse_kind(mse)),
            real("weight", weight),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("dead", "decode_dead"), (rows, 1), walk_threads(stride), &parameters)
    }
}
