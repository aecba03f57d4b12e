//! Everything that can go wrong between a model's name and its activations.

use std::path::PathBuf;

use terminal::{foreign, foreign_path};

/// What failed, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read {}", foreign_path(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The model folder is missing or lacks a file.
    #[error("{} is not a Hugging Face model folder: {}", foreign_path(path), foreign(problem))]
    NotAModel {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// `config.json` is not the configuration of a model that can be built.
    #[error("{}: {}", foreign_path(path), foreign(problem))]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The architecture is not one of the families in this crate.
    #[error(
        "{}: architecture `{}` is not supported (supported model_type: {}); \
         any model can be used as an ONNX file",
        foreign_path(path),
        foreign(architecture),
        supported
    )]
    UnsupportedArchitecture {
        /// The configuration file.
        path: PathBuf,
        /// Its `model_type`.
        architecture: String,
        /// The `model_type`s that are, with commas between.
        supported: String,
    },
    /// A safetensors file is truncated or damaged.
    #[error("{}: {}; download or convert the model again", foreign_path(path), foreign(problem))]
    Safetensors {
        /// The weight file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// The checkpoint lacks a tensor the graph needs.
    #[error("{}: tensor `{}` is missing from the checkpoint", foreign_path(path), foreign(tensor))]
    MissingTensor {
        /// The model folder.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        tensor: String,
    },
    /// A tensor's shape contradicts `config.json`.
    #[error(
        "{}: tensor `{}` has shape {found:?}, but config.json asks for {expected:?}",
        foreign_path(path),
        foreign(tensor)
    )]
    WrongShape {
        /// The weight file.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that follows from `config.json`.
        expected: Vec<usize>,
    },
    /// A tensor's element type is not a floating-point type that can be used.
    #[error(
        "{}: tensor `{}` has element type {found}; F32, F16 and BF16 are supported",
        foreign_path(path),
        foreign(tensor)
    )]
    WrongType {
        /// The weight file.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        tensor: String,
        /// The element type in the file.
        found: String,
    },
    /// An ONNX file cannot be used.
    #[error("{}: {}", foreign_path(path), foreign(problem))]
    OnnxFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor's name is not in an ONNX file's graph.
    #[error(
        "{}: the graph has no tensor `{}`; near it are {}",
        foreign_path(path), foreign(tensor), foreign(&near.join(", "))
    )]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The name as given.
        tensor: String,
        /// Names of tensors that are in the graph, the likeliest first.
        near: Vec<String>,
    },
    /// A hook point's name is not one.
    #[error(
        "unknown hook `{}`; hooks are named blocks.LAYER.hook_SITE with SITE one of \
         resid_pre, attn_out, resid_mid, mlp_out, resid_post (for example blocks.1.hook_resid_pre)",
        foreign(name)
    )]
    UnknownHook {
        /// The name as given.
        name: String,
    },
    /// The hook's layer does not exist in the model.
    #[error("{hook}: layer {layer} is out of range, the model has layers 0 to {last}")]
    LayerOutOfRange {
        /// The hook's name.
        hook: String,
        /// Its layer.
        layer: usize,
        /// The model's last layer.
        last: usize,
    },
    /// The model has no residual stream between attention and MLP.
    #[error(
        "{hook}: this model's blocks compute attention and MLP side by side from the same input, so there is no \
         resid_mid; it has resid_pre, attn_out, mlp_out and resid_post"
    )]
    NoSuchSite {
        /// The hook's name.
        hook: String,
    },
    /// A model needs at least one hook to be cut at.
    #[error("no hook point was asked for")]
    NoHooks,
    /// There are no token ids, or they do not fit the model.
    #[error("{0}")]
    Input(String),
    /// The ONNX Runtime library was not found.
    #[error(
        "the ONNX Runtime library was not found; run scripts/fetch-onnxruntime, or pip install onnxruntime, or set \
         ORT_DYLIB_PATH to a libonnxruntime.so (1.24 or later). Looked for: {}",
        list(looked)
    )]
    RuntimeMissing {
        /// Every path that was tried.
        looked: Vec<PathBuf>,
    },
    /// The ONNX Runtime library was found but cannot be used.
    #[error(
        "{} cannot be used as the ONNX Runtime library: {problem}. Run scripts/fetch-onnxruntime, \
         or set ORT_DYLIB_PATH to a libonnxruntime.so (1.24 or later)",
        foreign_path(path)
    )]
    RuntimeUnusable {
        /// The library.
        path: PathBuf,
        /// The loader's reason.
        problem: String,
    },
    /// Part of a graph that was to run on CUDA would run on the CPU.
    #[error(
        "ONNX Runtime would run a part of the model on {provider} though CUDA was asked for ({operators}): \
         its CUDA provider lacks them. Use another ONNX Runtime, or the device `cpu`"
    )]
    NotOnCuda {
        /// The provider that would run it.
        provider: String,
        /// The operators, with how many there are of each.
        operators: String,
    },
    /// A provider computes something else than the CPU.
    #[error(
        "{provider} does not compute what the CPU computes: at {} a row is off by {:.1e} of its norm, {:.0e} is \
         rounding. Use another ONNX Runtime, or the device `cpu`",
        check.hook, check.difference, check.tolerance
    )]
    SelfCheck {
        /// The provider.
        provider: String,
        /// Where and how far it is off.
        check: crate::SelfCheck,
    },
    /// `cuda` was asked for and cannot be had.
    #[error("no CUDA: {0}. Use the device `cpu` or `auto` to run without")]
    CudaUnavailable(String),
    /// ONNX Runtime refused the graph or failed while running it.
    #[error("ONNX Runtime: {doing}: {}", foreign(message))]
    Onnx {
        /// What was being done.
        doing: &'static str,
        /// ONNX Runtime's own message.
        message: String,
    },
    /// There is no tokenizer where one is needed.
    #[error("reading {}; put the model's tokenizer.json (Hugging Face format) there", foreign_path(path))]
    NoTokenizer {
        /// Where it should be.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A `tokenizer.json` that cannot be used.
    #[error("{} is not a Hugging Face tokenizer: {}", foreign_path(path), foreign(problem))]
    NotATokenizer {
        /// The file.
        path: PathBuf,
        /// What the library says.
        problem: String,
    },
    /// The library that reads tokenizers died of one.
    #[error(transparent)]
    TokenizerDied(workers::Died),
    /// A tokenizer with other tokens than the model's.
    #[error("{} is not this model's tokenizer: {}", foreign_path(path), foreign(problem))]
    OtherTokenizer {
        /// Its file.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// A tokenizer that could not tokenize a text.
    #[error("{} failed on a document: {}", foreign_path(path), foreign(problem))]
    Tokenize {
        /// Its file.
        path: PathBuf,
        /// What the library says.
        problem: String,
    },
    /// A file that should hold JSON.
    #[error("{} is not JSON", foreign_path(path))]
    NotJson {
        /// The file.
        path: PathBuf,
        /// Where it is not.
        source: serde_json::Error,
    },
    /// Something was not on the Hugging Face hub, or the hub could not be reached.
    #[error("{}", foreign(.0))]
    Hub(String),
}

impl Error {
    /// For `map_err` on ONNX Runtime's results.
    pub(crate) fn onnx<R>(doing: &'static str) -> impl FnOnce(ort::Error<R>) -> Error {
        move |error| Error::Onnx { doing, message: error.message().to_string() }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| foreign_path(p).to_string()).collect::<Vec<_>>().join(", ")
}
