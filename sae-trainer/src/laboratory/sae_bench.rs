//! What SAEBench's "core" evaluation reports of rows and their reconstructions, under its names (sae_bench 0.6.0,
//! `evals/core/main.py`). Its batches matter: some of its numbers are means of batches' means.

use ndarray::{ArrayView2, Axis, Zip};
use serde::Serialize;

use super::predictions::Mean;
use crate::engine::SparseActivations;

/// Below this a norm counts as 1 where it divides.
const SHORTEST_NORM: f64 = 1e-4;

/// Sums over batches.
#[derive(Debug, Clone, Default)]
pub(super) struct CoreSums {
    tokens: f64,
    batches: f64,
    norm_in: f64,
    norm_out: f64,
    norm_ratio: f64,
    cosine: f64,
    l0: f64,
    l1: f64,
    mse: f64,
    explained_legacy: f64,
    /// Sums over batches of means.
    bias: f64,
    residual: f64,
    squares: f64,
    squares_of_components: Vec<f64>,
    firings: Vec<u64>,
}

/// Its groups of metrics that need no language model.
#[derive(Debug, Clone, Serialize)]
struct CoreRows {
    reconstruction_quality: ReconstructionQuality,
    shrinkage: Shrinkage,
    sparsity: Sparsity,
    misc_metrics: Misc,
}

/// All of its groups but the weights' own, which [`super::eval`] has.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Core {
    model_behavior_preservation: Behavior,
    model_performance_preservation: Performance,
    #[serde(flatten)]
    rows: CoreRows,
    token_stats: TokenStats,
}

/// How far the predictions move.
#[derive(Debug, Clone, Serialize)]
struct Behavior {
    kl_div_score: f64,
    kl_div_with_ablation: f64,
    kl_div_with_sae: f64,
}

/// How good they are.
#[derive(Debug, Clone, Serialize)]
struct Performance {
    ce_loss_score: f64,
    ce_loss_with_ablation: f64,
    ce_loss_with_sae: f64,
    ce_loss_without_sae: f64,
}

/// On how many tokens.
#[derive(Debug, Clone, Serialize)]
struct TokenStats {
    total_tokens_eval_reconstruction: usize,
    total_tokens_eval_sparsity_variance: usize,
}

/// How near the reconstruction is.
#[derive(Debug, Clone, Serialize)]
struct ReconstructionQuality {
    /// 1 - E‖e‖² / (E‖x‖² - (E x_k²)²), means over components too: wrong in that version and kept as it is there.
    explained_variance: f64,
    /// Mean over rows of 1 - ‖e‖² / ‖x - x̄‖², x̄ the batch's mean.
    explained_variance_legacy: f64,
    mse: f64,
    cossim: f64,
}

/// How much shorter it is.
#[derive(Debug, Clone, Serialize)]
struct Shrinkage {
    l2_norm_in: f64,
    l2_norm_out: f64,
    l2_ratio: f64,
    relative_reconstruction_bias: f64,
}

/// How many features are active.
#[derive(Debug, Clone, Serialize)]
struct Sparsity {
    l0: f64,
    l1: f64,
}

/// How often they are.
#[derive(Debug, Clone, Serialize)]
struct Misc {
    freq_over_1_percent: f64,
    freq_over_10_percent: f64,
    normalized_freq_over_1_percent: f64,
    normalized_freq_over_10_percent: f64,
    frac_alive: f64,
}

impl CoreSums {
    pub(super) fn new(width: usize, features: usize) -> CoreSums {
        CoreSums {
            squares_of_components: vec![0.0; width],
            firings: vec![0; features],
            ..CoreSums::default()
        }
    }

    /// Adds a batch: rows [n, d], their reconstructions and their active features.
    pub(super) fn add(
        &mut self,
        rows: ArrayView2<'_, f32>,
        reconstructions: ArrayView2<'_, f32>,
        active: &SparseActivations,
    ) {
        let n = rows.nrows() as f64;
        if n == 0.0 {
            return;
        }
        let mean = rows.mapv(f64::from).mean_axis(Axis(0)).expect("there are rows");
        let (mut residual, mut squares, mut products, mut squares_out) = (0.0, 0.0, 0.0, 0.0);
        for (x, xhat) in rows.rows().into_iter().zip(reconstructions.rows()) {
            let (mut error, mut deviation, mut square, mut square_out, mut product) =
                (0.0, 0.0, 0.0, 0.0, 0.0);
            Zip::from(x).and(xhat).and(&mean).for_each(|x, xhat, mean| {
                let (x, xhat) = (f64::from(*x), f64::from(*xhat));
                error += (x - xhat).powi(2);
                deviation += (x - mean).powi(2);
                square += x * x;
                square_out += xhat * xhat;
                product += x * xhat;
            });
            let (norm, norm_out) = (square.sqrt(), square_out.sqrt());
            self.norm_in += norm;
            self.norm_out += norm_out;
            self.norm_ratio += norm_out / if norm < SHORTEST_NORM { 1.0 } else { norm };
            self.cosine += product / (norm * norm_out);
            self.mse += error / n;
            self.explained_legacy += 1.0 - error / deviation;
            residual += error;
            squares += square;
            products += product;
            squares_out += square_out;
        }
        for (sum, column) in self.squares_of_components.iter_mut().zip(rows.columns()) {
            *sum += column.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n;
        }
        self.bias += squares_out / products;
        self.residual += residual / n;
        self.squares += squares / n;
        self.l0 += active.features.len() as f64;
        self.l1 += active.values.iter().map(|a| f64::from(*a)).sum::<f64>();
        active.features.iter().for_each(|feature| self.firings[*feature as usize] += 1);
        self.tokens += n;
        self.batches += 1.0;
    }

    /// All metrics, with the loss without, with zeros and with the autoencoder, and the divergence with zeros and with the
    /// autoencoder, on so many tokens.
    pub(super) fn metrics(
        &self,
        [clean, zero, own]: [Mean; 3],
        [kl_zero, kl]: [Mean; 2],
        tokens: usize,
    ) -> Core {
        Core {
            model_behavior_preservation: Behavior {
                kl_div_score: (kl_zero.mean - kl.mean) / kl_zero.mean,
                kl_div_with_ablation: kl_zero.mean,
                kl_div_with_sae: kl.mean,
            },
            model_performance_preservation: Performance {
                ce_loss_score: (zero.mean - own.mean) / (zero.mean - clean.mean),
                ce_loss_with_ablation: zero.mean,
                ce_loss_with_sae: own.mean,
                ce_loss_without_sae: clean.mean,
            },
            rows: self.rows(),
            token_stats: TokenStats {
                total_tokens_eval_reconstruction: tokens,
                total_tokens_eval_sparsity_variance: tokens,
            },
        }
    }

    fn rows(&self) -> CoreRows {
        let per_token = |sum: f64| sum / self.tokens;
        let width = self.squares_of_components.len() as f64;
        let component = self.squares_of_components.iter().sum::<f64>() / width / self.batches;
        let total = self.squares / self.batches - component.powi(2);
        let density: Vec<f64> = self.firings.iter().map(|count| *count as f64 / self.tokens).collect();
        let all: f64 = density.iter().sum();
        let over = |limit: f64| density.iter().filter(move |density| **density > limit);
        let share = |limit: f64| over(limit).count() as f64 / density.len() as f64;
        let normalized = |limit: f64| over(limit).sum::<f64>() / all;
        CoreRows {
            reconstruction_quality: ReconstructionQuality {
                explained_variance: 1.0 - self.residual / self.batches / total,
                explained_variance_legacy: per_token(self.explained_legacy),
                mse: per_token(self.mse),
                cossim: per_token(self.cosine),
            },
            shrinkage: Shrinkage {
                l2_norm_in: per_token(self.norm_in),
                l2_norm_out: per_token(self.norm_out),
                l2_ratio: per_token(self.norm_ratio),
                relative_reconstruction_bias: self.bias / self.batches,
            },
            sparsity: Sparsity { l0: per_token(self.l0), l1: per_token(self.l1) },
            misc_metrics: Misc {
                freq_over_1_percent: share(0.01),
                freq_over_10_percent: share(0.1),
                normalized_freq_over_1_percent: normalized(0.01),
                normalized_freq_over_10_percent: normalized(0.1),
                frac_alive: share(0.0),
            },
        }
    }
}
