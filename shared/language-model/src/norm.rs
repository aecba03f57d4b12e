//! The norms in front of attention and MLP. They compute in float32; what they return is in the precision of products.

use crate::graph::{Graph, Value, float, int};
use crate::{Error, ModelConfig};

/// (x - mean(x)) / sqrt(variance(x) + epsilon) · weight + bias.
pub(crate) fn layer_norm(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    name: &str,
    x: &str,
) -> Result<Value, Error> {
    let weight = g.weight(&format!("{name}.weight"), &[config.d_model])?;
    let bias = g.weight(&format!("{name}.bias"), &[config.d_model])?;
    let attributes = [int("axis", -1), float("epsilon", config.norm_epsilon)];
    let normed = g.op("LayerNormalization", &[x, &weight, &bias], &attributes);
    Ok(g.product_input(normed))
}

/// x / sqrt(mean(x²) + epsilon) · weight.
pub(crate) fn rms_norm(g: &mut Graph<'_>, config: &ModelConfig, name: &str, x: &str) -> Result<Value, Error> {
    let weight = g.weight(&format!("{name}.weight"), &[config.d_model])?;
    let attributes = [int("axis", -1), float("epsilon", config.norm_epsilon)];
    let normed = g.op("SimplifiedLayerNormalization", &[x, &weight], &attributes);
    Ok(g.product_input(normed))
}
