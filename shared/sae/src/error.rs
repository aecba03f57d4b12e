//! What can go wrong with an autoencoder's files.

use std::io;
use std::path::PathBuf;

/// Every variant names the file, and where two things disagree, both sides.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operating system error, which is the source.
    #[error("cannot {action} {path}")]
    Io {
        /// The attempted action: "read", "write", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A folder could not be replaced as a whole.
    #[error(transparent)]
    Durable(#[from] durable_files::Error),
    /// The configuration is not JSON, or lacks a key.
    #[error("{path} is not a configuration of a sparse autoencoder")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// The tensor file is damaged or cut short.
    #[error("{path} is not a whole safetensors file")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// A tensor that has to be there is not.
    #[error("{path} has no tensor `{tensor}` (it has: {present})")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor looked for.
        tensor: &'static str,
        /// The names it does have.
        present: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{path}: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
        /// The shape that the configuration's `d_in` and `d_sae` ask for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is not made of 32-bit floats.
    #[error("{path}: tensor `{tensor}` is {found}, expected F32; save it as float32 first")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
        /// The type in the file.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("{path}: tensor `{tensor}` holds {value} at index {index}, expected finite numbers")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
        /// Position in the tensor, row-major.
        index: usize,
        /// The offending value.
        value: f32,
    },
    /// The autoencoder is of a kind that this program does not compute.
    #[error("{path}: `{key}` is \"{found}\", expected \"{expected}\": other kinds are not supported")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The configuration key.
        key: &'static str,
        /// The one supported value.
        expected: &'static str,
        /// The value in the file.
        found: String,
    },
    /// The tensors in memory do not fit together.
    #[error("tensor `{array}` has shape {found:?}, but the others ask for {expected:?}")]
    Misfit {
        /// The tensor.
        array: &'static str,
        /// The shape that follows from the biases.
        expected: Vec<usize>,
        /// Its own.
        found: Vec<usize>,
    },
}

impl Error {
    /// For `map_err`: wraps an operating system error with what was tried on which path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}
