//! The number types of activations that were made elsewhere.

use anyhow::{Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A little-endian number type, which float32 holds exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F16,
    BF16,
    F32,
}

impl Element {
    /// Bytes of a number.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Element::F16 | Element::BF16 => 2,
            Element::F32 => 4,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Element::F16 => "float16",
            Element::BF16 => "bfloat16",
            Element::F32 => "float32",
        }
    }

    /// The type that Python tools call `name`: "float16", "torch.float16", or safetensors' "F16".
    pub(super) fn named(name: &str) -> Result<Element> {
        match name.trim_start_matches("torch.") {
            "float16" | "half" | "F16" => Ok(Element::F16),
            "bfloat16" | "BF16" => Ok(Element::BF16),
            "float32" | "float" | "F32" => Ok(Element::F32),
            _ => bail!("its numbers are {name:?}; float16, bfloat16 and float32 can be imported"),
        }
    }

    /// Widens the numbers in `bytes` to `out`; both have the same number of them.
    pub(super) fn widen(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Element::F32 => bytemuck::cast_slice_mut(out).copy_from_slice(bytes),
            Element::F16 => {
                let numbers: Vec<f16> =
                    bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]])).collect();
                numbers.convert_to_f32_slice(out);
            }
            Element::BF16 => {
                let numbers: Vec<bf16> =
                    bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]])).collect();
                numbers.convert_to_f32_slice(out);
            }
        }
    }
}

/// A little-endian number type of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenElement {
    U16,
    U32,
    I32,
    I64,
}

impl TokenElement {
    /// Bytes of a token.
    pub(super) fn bytes(self) -> u64 {
        match self {
            TokenElement::U16 => 2,
            TokenElement::U32 | TokenElement::I32 => 4,
            TokenElement::I64 => 8,
        }
    }

    /// The tokens in `bytes`; what is no token (negative, or beyond 32 bits) is an error that names it.
    pub(super) fn read(self, bytes: &[u8]) -> Result<Vec<u32>> {
        let token = |bytes: &[u8]| -> Result<u32> {
            let mut wide = [0; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            let value = i64::from_le_bytes(wide);
            let value = match self {
                TokenElement::I32 => i64::from(value as i32),
                _ => value,
            };
            match u32::try_from(value) {
                Ok(token) if token < u32::MAX => Ok(token),
                _ => bail!("{value} is not a token"),
            }
        };
        bytes.chunks_exact(self.bytes() as usize).map(token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_widened_exactly() {
        let values = [1.5_f32, -2.0, 0.0, 65504.0];
        let bytes: [Vec<u8>; 3] = [
            values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ];
        let expected = [values, [1.5, -2.0, 0.0, 65536.0], values];
        for ((element, bytes), expected) in
            [Element::F16, Element::BF16, Element::F32].into_iter().zip(bytes).zip(expected)
        {
            let mut out = [f32::NAN; 4];
            element.widen(&bytes, &mut out);
            assert_eq!(out, expected, "{}", element.name());
        }
    }

    #[test]
    fn what_is_no_token_is_an_error_that_names_it() {
        assert_eq!(TokenElement::U16.read(&[1, 0, 255, 255]).unwrap(), [1, 65535]);
        assert_eq!(TokenElement::I64.read(&7_i64.to_le_bytes()).unwrap(), [7]);
        let error = TokenElement::I32.read(&(-100_i32).to_le_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "-100 is not a token");
        assert!(TokenElement::I64.read(&(1_i64 << 40).to_le_bytes()).is_err());
        assert!(TokenElement::U32.read(&u32::MAX.to_le_bytes()).is_err());
    }
}
