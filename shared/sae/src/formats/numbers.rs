//! The types that numbers have in files, and what they are as float32.

use half::{bf16, f16};
use safetensors::Dtype;

/// The type of a tensor's numbers in a file, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Element {
    /// That of safetensors, where it is one of these.
    pub(super) fn of_safetensors(dtype: Dtype) -> Option<Element> {
        Some(match dtype {
            Dtype::F64 => Element::F64,
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::I64 => Element::I64,
            Dtype::I32 => Element::I32,
            Dtype::I16 => Element::I16,
            Dtype::I8 => Element::I8,
            Dtype::U8 => Element::U8,
            Dtype::BOOL => Element::Bool,
            _ => return None,
        })
    }

    /// The numbers in `bytes`, rounded to float32. A remainder shorter than a number is left out.
    pub(super) fn widen(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Element::F64 => each(bytes, |number| f64::from_le_bytes(number) as f32),
            Element::F32 => each(bytes, f32::from_le_bytes),
            Element::F16 => each(bytes, |number| f16::from_le_bytes(number).to_f32()),
            Element::Bf16 => each(bytes, |number| bf16::from_le_bytes(number).to_f32()),
            Element::I64 => each(bytes, |number| i64::from_le_bytes(number) as f32),
            Element::I32 => each(bytes, |number| i32::from_le_bytes(number) as f32),
            Element::I16 => each(bytes, |number| f32::from(i16::from_le_bytes(number))),
            Element::I8 => each(bytes, |number| f32::from(i8::from_le_bytes(number))),
            Element::U8 | Element::Bool => each(bytes, |[number]| f32::from(number)),
        }
    }
}

fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|chunk| number(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_widened_to_the_number_that_it_holds() {
        let cases: [(Element, &[u8]); 10] = [
            (Element::F64, &(-1.5_f64).to_le_bytes()),
            (Element::F32, &(-1.5_f32).to_le_bytes()),
            (Element::F16, &[0x00, 0xbe]),
            (Element::Bf16, &[0xc0, 0xbf]),
            (Element::I64, &(-3_i64).to_le_bytes()),
            (Element::I32, &(-3_i32).to_le_bytes()),
            (Element::I16, &(-3_i16).to_le_bytes()),
            (Element::I8, &(-3_i8).to_le_bytes()),
            (Element::U8, &[200]),
            (Element::Bool, &[1]),
        ];
        let expected = [-1.5, -1.5, -1.5, -1.5, -3.0, -3.0, -3.0, -3.0, 200.0, 1.0];
        for ((element, bytes), expected) in cases.into_iter().zip(expected) {
            assert_eq!(element.widen(bytes), [expected], "{element:?}");
        }
    }
}
