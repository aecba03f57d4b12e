//! The screening tile on AVX2.

use super::{RowBound, ScreenedPanel, ScreenedRows, TILE_HEIGHT, TILE_WIDTH};
use std::arch::x86_64::*;

/// Vectors of eight features in a tile.
const VECTORS: usize = TILE_WIDTH / 8;

/// Appends the candidates of a tile, the rows from `row` on × the panel's features from `first` on, to the list of
/// each row; what lies beyond the lists only fills the tile.
///
/// # Safety
/// The CPU must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn candidates(
    rows: &ScreenedRows,
    panel: &ScreenedPanel,
    padded: usize,
    row: usize,
    first: usize,
    found: &mut [Vec<u32>],
) {
    let words = &rows.words[row * padded..][..TILE_HEIGHT * padded];
    // The fillers' bounds are of no interest.
    let bounds: [&RowBound; TILE_HEIGHT] = std::array::from_fn(|m| &rows.rows[row + m.min(found.len() - 1)]);
    let weights = &panel.words[first * padded..][..TILE_WIDTH * padded];
    // SAFETY: the rows and the tile's weights have the lengths that the product reads.
    let sums = unsafe { product(words.as_ptr(), padded, weights.as_ptr()) };
    for v in 0..VECTORS {
        let at = first + 8 * v;
        let column = sums.map(|sums| sums[v]);
        // SAFETY: the bounds hold eight numbers from `at` on: their count is a multiple of the tile.
        let masks = unsafe { possible(column, panel, at, &bounds) };
        // A bound that is NaN rules out not even the features that only fill the tile.
        let existing = (1 << panel.count.saturating_sub(at).min(8)) - 1;
        for (mask, found) in masks.into_iter().zip(found.iter_mut()) {
            let mut mask = mask & existing;
            while mask != 0 {
                found.push(at as u32 + mask.trailing_zeros());
                mask &= mask - 1;
            }
        }
    }
}

/// Σ_k x_q·w_q in 32 bits.
///
/// # Safety
/// AVX2; `rows` valid for 6·`padded` numbers, `weights` for 16·`padded`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn product(rows: *const i16, padded: usize, weights: *const i16) -> [[__m256i; VECTORS]; TILE_HEIGHT] {
    // 6×2 sums, 2 weights, 1 broadcast and 1 product fill the 16 registers.
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; TILE_HEIGHT];
    let (mut rows, mut from) = (rows.cast::<i32>(), weights.cast::<__m256i>());
    for _ in 0..padded / 2 {
        // SAFETY: each turn reads two numbers of each row and 32 of the weights.
        unsafe {
            let w: [__m256i; VECTORS] = std::array::from_fn(|v| _mm256_loadu_si256(from.add(v)));
            from = from.add(VECTORS);
            for m in 0..TILE_HEIGHT {
                let x = rows.add(m).read_unaligned();
                let x = _mm256_set1_epi32(x);
                for v in 0..VECTORS {
                    sums[m][v] = _mm256_add_epi32(sums[m][v], _mm256_madd_epi16(x, w[v]));
                }
            }
            rows = rows.add(TILE_HEIGHT);
        }
    }
    sums
}

/// For each row a bit for each of eight features from `at` on: whether z can be above 0.
///
/// # Safety
/// AVX2 and FMA; the panel's bounds valid for eight numbers from `at` on.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn possible(
    sums: [__m256i; TILE_HEIGHT],
    panel: &ScreenedPanel,
    at: usize,
    rows: &[&RowBound; TILE_HEIGHT],
) -> [u32; TILE_HEIGHT] {
    let features = &panel.features;
    // SAFETY: the caller's promise.
    let (step, norm, residual, base) = unsafe {
        (
            _mm256_loadu_ps(features.step.as_ptr().add(at)),
            _mm256_loadu_ps(features.norm.as_ptr().add(at)),
            _mm256_loadu_ps(features.residual.as_ptr().add(at)),
            _mm256_loadu_ps(features.base.as_ptr().add(at)),
        )
    };
    let mut masks = [0; TILE_HEIGHT];
    for m in 0..TILE_HEIGHT {
        let row = rows[m];
        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[m]), step);
        let mut upper = _mm256_fmadd_ps(_mm256_set1_ps(row.step), scaled, base);
        upper = _mm256_fmadd_ps(_mm256_set1_ps(row.residual), norm, upper);
        upper = _mm256_fmadd_ps(_mm256_set1_ps(row.norm), residual, upper);
        // "Not at most 0" and not "above 0": NaN rules nothing out.
        let possible = _mm256_cmp_ps::<_CMP_NLE_UQ>(upper, _mm256_setzero_ps());
        masks[m] = _mm256_movemask_ps(possible) as u32;
    }
    masks
}
