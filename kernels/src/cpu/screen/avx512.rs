//! The screening tiles on AVX-512 with VNNI.
//!
//! VNNI multiplies and adds up four bytes or two words a lane and adds the sum to 32 bits in one instruction: bytes at
//! four times the rate of float32, words at twice, which is what AVX512_BF16 reaches with ten times the residual.

use super::rounding::Grid;
use super::{TILE_HEIGHT, TILE_WIDTH, Tile};
use std::arch::x86_64::*;

/// For each row the tile's features that can be active, a bit each.
///
/// # Safety
/// The CPU must have AVX-512F with VNNI.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn possible(grid: Grid, tile: &Tile<'_>) -> [u16; TILE_HEIGHT] {
    let (rows, weights, start) = (tile.rows.as_ptr(), tile.weights.as_ptr(), tile.bound.start.as_ptr());
    // SAFETY: the tile's rows, weights and starts have the lengths that the products read.
    let sums = unsafe {
        match grid {
            Grid::Bits8 => product::<true>(rows, tile.groups(), weights, start),
            Grid::Bits16 => product::<false>(rows, tile.groups(), weights, start),
        }
    };
    // SAFETY: the tile's bounds hold sixteen numbers.
    let (step, norm, residual, base) = unsafe {
        (
            _mm512_loadu_ps(tile.bound.step.as_ptr()),
            _mm512_loadu_ps(tile.bound.norm.as_ptr()),
            _mm512_loadu_ps(tile.bound.residual.as_ptr()),
            _mm512_loadu_ps(tile.bound.base.as_ptr()),
        )
    };
    let mut masks = [0; TILE_HEIGHT];
    for m in 0..TILE_HEIGHT {
        let row = tile.row_bounds[m];
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[m]), step);
        let mut upper = _mm512_fmadd_ps(_mm512_set1_ps(row.step), scaled, base);
        upper = _mm512_fmadd_ps(_mm512_set1_ps(row.residual), norm, upper);
        upper = _mm512_fmadd_ps(_mm512_set1_ps(row.norm), residual, upper);
        // "Not at most 0" and not "above 0": NaN rules nothing out.
        masks[m] = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(upper, _mm512_setzero_ps());
    }
    masks
}

/// `start` + Σ_k x_q·w_q in 32 bits, of numbers of 8 bits (those of the rows unsigned) or of 16 bits.
///
/// # Safety
/// AVX-512F with VNNI; `rows` valid for 6·`groups` words, `weights` for 16·`groups`, `start` for 16 numbers.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn product<const BYTES: bool>(
    rows: *const u32,
    groups: usize,
    weights: *const u32,
    start: *const i32,
) -> [__m512i; TILE_HEIGHT] {
    // SAFETY: the caller's promise.
    let mut sums = [unsafe { _mm512_loadu_si512(start.cast()) }; TILE_HEIGHT];
    for group in 0..groups {
        // SAFETY: each turn reads one word of each row and 16 of the weights.
        unsafe {
            let w = _mm512_loadu_si512(weights.add(TILE_WIDTH * group).cast());
            for (m, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*rows.add(TILE_HEIGHT * group + m) as i32);
                *sum = match BYTES {
                    true => _mm512_dpbusd_epi32(*sum, x, w),
                    false => _mm512_dpwssd_epi32(*sum, x, w),
                };
            }
        }
    }
    sums
}
