//! Every formula in float64, dense, as the definition. It is slow on purpose: nothing here is arranged for speed, and
//! nothing else in the project decides what is right.
//!
//! Shapes are the public ones: X [B,d], W_enc [d,F], b_enc [F], W_dec [F,d], b_dec [d].

mod dead;
mod forward;
mod frequency;
mod gradient;
mod loss;
mod mse;
mod parameters;
mod penalty;
mod trainer;
mod vectors;

pub use dead::dead_loss;
pub use forward::{Forward, encoder_input, forward, mean_active, rank_factors, select};
pub use frequency::{FrequencyWindow, density_penalties, frequency_penalties, frequency_slopes};
pub use gradient::{clip_gradient, gradients, normalise_decoder, project_decoder_gradient};
pub use loss::{Loss, loss, reconstruction_loss, surrogate_loss};
pub use mse::{mse, mse_denominators, mse_gradient};
pub use parameters::{Batch, Parameters};
pub use penalty::{logged_penalty, logged_penalty_of_mean, penalty, penalty_by_count, penalty_derivative};
pub use trainer::Trainer;
