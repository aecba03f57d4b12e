//! `select`: between encode and decode. The encode finds the pairs (row, feature) that can matter; the selection says which
//! of them are active, and which others the backward pass has to see.

use crate::activation::Activation;

use super::pairs::ActivePairs;

/// What a selection leaves of a batch's pairs.
#[derive(Debug, Default)]
pub struct Selected {
    /// The active pairs, which go on to decode, backward and the counts.
    pub kept: ActivePairs,
    /// Pairs that are not active, but whose z lies so near to a threshold that the threshold's gradient sees them. None with
    /// ReLU, whose threshold is not trained.
    pub near: ActivePairs,
}

impl Selected {
    /// Selects among the pairs that the encode has put into `kept`: all whose z is above 0.
    pub fn select(&mut self, activation: Activation) {
        match activation {
            Activation::Relu => self.near.clear(),
        }
    }
}

/// The same on dense activations [B,F], which the encode has made ReLU(z).
pub fn select_dense(activation: Activation, _activations: &mut [f32]) {
    match activation {
        Activation::Relu => {}
    }
}
