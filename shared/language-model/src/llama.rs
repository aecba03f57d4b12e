//! Llama (Touvron et al. 2023) and its kin: rotary positions, RMSNorm, grouped-query attention,
//! SwiGLU.
//!
//! Tensor names and layouts are the checkpoint's: `Linear` weights are `[out, in]`. Checkpoints
//! with a language-model head name tensors `model.layers.0.…`, those without `layers.0.…`.

use crate::attention::Contexts;
use crate::graph::{Graph, INPUT, Value, float, int};
use crate::{Checkpoint, Error, HookPoint, ModelConfig, Precision, Rope, RopeScaling, Site};

/// The serialized graph of `checkpoint` up to `hooks`.
pub(crate) fn graph(
    checkpoint: &Checkpoint,
    hooks: &[HookPoint],
    center: bool,
    precision: Precision,
) -> Result<Vec<u8>, Error> {
    let config = checkpoint.config();
    let prefix = if checkpoint.has("model.embed_tokens.weight") { "model." } else { "" };
    let mut graph = Graph::new(checkpoint, precision);
    let g = &mut graph;
    let contexts = Contexts::new(g);
    let rotation = rotation(g, config, &contexts);
    let last = hooks.iter().map(|hook| hook.layer).max().unwrap_or(0);

    let mut resid = embed(g, config, prefix)?;
    for layer in 0..=last {
        resid = block(g, config, &format!("{prefix}layers.{layer}"), layer, &contexts, &rotation, resid)?;
    }
    Ok(graph.finish(hooks, center))
}

/// embed_tokens[ids], `[rows, d_model]`.
fn embed(g: &mut Graph<'_>, config: &ModelConfig, prefix: &str) -> Result<Value, Error> {
    let shape = [config.vocabulary, config.d_model];
    let tokens = g.embedding(&format!("{prefix}embed_tokens.weight"), &shape, INPUT)?;
    Ok(g.rows(&tokens, config.d_model))
}

/// One block; returns the residual stream behind it.
fn block(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    name: &str,
    layer: usize,
    contexts: &Contexts,
    rotation: &Rotation,
    resid_pre: Value,
) -> Result<Value, Error> {
    g.hook(layer, Site::ResidPre, &resid_pre);
    let normed = rms_norm(g, config, &format!("{name}.input_layernorm"), &resid_pre)?;
    let attn_out = attention(g, config, &format!("{name}.self_attn"), contexts, rotation, &normed)?;
    let attn_out = g.residual(attn_out);
    g.hook(layer, Site::AttnOut, &attn_out);

    let resid_mid = g.op("Add", &[&resid_pre, &attn_out], &[]);
    g.hook(layer, Site::ResidMid, &resid_mid);
    let normed = rms_norm(g, config, &format!("{name}.post_attention_layernorm"), &resid_mid)?;
    let mlp_out = mlp(g, config, &format!("{name}.mlp"), &normed)?;
    let mlp_out = g.residual(mlp_out);
    g.hook(layer, Site::MlpOut, &mlp_out);

    let resid_post = g.op("Add", &[&resid_mid, &mlp_out], &[]);
    g.hook(layer, Site::ResidPost, &resid_post);
    Ok(resid_post)
}

/// x / sqrt(mean(x²) + epsilon) · weight.
fn rms_norm(g: &mut Graph<'_>, config: &ModelConfig, name: &str, x: &str) -> Result<Value, Error> {
    let weight = g.weight(&format!("{name}.weight"), &[config.d_model])?;
    let attributes = [int("axis", -1), float("epsilon", config.norm_epsilon)];
    let normed = g.op("SimplifiedLayerNormalization", &[x, &weight], &attributes);
    Ok(g.product_input(normed))
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
    let q = linear(g, &format!("{name}.q_proj"), x, [queries, d])?;
    let k = linear(g, &format!("{name}.k_proj"), x, [keys, d])?;
    let v = linear(g, &format!("{name}.v_proj"), x, [keys, d])?;
    let q = rotation.apply(g, config, contexts, &q, config.heads);
    let k = rotation.apply(g, config, contexts, &k, config.kv_heads);
    let z = contexts.attend(g, config, &q, &k, &v);
    linear(g, &format!("{name}.o_proj"), &z, [d, queries])
}

/// down(silu(gate(x)) · up(x)).
fn mlp(g: &mut Graph<'_>, config: &ModelConfig, name: &str, x: &str) -> Result<Value, Error> {
    let (d, d_mlp) = (config.d_model, config.d_mlp);
    let gate = linear(g, &format!("{name}.gate_proj"), x, [d_mlp, d])?;
    let up = linear(g, &format!("{name}.up_proj"), x, [d_mlp, d])?;
    let gate = g.activation(config.activation, &gate);
    let hidden = g.op("Mul", &[&gate, &up], &[]);
    linear(g, &format!("{name}.down_proj"), &hidden, [d, d_mlp])
}

/// x·weightᵀ, plus the bias if the checkpoint has one; the weight is `[out, in]`.
fn linear(g: &mut Graph<'_>, name: &str, x: &str, [rows, columns]: [usize; 2]) -> Result<Value, Error> {
    let weight = g.product_weight(&format!("{name}.weight"), &[rows, columns])?;
    let mut inputs = vec![x.to_string(), weight];
    inputs.extend(g.optional_product_weight(&format!("{name}.bias"), &[rows])?);
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    Ok(g.op("Gemm", &inputs, &[int("transB", 1)]))
}

/// Cosines and sines of the rotary embedding, `[length, 1, head_dim / 2]` each.
struct Rotation {
    cos: Value,
    sin: Value,
}

fn rotation(g: &mut Graph<'_>, config: &ModelConfig, contexts: &Contexts) -> Rotation {
    let frequencies = config.rope.map_or(Vec::new(), |rope| frequencies(rope, config.head_dim));
    let frequencies = g.floats(&frequencies);
    let positions = g.op("Cast", &[&contexts.positions], &[int("to", 1)]);
    let axes = g.sizes(&[1, 2]);
    let positions = g.op("Unsqueeze", &[&positions, &axes], &[]);
    let angles = g.op("Mul", &[&positions, &frequencies], &[]);
    let (cos, sin) = (g.op("Cos", &[&angles], &[]), g.op("Sin", &[&angles], &[]));
    Rotation { cos: g.product_input(cos), sin: g.product_input(sin) }
}

impl Rotation {
    /// Turns component i of each head against component i + head_dim/2 (the "rotate half"
    /// convention of `transformers`). `x` and the result are `[rows, heads * head_dim]`.
    fn apply(
        &self,
        g: &mut Graph<'_>,
        config: &ModelConfig,
        contexts: &Contexts,
        x: &str,
        heads: usize,
    ) -> Value {
        let x = contexts.split(g, x, &[heads, config.head_dim]);
        let [first, second] = g.op_n("Split", &[&x], &[int("axis", -1), int("num_outputs", 2)]);
        let first_cos = g.op("Mul", &[&first, &self.cos], &[]);
        let second_sin = g.op("Mul", &[&second, &self.sin], &[]);
        let second_cos = g.op("Mul", &[&second, &self.cos], &[]);
        let first_sin = g.op("Mul", &[&first, &self.sin], &[]);
        let turned_first = g.op("Sub", &[&first_cos, &second_sin], &[]);
        let turned_second = g.op("Add", &[&second_cos, &first_sin], &[]);
        g.op("Concat", &[&turned_first, &turned_second], &[int("axis", -1)])
    }
}

/// Angle per position of each pair of components, `[head_dim / 2]`: theta^(-2i / head_dim),
/// stretched as the scaling says.
///
/// Rounded to f32 where `transformers` rounds, because an angle grows with the position and with
/// it a difference in the last digit.
fn frequencies(rope: Rope, head_dim: usize) -> Vec<f32> {
    let plain = |pair: usize| 1.0 / rope.theta.powf(f64::from(2.0 * pair as f32 / head_dim as f32)) as f32;
    (0..head_dim / 2).map(|pair| scaled(plain(pair), rope.scaling)).collect()
}

fn scaled(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let wavelength = 2.0 * std::f64::consts::PI / f64::from(frequency);
            let ramp = (original_max_positions / wavelength - low_freq_factor)
                / (high_freq_factor - low_freq_factor);
            let kept = ramp.clamp(0.0, 1.0);
            (f64::from(frequency) * (kept + (1.0 - kept) / factor)) as f32
        }
    }
}
