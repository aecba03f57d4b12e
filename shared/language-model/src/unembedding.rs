//! What directions of the residual stream do to the logits.

use ndarray::{Array1, Array2, Axis};

use crate::{Checkpoint, Error, NormKind, families};

/// What directions of the residual stream do to the logits, with the final norm's own weights folded in: the logits of a row x are
/// `weights · x / scale(x) + bias`, where the scale is that of the final norm: the root of the mean square, behind LayerNorm of
/// the centred row.
#[derive(Clone, Debug, PartialEq)]
pub struct Unembedding {
    /// `[vocabulary, d_model]`. Behind a LayerNorm each row is centred, since the norm removes the mean of what it is given.
    pub weights: Array2<f32>,
    /// `[vocabulary]`.
    pub bias: Array1<f32>,
}

impl Unembedding {
    /// Reads the unembedding and the final norm of `checkpoint`.
    ///
    /// # Errors
    /// When a tensor is missing, as in checkpoints without a language-model head, or has another shape, or cannot be read.
    pub fn read(checkpoint: &Checkpoint) -> Result<Unembedding, Error> {
        let (config, head) = (checkpoint.config(), families::head(checkpoint));
        let d = config.d_model;
        let vector =
            |part: &str| Ok(Array1::from(checkpoint.numbers(&format!("{}.{part}", head.norm), &[d])?));
        let numbers = checkpoint.numbers(head.weight(checkpoint), &[config.vocabulary, d])?;
        let mut weights =
            Array2::from_shape_vec((config.vocabulary, d), numbers).expect("the shape was checked");
        let mut bias = Array1::zeros(config.vocabulary);
        if config.norm == NormKind::LayerNorm {
            bias = weights.dot(&vector("bias")?);
        }
        weights *= &vector("weight")?;
        if config.norm == NormKind::LayerNorm {
            let means = weights.mean_axis(Axis(1)).expect("a row has numbers");
            weights -= &means.insert_axis(Axis(1));
        }
        Ok(Unembedding { weights, bias })
    }
}
