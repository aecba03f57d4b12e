//! `--input-scale`: rows are scaled between the store and the engine, which sees nothing else.

use anyhow::{Result, ensure};
use ndarray::{Array2, ArrayView1, ArrayView2};
use sae::{InputScale, Weights};

use crate::command::arguments::InputScaleChoice;
use crate::engine::{Rows, StoredBatch};
use crate::runs::batches::Batches;

/// Scales rows.
#[derive(Debug)]
pub(crate) struct Scaler {
    scale: InputScale,
    /// The last rows that were scaled, [n, d].
    scaled: Array2<f32>,
}

impl Scaler {
    /// As `choice` says; the factor of `mean-norm` and `mean-square` is `known`, of a run that goes on, or taken from the first rows of
    /// `batches`.
    pub(crate) fn new(choice: InputScaleChoice, known: Option<f64>, batches: &mut Batches) -> Result<Scaler> {
        let scale = match (choice, known) {
            (InputScaleChoice::None, _) => InputScale::None,
            (InputScaleChoice::RowNorm, _) => InputScale::RowNorm,
            (InputScaleChoice::MeanNorm | InputScaleChoice::MeanSquare, Some(factor)) => {
                InputScale::Factor(factor)
            }
            (InputScaleChoice::MeanNorm, None) => {
                InputScale::Factor(mean_norm_factor(batches.sample()?.view())?)
            }
            (InputScaleChoice::MeanSquare, None) => {
                InputScale::Factor(mean_square_factor(batches.sample()?.view())?)
            }
        };
        Ok(Scaler { scale, scaled: Array2::zeros((0, 0)) })
    }

    pub(crate) fn scale(&self) -> InputScale {
        self.scale
    }

    /// A batch as the engine gets it. Pairs of rows are never scaled: one factor does not fit both.
    pub(crate) fn apply<'a>(&'a mut self, batch: StoredBatch<'a>) -> StoredBatch<'a> {
        if self.scale == InputScale::None {
            return batch;
        }
        debug_assert!(batch.target.is_none(), "the settings refuse a scale for pairs of rows");
        let rows = batch.input.to_f32();
        if self.scaled.dim() != rows.dim() {
            self.scaled = Array2::zeros(rows.dim());
        }
        let scale = self.scale;
        for (row, mut scaled) in rows.rows().into_iter().zip(self.scaled.rows_mut()) {
            let factor = scale.of_row(row);
            scaled.zip_mut_with(&row, |scaled, x| *scaled = x * factor);
        }
        Rows::F32(self.scaled.view()).into()
    }

    /// Scales `rows` [n, d].
    pub(crate) fn scale_in_place(&self, rows: &mut Array2<f32>) {
        for mut row in rows.rows_mut() {
            let factor = self.scale.of_row(row.view());
            row.mapv_inplace(|x| x * factor);
        }
    }

    /// The weights that compute of scaled rows what `weights` compute of rows as they are.
    pub(crate) fn weights(&self, mut weights: Weights) -> Weights {
        if let InputScale::Factor(factor) = self.scale {
            weights.fold_input_factor(1.0 / factor);
        }
        weights
    }
}

/// √d over the mean norm of `rows` [n, d].
fn mean_norm_factor(rows: ArrayView2<'_, f32>) -> Result<f64> {
    let mean = rows.rows().into_iter().map(|row| squared_norm(row).sqrt()).sum::<f64>() / rows.nrows() as f64;
    let factor = (rows.ncols() as f64).sqrt() / mean;
    ensure!(
        (factor as f32).is_normal(),
        "the mean norm of the first {} rows is {mean}, and no factor makes it the root of their width; use --input-scale none",
        rows.nrows()
    );
    Ok(factor)
}

/// 1 over the root of the mean squared norm of `rows` [n, d].
fn mean_square_factor(rows: ArrayView2<'_, f32>) -> Result<f64> {
    let mean = rows.rows().into_iter().map(squared_norm).sum::<f64>() / rows.nrows() as f64;
    let factor = 1.0 / mean.sqrt();
    ensure!(
        (factor as f32).is_normal(),
        "the mean squared norm of the first {} rows is {mean}, and no factor makes it 1; use --input-scale none",
        rows.nrows()
    );
    Ok(factor)
}

fn squared_norm(row: ArrayView1<'_, f32>) -> f64 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use ndarray::{array, aview2};

    use super::*;

    fn scaler(scale: InputScale) -> Scaler {
        Scaler { scale, scaled: Array2::zeros((0, 0)) }
    }

    fn stored(rows: &Array2<f32>) -> StoredBatch<'_> {
        Rows::F32(rows.view()).into()
    }

    #[test]
    fn the_mean_norm_becomes_the_root_of_the_width() {
        let rows = array![[3.0, 0.0, 4.0, 0.0], [0.0, -1.0, 0.0, 0.0]];
        let factor = mean_norm_factor(rows.view()).unwrap();
        assert_eq!(factor, 2.0 / 3.0);
        assert!(mean_norm_factor(aview2(&[[0.0, 0.0]])).unwrap_err().to_string().contains("is 0"));
    }

    #[test]
    fn the_mean_squared_norm_becomes_one() {
        let rows = array![[3.0, 0.0, 4.0, 0.0], [0.0, -1.0, 0.0, 0.0]];
        let factor = mean_square_factor(rows.view()).unwrap();
        assert!((factor - 1.0 / 13.0_f64.sqrt()).abs() < 1e-15, "{factor}");
        assert!(mean_square_factor(aview2(&[[0.0, 0.0]])).unwrap_err().to_string().contains("is 0"));
    }

    #[test]
    fn rows_are_scaled_and_left_alone_without_a_scale() {
        let rows = array![[3.0, 4.0], [0.0, 0.0]];
        let mut none = scaler(InputScale::None);
        assert_eq!(none.apply(stored(&rows)), stored(&rows));
        let mut factor = scaler(InputScale::Factor(0.5));
        assert_eq!(factor.apply(stored(&rows)), stored(&array![[1.5, 2.0], [0.0, 0.0]]));
        let mut each = scaler(InputScale::RowNorm);
        let mut in_place = rows.clone();
        each.scale_in_place(&mut in_place);
        let Rows::F32(found) = each.apply(stored(&rows)).input else { panic!("float32 rows") };
        assert_eq!(found, in_place);
        assert!((found[[0, 0]] - 0.6 * 2.0_f32.sqrt()).abs() < 1e-6 && found[[1, 1]] == 0.0, "{found}");
    }
}
