//! The arithmetic of a sparse autoencoder's training step.
//!
//! This crate knows arrays and numbers, but no files and no command lines. The notation is the project's: B rows in a batch,
//! d input width, F features, i a row, j a feature.
//!
//! What a step is, once for all backends:
//! - [`spec`], [`activation`], [`loss`], [`prefixes`], [`panels`], [`dead`] and [`precision`]: what is computed, as
//!   data.
//! - [`parameters`] and [`state`]: the tensors by name, and everything that a run resumes from.
//! - [`batch`]: what a step reads. [`activations`]: what an encoder finds. [`outcome`], [`stats`] and [`error`]: what it reports. [`path`]: which way it took.
//!
//! How it is computed:
//! - [`mod@reference`]: every formula in float64, dense and slow. It is the definition that everything else is tested
//!   against.
//! - [`cpu`]: the float32 step on CPU threads.
//! - [`cuda`]: the same step on a GPU.

pub mod activation;
pub mod activations;
pub mod batch;
pub mod cpu;
pub mod cuda;
pub mod dead;
pub mod error;
pub mod loss;
pub mod outcome;
pub mod panels;
pub mod parameters;
pub mod path;
pub mod precision;
pub mod prefixes;
pub mod reference;
pub mod spec;
pub mod state;
pub mod stats;

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
