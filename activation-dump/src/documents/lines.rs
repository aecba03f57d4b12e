//! Text files and JSON lines.

use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, ErrorKind, Read};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::document::{Content, DamageKind, Document, Documents, LONGEST, Place, is_system_error};

/// The byte order mark that some programs write before UTF-8; JSON does not allow it.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One document: everything there is, in parts of at most `part` bytes. Only a text in one part is known to be UTF-8 before
/// its tokens are used; what is not ends a longer one.
pub(super) fn whole_text(mut reader: impl Read + Send + 'static, file: Arc<str>, part: usize) -> Documents {
    let (mut bytes, mut begins, mut ended, mut damage) = (Vec::new(), true, false, None);
    Box::new(std::iter::from_fn(move || {
        if let Some(damage) = damage.take() {
            return Some(Ok(damage));
        }
        if ended {
            return None;
        }
        let place = Place::whole(&file);
        // One byte more than a part shows whether another follows.
        let wanted = part + 1 - bytes.len();
        if let Err(error) = reader.by_ref().take(wanted as u64).read_to_end(&mut bytes) {
            ended = true;
            if is_system_error(&error) {
                return Some(Err(error).with_context(|| format!("reading {file}")));
            }
            let unreadable = Document::damaged(place.clone(), DamageKind::UnreadableFile, error);
            if begins {
                return Some(Ok(unreadable));
            }
            damage = Some(unreadable);
        }
        ended |= bytes.len() <= part;
        let mut rest = if ended { Vec::new() } else { bytes.split_off(part) };
        let text = match String::from_utf8(std::mem::take(&mut bytes)) {
            Ok(text) => text,
            Err(error) => {
                let (valid, cut_short) =
                    (error.utf8_error().valid_up_to(), error.utf8_error().error_len().is_none());
                let problem = error.utf8_error();
                let mut whole = error.into_bytes();
                let odd = whole.split_off(valid);
                if cut_short && !ended {
                    // A character lies across the parts.
                    rest = [odd, rest].concat();
                } else {
                    ended = true;
                    let invalid = Document::damaged(place.clone(), DamageKind::InvalidUtf8, problem);
                    if begins {
                        return Some(Ok(invalid));
                    }
                    damage.get_or_insert(invalid);
                }
                String::from_utf8(whole).unwrap_or_default() // valid up to there
            }
        };
        bytes = rest;
        let content = match begins && ended {
            true => Content::Text(text),
            false => Content::Part { text, begins, ends: ended },
        };
        begins = false;
        Some(Ok(Document { place, content }))
    }))
}

/// One document per line; blank lines are skipped.
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
            line.shrink_to(1 << 20);
            let place = Place::of(&file, "line", number);
            match read_line(&mut reader, &mut line, LONGEST) {
                Ok(0) => ended = true,
                Ok(length) if length > LONGEST as u64 => {
                    let what = format!("it has {length} bytes; up to {LONGEST} are read");
                    return Some(Ok(Document::damaged(place, DamageKind::TooLong, what)));
                }
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

/// Reads a line, its end included, and returns its length; 0 where there is none. Of a line that is longer than `longest`
/// no more than that is kept.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, longest: usize) -> std::io::Result<u64> {
    let mut length = 0;
    loop {
        let available = match reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = available.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(available.len(), |end| end + 1);
        line.extend_from_slice(&available[..used.min(longest - line.len())]);
        length += used as u64;
        reader.consume(used);
        if end.is_some() || used == 0 {
            return Ok(length);
        }
    }
}

/// The document of one line. If the `first` line lacks the column, the column's name is wrong.
fn document_of_line(bytes: &[u8], column: &str, place: Place, first: bool) -> Result<Document> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Ok(Document::damaged(place, DamageKind::InvalidUtf8, error)),
    };
    let found = match text.trim_ascii_start().starts_with('{') {
        true => serde_json::from_str(text).and_then(|record: Record<'_>| record.text(column)),
        false => serde_json::from_str(text).map(|IgnoredAny| Found::NoObject),
    };
    let problem = match found {
        Ok(Found::Text(text)) => return Ok(Document::text(place, text)),
        Ok(Found::NoObject) => {
            return Ok(Document::damaged(place, DamageKind::NoText, "it is not a JSON object"));
        }
        Ok(Found::NoString) => format!("`{column}` is not a string"),
        Ok(Found::NoColumn(names)) => format!("no field `{column}` (it has {names:?})"),
        Err(error) => return Ok(Document::damaged(place, DamageKind::InvalidJson, error)),
    };
    if first {
        bail!("{place}: {problem}; name the key of the text with --column")
    }
    Ok(Document::damaged(place, DamageKind::NoText, problem))
}

/// What a line holds.
enum Found {
    /// The text in the column; null is an empty one.
    Text(String),
    NoObject,
    NoString,
    /// The first few names that exist instead.
    NoColumn(Vec<String>),
}

/// The fields of a JSON object, in its order. Their values are pieces of the line: whatever is in them takes no memory.
struct Record<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// Names that a message shows.
const NAMES: usize = 12;

impl<'a> Record<'a> {
    fn text(self, column: &str) -> Result<Found, serde_json::Error> {
        // If several fields have the same name, the last one counts.
        let Some((_, value)) = self.0.iter().rev().find(|(name, _)| name == column) else {
            return Ok(Found::NoColumn(
                self.0.iter().map(|(name, _)| name.to_string()).take(NAMES).collect(),
            ));
        };
        match value.get() {
            "null" => Ok(Found::Text(String::new())),
            text if text.starts_with('"') => serde_json::from_str(text).map(Found::Text),
            _ => Ok(Found::NoString),
        }
    }
}

impl<'de> Deserialize<'de> for Record<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Record<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Record<'de>, M::Error> {
        let mut fields = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            fields.push((name, map.next_value()?));
        }
        Ok(Record(fields))
    }
}

/// A field's name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
