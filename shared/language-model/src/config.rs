//! What `config.json` says about a model, for every supported family in the same words.

use std::path::Path;

use serde::Deserialize;

use crate::Error;

/// A line of models that share one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// GPT-2 in all sizes, distilgpt2: learned positions, LayerNorm, fused QKV.
    Gpt2,
    /// Llama, SmolLM2, TinyLlama: rotary positions, RMSNorm, grouped-query attention, SwiGLU.
    Llama,
}

/// The kind of normalisation in front of attention and MLP.
///
/// It decides whether centring the residual stream is harmless: LayerNorm subtracts the mean over
/// the components itself, RMSNorm does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Subtracts the mean, divides by the standard deviation.
    LayerNorm,
    /// Divides by the root of the mean square.
    RmsNorm,
}

/// The non-linearity of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU with the error function.
    Gelu,
    /// max(x, 0).
    Relu,
    /// x · sigmoid(x), also called swish.
    Silu,
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How the wavelengths are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// Stretching of rotary wavelengths, as `transformers` defines it (`modeling_rope_utils.py`).
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
}

/// Sizes and kinds of a model's parts, from `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which graph the model has.
    pub family: Family,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; equal to `heads` without grouped-query attention.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub d_mlp: usize,
    /// Rows of the token embedding.
    pub vocabulary: usize,
    /// Longest context.
    pub max_positions: usize,
    /// Kind of the norms.
    pub norm: NormKind,
    /// Added to the variance (or mean square) in the norms.
    pub norm_epsilon: f32,
    /// Non-linearity of the MLP.
    pub activation: Activation,
    /// Rotary embedding; `None` for learned positions.
    pub rope: Option<Rope>,
    /// The token in front of every context, if the model has one.
    pub bos_token: Option<u32>,
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, the architecture is not supported, or the
    /// configuration uses a variant of it whose graph would differ from the one built here.
    pub fn read(path: &Path) -> Result<ModelConfig, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        ModelConfig::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<ModelConfig, Error> {
        let invalid = |problem: String| Error::Config { path: path.to_path_buf(), problem };
        let kind: ModelType = serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?;
        let config = match kind.model_type.as_str() {
            "gpt2" => {
                serde_json::from_str::<Gpt2Json>(text).map_err(|e| e.to_string()).and_then(Gpt2Json::config)
            }
            "llama" => {
                serde_json::from_str::<LlamaJson>(text).map_err(|e| e.to_string()).and_then(LlamaJson::config)
            }
            other => {
                return Err(Error::UnsupportedArchitecture {
                    path: path.to_path_buf(),
                    architecture: other.to_string(),
                });
            }
        };
        let config = config.map_err(invalid)?;
        config.check_sizes().map_err(invalid)?;
        Ok(config)
    }

    fn check_sizes(&self) -> Result<(), String> {
        let sizes = [
            ("number of layers", self.layers),
            ("width", self.d_model),
            ("number of heads", self.heads),
            ("number of key/value heads", self.kv_heads),
            ("head width", self.head_dim),
            ("MLP width", self.d_mlp),
            ("vocabulary", self.vocabulary),
            ("number of positions", self.max_positions),
        ];
        // ONNX dimensions are i64 and products of two sizes appear as shapes.
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..=1 << 30).contains(size)) {
            return Err(format!("the {name} is {size}"));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} query heads cannot share {} key/value heads evenly",
                self.heads, self.kv_heads
            ));
        }
        if self.rope.is_some() && !self.head_dim.is_multiple_of(2) {
            return Err(format!("rotary positions need an even head width, not {}", self.head_dim));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct ModelType {
    model_type: String,
}

/// GPT-2's keys, with `transformers`' defaults for those that may be left out.
#[derive(Deserialize)]
struct Gpt2Json {
    n_layer: usize,
    n_embd: usize,
    n_head: usize,
    n_positions: usize,
    vocab_size: usize,
    n_inner: Option<usize>,
    layer_norm_epsilon: Option<f32>,
    activation_function: Option<String>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    bos_token_id: Option<u32>,
}

impl Gpt2Json {
    fn config(self) -> Result<ModelConfig, String> {
        if self.scale_attn_weights == Some(false) || self.scale_attn_by_inverse_layer_idx == Some(true) {
            return Err("attention scaled other than by 1/sqrt(head width) is not supported".into());
        }
        let head_dim = even_split(self.n_embd, self.n_head)?;
        Ok(ModelConfig {
            family: Family::Gpt2,
            layers: self.n_layer,
            d_model: self.n_embd,
            heads: self.n_head,
            kv_heads: self.n_head,
            head_dim,
            d_mlp: self.n_inner.unwrap_or(4 * self.n_embd),
            vocabulary: self.vocab_size,
            max_positions: self.n_positions,
            norm: NormKind::LayerNorm,
            norm_epsilon: self.layer_norm_epsilon.unwrap_or(1e-5),
            activation: activation(self.activation_function.as_deref().unwrap_or("gelu_new"))?,
            rope: None,
            bos_token: self.bos_token_id,
        })
    }
}

/// Llama's keys; older files keep RoPE's in `rope_theta` and `rope_scaling`, newer ones in
/// `rope_parameters`.
#[derive(Deserialize)]
struct LlamaJson {
    num_hidden_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeJson>,
    rope_parameters: Option<RopeJson>,
    bos_token_id: Option<u32>,
}

#[derive(Deserialize)]
struct RopeJson {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl LlamaJson {
    fn config(self) -> Result<ModelConfig, String> {
        let head_dim = match self.head_dim {
            Some(width) => width,
            None => even_split(self.hidden_size, self.num_attention_heads)?,
        };
        let rope = self.rope_parameters.or(self.rope_scaling);
        let theta = rope.as_ref().and_then(|r| r.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let scaling = rope.map_or(Ok(RopeScaling::None), RopeJson::scaling)?;
        Ok(ModelConfig {
            family: Family::Llama,
            layers: self.num_hidden_layers,
            d_model: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            d_mlp: self.intermediate_size,
            vocabulary: self.vocab_size,
            max_positions: self.max_position_embeddings,
            norm: NormKind::RmsNorm,
            norm_epsilon: self.rms_norm_eps.unwrap_or(1e-6),
            activation: activation(self.hidden_act.as_deref().unwrap_or("silu"))?,
            rope: Some(Rope { theta, scaling }),
            bos_token: self.bos_token_id,
        })
    }
}

impl RopeJson {
    fn scaling(self) -> Result<RopeScaling, String> {
        let need = |value: Option<f64>, key: &str| {
            value.filter(|v| *v > 0.0).ok_or_else(|| format!("rope scaling needs a positive `{key}`"))
        };
        match self.rope_type.as_deref().unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: need(self.factor, "factor")? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: need(self.factor, "factor")?,
                low_freq_factor: need(self.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(self.high_freq_factor, "high_freq_factor")?,
                original_max_positions: need(
                    self.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            }),
            other => Err(format!("rope scaling `{other}` is not supported (default, linear, llama3)")),
        }
    }
}

fn even_split(width: usize, heads: usize) -> Result<usize, String> {
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("a width of {width} does not divide into {heads} heads"));
    }
    Ok(width / heads)
}

fn activation(name: &str) -> Result<Activation, String> {
    match name {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(format!(
            "activation function `{other}` is not supported \
             (gelu_new, gelu_pytorch_tanh, gelu_fast, gelu, relu, silu)"
        )),
    }
}
