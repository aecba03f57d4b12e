//! GPT-2 (Radford et al. 2019): learned positions, LayerNorm in front of attention and MLP.
//!
//! Tensor names and layouts are the checkpoint's: `Conv1D` weights are `[in, out]`. Checkpoints of
//! the bare transformer name tensors `h.0.…`, those with a language-model head `transformer.h.0.…`.

use serde::Deserialize;

use crate::attention::Contexts;
use crate::block::block;
use crate::config::{activation, even_split};
use crate::graph::{Graph, INPUT, Value, int};
use crate::head::Head;
use crate::operators::Place;
use crate::{Checkpoint, Error, Family, ModelConfig, NormKind};

/// Reads `config.json`.
pub(crate) fn config(text: &str) -> Result<ModelConfig, String> {
    serde_json::from_str::<Json>(text).map_err(|error| error.to_string())?.config()
}

/// GPT-2's keys, with `transformers`' defaults for optional ones.
#[derive(Deserialize)]
struct Json {
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
    tie_word_embeddings: Option<bool>,
}

impl Json {
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
            parallel: false,
            bos_token: self.bos_token_id,
            tied_embeddings: self.tie_word_embeddings.unwrap_or(true),
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
    let mut resid = embed(g, config, prefix, contexts)?;
    for layer in 0..=last {
        let name = |part: &str| format!("{prefix}h.{layer}.{part}");
        resid = block(
            g,
            config,
            layer,
            resid,
            [name("ln_1"), name("ln_2")],
            |g, x| attention(g, config, &name("attn"), contexts, x),
            |g, x| mlp(g, config, &name("mlp"), x),
        )?;
    }
    Ok(resid)
}

/// Where the final norm and the unembedding lie.
pub(crate) fn head(checkpoint: &Checkpoint) -> Head {
    let prefix = prefix(checkpoint);
    Head::new(format!("{prefix}ln_f"), format!("{prefix}wte.weight"), "lm_head.weight")
}

/// What stands in front of the transformer's tensors.
fn prefix(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.has("transformer.wte.weight") { "transformer." } else { "" }
}

/// wte[ids] + wpe[positions], `[rows, d_model]`.
fn embed(g: &mut Graph<'_>, config: &ModelConfig, prefix: &str, contexts: &Contexts) -> Result<Value, Error> {
    let d = config.d_model;
    let tokens = g.embedding(&format!("{prefix}wte.weight"), &[config.vocabulary, d], INPUT)?;
    let positions =
        g.embedding(&format!("{prefix}wpe.weight"), &[config.max_positions, d], &contexts.positions)?;
    let sum = g.op("Add", &[&tokens, &positions], &[]);
    Ok(g.rows(&sum, d))
}

fn attention(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    name: &str,
    contexts: &Contexts,
    x: &str,
) -> Result<Value, Error> {
    let d = config.d_model;
    let qkv = conv1d(g, &format!("{name}.c_attn"), x, [d, 3 * d])?;
    if g.own_operators() {
        let place = Place { first: [0, d, 2 * d], stride: config.head_dim };
        let z = g.own_attention(config, [&qkv; 3], &contexts.shape, place, None);
        return conv1d(g, &format!("{name}.c_proj"), &z, [d, d]);
    }
    let [q, k, v] = g.op_n("Split", &[&qkv], &[int("axis", -1), int("num_outputs", 3)]);
    let z = contexts.attend(g, config, &q, &k, &v);
    conv1d(g, &format!("{name}.c_proj"), &z, [d, d])
}

fn mlp(g: &mut Graph<'_>, config: &ModelConfig, name: &str, x: &str) -> Result<Value, Error> {
    let (d, d_mlp) = (config.d_model, config.d_mlp);
    let (weight, bias) = (format!("{name}.c_fc.weight"), format!("{name}.c_fc.bias"));
    let weight = (weight.as_str(), [d, d_mlp], Some(bias.as_str()));
    let active = match g.own_active_product(x, weight, false, config.activation)? {
        Some(active) => active,
        None => {
            let hidden = conv1d(g, &format!("{name}.c_fc"), x, [d, d_mlp])?;
            g.activation(config.activation, &hidden)
        }
    };
    conv1d(g, &format!("{name}.c_proj"), &active, [d_mlp, d])
}

/// x·weight + bias with a weight `[in, out]`.
fn conv1d(g: &mut Graph<'_>, name: &str, x: &str, [rows, columns]: [usize; 2]) -> Result<Value, Error> {
    g.product(x, &format!("{name}.weight"), [rows, columns], Some(&format!("{name}.bias")), false)
}
