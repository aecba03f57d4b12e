//! The screening tiles on AVX2.

use super::operands::{BOUND_LANES, FeatureBounds, Geometry};
use super::rounding::{BYTE_BLOCK, ByteRange, Form, Grid};
use super::strip::{Masks, Strip, Tile};
use std::arch::x86_64::*;

/// Rows of a tile.
const HEIGHT: usize = 6;
/// Vectors of eight features in a tile.
const VECTORS: usize = BOUND_LANES / 8;
/// A tile.
pub(super) const GEOMETRY: Geometry = Geometry::new(HEIGHT, BOUND_LANES);

/// In what form a grid's numbers are read.
pub(super) const fn form(grid: Grid) -> Option<Form> {
    // `maddubs` wants its first factor unsigned, and 229·(71 + 72) fits 16 bits. With these limits rows and weights lose about as
    // much: larger numbers of rows leave less room for the weights.
    let range = ByteRange { largest_row: 71.0, row_offset: 72, largest_lane_sum: 229.0 };
    match grid {
        Grid::Bits8 => Some(Form::Bytes { range, block: BYTE_BLOCK }),
        Grid::Bits16 => Some(Form::Words),
        Grid::Bfloat16 => None,
    }
}

/// As [`super::possible`].
///
/// # Safety
/// The CPU must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn possible(strip: &Strip<'_>, masks: &mut [u32]) {
    let (groups, weights) = (strip.groups, strip.weights.as_ptr());
    match strip.grid {
        Grid::Bits8 => strip.each_tile(masks, |tile| {
            // SAFETY: the tile's rows and weights have the lengths that the product reads.
            let sums =
                unsafe { product_of_bytes(tile.rows.as_ptr(), groups, weights, &tile.bounds[0].start) };
            above_zero(&sums, tile)
        }),
        Grid::Bits16 => strip.each_tile(masks, |tile| {
            // SAFETY: as above.
            let sums = unsafe { product_of_words(tile.rows.as_ptr(), groups, weights) };
            above_zero(&sums, tile)
        }),
        Grid::Bfloat16 => unreachable!("there is no form for it"),
    }
}

/// The sums of a tile, eight features a vector.
type Sums = [[__m256i; VECTORS]; HEIGHT];

/// Σ_k x_q·w_q in 32 bits, of numbers of 16 bits.
///
/// # Safety
/// AVX2; `rows` valid for 6·`groups` words, `weights` for 16·`groups`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn product_of_words(rows: *const u32, groups: usize, weights: *const u32) -> Sums {
    // 6×2 sums, 2 weights, 1 broadcast and 1 product fill the 16 registers.
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; HEIGHT];
    let (mut rows, mut weights) = (rows.cast::<i32>(), weights.cast::<__m256i>());
    for _ in 0..groups {
        // SAFETY: each turn reads one word of each row and 16 of the weights.
        unsafe {
            let w: [__m256i; VECTORS] = std::array::from_fn(|v| _mm256_loadu_si256(weights.add(v)));
            weights = weights.add(VECTORS);
            for m in 0..HEIGHT {
                let x = _mm256_set1_epi32(*rows.add(m));
                for v in 0..VECTORS {
                    sums[m][v] = _mm256_add_epi32(sums[m][v], _mm256_madd_epi16(x, w[v]));
                }
            }
            rows = rows.add(HEIGHT);
        }
    }
    sums
}

/// `start` + Σ_k (x_q + offset)·w_q in 32 bits, of numbers of 8 bits.
///
/// # Safety
/// AVX2; `rows` valid for 6·`groups` words, `weights` for 16·`groups`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn product_of_bytes(
    rows: *const u32,
    groups: usize,
    weights: *const u32,
    start: &[i32; BOUND_LANES],
) -> Sums {
    // Not a constant for the compiler: unrolled, the turns need more registers than there are.
    let more_turns = std::hint::black_box(BYTE_BLOCK / 4 - 1);
    let ones = _mm256_set1_epi16(1);
    // SAFETY: sixteen numbers are two vectors.
    let start: [__m256i; VECTORS] =
        std::array::from_fn(|v| unsafe { _mm256_loadu_si256(start.as_ptr().cast::<__m256i>().add(v)) });
    // In memory: the registers hold the sums of 16 bits.
    let mut sums = [start; HEIGHT];
    let (mut rows, mut weights) = (rows.cast::<i32>(), weights.cast::<__m256i>());
    for _ in 0..groups / (BYTE_BLOCK / 4) {
        // SAFETY: each turn reads one word of each row and 16 of the weights.
        let mut short = unsafe { turn_of_bytes(rows, weights, |_, _, product| product) };
        for _ in 0..more_turns {
            // SAFETY: as above.
            unsafe {
                (rows, weights) = (rows.add(HEIGHT), weights.add(VECTORS));
                short = turn_of_bytes(rows, weights, |m, v, product| _mm256_add_epi16(short[m][v], product));
            }
        }
        // SAFETY: the next block's, or the end.
        (rows, weights) = unsafe { (rows.add(HEIGHT), weights.add(VECTORS)) };
        for m in 0..HEIGHT {
            for v in 0..VECTORS {
                sums[m][v] = _mm256_add_epi32(sums[m][v], _mm256_madd_epi16(short[m][v], ones));
            }
        }
    }
    sums
}

/// Products of one word of each row and 16 of the weights, neighbours added up in 16 bits.
///
/// # Safety
/// AVX2; `rows` valid for 6 words, `weights` for 2 vectors.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn turn_of_bytes(
    rows: *const i32,
    weights: *const __m256i,
    sum: impl Fn(usize, usize, __m256i) -> __m256i,
) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let w: [__m256i; VECTORS] = std::array::from_fn(|v| _mm256_loadu_si256(weights.add(v)));
        let mut sums = [[_mm256_setzero_si256(); VECTORS]; HEIGHT];
        for m in 0..HEIGHT {
            let x = _mm256_set1_epi32(*rows.add(m));
            for v in 0..VECTORS {
                sums[m][v] = sum(m, v, _mm256_maddubs_epi16(x, w[v]));
            }
        }
        sums
    }
}

/// For each row a bit for each feature: whether its bound is not at or below its cutoff.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn above_zero(sums: &Sums, tile: &Tile<'_, HEIGHT>) -> Masks<HEIGHT> {
    let FeatureBounds { step, norm, residual, base, cutoff, .. } = &tile.bounds[0];
    let mut masks = [0; HEIGHT];
    for v in 0..VECTORS {
        // SAFETY: a tile has VECTORS vectors of features.
        let vector = |of: &[f32; BOUND_LANES]| unsafe { _mm256_loadu_ps(of.as_ptr().add(8 * v)) };
        let (step, norm, residual, base) = (vector(step), vector(norm), vector(residual), vector(base));
        let cutoff = vector(cutoff);
        for m in 0..HEIGHT {
            let row = tile.row_bounds[m];
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[m][v]), step);
            let mut upper = _mm256_fmadd_ps(_mm256_set1_ps(row.step), scaled, base);
            upper = _mm256_fmadd_ps(_mm256_set1_ps(row.residual), norm, upper);
            upper = _mm256_fmadd_ps(_mm256_set1_ps(row.norm), residual, upper);
            upper = _mm256_fnmadd_ps(_mm256_set1_ps(row.cutoff), cutoff, upper);
            // "Not at most 0" and not "above 0": NaN rules nothing out.
            let possible = _mm256_cmp_ps::<_CMP_NLE_UQ>(upper, _mm256_setzero_ps());
            masks[m] |= (_mm256_movemask_ps(possible) as u32) << (8 * v);
        }
    }
    masks
}
