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

use std::ops::Range;
use std::sync::Arc;

use super::device::{Device, Move};
use super::forward::Purpose;
use super::launch::Slice;
use super::launch::panels::{
    AddParts, DecodePart, DecodePartDense, FinishRows, LeaveReports, LeaveStatus, Part, Parts, ShareStatus,
};
use super::launch::stride_of;
use super::layout::{REPLY, ROW_PART_BYTES, ROW_RESULT_BYTES, Report};
use super::panel::Panel;
use super::resident::{CudaStep, Paths};
use crate::cpu::peers::Peers;
use crate::error::DeviceError;
use crate::panels::Share;
use crate::spec::StepSpec;

/// What a rank knows of the others, and what its panels have together.
pub(crate) struct Meeting<B> {
    pub(crate) share: Share,
    pub(crate) peers: Peers,
    rows: Arc<Rows<B>>,
}

/// What the panels of a rank have together. All rows: B rounded up to a multiple of the number of ranks.
pub(crate) struct Rows<B> {
    sizes: Sizes,
    /// The own panels' parts of x̂, [panels, all rows, stride], and of the activity, `RowPart` [panels, all rows].
    parts: B,
    part_activity: B,
    /// Their sums, and parts of the own rows from all ranks: with several ranks; the sums with several own panels too.
    sum: Option<(B, B)>,
    received: Option<(B, B)>,
    /// u32 [panels of all ranks].
    statuses: B,
    /// [all rows, stride].
    g: B,
    /// `RowResult` [all rows].
    results: B,
    /// `Report` [panels of all ranks].
    reports: B,
}

/// How large they are.
#[derive(Debug, Clone)]
struct Sizes {
    /// Panels of all ranks, and those of this one.
    panels: usize,
    own: Range<usize>,
    ranks: usize,
    rank: usize,
    all_rows: usize,
    stride: usize,
}

impl Sizes {
    fn new(spec: &StepSpec, share: &Share) -> Sizes {
        let own = share.own();
        let ranks = spec.panels / own.len();
        Sizes {
            panels: spec.panels,
            rank: own.start / own.len(),
            own,
            ranks,
            all_rows: spec.batch.next_multiple_of(ranks),
            stride: stride_of(spec.width),
        }
    }

    fn sum_bytes(&self) -> usize {
        4 * self.all_rows * self.stride
    }

    fn activity_bytes(&self) -> usize {
        ROW_PART_BYTES * self.all_rows
    }

    fn sums(&self) -> bool {
        self.ranks > 1 && self.own.len() > 1
    }

    /// The rows of each rank, of `rows`.
    fn each(&self, rows: usize) -> usize {
        rows.div_ceil(self.ranks)
    }
}

/// Bytes of device memory that several panels take beside their own arrays.
pub(crate) fn bytes_of_several(spec: &StepSpec, share: &Share) -> usize {
    if spec.panels == 1 {
        return 0;
    }
    let sizes = Sizes::new(spec, share);
    let pair = sizes.sum_bytes() + sizes.activity_bytes();
    let pairs = sizes.own.len() + usize::from(sizes.sums()) + usize::from(sizes.ranks > 1);
    let of_panels = (4 + size_of::<Report>()) * sizes.panels;
    pairs * pair + sizes.sum_bytes() + ROW_RESULT_BYTES * sizes.all_rows + of_panels
}

impl<B> Rows<B> {
    fn allocate<D: Device<Buffer = B>>(device: &mut D, sizes: Sizes) -> Result<Rows<B>, DeviceError> {
        const WHAT: &str = "the panels' sums";
        let (sum, activity, own) = (sizes.sum_bytes(), sizes.activity_bytes(), sizes.own.len());
        let mut pair = |there: bool| -> Result<_, DeviceError> {
            let mut both = || Ok((device.allocate(sum, WHAT)?, device.allocate(activity, WHAT)?));
            there.then(&mut both).transpose()
        };
        let (sums, received) = (pair(sizes.sums())?, pair(sizes.ranks > 1)?);
        Ok(Rows {
            parts: device.allocate(own * sum, WHAT)?,
            part_activity: device.allocate(own * activity, WHAT)?,
            sum: sums,
            received,
            statuses: device.allocate(4 * sizes.panels, "the panels' reports")?,
            g: device.allocate(sum, "the reconstruction's gradient")?,
            results: device.allocate(ROW_RESULT_BYTES * sizes.all_rows, "the rows' results")?,
            reports: device.allocate(size_of::<Report>() * sizes.panels, "the panels' reports")?,
            sizes,
        })
    }

    /// The parts of the own panels.
    fn own_parts(&self) -> Parts<'_, B> {
        let first = Part { sum: (&self.parts).into(), activity: (&self.part_activity).into() };
        Parts { first, count: self.sizes.own.len(), row_distance: self.sizes.all_rows }
    }

    /// What this rank sends: the sums of its parts.
    fn own_sum(&self) -> (&B, &B) {
        self.sum.as_ref().map_or((&self.parts, &self.part_activity), |(sum, activity)| (sum, activity))
    }

    /// What the rows are finished from, of `rows`.
    fn parts_of_own_rows(&self, rows: usize) -> Parts<'_, B> {
        let Some((sum, activity)) = &self.received else { return self.own_parts() };
        let first = Part { sum: sum.into(), activity: activity.into() };
        Parts { first, count: self.sizes.ranks, row_distance: self.sizes.each(rows) }
    }
}

/// A panel's place among those of its rank.
pub(crate) struct PanelPart<B> {
    rows: Arc<Rows<B>>,
    /// Its number among the own ones.
    number: usize,
}

impl<B> PanelPart<B> {
    pub(crate) fn g(&self) -> &B {
        &self.rows.g
    }

    pub(crate) fn results(&self) -> &B {
        &self.rows.results
    }

    /// What the panel adds.
    pub(crate) fn own(&self) -> Part<'_, B> {
        let Rows { sizes, parts, part_activity, .. } = &*self.rows;
        Part {
            sum: Slice { buffer: parts, offset: self.number * sizes.sum_bytes() },
            activity: Slice { buffer: part_activity, offset: self.number * sizes.activity_bytes() },
        }
    }

    /// Its number among all.
    fn of_all(&self) -> usize {
        self.rows.sizes.own.start + self.number
    }

    fn status(&self) -> Slice<'_, B> {
        Slice::from_number(&self.rows.statuses, self.of_all())
    }

    fn report(&self) -> Slice<'_, B> {
        Slice { buffer: &self.rows.reports, offset: size_of::<Report>() * self.of_all() }
    }
}

impl<B> Meeting<B> {
    /// Makes room, and a place for each own panel; None and no places for one panel of one rank.
    #[allow(clippy::type_complexity)]
    pub(crate) fn new<D: Device<Buffer = B>>(
        device: &mut D,
        spec: &StepSpec,
        share: Share,
        peers: Peers,
    ) -> Result<(Option<Meeting<B>>, Vec<Option<PanelPart<B>>>), DeviceError> {
        if spec.panels == 1 {
            return Ok((None, vec![None]));
        }
        let rows = Arc::new(Rows::allocate(device, Sizes::new(spec, &share))?);
        let part = |number| Some(PanelPart { rows: Arc::clone(&rows), number });
        let parts = (0..share.own().len()).map(part).collect();
        Ok((Some(Meeting { share, peers, rows }), parts))
    }

    /// Panels of all ranks.
    pub(crate) fn panels(&self) -> usize {
        self.rows.sizes.panels
    }

    /// The own ones among them.
    pub(crate) fn own(&self) -> Range<usize> {
        self.rows.sizes.own.clone()
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.rows.sizes.ranks == 1
    }
}

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
