//! The second half of a step: the frequency window, gradients and the update.

use super::buffers::{
    Arrivals, COLUMNS, LISTED_LINES, all, count, launch, maybe, update_blocks, window_blocks,
};
use super::device::{Argument, Device, DeviceError};
use super::forward::{LIST_THREADS, mask_words};
use super::layout::{REPLY, norm_kind, penalty_kind};
use super::plan::{Path, SUMMED_ROWS};
use super::resident::CudaStep;

/// One of the kernels that exist per number of components a thread owns.
pub(crate) fn per_chunks(names: [&'static str; 4], chunks: usize) -> &'static str {
    names[chunks.trailing_zeros() as usize]
}

impl<D: Device> CudaStep<D> {
    /// Everything after the forward pass of a training step. The report goes into the mailbox.
    pub(crate) fn train(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        path: Path,
        mailbox: &D::Buffer,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        self.frequencies_and_slopes(device)?;
        self.column_sums(device, &b.g, &b.column_parts, plan.rows)?;
        match path {
            Path::Sparse => self.update_from_pairs(device, batch)?,
            Path::Dense => self.update_dense(device, batch)?,
        }
        self.update_decoder_bias(device, mailbox)
    }

    fn frequencies_and_slopes(&self, device: &mut D) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let arguments = [
            all(&b.counts),
            all(&b.window),
            all(&b.changes),
            all(&b.ring),
            all(&b.window_sums),
            all(&b.frequencies),
            all(&b.slopes),
            all(&b.steps_since_fired),
            all(&b.term_parts),
            b.arrivals(Arrivals::Frequencies),
            count(plan.features),
            count(plan.rows),
            all(&b.targets),
            all(&b.scalars),
            all(&b.report),
        ];
        launch(device, ("frequency", "window_features"), (window_blocks(plan), 1), 256, &arguments)
    }

    fn update_from_pairs(&self, device: &mut D, batch: &D::Buffer) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let features = plan.features;
        let by_norm = self.spec.loss.weight_by_decoder_norm.then_some(&b.by_norm);
        let arguments = [
            all(&b.mask),
            all(&b.counts),
            all(&b.block_totals),
            all(&b.feature_starts),
            all(&b.segment_starts),
            all(&b.segment_features),
            all(&b.pair_rows),
            count(features),
            count(mask_words(plan.rows)),
            all(&b.report),
        ];
        let blocks = features.div_ceil(LISTED_LINES);
        launch(device, ("lists", "list_features"), (blocks, 1), LIST_THREADS, &arguments)?;
        let arguments = [
            all(&b.feature_starts),
            all(&b.pair_rows),
            all(&b.row_starts),
            all(&b.row_active),
            all(&b.pair_features),
            all(&b.row_values),
            all(&b.slopes),
            all(&b.decoder_norm),
            all(&b.feature_values),
            all(&b.feature_slopes),
            maybe(by_norm),
            count(features),
            Argument::U32(penalty_kind(self.spec.loss.penalty)),
            all(&b.scalars),
            all(&b.report),
        ];
        launch(device, ("lists", "gather_values"), (features.div_ceil(8), 1), 256, &arguments)?;

        let x = self.encoder_input(batch);
        let segments = per_chunks(
            ["backward_segments_1", "backward_segments_2", "backward_segments_4", "backward_segments_8"],
            plan.chunks,
        );
        let arguments = [
            all(&b.parameters),
            all(&b.feature_starts),
            all(&b.segment_starts),
            all(&b.segment_features),
            all(&b.pair_rows),
            all(&b.feature_values),
            all(&b.feature_slopes),
            all(x),
            all(&b.g),
            all(&b.segment_sums),
            count(features),
            count(plan.stride),
            all(&b.report),
        ];
        // No more blocks than there can be segments.
        let blocks = (plan.segment_blocks as usize).min(plan.segments);
        launch(device, ("backward", segments), (blocks, 1), plan.row_threads, &arguments)?;

        let update = per_chunks(
            ["backward_update_1", "backward_update_2", "backward_update_4", "backward_update_8"],
            plan.chunks,
        );
        let pairs = [
            all(&b.feature_starts),
            all(&b.segment_starts),
            all(&b.pair_rows),
            all(&b.feature_values),
            all(&b.feature_slopes),
            maybe(by_norm),
            all(x),
            all(&b.g),
            all(&b.segment_sums),
            maybe(b.pre_bias.as_ref().map(|(parts, _)| parts)),
            count(features),
            count(plan.stride),
            Argument::U32(norm_kind(self.spec.decoder_norm)),
            all(&b.scalars),
            all(&b.report),
        ];
        let arguments: Vec<_> = self.derived().into_iter().chain(pairs).collect();
        launch(device, ("backward", update), (update_blocks(plan), 1), plan.row_threads, &arguments)
    }

    /// The parameters and the arrays that follow from them: the first arguments of every update kernel.
    pub(crate) fn derived(&self) -> [Argument<'_, D::Buffer>; 8] {
        let b = &self.buffers;
        [
            all(&b.parameters),
            maybe(b.encoder_bf16.as_ref()),
            maybe(b.decoder_bf16.as_ref()),
            all(&b.feature_base),
            all(&b.feature_norm),
            all(&b.feature_residual),
            all(&b.decoder_norm),
            Argument::U32(u32::from(self.has_bounds())),
        ]
    }

    fn update_decoder_bias(&self, device: &mut D, mailbox: &D::Buffer) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let blocks = update_blocks(plan);
        if let Some((parts, sums)) = &b.pre_bias {
            self.column_sums(device, parts, sums, blocks)?;
        }
        let arguments = [
            all(&b.parameters),
            all(&b.column_parts),
            count(plan.rows.div_ceil(SUMMED_ROWS)),
            maybe(b.pre_bias.as_ref().map(|(_, sums)| sums)),
            count(blocks.div_ceil(SUMMED_ROWS)),
            count(plan.features),
            count(plan.stride),
            all(&b.scalars),
            b.arrivals(Arrivals::DecoderBias),
            all(&b.report),
            Argument::Buffer(mailbox, REPLY),
        ];
        launch(
            device,
            ("update", "update_decoder_bias"),
            (plan.stride / COLUMNS, 1),
            COLUMNS as u32,
            &arguments,
        )
    }
}
