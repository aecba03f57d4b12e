//! Everything that can go wrong with a store. Each error says what, where, and what to do.

use std::path::{Path, PathBuf};

use terminal::{foreign, foreign_path};

/// The result of everything that touches a store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// An error of the writer, the reader, the batch stream or an export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An operating system error on a file.
    #[error("cannot {action} {}", foreign_path(path))]
    Io {
        /// What was attempted, as an infinitive ("read", "create").
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The folder exists, holds files, and is not a store.
    #[error("{} holds files that are not an activation store's; choose another folder", foreign_path(.0))]
    NotAStore(PathBuf),
    /// No store at this path.
    #[error("there is no activation store at {} (no zarr.json in it)", foreign_path(.0))]
    NotFound(PathBuf),
    /// The folder holds a store of another dump.
    #[error("{} holds a store of another dump ({}); choose another folder, or delete this one", foreign_path(dir), foreign(&differences.join("; ")))]
    Mismatch {
        /// The store's folder.
        dir: PathBuf,
        /// One sentence for each differing field: name, stored value, requested value.
        differences: Vec<String>,
    },
    /// The rows of two stores are not those of the same tokens.
    #[error(
        "the rows of {} and {} are not of the same tokens ({}); pairs of rows need two hooks of one dump, as activation-dump \
         --hook A,B writes them",
        foreign_path(dir),
        foreign_path(other),
        foreign(&differences.join("; "))
    )]
    NotAligned {
        /// A store's folder.
        dir: PathBuf,
        /// The folder of the store that should be aligned with it.
        other: PathBuf,
        /// One sentence for each differing field.
        differences: Vec<String>,
    },
    /// Another process writes this store.
    #[error("another process is writing {}; wait for it to end, or stop it", foreign_path(.0))]
    Locked(PathBuf),
    /// Another process writes this store in a bucket.
    #[error("{} is being written by {}; wait for it to end, or stop it", foreign_path(store), foreign(who))]
    WrittenBy {
        /// The store's address.
        store: PathBuf,
        /// The process, its machine, since when.
        who: String,
    },
    /// An object that this writer was to create is there with other bytes.
    #[error(
        "{} holds other bytes than this run would write: {} writes the same store, or wrote it on another machine, whose results \
         differ in their last bits; stop all but one, and run the same command again",
        foreign_path(object),
        foreign(who)
    )]
    OtherBytes {
        /// The object's address.
        object: PathBuf,
        /// Who else writes, as far as that is known.
        who: String,
    },
    /// A store in a bucket, where only a folder will do.
    #[error(
        "{} is in a bucket, and this reads stores in folders: copy it into one (docs/buckets.md says what works on buckets)",
        foreign_path(.0)
    )]
    InBucket(PathBuf),
    /// A store in a bucket, for a build without the feature `bucket`.
    #[error(
        "{} is in a bucket, and this program was built without buckets: take the one of the wheel, or build it with --features bucket",
        foreign_path(.0)
    )]
    NoBuckets(PathBuf),
    /// What was given is no address of a store in a bucket. It is not repeated: it may hold a key.
    #[error("the address of a store in a bucket is s3://BUCKET/FOLDER (or gs://, az://): {what}")]
    Address {
        /// What is wrong with it.
        what: String,
    },
    /// A folder cannot keep what is fetched from buckets.
    #[error("cannot use {} as a cache: {}", foreign_path(dir), foreign(what))]
    Cache {
        /// The folder.
        dir: PathBuf,
        /// Why not, and what to do.
        what: String,
    },
    /// The estimate does not fit on the file system.
    #[error("{} needs about {} MB and its file system has {} MB free; free some space, ask for fewer tokens, or keep fewer mantissa bits", foreign_path(dir), needed / 1_000_000, available / 1_000_000)]
    NoSpace {
        /// The store's folder.
        dir: PathBuf,
        /// Estimated bytes still to be written.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// An impossible specification, layout or option.
    #[error("invalid store specification: {0}")]
    Specification(String),
    /// An activation is NaN or infinite.
    #[error(
        "the activation of context {context}, position {position}, channel {channel} is {value}: the language model failed there; none of it was stored"
    )]
    NotFinite {
        /// The context, counted from 0 over the whole dump.
        context: u64,
        /// The position in the context.
        position: usize,
        /// The component of the row.
        channel: usize,
        /// The value found.
        value: f32,
    },
    /// An activation does not fit the row type.
    #[error(
        "the activation {value} of context {context}, position {position}, channel {channel} is beyond float16's largest value (65504): store float32 rows, or allow clipping"
    )]
    Overflow {
        /// The context, counted from 0 over the whole dump.
        context: u64,
        /// The position in the context.
        position: usize,
        /// The component of the row.
        channel: usize,
        /// The value found.
        value: f32,
    },
    /// A token does not belong to the vocabulary that the specification states.
    #[error(
        "token {token} of context {context}, position {position} is outside the vocabulary of {vocabulary}"
    )]
    Token {
        /// The token.
        token: u32,
        /// The context, counted from 0 over the whole dump.
        context: u64,
        /// The position in the context.
        position: usize,
        /// The specification's vocabulary.
        vocabulary: u64,
    },
    /// More contexts than the specification plans.
    #[error("the store is planned for {planned} contexts, and more were appended")]
    TooManyContexts {
        /// The specification's `contexts`.
        planned: u64,
    },
    /// Contexts for a store that was complete when it was opened.
    #[error("{} is complete, and more contexts were appended", foreign_path(.0))]
    Complete(PathBuf),
    /// The writer has already reported an error.
    #[error("the writer of {} stopped at an earlier error; open the store again to continue", foreign_path(.0))]
    Stopped(PathBuf),
    /// The store was not finished.
    #[error(
        "{} is not complete ({contexts_done} contexts are safe): run the dump's command again to continue",
        foreign_path(dir)
    )]
    Incomplete {
        /// The store's folder.
        dir: PathBuf,
        /// Contexts that a resumed dump need not compute again.
        contexts_done: u64,
    },
    /// A dump without a row.
    #[error("nothing to store in {}: the dump has no row", foreign_path(.0))]
    Empty(PathBuf),
    /// A store of another format version.
    #[error("{} has store format version {found}; this program reads version {supported}", foreign_path(dir))]
    Version {
        /// The store's folder.
        dir: PathBuf,
        /// The version in its attributes.
        found: u64,
        /// The version of this crate.
        supported: u64,
    },
    /// Something was asked of the text that the store does not know.
    #[error(
        "{} was imported without {what}: leave out what needs it, or import the store again with it",
        foreign_path(dir)
    )]
    Unknown {
        /// The store's folder.
        dir: PathBuf,
        /// What is not known.
        what: &'static str,
    },
    /// A file is not what the store recorded.
    #[error("{} is damaged: {}", foreign_path(file), foreign(what))]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A chunk of a shard is not what the store recorded.
    #[error("chunk {chunk} of {} is damaged: {}", foreign_path(file), foreign(what))]
    DamagedChunk {
        /// The shard file.
        file: PathBuf,
        /// The inner chunk's number in the shard, from 0.
        chunk: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A shard has changed since the store was opened.
    #[error(
        "{} changed while it was in use: {what}; restore the file and run the same command again",
        foreign_path(file)
    )]
    Changed {
        /// The shard file.
        file: PathBuf,
        /// What is different.
        what: String,
    },
    /// A foreign file lies where the writer keeps its unfinished files or its lock.
    #[error("{} is in the way and is not the store's; move it elsewhere", foreign_path(.0))]
    InTheWay(PathBuf),
    /// A folder cannot be written as a whole, or the space on its file system is unknown.
    #[error(transparent)]
    Durable(#[from] durable_files::Error),
    /// Rows or contexts beyond the end.
    #[error("{what} {start}..{end} are outside the store, which has {available}")]
    OutOfRange {
        /// "rows" or "contexts".
        what: &'static str,
        /// First one requested.
        start: u64,
        /// One past the last requested.
        end: u64,
        /// How many there are.
        available: u64,
    },
    /// The rows cannot be written in the other format.
    #[error("cannot export: {0}")]
    Export(String),
    /// A thread of the writer or the stream panicked; what is on disk is unaffected.
    #[error(transparent)]
    Died(#[from] workers::Died),
    /// The system has no memory for a large buffer.
    #[error("there is no memory for {0}")]
    Memory(String),
    /// The system does not start another thread.
    #[error("cannot start a thread for {what}")]
    Thread {
        /// What it was to do.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// zstd cannot be set up, or refuses to compress.
    #[error("zstd failed")]
    Zstd(#[source] std::io::Error),
    /// The stores or options of a batch stream do not fit together.
    #[error("cannot make a batch stream: {0}")]
    Stream(String),
    /// A step whose rows cannot be counted.
    #[error("step {0} of a batch stream is beyond what can be counted")]
    Step(u64),
    /// A stored value does not fit the element type of a stream's batches.
    #[error("a row has a value beyond the range of {element}: read it in batches of float32")]
    BatchOverflow {
        /// The type's name.
        element: &'static str,
    },
}

impl StoreError {
    /// For `map_err` after a system call on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| StoreError::Io { action, path, source }
    }

    /// For `map_err` where a thread for `what` is started.
    pub(crate) fn thread(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| StoreError::Thread { what, source }
    }

    pub(crate) fn damaged(file: &Path, what: impl Into<String>) -> Self {
        StoreError::Damaged { file: file.to_path_buf(), what: what.into() }
    }
}
