//! An autoencoder's tensors by name, and Adam's moments in the same shapes.

use ndarray::{Array1, Array2, ArrayD, ArrayView2, ArrayViewD};

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
}

/// A tensor's name and shape.
pub type Shape = (&'static str, Vec<usize>);

impl Parameters {
    /// The names and shapes of all tensors, in the order in which they lie in a file.
    pub fn shapes(width: usize, features: usize) -> [Shape; 4] {
        [
            ("encoder", vec![features, width]),
            ("encoder_bias", vec![features]),
            ("decoder", vec![features, width]),
            ("decoder_bias", vec![width]),
        ]
    }

    /// Takes each tensor's numbers, row-major, from `numbers`, which is told its name and shape.
    ///
    /// # Errors
    /// Those of `numbers`.
    ///
    /// # Panics
    /// If it returns another count of numbers than the shape has.
    pub fn from_numbers<E>(
        width: usize,
        features: usize,
        mut numbers: impl FnMut(&'static str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Parameters, E> {
        let [encoder, encoder_bias, decoder, decoder_bias] = Parameters::shapes(width, features);
        let mut tensor = |(name, shape): Shape| -> Result<ArrayD<f32>, E> {
            let numbers = numbers(name, &shape)?;
            Ok(ArrayD::from_shape_vec(shape, numbers).expect("as many numbers as the shape has"))
        };
        let of_rank = "a shape has its own rank";
        Ok(Parameters {
            encoder: tensor(encoder)?.into_dimensionality().expect(of_rank),
            encoder_bias: tensor(encoder_bias)?.into_dimensionality().expect(of_rank),
            decoder: tensor(decoder)?.into_dimensionality().expect(of_rank),
            decoder_bias: tensor(decoder_bias)?.into_dimensionality().expect(of_rank),
        })
    }

    /// All zeros.
    pub fn zeros(width: usize, features: usize) -> Parameters {
        Parameters {
            encoder: Array2::zeros((features, width)),
            encoder_bias: Array1::zeros(features),
            decoder: Array2::zeros((features, width)),
            decoder_bias: Array1::zeros(width),
        }
    }

    /// The tensors with their names, in the order of [`Parameters::shapes`].
    pub fn tensors(&self) -> [(&'static str, ArrayViewD<'_, f32>); 4] {
        [
            ("encoder", self.encoder.view().into_dyn()),
            ("encoder_bias", self.encoder_bias.view().into_dyn()),
            ("decoder", self.decoder.view().into_dyn()),
            ("decoder_bias", self.decoder_bias.view().into_dyn()),
        ]
    }

    /// Checks that these are the tensors of such a step.
    ///
    /// # Errors
    /// Names the first one of another shape or order.
    pub fn check(&self, spec: &StepSpec) -> Result<(), StepError> {
        for ((name, tensor), (_, expected)) in
            self.tensors().into_iter().zip(Parameters::shapes(spec.width, spec.features))
        {
            if tensor.shape() != expected || !tensor.is_standard_layout() {
                return Err(StepError::shape(name, tensor.shape(), &expected));
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
        let filled = Parameters::from_numbers(3, 5, |name, shape| {
            Ok::<_, ()>(vec![name.len() as f32; shape.iter().product()])
        })
        .unwrap();
        for ((name, tensor), (expected, shape)) in filled.tensors().into_iter().zip(Parameters::shapes(3, 5))
        {
            assert_eq!((name, tensor.shape()), (expected, &shape[..]));
            assert!(tensor.iter().all(|number| *number == name.len() as f32));
        }
        assert_eq!(
            Parameters::zeros(3, 5).tensors().map(|(_, t)| t.len()),
            filled.tensors().map(|(_, t)| t.len())
        );
    }
}
