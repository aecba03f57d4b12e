//! The arrays of a step on the device: a table from which both their allocation and the memory plan come.

use super::device::Device;
use super::halves::Matrix;
use super::launch::backward::segment_length;
use super::launch::dead::spread_parts;
use super::launch::dense::slope_parts;
use super::launch::frequency::{FREQUENCY_TARGETS, frequency_parts};
use super::launch::lists::list_blocks;
use super::launch::report::REPORT_PARTS;
use super::launch::select_batch::HISTOGRAM;
use super::launch::update::update_blocks;
use super::launch::{COLUMNS, SUMMED_ROWS, Slice, mask_words};
use super::layout::{BatchCut, Clip, Dead, ROW_RESULT_BYTES, Report, Scalars, Window};
use super::plan::DevicePlan;
use crate::error::DeviceError;
use crate::precision::Precision;

/// A row's size in the table: bytes, or perhaps bytes where the array is not always there.
trait Size {
    type Array<B>;
    fn allocate<D: Device>(self, device: &mut D, what: &str) -> Result<Self::Array<D::Buffer>, DeviceError>;
    fn bytes(self) -> usize;
}

impl Size for usize {
    type Array<B> = B;

    fn allocate<D: Device>(self, device: &mut D, what: &str) -> Result<D::Buffer, DeviceError> {
        device.allocate(self, what)
    }

    fn bytes(self) -> usize {
        self
    }
}

impl Size for Option<usize> {
    type Array<B> = Option<B>;

    fn allocate<D: Device>(self, device: &mut D, what: &str) -> Result<Option<D::Buffer>, DeviceError> {
        self.map(|bytes| device.allocate(bytes, what)).transpose()
    }

    fn bytes(self) -> usize {
        self.unwrap_or(0)
    }
}

/// What device memory is handed out in.
const GRANULE: usize = 256;

/// Rows are `name: type, bytes, what an error calls it`, the bytes in terms of the plan.
macro_rules! table {
    (
        $(#[$about:meta])*
        $table:ident($plan:ident) {
            $($(#[$row:meta])* $name:ident: $type:ty, $bytes:expr, $what:literal;)*
        }
    ) => {
        $(#[$about])*
        pub(crate) struct $table<B> {
            $($(#[$row])* pub(crate) $name: $type,)*
        }

        impl<B> $table<B> {
            /// Allocates all of them; their content is undefined.
            pub(crate) fn allocate<D: Device<Buffer = B>>(
                device: &mut D,
                $plan: &DevicePlan,
            ) -> Result<$table<B>, DeviceError> {
                Ok($table { $($name: Size::allocate($bytes, device, $what)?,)* })
            }
        }

        impl $table<()> {
            /// Bytes of device memory that they take.
            fn bytes($plan: &DevicePlan) -> usize {
                [$(Size::bytes($bytes)),*].into_iter().map(|bytes| bytes.next_multiple_of(GRANULE)).sum()
            }
        }
    };
}

table! {
    /// Arrays that every step uses. Shapes as in `kernels/cuda` and in [`super::launch`].
    Buffers(plan) {
        scalars: B, size_of::<Scalars>(), "the step's constants";
        report: B, size_of::<Report>(), "the step's report";
        report_parts: B, 8 * REPORT_PARTS, "the step's report";
        /// Blocks that have finished, of each kernel whose last block has more to do: see [`Arrivals`].
        arrivals: B, 4 * arrivals(plan), "the step's report";
        /// Coefficients and targets of the frequency terms.
        targets: B, FREQUENCY_TARGETS * 8, "the frequency targets";

        /// The batch with its rows padded, [B,stride]; only where d is no multiple of 64.
        x: Option<B>, (plan.width != plan.stride).then_some(4 * plan.rows * plan.stride), "the padded batch";
        /// X − b_dec, [B,stride]; only with the pre-bias.
        input: Option<B>, plan.pre_bias.then_some(4 * plan.rows * plan.stride), "the encoder's input";
        x_bf16: B, 2 * plan.rows * plan.stride, "the batch in bfloat16";
        column_parts: B, 8 * plan.rows.div_ceil(SUMMED_ROWS) * plan.stride, "column sums";
        column_sum: B, 8 * plan.stride, "column sums";
        mean: B, 4 * plan.stride, "the batch's mean";
        squared: B, 4 * plan.rows, "row norms";
        centered: B, 4 * plan.rows, "row norms";
        length: B, 4 * plan.rows, "row norms";
        row_norm: B, 4 * plan.rows, "row norms";
        row_residual: B, 4 * plan.rows, "row norms";

        mask: B, 4 * plan.features * plan.words, "the mask of active pairs";
        row_mask: B, 4 * plan.rows * plan.row_words, "the mask of active pairs";
        /// Of blocks of lines of a mask: their bits, then the bits before them.
        block_totals: B, 8 * list_blocks(plan.rows.max(plan.features)), "the lists' blocks";
        row_counts: B, 4 * plan.rows, "the rows' lists";
        row_starts: B, 4 * (plan.listed_rows() + 1), "the rows' lists";
        row_active: B, 4 * plan.listed_rows(), "the rows' lists";
        pair_features: B, 4 * plan.listed_pairs(), "the active pairs";
        row_values: B, 4 * plan.listed_pairs(), "the active pairs";
        counts: B, 4 * plan.features, "the features' lists";
        feature_starts: B, 4 * (plan.features + 1), "the features' lists";
        segment_starts: B, 4 * (plan.features + 1), "the features' lists";
        segment_features: B, 4 * plan.segments, "the features' lists";
        pair_rows: B, 4 * plan.listed_pairs(), "the active pairs";
        feature_values: B, 4 * plan.listed_pairs(), "the active pairs";
        feature_slopes: B, 4 * plan.listed_pairs(), "the active pairs";
        by_norm: B, 4 * plan.features, "the norms' gradient";
        segment_sums: B, 4 * plan.segments * segment_length(plan.stride), "the segments of frequent features";

        /// `Clip`, and gradients that wait for their norm; only where it is limited.
        clip: Option<B>, plan.clips.then_some(size_of::<Clip>()), "the gradient's norm";
        squares: Option<B>, plan.clips.then_some(8 * update_blocks(plan.features)), "the gradient's norm";
        encoder_gradient: Option<B>, plan.clips.then_some(4 * plan.features * plan.stride), "gradients";
        decoder_gradient: Option<B>, plan.clips.then_some(4 * plan.features * plan.stride), "gradients";
        bias_gradient: Option<B>, plan.clips.then_some(4 * plan.features), "gradients";
        norm_gradient: Option<B>, plan.clips.then_some(4 * plan.features), "gradients";
        threshold_gradient: Option<B>, (plan.clips && plan.thresholds).then_some(4 * plan.features), "gradients";

        /// The largest ‖w_j‖ and |b_j|; only where the largest z are selected.
        largest_norms: Option<B>, plan.selects.then_some(2 * 4), "the selection";
        /// `BatchCut`, counts of digits and of ties; only where those of a batch are selected.
        batch_cut: Option<B>, plan.of_batch.then_some(size_of::<BatchCut>()), "the selection";
        histogram: Option<B>, plan.of_batch.then_some(8 * HISTOGRAM), "the selection";
        tie_starts: Option<B>, plan.of_batch.then_some(4 * (plan.features + 1)), "the selection";

        /// Those of several panels lie in [`Rows`](super::meeting::Rows).
        g: B, of_whole(plan, 4 * plan.backward_rows() * plan.stride), "the reconstruction's gradient";
        results: B, of_whole(plan, ROW_RESULT_BYTES * plan.rows), "the rows' results";

        /// The features' pairs in the lists, where those are not the active ones alone.
        listed_counts: Option<B>, (plan.thresholds || plan.dead.is_some()).then_some(4 * plan.features),
            "the features' lists";
        /// `Dead`, and what an auxiliary loss over dead features needs; only where there is one.
        dead: Option<B>, plan.dead.map(|_| size_of::<Dead>()), "the dead features";
        dead_features: Option<B>, plan.dead.map(|_| 4 * plan.features), "the dead features";
        /// The mask [F,words] of a batch of `listed_rows`.
        dead_mask: Option<B>, plan.dead.map(|_| 4 * plan.features * mask_words(plan.listed_rows())), "the dead features";
        residual_mean: Option<B>, plan.dead.map(|_| 4 * plan.stride), "the dead features";
        spread_parts: Option<B>, plan.dead.map(|_| 8 * spread_parts(plan.rows)), "the dead features";
        dead_losses: Option<B>, plan.dead.map(|_| 8 * plan.rows), "the dead features";

        /// The encoder's input, once for each reconstruction and loss; only where there are several.
        x_copies: Option<B>, (plan.copies() > 1).then_some(4 * plan.backward_rows() * plan.stride), "the prefixes";
        /// Where groups of features end, u32, and the rows' terms; only with prefixes.
        group_ends: Option<B>, (plan.groups > 1).then_some(4 * plan.groups), "the prefixes";
        group_terms: Option<B>, (plan.groups > 1).then_some(8 * plan.rows), "the prefixes";
        /// The encoder times the decoder's norms, its bias and its norms; only where features are ranked so.
        ranked_encoder: Option<B>, plan.ranks.then_some(4 * plan.features * plan.stride), "the ranking";
        ranked_bias: Option<B>, plan.ranks.then_some(4 * plan.features), "the ranking";
        ranked_norm: Option<B>, plan.ranks.then_some(4 * plan.features), "the ranking";

        window: B, size_of::<Window>(), "the frequency window";
        levels: B, 8 * plan.window, "the frequency window";
        summed: B, 4 * plan.window, "the frequency window";
        changes: B, 4 * plan.window, "the frequency window";
        ring: B, 4 * plan.window * plan.features, "the frequency window";
        window_sums: B, 4 * plan.features, "the frequency window";
        frequencies: B, 4 * plan.features, "the frequencies";
        slopes: B, 4 * plan.features, "the frequencies' slopes";
        steps_since_fired: B, 8 * plan.features, "the steps since features fired";
        term_parts: B, 8 * frequency_parts(plan.features), "the frequency terms";

        /// Weights, first and second moments.
        parameters: B, 3 * 4 * plan.parameters(), "weights and moments";
        /// θ, first and second moments, [3,F]; only where thresholds are trained, as all that follows up to the copies.
        thresholds: Option<B>, plan.thresholds.then_some(3 * 4 * plan.features), "the thresholds";
        /// Pairs near their thresholds.
        near_features: Option<B>, plan.thresholds.then_some(4 * plan.pairs), "the near pairs";
        near_values: Option<B>, plan.thresholds.then_some(4 * plan.pairs), "the near pairs";
        row_near: Option<B>, plan.thresholds.then_some(4 * plan.rows), "the near pairs";
        encoder_bf16: Option<B>, copy(plan, plan.precision != Precision::Fp32), "the encoder in bfloat16";
        decoder_bf16: Option<B>, copy(plan, plan.precision == Precision::Bf16), "the decoder in bfloat16";
        feature_base: B, 4 * plan.features, "the screening bounds";
        feature_norm: B, 4 * plan.features, "the screening bounds";
        feature_residual: B, 4 * plan.features, "the screening bounds";
        decoder_norm: B, 4 * plan.features, "the decoder's norms";
        /// Σ_j db_j W_enc_j over blocks of features; only with the pre-bias.
        pre_bias: Option<B>, plan.pre_bias.then_some(4 * update_blocks(plan.features) * plan.stride),
            "the pre-bias' gradient";
        /// Its column sums.
        pre_bias_parts: Option<B>,
            plan.pre_bias.then_some(8 * update_blocks(plan.features).div_ceil(SUMMED_ROWS) * plan.stride),
            "the pre-bias' gradient";
    }
}

table! {
    /// Arrays of the dense path, which are made when the first dense step comes.
    DenseBuffers(plan) {
        /// a, or z that are selected from, [B,line].
        activations: B, 4 * plan.rows * plan.line, "dense activations";
        /// da, [B,line].
        by_value: B, of_step(plan, 4 * plan.rows * plan.line), "the gradients of dense activations";
        encoder_gradient: B, of_step(plan, 4 * plan.features * plan.stride), "the encoder's gradient";
        decoder_gradient: B, of_step(plan, 4 * plan.features * plan.stride), "the decoder's gradient";
        bias_parts: B, of_step(plan, 4 * slope_parts(plan.rows, plan.features)), "the encoder bias' gradient";
        norm_parts: B, of_step(plan, 4 * slope_parts(plan.rows, plan.features)), "the norms' gradient";
        /// z, [B,line], and sums of dL/dθ; only where thresholds are trained.
        preactivations: Option<B>, plan.thresholds.then_some(4 * plan.rows * plan.line), "dense preactivations";
        threshold_parts: Option<B>, plan.thresholds.then_some(4 * slope_parts(plan.rows, plan.features)),
            "the thresholds' gradient";
        /// The factors' halves unless products are float32.
        x_halves: Option<B>, halves(plan, Matrix::X), "the dense products' bfloat16 factors";
        encoder_halves: Option<B>, halves(plan, Matrix::Encoder), "the dense products' bfloat16 factors";
        decoder_halves: Option<B>, halves(plan, Matrix::Decoder), "the dense products' bfloat16 factors";
        activation_halves: Option<B>, halves(plan, Matrix::Activations), "the dense products' bfloat16 factors";
        gradient_halves: Option<B>, halves(plan, Matrix::Gradient), "the dense products' bfloat16 factors";
        by_value_halves: Option<B>, halves(plan, Matrix::ByValue), "the dense products' bfloat16 factors";
    }
}

/// Bytes of a bfloat16 copy of a weight matrix, if there is one.
fn copy(plan: &DevicePlan, wanted: bool) -> Option<usize> {
    wanted.then_some(2 * plan.features * plan.stride)
}

/// The bytes of what only a whole dense step uses: nothing where the dense product serves a selection.
fn of_step(plan: &DevicePlan, bytes: usize) -> usize {
    if plan.selects { 0 } else { bytes }
}

/// The bytes of what panels have together.
fn of_whole(plan: &DevicePlan, bytes: usize) -> usize {
    if plan.is_panel { 0 } else { bytes }
}

/// Bytes of a factor's halves, if there are any.
fn halves(plan: &DevicePlan, matrix: Matrix) -> Option<usize> {
    let of_encode = matches!(matrix, Matrix::X | Matrix::Encoder);
    let of_forward = of_encode || matches!(matrix, Matrix::Activations | Matrix::Decoder);
    let used = !plan.selects || of_encode || (plan.of_batch && of_forward);
    matrix.halves(plan).filter(|_| used).map(|halves| halves.bytes)
}

/// The kernels whose last block goes on alone (`last.cuh`): the places of their counters, which are 0 between kernels.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrivals {
    Report,
    Frequencies,
    Lists,
    DecoderBias,
    Selection,
    Dead,
    Groups,
    /// The first of one for each 64 columns.
    Columns,
}

/// Counters in [`Buffers::arrivals`].
pub(crate) fn arrivals(plan: &DevicePlan) -> usize {
    Arrivals::Columns as usize + plan.stride / COLUMNS
}

impl<B> Buffers<B> {
    /// Where a kernel counts its blocks.
    pub(crate) fn arrivals(&self, kernel: Arrivals) -> Slice<'_, B> {
        Slice::from_number(&self.arrivals, kernel as usize)
    }
}

impl<B> DenseBuffers<B> {
    /// The halves of a factor of dense products.
    pub(crate) fn halves(&self, matrix: Matrix) -> Option<&B> {
        let halves = match matrix {
            Matrix::X => &self.x_halves,
            Matrix::Encoder => &self.encoder_halves,
            Matrix::Decoder => &self.decoder_halves,
            Matrix::Activations => &self.activation_halves,
            Matrix::Gradient => &self.gradient_halves,
            Matrix::ByValue => &self.by_value_halves,
        };
        halves.as_ref()
    }
}

impl DevicePlan {
    /// Bytes of device memory that training always takes, the batch itself apart.
    pub fn bytes(&self) -> usize {
        Buffers::bytes(self)
    }

    /// Bytes of device memory that dense steps, early in training, take in addition.
    pub fn dense_bytes(&self) -> usize {
        DenseBuffers::bytes(self)
    }
}
