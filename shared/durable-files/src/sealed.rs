//! JSON objects that carry their own checksum.
//!
//! The last key of a sealed object is `"crc32c":"xxxxxxxx"`, the CRC-32C of the text without that key and the comma before
//! it. An object without the key was written by an older version or changed by a person on purpose.

use std::fmt;

use serde::Serialize;

const KEY: &str = "\"crc32c\"";

/// A text that has changed since it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "its content has the CRC-32C {found:08x}, but it was written with {expected:08x}; if it was changed on purpose, \
     remove the key \"crc32c\" from it"
)]
pub struct BrokenSeal {
    /// The checksum that it was written with.
    pub expected: u32,
    /// The checksum of the present content.
    pub found: u32,
}

/// `value`, an object, as one sealed line without the newline.
///
/// # Panics
/// If `value` is not plain data that makes a JSON object.
pub fn sealed_line(value: &impl Serialize) -> String {
    seal(&serde_json::to_string(value).expect("a record is plain data"), format_args!(",{KEY}:"))
}

/// `value`, an object, as a sealed document of several lines.
///
/// # Panics
/// If `value` is not plain data that makes a JSON object.
pub fn sealed_document(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).expect("a record is plain data");
    seal(&text, format_args!(",\n  {KEY}: ")) + "\n"
}

/// Puts the checksum of `text` behind the last value in it.
fn seal(text: &str, key: fmt::Arguments<'_>) -> String {
    let body = text.strip_suffix('}').expect("an object ends so").trim_end();
    let checksum = crc32c::crc32c(text.as_bytes());
    format!("{body}{key}\"{checksum:08x}\"{}", &text[body.len()..])
}

/// Whether `text` has a seal (`false` without one).
///
/// # Errors
/// [`BrokenSeal`] if the text has changed since it was sealed.
pub fn check_seal(text: &[u8]) -> Result<bool, BrokenSeal> {
    let Some((before, expected, after)) = split(text) else { return Ok(false) };
    let found = crc32c::crc32c_append(crc32c::crc32c(before), after);
    if found == expected { Ok(true) } else { Err(BrokenSeal { expected, found }) }
}

/// What stands before the seal, the checksum in it, and what stands behind it up to the closing brace.
fn split(text: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let object = text.trim_ascii_end();
    let value = object.strip_suffix(b"}")?.trim_ascii_end();
    let after = &object[value.len()..];
    let (rest, digits) = value.strip_suffix(b"\"")?.split_last_chunk::<8>()?;
    let checksum = u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    let key = rest.strip_suffix(b"\"")?.trim_ascii_end().strip_suffix(b":")?.trim_ascii_end();
    let before = key.strip_suffix(KEY.as_bytes())?.trim_ascii_end().strip_suffix(b",")?;
    Some((before, checksum, after))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_sealed_object_is_the_object_with_one_key_more() {
        let value = json!({ "kind": "step", "loss": 0.5 });
        for text in [sealed_line(&value), sealed_document(&value)] {
            assert_eq!(check_seal(text.as_bytes()), Ok(true), "{text}");
            let mut read: Value = serde_json::from_str(&text).unwrap();
            let checksum = read.as_object_mut().unwrap().remove("crc32c").unwrap();
            assert_eq!(read, value);
            assert_eq!(checksum.as_str().unwrap().len(), 8);
        }
        // CRC-32C of the text without the key, as any tool computes it.
        assert_eq!(
            sealed_line(&json!({ "a": 1 })),
            format!("{{\"a\":1,\"crc32c\":\"{:08x}\"}}", crc32c::crc32c(b"{\"a\":1}"))
        );
    }

    #[test]
    fn every_flipped_bit_of_the_content_breaks_the_seal() {
        for text in [sealed_line(&json!({ "a": 1.5 })), sealed_document(&json!({ "a": 1.5 }))] {
            let content = text.find(",").unwrap();
            for bit in 0..8 * content {
                let mut bytes = text.clone().into_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(check_seal(&bytes).is_err(), "{}", String::from_utf8_lossy(&bytes));
            }
        }
    }

    #[test]
    fn without_a_seal_a_text_is_taken_as_it_is() {
        let document = sealed_document(&json!({ "a": 1, "b": [2] }));
        let start = document.find(",\n  \"crc32c\"").unwrap();
        let edited = format!("{}\n}}\n", &document[..start].replace('1', "7"));
        for text in [
            &*edited,
            "",
            "{}",
            "}",
            "{\"crc32c\": 1}",
            "{\"a\":1,\"crc32c\":\"0123\"}",
            "{\"a\":\"12345678\"}",
        ] {
            assert_eq!(check_seal(text.as_bytes()), Ok(false), "{text}");
        }
        let error = check_seal(document.replace('1', "7").as_bytes());
        // The checksum's own digits may have changed with it.
        assert!(error.is_err());
    }
}
