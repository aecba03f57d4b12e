//! Weights and Adam's moments, cut into blocks of neighbouring features that tasks update.

use ndarray::{Array, Dimension};

use crate::parameters::{Parameters, numbers_mut};

use super::frequent::Frequent;

/// A weight with its moments: the same part of three arrays.
#[derive(Debug)]
pub(crate) struct Trained<'a> {
    pub(crate) weights: &'a mut [f32],
    pub(crate) first: &'a mut [f32],
    pub(crate) second: &'a mut [f32],
}

impl<'a> Trained<'a> {
    pub(crate) fn chunks(self, size: usize) -> impl Iterator<Item = Trained<'a>> {
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
    /// JumpReLU's thresholds.
    pub(crate) threshold: Option<Trained<'a>>,
    /// Where gradients wait until it is known how long all of them are together.
    pub(crate) waiting: Option<WaitingBlock<'a>>,
}

/// What a step changes that belongs to no feature.
#[derive(Debug)]
pub(crate) struct Whole<'a> {
    pub(crate) decoder_bias: Trained<'a>,
    /// W_skip.
    pub(crate) skip: Option<Trained<'a>>,
}

/// The gradients of all weights, where they are needed twice: to find the norm of all of them, and to train.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Waiting {
    encoder: Vec<f32>,
    encoder_bias: Vec<f32>,
    decoder: Vec<f32>,
    threshold: Vec<f32>,
    /// Of features with many pairs, on the sparse path.
    pub(crate) frequent: Frequent,
}

/// The part of [`Waiting`] that belongs to a block of features.
#[derive(Debug)]
pub(crate) struct WaitingBlock<'a> {
    pub(crate) encoder: &'a mut [f32],
    pub(crate) encoder_bias: &'a mut [f32],
    pub(crate) decoder: &'a mut [f32],
    pub(crate) threshold: &'a mut [f32],
}

impl Waiting {
    /// Memory for F = `features` of `width`, cut into blocks of `size` features.
    fn split(
        &mut self,
        size: usize,
        width: usize,
        features: usize,
    ) -> impl Iterator<Item = WaitingBlock<'_>> {
        for (vector, length) in [
            (&mut self.encoder, features * width),
            (&mut self.encoder_bias, features),
            (&mut self.decoder, features * width),
            (&mut self.threshold, features),
        ] {
            vector.resize(length, 0.0);
        }
        let encoder = self.encoder.chunks_mut(size * width).zip(self.encoder_bias.chunks_mut(size));
        let decoder = self.decoder.chunks_mut(size * width).zip(self.threshold.chunks_mut(size));
        encoder.zip(decoder).map(|((encoder, encoder_bias), (decoder, threshold))| WaitingBlock {
            encoder,
            encoder_bias,
            decoder,
            threshold,
        })
    }
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
    /// Cuts everything that belongs to features into blocks of `size` features, with their parts of `waiting` where there is
    /// any; the rest stays whole.
    pub(crate) fn split<'a>(
        &'a mut self,
        size: usize,
        waiting: Option<&'a mut Waiting>,
    ) -> (Vec<FeatureBlock<'a>>, Whole<'a>) {
        let (features, width) = self.weights.decoder.dim();
        let TrainedParameters { weights: w, first: m, second: v } = self;
        let encoder = trained(&mut w.encoder, &mut m.encoder, &mut v.encoder);
        let encoder_bias = trained(&mut w.encoder_bias, &mut m.encoder_bias, &mut v.encoder_bias);
        let decoder = trained(&mut w.decoder, &mut m.decoder, &mut v.decoder);
        let decoder_bias = trained(&mut w.decoder_bias, &mut m.decoder_bias, &mut v.decoder_bias);
        let thresholds = w.threshold.as_mut().zip(m.threshold.as_mut().zip(v.threshold.as_mut()));
        let skip = w.skip.as_mut().zip(m.skip.as_mut().zip(v.skip.as_mut()));
        let whole = Whole { decoder_bias, skip: skip.map(|(w, (m, v))| trained(w, m, v)) };
        let mut thresholds = thresholds.map(|(w, (m, v))| trained(w, m, v).chunks(size));
        let mut waiting = waiting.map(|waiting| waiting.split(size, width, features));
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
                threshold: thresholds.as_mut().and_then(Iterator::next),
                waiting: waiting.as_mut().and_then(Iterator::next),
            })
            .collect();
        (blocks, whole)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2};

    use super::*;

    #[test]
    fn blocks_cover_all_features_once() {
        let parameters = Parameters {
            encoder: Array2::zeros((10, 3)),
            encoder_bias: Array1::zeros(10),
            decoder: Array2::zeros((10, 3)),
            decoder_bias: Array1::zeros(3),
            threshold: Some(Array1::zeros(10)),
            skip: Some(Array2::zeros((3, 3))),
        };
        let mut trained =
            TrainedParameters { weights: parameters.clone(), first: parameters.clone(), second: parameters };
        let mut waiting = Waiting::default();
        let (blocks, whole) = trained.split(4, Some(&mut waiting));
        let sizes: Vec<_> = blocks
            .iter()
            .map(|b| (b.first, b.encoder.weights.len(), b.encoder_bias.first.len(), b.decoder.second.len()))
            .collect();
        assert_eq!(sizes, [(0, 12, 4, 12), (4, 12, 4, 12), (8, 6, 2, 6)]);
        let thresholds: Vec<_> = blocks.iter().map(|b| b.threshold.as_ref().unwrap().weights.len()).collect();
        let waiting: Vec<_> = blocks.iter().map(|b| b.waiting.as_ref().unwrap().decoder.len()).collect();
        assert_eq!((thresholds, waiting), (vec![4, 4, 2], vec![12, 12, 6]));
        assert_eq!((whole.decoder_bias.weights.len(), whole.skip.unwrap().first.len()), (3, 9));
    }
}
