//! An autoencoder's tensors by name, and Adam's moments in the same shapes.

use std::collections::BTreeMap;
use std::ops::Range;

use ndarray::{Array1, Array2, ArrayD, ArrayView1, ArrayView2, ArrayViewD, s};

use crate::error::StepError;
use crate::spec::StepSpec;

/// The tensors of a step, row-major. Everything about one feature is contiguous: the encoder is transposed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters {
    /// W_enc transposed, [F,d]: row j is what feature j looks for.
    pub encoder: Array2<f32>,
    /// b_enc, [F].
    pub encoder_bias: Array1<f32>,
    /// W_dec, [F,d]: row j is the direction of feature j.
    pub decoder: Array2<f32>,
    /// b_dec, [d].
    pub decoder_bias: Array1<f32>,
    /// θ of JumpReLU, [F].
    pub threshold: Option<Array1<f32>>,
    /// W_skip, [d,d]: row k is what output k takes of the input.
    pub skip: Option<Array2<f32>>,
}

/// A tensor's name and shape.
pub type Shape = (&'static str, Vec<usize>);

impl Parameters {
    /// The names and shapes of all tensors of such a step, in the order in which they lie in a file.
    pub fn shapes(spec: &StepSpec) -> Vec<Shape> {
        let (width, features) = (spec.width, spec.features);
        let mut shapes = vec![
            ("encoder", vec![features, width]),
            ("encoder_bias", vec![features]),
            ("decoder", vec![features, width]),
            ("decoder_bias", vec![width]),
        ];
        shapes.extend(spec.activation.has_thresholds().then(|| ("threshold", vec![features])));
        shapes.extend(spec.skip.then(|| ("skip", vec![width, width])));
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
        spec: &StepSpec,
        mut numbers: impl FnMut(&'static str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Parameters, E> {
        let shapes = Parameters::shapes(spec).into_iter();
        let tensors = shapes.map(|(name, shape)| {
            let numbers = numbers(name, &shape)?;
            Ok((name, ArrayD::from_shape_vec(shape, numbers).expect("as many numbers as the shape has")))
        });
        let mut tensors = tensors.collect::<Result<BTreeMap<&'static str, ArrayD<f32>>, E>>()?;
        let (present, of_rank) = ("every step has these four", "a shape has its own rank");
        let mut take = |name| tensors.remove(name);
        Ok(Parameters {
            encoder: take("encoder").expect(present).into_dimensionality().expect(of_rank),
            encoder_bias: take("encoder_bias").expect(present).into_dimensionality().expect(of_rank),
            decoder: take("decoder").expect(present).into_dimensionality().expect(of_rank),
            decoder_bias: take("decoder_bias").expect(present).into_dimensionality().expect(of_rank),
            threshold: take("threshold").map(|tensor| tensor.into_dimensionality().expect(of_rank)),
            skip: take("skip").map(|tensor| tensor.into_dimensionality().expect(of_rank)),
        })
    }

    /// The tensors of some of the features, and those that belong to none: W_skip only `with_skip`.
    pub(crate) fn of_features(&self, features: Range<usize>, with_skip: bool) -> Parameters {
        let rows = s![features.clone(), ..];
        Parameters {
            encoder: self.encoder.slice(rows).to_owned(),
            encoder_bias: self.encoder_bias.slice(s![features.clone()]).to_owned(),
            decoder: self.decoder.slice(rows).to_owned(),
            decoder_bias: self.decoder_bias.clone(),
            threshold: self.threshold.as_ref().map(|threshold| threshold.slice(s![features]).to_owned()),
            skip: self.skip.clone().filter(|_| with_skip),
        }
    }

    /// Zeros in the same shapes.
    pub fn zeros_like(&self) -> Parameters {
        let (features, width) = self.decoder.dim();
        Parameters {
            encoder: Array2::zeros((features, width)),
            encoder_bias: Array1::zeros(features),
            decoder: Array2::zeros((features, width)),
            decoder_bias: Array1::zeros(width),
            threshold: self.threshold.as_ref().map(|_| Array1::zeros(features)),
            skip: self.skip.as_ref().map(|_| Array2::zeros((width, width))),
        }
    }

    /// The tensors with their names, in the order of [`Parameters::shapes`].
    pub fn tensors(&self) -> Vec<(&'static str, ArrayViewD<'_, f32>)> {
        let mut tensors = vec![
            ("encoder", self.encoder.view().into_dyn()),
            ("encoder_bias", self.encoder_bias.view().into_dyn()),
            ("decoder", self.decoder.view().into_dyn()),
            ("decoder_bias", self.decoder_bias.view().into_dyn()),
        ];
        let threshold = self.threshold.as_ref();
        tensors.extend(threshold.map(|threshold| ("threshold", threshold.view().into_dyn())));
        tensors.extend(self.skip.as_ref().map(|skip| ("skip", skip.view().into_dyn())));
        tensors
    }

    /// Checks that these are the tensors of such a step.
    ///
    /// # Errors
    /// Names the first one of another shape or order.
    pub fn check(&self, spec: &StepSpec) -> Result<(), StepError> {
        let (tensors, shapes) = (self.tensors(), Parameters::shapes(spec));
        let absent = || "absent".to_owned();
        for (array, tensor) in &tensors {
            if !shapes.iter().any(|(name, _)| name == array) {
                let found = format!("{:?}", tensor.shape());
                return Err(StepError::Shape { array, found, expected: absent() });
            }
        }
        for (array, expected) in shapes {
            let Some((_, tensor)) = tensors.iter().find(|(name, _)| *name == array) else {
                let expected = format!("{expected:?}");
                return Err(StepError::Shape { array, found: absent(), expected });
            };
            if tensor.shape() != expected || !tensor.is_standard_layout() {
                return Err(StepError::shape(array, tensor.shape(), &expected));
            }
        }
        Ok(())
    }
}

/// The numbers of an array of a checked shape, row-major.
pub(crate) fn numbers<S, D>(array: &ndarray::ArrayBase<S, D>) -> &[f32]
where
    S: ndarray::Data<Elem = f32>,
    D: ndarray::Dimension,
{
    array.as_slice().expect("tensors are row-major")
}

/// The same to be changed.
pub(crate) fn numbers_mut<D: ndarray::Dimension>(array: &mut ndarray::Array<f32, D>) -> &mut [f32] {
    array.as_slice_mut().expect("tensors are row-major")
}

/// The norm of each row.
pub(crate) fn row_norms(matrix: &Array2<f32>) -> impl Iterator<Item = f64> {
    let squares = |row: ArrayView1<'_, f32>| row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>();
    matrix.rows().into_iter().map(move |row| squares(row).sqrt())
}

/// [rows, columns] → [columns, rows], row-major.
pub fn transposed(matrix: ArrayView2<'_, f32>) -> Array2<f32> {
    /// Side of a block: 32 lines of the source and of the target fit the first cache level.
    const SIDE: usize = 32;
    let matrix = matrix.as_standard_layout();
    let (rows, columns) = matrix.dim();
    let (from, mut out) = (numbers(&matrix), vec![0.0; matrix.len()]);
    for first_row in (0..rows).step_by(SIDE) {
        for first_column in (0..columns).step_by(SIDE) {
            for row in first_row..(first_row + SIDE).min(rows) {
                for column in first_column..(first_column + SIDE).min(columns) {
                    out[column * rows + row] = from[row * columns + column];
                }
            }
        }
    }
    Array2::from_shape_vec((columns, rows), out).expect("as many numbers as before")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::loss::{LossSpec, Mse};

    #[test]
    fn transposing_gives_the_transpose_and_twice_the_matrix() {
        let (rows, columns) = (45, 70);
        let numbers = (0..rows * columns).map(|at| at as f32).collect();
        let matrix = Array2::from_shape_vec((rows, columns), numbers).unwrap();
        let transpose = transposed(matrix.view());
        assert_eq!(transpose[[41, 3]], matrix[[3, 41]]);
        assert!(transpose.is_standard_layout());
        assert_eq!(transposed(transpose.view()), matrix);
        assert_eq!(transposed(matrix.t()), matrix);
    }

    #[test]
    fn tensors_shapes_and_numbers_agree_by_name() {
        let relu = StepSpec::new(3, 5, 1, LossSpec::reconstruction(Mse::Sum));
        let activation = Activation::JumpRelu { bandwidth: 0.1, to_input: false };
        let jump = StepSpec { activation, ..relu };
        let (skip, both) = (StepSpec { skip: true, ..relu }, StepSpec { skip: true, ..jump });
        for (spec, count, other, named) in [
            (relu, 4, jump, "threshold"),
            (jump, 5, relu, "threshold"),
            (skip, 5, relu, "skip"),
            (jump, 5, skip, "threshold"),
            (both, 6, jump, "skip"),
        ] {
            let filled = Parameters::from_numbers(&spec, |name, shape| {
                Ok::<_, ()>(vec![name.len() as f32; shape.iter().product()])
            })
            .unwrap();
            filled.check(&spec).unwrap();
            filled.zeros_like().check(&spec).unwrap();
            assert_eq!(filled.tensors().len(), count);
            for ((name, tensor), (expected, shape)) in
                filled.tensors().into_iter().zip(Parameters::shapes(&spec))
            {
                assert_eq!((name, tensor.shape()), (expected, &shape[..]));
                assert!(tensor.iter().all(|number| *number == name.len() as f32));
            }
            assert!(filled.check(&other).unwrap_err().to_string().contains(named));
        }
    }
}
