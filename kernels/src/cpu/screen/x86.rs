//! The screening tiles on AVX2 and on AVX-512 with VNNI.
//!
//! VNNI multiplies and adds up four bytes or two words a lane and adds the sum to 32 bits in one instruction: bytes at
//! four times the rate of float32, words at twice, which is what AVX512_BF16 reaches with ten times the residual.

use super::rounding::{BYTE_BLOCK, Grid};
use super::{RowBound, ScreenedPanel, ScreenedRows, TILE_HEIGHT, TILE_WIDTH};
use crate::cpu::isa::{Isa, Level};
use std::arch::x86_64::*;

/// Vectors of eight features in a tile.
const VECTORS: usize = TILE_WIDTH / 8;

/// Whether the tile is that of VNNI.
pub(super) fn has_vnni(isa: Isa) -> bool {
    isa.level() == Level::Avx512 && is_x86_feature_detected!("avx512vnni")
}

/// Appends the candidates of a tile, the rows from `row` on × the panel's features from `first` on, to the list of
/// each row; what lies beyond the lists only fills the tile.
///
/// # Safety
/// The CPU must have AVX2 and FMA, and VNNI for AVX-512 if `vnni` says so.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn candidates(
    vnni: bool,
    rows: &ScreenedRows,
    panel: &ScreenedPanel,
    row: usize,
    first: usize,
    found: &mut [Vec<u32>],
) {
    let groups = panel.words.len() / panel.features.base.len();
    let words = &rows.words[row * groups..][..TILE_HEIGHT * groups];
    let weights = &panel.words[first * groups..][..TILE_WIDTH * groups];
    let start = &panel.features.start[first..][..TILE_WIDTH];
    // The fillers' bounds are of no interest.
    let bounds: [&RowBound; TILE_HEIGHT] = std::array::from_fn(|m| &rows.rows[row + m.min(found.len() - 1)]);
    // SAFETY: the rows, the tile's weights and starts have the lengths that the products read.
    let sums = unsafe {
        match rows.grid {
            Grid::Bits8 if vnni => {
                product_by_vnni::<true>(words.as_ptr(), groups, weights.as_ptr(), start.as_ptr())
            }
            Grid::Bits16 if vnni => {
                product_by_vnni::<false>(words.as_ptr(), groups, weights.as_ptr(), start.as_ptr())
            }
            Grid::Bits8 => product_of_bytes(words.as_ptr(), groups, weights.as_ptr(), start.as_ptr()),
            Grid::Bits16 => product_of_words(words.as_ptr(), groups, weights.as_ptr()),
        }
    };
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

/// The sums of a tile, eight features a vector.
type Sums = [[__m256i; VECTORS]; TILE_HEIGHT];

/// Σ_k x_q·w_q in 32 bits, of numbers of 16 bits.
///
/// # Safety
/// AVX2; `rows` valid for 6·`groups` words, `weights` for 16·`groups`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn product_of_words(rows: *const u32, groups: usize, weights: *const u32) -> Sums {
    // 6×2 sums, 2 weights, 1 broadcast and 1 product fill the 16 registers.
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; TILE_HEIGHT];
    let (mut rows, mut weights) = (rows.cast::<i32>(), weights.cast::<__m256i>());
    for _ in 0..groups {
        // SAFETY: each turn reads one word of each row and 16 of the weights.
        unsafe {
            let w: [__m256i; VECTORS] = std::array::from_fn(|v| _mm256_loadu_si256(weights.add(v)));
            weights = weights.add(VECTORS);
            for m in 0..TILE_HEIGHT {
                let x = _mm256_set1_epi32(*rows.add(m));
                for v in 0..VECTORS {
                    sums[m][v] = _mm256_add_epi32(sums[m][v], _mm256_madd_epi16(x, w[v]));
                }
            }
            rows = rows.add(TILE_HEIGHT);
        }
    }
    sums
}

/// `start` + Σ_k (x_q + offset)·w_q in 32 bits, of numbers of 8 bits.
///
/// # Safety
/// AVX2; `rows` valid for 6·`groups` words, `weights` for 16·`groups`, `start` for 16 numbers.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn product_of_bytes(rows: *const u32, groups: usize, weights: *const u32, start: *const i32) -> Sums {
    // Not a constant for the compiler: unrolled, the turns need more registers than there are.
    let more_turns = std::hint::black_box(BYTE_BLOCK / 4 - 1);
    let ones = _mm256_set1_epi16(1);
    // SAFETY: the caller's promise.
    let start: [__m256i; VECTORS] =
        std::array::from_fn(|v| unsafe { _mm256_loadu_si256(start.cast::<__m256i>().add(v)) });
    // In memory: the registers hold the sums of 16 bits.
    let mut sums = [start; TILE_HEIGHT];
    let (mut rows, mut weights) = (rows.cast::<i32>(), weights.cast::<__m256i>());
    for _ in 0..groups / (BYTE_BLOCK / 4) {
        // SAFETY: each turn reads one word of each row and 16 of the weights.
        let mut short = unsafe { turn_of_bytes(rows, weights, |_, _, product| product) };
        for _ in 0..more_turns {
            // SAFETY: as above.
            unsafe {
                (rows, weights) = (rows.add(TILE_HEIGHT), weights.add(VECTORS));
                short = turn_of_bytes(rows, weights, |m, v, product| _mm256_add_epi16(short[m][v], product));
            }
        }
        // SAFETY: the next block's, or the end.
        (rows, weights) = unsafe { (rows.add(TILE_HEIGHT), weights.add(VECTORS)) };
        for m in 0..TILE_HEIGHT {
            for v in 0..VECTORS {
                sums[m][v] = _mm256_add_epi32(sums[m][v], _mm256_madd_epi16(short[m][v], ones));
            }
        }
    }
    sums
}

/// `start` + Σ_k x_q·w_q in 32 bits, of numbers of 8 bits (those of the rows unsigned) or of 16 bits.
///
/// # Safety
/// AVX-512F with VNNI; `rows` valid for 6·`groups` words, `weights` for 16·`groups`, `start` for 16 numbers.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn product_by_vnni<const BYTES: bool>(
    rows: *const u32,
    groups: usize,
    weights: *const u32,
    start: *const i32,
) -> Sums {
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
    sums.map(|sum| [_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum)])
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
        let mut sums = [[_mm256_setzero_si256(); VECTORS]; TILE_HEIGHT];
        for m in 0..TILE_HEIGHT {
            let x = _mm256_set1_epi32(*rows.add(m));
            for v in 0..VECTORS {
                sums[m][v] = sum(m, v, _mm256_maddubs_epi16(x, w[v]));
            }
        }
        sums
    }
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
