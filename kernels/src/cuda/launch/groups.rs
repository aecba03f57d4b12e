//! `groups.cu`: nested prefixes of the features, which reconstruct by themselves as well.

use super::decode::Decode;
use super::parameter::{bytes, doubles, floats, number, real, u32s};
use super::{REPORT_BYTES, Slice, launch, stride_of, walk_threads};
use crate::cuda::device::Device;
use crate::error::DeviceError;

/// Groups of features, each of which ends where a prefix does, and the batch for each of them behind itself.
#[derive(Debug)]
pub struct Groups<'a, B> {
    /// Where they end, u32 [groups]; the last at F.
    pub ends: &'a B,
    /// How many there are.
    pub groups: usize,
    /// From a row to the same row of the next group.
    pub distance: usize,
}

impl<B> Clone for Groups<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Groups<'_, B> {}

/// `decode_groups` and `decode_groups_bf16`: every prefix' x̂, their losses, and g of each group.
#[derive(Debug)]
pub struct DecodeGroups<'a, B> {
    /// As without prefixes; g is [(groups − 1)·distance + B,stride].
    pub decode: Decode<'a, B>,
    /// The groups.
    pub groups: Groups<'a, B>,
    /// The weight of each reconstruction's term.
    pub weight: f32,
    /// float64 [B], written.
    pub terms: &'a B,
    /// A counter that is 0 between kernels.
    pub arrived: Slice<'a, B>,
}

impl<B> DecodeGroups<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let Groups { ends, groups, distance } = self.groups;
        let rows = self.decode.rows;
        let mut parameters = self.decode.parameters((groups - 1) * distance + rows);
        parameters.extend([
            u32s("ends", ends, groups),
            number("groups", groups),
            number("distance", distance),
            real("weight", self.weight),
            doubles("terms", self.terms, rows),
            u32s("arrived", self.arrived, 1),
        ]);
        let kernel = self.decode.one_of(["decode_groups", "decode_groups_bf16"]);
        launch(device, ("groups", kernel), (rows, 1), walk_threads(stride_of(self.decode.width)), &parameters)
    }
}

/// `repeat_rows`: a batch behind itself.
#[derive(Debug)]
pub struct RepeatRows<'a, B> {
    /// [B,stride].
    pub x: &'a B,
    /// [(times − 1)·distance + B,stride], written.
    pub copies: &'a B,
    /// How often.
    pub times: usize,
    /// From a row to the same row of the next copy.
    pub distance: usize,
    /// B.
    pub rows: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> RepeatRows<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, stride) = (self.rows, self.stride);
        let all_rows = (self.times - 1) * self.distance + rows;
        let parameters = [
            floats("x", self.x, rows * stride),
            floats("copies", self.copies, all_rows * stride),
            number("stride", stride),
            number("distance", self.distance),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("groups", "repeat_rows"), (rows, self.times), walk_threads(stride), &parameters)
    }
}

/// `shift_rows`: pairs of rows become those of their groups' rows.
#[derive(Debug)]
pub struct ShiftRows<'a, B> {
    /// u32 [F+1].
    pub feature_starts: &'a B,
    /// u32 [capacity].
    pub pair_rows: &'a B,
    /// The groups.
    pub groups: Groups<'a, B>,
    /// F.
    pub features: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> ShiftRows<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let Groups { ends, groups, distance } = self.groups;
        let parameters = [
            u32s("feature_starts", self.feature_starts, self.features + 1),
            u32s("pair_rows", self.pair_rows, self.capacity),
            u32s("ends", ends, groups),
            number("groups", groups),
            number("distance", distance),
            number("features", self.features),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("groups", "shift_rows"), (self.features.div_ceil(8), 1), 256, &parameters)
    }
}
