//! New weights for dead features: "neuron resampling" from T. Bricken et al., "Towards Monosemanticity" (2023).
//!
//! Every `--revive-every` steps, each dead feature (see `--dead-rows`) is given a row of the batch, drawn with a probability
//! proportional to the square of the row's loss. With v = x − b_dec of that row:
//!
//! ```text
//! W_dec_j = v / ‖v‖        W_enc_j = 0.2 · (mean ‖W_enc‖ of the live features) · v / ‖v‖        b_enc_j = 0
//! ```
//!
//! and its moments are 0; a threshold is what it was at the start. A transcoder's feature writes the direction of y − b_dec, of the
//! row's target y, and reads that of the row x itself; with a skip connection it is y − b_dec − x W_skipᵀ. The loss is the training
//! loss, so rows with large norms, such as those of BOS tokens, do not
//! take every draw where the loss divides by the norm. There are two differences from the paper, because rows are drawn from
//! one batch and not from 819,200 rows. A row is given to only one feature, since two features with the same weights would
//! stay the same for ever. Dead features in excess of the batch's rows wait until the next time.

use std::borrow::Cow;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use crate::command::settings::Settings;
use crate::engine::{Batch, Mse, NewFeature};

/// The encoder row of a revived feature, as a share of the live features' mean norm.
const ENCODER_SHARE: f64 = 0.2;

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ResampleRecord {
    kind: &'static str,
    /// Steps done.
    step: u64,
    /// Features that were dead.
    pub(crate) dead_features: usize,
    /// Those of them that got new weights.
    pub(crate) resampled_features: usize,
}

/// What there is to know of the features of an autoencoder before dead ones are given new weights.
pub(crate) struct Features<'a> {
    /// Steps done.
    pub(crate) step: u64,
    /// [F].
    pub(crate) steps_since_fired: Cow<'a, Array1<u64>>,
    /// ‖W_enc‖ of each feature, [F].
    pub(crate) encoder_norms: Vec<f64>,
    /// [d].
    pub(crate) decoder_bias: Array1<f32>,
    /// W_skip, [d, d].
    pub(crate) skip: Option<Array2<f32>>,
}

impl Features<'_> {
    /// What dead features are to be, from the rows of `batch`, of which `errors` [B] are the ‖x̂ − x‖². The draw depends on the
    /// run's seed and on the step alone.
    pub(crate) fn resample(
        &self,
        settings: &Settings,
        batch: Batch<'_>,
        errors: ArrayView1<'_, f32>,
    ) -> (ResampleRecord, Vec<NewFeature>) {
        let silence = settings.dead_steps().min(self.step);
        let (dead, live): (Vec<usize>, Vec<usize>) =
            (0..settings.step.features).partition(|&j| self.steps_since_fired[j] >= silence);
        let mut record = ResampleRecord {
            kind: "resample",
            step: self.step,
            dead_features: dead.len(),
            resampled_features: 0,
        };
        if dead.is_empty() {
            return (record, Vec::new());
        }
        // If no feature lives, the dead ones have to provide the scale.
        let scale_from = if live.is_empty() { &dead } else { &live };
        let norms = scale_from.iter().map(|&j| self.encoder_norms[j]);
        let encoder_norm = ENCODER_SHARE * norms.sum::<f64>() / scale_from.len() as f64;

        let losses = row_losses(settings.step.loss.mse, batch.target, errors);
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        random.set_stream(self.step);
        let rows = draw(&losses, dead.len(), &mut random);
        let new_feature = |(feature, row): (usize, usize)| {
            let mut missing = &batch.target.row(row) - &self.decoder_bias;
            if let Some(skip) = &self.skip {
                missing -= &skip.dot(&batch.input.row(row));
            }
            let written = direction(missing.view())?;
            let read = match batch.has_its_own_target() {
                true => direction(batch.input.row(row))?,
                false => written.clone(),
            };
            Some(NewFeature {
                feature,
                encoder: read.into_iter().map(|read| (encoder_norm * read) as f32).collect(),
                decoder: written.into_iter().map(|written| written as f32).collect(),
                // Behind the threshold that it could not reach it would stay dead.
                threshold: settings.threshold_init as f32,
            })
        };
        let new: Vec<NewFeature> = dead.into_iter().zip(rows).filter_map(new_feature).collect();
        record.resampled_features = new.len();
        (record, new)
    }
}

/// The reconstruction loss of each row, up to a factor that all share.
fn row_losses(mse: Mse, batch: ArrayView2<'_, f32>, errors: ArrayView1<'_, f32>) -> Vec<f64> {
    let mut mean = Array1::<f64>::zeros(batch.ncols());
    if mse == Mse::Centered {
        for row in batch.rows() {
            mean.zip_mut_with(&row, |mean, x| *mean += f64::from(*x));
        }
        mean /= errors.len() as f64;
    }
    let losses = batch.rows().into_iter().zip(errors).map(|(row, error)| {
        let squares = row.iter().zip(&mean).map(|(x, mean)| (f64::from(*x) - mean).powi(2));
        let divisor = match mse {
            Mse::Sum => 1.0,
            Mse::Centered | Mse::Uncentered => squares.sum::<f64>().sqrt(),
        };
        if divisor > 0.0 { f64::from(*error) / divisor } else { 0.0 }
    });
    losses.collect()
}

/// At most `count` different rows, drawn one after another with probabilities proportional to losses², those drawn left
/// out: the rows with the least E / loss², E exponentially distributed (Efraimidis and Spirakis, 2006).
fn draw(losses: &[f64], count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut keys: Vec<(f64, usize)> = Vec::new();
    for (row, loss) in losses.iter().enumerate() {
        // In (0, 1]; drawn for every row, so that one row's loss does not move the draws of others.
        let uniform = ((random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let weight = loss * loss;
        if weight > 0.0 && weight.is_finite() {
            keys.push((-uniform.ln() / weight, row));
        }
    }
    keys.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    keys.into_iter().take(count).map(|(_, row)| row).collect()
}

/// `values` over their norm, unless that is 0 or infinite.
fn direction(values: ArrayView1<'_, f32>) -> Option<Vec<f64>> {
    let length = norm(values);
    (length > 0.0 && length.is_finite()).then(|| values.iter().map(|v| f64::from(*v) / length).collect())
}

fn norm(values: ArrayView1<'_, f32>) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use ndarray::{array, aview1};

    use super::*;
    use crate::command::line::CommandLine;
    use crate::engine::{Parameters, State};

    const WIDTH: usize = 2;

    fn settings(words: &str) -> Settings {
        let line = format!("sae-trainer --features 4 --batch 3 --dead-rows 30 --revive resample {words}");
        let arguments = CommandLine::try_parse_from(line.split_whitespace()).unwrap().train.settings;
        Settings::resolve(&arguments, WIDTH, None).unwrap()
    }

    /// After 50 steps: features 1 and 3 have been silent for 10 steps and more.
    fn state() -> State {
        let filled = |from: f32| Parameters {
            threshold: None,
            skip: None,
            encoder: Array2::from_shape_fn((4, 2), |(j, k)| from + (2 * j + k) as f32),
            encoder_bias: Array1::from_elem(4, from),
            decoder: Array2::from_shape_fn((4, 2), |(j, k)| from - (2 * j + k) as f32),
            decoder_bias: array![1.0, 2.0],
        };
        State {
            threshold: None,
            step: 50,
            weights: filled(1.0),
            first_moments: filled(2.0),
            second_moments: filled(3.0),
            window: Array2::from_elem((2, 4), 7),
            steps_since_fired: array![9, 10, 0, 50],
            path_choice: None,
        }
    }

    fn resample(
        state: &mut State,
        settings: &Settings,
        batch: Batch<'_>,
        errors: ArrayView1<'_, f32>,
    ) -> ResampleRecord {
        let features = Features {
            step: state.step,
            steps_since_fired: Cow::Borrowed(&state.steps_since_fired),
            encoder_norms: state.weights.encoder.rows().into_iter().map(norm).collect(),
            decoder_bias: state.weights.decoder_bias.clone(),
            skip: state.weights.skip.clone(),
        };
        let (record, new) = features.resample(settings, batch, errors);
        state.replace(0, &new);
        record
    }

    #[test]
    fn dead_features_get_directions_of_different_rows() {
        let before = state();
        let mut state = state();
        // The second row is reconstructed; the others lie at (3, 4) and (0, -2) from the decoder bias.
        let batch = array![[4.0, 6.0], [9.0, 9.0], [1.0, 0.0]];
        let errors = aview1(&[5.0, 0.0, 5.0]);
        let record = resample(&mut state, &settings("--mse sum"), batch.view().into(), errors);
        assert_eq!((record.step, record.dead_features, record.resampled_features), (50, 2, 2));
        let mut directions = [1, 3].map(|j| state.weights.decoder.row(j).to_vec());
        directions.sort_by(|a, b| a[0].total_cmp(&b[0]));
        assert_eq!(directions, [vec![0.0, -1.0], vec![0.6, 0.8]]);
        // Live encoder rows are (1, 2) and (5, 6).
        let share = 0.2 * (5f64.sqrt() + 61f64.sqrt()) / 2.0;
        for j in [1, 3] {
            for k in 0..WIDTH {
                let (encoder, decoder) = (state.weights.encoder[[j, k]], state.weights.decoder[[j, k]]);
                assert!((f64::from(encoder) - share * f64::from(decoder)).abs() < 1e-6);
                for moments in [&state.first_moments, &state.second_moments] {
                    assert_eq!((moments.encoder[[j, k]], moments.decoder[[j, k]]), (0.0, 0.0));
                    assert_eq!(moments.encoder_bias[j], 0.0);
                }
            }
            assert_eq!((state.weights.encoder_bias[j], state.steps_since_fired[j]), (0.0, 0));
        }
        for j in [0, 2] {
            for (now, then) in [
                (&state.weights, &before.weights),
                (&state.first_moments, &before.first_moments),
                (&state.second_moments, &before.second_moments),
            ] {
                assert_eq!(now.encoder.row(j), then.encoder.row(j));
                assert_eq!(now.decoder.row(j), then.decoder.row(j));
                assert_eq!(now.encoder_bias[j], then.encoder_bias[j]);
                assert_eq!(now.decoder_bias, then.decoder_bias);
            }
        }
        assert_eq!(state.window, before.window);
    }

    #[test]
    fn a_transcoder_reads_the_row_and_writes_its_target() {
        let mut state = state();
        // Two features are dead, and only one row has an error.
        let (input, target) =
            (array![[0.0, 2.0], [5.0, 0.0], [1.0, 1.0]], array![[4.0, 6.0], [9.0, 9.0], [1.0, 0.0]]);
        let batch = Batch { input: input.view(), target: target.view() };
        let record = resample(&mut state, &settings("--mse sum"), batch, aview1(&[5.0, 0.0, 0.0]));
        assert_eq!((record.dead_features, record.resampled_features), (2, 1));
        assert_eq!(state.weights.decoder.row(1), aview1(&[0.6, 0.8]));
        let share = 0.2 * (5f64.sqrt() + 61f64.sqrt()) / 2.0;
        assert_eq!(state.weights.encoder[[1, 0]], 0.0);
        assert!((f64::from(state.weights.encoder[[1, 1]]) - share).abs() < 1e-6);
    }

    #[test]
    fn a_threshold_is_what_it_was_at_the_start() {
        let mut state = state();
        for parameters in [&mut state.weights, &mut state.first_moments, &mut state.second_moments] {
            parameters.threshold = Some(array![5.0, 6.0, 7.0, 8.0]);
        }
        let batch = array![[4.0, 6.0], [9.0, 9.0], [1.0, 0.0]];
        let jump = settings("--mse sum --activation jump-relu --threshold-init 0.25");
        resample(&mut state, &jump, batch.view().into(), aview1(&[5.0, 0.0, 5.0]));
        assert_eq!(state.weights.threshold, Some(array![5.0, 0.25, 7.0, 0.25]));
        assert_eq!(state.first_moments.threshold, Some(array![5.0, 0.0, 7.0, 0.0]));
        assert_eq!(state.second_moments.threshold, Some(array![5.0, 0.0, 7.0, 0.0]));
    }

    #[test]
    fn a_revived_feature_leaves_to_the_skip_what_it_does() {
        let mut state = state();
        // Of the row (0, 2) it makes (3, 0), and (3, 4) is missing without it.
        state.weights.skip = Some(array![[7.0, 1.5], [0.0, 0.0]]);
        let (input, target) =
            (array![[0.0, 2.0], [5.0, 0.0], [1.0, 1.0]], array![[4.0, 6.0], [9.0, 9.0], [1.0, 0.0]]);
        let batch = Batch { input: input.view(), target: target.view() };
        resample(&mut state, &settings("--mse sum"), batch, aview1(&[5.0, 0.0, 0.0]));
        assert_eq!(state.weights.decoder.row(1), aview1(&[0.0, 1.0]));
    }

    #[test]
    fn rows_are_drawn_in_proportion_to_their_squared_loss() {
        let mut first = [0u32; 4];
        for seed in 0..20_000 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let rows = draw(&[1.0, 2.0, 0.0, 3.0], 4, &mut random);
            assert_eq!(rows.len(), 3, "a row without loss is not drawn, and none twice");
            first[rows[0]] += 1;
        }
        for (row, weight) in [1.0, 4.0, 0.0, 9.0].into_iter().enumerate() {
            let share = f64::from(first[row]) / 20_000.0;
            // Four standard deviations.
            assert!((share - weight / 14.0).abs() < 0.014, "row {row}: {share}");
        }
    }

    #[test]
    fn the_loss_of_a_row_is_the_one_that_is_trained() {
        let batch = array![[4.0, 3.0], [-4.0, -3.0], [0.0, 0.0]];
        let errors = aview1(&[10.0; 3]);
        let losses = |mse| row_losses(mse, batch.view(), errors);
        assert_eq!(losses(Mse::Sum), [10.0, 10.0, 10.0]);
        // A row that the loss divides by 0 is left out.
        assert_eq!(losses(Mse::Uncentered), [2.0, 2.0, 0.0]);
        assert_eq!(losses(Mse::Centered), [2.0, 2.0, 0.0]);
        let shifted = &batch + &array![100.0, 0.0];
        assert_eq!(row_losses(Mse::Centered, shifted.view(), errors), [2.0, 2.0, 0.0]);
    }

    #[test]
    fn without_dead_features_or_losses_nothing_changes() {
        let mut alive = state();
        alive.steps_since_fired = Array1::zeros(4);
        let before = alive.clone();
        let record =
            resample(&mut alive, &settings(""), Array2::ones((3, 2)).view().into(), aview1(&[1.0; 3]));
        assert_eq!((record.dead_features, record.resampled_features), (0, 0));
        assert!(alive == before);
        let mut perfect = state();
        let batch = array![[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]];
        let record = resample(&mut perfect, &settings(""), batch.view().into(), aview1(&[0.0; 3]));
        assert_eq!((record.dead_features, record.resampled_features), (2, 0));
        assert!(perfect == state());
    }
}
