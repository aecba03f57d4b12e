//! Between the public layout of an autoencoder's weights, W_enc [d,F], and the step's, in which everything about one feature is
//! contiguous.

use kernels::parameters::{Parameters, transposed};
use sae::Weights;

/// The step's layout of these weights.
pub(crate) fn parameters(weights: &Weights) -> Parameters {
    Parameters {
        encoder: transposed(weights.w_enc.view()),
        encoder_bias: weights.b_enc.clone(),
        decoder: weights.w_dec.clone(),
        decoder_bias: weights.b_dec.clone(),
        threshold: weights.threshold.clone(),
        skip: weights.skip.clone(),
    }
}

/// The public layout of these parameters.
pub(crate) fn weights(parameters: &Parameters) -> Weights {
    Weights {
        w_enc: transposed(parameters.encoder.view()),
        b_enc: parameters.encoder_bias.clone(),
        w_dec: parameters.decoder.clone(),
        b_dec: parameters.decoder_bias.clone(),
        threshold: parameters.threshold.clone(),
        skip: parameters.skip.clone(),
    }
}
