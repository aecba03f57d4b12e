//! What follows the blocks: the final norm and the unembedding.

use crate::block::norm;
use crate::graph::{Graph, Value};
use crate::{Checkpoint, Error};

/// Names of the tensors behind the blocks.
#[derive(Debug)]
pub(crate) struct Head {
    /// The final norm, without `.weight` and `.bias`.
    pub(crate) norm: String,
    /// The token embedding, `[vocabulary, d_model]`.
    embedding: String,
    /// The unembedding of models in which it is not the embedding, `[vocabulary, d_model]`.
    unembedding: &'static str,
}

impl Head {
    pub(crate) fn new(norm: String, embedding: String, unembedding: &'static str) -> Head {
        Head { norm, embedding, unembedding }
    }

    /// The tensor that makes logits.
    pub(crate) fn weight(&self, checkpoint: &Checkpoint) -> &str {
        if checkpoint.config().tied_embeddings { &self.embedding } else { self.unembedding }
    }

    /// Logits, float32 `[rows, vocabulary]`, of the residual stream after the last block.
    pub(crate) fn logits(
        &self,
        g: &mut Graph<'_>,
        checkpoint: &Checkpoint,
        resid: &str,
    ) -> Result<Value, Error> {
        let config = checkpoint.config();
        let normed = norm(g, config, &self.norm, resid)?;
        let shape = [config.vocabulary, config.d_model];
        let logits = g.product(&normed, self.weight(checkpoint), shape, None, true)?;
        Ok(g.residual(logits))
    }
}
