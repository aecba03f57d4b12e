//! The screening tiles on AVX-512 without VNNI: Skylake's servers.
//!
//! As on [AVX2](super::x86), bytes are multiplied and added up in 16 bits for a block of columns, and then in 32; but the registers
//! hold both sums of twice as many rows.

use super::operands::{BOUND_LANES, FeatureBounds, Geometry};
use super::rounding::{BYTE_BLOCK, Form, Grid};
use super::strip::{Masks, Strip, Tile};
use super::x86;
use std::arch::x86_64::*;

/// Rows of a tile.
const HEIGHT: usize = 12;
/// A tile: its features are one vector.
pub(super) const GEOMETRY: Geometry = Geometry::new(HEIGHT, BOUND_LANES);

/// In what form a grid's numbers are read: the instructions for them are AVX2's, but wider.
pub(super) const fn form(grid: Grid) -> Option<Form> {
    x86::form(grid)
}

/// As [`super::possible`].
///
/// # Safety
/// The CPU must have AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
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

/// For each row a bit for each feature: whether its bound is not at or below its cutoff.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn above_zero<const HEIGHT: usize>(
    sums: &[__m512i; HEIGHT],
    tile: &Tile<'_, HEIGHT>,
) -> Masks<HEIGHT> {
    let FeatureBounds { step, norm, residual, base, cutoff, .. } = &tile.bounds[0];
    // SAFETY: a tile's features are one vector.
    let vector = |of: &[f32; BOUND_LANES]| unsafe { _mm512_loadu_ps(of.as_ptr()) };
    let (step, norm, residual, base) = (vector(step), vector(norm), vector(residual), vector(base));
    let cutoff = vector(cutoff);
    let mut masks = [0; HEIGHT];
    for m in 0..HEIGHT {
        let row = tile.row_bounds[m];
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[m]), step);
        let mut upper = _mm512_fmadd_ps(_mm512_set1_ps(row.step), scaled, base);
        upper = _mm512_fmadd_ps(_mm512_set1_ps(row.residual), norm, upper);
        upper = _mm512_fmadd_ps(_mm512_set1_ps(row.norm), residual, upper);
        upper = _mm512_fnmadd_ps(_mm512_set1_ps(row.cutoff), cutoff, upper);
        // "Not at most 0" and not "above 0": NaN rules nothing out.
        masks[m] = u32::from(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(upper, _mm512_setzero_ps()));
    }
    masks
}

/// Σ_k x_q·w_q in 32 bits, of numbers of 16 bits.
///
/// # Safety
/// AVX-512 F and BW; `rows` valid for 12·`groups` words, `weights` for 16·`groups`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn product_of_words(rows: *const u32, groups: usize, weights: *const u32) -> [__m512i; HEIGHT] {
    let mut sums = [_mm512_setzero_si512(); HEIGHT];
    for group in 0..groups {
        // SAFETY: each turn reads one word of each row and 16 of the weights.
        unsafe {
            let w = _mm512_loadu_si512(weights.add(BOUND_LANES * group).cast());
            for (m, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*rows.add(HEIGHT * group + m) as i32);
                *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(x, w));
            }
        }
    }
    sums
}

/// `start` + Σ_k (x_q + offset)·w_q in 32 bits, of numbers of 8 bits.
///
/// # Safety
/// AVX-512 F and BW; `rows` valid for 12·`groups` words, `weights` for 16·`groups`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn product_of_bytes(
    rows: *const u32,
    groups: usize,
    weights: *const u32,
    start: &[i32; BOUND_LANES],
) -> [__m512i; HEIGHT] {
    let ones = _mm512_set1_epi16(1);
    // SAFETY: sixteen numbers are a vector.
    let mut sums = [unsafe { _mm512_loadu_si512(start.as_ptr().cast()) }; HEIGHT];
    for block in 0..groups / (BYTE_BLOCK / 4) {
        let mut short = [_mm512_setzero_si512(); HEIGHT];
        for turn in 0..BYTE_BLOCK / 4 {
            let group = block * (BYTE_BLOCK / 4) + turn;
            // SAFETY: each turn reads one word of each row and 16 of the weights.
            unsafe {
                let w = _mm512_loadu_si512(weights.add(BOUND_LANES * group).cast());
                for (m, short) in short.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*rows.add(HEIGHT * group + m) as i32);
                    *short = _mm512_add_epi16(*short, _mm512_maddubs_epi16(x, w));
                }
            }
        }
        for (sum, short) in sums.iter_mut().zip(short) {
            *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(short, ones));
        }
    }
    sums
}
