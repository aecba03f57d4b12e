//! `panels.cu`: what panels of features add to x̂, and the rows that their owner finishes.

use super::decode::Decoder;
use super::parameter::{Parameter, bytes, flag, floats, halves, kind, number, u32s};
use super::{REPORT_BYTES, SCALARS_BYTES, Slice, dense_line, launch, stride_of, walk_threads};
use crate::cuda::device::Device;
use crate::cuda::layout::{ROW_PART_BYTES, ROW_RESULT_BYTES, mse_kind, penalty_kind};
use crate::error::DeviceError;
use crate::loss::{Mse, Penalty};

/// Parts that a kernel adds up at most.
pub const MOST_PARTS: usize = 1 << 6;

/// What a panel, or several of them together, add to the rows.
#[derive(Debug)]
pub struct Part<'a, B> {
    /// x̂ as far as it is theirs, [B,stride].
    pub sum: Slice<'a, B>,
    /// `RowPart` [B].
    pub activity: Slice<'a, B>,
}

impl<B> Clone for Part<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Part<'_, B> {}

/// Neighbouring parts that lie one behind the other.
#[derive(Debug)]
pub struct Parts<'a, B> {
    /// The first one.
    pub first: Part<'a, B>,
    /// How many there are, a power of two.
    pub count: usize,
    /// Rows from the beginning of one to that of the next.
    pub row_distance: usize,
}

impl<B> Clone for Parts<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Parts<'_, B> {}

impl<'a, B> Parts<'a, B> {
    /// The two pointers, `rows` of the last part being read.
    fn pointers(&self, rows: usize, stride: usize) -> [Parameter<'a, B>; 2] {
        let all = (self.count - 1) * self.row_distance + rows;
        [
            floats("parts", self.first.sum, all * stride),
            bytes("part_activity", self.first.activity, all * ROW_PART_BYTES),
        ]
    }

    fn check(&self, kernel: &'static str) -> Result<(), DeviceError> {
        match self.count.is_power_of_two() && self.count <= MOST_PARTS {
            true => Ok(()),
            false => Err(DeviceError::Failed {
                operation: format!("launching {kernel}"),
                reason: format!("{} parts are no power of two up to {MOST_PARTS}", self.count),
            }),
        }
    }
}

/// `decode_part` and `decode_part_bf16`: a panel's part from its lists.
#[derive(Debug)]
pub struct DecodePart<'a, B> {
    /// W_dec.
    pub decoder: Decoder<'a, B>,
    /// b_dec, [stride], in the first panel.
    pub decoder_bias: Option<Slice<'a, B>>,
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
    /// Written.
    pub part: Part<'a, B>,
    /// B.
    pub rows: usize,
    /// F of the panel.
    pub features: usize,
    /// d.
    pub width: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// The penalty; its numbers are the scalars'.
    pub penalty: Penalty,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> DecodePart<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, features, stride) = (self.rows, self.features, stride_of(self.width));
        let (kernel, decoder) = match self.decoder {
            Decoder::Float32(decoder) => ("decode_part", floats("decoder", decoder, features * stride)),
            Decoder::Bf16(decoder) => ("decode_part_bf16", halves("decoder", decoder, features * stride)),
        };
        let parameters = [
            decoder,
            floats("decoder_bias", self.decoder_bias, stride),
            floats("decoder_norm", self.decoder_norm, features),
            u32s("starts", self.starts, rows + 1),
            u32s("row_active", self.row_active, rows),
            u32s("pair_features", self.pair_features, self.capacity),
            floats("row_values", self.row_values, self.capacity),
            floats("part", self.part.sum, rows * stride),
            bytes("activity", self.part.activity, rows * ROW_PART_BYTES),
            number("stride", stride),
            kind("kind", penalty_kind(self.penalty)),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("panels", kernel), (rows, 1), walk_threads(stride), &parameters)
    }
}

/// `decode_part_dense`: a panel's part from its dense product and its activations.
#[derive(Debug)]
pub struct DecodePartDense<'a, B> {
    /// b_dec, [stride], in the first panel.
    pub decoder_bias: Option<Slice<'a, B>>,
    /// ‖W_dec_j‖, [F], where the penalty is weighted by it.
    pub decoder_norm: Option<&'a B>,
    /// a, [B,line].
    pub a: &'a B,
    /// The product, to which the bias is added; the activity is written.
    pub part: Part<'a, B>,
    /// B.
    pub rows: usize,
    /// F of the panel.
    pub features: usize,
    /// d.
    pub width: usize,
    /// Whether the number of active pairs is entered as that of the candidates, which nobody else has counted.
    pub counts: bool,
    /// The penalty; its numbers are the scalars'.
    pub penalty: Penalty,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> DecodePartDense<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, features, stride) = (self.rows, self.features, stride_of(self.width));
        let line = dense_line(features);
        let parameters = [
            floats("decoder_bias", self.decoder_bias, stride),
            floats("decoder_norm", self.decoder_norm, features),
            floats("a", self.a, rows * line),
            floats("part", self.part.sum, rows * stride),
            bytes("activity", self.part.activity, rows * ROW_PART_BYTES),
            number("features", features),
            number("stride", stride),
            number("line", line),
            kind("kind", penalty_kind(self.penalty)),
            flag("counts", self.counts),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("panels", "decode_part_dense"), (rows, 1), 256, &parameters)
    }
}

/// `add_parts`: the sum of a rank's parts.
#[derive(Debug)]
pub struct AddParts<'a, B> {
    /// Of the own panels.
    pub parts: Parts<'a, B>,
    /// Written.
    pub sum: Part<'a, B>,
    /// B.
    pub rows: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> AddParts<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, other numbers of parts than powers of two up to [`MOST_PARTS`], or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, stride) = (self.rows, self.stride);
        self.parts.check("add_parts")?;
        let [parts, activity] = self.parts.pointers(rows, stride);
        let parameters = [
            parts,
            activity,
            floats("sum", self.sum.sum, rows * stride),
            bytes("activity", self.sum.activity, rows * ROW_PART_BYTES),
            number("count", self.parts.count),
            number("row_distance", self.parts.row_distance),
            number("stride", stride),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("panels", "add_parts"), (rows, 1), walk_threads(stride), &parameters)
    }
}

/// `leave_status`: a panel's status for the others.
#[derive(Debug)]
pub struct LeaveStatus<'a, B> {
    /// `Report`.
    pub report: &'a B,
    /// One number of 32 bits, written.
    pub status: Slice<'a, B>,
}

impl<B> LeaveStatus<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let parameters = [bytes("report", self.report, REPORT_BYTES), u32s("status", self.status, 1)];
        launch(device, ("panels", "leave_status"), (1, 1), 32, &parameters)
    }
}

/// `share_status`: a panel refuses what another one has refused.
#[derive(Debug)]
pub struct ShareStatus<'a, B> {
    /// Those of all panels, u32 [panels].
    pub statuses: &'a B,
    /// How many panels there are.
    pub panels: usize,
    /// `Report`, in which the status may be changed.
    pub report: &'a B,
}

impl<B> ShareStatus<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let parameters = [
            u32s("statuses", self.statuses, self.panels),
            number("count", self.panels),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("panels", "share_status"), (1, 1), 256, &parameters)
    }
}

/// `finish_rows`: g and the results of the rows that a rank owns.
#[derive(Debug)]
pub struct FinishRows<'a, B> {
    /// The batch, [B,stride].
    pub x: &'a B,
    /// ‖x_i‖², [B].
    pub squared: &'a B,
    /// ‖x_i − x̄‖, [B].
    pub centered: &'a B,
    /// Of the own rows alone, from all ranks.
    pub parts: Parts<'a, B>,
    /// g, [B,stride]; the own rows are written.
    pub g: &'a B,
    /// `RowResult` [B]; those of the own rows are written.
    pub results: &'a B,
    /// The own rows.
    pub own: std::ops::Range<usize>,
    /// B.
    pub rows: usize,
    /// d.
    pub width: usize,
    /// The MSE that g is of.
    pub mse: Mse,
    /// `Report`.
    pub report: &'a B,
}

impl<B> FinishRows<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, other numbers of parts than powers of two up to [`MOST_PARTS`], or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, stride, own) = (self.rows, stride_of(self.width), self.own.len());
        self.parts.check("finish_rows")?;
        let [parts, activity] = self.parts.pointers(own, stride);
        let parameters = [
            floats("x", self.x, rows * stride),
            floats("squared", self.squared, rows),
            floats("centered", self.centered, rows),
            parts,
            activity,
            floats("g", self.g, rows * stride),
            bytes("results", self.results, rows * ROW_RESULT_BYTES),
            number("count", self.parts.count),
            number("row_distance", self.parts.row_distance),
            number("first", self.own.start),
            number("rows", rows),
            number("width", self.width),
            number("stride", stride),
            kind("mse", mse_kind(self.mse)),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("panels", "finish_rows"), (own, 1), walk_threads(stride), &parameters)
    }
}

/// `leave_reports`, the last kernel of a step of several panels: all their reports into the step's mailbox.
#[derive(Debug)]
pub struct LeaveReports<'a, B> {
    /// `Report` [panels].
    pub reports: &'a B,
    /// Where copies go, in the host's memory.
    pub reply: Slice<'a, B>,
    /// How many there are.
    pub panels: usize,
}

impl<B> LeaveReports<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let words = self.panels * REPORT_BYTES / 4;
        let parameters =
            [u32s("reports", self.reports, words), u32s("reply", self.reply, words), number("words", words)];
        launch(device, ("panels", "leave_reports"), (1, 1), 256, &parameters)
    }
}
