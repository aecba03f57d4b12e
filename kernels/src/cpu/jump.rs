//! `jump`: JumpReLU's pseudo-derivatives. With w the bandwidth and near = [|z − θ_j| < w/2],
//!
//! ```text
//! dL/dθ_j = −Σ_i near_ij·((θ_j/w)·dL/da_ij + (1/w)·dL/dH_ij)
//! dL/dz_ij = [z_ij > θ_j]·dL/da_ij                                  (+ near_ij·(the same bracket) with `to_input`)
//! ```
//!
//! where H_ij = [z_ij > θ_j] is what a penalty on L0 counts. So pairs that are near their threshold take part though they are not
//! active. Where the count sees a in place of z, near_ij is [|a_ij − θ_j| < w/2] beside dL/dH_ij: of the pairs that are not active,
//! for which a = 0, all take part if θ_j < w/2, and none otherwise.

/// What the pseudo-derivatives need besides z and dL/da.
#[derive(Debug, Clone, Copy)]
pub struct Jump<'a> {
    /// w.
    pub bandwidth: f32,
    /// Whether they are part of dL/dz.
    pub to_input: bool,
    /// dL/dH_ij, which is the same for all features of a row: [B].
    pub by_count: &'a [f32],
    /// Whether H's pseudo-derivative sees a; dL/dH is the same for all rows then.
    pub sees_activations: bool,
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
                let counted = active || !self.sees_activations;
                let by_count = if counted { self.by_count[row] } else { 0.0 };
                near = by_value_scale * *by_value + by_count_scale * by_count;
                by_threshold -= near;
            }
            *by_value = if active { *by_value } else { 0.0 } + if self.to_input { near } else { 0.0 };
        }
        by_threshold
    }

    /// What is left of dL/dθ_j: the part of the rows in which a feature is not active, as it is in `active`, where H sees their a.
    pub(crate) fn of_silent_rows(&self, threshold: f32, active: usize) -> f32 {
        if !self.sees_activations || threshold >= 0.5 * self.bandwidth {
            return 0.0;
        }
        let silent = (self.by_count.len() - active) as f32;
        -silent * self.by_count[0] / self.bandwidth
    }
}
