//! A protobuf message as a list of fields whose contents stay bytes.
//!
//! A file from elsewhere can hold fields that no schema here knows. A file that is parsed and written back this way keeps
//! every field it retains, bit for bit.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Field<'b> {
    /// Its number in the schema.
    pub(crate) number: u32,
    /// Key, length and contents: what to copy to keep the field.
    pub(crate) whole: &'b [u8],
    /// The contents: of a string, bytes or message its bytes, of a number its encoding.
    pub(crate) contents: &'b [u8],
}

/// The fields of `message`, in order.
///
/// # Errors
/// When a field does not end where the message does.
pub(crate) fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, String> {
    let mut fields = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let whole = rest;
        let (number, wire_type) = decode_key(&mut rest).map_err(damaged)?;
        let length = match wire_type {
            WireType::Varint => {
                let mut after = rest;
                decode_varint(&mut after).map_err(damaged)?;
                rest.len() - after.len()
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => {
                usize::try_from(decode_varint(&mut rest).map_err(damaged)?).unwrap_or(usize::MAX)
            }
            WireType::StartGroup | WireType::EndGroup => {
                return Err(format!("field {number} is a group, which ONNX does not use"));
            }
        };
        if length > rest.len() {
            return Err(format!("field {number} is longer than the message it is in"));
        }
        let contents = &rest[..length];
        rest.advance(length);
        fields.push(Field { number, whole: &whole[..whole.len() - rest.len()], contents });
    }
    Ok(fields)
}

/// Appends `contents` to `message` as the string, bytes or message with this number.
pub(crate) fn put(message: &mut Vec<u8>, number: u32, contents: &[u8]) {
    encode_key(number, WireType::LengthDelimited, message);
    encode_varint(contents.len() as u64, message);
    message.extend_from_slice(contents);
}

fn damaged(error: prost::DecodeError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::onnx::OperatorSetIdProto;

    #[test]
    fn a_message_is_the_concatenation_of_its_fields() {
        // 1: varint 300; 2: "ab"; 3: four bytes; 4: eight bytes; 2: "".
        let message = [
            &[0x08, 0xac, 0x02][..],
            &[0x12, 2, b'a', b'b'],
            &[0x1d, 1, 2, 3, 4],
            &[0x21, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x12, 0],
        ]
        .concat();
        let fields = fields(&message).unwrap();
        assert_eq!(fields.iter().map(|field| field.number).collect::<Vec<_>>(), [1, 2, 3, 4, 2]);
        assert_eq!(fields[0].contents, [0xac, 0x02]);
        assert_eq!(fields[1].contents, b"ab");
        assert_eq!(fields[2].contents.len(), 4);
        assert_eq!(fields[3].contents.len(), 8);
        assert_eq!(fields.iter().flat_map(|field| field.whole).copied().collect::<Vec<_>>(), message);
    }

    #[test]
    fn what_is_put_is_found_again() {
        let opset = OperatorSetIdProto { domain: "d".repeat(200), version: 7 }.encode_to_vec();
        let mut message = Vec::new();
        put(&mut message, 8, &opset);
        let [field] = fields(&message).unwrap()[..] else { panic!("one field was put") };
        assert_eq!((field.number, field.contents), (8, &opset[..]));
    }

    #[test]
    fn a_damaged_message_is_an_error() {
        for message in [&[0x12, 5, 1][..], &[0x08], &[0x1d, 1, 2], &[0x0b], &[0x12], &[0x12, 0xff, 0xff]] {
            assert!(fields(message).is_err(), "{message:?}");
        }
    }
}
