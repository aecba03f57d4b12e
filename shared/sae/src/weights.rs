//! The four arrays of an autoencoder, and their initial values.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::Error;

/// The parameters, float32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Input width d.
    pub d_in: usize,
    /// Number of features F.
    pub d_sae: usize,
    /// Encoder, [d, F].
    pub w_enc: Vec<f32>,
    /// Encoder bias, [F].
    pub b_enc: Vec<f32>,
    /// Decoder, [F, d]: row j is the direction of feature j.
    pub w_dec: Vec<f32>,
    /// Decoder bias, [d].
    pub b_dec: Vec<f32>,
}

impl Weights {
    /// Kaiming-uniform encoder and decoder, biases 0, then every decoder row scaled to unit norm.
    ///
    /// The bound is sqrt(6 / fan_in) with the fan_in that torch's `kaiming_uniform_(a=0)` takes for a
    /// [rows, cols] tensor, its columns: F for the encoder [d, F], d for the decoder [F, d].
    /// The values depend on `seed` alone: ChaCha8 keyed by it, stream 0 for the encoder and stream 1
    /// for the decoder, the top 24 bits of every 32-bit output as a fraction.
    pub fn init(d_in: usize, d_sae: usize, seed: u64) -> Weights {
        let mut weights = Weights {
            d_in,
            d_sae,
            w_enc: kaiming_uniform(d_in, d_sae, seed, 0),
            b_enc: vec![0.0; d_sae],
            w_dec: kaiming_uniform(d_sae, d_in, seed, 1),
            b_dec: vec![0.0; d_in],
        };
        weights.normalize_decoder();
        weights
    }

    /// Scales every decoder row to norm 1. A row of zeros stays one.
    pub fn normalize_decoder(&mut self) {
        for row in self.w_dec.chunks_exact_mut(self.d_in) {
            let norm = norm(row);
            if norm > 0.0 {
                row.iter_mut().for_each(|w| *w = (f64::from(*w) / norm) as f32);
            }
        }
    }

    /// Mean over the features of the decoder rows' norms.
    pub fn decoder_norm_mean(&self) -> f64 {
        self.w_dec.chunks_exact(self.d_in).map(norm).sum::<f64>() / self.d_sae as f64
    }

    /// The arrays with their names in files and their shapes, in a fixed order.
    pub fn tensors(&self) -> [(&'static str, Vec<usize>, &[f32]); 4] {
        [
            ("W_enc", vec![self.d_in, self.d_sae], &self.w_enc),
            ("b_enc", vec![self.d_sae], &self.b_enc),
            ("W_dec", vec![self.d_sae, self.d_in], &self.w_dec),
            ("b_dec", vec![self.d_in], &self.b_dec),
        ]
    }

    /// That every array has the length its shape asks for.
    pub fn check_lengths(&self) -> Result<(), Error> {
        for (array, shape, values) in self.tensors() {
            let expected = shape.iter().product();
            if values.len() != expected {
                return Err(Error::Length { array, expected, found: values.len() });
            }
        }
        Ok(())
    }
}

/// A [rows, cols] array, uniform in ±sqrt(6 / cols).
fn kaiming_uniform(rows: usize, cols: usize, seed: u64, stream: u64) -> Vec<f32> {
    let bound = (6.0 / cols as f64).sqrt();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    // Written out rather than left to a distribution of the rand crate: a seed must give the same
    // weights after an upgrade.
    let mut uniform = || f64::from(rng.next_u32() >> 8) / f64::from(1 << 24);
    (0..rows * cols).map(|_| ((2.0 * uniform() - 1.0) * bound) as f32).collect()
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_follows_the_columns_of_each_matrix() {
        let (d, f) = (24, 150);
        let encoder = kaiming_uniform(d, f, 3, 0);
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
        for row in weights.w_dec.chunks_exact(17) {
            assert!((norm(row) - 1.0).abs() < 1e-6);
        }
        assert!((weights.decoder_norm_mean() - 1.0).abs() < 1e-6);
        assert!(weights.b_enc.iter().chain(&weights.b_dec).all(|&b| b == 0.0));
        weights.check_lengths().unwrap();
    }

    #[test]
    fn a_seed_gives_the_same_weights_for_ever() {
        let weights = Weights::init(3, 4, 42);
        assert_eq!(weights, Weights::init(3, 4, 42));
        assert_ne!(weights.w_enc, Weights::init(3, 4, 43).w_enc);
        assert_ne!(weights.w_dec, Weights::init(3, 4, 43).w_dec);
        // Pinned: published runs name their seed.
        assert_eq!(weights.w_enc[..3], PINNED_ENCODER);
        assert_eq!(weights.w_dec[..3], PINNED_DECODER);
    }
    const PINNED_ENCODER: [f32; 3] = [-0.6758614, 0.44555277, -0.8661734];
    const PINNED_DECODER: [f32; 3] = [0.20183475, 0.81237245, 0.5470957];

    #[test]
    fn an_array_of_the_wrong_length_is_named() {
        let mut weights = Weights::init(3, 4, 0);
        weights.b_enc.pop();
        let message = weights.check_lengths().unwrap_err().to_string();
        assert_eq!(message, "array `b_enc` has 3 numbers, expected 4");
    }
}
