//! The last part of a forward pass, when the panels' sums have met: from x̂ to g and the rows' errors, and what is reported of them.

use rayon::prelude::*;

use crate::error::StepError;
use crate::loss::Mse;
use crate::spec::StepSpec;
use crate::stats::Sums;

use super::decode::{Finish, RowActivity, RowError, finish};
use super::isa::Isa;
use super::peers::Peers;
use super::rows::{RowNorms, first_non_finite_row, row_norms};
use super::sparsity::Sparsity;

/// What is known of the rows of a batch. All ranks know the same.
#[derive(Default)]
pub(super) struct Rows {
    /// Of the target.
    pub(super) norms: RowNorms,
    /// X − b_dec, with the pre-bias.
    pub(super) shifted: Vec<f32>,
    /// x̂, then g, [B,d].
    pub(super) gradient: Vec<f32>,
    /// g of the prefixes, but for the last: [B,d] each, the sum over all that are as wide or wider.
    pub(super) prefixes: Vec<Vec<f32>>,
    /// x − x̂ [B,d], where a loss over dead features reads it.
    pub(super) residual: Vec<f32>,
    /// dL/dH_ij, the same for all features of a row: [B].
    pub(super) by_count: Vec<f32>,
    pub(super) activity: Vec<RowActivity>,
    pub(super) errors: Vec<RowError>,
}

/// An error if a row holds what is not a number.
pub(super) fn check_rows(rows: &[f32], width: usize) -> Result<(), StepError> {
    match first_non_finite_row(rows, width) {
        Some(row) => Err(StepError::NonFiniteRow { row }),
        None => Ok(()),
    }
}

impl Rows {
    /// Checks the rows and measures those of `target`.
    pub(super) fn begin(
        &mut self,
        isa: Isa,
        input: &[f32],
        target: &[f32],
        width: usize,
    ) -> Result<(), StepError> {
        check_rows(input, width)?;
        if !std::ptr::eq(input, target) {
            check_rows(target, width)?;
        }
        row_norms(isa, target, width, &mut self.norms);
        Ok(())
    }

    /// From the `reconstructions` of the prefixes, the last one being that of all features, as this rank's panels have them, to the
    /// rows' errors and, if they are asked for, the sums of g of all rows and the residual. Returns the reconstruction term of all
    /// together if there are several.
    pub(super) fn finish(
        &mut self,
        peers: &Peers,
        isa: Isa,
        spec: &StepSpec,
        target: &[f32],
        reconstructions: Vec<Vec<f32>>,
        (gradients_of_all, residual): (bool, bool),
    ) -> Result<Option<f64>, StepError> {
        let (width, mse, count) = (spec.width, spec.loss.mse, reconstructions.len());
        let rows = target.len() / width;
        let own = peers.own_rows(rows);
        let (mut gradients, mut term) = (Vec::with_capacity(count), 0.0);
        for (at, mut values) in reconstructions.into_iter().enumerate() {
            peers.to_owners(&mut values, rows)?;
            if residual && at + 1 == count {
                self.residual.clear();
                self.residual.extend(target.iter().zip(&values).map(|(x, xhat)| x - *xhat));
            }
            self.errors.resize(own.len(), RowError::default());
            let input = Finish { target, norms: &self.norms, mse, first: own.start };
            finish(isa, input, &mut values, &mut self.errors);
            // The last reconstruction's errors are those that stay.
            peers.spread(&mut self.errors, rows, 1)?;
            if count > 1 {
                term += self.reconstruction_term(mse, width);
            }
            gradients.push(values);
        }
        let weight = spec.prefixes.weight();
        if count > 1 {
            // From the widest to the narrowest.
            let mut wider: Option<&[f32]> = None;
            for g in gradients.iter_mut().rev() {
                match wider {
                    Some(wider) => {
                        g.par_iter_mut().zip(wider).for_each(|(g, wider)| *g = weight as f32 * *g + wider)
                    }
                    None => g.par_iter_mut().for_each(|g| *g *= weight as f32),
                }
                wider = Some(g);
            }
        }
        for g in gradients.iter_mut().filter(|_| gradients_of_all) {
            peers.spread(g, rows, width)?;
        }
        self.gradient = gradients.pop().unwrap_or_default();
        self.prefixes = gradients;
        Ok((count > 1).then_some(weight * term))
    }

    /// Takes what is active in each row as this rank's panels have it, and leaves what all panels together have.
    pub(super) fn count(
        &mut self,
        peers: &Peers,
        spec: &StepSpec,
        sparsity: &Sparsity,
        own: Vec<RowActivity>,
    ) -> Result<(), StepError> {
        self.activity = own;
        if spec.panels == 1 {
            return Ok(());
        }
        let rows = self.activity.len();
        if peers.are_several() {
            let numbers = |row: &RowActivity| [f64::from(row.active), row.l1, row.penalty];
            let mut numbers: Vec<f64> = self.activity.iter().flat_map(numbers).collect();
            peers.to_owners(&mut numbers, rows)?;
            peers.spread(&mut numbers, rows, 3)?;
            let row = |row: &[f64]| RowActivity { active: row[0] as u32, l1: row[1], penalty: row[2] };
            self.activity = numbers.chunks_exact(3).map(row).collect();
        }
        // Not every penalty of a row is the sum of the panels'.
        let weighted = spec.loss.weight_by_decoder_norm;
        for row in &mut self.activity {
            row.penalty = sparsity.of_sums(row.active as usize, row.l1, weighted).unwrap_or(row.penalty);
        }
        Ok(())
    }

    /// What the squared errors of each row are divided by in the reconstruction term, [B].
    pub(super) fn denominators(&self, mse: Mse, width: usize) -> Vec<f32> {
        let mse = Finish { target: &[], norms: &self.norms, mse, first: 0 };
        (0..self.norms.squared.len()).map(|row| mse.denominator(row, width)).collect()
    }

    /// The trained error of the reconstruction whose errors lie here.
    fn reconstruction_term(&self, mse: Mse, width: usize) -> f64 {
        let mse = Finish { target: &[], norms: &self.norms, mse, first: 0 };
        let rows = self.errors.iter().enumerate().map(|(row, error)| {
            let denominator = f64::from(mse.denominator(row, width));
            if denominator > 0.0 { f64::from(error.squared_error) / denominator } else { 0.0 }
        });
        rows.sum()
    }

    /// An error if the trained MSE divides by a norm of 0.
    pub(super) fn check_denominators(&self, mse: Mse) -> Result<(), StepError> {
        let norms = match mse {
            Mse::Sum => return Ok(()),
            Mse::Centered => &self.norms.centered,
            Mse::Uncentered => &self.norms.squared,
        };
        match norms.iter().position(|norm| *norm == 0.0) {
            Some(row) => Err(StepError::ZeroNorm { row, mse }),
            None => Ok(()),
        }
    }

    /// Sums what the pass left here.
    pub(super) fn sums(&self, spec: &StepSpec, sparsity: &Sparsity) -> Sums {
        let Rows { norms, activity, errors, .. } = self;
        let mut sums = Sums { features: spec.features as u64, rows: errors.len() as u64, ..Sums::default() };
        let width = spec.width as f64;
        for (row, (activity, error)) in activity.iter().zip(errors).enumerate() {
            let squared_error = f64::from(error.squared_error);
            let norm = f64::from(norms.squared[row]).sqrt();
            let reconstructed_norm = f64::from(error.squared_norm).sqrt();
            let centered = f64::from(norms.centered[row]);
            sums.squared_error += squared_error;
            sums.squared_norm += f64::from(norms.squared[row]);
            sums.active += u64::from(activity.active);
            sums.active_squared += u64::from(activity.active) * u64::from(activity.active);
            sums.l1 += activity.l1;
            sums.penalty += activity.penalty;
            sums.deviation += centered * centered;
            if centered > 0.0 {
                sums.rows_off_mean += 1;
                sums.centered_error += squared_error / (width * centered);
            }
            if norm > 0.0 {
                sums.rows_off_zero += 1;
                sums.uncentered_error += squared_error / (width * norm);
                sums.norm_ratio += reconstructed_norm / norm;
                if reconstructed_norm > 0.0 {
                    sums.cosine += f64::from(error.dot) / (norm * reconstructed_norm);
                }
            }
        }
        // The distances are those from x̄ as float32.
        if let Some(penalty) = sparsity.of_mean(sums.l0()) {
            sums.penalty = sums.rows as f64 * penalty;
        }
        let rows = sums.rows as f64;
        let rounding =
            norms.sum.iter().zip(&norms.mean).map(|(sum, mean)| (sum / rows - f64::from(*mean)).powi(2));
        sums.deviation = (sums.deviation - rows * rounding.sum::<f64>()).max(0.0);
        sums
    }
}
