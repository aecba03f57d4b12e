//! The second half of a forward pass: x̂ from the activations, its error, and g.

use rayon::prelude::*;

use crate::error::StepError;
use crate::loss::Mse;
use crate::parameters::numbers;
use crate::path::Path;
use crate::stats::Sums;

use super::decode::{
    Decode, Finish, RowActivity, RowError, decode_sparse, decode_sparse_group, finish, sparse_activity,
};
use super::dense::{add_skip, decode_dense, decode_dense_group, dense_activity};
use super::forward::{Buffers, Forward};

impl Forward<'_> {
    /// Calls `work` with what the decode's first half reads.
    fn with_decode<R>(&mut self, work: impl FnOnce(Decode<'_>, &mut Buffers) -> R) -> R {
        let (spec, weights) = (self.spec, self.weights);
        if spec.loss.weight_by_decoder_norm {
            self.measure_decoder();
        }
        let decoder_norms = std::mem::take(&mut self.buffers.decoder_norms);
        let decode = Decode {
            weights: numbers(&weights.decoder),
            bias: numbers(&weights.decoder_bias),
            decoder_norms: spec.loss.weight_by_decoder_norm.then_some(&decoder_norms[..]),
            sparsity: self.sparsity,
        };
        let result = work(decode, self.buffers);
        self.buffers.decoder_norms = decoder_norms;
        result
    }

    /// x̂ of the rows `input` [B,d] from their activations: the decode's first half.
    pub(super) fn decode(&mut self, path: Path, input: &[f32]) {
        let (isa, width) = (self.options.isa, self.spec.width);
        let products = self.options.products(self.purpose);
        let rows = input.len() / width;
        self.with_decode(|decode, buffers| {
            let Buffers { selected, activations, sums, gradient, activity, packed, .. } = buffers;
            gradient.resize(rows * width, 0.0);
            activity.resize(rows, RowActivity::default());
            match path {
                Path::Sparse => decode_sparse(isa, decode, &selected.kept, gradient, activity),
                Path::Dense => {
                    decode_dense(products, decode, activations, &sums.rows, packed, gradient, activity)
                }
            }
        });
        self.skip(input);
    }

    /// Adds to x̂ in the buffers what a skip connection makes of `input` [B,d].
    pub(super) fn skip(&mut self, input: &[f32]) {
        if let Some(skip) = &self.weights.skip {
            let products = self.options.products(self.purpose);
            let Buffers { packed, gradient, .. } = &mut *self.buffers;
            add_skip(products, input, numbers(skip), self.spec.width, packed, gradient);
        }
    }

    /// Both halves of the decode for all prefixes: each one's x̂ is the one before and its own group's part. Leaves the sums of
    /// g, and of the last the residual if that is asked for; returns the reconstruction term of all together.
    pub(super) fn decode_prefixes(
        &mut self,
        path: Path,
        input: &[f32],
        target: &[f32],
        residual: bool,
    ) -> f64 {
        let (isa, spec) = (self.options.isa, *self.spec);
        let rows = target.len() / spec.width;
        let gradient = &mut self.buffers.gradient;
        gradient.clear();
        gradient.extend((0..rows).flat_map(|_| &self.weights.decoder_bias));
        self.skip(input);
        let products = self.options.products(self.purpose);
        self.with_decode(|decode, buffers| {
            let Buffers { selected, activations, sums, gradient, prefixes, activity, packed, .. } = buffers;
            activity.resize(rows, RowActivity::default());
            match path {
                Path::Sparse => sparse_activity(decode, &selected.kept, activity),
                Path::Dense => dense_activity(decode, activations, &sums.rows, activity),
            }
            prefixes.resize_with(spec.prefixes.widths().len(), Vec::new);
            let mut start = 0;
            for (at, end) in spec.prefixes.ends(spec.features).enumerate() {
                match path {
                    Path::Sparse => decode_sparse_group(isa, decode, &selected.kept, start..end, gradient),
                    Path::Dense => {
                        decode_dense_group(products, decode, activations, start..end, packed, gradient)
                    }
                }
                if let Some(prefix) = prefixes.get_mut(at) {
                    prefix.clone_from(gradient);
                }
                start = end;
            }
        });
        if residual {
            self.keep_residual(target);
        }
        let weight = spec.prefixes.weight();
        let mut prefixes = std::mem::take(&mut self.buffers.prefixes);
        let mut term = 0.0;
        // The last reconstruction's errors are those that stay.
        for prefix in &mut prefixes {
            std::mem::swap(prefix, &mut self.buffers.gradient);
            self.finish(target);
            term += self.reconstruction_term();
            std::mem::swap(prefix, &mut self.buffers.gradient);
        }
        self.finish(target);
        term += self.reconstruction_term();

        // From the widest to the narrowest.
        let mut wider: Option<&[f32]> = None;
        let all = prefixes.iter_mut().chain([&mut self.buffers.gradient]).rev();
        for g in all {
            match wider {
                Some(wider) => {
                    g.par_iter_mut().zip(wider).for_each(|(g, wider)| *g = weight as f32 * *g + wider)
                }
                None => g.par_iter_mut().for_each(|g| *g *= weight as f32),
            }
            wider = Some(g);
        }
        self.buffers.prefixes = prefixes;
        weight * term
    }

    /// The trained error of the reconstruction whose errors lie in the buffers.
    pub(super) fn reconstruction_term(&self) -> f64 {
        let Buffers { norms, errors, .. } = &*self.buffers;
        let mse = Finish { target: &[], norms, mse: self.spec.loss.mse };
        let rows = errors.iter().enumerate().map(|(row, error)| {
            let denominator = f64::from(mse.denominator(row, self.spec.width));
            if denominator > 0.0 { f64::from(error.squared_error) / denominator } else { 0.0 }
        });
        rows.sum()
    }

    /// From x̂ to g and the rows' errors: the decode's second half.
    pub(super) fn finish(&mut self, target: &[f32]) {
        let Buffers { norms, gradient, errors, .. } = &mut *self.buffers;
        errors.resize(target.len() / self.spec.width, RowError::default());
        let input = Finish { target, norms, mse: self.spec.loss.mse };
        finish(self.options.isa, input, gradient, errors);
    }

    /// An error if the trained MSE divides by a norm of 0.
    pub(super) fn check_denominators(&self) -> Result<(), StepError> {
        let mse = self.spec.loss.mse;
        let norms = match mse {
            Mse::Sum => return Ok(()),
            Mse::Centered => &self.buffers.norms.centered,
            Mse::Uncentered => &self.buffers.norms.squared,
        };
        match norms.iter().position(|norm| *norm == 0.0) {
            Some(row) => Err(StepError::ZeroNorm { row, mse }),
            None => Ok(()),
        }
    }

    /// Sums what the pass left in the buffers.
    pub(super) fn sums(&self) -> Sums {
        let Buffers { norms, activity, errors, .. } = &*self.buffers;
        let mut sums =
            Sums { features: self.spec.features as u64, rows: errors.len() as u64, ..Sums::default() };
        let width = self.spec.width as f64;
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
        if let Some(penalty) = self.sparsity.of_mean(sums.l0()) {
            sums.penalty = sums.rows as f64 * penalty;
        }
        let rows = sums.rows as f64;
        let rounding =
            norms.sum.iter().zip(&norms.mean).map(|(sum, mean)| (sum / rows - f64::from(*mean)).powi(2));
        sums.deviation = (sums.deviation - rows * rounding.sum::<f64>()).max(0.0);
        sums
    }
}
