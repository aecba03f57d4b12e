//! Activations of which the largest z are selected: all z come from a dense product, all that follows is the sparse path's.

use super::device::Device;
use super::halves::Matrix;
use super::launch::select::{LargestNorms, MaskOfRows, SelectRows};
use super::resident::CudaStep;
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

impl<D: Device> CudaStep<D> {
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
        let largest = b.largest_norms.as_ref().expect("they are there where the largest are selected");
        let encoder_bias = self.weights_from(plan.encoder_bias_at());
        let norms = LargestNorms { feature_norm: &b.feature_norm, encoder_bias, largest, features, report };
        norms.launch(device)?;
        let select = SelectRows {
            z,
            x: self.encoder_input(batch),
            encoder: self.weights_from(0),
            encoder_bias,
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
