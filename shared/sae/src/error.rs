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
    /// A file of torch is damaged, or holds something else than tensors.
    #[error("{path} cannot be read as a state dict of torch")]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TorchError,
    },
    /// Another program's autoencoder is of a kind that this program does not compute, or the file does not say which.
    #[error("{path}: {reason}")]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// What it is, and what to do.
        reason: String,
    },
    /// Another program's files cannot hold this kind of autoencoder.
    #[error("{program} cannot hold it: {reason}")]
    NotHeld {
        /// The program, or the file type.
        program: &'static str,
        /// What it is that is not held.
        reason: String,
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

/// What can be wrong with a file of `torch.save`.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// It is no zip archive, but what torch wrote before version 1.6.
    #[error(
        "torch before version 1.6 wrote it, as a bare pickle; read it with torch.load and write it again with torch.save"
    )]
    Legacy,
    /// The archive is damaged or cut short.
    #[error("the zip archive is damaged")]
    Archive(#[from] zip::result::ZipError),
    /// A file that has to be in the archive is not.
    #[error("the archive has no `{name}`")]
    MissingEntry {
        /// Its name.
        name: String,
    },
    /// A file in the archive is damaged.
    #[error("`{name}` in the archive cannot be read")]
    Entry {
        /// Its name.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// A file in the archive is compressed, and so of unknown length.
    #[error("`{name}` in the archive is compressed, which torch.save does not do")]
    Compressed {
        /// Its name.
        name: String,
    },
    /// Its numbers are big-endian.
    #[error("its numbers are not little-endian; write it again on another machine")]
    ByteOrder,
    /// The pickle is far longer than that of a state dict.
    #[error("its pickle has {length} bytes, and that of a state dict at most {limit}")]
    LongPickle {
        /// Bytes that it has.
        length: usize,
        /// Bytes that it may have.
        limit: usize,
    },
    /// The pickle ends before its last instruction.
    #[error("its pickle ends too early")]
    ShortPickle,
    /// The pickle has an instruction that no state dict takes.
    #[error("its pickle has the instruction {code:#04x} at byte {at}, which no state dict has")]
    Instruction {
        /// The instruction.
        code: u8,
        /// Its place.
        at: usize,
    },
    /// The pickle takes a value that is not there.
    #[error("its pickle uses a value before byte {at} that is not there")]
    EmptyStack {
        /// The place after the instruction.
        at: usize,
    },
    /// The pickle has another value than torch would put there.
    #[error("its pickle has something else than {expected} before byte {at}")]
    Value {
        /// What should be there.
        expected: &'static str,
        /// The place after the instruction.
        at: usize,
    },
    /// The pickle names something that Python would import and call.
    #[error(
        "its pickle names `{name}`, and a state dict only torch's own tensors; nothing was executed. If you trust the file, load it \
         in Python and save the state dict alone: torch.save(model.state_dict(), \"ae.pt\")"
    )]
    Global {
        /// Module and name.
        name: String,
    },
    /// What was saved is no dictionary.
    #[error("it holds {found}, not a dictionary of tensors")]
    NoStateDict {
        /// What it is.
        found: &'static str,
    },
    /// A tensor reaches beyond the numbers that are stored.
    #[error("tensor `{tensor}` of shape {shape:?} does not fit in the {stored} numbers of its storage")]
    OutsideStorage {
        /// Its name.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Numbers that there are.
        stored: usize,
    },
}
