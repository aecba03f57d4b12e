//! Steps to test with: numbers from a seed, a spec that uses everything, weights and batches for it, and the steps that PyTorch
//! took ([`Golden`]). All of it is the same on every machine.

mod golden;
mod numbers;
mod steps;

pub use golden::{Golden, GoldenCase};
pub use numbers::{numbers, numbers_f64, relative_difference, rows, single, wide};
pub use steps::{PENALTIES, batch, new_features, spec, weights};

/// The example of the README, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
