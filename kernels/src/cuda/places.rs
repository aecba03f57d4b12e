//! The device memory in which the panels of a rank [meet](super::meeting) each other and those of other ranks.

use std::ops::Range;
use std::sync::Arc;

use super::device::Device;
use super::launch::panels::{Part, Parts};
use super::launch::{Slice, stride_of};
use super::layout::{ROW_PART_BYTES, ROW_RESULT_BYTES, Report};
use crate::cpu::peers::Peers;
use crate::error::DeviceError;
use crate::panels::Share;
use crate::spec::StepSpec;

/// What a rank knows of the others, and what its panels have together.
pub(crate) struct Meeting<B> {
    pub(crate) share: Share,
    pub(crate) peers: Peers,
    pub(super) rows: Arc<Rows<B>>,
}

/// What the panels of a rank have together. All rows: B rounded up to a multiple of the number of ranks.
pub(crate) struct Rows<B> {
    pub(super) sizes: Sizes,
    /// The own panels' parts of x̂, [panels, all rows, stride], and of the activity, `RowPart` [panels, all rows].
    pub(super) parts: B,
    pub(super) part_activity: B,
    /// Their sums, and parts of the own rows from all ranks: with several ranks; the sums with several own panels too.
    pub(super) sum: Option<(B, B)>,
    pub(super) received: Option<(B, B)>,
    /// u32 [panels of all ranks].
    pub(super) statuses: B,
    /// [all rows, stride].
    pub(super) g: B,
    /// `RowResult` [all rows].
    pub(super) results: B,
    /// `Report` [panels of all ranks].
    pub(super) reports: B,
}

/// How large they are.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Panels of all ranks, and those of this one.
    pub(super) panels: usize,
    pub(super) own: Range<usize>,
    pub(super) ranks: usize,
    pub(super) rank: usize,
    pub(super) all_rows: usize,
    pub(super) stride: usize,
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
    pub(super) fn each(&self, rows: usize) -> usize {
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
    pub(super) fn own_parts(&self) -> Parts<'_, B> {
        let first = Part { sum: (&self.parts).into(), activity: (&self.part_activity).into() };
        Parts { first, count: self.sizes.own.len(), row_distance: self.sizes.all_rows }
    }

    /// What this rank sends: the sums of its parts.
    pub(super) fn own_sum(&self) -> (&B, &B) {
        self.sum.as_ref().map_or((&self.parts, &self.part_activity), |(sum, activity)| (sum, activity))
    }

    /// What the rows are finished from, of `rows`.
    pub(super) fn parts_of_own_rows(&self, rows: usize) -> Parts<'_, B> {
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
    pub(super) fn of_all(&self) -> usize {
        self.rows.sizes.own.start + self.number
    }

    pub(super) fn status(&self) -> Slice<'_, B> {
        Slice::from_number(&self.rows.statuses, self.of_all())
    }

    pub(super) fn report(&self) -> Slice<'_, B> {
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
