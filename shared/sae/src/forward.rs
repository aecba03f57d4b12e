//! What the autoencoder computes, as plain loops.

use std::borrow::Cow;

use ndarray::{Array2, ArrayView2};

use crate::{InputScale, Sae, Weights};

impl Sae {
    /// The autoencoder for rows as they are, where it is one for rows that are multiplied by a factor; and that which ranks
    /// features by z, where it is one that multiplies z by the norms of decoder rows.
    pub fn folded(mut self) -> Sae {
        // First: the factor is none of the norms by which features were ranked.
        if self.config.rescale_acts_by_decoder_norm {
            self.weights.fold_decoder_norms();
        }
        if let Some(InputScale::Factor(factor)) = self.config.input_scale() {
            self.weights.fold_input_factor(factor);
        }
        self.config = self.config.folded();
        self
    }

    /// The same function with the pre-bias (`pre_bias`) or without it: b_enc takes up what b_dec W_enc adds.
    ///
    /// # Panics
    /// If features are ranked by the norms of decoder rows: see [`Sae::folded`].
    pub fn with_pre_bias(mut self, pre_bias: bool) -> Sae {
        assert!(!self.config.rescale_acts_by_decoder_norm, "b_enc is that of features as they are ranked");
        let sign = f64::from(i8::from(pre_bias) - i8::from(self.config.apply_b_dec_to_input));
        let Weights { w_enc, b_enc, b_dec, .. } = &mut self.weights;
        for (column, bias) in w_enc.columns().into_iter().zip(b_enc) {
            let shift: f64 = column.iter().zip(&*b_dec).map(|(w, b)| f64::from(*w) * f64::from(*b)).sum();
            *bias = (f64::from(*bias) + sign * shift) as f32;
        }
        self.config.apply_b_dec_to_input = pre_bias;
        self
    }

    /// The weights that encode and decode use: with the norms of decoder rows moved into the activations, where z is multiplied by
    /// them.
    fn applied(&self) -> Cow<'_, Weights> {
        if !self.config.rescale_acts_by_decoder_norm {
            return Cow::Borrowed(&self.weights);
        }
        let mut weights = self.weights.clone();
        weights.fold_decoder_norms();
        Cow::Owned(weights)
    }

    /// Features of `rows` [n, d] → [n, F]: ReLU(x W_enc + b_enc), of x - b_dec with the pre-bias; with a `k` only of the k
    /// largest of a row, the first where two are equal, with thresholds only of those above theirs. x is the row scaled as the
    /// configuration says.
    ///
    /// # Panics
    /// If the rows have another width.
    pub fn encode(&self, rows: ArrayView2<'_, f32>) -> Array2<f32> {
        let weights = &*self.applied();
        assert_eq!(rows.ncols(), weights.d_in(), "rows must be [n, {}]", weights.d_in());
        let scale = self.config.input_scale().unwrap_or_default();
        let mut features = Array2::zeros((rows.nrows(), weights.d_sae()));
        for (row, mut z) in rows.rows().into_iter().zip(features.rows_mut()) {
            z.assign(&weights.b_enc);
            let factor = scale.of_row(row);
            for (k, &x) in row.iter().enumerate() {
                let x = x * factor;
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

    /// Reconstruction of the rows that `rows` [n, d] stand for: [`Sae::decode`] of their features, and a skip connection's part.
    ///
    /// # Panics
    /// If the rows have another width.
    pub fn reconstruct(&self, rows: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut reconstruction = self.decode(self.encode(rows).view());
        if let Some(skip) = &self.weights.skip {
            let scale = self.config.input_scale().unwrap_or_default();
            for (row, mut xhat) in rows.rows().into_iter().zip(reconstruction.rows_mut()) {
                let x = row.mapv(|x| x * scale.of_row(row));
                xhat += &skip.dot(&x);
            }
        }
        reconstruction
    }

    /// Reconstruction of `features` [n, F] → [n, d]: a W_dec + b_dec, of the rows as they were scaled.
    ///
    /// # Panics
    /// If there is another number of features.
    pub fn decode(&self, features: ArrayView2<'_, f32>) -> Array2<f32> {
        let weights = &*self.applied();
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

    use crate::{Config, InputScale, Metadata, Sae, Weights};

    fn hand_made(pre_bias: bool) -> Sae {
        // d = 2, F = 3
        let weights = Weights {
            w_enc: array![[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]],
            b_enc: array![0.5, -1.0, 0.0],
            w_dec: array![[1.0, 0.0], [0.0, 3.0], [-1.0, 2.0]],
            b_dec: array![0.25, -0.5],
            threshold: None,
            skip: None,
        };
        let config = Config::standard(2, 3, pre_bias, Metadata::default());
        Sae { weights, config, log_sparsity: None }
    }

    #[test]
    fn features_ranked_by_decoder_norm_are_folded_to_the_same() {
        let mut sae = hand_made(false);
        sae.config = sae.config.topk(1);
        let rows = aview2(&[[4.0, 2.0], [-5.0, 1.0]]);
        let by_z = sae.encode(rows);
        sae.config = sae.config.ranked_by_decoder_norm(true);
        // z of the first row is 4.5, 3, -2, and the decoder rows' norms are 1, 3 and the root of 5.
        let features = sae.encode(rows);
        assert_eq!((by_z[[0, 0]], features[[0, 0]], features[[0, 1]]), (4.5, 0.0, 9.0));
        assert_eq!(sae.decode(features.view()).row(0), array![0.25, 8.5]);
        let folded = sae.clone().folded();
        assert!(!folded.config.rescale_acts_by_decoder_norm);
        assert_eq!((folded.encode(rows), folded.reconstruct(rows)), (features, sae.reconstruct(rows)));
    }

    #[test]
    fn the_encoder_bias_can_take_up_the_pre_bias() {
        let rows = aview2(&[[4.0, 2.0], [-5.0, 1.0]]);
        for pre_bias in [false, true] {
            let sae = hand_made(pre_bias);
            let other = sae.clone().with_pre_bias(!pre_bias);
            assert_eq!(other.config.apply_b_dec_to_input, !pre_bias);
            assert_ne!(other.weights.b_enc, sae.weights.b_enc);
            assert_eq!(
                (other.encode(rows), other.reconstruct(rows)),
                (sae.encode(rows), sae.reconstruct(rows))
            );
            assert_eq!(sae.clone().with_pre_bias(pre_bias), sae);
        }
    }

    #[test]
    fn scaled_rows_and_folded_weights_give_the_same() {
        for pre_bias in [false, true] {
            let mut sae = hand_made(pre_bias);
            let rows = aview2(&[[3.0, 4.0], [0.5, -0.25]]);
            let (scaled, plain) = (rows.mapv(|x| 4.0 * x), sae.clone());
            sae.config = sae.config.scaled(InputScale::Factor(4.0));
            let features = plain.encode(scaled.view());
            assert_eq!(sae.encode(rows), features);
            let folded = sae.folded();
            assert_eq!(
                (folded.encode(rows), &*folded.config.normalize_activations),
                (features.clone(), "none")
            );
            assert_eq!(folded.decode(features.view()), plain.decode(features.view()) / 4.0);
        }
    }

    #[test]
    fn each_row_can_be_scaled_to_the_root_of_its_width() {
        let plain = hand_made(true);
        let config = plain.config.clone().scaled(InputScale::RowNorm);
        let rows = aview2(&[[3.0, 4.0], [0.0, 0.0]]);
        let root = 2.0_f32.sqrt();
        let scaled = array![[0.6 * root, 0.8 * root], [0.0, 0.0]];
        let found = Sae { config, ..plain.clone() }.encode(rows);
        let far = (&found - &plain.encode(scaled.view())).fold(0.0_f32, |far, x| far.max(x.abs()));
        assert!(far < 1e-6, "{far}");
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
    fn a_skip_connection_adds_what_it_makes_of_the_row() {
        let mut sae = hand_made(false);
        sae.weights.skip = Some(array![[0.0, 10.0], [1.0, 0.0]]);
        sae.config = sae.config.transcoder(true);
        // What the features make is that of the test above.
        let rows = aview2(&[[1.0, 2.0], [-1.0, 0.0]]);
        assert_eq!(sae.reconstruct(rows), array![[20.75, 11.5], [-0.75, 0.5]]);
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
