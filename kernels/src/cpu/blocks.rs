//! Weights and Adam's moments, cut into blocks of neighbouring features that tasks update.

use ndarray::{Array, Dimension};

use crate::parameters::{Parameters, numbers_mut};

/// A weight with its moments: the same part of three arrays.
#[derive(Debug)]
pub(crate) struct Trained<'a> {
    pub(crate) weights: &'a mut [f32],
    pub(crate) first: &'a mut [f32],
    pub(crate) second: &'a mut [f32],
}

impl<'a> Trained<'a> {
    fn chunks(self, size: usize) -> impl Iterator<Item = Trained<'a>> {
        let moments = self.first.chunks_mut(size).zip(self.second.chunks_mut(size));
        self.weights.chunks_mut(size).zip(moments).map(|(weights, (first, second))| Trained {
            weights,
            first,
            second,
        })
    }

    /// The part of row `at`, rows being `width` long.
    pub(crate) fn row(&mut self, at: usize, width: usize) -> Trained<'_> {
        let range = at * width..(at + 1) * width;
        Trained {
            weights: &mut self.weights[range.clone()],
            first: &mut self.first[range.clone()],
            second: &mut self.second[range],
        }
    }
}

/// A whole tensor with its moments.
fn trained<'a, D: Dimension>(
    weights: &'a mut Array<f32, D>,
    first: &'a mut Array<f32, D>,
    second: &'a mut Array<f32, D>,
) -> Trained<'a> {
    Trained { weights: numbers_mut(weights), first: numbers_mut(first), second: numbers_mut(second) }
}

/// Everything that a step changes in a block of neighbouring features.
#[derive(Debug)]
pub(crate) struct FeatureBlock<'a> {
    /// The block's first feature.
    pub(crate) first: usize,
    pub(crate) encoder: Trained<'a>,
    pub(crate) encoder_bias: Trained<'a>,
    pub(crate) decoder: Trained<'a>,
}

/// The weights and moments of a run, to be changed by a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrainedParameters {
    /// The weights.
    pub weights: Parameters,
    /// Adam's first moments.
    pub first: Parameters,
    /// Adam's second moments.
    pub second: Parameters,
}

impl TrainedParameters {
    /// Cuts everything that belongs to features into blocks of `size` features; b_dec stays whole.
    pub(crate) fn split(&mut self, size: usize) -> (Vec<FeatureBlock<'_>>, Trained<'_>) {
        let width = self.weights.decoder_bias.len();
        let TrainedParameters { weights: w, first: m, second: v } = self;
        let encoder = trained(&mut w.encoder, &mut m.encoder, &mut v.encoder);
        let encoder_bias = trained(&mut w.encoder_bias, &mut m.encoder_bias, &mut v.encoder_bias);
        let decoder = trained(&mut w.decoder, &mut m.decoder, &mut v.decoder);
        let decoder_bias = trained(&mut w.decoder_bias, &mut m.decoder_bias, &mut v.decoder_bias);
        let blocks = encoder
            .chunks(size * width)
            .zip(encoder_bias.chunks(size))
            .zip(decoder.chunks(size * width))
            .enumerate()
            .map(|(block, ((encoder, encoder_bias), decoder))| FeatureBlock {
                first: block * size,
                encoder,
                encoder_bias,
                decoder,
            })
            .collect();
        (blocks, decoder_bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_all_features_once() {
        let parameters = Parameters::zeros(3, 10);
        let mut trained =
            TrainedParameters { weights: parameters.clone(), first: parameters.clone(), second: parameters };
        let (blocks, bias) = trained.split(4);
        let sizes: Vec<_> = blocks
            .iter()
            .map(|b| (b.first, b.encoder.weights.len(), b.encoder_bias.first.len(), b.decoder.second.len()))
            .collect();
        assert_eq!(sizes, [(0, 12, 4, 12), (4, 12, 4, 12), (8, 6, 2, 6)]);
        assert_eq!(bias.weights.len(), 3);
    }
}
