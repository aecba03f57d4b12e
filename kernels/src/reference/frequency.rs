//! How often features fire, and the terms of that.

use crate::loss::LossSpec;
use crate::stats::{FREQUENCY_FLOOR, log10_frequency};

/// The firing fractions of the last n batches and the running frequency s_j that follows from them.
#[derive(Debug, Clone)]
pub struct FrequencyWindow {
    length: usize,
    batches: std::collections::VecDeque<Vec<f64>>,
}

impl FrequencyWindow {
    /// An empty window of n = `length` batches.
    pub fn new(length: usize) -> FrequencyWindow {
        FrequencyWindow { length, batches: std::collections::VecDeque::new() }
    }

    /// Adds a batch's activations [B,F] and returns s_j [F]: the mean of f_t,j over the batches t of
    /// the window, the new one included, with |log10 mean_j f_t,j − log10 mean_j f_now,j| < 0.5.
    pub fn push(&mut self, features: usize, activations: &[f64]) -> Vec<f64> {
        let rows = activations.len() / features;
        let fractions = (0..features)
            .map(|j| (0..rows).filter(|i| activations[i * features + j] > 0.0).count() as f64 / rows as f64)
            .collect();
        self.batches.push_back(fractions);
        if self.batches.len() > self.length {
            self.batches.pop_front();
        }
        let level = |batch: &Vec<f64>| (batch.iter().sum::<f64>() / features as f64).log10();
        let newest = self.batches.len() - 1;
        let now = level(&self.batches[newest]);
        let counted: Vec<&Vec<f64>> = self
            .batches
            .iter()
            .enumerate()
            .filter(|(t, batch)| *t == newest || (level(batch) - now).abs() < 0.5)
            .map(|(_, batch)| batch)
            .collect();
        (0..features)
            .map(|j| counted.iter().map(|batch| batch[j]).sum::<f64>() / counted.len() as f64)
            .collect()
    }
}

/// The terms of the mean density and of the mean logarithmic density at the running frequencies s [F].
pub fn density_penalties(loss: &LossSpec, frequencies: &[f64]) -> f64 {
    let features = frequencies.len() as f64;
    let (sum, logs) =
        frequencies.iter().fold((0.0, 0.0), |(sum, logs), s| (sum + s, logs + log10_frequency(*s)));
    (loss.mean_density * sum + loss.log_density * logs) / features
}

/// The min- and max-sparsity terms at the running frequencies s [F].
pub fn frequency_penalties(loss: &LossSpec, frequencies: &[f64]) -> (f64, f64) {
    let log = |s: &f64| log10_frequency(*s);
    let min = loss.min_sparsity.map_or(0.0, |p| {
        p.coefficient * frequencies.iter().map(|s| (p.target.log10() - log(s)).max(0.0)).sum::<f64>()
    });
    let max = loss.max_sparsity.map_or(0.0, |p| {
        p.coefficient * frequencies.iter().map(|s| (log(s) - p.target.log10()).max(0.0)).sum::<f64>()
    });
    (min, max)
}

/// The derivative of all terms of the frequencies by s̃_j at the running frequencies, [F]. The straight-through gradient of
/// feature j is that of this constant times s̃_j = (1/B) Σ_i a_ij/(a_ij + ε).
pub fn frequency_slopes(loss: &LossSpec, frequencies: &[f64]) -> Vec<f64> {
    frequencies
        .iter()
        .map(|s| {
            let s = s + FREQUENCY_FLOOR;
            let too_low = loss.min_sparsity.filter(|p| s < p.target).map_or(0.0, |p| p.coefficient);
            let too_high = loss.max_sparsity.filter(|p| s > p.target).map_or(0.0, |p| p.coefficient);
            let log_density = loss.log_density / frequencies.len() as f64;
            let mean_density = loss.mean_density / frequencies.len() as f64;
            mean_density + (too_high - too_low + log_density) / (std::f64::consts::LN_10 * s)
        })
        .collect()
}
