//! `jump`: JumpReLU's pseudo-derivatives. With w the bandwidth and near = [|z − θ_j| < w/2],
//!
//! ```text
//! dL/dθ_j = −Σ_i near_ij·((θ_j/w)·dL/da_ij + (1/w)·dL/dH_ij)
//! dL/dz_ij = [z_ij > θ_j]·dL/da_ij                                  (+ near_ij·(the same bracket) with `to_input`)
//! ```
//!
//! where H_ij = [z_ij > θ_j] is what a penalty on L0 counts. So pairs that are near their threshold take part though they are not
//! active.

/// What the pseudo-derivatives need besides z and dL/da.
#[derive(Debug, Clone, Copy)]
pub struct Jump<'a> {
    /// w.
    pub bandwidth: f32,
    /// Whether they are part of dL/dz.
    pub to_input: bool,
    /// dL/dH_ij, which is the same for all features of a row: [B].
    pub by_count: &'a [f32],
}

impl Jump<'_> {
    /// z from here on is not ruled out by the feature's threshold: below it neither a nor a derivative is other than 0.
    pub(crate) fn lowest(&self, threshold: f32) -> f32 {
        threshold - 0.5 * self.bandwidth
    }

    /// Turns dL/da of pairs of one feature, `by_value`, into dL/dz; returns their part of dL/dθ_j. `of` gives the pairs' rows
    /// and z.
    pub(crate) fn derivatives(
        &self,
        threshold: f32,
        of: impl Iterator<Item = (usize, f32)>,
        by_value: &mut [f32],
    ) -> f32 {
        let (by_value_scale, by_count_scale) = (threshold / self.bandwidth, 1.0 / self.bandwidth);
        let half = 0.5 * self.bandwidth;
        let mut by_threshold = 0.0;
        for ((row, z), by_value) in of.zip(by_value) {
            let active = z > threshold;
            let mut near = 0.0;
            if (z - threshold).abs() < half {
                near = by_value_scale * *by_value + by_count_scale * self.by_count[row];
                by_threshold -= near;
            }
            *by_value = if active { *by_value } else { 0.0 } + if self.to_input { near } else { 0.0 };
        }
        by_threshold
    }
}
