//! The block that every family is made of: attention and MLP, each of which reads the residual stream and adds to it.

use crate::graph::{Graph, Value};
use crate::{Error, ModelConfig, Site};

/// One block, with its hooks; returns the residual stream after it. `attention` and `mlp` begin with their norms; what they
/// return is in the precision of products.
pub(crate) fn block(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    layer: usize,
    resid_pre: Value,
    attention: impl FnOnce(&mut Graph<'_>, &str) -> Result<Value, Error>,
    mlp: impl FnOnce(&mut Graph<'_>, &str) -> Result<Value, Error>,
) -> Result<Value, Error> {
    g.hook(layer, Site::ResidPre, &resid_pre);
    let attn_out = attention(g, &resid_pre)?;
    let attn_out = g.residual(attn_out);
    g.hook(layer, Site::AttnOut, &attn_out);

    // Where the two are parallel, there is no residual stream between them, and no hook.
    let resid_mid = g.op("Add", &[&resid_pre, &attn_out], &[]);
    if !config.parallel {
        g.hook(layer, Site::ResidMid, &resid_mid);
    }
    let mlp_out = mlp(g, if config.parallel { &resid_pre } else { &resid_mid })?;
    let mlp_out = g.residual(mlp_out);
    g.hook(layer, Site::MlpOut, &mlp_out);

    let resid_post = g.op("Add", &[&resid_mid, &mlp_out], &[]);
    g.hook(layer, Site::ResidPost, &resid_post);
    Ok(resid_post)
}
