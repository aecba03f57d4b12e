//! GPT-NeoX (Black et al. 2022) and Pythia: rotary positions on part of each head, LayerNorm, and attention and MLP that both
//! read the block's input.
//!
//! Tensor names and layouts are the checkpoint's: `Linear` weights are `[out, in]`, and a head's query, key
//! and value lie together in `query_key_value`. Checkpoints with a language-model head name tensors
//! `gpt_neox.layers.0.…`, those without `layers.0.…`.

use serde::Deserialize;

use crate::attention::Contexts;
use crate::block::block;
use crate::config::{activation, even_split};
use crate::graph::{Graph, INPUT, Value, int};
use crate::head::Head;
use crate::operators::Place;
use crate::rope::RopeJson;
use crate::rotation::Rotation;
use crate::{Checkpoint, Error, Family, ModelConfig, NormKind};

/// Reads `config.json`.
pub(crate) fn config(text: &str) -> Result<ModelConfig, String> {
    serde_json::from_str::<Json>(text).map_err(|error| error.to_string())?.config()
}

/// The keys of `config.json`; older files keep RoPE's in `rotary_emb_base` and `rotary_pct`.
#[derive(Deserialize)]
struct Json {
    num_hidden_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    rotary_emb_base: Option<f64>,
    rotary_pct: Option<f64>,
    rope_scaling: Option<RopeJson>,
    rope_parameters: Option<RopeJson>,
    use_parallel_residual: Option<bool>,
    bos_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
}

impl Json {
    fn config(self) -> Result<ModelConfig, String> {
        let head_dim = even_split(self.hidden_size, self.num_attention_heads)?;
        let rope = self.rope_parameters.or(self.rope_scaling).unwrap_or_default();
        let theta = rope.rope_theta.or(self.rotary_emb_base).unwrap_or(10_000.0);
        let partial = rope.partial_rotary_factor.or(self.rotary_pct).unwrap_or(0.25);
        Ok(ModelConfig {
            family: Family::GptNeox,
            layers: self.num_hidden_layers,
            d_model: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_attention_heads,
            head_dim,
            d_mlp: self.intermediate_size,
            vocabulary: self.vocab_size,
            max_positions: self.max_position_embeddings,
            norm: NormKind::LayerNorm,
            norm_epsilon: self.layer_norm_eps.unwrap_or(1e-5),
            activation: activation(self.hidden_act.as_deref().unwrap_or("gelu"))?,
            rope: Some(rope.rope(theta, (head_dim as f64 * partial) as usize)?),
            parallel: self.use_parallel_residual.unwrap_or(true),
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
    let tokens =
        g.embedding(&format!("{prefix}embed_in.weight"), &[config.vocabulary, config.d_model], INPUT)?;
    let mut resid = g.rows(&tokens, config.d_model);
    // The table of angles is as wide as config.json says; by now a weight has said so, too: a head is a part of a row.
    let rotation = config.rope.map(|rope| Rotation::new(g, rope, contexts));
    let rotation = rotation.ok_or_else(|| g.impossible("a GPT-NeoX has rotary positions"))?;
    for layer in 0..=last {
        let name = |part: &str| format!("{prefix}layers.{layer}.{part}");
        resid = block(
            g,
            config,
            layer,
            resid,
            [name("input_layernorm"), name("post_attention_layernorm")],
            |g, x| attention(g, config, &name("attention"), contexts, &rotation, x),
            |g, x| mlp(g, config, &name("mlp"), x),
        )?;
    }
    Ok(resid)
}

/// Where the final norm and the unembedding lie.
pub(crate) fn head(checkpoint: &Checkpoint) -> Head {
    let prefix = prefix(checkpoint);
    Head::new(format!("{prefix}final_layer_norm"), format!("{prefix}embed_in.weight"), "embed_out.weight")
}

/// What stands in front of the transformer's tensors.
fn prefix(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.has("gpt_neox.embed_in.weight") { "gpt_neox." } else { "" }
}

fn attention(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    name: &str,
    contexts: &Contexts,
    rotation: &Rotation,
    x: &str,
) -> Result<Value, Error> {
    let (d, heads) = (config.d_model, config.heads);
    let qkv = g.linear(&format!("{name}.query_key_value"), x, [3 * d, d])?;
    if g.own_operators() {
        let width = config.head_dim;
        let place = Place { first: [0, width, 2 * width], stride: 3 * width };
        let z = g.own_attention(config, [&qkv; 3], &contexts.shape, place, Some(rotation.angles()));
        return g.linear(&format!("{name}.dense"), &z, [d, d]);
    }
    let qkv = contexts.split(g, &qkv, &[heads, 3 * config.head_dim]);
    let [q, k, v] = g.op_n("Split", &[&qkv], &[int("axis", -1), int("num_outputs", 3)]);
    let q = rotation.apply(g, config, contexts, &q, heads);
    let k = rotation.apply(g, config, contexts, &k, heads);
    let z = contexts.attend(g, config, &q, &k, &v);
    g.linear(&format!("{name}.dense"), &z, [d, d])
}

fn mlp(g: &mut Graph<'_>, config: &ModelConfig, name: &str, x: &str) -> Result<Value, Error> {
    let (d, d_mlp) = (config.d_model, config.d_mlp);
    let hidden = g.linear(&format!("{name}.dense_h_to_4h"), x, [d_mlp, d])?;
    let active = g.activation(config.activation, &hidden);
    g.linear(&format!("{name}.dense_4h_to_h"), &active, [d, d_mlp])
}
