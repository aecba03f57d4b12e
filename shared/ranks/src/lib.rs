//! Ranks: processes or threads that do one work together, numbered from 0.
//!
//! An [`Exchange`] moves bytes between them and does nothing else: whoever adds numbers up decides in which order, and so the
//! result does not depend on how they travelled. There are these:
//! - [`Alone`]: one rank.
//! - [`Threads`]: threads of one process.
//! - [`Mpi`]: processes, on one machine or on many. The library is loaded at run time.
//!
//! [`launched`] tells whether this process was started together with others, [`Notes`] which of them is behind, and
//! [`usable_cores`] what the others have to know to share a machine.

mod alone;
mod cores;
mod exchange;
mod launcher;
mod mpi;
mod notes;
mod threads;

pub use alone::Alone;
pub use cores::{sharers, usable_cores};
pub use exchange::{Exchange, ExchangeError};
pub use launcher::{Launched, Launcher, LauncherError, launched};
pub use mpi::{Mpi, MpiError};
pub use notes::Notes;
pub use threads::Threads;

/// The examples of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
