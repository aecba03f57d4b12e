//! Token files: flat streams of u16 or u32, and NumPy arrays.
//!
//! A flat stream (`.bin`, or `.npy` of shape `[n]`) is a sequence of documents separated by BOS, as nanoGPT, llm.c and most
//! pre-tokenizers write it for models whose BOS is also their end of text. It is packed like text: every BOS begins a
//! document, and each context gets a BOS of its own. A matrix (`.npy` of shape `[contexts, T]`) holds ready-made contexts.
//! They are used as they are and must have the requested length.

use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::document::{Content, DamageKind, Document, Documents, Place, is_system_error};
use super::options::{InputFormat, ReadOptions};
use crate::npy;

/// Tokens of a piece of a stream.
const PIECE: usize = 1 << 16;
/// llm.c's header: 256 int32, of which these are the first two (magic number and version).
const LLM_C: [([u32; 2], TokenType); 2] =
    [([20_240_520, 1], TokenType::U16), ([20_240_801, 7], TokenType::U32)];
const LLM_C_HEADER_BYTES: usize = 1024;

/// How a token is stored, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    U8,
    U16,
    U32,
    I32,
    I64,
}

impl TokenType {
    fn bytes(self) -> usize {
        match self {
            TokenType::U8 => 1,
            TokenType::U16 => 2,
            TokenType::U32 | TokenType::I32 => 4,
            TokenType::I64 => 8,
        }
    }

    /// The token in these bytes (as many as the type has).
    fn read(self, bytes: &[u8]) -> i64 {
        match (self, bytes) {
            (TokenType::U8, &[a]) => a.into(),
            (TokenType::U16, &[a, b]) => u16::from_le_bytes([a, b]).into(),
            (TokenType::U32, &[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]).into(),
            (TokenType::I32, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]).into(),
            (TokenType::I64, &[a, b, c, d, e, f, g, h]) => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => unreachable!("chunks have the type's length"),
        }
    }
}

/// A stream of tokens without a header, or with llm.c's.
pub(super) fn bin(
    mut reader: impl Read + Send + 'static,
    file: Arc<str>,
    options: &ReadOptions,
) -> Result<Documents> {
    let mut front = Vec::new();
    reader
        .by_ref()
        .take(LLM_C_HEADER_BYTES as u64)
        .read_to_end(&mut front)
        .with_context(|| format!("reading {file}"))?;
    let word = |index: usize| -> Option<u32> {
        Some(TokenType::U32.read(front.get(4 * index..4 * index + 4)?) as u32)
    };
    let llm_c = LLM_C.iter().find(|(magic, _)| [word(0), word(1)] == magic.map(Some));
    if front.len() == LLM_C_HEADER_BYTES
        && let Some((_, kind)) = llm_c
    {
        return Ok(Box::new(Pieces::new(reader, file, *kind, None, options).documents()));
    }
    let kind = match options.format {
        Some(InputFormat::U16) => TokenType::U16,
        Some(InputFormat::U32) => TokenType::U32,
        _ if options.vocabulary > 1 << 16 => TokenType::U32,
        _ => {
            // If 4-byte numbers that are small are read as 2-byte ones, every second one is zero.
            let high_halves = front.chunks_exact(4).map(|word| TokenType::U16.read(&word[2..]));
            if front.len() >= 64 && high_halves.into_iter().all(|half| half == 0) {
                bail!(
                    "{file} looks like tokens of 4 bytes; give --format u32, or --format u16 if they have 2"
                );
            }
            TokenType::U16
        }
    };
    let whole = std::io::Cursor::new(front).chain(reader);
    Ok(Box::new(Pieces::new(whole, file, kind, None, options).documents()))
}

/// A NumPy array of integers, `[n]` or `[contexts, T]`.
pub(super) fn npy(
    mut reader: impl Read + Send + 'static,
    file: Arc<str>,
    options: &ReadOptions,
) -> Result<Documents> {
    let header = match npy::header(&mut reader) {
        Ok(header) => header,
        Err(error) if is_system_error(&error) => {
            return Err(error).with_context(|| format!("reading {file}"));
        }
        Err(error) => {
            let document = Document::damaged(Place::whole(&file), DamageKind::UnreadableFile, error);
            return Ok(Box::new(std::iter::once(Ok(document))));
        }
    };
    let npy::Header { kind, fortran_order, shape } = header;
    let kind = match kind.as_str() {
        "|u1" => TokenType::U8,
        "<u2" => TokenType::U16,
        "<u4" => TokenType::U32,
        "<i4" => TokenType::I32,
        "<i8" | "<u8" => TokenType::I64,
        other => {
            bail!("{file} holds numbers of type {other}; tokens are u1, u2, u4, i4, i8 or u8, little-endian")
        }
    };
    let length = match shape.as_slice() {
        [_] => None,
        [_, length] if !fortran_order => Some(*length),
        [_, _] => bail!("{file} is in Fortran order; save it with numpy.ascontiguousarray"),
        _ => bail!("{file} has shape {shape:?}; files of tokens are [n] or [contexts, T]"),
    };
    if let Some(length) = length
        && length != options.context as u64
    {
        bail!(
            "{file} holds contexts of {length} tokens; they are used as they are, so give --context {length}"
        );
    }
    let bytes = shape.iter().try_fold(kind.bytes() as u64, |bytes, &size| bytes.checked_mul(size));
    let Some(bytes) = bytes else {
        let what = format!("it cannot have the shape {shape:?}");
        let document = Document::damaged(Place::whole(&file), DamageKind::UnreadableFile, what);
        return Ok(Box::new(std::iter::once(Ok(document))));
    };
    Ok(Box::new(Pieces::new(reader, file, kind, Some(bytes), options).documents_of(length.is_some())))
}

/// A file of tokens, read piece by piece.
struct Pieces<R> {
    reader: R,
    file: Arc<str>,
    kind: TokenType,
    /// Bytes still to come; `None` if their number is unknown.
    bytes_left: Option<u64>,
    vocabulary: i64,
    context: usize,
    /// Tokens read.
    read: u64,
}

impl<R: Read> Pieces<R> {
    fn new(
        reader: R,
        file: Arc<str>,
        kind: TokenType,
        bytes: Option<u64>,
        options: &ReadOptions,
    ) -> Pieces<R> {
        let (vocabulary, context) = (options.vocabulary as i64, options.context);
        Pieces { reader, file, kind, bytes_left: bytes, vocabulary, context, read: 0 }
    }

    fn documents(self) -> impl Iterator<Item = Result<Document>> {
        self.documents_of(false)
    }

    /// Ready contexts, or pieces of a stream.
    fn documents_of(mut self, contexts: bool) -> impl Iterator<Item = Result<Document>> {
        let mut waiting = None;
        let mut ended = false;
        let size = if contexts { self.context } else { PIECE };
        std::iter::from_fn(move || {
            if let Some(damage) = waiting.take() {
                return Some(Ok(damage));
            }
            if ended {
                return None;
            }
            let first = self.read;
            let (tokens, damage) = match self.next(size) {
                Ok(piece) => piece,
                Err(error) => {
                    ended = true;
                    return Some(Err(error));
                }
            };
            let short = tokens.len() < size;
            ended = short || damage.is_some();
            let place = Place::of(&self.file, "token", first);
            let content = match contexts {
                _ if tokens.is_empty() || (contexts && short) => return damage.map(Ok),
                true => Content::Context(tokens),
                false => Content::Stream { tokens, begins: first == 0 },
            };
            waiting = damage;
            Some(Ok(Document { place, content }))
        })
    }

    /// Up to `count` tokens, fewer at the end of the file, and any problem with that end.
    fn next(&mut self, count: usize) -> Result<(Vec<u32>, Option<Document>)> {
        let wanted = (count * self.kind.bytes()) as u64;
        let wanted = self.bytes_left.map_or(wanted, |left| left.min(wanted));
        let mut bytes = Vec::with_capacity(wanted as usize);
        let ended = self.reader.by_ref().take(wanted).read_to_end(&mut bytes);
        let mut problem = match ended {
            Err(error) if is_system_error(&error) => {
                return Err(error).with_context(|| format!("reading {}", self.file));
            }
            Err(error) => Some(error.to_string()),
            Ok(_) => None,
        };
        if let Some(left) = &mut self.bytes_left {
            *left -= bytes.len() as u64;
            if (bytes.len() as u64) < wanted {
                problem.get_or_insert(format!("the file ends {left} bytes before its array does"));
            }
        } else if !bytes.len().is_multiple_of(self.kind.bytes()) {
            problem.get_or_insert("the last token is incomplete".to_owned());
        }
        let chunks = bytes.chunks_exact(self.kind.bytes());
        let mut tokens = Vec::with_capacity(chunks.len());
        for (index, chunk) in chunks.enumerate() {
            let token = self.kind.read(chunk);
            if !(0..self.vocabulary).contains(&token) {
                bail!(
                    "{}: token {} is {token}, but the model has {} tokens; were these made for another model, or is \
                     --format another?",
                    self.file,
                    self.read + index as u64,
                    self.vocabulary
                );
            }
            tokens.push(token as u32);
        }
        self.read += tokens.len() as u64;
        let damage = problem.map(|problem| {
            let place = Place::of(&self.file, "token", self.read);
            Document::damaged(place, DamageKind::UnreadableFile, problem)
        });
        Ok((tokens, damage))
    }
}
