//! GPT-2 (Radford et al. 2019): learned positions, LayerNorm in front of attention and MLP.
//!
//! Tensor names and layouts are the checkpoint's: `Conv1D` weights are `[in, out]`. Checkpoints of
//! the bare transformer name tensors `h.0.…`, those with a language-model head `transformer.h.0.…`.

use crate::attention::Contexts;
use crate::graph::{Graph, INPUT, Value, float, int};
use crate::{Checkpoint, Error, HookPoint, ModelConfig, Precision, Site};

/// The serialized graph of `checkpoint` up to `hooks`.
pub(crate) fn graph(
    checkpoint: &Checkpoint,
    hooks: &[HookPoint],
    center: bool,
    precision: Precision,
) -> Result<Vec<u8>, Error> {
    let config = checkpoint.config();
    let prefix = if checkpoint.has("transformer.wte.weight") { "transformer." } else { "" };
    let mut graph = Graph::new(checkpoint, precision);
    let g = &mut graph;
    let contexts = Contexts::new(g);
    let last = hooks.iter().map(|hook| hook.layer).max().unwrap_or(0);

    let mut resid = embed(g, config, prefix, &contexts)?;
    for layer in 0..=last {
        resid = block(g, config, &format!("{prefix}h.{layer}"), layer, &contexts, resid)?;
    }
    Ok(graph.finish(hooks, center))
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

/// One block; returns the residual stream behind it.
fn block(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    name: &str,
    layer: usize,
    contexts: &Contexts,
    resid_pre: Value,
) -> Result<Value, Error> {
    g.hook(layer, Site::ResidPre, &resid_pre);
    let normed = layer_norm(g, config, &format!("{name}.ln_1"), &resid_pre)?;
    let attn_out = attention(g, config, &format!("{name}.attn"), contexts, &normed)?;
    let attn_out = g.residual(attn_out);
    g.hook(layer, Site::AttnOut, &attn_out);

    let resid_mid = g.op("Add", &[&resid_pre, &attn_out], &[]);
    g.hook(layer, Site::ResidMid, &resid_mid);
    let normed = layer_norm(g, config, &format!("{name}.ln_2"), &resid_mid)?;
    let mlp_out = mlp(g, config, &format!("{name}.mlp"), &normed)?;
    let mlp_out = g.residual(mlp_out);
    g.hook(layer, Site::MlpOut, &mlp_out);

    let resid_post = g.op("Add", &[&resid_mid, &mlp_out], &[]);
    g.hook(layer, Site::ResidPost, &resid_post);
    Ok(resid_post)
}

fn layer_norm(g: &mut Graph<'_>, config: &ModelConfig, name: &str, x: &str) -> Result<Value, Error> {
    let weight = g.weight(&format!("{name}.weight"), &[config.d_model])?;
    let bias = g.weight(&format!("{name}.bias"), &[config.d_model])?;
    let attributes = [int("axis", -1), float("epsilon", config.norm_epsilon)];
    let normed = g.op("LayerNormalization", &[x, &weight, &bias], &attributes);
    Ok(g.product_input(normed))
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
    let [q, k, v] = g.op_n("Split", &[&qkv], &[int("axis", -1), int("num_outputs", 3)]);
    let z = contexts.attend(g, config, &q, &k, &v);
    conv1d(g, &format!("{name}.c_proj"), &z, [d, d])
}

fn mlp(g: &mut Graph<'_>, config: &ModelConfig, name: &str, x: &str) -> Result<Value, Error> {
    let (d, d_mlp) = (config.d_model, config.d_mlp);
    let hidden = conv1d(g, &format!("{name}.c_fc"), x, [d, d_mlp])?;
    let active = g.activation(config.activation, &hidden);
    conv1d(g, &format!("{name}.c_proj"), &active, [d_mlp, d])
}

/// x·weight + bias with a weight `[in, out]`.
fn conv1d(g: &mut Graph<'_>, name: &str, x: &str, [rows, columns]: [usize; 2]) -> Result<Value, Error> {
    let weight = g.product_weight(&format!("{name}.weight"), &[rows, columns])?;
    let bias = g.product_weight(&format!("{name}.bias"), &[columns])?;
    Ok(g.op("Gemm", &[x, &weight, &bias], &[]))
}
