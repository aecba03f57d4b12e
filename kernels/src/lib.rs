//! The arithmetic of a sparse autoencoder's training step.
//!
//! This crate knows arrays and numbers, but no files and no command lines. The notation is the project's: B rows in a batch,
//! d input width, F features, i a row, j a feature.
//!
//! - [`loss`] and [`step`]: what is computed, as data.
//! - [`mod@reference`]: every formula in float64, dense and slow. It is the definition that everything else is tested
//!   against.
//! - [`cpu`]: the float32 step on CPU threads.
//! - [`cuda`]: the same step on a GPU.
//! - [`stats`]: the sums from which all metrics follow.

pub mod cpu;
pub mod cuda;
pub mod loss;
pub mod reference;
pub mod stats;
pub mod step;

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
