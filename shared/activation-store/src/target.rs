//! What a writer writes to: a folder, or a bucket.

use std::any::Any;
use std::fmt;

use crate::Result;
use crate::disk::Written;
use crate::metadata::Attributes;
use crate::resumption::Resumption;

/// The files of a store that is being written.
pub(crate) trait Target: fmt::Debug + Send {
    /// Writes the file `name` in several parts, each with its crc32c. It appears whole, in place of one that was there. This may
    /// return before it is there.
    fn publish_parts(&mut self, name: &str, parts: &[(&[u8], u32)]) -> Result<Written>;

    /// The same of one part.
    fn publish(&mut self, name: &str, content: &[u8]) -> Result<Written> {
        self.publish_parts(name, &[(content, crc32c::crc32c(content))])
    }

    /// Appends a line to the journal, once everything that was published before is there.
    fn append(&mut self, line: &[u8]) -> Result<()>;

    /// Waits until everything is there.
    fn flush(&mut self) -> Result<()>;

    /// All lines of the journal; everything is there.
    fn journal(&mut self) -> Result<Vec<u8>>;

    /// Writes the file `journal` of a finished store, if its lines are elsewhere.
    fn add_journal(&mut self, content: &[u8]) -> Result<()>;

    /// Removes what only an unfinished store has.
    fn conclude(&mut self) -> Result<()>;
}

/// A store that was opened for writing.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Keeps other writers away until it is dropped.
    pub(crate) hold: Box<dyn Hold>,
    pub(crate) begun: Begun,
}

/// How far it is.
#[derive(Debug)]
pub(crate) enum Begun {
    Complete(Box<Attributes>),
    Unfinished {
        resumption: Box<Resumption>,
        /// [`Resumption::tail_tokens`]
        tokens: Vec<u32>,
        target: Box<dyn Target>,
    },
}

/// What keeps other writers away.
pub(crate) trait Hold: Any + fmt::Debug + Send {}

impl<T: Any + fmt::Debug + Send> Hold for T {}
