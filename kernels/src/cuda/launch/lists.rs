//! `lists.cu`: from a bit mask to lists of pairs, by row and by feature.

use super::jump::NearPairs;
use super::parameter::{bytes, floats, kind, number, u32s, u64s};
use super::{REPORT_BYTES, SCALARS_BYTES, SEGMENT, Slice, launch, mask_words, row_mask_words};
use crate::cuda::device::Device;
use crate::cuda::layout::penalty_kind;
use crate::error::DeviceError;
use crate::loss::Penalty;

/// Lines of a mask that a block counts or lists, a warp each.
const LINES: usize = 32;
const THREADS: usize = 32 * LINES;

/// Blocks of the kernels that count and list the bits of `lines` lines of a mask.
pub(crate) fn list_blocks(lines: usize) -> usize {
    lines.div_ceil(LINES)
}

/// Segments that at most `pairs` active pairs of `features` features and `rows` rows are cut into.
pub(crate) fn most_segments(pairs: usize, features: usize, rows: usize) -> usize {
    // A feature is cut only if it has more than SEGMENT pairs: its last segment may be short.
    (2 * pairs).div_ceil(SEGMENT).min(features * rows.div_ceil(SEGMENT))
}

/// `transpose_mask`: the mask with a line for each row.
#[derive(Debug)]
pub struct TransposeMask<'a, B> {
    /// u32 [F,words].
    pub mask: &'a B,
    /// u32 [B,row_words], written.
    pub row_mask: &'a B,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> TransposeMask<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, rows) = (self.features, self.rows);
        let (words, row_words) = (mask_words(rows), row_mask_words(features));
        let parameters = [
            u32s("mask", self.mask, features * words),
            u32s("row_mask", self.row_mask, rows * row_words),
            number("features", features),
            number("rows", rows),
            number("words", words),
            number("row_words", row_words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let grid = (words.div_ceil(8), features.div_ceil(256));
        launch(device, ("lists", "transpose_mask"), grid, 256, &parameters)
    }
}

/// `count_rows`: the number of each row's candidates. Refuses the step if there are more than the lists hold.
#[derive(Debug)]
pub struct CountRows<'a, B> {
    /// u32 [B,row_words].
    pub row_mask: &'a B,
    /// u32 [B], written.
    pub counts: &'a B,
    /// Of blocks of 32 rows the candidates before them, u64 [⌈B/32⌉], written.
    pub totals: &'a B,
    /// A counter of blocks, u32: 0, before and after.
    pub arrived: Slice<'a, B>,
    /// Where rows begin in the list, u32 [B+1], of which the last is written.
    pub starts: &'a B,
    /// B.
    pub rows: usize,
    /// F.
    pub features: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// `Report`: the number of candidates is entered, and the refusal.
    pub report: &'a B,
}

impl<B> CountRows<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, row_words) = (self.rows, row_mask_words(self.features));
        let parameters = [
            u32s("row_mask", self.row_mask, rows * row_words),
            u32s("counts", self.counts, rows),
            u64s("totals", self.totals, list_blocks(rows)),
            u32s("arrived", self.arrived, 1),
            u32s("starts", self.starts, rows + 1),
            number("rows", rows),
            number("row_words", row_words),
            number("capacity", self.capacity),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("lists", "count_rows"), (list_blocks(rows), 1), THREADS, &parameters)
    }
}

/// `list_rows`: each row's candidates in ascending order. After [`CountRows`].
#[derive(Debug)]
pub struct ListRows<'a, B> {
    /// u32 [B,row_words].
    pub row_mask: &'a B,
    /// u32 [B].
    pub counts: &'a B,
    /// u64 [⌈B/32⌉].
    pub totals: &'a B,
    /// Where rows begin in the list, u32 [B+1], written.
    pub starts: &'a B,
    /// The candidates' features, u32 [capacity], written.
    pub pair_features: &'a B,
    /// B.
    pub rows: usize,
    /// F.
    pub features: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> ListRows<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, row_words) = (self.rows, row_mask_words(self.features));
        let parameters = [
            u32s("row_mask", self.row_mask, rows * row_words),
            u32s("counts", self.counts, rows),
            u64s("totals", self.totals, list_blocks(rows)),
            u32s("starts", self.starts, rows + 1),
            u32s("pair_features", self.pair_features, self.capacity),
            number("rows", rows),
            number("row_words", row_words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("lists", "list_rows"), (list_blocks(rows), 1), THREADS, &parameters)
    }
}

/// Where features begin in the lists of pairs and of segments.
#[derive(Debug)]
pub struct FeatureStarts<'a, B> {
    /// u32 [F+1].
    pub pairs: &'a B,
    /// u32 [F+1].
    pub segments: &'a B,
}

/// `count_features`: in how many rows each feature is active.
#[derive(Debug)]
pub struct CountFeatures<'a, B> {
    /// u32 [F,words].
    pub mask: &'a B,
    /// u32 [F], written.
    pub counts: &'a B,
    /// Of blocks of 32 features the pairs before them, and in the upper half the segments, u64 [⌈F/32⌉], written.
    pub totals: &'a B,
    /// A counter of blocks, u32: 0, before and after.
    pub arrived: Slice<'a, B>,
    /// Of which the last are written, where lists are going to be made.
    pub starts: Option<FeatureStarts<'a, B>>,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> CountFeatures<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, words) = (self.features, mask_words(self.rows));
        let starts = self.starts.as_ref();
        let parameters = [
            u32s("mask", self.mask, features * words),
            u32s("counts", self.counts, features),
            u64s("totals", self.totals, list_blocks(features)),
            u32s("arrived", self.arrived, 1),
            u32s("starts", starts.map(|starts| starts.pairs), features + 1),
            u32s("segment_starts", starts.map(|starts| starts.segments), features + 1),
            number("features", features),
            number("words", words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("lists", "count_features"), (list_blocks(features), 1), THREADS, &parameters)
    }
}

/// `list_features`: each feature's active rows in ascending order, and its segments. After [`CountFeatures`].
#[derive(Debug)]
pub struct ListFeatures<'a, B> {
    /// u32 [F,words].
    pub mask: &'a B,
    /// u32 [F].
    pub counts: &'a B,
    /// u64 [⌈F/32⌉].
    pub totals: &'a B,
    /// Written.
    pub starts: FeatureStarts<'a, B>,
    /// Whose each segment is, u32 [segments], written.
    pub segment_features: &'a B,
    /// The active pairs' rows, u32 [capacity], written.
    pub pair_rows: &'a B,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> ListFeatures<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, words) = (self.features, mask_words(self.rows));
        let segments = most_segments(self.capacity, features, self.rows);
        let parameters = [
            u32s("mask", self.mask, features * words),
            u32s("counts", self.counts, features),
            u64s("totals", self.totals, list_blocks(features)),
            u32s("starts", self.starts.pairs, features + 1),
            u32s("segment_starts", self.starts.segments, features + 1),
            u32s("segment_features", self.segment_features, segments),
            u32s("pair_rows", self.pair_rows, self.capacity),
            number("features", features),
            number("words", words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("lists", "list_features"), (list_blocks(features), 1), THREADS, &parameters)
    }
}

/// The derivative by the decoder's norms, where the penalty is weighted by them.
#[derive(Debug)]
pub struct ByNorm<'a, B> {
    /// ‖W_dec_j‖, [F].
    pub decoder_norm: &'a B,
    /// The penalty's derivative by it, [F], written.
    pub by_norm: &'a B,
}

/// `gather_values`: the activations in the order of features, and the penalties' derivatives by them.
#[derive(Debug)]
pub struct GatherValues<'a, B> {
    /// u32 [F+1].
    pub feature_starts: &'a B,
    /// u32 [capacity].
    pub pair_rows: &'a B,
    /// u32 [B+1].
    pub row_starts: &'a B,
    /// Active pairs of each row, u32 [B].
    pub row_active: &'a B,
    /// The features in the rows' lists, u32 [capacity].
    pub pair_features: &'a B,
    /// The activations there, [capacity].
    pub row_values: &'a B,
    /// The frequency terms' derivatives, [F].
    pub slopes: &'a B,
    /// Where the penalty is weighted by the decoder's norms.
    pub by_norm: Option<ByNorm<'a, B>>,
    /// The near pairs: the lists by feature hold them too, and z in place of the activations.
    pub near: Option<NearPairs<'a, B>>,
    /// From which row on pairs are those of a loss over dead features, which no penalty sees.
    pub dead_row: Option<usize>,
    /// The activations in the features' lists, [capacity], written.
    pub feature_values: &'a B,
    /// The penalties' derivatives by them, [capacity], written.
    pub feature_slopes: &'a B,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// The penalty; its numbers are the scalars'.
    pub penalty: Penalty,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> GatherValues<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, rows, capacity) = (self.features, self.rows, self.capacity);
        let by_norm = self.by_norm.as_ref();
        let mut parameters = vec![
            u32s("feature_starts", self.feature_starts, features + 1),
            u32s("pair_rows", self.pair_rows, capacity),
            u32s("row_starts", self.row_starts, rows + 1),
            u32s("row_active", self.row_active, rows),
            u32s("pair_features", self.pair_features, capacity),
            floats("row_values", self.row_values, capacity),
            floats("slopes", self.slopes, features),
            floats("decoder_norm", by_norm.map(|by_norm| by_norm.decoder_norm), features),
            floats("feature_values", self.feature_values, capacity),
            floats("feature_slopes", self.feature_slopes, capacity),
            floats("by_norm", by_norm.map(|by_norm| by_norm.by_norm), features),
            number("features", features),
            kind("kind", penalty_kind(self.penalty)),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        parameters.extend(self.near.iter().flat_map(|near| near.parameters(rows, capacity)));
        parameters.extend(self.dead_row.map(|row| number("dead_row", row)));
        let kernel = match (&self.near, self.dead_row) {
            (Some(_), _) => ("jump", "gather_jump"),
            (None, Some(_)) => ("dead", "gather_dead"),
            (None, None) => ("lists", "gather_values"),
        };
        // A warp for each feature.
        launch(device, kernel, (features.div_ceil(8), 1), 256, &parameters)
    }
}
