//! The Hugging Face hub: its environment, folders of its repositories, and commits of files to them.
//!
//! Everything that is fetched goes through the hub's own cache folder, which the Python tools share. What is sent appears in one
//! commit, or not at all.

mod addition;
mod address;
mod client;
mod download;
mod environment;
mod lfs;
mod upload;

pub use addition::{Addition, Content};
pub use address::Address;
pub use environment::{Hub, Token};
pub use upload::{Pushed, Repository};

/// Why the hub did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A sentence that says what, where and what to do.
    #[error("{0}")]
    Refused(String),
    /// The work was asked to stop.
    #[error("interrupted; the same command goes on")]
    Interrupted,
    /// The operating system's error on a file.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The result of asking the hub.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal.
fn refused<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Refused(what.into()))
}
