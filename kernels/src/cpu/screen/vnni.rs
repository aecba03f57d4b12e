//! The screening tiles on AVX-512 with VNNI.
//!
//! In one instruction, VNNI multiplies four bytes or two words per lane and adds the products to a 32-bit sum: bytes at
//! four times the rate of float32, words at twice the rate. AVX512_BF16 reaches the latter with ten times the residual.

use super::avx512::above_zero;
use super::operands::{BOUND_LANES, Geometry};
use super::rounding::{BYTE_BLOCK, ByteRange, Form, Grid};
use super::strip::Strip;
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
