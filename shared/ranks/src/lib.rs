//! Ranks: processes or threads that do one work together, numbered from 0.
//!
//! An [`Exchange`] moves bytes between them and does nothing else: whoever adds numbers up decides in which order, and so the
//! result does not depend on how they travelled. There are these:
//! - [`Alone`]: one rank.
//! - [`Threads`]: threads of one process.

mod alone;
mod exchange;
mod threads;

pub use alone::Alone;
pub use exchange::{Exchange, ExchangeError};
pub use threads::Threads;

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
