//! Weights, and Adam's moments in the same shapes, laid out so that everything about one feature is contiguous.

/// An autoencoder's arrays in the layout of the step: the encoder is transposed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters {
    /// W_enc transposed, [F,d]: row j is what feature j looks for.
    pub encoder: Vec<f32>,
    /// b_enc, [F].
    pub encoder_bias: Vec<f32>,
    /// W_dec, [F,d]: row j is the direction of feature j.
    pub decoder: Vec<f32>,
    /// b_dec, [d].
    pub decoder_bias: Vec<f32>,
}

impl Parameters {
    /// All zeros.
    pub fn zeros(width: usize, features: usize) -> Parameters {
        Parameters {
            encoder: vec![0.0; features * width],
            encoder_bias: vec![0.0; features],
            decoder: vec![0.0; features * width],
            decoder_bias: vec![0.0; width],
        }
    }

    /// The four arrays with their names.
    pub fn arrays(&self) -> [(&'static str, &[f32]); 4] {
        [
            ("encoder", &self.encoder),
            ("encoder_bias", &self.encoder_bias),
            ("decoder", &self.decoder),
            ("decoder_bias", &self.decoder_bias),
        ]
    }
}

/// [rows, columns] → [columns, rows].
pub fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    /// Side of a block: 32 lines of the source and of the target fit the first cache level.
    const SIDE: usize = 32;
    let mut out = vec![0.0; matrix.len()];
    for first_row in (0..rows).step_by(SIDE) {
        for first_column in (0..columns).step_by(SIDE) {
            for row in first_row..(first_row + SIDE).min(rows) {
                for column in first_column..(first_column + SIDE).min(columns) {
                    out[column * rows + row] = matrix[row * columns + column];
                }
            }
        }
    }
    out
}

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
        let encoder = Trained { weights: &mut w.encoder, first: &mut m.encoder, second: &mut v.encoder };
        let encoder_bias =
            Trained { weights: &mut w.encoder_bias, first: &mut m.encoder_bias, second: &mut v.encoder_bias };
        let decoder = Trained { weights: &mut w.decoder, first: &mut m.decoder, second: &mut v.decoder };
        let decoder_bias =
            Trained { weights: &mut w.decoder_bias, first: &mut m.decoder_bias, second: &mut v.decoder_bias };
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
    fn transposing_gives_the_transpose_and_twice_the_matrix() {
        let (rows, columns) = (45, 70);
        let matrix: Vec<f32> = (0..rows * columns).map(|at| at as f32).collect();
        let transpose = transposed(&matrix, rows, columns);
        assert_eq!(transpose[3 * rows + 41], matrix[41 * columns + 3]);
        assert_eq!(transposed(&transpose, columns, rows), matrix);
    }

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
