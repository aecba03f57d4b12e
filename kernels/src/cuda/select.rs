//! Activations of which the largest z are selected: all z come from a dense product, all that follows is the sparse path's.

use super::buffers::Arrivals;
use super::device::Device;
use super::halves::Matrix;
use super::launch::select::{LargestNorms, MaskOfRows, SelectRows};
use super::launch::select_batch::{BatchZ, CountBatch, MarkBatch, Rough, SettleDoubts, SmallestKept, TURNS};
use super::panel::Panel;
use crate::error::DeviceError;
use crate::precision::Precision;

/// How far a dense product of rows of `stride` numbers lies from the definition's at most, relative to the product of the norms; 0
/// where it is the definition.
fn roughness(precision: Precision, stride: usize) -> f32 {
    // As `rounding` of types.cuh: the order of a sum of so many products.
    let rounding = |products: usize| (products + 64) as f32 * 2.0f32.powi(-22);
    match precision {
        Precision::Fp32 => rounding(stride),
        // Two halves leave 2⁻¹⁷ of each factor, and the product of the low ones is left out: below 2⁻¹⁵ together.
        Precision::Exact => rounding(3 * stride) + 2.0f32.powi(-15),
        Precision::Bf16 => 0.0,
    }
}

/// Why a buffer is there.
const PRESENT: &str = "it is there where the largest are selected";

impl<D: Device> Panel<D> {
    /// Lists the k largest z of each row, and sets their bits in the mask.
    pub(crate) fn select_largest(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
        k: usize,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let (features, stride, report) = (plan.features, plan.stride, &b.report);
        let z = self.dense_preactivations(device, batch, rows)?;
        let (largest, ranking) = (self.largest_norms(device)?, self.ranking());
        let select = SelectRows {
            z,
            x: self.encoder_input(batch),
            encoder: ranking.encoder,
            encoder_bias: ranking.bias,
            length: &b.length,
            largest,
            starts: &b.row_starts,
            pair_features: &b.pair_features,
            row_mask: &b.row_mask,
            k,
            features,
            rows,
            stride,
            roughness: roughness(plan.precision, stride),
            report,
        };
        select.launch(device)?;
        MaskOfRows { row_mask: &b.row_mask, mask: &b.mask, features, rows, report }.launch(device)
    }

    /// The largest ‖w_j‖ and |b_j|.
    fn largest_norms(&self, device: &mut D) -> Result<&D::Buffer, DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let (largest, ranking) = (b.largest_norms.as_ref().expect(PRESENT), self.ranking());
        let norms = LargestNorms {
            feature_norm: ranking.norm,
            encoder_bias: ranking.bias,
            largest,
            features: plan.features,
            report: &b.report,
        };
        norms.launch(device)?;
        Ok(largest)
    }

    /// Sets the bits of the k·B largest z of the batch in the mask.
    pub(crate) fn mark_largest_of_batch(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        k: usize,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let (rows, features, report) = (plan.rows, plan.features, &b.report);
        let (cut, tie_starts) = (b.batch_cut.as_ref().expect(PRESENT), b.tie_starts.as_ref().expect(PRESENT));
        let z = self.dense_preactivations(device, batch, rows)?;
        let (largest, ranking) = (self.largest_norms(device)?, self.ranking());
        let roughness = roughness(plan.precision, plan.stride);
        let mut rough = Rough { length: &b.length, largest, stride: plan.stride, roughness };
        let mut of_z = BatchZ { z, encoder_bias: Some(ranking.bias), count: k * rows, features, rows };
        if roughness > 0.0 {
            self.search_batch(device, of_z, rough)?;
            let settle = SettleDoubts {
                z,
                x: self.encoder_input(batch),
                encoder: ranking.encoder,
                encoder_bias: ranking.bias,
                rough,
                cut,
                features,
                rows,
                report,
            };
            settle.launch(device)?;
            (of_z.encoder_bias, rough.roughness) = (None, 0.0);
        }
        self.search_batch(device, of_z, rough)?;
        let arrived = b.arrivals(Arrivals::Selection);
        MarkBatch { batch: of_z, cut, mask: &b.mask, tie_starts, arrived, report }.launch(device)
    }

    /// Finds the limits of the largest.
    fn search_batch(
        &self,
        device: &mut D,
        batch: BatchZ<'_, D::Buffer>,
        rough: Rough<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        let b = &self.buffers;
        let (histogram, cut) = (b.histogram.as_ref().expect(PRESENT), b.batch_cut.as_ref().expect(PRESENT));
        let (tie_starts, report) = (b.tie_starts.as_ref().expect(PRESENT), &b.report);
        let arrived = b.arrivals(Arrivals::Selection);
        (0..TURNS).try_for_each(|turn| {
            CountBatch { batch, rough, histogram, cut, tie_starts, arrived, turn, report }.launch(device)
        })
    }

    /// The smallest activation into the report.
    pub(crate) fn report_smallest(&self, device: &mut D) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let smallest = SmallestKept {
            starts: &b.row_starts,
            row_active: &b.row_active,
            row_values: &b.row_values,
            cut: b.batch_cut.as_ref().expect(PRESENT),
            arrived: b.arrivals(Arrivals::Selection),
            rows: plan.rows,
            capacity: plan.pairs,
            report: &b.report,
        };
        smallest.launch(device)
    }

    /// z without its bias, [rows,line].
    pub(super) fn dense_preactivations(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
    ) -> Result<&D::Buffer, DeviceError> {
        let z = &self.dense_buffers().activations;
        self.split(device, Matrix::X, batch, rows)?;
        self.split(device, Matrix::Encoder, batch, self.plan.features)?;
        let factors = (Matrix::X, Matrix::Encoder);
        self.product_over_width(device, batch, (rows, self.plan.features), factors, z)?;
        Ok(z)
    }
}
