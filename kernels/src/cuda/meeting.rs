//! Where the [panels](crate::panels) of an autoencoder meet: a rank's own in its device's memory, those of several ranks by exchanging
//! bytes between their devices.
//!
//! A step is queued in three segments, between which bytes travel:
//!
//! ```text
//! each own panel: encode, its part of x̂ ─▶ all-to-all: every row's parts to its owner; all statuses to all
//! own rows: the sum over all panels, g, results ─▶ all-gather: g and results of all rows
//! each own panel: report, window, backward, update ─▶ all-gather: the panels' reports
//! ```
//!
//! How many bytes travel depends on sizes alone, so that a step is queued without knowing what the one before it found. A rank alone
//! moves nothing.

use super::device::{Device, Move};
use super::forward::Purpose;
use super::launch::Slice;
use super::launch::panels::{
    AddParts, DecodePart, DecodePartDense, FinishRows, LeaveReports, LeaveStatus, Part, ShareStatus,
};
use super::layout::{REPLY, ROW_PART_BYTES, ROW_RESULT_BYTES, Report};
use super::panel::Panel;
use super::places::{Meeting, PanelPart, Rows};
use super::resident::{CudaStep, Paths};
use crate::error::DeviceError;

impl<D: Device> Panel<D> {
    fn part(&self) -> &PanelPart<D::Buffer> {
        self.part.as_ref().expect("a panel among several has a place")
    }

    /// b_dec, which the first of all panels adds.
    fn own_bias(&self) -> Option<Slice<'_, D::Buffer>> {
        (self.part().of_all() == 0).then(|| self.weights_from(self.plan.decoder_bias_at()))
    }

    /// What the panel's lists add to the rows.
    pub(crate) fn decode_part(&self, device: &mut D, rows: usize) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let decode = DecodePart {
            decoder: self.decoder(),
            decoder_bias: self.own_bias(),
            decoder_norm: self.penalty_norms(),
            starts: &b.row_starts,
            row_active: &b.row_active,
            pair_features: &b.pair_features,
            row_values: &b.row_values,
            part: self.part().own(),
            rows,
            features: plan.features,
            width: plan.width,
            capacity: plan.pairs,
            penalty: self.spec.loss.penalty,
            scalars: &b.scalars,
            report: &b.report,
        };
        decode.launch(device)
    }

    /// The same after the dense product.
    pub(crate) fn decode_part_dense(&self, device: &mut D, rows: usize) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let decode = DecodePartDense {
            decoder_bias: self.own_bias(),
            decoder_norm: self.penalty_norms(),
            a: &self.dense_buffers().activations,
            part: self.part().own(),
            rows,
            features: plan.features,
            width: plan.width,
            // With thresholds the pairs that the lists would hold were counted already.
            counts: !plan.thresholds,
            penalty: self.spec.loss.penalty,
            scalars: &b.scalars,
            report: &b.report,
        };
        decode.launch(device)
    }
}

impl<D: Device> CudaStep<D> {
    /// Up to what the own panels add to the rows.
    pub(super) fn queue_parts(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        (rows, paths): (usize, Paths),
        meeting: &Meeting<D::Buffer>,
        purpose: &Purpose<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        for (number, panel) in self.panels.iter().enumerate() {
            panel.encode_and_decode(device, batch, rows, paths.of(number), purpose)?;
            LeaveStatus { report: &panel.buffers.report, status: panel.part().status() }.launch(device)?;
        }
        let places = &meeting.rows;
        let Some((sum, activity)) = &places.sum else { return Ok(()) };
        let add = AddParts {
            parts: places.own_parts(),
            sum: Part { sum: sum.into(), activity: activity.into() },
            rows,
            stride: places.sizes.stride,
            // One that refuses the step sends nothing of use, and everybody learns of it.
            report: &self.panels[0].buffers.report,
        };
        add.launch(device)
    }

    /// Every row's parts go to its owner, every panel's status to all.
    pub(super) fn exchange_parts(
        &self,
        device: &mut D,
        rows: usize,
        meeting: &Meeting<D::Buffer>,
    ) -> Result<(), DeviceError> {
        let places = &meeting.rows;
        let Some((received, received_activity)) = &places.received else { return Ok(()) };
        let ((sum, activity), sizes) = (places.own_sum(), &places.sizes);
        let each = sizes.each(rows);
        device.exchange(&[
            Move::AllToAll { from: sum, to: received, part: 4 * each * sizes.stride },
            Move::AllToAll { from: activity, to: received_activity, part: ROW_PART_BYTES * each },
            Move::AllGather { of: &places.statuses, part: 4 * sizes.own.len() },
        ])
    }

    /// From the ranks' parts to g and the results of the own rows.
    pub(super) fn queue_rows(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
        meeting: &Meeting<D::Buffer>,
    ) -> Result<(), DeviceError> {
        let places = &meeting.rows;
        let sizes = &places.sizes;
        for panel in &self.panels {
            let report = &panel.buffers.report;
            ShareStatus { statuses: &places.statuses, panels: sizes.panels, report }.launch(device)?;
        }
        let (first, each) = (&self.panels[0], sizes.each(rows));
        let finish = FinishRows {
            x: first.padded(batch),
            squared: &first.buffers.squared,
            centered: &first.buffers.centered,
            parts: places.parts_of_own_rows(rows),
            g: &places.g,
            results: &places.results,
            own: (sizes.rank * each).min(rows)..((sizes.rank + 1) * each).min(rows),
            rows,
            width: self.spec.width,
            mse: self.spec.loss.mse,
            report: &first.buffers.report,
        };
        finish.launch(device)
    }

    /// g and the results of every row go to all.
    pub(super) fn exchange_rows(
        &self,
        device: &mut D,
        rows: usize,
        meeting: &Meeting<D::Buffer>,
    ) -> Result<(), DeviceError> {
        if meeting.is_alone() {
            return Ok(());
        }
        let places = &meeting.rows;
        let each = places.sizes.each(rows);
        device.exchange(&[
            Move::AllGather { of: &places.g, part: 4 * each * places.sizes.stride },
            Move::AllGather { of: &places.results, part: ROW_RESULT_BYTES * each },
        ])
    }

    /// From g to the updated weights of the own panels.
    pub(super) fn queue_training(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        paths: Paths,
        mailbox: &D::Buffer,
    ) -> Result<(), DeviceError> {
        for (number, panel) in self.panels.iter().enumerate() {
            panel.report(device, batch, self.spec.batch, &Purpose::Training(mailbox))?;
            panel.train(device, batch, paths.of(number), panel.part().report())?;
        }
        Ok(())
    }

    /// All panels' reports come to all, and into the mailbox.
    pub(super) fn exchange_reports(
        &self,
        device: &mut D,
        mailbox: &D::Buffer,
        meeting: &Meeting<D::Buffer>,
    ) -> Result<(), DeviceError> {
        let Rows { sizes, reports, .. } = &*meeting.rows;
        if !meeting.is_alone() {
            let part = size_of::<Report>() * sizes.own.len();
            device.exchange(&[Move::AllGather { of: reports, part }])?;
        }
        let reply = Slice { buffer: mailbox, offset: REPLY };
        LeaveReports { reports, reply, panels: sizes.panels }.launch(device)
    }
}
