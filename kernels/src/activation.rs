//! From z to a: which features of a row are active.

use serde::{Deserialize, Serialize};

/// How the active features are selected from z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// a = max(z, 0).
    #[default]
    Relu,
    /// a = max(z, 0) of the k features of a row with the largest z, the lower feature where two are equal; 0 elsewhere
    /// (L. Gao et al., "Scaling and evaluating sparse autoencoders", 2024). The gradient reaches active features alone.
    #[serde(rename = "topk")]
    TopK {
        /// At most so many features of a row are active.
        k: usize,
    },
}

impl Activation {
    /// Whether it is the one that files leave out.
    pub fn is_relu(&self) -> bool {
        *self == Activation::Relu
    }
}
