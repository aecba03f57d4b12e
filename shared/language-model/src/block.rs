//! The block that every family is made of: attention and MLP, each of which reads the residual stream behind a norm and adds
//! to it.

use crate::graph::{Graph, Value, float, int};
use crate::{Error, ModelConfig, NormKind, Site};

/// One block, with its hooks; returns the residual stream after it. `norms` are the names of the norms in front of `attention`
/// and `mlp`, which take and return values in the precision of products.
pub(crate) fn block(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    layer: usize,
    resid_pre: Value,
    norms: [String; 2],
    attention: impl FnOnce(&mut Graph<'_>, &str) -> Result<Value, Error>,
    mlp: impl FnOnce(&mut Graph<'_>, &str) -> Result<Value, Error>,
) -> Result<Value, Error> {
    let resid_pre = g.hook(layer, Site::ResidPre, resid_pre);
    let normed = norm(g, config, &norms[0], &resid_pre)?;
    let attn_out = attention(g, &normed)?;
    let attn_out = g.residual(attn_out);
    let attn_out = g.hook(layer, Site::AttnOut, attn_out);

    // Where the two are parallel, there is no residual stream between them, and no hook.
    let mut resid_mid = g.op("Add", &[&resid_pre, &attn_out], &[]);
    if !config.parallel {
        resid_mid = g.hook(layer, Site::ResidMid, resid_mid);
    }
    let mlp_input = if config.parallel { &resid_pre } else { &resid_mid };
    let normed = norm(g, config, &norms[1], mlp_input)?;
    let mlp_out = mlp(g, &normed)?;
    let mlp_out = g.residual(mlp_out);
    let mlp_out = g.hook(layer, Site::MlpOut, mlp_out);

    let resid_post = g.op("Add", &[&resid_mid, &mlp_out], &[]);
    Ok(g.hook(layer, Site::ResidPost, resid_post))
}

/// LayerNorm, (x - mean(x)) / sqrt(variance(x) + epsilon) · weight + bias, or RMSNorm, x / sqrt(mean(x²) + epsilon) · weight,
/// in the precision of products.
pub(crate) fn norm(g: &mut Graph<'_>, config: &ModelConfig, name: &str, x: &str) -> Result<Value, Error> {
    let weight = g.weight(&format!("{name}.weight"), &[config.d_model])?;
    let attributes = [int("axis", -1), float("epsilon", config.norm_epsilon)];
    let normed = match config.norm {
        NormKind::LayerNorm => {
            let bias = g.weight(&format!("{name}.bias"), &[config.d_model])?;
            g.op("LayerNormalization", &[x, &weight, &bias], &attributes)
        }
        NormKind::RmsNorm => g.op("SimplifiedLayerNormalization", &[x, &weight], &attributes),
    };
    Ok(g.product_input(normed))
}
