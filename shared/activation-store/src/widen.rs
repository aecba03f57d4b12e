//! Turns a decoded chunk's byte planes into the rows of a batch.
//!
//! The planes are never reassembled in memory. A row's bytes are joined in registers and converted at once, so a row is
//! written only once after decompression.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::RowType;
use crate::isa::per_isa;
use crate::rounding::largest_magnitude;

/// An element type that batches can have: `f32`, [`f16`] or [`bf16`].
pub trait BatchElement: sealed::Join {}

impl BatchElement for f32 {}
impl BatchElement for f16 {}
impl BatchElement for bf16 {}

mod sealed {
    use crate::RowType;

    /// What the crate needs of an element type.
    pub trait Join: Copy + Default + Send + Sync + std::fmt::Debug + 'static {
        /// The type's name.
        const NAME: &str;

        /// Row `row` of a chunk's planes into `out` `[d]`, rounded to nearest-even where the type is narrower. False
        /// if a value is beyond the type.
        fn join_row(planes: &[u8], row_type: RowType, row: usize, out: &mut [Self]) -> bool;
    }
}

impl sealed::Join for f32 {
    const NAME: &str = "float32";

    fn join_row(planes: &[u8], row_type: RowType, row: usize, out: &mut [f32]) -> bool {
        widen_row(planes, row_type, row, out);
        true
    }
}

impl sealed::Join for f16 {
    const NAME: &str = "float16";

    fn join_row(planes: &[u8], row_type: RowType, row: usize, out: &mut [f16]) -> bool {
        if row_type == RowType::F32 {
            let narrow = |wide: &[f32], out: &mut [f16]| out.convert_from_f32_slice(wide);
            narrow_row(planes, row_type, row, out, narrow);
            return largest_magnitude(out.reinterpret_cast()) <= f16::MAX.to_bits();
        }
        let (low, high) = planes.split_at(planes.len() / 2);
        let first = row * out.len();
        let (low, high) = (&low[first..][..out.len()], &high[first..][..out.len()]);
        join_pairs(low, high, out.reinterpret_cast_mut());
        true
    }
}

impl sealed::Join for bf16 {
    const NAME: &str = "bfloat16";

    fn join_row(planes: &[u8], row_type: RowType, row: usize, out: &mut [bf16]) -> bool {
        let narrow = |wide: &[f32], out: &mut [bf16]| round_to_bf16(wide, out.reinterpret_cast_mut());
        narrow_row(planes, row_type, row, out, narrow);
        largest_magnitude(out.reinterpret_cast()) <= bf16::MAX.to_bits()
    }
}

per_isa! {
    /// Elements of two bytes from their low and their high bytes.
    fn join_pairs(low: &[u8], high: &[u8], out: &mut [u16]) {
        for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
            *out = u16::from(low) | u16::from(high) << 8;
        }
    }
}

per_isa! {
    /// To nearest-even; a store has no NaN, which this would not keep.
    fn round_to_bf16(wide: &[f32], out: &mut [u16]) {
        for (out, &value) in out.iter_mut().zip(wide) {
            let bits = value.to_bits();
            *out = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        }
    }
}

/// A row by way of some float32 values at a time, few enough to stay in the first cache.
fn narrow_row<T>(
    planes: &[u8],
    row_type: RowType,
    row: usize,
    out: &mut [T],
    narrow: impl Fn(&[f32], &mut [T]),
) {
    let mut wide = [0.0; 256];
    let mut first = row * out.len();
    for out in out.chunks_mut(wide.len()) {
        let wide = &mut wide[..out.len()];
        widen(planes, row_type, first, wide);
        narrow(wide, out);
        first += out.len();
    }
}

/// Row `row` of a chunk's planes into `out` `[d]`.
pub(crate) fn widen_row(planes: &[u8], row_type: RowType, row: usize, out: &mut [f32]) {
    widen(planes, row_type, row * out.len(), out);
}

/// The elements of a chunk from number `first` on into `out`.
fn widen(planes: &[u8], row_type: RowType, first: usize, out: &mut [f32]) {
    let per_plane = planes.len() / row_type.bytes();
    let plane = |byte: usize| &planes[byte * per_plane + first..][..out.len()];
    match row_type {
        RowType::F16 => widen_f16(plane(0), plane(1), out),
        RowType::F32 => widen_f32([plane(0), plane(1), plane(2), plane(3)], out),
    }
}

/// Asks for the cache lines of row `row`, which will be widened soon. Rows of a mixing block are read in a random order
/// that the processor cannot foresee; asked for a few rows ahead they arrive 1.3 to 1.9 times as fast (measured).
pub(crate) fn prefetch_row(planes: &[u8], row_type: RowType, row: usize, width: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const CACHE_LINE: usize = 64;
        let per_plane = planes.len() / row_type.bytes();
        for byte in 0..row_type.bytes() {
            let plane = &planes[byte * per_plane + row * width..][..width];
            for line in plane.chunks(CACHE_LINE) {
                // SAFETY: a prefetch of an address inside of `planes` reads and writes nothing.
                unsafe { _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T0) };
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (planes, row_type, row, width);
}

fn widen_f16(low: &[u8], high: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: both features were detected.
        return unsafe { widen_f16_avx2(low, high, out) };
    }
    widen_f16_plain(low, high, out);
}

fn widen_f16_plain(low: &[u8], high: &[u8], out: &mut [f32]) {
    let mut halves = [f16::ZERO; 64];
    for ((low, high), out) in low.chunks(64).zip(high.chunks(64)).zip(out.chunks_mut(64)) {
        for ((half, &low), &high) in halves.iter_mut().zip(low).zip(high) {
            *half = f16::from_le_bytes([low, high]);
        }
        halves[..out.len()].convert_to_f32_slice(out);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn widen_f16_avx2(low: &[u8], high: &[u8], out: &mut [f32]) {
    use std::arch::x86_64::{
        _mm_loadu_si128, _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm256_cvtph_ps, _mm256_storeu_ps,
    };
    let (low_blocks, low_rest) = low.as_chunks::<16>();
    let (high_blocks, high_rest) = high.as_chunks::<16>();
    let (out_blocks, out_rest) = out.as_chunks_mut::<16>();
    for ((low, high), out) in low_blocks.iter().zip(high_blocks).zip(out_blocks) {
        // SAFETY: each array has the 16 bytes that are loaded.
        let (low, high) =
            unsafe { (_mm_loadu_si128(low.as_ptr().cast()), _mm_loadu_si128(high.as_ptr().cast())) };
        let first = _mm256_cvtph_ps(_mm_unpacklo_epi8(low, high));
        let second = _mm256_cvtph_ps(_mm_unpackhi_epi8(low, high));
        // SAFETY: `out` has room for two vectors of 8 floats.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), first);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), second);
        }
    }
    widen_f16_plain(low_rest, high_rest, out_rest);
}

per_isa! {
    fn widen_f32(planes: [&[u8]; 4], out: &mut [f32]) {
        let width = out.len();
        let [a, b, c, d] = planes.map(|plane| &plane[..width]);
        for (index, out) in out.iter_mut().enumerate() {
            *out = f32::from_le_bytes([a[index], b[index], c[index], d[index]]);
        }
    }
}

/// An element whose rows cannot be joined without a panic.
#[cfg(test)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dying;

#[cfg(test)]
impl BatchElement for Dying {}

#[cfg(test)]
impl sealed::Join for Dying {
    const NAME: &str = "dying";

    fn join_row(_: &[u8], _: RowType, _: usize, _: &mut [Dying]) -> bool {
        panic!("a dying element")
    }
}

#[cfg(test)]
mod tests {
    use super::sealed::Join;
    use super::*;

    #[test]
    fn every_float16_pattern_widens_to_itself_at_every_alignment() {
        let patterns: Vec<u16> = (0..=u16::MAX).collect();
        let low: Vec<u8> = patterns.iter().map(|half| *half as u8).collect();
        let high: Vec<u8> = patterns.iter().map(|half| (half >> 8) as u8).collect();
        for skip in [0, 1, 7, 65_500] {
            let mut out = vec![-1.0; patterns.len() - skip];
            widen_f16(&low[skip..], &high[skip..], &mut out);
            let mut plain = vec![-1.0; patterns.len() - skip];
            widen_f16_plain(&low[skip..], &high[skip..], &mut plain);
            for ((&pattern, out), plain) in patterns[skip..].iter().zip(out).zip(plain) {
                let expected = f16::from_bits(pattern).to_f32();
                assert!(out == expected || out.is_nan() && expected.is_nan(), "{pattern:04x}");
                assert!(plain == expected || plain.is_nan() && expected.is_nan(), "{pattern:04x}");
            }
        }
    }

    #[test]
    fn every_float16_becomes_the_nearest_bfloat16_and_itself() {
        let finite: Vec<u16> = (0..=u16::MAX).filter(|&bits| f16::from_bits(bits).is_finite()).collect();
        let planes: Vec<u8> = finite
            .iter()
            .map(|bits| *bits as u8)
            .chain(finite.iter().map(|bits| (bits >> 8) as u8))
            .collect();
        let mut same = vec![f16::ZERO; finite.len()];
        assert!(f16::join_row(&planes, RowType::F16, 0, &mut same));
        assert!(same.iter().map(|value| value.to_bits()).eq(finite.iter().copied()));
        let mut brain = vec![bf16::ZERO; finite.len()];
        assert!(bf16::join_row(&planes, RowType::F16, 0, &mut brain));
        for (&bits, found) in finite.iter().zip(brain) {
            let expected = bf16::from_f32(f16::from_bits(bits).to_f32());
            assert_eq!(found.to_bits(), expected.to_bits(), "{bits:04x}");
        }
    }

    #[test]
    fn float32_rows_are_rounded_once_and_overflow_is_noticed() {
        let planes = |values: &[f32]| -> Vec<u8> {
            (0..4).flat_map(|byte| values.iter().map(move |value| value.to_le_bytes()[byte])).collect()
        };
        // Halfway cases, neighbours of them, subnormals, the largest values that fit.
        let values: Vec<f32> = (0..700)
            .map(|index: u32| f32::from_bits(0x3f80_0000 + index * 0x0800 + index % 3))
            .chain([65504.0, -65519.99, 1e-7, -6e-8, 0.0, -0.0])
            .collect();
        let mut half = vec![f16::ZERO; values.len()];
        assert!(f16::join_row(&planes(&values), RowType::F32, 0, &mut half));
        let mut brain = vec![bf16::ZERO; values.len()];
        assert!(bf16::join_row(&planes(&values), RowType::F32, 0, &mut brain));
        for ((&value, half), brain) in values.iter().zip(half).zip(brain) {
            assert_eq!(half.to_bits(), f16::from_f32(value).to_bits(), "{value}");
            assert_eq!(brain.to_bits(), bf16::from_f32(value).to_bits(), "{value}");
        }
        assert!(!f16::join_row(&planes(&[1.0, -65520.0]), RowType::F32, 0, &mut [f16::ZERO; 2]));
        assert!(bf16::join_row(&planes(&[1.0, -65520.0]), RowType::F32, 0, &mut [bf16::ZERO; 2]));
        assert!(!bf16::join_row(&planes(&[f32::MAX, 0.0]), RowType::F32, 0, &mut [bf16::ZERO; 2]));
    }
}
