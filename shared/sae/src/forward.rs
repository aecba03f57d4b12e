//! What the autoencoder computes, as plain loops.

use crate::{Sae, Weights};

impl Sae {
    /// Features of `rows` [n, d] → [n, F]: ReLU(x W_enc + b_enc), of x - b_dec with the pre-bias.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows of width d.
    pub fn encode(&self, rows: &[f32]) -> Vec<f32> {
        let Weights { d_in, d_sae, w_enc, b_enc, b_dec, .. } = &self.weights;
        assert_eq!(rows.len() % d_in, 0, "rows must be [n, {d_in}]");
        let mut features = Vec::with_capacity(rows.len() / d_in * d_sae);
        for row in rows.chunks_exact(*d_in) {
            let start = features.len();
            features.extend_from_slice(b_enc);
            let z = &mut features[start..];
            for (k, &x) in row.iter().enumerate() {
                let x = if self.config.apply_b_dec_to_input { x - b_dec[k] } else { x };
                for (z, &w) in z.iter_mut().zip(&w_enc[k * d_sae..][..*d_sae]) {
                    *z += x * w;
                }
            }
            z.iter_mut().for_each(|z| *z = z.max(0.0));
        }
        features
    }

    /// Reconstruction of `features` [n, F] → [n, d]: a W_dec + b_dec.
    ///
    /// # Panics
    /// If `features` is not a whole number of rows of F features.
    pub fn decode(&self, features: &[f32]) -> Vec<f32> {
        let Weights { d_in, d_sae, w_dec, b_dec, .. } = &self.weights;
        assert_eq!(features.len() % d_sae, 0, "features must be [n, {d_sae}]");
        let mut rows = Vec::with_capacity(features.len() / d_sae * d_in);
        for activations in features.chunks_exact(*d_sae) {
            let start = rows.len();
            rows.extend_from_slice(b_dec);
            let row = &mut rows[start..];
            for (j, &a) in activations.iter().enumerate().filter(|(_, a)| **a != 0.0) {
                for (x, &w) in row.iter_mut().zip(&w_dec[j * d_in..][..*d_in]) {
                    *x += a * w;
                }
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use crate::{Config, Metadata, Sae, Weights};

    fn hand_made(pre_bias: bool) -> Sae {
        // d = 2, F = 3
        let weights = Weights {
            d_in: 2,
            d_sae: 3,
            w_enc: vec![1.0, 0.0, -1.0, 0.0, 2.0, 1.0],
            b_enc: vec![0.5, -1.0, 0.0],
            w_dec: vec![1.0, 0.0, 0.0, 3.0, -1.0, 2.0],
            b_dec: vec![0.25, -0.5],
        };
        let config = Config::standard(2, 3, pre_bias, Metadata::default());
        Sae { weights, config, log_sparsity: None }
    }

    #[test]
    fn two_rows_give_the_numbers_worked_out_by_hand() {
        let sae = hand_made(false);
        // row [1, 2]: z = [1.5, 3, 1]; row [-1, 0]: z = [-0.5, -1, 1]
        let features = sae.encode(&[1.0, 2.0, -1.0, 0.0]);
        assert_eq!(features, [1.5, 3.0, 1.0, 0.0, 0.0, 1.0]);
        assert_eq!(sae.decode(&features), [0.75, 10.5, -0.75, 1.5]);
    }

    #[test]
    fn the_pre_bias_shifts_the_input_of_the_encoder_only() {
        let sae = hand_made(true);
        // x - b_dec = [0.75, 2.5]: z = [1.25, 4, 1.75]
        assert_eq!(sae.encode(&[1.0, 2.0]), [1.25, 4.0, 1.75]);
        assert_eq!(sae.decode(&[1.0, 0.0, 0.0]), [1.25, -0.5]);
    }
}
