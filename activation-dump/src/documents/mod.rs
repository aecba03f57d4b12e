//! Documents, read one at a time from files and from standard input.
//!
//! | file | a document is |
//! |---|---|
//! | `.txt` | the whole file |
//! | `.jsonl`, `.ndjson` | the string in the text column of one line |
//! | `.parquet` | the string in the text column of one row |
//! | `.bin`, `.npy` `[n]` | the tokens between two BOS tokens |
//! | `.npy` `[contexts, T]` | a ready-made context, used as it is |
//!
//! `.txt`, `.jsonl` and `.ndjson` may be compressed with gzip (`.gz`) or Zstandard (`.zst`). Standard input may be any of
//! these three; its first bytes tell which.
//!
//! Unreadable input is also a document, with the content [`Content::Damaged`], so that one place decides whether to go on
//! or to stop. Only a mistake in the command (a missing column, tokens of another model) or a refusal by the operating
//! system is an error.

mod lines;
mod npy;
mod parquet;
mod tokens;

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use terminal::{foreign, foreign_path};

/// The longest line of JSON and the longest text in parquet that is read, in bytes: each is in memory as a whole. Plain text
/// may be of any length.
pub(crate) const LONGEST: usize = 256 << 20;

/// Bytes of a text file that are in memory at once.
const PART: usize = 16 << 20;

/// The name that stands for standard input among the files.
pub(crate) const STANDARD_INPUT: &str = "-";

/// The documents of one file, in its order.
pub(crate) type Documents = Box<dyn Iterator<Item = Result<Document>> + Send>;

/// A document and where it stands.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) place: Place,
    pub(crate) content: Content,
}

/// What a document is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Text to be tokenized.
    Text(String),
    /// A part of a text that is too long to be in memory as a whole; its parts follow one another.
    Part {
        text: String,
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
    fn of(file: &Arc<str>, unit: &'static str, number: u64) -> Place {
        Place { file: Arc::clone(file), inside: Some((unit, number)) }
    }

    fn whole(file: &Arc<str>) -> Place {
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
    fn text(place: Place, text: String) -> Document {
        Document { place, content: Content::Text(text) }
    }

    fn damaged(place: Place, kind: DamageKind, what: impl fmt::Display) -> Document {
        Document { place, content: Content::Damaged(Damage::new(kind, what)) }
    }
}

/// The format of standard input or of a `.bin` file, which the file itself does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputFormat {
    /// One document
    Text,
    /// A document a line
    Jsonl,
    /// Tokens of 2 bytes, little-endian
    U16,
    /// Tokens of 4 bytes, little-endian
    U32,
}

/// How files are read.
#[derive(Debug, Clone)]
pub(crate) struct ReadOptions {
    /// Key or column that holds the text in JSON lines and parquet.
    pub(crate) column: String,
    /// How to read what does not tell.
    pub(crate) format: Option<InputFormat>,
    /// The model's vocabulary size: every token in a token file must be smaller.
    pub(crate) vocabulary: usize,
    /// Tokens of a context.
    pub(crate) context: usize,
}

/// The formats of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    JsonLines,
    Parquet,
    TokenStream,
    Npy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Whether the file's name ends like that of a file of text.
pub(crate) fn is_text(path: &Path) -> bool {
    format_of(path).is_some_and(|(format, _)| !matches!(format, Format::TokenStream | Format::Npy))
}

/// Whether the file's name ends like that of a file of tokens.
pub(crate) fn is_tokens(path: &Path) -> bool {
    format_of(path).is_some_and(|(format, _)| matches!(format, Format::TokenStream | Format::Npy))
}

/// Opens a file of documents.
pub(crate) fn open(path: &Path, options: &ReadOptions) -> Result<Documents> {
    let named = || format!("reading {}", foreign_path(path));
    let Some((format, compression)) = format_of(path) else {
        bail!(
            "{} is of no known format; files of text end in .txt, .jsonl, .ndjson (also with .gz or .zst) or \
             .parquet, files of tokens in .bin or .npy",
            foreign_path(path)
        )
    };
    let name: Arc<str> = path.display().to_string().into();
    let file = File::open(path).with_context(named)?;
    match format {
        Format::Parquet => parquet::documents(file, name, &options.column).with_context(named),
        Format::Npy => tokens::npy(file, name, options),
        Format::TokenStream => tokens::bin(file, name, options),
        Format::Text | Format::JsonLines => {
            let reader = buffered(decompressed(file, compression).with_context(named)?);
            Ok(match format {
                Format::Text => lines::whole_text(reader, name, PART),
                _ => lines::json_lines(reader, name, &options.column),
            })
        }
    }
}

/// The documents that `input` (standard input) brings: unless the options say what they are, JSON lines if the
/// first character that is no space is `{`, else one document of text. Compression is told from the first bytes.
pub(crate) fn open_stream(input: impl Read + Send + 'static, options: &ReadOptions) -> Result<Documents> {
    let name: Arc<str> = "standard input".into();
    let mut raw = buffered(input);
    let named = || format!("reading {name}");
    let compression = match raw.fill_buf().with_context(named)? {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    };
    let mut reader = buffered(decompressed(raw, compression).with_context(named)?);
    let is_json = |bytes: &[u8]| {
        let bytes = bytes.strip_prefix(lines::BYTE_ORDER_MARK).unwrap_or(bytes);
        bytes.trim_ascii_start().first() == Some(&b'{')
    };
    match options.format {
        Some(InputFormat::U16 | InputFormat::U32) => tokens::bin(reader, name, options),
        Some(InputFormat::Text) => Ok(lines::whole_text(reader, name, PART)),
        Some(InputFormat::Jsonl) => Ok(lines::json_lines(reader, name, &options.column)),
        None if is_json(reader.fill_buf().unwrap_or_default()) => {
            Ok(lines::json_lines(reader, name, &options.column))
        }
        None => Ok(lines::whole_text(reader, name, PART)),
    }
}

/// Whether the system is at fault (a failing disk, a missing file) and not the data.
fn is_system_error(error: &std::io::Error) -> bool {
    error.raw_os_error().is_some()
}

fn buffered<R: Read>(reader: R) -> BufReader<R> {
    BufReader::with_capacity(1 << 20, reader)
}

fn decompressed(
    reader: impl Read + Send + 'static,
    compression: Compression,
) -> std::io::Result<Box<dyn Read + Send>> {
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(reader)),
        Compression::Zstd => Box::new(zstd::Decoder::new(reader)?),
    })
}

fn format_of(path: &Path) -> Option<(Format, Compression)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (name, compression) = if let Some(inner) = name.strip_suffix(".gz") {
        (inner, Compression::Gzip)
    } else if let Some(inner) = name.strip_suffix(".zst") {
        (inner, Compression::Zstd)
    } else {
        (name.as_str(), Compression::None)
    };
    let format = match name.rsplit_once('.')?.1 {
        "txt" => Format::Text,
        "jsonl" | "ndjson" => Format::JsonLines,
        _ if compression != Compression::None => return None,
        "parquet" => Format::Parquet,
        "bin" => Format::TokenStream,
        "npy" => Format::Npy,
        _ => return None,
    };
    Some((format, compression))
}

#[cfg(test)]
mod tests;
