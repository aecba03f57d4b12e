//! What a document is, and where it stands.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use terminal::foreign;

/// The longest line of JSON and the longest text in parquet that is read, in bytes: each is in memory as a whole. Plain text
/// may be of any length.
pub(super) const LONGEST: usize = 256 << 20;

/// The documents of one file, in its order.
pub(crate) type Documents = Box<dyn Iterator<Item = Result<Document>> + Send>;

/// A document and where it stands. Its text is a `String`, once it is tokenized the tokens, without BOS.
#[derive(Debug)]
pub(crate) struct Document<Text = String> {
    pub(crate) place: Place,
    pub(crate) content: Content<Text>,
}

/// What a document is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content<Text = String> {
    /// A whole text.
    Text(Text),
    /// A part of a text that is too long to be in memory as a whole; its parts follow one another.
    Part {
        text: Text,
        /// It is the document's first part.
        begins: bool,
        /// It is the document's last part.
        ends: bool,
    },
    /// A piece of a stream of tokens in which BOS separates documents.
    Stream {
        tokens: Vec<u32>,
        /// It begins its file, and so a document.
        begins: bool,
    },
    /// The tokens of a context that is ready.
    Context(Vec<u32>),
    /// It cannot be read.
    Damaged(Damage),
}

/// Why a document gives no tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) kind: DamageKind,
    /// What was found, in words.
    pub(crate) what: String,
    /// Documents lost.
    pub(crate) documents: u64,
}

/// The kinds of damage, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DamageKind {
    Empty,
    InvalidUtf8,
    InvalidJson,
    NoText,
    TooLong,
    UnreadableRows,
    UnreadableFile,
}

impl DamageKind {
    /// The kind's name in a report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            DamageKind::Empty => "empty",
            DamageKind::InvalidUtf8 => "not UTF-8",
            DamageKind::InvalidJson => "not JSON",
            DamageKind::NoText => "without text",
            DamageKind::TooLong => "too long",
            DamageKind::UnreadableRows => "in unreadable pages",
            DamageKind::UnreadableFile => "unreadable files or ends of files",
        }
    }
}

impl Damage {
    pub(crate) fn new(kind: DamageKind, what: impl fmt::Display) -> Damage {
        Damage { kind, what: what.to_string(), documents: 1 }
    }
}

/// Where a document stands: a file, and in most files a line (counted from 1), a row or a token (from 0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: Arc<str>,
    pub(crate) inside: Option<(&'static str, u64)>,
}

impl Place {
    pub(super) fn of(file: &Arc<str>, unit: &'static str, number: u64) -> Place {
        Place { file: Arc::clone(file), inside: Some((unit, number)) }
    }

    pub(super) fn whole(file: &Arc<str>) -> Place {
        Place { file: Arc::clone(file), inside: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inside {
            None => write!(f, "{}", foreign(&self.file)),
            Some((unit, number)) => write!(f, "{} {unit} {number}", foreign(&self.file)),
        }
    }
}

impl Document {
    pub(super) fn text(place: Place, text: String) -> Document {
        Document { place, content: Content::Text(text) }
    }

    pub(super) fn damaged(place: Place, kind: DamageKind, what: impl fmt::Display) -> Document {
        Document { place, content: Content::Damaged(Damage::new(kind, what)) }
    }
}

/// Whether the system is at fault (a failing disk, a missing file) and not the data.
pub(super) fn is_system_error(error: &std::io::Error) -> bool {
    error.raw_os_error().is_some()
}
