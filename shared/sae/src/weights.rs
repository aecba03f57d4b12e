//! The tensors of an autoencoder by name, and their initial values.

use std::collections::BTreeMap;
use std::ops::Range;

use ndarray::{Array1, Array2, ArrayD, ArrayView1, ArrayViewD, s};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The parameters, float32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Encoder, [d, F].
    pub w_enc: Array2<f32>,
    /// Encoder bias, [F].
    pub b_enc: Array1<f32>,
    /// Decoder, [F, d]: row j is the direction of feature j.
    pub w_dec: Array2<f32>,
    /// Decoder bias, [d].
    pub b_dec: Array1<f32>,
    /// Of "jumprelu": the z up to which a feature is not active, [F].
    pub threshold: Option<Array1<f32>>,
    /// Of a transcoder with a skip connection: what it adds to the reconstruction of a row x is x W_skipᵀ, [d, d].
    pub skip: Option<Array2<f32>>,
}

/// Which tensors there are that not every autoencoder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Optional {
    /// `threshold`.
    pub thresholds: bool,
    /// `W_skip`.
    pub skip: bool,
}

/// How the initial weights are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Init {
    /// The encoder.
    pub encoder: EncoderInit,
    /// The norm that every decoder row is scaled to; `None` leaves them as they are drawn.
    pub decoder_norm: Option<f64>,
}

/// The initial encoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderInit {
    /// Drawn, independent of the decoder.
    Kaiming,
    /// `scale` · W_decᵀ, of the decoder as it starts.
    Transpose {
        /// The factor.
        scale: f64,
    },
}

impl Default for Init {
    /// Both drawn, and decoder rows of norm 1.
    fn default() -> Init {
        Init { encoder: EncoderInit::Kaiming, decoder_norm: Some(1.0) }
    }
}

impl Weights {
    /// [`Weights::init_with`] the default options: Kaiming-uniform encoder and decoder, biases 0, then every decoder row
    /// scaled to unit norm.
    pub fn init(d_in: usize, d_sae: usize, seed: u64) -> Weights {
        Weights::init_with(d_in, d_sae, seed, &Init::default())
    }

    /// A Kaiming-uniform decoder whose rows are scaled as `init` says, an encoder that is drawn likewise or taken from it,
    /// biases 0.
    ///
    /// The bound is sqrt(6 / fan_in) with the fan_in that torch's `kaiming_uniform_(a=0)` takes for a
    /// [rows, cols] tensor, its columns: F for the encoder [d, F], d for the decoder [F, d].
    /// The values depend on `seed` and `init` alone: ChaCha8 keyed by the seed, stream 0 for the encoder and stream 1
    /// for the decoder, the top 24 bits of every 32-bit output as a fraction.
    pub fn init_with(d_in: usize, d_sae: usize, seed: u64, init: &Init) -> Weights {
        Weights::init_features(d_in, d_sae, 0..d_sae, seed, init)
    }

    /// The part of [`Weights::init_with`] that belongs to `features` of the `d_sae` features, and b_dec. Nothing else is drawn.
    ///
    /// # Panics
    /// If there are fewer features.
    pub fn init_features(
        d_in: usize,
        d_sae: usize,
        features: Range<usize>,
        seed: u64,
        init: &Init,
    ) -> Weights {
        assert!(features.end <= d_sae, "features {features:?} of {d_sae}");
        let own = features.len();
        let mut w_dec = kaiming_uniform(d_in, features.clone(), 0..d_in, seed, 1);
        if let Some(norm) = init.decoder_norm {
            scale_rows(&mut w_dec, norm);
        }
        let w_enc = match init.encoder {
            EncoderInit::Kaiming => kaiming_uniform(d_sae, 0..d_in, features, seed, 0),
            EncoderInit::Transpose { scale } => {
                let scaled = |(k, j): (usize, usize)| (scale * f64::from(w_dec[[j, k]])) as f32;
                Array2::from_shape_fn((d_in, own), scaled)
            }
        };
        let (b_enc, b_dec) = (Array1::zeros(own), Array1::zeros(d_in));
        Weights { w_enc, b_enc, w_dec, b_dec, threshold: None, skip: None }
    }

    /// The part that belongs to `features`, and what belongs to no feature.
    ///
    /// # Panics
    /// If there are fewer features.
    pub fn of_features(&self, features: Range<usize>) -> Weights {
        Weights {
            w_enc: self.w_enc.slice(s![.., features.clone()]).as_standard_layout().into_owned(),
            b_enc: self.b_enc.slice(s![features.clone()]).to_owned(),
            w_dec: self.w_dec.slice(s![features.clone(), ..]).to_owned(),
            b_dec: self.b_dec.clone(),
            threshold: self.threshold.as_ref().map(|threshold| threshold.slice(s![features]).to_owned()),
            skip: self.skip.clone(),
        }
    }

    /// Input width d.
    pub fn d_in(&self) -> usize {
        self.b_dec.len()
    }

    /// Number of features F.
    pub fn d_sae(&self) -> usize {
        self.b_enc.len()
    }

    /// Scales every decoder row to norm 1. A row of zeros stays one.
    pub fn normalize_decoder(&mut self) {
        scale_rows(&mut self.w_dec, 1.0);
    }

    /// Makes the weights for rows x those that compute the same of rows x / `factor`, the reconstruction being divided
    /// likewise: W_enc · factor, W_dec / factor, b_dec / factor. SAELens folds its scaling factors in so.
    pub fn fold_input_factor(&mut self, factor: f64) {
        let factor = factor as f32;
        self.w_enc.mapv_inplace(|w| w * factor);
        self.w_dec.mapv_inplace(|w| w / factor);
        self.b_dec.mapv_inplace(|b| b / factor);
        // W_skip multiplies and is divided by the same.
    }

    /// Moves the norm of each decoder row into its feature's activation: W_enc, b_enc and the threshold times it, W_dec divided by
    /// it. A row of zeros stays one.
    pub fn fold_decoder_norms(&mut self) {
        for (j, mut row) in self.w_dec.rows_mut().into_iter().enumerate() {
            let norm = norm(row.view()) as f32;
            if norm > 0.0 {
                row.mapv_inplace(|w| w / norm);
                self.w_enc.column_mut(j).mapv_inplace(|w| w * norm);
                self.b_enc[j] *= norm;
                self.threshold.iter_mut().for_each(|threshold| threshold[j] *= norm);
            }
        }
    }

    /// Mean over the features of the decoder rows' norms.
    pub fn decoder_norm_mean(&self) -> f64 {
        self.w_dec.rows().into_iter().map(norm).sum::<f64>() / self.d_sae() as f64
    }

    /// The tensors with their names in files, in a fixed order.
    pub fn tensors(&self) -> Vec<(&'static str, ArrayViewD<'_, f32>)> {
        let mut tensors = vec![
            ("W_enc", self.w_enc.view().into_dyn()),
            ("b_enc", self.b_enc.view().into_dyn()),
            ("W_dec", self.w_dec.view().into_dyn()),
            ("b_dec", self.b_dec.view().into_dyn()),
        ];
        let threshold = self.threshold.as_ref();
        tensors.extend(threshold.map(|threshold| ("threshold", threshold.view().into_dyn())));
        tensors.extend(self.skip.as_ref().map(|skip| ("W_skip", skip.view().into_dyn())));
        tensors
    }

    /// The names and shapes of the tensors of an autoencoder of this size, in the order of [`Weights::tensors`].
    pub fn shapes(d_in: usize, d_sae: usize, optional: Optional) -> Vec<(&'static str, Vec<usize>)> {
        let mut shapes = vec![
            ("W_enc", vec![d_in, d_sae]),
            ("b_enc", vec![d_sae]),
            ("W_dec", vec![d_sae, d_in]),
            ("b_dec", vec![d_in]),
        ];
        shapes.extend(optional.thresholds.then(|| ("threshold", vec![d_sae])));
        shapes.extend(optional.skip.then(|| ("W_skip", vec![d_in, d_in])));
        shapes
    }

    /// Takes each tensor's numbers, row-major, from `numbers`, which is told its name and shape.
    ///
    /// # Errors
    /// Those of `numbers`.
    ///
    /// # Panics
    /// If it returns another count of numbers than the shape has.
    pub fn from_numbers<E>(
        d_in: usize,
        d_sae: usize,
        optional: Optional,
        mut numbers: impl FnMut(&'static str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Weights, E> {
        let shapes = Weights::shapes(d_in, d_sae, optional).into_iter();
        let tensors = shapes.map(|(name, shape)| {
            let numbers = numbers(name, &shape)?;
            Ok((name, ArrayD::from_shape_vec(shape, numbers).expect("as many numbers as the shape has")))
        });
        let mut tensors = tensors.collect::<Result<BTreeMap<&'static str, ArrayD<f32>>, E>>()?;
        let (present, of_rank) = ("every autoencoder has these four", "a shape has its own rank");
        let mut take = |name| tensors.remove(name);
        Ok(Weights {
            w_enc: take("W_enc").expect(present).into_dimensionality().expect(of_rank),
            b_enc: take("b_enc").expect(present).into_dimensionality().expect(of_rank),
            w_dec: take("W_dec").expect(present).into_dimensionality().expect(of_rank),
            b_dec: take("b_dec").expect(present).into_dimensionality().expect(of_rank),
            threshold: take("threshold").map(|tensor| tensor.into_dimensionality().expect(of_rank)),
            skip: take("W_skip").map(|tensor| tensor.into_dimensionality().expect(of_rank)),
        })
    }

    /// That the tensors' shapes fit together.
    ///
    /// # Errors
    /// Names the first that does not fit.
    pub fn check_shapes(&self) -> Result<(), Error> {
        let optional = Optional { thresholds: self.threshold.is_some(), skip: self.skip.is_some() };
        let shapes = Weights::shapes(self.d_in(), self.d_sae(), optional);
        for ((array, tensor), (_, expected)) in self.tensors().into_iter().zip(shapes) {
            if tensor.shape() != expected {
                return Err(Error::Misfit { array, expected, found: tensor.shape().to_vec() });
            }
        }
        Ok(())
    }
}

/// The rows `rows` and columns `part` of an array with `cols` columns that is uniform in ±sqrt(6 / cols). Every number has its place
/// in the stream.
fn kaiming_uniform(
    cols: usize,
    rows: Range<usize>,
    part: Range<usize>,
    seed: u64,
    stream: u64,
) -> Array2<f32> {
    let bound = (6.0 / cols as f64).sqrt();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    // Written out rather than left to a distribution of the rand crate: a seed must give the same
    // weights after an upgrade.
    let uniform = |rng: &mut ChaCha8Rng| f64::from(rng.next_u32() >> 8) / f64::from(1 << 24);
    let mut numbers = Array2::zeros((rows.len(), part.len()));
    for (row, mut numbers) in rows.zip(numbers.rows_mut()) {
        rng.set_word_pos(row as u128 * cols as u128 + part.start as u128);
        numbers.mapv_inplace(|_: f32| ((2.0 * uniform(&mut rng) - 1.0) * bound) as f32);
    }
    numbers
}

/// Scales every row to norm `to`. A row of zeros stays one.
fn scale_rows(rows: &mut Array2<f32>, to: f64) {
    for mut row in rows.rows_mut() {
        let norm = norm(row.view());
        if norm > 0.0 {
            row.mapv_inplace(|w| (f64::from(w) / norm * to) as f32);
        }
    }
}

fn norm(row: ArrayView1<'_, f32>) -> f64 {
    row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_follows_the_columns_of_each_matrix() {
        let (d, f) = (24, 150);
        let encoder = kaiming_uniform(f, 0..d, 0..f, 3, 0);
        let bound = (6.0_f64 / 150.0).sqrt() as f32;
        let largest = encoder.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
        assert!(largest <= bound && largest > 0.99 * bound, "{largest} against {bound}");
        let mean = encoder.iter().sum::<f32>() / encoder.len() as f32;
        let variance = encoder.iter().map(|w| w * w).sum::<f32>() / encoder.len() as f32;
        assert!(mean.abs() < 0.05 * bound, "{mean}");
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn the_decoder_starts_with_unit_rows_and_the_biases_with_zeros() {
        let weights = Weights::init(17, 40, 5);
        for row in weights.w_dec.rows() {
            assert!((norm(row) - 1.0).abs() < 1e-6);
        }
        assert!((weights.decoder_norm_mean() - 1.0).abs() < 1e-6);
        assert!(weights.b_enc.iter().chain(&weights.b_dec).all(|&b| b == 0.0));
        weights.check_shapes().unwrap();
    }

    #[test]
    fn a_seed_gives_the_same_weights_for_ever() {
        let weights = Weights::init(3, 4, 42);
        assert_eq!(weights, Weights::init(3, 4, 42));
        assert_ne!(weights.w_enc, Weights::init(3, 4, 43).w_enc);
        assert_ne!(weights.w_dec, Weights::init(3, 4, 43).w_dec);
        // Pinned: published runs name their seed.
        assert_eq!(weights.w_enc.as_slice().unwrap()[..3], PINNED_ENCODER);
        assert_eq!(weights.w_dec.as_slice().unwrap()[..3], PINNED_DECODER);
    }
    const PINNED_ENCODER: [f32; 3] = [-0.6758614, 0.44555277, -0.8661734];
    const PINNED_DECODER: [f32; 3] = [0.20183475, 0.81237245, 0.5470957];

    #[test]
    fn decoder_rows_start_at_the_norm_asked_for_or_as_drawn() {
        let init = |decoder_norm| Weights::init_with(17, 40, 5, &Init { decoder_norm, ..Init::default() });
        let (tenth, drawn, unit) = (init(Some(0.1)), init(None), Weights::init(17, 40, 5));
        for ((tenth, drawn), unit) in
            tenth.w_dec.rows().into_iter().zip(drawn.w_dec.rows()).zip(unit.w_dec.rows())
        {
            assert!((norm(tenth) - 0.1).abs() < 1e-7);
            for ((t, d), u) in tenth.iter().zip(drawn).zip(unit) {
                assert!((10.0 * t - u).abs() < 1e-6 && (d - norm(drawn) as f32 * u).abs() < 1e-6);
            }
        }
        // A uniform number in ±b has the variance b²/3, so a row of 17 in ±sqrt(6/17) the norm sqrt(2).
        assert!((drawn.decoder_norm_mean() - 2.0_f64.sqrt()).abs() < 0.05, "{}", drawn.decoder_norm_mean());
        assert_eq!(drawn.w_dec, kaiming_uniform(17, 0..40, 0..17, 5, 1));
        for weights in [tenth, drawn] {
            assert_eq!(weights.w_enc, unit.w_enc);
        }
    }

    #[test]
    fn a_part_of_the_features_starts_as_it_does_among_all() {
        for encoder in [EncoderInit::Kaiming, EncoderInit::Transpose { scale: 0.3 }] {
            for decoder_norm in [None, Some(0.1)] {
                let init = Init { encoder, decoder_norm };
                let whole = Weights::init_with(17, 40, 5, &init);
                for features in [0..40, 0..1, 1..14, 13..40, 39..40] {
                    let part = Weights::init_features(17, 40, features.clone(), 5, &init);
                    part.check_shapes().unwrap();
                    assert!(part.w_enc.is_standard_layout());
                    assert_eq!(part, whole.of_features(features));
                }
            }
        }
    }

    #[test]
    fn the_encoder_can_start_as_the_decoder_transposed() {
        let encoder = EncoderInit::Transpose { scale: 2.0 };
        let weights = Weights::init_with(17, 40, 5, &Init { encoder, decoder_norm: Some(0.1) });
        weights.check_shapes().unwrap();
        // To scale by 2 is exact.
        assert_eq!(weights.w_enc, 2.0 * &weights.w_dec.t());
        assert!(weights.w_enc.is_standard_layout());
    }

    #[test]
    fn a_tensor_that_does_not_fit_is_named() {
        let mut weights = Weights::init(3, 4, 0);
        weights.w_dec = Array2::zeros((4, 2));
        let message = weights.check_shapes().unwrap_err().to_string();
        assert_eq!(message, "tensor `W_dec` has shape [4, 2], but the others ask for [4, 3]");
    }
}
