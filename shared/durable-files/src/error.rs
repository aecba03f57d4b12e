//! What can go wrong while a file or folder is written.

use std::io;
use std::path::PathBuf;

/// Every variant names the path.
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
    /// Something that is not ours lies where a temporary folder would.
    #[error("{0} is in the way and was not written by this program; move it elsewhere")]
    InTheWay(PathBuf),
    /// Another process writes the same folder.
    #[error("another process is writing {0}; wait for it or stop it")]
    Busy(PathBuf),
    /// A folder that should be new exists already.
    #[error("{0} exists already; choose another name or remove it")]
    Exists(PathBuf),
    /// A file is not what was written.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How that is known.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: wraps an operating system error with what was tried on which path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}
