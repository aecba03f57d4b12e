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

mod document;
mod lines;
mod options;
mod parquet;
mod tokens;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use terminal::foreign_path;

pub(crate) use document::{Content, Damage, DamageKind, Document, Documents, Place};
pub(crate) use options::{InputFormat, ReadOptions};

/// Bytes of a text file that are in memory at once.
const PART: usize = 16 << 20;

/// The name that stands for standard input among the files.
pub(crate) const STANDARD_INPUT: &str = "-";

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
