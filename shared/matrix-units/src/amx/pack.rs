//! Splitting float32 numbers into bfloat16 numbers, in tiles.

use std::arch::x86_64::*;

use super::MatrixUnits;
use crate::matrix::Matrix;
use crate::packed::{Line, PART_LINES, Parts, STEP};

/// How far ahead in a lane to ask for numbers: lanes are more streams than the processor foresees by itself.
const AHEAD: usize = 4 * STEP;
/// Lanes of a tile.
const LANES: usize = 16;

/// Packs a step of a panel of a left or right factor: `lanes` rows of `numbers` numbers of `source`, and zeros up to 32 of each.
///
/// # Panics
/// If the source does not hold them, or `lines` is not a step.
pub(crate) fn pack_step(
    _: MatrixUnits,
    parts: Parts,
    left: bool,
    source: Matrix<'_>,
    (lanes, numbers): (usize, usize),
    lines: &mut [Line],
) {
    source.assert_holds(lanes, numbers);
    assert!(lanes <= 2 * LANES && numbers <= STEP && lines.len() == parts.pieces() * PART_LINES);
    for tile in 0..2 {
        let present = lanes.saturating_sub(tile * LANES).min(LANES);
        let from = if present == 0 { source } else { source.from(tile * LANES, 0) };
        // SAFETY: the processor has what the matrix units come with. The source holds the lanes, and the lines are a step's.
        unsafe {
            match parts {
                Parts::Three => pack_tile::<2>(left, from, present, numbers, &mut lines[tile * LANES..]),
                Parts::Six => pack_tile::<3>(left, from, present, numbers, &mut lines[tile * LANES..]),
            }
        }
    }
}

/// # Safety
/// The processor has these features; `source` holds lanes × numbers, at most 16 × 32; the lines of the parts of one of a step's
/// tiles are the first 16, and those 32 and 64 lines later.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_tile<const PIECES: usize>(
    left: bool,
    source: Matrix<'_>,
    lanes: usize,
    numbers: usize,
    lines: &mut [Line],
) {
    let (lane_stride, number_stride) = source.strides();
    let numbers_first = source.numbers().as_ptr();
    let mut words = [[_mm512_setzero_si512(); LANES]; PIECES];
    // SAFETY: the caller's promise about `source`; what lies beyond it is masked.
    let along = unsafe {
        if lane_stride == 1 && number_stride != 1 {
            split_across(numbers_first, number_stride, lanes, numbers, &mut words);
            false
        } else if number_stride == 1 {
            split_along(numbers_first, lane_stride, lanes, numbers, &mut words);
            true
        } else {
            let mut gathered = [0.0f32; LANES * STEP];
            for lane in 0..lanes {
                for number in 0..numbers {
                    gathered[lane * STEP + number] =
                        *numbers_first.add(lane * lane_stride + number * number_stride);
                }
            }
            split_along(gathered.as_ptr(), STEP, lanes, numbers, &mut words);
            true
        }
    };
    for (part, words) in words.iter_mut().enumerate() {
        if along != left {
            transpose(words);
        }
        let lines = &mut lines[part * PART_LINES..part * PART_LINES + LANES];
        for (line, words) in lines.iter_mut().zip(words) {
            // SAFETY: a line is 64 bytes, aligned.
            unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), *words) };
        }
    }
}

/// The first `count` of 16 lanes.
fn mask(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

/// Words of lane after lane, from numbers that lie next to each other along the depth.
///
/// # Safety
/// The processor has these features; lanes × numbers can be read, lanes `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn split_along<const PIECES: usize>(
    from: *const f32,
    stride: usize,
    lanes: usize,
    numbers: usize,
    words: &mut [[__m512i; LANES]; PIECES],
) {
    let (first, second) = (mask(numbers), mask(numbers.saturating_sub(16)));
    for lane in 0..lanes {
        let from = from.wrapping_add(lane * stride);
        // SAFETY: the caller's promise; numbers that are masked are not read, and a hint reads nothing.
        let pair = unsafe {
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + 16).cast());
            (_mm512_maskz_loadu_ps(first, from), _mm512_maskz_loadu_ps(second, from.wrapping_add(16)))
        };
        let split = split::<PIECES>(pair);
        (0..PIECES).for_each(|part| words[part][lane] = split[part]);
    }
}

/// Words of pair after pair along the depth, from numbers that lie next to each other across the lanes.
///
/// # Safety
/// As of `split_along`, numbers of a lane `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn split_across<const PIECES: usize>(
    from: *const f32,
    stride: usize,
    lanes: usize,
    numbers: usize,
    words: &mut [[__m512i; LANES]; PIECES],
) {
    let present = mask(lanes);
    // Number j of the lower half next to number j of the upper one.
    let mut order = [0u16; 32];
    (0..16).for_each(|j| (order[2 * j], order[2 * j + 1]) = (j as u16, j as u16 + 16));
    // SAFETY: 64 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    for pair in 0..numbers.div_ceil(2) {
        let from = from.wrapping_add(2 * pair * stride);
        let odd = if 2 * pair + 1 < numbers { present } else { 0 };
        // SAFETY: the caller's promise; numbers that are masked are not read.
        let split = unsafe {
            let numbers =
                (_mm512_maskz_loadu_ps(present, from), _mm512_maskz_loadu_ps(odd, from.wrapping_add(stride)));
            split::<PIECES>(numbers)
        };
        (0..PIECES).for_each(|part| words[part][pair] = _mm512_permutexvar_epi16(order, split[part]));
    }
}

/// Sixteen numbers and sixteen more as 32 bfloat16 numbers, the nearest ones; then what they leave, in the same way.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn split<const PIECES: usize>((mut first, mut second): (__m512, __m512)) -> [__m512i; PIECES] {
    let mut words = [_mm512_setzero_si512(); PIECES];
    for part in 0..PIECES {
        // SAFETY: both are 64 bytes of plain numbers.
        let halves: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(second, first)) };
        words[part] = halves;
        if part + 1 == PIECES {
            break;
        }
        let widened = |halves| _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
        first = _mm512_sub_ps(first, widened(_mm512_castsi512_si256(halves)));
        second = _mm512_sub_ps(second, widened(_mm512_extracti64x4_epi64(halves, 1)));
    }
    words
}

/// Transposes 16 × 16 words.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(rows: &mut [__m512i; 16]) {
    let mut t = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        rows[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        rows[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        rows[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        rows[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // Four rows by four: rows[4 i + j] has, in its quarter q, column 4 q + j of rows 4 i to 4 i + 3.
    for j in 0..4 {
        let low = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x88);
        let low_odd = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xdd);
        let high = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x88);
        let high_odd = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(low, high, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(low, high, 0xdd);
        t[4 + j] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
    }
    *rows = t;
}
