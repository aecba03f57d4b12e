//! Nested prefixes of the features, which reconstruct by themselves as well: a batch behind itself, once for each of them.

use super::buffers::Arrivals;
use super::device::Device;
use super::launch::Slice;
use super::launch::groups::{DecodeGroups, Groups, RepeatRows, ShiftRows};
use super::panel::Panel;
use crate::error::DeviceError;

impl<D: Device> Panel<D> {
    fn groups<'a>(&self, ends: &'a D::Buffer) -> Groups<'a, D::Buffer> {
        Groups { ends, groups: self.plan.groups, distance: self.plan.row_distance() }
    }

    /// Every prefix' x̂, and g of each group.
    pub(crate) fn decode_groups(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        ends: &D::Buffer,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let decode = DecodeGroups {
            decode: self.decode_of(batch, plan.rows),
            groups: self.groups(ends),
            weight: self.spec.prefixes.weight() as f32,
            terms: b.group_terms.as_ref().expect("they are there where the ends are"),
            arrived: b.arrivals(Arrivals::Groups),
        };
        decode.launch(device)
    }

    /// g of the reconstruction by all features.
    pub(crate) fn whole_gradient(&self) -> Slice<'_, D::Buffer> {
        let plan = &self.plan;
        Slice::from_number(self.g(), (plan.groups - 1) * plan.row_distance() * plan.stride)
    }

    /// The encoder's input as the backward pass reads it: behind itself, where a batch is there several times.
    pub(crate) fn repeated_input<'a>(
        &'a self,
        device: &mut D,
        batch: &'a D::Buffer,
    ) -> Result<&'a D::Buffer, DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let x = self.encoder_input(batch);
        let Some(copies) = &b.x_copies else { return Ok(x) };
        let repeat = RepeatRows {
            x,
            copies,
            times: plan.copies(),
            distance: plan.row_distance(),
            rows: plan.rows,
            stride: plan.stride,
            report: &b.report,
        };
        repeat.launch(device)?;
        Ok(copies)
    }

    /// Makes the lists' rows those of the features' groups.
    pub(crate) fn shift_rows(&self, device: &mut D) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let Some(ends) = &b.group_ends else { return Ok(()) };
        let shift = ShiftRows {
            feature_starts: &b.feature_starts,
            pair_rows: &b.pair_rows,
            groups: self.groups(ends),
            features: plan.features,
            capacity: plan.listed_pairs(),
            report: &b.report,
        };
        shift.launch(device)
    }
}
