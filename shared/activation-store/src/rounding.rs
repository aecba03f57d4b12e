//! Converts float32 activations to the stored element type with a single rounding, to nearest even, at a chosen number of
//! mantissa bits.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::RowType;
use crate::isa::per_isa;

/// Where a row cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Unstorable {
    /// NaN or infinite.
    NotFinite { channel: usize },
    /// Finite, but beyond the row type's range.
    Overflow { channel: usize },
}

/// How elements are rounded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounding {
    pub(crate) row_type: RowType,
    /// Mantissa bits kept.
    pub(crate) bits: u8,
    /// Values beyond the range (infinities too) become the largest value instead of being an error.
    pub(crate) clip: bool,
}

impl Rounding {
    /// Rounds `row` into `out`; the number of clipped values. `out` is the little-endian bytes of the stored row in pairs, so
    /// that float16 rows are plain `u16` bit patterns.
    pub(crate) fn round(&self, row: &[f32], out: &mut [u16]) -> Result<u64, Unstorable> {
        match self.row_type {
            RowType::F16 => self.round_f16(row, out),
            RowType::F32 => self.round_f32(row, out),
        }
    }

    /// The same with the bytes in `planes`, as [`crate::codec::shuffle_into`] puts them; `out` is only used on the way.
    pub(crate) fn round_into_planes(
        &self,
        row: &[f32],
        planes: &mut [u8],
        out: &mut [u16],
    ) -> Result<u64, Unstorable> {
        #[cfg(target_arch = "x86_64")]
        if self.row_type == RowType::F16 && self.bits == 10 && crate::isa::has_avx512() {
            let (low, high) = planes.split_at_mut(row.len());
            // SAFETY: the features were detected.
            if unsafe { narrow_into_planes(row, low, high) } < 0x7c00 {
                return Ok(0);
            }
        }
        let clipped = self.round(row, out)?;
        crate::codec::shuffle_into(bytemuck::cast_slice(out), self.row_type.bytes(), planes, 0);
        Ok(clipped)
    }

    fn round_f16(&self, row: &[f32], out: &mut [u16]) -> Result<u64, Unstorable> {
        const INFINITY: u16 = 0x7c00;
        if self.bits == 10 {
            narrow(row, out);
        } else {
            let mut rounded = [0.0; 256];
            for (values, halves) in row.chunks(256).zip(out.chunks_mut(256)) {
                let rounded = &mut rounded[..values.len()];
                for (to, &value) in rounded.iter_mut().zip(values) {
                    *to = round_for_f16(value, self.bits);
                }
                narrow(rounded, halves);
            }
        }
        if largest_magnitude(out) < INFINITY {
            return Ok(0);
        }
        let largest = (INFINITY - 1) & !((1_u16 << (10 - self.bits)) - 1);
        self.clip_or_report(row, |channel| {
            let half = out[channel];
            if half & 0x7fff < INFINITY {
                return false;
            }
            out[channel] = half & 0x8000 | largest;
            true
        })
    }

    fn round_f32(&self, row: &[f32], out: &mut [u16]) -> Result<u64, Unstorable> {
        const INFINITY: u32 = 0x7f80_0000;
        let pairs = out.as_chunks_mut::<2>().0;
        let mut most = 0;
        for (pair, &value) in pairs.iter_mut().zip(row) {
            let bits = round_bits(value.to_bits(), 23 - self.bits);
            most = most.max(bits & 0x7fff_ffff).max(value.to_bits() & 0x7fff_ffff);
            *pair = [bits as u16, (bits >> 16) as u16];
        }
        if most < INFINITY {
            return Ok(0);
        }
        let largest = (INFINITY - 1) & !((1_u32 << (23 - self.bits)) - 1);
        self.clip_or_report(row, |channel| {
            let bits = round_bits(row[channel].to_bits(), 23 - self.bits);
            if bits & 0x7fff_ffff < INFINITY {
                return false;
            }
            let clipped = bits & 0x8000_0000 | largest;
            pairs[channel] = [clipped as u16, (clipped >> 16) as u16];
            true
        })
    }

    /// Goes through a row that holds something beyond the range: `clip` replaces such an element and says so.
    fn clip_or_report(&self, row: &[f32], mut clip: impl FnMut(usize) -> bool) -> Result<u64, Unstorable> {
        let mut clipped = 0;
        for (channel, value) in row.iter().enumerate() {
            if value.is_nan() || (value.is_infinite() && !self.clip) {
                return Err(Unstorable::NotFinite { channel });
            }
            if clip(channel) {
                if !self.clip {
                    return Err(Unstorable::Overflow { channel });
                }
                clipped += 1;
            }
        }
        Ok(clipped)
    }
}

/// The nearest float16 patterns, to nearest even.
fn narrow(values: &[f32], out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: both features were detected.
        return unsafe { narrow_avx2(values, out) };
    }
    out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
}

/// `half` calls a function for every eight values.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn narrow_avx2(values: &[f32], out: &mut [u16]) {
    use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps};
    let (blocks, rest) = values.as_chunks::<8>();
    let (out_blocks, out_rest) = out.as_chunks_mut::<8>();
    for (block, out) in blocks.iter().zip(out_blocks) {
        // SAFETY: the block has the eight values that are loaded.
        let wide = unsafe { _mm256_loadu_ps(block.as_ptr()) };
        let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(wide);
        // SAFETY: `out` has room for eight patterns of two bytes.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), halves) };
    }
    out_rest.reinterpret_cast_mut::<f16>().convert_from_f32_slice(rest);
}

/// The low and the high bytes of the nearest float16 patterns, written past the cache where they lie at its lines: they are read
/// much later. The largest pattern without its sign.
///
/// Another thread sees the bytes after [`written_past_the_cache`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn narrow_into_planes(values: &[f32], low: &mut [u8], high: &mut [u8]) -> u16 {
    use std::arch::x86_64::*;
    const LINE: usize = 64;
    assert!(low.len() == values.len() && high.len() == values.len(), "two bytes of each value");
    let at_lines = low.as_ptr().addr().is_multiple_of(LINE) && high.as_ptr().addr().is_multiple_of(LINE);
    let magnitude = _mm512_set1_epi16(0x7fff);
    let mut most = _mm512_setzero_si512();
    let (blocks, rest) = values.as_chunks::<LINE>();
    let (low_blocks, low_rest) = low.as_chunks_mut::<LINE>();
    let (high_blocks, high_rest) = high.as_chunks_mut::<LINE>();
    for ((block, low), high) in blocks.iter().zip(low_blocks).zip(high_blocks) {
        let mut halves = [_mm512_setzero_si512(); 2];
        for half in 0..2 {
            let narrow = |first: usize| {
                // SAFETY: the block has the sixteen values that are loaded.
                let values = unsafe { _mm512_loadu_ps(block[first..first + 16].as_ptr()) };
                _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values)
            };
            let first = _mm512_castsi256_si512(narrow(32 * half));
            halves[half] = _mm512_inserti64x4::<1>(first, narrow(32 * half + 16));
            most = _mm512_max_epu16(most, _mm512_and_si512(halves[half], magnitude));
        }
        let join = |first: __m512i, second: __m512i| {
            let first = _mm512_castsi256_si512(_mm512_cvtepi16_epi8(first));
            _mm512_inserti64x4::<1>(first, _mm512_cvtepi16_epi8(second))
        };
        let lows = join(halves[0], halves[1]);
        let highs = join(_mm512_srli_epi16::<8>(halves[0]), _mm512_srli_epi16::<8>(halves[1]));
        // SAFETY: both have the 64 bytes that are stored, at a line's beginning where that is asked for.
        unsafe {
            if at_lines {
                _mm512_stream_si512(low.as_mut_ptr().cast(), lows);
                _mm512_stream_si512(high.as_mut_ptr().cast(), highs);
            } else {
                _mm512_storeu_si512(low.as_mut_ptr().cast(), lows);
                _mm512_storeu_si512(high.as_mut_ptr().cast(), highs);
            }
        }
    }
    let mut largest = [0_u16; 32];
    // SAFETY: the array has the 64 bytes that are stored.
    unsafe { _mm512_storeu_si512(largest.as_mut_ptr().cast(), most) };
    let mut halves = [0_u16; LINE];
    let halves = &mut halves[..rest.len()];
    narrow(rest, halves);
    for ((half, low), high) in halves.iter().zip(low_rest).zip(high_rest) {
        [*low, *high] = half.to_le_bytes();
    }
    largest_magnitude(&largest).max(largest_magnitude(halves))
}

/// Rows that were rounded until now are seen by a thread that hears of them from now on.
pub(crate) fn written_past_the_cache() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has this instruction, and it changes no memory.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

per_isa! {
    /// The largest of float16 patterns without their signs.
    pub(crate) fn largest_magnitude(halves: &[u16]) -> u16 {
        halves.iter().fold(0, |most, &half| most.max(half & 0x7fff))
    }
}

/// Rounds the lowest `dropped` mantissa bits of an IEEE 754 pattern away, to nearest-even. The carry runs into the
/// exponent as it should; subnormals keep the same quantum.
fn round_bits(bits: u32, dropped: u8) -> u32 {
    if dropped == 0 {
        return bits;
    }
    let magnitude = bits & 0x7fff_ffff;
    let half = (1_u32 << (dropped - 1)) - 1;
    let odd = (magnitude >> dropped) & 1;
    let rounded = magnitude.saturating_add(half + odd) & !((1_u32 << dropped) - 1);
    // NaN stays NaN for the check that follows.
    let rounded = if magnitude > 0x7f80_0000 { magnitude } else { rounded };
    bits & 0x8000_0000 | rounded
}

/// Rounds `value` to the nearest float16 that has `bits` mantissa bits (fewer than 10), as a float32 whose
/// conversion to float16 is exact. Below float16's normal range (2^-14) the quantum is 2^(-14-bits).
fn round_for_f16(value: f32, bits: u8) -> f32 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;
    // Adding 2^(23-14-bits) leaves no mantissa bit below the quantum; the addition itself rounds to nearest-even.
    let shifter = f32::from_bits((127 + 23 - 14 - u32::from(bits)) << 23);
    let small = ((value.abs() + shifter) - shifter).copysign(value);
    let normal = f32::from_bits(round_bits(value.to_bits(), 23 - bits));
    if value.abs() < SMALLEST_NORMAL { small } else { normal }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn f16_with(bits: u8, value: f32) -> Result<f32, Unstorable> {
        let mut out = [0];
        Rounding { row_type: RowType::F16, bits, clip: false }.round(&[value], &mut out)?;
        Ok(f16::from_bits(out[0]).to_f32())
    }

    /// All float16 values with `bits` mantissa bits, by brute force.
    fn grid(bits: u8) -> Vec<f64> {
        let mask = (1_u16 << (10 - bits)) - 1;
        let patterns = (0..0x7c00_u16).filter(|half| half & mask == 0);
        patterns.map(|half| f64::from(f16::from_bits(half).to_f32())).collect()
    }

    #[test]
    fn vectors_round_as_half_does() {
        // Around every float16 value and halfway between: 21 values, so that some are left over, at a time.
        let values: Vec<f32> = (0..0x4790_0000_u32)
            .step_by(0x0fff)
            .flat_map(|bits| [f32::from_bits(bits), -f32::from_bits(bits)])
            .collect();
        for values in values.chunks(21) {
            let mut out = vec![0; values.len()];
            narrow(values, &mut out);
            let expected: Vec<u16> = values.iter().map(|&value| f16::from_f32(value).to_bits()).collect();
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn planes_get_the_bytes_of_rounded_rows() {
        let values: Vec<f32> = (0..400_000_u32)
            .map(|i| f32::from_bits(i * 2927) * if i % 3 == 0 { -1.0 } else { 1.0 })
            .collect();
        for row_type in [RowType::F16, RowType::F32] {
            let rounding = Rounding { row_type, bits: row_type.mantissa_bits(), clip: true };
            for (width, offset) in [(64, 0), (128, 0), (200, 1), (7, 3)] {
                for row in values.chunks_exact(width).step_by(5) {
                    let mut out = vec![0; width * row_type.bytes() / 2];
                    let expected = rounding.round(row, &mut out);
                    let mut planes = vec![0; width * row_type.bytes()];
                    crate::codec::shuffle_into(bytemuck::cast_slice(&out), row_type.bytes(), &mut planes, 0);
                    #[repr(align(64))]
                    struct Lines([u8; 1024]);
                    let mut lines = Lines([0; 1024]);
                    let found = &mut lines.0[offset..offset + planes.len()];
                    assert_eq!(rounding.round_into_planes(row, found, &mut out), expected);
                    written_past_the_cache();
                    assert!(expected.is_err() || *found == planes[..]);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn float16_rounding_takes_the_nearest_value_of_the_grid(pattern: u32, bits in 1_u8..=10) {
            let value = f32::from_bits((pattern % 0x4780_0000) | (pattern & 0x8000_0000)); // below 65536
            let grid = grid(bits);
            let rounded = match f16_with(bits, value) {
                Ok(rounded) => f64::from(rounded),
                Err(Unstorable::Overflow { .. }) => {
                    let largest = *grid.last().unwrap();
                    let next = 65536.0;
                    prop_assert!(f64::from(value.abs()) >= (largest + next) / 2.0);
                    return Ok(());
                }
                Err(other) => panic!("{other:?}"),
            };
            let target = f64::from(value.abs());
            let above = grid.partition_point(|&point| point < target);
            let best = [above.checked_sub(1), Some(above)].into_iter().flatten()
                .filter_map(|index| grid.get(index))
                .map(|point| (point - target).abs())
                .fold(f64::INFINITY, f64::min);
            prop_assert!(grid.contains(&rounded.abs()), "{rounded} has more than {bits} bits");
            prop_assert_eq!((rounded.abs() - target).abs(), best);
            prop_assert_eq!(rounded.is_sign_negative(), value.is_sign_negative());
        }

        #[test]
        fn float32_rows_keep_every_bit_by_default(values: Vec<f32>) {
            prop_assume!(values.iter().all(|value| value.is_finite()));
            let mut out = vec![0_u16; values.len() * 2];
            let rounding = Rounding { row_type: RowType::F32, bits: 23, clip: false };
            prop_assert_eq!(rounding.round(&values, &mut out), Ok(0));
            prop_assert_eq!(bytemuck::cast_slice::<_, u8>(&out), bytemuck::cast_slice::<_, u8>(&values));
        }
    }

    #[test]
    fn ties_go_to_even() {
        assert_eq!(f16_with(3, 1.0625), Ok(1.0)); // between 1 and 1.125
        assert_eq!(f16_with(3, 1.1875), Ok(1.25)); // between 1.125 and 1.25
        assert_eq!(f16_with(10, 2048.0 + 1.0), Ok(2048.0));
        assert_eq!(f16_with(10, 2048.0 + 3.0), Ok(2052.0));
    }

    #[test]
    fn a_value_is_rounded_once_not_twice() {
        // To 10 bits first this would become the tie 1.0625 and then 1.0.
        assert_eq!(f16_with(3, 1.062_500_1), Ok(1.125));
    }

    #[test]
    fn what_cannot_be_stored_is_named() {
        let strict = |row_type, row: &[f32]| {
            let bits = if row_type == RowType::F16 { 10 } else { 23 };
            Rounding { row_type, bits, clip: false }
                .round(row, &mut vec![0; row.len() * row_type.bytes() / 2])
        };
        for row_type in [RowType::F16, RowType::F32] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(strict(row_type, &[1.0, 2.0, bad]), Err(Unstorable::NotFinite { channel: 2 }));
            }
        }
        assert_eq!(strict(RowType::F16, &[65519.0]), Ok(0));
        assert_eq!(strict(RowType::F16, &[1.0, -65520.0]), Err(Unstorable::Overflow { channel: 1 }));
        assert_eq!(strict(RowType::F32, &[f32::MAX]), Ok(0));
    }

    #[test]
    fn clipping_gives_the_largest_value_and_is_counted() {
        let mut out = [0; 4];
        let rounding = Rounding { row_type: RowType::F16, bits: 10, clip: true };
        assert_eq!(rounding.round(&[1e6, f32::NEG_INFINITY, 3.0, -65504.0], &mut out), Ok(2));
        assert_eq!(out.map(|half| f16::from_bits(half).to_f32()), [65504.0, -65504.0, 3.0, -65504.0]);
        assert_eq!(
            rounding.round(&[0.0, f32::NAN], &mut out[..2]),
            Err(Unstorable::NotFinite { channel: 1 })
        );
        let five = Rounding { bits: 5, ..rounding };
        assert_eq!(five.round(&[65504.0], &mut out[..1]), Ok(1));
        assert_eq!(f16::from_bits(out[0]).to_f32(), 64512.0);
    }
}
