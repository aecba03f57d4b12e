//! The sparse autoencoder as a thing of its own: weights, configuration, plain arithmetic, files.
//!
//! ```text
//! z    = x W_enc + b_enc        (x - b_dec in place of x with the pre-bias)
//! a    = ReLU(z)                (with a k, of the k largest z of a row; with thresholds, of z above them)
//! xhat = a W_dec + b_dec        (with a skip connection + x W_skipᵀ)
//! ```
//!
//! x is a row as [`Config::input_scale`] says.
//!
//! Of a transcoder, xhat stands for other rows than x.
//!
//! Training lives elsewhere. This crate knows how an autoencoder is initialised ([`Weights::init`]), what it computes
//! ([`Sae::encode`], [`Sae::decode`]: plain loops, the definition that faster code is tested against) and how it is stored
//! on disk ([`Sae::save`], [`Sae::load`]: SAELens' folder format, so that its users load our autoencoders without
//! conversion). [`open`] reads those of other programs, too, and [`export_into`] writes them.

mod config;
mod error;
mod files;
mod formats;
mod forward;
mod slices;
mod weights;

pub use config::{Config, INPUT_SCALE, InputScale, Metadata};
pub use error::{Error, TorchError};
pub use files::{CONFIG_FILE, SPARSITY_FILE, WEIGHTS_FILE, write_config, write_log_sparsity, write_tensors};
pub use formats::{Format, Given, Opened, export_file, export_into, format_of, open};
pub use slices::WeightSlices;
pub use weights::{EncoderInit, Init, Optional, Weights};

// Tensors go to disk as they lie in memory; safetensors is little-endian.
const _: () = assert!(cfg!(target_endian = "little"), "big-endian machines are not supported");

/// A sparse autoencoder with what is needed to use it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sae {
    /// The tensors.
    pub weights: Weights,
    /// How they are applied, and where they come from.
    pub config: Config,
    /// log10(firing frequency + 1e-10) of every feature, [F], where it is known.
    pub log_sparsity: Option<Vec<f32>>,
}

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
