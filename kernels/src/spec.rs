//! What a training step is, apart from the loss: sizes, optimizer, decoder norm, schedule.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::activation::Activation;
use crate::dead::DeadLoss;
use crate::loss::{FrequencyPenalty, LossSpec, Penalty};
use crate::prefixes::Prefixes;

/// How the decoder's rows W_dec_j [d] are treated around the optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecoderNorm {
    /// The gradient's component along W_dec_j is removed; after the step W_dec_j ← W_dec_j/‖W_dec_j‖.
    Unit,
    /// The same, and the encoder's row and bias of j are multiplied by the removed norm, so that the
    /// autoencoder's function does not change.
    Tied,
    /// Neither projection nor normalisation.
    Free,
}

/// Adam (Kingma & Ba 2015), without weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    /// β₁, in [0, 1).
    pub beta1: f64,
    /// β₂, in [0, 1).
    pub beta2: f64,
    /// ε, added to the root of the bias-corrected second moment.
    pub epsilon: f64,
}

impl Default for Adam {
    /// β = (0.9, 0.999), ε = 1e-8.
    fn default() -> Adam {
        Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// The constants of Adam at one step, as every backend uses them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// lr / (1 − β₁^t).
    pub(crate) rate: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    /// 1 − β₁, 1 − β₂: from float64, where the difference is exact.
    pub(crate) rest1: f32,
    pub(crate) rest2: f32,
    /// 1 / √(1 − β₂^t).
    pub(crate) root_correction: f32,
    pub(crate) epsilon: f32,
}

impl AdamStep {
    /// Step number t = `step`, counted from 1.
    pub fn new(adam: &Adam, lr: f64, step: u64) -> AdamStep {
        let t = step as f64;
        AdamStep {
            rate: (lr / (1.0 - adam.beta1.powf(t))) as f32,
            beta1: adam.beta1 as f32,
            beta2: adam.beta2 as f32,
            rest1: (1.0 - adam.beta1) as f32,
            rest2: (1.0 - adam.beta2) as f32,
            root_correction: (1.0 / (1.0 - adam.beta2.powf(t)).sqrt()) as f32,
            epsilon: adam.epsilon as f32,
        }
    }
}

/// Everything constant over a training run that a step needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepSpec {
    /// d, the width of a row.
    pub width: usize,
    /// F, the number of features.
    pub features: usize,
    /// B, the rows of a training batch.
    pub batch: usize,
    /// Whether the encoder reads x − b_dec instead of x.
    pub pre_bias: bool,
    /// Whether x̂ has a part that is linear in the input: x̂ = a W_dec + b_dec + x W_skipᵀ. For transcoders: x itself would be
    /// reconstructed by the identity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip: bool,
    /// Which features of a row are active.
    #[serde(default, skip_serializing_if = "Activation::is_relu")]
    pub activation: Activation,
    /// The loss.
    pub loss: LossSpec,
    /// The decoder's norm.
    pub decoder_norm: DecoderNorm,
    /// The optimizer.
    pub adam: Adam,
    /// n, the number of batches over which the running frequency s_j is taken.
    pub sparsity_window: usize,
    /// The prefixes of the features that reconstruct by themselves.
    #[serde(default, skip_serializing_if = "Prefixes::is_empty")]
    pub prefixes: Prefixes,
    /// Whether TopK and BatchTopK take the largest z·‖W_dec_j‖ in place of the largest z, as AuxK then does; a itself is what it
    /// is otherwise. BatchTopK's θ is one of z·‖W_dec_j‖ then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rank_by_decoder_norm: bool,
    /// What trains features that have stopped firing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<DeadLoss>,
    /// The largest norm of the gradient of all weights together, the decoder's projected before; a longer one is scaled down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_clip: Option<f64>,
    /// Into how many [panels](crate::panels) the features are divided, each of them summed by itself: a power of two. 1 is no
    /// division.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub panels: usize,
}

fn one() -> usize {
    1
}

fn is_one(panels: &usize) -> bool {
    *panels == 1
}

/// Added to a gradient's norm before it divides, as torch's `clip_grad_norm_` does.
pub(crate) const CLIP_FLOOR: f64 = 1e-6;

impl StepSpec {
    /// A ReLU autoencoder with unit decoder rows, without a pre-bias, trained by `loss` alone; n = 300.
    pub fn new(width: usize, features: usize, batch: usize, loss: LossSpec) -> StepSpec {
        StepSpec {
            width,
            features,
            batch,
            pre_bias: false,
            skip: false,
            activation: Activation::Relu,
            loss,
            decoder_norm: DecoderNorm::Unit,
            adam: Adam::default(),
            sparsity_window: 300,
            prefixes: Prefixes::default(),
            rank_by_decoder_norm: false,
            dead: None,
            gradient_clip: None,
            panels: 1,
        }
    }
}

impl StepSpec {
    /// What a step is for the features of one panel alone, which has W_skip only `with_skip`.
    pub fn of_panel(&self, panel: usize, with_skip: bool) -> StepSpec {
        StepSpec { features: self.panel_features(panel).len(), skip: self.skip && with_skip, ..*self }
    }

    /// The features of a panel.
    pub fn panel_features(&self, panel: usize) -> Range<usize> {
        // At most 2^32 features in as many panels.
        let start = |panel: usize| (panel as u64 * self.features as u64 / self.panels as u64) as usize;
        start(panel)..start(panel + 1)
    }
}

/// The values that may change from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The learning rate of this step.
    pub lr: f64,
    /// Multiplies the sparsity penalty's coefficient (its warm-up).
    pub coefficient_scale: f64,
    /// Multiplies the ε of `approx-l0` and `log` and that of the frequency penalties' surrogate.
    pub epsilon_scale: f64,
}

impl Schedule {
    /// The given learning rate, coefficients and ε unscaled.
    pub fn constant(lr: f64) -> Schedule {
        Schedule { lr, coefficient_scale: 1.0, epsilon_scale: 1.0 }
    }
}

/// A [`StepSpec`] that describes no possible step.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{name} is {value}, but {rule}")]
pub struct SpecError {
    name: &'static str,
    value: String,
    rule: &'static str,
}

/// An error unless `ok`: `name` is `value`, but `rule`.
fn require(ok: bool, name: &'static str, value: impl ToString, rule: &'static str) -> Result<(), SpecError> {
    if ok { Ok(()) } else { Err(SpecError { name, value: value.to_string(), rule }) }
}

impl StepSpec {
    /// Checks every field's range.
    ///
    /// # Errors
    /// Names the first field that is out of range, its value and the range.
    pub fn validate(&self) -> Result<(), SpecError> {
        // Row and feature numbers are stored in 32 bits, a batch's counts are summed over the window in 32.
        const COUNTED: usize = u32::MAX as usize;
        const COUNT: &str = "it must be at least 1 and at most 4,294,967,295";
        // Within these limits no size in bytes, summed over arrays and runs, comes near 64 bits.
        const ARRAY: usize = 1 << 40;
        const ARRAY_RULE: &str = "an array has at most 2^40 numbers: lower one of them";
        const CELLS: usize = 1 << 46;
        let StepSpec { width, features, batch, sparsity_window, .. } = *self;
        require((1..=COUNTED).contains(&width), "width", width, COUNT)?;
        require((1..=COUNTED).contains(&features), "features", features, COUNT)?;
        require((1..=COUNTED).contains(&batch), "batch", batch, COUNT)?;
        require((1..=COUNTED).contains(&sparsity_window), "sparsity_window", sparsity_window, COUNT)?;
        for (name, product, most, rule) in [
            (
                "batch × sparsity_window",
                batch.saturating_mul(sparsity_window),
                COUNTED,
                "firing counts are held in 32 bits and are at most 4,294,967,295: lower one of them",
            ),
            ("width × features", width.saturating_mul(features), ARRAY, ARRAY_RULE),
            ("width × width", width.saturating_mul(if self.skip { width } else { 1 }), ARRAY, ARRAY_RULE),
            ("batch × width", batch.saturating_mul(width), ARRAY, ARRAY_RULE),
            ("features × sparsity_window", features.saturating_mul(sparsity_window), ARRAY, ARRAY_RULE),
            (
                "batch × features",
                batch.saturating_mul(features),
                CELLS,
                "a batch has at most 2^46 pairs of a row and a feature: lower one of them",
            ),
        ] {
            require(product <= most, name, product, rule)?;
        }
        require(
            self.panels.is_power_of_two() && self.panels <= features,
            "panels",
            self.panels,
            "it must be a power of two and at most the number of features",
        )?;
        match self.activation {
            Activation::Relu => {}
            Activation::TopK { k } | Activation::BatchTopK { k, .. } => require(
                (1..=features).contains(&k),
                "k",
                k,
                "it must be at least 1 and at most the number of features",
            )?,
            Activation::JumpRelu { bandwidth, .. } => positive("bandwidth", bandwidth)?,
        }
        if let Activation::BatchTopK { threshold, .. } = self.activation {
            let fits = threshold.rate > 0.0 && threshold.rate <= 1.0;
            require(fits, "threshold rate", threshold.rate, "it must be above 0 and at most 1")?;
        }
        require(
            !self.loss.penalty.counts() || self.activation.has_thresholds(),
            "penalty",
            format!("{:?}", self.loss.penalty),
            "only jump-relu's thresholds have a gradient by the number of active features",
        )?;
        require(
            !(self.loss.penalty.sees_activations()
                && matches!(self.activation, Activation::JumpRelu { to_input: true, .. })),
            "penalty",
            format!("{:?}", self.loss.penalty),
            "its pseudo-derivative reaches the thresholds alone, so jump-relu must not have it reach the input",
        )?;
        require(
            !self.rank_by_decoder_norm || self.activation.takes_the_largest(),
            "rank_by_decoder_norm",
            true,
            "only topk and batch-topk rank features",
        )?;
        if let Some(clip) = self.gradient_clip {
            require(clip.is_finite() && clip > 0.0, "gradient_clip", clip, "it must be a positive number")?;
        }
        require(
            self.prefixes.fit(features),
            "prefixes",
            format!("{:?}", self.prefixes.widths()),
            "each must be wider than the one before, the first at least 1 wide and the last below the number of features",
        )?;
        if let Some(dead) = &self.dead {
            dead.check(&self.activation).map_err(|(name, value, rule)| SpecError { name, value, rule })?;
        }
        self.loss.validate()?;
        self.adam.validate()
    }
}

fn positive(name: &'static str, value: f32) -> Result<(), SpecError> {
    require(value.is_finite() && value > 0.0, name, value, "it must be a positive number")
}

impl LossSpec {
    fn validate(&self) -> Result<(), SpecError> {
        match self.penalty {
            Penalty::ApproxL0 { epsilon } | Penalty::Log { epsilon } => positive("epsilon", epsilon)?,
            Penalty::Tanh { scale } => positive("tanh scale", scale)?,
            Penalty::Quadratic { target } | Penalty::MeanQuadratic { target } => {
                positive("target L0", target)?
            }
            Penalty::None | Penalty::L1 | Penalty::Step => {}
        }
        let coefficient = |name, value: f64| {
            require(value.is_finite() && value >= 0.0, name, value, "it must be a number of at least 0")
        };
        coefficient("coefficient", self.coefficient)?;
        coefficient("mean density coefficient", self.mean_density)?;
        coefficient("log density coefficient", self.log_density)?;
        positive("frequency_epsilon", self.frequency_epsilon)?;
        for FrequencyPenalty { coefficient: value, target } in
            [self.min_sparsity, self.max_sparsity].into_iter().flatten()
        {
            coefficient("frequency penalty coefficient", value)?;
            require(
                target > 0.0 && target <= 1.0,
                "frequency target",
                target,
                "it must be above 0 and at most 1",
            )?;
        }
        Ok(())
    }
}

impl Adam {
    fn validate(&self) -> Result<(), SpecError> {
        for (name, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            require((0.0..1.0).contains(&beta), name, beta, "it must be at least 0 and below 1")?;
        }
        require(
            self.epsilon.is_finite() && self.epsilon > 0.0,
            "Adam's epsilon",
            self.epsilon,
            "it must be a positive number",
        )
    }
}
