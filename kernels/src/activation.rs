//! From z to a: which features of a row are active.

use serde::{Deserialize, Serialize};

/// How the active features are selected from z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// a = max(z, 0).
    #[default]
    Relu,
}

impl Activation {
    /// Whether it is the one that files leave out.
    pub fn is_relu(&self) -> bool {
        *self == Activation::Relu
    }
}
