//! The screening tiles on AVX-512 with VNNI.
//!
//! In one instruction, VNNI multiplies four bytes or two words per lane and adds the products to a 32-bit sum: bytes at
//! four times the rate of float32, words at twice the rate. AVX512_BF16 reaches the latter with ten times the residual.

use super::operands::{BOUND_LANES, FeatureBounds, Geometry};
use super::rounding::{BYTE_BLOCK, ByteRange, Form, Grid};
use super::strip::{Masks, Strip, Tile};
use std::arch::x86_64::*;

/// Rows of a tile.
const HEIGHT: usize = 6;
/// A tile: its features are one vector.
pub(super) const GEOMETRY: Geometry = Geometry::new(HEIGHT, BOUND_LANES);

/// In what form a grid's numbers are read: bytes of rows unsigned.
pub(super) const fn form(grid: Grid) -> Option<Form> {
    match grid {
        Grid::Bits8 => Some(Form::Bytes { range: ByteRange::OFFSET, block: BYTE_BLOCK }),
        Grid::Bits16 => Some(Form::Words),
        Grid::Bfloat16 => None,
    }
}

/// As [`super::possible`].
///
/// # Safety
/// The CPU must have AVX-512F with VNNI.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn possible(strip: &Strip<'_>, masks: &mut [u32]) {
    let (groups, weights) = (strip.groups, strip.weights.as_ptr());
    match strip.grid {
        Grid::Bits8 => strip.each_tile(masks, |tile| {
            // SAFETY: the tile's rows and weights have the lengths that the product reads.
            let sums = unsafe { product::<true>(tile.rows.as_ptr(), groups, weights, &tile.bounds[0].start) };
            above_zero(&sums, tile)
        }),
        Grid::Bits16 => strip.each_tile(masks, |tile| {
            // SAFETY: as above.
            let sums =
                unsafe { product::<false>(tile.rows.as_ptr(), groups, weights, &tile.bounds[0].start) };
            above_zero(&sums, tile)
        }),
        Grid::Bfloat16 => unreachable!("there is no form for it"),
    }
}

/// For each row a bit for each feature: whether its bound is not at or below its cutoff.
#[inline]
#[target_feature(enable = "avx512f")]
fn above_zero(sums: &[__m512i; HEIGHT], tile: &Tile<'_, HEIGHT>) -> Masks<HEIGHT> {
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

/// `start` + Σ_k x_q·w_q in 32 bits, of numbers of 8 bits (those of the rows unsigned) or of 16 bits.
///
/// # Safety
/// AVX-512F with VNNI; `rows` valid for 6·`groups` words, `weights` for 16·`groups`.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn product<const BYTES: bool>(
    rows: *const u32,
    groups: usize,
    weights: *const u32,
    start: &[i32; BOUND_LANES],
) -> [__m512i; HEIGHT] {
    // SAFETY: sixteen numbers are a vector.
    let mut sums = [unsafe { _mm512_loadu_si512(start.as_ptr().cast()) }; HEIGHT];
    for group in 0..groups {
        // SAFETY: each turn reads one word of each row and 16 of the weights.
        unsafe {
            let w = _mm512_loadu_si512(weights.add(BOUND_LANES * group).cast());
            for (m, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*rows.add(HEIGHT * group + m) as i32);
                *sum = match BYTES {
                    true => _mm512_dpbusd_epi32(*sum, x, w),
                    false => _mm512_dpwssd_epi32(*sum, x, w),
                };
            }
        }
    }
    sums
}
