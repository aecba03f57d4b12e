//! Everything that a run resumes from.

use std::ops::Range;

use ndarray::{Array1, Array2, aview1, s};

use crate::error::StepError;
use crate::parameters::Parameters;
use crate::path::PathChoice;
use crate::spec::StepSpec;

/// Everything a run needs to continue, on any engine: bit for bit on the one it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// The weights.
    pub weights: Parameters,
    /// Adam's first moments.
    pub first_moments: Parameters,
    /// Adam's second moments.
    pub second_moments: Parameters,
    /// In how many rows of a batch each feature was active, for the last (at most n) batches, the oldest
    /// first: [batches,F].
    pub window: Array2<u32>,
    /// Steps since each feature was last active, [F].
    pub steps_since_fired: Array1<u64>,
    /// θ of [`Activation::BatchTopK`](crate::activation::Activation::BatchTopK), once it has a value.
    pub threshold: Option<f64>,
    /// How steps choose their path, where that depends on the steps before. A run that goes on without it makes the same
    /// steps within rounding.
    pub path_choice: Option<PathChoice>,
}

/// A rank's share of a [`State`], panel by panel, beside what all ranks have.
#[derive(Debug, Clone, PartialEq)]
pub struct PanelStates {
    /// The rank's panels, each with its number: the state of its features alone. W_skip is in the first of all panels, b_dec in each.
    pub panels: Vec<(usize, State)>,
    /// For each batch of the window, in how many rows features were active, summed over all features.
    pub window_totals: Vec<u64>,
}

/// A feature that starts anew: with these weights, and everything else as before the first step.
#[derive(Debug, Clone, PartialEq)]
pub struct NewFeature {
    /// Which one it is.
    pub feature: usize,
    /// Its row of W_enc transposed, [d].
    pub encoder: Vec<f32>,
    /// Its row of W_dec, [d].
    pub decoder: Vec<f32>,
    /// θ, where features have one.
    pub threshold: f32,
}

impl NewFeature {
    /// Takes its place, `at`, in weights and moments; its bias is 0.
    pub(crate) fn replace(&self, at: usize, weights: &mut Parameters, moments: [&mut Parameters; 2]) {
        for moments in moments {
            moments.encoder.row_mut(at).fill(0.0);
            moments.decoder.row_mut(at).fill(0.0);
            moments.encoder_bias[at] = 0.0;
            moments.threshold.iter_mut().for_each(|threshold| threshold[at] = 0.0);
        }
        weights.encoder.row_mut(at).assign(&aview1(&self.encoder));
        weights.decoder.row_mut(at).assign(&aview1(&self.decoder));
        weights.encoder_bias[at] = 0.0;
        weights.threshold.iter_mut().for_each(|threshold| threshold[at] = self.threshold);
    }
}

impl State {
    /// Lets those of `new` that are among its features, which begin with number `first`, start anew.
    ///
    /// # Panics
    /// If weights have another width.
    pub fn replace(&mut self, first: usize, new: &[NewFeature]) {
        let own = first..first + self.steps_since_fired.len();
        for new in new.iter().filter(|new| own.contains(&new.feature)) {
            let at = new.feature - first;
            new.replace(at, &mut self.weights, [&mut self.first_moments, &mut self.second_moments]);
            self.steps_since_fired[at] = 0;
        }
    }

    /// The state of a run that begins with these weights.
    pub fn new(weights: Parameters) -> State {
        let features = weights.decoder.nrows();
        State {
            step: 0,
            first_moments: weights.zeros_like(),
            second_moments: weights.zeros_like(),
            weights,
            window: Array2::zeros((0, features)),
            steps_since_fired: Array1::zeros(features),
            threshold: None,
            path_choice: None,
        }
    }

    /// The state of some of the features alone.
    pub(crate) fn of_features(&self, features: Range<usize>) -> State {
        let of = |parameters: &Parameters| parameters.of_features(features.clone(), true);
        State {
            weights: of(&self.weights),
            first_moments: of(&self.first_moments),
            second_moments: of(&self.second_moments),
            window: self.window.slice(s![.., features.clone()]).as_standard_layout().into_owned(),
            steps_since_fired: self.steps_since_fired.slice(s![features.clone()]).to_owned(),
            path_choice: None,
            ..*self
        }
    }

    /// Checks that a run of such steps can continue from here.
    ///
    /// # Errors
    /// Names the first array of another shape.
    pub fn check(&self, spec: &StepSpec) -> Result<(), StepError> {
        for parameters in [&self.weights, &self.first_moments, &self.second_moments] {
            parameters.check(spec)?;
        }
        let f = spec.features;
        if self.steps_since_fired.len() != f {
            return Err(StepError::shape("steps_since_fired", &[self.steps_since_fired.len()], &[f]));
        }
        if let Some(threshold) = self.threshold.filter(|threshold| !threshold.is_finite()) {
            return Err(StepError::NonFiniteThreshold { threshold });
        }
        let batches = self.window.nrows().min(spec.sparsity_window);
        if self.window.dim() != (batches, f) || !self.window.is_standard_layout() {
            return Err(StepError::shape("window", self.window.shape(), &[batches, f]));
        }
        Ok(())
    }
}
