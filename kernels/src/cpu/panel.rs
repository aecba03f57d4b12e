//! A panel: neighbouring features with everything that belongs to them.

use std::ops::Range;

use ndarray::Array1;

use crate::outcome::Terms;
use crate::parameters::Parameters;
use crate::path::Path;
use crate::spec::StepSpec;
use crate::state::{NewFeature, State};

use super::blocks::TrainedParameters;
use super::forward::{Buffers, Forward};
use super::frequency::FrequencyWindow;
use super::groups::GroupGradient;
use super::options::{CpuOptions, Purpose};
use super::sparsity::{Sparsity, frequency_terms};

/// One panel of an autoencoder in training.
pub(super) struct Panel {
    /// Which features these are.
    pub(super) features: Range<usize>,
    /// What a step is for these features alone.
    pub(super) spec: StepSpec,
    /// Beside those of the features, a copy of b_dec, and in one panel of a rank W_skip.
    pub(super) parameters: TrainedParameters,
    pub(super) window: FrequencyWindow,
    pub(super) frequencies: Array1<f32>,
    pub(super) steps_since_fired: Array1<u64>,
    /// The path to encode on first: that of the previous step. Which one is taken depends on the batch alone.
    pub(super) expected: Path,
    pub(super) buffers: Buffers,
}

/// What the panels' forward passes have in common.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) options: &'a CpuOptions,
    /// θ of BatchTopK.
    pub(super) threshold: Option<f64>,
    pub(super) purpose: Purpose,
    pub(super) sparsity: &'a Sparsity,
}

impl Panel {
    /// The panel `number` in a step of all features, without numbers.
    pub(super) fn new(spec: &StepSpec, number: usize, has_skip: bool) -> Panel {
        let features = spec.panel_features(number);
        let spec = spec.of_panel(number, has_skip);
        Panel {
            window: FrequencyWindow::new(spec.sparsity_window, spec.batch, spec.features),
            features,
            spec,
            parameters: TrainedParameters::default(),
            frequencies: Array1::default(0),
            steps_since_fired: Array1::default(0),
            expected: Path::Dense,
            buffers: Buffers::default(),
        }
    }

    /// Takes its part of the state of all features.
    pub(super) fn restore(&mut self, state: &State) {
        let (features, skip) = (self.features.clone(), self.spec.skip);
        self.restore_parameters(
            TrainedParameters {
                weights: state.weights.of_features(features.clone(), skip),
                first: state.first_moments.of_features(features.clone(), skip),
                second: state.second_moments.of_features(features, skip),
            },
            state,
        );
    }

    /// As [`Panel::restore`], with these parameters.
    pub(super) fn restore_parameters(&mut self, parameters: TrainedParameters, state: &State) {
        let StepSpec { sparsity_window, batch, .. } = self.spec;
        let features = self.features.clone();
        let window =
            FrequencyWindow::restored_part(sparsity_window, batch, state.window.view(), features.clone());
        let since = state.steps_since_fired.slice(ndarray::s![features]).to_owned();
        self.set(parameters, window, since);
    }

    /// Takes a state of its features alone; `totals` are those of all features.
    pub(super) fn restore_alone(&mut self, state: State, totals: &[u64]) {
        let StepSpec { sparsity_window, batch, .. } = self.spec;
        let window = FrequencyWindow::restored_alone(sparsity_window, batch, state.window.view(), totals);
        let parameters = TrainedParameters {
            weights: state.weights,
            first: state.first_moments,
            second: state.second_moments,
        };
        self.set(parameters, window, state.steps_since_fired);
    }

    fn set(&mut self, parameters: TrainedParameters, window: FrequencyWindow, since: Array1<u64>) {
        self.frequencies = (0..self.spec.features).map(|j| window.frequency(j) as f32).collect();
        (self.parameters, self.window, self.steps_since_fired) = (parameters, window, since);
    }

    /// The state of its features alone, W_skip only `with_skip`.
    pub(super) fn state(&self, step: u64, threshold: Option<f64>, with_skip: bool) -> State {
        let of = |parameters: &Parameters| {
            let mut parameters = parameters.clone();
            parameters.skip = parameters.skip.filter(|_| with_skip);
            parameters
        };
        let TrainedParameters { weights, first, second } = &self.parameters;
        State {
            step,
            weights: of(weights),
            first_moments: of(first),
            second_moments: of(second),
            window: self.window.counts(),
            steps_since_fired: self.steps_since_fired.clone(),
            threshold,
            path_choice: None,
        }
    }

    /// Lets those of `new` that are its own start anew.
    pub(super) fn replace(&mut self, new: &[NewFeature]) {
        let TrainedParameters { weights, first, second } = &mut self.parameters;
        for new in new.iter().filter(|new| self.features.contains(&new.feature)) {
            let at = new.feature - self.features.start;
            new.replace(at, weights, [first, second]);
            self.steps_since_fired[at] = 0;
        }
    }

    pub(super) fn forward<'a>(&'a mut self, pass: Pass<'a>) -> Forward<'a> {
        let Pass { options, threshold, purpose, sparsity } = pass;
        Forward {
            spec: &self.spec,
            options,
            weights: &self.parameters.weights,
            steps_since_fired: &self.steps_since_fired,
            threshold,
            expected: self.expected,
            purpose,
            sparsity,
            is_first: self.features.start == 0,
            buffers: &mut self.buffers,
        }
    }

    /// Takes the newest batch's counts into the running frequencies, `active` being the sum over all panels. Returns the frequency
    /// terms of F = `features`, as far as they are the panel's, and leaves their slopes.
    pub(super) fn count(&mut self, counts: &[u32], active: u64, features: usize) -> Terms {
        self.window.push_part(counts, active);
        let (spec, slopes) = (&self.spec, &mut self.buffers.slopes);
        slopes.resize(spec.features, 0.0);
        let mut terms = Terms::default();
        frequency_terms(&spec.loss, &self.window, spec.batch, features, &mut terms, slopes);
        terms
    }

    /// Notes which features were active in the step that was done, and the path that it took.
    pub(super) fn done(&mut self, counts: &[u32], encoded: Path) {
        self.expected = encoded;
        for (feature, count) in counts.iter().enumerate() {
            self.frequencies[feature] = self.window.frequency(feature) as f32;
            let since = &mut self.steps_since_fired[feature];
            *since = if *count > 0 { 0 } else { *since + 1 };
        }
    }

    /// The panel's part of groups of features that end at `ends`.
    pub(super) fn groups(&self, ends: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
        let mut start = 0;
        let group = |end: usize| {
            let end = end.clamp(self.features.start, self.features.end) - self.features.start;
            let group = start..end;
            start = end;
            group
        };
        ends.map(group).collect()
    }

    /// Where the panel's part of each group ends, with the group's g.
    pub(super) fn group_gradients<'a>(&self, groups: &[GroupGradient<'a>]) -> Vec<GroupGradient<'a>> {
        let parts = self.groups(groups.iter().map(|group| group.end));
        parts
            .into_iter()
            .zip(groups)
            .map(|(part, group)| GroupGradient { end: part.end, g: group.g })
            .collect()
    }

    /// The smallest activation of the pairs that are active.
    pub(super) fn smallest(&self) -> Option<f32> {
        let kept = &self.buffers.selected.kept;
        match self.spec.rank_by_decoder_norm {
            true => {
                let pairs = kept.features.iter().zip(&kept.row_values);
                let norms = &self.buffers.decoder_norms;
                pairs.map(|(feature, a)| a * norms[*feature as usize]).reduce(f32::min)
            }
            false => kept.row_values.iter().copied().reduce(f32::min),
        }
    }
}
