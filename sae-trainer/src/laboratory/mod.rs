//! What trained autoencoders have learned, and how well a language model works through them.
//!
//! - `eval`: the command, on the rows of `data`; `in_model` puts reconstructions into a language model, [`predictions`] takes means of what comes of
//!   it, [`sae_bench`] names them as that benchmark does.
//! - `features`: what single features respond to, from an index of their activations.
//! - [`sparsity`]: how sparse activations are, by other measures than L0.
//! - `trained`: an autoencoder from disk that can be asked; [`similarity`]: directions against directions.

mod data;
mod eval;
pub(crate) mod features;
mod in_model;
mod predictions;
mod sae_bench;
pub(crate) mod similarity;
mod sparsity;
mod trained;

pub(crate) use eval::eval;
