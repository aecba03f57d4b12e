//! What the autoencoder computes, as plain loops.

use ndarray::{Array2, ArrayView2};

use crate::Sae;

impl Sae {
    /// Features of `rows` [n, d] → [n, F]: ReLU(x W_enc + b_enc), of x - b_dec with the pre-bias; with a `k` only of the k
    /// largest of a row, the first where two are equal, with thresholds only of those above theirs.
    ///
    /// # Panics
    /// If the rows have another width.
    pub fn encode(&self, rows: ArrayView2<'_, f32>) -> Array2<f32> {
        let weights = &self.weights;
        assert_eq!(rows.ncols(), weights.d_in(), "rows must be [n, {}]", weights.d_in());
        let mut features = Array2::zeros((rows.nrows(), weights.d_sae()));
        for (row, mut z) in rows.rows().into_iter().zip(features.rows_mut()) {
            z.assign(&weights.b_enc);
            for (k, &x) in row.iter().enumerate() {
                let x = if self.config.apply_b_dec_to_input { x - weights.b_dec[k] } else { x };
                z.zip_mut_with(&weights.w_enc.row(k), |z, &w| *z += x * w);
            }
            if let Some(k) = self.config.largest() {
                let mut order: Vec<usize> = (0..z.len()).collect();
                order.sort_by(|a, b| z[*b].total_cmp(&z[*a]));
                order.into_iter().skip(k).for_each(|j| z[j] = 0.0);
            }
            if let Some(threshold) = &weights.threshold {
                z.zip_mut_with(threshold, |z, threshold| *z = if *z > *threshold { *z } else { 0.0 });
            }
            z.mapv_inplace(|z| z.max(0.0));
        }
        features
    }

    /// Reconstruction of `features` [n, F] → [n, d]: a W_dec + b_dec.
    ///
    /// # Panics
    /// If there is another number of features.
    pub fn decode(&self, features: ArrayView2<'_, f32>) -> Array2<f32> {
        let weights = &self.weights;
        assert_eq!(features.ncols(), weights.d_sae(), "features must be [n, {}]", weights.d_sae());
        let mut rows = Array2::zeros((features.nrows(), weights.d_in()));
        for (activations, mut row) in features.rows().into_iter().zip(rows.rows_mut()) {
            row.assign(&weights.b_dec);
            for (j, &a) in activations.iter().enumerate().filter(|(_, a)| **a != 0.0) {
                row.zip_mut_with(&weights.w_dec.row(j), |x, &w| *x += a * w);
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{array, aview2};

    use crate::{Config, Metadata, Sae, Weights};

    fn hand_made(pre_bias: bool) -> Sae {
        // d = 2, F = 3
        let weights = Weights {
            w_enc: array![[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]],
            b_enc: array![0.5, -1.0, 0.0],
            w_dec: array![[1.0, 0.0], [0.0, 3.0], [-1.0, 2.0]],
            b_dec: array![0.25, -0.5],
            threshold: None,
        };
        let config = Config::standard(2, 3, pre_bias, Metadata::default());
        Sae { weights, config, log_sparsity: None }
    }

    #[test]
    fn two_rows_give_the_numbers_worked_out_by_hand() {
        let sae = hand_made(false);
        // row [1, 2]: z = [1.5, 3, 1]; row [-1, 0]: z = [-0.5, -1, 1]
        let features = sae.encode(aview2(&[[1.0, 2.0], [-1.0, 0.0]]));
        assert_eq!(features, array![[1.5, 3.0, 1.0], [0.0, 0.0, 1.0]]);
        assert_eq!(sae.decode(features.view()), array![[0.75, 10.5], [-0.75, 1.5]]);
    }

    #[test]
    fn a_k_keeps_the_largest_of_each_row() {
        let mut sae = hand_made(false);
        sae.config = sae.config.topk(2);
        assert_eq!(sae.encode(aview2(&[[1.0, 2.0], [-1.0, 0.0]])), array![[1.5, 3.0, 0.0], [0.0, 0.0, 1.0]]);
    }

    #[test]
    fn thresholds_leave_what_is_above_them_as_it_is() {
        let mut sae = hand_made(false);
        sae.config = sae.config.jumprelu();
        sae.weights.threshold = Some(array![1.5, 2.0, 0.5]);
        assert_eq!(sae.encode(aview2(&[[1.0, 2.0], [-1.0, 0.0]])), array![[0.0, 3.0, 1.0], [0.0, 0.0, 1.0]]);
    }

    #[test]
    fn the_pre_bias_shifts_the_input_of_the_encoder_only() {
        let sae = hand_made(true);
        // x - b_dec = [0.75, 2.5]: z = [1.25, 4, 1.75]
        assert_eq!(sae.encode(aview2(&[[1.0, 2.0]])), array![[1.25, 4.0, 1.75]]);
        assert_eq!(sae.decode(aview2(&[[1.0, 0.0, 0.0]])), array![[1.25, -0.5]]);
    }
}
