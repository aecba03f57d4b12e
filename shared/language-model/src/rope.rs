//! Rotary positions (Su et al. 2021) and how `transformers` stretches them for long contexts
//! (`modeling_rope_utils.py`).

use serde::Deserialize;

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Components of a head that are turned, the first ones.
    pub width: usize,
    /// How the wavelengths are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// Stretching of rotary wavelengths. Dynamic NTK scaling stretches only beyond the positions of the
/// configuration, and contexts end there: it is [`RopeScaling::None`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Longest context before the stretching.
        original_max_positions: f64,
    },
    /// YaRN (Peng et al. 2023): low frequencies divided by `factor`, high ones kept, a ramp over the
    /// components between, and all cosines and sines multiplied.
    Yarn {
        /// The divisor of the low frequencies.
        factor: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        /// The ramp's beginning and end, in pairs of components.
        ramp: [f64; 2],
    },
}

/// The keys of `rope_parameters`, in older files `rope_scaling`.
#[derive(Default, Deserialize)]
pub(crate) struct RopeJson {
    pub(crate) rope_theta: Option<f64>,
    pub(crate) partial_rotary_factor: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
}

impl RopeJson {
    /// The embedding of the first `width` components of each head.
    pub(crate) fn rope(self, theta: f64, width: usize) -> Result<Rope, String> {
        let need = |value: Option<f64>, key: &str| {
            value.filter(|v| *v > 0.0).ok_or_else(|| format!("rope scaling needs a positive `{key}`"))
        };
        let original_max_positions =
            need(self.original_max_position_embeddings, "original_max_position_embeddings");
        let scaling = match self.rope_type.as_deref().unwrap_or("default") {
            "default" | "dynamic" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need(self.factor, "factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: need(self.factor, "factor")?,
                low_freq_factor: need(self.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(self.high_freq_factor, "high_freq_factor")?,
                original_max_positions: original_max_positions?,
            },
            "yarn" => {
                let factor = need(self.factor, "factor")?;
                RopeScaling::Yarn {
                    factor,
                    attention_factor: self.yarn_attention_factor(factor),
                    ramp: self.yarn_ramp(theta, width, original_max_positions?),
                }
            }
            other => {
                return Err(format!(
                    "rope scaling `{other}` is not supported (default, dynamic, linear, llama3, yarn)"
                ));
            }
        };
        Ok(Rope { theta, width, scaling })
    }

    fn yarn_attention_factor(&self, factor: f64) -> f64 {
        let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale.unwrap_or(0.0), self.mscale_all_dim.unwrap_or(0.0)) {
            (Some(given), _, _) => given,
            (None, mscale, all) if mscale != 0.0 && all != 0.0 => scale(mscale) / scale(all),
            (None, _, _) => scale(1.0),
        }
    }

    /// The pairs that turn `beta_fast` and `beta_slow` times within the original positions.
    fn yarn_ramp(&self, theta: f64, width: usize, original_max_positions: f64) -> [f64; 2] {
        let beta = |given: Option<f64>, default: f64| given.filter(|b| *b != 0.0).unwrap_or(default);
        let pair = |turns: f64| {
            let ratio = original_max_positions / (turns * 2.0 * std::f64::consts::PI);
            width as f64 * ratio.ln() / (2.0 * theta.ln())
        };
        let [mut low, mut high] = [pair(beta(self.beta_fast, 32.0)), pair(beta(self.beta_slow, 1.0))];
        if self.truncate.unwrap_or(true) {
            [low, high] = [low.floor(), high.ceil()];
        }
        let [low, high] = [low.max(0.0), high.min(width as f64 - 1.0)];
        [low, if low == high { high + 0.001 } else { high }]
    }
}

impl Rope {
    /// Refuses numbers of which no angle can be made.
    pub(crate) fn check(&self) -> Result<(), String> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let sound = match self.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => positive(factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                [factor, low_freq_factor, high_freq_factor, original_max_positions].into_iter().all(positive)
                    && low_freq_factor < high_freq_factor
            }
            RopeScaling::Yarn { factor, attention_factor, ramp: [low, high] } => {
                positive(factor) && positive(attention_factor) && low.is_finite() && high.is_finite()
            }
        };
        match sound && positive(self.theta) {
            true => Ok(()),
            false => Err(format!(
                "no angles can be made with the rotary base {} and {:?}",
                self.theta, self.scaling
            )),
        }
    }
}
