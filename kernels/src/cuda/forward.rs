//! The first half of a step: from a batch to g = dL/dx̂ and the report.

use super::buffers::Arrivals;
use super::device::{Device, Screen};
use super::launch::Slice;
use super::launch::decode::{Decode, Decoder};
use super::launch::encode::Encode;
use super::launch::jump::{NearPairs, PenaltyOfCount, Pseudo, Thresholds};
use super::launch::lists::{CountFeatures, CountRows, FeatureStarts, ListRows, TransposeMask};
use super::launch::mask_words;
use super::launch::recheck::{Operands, Recheck};
use super::launch::report::ReportRows;
use super::launch::rows::{BatchColumns, ColumnSums, PadRows, RowNorms, ShiftedInput};
use super::panel::Panel;
use crate::activation::Activation;
use crate::error::DeviceError;
use crate::loss::Mse;
use crate::path::Path;
use crate::precision::Precision;

/// What a pass over a batch is for.
pub(crate) enum Purpose<'a, B> {
    /// A step, whose scalars lie in this mailbox: a loss that is not finite refuses it.
    Training(&'a B),
    /// Metrics alone, with the scalars that were uploaded.
    Evaluation,
}

impl<D: Device> Panel<D> {
    /// The batch with padded rows: itself, or the copy that `pad_rows` makes.
    pub(crate) fn padded<'a>(&'a self, batch: &'a D::Buffer) -> &'a D::Buffer {
        self.buffers.x.as_ref().unwrap_or(batch)
    }

    /// What the encoder reads.
    pub(crate) fn encoder_input<'a>(&'a self, batch: &'a D::Buffer) -> &'a D::Buffer {
        self.buffers.input.as_ref().unwrap_or_else(|| self.padded(batch))
    }

    /// ‖W_dec_j‖ where the penalty is weighted by it.
    pub(crate) fn penalty_norms(&self) -> Option<&D::Buffer> {
        self.spec.loss.weight_by_decoder_norm.then_some(&self.buffers.decoder_norm)
    }

    /// The thresholds, where features have some.
    pub(crate) fn thresholds(&self) -> Option<Thresholds<'_, D::Buffer>> {
        let Activation::JumpRelu { bandwidth, .. } = self.spec.activation else { return None };
        self.buffers.thresholds.as_ref().map(|numbers| Thresholds { numbers, bandwidth })
    }

    /// The pairs near thresholds, where features have some.
    pub(crate) fn near_pairs(&self) -> Option<NearPairs<'_, D::Buffer>> {
        let b = &self.buffers;
        let (features, values) = (b.near_features.as_ref()?, b.near_values.as_ref()?);
        Some(NearPairs { features, values, of_row: b.row_near.as_ref()? })
    }

    /// The thresholds' pseudo-derivatives, where features have some.
    pub(crate) fn pseudo(&self) -> Option<Pseudo<'_, D::Buffer>> {
        let Activation::JumpRelu { to_input, .. } = self.spec.activation else { return None };
        let thresholds = self.thresholds()?;
        Some(Pseudo { thresholds, to_input, results: self.results() })
    }

    /// The weights from number `at` on.
    pub(crate) fn weights_from(&self, at: usize) -> Slice<'_, D::Buffer> {
        Slice::from_number(&self.buffers.parameters, at)
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
        self.encode_and_decode(device, batch, rows, path, &purpose)?;
        self.report(device, batch, rows, &purpose)
    }

    /// The first part: g and the rows' results, or what the panel adds to them.
    pub(crate) fn encode_and_decode(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
        path: Path,
        purpose: &Purpose<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        self.rows(device, batch, rows, purpose)?;
        self.rank_encoder(device)?;
        match path {
            Path::Sparse => self.encode_and_decode_pairs(device, batch, rows, purpose),
            Path::Dense => self.encode_and_decode_dense(device, batch, rows),
        }
    }

    /// The second part: what follows from the rows' results.
    pub(crate) fn report(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
        purpose: &Purpose<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        let (b, penalty) = (&self.buffers, self.spec.loss.penalty);
        if penalty.counts() {
            let (results, scalars, report) = (self.results(), &b.scalars, &b.report);
            PenaltyOfCount { results, rows, penalty, scalars, report }.launch(device)?;
        }
        if let Purpose::Training(_) = purpose {
            self.add_dead_loss(device, batch)?;
        }
        self.report_rows(device, rows, purpose)
    }

    /// The report of a pass, and in training the decision on which batches count for the frequencies.
    fn report_rows(
        &self,
        device: &mut D,
        rows: usize,
        purpose: &Purpose<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let report = ReportRows {
            results: self.results(),
            squared: &b.squared,
            centered: &b.centered,
            column_sum: &b.column_sum,
            parts: &b.report_parts,
            arrived: b.arrivals(Arrivals::Report),
            rows,
            width: plan.width,
            mse: self.spec.loss.mse,
            training: matches!(purpose, Purpose::Training(_)),
            scalars: &b.scalars,
            window: &b.window,
            levels: &b.levels,
            summed: &b.summed,
            change_list: &b.changes,
            window_length: plan.window,
            report: &b.report,
        };
        report.launch(device)
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
            PadRows { from: batch, out: x, rows, width: plan.width }.launch(device)?;
        }
        let x = self.padded(batch);
        let (letter, zero_check) = match *purpose {
            Purpose::Training(mailbox) => (Some(mailbox), self.spec.loss.mse),
            Purpose::Evaluation => (None, Mse::Sum),
        };
        let columns = BatchColumns {
            letter,
            scalars: &b.scalars,
            x,
            partial: &b.column_parts,
            sum: &b.column_sum,
            mean: &b.mean,
            arrived: b.arrivals(Arrivals::Columns),
            rows,
            stride,
            report: &b.report,
        };
        columns.launch(device)?;
        let bias = self.weights_from(plan.decoder_bias_at());
        let norms = RowNorms {
            x,
            mean: &b.mean,
            shifted: b.input.as_ref().map(|input| ShiftedInput { bias, input }),
            x_bf16: &b.x_bf16,
            squared: &b.squared,
            centered: &b.centered,
            length: &b.length,
            row_norm: &b.row_norm,
            row_residual: &b.row_residual,
            rows,
            stride,
            bounds: self.has_bounds(),
            zero_check,
            report: &b.report,
        };
        norms.launch(device)
    }

    /// Sums over 64 rows of each column of `matrix` [rows,stride], float64, into `partial`.
    pub(crate) fn column_sums(
        &self,
        device: &mut D,
        matrix: &D::Buffer,
        partial: &D::Buffer,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let (stride, report) = (self.plan.stride, &self.buffers.report);
        ColumnSums { matrix, partial, rows, stride, report }.launch(device)
    }

    /// Sets the bits of the pairs that may be active.
    fn find_candidates(&self, device: &mut D, batch: &D::Buffer, rows: usize) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let Some(encoder_bf16) = &b.encoder_bf16 else {
            let encode = Encode {
                encoder: self.weights_from(0),
                encoder_bias: self.weights_from(plan.encoder_bias_at()),
                x: self.encoder_input(batch),
                mask: &b.mask,
                features: plan.features,
                rows,
                stride: plan.stride,
                report: &b.report,
                thresholds: self.thresholds(),
            };
            return encode.launch(device);
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
            words: mask_words(rows),
        })
    }

    fn encode_and_decode_pairs(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
        purpose: &Purpose<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        match self.spec.activation {
            Activation::Relu | Activation::JumpRelu { .. } => {
                self.find_candidates(device, batch, rows)?;
                self.list_candidates(device, rows)?;
            }
            Activation::TopK { k } => self.select_largest(device, batch, rows, k)?,
            // In training: an evaluation takes the dense path.
            Activation::BatchTopK { k, .. } => {
                self.mark_largest_of_batch(device, batch, k)?;
                self.list_candidates(device, rows)?;
            }
        }
        // Leaves out what is not above 0, or its threshold.
        self.recheck(device, batch, rows)?;
        if self.plan.of_batch {
            self.report_smallest(device)?;
        }
        self.divide_by_norms(device, rows)?;
        // Lists by feature hold other pairs too, and are made of other counts then.
        let counted = if self.buffers.listed_counts.is_some() { Path::Dense } else { Path::Sparse };
        self.count_features(device, rows, counted)?;
        match (&self.buffers.group_ends, purpose) {
            _ if self.part.is_some() => self.decode_part(device, rows),
            (Some(ends), Purpose::Training(_)) => self.decode_groups(device, batch, ends),
            _ => self.decode(device, batch, rows),
        }
    }

    fn list_candidates(&self, device: &mut D, rows: usize) -> Result<(), DeviceError> {
        let (b, features, capacity) = (&self.buffers, self.plan.features, self.plan.pairs);
        let transpose =
            TransposeMask { mask: &b.mask, row_mask: &b.row_mask, features, rows, report: &b.report };
        transpose.launch(device)?;
        let count = CountRows {
            row_mask: &b.row_mask,
            counts: &b.row_counts,
            totals: &b.block_totals,
            arrived: b.arrivals(Arrivals::Lists),
            starts: &b.row_starts,
            rows,
            features,
            capacity,
            report: &b.report,
        };
        count.launch(device)?;
        let list = ListRows {
            row_mask: &b.row_mask,
            counts: &b.row_counts,
            totals: &b.block_totals,
            starts: &b.row_starts,
            pair_features: &b.pair_features,
            rows,
            features,
            capacity,
            report: &b.report,
        };
        list.launch(device)
    }

    fn recheck(&self, device: &mut D, batch: &D::Buffer, rows: usize) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let ranking = self.ranking();
        let operands = match (&b.encoder_bf16, plan.precision) {
            (Some(encoder), Precision::Bf16) if !plan.ranks => Operands::Bf16 { x: &b.x_bf16, encoder },
            _ => Operands::Float32 {
                x: self.encoder_input(batch),
                encoder: ranking.encoder,
                length: &b.length,
                feature_norm: ranking.norm,
            },
        };
        let recheck = Recheck {
            operands,
            encoder_bias: ranking.bias,
            starts: &b.row_starts,
            pair_features: &b.pair_features,
            row_values: &b.row_values,
            row_active: &b.row_active,
            mask: &b.mask,
            rows,
            features: plan.features,
            stride: plan.stride,
            capacity: plan.pairs,
            report: &b.report,
            jump: self.thresholds().zip(self.near_pairs()),
        };
        recheck.launch(device)
    }

    fn decode(&self, device: &mut D, batch: &D::Buffer, rows: usize) -> Result<(), DeviceError> {
        self.decode_of(batch, rows).launch(device)
    }

    /// W_dec as the decode reads it.
    pub(crate) fn decoder(&self) -> Decoder<'_, D::Buffer> {
        let in_float32 = || Decoder::Float32(self.weights_from(self.plan.decoder_at()));
        self.buffers.decoder_bf16.as_ref().map_or_else(in_float32, Decoder::Bf16)
    }

    /// The decode of the lists.
    pub(crate) fn decode_of<'a>(&'a self, batch: &'a D::Buffer, rows: usize) -> Decode<'a, D::Buffer> {
        let (plan, b) = (&self.plan, &self.buffers);
        Decode {
            x: self.padded(batch),
            squared: &b.squared,
            centered: &b.centered,
            decoder: self.decoder(),
            decoder_bias: self.weights_from(plan.decoder_bias_at()),
            decoder_norm: self.penalty_norms(),
            starts: &b.row_starts,
            row_active: &b.row_active,
            pair_features: &b.pair_features,
            row_values: &b.row_values,
            g: self.g(),
            results: self.results(),
            rows,
            features: plan.features,
            width: plan.width,
            capacity: plan.pairs,
            mse: self.spec.loss.mse,
            penalty: self.spec.loss.penalty,
            scalars: &b.scalars,
            report: &b.report,
        }
    }

    /// Where features begin in the lists.
    pub(crate) fn feature_starts(&self) -> FeatureStarts<'_, D::Buffer> {
        FeatureStarts { pairs: &self.buffers.feature_starts, segments: &self.buffers.segment_starts }
    }

    /// In how many of `rows` each feature is active, and on the sparse path where blocks of features begin in the lists.
    pub(crate) fn count_features(&self, device: &mut D, rows: usize, path: Path) -> Result<(), DeviceError> {
        self.count_bits(device, &self.buffers.mask, rows, path, &self.buffers.counts)
    }

    /// The bits of each feature in a mask of `rows` rows.
    pub(crate) fn count_bits(
        &self,
        device: &mut D,
        mask: &D::Buffer,
        rows: usize,
        path: Path,
        counts: &D::Buffer,
    ) -> Result<(), DeviceError> {
        let b = &self.buffers;
        let count = CountFeatures {
            mask,
            counts,
            totals: &b.block_totals,
            arrived: b.arrivals(Arrivals::Lists),
            starts: (path == Path::Sparse).then(|| self.feature_starts()),
            features: self.plan.features,
            rows,
            report: &b.report,
        };
        count.launch(device)
    }
}
