//! The arrays of a step on the device.

use super::device::{Argument, Device, DeviceError, Kernel, Launch};
use super::layout::{ROW_RESULT_BYTES, Report, Scalars, Window};
use super::plan::{FEATURES_OF_BLOCK, Plan, Precision, SLOPE_ROWS, SUMMED_ROWS};

/// Arrays that every step uses. Shapes as in `kernels/cuda`.
pub(crate) struct Buffers<B> {
    pub(crate) scalars: B,
    pub(crate) report: B,
    /// Coefficients and targets of the frequency terms.
    pub(crate) targets: B,

    /// The batch with its rows padded, [B,stride]; only where d is no multiple of 64.
    pub(crate) x: Option<B>,
    /// X − b_dec, [B,stride]; only with the pre-bias.
    pub(crate) input: Option<B>,
    pub(crate) x_bf16: B,
    pub(crate) column_parts: B,
    pub(crate) column_sum: B,
    pub(crate) mean: B,
    pub(crate) squared: B,
    pub(crate) centered: B,
    pub(crate) length: B,
    pub(crate) row_norm: B,
    pub(crate) row_residual: B,

    pub(crate) mask: B,
    pub(crate) row_mask: B,
    /// Of blocks of lines of a mask: their bits, then the bits before them.
    pub(crate) block_totals: B,
    pub(crate) row_counts: B,
    pub(crate) row_starts: B,
    pub(crate) row_active: B,
    pub(crate) pair_features: B,
    pub(crate) row_values: B,
    pub(crate) counts: B,
    pub(crate) feature_starts: B,
    pub(crate) segment_starts: B,
    pub(crate) segment_features: B,
    pub(crate) pair_rows: B,
    pub(crate) feature_values: B,
    pub(crate) feature_slopes: B,
    pub(crate) by_norm: B,
    pub(crate) segment_sums: B,

    pub(crate) g: B,
    pub(crate) results: B,
    pub(crate) report_parts: B,
    /// Blocks that have finished, of each kernel whose last block has more to do: see [`Arrivals`].
    pub(crate) arrivals: B,

    pub(crate) window: B,
    pub(crate) levels: B,
    pub(crate) summed: B,
    pub(crate) changes: B,
    pub(crate) ring: B,
    pub(crate) window_sums: B,
    pub(crate) frequencies: B,
    pub(crate) slopes: B,
    pub(crate) steps_since_fired: B,
    pub(crate) term_parts: B,

    /// Weights, first and second moments.
    pub(crate) parameters: B,
    pub(crate) encoder_bf16: Option<B>,
    pub(crate) decoder_bf16: Option<B>,
    pub(crate) feature_base: B,
    pub(crate) feature_norm: B,
    pub(crate) feature_residual: B,
    pub(crate) decoder_norm: B,
    /// Σ_j db_j W_enc_j over blocks of features and its column sums; only with the pre-bias.
    pub(crate) pre_bias: Option<(B, B)>,
}

/// Sums of `report_rows` times the most blocks that form parts of them.
const REPORT_PARTS: usize = 13 * 32;

/// The kernels whose last block goes on alone (`last.cuh`): the places of their counters, which are 0 between kernels.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrivals {
    Report,
    Frequencies,
    Lists,
    DecoderBias,
    /// The first of one for each 64 columns.
    Columns,
}

/// Columns that a block of the kernels that sum over rows takes; the stride is a multiple of it.
pub(crate) const COLUMNS: usize = 64;

/// Counters in [`Buffers::arrivals`].
pub(crate) fn arrivals(plan: &Plan) -> usize {
    Arrivals::Columns as usize + plan.stride / COLUMNS
}

/// Lines of a mask that a block of the list kernels takes.
pub(crate) const LISTED_LINES: usize = 32;

/// Blocks of features in the update kernels.
pub(crate) fn update_blocks(plan: &Plan) -> usize {
    plan.features.div_ceil(FEATURES_OF_BLOCK)
}

/// Blocks of `window_features`, each with three numbers in `term_parts`.
pub(crate) fn window_blocks(plan: &Plan) -> usize {
    plan.features.div_ceil(256)
}

impl<B> Buffers<B> {
    /// Where a kernel counts its blocks.
    pub(crate) fn arrivals(&self, kernel: Arrivals) -> Argument<'_, B> {
        Argument::Buffer(&self.arrivals, 4 * kernel as usize)
    }

    /// Allocates all of them; their content is undefined.
    pub(crate) fn allocate<D: Device<Buffer = B>>(
        device: &mut D,
        plan: &Plan,
        precision: Precision,
        pre_bias: bool,
    ) -> Result<Buffers<B>, DeviceError> {
        let Plan { rows, features, stride, .. } = *plan;
        let mut array = |numbers: usize, size: usize, what: &str| device.allocate(numbers * size, what);
        let matrix = features * stride;
        Ok(Buffers {
            scalars: array(1, size_of::<Scalars>(), "the step's constants")?,
            report: array(1, size_of::<Report>(), "the step's report")?,
            targets: array(6, 8, "the frequency targets")?,
            x: match plan.width == stride {
                true => None,
                false => Some(array(rows * stride, 4, "the padded batch")?),
            },
            input: match pre_bias {
                true => Some(array(rows * stride, 4, "the encoder's input")?),
                false => None,
            },
            x_bf16: array(rows * stride, 2, "the batch in bfloat16")?,
            column_parts: array(rows.div_ceil(SUMMED_ROWS) * stride, 8, "column sums")?,
            column_sum: array(stride, 8, "column sums")?,
            mean: array(stride, 4, "the batch's mean")?,
            squared: array(rows, 4, "row norms")?,
            centered: array(rows, 4, "row norms")?,
            length: array(rows, 4, "row norms")?,
            row_norm: array(rows, 4, "row norms")?,
            row_residual: array(rows, 4, "row norms")?,
            mask: array(features * plan.words, 4, "the mask of active pairs")?,
            row_mask: array(rows * plan.row_words, 4, "the mask of active pairs")?,
            block_totals: array(rows.max(features).div_ceil(LISTED_LINES), 8, "the lists' blocks")?,
            row_counts: array(rows, 4, "the rows' lists")?,
            row_starts: array(rows + 1, 4, "the rows' lists")?,
            row_active: array(rows, 4, "the rows' lists")?,
            pair_features: array(plan.pairs, 4, "the active pairs")?,
            row_values: array(plan.pairs, 4, "the active pairs")?,
            counts: array(features, 4, "the features' lists")?,
            feature_starts: array(features + 1, 4, "the features' lists")?,
            segment_starts: array(features + 1, 4, "the features' lists")?,
            segment_features: array(plan.segments, 4, "the features' lists")?,
            pair_rows: array(plan.pairs, 4, "the active pairs")?,
            feature_values: array(plan.pairs, 4, "the active pairs")?,
            feature_slopes: array(plan.pairs, 4, "the active pairs")?,
            by_norm: array(features, 4, "the norms' gradient")?,
            segment_sums: array(plan.segments * (2 * stride + 4), 4, "the segments of frequent features")?,
            g: array(rows * stride, 4, "the reconstruction's gradient")?,
            results: array(rows, ROW_RESULT_BYTES, "the rows' results")?,
            window: array(1, size_of::<Window>(), "the frequency window")?,
            report_parts: array(REPORT_PARTS, 8, "the step's report")?,
            arrivals: array(arrivals(plan), 4, "the step's report")?,
            levels: array(plan.window, 8, "the frequency window")?,
            summed: array(plan.window, 4, "the frequency window")?,
            changes: array(plan.window, 4, "the frequency window")?,
            ring: array(plan.window * features, 4, "the frequency window")?,
            window_sums: array(features, 4, "the frequency window")?,
            frequencies: array(features, 4, "the frequencies")?,
            slopes: array(features, 4, "the frequencies' slopes")?,
            steps_since_fired: array(features, 8, "the steps since features fired")?,
            term_parts: array(3 * window_blocks(plan), 8, "the frequency terms")?,
            parameters: array(3 * plan.parameters(), 4, "weights and moments")?,
            encoder_bf16: match precision {
                Precision::Fp32 => None,
                _ => Some(array(matrix, 2, "the encoder in bfloat16")?),
            },
            decoder_bf16: match precision {
                Precision::Bf16 => Some(array(matrix, 2, "the decoder in bfloat16")?),
                _ => None,
            },
            feature_base: array(features, 4, "the screening bounds")?,
            feature_norm: array(features, 4, "the screening bounds")?,
            feature_residual: array(features, 4, "the screening bounds")?,
            decoder_norm: array(features, 4, "the decoder's norms")?,
            pre_bias: match pre_bias {
                true => Some((
                    array(update_blocks(plan) * stride, 4, "the pre-bias' gradient")?,
                    array(update_blocks(plan).div_ceil(SUMMED_ROWS) * stride, 8, "the pre-bias' gradient")?,
                )),
                false => None,
            },
        })
    }
}

/// The bfloat16 halves of a factor of dense products, in one buffer.
pub(crate) struct Halves<B> {
    pub(crate) buffer: B,
    /// The first byte of the number rounded to bfloat16.
    pub(crate) high: usize,
    /// The first byte of what that left over; only where products are to be exact.
    pub(crate) low: Option<usize>,
    /// Numbers from one row to the next.
    pub(crate) stride: usize,
}

/// How the halves lie: see `kernels/cuda/dense.cu`.
#[derive(Clone, Copy)]
enum Halving {
    /// Rows [low high high].
    Left,
    /// Rows [high low high].
    Right,
    /// Two arrays.
    Apart,
}

/// Arrays of the dense path.
pub(crate) struct DenseBuffers<B> {
    /// a, [B,line].
    pub(crate) activations: B,
    /// da, [B,line].
    pub(crate) by_value: B,
    pub(crate) encoder_gradient: B,
    pub(crate) decoder_gradient: B,
    pub(crate) bias_parts: B,
    pub(crate) norm_parts: B,
    /// The factors' halves unless products are float32: X, W_enc, W_dec, a, g, da, as [`super::dense`] counts them.
    pub(crate) halves: Option<[Halves<B>; 6]>,
}

impl<B> DenseBuffers<B> {
    /// Allocates all of them.
    pub(crate) fn allocate<D: Device<Buffer = B>>(
        device: &mut D,
        plan: &Plan,
        precision: Precision,
    ) -> Result<DenseBuffers<B>, DeviceError> {
        let (activations, matrix) = (plan.rows * plan.line, plan.features * plan.stride);
        let parts = plan.rows.div_ceil(SLOPE_ROWS) * plan.features;
        let halves = if precision == Precision::Fp32 {
            None
        } else {
            let exact = precision == Precision::Exact;
            let mut halves = |lines: usize, stride: usize, halving| -> Result<Halves<B>, DeviceError> {
                let (copies, high, low, stride_of_halves) = match halving {
                    _ if !exact => (1, 0, None, stride),
                    Halving::Left => (3, 2 * stride, Some(0), 3 * stride),
                    Halving::Right => (3, 0, Some(2 * stride), 3 * stride),
                    Halving::Apart => (2, 0, Some(2 * lines * stride), stride),
                };
                let bytes = 2 * copies * lines * stride;
                let buffer = device.allocate(bytes, "the dense products' bfloat16 factors")?;
                Ok(Halves { buffer, high, low, stride: stride_of_halves })
            };
            let Plan { rows, features, stride, line, .. } = *plan;
            Some([
                halves(rows, stride, Halving::Left)?,
                halves(features, stride, Halving::Right)?,
                halves(features, stride, Halving::Right)?,
                halves(rows, line, Halving::Apart)?,
                halves(rows, stride, Halving::Left)?,
                halves(rows, line, Halving::Apart)?,
            ])
        };
        Ok(DenseBuffers {
            activations: device.allocate(4 * activations, "dense activations")?,
            by_value: device.allocate(4 * activations, "the gradients of dense activations")?,
            encoder_gradient: device.allocate(4 * matrix, "the encoder's gradient")?,
            decoder_gradient: device.allocate(4 * matrix, "the decoder's gradient")?,
            bias_parts: device.allocate(4 * parts, "the encoder bias' gradient")?,
            norm_parts: device.allocate(4 * parts, "the norms' gradient")?,
            halves,
        })
    }
}

/// A whole buffer as an argument.
pub(crate) fn all<B>(buffer: &B) -> Argument<'_, B> {
    Argument::Buffer(buffer, 0)
}

/// A whole buffer, or null.
pub(crate) fn maybe<B>(buffer: Option<&B>) -> Argument<'_, B> {
    buffer.map_or(Argument::Null, all)
}

/// A size that the plan keeps within 32 bits.
pub(crate) fn count<'a, B>(number: usize) -> Argument<'a, B> {
    Argument::U32(u32::try_from(number).expect("the plan bounds every size to 32 bits"))
}

/// Launches a kernel of this crate on a grid in x and y.
pub(crate) fn launch<D: Device>(
    device: &mut D,
    kernel: (&'static str, &'static str),
    grid: (usize, usize),
    threads: u32,
    arguments: &[Argument<'_, D::Buffer>],
) -> Result<(), DeviceError> {
    let size = |blocks: usize| u32::try_from(blocks).expect("the plan bounds every grid to 32 bits");
    let launch = Launch {
        kernel: Kernel { module: kernel.0, function: kernel.1 },
        grid: [size(grid.0), size(grid.1), 1],
        block: [threads, 1, 1],
        shared_bytes: 0,
        arguments,
    };
    // SAFETY: every caller in this module's siblings passes what the kernel's parameters ask for, in their order,
    // with buffers of the sizes that `Buffers` and `DenseBuffers` give them; the emulation's tests check number
    // and kinds of the arguments of each launch, and that no access leaves its buffer.
    unsafe { device.launch(&launch) }
}
