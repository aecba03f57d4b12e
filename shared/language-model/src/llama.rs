//! Llama (Touvron et al. 2023) and its kin: rotary positions, RMSNorm, grouped-query attention,
//! SwiGLU.
//!
//! Tensor names and layouts are the checkpoint's: `Linear` weights are `[out, in]`. Checkpoints
//! with a language-model head name tensors `model.layers.0.…`, those without `layers.0.…`.

use serde::Deserialize;

use crate::attention::Contexts;
use crate::block::block;
use crate::config::{activation, even_split};
use crate::graph::{Graph, INPUT, Value};
use crate::head::Head;
use crate::operators::Place;
use crate::rope::RopeJson;
use crate::rotation::Rotation;
use crate::{Checkpoint, Error, Family, ModelConfig, NormKind};

/// Reads `config.json`. Mistral's and Qwen2's attention can be over a window.
pub(crate) fn config(text: &str) -> Result<ModelConfig, String> {
    let kind: Kind = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut json: Json = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match kind.model_type.as_str() {
        "mistral" => {
            // Left out it is 4096, null there is none: the two look the same in `json`.
            let keys: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
            if keys.get("sliding_window").is_none() {
                json.sliding_window = Some(4096);
            }
            json.config(|_| true)
        }
        "qwen2" => json.config(|used| used == Some(true)),
        _ => json.config(|_| false),
    }
}

#[derive(Deserialize)]
struct Kind {
    model_type: String,
}

/// Llama's keys; older files keep RoPE's in `rope_theta` and `rope_scaling`, newer ones in
/// `rope_parameters`.
#[derive(Deserialize)]
struct Json {
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
    use_sliding_window: Option<bool>,
    sliding_window: Option<usize>,
    bos_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
}

impl Json {
    fn config(self, window_in_use: impl Fn(Option<bool>) -> bool) -> Result<ModelConfig, String> {
        let head_dim = match self.head_dim {
            Some(width) => width,
            None => even_split(self.hidden_size, self.num_attention_heads)?,
        };
        let rope = self.rope_parameters.or(self.rope_scaling).unwrap_or_default();
        let theta = rope.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let partial = rope.partial_rotary_factor.unwrap_or(1.0);
        // Attention over a window is plain attention in contexts that are no longer than it.
        let window = self.sliding_window.filter(|_| window_in_use(self.use_sliding_window));
        Ok(ModelConfig {
            family: Family::Llama,
            layers: self.num_hidden_layers,
            d_model: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            d_mlp: self.intermediate_size,
            vocabulary: self.vocab_size,
            max_positions: window
                .map_or(self.max_position_embeddings, |w| w.min(self.max_position_embeddings)),
            norm: NormKind::RmsNorm,
            norm_epsilon: self.rms_norm_eps.unwrap_or(1e-6),
            activation: activation(self.hidden_act.as_deref().unwrap_or("silu"))?,
            rope: Some(rope.rope(theta, (head_dim as f64 * partial) as usize)?),
            parallel: false,
            bos_token: self.bos_token_id,
            tied_embeddings: self.tie_word_embeddings.unwrap_or(false),
        })
    }
}

/// The blocks 0 to `last`, with their hooks; returns the residual stream after them.
pub(crate) fn blocks(
    g: &mut Graph<'_>,
    checkpoint: &Checkpoint,
    contexts: &Contexts,
    last: usize,
) -> Result<Value, Error> {
    let config = checkpoint.config();
    let prefix = prefix(checkpoint);
    let mut resid = embed(g, config, prefix)?;
    // The table of angles is as wide as config.json says, so the weights have to say so first.
    let queries = [config.heads * config.head_dim, config.d_model];
    checkpoint.tensor(&format!("{prefix}layers.0.self_attn.q_proj.weight"), &queries)?;
    let rotation = config.rope.map(|rope| Rotation::new(g, rope, contexts));
    let rotation = rotation.ok_or_else(|| g.impossible("a Llama has rotary positions"))?;
    for layer in 0..=last {
        let name = |part: &str| format!("{prefix}layers.{layer}.{part}");
        resid = block(
            g,
            config,
            layer,
            resid,
            [name("input_layernorm"), name("post_attention_layernorm")],
            |g, x| attention(g, config, &name("self_attn"), contexts, &rotation, x),
            |g, x| mlp(g, config, &name("mlp"), x),
        )?;
    }
    Ok(resid)
}

/// Where the final norm and the unembedding lie.
pub(crate) fn head(checkpoint: &Checkpoint) -> Head {
    let prefix = prefix(checkpoint);
    Head::new(format!("{prefix}norm"), format!("{prefix}embed_tokens.weight"), "lm_head.weight")
}

/// What stands in front of the transformer's tensors.
fn prefix(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.has("model.embed_tokens.weight") { "model." } else { "" }
}

/// embed_tokens[ids], `[rows, d_model]`.
fn embed(g: &mut Graph<'_>, config: &ModelConfig, prefix: &str) -> Result<Value, Error> {
    let shape = [config.vocabulary, config.d_model];
    let tokens = g.embedding(&format!("{prefix}embed_tokens.weight"), &shape, INPUT)?;
    Ok(g.rows(&tokens, config.d_model))
}

fn attention(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    name: &str,
    contexts: &Contexts,
    rotation: &Rotation,
    x: &str,
) -> Result<Value, Error> {
    let d = config.d_model;
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let names = ["q_proj", "k_proj", "v_proj"].map(|part| format!("{name}.{part}"));
    let shapes = [[queries, d], [keys, d], [keys, d]];
    if let Some(qkv) = g.own_linears(names.each_ref().map(String::as_str), x, shapes)? {
        let place = Place { first: [0, queries, queries + keys], stride: config.head_dim };
        let z = g.own_attention(config, [&qkv; 3], &contexts.shape, place, Some(rotation.angles()));
        return g.linear(&format!("{name}.o_proj"), &z, [d, queries]);
    }
    let q = g.linear(&format!("{name}.q_proj"), x, [queries, d])?;
    let k = g.linear(&format!("{name}.k_proj"), x, [keys, d])?;
    let v = g.linear(&format!("{name}.v_proj"), x, [keys, d])?;
    let q = rotation.apply(g, config, contexts, &q, config.heads);
    let k = rotation.apply(g, config, contexts, &k, config.kv_heads);
    let z = contexts.attend(g, config, &q, &k, &v);
    g.linear(&format!("{name}.o_proj"), &z, [d, queries])
}

/// down(silu(gate(x)) · up(x)).
fn mlp(g: &mut Graph<'_>, config: &ModelConfig, name: &str, x: &str) -> Result<Value, Error> {
    let (d, d_mlp) = (config.d_model, config.d_mlp);
    let (gate, up) = (format!("{name}.gate_proj"), format!("{name}.up_proj"));
    let hidden = match g.own_gated_product(x, [&gate, &up], [d_mlp, d], config.activation)? {
        Some(hidden) => hidden,
        None => {
            let gate = g.linear(&gate, x, [d_mlp, d])?;
            let up = g.linear(&up, x, [d_mlp, d])?;
            let gate = g.activation(config.activation, &gate);
            g.op("Mul", &[&gate, &up], &[])
        }
    };
    g.linear(&format!("{name}.down_proj"), &hidden, [d, d_mlp])
}
