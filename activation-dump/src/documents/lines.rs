//! Text files and JSON lines.

use std::io::{BufRead, Read};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{DamageKind, Document, Documents, Place, is_system_error};

/// What some programs write in front of UTF-8; JSON does not allow it.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One document: everything there is.
pub(super) fn whole_text(mut reader: impl Read + Send + 'static, file: Arc<str>) -> Documents {
    Box::new(std::iter::once_with(move || {
        let mut bytes = Vec::new();
        let place = Place::whole(&file);
        if let Err(error) = reader.read_to_end(&mut bytes) {
            if is_system_error(&error) {
                return Err(error).with_context(|| format!("reading {file}"));
            }
            return Ok(Document::damaged(place, DamageKind::UnreadableFile, error));
        }
        Ok(match String::from_utf8(bytes) {
            Ok(text) => Document::text(place, text),
            Err(error) => Document::damaged(place, DamageKind::InvalidUtf8, error.utf8_error()),
        })
    }))
}

/// One document a line; blank lines are passed over.
pub(super) fn json_lines(
    mut reader: impl BufRead + Send + 'static,
    file: Arc<str>,
    column: &str,
) -> Documents {
    let column = column.to_owned();
    let (mut number, mut line, mut ended, mut first) = (0, Vec::new(), false, true);
    Box::new(std::iter::from_fn(move || {
        while !ended {
            number += 1;
            line.clear();
            let place = Place::of(&file, "line", number);
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => ended = true,
                Ok(_) => {
                    let bytes = if number == 1 { line.strip_prefix(BYTE_ORDER_MARK) } else { None };
                    let bytes = bytes.unwrap_or(&line);
                    if !bytes.trim_ascii().is_empty() {
                        let document = document_of_line(bytes, &column, place, first);
                        first = false;
                        return Some(document);
                    }
                }
                Err(error) if is_system_error(&error) => {
                    ended = true;
                    return Some(Err(error).with_context(|| format!("reading {place}")));
                }
                Err(error) => {
                    // A damaged compressed stream: nothing after it can be read.
                    ended = true;
                    return Some(Ok(Document::damaged(place, DamageKind::UnreadableFile, error)));
                }
            }
        }
        None
    }))
}

/// The document of one line. That the `first` one lacks the column means that the column is a wrong one.
fn document_of_line(bytes: &[u8], column: &str, place: Place, first: bool) -> Result<Document> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Ok(Document::damaged(place, DamageKind::InvalidUtf8, error)),
    };
    let mut record = match serde_json::from_str(text) {
        Ok(Value::Object(record)) => record,
        Ok(_) => return Ok(Document::damaged(place, DamageKind::NoText, "it is not a JSON object")),
        Err(error) => return Ok(Document::damaged(place, DamageKind::InvalidJson, error)),
    };
    let problem = match record.remove(column) {
        Some(Value::String(text)) => return Ok(Document::text(place, text)),
        Some(Value::Null) => return Ok(Document::text(place, String::new())),
        Some(_) => format!("`{column}` is not a string"),
        None => {
            let names: Vec<&String> = record.keys().collect();
            format!("no field `{column}` (it has {names:?})")
        }
    };
    if first {
        bail!("{place}: {problem}; name the text with --column")
    }
    Ok(Document::damaged(place, DamageKind::NoText, problem))
}
