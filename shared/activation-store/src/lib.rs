//! The activation store: the rows of one hook point of one language model over one text, written once and read by many
//! training runs.
//!
//! A store is a folder and a valid Zarr v3 group; `docs/store-format.md` specifies it byte by byte. [`StoreWriter`] writes
//! one, [`Store`] reads its rows, and [`BatchStream`] feeds a training run with shuffled batches from one or several.

mod address;
mod alignment;
#[cfg(feature = "bucket")]
mod bucket;
#[cfg(not(feature = "bucket"))]
#[path = "no_bucket.rs"]
mod bucket;
mod cache_options;
mod catalog;
mod codec;
mod disk;
mod error;
mod export;
mod files;
mod find;
mod frame;
mod giving_up;
mod held_out;
mod isa;
mod journal;
mod lock;
mod metadata;
mod norms;
mod pages;
mod paths;
mod permutation;
mod resumption;
mod rounding;
mod row_bits;
mod row_slots;
mod shard;
mod specification;
mod statistics;
mod store;
mod stream;
mod target;
mod verify;
mod widen;
mod writer;

pub use address::is_bucket;
pub use cache_options::CacheOptions;
pub use disk::{DiskCallback, DiskHook, DiskStep};
pub use error::{Result, StoreError};
pub use export::{ExportFormat, ExportSummary, export};
pub use find::{Found, find};
pub use giving_up::give_up_once;
pub use held_out::{Part, held_out_contexts};
pub use norms::{RowMask, median_norm};
pub use specification::{Layout, Provenance, RowType, StoreSpec, Unknown};
pub use statistics::Statistics;
pub use store::{Store, StoreSummary};
pub use stream::{BatchStream, RowFilter, StreamOptions};
pub use verify::{Problem, VerifyReport, verify, verify_while};
pub use widen::BatchElement;
pub use writer::{StoreWriter, WriteProgress, WriterOptions, estimated_bytes};

/// The 16-bit types of [`BatchElement`].
pub use half::{bf16, f16};

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
