//! What all ranks do at the same time.

use thiserror::Error;

/// Moves bytes between ranks. Every rank calls the same functions in the same order, with buffers of the same length; each call
/// waits for all of them.
pub trait Exchange: Send + Sync {
    /// This rank's number.
    fn rank(&self) -> usize;

    /// How many ranks there are, n.
    fn ranks(&self) -> usize;

    /// Part k of `send` goes to rank k, and part k of `receive` comes from there; both have n parts of one length.
    ///
    /// # Errors
    /// If a rank is lost.
    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) -> Result<(), ExchangeError>;

    /// Part k of `receive` comes from rank k, which gives all of its `send`.
    ///
    /// # Errors
    /// If a rank is lost.
    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<(), ExchangeError>;

    /// `bytes` of rank `root` come to all others.
    ///
    /// # Errors
    /// If a rank is lost.
    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), ExchangeError>;
}

/// Why an exchange did not happen. No further one can.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{operation} with the other ranks failed: {reason}")]
pub struct ExchangeError {
    /// What was to be exchanged how.
    pub operation: &'static str,
    /// Why it was not.
    pub reason: String,
}
