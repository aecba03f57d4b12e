//! What `config.json` says about a model, in the same terms for every supported family.

use crate::{Family, Rope};

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
    /// Whether attention and MLP read the same input; there is no `resid_mid` then.
    pub parallel: bool,
    /// The token in front of every context, if the model has one.
    pub bos_token: Option<u32>,
    /// Whether the unembedding is the token embedding.
    pub tied_embeddings: bool,
}

impl ModelConfig {
    /// Refuses sizes of which no graph can be built.
    pub(crate) fn check_sizes(&self) -> Result<(), String> {
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
        if !(self.norm_epsilon >= 0.0 && self.norm_epsilon.is_finite()) {
            return Err(format!("the epsilon of the norms is {}", self.norm_epsilon));
        }
        if let Some(rope) = &self.rope {
            rope.check()?;
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} query heads cannot share {} key/value heads evenly",
                self.heads, self.kv_heads
            ));
        }
        if let Some(Rope { width, .. }) = self.rope
            && !(width.is_multiple_of(2) && (2..=self.head_dim).contains(&width))
        {
            let head = self.head_dim;
            return Err(format!(
                "rotary positions need an even part of a head, not {width} of {head} components"
            ));
        }
        Ok(())
    }
}

/// `width / heads`, which must come out even.
pub(crate) fn even_split(width: usize, heads: usize) -> Result<usize, String> {
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("a width of {width} does not divide into {heads} heads"));
    }
    Ok(width / heads)
}

/// The activation function that `transformers` calls `name`.
pub(crate) fn activation(name: &str) -> Result<Activation, String> {
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
