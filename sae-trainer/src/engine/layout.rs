//! Between the public layout of an autoencoder's weights, W_enc [d,F], and the step's, in which everything about one feature is
//! contiguous.

use kernels::activation::Activation;
use kernels::parameters::{Parameters, transposed};
use kernels::spec::StepSpec;
use ndarray::Array1;
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

/// The public layout of an autoencoder, or of some of its features, that is to be used: with BatchTopK's `threshold`, which is one of
/// what features are ranked by, for each of them.
pub(crate) fn used_weights(parameters: &Parameters, spec: &StepSpec, threshold: Option<f64>) -> Weights {
    let mut weights = weights(parameters);
    if let Activation::BatchTopK { .. } = spec.activation {
        let mut thresholds =
            Array1::from_elem(parameters.encoder_bias.len(), threshold.unwrap_or(0.0) as f32);
        if spec.rank_by_decoder_norm {
            for (threshold, row) in thresholds.iter_mut().zip(weights.w_dec.rows()) {
                let norm = row.dot(&row).sqrt();
                // A feature that writes nothing is never among the largest.
                *threshold = if norm > 0.0 { *threshold / norm } else { f32::MAX };
            }
        }
        weights.threshold = Some(thresholds);
    }
    weights
}
