//! A Hugging Face checkpoint as an ONNX Runtime session, cut at a hook point.
//!
//! [`Checkpoint::open`] reads a model directory (`config.json`, safetensors). [`PrefixModel::load`] builds the ONNX graph of
//! its layers up to the requested [`HookPoint`]s and hands it to ONNX Runtime. [`PrefixModel::run`] turns token ids into
//! activations. Nothing after the last hook is computed, no Python is needed, and the weights are mapped from the
//! checkpoint's own files.
//!
//! ```no_run
//! use language_model::{Checkpoint, HookPoint, PrefixModel, Runtime, SessionOptions};
//!
//! # fn main() -> Result<(), language_model::Error> {
//! let runtime = Runtime::load(None)?;
//! let checkpoint = Checkpoint::open("models/smollm2-135m".as_ref())?;
//! let hooks = [HookPoint::resid_pre(1)];
//! let model = PrefixModel::load(&runtime, &checkpoint, &hooks, &SessionOptions::default())?;
//! let activations = model.run(ndarray::aview2(&[[0, 504, 3575, 282]]))?;
//! assert_eq!(activations.rows(0).dim(), (1, 4, checkpoint.config().d_model));
//! # Ok(())
//! # }
//! ```
//!
//! A model family is one file (`gpt2.rs`, `llama.rs`) that reads top to bottom with the checkpoint's own tensor names. A new
//! family is one more such file.

mod agreement;
mod assignment;
mod attention;
mod block;
mod checkpoint;
mod config;
mod cuda;
mod error;
mod families;
mod family;
mod feed;
mod gpt2;
mod gpt_neox;
mod graph;
mod hash;
mod head;
mod hook;
pub mod hub;
mod inside;
mod lane;
mod limits;
mod llama;
mod onnx;
mod onnx_file;
mod operators;
mod own_nodes;
mod precision;
mod prefix;
mod products;
mod rope;
mod rotation;
mod runtime;
mod self_check;
mod session;
mod suffix;
mod tokenizer;
mod unembedding;
mod wire;
mod work;

pub use agreement::SelfCheck;
pub use checkpoint::Checkpoint;
pub use config::{Activation, ModelConfig, NormKind};
pub use error::Error;
pub use family::Family;
pub use hook::{HookPoint, Site};
pub use onnx_file::OnnxFile;
pub use precision::ModelPrecision;
pub use prefix::{Activations, Device, PrefixModel, SessionOptions, prefix_graph};
pub use products::Products;
pub use rope::{Rope, RopeScaling};
pub use runtime::Runtime;
pub use self_check::{self_check, tolerance};
pub use suffix::{Predictions, SuffixModel, suffix_graph};
pub use tokenizer::{Places, Tokenizer, json_file};
pub use unembedding::Unembedding;

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
