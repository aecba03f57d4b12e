//! The first half of a step: from a batch to g = dL/dx̂ and the report.

use super::buffers::{Arrivals, COLUMNS, LISTED_LINES, all, count, launch, maybe};
use super::device::{Argument, Device, DeviceError, Screen};
use super::layout::{mse_kind, penalty_kind};
use super::plan::{Path, Precision, SUMMED_ROWS};
use super::resident::CudaStep;
use crate::loss::Mse;

/// Threads of kernels with one warp per line, and the lines of a block.
const LINE_THREADS: u32 = 256;
const LINES: usize = 8;
/// Threads of the kernels that count and list a mask's bits, a warp for each of the block's lines.
pub(crate) const LIST_THREADS: u32 = 32 * LISTED_LINES as u32;
/// Threads of a block of `report_rows`, and the most blocks.
const REPORT_THREADS: usize = 128;
const REPORT_BLOCKS: usize = 32;

/// What a pass over a batch is for.
pub(crate) enum Purpose<'a, B> {
    /// A step, whose scalars lie in this mailbox: a loss that is not finite refuses it.
    Training(&'a B),
    /// Metrics alone, with the scalars that were uploaded.
    Evaluation,
}

impl<D: Device> CudaStep<D> {
    /// The batch with padded rows: itself, or the copy that `pad` makes.
    pub(crate) fn padded<'a>(&'a self, batch: &'a D::Buffer) -> &'a D::Buffer {
        self.buffers.x.as_ref().unwrap_or(batch)
    }

    /// What the encoder reads.
    pub(crate) fn encoder_input<'a>(&'a self, batch: &'a D::Buffer) -> &'a D::Buffer {
        self.buffers.input.as_ref().unwrap_or_else(|| self.padded(batch))
    }

    /// ‖W_dec_j‖ where the penalty is weighted by it.
    pub(crate) fn penalty_norms(&self) -> Argument<'_, D::Buffer> {
        maybe(self.spec.loss.weight_by_decoder_norm.then_some(&self.buffers.decoder_norm))
    }

    /// Everything up to the report, on the first `rows` rows of `batch` [B,d].
    pub(crate) fn forward(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
        path: Path,
        purpose: Purpose<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        self.rows(device, batch, rows, &purpose)?;
        match path {
            Path::Sparse => self.encode_and_decode_pairs(device, batch, rows)?,
            Path::Dense => self.encode_and_decode_dense(device, batch, rows)?,
        }
        self.report_rows(device, rows, &purpose)
    }

    /// The report of a pass, and in training the decision on which batches count for the frequencies.
    fn report_rows(
        &self,
        device: &mut D,
        rows: usize,
        purpose: &Purpose<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let arguments = [
            all(&b.results),
            all(&b.squared),
            all(&b.centered),
            all(&b.column_sum),
            all(&b.report_parts),
            b.arrivals(Arrivals::Report),
            count(rows),
            count(plan.width),
            count(plan.stride),
            Argument::U32(mse_kind(self.spec.loss.mse)),
            Argument::U32(u32::from(matches!(purpose, Purpose::Training(_)))),
            all(&b.scalars),
            all(&b.window),
            all(&b.levels),
            all(&b.summed),
            all(&b.changes),
            count(plan.window),
            all(&b.report),
        ];
        let blocks = rows.div_ceil(REPORT_THREADS).min(REPORT_BLOCKS);
        launch(device, ("report", "report_rows"), (blocks, 1), REPORT_THREADS as u32, &arguments)
    }

    fn rows(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
        purpose: &Purpose<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let stride = plan.stride;
        if let Some(x) = &b.x {
            let arguments = [all(batch), all(x), count(rows), count(plan.width), count(stride)];
            launch(device, ("rows", "pad_rows"), ((rows * stride).div_ceil(256), 1), 256, &arguments)?;
        }
        let x = self.padded(batch);
        let letter = match purpose {
            Purpose::Training(mailbox) => all(*mailbox),
            Purpose::Evaluation => Argument::Null,
        };
        let arguments = [
            letter,
            all(&b.scalars),
            all(x),
            all(&b.column_parts),
            all(&b.column_sum),
            all(&b.mean),
            b.arrivals(Arrivals::Columns),
            count(rows),
            count(stride),
            all(&b.report),
        ];
        let grid = (stride / COLUMNS, rows.div_ceil(SUMMED_ROWS));
        launch(device, ("rows", "batch_columns"), grid, COLUMNS as u32, &arguments)?;
        let zero_check = match (purpose, self.spec.loss.mse) {
            (Purpose::Evaluation, _) | (_, Mse::Sum) => 0,
            (_, Mse::Centered) => 1,
            (_, Mse::Uncentered) => 2,
        };
        let bias = Argument::Buffer(&b.parameters, 4 * self.decoder_bias_at());
        launch(
            device,
            ("rows", "row_norms"),
            (rows.div_ceil(LINES), 1),
            LINE_THREADS,
            &[
                all(x),
                all(&b.mean),
                if b.input.is_some() { bias } else { Argument::Null },
                maybe(b.input.as_ref()),
                all(&b.x_bf16),
                all(&b.squared),
                all(&b.centered),
                all(&b.length),
                all(&b.row_norm),
                all(&b.row_residual),
                count(rows),
                count(stride),
                Argument::U32(u32::from(self.has_bounds())),
                Argument::U32(zero_check),
                all(&b.report),
            ],
        )
    }

    /// Sums over 64 rows of each column of `matrix` [rows,stride], float64, into `parts`.
    pub(crate) fn column_sums(
        &self,
        device: &mut D,
        matrix: &D::Buffer,
        parts: &D::Buffer,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let stride = self.plan.stride;
        let arguments = [all(matrix), all(parts), count(rows), count(stride), all(&self.buffers.report)];
        let grid = (stride / COLUMNS, rows.div_ceil(SUMMED_ROWS));
        launch(device, ("rows", "column_sums"), grid, COLUMNS as u32, &arguments)
    }

    /// Sets the bits of the pairs that may be active.
    fn find_candidates(&self, device: &mut D, batch: &D::Buffer, rows: usize) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let words = mask_words(rows);
        let Some(encoder_bf16) = &b.encoder_bf16 else {
            let arguments = [
                all(&b.parameters),
                Argument::Buffer(&b.parameters, 4 * self.encoder_bias_at()),
                all(self.encoder_input(batch)),
                all(&b.mask),
                count(plan.features),
                count(rows),
                count(plan.stride),
                count(words),
                all(&b.report),
            ];
            let grid = (words.div_ceil(2), plan.features.div_ceil(64));
            return launch(device, ("encode", "encode"), grid, 128, &arguments);
        };
        device.screen(&Screen {
            features: plan.features,
            rows,
            stride: plan.stride,
            encoder: encoder_bf16,
            x: &b.x_bf16,
            feature_base: &b.feature_base,
            feature_norm: &b.feature_norm,
            feature_residual: &b.feature_residual,
            row_norm: &b.row_norm,
            row_residual: &b.row_residual,
            mask: &b.mask,
            words,
        })
    }

    fn encode_and_decode_pairs(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let (features, words, row_words) = (plan.features, mask_words(rows), plan.row_words);
        self.find_candidates(device, batch, rows)?;
        launch(
            device,
            ("lists", "transpose_mask"),
            (words.div_ceil(8), features.div_ceil(256)),
            256,
            &[
                all(&b.mask),
                all(&b.row_mask),
                count(features),
                count(rows),
                count(words),
                count(row_words),
                all(&b.report),
            ],
        )?;
        let blocks = rows.div_ceil(LISTED_LINES);
        let arguments = [
            all(&b.row_mask),
            all(&b.row_counts),
            all(&b.block_totals),
            b.arrivals(Arrivals::Lists),
            all(&b.row_starts),
            count(rows),
            count(row_words),
            count(plan.pairs),
            all(&b.report),
        ];
        launch(device, ("lists", "count_rows"), (blocks, 1), LIST_THREADS, &arguments)?;
        let arguments = [
            all(&b.row_mask),
            all(&b.row_counts),
            all(&b.block_totals),
            all(&b.row_starts),
            all(&b.pair_features),
            count(rows),
            count(row_words),
            all(&b.report),
        ];
        launch(device, ("lists", "list_rows"), (blocks, 1), LIST_THREADS, &arguments)?;
        self.recheck(device, batch, rows)?;
        self.count_features(device, rows, Path::Sparse)?;
        self.decode(device, batch, rows)
    }

    fn recheck(&self, device: &mut D, batch: &D::Buffer, rows: usize) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let bias = Argument::Buffer(&b.parameters, 4 * self.encoder_bias_at());
        let lists = [
            all(&b.row_starts),
            all(&b.pair_features),
            all(&b.row_values),
            all(&b.row_active),
            all(&b.mask),
            count(plan.stride),
            count(mask_words(rows)),
            all(&b.report),
        ];
        let (function, operands) = match (&b.encoder_bf16, self.options.precision) {
            (Some(encoder), Precision::Bf16) => ("recheck_bf16", vec![all(&b.x_bf16), all(encoder), bias]),
            _ => {
                let input = all(self.encoder_input(batch));
                ("recheck", vec![input, all(&b.parameters), bias, all(&b.length), all(&b.feature_norm)])
            }
        };
        let arguments: Vec<_> = operands.into_iter().chain(lists).collect();
        launch(device, ("recheck", function), (rows, 1), 128, &arguments)
    }

    fn decode(&self, device: &mut D, batch: &D::Buffer, rows: usize) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let (function, decoder) = match &b.decoder_bf16 {
            Some(decoder) => ("decode_bf16", all(decoder)),
            None => ("decode", Argument::Buffer(&b.parameters, 4 * self.decoder_at())),
        };
        launch(
            device,
            ("decode", function),
            (rows, 1),
            plan.decode_threads,
            &[
                all(self.padded(batch)),
                all(&b.squared),
                all(&b.centered),
                decoder,
                Argument::Buffer(&b.parameters, 4 * self.decoder_bias_at()),
                self.penalty_norms(),
                all(&b.row_starts),
                all(&b.row_active),
                all(&b.pair_features),
                all(&b.row_values),
                all(&b.g),
                all(&b.results),
                count(rows),
                count(plan.width),
                count(plan.stride),
                Argument::U32(mse_kind(self.spec.loss.mse)),
                Argument::U32(penalty_kind(self.spec.loss.penalty)),
                all(&b.scalars),
                all(&b.report),
            ],
        )
    }

    /// In how many of `rows` each feature is active, and on the sparse path where blocks of features begin in the lists.
    pub(crate) fn count_features(&self, device: &mut D, rows: usize, path: Path) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let sparse = path == Path::Sparse;
        let arguments = [
            all(&b.mask),
            all(&b.counts),
            all(&b.block_totals),
            b.arrivals(Arrivals::Lists),
            maybe(sparse.then_some(&b.feature_starts)),
            maybe(sparse.then_some(&b.segment_starts)),
            count(plan.features),
            count(mask_words(rows)),
            all(&b.report),
        ];
        let blocks = plan.features.div_ceil(LISTED_LINES);
        launch(device, ("lists", "count_features"), (blocks, 1), LIST_THREADS, &arguments)
    }
}

/// Words in a line of the mask of a batch of `rows`.
pub(crate) fn mask_words(rows: usize) -> usize {
    rows.div_ceil(32).next_multiple_of(4)
}
