//! A training run.

use super::dead::dead_loss;
use super::forward::{forward, rank_factors};
use super::frequency::{FrequencyWindow, frequency_slopes};
use super::gradient::{clip_gradient, gradients, normalise_decoder, project_decoder_gradient};
use super::loss::{Loss, loss};
use super::parameters::{Batch, Parameters};
use crate::activation::Activation;
use crate::spec::{Schedule, StepSpec};

/// A training run in float64: weights, Adam's moments and the frequency window.
#[derive(Debug, Clone)]
pub struct Trainer {
    /// What a step is.
    pub spec: StepSpec,
    /// The weights.
    pub weights: Parameters,
    /// Adam's first moments.
    pub first: Parameters,
    /// Adam's second moments.
    pub second: Parameters,
    /// The frequency window.
    pub window: FrequencyWindow,
    /// Steps since each feature was last active, [F].
    pub steps_since_fired: Vec<u64>,
    /// BatchTopK's θ.
    pub threshold: Option<f64>,
    /// Steps done.
    pub steps: u64,
}

impl Trainer {
    /// A run that has done no step.
    pub fn new(spec: StepSpec, weights: Parameters) -> Trainer {
        let zeros = weights.zeros_like();
        let window = FrequencyWindow::new(spec.sparsity_window);
        let steps_since_fired = vec![0; spec.features];
        let (first, threshold) = (zeros.clone(), None);
        Trainer { spec, weights, first, second: zeros, window, steps_since_fired, threshold, steps: 0 }
    }

    /// One step on a batch: forward, running frequency, loss, backward, projection, clipping, Adam,
    /// decoder norm. Returns the loss before the step.
    pub fn step<'a>(&mut self, batch: impl Into<Batch<'a>>, schedule: &Schedule) -> Loss {
        let (spec, batch) = (&self.spec, batch.into());
        let pass = forward(spec, &self.weights, batch.input);
        let frequencies = self.window.push(spec.features, &pass.activations);
        let mut value = loss(spec, schedule, &self.weights, batch.target, &pass, &frequencies);
        let slopes = frequency_slopes(&spec.loss, &frequencies);
        let mut gradient = gradients(spec, schedule, &self.weights, batch, &pass, &slopes);
        let fires = |j: usize| (0..spec.batch).any(|i| pass.activations[i * spec.features + j] > 0.0);
        let fired: Vec<bool> = (0..spec.features).map(fires).collect();
        if let Some(loss) = &spec.dead {
            let since = self.steps_since_fired.iter().zip(&fired);
            let dead: Vec<bool> = since.map(|(since, fired)| loss.is_dead(*since, *fired)).collect();
            let (term, more) = dead_loss(spec, &self.weights, batch, &pass, &dead);
            value.dead = term;
            for (gradient, more) in gradient.tensors_mut().into_iter().zip(more.tensors()) {
                gradient.iter_mut().zip(more).for_each(|(gradient, more)| *gradient += more);
            }
        }
        project_decoder_gradient(spec, &self.weights, &mut gradient);
        clip_gradient(spec, &mut gradient);
        self.steps += 1;
        if let Activation::BatchTopK { threshold, .. } = spec.activation {
            let factors = rank_factors(spec, &self.weights);
            let ranked = pass.activations.iter().enumerate().map(|(at, a)| a * factors[at % spec.features]);
            let positive = ranked.filter(|a| *a > 0.0).map(|a| a as f32);
            self.threshold = threshold.after(self.steps, self.threshold, positive.reduce(f32::min));
        }
        for (since, fired) in self.steps_since_fired.iter_mut().zip(&fired) {
            *since = if *fired { 0 } else { *since + 1 };
        }
        self.adam(&gradient, schedule.lr);
        normalise_decoder(&self.spec, &mut self.weights);
        value
    }

    fn adam(&mut self, gradient: &Parameters, lr: f64) {
        let adam = &self.spec.adam;
        let correction1 = 1.0 - adam.beta1.powi(self.steps as i32);
        let correction2 = 1.0 - adam.beta2.powi(self.steps as i32);
        let weights = self.weights.tensors_mut().into_iter();
        let moments = self.first.tensors_mut().into_iter().zip(self.second.tensors_mut());
        for ((w, (m, v)), g) in weights.zip(moments).zip(gradient.tensors()) {
            for at in 0..g.len() {
                m[at] = adam.beta1 * m[at] + (1.0 - adam.beta1) * g[at];
                v[at] = adam.beta2 * v[at] + (1.0 - adam.beta2) * g[at] * g[at];
                let root = (v[at] / correction2).sqrt() + adam.epsilon;
                w[at] -= lr * (m[at] / correction1) / root;
            }
        }
        self.weights.threshold.iter_mut().for_each(|threshold| *threshold = threshold.max(0.0));
    }
}
